package agent

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pavise-project/pavise"
	"github.com/pavise-project/pavise/policy"
	"github.com/pavise-project/pavise/store"
)

// This file is the history of events on disk: a subscriber writes it; GET /v1/history, and ReadHistory where no agent runs, search it.

// HistoryDir is the directory of the history in that of the state.
const HistoryDir = "history"

// HistoryQuery says what is asked of the history.
type HistoryQuery struct {
	From, To time.Time // of the events: From is in it, To is not; zero is no bound
	Where    string    // CEL; empty for all
	GroupBy  []string  // fields of conditions; none for the events themselves
	Limit    int64     // of events or groups; below 0: none
}

// HistoryStatus is the history in the status.
type HistoryStatus struct {
	On        bool             `json:"on"`
	Error     string           `json:"error,omitempty"` // why not, or what is wrong with it
	Written   uint64           `json:"written"`         // events since the start
	Dropped   uint64           `json:"dropped"`         // that could not be written, or came too fast
	Segments  int              `json:"segments"`
	Bytes     int64            `json:"bytes"`
	Max       int64            `json:"max_bytes"`
	Removed   uint64           `json:"removed"`             // files that went for the limits, or for room
	Lost      uint64           `json:"lost_bytes"`          // of logs, that were found to be no records
	Recovered *HistoryRecovery `json:"recovered,omitempty"` // what the start found of a history that was not made into segments
}

// HistoryRecovery says what the start found of the last agent's log: what is there, and what is lost when that agent, or the machine, was killed.
type HistoryRecovery struct {
	Events    int64     `json:"events"`            // in logs that were no segment yet
	Until     time.Time `json:"until"`             // the time of the last of them
	LostBytes int64     `json:"lost_bytes"`        // that are no whole record: cut off or damaged
	Damaged   []string  `json:"damaged,omitempty"` // logs of which nothing can be read
}

// HistoryLine is one line of the answer to GET /v1/history: an event, a group, how far the scan is, or, at the end, what it was.
type HistoryLine struct {
	Event    json.RawMessage `json:"event,omitempty"`
	Group    *HistoryGroup   `json:"group,omitempty"`
	Progress *ScanProgress   `json:"progress,omitempty"`
	End      *ScanEnd        `json:"end,omitempty"`
}

// HistoryGroup is how many events have the same values of the fields that were asked for.
type HistoryGroup struct {
	Values []string  `json:"values"`
	Events uint64    `json:"events"`
	Count  uint64    `json:"count"` // with the repeats that were folded into them
	First  time.Time `json:"first"`
	Last   time.Time `json:"last"`
}

// ScanProgress is how much of the history has been gone through.
type ScanProgress struct {
	Done int64 `json:"done"` // bytes
	All  int64 `json:"all"`
}

// ScanEnd says what a scan was, once it is over.
type ScanEnd struct {
	Error   string   `json:"error,omitempty"` // why it ended before the end
	Matched int64    `json:"matched"`         // events
	Bytes   int64    `json:"bytes"`
	Cut     bool     `json:"cut,omitempty"`        // there was more than the limit
	Damaged []string `json:"damaged,omitempty"`    // files that could not be read, or in part
	Lost    int64    `json:"lost_bytes,omitempty"` // of logs, that are no records
}

const (
	maxGroups     = 100_000
	maxScans      = 4 // at once: each may take a CPU
	progressPause = 200 * time.Millisecond
)

// openHistory opens the history. Without one the agent goes on, and says so: rules matter more.
func (a *Agent) openHistory() {
	if a.cfg.StateDir == "" || a.cfg.HistoryBytes <= 0 {
		return
	}
	h, rec, err := store.OpenHistory(filepath.Join(a.cfg.StateDir, HistoryDir), store.Options{MaxBytes: a.cfg.HistoryBytes, MaxAge: a.cfg.HistoryAge})
	if err != nil {
		a.historyTrouble(err)
		return
	}
	for _, err := range rec.Damaged {
		a.log.Error("a log of the history cannot be read; it was put aside", "err", err)
	}
	if rec.Events > 0 || rec.LostBytes > 0 || len(rec.Damaged) > 0 {
		a.recovered = &HistoryRecovery{Events: rec.Events, Until: rec.Until, LostBytes: rec.LostBytes, Damaged: errorTexts(rec.Damaged)}
	}
	if rec.LostBytes > 0 {
		a.log.Warn("the end of the history was lost when the agent or the machine was stopped", "lost_bytes", rec.LostBytes, "events_until", rec.Until)
	}
	a.history = &historyWriter{a: a, h: h}
}

// historyTrouble notes what is wrong with the history, nil for nothing, and tells it when it is new.
func (a *Agent) historyTrouble(err error) {
	why := ""
	if err != nil {
		why = err.Error()
	}
	switch was := a.historyErr.Swap(&why); {
	case why != "" && (was == nil || *was != why):
		a.log.Error("events are not kept in the history as they should be", "err", err)
	case why == "" && was != nil && *was != "":
		a.log.Info("the history is kept again")
	}
}

// historyWriter writes what a subscription gets into the history.
type historyWriter struct {
	a      *Agent
	h      *store.History
	missed atomic.Uint64 // events that came too fast

	mu       sync.Mutex
	troubles [3]error // of appending, of bringing it to the disk, of making segments: each as it was the last time
}

func (w *historyWriter) note(which int, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.troubles[which] = err
	w.a.historyTrouble(errors.Join(w.troubles[:]...))
}

// keep writes until the hub closes. Whatever the disk does, it holds up nobody but itself: what the queue has no room for is counted.
func (w *historyWriter) keep(sub *subscription) {
	var wg sync.WaitGroup
	done, seal := make(chan struct{}), make(chan struct{}, 1)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	wg.Go(func() {
		for range seal {
			if err := w.h.Seal(ctx); ctx.Err() == nil {
				w.note(2, err)
			}
		}
	})
	wg.Go(func() {
		defer close(seal)
		t := time.NewTicker(time.Second)
		defer t.Stop()
		for {
			select {
			case <-done:
				return
			case <-t.C:
			}
			w.note(1, w.h.Tick())
			select {
			case seal <- struct{}{}:
			default: // it works
			}
		}
	})
	failing := false
	for {
		it, err := sub.next(context.Background())
		if err != nil {
			break
		}
		if l := &it.event.Lost; it.event.Op == pavise.OpLost && l.Where == lostSubscriber {
			w.missed.Add(l.Count)
		}
		err = w.h.Append(it.event)
		idle := len(sub.ch) == 0
		if idle {
			err = errors.Join(err, w.h.Flush())
		}
		if err != nil || failing && idle {
			w.note(0, err)
			failing = err != nil
		}
	}
	close(done)
	cancel()
	wg.Wait()
	if err := w.h.Close(); err != nil {
		w.a.log.Error("close the history", "err", err)
	}
}

func (a *Agent) historyStatus() HistoryStatus {
	s := HistoryStatus{Max: a.cfg.HistoryBytes, Recovered: a.recovered}
	if why := a.historyErr.Load(); why != nil {
		s.Error = *why
	}
	if a.history == nil {
		return s
	}
	st := a.history.h.Stats()
	s.On, s.Written, s.Dropped, s.Segments, s.Bytes, s.Removed, s.Lost = true, st.Appended, st.Dropped+a.history.missed.Load(), st.Segments, st.Bytes, st.Removed, st.Lost
	return s
}

func errorTexts(errs []error) (out []string) {
	for _, err := range errs {
		out = append(out, err.Error())
	}
	return out
}

// historyColumn says which column of the history holds a field of conditions.
type historyColumn struct {
	name string
	also string // another field that is needed to make the event's
	// set gives an event what the column holds.
	set func(e *rowEvent, r *store.Row)
	// part says that the column holds more than the field: rows cannot be chosen by it.
	part bool
}

// rowEvent is an event that is made of columns.
type rowEvent struct {
	pavise.Event
	process, parent pavise.Process
	container       pavise.Container
	pod             pavise.Pod
}

func (e *rowEvent) reset(r *store.Row) {
	*e = rowEvent{Event: pavise.Event{Time: r.Time, Op: opsByName[r.Op]}}
	e.process.Parent, e.process.Container, e.process.Pod = &e.parent, &e.container, &e.pod
	e.Process = &e.process
}

// historyColumns are those of the fields that are asked for most. The others are read from the whole event, which takes far longer.
var historyColumns = map[string]historyColumn{
	"op":                      {name: "op", set: func(*rowEvent, *store.Row) {}}, // always there
	"action":                  {name: "action", set: setAction},
	"verdict":                 {name: "action", set: setAction},
	"monitor":                 {name: "monitor", set: func(e *rowEvent, r *store.Row) { e.Monitor = r.Monitor }},
	"policy":                  {name: "policy", set: func(e *rowEvent, r *store.Row) { e.Policy = r.Policy }},
	"rule":                    {name: "rule", set: func(e *rowEvent, r *store.Row) { e.Rule = r.Rule }},
	"severity":                {name: "severity", set: func(e *rowEvent, r *store.Row) { e.Severity = r.Severity }},
	"process.pid":             {name: "pid", set: func(e *rowEvent, r *store.Row) { e.process.PID = uint32(r.PID) }}, //nolint:gosec // it was one
	"process.exe.path":        {name: "exe_path", set: setExe},
	"process.exe.name":        {name: "exe_path", set: setExe, part: true},
	"process.exe.digest":      {name: "exe_digest", set: func(e *rowEvent, r *store.Row) { e.process.ExeDigest = r.ExeDigest }},
	"process.user.id":         {name: "user_id", set: func(e *rowEvent, r *store.Row) { e.process.User.ID = uint32(max(r.UserID, 0)) }}, //nolint:gosec // it was one
	"process.user.name":       {name: "user_name", set: func(e *rowEvent, r *store.Row) { e.process.User.Name = r.UserName }},
	"process.unit":            {name: "unit", set: func(e *rowEvent, r *store.Row) { e.process.Unit = r.Unit }},
	"process.cgroup":          {name: "cgroup", set: func(e *rowEvent, r *store.Row) { e.process.Cgroup = r.Cgroup }},
	"process.container.id":    {name: "container_id", set: func(e *rowEvent, r *store.Row) { e.container.ID = r.ContainerID }},
	"process.container.name":  {name: "container_name", set: func(e *rowEvent, r *store.Row) { e.container.Name = r.ContainerName }},
	"process.container.image": {name: "container_image", set: func(e *rowEvent, r *store.Row) { e.container.Image = r.ContainerImage }},
	"process.pod.namespace":   {name: "pod_namespace", set: func(e *rowEvent, r *store.Row) { e.pod.Namespace = r.PodNamespace }},
	"process.pod.name":        {name: "pod_name", set: func(e *rowEvent, r *store.Row) { e.pod.Name = r.PodName }},
	"process.parent.pid":      {name: "parent_pid", set: func(e *rowEvent, r *store.Row) { e.parent.PID = uint32(r.ParentPID) }}, //nolint:gosec // it was one
	"process.parent.exe.path": {name: "parent_exe_path", set: setParentExe},
	"process.parent.exe.name": {name: "parent_exe_path", set: setParentExe, part: true},
	"file.path":               {name: "file_path", set: setFile},
	"file.name":               {name: "file_path", set: setFile, part: true},
	"net.family":              {name: "net_family", set: func(e *rowEvent, r *store.Row) { e.Net.Family = familiesByName[r.NetFamily] }},
	"net.remote.address":      {name: "remote_address", also: "net.family", set: func(e *rowEvent, r *store.Row) { e.Net.Remote = addressOf(r.RemoteAddress) }},
	"net.local.address":       {name: "local_address", also: "net.family", set: func(e *rowEvent, r *store.Row) { e.Net.Local = addressOf(r.LocalAddress) }},
	"net.remote.port":         {name: "remote_port", set: func(e *rowEvent, r *store.Row) { e.Net.RemotePort = uint16(r.RemotePort) }}, //nolint:gosec // it was one
	"net.local.port":          {name: "local_port", set: func(e *rowEvent, r *store.Row) { e.Net.LocalPort = uint16(r.LocalPort) }},    //nolint:gosec // it was one
	"net.remote.path":         {name: "remote_path", set: func(e *rowEvent, r *store.Row) { e.Net.RemotePath = r.RemotePath }},
	"net.local.path":          {name: "local_path", set: func(e *rowEvent, r *store.Row) { e.Net.LocalPath = r.LocalPath }},
}

func setAction(e *rowEvent, r *store.Row)    { e.Action = actionsByName[r.Action] }
func setExe(e *rowEvent, r *store.Row)       { e.process.Exe.Path = r.ExePath }
func setParentExe(e *rowEvent, r *store.Row) { e.parent.Exe.Path = r.ParentExePath }

// addressOf is the address of a column.
func addressOf(s string) (a [16]byte) {
	if ip, err := netip.ParseAddr(s); err == nil {
		a = ip.As16()
	}
	return a
}

func setFile(e *rowEvent, r *store.Row) { e.File.Path = r.FilePath }

var opsByName, actionsByName, familiesByName = func() (map[string]pavise.Op, map[string]pavise.Action, map[string]uint16) {
	ops, actions, families := map[string]pavise.Op{}, map[string]pavise.Action{}, map[string]uint16{}
	for f := range uint16(256) {
		families[pavise.FamilyNames.Name(uint64(f))] = f
	}
	for op := range pavise.NumOps {
		ops[op.String()] = op
	}
	for a := range pavise.NumActions {
		actions[a.String()] = a
	}
	return ops, actions, families
}()

// historyReader gives the events of rows: from their columns alone where these hold all that is asked for.
type historyReader struct {
	where   *policy.Expr
	groups  []func(*pavise.Event) string
	columns []func(*rowEvent, *store.Row)
	whole   bool // a field stands in no column: the whole event is read
	event   rowEvent
}

// newHistoryReader plans a scan. The error is an Errors.
func newHistoryReader(hq HistoryQuery) (*historyReader, store.Query, error) {
	r := &historyReader{}
	q := store.Query{From: hq.From, To: hq.To, Columns: []string{"time", "op", "count"}}
	var fields []string
	if hq.Where != "" {
		x, err := policy.CompileWhere(hq.Where)
		if err != nil {
			return nil, q, inField("where", err)
		}
		r.where = x
		n := x.Narrow()
		fields = slices.Clone(n.Fields)
		for field, values := range n.Equal {
			c, ok := historyColumns[field]
			// An event whose operation has no such field has "" in conditions, whatever its column holds, and an unknown address is "::".
			if !ok || c.part || slices.Contains(values, "") || slices.Contains(values, "::") {
				continue
			}
			if q.Equal == nil {
				q.Equal = map[string][]string{}
			}
			if have, ok := q.Equal[c.name]; ok { // action and verdict are the same
				values = slices.DeleteFunc(slices.Clone(values), func(v string) bool { return !slices.Contains(have, v) })
			}
			q.Equal[c.name] = values
		}
	}
	for _, field := range hq.GroupBy {
		value, err := policy.FieldText(field)
		if err != nil {
			return nil, q, inField("group-by", err)
		}
		r.groups = append(r.groups, value)
		fields = append(fields, field)
	}
	for _, f := range fields {
		c, ok := historyColumns[f]
		if !ok {
			r.whole = true
			break
		}
		r.columns = append(r.columns, c.set)
		q.Columns = append(q.Columns, c.name)
		if c.also != "" {
			also := historyColumns[c.also]
			r.columns = append(r.columns, also.set)
			q.Columns = append(q.Columns, also.name)
		}
	}
	if r.whole || len(hq.GroupBy) == 0 {
		q.Columns = append(q.Columns, "event")
	}
	return r, q, nil
}

// inField says in which part of a request the faults are.
func inField(name string, err error) error {
	var pe policy.Errors
	if errors.As(err, &pe) {
		for _, e := range pe {
			e.Field = name
		}
	}
	return err
}

// next is the event of a row, and whether it is asked for. It is valid until the next call.
func (r *historyReader) next(row *store.Row) (*pavise.Event, bool, error) {
	e := &r.event.Event
	switch {
	case r.whole:
		if err := e.UnmarshalJSON(row.JSON); err != nil {
			return nil, false, fmt.Errorf("read event %d of the history: %w", row.ID, err)
		}
	default:
		r.event.reset(row)
		for _, set := range r.columns {
			set(&r.event, row)
		}
	}
	if r.where == nil {
		return e, true, nil
	}
	ok, err := r.where.Eval(e)
	return e, err == nil && ok, nil // a condition that cannot be evaluated does not hold, as in events
}

// ReadHistory searches the history in a directory that no agent writes, and calls fn for each line of the answer, as Client.History does.
func ReadHistory(ctx context.Context, dir string, hq HistoryQuery, fn func(*HistoryLine) error) error {
	r, q, err := newHistoryReader(hq)
	if err != nil {
		return err
	}
	end, err := r.search(hq, q, fn, func(q store.Query, fn func(*store.Row) error) (store.Scanned, error) {
		return store.Scan(ctx, dir, q, fn)
	})
	if err != nil {
		return err
	}
	return fn(&HistoryLine{End: end})
}

var errEnough = errors.New("enough")

// search scans, and calls fn for each event, or for each group at the end.
func (r *historyReader) search(hq HistoryQuery, q store.Query, fn func(*HistoryLine) error, scan func(store.Query, func(*store.Row) error) (store.Scanned, error)) (*ScanEnd, error) {
	var told time.Time
	var broken error
	q.Progress = func(done, all int64) {
		if now := time.Now(); now.Sub(told) >= progressPause && broken == nil {
			told = now
			broken = fn(&HistoryLine{Progress: &ScanProgress{done, all}})
		}
	}
	end := &ScanEnd{}
	groups := map[string]*HistoryGroup{}
	scanned, err := scan(q, func(row *store.Row) error {
		if broken != nil {
			return broken
		}
		e, ok, err := r.next(row)
		if err != nil || !ok {
			return err
		}
		if len(r.groups) == 0 && end.Matched == hq.Limit {
			end.Cut = true
			return errEnough
		}
		end.Matched++
		if len(r.groups) == 0 {
			return fn(&HistoryLine{Event: row.JSON})
		}
		return addGroup(groups, r.groups, e, row)
	})
	end.Bytes, end.Lost, end.Damaged = scanned.Bytes, scanned.Lost, errorTexts(scanned.Damaged)
	if err != nil && !errors.Is(err, errEnough) {
		return end, err
	}
	sorted := make([]*HistoryGroup, 0, len(groups))
	for _, g := range groups {
		sorted = append(sorted, g)
	}
	slices.SortFunc(sorted, func(a, b *HistoryGroup) int {
		return cmp.Or(cmp.Compare(b.Count, a.Count), slices.Compare(a.Values, b.Values))
	})
	for i, g := range sorted {
		if int64(i) == hq.Limit {
			end.Cut = true
			break
		}
		if err := fn(&HistoryLine{Group: g}); err != nil {
			return end, err
		}
	}
	return end, nil
}

func addGroup(groups map[string]*HistoryGroup, by []func(*pavise.Event) string, e *pavise.Event, row *store.Row) error {
	values := make([]string, len(by))
	for i, value := range by {
		values[i] = value(e)
	}
	key := strings.Join(values, "\x00")
	at := time.Unix(0, row.Time).UTC()
	g := groups[key]
	if g == nil {
		if len(groups) == maxGroups {
			return fmt.Errorf("over %d groups: group by fewer fields, or ask for less with where", maxGroups)
		}
		g = &HistoryGroup{Values: values, First: at, Last: at}
		groups[key] = g
	}
	g.Events++
	g.Count += uint64(max(row.Count, 1)) //nolint:gosec // counts are positive
	if at.Before(g.First) {
		g.First = at
	}
	if at.After(g.Last) {
		g.Last = at
	}
	return nil
}

// getHistory streams what a scan of the history gives, as lines of HistoryLine.
func (a *Agent) getHistory(w http.ResponseWriter, req *http.Request) {
	if a.history == nil {
		why := "it was started without a state directory, or with --history-size 0"
		if s := a.historyErr.Load(); s != nil {
			why = *s
		}
		fail(w, http.StatusConflict, fmt.Errorf("the agent keeps no history: %s", why))
		return
	}
	v := req.URL.Query()
	hq := HistoryQuery{Where: v.Get("where"), GroupBy: v["group"], Limit: -1}
	if n, err := strconv.ParseInt(v.Get("limit"), 10, 64); err == nil {
		hq.Limit = n
	}
	hq.From, _ = time.Parse(time.RFC3339Nano, v.Get("from")) // the route has checked them
	hq.To, _ = time.Parse(time.RFC3339Nano, v.Get("to"))
	r, q, err := newHistoryReader(hq)
	if err != nil {
		fail(w, http.StatusUnprocessableEntity, err)
		return
	}
	c := connOf(req.Context())
	if err := a.scans.take(c.peer.UID, c.role); err != nil {
		fail(w, http.StatusServiceUnavailable, fmt.Errorf("%w: try again", err))
		return
	}
	defer a.scans.give(c.peer.UID)
	w.Header().Set("Content-Type", ndjson)
	rc := http.NewResponseController(w)
	_ = rc.SetReadDeadline(time.Time{})
	send := func(line *HistoryLine) error {
		b, err := json.Marshal(line)
		if err != nil {
			return err
		}
		_ = rc.SetWriteDeadline(time.Now().Add(writeTimeout))
		if _, err = w.Write(append(b, '\n')); err != nil || line.Progress == nil {
			return err
		}
		return rc.Flush()
	}
	end, err := r.search(hq, q, send, func(q store.Query, fn func(*store.Row) error) (store.Scanned, error) {
		return a.history.h.Scan(req.Context(), q, fn)
	})
	if req.Context().Err() != nil {
		return
	}
	if err != nil {
		end.Error = err.Error()
	}
	_ = send(&HistoryLine{End: end})
}
