package agent

import (
	"cmp"
	"encoding/json"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pavise-project/pavise"
	"github.com/pavise-project/pavise/bpf"
)

// This file is what pavise top shows: what was between one look at the counters and the next.

const (
	minInterval     = 200 * time.Millisecond
	maxInterval     = time.Hour
	defaultInterval = 2 * time.Second
	defaultRows     = 20
	maxRows         = 1000
)

// Top is one line of GET /v1/top: what was in an interval.
type Top struct {
	Time           time.Time     `json:"time"`
	Interval       time.Duration `json:"interval_ns"`
	Generation     uint32        `json:"generation"`
	Revision       uint64        `json:"revision,omitempty"` // in force; 0 without a state directory
	Policies       int           `json:"policies"`
	Operations     []TopOp       `json:"operations"` // of which something was seen
	Rules          []TopRule     `json:"rules"`      // that matched, busiest first
	Processes      []TopProcess  `json:"processes"`  // busiest first
	OtherProcesses TopCount      `json:"other_processes"`
	Hooks          []TopHook     `json:"hooks,omitempty"`       // that ran, dearest first; with cost alone
	HooksError     string        `json:"hooks_error,omitempty"` // why they are not timed
	SubscriberLost uint64        `json:"subscriber_lost"`
	Undecoded      uint64        `json:"undecoded"` // records that could not be read
	Trouble        uint64        `json:"trouble"`   // what should not happen in the kernel, as the status names it
	Subscribers    int           `json:"subscribers"`
	RSS            uint64        `json:"rss_bytes"`
	MapBytes       uint64        `json:"kernel_map_bytes"`
}

// TopCount is how many events came, with those that were folded into them, and in how many of them an act was, or would have been, stopped.
type TopCount struct {
	Events uint64 `json:"events"`
	Denied uint64 `json:"denied"` // or killed for
	Would  uint64 `json:"would"`  // it was monitored
}

// TopOp is an operation: the kernel's counters, and the events that came.
type TopOp struct {
	Op        string `json:"op"`
	Rung      string `json:"rung"`
	Seen      uint64 `json:"seen"`
	Delivered uint64 `json:"delivered"`
	Folded    uint64 `json:"folded"`
	Lost      uint64 `json:"lost"`
	TopCount
}

// TopRule is a rule, and how often it matched.
type TopRule struct {
	Policy  string `json:"policy"`
	Rule    string `json:"rule"`
	Action  string `json:"action"`
	Monitor bool   `json:"monitor,omitempty"`
	Hits    uint64 `json:"hits"`
}

// TopProcess is a process, and what came of it.
type TopProcess struct {
	PID       uint32 `json:"pid"`
	Exe       string `json:"exe,omitempty"`
	User      string `json:"user,omitempty"`
	Unit      string `json:"unit,omitempty"`
	Container string `json:"container,omitempty"` // its name, or its id
	TopCount
}

// TopHook is a kernel program, how often it ran, and for how long.
type TopHook struct {
	Program string        `json:"program"`
	Runs    uint64        `json:"runs"`
	Time    time.Duration `json:"time_ns"`
}

func (c *TopCount) add(n TopCount) {
	c.Events += n.Events
	c.Denied += n.Denied
	c.Would += n.Would
}

// since is c without what was. A counter that has become less has begun anew.
func (c TopCount) since(was TopCount) TopCount {
	if c.Events < was.Events {
		return c
	}
	return TopCount{since(c.Events, was.Events), since(c.Denied, was.Denied), since(c.Would, was.Would)}
}

func since(is, was uint64) uint64 {
	if is < was {
		return is
	}
	return is - was
}

// maxBusy bounds the processes that are counted apart.
const maxBusy = 4096

// busy counts events by process and by operation while somebody looks.
type busy struct {
	readers atomic.Int32

	mu    sync.Mutex
	procs map[uint64]*busyProc // by exec id
	ops   [pavise.NumOps]TopCount
	rest  TopCount // of processes that found no room
}

type busyProc struct {
	TopCount
	process *pavise.Process
	at      int64 // when it was last seen, as events tell the time
}

// count is called for each event that is handed on.
func (b *busy) count(e *pavise.Event) {
	if b.readers.Load() == 0 {
		return
	}
	n := TopCount{Events: max(e.Count, 1)}
	if e.Action == pavise.ActionDeny || e.Action == pavise.ActionKill {
		if e.Monitor {
			n.Would = n.Events
		} else {
			n.Denied = n.Events
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ops[min(e.Op, pavise.NumOps-1)].add(n)
	if e.Process == nil {
		return
	}
	p := b.procs[e.Process.ExecID]
	if p == nil {
		if len(b.procs) >= maxBusy {
			b.forget(e.Time)
		}
		if len(b.procs) >= maxBusy {
			b.rest.add(n)
			return
		}
		p = &busyProc{}
		b.procs[e.Process.ExecID] = p
	}
	p.add(n)
	p.process, p.at = e.Process, e.Time
}

// forget makes room: of processes that nothing came of for some seconds.
func (b *busy) forget(now int64) {
	for id, p := range b.procs {
		if now-p.at > int64(10*time.Second) {
			delete(b.procs, id)
		}
	}
}

// look is a copy of what was counted.
type look struct {
	at     time.Time
	status *Status
	procs  map[uint64]busyProc
	ops    [pavise.NumOps]TopCount
	rest   TopCount
	rules  map[string]uint64 // hits, by ruleKey
	runs   []bpf.Run
}

func (b *busy) start() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.readers.Add(1) == 1 {
		b.procs, b.ops, b.rest = map[uint64]*busyProc{}, [pavise.NumOps]TopCount{}, TopCount{}
	}
}

func (b *busy) stop() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.readers.Add(-1) == 0 {
		b.procs = nil
	}
}

func (b *busy) look(l *look) {
	b.mu.Lock()
	defer b.mu.Unlock()
	l.ops, l.rest, l.procs = b.ops, b.rest, make(map[uint64]busyProc, len(b.procs))
	for id, p := range b.procs {
		l.procs[id] = *p
	}
}

func (a *Agent) look(cost bool) (*look, *policySet) {
	l := &look{at: time.Now(), status: a.status()}
	a.busy.look(l)
	var set *policySet
	set, l.rules = a.ruleHits()
	if cost {
		l.runs = a.kernel.Runs()
	}
	return l, set
}

// top is what was between two looks.
func top(was, is *look, set *policySet, rows int) *Top {
	s, old := is.status, was.status
	t := &Top{
		Time: is.at.UTC(), Interval: is.at.Sub(was.at), Generation: s.Generation, Revision: s.Revision, Policies: len(s.Policies), Operations: []TopOp{}, Rules: []TopRule{},
		Processes: []TopProcess{}, SubscriberLost: since(s.SubscriberLost, old.SubscriberLost), Undecoded: since(s.Undecoded, old.Undecoded),
		Trouble:     since(s.NoScratch+s.NoIdentity+s.NoTexts+s.NoCount+s.NoEngine+s.NoName+s.NoListener+s.Missed, old.NoScratch+old.NoIdentity+old.NoTexts+old.NoCount+old.NoEngine+old.NoName+old.NoListener+old.Missed),
		Subscribers: s.Subscribers, RSS: s.RSS, MapBytes: s.MapBytes,
	}
	for i, o := range s.Ops {
		op := pavise.OpExec + pavise.Op(i)
		p := old.Ops[i]
		x := TopOp{
			Op: o.Op, Rung: o.Rung, Seen: since(o.Seen, p.Seen), Delivered: since(o.Delivered, p.Delivered), Folded: since(o.Folded, p.Folded), Lost: since(o.Lost, p.Lost),
			TopCount: is.ops[op].since(was.ops[op]),
		}
		if x.Seen > 0 || x.Lost > 0 || x.Events > 0 {
			t.Operations = append(t.Operations, x)
		}
	}
	for i := range set.image.Rules {
		r := &set.image.Rules[i]
		key := ruleKey(r.Policy, r.Name)
		if n := since(is.rules[key], was.rules[key]); n > 0 {
			t.Rules = append(t.Rules, TopRule{Policy: r.Policy, Rule: r.Name, Action: r.Action.String(), Monitor: r.Monitor, Hits: n})
		}
	}
	slices.SortStableFunc(t.Rules, func(a, b TopRule) int { return cmp.Compare(b.Hits, a.Hits) })
	t.Rules = t.Rules[:min(len(t.Rules), rows)]

	t.OtherProcesses = is.rest.since(was.rest)
	for id, p := range is.procs {
		n := p.since(was.procs[id].TopCount)
		if n.Events == 0 {
			continue
		}
		x := TopProcess{PID: p.process.PID, Exe: p.process.Exe.Path, User: p.process.User.Name, Unit: p.process.Unit, TopCount: n}
		if x.User == "" && !p.process.Unknown {
			x.User = strconv.FormatUint(uint64(p.process.User.ID), 10)
		}
		if c := p.process.Container; c != nil {
			x.Container = cmp.Or(c.Name, c.ID)
		}
		t.Processes = append(t.Processes, x)
	}
	slices.SortFunc(t.Processes, func(a, b TopProcess) int { return cmp.Or(cmp.Compare(b.Events, a.Events), cmp.Compare(a.PID, b.PID)) })
	for _, p := range t.Processes[min(len(t.Processes), rows):] {
		t.OtherProcesses.add(p.TopCount)
	}
	t.Processes = t.Processes[:min(len(t.Processes), rows)]

	before := map[string]bpf.Run{}
	for _, r := range was.runs {
		before[r.Program] = r
	}
	for _, r := range is.runs {
		h := TopHook{Program: r.Program, Runs: since(r.Count, before[r.Program].Count), Time: time.Duration(since(uint64(r.Time), uint64(before[r.Program].Time)))}
		if h.Runs > 0 {
			t.Hooks = append(t.Hooks, h)
		}
	}
	slices.SortStableFunc(t.Hooks, func(a, b TopHook) int { return cmp.Compare(b.Time, a.Time) })
	return t
}

// getTop streams what goes on, a line for each interval.
func (a *Agent) getTop(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	interval, rows := defaultInterval, defaultRows
	if d, err := time.ParseDuration(q.Get("interval")); err == nil {
		interval = d
	}
	if n, err := strconv.Atoi(q.Get("rows")); err == nil {
		rows = min(n, maxRows)
	}
	count, _ := strconv.Atoi(q.Get("count"))
	end := a.streaming(w, r)
	if end == nil {
		return
	}
	defer end()
	cost, costError := on(q, "cost"), ""
	if cost {
		timing, err := a.kernel.Time()
		if err != nil {
			cost, costError = false, err.Error()
		} else {
			defer timing.Close()
		}
	}
	a.busy.start()
	defer a.busy.stop()
	was, _ := a.look(cost)
	w.Header().Set("Content-Type", ndjson)
	rc := http.NewResponseController(w)
	if err := rc.Flush(); err != nil {
		return
	}
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for n := 1; ; n++ {
		select {
		case <-r.Context().Done():
			return
		case <-tick.C:
		}
		is, set := a.look(cost)
		t := top(was, is, set, rows)
		t.HooksError = costError
		was = is
		b, err := json.Marshal(t)
		if err != nil {
			a.log.Error("encode what goes on", "err", err)
			return
		}
		_ = rc.SetWriteDeadline(time.Now().Add(a.patience))
		if _, err := w.Write(append(b, '\n')); err != nil {
			return
		}
		if err := rc.Flush(); err != nil || n == count {
			return
		}
	}
}
