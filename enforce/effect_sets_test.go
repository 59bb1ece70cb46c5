package enforce

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pavise-project/pavise"
	"github.com/pavise-project/pavise/policy"
	"golang.org/x/sys/unix"
)

// applySets is apply for rules that name sets, which have more entries than a rule could name.
func (x *effect) applySets(t *testing.T, sets map[string][]string, rules ...string) {
	t.Helper()
	text := x.text("mode: enforce\n  fallback: kill", rules...)
	ps, err := policy.ParseWith("test.yaml", []byte(text), func(file string) ([]byte, error) {
		b := []byte(strings.Join(sets[file], "\n") + "\n")
		for i := range 3000 {
			switch file {
			case "paths":
				b = fmt.Appendf(b, "/nowhere/%d\n", i)
			case "prefixes":
				b = fmt.Appendf(b, "2001:db8:%x::/48\n", i)
			}
		}
		return b, nil
	})
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	img, _, err := policy.Compile(ps, x.m)
	must(t, err)
	_, err = x.e.Apply(img)
	must(t, err)
	x.img = img
}

// TestKernelSetFiles: a set of paths holds for its files by all their names, as a rule on one path does.
func TestKernelSetFiles(t *testing.T) {
	x := theEffect(t)
	x.needs(t, pavise.OpOpen)
	dir := x.place(t)
	at := func(s string) string { return filepath.Join(dir, s) }
	must(t, os.Mkdir(at("tm"), 0o755))
	must(t, os.Mkdir(at("tm2"), 0o755))
	file, late := write(t, at("secret"), secret), at("late")
	open := write(t, at("secret2"), "open\n")
	must(t, os.Link(file, at("hard")))
	must(t, os.Symlink(file, at("soft")))
	must(t, unix.Mount("effect", at("tm"), "tmpfs", 0, ""))
	t.Cleanup(func() { _ = unix.Unmount(at("tm2"), unix.MNT_DETACH); _ = unix.Unmount(at("tm"), unix.MNT_DETACH) })
	mounted := write(t, at("tm/secret"), secret)
	must(t, unix.Mount(at("tm"), at("tm2"), "", unix.MS_BIND, ""))
	must(t, x.e.Refresh())
	ways := []string{file, at("hard"), at("soft"), "/proc/self/root" + file, at("tm2/secret")}
	for _, w := range ways {
		done(t, x.subject, secret, "read", w)
	}
	x.applySets(t, map[string][]string{"paths": {file, mounted, late}}, `on: [file.open], action: deny, when: 'file.path.inSet("paths")'`)
	for _, w := range ways {
		x.stopped(t, pavise.OpOpen, "read", w)
		done(t, x.other, secret, "read", w)
	}
	done(t, x.subject, "open\n", "read", open)
	// A file that comes into being: a link to it is known when its name has been looked at again.
	write(t, late, secret)
	must(t, os.Link(late, at("late-hard")))
	x.stopped(t, pavise.OpOpen, "read", late)
	for range 10 {
		must(t, x.e.Refresh())
	}
	x.stopped(t, pavise.OpOpen, "read", at("late-hard"))
	x.applySets(t, map[string][]string{"paths": {mounted}}, `on: [file.open], action: deny, when: 'file.path.inSet("paths")'`)
	done(t, x.subject, secret, "read", at("hard"))
	x.stopped(t, pavise.OpOpen, "read", at("tm2/secret"))
	// An allow-list of names.
	x.applySets(t, map[string][]string{"names": {"secret2"}}, `on: [file.open], action: deny, when: 'file.path.under("`+dir+`") && !file.name.inSet("names")'`)
	x.stopped(t, pavise.OpOpen, "read", file)
	done(t, x.subject, "open\n", "read", open)
}

// TestKernelSetSubject: who acts is in a set, by the path of the executable and by its name.
func TestKernelSetSubject(t *testing.T) {
	x := theEffect(t)
	x.needs(t, pavise.OpOpen)
	file := write(t, filepath.Join(x.place(t), "secret"), secret)
	for when, sets := range map[string]map[string][]string{
		`process.exe.path.inSet("paths")`: {"paths": {x.subject.exe}},
		`process.exe.name.inSet("names")`: {"names": {filepath.Base(x.subject.exe)}},
	} {
		ps, err := policy.ParseWith("test.yaml", fmt.Appendf(nil, "apiVersion: pavise.dev/v1alpha1\nkind: Policy\nmetadata: {name: p}\nspec:\n  mode: enforce\n  fallback: kill\n  subject: '%s'\n  rules: [{name: r, on: [file.open], action: deny, when: file.path == %q}]\n", when, file),
			func(f string) ([]byte, error) { return []byte(strings.Join(sets[f], "\n")), nil })
		must(t, err)
		img, _, err := policy.Compile(ps, x.m)
		must(t, err)
		done(t, x.subject, secret, "read", file)
		_, err = x.e.Apply(img)
		must(t, err)
		x.stopped(t, pavise.OpOpen, "read", file)
		done(t, x.other, secret, "read", file)
		x.apply(t)
	}
}

// TestKernelSetConnect: a set of prefixes.
func TestKernelSetConnect(t *testing.T) {
	x := theEffect(t)
	x.needs(t, pavise.OpConnect)
	ap := netip.MustParseAddrPort(serve(t, "tcp4", "127.0.0.1:0"))
	to, near := ap.String(), netip.AddrPortFrom(netip.MustParseAddr("127.0.1.1"), ap.Port()).String()
	l, err := net.Listen("tcp4", near)
	must(t, err)
	defer l.Close()
	mapped := fmt.Sprintf("[::ffff:127.0.0.1]:%d", ap.Port())
	for _, a := range []string{to, near, mapped} {
		done(t, x.subject, "", "connect", a)
	}
	x.applySets(t, map[string][]string{"prefixes": {"127.0.0.0/24", "::1"}}, `on: [net.connect], action: deny, when: 'net.remote.address.inSet("prefixes")'`)
	x.stopped(t, pavise.OpConnect, "connect", to)
	x.stopped(t, pavise.OpConnect, "connect", mapped)
	done(t, x.subject, "", "connect", near)
	done(t, x.other, "", "connect", to)
}

// TestKernelSetUnix: a set of sockets' paths and abstract names; at the cgroup rung it needs the other program, as a rule on one path does.
func TestKernelSetUnix(t *testing.T) {
	x := theEffect(t)
	x.needs(t, pavise.OpConnect)
	rung := x.e.status[pavise.OpConnect].Rung
	if rung == pavise.RungCgroup {
		rung = pavise.RungKillOnReturn
	}
	dir := x.place(t)
	path, other, abstract := serve(t, "unix", filepath.Join(dir, "s")), serve(t, "unix", filepath.Join(dir, "o")), serve(t, "unix", "@pavise-set"+dir)
	for _, n := range []string{path, other, abstract} {
		done(t, x.subject, "", "connect", n)
	}
	x.applySets(t, map[string][]string{"sockets": {path, abstract}}, `on: [net.connect], action: deny, when: 'net.remote.path.inSet("sockets")'`)
	for _, n := range []string{path, abstract} {
		x.stoppedBy(t, rung, "connect", n)
		done(t, x.other, "", "connect", n)
	}
	done(t, x.subject, "", "connect", other)
}

// setClock makes the kernel take now for another time of the week: it moves what the agent says of the clock, not the clock.
func (x *effect) setClock(t *testing.T, day time.Weekday, clock string) {
	t.Helper()
	at, err := time.Parse("15:04:05", clock)
	must(t, err)
	x.e.mu.Lock()
	defer x.e.mu.Unlock()
	x.e.clock.follow()
	now := time.Now().In(x.e.clock.zone)
	want := time.Date(now.Year(), now.Month(), now.Day()+int(day-now.Weekday()), at.Hour(), at.Minute(), at.Second(), 0, x.e.clock.zone)
	x.e.clock.shift = want.Sub(now)
	must(t, x.e.tick())
}

// itsClock lets the kernel have the host's time again.
func (x *effect) itsClock(t *testing.T) {
	x.e.mu.Lock()
	defer x.e.mu.Unlock()
	x.e.clock.shift = 0
	must(t, x.e.tick())
}

// TestKernelBusinessHours: a user may not accept TCP connections outside business hours.
func TestKernelBusinessHours(t *testing.T) {
	x := theEffect(t)
	x.needs(t, pavise.OpAccept)
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	must(t, err)
	addr := l.Addr().String()
	must(t, l.Close())
	t.Cleanup(func() { x.itsClock(t) })
	done(t, x.subject, "", "accept", addr)
	x.apply(t, fmt.Sprintf(`on: [net.accept], action: deny, when: 'process.user.id == %d && net.protocol == "tcp" && (time.hour < 9 || time.hour >= 17 || time.day in ["sat", "sun"])'`, os.Geteuid()))
	for _, c := range []struct {
		day   time.Weekday
		clock string
		may   bool
	}{
		{time.Monday, "08:59:20", false},
		{time.Monday, "09:00:10", true},
		{time.Friday, "16:59:20", true},
		{time.Friday, "17:00:10", false},
		{time.Saturday, "12:00:00", false},
		{time.Sunday, "23:59:20", false},
		{time.Wednesday, "12:00:00", true},
	} {
		x.setClock(t, c.day, c.clock)
		if c.may {
			done(t, x.subject, "", "accept", addr)
		} else {
			x.stopped(t, pavise.OpAccept, "accept", addr)
			done(t, x.other, "", "accept", addr)
		}
	}
}

// TestKernelRate: what comes too often is refused, by process and by user, and counts go on over a change of policies.
func TestKernelRate(t *testing.T) {
	x := theEffect(t)
	x.needs(t, pavise.OpConnect)
	ap := netip.MustParseAddrPort(serve(t, "tcp4", "127.0.0.1:0"))
	to := ap.String()
	rule := func(rate string) string {
		return fmt.Sprintf("on: [net.connect], action: deny, when: 'net.remote.port == %d && %s'", ap.Port(), rate)
	}
	times := func(n int) {
		t.Helper()
		for range n {
			done(t, x.subject, "", "connect", to)
		}
	}
	times(6) // no rule
	x.apply(t, rule(`rate.process("1h") > 3`))
	times(3)
	x.stopped(t, pavise.OpConnect, "connect", to)
	x.stopped(t, pavise.OpConnect, "connect", to)
	done(t, x.other, "", "connect", to)
	x.subject.stop() // another process
	times(2)
	x.apply(t, "on: [net.bind], action: audit", rule(`rate.process("1h") > 2`)) // another rule
	times(2)
	x.stopped(t, pavise.OpConnect, "connect", to)
	x.apply(t)
	times(3)
	x.apply(t, "on: [net.bind], action: audit, when: 'net.local.port == 1'", rule(`rate.process("1h") > 2`)) // r1 as it was, beside another r0
	x.stopped(t, pavise.OpConnect, "connect", to)

	x.apply(t, rule(`rate.user("1h") > 3`))
	times(2)
	x.subject.stop()
	times(1)
	x.stopped(t, pavise.OpConnect, "connect", to)
	x.subject.stop()
	x.stopped(t, pavise.OpConnect, "connect", to)

	x.apply(t, rule(`rate.container("1h") > 1`))
	times(1)
	x.stopped(t, pavise.OpConnect, "connect", to)

	// It is over when as much time has passed without an act.
	x.apply(t, rule(`rate.process("100ms") > 1`))
	x.subject.pid(t)
	var o outcome
	for end := time.Now().Add(10 * time.Second); !errors.Is(o.Errno, unix.EPERM); o = x.subject.do(t, "connect", to) {
		if time.Now().After(end) {
			t.Fatal("never too often")
		}
	}
	time.Sleep(210 * time.Millisecond)
	times(1)
}
