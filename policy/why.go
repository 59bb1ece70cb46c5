package policy

import (
	"fmt"
	"slices"
	"sort"
	"strings"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/common/types/traits"
	"cel.dev/cel-go/interpreter"

	"github.com/pavise-project/pavise"
)

// Reason is one rule by which an event was judged, and how its conditions are on the event's values.
type Reason struct {
	Policy    string `json:"policy"`
	Rule      string `json:"rule"`
	File      string `json:"file,omitempty"`
	Line      int    `json:"line,omitempty"`
	Mode      Mode   `json:"mode"`
	Action    string `json:"action"`              // as the rule asks
	Effective string `json:"effective,omitempty"` // what is done instead
	State     State  `json:"state,omitempty"`
	Degraded  string `json:"degraded,omitempty"` // why it is not done as asked
	// Alias is the other name of the file under which the condition holds, when it does not hold under the first.
	Alias   string `json:"alias,omitempty"`
	Holds   bool   `json:"holds"` // the subject and the condition, on the values that the event has
	Note    string `json:"note,omitempty"`
	Subject *Node  `json:"subject,omitempty"` // nil: every process
	When    *Node  `json:"when,omitempty"`    // nil: always
	// Allows are, of a default, the policy's allow rules for the operation, of which none held.
	Allows []Refusal `json:"allows,omitempty"`
}

// Refusal is an allow rule that did not hold.
type Refusal struct {
	Rule   string `json:"rule"`
	File   string `json:"file,omitempty"`
	Line   int    `json:"line,omitempty"`
	Failed *Node  `json:"failed,omitempty"` // the first of its conditions that did not hold
	Note   string `json:"note,omitempty"`
}

// Node is a sub-expression of a condition, and what it is on an event's values.
type Node struct {
	Kind   NodeKind `json:"kind"`
	Text   string   `json:"text"` // as written, cut when long
	Line   int      `json:"line,omitempty"`
	Column int      `json:"column,omitempty"`
	Result string   `json:"result"` // true, false, or error
	Error  string   `json:"error,omitempty"`
	Facts  []Fact   `json:"facts,omitempty"` // the fields that a test is about
	Of     []*Node  `json:"of,omitempty"`    // the parts of what is no test
}

// NodeKind says how a Node is made of its parts.
type NodeKind string

// The kinds of nodes.
const (
	NodeTest NodeKind = "test"
	NodeAll  NodeKind = "all" // a && b
	NodeAny  NodeKind = "any" // a || b
	NodeNot  NodeKind = "not"
	NodeIf   NodeKind = "if" // a ? b : c
)

// Fact is a field and its value in an event: a string, a number, a boolean, or a list or map of strings.
type Fact struct {
	Field string `json:"field"`
	Value any    `json:"value"`
}

// Results of a Node.
const (
	resultTrue  = "true"
	resultFalse = "false"
	resultError = "error"
)

// Why says by which rules e was judged, strictest first, and how their conditions are on e's values. Set is the policies of
// the generation that judged, m the machine they were compiled for. It fails when e names a rule that set does not have.
func Why(set []*Policy, m *Machine, e *pavise.Event) ([]Reason, error) {
	ids := e.RuleIDs[:min(int(e.Matched), len(e.RuleIDs))]
	if i := slices.Index(ids, NoRule); i >= 0 {
		ids = ids[:i]
	}
	if len(ids) == 0 {
		return nil, nil
	}
	sorted := slices.Clone(set)
	sort.SliceStable(sorted, func(i, j int) bool { return sorted[i].Name < sorted[j].Name })
	out := make([]Reason, 0, len(ids))
	for _, id := range ids {
		p, r := ruleAt(sorted, m, id)
		if p == nil {
			return nil, fmt.Errorf("find rule %d: the policies have fewer", id)
		}
		reason, err := p.reason(m, r, e)
		if err != nil {
			return nil, fmt.Errorf("explain rule %s/%s: %w", p.Name, r.Name, err)
		}
		out = append(out, *reason)
	}
	return out, nil
}

// ruleAt finds the rule that compile gave the number id.
func ruleAt(sorted []*Policy, m *Machine, id uint32) (*Policy, *Rule) {
	for _, p := range sorted {
		n := p.normal(m)
		if int(id) < len(n.rules) {
			return p, &n.rules[id].rule
		}
		id -= uint32(len(n.rules)) //nolint:gosec // of MaxRules
	}
	return nil, nil
}

func (p *Policy) reason(m *Machine, r *Rule, e *pavise.Event) (*Reason, error) {
	out := &Reason{Policy: p.Name, Rule: r.Name, File: p.File, Mode: p.Mode, Action: r.Action.String()}
	for _, rep := range p.normal(m).report.Rules {
		if rep.Rule == r.Name && rep.Op == e.Op {
			out.State, out.Degraded = rep.State, rep.Why
			if rep.Effective != rep.Action {
				out.Effective = rep.Effective.String()
			}
		}
	}
	var when *Condition
	if r.Index < 0 {
		out.Line = p.defaultLines[e.Op][0]
	} else {
		when, out.Line = p.Rules[r.Index].When, p.Rules[r.Index].line
	}
	if err := out.hold(p.Subject, when, e); err != nil {
		return nil, err
	}
	if !out.Holds && r.Index >= 0 && e.File.Alias != "" { // an explicit rule holds under any name
		other := *e
		other.File.Path = e.File.Alias
		under := *out
		if err := under.hold(p.Subject, when, &other); err != nil {
			return nil, err
		}
		if under.Holds {
			*out = under
			out.Alias = e.File.Alias
		}
	}
	switch {
	case out.Holds:
	case r.Residual != nil:
		out.Note = "the kernel left a part of the condition to user space, and it does not hold: the event is not told for this rule"
	default:
		out.Note = disagreement(e, p.Subject, when)
	}
	if r.Index >= 0 {
		return out, nil
	}
	for i := range p.Rules {
		a := &p.Rules[i]
		if a.Action != pavise.ActionAllow || !slices.Contains(a.On, e.Op) {
			continue
		}
		f := Refusal{Rule: a.Name, File: p.File, Line: a.line}
		n, err := trace(a.When, e)
		if err != nil {
			return nil, err
		}
		if f.Failed = n.firstFailed(); f.Failed == nil {
			f.Note = "holds on the values that the event has: " + disagreement(e, a.When)
		}
		out.Allows = append(out.Allows, f)
	}
	return out, nil
}

// hold evaluates the two conditions of a rule.
func (r *Reason) hold(subject, when *Condition, e *pavise.Event) (err error) {
	if r.Subject, err = trace(subject, e); err != nil {
		return err
	}
	if r.When, err = trace(when, e); err != nil {
		return err
	}
	r.Holds = r.Subject.holds() && r.When.holds()
	return nil
}

// disagreement says why the kernel may have judged otherwise than the event's values say of conds.
func disagreement(e *pavise.Event, conds ...*Condition) string {
	switch {
	case e.File.Truncated:
		return fmt.Sprintf("the path is over %d bytes: what cannot be judged exactly is judged strictly", MaxString)
	case e.Process == nil || e.Process.Unknown:
		return "the record of the process was lost or had not come yet, so the facts of it are empty here; the kernel had them"
	case (e.Op == pavise.OpConnect || e.Op == pavise.OpAccept) && e.Act.Target.Path == "" && asks(DimTargetExe, conds):
		return "which program is at the other end was not known: what cannot be judged exactly is judged strictly"
	case e.Op == pavise.OpAccept && e.Net.Family != pavise.FamilyUnix && e.Net.Interface == "" && asks(DimInterface, conds):
		return "by which interface the connection came was not known: what cannot be judged exactly is judged strictly"
	case slices.ContainsFunc(conds, (*Condition).asksContainers):
		return "the kernel judged by what was known of the container at that moment; its name, image, labels and pod may have become known since"
	case e.Op == pavise.OpExec && e.File.Alias != "":
		return "a script is judged under its own name and its interpreter's, each name alone"
	}
	return "the kernel judged by the facts of that moment: user, group, capabilities and namespaces are shown as they were when the program was started, and of a file's other names only the one that decided is known"
}

// asks reports whether one of the conditions is about a fact.
func asks(d Dim, conds []*Condition) bool {
	return slices.ContainsFunc(conds, func(c *Condition) bool {
		return c != nil && slices.ContainsFunc(c.uses, func(u use) bool { return u.field.Dim == d })
	})
}

func (n *Node) holds() bool { return n == nil || n.Result == resultTrue }

// firstFailed is the first sub-expression for which n does not hold, nil when it holds: what to look at first.
func (n *Node) firstFailed() *Node {
	if n.holds() {
		return nil
	}
	if n.Kind == NodeAll {
		for _, s := range n.Of {
			if f := s.firstFailed(); f != nil {
				return f
			}
		}
	}
	return n
}

// trace evaluates c on e, with the value of every sub-expression: those too that would not have been needed. Nil holds always.
func trace(c *Condition, e *pavise.Event) (*Node, error) {
	if c == nil {
		return nil, nil
	}
	// A copy of the condition: rewrite changes its tree.
	cond, problems := checkWith(c.Source, true, c.sets)
	if len(problems) > 0 {
		return nil, (&place{}).error(problems[0])
	}
	tree := cond.ast.NativeRep()
	root := tree.Expr()
	t := &tracer{cond: cond, at: &c.at, event: e, ids: map[*Node]int64{}}
	n := t.node(root)
	ast.PostOrderVisit(root, ast.NewExprVisitor(func(e ast.Expr) {
		rewrite(tree, e)
		rewriteInSet(c.sets, tree, e)
		if cond.isRate(e) { // the kernel has counted, and it was passed
			e.SetKindCase(ast.NewExprFactory().NewLiteral(e.ID(), types.True))
		}
	}))
	prog, err := celEnv().Program(cond.ast, cel.EvalOptions(cel.OptExhaustiveEval), cel.CostLimit(maxCost))
	if err != nil {
		return nil, fmt.Errorf("plan condition: %w", err)
	}
	_, details, err := prog.Eval(&activation{e: e})
	if details == nil || details.State() == nil {
		return nil, fmt.Errorf("evaluate condition: %w", err)
	}
	t.fill(n, details.State(), err)
	return n, nil
}

// tracer makes Nodes of a condition.
type tracer struct {
	cond  *Condition
	at    *place
	event *pavise.Event
	ids   map[*Node]int64
}

func (t *tracer) node(e ast.Expr) *Node {
	line, col := t.cond.start(e)
	at := t.at.error(problem{line: line, col: col})
	n := &Node{Kind: NodeTest, Text: t.cond.text(e), Line: at.Line, Column: at.Column}
	t.ids[n] = e.ID()
	if e.Kind() == ast.CallKind {
		args := e.AsCall().Args()
		switch fn := e.AsCall().FunctionName(); fn {
		case operators.LogicalAnd:
			n.Kind = NodeAll
			t.join(n, fn, args)
			return n
		case operators.LogicalOr:
			n.Kind = NodeAny
			t.join(n, fn, args)
			return n
		case operators.LogicalNot:
			n.Kind = NodeNot
			n.Of = []*Node{t.node(args[0])}
			return n
		case operators.Conditional:
			n.Kind = NodeIf
			for _, a := range args {
				n.Of = append(n.Of, t.node(a))
			}
			return n
		}
	}
	seen := map[string]bool{}
	ast.PreOrderVisit(e, ast.NewExprVisitor(func(e ast.Expr) {
		if e.Kind() != ast.IdentKind {
			return
		}
		if f := fieldByName[strings.TrimPrefix(e.AsIdent(), ".")]; f != nil && !seen[f.Name] {
			seen[f.Name] = true
			n.Facts = append(n.Facts, Fact{f.Name, nativeValue(f.value(t.event))})
		}
	}))
	return n
}

// join adds the operands of a chain of one operator, which CEL nests, side by side.
func (t *tracer) join(n *Node, fn string, args []ast.Expr) {
	for _, a := range args {
		if a.Kind() == ast.CallKind && a.AsCall().FunctionName() == fn {
			t.join(n, fn, a.AsCall().Args())
			continue
		}
		n.Of = append(n.Of, t.node(a))
	}
}

// fill takes the results over. What has no value was not reached, because of err.
func (t *tracer) fill(n *Node, st interpreter.EvalState, err error) {
	v, ok := st.Value(t.ids[n])
	switch b, isBool := v.(types.Bool); {
	case isBool && bool(b):
		n.Result = resultTrue
	case isBool:
		n.Result = resultFalse
	default:
		n.Result = resultError
		switch e, isErr := v.(*types.Err); {
		case isErr:
			n.Error = e.String()
		case err != nil:
			n.Error = err.Error()
		case !ok:
			n.Error = "not evaluated"
		}
	}
	for _, s := range n.Of {
		t.fill(s, st, err)
	}
}

// nativeValue is v as it stands in JSON. A process is its executable's path.
func nativeValue(v ref.Val) any {
	switch x := v.(type) {
	case types.String:
		return string(x)
	case types.Int:
		return int64(x)
	case types.Bool:
		return bool(x)
	case *procVal:
		return x.p.Exe.Path
	case traits.Mapper:
		m := map[string]any{}
		for it := x.Iterator(); it.HasNext() == types.True; {
			k := it.Next()
			m[fmt.Sprint(k.Value())] = nativeValue(x.Get(k))
		}
		return m
	case traits.Lister:
		l := []any{}
		for it := x.Iterator(); it.HasNext() == types.True; {
			l = append(l, nativeValue(it.Next()))
		}
		return l
	}
	return fmt.Sprint(v.Value())
}
