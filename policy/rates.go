package policy

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"strings"
	"time"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/operators"

	"github.com/pavise-project/pavise"
)

// This file is rates: rate.process("10s") > 100 in a rule's when. The rule then acts only where the rest of its condition has held more
// often than that. Rates.over says how it is counted; bpf/rate.h does the same in the kernel.

// The limits of rates.
const (
	MaxRates     = 256 // of an Image
	maxRate      = 1_000_000
	minWindow    = 100 * time.Millisecond
	maxWindow    = 24 * time.Hour
	maxRateParts = 64 // clauses of a rule with a rate for one operation: they share a word
)

// RateBy says what is counted apart.
type RateBy uint8

// What can be counted apart.
const (
	ByProcess   RateBy = iota
	ByUser             // effective user id
	ByContainer        // cgroup
	NumRateBy
)

var rateByNames = [NumRateBy]string{"process", "user", "container"}

// Rate is the condition that something has happened more than N times within Window.
type Rate struct {
	ID     uint64 // of the rule as written: its counts go on when the policy is loaded anew and it is the same
	By     RateBy
	N      uint32
	Window time.Duration
}

func (r *Rate) String() string {
	return fmt.Sprintf("rate.%s(%q) > %d", rateByNames[r.By], shortDuration(r.Window), r.N)
}

// shortDuration is d without "0s" at its end.
func shortDuration(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// identify gives the rate of a rule its id.
func (r Rate) identify(p *Policy, spec *RuleSpec) Rate {
	h := sha256.New()
	fmt.Fprintf(h, "%q %q %v %v %v", p.Name, spec.Name, spec.On, spec.Action, r)
	for _, c := range []*Condition{p.Subject, spec.When} {
		if c != nil {
			fmt.Fprintf(h, " %q", c.Source)
		}
	}
	r.ID = binary.LittleEndian.Uint64(h.Sum(nil))
	return r
}

const rateName = "rate"

// rateOptions declare rate and its functions. They have no implementation: only the kernel counts.
func rateOptions() []cel.EnvOption {
	t := cel.OpaqueType("pavise.rate")
	opts := []cel.EnvOption{cel.VariableWithDoc(rateName, t, "How often the rest of the condition has held.")}
	for _, by := range rateByNames {
		opts = append(opts, cel.Function(by, cel.MemberOverload("rate_"+by, []*cel.Type{t, cel.StringType}, cel.IntType)))
	}
	return opts
}

// rateBy returns what a call like rate.process("10s") counts by.
func rateBy(e ast.Expr) (by RateBy, ok bool) {
	if e.Kind() != ast.CallKind {
		return 0, false
	}
	call := e.AsCall()
	if !call.IsMemberFunction() || call.Target().Kind() != ast.IdentKind || call.Target().AsIdent() != rateName {
		return 0, false
	}
	for i, name := range rateByNames {
		if call.FunctionName() == name {
			return RateBy(i), true
		}
	}
	return 0, false
}

const rateHint = `write it beside "&&": rate.process("10s") > 100 && ...`

// rates finds the rate of a condition: a comparison among the terms of its outermost "&&". Any other mention is a fault.
func (c *checker) rates(root ast.Expr) {
	var comparisons []ast.Expr
	var terms func(e ast.Expr)
	terms = func(e ast.Expr) {
		if e.Kind() != ast.CallKind {
			return
		}
		switch call := e.AsCall(); call.FunctionName() {
		case operators.LogicalAnd:
			for _, a := range call.Args() {
				terms(a)
			}
		case operators.Greater, operators.GreaterEquals, operators.Less, operators.LessEquals:
			comparisons = append(comparisons, e)
		}
	}
	terms(root)
	good := map[int64]bool{}
	for _, e := range comparisons {
		args := e.AsCall().Args()
		fn, call, n := e.AsCall().FunctionName(), args[0], args[1]
		if _, ok := rateBy(n); ok {
			call, n = n, call
			fn = map[string]string{operators.Less: operators.Greater, operators.LessEquals: operators.GreaterEquals}[fn]
		}
		by, ok := rateBy(call)
		if !ok {
			continue
		}
		good[call.AsCall().Target().ID()] = true
		if c.rate != nil {
			c.fail(e, "make a rule of each", "condition has two rates")
			continue
		}
		c.rate, c.rateTerm = c.oneRate(e, by, fn, call, n), e
	}
	ast.PreOrderVisit(root, ast.NewExprVisitor(func(e ast.Expr) {
		if e.Kind() == ast.IdentKind && e.AsIdent() == rateName && !good[e.ID()] {
			c.fail(e, rateHint, "a rate is compared with a number, by > or >=, as one of the terms that all must hold")
		}
	}))
	if c.rate != nil && !c.policy {
		c.fail(c.rateTerm, "", "a rate is for policies: it is counted in the kernel")
	}
}

// oneRate reads one comparison.
func (c *checker) oneRate(e ast.Expr, by RateBy, fn string, call, n ast.Expr) *Rate {
	r := &Rate{By: by}
	limit, ok := intLiteral(n)
	switch fn {
	case operators.Greater:
	case operators.GreaterEquals:
		limit--
	default:
		c.fail(e, rateHint, "a rate must be over a number: a rule acts on what happens too often")
		return r
	}
	if !ok || limit < 0 || limit > maxRate {
		c.fail(n, "", "a rate is compared with a literal number up to %s", num(maxRate))
		return r
	}
	r.N = uint32(limit)
	arg := call.AsCall().Args()[0]
	s, ok := stringLiteral(arg)
	if !ok {
		c.fail(arg, `write "10s", "1m" or the like`, "the window of a rate is a literal string")
		return r
	}
	d, err := time.ParseDuration(s)
	switch {
	case err != nil:
		c.fail(arg, `write "10s", "1m" or the like`, "bad window %q", s)
	case d < minWindow || d > maxWindow || d%time.Microsecond != 0:
		c.fail(arg, "", "window %q is out of range: %s to %s, in whole microseconds", s, minWindow, shortDuration(maxWindow))
	}
	r.Window = d
	return r
}

// Rates is the counts of all rates, as the kernel keeps them. The zero value has none.
type Rates struct{ counts map[rateKey]uint64 }

type rateKey struct {
	id  uint64
	by  RateBy
	who uint64
}

// A count is three numbers in 64 bits, so that the kernel changes it by one compare-and-swap: how often in the window before this one, how
// often in this one, and the number of this one.
const (
	rateBits   = 20
	rateMask   = 1<<rateBits - 1
	windowMask = 1<<(64-2*rateBits) - 1
)

// over counts one more act of who at now, in nanoseconds since boot, and reports whether it is one too many. Time is cut into windows; what is
// held against N is the count of this window, and of the one before the share that still lies within Window of now as if its acts had come
// evenly (https://blog.cloudflare.com/counting-things-a-lot-of-different-things/). So even traffic is judged rightly, or let go one act too long; and
// whatever the traffic, at most 2N acts within any Window go by, and none is over unless more than N came within two windows.
func (rs *Rates) over(r *Rate, who, now uint64) bool {
	k := rateKey{r.ID, r.By, who}
	old := rs.counts[k]
	w := uint64(r.Window / time.Microsecond)
	now /= 1000
	window, into := now/w, now%w
	prev, count := old&rateMask, old>>rateBits&rateMask
	switch at := old >> (2 * rateBits); {
	case at == window&windowMask:
	case (at+1)&windowMask == window&windowMask:
		prev, count = count, 0
	default:
		prev, count = 0, 0
	}
	count = min(count+1, rateMask)
	if rs.counts == nil {
		rs.counts = map[rateKey]uint64{}
	}
	rs.counts[k] = (window&windowMask)<<(2*rateBits) | count<<rateBits | prev
	if prev > 0 {
		prev = (prev*(w-into) - 1) / w // rounded up, less one: what there is at least when they came evenly
	}
	return prev+count > uint64(r.N)
}

// isRate tells that e is the rate, which the tree leaves out: it is judged after all the rest has held.
func (c *Condition) isRate(e ast.Expr) bool { return c.rate != nil && e.ID() == c.term }

// numberRate gives a rate its place in the program.
func (p *program) numberRate(r Rate) (uint16, error) {
	if len(p.Rates) == MaxRates {
		return 0, Errors{{Msg: fmt.Sprintf("too many rules with a rate: the limit is %d", MaxRates)}}
	}
	p.Rates = append(p.Rates, r)
	return uint16(len(p.Rates)), nil
}

// countable reports whether the kernel can count what a condition matches, and fails the rule when it cannot.
func (w *policyNormaliser) countable(op pavise.Op, at *Error, n *normal) bool {
	switch {
	case len(n.unknown) > 0:
		for _, t := range n.unknown {
			line, col := t.cond.start(t.expr)
			e := t.at.error(problem{line, col, fmt.Sprintf("cannot count for a rate on %s: %s is not decided in the kernel, which counts", op, t.cond.text(t.expr)), t.why})
			w.fail(e)
		}
	case len(n.cubes) > maxRateParts:
		e := *at
		e.Msg = fmt.Sprintf("too many alternatives for a rate on %s: %d clauses, the limit is %d", op, len(n.cubes), maxRateParts)
		e.Hint = "split the rule"
		w.fail(&e)
	default:
		return true
	}
	return false
}

func withRate(clause string, r *Rate) string {
	switch {
	case r == nil:
		return clause
	case clause == "true":
		return r.String()
	}
	return clause + " && " + r.String()
}
