package kerntest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
)

var returnZero = asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()}

func probeRoot() error {
	if uid := os.Geteuid(); uid != 0 {
		return fmt.Errorf("the user id is %d", uid)
	}
	return nil
}

func probeBPF() error {
	return load(&ebpf.ProgramSpec{Type: ebpf.SocketFilter, Instructions: returnZero}, nil)
}

func probeSyscall() error {
	return load(&ebpf.ProgramSpec{Type: ebpf.Syscall, Flags: 1 << 4 /* BPF_F_SLEEPABLE */, Instructions: returnZero}, nil)
}

func probeBTF() error {
	_, err := btf.LoadKernelSpec()
	return err
}

func probeTpBtf() error {
	return load(&ebpf.ProgramSpec{
		Type: ebpf.Tracing, AttachType: ebpf.AttachTraceRawTp, AttachTo: "sched_process_exec", Instructions: returnZero,
	}, attachTracing)
}

// probeTrampoline attaches fmod_ret to a security hook, as the second rung of the ladder does.
func probeTrampoline() error {
	return load(&ebpf.ProgramSpec{
		Type: ebpf.Tracing, AttachType: ebpf.AttachModifyReturn, AttachTo: "security_file_open", Instructions: returnZero,
	}, attachTracing)
}

// probeLSM attaches to file_open and opens a file. The attachment alone proves nothing: without
// bpf in the kernel's lsm= list it succeeds, and the program is never called.
func probeLSM() error {
	calls, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1})
	if err != nil {
		return fmt.Errorf("make a map: %w", err)
	}
	defer calls.Close()
	return load(&ebpf.ProgramSpec{
		Type: ebpf.LSM, AttachType: ebpf.AttachLSMMac, AttachTo: "file_open", License: "GPL",
		Instructions: CountInstructions(calls),
	}, func(p *ebpf.Program) error {
		l, err := link.AttachLSM(link.LSMOptions{Program: p})
		if err != nil {
			return fmt.Errorf("attach: %w", err)
		}
		defer l.Close()
		f, err := os.Open("/proc/self/status")
		if err != nil {
			return err
		}
		f.Close()
		var n uint64
		if err := calls.Lookup(uint32(0), &n); err != nil {
			return fmt.Errorf("read the count: %w", err)
		}
		if n == 0 {
			return errors.New("file_open is attached and never called: is bpf in the kernel's lsm= list?")
		}
		return nil
	})
}

func probeNoLSM() error {
	if lsm() == nil {
		return errors.New("BPF LSM works")
	}
	return nil
}

// CountInstructions adds one to the first 64-bit value of an array and returns 0.
func CountInstructions(counts *ebpf.Map) asm.Instructions {
	return asm.Instructions{
		asm.StoreImm(asm.R10, -4, 0, asm.Word),
		asm.LoadMapPtr(asm.R1, counts.FD()),
		asm.Mov.Reg(asm.R2, asm.R10),
		asm.Add.Imm(asm.R2, -4),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "out"),
		asm.Mov.Imm(asm.R1, 1),
		asm.AddAtomic.Mem(asm.R0, asm.R1, asm.DWord, 0),
		asm.Mov.Imm(asm.R0, 0).WithSymbol("out"),
		asm.Return(),
	}
}

// probeCgroup attaches to a cgroup of its own, below the root of cgroup v2.
func probeCgroup() error {
	root, err := CgroupRoot()
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp(root, "kerntest-")
	if err != nil {
		return fmt.Errorf("make a cgroup: %w", err)
	}
	defer os.Remove(dir)
	return load(&ebpf.ProgramSpec{
		Type: ebpf.CGroupSock, AttachType: ebpf.AttachCGroupInetSockCreate,
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 1), asm.Return()},
	}, func(p *ebpf.Program) error {
		l, err := link.AttachCgroup(link.CgroupOptions{Path: dir, Attach: ebpf.AttachCGroupInetSockCreate, Program: p})
		if err != nil {
			return fmt.Errorf("attach: %w", err)
		}
		return l.Close()
	})
}

// CgroupRoot returns where cgroup v2 is mounted.
func CgroupRoot() (string, error) {
	text, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return "", fmt.Errorf("read the mounts: %w", err)
	}
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 2 && f[2] == "cgroup2" {
			return filepath.Clean(f[1]), nil
		}
	}
	return "", errors.New("cgroup v2 is not mounted")
}

func attachTracing(p *ebpf.Program) error {
	l, err := link.AttachTracing(link.TracingOptions{Program: p})
	if err != nil {
		return fmt.Errorf("attach: %w", err)
	}
	return l.Close()
}

// load loads a program, uses it and unloads it.
func load(spec *ebpf.ProgramSpec, use func(*ebpf.Program) error) error {
	if spec.License == "" {
		spec.License = "GPL"
	}
	p, err := ebpf.NewProgram(spec)
	if err != nil {
		return fmt.Errorf("load: %w", err)
	}
	defer p.Close()
	if use == nil {
		return nil
	}
	return use(p)
}
