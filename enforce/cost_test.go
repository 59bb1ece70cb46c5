package enforce

import (
	"bytes"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/pavise-project/pavise/bpf"
)

// TestKernelRuns: programs are timed while somebody asks for it, and not afterwards.
func TestKernelRuns(t *testing.T) {
	x := theEffect(t)
	sum := func() (all bpf.Run) {
		for _, r := range x.e.Runs() {
			all.Count += r.Count
			all.Time += r.Time
		}
		return all
	}
	act := func() {
		for range 10 {
			must(t, exec.Command("true").Run())
		}
	}
	before := sum()
	timing, err := x.e.Time()
	must(t, err)
	act()
	during := sum()
	must(t, timing.Close())
	if n, d := during.Count-before.Count, during.Time-before.Time; n < 30 || d <= 0 || d/time.Duration(n) > 10*time.Millisecond {
		t.Errorf("%d runs took %s: ten programs were started, ran and ended", n, d)
	}
	if on, err := os.ReadFile("/proc/sys/kernel/bpf_stats_enabled"); err != nil || string(bytes.TrimSpace(on)) != "0" {
		t.Logf("the machine times its programs all the time: %q, %v", on, err)
		return
	}
	time.Sleep(100 * time.Millisecond) // a program that runs when the timing ends is still counted
	after := sum()
	act()
	if last := sum(); last != after {
		t.Errorf("nobody asks, and %d runs are counted", last.Count-after.Count)
	}
}
