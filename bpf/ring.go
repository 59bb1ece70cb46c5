package bpf

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/cilium/ebpf/ringbuf"
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
}

// NewRings opens the readers.
func (k *Kernel) NewRings() (*Rings, error) {
	c, err := ringbuf.NewReader(k.maps["critical"])
	if err != nil {
		return nil, fmt.Errorf("open the critical ring: %w", err)
	}
	t, err := ringbuf.NewReader(k.maps["telemetry"])
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open the telemetry ring: %w", err), c.Close())
	}
	return &Rings{c, t}, nil
}

// Read calls fn with each record until ctx is done or fn fails; then it reads what is still there. Critical records go first, so that a process
// is known before what it did. The record is valid only during the call.
func (r *Rings) Read(ctx context.Context, fn func(rec []byte) error) error {
	var rec ringbuf.Record
	wait := poll
	for {
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
func (r *Rings) Close() error { return errors.Join(r.critical.Close(), r.telemetry.Close()) }
