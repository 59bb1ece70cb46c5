package bpf

import (
	"errors"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/pavise-project/pavise/internal/kerntest"
)

// limits reads testdata/verified.txt: how many instructions the verifier may walk for each program, on any kernel of the matrix. Its time is the agent's time
// to start and to apply: about 1 us an instruction.
func limits(t *testing.T, spec *ebpf.CollectionSpec) map[string]uint32 {
	t.Helper()
	b, err := os.ReadFile("testdata/verified.txt")
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]uint32{}
	for i, line := range strings.Split(string(b), "\n") {
		f := strings.Fields(line)
		if len(f) == 0 || strings.HasPrefix(line, "#") {
			continue
		}
		n, err := strconv.ParseUint(f[len(f)-1], 10, 32)
		if err != nil || len(f) != 2 || spec.Programs[f[0]] == nil {
			t.Fatalf("testdata/verified.txt:%d: want the name of a program and a number", i+1)
		}
		out[f[0]] = uint32(n)
	}
	return out
}

// optional are the programs whose hooks came after the floor, and when.
var optional = map[string]string{
	"lsm_ftruncate": "6.2", "lsm_set_acl": "6.2", "lsm_remove_acl": "6.2", "lsm_setgroups": "6.1", "lsm_userns": "6.1", "lsm_uring_cmd": "6.0",
}

// TestKernelLoad loads every program that the kernel can be expected to take.
func TestKernelLoad(t *testing.T) {
	kerntest.Require(t, kerntest.Root, kerntest.Syscall, kerntest.TpBtf)
	k, err := Load()
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	limit := limits(t, k.spec)
	for name, p := range k.spec.Programs {
		t.Run(name, func(t *testing.T) {
			switch p.Type {
			case ebpf.LSM:
				kerntest.Require(t, kerntest.LSM)
				if ok, err := k.Hooked(name); err != nil || !ok {
					kerntest.Since(t, optional[name], "the hook of "+name)
					t.Fatalf("this kernel has no hook for it (%v)", err)
				}
			case ebpf.Tracing:
				if p.AttachType == ebpf.AttachModifyReturn || p.AttachType == ebpf.AttachTraceFExit {
					kerntest.Require(t, kerntest.Trampoline)
				}
			case ebpf.CGroupSockAddr:
				kerntest.Since(t, "6.18", "bpf_task_storage_get in cgroup programs")
			}
			start := time.Now()
			prog, err := k.Program(name)
			var v *ebpf.VerifierError
			if errors.As(err, &v) {
				t.Fatalf("%v\n%s", err, v.Log[max(0, len(v.Log)-30):])
			}
			if err != nil {
				t.Fatal(err)
			}
			info, err := prog.Info()
			if err != nil {
				t.Fatal(err)
			}
			n, _ := info.VerifiedInstructions()
			t.Logf("%s: %d instructions verified in %v", name, n, time.Since(start).Round(time.Millisecond))
			if limit[name] == 0 || n > limit[name] {
				t.Errorf("%d instructions verified; testdata/verified.txt allows %d", n, limit[name])
			}
		})
	}
}
