package policy

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/pavise-project/pavise"
)

// TestReference keeps docs/policy-reference.md as the code has it: go test ./policy -run TestReference -update writes it.
func TestReference(t *testing.T) {
	const name = "../docs/policy-reference.md"
	want := reference()
	if *update {
		if err := os.WriteFile(name, want, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := os.ReadFile(name); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%s is not what the code has (%v): run go test ./policy -run TestReference -update", name, err)
	}
}

func reference() []byte {
	var b bytes.Buffer
	cell := strings.NewReplacer("|", `\|`, "\n", " ")
	b.WriteString(`# Policy reference

The fields and functions of conditions, printed from the code by ` + "`go test ./policy -run TestReference -update`" + `. [policy-language.md](policy-language.md)
explains the language.

**Decided in** says where a condition on the field can be decided: in the *kernel* it may stand in a rule that is enforced (with what the last table
says); in *user* space it may stand in rules that are monitored or audited; *none yet* means that no source of this version fills the field: it is empty.
`)
	section := func(title, note string, in func(f Field) bool) {
		fmt.Fprintf(&b, "\n## %s\n\n%s\n\n| field | type | decided in | what it is |\n| --- | --- | --- | --- |\n", title, note)
		for _, f := range Fields() {
			if !in(f) {
				continue
			}
			where := "user"
			switch {
			case f.Void:
				where = "none yet"
			case f.kind != kindUser:
				where = "kernel"
			}
			doc := f.Doc
			if n := len(f.Ops); n > 0 && n != len(fileOps) && n != len(netOps) {
				doc += " For " + opNames(f.Ops) + "."
			}
			fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", f.Name, cell.Replace(f.Type), where, cell.Replace(doc))
		}
	}
	group := func(prefix string) func(Field) bool {
		return func(f Field) bool { return !f.Only && strings.HasPrefix(f.Name, prefix) }
	}
	section("The process that acts", "For every operation, in subjects and in rules. `process.parent.` has all of these of the parent too: its `exe.path` and `exe.name` are decided in the kernel, the others in user space.",
		func(f Field) bool { return group("process.")(f) && !strings.HasPrefix(f.Name, "process.parent.") })
	section("The file", "For `process.exec`, where it is the new executable, and `file.open`.", group("file."))
	section("The connection", "For the operations that begin with `net.`.", group("net."))
	section("The event", "Only in `pavise events --where`.", func(f Field) bool { return f.Only })

	b.WriteString("\n## Functions\n\nBeside CEL's operators `==`, `!=`, `<`, `<=`, `>`, `>=`, `in`, `!`, `&&`, `||` and `? :`.\n\n| function | example | what it does |\n| --- | --- | --- |\n")
	for _, f := range Functions() {
		fmt.Fprintf(&b, "| `%s` | `%s` | %s |\n", f.Name, cell.Replace(f.Example), cell.Replace(f.Doc))
	}
	b.WriteString("\n## What the kernel decides\n\nOf each field that the kernel has, what it can be asked. Everything else about it is decided in user space.\n\n| fields | what can be asked |\n| --- | --- |\n")
	for k := kindUser + 1; k <= kindDirection; k++ {
		var names []string
		for _, f := range Fields() {
			if f.kind == k && !f.Void && !f.Only {
				names = append(names, "`"+f.Name+"`")
			}
		}
		if len(names) > 0 {
			fmt.Fprintf(&b, "| %s | %s |\n", strings.Join(names, " "), cell.Replace(works[k]))
		}
	}
	return b.Bytes()
}

func opNames(ops []pavise.Op) string {
	var names []string
	for _, o := range ops {
		names = append(names, "`"+o.String()+"`")
	}
	return strings.Join(names, ", ")
}
