package enforce

import (
	"os"
	"testing"

	"github.com/pavise-project/pavise/internal/kerntest"
)

// TestKernelStorageStays: what a failing fork does to its parent is seen on this kernel. 6.1 frees the parent's storage, 6.12 does not.
func TestKernelStorageStays(t *testing.T) {
	kerntest.Require(t, kerntest.Root, kerntest.Syscall, kerntest.TpBtf)
	l := start(t, nil)
	got, err := l.k.Variable("storage_stays")
	if err != nil {
		t.Fatal(err)
	}
	want := uint64(0)
	if kerntest.AtLeast(6, 12) {
		want = 1
	}
	if got != want {
		t.Errorf("storage_stays is %d, want %d", got, want)
	}
	if root, err := os.Readlink("/proc/self/root"); err != nil || root != "/" {
		t.Errorf("the process has another root: %q, %v", root, err)
	}
}
