package bpf_test

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"testing"
	"time"

	pavise "github.com/pavise-project/pavise"
	"github.com/pavise-project/pavise/bpf"
	"golang.org/x/sys/unix"
)

// one is a thread that is client and server at once: on the loopback interface everything is there when a call returns, so nothing waits.
type one struct {
	t        testing.TB
	listener int
	at       unix.Sockaddr
	buf      []byte
}

func newOne(t testing.TB, address string) *one {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.Bind(fd, sa(netip.MustParseAddrPort(address))); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(fd, 4096); err != nil {
		t.Fatal(err)
	}
	at, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	return &one{t, fd, at, make([]byte, 128<<10)}
}

func (o *one) port() uint16 { return uint16(o.at.(*unix.SockaddrInet4).Port) }

func (o *one) connect() (client, server int) {
	client, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		o.t.Fatal(err)
	}
	if err := unix.Connect(client, o.at); err != nil {
		o.t.Fatal(err)
	}
	if server, _, err = unix.Accept4(o.listener, unix.SOCK_CLOEXEC); err != nil {
		o.t.Fatal(err)
	}
	return client, server
}

func (o *one) send(from, to, n int) {
	if _, err := unix.Write(from, o.buf[:n]); err != nil {
		o.t.Fatal(err)
	}
	for n > 0 {
		got, err := unix.Read(to, o.buf[:n])
		if err != nil || got == 0 {
			o.t.Fatal(got, err)
		}
		n -= got
	}
}

// request is a whole connection: a question of 100 bytes, an answer of 1,000.
func (o *one) request() {
	c, s := o.connect()
	o.send(c, s, 100)
	o.send(s, c, 1000)
	unix.Close(c)
	unix.Close(s)
}

// destroyed returns what counts the sockets of TCP that end in a network namespace from now on, as a program sees them that does nothing else. There are kernels that run no
// program at all, and count none as skipped, while some process is interrupted: the sandbox's own, where the machine is one. What nobody sees is not lost here.
func (w *watch) destroyed(ns uint32) func() int {
	w.t.Helper()
	if err := errors.Join(w.k.SetVariable("test_netns", uint64(ns)), w.k.SetVariable("test_destroyed", 0), w.k.Attach("test_destroy")); err != nil {
		w.t.Fatal(err)
	}
	return func() int {
		n, err := w.k.Variable("test_destroyed")
		if err != nil {
			w.t.Fatal(err)
		}
		return int(n)
	}
}

// many connections are open at once.
const many = 10000

// TestKernelFlowMany: ten thousand connections at once, three times, and nothing is lost.
func TestKernelFlowMany(t *testing.T) {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	limit.Cur, limit.Max = max(limit.Max, many+1000), max(limit.Max, many+1000)
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatalf("this needs %d files: %v", many, err)
	}
	w := follow(t, bpf.FlowOptions{})
	ownNetNS(t)
	o := newOne(t, "0.0.0.0:0")
	dup, err := unix.Dup(o.listener)
	if err != nil {
		t.Fatal(err)
	}
	listener := os.NewFile(uintptr(dup), "listener")
	server := child(t, "many", listener)
	listener.Close()
	me := w.owner(os.Getpid())
	ns := netNS(t)
	ours := func(f *pavise.Flow) bool { return f.NetNS == ns && f.State == pavise.FlowClosed }
	destroyed, before := w.destroyed(ns), 0
	for round := range 3 {
		var clients [many]int
		var bytes uint64
		addr := netip.AddrFrom4([4]byte{127, 0, 0, byte(round + 1)})
		start := time.Now()
		for i := range clients {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			if err := unix.Connect(fd, sa(netip.AddrPortFrom(addr, o.port()))); err != nil {
				t.Fatal(err)
			}
			clients[i] = fd
		}
		for i, fd := range clients {
			if _, err := unix.Write(fd, o.buf[:1+i%1000]); err != nil {
				t.Fatal(err)
			}
			if n, err := unix.Read(fd, o.buf[:1+i%77]); n != 1+i%77 || err != nil {
				t.Fatal(n, err)
			}
			bytes += uint64(2 + i%1000 + i%77)
		}
		// Not just closed: of many sockets that nobody has any more the kernel drops some, and their FIN can be lost before.
		for _, fd := range clients {
			_ = unix.Shutdown(fd, unix.SHUT_WR)
		}
		for _, fd := range clients {
			if n, err := unix.Read(fd, o.buf[:1]); n != 0 || err != nil {
				t.Fatal(n, err)
			}
			unix.Close(fd)
		}
		took := time.Since(start)
		seen := 0
		for deadline := time.Now().Add(20 * time.Second); seen < 2*many && time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
			seen = destroyed() - before
		}
		before += seen
		if seen < 2*many*97/100 {
			t.Fatalf("only %d ends of %d were to be seen: that is not what is tested here", seen, 2*many)
		}
		if seen != 2*many {
			t.Logf("the kernel ran no program for the ends of %d sockets", 2*many-seen)
		}
		w.wait(before, "ended", ours)
		it := w.owner(server.Process.Pid)
		w.mu.Lock()
		var sent, received uint64
		found := 0
		ids := map[uint64]bool{}
		var late []time.Duration
		for i := range w.all {
			f := &w.all[i]
			if !ours(f) || f.Remote.Address != addr && f.Local.Address != addr {
				continue
			}
			if owner := f.Local.ExecID; f.Direction == pavise.FlowOutbound && owner != me || f.Direction == pavise.FlowInbound && owner != it {
				t.Fatalf("the owner is none of %x and %x: %s", me, it, show(w.all[i:i+1]))
			}
			found++
			ids[f.ID] = true
			sent, received = sent+f.Sent.Bytes, received+f.Received.Bytes
			late = append(late, w.late[i])
		}
		w.mu.Unlock()
		slices.Sort(late)
		t.Logf("%d connections in %v; %d flows found of %d; from the kernel to here p50 %v, p99 %v, at most %v", many, took.Round(time.Millisecond), found, 2*many,
			late[len(late)/2], late[len(late)*99/100], late[len(late)-1])
		if found < seen || found > 2*many || len(ids) != found || found == 2*many && (sent != bytes || received != bytes) {
			t.Errorf("%d flows of %d ids found, want %d; %d bytes sent, %d received, want %d", found, len(ids), 2*many, sent, received, bytes)
		}
	}
	if s := w.stats(); s.Lost != 0 || s.NoStorage != 0 || s.Made < uint64(before) {
		t.Errorf("counters: %+v", s)
	}
}

// TestKernelFlowInterrupted: packets that one CPU hands to another interrupt there the system calls of other connections, and the programs in
// them.
func TestKernelFlowInterrupted(t *testing.T) {
	if runtime.NumCPU() < 2 {
		t.Fatal("it takes two CPUs")
	}
	w := follow(t, bpf.FlowOptions{Ring: 64 << 20, NoData: true})
	ownNetNS(t)
	ns := netNS(t)
	// A view of the namespace's own devices, to have all its packets processed on the first CPU.
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		t.Fatal(err)
	}
	sys := t.TempDir()
	if err := unix.Mount("sysfs", sys, "sysfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	err := os.WriteFile(sys+"/class/net/lo/queues/rx-0/rps_cpus", []byte("1"), 0o644)
	if e := unix.Unmount(sys, 0); err != nil || e != nil {
		t.Fatal(err, e)
	}
	pin := func(cpu int) {
		var set unix.CPUSet
		set.Set(cpu)
		if err := unix.SchedSetaffinity(0, &set); err != nil {
			t.Fatal(err)
		}
	}
	fds := make(chan int, 64) // sockets are made here, in the namespace
	done := make(chan int)
	go func() { // on the first CPU, connections that are refused at once
		runtime.LockOSThread()
		pin(0)
		n := 0
		for fd := range fds {
			if err := unix.Connect(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 9}, Port: 1}); !errors.Is(err, unix.ECONNREFUSED) {
				t.Error(err)
			}
			unix.Close(fd)
			n++
		}
		done <- n
	}()
	pin(1)
	destroyed := w.destroyed(ns)
	o := newOne(t, "127.0.0.1:0")
	const n = 3000
	for range n {
		for range 4 {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			fds <- fd
		}
		o.request()
	}
	close(fds)
	refused := <-done
	want, found, seen, before := 2*n+refused, 0, 0, -1
	for tries := 0; found < want && (found != before || found < seen || tries < 10) && tries < 50; time.Sleep(100 * time.Millisecond) {
		if tries++; found != before {
			tries = 0
		}
		before, found = found, 0
		w.mu.Lock()
		for i := range w.all {
			if f := &w.all[i]; f.NetNS == ns {
				found++
				if f.Found || f.Direction == pavise.FlowUnknown {
					t.Errorf("it is not known how it began: %s", show(w.all[i:i+1]))
				}
			}
		}
		w.mu.Unlock()
		seen = destroyed()
	}
	s := w.stats()
	t.Logf("programs were skipped %d times; %d flows found of %d; %d ends were to be seen", s.Skipped, found, want, seen)
	// One or two in a thousand interruptions are not seen all the same; without the second program it would be each fourth.
	if seen < want*97/100 || found < seen-int(s.Skipped)/200 || found > want || s.Lost != 0 {
		t.Errorf("%d flows found of %d, %d were to be seen; counters: %+v", found, want, seen, s)
	}
}

// TestKernelFlowLost: what the ring has no room for is counted, and so are its bytes.
func TestKernelFlowLost(t *testing.T) {
	k := lifecycle(t)
	f, err := k.OpenFlows(bpf.FlowOptions{Ring: 4096})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w := &watch{t: t, k: k, f: f, flows: make(chan struct{})}
	ownNetNS(t)
	o := newOne(t, "127.0.0.1:0")
	const n = 100
	for range n {
		o.request()
	}
	if err := f.Drain(w.take); err != nil {
		t.Fatal(err)
	}
	s := w.stats()
	var told uint64
	for _, f := range w.all {
		told += f.Sent.Bytes + f.Received.Bytes
	}
	if s.Lost == 0 || s.Made != uint64(len(w.all))+s.Lost || s.Made < 2*n {
		t.Errorf("%d delivered, counters: %+v", len(w.all), s)
	}
	if told+s.LostBytes < 2*1100*n {
		t.Errorf("%d bytes told, %d lost, want %d", told, s.LostBytes, 2*1100*n)
	}
}

// BenchmarkFlowLatency is how long after a connection's end it is known here.
func BenchmarkFlowLatency(b *testing.B) {
	for _, wake := range []bool{false, true} {
		b.Run(fmt.Sprint("wake=", wake), func(b *testing.B) {
			w := follow(b, bpf.FlowOptions{Wake: wake})
			ownNetNS(b)
			o := newOne(b, "127.0.0.1:0")
			w.late = nil
			for b.Loop() {
				o.request()
				time.Sleep(100 * time.Microsecond)
			}
			w.stop()
			slices.Sort(w.late)
			b.ReportMetric(float64(w.late[len(w.late)/2].Nanoseconds())/1e3, "p50-us")
			b.ReportMetric(float64(w.late[len(w.late)*99/100].Nanoseconds())/1e3, "p99-us")
		})
	}
}

// threadTime is the processor time of this thread, in which the loopback interface's softirqs are.
func threadTime() time.Duration {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts)
	return time.Duration(ts.Nano())
}

// BenchmarkFlowCost compares the same work with and without the accounting, turn by turn.
func BenchmarkFlowCost(b *testing.B) {
	k := lifecycle(b)
	ownNetNS(b)
	for _, c := range []struct {
		name   string
		budget float64
		begin  func(o *one) func()
	}{
		{"connect-request-close", 1.05, func(o *one) func() {
			return func() {
				for range 200 {
					o.request()
				}
			}
		}},
		{"request", 1.05, func(o *one) func() {
			c, s := o.connect()
			return func() {
				for range 2000 {
					o.send(c, s, 100)
					o.send(s, c, 1000)
				}
			}
		}},
		{"bulk", 1.02, func(o *one) func() {
			c, s := o.connect()
			return func() {
				for range 300 {
					o.send(c, s, 64<<10)
				}
			}
		}},
		{"datagrams", 1.10, func(o *one) func() {
			c, _ := datagrams(b, unix.SOCK_DGRAM, 0, "127.0.0.1:0")
			s, at := datagrams(b, unix.SOCK_DGRAM, 0, "127.0.0.1:0")
			if err := unix.Connect(c, sa(at)); err != nil {
				b.Fatal(err)
			}
			return func() {
				for range 2000 {
					o.send(c, s, 100)
				}
			}
		}},
		{"unix", 1.10, func(o *one) func() {
			p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				b.Fatal(err)
			}
			return func() {
				for range 2000 {
					o.send(p[0], p[1], 1000)
				}
			}
		}},
	} {
		b.Run(c.name, func(b *testing.B) {
			ownNetNS(b)
			var with, without []time.Duration
			o := newOne(b, "127.0.0.1:0")
			work := c.begin(o)
			measure := func() (best time.Duration) {
				work() // warm
				for range 12 {
					start := threadTime()
					work()
					if d := threadTime() - start; best == 0 || d < best {
						best = d
					}
				}
				return best
			}
			for b.Loop() {
				without = append(without, measure())
				b.StopTimer()
				w := watchOf(b, k, bpf.FlowOptions{})
				b.StartTimer()
				with = append(with, measure())
				b.StopTimer()
				w.stop()
				if err := w.f.Close(); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
			var ratios []float64
			for i := range with {
				ratios = append(ratios, float64(with[i])/float64(without[i]))
			}
			slices.Sort(ratios)
			b.ReportMetric(float64(slices.Min(with))/float64(slices.Min(without)), "ratio")
			b.ReportMetric(ratios[len(ratios)/2], "median-ratio")
			b.ReportMetric(c.budget, "budget-ratio")
			b.ReportMetric(float64(slices.Min(without).Microseconds()), "us-without")
		})
	}
}
