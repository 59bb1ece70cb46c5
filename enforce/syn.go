package enforce

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/pavise-project/pavise"
	"github.com/pavise-project/pavise/bpf"
	"github.com/pavise-project/pavise/policy"
	"golang.org/x/sys/unix"
)

// This file has the kernel drop SYNs that nobody would accept (bpf/syn.bpf.c), while an enforced rule denies net.accept. It is beside what judges accept(2), and without it
// that is all there is.

const (
	onSynListen = "on_syn_listen"
	foundSyn    = "found_syn_listener"
	opSyn       = pavise.Op(63) // OP_SYN in bpf/event.h
)

var errAnswered = errors.New("the SYN was answered")

// syns are the state of it.
type syns struct {
	program string // that drops them; "" where none can
	found   bool
	why     error // why it cannot be here
	lost    uint64
	looks   int // Refreshes until who listens is looked for again
	wait    int // and how many it was, the last time
}

// chooseSyn finds out what drops SYNs where net.accept is judged as it is here.
func (e *Enforcer) chooseSyn() error {
	accept := &e.status[pavise.OpAccept]
	hook := map[pavise.Rung][2]string{pavise.RungLSM: {"lsm_conn_request", "bpf_lsm_inet_conn_request"}, pavise.RungFmodRet: {"fmod_conn_request", "security_inet_conn_request"}}[accept.Rung]
	switch {
	case hook[0] != "":
		ok, err := e.k.Function(hook[1])
		if err != nil || !ok {
			return err
		}
		e.syns.program = hook[0]
		accept.Before = []policy.Dim{policy.DimRemoteAddr, policy.DimRemotePort}
	case accept.Rung == pavise.RungKillOnReturn && e.status[pavise.OpConnect].Rung == pavise.RungCgroup:
		e.syns.program = "cg_syn"
	}
	return nil
}

// asksClient tells whether rules on net.accept ask where a connection comes from.
func asksClient(img *policy.Image) bool {
	return slices.ContainsFunc(img.Ops[pavise.OpAccept].Slots, func(s policy.Slot) bool {
		switch img.Automata[s.Automaton].Dim {
		case policy.DimRemoteAddr, policy.DimRemotePort, policy.DimRemoteAddrSets:
			return true
		}
		return false
	})
}

// deniesAccept tells whether an enforced rule of an Image denies net.accept.
func deniesAccept(img *policy.Image) bool {
	return slices.ContainsFunc(img.Ops[pavise.OpAccept].Words, func(w policy.Word) bool {
		return w.Kind != policy.WordAllow && !w.Monitor && w.Action >= pavise.ActionDeny && w.Rate == 0
	})
}

// dropSyns attaches and proves what drops SYNs. Where that fails, need is left without it, and connections are judged when they are accepted. It adds to the programs that were
// not attached before, also when it fails because rules need it.
func (e *Enforcer) dropSyns(img *policy.Image, need map[string]pavise.Op, added []string) ([]string, error) {
	program := e.syns.program
	if !e.syns.found {
		e.syns.why = nil // another time it may do
	}
	for _, p := range []string{onSynListen, program} {
		was := e.k.Attached(p)
		if e.syns.why != nil || was {
			continue
		}
		if p == onSynListen {
			e.syns.why = empty[uint64](e.k.Map("syn_listeners"))
		}
		if err := e.k.Attach(p); err != nil {
			e.syns.why = errors.Join(e.syns.why, fmt.Errorf("attach %s: %w", p, short(err)))
			continue
		}
		added = append(added, p)
	}
	if e.syns.why == nil && !e.syns.found {
		if err := e.findSyn(); err != nil {
			e.syns.why = err
		} else if err := e.proveSyn(); err != nil {
			e.syns.why = fmt.Errorf("prove it on this kernel: %w", err)
		}
		e.syns.found = e.syns.why == nil
	}
	if e.syns.why != nil {
		if len(e.status[pavise.OpAccept].Before) > 0 && asksClient(img) {
			return added, fmt.Errorf("drop SYNs for rules on net.accept that ask who connects: %w", e.syns.why)
		}
		e.log.Warn("connections are judged when they are accepted, not before the SYN is answered", "err", e.syns.why)
		delete(need, onSynListen)
		delete(need, program)
	}
	return added, nil
}

// findSyn finds who has the sockets that listen.
func (e *Enforcer) findSyn() error {
	lost, err := e.k.Variable("syn_lost")
	if err != nil {
		return err
	}
	e.syns.lost = lost
	if err := e.k.Iterate(foundSyn); err != nil {
		return fmt.Errorf("find who listens, for net.accept: %w", err)
	}
	return nil
}

// refreshSyn looks again for who listens, where SYNs came for a socket that one process has, and another than was known. While that does not help, more and more seldom.
func (e *Enforcer) refreshSyn() error {
	s := &e.syns
	if !e.k.Attached(onSynListen) {
		return nil
	}
	lost, err := e.k.Variable("syn_lost")
	if err != nil {
		return err
	}
	switch {
	case s.looks > 0:
		s.looks--
	case lost == s.lost:
		s.wait = 0
	default:
		s.wait = min(2*s.wait+1, 60)
		s.looks = s.wait
		return e.findSyn()
	}
	return nil
}

// proveSyn proves that a SYN to a socket of this process is dropped.
func (e *Enforcer) proveSyn() error {
	return e.as(opSyn, unix.Getpid, func() error {
		return socket(unix.SOCK_STREAM, func(fd int) error {
			if err := errors.Join(unix.Bind(fd, loopback(0)), unix.Listen(fd, 1)); err != nil {
				return err
			}
			to, err := unix.Getsockname(fd)
			if err != nil {
				return err
			}
			return socket(unix.SOCK_STREAM|unix.SOCK_NONBLOCK, func(c int) error {
				switch err := unix.Connect(c, to); {
				case err == nil:
					return errAnswered
				case !errors.Is(err, unix.EINPROGRESS):
					return fmt.Errorf("connect to a socket of its own: %w", err)
				}
				var ctl bpf.KernelControl
				for end := time.Now().Add(time.Second); ctl.SelftestHits == 0 && time.Now().Before(end); time.Sleep(100 * time.Microsecond) {
					if err := e.k.Map("controls").Lookup(uint32(0), &ctl); err != nil {
						return err
					}
				}
				if n, err := unix.Poll([]unix.PollFd{{Fd: int32(c), Events: unix.POLLOUT}}, 0); n > 0 || err != nil && !errors.Is(err, unix.EINTR) {
					return errors.Join(errAnswered, err)
				}
				return nil // that the program was called is seen to by e.as
			})
		})
	})
}
