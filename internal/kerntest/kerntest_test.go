package kerntest

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
)

// Each feature is probed in a test of its own, so that a failure in a virtual machine names it.
func TestKernelFeatures(t *testing.T) {
	Require(t, Recent)
	for _, f := range []Feature{Root, BPF, BTF, TpBtf, Cgroup, Trampoline, Syscall} {
		t.Run(string(f), func(t *testing.T) { Require(t, f) })
	}
}

// The whole way: a program that refuses file_open for one process makes its open fail with EPERM.
func TestKernelSmoke(t *testing.T) {
	Require(t, Root, LSM)
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.LSM, AttachType: ebpf.AttachLSMMac, AttachTo: "file_open", License: "GPL",
		Instructions: asm.Instructions{
			asm.FnGetCurrentPidTgid.Call(),
			asm.RSh.Imm(asm.R0, 32),
			asm.Mov.Reg(asm.R1, asm.R0),
			asm.Mov.Imm(asm.R0, 0),
			asm.JNE.Imm(asm.R1, int32(os.Getpid()), "out"),
			asm.Mov.Imm(asm.R0, -1),
			asm.Return().WithSymbol("out"),
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	name := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(name, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := link.AttachLSM(link.LSMOptions{Program: p})
	if err != nil {
		t.Fatal(err)
	}
	_, err = os.Open(name)
	l.Close()
	if !errors.Is(err, os.ErrPermission) {
		t.Errorf("open while file_open is refused: %v", err)
	}
	if _, err := os.Open(name); err != nil {
		t.Errorf("open afterwards: %v", err)
	}
}

func TestKernelNoLSM(t *testing.T) {
	Require(t, Root, NoLSM)
	if err := Probe(LSM); err == nil {
		t.Error("BPF LSM works after all")
	} else {
		t.Log(err)
	}
}

func TestKernelOld(t *testing.T) {
	Require(t, Old, BPF)
}

func TestParseVersion(t *testing.T) {
	for s, want := range map[string][2]int{
		"6.1.0-50-cloud-amd64\n": {6, 1}, "5.15": {5, 15}, "7.3.4+deb13": {7, 3}, "6.18-rc1": {6, 18},
	} {
		if got, err := parseVersion(s); err != nil || got != want {
			t.Errorf("%q: %v, %v", s, got, err)
		}
	}
	if _, err := parseVersion("six"); err == nil {
		t.Error("six is no version")
	}
	if !less([2]int{5, 10}, floor) || less([2]int{6, 1}, floor) || less(floor, floor) {
		t.Error("less is wrong")
	}
}
