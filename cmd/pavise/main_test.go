package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pavise-project/pavise"
	"github.com/pavise-project/pavise/agent"
	"github.com/pavise-project/pavise/bpf"
	"github.com/pavise-project/pavise/enforce"
	"github.com/pavise-project/pavise/policy"
	"github.com/rogpeppe/go-internal/testscript"
)

var updateScripts = flag.Bool("update", false, "write what is got to testdata")

func TestMain(m *testing.M) {
	if os.Getenv(benchAgent) != "" {
		os.Exit(newApp().main(os.Args[1:]))
	}
	testscript.Main(m, map[string]func(){
		"pavise": func() { os.Exit(testApp().main(os.Args[1:])) },
	})
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata", UpdateScripts: *updateScripts,
		Setup: func(e *testscript.Env) error {
			e.Setenv("SOCK", filepath.Join(e.WorkDir, "p.sock"))
			e.Setenv("STATE", filepath.Join(e.WorkDir, "state"))
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"ready":   cmdReady,
			"status":  cmdStatus,
			"written": cmdWritten,
			"damage":  cmdDamage,
		},
	})
}

// cmdReady waits until the agent at $SOCK answers.
func cmdReady(ts *testscript.TestScript, neg bool, _ []string) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	c := agent.NewClient(ts.Getenv("SOCK"))
	defer c.Close()
	for ctx.Err() == nil {
		if _, err := c.Status(ctx); err == nil {
			return
		}
		d := net.Dialer{Timeout: 50 * time.Millisecond}
		if nc, err := d.DialContext(ctx, "unix", ts.Getenv("SOCK")); err == nil {
			_ = nc.Close()
		}
	}
	ts.Fatalf("the agent did not get ready")
}

// cmdWritten waits until the agent at $SOCK has written so many events into its history: written 3.
func cmdWritten(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: written NUMBER")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	c := agent.NewClient(ts.Getenv("SOCK"))
	defer c.Close()
	for ctx.Err() == nil {
		if s, err := c.Status(ctx); err == nil && fmt.Sprint(s.History.Written) == args[0] {
			return
		}
	}
	ts.Fatalf("the agent did not write so many events")
}

// cmdDamage changes a byte in the middle of each log of a history: damage DIR.
func cmdDamage(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: damage DIR")
	}
	logs, err := filepath.Glob(filepath.Join(ts.MkAbs(args[0]), "*.log"))
	ts.Check(err)
	if len(logs) == 0 {
		ts.Fatalf("no log is in %s", args[0])
	}
	for _, name := range logs {
		b, err := os.ReadFile(name)
		ts.Check(err)
		b[len(b)/2] ^= 1
		ts.Check(os.WriteFile(name, b, 0o600))
	}
}

// cmdStatus runs the command line given after a code, and fails unless it exits with that code: status 3 events.
func cmdStatus(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 1 {
		ts.Fatalf("usage: status CODE ARG...")
	}
	err := ts.Exec("pavise", args[1:]...)
	got := "0"
	var exit interface{ ExitCode() int }
	if errors.As(err, &exit) {
		got = fmt.Sprint(exit.ExitCode())
	} else if err != nil {
		ts.Fatalf("pavise: %v", err)
	}
	if got != args[0] {
		ts.Fatalf("exit code %s, want %s", got, args[0])
	}
}

// testApp is pavise with a kernel that plays a fixed story. FAKE_KERNEL says what is wrong with it.
func testApp() *app {
	a := newApp()
	a.terminal = os.Getenv("FAKE_TERMINAL") != ""
	a.width = 200
	a.openKernel = func(_ context.Context, o enforce.Options) (agent.Kernel, error) {
		switch os.Getenv("FAKE_KERNEL") {
		case "unsupported":
			return nil, fmt.Errorf("probe: %w: it has no BTF", enforce.ErrUnsupported)
		case "unprivileged":
			return nil, fmt.Errorf("probe: %w: CAP_BPF is missing", enforce.ErrPrivileges)
		}
		return &fakeKernel{gone: make(chan struct{}), keep: enforce.KeepStatus{Keep: o.Keep, Pins: o.PinDir}}, nil
	}
	a.tweak = func(c *agent.Config) {
		c.Cgroups = []string{"/"} // a directory that root alone may write
		c.Decode = func(rec []byte, _ int64, e *pavise.Event) error {
			*e = pavise.Event{}
			return json.Unmarshal(rec, (*wire)(e))
		}
	}
	return a
}

// wire is an event as the fake kernel writes it: all fields, by their Go names.
type wire pavise.Event

func (w *wire) UnmarshalJSON(b []byte) error {
	var s struct {
		Op       pavise.Op
		Action   pavise.Action
		Monitor  bool
		Shadow   pavise.Decision
		Active   pavise.Decision
		PID      uint32
		ID       uint64
		Parent   uint64
		Path     string
		Cgroup   string
		Matched  uint8
		Rule     uint32
		Rung     pavise.Rung
		Gen      uint32
		Found    bool
		FilePath string
	}
	if err := json.Unmarshal(b, &s); err != nil {
		return err
	}
	*w = wire{Op: s.Op, Action: s.Action, Monitor: s.Monitor, PID: s.PID, TID: s.PID, ExecID: s.ID, Matched: s.Matched, Rung: s.Rung, Gen: s.Gen, Time: 1}
	w.Shadow, w.Active = s.Shadow, s.Active
	w.RuleIDs[0] = s.Rule
	w.File.Path = s.FilePath
	w.Exec.ParentExecID, w.Exec.Exe.Path, w.Exec.Found = s.Parent, s.Path, s.Found
	w.Exec.Args = []byte(s.Path)
	if s.Cgroup != "" {
		w.Exec.Cgroup, w.Exec.CgroupID = s.Cgroup, s.ID
	}
	if s.Op == pavise.OpExec {
		w.Exec.StartTime = uint64(s.ID) + 1
	}
	return nil
}

// fakeKernel starts three processes, one with a hostile name in a container, and has one of them open a file at each generation, which the last rule denies.
type fakeKernel struct {
	mu   sync.Mutex
	gen  uint32
	recs [][]byte
	more chan struct{}
	gone chan struct{}
	runs uint64
	keep enforce.KeepStatus
}

func (k *fakeKernel) emit(m map[string]any) {
	b, err := json.Marshal(m)
	if err != nil {
		panic(err)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.recs = append(k.recs, b)
	if k.more == nil {
		k.more = make(chan struct{}, 1)
	}
	select {
	case k.more <- struct{}{}:
	default:
	}
}

func (k *fakeKernel) Machine() (m [pavise.NumOps]policy.Support) {
	for op := pavise.OpExec; op < pavise.OpFork; op++ {
		m[op] = policy.Support{Rung: pavise.RungLSM, Deny: true, Kill: true}
	}
	m[pavise.OpAccept] = policy.Support{Rung: pavise.RungKillOnReturn, Kill: true, Why: "lsm: not enabled at boot"}
	return m
}

func (k *fakeKernel) Doctor() []enforce.OpStatus {
	var out []enforce.OpStatus
	m := k.Machine()
	for op := pavise.OpExec; op < pavise.OpFork; op++ {
		out = append(out, enforce.OpStatus{Op: op, Rung: m[op].Rung, Deny: m[op].Deny, Kill: m[op].Kill, Why: m[op].Why})
	}
	return out
}

func (k *fakeKernel) Start() error {
	k.emit(map[string]any{"Op": pavise.OpExec, "PID": 4000001, "ID": 1, "Path": "/sbin/init", "Found": true})
	k.emit(map[string]any{"Op": pavise.OpExec, "PID": 4000100, "ID": 2, "Parent": 1, "Path": "/usr/sbin/nginx"})
	k.emit(map[string]any{"Op": pavise.OpExec, "PID": 4000101, "ID": 3, "Parent": 2, "Path": "/tmp/\x1b[31mevil\n", "Cgroup": "/docker-" + strings.Repeat("c0ffee00", 8) + ".scope"})
	return nil
}

func (k *fakeKernel) Apply(img *policy.Image) (enforce.Applied, error) {
	if os.Getenv("FAKE_KERNEL") == "full" && k.gen > 0 {
		return enforce.Applied{}, errors.New("stage tables: no space left in the kernel")
	}
	k.gen++
	if len(img.Rules) > 0 {
		k.emit(map[string]any{"Op": pavise.OpOpen, "Action": pavise.ActionDeny, "PID": 4000100, "ID": 2, "Matched": 1, "Rule": len(img.Rules) - 1, "Rung": pavise.RungLSM, "Gen": k.gen, "FilePath": "/etc/shadow"})
	}
	return enforce.Applied{Generation: k.gen, Staged: time.Millisecond, Activated: time.Microsecond}, nil
}

func (k *fakeKernel) Read(ctx context.Context, fn func([]byte) error) error {
	k.mu.Lock()
	if k.more == nil {
		k.more = make(chan struct{}, 1)
	}
	k.mu.Unlock()
	for {
		k.mu.Lock()
		recs := k.recs
		k.recs = nil
		k.mu.Unlock()
		for _, r := range recs {
			if err := fn(r); err != nil {
				return err
			}
		}
		select {
		case <-k.more:
		case <-ctx.Done():
			return nil
		}
	}
}

// Shadow has the process open the file once more, and the candidate deny that.
func (k *fakeKernel) Shadow(img *policy.Image) (enforce.Applied, error) {
	if os.Getenv("FAKE_KERNEL") == "full" {
		return enforce.Applied{}, errors.New("stage tables: no space left in the kernel")
	}
	k.gen++
	k.emit(map[string]any{
		"Op": pavise.OpOpen, "Action": pavise.ActionDeny, "Monitor": true, "Shadow": pavise.DecisionDeny, "Active": pavise.DecisionWouldDeny,
		"PID": 4000100, "ID": 2, "Matched": 1, "Rule": 0, "Rung": pavise.RungLSM, "Gen": k.gen, "FilePath": "/etc/gshadow",
	})
	return enforce.Applied{Generation: k.gen}, nil
}

func (k *fakeKernel) EndShadow() (enforce.ShadowCounters, error) { return k.ShadowCounters() }

func (k *fakeKernel) ShadowCounters() (c enforce.ShadowCounters, err error) {
	c.RuleHits, c.RuleStricter = []uint64{5}, []uint64{3}
	c.Ops[pavise.OpOpen] = enforce.ShadowCount{Judged: 9, Stricter: 3, Laxer: 1}
	return c, nil
}

func (k *fakeKernel) Refresh() error { return nil }

func (k *fakeKernel) Time() (io.Closer, error) { return io.NopCloser(nil), nil }

// Runs are 100 more at each look.
func (k *fakeKernel) Runs() []bpf.Run {
	k.runs += 100
	return []bpf.Run{{Program: "lsm_file_open", Count: k.runs, Time: time.Duration(k.runs) * 200}}
}

func (k *fakeKernel) Alive() error { return nil }

func (k *fakeKernel) Position() (p enforce.Position) { return p }

func (k *fakeKernel) Reached(enforce.Position) bool { return true }

func (k *fakeKernel) Adopted() *enforce.Adopted { return nil }

func (k *fakeKernel) Keep() enforce.KeepStatus       { return k.keep }
func (k *fakeKernel) EndWithout(time.Duration) error { return nil }

func (k *fakeKernel) Told(pavise.Op, uint64) error { return nil }

func (k *fakeKernel) Counters() (c enforce.Counters, err error) {
	c.RuleHits = []uint64{7}
	return c, nil
}

func (k *fakeKernel) Close() error { return nil }

var _ agent.Kernel = (*fakeKernel)(nil)

// TestHelp holds every command to an example, and to a sentence that says what it is.
func TestHelp(t *testing.T) {
	a := newApp()
	a.root().InitDefaultHelpCmd()
	for _, c := range a.root().Commands() {
		for _, c := range append(c.Commands(), c) {
			if c.Example == "" || c.Short == "" {
				t.Errorf("%s: no example or no short help", c.CommandPath())
			}
		}
	}
}

// TestShippedPolicies compiles all that is shipped, and holds the starter policies and the examples to monitor mode and a README.
func TestShippedPolicies(t *testing.T) {
	root := filepath.Join("..", "..", "policies")
	var ps []*policy.Policy
	for dir, least := range map[string]int{root: 5, filepath.Join(root, "examples"): 3} {
		some, err := agent.LoadPolicies([]string{dir})
		if err != nil {
			t.Fatal(err)
		}
		if len(some) < least {
			t.Errorf("%s: %d policies, want at least %d", dir, len(some), least)
		}
		for _, p := range some {
			if p.Mode != policy.ModeMonitor {
				t.Errorf("%s: mode %q, want monitor", p.Name, p.Mode)
			}
			if _, err := os.Stat(filepath.Join(dir, p.Name, "README.md")); errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%s: no README.md", p.Name)
			}
		}
		ps = append(ps, some...)
	}
	demo, err := agent.LoadPolicies([]string{filepath.Join(root, "demo", "policy.yaml")})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := policy.Compile(append(ps, demo...), agent.AnyMachine()); err != nil {
		t.Fatal(err)
	}
}

func TestSafe(t *testing.T) {
	for in, want := range map[string]string{
		"plain ünï":          "plain ünï",
		"a\nb\tc":            `a\x0ab\x09c`,
		"\x1b[31mred":        `\x1b[31mred`,
		"\xff":               `\xff`,
		"right\u202eto left": `right\u202eto left`,
	} {
		if got := safe(in); got != want {
			t.Errorf("safe(%q) = %q, want %q", in, got, want)
		}
	}
	if strings.ContainsAny(lines("a\nb\x1b"), "\x1b") {
		t.Error("lines lets an escape through")
	}
}
