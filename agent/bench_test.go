package agent

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"github.com/pavise-project/pavise/enforce"
	"github.com/pavise-project/pavise/internal/kerntest"
)

// BenchmarkMemory is what an agent takes that knows a thousand processes and judges by a thousand rules.
func BenchmarkMemory(b *testing.B) {
	kerntest.Require(b, kerntest.Root, kerntest.Syscall, kerntest.TpBtf)
	dir := b.TempDir()
	var src strings.Builder
	for i := range 1000 {
		if i%100 == 0 {
			fmt.Fprintf(&src, "---\napiVersion: pavise.dev/v1alpha1\nkind: Policy\nmetadata: {name: p%d}\nspec:\n  mode: monitor\n  subject: process.user.id < 1000\n  rules:\n", i)
		}
		fmt.Fprintf(&src, "  - {name: r%d, on: [file.open], action: audit, when: 'file.path.under(\"/srv/app-%d\") && file.access.write || file.path == \"/etc/app-%d/secret.conf\"'}\n", i, i, i)
	}
	file := filepath.Join(dir, "p.yaml")
	if err := os.WriteFile(file, []byte(src.String()), 0o600); err != nil {
		b.Fatal(err)
	}
	src.Reset()
	var rss, maps float64
	var known int
	for b.Loop() {
		rss, maps, known = memory(b, file)
	}
	b.ReportMetric(rss, "RSS-MiB")
	b.ReportMetric(64, "budget-RSS-MiB")
	b.ReportMetric(maps, "maps-MiB")
	b.ReportMetric(32, "budget-maps-MiB")
	b.ReportMetric(float64(known), "processes")
}

func memory(b *testing.B, file string) (rss, maps float64, known int) {
	var children []*exec.Cmd
	defer func() {
		for _, c := range children {
			_ = c.Process.Kill()
			_ = c.Wait()
		}
	}()
	k, err := enforce.Open(b.Context(), enforce.Options{})
	if err != nil {
		b.Fatal(err)
	}
	a, err := New(Config{Socket: filepath.Join(b.TempDir(), "s"), Policies: []string{file}, Kernel: k, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		b.Fatal(err)
	}
	ready, done := make(chan struct{}), make(chan error, 1)
	ctx, cancel := context.WithCancel(b.Context())
	a.cfg.OnReady = func(*Status) { close(ready) }
	go func() { done <- a.Run(ctx) }()
	<-ready
	for range 1000 {
		c := exec.Command("/bin/sleep", "1000")
		if err := c.Start(); err != nil {
			b.Fatal(err)
		}
		children = append(children, c)
	}
	runtime.GC()
	st := a.status()
	c, err := k.Counters()
	if err != nil {
		b.Fatal(err)
	}
	known = st.Processes
	rss, maps = residentMiB(b), float64(c.MapBytes)/(1<<20)
	cancel()
	if err := <-done; err != nil {
		b.Fatal(err)
	}
	return rss, maps, known
}

// residentMiB is this process's resident memory but for what it maps of the kernel's tables, which is counted there.
func residentMiB(b *testing.B) float64 {
	data, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		b.Fatal(err)
	}
	kib, table := 0, false
	for line := range strings.Lines(string(data)) {
		f := strings.Fields(line)
		switch {
		case f[0] == "Rss:" && !table:
			n, err := strconv.Atoi(f[1])
			if err != nil {
				b.Fatal(err)
			}
			kib += n
		case !strings.HasSuffix(f[0], ":"):
			table = f[len(f)-1] == "anon_inode:bpf-map"
		}
	}
	return float64(kib) / 1024
}
