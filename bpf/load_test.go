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
