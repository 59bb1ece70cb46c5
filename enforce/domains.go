package enforce

import (
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"github.com/pavise-project/pavise/bpf"
	"github.com/pavise-project/pavise/policy"
	"golang.org/x/sys/unix"
)

// This file ties domain names to addresses for rules on net.remote.domain: what an Image asks of names is a set of addresses (policy/domains.go), whose entries come
// and go here, in the maps that judge, without a new generation.

const (
	// maxNamed is how many addresses can have a name that some policy asks about, each in one network namespace. 1.5 MiB while there is such a policy.
	maxNamed = 16384
	// strangers is after how long, about, entries go that this agent knows nothing of: an agent before it made them, or the kernel, and the agent was not told.
	strangers = time.Hour
)

// ErrTooManyNamed is returned when an address with a name finds no place.
var ErrTooManyNamed = fmt.Errorf("too many addresses have names that policies ask about: %d are the limit", maxNamed)

// NamedAddress is an address in a network namespace, by the inode number of that.
type NamedAddress struct {
	NetNS   uint32
	Address netip.Addr
}

func (n NamedAddress) key() bpf.KernelSetPrefix {
	a := n.Address.As16()
	return bpf.KernelSetPrefix{Hi: binary.BigEndian.Uint64(a[:]), Lo: binary.BigEndian.Uint64(a[8:]), Bits: uint64(n.NetNS)<<32 | bpf.KernelNamed}
}

// domains are the names that addresses have now. Its lock comes after Enforcer.mu, and is held where a slot is filled: no name is missed in between.
type domains struct {
	mu    sync.Mutex
	names map[NamedAddress][]string
	// What the maps have beside these goes at that time.
	purge time.Time
}

// add appends what is named to the entries of an Image.
func (d *domains) add(img *policy.Image, e entries[bpf.KernelSetPrefix]) entries[bpf.KernelSetPrefix] {
	room := maxNamed
	for a, names := range d.names {
		if mask := img.Named(names); mask != 0 && room > 0 {
			e.keys, e.bits = append(e.keys, a.key()), append(e.bits, mask)
			room--
		}
	}
	return e
}

// Named gives an address names, beside those that it has. Rules hold for it by these when the call has returned.
func (e *Enforcer) Named(a NamedAddress, names []string) error {
	d := &e.sets.domains
	d.mu.Lock()
	defer d.mu.Unlock()
	all := slices.Clone(d.names[a])
	for _, n := range names {
		if !slices.Contains(all, n) {
			all = append(all, n)
		}
	}
	if len(all) == len(d.names[a]) {
		return nil
	}
	return e.rename(a, all)
}

// NamedAre replaces all names. What is the same costs nothing in the kernel.
func (e *Enforcer) NamedAre(all iter.Seq2[NamedAddress, []string]) error {
	d := &e.sets.domains
	d.mu.Lock()
	defer d.mu.Unlock()
	next := map[NamedAddress][]string{}
	for a, names := range all {
		for _, n := range names {
			if !slices.Contains(next[a], n) {
				next[a] = append(next[a], n)
			}
		}
	}
	var errs []error
	for a := range maps.Keys(d.names) {
		if _, ok := next[a]; !ok {
			errs = append(errs, e.rename(a, nil))
		}
	}
	for a, names := range next {
		if !sameNames(names, d.names[a]) {
			errs = append(errs, e.rename(a, names))
		}
	}
	switch now := time.Now(); {
	case d.purge.IsZero():
		d.purge = now.Add(strangers)
	case now.After(d.purge):
		d.purge = now.Add(strangers)
		errs = append(errs, e.purgeNamed())
	}
	return errors.Join(errs...)
}

func sameNames(a, b []string) bool {
	return len(a) == len(b) && !slices.ContainsFunc(a, func(n string) bool { return !slices.Contains(b, n) })
}

// rename gives an address other names, none for nil.
func (e *Enforcer) rename(a NamedAddress, names []string) error {
	d := &e.sets.domains
	if len(names) == 0 {
		delete(d.names, a)
	} else {
		if d.names == nil {
			d.names = map[NamedAddress][]string{}
		}
		d.names[a] = names
	}
	for slot, img := range e.sets.images {
		if img == nil {
			continue
		}
		var err error
		if mask := img.Named(names); mask != 0 {
			err = e.k.PutInner("set_prefixes", uint32(slot), a.key(), mask)
		} else {
			err = e.k.DeleteInner("set_prefixes", uint32(slot), a.key())
		}
		switch {
		case errors.Is(err, ebpf.ErrKeyNotExist):
		case errors.Is(err, unix.E2BIG):
			return ErrTooManyNamed
		case err != nil:
			return fmt.Errorf("tell the kernel of the names of %s: %w", a.Address, err)
		}
	}
	return nil
}

// purgeNamed takes away what is not of this agent.
func (e *Enforcer) purgeNamed() error {
	d := &e.sets.domains
	ours := map[bpf.KernelSetPrefix]bool{}
	for a := range d.names {
		ours[a.key()] = true
	}
	var errs []error
	for slot, img := range e.sets.images {
		if img == nil {
			continue
		}
		var other []bpf.KernelSetPrefix
		err := e.k.EachInner("set_prefixes", uint32(slot), func(it *ebpf.MapIterator) error {
			var key bpf.KernelSetPrefix
			var bits uint32
			for it.Next(&key, &bits) {
				if key.Bits>>32 != 0 && !ours[key] {
					other = append(other, key)
				}
			}
			return it.Err()
		})
		errs = append(errs, err)
		for _, key := range other {
			if err := e.k.DeleteInner("set_prefixes", uint32(slot), key); !errors.Is(err, ebpf.ErrKeyNotExist) {
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}

// DomainServer is a server whose answers rules believe: in one network namespace, or, where NetNS is 0, in all.
type DomainServer struct {
	Address netip.Addr
	NetNS   uint32
}

// maxServers is how many there can be.
const maxServers = 32

// DomainServers says whom rules on domain names believe.
func (e *Enforcer) DomainServers(list []DomainServer) error {
	if len(list) > maxServers {
		return fmt.Errorf("believe %d name servers: %d are the limit", len(list), maxServers)
	}
	for i := range maxServers {
		var s bpf.KernelDomainServer
		if i < len(list) {
			s = bpf.KernelDomainServer{Address: list[i].Address.As16(), Netns: list[i].NetNS, Used: 1}
		}
		if err := e.k.PutMap("domain_servers", uint32(i), s); err != nil {
			return fmt.Errorf("tell the kernel whom rules believe: %w", err)
		}
	}
	return nil
}

// Domains are the names that the active policies and the shadow ask about, as policy.Image.Domains has them.
func (e *Enforcer) Domains() (list []string) {
	d := &e.sets.domains
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, img := range e.sets.images {
		if img != nil {
			list = append(list, img.Domains()...)
		}
	}
	slices.Sort(list)
	return slices.Compact(list)
}
