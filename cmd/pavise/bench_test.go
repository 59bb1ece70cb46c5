package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pavise-project/pavise/agent"
	"github.com/pavise-project/pavise/internal/kerntest"
	"golang.org/x/sys/unix"
)

// benchAgent set in the environment makes the test binary pavise itself, with the real kernel.
const benchAgent = "PAVISE_BENCH_AGENT"

// startAgent runs pavise run in a process of its own with these policies, until stop, and returns when it judges by them.
func startAgent(b *testing.B, policies string) (pid int, c *agent.Client, stop func()) {
	b.Helper()
	dir, err := os.MkdirTemp("", "pavise")
	if err != nil {
		b.Fatal(err)
	}
	socket := filepath.Join(dir, "s")
	cmd := exec.Command("/proc/self/exe", "run", "--socket", socket, "--state", filepath.Join(dir, "state"), "--events", "none", "--policy", policies)
	cmd.Env = append(os.Environ(), benchAgent+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGTERM}
	var log bytes.Buffer
	cmd.Stderr = &log
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	c = agent.NewClient(socket)
	stop = func() {
		b.Helper()
		c.Close()
		_ = cmd.Process.Signal(unix.SIGINT)
		if err := cmd.Wait(); err != nil {
			b.Errorf("the agent: %v\n%s", err, &log)
		}
		_ = os.RemoveAll(dir)
	}
	ctx, cancel := context.WithTimeout(b.Context(), time.Minute)
	defer cancel()
	for {
		if _, err = c.Status(ctx); err == nil {
			return cmd.Process.Pid, c, stop
		}
		if ctx.Err() != nil {
			_ = cmd.Process.Kill()
			stop()
			b.Fatalf("the agent did not get ready: %v\n%s", err, &log)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// manyRules writes n rules in monitor mode, on files, programs and connections, a hundred a policy, and returns their directory. Nothing matches them.
func manyRules(b *testing.B, n int) string {
	b.Helper()
	dir := b.TempDir()
	var text strings.Builder
	for i := range n {
		if i%100 == 0 {
			fmt.Fprintf(&text, "apiVersion: pavise.dev/v1alpha1\nkind: Policy\nmetadata: {name: p%d}\nspec:\n  mode: monitor\n  subject: process.user.id < 1000\n  rules:\n", i/100)
		}
		op := []string{"file.open", "process.exec", "net.connect"}[i%3]
		when := fmt.Sprintf("file.path.under(\"/srv/app-%d\") && process.group.id != 0 || file.path == \"/etc/app-%d/secret.conf\"", i, i)
		if op == "net.connect" {
			when = fmt.Sprintf("net.remote.address.within(\"198.18.%d.0/24\") && net.remote.port == %d", i&255, 1000+i)
		}
		fmt.Fprintf(&text, "  - {name: r%d, on: [%s], action: deny, when: '%s'}\n", i, op, when)
		if i%100 == 99 || i == n-1 {
			if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("p%d.yaml", i/100)), []byte(text.String()), 0o600); err != nil {
				b.Fatal(err)
			}
			text.Reset()
		}
	}
	return dir
}

// BenchmarkMemory is what an agent takes that knows a thousand processes and judges by so many rules: its resident memory, and that of all maps in the
// kernel.
func BenchmarkMemory(b *testing.B) {
	kerntest.Require(b, kerntest.Root, kerntest.Syscall, kerntest.TpBtf)
	for _, n := range []int{10, 1000, 10000} {
		rules := manyRules(b, n)
		b.Run(fmt.Sprintf("rules=%d", n), func(b *testing.B) {
			var rss, maps float64
			var known int
			for b.Loop() {
				rss, maps, known = memory(b, rules)
			}
			b.ReportMetric(rss, "RSS-MiB")
			b.ReportMetric(maps, "maps-MiB")
			b.ReportMetric(float64(known), "processes")
			if n == 1000 {
				b.ReportMetric(64, "budget-RSS-MiB")
				b.ReportMetric(32, "budget-maps-MiB")
			}
		})
	}
}

func memory(b *testing.B, policies string) (rss, maps float64, known int) {
	var children []*exec.Cmd
	defer func() {
		for _, c := range children {
			_ = c.Process.Kill()
			_ = c.Wait()
		}
	}()
	pid, c, stop := startAgent(b, policies)
	defer stop()
	for range 1000 {
		c := exec.Command("/bin/sleep", "1000")
		if err := c.Start(); err != nil {
			b.Fatal(err)
		}
		children = append(children, c)
	}
	st, err := c.Status(b.Context())
	for ; err == nil && st.Processes < 1000; st, err = c.Status(b.Context()) {
		time.Sleep(10 * time.Millisecond)
	}
	if err != nil {
		b.Fatal(err)
	}
	return residentMiB(b, pid), float64(st.MapBytes) / (1 << 20), st.Processes
}

// residentMiB is a process's resident memory but for what it maps of the kernel's tables, which is counted there.
func residentMiB(b *testing.B, pid int) float64 {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps", pid))
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
