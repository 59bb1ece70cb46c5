package agent

import (
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pavise-project/pavise"
	"github.com/pavise-project/pavise/policy"
	"github.com/pavise-project/pavise/policy/learn"
)

//go:generate go test -run TestOpenAPI . -update

// The OpenAPI document of the routes. TestOpenAPI makes it of them, of the types of their answers, and of the comments in the source.
//
//go:embed openapi.json
var openAPI []byte

// route is one request that the API answers. All that is known of it stands here: what serves it, who may use it, and what the OpenAPI document says.
type route struct {
	method, path string
	role         Role
	id           string // operationId
	doc          string
	query        []param // all others are refused
	body         any     // nil for none, policiesBody, or a value of the type that its JSON has
	answer       any     // a value of the type that its JSON has; nil when it is none of ours
	kind         string  // of the answer, when it is not JSON
	fails        []int   // statuses of errors, beside those of alwaysFails
	port         bool    // it is also on the loopback port, for everybody
	serve        http.HandlerFunc
}

// policiesBody is the body of a request that sends policies: YAML, or with the sets that it names as parts.
type policiesBody struct{}

const ndjson = "application/x-ndjson"

// alwaysFails are the errors that every request may get: a query that is wrong, a role that is missing, a fault of the agent's, too many at once.
var alwaysFails = []int{http.StatusBadRequest, http.StatusForbidden, http.StatusInternalServerError, http.StatusServiceUnavailable}

// param is a parameter of a query.
type param struct {
	name string
	kind paramKind
	doc  string
	role Role // that it needs, when it is more than the route's
	many bool // it may come more than once
}

type paramKind uint8

const (
	paramText     paramKind = iota
	paramSwitch             // 1 and true, 0 and false
	paramCount              // 0 or more
	paramDuration           // as 60s
	paramTime               // as 2026-01-02T15:04:05Z
	paramInterval           // a duration of minInterval to maxInterval
	paramWhere              // a CEL condition on an event
)

// check says what is wrong with a value.
func (p *param) check(v string) error {
	switch p.kind {
	case paramSwitch:
		if !slices.Contains([]string{"1", "true", "0", "false"}, v) {
			return fmt.Errorf("%s=%q: want 1 or 0", p.name, v)
		}
	case paramCount:
		if n, err := strconv.Atoi(v); err != nil || n < 0 {
			return fmt.Errorf("%s=%q: want a number, 0 or more", p.name, v)
		}
	case paramDuration:
		if _, err := time.ParseDuration(v); err != nil {
			return fmt.Errorf("%s=%q: want a duration, as 60s", p.name, v)
		}
	case paramTime:
		if _, err := time.Parse(time.RFC3339Nano, v); err != nil {
			return fmt.Errorf("%s=%q: want a time as 2026-01-02T15:04:05Z", p.name, v)
		}
	case paramInterval:
		if d, err := time.ParseDuration(v); err != nil || d < minInterval || d > maxInterval {
			return fmt.Errorf("%s=%q: want a duration from %s to %s, as 2s", p.name, v, minInterval, maxInterval)
		}
	}
	return nil
}

// on reports whether a switch is on.
func on(q url.Values, name string) bool { return q.Get(name) == "1" || q.Get(name) == "true" }

// The parameters that several routes have.
var (
	fileParam    = param{name: "file", doc: "The name by which errors name the policy file."}
	changeParams = []param{
		{name: "dry-run", kind: paramSwitch, doc: "Only say what would be."},
		{name: "confirm-within", kind: paramDuration, doc: "Take the change back unless it is confirmed within this time, 1s to 24h."},
	}
)

// routeList is the API. A request that is not in it is refused.
func (a *Agent) routeList() []route {
	const notFound, conflict, tooLarge, wrongType, badPolicy = http.StatusNotFound, http.StatusConflict, http.StatusRequestEntityTooLarge, http.StatusUnsupportedMediaType, http.StatusUnprocessableEntity
	changes := []int{notFound, conflict, tooLarge, wrongType, badPolicy}
	return []route{
		{
			method: "GET", path: "/healthz", role: RoleRead, port: true, id: "health", doc: "Whether the agent answers.", answer: Health{},
			serve: func(w http.ResponseWriter, _ *http.Request) { reply(w, http.StatusOK, Health{Status: "ok"}) },
		},
		{
			method: "GET", path: "/readyz", role: RoleRead, port: true, id: "ready", doc: "Whether the agent does what it is for. The status is 503, with the same body, when it does not.",
			answer: Readiness{}, serve: a.ready,
		},
		{
			method: "GET", path: "/metrics", role: RoleRead, port: true, id: "metrics", doc: "Metrics, for Prometheus.", kind: "text/plain",
			serve: a.metricsHandler().ServeHTTP,
		},
		{
			method: "GET", path: "/v1/openapi.json", role: RoleRead, id: "openapi", doc: "This document.", answer: map[string]any{},
			serve: func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", "application/json")
				_, _ = w.Write(openAPI)
			},
		},
		{
			method: "GET", path: "/v1/status", role: RoleRead, id: "status", doc: "How the agent is, and which role you have.", answer: Status{},
			serve: func(w http.ResponseWriter, r *http.Request) {
				s := a.status()
				s.Peer = connOf(r.Context()).asPeer()
				reply(w, http.StatusOK, s)
			},
		},
		{
			method: "GET", path: "/v1/doctor", role: RoleRead, id: "doctor", doc: "What this machine can do, by which rung, and why not more.", answer: Doctor{},
			serve: a.getDoctor,
		},
		{
			method: "GET", path: "/v1/events", role: RoleRead, id: "events", answer: pavise.Event{}, kind: ndjson, fails: []int{badPolicy},
			doc: "The last events, and with follow those to come, one a line. A reader that is too slow misses events: an event agent.lost says how many. " +
				"One that takes nothing for 10 seconds is cut off.",
			query: []param{
				{name: "follow", kind: paramSwitch, doc: "Go on with the events to come."},
				{name: "limit", kind: paramCount, doc: "At most this many of the kept events; without it all, or none with follow."},
				{name: "where", kind: paramWhere, doc: "A condition in CEL; other events are left out, but never what was lost."},
			},
			serve: a.getEvents,
		},
		{
			method: "GET", path: "/v1/flows", role: RoleRead, id: "flows", answer: pavise.Event{}, kind: ndjson, fails: []int{badPolicy, conflict},
			doc: "The flows that are open, as events net.flow, one a line. With follow, those that end from now on, those that were denied, and every ten seconds those that go on.",
			query: []param{
				{name: "follow", kind: paramSwitch, doc: "What happens from now on."},
				{name: "begun", kind: paramSwitch, doc: "With follow: also the first report of a flow that goes on."},
				{name: "ended", kind: paramSwitch, doc: "Without follow: also the last flows that ended, before the others."},
				{name: "where", kind: paramWhere, doc: "A condition in CEL; other flows are left out."},
			},
			serve: a.getFlows,
		},
		{
			method: "GET", path: "/v1/events/{id}/why", role: RoleRead, id: "why", doc: "The rules that judged a kept event, each condition as a tree with its results and values.",
			answer: Why{}, fails: []int{notFound}, serve: a.getWhy,
		},
		{
			method: "GET", path: "/v1/history", role: RoleRead, id: "history", answer: HistoryLine{}, kind: ndjson, fails: []int{conflict, badPolicy},
			doc: "A search of the history on disk: lines with an event each, or a group with group; with progress now and then; the last one with end.",
			query: []param{
				{name: "from", kind: paramTime, doc: "Events from this time on."},
				{name: "to", kind: paramTime, doc: "Events before this time."},
				{name: "where", kind: paramWhere, doc: "A condition in CEL."},
				{name: "group", many: true, doc: "A field by which events are counted; may be given more than once."},
				{name: "limit", kind: paramCount, doc: "At most this many events or groups."},
			},
			serve: a.getHistory,
		},
		{
			method: "GET", path: "/v1/top", role: RoleRead, id: "top", answer: Top{}, kind: ndjson,
			doc: "What goes on, a line for each interval: rates, rules, the busiest processes, loss, memory, and with cost what each hook costs.",
			query: []param{
				{name: "interval", kind: paramInterval, doc: "The time between two lines, 200ms to 1h; 2s without it."},
				{name: "count", kind: paramCount, doc: "End after this many lines; without it, or with 0, go on."},
				{name: "rows", kind: paramCount, doc: "At most this many processes and rules a line, the busiest; 20 without it, 0 for none, and never more than 1000."},
				{name: "cost", kind: paramSwitch, role: RoleWrite, doc: "Have the kernel time the hooks. While a reader asks for this, each run of every BPF program of the machine takes some tens of nanoseconds longer."},
			},
			serve: a.getTop,
		},
		{
			method: "GET", path: "/v1/processes", role: RoleRead, id: "processes", doc: "The process table, with what ended or was replaced a while ago.", answer: ProcessList{},
			serve: a.getProcesses,
		},
		{
			method: "GET", path: "/v1/policies", role: RoleRead, id: "policies", doc: "The active policies, rule by rule.", answer: PolicyList{}, serve: a.getPolicies,
		},
		{
			method: "PUT", path: "/v1/policies", role: RoleWrite, id: "applyPolicies", body: policiesBody{}, answer: Change{}, fails: changes, query: append([]param{fileParam}, changeParams...),
			doc: "Adds policies or replaces those of the same names, all or none, in one switch.", serve: a.putPolicies,
		},
		{
			method: "GET", path: "/v1/policies/{name}", role: RoleRead, id: "policy", doc: "One policy, with its source.", answer: PolicyStatus{}, fails: []int{notFound}, serve: a.getPolicy,
		},
		{
			method: "DELETE", path: "/v1/policies/{name}", role: RoleWrite, id: "deletePolicy", doc: "Takes a policy away.", answer: Change{}, fails: changes, query: changeParams,
			serve: a.deletePolicy,
		},
		{
			method: "PUT", path: "/v1/policies/{name}/mode", role: RoleWrite, id: "setMode", doc: "Puts a policy into a mode.", body: ModeRequest{}, answer: Change{}, fails: changes,
			query: changeParams, serve: a.putMode,
		},
		{
			method: "GET", path: "/v1/revisions", role: RoleRead, id: "revisions", doc: "The revisions that are kept, oldest first, without their documents.", answer: RevisionList{},
			fails: []int{conflict}, serve: a.getRevisions,
		},
		{
			method: "GET", path: "/v1/revisions/{number}", role: RoleRead, id: "revision", doc: "One revision, with its documents.", answer: RevisionStatus{},
			fails: []int{notFound, conflict}, serve: a.getRevision,
		},
		{
			method: "POST", path: "/v1/revisions/{number}/rollback", role: RoleWrite, id: "rollback", answer: Change{}, fails: changes, query: changeParams,
			doc: "Puts the contents of a revision into force again; 0 is the one before.", serve: a.postRollback,
		},
		{
			method: "POST", path: "/v1/confirm", role: RoleWrite, id: "confirm", doc: "Keeps a change that was made with confirm-within.", answer: Confirmed{}, fails: []int{conflict},
			serve: a.postConfirm,
		},
		{
			method: "GET", path: "/v1/shadow", role: RoleRead, id: "shadow", doc: "The candidate that is judged beside the active policies, and what it found.", answer: Shadow{}, serve: a.getShadow,
		},
		{
			method: "PUT", path: "/v1/shadow", role: RoleWrite, id: "setShadow", body: policiesBody{}, answer: Shadow{}, fails: changes, query: []param{fileParam},
			doc: "Has the active policies, with those of the body added or replaced, judged beside the active ones, without effect.", serve: a.putShadow,
		},
		{
			method: "POST", path: "/v1/shadow/promote", role: RoleWrite, id: "promote", answer: Change{}, fails: changes,
			query: append([]param{{name: "max-stricter", kind: paramCount, doc: "Refuse when the candidate was stricter than the active policies more often than this."}}, changeParams...),
			doc:   "Makes the policies of the candidate active, all or none.", serve: a.postPromote,
		},
		{
			method: "DELETE", path: "/v1/shadow", role: RoleWrite, id: "endShadow", doc: "Ends the candidate.", answer: Shadow{}, fails: []int{notFound}, serve: a.deleteShadow,
		},
		{
			method: "GET", path: "/v1/learning", role: RoleRead, id: "learning", doc: "What is being learned of a subject, or was last.", answer: Learning{}, fails: []int{notFound}, serve: a.getLearning,
		},
		{
			method: "PUT", path: "/v1/learning", role: RoleWrite, id: "startLearning", doc: "Begins to note what a subject does.", body: LearnRequest{}, answer: Learning{}, fails: changes,
			serve: a.putLearning,
		},
		{
			method: "DELETE", path: "/v1/learning", role: RoleWrite, id: "endLearning", doc: "Ends that; what was seen is kept.", answer: Learning{}, fails: []int{notFound, conflict},
			serve: a.deleteLearning,
		},
		{
			method: "GET", path: "/v1/learning/acts", role: RoleRead, id: "learned", doc: "What was seen of the subject: acts that differ, one a line.", answer: learn.Act{}, kind: ndjson,
			fails: []int{notFound}, serve: a.getLearned,
		},
		{
			method: "GET", path: "/v1/isolations", role: RoleRead, id: "isolations", doc: "The subjects that are cut off from the network.", answer: IsolationList{}, serve: a.getIsolations,
		},
		{
			method: "POST", path: "/v1/isolations", role: RoleWrite, id: "isolate", body: IsolationRequest{}, answer: Isolated{}, fails: changes, query: changeParams,
			doc: "Cuts a subject off from the network: by a policy that the agent writes, and by ending what connections it has.", serve: a.postIsolation,
		},
		{
			method: "DELETE", path: "/v1/isolations/{name}", role: RoleWrite, id: "release", doc: "Lets an isolated subject go.", answer: Change{}, fails: changes, query: changeParams,
			serve: a.deleteIsolation,
		},
		{
			method: "GET", path: "/v1/log", role: RoleRead, id: "log", doc: "The least level of the agent's log.", answer: LogLevel{}, fails: []int{notFound}, serve: a.getLog,
		},
		{
			method: "PUT", path: "/v1/log", role: RoleAdmin, id: "setLog", doc: "Sets the least level of the agent's log, until it ends.", body: LogLevel{}, answer: LogLevel{},
			fails: []int{notFound, tooLarge, wrongType}, serve: a.putLog,
		},
	}
}

// pathParams are what stands in the paths.
var pathParams = map[string]struct {
	doc    string
	number bool
}{
	"id":     {"The number of an event.", true},
	"name":   {"The name of a policy.", false},
	"number": {"The number of a revision.", true},
}

// routes serves the routes to those who have their roles.
func (a *Agent) routes() http.Handler {
	r := a.roles
	mux := http.NewServeMux()
	methods := map[string]bool{}
	for _, rt := range a.routeList() {
		mux.HandleFunc(rt.method+" "+rt.path, r.guarded(rt.method+" "+rt.path, rt.role, rt.handler(r)))
		methods[rt.method] = true
	}
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if _, pattern := mux.Handler(req); pattern != "" {
			mux.ServeHTTP(w, req)
			return
		}
		if c := connOf(req.Context()); c.role == RoleNone {
			fail(w, http.StatusForbidden, r.refusal(req.Method+" "+req.URL.Path, RoleRead, c.peer, c.role))
			return
		}
		var allow []string
		for m := range methods {
			other := &http.Request{Method: m, URL: req.URL, Host: req.Host}
			if _, pattern := mux.Handler(other); pattern != "" {
				allow = append(allow, m)
			}
		}
		if len(allow) == 0 {
			fail(w, http.StatusNotFound, fmt.Errorf("no %s %s here; GET /v1/openapi.json says what there is", req.Method, req.URL.Path))
			return
		}
		slices.Sort(allow)
		w.Header().Set("Allow", strings.Join(allow, ", "))
		fail(w, http.StatusMethodNotAllowed, fmt.Errorf("no %s %s here: %s can be asked", req.Method, req.URL.Path, strings.Join(allow, ", ")))
	})
}

// handler checks what can be said of a request without knowing what it is for.
func (rt *route) handler(roles *roles) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		q, err := url.ParseQuery(r.URL.RawQuery)
		if err != nil {
			fail(w, http.StatusBadRequest, fmt.Errorf("read the query: %w", err))
			return
		}
		if err := rt.checkQuery(q); err != nil {
			fail(w, http.StatusBadRequest, err)
			return
		}
		for _, p := range rt.query {
			if c := connOf(r.Context()); q.Get(p.name) != "" && c.role < p.role {
				fail(w, http.StatusForbidden, roles.refusal(fmt.Sprintf("%s %s?%s", rt.method, rt.path, p.name), p.role, c.peer, c.role))
				return
			}
		}
		limit := int64(MaxPolicyBytes)
		if rt.body != nil {
			kind, err := rt.bodyKind(r.Header.Get("Content-Type"))
			if err != nil {
				fail(w, http.StatusUnsupportedMediaType, err)
				return
			}
			if kind == "multipart/form-data" {
				limit = MaxApplyBytes
			}
		}
		r.Body = http.MaxBytesReader(w, r.Body, limit)
		rt.serve(w, r)
	}
}

func (rt *route) checkQuery(q url.Values) error {
	for name, values := range q {
		i := slices.IndexFunc(rt.query, func(p param) bool { return p.name == name })
		if i < 0 {
			known := make([]string, len(rt.query))
			for i, p := range rt.query {
				known[i] = p.name
			}
			if len(known) == 0 {
				return fmt.Errorf("no parameter %q here: %s %s takes none", name, rt.method, rt.path)
			}
			return fmt.Errorf("no parameter %q here: %s %s takes %s", name, rt.method, rt.path, strings.Join(known, ", "))
		}
		if len(values) > 1 && !rt.query[i].many {
			return fmt.Errorf("%s is given %d times", name, len(values))
		}
		for _, v := range values {
			if err := rt.query[i].check(v); err != nil {
				return err
			}
		}
	}
	return nil
}

// bodyKind is what a body says that it is. The kinds that are no kinds, which clients add by themselves, are taken.
func (rt *route) bodyKind(header string) (string, error) {
	taken := []string{"application/json"}
	if rt.body == (policiesBody{}) {
		taken = []string{"application/yaml", "multipart/form-data", "application/json"}
	}
	kind, _, err := mime.ParseMediaType(header)
	switch {
	case header == "", err == nil && slices.Contains(taken, kind):
		return kind, nil
	case slices.Contains([]string{"text/plain", "text/yaml", "application/x-yaml", "application/octet-stream", "application/x-www-form-urlencoded"}, kind):
		return kind, nil
	}
	return "", fmt.Errorf("content type %q: %s %s takes %s", header, rt.method, rt.path, strings.Join(taken, ", "))
}

// readJSON reads a body of one JSON value, and nothing that it does not know.
func readJSON(r *http.Request, into any, want string) error {
	d := json.NewDecoder(r.Body)
	d.DisallowUnknownFields()
	err := d.Decode(into)
	if err == nil {
		if _, err = d.Token(); errors.Is(err, io.EOF) {
			return nil
		}
		err = errors.New("there is more after it")
	}
	var big *http.MaxBytesError
	if errors.As(err, &big) {
		return err
	}
	return fmt.Errorf("the body is not %s: %s", want, strings.TrimPrefix(err.Error(), "json: "))
}

// ModeRequest is the body of PUT /v1/policies/NAME/mode.
type ModeRequest struct {
	Mode policy.Mode `json:"mode"`
}

// LogLevel is the body and the answer of PUT /v1/log.
type LogLevel struct {
	Level string `json:"level"` // debug, info, warn or error
}
