package bpf_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	pavise "github.com/pavise-project/pavise"
	"github.com/pavise-project/pavise/bpf"
	"github.com/pavise-project/pavise/decode"
	"github.com/pavise-project/pavise/internal/kerntest"
	"golang.org/x/sys/unix"
)

// watch collects what is told of flows while a test runs.
type watch struct {
	t     testing.TB
	k     *bpf.Kernel
	f     *bpf.Flows
	flows chan struct{} // closed when one has come
	stop  func()

	mu   sync.Mutex
	all  []pavise.Flow // of the ring
	told []pavise.Flow // that sweeps ended
	data []pavise.FlowData
	late []time.Duration // of records of ends
}

// follow gives every process an identity and accounts for flows.
func follow(t testing.TB, o bpf.FlowOptions) *watch {
	t.Helper()
	return watchOf(t, lifecycle(t), o)
}

// lifecycle gives every process an identity.
func lifecycle(t testing.TB) *bpf.Kernel {
	t.Helper()
	kerntest.Require(t, kerntest.Root, kerntest.Syscall, kerntest.TpBtf, kerntest.Cgroup)
	k, err := bpf.Load()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { k.Close() })
	if err := k.Call("find_host"); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{"on_exit", "on_exec", "on_fork"} {
		if err := k.Attach(p); err != nil {
			t.Fatal(err)
		}
	}
	if err := k.Iterate("found_task"); err != nil {
		t.Fatal(err)
	}
	return k
}

func watchOf(t testing.TB, k *bpf.Kernel, o bpf.FlowOptions) *watch {
	t.Helper()
	f, err := k.OpenFlows(o)
	if err != nil {
		t.Fatal(err)
	}
	w := &watch{t: t, k: k, f: f, flows: make(chan struct{})}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f.Read(ctx, w.take) }()
	w.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		w.stop()
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	return w
}

func boottime() int64 {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts)
	return ts.Nano()
}

func (w *watch) take(rec []byte) error {
	var f pavise.Flow
	var d pavise.FlowData
	now := boottime()
	data, err := decode.Flow(rec, 0, &f, &d)
	if err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if data {
		d.Data = slices.Clone(d.Data)
		w.data = append(w.data, d)
	} else {
		f.Local.Path, f.Remote.Path = strings.Clone(f.Local.Path), strings.Clone(f.Remote.Path)
		w.all = append(w.all, f)
		w.late = append(w.late, time.Duration(now-f.Time))
	}
	close(w.flows)
	w.flows = make(chan struct{})
	return nil
}

// wait returns n flows that are as wanted, when there are so many.
func (w *watch) wait(n int, what string, want func(f *pavise.Flow) bool) []pavise.Flow {
	w.t.Helper()
	deadline := time.After(time.Minute)
	var got []pavise.Flow
	for at := 0; ; {
		w.mu.Lock()
		for ; at < len(w.all); at++ {
			if want(&w.all[at]) {
				got = append(got, w.all[at])
			}
		}
		more := w.flows
		w.mu.Unlock()
		if len(got) >= n {
			return got
		}
		select {
		case <-more:
		case <-deadline:
			open := w.sweep()
			w.mu.Lock()
			defer w.mu.Unlock()
			w.t.Fatalf("%s: %d flows of %d; counters %+v; all there are:%s\nand of a sweep:%s", what, len(got), n, w.stats(), show(w.all), show(open))
		}
	}
}

func show(all []pavise.Flow) string {
	var b strings.Builder
	for i := range all {
		f := &all[i]
		fmt.Fprintf(&b, "\n%s %s %s %d/%d %v:%d%s (%x) - %v:%d%s (%x), sent %v, received %v, found %v, others %v, report %d, ns %d", f.State, f.Direction, f.End, f.Family, f.Protocol,
			f.Local.Address, f.Local.Port, f.Local.Path, f.Local.ExecID, f.Remote.Address, f.Remote.Port, f.Remote.Path, f.Remote.ExecID, f.Sent, f.Received, f.Found, f.Others, f.Report, f.NetNS)
		if i > 9 {
			break
		}
	}
	return b.String()
}

// sweep is what Sweep tells.
func (w *watch) sweep() []pavise.Flow {
	w.t.Helper()
	var out []pavise.Flow
	if err := w.f.Sweep(func(rec []byte) error {
		var f pavise.Flow
		var d pavise.FlowData
		data, err := decode.Flow(rec, 0, &f, &d)
		if data {
			return errors.New("data in a sweep")
		}
		f.Local.Path, f.Remote.Path = strings.Clone(f.Local.Path), strings.Clone(f.Remote.Path)
		out = append(out, f)
		if f.State == pavise.FlowClosed {
			w.told = append(w.told, f)
		}
		return err
	}); err != nil {
		w.t.Fatal(err)
	}
	return out
}

func (w *watch) stats() bpf.FlowStats {
	w.t.Helper()
	s, err := w.f.Stats()
	if err != nil {
		w.t.Fatal(err)
	}
	return s
}

// owner is the identity of a process.
func (w *watch) owner(pid int) uint64 {
	w.t.Helper()
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		w.t.Fatal(err)
	}
	defer unix.Close(fd)
	var p bpf.KernelProc
	if err := w.k.Map("procs").Lookup(uint32(fd), &p); err != nil {
		w.t.Fatal(err)
	}
	return p.ExecId
}

// namespaces keeps those of all tests, so that no two have the same number.
var namespaces []*os.File

// ownNetNS moves the test's thread to a network namespace of its own, in which the loopback interface is up, for the rest of the test. Sockets that the net package
// makes on this goroutine are in it.
func ownNetNS(t testing.TB) {
	t.Helper()
	runtime.LockOSThread() // and never unlocked: the thread ends with the test's goroutine
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	ifr, _ := unix.NewIfreq("lo")
	ifr.SetUint16(unix.IFF_UP)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr); err != nil {
		t.Fatal(err)
	}
	if ns, err := os.Open("/proc/thread-self/ns/net"); err != nil {
		t.Fatal(err)
	} else {
		namespaces = append(namespaces, ns)
	}
	for deadline := time.Now().Add(5 * time.Second); ; { // ::1 comes a moment later
		if l, err := net.Listen("tcp6", "[::1]:0"); err == nil {
			l.Close()
			return
		} else if time.Now().After(deadline) {
			t.Fatal(err)
		}
		time.Sleep(time.Millisecond)
	}
}

// in has a part of a test run in the network namespace of the thread that calls it.
func (w *watch) in(part func(t *testing.T)) func(t *testing.T) {
	w.t.Helper()
	ns, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		w.t.Fatal(err)
	}
	return func(t *testing.T) {
		defer ns.Close()
		runtime.LockOSThread()
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			t.Fatal(err)
		}
		was := w.t
		defer func() { w.t = was }()
		w.t = t
		part(t)
	}
}

// addRoute sends the traffic for a prefix to the loopback interface: nobody answers there.
func addRoute(t testing.TB, to netip.Prefix) {
	t.Helper()
	msg := []byte{unix.AF_INET, byte(to.Bits()), 0, 0, unix.RT_TABLE_MAIN, unix.RTPROT_STATIC, unix.RT_SCOPE_LINK, unix.RTN_UNICAST, 0, 0, 0, 0}
	msg = attribute(msg, unix.RTA_DST, to.Addr().AsSlice())
	msg = attribute(msg, unix.RTA_OIF, binary.NativeEndian.AppendUint32(nil, 1))
	rtnetlink(t, unix.RTM_NEWROUTE, msg)
}

func netNS(t testing.TB) uint32 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat("/proc/thread-self/ns/net", &st); err != nil {
		t.Fatal(err)
	}
	return uint32(st.Ino)
}

func port(a net.Addr) uint16 { return netip.MustParseAddrPort(a.String()).Port() }

// exchange connects to a listener in this process, has the client send up bytes and the server down, and closes both, the client first.
func exchange(t testing.TB, network, listen, dial string, up, down int) (client, server net.Addr) {
	t.Helper()
	l, err := net.Listen(network, listen)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, p, _ := net.SplitHostPort(l.Addr().String())
	c, err := net.Dial(network, net.JoinHostPort(dial, p))
	if err != nil {
		t.Fatal(err)
	}
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		_, err := io.CopyN(io.Discard, s, int64(up))
		if err == nil {
			_, err = s.Write(make([]byte, down))
		}
		done <- err
	}()
	if _, err := c.Write(make([]byte, up)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.CopyN(io.Discard, c, int64(down)); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	client, server = c.LocalAddr(), c.RemoteAddr()
	c.Close()
	if _, err := s.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	s.Close()
	return client, server
}

func TestKernelFlowTCP(t *testing.T) {
	w := follow(t, bpf.FlowOptions{Wake: true})
	me := w.owner(os.Getpid())
	for _, c := range []struct {
		network, listen, dial, address string
		family                         uint16
		up, down                       int
	}{
		{"tcp4", "127.0.0.1:0", "127.0.0.1", "127.0.0.1", unix.AF_INET, 12345, 7},
		{"tcp6", "[::1]:0", "::1", "::1", unix.AF_INET6, 1, 3 << 20},
		{"tcp", "[::]:0", "127.0.0.1", "127.0.0.1", unix.AF_INET, 9 << 20, 0}, // the server's end is an IPv6 socket
	} {
		t.Run(c.network, func(t *testing.T) {
			ownNetNS(t)
			began := boottime()
			client, server := exchange(t, c.network, c.listen, c.dial, c.up, c.down)
			ended := boottime()
			at := func(dir pavise.FlowDirection) pavise.Flow {
				local, remote := port(client), port(server)
				if dir == pavise.FlowInbound {
					local, remote = remote, local
				}
				return w.wait(1, dir.String(), func(f *pavise.Flow) bool {
					return f.NetNS == netNS(t) && f.Direction == dir && f.Local.Port == local && f.Remote.Port == remote
				})[0]
			}
			out, in := at(pavise.FlowOutbound), at(pavise.FlowInbound)
			if out.ID == in.ID || out.ID == 0 {
				t.Errorf("their ids are %d and %d", out.ID, in.ID)
			}
			for _, f := range []*pavise.Flow{&out, &in} {
				addr := netip.MustParseAddr(c.address)
				if f.Family != c.family || f.Type != unix.SOCK_STREAM || f.Protocol != unix.IPPROTO_TCP || f.Local.Address != addr || f.Remote.Address != addr {
					t.Errorf("%s: what it is: %+v", f.Direction, f)
				}
				if f.State != pavise.FlowClosed || f.End != pavise.FlowDone || f.Found || f.Others || f.Report != 0 {
					t.Errorf("%s: state %s, end %q, found %v, others %v, report %d", f.Direction, f.State, f.End, f.Found, f.Others, f.Report)
				}
				if f.Local.ExecID != me {
					t.Errorf("%s: owner %x, want %x", f.Direction, f.Local.ExecID, me)
				}
				if f.Start < began || f.Start > f.Time || f.Time > ended+int64(time.Second) {
					t.Errorf("%s: from %d to %d, not in %d to %d", f.Direction, f.Start, f.Time, began, ended)
				}
				if f.RTT <= 0 || f.RTT > int64(time.Second) {
					t.Errorf("%s: round trip of %d ns", f.Direction, f.RTT)
				}
				if f.Sent.Packets < 2 || f.Received.Packets < 2 {
					t.Errorf("%s: %d segments sent, %d received", f.Direction, f.Sent.Packets, f.Received.Packets)
				}
			}
			if out.ConnectLatency <= 0 || out.ConnectLatency > ended-began || in.ConnectLatency != 0 {
				t.Errorf("latency of connect %d, of accept %d", out.ConnectLatency, in.ConnectLatency)
			}
			if out.Sent.Bytes != uint64(c.up) || out.Received.Bytes != uint64(c.down) {
				t.Errorf("the client sent %d and received %d bytes, want %d and %d", out.Sent.Bytes, out.Received.Bytes, c.up, c.down)
			}
			if in.Sent.Bytes != uint64(c.down) || in.Received.Bytes != uint64(c.up) {
				t.Errorf("the server sent %d and received %d bytes, want %d and %d", in.Sent.Bytes, in.Received.Bytes, c.down, c.up)
			}
		})
	}
	s := w.stats()
	if s.Lost != 0 || s.NoStorage != 0 || s.Made == 0 {
		t.Errorf("counters: %+v", s)
	}
}

// TestKernelFlowTCPEnds is how connections end that are not just closed.
func TestKernelFlowTCPEnds(t *testing.T) {
	w := follow(t, bpf.FlowOptions{Wake: true})
	ownNetNS(t)
	ns := netNS(t)
	nowhere := netip.MustParsePrefix("192.0.2.0/24")
	addRoute(t, nowhere)
	socket := func() int {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(fd) })
		return fd
	}
	pair := func() (client, server int, ports [2]uint16) {
		l, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		client = socket()
		if err := unix.Connect(client, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}, Port: int(port(l.Addr()))}); err != nil {
			t.Fatal(err)
		}
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		raw, _ := c.(*net.TCPConn).File()
		server, _ = unix.Dup(int(raw.Fd()))
		raw.Close()
		ports = [2]uint16{port(c.RemoteAddr()), port(c.LocalAddr())}
		c.Close()
		_ = unix.SetNonblock(server, false)
		return client, server, ports
	}
	end := func(t *testing.T, local, remote uint16, want pavise.FlowEnd, dir pavise.FlowDirection, by ...pavise.FlowEndpoint) {
		t.Helper()
		f := w.wait(1, want.String(), func(f *pavise.Flow) bool {
			return f.NetNS == ns && f.Direction == dir && (local == 0 || f.Local.Port == local) && f.Remote.Port == remote && f.State == pavise.FlowClosed
		})[0]
		if f.End != want {
			t.Errorf("the end of %d to %d, %s, is %q, want %q", f.Local.Port, f.Remote.Port, f.Direction, f.End, want)
		}
		if by := append(by, pavise.EndpointUnknown)[0]; f.ResetBy != by {
			t.Errorf("%d to %d, %s, was reset by %q, want %q", f.Local.Port, f.Remote.Port, f.Direction, f.ResetBy, by)
		}
	}
	t.Run("refused", w.in(func(t *testing.T) {
		if err := unix.Connect(socket(), &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}, Port: 1}); !errors.Is(err, unix.ECONNREFUSED) {
			t.Fatal(err)
		}
		end(t, 0, 1, pavise.FlowRefused, pavise.FlowOutbound)
	}))
	t.Run("timed out", w.in(func(t *testing.T) {
		fd := socket()
		_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 100)
		_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_SYNCNT, 1)
		done := make(chan error, 1)
		go func() { done <- unix.Connect(fd, &unix.SockaddrInet4{Addr: [4]byte{192, 0, 2, 1}, Port: 2}) }()
		for { // it is told of while it goes on
			all := w.sweep()
			if i := slices.IndexFunc(all, func(f pavise.Flow) bool { return f.NetNS == ns && f.Remote.Port == 2 }); i >= 0 {
				if all[i].State != pavise.FlowConnecting || all[i].Local.ExecID != w.owner(os.Getpid()) {
					t.Errorf("while it goes on: %s", show(all[i:i+1]))
				}
				break
			}
			if len(done) > 0 {
				t.Fatal("it was never seen in a sweep")
			}
		}
		if err := <-done; !errors.Is(err, unix.ETIMEDOUT) {
			t.Fatal(err)
		}
		end(t, 0, 2, pavise.FlowTimedOut, pavise.FlowOutbound)
	}))
	t.Run("unreachable", w.in(func(t *testing.T) {
		packets, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, int(binary.NativeEndian.Uint16([]byte{8, 0})))
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(packets)
		icmp, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMP)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(icmp)
		done := make(chan error, 1)
		fd := socket()
		go func() { done <- unix.Connect(fd, &unix.SockaddrInet4{Addr: [4]byte{192, 0, 2, 1}, Port: 3}) }()
		for { // a router answers to the SYN
			var b [128]byte
			n, _, err := unix.Recvfrom(packets, b[:], 0)
			if err != nil {
				t.Fatal(err)
			}
			if n >= 40 && b[9] == unix.IPPROTO_TCP && binary.BigEndian.Uint16(b[22:]) == 3 {
				msg := append([]byte{3, 1, 0, 0, 0, 0, 0, 0}, b[:28]...)
				var sum uint32
				for i := 0; i < len(msg); i += 2 {
					sum += uint32(binary.BigEndian.Uint16(msg[i:]))
				}
				sum = sum&0xffff + sum>>16
				binary.BigEndian.PutUint16(msg[2:], ^uint16(sum+sum>>16))
				if err := unix.Sendto(icmp, msg, 0, &unix.SockaddrInet4{Addr: [4]byte(b[12:16])}); err != nil {
					t.Fatal(err)
				}
				break
			}
		}
		if err := <-done; !errors.Is(err, unix.EHOSTUNREACH) {
			t.Fatal(err)
		}
		end(t, 0, 3, pavise.FlowUnreachable, pavise.FlowOutbound)
	}))
	t.Run("reset", w.in(func(t *testing.T) {
		client, server, ports := pair()
		_ = unix.SetsockoptLinger(server, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
		unix.Close(server)
		if _, err := unix.Read(client, make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
			t.Fatal(err)
		}
		end(t, ports[0], ports[1], pavise.FlowReset, pavise.FlowOutbound, pavise.EndpointRemote)
		end(t, ports[1], ports[0], pavise.FlowReset, pavise.FlowInbound, pavise.EndpointLocal)
	}))
	t.Run("closed with data unread", w.in(func(t *testing.T) {
		client, server, ports := pair()
		if _, err := unix.Write(client, []byte("unread")); err != nil {
			t.Fatal(err)
		}
		unix.Close(server)
		_, _ = unix.Read(client, make([]byte, 1))
		end(t, ports[0], ports[1], pavise.FlowReset, pavise.FlowOutbound, pavise.EndpointRemote)
		end(t, ports[1], ports[0], pavise.FlowReset, pavise.FlowInbound, pavise.EndpointLocal)
	}))
	t.Run("reset after the other end has closed its side", w.in(func(t *testing.T) {
		client, server, ports := pair()
		_ = unix.Shutdown(client, unix.SHUT_WR)
		if n, err := unix.Read(server, make([]byte, 1)); n != 0 || err != nil {
			t.Fatal(n, err)
		}
		_ = unix.SetsockoptLinger(server, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
		unix.Close(server)
		end(t, ports[0], ports[1], pavise.FlowReset, pavise.FlowOutbound, pavise.EndpointRemote)
		end(t, ports[1], ports[0], pavise.FlowReset, pavise.FlowInbound, pavise.EndpointLocal)
	}))
	t.Run("reset by an answer to data for nobody", w.in(func(t *testing.T) {
		client, server, ports := pair()
		unix.Close(client)
		if n, err := unix.Read(server, make([]byte, 1)); n != 0 || err != nil {
			t.Fatal(n, err)
		}
		if _, err := unix.Write(server, []byte("late")); err != nil {
			t.Fatal(err)
		}
		end(t, ports[0], ports[1], pavise.FlowDone, pavise.FlowOutbound) // it was over for this end before
		end(t, ports[1], ports[0], pavise.FlowReset, pavise.FlowInbound, pavise.EndpointRemote)
	}))
	t.Run("reset where nobody reads", w.in(func(t *testing.T) { // by this end, which answers to data, or by the other one: it is not known
		client, server, ports := pair()
		_ = unix.Shutdown(client, unix.SHUT_RDWR)
		if n, err := unix.Read(server, make([]byte, 1)); n != 0 || err != nil {
			t.Fatal(n, err)
		}
		if _, err := unix.Write(server, []byte("late")); err != nil {
			t.Fatal(err)
		}
		end(t, ports[0], ports[1], pavise.FlowReset, pavise.FlowOutbound)
		end(t, ports[1], ports[0], pavise.FlowReset, pavise.FlowInbound, pavise.EndpointRemote)
	}))
	t.Run("half closed", w.in(func(t *testing.T) {
		client, server, ports := pair()
		_ = unix.Shutdown(client, unix.SHUT_WR)
		if n, err := unix.Read(server, make([]byte, 1)); n != 0 || err != nil {
			t.Fatal(n, err)
		}
		if _, err := unix.Write(server, make([]byte, 1000)); err != nil {
			t.Fatal(err)
		}
		_ = unix.Shutdown(server, unix.SHUT_WR)
		if n, err := io.Copy(io.Discard, os.NewFile(uintptr(client), "")); n != 1000 || err != nil {
			t.Fatal(n, err)
		}
		unix.Close(client)
		unix.Close(server)
		end(t, ports[0], ports[1], pavise.FlowDone, pavise.FlowOutbound)
		end(t, ports[1], ports[0], pavise.FlowDone, pavise.FlowInbound)
		f := w.wait(1, "half closed", func(f *pavise.Flow) bool { return f.Local.Port == ports[1] && f.Remote.Port == ports[0] })[0]
		if f.Sent.Bytes != 1000 || f.Received.Bytes != 0 {
			t.Errorf("the server sent %d and received %d bytes, want 1000 and 0", f.Sent.Bytes, f.Received.Bytes)
		}
	}))
	t.Run("again", w.in(func(t *testing.T) { // one socket, two connections
		fd := socket()
		var ids []uint64
		for range 2 {
			l, err := net.Listen("tcp4", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			if err := unix.Connect(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}, Port: int(port(l.Addr()))}); err != nil {
				t.Fatal(err)
			}
			if _, err := unix.Write(fd, []byte("abc")); err != nil {
				t.Fatal(err)
			}
			unspec := unix.RawSockaddr{Family: unix.AF_UNSPEC}
			if _, _, e := unix.Syscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&unspec)), unsafe.Sizeof(unspec)); e != 0 {
				t.Fatal(e)
			}
			f := w.wait(1, "again", func(f *pavise.Flow) bool {
				return f.NetNS == ns && f.Direction == pavise.FlowOutbound && f.Remote.Port == port(l.Addr())
			})[0]
			if f.Sent.Bytes != 3 || f.End != pavise.FlowReset || f.ResetBy != pavise.EndpointLocal {
				t.Errorf("sent %d bytes, end %q by %q", f.Sent.Bytes, f.End, f.ResetBy)
			}
			ids = append(ids, f.ID)
			l.Close()
		}
		if ids[0] == ids[1] {
			t.Error("both connections have one id")
		}
	}))
}

// TestFlowChild is what the tests below have another process do.
func TestFlowChild(t *testing.T) {
	switch os.Getenv("PAVISE_FLOW_CHILD") {
	case "":
		t.Skip("skip: only as a child of another test")
	case "serve": // accept on descriptor 3, answer
		c, _, err := unix.Accept(3)
		if err != nil {
			t.Fatal(err)
		}
		var b [5]byte
		if _, err := unix.Read(c, b[:]); err != nil {
			t.Fatal(err)
		}
		if _, err := unix.Write(c, b[:]); err != nil {
			t.Fatal(err)
		}
		// The other end closes first.
		_, _ = unix.Read(c, b[:])
		unix.Close(c)
	case "talk": // read on descriptor 3, answer
		var b [5]byte
		if _, err := unix.Read(3, b[:]); err != nil {
			t.Fatal(err)
		}
		if _, err := unix.Write(3, b[:]); err != nil {
			t.Fatal(err)
		}
		_, _ = unix.Read(3, b[:]) // until the parent has looked
	case "many": // accept on descriptor 3 three times so many, answer on each, and close when the other end has
		var fds [many]int
		var b [1000]byte
		for range 3 {
			for i := range fds {
				fd, _, err := unix.Accept4(3, unix.SOCK_CLOEXEC)
				if err != nil {
					t.Fatal(err)
				}
				fds[i] = fd
			}
			for i, fd := range fds {
				if n, err := unix.Read(fd, b[:1+i%1000]); n != 1+i%1000 || err != nil {
					t.Fatal(n, err)
				}
				if _, err := unix.Write(fd, b[:1+i%77]); err != nil {
					t.Fatal(err)
				}
			}
			for _, fd := range fds {
				if n, err := unix.Read(fd, b[:]); n != 0 || err != nil {
					t.Fatal(n, err)
				}
				unix.Close(fd)
			}
		}
	case "answer": // on a connection that comes over the Unix socket at 3
		var b, oob [64]byte
		_, n, _, _, err := unix.Recvmsg(3, b[:], oob[:], 0)
		if err != nil {
			t.Fatal(err)
		}
		m, err := unix.ParseSocketControlMessage(oob[:n])
		if err != nil {
			t.Fatal(err)
		}
		fds, err := unix.ParseUnixRights(&m[0])
		if err != nil {
			t.Fatal(err)
		}
		if _, err := unix.Write(fds[0], []byte("hello")); err != nil {
			t.Fatal(err)
		}
		_, _ = unix.Read(3, b[:]) // until the parent has looked
	}
}

// child starts this program again to do one thing, with a file as its descriptor 3.
func child(t testing.TB, what string, f *os.File) *exec.Cmd {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	t.Cleanup(cancel)
	c := exec.CommandContext(ctx, "/proc/self/exe", "-test.run=^TestFlowChild$", "-test.count=1")
	c.Env = append(os.Environ(), "PAVISE_FLOW_CHILD="+what)
	c.ExtraFiles, c.Stderr = []*os.File{f}, os.Stderr
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Wait(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// TestKernelFlowOwner: whoever acts on a connection owns it.
func TestKernelFlowOwner(t *testing.T) {
	w := follow(t, bpf.FlowOptions{Wake: true})
	if slices.ContainsFunc(w.f.Lacking(), func(s string) bool { return strings.Contains(s, "handed over") }) {
		t.Fatalf("it cannot be told here: %q", w.f.Lacking())
	}
	ownNetNS(t)
	me := w.owner(os.Getpid())
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	listener, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	_ = unix.SetNonblock(int(listener.Fd()), false)

	t.Run("accepted in a child", w.in(func(t *testing.T) {
		server := child(t, "serve", listener)
		c, err := net.Dial("tcp4", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write([]byte("12345")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, make([]byte, 5)); err != nil {
			t.Fatal(err)
		}
		it := w.owner(server.Process.Pid)
		local := port(c.LocalAddr())
		c.Close()
		in := w.wait(1, "inbound", func(f *pavise.Flow) bool { return f.Direction == pavise.FlowInbound && f.Remote.Port == local })[0]
		out := w.wait(1, "outbound", func(f *pavise.Flow) bool { return f.Direction == pavise.FlowOutbound && f.Local.Port == local })[0]
		if in.Local.ExecID != it || out.Local.ExecID != me || it == me {
			t.Errorf("owners are %x of the accepted and %x of the other end, want %x and %x", in.Local.ExecID, out.Local.ExecID, it, me)
		}
	}))
	t.Run("accepted and left alone", w.in(func(t *testing.T) { // the listener's owner
		c, err := net.Dial("tcp4", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		s, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
		s.Close()
		f := w.wait(1, "inbound", func(f *pavise.Flow) bool {
			return f.Direction == pavise.FlowInbound && f.Remote.Port == port(c.LocalAddr())
		})[0]
		if f.Local.ExecID != me {
			t.Errorf("its owner is %x, want %x", f.Local.ExecID, me)
		}
	}))
	t.Run("handed over", w.in(func(t *testing.T) {
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		mine, its := os.NewFile(uintptr(fds[0]), "mine"), os.NewFile(uintptr(fds[1]), "its")
		it := child(t, "answer", its)
		its.Close()
		c, err := net.Dial("tcp4", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		s, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Write([]byte("a")); err != nil {
			t.Fatal(err)
		}
		is := func(want uint64) {
			t.Helper()
			got := "in no sweep"
			// What was sent may be read before the program that sees who sent it has run.
			for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
				for _, f := range w.sweep() {
					if f.Direction != pavise.FlowInbound || f.Remote.Port != port(c.LocalAddr()) {
						continue
					}
					if f.Local.ExecID == want {
						return
					}
					got = fmt.Sprintf("%x", f.Local.ExecID)
				}
			}
			t.Errorf("its owner is %s, want %x", got, want)
		}
		is(me)
		raw, err := s.(*net.TCPConn).File()
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.Sendmsg(fds[0], []byte("x"), unix.UnixRights(int(raw.Fd())), nil, 0); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, make([]byte, 6)); err != nil {
			t.Fatal(err)
		}
		is(w.owner(it.Process.Pid))
		raw.Close()
		s.Close()
		c.Close()
		mine.Close()
	}))
}

// TestKernelFlowSweep: what goes on is told at each sweep, with all that was counted.
// TestKernelFlowSweepEnds: a sweep survives that sockets end meanwhile. On Linux 7.0 and later the kernel's iterator over socket storage does not, within seconds.
func TestKernelFlowSweepEnds(t *testing.T) {
	w := follow(t, bpf.FlowOptions{})
	ownNetNS(t)
	o := newOne(t, "127.0.0.1:0")
	over := make(chan struct{})
	var sweeps atomic.Int64
	swept := make(chan error)
	go func() {
		for {
			select {
			case <-over:
				swept <- nil
				return
			default:
			}
			if err := w.f.Sweep(func([]byte) error { return nil }); err != nil {
				swept <- err
				return
			}
			sweeps.Add(1)
		}
	}()
	made := 0
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); made++ {
		o.request()
	}
	close(over)
	if err := <-swept; err != nil || sweeps.Load() < 10 {
		t.Errorf("%d sweeps: %v", sweeps.Load(), err)
	}
	t.Logf("%d connections came and went in %d sweeps", made, sweeps.Load())
}

func TestKernelFlowSweep(t *testing.T) {
	w := follow(t, bpf.FlowOptions{Wake: true, Opens: true})
	ownNetNS(t)
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	const n = 600 // more than the iterator's buffer holds
	var clients, servers [n]net.Conn
	for i := range n {
		if clients[i], err = net.Dial("tcp4", l.Addr().String()); err != nil {
			t.Fatal(err)
		}
		if servers[i], err = l.Accept(); err != nil {
			t.Fatal(err)
		}
	}
	ours := func(f *pavise.Flow) bool { return f.NetNS == netNS(t) }
	if opened := w.wait(2*n, "opened", ours); len(opened) != 2*n || opened[0].State != pavise.FlowOpen {
		t.Errorf("%d were told to open, want %d:%s", len(opened), 2*n, show(opened))
	}
	for round := range 3 {
		for i := range n {
			if _, err := clients[i].Write(make([]byte, i)); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(servers[i], make([]byte, i)); err != nil {
				t.Fatal(err)
			}
		}
		// When other sockets on this machine come and go, one may be told twice, or left out of a sweep.
		seen := map[uint64]pavise.Flow{}
		for try := 0; len(seen) < 2*n && try < 5; try++ {
			for _, f := range w.sweep() {
				if !ours(&f) {
					continue
				}
				if was, ok := seen[f.ID]; f.State != pavise.FlowOpen || int(f.Report) < round+1 || ok && f.Report <= was.Report {
					t.Errorf("state %s, report %d after %d", f.State, f.Report, was.Report)
				}
				seen[f.ID] = f
			}
		}
		var sent, received uint64
		for _, f := range seen {
			sent, received = sent+f.Sent.Bytes, received+f.Received.Bytes
		}
		if want := uint64((round + 1) * n * (n - 1) / 2); len(seen) != 2*n || sent != want || received != want {
			t.Errorf("round %d: %d flows, %d bytes sent, %d received; want %d, %d, %d", round, len(seen), sent, received, 2*n, want, want)
		}
	}
	for i := range n {
		clients[i].Close()
		servers[i].Close()
	}
	if closed := w.wait(2*n, "closed", func(f *pavise.Flow) bool { return ours(f) && f.State == pavise.FlowClosed }); len(closed) != 2*n || closed[0].Report < 4 {
		t.Errorf("%d were told to end, want %d; report %d, want 4 or more", len(closed), 2*n, closed[0].Report)
	}
	if left := w.sweep(); slices.ContainsFunc(left, func(f pavise.Flow) bool { return ours(&f) }) {
		t.Errorf("after all ended: %s", show(left))
	}
}
