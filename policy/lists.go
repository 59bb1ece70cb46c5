package policy

import (
	"fmt"
	"strconv"
	"strings"

	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/operators"

	"github.com/pavise-project/pavise"
)

// This file makes patterns of tests on lists of strings, the arguments and the ancestors of a process. The kernel has a list as one
// string: its elements, each followed by NUL, which no element has. A test on an element is first a set of patterns of the element
// alone, without NUL in their sets.

const (
	maxElements = 32      // how far into a list [N] and size() look
	maxCommon   = 100_000 // steps, in one condition, to find what patterns have in common
	maxInCommon = 4096    // patterns
)

var (
	nonNUL = anyByte.without(0)
	zero   = item{Set: oneByte(0)}
)

// exists is list.exists(v, test), or list.all(v, test): no element fails it.
func (c *checker) exists(e ast.Expr) *cnode {
	m := e.AsComprehension()
	f := c.field(m.IterRange())
	init, ok := boolLiteral(m.AccuInit())
	if f == nil || f.kind != kindArgs && f.kind != kindAncestors || m.HasIterVar2() || !ok || m.LoopStep().Kind() != ast.CallKind {
		return c.unknown(e)
	}
	step := m.LoopStep().AsCall()
	switch fn := step.FunctionName(); {
	case !init && fn == operators.LogicalOr:
	case init && fn == operators.LogicalAnd:
	default:
		return c.unknown(e)
	}
	x := &element{c: c, name: m.IterVar(), list: f}
	ps, ok := x.patterns(step.Args()[1], init)
	if !ok {
		return c.unknown(e)
	}
	n := c.anyElement(e, f, ps)
	if init {
		n = c.node(e, cNot, n)
	}
	return n
}

// anyElement is the test that one of the patterns matches an element.
func (c *checker) anyElement(e ast.Expr, f *Field, ps []pattern) *cnode {
	if len(ps) == 0 {
		return c.node(e, cFalse)
	}
	var out []pattern
	for _, p := range ps {
		if its := p.Items; len(its) > 1 && its[0] == loop(nonNUL) { // the element may begin anywhere before
			out = append(out, pattern{Items: seq(loop(anyByte), elementTail(its[1:]))})
			continue
		}
		its := elementTail(p.Items)
		out = append(out, pattern{Items: its}, pattern{Items: seq(loop(anyByte), zero, its)})
	}
	return c.leaf(e, f.atomOf("any="+elementsKey(ps), out))
}

// elementTail is the end of a list that begins with an element. An element that may end as it likes needs no NUL: there is one.
func elementTail(its []item) []item {
	n := len(its) - 1
	switch {
	case n < 0 || its[n] != loop(nonNUL):
		return seq(its, zero, loop(anyByte))
	case n == 0: // any element
		return seq(item{Set: anyByte}, loop(anyByte))
	}
	return seq(its[:n], loop(anyByte))
}

// elementsKey is patternsKey, with the sets that lack only NUL shown as those of any string: one to one, as no set here has it.
func elementsKey(ps []pattern) string {
	shown := make([]pattern, len(ps))
	for i, p := range ps {
		shown[i].Items = append([]item(nil), p.Items...)
		for j := range shown[i].Items {
			switch it := &shown[i].Items[j]; it.Set {
			case nonNUL:
				it.Set = anyByte
			case nonSlash.without(0):
				it.Set = nonSlash
			}
		}
	}
	return patternsKey(shown)
}

// after are the items of n elements, whatever they are.
func after(n int) []item {
	var its []item
	for range n {
		its = append(its, loop(nonNUL), zero)
	}
	return its
}

// indexed is the test fn of list[N], nil when target is not that. An element that is not there fails the test and its negation,
// as CEL's error does.
func (c *checker) indexed(e, target ast.Expr, fn string, els []ast.Expr) *cnode {
	if target.Kind() != ast.CallKind || target.AsCall().FunctionName() != operators.Index {
		return nil
	}
	args := target.AsCall().Args()
	f := c.field(args[0])
	at, ok := intLiteral(args[1])
	if f == nil || f.kind != kindArgs || !ok {
		return nil
	}
	if at < 0 || at >= maxElements {
		if at < 0 {
			c.fail(args[1], "the first is [0]", "%d is out of range", at)
		}
		return c.unknown(e)
	}
	x := &element{c: c, list: f}
	ps, ok := x.test(nil, fn, els)
	if !ok {
		return c.unknown(e)
	}
	var out []pattern
	for _, p := range ps {
		out = append(out, pattern{Items: seq(after(int(at)), elementTail(p.Items))})
	}
	n := c.leaf(e, f.atomOf(fmt.Sprintf("[%d]=%s", at, elementsKey(ps)), out))
	n.has = sizeAtom(f, int(at)+1)
	return n
}

// sizeAtom is the test that a list has at least n elements.
func sizeAtom(f *Field, n int) *natom {
	return f.atomOf("size>="+strconv.Itoa(n), []pattern{{Items: seq(after(n), loop(anyByte))}})
}

// size is the list whose size e is, nil when it is something else.
func (c *checker) size(e ast.Expr) *Field {
	if e.Kind() != ast.CallKind || e.AsCall().FunctionName() != "size" {
		return nil
	}
	call := e.AsCall()
	list := call.Target()
	if !call.IsMemberFunction() {
		list = call.Args()[0]
	}
	if f := c.field(list); f != nil && f.kind == kindArgs {
		return f
	}
	return nil
}

// sizeIn is the test that a list has lo to hi elements; hi below 0 is no bound.
func (c *checker) sizeIn(e ast.Expr, f *Field, lo, hi int64) *cnode {
	if lo > maxElements || hi >= maxElements {
		return c.unknown(e)
	}
	n := c.node(e, cAnd)
	if lo > 0 {
		n.subs = append(n.subs, c.leaf(e, sizeAtom(f, int(lo))))
	}
	if hi >= 0 {
		n.subs = append(n.subs, c.node(e, cNot, c.leaf(e, sizeAtom(f, int(hi)+1))))
	}
	if len(n.subs) == 0 {
		return c.node(e, cTrue)
	}
	return n
}

// sizeOrder is the test of a list's size by an operator.
func (c *checker) sizeOrder(e ast.Expr, fn string, f *Field, i int64) *cnode {
	switch fn {
	case operators.Less:
		i--
		fallthrough
	case operators.LessEquals:
		if i < 0 {
			return c.node(e, cFalse)
		}
		return c.sizeIn(e, f, 0, i)
	case operators.Greater:
		i++
	}
	return c.sizeIn(e, f, max(i, 0), -1)
}

// listEqual is a == b where a is of a list: the list itself, an element by its number, or its size. Nil when it is not.
func (c *checker) listEqual(e, a, b ast.Expr) *cnode {
	if n := c.indexed(e, a, "==", []ast.Expr{b}); n != nil {
		return n
	}
	if f := c.size(a); f != nil {
		switch i, ok := intLiteral(b); {
		case !ok:
			return c.unknown(e)
		case i < 0:
			return c.node(e, cFalse)
		default:
			return c.sizeIn(e, f, i, i)
		}
	}
	if f := c.field(a); f != nil && f.kind == kindArgs && b.Kind() == ast.ListKind {
		return c.listIs(e, f, b)
	}
	return nil
}

// listIs is the test that a list has these elements and no others.
func (c *checker) listIs(e ast.Expr, f *Field, list ast.Expr) *cnode {
	var its []item
	for _, el := range list.AsList().Elements() {
		s, ok := stringLiteral(el)
		if !ok {
			return c.unknown(e)
		}
		if !c.noNUL(el, s) {
			return c.unknown(e)
		}
		its = seq(its, s, zero)
	}
	return c.leaf(e, f.atomOf("list="+patternsKey([]pattern{{Items: its}}), []pattern{{Items: its}}))
}

func (c *checker) noNUL(e ast.Expr, s string) bool {
	if strings.IndexByte(s, 0) >= 0 {
		c.fail(e, "", "string %q has a NUL byte, and no argument does", s)
		return false
	}
	return true
}

// commandLine is the test that the arguments, joined by spaces, are one of the patterns'. A space matches the NUL between two of
// them, but not the last one.
func (c *checker) commandLine(e ast.Expr, f *Field, ps []pattern) *cnode {
	var out []pattern
	for _, p := range ps {
		its := make([]item, len(p.Items))
		for i, it := range p.Items {
			it.Set = it.Set.without(0)
			if it.Set.has(' ') {
				it.Set.add(0)
			}
			its[i] = it
		}
		if p.match("") { // no arguments at all
			out = append(out, pattern{})
		}
		if n := len(its); n > 1 && its[n-1] == loop(anyByte) && !its[n-2].Set.has(0) {
			out = append(out, pattern{Items: its}) // the last NUL is still to come
			continue
		}
		out = append(out, pattern{Items: seq(its, zero)})
	}
	return c.leaf(e, f.atomOf("line="+patternsKey(ps), out))
}

// element is what a variable of a macro stands for: an element of a list.
type element struct {
	c    *checker
	name string
	list *Field
}

// patterns are those of the elements for which e holds, or with neg does not. It reports false when patterns cannot say it.
func (x *element) patterns(e ast.Expr, neg bool) ([]pattern, bool) {
	if b, ok := boolLiteral(e); ok {
		if b == neg {
			return nil, true
		}
		return []pattern{{Items: seq(loop(nonNUL))}}, true
	}
	if e.Kind() != ast.CallKind {
		return nil, false
	}
	call := e.AsCall()
	args := call.Args()
	switch fn := call.FunctionName(); fn {
	case operators.LogicalNot:
		return x.patterns(args[0], !neg)
	case operators.LogicalAnd, operators.LogicalOr:
		var all []pattern
		for i, a := range args {
			ps, ok := x.patterns(a, neg)
			if !ok {
				return nil, false
			}
			if i > 0 && (fn == operators.LogicalAnd) != neg {
				all, ok = x.c.common(all, ps)
			} else {
				all = append(all, ps...)
			}
			if !ok {
				return nil, false
			}
		}
		return all, true
	case operators.Equals, operators.NotEquals:
		a, b := args[0], args[1]
		f, ok := x.part(a)
		if !ok {
			a, b = b, a
			f, ok = x.part(a)
		}
		return x.leaf(ok, f, "==", []ast.Expr{b}, neg != (fn == operators.NotEquals))
	case operators.In, operators.OldIn:
		f, ok := x.part(args[0])
		if !ok || args[1].Kind() != ast.ListKind {
			return nil, false
		}
		return x.leaf(ok, f, "==", args[1].AsList().Elements(), neg)
	case "startsWith", "endsWith", "contains", "glob", "under":
		if !call.IsMemberFunction() {
			return nil, false
		}
		f, ok := x.part(call.Target())
		if args[0].Kind() == ast.ListKind {
			args = args[0].AsList().Elements()
		}
		return x.leaf(ok, f, fn, args, neg)
	}
	return nil, false
}

// late reports whether e is about the arguments of a new program, known only when it is in place.
func (c *checker) late(e ast.Expr) (late bool) {
	ast.PreOrderVisit(e, ast.NewExprVisitor(func(e ast.Expr) {
		if f := c.field(e); f != nil && f.late() {
			late = true
		}
	}))
	return late
}

func (f *Field) late() bool {
	return f.kind == kindArgs && f.Dim == DimName || f.kind == kindCmdline && f.Dim == DimName
}

// anyLate holds for all arguments of a new program. What has it is judged late.
var anyLate = &natom{dim: DimName, key: "exec.args any", patterns: []pattern{{Items: seq(loop(anyByte))}}}

// late reports whether c is judged when the new program is in place.
func (c cube) late(op pavise.Op) bool { return op == pavise.OpExec && c[DimName] != nil }

// part is the field of an ancestor that e is; nil for the element itself.
func (x *element) part(e ast.Expr) (*Field, bool) {
	if x.list.kind == kindArgs {
		return nil, e.Kind() == ast.IdentKind && e.AsIdent() == x.name
	}
	f := memberField(x.c.ast.NativeRep(), e)
	if f == nil || f.Dim != DimExe || !strings.HasPrefix(dotted(e), x.name+".") {
		return nil, false
	}
	return f, true
}

func (x *element) leaf(ok bool, f *Field, fn string, els []ast.Expr, neg bool) ([]pattern, bool) {
	if !ok {
		return nil, false
	}
	ps, ok := x.test(f, fn, els)
	if !ok || !neg {
		return ps, ok
	}
	all := []pattern{{Items: seq(loop(nonNUL))}}
	for _, p := range ps {
		not, ok := complement(p.Items)
		if !ok {
			return nil, false
		}
		if all, ok = x.c.common(all, not); !ok {
			return nil, false
		}
	}
	return all, true
}

// test is the patterns of fn with one of the literals els, of the field f of an element or, when that is nil, of the element.
func (x *element) test(f *Field, fn string, els []ast.Expr) ([]pattern, bool) {
	var all []pattern
	for _, el := range els {
		s, ok := stringLiteral(el)
		if !ok || !x.c.noNUL(el, s) || len(s) > MaxString {
			return nil, false
		}
		var ps []pattern
		switch fn {
		case "glob", "under":
			var err error
			if ps, err = functionPatterns(fn, f, s); err != nil {
				return nil, false // reported by walk
			}
		case "==":
			if f != nil {
				if s, ok = x.c.canonical(f, el, s); !ok {
					return nil, false
				}
			}
			ps = []pattern{{Items: literal(s)}}
		default:
			if f != nil && f.kind == kindPath && fn == "startsWith" && s != "" && !strings.HasPrefix(s, "/") {
				x.c.fail(el, "", "path prefix %q is relative and matches nothing: it must begin with \"/\"", s)
				return nil, false
			}
			l := anyByte
			if f != nil && f.kind == kindName && s != "" {
				if _, ok := x.c.canonical(f, el, s); !ok {
					return nil, false
				}
				l = nonSlash
			}
			ps = []pattern{{Items: around(fn, s, l)}}
		}
		for _, p := range ps {
			if f == nil || f.kind != kindName || fn != "==" && fn != "glob" && s == "" {
				all = append(all, p)
			} else {
				all = append(all, namePatterns(p.Items)...)
			}
		}
	}
	return withoutNUL(all), true
}

// withoutNUL takes NUL from the sets of patterns, and makes two patterns of one with Under.
func withoutNUL(ps []pattern) []pattern {
	var out []pattern
next:
	for _, p := range ps {
		var its []item
		for _, it := range p.Items {
			it.Set = it.Set.without(0)
			if it.Set != (byteSet{}) {
				its = append(its, it)
			} else if !it.Loop {
				continue next
			}
		}
		out = append(out, pattern{Items: its})
		if p.Under {
			out = append(out, pattern{Items: seq(its, "/", loop(nonNUL))})
		}
	}
	return out
}

// complement is the patterns of the strings without NUL that its does not match. It reports false for what has loops elsewhere than at
// one end, of which patterns cannot say the opposite.
func complement(its []item) ([]pattern, bool) {
	all := loop(nonNUL)
	prefix, suffix := false, false
	if n := len(its); n > 0 && its[n-1] == all {
		its, prefix = its[:n-1], true
	}
	if len(its) > 0 && its[0] == all {
		its, suffix = its[1:], true
	}
	n := len(its)
	if prefix && suffix || 2*n+1 > maxAlternatives {
		return nil, false
	}
	for _, it := range its {
		if it.Loop {
			return nil, false
		}
	}
	var out []pattern
	for k := range n {
		if suffix {
			out = append(out, pattern{Items: seq(its[n-k:])}) // too short
			if _, not := nonNUL.split(&its[n-1-k].Set); not != (byteSet{}) {
				out = append(out, pattern{Items: seq(all, item{Set: not}, its[n-k:])})
			}
			continue
		}
		out = append(out, pattern{Items: seq(its[:k])})
		if _, not := nonNUL.split(&its[k].Set); not != (byteSet{}) {
			out = append(out, pattern{Items: seq(its[:k], item{Set: not}, all)})
		}
	}
	if !prefix && !suffix { // too long
		out = append(out, pattern{Items: seq(its, item{Set: nonNUL}, all)})
	}
	return out, true
}

// common is the patterns of the strings that a pattern of both sets matches. It reports false when they are too many.
func (c *checker) common(a, b []pattern) ([]pattern, bool) {
	x := crossing{seen: map[string]bool{}, steps: &c.steps}
	for _, p := range a {
		for _, q := range b {
			x.walk(p.Items, q.Items, nil)
			if c.steps > maxCommon || len(x.out) > maxInCommon {
				return nil, false
			}
		}
	}
	return x.out, true
}

// crossing goes through two patterns at once: each way to do so is a pattern of what they have in common.
type crossing struct {
	out   []pattern
	seen  map[string]bool
	steps *int
}

// walk continues with what is left of two patterns behind its.
func (x *crossing) walk(p, q, its []item) {
	if *x.steps++; *x.steps > maxCommon || len(x.out) > maxInCommon {
		return
	}
	if len(p) == 0 && len(q) == 0 {
		r := pattern{Items: seq(its)}
		if k := patternText(&r); !x.seen[k] {
			x.seen[k] = true
			x.out = append(x.out, r)
		}
		return
	}
	pLoop, qLoop := len(p) > 0 && p[0].Loop, len(q) > 0 && q[0].Loop
	var both byteSet
	if len(p) > 0 && len(q) > 0 {
		both, _ = p[0].Set.split(&q[0].Set)
	}
	switch one := (item{Set: both}); {
	case pLoop && qLoop:
		if both != (byteSet{}) && (len(its) == 0 || its[len(its)-1] != loop(both)) {
			its = append(its, loop(both))
		}
		x.walk(p[1:], q, its)
		x.walk(p, q[1:], its)
	case pLoop:
		x.walk(p[1:], q, its)
		if both != (byteSet{}) {
			x.walk(p, q[1:], append(its, one))
		}
	case qLoop:
		x.walk(p, q[1:], its)
		if both != (byteSet{}) {
			x.walk(p[1:], q, append(its, one))
		}
	case both != (byteSet{}):
		x.walk(p[1:], q[1:], append(its, one))
	}
}

// memberField is the field of a process that e is, when the process is no variable: an ancestor's. Nil for all else.
func memberField(t *ast.AST, e ast.Expr) *Field {
	name := ""
	for e.Kind() == ast.SelectKind {
		s := e.AsSelect()
		name = "." + s.FieldName() + name
		e = s.Operand()
		if typ := t.GetType(e.ID()); typ != nil && typ.TypeName() == processType {
			return fieldByName["process"+name]
		}
	}
	return nil
}
