package enforce

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pavise-project/pavise"
	"github.com/pavise-project/pavise/bpf"
	"github.com/pavise-project/pavise/internal/kerntest"
	"github.com/pavise-project/pavise/policy"
	"golang.org/x/sys/unix"
)

// budget reports a number and, beside it, what DESIGN 8 allows; make bench repeats the pairs at its end.
func budget(b *testing.B, v, limit float64, unit string) {
	b.ReportMetric(v, unit)
	b.ReportMetric(limit, "budget-"+unit)
}

// quantile returns the q-th of some values, which it sorts.
func quantile[T ~int64 | ~float64](q float64, v []T) T {
	slices.Sort(v)
	return v[min(len(v)-1, int(q*float64(len(v))))]
}

// rulesYAML makes n rules as people write them, a hundred a policy: exact paths, trees, globs, endings, executables and access. The last is
// on hit. Each string is one policy.
func rulesYAML(n int, mode, hit string) []string {
	dirs := []string{"/usr/lib/x86_64-linux-gnu", "/var/lib/dpkg/info", "/etc/alternatives", "/opt/vendor/app", "/home/user/.config", "/srv/data"}
	var out []string
	var b strings.Builder
	for i := range n {
		if i%100 == 0 {
			fmt.Fprintf(&b, "apiVersion: pavise.dev/v1alpha1\nkind: Policy\nmetadata: {name: p%d}\nspec:\n  mode: %s\n", i/100, mode)
			if i%300 == 200 {
				fmt.Fprintf(&b, "  subject: process.exe.path == \"/usr/sbin/daemon-%d\"\n", i/100)
			}
			b.WriteString("  rules:\n")
		}
		dir := dirs[i%len(dirs)]
		var when string
		kind := i % 20
		if i%100 == 4 {
			kind = 20
		}
		switch kind {
		case 0:
			when = fmt.Sprintf("file.path.under(%q, %q)", fmt.Sprintf("%s/tree-%d", dir, i), fmt.Sprintf("/run/tree-%d", i))
		case 1:
			when = fmt.Sprintf("file.path.glob(%q)", fmt.Sprintf("%s/%d/*.so*", dir, i))
		case 2:
			when = fmt.Sprintf("file.path.under(%q) && file.access.write", fmt.Sprintf("/srv/www-%d", i))
		case 3:
			when = fmt.Sprintf("file.path == %q && process.user.id != %d", fmt.Sprintf("%s/owned-%d", dir, i), i/20%5)
		case 20:
			when = fmt.Sprintf("file.path.endsWith(%q)", fmt.Sprintf("/secret-%d.pem", i))
		default:
			when = fmt.Sprintf("file.path == %q", fmt.Sprintf("%s/%x/file-%d.conf", dir, i*2654435761%65536, i))
		}
		if i == n-1 {
			when = fmt.Sprintf("file.path == %q", hit)
		}
		fmt.Fprintf(&b, "  - {name: r%d, on: [file.open], action: audit, when: '%s'}\n", i%100, when)
		if i%100 == 99 || i == n-1 {
			out = append(out, b.String())
			b.Reset()
		}
	}
	return out
}

func parse(t testing.TB, srcs ...string) (ps []*policy.Policy) {
	t.Helper()
	for i, src := range srcs {
		p, err := policy.Parse(fmt.Sprintf("test%d.yaml", i), []byte(src))
		if err != nil {
			t.Fatal(err)
		}
		ps = append(ps, p...)
	}
	return ps
}

func image(t testing.TB, m *policy.Machine, ps []*policy.Policy) *policy.Image {
	t.Helper()
	img, _, err := policy.Compile(ps, m)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// opened makes two files with paths of about 60 bytes and opens them: one for a rule, one for none.
func opened(b testing.TB) (hit, miss *os.File) {
	dir, err := os.MkdirTemp("", "pavise")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { os.RemoveAll(dir) })
	dir = filepath.Join(dir, "app/releases/current/assets")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		b.Fatal(err)
	}
	file := func(name string) *os.File {
		f, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { f.Close() })
		return f
	}
	return file("index.html"), file("other.html")
}

// BenchmarkVerdict is the cost of one verdict in the kernel: all that the hook does for an opened file, short of an event.
func BenchmarkVerdict(b *testing.B) {
	kerntest.Require(b, kerntest.Root, kerntest.Syscall)
	k := load(b)
	var m mounts
	if err := m.refresh(k); err != nil {
		b.Fatal(err)
	}
	tables, pool, err := k.Side(0)
	if err != nil {
		b.Fatal(err)
	}
	hit, miss := opened(b)
	first := map[string]float64{}
	for gen, n := range []int{10, 1000, 10000} {
		img := image(b, able(), parse(b, rulesYAML(n, "monitor", hit.Name())...))
		if err := stage(tables, pool, img, uint32(gen+1)); err != nil {
			b.Fatal(err)
		}
		for _, c := range []struct {
			name   string
			f      *os.File
			action pavise.Action
		}{{"hit", hit, pavise.ActionAudit}, {"miss", miss, 0}} {
			b.Run(fmt.Sprintf("file.open/rules=%d/%s", n, c.name), func(b *testing.B) {
				var ns []float64
				for b.Loop() {
					ns = append(ns, runOpen(b, k, c.f, c.action))
				}
				med := quantile(0.5, ns)
				budget(b, med, 350, "ns/op")
				b.ReportMetric(float64(len(c.f.Name())), "path-bytes")
				if n == 10 {
					first[c.name] = med
				} else if first[c.name] > 0 {
					budget(b, med/first[c.name], 1.3, "x10rules")
				}
			})
		}
	}
}

// runOpen judges an open file 4,096 times in the kernel and returns the nanoseconds of one verdict.
func runOpen(b testing.TB, k *bpf.Kernel, f *os.File, want pavise.Action) float64 {
	const count = 4096
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	o := bpf.KernelOpened{Fd: uint32(f.Fd()), Count: count}
	if err := k.Map("openeds").Put(uint32(0), &o); err != nil {
		b.Fatal(err)
	}
	if err := k.Call("run_open"); err != nil {
		b.Fatal(err)
	}
	if err := k.Map("openeds").Lookup(uint32(0), &o); err != nil {
		b.Fatal(err)
	}
	if got := pavise.Action(o.Action); got != want {
		b.Fatalf("%s: %v, want %v", f.Name(), got, want)
	}
	return float64(o.Ns) / count
}

// BenchmarkChange is a change of policies from YAML to judging, among a thousand rules. The changes are 50 ms apart, as a
// person's are: back to back each waits for the programs that still read the side before (TestKernelUnderLoadFlips).
func BenchmarkChange(b *testing.B) {
	kerntest.Require(b, kerntest.Root, kerntest.Syscall, kerntest.TpBtf)
	l := start(b, func(*pavise.Event) {})
	m := l.machine()
	all := rulesYAML(1000, "monitor", "/nowhere/hit")
	set := parse(b, all...)
	apply := func(ps []*policy.Policy) Applied {
		a, err := l.Apply(image(b, m, ps))
		if err != nil {
			b.Fatal(err)
		}
		return a
	}
	ms := func(d time.Duration) float64 { return float64(d) / 1e6 }
	b.Run("rules=1000", func(b *testing.B) {
		var took []time.Duration
		for b.Loop() {
			time.Sleep(50 * time.Millisecond)
			begin := time.Now()
			fresh := able() // nothing is known of these policies
			fresh.Ops = m.Ops
			if _, err := l.Apply(image(b, fresh, parse(b, all...))); err != nil {
				b.Fatal(err)
			}
			took = append(took, time.Since(begin))
		}
		budget(b, ms(quantile(0.99, took)), 250, "p99-ms")
		b.ReportMetric(float64(quantile(0.5, took)), "ns/op")
	})
	b.Run("rule=1", func(b *testing.B) {
		apply(set)
		var took, compiled, staged, active, barrier []time.Duration
		for i := 0; b.Loop(); i++ {
			time.Sleep(50 * time.Millisecond)
			src := fmt.Sprintf("apiVersion: pavise.dev/v1alpha1\nkind: Policy\nmetadata: {name: p3}\nspec:\n  mode: monitor\n  rules:\n  - {name: r, on: [file.open], action: audit, when: 'file.path.under(\"/etc/x%d\") && !file.access.write'}\n", i)
			begin := time.Now()
			set[3] = parse(b, src)[0]
			img := image(b, m, set)
			compiled = append(compiled, time.Since(begin))
			a, err := l.Apply(img)
			if err != nil {
				b.Fatal(err)
			}
			took = append(took, time.Since(begin))
			staged, active = append(staged, a.Staged), append(active, a.Activated)
			begin = time.Now()
			l.grace()
			barrier = append(barrier, time.Since(begin))
		}
		budget(b, ms(quantile(0.99, took)), 20, "p99-ms")
		b.ReportMetric(float64(quantile(0.5, took)), "ns/op")
		b.ReportMetric(ms(quantile(0.5, compiled)), "compile-ms")
		b.ReportMetric(ms(quantile(0.5, staged)), "stage-ms")
		budget(b, float64(quantile(0.99, active))/1e3, 50, "activate-p99-µs")
		b.ReportMetric(ms(quantile(0.5, barrier)), "grace-ms")
	})
}

// BenchmarkLifecycle is the start and end of the smallest program with the lifecycle programs attached, against without, in turns.
func BenchmarkLifecycle(b *testing.B) {
	kerntest.Require(b, kerntest.Root, kerntest.Syscall, kerntest.TpBtf)
	l := start(b, func(*pavise.Event) {})
	program := shortProgram(b)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	turn := func() (took []float64) {
		for range 50 {
			begin := time.Now()
			pid, err := syscall.ForkExec(program, []string{"short"}, nil)
			if err != nil {
				b.Fatal(err)
			}
			var st unix.WaitStatus
			if _, err := unix.Wait4(pid, &st, 0, nil); err != nil {
				b.Fatal(err)
			}
			took = append(took, float64(time.Since(begin)))
		}
		return took
	}
	var with, without, ratio []float64
	for b.Loop() {
		on := quantile(0.5, turn())
		for _, p := range lifecycle {
			if err := l.k.Detach(p); err != nil {
				b.Fatal(err)
			}
		}
		off := quantile(0.5, turn())
		for _, p := range lifecycle {
			if err := l.k.Attach(p); err != nil {
				b.Fatal(err)
			}
		}
		with, without, ratio = append(with, on), append(without, off), append(ratio, on/off)
	}
	budget(b, quantile(0.5, ratio), 1.03, "x-without")
	b.ReportMetric(quantile(0.5, with), "ns/op")
	b.ReportMetric(quantile(0.5, without), "without-ns/op")
}

// BenchmarkStart is from nothing to judging.
func BenchmarkStart(b *testing.B) {
	kerntest.Require(b, kerntest.Root, kerntest.Syscall, kerntest.TpBtf)
	src := rulesYAML(1000, "monitor", "/nowhere/hit")
	var took []time.Duration
	for b.Loop() {
		begin := time.Now()
		e, err := Open(b.Context(), Options{})
		if err != nil {
			b.Fatal(err)
		}
		if err := e.Start(); err != nil {
			b.Fatal(err)
		}
		m := able()
		m.Ops = e.Machine()
		if _, err := e.Apply(image(b, m, parse(b, src...))); err != nil {
			b.Fatal(err)
		}
		took = append(took, time.Since(begin))
		if err := e.Close(); err != nil {
			b.Fatal(err)
		}
	}
	budget(b, float64(quantile(0.5, took))/1e6, 1000, "ms/op")
}
