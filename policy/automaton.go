package policy

import (
	"encoding/binary"
	"math/bits"
	"slices"
)

// This file makes one Automaton of the tests of one dimension. The patterns of all tests are merged to a trie of
// their items; the subset construction then runs over the trie's nodes. It stays sparse in three ways: a state in which only
// one literal chain is alive becomes a leaf, never rows; a test that holds whatever follows leaves the set of live nodes for
// the state's set of decided tests; and a state's targets are computed for the bytes its nodes name, and once for each part of the rest.

// countBudget is how many states are counted, for the error's sake, of an automaton that has too many.
const countBudget = 4 * MaxStates

// allBytes is the set of all bytes.
var allBytes = byteSet{^uint64(0), ^uint64(0), ^uint64(0), ^uint64(0)}

func (s *byteSet) remove(b byte) { s[b>>6] &^= 1 << (b & 63) }

func (s *byteSet) len() int {
	return bits.OnesCount64(s[0]) + bits.OnesCount64(s[1]) + bits.OnesCount64(s[2]) + bits.OnesCount64(s[3])
}

// first returns the lowest byte of s, which is not empty.
func (s *byteSet) first() byte {
	i := 0
	for s[i] == 0 {
		i++
	}
	return byte(i<<6 | bits.TrailingZeros64(s[i]))
}

// split returns the bytes of s that are in t, and those that are not.
func (s *byteSet) split(t *byteSet) (in, out byteSet) {
	for i := range s {
		in[i], out[i] = s[i]&t[i], s[i]&^t[i]
	}
	return in, out
}

// intSets interns sorted sets of numbers. Number 0 is the empty set.
type intSets struct {
	sets   [][]int32
	ids    map[string]int32
	unions map[[2]int32]int32
	key    []byte
}

func newIntSets() *intSets {
	return &intSets{sets: [][]int32{nil}, ids: map[string]int32{"": 0}, unions: map[[2]int32]int32{}}
}

func (s *intSets) intern(set []int32) int32 {
	s.key = appendInts(s.key[:0], set)
	if id, ok := s.ids[string(s.key)]; ok {
		return id
	}
	id := int32(len(s.sets))
	s.sets = append(s.sets, slices.Clone(set))
	s.ids[string(s.key)] = id
	return id
}

func (s *intSets) union(a, b int32) int32 {
	if a == b || b == 0 {
		return a
	}
	if a == 0 {
		return b
	}
	k := [2]int32{min(a, b), max(a, b)}
	if id, ok := s.unions[k]; ok {
		return id
	}
	set := append(slices.Clone(s.sets[a]), s.sets[b]...)
	slices.Sort(set)
	id := s.intern(slices.Compact(set))
	s.unions[k] = id
	return id
}

func (s *intSets) has(id, n int32) bool {
	_, ok := slices.BinarySearch(s.sets[id], n)
	return ok
}

func appendInts(b []byte, s []int32) []byte {
	for _, v := range s {
		b = binary.LittleEndian.AppendUint32(b, uint32(v))
	}
	return b
}

// The symbols of a trie's edges: a byte's number; setSym+2n for one byte of set n; setSym+2n+1 for a loop over set n.
const setSym = 256

// What node.sole says besides the number of a test.
const (
	soleNone = -1
	soleMany = -2
)

// node is a position in the patterns. A loop's node is alive with its parent, and stays alive on the bytes of its set.
type node struct {
	sym         int32 // of the edge that leads here
	child, next int32 // first child; next sibling; 0 for none
	end         int32 // set of tests that hold when the string ends here
	under       int32 // set of tests that hold when it ends here or goes on with '/'
	decided     int32 // set of tests that hold from here on, whatever follows
	tail        int32 // bytes of the only, literal, way from here to an end; -1 when there is no such way
	sole        int32 // the only test that can still be met from here
	live        bool  // it matters that this node is alive: not when it has nothing but loops after it
}

func (n *node) loop() bool { return n.sym >= setSym && n.sym&1 != 0 }

// nfa is the trie of all patterns of some tests.
type nfa struct {
	nodes []node
	sets  []byteSet
	tests *intSets
}

// symbols is a pattern as the symbols of its items.
type symbols struct {
	syms    []int32
	under   bool
	decided bool // ends with a loop over all bytes
	test    int32
}

// newNFA merges the patterns of tests, which are numbered by ids.
func newNFA(ids []int32, patterns func(id int32) []pattern) *nfa {
	a := &nfa{nodes: make([]node, 1, 1024), tests: newIntSets()}
	setIDs := map[byteSet]int32{}
	var words []symbols
	for _, id := range ids {
		for _, p := range patterns(id) {
			if w, ok := a.symbols(p, setIDs); ok {
				w.test = id
				words = append(words, w)
			}
		}
	}
	slices.SortFunc(words, func(x, y symbols) int { return slices.Compare(x.syms, y.syms) })
	a.insert(words)
	a.finish()
	return a
}

// symbols puts a pattern in the form in which it is merged with others. It reports false for one that matches no
// string that is judged.
func (a *nfa) symbols(p pattern, ids map[byteSet]int32) (symbols, bool) {
	w := symbols{syms: make([]int32, 0, len(p.Items)), under: p.Under}
	items := p.Items
	for len(items) > 0 && items[len(items)-1] == (item{Set: allBytes, Loop: true}) {
		items, w.decided = items[:len(items)-1], true
	}
	if w.decided {
		// A loop before a loop over all bytes adds nothing.
		for len(items) > 0 && items[len(items)-1].Loop {
			items = items[:len(items)-1]
		}
	}
	length := 0
	var loop *byteSet // of the item before, when it was a loop
	for i := range items {
		it := &items[i]
		n := it.Set.len()
		switch {
		case n == 0 && it.Loop:
			continue
		case n == 0:
			return w, false
		case n == 1 && !it.Loop:
			w.syms = append(w.syms, int32(it.Set.first()))
			length++
			loop = nil
			continue
		}
		id, ok := ids[it.Set]
		if !ok {
			id = int32(len(a.sets))
			a.sets = append(a.sets, it.Set)
			ids[it.Set] = id
		}
		sym := setSym + 2*id
		if !it.Loop {
			w.syms = append(w.syms, sym)
			length++
			loop = nil
			continue
		}
		// Of two loops in a row, one over a subset adds nothing.
		if loop != nil {
			if _, more := it.Set.split(loop); more == (byteSet{}) {
				continue
			}
			if _, more := loop.split(&it.Set); more == (byteSet{}) {
				w.syms = w.syms[:len(w.syms)-1]
			}
		}
		w.syms = append(w.syms, sym+1)
		loop = &it.Set
	}
	return w, length <= MaxString
}

// insert makes the trie. Each word, in order, shares its beginning with the one before.
func (a *nfa) insert(words []symbols) {
	path := []int32{0} // the nodes of the word before
	var before []int32
	for _, w := range words {
		n := 0
		for n < len(w.syms) && n < len(before) && w.syms[n] == before[n] {
			n++
		}
		sibling := int32(0)
		if n+1 < len(path) {
			sibling = path[n+1]
		}
		path = path[:n+1]
		for _, sym := range w.syms[n:] {
			id := int32(len(a.nodes))
			a.nodes = append(a.nodes, node{sym: sym})
			if sibling != 0 {
				a.nodes[sibling].next = id
			} else {
				a.nodes[path[len(path)-1]].child = id
			}
			sibling = 0
			path = append(path, id)
		}
		before = w.syms
		at := &a.nodes[path[len(path)-1]]
		set := &at.end
		if w.decided {
			set = &at.decided
		} else if w.under {
			set = &at.under
		}
		*set = a.tests.union(*set, a.tests.intern([]int32{w.test}))
	}
}

// finish computes tail, sole and live, from the leaves of the trie to its root.
func (a *nfa) finish() {
	for i := len(a.nodes) - 1; i >= 0; i-- {
		n := &a.nodes[i]
		n.tail, n.sole = -1, soleNone
		for _, id := range [...]int32{n.end, n.under, n.decided} {
			for _, t := range a.tests.sets[id] {
				n.merge(t)
			}
		}
		for c := n.child; c != 0; c = a.nodes[c].next {
			n.merge(a.nodes[c].sole)
			n.live = n.live || n.loop() || !a.nodes[c].loop()
		}
		n.live = n.live || n.end != 0 || n.under != 0
		switch {
		case n.loop() || n.decided != 0 && (n.child != 0 || n.end != 0 || n.under != 0):
		case n.child == 0:
			if n.under == 0 || a.tests.union(n.under, n.end) == n.under {
				n.tail = 0
			}
		case n.end == 0 && n.under == 0:
			c := &a.nodes[n.child]
			if c.next == 0 && c.sym < setSym && c.tail >= 0 {
				n.tail = c.tail + 1
			}
		}
	}
}

// merge makes sole say that test t can be met, too.
func (n *node) merge(t int32) {
	switch {
	case t == soleNone || t == n.sole:
	case n.sole == soleNone:
		n.sole = t
	default:
		n.sole = soleMany
	}
}

// dstate is a state of the subset construction.
type dstate struct {
	nodes   []int32 // live nodes, sorted
	decided int32   // set of tests
}

// edge leads from a live node to another on the bytes of a set.
type edge struct{ set, to int32 }

// dfa is the subset construction. A target is the number of a state, or of a leaf as ^number.
type dfa struct {
	*nfa
	reps    []byte     // one of each class of bytes that no pattern tells apart
	repOf   [256]uint8 // the index in reps of a byte's class
	states  []dstate
	accept  []int32 // set of tests by state
	next    []int32 // targets, len(reps) by state
	targets map[string]int32
	leaves  []Leaf // Match and Miss are indices of matches for now
	matches []int32
	leafIDs map[leafKey]int32
	tails   []byte
	tailOff map[string]uint32

	// Scratch.
	key     []byte
	live    []int32
	byByte  [256][]int32
	edges   []edge
	setSeen []int32
}

// leafKey is a Leaf with sets of tests in place of classes.
type leafKey struct {
	off         uint32
	len         uint16
	kind        LeafKind
	match, miss int32
}

func newDFA(a *nfa) *dfa {
	d := &dfa{nfa: a, targets: map[string]int32{}, leafIDs: map[leafKey]int32{}, tailOff: map[string]uint32{},
		setSeen: make([]int32, len(a.sets))}
	d.classify()
	return d
}

// classify fills reps and repOf.
func (d *dfa) classify() {
	parts := []byteSet{allBytes}
	refine := func(s *byteSet) {
		for i := range len(parts) {
			in, out := parts[i].split(s)
			if in != (byteSet{}) && out != (byteSet{}) {
				parts[i] = in
				parts = append(parts, out)
			}
		}
	}
	var named byteSet
	for i := range d.nodes {
		if s := d.nodes[i].sym; i > 0 && s < setSym {
			named[s>>6] |= 1 << (s & 63)
		}
		if d.nodes[i].under != 0 {
			named['/'>>6] |= 1 << ('/' & 63)
		}
	}
	for b := range 256 {
		if named.has(byte(b)) {
			var one byteSet
			one[b>>6] = 1 << (b & 63)
			refine(&one)
		}
	}
	for i := range d.sets {
		refine(&d.sets[i])
	}
	for i, p := range parts {
		d.reps = append(d.reps, p.first())
		for b := range 256 {
			if p.has(byte(b)) {
				d.repOf[b] = uint8(i)
			}
		}
	}
}

// enter adds node n, and the loops that are alive with it, to the scratch set of live nodes.
func (d *dfa) enter(n int32, decided int32) int32 {
	p := &d.nodes[n]
	decided = d.tests.union(decided, p.decided)
	if p.live {
		d.live = append(d.live, n)
	}
	for c := p.child; c != 0; c = d.nodes[c].next {
		if d.nodes[c].loop() {
			decided = d.enter(c, decided)
		}
	}
	return decided
}

// target returns the state or leaf of the scratch set of live nodes and the decided tests.
func (d *dfa) target(decided int32) int32 {
	if decided != 0 {
		d.live = slices.DeleteFunc(d.live, func(n int32) bool {
			s := d.nodes[n].sole
			return s >= 0 && d.tests.has(decided, s)
		})
	}
	slices.Sort(d.live)
	d.live = slices.Compact(d.live)
	d.key = appendInts(binary.LittleEndian.AppendUint32(d.key[:0], uint32(decided)), d.live)
	if t, ok := d.targets[string(d.key)]; ok {
		return t
	}
	var t int32
	switch start := len(d.states) == 0; { // reading starts in a row, always
	case start:
		t = d.state(decided)
	case len(d.live) == 0:
		t = d.leaf(leafKey{match: decided, miss: decided})
	case len(d.live) == 1 && d.nodes[d.live[0]].tail >= 0:
		t = d.chain(d.live[0], decided)
	default:
		t = d.state(decided)
	}
	d.targets[string(d.key)] = t
	return t
}

// state makes a state of the scratch set of live nodes.
func (d *dfa) state(decided int32) int32 {
	accept := decided
	for _, n := range d.live {
		accept = d.tests.union(accept, d.tests.union(d.nodes[n].end, d.nodes[n].under))
	}
	d.states = append(d.states, dstate{slices.Clone(d.live), decided})
	d.accept = append(d.accept, accept)
	return int32(len(d.states)) - 1
}

// chain returns the leaf for the only way on from node n.
func (d *dfa) chain(n, decided int32) int32 {
	var tail []byte
	p := &d.nodes[n]
	for p.child != 0 {
		p = &d.nodes[p.child]
		tail = append(tail, byte(p.sym))
	}
	k := leafKey{len: uint16(len(tail)), kind: LeafExact, match: d.tests.union(decided, p.end), miss: decided}
	if p.under != 0 {
		k.kind, k.match = LeafUnder, d.tests.union(decided, p.under)
	}
	if p.decided != 0 {
		k.kind, k.match = LeafPrefix, d.tests.union(decided, p.decided)
	}
	if len(tail) > 0 {
		off, ok := d.tailOff[string(tail)]
		if !ok {
			off = uint32(len(d.tails))
			d.tailOff[string(tail)] = off
			d.tails = append(d.tails, tail...)
			d.tails = append(d.tails, make([]byte, -len(tail)&7)...)
		}
		k.off = off
	}
	return d.leaf(k)
}

func (d *dfa) leaf(k leafKey) int32 {
	id, ok := d.leafIDs[k]
	if !ok {
		id = int32(len(d.leaves))
		d.leafIDs[k] = id
		d.leaves = append(d.leaves, Leaf{TailOff: k.off, TailLen: k.len, Kind: k.kind})
		d.matches = append(d.matches, k.match, k.miss)
	}
	return ^id
}

// run makes the states and leaves. It reports false, and stops, when there are more than limit states or MaxLeaves; with count
// it goes on until countBudget, to tell how many there are.
func (d *dfa) run(limit int, count bool) bool {
	d.live = d.live[:0]
	d.target(d.enter(0, 0))
	for i := 0; i < len(d.states); i++ {
		over := len(d.states) > limit || len(d.leaves) > MaxLeaves
		if over && (!count || max(len(d.states), len(d.leaves)) > countBudget) {
			return false
		}
		d.expand(i, !over)
	}
	return len(d.states) <= limit && len(d.leaves) <= MaxLeaves
}

// expand computes the targets of state i.
func (d *dfa) expand(i int, keep bool) {
	s := d.states[i]
	rest := allBytes // bytes that no node names
	var named []byte
	name := func(b byte) {
		if rest.has(b) {
			rest.remove(b)
			named = append(named, b)
			d.byByte[b] = d.byByte[b][:0]
		}
	}
	d.edges = d.edges[:0]
	parts := []byteSet{{}}
	under := int32(0)
	for _, n := range s.nodes {
		p := &d.nodes[n]
		if p.loop() {
			d.edges = append(d.edges, edge{(p.sym - setSym) / 2, n})
		}
		for c := p.child; c != 0; c = d.nodes[c].next {
			switch q := &d.nodes[c]; {
			case q.loop():
			case q.sym < setSym:
				name(byte(q.sym))
				d.byByte[q.sym] = append(d.byByte[q.sym], c)
			default:
				d.edges = append(d.edges, edge{(q.sym - setSym) / 2, c})
			}
		}
		if p.under != 0 {
			name('/')
			under = d.tests.union(under, p.under)
		}
	}
	parts[0] = rest
	for _, e := range d.edges {
		if d.setSeen[e.set] == int32(i)+1 {
			continue
		}
		d.setSeen[e.set] = int32(i) + 1
		for j := range len(parts) {
			in, out := parts[j].split(&d.sets[e.set])
			if in != (byteSet{}) && out != (byteSet{}) {
				parts[j] = in
				parts = append(parts, out)
			}
		}
	}
	row := len(d.next)
	if keep {
		d.next = append(d.next, make([]int32, len(d.reps))...)
	}
	for _, p := range parts {
		if p == (byteSet{}) {
			continue
		}
		t := d.step(p.first(), nil, s.decided)
		for r, b := range d.reps {
			if keep && p.has(b) {
				d.next[row+r] = t
			}
		}
	}
	for _, b := range named {
		decided := s.decided
		if b == '/' {
			decided = d.tests.union(decided, under)
		}
		t := d.step(b, d.byByte[b], decided)
		if keep {
			d.next[row+int(d.repOf[b])] = t
		}
	}
}

// step returns the target of the scratch edges on byte b and of the nodes that it leads to by itself.
func (d *dfa) step(b byte, nodes []int32, decided int32) int32 {
	d.live = d.live[:0]
	for _, n := range nodes {
		decided = d.enter(n, decided)
	}
	for _, e := range d.edges {
		if d.sets[e.set].has(b) {
			decided = d.enter(e.to, decided)
		}
	}
	return d.target(decided)
}

// merge shares rows that are equal, from the last to the first, so that equal ends of patterns merge as a whole.
// It returns the number of the row that stands for each state.
func (d *dfa) merge() []int32 {
	k := len(d.reps)
	same := make([]int32, len(d.states))
	rows := make(map[string]int32, len(d.states))
	for i := len(d.states) - 1; i >= 0; i-- {
		row := d.next[i*k : (i+1)*k]
		d.key = binary.LittleEndian.AppendUint32(d.key[:0], uint32(d.accept[i]))
		for j, t := range row {
			switch {
			case t == int32(i):
				t = int32(len(d.states)) // itself
			case t > int32(i):
				t = same[t]
				row[j] = t
			}
			d.key = binary.LittleEndian.AppendUint32(d.key, uint32(t))
		}
		first, ok := rows[string(d.key)]
		if !ok {
			first = int32(i)
			rows[string(d.key)] = first
		}
		same[i] = first
	}
	return same
}

// automaton returns the tables, and the set of tests of each class but the last.
func (d *dfa) automaton(dim Dim) (*Automaton, [][]int32) {
	k := len(d.reps)
	same := d.merge()
	number := make([]int32, len(d.states)) // of the row that a state became, from 1
	var order []int32
	for i := range d.states {
		if r := same[i]; number[r] == 0 {
			order = append(order, r)
			number[r] = int32(len(order))
		}
	}
	for _, r := range order {
		for j := range k {
			if t := d.next[int(r)*k+j]; t >= 0 {
				d.next[int(r)*k+j] = number[same[t]] - 1
			}
		}
	}

	a := &Automaton{Dim: dim, Leaves: d.leaves, Tails: d.tails}
	classes := [][]int32{nil}
	classOf := map[int32]uint16{0: 0}
	class := func(set int32) uint16 {
		c, ok := classOf[set]
		if !ok {
			c = uint16(len(classes))
			classOf[set] = c
			classes = append(classes, d.tests.sets[set])
		}
		return c
	}
	for _, r := range order {
		a.Accept = append(a.Accept, class(d.accept[r]))
	}
	for i := range a.Leaves {
		a.Leaves[i].Match, a.Leaves[i].Miss = class(d.matches[2*i]), class(d.matches[2*i+1])
	}
	a.Classes = len(classes) + 1

	// Bytes that behave alike in all rows share a column.
	columns := make(map[string]uint8, k)
	var reps []int // of each column
	column := make([]uint8, k)
	for j := range k {
		d.key = d.key[:0]
		for _, r := range order {
			d.key = binary.LittleEndian.AppendUint32(d.key, uint32(d.next[int(r)*k+j]))
		}
		c, ok := columns[string(d.key)]
		if !ok {
			c = uint8(len(reps))
			columns[string(d.key)] = c
			reps = append(reps, j)
		}
		column[j] = c
	}
	for b := range a.Column {
		a.Column[b] = column[d.repOf[b]]
	}
	a.Shift = uint8(bits.Len(uint(len(reps) - 1)))
	a.Next = make([]uint16, len(order)<<a.Shift)
	for i, r := range order {
		for c := range 1 << a.Shift {
			t := d.next[int(r)*k+reps[min(c, len(reps)-1)]]
			if t < 0 {
				t = ^t | LeafBit
			}
			a.Next[i<<a.Shift|c] = uint16(t)
		}
	}
	return a, classes
}
