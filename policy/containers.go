package policy

import (
	"slices"
	"strconv"
	"strings"
	"sync"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/operators"

	"github.com/pavise-project/pavise"
)

// This file lets the kernel decide what a runtime says of a container: its name, image and labels, and its pod. The kernel knows a
// process's cgroup alone. So such a test is evaluated when a policy is compiled, on every container that is known then, and becomes the set
// of those containers' cgroups; when the containers change, the policies are compiled anew.

// Container is a container that is known, with what its runtime says of it.
type Container struct {
	Cgroup    string // its own: its processes are in it or below
	Container *pavise.Container
	Pod       *pavise.Pod
}

// containers are the containers of a Machine.
type containers struct {
	list     []Container
	patterns []pattern // by container

	mu    sync.Mutex
	tests map[string]*containerSet // by the test's source
}

// containerSet is what a containerTest comes to on a machine.
type containerSet struct {
	outside bool  // whether it holds for processes in no container, or one of which nothing is known
	in      []int // the containers for which it is the other way round
}

// WithContainers is the same machine while list are the containers that are known. What policies remember for one of them they use for the other,
// where none of their tests comes out differently.
func (m *Machine) WithContainers(list []Container) *Machine {
	c := &containers{list: list, tests: map[string]*containerSet{}}
	for _, k := range list {
		c.patterns = append(c.patterns, pattern{Items: literal(k.Cgroup), Under: true})
	}
	next := *m
	next.base, next.containers = m.root(), c
	return &next
}

// Containers are those for which WithContainers made it.
func (m *Machine) Containers() []Container {
	if m.containers == nil {
		return nil
	}
	return m.containers.list
}

// root is the machine that m is with other containers.
func (m *Machine) root() *Machine {
	if m.base != nil {
		return m.base
	}
	return m
}

// containerTest is a test of what runtimes say of containers, and nothing else.
type containerTest struct {
	src string

	once sync.Once
	expr *Expr
	err  error
}

// on evaluates the test for a process in a container.
func (t *containerTest) on(c *pavise.Container, p *pavise.Pod) (bool, error) {
	t.once.Do(func() { t.expr, t.err = compileExpr(t.src, true) })
	if t.err != nil {
		return false, t.err
	}
	return t.expr.Eval(&pavise.Event{Process: &pavise.Process{Container: c, Pod: p}})
}

// set evaluates a test on the machine's containers.
func (m *Machine) set(t *containerTest) (*containerSet, error) {
	outside, err := t.on(nil, nil)
	if err != nil {
		return nil, err
	}
	s := &containerSet{outside: outside}
	if m == nil || m.containers == nil {
		return s, nil
	}
	cs := m.containers
	cs.mu.Lock()
	defer cs.mu.Unlock()
	if have := cs.tests[t.src]; have != nil {
		return have, nil
	}
	for i, c := range cs.list {
		holds, err := t.on(c.Container, c.Pod)
		if err != nil {
			return nil, err
		}
		if holds != outside {
			s.in = append(s.in, i)
		}
	}
	cs.tests[t.src] = s
	return s, nil
}

// containerAtom is the test as an atom, and whether the atom's negation is meant.
func (n *normaliser) containerAtom(t *containerTest) (a *natom, neg bool, err error) {
	s, err := n.m.set(t)
	if err != nil {
		return nil, false, err
	}
	var ps []pattern
	for _, i := range s.in {
		ps = append(ps, n.m.containers.patterns[i])
	}
	which := "container where "
	if s.outside {
		which = "container where not "
	}
	src := strings.ReplaceAll(t.src, "\n", " ") // the unparser's, those of literals are escaped
	key := which + "(" + src + ")"
	if n.m != nil && n.m.containers != nil { // else nobody has looked
		key += ", " + strconv.Itoa(len(ps)) + " known"
	}
	a = newAtom(DimCgroup, key, ps)
	a.moves = true
	return a, s.outside, nil
}

// AsksContainers reports whether what the policy comes to depends on the containers that are known.
func (p *Policy) AsksContainers() bool {
	return slices.ContainsFunc(p.conditions(), (*Condition).asksContainers)
}

func (c *Condition) asksContainers() bool { return c != nil && len(c.tests) > 0 }

// conditions are those of the policy; nil for one that is left out.
func (p *Policy) conditions() []*Condition {
	all := []*Condition{p.Subject}
	for i := range p.Rules {
		all = append(all, p.Rules[i].When)
	}
	return all
}

// sameContainers reports whether every test of the policy's conditions comes out the same on both machines.
func (p *Policy) sameContainers(a, b *Machine) bool {
	return !slices.ContainsFunc(p.conditions(), func(c *Condition) bool {
		return c != nil && slices.ContainsFunc(c.tests, func(t *containerTest) bool { return !sameSet(t, a, b) })
	})
}

func sameSet(t *containerTest, a, b *Machine) bool {
	x, err := a.set(t)
	y, err2 := b.set(t)
	if err != nil || err2 != nil || len(x.in) != len(y.in) {
		return false
	}
	for i := range x.in {
		if a.containers.list[x.in[i]].Cgroup != b.containers.list[y.in[i]].Cgroup {
			return false
		}
	}
	return true
}

// SameFor reports whether set compiles to the same Image for both machines, which are one with different containers.
func SameFor(set []*Policy, a, b *Machine) bool {
	for _, p := range set {
		if !p.sameContainers(a, b) {
			return false
		}
	}
	return true
}

// containerTest is a node for e when all that it asks for is what runtimes say of containers, in a way that cannot fail; else nil.
func (c *checker) containerTest(e ast.Expr) *cnode {
	asks := false
	if !c.aboutContainer(e, &asks) || !asks {
		return nil
	}
	src, err := cel.ExprToString(e, c.info)
	if err != nil {
		return nil
	}
	n := c.node(e, cContainer)
	n.test = &containerTest{src: src}
	c.tests = append(c.tests, n.test)
	return n
}

// aboutContainer reports whether e is made of literals, such facts, and operators that always have a result. It sets asks when there is a fact.
func (c *checker) aboutContainer(e ast.Expr, asks *bool) bool {
	all := func(es ...ast.Expr) bool {
		for _, e := range es {
			if !c.aboutContainer(e, asks) {
				return false
			}
		}
		return true
	}
	switch e.Kind() {
	case ast.LiteralKind:
		return true
	case ast.IdentKind:
		f := c.field(e)
		if f == nil || f.kind != kindRuntime {
			return false
		}
		*asks = true
		return true
	case ast.SelectKind: // a label, or has(a label)
		f := c.field(e.AsSelect().Operand())
		return f != nil && f.Type != "string" && all(e.AsSelect().Operand())
	case ast.ListKind:
		return all(e.AsList().Elements()...)
	case ast.CallKind:
		call := e.AsCall()
		args := call.Args()
		switch call.FunctionName() {
		case operators.Equals, operators.NotEquals, operators.In, operators.OldIn, operators.Index, operators.LogicalAnd, operators.LogicalOr,
			operators.LogicalNot, operators.Conditional:
			return all(args...)
		case "startsWith", "endsWith", "contains":
			return call.IsMemberFunction() && all(call.Target()) && all(args...)
		case "glob", "matches": // a pattern that is computed may be a bad one
			if !call.IsMemberFunction() || !all(call.Target()) {
				return false
			}
			patterns := args
			if len(args) == 1 && args[0].Kind() == ast.ListKind {
				patterns = args[0].AsList().Elements()
			}
			for _, p := range patterns {
				if _, ok := stringLiteral(p); !ok {
					return false
				}
			}
			return true
		}
	}
	return false
}
