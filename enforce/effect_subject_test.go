package enforce

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/pavise-project/pavise"
	"github.com/pavise-project/pavise/policy"
	"golang.org/x/sys/unix"
)

// subjectDeeds are acts of a process that has made itself another.
var subjectDeeds = map[string]func(a []string) (string, error){
	"masked": func(a []string) (string, error) { // PATH: behind arguments that say nothing of what they were
		for _, arg := range os.Args { // the runtime's strings are the memory that /proc shows
			b := unsafe.Slice(unsafe.StringData(arg), len(arg))
			for i := range b {
				b[i] = 'z'
			}
		}
		shown, err := os.ReadFile("/proc/self/cmdline")
		if err != nil {
			return "", err
		}
		if strings.Trim(string(shown), "z\x00") != "" {
			return "", fmt.Errorf("the arguments are still %q", shown)
		}
		return readFD(unix.Open(a[0], readOnly, 0))
	},
	"apart": func(a []string) (string, error) { // FLAGS PATH: in namespaces of the thread's own
		flags, err := strconv.Atoi(a[0])
		if err != nil {
			return "", err
		}
		if err := unix.Unshare(flags); err != nil {
			return "", err
		}
		return readFD(unix.Open(a[1], readOnly, 0))
	},
	"spawn-apart": func(a []string) (string, error) { // FLAGS PROGRAM ARG...
		flags, err := strconv.Atoi(a[0])
		if err != nil {
			return "", err
		}
		var p [2]int
		if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
			return "", err
		}
		defer unix.Close(p[0])
		attr := &syscall.ProcAttr{Files: []uintptr{0, uintptr(p[1]), 2}, Sys: &syscall.SysProcAttr{Cloneflags: uintptr(flags)}}
		if flags&unix.CLONE_NEWUSER != 0 {
			attr.Sys.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 1}}
		}
		pid, err := syscall.ForkExec(a[1], a[1:], attr)
		unix.Close(p[1])
		return output(pid, p[0], err)
	},
	"real": func(a []string) (string, error) { // UID GID PATH: with real ids of these numbers
		uid, err := strconv.Atoi(a[0])
		if err != nil {
			return "", err
		}
		gid, err := strconv.Atoi(a[1])
		if err != nil {
			return "", err
		}
		if _, _, e := unix.RawSyscall(unix.SYS_SETRESGID, uintptr(gid), 0, 0); e != 0 {
			return "", e
		}
		if _, _, e := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(uid), 0, 0); e != 0 {
			return "", e
		}
		return readFD(unix.Open(a[2], readOnly, 0))
	},
}

// reader is a copy of the shell, so that rules can be about it, and the arguments with which it prints a file by itself.
func reader(t *testing.T, path string) string {
	t.Helper()
	sh, err := exec.LookPath("sh")
	must(t, err)
	if sh, err = filepath.EvalSymlinks(sh); err != nil {
		t.Fatal(err)
	}
	must(t, copyFile(path, sh))
	return path
}

const readLine = `read -r x < "$0" && echo "$x"`

// refused expects that a program which the deed runs was stopped, or could not read.
func refused(t *testing.T, a *actor, deed string, args ...string) {
	t.Helper()
	if o := a.do(t, deed, args...); o.Data != "" || !o.Killed && o.Err == "" {
		t.Errorf("%s %q: %s", deed, args, o)
	}
}

// ruleOn is a policy of one rule that denies what when says.
func ruleOn(op pavise.Op, when string) string {
	return fmt.Sprintf(`{apiVersion: pavise.dev/v1alpha1, kind: Policy, metadata: {name: p}, spec: {mode: enforce, fallback: kill,
  rules: [{name: r, on: [%s], action: deny, when: '%s'}]}}`, op, when)
}

// TestKernelSubjectArgs: the arguments are those that exec was given, whatever the process makes of them.
func TestKernelSubjectArgs(t *testing.T) {
	x := theEffect(t)
	x.needs(t, pavise.OpOpen)
	dir := x.place(t)
	file := write(t, filepath.Join(dir, "secret"), secret)
	sh := reader(t, filepath.Join(dir, "sh"))
	on := fmt.Sprintf("file.path == %q && process.exe.path == %q && ", file, sh)
	run := func(args ...string) []string { return append([]string{sh, "-c", readLine, file}, args...) }
	for _, c := range []struct {
		when    string
		no, yes [][]string
	}{
		{`process.args.exists(a, a == "-i")`, [][]string{{"-i"}, {"x", "-i", "y"}}, [][]string{nil, {"-ii"}, {"x-i"}, {""}}},
		{`"-i" in process.args`, [][]string{{"-i"}}, [][]string{{"-x"}}},
		{`process.args.exists(a, a.startsWith("--out"))`, [][]string{{"--out"}, {"a", "--output=x"}}, [][]string{{"x--out"}, {"--ou", "t"}}},
		{`process.args.exists(a, a.contains("://"))`, [][]string{{"http://x"}}, [][]string{{":/", "/"}}},
		{`process.args.exists(a, a.endsWith(".sh"))`, [][]string{{"/tmp/x.sh"}}, [][]string{{"x.sh.gz"}, {"x.s", "h"}}},
		{`process.args.exists(a, a.startsWith("--") && a.endsWith("=x"))`, [][]string{{"--a=x"}}, [][]string{{"--a", "b=x"}, {"--a=xx"}}},
		{`process.args[4] == "-o"`, [][]string{{"-o"}, {"-o", "x"}}, [][]string{nil, {"x", "-o"}}},
		{`process.args[4] != "-o"`, [][]string{{"x"}, {"x", "-o"}}, [][]string{nil, {"-o"}}},
		{`process.args.size() > 5`, [][]string{{"a", "b"}, {"", ""}}, [][]string{nil, {"a"}}},
		{`process.cmdline.contains("a b")`, [][]string{{"a", "b"}, {"a b"}, {"xa", "by"}}, [][]string{{"a", "", "b"}, {"ab"}}},
		{`process.cmdline.endsWith(" -o x")`, [][]string{{"-o", "x"}}, [][]string{{"-o", "x", "y"}, {"-ox"}}},
		{fmt.Sprintf(`process.args == [%q, "-c", %q, %q, "x"]`, sh, readLine, file), [][]string{{"x"}}, [][]string{nil, {"x", ""}}},
		{`!process.args.exists(a, a == "--let-me")`, [][]string{nil, {"x"}}, [][]string{{"--let-me"}}},
	} {
		t.Run(c.when, func(t *testing.T) {
			x.apply(t)
			for _, args := range append(c.no, c.yes...) {
				done(t, x.other, secret, "spawn", run(args...)...)
			}
			x.applyText(t, ruleOn(pavise.OpOpen, strings.ReplaceAll(on+c.when, "'", "''")))
			for _, args := range c.no {
				refused(t, x.other, "spawn", run(args...)...)
			}
			for _, args := range c.yes {
				done(t, x.other, secret, "spawn", run(args...)...)
			}
		})
	}
	t.Run("too long", func(t *testing.T) {
		none := on + `process.args.exists(a, a == "none")`
		long, longest := strings.Repeat("a", argsBytes-len(sh)-len(readLine)-len(file)-8), strings.Repeat("a", argsBytes)
		x.applyText(t, ruleOn(pavise.OpOpen, none))
		done(t, x.other, secret, "spawn", run(long)...)
		refused(t, x.other, "spawn", run(long+"aaaa")...)
		refused(t, x.other, "spawn", run(longest, longest)...)
		x.applyText(t, ruleOn(pavise.OpOpen, "!("+none+")  && "+on+"true"))
		refused(t, x.other, "spawn", run(longest)...)
	})
	t.Run("overwritten", func(t *testing.T) {
		for _, arg := range []string{"--forbidden", "--fine"} {
			a := &actor{exe: x.subject.exe, args: []string{"-a", arg}}
			defer a.stop()
			x.apply(t)
			done(t, a, secret, "masked", file)
			a.stop()
			x.apply(t, fmt.Sprintf(`on: [file.open], action: deny, when: 'file.path == %q && "--forbidden" in process.args'`, file))
			if arg == "--fine" {
				done(t, a, secret, "masked", file)
				done(t, a, secret, "masked", file)
				continue
			}
			refused(t, a, "masked", file)
		}
	})
	t.Run("of a process from before", func(t *testing.T) {
		a := x.early[0]
		x.apply(t, fmt.Sprintf(`on: [file.open], action: deny, when: 'file.path == %q && process.args.size() != 3'`, file))
		done(t, a, secret, "read", file)
		x.apply(t, fmt.Sprintf(`on: [file.open], action: deny, when: 'file.path == %q && process.args[1] == "--early" && "x y" in process.args'`, file))
		refused(t, a, "read", file)
	})
}

// In an init, which runs on the process's first thread: --forget N PATH reads a file behind N forks that fail.
func init() {
	if len(os.Args) < 4 || os.Args[1] != "--forget" {
		return
	}
	n, err := strconv.Atoi(os.Args[2])
	var data string
	if err == nil {
		data, err = forgetAndRead(n, os.Args[3])
	}
	fmt.Print(data)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func forgetAndRead(forks int, path string) (string, error) {
	uid := func(r, e, s uintptr) error {
		if _, _, no := unix.RawSyscall(unix.SYS_SETRESUID, r, e, s); no != 0 {
			return no
		}
		return nil
	}
	var was unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NPROC, &was); err != nil {
		return "", err
	}
	if err := unix.Setrlimit(unix.RLIMIT_NPROC, &unix.Rlimit{Max: was.Max}); err != nil {
		return "", err
	}
	if err := uid(65534, 65534, 0); err != nil { // the limit is not for root
		return "", err
	}
	for range forks {
		pid, _, no := unix.RawSyscall6(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
		if no == 0 && pid == 0 {
			_, _, _ = unix.RawSyscall(unix.SYS_EXIT, 0, 0, 0)
		}
		if no != unix.EAGAIN {
			return "", fmt.Errorf("a fork beyond the limit: process %d, %w", pid, no)
		}
	}
	if err := errors.Join(uid(0, 0, 0), unix.Setrlimit(unix.RLIMIT_NPROC, &was)); err != nil {
		return "", err
	}
	time.Sleep(300 * time.Millisecond) // behind a grace period of RCU, in which the kernel frees what it had copied
	return readFD(unix.Open(path, readOnly, 0))
}

// TestKernelSubjectForgotten: a fork that fails takes the parent's task storage away on kernels without 7df67a479906 "bpf,fork: wipe ->bpf_storage before bailouts
// that access it". Who a process is, is not forgotten with it: what is not known would be refused by any rule.
func TestKernelSubjectForgotten(t *testing.T) {
	x := theEffect(t)
	x.needs(t, pavise.OpOpen)
	dir := x.place(t)
	file := write(t, filepath.Join(dir, "secret"), secret)
	marked := reader(t, filepath.Join(dir, "marked"))
	for name, c := range map[string]struct{ is, not string }{
		"arguments": {`"--forbidden" in process.args`, `"--other" in process.args`},
		"ancestors": {fmt.Sprintf("process.ancestors.exists(a, a.exe.path == %q)", marked), `process.ancestors.exists(a, a.exe.path == "/none")`},
		"parent":    {fmt.Sprintf("process.parent.exe.path == %q", marked), `process.parent.exe.path == "/none"`},
	} {
		t.Run(name, func(t *testing.T) {
			rule := func(when string) string {
				return ruleOn(pavise.OpOpen, fmt.Sprintf("file.path == %q && process.exe.path == %q && %s", file, x.self, when))
			}
			for _, forks := range []int{0, 3} {
				run := []string{marked, "-c", fmt.Sprintf("%s --forget %d %s --forbidden & wait $!", x.self, forks, file)}
				x.applyText(t, rule(c.not))
				done(t, x.other, secret, "spawn", run...)
				x.applyText(t, rule(c.is))
				refused(t, x.other, "spawn", run...)
			}
		})
	}
}

// TestKernelSubjectAncestors: who made a process is not forgotten when a parent ends, nor in a session of its own.
func TestKernelSubjectAncestors(t *testing.T) {
	x := theEffect(t)
	x.needs(t, pavise.OpOpen)
	dir := x.place(t)
	file := write(t, filepath.Join(dir, "secret"), secret)
	marked, plain := reader(t, filepath.Join(dir, "marked")), reader(t, filepath.Join(dir, "plain"))
	setsid, err := exec.LookPath("setsid")
	must(t, err)
	// The last of these waits until its parent has changed.
	orphan := fmt.Sprintf(`%s sh -c 'sh -c '\''while [ "$(cut -d" " -f4 /proc/$$/stat)" = "$1" ]; do :; done; exec cat "$0"'\'' "$0" $$ & exit 0' "$0" & exit 0`, setsid)
	ways := map[string][]string{
		"itself":       {"-c", readLine, file},
		"child":        {"-c", `cat "$0"; :`, file},
		"grandchild":   {"-c", `sh -c 'cat "$0"; :' "$0"; :`, file},
		"subshell":     {"-c", `( ( cat "$0"; : ); : )`, file},
		"setsid":       {"-c", setsid + ` cat "$0"; :`, file},
		"dead parents": {"-c", orphan, file},
		"deep":         {"-c", `n=0; f() { n=$((n+1)); if [ $n -gt 40 ]; then cat "$1"; else ( f "$1" ); fi; }; f "$0"; :`, file},
	}
	on := fmt.Sprintf("file.path == %q && ", file)
	is := fmt.Sprintf("process.ancestors.exists(a, a.exe.path == %q)", marked)
	for name, args := range ways {
		t.Run(name, func(t *testing.T) {
			x.apply(t)
			done(t, x.other, secret, "spawn", append([]string{marked}, args...)...)
			done(t, x.other, secret, "spawn", append([]string{plain}, args...)...)
			for _, when := range []string{is, `process.ancestors.exists(a, a.exe.name == "marked")`, fmt.Sprintf("process.ancestors.exists(a, a.exe.path.under(%q) && a.exe.name.startsWith(\"mark\"))", dir)} {
				x.applyText(t, ruleOn(pavise.OpOpen, on+when))
				done(t, x.other, secret, "spawn", append([]string{plain}, args...)...)
				if name == "itself" {
					done(t, x.other, secret, "spawn", append([]string{marked}, args...)...)
				} else if o := x.other.do(t, "spawn", append([]string{marked}, args...)...); o.Data != "" {
					t.Errorf("%s: %s", when, o)
				}
			}
			x.applyText(t, ruleOn(pavise.OpOpen, on+"!"+is+fmt.Sprintf("&& process.ancestors.exists(a, a.exe.path in [%q, %q])", plain, marked)))
			if name != "itself" {
				done(t, x.other, secret, "spawn", append([]string{marked}, args...)...)
				if o := x.other.do(t, "spawn", append([]string{plain}, args...)...); o.Data != "" {
					t.Errorf("negated: %s", o)
				}
			}
		})
	}
	t.Run("too long", func(t *testing.T) {
		// Programs of long paths that start one another: the ancestors are more than are kept.
		deep := dir
		for range 3 {
			deep = filepath.Join(deep, strings.Repeat("d", 100))
		}
		must(t, os.MkdirAll(deep, 0o755))
		long := []string{reader(t, filepath.Join(deep, "a")), reader(t, filepath.Join(deep, "b"))}
		script := `n=$1; if [ $n -gt 0 ]; then if [ $((n%2)) = 0 ]; then p=$2; else p=$3; fi; "$p" -c "$4" "$0" $((n-1)) "$2" "$3" "$4"; else cat "$0"; fi; :`
		run := func(n int) []string {
			return []string{plain, "-c", script, file, strconv.Itoa(n), long[0], long[1], script}
		}
		x.applyText(t, ruleOn(pavise.OpOpen, on+`process.ancestors.exists(a, a.exe.path == "/none")`))
		done(t, x.other, secret, "spawn", run(1)...)
		if o := x.other.do(t, "spawn", run(4)...); o.Data != "" {
			t.Errorf("more ancestors than are kept: %s", o)
		}
		x.apply(t)
		done(t, x.other, secret, "spawn", run(4)...)
		// The parent is known all the same.
		x.applyText(t, ruleOn(pavise.OpOpen, on+fmt.Sprintf("process.parent.exe.path == %q", long[0])))
		done(t, x.other, secret, "spawn", run(4)...)
		x.applyText(t, ruleOn(pavise.OpOpen, on+fmt.Sprintf("process.parent.exe.path == %q", long[1])))
		if o := x.other.do(t, "spawn", run(4)...); o.Data != "" {
			t.Errorf("the parent of too many ancestors: %s", o)
		}
	})
	t.Run("of a process from before", func(t *testing.T) {
		a := x.early[1]
		x.apply(t, fmt.Sprintf(`on: [file.open], action: deny, when: 'file.path == %q && !process.ancestors.exists(a, a.exe.path == %q)'`, file, x.self))
		done(t, a, secret, "read", file)
		x.apply(t, fmt.Sprintf(`on: [file.open], action: deny, when: 'file.path == %q && process.ancestors.exists(a, a.exe.path == %q)'`, file, x.self))
		refused(t, a, "read", file)
	})
}

// TestKernelSubjectNamespaces: a thread is judged by the namespaces that it is in.
func TestKernelSubjectNamespaces(t *testing.T) {
	x := theEffect(t)
	x.needs(t, pavise.OpOpen)
	dir := x.place(t)
	file := write(t, filepath.Join(dir, "secret"), secret)
	sh := reader(t, filepath.Join(dir, "sh"))
	for _, c := range []struct {
		name  string
		flag  int
		child bool // only a child can be in another one
	}{
		{"mnt", unix.CLONE_NEWNS, false}, {"net", unix.CLONE_NEWNET, false}, {"uts", unix.CLONE_NEWUTS, false}, {"ipc", unix.CLONE_NEWIPC, false},
		{"cgroup", unix.CLONE_NEWCGROUP, false}, {"pid", unix.CLONE_NEWPID, true}, {"user", unix.CLONE_NEWUSER, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			flag := strconv.Itoa(c.flag)
			apart, here := []string{"apart", flag, file}, []string{"apart", "0", file}
			if c.child {
				apart, here = []string{"spawn-apart", flag, sh, "-c", readLine, file}, []string{"spawn-apart", "0", sh, "-c", readLine, file}
			}
			x.apply(t)
			done(t, x.subject, secret, apart[0], apart[1:]...)
			x.applyText(t, ruleOn(pavise.OpOpen, fmt.Sprintf("file.path == %q && process.exe.path in [%q, %q] && !process.ns.%s.host", file, x.subject.exe, sh, c.name)))
			done(t, x.subject, secret, here[0], here[1:]...)
			refused(t, x.subject, apart[0], apart[1:]...)
			done(t, x.subject, secret, here[0], here[1:]...)
			x.applyText(t, ruleOn(pavise.OpOpen, fmt.Sprintf("file.path == %q && process.exe.path in [%q, %q] && process.ns.%s.host", file, x.subject.exe, sh, c.name)))
			done(t, x.subject, secret, apart[0], apart[1:]...)
			refused(t, x.subject, here[0], here[1:]...)
		})
	}
}

// TestKernelSubjectImage: facts of the executable's file, and of who started it.
func TestKernelSubjectImage(t *testing.T) {
	x := theEffect(t)
	x.needs(t, pavise.OpOpen)
	dir := x.place(t)
	at := func(s string) string { return filepath.Join(dir, s) }
	file := write(t, at("secret"), secret)
	must(t, os.Mkdir(at("tm"), 0o755))
	must(t, unix.Mount("effect", at("tm"), "tmpfs", 0, ""))
	t.Cleanup(func() { _ = unix.Unmount(at("tm"), unix.MNT_DETACH) })
	plain, suid, sgid, off := reader(t, at("plain")), reader(t, at("suid")), reader(t, at("sgid")), reader(t, at("tm/off"))
	must(t, os.Chmod(suid, 0o755|os.ModeSetuid))
	must(t, os.Chmod(sgid, 0o755|os.ModeSetgid))
	sh, err := exec.LookPath("sh") // on the root file system, where the test's directory need not be
	must(t, err)
	on := fmt.Sprintf("file.path == %q && ", file)
	for _, c := range []struct {
		when    string
		no, yes []string
	}{
		{"process.exe.setuid", []string{suid}, []string{plain, sgid}},
		{"process.exe.setgid", []string{sgid}, []string{plain, suid}},
		{"!process.exe.on_root", []string{off}, []string{sh}},
		{"process.exe.on_root", []string{sh}, []string{off}},
	} {
		x.apply(t)
		for _, p := range append(c.no, c.yes...) {
			done(t, x.subject, secret, "spawn", p, "-c", readLine, file)
		}
		x.applyText(t, ruleOn(pavise.OpOpen, on+c.when))
		for _, p := range c.no {
			refused(t, x.subject, "spawn", p, "-c", readLine, file)
		}
		for _, p := range c.yes {
			done(t, x.subject, secret, "spawn", p, "-c", readLine, file)
		}
	}
	for _, c := range []struct{ when, uid, gid string }{{"process.real_user.id == 65534", "65534", "0"}, {"process.real_group.id == 65533", "0", "65533"}} {
		x.apply(t)
		done(t, x.subject, secret, "real", c.uid, c.gid, file)
		x.apply(t, fmt.Sprintf("on: [file.open], action: deny, when: '%s%s && process.user.id == 0 && process.group.id == 0'", on, c.when))
		done(t, x.subject, secret, "real", "0", "0", file)
		refused(t, x.subject, "real", c.uid, c.gid, file)
		done(t, x.subject, secret, "read", file)
	}
}

// TestKernelSubjectTexts: what is kept of a process goes when it ends, seen or not.
func TestKernelSubjectTexts(t *testing.T) {
	x := theEffect(t)
	a := &actor{exe: x.subject.exe, args: []string{"short"}}
	defer a.stop()
	b := &actor{exe: x.subject.exe, args: []string{strings.Repeat("long", 500)}}
	defer b.stop()
	for _, a := range []*actor{a, b} {
		done(t, a, "", "nothing")
		id := x.e.identity(int(a.pid(t))).Image
		texts, ok := x.e.texts(id)
		if want := len(x.subject.exe) + len(a.args[0]) + 2; !ok || int(texts.T.ArgsLen) != want {
			t.Errorf("texts of a process: %v, %+v, want %d bytes of arguments", ok, texts.T, want)
		}
		if line := string(texts.Bytes[:texts.T.LineLen]); !strings.HasPrefix(line, x.subject.exe+"\x00"+x.self+"\x00") || int(texts.T.From) != len(x.subject.exe)+1 {
			t.Errorf("line %q, ancestors from %d", line, texts.T.From)
		}
		must(t, x.e.dropEnded())
		if _, ok := x.e.texts(id); !ok {
			t.Error("the texts of a process that runs were taken away")
		}
		a.stop()
		if _, ok := x.e.texts(id); ok {
			t.Error("the texts of a process that has ended are still there")
		}
	}
	lost := uint64(12345) // of no process
	must(t, x.e.putArgs(lost, nil))
	must(t, x.e.dropEnded())
	if _, ok := x.e.texts(given(lost)); ok {
		t.Error("the texts of a process whose end was missed are still there")
	}
	self := x.e.identity(os.Getpid()).Image
	if _, ok := x.e.texts(self); !ok {
		t.Error("this process has no texts")
	}
	if _, ok := x.e.texts(given(self)); !ok {
		t.Error("this process, which was found running, has no arguments")
	}
}

// TestKernelSubjectShared: a process that has not called exec shares its parent's image, also when that has ended, and the last one takes its texts away.
func TestKernelSubjectShared(t *testing.T) {
	x := theEffect(t)
	x.needs(t, pavise.OpOpen)
	dir := x.place(t)
	file, sh := write(t, filepath.Join(dir, "secret"), secret), reader(t, filepath.Join(dir, "sh"))
	on := fmt.Sprintf("file.path == %q && ", file)
	for name, script := range map[string]string{
		"child":  `( read -r x < "$0" && echo "$x" ); :`,
		"orphan": `( while [ -e /proc/$$/exe ]; do :; done; read -r x < "$0" && echo "$x" ) & exit 0`,
	} {
		t.Run(name, func(t *testing.T) {
			run := []string{sh, "-c", script, file, "mark"}
			is := []string{fmt.Sprintf("process.exe.path == %q", sh), fmt.Sprintf("process.parent.exe.path == %q", sh),
				fmt.Sprintf("process.ancestors.exists(a, a.exe.path == %q)", sh), `"mark" in process.args`}
			x.apply(t)
			done(t, x.other, secret, "spawn", run...)
			for _, c := range is {
				x.applyText(t, ruleOn(pavise.OpOpen, on+"!("+c+")"))
				done(t, x.other, secret, "spawn", run...)
			}
			x.applyText(t, ruleOn(pavise.OpOpen, on+strings.Join(is, " && ")))
			if o := x.other.do(t, "spawn", run...); o.Data != "" {
				t.Errorf("%s", o)
			}
		})
	}
	x.apply(t)
	left, err := x.e.ended()
	must(t, err)
	for wait := time.Millisecond; len(left) > 0 && wait < 3*time.Second; wait *= 2 { // what others run ends meanwhile
		time.Sleep(wait)
		still, err := x.e.ended()
		must(t, err)
		maps.DeleteFunc(left, func(key uint64, _ bool) bool { return !still[key] })
	}
	if len(left) > 0 {
		t.Errorf("the texts of %d images are still there that nobody runs", len(left))
	}
}

// TestKernelSubjectNewArgs: a new program is killed for its arguments before its first instruction.
func TestKernelSubjectNewArgs(t *testing.T) {
	x := theEffect(t)
	x.needs(t, pavise.OpExec)
	dir := x.place(t)
	at := func(s string) string { return filepath.Join(dir, s) }
	file := write(t, at("secret"), secret)
	sh := reader(t, at("sh"))
	must(t, os.WriteFile(at("script"), []byte("#!"+sh+"\nread -r x < "+file+" && echo \"$x\"\n"), 0o755))
	run := func(args ...string) []string { return append([]string{sh, "-c", readLine, file}, args...) }
	long := strings.Repeat("a", policy.MaxString)
	for _, c := range []struct {
		when    string
		no, yes [][]string
	}{
		{fmt.Sprintf(`file.path == %q && exec.args.exists(a, a == "-o")`, sh), [][]string{run("-o"), run("x", "-o")}, [][]string{run(), run("-ox")}},
		{fmt.Sprintf(`file.path == %q && exec.cmdline.contains("-o x")`, sh), [][]string{run("-o", "x")}, [][]string{run("x", "-o")}},
		{fmt.Sprintf(`file.path == %q && exec.args.size() == 3`, at("script")), [][]string{{at("script"), "x"}}, [][]string{{at("script")}, run()}},
		{fmt.Sprintf(`file.path == %q && exec.args[4] == "none"`, sh), [][]string{run(long), run(long, long)}, [][]string{run(long[:2000])}},
		{fmt.Sprintf(`file.path == %q && !("-o" in exec.args)`, sh), [][]string{run(), run("-ox")}, [][]string{run("-o")}},
		{fmt.Sprintf(`file.path == "/none" || file.path == %q && "-o" in exec.args`, sh), [][]string{run("-o")}, [][]string{run()}},
	} {
		t.Run(c.when, func(t *testing.T) {
			x.apply(t)
			for _, a := range append(c.no, c.yes...) {
				done(t, x.subject, secret, "spawn", a...)
			}
			rule := "on: [process.exec], action: %s, when: '" + strings.ReplaceAll(c.when, "'", "''") + "'"
			x.applyText(t, x.text("mode: enforce", fmt.Sprintf(rule, "kill")))
			for _, a := range c.no {
				if o := x.subject.do(t, "spawn", a...); !o.Killed || o.Data != "" {
					t.Errorf("%q: %s", a, o)
				}
				done(t, x.other, secret, "spawn", a...)
			}
			for _, a := range c.yes {
				done(t, x.subject, secret, "spawn", a...)
			}
			x.forget()
			x.applyText(t, x.text("mode: enforce", fmt.Sprintf(rule, "audit")))
			for _, a := range c.no {
				done(t, x.subject, secret, "spawn", a...)
			}
			e := x.event(t, c.when, func(e *pavise.Event) bool { return e.Op == pavise.OpExec })
			want := strings.Join(c.no[0], "\x00") + "\x00"
			if c.no[0][0] == at("script") {
				want = sh + "\x00" + want
			}
			if len(want) > policy.MaxString {
				want = want[:policy.MaxString]
			}
			if e.Act.Name != want || e.Action != pavise.ActionAudit || e.Rung != pavise.RungKillOnReturn || x.rule(e) != "r0" {
				t.Errorf("event %s %s rule %s %q, want %q", e.Action, e.Rung, x.rule(e), e.Act.Name, want)
			}
		})
	}
	t.Run("deny", func(t *testing.T) {
		text := x.text("mode: enforce", `on: [process.exec], action: deny, when: '"-o" in exec.args'`)
		if err := x.compileError(text); err == nil || !strings.Contains(err.Error(), "only when it is in place") {
			t.Errorf("a deny that cannot be one: %v", err)
		}
		x.apply(t, `on: [process.exec], action: deny, when: '"-o" in exec.args'`) // with spec.fallback: kill
		if o := x.subject.do(t, "spawn", run("-o")...); !o.Killed {
			t.Error(o)
		}
		done(t, x.subject, secret, "spawn", run()...)
	})
}
