package bpf

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"
)

// FlowOptions say what is to be told of flows. The zero value is what an agent wants.
type FlowOptions struct {
	Ring  uint32        // bytes of the ring of their records, a power of two; 0 is 4 MiB
	Peers uint32        // of unconnected datagram sockets, at most, that are told apart; 0 is 32,768
	Unix  uint32        // sockets at most that are told apart; 0 is 8,192
	Idle  time.Duration // after which such a peer's flow has ended; 0 is a minute
	// NoData leaves out what is copied for names: answers of DNS, ClientHellos of TLS and the first datagrams of QUIC.
	NoData bool
	Opens  bool // report each TCP connection also when it is made, and not only what lives until the next Sweep
	Wake   bool // wake the reader for each record, which costs those that are watched; else it looks every 10 to 40 ms
}

// Flows are the programs that account for flows, attached, with their maps. Its methods may be called side by side, each by one goroutine.
type Flows struct {
	k        *Kernel
	specs    map[string]*ebpf.MapSpec
	maps     map[string]*ebpf.Map
	programs map[string]*ebpf.Program
	links    map[string]link.Link
	ring     *ringbuf.Reader
	lacking  []string
	files    bool
	sweep    string // the program that goes over sockets

	mu          sync.Mutex // of Sweep
	buf         []byte
	sweeps      uint32
	sweepNumber *ebpf.Variable
}

// flowSpecs are the maps that are made only while somebody wants flows, and the variables in them.
type flowSpecs struct {
	maps map[string]*ebpf.MapSpec
	vars map[string]*ebpf.VariableSpec
}

func isFlow(name string) bool {
	return strings.HasPrefix(name, "flow_") || strings.HasSuffix(name, ".flow")
}

// cutFlows takes what is only for flows out of an object.
func cutFlows(spec *ebpf.CollectionSpec) flowSpecs {
	f := flowSpecs{map[string]*ebpf.MapSpec{}, map[string]*ebpf.VariableSpec{}}
	for name, m := range spec.Maps {
		if isFlow(name) {
			f.maps[name] = m
			delete(spec.Maps, name)
		}
	}
	for name, v := range spec.Variables {
		if isFlow(v.SectionName) {
			f.vars[name] = v
			delete(spec.Variables, name)
		}
	}
	return f
}

// flowMaps are all maps that a program for flows may use, and those of them that are there.
func (k *Kernel) flowMaps(object *ebpf.CollectionSpec, flows map[string]*ebpf.MapSpec, made map[string]*ebpf.Map) (map[string]*ebpf.MapSpec, map[string]*ebpf.Map) {
	specs, there := maps.Clone(object.Maps), maps.Clone(k.maps)
	maps.Copy(specs, flows)
	maps.Copy(there, made)
	return specs, there
}

// flowPrograms are those that are attached while somebody wants flows. Where a program cannot be had, others are in its place; what is lacking without these is said by what
// it is for. What has no such text is needed.
var flowPrograms = []struct {
	name    string
	instead []string
	without string
}{
	{"flow_send", []string{"flow_sendmsg", "flow_stream_sent", "flow_dgram_sent"},
		"the owner of datagrams, and of TCP connections that were accepted in another process or handed over, and what Unix sockets send: sock_send_length (Linux 6.3) or trampolines"},
	{"flow_receive", []string{"flow_recvmsg", "flow_stream_received", "flow_dgram_received"},
		"the owner of sockets on which a process only receives, and what Unix sockets receive: sock_recv_length (Linux 6.3) or trampolines"},
	{"flow_connect4", nil, "IPv4 connections for which there is no route: trampolines"},
	{"flow_connect6", nil, "IPv6 connections for which there is no route: trampolines"},
	{"flow_release", nil, "datagrams, ICMP and raw sockets: cgroup programs at a socket's release (Linux 5.9)"},
	{"flow_egress", nil, "what datagram sockets send, and names: cgroup programs on packets"},
	{"flow_ingress", nil, "what datagram sockets receive, and names: cgroup programs on packets"},
	{"flow_tcp", nil, ""},
	{"flow_tcp_gone", nil, ""},
}

// OpenFlows makes the maps of flows and attaches their programs. What processes do must be followed already: a flow's owner is the identity of the process
// that acts on its socket. What is connected already is found: of that the counters of TCP begin with the connection, others with OpenFlows. The error wraps ErrUnsupported where the kernel has not what is needed at all.
func (k *Kernel) OpenFlows(o FlowOptions) (f *Flows, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	object, err := k.object(k.types)
	if err != nil {
		return nil, err
	}
	f = &Flows{k: k, maps: map[string]*ebpf.Map{}, programs: map[string]*ebpf.Program{}, links: map[string]link.Link{}, buf: make([]byte, 64<<10)}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("account for flows: %w", err), f.close())
			f = nil
		}
	}()
	if err := f.makeMaps(o); err != nil {
		return f, err
	}
	if f.ring, err = ringbuf.NewReader(f.maps["flow_ring"]); err != nil {
		return f, fmt.Errorf("open the ring: %w", err)
	}
	if f.files, err = k.sweepsFiles(); err != nil {
		return f, err
	}
	f.sweep = "flow_sweep"
	if f.files {
		f.sweep = "flow_sweep_files"
		f.lacking = append(f.lacking, "before its end, what goes on on a socket that no process has a file of, as the kernel's own: the iterator over socket storage of this kernel is not safe (Linux 7.0)")
	}
	for _, p := range []string{f.sweep, "flow_sweep_peers", "flow_sweep_unix"} {
		if err := f.load(object, p); err != nil {
			return f, err
		}
	}
	for _, p := range flowPrograms {
		err := f.start(object, p.name)
		if lacks(err) && p.instead != nil {
			if err = f.start(object, p.instead...); lacks(err) {
				f.stop(p.instead...)
			}
		}
		switch {
		case err == nil:
		case p.without != "" && lacks(err):
			f.lacking = append(f.lacking, p.without)
		default:
			return f, err
		}
	}
	return f, f.find(object)
}

// find begins the flows of what is connected already.
func (f *Flows) find(object *ebpf.CollectionSpec) error {
	const name = "flow_found"
	if err := f.load(object, name); err != nil {
		return err
	}
	for range 2 {
		if err := f.iterate(name, link.IterOptions{Program: f.programs[name]}, 0, func([]byte) error { return nil }); err != nil {
			return err
		}
	}
	err := errors.Join(f.programs[name].Close(), f.maps["flow_listens"].Close())
	delete(f.programs, name)
	delete(f.maps, "flow_listens")
	return err
}

// sweepsFiles tells whether Sweep has to find sockets by the files that processes have of them: where a socket that is destroyed clears what the kernel's iterator over socket storage
// follows (flow_sweep_files says more). Then an entry of local storage has a state.
func (k *Kernel) sweepsFiles() (bool, error) {
	kernel, err := k.types.Kernel()
	if err != nil {
		return false, fmt.Errorf("read the kernel's types: %w", err)
	}
	var entry *btf.Struct
	if err := kernel.TypeByName("bpf_local_storage_elem", &entry); err != nil {
		return false, fmt.Errorf("look for the kernel's socket storage: %w", err)
	}
	return slices.ContainsFunc(entry.Members, func(m btf.Member) bool { return m.Name == "state" }), nil
}

// Files tells whether Sweep finds only sockets that a process has a file of. One that has none any more, as while its last data and its FIN are on their way, is told of at its end.
func (f *Flows) Files() bool { return f.files }

// lacks tells whether a program cannot be had because the kernel has no such hook.
func lacks(err error) bool {
	return errors.Is(err, ebpf.ErrNotSupported) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EPERM)
}

func (f *Flows) makeMaps(o FlowOptions) error {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err != nil {
		return fmt.Errorf("read the clock: %w", err)
	}
	specs := map[string]*ebpf.MapSpec{}
	for name, m := range f.k.specs.flows.maps {
		specs[name] = m.Copy()
	}
	vars := f.k.specs.flows.vars
	for name, v := range map[string]any{
		// More than one for each flow since the machine booted: no kernel begins four million a second.
		"flow_epoch": uint64(now.Nano()) >> 8,
		"flow_data":  !o.NoData, "flow_opens": o.Opens, "flow_wake": o.Wake,
	} {
		if err := vars[name].Set(v); err != nil {
			return fmt.Errorf("set %s in the kernel object: %w", name, err)
		}
	}
	if o.Idle != 0 {
		if err := vars["flow_idle"].Set(uint64(o.Idle)); err != nil {
			return fmt.Errorf("set flow_idle in the kernel object: %w", err)
		}
	}
	if o.Ring != 0 {
		specs["flow_ring"].MaxEntries = o.Ring
	}
	if err := vars["flow_ring_data"].Set(specs["flow_ring"].MaxEntries / 4 * 3); err != nil {
		return fmt.Errorf("set flow_ring_data in the kernel object: %w", err)
	}
	if o.Unix != 0 {
		specs["flow_unixes"].MaxEntries = o.Unix
	}
	if o.Peers != 0 {
		specs["flow_peers"].MaxEntries = o.Peers
	}
	coll, err := ebpf.NewCollectionWithOptions(&ebpf.CollectionSpec{Maps: specs, Variables: vars}, ebpf.CollectionOptions{Cache: f.k.types})
	if err != nil {
		return fmt.Errorf("make the maps: %w", cause(err))
	}
	defer coll.Close()
	f.specs = specs
	others := KernelFlowUnix{Id: uint64(now.Nano())>>8 - 1, Start: uint64(now.Nano())}
	if err := coll.Maps["flow_unixes"].Put(uint64(0), &others); err != nil {
		return fmt.Errorf("make the place of what finds no room: %w", err)
	}
	f.sweepNumber, f.sweeps = coll.Variables["flow_sweeps"], 1
	for name := range specs {
		f.maps[name] = coll.DetachMap(name)
	}
	return nil
}

func (f *Flows) load(object *ebpf.CollectionSpec, name string) error {
	specs, there := f.k.flowMaps(object, f.specs, f.maps)
	spec, err := programSpec(object, name)
	if err != nil {
		return err
	}
	p, err := f.k.loadWith(specs, there, object, spec)
	if err != nil {
		return fmt.Errorf("load program %s: %w", name, err)
	}
	f.programs[name] = p
	return nil
}

// start loads and attaches programs.
func (f *Flows) start(object *ebpf.CollectionSpec, names ...string) error {
	for _, name := range names {
		if err := f.load(object, name); err != nil {
			return err
		}
		if err := f.attach(object, name); err != nil {
			return err
		}
	}
	return nil
}

// stop undoes start.
func (f *Flows) stop(names ...string) {
	for _, name := range names {
		if l := f.links[name]; l != nil {
			_ = l.Close()
			delete(f.links, name)
		}
		if p := f.programs[name]; p != nil {
			_ = p.Close()
			delete(f.programs, name)
		}
	}
}

func (f *Flows) attach(object *ebpf.CollectionSpec, name string) (err error) {
	var l link.Link
	p := f.programs[name]
	switch p.Type() {
	case ebpf.CGroupSKB, ebpf.CGroupSock:
		l, err = f.k.attachCgroup(p, object.Programs[name].AttachType)
	default:
		l, err = link.AttachTracing(link.TracingOptions{Program: p})
	}
	if err != nil {
		return fmt.Errorf("attach program %s: %w", name, err)
	}
	f.links[name] = l
	return nil
}

// Lacking says, each in words for the user, what this kernel does not let be told.
func (f *Flows) Lacking() []string { return slices.Clone(f.lacking) }

// Memory returns the bytes of kernel memory that the maps of flows take, as the kernel reports them.
func (f *Flows) Memory() (uint64, error) {
	var sum uint64
	for name, m := range f.maps {
		info, err := m.Info()
		if err != nil {
			return 0, fmt.Errorf("ask for the size of map %s: %w", name, err)
		}
		if n, ok := info.Memlock(); ok {
			sum += n
		}
	}
	return sum, nil
}

// Read calls fn with each record of the ring, for decode.Flow, until ctx is done or fn fails; then it reads what is still there. The record is valid only
// during the call.
func (f *Flows) Read(ctx context.Context, fn func(rec []byte) error) error {
	var rec ringbuf.Record
	wait := poll
	for {
		last := ctx.Err() != nil
		until := time.Now().Add(wait)
		if last {
			until = time.Now()
		}
		n, err := drain(f.ring, &rec, until, burst, fn)
		if err != nil {
			return err
		}
		wait = poll
		if n == 0 {
			wait = idlePoll
			if last {
				return nil
			}
		}
	}
}

// Drain calls fn with each record that is in the ring, and does not wait. It is for who does not use Read.
func (f *Flows) Drain(fn func(rec []byte) error) error {
	var rec ringbuf.Record
	for {
		if n, err := drain(f.ring, &rec, time.Now(), burst, fn); err != nil || n == 0 {
			return err
		}
	}
}

// flowGrace is FLOW_GRACE: how long a program may still add to what it found before.
const flowGrace = time.Second

// Sweep calls fn with a report of each flow that goes on; for peers of unconnected sockets it is also what ends their flows, when they are idle, or their
// socket is closed. It sees a flow in between two others that the ring has of it, and may be told after the last: what comes after a flow's end, or has a lower number
// than one that was seen, is to be left out. When sockets come and go meanwhile, the kernel may show one twice, or not until the next Sweep. The record is valid only during the call.
func (f *Flows) Sweep(fn func(rec []byte) error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.sweeps++
	if err := f.sweepNumber.Set(f.sweeps); err != nil {
		return fmt.Errorf("number a sweep: %w", err)
	}
	o := link.IterOptions{Program: f.programs[f.sweep]}
	if !f.files {
		o.Map = f.maps["flow_socks"]
	}
	if err := f.iterate(f.sweep, o, 0, fn); err != nil {
		return err
	}
	if err := f.sweepPeers(fn); err != nil {
		return err
	}
	return sweepMap[uint64](f, "flow_sweep_unix", "flow_unixes", fn)
}

// sweepMap runs an iterator over a map, which follows each record with the key that it is about, and takes away what has ended: whose end was told goes, whatever came after.
func sweepMap[K any](f *Flows, program, name string, fn func(rec []byte) error) error {
	var r KernelRecFlow
	var k K
	keySize := int(unsafe.Sizeof(k))
	var ended []K
	err := f.iterate(program, link.IterOptions{Program: f.programs[program], Map: f.maps[name]}, keySize, func(rec []byte) error {
		n := len(rec) - keySize
		if n >= int(unsafe.Sizeof(r)) && rec[unsafe.Offsetof(r.State)] == uint8(KernelFlowStateFLOW_CLOSED) {
			copy(unsafe.Slice((*byte)(unsafe.Pointer(&k)), keySize), rec[n:])
			ended = append(ended, k)
		}
		return fn(rec[:n])
	})
	for i := range ended {
		if e := f.maps[name].Delete(&ended[i]); e != nil && !errors.Is(e, ebpf.ErrKeyNotExist) {
			return errors.Join(err, fmt.Errorf("take an ended flow out of %s: %w", name, e))
		}
	}
	return err
}

// sweepPeers tells of the peers of unconnected sockets, and takes away those that have ended.
func (f *Flows) sweepPeers(fn func(rec []byte) error) error {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err != nil {
		return fmt.Errorf("read the clock: %w", err)
	}
	var gone []uint64
	var id uint64
	var owner KernelFlowOwner
	it := f.maps["flow_owners"].Iterate()
	for it.Next(&id, &owner) {
		if owner.Gone != 0 && owner.Gone+uint64(flowGrace) < uint64(now.Nano()) {
			gone = append(gone, id)
		}
	}
	if err := it.Err(); err != nil {
		return fmt.Errorf("read which sockets are closed: %w", err)
	}
	if err := sweepMap[KernelFlowPeerKey](f, "flow_sweep_peers", "flow_peers", fn); err != nil {
		return err
	}
	for _, id := range gone {
		if err := f.maps["flow_owners"].Delete(id); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("take away a closed socket: %w", err)
		}
	}
	return nil
}

// iterate runs an iterator, and calls fn with each record that it wrote: they stand one after the other, each followed by extra bytes, and a read may end within one.
func (f *Flows) iterate(name string, o link.IterOptions, extra int, fn func(rec []byte) error) error {
	it, err := link.AttachIter(o)
	if err != nil {
		return fmt.Errorf("attach iterator %s: %w", name, err)
	}
	defer it.Close()
	r, err := it.Open()
	if err != nil {
		return fmt.Errorf("open iterator %s: %w", name, err)
	}
	defer r.Close()
	have := 0
	for {
		n, err := r.Read(f.buf[have:])
		have += n
		rest := f.buf[:have]
		for len(rest) >= 4 {
			size := int(binary.NativeEndian.Uint32(rest)) + extra
			if size < 4+extra || size > len(f.buf) {
				return fmt.Errorf("read iterator %s: a record of %d bytes", name, size-extra)
			}
			if size > len(rest) {
				break
			}
			if err := fn(rest[:size]); err != nil {
				return err
			}
			rest = rest[size:]
		}
		have = copy(f.buf, rest)
		switch {
		case errors.Is(err, io.EOF) || err == nil && n == 0:
			if have != 0 {
				return fmt.Errorf("read iterator %s: it ends within a record", name)
			}
			return nil
		case err != nil && !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR):
			return fmt.Errorf("read iterator %s: %w", name, err)
		}
	}
}

// FlowStats is what was counted in the kernel since OpenFlows. What was made and not lost is delivered, or still in the ring; what Sweep delivers is in none.
type FlowStats struct {
	Made, Lost         uint64 // records of flows
	LostBytes          uint64 // that lost records of ended flows would have told, both ways
	DataMade, DataLost uint64 // records of what was copied
	NoStorage          uint64 // sockets for which the kernel had no memory: their flows are not told, or not in full
	Unowned            uint64 // flows that ended and whose process is not known
	NoPeer             uint64 // packets whose peer found no room: they are counted with their socket, in a flow that has Others
	NoUnix             uint64 // acts on Unix sockets that found no room: their bytes are told in a flow that has Others
	Skipped            uint64 // how often the kernel left out a program that it had interrupted; of state changes another program sees nearly all of those
	Late               uint64 // packets of datagram sockets that nobody has any more, or whose headers make no sense: counted nowhere else
}

// Stats reads the counters.
func (f *Flows) Stats() (s FlowStats, err error) {
	for i, to := range []*uint64{&s.Made, &s.Lost, &s.LostBytes, &s.DataMade, &s.DataLost, &s.NoStorage, &s.Unowned, &s.NoPeer, &s.NoUnix, &s.Late} {
		var each []uint64
		if err := f.maps["flow_stats"].Lookup(uint32(i), &each); err != nil {
			return s, fmt.Errorf("read the counters of flows: %w", err)
		}
		for _, n := range each {
			*to += n
		}
	}
	for name, p := range f.programs {
		stats, err := p.Stats()
		if err != nil {
			return s, fmt.Errorf("read the counters of program %s: %w", name, err)
		}
		s.Skipped += stats.RecursionMisses
	}
	return s, nil
}

// Close detaches the programs and frees the maps. Read must have returned.
func (f *Flows) Close() error {
	f.k.mu.Lock()
	defer f.k.mu.Unlock()
	return f.close()
}

func (f *Flows) close() error {
	var errs []error
	for _, l := range f.links {
		errs = append(errs, l.Close())
	}
	for _, p := range f.programs {
		errs = append(errs, p.Close())
	}
	if f.ring != nil {
		errs = append(errs, f.ring.Close())
	}
	for _, m := range f.maps {
		errs = append(errs, m.Close())
	}
	f.links, f.programs, f.ring, f.maps = nil, nil, nil, nil
	return errors.Join(errs...)
}
