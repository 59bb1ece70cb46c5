package bpf

import (
	"errors"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/pavise-project/pavise"
	"github.com/pavise-project/pavise/internal/kerntest"
	"golang.org/x/sys/unix"
)

// TestSplit: a program that is taken apart and joined again is the same, and a stub takes what only it called with it.
func TestSplit(t *testing.T) {
	spec, err := LoadKernel()
	if err != nil {
		t.Fatal(err)
	}
	for name, p := range spec.Programs {
		first, functions := split(p.Instructions)
		if first != name {
			t.Errorf("%s begins with %s", name, first)
		}
		if whole := join(first, functions); len(whole) != len(p.Instructions) {
			t.Errorf("%s: of %d instructions %d are left", name, len(p.Instructions), len(whole))
		}
		if !shares(p) {
			continue
		}
		cut := maps.Clone(functions)
		for _, s := range shared {
			if functions[s] != nil {
				cut[s] = stub(functions[s])
			}
		}
		_, left := split(join(first, cut))
		if left["judge"] != nil || left["report"] != nil {
			t.Errorf("%s still has an engine of its own: %v", name, slices.Sorted(maps.Keys(left)))
		}
	}
}

// TestKernelShare: what a hook does is done by the engine that it shares. Without it, it refuses what an enforced rule judges, and nothing else, and once it is released, nothing.
func TestKernelShare(t *testing.T) {
	kerntest.Require(t, kerntest.Root, kerntest.Syscall, kerntest.Trampoline)
	k, err := Load()
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	programs := []string{"lsm_chmod", "lsm_mkdir", "lsm_socket"}
	if kerntest.Probe(kerntest.LSM) != nil {
		programs = []string{"fmod_chmod", "fmod_mkdir", "fmod_socket"}
	}
	// One more than the first makes a shared function; the second judges with that of the first.
	k.Preload(programs...)
	for _, p := range programs {
		if err := k.Attach(p); err != nil {
			t.Fatal(err)
		}
	}
	if err := k.Whole(); err != nil {
		t.Fatal(err)
	}
	links := slices.Sorted(maps.Keys(k.engines.links))
	if want := []string{"judge_object:" + programs[0], "judge_object:" + programs[1], "judge_socket:" + programs[2]}; !slices.Equal(links, want) {
		t.Fatalf("linked: %v, want %v", links, want)
	}

	// Each operation has a word, none of whose clauses exists: the engine finds nothing against it, and says so.
	tables, _, err := k.Side(0, 1)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	deeds := map[pavise.Op]func() error{
		pavise.OpCreate: func() error {
			err := os.Mkdir(dir+"/new", 0o700)
			_ = os.Remove(dir + "/new")
			return err
		},
		pavise.OpChmod: func() error { return os.Chmod(dir, 0o700) },
		pavise.OpSocket: func() error {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
			if err == nil {
				err = unix.Close(fd)
			}
			return err
		},
	}
	tables.Gen = 1
	try := func(what string, refused bool) {
		t.Helper()
		for op, deed := range deeds {
			o := &tables.Ops[op]
			o.All[0], o.Words[0].Kind, o.N_words, o.Enforces = 1, 1, 1, 1
			err := deed()
			o.Enforces = 0
			audited := deed()
			o.N_words = 0
			if refused != errors.Is(err, unix.EPERM) || !refused && err != nil {
				t.Errorf("%s: %s, which an enforced rule judges: %v, want refused: %v", what, op, err, refused)
			}
			if audited != nil {
				t.Errorf("%s: %s, which is only audited: %v", what, op, audited)
			}
		}
	}
	try("with the engine", false)
	for _, l := range k.engines.links {
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	clear(k.engines.links)
	try("without", true)
	k.release()
	try("without, released", false)
	var per []uint64
	if err := k.Map("errors").Lookup(uint32(4), &per); err != nil {
		t.Fatal(err)
	}
	var n uint64
	for _, v := range per {
		n += v
	}
	if n < 2*uint64(len(deeds)) {
		t.Errorf("%d calls without an engine are counted, want at least %d", n, 2*len(deeds))
	}
}

// TestKernelAlone: where programs cannot share, each carries the engine on its own.
func TestKernelAlone(t *testing.T) {
	kerntest.Require(t, kerntest.Root, kerntest.Syscall, kerntest.Trampoline)
	k, err := Load()
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	name := "lsm_chmod"
	if kerntest.Probe(kerntest.LSM) != nil {
		name = "fmod_chmod"
	}
	// A kernel that refuses the engine: it does not get what it was verified for.
	e := k.engine("judge_object", &ebpf.ProgramSpec{Type: ebpf.LSM, AttachType: ebpf.AttachLSMMac})
	if strings.HasPrefix(name, "fmod_") {
		e = k.engine("judge_object", &ebpf.ProgramSpec{Type: ebpf.Tracing, AttachType: ebpf.AttachModifyReturn})
	}
	e.once.Do(func() { e.err = ebpf.ErrNotSupported })
	if err := k.Attach(name); err != nil {
		t.Fatal(err)
	}
	if err := k.Whole(); !errors.Is(err, ebpf.ErrNotSupported) {
		t.Errorf("programs are loaded whole because of %v, want %v", err, ebpf.ErrNotSupported)
	}
	if n := verified(t, k.programs[name]); n < 20_000 {
		t.Errorf("%d instructions verified: where is the engine?", n)
	}
	if len(k.engines.links) > 0 {
		t.Errorf("linked: %v", k.engines.links)
	}
}
