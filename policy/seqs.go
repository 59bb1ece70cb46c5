package policy

import "slices"

// seqs numbers sequences: equal ones have the same number, from 0, in the order in which they came. It is a hash table
// without an allocation for each sequence. The zero value is ready.
type seqs[T byte | int32 | uint64] struct {
	all    []T      // the sequences, one after another
	ends   []uint32 // where each ends
	hashes []uint32
	table  []int32 // by hash: numbers plus 1, 0 for none; a power of two of them
}

// id returns the number of x, and whether x is new.
func (s *seqs[T]) id(x []T) (id int32, added bool) {
	if 2*len(s.ends) >= len(s.table) {
		s.grow()
	}
	h := uint64(len(x))
	for _, v := range x {
		h = (h ^ uint64(v)) * 0x9e3779b97f4a7c15
		h ^= h >> 32
	}
	mask := uint32(len(s.table) - 1)
	at := uint32(h) & mask
	for ; s.table[at] != 0; at = (at + 1) & mask {
		if id := s.table[at] - 1; s.hashes[id] == uint32(h) && slices.Equal(s.at(id), x) {
			return id, false
		}
	}
	id = int32(len(s.ends))
	s.all = append(s.all, x...)
	s.ends = append(s.ends, uint32(len(s.all)))
	s.hashes = append(s.hashes, uint32(h))
	s.table[at] = id + 1
	return id, true
}

// at returns a sequence, not to be changed.
func (s *seqs[T]) at(id int32) []T {
	first := uint32(0)
	if id > 0 {
		first = s.ends[id-1]
	}
	return s.all[first:s.ends[id]:s.ends[id]]
}

func (s *seqs[T]) grow() {
	s.table = make([]int32, max(64, 2*len(s.table)))
	mask := uint32(len(s.table) - 1)
	for id, h := range s.hashes {
		at := h & mask
		for s.table[at] != 0 {
			at = (at + 1) & mask
		}
		s.table[at] = int32(id) + 1
	}
}
