package policy

import (
	"errors"
	"fmt"
	"slices"
	"sort"
	"strings"
	"sync"

	"github.com/pavise-project/pavise"
)

// Support is what this machine can do for one operation. The agent finds it by trying.
type Support struct {
	Rung    pavise.Rung
	Deny    bool
	Kill    bool
	Missing []Dim // facts that the kernel does not have at this rung
	// MissingWhy is, for those of them that no rung of this machine has, why.
	MissingWhy map[Dim]string
	// Before are those of Missing that are known before the act, to rules that ask nothing of the process: they can deny it then.
	Before []Dim
	// KillOnly are facts that the kernel has only after the act, where it can still kill: no deny by them.
	KillOnly []Dim
	Why      string // why not more, for messages
}

// Machine is what the compiler must know of the machine. It is not changed once used; WithContainers makes another.
type Machine struct {
	Ops                     [pavise.NumOps]Support
	LookupUser, LookupGroup func(name string) (uint32, error)

	base       *Machine // the one that this is with containers
	containers *containers
}

// Of names the dimension as the fields of op that it decides.
func (d Dim) Of(op pavise.Op) string {
	if d < DimValue {
		return d.String()
	}
	var names []string
	for _, f := range fieldList {
		if f.Dim == d && f.has(op) {
			names = append(names, f.Name)
		}
	}
	if len(names) == 0 {
		return d.String()
	}
	return strings.Join(names, ", ")
}

func (s *Support) missing() map[Dim]bool {
	if len(s.Missing) == 0 {
		return nil
	}
	m := make(map[Dim]bool, len(s.Missing))
	for _, d := range s.Missing {
		m[d] = true
	}
	return m
}

// State says what becomes of a rule on this machine.
type State string

// The states.
const (
	StateEnforced    State = "enforced"
	StateMonitored   State = "monitored"    // its policy only monitors
	StateAudit       State = "audit"        // it only records
	StateDegraded    State = "degraded"     // it should be enforced, cannot be, and is only recorded or killed for instead
	StateNotObserved State = "not observed" // the operation cannot be seen
	StateNoEffect    State = "no effect"    // the rule can never apply
)

// Report says what became of every rule of a set.
type Report struct {
	Policies []PolicyReport `json:"policies"`
}

// PolicyReport is the part of a Report about one policy.
type PolicyReport struct {
	Name     string       `json:"name"`
	File     string       `json:"file,omitempty"`
	Line     int          `json:"line,omitempty"`
	Mode     Mode         `json:"mode"`
	Rules    []RuleReport `json:"rules"`
	Warnings []*Error     `json:"warnings,omitempty"`
}

// RuleReport is the part of a Report about one rule and operation.
type RuleReport struct {
	Rule      string        `json:"rule"`
	Line      int           `json:"line,omitempty"` // in the policy's file
	Op        pavise.Op     `json:"op"`
	Action    pavise.Action `json:"action"`    // as asked
	Effective pavise.Action `json:"effective"` // as done, or as recorded
	State     State         `json:"state"`
	Rung      pavise.Rung   `json:"rung"`
	Why       string        `json:"why,omitempty"`     // when degraded or not observed
	Clauses   []string      `json:"clauses,omitempty"` // the kernel's part, each a conjunction
	User      []string      `json:"user,omitempty"`    // the fields that user space decides
	Residual  string        `json:"residual,omitempty"`
}

// Warnings returns the warnings of all policies.
func (r *Report) Warnings() []*Error {
	var all []*Error
	for i := range r.Policies {
		all = append(all, r.Policies[i].Warnings...)
	}
	return all
}

// normalPolicy is a policy in normal form for one machine.
type normalPolicy struct {
	machine   *Machine
	rules     []normalRule // in the policy's order, then the defaults
	clauses   int          // of the rules
	atoms     []atom       // that the rules name
	protected []string     // the exact paths of its explicit rules on files, sorted
	report    PolicyReport
	errs      Errors

	protectedSets []*Set
}

// normalRule is one rule, or a default, in normal form.
type normalRule struct {
	rule  Rule
	parts []normalPart
	rate  *Rate
}

// normalPart is a rule for one operation.
type normalPart struct {
	op      pavise.Op
	cubes   []cube
	clauses []partClause // the same, of the policy's atoms
	kind    WordKind
	action  pavise.Action
	monitor bool
	skip    bool // not observed, or an allow without a default
}

// partClause is a clause of a part; its operation is the part's, or OpLate.
type partClause struct {
	op    pavise.Op
	preds dimPreds
}

// normal returns the policy in normal form for m, and keeps it for the next time.
func (p *Policy) normal(m *Machine) *normalPolicy {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch c := p.cache; {
	case c == nil || c.machine.root() != m.root() || c.machine != m && !p.sameContainers(c.machine, m):
		p.cache = normalisePolicy(p, m)
	default:
		c.machine = m
	}
	return p.cache
}

// policyNormaliser carries what the rules of one policy share.
type policyNormaliser struct {
	p *Policy
	m *Machine
	n *normalPolicy
}

func normalisePolicy(p *Policy, m *Machine) *normalPolicy {
	w := &policyNormaliser{p: p, m: m, n: &normalPolicy{machine: m}}
	w.n.report = PolicyReport{Name: p.Name, File: p.File, Line: p.Line, Mode: p.Mode, Warnings: append([]*Error(nil), p.Warnings...)}
	// A default and its allow rules stand or fall together.
	groups := map[pavise.Op]*outcome{}
	for _, op := range p.Default {
		groups[op] = w.group(op)
	}
	for i := range p.Rules {
		w.rule(i, &p.Rules[i], groups)
	}
	for _, op := range p.Default {
		w.defaultRule(op, groups[op])
	}
	w.intern()
	return w.n
}

// intern makes clauses of the cubes of all rules.
func (w *policyNormaliser) intern() {
	in := &interner{byKey: map[string]int32{}}
	for r := range w.n.rules {
		for i := range w.n.rules[r].parts {
			part := &w.n.rules[r].parts[i]
			if !part.skip {
				for _, c := range part.cubes {
					op := part.op
					if c.late(op) {
						op = OpLate
					}
					part.clauses = append(part.clauses, partClause{op, in.preds(c)})
					if part.kind != WordExplicit || !onOldFile(part.op) {
						continue
					}
					if q := c[DimPath]; q != nil {
						q.exactPaths(false, func(s string) { w.n.protected = append(w.n.protected, s) })
					}
					if q := c[DimPathSets]; q != nil {
						q.pathSets(false, func(s *Set) { w.n.protectedSets = append(w.n.protectedSets, s) })
					}
				}
			}
			w.n.clauses += len(part.clauses)
		}
	}
	w.n.atoms = in.atoms
	slices.Sort(w.n.protected)
	w.n.protected = slices.Compact(w.n.protected)
}

// outcome is what becomes of a rule for one operation.
type outcome struct {
	state   State
	action  pavise.Action
	monitor bool
	why     string
}

func (w *policyNormaliser) fail(e *Error) {
	for _, o := range w.n.errs {
		if *o == *e {
			return
		}
	}
	w.n.errs = append(w.n.errs, e)
}

func (w *policyNormaliser) ruleError(line, col int, field, hint, format string, args ...any) {
	w.fail(&Error{File: w.p.File, Line: line, Column: col, Field: field, Msg: fmt.Sprintf(format, args...), Hint: hint})
}

// enforced reports whether a rule acts by its policy's wish.
func (w *policyNormaliser) enforced(a pavise.Action) bool {
	return w.p.Mode == ModeEnforce && a != pavise.ActionAudit
}

// ladder decides what becomes of an action on op where cubes hold, which use dims.
func (w *policyNormaliser) ladder(op pavise.Op, a pavise.Action, dims map[Dim]bool, cubes []cube, at *Error) *outcome {
	s := &w.m.Ops[op]
	if a == pavise.ActionAudit || w.p.Mode != ModeEnforce {
		state := StateMonitored
		if a == pavise.ActionAudit {
			state = StateAudit
		}
		o := &outcome{state: state, action: a, monitor: a != pavise.ActionAudit}
		if s.Rung == pavise.RungNone {
			o.state, o.why = StateNotObserved, reason(s)
		}
		return o
	}
	why := ""
	var lacks []string
	lackWhy := reason(s)
	before := !asksProcess(dims) && a == pavise.ActionDeny
	asks := false
	for _, d := range s.Missing {
		if dims[d] && before && slices.Contains(s.Before, d) {
			continue
		}
		if dims[d] {
			asks = asks || slices.Contains(s.Before, d)
			lacks = append(lacks, d.Of(op))
			if w := s.MissingWhy[d]; w != "" {
				lackWhy = w
			}
		}
	}
	can := s.Deny
	late := ""
	if a == pavise.ActionKill {
		can = s.Kill
	} else {
		for _, d := range s.KillOnly {
			if dims[d] {
				can, late = false, " by "+d.Of(op)
			}
		}
		if _, others := families(cubes); others && op == pavise.OpSocket && s.Rung == pavise.RungCgroup {
			can, late = false, " for families other than IPv4 and IPv6"
		}
	}
	switch {
	case s.Rung == pavise.RungNone:
		why = "it cannot be observed: " + reason(s)
	case len(lacks) > 0:
		why = fmt.Sprintf("the kernel does not know %s at rung %s: %s", strings.Join(lacks, ", "), s.Rung, lackWhy)
		if asks {
			why += "; it does before the act, for what denies without a rate and asks nothing of the process"
		}
	case !can && late != "" && op == pavise.OpExec:
		why = "the arguments of the new program are known only when it is in place, where the process can be killed, and the call cannot fail any more"
	case !can:
		why = fmt.Sprintf("rung %s cannot %s%s: %s", s.Rung, a, late, reason(s))
	default:
		return &outcome{state: StateEnforced, action: a}
	}
	switch w.p.Fallback {
	case FallbackKill:
		if s.Kill && s.Rung != pavise.RungNone && len(lacks) == 0 {
			return &outcome{state: StateDegraded, action: pavise.ActionKill, why: why}
		}
		e := *at
		e.Msg = fmt.Sprintf("cannot %s %s on this machine: %s", a, op, why)
		e.Hint = "spec.fallback: kill cannot help, as the process cannot be killed for it either; " + helps
		w.fail(&e)
	case FallbackMonitor:
		o := &outcome{state: StateDegraded, action: a, monitor: true, why: why}
		if s.Rung == pavise.RungNone || asks {
			o.state = StateNotObserved
		}
		return o
	default:
		e := *at
		e.Msg = fmt.Sprintf("cannot %s %s on this machine: %s", a, op, why)
		e.Hint = helps
		if late != "" && op == pavise.OpExec {
			e.Msg = fmt.Sprintf("cannot %s %s%s: %s", a, op, late, why)
			e.Hint = "write action: kill, or set spec.fallback to kill or monitor"
		} else if s.Kill && a == pavise.ActionDeny && len(lacks) == 0 {
			e.Hint = "set spec.fallback to kill or monitor, or " + helps[len("set spec.fallback to monitor, or "):]
			if late != "" && op == pavise.OpSocket {
				e.Hint = "add to the condition of a rule: net.family in [\"ipv4\", \"ipv6\"]; or " + e.Hint
			}
		}
		w.fail(&e)
	}
	return &outcome{state: StateNotObserved, action: a, monitor: true, why: why}
}

const helps = "set spec.fallback to monitor, or enable what is missing (pavise doctor shows it; BPF LSM needs lsm=...,bpf on the kernel's command line)"

func reason(s *Support) string {
	if s.Why == "" {
		return "no reason was given"
	}
	return s.Why
}

// asksProcess reports whether facts are asked of who acts.
func asksProcess(dims map[Dim]bool) bool {
	for d := range dims {
		if d < DimPath {
			return true
		}
	}
	return false
}

// group decides what becomes of a policy's default on op with its allow rules.
func (w *policyNormaliser) group(op pavise.Op) *outcome {
	var cubes []cube
	conds := [][]*Condition{{w.p.Subject}}
	for i := range w.p.Rules {
		if r := &w.p.Rules[i]; r.Action == pavise.ActionAllow && slices.Contains(r.On, op) {
			conds = append(conds, []*Condition{w.p.Subject, r.When})
		}
	}
	for _, cs := range conds {
		if n, err := normalise(op, w.m, nil, cs...); err == nil {
			cubes = append(cubes, n.cubes...)
		}
	}
	dims := map[Dim]bool{}
	addDims(dims, cubes)
	at := w.p.defaultLines[op]
	o := w.ladder(op, pavise.ActionDeny, dims, cubes, &Error{File: w.p.File, Line: at[0], Column: at[1], Field: "spec.default." + op.String()})
	if o.monitor && o.state != StateNotObserved {
		for _, d := range w.m.Ops[op].Missing {
			if dims[d] { // a default is never judged by a part of its conditions
				o.state = StateNotObserved
				o.why = fmt.Sprintf("the kernel does not know %s at rung %s: %s", d.Of(op), w.m.Ops[op].Rung, reason(&w.m.Ops[op]))
			}
		}
	}
	return o
}

// addDims adds the facts that cubes are about.
func addDims(dims map[Dim]bool, cubes []cube) {
	for _, c := range cubes {
		for d := range c {
			dims[d.fact()] = true
		}
	}
}

// families reports whether cubes may hold for IPv4 and IPv6 sockets, and for those of other families.
func families(cubes []cube) (inet, others bool) {
	for _, c := range cubes {
		p := c[DimSocket]
		for f := range 256 {
			switch {
			case p != nil && p.beginning(byte(f)) == no:
			case f == pavise.FamilyIPv4 || f == pavise.FamilyIPv6:
				inet = true
			default:
				others = true
			}
		}
	}
	return inet, others
}

func (w *policyNormaliser) rule(index int, r *RuleSpec, groups map[pavise.Op]*outcome) {
	field := fmt.Sprintf("spec.rules[%d]", index)
	nr := normalRule{rule: Rule{Policy: w.p.Name, Name: r.Name, Index: index, Ops: r.On, Action: r.Action, Severity: r.Severity, Message: r.Message, Tags: r.Tags}}
	enforced := w.enforced(r.Action)
	monitors := 0
	var user []string
	if r.When != nil && r.When.rate != nil {
		rate := r.When.rate.identify(w.p, r)
		nr.rate = &rate
	}
	for _, op := range r.On {
		rep := RuleReport{Rule: r.Name, Line: r.line, Op: op, Action: r.Action, Effective: r.Action, Rung: w.m.Ops[op].Rung}
		part := normalPart{op: op, kind: WordExplicit, action: r.Action}
		group := groups[op]
		at := &Error{File: w.p.File, Line: r.line, Column: r.col, Field: field}
		if r.Action == pavise.ActionAllow && group == nil {
			part.skip = true
			nr.parts = append(nr.parts, part)
			rep.State, rep.Why = StateNoEffect, "the policy has no default for the operation"
			w.n.report.Rules = append(w.n.report.Rules, rep)
			continue
		}
		// What the kernel does not know is an error where it must decide, and left to user space elsewhere.
		var missing map[Dim]bool
		if !enforced && r.Action != pavise.ActionAllow {
			missing = w.m.Ops[op].missing()
		}
		n, ok := w.normalise(op, missing, at, w.p.Subject, r.When)
		if !ok {
			continue
		}
		if len(n.unknown) > 0 && (enforced || r.Action == pavise.ActionAllow) {
			w.undecided(op, r.Action, n)
			continue
		}
		if nr.rate != nil && !w.countable(op, at, n) {
			continue
		}
		if !enforced {
			w.n.report.Warnings = append(w.n.report.Warnings, n.warnings...)
		}
		var o *outcome
		if r.Action == pavise.ActionAllow {
			part.kind, part.action = WordAllow, pavise.ActionNone
			o = &outcome{state: group.state, action: r.Action, monitor: group.monitor, why: group.why}
		} else {
			dims := map[Dim]bool{}
			addDims(dims, n.cubes)
			if nr.rate != nil {
				dims[DimNone] = true // acts are counted: it is not for what is known before
			}
			o = w.ladder(op, r.Action, dims, n.cubes, at)
			part.action = o.action
		}
		if len(n.cubes) == 0 {
			w.n.report.Warnings = append(w.n.report.Warnings, &Error{File: at.File, Line: at.Line, Column: at.Column, Field: at.Field, Msg: fmt.Sprintf("condition never holds for %s", op)})
			o = &outcome{state: StateNoEffect, action: o.action, why: "the condition never holds"}
		}
		part.cubes, part.monitor, part.skip = n.cubes, o.monitor, o.state == StateNotObserved
		if o.monitor {
			monitors++
		}
		rep.Effective, rep.State, rep.Why = o.action, o.state, o.why
		switch late := slices.IndexFunc(n.cubes, func(c cube) bool { return c.late(op) }) >= 0; {
		case o.state == StateNotObserved:
			rep.Rung = pavise.RungNone
		case late && r.Action == pavise.ActionAllow:
			w.fail(&Error{File: at.File, Line: at.Line, Column: at.Column, Field: at.Field, Msg: "an allow rule cannot ask for exec.args: the default is judged before the new program is in place",
				Hint: "allow the program by its path, and make a rule of its own that kills by its arguments"})
		case late:
			rep.Rung = pavise.RungKillOnReturn
		case op == pavise.OpSocket && rep.Rung == pavise.RungCgroup:
			if inet, others := families(n.cubes); others && !inet {
				rep.Rung = pavise.RungKillOnReturn
			}
		}
		for _, c := range n.cubes {
			rep.Clauses = append(rep.Clauses, withRate(c.String(), nr.rate))
		}
		if len(n.unknown) > 0 {
			rep.User = unknownFields(n.unknown)
			user = append(user, rep.User...)
		}
		w.n.report.Rules = append(w.n.report.Rules, rep)
		nr.parts = append(nr.parts, part)
	}
	nr.rule.Monitor = monitors > 0 && monitors == len(r.On)
	if len(user) > 0 {
		x, err := residual(w.p.Subject, r.When)
		if err != nil {
			w.ruleError(r.line, r.col, field, "", "prepare the part for user space: %v", err)
		} else {
			nr.rule.Residual = x
			for i := range w.n.report.Rules {
				if rep := &w.n.report.Rules[i]; rep.Rule == r.Name && len(rep.User) > 0 {
					rep.Residual = x.String()
				}
			}
		}
	}
	w.n.rules = append(w.n.rules, nr)
}

func (w *policyNormaliser) defaultRule(op pavise.Op, o *outcome) {
	name := "default/" + op.String()
	at := w.p.defaultLines[op]
	nr := normalRule{rule: Rule{Policy: w.p.Name, Name: name, Index: -1, Ops: []pavise.Op{op}, Action: pavise.ActionDeny, Monitor: o.monitor, Severity: "medium"}}
	n, ok := w.normalise(op, nil, &Error{File: w.p.File, Line: at[0], Column: at[1], Field: "spec.default." + op.String()}, w.p.Subject)
	if !ok {
		return
	}
	if len(n.unknown) > 0 {
		w.undecided(op, pavise.ActionDeny, n)
		return
	}
	nr.parts = []normalPart{{op: op, cubes: n.cubes, kind: WordDefault, action: o.action, monitor: o.monitor, skip: o.state == StateNotObserved}}
	rep := RuleReport{Rule: name, Line: at[0], Op: op, Action: pavise.ActionDeny, Effective: o.action, State: o.state, Rung: w.m.Ops[op].Rung, Why: o.why}
	if o.state == StateNotObserved {
		rep.Rung = pavise.RungNone
	}
	for _, c := range n.cubes {
		rep.Clauses = append(rep.Clauses, c.String())
	}
	w.n.report.Rules = append(w.n.report.Rules, rep)
	w.n.rules = append(w.n.rules, nr)
}

// normalise brings conditions to normal form and reports what is too big.
func (w *policyNormaliser) normalise(op pavise.Op, missing map[Dim]bool, at *Error, conds ...*Condition) (*normal, bool) {
	n, err := normalise(op, w.m, missing, conds...)
	var limit *clauseError
	switch {
	case errors.As(err, &limit):
		e := *at
		t := limit.node
		if t.cond != nil {
			line, col := t.cond.start(t.expr)
			e = *t.at.error(problem{line: line, col: col})
			e.Msg = fmt.Sprintf("too many alternatives for %s: %v, from: %s", op, limit, t.cond.text(t.expr))
		}
		e.Hint = "split the rule"
		w.fail(&e)
		return nil, false
	case err != nil:
		e := *at
		e.Msg = err.Error()
		w.fail(&e)
		return nil, false
	}
	return n, true
}

// undecided reports what the kernel cannot decide and would have to.
func (w *policyNormaliser) undecided(op pavise.Op, a pavise.Action, n *normal) {
	if len(n.warnings) > 0 {
		for _, e := range n.warnings {
			w.fail(e)
		}
	}
	for _, t := range n.unknown {
		if t.kind == cUser && len(n.warnings) > 0 {
			continue
		}
		line, col := t.cond.start(t.expr)
		e := t.at.error(problem{line: line, col: col})
		what := fmt.Sprintf("%s needs %s, which the kernel cannot decide", t.cond.text(t.expr), t.field)
		if f := fieldByName[t.field]; f == nil {
			what = fmt.Sprintf("%s is nothing that the kernel can decide", t.cond.text(t.expr))
		} else if f.kind != kindUser {
			what = fmt.Sprintf("%s asks of %s what the kernel cannot decide", t.cond.text(t.expr), t.field)
		}
		switch w.p.Mode {
		case ModeEnforce:
			e.Msg = fmt.Sprintf("cannot enforce %s on %s: %s", a, op, what)
		default:
			e.Msg = fmt.Sprintf("cannot monitor the default on %s with its allow rules: %s", op, what)
		}
		if t.why != "" {
			e.Hint = t.why
		}
		if a != pavise.ActionAllow && w.p.Mode == ModeEnforce {
			if e.Hint != "" {
				e.Hint += ", or "
			}
			e.Hint += "make it an audit rule or set spec.mode: monitor"
		}
		w.fail(e)
	}
}

func unknownFields(ts []placed) []string {
	var out []string
	seen := map[string]bool{}
	for _, t := range ts {
		name := t.field
		if t.kind == cAtom {
			name = t.cond.text(t.expr)
		}
		if name == "" {
			name = t.cond.text(t.expr)
		}
		if !seen[name] {
			seen[name] = true
			out = append(out, name)
		}
	}
	sort.Strings(out)
	return out
}

// residual is the whole condition of a rule, for user space.
func residual(conds ...*Condition) (*Expr, error) {
	var parts []string
	var sets *setFiles // the same for both: they stand in one file
	for _, c := range conds {
		if c != nil {
			sets = c.sets
			parts = append(parts, strings.TrimSpace(c.Source))
		}
	}
	src := strings.Join(parts, "")
	if len(parts) > 1 {
		for i := range parts {
			if strings.Contains(parts[i], "//") { // perhaps a comment
				parts[i] += "\n"
			}
			parts[i] = "(" + parts[i] + ")"
		}
		src = strings.Join(parts, " && ")
	}
	return compileExprWith(src, true, sets)
}

// Compile makes one Image of a set of policies for a machine. The error is an Errors with every fault. It changes nothing of
// the policies but what they remember of it, so that compiling a set again costs little where nothing changed.
func Compile(set []*Policy, m *Machine) (*Image, *Report, error) {
	return new(Compiler).Compile(set, m)
}

// Compiler compiles one set of policies after another and keeps the automata of the last Image, so that a change costs what it
// changes. What it makes is what Compile makes. The zero Compiler is ready; it may be used from any goroutine.
type Compiler struct {
	mu    sync.Mutex
	built []*build
}

// Compile makes one Image, as the function of that name does.
func (c *Compiler) Compile(set []*Policy, m *Machine) (*Image, *Report, error) {
	prog, report, err := compile(set, m)
	if err != nil {
		return nil, report, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	a := newAssembler(prog)
	a.built = c.built
	img, err := a.run()
	if err != nil {
		return nil, report, fmt.Errorf("assemble image: %w", err)
	}
	c.built = a.kept
	return img, report, nil
}

// compile makes the program of a set.
func compile(set []*Policy, m *Machine) (*program, *Report, error) {
	sorted := append([]*Policy(nil), set...)
	sort.SliceStable(sorted, func(i, j int) bool { return sorted[i].Name < sorted[j].Name })
	var errs Errors
	report := &Report{}
	var rules, clauses, atoms int
	for _, p := range sorted {
		n := p.normal(m)
		rules, clauses, atoms = rules+len(n.rules), clauses+n.clauses, atoms+len(n.atoms)
	}
	prog := &program{Rules: make([]Rule, 0, rules), Clauses: make([]clause, 0, clauses)}
	in := &interner{byKey: make(map[string]int32, atoms), atoms: make([]atom, 0, atoms)}
	var groups [pavise.NumOps]uint16
	for i, p := range sorted {
		if i > 0 && sorted[i-1].Name == p.Name {
			errs = append(errs, &Error{File: p.File, Line: p.Line, Column: 1, Field: "metadata.name", Msg: fmt.Sprintf("duplicate policy name %q: the first is in %s:%d", p.Name, sorted[i-1].File, sorted[i-1].Line)})
			continue
		}
		n := p.normal(m)
		errs = append(errs, n.errs...)
		report.Policies = append(report.Policies, n.report)
		if len(errs) > 0 {
			continue
		}
		atoms := make([]int32, len(n.atoms))
		for i := range n.atoms {
			atoms[i] = in.atom(&n.atoms[i])
		}
		var group [pavise.NumOps]uint16
		for _, op := range p.Default {
			groups[op]++
			group[op] = groups[op]
		}
		for r := range n.rules {
			nr := &n.rules[r]
			number := uint32(len(prog.Rules)) //nolint:gosec // bounded by assemble
			prog.Rules = append(prog.Rules, nr.rule)
			rate := uint16(0)
			if nr.rate != nil {
				var err error
				if rate, err = prog.numberRate(*nr.rate); err != nil {
					return nil, report, err
				}
			}
			for _, part := range nr.parts {
				cl := clause{Rule: number, Atoms: atoms, Kind: part.kind, Monitor: part.monitor, Rate: rate}
				if part.kind != WordAllow {
					cl.Action = part.action
				}
				if part.kind != WordExplicit {
					cl.Group = group[part.op]
				}
				for _, c := range part.clauses {
					cl.Op, cl.Preds = c.op, c.preds
					prog.Clauses = append(prog.Clauses, cl)
				}
			}
		}
		prog.Protected = append(prog.Protected, n.protected...)
		for _, s := range n.protectedSets {
			prog.protectSet(s)
		}
	}
	if len(errs) > 0 {
		return nil, report, errs
	}
	if len(prog.Rules) > MaxRules {
		return nil, report, Errors{{Msg: fmt.Sprintf("too many rules: %d, the limit is %d", len(prog.Rules), MaxRules), Hint: "join rules with in [...] or under(...)"}}
	}
	prog.Atoms = in.atoms
	if err := prog.numberSets(); err != nil {
		return nil, report, err
	}
	slices.Sort(prog.Protected)
	prog.Protected = slices.Compact(prog.Protected)
	return prog, report, nil
}

// Explanation is what `pavise explain` shows: the Report, each rule's clauses with it, and the Image, whose Stats say
// what it costs.
type Explanation struct {
	Report *Report `json:"report"`
	Normal string  `json:"normal"` // the clauses of the whole set, one a line
	Atoms  int     `json:"atoms"`
	Image  *Image  `json:"-"`
}

// Explain compiles a set and says how it is decided.
func Explain(set []*Policy, m *Machine) (*Explanation, error) {
	prog, report, err := compile(set, m)
	if err != nil {
		return &Explanation{Report: report}, err
	}
	x := &Explanation{Report: report, Normal: prog.String(), Atoms: len(prog.Atoms)}
	if x.Image, err = assemble(prog); err != nil {
		return x, fmt.Errorf("assemble image: %w", err)
	}
	return x, nil
}
