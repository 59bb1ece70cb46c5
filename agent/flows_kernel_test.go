package agent

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/netip"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pavise-project/pavise"
	"github.com/pavise-project/pavise/bpf"
	"github.com/pavise-project/pavise/enforce"
	"github.com/pavise-project/pavise/internal/kerntest"
)

// kernelAgent runs an agent on this kernel until the test is over, five minutes at most.
func kernelAgent(t *testing.T, change func(*enforce.Enforcer, *Config)) (*enforce.Enforcer, *Client) {
	t.Helper()
	kerntest.Require(t, kerntest.Root, kerntest.Syscall, kerntest.TpBtf)
	k, err := enforce.Open(t.Context(), enforce.Options{})
	if err != nil {
		t.Fatal(err)
	}
	ready, done := make(chan struct{}), make(chan error, 1)
	cfg := Config{
		Socket: filepath.Join(t.TempDir(), "s"), Kernel: k, Log: slog.New(slog.NewTextHandler(testWriter{t}, nil)),
		OnReady: func(*Status) { close(ready) },
	}
	change(k, &cfg)
	a, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	go func() {
		done <- a.Run(ctx)
		close(done)
	}()
	c := NewClient(a.cfg.Socket)
	t.Cleanup(func() {
		c.Close()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	select {
	case <-ready:
	case err := <-done:
		t.Fatal(err)
	}
	return k, c
}

// flowAgent is kernelAgent of one that follows flows, and believes the world's DNS server.
func flowAgent(t *testing.T) (*enforce.Enforcer, *Client) {
	t.Helper()
	return kernelAgent(t, func(k *enforce.Enforcer, cfg *Config) {
		cfg.Flows = func() (FlowSource, error) { return k.Flows(bpf.FlowOptions{Opens: true}) }
		cfg.DNSServers = []netip.Addr{netip.MustParseAddr("127.0.0.53")}
	})
}

// endedFlow waits for a flow that has ended and for which a condition holds.
func endedFlow(t *testing.T, c *Client, where string) *pavise.Event {
	t.Helper()
	for until := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		var es []*pavise.Event
		err := c.Flows(t.Context(), FlowQuery{Ended: true, Where: `flow.state == "closed" && ` + where}, func(line []byte) error {
			e := new(pavise.Event)
			es = append(es, e)
			return json.Unmarshal(line, e)
		})
		if err != nil {
			t.Fatal(err)
		}
		if len(es) > 0 {
			if len(es) > 1 && !strings.Contains(where, "denied") {
				t.Errorf("%s: %d flows", where, len(es))
			}
			return es[0]
		}
		if time.Now().After(until) {
			var all strings.Builder
			_ = c.Flows(t.Context(), FlowQuery{Ended: true}, func(line []byte) error {
				var e pavise.Event
				if err := json.Unmarshal(line, &e); err != nil {
					return err
				}
				all.Write(append(e.AppendText(nil, false), '\n'))
				return nil
			})
			t.Fatalf("no flow that has ended with %s; there are\n%s", where, all.String())
		}
	}
}

// TestKernelFlowCurl: curl over HTTPS to a server on this host is one flow, with everything that is known of it.
func TestKernelFlowCurl(t *testing.T) {
	if _, err := exec.LookPath("curl"); err != nil {
		t.Fatalf("%v: make deps installs it", err)
	}
	_, c := flowAgent(t)
	w := newWorld(t)
	begin := time.Now()
	if failed := w.do(t, deed{Run: []string{"curl", "-sk", "--max-time", "20", "-o", "/dev/null", "https://www.db.internal/"}}); failed != "" {
		t.Fatal(failed)
	}
	e := endedFlow(t, c, `process.exe.name == "curl" && net.protocol == "tcp"`)
	f := e.Flow
	t.Logf("%s", e.AppendText(nil, false))
	if f.Direction != pavise.FlowOutbound || f.End != pavise.FlowDone || f.Remote.Address != netip.MustParseAddr("127.0.0.9") || f.Remote.Port != 443 {
		t.Errorf("%s, %s, to %s port %d", f.Direction, f.End, f.Remote.Address, f.Remote.Port)
	}
	if f.Remote.Name != "www.db.internal" || !strings.HasSuffix(f.Remote.AskedBy, "/curl") {
		t.Errorf("its name is %q, asked for by %q", f.Remote.Name, f.Remote.AskedBy)
	}
	p := e.Process
	if p == nil || p.User.ID != 0 || !strings.HasSuffix(p.Exe.Path, "/curl") || !slices.Contains(p.Args, "https://www.db.internal/") {
		t.Fatalf("whose it is: %+v", p)
	}
	if f.Remote.Process == nil || !strings.HasSuffix(f.Remote.Process.Exe.Path, "/world") {
		t.Errorf("who is at the other end: %+v", f.Remote.Process)
	}
	if f.TLS == nil {
		t.Fatal("nothing is known of its ClientHello")
	}
	if f.TLS.SNI != "www.db.internal" || f.TLS.Version != "1.3" || !slices.Contains(f.TLS.ALPN, "h2") || !regexp.MustCompile(`^t13d\d{4}h2_[0-9a-f]{12}_[0-9a-f]{12}$`).MatchString(f.TLS.JA4) || len(f.TLS.JA3) != 32 {
		t.Errorf("%+v", f.TLS)
	}
	if f.Sent.Bytes < 500 || f.Sent.Bytes > 5000 || f.Received.Bytes < 20000 || f.Received.Bytes > 30000 || f.Sent.Packets == 0 || f.Received.Packets == 0 {
		t.Errorf("sent %+v, received %+v", f.Sent, f.Received)
	}
	if d := f.Time - f.Start; f.RTT <= 0 || f.ConnectLatency <= 0 || d <= 0 || d > int64(time.Since(begin)) || f.ConnectLatency > d {
		t.Errorf("round trip %d ns, connected in %d ns, of %d ns in all", f.RTT, f.ConnectLatency, d)
	}
	// The other end tells the same the other way round.
	o := endedFlow(t, c, `process.exe.name == "world" && net.local.port == 443`).Flow
	// (What it sent to say goodbye may have come when the client was gone.)
	if o.Direction != pavise.FlowInbound || o.Sent.Bytes-f.Received.Bytes > 100 || o.Received.Bytes != f.Sent.Bytes || o.Remote.Process == nil || o.Remote.Process.ExecID != p.ExecID {
		t.Errorf("the server's end: %s, sent %+v, received %+v; the client's %+v, %+v", o.Direction, o.Sent, o.Received, f.Sent, f.Received)
	}
}

// domainPolicy lets the world reach what has the name db.internal, on port 5432, and DNS.
const domainPolicy = `apiVersion: pavise.dev/v1alpha1
kind: Policy
metadata: {name: web}
spec:
  mode: enforce
  fallback: monitor
  subject: process.exe.name == "world"
  default: {net.connect: deny, net.send: deny}
  rules:
  - name: database
    on: [net.connect, net.send]
    when: net.remote.domain == "db.internal" && (net.remote.port == 5432 || net.protocol == "253")
    action: allow
  - name: names
    on: [net.connect, net.send]
    when: net.remote.address == "127.0.0.53" && net.remote.port == 53
    action: allow
  - name: servers # of the world, which are the same process
    on: [net.send]
    when: net.local.port in [53, 80, 443, 5432]
    action: allow
`

// TestKernelDomain: by name a process reaches what it may, also by an alias; what has another name, or none, it does not: over TCP, UDP, IPv4-mapped IPv6 and a raw socket.
func TestKernelDomain(t *testing.T) {
	k, c := flowAgent(t)
	if !k.Machine()[pavise.OpConnect].Deny {
		t.Skip(kerntest.NotExpected + "net.connect cannot be denied")
	}
	w := newWorld(t)
	const denied = "operation not permitted"
	try := func(when, act, to string, allowed bool) {
		t.Helper()
		switch got := w.do(t, deed{Act: act, To: to}); {
		case allowed && got != "":
			t.Errorf("%s: %s %s: %s", when, act, to, got)
		case !allowed && !strings.Contains(got, denied):
			t.Errorf("%s: %s %s: %q, want it denied", when, act, to, got)
		}
	}
	// The control: without the policy all of that is possible.
	for _, d := range []deed{
		{Act: "connect", To: "db.internal:5432"}, {Act: "connect", To: "127.0.0.8:5432"}, {Act: "connect", To: "other.internal:5432"}, {Act: "udp", To: "127.0.0.8:5432"},
		{Act: "sendto", To: "127.0.0.8:5432"}, {Act: "mapped", To: "[::ffff:127.0.0.8]:5432"}, {Act: "raw", To: "127.0.0.8:0"},
	} {
		try("control", d.Act, d.To, true)
	}
	try("control", "hold", "127.0.0.8:5432", true)
	if _, err := c.Apply(t.Context(), "web.yaml", []byte(domainPolicy), nil, ApplyOptions{}); err != nil {
		t.Fatal(err)
	}
	sends := k.Machine()[pavise.OpSend].Deny
	raw := k.Machine()[pavise.OpSend].Rung == pavise.RungLSM || k.Machine()[pavise.OpSend].Rung == pavise.RungFmodRet
	try("by name", "connect", "db.internal:5432", true)
	try("by an alias", "connect", "www.db.internal:5432", true)
	try("by the address that has the name", "mapped", "[::ffff:127.0.0.9]:5432", true)
	try("UDP by name", "udp", "db.internal:5432", true)
	try("another port", "connect", "db.internal:80", false)
	try("another name", "connect", "other.internal:5432", false)
	try("an address", "connect", "127.0.0.8:5432", false)
	try("a mapped address", "mapped", "[::ffff:127.0.0.8]:5432", false)
	try("UDP", "udp", "127.0.0.8:5432", false)
	if sends {
		try("UDP without connect", "sendto", "127.0.0.8:5432", false)
		try("UDP without connect, to what has the name", "sendto", "127.0.0.9:5432", true)
	}
	if raw {
		try("a raw socket", "raw", "127.0.0.8:0", false)
		try("a raw socket, to what has the name", "raw", "127.0.0.9:0", true)
		try("a connection that was there, to send on", "held", "", false)
	} else {
		// A rung that sees connect and no other send leaves what is connected alone.
		try("a connection that was there", "held", "", true)
	}
	e := endedFlow(t, c, `flow.end == "denied" && net.remote.address == "127.0.0.8" && net.remote.port == 5432 && net.remote.domain == "other.internal" && net.protocol == "udp"`)
	if e.Policy != "web" || e.Process == nil || e.Flow.Remote.Name != "other.internal" {
		t.Errorf("the denied flow: %s", e.AppendText(nil, false))
	}

	// A process that asks a server of its own, which says what it likes, gains nothing.
	if got := w.do(t, deed{Act: "lie", To: "127.0.0.8"}); got != "" {
		t.Fatal(got)
	}
	time.Sleep(200 * time.Millisecond)
	try("by the lie of another server", "connect", "127.0.0.8:5432", false)
}

// TestKernelFlowUnrelatedChange: policies about others come, change and go; a connection that was there carries on, and both of its ends tell every byte of it.
func TestKernelFlowUnrelatedChange(t *testing.T) {
	k, c := flowAgent(t)
	if !k.Machine()[pavise.OpConnect].Deny {
		t.Skip(kerntest.NotExpected + "net.connect cannot be denied")
	}
	w := newWorld(t)
	const to, port = "127.0.0.8:5432", "5432"
	do := func(when string, d deed) {
		t.Helper()
		if got := w.do(t, d); got != "" {
			t.Fatalf("%s: %s %s: %s", when, d.Act, d.To, got)
		}
	}
	sent := uint64(0)
	talk := func(when string) {
		t.Helper()
		for range 20 {
			do(when, deed{Act: "held", To: to})
			sent += 5
		}
	}
	// at is what is told of one end of it now: an answer may be a second old.
	at := func(local string) *pavise.Flow {
		t.Helper()
		for until := time.Now().Add(5 * time.Second); ; time.Sleep(100 * time.Millisecond) {
			var fs []*pavise.Flow
			err := c.Flows(t.Context(), FlowQuery{Where: `process.exe.name == "world" && net.` + local + `.port == ` + port + ` && net.protocol == "tcp"`}, func(line []byte) error {
				e := new(pavise.Event)
				err := json.Unmarshal(line, e)
				fs = append(fs, e.Flow)
				return err
			})
			if err == nil && len(fs) == 1 && (fs[0].Sent.Bytes == sent && fs[0].Received.Bytes == sent || time.Now().After(until)) {
				return fs[0]
			}
			if err != nil || time.Now().After(until) {
				t.Fatalf("%d flows, %v", len(fs), err)
			}
		}
	}
	do("before", deed{Act: "hold", To: to})
	talk("before")
	client, server := at("remote"), at("local")
	if client.Sent.Bytes != sent || server.Sent.Bytes != sent {
		t.Errorf("before: %d bytes sent by the client, %d by the server, want %d", client.Sent.Bytes, server.Sent.Bytes, sent)
	}
	policy := func(name, subject, rule string) []byte {
		return []byte(`apiVersion: pavise.dev/v1alpha1
kind: Policy
metadata: {name: ` + name + `}
spec:
  mode: enforce
  fallback: monitor
  subject: ` + subject + `
` + rule)
	}
	denies := "  default: {net.connect: deny, net.send: deny}\n"
	for _, change := range []struct {
		when string
		do   func() error
	}{
		{"a policy on another program", func() error {
			_, err := c.Apply(t.Context(), "a.yaml", policy("another", `process.exe.name == "another"`, denies), nil, ApplyOptions{})
			return err
		}},
		{"that policy changed", func() error {
			_, err := c.Apply(t.Context(), "a.yaml", policy("another", `process.exe.name in ["another", "third"]`, denies), nil, ApplyOptions{})
			return err
		}},
		{"a policy on this program and another port", func() error {
			rule := "  rules:\n  - {name: web, on: [net.connect, net.send], when: 'net.remote.port == 80', action: deny}\n"
			_, err := c.Apply(t.Context(), "b.yaml", policy("web", `process.exe.name == "world"`, rule), nil, ApplyOptions{})
			return err
		}},
		{"a policy gone", func() error { _, err := c.Delete(t.Context(), "another"); return err }},
	} {
		must(t, change.do())
		talk(change.when)
		if change.when == "a policy on this program and another port" { // it is in force
			if got := w.do(t, deed{Act: "connect", To: "127.0.0.8:80"}); !strings.Contains(got, "operation not permitted") {
				t.Errorf("%s: %q, want it denied", change.when, got)
			}
		}
		c, s := at("remote"), at("local")
		if c.ID != client.ID || s.ID != server.ID || c.State != pavise.FlowOpen || s.State != pavise.FlowOpen {
			t.Errorf("%s: the connection is another: %+v, %+v", change.when, c, s)
		}
		if c.Sent.Bytes != sent || c.Received.Bytes != sent || s.Sent.Bytes != sent || s.Received.Bytes != sent {
			t.Errorf("%s: the client's end tells %+v and %+v, the server's %+v and %+v; want %d bytes each", change.when, c.Sent, c.Received, s.Sent, s.Received, sent)
		}
	}
	do("at the end", deed{Act: "close", To: to})
	c1 := endedFlow(t, c, `process.exe.name == "world" && net.remote.port == `+port+` && net.protocol == "tcp"`).Flow
	s1 := endedFlow(t, c, `process.exe.name == "world" && net.local.port == `+port+` && net.protocol == "tcp"`).Flow
	for _, f := range []*pavise.Flow{c1, s1} {
		if f.End != pavise.FlowDone || f.ResetBy != pavise.EndpointUnknown || f.Retransmits != 0 || f.Sent.Bytes != sent || f.Received.Bytes != sent || f.ID != client.ID && f.ID != server.ID {
			t.Errorf("at the end: %s, sent %+v, received %+v, %d sent again; want %d bytes each way", f.End, f.Sent, f.Received, f.Retransmits, sent)
		}
	}
}
