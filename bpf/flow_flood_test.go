package bpf_test

import (
	"encoding/binary"
	"errors"
	"flag"
	"io"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	pavise "github.com/pavise-project/pavise"
	"github.com/pavise-project/pavise/bpf"
	"github.com/pavise-project/pavise/decode"
	"github.com/pavise-project/pavise/internal/kerntest"
	"golang.org/x/sys/unix"
)

var manyPeers = flag.Int("peers", 1_000_000, "with TestKernelFlowManyPeers: how many peers the socket sends to")

// spoofed is the i'th address of those that nobody has; what is sent to them goes over the cable and ends there.
func spoofed(i int) [4]byte {
	return [4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}
}

// routeSpoofed sends what is for them over the cable.
func routeSpoofed(t testing.TB, p place) {
	t.Helper()
	p.do(t, func() error {
		at, err := net.InterfaceByName(cableName)
		if err != nil {
			return err
		}
		msg := []byte{unix.AF_INET, 8, 0, 0, unix.RT_TABLE_MAIN, unix.RTPROT_STATIC, unix.RT_SCOPE_LINK, unix.RTN_UNICAST, 0, 0, 0, 0}
		msg = attribute(msg, unix.RTA_DST, []byte{10, 0, 0, 0})
		rtnetlink(t, unix.RTM_NEWROUTE, attribute(msg, unix.RTA_OIF, binary.NativeEndian.AppendUint32(nil, uint32(at.Index))))
		return nil
	})
}

// forged is an IPv4 packet from an address that nobody has, for a socket that takes it with its header.
func forged(from [4]byte, to netip.AddrPort, protocol byte, segment []byte) []byte {
	p := make([]byte, 20, 20+len(segment))
	p[0], p[8], p[9] = 0x45, 64, protocol
	copy(p[12:], from[:])
	dst := to.Addr().As4()
	copy(p[16:], dst[:])
	return append(p, segment...)
}

// checksum writes that of TCP or UDP into a forged packet.
func checksum(p []byte, at int) {
	sum := uint32(p[9]) + uint32(len(p)-20)
	p[20+at], p[20+at+1] = 0, 0
	for i := 12; i < len(p); i += 2 {
		sum += uint32(p[i]) << 8
		if i+1 < len(p) {
			sum += uint32(p[i+1])
		}
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	binary.BigEndian.PutUint16(p[20+at:], ^uint16(sum))
}

// sums adds up what is told of one socket, without keeping it.
type sums struct {
	of     func(f *pavise.Flow) bool
	ended  pavise.Flow // Sent and Received of those that have ended
	flows  int
	others map[uint64]bool
	most   int // flows in one sweep
	went   pavise.Traffic
}

func (s *sums) end(f *pavise.Flow) {
	if f.State != pavise.FlowClosed || !s.of(f) {
		return
	}
	s.flows++
	s.ended.Sent.Bytes += f.Sent.Bytes
	s.ended.Sent.Packets += f.Sent.Packets
	s.ended.Received.Bytes += f.Received.Bytes
	s.ended.Received.Packets += f.Received.Packets
	if f.Others {
		s.others[f.ID] = true
		s.went.Bytes += f.Sent.Bytes + f.Received.Bytes
		s.went.Packets += f.Sent.Packets + f.Received.Packets
	}
}

func (s *sums) sweep(t testing.TB, f *bpf.Flows) {
	t.Helper()
	var fl pavise.Flow
	var d pavise.FlowData
	n := 0
	if err := f.Sweep(func(rec []byte) error {
		if _, err := decode.Flow(rec, 0, &fl, &d); err != nil {
			return err
		}
		if s.of(&fl) {
			n++
			s.end(&fl)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	s.most = max(s.most, n)
}

// TestKernelFlowManyPeers: one socket sends to a million addresses, and gets datagrams from many that nobody has. The table of peers is full all the while, and is emptied of idle
// ones and filled again: no byte is lost, and memory has a bound.
func TestKernelFlowManyPeers(t *testing.T) {
	room, peers, strangers := 32768, *manyPeers, 100_000 // flow_peers, as it is for users
	if kerntest.VM() != "" {                             // which are slow
		room, peers, strangers = 512, 20_000, 5_000
	}
	w := follow(t, bpf.FlowOptions{Peers: uint32(room), Idle: 50 * time.Millisecond})
	ends := cable(t)
	routeSpoofed(t, ends[0])
	fd, at := datagrams(t, unix.SOCK_DGRAM, 0, "192.0.2.1:0")
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20)
	s := &sums{of: func(f *pavise.Flow) bool { return f.NetNS == ends[0].number && f.Protocol == unix.IPPROTO_UDP }, others: map[uint64]bool{}}
	memory := func() uint64 {
		n, err := w.f.Memory()
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	before, most := memory(), uint64(0)
	var heap runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&heap)
	heapBefore := heap.HeapAlloc
	stop, swept := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(swept)
		for {
			select {
			case <-stop:
				return
			case <-time.After(300 * time.Millisecond):
				s.sweep(t, w.f)
				most = max(most, memory())
			}
		}
	}()
	endSweeps := sync.OnceFunc(func() { close(stop); <-swept })
	t.Cleanup(endSweeps)
	var want pavise.Flow
	began := time.Now()
	send := ends[0].start(func() error {
		b := make([]byte, 64)
		to := &unix.SockaddrInet4{Port: 9}
		for i := range peers {
			to.Addr = spoofed(i)
			n := i % len(b)
			if err := unix.Sendto(fd, b[:n], 0, to); err != nil {
				return err
			}
			want.Sent.Bytes += uint64(n)
			want.Sent.Packets++
		}
		return nil
	})
	// They are forged at the other end, and each comes from two ports.
	var read atomic.Uint64
	receive := ends[0].start(func() error {
		b := make([]byte, 2048)
		for read.Load() < uint64(2*strangers) {
			switch _, _, err := unix.Recvfrom(fd, b, 0); {
			case errors.Is(err, unix.EINTR): // by the runtime: it waits no longer than SO_RCVTIMEO
			case err != nil:
				return err
			default:
				read.Add(1)
			}
		}
		return nil
	})
	forge := ends[1].start(func() error {
		raw, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		if err != nil {
			return err
		}
		defer unix.Close(raw)
		for i := range 2 * strangers {
			u := make([]byte, 8+i%100)
			binary.BigEndian.PutUint16(u, uint16(1000+i/strangers))
			binary.BigEndian.PutUint16(u[2:], at.Port())
			binary.BigEndian.PutUint16(u[4:], uint16(len(u)))
			if err := unix.Sendto(raw, forged(spoofed(1<<23+i%strangers), at, unix.IPPROTO_UDP, u), 0, &unix.SockaddrInet4{Addr: at.Addr().As4()}); err != nil {
				return err
			}
			want.Received.Bytes += uint64(i % 100)
			want.Received.Packets++
		}
		return nil
	})
	for what, done := range map[string]<-chan error{"send": send, "forge": forge, "receive": receive} {
		if err := <-done; err != nil {
			t.Fatalf("%s: %v (%d received)", what, err, read.Load())
		}
	}
	took := time.Since(began)
	endSweeps()
	unix.Close(fd)
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline) && (s.ended.Sent != want.Sent || s.ended.Received != want.Received); time.Sleep(100 * time.Millisecond) {
		s.sweep(t, w.f)
		w.mu.Lock() // of the socket itself
		for i := range w.all {
			s.end(&w.all[i])
		}
		w.all = nil
		w.mu.Unlock()
	}
	stats := w.stats()
	runtime.GC()
	runtime.ReadMemStats(&heap)
	t.Logf("%d peers and %d strangers in %v: %d flows, at most %d in a sweep; %d packets found no room, of %+v in %d flows of others; kernel maps %d KiB, at most %d KiB; heap %d KiB, then %d KiB",
		peers, 2*strangers, took.Round(time.Millisecond), s.flows, s.most, stats.NoPeer, s.went, len(s.others), before>>10, most>>10, heapBefore>>10, heap.HeapAlloc>>10)
	if s.ended.Sent != want.Sent || s.ended.Received != want.Received {
		t.Errorf("sent %+v, want %+v; received %+v, want %+v; counters %+v", s.ended.Sent, want.Sent, s.ended.Received, want.Received, stats)
	}
	if s.most > room+100 || s.flows < room {
		t.Errorf("%d flows in a sweep, %d in all; there is room for %d", s.most, s.flows, room)
	}
	// (A socket of the kernel may have had some too.)
	if len(s.others) != 1 || stats.NoPeer < s.went.Packets || stats.NoPeer > s.went.Packets+1000 {
		t.Errorf("%d packets found no room; %d flows of others have %d", stats.NoPeer, len(s.others), s.went.Packets)
	}
	if most > before+16<<20 {
		t.Errorf("the kernel's maps grew from %d to %d bytes", before, most)
	}
	if stats.Late != 0 || stats.NoStorage != 0 || stats.Lost != 0 {
		t.Errorf("counters: %+v", stats)
	}
}

// TestKernelFlowSYNFlood: half-open connections of forged origin cost nothing here, and tell nothing; those who are real are told in between.
func TestKernelFlowSYNFlood(t *testing.T) {
	w := follow(t, bpf.FlowOptions{})
	ends := cable(t)
	routeSpoofed(t, ends[0])
	l, err := net.Listen("tcp4", "192.0.2.1:0")
	if err != nil {
		t.Fatal(err)
	}
	to := netip.MustParseAddrPort(l.Addr().String())
	var wg sync.WaitGroup
	t.Cleanup(func() {
		l.Close()
		wg.Wait()
	})
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			served := make(chan struct{})
			wg.Go(func() {
				_, _ = io.Copy(c, c)
				c.Close()
				close(served)
			})
			wg.Go(func() {
				select {
				case <-served:
				case <-t.Context().Done():
					_ = c.SetDeadline(time.Now())
				}
			})
		}
	})
	real := func(n int) error {
		c, err := net.DialTimeout("tcp4", to.String(), 10*time.Second)
		if err != nil {
			return err
		}
		defer c.Close()
		if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
			return err
		}
		_, err = c.Write(make([]byte, n))
		if err := errors.Join(err, c.(*net.TCPConn).CloseWrite()); err != nil {
			return err
		}
		if got, err := io.Copy(io.Discard, c); err != nil || got != int64(n) {
			return errors.Join(err, errors.New("not all came back"))
		}
		return nil
	}
	ends[1].do(t, func() error { return real(1) }) // so that what is made once is made
	ours := func(f *pavise.Flow) bool { return f.NetNS == ends[0].number && f.Protocol == unix.IPPROTO_TCP }
	/*
	 * When the last segment of a handshake by cookie comes late, after a connection that its data made, and that was closed since, the kernel makes another: without anybody
	 * at the other end, and without data.
	 */
	carries := func(f *pavise.Flow) bool { return ours(f) && f.Received.Bytes > 0 }
	w.wait(1, "the first", carries)
	memory, err := w.f.Memory()
	if err != nil {
		t.Fatal(err)
	}
	before, stats := wire(t, ends[0]), w.stats()

	flood := 200_000
	if kerntest.VM() != "" {
		flood = 20_000
	}
	over := make(chan struct{})
	syns := ends[1].start(func() error {
		defer close(over)
		raw, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		if err != nil {
			return err
		}
		defer unix.Close(raw)
		for i := range flood {
			s := make([]byte, 20, 40)
			binary.BigEndian.PutUint16(s, uint16(1024+i%60000))
			binary.BigEndian.PutUint16(s[2:], to.Port())
			binary.BigEndian.PutUint32(s[4:], uint32(i))
			s[12], s[13], s[14] = 5<<4, 2, 255 // SYN
			switch i % 8 {
			case 6: // with data, as of a connection that is opened fast
				s = append(s, "GET / HTTP/1.1\r\n\r\n"...)
			case 7: // an answer to what was never asked
				s[13] = 16
			}
			p := forged(spoofed(i), to, unix.IPPROTO_TCP, s)
			checksum(p, 16)
			if err := unix.Sendto(raw, p, 0, &unix.SockaddrInet4{Addr: to.Addr().As4()}); err != nil {
				return err
			}
		}
		return nil
	})
	made := 0
	bytes := uint64(0)
	clients := ends[1].start(func() error {
		for {
			select {
			case <-over:
				if made > 0 {
					return nil
				}
			default:
			}
			if err := real(100 + made); err != nil {
				return err
			}
			bytes += uint64(100 + made)
			made++
		}
	})
	most := 0
	for done := false; !done; {
		select {
		case <-over:
			done = true
		case <-time.After(50 * time.Millisecond):
			n := 0
			for _, f := range w.sweep() {
				if ours(&f) {
					if f.Received.Bytes > 0 {
						n++
					}
					if f.Remote.Address != cable4[1] {
						t.Fatalf("a flow was made of a half-open connection: %s", show([]pavise.Flow{f}))
					}
				}
			}
			most = max(most, n)
		}
	}
	if err := errors.Join(<-syns, <-clients); err != nil {
		t.Fatal(err)
	}
	told := w.wait(made+1, "real connections", carries)
	after, then := wire(t, ends[0]), w.stats()
	grew, err := w.f.Memory()
	if err != nil {
		t.Fatal(err)
	}
	ghosts := 0
	for _, f := range w.sweep() {
		if ours(&f) && f.Received.Bytes == 0 {
			ghosts++
		}
	}
	cookies := after["TcpExt.SyncookiesSent"] - before["TcpExt.SyncookiesSent"] + after["TcpExt.ListenDrops"] - before["TcpExt.ListenDrops"]
	t.Logf("%d forged segments, %d of them answered with a cookie or dropped; %d real connections, at most %d flows at once, %d without a client; %d records were made; kernel maps %d KiB, then %d KiB",
		flood, cookies, made, most, ghosts, then.Made-stats.Made, memory>>10, grew>>10)
	if cookies < uint64(flood)/4 {
		t.Errorf("the listener was not flooded: %d cookies and drops", cookies)
	}
	var sum uint64
	for i := range told {
		sum += told[i].Received.Bytes
		if f := &told[i]; f.Remote.Address != cable4[1] || f.Direction != pavise.FlowInbound || f.Local.ExecID == 0 || f.End != pavise.FlowDone {
			t.Errorf("told: %s", show(told[i:i+1]))
		}
	}
	if len(told) != made+1 || sum != bytes+1 {
		t.Errorf("%d connections with %d bytes were told, want %d with %d", len(told), sum, made+1, bytes+1)
	}
	// One record for each end, of real connections alone; others on this machine may make some.
	if n := then.Made - stats.Made; n < uint64(2*made) || n > uint64(2*made+200) {
		t.Errorf("%d records were made of %d connections", n, made)
	}
	if most > 10 || grew > memory+64<<10 {
		t.Errorf("%d flows at once; kernel maps grew from %d to %d bytes", most, memory, grew)
	}
	if then.Lost != 0 || then.NoStorage != 0 {
		t.Errorf("counters: %+v", then)
	}
}
