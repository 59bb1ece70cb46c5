package bpf

import (
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// shared are the functions that judge. The verifier would walk them, with all that they call, in each program of a hook anew: that is nearly all of its work. So such a program
// is loaded with stubs in their place, and each function once, as a program of type EXT (freplace), which the kernel puts in the place of the stubs: 5.10
// (4a1e7c0c63e0 "bpf: Support attaching freplace programs to multiple attach points"). A call then ends in one more jump.
var shared = []string{"judge_object", "judge_special", "judge_socket"}

// errAlone says that the kernel does not let programs share.
var errAlone = errors.New("each program carries the engine on its own")

// noEngine is what a stub returns: NO_ENGINE in file.bpf.c.
const noEngine = -2

// shares tells whether a program is one of many that judge alike: those that need a trampoline, as EXT does. There are few others, and fexit cannot be extended.
func shares(spec *ebpf.ProgramSpec) bool {
	return spec.Type == ebpf.LSM || spec.AttachType == ebpf.AttachModifyReturn
}

// engine is a shared function for programs of one kind: the kernel lets it take the place of nothing else.
type engine struct {
	once sync.Once
	prog *ebpf.Program
	err  error
}

// engines are the shared functions that are loaded. Their links stand by function and program, and last as long as the program.
type engines struct {
	mu    sync.Mutex
	by    map[string]*engine
	links map[string]link.Link
	err   error // why programs are loaded whole
}

func (e *engines) close() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	var errs []error
	for name, l := range e.links {
		if err := l.Close(); err != nil {
			errs = append(errs, fmt.Errorf("take %s out: %w", name, err))
		}
	}
	for _, g := range e.by {
		if g.prog != nil {
			errs = append(errs, g.prog.Close())
		}
	}
	e.by, e.links = nil, nil
	return errors.Join(errs...)
}

// Whole returns why each program carries the engine on its own; nil as long as they share it.
func (k *Kernel) Whole() error {
	k.engines.mu.Lock()
	defer k.engines.mu.Unlock()
	return k.engines.err
}

// loadShared is load for a program that shares the engine; the error wraps errAlone when it cannot. The program has all of the engine before anybody can attach it.
func (k *Kernel) loadShared(object *ebpf.CollectionSpec, spec *ebpf.ProgramSpec) (p *ebpf.Program, err error) {
	main, functions := split(spec.Instructions)
	stubbed := spec.Copy()
	var stubs []string
	with := map[string]asm.Instructions{}
	for name, body := range functions {
		if slices.Contains(shared, name) {
			stubs = append(stubs, name)
			body = stub(body)
		}
		with[name] = body
	}
	stubbed.Instructions = join(main, with)
	p, err = k.loadSpec(object, stubbed)
	if err != nil {
		return nil, err
	}
	links := map[string]link.Link{}
	defer func() {
		if err != nil {
			for _, l := range links {
				_ = l.Close()
			}
			_ = p.Close()
		}
	}()
	types, err := p.Handle()
	if err != nil {
		return nil, fmt.Errorf("ask for the types of program %s: %w", spec.Name, err)
	}
	defer types.Close()
	known, err := types.Spec(nil)
	if err != nil {
		return nil, fmt.Errorf("read the types of program %s: %w", spec.Name, err)
	}
	for _, name := range stubs {
		e := k.engine(name, spec)
		e.once.Do(func() {
			e.prog, e.err = k.loadSpec(object, &ebpf.ProgramSpec{
				Name: name, Type: ebpf.Extension, AttachTarget: p, AttachTo: name, Instructions: join(name, functions), License: spec.License, ByteOrder: spec.ByteOrder,
			})
		})
		if e.err != nil {
			return nil, fmt.Errorf("%w: load %s: %w", errAlone, name, e.err)
		}
		l, err := replace(p, known, name, e.prog)
		if err != nil {
			return nil, fmt.Errorf("%w: put %s into program %s: %w", errAlone, name, spec.Name, err)
		}
		links[name+":"+spec.Name] = l
	}
	k.engines.mu.Lock()
	defer k.engines.mu.Unlock()
	for name, l := range links {
		k.engines.links[name] = l
	}
	return p, nil
}

func (k *Kernel) engine(name string, spec *ebpf.ProgramSpec) *engine {
	k.engines.mu.Lock()
	defer k.engines.mu.Unlock()
	key := fmt.Sprint(name, ":", spec.Type, spec.AttachType)
	if k.engines.by[key] == nil {
		k.engines.by[key] = new(engine)
	}
	return k.engines.by[key]
}

// alone makes all programs that are loaded from now on carry the engine on their own.
func (k *Kernel) alone(why error) {
	k.engines.mu.Lock()
	defer k.engines.mu.Unlock()
	k.engines.err = why
}

// highFD is more than an agent has of other descriptors.
const highFD = 1024

// replace puts a program in the place of a function of another. Of a process that dies the kernel closes descriptors in ascending order: with a high one, a hook's own
// link goes first.
func replace(p *ebpf.Program, types *btf.Spec, name string, with *ebpf.Program) (link.Link, error) {
	var f *btf.Func
	if err := types.TypeByName(name, &f); err != nil {
		return nil, err
	}
	id, err := types.TypeID(f)
	if err != nil {
		return nil, err
	}
	l, err := link.AttachRawLink(link.RawLinkOptions{Target: p.FD(), Program: with, Attach: ebpf.AttachNone, BTF: id})
	if err != nil {
		return nil, err
	}
	high, err := unix.FcntlInt(uintptr(l.FD()), unix.F_DUPFD_CLOEXEC, highFD)
	if err != nil {
		return l, nil // its number is a matter of a few milliseconds
	}
	up, err := link.NewFromFD(high)
	if err != nil {
		_ = unix.Close(high)
		return l, nil
	}
	return up, l.Close()
}

// split takes a program apart: the name of its first function, and all by name.
func split(ins asm.Instructions) (first string, functions map[string]asm.Instructions) {
	functions = map[string]asm.Instructions{}
	from, name := 0, ""
	for i := range ins {
		if s := ins[i].Symbol(); s != "" {
			if i == 0 {
				first = s
			} else {
				functions[name] = ins[from:i]
			}
			from, name = i, s
		}
	}
	functions[name] = ins[from:]
	return first, functions
}

// join makes a program of a function, and of those that it calls, and these, and so on.
func join(first string, functions map[string]asm.Instructions) (ins asm.Instructions) {
	names := []string{first}
	for i := 0; i < len(names); i++ {
		body := functions[names[i]]
		ins = append(ins, body...)
		for j := range body {
			if body[j].IsFunctionReference() && !slices.Contains(names, body[j].Reference()) {
				names = append(names, body[j].Reference())
			}
		}
	}
	return ins
}

// stub is a function of the same name and type that returns noEngine.
func stub(body asm.Instructions) asm.Instructions {
	head := asm.Mov.Imm(asm.R0, noEngine).WithSymbol(body[0].Symbol()).WithSource(body[0].Source())
	return asm.Instructions{btf.WithFuncMetadata(head, btf.FuncMetadata(&body[0])), asm.Return()}
}
