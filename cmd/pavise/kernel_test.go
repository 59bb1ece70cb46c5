package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pavise-project/pavise/agent"
	"github.com/pavise-project/pavise/bpf"
	"github.com/pavise-project/pavise/internal/kerntest"
	"golang.org/x/sys/unix"
)

// invoke runs the command line with the real kernel.
func invoke(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	a := newApp()
	a.stdin, a.stdout, a.stderr, a.terminal = strings.NewReader(""), &out, &errs, false
	code = a.main(append(args, "--socket", filepath.Join(t.TempDir(), "none")))
	return code, out.String(), errs.String()
}

// TestKernelDoctorCommand: pavise doctor names the rung of each operation. Which one is right in which kernel is what enforce's TestKernelDoctor knows.
func TestKernelDoctorCommand(t *testing.T) {
	kerntest.Require(t, kerntest.Root, kerntest.Syscall, kerntest.TpBtf)
	code, stdout, stderr := invoke(t, "doctor", "-o", "json")
	if code != exitOK || stderr != "" {
		t.Fatalf("exit code %d, %s", code, stderr)
	}
	var d agent.Doctor
	if err := json.Unmarshal([]byte(stdout), &d); err != nil {
		t.Fatalf("%v in %s", err, stdout)
	}
	rungs := map[string]string{}
	for _, o := range d.Ops {
		rungs[o.Op] = o.Rung
	}
	want, better := "kill-on-return", kerntest.Probe(kerntest.LSM)
	if kerntest.VM() != "" && (better == nil) != (os.Getenv("PAVISE_EXPECT") == "lsm") {
		t.Fatalf("BPF LSM here: %v", better)
	}
	top := "" // what all operations have
	switch {
	case better == nil:
		top = "lsm"
	case kerntest.Probe(kerntest.Trampoline) == nil:
		top = "fmod_ret"
	}
	if top != "" {
		want = top
	}
	for _, op := range []string{"process.exec", "file.open", "net.listen", "net.accept"} {
		if rungs[op] != want {
			t.Errorf("%s: rung %q, want %q", op, rungs[op], want)
		}
	}
	for _, op := range []string{"net.connect", "net.bind", "net.send"} {
		if top != "" && rungs[op] != top || top == "" && rungs[op] != "cgroup" && rungs[op] != "none" {
			t.Errorf("%s: rung %q", op, rungs[op])
		}
	}
	if d.Agent || !d.Host.BTF || d.Host.Kernel == "" || d.Error != "" {
		t.Errorf("%+v", d)
	}
	t.Log(rungs)
}

// TestKernelOldRun: on a kernel below the floor, run and doctor say what is missing and exit with 5.
func TestKernelOldRun(t *testing.T) {
	kerntest.Require(t, kerntest.Old, kerntest.Root)
	for _, args := range [][]string{{"run", "--state", t.TempDir()}, {"doctor", "-o", "json"}, {"doctor"}} {
		code, stdout, stderr := invoke(t, args...)
		if code != exitUnsupported || !strings.Contains(stderr, "kernel not supported") || !strings.Contains(stderr, "task storage (Linux 5.11)") {
			t.Errorf("%v: exit code %d, %s", args, code, stderr)
		}
		t.Logf("%v\n%s%s", args, stdout, stderr)
	}
}

// TestKernelUninstall: what an agent has left is named, removed once, and not while one runs.
func TestKernelUninstall(t *testing.T) {
	kerntest.Require(t, kerntest.Root, kerntest.Syscall, kerntest.TpBtf)
	mount := t.TempDir()
	if err := unix.Mount("bpf", mount, "bpf", 0, "mode=700"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(mount, unix.MNT_DETACH) })
	pins, state := filepath.Join(mount, "pins"), filepath.Join(t.TempDir(), "state")
	places := []string{"--pin-dir", pins, "--state", state}
	code, _, stderr := invoke(t, append([]string{"run", "--for", "1s", "--events", "none", "--keep", "forever"}, places...)...)
	if code != exitOK || !strings.Contains(stderr, "the policies stay in force without an agent (--keep forever)") || !strings.Contains(stderr, "agentless enforcement goes on, from "+pins) {
		t.Fatalf("run: exit code %d, %s", code, stderr)
	}
	busy, err := bpf.OpenPins(pins)
	if err != nil {
		t.Fatal(err)
	}
	uninstall := func(args ...string) (int, string, string) {
		return invoke(t, append(append([]string{"uninstall"}, args...), places...)...)
	}
	if code, stdout, stderr := uninstall(); code != exitFailed || stdout != "" || !strings.Contains(stderr, "an agent runs") || !strings.Contains(stderr, "systemctl disable --now pavise") {
		t.Errorf("while one runs: exit code %d, %s%s", code, stdout, stderr)
	}
	if err := busy.Close(); err != nil {
		t.Fatal(err)
	}
	_, would, _ := uninstall("--dry-run")
	code, did, stderr := uninstall()
	if code != exitOK || strings.ReplaceAll(would, "would remove ", "removed ") != did {
		t.Errorf("exit code %d, %s\nwould:\n%s\ndid:\n%s", code, stderr, would, did)
	}
	for _, want := range []string{pins + "/current", "/links/on_exec", "/maps/sides", state + "/revisions", "removed " + state + "\n"} {
		if !strings.Contains(did, want) {
			t.Errorf("%s is not named in\n%s", want, did)
		}
	}
	if code, stdout, stderr := uninstall(); code != exitOK || stdout != "nothing of an agent is here\n" {
		t.Errorf("the second time: exit code %d, %s%s", code, stdout, stderr)
	}
	if code, _, stderr := invoke(t, "run", "--keep", "1s"); code != exitUsage || !strings.Contains(stderr, `--keep "1s": want no, forever, or a time of 5s and more`) {
		t.Errorf("exit code %d, %s", code, stderr)
	}
}
