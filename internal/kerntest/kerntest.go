// Package kerntest says what a kernel test needs, so that it runs wherever that exists and is
// skipped only where it cannot be expected. A test that silently stops running proves nothing.
//
// Kernel tests are called TestKernel*. In a virtual machine of the test kit, what the kernel has
// is known beforehand: a feature that should be there and is not fails the test. On any other
// kernel the feature is looked for, by doing, and the test is skipped without it. Tests of the
// refusal of kernels below the floor are called TestKernelOld* and require Old; the kit runs
// those, and only those, in such a kernel.
package kerntest

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// Feature is something that a test needs of the kernel.
type Feature string

// Features; the version is the first kernel that has it.
const (
	Root       Feature = "root"        // the effective user is 0
	BPF        Feature = "bpf"         // programs and maps can be loaded
	BTF        Feature = "btf"         // the kernel describes its types; 5.4
	TpBtf      Feature = "tp_btf"      // typed raw tracepoints; 5.5
	Cgroup     Feature = "cgroup"      // cgroup v2 takes programs; 4.10, links 5.7
	Trampoline Feature = "trampoline"  // fentry, fexit and fmod_ret attach; 5.5, fmod_ret 5.7
	LSM        Feature = "lsm"         // BPF LSM programs attach and are called; 5.7, and lsm= must have bpf
	NoLSM      Feature = "no lsm"      // the opposite of LSM: for tests of the lower rungs
	Syscall    Feature = "syscall"     // BPF_PROG_TYPE_SYSCALL, as Program.Run tests use it; 5.14
	Old        Feature = "old kernel"  // below Pavise's floor, 5.15: for tests of the refusal
	Recent     Feature = "5.15 kernel" // the floor; every feature but Old implies it
)

// NotExpected begins the reason of a skip by this package. The matrix of virtual machines lets no
// other reason pass for a TestKernel* test.
const NotExpected = "skip: not expected here: "

// floor is the oldest kernel that Pavise runs on.
var floor = [2]int{5, 15}

// Require skips the test unless all features can be expected here, and fails it if one is
// expected and missing. Short runs (go test -short) skip every kernel test.
func Require(t testing.TB, features ...Feature) {
	t.Helper()
	if testing.Short() {
		t.Skip("skip: kernel tests are left out of short runs")
	}
	old, err := isOld()
	if err != nil {
		t.Fatal(err)
	}
	wantOld := false
	for _, f := range features {
		wantOld = wantOld || f == Old
	}
	if old != wantOld {
		t.Skipf("%sneeds %s", NotExpected, map[bool]Feature{true: Old, false: Recent}[wantOld])
	}
	for _, f := range features {
		require(t, f)
	}
}

// Since skips the test on kernels before the version that what names first appeared in, such as
// Since(t, "6.0", "lsm_cgroup").
func Since(t testing.TB, version, what string) {
	t.Helper()
	want, err := parseVersion(version)
	if err != nil {
		t.Fatal(err)
	}
	have, err := kernelVersion()
	if err != nil {
		t.Fatal(err)
	}
	if less(have, want) {
		t.Skipf("%s%s needs Linux %s", NotExpected, what, version)
	}
}

// AtLeast tells whether the kernel is of this version or newer: for what a test expects of it.
func AtLeast(major, minor int) bool {
	have, err := kernelVersion()
	return err == nil && !less(have, [2]int{major, minor})
}

// VM returns the name of the test kit's virtual machine, or "" on another kernel.
func VM() string { return os.Getenv("PAVISE_VM") }

func require(t testing.TB, f Feature) {
	t.Helper()
	err := Probe(f)
	if VM() == "" {
		if err != nil {
			t.Skipf("%sneeds %s: %v", NotExpected, f, err)
		}
		return
	}
	expected := true
	switch f {
	case LSM:
		expected = os.Getenv("PAVISE_EXPECT") == "lsm"
	case NoLSM:
		expected = os.Getenv("PAVISE_EXPECT") == "nolsm"
	}
	switch {
	case expected && err != nil:
		t.Fatalf("%s should work in %s: %v", f, VM(), err)
	case !expected && err == nil:
		t.Fatalf("%s should not work in %s", f, VM())
	case !expected:
		t.Skipf("%sneeds %s", NotExpected, f)
	}
}

// Probe looks for a feature, by doing what needs it. The answer is kept.
func Probe(f Feature) error {
	probe, ok := probes[f]
	if !ok {
		return fmt.Errorf("no such feature: %s", f)
	}
	return probe()
}

var probes = map[Feature]func() error{
	Root:       sync.OnceValue(probeRoot),
	BPF:        sync.OnceValue(probeBPF),
	BTF:        sync.OnceValue(probeBTF),
	TpBtf:      sync.OnceValue(probeTpBtf),
	Cgroup:     sync.OnceValue(probeCgroup),
	Trampoline: sync.OnceValue(probeTrampoline),
	LSM:        lsm,
	NoLSM:      sync.OnceValue(probeNoLSM),
	Syscall:    sync.OnceValue(probeSyscall),
	Old:        func() error { return nil }, // Require has looked
	Recent:     func() error { return nil },
}

var lsm = sync.OnceValue(probeLSM)

func isOld() (bool, error) {
	v, err := kernelVersion()
	return less(v, floor), err
}

func kernelVersion() ([2]int, error) {
	text, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return [2]int{}, fmt.Errorf("read the kernel's version: %w", err)
	}
	return parseVersion(string(text))
}

func parseVersion(s string) (v [2]int, err error) {
	major, rest, _ := strings.Cut(s, ".")
	minor := rest
	if i := strings.IndexFunc(rest, func(r rune) bool { return r < '0' || r > '9' }); i >= 0 {
		minor = rest[:i]
	}
	if v[0], err = strconv.Atoi(major); err == nil {
		v[1], err = strconv.Atoi(minor)
	}
	if err != nil {
		return v, fmt.Errorf("parse kernel version %q: %w", s, err)
	}
	return v, nil
}

func less(a, b [2]int) bool { return a[0] < b[0] || a[0] == b[0] && a[1] < b[1] }
