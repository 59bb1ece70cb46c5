package agent

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pavise-project/pavise"
	"github.com/pavise-project/pavise/bpf"
	"github.com/pavise-project/pavise/enforce"
	"github.com/pavise-project/pavise/policy"
)

// fake is a Kernel of func fields; those that are nil do what a kernel without troubles does.
type fake struct {
	machine  func() [pavise.NumOps]policy.Support
	start    func() error
	apply    func(*policy.Image) (enforce.Applied, error)
	read     func(context.Context, func([]byte) error) error
	counters func() (enforce.Counters, error)
	shadow   func(*policy.Image) (enforce.Applied, error)
	counts   func() enforce.ShadowCounters
	shaded   bool
	without  time.Duration // EndWithout
	timed    func() (io.Closer, error)
	runs     func() []bpf.Run
	caughtUp func() bool
	adopted  *enforce.Adopted
	keep     enforce.KeepStatus

	mu     sync.Mutex
	gen    uint32
	closed int
	told   map[pavise.Op]uint64
	did    []string // of applies and shadows, in order
	recs   chan *pavise.Event
}

var _ Kernel = (*fake)(nil)

func newFake() *fake { return &fake{recs: make(chan *pavise.Event, 64)} }

func (f *fake) Machine() [pavise.NumOps]policy.Support {
	if f.machine != nil {
		return f.machine()
	}
	return AnyMachine().Ops
}

func (f *fake) Doctor() []enforce.OpStatus {
	return []enforce.OpStatus{{Op: pavise.OpOpen, Rung: pavise.RungLSM, Deny: true, Tried: []enforce.RungTry{{Rung: pavise.RungLSM, OK: true}}}}
}

func (f *fake) Start() error {
	if f.start != nil {
		return f.start()
	}
	return nil
}

func (f *fake) Position() (p enforce.Position) { return p }

func (f *fake) Reached(enforce.Position) bool { return f.caughtUp == nil || f.caughtUp() }

func (f *fake) Adopted() *enforce.Adopted { return f.adopted }

func (f *fake) Keep() enforce.KeepStatus { return f.keep }

func (f *fake) EndWithout(in time.Duration) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.without = in
	return nil
}

func (f *fake) Told(op pavise.Op, lost uint64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.told == nil {
		f.told = map[pavise.Op]uint64{}
	}
	f.told[op] = lost
	return nil
}

func (f *fake) Apply(img *policy.Image) (enforce.Applied, error) {
	f.note("apply")
	if f.apply != nil {
		return f.apply(img)
	}
	return f.next()
}

func (f *fake) note(what string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.did = append(f.did, what)
}

func (f *fake) next() (enforce.Applied, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.gen++
	c, err := f.Counters()
	return enforce.Applied{Generation: f.gen, Hits: c.RuleHits, Shadow: f.ended()}, err
}

// ended ends the shadow; the caller holds mu.
func (f *fake) ended() *enforce.ShadowCounters {
	if !f.shaded {
		return nil
	}
	f.shaded = false
	c := f.counted()
	return &c
}

func (f *fake) counted() enforce.ShadowCounters {
	if f.counts != nil {
		return f.counts()
	}
	return enforce.ShadowCounters{}
}

func (f *fake) Shadow(img *policy.Image) (enforce.Applied, error) {
	f.note("shadow")
	if f.shadow != nil {
		if a, err := f.shadow(img); err != nil {
			return a, err
		}
	}
	a, err := f.next()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.shaded = true
	return a, err
}

func (f *fake) EndShadow() (c enforce.ShadowCounters, err error) {
	f.note("end")
	f.mu.Lock()
	defer f.mu.Unlock()
	if n := f.ended(); n != nil {
		c = *n
	}
	return c, nil
}

func (f *fake) ShadowCounters() (c enforce.ShadowCounters, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.shaded {
		c = f.counted()
	}
	return c, nil
}

// events are what decodeEvent finds by the number in a record.
var events struct {
	sync.Mutex
	m []*pavise.Event
}

func record(e *pavise.Event) []byte {
	events.Lock()
	defer events.Unlock()
	events.m = append(events.m, e)
	return binary.LittleEndian.AppendUint64(nil, uint64(len(events.m)-1))
}

func decodeEvent(rec []byte, _ int64, e *pavise.Event) error {
	if len(rec) != 8 {
		return errors.New("decode record: truncated")
	}
	events.Lock()
	defer events.Unlock()
	*e = *events.m[binary.LittleEndian.Uint64(rec)]
	return nil
}

func (f *fake) Read(ctx context.Context, fn func([]byte) error) error {
	if f.read != nil {
		return f.read(ctx, fn)
	}
	for {
		select {
		case e := <-f.recs:
			if err := fn(record(e)); err != nil {
				return err
			}
		case <-ctx.Done():
			return nil
		}
	}
}

func (f *fake) Refresh() error { return nil }

func (f *fake) Time() (io.Closer, error) {
	if f.timed != nil {
		return f.timed()
	}
	return io.NopCloser(nil), nil
}

func (f *fake) Runs() []bpf.Run {
	if f.runs != nil {
		return f.runs()
	}
	return nil
}

func (f *fake) Alive() error { return nil }

func (f *fake) Counters() (enforce.Counters, error) {
	if f.counters != nil {
		return f.counters()
	}
	return enforce.Counters{}, nil
}

func (f *fake) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed++
	return nil
}

const shadowYAML = `apiVersion: pavise.dev/v1alpha1
kind: Policy
metadata: {name: %s}
spec:
  mode: %s
  rules:
  - name: shadow
    on: [file.open]
    when: file.path == "/etc/shadow"
    action: deny
`

func shadow(name, mode string) string { return fmt.Sprintf(shadowYAML, name, mode) }

func parse(t *testing.T, src string) []*policy.Policy {
	t.Helper()
	ps, err := policy.Parse("test.yaml", []byte(src))
	if err != nil {
		t.Fatal(err)
	}
	return ps
}

func newAgent(t *testing.T, f *fake, edit func(*Config)) *Agent {
	t.Helper()
	cfg := Config{
		Socket: filepath.Join(t.TempDir(), "p.sock"), Kernel: f, Decode: decodeEvent,
		Log: slog.New(slog.NewTextHandler(testWriter{t}, nil)),
	}
	if edit != nil {
		edit(&cfg)
	}
	a, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(b)))
	return len(b), nil
}

// running runs a until the test ends, and returns when it is ready.
func running(t *testing.T, f *fake, edit func(*Config)) (*Agent, *Client) {
	t.Helper()
	ready, done := make(chan struct{}), make(chan error, 1)
	a := newAgent(t, f, func(c *Config) {
		c.OnReady = func(*Status) { close(ready) }
		if edit != nil {
			edit(c)
		}
	})
	ctx, cancel := context.WithCancel(context.Background())
	go func() { done <- a.Run(ctx) }()
	c := NewClient(a.cfg.Socket)
	c.http.Transport = &conformance{t, c.http.Transport}
	t.Cleanup(func() {
		c.Close()
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
		if f.closed != 1 {
			t.Errorf("kernel closed %d times, want 1", f.closed)
		}
		if _, err := os.Lstat(a.cfg.Socket); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the socket was left: %v", err)
		}
	})
	select {
	case <-ready:
	case err := <-done:
		done <- err
		t.Fatalf("run: %v", err)
	}
	return a, c
}

func TestEventsGetTheirProcessAndRule(t *testing.T) {
	f := newFake()
	got := make(chan *pavise.Event, 16)
	_, c := running(t, f, func(c *Config) {
		c.Policies = parse(t, shadow("secrets", "enforce"))
		c.OnEvent = func(e *pavise.Event) { got <- e }
	})
	exec := &pavise.Event{Op: pavise.OpExec, PID: 9000001, ExecID: 5}
	exec.Exec.Exe.Path, exec.Exec.StartTime = "/usr/bin/cat", 2
	f.recs <- &pavise.Event{Op: pavise.OpExec, PID: 9000000, ExecID: 4, Exec: pavise.ExecInfo{Found: true, StartTime: 1}} // not told
	f.recs <- exec
	f.recs <- &pavise.Event{Op: pavise.OpFork, PID: 9000001, ExecID: 6, Exec: pavise.ExecInfo{Thread: true}} // not told
	f.recs <- &pavise.Event{
		Op: pavise.OpOpen, PID: 9000001, ExecID: 5, Action: pavise.ActionDeny, Matched: 1, Gen: 1, File: pavise.FileInfo{Path: "/etc/shadow"},
	}
	if e := <-got; e.Op != pavise.OpExec || e.ID != 1 {
		t.Errorf("first event is %v %d", e.Op, e.ID)
	}
	e := <-got
	if e.Op != pavise.OpOpen || e.Policy != "secrets" || e.Rule != "shadow" || e.ID != 2 {
		t.Errorf("second event is %+v", e)
	}
	if e.Process == nil || e.Process.Exe.Path != "/usr/bin/cat" {
		t.Errorf("process is %+v", e.Process)
	}
	var lines []string
	if err := c.Events(t.Context(), EventQuery{Limit: -1}, func(l []byte) error { lines = append(lines, string(l)); return nil }); err != nil {
		t.Fatal(err)
	}
	if len(lines) != 2 || !strings.Contains(lines[1], `"/etc/shadow"`) {
		t.Errorf("kept events are %q", lines)
	}
	s, err := c.Status(t.Context())
	if err != nil || s.Generation != 1 || s.Rules != 1 || len(s.Policies) != 1 {
		t.Errorf("status %+v, %v", s, err)
	}
}

func TestRuleNames(t *testing.T) {
	a := newAgent(t, newFake(), nil)
	is := func(path string) *policy.Expr {
		x, err := policy.CompileWhere(fmt.Sprintf("file.path == %q", path))
		if err != nil {
			t.Fatal(err)
		}
		return x
	}
	a.rules.Store((&ruleBook{}).with(7, []policy.Rule{
		{Policy: "p", Name: "plain", Action: pavise.ActionDeny},
		{Policy: "p", Name: "a", Action: pavise.ActionAudit, Residual: is("/a")},
		{Policy: "p", Name: "b", Action: pavise.ActionDeny, Monitor: true, Residual: is("/b")},
	}))
	a.rules.Store(&ruleBook{gens: a.rules.Load().gens, pending: []policy.Rule{{Policy: "new", Name: "r"}}})
	for _, tt := range []struct {
		gen  uint32
		path string
		ids  []uint32
		all  uint8 // rules that matched, when more than named
		want string
	}{
		{7, "/x", []uint32{0}, 0, "p/plain"},
		{7, "/a", []uint32{1}, 0, "p/a"},
		{7, "/x", []uint32{1}, 0, "no"},
		{7, "/b", []uint32{1, 2}, 0, "p/b"},
		{7, "/x", []uint32{1, 2}, 0, "no"},
		{7, "/x", []uint32{1, 2, 1, 2}, 5, "/"},                                      // the fifth may hold
		{7, "/x", []uint32{1, policy.NoRule, policy.NoRule, policy.NoRule}, 7, "no"}, // one rule, seven clauses
		{7, "/x", []uint32{99}, 0, "/"},                                              // judged, whatever its name
		{8, "/x", []uint32{0}, 0, "new/r"},                                           // came before Apply returned
	} {
		e := &pavise.Event{Op: pavise.OpOpen, Gen: tt.gen, Action: pavise.ActionDeny, Matched: max(tt.all, uint8(len(tt.ids)))}
		e.File.Path = tt.path
		copy(e.RuleIDs[:], tt.ids)
		got := "no"
		if a.name(e) {
			got = e.Policy + "/" + e.Rule
		}
		if got != tt.want {
			t.Errorf("gen %d, rules %v, %s: %s, want %s", tt.gen, tt.ids, tt.path, got, tt.want)
		}
	}
	// A rule holds under the other name of a file, too.
	e := &pavise.Event{Op: pavise.OpOpen, Gen: 7, Action: pavise.ActionAudit, Matched: 1, RuleIDs: [4]uint32{1}, File: pavise.FileInfo{Path: "/link", Alias: "/a"}}
	if !a.name(e) || e.Rule != "a" || e.File.Path != "/link" {
		t.Errorf("under its other name: %+v", e)
	}
	e.File.Alias = "/b"
	if a.name(e) {
		t.Errorf("under no name: %+v", e)
	}
	b := &ruleBook{}
	for i := range uint32(100) {
		b = b.with(i, nil)
	}
	if len(b.gens) != keepGenerations {
		t.Errorf("%d generations kept, want %d", len(b.gens), keepGenerations)
	}
}

func TestLossIsTold(t *testing.T) {
	f := newFake()
	var lost uint64
	f.counters = func() (c enforce.Counters, err error) {
		c.Ops[pavise.OpOpen].Lost = lost
		return c, nil
	}
	a := newAgent(t, f, nil)
	_ = a.handle([]byte("short"))
	a.poll()
	a.poll() // nothing new
	lost = 3
	a.poll()
	lost = 10
	a.poll()
	var got []string
	for _, it := range a.hub.last() {
		l := it.event.Lost
		got = append(got, fmt.Sprintf("%s %s %d", l.Op, l.Where, l.Count))
	}
	want := "none decode 1, file.open kernel-ring 3, file.open kernel-ring 7"
	if s := strings.Join(got, ", "); s != want {
		t.Errorf("told %q, want %q", s, want)
	}
}

func TestChangeIsAllOrNothing(t *testing.T) {
	f := newFake()
	a := newAgent(t, f, nil)
	if err := a.activate(a.set.Load()); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Apply(parse(t, shadow("one", "monitor")), Request{}); err != nil {
		t.Fatal(err)
	}
	before, book := a.set.Load(), a.rules.Load()
	same := func(what string) {
		t.Helper()
		if a.set.Load() != before || a.rules.Load() != book {
			t.Errorf("%s changed the policies", what)
		}
	}
	if c, err := a.Apply(parse(t, shadow("two", "monitor")), Request{DryRun: true}); err != nil || !c.DryRun || len(c.Policies) != 1 {
		t.Errorf("dry run: %+v, %v", c, err)
	}
	same("a dry run")
	f.apply = func(*policy.Image) (enforce.Applied, error) { return enforce.Applied{}, errors.New("stage: no space") }
	if _, err := a.Apply(parse(t, shadow("two", "monitor")), Request{}); err == nil {
		t.Error("a failing kernel was not told")
	}
	same("a failing kernel")
	if _, err := a.Delete("one", Request{}); err == nil {
		t.Error("a failing kernel was not told")
	}
	same("a failing kernel")
	f.apply = nil
	if _, err := a.Delete("nothing", Request{}); !errors.Is(err, ErrNoPolicy) {
		t.Errorf("delete of nothing: %v", err)
	}
	same("delete of nothing")
	if _, err := a.Apply(append(parse(t, shadow("two", "monitor")), parse(t, shadow("two", "monitor"))...), Request{}); err == nil {
		t.Error("a name that stands twice was accepted")
	}
	same("a name that stands twice")
	if _, err := a.Apply(nil, Request{}); err == nil {
		t.Error("nothing was accepted")
	}
	a.closed = true
	if _, err := a.Delete("one", Request{}); !errors.Is(err, ErrStopping) {
		t.Errorf("change of a stopping agent: %v", err)
	}
	same("a stopping agent")
}

func TestHitsAreKeptForWhatDidNotChange(t *testing.T) {
	f := newFake()
	f.counters = func() (enforce.Counters, error) { return enforce.Counters{RuleHits: []uint64{5, 5, 5}}, nil }
	a := newAgent(t, f, nil)
	if err := a.activate(a.set.Load()); err != nil {
		t.Fatal(err)
	}
	for _, src := range []string{shadow("kept", "monitor"), shadow("changed", "monitor"), shadow("changed", "enforce")} {
		if _, err := a.Apply(parse(t, src), Request{}); err != nil {
			t.Fatal(err)
		}
	}
	// kept: 5 in each of three generations; changed: 5 since it changed.
	for _, p := range a.policyStatus("") {
		want := map[string]uint64{"kept": 15, "changed": 5}[p.Name]
		if p.Rules[0].Hits != want {
			t.Errorf("%s: %d hits, want %d", p.Name, p.Rules[0].Hits, want)
		}
	}
}

func TestRunEnds(t *testing.T) {
	boom := errors.New("boom")
	for name, tt := range map[string]struct {
		set  func(*fake)
		want error
	}{
		"read":  {func(f *fake) { f.read = func(context.Context, func([]byte) error) error { return boom } }, boom},
		"start": {func(f *fake) { f.start = func() error { return boom } }, boom},
		"apply": {func(f *fake) {
			f.apply = func(*policy.Image) (enforce.Applied, error) { return enforce.Applied{}, boom }
		}, boom},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake()
			tt.set(f)
			a := newAgent(t, f, nil)
			if err := a.Run(t.Context()); !errors.Is(err, tt.want) {
				t.Errorf("run: %v, want %v", err, tt.want)
			}
			if f.closed != 1 {
				t.Errorf("kernel closed %d times", f.closed)
			}
			if _, err := os.Lstat(a.cfg.Socket); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the socket was left: %v", err)
			}
		})
	}
}

func TestHubDoesNotWait(t *testing.T) {
	h := newHub(8, 4)
	_, s, err := h.subscribe(false)
	if err != nil {
		t.Fatal(err)
	}
	const over = 100
	for range subscribeDepth + over {
		h.publish(&pavise.Event{Op: pavise.OpOpen})
	}
	n, lost := 0, uint64(0)
	for lost == 0 {
		it, err := s.next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if it.event.Op == pavise.OpLost {
			lost = it.event.Lost.Count
			if it.event.Lost.Op != pavise.OpOpen || it.event.Lost.Where != "subscriber" {
				t.Errorf("lost %+v", it.event.Lost)
			}
		} else {
			n++
		}
	}
	if n != subscribeDepth || lost != over || h.dropped.Load() != over {
		t.Errorf("%d events and %d lost (%d counted), want %d and %d", n, lost, h.dropped.Load(), subscribeDepth, over)
	}
	s.stop()
	for range maxSubscribers {
		if _, _, err := h.subscribe(false); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := h.subscribe(false); !errors.Is(err, errTooManySubscribers) {
		t.Errorf("one subscriber too many: %v", err)
	}
}

func TestHubKeepsTheLast(t *testing.T) {
	h := newHub(8, 4)
	buf := make([]byte, 0, 64)
	for i := range 20 {
		buf = fmt.Appendf(buf[:0], "/file/%d", i) // as a decoder's record, overwritten by the next
		e := &pavise.Event{Op: pavise.OpOpen}
		e.File.Path = string(buf)
		h.publish(e)
	}
	var got bytes.Buffer
	for _, it := range h.last() {
		fmt.Fprintf(&got, "%d%s ", it.event.ID, it.event.File.Path)
	}
	want := "13/file/12 14/file/13 15/file/14 16/file/15 17/file/16 18/file/17 19/file/18 20/file/19 "
	if got.String() != want {
		t.Errorf("kept %q, want %q", got.String(), want)
	}
	e := &pavise.Event{Op: pavise.OpOpen, File: pavise.FileInfo{Path: "/etc/shadow", FS: "ext4"}}
	for range 8 {
		h.publish(e)
	}
	if n := testing.AllocsPerRun(100, func() { h.publish(e) }); n != 0 {
		t.Errorf("%v allocations for an event without subscribers, want 0", n)
	}
}

func TestLoadPolicies(t *testing.T) {
	dir := t.TempDir()
	write := func(name, data string) {
		t.Helper()
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("a.yaml", shadow("a", "monitor"))
	write("deep/er/b.yml", shadow("b", "monitor")+"---\n"+shadow("c", "monitor"))
	write("testdata/no.yaml", "rubbish")
	write("x/demo/no.yaml", "rubbish")
	write("examples/x/no.yaml", "rubbish")
	write(".git/no.yaml", "rubbish")
	write("README.md", "rubbish")
	ps, err := LoadPolicies([]string{dir})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, p := range ps {
		names = append(names, p.Name)
	}
	if s := strings.Join(names, " "); s != "a b c" {
		t.Errorf("loaded %q", s)
	}
	write("big.yaml", strings.Repeat("#", MaxPolicyBytes+1))
	if _, err := LoadPolicies([]string{dir}); err == nil || !strings.Contains(err.Error(), "1 MiB") {
		t.Errorf("a big file: %v", err)
	}
}

func TestClockIsFollowed(t *testing.T) {
	a := newAgent(t, newFake(), nil)
	a.boot.Store(bootTime() - int64(time.Hour))
	a.followClock()
	if d := time.Duration(bootTime() - a.boot.Load()); d.Abs() > time.Second {
		t.Errorf("the clock is off by %v", d)
	}
}
