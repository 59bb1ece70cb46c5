package enforce

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pavise-project/pavise"
	"github.com/pavise-project/pavise/bpf"
	"github.com/pavise-project/pavise/policy"
	"golang.org/x/sys/unix"
)

// What Open's errors wrap.
var (
	ErrUnsupported = bpf.ErrUnsupported
	ErrPrivileges  = bpf.ErrPrivileges
)

// Options of Open.
type Options struct {
	Log *slog.Logger
	// Skip names rungs that are not to be used: to see what a machine without them does.
	Skip []pavise.Rung
	// Keep says whether enforcement goes on after Close, or when this process is killed.
	Keep Keep
	// PinDir is where it is pinned then. Without Keep, what is found there of an agent that has ended is taken over, to end with this one; "" looks for nothing.
	PinDir string
	// Build is that of the kernel's programs; "" for their own. Tests give another one.
	Build string
}

// Enforcer holds the kernel's side of the agent. Its methods may be called from any goroutine; Read from one only.
type Enforcer struct {
	k      *bpf.Kernel
	log    *slog.Logger
	rings  *bpf.Rings
	status [pavise.NumOps]OpStatus
	rung   [pavise.NumOps]rung

	mu        sync.Mutex
	ctl       bpf.KernelControl
	gen       uint32                   // the last that was staged
	quiet     [bpf.Sides]chan struct{} // closed when no program reads that side any more
	live      *staged                  // what judges
	shadow    *staged                  // what judges beside it, without effect; nil for nothing
	proved    [pavise.NumOps]bool
	mounts    mounts
	missed    uint64 // Missed at the last sweep
	unheard   uint64 // and when who listens was looked for last
	swept     time.Time
	sets      sets
	clock     clock
	counting  [2]bool // rates have their map, and the shadow's
	whole     bool    // it was told that programs share no engine
	digests   bool    // the lifecycle programs look for digests
	listening bool    // it is known who listens
	syns      syns

	keep        Keep
	skip        []pavise.Rung
	pins        *bpf.Pins // nil when nothing is pinned, nor was
	adopted     *Adopted  // what was found there and goes on; nil for nothing
	replaces    string    // why not
	resumed     bool      // an Image was applied since
	sameProgram bool      // and what it finds there was written as it would write it
	settled     bool      // and is what stays
	program     ownProgram
	other       *other // what goes on until this one judges, nil for nothing

	given   [2]atomic.Uint64 // Read until there
	release *atomic.Uint64   // release_at
	unless  atomic.Int64     // CLOCK_MONOTONIC at which enforcement ends without an agent, whatever keep says; 0 for never
}

// staged is a generation in the kernel.
type staged struct {
	side  int
	rules int
	need  map[string]pavise.Op // the programs that must be attached
	hooks uint64               // the operations that are judged on return
	image [16]byte             // ImageOf
	names *names
	off   bool // of a shadow: its side was needed, and only its names and programs are there still, for the next one
}

func (s *staged) on() bool { return s != nil && !s.off }

// Open loads the base, and finds for each operation the best rung by trying it. Nothing of the machine is judged yet. The error wraps ErrUnsupported
// or ErrPrivileges when that is why.
func Open(ctx context.Context, o Options) (*Enforcer, error) {
	log := o.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	e := &Enforcer{log: log, live: &staged{names: newNames(false)}, keep: o.Keep, skip: o.Skip}
	err := e.open(&o)
	if err == nil {
		e.rings, err = e.k.NewRings()
	}
	if err == nil {
		e.release, err = e.k.Word("release_at")
	}
	if err != nil {
		return nil, errors.Join(err, e.Close())
	}
	e.giveUntil() // an agent before this one had read
	if e.adopted == nil {
		skip := map[pavise.Rung]bool{}
		for _, r := range o.Skip {
			skip[r] = true
		}
		e.choose(skip)
	}
	if err := e.chooseSyn(); err != nil {
		return nil, errors.Join(err, e.Close())
	}
	if err := ctx.Err(); err != nil {
		return nil, errors.Join(err, e.Close())
	}
	return e, nil
}

// lifecycle are the programs that identity depends on. They are attached for as long as the agent runs, or what it leaves.
var lifecycle = []string{"on_exit", "on_exec", "on_fork"}

// Start attaches the lifecycle programs, then gives everything that already runs its identity: the records of found processes come through Read.
func (e *Enforcer) Start() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.adopted != nil {
		if err := e.beginAdopted(); err != nil {
			return err
		}
	}
	if err := e.Alive(); err != nil {
		return err
	}
	if err := e.mounts.refresh(e.k); err != nil {
		return err
	}
	if err := e.tick(); err != nil {
		return err
	}
	e.k.Preload(append([]string{"found_task", "resolve"}, lifecycle...)...)
	if e.adopted == nil {
		if err := e.k.Call("find_host"); err != nil {
			return fmt.Errorf("find the machine's own namespaces: %w", err)
		}
		if err := e.pin(); err != nil {
			return err
		}
	}
	for _, p := range lifecycle {
		if err := e.k.Attach(p); err != nil {
			return short(err)
		}
	}
	e.other.begun()
	if err := e.inherit(); err != nil {
		return err
	}
	if err := e.find(); err != nil {
		return err
	}
	if e.other != nil && len(e.other.Texts) > 0 { // of what ended while they were copied
		if err := e.dropEnded(); err != nil {
			return err
		}
	}
	if err := e.identified(); err != nil {
		return err
	}
	if err := e.seeForks(); err != nil {
		return err
	}
	if err := e.giveArgs(); err != nil {
		return err
	}
	e.ctl.Agent = e.identity(unix.Getpid()).ExecId
	if err := e.putControl(); err != nil {
		return err
	}
	return e.followProgram()
}

// pin pins the base, and with it from now on what is attached.
func (e *Enforcer) pin() error {
	if e.keep == KeepNot {
		return nil
	}
	note, err := e.writeRungs(e.skip)
	if err != nil {
		return err
	}
	return e.k.Pin(e.pins, note)
}

// find gives what runs already its identity, if it has none, and tells of it.
func (e *Enforcer) find() error {
	inherited := e.other != nil && e.other.Procs != nil
	if e.adopted == nil {
		phases := []uint64{phaseIdentify, phaseTell}
		if inherited {
			phases = phases[:1]
		}
		for _, p := range phases {
			if err := e.k.SetVariable("iter_phase", p); err != nil {
				return err
			}
			if err := e.k.Iterate("found_task"); err != nil {
				return err
			}
		}
	}
	if err := e.k.SetVariable("iter_phase", phaseKept); err != nil || e.adopted == nil && !inherited {
		return err
	}
	return e.k.Iterate("found_task")
}

// What the iterator over processes does, as in bpf/proc.h.
const (
	phaseIdentify = 0
	phaseTell     = 1
	phaseKept     = 3
)

// identified tells whether identities are kept at all: without them every process would be judged strictly.
func (e *Enforcer) identified() error {
	fd, err := unix.PidfdOpen(unix.Getpid(), 0)
	if err != nil {
		return fmt.Errorf("look for the agent's own identity: %w", err)
	}
	defer unix.Close(fd)
	switch p, err := e.k.Map("procs").LookupBytes(uint32(fd)); {
	case err != nil:
		return fmt.Errorf("look for the agent's own identity: %w", err)
	case p == nil:
		return fmt.Errorf("%w: it gives programs no task storage, so that processes have no identity", ErrUnsupported)
	}
	return nil
}

// Applied says what an Apply did.
type Applied struct {
	Generation        uint32
	Staged, Activated time.Duration // writing and checking the tables; the one write that activates them
	Hits              []uint64      // how often each rule matched while the generation before judged
	Resumed           bool          // it judged already, by an agent before this one, and goes on

	// Shadow is what the shadow has counted that ended for this, nil if none was on. It may have ended although this failed.
	Shadow *ShadowCounters
}

// Apply makes an Image the one that judges: all or nothing. What judged before goes on until the one write that activates the new generation, and
// for good if Apply fails. There are but two sides, so a shadow ends for this: the programs that it needs stay attached until Shadow or EndShadow is called.
func (e *Enforcer) Apply(img *policy.Image) (Applied, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if a, ok, err := e.resume(img); ok || err != nil {
		return a, errors.Join(err, e.settle())
	}
	e.resumed = true
	next := &staged{names: e.live.names}
	a, err := e.put(img, next, func() error {
		err := e.judgeBy(next, e.shadow)
		if err == nil {
			e.other.judged()
		}
		return err
	})
	if err != nil {
		return a, err
	}
	return a, e.settle()
}

// put attaches and proves what an Image needs, stages it as next into the side that does not judge, and flips: all or nothing, but for the shadow.
func (e *Enforcer) put(img *policy.Image, next *staged, flip func() error) (a Applied, err error) {
	if err := fits(img); err != nil {
		return Applied{}, err
	}
	next.need = e.programs(img)
	if p := e.syns.program; p != "" && deniesAccept(img) && next.names.shade == 0 {
		next.need[onSynListen], next.need[p] = pavise.OpAccept, pavise.OpAccept
	}
	added, err := e.attach(img, next.need)
	undo := func(err error) (Applied, error) {
		return Applied{Shadow: a.Shadow}, errors.Join(err, e.undo(added))
	}
	if err != nil {
		return undo(err)
	}
	start := time.Now()
	next.side, next.rules, next.hooks = 1-e.live.side, len(img.Rules), e.hooks(img)
	if e.shadow.on() {
		if a.Shadow, err = e.stopShadow(); err != nil {
			return undo(err)
		}
	}
	e.grace(next.side)
	e.leaveSets()
	defer e.trim()
	gen := e.gen + 1
	if gen == 0 {
		gen = 1
	}
	t, p, err := e.k.Side(next.side, cells(img))
	if err != nil {
		return undo(err)
	}
	if err := stage(t, p, img, gen); err != nil {
		return undo(err)
	}
	if err := e.sets.stage(e.k, t, next.side, img); err != nil {
		return undo(err)
	}
	if err := e.countRates(img, next.names.shade); err != nil {
		return undo(err)
	}
	stale, aliases, err := next.names.add(e.k, img.Protected, img.ProtectedSets)
	if err != nil {
		return undo(err)
	}
	t.Aliases, t.N_rules, t.Names = aliases, uint32(len(img.Rules)), NamesOf(img.Rules)
	t.Image = ImageOf(img) // the last: it is whole
	hits, err := e.k.Hits(next.side, next.rules)
	if err != nil {
		return undo(err)
	}
	clear(hits)
	last, err := e.k.Hits(e.live.side, e.live.rules)
	if err != nil {
		return undo(err)
	}
	// The same write, of what judges now: the one that flips then finds in the processor's caches what it needs.
	if err := e.putControl(); err != nil {
		return undo(err)
	}
	if err := e.k.SetLast(gen); err != nil {
		return undo(err)
	}
	ready := time.Now()
	if err := flip(); err != nil {
		return undo(err)
	}
	done := time.Now()
	a.Hits, _ = ruleCounts(last)
	e.gen = gen
	next.names.remove(e.k, stale)
	e.leaveSets()
	e.detach()
	a.Generation, a.Staged, a.Activated = gen, ready.Sub(start), done.Sub(ready)
	return a, nil
}

// judgeBy makes live and shadow, which may be nil or off, those that judge, by one write.
func (e *Enforcer) judgeBy(live, shadow *staged) error {
	was := e.ctl
	e.ctl.Active, e.ctl.Hooks = uint32(live.side), live.hooks
	e.ctl.Shadow, e.ctl.NotActive, e.ctl.NotShadow = 0, 0, 0
	if shadow.on() {
		e.ctl.Shadow = uint32(shadow.side) + 1
		e.ctl.Hooks |= shadow.hooks
		e.ctl.NotActive, e.ctl.NotShadow = shadow.hooks&^live.hooks, live.hooks&^shadow.hooks
	}
	if err := e.putControl(); err != nil {
		e.ctl = was
		return err
	}
	var judged [bpf.Sides]bool
	for side := range judged {
		judged[side] = e.judges(side)
	}
	e.live, e.shadow = live, shadow
	for side, did := range judged {
		if did && !e.judges(side) {
			e.retire(side)
		}
	}
	return nil
}

// attach attaches the programs that an Image needs, and proves the rungs of its operations. It returns the programs that were not attached before, also when it
// fails.
func (e *Enforcer) attach(img *policy.Image, need map[string]pavise.Op) (added []string, err error) {
	for _, d := range digests {
		if _, ok := need[d.program]; ok && !e.digests {
			if err := e.useDigests(true); err != nil {
				return nil, err
			}
			e.digests = true
		}
	}
	e.k.Preload(slices.Collect(maps.Keys(need))...)
	if err := e.k.Whole(); err != nil && !e.whole {
		e.whole = true
		e.log.Debug("programs are loaded one by one, which takes longer", "err", err)
	}
	if _, ok := need[onListen]; ok {
		if added, err = e.listen(added); err != nil {
			return added, err
		}
	}
	if _, ok := need[onSynListen]; ok {
		if added, err = e.dropSyns(img, need, added); err != nil {
			return added, err
		}
	}
	if _, ok := need[onConnecting]; ok {
		if added, err = e.followConnectors(added); err != nil {
			return added, err
		}
	}
	for p, op := range need {
		if !e.k.Attached(p) {
			if err := e.k.Attach(p); err != nil {
				return added, fmt.Errorf("attach %s for %s: %w", p, op, short(err))
			}
			added = append(added, p)
		}
	}
	for _, op := range judged {
		if img.Ops[op].Used() && !e.proved[op] && e.rung[op].rung != pavise.RungNone {
			if err := e.prove(op); err != nil {
				return added, fmt.Errorf("prove the %s rung of %s on this kernel: %w", e.rung[op].rung, op, err)
			}
			e.proved[op] = true
		}
	}
	if img.Ops[policy.OpLate].Used() && !e.proved[policy.OpLate] {
		if err := e.proveBy(policy.OpLate, rung{rung: pavise.RungKillOnReturn}); err != nil {
			return added, fmt.Errorf("prove on this kernel that a new program is killed for its arguments: %w", err)
		}
		e.proved[policy.OpLate] = true
	}
	return added, nil
}

// detach detaches what neither the generation that judges nor its shadow needs.
func (e *Enforcer) detach() {
	for _, p := range e.k.Links() {
		_, ok := e.live.need[p]
		if e.shadow != nil && !ok {
			_, ok = e.shadow.need[p]
		}
		if !ok && !slices.Contains(lifecycle, p) {
			if err := e.drop(p); err != nil {
				e.log.Warn("detach a program that nothing needs", "program", p, "err", err)
			}
		}
	}
}

// drop detaches a program.
func (e *Enforcer) drop(program string) error {
	switch program {
	case onListen:
		e.listening = false
	case onSynListen:
		e.syns.found = false
	}
	return e.k.Detach(program)
}

// judges tells whether a side judges, with or without effect.
func (e *Enforcer) judges(side int) bool {
	return side == e.live.side || e.shadow.on() && side == e.shadow.side
}

// leaveSets frees the sets of sides that nobody reads any more.
func (e *Enforcer) leaveSets() {
	for side, quiet := range e.quiet {
		if e.judges(side) {
			continue
		}
		select {
		case <-quiet:
			e.sets.used[side] = 0
		default: // it never judged, or is still read
		}
	}
	if err := e.sets.trim(e.k); err != nil {
		e.log.Warn("free the sets that nothing needs", "err", err)
	}
}

func (r *rung) all() []string {
	if r.unix == "" {
		return r.programs
	}
	return append([]string{r.unix}, r.programs...)
}

// programs returns what must be attached to judge by an Image, and for which operation.
func (e *Enforcer) programs(img *policy.Image) map[string]pavise.Op {
	need := map[string]pavise.Op{}
	for _, op := range judged {
		if !img.Ops[op].Used() {
			continue
		}
		r := &e.rung[op]
		for _, p := range r.programs {
			need[p] = op
		}
		if r.unix != "" && judgesUnix(img, op) {
			need[r.unix] = op
		}
	}
	digestPrograms(img, need)
	if len(img.Domains()) > 0 {
		need["on_answer"] = pavise.OpConnect
	}
	if asksPeer(img, pavise.OpConnect) {
		need[onListen] = pavise.OpConnect
	}
	if asksPeer(img, pavise.OpAccept) {
		for _, p := range connectors {
			need[p] = pavise.OpAccept
		}
	}
	return need
}

// judgesUnix tells whether a rule on the operation names a Unix socket's path, or, of net.socket, can hold for one of another family than IPv4 and IPv6: only then is the
// program worth its cost.
func judgesUnix(img *policy.Image, op pavise.Op) bool {
	if op == pavise.OpSocket {
		return img.OtherFamilies(op)
	}
	for _, s := range img.Ops[op].Slots {
		switch img.Automata[s.Automaton].Dim {
		case policy.DimRemotePath, policy.DimLocalPath, policy.DimRemotePathSets, policy.DimLocalPathSets:
			return true
		}
	}
	return false
}

// hooks is the set of operations that are judged on return.
func (e *Enforcer) hooks(img *policy.Image) (h uint64) {
	if img.Ops[policy.OpLate].Used() {
		h |= 1 << policy.OpLate
	}
	for _, op := range judged {
		r := &e.rung[op]
		if img.Ops[op].Used() && (r.rung == pavise.RungKillOnReturn || r.unix != "" && judgesUnix(img, op)) {
			h |= 1 << op
		}
	}
	return h
}

// grace waits until no program can still read a side that is to be written.
func (e *Enforcer) grace(side int) {
	if quiet := e.quiet[side]; quiet != nil {
		<-quiet
	}
}

// retire begins the grace period of a side that judged until now, so that the next change need not wait for it: membarrier's global command is
// synchronize_rcu (kernel/sched/membarrier.c), 10 ms and more under load. It is the one goroutine here that outlives a call, and by no more than that.
func (e *Enforcer) retire(side int) {
	quiet := make(chan struct{})
	e.quiet[side] = quiet
	go func() {
		defer close(quiet)
		if _, _, errno := unix.Syscall(unix.SYS_MEMBARRIER, membarrierGlobal, 0, 0); errno != 0 {
			// Refused on kernels with nohz_full: a pause far longer than any program runs.
			time.Sleep(100 * time.Millisecond)
		}
	}()
}

const membarrierGlobal = 1 // MEMBARRIER_CMD_GLOBAL, include/uapi/linux/membarrier.h

// Read calls fn with each record, critical ones first, until ctx is done or fn fails. The record is valid only during the call.
func (e *Enforcer) Read(ctx context.Context, fn func(rec []byte) error) error {
	e.rings.Turn = func() error { return e.other.read(fn) }
	return e.rings.Read(ctx, func(rec []byte) error {
		err := fn(rec)
		e.giveUntil()
		return err
	})
}

func (e *Enforcer) giveUntil() {
	_, read := e.rings.Positions()
	e.given[0].Store(read[0])
	e.given[1].Store(read[1])
}

// Position is how far the kernel has told: in each of the rings.
type Position [2]uint64

// Position is where the rings end now.
func (e *Enforcer) Position() Position {
	written, _ := e.rings.Positions()
	return written
}

// Reached tells whether Read has given all until there, and fn has returned.
func (e *Enforcer) Reached(p Position) bool {
	return e.given[0].Load() >= p[0] && e.given[1].Load() >= p[1]
}

// Refresh follows what changes outside: the clock and its zone, mounts, and the inodes behind protected names. The agent calls it about once a second; it is cheap when nothing has
// changed.
func (e *Enforcer) Refresh() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := e.tick(); err != nil {
		return err
	}
	if err := e.followProgram(); err != nil {
		return err
	}
	if err := e.mounts.refresh(e.k); err != nil {
		return err
	}
	if err := e.sweep(); err != nil {
		return err
	}
	if err := errors.Join(e.refreshListeners(), e.refreshSyn()); err != nil {
		return err
	}
	if err := e.live.names.refresh(e.k); err != nil || e.shadow == nil {
		return err
	}
	return e.shadow.names.refresh(e.k)
}

// Close detaches everything and frees it, but what is to be kept, or what was found and not taken over.
func (e *Enforcer) Close() error {
	var errs []error
	if e.rings != nil {
		errs = append(errs, e.rings.Close())
	}
	if e.k != nil {
		switch {
		case e.settled && e.keep != KeepNot:
			errs = append(errs, e.Alive())
		case e.adopted == nil:
			errs = append(errs, e.k.Unpin())
		}
		errs = append(errs, e.k.Close())
	}
	if e.other != nil {
		errs = append(errs, e.other.Close())
	}
	if e.pins != nil {
		errs = append(errs, e.pins.Close())
	}
	return errors.Join(errs...)
}

// OpCounters conserve: Seen = Delivered + Folded + Lost.
type OpCounters struct{ Seen, Delivered, Folded, Lost uint64 }

// Counters are the kernel's own.
type Counters struct {
	Ops      [pavise.NumOps]OpCounters
	Told     [pavise.NumOps]uint64 // of Lost, by this agent or one before it
	RuleHits []uint64              // by rule of the generation that judges, since it was activated
	RuleLost []uint64              // and how many of their events were lost
	// What should not happen: no working memory, no identity, no room for a process's arguments and ancestors, a program skipped because it was
	// running already.
	NoScratch, NoIdentity, NoTexts, Missed uint64
	NoCount                                uint64 // no memory for the count of a rate
	NoName                                 uint64 // no room for the name of an address
	NoListener                             uint64 // no room for who listens or connects, which is then judged strictly
	NoEngine                               uint64 // a hook without what judges for it: what an enforced rule judges was refused
	Unread                                 uint64 // records that an agent of another build had left, in a layout that this one does not know
	MapBytes                               uint64 // kernel memory of all maps
}

// Counters reads them.
func (e *Enforcer) Counters() (c Counters, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	stats := e.k.Map("stats")
	for op := range min(int(pavise.NumOps), int(stats.MaxEntries())) {
		var per []bpf.KernelOpStats
		if err := stats.Lookup(uint32(op), &per); err != nil {
			return c, fmt.Errorf("read the counters of %s: %w", pavise.Op(op), err)
		}
		for _, s := range per {
			o := &c.Ops[op]
			o.Seen += s.Seen
			o.Delivered += s.Delivered
			o.Folded += s.Folded
			o.Lost += s.Lost
		}
		if err := e.k.Map("told").Lookup(uint32(op), &c.Told[op]); err != nil {
			return c, fmt.Errorf("read the counters of %s: %w", pavise.Op(op), err)
		}
	}
	for i, n := range []*uint64{&c.NoScratch, &c.NoIdentity, &c.NoTexts, &c.NoCount, &c.NoEngine, &c.NoName, &c.NoListener} {
		var per []uint64
		if err := e.k.Map("errors").Lookup(uint32(i), &per); err != nil {
			return c, fmt.Errorf("read the error counters: %w", err)
		}
		for _, v := range per {
			*n += v
		}
	}
	e.other.count(&c)
	c.Missed = e.k.Missed()
	defer e.trim()
	if c.RuleHits, c.RuleLost, err = e.hits(e.live); err != nil {
		return c, err
	}
	c.MapBytes, err = e.k.Memory()
	return c, err
}

// Time has the kernel time each run of every BPF program of the machine, until the Closer is closed. That costs each run some tens of nanoseconds.
func (e *Enforcer) Time() (io.Closer, error) { return bpf.TimePrograms() }

// Runs are how often Pavise's programs ran while they were timed, and for how long.
func (e *Enforcer) Runs() []bpf.Run { return e.k.Runs() }

// Told remembers that so many of an operation's lost events have been told, in all.
func (e *Enforcer) Told(op pavise.Op, lost uint64) error {
	if err := e.k.Map("told").Put(uint32(op), lost); err != nil {
		return fmt.Errorf("remember which losses of %s have been told: %w", op, err)
	}
	return nil
}

// hits reads what the rules of a generation have counted, until trim.
func (e *Enforcer) hits(s *staged) (hits, lost []uint64, err error) {
	n, err := e.k.Hits(s.side, s.rules)
	hits, lost = ruleCounts(n)
	return hits, lost, err
}

// ruleCounts reads what programs go on counting.
func ruleCounts(hits []bpf.KernelHit) (matched, lost []uint64) {
	matched, lost = make([]uint64, len(hits)), make([]uint64, len(hits))
	for i := range hits {
		matched[i], lost[i] = atomic.LoadUint64(&hits[i].Hits), atomic.LoadUint64(&hits[i].Lost)
	}
	return matched, lost
}

// trim gives back the memory of what was mapped.
func (e *Enforcer) trim() {
	if err := e.k.Trim(); err != nil {
		e.log.Warn("unmap the tables", "err", err)
	}
}

// Flows begins to account for flows. What processes do must be followed, as it is after Start.
func (e *Enforcer) Flows(o bpf.FlowOptions) (*bpf.Flows, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	defer e.trim()
	return e.k.OpenFlows(o)
}
