package pavise

import (
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"
)

// TestCommunityID computes the published values, of both directions and with the seeds 0 and 1.
func TestCommunityID(t *testing.T) {
	data, err := os.ReadFile("testdata/community-id.txt")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for i, line := range strings.Split(string(data), "\n") {
		if line == "" || line[0] == '#' {
			continue
		}
		w := strings.Fields(line)
		if len(w) != 7 {
			t.Fatalf("line %d: %d fields", i+1, len(w))
		}
		number := func(s string) uint16 {
			v, err := strconv.ParseUint(s, 10, 16)
			if err != nil {
				t.Fatalf("line %d: %v", i+1, err)
			}
			return uint16(v)
		}
		from, to := netip.AddrPortFrom(netip.MustParseAddr(w[1]), number(w[3])), netip.AddrPortFrom(netip.MustParseAddr(w[2]), number(w[4]))
		protocol := uint8(number(w[0]))
		for seed, want := range w[5:] {
			if got := string(AppendCommunityID(nil, uint16(seed), protocol, from, to)); got != want {
				t.Errorf("line %d, seed %d: got %s, want %s", i+1, seed, got, want)
			}
			f := &Flow{Family: FamilyIPv4, Protocol: protocol, Direction: FlowOutbound, Local: FlowSide{Address: from.Addr(), Port: from.Port()}, Remote: FlowSide{Address: to.Addr(), Port: to.Port()}}
			if protocol == ProtocolICMP || protocol == ProtocolICMPv6 {
				f.ICMP = &ICMP{Type: uint8(from.Port()), Code: uint8(to.Port())}
			}
			if got := f.CommunityID(uint16(seed)); got != want {
				t.Errorf("line %d, seed %d: got %s of the flow, want %s", i+1, seed, got, want)
			}
			f.Local, f.Remote, f.Direction = f.Remote, f.Local, FlowInbound
			if got := f.CommunityID(uint16(seed)); got != want {
				t.Errorf("line %d, seed %d: got %s of the inbound flow, want %s", i+1, seed, got, want)
			}
			n++
		}
	}
	if n < 60 {
		t.Errorf("only %d values", n)
	}
	f := sampleFlow()
	b := make([]byte, 0, 64)
	if n := testing.AllocsPerRun(100, func() { b = f.AppendCommunityID(b[:0], 0) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestCommunityIDUnknown(t *testing.T) {
	a, b := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	for name, f := range map[string]*Flow{
		"a Unix socket":                        {Family: FamilyUnix, Local: FlowSide{Path: "/run/x"}},
		"no local address":                     {Family: FamilyIPv4, Protocol: ProtocolTCP, Remote: FlowSide{Address: b}},
		"peers that are many":                  {Family: FamilyIPv4, Protocol: ProtocolUDP, Local: FlowSide{Address: a}, Remote: FlowSide{Address: b}, Others: true},
		"raw ICMP without a type":              {Family: FamilyIPv4, Type: TypeRaw, Protocol: ProtocolICMP, Local: FlowSide{Address: a, Port: 77}, Remote: FlowSide{Address: b}},
		"a socket that is bound to no address": {Family: FamilyIPv4, Protocol: ProtocolUDP, Local: FlowSide{Address: netip.IPv4Unspecified(), Port: 9}, Remote: FlowSide{Address: b}},
		"addresses of two kinds":               {Family: FamilyIPv6, Protocol: ProtocolUDP, Local: FlowSide{Address: a}, Remote: FlowSide{Address: netip.IPv6Loopback()}},
		"a family without numbers":             {Family: 17, Local: FlowSide{Address: a}, Remote: FlowSide{Address: b}},
	} {
		if got := f.CommunityID(0); got != "" {
			t.Errorf("%s has %s", name, got)
		}
	}
	ping := &Flow{Family: FamilyIPv4, Type: TypeDgram, Protocol: ProtocolICMP, Local: FlowSide{Address: netip.MustParseAddr("192.168.0.89"), Port: 77}, Remote: FlowSide{Address: netip.MustParseAddr("::ffff:192.168.0.1")}}
	if got := ping.CommunityID(0); got != "1:X0snYXpgwiv9TZtqg64sgzUn6Dk=" {
		t.Errorf("a ping socket has %s", got)
	}
}
