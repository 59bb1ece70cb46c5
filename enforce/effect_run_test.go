package enforce

import (
	debugelf "debug/elf"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pavise-project/pavise"
	"github.com/pavise-project/pavise/internal/kerntest"
)

// aProgram copies a program of the machine to a path.
func aProgram(t *testing.T, name, to string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	must(t, err)
	path, err = filepath.EvalSymlinks(path)
	must(t, err)
	must(t, copyFile(to, path))
	return to
}

// loaderOf is the dynamic loader of a program.
func loaderOf(t *testing.T, path string) string {
	t.Helper()
	f, err := debugelf.Open(path)
	must(t, err)
	defer f.Close()
	s := f.Section(".interp")
	if s == nil {
		t.Fatalf("%s is linked statically", path)
	}
	b, err := s.Data()
	must(t, err)
	return strings.TrimRight(string(b), "\x00")
}

// TestKernelOpsRun: programs that are run as the data of another one, or under a name that is not theirs.
func TestKernelOpsRun(t *testing.T) {
	x := theEffect(t)
	x.needs(t, pavise.OpExec)
	dir := x.place(t)
	at := func(name string) string { return filepath.Join(dir, name) }
	prog, plain := aProgram(t, "echo", at("echo")), aProgram(t, "echo", at("plain"))
	sh := aProgram(t, "sh", at("sh"))
	ld := loaderOf(t, prog)
	no, yes := write(t, at("no.sh"), "echo ran\n"), write(t, at("yes.sh"), "echo ran\n")
	isSh := fmt.Sprintf("file.path == %q && ", sh)
	ways := []struct {
		name, when, action string
		deed               string
		args, free         []string // free is what the rule leaves alone
		data               string
	}{
		{name: "argv[0] of another", when: fmt.Sprintf("file.path == %q", prog), action: "deny", deed: "spawn-as", args: []string{prog, "sshd", "hi"}, free: []string{plain, prog, "hi"}, data: "hi\n"},
		{name: "a program by its loader, by arguments", when: fmt.Sprintf("file.name.startsWith(\"ld-linux\") && exec.args.exists(a, a == %q)", prog), action: "kill",
			deed: "spawn", args: []string{ld, prog, "hi"}, free: []string{ld, plain, "hi"}, data: "hi\n"},
		{name: "a script as argument", when: fmt.Sprintf("%s exec.args.exists(a, a == %q)", isSh, no), action: "kill", deed: "spawn", args: []string{sh, no}, free: []string{sh, yes}, data: "ran\n"},
		{name: "a command by -c", when: isSh + `exec.args.exists(a, a == "-c")`, action: "kill", deed: "spawn", args: []string{sh, "-c", "echo ran"}, free: []string{sh, yes}, data: "ran\n"},
		{name: "a script on standard input", when: isSh + "exec.args.size() == 1", action: "kill", deed: "spawn-input", args: []string{no, sh}, free: []string{no, sh, yes}, data: "ran\n"},
	}
	var rules []string
	for _, w := range ways {
		done(t, x.subject, w.data, w.deed, w.args...)
		rules = append(rules, fmt.Sprintf("on: [process.exec], action: %s, when: '%s'", w.action, w.when))
	}
	x.apply(t, rules...)
	for i, w := range ways {
		t.Run(w.name, func(t *testing.T) {
			x.forget()
			refused(t, x.subject, w.deed, w.args...)
			e := x.event(t, w.name, func(e *pavise.Event) bool { return e.Op == pavise.OpExec })
			if x.rule(e) != fmt.Sprintf("r%d", i) {
				t.Errorf("event of rule %s: %s %s", x.rule(e), e.Action, e.File.Path)
			}
			done(t, x.subject, w.data, w.deed, w.free...)
			done(t, x.other, w.data, w.deed, w.args...)
		})
	}
	t.Run("a program by its loader, by its mapping", func(t *testing.T) {
		if st := x.e.status[pavise.OpMemExec]; st.Rung == pavise.RungNone {
			kerntest.Require(t, kerntest.Trampoline)
			t.Fatalf("memory.exec cannot be judged: %s", st.Why)
		}
		x.apply(t)
		done(t, x.subject, "hi\n", "spawn", ld, prog, "hi")
		x.applyText(t, ruleOn(pavise.OpMemExec, fmt.Sprintf("file.path == %q && process.exe.name.startsWith(\"ld-linux\")", prog)))
		x.forget()
		refused(t, x.subject, "spawn", ld, prog, "hi")
		x.event(t, "the mapping of the program", func(e *pavise.Event) bool {
			return e.Op == pavise.OpMemExec && e.File.Path == prog && e.Action == pavise.ActionDeny
		})
		done(t, x.subject, "hi\n", "spawn", ld, plain, "hi")
		done(t, x.subject, "hi\n", "spawn", prog, "hi")
	})
}
