package policy

import (
	"fmt"
	"math/bits"
	"slices"
	"sort"
	"strings"

	"github.com/pavise-project/pavise"
)

// This file finds rules that contradict each other or themselves. It takes longer than a change of policies may take, so that it is
// not part of Compile: whoever shows a Report to a person asks for it.

// The limits of the search. Beyond them nothing is found, and nothing is claimed.
const (
	maxRelated = 4096    // predicates of one policy on one dimension
	maxPairs   = 1 << 20 // pairs of an allow's clause and a deny's
)

// Review returns r with more warnings: rules whose condition cannot hold, allow rules that a deny or a kill of the same policy always
// overrides, and rules on the same condition that ask for different actions. It warns only of what it can prove.
func Review(set []*Policy, m *Machine, r *Report) *Report {
	sorted := slices.Clone(set)
	sort.SliceStable(sorted, func(i, j int) bool { return sorted[i].Name < sorted[j].Name })
	found := map[string][]*Error{}
	var all []reviewedPart
	for _, p := range sorted {
		v := p.reviewed(m)
		found[p.Name] = append(found[p.Name], v.warnings...)
		all = append(all, v.parts...)
	}
	for _, x := range contradictions(all) {
		found[x.policy.Name] = append(found[x.policy.Name], x.warning)
	}
	out := &Report{Policies: slices.Clone(r.Policies)}
	for i := range out.Policies {
		p := &out.Policies[i]
		p.Warnings = append(slices.Clip(p.Warnings), found[p.Name]...)
	}
	return out
}

// review is what is known of one policy alone.
type review struct {
	normal   *normalPolicy
	parts    []reviewedPart
	warnings []*Error
}

// reviewedPart is a rule for one operation.
type reviewedPart struct {
	policy  *Policy
	rule    *RuleSpec
	index   int
	op      pavise.Op
	action  pavise.Action // as asked
	kind    WordKind
	monitor bool
	cubes   []cube
	exact   bool   // cubes are the whole condition
	key     string // the same for rules on the same condition
}

// place is where the rule stands, for a policy that it is told to.
func (x *reviewedPart) place(in *Policy) string {
	if x.policy != in {
		return fmt.Sprintf("rule %q of policy %q (%s:%d)", x.rule.Name, x.policy.Name, x.policy.File, x.rule.line)
	}
	return fmt.Sprintf("rule %q (%s:%d)", x.rule.Name, x.policy.File, x.rule.line)
}

func (x *reviewedPart) warn(hint, format string, args ...any) *Error {
	return &Error{File: x.policy.File, Line: x.rule.line, Column: x.rule.col, Field: fmt.Sprintf("spec.rules[%d]", x.index), Msg: fmt.Sprintf(format, args...), Hint: hint}
}

// reviewed returns the review of p for m, and keeps it for the next time.
func (p *Policy) reviewed(m *Machine) *review {
	n := p.normal(m)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.review == nil || p.review.normal != n {
		p.review = reviewPolicy(p, n)
		p.review.normal = n
	}
	return p.review
}

func reviewPolicy(p *Policy, n *normalPolicy) *review {
	v := &review{}
	if len(n.errs) > 0 {
		return v
	}
	type ruleOp struct {
		rule string
		op   pavise.Op
	}
	user := map[ruleOp]string{}
	for i := range n.report.Rules {
		if r := &n.report.Rules[i]; len(r.User) > 0 {
			user[ruleOp{r.Rule, r.Op}] = r.Residual
		}
	}
	for i := range n.rules {
		nr := &n.rules[i]
		if nr.rule.Index < 0 {
			continue
		}
		for _, part := range nr.parts {
			if part.skip || len(part.cubes) == 0 { // of the latter it was warned already
				continue
			}
			rest := user[ruleOp{nr.rule.Name, part.op}]
			if nr.rate != nil {
				rest += " " + nr.rate.String()
			}
			keys := make([]string, len(part.cubes))
			for j, c := range part.cubes {
				keys[j] = c.String()
			}
			sort.Strings(keys)
			v.parts = append(v.parts, reviewedPart{
				policy: p, rule: &p.Rules[nr.rule.Index], index: nr.rule.Index, op: part.op, action: nr.rule.Action, kind: part.kind, monitor: part.monitor,
				cubes: part.cubes, exact: rest == "", key: part.op.String() + "\n" + strings.Join(keys, "\n") + "\n" + rest,
			})
		}
	}
	v.warnings = append(impossible(v.parts), overridden(v.parts)...)
	return v
}

// impossible warns of rules none of whose clauses can hold.
func impossible(parts []reviewedPart) []*Error {
	var preds [NumDims][]*npred
	for i := range parts {
		for _, c := range parts[i].cubes {
			for d, p := range c {
				if !p.monotone() && !p.moves() {
					preds[d] = append(preds[d], p)
				}
			}
		}
	}
	rel := relateAll(&preds)
	type found struct {
		first *reviewedPart
		ops   []pavise.Op
		dim   Dim
		pred  *npred
	}
	var list []*found
	byRule := map[*RuleSpec]*found{}
	for i := range parts {
		x := &parts[i]
		var dim Dim
		var pred *npred
		dead := 0
		for _, c := range x.cubes {
			for _, d := range c.dims() {
				if rel[d].never(c[d]) {
					dim, pred = d, c[d]
					dead++
					break
				}
			}
		}
		if dead < len(x.cubes) {
			continue
		}
		f := byRule[x.rule]
		if f == nil {
			f = &found{first: x, dim: dim, pred: pred}
			byRule[x.rule] = f
			list = append(list, f)
		}
		f.ops = append(f.ops, x.op)
	}
	var out []*Error
	for _, f := range list {
		out = append(out, f.first.warn("", "condition never holds for %s: no %s meets %s", opList(f.ops), f.dim, shorten(f.pred.key, 200)))
	}
	return out
}

// monotone reports whether p is an atom or any of some atoms. It can hold, for an atom that matches nothing was refused.
func (p *npred) monotone() bool {
	return p.kind == predAtom || p.kind == predOr && !slices.ContainsFunc(p.subs, func(s *npred) bool { return !s.monotone() })
}

// moves reports whether p depends on the containers that are known: what it holds for today proves nothing.
func (p *npred) moves() bool {
	return p.atom != nil && p.atom.moves || slices.ContainsFunc(p.subs, (*npred).moves)
}

// overridden warns of allow rules that a deny or a kill of their policy overrides wherever they hold.
func overridden(parts []reviewedPart) []*Error {
	denies := map[pavise.Op][]*reviewedPart{}
	var allowed, denied [pavise.NumOps]int // clauses
	for i := range parts {
		switch x := &parts[i]; {
		case x.action == pavise.ActionAllow:
			allowed[x.op] += len(x.cubes)
		case x.exact && (x.action == pavise.ActionDeny || x.action == pavise.ActionKill):
			denied[x.op] += len(x.cubes)
			denies[x.op] = append(denies[x.op], x)
		}
	}
	pairs := 0
	for op := range allowed {
		pairs += allowed[op] * denied[op]
	}
	if pairs == 0 || pairs > maxPairs {
		return nil
	}
	var preds [NumDims][]*npred
	for i := range parts {
		if x := &parts[i]; allowed[x.op] > 0 && denied[x.op] > 0 && x.action != pavise.ActionAudit {
			for _, c := range x.cubes {
				for d, p := range c {
					if !p.moves() {
						preds[d] = append(preds[d], p)
					}
				}
			}
		}
	}
	rel := relateAll(&preds)
	type found struct {
		allow *reviewedPart
		ops   []pavise.Op
		by    []*reviewedPart
	}
	var list []*found
	byRule := map[*RuleSpec]*found{}
	for i := range parts {
		a := &parts[i]
		if a.action != pavise.ActionAllow {
			continue
		}
		by := coverOf(a, denies[a.op], rel)
		if len(by) == 0 {
			continue
		}
		f := byRule[a.rule]
		if f == nil {
			f = &found{allow: a}
			byRule[a.rule] = f
			list = append(list, f)
		}
		f.ops = append(f.ops, a.op)
		for _, b := range by {
			if !slices.ContainsFunc(f.by, func(o *reviewedPart) bool { return o.rule == b.rule }) {
				f.by = append(f.by, b)
			}
		}
	}
	var out []*Error
	for _, f := range list {
		var by []string
		for _, b := range f.by {
			by = append(by, fmt.Sprintf("%s, which asks for %s", b.place(f.allow.policy), b.action))
		}
		out = append(out, f.allow.warn("the strictest wins: take what is to be allowed out of the stricter rule's condition, or remove this rule",
			"rule %q never allows %s: wherever it holds, so does %s", f.allow.rule.Name, opList(f.ops), strings.Join(by, " or ")))
	}
	return out
}

// coverOf returns the rules that together hold wherever a does, nil when a may hold without them. What asks for the same as a is left to
// contradictions.
func coverOf(a *reviewedPart, denies []*reviewedPart, rel *[NumDims]*relations) (by []*reviewedPart) {
	live := 0
	for _, c := range a.cubes {
		if slices.ContainsFunc(c.dims(), func(d Dim) bool { return rel[d].never(c[d]) }) {
			continue
		}
		live++
		i := slices.IndexFunc(denies, func(b *reviewedPart) bool {
			return (!b.monitor || a.monitor) && slices.ContainsFunc(b.cubes, func(o cube) bool { return inside(c, o, rel) })
		})
		if i < 0 {
			return nil
		}
		if !slices.Contains(by, denies[i]) {
			by = append(by, denies[i])
		}
	}
	if live == 0 || slices.ContainsFunc(denies, func(b *reviewedPart) bool { return b.key == a.key }) {
		return nil
	}
	return by
}

// inside reports whether o holds wherever c does.
func inside(c, o cube, rel *[NumDims]*relations) bool {
	for d, q := range o {
		p := c[d]
		if p == nil || p.key != q.key && !rel[d].implies(p, q) {
			return false
		}
	}
	return true
}

// contradiction is a warning that is told to a policy.
type contradiction struct {
	policy  *Policy
	warning *Error
}

// contradictions warns of rules on the same condition that ask for different actions: of each and the strictest, in the policy of either. A rule of a policy that only monitors beside one that acts is how a change is tried, and no contradiction.
func contradictions(parts []reviewedPart) []contradiction {
	type pair struct{ lax, strict *RuleSpec }
	type found struct {
		lax, strict *reviewedPart
		ops         []pavise.Op
	}
	type group struct {
		key     string
		policy  *Policy // nil: of all policies, those that act, or those that monitor
		monitor bool
	}
	strictest := map[group]*reviewedPart{}
	note := func(g group, x *reviewedPart) {
		if s := strictest[g]; s == nil || x.action > s.action {
			strictest[g] = x
		}
	}
	for i := range parts {
		x := &parts[i]
		note(group{key: x.key, policy: x.policy}, x)
		note(group{key: x.key, monitor: x.monitor}, x)
	}
	var list []*found
	byPair := map[pair]*found{}
	for i := range parts {
		x := &parts[i]
		s := strictest[group{key: x.key, policy: x.policy}]
		if all := strictest[group{key: x.key, monitor: x.monitor}]; all.action > s.action {
			s = all
		}
		if s.action == x.action {
			continue
		}
		f := byPair[pair{x.rule, s.rule}]
		if f == nil {
			f = &found{lax: x, strict: s}
			byPair[pair{x.rule, s.rule}] = f
			list = append(list, f)
		}
		f.ops = append(f.ops, x.op)
	}
	var out []contradiction
	tell := func(x, other *reviewedPart, ops []pavise.Op) {
		out = append(out, contradiction{x.policy, x.warn("the strictest wins: remove one of them, or tell their conditions apart",
			"rule %q asks for %s where %s asks for %s, on the same condition for %s", x.rule.Name, x.action, other.place(x.policy), other.action, opList(ops))})
	}
	for _, f := range list {
		tell(f.lax, f.strict, f.ops)
		if f.lax.policy != f.strict.policy {
			tell(f.strict, f.lax, f.ops)
		}
	}
	return out
}

func shorten(s string, n int) string {
	if len(s) > n {
		return strings.ToValidUTF8(s[:n], "") + "..."
	}
	return s
}

// relations says which predicates of a dimension can hold, and which imply which: it is read from the automaton of them all, class by class. A nil
// relations knows nothing.
type relations struct {
	index map[string]int // by key
	holds []bool         // in some class
	// implied[i] are the predicates, a bit each, that hold in each class in which i does, and not in every class.
	implied [][]uint64
}

func relateAll(preds *[NumDims][]*npred) *[NumDims]*relations {
	var out [NumDims]*relations
	for d := range preds {
		if len(preds[d]) > 0 {
			out[d] = relate(Dim(d), preds[d])
		}
	}
	return &out
}

// relate makes tables of rules with one predicate each and reads them; nil when they are too many or too big.
func relate(d Dim, preds []*npred) *relations {
	r := &relations{index: map[string]int{}}
	in := &interner{byKey: map[string]int32{}}
	prog := &program{}
	for _, p := range preds {
		if _, ok := r.index[p.key]; ok {
			continue
		}
		n := len(prog.Rules)
		r.index[p.key] = n
		prog.Rules = append(prog.Rules, Rule{})
		prog.Clauses = append(prog.Clauses, clause{
			Op: pavise.OpOpen, Rule: uint32(n), Preds: dimPreds{{d, in.pred(p)}}, Kind: WordExplicit, Action: pavise.ActionDeny, //nolint:gosec // of maxRelated
		})
	}
	n := len(prog.Rules)
	if n > maxRelated {
		return nil
	}
	prog.Atoms = in.atoms
	if prog.numberSets() != nil {
		return nil
	}
	img, err := assemble(prog)
	if err != nil {
		return nil
	}
	t := &img.Ops[pavise.OpOpen]
	words := (n + 63) / 64
	every := make([]uint64, words)
	for i := range n {
		every[i/64] |= 1 << (i % 64)
	}
	r.holds = make([]bool, n)
	r.implied = make([][]uint64, n)
	placed := make([]bool, n) // in some automaton; one that always holds is in none
	for s := range t.Slots {
		// The classes of one automaton, as sets of predicates. One that is asked of another automaton is in all of them. The last class is that of strings
		// that are too long, in which every deny holds.
		rows := t.Slots[s].ClassRow
		classes := make([][]uint64, 0, len(rows))
		always := slices.Clone(every)
		for _, row := range rows[:len(rows)-1] {
			set := slices.Clone(every)
			if row != 0 {
				clear(set)
				for w := range t.Words {
					if img.Rows[row].Summary[w/64]&(1<<(w%64)) == 0 {
						continue
					}
					for b := img.Rows[row].word(img.Words, w); b != 0; b &= b - 1 {
						id := t.Rule[w*64+bits.TrailingZeros64(b)]
						set[id/64] |= 1 << (id % 64)
					}
				}
			}
			for i := range always {
				always[i] &= set[i]
			}
			classes = append(classes, set)
		}
		for i := range n {
			if always[i/64]&(1<<(i%64)) != 0 {
				continue // asked of another automaton
			}
			placed[i] = true
			for _, c := range classes {
				if c[i/64]&(1<<(i%64)) == 0 {
					continue
				}
				r.holds[i] = true
				if r.implied[i] == nil {
					r.implied[i] = slices.Clone(every)
					for w := range always {
						r.implied[i][w] &^= always[w]
					}
				}
				for w := range c {
					r.implied[i][w] &= c[w]
				}
			}
		}
	}
	for i, p := range placed {
		r.holds[i] = r.holds[i] || !p
	}
	return r
}

// never reports whether p cannot hold.
func (r *relations) never(p *npred) bool {
	if r == nil {
		return false
	}
	i, ok := r.index[p.key]
	return ok && !r.holds[i]
}

// implies reports whether q holds wherever p does.
func (r *relations) implies(p, q *npred) bool {
	if r == nil {
		return false
	}
	i, ok := r.index[p.key]
	j, ok2 := r.index[q.key]
	return ok && ok2 && r.implied[i] != nil && r.implied[i][j/64]&(1<<(j%64)) != 0
}
