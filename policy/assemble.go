package policy

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"slices"
	"strconv"

	"github.com/pavise-project/pavise"
)

// maxSplit is over how many automata the tests of one dimension may be spread.
const maxSplit = 4

// dimNames are the fields of the language that a dimension holds, for messages.
var dimNames = [NumDims]string{
	DimExe: "process.exe.path", DimParentExe: "process.parent.exe.path", DimScript: "process.script.path",
	DimCgroup: "process.cgroup", DimUID: "process.user.id", DimGID: "process.group.id", DimLogin: "process.login.id",
	DimCaps: "process.caps", DimProcFlags: "process flags", DimArgs: "process.args", DimAncestors: "process.ancestors",
	DimNS: "process.ns", DimRealUID: "process.real_user.id", DimRealGID: "process.real_group.id", DimDigest: "process.exe.digest",
	DimPath: "file.path", DimAccess: "file.access", DimOwner: "file.owner.id", DimMode: "file.mode", DimFS: "file.fs",
	DimFileFlags: "file flags", DimRemoteAddr: "net.remote.address", DimLocalAddr: "net.local.address",
	DimRemotePort: "net.remote.port", DimLocalPort: "net.local.port", DimSocket: "net.family",
	DimRemotePath: "net.remote.path", DimLocalPath: "net.local.path",
	DimValue: "the operation's number", DimValue2: "the operation's second number", DimName: "the operation's name",
	DimNewPath: "file.new_path", DimTargetExe: "target.exe.path", DimTargetUID: "target.user.id",
	DimExeSets: "sets of process.exe", DimParentExeSets: "sets of process.parent.exe", DimScriptSets: "sets of process.script", DimPathSets: "sets of file.path",
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
	clauses []*clause // that have an effect
	ops     [pavise.NumOps]opClauses

	// A test is what an automaton accepts: one atom, or several that are only asked for together.
	testOf  []int32   // by atom; -1 when no clause uses it
	atomsOf [][]int32 // by test

	automatonOf []int // by test
	classes     [][][]int32
	cells       int

	mark  []int32 // by test: the stamp of the class that it is accepted in
	stamp int32

	rowIDs map[string]uint32
	seqs   map[string]uint32
	key    []byte
}

// opClauses are the clauses of one operation, by bit; nil where a word is not full.
type opClauses []*clause

// assemble makes the tables of a program. The same program gives the same tables.
func assemble(p *program) (*Image, error) {
	return assembleWithin(p, fewStates, MaxStates)
}

func assembleWithin(p *program, few, most int) (*Image, error) {
	if n := len(p.Rules); n > MaxRules {
		return nil, fmt.Errorf("hold %s rules of %s", num(n), num(MaxRules))
	}
	a := &assembler{
		p: p, few: few, most: most, img: &Image{Rules: p.Rules, Rows: make([]Row, 1)},
		rowIDs: map[string]uint32{}, seqs: map[string]uint32{},
	}
	a.img.Protected = slices.Clone(p.Protected)
	slices.Sort(a.img.Protected)
	a.img.Protected = slices.Compact(a.img.Protected)
	a.img.Rates, a.img.Sets, a.img.ProtectedSets = p.Rates, p.Sets, p.ProtectedSets

	if err := a.selectClauses(); err != nil {
		return nil, err
	}
	a.fuse()
	a.mark = make([]int32, len(a.atomsOf))
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
		for d, p := range c.Preds {
			if err := a.checkPred(d, p); err != nil {
				return fmt.Errorf("assemble clause %d of rule %d: %w", i, c.Rule, err)
			}
		}
		if c.Kind == WordDefault && c.Action > pavise.ActionAllow {
			defaults[opGroup{c.Op, c.Group}] = true
		}
	}
	for i := range a.p.Clauses {
		c := &a.p.Clauses[i]
		switch {
		case c.Kind == WordAllow && !defaults[opGroup{c.Op, c.Group}]:
			continue
		case c.Kind != WordAllow && c.Action <= pavise.ActionAllow:
			continue
		}
		if never := slices.ContainsFunc(dims(c), func(d Dim) bool {
			p := c.Preds[d]
			return constant(p) && !a.eval(p)
		}); !never {
			a.clauses = append(a.clauses, c)
		}
	}
	return nil
}

func (a *assembler) checkPred(d Dim, p *pred) error {
	if d == DimNone || d >= NumDims {
		return fmt.Errorf("use dimension %d of %d", d, NumDims)
	}
	switch p.Kind {
	case predAtom:
		if p.Atom < 0 || p.Atom >= len(a.p.Atoms) {
			return fmt.Errorf("use atom %d of %d", p.Atom, len(a.p.Atoms))
		}
		if ad := a.p.Atoms[p.Atom].Dim; ad != d {
			return fmt.Errorf("use an atom of %v on %v", ad, d)
		}
	case predNot:
		if len(p.Subs) != 1 {
			return fmt.Errorf("negate %d predicates", len(p.Subs))
		}
	}
	for _, s := range p.Subs {
		if err := a.checkPred(d, s); err != nil {
			return err
		}
	}
	return nil
}

// dims returns the dimensions of c's predicates, in order.
func dims(c *clause) []Dim {
	ds := make([]Dim, 0, len(c.Preds))
	for d := range c.Preds {
		ds = append(ds, d)
	}
	slices.Sort(ds)
	return ds
}

// constant reports whether p asks for no atom.
func constant(p *pred) bool {
	return p.Kind != predAtom && !slices.ContainsFunc(p.Subs, func(s *pred) bool { return !constant(s) })
}

// eval evaluates p for the class whose tests are marked.
func (a *assembler) eval(p *pred) bool {
	switch p.Kind {
	case predAtom:
		return a.mark[a.testOf[p.Atom]] == a.stamp
	case predAnd:
		for _, s := range p.Subs {
			if !a.eval(s) {
				return false
			}
		}
		return true
	case predOr:
		for _, s := range p.Subs {
			if a.eval(s) {
				return true
			}
		}
		return false
	default:
		return !a.eval(p.Subs[0])
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
	places := make([][]byte, len(a.p.Atoms)) // of each atom: the numbers of the places where it stands
	n := uint32(0)
	seen := map[*pred]bool{}
	var walk func(p *pred)
	at := func(p *pred, place uint32) {
		places[p.Atom] = binary.LittleEndian.AppendUint32(places[p.Atom], place)
	}
	walk = func(p *pred) {
		if seen[p] {
			return
		}
		seen[p] = true
		if p.Kind == predAtom {
			n++
			at(p, n)
			return
		}
		n++
		place := n
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
	for _, c := range a.clauses {
		for _, d := range dims(c) {
			walk(c.Preds[d])
		}
	}
	a.testOf = make([]int32, len(a.p.Atoms))
	tests := map[string]int32{}
	for i, p := range places {
		if len(p) == 0 {
			a.testOf[i] = -1
			continue
		}
		t, ok := tests[string(p)]
		if !ok {
			t = int32(len(a.atomsOf))
			tests[string(p)] = t
			a.atomsOf = append(a.atomsOf, nil)
		}
		a.testOf[i] = t
		a.atomsOf[t] = append(a.atomsOf[t], int32(i))
	}
}

// patterns returns the patterns of a test.
func (a *assembler) patterns(test int32) []pattern {
	atoms := a.atomsOf[test]
	if len(atoms) == 1 {
		return a.p.Atoms[atoms[0]].Patterns
	}
	var ps []pattern
	for _, i := range atoms {
		ps = append(ps, a.p.Atoms[i].Patterns...)
	}
	return ps
}

// The kinds of groups, by the least tame of their patterns.
const (
	tame     = 1 << iota // no loop, but at the end
	anchored             // begins without a loop
	floating             // begins with a loop, which stays alive beside all other patterns
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
	for _, c := range a.clauses {
		for _, p := range c.Preds {
			first := int32(-1)
			eachAtom(p, func(i int) {
				t := find(a.testOf[i])
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
			g = &group{kind: tame} // also without patterns: a test of containers of which there are none yet
			ofRoot[r] = g
			d := a.p.Atoms[a.atomsOf[t][0]].Dim
			groups[d] = append(groups[d], g)
		}
		g.tests = append(g.tests, int32(t))
		for _, p := range a.patterns(int32(t)) {
			g.kind = max(g.kind, kindOf(p))
		}
	}
	a.automatonOf = make([]int, len(a.atomsOf))
	for d, gs := range groups {
		if len(gs) == 0 {
			continue
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

func kindOf(p pattern) int {
	for i, it := range p.Items[:max(0, len(p.Items)-1)] {
		if it.Loop && i == 0 {
			return floating
		}
		if it.Loop {
			return anchored
		}
	}
	return tame
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
	groups    []*group
	tests     []int32
	automaton *Automaton
	classes   [][]int32
	err       *limitError
}

// share asks for the groups of some kinds to be dealt out over parts automata.
type share struct{ kinds, parts int }

// plans are the ways to spread a dimension over automata, the better first: each automaton is one more reading of the
// string. What tells best is to keep floating patterns from the others: beside a loop, no literal becomes a leaf.
var plans = [][]share{
	{{tame | anchored | floating, 1}},
	{{tame | anchored, 1}, {floating, 1}},
	{{tame, 1}, {anchored | floating, 1}},
	{{tame | anchored | floating, 2}},
	{{tame, 1}, {anchored, 1}, {floating, 1}},
	{{tame | anchored, 1}, {floating, 2}},
	{{tame, 1}, {anchored | floating, 2}},
	{{tame | anchored | floating, 3}},
	{{tame, 1}, {anchored, 1}, {floating, 2}},
	{{tame, 1}, {anchored, 2}, {floating, 1}},
	{{tame | anchored, 1}, {floating, 3}},
	{{tame, 1}, {anchored | floating, 3}},
	{{tame, 2}, {anchored | floating, 2}},
	{{tame | anchored, 2}, {floating, 2}},
	{{tame | anchored | floating, 4}},
}

// fewStates is the size over which two automata are tried before one: small ones stay in the processor's caches, and build faster.
const fewStates = 8192

// dimension makes the automata of one dimension.
func (a *assembler) dimension(d Dim, gs []*group) error {
	type id struct{ kinds, parts, part, limit int }
	made := map[id]*piece{}
	kinds := 0
	for _, g := range gs {
		kinds |= g.kind
	}
	// try returns the pieces of a plan, or nil and the first piece that is too big.
	try := func(plan []share, limit int) (ps []*piece, failed *piece) {
		cells := 0
		for _, s := range plan {
			for part := range s.parts {
				k := id{s.kinds & kinds, s.parts, part, limit}
				p := made[k]
				if p == nil {
					p = a.piece(d, gs, k.kinds, k.parts, part, limit)
					made[k] = p
				}
				if p.err != nil {
					return nil, p
				}
				if p.automaton == nil {
					continue
				}
				if cells += len(p.automaton.Next); a.cells+cells > MaxCells {
					return nil, &piece{tests: p.tests, err: &limitError{a.cells + cells, "transitions of all automata", MaxCells, false}}
				}
				ps = append(ps, p)
			}
		}
		return ps, nil
	}
	for _, plan := range plans[:3] {
		if ps, failed := try(plan, a.few); failed == nil {
			a.keep(ps)
			return nil
		}
	}
	var last *piece
	for _, plan := range plans {
		ps, failed := try(plan, a.most)
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
// multiply each other's states. It has no automaton when there are no groups for it.
func (a *assembler) piece(d Dim, gs []*group, kinds, parts, part, limit int) *piece {
	p := new(piece)
	n := 0
	for _, g := range gs {
		if g.kind&kinds == 0 {
			continue
		}
		if n%parts == part {
			p.groups = append(p.groups, g)
			p.tests = append(p.tests, g.tests...)
		}
		n++
	}
	if len(p.groups) == 0 {
		return p
	}
	slices.Sort(p.tests)
	f := newDFA(newNFA(p.tests, a.patterns))
	if !f.run(limit, false) {
		p.err = f.over(limit)
		return p
	}
	p.automaton, p.classes = f.automaton(d)
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
		f := newDFA(newNFA(p.tests, a.patterns))
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
		a.classes = append(a.classes, p.classes)
	}
}

// sortKey is where a clause stands among those of its operation.
type sortKey struct {
	phase    int
	group    uint16
	word     Word
	narrowed uint32 // the automata in whose class of no test it does not hold; alike clauses stand together, so that rows share words
	index    int
}

func (k sortKey) compare(o sortKey) int {
	rated := func(k sortKey) int { return min(int(k.word.Rate), 1) }
	return cmp.Or(
		cmp.Compare(rated(k), rated(o)),
		cmp.Compare(k.phase, o.phase),
		cmp.Compare(k.group, o.group),
		cmp.Compare(k.word.Kind, o.word.Kind),
		cmp.Compare(o.word.Action, k.word.Action),
		cmp.Compare(k.word.Rate, o.word.Rate),
		cmp.Compare(k.narrowed, o.narrowed),
		cmp.Compare(k.index, o.index),
	)
}

// The phases of an operation's words.
const (
	phaseEnforced = 0 // kill, deny, groups
	phaseMonitor  = 3 // the same
	phaseAudit    = 6 // explicit, groups
)

// orderClauses gives the clauses their bits.
func (a *assembler) orderClauses() error {
	type keyed struct {
		sortKey
		c *clause
	}
	var ops [pavise.NumOps][]keyed
	groupPhase := map[[2]uint16]int{}
	for i, c := range a.clauses {
		k := sortKey{phase: phaseEnforced, group: c.Group, word: Word{Kind: c.Kind, Group: c.Group, Rate: c.Rate}, index: i}
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
		for _, d := range dims(c) {
			a.stamp++
			if !a.eval(c.Preds[d]) {
				k.narrowed |= 1 << a.automatonOfPred(c.Preds[d]) // a constant holds here: selectClauses
			}
		}
		ops[c.Op] = append(ops[c.Op], keyed{k, c})
	}
	all := 0
	for op, ks := range ops {
		for i := range ks {
			if k := &ks[i]; k.group != 0 {
				k.phase = groupPhase[[2]uint16{uint16(op), k.group}]
			}
			ks[i].word.Monitor = ks[i].phase >= phaseMonitor && ks[i].phase < phaseAudit
		}
		slices.SortFunc(ks, func(x, y keyed) int { return x.compare(y.sortKey) })
		t := &a.img.Ops[op]
		for _, k := range ks {
			n := len(t.Words) - 1
			last := k.word
			if n >= 0 {
				last.Clauses = t.Words[n].Clauses
			}
			if n < 0 || t.Words[n] != last || last.Clauses == 64 {
				t.Words = append(t.Words, k.word)
				t.Rule = append(t.Rule, make([]uint32, 64)...)
				a.ops[op] = append(a.ops[op], make([]*clause, 64)...)
				n++
			}
			bit := n*64 + int(t.Words[n].Clauses)
			t.Words[n].Clauses++
			t.Rule[bit] = k.c.Rule
			a.ops[op][bit] = k.c
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
func (a *assembler) automatonOfPred(p *pred) int {
	at := -1
	eachAtom(p, func(i int) { at = a.automatonOf[a.testOf[i]] })
	return at
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
	bit  int
	pred *pred
}

// rows makes the slots of an operation and their rows.
func (a *assembler) rows(op pavise.Op) error {
	users := make([][]user, len(a.img.Automata))
	for bit, c := range a.ops[op] {
		if c == nil {
			continue
		}
		for _, d := range dims(c) {
			if at := a.automatonOfPred(c.Preds[d]); at >= 0 {
				users[at] = append(users[at], user{bit, c.Preds[d]})
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
	strict := slices.Clone(full)
	byTest := map[int32][]int32{} // indices of the users that ask for a test
	a.stamp++                     // no test is accepted
	for i, u := range users {
		set(base, u.bit, a.eval(u.pred))
		set(strict, u.bit, a.ops[op][u.bit].Kind != WordAllow)
		eachAtom(u.pred, func(atom int) {
			test := a.testOf[atom]
			if l := byTest[test]; len(l) == 0 || l[len(l)-1] != int32(i) {
				byTest[test] = append(l, int32(i))
			}
		})
	}
	classes := a.classes[automaton]
	out := make([]uint32, 0, len(classes)+1)
	row := slices.Clone(base)
	for _, tests := range classes {
		a.stamp++
		for _, test := range tests {
			a.mark[test] = a.stamp
		}
		for _, test := range tests {
			for _, i := range byTest[test] {
				set(row, users[i].bit, a.eval(users[i].pred))
			}
		}
		out = append(out, a.row(row, full))
		for _, test := range tests {
			for _, i := range byTest[test] {
				w := users[i].bit / 64
				row[w] = base[w]
			}
		}
	}
	return append(out, a.row(strict, full))
}

// row returns the number of the row that holds words. Rows share their words with others that have the same.
func (a *assembler) row(words, full []uint64) uint32 {
	if slices.Equal(words, full) {
		return 0
	}
	var r Row
	const at = len(r.Summary) * 8
	a.key = append(a.key[:0], make([]byte, at)...)
	for i, w := range words {
		if w != 0 {
			r.Summary[i/64] |= 1 << (i % 64)
			a.key = binary.LittleEndian.AppendUint64(a.key, w)
		}
	}
	for i, s := range r.Summary {
		binary.LittleEndian.PutUint64(a.key[i*8:], s)
	}
	if id, ok := a.rowIDs[string(a.key)]; ok {
		return id
	}
	off, ok := a.seqs[string(a.key[at:])]
	if !ok {
		off = uint32(len(a.img.Words))
		a.seqs[string(a.key[at:])] = off
		for _, w := range words {
			if w != 0 {
				a.img.Words = append(a.img.Words, w)
			}
		}
	}
	r.Off = off
	id := uint32(len(a.img.Rows))
	a.img.Rows = append(a.img.Rows, r)
	a.rowIDs[string(a.key)] = id
	return id
}

// checkTotals compares the sizes of the Image's tables with the kernel's.
func (a *assembler) checkTotals() error {
	s := a.img.Stats()
	classRows := 0
	for _, o := range s.Ops {
		classRows += o.ClassRows
	}
	for _, l := range []struct {
		what     string
		n, limit int
	}{
		{"rows of clauses", len(a.img.Rows), MaxRows},
		{"words of clauses", len(a.img.Words), MaxRowWords},
		{"rows of classes", classRows, MaxClassRows},
		{"transitions", s.Cells, MaxCells},
		{"leaves", s.Leaves, MaxAllLeaves},
		{"states", s.States, MaxAllStates},
		{"bytes of tails", s.Tails, MaxTails},
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
