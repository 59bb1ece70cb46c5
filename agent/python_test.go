package agent

import (
	"context"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/pavise-project/pavise"
)

// TestPythonClient has the generated client use each request of an agent.
func TestPythonClient(t *testing.T) {
	python, err := exec.LookPath("python3")
	if err != nil {
		if testing.Short() {
			t.Skip("no python3: make deps installs it")
		}
		t.Fatal("no python3: make deps installs it")
	}
	for _, name := range []string{"pavise.py", "test_pavise.py"} { // so that go test runs this anew when they change
		_, err := os.Stat(filepath.Join("../clients/python", name))
		must(t, err)
	}
	f := newFake()
	a, _ := running(t, f, func(c *Config) {
		c.StateDir, c.LogLevel, c.HistoryBytes = filepath.Join(t.TempDir(), "state"), new(slog.LevelVar), 16<<20
	})
	exec1 := &pavise.Event{Op: pavise.OpExec, PID: 4000100, ExecID: 2}
	exec1.Exec.Exe.Path, exec1.Exec.StartTime = "/usr/sbin/\x1bnginx", 2
	f.recs <- exec1
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for tick := time.NewTicker(2 * time.Millisecond); ; {
			select {
			case f.recs <- &pavise.Event{Op: pavise.OpOpen, PID: 4000100, ExecID: 2, File: pavise.FileInfo{Path: "/etc/shadow"}}:
			case <-stop:
				tick.Stop()
				return
			}
			<-tick.C
		}
	}()
	defer func() { close(stop); <-stopped }()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c := exec.CommandContext(ctx, python, "-B", "../clients/python/test_pavise.py", a.cfg.Socket)
	c.Env = append(os.Environ(), "PYTHONWARNINGS=error", "PYTHONDEVMODE=1")
	if out, err := c.CombinedOutput(); err != nil || string(out) != "ok\n" {
		t.Errorf("%v\n%s", err, out)
	}
}
