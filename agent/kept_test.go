package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pavise-project/pavise"
	"github.com/pavise-project/pavise/enforce"
	"github.com/pavise-project/pavise/internal/kerntest"
	"golang.org/x/sys/unix"
)

func connectPort(net byte, port int) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Connect(fd, &unix.SockaddrInet4{Port: port, Addr: [4]byte{127, net, 0, 1}})
}

// told waits for the event of a connection that was denied, and returns how often it was told, and by which rule.
func (k *killable) told(t *testing.T, port int) (n uint64, rule string) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); n == 0 && time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		k.mu.Lock()
		for _, line := range k.events {
			var e struct {
				Op     string `json:"op"`
				Policy string `json:"policy"`
				Rule   string `json:"rule"`
				Count  uint64 `json:"count"`
				Net    struct {
					Remote struct {
						Port int `json:"port"`
					} `json:"remote"`
				} `json:"net"`
			}
			if err := json.Unmarshal([]byte(line), &e); err != nil {
				t.Errorf("%v in %s", err, line)
			}
			if e.Op == pavise.OpConnect.String() && e.Net.Remote.Port == port {
				n += max(e.Count, 1)
				rule = e.Policy + "/" + e.Rule
			}
		}
		k.mu.Unlock()
	}
	return n, rule
}

// TestKernelAgentKept: what was denied while there was no agent is told once, by the next one and with its rule; counts go on; and only one agent at a time has a place.
func TestKernelAgentKept(t *testing.T) {
	k := newKillable(t)
	k.Events = true
	begin := func(keep string) *Client {
		t.Helper()
		k.Keep = keep
		k.begin(t)
		k.wait(t)
		return k.client()
	}
	c := begin("forever")
	if !k.denies() {
		t.Skip(kerntest.NotExpected + "net.connect cannot be denied")
	}
	port := 1000
	deny := func(when string, net byte, want bool) {
		t.Helper()
		port++
		if err := connectPort(net, port); errors.Is(err, unix.EPERM) != want {
			t.Fatalf("%s, a connect to 127.%d: %v", when, net, err)
		}
	}
	hits := func(rule string) uint64 {
		t.Helper()
		p, err := c.Policy(t.Context(), "killed")
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range p.Rules {
			if r.Name == rule {
				return r.Hits
			}
		}
		t.Fatalf("no rule %s: %+v", rule, p)
		return 0
	}
	deny("at first", 91, true)
	if n, rule := k.told(t, port); n != 1 || rule != "killed/net91" {
		t.Errorf("told %d times, of %s", n, rule)
	}
	// Places are for one agent at a time.
	for what, other := range map[string]*killable{
		"the same pins":            {Dir: t.TempDir(), Pins: k.Pins, Keep: "forever"},
		"the same state directory": {Dir: k.Dir, Pins: filepath.Join(filepath.Dir(k.Pins), "others"), Keep: "forever"},
		"a directory elsewhere":    {Dir: t.TempDir(), Pins: t.TempDir(), Keep: "forever"},
	} {
		other.begin(t)
		<-other.done
		err := other.cmd.Wait()
		want := fmt.Sprintf("pid %d", k.cmd.Process.Pid)
		if what == "a directory elsewhere" {
			want = "not on a bpf file system"
		}
		if said := other.said(); err == nil || !strings.Contains(said, want) {
			t.Errorf("another agent with %s: %v, %s", what, err, said)
		}
	}
	deny("after other agents", 91, true)

	k.end(syscall.SIGKILL)
	c.Close()
	deny("without an agent", 91, true)
	unseen := port
	c = begin("forever")
	if n, rule := k.told(t, unseen); n != 1 || rule != "killed/net91" {
		t.Errorf("what was denied without an agent is told %d times, of %q", n, rule)
	}
	deny("with the next agent", 91, true)
	if got := hits("net91"); got != 5 {
		t.Errorf("%d hits, want 5", got)
	}
	// Another policy makes another generation: its rules are others, and the counts go on.
	if _, err := c.Apply(t.Context(), "o.yaml", []byte(strings.Replace(string(deniesNets(94)), "name: killed", "name: other", 1)), nil, ApplyOptions{}); err != nil {
		t.Fatal(err)
	}
	deny("after a change", 91, true)
	k.end(syscall.SIGTERM)
	c.Close()
	deny("after SIGTERM", 91, true)
	unseen = port
	deny("after SIGTERM", 94, true)
	c = begin("forever")
	if n, rule := k.told(t, unseen); n != 1 || rule != "killed/net91" {
		t.Errorf("told %d times, of %q", n, rule)
	}
	if got := hits("net91"); got != 7 {
		t.Errorf("%d hits over two generations and three agents, want 7", got)
	}
	s, err := c.Status(t.Context())
	if err != nil || s.Keep.Keep != "forever" || !s.Keep.Adopted || s.Keep.Pins != k.Pins {
		t.Errorf("%+v, %v", s.Keep, err)
	}
	if _, _, err := Uninstall(Places{Pins: k.Pins, StateDir: filepath.Join(k.Dir, "state"), Socket: filepath.Join(k.Dir, "s")}, false); !errors.Is(err, ErrAgentRuns) {
		t.Errorf("uninstalled while an agent runs: %v", err)
	}
	deny("after an uninstall that was refused", 94, true)
	k.end(syscall.SIGKILL)
	c.Close()

	// An agent of another build: the same once more, with events that are the old build's.
	deny("without an agent", 94, true)
	unseen = port
	k.Build = "00000000"
	c = begin("forever")
	if n, rule := k.told(t, unseen); n != 1 || rule != "other/net94" {
		t.Errorf("what was denied before another build is told %d times, of %q", n, rule)
	}
	deny("with another build", 94, true)
	if s, err := c.Status(t.Context()); err != nil || s.Keep.Adopted || !strings.Contains(s.Keep.Replaced, "another build") || s.UnnamedRules > 0 {
		t.Errorf("%+v, %v", s, err)
	}
	k.end(syscall.SIGKILL)
	c.Close()

	// An agent that keeps nothing takes it over, and away.
	c = begin("no")
	deny("with an agent that keeps nothing", 91, true)
	if s, err := c.Status(t.Context()); err != nil || s.Keep.Keep != "no" || !s.Keep.Adopted {
		t.Errorf("%+v, %v", s.Keep, err)
	}
	k.end(syscall.SIGKILL)
	c.Close()
	for i := 0; ; i++ { // its descriptors are closed a moment later
		if err := connectPort(91, 2000+i); err == nil {
			break
		} else if i > 1000 {
			t.Fatalf("without an agent that keeps nothing: %v", err)
		}
		time.Sleep(5 * time.Millisecond)
	}

	// Uninstall, after one that was killed.
	c = begin("forever")
	k.end(syscall.SIGKILL)
	c.Close()
	deny("without an agent", 91, true)
	places := Places{Pins: k.Pins, StateDir: filepath.Join(k.Dir, "state"), Socket: filepath.Join(k.Dir, "s")}
	would, _, err := Uninstall(places, true)
	if err != nil {
		t.Fatal(err)
	}
	deny("after a dry run", 91, true)
	did, left, err := Uninstall(places, false)
	if err != nil || len(left) > 0 || !slices.Equal(did, would) || len(did) < 20 {
		t.Errorf("%d removed, %d would be, %q are left, %v", len(did), len(would), left, err)
	}
	deny("after uninstall", 91, false)
	for _, p := range []string{places.Pins, places.StateDir, places.Socket} {
		if _, err := os.Lstat(p); err == nil {
			t.Errorf("%s is still there", p)
		}
	}
	if again, _, err := Uninstall(places, false); err != nil || len(again) > 0 {
		t.Errorf("the second time: %q, %v", again, err)
	}
}

// TestKernelAgentGuarded: a policy keeps others from removing the pins, and a rule on bpf(2) the next agent from nothing.
func TestKernelAgentGuarded(t *testing.T) {
	k := newKillable(t)
	kerntest.Require(t, kerntest.LSM)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	k.Policy = fmt.Sprintf(`apiVersion: pavise.dev/v1alpha1
kind: Policy
metadata: {name: guard}
spec:
  mode: enforce
  subject: process.exe.path != %q
  rules:
  - {name: pins, on: [file.delete, file.rename], action: deny, when: 'file.path.under(%q)'}
  - {name: unmount, on: [fs.umount], action: deny, when: 'file.path == %q'}
---
apiVersion: pavise.dev/v1alpha1
kind: Policy
metadata: {name: bpf}
spec:
  mode: enforce
  rules:
  - {name: all, on: [kernel.bpf], action: deny}
`, exe, k.Pins, filepath.Dir(k.Pins))
	k.begin(t)
	k.wait(t)
	attack := func(when string) {
		t.Helper()
		for _, args := range [][]string{{"rm", "-rf", k.Pins}, {"mv", k.Pins, k.Pins + "2"}, {"umount", "-l", filepath.Dir(k.Pins)}} {
			if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err == nil || !strings.Contains(string(out), "not permitted") && !strings.Contains(string(out), "must be superuser") { // as umount says EPERM
				t.Errorf("%s, %q: %v, %s", when, args, err, out)
			}
		}
		if err := connectTo(91, 1); !errors.Is(err, unix.EPERM) {
			t.Errorf("%s, a connect: %v", when, err)
		}
	}
	attack("with an agent")
	k.end(syscall.SIGKILL)
	attack("without an agent")
	// Another program may not call bpf(2), whatever it is.
	other := &killable{Dir: t.TempDir(), Pins: filepath.Join(filepath.Dir(k.Pins), "others"), Keep: "forever", exe: filepath.Join(t.TempDir(), "copy")}
	b, err := os.ReadFile(exe)
	if err == nil {
		err = os.WriteFile(other.exe, b, 0o700)
	}
	if err != nil {
		t.Fatal(err)
	}
	other.begin(t)
	<-other.done
	if err := other.cmd.Wait(); err == nil || !strings.Contains(other.said(), "not permitted") {
		t.Errorf("another program: %v, %s", err, other.said())
	}
	k.begin(t)
	k.wait(t)
	c := k.client()
	if s, err := c.Status(t.Context()); err != nil || !s.Keep.Adopted {
		t.Errorf("%+v, %v", s, err)
	}
	attack("with the next agent")
	for _, p := range []string{"guard", "bpf"} {
		if _, err := c.Delete(t.Context(), p); err != nil {
			t.Error(err)
		}
	}
	c.Close()
}

// TestUninstall removes what is an agent's, and nothing else.
func TestUninstall(t *testing.T) {
	dir := t.TempDir()
	state := filepath.Join(dir, "state")
	p := Places{StateDir: state, Socket: filepath.Join(dir, "s")}
	if removed, left, err := Uninstall(p, false); err != nil || len(removed)+len(left) > 0 {
		t.Errorf("%q, %q, %v", removed, left, err)
	}
	for _, f := range []string{"agent.lock", "running.json", "revisions/current", "mine"} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(state, f)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(state, f), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	unlock, err := lockState(state)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := Uninstall(p, false); !errors.Is(err, ErrAgentRuns) {
		t.Errorf("while an agent runs: %v", err)
	}
	unlock()
	if err := os.WriteFile(p.Socket, nil, 0o600); err != nil { // no socket: not an agent's
		t.Fatal(err)
	}
	removed, left, err := Uninstall(p, false)
	want := []string{filepath.Join(state, "agent.lock"), filepath.Join(state, "revisions"), filepath.Join(state, "running.json")}
	if err != nil || !slices.Equal(removed, want) || !slices.Equal(left, []string{filepath.Join(state, "mine")}) {
		t.Errorf("removed %q, left %q, %v", removed, left, err)
	}
	if _, err := os.Stat(p.Socket); err != nil {
		t.Error(err)
	}
}

// TestLossesToldOnce: the next agent tells of what was lost that none before it has told.
func TestLossesToldOnce(t *testing.T) {
	f := newFake()
	f.counters = func() (c enforce.Counters, err error) {
		c.Ops[pavise.OpOpen].Lost, c.Told[pavise.OpOpen] = 7, 5
		c.Ops[pavise.OpConnect].Lost, c.Told[pavise.OpConnect] = 3, 3
		c.Unread = 4
		return c, nil
	}
	a, err := New(Config{Socket: filepath.Join(t.TempDir(), "s"), Kernel: f, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for range 2 {
		a.poll()
	}
	events, sub, err := a.hub.subscribe(true)
	if err != nil {
		t.Fatal(err)
	}
	sub.stop()
	for _, it := range events {
		e := it.event
		got = append(got, fmt.Sprintf("%s of %s in %s: %d", e.Op, e.Lost.Op, e.Lost.Where, e.Lost.Count))
	}
	want := []string{"agent.lost of file.open in kernel-ring: 2", "agent.lost of none in another build: 4"}
	slices.Sort(got)
	if !slices.Equal(got, want) || f.told[pavise.OpOpen] != 7 || len(f.told) != 1 {
		t.Errorf("%q, want %q; remembered %v", got, want, f.told)
	}
}
