package bpf

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"
)

// How long a record may wait in a ring: the kernel side wakes the reader only for enforced verdicts, because a wake-up for each
// record would cost the processes that are watched. The longer wait is for when nothing came; a ring holds what 200,000 events a second are in it.
const (
	poll     = 10 * time.Millisecond
	idlePoll = 40 * time.Millisecond
)

// burst is how many critical records are read before telemetry gets its turn, so that neither starves.
const burst = 8192

// Rings reads both rings.
type Rings struct {
	critical, telemetry *ringbuf.Reader
	consumer, producer  [2][]byte // of both

	// Turn is called before each round of Read, if it is not nil.
	Turn func() error
}

// NewRings opens the readers.
func (k *Kernel) NewRings() (*Rings, error) { return newRings(k.maps["critical"], k.maps["telemetry"]) }

func newRings(critical, telemetry *ebpf.Map) (*Rings, error) {
	c, err := ringbuf.NewReader(critical)
	if err != nil {
		return nil, fmt.Errorf("open the critical ring: %w", err)
	}
	t, err := ringbuf.NewReader(telemetry)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open the telemetry ring: %w", err), c.Close())
	}
	r, page := &Rings{critical: c, telemetry: t}, os.Getpagesize()
	for i, m := range []*ebpf.Map{critical, telemetry} {
		if r.consumer[i], err = unix.Mmap(m.FD(), 0, page, unix.PROT_READ, unix.MAP_SHARED); err == nil {
			r.producer[i], err = unix.Mmap(m.FD(), int64(page), page, unix.PROT_READ, unix.MAP_SHARED)
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("open a ring: %w", err), r.Close())
		}
	}
	return r, nil
}

// Positions are how many bytes of the critical and the telemetry ring have been written, and how many read, since they were made: whoever has read what was written
// knows it by these.
func (r *Rings) Positions() (written, read [2]uint64) {
	for i := range written {
		written[i] = atomic.LoadUint64((*uint64)(unsafe.Pointer(&r.producer[i][0])))
		read[i] = atomic.LoadUint64((*uint64)(unsafe.Pointer(&r.consumer[i][0])))
	}
	return written, read
}

// Read calls fn with each record until ctx is done or fn fails; then it reads what is still there. Critical records go first, so that a process
// is known before what it did. The record is valid only during the call.
func (r *Rings) Read(ctx context.Context, fn func(rec []byte) error) error {
	var rec ringbuf.Record
	wait := poll
	for {
		if r.Turn != nil {
			if err := r.Turn(); err != nil {
				return err
			}
		}
		last := ctx.Err() != nil
		until := time.Now().Add(wait)
		if last {
			until = time.Now()
		}
		c, err := drain(r.critical, &rec, until, burst, fn)
		if err != nil {
			return err
		}
		t, err := drain(r.telemetry, &rec, time.Now(), burst, fn)
		if err != nil {
			return err
		}
		wait = poll
		if c+t == 0 {
			wait = idlePoll
		}
		if last {
			return nil
		}
	}
}

// Rest calls fn with each record that is there.
func (r *Rings) Rest(fn func(rec []byte) error) error {
	var rec ringbuf.Record
	for {
		c, err := drain(r.critical, &rec, time.Now(), burst, fn)
		if err != nil {
			return err
		}
		t, err := drain(r.telemetry, &rec, time.Now(), burst, fn)
		if err != nil || c+t == 0 {
			return err
		}
	}
}

// drain reads records until there are none by the deadline, or max of them.
func drain(r *ringbuf.Reader, rec *ringbuf.Record, deadline time.Time, most int, fn func([]byte) error) (n int, err error) {
	r.SetDeadline(deadline)
	for n < most {
		switch err := r.ReadInto(rec); {
		case err == nil:
		case errors.Is(err, os.ErrDeadlineExceeded):
			return n, nil
		default:
			return n, fmt.Errorf("read a ring: %w", err)
		}
		n++
		if err := fn(rec.RawSample); err != nil {
			return n, err
		}
	}
	return n, nil
}

// Close closes both readers.
func (r *Rings) Close() error {
	errs := []error{r.critical.Close(), r.telemetry.Close()}
	for _, b := range append(r.consumer[:], r.producer[:]...) {
		if b != nil {
			errs = append(errs, unix.Munmap(b))
		}
	}
	r.consumer, r.producer = [2][]byte{}, [2][]byte{}
	return errors.Join(errs...)
}
