package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pavise-project/pavise/agent"
	"github.com/pavise-project/pavise/internal/kerntest"
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

// TestKernelDoctor: pavise doctor names the rung of each operation. Which one is right in which kernel is enforce's test of the same name.
func TestKernelDoctor(t *testing.T) {
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
