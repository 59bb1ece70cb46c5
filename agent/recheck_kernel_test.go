package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pavise-project/pavise"
	"github.com/pavise-project/pavise/bpf"
	"github.com/pavise-project/pavise/enforce"
	"github.com/pavise-project/pavise/internal/kerntest"
	"golang.org/x/sys/unix"
)

// cutPolicy denies the world an address.
func cutPolicy(established, mode string) []byte {
	return fmt.Appendf(nil, `apiVersion: pavise.dev/v1alpha1
kind: Policy
metadata: {name: cut}
spec:
  mode: %s
%s  subject: process.exe.name == "world"
  rules:
  - name: address
    on: [net.connect]
    when: net.remote.address == "127.0.0.8"
    action: deny
    severity: high
`, mode, established)
}

// TestKernelRecheck: a change of the policies leaves connections alone, unless a policy that is enforced says established: recheck. Then it ends those that it
// denies, at once, and no other.
func TestKernelRecheck(t *testing.T) {
	for _, follow := range []bool{true, false} {
		t.Run(fmt.Sprintf("flows=%v", follow), func(t *testing.T) {
			k, c := kernelAgent(t, func(k *enforce.Enforcer, cfg *Config) {
				cfg.StateDir = t.TempDir()
				if follow {
					cfg.Flows = func() (FlowSource, error) { return k.Flows(bpf.FlowOptions{Opens: true}) }
				}
			})
			if !k.Machine()[pavise.OpConnect].Deny {
				t.Skip(kerntest.NotExpected + "net.connect cannot be denied")
			}
			testRecheck(t, c, follow)
		})
	}
}

// recheckBy waits for the recheck by a generation.
func recheckBy(t *testing.T, c *Client, generation uint32) *RecheckStatus {
	t.Helper()
	for until := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		s, err := c.Status(t.Context())
		must(t, err)
		if r := s.Recheck; r != nil && r.Generation == generation {
			t.Logf("%s, missing %v", r, r.Missing)
			return r
		}
		if time.Now().After(until) {
			t.Fatalf("no recheck by generation %d: %+v", generation, s.Recheck)
		}
	}
}

func testRecheck(t *testing.T, c *Client, follow bool) {
	const recheck = "  established: recheck\n"
	const off, kept, offUDP = "127.0.0.8:5432", "127.0.0.9:5432", "127.0.0.8:80"
	w := newWorld(t)
	hold := func() {
		t.Helper()
		for _, d := range []deed{{Act: "hold", To: off}, {Act: "hold", To: kept}, {Act: "hold-udp", To: offUDP}} {
			if got := w.do(t, d); got != "" {
				t.Fatalf("%s %s: %s", d.Act, d.To, got)
			}
		}
	}
	exchanges := 0
	goOn := func(when string, which ...string) { // "hello" there and back, all of it and nothing else
		t.Helper()
		for _, to := range which {
			if got := w.do(t, deed{Act: "held", To: to}); got != "" {
				t.Errorf("%s: %s: %s", when, to, got)
			}
			if to == kept {
				exchanges++
			}
		}
	}
	ended := func(when string) {
		t.Helper()
		for _, to := range []string{off, offUDP} {
			if got := w.do(t, deed{Act: "held", To: to}); got == "" {
				t.Errorf("%s: the connection to %s goes on", when, to)
			}
		}
	}
	denied := func(when string, want bool) {
		t.Helper()
		if got := w.do(t, deed{Act: "connect", To: off}); want != strings.Contains(got, "not permitted") {
			t.Errorf("%s: a new connection: %q", when, got)
		}
	}
	result := func(when string, generation uint32, ends, would int) {
		t.Helper()
		r := recheckBy(t, c, generation)
		if r.Ended != ends || r.Would != would || r.Kept < 3 || len(r.Failed) > 0 || r.Checked != r.Ended+r.Would+r.Kept+r.Unknown {
			t.Errorf("%s: %+v; want %d ended, and %d that would be", when, *r, ends, would)
		}
	}
	told := func(when, action string) {
		t.Helper()
		var text []string
		seen := map[string]bool{}
		err := c.Events(t.Context(), EventQuery{Limit: -1, Where: `net.established && monitor == ` + fmt.Sprint(action == "would-deny")}, func(line []byte) error {
			var e pavise.Event
			if err := json.Unmarshal(line, &e); err != nil {
				return err
			}
			text = append(text, string(e.AppendText(nil, false)))
			if e.Op != pavise.OpConnect || e.Action != pavise.ActionDeny || e.Policy != "cut" || e.Rule != "address" || e.Severity != "high" || !e.Net.Established ||
				e.Process == nil || e.Process.PID != uint32(w.pid) || e.Net.LocalPort == 0 { //nolint:gosec // a pid
				t.Errorf("%s: %s", when, line)
			}
			seen[fmt.Sprintf("%s %d", pavise.ProtocolNames[e.Net.Protocol], e.Net.RemotePort)] = true
			why, err := c.Why(t.Context(), e.ID)
			if err != nil || len(why.Rules) != 1 || !why.Rules[0].Holds {
				t.Errorf("%s: why %d: %+v, %v", when, e.ID, why, err)
			}
			return nil
		})
		must(t, err)
		if len(text) != 2 || !seen["tcp 5432"] || !seen["udp 80"] || !strings.Contains(text[0], action) || !strings.Contains(text[0], "(established)") {
			t.Errorf("%s: told:\n%s", when, strings.Join(text, "\n"))
		}
	}
	apply := func(established, mode string) *Change {
		t.Helper()
		ch, err := c.Apply(t.Context(), "cut.yaml", cutPolicy(established, mode), nil, ApplyOptions{})
		must(t, err)
		return ch
	}

	hold()
	goOn("before", off, kept, offUDP)
	apply("", "enforce")
	denied("without recheck", true)
	goOn("without recheck", off, kept, offUDP)
	if s, err := c.Status(t.Context()); err != nil || s.Recheck != nil {
		t.Errorf("without recheck: %+v, %v", s.Recheck, err)
	}

	result("monitor", apply(recheck, "monitor").Generation, 0, 2)
	denied("monitor", false)
	goOn("monitor", off, kept, offUDP)
	told("monitor", "would-deny")

	ch, err := c.SetMode(t.Context(), "cut", "enforce", false)
	must(t, err)
	result("enforce", ch.Generation, 2, 0)
	denied("enforce", true)
	ended("enforce")
	goOn("enforce", kept)
	told("enforce", "deny")
	if follow {
		e := endedFlow(t, c, `flow.end == "cut-off" && net.protocol == "tcp" && process.exe.name == "world" && net.remote.port == 5432`)
		if e.Flow.Remote.Address.String() != "127.0.0.8" || e.Flow.Sent.Bytes != 15 || e.Flow.Received.Bytes != 15 {
			t.Errorf("the flow that was ended: %s", e.AppendText(nil, false))
		}
		n := uint64(5 * exchanges)
		for until := time.Now().Add(10 * time.Second); ; time.Sleep(100 * time.Millisecond) { // what is answered may be a second old
			var open []*pavise.Flow
			err := c.Flows(t.Context(), FlowQuery{Where: `flow.state == "open" && net.remote.address == "127.0.0.9" && net.remote.port == 5432 && process.exe.name == "world"`}, func(line []byte) error {
				var e pavise.Event
				err := json.Unmarshal(line, &e)
				open = append(open, e.Flow)
				return err
			})
			must(t, err)
			if len(open) == 1 && open[0].Sent.Bytes == n && open[0].Received.Bytes == n {
				break
			}
			if time.Now().After(until) {
				t.Fatalf("of the flow that goes on, of %d bytes each way: %+v", n, open)
			}
		}
	}

	// Back to what did not deny, new connections, and back again.
	_, err = c.Delete(t.Context(), "cut")
	must(t, err)
	hold()
	exchanges = 0
	ch, err = c.Rollback(t.Context(), 0, ApplyOptions{})
	must(t, err)
	result("rollback", ch.Generation, 2, 0)
	ended("rollback")
	goOn("rollback", kept)
}

// TestKernelRecheckInbound: a connection that somebody else began is judged as what was accepted. It is ended, also where nothing but the death of who accepts could
// keep another one off: the process goes on.
func TestKernelRecheckInbound(t *testing.T) {
	for _, follow := range []bool{true, false} {
		t.Run(fmt.Sprintf("flows=%v", follow), func(t *testing.T) {
			k, c := kernelAgent(t, func(k *enforce.Enforcer, cfg *Config) {
				if follow {
					cfg.Flows = func() (FlowSource, error) { return k.Flows(bpf.FlowOptions{Opens: true}) }
				}
			})
			if s := k.Machine()[pavise.OpAccept]; !s.Deny && !s.Kill {
				t.Skip(kerntest.NotExpected + "net.accept can neither be denied nor killed")
			}
			w := newWorld(t)
			const off, kept = "127.0.0.9:80", "127.0.0.9:5432"
			for _, to := range []string{off, kept} {
				for _, d := range []deed{{Act: "hold", To: to}, {Act: "held", To: to}} {
					if got := w.do(t, d); got != "" {
						t.Fatalf("%s %s: %s", d.Act, to, got)
					}
				}
			}
			ch, err := c.Apply(t.Context(), "in.yaml", []byte(`apiVersion: pavise.dev/v1alpha1
kind: Policy
metadata: {name: in}
spec:
  mode: enforce
  fallback: kill
  established: recheck
  subject: process.exe.name == "world"
  rules:
  - name: web
    on: [net.accept]
    when: net.local.port == 80
    action: deny
`), nil, ApplyOptions{})
			must(t, err)
			if r := recheckBy(t, c, ch.Generation); r.Ended != 1 || r.Kept < 3 {
				t.Errorf("%+v", r)
			}
			if got := w.do(t, deed{Act: "held", To: off}); got == "" {
				t.Errorf("%s goes on", off)
			}
			if got := w.do(t, deed{Act: "held", To: kept}); got != "" {
				t.Errorf("%s: %s", kept, got)
			}
			n := 0
			must(t, c.Events(t.Context(), EventQuery{Limit: -1, Where: "net.established"}, func(line []byte) error {
				var e pavise.Event
				err := json.Unmarshal(line, &e)
				n++
				if e.Op != pavise.OpAccept || e.Action != pavise.ActionDeny || e.Monitor || e.Net.LocalPort != 80 || e.Rule != "web" {
					t.Errorf("%s", line)
				}
				return err
			}))
			if n != 1 {
				t.Errorf("%d events", n)
			}
		})
	}
}

// TestKernelRecheckName: by an allow-list of names what was connected to by its name goes on, and what never had a name is ended.
func TestKernelRecheckName(t *testing.T) {
	k, c := flowAgent(t)
	if !k.Machine()[pavise.OpConnect].Deny {
		t.Skip(kerntest.NotExpected + "net.connect cannot be denied")
	}
	w := newWorld(t)
	const named, alias, bare, otherPort = "db.internal:5432", "www.db.internal:5432", "127.0.0.8:5432", "db.internal:80"
	for _, to := range []string{named, alias, bare, otherPort} {
		for _, d := range []deed{{Act: "hold", To: to}, {Act: "held", To: to}} {
			if got := w.do(t, d); got != "" {
				t.Fatalf("%s %s: %s", d.Act, to, got)
			}
		}
	}
	ch, err := c.Apply(t.Context(), "web.yaml", []byte(strings.Replace(domainPolicy, "spec:\n", "spec:\n  established: recheck\n", 1)), nil, ApplyOptions{})
	must(t, err)
	if r := recheckBy(t, c, ch.Generation); r.Ended != 2 || r.Kept < 6 || r.Missing["net.remote.domain"] > 0 {
		t.Errorf("%+v", r)
	}
	for to, on := range map[string]bool{named: true, alias: true, bare: false, otherPort: false} {
		if got := w.do(t, deed{Act: "held", To: to}); (got == "") != on {
			t.Errorf("%s: %q", to, got)
		}
	}
}

// recheckFor waits for a recheck for a cause, after which so many connections were ended.
func recheckFor(t *testing.T, c *Client, cause RecheckCause, ended int) *RecheckStatus {
	t.Helper()
	var s *Status
	eventually(t, fmt.Sprintf("%d connections ended by a recheck for %s", ended, cause), func() bool {
		var err error
		s, err = c.Status(t.Context())
		must(t, err)
		return s.Recheck != nil && s.Recheck.Cause == cause && s.Recheck.Ended == ended
	})
	t.Logf("%s, missing %v", s.Recheck, s.Recheck.Missing)
	return s.Recheck
}

// holds has the world connect, and say hello.
func (w *world) holds(t *testing.T, ends ...string) {
	t.Helper()
	for _, to := range ends {
		for _, d := range []deed{{Act: "hold", To: to}, {Act: "held", To: to}} {
			if got := w.do(t, d); got != "" {
				t.Fatalf("%s %s: %s", d.Act, to, got)
			}
		}
	}
}

// goOn tells of connections whether they go on.
func (w *world) goOn(t *testing.T, when string, want map[string]bool) {
	t.Helper()
	for to, on := range want {
		if got := w.do(t, deed{Act: "held", To: to}); (got == "") != on {
			t.Errorf("%s: %s: %q, want it to go on: %v", when, to, got, on)
		}
	}
}

// TestKernelRecheckStart: an agent that starts with a policy that says established: recheck ends what it denies; with another policy it ends nothing.
func TestKernelRecheckStart(t *testing.T) {
	kerntest.Require(t, kerntest.Root, kerntest.Syscall, kerntest.TpBtf)
	const off, kept = "127.0.0.8:5432", "127.0.0.9:5432"
	for _, follow := range []bool{true, false} {
		for _, established := range []string{"", "  established: recheck\n"} {
			t.Run(fmt.Sprintf("flows=%v recheck=%v", follow, established != ""), func(t *testing.T) {
				w := newWorldAs(t, &syscall.SysProcAttr{})
				w.holds(t, off, kept)
				k, c := kernelAgent(t, func(k *enforce.Enforcer, cfg *Config) {
					if !k.Machine()[pavise.OpConnect].Deny {
						return
					}
					cfg.Policies = parse(t, string(cutPolicy(established, "enforce")))
					if follow {
						cfg.Flows = func() (FlowSource, error) { return k.Flows(bpf.FlowOptions{Opens: true}) }
					}
				})
				if !k.Machine()[pavise.OpConnect].Deny {
					t.Skip(kerntest.NotExpected + "net.connect cannot be denied")
				}
				if established != "" {
					if r := recheckFor(t, c, RecheckStart, 1); r.Kept < 3 || len(r.Failed) > 0 {
						t.Errorf("%+v", r)
					}
				}
				if got := w.do(t, deed{Act: "connect", To: off}); !strings.Contains(got, "not permitted") {
					t.Errorf("a new connection: %q", got)
				}
				w.goOn(t, "started", map[string]bool{off: established == "", kept: true})
			})
		}
	}
}

// TestKernelRecheckNames: what was connected to by address is ended when that turns out to be an address of a name that is denied, and nothing else.
func TestKernelRecheckNames(t *testing.T) {
	k, c := flowAgent(t)
	if !k.Machine()[pavise.OpConnect].Deny {
		t.Skip(kerntest.NotExpected + "net.connect cannot be denied")
	}
	const off, kept = "127.0.0.9:5432", "127.0.0.8:5432"
	w := newWorld(t)
	w.holds(t, off, kept)
	ch, err := c.Apply(t.Context(), "names.yaml", []byte(`apiVersion: pavise.dev/v1alpha1
kind: Policy
metadata: {name: names}
spec:
  mode: enforce
  established: recheck
  subject: process.exe.name == "world"
  rules:
  - name: database
    on: [net.connect]
    when: net.remote.domain == "db.internal"
    action: deny
`), nil, ApplyOptions{})
	must(t, err)
	if r := recheckBy(t, c, ch.Generation); r.Ended != 0 || r.Cause != RecheckPolicies {
		t.Errorf("nobody knows the name: %+v", r)
	}
	w.goOn(t, "nobody knows the name", map[string]bool{off: true, kept: true})
	if got := w.do(t, deed{Act: "connect", To: "db.internal:5432"}); !strings.Contains(got, "not permitted") {
		t.Errorf("a new connection: %q", got)
	}
	recheckFor(t, c, RecheckNames, 1)
	w.goOn(t, "the name is known", map[string]bool{off: false, kept: true})
}

// TestKernelRecheckContainers: what a container has connected to before it was known what it is goes on until then, and is ended when a rule turns out to be about it.
func TestKernelRecheckContainers(t *testing.T) {
	kerntest.Require(t, kerntest.Root, kerntest.Syscall, kerntest.TpBtf, kerntest.Cgroup)
	mount, err := kerntest.CgroupRoot()
	must(t, err)
	group := filepath.Join(mount, "docker-"+containerID(0)+".scope")
	if err := os.Mkdir(group, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Remove(group) })
	fd, err := unix.Open(group, unix.O_PATH|unix.O_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(fd)
	roots := dockerState(t, "nginx:1.27")
	state := filepath.Join(roots[0].Dir, "containers", containerID(0), "config.v2.json")
	must(t, os.Rename(state, state+".later"))
	k, c := kernelAgent(t, func(k *enforce.Enforcer, cfg *Config) { cfg.ContainerState = roots })
	if !k.Machine()[pavise.OpConnect].Deny {
		t.Skip(kerntest.NotExpected + "net.connect cannot be denied")
	}
	const off, kept = "127.0.0.8:5432", "127.0.0.9:5432"
	w := newWorldAs(t, &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: fd})
	w.holds(t, off, kept)
	ch, err := c.Apply(t.Context(), "image.yaml", []byte(strings.Replace(string(cutPolicy("  established: recheck\n", "enforce")),
		`process.exe.name == "world"`, `process.container.image.startsWith("nginx:")`, 1)), nil, ApplyOptions{})
	must(t, err)
	if r := recheckBy(t, c, ch.Generation); r.Ended != 0 || r.Missing["process.container.image"] == 0 {
		t.Errorf("nobody knows the container: %+v", r)
	}
	w.goOn(t, "nobody knows the container", map[string]bool{off: true, kept: true})
	must(t, os.Rename(state+".later", state))
	recheckFor(t, c, RecheckContainers, 1)
	w.goOn(t, "it is known", map[string]bool{off: false, kept: true})
}

// TestRecheckFor: only what a policy depends on has connections judged anew.
func TestRecheckFor(t *testing.T) {
	const names, containers = `net.remote.domain == "x.example"`, `process.container.image == "x"`
	for _, tc := range []struct {
		established, when string
		due               []RecheckCause
	}{
		{"recheck", names, []RecheckCause{RecheckNames}},
		{"recheck", containers, []RecheckCause{RecheckContainers}},
		{"recheck", names + " || " + containers, []RecheckCause{RecheckNames, RecheckContainers}},
		{"recheck", `net.remote.port == 1`, nil},
		{"keep", names + " || " + containers, nil},
	} {
		f := newFake()
		a, err := New(Config{Kernel: f, Log: slog.New(slog.DiscardHandler), Socket: "/none", Policies: parse(t, fmt.Sprintf(`apiVersion: pavise.dev/v1alpha1
kind: Policy
metadata: {name: p}
spec:
  mode: enforce
  established: %s
  rules:
  - {name: r, on: [net.connect], action: deny, when: '%s'}
`, tc.established, tc.when))})
		must(t, err)
		var due []RecheckCause
		for _, cause := range []RecheckCause{RecheckNames, RecheckContainers} {
			a.recheckFor(cause)
			select {
			case got := <-a.recheckMay:
				due = append(due, got)
			default:
			}
		}
		if !slices.Equal(due, tc.due) {
			t.Errorf("%s, %s: %v, want %v", tc.established, tc.when, due, tc.due)
		}
	}
}

// TestTie: a name that rules ask for is news once for each address.
func TestTie(t *testing.T) {
	n := &names{domains: []string{"db.internal", ".example.com"}, tied: map[tie]bool{}}
	at := func(a string) enforce.NamedAddress {
		return enforce.NamedAddress{NetNS: 1, Address: netip.MustParseAddr(a)}
	}
	for _, tc := range []struct {
		at       string
		names    []string
		is, news bool
	}{
		{"10.0.0.1", []string{"db.internal"}, true, true},
		{"10.0.0.1", []string{"db.internal"}, true, false},
		{"10.0.0.2", []string{"www.internal", "db.internal"}, true, true},
		{"10.0.0.2", []string{"www.internal"}, false, false},
		{"10.0.0.2", []string{"db.internal", "a.example.com"}, true, true},
		{"10.0.0.2", []string{"b.example.com"}, true, true},
		{"10.0.0.3", []string{"example.com"}, false, false},
	} {
		if is, news := n.tie(at(tc.at), tc.names); is != tc.is || news != tc.news {
			t.Errorf("%s is %v: %v, news %v", tc.at, tc.names, is, news)
		}
	}
}
