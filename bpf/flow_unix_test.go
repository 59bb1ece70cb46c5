package bpf_test

import (
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	pavise "github.com/pavise-project/pavise"
	"github.com/pavise-project/pavise/bpf"
	"golang.org/x/sys/unix"
)

func needUnix(t testing.TB, w *watch) {
	t.Helper()
	if slices.ContainsFunc(w.f.Lacking(), func(s string) bool { return strings.Contains(s, "Unix sockets") }) {
		t.Fatalf("it cannot be told here: %q", w.f.Lacking())
	}
}

func TestKernelFlowUnix(t *testing.T) {
	w := follow(t, bpf.FlowOptions{Wake: true})
	needUnix(t, w)
	me := w.owner(os.Getpid())
	for _, c := range []struct {
		network string
		typ     int
		path    string
		packets uint64
	}{
		{"unix", unix.SOCK_STREAM, filepath.Join(t.TempDir(), "stream"), 0},
		{"unix", unix.SOCK_STREAM, "@pavise-flow-test-" + fmt.Sprint(os.Getpid()), 0},
		{"unixpacket", unix.SOCK_SEQPACKET, filepath.Join(t.TempDir(), "packet"), 3},
	} {
		t.Run(c.network+" "+c.path[:1], func(t *testing.T) {
			ownNetNS(t)
			w.t = t
			l, err := net.Listen(c.network, c.path)
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			conn, err := net.Dial(c.network, c.path)
			if err != nil {
				t.Fatal(err)
			}
			s, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			for _, n := range []int{1, 100, 10000} {
				if _, err := conn.Write(make([]byte, n)); err != nil {
					t.Fatal(err)
				}
				if _, err := io.ReadFull(s, make([]byte, n)); err != nil {
					t.Fatal(err)
				}
				if _, err := s.Write(make([]byte, 2*n)); err != nil {
					t.Fatal(err)
				}
				if _, err := io.ReadFull(conn, make([]byte, 2*n)); err != nil {
					t.Fatal(err)
				}
			}
			ours := func(f *pavise.Flow) bool { return f.NetNS == netNS(t) }
			if all := slices.DeleteFunc(w.sweep(), func(f pavise.Flow) bool { return !ours(&f) }); len(all) != 2 || all[0].State != pavise.FlowOpen {
				t.Errorf("a sweep tells of %d flows, want 2:%s", len(all), show(all))
			}
			conn.Close()
			s.Close()
			all := w.ended(2, "both", ours)
			if len(all) != 2 {
				t.Fatalf("%d ended: %s", len(all), show(all))
			}
			up, down := pavise.Traffic{Bytes: 10101, Packets: c.packets}, pavise.Traffic{Bytes: 20202, Packets: c.packets}
			for _, f := range all {
				want := pavise.Flow{
					ID: f.ID, Report: f.Report, Time: f.Time, Start: f.Start, State: pavise.FlowClosed, End: pavise.FlowDone, Direction: pavise.FlowOutbound,
					Family: unix.AF_UNIX, Type: uint8(c.typ), NetNS: netNS(t),
					Local: pavise.FlowSide{ExecID: me}, Remote: pavise.FlowSide{ExecID: me, Path: c.path}, Sent: up, Received: down,
				}
				if f.Direction == pavise.FlowInbound {
					want.Direction, want.Sent, want.Received = pavise.FlowInbound, down, up
					want.Local.Path, want.Remote.Path = c.path, ""
				}
				if fmt.Sprintf("%+v", f) != fmt.Sprintf("%+v", want) {
					t.Errorf("got  %+v\nwant %+v", f, want)
				}
			}
			if all[0].Direction == all[1].Direction {
				t.Error("both began")
			}
		})
	}
	t.Run("datagrams", func(t *testing.T) {
		ownNetNS(t)
		w.t = t
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		for n := range 5 {
			if _, err := unix.Write(fds[0], make([]byte, n)); err != nil {
				t.Fatal(err)
			}
			for _, flags := range []int{unix.MSG_PEEK, 0} {
				if got, _, err := unix.Recvfrom(fds[1], make([]byte, 10), flags); err != nil || got != n {
					t.Fatal(got, err)
				}
			}
		}
		unix.Close(fds[0])
		unix.Close(fds[1])
		all := w.ended(2, "both", func(f *pavise.Flow) bool { return f.NetNS == netNS(t) })
		// An empty datagram is not seen: its length is that of nothing.
		want := pavise.Traffic{Bytes: 10, Packets: 4}
		if len(all) != 2 || all[0].Sent != want && all[1].Sent != want || all[0].Received != want && all[1].Received != want {
			t.Errorf("ended: %s", show(all))
		}
	})
	t.Run("another process", func(t *testing.T) {
		ownNetNS(t)
		w.t = t
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		mine, its := os.NewFile(uintptr(fds[0]), "mine"), os.NewFile(uintptr(fds[1]), "its")
		c := child(t, "talk", its)
		its.Close()
		if _, err := mine.Write([]byte("hello")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(mine, make([]byte, 5)); err != nil {
			t.Fatal(err)
		}
		it := w.owner(c.Process.Pid)
		for _, f := range w.sweep() {
			if f.NetNS == netNS(t) && f.Family == unix.AF_UNIX && (f.Local.ExecID == 0 || f.Remote.ExecID == 0 || f.Local.ExecID+f.Remote.ExecID != me+it) {
				t.Errorf("between %x and %x: %s", me, it, show([]pavise.Flow{f}))
			}
		}
		mine.Close()
		if all := w.ended(2, "both", func(f *pavise.Flow) bool { return f.NetNS == netNS(t) }); all[0].Local.ExecID+all[1].Local.ExecID != me+it {
			t.Errorf("between %x and %x: %s", me, it, show(all))
		}
	})
}

// TestKernelFlowUnixFull: what finds no room is added up.
func TestKernelFlowUnixFull(t *testing.T) {
	w := follow(t, bpf.FlowOptions{Wake: true, Unix: 4})
	needUnix(t, w)
	ownNetNS(t)
	const pairs, n = 20, 1000
	var fds [][2]int
	for range pairs {
		p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		fds = append(fds, p)
		if _, err := unix.Write(p[0], make([]byte, n)); err != nil {
			t.Fatal(err)
		}
		if got, err := unix.Read(p[1], make([]byte, n)); got != n || err != nil {
			t.Fatal(got, err)
		}
	}
	var sent, received, others uint64
	all := w.sweep()
	for _, f := range all {
		if f.Others && f.Family == unix.AF_UNIX {
			others++
		} else if f.NetNS != netNS(t) {
			continue
		}
		sent, received = sent+f.Sent.Bytes, received+f.Received.Bytes
	}
	// Others on this machine may have come in between.
	if others != 1 || sent < pairs*n || received < pairs*n {
		t.Errorf("%d flows of others; %d bytes sent, %d received, want %d: %s", others, sent, received, pairs*n, show(all))
	}
	if s := w.stats(); s.NoUnix < pairs*2-4 {
		t.Errorf("counters: %+v", s)
	}
	for _, p := range fds {
		unix.Close(p[0])
		unix.Close(p[1])
	}
}
