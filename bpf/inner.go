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

// PutInner, DeleteInner and EachInner are for one map of an array of maps, while programs use it. Where there is none they do nothing.
func (k *Kernel) PutInner(outer string, slot uint32, key, value any) error {
	if m := k.innerAt(outer, slot); m != nil {
		return m.Put(key, value)
	}
	return nil
}

// DeleteInner deletes an entry.
func (k *Kernel) DeleteInner(outer string, slot uint32, key any) error {
	if m := k.innerAt(outer, slot); m != nil {
		return m.Delete(key)
	}
	return nil
}

// EachInner calls fn with an iterator over the entries.
func (k *Kernel) EachInner(outer string, slot uint32, fn func(*ebpf.MapIterator) error) error {
	if m := k.innerAt(outer, slot); m != nil {
		return fn(m.Iterate())
	}
	return nil
}

func (k *Kernel) innerAt(outer string, slot uint32) *ebpf.Map {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.inner[innerSlot{outer, slot}]
}

// PutMap writes an entry of one of the object's maps.
func (k *Kernel) PutMap(name string, key, value any) error {
	k.mu.Lock()
	m := k.maps[name]
	k.mu.Unlock()
	if m == nil {
		return fmt.Errorf("write an entry of %s: there is no such map", name)
	}
	return m.Put(key, value)
}
