package enforce

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/pavise-project/pavise"
	"github.com/pavise-project/pavise/bpf"
	"github.com/pavise-project/pavise/policy"
	"golang.org/x/sys/unix"
)

// This file has the kernel know who listens (bpf/listen.bpf.c) and who connects (bpf/connector.bpf.c), while a rule asks for net.remote.process.

const (
	onListen      = "on_listen"
	foundListener = "found_listener"
	onConnecting  = "on_connecting"
	connectAgain  = "on_connecting_again"
	connectBegun  = "connect_begun"
)

// connectors follow who connects: first those that know who it is, then the one that asks that.
var connectors = []string{onConnecting, connectAgain, connectBegun}

// asksPeer reports whether a rule on an operation asks who is at the other end of a connection.
func asksPeer(img *policy.Image, op pavise.Op) bool {
	for _, s := range img.Ops[op].Slots {
		switch img.Automata[s.Automaton].Dim {
		case policy.DimTargetExe, policy.DimTargetExeSets:
			return true
		}
	}
	return false
}

// listen attaches what follows the sockets that listen, and finds those that do already. It adds to the programs that were not attached before, also when it fails.
func (e *Enforcer) listen(added []string) ([]string, error) {
	if e.listening {
		return added, nil
	}
	if !e.k.Attached(onListen) {
		if err := e.forgetListeners(); err != nil {
			return added, err
		}
		if err := e.k.Attach(onListen); err != nil {
			return added, fmt.Errorf("attach %s for net.remote.process: %w", onListen, short(err))
		}
		added = append(added, onListen)
	}
	e.unheard = e.k.Missed()
	// Also of an agent that may have ended before it had found them. Those that are known already stay as they are.
	if err := e.k.Iterate(foundListener); err != nil {
		return added, fmt.Errorf("find who listens, for net.remote.process: %w", err)
	}
	e.listening = true
	return added, nil
}

// refreshListeners looks again for who listens, where the kernel may have skipped on_listen.
func (e *Enforcer) refreshListeners() error {
	missed := e.k.Missed()
	if !e.listening || missed == e.unheard {
		return nil
	}
	e.unheard = missed
	if err := e.k.Iterate(foundListener); err != nil {
		return fmt.Errorf("find who listens, for net.remote.process: %w", err)
	}
	return nil
}

// forgetListeners empties the table of those that were known when it was followed last.
func (e *Enforcer) forgetListeners() error {
	if err := forget[bpf.KernelListenKey](e.k, "listen_epoch", "listen_lost", "listens"); err != nil {
		return fmt.Errorf("forget who listened: %w", err)
	}
	return nil
}

// followConnectors attaches connectors, in this order. It adds to the programs that were not attached before, also when it fails.
func (e *Enforcer) followConnectors(added []string) ([]string, error) {
	if !e.k.Attached(onConnecting) {
		if err := forget[bpf.KernelConnectKey](e.k, "connect_epoch", "connect_lost", "connects"); err != nil {
			return added, fmt.Errorf("forget who connected: %w", err)
		}
	}
	for _, p := range connectors {
		if e.k.Attached(p) {
			continue
		}
		if err := e.k.Attach(p); err != nil {
			return added, fmt.Errorf("attach %s for net.remote.process: %w", p, short(err))
		}
		added = append(added, p)
	}
	return added, nil
}

// forget begins another epoch, with nothing in its table.
func forget[K any](k *bpf.Kernel, epoch, lost, table string) error {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err != nil {
		return fmt.Errorf("read the clock: %w", err)
	}
	if err := k.SetVariable(epoch, uint64(now.Nano())); err != nil {
		return err
	}
	if err := k.SetVariable(lost, 0); err != nil {
		return err
	}
	return empty[K](k.Map(table))
}

// empty deletes all entries of a map, whose keys are of type K.
func empty[K any](m *ebpf.Map) error {
	var key, next K
	err := m.NextKey(nil, &key)
	for ; err == nil; key = next {
		err = m.NextKey(key, &next)
		if derr := m.Delete(key); derr != nil && !errors.Is(derr, ebpf.ErrKeyNotExist) {
			return derr
		}
	}
	if !errors.Is(err, ebpf.ErrKeyNotExist) {
		return err
	}
	return nil
}
