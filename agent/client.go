package agent

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/pavise-project/pavise"
	"github.com/pavise-project/pavise/policy"
	"github.com/pavise-project/pavise/proc"
)

// Errors of a client that got no answer.
var (
	ErrNoAgent    = errors.New("no agent answers")
	ErrNotAllowed = errors.New("not allowed to use the agent")
)

// APIError is an answer that is not a success.
type APIError struct {
	Status  int
	Message string
	Details []Detail
}

// Error is the message; a policy's faults stand in it one per line.
func (e *APIError) Error() string { return e.Message }

// Is makes a 403 an ErrNotAllowed and a 404 an ErrNoPolicy.
func (e *APIError) Is(target error) bool {
	return target == ErrNotAllowed && e.Status == http.StatusForbidden || target == ErrNoPolicy && e.Status == http.StatusNotFound
}

// BadPolicy reports whether the request was refused for what it said.
func (e *APIError) BadPolicy() bool {
	return e.Status == http.StatusUnprocessableEntity || e.Status == http.StatusBadRequest || e.Status == http.StatusRequestEntityTooLarge
}

// Client talks to an agent over its socket.
type Client struct {
	socket string
	http   *http.Client
}

// NewClient makes a client of the agent at socket. It does not connect yet.
func NewClient(socket string) *Client {
	return &Client{socket: socket, http: &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dial(ctx, socket)
		},
		ResponseHeaderTimeout: 2 * time.Minute, // a slow machine's first use of many operations
	}}}
}

// dial connects. When more wait at the socket than it can hold, it tries again for some seconds.
func dial(ctx context.Context, socket string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	for {
		c, err := new(net.Dialer).DialContext(ctx, "unix", socket)
		if !errors.Is(err, syscall.EAGAIN) {
			return c, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// Close lets the connections go.
func (c *Client) Close() { c.http.CloseIdleConnections() }

func (c *Client) do(ctx context.Context, method, path string, q url.Values, body io.Reader) (*http.Response, error) {
	u := url.URL{Scheme: "http", Host: "pavise", Path: path, RawQuery: q.Encode()}
	req, err := http.NewRequestWithContext(ctx, method, u.String(), body)
	if err != nil {
		return nil, err
	}
	if t, ok := body.(*typedBody); ok {
		req.Header.Set("Content-Type", t.kind)
	}
	res, err := c.http.Do(req)
	switch {
	case err == nil:
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return nil, fmt.Errorf("%w at %s: start one with: pavise run", ErrNoAgent, c.socket)
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("%w at %s: be root, or a member of a group it was started with (--read-group, --write-group, --admin-group)", ErrNotAllowed, c.socket)
	default:
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, fmt.Errorf("%w at %s: %w", ErrNoAgent, c.socket, errors.Unwrap(err))
	}
	if res.StatusCode < 300 {
		return res, nil
	}
	defer res.Body.Close()
	b, _ := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	var eb ErrorBody
	if err := json.Unmarshal(b, &eb); err != nil || eb.Error.Message == "" {
		eb.Error.Message = res.Status
	}
	return nil, &APIError{Status: res.StatusCode, Message: eb.Error.Message, Details: eb.Error.Details}
}

func (c *Client) call(ctx context.Context, method, path string, q url.Values, body io.Reader, into any) error {
	res, err := c.do(ctx, method, path, q, body)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if err := json.NewDecoder(res.Body).Decode(into); err != nil {
		return fmt.Errorf("read the agent's answer: %w", err)
	}
	return nil
}

// Status asks how the agent is.
func (c *Client) Status(ctx context.Context) (*Status, error) {
	var s Status
	return &s, c.call(ctx, "GET", "/v1/status", nil, nil, &s)
}

// Doctor asks what the agent's machine can do.
func (c *Client) Doctor(ctx context.Context) (*Doctor, error) {
	var d Doctor
	return &d, c.call(ctx, "GET", "/v1/doctor", nil, nil, &d)
}

// Policies asks for the policies and the generation that is active.
func (c *Client) Policies(ctx context.Context) ([]PolicyStatus, uint32, error) {
	var p struct {
		Generation uint32
		Policies   []PolicyStatus
	}
	err := c.call(ctx, "GET", "/v1/policies", nil, nil, &p)
	return p.Policies, p.Generation, err
}

// Policy asks for one policy, with its source.
func (c *Client) Policy(ctx context.Context, name string) (*PolicyStatus, error) {
	var p PolicyStatus
	return &p, c.call(ctx, "GET", "/v1/policies/"+name, nil, nil, &p)
}

// Apply sends policies, and the sets that they name. File names them in errors.
func (c *Client) Apply(ctx context.Context, file string, data []byte, sets map[string][]byte, o ApplyOptions) (*Change, error) {
	body, err := applyBody(data, sets)
	if err != nil {
		return nil, err
	}
	q := o.query()
	q.Set("file", filepath.Base(file))
	var ch Change
	return &ch, c.call(ctx, "PUT", "/v1/policies", q, body, &ch)
}

// ApplyOptions say how a change is to be made.
type ApplyOptions struct {
	DryRun        bool
	ConfirmWithin time.Duration // 0: it stays without being confirmed
}

func (o ApplyOptions) query() url.Values {
	q := url.Values{}
	if o.DryRun {
		q.Set("dry-run", "1")
	}
	if o.ConfirmWithin != 0 {
		q.Set("confirm-within", o.ConfirmWithin.String())
	}
	return q
}

// Revisions asks for the revisions, oldest first, and for the damaged ones.
func (c *Client) Revisions(ctx context.Context) ([]RevisionStatus, []string, error) {
	var r struct {
		Revisions []RevisionStatus
		Damaged   []string
	}
	err := c.call(ctx, "GET", "/v1/revisions", nil, nil, &r)
	return r.Revisions, r.Damaged, err
}

// Revision asks for one revision, with its policies.
func (c *Client) Revision(ctx context.Context, number uint64) (*RevisionStatus, error) {
	var r RevisionStatus
	return &r, c.call(ctx, "GET", "/v1/revisions/"+strconv.FormatUint(number, 10), nil, nil, &r)
}

// Rollback goes back to a revision; 0 is the one before.
func (c *Client) Rollback(ctx context.Context, number uint64, o ApplyOptions) (*Change, error) {
	var ch Change
	return &ch, c.call(ctx, "POST", "/v1/revisions/"+strconv.FormatUint(number, 10)+"/rollback", o.query(), nil, &ch)
}

// Promote makes the shadow's policies active; mostStricter is how often it may have been stricter than the active ones, below 0 for any number.
func (c *Client) Promote(ctx context.Context, mostStricter int64, o ApplyOptions) (*Change, error) {
	q := o.query()
	if mostStricter >= 0 {
		q.Set("max-stricter", strconv.FormatInt(mostStricter, 10))
	}
	var ch Change
	return &ch, c.call(ctx, "POST", "/v1/shadow/promote", q, nil, &ch)
}

// Confirm keeps the revision that waits for it, and returns its number.
func (c *Client) Confirm(ctx context.Context) (uint64, error) {
	var r struct{ Revision uint64 }
	err := c.call(ctx, "POST", "/v1/confirm", nil, nil, &r)
	return r.Revision, err
}

// SetMode puts a policy into a mode: monitor or enforce.
func (c *Client) SetMode(ctx context.Context, name, mode string, dryRun bool) (*Change, error) {
	q := url.Values{}
	if dryRun {
		q.Set("dry-run", "1")
	}
	body, err := json.Marshal(map[string]string{"mode": mode})
	if err != nil {
		return nil, err
	}
	var ch Change
	return &ch, c.call(ctx, "PUT", "/v1/policies/"+name+"/mode", q, bytes.NewReader(body), &ch)
}

// Delete takes a policy away.
func (c *Client) Delete(ctx context.Context, name string) (*Change, error) {
	var ch Change
	return &ch, c.call(ctx, "DELETE", "/v1/policies/"+name, nil, nil, &ch)
}

// Isolations asks who is cut off from the network.
func (c *Client) Isolations(ctx context.Context) ([]Isolation, error) {
	var l IsolationList
	err := c.call(ctx, "GET", "/v1/isolations", nil, nil, &l)
	return l.Isolations, err
}

// Isolate cuts a subject off.
func (c *Client) Isolate(ctx context.Context, r *IsolationRequest, o ApplyOptions) (*Isolated, error) {
	body, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	var i Isolated
	return &i, c.call(ctx, "POST", "/v1/isolations", o.query(), bytes.NewReader(body), &i)
}

// Release lets an isolated subject go.
func (c *Client) Release(ctx context.Context, name string, o ApplyOptions) (*Change, error) {
	var ch Change
	return &ch, c.call(ctx, "DELETE", "/v1/isolations/"+url.PathEscape(name), o.query(), nil, &ch)
}

// Shadow asks for the candidate.
func (c *Client) Shadow(ctx context.Context) (*Shadow, error) {
	var s Shadow
	return &s, c.call(ctx, "GET", "/v1/shadow", nil, nil, &s)
}

// SetShadow has the active policies, with those in data added or replaced, judged beside the active ones; sets are those that they name. File names
// them in errors.
func (c *Client) SetShadow(ctx context.Context, file string, data []byte, sets map[string][]byte) (*Shadow, error) {
	body, err := applyBody(data, sets)
	if err != nil {
		return nil, err
	}
	var s Shadow
	return &s, c.call(ctx, "PUT", "/v1/shadow", url.Values{"file": {filepath.Base(file)}}, body, &s)
}

// EndShadow ends that, and returns what it has found.
func (c *Client) EndShadow(ctx context.Context) (*Shadow, error) {
	var s Shadow
	return &s, c.call(ctx, "DELETE", "/v1/shadow", nil, nil, &s)
}

// Processes asks for the process table.
func (c *Client) Processes(ctx context.Context) ([]json.RawMessage, error) {
	var p struct{ Processes []json.RawMessage }
	err := c.call(ctx, "GET", "/v1/processes", nil, nil, &p)
	return p.Processes, err
}

// EventQuery says which events are asked for.
type EventQuery struct {
	Follow bool
	Where  string // CEL; empty for all
	Limit  int    // of the kept ones; below 0: the agent's default
}

// Events calls fn for each event's line of JSON (valid during the call) until the stream, ctx or fn ends.
func (c *Client) Events(ctx context.Context, eq EventQuery, fn func(line []byte) error) error {
	q := url.Values{}
	if eq.Follow {
		q.Set("follow", "1")
	}
	if eq.Where != "" {
		q.Set("where", eq.Where)
	}
	if eq.Limit >= 0 {
		q.Set("limit", strconv.Itoa(eq.Limit))
	}
	return c.lines(ctx, "/v1/events", q, fn)
}

// Flows calls fn for each flow's line of JSON, which is an event (valid during the call), until the answer, ctx or fn ends it.
func (c *Client) Flows(ctx context.Context, fq FlowQuery, fn func(line []byte) error) error {
	q := url.Values{}
	for name, on := range map[string]bool{"follow": fq.Follow, "begun": fq.Begun, "ended": fq.Ended} {
		if on {
			q.Set(name, "1")
		}
	}
	if fq.Where != "" {
		q.Set("where", fq.Where)
	}
	return c.lines(ctx, "/v1/flows", q, fn)
}

// lines calls fn for each line of a stream.
func (c *Client) lines(ctx context.Context, path string, q url.Values, fn func(line []byte) error) error {
	res, err := c.do(ctx, "GET", path, q, nil)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	s := bufio.NewScanner(res.Body)
	s.Buffer(make([]byte, 64<<10), 4<<20)
	for s.Scan() {
		if err := fn(s.Bytes()); err != nil {
			return err
		}
	}
	if err := s.Err(); err != nil && ctx.Err() == nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	return nil
}

// History calls fn for each line of the answer, until its end, ctx or fn ends it.
func (c *Client) History(ctx context.Context, hq HistoryQuery, fn func(*HistoryLine) error) error {
	q := url.Values{"group": hq.GroupBy}
	for name, at := range map[string]time.Time{"from": hq.From, "to": hq.To} {
		if !at.IsZero() {
			q.Set(name, at.UTC().Format(time.RFC3339Nano))
		}
	}
	if hq.Where != "" {
		q.Set("where", hq.Where)
	}
	if hq.Limit >= 0 {
		q.Set("limit", strconv.FormatInt(hq.Limit, 10))
	}
	res, err := c.do(ctx, "GET", "/v1/history", q, nil)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	s := bufio.NewScanner(res.Body)
	s.Buffer(make([]byte, 64<<10), 4<<20)
	ended := false
	for s.Scan() {
		var l HistoryLine
		if err := json.Unmarshal(s.Bytes(), &l); err != nil {
			return fmt.Errorf("read the agent's answer: %w", err)
		}
		if ended = l.End != nil; ended && l.End.Error != "" {
			return fmt.Errorf("search the history: %s", l.End.Error)
		}
		if err := fn(&l); err != nil {
			return err
		}
	}
	if err := s.Err(); err != nil && ctx.Err() == nil {
		return fmt.Errorf("read the history: %w", err)
	}
	if !ended && ctx.Err() == nil {
		return errors.New("read the history: the agent's answer was cut off")
	}
	return ctx.Err()
}

// TopQuery says what of GET /v1/top is asked for.
type TopQuery struct {
	Interval time.Duration
	Count    int  // of lines; 0: until ctx ends
	Rows     int  // of processes and rules
	Cost     bool // have the kernel time the hooks
}

// Top calls fn for each interval, with a line of JSON (valid during the call), until the stream, ctx or fn ends.
func (c *Client) Top(ctx context.Context, tq TopQuery, fn func(line []byte) error) error {
	q := url.Values{"interval": {tq.Interval.String()}, "rows": {strconv.Itoa(tq.Rows)}, "count": {strconv.Itoa(tq.Count)}}
	if tq.Cost {
		q.Set("cost", "1")
	}
	return c.lines(ctx, "/v1/top", q, fn)
}

// Why asks why an event was judged as it was.
func (c *Client) Why(ctx context.Context, id uint64) (*Why, error) {
	var w Why
	return &w, c.call(ctx, "GET", "/v1/events/"+strconv.FormatUint(id, 10)+"/why", nil, nil, &w)
}

// Machine is what the agent's machine can do, for compiling without it. Names of users are looked up here.
func (d *Doctor) Machine() *policy.Machine {
	users := proc.NewUsers("/etc/passwd", "/etc/group", nil)
	m := &policy.Machine{LookupUser: users.LookupUser, LookupGroup: users.LookupGroup}
	for _, o := range d.Ops {
		for op := range pavise.OpNames {
			if strings.EqualFold(pavise.OpNames[op], o.Op) {
				m.Ops[op] = policy.Support{
					Rung: rungByName(o.Rung), Deny: o.Deny, Kill: o.Kill, Why: o.Why, Missing: dimsByName(o.Missing), MissingWhy: whysByName(o.MissingWhy), KillOnly: dimsByName(o.KillOnly), Before: dimsByName(o.Before),
				}
			}
		}
	}
	return m
}
