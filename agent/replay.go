package agent

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/pavise-project/pavise"
	"github.com/pavise-project/pavise/policy"
	"github.com/pavise-project/pavise/store"
)

// This file runs recorded events through policies that are not in force, and says what would have been denied. It takes the events from a search of the
// history, the agent's or a directory's, and needs nothing else of an agent.

// Replay is what came of running the history through a candidate. Events are records, Count has the repeats that were folded into them.
type Replay struct {
	From       *time.Time    `json:"from,omitempty"` // as it was asked for
	To         *time.Time    `json:"to,omitempty"`
	First      *time.Time    `json:"first,omitempty"` // of the events that were judged
	Last       *time.Time    `json:"last,omitempty"`
	Policies   []PolicyMode  `json:"policies"`
	Judged     ReplayCount   `json:"judged"`
	Killed     ReplayCount   `json:"killed"`
	Denied     ReplayCount   `json:"denied"`
	Audited    ReplayCount   `json:"audited"`
	Undecided  ReplayCount   `json:"undecided"`
	Already    ReplayCount   `json:"already"` // of the killed and denied, those that were killed or denied then, too
	Rules      []ReplayRule  `json:"rules"`
	Operations []ReplayOp    `json:"operations"`
	Lost       []ReplayLoss  `json:"lost"`
	Damaged    []string      `json:"damaged,omitempty"`    // files of the history of which something could not be read
	LostBytes  int64         `json:"lost_bytes,omitempty"` // of logs, that are no records
	Shadow     int64         `json:"shadow,omitempty"`     // events about a shadow, which are not acts of their own
	Took       time.Duration `json:"took_ns"`
}

// Stopped reports whether the candidate would have denied or killed anything; new leaves out what was stopped then, too.
func (r *Replay) Stopped(newOnly bool) bool {
	n := r.Killed.Events + r.Denied.Events
	if newOnly {
		n -= r.Already.Events
	}
	return n > 0
}

// Whole reports whether nothing is missing: nothing was lost, damaged or undecided, and of each operation there are events.
func (r *Replay) Whole() bool {
	return len(r.Lost) == 0 && len(r.Damaged) == 0 && r.LostBytes == 0 && r.Undecided.Events == 0 &&
		!slices.ContainsFunc(r.Operations, func(o ReplayOp) bool { return o.Events == 0 })
}

// ReplayCount counts events.
type ReplayCount struct {
	Events int64  `json:"events"`
	Count  uint64 `json:"count"`
}

func (c *ReplayCount) add(n uint64) {
	c.Events++
	c.Count += n
}

// ReplayRule is what a rule would have done.
type ReplayRule struct {
	Policy    string `json:"policy"`
	Rule      string `json:"rule"`
	Operation string `json:"operation"`
	Action    string `json:"action"`
	Mode      string `json:"mode"` // of the policy: in monitor it would only be told
	ReplayCount
	Already  ReplayCount     `json:"already"`
	First    time.Time       `json:"first"`
	Last     time.Time       `json:"last"`
	Subjects []ReplaySubject `json:"subjects"`         // to whom, most first
	Others   int64           `json:"others,omitempty"` // events of subjects beyond the first thousand
}

// ReplaySubject is to whom a rule would have done it.
type ReplaySubject struct {
	Exe       string `json:"exe,omitempty"`    // empty: not recorded
	Parent    string `json:"parent,omitempty"` // where exe is not recorded
	User      string `json:"user,omitempty"`
	Unit      string `json:"unit,omitempty"`
	Container string `json:"container,omitempty"` // its name, or its id
	ReplayCount
	First   time.Time     `json:"first"`
	Last    time.Time     `json:"last"`
	Example ReplayExample `json:"example"`
}

// ReplayExample is an event. Numbers of events begin at 1 with each agent, so that the time belongs to it.
type ReplayExample struct {
	ID     uint64    `json:"id"`
	Time   time.Time `json:"time"`
	Object string    `json:"object,omitempty"`
}

// ReplayOp is what was recorded of an operation that the candidate judges.
type ReplayOp struct {
	Operation string `json:"operation"`
	ReplayCount
	Always    bool          `json:"always,omitempty"` // it is recorded whatever the policies are, when it succeeds
	By        []string      `json:"by,omitempty"`     // rules because of which the others were recorded
	Undecided ReplayCount   `json:"undecided"`
	Missing   []ReplayField `json:"missing,omitempty"` // for want of what
}

// ReplayField is a field that was not recorded where it was needed.
type ReplayField struct {
	Field  string `json:"field"`
	Events int64  `json:"events"`
}

// ReplayLoss is how many events were lost.
type ReplayLoss struct {
	Operation string `json:"operation"` // none: of any
	Where     string `json:"where"`
	Count     uint64 `json:"count"`
}

// ReadRevisionPolicies reads the policies of a revision from the directory of an agent's state, which it does not touch.
func ReadRevisionPolicies(stateDir string, number uint64) ([]*policy.Policy, error) {
	rev, err := store.ReadRevision(filepath.Join(stateDir, revisionsDir), number)
	if err != nil {
		return nil, err
	}
	return RevisionPolicies(rev)
}

// RevisionPolicies are the policies of a revision.
func RevisionPolicies(rev *store.Revision) ([]*policy.Policy, error) {
	ps, err := fromDocuments(rev.Documents)
	if err != nil {
		return nil, fmt.Errorf("read the policies of revision %d: %w", rev.Number, err)
	}
	return ps, nil
}

const (
	replayBatch    = 256
	replaySubjects = 1000       // of a rule
	replayHeld     = 1 << 14    // starts of programs that wait, when the clock is set back
	replayRecorded = 16         // rules because of which an operation was recorded
	execPause      = int64(1e9) // the two records of an exec are not further apart
	execAccess     = pavise.AccessRead | pavise.AccessExec
)

// RunReplay runs the events of a search through policies. Hq says which: its times and its condition. Progress may be nil.
func RunReplay(ctx context.Context, ps []*policy.Policy, hq HistoryQuery, search func(context.Context, HistoryQuery, func(*HistoryLine) error) error, progress func(*ScanProgress)) (*Replay, error) {
	start := time.Now()
	r, err := newReplayer(ps, hq)
	if err != nil {
		return nil, err
	}
	if err := r.run(ctx, search, progress); err != nil {
		return nil, err
	}
	r.out.Took = time.Since(start)
	return r.finish(), nil
}

// replayer is a Replay that is being made.
type replayer struct {
	trial *policy.Trial
	query HistoryQuery
	where *policy.Expr // of process.exec alone: the others come chosen
	execs bool         // the candidate judges process.exec
	out   *Replay
	ops   map[pavise.Op]*replayOp
	rules map[ruleAsks]*replayRule
	lost  map[pavise.LostInfo]uint64

	images map[uint32]image // by pid: what was last seen to run
	lastID uint64
	held   []*execAct // that may have another record, in the order in which they came
	byPID  map[uint32][]*execAct
}

type replayOp struct {
	ReplayOp
	by      map[string]bool
	missing map[string]int64
}

type ruleAsks struct {
	policy, rule string
	op           pavise.Op
	action       pavise.Action
}

type replayRule struct {
	ReplayRule
	subjects map[ReplaySubject]*ReplaySubject // by what is known of them alone
}

type image struct {
	start int64
	p     *pavise.Process
}

// newReplayer plans which events are needed.
func newReplayer(ps []*policy.Policy, hq HistoryQuery) (*replayer, error) {
	trial, err := policy.NewTrial(ps)
	if err != nil {
		return nil, err
	}
	r := &replayer{
		trial: trial, out: &Replay{Policies: []PolicyMode{}, Rules: []ReplayRule{}, Operations: []ReplayOp{}, Lost: []ReplayLoss{}},
		ops: map[pavise.Op]*replayOp{}, rules: map[ruleAsks]*replayRule{}, lost: map[pavise.LostInfo]uint64{}, images: map[uint32]image{}, byPID: map[uint32][]*execAct{},
	}
	for _, p := range ps {
		r.out.Policies = append(r.out.Policies, PolicyMode{p.Name, string(p.Mode)})
	}
	slices.SortFunc(r.out.Policies, func(a, b PolicyMode) int { return cmp.Compare(a.Name, b.Name) })
	if !hq.From.IsZero() {
		r.out.From = &hq.From
	}
	if !hq.To.IsZero() {
		r.out.To = &hq.To
	}
	judged, also := []string{}, []string{pavise.OpLost.String()}
	for _, op := range trial.Ops() {
		r.ops[op] = &replayOp{ReplayOp: ReplayOp{Operation: op.String(), Always: op == pavise.OpExec}, by: map[string]bool{}, missing: map[string]int64{}}
		if op == pavise.OpExec {
			r.execs = true
			also = append(also, op.String(), pavise.OpFork.String(), pavise.OpExit.String())
			continue
		}
		judged = append(judged, op.String())
	}
	r.query = HistoryQuery{From: hq.From, To: hq.To, Limit: -1}
	if hq.Where == "" {
		r.query.Where = inList("op", append(judged, also...))
		return r, nil
	}
	if r.where, err = policy.CompileWhere(hq.Where); err != nil {
		return nil, inField("where", err)
	}
	r.query.Where = inList("op", also)
	if len(judged) > 0 { // the condition may end in a comment
		r.query.Where = fmt.Sprintf("%s || %s && (%s\n)", inList("op", also), inList("op", judged), hq.Where)
	}
	return r, nil
}

func inList(field string, values []string) string {
	s := field + " in ["
	for i, v := range values {
		if i > 0 {
			s += ", "
		}
		s += fmt.Sprintf("%q", v)
	}
	return s + "]"
}

// batch is some events on their way: their JSON is read by any of several goroutines, and they are judged in order.
type batch struct {
	data   []byte
	ends   []int
	events []pavise.Event
	err    error
	ready  chan struct{}
}

func (b *batch) read(known *processes) {
	defer close(b.ready)
	b.events = make([]pavise.Event, len(b.ends))
	begin := 0
	for i, end := range b.ends {
		if err := known.read(b.data[begin:end], &b.events[i]); err != nil {
			b.err = fmt.Errorf("read an event of the history: %w", err)
			b.events = b.events[:i]
			return
		}
		begin = end
	}
}

// processes are those that were read last, by their JSON: it is the most of an event, and the same in all events of a process.
type processes struct {
	mu sync.RWMutex
	by map[string]*pavise.Process
}

const maxProcesses = 1 << 13

var processKey = []byte(`,"process":{`)

// read reads an event. Its process may be another event's too.
func (c *processes) read(data []byte, e *pavise.Event) error {
	// Quotes within a string are escaped: this is the key, and of the event, since what comes before it has no objects.
	at := bytes.Index(data, processKey)
	if at < 0 {
		return e.UnmarshalJSON(data)
	}
	begin := at + len(processKey) - 1
	end := objectEnd(data, begin)
	if end < 0 {
		return e.UnmarshalJSON(data) // which says what is wrong
	}
	text := data[begin:end]
	c.mu.RLock()
	p := c.by[string(text)]
	c.mu.RUnlock()
	if p == nil {
		p = new(pavise.Process)
		if err := p.UnmarshalJSON(text); err != nil {
			return err
		}
		c.mu.Lock()
		if len(c.by) >= maxProcesses || c.by == nil {
			c.by = map[string]*pavise.Process{}
		}
		c.by[string(text)] = p
		c.mu.Unlock()
	}
	if err := e.UnmarshalJSON(append(data[:at:at], data[end:]...)); err != nil {
		return err
	}
	e.Process, e.PID, e.ExecID = p, p.PID, p.ExecID
	return nil
}

// objectEnd is where the object ends that begins at i; below 0 when it does not.
func objectEnd(data []byte, i int) int {
	depth, quoted := 0, false
	for ; i < len(data); i++ {
		switch c := data[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '{':
			depth++
		case c == '}':
			if depth--; depth == 0 {
				return i + 1
			}
		}
	}
	return -1
}

// run searches, reads and judges, each beside the others.
func (r *replayer) run(ctx context.Context, search func(context.Context, HistoryQuery, func(*HistoryLine) error) error, progress func(*ScanProgress)) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	readers := max(1, runtime.GOMAXPROCS(0))
	work, order := make(chan *batch, readers), make(chan *batch, 2*readers)
	var wg sync.WaitGroup
	known := new(processes)
	for range readers {
		wg.Go(func() {
			for b := range work {
				b.read(known)
			}
		})
	}
	judged := make(chan struct{})
	go func() {
		defer close(judged)
		for b := range order {
			<-b.ready
			if context.Cause(ctx) != nil {
				continue
			}
			for i := range b.events {
				r.event(&b.events[i])
			}
			if b.err != nil {
				cancel(b.err)
			}
		}
	}()
	var b *batch
	send := func() {
		if b != nil {
			order <- b
			work <- b
			b = nil
		}
	}
	err := search(ctx, r.query, func(l *HistoryLine) error {
		switch {
		case l.Progress != nil && progress != nil:
			progress(l.Progress)
		case l.End != nil:
			r.out.Damaged, r.out.LostBytes = l.End.Damaged, l.End.Lost
		case l.Event != nil:
			if b == nil {
				b = &batch{ready: make(chan struct{})}
			}
			b.data = append(b.data, l.Event...)
			if b.ends = append(b.ends, len(b.data)); len(b.ends) == replayBatch {
				send()
			}
		}
		return context.Cause(ctx)
	})
	send()
	close(work)
	close(order)
	wg.Wait()
	<-judged
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

// event takes the events in the order in which they were recorded.
func (r *replayer) event(e *pavise.Event) {
	if r.execs {
		r.release(e.Time - execPause)
	}
	if e.ID <= r.lastID { // another agent: what ran changed meanwhile
		clear(r.images)
	}
	r.lastID = e.ID
	switch e.Op {
	case pavise.OpLost:
		r.loss(e)
		return
	case pavise.OpFork:
		r.see(e.Process)
		return
	case pavise.OpExit:
		if p := e.Process; p != nil {
			delete(r.images, p.PID)
		}
		return
	}
	if e.Op == pavise.OpExec && e.Action == pavise.ActionNone {
		r.lifeExec(e)
		return
	}
	if p := e.Process; r.execs && p != nil && r.images[p.PID].start != p.StartTime {
		r.see(p)
	}
	switch {
	case e.Shadow != pavise.DecisionNone:
		if r.wants(e) {
			r.out.Shadow++
		}
	case e.Op != pavise.OpExec:
		r.act(e, []judgedAs{{e, nil}})
	case r.wants(e):
		r.judgedExec(e)
	}
}

// see notes which image a process runs.
func (r *replayer) see(p *pavise.Process) {
	if r.execs && p != nil && !p.Unknown {
		r.images[p.PID] = image{p.StartTime, p}
	}
}

func (r *replayer) loss(e *pavise.Event) {
	l := e.Lost
	n := l.Count
	l.Count = 0
	r.lost[l] += n
	switch l.Op {
	case pavise.OpNone, pavise.OpFork, pavise.OpExec, pavise.OpExit: // what runs may have changed unseen
		clear(r.images)
	}
}

// wants reports whether an event, as it was recorded, is one that is asked for.
func (r *replayer) wants(e *pavise.Event) bool {
	if r.where == nil || e.Op != pavise.OpExec {
		return true
	}
	ok, err := r.where.Eval(e)
	return err == nil && ok
}

// judgedAs is an act, and what is not known of it beside what is plain from it.
type judgedAs struct {
	e       *pavise.Event
	missing func(field string) bool
}

// execAct is the start of a program, of which there may be several records: that of the new image, which is there whatever the policies are, and those of rules.
// They come in any order.
type execAct struct {
	e     *pavise.Event // the record to tell of: a rule's, where there is one that came first
	pid   uint32
	life  *pavise.Event // the new image's
	as    []judgedAs
	ended bool // it is a part of another
}

// lifeExec makes an act of the record of a new image. Its subject is the image before, which an earlier record has, or none.
func (r *replayer) lifeExec(e *pavise.Event) {
	p := e.Process
	if p == nil || p.Unknown {
		if r.wants(e) {
			unknown := *e
			unknown.Process = &pavise.Process{Unknown: true}
			r.act(e, []judgedAs{{&unknown, nil}})
		}
		return
	}
	before := r.images[p.PID]
	r.see(p)
	if !r.wants(e) {
		return
	}
	subject, missing := imageBefore(p, before)
	as := func(file pavise.FileInfo, missing func(string) bool) judgedAs {
		j := *e
		j.Process, j.File = subject, file
		j.File.Access, j.File.Alias = execAccess, ""
		j.Act.Name = ""
		if !p.ArgsCut {
			for _, a := range p.Args {
				j.Act.Name += a + "\x00"
			}
		}
		return judgedAs{&j, missing}
	}
	act := &execAct{e: e, pid: p.PID, life: e, as: []judgedAs{as(p.Exe, missing)}}
	if p.Script != "" { // judged by its own name, too
		act.as = append(act.as, as(pavise.FileInfo{Path: p.Script}, func(field string) bool {
			return field == "file.deleted" || field == "file.memfd" || missing(field)
		}))
	}
	for _, other := range r.byPID[p.PID] {
		if other.life == nil && !other.ended && act.takes(other.as[0].e) {
			other.ended, act.e = true, other.e
		}
	}
	r.hold(act)
}

// judgedExec makes an act of a record that a rule asked for, or a part of one.
func (r *replayer) judgedExec(e *pavise.Event) {
	pid := e.PID
	for _, act := range r.byPID[pid] {
		if act.life != nil && act.takes(e) {
			return
		}
	}
	r.hold(&execAct{e: e, pid: pid, as: []judgedAs{{e, nil}}})
}

// takes makes a record of a rule a part of the act of a new image, when it is one. The record knows the image before, and the file by the name that was judged; the new
// image has the arguments.
func (a *execAct) takes(e *pavise.Event) bool {
	p := a.life.Process
	if e.ExecID == p.ExecID {
		return false
	}
	for i := range a.as {
		if f := a.as[i].e.File.Path; f != e.File.Path {
			continue
		}
		j := *e
		if j.Act.Name == "" {
			j.Act.Name = a.as[i].e.Act.Name
		}
		a.as[i] = judgedAs{&j, nil}
		return true
	}
	return false
}

func (r *replayer) hold(a *execAct) {
	r.held = append(r.held, a)
	r.byPID[a.pid] = append(r.byPID[a.pid], a)
}

// release judges the acts of which no more records come.
func (r *replayer) release(until int64) {
	n := 0
	for n < len(r.held) && (r.held[n].e.Time < until || len(r.held)-n > replayHeld) {
		n++
	}
	r.judgeHeld(n)
}

func (r *replayer) judgeHeld(n int) {
	for _, a := range r.held[:n] {
		if !a.ended {
			r.act(a.e, a.as)
		}
		if rest := r.byPID[a.pid][1:]; len(rest) > 0 {
			r.byPID[a.pid] = rest
		} else {
			delete(r.byPID, a.pid)
		}
	}
	r.held = r.held[n:]
}

// imageBefore is the process of an exec as it was before it, as far as it is known, and what is not. An exec keeps whose process it is and where it runs, and the
// user too unless it raised privileges.
func imageBefore(after *pavise.Process, before image) (*pavise.Process, func(field string) bool) {
	p := *after
	if b := before.p; b != nil && before.start == after.StartTime && b.ExecID != after.ExecID {
		p = *b
		p.Parent, p.ParentExecID = after.Parent, after.ParentExecID
		p.Cgroup, p.CgroupID, p.Unit, p.Container, p.Pod = after.Cgroup, after.CgroupID, after.Unit, after.Container, after.Pod
		p.LoginID, p.TTY, p.Namespaces = after.LoginID, after.TTY, after.Namespaces
		if !after.SecureExec {
			p.User, p.GroupID, p.RealUID, p.RealGID = after.User, after.GroupID, after.RealUID, after.RealGID
			if b.User.ID != after.User.ID { // it changed its user in between
				return &p, func(field string) bool { return field == "process.caps" }
			}
		}
		return &p, func(string) bool { return false }
	}
	p.Exe, p.Script, p.Args, p.ExecID = pavise.FileInfo{}, "", nil, 0
	secure := after.SecureExec
	return &p, func(field string) bool {
		switch field {
		case "process.exe.path", "process.exe.name", "process.exe.digest", "process.exe.verity", "process.exe.deleted", "process.exe.memfd", "process.exe.setuid",
			"process.exe.setgid", "process.exe.on_root", "process.script.path", "process.args", "process.cmdline", "process.cwd", "process.caps", "process.secure_exec":
			return true
		case "process.user.id", "process.user.name", "process.group.id":
			return secure
		}
		return false
	}
}

// act judges an act, and counts what comes of it. E is its record.
func (r *replayer) act(e *pavise.Event, as []judgedAs) {
	op := r.ops[e.Op]
	if op == nil {
		return
	}
	n := max(e.Count, 1)
	at := time.Unix(0, e.Time).UTC()
	op.add(n)
	r.out.Judged.add(n)
	if r.out.First == nil || at.Before(*r.out.First) {
		r.out.First = &at
	}
	if r.out.Last == nil || at.After(*r.out.Last) {
		r.out.Last = &at
	}
	var out *policy.Outcome
	var missing []string
	decided := as[0]
	already := false
	for _, j := range as {
		if j.e.Action != pavise.ActionNone {
			already = already || j.e.Action >= pavise.ActionDeny && !j.e.Monitor
			if by := j.e.Policy + "/" + j.e.Rule; j.e.Rule != "" && len(op.by) < replayRecorded {
				op.by[by] = true
			}
		}
		o := r.trial.Judge(j.e, j.missing)
		missing = append(missing, o.Missing...)
		if out == nil || o.Action > out.Action {
			out, decided = o, j
		}
	}
	if out.Action < pavise.ActionDeny && len(missing) > 0 {
		slices.Sort(missing)
		op.Undecided.add(n)
		r.out.Undecided.add(n)
		for _, f := range slices.Compact(missing) {
			op.missing[f]++
		}
	}
	switch out.Action {
	case pavise.ActionKill:
		r.out.Killed.add(n)
	case pavise.ActionDeny:
		r.out.Denied.add(n)
	case pavise.ActionAudit:
		r.out.Audited.add(n)
	default:
		return
	}
	already = already && out.Action >= pavise.ActionDeny
	if already {
		r.out.Already.add(n)
	}
	r.asks(out, decided, e, n, at, already)
}

// asks counts what a rule asks for.
func (r *replayer) asks(out *policy.Outcome, j judgedAs, e *pavise.Event, n uint64, at time.Time, already bool) {
	key := ruleAsks{out.Policy.Name, out.Rule, e.Op, out.Action}
	rule := r.rules[key]
	if rule == nil {
		rule = &replayRule{subjects: map[ReplaySubject]*ReplaySubject{}, ReplayRule: ReplayRule{
			Policy: key.policy, Rule: key.rule, Operation: e.Op.String(), Action: out.Action.String(), Mode: string(out.Policy.Mode), First: at, Last: at,
		}}
		r.rules[key] = rule
	}
	rule.add(n)
	if already {
		rule.Already.add(n)
	}
	rule.First, rule.Last = earlier(rule.First, at), later(rule.Last, at)
	who := subjectOf(j)
	s := rule.subjects[who]
	if s == nil {
		if len(rule.subjects) == replaySubjects {
			rule.Others++
			return
		}
		c := who
		s = &c
		s.First, s.Last, s.Example = at, at, ReplayExample{ID: e.ID, Time: at, Object: objectOf(j.e)}
		rule.subjects[who] = s
	}
	s.add(n)
	s.First, s.Last = earlier(s.First, at), later(s.Last, at)
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// subjectOf says who acted.
func subjectOf(j judgedAs) (s ReplaySubject) {
	p := j.e.Process
	if p == nil || p.Unknown {
		return s
	}
	missing := func(field string) bool { return j.missing != nil && j.missing(field) }
	s.Unit, s.Exe = p.Unit, p.Exe.Path
	if s.Exe == "" && p.Parent != nil {
		s.Parent = p.Parent.Exe.Path
	}
	if !missing("process.user.id") {
		if s.User = p.User.Name; s.User == "" {
			s.User = fmt.Sprint(p.User.ID)
		}
	}
	if c := p.Container; c != nil {
		s.Container = cmp.Or(c.Name, c.ID)
	}
	return s
}

// objectOf says in a few words what was acted on.
func objectOf(e *pavise.Event) string {
	switch n := &e.Net; {
	case e.Op.OnFile() && e.File.Path != "":
		return e.File.Path
	case e.Op.OnSocket() && (n.RemotePath != "" || n.RemotePort != 0):
		return endpoint(n.Remote, n.RemotePort, n.RemotePath)
	case e.Op.OnSocket() && (n.LocalPath != "" || n.LocalPort != 0):
		return endpoint(n.Local, n.LocalPort, n.LocalPath)
	}
	return cmp.Or(e.Act.Target.Path, e.Act.Name)
}

func endpoint(addr [16]byte, port uint16, path string) string {
	if path != "" {
		return path
	}
	return netip.AddrPortFrom(netip.AddrFrom16(addr).Unmap(), port).String()
}

// finish puts everything in order.
func (r *replayer) finish() *Replay {
	r.judgeHeld(len(r.held))
	out := r.out
	for _, rule := range r.rules {
		for _, s := range rule.subjects {
			rule.Subjects = append(rule.Subjects, *s)
		}
		slices.SortFunc(rule.Subjects, func(a, b ReplaySubject) int {
			return cmp.Or(cmp.Compare(b.Count, a.Count), cmp.Compare(a.Exe, b.Exe), cmp.Compare(a.User, b.User), cmp.Compare(a.Unit, b.Unit),
				cmp.Compare(a.Container, b.Container), cmp.Compare(a.Parent, b.Parent))
		})
		out.Rules = append(out.Rules, rule.ReplayRule)
	}
	strict := func(action string) pavise.Action { return actionsByName[action] }
	slices.SortFunc(out.Rules, func(a, b ReplayRule) int {
		return cmp.Or(cmp.Compare(strict(b.Action), strict(a.Action)), cmp.Compare(b.Count, a.Count), cmp.Compare(a.Policy, b.Policy),
			cmp.Compare(a.Rule, b.Rule), cmp.Compare(a.Operation, b.Operation))
	})
	for _, op := range r.trial.Ops() {
		o := r.ops[op]
		for by := range o.by {
			o.By = append(o.By, by)
		}
		slices.Sort(o.By)
		for f, n := range o.missing {
			o.Missing = append(o.Missing, ReplayField{f, n})
		}
		slices.SortFunc(o.Missing, func(a, b ReplayField) int {
			return cmp.Or(cmp.Compare(b.Events, a.Events), cmp.Compare(a.Field, b.Field))
		})
		out.Operations = append(out.Operations, o.ReplayOp)
	}
	for l, n := range r.lost {
		out.Lost = append(out.Lost, ReplayLoss{l.Op.String(), l.Where, n})
	}
	slices.SortFunc(out.Lost, func(a, b ReplayLoss) int {
		return cmp.Or(cmp.Compare(b.Count, a.Count), cmp.Compare(a.Operation, b.Operation), cmp.Compare(a.Where, b.Where))
	})
	return out
}

// HistoryIn is the directory of the history in dir: dir itself, or that in an agent's state; and the directory of that state, empty when there is none.
func HistoryIn(dir string) (history, state string) {
	below := filepath.Join(dir, HistoryDir)
	if isDir(below) {
		return below, dir
	}
	if up := filepath.Dir(filepath.Clean(dir)); filepath.Base(filepath.Clean(dir)) == HistoryDir && isDir(filepath.Join(up, revisionsDir)) {
		return dir, up
	}
	return dir, ""
}

func isDir(name string) bool {
	st, err := os.Stat(name)
	return err == nil && st.IsDir()
}
