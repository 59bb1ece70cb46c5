package convert

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/pavise-project/pavise"
)

// TestHooks converts a policy for each function of the table, and for each of its arguments: there is a rule on the operation, and nothing
// is lost.
func TestHooks(t *testing.T) {
	values := map[roleKind][2]string{ // a type, and a value
		rolePath: {"file", "/etc/x"}, roleParent: {"path", "/etc"}, roleFD: {"fd", "/etc/x"}, roleText: {"string", "x"}, roleNumber: {"int", "7"},
		roleMode: {"int", "04000"}, roleSignal: {"int", "9"}, rolePtrace: {"int", "16"}, roleAccess: {"int", "2"}, roleBPF: {"int", "5"},
		roleCaps: {"kernel_cap_t", "CAP_SYS_ADMIN"}, roleMay: {"int", "2"}, roleProt: {"int", "4"}, roleLoad: {"int", "2"}, roleFamily: {"int", "AF_INET"}, roleType: {"int", "3"}, roleProto: {"int", "17"},
		roleOpen: {"int", "1"}, roleSocket: {"sock", "AF_INET"}, rolePeer: {"sockaddr", "AF_INET"}, roleOwn: {"sockaddr", "AF_INET"},
	}
	for _, name := range slices.Sorted(maps.Keys(hooks)) {
		h := hooks[name]
		for _, op := range h.ops {
			if !slices.Contains(pavise.OpNames[:], op) {
				t.Errorf("%s: no operation %q", name, op)
			}
		}
		head := fmt.Sprintf("apiVersion: cilium.io/v1alpha1\nkind: TracingPolicy\nmetadata: {name: x}\nspec:\n  kprobes:\n  - call: %s\n", name)
		for i, role := range h.args {
			v, ok := values[role.kind]
			if !ok {
				t.Fatalf("%s: no value for role %d", name, role.kind)
			}
			op := "Equal"
			switch role.kind {
			case roleSocket, rolePeer, roleOwn:
				op = "Family"
			case roleOpen, roleProt:
				op = "Mask"
			case roleCaps:
				op = "Capability"
			}
			all := head + fmt.Sprintf("    args: [{index: %d, type: %s}]\n    selectors:\n    - matchArgs: [{index: %d, operator: %s, values: [\"%s\"]}]\n", i, v[0], i, op, v[1])
			checkHook(t, name, all)
		}
		checkHook(t, name, head)
	}
	for _, name := range []string{"file_open", "bprm_check_security", "socket_connect", "path_unlink", "mmap_file"} {
		checkHook(t, name, fmt.Sprintf("apiVersion: cilium.io/v1alpha1\nkind: TracingPolicy\nmetadata: {name: x}\nspec: {lsmhooks: [{hook: %s}]}\n", name))
	}
}

func checkHook(t *testing.T, name, src string) {
	t.Helper()
	res, err := Convert([]File{{"h.yaml", []byte(src)}}, Options{})
	if err != nil {
		t.Fatalf("%s: %v\n%s", name, err, src)
	}
	if len(res.Policies) != 1 || res.Lost() > 0 || strings.Count(res.Policies[0].YAML, "- name: ") != 1 {
		t.Errorf("%s: %d policies, %v\n%s\n%s", name, len(res.Policies), res.Findings, src, res.YAML())
	}
}

// TestSections holds the words of KubeArmor's sections to the language.
func TestSections(t *testing.T) {
	for section, ops := range armorOps {
		if got := supported(ops); len(got) != len(ops) {
			t.Errorf("%s: only %s of %s", section, got, ops)
		}
	}
	for word, is := range armorProtocols {
		d := &draft{name: "x", rules: []*rule{{name: "r", on: armorOps["network"], when: is, action: "deny"}}}
		if err := d.compiles("enforce", nil, d.rules); err != nil {
			t.Errorf("%s: %v", word, err)
		}
	}
	for name, hint := range armorCapabilities {
		op, _, _ := strings.Cut(hint, " ")
		if !supports(op) || !slices.Contains(pavise.CapNames[:], "CAP_"+strings.ToUpper(name)) {
			t.Errorf("%s: %s", name, hint)
		}
	}
}

func TestCond(t *testing.T) {
	a, b, c := oneOf("x", "1"), call("y", "under", `"/a"`), is("z")
	for want, got := range map[string]*cond{
		"true":                               allOf(nil, nil),
		"false":                              anyOf(),
		"x == 1":                             anyOf(a, never, a),
		`x == 1 && (y.under("/a") || z)`:     allOf(a, anyOf(b, c)),
		`x != 1`:                             not(a),
		`!y.under("/a")`:                     not(b),
		`!(x == 1 && z)`:                     not(allOf(a, c)),
		`x == 1 && !z`:                       unless(a, allOf(a, c)),
		`z && x in [1, 2]`:                   allOf(c, oneOf("x", "1", "2")),
		`!(x in [1, 2])`:                     not(oneOf("x", "1", "2")),
		`(any || thing) && z`:                allOf(&cond{pre: "any || thing", loose: true}, c),
		`x == 1 || y.under("/a") && z`:       anyOf(a, allOf(b, c)),
		`!(x == 1 || z) && y.under("/a")`:    allOf(not(anyOf(a, c)), b),
		`x.startsWith(1) || x.startsWith(2)`: each("x", "startsWith", "1", "2"),
	} {
		if s := got.String(); s != want {
			t.Errorf("%s, want %s", s, want)
		}
	}
	long := oneOf("file.path", quoted(strings.Fields(strings.Repeat("/usr/lib/x ", 30))...)...)
	for _, l := range anyOf(long, a).lines(80) {
		if len(l) > 84 {
			t.Errorf("a line of %d: %s", len(l), l)
		}
	}
}

// TestDocs holds docs/convert.md to the code: its example, and the table of functions, which is the end of the page.
func TestDocs(t *testing.T) {
	const page, head = "../../docs/convert.md", "| operation | functions of the kernel, and system calls |\n| --- | --- |\n"
	data, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	before, got, ok := strings.Cut(string(data), head)
	if !ok {
		t.Fatal("no table")
	}
	blocks := strings.Split(before, "\n```") // text, commands, text, source, text, policy, text, source, text, policy
	if len(blocks) < 10 {
		t.Fatal("no examples")
	}
	for _, ex := range []struct {
		name string
		at   int
		opt  Options
	}{{"web-root.yaml", 3, Options{}}, {"db.yaml", 7, Options{Containers: true}}} {
		_, src, _ := strings.Cut(blocks[ex.at], "\n")
		_, want, _ := strings.Cut(blocks[ex.at+2], "\n")
		res, err := Convert([]File{{ex.name, []byte(src)}}, ex.opt)
		if err != nil {
			t.Errorf("the example %s: %v", ex.name, err)
		} else if strings.TrimSpace(res.YAML()) != strings.TrimSpace(want) || res.Lost() != 1 {
			t.Errorf("the example %s becomes\n%s", ex.name, res.YAML())
		}
	}
	names := map[string][]string{}
	for _, name := range slices.Sorted(maps.Keys(hooks)) {
		for _, op := range hooks[name].ops {
			names[op] = append(names[op], "`"+name+"`")
		}
	}
	var b strings.Builder
	for _, op := range pavise.OpNames {
		if len(names[op]) > 0 {
			fmt.Fprintf(&b, "| `%s` | %s |\n", op, strings.Join(names[op], " "))
		}
	}
	if want := b.String(); got != want {
		if !*update {
			t.Fatalf("%s is not current: run go test ./policy/convert -run TestDocs -update", page)
		}
		if err := os.WriteFile(page, []byte(before+head+want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}
