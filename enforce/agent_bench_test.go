package enforce_test

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pavise-project/pavise"
	"github.com/pavise-project/pavise/agent"
	"github.com/pavise-project/pavise/enforce"
	"github.com/pavise-project/pavise/internal/kerntest"
	"github.com/pavise-project/pavise/policy"
	"golang.org/x/sys/unix"
)

// work is something that processes do all day, and the operations that are judged of it; do does it a few times.
type work struct {
	name  string
	ops   []pavise.Op
	times int // that do does it
	do    func() error
}

// took is the median time of one, in nanoseconds.
func (w *work) took(b *testing.B) float64 {
	b.Helper()
	var ns []float64
	for range 20 {
		begin := time.Now()
		if err := w.do(); err != nil {
			b.Fatalf("%s: %v", w.name, err)
		}
		ns = append(ns, float64(time.Since(begin))/float64(w.times))
	}
	return enforce.Quantile(0.5, ns)
}

// works are the works, and the conditions that hold for each of their operations.
func works(b *testing.B) ([]*work, map[pavise.Op]string) {
	b.Helper()
	small, err := filepath.EvalSymlinks("/bin/true")
	if err != nil {
		b.Fatal(err)
	}
	program, file := enforce.ShortProgram(b), filepath.Join(b.TempDir(), "file")
	if err := os.WriteFile(file, []byte("text"), 0o600); err != nil {
		b.Fatal(err)
	}
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { l.Close() })
	port := netip.MustParseAddrPort(l.Addr().String()).Port()
	lf, err := l.(*net.TCPListener).File() // one that blocks
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { lf.Close() })
	listener := int(lf.Fd())

	spawn := func(program string) func() error {
		return func() error {
			pid, err := syscall.ForkExec(program, []string{"short"}, nil)
			if err != nil {
				return err
			}
			var st unix.WaitStatus
			_, err = unix.Wait4(pid, &st, 0, nil)
			return err
		}
	}
	open := func() error {
		fd, err := unix.Open(file, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		return unix.Close(fd)
	}
	connect := func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		if err := unix.Connect(fd, &unix.SockaddrInet4{Port: int(port), Addr: [4]byte{127, 0, 0, 1}}); err != nil {
			return fmt.Errorf("connect: %w", err)
		}
		in, _, err := unix.Accept4(listener, unix.SOCK_CLOEXEC)
		if err != nil {
			return fmt.Errorf("accept: %w", err)
		}
		// A reset: the ports that wait would run out.
		if err := unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}); err != nil {
			return err
		}
		if err := unix.Close(fd); err != nil {
			return err
		}
		return unix.Close(in)
	}
	repeat := func(n int, act func() error) func() error {
		return func() error {
			for range n {
				if err := act(); err != nil {
					return err
				}
			}
			return nil
		}
	}
	return []*work{
			{"fork+exec+exit", []pavise.Op{pavise.OpExec}, 1, spawn(small)},
			{"fork+exec+exit of one system call", []pavise.Op{pavise.OpExec}, 1, spawn(program)},
			{"open+close", []pavise.Op{pavise.OpOpen}, 100, repeat(100, open)},
			{"connect+accept+close", []pavise.Op{pavise.OpConnect, pavise.OpAccept}, 10, repeat(10, connect)},
		}, map[pavise.Op]string{
			pavise.OpExec:    fmt.Sprintf("file.path in [%q, %q]", program, small),
			pavise.OpOpen:    fmt.Sprintf("file.path == %q", file),
			pavise.OpConnect: fmt.Sprintf("net.remote.address == \"127.0.0.1\" && net.remote.port == %d", port),
			pavise.OpAccept:  fmt.Sprintf("net.local.port == %d", port),
		}
}

// BenchmarkAgent is what processes take for their work with an agent that runs, and as a ratio to the same without: its programs are attached and detached in
// turns, and the median of the ratios of neighbours taken. A name has the rungs that judged.
func BenchmarkAgent(b *testing.B) {
	kerntest.Require(b, kerntest.Root, kerntest.Syscall, kerntest.TpBtf)
	ws, match := works(b)
	k, err := enforce.Open(b.Context(), enforce.Options{})
	if err != nil {
		b.Fatal(err)
	}
	ready, done := make(chan struct{}), make(chan error, 1)
	a, err := agent.New(agent.Config{
		Socket: filepath.Join(b.TempDir(), "s"), Kernel: k, Log: slog.New(slog.DiscardHandler), OnReady: func(*agent.Status) { close(ready) },
	})
	if err != nil {
		b.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	go func() { done <- a.Run(ctx) }()
	b.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			b.Error(err)
		}
	})
	<-ready
	rungs, matches := k.Machine(), 0
	for op := range match {
		if rungs[op].Rung != pavise.RungNone {
			matches++
		}
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for _, v := range []struct {
		name   string
		rules  int
		match  bool
		rounds int // the median scatters by 1.2 % with 40: that is too much where the budget is 3 %
	}{{"no-policy", 0, false, 400}, {"rules=10", 10, false, 40}, {"rules=10000", 10000, false, 40}, {"rules=10000+match", 10000, true, 40}} {
		if v.rules > 0 {
			m := match
			if !v.match {
				m = nil
			}
			var ps []*policy.Policy
			for i, src := range enforce.ManyRules(v.rules, m) {
				p, err := policy.Parse(fmt.Sprintf("rules%d.yaml", i), []byte(src))
				if err != nil {
					b.Fatal(err)
				}
				ps = append(ps, p...)
			}
			if _, err := a.Apply(ps, agent.Request{}); err != nil {
				b.Fatal(err)
			}
		}
		ons, offs, ratios := make([][]float64, len(ws)), make([][]float64, len(ws)), make([][]float64, len(ws))
		for round := range v.rounds + 1 {
			for i, w := range ws {
				ons[i] = append(ons[i], w.took(b))
				if round > 0 { // against the mean of before and after: what grows or shrinks meanwhile is in neither
					ratios[i] = append(ratios[i], (ons[i][round-1]+ons[i][round])/2/offs[i][round-1])
				}
			}
			if round == v.rounds {
				break
			}
			on, err := k.Off()
			if err != nil {
				b.Fatal(err)
			}
			for i, w := range ws {
				offs[i] = append(offs[i], w.took(b))
			}
			if err := on(); err != nil {
				b.Fatal(err)
			}
		}
		c, err := k.Counters()
		if err != nil {
			b.Fatal(err)
		}
		hits := 0
		for _, n := range c.RuleHits {
			if n > 0 {
				hits++
			}
		}
		if want := map[bool]int{true: matches}[v.match]; hits != want {
			b.Fatalf("%s: %d rules were met, want %d", v.name, hits, want)
		}
		for i, w := range ws {
			var by []string
			for _, op := range w.ops {
				if r := rungs[op].Rung.String(); !slices.Contains(by, r) {
					by = append(by, r)
				}
			}
			b.Run(w.name+"/"+strings.Join(by, "+")+"/"+v.name, func(b *testing.B) {
				b.ReportMetric(enforce.Quantile(0.5, ons[i]), "ns/op")
				b.ReportMetric(enforce.Quantile(0.5, offs[i]), "off-ns/op")
				b.ReportMetric(enforce.Quantile(0.5, ratios[i]), "x-off")
				if w.name == "fork+exec+exit" && v.rules == 0 { // DESIGN 8 speaks of lifecycle events alone, and of a small program: no program does less than the other one
					b.ReportMetric(1.03, "budget-x-off")
				}
			})
		}
	}
}
