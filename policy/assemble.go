package policy

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"sync"

	"github.com/pavise-project/pavise"
)

// maxSplit is over how many automata the tests of one dimension may be spread.
const maxSplit = 4

// dimNames are the fields of the language that a dimension holds, for messages.
var dimNames = [NumDims]string{
	DimExe: "process.exe.path", DimParentExe: "process.parent.exe.path", DimScript: "process.script.path",
	DimCgroup: "process.cgroup", DimUID: "process.user.id", DimGID: "process.group.id", DimLogin: "process.login.id",
	DimCaps: "process.caps", DimProcFlags: "process flags", DimArgs: "process.args", DimAncestors: "process.ancestors",
	DimNS: "process.ns", DimRealUID: "process.real_user.id", DimRealGID: "process.real_group.id", DimDigest: "process.exe.digest", DimVerity: "process.exe.verity",
	DimPath: "file.path", DimAccess: "file.access", DimOwner: "file.owner.id", DimMode: "file.mode", DimFS: "file.fs",
	DimFileFlags: "file flags", DimRemoteAddr: "net.remote.address", DimLocalAddr: "net.local.address",
	DimRemotePort: "net.remote.port", DimLocalPort: "net.local.port", DimSocket: "net.family",
	DimRemotePath: "net.remote.path", DimLocalPath: "net.local.path",
	DimValue: "the operation's number", DimValue2: "the operation's second number", DimName: "the operation's name",
	DimNewPath: "file.new_path", DimTargetExe: "target.exe.path", DimTargetUID: "target.user.id", DimInterface: "net.interface",
	DimExeSets: "sets of process.exe", DimParentExeSets: "sets of process.parent.exe", DimScriptSets: "sets of process.script", DimDigestSets: "sets of process.exe.digest", DimVeritySets: "sets of process.exe.verity", DimPathSets: "sets of file.path",
	DimNewPathSets: "sets of file.new_path", DimTargetExeSets: "sets of target.exe", DimRemotePathSets: "sets of net.remote.path",
	DimLocalPathSets: "sets of net.local.path", DimRemoteAddrSets: "sets of net.remote.address", DimLocalAddrSets: "sets of net.local.address",
	DimTime: "time",
}

func (d Dim) String() string {
	if d < NumDims && dimNames[d] != "" {
		return dimNames[d]
	}
	return "dimension " + strconv.Itoa(int(d))
}

// assembler makes an Image of a program.
type assembler struct {
	p       *program
	few     int // states of an automaton: fewStates and MaxStates, but in tests
	most    int
	img     *Image
	clauses []flatClause // that have an effect
	ops     [pavise.NumOps]opClauses

	// A test is what an automaton accepts: one atom, or several that are only asked for together.
	testOf  []int32   // by atom; -1 when no clause uses it
	atomsOf [][]int32 // by test

	built, kept []*build // of the Image before, and of this one

	automatonOf []int    // by test
	pieces      []*piece // by automaton
	cells       int

	mark  []int32   // by test: the stamp of the class that it is accepted in
	place []int32   // by test, in the list that is being looked at
	asked [][]int32 // by test: places of the predicates of the slot that is being made
	stamp int32

	rowIDs, wordIDs seqs[uint64]
	wordOffs        []uint32 // of each of wordIDs
	key             []uint64
}

// flatClause is a clause with the tests of its atoms.
type flatClause struct {
	*clause
	tests []int32 // by the atoms that Preds names
}

// opClauses are the clauses of one operation, by bit; nil where a word is not full.
type opClauses []*flatClause

// assemble makes the tables of a program. The same program gives the same tables.
func assemble(p *program) (*Image, error) { return newAssembler(p).run() }

func newAssembler(p *program) *assembler {
	return &assembler{p: p, few: fewStates, most: MaxStates, img: &Image{Rules: p.Rules, Rows: make([]Row, 1)}}
}

func (a *assembler) run() (*Image, error) {
	if n := len(a.p.Rules); n > MaxRules {
		return nil, fmt.Errorf("hold %s rules of %s", num(n), num(MaxRules))
	}
	a.img.Protected = slices.Clone(a.p.Protected)
	slices.Sort(a.img.Protected)
	a.img.Protected = slices.Compact(a.img.Protected)
	a.img.Rates, a.img.Sets, a.img.ProtectedSets = a.p.Rates, a.p.Sets, a.p.ProtectedSets

	if err := a.selectClauses(); err != nil {
		return nil, err
	}
	a.fuse()
	n := len(a.atomsOf)
	a.mark, a.place, a.asked = make([]int32, n), make([]int32, n), make([][]int32, n)
	if err := a.automata(); err != nil {
		return nil, err
	}
	if err := a.orderClauses(); err != nil {
		return nil, err
	}
	for op := range a.ops {
		if err := a.rows(pavise.Op(op)); err != nil {
			return nil, err
		}
	}
	return a.img, a.checkTotals()
}

// num prints a number with its thousands apart.
func num(n int) string {
	s := strconv.Itoa(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// selectClauses leaves out the clauses that can have no effect.
func (a *assembler) selectClauses() error {
	type opGroup struct {
		op    pavise.Op
		group uint16
	}
	defaults := map[opGroup]bool{}
	for i := range a.p.Clauses {
		c := &a.p.Clauses[i]
		if c.Op >= pavise.NumOps || int(c.Rule) >= len(a.p.Rules) || c.Kind < WordExplicit || c.Kind > WordDefault ||
			c.Action >= pavise.NumActions || (c.Kind == WordExplicit) != (c.Group == 0) || int(c.Rate) > len(a.p.Rates) || c.Rate != 0 && c.Kind != WordExplicit {
			return fmt.Errorf("assemble clause %d of rule %d: inconsistent: %+v", i, c.Rule, *c)
		}
		for _, p := range c.Preds {
			if err := a.checkPred(c, p.dim, p.pred); err != nil {
				return fmt.Errorf("assemble clause %d of rule %d: %w", i, c.Rule, err)
			}
		}
		if c.Kind == WordDefault && c.Action > pavise.ActionAllow {
			defaults[opGroup{c.Op, c.Group}] = true
		}
	}
	a.clauses = make([]flatClause, 0, len(a.p.Clauses))
	for i := range a.p.Clauses {
		c := &a.p.Clauses[i]
		switch {
		case c.Kind == WordAllow && !defaults[opGroup{c.Op, c.Group}]:
			continue
		case c.Kind != WordAllow && c.Action <= pavise.ActionAllow:
			continue
		}
		if never := slices.ContainsFunc(c.Preds, func(p dimPred) bool { return constant(p.pred) && !a.eval(p.pred, nil) }); !never {
			a.clauses = append(a.clauses, flatClause{clause: c})
		}
	}
	return nil
}

func (a *assembler) checkPred(c *clause, d Dim, p *pred) error {
	if d == DimNone || d >= NumDims {
		return fmt.Errorf("use dimension %d of %d", d, NumDims)
	}
	switch p.Kind {
	case predAtom:
		if n := len(a.p.Atoms); p.Atom < 0 || c.Atoms == nil && p.Atom >= n || c.Atoms != nil && p.Atom >= len(c.Atoms) || c.atom(p.Atom) >= n {
			return fmt.Errorf("use atom %d of %d", p.Atom, n)
		}
		if ad := a.p.Atoms[c.atom(p.Atom)].Dim; ad != d {
			return fmt.Errorf("use an atom of %v on %v", ad, d)
		}
	case predNot:
		if len(p.Subs) != 1 {
			return fmt.Errorf("negate %d predicates", len(p.Subs))
		}
	}
	for _, s := range p.Subs {
		if err := a.checkPred(c, d, s); err != nil {
			return err
		}
	}
	return nil
}

// constant reports whether p asks for no atom.
func constant(p *pred) bool {
	return p.Kind != predAtom && !slices.ContainsFunc(p.Subs, func(s *pred) bool { return !constant(s) })
}

// eval evaluates p, whose atoms are those tests, for the class whose tests are marked.
func (a *assembler) eval(p *pred, tests []int32) bool {
	switch p.Kind {
	case predAtom:
		return a.mark[tests[p.Atom]] == a.stamp
	case predAnd:
		for _, s := range p.Subs {
			if !a.eval(s, tests) {
				return false
			}
		}
		return true
	case predOr:
		for _, s := range p.Subs {
			if a.eval(s, tests) {
				return true
			}
		}
		return false
	default:
		return !a.eval(p.Subs[0], tests)
	}
}

// eachAtom calls f for each atom of p.
func eachAtom(p *pred, f func(atom int)) {
	if p.Kind == predAtom {
		f(p.Atom)
	}
	for _, s := range p.Subs {
		eachAtom(s, f)
	}
}

// fuse makes the tests. Atoms that stand side by side in the same disjunctions (or, negated, in the same conjunctions) and nowhere
// else are one test: a rule on a thousand paths needs one class and not a thousand.
func (a *assembler) fuse() {
	// The place where an atom stands alone is nobody else's; at other places, atoms that stood together go on together.
	type step struct{ from, place int32 }
	stands := make([]int32, len(a.p.Atoms)) // 0: nowhere
	places := int32(0)
	together := map[step]int32{}
	var c *flatClause
	at := func(p *pred, place int32) {
		i := c.atom(p.Atom)
		k := step{stands[i], place}
		s, ok := together[k]
		if !ok {
			places++
			s = places
			together[k] = s
		}
		stands[i] = s
	}
	seen := map[*pred]bool{}
	var walk func(p *pred)
	walk = func(p *pred) {
		if p.Kind == predAtom {
			places++
			stands[c.atom(p.Atom)] = places
			return
		}
		if seen[p] {
			return
		}
		seen[p] = true
		places++
		place := places
		for _, s := range p.Subs {
			switch {
			case p.Kind == predOr && s.Kind == predAtom:
				at(s, place)
			case p.Kind == predAnd && s.Kind == predNot && s.Subs[0].Kind == predAtom:
				at(s.Subs[0], place)
			default:
				walk(s)
			}
		}
	}
	for i := range a.clauses {
		c = &a.clauses[i]
		for _, p := range c.Preds {
			walk(p.pred)
		}
	}
	a.testOf = make([]int32, len(a.p.Atoms))
	tests := make([]int32, places+1) // by where atoms stand; from 1
	for i, s := range stands {
		if s == 0 {
			a.testOf[i] = -1
			continue
		}
		if tests[s] == 0 {
			a.atomsOf = append(a.atomsOf, nil)
			tests[s] = int32(len(a.atomsOf))
		}
		t := tests[s] - 1
		a.testOf[i] = t
		a.atomsOf[t] = append(a.atomsOf[t], int32(i))
	}
	for i := range a.clauses {
		switch c := &a.clauses[i]; {
		case c.Atoms == nil:
			c.tests = a.testOf
		case i > 0 && len(c.Atoms) > 0 && len(a.clauses[i-1].Atoms) > 0 && &c.Atoms[0] == &a.clauses[i-1].Atoms[0]: // of the same policy
			c.tests = a.clauses[i-1].tests
		default:
			c.tests = make([]int32, len(c.Atoms))
			for i, atom := range c.Atoms {
				c.tests[i] = a.testOf[atom]
			}
		}
	}
}

// wordsOf returns the words of a test's atom.
func (a *assembler) wordsOf(atom int32) []word {
	x := &a.p.Atoms[atom]
	if x.words == nil {
		x.words = wordsOf(x.Patterns)
	}
	return x.words
}

// words returns the words of some tests, sorted.
func (a *assembler) words(tests []int32) []testWord {
	out := make([]testWord, 0, len(tests)+len(tests)/2)
	for _, t := range tests {
		for _, i := range a.atomsOf[t] {
			ws := a.wordsOf(i)
			for j := range ws {
				out = append(out, testWord{&ws[j], t})
			}
		}
	}
	sortWords(out)
	return out
}

// pick returns those of words that are of tests, which are renumbered to their places.
func (a *assembler) pick(words []testWord, tests []int32) []testWord {
	a.stamp++
	for i, t := range tests {
		a.mark[t], a.place[t] = a.stamp, int32(i)
	}
	out := make([]testWord, 0, len(words))
	for _, w := range words {
		if a.mark[w.test] == a.stamp {
			out = append(out, testWord{w.word, a.place[w.test]})
		}
	}
	return out
}

// The kinds of groups, by the least tame of their patterns.
const (
	tame     = 1 << iota // no loop, but at the end
	anchored             // begins without a loop
	ending               // about the last bytes alone
	floating             // begins with a loop, which stays alive beside all other patterns

	wild = ending | floating
	all  = tame | anchored | wild
)

// group is tests of one dimension that some predicate asks for together, so that one automaton must hold them.
type group struct {
	tests []int32
	kind  int
}

// automata makes the automata of all dimensions.
func (a *assembler) automata() error {
	// Join the tests that share a predicate.
	parent := make([]int32, len(a.atomsOf))
	for i := range parent {
		parent[i] = int32(i)
	}
	find := func(t int32) int32 {
		for parent[t] != t {
			parent[t] = parent[parent[t]]
			t = parent[t]
		}
		return t
	}
	for i := range a.clauses {
		c := &a.clauses[i]
		for _, p := range c.Preds {
			first := int32(-1)
			eachAtom(p.pred, func(i int) {
				t := find(c.tests[i])
				if first < 0 {
					first = t
				}
				first = find(first)
				parent[max(t, first)] = min(t, first)
			})
		}
	}
	var groups [NumDims][]*group
	ofRoot := make([]*group, len(parent))
	for t := range a.atomsOf {
		r := find(int32(t))
		g := ofRoot[r]
		if g == nil {
			g = new(group)
			ofRoot[r] = g
			d := a.p.Atoms[a.atomsOf[t][0]].Dim
			groups[d] = append(groups[d], g)
		}
		g.tests = append(g.tests, int32(t))
		for _, i := range a.atomsOf[t] {
			ws := a.wordsOf(i)
			for j := range ws {
				g.kind |= ws[j].kind()
			}
		}
	}
	a.automatonOf = make([]int, len(a.atomsOf))
	for d, gs := range groups {
		if len(gs) == 0 {
			continue
		}
		for _, g := range gs {
			switch {
			case g.kind == 0: // a test of containers of which there are none yet
				g.kind = tame
			case g.kind&wild != 0 && g.kind != ending:
				g.kind = floating
			case g.kind&anchored != 0:
				g.kind = anchored
			}
		}
		if err := a.dimension(Dim(d), gs); err != nil {
			return fmt.Errorf("%v: %w", Dim(d), err)
		}
	}
	if n := len(a.img.Automata); n > MaxAutomata {
		return fmt.Errorf("make %s automata of %s", num(n), num(MaxAutomata))
	}
	return nil
}

// limitError says which limit of an automaton was passed.
type limitError struct {
	n     int
	what  string
	limit int
	more  bool // n is where counting stopped
}

func (e *limitError) Error() string {
	s := fmt.Sprintf("%s %s of %s", num(e.n), e.what, num(e.limit))
	if e.more {
		s = "more than " + s
	}
	return s
}

// piece is the groups of some kinds of a dimension, or one of several equal parts of them, and their automaton.
type piece struct {
	groups []*group
	tests  []int32
	*build
}

// build is the automaton of some tests, or why there is none. It says nothing of their numbers, so that it serves again
// as long as the tests are the same.
type build struct {
	dim       Dim
	limit     int     // of states
	sure      bool    // it was made however big it looked
	words     []*word // the first of each of the tests' atoms, nil for none; endOfTest after each test. Atoms do not change, and the same one has the same words
	automaton *Automaton
	classes   [][]int32 // places in the list of tests
	err       *limitError
}

// endOfTest stands between the tests of a build.
var endOfTest word

// share asks for the groups of some kinds to be dealt out over parts automata.
type share struct{ kinds, parts int }

// plans are the ways to spread a dimension over automata, the better first: each automaton is one more reading of the
// string. What tells best is to keep patterns that float from the others: beside a loop, no literal becomes a leaf.
var plans = [][]share{
	{{all, 1}},
	{{tame | anchored, 1}, {wild, 1}},
	{{tame, 1}, {anchored | wild, 1}},
	{{all, 2}},
	{{tame, 1}, {anchored, 1}, {wild, 1}},
	{{tame | anchored, 1}, {wild, 2}},
	{{tame, 1}, {anchored | wild, 2}},
	{{all, 3}},
	{{tame, 1}, {anchored, 1}, {wild, 2}},
	{{tame, 1}, {anchored, 2}, {wild, 1}},
	{{tame | anchored, 1}, {wild, 3}},
	{{tame, 1}, {anchored | wild, 3}},
	{{tame, 2}, {anchored | wild, 2}},
	{{tame | anchored, 2}, {wild, 2}},
	{{all, 4}},
}

// byEnd is tried first for paths of files: of what is about their ends only the ends are read, and beside it other literals become leaves.
var byEnd = []share{{all &^ ending, 1}, {ending, 1}}

// fewStates is the size over which two automata are tried before one: small ones stay in the processor's caches, and build faster.
const fewStates = 8192

// dimension makes the automata of one dimension.
func (a *assembler) dimension(d Dim, gs []*group) error {
	type id struct {
		kinds, parts, part, limit int
		sure                      bool
	}
	made := map[id]*piece{}
	kinds := 0
	var tests []int32
	for _, g := range gs {
		kinds |= g.kind
		tests = append(tests, g.tests...)
	}
	words := sync.OnceValue(func() []testWord { return a.words(tests) })
	// try returns the pieces of a plan, or nil and the first piece that is too big.
	try := func(plan []share, limit int, sure bool) (ps []*piece, failed *piece) {
		cells := 0
		for _, s := range plan {
			for part := range s.parts {
				k := id{s.kinds & kinds, s.parts, part, limit, sure}
				p := made[k]
				if p == nil {
					p = a.piece(d, gs, words, k.kinds, k.parts, part, limit, sure)
					made[k] = p
				}
				if p.err != nil {
					return nil, p
				}
				if p.automaton == nil {
					continue
				}
				if cells += len(p.automaton.Next); a.cells+cells > MaxCells {
					err := &limitError{a.cells + cells, "transitions of all automata", MaxCells, false}
					return nil, &piece{tests: p.tests, build: &build{err: err}}
				}
				ps = append(ps, p)
			}
		}
		return ps, nil
	}
	few := plans[:3]
	if d == DimPath && kinds&ending != 0 && kinds != ending {
		few = append([][]share{byEnd}, few...)
	}
	for _, plan := range few {
		if ps, failed := try(plan, a.few, false); failed == nil {
			a.keep(ps)
			return nil
		}
	}
	var last *piece
	for i, plan := range plans {
		ps, failed := try(plan, a.most, i == len(plans)-1)
		if failed == nil {
			a.keep(ps)
			return nil
		}
		last = failed
	}
	advice := `fewer "**" in the middle of globs would help`
	if kinds == tame {
		advice = "fewer different values would help"
	}
	return fmt.Errorf("%w after splitting over %d automata; %s", a.count(last), maxSplit, advice)
}

// piece makes one of parts automata of the groups of some kinds. Groups are dealt out in turn, for it is similar patterns that
// multiply each other's states. It has no automaton when there are no groups for it. Unless sure is asked for, it is not tried
// where it is most likely too big.
func (a *assembler) piece(d Dim, gs []*group, words func() []testWord, kinds, parts, part, limit int, sure bool) *piece {
	p := &piece{build: new(build)}
	n, has := 0, 0
	for _, g := range gs {
		if g.kind&kinds == 0 {
			continue
		}
		if n%parts == part {
			p.groups = append(p.groups, g)
			p.tests = append(p.tests, g.tests...)
			has |= g.kind
		}
		n++
	}
	if len(p.groups) == 0 {
		return p
	}
	slices.Sort(p.tests)
	first := make([]*word, 0, 2*len(p.tests)+8)
	for _, t := range p.tests {
		for _, i := range a.atomsOf[t] {
			if ws := a.wordsOf(i); len(ws) > 0 {
				first = append(first, &ws[0])
			} else {
				first = append(first, nil)
			}
		}
		first = append(first, &endOfTest)
	}
	sure = sure || has&wild == 0 || has&^wild == 0
	for _, b := range a.built {
		if b.dim == d && b.limit == limit && b.sure == sure && slices.Equal(b.words, first) {
			p.build = b
			a.kept = append(a.kept, b)
			return p
		}
	}
	p.build = &build{dim: d, limit: limit, sure: sure, words: first}
	a.kept = append(a.kept, p.build)
	ws := a.pick(words(), p.tests)
	if !sure {
		// Beside a floating pattern no literal becomes a leaf: about each of its bytes is a state.
		if n := positions(ws); n > limit {
			p.err = &limitError{n, "states", limit, false}
			return p
		}
	}
	x := newDFA(newNFA(ws, len(p.tests)))
	if !x.run(limit, false) {
		p.err = x.over(limit)
		return p
	}
	p.automaton, p.classes = x.automaton(d)
	if has == ending {
		for _, w := range ws {
			p.automaton.Last = max(p.automaton.Last, uint16(w.len()-1))
		}
	}
	if n := p.automaton.Classes; n > 1<<16 {
		p.err = &limitError{n, "classes", 1 << 16, false}
	}
	return p
}

// over says how far the states or leaves are over their limit.
func (d *dfa) over(limit int) *limitError {
	n, what := len(d.states), "states"
	if n <= limit {
		n, what, limit = len(d.leaves), "leaves", MaxLeaves
	}
	return &limitError{min(n, countBudget), what, limit, n > countBudget}
}

// count says in numbers why a piece has no automaton.
func (a *assembler) count(p *piece) *limitError {
	if p.err.what == "states" || p.err.what == "leaves" {
		f := newDFA(newNFA(a.pick(a.words(p.tests), p.tests), len(p.tests)))
		f.run(a.most, true)
		return f.over(a.most)
	}
	return p.err
}

// keep puts automata in the Image.
func (a *assembler) keep(ps []*piece) {
	for _, p := range ps {
		for _, g := range p.groups {
			for _, t := range g.tests {
				a.automatonOf[t] = len(a.img.Automata)
			}
		}
		a.cells += len(p.automaton.Next)
		a.img.Automata = append(a.img.Automata, *p.automaton)
		a.pieces = append(a.pieces, p)
	}
}

// keyed is a clause and where it stands among those of its operation.
type keyed struct {
	*flatClause
	phase    int
	word     Word
	narrowed uint32 // the automata in whose class of no test it does not hold; alike clauses stand together, so that rows share words
	key      uint64
	index    int
}

// order makes the key, by which clauses are sorted, before narrowed and index.
func (k *keyed) order() {
	rated := uint64(min(k.word.Rate, 1))
	k.key = rated<<63 | uint64(k.phase)<<56 | uint64(k.word.Group)<<32 | uint64(k.word.Kind)<<24 | uint64(pavise.NumActions-k.word.Action)<<16 | uint64(k.word.Rate)
}

// The phases of an operation's words.
const (
	phaseEnforced = 0 // kill, deny, groups
	phaseMonitor  = 3 // the same
	phaseAudit    = 6 // explicit, groups
)

// orderClauses gives the clauses their bits.
func (a *assembler) orderClauses() error {
	var ops [pavise.NumOps][]keyed
	groupPhase := map[[2]uint16]int{}
	for i := range a.clauses {
		c := &a.clauses[i]
		k := keyed{flatClause: c, phase: phaseEnforced, word: Word{Kind: c.Kind, Group: c.Group, Rate: c.Rate}, index: i}
		if c.Kind != WordAllow {
			k.word.Action = c.Action
			switch {
			case c.Action == pavise.ActionAudit:
				k.phase = phaseAudit
			case c.Monitor:
				k.phase = phaseMonitor
			}
			switch {
			case c.Kind == WordDefault && k.phase == phaseAudit:
				k.phase++
			case c.Kind == WordDefault:
				k.phase += 2
			case c.Action == pavise.ActionDeny:
				k.phase++
			}
		}
		if c.Kind == WordDefault {
			id := [2]uint16{uint16(c.Op), c.Group}
			if p, ok := groupPhase[id]; ok && p != k.phase {
				return fmt.Errorf("assemble %v: group %d has defaults of several modes", c.Op, c.Group)
			}
			groupPhase[id] = k.phase
		}
		a.stamp++
		for _, p := range c.Preds {
			if !a.eval(p.pred, c.tests) {
				k.narrowed |= 1 << a.automatonOfPred(p.pred, c.tests) // a constant holds here: selectClauses
			}
		}
		ops[c.Op] = append(ops[c.Op], k)
	}
	all := 0
	for op, ks := range ops {
		for i := range ks {
			k := &ks[i]
			if k.Group != 0 {
				k.phase = groupPhase[[2]uint16{uint16(op), k.Group}]
			}
			k.word.Monitor = k.phase >= phaseMonitor && k.phase < phaseAudit
			k.order()
		}
		slices.SortFunc(ks, func(x, y keyed) int {
			switch {
			case x.key != y.key:
				return cmp.Compare(x.key, y.key)
			case x.narrowed != y.narrowed:
				return cmp.Compare(x.narrowed, y.narrowed)
			}
			return cmp.Compare(x.index, y.index)
		})
		t := &a.img.Ops[op]
		for i := range ks {
			k := &ks[i]
			n := len(t.Words) - 1
			last := k.word
			if n >= 0 {
				last.Clauses = t.Words[n].Clauses
			}
			if n < 0 || t.Words[n] != last || last.Clauses == 64 {
				t.Words = append(t.Words, k.word)
				t.Rule = append(t.Rule, make([]uint32, 64)...)
				a.ops[op] = append(a.ops[op], make(opClauses, 64)...)
				n++
			}
			bit := n*64 + int(t.Words[n].Clauses)
			t.Words[n].Clauses++
			t.Rule[bit] = k.Rule
			a.ops[op][bit] = k.flatClause
		}
		if n := len(t.Words); n > MaxOpWords {
			return fmt.Errorf("judge %v: %s clauses need %s words of %s", pavise.Op(op), num(len(ks)), num(n), num(MaxOpWords))
		}
		all += len(t.Words)
	}
	if all > MaxAllWords {
		return fmt.Errorf("judge all operations: their clauses need %s words of %s", num(all), num(MaxAllWords))
	}
	return nil
}

// automatonOfPred returns the automaton of p's tests; -1 for a constant.
func (a *assembler) automatonOfPred(p *pred, tests []int32) int {
	if p.Kind == predAtom {
		return a.automatonOf[tests[p.Atom]]
	}
	for _, s := range p.Subs {
		if at := a.automatonOfPred(s, tests); at >= 0 {
			return at
		}
	}
	return -1
}

// Late tells whether the dimension costs most to read, so that it is read after all others.
func (d Dim) Late() bool {
	src, _ := d.Source()
	return d == DimPath || d == DimNewPath || d == DimRemotePath || d == DimLocalPath || d > DimPath && src != DimNone
}

// slotOrder says in which order an operation asks its dimensions: those kept with the process, the cheap, the strings.
func slotOrder(d Dim) int {
	switch {
	case d < DimPath:
		return 0
	case d.Late():
		return 2
	}
	return 1
}

// user is a clause's predicate on a slot.
type user struct {
	bit   int
	pred  *pred
	tests []int32 // of the pred's atoms
}

// rows makes the slots of an operation and their rows.
func (a *assembler) rows(op pavise.Op) error {
	users := make([][]user, len(a.img.Automata))
	for bit, c := range a.ops[op] {
		if c == nil {
			continue
		}
		for _, p := range c.Preds {
			if at := a.automatonOfPred(p.pred, c.tests); at >= 0 {
				users[at] = append(users[at], user{bit, p.pred, c.tests})
			}
		}
	}
	t := &a.img.Ops[op]
	for i := range users {
		if len(users[i]) > 0 {
			t.Slots = append(t.Slots, Slot{Automaton: i})
		}
	}
	slices.SortStableFunc(t.Slots, func(x, y Slot) int {
		return cmp.Compare(slotOrder(a.img.Automata[x.Automaton].Dim), slotOrder(a.img.Automata[y.Automaton].Dim))
	})
	if n := len(t.Slots); n > MaxSlots {
		return fmt.Errorf("judge %v: consult %d automata of %d", op, n, MaxSlots)
	}
	for i := range t.Slots {
		s := &t.Slots[i]
		s.ClassRow = a.slot(op, s.Automaton, users[s.Automaton])
	}
	return nil
}

// slot returns the rows of one automaton's classes for one operation.
func (a *assembler) slot(op pavise.Op, automaton int, users []user) []uint32 {
	full := make([]uint64, len(a.img.Ops[op].Words))
	for i, w := range a.img.Ops[op].Words {
		full[i] = ^uint64(0) >> (64 - w.Clauses)
	}
	set := func(row []uint64, bit int, on bool) {
		row[bit/64] &^= 1 << (bit % 64)
		if on {
			row[bit/64] |= 1 << (bit % 64)
		}
	}
	base := slices.Clone(full)
	strict, anyone := slices.Clone(full), slices.Clone(full)
	p := a.pieces[automaton]
	for _, test := range p.tests {
		a.asked[test] = a.asked[test][:0]
	}
	a.stamp++ // no test is accepted
	for i, u := range users {
		set(base, u.bit, a.eval(u.pred, u.tests))
		allows := a.ops[op][u.bit].Kind == WordAllow
		set(strict, u.bit, !allows)
		set(anyone, u.bit, allows)
		eachAtom(u.pred, func(atom int) {
			test := u.tests[atom]
			if l := a.asked[test]; len(l) == 0 || l[len(l)-1] != int32(i) {
				a.asked[test] = append(l, int32(i))
			}
		})
	}
	out := make([]uint32, 0, len(p.classes)+1)
	row := slices.Clone(base)
	for _, places := range p.classes {
		a.stamp++
		for _, i := range places {
			a.mark[p.tests[i]] = a.stamp
		}
		for _, i := range places {
			for _, i := range a.asked[p.tests[i]] {
				set(row, users[i].bit, a.eval(users[i].pred, users[i].tests))
			}
		}
		out = append(out, a.row(row, full))
		for _, i := range places {
			for _, i := range a.asked[p.tests[i]] {
				w := users[i].bit / 64
				row[w] = base[w]
			}
		}
	}
	out = append(out, a.row(strict, full))
	if op == pavise.OpAccept {
		out = append(out, a.row(anyone, full))
	}
	return out
}

// row returns the number of the row that holds words. Rows share their words with others that have the same.
func (a *assembler) row(words, full []uint64) uint32 {
	if slices.Equal(words, full) {
		return 0
	}
	var r Row
	a.key = append(a.key[:0], r.Summary[:]...)
	for i, w := range words {
		if w != 0 {
			r.Summary[i/64] |= 1 << (i % 64)
			a.key = append(a.key, w)
		}
	}
	n := copy(a.key, r.Summary[:])
	id, added := a.rowIDs.id(a.key)
	if !added {
		return uint32(id) + 1
	}
	seq, added := a.wordIDs.id(a.key[n:])
	if added {
		a.wordOffs = append(a.wordOffs, uint32(len(a.img.Words)))
		a.img.Words = append(a.img.Words, a.key[n:]...)
	}
	r.Off = a.wordOffs[seq]
	a.img.Rows = append(a.img.Rows, r)
	return uint32(id) + 1
}

// checkTotals compares the sizes of the Image's tables with the kernel's.
func (a *assembler) checkTotals() error {
	classRows, cells, leaves, states, tails := 0, 0, 0, 0, 0
	for op := range a.img.Ops {
		for _, s := range a.img.Ops[op].Slots {
			classRows += len(s.ClassRow)
		}
	}
	for i := range a.img.Automata {
		x := &a.img.Automata[i]
		cells += len(x.Next)
		leaves += len(x.Leaves)
		states += len(x.Accept)
		tails += len(x.Tails)
	}
	for _, l := range []struct {
		what     string
		n, limit int
	}{
		{"rows of clauses", len(a.img.Rows), MaxRows},
		{"words of clauses", len(a.img.Words), MaxRowWords},
		{"rows of classes", classRows, MaxClassRows},
		{"transitions", cells, MaxCells},
		{"leaves", leaves, MaxAllLeaves},
		{"states", states, MaxAllStates},
		{"bytes of tails", tails, MaxTails},
	} {
		if l.n > l.limit {
			return fmt.Errorf("make tables: %s %s of %s", num(l.n), l.what, num(l.limit))
		}
	}
	return nil
}

// bytes of an Image's records in the kernel, for Stats.
const (
	cellBytes = 2
	leafBytes = 12
	rowBytes  = 40
	wordBytes = 8
)

// Stats says how big an Image is.
type Stats struct {
	Automata []AutomatonStats
	Ops      []OpStats // of the operations that are judged
	States   int       // of all automata, as are the next three
	Leaves   int
	Cells    int
	Tails    int // bytes
	Rows     int
	Words    int // of the rows
	Rules    int
	Bytes    int // of all tables but the rules' names
}

// AutomatonStats says how big one automaton is.
type AutomatonStats struct {
	Dim     Dim
	States  int
	Leaves  int
	Cells   int
	Columns int
	Tails   int // bytes
	Classes int
}

// OpStats says how big the tables of one operation are.
type OpStats struct {
	Op        pavise.Op
	Slots     int
	Words     int
	Clauses   int
	ClassRows int // classes of all slots
	Rows      int // different rows that they name
}

// Stats returns the sizes of the Image.
func (img *Image) Stats() Stats {
	s := Stats{Rows: len(img.Rows), Words: len(img.Words), Rules: len(img.Rules)}
	for i := range img.Automata {
		a := &img.Automata[i]
		as := AutomatonStats{
			Dim: a.Dim, States: len(a.Accept), Leaves: len(a.Leaves), Cells: len(a.Next),
			Columns: 1 + int(slices.Max(a.Column[:])), Tails: len(a.Tails), Classes: a.Classes,
		}
		s.Automata = append(s.Automata, as)
		s.States += as.States
		s.Leaves += as.Leaves
		s.Cells += as.Cells
		s.Tails += as.Tails
		s.Bytes += len(a.Column) + 2*as.States
	}
	for op := range img.Ops {
		t := &img.Ops[op]
		if !t.Used() {
			continue
		}
		o := OpStats{Op: pavise.Op(op), Slots: len(t.Slots), Words: len(t.Words)}
		for _, w := range t.Words {
			o.Clauses += int(w.Clauses)
		}
		rows := map[uint32]bool{}
		for _, sl := range t.Slots {
			o.ClassRows += len(sl.ClassRow)
			for _, r := range sl.ClassRow {
				rows[r] = true
			}
		}
		o.Rows = len(rows)
		s.Ops = append(s.Ops, o)
		s.Bytes += 4*o.ClassRows + 4*len(t.Rule) + wordBytes*len(t.Words)
	}
	s.Bytes += cellBytes*s.Cells + leafBytes*s.Leaves + s.Tails + rowBytes*s.Rows + wordBytes*s.Words
	return s
}
