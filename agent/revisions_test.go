package agent

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pavise-project/pavise/enforce"
	"github.com/pavise-project/pavise/policy"
	"github.com/pavise-project/pavise/store"
)

// session is one life of an agent with a state directory.
func session(t *testing.T, state string, start string, f *fake, live func(a *Agent, c *Client)) error {
	t.Helper()
	ready := make(chan struct{})
	a := newAgent(t, f, func(cfg *Config) {
		cfg.StateDir = state
		if start != "" {
			cfg.Policies = parse(t, start)
		}
		cfg.OnReady = func(*Status) { close(ready) }
	})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	select {
	case <-ready:
	case err := <-done:
		return err
	}
	c := NewClient(a.cfg.Socket)
	defer c.Close()
	live(a, c)
	cancel()
	return <-done
}

func policyNames(a *Agent) string {
	var out []string
	for _, p := range a.set.Load().policies {
		out = append(out, p.Name+" "+string(p.Mode))
	}
	return strings.Join(out, ", ")
}

func expect(t *testing.T, what, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s: %q, want %q", what, got, want)
	}
}

func TestRevisionsSurvive(t *testing.T) {
	state := t.TempDir()
	file := shadow("one", "monitor")
	must(t, session(t, state, file, newFake(), func(a *Agent, c *Client) {
		ch, err := c.Apply(t.Context(), "x.yaml", []byte(shadow("two", "monitor")), nil, ApplyOptions{})
		if err != nil || ch.Revision != 2 {
			t.Errorf("%+v %v", ch, err)
		}
		if _, err := c.SetMode(t.Context(), "one", "enforce", false); err != nil {
			t.Error(err)
		}
		revs, damaged, err := c.Revisions(t.Context())
		must(t, err)
		if len(revs) != 3 || len(damaged) != 0 || revs[1].From != "apply two" || revs[1].By.UID == nil || *revs[1].By.UID != uint32(os.Getuid()) || revs[1].By.PID != int32(os.Getpid()) || !revs[2].Current {
			t.Errorf("%+v %v", revs, damaged)
		}
		expect(t, "names", strings.Join(revs[1].Policies, " "), "one two")
	}))
	// The same files: what was in force is in force.
	must(t, session(t, state, file, newFake(), func(a *Agent, c *Client) {
		expect(t, "again", policyNames(a), "one enforce, two monitor")
		if n := a.revision(); n != 3 {
			t.Error("revision", n)
		}
		// The one before, and back.
		ch, err := c.Rollback(t.Context(), 0, ApplyOptions{})
		if err != nil || ch.Revision != 4 {
			t.Errorf("%+v %v", ch, err)
		}
		expect(t, "rolled back", policyNames(a), "one monitor, two monitor")
		if _, err := c.Rollback(t.Context(), 3, ApplyOptions{}); err != nil {
			t.Error(err)
		}
		expect(t, "and forth", policyNames(a), "one enforce, two monitor")
		if _, err := c.Rollback(t.Context(), 77, ApplyOptions{}); err == nil || !strings.Contains(err.Error(), "no such revision: 77") {
			t.Error(err)
		}
	}))
	// The file was edited: it is newer than what was in force. What was applied stays.
	edited := shadow("one", "monitor") + "---\n" + shadow("three", "monitor")
	must(t, session(t, state, edited, newFake(), func(a *Agent, c *Client) {
		expect(t, "edited", policyNames(a), "one monitor, three monitor, two monitor")
	}))
	must(t, session(t, state, "", newFake(), func(a *Agent, c *Client) {
		expect(t, "without files", policyNames(a), "two monitor")
		revs, _, err := c.Revisions(t.Context())
		must(t, err)
		expect(t, "from", revs[len(revs)-1].From, "start: policy files changed")
	}))
}

func TestConfirm(t *testing.T) {
	state := t.TempDir()
	in := func(d time.Duration) ApplyOptions { return ApplyOptions{ConfirmWithin: d} }
	must(t, session(t, state, shadow("one", "monitor"), newFake(), func(a *Agent, c *Client) {
		two := []byte(shadow("two", "enforce"))
		if _, err := c.Apply(t.Context(), "x.yaml", two, nil, in(time.Millisecond)); err == nil || !strings.Contains(err.Error(), "1s to 24h") {
			t.Error(err)
		}
		if _, err := c.Confirm(t.Context()); err == nil || !strings.Contains(err.Error(), ErrNotPending.Error()) {
			t.Error(err)
		}
		ch, err := c.Apply(t.Context(), "x.yaml", two, nil, in(time.Hour))
		if err != nil || ch.ConfirmBy == nil {
			t.Fatal(ch, err)
		}
		// One thing at a time.
		if _, err := c.Delete(t.Context(), "one"); err == nil || !strings.Contains(err.Error(), ErrPending.Error()) {
			t.Error(err)
		}
		if n, err := c.Confirm(t.Context()); n != ch.Revision || err != nil {
			t.Error(n, err)
		}
		a.followPending()
		expect(t, "confirmed", policyNames(a), "one monitor, two enforce")

		// Not confirmed: the node goes back by itself.
		if _, err := c.Apply(t.Context(), "x.yaml", []byte(shadow("three", "enforce")), nil, in(time.Hour)); err != nil {
			t.Fatal(err)
		}
		a.followPending()
		expect(t, "in time", policyNames(a), "one monitor, three enforce, two enforce")
		expire(t, a)
		a.followPending()
		expect(t, "too late", policyNames(a), "one monitor, two enforce")
		revs, _, err := c.Revisions(t.Context())
		must(t, err)
		expect(t, "from", revs[len(revs)-1].From, "not confirmed: back to 2")

		// Rolled back before its time.
		if _, err := c.Apply(t.Context(), "x.yaml", []byte(shadow("three", "enforce")), nil, in(time.Hour)); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Rollback(t.Context(), 0, ApplyOptions{}); err != nil {
			t.Fatal(err)
		}
		expect(t, "rolled back", policyNames(a), "one monitor, two enforce")
		// And one that the agent's end interrupts.
		if _, err := c.Apply(t.Context(), "x.yaml", []byte(shadow("four", "enforce")), nil, in(time.Hour)); err != nil {
			t.Fatal(err)
		}
	}))
	must(t, session(t, state, shadow("one", "monitor"), newFake(), func(a *Agent, c *Client) {
		expect(t, "still in its time", policyNames(a), "four enforce, one monitor, two enforce")
		expire(t, a)
	}))
	must(t, session(t, state, shadow("one", "monitor"), newFake(), func(a *Agent, c *Client) {
		expect(t, "the agent was away when the time ended", policyNames(a), "one monitor, two enforce")
	}))
}

// expire makes the time to confirm end now.
func expire(t *testing.T, a *Agent) {
	t.Helper()
	c := a.revisions.Current()
	p := *c.Pending
	p.Until = 1
	must(t, a.revisions.Set(store.Current{Revision: c.Revision, Pending: &p}))
}

func TestLate(t *testing.T) {
	for _, c := range []struct {
		p    store.Pending
		late bool
	}{
		{store.Pending{Boot: bootID(), Until: int64(sinceBoot() + time.Hour)}, false},
		{store.Pending{Boot: bootID(), Until: int64(sinceBoot())}, true},
		{store.Pending{Boot: "another", Until: int64(sinceBoot() + time.Hour)}, true},
	} {
		if late(&c.p) != c.late {
			t.Errorf("%+v: late %v", c.p, !c.late)
		}
	}
}

// What fails changes neither the disk nor the kernel.
func TestRevisionFaults(t *testing.T) {
	state := t.TempDir()
	f := newFake()
	must(t, session(t, state, shadow("one", "monitor"), f, func(a *Agent, c *Client) {
		before := a.revision()
		f.apply = func(*policy.Image) (enforce.Applied, error) { return enforce.Applied{}, errors.New("no") }
		if _, err := a.Apply(parse(t, shadow("two", "monitor")), Request{}); err == nil {
			t.Error("applied")
		}
		f.apply = nil
		if a.revision() != before {
			t.Error("in force on disk:", a.revision())
		}
		dir := filepath.Join(state, "revisions")
		must(t, os.Rename(dir, dir+"x"))
		if _, err := a.Apply(parse(t, shadow("two", "monitor")), Request{}); err == nil || !strings.Contains(err.Error(), "keep the revision") {
			t.Error(err)
		}
		must(t, os.Rename(dir+"x", dir))
		expect(t, "after faults", policyNames(a), "one monitor")
		if _, err := a.Apply(parse(t, shadow("two", "monitor")), Request{}); err != nil {
			t.Error(err)
		}
	}))
	// Damage: the one before.
	_, _, err := store.OpenRevisions(filepath.Join(state, "revisions"))
	must(t, err)
	name := filepath.Join(state, "revisions", "current")
	must(t, os.WriteFile(name, []byte("torn"), 0o600))
	must(t, session(t, state, shadow("one", "monitor"), newFake(), func(a *Agent, _ *Client) {
		expect(t, "after a torn pointer", policyNames(a), "one monitor, two monitor")
	}))
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
