package agent

import (
	"encoding/json"
	"errors"
	"testing"
	"time"

	"github.com/pavise-project/pavise"
	"github.com/pavise-project/pavise/enforce"
	"github.com/pavise-project/pavise/internal/kerntest"
	"golang.org/x/sys/unix"
)

// TestKernelClockJump sets the clock of a virtual machine an hour on, and two hours back: what is in force stays in force, a change that waits to be confirmed waits its
// time and no other, events have the new time, and the history has all of them.
func TestKernelClockJump(t *testing.T) {
	if kerntest.VM() == "" {
		t.Skip(kerntest.NotExpected + "it sets the machine's clock")
	}
	k, c := kernelAgent(t, func(_ *enforce.Enforcer, cfg *Config) { cfg.StateDir, cfg.HistoryBytes = t.TempDir(), 16<<20 })
	if !k.Machine()[pavise.OpConnect].Deny {
		t.Skip(kerntest.NotExpected + "net.connect cannot be denied")
	}
	const wait = 40 * time.Second
	begin := sinceBoot()
	if _, err := c.Apply(t.Context(), "test.yaml", deniesNets(91), nil, ApplyOptions{ConfirmWithin: wait}); err != nil {
		t.Fatal(err)
	}
	var now unix.Timespec
	for i, by := range []time.Duration{0, time.Hour, -2 * time.Hour, time.Hour} {
		if err := unix.ClockGettime(unix.CLOCK_REALTIME, &now); err != nil {
			t.Fatal(err)
		}
		to := unix.NsecToTimespec(now.Nano() + int64(by))
		if err := unix.ClockSettime(unix.CLOCK_REALTIME, &to); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Second) // the agent looks once a second
		if err := connectTo(91, byte(i)); !errors.Is(err, unix.EPERM) {
			t.Errorf("the clock was set by %s: connect: %v, want it denied", by, err)
		}
		s, err := c.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if waits := sinceBoot()-begin < wait; (s.ConfirmBy != nil) != waits {
			t.Fatalf("the clock was set by %s: the change waits to be confirmed: %v, after %s of %s", by, s.ConfirmBy, sinceBoot()-begin, wait)
		}
		time.Sleep(200 * time.Millisecond)
		var last pavise.Event
		if err := c.Events(t.Context(), EventQuery{Limit: 1, Where: `action == "deny"`}, func(line []byte) error { return json.Unmarshal(line, &last) }); err != nil {
			t.Fatal(err)
		}
		if off := time.Since(time.Unix(0, last.Time)); last.Op != pavise.OpConnect || off.Abs() > 30*time.Second {
			t.Errorf("the clock was set by %s: the last event, %s, is %s from now", by, last.Op, off)
		}
	}
	if _, err := c.Confirm(t.Context()); err != nil {
		t.Errorf("confirm in time: %v", err)
	}
	denied := 0
	err := c.History(t.Context(), HistoryQuery{Limit: -1, Where: `action == "deny"`}, func(l *HistoryLine) error {
		if l.Event != nil {
			denied++
		}
		return nil
	})
	if err != nil || denied != 4 {
		t.Errorf("the history has %d denied connects, want 4: %v", denied, err)
	}
}
