package enforce

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/pavise-project/pavise/bpf"
	"github.com/pavise-project/pavise/policy"
)

// sets keeps the kernel's tables of sets. Each of the two slots has the sets of one Image, in maps of just that size; Images with the same sets share a slot, so
// that a change of anything else writes none of them.
type sets struct {
	slots [bpf.Sides][]setID // what is in each
	used  [bpf.Sides]int     // by side: 1 + the slot that its tables name, 0 for none
	// images are those whose sets are in the slots, where these have sets of names. By domains.mu.
	images  [bpf.Sides]*policy.Image
	domains domains
}

// setID is one set and its bit.
type setID struct {
	digest [32]byte
	kind   policy.SetKind
}

func setIDs(img *policy.Image) (ids []setID) {
	for k, list := range img.Sets {
		for _, s := range list {
			ids = append(ids, setID{s.Digest, policy.SetKind(k)})
		}
	}
	return ids
}

// Flags of tables.set_kinds, as in bpf/engine.h.
const (
	hasWhole   = 1 << 0
	hasNames   = 1 << 1
	hasDomains = 1 << 2
)

// stage makes the sets of an Image ready, and writes where they are into the tables of a side that does not judge.
func (s *sets) stage(k *bpf.Kernel, t *bpf.KernelTables, side int, img *policy.Image) error {
	s.used[side] = 0
	t.SetSlot, t.SetKinds = 0, 0
	t.SetMasks, t.SetMasks6 = lengthMasks(img.Sets[policy.SetAddresses])
	ids := setIDs(img)
	if len(ids) == 0 {
		return nil
	}
	slot := slices.IndexFunc(s.slots[:], func(have []setID) bool { return slices.Equal(have, ids) })
	if slot < 0 {
		slot = 0
		if s.used[1-side] == 1 {
			slot = 1
		}
		if err := s.fill(k, uint32(slot), img); err != nil {
			return err
		}
		s.slots[slot] = ids
	}
	s.used[side] = 1 + slot
	t.SetSlot = uint32(slot)
	if len(img.Sets[policy.SetStrings]) > 0 {
		t.SetKinds |= hasWhole
	}
	if len(img.Sets[policy.SetNames]) > 0 {
		t.SetKinds |= hasNames
	}
	if len(img.Domains()) > 0 {
		t.SetKinds |= hasDomains
	}
	return nil
}

// trim frees the slots that no side names.
func (s *sets) trim(k *bpf.Kernel) error {
	var errs []error
	for slot := range s.slots {
		if s.slots[slot] == nil || s.used[0] == 1+slot || s.used[1] == 1+slot {
			continue
		}
		s.slots[slot] = nil
		s.setImage(slot, nil)
		errs = append(errs, k.SetInner("set_strings", uint32(slot), nil), k.SetInner("set_prefixes", uint32(slot), nil))
	}
	return errors.Join(errs...)
}

// fill puts the sets of an Image into a slot that no side names.
func (s *sets) fill(k *bpf.Kernel, slot uint32, img *policy.Image) error {
	s.slots[slot] = nil
	s.setImage(int(slot), nil)
	strings := stringEntries(k.SipKey(), img)
	if err := fillMap(k, "set_strings", slot, strings); err != nil {
		return err
	}
	e := prefixEntries(img.Sets[policy.SetAddresses])
	if len(img.Domains()) == 0 {
		return fillMap(k, "set_prefixes", slot, e)
	}
	s.domains.mu.Lock()
	defer s.domains.mu.Unlock()
	room := len(e.keys) + maxNamed
	if err := fillMapOf(k, "set_prefixes", slot, s.domains.add(img, e), room); err != nil {
		return err
	}
	s.images[slot] = img
	return nil
}

// setImage says whose sets of names a slot has.
func (s *sets) setImage(slot int, img *policy.Image) {
	s.domains.mu.Lock()
	defer s.domains.mu.Unlock()
	s.images[slot] = img
}

// entries of a map: what it holds for each key.
type entries[K comparable] struct {
	keys []K
	bits []uint32
}

// merged makes one entry of those with the same key.
func merged[K comparable](n int, each func(add func(key K, bit int))) entries[K] {
	e := entries[K]{keys: make([]K, 0, n), bits: make([]uint32, 0, n)}
	at := make(map[K]int, n)
	each(func(key K, bit int) {
		i, ok := at[key]
		if !ok {
			i = len(e.keys)
			at[key] = i
			e.keys, e.bits = append(e.keys, key), append(e.bits, 0)
		}
		e.bits[i] |= 1 << bit
	})
	return e
}

func count(lists ...[]*policy.Set) (n int) {
	for _, l := range lists {
		for _, s := range l {
			n += s.Len()
		}
	}
	return n
}

// What is hashed before a string, as in bpf/derive.h.
const (
	setDomain = 2
	setBelow  = 3
)

var stringKinds = map[policy.SetKind]uint64{policy.SetStrings: 0, policy.SetNames: 1}

func stringEntries(key [2]uint64, img *policy.Image) entries[bpf.KernelSetString] {
	n := count(img.Sets[policy.SetStrings], img.Sets[policy.SetNames]) + len(img.Domains())
	return merged(n, func(add func(bpf.KernelSetString, int)) {
		for kind, first := range stringKinds {
			for bit, set := range img.Sets[kind] {
				for _, text := range set.Strings {
					lo, hi := sip(key, first, text)
					add(bpf.KernelSetString{Lo: lo, Hi: hi}, bit)
				}
			}
		}
		for bit, set := range img.Sets[policy.SetAddresses] {
			for _, d := range set.Domains {
				first := uint64(setDomain)
				if d[0] == '.' {
					first = setBelow
				}
				lo, hi := sip(key, first, d)
				add(bpf.KernelSetString{Lo: lo, Hi: hi}, bit)
			}
		}
	})
}

// prefixBits is how the kernel writes the length of a prefix: from 1, an IPv4 prefix as one of IPv4-mapped addresses.
func prefixBits(is4 bool, length int) uint64 {
	if is4 {
		length += 96
	}
	return uint64(1 + length)
}

func prefixEntries(list []*policy.Set) entries[bpf.KernelSetPrefix] {
	return merged(count(list), func(add func(bpf.KernelSetPrefix, int)) {
		for bit, set := range list {
			for _, p := range set.Prefixes {
				a := p.Addr().As16()
				add(bpf.KernelSetPrefix{
					Hi: binary.BigEndian.Uint64(a[:]), Lo: binary.BigEndian.Uint64(a[8:]), Bits: prefixBits(p.Addr().Is4(), p.Bits()),
				}, bit)
			}
		}
	})
}

// lengthMasks are the masks of all lengths of prefixes, and where those of IPv6 begin.
func lengthMasks(list []*policy.Set) (masks [256]bpf.KernelSetPrefix, six uint32) {
	var seen [2][130]bool
	for _, set := range list {
		for _, p := range set.Prefixes {
			if p.Addr().Is4() {
				seen[0][prefixBits(true, p.Bits())] = true
			} else {
				seen[1][prefixBits(false, p.Bits())] = true
			}
		}
	}
	n := 0
	for family := range seen {
		if family == 1 {
			n++
			six = uint32(n)
		}
		for b := len(seen[family]) - 1; b > 0; b-- { // the longest first: most are single addresses
			if !seen[family][b] {
				continue
			}
			length := b - 1
			m := bpf.KernelSetPrefix{Bits: uint64(b)}
			m.Hi = ^uint64(0) << (64 - min(length, 64))
			m.Lo = ^uint64(0) << (64 - max(length-64, 0))
			masks[n] = m
			n++
		}
	}
	return masks, six
}

// fillMap makes a map of entries, puts it into a slot and frees the one that was there.
func fillMap[K comparable](k *bpf.Kernel, outer string, slot uint32, e entries[K]) error {
	return fillMapOf(k, outer, slot, e, len(e.keys))
}

// fillMapOf is fillMap with room for so many entries.
func fillMapOf[K comparable](k *bpf.Kernel, outer string, slot uint32, e entries[K], room int) error {
	if room == 0 {
		return k.SetInner(outer, slot, nil)
	}
	m, err := k.NewInner(outer, uint32(room)) //nolint:gosec // it is bounded
	if err != nil {
		return err
	}
	if err := writeEntries(m, e.keys, e.bits); err != nil {
		return errors.Join(fmt.Errorf("write %d entries of sets: %w", len(e.keys), err), m.Close())
	}
	return k.SetInner(outer, slot, m)
}

// batch is how many entries one system call writes: it holds the processor that long.
const batch = 4096

func writeEntries[K comparable](m *ebpf.Map, keys []K, values []uint32) error {
	for len(keys) > 0 {
		n := min(batch, len(keys))
		done, err := m.BatchUpdate(keys[:n], values[:n], nil)
		if err != nil {
			return err
		}
		if done != n {
			return fmt.Errorf("%d of %d were taken", done, n)
		}
		keys, values = keys[n:], values[n:]
	}
	return nil
}

// sip is SipHash-1-3 with 128 bits of the word first and of text, as bpf/derive.h computes it.
func sip(key [2]uint64, first uint64, text string) (lo, hi uint64) {
	return sipRounds(key, 1, 3, first, text)
}

// sipRounds is SipHash-c-d: that with 2 and 4 has published results.
func sipRounds(key [2]uint64, c, d int, first uint64, text string) (lo, hi uint64) {
	v0, v1, v2, v3 := key[0]^0x736f6d6570736575, key[1]^0x646f72616e646f6d^0xee, key[0]^0x6c7967656e657261, key[1]^0x7465646279746573
	round := func() {
		v0 += v1
		v1 = bits.RotateLeft64(v1, 13) ^ v0
		v0 = bits.RotateLeft64(v0, 32)
		v2 += v3
		v3 = bits.RotateLeft64(v3, 16) ^ v2
		v0 += v3
		v3 = bits.RotateLeft64(v3, 21) ^ v0
		v2 += v1
		v1 = bits.RotateLeft64(v1, 17) ^ v2
		v2 = bits.RotateLeft64(v2, 32)
	}
	word := func(m uint64) {
		v3 ^= m
		for range c {
			round()
		}
		v0 ^= m
	}
	word(first)
	rest := text
	for ; len(rest) >= 8; rest = rest[8:] {
		word(uint64(rest[0]) | uint64(rest[1])<<8 | uint64(rest[2])<<16 | uint64(rest[3])<<24 |
			uint64(rest[4])<<32 | uint64(rest[5])<<40 | uint64(rest[6])<<48 | uint64(rest[7])<<56)
	}
	last := uint64(len(text)+8) << 56
	for i := range len(rest) {
		last |= uint64(rest[i]) << (8 * i)
	}
	word(last)
	v2 ^= 0xee
	for range d {
		round()
	}
	lo = v0 ^ v1 ^ v2 ^ v3
	v1 ^= 0xdd
	for range d {
		round()
	}
	return lo, v0 ^ v1 ^ v2 ^ v3
}
