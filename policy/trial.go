package policy

import (
	"fmt"
	"slices"
	"strings"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/common/types/traits"

	"github.com/pavise-project/pavise"
)

// This file judges events that were recorded. A record has not all that the kernel would know, so a condition holds, does not hold, or cannot be decided;
// what is missing is never taken for empty.

// Trial is a set of policies that is tried on recorded events, as if all of them were enforced. One goroutine uses it at a time.
type Trial struct {
	ops   [pavise.NumOps]trialOp
	facts map[string]*fact
	live  bool // events have all the ancestors that are known of their processes
}

// Outcome is what the policies of a Trial would have asked for. It is shared, and not to be changed.
type Outcome struct {
	Action pavise.Action // the strictest: none, audit, deny or kill
	Policy *Policy       // of the first rule that asks for it, one that is enforced before one that is monitored; nil with none
	Rule   string
	// Missing are the fields for want of which it is not known whether the act would have been denied. It is empty when it is known.
	Missing []string
}

// trialOp is what judges one operation.
type trialOp struct {
	policies []trialPolicy
	facts    []*fact // that its conditions ask for
	cache    map[string]*Outcome
}

// maxOutcomes is how many different sets of facts are remembered for an operation.
const maxOutcomes = 1 << 15

type trialPolicy struct {
	policy  *Policy
	subject *trialCond // nil: every process
	rules   []trialRule
	deny    bool // by default
}

type trialRule struct {
	spec *RuleSpec
	when *trialCond // nil: always
}

// trialCond is a condition that is ready to be evaluated.
type trialCond struct {
	prog cel.Program
	over namesOf
}

// fact is a field as a recorded event has it, or has not.
type fact struct {
	*Field
	trial   *Trial
	missing func(e *pavise.Event) bool
	unknown *types.Unknown
}

// NewTrial prepares policies to be tried.
func NewTrial(set []*Policy) (*Trial, error) {
	t := &Trial{facts: map[string]*fact{}}
	sorted := slices.Clone(set)
	// Of equally strict rules, that of an enforced policy is the one to tell.
	slices.SortStableFunc(sorted, func(a, b *Policy) int {
		if (a.Mode == ModeEnforce) != (b.Mode == ModeEnforce) {
			if a.Mode == ModeEnforce {
				return -1
			}
			return 1
		}
		return strings.Compare(a.Name, b.Name)
	})
	for _, p := range sorted {
		subject, uses, err := t.plan(p.Subject)
		if err != nil {
			return nil, fmt.Errorf("prepare the subject of policy %s: %w", p.Name, err)
		}
		var by [pavise.NumOps]*trialPolicy
		at := func(op pavise.Op) *trialPolicy {
			if by[op] == nil {
				by[op] = &trialPolicy{policy: p, subject: subject}
				t.ops[op].use(uses)
			}
			return by[op]
		}
		for i := range p.Rules {
			r := &p.Rules[i]
			when, uses, err := t.plan(r.When)
			if err != nil {
				return nil, fmt.Errorf("prepare rule %s/%s: %w", p.Name, r.Name, err)
			}
			for _, op := range r.On {
				if r.Action == pavise.ActionAllow && !slices.Contains(p.Default, op) {
					continue // it does nothing
				}
				k := at(op)
				k.rules = append(k.rules, trialRule{r, when})
				t.ops[op].use(uses)
			}
		}
		for _, op := range p.Default {
			at(op).deny = true
		}
		for op, k := range by {
			if k != nil {
				t.ops[op].policies = append(t.ops[op].policies, *k)
			}
		}
	}
	return t, nil
}

func (o *trialOp) use(facts []*fact) {
	for _, f := range facts {
		if !slices.Contains(o.facts, f) {
			o.facts = append(o.facts, f)
		}
	}
}

// Ops are the operations that the policies judge, in order of their numbers.
func (t *Trial) Ops() (ops []pavise.Op) {
	for op := range t.ops {
		if len(t.ops[op].policies) > 0 {
			ops = append(ops, pavise.Op(op))
		}
	}
	return ops
}

// plan prepares a condition, and says which facts it asks for.
func (t *Trial) plan(c *Condition) (*trialCond, []*fact, error) {
	if c == nil {
		return nil, nil, nil
	}
	// A copy of the condition: rewrite changes its tree.
	cond, problems := checkWith(c.Source, true, c.sets)
	if len(problems) > 0 {
		return nil, nil, (&place{}).error(problems[0])
	}
	var uses []*fact
	for _, u := range cond.uses {
		if f := t.fact(u.field); !slices.Contains(uses, f) {
			uses = append(uses, f)
		}
	}
	tree := cond.ast.NativeRep()
	over := overNames(tree.Expr())
	ast.PostOrderVisit(tree.Expr(), ast.NewExprVisitor(func(e ast.Expr) {
		rewrite(tree, e)
		rewriteInSet(c.sets, tree, e)
		if cond.isRate(e) { // how often it happened is not recorded: only what some rule asked for is
			e.SetKindCase(ast.NewExprFactory().NewIdent(e.ID(), rateName))
			tree.SetReference(e.ID(), ast.NewIdentReference(rateName, nil))
		}
	}))
	prog, err := celEnv().Program(cond.ast, cel.EvalOptions(cel.OptOptimize), cel.CostLimit(maxCost))
	return &trialCond{prog, over}, uses, err
}

func (t *Trial) fact(f *Field) *fact {
	if have := t.facts[f.Name]; have != nil {
		return have
	}
	n := &fact{Field: f, trial: t, missing: missingIn(f), unknown: types.NewUnknown(int64(len(t.facts)+2), types.NewAttributeTrail(f.Name))}
	t.facts[f.Name] = n
	return n
}

var unknownRate = types.NewUnknown(1, types.NewAttributeTrail(rateName))

// value is the fact of an event; an Unknown when it is missing. More, which may be nil, says of further fields that they are.
func (f *fact) value(e *pavise.Event, more func(field string) bool) ref.Val {
	switch {
	case !f.has(e.Op):
		return zeroVal(f.Type)
	case more != nil && more(f.Name), f.missing != nil && f.missing(e):
		return f.unknown
	case f.kind == kindAncestors:
		return f.ancestors(e.Process)
	}
	return f.Field.value(e)
}

// ancestors are the one that a record has, of which it has the program, and those that it has not.
func (f *fact) ancestors(p *pavise.Process) ref.Val {
	var vals []ref.Val
	for p.Parent != nil && p.Parent.Exe.Path != "" {
		p = p.Parent
		vals = append(vals, &partVal{procVal{p, processObject}, f.unknown})
		if !f.trial.live {
			break
		}
	}
	if !f.trial.live || p.ParentExecID != 0 {
		vals = append(vals, f.unknown)
	}
	return types.NewRefValList(types.DefaultTypeAdapter, vals)
}

// partVal is a process of which only the program's path and the pid are known, or a group of its fields, as a CEL value.
type partVal struct {
	procVal
	unknown *types.Unknown
}

// Value is what fields are taken of.
func (v *partVal) Value() any { return v }

func (v *partVal) field(f *Field) ref.Val {
	switch f.Name {
	case "pid", "exe.path", "exe.name":
		return f.proc(v.p)
	}
	return v.unknown
}

// trialActivation resolves the fields of a recorded event.
type trialActivation struct {
	t     *Trial
	e     *pavise.Event
	names []string // that the other end has, when they are several
	more  func(string) bool
}

func (a *trialActivation) ResolveName(name string) (any, bool) {
	if name == rateName {
		return unknownRate, true
	}
	f := a.t.facts[name]
	if f == nil {
		return nil, false
	}
	return f.value(a.e, a.more), true
}

func (a *trialActivation) Parent() cel.Activation { return nil }

// holding is whether a condition holds.
type holding uint8

const (
	no holding = iota
	maybe
	yes
)

// eval evaluates a condition. One that fails does not hold. What is missing is added to missing.
func (a *trialActivation) eval(c *trialCond, missing *[]string) holding {
	if c == nil {
		return yes
	}
	if len(a.names) > 1 && c.over != ofNone {
		return a.evalNames(c, missing)
	}
	out, _, err := c.prog.Eval(a)
	switch v := out.(type) {
	case *types.Unknown:
		for _, id := range v.IDs() {
			trails, _ := v.GetAttributeTrails(id)
			for _, tr := range trails {
				if s := tr.String(); !slices.Contains(*missing, s) {
					*missing = append(*missing, s)
				}
			}
		}
		return maybe
	case types.Bool:
		if err == nil && bool(v) {
			return yes
		}
	}
	return no
}

var nothing = &Outcome{}

// Judge says what the policies would have asked for. More, which may be nil, says of fields that the event has not got them, beside those of which
// that is plain. An explicit rule holds under any name of a file.
func (t *Trial) Judge(e *pavise.Event, more func(field string) bool) *Outcome {
	return t.judge(e, nil, more)
}

// judge is Judge of an event whose other end may have several names.
func (t *Trial) judge(e *pavise.Event, names []string, more func(field string) bool) *Outcome {
	o := &t.ops[e.Op]
	if len(o.policies) == 0 {
		return nothing
	}
	key := make([]byte, 0, 256)
	for _, f := range o.facts {
		key = appendFact(key, f.value(e, more))
	}
	key = append(key, e.File.Alias...)
	for _, n := range names {
		key = append(append(key, 0), n...)
	}
	if out := o.cache[string(key)]; out != nil {
		return out
	}
	out := o.judge(&trialActivation{t, e, names, more})
	if o.cache == nil || len(o.cache) >= maxOutcomes {
		o.cache = map[string]*Outcome{}
	}
	o.cache[string(key)] = out
	return out
}

// appendFact makes a part of a key of a value: no two values have the same.
func appendFact(b []byte, v ref.Val) []byte {
	switch x := v.(type) {
	case types.String:
		return fmt.Appendf(b, "s%d:%s", len(x), string(x))
	case types.Int:
		return fmt.Appendf(b, "i%d;", int64(x))
	case types.Bool:
		if x {
			return append(b, 'y')
		}
		return append(b, 'n')
	case *types.Unknown:
		return append(b, '?')
	}
	if l, ok := v.(traits.Lister); ok {
		b = append(b, '[')
		for it := l.Iterator(); it.HasNext() == types.True; {
			switch el := it.Next().(type) {
			case *partVal:
				b = fmt.Appendf(b, "p%d:%q", el.p.PID, el.p.Exe.Path)
			default:
				b = appendFact(b, el)
			}
		}
		return append(b, ']')
	}
	return fmt.Appendf(b, "v%q;", fmt.Sprint(nativeValue(v)))
}

func (o *trialOp) judge(a *trialActivation) *Outcome {
	out := &Outcome{}
	var missing []string // of rules that would deny
	for i := range o.policies {
		p := &o.policies[i]
		var lacks []string
		subject := a.eval(p.subject, &lacks)
		if subject == no {
			continue
		}
		allowed, lacksAllow := no, []string(nil)
		for j := range p.rules {
			r := &p.rules[j]
			lacks := slices.Clone(lacks)
			if r.spec.Action == pavise.ActionAllow {
				allowed = max(allowed, a.eval(r.when, &lacksAllow))
				continue
			}
			holds := a.eval(r.when, &lacks)
			if alias := a.e.File.Alias; holds != yes && alias != "" {
				other := *a.e
				other.File.Path = alias
				holds = max(holds, (&trialActivation{a.t, &other, a.names, a.more}).eval(r.when, &lacks))
			}
			out.ask(p.policy, r.spec.Name, r.spec.Action, min(subject, holds), lacks, &missing)
		}
		if p.deny {
			out.ask(p.policy, "default/"+a.e.Op.String(), pavise.ActionDeny, min(subject, yes-allowed), append(lacks, lacksAllow...), &missing)
		}
	}
	if out.Action < pavise.ActionDeny && len(missing) > 0 {
		slices.Sort(missing)
		out.Missing = slices.Compact(missing)
	}
	return out
}

// ask notes that a rule asks for an action, or may.
func (o *Outcome) ask(p *Policy, rule string, action pavise.Action, holds holding, lacks []string, missing *[]string) {
	switch {
	case holds == yes && action > o.Action:
		o.Action, o.Policy, o.Rule = action, p, rule
	case holds == maybe && action >= pavise.ActionDeny:
		*missing = append(*missing, lacks...)
	}
}

// missingIn says how to see in a recorded event that it has not got a field; nil: it has it always.
func missingIn(f *Field) func(e *pavise.Event) bool {
	group, name, _ := strings.Cut(f.Name, ".")
	switch group {
	case "process":
		if f.Void {
			return nil
		}
		if below, ok := strings.CutPrefix(name, "parent."); ok {
			known := below == "pid" || below == "exe.path" || below == "exe.name"
			return func(e *pavise.Event) bool {
				return !known || e.Process == nil || e.Process.Parent == nil || below != "pid" && e.Process.Parent.Exe.Path == ""
			}
		}
		if name == "pid" {
			return func(e *pavise.Event) bool { return e.Process == nil }
		}
		lacks := missingOfProcess(name)
		return func(e *pavise.Event) bool {
			return e.Process == nil || e.Process.Unknown || lacks != nil && lacks(e.Process)
		}
	case "file":
		return missingOfFile(name)
	case "exec":
		return func(e *pavise.Event) bool { return !strings.HasSuffix(e.Act.Name, "\x00") } // none, or cut
	case "net":
		if f.kind == kindDomain {
			return func(e *pavise.Event) bool { return e.Net.RemoteName == "" && e.Flow == nil }
		}
		if f.Dim == DimTargetExe { // known only where a rule asked for it
			return func(e *pavise.Event) bool {
				return peerPath(e) == "" && e.Net.Family != pavise.FamilyUnix && e.Net.Protocol == pavise.ProtocolTCP
			}
		}
		if f.Dim == DimInterface { // likewise
			return func(e *pavise.Event) bool { return e.Net.Interface == "" && e.Net.Family != pavise.FamilyUnix }
		}
		return func(e *pavise.Event) bool { return e.Net.Family == 0 }
	case "target":
		if strings.HasPrefix(name, "exe.") {
			return func(e *pavise.Event) bool { return e.Act.Target.Path == "" }
		}
	}
	return nil
}

func missingOfProcess(name string) func(p *pavise.Process) bool {
	switch name {
	case "exe.path", "exe.name":
		return func(p *pavise.Process) bool { return p.Exe.Truncated }
	case "exe.digest": // taken only where a rule asked for it
		return func(p *pavise.Process) bool { return p.ExeDigest == "" }
	case "exe.verity":
		return func(p *pavise.Process) bool { return p.ExeVerity == "" }
	case "exe.setuid", "exe.setgid":
		return func(p *pavise.Process) bool { return p.Exe.Mode == 0 }
	case "args", "cmdline":
		return func(p *pavise.Process) bool { return p.ArgsCut }
	case "cwd":
		return func(p *pavise.Process) bool { return p.CWD == "" }
	case "user.name":
		return func(p *pavise.Process) bool { return p.User.Name == "" }
	case "secure_exec", "exe.on_root": // not seen of what already ran
		return func(p *pavise.Process) bool { return p.Found }
	case "container.name", "container.image", "container.labels", "pod.namespace", "pod.name", "pod.labels":
		// Its runtime may not have said anything yet.
		return func(p *pavise.Process) bool {
			return p.Container != nil && p.Container.Image == "" && (name != "container.name" || p.Container.Name == "")
		}
	}
	if strings.HasPrefix(name, "ns.") {
		return func(p *pavise.Process) bool { return p.Namespaces == pavise.Namespaces{} }
	}
	return nil
}

func missingOfFile(name string) func(e *pavise.Event) bool {
	// Where memory is executed or loaded there is no file.
	none := func(e *pavise.Event) bool {
		switch e.Op {
		case pavise.OpMemExec, pavise.OpModule, pavise.OpKexec:
			return e.File.Path == "" && e.File.Inode == 0
		}
		return false
	}
	switch name {
	case "path", "name":
		return func(e *pavise.Event) bool { return e.File.Truncated || e.File.Path == "" && !none(e) }
	case "type", "mode":
		return func(e *pavise.Event) bool { return e.File.Mode == 0 && !none(e) }
	case "owner.id":
		return func(e *pavise.Event) bool { return e.File.Inode == 0 && !none(e) }
	case "fs":
		return func(e *pavise.Event) bool { return e.File.FS == "" && !none(e) }
	}
	return nil
}
