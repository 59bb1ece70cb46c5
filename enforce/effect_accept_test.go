package enforce

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/pavise-project/pavise"
	"github.com/pavise-project/pavise/internal/kerntest"
	"github.com/pavise-project/pavise/policy"
	"golang.org/x/sys/unix"
)

// knowsRemote is x, or where net.accept is judged before it is known who connects, one without the better rungs: theirs refuses such a rule.
func (x *effect) knowsRemote(t *testing.T, dim policy.Dim, rule string) *effect {
	t.Helper()
	if !slices.Contains(x.e.status[pavise.OpAccept].Missing, dim) {
		return x
	}
	if err := x.compileError(x.text("mode: enforce\n  fallback: kill", rule)); err == nil || !strings.Contains(err.Error(), dim.Of(pavise.OpAccept)) {
		t.Errorf("a rule on what is not known: %v", err)
	}
	y, err := newEffect(pavise.RungLSM, pavise.RungFmodRet)
	must(t, err)
	t.Cleanup(y.stop)
	return y
}

// TestKernelAcceptProcess: net.accept by the program that made the connection.
func TestKernelAcceptProcess(t *testing.T) {
	x := theEffect(t)
	x.needs(t, pavise.OpAccept)
	x = x.knowsRemote(t, policy.DimTargetExe, `on: [net.accept], action: deny, when: 'net.remote.process.exe.name == "bad"'`)
	rung := x.needs(t, pavise.OpAccept)
	bad, good := x.servers(t) // that connect
	rule := fmt.Sprintf("on: [net.accept], action: deny, when: 'net.remote.process.exe.path == %q'", bad.exe)
	// from has a client connect to a server at an address, and returns where the connection waits to be accepted.
	from := func(t *testing.T, client, server *actor, listen, host, deed string, how ...string) string {
		t.Helper()
		where := server.serve(t, listen, how...)
		done(t, client, "", deed, at(host, where))
		return where
	}
	refused := func(t *testing.T, listen, host, deed string, how ...string) {
		t.Helper()
		x.stopped(t, pavise.OpAccept, "take", from(t, bad, x.subject, listen, host, deed, how...))
	}
	taken := func(t *testing.T, client, server *actor, listen, host, deed string, how ...string) {
		t.Helper()
		where := from(t, client, server, listen, host, deed, how...)
		done(t, server, "", "take", where)
		done(t, server, "", "unserve", where)
	}
	x.apply(t)
	taken(t, bad, x.subject, "127.0.0.1:0", "127.0.0.1", "connect")
	if x.e.k.Attached(onConnecting) || x.e.k.Attached(connectBegun) {
		t.Error("who connects is followed, and no rule asks for it")
	}
	x.apply(t, rule)
	for _, c := range []struct{ listen, host string }{
		{"127.0.0.1:0", "127.0.0.1"}, {"127.0.0.1:0", "[::ffff:127.0.0.1]"}, {"0.0.0.0:0", "127.9.9.9"}, {"[::]:0", "127.0.0.1"}, {"[::]:0", "[::1]"}, {"[::1]:0", "[::1]"},
	} {
		t.Run(c.listen+" by "+c.host, func(t *testing.T) {
			refused(t, c.listen, c.host, "connect")
			taken(t, good, x.subject, c.listen, c.host, "connect")
			taken(t, bad, x.other, c.listen, c.host, "connect")
		})
	}
	t.Run("io_uring", func(t *testing.T) { refused(t, "127.0.0.1:0", "127.0.0.1", "connect-uring") })
	t.Run("MPTCP", func(t *testing.T) {
		refused(t, "127.0.0.1:0", "127.0.0.1", "connect-mptcp", "mptcp")
		taken(t, good, x.subject, "127.0.0.1:0", "127.0.0.1", "connect-mptcp", "mptcp")
	})
	t.Run("its process has ended", func(t *testing.T) {
		for _, c := range []*actor{bad, good} {
			where := from(t, c, x.subject, "127.0.0.1:0", "127.0.0.1", "keep")
			c.stop()
			if c == bad {
				x.stopped(t, pavise.OpAccept, "take", where)
				continue
			}
			done(t, x.subject, "", "take", where)
		}
	})
	t.Run("event", func(t *testing.T) {
		x.forget()
		x.subject.stop()
		where := from(t, bad, x.subject, "127.0.0.1:0", "127.0.0.1", "keep")
		pid := x.subject.pid(t)
		x.stopped(t, pavise.OpAccept, "take", where)
		e := x.event(t, "accept", func(e *pavise.Event) bool { return e.PID == pid })
		if tgt := &e.Act.Target; e.Rung != rung || x.rule(e) != "r0" || tgt.Path != bad.exe || int(tgt.PID) != bad.cmd.Process.Pid || tgt.ExecID == 0 {
			t.Errorf("event rung %s rule %s %+v, want %s[%d]", e.Rung, x.rule(e), *tgt, bad.exe, bad.cmd.Process.Pid)
		}
	})
	t.Run("allow-list", func(t *testing.T) {
		x.applyText(t, x.text("mode: enforce\n  fallback: kill\n  default: {net.accept: deny}", "on: [net.accept], action: allow, when: 'net.remote.process.exe.name == \"good\"'"))
		refused(t, "127.0.0.1:0", "127.0.0.1", "connect")
		taken(t, good, x.subject, "127.0.0.1:0", "127.0.0.1", "connect")
	})
	t.Run("made before the rule", func(t *testing.T) {
		x.apply(t)
		where := from(t, good, x.subject, "127.0.0.1:0", "127.0.0.1", "keep")
		x.apply(t, rule)
		x.stopped(t, pavise.OpAccept, "take", where) // it is not known who connected
	})
	t.Run("nothing is left", func(t *testing.T) {
		x.apply(t, rule)
		left := func() (n int) { // an owner's path stands at 24
			var key, value []byte
			for it := x.e.k.Map("connects").Iterate(); it.Next(&key, &value); {
				if strings.HasPrefix(string(value[24:]), x.dir) {
					n++
				}
			}
			return n
		}
		from(t, good, x.subject, "127.0.0.1:0", "127.0.0.1", "keep")
		taken(t, bad, x.other, "127.0.0.1:0", "127.0.0.1", "keep")
		if left() < 2 {
			t.Errorf("%d connections are known", left())
		}
		bad.stop()
		good.stop()
		x.subject.stop()
		x.other.stop()
		for end := time.Now().Add(10 * time.Second); left() > 0; time.Sleep(20 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%d connections are still known", left())
			}
		}
	})
	t.Run("another network namespace", func(t *testing.T) { x.acceptElsewhere(t, bad, good, rule) })
	x.apply(t)
}

// acceptElsewhere does it between two network namespaces, and lets a third one lie.
func (x *effect) acceptElsewhere(t *testing.T, bad, good *actor, rule string) {
	liar := &actor{exe: good.exe}
	for _, a := range []*actor{x.subject, bad, good, liar} {
		a.stop()
		defer a.stop()
	}
	// A process is where the thread is that starts it.
	in := func(do func()) {
		done := make(chan struct{})
		go func() {
			defer close(done)
			runtime.LockOSThread() // and never unlocked
			do()
		}()
		<-done
		if t.Failed() {
			t.FailNow()
		}
	}
	hosts := [2]string{"192.0.2.1", "192.0.2.2"}
	var near, third *os.File
	in(func() {
		near = cable(t, "cable", func() {
			addressOf(t, "cable", hosts[1])
			bad.start(t)
			good.start(t)
		})
		addressOf(t, "cable", hosts[0])
		x.subject.start(t)
	})
	in(func() {
		must(t, unix.Unshare(unix.CLONE_NEWNET))
		must(t, loopbackUp())
		addressOf(t, "lo:1", hosts[0])
		addressOf(t, "lo:2", hosts[1])
		liar.start(t)
		var err error
		third, err = os.Open("/proc/thread-self/ns/net")
		must(t, err)
	})
	defer third.Close()
	ends := [2]string{hosts[0] + ":7001", hosts[1] + ":7002"}
	take := func(t *testing.T, client *actor) outcome {
		t.Helper()
		done(t, client, "", "keep-from", ends[1], ends[0])
		return x.subject.do(t, "take", ends[0])
	}
	serve := func(t *testing.T, rules ...string) {
		t.Helper()
		x.apply(t, rules...)
		x.subject.serve(t, ends[0])
	}
	refused := func(t *testing.T) {
		t.Helper()
		r := x.e.status[pavise.OpAccept].Rung
		if o := take(t, bad); (r == pavise.RungKillOnReturn) != o.Killed || !o.Killed && o.Errno != unix.EPERM {
			t.Errorf("at rung %s: %s", r, o)
		}
		done(t, bad, "", "unserve", ends[0])
		x.subject.stop()
		in(func() {
			must(t, unix.Setns(int(near.Fd()), unix.CLONE_NEWNET))
			x.subject.start(t)
		})
		x.subject.serve(t, ends[0])
	}
	serve(t)
	if o := take(t, bad); o.Err != "" {
		t.Fatalf("without a rule: %s", o)
	}
	liar.serve(t, ends[0])
	done(t, bad, "", "unserve", ends[0])
	x.apply(t, rule)
	refused(t)
	if o := take(t, good); o.Err != "" || o.Killed {
		t.Errorf("another program: %s", o)
	}
	done(t, good, "", "unserve", ends[0])
	// The liar's program is another, and its connection has the same addresses and ports.
	done(t, liar, "", "keep-from", ends[1], ends[0])
	refused(t)
	// From one address of a network namespace to another of its own.
	for _, c := range []*actor{good, bad} {
		x.subject.stop()
		c.stop()
		in(func() {
			must(t, unix.Setns(int(third.Fd()), unix.CLONE_NEWNET))
			x.subject.start(t)
			c.start(t)
		})
		where := x.subject.serve(t, hosts[0]+":0")
		done(t, c, "", "keep-from", hosts[1]+":0", where)
		o := x.subject.do(t, "take", where)
		if stopped := o.Killed || o.Errno == unix.EPERM; stopped != (c == bad) || !stopped && o.Err != "" {
			t.Errorf("%s, by another address: %s", c.exe, o)
		}
	}
}

// TestKernelKeepConnectors: who connects is followed without an agent, and known to the next one.
func TestKernelKeepConnectors(t *testing.T) {
	kerntest.Require(t, kerntest.Root, kerntest.Syscall, kerntest.TpBtf)
	self, err := os.Executable()
	must(t, err)
	src := fmt.Sprintf(`{apiVersion: pavise.dev/v1alpha1, kind: Policy, metadata: {name: p}, spec: {mode: monitor, fallback: kill, subject: process.exe.path == %q,
  rules: [{name: r, on: [net.accept], action: deny, when: net.remote.process.exe.path == %q}]}}`, self, self)
	forever := Options{Keep: KeepForever, PinDir: pinDir(t), Skip: []pavise.Rung{pavise.RungLSM, pavise.RungFmodRet}}
	paths := make(chan string, 16) // of who connected
	see := func(e *pavise.Event) {
		if e.Op == pavise.OpAccept {
			paths <- e.Act.Target.Path
		}
	}
	connect := func() (accept func(when string)) {
		t.Helper()
		to, err := net.Listen("tcp4", "127.0.0.1:0")
		must(t, err)
		t.Cleanup(func() { _ = to.Close() })
		c, err := net.Dial("tcp4", to.Addr().String())
		must(t, err)
		t.Cleanup(func() { _ = c.Close() })
		return func(when string) {
			t.Helper()
			in, err := to.Accept()
			must(t, err)
			must(t, in.Close())
			select {
			case p := <-paths:
				if p != self {
					t.Errorf("%s: %q connected, it was %q", when, p, self)
				}
			case <-time.After(10 * time.Second):
				t.Errorf("%s: nothing was told", when)
			}
		}
	}
	l := startKept(t, forever, see)
	l.apply(src)
	accept := connect()
	accept("at first")
	l.close()
	accept = connect()
	l = startKept(t, forever, see)
	if !l.Keep().Adopted || !l.k.Attached(onConnecting) || !l.k.Attached(connectBegun) {
		t.Errorf("not adopted: %+v, %v", l.Keep(), l.k.Links())
	}
	if a := l.apply(src); !a.Resumed {
		t.Errorf("the same policy is staged anew: %+v", a)
	}
	accept("connected without an agent")
	l.apply()
	if l.k.Attached(onConnecting) || l.k.Attached(connectBegun) {
		t.Errorf("followed, and no rule asks: %v", l.k.Links())
	}
	l.close()
	if _, err := RemoveLeft(forever.PinDir, false); err != nil {
		t.Error(err)
	}
}

// TestKernelInterface: net.* by the interface that a socket is bound to, or by which a connection came.
func TestKernelInterface(t *testing.T) {
	x := theEffect(t)
	t.Run("accept", func(t *testing.T) { x.acceptByInterface(t) })
	for _, c := range []struct {
		op   pavise.Op
		deed string
	}{{pavise.OpConnect, "connect-on"}, {pavise.OpBind, "bind-on"}, {pavise.OpListen, "listen-on"}, {pavise.OpSend, "send-on"}} {
		t.Run(c.op.String(), func(t *testing.T) {
			rung := x.needs(t, c.op)
			for _, at := range []string{"127.0.0.1:0", "[::1]:0"} {
				if c.op == pavise.OpConnect || c.op == pavise.OpSend {
					at = serve(t, "tcp", at)
				}
				x.apply(t)
				done(t, x.subject, "", c.deed, "lo", at)
				done(t, x.subject, "", c.deed, "", at)
				x.apply(t, fmt.Sprintf(`on: [%s], action: deny, when: 'net.interface == "lo"'`, c.op))
				x.forget()
				x.subject.stop()
				pid := x.subject.pid(t)
				x.stopped(t, c.op, c.deed, "lo", at)
				e := x.event(t, c.deed, func(e *pavise.Event) bool { return e.PID == pid })
				if e.Op != c.op || e.Rung != rung || e.Net.Interface != "lo" || x.rule(e) != "r0" {
					t.Errorf("event %s rung %s %+v", e.Op, e.Rung, e.Net)
				}
				done(t, x.subject, "", c.deed, "", at)
				done(t, x.other, "", c.deed, "lo", at)
				// What is bound to no interface has none.
				x.apply(t, fmt.Sprintf(`on: [%s], action: deny, when: 'net.interface != "lo"'`, c.op))
				x.stopped(t, c.op, c.deed, "", at)
				done(t, x.subject, "", c.deed, "lo", at)
				x.applyText(t, x.text(fmt.Sprintf("mode: enforce\n  fallback: kill\n  default: {%s: deny}", c.op), fmt.Sprintf(`on: [%s], action: allow, when: 'net.interface == "lo"'`, c.op)))
				x.stopped(t, c.op, c.deed, "", at)
				done(t, x.subject, "", c.deed, "lo", at)
			}
		})
	}
}

// acceptByInterface does it in a network namespace with two interfaces.
func (x *effect) acceptByInterface(t *testing.T) {
	x.needs(t, pavise.OpAccept)
	x = x.knowsRemote(t, policy.DimInterface, `on: [net.accept], action: deny, when: 'net.interface == "lo"'`)
	runtime.LockOSThread() // and never unlocked: what is started from here is in the namespace
	far, near := &actor{exe: x.other.exe}, &actor{exe: x.other.exe}
	x.subject.stop()
	t.Cleanup(x.subject.stop)
	t.Cleanup(far.stop)
	t.Cleanup(near.stop)
	cable(t, "cable", func() {
		addressOf(t, "cable", "192.0.2.2")
		far.start(t)
	})
	addressOf(t, "cable", "192.0.2.1")
	near.start(t)
	// from has a client connect, and tells where that waits.
	from := func(t *testing.T, client *actor, deed, host string, how ...string) string {
		t.Helper()
		where := x.subject.serve(t, "[::]:0", how...)
		args := []string{at(host, where)}
		if deed == "connect-on" {
			args = []string{"cable", args[0]}
		}
		done(t, client, "", deed, args...)
		return where
	}
	x.apply(t)
	done(t, x.subject, "", "take", from(t, far, "connect", "192.0.2.1"))
	for _, c := range []struct {
		name, by   string
		client     *actor
		deed, host string
	}{
		{"another namespace", "cable", far, "connect", "192.0.2.1"},
		{"loopback", "lo", near, "connect", "127.0.0.1"},
		{"loopback, IPv6", "lo", near, "connect", "[::1]"},
		{"the other interface's address", "lo", near, "connect", "192.0.2.1"},
		{"a client that is bound to the other interface", "lo", near, "connect-on", "192.0.2.1"},
	} {
		other := map[string]string{"lo": "cable", "cable": "lo"}[c.by]
		x.apply(t, fmt.Sprintf("on: [net.accept], action: deny, when: 'net.interface == %q'", other))
		where := from(t, c.client, c.deed, c.host)
		if o := x.subject.do(t, "take", where); o.Killed || o.Err != "" {
			t.Fatalf("%s, by a rule on %s: %s", c.name, other, o)
		}
		x.apply(t, fmt.Sprintf("on: [net.accept], action: deny, when: 'net.interface == %q'", c.by))
		x.forget()
		where = from(t, c.client, c.deed, c.host)
		pid := x.subject.pid(t)
		x.stopped(t, pavise.OpAccept, "take", where)
		e := x.event(t, c.name, func(e *pavise.Event) bool { return e.PID == pid })
		if e.Op != pavise.OpAccept || e.Net.Interface != c.by || x.rule(e) != "r0" {
			t.Errorf("%s: event %s %+v", c.name, e.Op, e.Net)
		}
	}
	if rung := x.e.status[pavise.OpSend].Rung; rung != pavise.RungNone {
		x.applyText(t, x.text("mode: enforce\n  default: {net.send: deny}", `on: [net.send], action: allow, when: 'net.interface == "cable"'`))
		x.stopped(t, pavise.OpSend, "send-by", "lo", "", "127.0.0.1:0")
		done(t, x.subject, "arrived", "send-by", "cable", "lo", "127.0.0.1:0") // docs/THREATS.md
	}
	where := from(t, near, "connect-mptcp", "127.0.0.1", "mptcp")
	x.apply(t, "on: [net.accept], action: deny, when: 'net.interface == \"cable\"'")
	done(t, x.subject, "", "take", where)
	x.apply(t, "on: [net.accept], action: deny, when: 'net.interface == \"lo\"'")
	x.stopped(t, pavise.OpAccept, "take", from(t, near, "connect-mptcp", "127.0.0.1", "mptcp"))
}

// cable gives the thread a network namespace of its own with an interface, whose other end, of the same name, is in another one, where it runs there. It returns the thread's.
func cable(t *testing.T, name string, there func()) *os.File {
	t.Helper()
	must(t, unix.Unshare(unix.CLONE_NEWNET))
	must(t, loopbackUp())
	far, err := os.Open("/proc/thread-self/ns/net")
	must(t, err)
	defer far.Close()
	must(t, unix.Unshare(unix.CLONE_NEWNET))
	must(t, loopbackUp())
	near, err := os.Open("/proc/thread-self/ns/net")
	must(t, err)
	t.Cleanup(func() { near.Close() })
	if kind, err := os.ReadFile("/proc/modules"); err == nil && !strings.Contains(string(kind), "veth ") {
		_ = exec.CommandContext(t.Context(), "modprobe", "veth").Run() // or it is built in
	}
	attribute := func(b []byte, typ uint16, v []byte) []byte {
		b = binary.NativeEndian.AppendUint16(b, uint16(4+len(v)))
		b = append(binary.NativeEndian.AppendUint16(b, typ), v...)
		return append(b, make([]byte, -len(b)&3)...)
	}
	peer := attribute(make([]byte, 16), unix.IFLA_IFNAME, []byte(name+"\x00"))
	peer = attribute(peer, unix.IFLA_NET_NS_FD, binary.NativeEndian.AppendUint32(nil, uint32(far.Fd())))
	info := attribute(nil, 1, []byte("veth\x00")) // IFLA_INFO_KIND
	info = attribute(info, 2, attribute(nil, 1, peer))
	msg := attribute(make([]byte, 16), unix.IFLA_IFNAME, []byte(name+"\x00"))
	msg = attribute(msg, unix.IFLA_LINKINFO, info)
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	must(t, err)
	defer unix.Close(fd)
	h := unix.NlMsghdr{Len: uint32(16 + len(msg)), Type: unix.RTM_NEWLINK, Flags: unix.NLM_F_REQUEST | unix.NLM_F_ACK | unix.NLM_F_CREATE}
	must(t, unix.Sendto(fd, append(unsafe.Slice((*byte)(unsafe.Pointer(&h)), 16), msg...), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}))
	var buf [4096]byte
	if n, _, err := unix.Recvfrom(fd, buf[:], 0); err != nil || n < 20 || binary.NativeEndian.Uint32(buf[16:]) != 0 {
		t.Fatalf("make a pair of interfaces: %d bytes, %v, %v", n, err, syscall.Errno(-int32(binary.NativeEndian.Uint32(buf[16:]))))
	}
	must(t, unix.Setns(int(far.Fd()), unix.CLONE_NEWNET))
	there()
	must(t, unix.Setns(int(near.Fd()), unix.CLONE_NEWNET))
	return near
}

// addressOf gives an interface of the thread's network namespace an IPv4 address with 24 bits of network, and brings it up.
func addressOf(t *testing.T, name, addr string) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(fd)
	r, err := unix.NewIfreq(name)
	must(t, err)
	ip := netip.MustParseAddr(addr).As4()
	must(t, r.SetInet4Addr(ip[:]))
	must(t, unix.IoctlIfreq(fd, unix.SIOCSIFADDR, r))
	must(t, r.SetInet4Addr(net.CIDRMask(24, 32)))
	must(t, unix.IoctlIfreq(fd, unix.SIOCSIFNETMASK, r))
	name, _, _ = strings.Cut(name, ":")
	up, err := unix.NewIfreq(name)
	must(t, err)
	up.SetUint16(unix.IFF_UP)
	must(t, unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, up))
}
