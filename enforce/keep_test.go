package enforce

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf/link"
	"github.com/pavise-project/pavise"
	"github.com/pavise-project/pavise/bpf"
	"github.com/pavise-project/pavise/internal/kerntest"
	"golang.org/x/sys/unix"
)

// pinDir is a directory on a bpf file system of its own.
func pinDir(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("bpf", dir, "bpf", 0, "mode=700"); err != nil {
		t.Fatalf("mount a bpf file system: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return filepath.Join(dir, "pins")
}

// startKept opens an Enforcer as start does, with a pin directory.
func startKept(t testing.TB, o Options, fn func(*pavise.Event)) *live {
	t.Helper()
	e, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	l := &live{Enforcer: e, t: t}
	if fn != nil {
		l.read(fn)
	}
	if err := e.Start(); err != nil {
		t.Fatal(errors.Join(err, e.Close()))
	}
	return l
}

func (l *live) close() {
	l.t.Helper()
	if l.stop != nil {
		l.stop()
	}
	if err := l.Close(); err != nil {
		l.t.Error(err)
	}
}

// denyNets denies connections to 127.N.0.0/16, and kills what opens a file.
func denyNets(file string, nets ...int) string {
	s := "apiVersion: pavise.dev/v1alpha1\nkind: Policy\nmetadata: {name: keep}\nspec:\n  mode: enforce\n  rules:\n"
	for _, n := range nets {
		s += fmt.Sprintf("  - {name: net%d, on: [net.connect], action: deny, when: 'net.remote.address.within(\"127.%d.0.0/16\")'}\n", n, n)
	}
	if file != "" {
		s += fmt.Sprintf("  - {name: file, on: [file.open], action: kill, when: 'file.path == %q'}\n", file)
	}
	return s
}

func denied(net byte) bool {
	return errors.Is(connect(&unix.SockaddrInet4{Port: 9, Addr: [4]byte{127, net, 0, 1}}), unix.EPERM)
}

// counted collects the events of denied connections.
type counted struct {
	mu   sync.Mutex
	acts uint64
	gens map[uint32]bool
}

func (c *counted) see(e *pavise.Event) {
	if e.Op == pavise.OpConnect && e.PID == uint32(os.Getpid()) {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.acts += e.Count
		if c.gens == nil {
			c.gens = map[uint32]bool{}
		}
		c.gens[e.Gen] = true
	}
}

// TestKernelKeep ends an agent and begins another with what it has left: nothing that is denied is let through meanwhile, and nothing is told twice.
func TestKernelKeep(t *testing.T) {
	kerntest.Require(t, kerntest.Root, kerntest.Syscall, kerntest.TpBtf)
	dir, forever := pinDir(t), Options{Keep: KeepForever}
	forever.PinDir = dir
	var seen counted
	l := startKept(t, forever, seen.see)
	if !l.Machine()[pavise.OpConnect].Deny {
		l.close()
		t.Skip(kerntest.NotExpected + "net.connect cannot be denied")
	}
	if s := l.Keep(); s.Adopted || s.Pins != dir || s.Keep != KeepForever {
		t.Errorf("%+v", s)
	}
	if _, err := Open(t.Context(), forever); !errors.Is(err, ErrPinsInUse) || !strings.Contains(err.Error(), fmt.Sprintf("pid %d", os.Getpid())) {
		t.Errorf("a second agent: %v", err)
	}
	src := denyNets("", 91, 92)
	first := l.apply(src)
	tried := 0
	try := func(when string, net byte, want bool) {
		t.Helper()
		if denied(net) != want {
			t.Errorf("%s, a connect to 127.%d: denied %v", when, net, !want)
		}
		if want {
			tried++
		}
	}
	try("at first", 91, true)
	l.close()
	try("without an agent", 91, true)
	try("without an agent", 93, false)

	// A process that begins now has facts.
	child := exec.Command("/bin/sleep", "1000")
	must(t, child.Start())
	defer func() { _ = child.Process.Kill(); _ = child.Wait() }()
	facts := make(chan *pavise.Event, 8)
	tell := func(e *pavise.Event) {
		seen.see(e)
		if e.Op == pavise.OpExec && e.PID == uint32(child.Process.Pid) {
			c := *e
			c.Exec.Args = slices.Clone(e.Exec.Args)
			c.Exec.Exe.Path = strings.Clone(e.Exec.Exe.Path)
			facts <- &c
		}
	}
	begin := time.Now()
	l = startKept(t, forever, tell)
	took := time.Since(begin)
	if !l.Keep().Adopted {
		t.Fatalf("not adopted: %+v", l.Keep())
	}
	try("after adoption", 91, true)
	again := l.apply(src)
	t.Logf("adopted in %v, and applied in %v", took, time.Since(begin)-took)
	if !again.Resumed || again.Generation != first.Generation {
		t.Errorf("the same policies are staged anew: %+v after %+v", again, first)
	}
	try("after the same policies", 92, true)
	var kinds []string
	for range 2 {
		select {
		case e := <-facts:
			if want := "/bin/sleep\x001000\x00"; string(e.Exec.Args) != want && string(e.Exec.Args) != "sleep\x001000\x00" {
				t.Errorf("the arguments of a process that began meanwhile are %q, want %q", e.Exec.Args, want)
			}
			if e.Exec.StartTime == 0 || e.Exec.ParentExecID == 0 || e.Exec.Exe.Path == "" {
				t.Errorf("%+v", e.Exec)
			}
			kinds = append(kinds, fmt.Sprintf("found %v kept %v", e.Exec.Found, e.Exec.Kept))
		case <-time.After(10 * time.Second):
			t.Fatalf("of a process that began meanwhile is told %q", kinds)
		}
	}
	if want := []string{"found false kept false", "found true kept true"}; !slices.Equal(kinds, want) {
		t.Errorf("of a process that began meanwhile is told %q, want %q", kinds, want)
	}
	// Another change goes on from there.
	next := l.apply(denyNets("", 91, 93))
	if next.Generation <= first.Generation || len(next.Hits) != 2 || next.Hits[0] < 3 {
		t.Errorf("%+v after %+v", next, first)
	}
	try("after a change", 92, false)
	try("after a change", 93, true)
	l.close()
	try("without an agent", 93, true)

	// An agent that keeps nothing takes it over, and away.
	l = startKept(t, Options{PinDir: dir}, seen.see)
	l.apply(denyNets("", 91, 94))
	try("with an agent that keeps nothing", 94, true)
	try("with an agent that keeps nothing", 93, false)
	if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
		t.Errorf("there are pins left: %v, %v", entries, err)
	}
	c := l.conservedKept()
	l.close()
	for _, net := range []byte{91, 92, 93, 94} {
		try("after the last agent", net, false)
	}
	o := c.Ops[pavise.OpConnect]
	if told := seen.acts; told > uint64(tried) || o.Seen != uint64(tried) || o.Delivered > told {
		t.Errorf("%d denied, %d seen, %d delivered, %d told", tried, o.Seen, o.Delivered, told)
	}
}

// conservedKept is conserved, of an Enforcer that has adopted: what others have read is not counted here.
func (l *live) conservedKept() Counters {
	l.t.Helper()
	must(l.t, l.silence())
	l.stop()
	c, err := l.Counters()
	must(l.t, err)
	for op, o := range c.Ops {
		if o.Seen != o.Delivered+o.Folded+o.Lost {
			l.t.Errorf("%s: %d seen, but %d delivered + %d folded + %d lost", pavise.Op(op), o.Seen, o.Delivered, o.Folded, o.Lost)
		}
	}
	return c
}

// TestKernelKeepUpgrade puts an agent of another build in the place of one that has ended: what is denied is so all the time, each act is told once, and processes keep
// their identity.
func TestKernelKeepUpgrade(t *testing.T) {
	kerntest.Require(t, kerntest.Root, kerntest.Syscall, kerntest.TpBtf)
	o := Options{Keep: KeepForever, PinDir: pinDir(t)}
	var seen counted
	l := startKept(t, o, seen.see)
	if !l.Machine()[pavise.OpConnect].Deny {
		l.close()
		t.Skip(kerntest.NotExpected + "net.connect cannot be denied")
	}
	first := l.apply(denyNets("", 91))
	child := exec.Command("/bin/cat")
	in, err := child.StdinPipe()
	must(t, err)
	out, err := child.StdoutPipe()
	must(t, err)
	must(t, child.Start())
	defer func() { _ = child.Process.Kill(); _ = child.Wait() }()
	if _, err := io.WriteString(in, "x"); err != nil { // it runs when it answers
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	id := l.identity(child.Process.Pid).ExecId
	l.close()
	var tried, through atomic.Int64
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := byte(0); ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			// Each is another object: nothing is folded.
			n := tried.Add(1)
			if err := connect(&unix.SockaddrInet4{Port: int(n%65000) + 1, Addr: [4]byte{127, 91, byte(n / 65000), 1}}); !errors.Is(err, unix.EPERM) {
				through.Add(1)
			}
			time.Sleep(time.Millisecond)
		}
	})
	time.Sleep(50 * time.Millisecond)
	// A hook of the old build that the kernel is slow to detach outlives its engine, and refuses nobody.
	late, err := filepath.Glob(o.PinDir + "/current/links/*_unix_connect")
	must(t, err)
	for _, name := range late {
		held, err := link.LoadPinnedLink(name, nil)
		must(t, err)
		defer held.Close()
	}
	facts := make(chan *pavise.Event, 8)
	o.Build = "00000000"
	l = startKept(t, o, func(e *pavise.Event) {
		seen.see(e)
		if e.Op == pavise.OpExec && e.Exec.Kept && e.PID == uint32(child.Process.Pid) {
			c := *e
			facts <- &c
		}
	})
	if s := l.Keep(); s.Adopted || !strings.Contains(s.Replaced, "another build") {
		t.Errorf("%+v", s)
	}
	next := l.apply(denyNets("", 91))
	if next.Generation <= first.Generation || next.Resumed {
		t.Errorf("%+v after %+v", next, first)
	}
	time.Sleep(100 * time.Millisecond)
	close(stop)
	wg.Wait()
	t.Logf("still attached: %q", late)
	ln, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	must(t, err)
	defer ln.Close()
	if c, err := net.Dial("unix", ln.Addr().String()); err != nil {
		t.Errorf("while hooks of the old build are still attached: %v", err)
	} else {
		c.Close()
	}
	if got := l.identity(child.Process.Pid).ExecId; got != id || id == 0 {
		t.Errorf("a process was %#x, and is %#x", id, got)
	}
	select {
	case e := <-facts:
		if e.ExecID != id || e.Exec.Found && !e.Exec.Kept {
			t.Errorf("%+v", e)
		}
	case <-time.After(10 * time.Second):
		t.Error("a process that ran is not told with its facts")
	}
	if sets, err := filepath.Glob(o.PinDir + "/v*"); err != nil || len(sets) != 1 || !strings.Contains(sets[0], "-00000000-") {
		t.Errorf("the pins are %q, %v", sets, err)
	}
	l.conservedKept()
	if n := through.Load(); n > 0 {
		t.Errorf("%d of %d were let through", n, tried.Load())
	}
	seen.mu.Lock()
	defer seen.mu.Unlock()
	// One may be told by both, in the moment of the switch.
	if n := uint64(tried.Load()); seen.acts < n || seen.acts > n+1 || len(seen.gens) != 2 {
		t.Errorf("%d were denied and %d told, of generations %v", n, seen.acts, seen.gens)
	}
	// An agent of a build whose records nobody can read: they are counted.
	must(t, l.Close())
}

// TestKernelKeepRelease: some time after the agent, what is denied is let through, and told as what would have been denied.
func TestKernelKeepRelease(t *testing.T) {
	kerntest.Require(t, kerntest.Root, kerntest.Syscall, kerntest.TpBtf)
	span := 2 * time.Second
	if kerntest.VM() != "" {
		span = 5 * time.Second
	}
	o := Options{Keep: Keep(span), PinDir: pinDir(t)}
	var would atomic.Uint64
	see := func(e *pavise.Event) {
		if e.Op == pavise.OpConnect && e.PID == uint32(os.Getpid()) && e.Monitor {
			would.Add(e.Count)
		}
	}
	l := startKept(t, o, see)
	if !l.Machine()[pavise.OpConnect].Deny {
		l.close()
		t.Skip(kerntest.NotExpected + "net.connect cannot be denied")
	}
	l.apply(denyNets("", 91))
	must(t, l.Alive()) // loading takes its time
	for end := time.Now().Add(span + span/4); time.Now().Before(end); time.Sleep(span / 20) {
		if !denied(91) {
			t.Fatal("released while the agent runs")
		}
		must(t, l.Alive())
	}
	begin := time.Now()
	l.close()
	if !denied(91) {
		t.Error("released with the agent")
	}
	for denied(91) {
		if time.Since(begin) > 3*span {
			t.Fatal("not released")
		}
		time.Sleep(span / 50)
	}
	if took := time.Since(begin); took < span-time.Millisecond {
		t.Errorf("released after %v, not %v", took, span)
	}
	l = startKept(t, o, see)
	if !denied(91) || !l.Keep().Adopted {
		t.Errorf("the next agent does not enforce: %+v", l.Keep())
	}
	l.apply(denyNets("", 91))
	l.conservedKept()
	if would.Load() != 1 {
		t.Errorf("%d acts told that would have been denied, want 1", would.Load())
	}
	l.close()
	removed, err := RemoveLeft(o.PinDir, false)
	if err != nil || len(removed) < 20 || denied(91) {
		t.Errorf("%d removed, %v", len(removed), err)
	}
	if again, err := RemoveLeft(o.PinDir, false); err != nil || len(again) > 0 {
		t.Errorf("%q, %v", again, err)
	}
}

// TestKernelKeepGarbage begins where something stands that no agent of this build has finished: it is replaced, or told.
func TestKernelKeepGarbage(t *testing.T) {
	kerntest.Require(t, kerntest.Root, kerntest.Syscall, kerntest.TpBtf)
	ours := "v1-" + bpf.Build() + "-1"
	for what, c := range map[string]struct {
		make func(dir string) error
		want string // of Replaced
	}{
		"half a set": {func(dir string) error { return os.MkdirAll(dir+"/"+ours+"/maps", 0o700) }, ""},
		"an empty set in force": {func(dir string) error {
			return errors.Join(os.MkdirAll(dir+"/"+ours+"/links", 0o700), os.Symlink(ours, dir+"/current"))
		}, "find out what is pinned"},
		"a set of another version": {func(dir string) error {
			return errors.Join(os.MkdirAll(dir+"/v9-0123456789abcdef-3/stuff", 0o700), os.Symlink("v9-0123456789abcdef-3", dir+"/current"))
		}, "another build"},
		"a link to nothing": {func(dir string) error { return errors.Join(os.MkdirAll(dir, 0o700), os.Symlink(ours, dir+"/current")) }, ""},
		"a link to elsewhere": {func(dir string) error {
			return errors.Join(os.MkdirAll(dir, 0o700), os.Symlink("/etc", dir+"/current"))
		}, ""},
	} {
		o := Options{Keep: KeepForever, PinDir: pinDir(t)}
		must(t, c.make(o.PinDir))
		l := startKept(t, o, nil)
		s := l.Keep()
		if s.Adopted || !strings.Contains(s.Replaced, c.want) || (s.Replaced == "") != (c.want == "") {
			t.Errorf("%s: %+v", what, s)
		}
		l.apply(denyNets("", 91))
		l.close()
		l = startKept(t, o, nil)
		if !l.Keep().Adopted {
			t.Errorf("%s: the next one does not adopt: %+v", what, l.Keep())
		}
		l.close()
		if removed, err := RemoveLeft(o.PinDir, false); err != nil || len(removed) < 20 {
			t.Errorf("%s: %d removed, %v", what, len(removed), err)
		}
	}
	o := Options{Keep: KeepForever, PinDir: t.TempDir()}
	if _, err := Open(t.Context(), o); err == nil || !strings.Contains(err.Error(), "not on a bpf file system") {
		t.Errorf("a directory elsewhere: %v", err)
	}
	o.PinDir = pinDir(t)
	must(t, errors.Join(os.Mkdir(o.PinDir, 0o700), os.Chown(o.PinDir, 65534, 65534)))
	if _, err := Open(t.Context(), o); err == nil || !strings.Contains(err.Error(), "belongs to user 65534") {
		t.Errorf("a directory of another user: %v", err)
	}
}

func TestParseKeep(t *testing.T) {
	for s, want := range map[string]Keep{"no": KeepNot, "forever": KeepForever, "5s": MinKeep, "10m0s": Keep(10 * time.Minute)} {
		if k, err := ParseKeep(s); err != nil || k != want || k.String() != s {
			t.Errorf("%q: %s, %v", s, k, err)
		}
	}
	for _, s := range []string{"", "yes", "1s", "-10m", "0", "10"} {
		if k, err := ParseKeep(s); err == nil || !strings.Contains(err.Error(), "want no, forever, or a time of 5s and more") {
			t.Errorf("%q: %s, %v", s, k, err)
		}
	}
}
