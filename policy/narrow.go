package policy

import (
	"fmt"
	"slices"
	"strings"

	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/operators"

	"github.com/pavise-project/pavise"
)

// Narrow is what a condition can be known to ask for without evaluating it, for who keeps events by such facts.
type Narrow struct {
	// Equal names fields of type string, and for each the values of which an event has one if the condition holds for it. The condition may ask for
	// more. An empty list says that it holds for none.
	Equal map[string][]string
	// Fields are the names that the condition uses, sorted.
	Fields []string
}

// Narrow returns what is known of x. The caller may keep it, and must not change it.
func (x *Expr) Narrow() Narrow { return x.narrow }

// narrowOf reads a condition whose literals are written as facts are.
func narrowOf(tree *ast.AST) Narrow {
	n := Narrow{Equal: equalsOf(tree.Expr())}
	ast.PostOrderVisit(tree.Expr(), ast.NewExprVisitor(func(e ast.Expr) {
		if f := identField(e); f != nil {
			n.Fields = append(n.Fields, f.Name)
		}
	}))
	slices.Sort(n.Fields)
	n.Fields = slices.Compact(n.Fields)
	return n
}

func identField(e ast.Expr) *Field {
	if e.Kind() != ast.IdentKind {
		return nil
	}
	return fieldByName[strings.TrimPrefix(e.AsIdent(), ".")]
}

// equalsOf is Narrow.Equal of a part of a condition; nil when nothing is known.
func equalsOf(e ast.Expr) map[string][]string {
	if e.Kind() != ast.CallKind {
		return nil
	}
	call := e.AsCall()
	args := call.Args()
	if len(args) != 2 {
		return nil
	}
	switch call.FunctionName() {
	case operators.LogicalAnd:
		a, b := equalsOf(args[0]), equalsOf(args[1])
		if a == nil {
			return b
		}
		for field, values := range b {
			if have, ok := a[field]; ok {
				values = slices.DeleteFunc(have, func(v string) bool { return !slices.Contains(values, v) })
			}
			a[field] = values
		}
		return a
	case operators.LogicalOr:
		// What only one side asks for is not asked for.
		a, b := equalsOf(args[0]), equalsOf(args[1])
		for field := range a {
			if values, ok := b[field]; ok {
				a[field] = unique(append(a[field], values...))
			} else {
				delete(a, field)
			}
		}
		return a
	case operators.Equals:
		f, literal := identField(args[0]), args[1]
		if f == nil {
			f, literal = identField(args[1]), args[0]
		}
		if s, ok := stringLiteral(literal); ok && f != nil && f.Type == "string" {
			return map[string][]string{f.Name: {s}}
		}
	case operators.In:
		f := identField(args[0])
		if f == nil || f.Type != "string" || args[1].Kind() != ast.ListKind {
			return nil
		}
		values := []string{}
		for _, el := range args[1].AsList().Elements() {
			s, ok := stringLiteral(el)
			if !ok {
				return nil
			}
			values = append(values, s)
		}
		return map[string][]string{f.Name: unique(values)}
	}
	return nil
}

func unique(values []string) []string {
	slices.Sort(values)
	return slices.Compact(values)
}

// FieldText returns what gives the value of a field of conditions as text: of a list its elements, with spaces between them.
func FieldText(name string) (func(e *pavise.Event) string, error) {
	f := fieldByName[name]
	if f == nil {
		names := make([]string, 0, len(fieldList))
		for _, f := range fieldList {
			names = append(names, f.Name)
		}
		hint := "docs/policy-reference.md lists them"
		if near := nearest(name, names); near != "" {
			hint = fmt.Sprintf("did you mean %q?", near)
		}
		return nil, Errors{{Msg: fmt.Sprintf("unknown field %q", name), Hint: hint}}
	}
	return func(e *pavise.Event) string {
		switch v := nativeValue(f.value(e)).(type) {
		case string:
			return v
		case []any:
			parts := make([]string, len(v))
			for i := range v {
				parts[i] = fmt.Sprint(v[i])
			}
			return strings.Join(parts, " ")
		default:
			return fmt.Sprint(v)
		}
	}, nil
}
