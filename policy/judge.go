package policy

import (
	"math/bits"

	"github.com/pavise-project/pavise"
)

// Facts is what a hook knows of an operation: a byte string by dimension, as Dim says.
type Facts struct {
	Values  [NumDims][]byte
	Aliases [][]byte // other names of the file whose name is Values[DimPath]
	Names   []string // by which the address Values[DimRemoteAddr] was looked up
	Anyone  bool     // who acts may be any process: what is denied then is denied to each. Of net.accept only

	Rates *Rates            // what was counted so far; nil: no rate is passed
	Who   [NumRateBy]uint64 // who is counted
	Now   uint64            // nanoseconds since boot
}

// NoRule is the number of no rule.
const NoRule = ^uint32(0)

// Verdict is what the rules say of an operation.
type Verdict struct {
	Action  pavise.Action // the strictest enforced that decides; else the strictest monitored; else audit; else none
	Monitor bool          // Action would have been done
	Rule    uint32        // the rule that asks for Action; NoRule when none does
	Rules   [4]uint32     // Rule first, then others that matched; NoRule after the last
	Matched int           // how many clauses matched, 255 at most
}

// Judge evaluates the tables of an operation, step for step as bpf/engine.h does:
//
// The names are Values[DimPath] and, when a slot of the operation is on DimPath or DimPathSets, each alias. What a dimension of sets holds is looked up. For each name, the class of each slot gives a
// row. Summaries are ANDed, starting from a bit for each word of the operation; then, for each word left, lowest first:
//
//   - For an alias, only explicit words count.
//   - An enforced explicit or default word whose action is deny or kill, and not stricter than what an enforced word decided
//     before (under any name), is skipped.
//   - The words of the rows are ANDed, starting from the word's clauses. Nothing left: next word.
//   - A word with a rate is counted, once for all names; nothing is left of it unless the rate is passed. (So what was skipped before is not counted.)
//   - An allow word meets its group's default. It is not reported.
//   - A default word of the group that was met last is skipped. (A group's allows stand right before its defaults.)
//   - The rule of the lowest bit left is the word's. It decides for its class (enforced deny and kill; monitored
//     deny and kill; audit) if nothing did or if its action is stricter than what did.
//   - Matched grows by the number of bits left, to 255 at most; then it shrinks by one if the rule is in Rules already, and
//     otherwise the rule is appended to Rules if there is room.
//
// At the end the deciding rule changes places with Rules[0]; if it found no room in Rules, it replaces Rules[0].
func (img *Image) Judge(op pavise.Op, facts *Facts) Verdict {
	v := Verdict{Rule: NoRule, Rules: [4]uint32{NoRule, NoRule, NoRule, NoRule}}
	t := &img.Ops[op]
	if !t.Used() {
		return v
	}
	j := judgement{rules: v.Rules, facts: facts}
	named := false
	var buf [setBytes]byte
	for i := range t.Slots {
		s := &t.Slots[i]
		a := &img.Automata[s.Automaton]
		if facts.Anyone && a.Dim < DimPath {
			j.rows[i] = s.ClassRow[a.Classes]
		} else {
			j.rows[i] = s.ClassRow[a.class(img.fact(facts, a.Dim, facts.Values[DimPath], &buf))]
		}
		named = named || a.Dim == DimPath || a.Dim == DimPathSets
	}
	j.name(img, t, false)
	if named {
		for _, alias := range facts.Aliases {
			for i := range t.Slots {
				s := &t.Slots[i]
				if a := &img.Automata[s.Automaton]; a.Dim == DimPath || a.Dim == DimPathSets {
					j.rows[i] = s.ClassRow[a.class(img.fact(facts, a.Dim, alias, &buf))]
				}
			}
			j.name(img, t, true)
		}
	}
	return j.verdict(v)
}

// fact is the byte string of a dimension, for a file of this name.
func (img *Image) fact(facts *Facts, d Dim, name []byte, buf *[setBytes]byte) []byte {
	value := func(d Dim) []byte {
		if d == DimPath {
			return name
		}
		return facts.Values[d]
	}
	if src, address := d.Source(); src != DimNone {
		var names []string
		if src == DimRemoteAddr {
			names = facts.Names
		}
		return img.setsOf(value(src), address, names, buf)
	}
	return value(d)
}

// class reads a string.
func (a *Automaton) class(s []byte) uint16 {
	if len(s) > MaxString {
		return uint16(a.Classes - 1)
	}
	if n := int(a.Last); n > 0 && len(s) > n {
		s = s[len(s)-n:]
	}
	state := a.Start
	for i, b := range s {
		state = a.Next[int(state)<<a.Shift|int(a.Column[b])]
		if state&LeafBit == 0 {
			continue
		}
		l := &a.Leaves[state&^LeafBit]
		if l.Kind == LeafAny {
			return l.Match
		}
		rest, n := s[i+1:], int(l.TailLen)
		if len(rest) < n || string(rest[:n]) != string(a.Tails[l.TailOff:][:n]) {
			return l.Miss
		}
		if len(rest) == n || l.Kind == LeafPrefix || l.Kind == LeafUnder && rest[n] == '/' {
			return l.Match
		}
		return l.Miss
	}
	return a.Accept[state]
}

// The classes of decisions: what decides is the strictest of the first that is not empty.
const (
	decidedEnforced = iota
	decidedMonitor
	decidedAudit
	numDecided
)

// judgement is the state of Judge.
type judgement struct {
	rows    [MaxSlots]uint32 // by slot
	decided [numDecided]struct {
		action pavise.Action
		rule   uint32
	}
	rules   [4]uint32
	named   int    // of rules
	met     uint16 // group
	matched int
	facts   *Facts
	counted [MaxOpWords / 64]uint64 // words with a rate that were counted
	over    [MaxOpWords / 64]uint64 // and those that passed it
}

// name judges one name.
func (j *judgement) name(img *Image, t *OpTable, alias bool) {
	rows := j.rows[:len(t.Slots)]
	for i := 0; i*64 < len(t.Words); i++ {
		summary := ^uint64(0) >> (64 - min(64, len(t.Words)-i*64))
		for _, r := range rows {
			if r != 0 {
				summary &= img.Rows[r].Summary[i]
			}
		}
		for ; summary != 0; summary &= summary - 1 {
			j.word(img, t, rows, i*64+bits.TrailingZeros64(summary), alias)
		}
	}
}

// word judges one word that all summaries have.
func (j *judgement) word(img *Image, t *OpTable, rows []uint32, n int, alias bool) {
	w := &t.Words[n]
	if alias && w.Kind != WordExplicit {
		return
	}
	d := &j.decided[decidedEnforced]
	switch {
	case w.Action == pavise.ActionAudit:
		d = &j.decided[decidedAudit]
	case w.Monitor:
		d = &j.decided[decidedMonitor]
	case w.Kind != WordAllow && w.Action <= d.action:
		return
	}
	left := ^uint64(0) >> (64 - w.Clauses)
	for _, r := range rows {
		if r != 0 {
			left &= img.Rows[r].word(img.Words, n)
		}
	}
	switch {
	case left == 0 || w.Rate != 0 && !j.passed(&img.Rates[w.Rate-1], n):
		return
	case w.Kind == WordAllow:
		j.met = w.Group
		return
	case w.Kind == WordDefault && w.Group == j.met:
		return
	}
	rule := t.Rule[n*64+bits.TrailingZeros64(left)]
	if w.Action > d.action {
		d.action, d.rule = w.Action, rule
	}
	j.matched = min(j.matched+bits.OnesCount64(left), 255)
	for _, r := range j.rules[:j.named] {
		if r == rule {
			j.matched--
			return
		}
	}
	if j.named < len(j.rules) {
		j.rules[j.named] = rule
		j.named++
	}
}

// passed counts what word n matched, at the first name under which it did, and reports whether that was too often.
func (j *judgement) passed(r *Rate, n int) bool {
	bit := uint64(1) << (n % 64)
	if j.counted[n/64]&bit == 0 && j.facts.Rates != nil && !j.facts.Anyone {
		j.counted[n/64] |= bit
		if j.facts.Rates.over(r, j.facts.Who[r.By], j.facts.Now) {
			j.over[n/64] |= bit
		}
	}
	return j.over[n/64]&bit != 0
}

// word returns word n of a row whose summary has it.
func (r *Row) word(words []uint64, n int) uint64 {
	i := int(r.Off) + bits.OnesCount64(r.Summary[n/64]&(1<<(n%64)-1))
	for _, s := range r.Summary[:n/64] {
		i += bits.OnesCount64(s)
	}
	return words[i]
}

// verdict fills v, which is empty, at the end.
func (j *judgement) verdict(v Verdict) Verdict {
	for class, d := range j.decided {
		if d.action == pavise.ActionNone {
			continue
		}
		v.Action, v.Rule, v.Monitor = d.action, d.rule, class == decidedMonitor
		at := 0
		for i, r := range j.rules {
			if r == d.rule {
				at = i
			}
		}
		j.rules[at], j.rules[0] = j.rules[0], d.rule
		break
	}
	v.Rules, v.Matched = j.rules, j.matched
	return v
}
