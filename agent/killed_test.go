package agent

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/pavise-project/pavise"
	"github.com/pavise-project/pavise/enforce"
	"github.com/pavise-project/pavise/internal/kerntest"
	"github.com/pavise-project/pavise/policy"
	"golang.org/x/sys/unix"
)

// agentEnv makes this test binary an agent, which can be killed.
const agentEnv = "PAVISE_TEST_AGENT"

func TestMain(m *testing.M) {
	if dir := os.Getenv(worldEnv); dir != "" {
		worldMain(dir)
	}
	if s := os.Getenv(agentEnv); s != "" {
		if err := runKillable(s); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

var kills = flag.Int("kills", 0, "with TestKernelAgentKilled: how many kills, however long they take")

// killable is an agent in a process of its own.
type killable struct {
	Dir    string // of its socket and state
	Pins   string
	Keep   string
	Build  string
	Events bool
	Policy string // beside that of deniesNets(91, 92)
	Secret string // a file that nobody may open, where opening can be denied

	exe    string // "" for this one
	cmd    *exec.Cmd
	ready  chan struct{}
	done   chan struct{}
	mu     sync.Mutex
	errors strings.Builder
	events []string
}

// runKillable is the agent's main. It ends when it is told by SIGTERM.
func runKillable(config string) error {
	var k killable
	if err := json.Unmarshal([]byte(config), &k); err != nil {
		return err
	}
	keep, err := enforce.ParseKeep(k.Keep)
	if err != nil {
		return err
	}
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer cancel()
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	e, err := enforce.Open(ctx, enforce.Options{Log: log, Keep: keep, PinDir: k.Pins, Build: k.Build})
	if err != nil {
		return err
	}
	var ps []*policy.Policy
	if e.Machine()[pavise.OpConnect].Deny {
		ps, err = policy.Parse("killed.yaml", deniesNets(91, 92))
	}
	if k.Secret != "" && e.Machine()[pavise.OpOpen].Deny {
		k.Policy += fmt.Sprintf("apiVersion: pavise.dev/v1alpha1\nkind: Policy\nmetadata: {name: secret}\nspec: {mode: enforce, rules: [{name: r, on: [file.open], action: deny, when: 'file.path == %q'}]}\n", k.Secret)
	}
	if err == nil && k.Policy != "" {
		var more []*policy.Policy
		more, err = policy.Parse("more.yaml", []byte(k.Policy))
		ps = append(ps, more...)
	}
	if err != nil {
		return errors.Join(err, e.Close())
	}
	c := Config{
		Policies: ps,
		Socket:   filepath.Join(k.Dir, "s"), StateDir: filepath.Join(k.Dir, "state"), Kernel: e, Log: log,
		OnReady: func(*Status) { fmt.Println("ready") },
	}
	if k.Events {
		c.OnEvent = func(e *pavise.Event) { fmt.Println(string(e.AppendJSON([]byte("event ")))) }
	}
	a, err := New(c)
	if err != nil {
		return errors.Join(err, e.Close())
	}
	return a.Run(ctx)
}

func (k *killable) begin(t *testing.T) {
	t.Helper()
	config, err := json.Marshal(k)
	if err != nil {
		t.Fatal(err)
	}
	exe := k.exe
	if exe == "" {
		exe = "/proc/self/exe"
	}
	k.cmd = exec.Command(exe)
	k.cmd.Env = append(os.Environ(), agentEnv+"="+string(config))
	k.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := k.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	k.cmd.Stderr = k
	if err := k.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ready, done := make(chan struct{}), make(chan struct{})
	k.ready, k.done = ready, done
	go func() {
		defer close(done)
		for s := bufio.NewScanner(out); s.Scan(); {
			if s.Text() == "ready" {
				close(ready)
			} else if e, ok := strings.CutPrefix(s.Text(), "event "); ok {
				k.mu.Lock()
				k.events = append(k.events, e)
				k.mu.Unlock()
			}
		}
	}()
}

// Write keeps what the agent says.
func (k *killable) Write(b []byte) (int, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.errors.Write(b)
}

func (k *killable) said() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.errors.String()
}

func (k *killable) wait(t *testing.T) {
	t.Helper()
	select {
	case <-k.ready:
	case <-k.done:
		t.Fatalf("the agent ended: %v\n%s", k.cmd.Wait(), k.said())
	case <-time.After(2 * time.Minute):
		t.Fatalf("the agent did not get ready\n%s", k.said())
	}
}

// end sends a signal and waits for the end.
func (k *killable) end(sig os.Signal) {
	_ = k.cmd.Process.Signal(sig)
	<-k.done
	_ = k.cmd.Wait()
}

// denies tells whether connections can be denied on this machine.
func (k *killable) denies() bool { return errors.Is(connectTo(91, 1), unix.EPERM) }

func (k *killable) client() *Client { return NewClient(filepath.Join(k.Dir, "s")) }

func newKillable(t *testing.T) *killable {
	t.Helper()
	kerntest.Require(t, kerntest.Root, kerntest.Syscall, kerntest.TpBtf)
	pins := t.TempDir()
	if err := unix.Mount("bpf", pins, "bpf", 0, "mode=700"); err != nil {
		t.Fatalf("mount a bpf file system: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(pins, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	k := &killable{Dir: t.TempDir(), Pins: filepath.Join(pins, "pins"), Keep: "forever"}
	t.Cleanup(func() {
		if k.cmd != nil {
			k.end(syscall.SIGKILL)
		}
		if _, err := enforce.RemoveLeft(k.Pins, false); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Log(k.said())
		}
	})
	return k
}

func deniesNets(nets ...int) []byte {
	s := "apiVersion: pavise.dev/v1alpha1\nkind: Policy\nmetadata: {name: killed}\nspec:\n  mode: enforce\n  rules:\n"
	for _, n := range nets {
		s += fmt.Sprintf("  - {name: net%d, on: [net.connect], action: deny, when: 'net.remote.address.within(\"127.%d.0.0/16\")'}\n", n, n)
	}
	return []byte(s)
}

// TestKernelAgentKilled kills the agent at random points of changes, and of its starts: what is in force then is one of the two revisions, and nothing that both deny
// is let through by anyone, at any time.
func TestKernelAgentKilled(t *testing.T) {
	k := newKillable(t)
	k.Secret = filepath.Join(k.Dir, "secret")
	if err := os.WriteFile(k.Secret, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	k.begin(t)
	k.wait(t)
	c := k.client()
	defer func() { c.Close() }()
	if !k.denies() {
		t.Skip(kerntest.NotExpected + "net.connect cannot be denied")
	}
	revisions := [2][]byte{deniesNets(91, 92), deniesNets(91, 93)}
	apply := func(ctx context.Context, i int) error {
		_, err := c.Apply(ctx, "killed.yaml", revisions[i], nil, ApplyOptions{})
		return err
	}
	var longest time.Duration
	for i := range 6 {
		begin := time.Now()
		if err := apply(t.Context(), i%2); err != nil {
			t.Fatal(err)
		}
		if i > 1 { // the first loads programs
			longest = max(longest, time.Since(begin))
		}
	}
	is := 1
	// inForce is which of the two revisions is.
	inForce := func(when string) int {
		t.Helper()
		got := [2]bool{}
		for i, net := range []byte{92, 93} {
			err := connectTo(net, 1)
			if got[i] = errors.Is(err, unix.EPERM); err != nil && !got[i] {
				t.Fatal(err)
			}
		}
		if got[0] == got[1] {
			t.Fatalf("%s, 127.92 is denied: %v, and 127.93: %v", when, got[0], got[1])
		}
		return map[bool]int{true: 0, false: 1}[got[0]]
	}

	load, stop := context.WithCancel(t.Context())
	defer stop()
	var tries, allowed, opens atomic.Int64
	var wg sync.WaitGroup
	if f, err := os.Open(k.Secret); errors.Is(err, unix.EPERM) {
		wg.Go(func() {
			for load.Err() == nil {
				if _, err := os.Open(k.Secret); !errors.Is(err, unix.EPERM) {
					t.Errorf("an open: %v", err)
					return
				}
				opens.Add(1)
				time.Sleep(time.Millisecond)
			}
		})
	} else if err != nil || kerntest.Probe(kerntest.LSM) == nil {
		t.Fatalf("an open is not denied: %v", err)
	} else {
		_ = f.Close()
	}
	for net, want := range map[byte]error{91: unix.EPERM, 99: nil} {
		wg.Go(func() {
			for i := byte(0); load.Err() == nil; i++ {
				if kerntest.VM() != "" && i%8 == 0 {
					time.Sleep(time.Millisecond) // emulated, it would have the machine to itself
				}
				if err := connectTo(net, i); !errors.Is(err, want) {
					t.Errorf("a connect to 127.%d: %v, want %v", net, err, want)
					return
				}
				if want != nil {
					tries.Add(1)
				} else {
					allowed.Add(1)
					time.Sleep(time.Millisecond) // a core for the agent
				}
			}
		})
	}
	rounds, changed, during, begin := 100, 0, 0, time.Now()
	limit := time.Duration(1<<63 - 1)
	switch vm := kerntest.VM(); {
	case *kills > 0:
		rounds = *kills
	case vm == "newest":
		limit = 30 * time.Second // emulated, a round takes seconds: -kills 100 takes what it takes
	}
	var up time.Duration
	done := 0
	for round := range rounds {
		if done > 4 && time.Since(begin) > limit {
			break
		}
		done++
		next := 1 - is
		answer := make(chan error, 1)
		ctx, cancel := context.WithCancel(t.Context())
		go func() { answer <- apply(ctx, next) }()
		time.Sleep(rand.N(longest * 3 / 2))
		k.end(syscall.SIGKILL)
		acknowledged := <-answer == nil
		cancel()
		now := inForce("after a kill")
		if acknowledged && now != next {
			t.Fatalf("round %d: revision %d was acknowledged, and %d is in force", round, next, now)
		}
		c.Close()
		for rand.N(3) == 0 { // it is killed at its start too
			k.begin(t)
			time.Sleep(rand.N(longest*2 + up))
			k.end(syscall.SIGKILL)
			during++
			inForce("after a kill at start")
		}
		start := time.Now()
		k.begin(t)
		k.wait(t)
		up = time.Since(start)
		c = k.client()
		was := is
		is = inForce("after a start")
		if acknowledged && is != next {
			t.Fatalf("round %d: revision %d was acknowledged, and %d is in force after the next start", round, next, is)
		}
		if is != was {
			changed++
		}
		ps, _, err := c.Policies(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(ps, func(p PolicyStatus) bool { return p.Name == "killed" })
		if got := ps[i].Rules[1].Name; got != [2]string{"net92", "net93"}[is] {
			t.Fatalf("round %d: the agent says %s is in force", round, got)
		}
		if t.Failed() {
			return
		}
	}
	took := time.Since(begin)
	stop()
	wg.Wait()
	s, err := c.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range s.Ops {
		if o.Seen != o.Delivered+o.Folded+o.Lost {
			t.Errorf("%s: %d seen, %d delivered + %d folded + %d lost", o.Op, o.Seen, o.Delivered, o.Folded, o.Lost)
		}
	}
	if !s.Keep.Adopted {
		t.Errorf("%+v", s.Keep)
	}
	t.Logf("%d kills in changes of up to %v, %d of them changed, and %d kills at start, in %v (a start takes %v); %d connects and %d opens denied, %d connects allowed; %d events lost",
		done, longest.Round(time.Millisecond), changed, during, took.Round(time.Millisecond), up.Round(time.Millisecond), tries.Load(), opens.Load(), allowed.Load(), s.Ops[2].Lost)
}

// TestKernelAgentUnconfirmed cuts the tester off by a change that nobody confirms. The node undoes it by itself: by the agent, by the next agent when that one was
// killed, and by the kernel when there is none any more.
func TestKernelAgentUnconfirmed(t *testing.T) {
	k := newKillable(t)
	k.begin(t)
	k.wait(t)
	if !k.denies() {
		t.Skip(kerntest.NotExpected + "net.connect cannot be denied")
	}
	within := 3 * time.Second
	if kerntest.VM() != "" {
		within = 8 * time.Second // an agent starts in that
	}
	denied := func(net byte) bool {
		t.Helper()
		err := connectTo(net, 1)
		if err != nil && !errors.Is(err, unix.EPERM) {
			t.Fatal(err)
		}
		return err != nil
	}
	// cut applies a change that denies the tester its access, and returns when it ends.
	cut := func() time.Time {
		t.Helper()
		if denied(95) {
			t.Fatal("there is no access to be cut off")
		}
		c := k.client()
		defer c.Close()
		end := time.Now().Add(within)
		if _, err := c.Apply(t.Context(), "killed.yaml", deniesNets(91, 92, 95), nil, ApplyOptions{ConfirmWithin: within}); err != nil {
			t.Fatal(err)
		}
		if !denied(95) {
			t.Fatal("the change is not in force")
		}
		return end
	}
	back := func(when string, end time.Time, grace time.Duration) {
		t.Helper()
		for denied(95) {
			if time.Now().After(end.Add(grace)) {
				t.Fatalf("%s: still cut off %s after the time to confirm", when, grace)
			}
			time.Sleep(20 * time.Millisecond)
		}
		if early := time.Until(end); early > 100*time.Millisecond {
			t.Errorf("%s: it was undone %s too early", when, early)
		}
		t.Logf("%s: undone %s after the time to confirm", when, time.Since(end))
	}
	back("by the agent", cut(), 15*time.Second)
	if !denied(91) {
		t.Error("what was in force before is not")
	}

	end := cut()
	k.end(syscall.SIGKILL)
	if !denied(95) || !denied(91) {
		t.Error("the agent's death let something through")
	}
	k.begin(t)
	k.wait(t)
	back("by the next agent", end, 15*time.Second)
	if !denied(91) {
		t.Error("what was in force before is not")
	}

	end = cut()
	k.end(syscall.SIGKILL)
	back("without an agent", end, 15*time.Second)
	k.begin(t)
	k.wait(t)
	if denied(95) || !denied(91) || !denied(92) {
		t.Error("the next agent did not go back to what was in force before")
	}
}
