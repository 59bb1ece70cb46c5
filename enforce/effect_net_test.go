package enforce

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/pavise-project/pavise"
	"golang.org/x/sys/unix"
)

// serve listens until the test is over, and answers what it gets.
func serve(t *testing.T, network, addr string) string {
	t.Helper()
	l, err := net.Listen(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				var b [64]byte
				for {
					n, err := c.Read(b[:])
					if n == 0 || err != nil {
						return
					}
					_, _ = c.Write(b[:n])
				}
			}()
		}
	}()
	return l.Addr().String()
}

// TestKernelConnect: net.connect by address and port.
func TestKernelConnect(t *testing.T) {
	x := theEffect(t)
	rung := x.needs(t, pavise.OpConnect)
	ap := netip.MustParseAddrPort(serve(t, "tcp4", "127.0.0.1:0"))
	port := ap.Port()
	other := serve(t, "tcp4", "127.0.0.1:0")
	v6 := fmt.Sprintf("[::1]:%d", port)
	l, err := net.Listen("tcp6", v6)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	to := ap.String()
	ways := []struct {
		name, deed string
		args       []string
	}{
		{"IPv4", "connect", []string{to}},
		{"IPv6", "connect", []string{v6}},
		{"IPv4-mapped", "connect", []string{fmt.Sprintf("[::ffff:127.0.0.1]:%d", port)}},
		{"0.0.0.0", "connect", []string{fmt.Sprintf("0.0.0.0:%d", port)}},
		{"::", "connect", []string{fmt.Sprintf("[::]:%d", port)}},
		{"another loopback address", "connect-udp", []string{fmt.Sprintf("127.9.9.9:%d", port)}},
		{"UDP", "connect-udp", []string{to}},
		{"UDP, IPv6", "connect-udp", []string{v6}},
		{"after AF_UNSPEC", "connect-again", []string{other, to}},
		{"MSG_FASTOPEN", "fastopen", []string{to}},
		{"MPTCP", "connect-mptcp", []string{to}},
		{"another network namespace", "connect-elsewhere", []string{to}},
		{"io_uring's worker", "connect-uring", []string{to}},
	}
	for _, w := range ways {
		done(t, x.subject, "", w.deed, w.args...)
	}
	done(t, x.subject, "", "keep", to)
	done(t, x.subject, "reached", "connect-race", other, to)
	x.apply(t, fmt.Sprintf(`on: [net.connect], action: deny, when: 'net.remote.port == %d && net.remote.address.within("127.0.0.0/8", "::1/128")'`, port))
	for _, w := range ways {
		t.Run(w.name, func(t *testing.T) {
			x.stopped(t, pavise.OpConnect, w.deed, w.args...)
			done(t, x.other, "", w.deed, w.args...)
		})
	}
	t.Run("port changed by another thread", func(t *testing.T) {
		x.stopped(t, pavise.OpConnect, "connect-race", other, to)
		done(t, x.other, "reached", "connect-race", other, to)
	})
	t.Run("established", func(t *testing.T) { done(t, x.subject, "still here", "echo", to, "still here") })
	t.Run("another port", func(t *testing.T) { done(t, x.subject, "", "connect", other) })
	t.Run("event", func(t *testing.T) {
		x.forget()
		x.subject.stop()
		pid := x.subject.pid(t)
		x.stopped(t, pavise.OpConnect, "connect", to)
		e := x.event(t, "connect", func(e *pavise.Event) bool { return e.PID == pid })
		if e.Op != pavise.OpConnect || e.Action != pavise.ActionDeny || e.Monitor || e.Rung != rung || x.rule(e) != "r0" ||
			e.Net.Family != unix.AF_INET || e.Net.Type != unix.SOCK_STREAM || e.Net.Protocol != unix.IPPROTO_TCP ||
			netip.AddrPortFrom(netip.AddrFrom16(e.Net.Remote).Unmap(), e.Net.RemotePort) != ap {
			t.Errorf("event %s %s rung %s rule %s %+v", e.Op, e.Action, e.Rung, x.rule(e), e.Net)
		}
	})
	// The kernel makes io_uring's workers without a fork that is traced: they are who their process is all the same.
	t.Run("identity of io_uring's worker", func(t *testing.T) {
		x.applyText(t, fmt.Sprintf(`{apiVersion: pavise.dev/v1alpha1, kind: Policy, metadata: {name: p}, spec: {mode: enforce, fallback: kill,
  subject: process.parent.exe.path == %q, rules: [{name: r0, on: [net.connect], action: deny, when: net.remote.port == %d}]}}`, x.self, port))
		x.subject.stop()
		x.forget()
		pid := x.subject.pid(t)
		x.stopped(t, pavise.OpConnect, "connect", to)
		first := x.event(t, "connect", func(e *pavise.Event) bool { return e.PID == pid }).ExecID
		x.stopped(t, pavise.OpConnect, "connect-uring", to)
		time.Sleep(30 * time.Millisecond)
		x.mu.Lock()
		defer x.mu.Unlock()
		for _, e := range x.events { // or it is folded into the first
			if e.PID == pid && e.ExecID != first {
				t.Errorf("exec id %x, its process is %x", e.ExecID, first)
			}
		}
	})
	t.Run("kill", func(t *testing.T) {
		x.apply(t, fmt.Sprintf("on: [net.connect], action: kill, when: 'net.remote.port == %d'", port))
		if o := x.subject.do(t, "connect", to); !o.Killed {
			t.Errorf("connect: %s", o)
		}
		done(t, x.other, "", "connect", to)
	})
	t.Run("monitor", func(t *testing.T) {
		x.forget()
		x.applyText(t, x.text("mode: monitor", fmt.Sprintf("on: [net.connect], action: kill, when: 'net.remote.port == %d'", port)))
		done(t, x.subject, "", "connect", to)
		if e := x.event(t, "connect", func(e *pavise.Event) bool { return e.Op == pavise.OpConnect }); !e.Monitor || e.Action != pavise.ActionKill {
			t.Errorf("event %s monitor %v", e.Action, e.Monitor)
		}
	})
	t.Run("allow-list", func(t *testing.T) {
		x.applyText(t, x.text("mode: enforce\n  fallback: kill\n  default: {net.connect: deny}",
			fmt.Sprintf("on: [net.connect], action: allow, when: 'net.remote.port == %s'", other[len("127.0.0.1:"):])))
		x.stopped(t, pavise.OpConnect, "connect", to)
		done(t, x.subject, "", "connect", other)
		done(t, x.other, "", "connect", to)
	})
}

// TestKernelUnix: Unix sockets by the path of their file, or by their abstract name.
func TestKernelUnix(t *testing.T) {
	x := theEffect(t)
	x.needs(t, pavise.OpConnect)
	rung := x.e.status[pavise.OpConnect].Rung
	if rung == pavise.RungCgroup {
		rung = pavise.RungKillOnReturn // cgroup programs see no Unix sockets
	}
	dir := x.place(t)
	path := filepath.Join(dir, "s")
	serve(t, "unix", path)
	serve(t, "unix", filepath.Join(dir, "o"))
	abstract := "@pavise" + dir
	serve(t, "unix", abstract)
	must(t, unix.Symlink(path, filepath.Join(dir, "l")))
	names := []string{path, filepath.Join(dir, "l"), abstract}
	for _, n := range names {
		done(t, x.subject, "", "connect", n)
	}
	x.apply(t, fmt.Sprintf("on: [net.connect], action: deny, when: 'net.remote.path in [%q, %q]'", path, abstract))
	for i, n := range names {
		x.forget()
		x.subject.stop()
		pid := x.subject.pid(t)
		x.stoppedBy(t, rung, "connect", n)
		done(t, x.other, "", "connect", n)
		e := x.event(t, n, func(e *pavise.Event) bool { return e.PID == pid })
		if want := []string{path, path, abstract}[i]; e.Net.RemotePath != want || e.Net.Family != unix.AF_UNIX || e.Rung != rung {
			t.Errorf("event rung %s %+v, want %q", e.Rung, e.Net, want)
		}
	}
	done(t, x.subject, "", "connect", filepath.Join(dir, "o"))
	t.Run("bind", func(t *testing.T) {
		name := filepath.Join(dir, "made")
		x.apply(t, fmt.Sprintf("on: [net.bind], action: deny, when: 'net.local.path == %q'", name))
		x.stoppedBy(t, rung, "bind-tcp", name)
		done(t, x.subject, "", "bind-tcp", filepath.Join(dir, "other"))
		_ = os.Remove(name)
		x.stoppedBy(t, rung, "bind-in", dir, "made")
	})
	t.Run("send", func(t *testing.T) {
		if !atHook(rung) {
			if err := x.compileError(x.text("mode: enforce", fmt.Sprintf("on: [net.send], action: deny, when: 'net.remote.path == %q'", path))); err == nil {
				t.Error("a rule that cannot be judged was accepted")
			}
			return
		}
		dgram := filepath.Join(dir, "d")
		c, err := net.ListenPacket("unixgram", dgram)
		must(t, err)
		defer c.Close()
		done(t, x.subject, "", "send", dgram, "x")
		x.apply(t, fmt.Sprintf("on: [net.send], action: deny, when: 'net.remote.path == %q'", dgram))
		x.stopped(t, pavise.OpSend, "send", dgram, "x")
		done(t, x.other, "", "send", dgram, "x")
	})
}

// TestKernelBind: bind, listen and accept by the local port.
func TestKernelBind(t *testing.T) {
	x := theEffect(t)
	port := func() uint16 { // a free one
		l, err := net.Listen("tcp4", "127.0.0.1:0")
		must(t, err)
		defer l.Close()
		return netip.MustParseAddrPort(l.Addr().String()).Port()
	}
	no, yes := port(), port()
	v4, v6 := fmt.Sprintf("127.0.0.1:%d", no), fmt.Sprintf("[::1]:%d", no)
	for _, c := range []struct {
		op    pavise.Op
		deeds []string
	}{
		{pavise.OpBind, []string{"bind-tcp", "bind-udp", "listen"}},
		{pavise.OpListen, []string{"listen"}},
		{pavise.OpAccept, []string{"accept"}},
	} {
		t.Run(c.op.String(), func(t *testing.T) {
			rung := x.needs(t, c.op)
			x.apply(t)
			for _, d := range c.deeds {
				done(t, x.subject, "", d, v4)
				done(t, x.subject, "", d, v6)
			}
			x.apply(t, fmt.Sprintf("on: [%s], action: deny, when: 'net.local.port == %d'", c.op, no))
			for _, d := range c.deeds {
				if d == "listen" && c.op == pavise.OpBind {
					continue // its bind fails first, and is told apart from listen's
				}
				for _, a := range []string{v4, v6} {
					x.forget()
					x.subject.stop()
					pid := x.subject.pid(t)
					x.stopped(t, c.op, d, a)
					done(t, x.other, "", d, a)
					e := x.event(t, d, func(e *pavise.Event) bool { return e.PID == pid })
					if e.Op != c.op || e.Rung != rung || e.Net.LocalPort != no || x.rule(e) != "r0" {
						t.Errorf("event %s %s rung %s %+v", e.Op, e.Action, e.Rung, e.Net)
					}
				}
				done(t, x.subject, "", d, fmt.Sprintf("127.0.0.1:%d", yes))
			}
		})
	}
	t.Run("any address", func(t *testing.T) {
		x.needs(t, pavise.OpBind)
		no := port() // nothing lingers there
		v4 := fmt.Sprintf("127.0.0.1:%d", no)
		x.apply(t, fmt.Sprintf(`on: [net.bind], action: deny, when: 'net.local.port == %d && net.local.address in ["0.0.0.0", "::"]'`, no))
		x.stopped(t, pavise.OpBind, "bind-tcp", fmt.Sprintf("0.0.0.0:%d", no))
		x.stopped(t, pavise.OpBind, "bind-tcp", fmt.Sprintf("[::]:%d", no))
		done(t, x.subject, "", "bind-tcp", v4)
	})
}

// TestKernelSend: datagrams without connect do not leave.
func TestKernelSend(t *testing.T) {
	x := theEffect(t)
	rung := x.needs(t, pavise.OpSend)
	c, err := net.ListenPacket("udp", "[::]:0")
	must(t, err)
	defer c.Close()
	ap := netip.MustParseAddrPort(c.LocalAddr().String())
	// first reads what arrives until one of these does: what is sent on loopback arrives in
	// its order, so that another's datagram after the forbidden one tells without a wait.
	first := func(of ...string) string {
		var b [64]byte
		must(t, c.SetReadDeadline(time.Now().Add(10*time.Second)))
		for {
			n, _, err := c.ReadFrom(b[:])
			if err != nil {
				return err.Error()
			}
			if slices.Contains(of, string(b[:n])) {
				return string(b[:n])
			}
		}
	}
	for _, w := range []struct{ name, deed, host string }{
		{"IPv4", "send", "127.0.0.1"}, {"IPv6", "send", "[::1]"}, {"IPv4-mapped", "send", "[::ffff:127.0.0.1]"}, {"0.0.0.0", "send", "0.0.0.0"}, {"sendmmsg", "send-many", "127.0.0.1"},
	} {
		t.Run(w.name, func(t *testing.T) {
			to := fmt.Sprintf("%s:%d", w.host, ap.Port())
			control, forbidden, others := w.name+" control", w.name+" forbidden", w.name+" others"
			x.apply(t)
			done(t, x.subject, "", w.deed, to, control)
			if f := first(control); f != control {
				t.Fatal("nothing arrived without a rule:", f)
			}
			x.apply(t, fmt.Sprintf(`on: [net.send], action: deny, when: 'net.remote.port == %d && net.remote.address in ["127.0.0.1", "::1"]'`, ap.Port()))
			x.forget()
			x.subject.stop()
			pid := x.subject.pid(t)
			x.stopped(t, pavise.OpSend, w.deed, to, forbidden)
			done(t, x.other, "", w.deed, to, others)
			if f := first(forbidden, others); f != others {
				t.Errorf("arrived after a forbidden and another's datagram: %s", f)
			}
			e := x.event(t, w.name, func(e *pavise.Event) bool { return e.PID == pid })
			if e.Op != pavise.OpSend || e.Rung != rung || e.Net.RemotePort != ap.Port() || x.rule(e) != "r0" {
				t.Errorf("event %s %s rung %s %+v", e.Op, e.Action, e.Rung, e.Net)
			}
		})
	}
	t.Run("raw", func(t *testing.T) {
		x.apply(t)
		done(t, x.subject, "", "send-raw", "127.0.0.1:0")
		x.apply(t, `on: [net.send], action: deny, when: 'net.remote.address == "127.0.0.1" && net.type == "raw"'`)
		if atHook(rung) {
			x.stopped(t, pavise.OpSend, "send-raw", "127.0.0.1:0")
		} else {
			done(t, x.subject, "", "send-raw", "127.0.0.1:0") // docs/THREATS.md
		}
		done(t, x.other, "", "send-raw", "127.0.0.1:0")
	})
}

// TestKernelSocketOnce: where two programs judge the making of sockets, each is judged by one of them, and the other is attached only while a rule needs it.
func TestKernelSocketOnce(t *testing.T) {
	x := theEffect(t)
	rung := x.needs(t, pavise.OpSocket)
	seen := func() uint64 {
		c, err := x.e.Counters()
		must(t, err)
		return c.Ops[pavise.OpSocket].Seen
	}
	x.apply(t, "on: [net.socket], action: audit")
	for _, w := range []struct {
		family, typ string
		rung        pavise.Rung
	}{{"2", "2", rung}, {"10", "1", rung}, {"1", "1", low(rung)}, {"16", "3", low(rung)}} {
		was := seen()
		done(t, x.subject, "made", "socket", w.family, w.typ, "0")
		if n := seen() - was; n != 1 {
			t.Errorf("a socket of family %s is judged %d times", w.family, n)
		}
		x.event(t, "family "+w.family, func(e *pavise.Event) bool {
			return e.Op == pavise.OpSocket && strconv.Itoa(int(e.Net.Family)) == w.family && e.Rung == w.rung && e.Count == 1
		})
	}
	if rung != pavise.RungCgroup {
		return
	}
	if !x.e.k.Attached(onReturn) {
		t.Errorf("%s is not attached for a rule on all families", onReturn)
	}
	x.apply(t, `on: [net.socket], action: deny, when: 'net.family == "ipv4" && net.type == "dgram"'`)
	if x.e.k.Attached(onReturn) {
		t.Errorf("%s is attached for a rule on IPv4 alone", onReturn)
	}
	x.stopped(t, pavise.OpSocket, "socket", "2", "2", "0")
	done(t, x.subject, "made", "socket", "10", "2", "0")
	done(t, x.other, "made", "socket", "2", "2", "0")
	x.apply(t)
	if x.e.k.Attached("cg_socket") {
		t.Error("cg_socket is attached without a rule")
	}
}

// low is the rung that judges the sockets of other families than IPv4 and IPv6.
func low(rung pavise.Rung) pavise.Rung {
	if rung == pavise.RungCgroup {
		return pavise.RungKillOnReturn
	}
	return rung
}
