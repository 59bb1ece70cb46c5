package policy

import (
	"math/bits"
	"slices"
	"strings"
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

// intSets interns sorted sets of numbers. Number 0 is the empty set, number n+1 that of n alone.
type intSets struct {
	seqs[int32]
	unions  map[[2]int32]int32
	scratch []int32
}

// newIntSets makes sets of the numbers below n.
func newIntSets(n int) *intSets {
	s := &intSets{unions: map[[2]int32]int32{}}
	s.id(nil)
	for i := range int32(n) {
		s.id([]int32{i})
	}
	return s
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
	s.scratch = append(append(s.scratch[:0], s.at(a)...), s.at(b)...)
	slices.Sort(s.scratch)
	id, _ := s.id(slices.Compact(s.scratch))
	s.unions[k] = id
	return id
}

func (s *intSets) has(id, n int32) bool {
	_, ok := slices.BinarySearch(s.at(id), n)
	return ok
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
	sym         int32  // of the edge that leads here
	child, next int32  // first child; next sibling; 0 for none
	text        string // what is read before the only child's symbol, which is a byte: nodes that are not there until they are needed
	end         int32  // set of tests that hold when the string ends here
	under       int32  // set of tests that hold when it ends here or goes on with '/'
	decided     int32  // set of tests that hold from here on, whatever follows
	tail        int32  // bytes of the only, literal, way from here to an end; -1 when there is no such way
	sole        int32  // the only test that can still be met from here
	live        bool   // it matters that this node is alive: not when it has nothing but loops after it
}

func (n *node) loop() bool { return n.sym >= setSym && n.sym&1 != 0 }

// nfa is the trie of all patterns of some tests.
type nfa struct {
	nodes  []node
	sets   []byteSet
	setIDs map[byteSet]int32
	tests  *intSets
}

// word is a pattern in the form in which it is merged with others.
type word struct {
	lit     string // the bytes that it begins with
	rest    []item // what follows them
	under   bool
	decided bool // ends with a loop over all bytes, which rest does not have
}

// wordsOf returns the words of patterns, without those of patterns that match no string that is judged.
func wordsOf(ps []pattern) []word {
	if len(ps) == 0 {
		return nil
	}
	words := make([]word, 0, len(ps))
	for i := range ps {
		if w, ok := ps[i].word(); ok {
			words = append(words, w)
		}
	}
	return words
}

func (p *pattern) word() (word, bool) {
	w := word{under: p.Under}
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
	lit := make([]byte, 0, len(items))
	length := 0
	for i := range items {
		it := &items[i]
		n := it.Set.len()
		switch {
		case n == 0 && it.Loop:
			continue
		case n == 0:
			return w, false
		case n == 1 && !it.Loop && w.rest == nil:
			lit = append(lit, it.Set.first())
			length++
			continue
		case !it.Loop:
			length++
		case len(w.rest) > 0:
			// Of two loops in a row, one over a subset adds nothing.
			last := &w.rest[len(w.rest)-1]
			if !last.Loop {
				break
			}
			if _, more := it.Set.split(&last.Set); more == (byteSet{}) {
				continue
			}
			if _, more := last.Set.split(&it.Set); more == (byteSet{}) {
				w.rest = w.rest[:len(w.rest)-1]
			}
		}
		w.rest = append(w.rest, *it)
	}
	w.lit = string(lit)
	return w, length <= MaxString
}

// exact returns the one string that w matches, if it is only one.
func (w *word) exact() (string, bool) {
	return w.lit, len(w.rest) == 0 && !w.under && !w.decided
}

func (w *word) kind() int {
	if w.ending() {
		return ending
	}
	for i := range w.rest {
		switch {
		case !w.rest[i].Loop:
		case i == 0 && w.lit == "":
			return floating
		case i < len(w.rest)-1 || w.decided:
			return anchored
		}
	}
	return tame
}

// ending tells whether w is about nothing but the last bytes of a string, of which there are len()-1.
func (w *word) ending() bool {
	return w.lit == "" && len(w.rest) > 1 && len(w.rest)-1 <= MaxLast && w.rest[0] == (item{Set: allBytes, Loop: true}) && !w.under && !w.decided &&
		!slices.ContainsFunc(w.rest[1:], func(it item) bool { return it.Loop })
}

func (w *word) len() int { return len(w.lit) + len(w.rest) }

// compare brings words with the same beginning together.
func (w *word) compare(o *word) int {
	if c := strings.Compare(w.lit, o.lit); c != 0 || w.rest == nil && o.rest == nil {
		return c
	}
	return slices.CompareFunc(w.rest, o.rest, func(x, y item) int {
		if x.Loop != y.Loop {
			if x.Loop {
				return 1
			}
			return -1
		}
		return slices.Compare(x.Set[:], y.Set[:])
	})
}

// common returns how many bytes and items two words begin with in common.
func (w *word) common(o *word) int {
	n := 0
	for n < len(w.lit) && n < len(o.lit) && w.lit[n] == o.lit[n] {
		n++
	}
	if n == len(w.lit) && n == len(o.lit) {
		for i := 0; i < len(w.rest) && i < len(o.rest) && w.rest[i] == o.rest[i]; i++ {
			n++
		}
	}
	return n
}

// testWord is a word of a test.
type testWord struct {
	*word
	test int32
}

func sortWords(words []testWord) {
	slices.SortFunc(words, func(x, y testWord) int { return x.compare(y.word) })
}

// positions returns how many bytes and items sorted words have, those in common counted once.
func positions(words []testWord) (n int) {
	for i, w := range words {
		n += w.len()
		if i > 0 {
			n -= w.common(words[i-1].word)
		}
	}
	return n
}

// newNFA merges the words, which are sorted, of tests numbered from 0 to n-1.
func newNFA(words []testWord, n int) *nfa {
	a := &nfa{nodes: make([]node, 1, 1+4*len(words)), tests: newIntSets(n), setIDs: map[byteSet]int32{}}
	a.insert(words)
	a.finish()
	return a
}

// symbol returns the symbol of a word's byte or item.
func (a *nfa) symbol(w *word, at int) int32 {
	if at < len(w.lit) {
		return int32(w.lit[at])
	}
	it := &w.rest[at-len(w.lit)]
	if b, ok := it.single(); ok {
		return int32(b)
	}
	id, ok := a.setIDs[it.Set]
	if !ok {
		id = int32(len(a.sets))
		a.sets = append(a.sets, it.Set)
		a.setIDs[it.Set] = id
	}
	if it.Loop {
		return setSym + 2*id + 1
	}
	return setSym + 2*id
}

// insert makes the trie. Each word, in order, shares its beginning with the one before.
func (a *nfa) insert(words []testWord) {
	path := []int32{0} // the nodes of the word before
	shared := 0        // symbols in common with it
	for i, w := range words {
		after := 0 // symbols in common with the next
		if i+1 < len(words) {
			after = w.common(words[i+1].word)
		}
		sibling := int32(0)
		if shared+1 < len(path) {
			sibling = path[shared+1]
		}
		path = path[:shared+1]
		alone := max(shared, after) // from here on the word is alone
		for depth := shared; depth < w.len(); depth++ {
			from := depth
			if depth > alone && w.rest == nil {
				depth = len(w.lit) - 1
			}
			id := int32(len(a.nodes))
			a.nodes = append(a.nodes, node{sym: a.symbol(w.word, depth)})
			last := &a.nodes[path[len(path)-1]]
			if depth > from {
				last.text = w.lit[from:depth]
			}
			if sibling != 0 {
				a.nodes[sibling].next = id
			} else {
				last.child = id
			}
			sibling = 0
			path = append(path, id)
		}
		shared = after
		at := &a.nodes[path[len(path)-1]]
		set := &at.end
		if w.decided {
			set = &at.decided
		} else if w.under {
			set = &at.under
		}
		*set = a.tests.union(*set, w.test+1)
	}
}

// materialise makes the first of the nodes that are not there after node n, if any.
func (a *nfa) materialise(n int32) {
	text := a.nodes[n].text
	if text == "" {
		return
	}
	p := &a.nodes[n]
	child := &a.nodes[p.child]
	next := node{sym: int32(text[0]), text: text[1:], child: p.child, tail: -1, sole: child.sole, live: true}
	if child.tail >= 0 {
		next.tail = child.tail + int32(len(text))
	}
	p.text, p.child = "", int32(len(a.nodes))
	a.nodes = append(a.nodes, next)
}

// finish computes tail, sole and live, from the leaves of the trie to its root.
func (a *nfa) finish() {
	for i := len(a.nodes) - 1; i >= 0; i-- {
		n := &a.nodes[i]
		n.tail, n.sole = -1, soleNone
		for _, id := range [...]int32{n.end, n.under, n.decided} {
			for _, t := range a.tests.at(id) {
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
				n.tail = c.tail + 1 + int32(len(n.text))
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
	key     int32 // in keys
	decided int32 // set of tests
}

// edge leads from a live node to another on the bytes of a set.
type edge struct{ set, to int32 }

// dfa is the subset construction. A target is the number of a state, or of a leaf as ^number.
type dfa struct {
	*nfa
	reps    []byte     // one of each class of bytes that no pattern tells apart
	repOf   [256]uint8 // the index in reps of a byte's class
	states  []dstate
	accept  []int32     // set of tests by state
	next    []int32     // targets, len(reps) by state
	keys    seqs[int32] // a set of decided tests, then live nodes, sorted
	targets []int32     // of each
	leaves  []Leaf      // Match and Miss are indices of matches for now
	matches []int32
	leafIDs map[leafKey]int32
	tails   []byte
	tailIDs seqs[byte]
	tailOff []uint32 // of each

	// Scratch.
	key     []int32
	tail    []byte
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
	d := &dfa{nfa: a, leafIDs: map[leafKey]int32{}, setSeen: make([]int32, len(a.sets))}
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
			named.add(byte(s))
		}
		for _, b := range []byte(d.nodes[i].text) {
			named.add(b)
		}
		if d.nodes[i].under != 0 {
			named.add('/')
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
	d.key = append(append(d.key[:0], decided), d.live...)
	id, added := d.keys.id(d.key)
	if !added {
		return d.targets[id]
	}
	var t int32
	switch start := len(d.states) == 0; { // reading starts in a row, always
	case start:
		t = d.state(id, decided)
	case len(d.live) == 0:
		t = d.leaf(leafKey{match: decided, miss: decided})
	case len(d.live) == 1 && d.nodes[d.live[0]].tail >= 0:
		t = d.chain(d.live[0], decided)
	default:
		t = d.state(id, decided)
	}
	d.targets = append(d.targets, t)
	return t
}

// state makes a state of the scratch set of live nodes.
func (d *dfa) state(key, decided int32) int32 {
	accept := decided
	for _, n := range d.live {
		accept = d.tests.union(accept, d.tests.union(d.nodes[n].end, d.nodes[n].under))
	}
	d.states = append(d.states, dstate{key, decided})
	d.accept = append(d.accept, accept)
	return int32(len(d.states)) - 1
}

// chain returns the leaf for the only way on from node n.
func (d *dfa) chain(n, decided int32) int32 {
	tail := d.tail[:0]
	p := &d.nodes[n]
	for p.child != 0 {
		tail = append(tail, p.text...)
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
		id, added := d.tailIDs.id(tail)
		if added {
			d.tailOff = append(d.tailOff, uint32(len(d.tails)))
			d.tails = append(d.tails, tail...)
			for len(d.tails)%8 != 0 {
				d.tails = append(d.tails, 0)
			}
		}
		k.off = d.tailOff[id]
	}
	d.tail = tail
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
	for _, n := range d.keys.at(s.key)[1:] {
		d.materialise(n)
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
	var rows seqs[int32]
	rows.all = make([]int32, 0, len(d.states)*(k+1))
	var first []int32 // state of each row
	for i := len(d.states) - 1; i >= 0; i-- {
		d.key = append(d.key[:0], d.accept[i])
		for _, t := range d.next[i*k : (i+1)*k] {
			switch {
			case t == int32(i):
				t = int32(len(d.states)) // itself
			case t > int32(i):
				t = same[t]
			}
			d.key = append(d.key, t)
		}
		id, added := rows.id(d.key)
		if added {
			first = append(first, int32(i))
		}
		same[i] = first[id]
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
			classes = append(classes, d.tests.at(set))
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
	var columns seqs[int32]
	columns.all = make([]int32, 0, k*len(order))
	var reps []int // of each column
	column := make([]uint8, k)
	for j := range k {
		d.key = d.key[:0]
		for _, r := range order {
			d.key = append(d.key, d.next[int(r)*k+j])
		}
		c, added := columns.id(d.key)
		if added {
			reps = append(reps, j)
		}
		column[j] = uint8(c)
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
