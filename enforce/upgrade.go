package enforce

import (
	"errors"
	"fmt"
	"sync"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/pavise-project/pavise"
	"github.com/pavise-project/pavise/bpf"
	"golang.org/x/sys/unix"
)

// This file is the change from a set of programs to one of another build. The old one goes on, pinned, until the new one judges, so that for a moment both do, and
// the stricter of two verdicts is what happens. Where the layouts are the same, processes keep their identity and what the old rings hold is read; each act is told by
// one of them: by the old one until the new one judges. An act in the microseconds of that switch may be told by both; none is told by nobody.

// other is a set of another build. All of its methods do nothing on nil.
type other struct {
	*bpf.Other

	mu        sync.Mutex
	lifecycle int64 // CLOCK_BOOTTIME from which the new programs tell of processes, 0 before
	verdicts  int64 // and of what was judged
	gone      bool
	lost      [pavise.NumOps]uint64 // that nobody has told
	closed    bool
}

func newOther(p *bpf.Pins) *other {
	o := &other{Other: p.Other()}
	if o.Stats == nil || o.Told == nil {
		return o
	}
	for op := range min(int(pavise.NumOps), int(o.Stats.MaxEntries())) {
		var per []bpf.KernelOpStats
		var told uint64
		if o.Stats.Lookup(uint32(op), &per) != nil || o.Told.Lookup(uint32(op), &told) != nil {
			continue
		}
		var lost uint64
		for _, s := range per {
			lost += s.Lost
		}
		o.lost[op] = lost - min(told, lost)
	}
	return o
}

func sinceBoot() int64 {
	var t unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &t)
	return t.Nano()
}

// begun says that the new programs see processes come and go.
func (o *other) begun() {
	if o != nil {
		o.mu.Lock()
		o.lifecycle = sinceBoot()
		o.mu.Unlock()
	}
}

// judged says that the new programs judge.
func (o *other) judged() {
	if o != nil {
		o.mu.Lock()
		if o.verdicts == 0 {
			o.verdicts = sinceBoot()
		}
		o.mu.Unlock()
	}
}

// removed says that the old programs are detached, or will be in a moment.
func (o *other) removed() {
	if o != nil {
		o.mu.Lock()
		o.gone = true
		o.mu.Unlock()
	}
}

// count adds what the old set had lost.
func (o *other) count(c *Counters) {
	if o == nil {
		return
	}
	c.Unread += o.Unread
	for op, n := range o.lost {
		c.Ops[op].Seen += n
		c.Ops[op].Lost += n
	}
}

// read gives what the old rings hold that the new programs do not tell.
func (o *other) read(fn func(rec []byte) error) error {
	if o == nil || o.Rings == nil {
		return nil
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed {
		return nil
	}
	last := o.gone
	err := o.Rings.Rest(func(rec []byte) error {
		if o.twice(rec) {
			return nil
		}
		return fn(rec)
	})
	o.closed = last // what comes after that is told by the new ones too
	return err
}

// twice tells whether the new programs tell of the same.
func (o *other) twice(rec []byte) bool {
	var h bpf.KernelRecHdr
	if len(rec) < int(unsafe.Sizeof(h)) {
		return false
	}
	copy(unsafe.Slice((*byte)(unsafe.Pointer(&h)), unsafe.Sizeof(h)), rec)
	since := o.verdicts
	if k := bpf.KernelRecKind(h.Kind); k == bpf.KernelRecKindREC_PROC || k == bpf.KernelRecKindREC_EXIT {
		since = o.lifecycle
	}
	return since != 0 && int64(h.Time) >= since
}

// inherit gives the processes the identity that they had in the old set. The new lifecycle programs are attached: what has begun another program since then has one
// already, and keeps it.
func (e *Enforcer) inherit() error {
	if e.other == nil || e.other.Procs == nil {
		return nil
	}
	begin := time.Now()
	procs, n := e.k.Map("procs"), 0
	// First the texts, or a process could have one without them. How many processes will share them is not known before all have been looked at, and changes
	// meanwhile: they stay until sweep finds nobody.
	for name, m := range e.other.Texts {
		var id uint64
		value := make([]byte, m.ValueSize())
		it := m.Iterate()
		for it.Next(&id, &value) {
			(*bpf.KernelTextsShort)(unsafe.Pointer(&value[0])).T.Refs = 1 << 32 // the long ones begin alike
			if err := e.k.Map(name).Update(id, value, ebpf.UpdateNoExist); err != nil && !errors.Is(err, ebpf.ErrKeyExist) {
				return fmt.Errorf("keep the arguments of processes: %w", err)
			}
		}
		if err := it.Err(); err != nil && !errors.Is(err, ebpf.ErrIterationAborted) {
			return fmt.Errorf("keep the arguments of processes: %w", err)
		}
	}
	var failed error
	err := eachProcess(func(pid int) {
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			return // it has ended
		}
		defer unix.Close(fd)
		var p bpf.KernelProc
		if e.other.Procs.Lookup(uint32(fd), &p) != nil || p.ExecId == 0 {
			return
		}
		p.Gen = 0 // the classes are the old set's
		switch err := procs.Update(uint32(fd), &p, ebpf.UpdateNoExist); {
		case err == nil:
			n++
		case !errors.Is(err, ebpf.ErrKeyExist) && !errors.Is(err, unix.ESRCH):
			failed = fmt.Errorf("keep the identity of process %d: %w", pid, err)
		}
	})
	if err = errors.Join(err, failed); err != nil {
		return err
	}
	e.log.Info("processes keep their identity", "processes", n, "took", time.Since(begin))
	return nil
}
