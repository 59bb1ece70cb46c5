package flow

import "slices"

// assembly puts the pieces of a stream together, in whatever order they come. Where two pieces disagree, what came first stands.
type assembly struct {
	buf  []byte
	have []span // in order, none touching the next
}

type span struct{ from, to int }

// add puts in data that begins at off, which is not behind maxHello; what lies beyond that is left out, and the result false.
func (a *assembly) add(off uint64, data []byte) bool {
	fits := true
	if off+uint64(len(data)) > maxHello {
		fits = false
		if off >= maxHello {
			return false
		}
		data = data[:maxHello-off]
	}
	if len(data) == 0 {
		return fits
	}
	from, to := int(off), int(off)+len(data) //nolint:gosec // at most maxHello
	if to > len(a.buf) {
		a.buf = slices.Grow(a.buf, to-len(a.buf))[:to]
	}
	// The spans from i up to j touch the new one.
	i := 0
	for i < len(a.have) && a.have[i].to < from {
		i++
	}
	j, pos := i, from
	for ; j < len(a.have) && a.have[j].from <= to; j++ {
		if s := a.have[j]; s.from > pos {
			copy(a.buf[pos:s.from], data[pos-from:])
		}
		pos = max(pos, min(a.have[j].to, to))
	}
	copy(a.buf[pos:to], data[pos-from:])
	whole := span{from, to}
	if j > i {
		whole = span{min(from, a.have[i].from), max(to, a.have[j-1].to)}
	}
	a.have = slices.Replace(a.have, i, j, whole)
	return fits
}

// start is what is there from the first byte on, without a gap.
func (a *assembly) start() []byte {
	if len(a.have) == 0 || a.have[0].from > 0 {
		return nil
	}
	return a.buf[:a.have[0].to]
}
