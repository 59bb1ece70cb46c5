package enforce

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/pavise-project/pavise"
	"github.com/pavise-project/pavise/internal/kerntest"
	"golang.org/x/sys/unix"
)

// servers are two programs that listen: the one that rules are about, and another.
func (x *effect) servers(t *testing.T) (bad, good *actor) {
	t.Helper()
	var as [2]*actor
	for i, name := range []string{"bad", "good"} {
		as[i] = &actor{exe: filepath.Join(x.dir, name)}
		if err := os.Link(x.subject.exe, as[i].exe); err != nil && !os.IsExist(err) {
			t.Fatal(err)
		}
		as[i].start(t)
		t.Cleanup(as[i].stop)
	}
	return as[0], as[1]
}

// serve has an actor listen, and returns where.
func (a *actor) serve(t *testing.T, addr string, how ...string) string {
	t.Helper()
	o := a.do(t, "serve", append([]string{addr}, how...)...)
	if o.Err != "" || o.Data == "" {
		t.Fatalf("listen at %s: %s", addr, o)
	}
	return o.Data
}

// at is the port of one address at another.
func at(host, addr string) string {
	return fmt.Sprintf("%s:%d", host, netip.MustParseAddrPort(addr).Port())
}

// TestKernelConnectProcess: net.connect by the program that listens at the other end.
func TestKernelConnectProcess(t *testing.T) {
	x := theEffect(t)
	rung := x.needs(t, pavise.OpConnect)
	bad, good := x.servers(t)
	rule := fmt.Sprintf("on: [net.connect], action: deny, when: 'net.remote.process.exe.path == %q'", bad.exe)

	before, beside := bad.serve(t, "127.0.0.1:0"), good.serve(t, "127.0.0.1:0")
	anyBefore := bad.serve(t, "[::]:0")
	x.apply(t)
	if x.e.k.Attached(onListen) {
		t.Error("who listens is followed, and no rule asks for it")
	}
	done(t, x.subject, "", "connect", before)
	x.apply(t, rule)
	t.Run("from before", func(t *testing.T) {
		for _, to := range []string{before, at("0.0.0.0", before), at("[::ffff:127.0.0.1]", before), at("127.0.0.1", anyBefore), at("[::1]", anyBefore)} {
			x.stopped(t, pavise.OpConnect, "connect", to)
			done(t, x.other, "", "connect", to)
		}
		done(t, x.subject, "", "connect", beside)
	})
	t.Run("since", func(t *testing.T) {
		for _, c := range []struct {
			at string
			to []string
		}{
			{"127.0.0.1:0", []string{"127.0.0.1", "0.0.0.0", "[::ffff:127.0.0.1]", "[::ffff:0.0.0.0]"}},
			{"[::1]:0", []string{"[::1]", "[::]"}},
			{"[::ffff:127.0.0.1]:0", []string{"127.0.0.1"}},
			{"0.0.0.0:0", []string{"127.0.0.1", "127.9.9.9", "0.0.0.0", "[::ffff:127.0.0.1]"}},
			{"[::]:0", []string{"127.0.0.1", "127.9.9.9", "[::1]", "[::]"}},
		} {
			no, yes := bad.serve(t, c.at), good.serve(t, c.at)
			for _, host := range c.to {
				x.stopped(t, pavise.OpConnect, "connect", at(host, no))
				done(t, x.other, "", "connect", at(host, no))
				done(t, x.subject, "", "connect", at(host, yes))
			}
			done(t, bad, "", "unserve", no)
			done(t, good, "", "unserve", yes)
		}
		no := bad.serve(t, "127.0.0.1:0")
		x.stopped(t, pavise.OpConnect, "fastopen", no)
		x.stopped(t, pavise.OpConnect, "connect-uring", no)
		x.stopped(t, pavise.OpConnect, "connect-mptcp", no)
		done(t, x.subject, "", "connect-udp", no)
		done(t, x.subject, "", "fastopen", beside)
		done(t, x.subject, "", "connect-mptcp", beside)
	})
	t.Run("MPTCP", func(t *testing.T) {
		no, yes := bad.serve(t, "127.0.0.1:0", "mptcp"), good.serve(t, "127.0.0.1:0", "mptcp")
		x.stopped(t, pavise.OpConnect, "connect", no)
		done(t, x.subject, "", "connect", yes)
		x.apply(t)
		x.apply(t, rule) // found
		x.stopped(t, pavise.OpConnect, "connect", no)
		done(t, x.subject, "", "connect", yes)
	})
	t.Run("another takes the port", func(t *testing.T) {
		where := bad.serve(t, "127.0.0.1:0")
		x.stopped(t, pavise.OpConnect, "connect", where)
		done(t, bad, "", "unserve", where)
		good.serve(t, where)
		done(t, x.subject, "", "connect", where)
		done(t, good, "", "unserve", where)
		bad.serve(t, where)
		x.stopped(t, pavise.OpConnect, "connect", where)
		// And while nobody looks.
		x.apply(t)
		done(t, bad, "", "unserve", where)
		good.serve(t, where)
		x.apply(t, rule)
		done(t, x.subject, "", "connect", where)
	})
	t.Run("two at one port", func(t *testing.T) {
		where := good.serve(t, "127.0.0.1:0", "shared")
		done(t, x.subject, "", "connect", where)
		bad.serve(t, where, "shared")
		x.stopped(t, pavise.OpConnect, "connect", where) // it can be either
		done(t, bad, "", "unserve", where)
		done(t, x.subject, "", "connect", where)
	})
	t.Run("the kernel chooses the port", func(t *testing.T) {
		where := good.serve(t, "127.0.0.1:0", "unbound")
		x.stopped(t, pavise.OpConnect, "connect", at("127.0.0.1", where)) // it is not known who listens
		done(t, x.subject, "", "connect", beside)
		done(t, good, "", "unserve", where)
		if o := x.subject.do(t, "connect", at("127.0.0.1", where)); o.Errno != unix.ECONNREFUSED {
			t.Errorf("a port that nobody listens at: %s", o)
		}
	})
	t.Run("addresses of interfaces", func(t *testing.T) { x.connectOwnAddress(t, bad.exe, rule) })
	t.Run("event", func(t *testing.T) {
		x.forget()
		x.subject.stop()
		pid := x.subject.pid(t)
		x.stopped(t, pavise.OpConnect, "connect", before)
		e := x.event(t, "connect", func(e *pavise.Event) bool { return e.PID == pid })
		if tgt := &e.Act.Target; e.Rung != rung || x.rule(e) != "r0" || tgt.Path != bad.exe || int(tgt.PID) != bad.cmd.Process.Pid || tgt.ExecID == 0 {
			t.Errorf("event rung %s rule %s %+v, want %s[%d]", e.Rung, x.rule(e), *tgt, bad.exe, bad.cmd.Process.Pid)
		}
	})
	t.Run("allow-list", func(t *testing.T) {
		x.applyText(t, x.text("mode: enforce\n  fallback: kill\n  default: {net.connect: deny}", "on: [net.connect], action: allow, when: 'net.remote.process.exe.name == \"good\"'"))
		x.stopped(t, pavise.OpConnect, "connect", before)
		done(t, x.subject, "", "connect", beside)
		where := good.serve(t, "127.0.0.1:0", "unbound")
		x.stopped(t, pavise.OpConnect, "connect", at("127.0.0.1", where))
		done(t, good, "", "unserve", where)
	})
	t.Run("its process has ended", func(t *testing.T) {
		x.apply(t, rule)
		where := bad.serve(t, "127.0.0.1:0")
		bad.stop()
		if o := x.subject.do(t, "connect", where); o.Errno != unix.ECONNREFUSED {
			t.Errorf("after its end: %s", o)
		}
		good.serve(t, where)
		done(t, x.subject, "", "connect", where)
	})
	x.apply(t)
	done(t, x.subject, "", "connect", beside)
}

// TestKernelKeepListeners: who listens is followed without an agent, and known once to the next one.
func TestKernelKeepListeners(t *testing.T) {
	kerntest.Require(t, kerntest.Root, kerntest.Syscall, kerntest.TpBtf)
	forever := Options{Keep: KeepForever, PinDir: pinDir(t)}
	nobody := func(*pavise.Event) {}
	l := startKept(t, forever, nobody)
	if !l.Machine()[pavise.OpConnect].Deny {
		l.close()
		t.Skip(kerntest.NotExpected + "net.connect cannot be denied")
	}
	self, err := os.Executable()
	must(t, err)
	src := fmt.Sprintf(`{apiVersion: pavise.dev/v1alpha1, kind: Policy, metadata: {name: p}, spec: {mode: enforce, subject: process.exe.path == %q,
  rules: [{name: r, on: [net.connect], action: deny, when: net.remote.process.exe.path == %q}]}}`, self, self)
	listen := func() net.Listener {
		t.Helper()
		to, err := net.Listen("tcp4", "127.0.0.1:0")
		must(t, err)
		t.Cleanup(func() { _ = to.Close() })
		return to
	}
	try := func(when string, to net.Listener, want error) {
		t.Helper()
		c, err := net.Dial("tcp4", to.Addr().String())
		if err == nil {
			_ = c.Close()
		}
		if !errors.Is(err, want) {
			t.Errorf("%s, a connect: %v, want %v", when, err, want)
		}
	}
	first := listen()
	try("without a rule", first, nil)
	l.apply(src)
	try("at first", first, unix.EPERM)
	l.close()
	try("without an agent", first, unix.EPERM)
	second := listen()
	try("begun without an agent", second, unix.EPERM)
	l = startKept(t, forever, nobody)
	if !l.Keep().Adopted {
		t.Errorf("not adopted: %+v", l.Keep())
	}
	if a := l.apply(src); !a.Resumed {
		t.Errorf("the same policy is staged anew: %+v", a)
	}
	try("adopted", second, unix.EPERM)
	l.apply(src + "\n---\n" + strings.ReplaceAll(src, "name: p", "name: q")) // who listens is looked for again
	try("after a change", second, unix.EPERM)
	for _, to := range []net.Listener{first, second} {
		must(t, to.Close())
		try("nobody listens any more", to, unix.ECONNREFUSED)
	}
	var key, value []byte
	for it := l.k.Map("listens").Iterate(); it.Next(&key, &value); {
		if port := binary.NativeEndian.Uint16(key[20:]); port == portOf(first) || port == portOf(second) {
			t.Errorf("port %d, at which nobody listens, is known", port)
		}
	}
	l.close()
	if _, err := RemoveLeft(forever.PinDir, false); err != nil {
		t.Error(err)
	}
}

func portOf(l net.Listener) uint16 { return netip.MustParseAddrPort(l.Addr().String()).Port() }

// connectOwnAddress does it in a network namespace whose loopback device has other addresses, and nothing else is reached.
func (x *effect) connectOwnAddress(t *testing.T, exe, rule string) {
	runtime.LockOSThread() // and never unlocked: the thread ends with the test
	must(t, unix.Unshare(unix.CLONE_NEWNET))
	ownAddresses(t)
	x.subject.stop()
	x.subject.start(t)
	defer x.subject.stop()
	bad := &actor{exe: exe}
	bad.start(t)
	defer bad.stop()
	for _, c := range []struct{ at, own, far string }{
		{"0.0.0.0:0", "10.77.0.1", "192.0.2.1"},
		{"[::]:0", "[fd77::1]", "[2001:db8::1]"},
		{"[::]:0", "10.77.0.1", "192.0.2.1"},
	} {
		no := bad.serve(t, c.at)
		x.apply(t)
		done(t, x.subject, "", "connect", at(c.own, no))
		x.apply(t, rule)
		x.stopped(t, pavise.OpConnect, "connect", at(c.own, no))
		if o := x.subject.do(t, "connect", at(c.far, no)); o.Errno != unix.ENETUNREACH {
			t.Errorf("connect to another machine: %s", o)
		}
		done(t, bad, "", "unserve", no)
	}
	// A socket that is bound reaches its own address by the unspecified one.
	no := bad.serve(t, "10.77.0.1:0")
	x.apply(t)
	done(t, x.subject, "", "connect-from", "10.77.0.1:0", at("0.0.0.0", no))
	x.apply(t, rule)
	x.stopped(t, pavise.OpConnect, "connect-from", "10.77.0.1:0", at("0.0.0.0", no))
	x.stopped(t, pavise.OpConnect, "connect", no)
}

// ownAddresses gives the loopback device of this network namespace 10.77.0.1 and fd77::1.
func ownAddresses(t *testing.T) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(fd)
	lo, err := unix.NewIfreq("lo")
	must(t, err)
	lo.SetUint16(unix.IFF_UP)
	must(t, unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo))
	alias, err := unix.NewIfreq("lo:1")
	must(t, err)
	must(t, alias.SetInet4Addr([]byte{10, 77, 0, 1}))
	must(t, unix.IoctlIfreq(fd, unix.SIOCSIFADDR, alias))
	// On some kernels the other addresses of the device wait for this one.
	six, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(six)
	req := struct {
		addr   [16]byte
		prefix uint32
		index  int32
	}{addr: netip.MustParseAddr("fd77::1").As16(), prefix: 128, index: 1}
	for range 100 {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(six), unix.SIOCSIFADDR, uintptr(unsafe.Pointer(&req)))
		if errno == 0 {
			return
		}
		if err = errno; errno != unix.EAGAIN {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("give lo an IPv6 address:", err)
}
