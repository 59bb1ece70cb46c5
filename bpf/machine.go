package bpf

import (
	"fmt"
	"runtime"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
)

// Operations, as enum op in event.h, that the kill-on-return rung judges by system call.
const (
	opOpen    = 2
	opConnect = 3
	opBind    = 4
	opListen  = 5
	opAccept  = 6
	opSocket  = 8
	opChroot  = 25
	opPerf    = 29
	opUring   = 32
)

// Where the flags of an open are, as enum sys_flags in return.bpf.c.
const (
	openArg1  = opOpen | 1<<8
	openArg2  = opOpen | 2<<8
	openHow   = opOpen | 3<<8
	openCreat = opOpen | 4<<8
	pair      = opSocket | 5<<8
)

// arch is what the programs must know of a machine: where the registers are in pt_regs, and the numbers of the system calls whose
// results are judged. From the kernel's arch/*/include/asm/ptrace.h and its system call tables.
type arch struct {
	nr             uint32
	args, compats  [3]uint32 // of native and of 32-bit calls
	native, compat map[int]uint16
}

var arches = map[string]arch{
	"amd64": {
		nr: 120, args: [3]uint32{112, 104, 96}, compats: [3]uint32{40, 88, 96},
		native: map[int]uint16{
			2: openArg1, 85: openCreat, 257: openArg2, 304: openArg2, 437: openHow, // open creat openat open_by_handle_at openat2
			42: opConnect, 49: opBind, 50: opListen, 43: opAccept, 288: opAccept,
			41: opSocket, 53: pair, 161: opChroot, 298: opPerf, 425: opUring,
		},
		compat: map[int]uint16{
			5: openArg1, 8: openCreat, 295: openArg2, 342: openArg2, 437: openHow,
			362: opConnect, 361: opBind, 363: opListen, 364: opAccept,
			359: opSocket, 360: pair, 61: opChroot, 336: opPerf, 425: opUring,
		},
	},
	"arm64": {
		nr: 280, args: [3]uint32{272, 8, 16}, compats: [3]uint32{272, 8, 16},
		native: map[int]uint16{
			56: openArg2, 265: openArg2, 437: openHow,
			203: opConnect, 200: opBind, 201: opListen, 202: opAccept, 242: opAccept,
			198: opSocket, 199: pair, 51: opChroot, 241: opPerf, 425: opUring,
		},
		compat: map[int]uint16{
			5: openArg1, 8: openCreat, 322: openArg2, 371: openArg2, 437: openHow,
			283: opConnect, 282: opBind, 284: opListen, 285: opAccept, 366: opAccept,
			281: opSocket, 288: pair, 61: opChroot, 364: opPerf, 425: opUring,
		},
	},
}

// setMachine writes the object's constants: those of the architecture, the number of CPUs, and the key by which strings are hashed.
func setMachine(spec *ebpf.CollectionSpec, types *btf.Cache, sip [2]uint64) error {
	a, ok := arches[runtime.GOARCH]
	if !ok {
		return fmt.Errorf("%w: architecture %s; amd64 and arm64 are", ErrUnsupported, runtime.GOARCH)
	}
	var sys [2][512]uint16
	for i, t := range []map[int]uint16{a.native, a.compat} {
		for nr, op := range t {
			sys[i][nr] = op
		}
	}
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return fmt.Errorf("count the CPUs: %w", err)
	}
	perf, err := perfTypeArg(types)
	if err != nil {
		return err
	}
	n := uint32(max(cpus, 3) * scratchPerCPU) // scratch_get tries three CPUs' worth
	spec.Maps["scratches"].MaxEntries, spec.Maps["cgroups_told"].MaxEntries, spec.Maps["guests"].MaxEntries = n, n, n
	for name, v := range map[string]any{
		"num_scratches": n, "sys_op": sys, "perf_type_arg": perf, "sip_key": sip,
		"regs_nr_off": a.nr, "regs_arg0_off": a.args[0], "regs_arg0_off_compat": a.compats[0],
		"regs_arg1_off": a.args[1], "regs_arg1_off_compat": a.compats[1],
		"regs_arg2_off": a.args[2], "regs_arg2_off_compat": a.compats[2],
	} {
		if err := spec.Variables[name].Set(v); err != nil {
			return fmt.Errorf("set %s in the kernel object: %w", name, err)
		}
	}
	return nil
}

// perfTypeArg is the number of the argument type of the hook perf_event_open: it had attr before it until 6.16 or so.
func perfTypeArg(types *btf.Cache) (uint32, error) {
	kernel, err := types.Kernel()
	if err != nil {
		return 0, fmt.Errorf("read the kernel's types: %w", err)
	}
	var fn *btf.Func
	if kernel.TypeByName("bpf_lsm_perf_event_open", &fn) != nil && kernel.TypeByName("security_perf_event_open", &fn) != nil {
		return 0, nil // the program is not loaded
	}
	if proto, ok := fn.Type.(*btf.FuncProto); ok {
		for i, p := range proto.Params {
			if p.Name == "type" {
				return uint32(i), nil
			}
		}
	}
	return 0, nil
}
