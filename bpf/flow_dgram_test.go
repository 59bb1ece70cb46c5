package bpf_test

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	pavise "github.com/pavise-project/pavise"
	"github.com/pavise-project/pavise/bpf"
	"golang.org/x/sys/unix"
)

// datagrams is a socket that belongs to no poller, in the namespace of the thread that makes it.
func datagrams(t testing.TB, typ, protocol int, bind string) (fd int, at netip.AddrPort) {
	t.Helper()
	family := unix.AF_INET
	local := netip.MustParseAddrPort(bind)
	if local.Addr().Is6() {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, typ|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	if err := unix.Bind(fd, sa(local)); err != nil {
		t.Fatal(err)
	}
	_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 10})
	name, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	switch a := name.(type) {
	case *unix.SockaddrInet4:
		at = netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port))
	case *unix.SockaddrInet6:
		at = netip.AddrPortFrom(netip.AddrFrom16(a.Addr), uint16(a.Port))
	}
	return fd, at
}

func sa(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}
	}
	return &unix.SockaddrInet6{Addr: a.Addr().As16(), Port: int(a.Port())}
}

func sendTo(t testing.TB, fd int, to netip.AddrPort, n int) {
	t.Helper()
	if err := unix.Sendto(fd, make([]byte, n), 0, sa(to)); err != nil {
		t.Fatal(err)
	}
}

func receive(t testing.TB, fd, n int) {
	t.Helper()
	b := make([]byte, 1<<16)
	if got, _, err := unix.Recvfrom(fd, b, 0); err != nil || got != n {
		t.Fatalf("received %d bytes, want %d: %v", got, n, err)
	}
}

// ended sweeps until n flows have ended that are as wanted: those that the ring tells of, and those that sweeps do.
func (w *watch) ended(n int, what string, want func(f *pavise.Flow) bool) []pavise.Flow {
	w.t.Helper()
	is := func(f *pavise.Flow) bool { return f.State == pavise.FlowClosed && want(f) }
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		w.sweep()
		all := slices.DeleteFunc(slices.Clone(w.told), func(f pavise.Flow) bool { return !is(&f) })
		w.mu.Lock()
		for i := range w.all {
			if is(&w.all[i]) {
				all = append(all, w.all[i])
			}
		}
		w.mu.Unlock()
		if len(all) >= n {
			return all
		}
		if time.Now().After(deadline) {
			w.t.Fatalf("%s: %d flows of %d ended; of a sweep:%s", what, len(all), n, show(w.sweep()))
		}
	}
}

func TestKernelFlowUDP(t *testing.T) {
	w := follow(t, bpf.FlowOptions{Wake: true})
	me := w.owner(os.Getpid())
	for _, c := range []struct {
		name, bind, dial string
		connected        bool
	}{
		{"v4", "127.0.0.1:0", "127.0.0.1:0", true},
		{"v6", "[::1]:0", "[::1]:0", true},
		{"unconnected", "127.0.0.1:0", "127.0.0.1:0", false},
		{"mapped", "127.0.0.1:0", "[::]:0", false}, // an IPv6 socket sends IPv4
	} {
		t.Run(c.name, func(t *testing.T) {
			ownNetNS(t)
			w.t = t
			server, to := datagrams(t, unix.SOCK_DGRAM, 0, c.bind)
			client, from := datagrams(t, unix.SOCK_DGRAM, 0, c.dial)
			dst := to
			if from.Addr().Is6() && to.Addr().Is4() {
				dst = netip.AddrPortFrom(netip.AddrFrom16(to.Addr().As16()), to.Port())
				from = netip.AddrPortFrom(to.Addr(), from.Port())
			}
			if c.connected {
				if err := unix.Connect(client, sa(dst)); err != nil {
					t.Fatal(err)
				}
			}
			var up, down uint64
			for _, n := range []int{0, 1, 1400, 60000} {
				if c.connected {
					if _, err := unix.Write(client, make([]byte, n)); err != nil {
						t.Fatal(err)
					}
				} else {
					sendTo(t, client, dst, n)
				}
				receive(t, server, n)
				sendTo(t, server, from, n/2)
				receive(t, client, n/2)
				up, down = up+uint64(n), down+uint64(n/2)
			}
			check := func(f *pavise.Flow, dir pavise.FlowDirection, local, remote netip.AddrPort, sent, received uint64) {
				t.Helper()
				want := pavise.Flow{
					ID: f.ID, Report: f.Report, Time: f.Time, Start: f.Start, State: f.State, End: f.End, Direction: dir,
					Family: unix.AF_INET, Type: unix.SOCK_DGRAM, Protocol: unix.IPPROTO_UDP, NetNS: netNS(t),
					Local:  pavise.FlowSide{Address: local.Addr(), Port: local.Port(), ExecID: me},
					Remote: pavise.FlowSide{Address: remote.Addr(), Port: remote.Port()},
					Sent:   pavise.Traffic{Bytes: sent, Packets: 4}, Received: pavise.Traffic{Bytes: received, Packets: 4},
				}
				if to.Addr().Is6() {
					want.Family = unix.AF_INET6
				}
				if fmt.Sprintf("%+v", *f) != fmt.Sprintf("%+v", want) {
					t.Errorf("got  %+v\nwant %+v", *f, want)
				}
				if f.Start == 0 || f.Time < f.Start || f.ID == 0 {
					t.Errorf("from %d to %d, id %d", f.Start, f.Time, f.ID)
				}
			}
			ours := func(f *pavise.Flow) bool { return f.NetNS == netNS(t) }
			all := slices.DeleteFunc(w.sweep(), func(f pavise.Flow) bool { return !ours(&f) })
			if len(all) != 2 {
				t.Fatalf("a sweep tells of %d flows, want 2:%s", len(all), show(all))
			}
			unix.Close(client)
			unix.Close(server)
			all = w.ended(2, "all", ours)
			if len(all) != 2 || all[0].End != pavise.FlowDone || all[1].End != pavise.FlowDone {
				t.Fatalf("ended: %s", show(all))
			}
			for i := range all {
				if f := &all[i]; f.Direction == pavise.FlowOutbound {
					check(f, pavise.FlowOutbound, from, to, up, down)
				} else {
					check(f, pavise.FlowInbound, to, from, down, up)
				}
			}
			if left := slices.DeleteFunc(w.sweep(), func(f pavise.Flow) bool { return !ours(&f) }); len(left) > 0 {
				t.Errorf("after their end: %s", show(left))
			}
		})
	}
	if s := w.stats(); s.Lost != 0 || s.NoPeer != 0 || s.NoStorage != 0 || s.Late != 0 {
		t.Errorf("counters: %+v", s)
	}
}

// TestKernelFlowPeers: one socket and many peers, of which only some find room. Every byte is told.
func TestKernelFlowPeers(t *testing.T) {
	const room, peers, each = 8, 100, 3
	w := follow(t, bpf.FlowOptions{Wake: true, Peers: room})
	ownNetNS(t)
	server, to := datagrams(t, unix.SOCK_DGRAM, 0, "127.0.0.1:0")
	var sent uint64
	for range each {
		for i := range peers {
			fd, _ := datagrams(t, unix.SOCK_DGRAM, 0, fmt.Sprintf("127.0.1.%d:%d", i+1, 1000+i))
			sendTo(t, fd, to, i)
			receive(t, server, i)
			sent += uint64(i)
			unix.Close(fd)
		}
	}
	ours := func(f *pavise.Flow) bool { return f.NetNS == netNS(t) && f.Local.Port == to.Port() }
	sum := func(all []pavise.Flow) (told int, others int, t pavise.Traffic) {
		for i := range all {
			if ours(&all[i]) {
				told++
				t.Bytes += all[i].Received.Bytes
				t.Packets += all[i].Received.Packets
				if all[i].Others {
					others++
				}
			}
		}
		return told, others, t
	}
	// Others on this machine may have taken some of the room.
	want := pavise.Traffic{Bytes: sent, Packets: peers * each}
	if told, others, got := sum(w.sweep()); told < 2 || told > room+1 || others != 1 || got != want {
		t.Errorf("%d flows, %d of others, %+v; want %d, 1, %+v", told, others, got, room+1, want)
	}
	unix.Close(server)
	var ended []pavise.Flow
	for deadline := time.Now().Add(20 * time.Second); ; { // until all has been told
		ended = w.ended(1, "the rest", ours)
		if _, _, got := sum(ended); got == want || time.Now().After(deadline) {
			break
		}
	}
	if told, others, got := sum(ended); told > room+1 || others != 1 || got != want {
		t.Errorf("at the end %d flows, %d of others, %+v; want %d, 1, %+v", told, others, got, room+1, want)
	}
	if s := w.stats(); s.NoPeer < (peers-room)*each {
		t.Errorf("counters: %+v; want %d packets without room or more", s, (peers-room)*each)
	}
}

// TestKernelFlowIdle: a peer that was silent for long has ended; when it speaks again, that is another flow.
func TestKernelFlowIdle(t *testing.T) {
	w := follow(t, bpf.FlowOptions{Wake: true, Idle: 10 * time.Millisecond})
	ownNetNS(t)
	server, to := datagrams(t, unix.SOCK_DGRAM, 0, "127.0.0.1:0")
	client, _ := datagrams(t, unix.SOCK_DGRAM, 0, "127.0.0.1:0")
	ours := func(f *pavise.Flow) bool { return f.NetNS == netNS(t) && f.Local.Port == to.Port() }
	sendTo(t, client, to, 10)
	receive(t, server, 10)
	time.Sleep(20 * time.Millisecond)
	w.sweep() // sees that it is idle
	sendTo(t, client, to, 20)
	receive(t, server, 20)
	both := w.ended(2, "both", ours)
	if len(both) != 2 || both[0].ID == both[1].ID || both[0].Received.Bytes+both[1].Received.Bytes != 30 || max(both[0].Received.Packets, both[1].Received.Packets) != 1 {
		t.Errorf("both: %s", show(both))
	}
	// Where the flow ended, nothing is left: the next begins anew.
	sendTo(t, client, to, 30)
	receive(t, server, 30)
	third := w.ended(1, "the third", func(f *pavise.Flow) bool { return ours(f) && f.ID != both[0].ID && f.ID != both[1].ID })
	if len(third) != 1 || third[0].Received.Bytes != 30 {
		t.Errorf("the third: %s", show(third))
	}
}

func TestKernelFlowICMP(t *testing.T) {
	w := follow(t, bpf.FlowOptions{Wake: true})
	me := w.owner(os.Getpid())
	ownNetNS(t)
	if err := os.WriteFile("/proc/sys/net/ipv4/ping_group_range", []byte("0 0"), 0o644); err != nil {
		t.Fatal(err)
	}
	echo := func(v6 bool, id uint16) []byte {
		b := []byte{8, 0, 0, 0, byte(id >> 8), byte(id), 0, 1, 'p', 'i', 'n', 'g'}
		if v6 {
			b[0] = 128
			return b
		}
		var sum uint32
		for i := 0; i < len(b); i += 2 {
			sum += uint32(b[i])<<8 | uint32(b[i+1])
		}
		sum = sum&0xffff + sum>>16
		b[2], b[3] = byte(^sum>>8), byte(^sum)
		return b
	}
	for _, c := range []struct {
		name          string
		typ, protocol int
		bind          string
		received      int // how many of 12 bytes come back: a raw socket sees the question too
	}{
		{"ping", unix.SOCK_DGRAM, unix.IPPROTO_ICMP, "127.0.0.1:77", 1},
		{"ping6", unix.SOCK_DGRAM, unix.IPPROTO_ICMPV6, "[::1]:78", 1},
		{"raw", unix.SOCK_RAW, unix.IPPROTO_ICMP, "127.0.0.1:0", 2},
		{"raw6", unix.SOCK_RAW, unix.IPPROTO_ICMPV6, "[::1]:0", 2},
	} {
		t.Run(c.name, w.in(func(t *testing.T) {
			fd, at := datagrams(t, c.typ, c.protocol, c.bind)
			id := uint16(80)
			if c.typ == unix.SOCK_DGRAM {
				id = at.Port()
			}
			msg := echo(at.Addr().Is6(), id)
			if err := unix.Sendto(fd, msg, 0, sa(netip.AddrPortFrom(at.Addr(), 0))); err != nil {
				t.Fatal(err)
			}
			for range c.received {
				if _, _, err := unix.Recvfrom(fd, make([]byte, 100), 0); err != nil {
					t.Fatal(err)
				}
			}
			unix.Close(fd)
			ours := func(f *pavise.Flow) bool {
				return f.NetNS == netNS(t) && int(f.Type) == c.typ && int(f.Protocol) == c.protocol && f.Local.ExecID != 0
			}
			f := w.ended(1, c.name, ours)[0]
			if f.Local.Port != id || f.Local.Address != at.Addr() || f.Remote.Address != at.Addr() || f.Local.ExecID != me || f.Direction != pavise.FlowOutbound {
				t.Errorf("got %s", show([]pavise.Flow{f}))
			}
			if want := map[bool]uint8{false: 8, true: 128}[at.Addr().Is6()]; f.ICMP == nil || *f.ICMP != (pavise.ICMP{Type: want}) {
				t.Errorf("its first message is %+v, want type %d", f.ICMP, want)
			}
			if f.Sent != (pavise.Traffic{Bytes: 12, Packets: 1}) || f.Received != (pavise.Traffic{Bytes: uint64(12 * c.received), Packets: uint64(c.received)}) {
				t.Errorf("sent %+v, received %+v", f.Sent, f.Received)
			}
		}))
	}
	// What the kernel answers by itself is told too, of nobody.
	if !slices.ContainsFunc(w.sweep(), func(f pavise.Flow) bool {
		return f.NetNS == netNS(t) && f.Protocol == unix.IPPROTO_ICMP && f.Sent.Packets > 0 && f.Local.ExecID == 0 && f.ICMP != nil && *f.ICMP == pavise.ICMP{}
	}) {
		t.Error("the kernel's own answers are told nowhere")
	}
	t.Run("no such port", w.in(func(t *testing.T) { // what the kernel says of it, of nobody: type 3, code 3
		fd, at := datagrams(t, unix.SOCK_DGRAM, 0, "127.0.0.1:0")
		sendTo(t, fd, netip.AddrPortFrom(at.Addr(), 9), 10)
		unix.Close(fd)
		if all := w.sweep(); !slices.ContainsFunc(all, func(f pavise.Flow) bool {
			return f.NetNS == netNS(t) && f.Protocol == unix.IPPROTO_ICMP && f.ICMP != nil && *f.ICMP == pavise.ICMP{Type: 3, Code: 3}
		}) {
			t.Errorf("it is told nowhere: %s", show(all))
		}
	}))
	t.Run("another protocol", w.in(func(t *testing.T) {
		fd, _ := datagrams(t, unix.SOCK_RAW, 253, "127.0.0.1:0")
		sendTo(t, fd, netip.MustParseAddrPort("127.0.0.1:0"), 100)
		unix.Close(fd)
		f := w.ended(1, "raw", func(f *pavise.Flow) bool { return f.NetNS == netNS(t) && f.Protocol == 253 })[0]
		if f.Type != unix.SOCK_RAW || f.ICMP != nil || f.Sent != (pavise.Traffic{Bytes: 100, Packets: 1}) || f.Local.ExecID != me {
			t.Errorf("got %s", show([]pavise.Flow{f}))
		}
	}))
}

// counters reads the kernel's own, of the thread's network namespace.
func counters(t testing.TB) map[string]uint64 {
	t.Helper()
	out := map[string]uint64{}
	for _, name := range []string{"snmp", "netstat"} {
		b, err := os.ReadFile("/proc/thread-self/net/" + name)
		if err != nil {
			t.Fatal(err)
		}
		lines := strings.Split(strings.TrimSpace(string(b)), "\n")
		for i := 0; i+1 < len(lines); i += 2 {
			keys, values := strings.Fields(lines[i]), strings.Fields(lines[i+1])
			for j := 1; j < len(keys); j++ {
				out[strings.TrimSuffix(keys[0], ":")+"."+keys[j]], _ = strconv.ParseUint(values[j], 10, 64)
			}
		}
	}
	return out
}

// TestKernelFlowConservation: what flows tell comes to what the kernel counts itself.
func TestKernelFlowConservation(t *testing.T) {
	w := follow(t, bpf.FlowOptions{Wake: true, Peers: 64})
	ownNetNS(t)
	ours := func(f *pavise.Flow) bool { return f.NetNS == netNS(t) }
	before := counters(t)
	server, to := datagrams(t, unix.SOCK_DGRAM, 0, "127.0.0.1:0")
	for i := range 300 {
		fd, from := datagrams(t, unix.SOCK_DGRAM, 0, "127.0.0.1:0")
		for j := range i%5 + 1 {
			sendTo(t, fd, to, i*j)
			receive(t, server, i*j)
			sendTo(t, server, from, j)
			receive(t, fd, j)
		}
		unix.Close(fd)
	}
	middle := counters(t)
	var tcp pavise.Traffic
	for i := range 20 {
		exchange(t, "tcp4", "127.0.0.1:0", "127.0.0.1", i*10000, 100000-i)
		tcp.Bytes += uint64(i*10000 + 100000 - i)
	}
	after := counters(t)
	unix.Close(server)
	// Of the server's 64 peers, others on this machine may have taken some: then more went to those that found no room.
	var udp, udpIn, tcpOut, tcpIn pavise.Traffic
	add := func(to *pavise.Traffic, x pavise.Traffic) { to.Bytes += x.Bytes; to.Packets += x.Packets }
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		udp, udpIn, tcpOut, tcpIn = pavise.Traffic{}, pavise.Traffic{}, pavise.Traffic{}, pavise.Traffic{}
		for _, f := range w.ended(300+1+40, "all", ours) {
			if f.Protocol == unix.IPPROTO_TCP {
				add(&tcpOut, f.Sent)
				add(&tcpIn, f.Received)
			} else {
				add(&udp, f.Sent)
				add(&udpIn, f.Received)
			}
		}
		if udp == udpIn && tcpOut.Bytes == tcpIn.Bytes && udp.Packets == middle["Udp.OutDatagrams"]-before["Udp.OutDatagrams"] || time.Now().After(deadline) {
			break
		}
	}
	kernel := func(from, to map[string]uint64, name string) uint64 { return to[name] - from[name] }
	if udp != udpIn || udp.Packets != kernel(before, middle, "Udp.OutDatagrams") || udp.Packets != kernel(before, middle, "Udp.InDatagrams") {
		t.Errorf("UDP: sent %+v, received %+v; the kernel sent %d and received %d", udp, udpIn, kernel(before, middle, "Udp.OutDatagrams"), kernel(before, middle, "Udp.InDatagrams"))
	}
	if octets := udp.Bytes + 28*udp.Packets; octets != kernel(before, middle, "IpExt.InOctets") || octets != kernel(before, middle, "IpExt.OutOctets") {
		t.Errorf("UDP: %d bytes with their headers; the kernel received %d and sent %d", octets, kernel(before, middle, "IpExt.InOctets"), kernel(before, middle, "IpExt.OutOctets"))
	}
	if tcpOut.Bytes != tcp.Bytes || tcpIn.Bytes != tcp.Bytes {
		t.Errorf("TCP: sent %d bytes, received %d, want %d", tcpOut.Bytes, tcpIn.Bytes, tcp.Bytes)
	}
	// Of each connection, the last acknowledgement is sent and received when its socket is gone already.
	if segs := kernel(middle, after, "Tcp.OutSegs"); tcpOut.Packets > segs || tcpOut.Packets+20*3 < segs {
		t.Errorf("TCP: %d segments sent, the kernel sent %d", tcpOut.Packets, segs)
	}
	s := w.stats()
	w.stop()
	if w.mu.Lock(); s.Made != uint64(len(w.all))+s.Lost {
		t.Errorf("%d records made, %d delivered, %d lost", s.Made, len(w.all), s.Lost)
	}
	w.mu.Unlock()
	if s.Lost != 0 || s.Late != 0 || s.NoStorage != 0 {
		t.Errorf("counters: %+v", s)
	}
}

// TestKernelFlowFound: what was there before has an owner too, in every namespace.
func TestKernelFlowFound(t *testing.T) {
	k := lifecycle(t)
	ownNetNS(t)
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp4", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	late, err := net.Dial("tcp4", l.Addr().String()) // not accepted yet
	if err != nil {
		t.Fatal(err)
	}
	defer late.Close()
	if _, err := c.Write(make([]byte, 1000)); err != nil {
		t.Fatal(err)
	}
	server, to := datagrams(t, unix.SOCK_DGRAM, 0, "127.0.0.1:0")
	client, from := datagrams(t, unix.SOCK_DGRAM, 0, "127.0.0.1:0")
	if err := unix.Connect(client, sa(to)); err != nil {
		t.Fatal(err)
	}
	w := watchOf(t, k, bpf.FlowOptions{Wake: true})
	me := w.owner(os.Getpid())
	flow := func(local, remote uint16) pavise.Flow {
		t.Helper()
		for _, f := range w.sweep() {
			if f.NetNS == netNS(t) && f.Local.Port == local && f.Remote.Port == remote {
				return f
			}
		}
		t.Fatalf("nothing is told of %d to %d:%s", local, remote, show(w.sweep()))
		return pavise.Flow{}
	}
	listens := port(l.Addr())
	if f := flow(port(c.LocalAddr()), listens); !f.Found || f.Local.ExecID != me || f.Direction != pavise.FlowOutbound || f.Sent.Bytes != 1000 {
		t.Errorf("the client: %s", show([]pavise.Flow{f}))
	}
	if f := flow(listens, port(c.LocalAddr())); !f.Found || f.Local.ExecID != me || f.Direction != pavise.FlowInbound || f.Received.Bytes != 1000 {
		t.Errorf("the server: %s", show([]pavise.Flow{f}))
	}
	if f := flow(from.Port(), to.Port()); !f.Found || f.Local.ExecID != me || f.Sent.Bytes != 0 || f.Protocol != unix.IPPROTO_UDP {
		t.Errorf("the datagram socket: %s", show([]pavise.Flow{f}))
	}
	// What is accepted later belongs to who acts on it.
	a, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if f := flow(listens, port(late.LocalAddr())); !f.Found || f.Local.ExecID != me || f.Sent.Bytes != 1 {
		t.Errorf("accepted later: %s", show([]pavise.Flow{f}))
	}
	a.Close()
	if _, err := unix.Write(client, make([]byte, 10)); err != nil {
		t.Fatal(err)
	}
	receive(t, server, 10)
	if f := flow(from.Port(), to.Port()); !f.Found || f.Sent.Bytes != 10 {
		t.Errorf("the datagram socket later: %s", show([]pavise.Flow{f}))
	}
	// A new one is not found.
	n, err := net.Dial("tcp4", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	if f := flow(port(n.LocalAddr()), listens); f.Found {
		t.Errorf("a new one: %s", show([]pavise.Flow{f}))
	}
}
