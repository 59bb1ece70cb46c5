package enforce

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/pavise-project/pavise"
	"github.com/pavise-project/pavise/decode"
	"github.com/pavise-project/pavise/internal/kerntest"
	"github.com/pavise-project/pavise/policy"
	"github.com/pavise-project/pavise/proc"
	"golang.org/x/sys/unix"
)

// spawnShort starts a program again and again, one at a time, and writes the number of each process to standard output.
func spawnShort(program string, d time.Duration) {
	runtime.LockOSThread()
	var out bytes.Buffer
	_, _ = io.ReadFull(os.Stdin, make([]byte, 1)) // all begin together
	for end := time.Now().Add(d); time.Now().Before(end); {
		pid, err := syscall.ForkExec(program, []string{"short"}, nil)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		_ = binary.Write(&out, binary.LittleEndian, uint32(pid))
		var st unix.WaitStatus
		_, _ = unix.Wait4(pid, &st, 0, nil)
	}
	_, _ = os.Stdout.Write(out.Bytes())
}

// shortProgram makes a static program that ends at once.
func shortProgram(t testing.TB) string {
	t.Helper()
	code, ok := exitCode[runtime.GOARCH]
	if !ok {
		t.Fatalf("there is no program on %s", runtime.GOARCH)
	}
	name := filepath.Join(t.TempDir(), "short")
	if err := os.WriteFile(name, elf(code.machine, code.text), 0o755); err != nil {
		t.Fatal(err)
	}
	return name
}

// live is an Enforcer that runs, with a reader that counts.
type live struct {
	*Enforcer
	t        testing.TB
	received [pavise.NumOps]atomic.Uint64
	stop     func() // the reader, once
}

// start opens an Enforcer; fn, which may be nil, sees every event.
func start(t testing.TB, fn func(*pavise.Event)) *live {
	t.Helper()
	e, err := Open(t.Context(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	l := &live{Enforcer: e, t: t}
	t.Cleanup(func() {
		if l.stop != nil {
			l.stop()
		}
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := e.Start(); err != nil {
		t.Fatal(err)
	}
	if fn != nil {
		l.read(fn)
	}
	return l
}

func (l *live) read(fn func(*pavise.Event)) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		var ev pavise.Event
		err := l.Read(ctx, func(rec []byte) error {
			if err := decode.Decode(rec, 0, &ev); err != nil {
				return err
			}
			l.received[ev.Op].Add(1)
			fn(&ev)
			return nil
		})
		if err != nil {
			l.t.Error(err)
		}
	}()
	l.stop = sync.OnceFunc(func() { cancel(); <-done })
}

func (l *live) machine() *policy.Machine {
	m := able()
	m.Ops = l.Machine()
	return m
}

func (l *live) apply(srcs ...string) Applied {
	l.t.Helper()
	a, err := l.Apply(image(l.t, l.machine(), parse(l.t, srcs...)))
	if err != nil {
		l.t.Fatal(err)
	}
	return a
}

// conserved stops what is watched and then the reader, and checks that every record is accounted for.
func (l *live) conserved() Counters {
	l.t.Helper()
	if err := l.silence(); err != nil {
		l.t.Fatal(err)
	}
	l.stop()
	c, err := l.Counters()
	if err != nil {
		l.t.Fatal(err)
	}
	for op, o := range c.Ops {
		if o.Seen != o.Delivered+o.Folded+o.Lost {
			l.t.Errorf("%s: %d seen, but %d delivered + %d folded + %d lost", pavise.Op(op), o.Seen, o.Delivered, o.Folded, o.Lost)
		}
		if got := l.received[op].Load(); got != o.Delivered {
			l.t.Errorf("%s: %d delivered, %d read", pavise.Op(op), o.Delivered, got)
		}
		if o.Seen > 0 {
			l.t.Logf("%s: seen %d = delivered %d + folded %d + lost %d", pavise.Op(op), o.Seen, o.Delivered, o.Folded, o.Lost)
		}
	}
	if c.NoScratch+c.NoIdentity+c.Missed > 0 {
		l.t.Errorf("%d without working memory, %d without identity, %d missed", c.NoScratch, c.NoIdentity, c.Missed)
	}
	return c
}

// silence detaches every program, so that the counters stand still.
func (e *Enforcer) silence() error {
	var errs []error
	for _, p := range lifecycle {
		errs = append(errs, e.k.Detach(p))
	}
	for _, r := range ladder {
		for _, x := range r {
			for _, p := range x.all() {
				errs = append(errs, e.k.Detach(p))
			}
		}
	}
	time.Sleep(50 * time.Millisecond) // one that runs ends
	return errors.Join(errs...)
}

func connect(to *unix.SockaddrInet4) error {
	return socket(unix.SOCK_DGRAM, func(fd int) error { return unix.Connect(fd, to) })
}

// TestKernelUnderLoadFlips changes a policy a thousand times under load, and some of the times lets a shadow judge beside it that would do the opposite.
func TestKernelUnderLoadFlips(t *testing.T) {
	kerntest.Require(t, kerntest.Root, kerntest.Syscall, kerntest.TpBtf)
	flips := 1000
	if kerntest.VM() != "" {
		flips = 50
	}
	l := start(t, func(*pavise.Event) {})
	if !l.Machine()[pavise.OpConnect].Deny {
		t.Logf("net.connect cannot be denied here: only file.open is flipped")
	}
	dir := t.TempDir()
	secret, seen, free := filepath.Join(dir, "secret"), filepath.Join(dir, "seen"), filepath.Join(dir, "free")
	for _, f := range []string{secret, seen, free} {
		if err := os.WriteFile(f, []byte("text"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	deny := l.Machine()[pavise.OpConnect].Deny
	// The rules that stay are numbered, and their classes are, anew in each generation.
	gen := func(i int) []string {
		var b strings.Builder
		fmt.Fprintf(&b, "apiVersion: pavise.dev/v1alpha1\nkind: Policy\nmetadata: {name: a%d}\nspec:\n  mode: enforce\n  rules:\n", i%7)
		for r := range i % 5 {
			fmt.Fprintf(&b, "  - {name: r%d, on: [file.open], action: audit, when: 'file.path.under(\"/nowhere/%d/%d\")'}\n", r, i, r)
		}
		fmt.Fprintf(&b, "  - {name: secret, on: [file.open], action: kill, when: 'file.path == %q'}\n", secret)
		fmt.Fprintf(&b, "  - {name: seen, on: [file.open], action: audit, when: 'file.path == %q'}\n", seen)
		if deny {
			fmt.Fprintf(&b, "  - {name: port, on: [net.connect], action: deny, when: 'net.remote.address.within(\"127.77.0.0/16\") && net.remote.port != %d'}\n", 1000+i)
		}
		return []string{b.String()}
	}
	var images []*policy.Image
	m := l.machine()
	for i := range 70 {
		images = append(images, image(t, m, parse(t, gen(i)...)))
	}
	if _, err := l.Apply(images[0]); err != nil {
		t.Fatal(err)
	}
	opposite := fmt.Sprintf("apiVersion: pavise.dev/v1alpha1\nkind: Policy\nmetadata: {name: shadow}\nspec:\n  mode: enforce\n  rules:\n"+
		"  - {name: free, on: [file.open], action: kill, when: 'file.path == %q'}\n", free)
	if deny {
		opposite += "  - {name: net, on: [net.connect], action: deny, when: 'net.remote.address.within(\"127.78.0.0/16\")'}\n"
	}
	shadow := image(t, m, parse(t, opposite))

	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	var kills, denies, opens, connects, echoes atomic.Int64
	load := func(n *atomic.Int64, act func() error) {
		wg.Go(func() {
			for ctx.Err() == nil {
				if err := act(); err != nil {
					t.Error(err)
					return
				}
				n.Add(1)
				time.Sleep(50 * time.Microsecond) // the load is not to be one of processors
			}
		})
	}
	load(&kills, func() error {
		out, err := exec.Command("/bin/cat", secret).Output()
		if err == nil || len(out) > 0 {
			return fmt.Errorf("the secret was read: %q, %w", out, err)
		}
		return nil
	})
	if deny {
		load(&denies, func() error {
			if err := connect(&unix.SockaddrInet4{Port: 9, Addr: [4]byte{127, 77, 1, 1}}); !errors.Is(err, unix.EPERM) {
				return fmt.Errorf("a forbidden connect gave: %w", err)
			}
			return nil
		})
	}
	load(&connects, func() error { return connect(&unix.SockaddrInet4{Port: 9, Addr: [4]byte{127, 78, 1, 1}}) })
	load(&opens, func() error {
		for _, f := range []string{seen, free} {
			if _, err := os.ReadFile(f); err != nil {
				return err
			}
		}
		return nil
	})
	conn := echo(t)
	load(&echoes, func() error {
		b := []byte{1}
		if _, err := conn.Write(b); err != nil {
			return err
		}
		_, err := conn.Read(b)
		return err
	})

	var took []time.Duration
	var would ShadowCount
	for i := range flips {
		begin := time.Now()
		a, err := l.Apply(images[i%len(images)])
		if err != nil {
			t.Fatal(err)
		}
		took = append(took, time.Since(begin))
		if a.Shadow != nil {
			would.Stricter += a.Shadow.Ops[pavise.OpOpen].Stricter
			would.Laxer += a.Shadow.Ops[pavise.OpOpen].Laxer
		}
		if i%20 < 4 {
			if _, err := l.Shadow(shadow); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Millisecond)
		}
	}
	// What fails changes nothing.
	was, _ := l.Counters()
	for name, spoil := range map[string]func(*policy.Image){
		"rules":  func(i *policy.Image) { i.Rules = make([]policy.Rule, policy.MaxRules+1) },
		"words":  func(i *policy.Image) { i.Words = make([]uint64, policy.MaxRowWords+1) },
		"states": func(i *policy.Image) { i.Automata = make([]policy.Automaton, policy.MaxAutomata+1) },
	} {
		bad := *images[1]
		spoil(&bad)
		if _, err := l.Apply(&bad); err == nil {
			t.Errorf("an Image with too many %s was applied", name)
		}
	}
	if is, _ := l.Counters(); len(is.RuleHits) != len(was.RuleHits) {
		t.Error("a failed Apply changed the rules")
	}
	before := kills.Load()
	for end := time.Now().Add(20 * time.Second); kills.Load() == before && time.Now().Before(end); {
		time.Sleep(10 * time.Millisecond)
	}
	if kills.Load() == before {
		t.Error("after a failed Apply nothing was killed")
	}
	cancel()
	wg.Wait()
	if would.Stricter == 0 || would.Laxer == 0 {
		t.Errorf("the shadow found %+v", would)
	}
	p50, p99 := quantile(0.5, took), quantile(0.99, took)
	t.Logf("%d flips: p50 %v, p99 %v; shadow %+v; %d kills, %d denies, %d connects, %d opens, %d echoes", flips, p50, p99, would, kills.Load(), denies.Load(), connects.Load(), opens.Load(), echoes.Load())
	l.conserved()
}

// echo returns a connection on loopback to one who sends back what it gets.
func echo(t testing.TB) net.Conn {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		c, err := ln.Accept()
		if err == nil {
			_, _ = io.Copy(c, c)
			c.Close()
		}
		ln.Close()
	}()
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// TestKernelUnderLoadConservation starts processes as fast as the machine can: each is accounted for, under its true parent.
func TestKernelUnderLoadConservation(t *testing.T) {
	kerntest.Require(t, kerntest.Root, kerntest.Syscall, kerntest.TpBtf)
	d := 5 * time.Second
	if s := os.Getenv("PAVISE_LONG"); s != "" {
		d = 30 * time.Second
	}
	program := shortProgram(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}

	table := proc.New(proc.Options{})
	forks := map[uint64][]uint32{} // by parent
	var wrong, peak int
	spawners := map[uint64]uint32{}
	l := start(t, func(e *pavise.Event) {
		if e.Op == pavise.OpFork {
			forks[e.Exec.ParentExecID] = append(forks[e.Exec.ParentExecID], e.PID)
		}
		short := e.Op == pavise.OpExec && e.Exec.Exe.Path == program
		if e.Op == pavise.OpExec && !e.Exec.Found && e.Exec.Exe.Path == self {
			spawners[e.ExecID] = e.PID
		}
		parent := e.Exec.ParentExecID
		if e.Op >= pavise.NumOps {
			return
		}
		id := e.ExecID
		table.Update(e)
		if short {
			p := table.Lookup(id)
			if p == nil || p.ParentExecID != parent || spawners[parent] == 0 || p.Parent == nil || p.Parent.PID != spawners[parent] {
				wrong++
			}
		}
	})
	var cmds []*exec.Cmd
	var outs []*bytes.Buffer
	var go1 []io.WriteCloser
	for range 2 * runtime.NumCPU() {
		c := exec.Command(self)
		c.Env = append(os.Environ(), "PAVISE_SPAWN="+d.String(), "PAVISE_PROGRAM="+program)
		out := new(bytes.Buffer)
		c.Stdout, c.Stderr = out, os.Stderr
		in, err := c.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		cmds, outs, go1 = append(cmds, c), append(outs, out), append(go1, in)
	}
	begin := time.Now()
	for _, in := range go1 {
		if _, err := in.Write([]byte{1}); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range cmds {
		if err := c.Wait(); err != nil {
			t.Error(err)
		}
	}
	took := time.Since(begin)
	peak = rss(t)
	c := l.conserved()
	made := 0
	for i, c := range cmds {
		var pids []uint32
		for b := outs[i].Bytes(); len(b) >= 4; b = b[4:] {
			pids = append(pids, binary.LittleEndian.Uint32(b))
		}
		made += len(pids)
		for id, pid := range spawners {
			if pid != uint32(c.Process.Pid) {
				continue
			}
			missing := 0
			for _, f := range forks[id] { // a subsequence of what was made; all of it when nothing was lost
				n := slices.Index(pids, f)
				if n < 0 {
					t.Errorf("%d is said to be a child of %d, which did not make it", f, pid)
					break
				}
				missing += n
				pids = pids[n+1:]
			}
			missing += len(pids)
			if uint64(missing) > lostOf(l, pavise.OpFork) {
				t.Errorf("spawner %d: %d children are not known, %d records were lost", pid, missing, lostOf(l, pavise.OpFork))
			}
		}
	}
	if len(spawners) != len(cmds) {
		t.Errorf("%d spawners known of %d", len(spawners), len(cmds))
	}
	lost := c.Ops[pavise.OpFork].Lost + c.Ops[pavise.OpExec].Lost
	if wrong > 0 && lost == 0 {
		t.Errorf("%d processes have a wrong parent in the table", wrong)
	}
	if c.Ops[pavise.OpExec].Seen < uint64(made) || c.Ops[pavise.OpExit].Seen < uint64(made) {
		t.Errorf("%d processes were made; seen %d execs and %d exits", made, c.Ops[pavise.OpExec].Seen, c.Ops[pavise.OpExit].Seen)
	}
	t.Logf("%d processes in %v: %.0f a second, %d lost, %d with a wrong parent; %d MiB resident, %d KiB of maps",
		made, took.Round(time.Millisecond), float64(made)/took.Seconds(), lost, wrong, peak>>20, c.MapBytes>>10)
}

func lostOf(l *live, op pavise.Op) uint64 {
	c, err := l.Counters()
	if err != nil {
		l.t.Fatal(err)
	}
	return c.Ops[op].Lost
}

// rss is this process's resident memory, the shared mappings of the tables left out: those are kernel memory.
func rss(t testing.TB) int {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, "RssAnon:"); ok {
			n, err := strconv.Atoi(strings.Fields(rest)[0])
			if err != nil {
				t.Fatal(err)
			}
			return n << 10
		}
	}
	t.Fatal("no RssAnon in /proc/self/status")
	return 0
}

// TestKernelUnderLoadOverload floods the telemetry ring, unread: the verdict that was enforced is delivered, and what was lost is counted.
func TestKernelUnderLoadOverload(t *testing.T) {
	kerntest.Require(t, kerntest.Root, kerntest.Syscall, kerntest.TpBtf)
	l := start(t, nil)
	if !l.Machine()[pavise.OpConnect].Deny {
		t.Skip(kerntest.NotExpected + "net.connect cannot be denied")
	}
	l.apply(`apiVersion: pavise.dev/v1alpha1
kind: Policy
metadata: {name: flood}
spec:
  mode: enforce
  rules:
  - {name: all, on: [net.connect], action: audit, when: 'net.remote.address.within("127.64.0.0/10")'}
  - {name: no, on: [net.connect], action: deny, when: 'net.remote.address.within("127.1.0.0/16")'}
`)
	const flood, every = 60000, 10000
	denied := 0
	for i := range flood {
		if err := connect(&unix.SockaddrInet4{Port: 9, Addr: [4]byte{127, 64 + byte(i>>16), byte(i >> 8), byte(i)}}); err != nil {
			t.Fatal(err)
		}
		if i%every == every-1 {
			if err := connect(&unix.SockaddrInet4{Port: i, Addr: [4]byte{127, 1, 1, 1}}); !errors.Is(err, unix.EPERM) {
				t.Fatalf("the connect was not refused: %v", err)
			}
			denied++
		}
	}
	got := 0
	l.read(func(e *pavise.Event) {
		if e.Op == pavise.OpConnect && e.Action == pavise.ActionDeny && e.PID == uint32(os.Getpid()) {
			got++
		}
	})
	time.Sleep(200 * time.Millisecond)
	c := l.conserved()
	if got != denied {
		t.Errorf("%d denies delivered of %d", got, denied)
	}
	o := c.Ops[pavise.OpConnect]
	if o.Lost == 0 || o.Seen < flood {
		t.Errorf("%d of %d lost: the ring was not full", o.Lost, o.Seen)
	}
	var rules uint64
	for _, n := range c.RuleLost {
		rules += n
	}
	if rules != o.Lost {
		t.Errorf("%d lost by rule, %d by operation", rules, o.Lost)
	}
}

// TestKernelFold repeats one act: one event at once, one with the count later.
func TestKernelFold(t *testing.T) {
	kerntest.Require(t, kerntest.Root, kerntest.Syscall, kerntest.TpBtf)
	name := filepath.Join(t.TempDir(), "again")
	if err := os.WriteFile(name, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var counts []uint64
	l := start(t, func(e *pavise.Event) {
		if e.Op == pavise.OpOpen && e.File.Path == name {
			mu.Lock()
			counts = append(counts, e.Count)
			mu.Unlock()
		}
	})
	l.apply(fmt.Sprintf("{apiVersion: pavise.dev/v1alpha1, kind: Policy, metadata: {name: p}, spec: {mode: monitor, rules: [{name: r, on: [file.open], action: audit, when: 'file.path == %q'}]}}", name))
	acts := 10000
	if kerntest.VM() != "" {
		acts = 1000
	}
	open := func() {
		fd, err := unix.Open(name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		unix.Close(fd)
	}
	begin := time.Now()
	for range acts {
		open()
	}
	took := time.Since(begin)
	time.Sleep(100 * time.Millisecond)
	mu.Lock()
	first := slices.Clone(counts)
	mu.Unlock()
	if len(first) == 0 || first[0] != 1 {
		t.Errorf("the first event was not delivered at once: %v", first)
	}
	time.Sleep(1100 * time.Millisecond)
	open()
	c := l.conserved()
	var sum uint64
	for _, n := range counts {
		sum += n
	}
	if sum != uint64(acts+1) {
		t.Errorf("the counts %v are %d acts, %d were done", counts, sum, acts+1)
	}
	if most := 2 + int(took/time.Second); len(counts) > most {
		t.Errorf("%d events for %d acts in %v, at most %d were expected", len(counts), acts+1, took, most)
	}
	if o := c.Ops[pavise.OpOpen]; o.Folded != uint64(acts+1-len(counts)) {
		t.Errorf("%d folded, want %d", o.Folded, acts+1-len(counts))
	}
	t.Logf("%d acts in %v: events with counts %v", acts+1, took, counts)
}

// TestKernelFoldApart does one act after the other on objects that are much alike: inodes in a row opened in two ways, addresses and ports that differ in the same bits, sockets whose names
// have one length. Each is an event of its own.
func TestKernelFoldApart(t *testing.T) {
	kerntest.Require(t, kerntest.Root, kerntest.Syscall, kerntest.TpBtf)
	dir, err := os.MkdirTemp("", "fold") // short: a socket's name is at most 108 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	var mu sync.Mutex
	got := map[string]int{}
	l := start(t, func(e *pavise.Event) {
		if e.PID != uint32(os.Getpid()) || e.Action != pavise.ActionAudit {
			return
		}
		mu.Lock()
		defer mu.Unlock()
		if e.Op == pavise.OpOpen {
			got[fmt.Sprint(e.File.Path, e.File.Access)]++
		} else {
			got[fmt.Sprint(e.Net.RemotePath, e.Net.Remote, e.Net.RemotePort)]++
		}
	})
	const n = 64
	want := 4 * n // made, read, and opened to be changed; and made on two file systems
	for _, name := range []string{"/a", "/b"} {
		if err := os.Mkdir(dir+name, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount("tmpfs", dir+name, "tmpfs", 0, ""); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Unmount(dir+name, unix.MNT_DETACH) })
	}
	rules := fmt.Sprintf("{name: r, on: [file.open], action: audit, when: 'file.path.under(%q)'}", dir)
	connects := l.Machine()[pavise.OpConnect].Rung != pavise.RungNone
	if connects {
		rules += fmt.Sprintf(", {name: c, on: [net.connect], action: audit, when: 'net.remote.path.under(%q) || net.remote.address.within(\"127.99.0.0/16\")'}", dir)
		want += n + 8
	} else {
		t.Log("net.connect is not judged on this kernel")
	}
	l.apply("{apiVersion: pavise.dev/v1alpha1, kind: Policy, metadata: {name: p}, spec: {mode: monitor, rules: [" + rules + "]}}")
	for i := range n {
		if err := os.WriteFile(fmt.Sprintf("%s/%03d", dir, i), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for i := range n {
		for _, flags := range []int{unix.O_RDONLY, unix.O_RDWR} {
			fd, err := unix.Open(fmt.Sprintf("%s/%03d", dir, i), flags|unix.O_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			unix.Close(fd)
		}
	}
	for i := range n { // the same inodes, on devices whose numbers differ in a bit or two
		if err := os.WriteFile(fmt.Sprintf("%s/%c/%03d", dir, 'a'+i%2, i), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	connect := func(family, kind int, a unix.Sockaddr) {
		t.Helper()
		fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		if err := unix.Connect(fd, a); err != nil {
			t.Fatal(err)
		}
	}
	for i := range n {
		if !connects {
			break
		}
		connect(unix.AF_INET, unix.SOCK_DGRAM, &unix.SockaddrInet4{Port: 1000 ^ i, Addr: [4]byte{127, 99, byte(i), 1}})
	}
	for i := range want % n {
		at := &unix.SockaddrUnix{Name: fmt.Sprintf("%s/s%d", dir, i)}
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		if err := errors.Join(unix.Bind(fd, at), unix.Listen(fd, 1)); err != nil {
			t.Fatal(err)
		}
		connect(unix.AF_UNIX, unix.SOCK_STREAM, at)
	}
	l.conserved()
	mu.Lock()
	defer mu.Unlock()
	for what, n := range got {
		if n != 1 {
			t.Errorf("%d events of %s", n, what)
		}
	}
	if len(got) != want {
		t.Errorf("%d acts were told, of %d that differ", len(got), want)
	}
}
