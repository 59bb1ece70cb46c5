package flow

import (
	"net/netip"
	"testing"

	"github.com/pavise-project/pavise"
)

var (
	client = netip.MustParseAddrPort("192.0.2.1:40000")
	server = netip.MustParseAddrPort("192.0.2.2:443")
)

// raw is a report as the kernel makes it.
func raw(id uint64, local, remote netip.AddrPort, execID, sent, received uint64, state pavise.FlowState) *pavise.Flow {
	return &pavise.Flow{
		ID: id, Time: int64(1000 * id), Start: 1, State: state, Protocol: pavise.ProtocolTCP, NetNS: 7,
		Local:  pavise.FlowSide{Address: local.Addr(), Port: local.Port(), ExecID: execID},
		Remote: pavise.FlowSide{Address: remote.Addr(), Port: remote.Port()},
		Sent:   pavise.Traffic{Bytes: sent, Packets: sent / 10}, Received: pavise.Traffic{Bytes: received, Packets: received / 10},
	}
}

func testTable(max int) *Table {
	return New(Options{
		Max: max,
		Process: func(id uint64) *pavise.Process {
			return map[uint64]*pavise.Process{1: {ExecID: 1, PID: 10}, 2: {ExecID: 2, PID: 20}}[id]
		},
		Name: func(netns uint32, a netip.Addr, exe string) (string, string) {
			if netns == 7 && a == server.Addr() {
				return "db.internal", "/usr/bin/psql"
			}
			return "", ""
		},
	})
}

func TestTableDeltas(t *testing.T) {
	tb := testTable(0)
	report := func(n uint32, sent, received uint64, state pavise.FlowState) *pavise.Flow {
		r := raw(5, client, server, 1, sent, received, state)
		r.Report = n
		return tb.Report(r)
	}
	first := report(0, 100, 0, pavise.FlowOpen)
	second := report(1, 150, 40, pavise.FlowOpen)
	if report(0, 120, 10, pavise.FlowOpen) != nil {
		t.Error("a report that was overtaken was told")
	}
	last := report(2, 150, 70, pavise.FlowClosed)
	if report(1, 150, 70, pavise.FlowOpen) != nil {
		t.Error("a flow goes on after its end")
	}
	for i, f := range []*pavise.Flow{first, second, last} {
		want := [][2]uint64{{100, 0}, {50, 40}, {0, 30}}[i]
		if f.Report != uint32(i) || f.SentNew.Bytes != want[0] || f.ReceivedNew.Bytes != want[1] {
			t.Errorf("report %d: number %d, new %d and %d bytes, want %v", i, f.Report, f.SentNew.Bytes, f.ReceivedNew.Bytes, want)
		}
		if f.Local.Process == nil || f.Local.Process.PID != 10 || f.Remote.Name != "db.internal" || f.Remote.AskedBy != "/usr/bin/psql" {
			t.Errorf("report %d: process %v, name %q asked by %q", i, f.Local.Process, f.Remote.Name, f.Remote.AskedBy)
		}
	}
	if first.Sent.Bytes != 100 {
		t.Errorf("a published report was written again: %+v", first)
	}
	if s := tb.Stats(); s.Open != 0 || s.Reports != 3 || s.Ended != 1 || s.Behind != 2 {
		t.Errorf("stats %+v", s)
	}
}

// Both ends of a connection are on this host: each learns who is at the other, also when one end is over already; but not from an older connection with the same ports.
func TestTableJoins(t *testing.T) {
	tb := testTable(0)
	tb.Report(raw(1, client, server, 1, 0, 0, pavise.FlowOpen))
	in := tb.Report(raw(2, server, client, 2, 0, 0, pavise.FlowOpen))
	if in.Remote.Process == nil || in.Remote.Process.PID != 10 {
		t.Errorf("the server's end does not know its client: %+v", in.Remote)
	}
	out := tb.Report(raw(1, client, server, 1, 9, 9, pavise.FlowClosed))
	if out.Remote.Process == nil || out.Remote.Process.PID != 20 {
		t.Errorf("the client's end does not know its server: %+v", out.Remote)
	}
	in = tb.Report(raw(2, server, client, 2, 9, 9, pavise.FlowClosed))
	if in.Remote.Process == nil || in.Remote.Process.PID != 10 {
		t.Errorf("the last report has lost the client: %+v", in.Remote)
	}

	again := raw(3, server, client, 2, 0, 0, pavise.FlowOpen)
	again.Start = 1 << 40
	if f := tb.Report(again); f.Remote.Process != nil {
		t.Errorf("taken for the connection before it: %+v", f.Remote)
	}
}

// Two containers have the same addresses in network namespaces of their own.
func TestTableApart(t *testing.T) {
	tb := testTable(0)
	a, b := netip.MustParseAddrPort("127.0.0.1:1000"), netip.MustParseAddrPort("127.0.0.1:2000")
	tb.Report(raw(1, a, b, 1, 0, 0, pavise.FlowOpen))
	other := raw(2, b, a, 2, 0, 0, pavise.FlowOpen)
	other.NetNS = 8
	if f := tb.Report(other); f.Remote.Process != nil {
		t.Errorf("a loopback reaches into another namespace: %+v", f.Remote)
	}
	tb.Report(raw(3, client, server, 1, 0, 0, pavise.FlowOpen))
	tb.Report(raw(4, client, server, 1, 0, 0, pavise.FlowOpen))
	if f := tb.Report(raw(5, server, client, 2, 0, 0, pavise.FlowOpen)); f.Remote.Process != nil {
		t.Errorf("one of two with the same ends was taken for the other end: %+v", f.Remote)
	}
}

func TestTableFull(t *testing.T) {
	tb := testTable(1)
	tb.Report(raw(1, client, server, 1, 1, 1, pavise.FlowOpen))
	if f := tb.Report(raw(2, client, server, 1, 7, 1, pavise.FlowOpen)); f.Sent.Bytes != 7 || f.Local.Process == nil {
		t.Errorf("%+v", f)
	}
	if s := tb.Stats(); s.Open != 1 || s.Crowded != 1 {
		t.Errorf("stats %+v", s)
	}
	tb.Report(raw(1, client, server, 1, 1, 1, pavise.FlowClosed))
	for i := range uint64(3 * remembered) {
		remote := netip.AddrPortFrom(server.Addr(), uint16(i))
		tb.Report(raw(i+10, netip.AddrPort{}, remote, 1, 1, 1, pavise.FlowOpen))
		tb.Report(raw(i+10, client, remote, 1, 1, 1, pavise.FlowOpen)) // where it sends from was not known at first
		tb.Report(raw(i+10, client, remote, 1, 1, 1, pavise.FlowClosed))
	}
	if n, m := len(tb.ends), len(tb.over); n > remembered || m > remembered {
		t.Errorf("%d ends and %d flows are remembered, at most %d", n, m, remembered)
	}
}

func TestTableSwept(t *testing.T) {
	for _, missing := range []uint32{0, 5} {
		tb := testTable(0)
		want := uint32(DefaultMissing)
		if missing != 0 {
			tb.o.Missing, want = missing, missing
		}
		tb.Report(raw(1, client, server, 1, 5, 5, pavise.FlowOpen))
		tb.Report(raw(2, server, client, 1, 5, 5, pavise.FlowOpen))
		for i := range want {
			tb.Sweep()
			tb.Report(raw(2, server, client, 1, 5, 5, pavise.FlowOpen))
			lost := tb.Swept(99)
			if last := i == want-1; last != (len(lost) == 1) {
				t.Fatalf("sweep %d of %d: %d flows are over", i, want, len(lost))
			} else if last && (lost[0].ID != 1 || lost[0].State != pavise.FlowClosed || lost[0].Time != 99 || lost[0].SentNew.Bytes != 0) {
				t.Errorf("%+v", lost[0])
			}
		}
		if s := tb.Stats(); s.EndsLost != 1 || s.Open != 1 {
			t.Errorf("stats %+v", s)
		}
	}
}

func TestTableHello(t *testing.T) {
	tb := testTable(0)
	if tb.Hello(1, &pavise.TLS{SNI: "x"}) {
		t.Error("a flow that nobody knows has a name")
	}
	before := tb.Report(raw(1, client, server, 1, 5, 5, pavise.FlowOpen))
	if !tb.Hello(1, &pavise.TLS{SNI: "db.internal"}) || before.TLS != nil {
		t.Error("not taken, or into a report that was published")
	}
	if f := tb.Report(raw(1, client, server, 1, 5, 5, pavise.FlowClosed)); f.TLS == nil || f.TLS.SNI != "db.internal" {
		t.Errorf("%+v", f.TLS)
	}
}

func TestTableDenied(t *testing.T) {
	tb := testTable(0)
	e := &pavise.Event{
		Time: 5, Op: pavise.OpConnect, Action: pavise.ActionDeny, Policy: "p", Rule: "r", ExecID: 1, Process: &pavise.Process{ExecID: 1, Namespaces: pavise.Namespaces{Net: 7}},
		Net: pavise.NetInfo{Family: pavise.FamilyIPv4, Type: pavise.TypeStream, Protocol: pavise.ProtocolTCP, Remote: server.Addr().As16(), RemotePort: server.Port()},
	}
	f := tb.Denied(e)
	if f == nil || f.End != pavise.FlowDenied || f.Policy != "p" || f.Rule != "r" || f.Remote.Address != server.Addr() || f.Remote.Name != "db.internal" || f.Direction != pavise.FlowOutbound || f.Local.Address.IsValid() {
		t.Fatalf("%+v", f)
	}
	if g := tb.Denied(e); g.ID == f.ID {
		t.Error("two flows have one id")
	}
	e.Monitor = true
	if tb.Denied(e) != nil {
		t.Error("what was only monitored was not denied")
	}
	e.Monitor, e.Op = false, pavise.OpOpen
	if tb.Denied(e) != nil {
		t.Error("a file is no flow")
	}
}

func BenchmarkReport(b *testing.B) {
	tb := testTable(0)
	r := raw(1, client, server, 1, 5, 5, pavise.FlowOpen)
	c := raw(1, client, server, 1, 5, 5, pavise.FlowClosed)
	for b.Loop() {
		r.ID++
		c.ID++
		tb.Report(r)
		tb.Report(c)
	}
	b.ReportAllocs()
}

// TestTableSums: every byte counts once, also of flows that find no place.
func TestTableSums(t *testing.T) {
	tb := testTable(1)
	report := func(id uint64, n uint32, sent, received uint64, state pavise.FlowState, change func(*pavise.Flow)) {
		r := raw(id, client, server, 1, sent, received, state)
		r.Report = n
		change(r)
		tb.Report(r)
	}
	tcp := func(*pavise.Flow) {}
	report(1, 0, 100, 10, pavise.FlowOpen, tcp)
	report(1, 1, 150, 40, pavise.FlowOpen, tcp)
	report(1, 0, 120, 20, pavise.FlowOpen, tcp) // overtaken
	crowded := func(f *pavise.Flow) { f.Protocol = pavise.ProtocolUDP }
	report(2, 0, 1000, 0, pavise.FlowOpen, crowded)
	report(2, 1, 2000, 0, pavise.FlowOpen, crowded)
	report(2, 2, 3000, 500, pavise.FlowClosed, crowded)
	report(1, 2, 160, 50, pavise.FlowClosed, tcp)
	report(3, 0, 7, 0, pavise.FlowOpen, func(f *pavise.Flow) { f.Protocol = pavise.ProtocolICMPv6 })
	report(4, 0, 0, 8, pavise.FlowClosed, func(f *pavise.Flow) { f.Family, f.Protocol = pavise.FamilyUnix, 0 })
	report(5, 0, 9, 0, pavise.FlowClosed, func(f *pavise.Flow) { f.Protocol = 132 })
	want := map[string][2]uint64{"tcp": {160, 50}, "udp": {3000, 500}, "icmp": {7, 0}, "unix": {0, 8}, "other": {9, 0}}
	for _, s := range tb.Sums() {
		if got := [2]uint64{s.Sent.Bytes, s.Received.Bytes}; got != want[s.Protocol] {
			t.Errorf("%s: %v, want %v", s.Protocol, got, want[s.Protocol])
		}
		delete(want, s.Protocol)
	}
	if len(want) != 0 {
		t.Errorf("no sums of %v", want)
	}
}
