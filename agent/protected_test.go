package agent

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/pavise-project/pavise/internal/kerntest"
	"golang.org/x/sys/unix"
)

// TestKernelProtectedByItself lives on under a rule that nobody may open a file: the agent, which is this process, looks at the file
// once a second, and so does whoever asks for its size. O_PATH reads nothing and is not judged.
func TestKernelProtectedByItself(t *testing.T) {
	kerntest.Require(t, kerntest.Root, kerntest.BPF, kerntest.BTF, kerntest.TpBtf, kerntest.Cgroup)
	dir := t.TempDir()
	secret, file := filepath.Join(dir, "secret"), filepath.Join(dir, "p.yaml")
	for name, text := range map[string]string{secret: "x", file: `apiVersion: pavise.dev/v1alpha1
kind: Policy
metadata: {name: protected}
spec:
  mode: enforce
  fallback: kill
  rules:
  - {name: secret, on: [file.open], when: 'file.path == "` + secret + `"', action: deny}
`} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s := live(t, file)
	for range 30 {
		if _, err := os.Stat(secret); err != nil {
			t.Fatal(err)
		}
		fd, err := unix.Open(secret, unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		unix.Close(fd)
		time.Sleep(100 * time.Millisecond) // three of the agent's seconds
	}
	if s.has("protected/secret") {
		t.Error("looking at the file is told")
	}
	act(t, dir, `cat "$T/secret" && echo "it was read" >&2`)
	for end := time.Now().Add(30 * time.Second); !s.has("protected/secret"); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("reading the file is not told")
		}
	}
}
