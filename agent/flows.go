package agent

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pavise-project/pavise"
	"github.com/pavise-project/pavise/bpf"
	"github.com/pavise-project/pavise/decode"
	"github.com/pavise-project/pavise/flow"
)

// This file follows flows: it takes what the kernel reports of them to the table of the flow room, and what that makes of it to those who read.

const (
	sweepPause = 10 * time.Second // between two reports of a flow that goes on
	freshFlows = time.Second      // an answer is not older than this
	// How many sweeps pass before a flow is given up that has no file: TCP sends what a process left behind for two minutes or so (tcp_orphan_retries).
	orphanSweeps = 18

	// How long a report waits for its process, and how long the next one does not: who is not known then is not known at all.
	catchUpTime  = 200 * time.Millisecond
	catchUpPause = 50 * time.Millisecond
)

// FlowSource is what the agent needs of *bpf.Flows.
type FlowSource interface {
	// Read calls fn with each record until ctx is done. The record is valid only during the call.
	Read(ctx context.Context, fn func(rec []byte) error) error
	// Sweep calls fn with a report of each flow that goes on.
	Sweep(fn func(rec []byte) error) error
	// Stats are what was counted in the kernel.
	Stats() (bpf.FlowStats, error)
	// Lacking says what this kernel does not let be told.
	Lacking() []string
	// Files tells whether Sweep leaves out sockets that no process has a file of any more.
	Files() bool
	// Memory is what the maps take, in bytes.
	Memory() (uint64, error)
	Close() error
}

var _ FlowSource = (*bpf.Flows)(nil)

// FlowQuery says which flows are asked for.
type FlowQuery struct {
	Follow bool   // from now on, until the reader ends it
	Begun  bool   // with Follow, also the first report of a flow that goes on
	Ended  bool   // without Follow, also the last flows that ended
	Where  string // CEL; empty for all
}

// FlowStatus is what the status says of flows.
type FlowStatus struct {
	On      bool       `json:"on"`
	Error   string     `json:"error,omitempty"`   // why not, or what is wrong
	Lacking []string   `json:"lacking,omitempty"` // what this kernel does not let be told
	Table   flow.Stats `json:"table"`
	Sums    []flow.Sum `json:"sums,omitempty"` // what all flows carried, by protocol
	// Of the kernel: records that were made, and those of them that found no place in the ring, with the bytes that these would have told.
	Made       uint64 `json:"made"`
	Lost       uint64 `json:"lost"`
	LostBytes  uint64 `json:"lost_bytes"`
	DataLost   uint64 `json:"data_lost"`  // copies of DNS answers and of ClientHellos
	NoStorage  uint64 `json:"no_storage"` // sockets for which the kernel had no memory
	Unowned    uint64 `json:"unowned"`    // flows that ended and whose process is not known
	NoPeer     uint64 `json:"no_peer"`    // packets whose peer found no room: they are told in a flow of others, with their socket
	NoUnix     uint64 `json:"no_unix"`    // acts on Unix sockets that found no room: they are told in one flow of others
	Late       uint64 `json:"late"`       // packets of datagram sockets that nobody has any more, or whose headers make no sense: told nowhere
	Undecoded  uint64 `json:"undecoded"`
	MapsMemory uint64 `json:"maps_bytes"`

	Exports []ExportStatus `json:"exports,omitempty"`
}

// flows is the agent's part of following flows; nil where it does not.
type flows struct {
	a      *Agent
	source FlowSource
	table  *flow.Table

	// Of the reading goroutine.
	flow pavise.Flow
	data pavise.FlowData

	undecoded atomic.Uint64
	cut       sync.Map // the ids of flows that an isolation ended, until their last report
	trouble   atomic.Pointer[string]
	waited    atomic.Int64 // when catchUp last did, ns since the Unix epoch

	mu     sync.Mutex // of sweeps
	raw    pavise.Flow
	swept  time.Time
	closed bool
}

// startFlows follows flows until ctx is done. Without them the agent goes on, and says so.
func (a *Agent) startFlows(ctx context.Context) (stop func()) {
	if a.cfg.Flows == nil {
		return func() {}
	}
	source, err := a.cfg.Flows()
	if err != nil {
		why := err.Error()
		a.flowsErr = &why
		a.log.Error("connections are not followed", "err", err)
		return func() {}
	}
	f := &flows{a: a, source: source}
	o := flow.Options{Process: a.table.Lookup, Name: a.names.name}
	if source.Files() {
		o.Missing = orphanSweeps
	}
	f.table = flow.New(o)
	a.flows.Store(f)
	if lacking := source.Lacking(); len(lacking) > 0 {
		a.log.Info("not all is known of connections on this kernel", "lacking", lacking)
	}
	f.sweep() // what is there already
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := source.Read(ctx, f.handle); err != nil && ctx.Err() == nil {
			f.fail(fmt.Errorf("read reports of flows: %w", err))
		}
	})
	wg.Go(func() {
		tick := time.NewTicker(sweepPause)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				f.sweep()
			case <-ctx.Done():
				return
			}
		}
	})
	return func() {
		cancel()
		wg.Wait()
		f.mu.Lock() // of a request's sweep
		defer f.mu.Unlock()
		f.closed = true
		if err := source.Close(); err != nil {
			a.log.Error("end following flows", "err", err)
		}
	}
}

func (f *flows) fail(err error) {
	why := err.Error()
	f.trouble.Store(&why)
	f.a.log.Error("connections are not followed as they should be", "err", err)
}

// handle takes one record from the kernel to the readers.
func (f *flows) handle(rec []byte) error {
	isData, err := decode.Flow(rec, f.a.boot.Load(), &f.flow, &f.data)
	switch {
	case err != nil:
		f.garbled(err, len(rec))
	case isData:
		f.read(&f.data)
	default:
		f.report(&f.flow)
	}
	return nil
}

// read takes in what was copied of a flow.
func (f *flows) read(d *pavise.FlowData) {
	answers, tls := f.a.names.data(d)
	for _, dns := range answers {
		f.a.hub.publishFlow(dns.Event())
	}
	if tls != nil {
		f.table.Hello(d.Flow, tls)
	}
}

func (f *flows) garbled(err error, n int) {
	if f.undecoded.Add(1) == 1 {
		f.a.log.Error("a report of a flow could not be decoded; more of them are only counted", "err", err, "bytes", n)
	}
}

func (f *flows) report(raw *pavise.Flow) {
	if raw.Local.ExecID != 0 && f.a.table.Lookup(raw.Local.ExecID) == nil {
		f.catchUp()
	}
	if raw.State == pavise.FlowClosed {
		if tls := f.a.names.forget(raw.ID); tls != nil {
			f.table.Hello(raw.ID, tls)
		}
		if _, cut := f.cut.LoadAndDelete(raw.ID); cut {
			raw.End, raw.ResetBy = pavise.FlowCutOff, pavise.EndpointUnknown
		}
	}
	if r := f.table.Report(raw); r != nil {
		f.a.hub.publishFlow(r.Event())
	}
}

// catchUp waits until what the other rings had when it was called has been read: a process whose connection is told of here may be told of there.
func (f *flows) catchUp() {
	now := time.Now()
	if at := f.waited.Load(); now.UnixNano()-at < int64(catchUpPause) {
		return
	}
	for p := f.a.kernel.Position(); !f.a.kernel.Reached(p) && time.Since(now) < catchUpTime; {
		time.Sleep(catchUpTime / 100)
	}
	f.waited.Store(time.Now().UnixNano())
}

// sweep has the kernel report all flows that go on.
func (f *flows) sweep() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed || time.Since(f.swept) < freshFlows {
		return
	}
	f.table.Sweep()
	var data pavise.FlowData
	err := f.source.Sweep(func(rec []byte) error {
		isData, err := decode.Flow(rec, f.a.boot.Load(), &f.raw, &data)
		switch {
		case err != nil:
			f.garbled(err, len(rec))
		case !isData:
			f.report(&f.raw)
		}
		return nil
	})
	f.swept = time.Now()
	if err != nil {
		f.fail(fmt.Errorf("list flows: %w", err))
		return
	}
	for _, r := range f.table.Swept(time.Now().UnixNano()) {
		f.a.hub.publishFlow(r.Event())
	}
}

// denied tells of a connection that a rule did not let begin.
func (f *flows) denied(e *pavise.Event) {
	if e.Op.OnSocket() {
		if r := f.table.Denied(e); r != nil {
			f.a.hub.publishFlow(r.Event())
		}
	}
}

func (a *Agent) flowStatus() FlowStatus {
	f := a.flows.Load()
	if f == nil {
		s := FlowStatus{}
		if a.flowsErr != nil {
			s.Error = *a.flowsErr
		}
		return s
	}
	s := FlowStatus{On: true, Lacking: f.source.Lacking(), Table: f.table.Stats(), Sums: f.table.Sums(), Undecoded: f.undecoded.Load(), Exports: a.exportStatus()}
	if why := f.trouble.Load(); why != nil {
		s.Error = *why
	}
	if k, err := f.source.Stats(); err == nil {
		s.Made, s.Lost, s.LostBytes, s.DataLost, s.NoStorage, s.Unowned = k.Made, k.Lost, k.LostBytes, k.DataLost, k.NoStorage, k.Unowned
		s.NoPeer, s.NoUnix, s.Late = k.NoPeer, k.NoUnix, k.Late
	}
	s.MapsMemory, _ = f.source.Memory() // 0 when it is not known
	return s
}

var errNoFlows = errors.New("connections are not followed")

func (a *Agent) getFlows(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	f := a.flows.Load()
	if f == nil {
		err := fmt.Errorf("%w: run the agent with --flows", errNoFlows)
		if a.flowsErr != nil {
			err = fmt.Errorf("%w: %s", errNoFlows, *a.flowsErr)
		}
		fail(w, http.StatusConflict, err)
		return
	}
	wanted, err := a.wanted(q.Get("where"))
	if err != nil {
		fail(w, whereCode(err), err)
		return
	}
	if on(q, "follow") {
		a.followFlows(w, r, wanted, on(q, "begun"))
		return
	}
	f.sweep()
	var es []*pavise.Event
	if on(q, "ended") {
		es = a.hub.lastFlows()
	}
	open := f.table.Open()
	slices.SortFunc(open, func(f, g *pavise.Flow) int {
		if f.Start != g.Start {
			return int(min(max(f.Start-g.Start, -1), 1))
		}
		return int(int64(min(f.ID, g.ID)) - int64(f.ID)) //nolint:gosec // a sign
	})
	for _, f := range open {
		es = append(es, f.Event())
	}
	w.Header().Set("Content-Type", ndjson)
	rc := http.NewResponseController(w)
	var line []byte
	for _, e := range es {
		if !wanted(e) {
			continue
		}
		line = append(e.AppendJSON(line[:0]), '\n')
		_ = rc.SetWriteDeadline(time.Now().Add(a.patience))
		if _, err := w.Write(line); err != nil {
			return
		}
	}
}

func (a *Agent) followFlows(w http.ResponseWriter, r *http.Request, wanted func(*pavise.Event) bool, begun bool) {
	end := a.streaming(w, r)
	if end == nil {
		return
	}
	defer end()
	sub, err := a.hub.subscribeFlows()
	if err != nil {
		fail(w, http.StatusServiceUnavailable, err)
		return
	}
	defer sub.stop()
	w.Header().Set("Content-Type", ndjson)
	rc := http.NewResponseController(w)
	_ = rc.Flush()
	for {
		it, err := sub.next(r.Context())
		if err != nil {
			return
		}
		e := it.event
		if f := e.Flow; e.Op == pavise.OpDNS || f != nil && !begun && f.State != pavise.FlowClosed && f.Report == 0 || !wanted(e) {
			continue
		}
		_ = rc.SetWriteDeadline(time.Now().Add(a.patience))
		if _, err := w.Write(it.json()); err != nil {
			return
		}
		if len(sub.ch) == 0 {
			if err := rc.Flush(); err != nil {
				return
			}
		}
	}
}
