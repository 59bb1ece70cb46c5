package bpf

import (
	"errors"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/pavise-project/pavise/internal/kerntest"
)

// verified is how many instructions the verifier may walk for one program, on any kernel of the matrix: its time is the agent's time to start.
const verified = 300_000

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
				if p.AttachType == ebpf.AttachModifyReturn {
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
			t.Logf("%d instructions verified in %v", n, time.Since(start).Round(time.Millisecond))
			if n > verified {
				t.Errorf("%d instructions verified, the limit is %d", n, verified)
			}
		})
	}
}
