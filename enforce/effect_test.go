package enforce

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/pavise-project/pavise"
	"github.com/pavise-project/pavise/decode"
	"github.com/pavise-project/pavise/internal/kerntest"
	"github.com/pavise-project/pavise/policy"
	"golang.org/x/sys/unix"
)

// effect is one Enforcer for all tests of what rules do: loading programs takes seconds in a virtual machine, applying a policy does not.
type effect struct {
	e    *Enforcer
	m    *policy.Machine
	img  *policy.Image
	dir  string
	self string // this program
	done chan error
	end  context.CancelFunc

	subject *actor    // the rules of a test are about this one
	other   *actor    // and not about this one
	early   [2]*actor // the subject's program, from before the Enforcer

	missed uint64 // see skipped

	mu     sync.Mutex
	events []pavise.Event
}

var effects struct {
	once sync.Once
	x    *effect
	err  error
}

// theEffect opens the Enforcer at its first use. It ends with the tests, or with the process, and in any case after the deadline.
func theEffect(t *testing.T) *effect {
	t.Helper()
	kerntest.Require(t, kerntest.Root, kerntest.Syscall, kerntest.TpBtf)
	effects.once.Do(func() { effects.x, effects.err = newEffect() })
	if effects.err != nil {
		t.Fatal(effects.err)
	}
	x := effects.x
	x.missed = x.e.k.Missed()
	t.Cleanup(func() {
		if c, err := x.e.Counters(); t.Failed() || c.NoScratch+c.NoIdentity+c.NoTexts > 0 {
			t.Errorf("no working memory %d, no identity %d, no texts %d, missed %d, %v %v", c.NoScratch, c.NoIdentity, c.NoTexts, c.Missed, c.Ops, err)
		}
		x.apply(t)
		x.subject.stop()
		x.other.stop()
	})
	return x
}

func newEffect(skip ...pavise.Rung) (*effect, error) {
	// The directory's path is short: a Unix socket's name has 108 bytes.
	dir, err := os.MkdirTemp("", "effect")
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	// In a virtual machine they start faster from there than from the shared root.
	x := &effect{dir: dir, self: self, done: make(chan error, 1), subject: &actor{exe: filepath.Join(dir, "subject")}, other: &actor{exe: filepath.Join(dir, "other")}}
	if err := copyFile(x.subject.exe, self); err != nil {
		return nil, err
	}
	if err := os.Link(x.subject.exe, x.other.exe); err != nil {
		return nil, err
	}
	for i := range x.early {
		x.early[i] = &actor{exe: x.subject.exe, args: []string{"--early", "x y"}}
		if err := x.early[i].begin(); err != nil {
			return nil, err
		}
	}
	limit := 5 * time.Minute
	if kerntest.VM() != "" {
		limit = 20 * time.Minute
	}
	time.AfterFunc(limit, func() {
		fmt.Fprintln(os.Stderr, "the enforcer under test is past its deadline")
		os.Exit(3) // its programs go with it
	})
	if kerntest.VM() != "" {
		if err := steady(); err != nil {
			return nil, err
		}
	}
	if x.e, err = Open(context.Background(), Options{Skip: skip}); err != nil {
		return nil, err
	}
	if err := x.e.Start(); err != nil {
		return nil, err
	}
	x.m = &policy.Machine{Ops: x.e.Machine()}
	ctx, end := context.WithCancel(context.Background())
	x.end = end
	go func() {
		x.done <- x.e.Read(ctx, func(rec []byte) error {
			var e pavise.Event
			if err := decode.Decode(rec, 0, &e); err != nil {
				return err
			}
			if e.Action != pavise.ActionNone {
				x.mu.Lock()
				x.events = append(x.events, *e.Clone())
				x.mu.Unlock()
			}
			return nil
		})
	}()
	return x, nil
}

// steady keeps two programs on sys_exit, so that a third comes and goes without the kernel's code being patched (kernel/tracepoint.c): of
// processors that run the code meanwhile, QEMU's emulated ones can stumble over the breakpoint of a patch that is done ("Oops: int3").
func steady() error {
	for range 2 {
		p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
			Type: ebpf.Tracing, AttachType: ebpf.AttachTraceRawTp, AttachTo: "sys_exit", License: "GPL",
			Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()},
		})
		if err != nil {
			return err
		}
		l, err := link.AttachTracing(link.TracingOptions{Program: p})
		if err != nil {
			return err
		}
		steadied = append(steadied, p, l)
	}
	return nil
}

var steadied []any // until the process ends

func (x *effect) stop() {
	x.end()
	if err := <-x.done; err != nil {
		fmt.Fprintln(os.Stderr, "reading the events:", err)
	}
	if err := x.e.Close(); err != nil {
		fmt.Fprintln(os.Stderr, "closing the enforcer:", err)
	}
	for _, a := range x.early {
		a.stop()
	}
	_ = os.RemoveAll(x.dir)
}

func copyFile(to, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		return err
	}
	return out.Close()
}

// apply makes the rules (YAML of one each) of an enforced policy the ones that judge; none ends all judging.
func (x *effect) apply(t *testing.T, rules ...string) {
	t.Helper()
	if len(rules) == 0 {
		x.applyText(t, "")
		return
	}
	x.applyText(t, x.text("mode: enforce\n  fallback: kill", rules...))
}

// text is a policy about the subject.
func (x *effect) text(spec string, rules ...string) string {
	s := "apiVersion: pavise.dev/v1alpha1\nkind: Policy\nmetadata: {name: effect}\nspec:\n  " + spec +
		fmt.Sprintf("\n  subject: process.exe.path == %q\n  rules:\n", x.subject.exe)
	for i, r := range rules {
		s += fmt.Sprintf("  - {name: r%d, %s}\n", i, r)
	}
	return s
}

func (x *effect) applyText(t *testing.T, text string) {
	t.Helper()
	var set []*policy.Policy
	if text != "" {
		var err error
		if set, err = policy.Parse("test.yaml", []byte(text)); err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
	}
	img, _, err := policy.Compile(set, x.m)
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	if _, err := x.e.Apply(img); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	x.img = img
}

// needs skips the test where an operation cannot be judged at all, which must be where it cannot be expected.
func (x *effect) needs(t *testing.T, op pavise.Op) pavise.Rung {
	t.Helper()
	r := x.e.status[op].Rung
	if r == pavise.RungNone {
		kerntest.Since(t, "6.18", "task storage in cgroup programs, without BPF LSM,")
		t.Fatalf("%s cannot be judged: %s", op, x.e.status[op].Why)
	}
	return r
}

// stopped does a deed as the subject and expects that the rung of op stops it before anything was read.
func (x *effect) stopped(t *testing.T, op pavise.Op, deed string, args ...string) outcome {
	t.Helper()
	return x.stoppedBy(t, x.e.status[op].Rung, deed, args...)
}

func (x *effect) stoppedBy(t *testing.T, r pavise.Rung, deed string, args ...string) outcome {
	t.Helper()
	pid := x.subject.pid(t)
	o := x.subject.do(t, deed, args...)
	ok := o.Errno == unix.EPERM
	if r == pavise.RungKillOnReturn {
		ok = o.Killed
	}
	if !ok || o.Data != "" {
		t.Errorf("%s %q at rung %s: %s", deed, args, r, o)
	}
	if !o.Killed {
		if o := x.subject.do(t, "nothing"); o.Killed || x.subject.pid(t) != pid {
			t.Errorf("%s %q at rung %s: the process did not live on", deed, args, r)
		}
	}
	return o
}

// atHook tells whether a rung is of the kernel's security hooks: it refuses all that comes there, before anything is done.
func atHook(r pavise.Rung) bool { return r == pavise.RungLSM || r == pavise.RungFmodRet }

// done does a deed and expects that it succeeds with this data.
func done(t *testing.T, a *actor, data, deed string, args ...string) {
	t.Helper()
	o := a.do(t, deed, args...)
	if o.Killed || o.Err != "" || o.Data != data {
		if !skipped(t) {
			t.Errorf("%s %q: %s, want %q", deed, args, o, data)
		} else if o := a.do(t, deed, args...); o.Killed || o.Err != "" || o.Data != data {
			t.Errorf("%s %q, once more: %s, want %q", deed, args, o, data)
		}
	}
}

// skipped tells whether the kernel has skipped a program since it was asked last, as it does at times with one that another process was in on the same CPU when it was preempted (from Linux 7.0 on
// also at tracepoints). Who is not known by that is judged strictly, and a socket not before it is found: a test may try once more then.
func skipped(t *testing.T) bool {
	t.Helper()
	x := effects.x
	if x == nil {
		return false
	}
	missed := x.e.k.Missed()
	if missed == x.missed {
		return false
	}
	t.Logf("the kernel skipped %d programs: once more", missed-x.missed)
	x.missed = missed
	must(t, x.e.Refresh())
	return true
}

// event waits for a record of a verdict.
func (x *effect) event(t *testing.T, what string, match func(*pavise.Event) bool) *pavise.Event {
	t.Helper()
	limit := 5 * time.Second
	if kerntest.VM() != "" {
		limit = 30 * time.Second
	}
	var all []string
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		x.mu.Lock()
		all = all[:0]
		for i := range x.events {
			if e := &x.events[i]; match(e) {
				x.mu.Unlock()
				return e
			} else {
				all = append(all, fmt.Sprintf("%s %s %s pid %d %+v %+v %+v", e.Op, e.Action, e.Rung, e.PID, e.File, e.Net, e.Act))
			}
		}
		x.mu.Unlock()
	}
	t.Fatalf("no event of %s; there are:\n%s", what, strings.Join(all, "\n"))
	return nil
}

// forget drops the events so far.
func (x *effect) forget() {
	time.Sleep(30 * time.Millisecond)
	x.mu.Lock()
	x.events = nil
	x.mu.Unlock()
}

// rule names the rule of an event.
func (x *effect) rule(e *pavise.Event) string {
	if int(e.RuleIDs[0]) >= len(x.img.Rules) {
		return "none"
	}
	return x.img.Rules[e.RuleIDs[0]].Name
}

// place makes a directory for a test: with real, short paths.
func (x *effect) place(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp(x.dir, "t")
	if err != nil {
		t.Fatal(err)
	}
	if dir, err = filepath.EvalSymlinks(dir); err != nil {
		t.Fatal(err)
	}
	return dir
}

func write(t testing.TB, path, text string) string {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// compileError is what the compiler says to a policy.
func (x *effect) compileError(text string) error {
	set, err := policy.Parse("test.yaml", []byte(text))
	if err != nil {
		return err
	}
	_, _, err = policy.Compile(set, x.m)
	return err
}
