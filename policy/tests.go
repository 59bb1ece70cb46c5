package policy

import (
	"encoding/json"
	"fmt"
	"slices"
	"sort"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/pavise-project/pavise"
)

// This file is the tests that stand in a policy: spec.tests. Each is an act in the form in which events are printed, and what the policy is to say of it. They
// are about that policy alone, whatever its mode and the machine.

const maxTests = 1000

// Test is one of a policy's own tests.
type Test struct {
	Name   string
	Event  *pavise.Event // the act
	Expect pavise.Action // none, audit, deny or kill
	By     string        // the rule that is to say so; empty: any

	line, col int
	field     string
}

// TestResult is what came of a test.
type TestResult struct {
	Policy string `json:"policy"`
	Test   string `json:"test"`
	File   string `json:"file,omitempty"`
	Line   int    `json:"line,omitempty"`
	OK     bool   `json:"ok"`
	Want   string `json:"want"`
	Got    string `json:"got"`
	By     string `json:"by,omitempty"` // the rule that said Got
	Why    string `json:"why,omitempty"`
}

// tests reads spec.tests, once the rules are known.
func (p *parser) tests(pol *Policy, v *yaml.Node) {
	if v.Kind != yaml.SequenceNode {
		p.at(v, "spec.tests", "begin each test with \"- name:\"", "want a list of tests, not %s", nodeKind(v))
		return
	}
	if len(v.Content) > maxTests {
		p.at(v, "spec.tests", "split the policy", "%d tests are too many: the limit is %d", len(v.Content), maxTests)
		return
	}
	rules := map[string]bool{}
	for i := range pol.Rules {
		rules[pol.Rules[i].Name] = true
	}
	for _, op := range pol.Default {
		rules["default/"+op.String()] = true
	}
	for i, n := range v.Content {
		p.test(pol, n, fmt.Sprintf("spec.tests[%d]", i), rules)
	}
}

func (p *parser) test(pol *Policy, n *yaml.Node, field string, rules map[string]bool) {
	t := Test{line: p.base + n.Line, col: n.Column, field: field}
	var on, expect *yaml.Node
	act := map[string]*yaml.Node{}
	keys := map[string]func(*yaml.Node, string){
		"name": func(v *yaml.Node, f string) { t.Name, _ = p.text(v, f) },
		"on":   func(v *yaml.Node, _ string) { on = v },
		"expect": func(v *yaml.Node, f string) {
			expect = v
			switch p.choice(v, f, "none", "audit", "deny", "kill") {
			case "audit":
				t.Expect = pavise.ActionAudit
			case "deny":
				t.Expect = pavise.ActionDeny
			case "kill":
				t.Expect = pavise.ActionKill
			}
		},
		"by": func(v *yaml.Node, f string) {
			if t.By, _ = p.text(v, f); t.By != "" && !rules[t.By] {
				p.at(v, f, "", "the policy has no rule %q", t.By)
			}
		},
	}
	for _, k := range append([]string{"time", "process"}, objectNames...) {
		keys[k] = func(v *yaml.Node, _ string) { act[k] = v }
	}
	before := p.count
	p.mapping(n, field, keys)
	if n.Kind != yaml.MappingNode {
		return
	}
	var op pavise.Op
	if on == nil {
		p.at(n, field+".on", "write the operation, as file.open", "is missing")
	} else if s, ok := p.text(on, field+".on"); ok {
		if ops := p.ops(on, field+".on", s); len(ops) == 1 {
			op = ops[0]
		} else if len(ops) > 1 {
			p.at(on, field+".on", "write one of them", "a test is about one operation")
		}
	}
	if t.Name == "" {
		p.at(n, field+".name", "", "is missing")
	}
	if expect == nil {
		p.at(n, field+".expect", "it is one of none, audit, deny, kill", "is missing")
	}
	if p.count > before {
		return
	}
	has := objectsOf(op)
	doc := map[string]any{"op": op.String()}
	for k, v := range act {
		if k != "time" && k != "process" && !slices.Contains(has, k) {
			hint := "it has none"
			if len(has) > 0 {
				hint = "it has " + strings.Join(has, ", ")
			}
			p.at(v, field+"."+k, hint, "%s has no %s", op, k)
			continue
		}
		doc[k] = plainValue(v)
	}
	if p.count > before {
		return
	}
	data, err := json.Marshal(doc)
	if err == nil {
		t.Event, err = pavise.ParseEvent(data)
	}
	if err != nil {
		p.at(n, field, "the act is written as events are printed: pavise events -o json", "%v", err)
		return
	}
	if t.Event.Process == nil {
		t.Event.Process = &pavise.Process{}
	}
	pol.Tests = append(pol.Tests, t)
}

// objectNames are what acts have beside their process, as in the names of fields.
var objectNames = func() (names []string) {
	for op := range pavise.Op(pavise.NumJudged) {
		names = append(names, objectsOf(op)...)
	}
	slices.Sort(names)
	return slices.Compact(names)
}()

func objectsOf(op pavise.Op) (names []string) {
	for i := range objectFields {
		f := &objectFields[i]
		if name, _, ok := strings.Cut(f.Name, "."); ok && slices.Contains(f.Ops, op) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// plainValue is a YAML value as encoding/json takes it.
func plainValue(n *yaml.Node) any {
	switch n.Kind {
	case yaml.MappingNode:
		m := map[string]any{}
		for i := 0; i+1 < len(n.Content); i += 2 {
			m[n.Content[i].Value] = plainValue(n.Content[i+1])
		}
		return m
	case yaml.SequenceNode:
		l := []any{}
		for _, c := range n.Content {
			l = append(l, plainValue(c))
		}
		return l
	}
	var v any
	if n.Tag == "!!timestamp" || n.Decode(&v) != nil {
		return n.Value
	}
	return v
}

// RunTests runs the policy's tests, and remembers what came of them: a policy is not changed.
func (p *Policy) RunTests() []TestResult {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.results == nil && len(p.Tests) > 0 {
		for i := range p.Tests {
			p.results = append(p.results, p.runTest(&p.Tests[i]))
		}
	}
	return p.results
}

// TestErrors are the tests of policies that failed, each with its place; nil when none did.
func TestErrors(set []*Policy) error {
	var errs Errors
	for _, p := range set {
		for i, r := range p.RunTests() {
			if r.OK {
				continue
			}
			t := &p.Tests[i]
			errs = append(errs, &Error{File: p.File, Line: t.line, Column: t.col, Field: t.field, Msg: fmt.Sprintf("test %q failed: want %s, got %s", r.Test, r.Want, r.Got), Hint: r.Why})
		}
	}
	if len(errs) > 0 {
		return errs
	}
	return nil
}

// Untested are the rules of which no test says that they act.
func (p *Policy) Untested() []string {
	var names []string
	for i := range p.Rules {
		names = append(names, p.Rules[i].Name)
	}
	for _, op := range p.Default {
		names = append(names, "default/"+op.String())
	}
	for _, r := range p.RunTests() {
		names = slices.DeleteFunc(names, func(n string) bool { return r.OK && n == r.By })
	}
	return names
}

func (p *Policy) runTest(t *Test) TestResult {
	r := TestResult{Policy: p.Name, Test: t.Name, File: p.File, Line: t.line, Want: said(t.Expect, t.By)}
	asked, err := p.asks(t.Event)
	if err != nil {
		r.Got, r.Why = "an error", err.Error()
		return r
	}
	var got pavise.Action
	for _, a := range asked {
		if a.action > got { // the strictest, and of these the first, or the one that is wanted
			got, r.By = a.action, a.rule
		}
		if a.action == got && a.rule == t.By {
			r.By = a.rule
		}
	}
	r.Got = said(got, r.By)
	r.OK = got == t.Expect && (t.By == "" || t.By == r.By)
	if !r.OK {
		r.Why = p.whyNot(t)
	}
	return r
}

func said(a pavise.Action, by string) string {
	switch {
	case a == pavise.ActionNone:
		return "none"
	case by == "":
		return a.String()
	}
	return a.String() + " by " + by
}

// asked is a rule that acts on an event, and what it asks for.
type asked struct {
	rule   string
	action pavise.Action
}

// asks are the rules of the policy, and its default, that say something of an event; not those that allow.
func (p *Policy) asks(e *pavise.Event) (out []asked, err error) {
	subject, err := p.holdsFor(nil, e)
	if err != nil || !subject {
		return nil, err
	}
	allowed := false
	for i := range p.Rules {
		r := &p.Rules[i]
		if !slices.Contains(r.On, e.Op) {
			continue
		}
		ok, err := p.holdsFor(r, e)
		if err != nil {
			return nil, fmt.Errorf("rule %s: %w", r.Name, err)
		}
		switch {
		case ok && r.Action == pavise.ActionAllow:
			allowed = true
		case ok:
			out = append(out, asked{r.Name, r.Action})
		}
	}
	if slices.Contains(p.Default, e.Op) && !allowed {
		out = append(out, asked{"default/" + e.Op.String(), pavise.ActionDeny})
	}
	sort.SliceStable(out, func(i, j int) bool { return out[i].action > out[j].action })
	return out, nil
}

// holdsFor evaluates a rule's condition, or the policy's subject. An explicit rule holds under any name of a file.
func (p *Policy) holdsFor(r *RuleSpec, e *pavise.Event) (bool, error) {
	c := p.Subject
	if r != nil {
		c = r.When
	}
	n, err := trace(c, e)
	if err != nil || n.holds() || r == nil || r.Action == pavise.ActionAllow || e.File.Alias == "" {
		return n.holds(), err
	}
	other := *e
	other.File.Path = e.File.Alias
	n, err = trace(c, &other)
	return n.holds(), err
}

// whyNot says of the rule that was to act which part of its condition does not hold.
func (p *Policy) whyNot(t *Test) string {
	for i := range p.Rules {
		r := &p.Rules[i]
		if r.Name != t.By && (t.By != "" || r.Action != t.Expect || t.Expect == pavise.ActionNone) {
			continue
		}
		if !slices.Contains(r.On, t.Event.Op) {
			if r.Name == t.By {
				return fmt.Sprintf("rule %s is not about %s", r.Name, t.Event.Op)
			}
			continue
		}
		for _, c := range []*Condition{p.Subject, r.When} {
			n, err := trace(c, t.Event)
			if err != nil {
				return err.Error()
			}
			if f := n.firstFailed(); f != nil {
				return fmt.Sprintf("rule %s does not hold: %s is %s%s", r.Name, f.Text, f.Result, factList(f))
			}
		}
	}
	return ""
}

func factList(n *Node) string {
	var b strings.Builder
	for i, f := range n.Facts {
		sep := ", "
		if i == 0 {
			sep = " where "
		}
		v, err := json.Marshal(f.Value)
		if err != nil {
			v = []byte("?")
		}
		fmt.Fprintf(&b, "%s%s is %s", sep, f.Field, v)
	}
	return b.String()
}

// Asks returns the first of the policy's rules that asks to deny, to kill or to tell of an event; nothing when none does. The policy's mode does not matter.
func (p *Policy) Asks(e *pavise.Event) (rule string, err error) {
	asked, err := p.asks(e)
	if err != nil || len(asked) == 0 {
		return "", err
	}
	return asked[0].rule, nil
}

// IsAbout reports whether the policy's subject holds for the process of an event.
func (p *Policy) IsAbout(e *pavise.Event) (bool, error) { return p.holdsFor(nil, e) }
