package bpf

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/pavise-project/pavise/internal/kerntest"
	"github.com/pavise-project/pavise/internal/vmtest"
	"golang.org/x/sys/unix"
)

var update = flag.Bool("update", false, "with TestKernelLoad, as root: measure here and in the virtual machines, and write testdata/verified.txt")

const (
	limitsFile = "testdata/verified.txt"
	limitsHead = `# How many instructions the verifier may walk for each program on any kernel of the matrix: a tenth more than it does where it does most. To renew it:
# go test ./bpf -run '^TestKernelLoad$' -update -timeout 60m
`
	// What the limits of all that an agent may load may be together: so that it does not grow unseen. BenchmarkLoad says what that takes; the goal is a second.
	mostVerified = 760_000
)

// limits reads testdata/verified.txt.
func limits(t testing.TB, spec *ebpf.CollectionSpec) map[string]uint32 {
	t.Helper()
	b, err := os.ReadFile(limitsFile)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]uint32{}
	for i, line := range strings.Split(string(b), "\n") {
		f := strings.Fields(line)
		if len(f) == 0 || strings.HasPrefix(line, "#") {
			continue
		}
		n, err := strconv.ParseUint(f[len(f)-1], 10, 32)
		if err != nil || len(f) != 2 || spec.Programs[f[0]] == nil && !slices.Contains(shared, f[0]) {
			t.Fatalf("%s:%d: want the name of a program, or of a function that programs share, and a number", limitsFile, i+1)
		}
		out[f[0]] = uint32(n)
	}
	return out
}

// agents says whether an agent that uses BPF LSM may load a program: not those of tests and benchmarks, nor those of the rungs below, which are in the place of
// others.
func agents(name string) bool {
	for _, p := range flowPrograms {
		if slices.Contains(p.instead, name) {
			return false
		}
	}
	return !strings.HasPrefix(name, "run_") && !strings.HasPrefix(name, "cg_") && !strings.HasPrefix(name, "fmod_")
}

// TestVerifiedLimits: each program has a limit, and together they are within the budget. That they hold is TestKernelLoad.
func TestVerifiedLimits(t *testing.T) {
	spec, err := LoadKernel()
	if err != nil {
		t.Fatal(err)
	}
	limit := limits(t, spec)
	var sum uint32
	for _, name := range append(slices.Collect(maps.Keys(spec.Programs)), shared...) {
		if limit[name] == 0 {
			t.Errorf("%s says nothing of %s: renew it", limitsFile, name)
		}
		if agents(name) {
			sum += limit[name]
		}
	}
	if sum > mostVerified {
		t.Errorf("the verifier may walk %d instructions in all, the budget is %d", sum, mostVerified)
	}
	t.Logf("%d programs, at most %d instructions in all, of %d", len(spec.Programs), sum, mostVerified)
}

// renew writes testdata/verified.txt from what was verified here, and what TestKernelLoad says in the virtual machines.
func renew(t *testing.T, most map[string]uint32) {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	says := regexp.MustCompile(`: (\w+): (\d+) instructions verified in`)
	for _, name := range vmtest.Names {
		if name == "5.10" { // below the floor
			continue
		}
		k, err := vmtest.Get(t.Context(), os.Stderr, name)
		if err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		vm := vmtest.VM{Kernel: k, Dir: dir, Timeout: 20 * time.Minute, Command: []string{os.Args[0], "-test.v", "-test.run", "^TestKernelLoad$", "-update"}, Output: &out, Log: os.Stderr}
		if status, err := vm.Run(t.Context()); err != nil || status != 0 {
			t.Fatalf("%s: exit status %d, %v\n%s", name, status, err, out.String())
		}
		for _, m := range says.FindAllStringSubmatch(out.String(), -1) {
			n, _ := strconv.ParseUint(m[2], 10, 32)
			most[m[1]] = max(most[m[1]], uint32(n))
		}
	}
	text := limitsHead
	for _, name := range slices.Sorted(maps.Keys(most)) {
		text += fmt.Sprintf("%s %d\n", name, (most[name]*11/10/1000+1)*1000)
	}
	if err := os.WriteFile(limitsFile, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// optional are the programs whose hooks came after the floor, and when.
var optional = map[string]string{
	"flow_send": "6.3", "flow_receive": "6.3", "lsm_ftruncate": "6.2", "lsm_set_acl": "6.2", "lsm_remove_acl": "6.2", "lsm_setgroups": "6.1", "lsm_userns": "6.1", "lsm_uring_cmd": "6.0",
}

// TestKernelLoad loads every program that the kernel can be expected to take; where BPF LSM is off, those of lsm as fmod_ret.
func TestKernelLoad(t *testing.T) {
	kerntest.Require(t, kerntest.Root, kerntest.Syscall, kerntest.TpBtf)
	k, err := Load()
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	object, err := k.object(k.types)
	if err != nil {
		t.Fatal(err)
	}
	limit, most := limits(t, object), map[string]uint32{}
	lsm := kerntest.Probe(kerntest.LSM)
	var all time.Duration
	var sum uint32
	for name, p := range object.Programs {
		t.Run(name, func(t *testing.T) {
			as := name
			switch p.Type {
			case ebpf.LSM:
				if lsm != nil && p.Flags&unix.BPF_F_SLEEPABLE == 0 {
					kerntest.Require(t, kerntest.Trampoline)
					as = "fmod_" + strings.TrimPrefix(name, "lsm_")
				} else {
					kerntest.Require(t, kerntest.LSM)
				}
				if ok, err := k.Hooked(as); err != nil || !ok {
					kerntest.Since(t, optional[name], "the hook of "+name)
					t.Fatalf("this kernel has no hook for it (%v)", err)
				}
			case ebpf.Tracing:
				if p.AttachType == ebpf.AttachModifyReturn || p.AttachType == ebpf.AttachTraceFExit || p.AttachType == ebpf.AttachTraceFEntry {
					kerntest.Require(t, kerntest.Trampoline)
				}
				if optional[name] != "" {
					kerntest.Since(t, optional[name], "the hook of "+name)
				}
			case ebpf.CGroupSockAddr, ebpf.CGroupSock:
				if !strings.HasPrefix(name, "flow_") {
					kerntest.Since(t, "6.18", "bpf_task_storage_get in cgroup programs")
				}
			case ebpf.CGroupSKB:
				if name == "cg_syn" { // the only one of these that judges
					kerntest.Since(t, "6.18", "bpf_task_storage_get in cgroup programs")
				}
			}
			start := time.Now()
			prog, err := k.Program(as)
			var v *ebpf.VerifierError
			if errors.As(err, &v) {
				t.Fatalf("%v\n%s", err, v.Log[max(0, len(v.Log)-30):])
			}
			if err != nil {
				t.Fatal(err)
			}
			took := time.Since(start)
			n := verified(t, prog)
			t.Logf("%s: %d instructions verified in %v", name, n, took.Round(time.Millisecond))
			most[name] = max(most[name], n)
			if agents(name) {
				all += took
				sum += n
			}
			if !*update && (limit[name] == 0 || n > limit[name]) {
				t.Errorf("%d instructions verified; %s allows %d", n, limitsFile, limit[name])
			}
		})
	}
	if err := k.Whole(); err != nil {
		t.Error(err)
	}
	for key, e := range k.engines.by {
		name, _, _ := strings.Cut(key, ":")
		n := verified(t, e.prog)
		t.Logf("%s: %d instructions verified in the first of these", name, n)
		most[name] = max(most[name], n)
		sum += n
		if !*update && (limit[name] == 0 || n > limit[name]) {
			t.Errorf("%s: %d instructions verified; %s allows %d", key, n, limitsFile, limit[name])
		}
	}
	t.Logf("all that an agent may load: %d instructions verified in %v, one program after the other", sum, all.Round(time.Millisecond))
	if *update && kerntest.VM() == "" && !t.Failed() {
		renew(t, most)
	}
}

func verified(t testing.TB, p *ebpf.Program) uint32 {
	t.Helper()
	info, err := p.Info()
	if err != nil {
		t.Fatal(err)
	}
	n, _ := info.VerifiedInstructions()
	return n
}

// here names the programs, other than those of tests, that this kernel takes.
func here(spec *ebpf.CollectionSpec) []string {
	lsm, trampoline := kerntest.Probe(kerntest.LSM) == nil, kerntest.Probe(kerntest.Trampoline) == nil
	var names []string
	for name, p := range spec.Programs {
		if !strings.HasPrefix(name, "run_") && (lsm || p.Type != ebpf.LSM) && (trampoline || p.AttachType != ebpf.AttachModifyReturn) {
			names = append(names, name)
		}
	}
	return names
}

// BenchmarkLoad loads, side by side, the programs that this kernel takes. It takes only a part of them where it has no BPF LSM: all-s is what all would
// take at this rate, and their limits.
func BenchmarkLoad(b *testing.B) {
	kerntest.Require(b, kerntest.Root, kerntest.Syscall, kerntest.TpBtf)
	var took time.Duration
	var sum, all uint32
	var programs int
	spec, err := LoadKernel()
	if err != nil {
		b.Fatal(err)
	}
	for name, n := range limits(b, spec) {
		if agents(name) {
			all += n
		}
	}
	for b.Loop() {
		b.StopTimer()
		k, err := Load()
		if err != nil {
			b.Fatal(err)
		}
		sum, programs = 0, 0
		object, err := k.object(k.types)
		if err != nil {
			b.Fatal(err)
		}
		names := here(object)
		b.StartTimer()
		start := time.Now()
		k.Preload(names...)
		took += time.Since(start)
		b.StopTimer()
		for _, p := range k.programs {
			sum += verified(b, p)
			programs++
		}
		for _, e := range k.engines.by {
			sum += verified(b, e.prog)
			programs++
		}
		if err := k.Close(); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
	rate := took.Seconds() / float64(b.N) / float64(sum)
	b.ReportMetric(float64(programs), "programs")
	b.ReportMetric(float64(sum), "verified")
	b.ReportMetric(rate*1e9, "ns/verified")
	b.ReportMetric(rate*float64(all), "all-s")
	b.ReportMetric(1, "budget-all-s")
}

// TestKernelCloseTwice: whoever gives up closes what may be closed already.
func TestKernelCloseTwice(t *testing.T) {
	kerntest.Require(t, kerntest.Root, kerntest.Syscall)
	k, err := Load()
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := k.Close(); err != nil {
			t.Error(err)
		}
	}
}
