package bpf

import (
	"fmt"
	"runtime"

	"github.com/cilium/ebpf"
)

// Operations, as enum op in event.h, that the kill-on-return rung judges by system call.
const (
	opOpen    = 2
	opConnect = 3
	opBind    = 4
	opListen  = 5
	opAccept  = 6
)

// arch is what the programs must know of a machine: where the registers are in pt_regs, and the numbers of the system calls whose
// results are judged. From the kernel's arch/*/include/asm/ptrace.h and its system call tables.
type arch struct {
	nr, arg0, arg0Compat uint32
	native, compat       map[int]uint8
}

var arches = map[string]arch{
	"amd64": {
		nr: 120, arg0: 112, arg0Compat: 40,
		native: map[int]uint8{
			2: opOpen, 85: opOpen, 257: opOpen, 304: opOpen, 437: opOpen, // open creat openat open_by_handle_at openat2
			42: opConnect, 49: opBind, 50: opListen, 43: opAccept, 288: opAccept,
		},
		compat: map[int]uint8{
			5: opOpen, 8: opOpen, 295: opOpen, 342: opOpen, 437: opOpen,
			362: opConnect, 361: opBind, 363: opListen, 364: opAccept,
		},
	},
	"arm64": {
		nr: 280, arg0: 272, arg0Compat: 272,
		native: map[int]uint8{
			56: opOpen, 265: opOpen, 437: opOpen,
			203: opConnect, 200: opBind, 201: opListen, 202: opAccept, 242: opAccept,
		},
		compat: map[int]uint8{
			5: opOpen, 8: opOpen, 322: opOpen, 371: opOpen, 437: opOpen,
			283: opConnect, 282: opBind, 284: opListen, 285: opAccept, 366: opAccept,
		},
	},
}

// setMachine writes the object's constants: those of the architecture and the number of CPUs.
func setMachine(spec *ebpf.CollectionSpec) error {
	a, ok := arches[runtime.GOARCH]
	if !ok {
		return fmt.Errorf("%w: architecture %s; amd64 and arm64 are", ErrUnsupported, runtime.GOARCH)
	}
	var sys [2][512]uint8
	for i, t := range []map[int]uint8{a.native, a.compat} {
		for nr, op := range t {
			sys[i][nr] = op
		}
	}
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return fmt.Errorf("count the CPUs: %w", err)
	}
	n := uint32(max(cpus, 3) * scratchPerCPU) // scratch_get tries three CPUs' worth
	spec.Maps["scratches"].MaxEntries = n
	for name, v := range map[string]any{
		"num_scratches": n, "sys_op": sys,
		"regs_nr_off": a.nr, "regs_arg0_off": a.arg0, "regs_arg0_off_compat": a.arg0Compat,
	} {
		if err := spec.Variables[name].Set(v); err != nil {
			return fmt.Errorf("set %s in the kernel object: %w", name, err)
		}
	}
	return nil
}
