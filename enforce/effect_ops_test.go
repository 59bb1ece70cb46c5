package enforce

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/pavise-project/pavise"
	"github.com/pavise-project/pavise/internal/kerntest"
	"golang.org/x/sys/unix"
)

// A trial is one way to do what an operation is about. It is done without a rule, when it must have its effect; then, with the rules of its family, by the
// subject, when it must fail and have none and be told, and by the other actor, when it must have it again.
type trial struct {
	name string
	op   pavise.Op
	deed string
	args []string // "@" stands for the trial's own directory
	want string   // the event, as describe writes it; with "..." at its end, what it begins with

	files   []string                              // made in the directory before each time: directories end in a slash
	data    string                                // what the deed tells of its effect
	fails   syscall.Errno                         // and fails with although nobody refuses it
	refused syscall.Errno                         // what a refusal looks like, if not EPERM
	silent  bool                                  // a refusal looks like success
	look    func(t *testing.T, dir string) string // the state of the object, where the deed does not tell; of files, snapshot
	reset   func(t *testing.T, dir string)

	free  bool   // not what the rules forbid: it goes through under them too
	kill  bool   // a kill rule forbids it
	since [2]int // the first kernel that can do it
	noLow bool   // not judged at kill-on-return
	other bool   // a socket of another family than IPv4 and IPv6: not judged by cgroup, but on return
	child bool   // it is done by a child of the actor
	anew  bool   // the subject must be another process than before
}

type opRule struct {
	op     pavise.Op
	when   string // "" for always
	action string // "" for deny
}

// describe writes what an event is about, beside who did it.
func describe(e *pavise.Event) string {
	if e.Op.OnSocket() {
		return strings.Join([]string{pavise.FamilyNames.Name(uint64(e.Net.Family)), pavise.TypeNames.Name(uint64(e.Net.Type)),
			pavise.ProtocolNames.Name(uint64(e.Net.Protocol))}, " ")
	}
	var parts []string
	for _, p := range []struct{ name, value string }{
		{"", e.File.Path}, {"alias ", e.File.Alias}, {"new ", e.Act.NewPath}, {"name ", e.Act.Name}, {"target ", e.Act.Target.Path},
		{"pid ", zeroless(uint64(e.Act.Target.PID))}, {"value ", zeroless(e.Act.Value)}, {"and ", zeroless(e.Act.Value2)},
	} {
		if p.value != "" {
			parts = append(parts, p.name+p.value)
		}
	}
	if e.Op == pavise.OpCreate {
		parts = append(parts, fmt.Sprintf("mode %o", e.File.Mode))
	}
	return strings.Join(parts, " ")
}

func zeroless(n uint64) string {
	if n == 0 {
		return ""
	}
	return strconv.FormatUint(n, 10)
}

// family tries what some operations are about, with one application of rules.
func (x *effect) family(t *testing.T, base string, rules []opRule, trials []trial) {
	t.Helper()
	start := time.Now()
	rules = slices.DeleteFunc(rules, func(r opRule) bool { return x.e.status[r.op].Rung == pavise.RungNone })
	if len(rules) == 0 {
		kerntest.Require(t, kerntest.Trampoline)
		t.Fatal("none of the operations can be judged")
	}
	var texts []string
	for _, r := range rules {
		action := r.action
		if action == "" {
			action = "deny"
		}
		text := fmt.Sprintf("on: [%s], action: %s", r.op, action)
		if r.when != "" {
			text += fmt.Sprintf(", when: %q", r.when)
		}
		texts = append(texts, text)
	}
	left := trials[:0:0]
	var missing []string
	for i, tr := range trials {
		switch st := x.e.status[tr.op]; {
		case st.Rung == pavise.RungNone || st.Rung == pavise.RungKillOnReturn && tr.noLow:
			missing = append(missing, tr.name)
			continue
		case !kerntest.AtLeast(tr.since[0], tr.since[1]):
			t.Logf("%s needs Linux %d.%d", tr.name, tr.since[0], tr.since[1])
			continue
		}
		// Its own directory has a short name: that of a Unix socket has 108 bytes.
		tr.place(filepath.Join(base, strconv.Itoa(i)))
		if tr.look == nil && len(tr.files) > 0 && tr.data == "" && tr.fails == 0 {
			tr.look = func(_ *testing.T, dir string) string { return snapshot(dir) }
		}
		// The event of another process is not folded into one that is alike.
		tr.anew = slices.ContainsFunc(left, func(l trial) bool { return l.op == tr.op && l.want == tr.want })
		left = append(left, tr)
		t.Run("without a rule/"+tr.name, func(t *testing.T) { tr.does(t, x.subject) })
	}
	if len(missing) > 0 {
		t.Run("not judged here", func(t *testing.T) {
			t.Logf("%q", missing)
			kerntest.Require(t, kerntest.Trampoline)
			t.Error("they should be")
		})
	}
	free := time.Now()
	x.apply(t, texts...)
	applied := time.Now()
	for i := range left {
		tr := &left[i]
		t.Run(tr.name, func(t *testing.T) {
			if tr.free {
				tr.does(t, x.subject)
				return
			}
			tr.isRefused(t, x, rules)
			tr.does(t, x.other)
		})
	}
	judged := time.Now()
	x.apply(t)
	t.Logf("without rules %v, %d rules applied in %v, judged in %v, taken away in %v", free.Sub(start).Round(time.Millisecond), len(texts),
		applied.Sub(free).Round(time.Millisecond), judged.Sub(applied).Round(time.Millisecond), time.Since(judged).Round(time.Millisecond))
}

// place puts a directory where "@" stands.
func (tr *trial) place(dir string) {
	args := []string{dir}
	for _, a := range tr.args {
		args = append(args, strings.ReplaceAll(a, "@", dir))
	}
	tr.args = args
	tr.want = strings.ReplaceAll(tr.want, "@", dir)
}

func (tr *trial) dir() string { return tr.args[0] }

// prepare makes the trial's object anew.
func (tr *trial) prepare(t *testing.T) {
	t.Helper()
	if len(tr.files) > 0 {
		must(t, os.RemoveAll(tr.dir()))
		must(t, os.MkdirAll(tr.dir(), 0o755))
	}
	for _, f := range tr.files {
		path := filepath.Join(tr.dir(), f)
		if strings.HasSuffix(f, "/") {
			must(t, os.MkdirAll(path, 0o755))
			continue
		}
		must(t, os.MkdirAll(filepath.Dir(path), 0o755))
		write(t, path, f)
	}
	if tr.reset != nil {
		tr.reset(t, tr.dir())
	}
}

func (tr *trial) state(t *testing.T) string {
	if tr.look == nil {
		return ""
	}
	return tr.look(t, tr.dir())
}

// does has an actor do the deed, which must have its effect.
func (tr *trial) does(t *testing.T, a *actor) {
	t.Helper()
	tr.prepare(t)
	was := tr.state(t)
	o := a.do(t, tr.deed, tr.args[1:]...)
	if o.Killed || o.Errno != tr.fails || tr.fails == 0 && o.Err != "" || o.Data != tr.data {
		t.Errorf("%s %q by %s: %s, want %q and error %d", tr.deed, tr.args[1:], filepath.Base(a.exe), o, tr.data, tr.fails)
	}
	if tr.look != nil { // a signal takes its time
		until(t, fmt.Sprintf("%s %q by %s has an effect: it is still\n%s", tr.deed, tr.args[1:], filepath.Base(a.exe), was), func() bool { return tr.look(t, tr.dir()) != was })
	}
}

// isRefused has the subject do the deed, which must fail, have no effect and be told.
func (tr *trial) isRefused(t *testing.T, x *effect, rules []opRule) {
	t.Helper()
	rung := x.e.status[tr.op].Rung
	if tr.other {
		rung = low(rung)
	}
	tr.prepare(t)
	if tr.anew {
		x.subject.stop()
	}
	pid := x.subject.pid(t)
	was := tr.state(t)
	o := x.subject.do(t, tr.deed, tr.args[1:]...)
	killed := tr.kill || rung == pavise.RungKillOnReturn
	refused := tr.refused
	if refused == 0 {
		refused = unix.EPERM
	}
	switch {
	case o.Killed != killed, o.Data != "", !killed && tr.silent && o.Err != "", !killed && !tr.silent && o.Errno != refused:
		t.Errorf("%s %q at rung %s: %s", tr.deed, tr.args[1:], rung, o)
	}
	if is := tr.state(t); is != was {
		t.Errorf("%s %q at rung %s had an effect: it was\n%sand is\n%s", tr.deed, tr.args[1:], rung, was, is)
	}
	action := pavise.ActionDeny
	if killed {
		action = pavise.ActionKill
	} else if x.subject.pid(t) != pid {
		t.Errorf("%s %q: the process did not live on", tr.deed, tr.args[1:])
	}
	want, open := strings.CutSuffix(tr.want, "...")
	var seen []string
	e := x.event(t, fmt.Sprintf("%s of %q", tr.op, tr.want), func(e *pavise.Event) bool {
		if (e.PID == pid) == tr.child {
			return false
		}
		is := describe(e)
		seen = append(seen, fmt.Sprintf("%s %s", e.Op, is))
		return e.Op == tr.op && (is == want || open && strings.HasPrefix(is, want))
	})
	var rule int
	if n, err := fmt.Sscanf(x.rule(e), "r%d", &rule); n != 1 || rule >= len(rules) || rules[rule].op != tr.op {
		t.Errorf("event of rule %s (%v): %+v", x.rule(e), err, rules)
	}
	if e.Action != action || e.Monitor || e.Rung != rung || e.Gen == 0 || e.ExecID == 0 {
		t.Errorf("event %s %s monitor %v rung %s, want %s by %s", e.Op, e.Action, e.Monitor, e.Rung, action, rung)
	}
}

// TestKernelOpsFile: names and attributes of files, by every call that changes them.
func TestKernelOpsFile(t *testing.T) {
	x := theEffect(t)
	base := x.place(t)
	in := func(dir string) string { return fmt.Sprintf("file.path.glob(%q)", base+"/*/"+dir+"/**") }
	xattr := `file.xattr in ["trusted.a", "security.capability", "system.posix_acl_access"]`
	rules := []opRule{
		{op: pavise.OpCreate, when: in("create")},
		{op: pavise.OpDelete, when: in("delete")},
		{op: pavise.OpDelete, when: in("kill"), action: "kill"},
		{op: pavise.OpRename, when: in("rename")},
		{op: pavise.OpRename, when: fmt.Sprintf("file.new_path.glob(%q)", base+"/*/renamed/**")},
		{op: pavise.OpLink, when: in("link")},
		{op: pavise.OpLink, when: fmt.Sprintf("file.new_path.glob(%q)", base+"/*/linked/**")},
		{op: pavise.OpSymlink, when: `file.target == "/etc/shadow" && ` + in("symlink")},
		{op: pavise.OpTruncate, when: in("truncate")},
		{op: pavise.OpChmod, when: `file.new_mode.has("04000") && ` + in("chmod")},
		{op: pavise.OpChown, when: `(file.new_owner.id == 1234 || file.new_group.id == 1234) && ` + in("chown")},
		{op: pavise.OpSetxattr, when: xattr + " && " + in("xattr")},
	}
	// A file system that forgets names, unlike tmpfs: the kernel then asks before it knows whether the file is there. Nobody may be killed for one that is.
	cold, err := os.MkdirTemp("/var/tmp", "effect")
	must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(cold) })
	there := write(t, filepath.Join(cold, "there"), "there")
	forget := func(t *testing.T, _ string) {
		_ = os.Remove(filepath.Join(cold, "new"))
		must(t, os.WriteFile("/proc/sys/vm/drop_caches", []byte("2"), 0))
	}
	rules = append(rules, opRule{op: pavise.OpCreate, when: fmt.Sprintf("file.path.under(%q)", cold), action: "kill"})
	f := func(names ...string) []string { return names }
	kept := func(*testing.T, string) string { return snapshot(cold) }
	trials := []trial{
		{name: "open with O_CREAT of a name that is not cached", op: pavise.OpCreate, deed: "open", args: f(filepath.Join(cold, "new"), "creates"), reset: forget, look: kept,
			want: filepath.Join(cold, "new") + " mode 100600", kill: true},
		{name: "open with O_CREAT of a file that is there", op: pavise.OpCreate, deed: "open", args: f(there, "creates"), reset: forget, free: true},
		{name: "open creates", op: pavise.OpCreate, deed: "open", args: f("@/create/f", "create"), files: f("create/"), want: "@/create/f mode 100600"},
		{name: "open creates, by io_uring", op: pavise.OpCreate, deed: "uring-create", args: f("@/create/f"), files: f("create/"), want: "@/create/f mode 100600"},
		{name: "mkdir", op: pavise.OpCreate, deed: "mkdir", args: f("@/create/d"), files: f("create/"), want: "@/create/d mode 40755"},
		{name: "mkdir, by io_uring", op: pavise.OpCreate, deed: "uring-mkdir", args: f("@/create/d"), files: f("create/"), want: "@/create/d mode 40755"},
		{name: "mknod of a fifo", op: pavise.OpCreate, deed: "mknod", args: f("@/create/p", "0010600", "0"), files: f("create/"), want: "@/create/p mode 10600"},
		{name: "mknod of a device", op: pavise.OpCreate, deed: "mknod", args: f("@/create/d", "0020600", "0x103"), files: f("create/"), want: "@/create/d mode 20600"},
		{name: "symlink creates", op: pavise.OpCreate, deed: "symlink", args: f("to", "@/create/l"), files: f("create/"), want: "@/create/l mode 120777"},
		{name: "symlink creates, by io_uring", op: pavise.OpCreate, deed: "uring-symlink", args: f("to", "@/create/l"), files: f("create/"), want: "@/create/l mode 120777"},
		{name: "link creates", op: pavise.OpCreate, deed: "link", args: f("@/f", "@/create/l"), files: f("f", "create/"), want: "@/create/l mode 100600"},
		{name: "link creates, by io_uring", op: pavise.OpCreate, deed: "uring-link", args: f("@/f", "@/create/l"), files: f("f", "create/"), want: "@/create/l mode 100600"},
		{name: "rename creates", op: pavise.OpCreate, deed: "rename", args: f("@/f", "@/create/f"), files: f("f", "create/"), want: "@/create/f mode 100600"},
		{name: "rename creates, by io_uring", op: pavise.OpCreate, deed: "uring-rename", args: f("@/f", "@/create/f"), files: f("f", "create/"), want: "@/create/f mode 100600"},
		{name: "exchange creates", op: pavise.OpCreate, deed: "exchange", args: f("@/create/f", "@/f"), files: f("f", "create/f"), want: "@/create/f mode 100600"},
		{name: "bind of a Unix socket", op: pavise.OpCreate, deed: "bind-tcp", args: f("@/create/s"), files: f("create/"), want: "@/create/s mode 140755"},
		{name: "O_TMPFILE gets a name", op: pavise.OpCreate, deed: "tmpfile", args: f("@/create", "@/create/f"), files: f("create/"), want: "@/create/f mode 100600"},
		{name: "open of what is there creates nothing", op: pavise.OpCreate, deed: "open", args: f("@/create/f", "trunc"), files: f("create/f"), free: true},
		{name: "create elsewhere", op: pavise.OpCreate, deed: "mkdir", args: f("@/elsewhere"), files: f("create/"), free: true},

		{name: "unlink", op: pavise.OpDelete, deed: "unlink", args: f("@/delete/f"), files: f("delete/f"), want: "@/delete/f"},
		{name: "unlink, by io_uring", op: pavise.OpDelete, deed: "uring-unlink", args: f("@/delete/f"), files: f("delete/f"), want: "@/delete/f"},
		{name: "unlink, killed", op: pavise.OpDelete, deed: "unlink", args: f("@/kill/f"), files: f("kill/f"), want: "@/kill/f", kill: true},
		{name: "rmdir", op: pavise.OpDelete, deed: "rmdir", args: f("@/delete/d"), files: f("delete/d/"), want: "@/delete/d"},
		{name: "rename away", op: pavise.OpDelete, deed: "rename", args: f("@/delete/f", "@/f"), files: f("delete/f"), want: "@/delete/f"},
		{name: "rename away, by io_uring", op: pavise.OpDelete, deed: "uring-rename", args: f("@/delete/f", "@/f"), files: f("delete/f"), want: "@/delete/f"},
		{name: "rename over", op: pavise.OpDelete, deed: "rename", args: f("@/f", "@/delete/f"), files: f("f", "delete/f"), want: "@/delete/f"},
		{name: "exchange", op: pavise.OpDelete, deed: "exchange", args: f("@/f", "@/delete/f"), files: f("f", "delete/f"), want: "@/delete/f"},
		{name: "delete elsewhere", op: pavise.OpDelete, deed: "unlink", args: f("@/f"), files: f("f"), free: true},

		{name: "rename", op: pavise.OpRename, deed: "rename", args: f("@/rename/f", "@/g"), files: f("rename/f"), want: "@/rename/f new @/g"},
		{name: "rename of a directory", op: pavise.OpRename, deed: "noreplace", args: f("@/rename/d", "@/e"), files: f("rename/d/f"), want: "@/rename/d new @/e"},
		{name: "rename, by io_uring", op: pavise.OpRename, deed: "uring-rename", args: f("@/rename/f", "@/g"), files: f("rename/f"), want: "@/rename/f new @/g"},
		{name: "rename into", op: pavise.OpRename, deed: "rename", args: f("@/f", "@/renamed/f"), files: f("f", "renamed/"), want: "@/f new @/renamed/f"},
		{name: "exchange, the other direction", op: pavise.OpRename, deed: "exchange", args: f("@/f", "@/rename/g"), files: f("f", "rename/g"), want: "@/rename/g new @/f"},
		{name: "exchange into", op: pavise.OpRename, deed: "exchange", args: f("@/renamed/f", "@/g"), files: f("renamed/f", "g"), want: "@/g new @/renamed/f"},
		{name: "rename elsewhere", op: pavise.OpRename, deed: "rename", args: f("@/f", "@/g"), files: f("f"), free: true},

		{name: "link", op: pavise.OpLink, deed: "link", args: f("@/link/f", "@/l"), files: f("link/f"), want: "@/link/f new @/l"},
		{name: "link, by io_uring", op: pavise.OpLink, deed: "uring-link", args: f("@/link/f", "@/l"), files: f("link/f"), want: "@/link/f new @/l"},
		{name: "link by /proc/self/fd", op: pavise.OpLink, deed: "link-proc", args: f("@/link/f", "@/l"), files: f("link/f"), want: "@/link/f new @/l"},
		{name: "link by AT_EMPTY_PATH", op: pavise.OpLink, deed: "link-fd", args: f("@/link/f", "@/l"), files: f("link/f"), want: "@/link/f new @/l"},
		{name: "link into", op: pavise.OpLink, deed: "link", args: f("@/f", "@/linked/l"), files: f("f", "linked/"), want: "@/f new @/linked/l"},
		{name: "link elsewhere", op: pavise.OpLink, deed: "link", args: f("@/f", "@/l"), files: f("f"), free: true},

		{name: "symlink", op: pavise.OpSymlink, deed: "symlink", args: f("/etc/shadow", "@/symlink/l"), files: f("symlink/"), want: "@/symlink/l name /etc/shadow"},
		{name: "symlink, by io_uring", op: pavise.OpSymlink, deed: "uring-symlink", args: f("/etc/shadow", "@/symlink/l"), files: f("symlink/"), want: "@/symlink/l name /etc/shadow"},
		{name: "symlink to another", op: pavise.OpSymlink, deed: "symlink", args: f("/etc/shadow-", "@/symlink/l"), files: f("symlink/"), free: true},

		{name: "truncate", op: pavise.OpTruncate, deed: "truncate", args: f("@/truncate/f", "3"), files: f("truncate/f"), want: "@/truncate/f"},
		{name: "ftruncate", op: pavise.OpTruncate, deed: "ftruncate", args: f("@/truncate/f", "0"), files: f("truncate/f"), want: "@/truncate/f"},
		{name: "ftruncate that extends", op: pavise.OpTruncate, deed: "ftruncate", args: f("@/truncate/f", "100"), files: f("truncate/f"), want: "@/truncate/f"},
		{name: "open with O_TRUNC", op: pavise.OpTruncate, deed: "open", args: f("@/truncate/f", "trunc"), files: f("truncate/f"), want: "@/truncate/f"},
		{name: "truncate elsewhere", op: pavise.OpTruncate, deed: "truncate", args: f("@/f", "0"), files: f("f"), free: true},

		{name: "chmod", op: pavise.OpChmod, deed: "chmod", args: f("@/chmod/f", "04755"), files: f("chmod/f"), want: "@/chmod/f value 2541"},
		{name: "fchmod", op: pavise.OpChmod, deed: "fchmod", args: f("@/chmod/f", "04700"), files: f("chmod/f"), want: "@/chmod/f value 2496"},
		{name: "fchmodat2", op: pavise.OpChmod, deed: "fchmodat2", args: f("@/chmod/f", "06755"), files: f("chmod/f"), want: "@/chmod/f value 3565", since: [2]int{6, 6}},
		{name: "chmod without the bit", op: pavise.OpChmod, deed: "chmod", args: f("@/chmod/f", "0755"), files: f("chmod/f"), free: true},

		{name: "chown", op: pavise.OpChown, deed: "chown", args: f("@/chown/f", "1234", "-1"), files: f("chown/f"), want: "@/chown/f value 1234 and 4294967295"},
		{name: "chown of the group", op: pavise.OpChown, deed: "chown", args: f("@/chown/f", "-1", "1234"), files: f("chown/f"), want: "@/chown/f value 4294967295 and 1234"},
		{name: "lchown", op: pavise.OpChown, deed: "lchown", args: f("@/chown/f", "1234", "1234"), files: f("chown/f"), want: "@/chown/f value 1234 and 1234"},
		{name: "fchown", op: pavise.OpChown, deed: "fchown", args: f("@/chown/f", "1234", "0"), files: f("chown/f"), want: "@/chown/f value 1234"},
		{name: "fchownat", op: pavise.OpChown, deed: "fchownat", args: f("@/chown/f", "1234", "5"), files: f("chown/f"), want: "@/chown/f value 1234 and 5"},
		{name: "chown to another", op: pavise.OpChown, deed: "chown", args: f("@/chown/f", "1235", "1235"), files: f("chown/f"), free: true},

		{name: "setxattr", op: pavise.OpSetxattr, deed: "setxattr", args: f("@/xattr/f", "trusted.a"), files: f("xattr/f"), want: "@/xattr/f name trusted.a"},
		{name: "lsetxattr", op: pavise.OpSetxattr, deed: "lsetxattr", args: f("@/xattr/f", "trusted.a"), files: f("xattr/f"), want: "@/xattr/f name trusted.a"},
		{name: "fsetxattr", op: pavise.OpSetxattr, deed: "fsetxattr", args: f("@/xattr/f", "trusted.a"), files: f("xattr/f"), want: "@/xattr/f name trusted.a"},
		{name: "fsetxattr, by io_uring", op: pavise.OpSetxattr, deed: "uring-fsetxattr", args: f("@/xattr/f", "trusted.a"), files: f("xattr/f"), want: "@/xattr/f name trusted.a"},
		{name: "file capabilities", op: pavise.OpSetxattr, deed: "setxattr", args: f("@/xattr/f", "security.capability"), files: f("xattr/f"), want: "@/xattr/f name security.capability"},
		{name: "an ACL", op: pavise.OpSetxattr, deed: "setxattr", args: f("@/xattr/f", "system.posix_acl_access"), files: f("xattr/f"), want: "@/xattr/f name system.posix_acl_access"},
		{name: "setxattr of another", op: pavise.OpSetxattr, deed: "setxattr", args: f("@/xattr/f", "trusted.b"), files: f("xattr/f"), free: true},
		{name: "removexattr", op: pavise.OpSetxattr, deed: "removexattr", args: f("@/xattr/f", "trusted.a"), files: f("xattr/f"), want: "@/xattr/f name trusted.a",
			reset: func(t *testing.T, dir string) {
				must(t, unix.Setxattr(dir+"/xattr/f", "trusted.a", []byte("there"), 0))
			}},
	}
	x.family(t, base, rules, trials)
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, e := range x.events {
		if e.File.Path == there {
			t.Errorf("an open that makes nothing is told as %s, %s", e.Op, e.Action)
		}
	}
}

// TestKernelOpsMount: mounts, each in a mount namespace of the actor's own.
func TestKernelOpsMount(t *testing.T) {
	x := theEffect(t)
	base := x.place(t)
	must(t, unix.Mount("effect", base, "tmpfs", 0, ""))
	t.Cleanup(func() { _ = unix.Unmount(base, unix.MNT_DETACH) })
	must(t, x.e.Refresh())
	below := fmt.Sprintf(" && file.path.under(%q)", base)
	in := func(dir string) string { return fmt.Sprintf("file.path.glob(%q)", base+"/*/"+dir) }
	rules := []opRule{
		{op: pavise.OpMount, when: `mount.type == "tmpfs" && ` + in("tmpfs")},
		{op: pavise.OpMount, when: "mount.bind" + below},
		{op: pavise.OpMount, when: "mount.remount && mount.readonly" + below},
		{op: pavise.OpMount, when: "mount.move" + below},
		{op: pavise.OpMount, when: "mount.propagation" + below},
		{op: pavise.OpUmount, when: in("umount")},
		{op: pavise.OpPivotRoot, when: in("pivot")},
		{op: pavise.OpChroot, when: in("chroot")},
	}
	f := func(names ...string) []string { return names }
	x.family(t, base, rules, []trial{
		{name: "mount", op: pavise.OpMount, deed: "mount-tmpfs", args: f("@/tmpfs"), files: f("tmpfs/"), data: "mounted", want: "@/tmpfs new none name tmpfs"},
		{name: "fsmount", op: pavise.OpMount, deed: "fsmount", args: f("@/tmpfs"), files: f("tmpfs/"), data: "mounted", want: "@/tmpfs new / name tmpfs"},
		{name: "bind", op: pavise.OpMount, deed: "mount-bind", args: f("@/src", "@/to"), files: f("src/", "to/"), data: "mounted", want: "@/to new @/src value 4096"},
		{name: "open_tree", op: pavise.OpMount, deed: "open-tree", args: f("@/src", "@/to"), files: f("src/", "to/"), data: "mounted", want: "@/to new @/src name tmpfs value 4096"},
		{name: "open_tree of a whole mount", op: pavise.OpMount, deed: "open-tree", args: f(base, "@/to"), files: f("to/"), data: "mounted", want: "@/to new " + base + " name tmpfs value 4096"},
		{name: "remount", op: pavise.OpMount, deed: "mount-remount", args: f("@/to"), files: f("to/"), data: "mounted", want: "@/to value 33"},
		{name: "move", op: pavise.OpMount, deed: "mount-move", args: f("@/from", "@/to"), files: f("from/", "to/"), data: "mounted", want: "@/to new @/from value 8192"},
		{name: "move_mount", op: pavise.OpMount, deed: "move-mount", args: f("@/from", "@/to"), files: f("from/", "to/"), data: "mounted", want: "@/to new @/from name tmpfs value 8192"},
		{name: "propagation", op: pavise.OpMount, deed: "mount-shared", args: f("@/to"), files: f("to/"), data: "mounted", want: "@/to value 1048576"},
		{name: "mount elsewhere", op: pavise.OpMount, deed: "mount-tmpfs", args: f("@/to"), files: f("to/"), data: "mounted", free: true},
		// docs/THREATS.md says that these two are not covered.
		{name: "mount_setattr", op: pavise.OpMount, deed: "setattr", args: f("@/to"), files: f("to/"), data: "mounted", free: true},
		{name: "fsconfig of a mounted file system", op: pavise.OpMount, deed: "reconfigure", args: f("@/to"), files: f("to/"), data: "mounted", free: true},

		{name: "umount", op: pavise.OpUmount, deed: "umount", args: f("@/umount"), files: f("umount/"), data: "mounted", want: "@/umount"},
		{name: "umount, detached", op: pavise.OpUmount, deed: "detach", args: f("@/umount"), files: f("umount/"), data: "mounted", want: "@/umount"},
		{name: "umount elsewhere", op: pavise.OpUmount, deed: "umount", args: f("@/to"), files: f("to/"), data: "mounted", free: true},
		{name: "pivot_root", op: pavise.OpPivotRoot, deed: "pivot-root", args: f("@/pivot"), files: f("pivot/"), data: "another root", want: "@/pivot new @/pivot"},
		{name: "pivot_root elsewhere", op: pavise.OpPivotRoot, deed: "pivot-root", args: f("@/to"), files: f("to/"), data: "another root", free: true},
		{name: "chroot", op: pavise.OpChroot, deed: "change-root", args: f("@/chroot"), files: f("chroot/"), data: "another root", want: "@/chroot"},
		{name: "chroot elsewhere", op: pavise.OpChroot, deed: "change-root", args: f("@/to"), files: f("to/"), data: "another root", free: true},
	})
}

// aVictim is a process that does nothing, of an executable of its own, in a process group of its own.
func aVictim(t *testing.T, x *effect) *exec.Cmd {
	t.Helper()
	exe := filepath.Join(x.place(t), "victim")
	must(t, os.Link(x.other.exe, exe))
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), actorEnv+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	in, err := cmd.StdinPipe()
	must(t, err)
	must(t, cmd.Start())
	t.Cleanup(func() {
		_ = in.Close()
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return cmd
}

// isStopped tells whether a process is stopped by a signal.
func isStopped(t *testing.T, pid int) bool {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	must(t, err)
	f := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	return f[0] == "T"
}

// until waits for what must come.
func until(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("it does not come that %s", what)
		}
	}
}

// TestKernelOpsProcess: what processes do to others and to themselves.
func TestKernelOpsProcess(t *testing.T) {
	x := theEffect(t)
	base := x.place(t)
	v := aVictim(t, x)
	pid := v.Process.Pid
	victim := strconv.Itoa(pid)
	target := fmt.Sprintf("target.exe.path == %q", v.Path)
	addr := strconv.FormatUint(uint64(uintptr(unsafe.Pointer(unsafe.StringData(secret)))), 10) // the same there: its program is the same
	rules := []opRule{
		{op: pavise.OpSignal, when: target + ` && signal in ["SIGSTOP", "SIGTSTP", "SIGTTIN", "SIGTTOU"]`},
		{op: pavise.OpPtrace, when: target},
		{op: pavise.OpPtrace, when: fmt.Sprintf(`target.exe.path == %q && ptrace.mode == "attach"`, x.subject.exe)},
		{op: pavise.OpSetid, when: "setid.user.id >= 1230 && setid.user.id < 1235 || setid.group.id >= 1230 && setid.group.id < 1235"},
		{op: pavise.OpSetid, when: "setid.user.id == 4294967295 && setid.group.id == 4294967295"},
		{op: pavise.OpCapset, when: `!("CAP_NET_RAW" in capset.effective)`},
		{op: pavise.OpUserns},
	}
	stops := func(name, deed, who string, sig syscall.Signal) trial {
		return trial{name: name, op: pavise.OpSignal, deed: deed, args: []string{who, strconv.Itoa(int(sig))}, want: fmt.Sprintf("target %s pid %d value %d", v.Path, pid, sig),
			look: func(t *testing.T, _ string) string { return fmt.Sprintln(isStopped(t, pid)) },
			reset: func(t *testing.T, _ string) {
				must(t, unix.Kill(pid, unix.SIGCONT))
				until(t, "the victim goes on", func() bool { return !isStopped(t, pid) })
			}}
	}
	told := func(value int) string { return fmt.Sprintf("target %s pid %d value %d", v.Path, pid, value) }
	f := func(names ...string) []string { return names }
	x.family(t, base, rules, []trial{
		stops("kill", "kill", victim, unix.SIGSTOP),
		stops("kill of a group", "kill", "-"+victim, unix.SIGTSTP),
		stops("tgkill", "tgkill", victim, unix.SIGTTIN),
		stops("sigqueue", "sigqueue", victim, unix.SIGTTOU),
		stops("pidfd_send_signal", "pidfd-signal", victim, unix.SIGSTOP),
		{name: "another signal", op: pavise.OpSignal, deed: "kill", args: f(victim, strconv.Itoa(int(unix.SIGCONT))), free: true},
		{name: "signal 0", op: pavise.OpSignal, deed: "kill", args: f(victim, "0"), free: true},
		{name: "a signal to itself", op: pavise.OpSignal, deed: "own-signal", data: "sent", free: true},

		{name: "PTRACE_ATTACH", op: pavise.OpPtrace, deed: "attach", args: f(victim), data: "attached", want: told(pavise.PtraceAttach)},
		{name: "PTRACE_SEIZE", op: pavise.OpPtrace, deed: "seize", args: f(victim), data: "attached", want: told(pavise.PtraceAttach)},
		{name: "process_vm_readv", op: pavise.OpPtrace, deed: "vm-readv", args: f(victim, addr), data: secret, want: told(pavise.PtraceAttach)},
		{name: "/proc/PID/mem", op: pavise.OpPtrace, deed: "read-mem", args: f(victim, addr), data: secret, refused: unix.EACCES, want: told(pavise.PtraceAttach)},
		{name: "/proc/PID/maps", op: pavise.OpPtrace, deed: "maps", args: f(victim), data: "0", refused: unix.EACCES, want: told(pavise.PtraceRead)},
		// docs/THREATS.md says that this is not covered.
		{name: "/proc/PID/maps with CAP_PERFMON", op: pavise.OpPtrace, deed: "maps-perfmon", args: f(victim), data: "0", free: true, since: [2]int{7, 0}},
		{name: "pidfd_getfd", op: pavise.OpPtrace, deed: "pidfd-getfd", args: f(victim), data: "got", want: told(pavise.PtraceAttach)},
		{name: "PTRACE_TRACEME", op: pavise.OpPtrace, deed: "traceme", data: "stopped for its tracer", child: true, want: "target " + x.subject.exe + " pid ..."},
		{name: "ptrace of another", op: pavise.OpPtrace, deed: "vm-readv", args: f(strconv.Itoa(os.Getpid()), addr), data: secret, free: true},

		{name: "setuid", op: pavise.OpSetid, deed: "setid", args: f("setuid", "1234"), data: "changed", want: "value 1234 and 4294967295"},
		{name: "setreuid", op: pavise.OpSetid, deed: "setid", args: f("setreuid", "1233"), data: "changed", want: "value 1233 and 4294967295"},
		{name: "setresuid", op: pavise.OpSetid, deed: "setid", args: f("setresuid", "1232"), data: "changed", want: "value 1232 and 4294967295"},
		{name: "setfsuid", op: pavise.OpSetid, deed: "setid", args: f("setfsuid", "1231"), data: "changed", want: "value 1231 and 4294967295", silent: true},
		{name: "setgid", op: pavise.OpSetid, deed: "setid", args: f("setgid", "1234"), data: "changed", want: "value 4294967295 and 1234"},
		{name: "setresgid", op: pavise.OpSetid, deed: "setid", args: f("setresgid", "1233"), data: "changed", want: "value 4294967295 and 1233"},
		{name: "setfsgid", op: pavise.OpSetid, deed: "setid", args: f("setfsgid", "1232"), data: "changed", want: "value 4294967295 and 1232", silent: true},
		{name: "setgroups", op: pavise.OpSetid, deed: "setid", args: f("setgroups", "1234"), data: "changed", want: "value 4294967295 and 4294967295", since: [2]int{6, 1}},
		{name: "setuid to another", op: pavise.OpSetid, deed: "setid", args: f("setuid", "1235"), data: "changed", free: true},

		{name: "capset", op: pavise.OpCapset, deed: "dropcap", args: f(strconv.Itoa(unix.CAP_NET_RAW)), data: "dropped", want: "value ..."},
		{name: "capset of another", op: pavise.OpCapset, deed: "dropcap", args: f(strconv.Itoa(unix.CAP_SYS_CHROOT)), data: "dropped", free: true},

		{name: "clone of a user namespace", op: pavise.OpUserns, deed: "userns-clone", data: "another namespace"},
		{name: "unshare of a user namespace", op: pavise.OpUserns, deed: "userns-unshare", data: "another namespace", child: true},
	})
}

// TestKernelOpsMemory: memory that becomes executable.
func TestKernelOpsMemory(t *testing.T) {
	x := theEffect(t)
	base := x.place(t)
	file := write(t, filepath.Join(base, "library"), strings.Repeat("code", 4096))
	other := write(t, filepath.Join(base, "other"), strings.Repeat("code", 4096))
	f := func(names ...string) []string { return names }
	bits := func(n int) string { return fmt.Sprintf("value %d", n) }
	const (
		anon, written, writable = pavise.MemAnonymous, pavise.MemWritten, pavise.MemWritable
		wx                      = written | writable
	)
	selfMem := trial{name: "code written through /proc/self/mem", op: pavise.OpMemExec, deed: "self-mem", args: f(file), data: "written", free: true}
	if _, err := deeds["self-mem"]([]string{file}); errors.Is(err, unix.EIO) {
		t.Log("this kernel lets nobody write through /proc/self/mem what is not writable: proc_mem.force_override=")
		selfMem.data, selfMem.fails = "", unix.EIO
	}
	x.family(t, base, []opRule{
		{op: pavise.OpMemExec, when: "memory.written"},
		{op: pavise.OpMemExec, when: "memory.anonymous && !memory.written"},
		{op: pavise.OpMemExec, when: "memory.stack || memory.heap"},
		{op: pavise.OpMemExec, when: "file.memfd"},
		{op: pavise.OpMemExec, when: fmt.Sprintf("file.path == %q", other)},
	}, []trial{
		{name: "anonymous", op: pavise.OpMemExec, deed: "mmap-rx", data: "executable", want: bits(anon)},
		{name: "anonymous, writable", op: pavise.OpMemExec, deed: "mmap-rwx", data: "executable", want: bits(anon | wx)},
		{name: "written, then executable", op: pavise.OpMemExec, deed: "mprotect-rx", data: "executable", want: bits(anon | written)},
		{name: "written, then writable and executable", op: pavise.OpMemExec, deed: "mprotect-rwx", data: "executable", want: bits(anon | wx)},
		{name: "written, then read-only, then executable", op: pavise.OpMemExec, deed: "mprotect-r-rx", data: "executable", want: bits(anon | written)},
		{name: "shared, written, then read-only, then executable", op: pavise.OpMemExec, deed: "mprotect-shared", data: "executable", want: bits(anon | written)},
		{name: "memfd", op: pavise.OpMemExec, deed: "mmap-memfd", data: "executable", want: "/memfd:code"},
		{name: "a file by its path", op: pavise.OpMemExec, deed: "mmap-file", args: f(other), data: "executable", want: other},
		{name: "text relocation", op: pavise.OpMemExec, deed: "text-relocation", args: f(file), data: "executable", want: file + " " + bits(written)},
		{name: "stack", op: pavise.OpMemExec, deed: "stack", data: "executable", want: bits(anon | wx | pavise.MemStack)},
		{name: "heap", op: pavise.OpMemExec, deed: "heap", data: "executable", want: bits(anon | wx | pavise.MemHeap)},
		{name: "a library", op: pavise.OpMemExec, deed: "library", args: f(file), data: "executable", free: true},
		{name: "a library at once", op: pavise.OpMemExec, deed: "mmap-file", args: f(file), data: "executable", free: true},
		// docs/THREATS.md says that this is not covered.
		selfMem,
	})
}

// TestKernelOpsKernel: the kernel's own doors.
func TestKernelOpsKernel(t *testing.T) {
	x := theEffect(t)
	base := x.place(t)
	low := func(op pavise.Op, when string) string {
		if x.e.status[op].Rung == pavise.RungKillOnReturn { // it does not know what is asked for
			return ""
		}
		return when
	}
	key := 0
	if x.e.status[pavise.OpKeyring].Rung != pavise.RungNone {
		var err error
		if key, err = unix.AddKey("user", "pavise-shown", []byte("key"), unix.KEY_SPEC_USER_KEYRING); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _, _ = unix.KeyctlInt(unix.KEYCTL_UNLINK, key, unix.KEY_SPEC_USER_KEYRING, 0, 0) })
		must(t, unix.KeyctlSetperm(key, 0x3f3f0000)) // all to its user
	}
	rules := []opRule{
		{op: pavise.OpModule, when: fmt.Sprintf(`module.source == "memory" || module.source == "file" && file.path.glob(%q)`, base+"/*/no")},
		{op: pavise.OpModule, when: `module.source == "request" && module.name == "fs-romfs"`},
		{op: pavise.OpKexec, when: fmt.Sprintf(`kexec.source == "memory" || file.path.glob(%q)`, base+"/*/no")},
		{op: pavise.OpBPF, when: `bpf.command == "map_create"`},
		{op: pavise.OpPerf, when: low(pavise.OpPerf, `perf.type == "cpu"`)},
		{op: pavise.OpKeyring, when: `key.type == "user" && key.description in ["pavise-no", "pavise-shown"]`},
		{op: pavise.OpIOUring, when: low(pavise.OpIOUring, `io_uring.request == "setup" && process.user.id == 1234`)},
	}
	if x.e.status[pavise.OpIOUring].Rung != pavise.RungKillOnReturn {
		rules = append(rules, opRule{op: pavise.OpIOUring, when: `io_uring.request in ["sqpoll", "credentials", "command"]`})
	}
	// A file system that nothing uses, and whose module all kernels have that are tested. The mount fails in any case.
	loaded := func(t *testing.T, _ string) string {
		text, err := os.ReadFile("/proc/modules")
		must(t, err)
		return fmt.Sprintln(strings.Contains("\n"+string(text), "\nromfs "))
	}
	request := trial{name: "request of a module", op: pavise.OpModule, deed: "mount-unknown", args: []string{"@", "romfs"}, files: []string{"f"}, fails: unix.ENOENT, refused: unix.ENODEV,
		want: "name fs-romfs value 3", look: loaded, reset: func(t *testing.T, _ string) {
			if err := unix.DeleteModule("romfs", unix.O_NONBLOCK); err != nil && !errors.Is(err, unix.ENOENT) {
				t.Fatal(err)
			}
		}}
	f := func(names ...string) []string { return names }
	x.family(t, base, rules, []trial{
		{name: "finit_module", op: pavise.OpModule, deed: "finit-module", args: f("@/no"), files: f("no"), fails: unix.ENOEXEC, want: "@/no value 1"},
		{name: "finit_module elsewhere", op: pavise.OpModule, deed: "finit-module", args: f("@/yes"), files: f("yes"), fails: unix.ENOEXEC, free: true},
		{name: "init_module", op: pavise.OpModule, deed: "init-module", fails: unix.ENOEXEC, want: "value 2"},
		request,
		{name: "kexec_load", op: pavise.OpKexec, deed: "kexec-load", fails: unix.EINVAL, want: "value 2"},
		{name: "kexec_file_load", op: pavise.OpKexec, deed: "kexec-file-load", args: f("@/no"), files: f("no"), fails: unix.ENOEXEC, want: "@/no value 1"},
		{name: "bpf", op: pavise.OpBPF, deed: "map-create", data: "made", want: ""},
		{name: "another command of bpf", op: pavise.OpBPF, deed: "next-program", free: true},
		{name: "perf_event_open", op: pavise.OpPerf, deed: "perf", args: f("1"), data: "made", want: "..."},
		{name: "perf_event_open of what there is not", op: pavise.OpPerf, deed: "perf", args: f("9999"), fails: unix.ENOENT, free: true, noLow: true},
		{name: "add_key", op: pavise.OpKeyring, deed: "add-key", args: f("pavise-no"), data: "added", want: "new pavise-no name user"},
		{name: "keyctl reads", op: pavise.OpKeyring, deed: "read-key", args: f(strconv.Itoa(key)), data: "key", refused: unix.ENOKEY, want: "new pavise-shown name user"},
		{name: "keyctl describes", op: pavise.OpKeyring, deed: "describe-key", args: f(strconv.Itoa(key)), data: "pavise-shown", want: "new pavise-shown name user"},
		{name: "add_key of another", op: pavise.OpKeyring, deed: "add-key", args: f("pavise-yes"), data: "added", free: true},
		{name: "io_uring_setup", op: pavise.OpIOUring, deed: "uring-setup", args: f("1234"), data: "made", want: "value 1"},
		{name: "io_uring_setup by another user", op: pavise.OpIOUring, deed: "uring-setup", args: f("1235"), data: "made", free: true, noLow: true},
		{name: "a ring with a thread of the kernel", op: pavise.OpIOUring, deed: "uring-sqpoll", data: "made", want: "value 2", noLow: true},
		{name: "credentials of another", op: pavise.OpIOUring, deed: "uring-credentials", data: "taken", want: "value 3", noLow: true},
		{name: "a command to a device", op: pavise.OpIOUring, deed: "uring-command", args: f("/dev/null"), want: "value 4", noLow: true},
	})
}

// TestKernelOpsObject: sockets by what they are, devices and the kernel's variables by any name.
func TestKernelOpsObject(t *testing.T) {
	x := theEffect(t)
	base := x.place(t)
	node := filepath.Join(base, "node")
	must(t, os.Mkdir(node, 0o755))
	must(t, unix.Mount("effect", node, "tmpfs", 0, ""))
	t.Cleanup(func() { _ = unix.Unmount(node, unix.MNT_DETACH) })
	node += "/n"
	must(t, unix.Mknod(node, unix.S_IFCHR|0o666, int(unix.Mkdev(1, 5))))
	must(t, unix.Mknod(node+"2", unix.S_IFCHR|0o666, int(unix.Mkdev(1, 5))))
	must(t, unix.Mknod(node+"ull", unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	must(t, x.e.Refresh())
	rules := []opRule{
		{op: pavise.OpSocket, when: `net.type == "raw" && net.family in ["ipv4", "ipv6"]`},
		{op: pavise.OpSocket, when: `net.family == "netlink" && net.type == "raw" || net.family == "unix" && net.type == "seqpacket"`},
		{op: pavise.OpSocket, when: `net.family in ["packet", "vsock"]`},
		{op: pavise.OpSocket, when: `net.family == "ipv4" && net.protocol == "sctp" || net.family == "ipv6" && net.protocol == "tcp"`},
		{op: pavise.OpDevice, when: "device.major == 1 && device.minor == 5"},
		{op: pavise.OpDevice, when: `file.path == "/dev/full"`},
		{op: pavise.OpSysctl, when: `sysctl.name == "net.ipv4.ip_default_ttl" && file.access.write`},
		{op: pavise.OpSysctl, when: `sysctl.name == "kernel/ostype" && file.access.read`},
		{op: pavise.OpSysctl, when: `sysctl.name in ["kernel/core_pattern", "kernel/modprobe"] && file.access.write`},
		{op: pavise.OpOpen, when: `file.name == "release_agent" && file.fs == "cgroup" && file.access.write`},
	}
	// A hierarchy of cgroup v1 without a controller, which any kernel lets root make.
	agent := filepath.Join(base, "cgroup")
	must(t, os.Mkdir(agent, 0o755))
	must(t, unix.Mount("effect", agent, "cgroup", 0, "none,name=pavise-effect"))
	t.Cleanup(func() { _ = unix.Unmount(agent, unix.MNT_DETACH) })
	agent += "/release_agent"
	// written is a trial that writes to a file of the kernel's, and has its text back afterwards.
	written := func(name string, op pavise.Op, path, want string) trial {
		was, err := os.ReadFile(path)
		must(t, err)
		back := func() error { return os.WriteFile(path, was, 0) }
		t.Cleanup(func() { must(t, back()) })
		return trial{name: name, op: op, deed: "write-file", args: []string{path, "/none/such"}, want: want,
			look: func(t *testing.T, _ string) string {
				text, err := os.ReadFile(path)
				must(t, err)
				return string(text) + "\n"
			},
			reset: func(t *testing.T, _ string) { must(t, back()) }}
	}
	zeros := strings.Repeat("\x00", 256)
	f := func(names ...string) []string { return names }
	trials := []trial{
		{name: "raw socket", op: pavise.OpSocket, deed: "socket", args: f("2", "3", "1"), data: "made", want: "ipv4 raw icmp"},
		{name: "netlink socket", op: pavise.OpSocket, deed: "socket", args: f("16", "3", "0"), data: "made", want: "netlink raw ", other: true},
		{name: "socketpair", op: pavise.OpSocket, deed: "socketpair", args: f("1", "5", "0"), data: "made", want: "unix seqpacket ", other: true},
		{name: "socket, by io_uring", op: pavise.OpSocket, deed: "uring-socket", args: f("2", "3", "1"), data: "made", want: "ipv4 raw icmp", noLow: true},
		{name: "another socket", op: pavise.OpSocket, deed: "socket", args: f("2", "2", "0"), data: "made", free: true},

		{name: "device by its numbers", op: pavise.OpDevice, deed: "read", args: f("/dev/zero"), data: zeros, want: "/dev/zero value 1 and 5"},
		{name: "another node of the device", op: pavise.OpDevice, deed: "read", args: f(node), data: zeros, want: node + " value 1 and 5"},
		{name: "device, by io_uring", op: pavise.OpDevice, deed: "uring-read", args: f(node + "2"), data: zeros, want: node + "2 value 1 and 5", noLow: true},
		{name: "device by its path", op: pavise.OpDevice, deed: "read", args: f("/dev/full"), data: zeros, want: "/dev/full value 1 and 7"},
		{name: "another device", op: pavise.OpDevice, deed: "read", args: f(node + "ull"), free: true},

		{name: "variable of the kernel, written", op: pavise.OpSysctl, deed: "sysctl-write", args: f("net/ipv4/ip_default_ttl", "77"), data: "set",
			want: "/proc/sys/net/ipv4/ip_default_ttl name net/ipv4/ip_default_ttl"},
		{name: "variable of the kernel, read", op: pavise.OpSysctl, deed: "read", args: f("/proc/sys/kernel/ostype"), data: "Linux\n", want: "/proc/sys/kernel/ostype name kernel/ostype"},
		{name: "variable of the kernel by another name", op: pavise.OpSysctl, deed: "read", args: f("/proc/self/root/proc/thread-self/../../../sys/kernel/ostype"), data: "Linux\n",
			want: "/proc/sys/kernel/ostype name kernel/ostype"},
		{name: "variable of the kernel, by io_uring", op: pavise.OpSysctl, deed: "uring-read", args: f("/proc/sys/kernel/ostype"), data: "Linux\n", want: "/proc/sys/kernel/ostype name kernel/ostype", noLow: true},
		{name: "another variable", op: pavise.OpSysctl, deed: "sysctl-write", args: f("net/ipv4/ip_nonlocal_bind", "1"), data: "set", free: true},

		{name: "a node that it makes itself", op: pavise.OpDevice, deed: "mknod-read", args: f(node+"3", "0x105"), data: zeros, want: node + "3 value 1 and 5"},
		written("release_agent of a cgroup", pavise.OpOpen, agent, agent),
	}
	if kerntest.VM() != "" { // they are the whole machine's
		for _, v := range []string{"core_pattern", "modprobe"} {
			trials = append(trials, written("kernel."+v, pavise.OpSysctl, "/proc/sys/kernel/"+v, fmt.Sprintf("/proc/sys/kernel/%s name kernel/%s", v, v)))
		}
	}
	for _, s := range []struct{ name, family, typ, protocol, want string }{
		{"packet socket", "17", "3", "0x0300", "packet raw "},
		{"vsock socket", "40", "1", "0", "vsock stream "},
		{"SCTP socket", "2", "1", "132", "ipv4 stream sctp"},
		{"MPTCP socket", "10", "1", "262", "ipv6 stream tcp"},
	} {
		if fd, err := unix.Socket(num(s.family), num(s.typ), num(s.protocol)); err != nil && kerntest.VM() == "" {
			t.Logf("%s: %v", s.name, err)
			continue
		} else if err == nil {
			unix.Close(fd)
		}
		trials = append(trials, trial{name: s.name, op: pavise.OpSocket, deed: "socket", args: f(s.family, s.typ, s.protocol), data: "made", want: s.want, other: num(s.family) > 10})
	}
	x.family(t, base, rules, trials)
}
