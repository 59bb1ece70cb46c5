package agent

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pavise-project/pavise"
	"github.com/pavise-project/pavise/bpf"
	"github.com/pavise-project/pavise/enforce"
)

type closer func()

func (c closer) Close() error { c(); return nil }

// tops asks for what goes on, and returns a line at each call.
func tops(t *testing.T, c *Client, q TopQuery) (next func() *Top, stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	lines, done := make(chan *Top), make(chan error, 1)
	go func() {
		done <- c.Top(ctx, q, func(b []byte) error {
			l := new(Top)
			if err := json.Unmarshal(b, l); err != nil {
				return err
			}
			select {
			case lines <- l:
			case <-ctx.Done():
			}
			return nil
		})
	}()
	next = func() *Top {
		t.Helper()
		select {
		case l := <-lines:
			return l
		case err := <-done:
			t.Fatalf("the stream ended: %v", err)
		}
		return nil
	}
	return next, func() {
		cancel()
		must(t, <-done)
	}
}

func TestTop(t *testing.T) {
	f := newFake()
	var seen, hits, timed, runs atomic.Uint64
	f.counters = func() (c enforce.Counters, err error) {
		n := seen.Load()
		c.Ops[pavise.OpOpen] = enforce.OpCounters{Seen: 10 * n, Delivered: 3 * n, Folded: 6 * n, Lost: n}
		c.RuleHits, c.MapBytes = []uint64{hits.Load()}, 4096
		return c, nil
	}
	f.timed = func() (io.Closer, error) {
		timed.Add(1)
		return closer(func() { timed.Add(^uint64(0)) }), nil
	}
	f.runs = func() []bpf.Run {
		n := runs.Load()
		return []bpf.Run{{Program: "idle"}, {Program: "cheap", Count: n, Time: time.Duration(n)}, {Program: "dear", Count: n, Time: time.Duration(n) * 100}}
	}
	seen.Store(1000)
	hits.Store(50)
	a, c := running(t, f, func(c *Config) { c.Policies = parse(t, shadow("secrets", "monitor")) })
	event := func(pid uint32, path string, e pavise.Event) {
		e.Op, e.Process = pavise.OpOpen, &pavise.Process{ExecID: uint64(pid), PID: pid, Exe: pavise.FileInfo{Path: path}, User: pavise.User{ID: 7}}
		a.busy.count(&e)
	}
	event(1, "/before", pavise.Event{}) // nobody looks
	next, stop := tops(t, c, TopQuery{Interval: minInterval, Rows: 2, Cost: true})
	if l := next(); len(l.Operations) != 0 || len(l.Rules) != 0 || len(l.Processes) != 0 || len(l.Hooks) != 0 || l.Interval < minInterval || timed.Load() != 1 {
		t.Errorf("%+v, %d", l, timed.Load())
	}
	event(2, "/two", pavise.Event{Count: 5})
	event(3, "/three", pavise.Event{Action: pavise.ActionDeny})
	event(3, "/three", pavise.Event{Action: pavise.ActionKill, Monitor: true, Count: 2})
	event(4, "/four", pavise.Event{})
	seen.Add(2)
	hits.Add(4)
	runs.Add(10)
	// All of it is in one of the next lines, or over two.
	var got Top
	var op TopOp
	for lines := 0; lines < 3 || len(got.Hooks) == 0 && lines < 50; lines++ {
		l := next()
		got.Operations, got.Rules, got.Processes, got.Hooks = append(got.Operations, l.Operations...), append(got.Rules, l.Rules...), append(got.Processes, l.Processes...), append(got.Hooks, l.Hooks...)
		got.OtherProcesses.add(l.OtherProcesses)
	}
	if len(got.Rules) == 0 {
		t.Fatalf("%+v", got)
	}
	for _, o := range got.Operations {
		op.Seen, op.Folded, op.Lost, op.Op = op.Seen+o.Seen, op.Folded+o.Folded, op.Lost+o.Lost, o.Op
		op.add(o.TopCount)
	}
	if want := (TopOp{Op: "file.open", Seen: 20, Folded: 12, Lost: 2, TopCount: TopCount{9, 1, 2}}); op != want {
		t.Errorf("%+v, want %+v", op, want)
	}
	if r := got.Rules[0]; r != (TopRule{"secrets", "shadow", "deny", true, 4}) {
		t.Errorf("%+v", r)
	}
	if len(got.Processes) == 2 { // else they came in two lines
		if p := got.Processes; p[0] != (TopProcess{PID: 2, Exe: "/two", User: "7", TopCount: TopCount{5, 0, 0}}) || p[1] != (TopProcess{PID: 3, Exe: "/three", User: "7", TopCount: TopCount{3, 1, 2}}) || got.OtherProcesses.Events != 1 {
			t.Errorf("%+v, others %+v", p, got.OtherProcesses)
		}
	}
	if h := got.Hooks; len(h) != 2 || h[0] != (TopHook{"dear", 10, 1000}) || h[1] != (TopHook{"cheap", 10, 10}) {
		t.Errorf("%+v", h)
	}
	if l := next(); len(l.Operations)+len(l.Rules)+len(l.Processes)+len(l.Hooks) != 0 {
		t.Errorf("again: %+v", l)
	}
	stop()
	for end := time.Now().Add(20 * time.Second); timed.Load() != 0 || a.busy.readers.Load() != 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("nobody looks, and programs are timed %d times, for %d readers", timed.Load(), a.busy.readers.Load())
		}
	}

	// Without cost nothing is timed; where it cannot be, the stream says so.
	next, stop = tops(t, c, TopQuery{Interval: minInterval, Rows: 2})
	if l := next(); l.Hooks != nil || l.HooksError != "" || timed.Load() != 0 {
		t.Errorf("%+v", l)
	}
	stop()
	f.timed = func() (io.Closer, error) { return nil, errors.New("have the kernel time its programs: not permitted") }
	next, stop = tops(t, c, TopQuery{Interval: minInterval, Cost: true})
	if l := next(); l.HooksError != "have the kernel time its programs: not permitted" {
		t.Errorf("%+v", l)
	}
	stop()
	for q, want := range map[string]string{"interval=1ms": "from 200ms to 1h0m0s", "interval=2h": "from 200ms", "interval=x": "want a duration", "rows=-1": "want a number", "cost=yes": "want 1 or 0"} {
		values, _ := url.ParseQuery(q)
		err := c.lines(t.Context(), "/v1/top", values, func([]byte) error { return nil })
		var ae *APIError
		if !errors.As(err, &ae) || ae.Status != http.StatusBadRequest || !strings.Contains(ae.Message, want) {
			t.Errorf("%s: %v, want %s", q, err, want)
		}
	}
}

// TestBusyIsBounded: so many processes are counted apart; others together, and none is forgotten that is busy.
func TestBusyIsBounded(t *testing.T) {
	var b busy
	b.start()
	event := func(id uint64, at time.Duration) {
		b.count(&pavise.Event{Op: pavise.OpOpen, Time: int64(at), Process: &pavise.Process{ExecID: id}})
	}
	for i := range uint64(maxBusy) {
		event(i, 0)
	}
	event(5, time.Second)
	event(maxBusy+1, 2*time.Second)
	if len(b.procs) != maxBusy || b.rest.Events != 1 || b.procs[5].Events != 2 {
		t.Errorf("%d apart, %+v others", len(b.procs), b.rest)
	}
	event(maxBusy+1, 10500*time.Millisecond)
	if len(b.procs) != 2 || b.procs[5].Events != 2 || b.procs[maxBusy+1].Events != 1 || b.ops[pavise.OpOpen].Events != maxBusy+3 {
		t.Errorf("%d apart, %+v", len(b.procs), b.ops[pavise.OpOpen])
	}
	b.stop()
	event(1, 0)
	if b.procs != nil {
		t.Error("it counts for nobody")
	}
}

func BenchmarkBusy(bm *testing.B) {
	var b busy
	b.start()
	e := &pavise.Event{Op: pavise.OpOpen, Process: &pavise.Process{ExecID: 1}}
	bm.ReportAllocs()
	for bm.Loop() {
		b.count(e)
	}
}
