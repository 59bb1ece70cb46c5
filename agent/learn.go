package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/pavise-project/pavise"
	"github.com/pavise-project/pavise/policy"
	"github.com/pavise-project/pavise/policy/learn"
)

// Errors of learning.
var (
	errBadLearning = errors.New("bad request to learn")
	ErrNoLearning  = errors.New("nothing is being learned")
	ErrLearning    = errors.New("something is being learned already")
)

// maxLearning bounds how long one learning takes.
const maxLearning = 30 * 24 * time.Hour

// learningName cannot be the name of a policy that anybody applies.
const learningName = "(learning)"

// learning is a policy of its own, which only tells what a subject does, and what it has told. The policy is in no revision: it ends with its time, or with the agent.
type learning struct {
	policy  *policy.Policy
	request LearnRequest
	ops     []pavise.Op
	since   time.Time
	running int // processes of the subject that ran already
	sub     *subscription
	timer   *time.Timer
	cancel  context.CancelFunc // ends the counting

	mu    sync.Mutex
	seen  learn.Observed
	lost  [pavise.NumOps]uint64 // by the kernel, when it began, and what was lost since when it has ended
	ended time.Time
	why   string
}

// StartLearning has what a subject does told, until the time is over, EndLearning, or the agent's end.
func (a *Agent) StartLearning(q LearnRequest) (*Learning, error) {
	if q.For <= 0 || q.For > maxLearning {
		return nil, fmt.Errorf("%w: for must be more than 0 and at most %s", errBadLearning, maxLearning)
	}
	if strings.TrimSpace(q.Subject) == "" {
		return nil, fmt.Errorf("%w: subject is missing: a CEL condition on the process, as process.exe.path == \"/usr/sbin/nginx\"", errBadLearning)
	}
	l := &learning{request: q, since: time.Now()}
	for op := range pavise.Op(pavise.NumJudged) {
		if op == pavise.OpNone || len(q.Ops) > 0 && !slices.Contains(q.Ops, op.String()) {
			continue
		}
		if a.machine.Ops[op].Rung != pavise.RungNone {
			l.ops = append(l.ops, op)
		} else if len(q.Ops) > 0 {
			return nil, fmt.Errorf("%w: %s cannot be seen on this machine: %s", errBadLearning, op, a.machine.Ops[op].Why)
		}
	}
	for _, name := range q.Ops {
		if !slices.ContainsFunc(l.ops, func(op pavise.Op) bool { return op.String() == name }) {
			return nil, fmt.Errorf("%w: %q is no operation that is judged; docs/policy-reference.md lists them", errBadLearning, name)
		}
	}
	ps, err := policy.Parse("subject", []byte(learn.ActsFor(q.Subject, l.ops)))
	var pe policy.Errors
	if errors.As(err, &pe) {
		for _, e := range pe { // it is a part of a policy that nobody wrote
			e.Line, e.Field = 0, ""
		}
	}
	if err != nil {
		return nil, err
	}
	l.policy = ps[0]
	l.policy.Name = learningName
	l.running = a.running(l.policy)
	err = a.locked(func() error {
		if a.learning != nil && a.learning.on() {
			return fmt.Errorf("%w: since %s, of %s; end it with: pavise learn --end", ErrLearning, a.learning.since.Local().Format(time.DateTime), a.learning.request.Subject)
		}
		_, sub, err := a.hub.subscribe(false)
		if err != nil {
			return err
		}
		l.sub = sub
		l.lost = a.lostSoFar()
		if err := a.relearn(l); err != nil {
			sub.stop()
			return err
		}
		a.learning = l
		return nil
	})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	l.cancel = cancel
	a.background.Go(func() { a.observe(ctx, l) })
	l.timer = time.AfterFunc(q.For, func() { _ = a.finishLearning(l, "its time is over") }) // which has logged what it fails with
	a.log.Info("learning began", "subject", q.Subject, "operations", len(l.ops), "for", q.For)
	return a.learningStatus()
}

// relearn compiles and activates the policies with those of l, nil for none. The caller holds mu.
func (a *Agent) relearn(l *learning) error {
	was := a.learning
	a.learning = l
	set, err := a.compile(a.set.Load().policies)
	if err == nil {
		err = a.activate(set)
	}
	if err != nil {
		a.learning = was
	}
	return err
}

// running counts the processes that a policy is about.
func (a *Agent) running(of *policy.Policy) (n int) {
	for _, p := range a.table.Snapshot() {
		if p.ExitTime != 0 || !a.table.Alive(p) {
			continue
		}
		if ok, err := of.IsAbout(a.withAncestors(&pavise.Event{Op: pavise.OpExec, Process: p})); ok && err == nil {
			n++
		}
	}
	return n
}

func (l *learning) on() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.ended.IsZero()
}

// observe counts what the learning's policy tells.
func (a *Agent) observe(ctx context.Context, l *learning) {
	for {
		it, err := l.sub.next(ctx)
		if err != nil {
			return // it was stopped, or the agent is
		}
		e := it.event
		switch {
		case e.Op == pavise.OpLost:
			if e.Lost.Where == "subscriber" && slices.Contains(l.ops, e.Lost.Op) {
				l.mu.Lock()
				l.seen.Lost += e.Lost.Count
				l.mu.Unlock()
			}
		case e.Shadow != pavise.DecisionNone: // of a candidate: the act has an event of its own
		case a.toldBy(e, learningName) || int(e.Matched) > len(e.RuleIDs) && l.asks(e):
			l.mu.Lock()
			if l.ended.IsZero() {
				l.seen.Add(e)
			}
			l.mu.Unlock()
		}
	}
}

// asks is for events that more rules are about than they name.
func (l *learning) asks(e *pavise.Event) bool {
	rule, err := l.policy.Asks(e)
	return err == nil && rule != ""
}

// toldBy reports whether one of the rules that an event names is of the policy.
func (a *Agent) toldBy(e *pavise.Event, name string) bool {
	if e.Policy == name {
		return true
	}
	rules := a.rules.Load().of(e.Gen)
	for _, id := range e.RuleIDs[:min(int(e.Matched), len(e.RuleIDs))] {
		if int(id) < len(rules) && rules[id].Policy == name {
			return true
		}
	}
	return false
}

// lostSoFar is what the kernel could not tell, by operation.
func (a *Agent) lostSoFar() (lost [pavise.NumOps]uint64) {
	c, err := a.kernel.Counters()
	if err != nil {
		a.log.Warn("read what was lost", "err", err)
	}
	for op := range c.Ops {
		lost[op] = c.Ops[op].Lost
	}
	return lost
}

// EndLearning ends what StartLearning began. What was seen stays until the next one.
func (a *Agent) EndLearning() (*Learning, error) {
	a.mu.Lock()
	l := a.learning
	a.mu.Unlock()
	if l == nil || !l.on() {
		return nil, ErrNoLearning
	}
	l.timer.Stop()
	if err := a.finishLearning(l, ""); err != nil {
		return nil, err
	}
	return a.learningStatus()
}

func (a *Agent) finishLearning(l *learning, why string) error {
	err := a.locked(func() error {
		if !l.on() {
			return nil
		}
		a.drain(l)
		lost := a.lostSoFar()
		l.mu.Lock()
		l.ended, l.why = time.Now(), why
		for op := range lost {
			l.lost[op] = lost[op] - l.lost[op]
		}
		l.mu.Unlock()
		err := a.relearn(l) // it is on no more: the set is without it
		l.sub.stop()
		l.cancel()
		return err
	})
	if err != nil && !errors.Is(err, ErrStopping) {
		a.log.Error("learning has ended, and its policy stays until the next change", "err", err)
		return err
	}
	a.log.Info("learning has ended", "acts", l.seen.Len())
	return nil
}

// drain waits until what has been done is counted.
func (a *Agent) drain(l *learning) {
	if !a.catchUp(context.Background()) {
		a.log.Warn("learning ends before all that the kernel has told is read")
	}
	for range 100 {
		if len(l.sub.ch) == 0 {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

// learningPolicies are those of what is being learned: none or one. The caller holds mu.
func (a *Agent) learningPolicies() []*policy.Policy {
	if a.learning == nil || !a.learning.on() {
		return nil
	}
	return []*policy.Policy{a.learning.policy}
}

// applied are those policies that somebody applied.
func applied(ps []*policy.Policy) []*policy.Policy {
	return slices.DeleteFunc(slices.Clone(ps), func(p *policy.Policy) bool { return p.Name == learningName })
}

func (a *Agent) learningStatus() (*Learning, error) {
	a.mu.Lock()
	l := a.learning
	a.mu.Unlock()
	if l == nil {
		return nil, ErrNoLearning
	}
	now := a.lostSoFar()
	l.mu.Lock()
	defer l.mu.Unlock()
	st := &Learning{
		On: l.ended.IsZero(), Why: l.why, Subject: l.request.Subject, Since: l.since, Until: l.since.Add(l.request.For), Running: l.running,
		Seen: l.seen.Seen, Lost: l.seen.Lost, Acts: l.seen.Len(),
	}
	if !st.On {
		st.Until = l.ended
	}
	for _, op := range l.ops {
		st.Ops = append(st.Ops, op.String())
		if st.On {
			st.Lost += now[op] - l.lost[op]
		} else {
			st.Lost += l.lost[op]
		}
	}
	for op := range pavise.Op(pavise.NumJudged) {
		if op != pavise.OpNone && !slices.Contains(l.ops, op) && len(l.request.Ops) == 0 {
			st.Unseen = append(st.Unseen, op.String())
		}
	}
	return st, nil
}

func (a *Agent) getLearning(w http.ResponseWriter, _ *http.Request) {
	st, err := a.learningStatus()
	a.replyLearning(w, st, err)
}

func (a *Agent) putLearning(w http.ResponseWriter, r *http.Request) {
	var q LearnRequest
	if err := readJSON(r, &q, `{"subject": CEL, "for_ns": NANOSECONDS}`); err != nil {
		failBody(w, err)
		return
	}
	st, err := a.StartLearning(q)
	a.replyLearning(w, st, err)
}

func (a *Agent) deleteLearning(w http.ResponseWriter, _ *http.Request) {
	st, err := a.EndLearning()
	a.replyLearning(w, st, err)
}

func (a *Agent) replyLearning(w http.ResponseWriter, st *Learning, err error) {
	if err != nil {
		fail(w, codeOf(err), err)
		return
	}
	reply(w, http.StatusOK, st)
}

// getLearned gives the acts, as NDJSON.
func (a *Agent) getLearned(w http.ResponseWriter, _ *http.Request) {
	a.mu.Lock()
	l := a.learning
	a.mu.Unlock()
	if l == nil {
		fail(w, codeOf(ErrNoLearning), ErrNoLearning)
		return
	}
	l.mu.Lock()
	acts := l.seen.Acts()
	copies := make([]learn.Act, len(acts))
	for i := range acts {
		copies[i] = *acts[i]
		if e := acts[i].Event; e.Policy != learningName && e.Action >= pavise.ActionDeny {
			copies[i].By = e.Policy + "/" + e.Rule
		}
	}
	l.mu.Unlock()
	w.Header().Set("Content-Type", ndjson)
	enc := json.NewEncoder(w)
	rc := http.NewResponseController(w)
	for i := range copies {
		_ = rc.SetWriteDeadline(time.Now().Add(writeTimeout))
		if enc.Encode(&copies[i]) != nil {
			return // the reader has gone
		}
	}
}

// Learning asks what is being learned, or was last.
func (c *Client) Learning(ctx context.Context) (*Learning, error) {
	var l Learning
	return &l, c.call(ctx, "GET", "/v1/learning", nil, nil, &l)
}

// StartLearning begins to learn.
func (c *Client) StartLearning(ctx context.Context, q LearnRequest) (*Learning, error) {
	b, err := json.Marshal(q)
	if err != nil {
		return nil, err
	}
	var l Learning
	return &l, c.call(ctx, "PUT", "/v1/learning", nil, strings.NewReader(string(b)), &l)
}

// EndLearning ends it; what was seen is kept.
func (c *Client) EndLearning(ctx context.Context) (*Learning, error) {
	var l Learning
	return &l, c.call(ctx, "DELETE", "/v1/learning", nil, nil, &l)
}

// Learned adds the acts that were seen to o.
func (c *Client) Learned(ctx context.Context, o *learn.Observed) error {
	res, err := c.do(ctx, "GET", "/v1/learning/acts", nil, nil)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	for d := json.NewDecoder(res.Body); ; {
		var a learn.Act
		switch err := d.Decode(&a); {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return fmt.Errorf("read the agent's answer: %w", err)
		}
		o.Merge(&a)
	}
}
