package enforce

import (
	"errors"
	"fmt"
	"runtime"
	"slices"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/pavise-project/pavise"
	"github.com/pavise-project/pavise/bpf"
	"github.com/pavise-project/pavise/policy"
	"golang.org/x/sys/unix"
)

// RungTry is one rung that was tried for an operation.
type RungTry struct {
	Rung pavise.Rung
	OK   bool
	Err  error // why not
}

// OpStatus is what this machine can do about one operation.
type OpStatus struct {
	Op         pavise.Op
	Rung       pavise.Rung // RungNone: it cannot be judged
	Deny, Kill bool
	Why        string // why no higher rung is used; empty at the top
	Notes      []string
	Tried      []RungTry
	Missing    []policy.Dim // facts that this rung does not have
	MissingWhy map[policy.Dim]string
	Before     []policy.Dim // those of Missing that it has before the act
	KillOnly   []policy.Dim // facts that it has only after the act
}

// probe tries one mechanism with the smallest program that needs the same of the kernel.
func (e *Enforcer) probe(r pavise.Rung) error {
	switch r {
	case pavise.RungLSM:
		return e.try("lsm_probe", func() error {
			if _, err := unix.Getpgid(unix.Getpid()); !errors.Is(err, unix.EPERM) {
				return errors.New("the program was attached and is not called: \"bpf\" is not in the kernel's list of security modules (lsm= on its command line)")
			}
			return nil
		})
	case pavise.RungFmodRet:
		return e.try("fmod_probe", func() error {
			if _, err := unix.Getpgid(unix.Getpid()); !errors.Is(err, unix.EPERM) {
				return errors.New("the program was attached and does not deny")
			}
			return nil
		})
	case pavise.RungCgroup:
		err := e.try("probe_cgroup", func() error {
			if err := connectUDP(); !errors.Is(err, unix.EPERM) {
				return fmt.Errorf("the program was attached and does not deny (connect: %w)", err)
			}
			return nil
		})
		if errors.Is(err, unix.EINVAL) {
			err = fmt.Errorf("its programs cannot reach the identity of the caller on this kernel: task storage is closed to them (%w)", err)
		}
		return err
	case pavise.RungKillOnReturn:
		return e.try("probe_return", func() error {
			got, err := signalled(func() { _, _ = unix.Getpgid(unix.Getpid()) })
			if err == nil && !got {
				err = errors.New("the program was attached and its signal does not arrive")
			}
			return err
		})
	}
	return ebpf.ErrNotSupported
}

// try attaches a program, names this thread to it, and lets act see its effect.
func (e *Enforcer) try(program string, act func() error) error {
	if err := e.k.Attach(program); err != nil {
		return short(err)
	}
	err := e.as(pavise.OpNone, unix.Gettid, act)
	return errors.Join(err, e.k.Detach(program))
}

// short cuts a verifier's log to its error.
func short(err error) error {
	var v *ebpf.VerifierError
	switch {
	case errors.As(err, &v) && v.Cause != nil:
		return fmt.Errorf("load the program: %w", v.Cause)
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("the kernel refuses programs of this type (%w)", unix.EPERM)
	}
	return err
}

// as runs act on a locked thread while the control names id as the one that tests op.
func (e *Enforcer) as(op pavise.Op, id func() int, act func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	e.ctl.SelftestTid, e.ctl.SelftestOp, e.ctl.SelftestHits = uint32(id()), uint32(op), 0
	if err := e.putControl(); err != nil {
		return err
	}
	err := act()
	var c bpf.KernelControl
	if lerr := e.k.Map("controls").Lookup(uint32(0), &c); lerr != nil {
		err = errors.Join(err, lerr)
	} else if err == nil && c.SelftestHits == 0 {
		err = errors.New("the program was attached and is not called")
	}
	e.ctl.SelftestTid, e.ctl.SelftestOp, e.ctl.SelftestHits = 0, 0, 0
	return errors.Join(err, e.putControl())
}

func (e *Enforcer) putControl() error {
	// As bytes: the struct has padding, which would be encoded by reflection while it is this write that activates.
	ctl := unsafe.Slice((*byte)(unsafe.Pointer(&e.ctl)), unsafe.Sizeof(e.ctl))
	if err := e.k.Map("controls").Put(uint32(0), ctl); err != nil {
		return fmt.Errorf("write the control: %w", err)
	}
	return nil
}

// choose probes each mechanism once and takes, for each operation, the best that works.
func (e *Enforcer) choose(skip map[pavise.Rung]bool) {
	tried := map[pavise.Rung]error{}
	for _, op := range judged {
		st := OpStatus{Op: op}
		for _, r := range ladder[op] {
			if _, ok := tried[r.rung]; !ok {
				if skip[r.rung] {
					tried[r.rung] = errors.New("switched off by an option")
				} else {
					tried[r.rung] = e.probe(r.rung)
				}
			}
			err := tried[r.rung]
			if err == nil {
				r, err = e.hooked(r)
			}
			st.Tried = append(st.Tried, RungTry{Rung: r.rung, OK: err == nil, Err: err})
			if err != nil {
				if st.Why != "" {
					st.Why += "; "
				}
				st.Why += fmt.Sprintf("%s: %v", r.rung, err)
				continue
			}
			if r.rung == pavise.RungLSM || r.rung == pavise.RungFmodRet {
				e.ctl.Rung = uint32(r.rung)
			}
			if op == pavise.OpSocket && r.rung == pavise.RungCgroup {
				e.ctl.Made = 1
			}
			st.Rung, st.Deny, st.Kill, st.Notes, st.Missing, st.KillOnly = r.rung, r.deny, r.kill, r.notes, r.missing, r.killOnly
			e.rung[op] = r
			break
		}
		e.status[op] = st
		if st.Rung == pavise.RungKillOnReturn && op == pavise.OpExec {
			e.ctl.Hooks |= 1 << op
		}
	}
	e.chooseDigests(tried[pavise.RungLSM])
}

// hooked looks for the hooks of a rung's programs in this kernel: a program that is not optional must have one.
func (e *Enforcer) hooked(r rung) (rung, error) {
	if r.rung != pavise.RungLSM && r.rung != pavise.RungFmodRet {
		return r, nil
	}
	all := slices.Clone(r.programs)
	for _, p := range r.programs {
		switch ok, err := e.k.Hooked(p); {
		case err != nil:
			return r, err
		case !ok:
			return r, fmt.Errorf("this kernel has no hook for it (%s)", p)
		}
	}
	for _, p := range r.optional {
		if ok, err := e.k.Hooked(p); err == nil && ok {
			all = append(all, p)
		}
	}
	r.programs = all
	return r, nil
}

// Machine returns what the compiler must know of this machine, by operation.
func (e *Enforcer) Machine() (m [pavise.NumOps]policy.Support) {
	for op, st := range e.status {
		m[op] = policy.Support{Rung: st.Rung, Deny: st.Deny, Kill: st.Kill, Missing: st.Missing, MissingWhy: st.MissingWhy, Before: st.Before, KillOnly: st.KillOnly, Why: st.Why}
	}
	return m
}

// Doctor attaches what each operation would use, proves it on the live kernel, and tells what it found. Nothing is denied to anyone else.
func (e *Enforcer) Doctor() []OpStatus {
	e.mu.Lock()
	defer e.mu.Unlock()
	var out []OpStatus
	var all []string
	for _, op := range judged {
		if e.status[op].Rung != pavise.RungNone {
			all = append(all, e.rung[op].programs...)
		}
	}
	e.k.Preload(slices.Compact(slices.Sorted(slices.Values(all)))...)
	for _, op := range judged {
		st := e.status[op]
		if st.Rung != pavise.RungNone {
			was := map[string]bool{}
			for _, p := range e.rung[op].programs {
				was[p] = e.k.Attached(p)
			}
			if err := e.prove(op); err != nil {
				st.Why = fmt.Sprintf("%s: the self-test failed: %v", st.Rung, err)
				st.Tried[len(st.Tried)-1] = RungTry{Rung: st.Rung, Err: err}
				st.Rung, st.Deny, st.Kill = pavise.RungNone, false, false
			}
			for _, p := range e.rung[op].programs {
				if !was[p] {
					_ = e.k.Detach(p)
				}
			}
			if op == pavise.OpAccept && e.syns.program != "" {
				added, _ := e.dropSyns(new(policy.Image), map[string]pavise.Op{}, nil)
				for _, p := range added {
					_ = e.drop(p)
				}
				if e.syns.why != nil {
					st.Notes = append(slices.Clone(st.Notes), fmt.Sprintf("no SYN is dropped on this machine: %v", e.syns.why))
				}
			}
		}
		out = append(out, st)
	}
	return out
}
