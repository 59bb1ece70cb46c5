package agent

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/pavise-project/pavise"
	"github.com/pavise-project/pavise/bpf"
	"github.com/pavise-project/pavise/enforce"
	"github.com/pavise-project/pavise/internal/kerntest"
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
	last := time.Time{}
	result := func(when string, generation uint32, ends, would int) {
		t.Helper()
		for until := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			s, err := c.Status(t.Context())
			must(t, err)
			if r := s.Recheck; r != nil && r.Generation == generation && r.Time.After(last) {
				last = r.Time
				t.Logf("%s: %s in %s, missing %v", when, r, r.Took, r.Missing)
				if r.Ended != ends || r.Would != would || r.Kept < 3 || len(r.Failed) > 0 || r.Checked != r.Ended+r.Would+r.Kept+r.Unknown {
					t.Errorf("%s: %+v; want %d ended, and %d that would be", when, *r, ends, would)
				}
				return
			}
			if time.Now().After(until) {
				t.Fatalf("%s: no recheck of generation %d: %+v", when, generation, s.Recheck)
			}
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
