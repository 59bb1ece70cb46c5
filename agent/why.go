package agent

import (
	"bytes"
	"fmt"
	"net/http"
	"slices"
	"strconv"

	"github.com/pavise-project/pavise"
	"github.com/pavise-project/pavise/policy"
)

// How many generations `pavise why` can look back to, and how many rules of policies that are not active any more may be kept for it:
// about 10 KiB each.
const (
	pastGenerations = 64
	pastRules       = 1024
)

// past is the policies of the last generations, newest first: what judged the events that are kept. Generations share the policies that
// did not change between them. It is replaced, never changed.
type past []pastGeneration

type pastGeneration struct {
	first, last uint32 // generations of the same policies: containers came and went between them
	policies    []*policy.Policy
}

// with adds the newest generation, and forgets the oldest when they are too many or hold too much.
func (p past) with(number uint32, policies []*policy.Policy) past {
	if len(p) > 0 && slices.Equal(p[0].policies, policies) {
		p = slices.Clone(p)
		p[0].last = number
		return p
	}
	out := past{{number, number, policies}}
	seen := map[*policy.Policy]bool{}
	for _, x := range policies {
		seen[x] = true
	}
	rules := 0
	for _, g := range p[:min(len(p), pastGenerations-1)] {
		for _, x := range g.policies {
			if !seen[x] {
				seen[x] = true
				rules += 1 + len(x.Rules)
			}
		}
		if rules > pastRules {
			break
		}
		out = append(out, g)
	}
	return out
}

// of returns the policies of a generation, nil when it is forgotten.
func (p past) of(number uint32) []*policy.Policy {
	for _, g := range p {
		if g.first <= number && number <= g.last {
			return g.policies
		}
	}
	return nil
}

// why explains a kept event; nil when there is none with the number. Last is the last event's number.
func (a *Agent) why(id uint64) (w *Why, last uint64, err error) {
	e, last := a.hub.find(id)
	if e == nil {
		return nil, last, nil
	}
	a.mu.Lock()
	past, set := a.past, a.set.Load()
	a.mu.Unlock()
	w = &Why{Event: e, Active: set.applied.Generation, Rules: []policy.Reason{}}
	note := func(format string, args ...any) { w.Notes = append(w.Notes, fmt.Sprintf(format, args...)) }
	switch {
	case e.Op == pavise.OpLost:
		note("this is the agent's own record: events that could not be delivered were counted")
		return w, last, nil
	case e.Action == pavise.ActionNone:
		note("no rule judged it: it is a fact of the process's life, which is told whatever the policies are")
		return w, last, nil
	}
	w.Generation = e.Gen
	policies := past.of(e.Gen)
	if policies == nil {
		note("generation %d judged, and its policies are no longer kept (generation %d is active): of the rule only what the event says is known", e.Gen, w.Active)
		return w, last, nil
	}
	rules, err := policy.Why(policies, set.machine, a.withAncestors(e))
	if err != nil {
		return nil, last, err
	}
	w.Rules = append(w.Rules, rules...)
	w.Unnamed = max(0, int(e.Matched)-len(rules))
	told := map[string]bool{}
	for _, r := range rules {
		if told[r.Policy] {
			continue
		}
		told[r.Policy] = true
		if e.Shadow > pavise.DecisionAllow {
			note("policy %q is shown as a candidate has it (pavise shadow): it was not active", r.Policy)
			continue
		}
		was := find(policies, r.Policy)
		switch is := set.find(r.Policy); {
		case is == nil:
			note("policy %q was deleted since: it is shown as it was in generation %d", r.Policy, e.Gen)
		case is != was && !bytes.Equal(is.Source, was.Source):
			note("policy %q was changed since: it is shown as it was in generation %d, and generation %d is active", r.Policy, e.Gen, w.Active)
		}
	}
	return w, last, nil
}

func find(ps []*policy.Policy, name string) *policy.Policy {
	if i := slices.IndexFunc(ps, func(p *policy.Policy) bool { return p.Name == name }); i >= 0 {
		return ps[i]
	}
	return nil
}

// getWhy explains the event of the path's id.
func (a *Agent) getWhy(w http.ResponseWriter, r *http.Request) {
	id, err := strconv.ParseUint(r.PathValue("id"), 10, 64)
	if err != nil {
		fail(w, http.StatusBadRequest, fmt.Errorf("%q is not the number of an event", r.PathValue("id")))
		return
	}
	why, last, err := a.why(id)
	switch {
	case err != nil:
		fail(w, http.StatusInternalServerError, err)
	case why == nil && (id == 0 || id > last):
		fail(w, http.StatusNotFound, fmt.Errorf("no event %d: the last is %d; they are numbered from 1 when the agent starts", id, last))
	case why == nil:
		fail(w, http.StatusNotFound, fmt.Errorf("event %d is no longer kept: the agent keeps the last %d events, and of older ones the last %d that deny or kill and the last %d audits; the last event is %d",
			id, recentEvents, recentVerdicts, recentVerdicts, last))
	default:
		reply(w, http.StatusOK, why)
	}
}
