package enforce

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/pavise-project/pavise"
	"golang.org/x/sys/unix"
)

// TestKernelExec: a forbidden program never runs its first instruction.
func TestKernelExec(t *testing.T) {
	x := theEffect(t)
	rung := x.needs(t, pavise.OpExec)
	dir := x.place(t)
	at := func(s string) string { return filepath.Join(dir, s) }
	must(t, os.Mkdir(at("no"), 0o755))
	must(t, os.Mkdir(at("yes"), 0o755))
	touch, err := exec.LookPath("touch")
	must(t, err)
	if touch, err = filepath.EvalSymlinks(touch); err != nil { // coreutils of one binary look at their name
		t.Fatal(err)
	}
	prog, mark := at("no/touch"), at("mark")
	must(t, copyFile(prog, touch))
	must(t, copyFile(at("yes/touch"), touch))
	must(t, os.Symlink(prog, at("link")))
	must(t, os.Link(prog, at("hard")))
	must(t, os.WriteFile(at("no/script"), []byte("#!/bin/sh\n: > "+mark+"\n"), 0o755))

	// runs does a deed that runs a program that makes a file, and tells whether it did.
	runs := func(t *testing.T, a *actor, deed string, args ...string) (outcome, bool) {
		t.Helper()
		_ = os.Remove(mark)
		o := a.do(t, deed, args...)
		_, err := os.Lstat(mark)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		return o, err == nil
	}
	for _, c := range []struct {
		name, when, deed string
		args             []string
		path, alias      string
	}{
		{name: "path", when: fmt.Sprintf("file.path == %q", prog), deed: "spawn", args: []string{prog, mark}, path: prog},
		{name: "directory", when: fmt.Sprintf("file.path.under(%q)", at("no")), deed: "spawn", args: []string{prog, mark}, path: prog},
		{name: "symbolic link", when: fmt.Sprintf("file.path == %q", prog), deed: "spawn", args: []string{at("link"), mark}, path: prog},
		{name: "hard link", when: fmt.Sprintf("file.path == %q", prog), deed: "spawn", args: []string{at("hard"), mark}, path: at("hard"), alias: prog},
		{name: "memfd", when: "file.memfd", deed: "spawn-memfd", args: []string{touch, mark}},
		{name: "deleted", when: "file.deleted && !file.memfd", deed: "spawn-deleted", args: []string{prog, mark}},
		{name: "script", when: fmt.Sprintf("file.path == %q", at("no/script")), deed: "spawn", args: []string{at("no/script")}, path: at("no/script")},
		{name: "relative script", when: fmt.Sprintf("file.path == %q", at("no/script")), deed: "spawn-in", args: []string{at("no"), "./script"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			x.apply(t)
			if o, ran := runs(t, x.subject, c.deed, c.args...); !ran {
				t.Fatalf("without a rule: %s", o)
			}
			x.apply(t, "on: [process.exec], action: deny, when: '"+c.when+"'")
			x.forget()
			x.subject.stop()
			pid := x.subject.pid(t)
			o, ran := runs(t, x.subject, c.deed, c.args...)
			if ran || atHook(rung) && (o.Killed || o.Errno != unix.EPERM) || rung == pavise.RungKillOnReturn && !o.Killed {
				t.Errorf("rung %s: %s, ran: %v", rung, o, ran)
			}
			if x.subject.pid(t) != pid {
				t.Error("the caller did not live on")
			}
			e := x.event(t, c.name, func(e *pavise.Event) bool { return e.Op == pavise.OpExec })
			if c.name == "script" && rung == pavise.RungKillOnReturn { // known beside its interpreter there
				c.path, c.alias = "", c.path
			}
			if c.path != "" && e.File.Path != c.path || c.path+c.alias != "" && e.File.Alias != c.alias || e.Rung != rung || x.rule(e) != "r0" {
				t.Errorf("event %s %s rung %s rule %s %+v", e.Op, e.Action, e.Rung, x.rule(e), e.File)
			}
			if o, ran := runs(t, x.other, c.deed, c.args...); !ran {
				t.Errorf("another process: %s", o)
			}
			if o, ran := runs(t, x.subject, "spawn", at("yes/touch"), mark); !ran {
				t.Errorf("another program: %s", o)
			}
		})
	}
	t.Run("execve itself", func(t *testing.T) {
		x.apply(t, fmt.Sprintf("on: [process.exec], action: deny, when: 'file.path == %q'", prog))
		_ = os.Remove(mark)
		x.stopped(t, pavise.OpExec, "exec", prog, mark)
		if _, err := os.Lstat(mark); err == nil {
			t.Error("it ran")
		}
	})
	t.Run("kill", func(t *testing.T) {
		x.apply(t, fmt.Sprintf("on: [process.exec], action: kill, when: 'file.path == %q'", prog))
		if o, ran := runs(t, x.subject, "exec", prog, mark); !o.Killed || ran {
			t.Errorf("%s, ran: %v", o, ran)
		}
	})
	// A program that the subject starts is not the subject.
	t.Run("child", func(t *testing.T) {
		file := write(t, at("file"), secret)
		cat, err := exec.LookPath("cat")
		must(t, err)
		x.apply(t, fmt.Sprintf("on: [file.open], action: deny, when: 'file.path == %q'", file))
		done(t, x.subject, secret, "spawn", cat, file)
		x.applyText(t, fmt.Sprintf(`{apiVersion: pavise.dev/v1alpha1, kind: Policy, metadata: {name: p}, spec: {mode: enforce, fallback: kill,
  subject: process.parent.exe.path == %q, rules: [{name: r, on: [file.open], action: deny, when: file.path == %q}]}}`, x.subject.exe, file))
		if o := x.subject.do(t, "spawn", cat, file); o.Data != "" || o.Errno == 0 && !o.Killed {
			t.Errorf("a child by its parent's program: %s", o)
		}
		done(t, x.other, secret, "spawn", cat, file)
	})
}
