package enforce

import (
	"cmp"
	"fmt"
	"math/bits"
	"slices"

	"github.com/pavise-project/pavise"
	"github.com/pavise-project/pavise/bpf"
	"github.com/pavise-project/pavise/policy"
)

// fits checks an Image against the sizes of the kernel's tables. The compiler keeps the same limits; this is the last line before memory is written.
func fits(img *policy.Image) error {
	var states, leaves, tails, classes, words int
	for i := range img.Automata {
		a := &img.Automata[i]
		states += len(a.Accept)
		leaves += len(a.Leaves)
		tails += len(a.Tails)
	}
	var t *bpf.KernelTables
	var p *bpf.KernelPool
	for op := range img.Ops {
		o := &img.Ops[op]
		if o.Used() && op >= len(t.Ops) {
			return fmt.Errorf("stage tables: the kernel does not judge %s", pavise.Op(op))
		}
		for _, s := range o.Slots {
			classes += len(s.ClassRow)
		}
		words += len(o.Words)
		if len(o.Slots) > policy.MaxSlots || len(o.Words) > policy.MaxOpWords {
			return fmt.Errorf("stage tables: %s has %d slots and %d words; the limits are %d and %d",
				pavise.Op(op), len(o.Slots), len(o.Words), policy.MaxSlots, policy.MaxOpWords)
		}
	}
	for _, l := range []struct {
		what     string
		n, limit int
	}{
		{"automata", len(img.Automata), len(t.Automata)},
		{"transitions", cells(img), len(p.Cells)},
		{"states", states, len(t.Accept)},
		{"leaves", leaves, len(t.Leaves)},
		{"bytes of tails", tails, len(t.Tails) - 8},
		{"rows", len(img.Rows), len(t.Rows)},
		{"words", len(img.Words), len(t.Words)},
		{"classes", classes, len(t.ClassRows)},
		{"words of clauses", words, len(t.Rules) / 64},
		{"rules", len(img.Rules), policy.MaxRules},
		{"rates", len(img.Rates), len(t.Rates)},
	} {
		if l.n > l.limit {
			return fmt.Errorf("stage tables: %d %s; the limit is %d", l.n, l.what, l.limit)
		}
	}
	return nil
}

// cells is the number of an Image's transitions.
func cells(img *policy.Image) (n int) {
	for i := range img.Automata {
		n += len(img.Automata[i].Next)
	}
	return n
}

// stage writes an Image into the tables of a side that does not judge. It writes each table at once and returns how to check what was written.
func stage(t *bpf.KernelTables, p *bpf.KernelPool, img *policy.Image, gen uint32) error {
	if err := fits(img); err != nil {
		return err
	}
	w := writer{t: t, p: p}
	t.Image = [16]byte{} // not whole
	t.Gen = gen
	t.SubjectNeed = 0
	for i := range t.Automata {
		if i >= len(img.Automata) {
			t.Automata[i] = bpf.KernelAutomaton{}
			continue
		}
		w.automaton(&t.Automata[i], &img.Automata[i])
	}
	for op := range t.Ops {
		if op < len(img.Ops) {
			w.op(&t.Ops[op], img, op)
		}
	}
	for i := range img.Rows {
		t.Rows[i] = row(&img.Rows[i])
	}
	copy(t.Words[:], img.Words)
	for i := range img.Rates {
		t.Rates[i] = rate(&img.Rates[i])
	}
	return verify(t, p, img)
}

// writer appends to the shared tables.
type writer struct {
	t                                          *bpf.KernelTables
	p                                          *bpf.KernelPool
	cell, accept, leaf, tail, classIndex, rule int
}

func (w *writer) automaton(k *bpf.KernelAutomaton, a *policy.Automaton) {
	*k = bpf.KernelAutomaton{
		CellOff: uint32(w.cell), AcceptOff: uint32(w.accept), LeafOff: uint32(w.leaf), TailOff: uint32(w.tail),
		Start: a.Start, Overlong: uint16(a.Classes - 1), Last: cmp.Or(a.Last, policy.MaxString), Shift: a.Shift, Dim: uint8(a.Dim), Column: a.Column,
	}
	src, address := source(a.Dim)
	k.Source = uint8(src)
	if address {
		k.Flags |= automatonAddress
	}
	if a.Dim == policy.DimPath || src == policy.DimPath {
		k.Flags |= automatonNamed
	}
	w.cell += copy(w.p.Cells[w.cell:], a.Next)
	w.accept += copy(w.t.Accept[w.accept:], a.Accept)
	for _, l := range a.Leaves {
		w.t.Leaves[w.leaf] = leaf(l)
		w.leaf++
	}
	w.tail += copy(w.t.Tails[w.tail:], a.Tails)
	if a.Dim < policy.DimPath {
		w.t.SubjectNeed |= 1 << a.Dim
		if src != policy.DimNone {
			w.t.SubjectNeed |= 1 << src
		}
	}
}

// Flags of an automaton, as in bpf/engine.h.
const (
	automatonNamed   = 1 << 0
	automatonAddress = 1 << 1
)

// source is the fact that a dimension is derived of in the kernel, itself for the time; DimNone for the others.
func source(d policy.Dim) (src policy.Dim, address bool) {
	if d == policy.DimTime {
		return d, false
	}
	return d.Source()
}

func leaf(l policy.Leaf) bpf.KernelLeaf {
	return bpf.KernelLeaf{TailOff: l.TailOff, TailLen: l.TailLen, Kind: uint16(l.Kind), Match: l.Match, Miss: l.Miss}
}

func row(r *policy.Row) bpf.KernelRow {
	k := bpf.KernelRow{Sum: r.Summary}
	off := r.Off
	for q, s := range r.Summary {
		k.Off[q] = off
		off += uint32(bits.OnesCount64(s))
	}
	return k
}

func (w *writer) op(k *bpf.KernelOpTable, img *policy.Image, op int) {
	o := &img.Ops[op]
	k.N_words = 0 // until the rest is there
	k.N_slots, k.N_subject, k.N_early = uint32(len(o.Slots)), 0, 0
	k.Need, k.Enforces, k.All = 0, 0, [4]uint64{}
	k.N_rated, k.Rated = 0, [4]uint64{}
	for i, s := range o.Slots {
		dim := img.Automata[s.Automaton].Dim
		k.Slots[i].Automaton = uint32(s.Automaton)
		k.Slots[i].ClassRow = uint32(w.classIndex)
		w.classIndex += copy(w.t.ClassRows[w.classIndex:], s.ClassRow)
		k.Need |= 1 << dim
		if src, _ := source(dim); src != policy.DimNone {
			k.Need |= 1 << src
		}
		if dim < policy.DimPath {
			k.N_subject = uint32(i + 1)
		}
		if !dim.Late() {
			k.N_early = uint32(i + 1)
		}
	}
	for i, x := range o.Words {
		k.Words[i] = word(x)
		k.All[i/64] |= 1 << (i % 64)
		if x.Rate != 0 {
			k.N_rated++
			k.Rated[i/64] |= 1 << (i % 64)
		}
		if x.Kind != policy.WordAllow && !x.Monitor && x.Action >= pavise.ActionDeny {
			k.Enforces = 1
		}
	}
	k.RuleOff = uint32(w.rule)
	for _, r := range o.Rule {
		w.t.Rules[w.rule] = uint16(r)
		w.rule++
	}
	k.N_words = uint32(len(o.Words))
}

func rate(r *policy.Rate) bpf.KernelRate {
	return bpf.KernelRate{Id: r.ID, Window: uint64(r.Window.Microseconds()), N: r.N, By: uint32(r.By)}
}

func word(x policy.Word) bpf.KernelWord {
	k := bpf.KernelWord{Kind: uint8(x.Kind), Action: uint8(x.Action), Group: x.Group, Rate: x.Rate}
	if x.Clauses > 0 {
		k.Clauses = ^uint64(0) >> (64 - x.Clauses)
	}
	if x.Monitor {
		k.Monitor = 1
	}
	return k
}

// verify reads a staged side back.
func verify(t *bpf.KernelTables, p *bpf.KernelPool, img *policy.Image) error {
	bad := func(what string) error {
		return fmt.Errorf("stage tables: what was written of the %s does not read back; nothing was activated", what)
	}
	for i := range img.Automata {
		a, k := &img.Automata[i], &t.Automata[i]
		if k.Column != a.Column || k.Start != a.Start || k.Shift != a.Shift ||
			!slices.Equal(p.Cells[k.CellOff:][:len(a.Next)], a.Next) ||
			!slices.Equal(t.Accept[k.AcceptOff:][:len(a.Accept)], a.Accept) ||
			!slices.Equal(t.Tails[k.TailOff:][:len(a.Tails)], a.Tails) {
			return bad(fmt.Sprintf("automaton of %s", a.Dim))
		}
		for j, l := range a.Leaves {
			if t.Leaves[int(k.LeafOff)+j] != leaf(l) {
				return bad("leaves")
			}
		}
	}
	for op := range img.Ops {
		o, k := &img.Ops[op], &t.Ops[op]
		if int(k.N_words) != len(o.Words) || int(k.N_slots) != len(o.Slots) {
			return bad(pavise.Op(op).String())
		}
		for i, s := range o.Slots {
			if !slices.Equal(t.ClassRows[k.Slots[i].ClassRow:][:len(s.ClassRow)], s.ClassRow) {
				return bad(pavise.Op(op).String())
			}
		}
		for i, x := range o.Words {
			if k.Words[i] != word(x) {
				return bad(pavise.Op(op).String())
			}
		}
		for i, r := range o.Rule {
			if t.Rules[int(k.RuleOff)+i] != uint16(r) {
				return bad("rules of " + pavise.Op(op).String())
			}
		}
	}
	for i := range img.Rows {
		if t.Rows[i] != row(&img.Rows[i]) {
			return bad("rows")
		}
	}
	if !slices.Equal(t.Words[:len(img.Words)], img.Words) {
		return bad("words")
	}
	for i := range img.Rates {
		if t.Rates[i] != rate(&img.Rates[i]) {
			return bad("rates")
		}
	}
	return nil
}
