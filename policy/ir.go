package policy

import "github.com/pavise-project/pavise"

// This file is the seam between the language (parse.go, check.go, normal.go) and the tables (automaton.go,
// assemble.go): what a set of policies is once its conditions are in normal form.

// byteSet is a set of bytes.
type byteSet [4]uint64

// item is one step of a pattern: one byte of Set, or with Loop any number of them, none included.
type item struct {
	Set  byteSet
	Loop bool
}

// pattern is a sequence of items that must match the whole string. With Under it also matches when the string goes on
// after the pattern with '/' and anything.
type pattern struct {
	Items []item
	Under bool
}

// atom is a test on one dimension: the string matches any of the patterns. Atoms are interned: the same
// test is the same atom, by Key.
type atom struct {
	Dim      Dim
	Key      string
	Patterns []pattern
	Set      *Set // what Dim's source is looked up in: Patterns are then those of its bit in program.Sets

	words []word // of Patterns; nil until they are needed
}

// predKind is the kind of a pred.
type predKind uint8

const (
	predAtom predKind = iota
	predAnd
	predOr
	predNot
)

// pred is a boolean function of atoms of one dimension.
type pred struct {
	Kind predKind
	Atom int // for predAtom: clause.Atoms says which
	Subs []*pred
}

// dimPred is a predicate on a dimension.
type dimPred struct {
	dim Dim
	*pred
}

// dimPreds are predicates on different dimensions, in their order.
type dimPreds []dimPred

// clause is a conjunction of predicates, at most one per dimension, for one operation; it is one
// bit of the operation's clause sets.
type clause struct {
	Op    pavise.Op
	Rule  uint32 // number in program.Rules
	Preds dimPreds
	Atoms []int32 // index into program.Atoms of the atoms that Preds names; nil: it names these themselves

	Kind    WordKind
	Action  pavise.Action // WordExplicit, WordDefault
	Monitor bool
	Group   uint16 // WordAllow, WordDefault
	Rate    uint16 // WordExplicit: 1 + number in program.Rates; 0 for none
}

// program is a set of policies in normal form.
type program struct {
	Atoms     []atom
	Clauses   []clause
	Rules     []Rule
	Protected []string

	Rates         []Rate
	Sets          [NumSetKinds][]*Set
	ProtectedSets []*Set
}

// atom returns the index into program.Atoms of an atom of c.Preds.
func (c *clause) atom(i int) int {
	if c.Atoms == nil {
		return i
	}
	return int(c.Atoms[i])
}
