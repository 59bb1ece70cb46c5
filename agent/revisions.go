package agent

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pavise-project/pavise/policy"
	"github.com/pavise-project/pavise/store"
	"golang.org/x/sys/unix"
)

// This file is the revisions of the whole set of policies: each change makes one, on disk before it is in force. So the agent starts from the last one, and can go back.

// Errors of revisions.
var (
	ErrNoState    = errors.New("the agent keeps no revisions: it was started without a state directory")
	ErrPending    = errors.New("a revision waits to be confirmed")
	ErrNotPending = errors.New("no revision waits to be confirmed")
	ErrBadConfirm = fmt.Errorf("the time to confirm is %s to %s", minConfirm, maxConfirm)
	errNoOlder    = errors.New("there is no older revision to go back to")
)

// What made a revision, when nobody asked for it.
const (
	fromStart       = "start"
	fromUnconfirmed = "not confirmed"
)

// revisionsDir is the directory of the revisions in that of the state.
const revisionsDir = "revisions"

const (
	minConfirm = time.Second
	maxConfirm = 24 * time.Hour
)

// Request is who asks for a change of the policies, and how.
type Request struct {
	DryRun  bool          // only say what would be
	Confirm time.Duration // the change is undone unless it is confirmed within this time; 0: it stays
	By      store.By
}

// RevisionStatus is one revision in GET /v1/revisions.
type RevisionStatus struct {
	store.Revision
	Current   bool       `json:"current,omitempty"`
	ConfirmBy *time.Time `json:"confirm_by,omitempty"` // else it is taken back
	Policies  []string   `json:"policies"`             // their names; documents are given of one revision only
}

// documents are a set of policies as they are kept.
func documents(ps []*policy.Policy) []store.Document {
	out := make([]store.Document, len(ps))
	for i, p := range ps {
		out[i] = store.Document{Name: p.Name, File: p.File, YAML: string(p.Source), Sets: p.SetFiles}
	}
	slices.SortFunc(out, func(a, b store.Document) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// fromDocuments reads what documents wrote.
func fromDocuments(docs []store.Document) ([]*policy.Policy, error) {
	var out []*policy.Policy
	var bad policy.Errors
	for _, d := range docs {
		ps, err := policy.ParseWith(d.File, []byte(d.YAML), sentSets(d.Sets))
		var pe policy.Errors
		switch {
		case errors.As(err, &pe):
			bad = append(bad, pe...)
			continue
		case err != nil:
			return nil, err
		}
		out = append(out, ps...)
	}
	if len(bad) > 0 {
		return nil, bad
	}
	return out, nil
}

// bootID names this boot of the machine.
func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(b))
}

// sinceBoot is CLOCK_BOOTTIME: it does not stop while the machine sleeps, and nobody sets it.
func sinceBoot() time.Duration {
	var t unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &t)
	return time.Duration(t.Nano())
}

// late reports whether a revision was not confirmed in time. One of another boot was not: whoever cut himself off may have had to reboot.
func late(p *store.Pending) bool { return p.Boot != bootID() || sinceBoot() >= time.Duration(p.Until) }

// restore opens the state and makes the set that was last in force the one to begin with, with what changed in the files since.
func (a *Agent) restore() error {
	if a.cfg.StateDir == "" {
		return nil
	}
	r, damaged, err := store.OpenRevisions(filepath.Join(a.cfg.StateDir, revisionsDir))
	if err != nil {
		return err
	}
	for _, err := range damaged {
		a.log.Error("a file of the state is not what was written; the one before is used", "err", err)
	}
	a.revisions = r
	cur := r.Current()
	if cur.Revision == 0 {
		return nil
	}
	from := ""
	if p := cur.Pending; p != nil && late(p) {
		a.log.Warn("a revision was not confirmed in time: going back", "revision", cur.Revision, "to", p.BackTo)
		cur, from = store.Current{Revision: p.BackTo}, fmt.Sprintf("%s: back to %d", fromUnconfirmed, p.BackTo)
	}
	var ps []*policy.Policy
	var files []store.Document
	if cur.Revision > 0 {
		rev, err := r.Get(cur.Revision)
		if err != nil {
			return fmt.Errorf("start from revision %d: %w", cur.Revision, err)
		}
		if ps, err = fromDocuments(rev.Documents); err != nil {
			return fmt.Errorf("start from revision %d: %w", cur.Revision, err)
		}
		files = rev.Files
	}
	started := a.set.Load().policies
	if store.IDOf(documents(started)) != store.IDOf(files) {
		// The files are others than at the last start: what stands in them is newer.
		ps = slices.DeleteFunc(ps, func(p *policy.Policy) bool {
			return slices.ContainsFunc(files, func(f store.Document) bool { return f.Name == p.Name && f.File == p.File }) ||
				slices.ContainsFunc(started, func(s *policy.Policy) bool { return s.Name == p.Name })
		})
		ps = append(ps, started...)
		if from == "" {
			from = fromStart + ": policy files changed"
		}
	}
	set, err := a.compile(ps)
	if err != nil {
		return fmt.Errorf("start from revision %d: %w", cur.Revision, err)
	}
	a.set.Store(set)
	a.restored = from == ""
	a.from = from
	return nil
}

// keepStart keeps the set that the agent began with, unless it is the one that was in force.
func (a *Agent) keepStart() error {
	if a.revisions == nil || a.restored {
		return nil
	}
	from := a.from
	if from == "" {
		from = fromStart
	}
	_, err := a.keep(a.set.Load(), from, Request{})
	return err
}

// boundPending has enforcement end without an agent when the time to confirm is over, where it would go on: the node goes back by itself, and if nobody is there to do that,
// what was not confirmed has no effect any more.
func (a *Agent) boundPending() {
	if a.revisions == nil {
		return
	}
	in := time.Duration(0)
	if p := a.revisions.Current().Pending; p != nil {
		in = max(time.Duration(p.Until)-sinceBoot(), time.Millisecond)
	}
	if err := a.kernel.EndWithout(in); err != nil {
		a.log.Warn("should the agent end, a revision that nobody confirms may stay in force", "err", err)
	}
}

// keep writes a set as a revision, and says that it is in force. It returns what was in force before.
func (a *Agent) keep(set *policySet, from string, q Request) (was store.Current, err error) {
	was = a.revisions.Current()
	rev := &store.Revision{Time: time.Now().UTC(), By: q.By, From: from, Documents: documents(applied(set.policies)), Files: documents(a.cfg.Policies)}
	if err := a.revisions.Add(rev); err != nil {
		return was, fmt.Errorf("keep the revision: %w", err)
	}
	next := store.Current{Revision: rev.Number}
	if q.Confirm > 0 {
		next.Pending = &store.Pending{BackTo: was.Revision, Boot: bootID(), Until: int64(sinceBoot() + q.Confirm), Wall: time.Now().Add(q.Confirm).UTC()}
	}
	if err := a.revisions.Set(next); err != nil {
		return was, fmt.Errorf("keep the revision: %w", err)
	}
	return was, nil
}

// mayChange says why a change must not be made now.
func (a *Agent) mayChange(q Request) error {
	switch {
	case q.Confirm != 0 && a.revisions == nil:
		return ErrNoState
	case q.Confirm != 0 && (q.Confirm < minConfirm || q.Confirm > maxConfirm):
		return ErrBadConfirm
	case a.revisions == nil:
		return nil
	}
	if c := a.revisions.Current(); c.Pending != nil && !q.DryRun {
		return fmt.Errorf("%w: %d, until %s; confirm it, or roll it back", ErrPending, c.Revision, c.Pending.Wall.Local().Format(time.TimeOnly))
	}
	return nil
}

// followPending goes back when the revision in force was not confirmed in time.
func (a *Agent) followPending() {
	if a.revisions == nil {
		return
	}
	c := a.revisions.Current()
	if c.Pending == nil || !late(c.Pending) {
		return
	}
	back := c.Pending.BackTo
	if _, err := a.goTo(back, fmt.Sprintf("%s: back to %d", fromUnconfirmed, back), Request{}, true); err != nil {
		a.log.Error("the revision was not confirmed, and going back failed; it is tried again", "revision", c.Revision, "back_to", back, "err", err)
		return
	}
	a.log.Warn("the revision was not confirmed in time: went back", "revision", c.Revision, "back_to", back)
}

// Rollback makes an older revision the set that is in force; 0 is the one before. It is a revision of its own, of the same contents.
func (a *Agent) Rollback(number uint64, q Request) (*Change, error) {
	if a.revisions == nil {
		return nil, ErrNoState
	}
	c := a.revisions.Current()
	if number == 0 {
		if c.Pending != nil {
			number = c.Pending.BackTo
		} else if number = a.before(c.Revision); number == 0 {
			return nil, errNoOlder
		}
	}
	return a.goTo(number, fmt.Sprintf("rollback to %d", number), q, true)
}

// before is the revision before n that is another set than n; 0 when there is none.
func (a *Agent) before(n uint64) uint64 {
	revs, _, err := a.revisions.List()
	if err != nil {
		return 0
	}
	id := ""
	for _, r := range slices.Backward(revs) {
		switch {
		case r.Number == n:
			id = r.ID
		case id != "" && r.ID != id:
			return r.Number
		}
	}
	return 0
}

// goTo makes the contents of a revision the set that is in force. Number 0 is the empty set from before the first.
func (a *Agent) goTo(number uint64, from string, q Request, pending bool) (*Change, error) {
	var ps []*policy.Policy
	if number > 0 {
		rev, err := a.revisions.Get(number)
		if err != nil {
			return nil, err
		}
		if ps, err = fromDocuments(rev.Documents); err != nil {
			return nil, fmt.Errorf("go back to revision %d: %w", number, err)
		}
	}
	names := make([]string, len(ps))
	for i, p := range ps {
		names[i] = p.Name
	}
	return a.changeTo(names, from, q, pending, func([]*policy.Policy) ([]*policy.Policy, error) { return ps, nil })
}

// Confirm keeps the revision that waits for it. Its number is returned.
func (a *Agent) Confirm() (uint64, error) {
	if a.revisions == nil {
		return 0, ErrNoState
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	c := a.revisions.Current()
	if c.Pending == nil {
		return 0, ErrNotPending
	}
	if err := a.revisions.Set(store.Current{Revision: c.Revision}); err != nil {
		return 0, fmt.Errorf("confirm revision %d: %w", c.Revision, err)
	}
	a.boundPending()
	a.log.Info("the revision was confirmed", "revision", c.Revision)
	return c.Revision, nil
}

// Revisions lists them, oldest first, without their documents. Damaged ones are left out, and named in the second result.
func (a *Agent) Revisions() ([]RevisionStatus, []string, error) {
	if a.revisions == nil {
		return nil, nil, ErrNoState
	}
	revs, damaged, err := a.revisions.List()
	if err != nil {
		return nil, nil, err
	}
	c := a.revisions.Current()
	out := make([]RevisionStatus, len(revs))
	for i, r := range revs {
		out[i] = revisionStatus(r, c)
		out[i].Documents, out[i].Files = []store.Document{}, []store.Document{}
	}
	bad := make([]string, len(damaged))
	for i, err := range damaged {
		bad[i] = err.Error()
	}
	return out, bad, nil
}

func revisionStatus(r *store.Revision, c store.Current) RevisionStatus {
	s := RevisionStatus{Revision: *r, Current: r.Number == c.Revision, Policies: []string{}}
	if s.Current && c.Pending != nil {
		s.ConfirmBy = &c.Pending.Wall
	}
	for _, d := range r.Documents {
		s.Policies = append(s.Policies, d.Name)
	}
	return s
}

// requestOf is who asks by the API, and how. When it returns false, it has answered.
func requestOf(w http.ResponseWriter, r *http.Request) (q Request, ok bool) {
	v := r.URL.Query()
	q.DryRun, q.By = on(v, "dry-run"), byOf(r.Context())
	if s := v.Get("confirm-within"); s != "" {
		var err error
		if q.Confirm, err = time.ParseDuration(s); err != nil {
			fail(w, http.StatusBadRequest, fmt.Errorf("confirm-within=%q: want a duration, as 60s", s))
			return q, false
		}
	}
	return q, true
}

func byOf(ctx context.Context) (b store.By) {
	c, ok := ctx.Value(connKey{}).(*conn)
	if !ok {
		return b
	}
	p := c.peer
	b.UID, b.PID = &p.UID, p.PID
	if p.PID == 0 { // of another PID namespace
		return b
	}
	if c, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", p.PID)); err == nil {
		b.Command = strings.TrimSpace(string(c))
	}
	return b
}

func (a *Agent) getRevisions(w http.ResponseWriter, _ *http.Request) {
	revs, damaged, err := a.Revisions()
	if err != nil {
		fail(w, codeOf(err), err)
		return
	}
	reply(w, http.StatusOK, RevisionList{Revisions: revs, Damaged: damaged})
}

// numberOf is the revision that a path names.
func numberOf(w http.ResponseWriter, r *http.Request) (uint64, bool) {
	n, err := strconv.ParseUint(r.PathValue("number"), 10, 64)
	if err != nil {
		fail(w, http.StatusBadRequest, fmt.Errorf("revision %q: not a number", r.PathValue("number")))
	}
	return n, err == nil
}

func (a *Agent) getRevision(w http.ResponseWriter, r *http.Request) {
	n, ok := numberOf(w, r)
	if !ok {
		return
	}
	if a.revisions == nil {
		fail(w, codeOf(ErrNoState), ErrNoState)
		return
	}
	rev, err := a.revisions.Get(n)
	if err != nil {
		fail(w, codeOf(err), err)
		return
	}
	reply(w, http.StatusOK, revisionStatus(rev, a.revisions.Current()))
}

func (a *Agent) postRollback(w http.ResponseWriter, r *http.Request) {
	n, ok := numberOf(w, r)
	if !ok {
		return
	}
	q, ok := requestOf(w, r)
	if !ok {
		return
	}
	c, err := a.Rollback(n, q)
	a.replyChange(w, c, err)
}

func (a *Agent) postConfirm(w http.ResponseWriter, _ *http.Request) {
	n, err := a.Confirm()
	if err != nil {
		fail(w, codeOf(err), err)
		return
	}
	reply(w, http.StatusOK, Confirmed{Revision: n})
}
