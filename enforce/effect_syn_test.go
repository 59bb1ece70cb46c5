package enforce

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pavise-project/pavise"
	"github.com/pavise-project/pavise/internal/kerntest"
	"golang.org/x/sys/unix"
)

// knock connects from one address (a port of it, or any: 0) to another, and waits for a moment: then it is ETIMEDOUT. It returns what it read of a greeting.
func knock(from, to string, greeting bool) (string, error) {
	family, sa, err := sockaddr(to)
	if err != nil {
		return "", err
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	if from != "" {
		_, own, err := sockaddr(from)
		if err == nil {
			err = unix.Bind(fd, own)
		}
		if err != nil {
			return "", err
		}
	}
	ready := func(events int16, limit time.Duration) error {
		for end := time.Now().Add(limit); ; {
			n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: events}}, int(max(time.Until(end), 0)/time.Millisecond))
			switch {
			case errors.Is(err, unix.EINTR):
			case err != nil:
				return err
			case n == 0:
				return unix.ETIMEDOUT
			default:
				return nil
			}
		}
	}
	if err := unix.Connect(fd, sa); err != nil && !errors.Is(err, unix.EINPROGRESS) {
		return "", err
	}
	limit := 250 * time.Millisecond
	if kerntest.VM() != "" {
		limit = time.Second
	}
	if err := ready(unix.POLLOUT, limit); err != nil {
		return "", err
	}
	if e, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR); err != nil || e != 0 {
		return "", errors.Join(err, syscall.Errno(e))
	}
	if !greeting {
		return "", nil
	}
	if err := ready(unix.POLLIN, 10*time.Second); err != nil {
		return "", err
	}
	var b [16]byte
	n, err := unix.Read(fd, b[:])
	return string(b[:max(n, 0)]), err
}

// unanswered expects that a SYN to a socket of an actor's is not answered.
func unanswered(t *testing.T, a *actor, where, from, to string) {
	t.Helper()
	_, err := knock(from, to, false)
	if err == nil && a != nil && skipped(t) {
		a.do(t, "take-now", where)
		_, err = knock(from, to, false)
	}
	if !errors.Is(err, unix.ETIMEDOUT) {
		t.Errorf("connect from %q to %s: %v, want no answer", from, to, err)
	}
	if a != nil {
		done(t, a, "0", "waits", where)
	}
}

// answered expects that it is.
func answered(t *testing.T, a *actor, where, from, to string) {
	t.Helper()
	if _, err := knock(from, to, false); err != nil {
		t.Errorf("connect from %q to %s: %v", from, to, err)
	}
	if a != nil {
		done(t, a, "1", "waits", where)
	}
}

// synRung is by what SYNs are dropped here.
func (x *effect) synRung(t *testing.T) pavise.Rung {
	t.Helper()
	rung := x.needs(t, pavise.OpAccept)
	if x.e.syns.program == "" {
		x.needs(t, pavise.OpConnect) // or it is none of cgroup either
		t.Fatalf("nothing drops SYNs where net.accept is judged at %s", rung)
	}
	if rung == pavise.RungKillOnReturn {
		rung = pavise.RungCgroup
	}
	return rung
}

// TestKernelSyn: a SYN to who may not accept it is not answered.
func TestKernelSyn(t *testing.T) {
	x := theEffect(t)
	rung := x.synRung(t)
	deny := func(where string) string {
		return fmt.Sprintf("on: [net.accept], action: deny, when: 'net.local.port == %d'", netip.MustParseAddrPort(where).Port())
	}
	x.apply(t, deny("127.0.0.1:1"))
	if x.e.syns.why != nil || !x.e.k.Attached(x.e.syns.program) {
		t.Fatal("SYNs are not judged:", x.e.syns.why)
	}
	ways := []struct{ at, from, to string }{
		{"127.0.0.1:0", "", "127.0.0.1"},
		{"0.0.0.0:0", "", "127.9.9.9"},
		{"[::1]:0", "", "[::1]"},
		{"[::]:0", "", "127.0.0.1"}, // mapped
		{"[::]:0", "[::ffff:127.0.0.1]:0", "[::ffff:127.0.0.1]"},
	}
	x.apply(t)
	if x.e.k.Attached(onSynListen) || x.e.k.Attached(x.e.syns.program) {
		t.Error("SYNs are judged, and no rule asks for it")
	}
	for _, w := range ways {
		t.Run(fmt.Sprintf("%s to %s", w.to, w.at), func(t *testing.T) {
			where := x.subject.serve(t, w.at)
			to := at(w.to, where)
			x.apply(t)
			answered(t, x.subject, where, w.from, to)
			done(t, x.subject, "", "take-now", where)
			x.apply(t, deny(where)) // it is found
			x.forget()
			unanswered(t, x.subject, where, w.from, to)
			e := x.event(t, "the SYN", func(e *pavise.Event) bool { return e.Op == pavise.OpAccept })
			if client := netip.AddrFrom16(e.Net.Remote); e.Action != pavise.ActionDeny || e.Monitor || e.Rung != rung || x.rule(e) != "r0" || e.PID != x.subject.pid(t) || e.ExecID == 0 ||
				!client.Unmap().IsLoopback() || e.Net.RemotePort == 0 || e.Net.LocalPort != netip.MustParseAddrPort(where).Port() || e.Net.Protocol != unix.IPPROTO_TCP {
				t.Errorf("event %s at %s rule %s pid %d %+v", e.Action, e.Rung, x.rule(e), e.PID, e.Net)
			}
			// Another program may.
			others := x.other.serve(t, w.at)
			x.apply(t, deny(where), deny(others))
			answered(t, x.other, others, w.from, at(w.to, others))
			done(t, x.subject, "", "unserve", where)
			done(t, x.other, "", "unserve", others)
			// And at a socket that listens since.
			x.subject.serve(t, where)
			unanswered(t, x.subject, where, w.from, to)
			x.apply(t)
			answered(t, x.subject, where, w.from, to)
			done(t, x.subject, "", "unserve", where)
		})
	}
	t.Run("another user", func(t *testing.T) {
		must(t, os.Chmod(x.dir, 0o755))
		a := &actor{exe: x.subject.exe, attr: &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65533, Gid: 65533}}}
		a.start(t)
		defer a.stop()
		no, yes := a.serve(t, "127.0.0.1:0"), x.subject.serve(t, "127.0.0.1:0")
		x.apply(t, "on: [net.accept], action: deny, when: 'process.user.id == 65533'")
		unanswered(t, a, no, "", no)
		answered(t, x.subject, yes, "", yes)
		x.apply(t, "on: [net.accept], action: deny, when: 'process.user.id == 65532'") // what was found of it before is not that of this rule
		answered(t, a, no, "", no)
		x.apply(t)
		done(t, x.subject, "", "unserve", yes)
	})
	t.Run("several processes have it", func(t *testing.T) {
		where := x.subject.serve(t, "127.0.0.1:0")
		x.apply(t, deny(where))
		unanswered(t, x.subject, where, "", where)
		done(t, x.subject, "", "serve-by", where, x.other.exe)
		if got, err := knock("", where, true); err != nil || got != "hello" {
			t.Errorf("the worker: %q %v", got, err)
		}
		// The worker alone.
		done(t, x.subject, "", "unserve", where)
		if got, err := knock("", where, true); err != nil || got != "hello" {
			t.Errorf("the worker alone: %q %v", got, err)
		}
		x.lookAgain(t)
		if got, err := knock("", where, true); err != nil || got != "hello" {
			t.Errorf("the worker alone, when it is known: %q %v", got, err)
		}
		// A rule on all processes is one on each of them.
		x.applyText(t, everybody(deny(where)))
		unanswered(t, nil, "", "", where)
		x.subject.stop() // and with it the worker
	})
	t.Run("it is another's by now", func(t *testing.T) {
		x.apply(t, deny("127.0.0.1:1"))
		where := x.other.serve(t, "127.0.0.1:0")
		x.apply(t, deny(where))
		next := filepath.Join(x.dir, "next")
		done(t, x.other, "", "serve-by", where, x.subject.exe, next)
		answered(t, x.other, where, "", where)
		done(t, x.other, "", "unserve", where)
		answered(t, nil, "", "", where) // it is seen to be another's
		x.lookAgain(t)
		unanswered(t, nil, "", "", where)
		// It executes another program.
		must(t, os.Link(x.other.exe, next))
		defer os.Remove(next)
		var got string
		for end := time.Now().Add(10 * time.Second); got != "hello" && time.Now().Before(end); {
			got, _ = knock("", where, true)
		}
		x.lookAgain(t)
		if again, err := knock("", where, true); got != "hello" || again != "hello" || err != nil {
			t.Errorf("another program: %q, and when it is known %q %v", got, again, err)
		}
		x.other.stop()
	})
	t.Run("at another descriptor", func(t *testing.T) {
		x.apply(t, deny("127.0.0.1:1"))
		where := x.subject.serve(t, "127.0.0.1:0")
		x.apply(t, deny(where))
		done(t, x.subject, "", "move", where)
		_, _ = knock("", where, false) // it is seen to be somewhere else
		x.lookAgain(t)
		unanswered(t, nil, "", "", where)
		done(t, x.subject, "", "unserve", where)
	})
	t.Run("by where it comes from", func(t *testing.T) {
		where := x.subject.serve(t, "[::]:0")
		port := netip.MustParseAddrPort(where).Port()
		when := fmt.Sprintf("net.local.port == %d && !net.remote.address.within(\"127.0.0.2/32\")", port)
		some := x.text("mode: enforce\n  fallback: kill", "on: [net.accept], action: deny, when: '"+when+"'")
		all := strings.Replace(some, fmt.Sprintf("\n  subject: process.exe.path == %q", x.subject.exe), "", 1)
		list := strings.Replace(strings.Replace(all, "\n  fallback: kill", "\n  fallback: kill\n  default: {net.accept: deny}", 1), "action: deny, when: '"+when+"'",
			fmt.Sprintf("action: allow, when: 'net.local.port != %d || net.remote.address == \"127.0.0.2\"'", port), 1)
		policies := []string{some, all, list}
		if atHook(rung) {
			if err := x.compileError(some); err == nil || !strings.Contains(err.Error(), "asks nothing of the process") {
				t.Errorf("a rule on a process and who connects to it: %v", err)
			}
			policies = policies[1:]
		}
		for _, p := range policies {
			x.applyText(t, p)
			unanswered(t, x.subject, where, "127.0.0.3:0", at("127.0.0.1", where))
			unanswered(t, x.subject, where, "[::1]:0", at("[::1]", where))
			answered(t, x.subject, where, "127.0.0.2:0", at("127.0.0.1", where))
			done(t, x.subject, "", "take-now", where)
		}
		done(t, x.subject, "", "unserve", where)
	})
	t.Run("MPTCP", func(t *testing.T) {
		where := x.subject.serve(t, "127.0.0.1:0", "mptcp")
		x.applyText(t, everybody(deny(where)))
		unanswered(t, x.subject, where, "", where)
		x.apply(t)
		answered(t, x.subject, where, "", where)
		done(t, x.subject, "", "unserve", where)
	})
	t.Run("flood", func(t *testing.T) { x.synFlood(t, deny) })
}

// lookAgain does what the agent does in a few seconds.
func (x *effect) lookAgain(t *testing.T) {
	t.Helper()
	for range 8 {
		must(t, x.e.Refresh())
	}
}

// synFlood: SYNs of many sources to one socket are all dropped and counted, and some are told.
func (x *effect) synFlood(t *testing.T, deny func(where string) string) {
	where := x.subject.serve(t, "0.0.0.0:0")
	x.apply(t, deny(where))
	unanswered(t, x.subject, where, "", at("127.0.0.1", where))
	x.forget()
	count := func() OpCounters {
		t.Helper()
		c, err := x.e.Counters()
		must(t, err)
		return c.Ops[pavise.OpAccept]
	}
	before, begun := count(), time.Now()
	const many = 400
	for i := range many {
		_, own, err := sockaddr(fmt.Sprintf("127.77.%d.%d:0", i/200, 1+i%200))
		must(t, err)
		_, to, err := sockaddr(at("127.0.0.1", where))
		must(t, err)
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		must(t, err)
		must(t, unix.Bind(fd, own))
		if err := unix.Connect(fd, to); !errors.Is(err, unix.EINPROGRESS) {
			t.Fatal(err)
		}
		defer unix.Close(fd)
	}
	crowd := x.event(t, "a crowd", func(e *pavise.Event) bool {
		return e.Op == pavise.OpAccept && netip.AddrFrom16(e.Net.Remote).IsUnspecified()
	})
	if x.rule(crowd) != "r0" || crowd.PID != x.subject.pid(t) || crowd.Net.RemotePort != 0 {
		t.Errorf("event %+v", crowd)
	}
	after, took := count(), time.Since(begun)
	x.mu.Lock()
	told := len(x.events)
	x.mu.Unlock()
	if n := after.Seen - before.Seen; n < many || after.Delivered+after.Folded+after.Lost != after.Seen || after.Lost != 0 {
		t.Errorf("%d SYNs: %+v, before %+v", many, after, before)
	}
	if most := 66 * (1 + int(took/time.Second)); told > most {
		t.Errorf("%d events in %v, at most %d are to be told", told, took, most)
	}
	t.Logf("%d SYNs, %d events in %v", many, told, took)
	done(t, x.subject, "0", "waits", where)
	done(t, x.subject, "", "unserve", where)
}

// everybody is a policy of one rule about all processes.
func everybody(rule string) string {
	return fmt.Sprintf("{apiVersion: pavise.dev/v1alpha1, kind: Policy, metadata: {name: p}, spec: {mode: enforce, fallback: kill, rules: [{name: r0, %s}]}}", rule)
}
