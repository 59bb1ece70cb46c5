package policy

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// TestHostile bounds the time that a file made to be slow takes.
func TestHostile(t *testing.T) {
	rule := func(cond string) string {
		return "apiVersion: pavise.dev/v1alpha1\nkind: Policy\nmetadata: {name: p}\nspec:\n  rules:\n  - name: a\n    on: [file.open]\n    action: audit\n    when: |\n      " + cond + "\n"
	}
	var list, many strings.Builder
	for i := range 10000 {
		fmt.Fprintf(&list, `"/opt/data/%d", `, i)
	}
	for i := range 7000 {
		fmt.Fprintf(&many, `file.path == "/opt/%d" || `, i)
	}
	for name, src := range map[string]string{
		"flow":      strings.Repeat("[", 1<<20-1),
		"flow maps": strings.Repeat("{a: ", 1<<18-1),
		"block":     strings.Repeat("- ", 1<<19-1),
		"question":  strings.Repeat("? ", 1<<19-1),
		"documents": strings.Repeat("---\n", 1<<18),
		"keys":      strings.Repeat("a:\n", 1<<18),
		"unknown": "spec:\n" + func() string {
			var b strings.Builder
			for i := range 60000 {
				fmt.Fprintf(&b, "  kez%d: 1\n", i)
			}
			return b.String()
		}(),
		"parens":  rule(strings.Repeat("(", 100000)),
		"nots":    rule(strings.Repeat("!", 100000) + "true"),
		"ors":     rule(many.String() + "true"),
		"list":    rule("file.path in [" + list.String() + `"/x"]`),
		"names":   rule(strings.Repeat("file.pth == 'x' || ", 13000) + "true"),
		"syntax":  rule(strings.Repeat("a b ", 60000)),
		"quotes":  rule(strings.Repeat("\"a' ", 60000)),
		"ternary": rule(strings.Repeat("true ? ", 5000)),
		"equals":  rule(strings.Repeat("(file.access.read == ", 40) + "true" + strings.Repeat(")", 40)),
		"glob":    rule(`file.path.glob("/` + strings.Repeat("{a,b}", 8) + strings.Repeat("x", 3000) + `")`),
		"stars":   rule(`file.path.glob("/` + strings.Repeat("*a", 1500) + `")`),
		"select":  rule("file" + strings.Repeat(".a", 50000) + " == 1"),
		"exists":  rule(strings.Repeat("process.args.exists(a, ", 60) + "true" + strings.Repeat(")", 60)),
		"both":    rule("process.args.exists(a, " + strings.Repeat(`a.contains("abababab") && `, 60) + `a.contains("ba"))`),
		"long":    rule(`process.args.exists(a, a == "` + strings.Repeat("a", 4000) + `" && a.startsWith("` + strings.Repeat("a", 3999) + `"))`),
		"none of": rule(`process.args.exists(a, !(a in [` + list.String() + `"x"]))`),
		"any of":  rule(`process.args.exists(a, a in [` + list.String() + `"x"])`),
		"rules":   "apiVersion: pavise.dev/v1alpha1\nkind: Policy\nmetadata: {name: p}\nspec:\n  rules:\n" + strings.Repeat("  - {}\n", 100000),
	} {
		begin := time.Now()
		set, err := Parse("x", []byte(src))
		parsed := time.Since(begin)
		if err == nil {
			_, _, err = compile(set, testMachine())
		}
		msg := ""
		if err != nil {
			msg = err.Error()
		}
		took := time.Since(begin)
		t.Logf("%-10s parse %v all %v, message of %d: %.100q", name, parsed, took, len(msg), msg)
		if took > 5*time.Second {
			t.Errorf("%s takes %v", name, took)
		}
	}
}
