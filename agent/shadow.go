package agent

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pavise-project/pavise"
	"github.com/pavise-project/pavise/enforce"
	"github.com/pavise-project/pavise/policy"
)

// Errors of candidates.
var (
	ErrNoShadow    = errors.New("no shadow is on")
	ErrTooStrict   = errors.New("the shadow is stricter than it may be")
	errOtherShadow = errors.New("another shadow was begun meanwhile")
)

// candidate is the active policies with some added or replaced, judged beside the active ones.
type candidate struct {
	given    []*policy.Policy
	set      *policySet // the whole candidate
	compiler *policy.Compiler
	since    time.Time
	on       bool
	ended    string // why it ended, when nobody ended it

	// What was counted before the generation that is on in the kernel.
	hits, stricter map[string]uint64 // by ruleKey
	ops            [pavise.NumOps]enforce.ShadowCount
}

// Shadow has the active policies, with ps added or replaced, judged beside the active ones, in place of another candidate. When it fails, that one
// goes on.
func (a *Agent) Shadow(ps []*policy.Policy) (*Shadow, error) {
	if len(ps) == 0 {
		return nil, errors.New("shadow: no policy given")
	}
	if err := Duplicates(ps); err != nil {
		return nil, err
	}
	start := time.Now()
	sh := &candidate{given: ps, compiler: new(policy.Compiler), since: start, on: true, hits: map[string]uint64{}, stricter: map[string]uint64{}}
	err := a.locked(func() error {
		was := a.shadow
		err := a.shade(sh)
		if err != nil && a.shadow != was { // it ended for this
			a.followShadow()
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	a.log.Info("a shadow is on", "policies", len(ps), "took", time.Since(start))
	st := a.shadowStatus()
	st.Total = time.Since(start)
	return st, nil
}

// EndShadow ends the candidate and returns what it has found.
func (a *Agent) EndShadow() (*Shadow, error) {
	err := a.locked(func() error {
		if a.shadow == nil || !a.shadow.on {
			return ErrNoShadow
		}
		return a.endShadow("")
	})
	if err != nil {
		return nil, err
	}
	a.log.Info("the shadow is off")
	return a.shadowStatus(), nil
}

// Promote makes the policies of the candidate that is on active. With mostStricter 0 or above, it refuses when the candidate has decided more strictly than the active policies more often than that.
func (a *Agent) Promote(mostStricter int64, q Request) (*Change, error) {
	sh, _ := a.shadowNow()
	if sh == nil || !sh.on {
		return nil, ErrNoShadow
	}
	var names []string
	for _, p := range sh.given {
		names = append(names, p.Name)
	}
	return a.change(names, "promote "+strings.Join(names, " "), q, func(have []*policy.Policy) ([]*policy.Policy, error) {
		now := a.shadow
		if now == nil || !now.on || !slices.Equal(now.given, sh.given) {
			return nil, errOtherShadow
		}
		c, err := a.kernel.ShadowCounters()
		if err != nil {
			return nil, fmt.Errorf("read the shadow's counters: %w", err)
		}
		if err := now.with(&c).strict(mostStricter); err != nil {
			return nil, err
		}
		return replaced(have, now.given), nil
	})
}

// strict says by which rules a candidate was stricter too often; most is below 0 for any number.
func (sh *candidate) strict(most int64) error {
	var sum uint64
	for _, o := range sh.ops {
		sum += o.Stricter
	}
	if most < 0 || sum <= uint64(most) {
		return nil
	}
	var by []string
	for _, key := range slices.Sorted(maps.Keys(sh.stricter)) {
		if n := sh.stricter[key]; n > 0 {
			policy, rule, _ := strings.Cut(key, "\x00")
			by = append(by, fmt.Sprintf("%s/%s %d", policy, rule, n))
		}
	}
	return fmt.Errorf("%w: %d times since %s, at most %d are allowed: by %s", ErrTooStrict, sum, sh.since.Local().Format(time.DateTime), most, strings.Join(by, ", "))
}

// locked changes what the kernel judges by.
func (a *Agent) locked(change func() error) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return ErrStopping
	}
	return change()
}

// endShadow ends the candidate that is on; why is empty when somebody asked for it. The caller holds mu.
func (a *Agent) endShadow(why string) error {
	c, err := a.kernel.EndShadow()
	if err != nil {
		return fmt.Errorf("end the shadow in the kernel: %w", err)
	}
	sh := a.shadow.with(&c)
	sh.on, sh.ended = false, why
	// The tables are of no use any more.
	sh.compiler = nil
	img := &policy.Image{Sets: sh.set.image.Sets}
	sh.set = &policySet{policies: sh.set.policies, machine: sh.set.machine, image: img, report: sh.set.report, applied: sh.set.applied}
	a.shadow = sh
	return nil
}

// shade compiles sh for the active policies and makes it the one that is on. When it fails, everything is as it was; but the one before may have ended in the
// kernel, and then is replaced by one with all that it had counted. The caller holds mu.
func (a *Agent) shade(sh *candidate) error {
	set, err := a.compileBy(sh.compiler, replaced(a.set.Load().policies, sh.given))
	if err != nil {
		return err
	}
	book := a.rules.Load()
	a.rules.Store(&ruleBook{gens: book.gens, shadow: book.shadow, pending: set.image.Rules})
	a.names.prepare(set.image.Domains(), true)
	applied, err := a.kernel.Shadow(set.image)
	if applied.Shadow != nil {
		a.shadow = a.shadow.with(applied.Shadow)
	}
	if err != nil {
		a.rules.Store(book)
		return fmt.Errorf("apply the candidate to the kernel: %w", err)
	}
	applied.Shadow = nil
	set.applied = applied
	if was := book.shadow; was.number != 0 { // events of it may still come
		book = book.with(was.number, was.rules)
	}
	a.rules.Store(&ruleBook{gens: book.gens, shadow: generation{applied.Generation, set.image.Rules}})
	a.past = a.past.with(applied.Generation, set.policies)
	if was := a.shadow; was != nil && sh.compiler == was.compiler { // it goes on
		sh.hits, sh.stricter, sh.ops = carried(was.hits, was.set, set), carried(was.stricter, was.set, set), was.ops
	}
	sh.set = set
	a.shadow = sh
	return nil
}

// followShadow compiles the candidate anew when the active policies, or the containers that it asks about, have changed: it tells what would be if its policies were applied now. It ends
// when they are active, or when together with the active ones they do not compile: the change that is done does not wait for it. The caller
// holds mu.
func (a *Agent) followShadow() {
	if a.shadow == nil || !a.shadow.on {
		return
	}
	active := a.set.Load()
	why := "its policies are active now"
	if slices.ContainsFunc(a.shadow.given, func(p *policy.Policy) bool { return a.shadow.change(p, active) != "unchanged" }) {
		sh := *a.shadow
		err := a.shade(&sh)
		if err == nil {
			return
		}
		why = "it does not go with the active policies any more: " + err.Error()
	}
	a.log.Warn("the shadow has ended", "why", why)
	if err := a.endShadow(why); err != nil {
		a.log.Error("end the shadow", "err", err)
	}
}

// change says what a policy of the candidate's is to the active ones. Sets are known by what is in them: when they changed, all policies count as
// replaced.
func (sh *candidate) change(p *policy.Policy, active *policySet) string {
	was := active.find(p.Name)
	switch {
	case was == nil:
		return "added"
	case !bytes.Equal(was.Source, p.Source):
		return "replaced"
	}
	for kind, sets := range sh.set.image.Sets {
		for _, s := range sets {
			if !slices.ContainsFunc(active.image.Sets[kind], func(o *policy.Set) bool { return o.Digest == s.Digest }) {
				return "replaced"
			}
		}
	}
	return "unchanged"
}

// with is sh with what the kernel has counted for it.
func (sh *candidate) with(c *enforce.ShadowCounters) *candidate {
	n := *sh
	n.hits, n.stricter = maps.Clone(sh.hits), maps.Clone(sh.stricter)
	for i, r := range sh.set.image.Rules[:min(len(sh.set.image.Rules), len(c.RuleHits))] {
		n.hits[ruleKey(r.Policy, r.Name)] += c.RuleHits[i]
		n.stricter[ruleKey(r.Policy, r.Name)] += c.RuleStricter[i]
	}
	for op, k := range c.Ops {
		o := &n.ops[op]
		o.Judged += k.Judged
		o.Stricter += k.Stricter
		o.Laxer += k.Laxer
	}
	return &n
}

// shadowNow is the candidate with all that it has counted, nil when there never was one, and the active policies.
func (a *Agent) shadowNow() (*candidate, *policySet) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.shadow == nil {
		return nil, a.set.Load()
	}
	if !a.shadow.on {
		return a.shadow, a.set.Load()
	}
	c, err := a.kernel.ShadowCounters()
	if err != nil {
		a.log.Warn("the shadow's counters are not read", "err", err)
	}
	return a.shadow.with(&c), a.set.Load()
}

func (a *Agent) shadowStatus() *Shadow {
	sh, active := a.shadowNow()
	st := &Shadow{Active: active.applied.Generation, Policies: []PolicyStatus{}, Ops: []ShadowCount{}}
	if sh == nil {
		return st
	}
	st.On, st.Ended, st.Since, st.Generation = sh.on, sh.ended, sh.since, sh.set.applied.Generation
	for _, p := range StatusOf(sh.set.policies, sh.set.reviewed()) {
		given := find(sh.given, p.Name)
		if given == nil {
			continue
		}
		p.Source = ""
		p.Change = sh.change(given, active)
		for i := range p.Rules {
			key := ruleKey(p.Name, p.Rules[i].Name)
			p.Rules[i].Hits, p.Rules[i].Stricter = sh.hits[key], sh.stricter[key]
		}
		st.Policies = append(st.Policies, p)
	}
	for op, n := range sh.ops {
		if n.Judged > 0 {
			st.Ops = append(st.Ops, ShadowCount{Op: pavise.Op(op).String(), Judged: n.Judged, Stricter: n.Stricter, Laxer: n.Laxer})
		}
	}
	return st
}

// shadowNames are the policies of the candidate that is on.
func (a *Agent) shadowNames() []string {
	out := []string{}
	if sh, _ := a.shadowNow(); sh != nil && sh.on {
		for _, p := range sh.given {
			out = append(out, p.Name)
		}
	}
	return out
}

func (a *Agent) getShadow(w http.ResponseWriter, _ *http.Request) {
	reply(w, http.StatusOK, a.shadowStatus())
}

func (a *Agent) putShadow(w http.ResponseWriter, r *http.Request) {
	ps, ok := a.bodyPolicies(w, r)
	if !ok {
		return
	}
	st, err := a.Shadow(ps)
	if err != nil {
		fail(w, codeOf(err), err)
		return
	}
	reply(w, http.StatusOK, st)
}

func (a *Agent) postPromote(w http.ResponseWriter, r *http.Request) {
	q, ok := requestOf(w, r)
	if !ok {
		return
	}
	most := int64(-1)
	if s := r.URL.Query().Get("max-stricter"); s != "" {
		most, _ = strconv.ParseInt(s, 10, 64) // it was checked
	}
	c, err := a.Promote(most, q)
	a.replyChange(w, c, err)
}

func (a *Agent) deleteShadow(w http.ResponseWriter, _ *http.Request) {
	st, err := a.EndShadow()
	if err != nil {
		fail(w, codeOf(err), err)
		return
	}
	reply(w, http.StatusOK, st)
}
