package bpf_test

import (
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

	pavise "github.com/pavise-project/pavise"
	"github.com/pavise-project/pavise/bpf"
	"golang.org/x/sys/unix"
)

var mixedFor = flag.Duration("mixed", 5*time.Second, "with TestKernelFlowConservationMixed: how long the load lasts")

// attribute appends one to a message of rtnetlink.
func attribute(b []byte, typ uint16, v []byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(4+len(v)))
	b = append(binary.NativeEndian.AppendUint16(b, typ), v...)
	return append(b, make([]byte, -len(b)&3)...)
}

// rtnetlink makes something in the network namespace of the thread.
func rtnetlink(t testing.TB, typ uint16, msg []byte) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	h := unix.NlMsghdr{Len: uint32(16 + len(msg)), Type: typ, Flags: unix.NLM_F_REQUEST | unix.NLM_F_ACK | unix.NLM_F_CREATE}
	if err := unix.Sendto(fd, append(unsafe.Slice((*byte)(unsafe.Pointer(&h)), 16), msg...), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		t.Fatal(err)
	}
	var buf [4096]byte
	n, _, err := unix.Recvfrom(fd, buf[:], 0)
	if err != nil || n < 20 {
		t.Fatal(n, err)
	}
	if e := int32(binary.NativeEndian.Uint32(buf[16:])); e != 0 {
		t.Fatalf("rtnetlink %d: %v", typ, syscall.Errno(-e))
	}
}

// place is a network namespace.
type place struct {
	ns     *os.File
	number uint32
}

// here is the thread's.
func here(t testing.TB) place {
	t.Helper()
	ns, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	return place{ns, netNS(t)}
}

// do has fn run on a thread that is there, and waits for it. It may end the test.
func (p place) do(t testing.TB, fn func() error) {
	t.Helper()
	if err := <-p.start(fn); err != nil {
		t.Fatal(err)
	}
}

// start is do that does not wait.
func (p place) start(fn func() error) <-chan error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked
		err := errors.New("the test has failed there")
		defer func() { done <- err }() // also when it ends the goroutine
		if e := unix.Setns(int(p.ns.Fd()), unix.CLONE_NEWNET); e != nil {
			err = e
			return
		}
		err = fn()
	}()
	return done
}

// The two ends of a cable.
var (
	cable4 = [2]netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")}
	cable6 = [2]netip.Addr{netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2")}
)

const cableName = "cable"

// cable makes two network namespaces with a pair of veth interfaces between them, over which nothing goes but what the test sends: no ARP, no multicast; and of
// TCP's options the MSS alone, so that every byte on it can be told. The test's thread is in the first.
func cable(t testing.TB) (ends [2]place) {
	t.Helper()
	ownNetNS(t)
	ends[1] = here(t)
	// A thread can be in one only, so that the other one is made here first.
	ownNetNS(t)
	ends[0] = here(t)
	if kind, err := os.ReadFile("/proc/modules"); err == nil && !strings.Contains(string(kind), "veth ") {
		_ = exec.CommandContext(t.Context(), "modprobe", "veth").Run() // or it is built in
	}
	mac := []byte{2, 0, 0, 0, 0, 1} // of both, so that nobody has to ask for the other's
	peer := attribute(make([]byte, 16), unix.IFLA_IFNAME, []byte(cableName+"\x00"))
	peer = attribute(peer, unix.IFLA_ADDRESS, mac)
	peer = attribute(peer, unix.IFLA_NET_NS_FD, binary.NativeEndian.AppendUint32(nil, uint32(ends[1].ns.Fd())))
	info := attribute(nil, 1, []byte("veth\x00")) // IFLA_INFO_KIND
	info = attribute(info, 2, attribute(nil, 1, peer))
	msg := attribute(make([]byte, 16), unix.IFLA_IFNAME, []byte(cableName+"\x00"))
	msg = attribute(msg, unix.IFLA_ADDRESS, mac)
	rtnetlink(t, unix.RTM_NEWLINK, attribute(msg, unix.IFLA_LINKINFO, info))
	for i, p := range ends {
		p.do(t, func() error {
			for name, to := range map[string]string{
				"ipv4/tcp_timestamps": "0", "ipv4/tcp_sack": "0", "ipv4/tcp_window_scaling": "0", "ipv4/tcp_ecn": "0", "ipv4/ping_group_range": "0 0",
				"ipv6/conf/" + cableName + "/router_solicitations": "0", "ipv6/conf/" + cableName + "/accept_dad": "0",
				"ipv4/icmp_ratelimit": "0", "ipv6/icmp/ratelimit": "0",
			} {
				if err := os.WriteFile("/proc/sys/net/"+name, []byte(to), 0o644); err != nil {
					return err
				}
			}
			at, err := net.InterfaceByName(cableName)
			if err != nil {
				return err
			}
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			ifr, _ := unix.NewIfreq(cableName)
			ifr.SetUint16(unix.IFF_UP | unix.IFF_NOARP)
			if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr); err != nil {
				return err
			}
			for _, a := range []netip.Prefix{netip.PrefixFrom(cable4[i], 24), netip.PrefixFrom(cable6[i], 64)} {
				msg := []byte{unix.AF_INET, byte(a.Bits()), unix.IFA_F_NODAD, 0}
				if a.Addr().Is6() {
					msg[0] = unix.AF_INET6
				}
				msg = binary.NativeEndian.AppendUint32(msg, uint32(at.Index))
				msg = attribute(msg, unix.IFA_LOCAL, a.Addr().AsSlice())
				rtnetlink(t, unix.RTM_NEWADDR, attribute(msg, unix.IFA_ADDRESS, a.Addr().AsSlice()))
			}
			return nil
		})
	}
	return ends
}

// wire is what the kernel counts of a network namespace: of its protocols, and of its end of the cable.
func wire(t testing.TB, p place) (out map[string]uint64) {
	t.Helper()
	p.do(t, func() error {
		out = counters(t)
		b, err := os.ReadFile("/proc/thread-self/net/snmp6")
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(b)) {
			if f := strings.Fields(line); len(f) == 2 {
				out[f[0]], _ = strconv.ParseUint(f[1], 10, 64)
			}
		}
		b, err = os.ReadFile("/proc/thread-self/net/dev")
		if err != nil {
			return err
		}
		_, line, ok := strings.Cut(string(b), cableName+":")
		if !ok {
			return errors.New("no counters of the cable")
		}
		f := strings.Fields(line)
		for i, name := range map[int]string{0: "dev.rx_bytes", 1: "dev.rx_packets", 3: "dev.rx_drop", 8: "dev.tx_bytes", 9: "dev.tx_packets", 11: "dev.tx_drop"} {
			out[name], _ = strconv.ParseUint(f[i], 10, 64)
		}
		return nil
	})
	return out
}

// mixed is a load between the two ends of a cable, and what its programs sent and received, by end.
type mixed struct {
	t     testing.TB
	until time.Time
	ends  [2]place

	tcp, udp       [2]atomic.Uint64 // bytes sent; all of it is received
	datagrams      [2]atomic.Uint64
	pings          atomic.Uint64 // each of pingLen bytes, and answered
	conns, resets  atomic.Uint64
	tcp4, tcp6     net.Listener
	udp4, udp6     *net.UDPConn
	servers, loads sync.WaitGroup
}

const pingLen = 64

func (m *mixed) check(what string, err error) {
	if err != nil {
		m.t.Errorf("%s: %v", what, err)
	}
}

// serve answers at the second end. Each connection says with its first byte what it is.
func (m *mixed) serve() error {
	at := func(a netip.Addr) string { return netip.AddrPortFrom(a, 0).String() }
	var err error
	if m.tcp4, err = net.Listen("tcp4", at(cable4[1])); err != nil {
		return err
	}
	if m.tcp6, err = net.Listen("tcp6", at(cable6[1])); err != nil {
		return err
	}
	if m.udp4, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(cable4[1], 0))); err != nil {
		return err
	}
	if m.udp6, err = net.ListenUDP("udp6", net.UDPAddrFromAddrPort(netip.AddrPortFrom(cable6[1], 0))); err != nil {
		return err
	}
	for _, l := range []net.Listener{m.tcp4, m.tcp6} {
		m.servers.Go(func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				m.servers.Go(func() { m.answer(c.(*net.TCPConn)) })
			}
		})
	}
	for _, u := range []*net.UDPConn{m.udp4, m.udp6} {
		m.servers.Go(func() {
			b := make([]byte, 1<<16)
			for {
				n, from, err := u.ReadFromUDPAddrPort(b)
				if err != nil {
					return
				}
				_, err = u.WriteToUDPAddrPort(b[:n/2], from)
				m.check("answer a datagram", err)
				m.udp[1].Add(uint64(n / 2))
				m.datagrams[1].Add(1)
			}
		})
	}
	return nil
}

// What connections do.
const (
	doShort = 's' // 200 bytes, 3,000 back
	doHalf  = 'h' // the client ends its side first, and is answered then
	doReset = 'r' // the server resets it when it has read all
	doBulk  = 'b' // as much as goes, both ways
)

func (m *mixed) answer(c *net.TCPConn) {
	defer c.Close()
	what := make([]byte, 1)
	if _, err := io.ReadFull(c, what); err != nil {
		m.check("read what to do", err)
		return
	}
	send := func(n int) {
		n, err := c.Write(make([]byte, n))
		m.check("answer", err)
		m.tcp[1].Add(uint64(n))
	}
	switch what[0] {
	case doShort:
		_, err := io.CopyN(io.Discard, c, 199)
		m.check("read a request", err)
		send(3000)
		_, err = io.Copy(io.Discard, c)
		m.check("read the end", err)
	case doHalf:
		_, err := io.Copy(io.Discard, c)
		m.check("read to the end", err)
		send(5000)
	case doReset:
		_, err := io.CopyN(io.Discard, c, 999)
		m.check("read before a reset", err)
		m.check("reset", c.SetLinger(0))
	case doBulk:
		var wg sync.WaitGroup
		wg.Go(func() {
			_, err := io.Copy(io.Discard, c)
			m.check("read much", err)
		})
		for time.Now().Before(m.until) {
			send(32 << 10)
			time.Sleep(time.Millisecond)
		}
		m.check("end my side", c.CloseWrite())
		wg.Wait()
	}
}

// connection makes one, from the thread that calls it.
func (m *mixed) connection(what byte, l net.Listener) error {
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		return err
	}
	c := conn.(*net.TCPConn)
	defer c.Close()
	m.conns.Add(1)
	send := func(n int) error {
		b := make([]byte, n)
		b[0] = what
		n, err := c.Write(b)
		m.tcp[0].Add(uint64(n))
		return err
	}
	switch what {
	case doShort:
		if err := send(200); err != nil {
			return err
		}
		_, err = io.CopyN(io.Discard, c, 3000)
	case doHalf:
		if err := errors.Join(send(1500), c.CloseWrite()); err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, c)
	case doReset:
		m.resets.Add(1)
		if err := send(1000); err != nil {
			return err
		}
		if _, err = c.Read(make([]byte, 1)); errors.Is(err, unix.ECONNRESET) {
			err = nil
		} else {
			err = fmt.Errorf("a reset was to come: %w", err)
		}
	case doBulk:
		done := make(chan error, 1)
		go func() {
			_, err := io.Copy(io.Discard, c)
			done <- err
		}()
		for err == nil && time.Now().Before(m.until) {
			err = send(48 << 10)
			time.Sleep(time.Millisecond)
		}
		err = errors.Join(err, c.CloseWrite(), <-done)
	}
	return err
}

// datagram sends one and reads its answer.
func (m *mixed) datagram(n int, send func([]byte) error, receive func([]byte) (int, error)) error {
	b := make([]byte, 1<<12)
	if err := send(b[:n]); err != nil {
		return err
	}
	m.udp[0].Add(uint64(n))
	m.datagrams[0].Add(1)
	if got, err := receive(b); err != nil || got != n/2 {
		return fmt.Errorf("got %d bytes back of %d: %w", got, n, err)
	}
	return nil
}

func (m *mixed) connected(round int, server *net.UDPConn) error {
	c, err := net.Dial("udp", server.LocalAddr().String())
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	for i := range 5 {
		if err := m.datagram((round+i*300)%1400, func(b []byte) error { _, err := c.Write(b); return err }, c.Read); err != nil {
			return err
		}
	}
	return nil
}

func (m *mixed) unconnected(round int, c, server *net.UDPConn) error {
	to := server.LocalAddr().(*net.UDPAddr).AddrPort()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	return m.datagram(round*7%1400, func(b []byte) error { _, err := c.WriteToUDPAddrPort(b, to); return err }, func(b []byte) (int, error) {
		n, _, err := c.ReadFromUDPAddrPort(b)
		return n, err
	})
}

func (m *mixed) ping(to netip.Addr) error {
	family, protocol, kind := unix.AF_INET, unix.IPPROTO_ICMP, byte(8)
	if to.Is6() {
		family, protocol, kind = unix.AF_INET6, unix.IPPROTO_ICMPV6, 128
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 10})
	b := make([]byte, pingLen)
	b[0] = kind
	if err := unix.Sendto(fd, b, 0, sa(netip.AddrPortFrom(to, 0))); err != nil {
		return err
	}
	if n, _, err := unix.Recvfrom(fd, b, 0); n != pingLen || err != nil {
		return fmt.Errorf("an answer of %d bytes: %w", n, err)
	}
	m.pings.Add(1)
	return nil
}

// load runs fn again and again on a thread at the first end until the time is over.
func (m *mixed) load(what string, pause time.Duration, fn func(round int) error) {
	done := m.ends[0].start(func() error {
		for round := 0; time.Now().Before(m.until); round++ {
			if err := fn(round); err != nil {
				return err
			}
			time.Sleep(pause)
		}
		return nil
	})
	m.loads.Go(func() { m.check(what, <-done) })
}

// run is the whole of it.
func (m *mixed) run() {
	m.ends[1].do(m.t, m.serve)
	listeners, sockets := []net.Listener{m.tcp4, m.tcp6}, []*net.UDPConn{m.udp4, m.udp6}
	var mine [2]*net.UDPConn
	m.ends[0].do(m.t, func() (err error) {
		for i, network := range []string{"udp4", "udp6"} {
			if mine[i], err = net.ListenUDP(network, net.UDPAddrFromAddrPort(netip.AddrPortFrom([]netip.Addr{cable4[0], cable6[0]}[i], 0))); err != nil {
				return err
			}
		}
		return nil
	})
	const often, seldom = 2 * time.Millisecond, 10 * time.Millisecond
	for i := range 2 {
		m.load("bulk", 0, func(int) error { return m.connection(doBulk, listeners[i]) })
		m.load("connected datagrams", seldom, func(r int) error { return m.connected(r, sockets[i]) })
		m.load("datagrams", often, func(r int) error { return m.unconnected(r, mine[i], sockets[i]) })
		m.load("ping", seldom, func(int) error { return m.ping([]netip.Addr{cable4[1], cable6[1]}[i]) })
	}
	m.load("short", often, func(r int) error { return m.connection(doShort, listeners[r%2]) })
	m.load("half-closed", seldom, func(r int) error { return m.connection(doHalf, listeners[r%2]) })
	m.load("reset", seldom, func(r int) error { return m.connection(doReset, listeners[r%2]) })
	m.loads.Wait()
	for _, l := range listeners {
		l.Close()
	}
	for i := range 2 {
		mine[i].Close()
		sockets[i].Close()
	}
	m.servers.Wait()
}

// account is what is told of one end of the cable by protocol: the last report of each flow.
type account struct {
	sent, received map[uint8]pavise.Traffic
	flows, open    int
	retransmits    uint64
}

func (w *watch) account(netns uint32) account {
	w.t.Helper()
	last := map[uint64]pavise.Flow{}
	put := func(all []pavise.Flow) {
		for i := range all {
			f := all[i]
			if was, ok := last[f.ID]; f.NetNS == netns && f.Family != unix.AF_UNIX && (!ok || was.State != pavise.FlowClosed && f.Report >= was.Report) {
				last[f.ID] = f
			}
		}
	}
	put(w.told)
	w.mu.Lock()
	put(w.all)
	w.mu.Unlock()
	put(w.sweep())
	put(w.told)
	a := account{sent: map[uint8]pavise.Traffic{}, received: map[uint8]pavise.Traffic{}, flows: len(last)}
	add := func(to map[uint8]pavise.Traffic, protocol uint8, x pavise.Traffic) {
		to[protocol] = pavise.Traffic{Bytes: to[protocol].Bytes + x.Bytes, Packets: to[protocol].Packets + x.Packets}
	}
	for _, f := range last {
		add(a.sent, f.Protocol, f.Sent)
		add(a.received, f.Protocol, f.Received)
		a.retransmits += uint64(f.Retransmits)
		if f.State != pavise.FlowClosed && f.Local.ExecID != 0 {
			a.open++
		}
	}
	return a
}

// TestKernelFlowConservationMixed puts a mixed load on a cable of its own, IPv4 and IPv6: what flows say of it comes to what its programs sent and received, to what the
// kernel counts of its protocols, and, with the headers, to what the interfaces count, byte by byte.
func TestKernelFlowConservationMixed(t *testing.T) {
	w := follow(t, bpf.FlowOptions{})
	ends := cable(t)
	before := [2]map[string]uint64{wire(t, ends[0]), wire(t, ends[1])}
	m := &mixed{t: t, until: time.Now().Add(*mixedFor), ends: ends}
	m.run()
	var told [2]account
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		told = [2]account{w.account(ends[0].number), w.account(ends[1].number)}
		if told[0].open+told[1].open == 0 || time.Now().After(deadline) {
			break
		}
	}
	after := [2]map[string]uint64{wire(t, ends[0]), wire(t, ends[1])}
	t.Logf("%d connections, %d of them reset; %d and %d datagrams, %d pings; %d flows", m.conns.Load(), m.resets.Load(), m.datagrams[0].Load(), m.datagrams[1].Load(), m.pings.Load(), told[0].flows+told[1].flows)
	const tcp, udp, icmp, icmp6 = unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6
	same := func(what string, told, counted uint64) {
		t.Helper()
		t.Logf("%-46s %12d told, %12d counted, difference %d", what, told, counted, int64(told-counted))
		if told != counted {
			t.Errorf("%s: %d told, %d counted", what, told, counted)
		}
	}
	for i, side := range []string{"client", "server"} {
		a := told[i]
		grew := func(names ...string) (n uint64) {
			for _, name := range names {
				if _, ok := after[i][name]; !ok {
					t.Errorf("the kernel has no counter %s", name)
				}
				n += after[i][name] - before[i][name]
			}
			return n
		}
		// What the programs sent and received.
		same(side+": TCP bytes sent", a.sent[tcp].Bytes, m.tcp[i].Load())
		same(side+": TCP bytes received", a.received[tcp].Bytes, m.tcp[1-i].Load())
		same(side+": UDP bytes sent", a.sent[udp].Bytes, m.udp[i].Load())
		same(side+": UDP bytes received", a.received[udp].Bytes, m.udp[1-i].Load())
		same(side+": UDP datagrams sent", a.sent[udp].Packets, m.datagrams[i].Load())
		// What the kernel counts of its protocols.
		same(side+": UDP sent, of /proc/net/snmp", a.sent[udp].Packets, grew("Udp.OutDatagrams", "Udp6OutDatagrams"))
		same(side+": UDP received, of /proc/net/snmp", a.received[udp].Packets, grew("Udp.InDatagrams", "Udp6InDatagrams"))
		same(side+": ICMP sent, of /proc/net/snmp", a.sent[icmp].Packets+a.sent[icmp6].Packets, grew("Icmp.OutMsgs", "Icmp6OutMsgs"))
		if i == 0 { // at the other end the kernel answers itself: no socket gets the question, and no flow has it
			same(side+": ICMP received, of /proc/net/snmp", a.received[icmp].Packets+a.received[icmp6].Packets, grew("Icmp.InMsgs", "Icmp6InMsgs"))
		}
		// Of a connection, what comes and goes when its socket is gone already is in no flow: the last acknowledgement, an answer to a reset.
		within := func(what string, told, counted uint64) {
			t.Helper()
			t.Logf("%-46s %12d told, %12d counted, difference %d, at most 3 for each of %d connections", what, told, counted, int64(told-counted), m.conns.Load())
			if told > counted || counted-told > 3*m.conns.Load() {
				t.Errorf("%s: %d told, %d counted", what, told, counted)
			}
		}
		within(side+": segments sent", a.sent[tcp].Packets, grew("Tcp.OutSegs", "Tcp.RetransSegs"))
		// (Tcp.InSegs has what arrived in one piece as one.) What arrived when the socket was gone is in no flow either.
		within(side+": segments received, sent at the other end", a.received[tcp].Packets, after[1-i]["Tcp.OutSegs"]-before[1-i]["Tcp.OutSegs"])
		same(side+": retransmitted", a.retransmits, grew("Tcp.RetransSegs"))
		// What the interface counts: of what flows tell, with the headers that go with it. A segment that is sent again carries as much as it did before, which is not known.
		v4, v6 := grew("Ip.OutRequests"), grew("Ip6OutRequests")
		same(side+": packets of the interface", v4+v6, grew("dev.tx_packets"))
		segments := v4 + v6 - a.sent[udp].Packets - a.sent[icmp].Packets - a.sent[icmp6].Packets
		syns := grew("Tcp.ActiveOpens", "Tcp.PassiveOpens")
		payload := a.sent[tcp].Bytes + a.sent[udp].Bytes + a.sent[icmp].Bytes + a.sent[icmp6].Bytes
		headers := 14*(v4+v6) + 20*v4 + 40*v6 + 8*a.sent[udp].Packets + 20*segments + 4*syns // a SYN has the MSS
		sum, dev, again := payload+headers, grew("dev.tx_bytes"), grew("Tcp.RetransSegs")
		t.Logf("%s: %d bytes of payload and %d of headers; the interface sent %d, difference %d; %d segments were sent again", side, payload, headers, dev, int64(sum-dev), again)
		if sum > dev || dev-sum > again*1460 {
			t.Errorf("%s: %d bytes told with their headers, the interface sent %d", side, sum, dev)
		}
		same(side+": bytes of the interface at the other end", after[1-i]["dev.rx_bytes"]-before[1-i]["dev.rx_bytes"], dev)
	}
	if s := w.stats(); s.Lost != 0 || s.NoStorage != 0 || s.Late != 0 || s.NoPeer != 0 {
		t.Errorf("counters: %+v", s)
	}
}
