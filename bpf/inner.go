package bpf

import (
	"fmt"

	"github.com/cilium/ebpf"
)

// NewInner makes a map with room for n entries for a slot of an array of maps of the object. The caller closes it, or gives it to SetInner.
func (k *Kernel) NewInner(outer string, n uint32) (*ebpf.Map, error) {
	inner, ok := k.inners[outer]
	if !ok {
		return nil, fmt.Errorf("make a map for %s: it is no array of maps", outer)
	}
	m, err := ebpf.NewMap(&ebpf.MapSpec{
		Name: inner.Name, Type: inner.Type, KeySize: inner.KeySize, ValueSize: inner.ValueSize, Flags: inner.Flags, MaxEntries: max(n, 1),
	})
	if err != nil {
		return nil, fmt.Errorf("make a map of %d entries for %s: %w", n, outer, cause(err))
	}
	return m, nil
}

// SetInner puts a map into a slot of an array of maps, nil for none, in place of the one that is there, which is freed. It waits until no program runs that
// could have found that one.
func (k *Kernel) SetInner(outer string, slot uint32, m *ebpf.Map) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	at := innerSlot{outer, slot}
	old := k.inner[at]
	if m == nil && old == nil {
		return nil
	}
	var err error
	if m != nil {
		err = k.maps[outer].Put(slot, m)
	} else {
		err = k.maps[outer].Delete(slot)
	}
	if err != nil {
		return fmt.Errorf("put a map into slot %d of %s: %w", slot, outer, err)
	}
	delete(k.inner, at)
	if m != nil {
		k.inner[at] = m
	}
	if old != nil {
		return old.Close()
	}
	return nil
}

type innerSlot struct {
	outer string
	slot  uint32
}
