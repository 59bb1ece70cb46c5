package policy

import (
	"slices"
	"strings"

	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/operators"

	"github.com/pavise-project/pavise"
)

// This file is the judgement of connections that were there when the policies changed: established: recheck.

// establishedOps are the operations by which connections begin, and are judged again.
var establishedOps = []pavise.Op{pavise.OpConnect, pavise.OpAccept}

// endsEstablished reports whether the policy has anything to end a connection by.
func (p *Policy) endsEstablished() bool {
	ends := func(op pavise.Op) bool { return slices.Contains(establishedOps, op) }
	return slices.ContainsFunc(p.Default, ends) || slices.ContainsFunc(p.Rules, func(r RuleSpec) bool {
		return r.Action >= pavise.ActionDeny && slices.ContainsFunc(r.On, ends)
	})
}

// Rechecks says that the policy ends connections that are there, and on what that depends beside them.
type Rechecks struct {
	Any        bool // established: recheck, and something to end a connection by
	Containers bool // on the containers that are known
	Names      bool // on what addresses are called
}

// Rechecks is what the policy has judged again.
func (p *Policy) Rechecks() Rechecks {
	if p.Established != EstablishedRecheck || !p.endsEstablished() {
		return Rechecks{}
	}
	return Rechecks{true, p.AsksContainers(), slices.ContainsFunc(p.conditions(), func(c *Condition) bool {
		return c != nil && slices.ContainsFunc(c.uses, func(u use) bool { return u.field.Name == "net.remote.domain" })
	})}
}

// Recheck judges connections that are there by the policies that say established: recheck. One goroutine uses it at a time.
type Recheck struct {
	acts, tells *Trial
}

// NewRecheck prepares the judgement of a set that was compiled, of which r is the Report; it is nil when no policy asks for it.
func NewRecheck(set []*Policy, r *Report) (*Recheck, error) {
	var acts, tells []*Policy
	for _, p := range set {
		if !p.Rechecks().Any {
			continue
		}
		enforced := p.enforcedOn(r)
		// A rule that the machine cannot carry out, and that is only told of therefore, ends nothing.
		acts = append(acts, p.onlyEstablished(func(rule string, op pavise.Op) bool { return enforced[ruleOn{rule, op}] }))
		tells = append(tells, p.onlyEstablished(func(rule string, op pavise.Op) bool { return !enforced[ruleOn{rule, op}] }))
	}
	if len(acts) == 0 {
		return nil, nil
	}
	out := new(Recheck)
	var err error
	if out.acts, err = NewTrial(acts); err != nil {
		return nil, err
	}
	if out.tells, err = NewTrial(tells); err != nil {
		return nil, err
	}
	out.acts.live, out.tells.live = true, true
	return out, nil
}

type ruleOn struct {
	rule string
	op   pavise.Op
}

// enforcedOn says which rules act on which operations: by a stricter action, too, which the connection gets none of.
func (p *Policy) enforcedOn(r *Report) map[ruleOn]bool {
	out := map[ruleOn]bool{}
	for _, pr := range r.Policies {
		if pr.Name != p.Name || p.Mode != ModeEnforce {
			continue
		}
		for _, rr := range pr.Rules {
			out[ruleOn{rr.Rule, rr.Op}] = rr.State == StateEnforced || rr.State == StateDegraded && rr.Effective != rr.Action
		}
	}
	return out
}

// onlyEstablished is the part of the policy that judges connections which are there, by the rules that are asked for, and what excuses from them.
func (p *Policy) onlyEstablished(asked func(rule string, op pavise.Op) bool) *Policy {
	out := *p
	out.Rules, out.Default = nil, nil
	for _, op := range establishedOps {
		if slices.Contains(p.Default, op) && asked("default/"+op.String(), op) {
			out.Default = append(out.Default, op)
		}
	}
	for _, r := range p.Rules {
		r.On = slices.DeleteFunc(slices.Clone(r.On), func(op pavise.Op) bool {
			switch {
			case !slices.Contains(establishedOps, op):
				return true
			case r.Action == pavise.ActionAllow:
				return !slices.Contains(out.Default, op)
			}
			return r.Action < pavise.ActionDeny || !asked(r.Name, op)
		})
		if len(r.On) > 0 {
			out.Rules = append(out.Rules, r)
		}
	}
	return &out
}

// Ops are the operations that the policies judge again.
func (r *Recheck) Ops() []pavise.Op {
	return slices.DeleteFunc(slices.Clone(establishedOps), func(op pavise.Op) bool {
		return len(r.acts.ops[op].policies) == 0 && len(r.tells.ops[op].policies) == 0
	})
}

// Judge says what becomes of a connection, of which e is the operation that made it, with its process as it is now and all the ancestors of that. It is ended
// where Action is deny or kill and tell is false; with tell, it would be. Missing are the fields for want of which it is not known. Names are those that the other end has, of which e has one. More is as in Trial.Judge.
func (r *Recheck) Judge(e *pavise.Event, names []string, more func(field string) bool) (o *Outcome, tell bool) {
	acts := r.acts.judge(e, names, more)
	if acts.Action >= pavise.ActionDeny || len(acts.Missing) > 0 {
		return acts, false
	}
	return r.tells.judge(e, names, more), true
}

// namesOf says what a condition on net.remote.domain is of an address with several names. The kernel asks whether any of them is one of those that are written.
type namesOf uint8

const (
	ofNone  namesOf = iota // it does not ask for names
	ofAny                  // it holds when it does by any one of them
	ofAll                  // when it does by each of them
	ofMixed                // neither says it
)

func overNames(e ast.Expr) namesOf {
	isName := func(e ast.Expr) bool {
		return e.Kind() == ast.IdentKind && strings.TrimPrefix(e.AsIdent(), ".") == "net.remote.domain"
	}
	asks := false
	ast.PreOrderVisit(e, ast.NewExprVisitor(func(e ast.Expr) { asks = asks || isName(e) }))
	switch {
	case !asks:
		return ofNone
	case e.Kind() != ast.CallKind:
		return ofMixed
	}
	call := e.AsCall()
	args := call.Args()
	switch fn := call.FunctionName(); fn {
	case operators.LogicalNot:
		return overNames(args[0]).not()
	case operators.LogicalAnd, operators.LogicalOr:
		l, r := overNames(args[0]), overNames(args[1])
		exact := ofAll // each name by each part
		if fn == operators.LogicalOr {
			exact = ofAny
		}
		switch {
		case l == ofNone:
			return r
		case r == ofNone:
			return l
		case l == exact && r == exact:
			return exact
		}
		return ofMixed
	case operators.Conditional:
		return ofMixed
	case operators.NotEquals:
		return ofAll
	}
	if call.IsMemberFunction() && isName(call.Target()) || slices.ContainsFunc(args, isName) {
		return ofAny
	}
	return ofMixed
}

func (n namesOf) not() namesOf {
	switch n {
	case ofAny:
		return ofAll
	case ofAll:
		return ofAny
	}
	return n
}

// evalNames evaluates a condition by each of the names.
func (a *trialActivation) evalNames(c *trialCond, missing *[]string) holding {
	least, most := yes, no
	for _, name := range a.names {
		e := *a.e
		e.Net.RemoteName = name
		h := (&trialActivation{a.t, &e, nil, a.more}).eval(c, missing)
		least, most = min(least, h), max(most, h)
	}
	switch {
	case least == most || c.over == ofAll:
		return least
	case c.over == ofAny:
		return most
	}
	*missing = append(*missing, "net.remote.domain")
	return maybe
}
