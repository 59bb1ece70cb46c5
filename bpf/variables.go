package bpf

import (
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// constant reads a constant as it was when the programs were loaded.
func (k *Kernel) constant(name string, to []byte) error {
	v, ok := k.vars[name]
	m := k.maps[v.Section]
	if !ok || m == nil || int(v.Size) != len(to) {
		return fmt.Errorf("read %s: there is no constant of that name and size", name)
	}
	b, err := m.LookupBytes(uint32(0))
	if err != nil || int(v.Offset)+len(to) > len(b) {
		return errors.Join(fmt.Errorf("read %s", name), err)
	}
	copy(to, b[v.Offset:])
	return nil
}

// SetVariable sets a variable of the object by its name in C, of 4 or 8 bytes, by one write.
func (k *Kernel) SetVariable(name string, value uint64) error {
	p, size, err := k.variable(name)
	switch {
	case err != nil:
		return fmt.Errorf("set %s: %w", name, err)
	case size == 8:
		atomic.StoreUint64((*uint64)(p), value)
	case size == 4 && value>>32 == 0:
		atomic.StoreUint32((*uint32)(p), uint32(value))
	default:
		return fmt.Errorf("set %s: it has %d bytes", name, size)
	}
	return nil
}

// Word is a variable of 8 bytes of the object by its name in C, until Close: to be written while all else waits.
func (k *Kernel) Word(name string) (*atomic.Uint64, error) {
	p, size, err := k.variable(name)
	if err == nil && size != 8 {
		err = fmt.Errorf("it has %d bytes", size)
	}
	if err != nil {
		return nil, fmt.Errorf("find %s: %w", name, err)
	}
	return (*atomic.Uint64)(p), nil
}

// Variable reads a variable of the object by its name in C, of 4 or 8 bytes.
func (k *Kernel) Variable(name string) (uint64, error) {
	p, size, err := k.variable(name)
	switch {
	case err != nil:
		return 0, fmt.Errorf("read %s: %w", name, err)
	case size == 8:
		return atomic.LoadUint64((*uint64)(p)), nil
	case size == 4:
		return uint64(atomic.LoadUint32((*uint32)(p))), nil
	}
	return 0, fmt.Errorf("read %s: it has %d bytes", name, size)
}

func (k *Kernel) variable(name string) (unsafe.Pointer, uint32, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	v, ok := k.vars[name]
	m := k.maps[v.Section]
	if !ok || m == nil {
		return nil, 0, errors.New("the object has no variable of that name")
	}
	b := k.sections[v.Section]
	if b == nil {
		size := (int(m.ValueSize()) + os.Getpagesize() - 1) &^ (os.Getpagesize() - 1)
		var err error
		if b, err = unix.Mmap(m.FD(), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
			return nil, 0, fmt.Errorf("map %s into memory: %w", v.Section, err)
		}
		k.sections[v.Section] = b
	}
	if uint64(v.Offset)+uint64(v.Size) > uint64(len(b)) || v.Offset%v.Size != 0 {
		return nil, 0, fmt.Errorf("it is at %d of %s", v.Offset, v.Section)
	}
	return unsafe.Pointer(&b[v.Offset]), v.Size, nil
}
