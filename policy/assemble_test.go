package policy

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/pavise-project/pavise"
)

// The plain reference: patterns by backtracking, predicates by recursion, clauses one by one.

func refMatch(items []item, under bool, s []byte) bool {
	if len(items) == 0 {
		return len(s) == 0 || under && s[0] == '/'
	}
	it := items[0]
	if it.Loop {
		return refMatch(items[1:], under, s) || len(s) > 0 && it.Set.has(s[0]) && refMatch(items, under, s[1:])
	}
	return len(s) > 0 && it.Set.has(s[0]) && refMatch(items[1:], under, s[1:])
}

func refPred(p *program, q *pred, s []byte) bool {
	switch q.Kind {
	case predAtom:
		return slices.ContainsFunc(p.Atoms[q.Atom].Patterns, func(x pattern) bool { return refMatch(x.Items, x.Under, s) })
	case predAnd:
		return !slices.ContainsFunc(q.Subs, func(q *pred) bool { return !refPred(p, q, s) })
	case predOr:
		return slices.ContainsFunc(q.Subs, func(q *pred) bool { return refPred(p, q, s) })
	}
	return !refPred(p, q.Subs[0], s)
}

func (ps dimPreds) find(d Dim) (int, bool) {
	return slices.BinarySearchFunc(ps, d, func(p dimPred, d Dim) int { return cmp.Compare(p.dim, d) })
}

// of returns the predicate on d, nil when there is none.
func (ps dimPreds) of(d Dim) *pred {
	if i, ok := ps.find(d); ok {
		return ps[i].pred
	}
	return nil
}

// with returns ps, which it may change, with p as the predicate on d.
func (ps dimPreds) with(d Dim, p *pred) dimPreds {
	i, ok := ps.find(d)
	if ok {
		ps[i].pred = p
		return ps
	}
	return slices.Insert(ps, i, dimPred{d, p})
}

func refClause(p *program, c *clause, values *[NumDims][]byte) bool {
	for _, q := range c.Preds {
		if len(values[q.dim]) > MaxString && !constant(q.pred) {
			if c.Kind == WordAllow {
				return false
			}
		} else if !refPred(p, q.pred, values[q.dim]) {
			return false
		}
	}
	return true
}

// refVerdict is what must be so of a Verdict: the action, and the rules that ask for it, and all that matched.
type refVerdict struct {
	action   pavise.Action
	monitor  bool
	deciding map[uint32]bool
	matched  map[uint32]bool
}

func refJudge(p *program, op pavise.Op, f *Facts) refVerdict {
	v := refVerdict{matched: map[uint32]bool{}}
	rules := map[[2]int]map[uint32]bool{} // by strictness: enforced, action
	found := func(c *clause) {
		enforced := 1
		if c.Action == pavise.ActionAudit {
			enforced = 0
		} else if !c.Monitor {
			enforced = 2
		}
		k := [2]int{enforced, int(c.Action)}
		if rules[k] == nil {
			rules[k] = map[uint32]bool{}
		}
		rules[k][c.Rule] = true
		v.matched[c.Rule] = true
	}
	usesPath := false
	met := map[uint16]bool{}
	for i := range p.Clauses {
		c := &p.Clauses[i]
		if c.Op == op && c.Kind == WordAllow && refClause(p, c, &f.Values) {
			met[c.Group] = true
		}
		usesPath = usesPath || c.Op == op && c.Preds.of(DimPath) != nil
	}
	for i := range p.Clauses {
		c := &p.Clauses[i]
		if c.Op != op || c.Kind == WordAllow || c.Action <= pavise.ActionAllow {
			continue
		}
		holds := refClause(p, c, &f.Values)
		if c.Kind == WordDefault && met[c.Group] {
			holds = false
		}
		if c.Kind == WordExplicit && usesPath {
			for _, alias := range f.Aliases {
				values := f.Values
				values[DimPath] = alias
				holds = holds || refClause(p, c, &values)
			}
		}
		if holds {
			found(c)
		}
	}
	for enforced := 2; enforced >= 0; enforced-- {
		for a := pavise.ActionKill; a > pavise.ActionAllow; a-- {
			if r := rules[[2]int{enforced, int(a)}]; r != nil && v.action == 0 {
				v.action, v.monitor, v.deciding = a, enforced == 1, r
			}
		}
	}
	return v
}

func compareVerdict(v Verdict, r refVerdict) string {
	if v.Action != r.action || v.Monitor != r.monitor {
		return fmt.Sprintf("got %v (monitor %v), want %v (monitor %v)", v.Action, v.Monitor, r.action, r.monitor)
	}
	if (v.Action == pavise.ActionNone) != (v.Rule == NoRule) || v.Rules[0] != v.Rule {
		return fmt.Sprintf("rule %d first of %v for %v", v.Rule, v.Rules, v.Action)
	}
	if v.Rule != NoRule && !r.deciding[v.Rule] {
		return fmt.Sprintf("rule %d decided, want one of %v", v.Rule, r.deciding)
	}
	seen := map[uint32]bool{}
	for i, id := range v.Rules {
		if id == NoRule {
			if i < 3 && v.Rules[i+1] != NoRule {
				return fmt.Sprintf("gap in %v", v.Rules)
			}
			continue
		}
		if !r.matched[id] || seen[id] {
			return fmt.Sprintf("rules %v, want distinct ones of %v", v.Rules, r.matched)
		}
		seen[id] = true
	}
	if v.Matched < len(seen) || v.Matched > 255 {
		return fmt.Sprintf("%d matched, %d named", v.Matched, len(seen))
	}
	return ""
}

// Random programs.

const alphabet = "ab/c"

func one(b byte) (s byteSet) {
	s[b>>6] = 1 << (b & 63)
	return s
}

func not(s byteSet) byteSet {
	for i := range s {
		s[i] = ^s[i]
	}
	return s
}

// glob makes a pattern: ? a byte but '/', * any of these, ** any bytes; a '/' at the end makes it under.
func glob(s string) pattern {
	var p pattern
	if s, p.Under = strings.CutSuffix(s, "//"); p.Under {
		defer func() { p.Under = true }()
	}
	for len(s) > 0 {
		switch {
		case strings.HasPrefix(s, "**"):
			p.Items = append(p.Items, item{allBytes, true})
			s = s[1:]
		case s[0] == '*':
			p.Items = append(p.Items, item{not(one('/')), true})
		case s[0] == '?':
			p.Items = append(p.Items, item{not(one('/')), false})
		default:
			p.Items = append(p.Items, literal(s[:1])...)
		}
		s = s[1:]
	}
	return p
}

func randomString(r *rand.Rand, max int) string {
	b := make([]byte, r.IntN(max+1))
	for i := range b {
		b[i] = alphabet[r.IntN(len(alphabet))]
	}
	return string(b)
}

func randomSet(r *rand.Rand) byteSet {
	switch r.IntN(5) {
	case 0:
		return allBytes
	case 1:
		return not(one('/'))
	case 2:
		return not(one(alphabet[r.IntN(len(alphabet))]))
	}
	var s byteSet
	for range r.IntN(4) {
		b := alphabet[r.IntN(len(alphabet))]
		s[b>>6] |= 1 << (b & 63)
	}
	return s
}

func randomPattern(r *rand.Rand, stems []string) pattern {
	p := pattern{Under: r.IntN(3) == 0}
	for range 1 + r.IntN(3) {
		switch r.IntN(6) {
		case 0:
			p.Items = append(p.Items, item{randomSet(r), true})
		case 1:
			p.Items = append(p.Items, item{randomSet(r), false})
		case 2:
			p.Items = append(p.Items, literal(randomString(r, 12))...)
		default:
			p.Items = append(p.Items, literal(stems[r.IntN(len(stems))])...)
		}
	}
	if r.IntN(4) == 0 {
		p.Items = append(p.Items, item{allBytes, true})
	}
	return p
}

func randomPred(r *rand.Rand, atoms []int, depth int) *pred {
	k := predKind(r.IntN(4))
	if depth == 0 {
		k = predAtom
	}
	q := &pred{Kind: k}
	n := r.IntN(4)
	switch k {
	case predAtom:
		q.Atom = atoms[r.IntN(len(atoms))]
		return q
	case predNot:
		n = 1
	}
	for range n {
		q.Subs = append(q.Subs, randomPred(r, atoms, depth-1))
	}
	return q
}

var testDims = []Dim{DimExe, DimPath, DimAccess, DimRemotePath}

func randomProgram(r *rand.Rand) *program {
	p := &program{}
	stems := make([]string, 3)
	for i := range stems {
		stems[i] = randomString(r, 8)
	}
	var atoms [NumDims][]int
	ds := testDims[:1+r.IntN(len(testDims))]
	for _, d := range ds {
		for range 1 + r.IntN(8) {
			a := atom{Dim: d, Key: strconv.Itoa(len(p.Atoms))}
			for range 1 + r.IntN(3) {
				a.Patterns = append(a.Patterns, randomPattern(r, stems))
			}
			atoms[d] = append(atoms[d], len(p.Atoms))
			p.Atoms = append(p.Atoms, a)
		}
	}
	var shared [NumDims]*pred // clauses of a rule share predicates
	modes := make([]bool, 4)
	actions := make([]pavise.Action, 4)
	for g := range modes {
		modes[g], actions[g] = r.IntN(2) == 0, pavise.Action(r.IntN(5))
	}
	for range 1 + r.IntN(1+10*(1<<r.IntN(5))) {
		c := clause{Op: pavise.OpOpen, Rule: uint32(len(p.Rules)), Kind: WordKind(1 + r.IntN(3))}
		if r.IntN(8) == 0 {
			c.Op = pavise.OpExec
		}
		if c.Kind == WordExplicit {
			c.Action, c.Monitor = pavise.Action(1+r.IntN(4)), r.IntN(2) == 0
		} else {
			c.Group = uint16(1 + r.IntN(3))
			c.Monitor = modes[c.Group]
		}
		if c.Kind == WordDefault {
			c.Action = actions[c.Group]
		}
		for _, d := range ds {
			switch r.IntN(4) {
			case 0:
				if shared[d] != nil {
					c.Preds = c.Preds.with(d, shared[d])
				}
			case 1, 2:
				shared[d] = randomPred(r, atoms[d], r.IntN(4))
				c.Preds = c.Preds.with(d, shared[d])
			}
		}
		p.Clauses = append(p.Clauses, c)
		if r.IntN(3) > 0 || len(p.Rules) == 0 {
			p.Rules = append(p.Rules, Rule{Name: strconv.Itoa(len(p.Rules))})
		}
	}
	p.Rules = append(p.Rules, Rule{})
	return p
}

// sample makes a string that is likely to match a pattern of d.
func sample(r *rand.Rand, p *program, d Dim) []byte {
	var s []byte
	switch r.IntN(12) {
	case 0:
		return nil
	case 1:
		return []byte(randomString(r, 12))
	case 2:
		if r.IntN(8) == 0 {
			return make([]byte, MaxString+1) // one byte less takes the reference too long
		}
	}
	for range 4 {
		a := p.Atoms[r.IntN(len(p.Atoms))]
		if a.Dim != d {
			continue
		}
		for _, it := range a.Patterns[r.IntN(len(a.Patterns))].Items {
			n := 1
			if it.Loop {
				n = r.IntN(3)
			}
			for range n {
				b := alphabet[r.IntN(len(alphabet))]
				if !it.Set.has(b) && it.Set != (byteSet{}) {
					b = it.Set.first()
				}
				s = append(s, b)
			}
		}
		if r.IntN(4) == 0 {
			s = append(s, "/"+randomString(r, 4)...)
		}
		break
	}
	if len(s) > 0 && r.IntN(4) == 0 {
		s[r.IntN(len(s))] = alphabet[r.IntN(len(alphabet))]
	}
	return s
}

func checkProgram(t *testing.T, seed uint64, facts int) {
	t.Helper()
	r := rand.New(rand.NewPCG(seed, 1))
	p := randomProgram(r)
	img, err := assemble(p)
	if err != nil {
		t.Fatalf("seed %d: %v", seed, err)
	}
	imgs := []*Image{img}
	small := newAssembler(p)
	small.few, small.most = 1+r.IntN(10), 1+r.IntN(40)
	if img, err := small.run(); err == nil {
		imgs = append(imgs, img) // most often in several automata
	}
	for _, img := range imgs {
		checkImage(t, img)
	}
	for range facts {
		var f Facts
		for _, d := range testDims {
			f.Values[d] = sample(r, p, d)
		}
		for range r.IntN(3) {
			f.Aliases = append(f.Aliases, sample(r, p, DimPath))
		}
		for _, op := range []pavise.Op{pavise.OpOpen, pavise.OpExec} {
			want := refJudge(p, op, &f)
			for _, img := range imgs {
				if diff := compareVerdict(img.Judge(op, &f), want); diff != "" {
					t.Fatalf("seed %d, %d automata, %v of %q, aliases %q: %s", seed, len(img.Automata), op, f.Values, f.Aliases, diff)
				}
			}
		}
	}
}

// checkImage checks what image.go promises of the tables.
func checkImage(t *testing.T, img *Image) {
	t.Helper()
	for i, a := range img.Automata {
		if len(a.Next) != len(a.Accept)<<a.Shift || a.Start != 0 || len(a.Tails)%8 != 0 {
			t.Fatalf("automaton %d: %d cells, %d rows, shift %d, start %d, %d bytes of tails", i, len(a.Next), len(a.Accept), a.Shift, a.Start, len(a.Tails))
		}
		for _, c := range a.Column {
			if int(c) >= 1<<a.Shift {
				t.Fatalf("automaton %d: column %d of %d", i, c, 1<<a.Shift)
			}
		}
		for _, n := range a.Next {
			if n&LeafBit == 0 && int(n) >= len(a.Accept) || n&LeafBit != 0 && int(n&^LeafBit) >= len(a.Leaves) {
				t.Fatalf("automaton %d: target %#x", i, n)
			}
		}
		classes := slices.Clone(a.Accept)
		for _, l := range a.Leaves {
			classes = append(classes, l.Match, l.Miss)
			if l.TailOff%8 != 0 || int(l.TailOff)+(int(l.TailLen)+7)&^7 > len(a.Tails) {
				t.Fatalf("automaton %d: leaf %+v", i, l)
			}
		}
		if int(slices.Max(classes)) >= a.Classes-1 {
			t.Fatalf("automaton %d: class %d of %d", i, slices.Max(classes), a.Classes)
		}
	}
	for op := range img.Ops {
		o := &img.Ops[op]
		if len(o.Rule) != 64*len(o.Words) {
			t.Fatalf("%v: %d rules, %d words", pavise.Op(op), len(o.Rule), len(o.Words))
		}
		for _, s := range o.Slots {
			rows := img.Automata[s.Automaton].Classes
			if pavise.Op(op) == pavise.OpAccept {
				rows++ // for anyone
			}
			if len(s.ClassRow) != rows {
				t.Fatalf("%v: %d rows of classes", pavise.Op(op), len(s.ClassRow))
			}
			for _, id := range s.ClassRow {
				if id == 0 {
					continue
				}
				for w := range 256 {
					if img.Rows[id].Summary[w/64]>>(w%64)&1 == 0 {
						continue
					}
					if w >= len(o.Words) {
						t.Fatalf("%v: row %d has word %d of %d", pavise.Op(op), id, w, len(o.Words))
					}
					if x := img.Rows[id].word(img.Words, w); x == 0 || o.Words[w].Clauses < 64 && x>>o.Words[w].Clauses != 0 {
						t.Fatalf("%v: row %d, word %d is %#x, of %d clauses", pavise.Op(op), id, w, x, o.Words[w].Clauses)
					}
				}
			}
		}
	}
}

// TestJudgeProperty compares the tables with the reference. PAVISE_SEED repeats one program.
func TestJudgeProperty(t *testing.T) {
	if s := os.Getenv("PAVISE_SEED"); s != "" {
		seed, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		checkProgram(t, seed, 1000)
		return
	}
	programs := 2000
	if testing.Short() {
		programs = 200
	}
	for range programs {
		checkProgram(t, rand.Uint64(), 20)
	}
}

func FuzzJudge(f *testing.F) {
	for seed := range uint64(10) {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, seed uint64) { checkProgram(t, seed, 20) })
}

// TestAutomatonLast: what asks for the ends of paths alone has an automaton of its own, which reads no more than these and tells the same.
func TestAutomatonLast(t *testing.T) {
	set := mustParse(t, "a.yaml", `{apiVersion: pavise.dev/v1alpha1, kind: Policy, metadata: {name: p}, spec: {rules: [
  {name: exact, on: [file.open], action: deny, when: 'file.path == "/etc/ssl/private/key.pem" || file.path.under("/srv/data")'},
  {name: ends, on: [file.open], action: deny, when: 'file.path.endsWith("/secret.pem") || file.path.endsWith("key")'},
  {name: name, on: [file.open], action: deny, when: 'file.name == "id_rsa"'}]}}`)
	img, _, err := Compile(set, testMachine())
	if err != nil {
		t.Fatal(err)
	}
	var last *Automaton
	for i := range img.Automata {
		switch a := &img.Automata[i]; {
		case a.Dim != DimPath:
		case a.Last != 0 && last == nil:
			last = a
		case a.Last != 0 || len(a.Leaves) == 0:
			t.Errorf("another automaton, with %d leaves, that reads %d bytes", len(a.Leaves), a.Last)
		}
	}
	if last == nil || int(last.Last) != len("/secret.pem") {
		t.Fatalf("%+v does not read the last %d bytes", last, len("/secret.pem"))
	}
	all := *last
	all.Last = 0
	classes := map[uint16]bool{}
	for _, path := range []string{"", "/", "y", "key", "/key", "/secret.pem", "xsecret.pem", "/a/secret.pem", "/id_rsa", "/home/u/.ssh/id_rsa", "/home/u/xid_rsa",
		"/home/u/secret.pem/x", "/home/u/mykey", strings.Repeat("/secret.pem", 30), strings.Repeat("x", MaxString-1) + "y", strings.Repeat("x", MaxString+1) + "key"} {
		c := last.class([]byte(path))
		classes[c] = true
		if want := all.class([]byte(path)); c != want {
			t.Errorf("%q: class %d, and %d when all is read", path, c, want)
		}
	}
	if len(classes) != 4 { // none, by the first rule, by the name, too long
		t.Errorf("%d classes", len(classes))
	}
}
