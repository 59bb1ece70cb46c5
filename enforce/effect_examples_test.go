package enforce

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pavise-project/pavise"
	"github.com/pavise-project/pavise/internal/kerntest"
	"github.com/pavise-project/pavise/policy"
	"golang.org/x/sys/unix"
)

func init() {
	// ADDRESS:PORT, tcp or udp: in a network namespace of its own, to which the address belongs, so that nothing leaves the machine.
	deeds["reach"] = func(a []string) (string, error) {
		ap, err := netip.ParseAddrPort(a[0])
		if err != nil {
			return "", err
		}
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return "", err
		}
		if err := loopbackUp(); err != nil {
			return "", fmt.Errorf("lo: %w", err)
		}
		if err := addAddress(ap.Addr()); err != nil {
			return "", fmt.Errorf("add %s: %w", ap.Addr(), err)
		}
		typ := map[string]int{"tcp": unix.SOCK_STREAM, "udp": unix.SOCK_DGRAM}[a[1]]
		err = with(a[0], typ, func(server int, sa unix.Sockaddr) error {
			if err := unix.Bind(server, sa); err != nil {
				return fmt.Errorf("bind: %w", err)
			}
			if a[1] == "udp" {
				return with(a[0], typ, func(client int, _ unix.Sockaddr) error {
					if err := unix.Sendto(client, []byte("x"), 0, sa); err != nil {
						return err
					}
					_, _, err := unix.Recvfrom(server, make([]byte, 1), unix.MSG_DONTWAIT)
					return err
				})
			}
			if err := unix.Listen(server, 1); err != nil {
				return fmt.Errorf("listen: %w", err)
			}
			return with(a[0], typ, func(client int, _ unix.Sockaddr) error {
				if err := unix.Connect(client, sa); err != nil {
					return err
				}
				in, _, err := unix.Accept4(server, unix.SOCK_CLOEXEC)
				if err == nil {
					unix.Close(in)
				}
				return err
			})
		})
		if err != nil {
			return "", err
		}
		return "reached", nil
	}
}

// addAddress gives lo an IPv4 address in the thread's network namespace.
func addAddress(a netip.Addr) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	r, err := unix.NewIfreq("lo:1")
	if err != nil {
		return err
	}
	ip := a.As4()
	if err := r.SetInet4Addr(ip[:]); err != nil {
		return err
	}
	return unix.IoctlIfreq(fd, unix.SIOCSIFADDR, r)
}

// example makes policies/examples/NAME the one that judges, in enforce mode, and of processes below a directory alone.
func (x *effect) example(t *testing.T, name, below string) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("..", "policies", "examples", name, "policy.yaml"))
	must(t, err)
	text := string(b)
	edit := func(from string, to func(string) string) {
		_, rest, ok := strings.Cut(text, "\n  "+from+": ")
		line, _, _ := strings.Cut(rest, "\n")
		if !ok {
			t.Fatalf("%s has no %s", name, from)
		}
		text = strings.Replace(text, "\n  "+from+": "+line+"\n", "\n  "+from+": "+to(line)+"\n", 1)
	}
	edit("mode", func(string) string { return "enforce" })
	edit("subject", func(s string) string { return fmt.Sprintf("process.exe.path.under(%q) && (%s)", below, s) })
	x.applyText(t, text)
}

// program makes an actor of this name, below dir.
func program(t *testing.T, dir, name string, attr *syscall.SysProcAttr) *actor {
	t.Helper()
	self, err := os.Executable()
	must(t, err)
	must(t, os.MkdirAll(dir, 0o755))
	a := &actor{exe: filepath.Join(dir, name), attr: attr}
	must(t, copyFile(a.exe, self))
	t.Cleanup(a.stop)
	return a
}

// container makes a cgroup as Docker's with systemd is, and returns it open.
func container(t *testing.T) *os.File {
	t.Helper()
	root, err := kerntest.CgroupRoot()
	must(t, err)
	slice, err := os.MkdirTemp(root, "pavise-test-")
	must(t, err)
	scope := filepath.Join(slice, "docker-"+strings.Repeat("0123456789abcdef", 4)+".scope")
	must(t, os.Mkdir(scope, 0o755))
	f, err := os.Open(scope)
	must(t, err)
	t.Cleanup(func() {
		_ = f.Close()
		err := os.Remove(scope)
		for end := time.Now().Add(5 * time.Second); errors.Is(err, unix.EBUSY) && time.Now().Before(end); err = os.Remove(scope) {
			time.Sleep(10 * time.Millisecond) // what ended there is still counted
		}
		if err = errors.Join(err, os.Remove(slice)); err != nil {
			t.Error(err)
		}
	})
	return f
}

// TestKernelExamples enforces the policies of policies/examples on live processes, and leaves others alone.
func TestKernelExamples(t *testing.T) {
	x := theEffect(t)
	must(t, os.Chmod(x.dir, 0o755)) // for processes of another user
	// told waits for the event of a verdict and checks whose rule it was.
	told := func(t *testing.T, op pavise.Op, rule string) {
		t.Helper()
		e := x.event(t, rule, func(e *pavise.Event) bool { return e.Op == op })
		if x.rule(e) != rule || e.Monitor || e.Rung != x.e.status[op].Rung {
			t.Errorf("event %s %s monitor %v rung %s rule %s", e.Op, e.Action, e.Monitor, e.Rung, x.rule(e))
		}
	}

	t.Run("curl-in-container", func(t *testing.T) {
		rung := x.needs(t, pavise.OpExec)
		dir := x.place(t)
		must(t, os.Chmod(dir, 0o777))
		bin, mark := filepath.Join(dir, "bin"), filepath.Join(dir, "mark")
		must(t, os.Mkdir(bin, 0o755))
		curl, wget := reader(t, filepath.Join(bin, "curl")), reader(t, filepath.Join(bin, "wget"))
		cgroup := container(t)
		as := func(name string, uid uint32, inside bool) *actor {
			attr := &syscall.SysProcAttr{Setsid: true, Credential: &syscall.Credential{Uid: uid, Gid: uid}} // a session without a terminal
			if inside {
				attr.UseCgroupFD, attr.CgroupFD = true, int(cgroup.Fd())
			}
			return program(t, filepath.Join(dir, name), "sh", attr)
		}
		user, service, outside := as("user", 1000, true), as("service", 0, true), as("outside", 1000, false)
		// runs starts a program that makes a file, and tells whether it did.
		runs := func(t *testing.T, a *actor, path string) (outcome, bool) {
			t.Helper()
			_ = os.Remove(mark)
			o := a.do(t, "spawn", path, "-c", `: > "$0"`, mark)
			_, err := os.Lstat(mark)
			return o, err == nil
		}
		x.apply(t)
		for _, a := range []*actor{user, service, outside} {
			if o, ran := runs(t, a, curl); !ran {
				t.Fatalf("%s, without the policy: %s", a.exe, o)
			}
		}
		x.example(t, "curl-in-container", dir)
		x.forget()
		pid := user.pid(t)
		o, ran := runs(t, user, curl)
		if ran || atHook(rung) && (o.Killed || o.Errno != unix.EPERM) || rung == pavise.RungKillOnReturn && !o.Killed {
			t.Errorf("a user in a container, rung %s: %s, ran: %v", rung, o, ran)
		}
		told(t, pavise.OpExec, "curl")
		if user.pid(t) != pid {
			t.Error("the caller did not live on")
		}
		for what, c := range map[string]struct {
			a    *actor
			path string
		}{"another program": {user, wget}, "a service in the container": {service, curl}, "a user outside of it": {outside, curl}} {
			if o, ran := runs(t, c.a, c.path); !ran {
				t.Errorf("%s: %s", what, o)
			}
		}
	})

	t.Run("browser-internet", func(t *testing.T) {
		x.needs(t, pavise.OpConnect)
		x.needs(t, pavise.OpSend)
		dir := x.place(t)
		browser, other := program(t, dir, "firefox", nil), program(t, dir, "fetch", nil)
		ways := []struct {
			network, public, private string
			op                       pavise.Op
			rule                     string
		}{
			{"tcp", "203.0.113.7:443", "10.1.2.3:443", pavise.OpConnect, "internet"},
			{"udp", "203.0.113.7:443", "192.168.7.7:53", pavise.OpSend, "internet-datagram"},
		}
		x.apply(t)
		for _, w := range ways {
			done(t, browser, "reached", "reach", w.public, w.network)
		}
		x.example(t, "browser-internet", dir)
		for _, w := range ways {
			x.forget()
			pid := browser.pid(t)
			if o := browser.do(t, "reach", w.public, w.network); o.Errno != unix.EPERM || o.Killed {
				t.Errorf("%s to %s: %s", w.network, w.public, o)
			}
			told(t, w.op, w.rule)
			if browser.pid(t) != pid {
				t.Error("the browser did not live on")
			}
			done(t, browser, "reached", "reach", w.private, w.network)
			done(t, browser, "reached", "reach", "127.0.0.2:8080", w.network)
			done(t, other, "reached", "reach", w.public, w.network)
		}
	})
	t.Run("database-clients", func(t *testing.T) {
		x.needs(t, pavise.OpConnect)
		dir := x.place(t)
		database, proxy := program(t, dir, "postgres", nil), program(t, dir, "socat", nil)
		client, other := program(t, dir, "psql", nil), program(t, dir, "python3", nil)
		at, beside := database.serve(t, "127.0.0.1:0"), proxy.serve(t, "127.0.0.1:0")
		x.apply(t)
		done(t, other, "", "connect", at)
		x.example(t, "database-clients", dir)
		x.forget()
		if o := other.do(t, "connect", at); o.Errno != unix.EPERM || o.Killed {
			t.Errorf("no client of the database: %s", o)
		}
		told(t, pavise.OpConnect, "database")
		done(t, client, "", "connect", at)
		done(t, other, "", "connect", beside)
	})
	t.Run("database-callers", func(t *testing.T) {
		x.needs(t, pavise.OpAccept)
		if slices.Contains(x.e.status[pavise.OpAccept].Missing, policy.DimTargetExe) {
			t.Skip(kerntest.NotExpected + "net.accept is judged before it is known who connects; TestKernelAcceptProcess does without that rung")
		}
		dir := x.place(t)
		database, proxy := program(t, dir, "postgres", nil), program(t, dir, "socat", nil)
		client, other := program(t, dir, "psql", nil), program(t, dir, "python3", nil)
		x.apply(t)
		where := database.serve(t, "127.0.0.1:0")
		done(t, other, "", "connect", where)
		done(t, database, "", "take", where)
		x.example(t, "database-callers", dir)
		done(t, client, "", "connect", where)
		done(t, database, "", "take", where)
		beside := proxy.serve(t, "127.0.0.1:0")
		done(t, other, "", "connect", beside)
		done(t, proxy, "", "take", beside)
		x.forget()
		done(t, other, "", "connect", where)
		if o := database.do(t, "take", where); atHook(x.e.status[pavise.OpAccept].Rung) && (o.Killed || o.Errno != unix.EPERM) || !atHook(x.e.status[pavise.OpAccept].Rung) && !o.Killed {
			t.Errorf("no client of the database: %s", o)
		}
		told(t, pavise.OpAccept, "callers")
	})
	t.Run("management-interface", func(t *testing.T) {
		x.needs(t, pavise.OpAccept)
		if slices.Contains(x.e.status[pavise.OpAccept].Missing, policy.DimInterface) {
			t.Skip(kerntest.NotExpected + "net.accept is judged before it is known by what a connection comes; TestKernelInterface does without that rung")
		}
		dir := x.place(t)
		sshd, nginx, client := program(t, dir, "sshd", nil), program(t, dir, "nginx", nil), program(t, dir, "ssh", nil)
		x.apply(t)
		where, beside := sshd.serve(t, "127.0.0.1:0"), nginx.serve(t, "127.0.0.1:0")
		done(t, client, "", "connect", where)
		done(t, sshd, "", "take", where)
		x.example(t, "management-interface", dir)
		done(t, client, "", "connect", beside)
		done(t, nginx, "", "take", beside)
		x.forget()
		done(t, client, "", "connect", where)
		if o := sshd.do(t, "take", where); atHook(x.e.status[pavise.OpAccept].Rung) && (o.Killed || o.Errno != unix.EPERM) || !atHook(x.e.status[pavise.OpAccept].Rung) && !o.Killed {
			t.Errorf("a connection by lo: %s", o)
		}
		told(t, pavise.OpAccept, "elsewhere")
	})
	t.Run("accept-after-hours", func(t *testing.T) {
		rung := x.needs(t, pavise.OpAccept)
		dir := x.place(t)
		must(t, os.Chmod(dir, 0o755))
		user := program(t, dir, "user", &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 1000, Gid: 1000}})
		service := program(t, dir, "service", nil)
		l, err := net.Listen("tcp4", "127.0.0.1:0")
		must(t, err)
		addr := l.Addr().String()
		must(t, l.Close())
		t.Cleanup(func() { x.itsClock(t) })
		x.apply(t)
		x.setClock(t, time.Saturday, "12:00:00")
		done(t, user, "", "accept", addr)
		x.example(t, "accept-after-hours", dir)
		for _, c := range []struct {
			day   time.Weekday
			clock string
			may   bool
		}{{time.Saturday, "12:00:00", false}, {time.Monday, "12:00:00", true}, {time.Tuesday, "20:00:00", false}} {
			x.setClock(t, c.day, c.clock)
			done(t, service, "", "accept", addr)
			if c.may {
				done(t, user, "", "accept", addr)
				continue
			}
			x.forget()
			user.stop() // of another process it is no repeat, which would be folded
			if o := user.do(t, "accept", addr); atHook(rung) && (o.Killed || o.Errno != unix.EPERM) || rung == pavise.RungKillOnReturn && !o.Killed {
				t.Errorf("%s, %s, rung %s: %s", c.day, c.clock, rung, o)
			}
			told(t, pavise.OpAccept, "after-hours")
		}
	})
}
