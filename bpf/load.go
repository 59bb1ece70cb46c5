package bpf

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/features"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -type rec_hdr -type rec_file -type rec_net -type rec_proc -type rec_exit -type rec_kind -type rec_flow -type rec_flow_data -type flow_data_kind -type flow_state -type flow_end -type flow_direction -type flow_sock -type flow_peer -type flow_peer_key -type flow_owner -type flow_unix -type proc -type texts_short -type texts_long -type tables -type pool -type control -type hit -type verdict -type scratch -type automaton -type op_table -type word -type slot -type row -type leaf -type mount_info -type inode_key -type inode_name -type op_stats -type fold_key -type fold -type test_judge -type opened -type shade_count -type set_string -type set_prefix -type rate -type digests -type listen_key -type connect_key Kernel pavise.bpf.c -- -I. -O2 -g -Wall -Werror -mcpu=v3

// ErrPrivileges says that the process may not load programs.
var ErrPrivileges = errors.New("no privileges: run as root, or with CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN, CAP_SYS_ADMIN and CAP_SYS_PTRACE")

// ErrUnsupported says that the kernel lacks what Pavise cannot do without; the error that wraps it names it.
var ErrUnsupported = errors.New("kernel not supported")

const scratchPerCPU = 4 // SCRATCH_PER_CPU

// Kernel is the one object of Pavise with its maps made: programs are loaded when they are first asked for, and attached and detached by name.
type Kernel struct {
	sip    [2]uint64
	maps   map[string]*ebpf.Map
	vars   map[string]variableAt
	inners map[string]innerLayout

	specs struct {
		sync.Mutex
		object *ebpf.CollectionSpec // until Trim: read again when a program is to be loaded. It takes some 15 MB
		maps   map[string]*ebpf.MapSpec
		flows  flowSpecs
	}

	mu       sync.Mutex
	inner    map[innerSlot]*ebpf.Map // in the arrays of maps
	programs map[string]*ebpf.Program
	links    map[string]link.Link
	engines  engines           // what programs share
	cgroup   int               // the root of cgroup v2, -1 until it is needed
	windows  [][]byte          // on maps, until Trim
	sections map[string][]byte // of the object's variables
	pinned   *pinned           // nil: it ends with the process
	last     *ebpf.Map         // generation, with pinned
	types    *btf.Cache        // of the kernel, some MB, until Trim
}

// Load checks that the kernel has what the base needs and makes the maps. Nothing is attached. The error wraps ErrPrivileges or
// ErrUnsupported when that is the cause.
func Load() (*Kernel, error) {
	types := btf.NewCache()
	var spec *ebpf.CollectionSpec
	var specErr error
	var read sync.WaitGroup
	read.Go(func() { spec, specErr = LoadKernel() })
	err := checkBase(types)
	read.Wait()
	switch {
	case err != nil:
		return nil, err
	case specErr != nil:
		return nil, fmt.Errorf("read the kernel object: %w", specErr)
	}
	var key [16]byte
	_, _ = rand.Read(key[:]) // never fails
	sip := [2]uint64{binary.LittleEndian.Uint64(key[:]), binary.LittleEndian.Uint64(key[8:])}
	if err := prepare(spec, types, sip); err != nil {
		return nil, err
	}
	k := newKernel(types)
	k.sip = sip
	k.specs.flows = cutFlows(spec)
	coll, err := ebpf.NewCollectionWithOptions(&ebpf.CollectionSpec{Maps: spec.Maps, Types: spec.Types, ByteOrder: spec.ByteOrder, Variables: spec.Variables},
		ebpf.CollectionOptions{Cache: types})
	if err != nil {
		return nil, fmt.Errorf("make the maps: %w", cause(err))
	}
	k.specs.object, k.specs.maps = spec, spec.Maps
	k.vars, k.inners = layouts(spec)
	for name, m := range coll.Maps {
		k.maps[name] = m
		coll.DetachMap(name)
	}
	coll.Close()
	return k, nil
}

func newKernel(types *btf.Cache) *Kernel {
	return &Kernel{
		maps: map[string]*ebpf.Map{}, inner: map[innerSlot]*ebpf.Map{}, programs: map[string]*ebpf.Program{}, links: map[string]link.Link{},
		engines: engines{by: map[string]*engine{}, links: map[string]link.Link{}}, sections: map[string][]byte{}, types: types, cgroup: -1,
	}
}

// prepare makes the object one for this machine.
func prepare(spec *ebpf.CollectionSpec, types *btf.Cache, sip [2]uint64) error {
	spec.Maps["hits"].Flags |= unix.BPF_F_MMAPABLE // read and cleared by the thousand
	if err := setMachine(spec, types, sip); err != nil {
		return err
	}
	return dropMissing(spec, types)
}

// object is the programs as they are to be loaded.
func (k *Kernel) object(types *btf.Cache) (*ebpf.CollectionSpec, error) {
	k.specs.Lock()
	defer k.specs.Unlock()
	if k.specs.object != nil {
		return k.specs.object, nil
	}
	spec, err := LoadKernel()
	if err != nil {
		return nil, fmt.Errorf("read the kernel object: %w", err)
	}
	if err := prepare(spec, types, k.sip); err != nil {
		return nil, err
	}
	if flows := cutFlows(spec); k.specs.flows.maps == nil {
		k.specs.flows = flows
	}
	if k.specs.maps == nil { // they were adopted
		k.specs.maps = spec.Maps
	}
	spec.Maps = k.specs.maps
	k.specs.object = spec
	return spec, nil
}

// absent is no function of any kernel: what calls it is never reached.
const absent = asm.BuiltinFunc(0xbad_face)

// loadAddress loads, among other things, the address of a kernel function.
var loadAddress = asm.LoadImmOp(asm.DWord)

// dropMissing takes out the uses of kernel functions that the kernel does not have, and that are weak. The library would do the same, but look for each of some
// hundred uses in a program through every BTF object that is loaded, in case that a module has it: on 6.1 that took longer than the verifier.
func dropMissing(spec *ebpf.CollectionSpec, types *btf.Cache) error {
	kernel, err := types.Kernel()
	if err != nil {
		return fmt.Errorf("read the kernel's types: %w", err)
	}
	missing := map[string]bool{}
	for _, p := range spec.Programs {
		for i := range p.Instructions {
			ins := &p.Instructions[i]
			if !ins.IsKfuncCall() {
				continue
			}
			name := ins.Reference()
			if _, seen := missing[name]; !seen {
				var f *btf.Func
				err := kernel.TypeByName(name, &f)
				if err != nil && !errors.Is(err, btf.ErrNotFound) {
					return fmt.Errorf("look for %s in the kernel's types: %w", name, err)
				}
				missing[name] = err != nil
			}
		}
	}
	for _, p := range spec.Programs {
		for i := range p.Instructions {
			ins := &p.Instructions[i]
			// There are nearly a million, and few that can name one.
			if !ins.IsKfuncCall() && ins.OpCode != loadAddress || !missing[ins.Reference()] {
				continue
			}
			with := asm.LoadImm(ins.Dst, 0, asm.DWord) // its address, by which the programs know that it is there
			if ins.IsKfuncCall() {
				with = absent.Call()
			}
			*ins = with.WithSymbol(ins.Symbol()).WithSource(ins.Source())
		}
	}
	return nil
}

// cause makes EPERM at load say what it most likely means.
func cause(err error) error {
	if errors.Is(err, unix.EPERM) && unix.Geteuid() != 0 {
		return fmt.Errorf("%w (%w)", ErrPrivileges, err)
	}
	return err
}

// window maps n of an array's values, from the one at first. The map must have been made with BPF_F_MMAPABLE.
func (k *Kernel) window(name string, first, n, size int) (unsafe.Pointer, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	from, to := first*size, (first+n)*size
	page := from &^ (os.Getpagesize() - 1)
	b, err := unix.Mmap(k.maps[name].FD(), int64(page), max(to, from+1)-page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map %s into memory: %w", name, err)
	}
	k.windows = append(k.windows, b)
	return unsafe.Pointer(&b[from-page]), nil
}

// Sides is how many generations the kernel holds: the one that judges, and its shadow or one to be written.
const Sides = 2 // NUM_SIDES

// KernelNamed is the low half of SetPrefix.Bits of an address that has a domain name.
const KernelNamed = 129 // NAMED

// Side returns the tables and the transitions of a side, 0 or 1, as they are in the kernel, until Trim. Only so many of the transitions
// may be touched as are asked for. Writing a side that judges is the caller's mistake.
func (k *Kernel) Side(side, cells int) (*KernelTables, *KernelPool, error) {
	var t *KernelTables
	var p *KernelPool
	tables, err := k.window("sides", side, 1, (int(unsafe.Sizeof(*t))+7)&^7)
	if err != nil {
		return nil, nil, err
	}
	cell := int(unsafe.Sizeof(p.Cells[0]))
	pool, err := k.window("pools", side*len(p.Cells), min(cells, len(p.Cells)), cell)
	if err != nil {
		return nil, nil, err
	}
	return (*KernelTables)(tables), (*KernelPool)(pool), nil
}

// Hits returns the hits of n rules of a side, from the first, as they are in the kernel, until Trim.
func (k *Kernel) Hits(side, n int) ([]KernelHit, error) {
	perSide := int(k.maps["hits"].MaxEntries()) / Sides
	n = min(n, perSide)
	p, err := k.window("hits", side*perSide, n, int(unsafe.Sizeof(KernelHit{})))
	if err != nil {
		return nil, err
	}
	return unsafe.Slice((*KernelHit)(p), n), nil
}

// SipKey is the secret key of the hashes by which the programs know strings: another one at each Load.
func (k *Kernel) SipKey() [2]uint64 { return k.sip }

// Map returns a map of the object by its name in C, nil if there is none.
func (k *Kernel) Map(name string) *ebpf.Map { return k.maps[name] }

// Memory returns the bytes of kernel memory that the maps take, as the kernel reports them.
func (k *Kernel) Memory() (uint64, error) {
	var sum uint64
	add := func(name string, m *ebpf.Map) error {
		info, err := m.Info()
		if err != nil {
			return fmt.Errorf("ask for the size of map %s: %w", name, err)
		}
		if n, ok := info.Memlock(); ok {
			sum += n
		}
		return nil
	}
	for name, m := range k.maps {
		if err := add(name, m); err != nil {
			return 0, err
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for at, m := range k.inner {
		if err := add(at.outer, m); err != nil {
			return 0, err
		}
	}
	return sum, nil
}

// Trim gives back memory that only loading and staging need: it unmaps what Side and Hits returned, and forgets the kernel's types.
func (k *Kernel) Trim() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	var errs []error
	for _, b := range k.windows {
		errs = append(errs, unix.Munmap(b))
	}
	k.windows, k.types = nil, btf.NewCache()
	k.specs.Lock()
	defer k.specs.Unlock()
	k.specs.object = nil
	return errors.Join(errs...)
}

// programSpec finds a program by name. A program fmod_* that the object does not have is lsm_*, given the type of fmod_ret on the function that calls the hook.
func programSpec(object *ebpf.CollectionSpec, name string) (*ebpf.ProgramSpec, error) {
	if spec := object.Programs[name]; spec != nil {
		return spec, nil
	}
	hook, ok := strings.CutPrefix(name, "fmod_")
	spec := object.Programs["lsm_"+hook]
	if !ok || spec == nil {
		return nil, fmt.Errorf("load program %s: there is none of that name", name)
	}
	spec = spec.Copy()
	spec.Name, spec.Type, spec.AttachType = name, ebpf.Tracing, ebpf.AttachModifyReturn
	if f := securityNames[spec.AttachTo]; f != "" {
		spec.AttachTo = f
	}
	spec.AttachTo = "security_" + spec.AttachTo
	return spec, nil
}

// securityNames are the functions that are not named as their hook is.
var securityNames = map[string]string{"bprm_check_security": "bprm_check", "userns_create": "create_user_ns"}

// renamed are functions of the kernel that later ones have under another name.
var renamed = map[string]string{"do_filp_open": "do_file_open"} // after 6.18

// Hooked reports whether this kernel has what a program of the lsm, fmod_ret or fexit type attaches to, by BTF.
func (k *Kernel) Hooked(name string) (bool, error) {
	k.mu.Lock()
	types := k.types
	k.mu.Unlock()
	object, err := k.object(types)
	if err != nil {
		return false, err
	}
	spec, err := programSpec(object, name)
	if err != nil {
		return false, err
	}
	f := spec.AttachTo
	if spec.Type == ebpf.LSM {
		f = "bpf_lsm_" + f
	}
	return k.Function(f)
}

// Function reports whether the kernel has a function of that name, or of the one it was given later.
func (k *Kernel) Function(f string) (bool, error) {
	k.mu.Lock()
	types := k.types
	k.mu.Unlock()
	ok, err := hasFunc(types, f)
	if !ok && err == nil && renamed[f] != "" {
		return hasFunc(types, renamed[f])
	}
	return ok, err
}

// hasFunc reports whether the kernel has a function of this name that programs can attach to.
func hasFunc(types *btf.Cache, f string) (bool, error) {
	kernel, err := types.Kernel()
	if err != nil {
		return false, fmt.Errorf("read the kernel's types: %w", err)
	}
	var fn *btf.Func
	switch err := kernel.TypeByName(f, &fn); {
	case err == nil:
		return true, nil
	case errors.Is(err, btf.ErrNotFound):
		return false, nil
	default:
		return false, fmt.Errorf("look for %s in the kernel's types: %w", f, err)
	}
}

// program loads a program when it is first asked for.
func (k *Kernel) program(name string) (*ebpf.Program, error) {
	if p := k.programs[name]; p != nil {
		return p, nil
	}
	p, err := k.load(name)
	if err != nil {
		return nil, err
	}
	if err := k.pinProgram(name, p); err != nil {
		return nil, errors.Join(err, p.Close())
	}
	k.programs[name] = p
	return p, nil
}

// load changes nothing of k.
func (k *Kernel) load(name string) (*ebpf.Program, error) {
	object, err := k.object(k.types)
	if err != nil {
		return nil, err
	}
	spec, err := programSpec(object, name)
	if err != nil {
		return nil, err
	}
	if to := renamed[spec.AttachTo]; to != "" {
		if ok, err := hasFunc(k.types, spec.AttachTo); err == nil && !ok {
			spec = spec.Copy()
			spec.AttachTo = to
		}
	}
	if isFlow(name) {
		specs, _ := k.flowMaps(object, k.specs.flows.maps, nil)
		return k.loadWith(specs, k.maps, object, spec)
	}
	if shares(spec) && k.Whole() == nil {
		p, err := k.loadShared(object, spec)
		if !errors.Is(err, errAlone) {
			return p, err
		}
		k.alone(err)
	}
	return k.loadSpec(object, spec)
}

// loadSpec loads a program, or a part of one.
func (k *Kernel) loadSpec(object *ebpf.CollectionSpec, spec *ebpf.ProgramSpec) (*ebpf.Program, error) {
	return k.loadWith(object.Maps, k.maps, object, spec)
}

// loadWith loads a program that uses of these maps, of which some are there already.
func (k *Kernel) loadWith(specs map[string]*ebpf.MapSpec, there map[string]*ebpf.Map, object *ebpf.CollectionSpec, spec *ebpf.ProgramSpec) (*ebpf.Program, error) {
	// Only the kernel's own types: the programs read no module's, and a module's are not safe to read side by side with the kernel's, on which they build.
	kernel, err := k.types.Kernel()
	if err != nil {
		return nil, fmt.Errorf("read the kernel's types: %w", err)
	}
	coll, err := ebpf.NewCollectionWithOptions(&ebpf.CollectionSpec{
		Maps: specs, Programs: map[string]*ebpf.ProgramSpec{spec.Name: spec}, Types: object.Types, ByteOrder: object.ByteOrder,
	}, ebpf.CollectionOptions{MapReplacements: there, Cache: k.types, Programs: ebpf.ProgramOptions{KernelTypes: kernel}})
	if err != nil {
		return nil, cause(err)
	}
	defer coll.Close()
	return coll.DetachProgram(spec.Name), nil
}

// Preload loads programs side by side: the kernel's verifier takes long, and one processor for each. What fails is left to who asks
// for the program next, and is told then.
func (k *Kernel) Preload(names ...string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	loaded := make([]*ebpf.Program, len(names))
	var wg sync.WaitGroup
	free := make(chan struct{}, runtime.GOMAXPROCS(0))
	for i, name := range names {
		if k.programs[name] == nil {
			wg.Go(func() {
				free <- struct{}{}
				loaded[i], _ = k.load(name)
				<-free
			})
		}
	}
	wg.Wait()
	for i, p := range loaded {
		if p == nil {
			continue
		}
		if k.pinProgram(names[i], p) != nil {
			_ = p.Close()
			continue
		}
		k.programs[names[i]] = p
	}
}

// Program loads a program and returns it, for Program.Run and for tests.
func (k *Kernel) Program(name string) (*ebpf.Program, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.program(name)
}

// Attach loads and attaches a program to the hook that its section names; attached already is no error.
func (k *Kernel) Attach(name string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.links[name] != nil {
		return nil
	}
	p, err := k.program(name)
	if err != nil {
		return err
	}
	var l link.Link
	switch p.Type() {
	case ebpf.LSM:
		l, err = link.AttachLSM(link.LSMOptions{Program: p})
	case ebpf.Tracing:
		l, err = link.AttachTracing(link.TracingOptions{Program: p})
	case ebpf.CGroupSockAddr, ebpf.CGroupSock, ebpf.CGroupSKB, ebpf.SockOps:
		var object *ebpf.CollectionSpec
		if object, err = k.object(k.types); err == nil {
			l, err = k.attachCgroup(p, object.Programs[name].AttachType)
		}
	default:
		return fmt.Errorf("attach program %s: its type %s has no hook", name, p.Type())
	}
	if err != nil {
		return fmt.Errorf("attach program %s: %w", name, err)
	}
	if err := k.pinLink(name, l); err != nil {
		return errors.Join(err, l.Close())
	}
	k.links[name] = l
	return nil
}

// Detach detaches a program; not attached is no error.
func (k *Kernel) Detach(name string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	l := k.links[name]
	if l == nil {
		return nil
	}
	delete(k.links, name)
	if err := errors.Join(k.unpinLink(name), l.Close()); err != nil {
		return fmt.Errorf("detach program %s: %w", name, err)
	}
	return nil
}

// Attached reports whether a program is attached.
func (k *Kernel) Attached(name string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.links[name] != nil
}

// Links returns the names of the programs that are attached.
func (k *Kernel) Links() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	names := make([]string, 0, len(k.links))
	for name := range k.links {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// attachCgroup attaches to the root of cgroup v2 through a mount of its own, so that it needs no mount point and finds the root on hybrid hosts too.
func (k *Kernel) attachCgroup(p *ebpf.Program, at ebpf.AttachType) (link.Link, error) {
	if k.cgroup < 0 {
		fs, err := unix.Fsopen("cgroup2", unix.FSOPEN_CLOEXEC)
		if err != nil {
			return nil, fmt.Errorf("open cgroup v2: %w", err)
		}
		defer unix.Close(fs)
		if err := unix.FsconfigCreate(fs); err != nil {
			return nil, fmt.Errorf("open cgroup v2: %w", err)
		}
		if k.cgroup, err = unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0); err != nil {
			k.cgroup = -1
			return nil, fmt.Errorf("open cgroup v2: %w", err)
		}
	}
	return link.AttachRawLink(link.RawLinkOptions{Target: k.cgroup, Program: p, Attach: at})
}

// Iterate runs an iterator program over everything it visits.
func (k *Kernel) Iterate(name string) error {
	p, err := k.Program(name)
	if err != nil {
		return err
	}
	it, err := link.AttachIter(link.IterOptions{Program: p})
	if err != nil {
		return fmt.Errorf("attach iterator %s: %w", name, err)
	}
	defer it.Close()
	r, err := it.Open()
	if err != nil {
		return fmt.Errorf("open iterator %s: %w", name, err)
	}
	defer r.Close()
	var buf [4096]byte
	for {
		n, err := r.Read(buf[:])
		if n == 0 || err != nil {
			break // the program writes nothing: the end
		}
	}
	return nil
}

// Call runs a program of type syscall once, on the calling thread.
func (k *Kernel) Call(name string) error {
	p, err := k.Program(name)
	if err != nil {
		return err
	}
	ret, err := p.Run(&ebpf.RunOptions{})
	if err != nil {
		return fmt.Errorf("run program %s: %w", name, err)
	}
	if ret != 0 {
		return fmt.Errorf("run program %s: it returned %d", name, ret)
	}
	return nil
}

// Missed returns how often the kernel skipped a program because it was running already on that CPU, over all attached programs.
func (k *Kernel) Missed() (n uint64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, p := range k.programs {
		if s, err := p.Stats(); err == nil {
			n += s.RecursionMisses
		}
	}
	return n
}

// Run is how often a program ran while programs were timed, and for how long.
type Run struct {
	Program string
	Count   uint64
	Time    time.Duration
}

// Runs are those of the loaded programs, by name.
func (k *Kernel) Runs() []Run {
	k.mu.Lock()
	defer k.mu.Unlock()
	out := make([]Run, 0, len(k.programs))
	for _, name := range slices.Sorted(maps.Keys(k.programs)) {
		if s, err := k.programs[name].Stats(); err == nil {
			out = append(out, Run{Program: name, Count: s.RunCount, Time: s.Runtime})
		}
	}
	return out
}

// TimePrograms has the kernel time each run of every BPF program of the machine until the Closer is closed, or this process ends.
func TimePrograms() (io.Closer, error) {
	c, err := ebpf.EnableStats(uint32(unix.BPF_STATS_RUN_TIME))
	if err != nil {
		return nil, fmt.Errorf("have the kernel time its programs: %w", err)
	}
	return c, nil
}

// Close detaches and frees everything; what is pinned goes on without this process.
func (k *Kernel) Close() error {
	// Not all ends at once: a hook whose engine is gone, or without the programs that give new processes their identity, would refuse what it cannot judge.
	k.mu.Lock()
	closed := k.maps == nil
	k.mu.Unlock()
	if !closed && !k.Pinned() {
		k.release()
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	var errs []error
	for name, l := range k.links {
		if err := l.Close(); err != nil {
			errs = append(errs, fmt.Errorf("detach program %s: %w", name, err))
		}
	}
	errs = append(errs, k.engines.close()) // after the hooks: what runs must not lose its engine
	for _, p := range k.programs {
		errs = append(errs, p.Close())
	}
	for _, b := range k.windows {
		errs = append(errs, unix.Munmap(b))
	}
	for _, b := range k.sections {
		errs = append(errs, unix.Munmap(b))
	}
	for _, m := range k.inner {
		errs = append(errs, m.Close())
	}
	for _, m := range k.maps {
		errs = append(errs, m.Close())
	}
	if k.last != nil {
		errs = append(errs, k.last.Close())
	}
	if k.cgroup >= 0 {
		errs = append(errs, unix.Close(k.cgroup))
	}
	k.inner, k.links, k.programs, k.maps, k.windows, k.sections, k.cgroup = nil, nil, nil, nil, nil, nil, -1
	return errors.Join(errs...)
}

// checkBase probes for what nothing works without; each line has the first kernel that has it.
func checkBase(types *btf.Cache) error {
	if _, err := types.Kernel(); err != nil {
		return fmt.Errorf("%w: it has no BTF at /sys/kernel/btf/vmlinux (CONFIG_DEBUG_INFO_BTF): %w", ErrUnsupported, err)
	}
	var missing []string
	var errs []error
	for _, f := range []struct {
		what, since string
		probe       func() error
	}{
		{"ring buffers", "5.8", func() error { return features.HaveMapType(ebpf.RingBuf) }},
		{"task storage", "5.11", func() error { return features.HaveMapType(ebpf.TaskStorage) }},
		{"bpf_get_current_task_btf in tracing programs", "5.11", func() error { return features.HaveProgramHelper(ebpf.RawTracepoint, asm.FnGetCurrentTaskBtf) }},
		{"atomic operations in programs", "5.12", features.HaveV3ISA},
		{"programs of type syscall", "5.14", func() error { return features.HaveProgramType(ebpf.Syscall) }},
	} {
		switch err := f.probe(); {
		case err == nil:
		case errors.Is(err, ebpf.ErrNotSupported):
			missing = append(missing, f.what+" (Linux "+f.since+")")
		case errors.Is(err, unix.EPERM):
			return fmt.Errorf("%w (%w)", ErrPrivileges, err)
		default:
			errs = append(errs, fmt.Errorf("probe for %s: %w", f.what, err))
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("%w: it lacks %s", ErrUnsupported, list(missing))
	}
	return errors.Join(errs...)
}

func list(s []string) string {
	out := ""
	for i, x := range s {
		switch {
		case i == 0:
		case i == len(s)-1:
			out += " and "
		default:
			out += ", "
		}
		out += x
	}
	return out
}
