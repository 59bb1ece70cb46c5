package enforce

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"time"
	"unsafe"

	"github.com/pavise-project/pavise"
	"github.com/pavise-project/pavise/bpf"
	"github.com/pavise-project/pavise/policy"
	"golang.org/x/sys/unix"
)

// This file is what of enforcement outlives the agent: pinned, it goes on when the agent ends or is killed, and the next agent takes it over.

// ErrPinsInUse says that another agent enforces with a pin directory.
var ErrPinsInUse = bpf.ErrPinsInUse

// DefaultPins is the pin directory of a host's agent.
const DefaultPins = bpf.DefaultPins

// Keep is how long enforcement goes on without an agent: KeepNot, KeepForever, or a time.
type Keep time.Duration

// Beside these, a Keep is a time of at least MinKeep.
const (
	KeepNot     Keep = 0
	KeepForever Keep = -1
	MinKeep     Keep = Keep(5 * time.Second) // the agent puts the end off once a second
)

// ParseKeep reads what String writes.
func ParseKeep(s string) (Keep, error) {
	switch s {
	case "no":
		return KeepNot, nil
	case "forever":
		return KeepForever, nil
	}
	d, err := time.ParseDuration(s)
	if err != nil || Keep(d) < MinKeep {
		return 0, fmt.Errorf("%q: want no, forever, or a time of %s and more, as 10m", s, time.Duration(MinKeep))
	}
	return Keep(d), nil
}

// String is no, forever, or the time.
func (k Keep) String() string {
	switch {
	case k == KeepNot:
		return "no"
	case k < 0:
		return "forever"
	}
	return time.Duration(k).String()
}

// KeepStatus says what enforcement depends on.
type KeepStatus struct {
	Keep    Keep
	Pins    string // the directory, "" for none
	Adopted bool   // what an agent before this one had left goes on
	// Replaced is why what an agent before this one had left was not adopted, but went on until the policies of this one judged; "" when there was none.
	Replaced string
}

// Keep says what this Enforcer does.
func (e *Enforcer) Keep() KeepStatus {
	e.mu.Lock()
	defer e.mu.Unlock()
	s := KeepStatus{Keep: e.keep, Adopted: e.adopted != nil, Replaced: e.replaces}
	if e.keep != KeepNot {
		s.Pins = e.pins.Dir()
	}
	return s
}

// Adopted is what was found in the kernel, of an agent before this one.
type Adopted struct {
	Generations []AdoptedGeneration // at most two
}

// AdoptedGeneration is one that stands in the kernel.
type AdoptedGeneration struct {
	Number uint32
	Image  [16]byte // ImageOf what was applied
	Names  [16]byte // NamesOf its rules
	Active bool     // it is the one that judges
	Hits   []uint64 // of its rules, when it was found
}

// Adopted returns what was found, nil for nothing.
func (e *Enforcer) Adopted() *Adopted { return e.adopted }

// Left tells whether an agent that has ended has left its policies in force.
func Left(dir string) bool { return bpf.Left(dir) }

// RemoveLeft ends what agents that have ended have left in a pin directory, and removes it. It returns what it removed, or with dry what it would. The error wraps
// ErrPinsInUse while an agent enforces with it.
func RemoveLeft(dir string, dry bool) ([]string, error) {
	p, err := bpf.FindPins(dir)
	if err != nil && !errors.Is(err, bpf.ErrNoPins) {
		return nil, err
	}
	var names []string
	if p != nil {
		if names, err = p.List(); err == nil && !dry {
			names, err = p.Remove()
		}
		if err = errors.Join(err, p.Close()); err != nil {
			return names, err
		}
	}
	if did, err := bpf.Unmount(dry); err != nil {
		return names, err
	} else if did {
		names = append(names, "the bpf file system at /sys/fs/bpf, which an agent mounted")
	}
	return names, nil
}

// open finds what an agent before this one has left, or loads the base.
func (e *Enforcer) open(o *Options) error {
	var err error
	switch {
	case o.PinDir == "" && o.Keep == KeepNot:
	case o.PinDir == "":
		return errors.New("keep enforcement: no pin directory is given")
	case o.Keep != KeepNot:
		if unix.Geteuid() != 0 {
			return ErrPrivileges
		}
		if e.pins, err = bpf.OpenPins(o.PinDir); err != nil {
			return err
		}
	default: // what is there of an agent that has ended must not go on beside this one
		switch e.pins, err = bpf.FindPins(o.PinDir); {
		case errors.Is(err, bpf.ErrPinsInUse):
			e.log.Warn("another agent enforces its policies beside this one", "err", err)
		case err != nil:
			e.log.Debug("look for what another agent has left", "err", err)
		}
	}
	if e.pins != nil {
		if o.Build != "" {
			e.pins.Build = o.Build
		}
		set := e.pins.Current()
		if err := e.pins.Clean(set); err != nil {
			return err
		}
		if set != "" {
			if err = e.adopt(o); err == nil {
				return nil
			}
			e.replaces = err.Error()
			e.log.Warn("what an agent before this one has left cannot be taken over: it goes on until the policies of this one judge", "why", err)
		}
	}
	if e.k, err = bpf.Load(); err != nil {
		if e.replaces != "" && errors.Is(err, unix.EPERM) && unix.Geteuid() == 0 {
			err = fmt.Errorf("%w: perhaps a rule on kernel.bpf of the policies that are in force refuses it: it excuses the agent's program under the path that it had; start that, or run pavise uninstall --keep-state", err)
		}
		return err
	}
	if e.replaces != "" {
		e.other = newOther(e.pins)
		e.gen = e.other.Last // their numbers stand in events that nobody has read
	}
	return nil
}

// adopt takes over what is pinned. When it fails, nothing has changed.
func (e *Enforcer) adopt(o *Options) error {
	k, note, err := e.pins.Adopt()
	if err != nil {
		return err
	}
	e.k = k
	if err = e.readRungs(note, o.Skip); err == nil {
		err = e.adoptState()
	}
	if err != nil {
		e.k, e.adopted, e.live = nil, nil, &staged{names: newNames(false)}
		return errors.Join(err, k.Close())
	}
	return nil
}

// adoptState finds out what judges, and what the tables that go with it hold. What an agent left that was killed in the middle of a change is not taken for whole.
func (e *Enforcer) adoptState() error {
	if err := e.k.Map("controls").Lookup(uint32(0), &e.ctl); err != nil {
		return fmt.Errorf("read the control: %w", err)
	}
	if e.ctl.Active >= bpf.Sides {
		return fmt.Errorf("read the control: side %d judges", e.ctl.Active)
	}
	defer e.trim()
	e.live.side, e.live.hooks = int(e.ctl.Active), e.ctl.Hooks&^e.ctl.NotActive
	e.live.need = map[string]pavise.Op{}
	for _, p := range e.k.Links() {
		e.live.need[p] = pavise.OpNone
	}
	e.adopted = &Adopted{}
	for side := range bpf.Sides {
		t, _, err := e.k.Side(side, 0)
		if err != nil {
			return err
		}
		e.gen = max(e.gen, t.Gen)
		if side == e.live.side {
			e.live.rules, e.live.image = int(t.N_rules), t.Image
			if t.SetKinds != 0 || t.SetMasks[0].Bits != 0 || t.SetMasks[1].Bits != 0 {
				e.sets.used[side] = 1 + int(t.SetSlot)
			}
		}
		if t.Image == ([16]byte{}) {
			continue
		}
		hits, err := e.k.Hits(side, int(t.N_rules))
		if err != nil {
			return err
		}
		g := AdoptedGeneration{Number: t.Gen, Image: t.Image, Names: t.Names, Active: side == e.live.side}
		g.Hits, _ = ruleCounts(hits)
		e.adopted.Generations = append(e.adopted.Generations, g)
	}
	// The other side may be read still by what began before the last flip.
	e.retire(1 - e.live.side)
	// Whose sets these are is known when the same Image is applied.
	for slot := range e.sets.slots {
		if e.k.Inner("set_strings", uint32(slot)) || e.k.Inner("set_prefixes", uint32(slot)) {
			e.sets.slots[slot] = []setID{{}}
		}
	}
	e.counting[0] = e.k.Inner("rate_counts", 0)
	used, err := e.k.Variable("digests_used")
	if err != nil {
		return err
	}
	e.digests = used != 0
	if err := e.live.names.adopt(e.k); err != nil {
		return err
	}
	return e.mounts.adopt(e.k)
}

// beginAdopted makes this process the agent of what was adopted. A shadow ends: its candidate ended with its agent.
func (e *Enforcer) beginAdopted() error {
	e.ctl.SelftestTid, e.ctl.SelftestOp, e.ctl.SelftestHits = 0, 0, 0
	if e.ctl.Shadow != 0 {
		e.log.Warn("a candidate was judged beside the policies when the last agent ended: it ends")
	}
	e.ctl.Shadow, e.ctl.Hooks, e.ctl.NotActive, e.ctl.NotShadow = 0, e.live.hooks, 0, 0
	e.ctl.Agent = e.identity(unix.Getpid()).ExecId
	if err := e.putControl(); err != nil {
		return err
	}
	return e.k.SetInner("rate_counts", 1, nil)
}

// settle makes what judges for the first time the one that stays, and ends what an agent before this one has left.
func (e *Enforcer) settle() error {
	if e.pins == nil || e.settled {
		return nil
	}
	if e.keep != KeepNot {
		if err := e.k.Commit(); err != nil {
			return err
		}
		e.settled = true
		if err := e.pins.Clean(e.pins.Current()); err != nil {
			e.log.Error("end what an agent before this one has left: it still enforces", "err", err)
		}
		e.other.removed()
		return nil
	}
	e.settled = true
	err := errors.Join(e.k.Unpin(), e.pins.Clean())
	if err != nil {
		e.log.Error("end what an agent before this one has left: it still enforces", "err", err)
	}
	e.other.removed()
	if err := e.pins.Close(); err != nil {
		return err
	}
	e.pins = nil
	return nil
}

// Alive puts off the end of enforcement, which is to come some time after the agent's. It waits for nothing that goes on. Not while Close is called.
func (e *Enforcer) Alive() error {
	at, unless := uint64(0), uint64(e.unless.Load()) //nolint:gosec // a time since boot
	if e.keep > 0 || unless > 0 {
		var now unix.Timespec
		if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
			return fmt.Errorf("read the time: %w", err)
		}
		if e.keep > 0 {
			at = uint64(now.Nano()) + uint64(e.keep)
		}
		// An agent that lives has not ended: it does what is to be done then, and is given the time for it.
		if unless = max(unless, uint64(now.Nano())+uint64(aliveTime)); e.unless.Load() > 0 && (at == 0 || unless < at) {
			at = unless
		}
	}
	e.release.Store(at)
	return nil
}

// aliveTime is how long an agent may be without calling Alive, which it does each second.
const aliveTime = 10 * time.Second

// EndWithout has enforcement end in a while, should there be no agent then, although it is to be kept: a change of the policies that nobody has confirmed may be what keeps
// people from starting one. 0 takes it back.
func (e *Enforcer) EndWithout(in time.Duration) error {
	at := int64(0)
	if in > 0 {
		var now unix.Timespec
		if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
			return fmt.Errorf("read the time: %w", err)
		}
		at = now.Nano() + int64(in)
	}
	e.unless.Store(at)
	return e.Alive()
}

// ownProgram follows the file of the agent's program, by which the next agent is known where kernel.bpf is judged: after an upgrade it is another one.
type ownProgram struct {
	path string
	seen unix.Stat_t
}

func (e *Enforcer) followProgram() error {
	p := &e.program
	if p.path == "" {
		exe, err := os.Readlink("/proc/self/exe")
		if err != nil {
			return fmt.Errorf("look for the agent's program: %w", err)
		}
		p.path = strings.TrimSuffix(exe, " (deleted)")
	}
	var st unix.Stat_t
	if unix.Stat(p.path, &st) != nil || st.Dev == p.seen.Dev && st.Ino == p.seen.Ino && st.Ctim == p.seen.Ctim {
		return nil
	}
	key, _, ok := identify(e.k, p.path)
	if !ok {
		return nil
	}
	p.seen = st
	if e.ctl.AgentIno == key.Ino && e.ctl.AgentDev == key.Dev {
		return nil
	}
	e.ctl.AgentIno, e.ctl.AgentDev = key.Ino, key.Dev
	return e.putControl()
}

// keptRung is what was found out of an operation by trying, for the agent that adopts it.
type keptRung struct {
	Op         pavise.Op
	At         int // in its ladder; -1 for none
	Programs   []string
	Why        string
	Tried      []keptTry
	Missing    []policy.Dim
	MissingWhy map[policy.Dim]string
}

type keptTry struct {
	Rung pavise.Rung
	OK   bool
	Err  string `json:",omitempty"`
}

type keptRungs struct {
	Program string // that wrote the tables
	Skip    []pavise.Rung
	Ops     []keptRung
}

// writeRungs is what readRungs reads.
func (e *Enforcer) writeRungs(skip []pavise.Rung) ([]byte, error) {
	k := keptRungs{Program: buildName, Skip: skip}
	for _, op := range judged {
		st := &e.status[op]
		r := keptRung{Op: op, At: -1, Programs: e.rung[op].programs, Why: st.Why, Missing: st.Missing, MissingWhy: st.MissingWhy}
		if st.Rung != pavise.RungNone {
			r.At = slices.IndexFunc(ladder[op], func(x rung) bool { return x.rung == st.Rung })
		}
		for _, t := range st.Tried {
			kt := keptTry{Rung: t.Rung, OK: t.OK}
			if t.Err != nil {
				kt.Err = t.Err.Error()
			}
			r.Tried = append(r.Tried, kt)
		}
		k.Ops = append(k.Ops, r)
	}
	return json.Marshal(k)
}

// readRungs takes the rungs as they were found when the programs were loaded, by the same build on the same boot.
func (e *Enforcer) readRungs(note []byte, skip []pavise.Rung) error {
	var k keptRungs
	if err := json.Unmarshal(note, &k); err != nil {
		return fmt.Errorf("read which rungs are used: %w", err)
	}
	if !slices.Equal(k.Skip, skip) || len(k.Ops) != len(judged) {
		return errors.New("read which rungs are used: others are to be used now")
	}
	e.sameProgram = k.Program == buildName
	for i, op := range judged {
		r := &k.Ops[i]
		if r.Op != op || r.At >= len(ladder[op]) {
			return fmt.Errorf("read which rungs are used: %s", r.Op)
		}
		st := OpStatus{Op: op, Why: r.Why}
		for _, t := range r.Tried {
			rt := RungTry{Rung: t.Rung, OK: t.OK}
			if t.Err != "" {
				rt.Err = errors.New(t.Err)
			}
			st.Tried = append(st.Tried, rt)
		}
		if r.At >= 0 {
			x := ladder[op][r.At]
			x.programs = r.Programs
			e.rung[op] = x
			st.Rung, st.Deny, st.Kill, st.Notes, st.KillOnly = x.rung, x.deny, x.kill, x.notes, x.killOnly
		}
		st.Missing, st.MissingWhy = r.Missing, r.MissingWhy
		e.status[op] = st
	}
	return nil
}

// buildName names this program: what an Image becomes in the kernel's tables is its matter.
var buildName = func() string {
	b, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	return b.String()
}()

// digester hashes tables.
type digester struct{ hash.Hash }

func put[T any](d digester, s []T) {
	var n [8]byte
	binary.LittleEndian.PutUint64(n[:], uint64(len(s)))
	d.Write(n[:])
	if len(s) > 0 {
		d.Write(unsafe.Slice((*byte)(unsafe.Pointer(&s[0])), len(s)*int(unsafe.Sizeof(s[0]))))
	}
}

func (d digester) text(s string) { put(d, []byte(s)) }

func (d digester) sum() (out [16]byte) { copy(out[:], d.Sum(nil)); return out }

// ImageOf names an Image by its contents.
func ImageOf(img *policy.Image) [16]byte {
	d := digester{sha256.New()}
	for i := range img.Automata {
		a := &img.Automata[i]
		put(d, []int{int(a.Dim), int(a.Shift), int(a.Start), a.Classes})
		put(d, a.Column[:])
		put(d, a.Next)
		put(d, a.Accept)
		put(d, a.Tails)
		for _, l := range a.Leaves {
			put(d, []int{int(l.TailOff), int(l.TailLen), int(l.Kind), int(l.Match), int(l.Miss)})
		}
	}
	for op := range img.Ops {
		o := &img.Ops[op]
		for _, s := range o.Slots {
			put(d, []int{s.Automaton})
			put(d, s.ClassRow)
		}
		for _, w := range o.Words {
			k := word(w)
			put(d, []uint64{k.Clauses, uint64(k.Kind), uint64(k.Action), uint64(k.Monitor), uint64(k.Group), uint64(k.Rate)})
		}
		put(d, o.Rule)
	}
	for i := range img.Rows {
		put(d, img.Rows[i].Summary[:])
		put(d, []uint32{img.Rows[i].Off})
	}
	put(d, img.Words)
	for i := range img.Rates {
		r := rate(&img.Rates[i])
		put(d, []uint64{r.Id, r.Window, uint64(r.N), uint64(r.By)})
	}
	for _, p := range img.Protected {
		d.text(p)
	}
	for k, list := range img.Sets {
		for _, s := range list {
			put(d, []int{k})
			put(d, s.Digest[:])
		}
	}
	for _, s := range img.ProtectedSets {
		put(d, s.Digest[:])
	}
	names := NamesOf(img.Rules)
	put(d, names[:])
	return d.sum()
}

// NamesOf names a list of rules by their order and names: by it an agent knows the rules of a generation that it has adopted.
func NamesOf(rules []policy.Rule) [16]byte {
	d := digester{sha256.New()}
	for i := range rules {
		r := &rules[i]
		d.text(r.Policy)
		d.text(r.Name)
		put(d, []int{int(r.Action), r.Index})
		if r.Monitor {
			d.text("monitor")
		}
	}
	return d.sum()
}

// resume makes an Image that judges already, by an agent before this one, the one of this Enforcer. It returns false when it has to be staged.
func (e *Enforcer) resume(img *policy.Image) (a Applied, ok bool, err error) {
	if e.adopted == nil || e.resumed || !e.sameProgram || e.shadow != nil || e.live.image != ImageOf(img) {
		return a, false, nil
	}
	if err := fits(img); err != nil {
		return a, false, err
	}
	live := e.live
	need, hooks := e.programs(img), e.hooks(img)
	added, err := e.attach(img, need)
	if err != nil {
		return a, false, errors.Join(err, e.undo(added))
	}
	defer e.trim()
	t, _, err := e.k.Side(live.side, 0)
	if err != nil {
		return a, false, err
	}
	stale, aliases, err := live.names.add(e.k, img.Protected, img.ProtectedSets)
	if err != nil {
		return a, false, err
	}
	if t.Aliases != aliases || hooks != live.hooks || int(t.N_rules) != len(img.Rules) {
		return a, false, nil
	}
	if ids := setIDs(img); len(ids) > 0 {
		e.sets.slots[t.SetSlot], e.sets.used[live.side] = ids, 1+int(t.SetSlot)
		if len(img.Domains()) > 0 {
			e.sets.setImage(int(t.SetSlot), img)
		}
	}
	live.names.remove(e.k, stale)
	live.need = need
	e.resumed = true
	e.leaveSets()
	e.detach()
	return Applied{Generation: t.Gen, Resumed: true}, true, nil
}

func (e *Enforcer) undo(added []string) (err error) {
	for _, p := range added {
		err = errors.Join(err, e.drop(p))
	}
	return err
}
