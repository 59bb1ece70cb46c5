package agent

import (
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pavise-project/pavise"
	"github.com/pavise-project/pavise/enforce"
	"github.com/pavise-project/pavise/policy"
	"github.com/pavise-project/pavise/policy/learn"
)

// TestLearning goes from the beginning of learning to its acts, with changes of the policies between.
func TestLearning(t *testing.T) {
	f := newFake()
	var mu sync.Mutex
	var img *policy.Image
	var lost uint64
	f.apply = func(i *policy.Image) (enforce.Applied, error) {
		mu.Lock()
		img = i
		mu.Unlock()
		return f.next()
	}
	f.counters = func() (c enforce.Counters, err error) {
		mu.Lock()
		defer mu.Unlock()
		c.Ops[pavise.OpOpen].Lost = lost
		c.Ops[pavise.OpConnect].Lost = 2 * lost
		return c, nil
	}
	a, c := running(t, f, func(c *Config) { c.StateDir = t.TempDir() })
	ctx := t.Context()
	names := func() []string {
		mu.Lock()
		defer mu.Unlock()
		return policiesOf(img)
	}
	rule := func(policy string, name string) uint32 {
		mu.Lock()
		defer mu.Unlock()
		for i := range img.Rules {
			if img.Rules[i].Policy == policy && img.Rules[i].Name == name {
				return uint32(i)
			}
		}
		t.Fatalf("no rule %s/%s", policy, name)
		return 0
	}
	gen := func() uint32 { return a.set.Load().applied.Generation }
	var ae *APIError
	for _, bad := range []struct {
		q    LearnRequest
		want string
	}{
		{LearnRequest{Subject: "true"}, "for must be"},
		{LearnRequest{Subject: "true", For: 31 * 24 * time.Hour}, "at most"},
		{LearnRequest{For: time.Hour}, "subject is missing"},
		{LearnRequest{Subject: "process.exe.pth == \"/x\"", For: time.Hour}, "process.exe.path"},
		{LearnRequest{Subject: "true", For: time.Hour, Ops: []string{"file.opn"}}, "file.opn"},
	} {
		if _, err := c.StartLearning(ctx, bad.q); !errors.As(err, &ae) || !ae.BadPolicy() || !strings.Contains(err.Error(), bad.want) {
			t.Errorf("%+v: %v, want %s", bad.q, err, bad.want)
		}
	}
	if _, err := c.Learning(ctx); !errors.As(err, &ae) || ae.Status != 404 {
		t.Errorf("before anything was learned: %v", err)
	}
	if len(names()) != 0 {
		t.Fatalf("a bad request to learn left %v", names())
	}
	if _, err := c.Apply(ctx, "x.yaml", []byte(shadow("web", "enforce")), nil, ApplyOptions{}); err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	lost = 5
	mu.Unlock()

	st, err := c.StartLearning(ctx, LearnRequest{Subject: `process.exe.path == "/usr/bin/x"`, For: time.Hour, Ops: []string{"file.open", "process.exec"}})
	if err != nil || !st.On || !slices.Equal(st.Ops, []string{"process.exec", "file.open"}) {
		t.Fatalf("%+v, %v", st, err)
	}
	if got := names(); !slices.Equal(got, []string{learningName, "web"}) {
		t.Errorf("the kernel judges by %v", got)
	}
	if _, err := c.StartLearning(ctx, LearnRequest{Subject: "true", For: time.Hour}); !errors.As(err, &ae) || ae.Status != 409 {
		t.Errorf("a second learning: %v", err)
	}
	// What somebody applies and takes away goes on beside it, and its policy is nobody's to take away.
	if _, err := c.Apply(ctx, "x.yaml", []byte(shadow("more", "monitor")), nil, ApplyOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Delete(ctx, learningName); !errors.As(err, &ae) || ae.Status != 404 {
		t.Errorf("delete of what is learned: %v", err)
	}
	if got := names(); !slices.Equal(got, []string{learningName, "more", "web"}) {
		t.Errorf("after an apply, the kernel judges by %v", got)
	}
	revs, _, err := a.Revisions()
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range revs {
		if slices.Contains(r.Policies, learningName) {
			t.Errorf("revision %d has %v", r.Number, r.Policies)
		}
	}
	if _, err := a.Rollback(0, Request{}); err != nil {
		t.Fatal(err)
	}
	if got := names(); !slices.Equal(got, []string{learningName, "web"}) {
		t.Errorf("after going back, the kernel judges by %v", got)
	}

	event := func(op pavise.Op, path string, action pavise.Action, ids ...uint32) *pavise.Event {
		e := &pavise.Event{Op: op, Time: time.Now().UnixNano(), Gen: gen(), Action: action, Matched: uint8(len(ids)), Count: 3, PID: 7, ExecID: 7}
		e.File.Path = path
		copy(e.RuleIDs[:], ids)
		return e
	}
	read := rule(learningName, "read")
	f.recs <- event(pavise.OpOpen, "/etc/a", pavise.ActionAudit, read)
	f.recs <- event(pavise.OpOpen, "/etc/a", pavise.ActionAudit, read)
	f.recs <- event(pavise.OpExec, "/usr/bin/id", pavise.ActionAudit, rule(learningName, "act"))
	f.recs <- event(pavise.OpOpen, "/etc/shadow", pavise.ActionDeny, rule("web", "shadow"), read)
	f.recs <- event(pavise.OpOpen, "/etc/other", pavise.ActionDeny, rule("web", "shadow"))
	mu.Lock()
	lost = 7
	mu.Unlock()
	for deadline := time.Now().Add(10 * time.Second); ; {
		if st, err = c.Learning(ctx); err != nil {
			t.Fatal(err)
		}
		if st.Seen == 12 || time.Now().After(deadline) {
			break
		}
		time.Sleep(time.Millisecond)
	}
	if st.Seen != 12 || st.Acts != 3 || st.Lost != 2 {
		t.Errorf("seen %d in %d acts, lost %d; want 12, 3, 2", st.Seen, st.Acts, st.Lost)
	}
	if st, err = c.EndLearning(ctx); err != nil || st.On || st.Why != "" {
		t.Errorf("%+v, %v", st, err)
	}
	if got := names(); !slices.Equal(got, []string{"web"}) {
		t.Errorf("after the end, the kernel judges by %v", got)
	}
	mu.Lock()
	lost = 100
	mu.Unlock()
	if st, err = c.Learning(ctx); err != nil || st.Lost != 2 {
		t.Errorf("what is lost after the end counts: %+v, %v", st, err)
	}
	if _, err := c.EndLearning(ctx); !errors.As(err, &ae) || ae.Status != 404 {
		t.Errorf("a second end: %v", err)
	}
	var seen learn.Observed
	if err := c.Learned(ctx, &seen); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, act := range seen.Acts() {
		s := act.Event.File.Path
		if act.By != "" {
			s += " flagged by " + act.By
		}
		if act.Count != 3 && act.Count != 6 {
			t.Errorf("%s counted %d times", s, act.Count)
		}
		got = append(got, s)
	}
	if want := []string{"/usr/bin/id", "/etc/a", "/etc/shadow flagged by web/shadow"}; !slices.Equal(got, want) {
		t.Errorf("acts %q, want %q", got, want)
	}
}

// TestLearningEnds: with its time, and not at all when the kernel refuses its policy.
func TestLearningEnds(t *testing.T) {
	f := newFake()
	refuse := true
	f.apply = func(i *policy.Image) (enforce.Applied, error) {
		if refuse && slices.Contains(policiesOf(i), learningName) {
			return enforce.Applied{}, errors.New("no room")
		}
		return f.next()
	}
	a, c := running(t, f, nil)
	q := LearnRequest{Subject: "true", For: 20 * time.Millisecond}
	if _, err := c.StartLearning(t.Context(), q); err == nil || !strings.Contains(err.Error(), "no room") {
		t.Errorf("%v", err)
	}
	if _, err := a.learningStatus(); !errors.Is(err, ErrNoLearning) {
		t.Errorf("%v", err)
	}
	refuse = false
	if _, err := c.StartLearning(t.Context(), q); err != nil {
		t.Fatal(err)
	}
	var st *Learning
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		var err error
		if st, err = c.Learning(t.Context()); err != nil {
			t.Fatal(err)
		}
		if !st.On || time.Now().After(deadline) {
			break
		}
	}
	if st.On || st.Why != "its time is over" {
		t.Errorf("%+v", st)
	}
	if n := len(a.set.Load().image.Rules); n != 0 {
		t.Errorf("%d rules are left", n)
	}
}
