package policy

import (
	"fmt"
	"slices"
	"sort"
	"strings"

	"github.com/pavise-project/pavise"
)

// maxClauses is how many clauses one rule may have for one operation.
const maxClauses = 128

// maxSteps bounds the work on one condition, whose tree may share nodes.
const maxSteps = 1 << 16

// npred is a boolean function of atoms of one dimension, before its atoms are interned.
type npred struct {
	kind predKind
	atom *natom
	subs []*npred
	key  string
}

// npredOf makes a pred of subs; the same function written in another order has the same key.
func npredOf(kind predKind, subs ...*npred) *npred {
	if kind == predNot {
		if subs[0].kind == predNot {
			return subs[0].subs[0]
		}
		return &npred{kind: kind, subs: subs, key: "!" + subs[0].key}
	}
	var flat []*npred
	seen := map[string]bool{}
	for _, s := range subs {
		list := []*npred{s}
		if s.kind == kind {
			list = s.subs
		}
		for _, x := range list {
			if !seen[x.key] {
				seen[x.key] = true
				flat = append(flat, x)
			}
		}
	}
	if len(flat) == 1 {
		return flat[0]
	}
	sort.Slice(flat, func(i, j int) bool { return flat[i].key < flat[j].key })
	sep := " && "
	if kind == predOr {
		sep = " || "
	}
	keys := make([]string, len(flat))
	for i, x := range flat {
		keys[i] = x.key
	}
	return &npred{kind: kind, subs: flat, key: "(" + strings.Join(keys, sep) + ")"}
}

// cube is a conjunction of preds, at most one per dimension. Cubes are not changed once made.
type cube map[Dim]*npred

func (c cube) dims() []Dim {
	ds := make([]Dim, 0, len(c))
	for d := range c {
		ds = append(ds, d)
	}
	slices.Sort(ds)
	return ds
}

func (c cube) String() string {
	if len(c) == 0 {
		return "true"
	}
	var s []string
	for _, d := range c.dims() {
		s = append(s, c[d].key)
	}
	return strings.Join(s, " && ")
}

// and joins two cubes.
func (c cube) and(o cube) cube {
	out := make(cube, len(c)+len(o))
	for d, p := range c {
		out[d] = p
	}
	for d, p := range o {
		if q := out[d]; q != nil {
			p = npredOf(predAnd, q, p)
		}
		out[d] = p
	}
	return out
}

// normal is the normal form of one condition for one operation.
type normal struct {
	cubes    []cube
	unknown  []placed // what was taken for true because the kernel cannot decide it
	warnings []*Error
}

// placed is a part of a condition, and where the condition stands: conditions that are written the same share their trees.
type placed struct {
	*cnode
	at *place
}

// normaliser makes the normal form of one rule for one operation.
type normaliser struct {
	op       pavise.Op
	m        *Machine
	missing  map[Dim]bool // dimensions that the kernel does not know here, taken for true
	at       *place       // of the condition that is looked at
	unknown  []placed
	warnings []*Error
	steps    int
	err      error
}

// clauseError says that a condition has too many clauses, or takes too many steps to bring to clauses.
type clauseError struct {
	n, limit int
	what     string
	node     placed
}

func (e *clauseError) Error() string {
	return fmt.Sprintf("%d %s, the limit is %d", e.n, e.what, e.limit)
}

// normalise brings subject && when for op to its normal form. Nil conditions hold always.
func normalise(op pavise.Op, m *Machine, missing map[Dim]bool, conds ...*Condition) (*normal, error) {
	n := &normaliser{op: op, m: m, missing: missing}
	cubes := []cube{{}}
	for _, c := range conds {
		if c == nil {
			continue
		}
		n.at = &c.at
		more := n.cubes(c.tree, false)
		if n.err != nil {
			return nil, n.err
		}
		if cubes = n.product(c.tree, cubes, more); len(cubes) == 0 {
			n.unknown, n.warnings = nil, nil
		}
		if n.err != nil {
			return nil, n.err
		}
	}
	return &normal{cubes: cubes, unknown: n.unknown, warnings: n.warnings}, nil
}

// cubes is the disjunctive normal form of t, or of its negation. What is about one dimension becomes one pred.
func (n *normaliser) cubes(t *cnode, neg bool) []cube {
	if n.err != nil {
		return nil
	}
	if n.steps++; n.steps > maxSteps {
		n.err = &clauseError{n.steps, maxSteps, "steps", placed{t, n.at}}
		return nil
	}
	constant := func(b bool) []cube {
		if b != neg {
			return []cube{{}}
		}
		return nil
	}
	switch t.kind {
	case cTrue:
		return constant(true)
	case cFalse:
		return constant(false)
	case cNot:
		return n.cubes(t.subs[0], !neg)
	case cIf:
		if neg {
			return n.cubes(t.subs[1], false)
		}
		return n.cubes(t.subs[0], false)
	case cDirection:
		d := direction(n.op)
		for _, name := range t.names {
			if name == d {
				return constant(true)
			}
		}
		return constant(false)
	case cUser:
		a, err := n.userAtom(t)
		if err != nil {
			return n.taken(t)
		}
		return n.atom(t, a, neg)
	case cContainer:
		a, not, err := n.containerAtom(t.test)
		if err != nil {
			n.taken(t)
			return []cube{{}}
		}
		return n.atom(t, a, neg != not)
	case cAtom:
		if neg && t.has != nil {
			return n.product(t, n.atom(t, t.has, false), n.atom(t, t.atom, true))
		}
		return n.atom(t, t.atom, neg)
	case cAnd, cOr:
		if (t.kind == cAnd) != neg {
			out := []cube{{}}
			unknown, warnings := len(n.unknown), len(n.warnings)
			for _, s := range t.subs {
				if out = n.product(t, out, n.cubes(s, neg)); len(out) == 0 { // false, whatever was unknown
					n.unknown, n.warnings = n.unknown[:unknown], n.warnings[:warnings]
					break
				}
			}
			return out
		}
		var out []cube
		before := len(n.unknown)
		for _, s := range t.subs {
			unknown := len(n.unknown)
			more := n.cubes(s, neg)
			if len(more) == 1 && len(more[0]) == 0 && len(n.unknown) == unknown { // true, whatever was unknown
				n.unknown = n.unknown[:before]
				return more
			}
			out = append(out, more...)
		}
		return n.bound(t, merge(out))
	}
	return n.taken(t)
}

// taken takes t for true, and notes that.
func (n *normaliser) taken(t *cnode) []cube {
	if u := (placed{t, n.at}); !slices.Contains(n.unknown, u) {
		n.unknown = append(n.unknown, u)
	}
	if t.late {
		return []cube{{DimName: {kind: predAtom, atom: anyLate, key: anyLate.key}}}
	}
	return []cube{{}}
}

func (n *normaliser) atom(t *cnode, a *natom, neg bool) []cube {
	if n.missing[a.dim.fact()] {
		return n.taken(t)
	}
	p := &npred{kind: predAtom, atom: a, key: a.key}
	if neg {
		p = npredOf(predNot, p)
	}
	return []cube{{a.dim: p}}
}

// userAtom looks up the users that t names.
func (n *normaliser) userAtom(t *cnode) (*natom, error) {
	var spans []span
	for _, name := range t.names {
		err := fmt.Errorf("look up user %q: no user database", name)
		var id uint32
		if n.m != nil && n.m.LookupUser != nil {
			id, err = n.m.LookupUser(name)
		}
		if err != nil {
			line, col := t.cond.start(t.expr)
			n.warnings = append(n.warnings, n.at.error(problem{line, col, fmt.Sprintf("user %q is not known on this machine: %v", name, err), "use process.user.id"}))
			return nil, err
		}
		spans = append(spans, span{uint64(id), uint64(id)})
	}
	spans = mergeSpans(spans)
	return newAtom(DimUID, spanText(spans), numberPatterns(spans, 4)), nil
}

// product is the conjunction of two disjunctions.
func (n *normaliser) product(t *cnode, a, b []cube) []cube {
	if len(a)*len(b) > 32*maxClauses {
		n.fail(t, len(a)*len(b))
		return nil
	}
	out := make([]cube, 0, len(a)*len(b))
	for _, x := range a {
		for _, y := range b {
			out = append(out, x.and(y))
		}
	}
	return n.bound(t, merge(out))
}

func (n *normaliser) bound(t *cnode, cubes []cube) []cube {
	if len(cubes) > maxClauses {
		n.fail(t, len(cubes))
	}
	return cubes
}

func (n *normaliser) fail(t *cnode, count int) {
	if n.err == nil {
		n.err = &clauseError{count, maxClauses, "clauses", placed{t, n.at}}
	}
}

// merge removes cubes that another covers, and joins those that differ in one dimension.
func merge(cubes []cube) []cube {
	if len(cubes) < 2 {
		return cubes
	}
	for again := true; again; {
		again = false
		// By every dimension: cubes that are the same but for it become one.
		var dims [NumDims]bool
		for _, c := range cubes {
			if len(c) == 0 {
				return []cube{{}}
			}
			for d := range c {
				dims[d] = true
			}
		}
		for d := range Dim(NumDims) {
			if !dims[d] {
				continue
			}
			groups := map[string]int{}
			var out []cube
			for _, c := range cubes {
				k := c.keyWithout(d)
				i, ok := groups[k]
				if !ok {
					groups[k] = len(out)
					out = append(out, c)
					continue
				}
				again = true
				out[i] = out[i].orIn(d, c)
			}
			cubes = out
		}
	}
	return absorb(cubes)
}

func (c cube) keyWithout(d Dim) string {
	var b strings.Builder
	for _, x := range c.dims() {
		if x != d {
			b.WriteString(c[x].key)
			b.WriteByte('\n')
		}
	}
	return b.String()
}

// orIn joins two cubes that are the same but for d.
func (c cube) orIn(d Dim, o cube) cube {
	out := make(cube, len(c))
	for x, p := range c {
		out[x] = p
	}
	p, q := c[d], o[d]
	if p == nil || q == nil { // one asks nothing of d
		delete(out, d)
		return out
	}
	out[d] = npredOf(predOr, p, q)
	return out
}

// absorb removes cubes that ask for more than another.
func absorb(cubes []cube) []cube {
	if len(cubes) > 4*maxClauses {
		return cubes
	}
	var out []cube
	for i, c := range cubes {
		covered := false
		for j, o := range cubes {
			if i != j && o.covers(c) && (!c.covers(o) || j < i) {
				covered = true
				break
			}
		}
		if !covered {
			out = append(out, c)
		}
	}
	return out
}

// covers reports whether everything that c asks o asks too.
func (c cube) covers(o cube) bool {
	if len(c) > len(o) {
		return false
	}
	for d, p := range c {
		if q := o[d]; q == nil || q.key != p.key {
			return false
		}
	}
	return true
}

// interner numbers atoms. Those with the same key are the same.
type interner struct {
	atoms []atom
	byKey map[string]int32
}

func (in *interner) atom(a *atom) int32 {
	i, ok := in.byKey[a.Key]
	if !ok {
		i = int32(len(in.atoms)) //nolint:gosec // bounded by the size of files
		in.byKey[a.Key] = i
		in.atoms = append(in.atoms, *a)
	}
	return i
}

func (in *interner) pred(p *npred) *pred {
	out := &pred{Kind: p.kind}
	if p.kind == predAtom {
		out.Atom = int(in.atom(&atom{Dim: p.atom.dim, Key: p.key, Patterns: p.atom.patterns, Set: p.atom.set, words: p.atom.words}))
		return out
	}
	out.Subs = make([]*pred, len(p.subs))
	for i, s := range p.subs {
		out.Subs[i] = in.pred(s)
	}
	return out
}

func (in *interner) preds(c cube) dimPreds {
	out := make(dimPreds, 0, len(c))
	for _, d := range c.dims() {
		out = append(out, dimPred{d, in.pred(c[d])})
	}
	return out
}

// exactPaths adds the paths that p, not negated, is about exactly.
func (p *npred) exactPaths(not bool, add func(string)) {
	switch p.kind {
	case predAtom:
		if not {
			return
		}
		for i := range p.atom.words {
			if s, ok := p.atom.words[i].exact(); ok && s != "" {
				add(s)
			}
		}
	case predNot:
		p.subs[0].exactPaths(!not, add)
	default:
		for _, s := range p.subs {
			s.exactPaths(not, add)
		}
	}
}

// beginning is what p is of strings that begin with b, as far as that decides.
func (p *npred) beginning(b byte) holding {
	switch p.kind {
	case predAtom:
		best := no
		for i := range p.atom.patterns {
			best = max(best, p.atom.patterns[i].beginning(b))
		}
		return best
	case predNot:
		return yes - p.subs[0].beginning(b)
	}
	h := p.subs[0].beginning(b)
	for _, s := range p.subs[1:] {
		if p.kind == predAnd {
			h = min(h, s.beginning(b))
		} else {
			h = max(h, s.beginning(b))
		}
	}
	return h
}

func (p *pattern) beginning(b byte) holding {
	switch items := p.Items; {
	case len(items) == 0:
		return no
	case items[0].Loop || p.Under:
		return maybe
	case !items[0].Set.has(b):
		return no
	case slices.ContainsFunc(items[1:], func(i item) bool { return i.Set != allBytes }):
		return maybe
	}
	return yes
}

// String shows the program: its clauses, one a line, in order.
func (p *program) String() string {
	var b strings.Builder
	for i := range p.Clauses {
		c := &p.Clauses[i]
		r := &p.Rules[c.Rule]
		op := c.Op.String()
		if c.Op == OpLate {
			op = pavise.OpExec.String() + " late"
		}
		fmt.Fprintf(&b, "%s/%s %s %s", r.Policy, r.Name, op, clauseKind(c))
		b.WriteString(":")
		if len(c.Preds) == 0 {
			b.WriteString(" true")
		}
		for i, q := range c.Preds {
			if i > 0 {
				b.WriteString(" &&")
			}
			b.WriteByte(' ')
			p.predText(&b, c, q.pred)
		}
		if c.Rate != 0 {
			b.WriteString(" && " + p.Rates[c.Rate-1].String())
		}
		b.WriteByte('\n')
	}
	for _, f := range p.Protected {
		b.WriteString("protected " + f + "\n")
	}
	return b.String()
}

func clauseKind(c *clause) string {
	s := ""
	switch c.Kind {
	case WordExplicit:
		s = c.Action.String()
	case WordAllow:
		s = fmt.Sprintf("allow in group %d", c.Group)
	case WordDefault:
		s = fmt.Sprintf("default %s of group %d", c.Action, c.Group)
	}
	if c.Monitor {
		s += " (monitor)"
	}
	return s
}

func (p *program) predText(b *strings.Builder, c *clause, q *pred) {
	switch q.Kind {
	case predAtom:
		b.WriteString(p.Atoms[c.atom(q.Atom)].Key)
	case predNot:
		b.WriteByte('!')
		p.predText(b, c, q.Subs[0])
	default:
		sep := " && "
		if q.Kind == predOr {
			sep = " || "
		}
		b.WriteByte('(')
		for i, s := range q.Subs {
			if i > 0 {
				b.WriteString(sep)
			}
			p.predText(b, c, s)
		}
		b.WriteByte(')')
	}
}
