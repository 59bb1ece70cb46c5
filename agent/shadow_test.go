package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pavise-project/pavise"
	"github.com/pavise-project/pavise/enforce"
	"github.com/pavise-project/pavise/policy"
)

// done returns what the kernel was asked to do since the last call.
func (f *fake) done() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := strings.Join(f.did, ", ")
	f.did = nil
	return s
}

// policiesOf are the policies of an Image.
func policiesOf(img *policy.Image) (out []string) {
	for _, r := range img.Rules {
		if !slices.Contains(out, r.Policy) {
			out = append(out, r.Policy)
		}
	}
	return out
}

func TestShadow(t *testing.T) {
	f := newFake()
	var img *policy.Image
	f.shadow = func(i *policy.Image) (enforce.Applied, error) {
		img = i
		return enforce.Applied{}, nil
	}
	f.counts = func() (c enforce.ShadowCounters) {
		c.RuleHits, c.RuleStricter = make([]uint64, len(img.Rules)), make([]uint64, len(img.Rules))
		for i := range img.Rules {
			c.RuleHits[i], c.RuleStricter[i] = 10, 4
		}
		c.Ops[pavise.OpOpen] = enforce.ShadowCount{Judged: 10, Stricter: 4, Laxer: 1}
		return c
	}
	a, c := running(t, f, nil)
	ctx := context.Background()
	apply := func(name, mode string) {
		t.Helper()
		if _, err := c.Apply(ctx, "x.yaml", []byte(shadow(name, mode)), nil, ApplyOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	get := func() *Shadow {
		t.Helper()
		s, err := c.Shadow(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	apply("web", "monitor")
	apply("db", "monitor")
	f.done()

	var ae *APIError
	if _, err := c.EndShadow(ctx); !errors.As(err, &ae) || ae.Status != 404 || !strings.Contains(err.Error(), "no shadow is on") {
		t.Errorf("an end of nothing: %v", err)
	}
	for _, bad := range []string{"", shadow("x", "maybe"), shadow("x", "enforce") + "---\n" + shadow("x", "enforce")} {
		if _, err := c.SetShadow(ctx, "bad.yaml", []byte(bad), nil); !errors.As(err, &ae) || !ae.BadPolicy() {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if s := get(); s.On || len(s.Policies) > 0 || f.done() != "" {
		t.Errorf("after nothing but faults: %+v", s)
	}

	// One policy of the candidate replaces an active one, another is added.
	s, err := c.SetShadow(ctx, "x.yaml", []byte(shadow("web", "enforce")+"---\n"+shadow("new", "enforce")), nil)
	if err != nil {
		t.Fatal(err)
	}
	if !s.On || len(s.Policies) != 2 || s.Policies[0].Name != "new" || s.Policies[0].Change != "added" || s.Policies[1].Change != "replaced" || s.Total <= 0 {
		t.Errorf("%+v", s)
	}
	if got := policiesOf(img); !slices.Equal(got, []string{"db", "new", "web"}) || f.done() != "shadow" {
		t.Errorf("the candidate has %v", got)
	}
	for _, r := range img.Rules {
		if r.Monitor != (r.Policy == "db") {
			t.Errorf("%s is in the candidate with monitor %v", r.Policy, r.Monitor)
		}
	}
	if r := s.Policies[1].Rules[0]; r.State != "enforced" || r.Hits != 10 || r.Stricter != 4 {
		t.Errorf("rule %+v", r)
	}
	if want := []ShadowCount{{"file.open", 10, 4, 1}}; !slices.Equal(s.Ops, want) {
		t.Errorf("operations %+v", s.Ops)
	}
	if p := a.policyStatus("web"); p[0].Mode != "monitor" || p[0].Rules[0].State != "monitored" {
		t.Errorf("the active policy is %+v", p[0])
	}

	// The active policies change: the candidate is made of them, and what it has counted stays where its policies did.
	first := s.Generation
	apply("late", "monitor")
	if got, did := policiesOf(img), f.done(); !slices.Equal(got, []string{"db", "late", "new", "web"}) || did != "apply, shadow" {
		t.Errorf("the candidate has %v after %s", got, did)
	}
	s = get()
	if s.Generation == first || s.Policies[1].Rules[0].Hits != 20 || s.Policies[1].Rules[0].Stricter != 8 || s.Ops[0] != (ShadowCount{"file.open", 20, 8, 2}) {
		t.Errorf("%+v", s)
	}

	// Its events find its rules, whatever happens to the active ones.
	last := s.Generation
	for i := range 2 * keepGenerations {
		if _, err := c.Apply(ctx, "x.yaml", []byte(shadow(fmt.Sprint("p", i%3), "monitor")), nil, ApplyOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	s = get()
	ev := func(gen uint32, shadow pavise.Decision) *pavise.Event {
		e := &pavise.Event{Op: pavise.OpOpen, Action: pavise.ActionDeny, Monitor: true, Shadow: shadow, Active: pavise.DecisionWouldDeny, Matched: 1, Gen: gen}
		for i, r := range img.Rules {
			if r.Policy == "new" {
				e.RuleIDs[0] = uint32(i)
			}
		}
		return e
	}
	if e := ev(s.Generation, pavise.DecisionDeny); s.Generation == last || !a.name(e) || e.Policy != "new" || !e.Monitor {
		t.Errorf("an event of the candidate's is named %q", e.Policy)
	}

	// A change that fails in the kernel leaves the candidate as it is.
	f.done()
	f.apply = func(*policy.Image) (enforce.Applied, error) { return enforce.Applied{}, errors.New("stage: no space") }
	if _, err := c.Apply(ctx, "x.yaml", []byte(shadow("more", "monitor")), nil, ApplyOptions{}); err == nil {
		t.Error("applied")
	}
	f.apply = nil
	if did := f.done(); did != "apply" || get().Generation != s.Generation {
		t.Errorf("after a change that failed: %s", did)
	}
	// Where it has ended for that, it begins again with what it had counted.
	hits := get().Policies[0].Rules[0].Hits
	f.apply = func(*policy.Image) (enforce.Applied, error) {
		f.mu.Lock()
		defer f.mu.Unlock()
		return enforce.Applied{Shadow: f.ended()}, errors.New("stage: no space")
	}
	if _, err := c.Apply(ctx, "x.yaml", []byte(shadow("more", "monitor")), nil, ApplyOptions{}); err == nil {
		t.Error("applied")
	}
	f.apply = nil
	if did := f.done(); did != "apply, shadow" || get().Policies[0].Rules[0].Hits != hits+10 || !get().On {
		t.Errorf("after a change that failed late: %s, %+v", did, get())
	}

	if s, err = c.EndShadow(ctx); err != nil || s.On || s.Ended != "" || len(s.Ops) != 1 || s.Policies[0].Rules[0].Hits == 0 {
		t.Errorf("%v, %+v", err, s)
	}
	if did := f.done(); did != "end" {
		t.Errorf("the end: %s", did)
	}
	apply("late", "monitor")
	if did := f.done(); did != "apply" {
		t.Errorf("a change after the end: %s", did)
	}
	if again := get(); again.On || again.Policies[0].Rules[0].Hits != s.Policies[0].Rules[0].Hits {
		t.Errorf("after the end: %+v", again)
	}
}

func TestShadowEndsByItself(t *testing.T) {
	f := newFake()
	_, c := running(t, f, nil)
	ctx := context.Background()
	set := func() {
		t.Helper()
		if _, err := c.SetShadow(ctx, "x.yaml", []byte(shadow("web", "enforce")), nil); err != nil {
			t.Fatal(err)
		}
		f.done()
	}
	ended := func(did, why string) {
		t.Helper()
		s, err := c.Shadow(ctx)
		if err != nil || s.On || !strings.Contains(s.Ended, why) {
			t.Errorf("%v, %+v, want an end because %q", err, s, why)
		}
		if got := f.done(); got != did {
			t.Errorf("the kernel was asked to %s, want %s", got, did)
		}
	}
	set()
	if _, err := c.Apply(ctx, "x.yaml", []byte(shadow("web", "enforce")), nil, ApplyOptions{}); err != nil {
		t.Fatal(err)
	}
	ended("apply, end", "active now")

	// What it can no longer be made of does not hold up the change.
	if _, err := c.Delete(ctx, "web"); err != nil {
		t.Fatal(err)
	}
	set()
	f.shadow = func(*policy.Image) (enforce.Applied, error) { return enforce.Applied{}, errors.New("stage: no space") }
	if _, err := c.Apply(ctx, "x.yaml", []byte(shadow("db", "enforce")), nil, ApplyOptions{}); err != nil {
		t.Fatal(err)
	}
	ended("apply, shadow, end", "no space")
	if ps, _, err := c.Policies(ctx); err != nil || len(ps) != 1 || ps[0].Name != "db" {
		t.Errorf("%v, %+v", err, ps)
	}

	// One that the kernel refuses never was.
	if _, err := c.SetShadow(ctx, "x.yaml", []byte(shadow("web", "enforce")), nil); err == nil {
		t.Error("a candidate that the kernel refuses is on")
	}
	if s, err := c.Shadow(ctx); err != nil || s.On {
		t.Errorf("%v, %+v", err, s)
	}
}

// TestShadowReplaced: a candidate that fails leaves the one before it as it was, also where that had to end for it.
func TestShadowReplaced(t *testing.T) {
	f := newFake()
	var failed bool
	f.shadow = func(img *policy.Image) (enforce.Applied, error) {
		if failed || !slices.Contains(policiesOf(img), "bad") {
			return enforce.Applied{}, nil
		}
		failed = true
		f.mu.Lock()
		defer f.mu.Unlock()
		return enforce.Applied{Shadow: f.ended()}, errors.New("stage: no space")
	}
	f.counts = func() (c enforce.ShadowCounters) {
		c.RuleHits, c.RuleStricter = []uint64{7}, []uint64{3}
		return c
	}
	_, c := running(t, f, nil)
	ctx := context.Background()
	if _, err := c.SetShadow(ctx, "x.yaml", []byte(shadow("web", "enforce")), nil); err != nil {
		t.Fatal(err)
	}
	f.done()
	if _, err := c.SetShadow(ctx, "x.yaml", []byte(shadow("bad", "enforce")), nil); err == nil {
		t.Error("a candidate that the kernel refuses is on")
	}
	s, err := c.Shadow(ctx)
	if err != nil || !s.On || len(s.Policies) != 1 || s.Policies[0].Name != "web" || s.Policies[0].Rules[0].Hits != 14 {
		t.Errorf("%v, %+v", err, s)
	}
	if did := f.done(); did != "shadow, shadow" {
		t.Errorf("the kernel was asked to %s", did)
	}
	if _, err := c.SetShadow(ctx, "x.yaml", []byte(shadow("bad", "enforce")), nil); err != nil {
		t.Fatal(err)
	}
	if s, err = c.Shadow(ctx); err != nil || s.Policies[0].Name != "bad" || s.Policies[0].Rules[0].Hits != 7 {
		t.Errorf("%v, %+v", err, s)
	}
}

// TestShadowFollowsContainers: what only the candidate asks about changes it, and not the active policies.
func TestShadowFollowsContainers(t *testing.T) {
	cgroups := t.TempDir()
	if err := os.MkdirAll(filepath.Join(cgroups, "docker", containerID(0)), 0o755); err != nil {
		t.Fatal(err)
	}
	f := newFake()
	var kills atomic.Bool
	f.shadow = func(img *policy.Image) (enforce.Applied, error) {
		var facts policy.Facts
		facts.Values[policy.DimPath] = []byte("/secret")
		facts.Values[policy.DimCgroup] = []byte("/docker/" + containerID(0))
		kills.Store(img.Judge(pavise.OpOpen, &facts).Action == pavise.ActionKill)
		return enforce.Applied{}, nil
	}
	_, c := running(t, f, func(cfg *Config) { cfg.ContainerState, cfg.Cgroups = dockerState(t, "nginx:1.27"), []string{cgroups} })
	if _, err := c.SetShadow(t.Context(), "x.yaml", []byte(fmt.Sprintf(imageYAML, "/secret")), nil); err != nil {
		t.Fatal(err)
	}
	if kills.Load() {
		t.Error("a container that nobody has seen is known")
	}
	f.done()
	e := &pavise.Event{Op: pavise.OpExec, PID: 9000000, ExecID: 100}
	e.Exec = pavise.ExecInfo{StartTime: 1, CgroupID: 1, Cgroup: "/docker/" + containerID(0)}
	f.recs <- e
	eventually(t, "the candidate follows a container", kills.Load)
	if did := f.done(); did != "shadow" {
		t.Errorf("the kernel was asked to %s", did)
	}
}

// TestPromote: what was tried becomes what is in force, as a revision, unless it was stricter than it may be.
func TestPromote(t *testing.T) {
	f := newFake()
	f.counts = func() (c enforce.ShadowCounters) {
		c.RuleHits, c.RuleStricter = []uint64{9, 9}, []uint64{0, 4}
		c.Ops[pavise.OpOpen] = enforce.ShadowCount{Judged: 9, Stricter: 4}
		return c
	}
	a, c := running(t, f, func(c *Config) { c.StateDir = t.TempDir() })
	ctx := t.Context()
	var ae *APIError
	if _, err := c.Promote(ctx, -1, ApplyOptions{}); !errors.As(err, &ae) || ae.Status != 404 {
		t.Errorf("nothing was begun: %v", err)
	}
	if _, err := c.Apply(ctx, "a.yaml", []byte(shadow("db", "enforce")), nil, ApplyOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.SetShadow(ctx, "b.yaml", []byte(shadow("web", "enforce")), nil); err != nil {
		t.Fatal(err)
	}
	before := a.revision()
	if _, err := c.Promote(ctx, 3, ApplyOptions{}); !errors.As(err, &ae) || ae.Status != 409 || !strings.Contains(err.Error(), "4 times since") || !strings.Contains(err.Error(), "web/shadow 4") {
		t.Errorf("stricter than it may be: %v", err)
	}
	if ch, err := c.Promote(ctx, 4, ApplyOptions{DryRun: true}); err != nil || !ch.DryRun || len(ch.Policies) != 1 || ch.Policies[0].Name != "web" {
		t.Errorf("dry run: %+v, %v", ch, err)
	}
	if a.revision() != before || a.set.Load().find("web") != nil {
		t.Error("what was refused, or a dry run, changed something")
	}
	ch, err := c.Promote(ctx, 4, ApplyOptions{ConfirmWithin: time.Minute})
	if err != nil || ch.Revision != before+1 || ch.ConfirmBy == nil {
		t.Fatalf("%+v, %v", ch, err)
	}
	if set := a.set.Load(); set.find("web") == nil || set.find("db") == nil {
		t.Errorf("%d policies are active", len(set.policies))
	}
	if sh, err := c.Shadow(ctx); err != nil || sh.On || sh.Ended != "its policies are active now" {
		t.Errorf("%+v, %v", sh, err)
	}
	revs, _, err := a.Revisions()
	if err != nil || revs[len(revs)-1].From != "promote web" {
		t.Errorf("%+v, %v", revs, err)
	}
	if _, err := c.Promote(ctx, -1, ApplyOptions{}); !errors.As(err, &ae) || ae.Status != 404 {
		t.Errorf("a second time: %v", err)
	}
}
