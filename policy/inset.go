package policy

import (
	"fmt"
	"net/netip"
	"slices"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
)

// This file is x.inSet("file") in conditions: sets.go reads the files.

// inSetOption declares the function.
var inSetOption = cel.Function("inSet",
	cel.MemberOverload("string_in_set", []*cel.Type{cel.StringType, cel.StringType}, cel.BoolType, cel.BinaryBinding(callInSet)),
	cel.MemberOverload("int_in_set", []*cel.Type{cel.IntType, cel.StringType}, cel.BoolType, cel.BinaryBinding(callInSet)))

// inSetCall returns the parts of a call of inSet that is well formed.
func inSetCall(e ast.Expr) (target ast.Expr, file string, ok bool) {
	if e.Kind() != ast.CallKind {
		return nil, "", false
	}
	call := e.AsCall()
	if call.FunctionName() != "inSet" || !call.IsMemberFunction() || len(call.Args()) != 1 {
		return nil, "", false
	}
	file, ok = stringLiteral(call.Args()[0])
	return call.Target(), file, ok
}

// setFor is the set that target is looked for in.
func (sf *setFiles) setFor(tree *ast.AST, target ast.Expr, f *Field, file string) *setResult {
	return sf.get(file, formOf(f, tree.GetType(target.ID()).Kind() == types.IntKind))
}

// settable reports whether there can be sets of a field's values: not of the few that have names.
func settable(f *Field) bool {
	return f == nil || !slices.Contains([]fieldKind{kindType, kindNamed, kindDirection, kindHour, kindMinute, kindDay}, f.kind)
}

// checkInSet reports what is wrong with a call.
func (c *checker) checkInSet(e ast.Expr) {
	call := e.AsCall()
	if !call.IsMemberFunction() || len(call.Args()) != 1 {
		return
	}
	target, file, ok := inSetCall(e)
	if !ok {
		c.fail(call.Args()[0], "write the name of a file that stands next to the policy", "inSet wants a literal string")
		return
	}
	f := c.field(target)
	if !settable(f) {
		c.fail(e, "use in [...]", "inSet does not apply to %s", f.Name)
		return
	}
	if r := c.sets.setFor(c.ast.NativeRep(), target, f, file); r.set == nil {
		c.fail(call.Args()[0], r.tip, "%s", r.msg)
	} else if r.set.Len() == 0 {
		line, col := startOf(c.info, c.starts, e)
		c.warn = append(c.warn, problem{line, col, fmt.Sprintf("set %q is empty: it holds nothing", file), ""})
	}
}

// inSet is the node of x.inSet("file").
func (c *checker) inSet(e ast.Expr) *cnode {
	target, file, ok := inSetCall(e)
	f := c.field(target)
	if !ok || f == nil || !settable(f) {
		return c.unknown(e)
	}
	s := c.sets.setFor(c.ast.NativeRep(), target, f, file).set
	if s == nil {
		return c.unknown(e) // reported by checkInSet
	}
	switch {
	case !f.inKernelSets():
		return c.unknown(e)
	case f.kind == kindInt || f.kind == kindMode:
		return c.spansNamed(e, f, s.spans, "in set "+s.String())
	}
	a := newAtom(f.Dim.Sets(), "in set "+s.String(), nil)
	a.set = s
	return c.leaf(e, a)
}

// inKernelSets reports whether the kernel can look f up in a set.
func (f *Field) inKernelSets() bool {
	switch f.kind {
	case kindInt, kindMode:
		return true
	case kindPath, kindText, kindName, kindAddr, kindDigest:
		return f.Dim.Sets() != DimNone
	}
	return false
}

// setVal is the name of a set that knows the set, as an argument of inSet.
type setVal struct {
	types.String
	set *Set
}

// rewriteInSet gives a call its set. It must come before the call is planned.
func rewriteInSet(sets *setFiles, tree *ast.AST, e ast.Expr) {
	target, file, ok := inSetCall(e)
	if !ok {
		return
	}
	var f *Field
	if target.Kind() == ast.IdentKind {
		f = fieldByName[target.AsIdent()]
	}
	if s := sets.setFor(tree, target, f, file).set; s != nil {
		arg := e.AsCall().Args()[0]
		arg.SetKindCase(ast.NewExprFactory().NewLiteral(arg.ID(), setVal{types.String(file), s}))
	}
}

func callInSet(x, arg ref.Val) ref.Val {
	v, ok := arg.(setVal)
	if !ok {
		return types.NewErr("set %v was not read", arg)
	}
	switch x := x.(type) {
	case types.Int:
		for _, s := range v.set.spans {
			if x >= 0 && uint64(x) >= s.lo && uint64(x) <= s.hi {
				return types.True
			}
		}
		return types.False
	case types.String:
		if v.set.Kind != SetAddresses {
			return types.Bool(v.set.Has(string(x)))
		}
		a, err := netip.ParseAddr(string(x))
		return types.Bool(err == nil && v.set.Holds(a))
	}
	return types.MaybeNoSuchOverloadErr(x)
}
