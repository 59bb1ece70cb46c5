package policy

import (
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"sync"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/common/types/traits"

	"github.com/pavise-project/pavise"
)

// maxCost bounds the work of one evaluation, in CEL's units. Only conditions with loops can be long; the others are as
// long as their text.
const maxCost = 1 << 20

// Expr is a condition that user space evaluates on events. It may be used by several goroutines.
type Expr struct {
	src    string
	prog   cel.Program
	narrow Narrow
}

// CompileWhere compiles a condition over all fields, those of the event included. The error is an Errors with
// lines and columns in src.
func CompileWhere(src string) (*Expr, error) { return compileExpr(src, false) }

func compileExpr(src string, policy bool) (*Expr, error) { return compileExprWith(src, policy, nil) }

func compileExprWith(src string, policy bool, sets *setFiles) (*Expr, error) {
	c, problems := checkWith(src, policy, sets)
	if len(problems) > 0 {
		var errs Errors
		for _, p := range problems {
			errs = append(errs, (&place{}).error(p))
		}
		return nil, errs
	}
	tree := c.ast.NativeRep()
	loops := false
	ast.PostOrderVisit(tree.Expr(), ast.NewExprVisitor(func(e ast.Expr) {
		if e.Kind() == ast.ComprehensionKind {
			loops = true
		}
		rewrite(tree, e)
		rewriteInSet(sets, tree, e)
	}))
	opts := []cel.ProgramOption{cel.EvalOptions(cel.OptOptimize)}
	if loops {
		opts = append(opts, cel.CostLimit(maxCost))
	}
	prog, err := celEnv().Program(c.ast, opts...)
	if err != nil {
		return nil, fmt.Errorf("plan condition: %w", err)
	}
	return &Expr{src: src, prog: prog, narrow: narrowOf(tree)}, nil
}

// String returns the condition as written.
func (x *Expr) String() string { return x.src }

// Eval reports whether the condition holds for e. It fails when the condition divides by zero, uses what is computed as a pattern and is none,
// or takes too long.
func (x *Expr) Eval(e *pavise.Event) (bool, error) {
	v := activations.Get().(*activation)
	v.e = e
	out, _, err := x.prog.Eval(v)
	v.e = nil
	activations.Put(v)
	if err != nil {
		return false, fmt.Errorf("evaluate condition: %w", err)
	}
	b, ok := out.(types.Bool)
	if !ok {
		return false, errors.New("evaluate condition: result is not a boolean")
	}
	return bool(b), nil
}

// activation resolves the fields of one event as they are asked for.
type activation struct{ e *pavise.Event }

var activations = sync.Pool{New: func() any { return new(activation) }}

func (a *activation) ResolveName(name string) (any, bool) {
	f := fieldByName[name]
	if f == nil {
		return nil, false
	}
	return f.value(a.e), true
}

func (a *activation) Parent() cel.Activation { return nil }

// rewrite prepares literals: patterns are compiled once, and paths and addresses are written as facts are. It makes a label that is not there empty.
func rewrite(tree *ast.AST, e ast.Expr) {
	rewriteLabel(tree, e)
	if e.Kind() != ast.CallKind {
		return
	}
	call := e.AsCall()
	args := call.Args()
	fieldOf := func(e ast.Expr) *Field {
		if e.Kind() != ast.IdentKind {
			return memberField(tree, e)
		}
		return fieldByName[strings.TrimPrefix(e.AsIdent(), ".")]
	}
	fac := ast.NewExprFactory()
	canonical := func(f *Field, e ast.Expr) {
		if s, ok := stringLiteral(e); ok && f != nil {
			if out, _, err := canonicalText(f, s); err == nil && out != s {
				e.SetKindCase(fac.NewLiteral(e.ID(), types.String(out)))
			}
		}
	}
	switch fn := call.FunctionName(); fn {
	case operators.Equals, operators.NotEquals:
		canonical(fieldOf(args[0]), args[1])
		canonical(fieldOf(args[1]), args[0])
	case operators.In:
		if f := fieldOf(args[0]); f != nil && args[1].Kind() == ast.ListKind {
			for _, el := range args[1].AsList().Elements() {
				canonical(f, el)
			}
		}
	case "startsWith", "endsWith", "contains":
		if !call.IsMemberFunction() {
			return
		}
		if f := fieldOf(call.Target()); f != nil && f.kind == kindSysctl {
			canonical(f, args[0])
		}
	case "under", "glob", "within":
		if !call.IsMemberFunction() || args[0].Kind() != ast.ListKind {
			return
		}
		f := fieldOf(call.Target())
		list := &patternList{fn: fn}
		var texts []string
		for _, el := range args[0].AsList().Elements() {
			s, ok := stringLiteral(el)
			if !ok {
				return
			}
			if list.add(f, s) != nil {
				return
			}
			texts = append(texts, s)
		}
		list.Lister = types.NewStringList(types.DefaultTypeAdapter, texts)
		args[0].SetKindCase(fac.NewLiteral(args[0].ID(), list))
	}
}

// What an index of labels becomes. Nobody can write this name.
const (
	labelFunction = "@label"
	labelOverload = "map_label"
)

// rewriteLabel makes labels["key"] and labels.key, which fail without the key, a call that gives "" then, as every fact that is not there.
func rewriteLabel(tree *ast.AST, e ast.Expr) {
	isLabels := func(e ast.Expr) bool {
		return tree.GetType(e.ID()).IsExactType(types.NewMapType(types.StringType, types.StringType))
	}
	fac := ast.NewExprFactory()
	var labels, key ast.Expr
	switch e.Kind() {
	case ast.SelectKind:
		s := e.AsSelect()
		if s.IsTestOnly() || !isLabels(s.Operand()) {
			return
		}
		labels, key = s.Operand(), fac.NewLiteral(-e.ID(), types.String(s.FieldName()))
	case ast.CallKind:
		c := e.AsCall()
		if c.FunctionName() != operators.Index || !isLabels(c.Args()[0]) {
			return
		}
		labels, key = c.Args()[0], c.Args()[1]
	default:
		return
	}
	e.SetKindCase(fac.NewCall(e.ID(), labelFunction, labels, key))
	tree.SetReference(e.ID(), ast.NewFunctionReference(labelOverload))
}

func callLabel(labels, key ref.Val) ref.Val {
	m, ok := labels.(traits.Mapper)
	if !ok {
		return types.MaybeNoSuchOverloadErr(labels)
	}
	if v, found := m.Find(key); found {
		return v
	}
	return types.String("")
}

// patternList is a list of strings that knows the patterns it stands for.
type patternList struct {
	traits.Lister
	fn       string
	patterns []pattern
	prefixes []netip.Prefix
}

func (l *patternList) add(f *Field, s string) error {
	if l.fn == "within" {
		p, err := parsePrefix(s)
		l.prefixes = append(l.prefixes, p)
		return err
	}
	ps, err := functionPatterns(l.fn, f, s)
	l.patterns = append(l.patterns, ps...)
	return err
}

func (l *patternList) match(s string) bool {
	if l.fn != "within" {
		return matchAny(l.patterns, s)
	}
	a, err := netip.ParseAddr(s)
	if err != nil {
		return false
	}
	a = a.Unmap()
	for _, p := range l.prefixes {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// callList is the binding of a function of a string and a list of patterns.
func callList(fn string, s, list ref.Val) ref.Val {
	text, ok := s.(types.String)
	if !ok {
		return types.MaybeNoSuchOverloadErr(s)
	}
	if l, ok := list.(*patternList); ok && l.fn == fn {
		return types.Bool(l.match(string(text)))
	}
	l, ok := list.(traits.Lister)
	if !ok {
		return types.MaybeNoSuchOverloadErr(list)
	}
	for it := l.Iterator(); it.HasNext() == types.True; { // patterns that are computed
		arg, ok := it.Next().(types.String)
		if !ok {
			return types.MaybeNoSuchOverloadErr(list)
		}
		one := &patternList{fn: fn}
		if err := one.add(nil, string(arg)); err != nil {
			return types.WrapErr(err)
		}
		if one.match(string(text)) {
			return types.True
		}
	}
	return types.False
}

func callUnder(s, list ref.Val) ref.Val  { return callList("under", s, list) }
func callGlob(s, list ref.Val) ref.Val   { return callList("glob", s, list) }
func callWithin(s, list ref.Val) ref.Val { return callList("within", s, list) }

func callHas(n, bits ref.Val) ref.Val {
	v, ok := n.(types.Int)
	s, ok2 := bits.(types.String)
	if !ok || !ok2 {
		return types.MaybeNoSuchOverloadErr(n)
	}
	m, err := parseMode(string(s))
	if err != nil {
		return types.WrapErr(err)
	}
	return types.Bool(uint64(v)&m == m) //nolint:gosec // bits
}

// processType is CEL's name of the type of ancestors. Its groups of fields (exe) are types below it.
const processType = "pavise.process"

// maxAncestors bounds a chain of parents.
const maxAncestors = 64

func ancestorList(p *pavise.Process) ref.Val {
	var vals []ref.Val
	for q := p.Parent; q != nil && len(vals) < maxAncestors; q = q.Parent {
		vals = append(vals, &procVal{p: q, typ: processObject})
	}
	return types.NewRefValList(types.DefaultTypeAdapter, vals)
}

// procVal is a process, or a group of its fields, as a CEL value.
type procVal struct {
	p   *pavise.Process
	typ *types.Type
}

var processObject = cel.ObjectType(processType)

func (v *procVal) ConvertToNative(reflect.Type) (any, error) {
	return nil, errors.New("a process converts to nothing")
}

func (v *procVal) ConvertToType(t ref.Type) ref.Val {
	if t == types.TypeType {
		return v.typ
	}
	return types.NewErr("a process does not convert to %s", t.TypeName())
}

func (v *procVal) Equal(o ref.Val) ref.Val {
	w, ok := o.(*procVal)
	return types.Bool(ok && w.p == v.p && w.typ.TypeName() == v.typ.TypeName())
}
func (v *procVal) Type() ref.Type { return v.typ }
func (v *procVal) Value() any     { return v.p }

// typeProvider tells CEL of the fields of ancestors.
type typeProvider struct{ *types.Registry }

var celTypes = func() typeProvider {
	r, err := types.NewRegistry()
	if err != nil {
		panic("policy: make types: " + err.Error()) // of constants
	}
	return typeProvider{r}
}()

// processStructs are the fields of each type of ancestors.
var processStructs = func() map[string]map[string]*types.FieldType {
	all := map[string]map[string]*types.FieldType{processType: {}}
	always := func(any) bool { return true }
	for i := range processFields {
		f := &processFields[i]
		name := processType
		parts := strings.Split(f.Name, ".")
		for _, part := range parts[:len(parts)-1] {
			sub := cel.ObjectType(name + "." + part)
			if all[sub.TypeName()] == nil {
				all[sub.TypeName()] = map[string]*types.FieldType{}
				all[name][part] = &types.FieldType{Type: sub, IsSet: always, GetFrom: func(o any) (any, error) {
					switch v := o.(type) {
					case *pavise.Process:
						return &procVal{v, sub}, nil
					case *partVal:
						return &partVal{procVal{v.p, sub}, v.unknown}, nil
					case *types.Unknown:
						return v, nil
					}
					return nil, fmt.Errorf("no process but %T", o)
				}}
			}
			name = sub.TypeName()
		}
		all[name][parts[len(parts)-1]] = &types.FieldType{Type: celType(f.Type), IsSet: always, GetFrom: func(o any) (any, error) {
			switch v := o.(type) {
			case *pavise.Process:
				return f.proc(v), nil
			case *partVal:
				return v.field(f), nil
			case *types.Unknown:
				return v, nil
			}
			return nil, fmt.Errorf("no process but %T", o)
		}}
	}
	return all
}()

func (t typeProvider) FindStructType(name string) (*types.Type, bool) {
	if processStructs[name] != nil {
		return types.NewTypeTypeWithParam(cel.ObjectType(name)), true
	}
	return t.Registry.FindStructType(name)
}

func (t typeProvider) FindStructFieldNames(name string) ([]string, bool) {
	if fs := processStructs[name]; fs != nil {
		var names []string
		for n := range fs {
			names = append(names, n)
		}
		return names, true
	}
	return t.Registry.FindStructFieldNames(name)
}

func (t typeProvider) FindStructFieldType(name, field string) (*types.FieldType, bool) {
	if fs := processStructs[name]; fs != nil {
		f, ok := fs[field]
		return f, ok
	}
	return t.Registry.FindStructFieldType(name, field)
}
