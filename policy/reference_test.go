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
	want := reference(t)
	if *update {
		if err := os.WriteFile(name, want, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := os.ReadFile(name); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%s is not what the code has (%v): run go test ./policy -run TestReference -update", name, err)
	}
}

func reference(t *testing.T) []byte {
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
			if f.Ops != nil {
				doc += " For `" + strings.ReplaceAll(opList(f.Ops), ", ", "`, `") + "`."
			}
			fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", f.Name, cell.Replace(f.Type), where, cell.Replace(doc))
		}
	}
	b.WriteString("\n## The spec of a policy\n\n| key | values | what it is |\n| --- | --- | --- |\n")
	keys := specKeys(t)
	for _, k := range specDocs {
		fmt.Fprintf(&b, "| `spec.%s` | %s | %s |\n", k.key, k.values, k.doc)
		if !keys[k.key] {
			t.Errorf("a policy has no spec.%s", k.key)
		}
		delete(keys, k.key)
	}
	if len(keys) > 0 {
		t.Errorf("nothing is written about %v", keys)
	}
	b.WriteString("\n## Operations\n\n`on: [file.*]` stands for all operations of a group. [policy-language.md](policy-language.md) says when each is judged.\n\n| operation | what it is | its fields |\n| --- | --- | --- |\n")
	for _, op := range judgedOps {
		fmt.Fprintf(&b, "| `%s` | %s | %s |\n", op, operations(t)[op].what, fieldGroups(op))
	}
	group := func(prefix string) func(Field) bool {
		return func(f Field) bool { return !f.Only && strings.HasPrefix(f.Name, prefix) }
	}
	section("The process that acts", "For every operation, in subjects and in rules. `process.parent.` has all of these of the parent too: its `exe.path` and `exe.name` are decided in the kernel, the others in user space.",
		func(f Field) bool { return group("process.")(f) && !strings.HasPrefix(f.Name, "process.parent.") })
	section("The file", "What the operation acts on.", group("file."))
	section("The connection", "For the operations that begin with `net.`.", group("net."))
	section("The act", "What else an operation is about.", func(f Field) bool {
		return !f.Only && !group("process.")(f) && !group("file.")(f) && !group("net.")(f) && !group("time.")(f)
	})
	section("The time", "For every operation, in subjects and in rules. In the kernel it changes with the minute; [policy-language.md](policy-language.md#time) says how exactly.", group("time."))
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
	var names []string
	for _, f := range Fields() {
		if f.inKernelSets() && !f.Only {
			names = append(names, "`"+f.Name+"`")
		}
	}
	fmt.Fprintf(&b, "| %s | inSet |\n", strings.Join(names, " "))
	b.WriteString("\n## Names\n\nThe names of numbers with many.\n\n| field | names |\n| --- | --- |\n")
	for _, f := range Fields() {
		if f.kind == kindNamed && len(f.names) > 8 && f.size == 8 {
			var names []string
			for _, n := range f.names {
				if n != "" && (!strings.HasPrefix(n, "SIGRTMIN+") || n == "SIGRTMIN+30") {
					names = append(names, "`"+n+"`")
				}
			}
			fmt.Fprintf(&b, "| `%s` | %s |\n", f.Name, strings.ReplaceAll(strings.Join(names, " "), "`SIGRTMIN` `", "`SIGRTMIN` to `"))
		}
	}
	b.WriteString("\n## An example of each operation\n\nEach is compiled by a test.\n")
	for _, op := range judgedOps {
		fmt.Fprintf(&b, "\n### %s\n\n```yaml\n%s```\n", op, operations(t)[op].policy)
	}
	return b.Bytes()
}

// specDocs says what stands in spec; the values are those that the parser takes, the first one when nothing is written.
var specDocs = []struct{ key, values, doc string }{
	{"mode", choices(ModeMonitor, ModeEnforce), "Whether the policy acts, or tells what it would do."},
	{"fallback", choices(FallbackRefuse, FallbackKill, FallbackMonitor), "What becomes of a `deny` that this machine cannot do: the policy is refused, the process is killed, or it is only told."},
	{"established", choices(EstablishedKeep, EstablishedRecheck), "What becomes of connections that are there when the policies change, or the agent starts: they go on, or those that this policy denies by `net.connect` or `net.accept` are ended ([flows.md](flows.md#when-the-policies-change))."},
	{"subject", "a condition", "Whose acts the policy judges; absent: everyone's."},
	{"default", "operations, each with `deny`", "What is denied unless a rule allows it."},
	{"rules", "a list", "[policy-language.md](policy-language.md) explains them."},
	{"tests", "a list", "Acts, and what the policy is to say of them: `pavise test`."},
}

func choices[T ~string](values ...T) string {
	var names []string
	for _, v := range values {
		names = append(names, "`"+string(v)+"`")
	}
	return names[0] + " (default), " + strings.Join(names[1:], ", ")
}

// specKeys are the keys that the parser takes, as it names them to who writes another.
func specKeys(t *testing.T) map[string]bool {
	_, err := Parse("p.yaml", []byte("apiVersion: pavise.dev/v1alpha1\nkind: Policy\nmetadata: {name: p}\nspec: {zzzzzzzz: 1}\n"))
	if err == nil {
		t.Fatal("an unknown key is taken")
	}
	_, list, ok := strings.Cut(err.Error(), "it is one of ")
	if !ok {
		t.Fatal(err)
	}
	list, _, _ = strings.Cut(list, "\n")
	keys := map[string]bool{}
	for k := range strings.SplitSeq(list, ", ") {
		keys[k] = true
	}
	return keys
}

// fieldGroups names the fields that op has beside those of the process.
func fieldGroups(op pavise.Op) string {
	var names []string
	access := false
	for _, f := range Fields() {
		switch {
		case f.Ops == nil || !f.has(op) || f.Void:
		case !strings.HasPrefix(f.Name, "file.access."):
			names = append(names, "`"+f.Name+"`")
		case !access:
			access = true
			names = append(names, "`file.access.*`")
		}
	}
	if names == nil {
		return "those of the process only"
	}
	return strings.Join(names, " ")
}

// operation is what testdata/operations has of one: what it is, and a policy for it.
type operation struct{ what, policy string }

func operations(t *testing.T) map[pavise.Op]operation {
	data, err := os.ReadFile("testdata/operations/operations.txt")
	if err != nil {
		t.Fatal(err)
	}
	all := map[pavise.Op]operation{}
	for _, c := range strings.Split(string(data), caseSep) {
		head, src, _ := strings.Cut(c, resultSep)
		name, what, ok := strings.Cut(strings.TrimSpace(head), ": ")
		op, known := judgedOp(name)
		if _, dup := all[op]; !ok || !known || dup {
			t.Fatalf("bad entry %q", head)
		}
		all[op] = operation{what, src}
	}
	for _, op := range judgedOps {
		if all[op].policy == "" {
			t.Errorf("nothing about %s", op)
		}
	}
	return all
}

// TestOperations compiles the example of each operation, and all of them together, for a machine that can do everything: what they say is
// enforced, without a warning.
func TestOperations(t *testing.T) {
	var all []*Policy
	for op, o := range operations(t) {
		set, err := Parse(op.String(), []byte(o.policy))
		if err != nil {
			t.Error(err)
			continue
		}
		all = append(all, set...)
		_, report, err := Compile(set, testMachine())
		if err != nil {
			t.Error(err)
			continue
		}
		found := false
		for _, r := range report.Policies[0].Rules {
			found = found || r.Op == op
			if r.State != StateEnforced && r.Action != pavise.ActionAudit || len(r.User) > 0 {
				t.Errorf("%s: %s is %s", op, r.Rule, r.State)
			}
		}
		if !found || len(report.Warnings()) > 0 {
			t.Errorf("%s: no rule for it, or warnings: %v", op, report.Warnings())
		}
	}
	img, _, err := Compile(all, testMachine())
	if err != nil {
		t.Fatal(err)
	}
	for _, op := range judgedOps {
		if !img.Ops[op].Used() {
			t.Errorf("%s is not judged", op)
		}
	}
}
