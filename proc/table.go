package proc

import (
	"bytes"
	"iter"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	pavise "github.com/pavise-project/pavise"
)

// Options are a Table's settings; the zero value is usable.
type Options struct {
	// MaxProcesses bounds how many images are known, running and kept ones together. Zero means 65,536.
	MaxProcesses int
	// Retain is how long a process is kept after its end; one with running descendants is
	// kept as long as they run, for their ancestry. Zero means a minute.
	Retain time.Duration
	// MaxBytes bounds the arguments and paths of all images. Over it, ended processes go, then
	// the arguments of new ones are cut to 256 bytes, and at twice as much running ones go. Zero means 32 MiB.
	MaxBytes int
	// Boot is the Unix time in nanoseconds at which CLOCK_BOOTTIME was zero: the one given to decode.Decode.
	Boot int64
	// Users names a user, or returns "". It is called with the Table locked. Nil means no names.
	Users func(uid uint32) string
	// Containers says more of containers than their cgroups do. Nil means nothing more.
	Containers *Containers
}

// Stats is what a Table holds and what it had to give up.
type Stats struct {
	Live        int    // images that run
	Kept        int    // ended ones that are kept
	Bytes       int    // of arguments and paths; what forks share is counted once
	Evicted     uint64 // ended ones dropped before their time
	EvictedLive uint64 // running ones dropped: their events are Unknown from then on
	ArgsCut     uint64 // images whose arguments were cut for want of room
	Unknown     uint64 // events whose exec_id was not in the table
	Missed      uint64 // running ones found to have ended by other means than their own exit record
}

const (
	defaultMaxProcesses = 65_536
	defaultRetain       = time.Minute
	defaultMaxBytes     = 32 << 20
	shortArgs           = 256
	maxDepth            = 64 // of a walk towards the root
)

// Table is the tree of processes, by exec_id. One goroutine writes (Update, Tick, Prune) and any number
// read. A Process that it hands out never changes: what is learnt later is in another one of the same ExecID.
type Table struct {
	max, maxBytes int
	retain        time.Duration
	boot          int64
	users         func(uint32) string
	containers    *Containers
	unknown       atomic.Uint64

	mu    sync.RWMutex
	byID  map[uint64]*entry
	byPID map[uint32]*entry // the image that runs
	// orphans counts, for a parent that is not in byID, its children that are: what its kids
	// will be once its record arrives.
	orphans map[uint64]int32
	live    list // in order of arrival
	pinned  list // ended, with running descendants
	ended   list // ended, without: in order of their end, nearly
	bytes   int
	stats   Stats
	free    *entry // entries to use again; they never leave the table

	strings interner
	logins  map[uint32]*uint32
	cgroups map[uint64]*cgroup
}

// source is where an image's facts are from. It decides which of two images of one process is newer.
type source uint8

const (
	fromExit source = iota // its end was seen and nothing else
	fromFound
	fromFork
	fromExec
)

// entry is an image in the table. Links between images are exec_ids, never pointers, so that
// dropping one frees it whoever refers to it.
type entry struct {
	p     *pavise.Process
	stub  *pavise.Process // p without its Parent: what its children's Parent points to; made for the first child
	img   *image
	since int64 // when this image began, Unix nanoseconds

	prev, next *entry
	in         *list
	kids       int32 // children in the table that run or have running descendants
	from       source
	partial    bool // of a fork whose parent is not known yet: no facts of the executable
	stale      bool // ended only because it was found running after a newer image had come
}

// image accounts for the arguments and paths that a process and its forks share.
type image struct{ refs, cost int }

type cgroup struct {
	path, unit string
	container  *pavise.Container
	pod        *pavise.Pod
}

// New makes an empty Table.
func New(o Options) *Table {
	t := &Table{
		max: o.MaxProcesses, retain: o.Retain, maxBytes: o.MaxBytes, boot: o.Boot, users: o.Users, containers: o.Containers,
		byID: map[uint64]*entry{}, byPID: map[uint32]*entry{}, orphans: map[uint64]int32{},
		logins: map[uint32]*uint32{}, cgroups: map[uint64]*cgroup{},
	}
	if t.max <= 0 {
		t.max = defaultMaxProcesses
	}
	if t.retain <= 0 {
		t.retain = defaultRetain
	}
	if t.maxBytes <= 0 {
		t.maxBytes = defaultMaxBytes
	}
	if t.users == nil {
		t.users = func(uint32) string { return "" }
	}
	t.live.init()
	t.pinned.init()
	t.ended.init()
	return t
}

// lifecycle reports whether e is a lifecycle record. A verdict on process.exec has the same Op,
// but no facts of a process; every process has a start time.
func lifecycle(e *pavise.Event) bool {
	switch e.Op {
	case pavise.OpFork, pavise.OpExit:
		return true
	case pavise.OpExec:
		return e.Exec.StartTime != 0
	}
	return false
}

// Update takes in a lifecycle event (fork, exec, exit, found running) and sets e.Process: the child
// of a fork, the new image of an exec, the ended image of an exit. Any other event is resolved. It keeps nothing that e's strings point into.
func (t *Table) Update(e *pavise.Event) {
	if !lifecycle(e) || e.Op == pavise.OpFork && e.Exec.Thread {
		t.Resolve(e)
		return
	}
	t.meet(e.Exec.CgroupID, e.Exec.Cgroup)
	t.mu.Lock()
	defer t.mu.Unlock()
	if e.ExecID == 0 { // the kernel could not tell
		if cur := t.byPID[e.PID]; cur != nil && e.Op == pavise.OpExit && cur.since <= e.Time {
			t.end(cur, e.Time)
		}
		t.unknown.Add(1)
		e.Process = &pavise.Process{PID: e.PID, Unknown: true}
		return
	}
	var en *entry
	switch e.Op {
	case pavise.OpFork:
		en = t.fork(e)
	case pavise.OpExit:
		en = t.exit(e)
	default:
		en = t.exec(e)
	}
	e.Process = en.p
}

// Resolve sets e.Process to what is known of e.ExecID. When nothing is, it is a Process marked Unknown,
// and that is counted; it reports which.
func (t *Table) Resolve(e *pavise.Event) bool {
	t.mu.RLock()
	en := t.byID[e.ExecID]
	if en == nil {
		t.mu.RUnlock()
		t.unknown.Add(1)
		e.Process = &pavise.Process{ExecID: e.ExecID, PID: e.PID, Unknown: true}
		return false
	}
	p, improve := en.p, t.canImprove(en)
	t.mu.RUnlock()
	if improve {
		t.mu.Lock()
		if en := t.byID[e.ExecID]; en != nil {
			t.improve(en, 0)
			p = en.p
		}
		t.mu.Unlock()
	}
	if p.Unknown {
		t.unknown.Add(1)
	}
	e.Process = p
	return !p.Unknown
}

// Lookup is the image of an exec_id, or nil.
func (t *Table) Lookup(execID uint64) *pavise.Process {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if en := t.byID[execID]; en != nil {
		return en.p
	}
	return nil
}

// LookupPID is the image that the process pid runs now, or nil.
func (t *Table) LookupPID(pid uint32) *pavise.Process {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if en := t.byPID[pid]; en != nil {
		return en.p
	}
	return nil
}

// Ancestors walks from p's parent towards the root, as far as the table knows.
func (t *Table) Ancestors(p *pavise.Process) iter.Seq[*pavise.Process] {
	return func(yield func(*pavise.Process) bool) {
		for range t.max {
			q := t.Lookup(p.ParentExecID)
			if q == nil {
				q = p.Parent
			}
			if q == nil || q.ExecID == p.ExecID || !yield(q) {
				return
			}
			p = q
		}
	}
}

// Stats is what the table holds now and what it has given up so far.
func (t *Table) Stats() Stats {
	t.mu.RLock()
	defer t.mu.RUnlock()
	s := t.stats
	s.Live, s.Kept, s.Bytes, s.Unknown = t.live.n, t.pinned.n+t.ended.n, t.bytes, t.unknown.Load()
	return s
}

// Tick drops the ended processes whose time to be kept is over. To be called about once a second.
// It looks again for what the runtimes say of new containers.
func (t *Table) Tick(now time.Time) {
	var learnt []string
	if t.containers != nil {
		learnt = t.containers.Tick(now)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, base := range learnt {
		t.relabel(base)
	}
	before := now.Add(-t.retain).UnixNano()
	for en := t.ended.first(); en != nil && en.p.ExitTime <= before; en = t.ended.first() {
		t.drop(en)
	}
}

// Prune ends the processes that alive denies at time now, and returns how many they were: to be called after
// lifecycle records were lost, when the end of some was not seen. Alive is called without a lock held.
func (t *Table) Prune(now time.Time, alive func(*pavise.Process) bool) int {
	t.mu.RLock()
	running := make([]*pavise.Process, 0, t.live.n)
	for en := t.live.first(); en != nil; en = t.live.after(en) {
		running = append(running, en.p)
	}
	t.mu.RUnlock()
	running = slices.DeleteFunc(running, alive)
	t.mu.Lock()
	defer t.mu.Unlock()
	n := 0
	for _, p := range running {
		if en := t.byID[p.ExecID]; en != nil && en.in == &t.live {
			t.end(en, now.UnixNano())
			n++
		}
	}
	t.stats.Missed += uint64(n)
	return n
}

// fork adds a child: its parent's image under its own name.
func (t *Table) fork(e *pavise.Event) *entry {
	en := t.byID[e.ExecID]
	if en != nil && en.from != fromExit {
		return en // found running before its fork record came: the same image, and nothing newer here
	}
	p := t.own(e)
	parent := t.byID[p.ParentExecID]
	if parent != nil {
		t.improve(parent, 0)
	}
	inherited := parent != nil && !parent.partial && parent.from != fromExit
	if inherited {
		t.inherit(p, parent)
	}
	if en == nil {
		en = t.insert(p, e, fromFork)
	} else {
		t.fill(en, p, fromFork, e.Time)
	}
	en.partial = !inherited
	if inherited {
		t.share(en, parent.img)
	}
	t.trim(en)
	return en
}

// exec adds an image, whether seen at its exec or found running.
func (t *Table) exec(e *pavise.Event) *entry {
	from := fromExec
	if e.Exec.Found {
		from = fromFound
	}
	en := t.byID[e.ExecID]
	switch {
	case en == nil:
	case from == fromFound && !en.partial && en.from != fromExit:
		return en // what a record said as it happened is not overwritten by what was found
	case from == fromExec && en.from == fromExec:
		return en
	}
	p := t.own(e)
	img := t.facts(en, p, e)
	if parent := t.byID[p.ParentExecID]; parent != nil && parent != en {
		p.Parent = parent.asParent()
	}
	if en == nil {
		en = t.insert(p, e, from)
	} else {
		if en.from == fromFork {
			from = fromFork // found what a fork began: the order of images stays that of the fork
		}
		t.fill(en, p, from, e.Time)
	}
	en.partial = false
	t.share(en, img)
	t.trim(en)
	return en
}

// exit ends an image, and with it whatever is thought to run under the same pid.
func (t *Table) exit(e *pavise.Event) *entry {
	en := t.byID[e.ExecID]
	if cur := t.byPID[e.PID]; cur != nil && cur != en && cur.since <= e.Time {
		t.end(cur, e.Time)
		t.stats.Missed++
	}
	if en == nil {
		// Its other records were lost, or are still to come: they must not make it run.
		t.unknown.Add(1)
		p := &pavise.Process{ExecID: e.ExecID, PID: e.PID, Unknown: true, ExitTime: e.Time}
		t.add(p, e.Time, fromExit, &t.ended)
		t.trim(nil) // nil: what is known to have ended must not push out what runs
		return &entry{p: p}
	}
	en.stale = false
	t.end(en, e.Time)
	return en
}

// own is a Process with what every lifecycle record says of it.
func (t *Table) own(e *pavise.Event) *pavise.Process {
	x := &e.Exec
	p := &pavise.Process{
		ExecID: e.ExecID, PID: e.PID, StartTime: t.boot + int64(x.StartTime), Found: x.Found && !x.Kept,
		User: pavise.User{ID: x.EUID, Name: t.users(x.EUID)}, GroupID: x.EGID, RealUID: x.UID, RealGID: x.GID,
		LoginID: t.login(x.LoginID), Caps: x.Caps, SecureExec: x.SecureExec, OnRoot: x.OnRoot, TTY: x.TTY, Namespaces: x.Namespaces,
		CgroupID: x.CgroupID, ParentExecID: x.ParentExecID,
	}
	if p.ParentExecID == p.ExecID {
		p.ParentExecID = 0
	}
	t.setCgroup(p, x.Cgroup)
	return p
}

// meet learns the path of a cgroup. The files of a new container are read without the lock held.
func (t *Table) meet(id uint64, path string) {
	if id == 0 || path == "" {
		return
	}
	t.mu.RLock()
	g := t.cgroups[id]
	t.mu.RUnlock()
	if g != nil && g.path == path {
		return
	}
	path = strings.Clone(path)
	if t.containers != nil {
		parsed := parseCgroup(path)
		t.containers.meet(&parsed)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	g = t.newCgroup(path)
	if len(t.cgroups) >= maxCgroups {
		clear(t.cgroups)
	}
	t.cgroups[id] = g
}

func (t *Table) newCgroup(path string) *cgroup {
	parsed := parseCgroup(path)
	g := &cgroup{path: path, unit: parsed.unit, container: parsed.container}
	if t.containers != nil {
		g.container, g.pod = t.containers.of(&parsed)
	}
	return g
}

// setCgroup sets what follows from p.CgroupID, or from a path without an id.
func (t *Table) setCgroup(p *pavise.Process, path string) {
	g := t.cgroups[p.CgroupID]
	if g == nil && path != "" {
		g = t.newCgroup(t.strings.intern(path))
	}
	if g != nil {
		p.Cgroup, p.Unit, p.Container, p.Pod = g.path, g.unit, g.container, g.pod
	}
}

// relabel gives the processes in or below a cgroup, a container's, what has become known of it.
func (t *Table) relabel(base string) {
	inside := func(path string) bool {
		return strings.HasPrefix(path, base) && (len(path) == len(base) || path[len(base)] == '/')
	}
	for id, g := range t.cgroups {
		if inside(g.path) {
			t.cgroups[id] = t.newCgroup(g.path)
		}
	}
	for _, en := range t.byID {
		if inside(en.p.Cgroup) {
			g := t.newCgroup(en.p.Cgroup)
			p := *en.p
			p.Container, p.Pod = g.container, g.pod
			en.p, en.stub = &p, nil
		}
	}
	for _, en := range t.byID {
		if q := en.p.Parent; q != nil && inside(q.Cgroup) {
			if parent := t.byID[q.ExecID]; parent != nil {
				p := *en.p
				p.Parent = parent.asParent()
				en.p, en.stub = &p, nil
			}
		}
	}
}

// maxCgroups and maxLogins bound two caches, which are emptied when they are full.
const (
	maxCgroups = 8192
	maxLogins  = 4096
)

func (t *Table) login(id uint32) *uint32 {
	if id == 1<<32-1 {
		return nil
	}
	l := t.logins[id]
	if l == nil {
		if len(t.logins) >= maxLogins {
			clear(t.logins)
		}
		l = &id
		t.logins[id] = l
	}
	return l
}

// facts sets what an exec or found record says of the executable, and returns the account of its room. To make
// room it may drop other images than en.
func (t *Table) facts(en *entry, p *pavise.Process, e *pavise.Event) *image {
	x := &e.Exec
	p.Exe = x.Exe
	p.Exe.Path, p.Exe.Alias, p.Exe.FS = t.strings.intern(x.Exe.Path), t.strings.intern(x.Exe.Alias), t.strings.intern(x.Exe.FS)
	p.Script, p.CWD = t.strings.intern(x.Script), t.strings.intern(x.CWD)
	p.ExeDigest, p.ExeVerity = t.strings.intern(x.ExeDigest), t.strings.intern(x.ExeVerity)
	args, cut := x.Args, x.ArgsCut
	paths := len(p.Exe.Path) + len(p.Exe.Alias) + len(p.Script) + len(p.CWD) + len(p.Cgroup) + len(p.ExeDigest) + len(p.ExeVerity)
	cost := paths + argsCost(args)
	for t.bytes+cost > t.maxBytes && t.evictEnded(en) {
	}
	if t.bytes+cost > t.maxBytes && len(args) > shortArgs {
		args, cut = args[:shortArgs], true
		cost = paths + argsCost(args)
		t.stats.ArgsCut++
	}
	if p.ArgsCut = cut; len(args) > 0 {
		p.Args = slices.AppendSeq(make([]string, 0, bytes.Count(args, []byte{0})+1), pavise.Args(string(args)))
	}
	return &image{cost: cost}
}

func argsCost(args []byte) int { return len(args) + 16*(bytes.Count(args, []byte{0})+1) }

// inherit gives the child p, not published yet, what a fork shares with its parent.
func (t *Table) inherit(p *pavise.Process, parent *entry) {
	q := parent.p
	p.Exe, p.Script, p.Args, p.ArgsCut, p.CWD = q.Exe, q.Script, q.Args, q.ArgsCut, q.CWD
	p.ExeDigest, p.ExeVerity = q.ExeDigest, q.ExeVerity
	p.SecureExec, p.TTY = p.SecureExec || q.SecureExec, p.TTY || q.TTY
	if p.CgroupID == 0 || p.CgroupID == q.CgroupID { // CLONE_INTO_CGROUP makes them differ
		p.CgroupID, p.Cgroup, p.Unit, p.Container, p.Pod = q.CgroupID, q.Cgroup, q.Unit, q.Container, q.Pod
	}
	if p.Namespaces == (pavise.Namespaces{}) {
		p.Namespaces = q.Namespaces
	}
	p.Parent = parent.asParent()
}

// canImprove reports whether en's parent has become known since en was made.
func (t *Table) canImprove(en *entry) bool {
	return (en.partial || en.p.Parent == nil) && en.p.ParentExecID != 0 && t.byID[en.p.ParentExecID] != nil
}

// improve publishes en anew with what its parent's record brought, when that came later than en's.
func (t *Table) improve(en *entry, depth int) {
	if !t.canImprove(en) || depth > maxDepth {
		return
	}
	parent := t.byID[en.p.ParentExecID]
	if !en.partial {
		p := *en.p
		p.Parent = parent.asParent()
		en.p = &p
		return
	}
	t.improve(parent, depth+1)
	if parent.partial || parent.from == fromExit {
		return
	}
	p := *en.p
	t.inherit(&p, parent)
	en.p, en.stub, en.partial = &p, nil, false
	t.share(en, parent.img)
}

// asParent is en's Process for a child to point to.
func (en *entry) asParent() *pavise.Process {
	if en.stub == nil {
		en.stub = en.p
		if en.p.Parent != nil {
			p := *en.p
			p.Parent = nil
			en.stub = &p
		}
	}
	return en.stub
}

// newer reports whether image a of a pid came after image b of the same pid.
func newer(a, b *entry) bool {
	switch {
	case a.p.StartTime != b.p.StartTime: // another process
		return a.p.StartTime > b.p.StartTime
	case a.from == fromFork: // the first image of a process
		return false
	case b.from == fromFork, a.from == fromExec && b.from == fromFound:
		return true
	case a.from == fromFound && b.from == fromExec: // a found record is never waited for
		return false
	}
	return a.since >= b.since
}

// insert adds a new image and makes it the one its pid runs, unless that is newer.
func (t *Table) insert(p *pavise.Process, e *pavise.Event, from source) *entry {
	en := t.add(p, e.Time, from, &t.live)
	t.makeCurrent(en)
	return en
}

func (t *Table) makeCurrent(en *entry) {
	old := t.byPID[en.p.PID]
	switch {
	case old == en:
		return
	case old == nil:
	case newer(en, old):
		if old.p.StartTime != en.p.StartTime {
			t.stats.Missed++
		}
		t.end(old, en.since)
	default:
		t.end(en, max(old.since, en.since))
		en.stale = en.from == fromFound
		return
	}
	t.byPID[en.p.PID] = en
}

// fill gives an image that is in the table its facts, or better ones. One that has ended stays so.
func (t *Table) fill(en *entry, p *pavise.Process, from source, since int64) {
	if old := en.p.PID; old != p.PID && t.byPID[old] == en { // of no kernel that is well
		delete(t.byPID, old)
	}
	oldParent, kept := en.p.ParentExecID, t.keeps(en)
	if en.stale && from == fromExec { // it was not old but early: its exec record was on the way
		en.in.remove(en)
		t.live.push(en)
	} else {
		p.ExitTime = en.p.ExitTime
	}
	en.p, en.stub, en.from, en.since, en.stale = p, nil, from, since, false
	if keeps := t.keeps(en); keeps != kept || p.ParentExecID != oldParent {
		if keeps {
			t.addKid(p.ParentExecID, 1)
		}
		if kept {
			t.addKid(oldParent, -1)
		}
	}
	if en.in == &t.live {
		t.makeCurrent(en)
	}
}

// end marks an image as ended at a time, and keeps it.
func (t *Table) end(en *entry, at int64) {
	if en.in != &t.live {
		return
	}
	p := *en.p
	p.ExitTime = at
	en.p = &p
	if t.byPID[p.PID] == en {
		delete(t.byPID, p.PID)
	}
	t.live.remove(en)
	if en.kids > 0 {
		t.pinned.push(en)
		return
	}
	t.ended.push(en)
	t.addKid(p.ParentExecID, -1)
}

// keeps reports whether en runs or has running descendants: whether its parent counts it.
func (t *Table) keeps(en *entry) bool { return en.in != &t.ended }

// addKid changes by d, one up or down, how many children keep the image id, and so on upwards.
func (t *Table) addKid(id uint64, d int32) {
	for id != 0 {
		en := t.byID[id]
		if en == nil {
			if n := t.orphans[id] + d; n > 0 {
				t.orphans[id] = n
			} else {
				delete(t.orphans, id)
			}
			return
		}
		en.kids += d
		switch {
		case d < 0 && en.kids == 0 && en.in == &t.pinned:
			t.pinned.remove(en)
			t.ended.pushByEnd(en)
		case d > 0 && en.kids == 1 && en.in == &t.ended:
			t.ended.remove(en)
			t.pinned.push(en)
		default:
			return
		}
		id = en.p.ParentExecID
	}
}

// add puts an image into the table.
func (t *Table) add(p *pavise.Process, since int64, from source, in *list) *entry {
	en := t.free
	if en != nil {
		t.free = en.next
	} else {
		en = new(entry)
	}
	*en = entry{p: p, since: since, from: from, kids: t.orphans[p.ExecID]}
	delete(t.orphans, p.ExecID)
	t.byID[p.ExecID] = en
	if in == &t.ended && en.kids > 0 {
		in = &t.pinned
	}
	in.push(en)
	if t.keeps(en) {
		t.addKid(p.ParentExecID, 1)
	}
	return en
}

// drop takes an image out of the table.
func (t *Table) drop(en *entry) {
	id, kept := en.p.ExecID, t.keeps(en)
	en.in.remove(en)
	delete(t.byID, id)
	if en.kids > 0 {
		t.orphans[id] = en.kids
	}
	if kept {
		t.addKid(en.p.ParentExecID, -1)
	}
	if t.byPID[en.p.PID] == en {
		delete(t.byPID, en.p.PID)
	}
	t.share(en, nil)
	*en = entry{next: t.free}
	t.free = en
}

// share moves en to the account img.
func (t *Table) share(en *entry, img *image) {
	if img != nil {
		if img.refs == 0 {
			t.bytes += img.cost
		}
		img.refs++
	}
	if old := en.img; old != nil {
		if old.refs--; old.refs == 0 {
			t.bytes -= old.cost
		}
	}
	en.img = img
}

// trim drops images until the table is within its bounds again, but not the one just added.
func (t *Table) trim(added *entry) {
	for len(t.byID) > t.max || t.bytes > 2*t.maxBytes {
		if !t.evictEnded(added) && !t.evictLive(added) {
			return
		}
	}
}

// evictEnded drops the oldest ended image but added: first of those without running descendants, then of those with.
func (t *Table) evictEnded(added *entry) bool {
	for _, l := range [...]*list{&t.ended, &t.pinned} {
		en := l.first()
		if en != nil && en == added {
			en = l.after(en)
		}
		if en != nil {
			t.drop(en)
			t.stats.Evicted++
			return true
		}
	}
	return false
}

// evictLive drops a running image, the newest childless one: a flood of processes must push out itself
// and not init, sshd and all else that was here before it.
func (t *Table) evictLive(added *entry) bool {
	var victim *entry
	en := t.live.last()
	for range 64 {
		if en == nil {
			break
		}
		if en != added {
			if victim == nil {
				victim = en
			}
			if en.kids == 0 {
				victim = en
				break
			}
		}
		en = t.live.before(en)
	}
	if victim == nil {
		return false
	}
	t.drop(victim)
	t.stats.EvictedLive++
	return true
}

// list is a ring of entries around a sentinel.
type list struct {
	root entry
	n    int
}

func (l *list) init() { l.root.prev, l.root.next = &l.root, &l.root }

func (l *list) first() *entry { return l.after(&l.root) }
func (l *list) last() *entry  { return l.before(&l.root) }

func (l *list) after(en *entry) *entry {
	if en.next == &l.root {
		return nil
	}
	return en.next
}

func (l *list) before(en *entry) *entry {
	if en.prev == &l.root {
		return nil
	}
	return en.prev
}

func (l *list) push(en *entry) { l.insert(en, l.root.prev) }

// pushByEnd puts en first when it ended before all others, else last: what waits behind a later end
// is dropped later than it could be, by Retain at most.
func (l *list) pushByEnd(en *entry) {
	if f := l.first(); f != nil && en.p.ExitTime <= f.p.ExitTime {
		l.insert(en, &l.root)
		return
	}
	l.push(en)
}

func (l *list) insert(en, after *entry) {
	en.prev, en.next, en.in = after, after.next, l
	after.next.prev = en
	after.next = en
	l.n++
}

func (l *list) remove(en *entry) {
	en.prev.next, en.next.prev = en.next, en.prev
	en.prev, en.next, en.in = nil, nil, nil
	l.n--
}

// interner keeps one copy of each string that came lately: what is asked for moves to the young
// half, and the old half goes when the young one is full.
type interner struct {
	young, old map[string]string
	bytes      int // of young
}

const internBytes = 1 << 20

// intern is a string equal to s that shares nothing with it.
func (n *interner) intern(s string) string {
	if s == "" {
		return ""
	}
	if c, ok := n.young[s]; ok {
		return c
	}
	c, ok := n.old[s]
	if !ok {
		c = strings.Clone(s)
	}
	if n.bytes += len(c) + 64; n.bytes > internBytes || n.young == nil {
		n.old, n.young, n.bytes = n.young, map[string]string{}, len(c)+64
	}
	n.young[c] = c
	return c
}
