package policy

import (
	"fmt"
	"regexp"
	"sort"
	"strconv"
	"strings"
	"sync"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/types"

	"github.com/pavise-project/pavise"
)

// The limits of one condition.
const (
	maxCondition = 256 << 10 // code points
	maxRecursion = 64
	maxCalls     = 2000 // operators and functions: the time to check grows with their square
	maxProblems  = 20   // that are reported
)

// Condition is a parsed and checked CEL expression over the fields of the language.
type Condition struct {
	Source string

	ast  *cel.Ast
	tree *cnode
	uses []use
	warn []problem
	at   place
	// tests are those of containers, which depend on what is known of them.
	tests []*containerTest
	sets  *setFiles
	rate  *Rate // nil: none
	term  int64 // the id of its expression

	starts map[int64][2]int // where a dotted name begins, by the id of its expression
}

// mayName reports whether the condition may name sets, so that more than its text tells what it asks for.
func (c *Condition) mayName() bool { return strings.Contains(c.Source, "inSet") }

// use is one mention of a field.
type use struct {
	field *Field
	expr  ast.Expr
}

// problem is a finding at a place in a condition, its line and column from 1.
type problem struct {
	line, col int
	msg, hint string
}

// place is where a condition stands in its file.
type place struct {
	file, field string
	line, col   int                            // of the node
	locate      func(line, col int) (int, int) // of a position in the condition; nil when there is no file
}

// problem makes an Error of a problem of the condition.
func (p *place) error(pr problem) *Error {
	line, col := p.line, p.col
	if p.locate != nil {
		line, col = p.locate(pr.line, pr.col)
	} else if p.line == 0 {
		line, col = pr.line, pr.col
	}
	return &Error{File: p.file, Line: line, Column: col, Field: p.field, Msg: pr.msg, Hint: pr.hint}
}

// text shows a sub-expression, cut when long.
func (c *Condition) text(e ast.Expr) string {
	s, err := cel.ExprToString(e, c.ast.NativeRep().SourceInfo())
	if err != nil {
		s = c.Source
	}
	s = strings.Join(strings.Fields(s), " ")
	if len(s) > 160 {
		s = strings.ToValidUTF8(s[:157], "") + "..."
	}
	return s
}

// start returns the line and column where e begins.
func (c *Condition) start(e ast.Expr) (line, col int) {
	info := c.ast.NativeRep().SourceInfo()
	return startOf(info, c.starts, e)
}

func startOf(info *ast.SourceInfo, starts map[int64][2]int, e ast.Expr) (line, col int) {
	ast.PreOrderVisit(e, ast.NewExprVisitor(func(e ast.Expr) {
		at, ok := starts[e.ID()]
		if !ok {
			if _, ok = info.GetOffsetRange(e.ID()); !ok {
				return
			}
			l := info.GetStartLocation(e.ID())
			at = [2]int{l.Line(), l.Column() + 1}
		}
		if line == 0 || at[0] < line || at[0] == line && at[1] < col {
			line, col = at[0], at[1]
		}
	}))
	if line == 0 {
		return 1, 1
	}
	return line, col
}

// checkCondition parses and checks src. A policy's condition may not use the fields of the event.
func checkCondition(src string, policy bool) (*Condition, []problem) {
	return checkWith(src, policy, nil)
}

// checkWith is checkCondition for conditions that may name sets.
func checkWith(src string, policy bool, sets *setFiles) (*Condition, []problem) {
	if strings.TrimSpace(src) == "" {
		return nil, []problem{{1, 1, "condition is empty", "leave it out, or write true"}}
	}
	env := celEnv()
	parsed, iss := env.Parse(src)
	if iss.Err() != nil {
		return nil, issues(iss)
	}
	c := &checker{policy: policy, sets: sets, info: parsed.NativeRep().SourceInfo(), starts: map[int64][2]int{}}
	c.names(parsed.NativeRep().Expr(), nil)
	if c.calls > maxCalls {
		return nil, []problem{{1, 1, fmt.Sprintf("condition has %d operators and functions: the limit is %d", c.calls, maxCalls), "use in [...], or several arguments"}}
	}
	if len(c.problems) > 0 {
		return nil, c.problems
	}
	checked, iss := env.Check(parsed)
	if iss.Err() != nil {
		return nil, issues(iss)
	}
	root := checked.NativeRep().Expr()
	if t := checked.OutputType(); !t.IsExactType(cel.BoolType) {
		line, col := startOf(c.info, c.starts, root)
		return nil, []problem{{line, col, fmt.Sprintf("condition is a %s, not a boolean", t), "compare it with something"}}
	}
	c.ast = checked
	cond := &Condition{Source: src, ast: checked, sets: sets, starts: c.starts}
	c.cond = cond
	c.rates(root)
	if cond.rate = c.rate; c.rate != nil {
		cond.term = c.rateTerm.ID()
	}
	c.walk(root, nil)
	cond.tree = c.build(root)
	if len(c.problems) > 0 {
		return nil, c.problems
	}
	cond.uses, cond.warn, cond.tests = c.uses, c.warn, c.tests
	return cond, nil
}

// checker finds the faults of one condition and builds its tree.
type checker struct {
	policy   bool
	sets     *setFiles // nil: there are none
	info     *ast.SourceInfo
	starts   map[int64][2]int
	ast      *cel.Ast
	cond     *Condition
	uses     []use
	tests    []*containerTest
	problems []problem
	warn     []problem
	calls    int
	steps    int // of common
	rate     *Rate
	rateTerm ast.Expr
}

func (c *checker) fail(e ast.Expr, hint, format string, args ...any) {
	if len(c.problems) == maxProblems {
		return
	}
	line, col := startOf(c.info, c.starts, e)
	c.problems = append(c.problems, problem{line, col, fmt.Sprintf(format, args...), hint})
}

// dotted returns the name that e spells, "" when it is no chain of names.
func dotted(e ast.Expr) string {
	switch e.Kind() {
	case ast.IdentKind:
		return e.AsIdent()
	case ast.SelectKind:
		s := e.AsSelect()
		if op := dotted(s.Operand()); op != "" {
			return op + "." + s.FieldName()
		}
	}
	return ""
}

// lookup finds the field that name is, or is a part of the value of (a key of a map).
func lookup(name string) *Field {
	for {
		if f := fieldByName[name]; f != nil {
			return f
		}
		i := strings.LastIndexByte(name, '.')
		if i < 0 {
			return nil
		}
		name = name[:i]
	}
}

// reserved are the first parts of the fields' names; a variable of a macro may not hide them.
var reserved = func() map[string]bool {
	m := map[string]bool{}
	for _, f := range fieldList {
		root, _, _ := strings.Cut(f.Name, ".")
		if !f.Only {
			m[root] = true
		}
	}
	return m
}()

// names reports unknown fields and functions, before CEL's checker does in its own words. Vars are the variables of the macros around e.
func (c *checker) names(e ast.Expr, vars []string) {
	isVar := func(name string) bool {
		root, _, _ := strings.Cut(name, ".")
		for _, v := range vars {
			if v == root {
				return true
			}
		}
		return false
	}
	switch e.Kind() {
	case ast.IdentKind, ast.SelectKind:
		name := strings.TrimPrefix(dotted(e), ".")
		if name == "" {
			c.names(e.AsSelect().Operand(), vars)
			return
		}
		line, col := startOf(c.info, c.starts, e)
		for x := e; ; x = x.AsSelect().Operand() { // the checker makes one name of a part of the chain
			c.starts[x.ID()] = [2]int{line, col}
			if x.Kind() != ast.SelectKind {
				break
			}
		}
		if isVar(name) {
			return
		}
		f := lookup(name)
		switch {
		case name == rateName || strings.HasPrefix(name, rateName+"."):
			c.fail(e, rateHint, "%s is no condition", name)
		case f == nil:
			c.unknownField(e, name)
		case f.Only && c.policy:
			c.fail(e, "", "field %q is for `pavise events --where`, not for policies", f.Name)
		case f.Name != name && !strings.HasPrefix(f.Type, "map"):
			c.unknownField(e, name)
		}
	case ast.CallKind:
		c.calls++
		call := e.AsCall()
		if _, ok := rateBy(e); !ok && call.IsMemberFunction() {
			c.names(call.Target(), vars)
		}
		for _, a := range call.Args() {
			c.names(a, vars)
		}
		fn := call.FunctionName()
		if !celEnv().HasFunction(fn) {
			hint := ""
			if n := nearest(fn, functionNames()); n != "" {
				hint = fmt.Sprintf("did you mean %q?", n)
			}
			c.fail(e, hint, "unknown function %q", fn)
		}
	case ast.ListKind:
		for _, el := range e.AsList().Elements() {
			c.names(el, vars)
		}
	case ast.MapKind:
		for _, en := range e.AsMap().Entries() {
			c.names(en.AsMapEntry().Key(), vars)
			c.names(en.AsMapEntry().Value(), vars)
		}
	case ast.StructKind:
		c.fail(e, "", "conditions make no objects")
	case ast.ComprehensionKind:
		m := e.AsComprehension()
		c.names(m.IterRange(), vars)
		inner := append(append([]string(nil), vars...), m.IterVar(), m.AccuVar())
		if m.HasIterVar2() {
			inner = append(inner, m.IterVar2())
		}
		if reserved[m.IterVar()] || m.HasIterVar2() && reserved[m.IterVar2()] {
			c.fail(e, "name it otherwise", "variable %q hides the fields that begin so", m.IterVar())
			return
		}
		for _, x := range []ast.Expr{m.AccuInit(), m.LoopCondition(), m.LoopStep(), m.Result()} {
			c.names(x, inner)
		}
	}
}

func functionNames() []string {
	var names []string
	for _, f := range Functions() {
		names = append(names, f.Name)
	}
	return append(names, "all", "filter", "map", "size", "exists_one")
}

func (c *checker) unknownField(e ast.Expr, name string) {
	if len(c.problems) == maxProblems { // to look for the nearest name takes time
		return
	}
	hint := ""
	var below []string
	for _, n := range fieldNames(c.policy) {
		if strings.HasPrefix(n, name+".") {
			below = append(below, strings.TrimPrefix(n, name))
		}
	}
	if len(below) > 0 {
		if len(below) > 8 {
			below = append(below[:8], "...")
		}
		c.fail(e, "it has "+strings.Join(below, ", "), "field %q is a group of fields", name)
		return
	}
	if n := nearest(name, fieldNames(c.policy)); n != "" {
		hint = fmt.Sprintf("did you mean %q?", n)
	} else if !strings.Contains(name, ".") {
		hint = "strings are written in quotes"
	}
	c.fail(e, hint, "unknown field %q", name)
}

// walk collects the fields that are used and checks the arguments of functions. It goes where build does not.
func (c *checker) walk(e ast.Expr, vars []string) {
	ast.PreOrderVisit(e, ast.NewExprVisitor(func(e ast.Expr) {
		switch e.Kind() {
		case ast.IdentKind:
			if f := fieldByName[strings.TrimPrefix(e.AsIdent(), ".")]; f != nil {
				c.uses = append(c.uses, use{f, e})
			}
		case ast.CallKind:
			call := e.AsCall()
			switch fn := call.FunctionName(); fn {
			case "under", "glob", "within", "has":
				if !call.IsMemberFunction() || len(call.Args()) != 1 {
					return
				}
				f := c.field(call.Target())
				if f == nil {
					f = memberField(c.ast.NativeRep(), call.Target())
				}
				args := call.Args()
				if fn != "has" && args[0].Kind() == ast.ListKind {
					args = args[0].AsList().Elements()
				}
				if len(args) == 0 {
					c.fail(e, "", "%s has no arguments", fn)
				}
				if f != nil && !applies(fn, f) {
					c.fail(e, "", "%s does not apply to %s", fn, f.Name)
					return
				}
				for _, a := range args {
					if s, ok := stringLiteral(a); ok {
						if _, err := functionPatterns(fn, f, s); err != nil {
							c.fail(a, "", "%s", err)
						}
					}
				}
			case "inSet":
				c.checkInSet(e)
			case "matches":
				for _, a := range call.Args() {
					if s, ok := stringLiteral(a); ok {
						if _, err := regexp.Compile(s); err != nil {
							c.fail(a, "", "bad regular expression: %v", err)
						}
					}
				}
			}
		}
	}))
}

// applies reports whether a pattern function is about values like f's.
func applies(fn string, f *Field) bool {
	pathLike := f.kind == kindPath || f.kind == kindText || f.kind == kindSysctl || strings.HasSuffix(f.Name, ".path") || strings.HasSuffix(f.Name, ".cwd") || strings.HasSuffix(f.Name, ".cgroup")
	switch fn {
	case "under":
		return pathLike
	case "glob":
		return f.kind != kindAddr && f.Type == "string"
	case "within":
		return f.kind == kindAddr
	case "has":
		return f.kind == kindMode
	}
	return true
}

// globModeOf says how a glob of f, nil when unknown, is read.
func globModeOf(f *Field) globMode {
	switch {
	case f == nil:
		return globText
	case f.kind == kindPath || f.kind == kindUser && (strings.HasSuffix(f.Name, "exe.path") || strings.HasSuffix(f.Name, "script.path") || strings.HasSuffix(f.Name, ".cwd") || strings.HasSuffix(f.Name, ".cgroup")):
		return globPath
	case f.kind == kindName || strings.HasSuffix(f.Name, "exe.name"):
		return globName
	}
	return globText
}

// functionPatterns compiles one argument of a pattern function.
func functionPatterns(fn string, f *Field, arg string) ([]pattern, error) {
	if f != nil && f.kind == kindSysctl {
		arg = sysctlName(arg)
		if fn == "under" {
			if strings.Trim(arg, "/") != arg || arg == "" {
				return nil, fmt.Errorf("%q is no group of variables: write it as \"net/ipv4\" or \"net.ipv4\"", arg)
			}
			return []pattern{{Items: literal(arg), Under: true}}, nil
		}
	}
	switch fn {
	case "under":
		p, err := underPattern(arg)
		return []pattern{p}, err
	case "glob":
		return globPatterns(arg, globModeOf(f))
	case "within":
		p, err := parsePrefix(arg)
		if err != nil {
			return nil, err
		}
		return prefixPatterns(p), nil
	case "has":
		mask, err := parseMode(arg)
		if err != nil {
			return nil, err
		}
		size := 2
		if f != nil {
			size = f.size
		}
		return bitPatterns(mask, size), nil
	}
	return nil, fmt.Errorf("unknown function %q", fn)
}

func parseMode(s string) (uint64, error) {
	m, err := strconv.ParseUint(s, 8, 16)
	if err != nil || m > 0o7777 {
		return 0, fmt.Errorf("bad permission bits %q: want up to four octal digits, as \"04000\"", s)
	}
	return m, nil
}

// field returns the field that e is, nil when it is something else.
func (c *checker) field(e ast.Expr) *Field {
	if e.Kind() != ast.IdentKind {
		return nil
	}
	return fieldByName[strings.TrimPrefix(e.AsIdent(), ".")]
}

func stringLiteral(e ast.Expr) (string, bool) {
	switch e.Kind() {
	case ast.LiteralKind:
		s, ok := e.AsLiteral().(types.String)
		return string(s), ok
	case ast.CallKind:
		call := e.AsCall()
		if call.FunctionName() == operators.Add && len(call.Args()) == 2 {
			a, ok := stringLiteral(call.Args()[0])
			b, ok2 := stringLiteral(call.Args()[1])
			return a + b, ok && ok2
		}
	}
	return "", false
}

func intLiteral(e ast.Expr) (int64, bool) {
	if e.Kind() != ast.LiteralKind {
		return 0, false
	}
	i, ok := e.AsLiteral().(types.Int)
	return int64(i), ok
}

func boolLiteral(e ast.Expr) (value, ok bool) {
	if e.Kind() != ast.LiteralKind {
		return false, false
	}
	b, ok := e.AsLiteral().(types.Bool)
	return bool(b), ok
}

// checkOps reports the fields of cond that do not exist for one of ops, and the tests that nothing meets there. The subject is about the
// process alone. It is called once.
func (c *Condition) checkOps(ops []pavise.Op, subject bool) []problem {
	var out []problem
	seen := map[string]bool{}
	for _, u := range c.uses {
		if u.field.Ops == nil || seen[u.field.Name] {
			continue
		}
		line, col := c.start(u.expr)
		if subject {
			seen[u.field.Name] = true
			out = append(out, problem{line, col, fmt.Sprintf("field %q is not about the process", u.field.Name), "the subject selects processes; move it into a rule's when"})
			continue
		}
		var lack, have []pavise.Op
		for _, op := range ops {
			if u.field.has(op) {
				have = append(have, op)
			} else {
				lack = append(lack, op)
			}
		}
		if len(lack) == 0 {
			continue
		}
		seen[u.field.Name] = true
		hint := ""
		if len(have) > 0 {
			hint = fmt.Sprintf("write on: [%s] here, and another rule for the others", opList(have))
		}
		out = append(out, problem{line, col, fmt.Sprintf("field %q does not exist for %s: it exists for %s", u.field.Name, opList(lack), opList(u.field.Ops)), hint})
	}
	errs, warns := c.unreachable(ops)
	c.warn = append(c.warn, warns...)
	return append(out, errs...)
}

// opGroups are the parts before the dot of the operations' names, in their order, and the operations of each.
var opGroups, opsOfGroup = func() (names []string, ops map[string][]pavise.Op) {
	ops = map[string][]pavise.Op{}
	for _, op := range judgedOps {
		group, _, _ := strings.Cut(op.String(), ".")
		if ops[group] == nil {
			names = append(names, group)
		}
		ops[group] = append(ops[group], op)
	}
	return names, ops
}()

// opList names operations; a whole group as "file.*".
func opList(ops []pavise.Op) string {
	in := map[pavise.Op]bool{}
	for _, op := range ops {
		in[op] = true
	}
	var s []string
	done := map[string]bool{}
	for _, op := range ops {
		group, _, _ := strings.Cut(op.String(), ".")
		all := opsOfGroup[group]
		n := 0
		for _, o := range all {
			if in[o] {
				n++
			}
		}
		switch {
		case n < len(all) || n < 3:
			s = append(s, op.String())
		case !done[group]:
			done[group] = true
			s = append(s, group+".*")
		}
	}
	return strings.Join(s, ", ")
}

var (
	overloadMsg   = regexp.MustCompile(`^found no matching overload for '([^']*)' applied to '(.*)'$`)
	undeclaredMsg = regexp.MustCompile(`^undeclared reference to '([^']*)' \(in container ''\)$`)
	undefinedMsg  = regexp.MustCompile(`^undefined field '([^']*)'$`)
	operatorText  = regexp.MustCompile(`^@?_?(.*?)_?$`)
)

// issues makes problems of CEL's issues, in plainer words.
func issues(iss *cel.Issues) []problem {
	var out []problem
	for _, e := range iss.Errors() {
		p := problem{line: max(1, e.Location.Line()), col: max(1, e.Location.Column()+1), msg: e.Message}
		if m := overloadMsg.FindStringSubmatch(e.Message); m != nil {
			op, args := m[1], m[2]
			if t := operatorText.FindStringSubmatch(op); t != nil && t[1] != "" {
				op = t[1]
			}
			p.msg = fmt.Sprintf("%s does not apply to %s", op, strings.ReplaceAll(args, "pavise.process", "process"))
		} else if m := undeclaredMsg.FindStringSubmatch(e.Message); m != nil {
			p.msg = fmt.Sprintf("unknown name %q", m[1])
		} else if m := undefinedMsg.FindStringSubmatch(e.Message); m != nil {
			p.msg = fmt.Sprintf("unknown field %q", m[1])
			var names []string
			for _, f := range processFields {
				names = append(names, strings.Split(f.Name, ".")...)
			}
			if n := nearest(m[1], names); n != "" {
				p.hint = fmt.Sprintf("did you mean %q?", n)
			}
		} else if rest, ok := strings.CutPrefix(e.Message, "Syntax error: "); ok {
			rest, _, _ = strings.Cut(rest, " expecting ")
			rest = strings.ReplaceAll(rest, "'<EOF>'", "end")
			p.msg = "syntax error: " + rest
		}
		p.msg = strings.Join(strings.Fields(p.msg), " ")
		if len(p.msg) > 300 {
			p.msg = strings.ToValidUTF8(p.msg[:297], "") + "..."
		}
		out = append(out, p)
		if len(out) == 10 {
			break
		}
	}
	sort.SliceStable(out, func(i, j int) bool {
		return out[i].line < out[j].line || out[i].line == out[j].line && out[i].col < out[j].col
	})
	return out
}

// celEnv is the one CEL environment, of policies and of events.
var celEnv = sync.OnceValue(func() *cel.Env {
	strs := cel.ListType(cel.StringType)
	opts := []cel.EnvOption{
		cel.CustomTypeAdapter(celTypes),
		cel.CustomTypeProvider(celTypes),
		cel.ParserExpressionSizeLimit(maxCondition),
		cel.ParserRecursionLimit(maxRecursion),
		cel.EnableMacroCallTracking(),
		cel.Macros(listMacro("under"), listMacro("glob"), listMacro("within")),
		cel.Function("under", cel.MemberOverload("string_under", []*cel.Type{cel.StringType, strs}, cel.BoolType, cel.BinaryBinding(callUnder))),
		cel.Function("glob", cel.MemberOverload("string_glob", []*cel.Type{cel.StringType, strs}, cel.BoolType, cel.BinaryBinding(callGlob))),
		cel.Function("within", cel.MemberOverload("string_within", []*cel.Type{cel.StringType, strs}, cel.BoolType, cel.BinaryBinding(callWithin))),
		cel.Function(labelFunction, cel.Overload(labelOverload, []*cel.Type{cel.MapType(cel.StringType, cel.StringType), cel.StringType}, cel.StringType, cel.BinaryBinding(callLabel))),
		cel.Function("has", cel.MemberOverload("int_has", []*cel.Type{cel.IntType, cel.StringType}, cel.BoolType, cel.BinaryBinding(callHas))),
	}
	opts = append(append(opts, inSetOption), rateOptions()...)
	for _, f := range fieldList {
		opts = append(opts, cel.VariableWithDoc(f.Name, celType(f.Type), f.Doc))
	}
	env, err := cel.NewEnv(opts...)
	if err != nil {
		panic("policy: declare the fields: " + err.Error()) // a fault of the table, found by any test
	}
	return env
})

func celType(name string) *cel.Type {
	switch name {
	case "string":
		return cel.StringType
	case "int":
		return cel.IntType
	case "bool":
		return cel.BoolType
	case "list(string)":
		return cel.ListType(cel.StringType)
	case "map(string, string)":
		return cel.MapType(cel.StringType, cel.StringType)
	case "list(process)":
		return cel.ListType(cel.ObjectType(processType))
	}
	panic("policy: unknown type " + name)
}

// listMacro makes x.name(a, b) a call x.name([a, b]): CEL has no functions of any number of arguments.
func listMacro(name string) cel.Macro {
	return cel.ReceiverVarArgMacro(name, func(h cel.MacroExprFactory, target ast.Expr, args []ast.Expr) (ast.Expr, *cel.Error) {
		if len(args) == 1 && args[0].Kind() == ast.ListKind {
			return nil, nil // as written
		}
		return h.NewMemberCall(name, target, h.NewList(args...)), nil
	})
}
