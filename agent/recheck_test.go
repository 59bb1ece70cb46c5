package agent

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/pavise-project/pavise"
	"golang.org/x/sys/unix"
)

// TestRecheckOps: who began is what the flow says, else what the ports say; what they do not say may be both.
func TestRecheckOps(t *testing.T) {
	r := &recheck{ports: [2]uint16{32768, 60999}, listens: map[listening]bool{
		{unix.AF_INET, netip.MustParseAddrPort("0.0.0.0:80")}:        true,
		{unix.AF_INET, netip.MustParseAddrPort("10.0.0.1:40022")}:    true,
		{unix.AF_INET6, netip.MustParseAddrPort("[::]:443")}:         true,
		{unix.AF_INET, netip.MustParseAddrPort("192.0.2.200:50000")}: true,
	}}
	in, out := []pavise.Op{pavise.OpAccept}, []pavise.Op{pavise.OpConnect}
	both := []pavise.Op{pavise.OpConnect, pavise.OpAccept}
	for _, c := range []struct {
		what          string
		family        uint8
		protocol      uint8
		local, remote string
		direction     pavise.FlowDirection
		want          []pavise.Op
	}{
		{"a client", unix.AF_INET, pavise.ProtocolTCP, "10.0.0.1:40000", "192.0.2.1:443", 0, out},
		{"a server", unix.AF_INET, pavise.ProtocolTCP, "10.0.0.1:80", "192.0.2.1:40000", 0, in},
		{"a server, asked from a low port", unix.AF_INET, pavise.ProtocolTCP, "10.0.0.1:80", "192.0.2.1:700", 0, in},
		{"a server on a high port of that address", unix.AF_INET, pavise.ProtocolTCP, "10.0.0.1:40022", "192.0.2.1:700", 0, in},
		{"a port on which another address listens", unix.AF_INET, pavise.ProtocolTCP, "10.0.0.1:50000", "192.0.2.1:700", 0, out},
		{"an IPv4 connection of an IPv6 socket", unix.AF_INET6, pavise.ProtocolTCP, "10.0.0.1:443", "192.0.2.1:40000", 0, in},
		{"an IPv4 socket, where only IPv6 listens", unix.AF_INET, pavise.ProtocolTCP, "10.0.0.1:443", "192.0.2.1:40000", 0, both},
		{"whose listener is gone", unix.AF_INET, pavise.ProtocolTCP, "10.0.0.1:22", "192.0.2.1:40000", 0, both},
		{"two high ports", unix.AF_INET, pavise.ProtocolTCP, "10.0.0.1:40001", "192.0.2.1:40000", 0, both},
		{"two high ports, and its flow", unix.AF_INET, pavise.ProtocolTCP, "10.0.0.1:40001", "192.0.2.1:40000", pavise.FlowInbound, in},
		{"a low port, and its flow", unix.AF_INET, pavise.ProtocolTCP, "10.0.0.1:22", "192.0.2.1:40000", pavise.FlowOutbound, out},
		{"UDP", unix.AF_INET, pavise.ProtocolUDP, "10.0.0.1:80", "192.0.2.1:40000", 0, out},
	} {
		s := &diagSocket{family: c.family, protocol: c.protocol, local: netip.MustParseAddrPort(c.local), remote: netip.MustParseAddrPort(c.remote)}
		if got := r.ops(s, &pavise.Flow{Direction: c.direction}); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", c.what, got, c.want)
		}
	}
}

func TestRecheckCredentials(t *testing.T) {
	p := &pavise.Process{User: pavise.User{ID: 0, Name: "root"}}
	const status = "Name:\tUid: 7\nUid:\t1000\t33\t34\t35\nGid:\t1001\t43\t44\t45\nCapEff:\t00000000a80425fb\nSeccomp:\t0\n"
	if !readCredentials(status, p) || p.RealUID != 1000 || p.User.ID != 33 || p.RealGID != 1001 || p.GroupID != 43 || p.Caps != 0xa80425fb {
		t.Errorf("%+v", p)
	}
	for _, bad := range []string{"", "Uid:\t1\t2\t3\t4\nGid:\t1\t2\t3\t4\n", "Uid:\t1\nGid:\t1\t2\t3\t4\nCapEff:\t0\n", "Uid:\tx\t2\t3\t4\nGid:\t1\t2\t3\t4\nCapEff:\t0\n"} {
		if readCredentials(bad, &pavise.Process{}) {
			t.Errorf("%q is taken", bad)
		}
	}
}

func TestRecheckMoved(t *testing.T) {
	for _, c := range []struct {
		file, was string
		moved     bool
	}{
		{"0::/system.slice/a.service\n", "/system.slice/a.service", false},
		{"0::/system.slice/b.service\n", "/system.slice/a.service", true},
		{"12:pids:/b\n0::/../a.service\n", "/system.slice/a.service", false},
		{"12:pids:/b\n0::/..\n", "/system.slice/a.service", false},
		{"0::/\n", "/system.slice/a.service", false},
		{"1:name=systemd:/b\n", "/a", false},
	} {
		if got := movedTo(c.file, c.was); got != c.moved {
			t.Errorf("%q, was %s: %v", c.file, c.was, got)
		}
	}
}
