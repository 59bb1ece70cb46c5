package agent

import (
	"context"
	"fmt"
	"io"
	"slices"
	"sort"
	"sync"
	"sync/atomic"
	"unsafe"

	"github.com/pavise-project/pavise"
)

// The bounds of delivery.
const (
	recentEvents = 4096 // kept for a reader who comes late
	// Verdicts that are kept when the recent events have gone over them, for `pavise why`: so many that deny or kill, and so many
	// audits, which cannot push out the others. Together about 2 MiB with ordinary paths, and 18 MiB when each is as long as can be.
	recentVerdicts = 1024
	recentFlows    = 2048 // that have ended; about 1 KiB each
	subscribeDepth = 4096 // events that wait for one subscriber
	// For the history, whose disk may stand still for a moment: so many, of which the last eighth is for events that deny or kill, or would.
	historyDepth   = 16384
	maxSubscribers = maxStreams + 8 // some are the agent's own
)

// lostSubscriber is where events are lost that a reader was too slow for.
const lostSubscriber = "subscriber"

var errTooManySubscribers = fmt.Errorf("too many subscribers: %d are the limit", maxSubscribers)

// item is an event on its way to the subscribers, who share it. It is encoded once, by the first who needs it.
type item struct {
	event *pavise.Event
	once  sync.Once
	line  []byte
}

// json is the event as a line of NDJSON.
func (it *item) json() []byte {
	it.once.Do(func() { it.line = append(it.event.AppendJSON(nil), '\n') })
	return it.line
}

// hub gives each event to every subscriber, and waits for none of them.
type hub struct {
	dropped atomic.Uint64 // by all subscribers, ever

	mu     sync.Mutex
	seq    uint64          // the number of the last event
	kept   uint64          // how many went to recent
	recent []slot          // a circle of len(recent); the next one is at kept % len
	ended  []*pavise.Event // of the last flows that ended, likewise
	gone   uint64
	strict circle // events that deny or kill, or would
	audits circle
	subs   map[*subscription]struct{}
	closed bool
}

func newHub(recent, verdicts int) *hub {
	return &hub{
		recent: make([]slot, recent), strict: circle{max: verdicts}, audits: circle{max: verdicts},
		subs: map[*subscription]struct{}{},
	}
}

// circle keeps the last events that it took. Their numbers only grow. It has no memory before it needs it.
type circle struct {
	max   int
	slots []slot
	n     uint64 // that it took
}

// take takes the event in s, and leaves a slot to be used again.
func (c *circle) take(s *slot) {
	c.n++
	if len(c.slots) < c.max {
		c.slots = append(c.slots, *s)
		*s = slot{}
		return
	}
	at := &c.slots[(c.n-1)%uint64(len(c.slots))]
	*at, *s = *s, *at
}

// find returns the event with the number, nil when it is not kept.
func (c *circle) find(id uint64) *pavise.Event {
	kept := len(c.slots)
	at := func(i int) *pavise.Event {
		return &c.slots[(c.n-uint64(kept-i))%uint64(kept)].event
	}
	i := sort.Search(kept, func(i int) bool { return at(i).ID >= id })
	if i < kept && at(i).ID == id {
		return at(i)
	}
	return nil
}

// slot keeps one event without allocating: its strings live in buf, which the next event in the slot reuses.
type slot struct {
	event pavise.Event
	buf   []byte
}

func (s *slot) put(e *pavise.Event) {
	s.event = *e
	s.event.Exec = pavise.ExecInfo{} // Process has it
	strs := [...]*string{
		&s.event.File.Path, &s.event.File.Alias, &s.event.File.FS, &s.event.Net.RemotePath, &s.event.Net.LocalPath, &s.event.Net.Interface,
		&s.event.Act.NewPath, &s.event.Act.Name, &s.event.Act.Target.Path,
	}
	n := 0
	for _, p := range strs {
		n += len(*p)
	}
	if cap(s.buf) < n {
		s.buf = make([]byte, 0, max(n, 64))
	}
	b := s.buf[:0]
	for _, p := range strs {
		if len(*p) == 0 {
			*p = ""
			continue
		}
		off := len(b)
		b = append(b, *p...)
		*p = unsafe.String(&b[off], len(b)-off) // valid until the slot is reused; readers clone under the lock
	}
}

// publish numbers e and hands it on. It copies what it keeps.
func (h *hub) publish(e *pavise.Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.seq++
	e.ID = h.seq
	s := &h.recent[h.kept%uint64(len(h.recent))]
	switch s.event.Action { // of the event that goes
	case pavise.ActionDeny, pavise.ActionKill:
		h.strict.take(s)
	case pavise.ActionAudit:
		h.audits.take(s)
	}
	s.put(e)
	h.kept++
	if len(h.subs) == 0 {
		return
	}
	h.send(&item{event: s.event.Clone()}, e.Action == pavise.ActionDeny || e.Action == pavise.ActionKill)
}

// publishFlow numbers what is known of a flow and hands it on to those who want flows. It keeps e, which nobody may write any more.
func (h *hub) publishFlow(e *pavise.Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.seq++
	e.ID = h.seq
	if e.Op == pavise.OpFlow && e.Flow.State == pavise.FlowClosed {
		if len(h.ended) < recentFlows {
			h.ended = append(h.ended, e)
		} else {
			h.ended[h.gone%recentFlows] = e
		}
		h.gone++
	}
	for sub := range h.subs {
		if sub.kinds&ofFlows != 0 {
			h.send(&item{event: e}, e.Flow != nil && e.Flow.End == pavise.FlowDenied)
			return
		}
	}
}

// lastFlows returns the last flows that ended, oldest first.
func (h *hub) lastFlows() []*pavise.Event {
	h.mu.Lock()
	defer h.mu.Unlock()
	at := int(h.gone % recentFlows) //nolint:gosec // a remainder
	if len(h.ended) < recentFlows {
		at = 0
	}
	return append(slices.Clone(h.ended[at:]), h.ended[:at]...)
}

// send hands an event to those who want its kind.
func (h *hub) send(it *item, strict bool) {
	e := it.event
	kind := ofEvents
	if e.Op == pavise.OpFlow || e.Op == pavise.OpDNS {
		kind = ofFlows
	}
	for sub := range h.subs {
		if sub.kinds&kind == 0 {
			continue
		}
		if !strict && len(sub.ch) >= cap(sub.ch)-sub.reserve {
			sub.lost[min(e.Op, pavise.NumOps-1)].Add(1)
			h.dropped.Add(1)
			continue
		}
		select {
		case sub.ch <- it:
		default:
			sub.lost[min(e.Op, pavise.NumOps-1)].Add(1)
			h.dropped.Add(1)
		}
	}
}

// subscription is one reader's queue.
type subscription struct {
	hub   *hub
	ch    chan *item
	lost  [pavise.NumOps]atomic.Uint64
	kinds kinds
	// reserve is how much of the queue is for events that deny or kill, or would.
	reserve int
	read    int // since the reader was last told of losses
}

// kinds are the kinds of events that a subscriber wants.
type kinds uint8

const (
	ofEvents kinds = 1 << iota
	ofFlows        // net.flow and net.dns
)

// subscribeFlows starts a queue of what is known of flows.
func (h *hub) subscribeFlows() (*subscription, error) {
	_, s, err := h.begin(false, subscribeDepth, 0, ofFlows)
	return s, err
}

// subscribeDeep starts a queue of another depth, the last eighth of which is for events that deny or kill, or would.
func (h *hub) subscribeDeep(depth int) (*subscription, error) {
	_, s, err := h.begin(false, depth, depth/8, ofEvents|ofFlows)
	return s, err
}

// subscribe starts a queue. With recent, it also returns the kept events, oldest first, with no gap to the queue's first.
func (h *hub) subscribe(recent bool) ([]*item, *subscription, error) {
	return h.begin(recent, subscribeDepth, 0, ofEvents)
}

func (h *hub) begin(recent bool, depth, reserve int, of kinds) ([]*item, *subscription, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := &subscription{hub: h, ch: make(chan *item, depth), reserve: reserve, kinds: of}
	if h.closed {
		return nil, nil, io.EOF
	}
	if len(h.subs) >= maxSubscribers {
		return nil, nil, errTooManySubscribers
	}
	h.subs[s] = struct{}{}
	if !recent {
		return nil, s, nil
	}
	return h.lasting(), s, nil
}

// last returns the kept events, oldest first.
func (h *hub) last() []*item {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.lasting()
}

func (h *hub) lasting() []*item {
	n := min(h.kept, uint64(len(h.recent)))
	out := make([]*item, 0, n)
	for i := h.kept - n; i < h.kept; i++ {
		out = append(out, &item{event: h.recent[i%uint64(len(h.recent))].event.Clone()})
	}
	return out
}

// find returns a copy of the event with the number, nil when it is not kept any more or has not been yet, and the number of the last event.
func (h *hub) find(id uint64) (e *pavise.Event, last uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if id > h.seq || id == 0 {
		return nil, h.seq
	}
	n := int(min(h.kept, uint64(len(h.recent)))) //nolint:gosec // no more than a slice has
	at := func(i int) *slot { return &h.recent[(h.kept-uint64(n-i))%uint64(len(h.recent))] }
	if i := sort.Search(n, func(i int) bool { return at(i).event.ID >= id }); i < n && at(i).event.ID == id {
		return at(i).event.Clone(), h.seq
	}
	for _, c := range [...]*circle{&h.strict, &h.audits} {
		if e := c.find(id); e != nil {
			return e.Clone(), h.seq
		}
	}
	return nil, h.seq
}

// subscribers is how many readers there are, the history not among them.
func (h *hub) subscribers() (n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for s := range h.subs {
		if s.reserve == 0 {
			n++
		}
	}
	return n
}

// close ends every queue once its reader has emptied it.
func (h *hub) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = true
	for s := range h.subs {
		delete(h.subs, s)
		close(s.ch)
	}
}

// next waits for the reader's next event. It fails with io.EOF when the agent stops.
func (s *subscription) next(ctx context.Context) (*item, error) {
	if it := s.losses(); it != nil {
		return it, nil
	}
	select {
	case it, ok := <-s.ch:
		if !ok {
			return nil, io.EOF
		}
		s.read++
		return it, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// losses tells the reader what it missed, when it has caught up, or has read a whole queue since.
func (s *subscription) losses() *item {
	if len(s.ch) > 0 && s.read < cap(s.ch) {
		return nil
	}
	for op := range s.lost {
		if n := s.lost[op].Swap(0); n > 0 {
			return &item{event: lostEvent(pavise.Op(op), lostSubscriber, n)}
		}
	}
	s.read = 0
	return nil
}

// stop ends the queue.
func (s *subscription) stop() {
	s.hub.mu.Lock()
	defer s.hub.mu.Unlock()
	delete(s.hub.subs, s)
}
