package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/pavise-project/pavise"
	"github.com/pavise-project/pavise/policy"
	"github.com/pavise-project/pavise/store"
)

// The API's time limits. A stream has no end, but each line must be taken within writeTimeout.
const (
	headerTimeout = 5 * time.Second
	readTimeout   = 30 * time.Second
	writeTimeout  = 10 * time.Second
	idleTimeout   = time.Minute
)

type connKey struct{}

// connOf is the connection of a request; one of nobody, outside of the API's server.
func connOf(ctx context.Context) *conn {
	if c, ok := ctx.Value(connKey{}).(*conn); ok {
		return c
	}
	return &conn{peer: &peer{UID: ^uint32(0)}}
}

func (c *conn) asPeer() *Peer {
	return &Peer{UID: c.peer.UID, PID: c.peer.PID, Role: c.role.String()}
}

// server is the API's server. Ctx ends its streams.
func (a *Agent) server(ctx context.Context) *http.Server {
	return &http.Server{
		Handler:           a.guard(a.routes()),
		ReadHeaderTimeout: headerTimeout,
		ReadTimeout:       readTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    16 << 10,
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ConnContext:       func(ctx context.Context, c net.Conn) context.Context { return context.WithValue(ctx, connKey{}, c) },
		ErrorLog:          slog.NewLogLogger(a.log.Handler(), slog.LevelDebug),
	}
}

// guard bounds the time of an answer, and survives what a handler does wrong.
func (a *Agent) guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() {
			switch v := recover(); v {
			case nil:
			case http.ErrAbortHandler:
				panic(v)
			default:
				a.log.Error("an API request panicked", "path", r.URL.Path, "panic", v)
				fail(w, http.StatusInternalServerError, errors.New("internal error; the agent's log has it"))
			}
		}()
		// A stream lives longer than this: there the limit is on each write.
		_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(a.patience))
		next.ServeHTTP(w, r)
	})
}

// streaming makes w a stream's, which is one of a bounded number. When it returns nil, it has answered; else what it returns is to be called at the end.
func (a *Agent) streaming(w http.ResponseWriter, r *http.Request) (end func()) {
	c := connOf(r.Context())
	if err := a.streams.take(c.peer.UID, c.role); err != nil {
		fail(w, http.StatusServiceUnavailable, err)
		return nil
	}
	_ = http.NewResponseController(w).SetReadDeadline(time.Time{}) // ReadTimeout would end the stream
	return func() { a.streams.give(c.peer.UID) }
}

func reply(w http.ResponseWriter, code int, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		fail(w, http.StatusInternalServerError, fmt.Errorf("encode answer: %w", err))
		return
	}
	answer(w, code, append(b, '\n'))
}

// answer writes an answer. What it is about may have taken longer than its writing may.
func answer(w http.ResponseWriter, code int, b []byte) {
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(writeTimeout))
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_, _ = w.Write(b)
}

func fail(w http.ResponseWriter, code int, err error) { answer(w, code, errorBody(err)) }

func errorBody(err error) []byte {
	var body ErrorBody
	body.Error.Message = err.Error()
	body.Error.Details = Details(err)
	b, _ := json.Marshal(body)
	return append(b, '\n')
}

// Details are the faults of policies that err names.
func Details(err error) []Detail {
	var pe policy.Errors
	if !errors.As(err, &pe) {
		return nil
	}
	out := make([]Detail, len(pe))
	for i, e := range pe {
		out[i] = Detail{File: e.File, Line: e.Line, Column: e.Column, Field: e.Field, Msg: e.Msg, Hint: e.Hint}
	}
	return out
}

// codeOf is the status for an error of a change.
func codeOf(err error) int {
	var pe policy.Errors
	var big *http.MaxBytesError
	switch {
	case errors.As(err, &pe):
		return http.StatusUnprocessableEntity
	case errors.As(err, &big):
		return http.StatusRequestEntityTooLarge
	case errors.Is(err, ErrNoPolicy), errors.Is(err, ErrNoShadow), errors.Is(err, ErrNoLearning), errors.Is(err, ErrNoSubject), errors.Is(err, ErrNoIsolation), errors.Is(err, store.ErrNoRevision):
		return http.StatusNotFound
	case errors.Is(err, ErrTooStrict), errors.Is(err, ErrInexact), errors.Is(err, ErrCannotCut), errors.Is(err, errOtherShadow), errors.Is(err, ErrLearning), errors.Is(err, ErrNoState), errors.Is(err, ErrPending), errors.Is(err, ErrNotPending), errors.Is(err, errNoOlder):
		return http.StatusConflict
	case errors.Is(err, ErrBadConfirm), errors.Is(err, errBadLearning), errors.Is(err, errBadIsolation):
		return http.StatusBadRequest
	case errors.Is(err, ErrStopping):
		return http.StatusServiceUnavailable
	}
	return http.StatusInternalServerError
}

// getEvents streams events as lines of JSON: the kept ones, at most limit of them, and with follow=1 those to come.
func (a *Agent) getEvents(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	follow := on(q, "follow")
	limit := recentEvents
	if follow {
		limit = 0
	}
	if n, err := strconv.Atoi(q.Get("limit")); err == nil {
		limit = n
	}
	wanted, err := a.wanted(q.Get("where"))
	if err != nil {
		fail(w, whereCode(err), err)
		return
	}
	var recent []*item
	var sub *subscription
	if follow {
		end := a.streaming(w, r)
		if end == nil {
			return
		}
		defer end()
		var err error
		if recent, sub, err = a.hub.subscribe(limit > 0); err != nil {
			fail(w, http.StatusServiceUnavailable, err)
			return
		}
		defer sub.stop()
	} else {
		recent = a.hub.last()
	}
	keep := recent[:0]
	for _, it := range recent {
		if wanted(it.event) {
			keep = append(keep, it)
		}
	}
	keep = keep[max(0, len(keep)-limit):]

	w.Header().Set("Content-Type", ndjson)
	rc := http.NewResponseController(w)
	send := func(it *item, flush bool) error {
		_ = rc.SetWriteDeadline(time.Now().Add(a.patience))
		if _, err := w.Write(it.json()); err != nil {
			return err
		}
		if flush {
			return rc.Flush()
		}
		return nil
	}
	for i, it := range keep {
		if err := send(it, i == len(keep)-1); err != nil {
			return
		}
	}
	if !follow {
		return
	}
	_ = rc.Flush() // the answer's head, so that the reader knows that it is connected
	for {
		it, err := sub.next(r.Context())
		if err != nil {
			return
		}
		if !wanted(it.event) {
			continue
		}
		if err := send(it, len(sub.ch) == 0); err != nil {
			return
		}
	}
}

// wanted tells whether a reader's condition holds for an event. What was lost is always wanted.
func (a *Agent) wanted(where string) (func(*pavise.Event) bool, error) {
	if where == "" {
		return func(*pavise.Event) bool { return true }, nil
	}
	x, err := policy.CompileWhere(where)
	if err != nil {
		return nil, err
	}
	return func(e *pavise.Event) bool {
		ok, err := x.Eval(a.withAncestors(e))
		return err == nil && (ok || e.Op == pavise.OpLost)
	}, nil
}

// whereCode is the status of a condition that cannot be compiled.
func whereCode(err error) int {
	if code := codeOf(err); code != http.StatusInternalServerError {
		return code
	}
	return http.StatusUnprocessableEntity
}

// getProcesses gives the table: images that run, that were replaced by exec, and that ended a while ago.
func (a *Agent) getProcesses(w http.ResponseWriter, _ *http.Request) {
	b := []byte(`{"processes":[`)
	for i, p := range a.table.Snapshot() {
		if i > 0 {
			b = append(b, ',')
		}
		b = p.AppendJSON(b)
	}
	b = append(b, "]}\n"...)
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(b)
}

func (a *Agent) getPolicies(w http.ResponseWriter, _ *http.Request) {
	ps := a.policyStatus("")
	for i := range ps {
		ps[i].Source = ""
	}
	reply(w, http.StatusOK, PolicyList{Generation: a.set.Load().applied.Generation, Policies: ps, Shadow: a.shadowNames()})
}

func (a *Agent) getPolicy(w http.ResponseWriter, r *http.Request) {
	ps := a.policyStatus(r.PathValue("name"))
	if len(ps) == 0 {
		fail(w, http.StatusNotFound, fmt.Errorf("get %q: %w", r.PathValue("name"), ErrNoPolicy))
		return
	}
	reply(w, http.StatusOK, ps[0])
}

// putPolicies applies the policies in the body.
func (a *Agent) putPolicies(w http.ResponseWriter, r *http.Request) {
	ps, ok := a.bodyPolicies(w, r)
	if !ok {
		return
	}
	q, ok := requestOf(w, r)
	if !ok {
		return
	}
	c, err := a.Apply(ps, q)
	a.replyChange(w, c, err)
}

// bodyPolicies reads the policies in the body, at least one, which may bring their sets. The query's file names them in errors. When it returns false, it has
// answered.
func (a *Agent) bodyPolicies(w http.ResponseWriter, r *http.Request) ([]*policy.Policy, bool) {
	body, sets, err := readApply(r)
	if err != nil {
		code := http.StatusBadRequest
		var big *http.MaxBytesError
		if errors.As(err, &big) {
			code, err = http.StatusRequestEntityTooLarge, fmt.Errorf("over %d MiB, the limit of a policy", big.Limit>>20)
			if big.Limit > MaxPolicyBytes {
				err = fmt.Errorf("over %d MiB, the limit of policies with their sets", big.Limit>>20)
			}
		}
		fail(w, code, err)
		return nil, false
	}
	name := filepath.Base(r.URL.Query().Get("file"))
	if name == "." || name == "/" {
		name = "policy.yaml"
	}
	ps, err := a.parse(name, body, sentSets(sets))
	if err == nil && len(ps) == 0 {
		err = errors.New("no policy in the request's body")
	}
	if err != nil {
		fail(w, http.StatusUnprocessableEntity, err)
		return nil, false
	}
	return ps, true
}

// replyChange answers with what a change did to policies.
func (a *Agent) replyChange(w http.ResponseWriter, c *Change, err error) {
	if err != nil {
		fail(w, codeOf(err), err)
		return
	}
	a.review(c) // it is done: nothing waits for this but the answer
	for i := range c.Policies {
		c.Policies[i].Source = ""
	}
	reply(w, http.StatusOK, c)
}

// failBody answers a body that cannot be read.
func failBody(w http.ResponseWriter, err error) {
	code := http.StatusBadRequest
	var big *http.MaxBytesError
	if errors.As(err, &big) {
		code, err = http.StatusRequestEntityTooLarge, fmt.Errorf("the body is over %d MiB", big.Limit>>20)
	}
	fail(w, code, err)
}

// putMode changes the mode of one policy.
func (a *Agent) putMode(w http.ResponseWriter, r *http.Request) {
	var body ModeRequest
	err := readJSON(r, &body, `{"mode": "monitor"} or {"mode": "enforce"}`)
	if err == nil && body.Mode != policy.ModeMonitor && body.Mode != policy.ModeEnforce {
		err = fmt.Errorf("mode %q: the body is not {\"mode\": \"monitor\"} or {\"mode\": \"enforce\"}", body.Mode)
	}
	if err != nil {
		failBody(w, err)
		return
	}
	q, ok := requestOf(w, r)
	if !ok {
		return
	}
	c, err := a.SetMode(r.PathValue("name"), body.Mode, q)
	a.replyChange(w, c, err)
}

func (a *Agent) deletePolicy(w http.ResponseWriter, r *http.Request) {
	q, ok := requestOf(w, r)
	if !ok {
		return
	}
	c, err := a.Delete(r.PathValue("name"), q)
	if err != nil {
		fail(w, codeOf(err), err)
		return
	}
	reply(w, http.StatusOK, c)
}

func (a *Agent) getLog(w http.ResponseWriter, _ *http.Request) {
	if a.cfg.LogLevel == nil {
		fail(w, http.StatusNotFound, errors.New("the level of this agent's log is fixed"))
		return
	}
	reply(w, http.StatusOK, LogLevel{Level: strings.ToLower(a.cfg.LogLevel.Level().String())})
}

func (a *Agent) putLog(w http.ResponseWriter, r *http.Request) {
	const want = `{"level": "debug"}, or info, warn or error`
	var body LogLevel
	var level slog.Level
	err := readJSON(r, &body, want)
	if err == nil && level.UnmarshalText([]byte(body.Level)) != nil {
		err = fmt.Errorf("level %q: the body is not %s", body.Level, want)
	}
	if err != nil {
		failBody(w, err)
		return
	}
	if a.cfg.LogLevel != nil {
		a.cfg.LogLevel.Set(level)
		a.log.Warn("the level of the log was set", "level", level, "by_uid", connOf(r.Context()).peer.UID)
	}
	a.getLog(w, r)
}

func (a *Agent) getDoctor(w http.ResponseWriter, _ *http.Request) {
	keep := keepInfo(a.kernel.Keep())
	reply(w, http.StatusOK, &Doctor{Agent: true, Host: ReadHost(), Ops: DoctorOps(a.kernel.Doctor()), Keep: &keep})
}

func (a *Agent) status() *Status {
	set := a.set.Load()
	s := &Status{
		Version: a.cfg.Version, PID: os.Getpid(), Started: a.started, Uptime: time.Since(a.started), Kernel: kernelRelease(),
		Socket: a.cfg.Socket, Generation: set.applied.Generation, Revision: a.revision(), ConfirmBy: a.confirmBy(), Policies: []PolicyMode{}, Rules: len(set.image.Rules),
		Filtered: a.filtered.Load(), Undecoded: a.undecoded.Load(), UnnamedRules: a.unresolved.Load(),
		SubscriberLost: a.hub.dropped.Load(), Refused: a.conns.refused.Load() + a.streams.refused.Load(), Subscribers: a.hub.subscribers(), Processes: len(a.table.Snapshot()), RSS: rss(),
	}
	s.History = a.historyStatus()
	s.Flows = a.flowStatus()
	s.Recheck = a.rechecked.Load()
	s.Keep = keepInfo(a.kernel.Keep())
	cs := a.containers.Stats()
	s.Containers = ContainerCount{Known: cs.Known, Unknown: cs.Unknown, Failed: cs.Failed, Untrusted: cs.Untrusted, Refused: cs.Refused}
	if why := a.behind.Load(); why != nil {
		s.Containers.Behind = *why
	}
	for _, p := range set.policies {
		s.Policies = append(s.Policies, PolicyMode{p.Name, string(p.Mode)})
	}
	m := a.kernel.Machine()
	c, _ := a.kernel.Counters()
	s.NoScratch, s.NoIdentity, s.NoTexts, s.NoCount, s.NoEngine, s.NoName, s.NoListener, s.Missed, s.MapBytes = c.NoScratch, c.NoIdentity, c.NoTexts, c.NoCount, c.NoEngine, c.NoName, c.NoListener, c.Missed, c.MapBytes
	for op := pavise.OpExec; op <= pavise.OpExit; op++ {
		k := c.Ops[op]
		s.Ops = append(s.Ops, OpCount{
			Op: op.String(), Rung: m[op].Rung.String(), Seen: k.Seen, Delivered: k.Delivered, Folded: k.Folded, Lost: k.Lost,
			Received: a.received[op].Load(),
		})
	}
	return s
}
