package policy

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pavise-project/pavise"
)

var update = flag.Bool("update", false, "write what is got to testdata")

const (
	caseSep   = "==========\n"
	resultSep = "----------\n"
)

// testContainers are what testMachine knows: a pod's, one of Docker, one of LXC.
var testContainers = []Container{
	{"/kubepods.slice/kubepods-pod1.slice/crio-" + testID + ".scope",
		&pavise.Container{ID: testID, Name: "web", Image: "docker.io/library/nginx:1.27", Labels: map[string]string{"io.kubernetes.container.name": "web"}},
		&pavise.Pod{Namespace: "prod", Name: "web-0", Labels: map[string]string{"app": "web"}}},
	{"/docker/" + strings.Repeat("d", 64), &pavise.Container{ID: strings.Repeat("d", 64), Name: "db", Image: "nginx:1.27", Labels: map[string]string{"app": "db", "tier": ""}}, nil},
	{"/lxc.payload.db", &pavise.Container{ID: "db", Name: "db"}, nil},
}

// testMachine can do everything.
func testMachine() *Machine {
	m := &Machine{LookupUser: func(name string) (uint32, error) {
		switch name {
		case "root":
			return 0, nil
		case "www-data":
			return 33, nil
		}
		return 0, errors.New("no such user")
	}}
	for op := range m.Ops {
		m.Ops[op] = Support{Rung: pavise.RungLSM, Deny: true, Kill: true}
	}
	m.Ops[pavise.OpExec].KillOnly = []Dim{DimName}
	return m.WithContainers(testContainers)
}

// machines are what a policy case may name in a first line "# machine: NAME".
func machineFor(t *testing.T, src string) *Machine {
	m := testMachine()
	line, _, _ := strings.Cut(src, "\n")
	name, ok := strings.CutPrefix(line, "# machine: ")
	if !ok {
		return m
	}
	all := func(s Support) {
		for op := range m.Ops {
			m.Ops[op] = s
		}
	}
	switch name {
	case "kill":
		all(Support{Rung: pavise.RungKillOnReturn, Kill: true, Why: "bpf is not in lsm="})
	case "cgroup":
		all(Support{Rung: pavise.RungCgroup, Deny: true, Missing: []Dim{DimExe, DimParentExe}, Why: "the hook runs without the task's file"})
	case "sockets":
		all(Support{Rung: pavise.RungCgroup, Deny: true, Kill: true, Why: "bpf is not in lsm="})
	case "little":
		all(Support{Rung: pavise.RungKillOnReturn, Deny: true, Kill: true, Missing: []Dim{DimValue, DimNewPath}, Why: "the act is over"})
	case "before":
		all(Support{Rung: pavise.RungLSM, Deny: true, Kill: true, Missing: []Dim{DimRemoteAddr, DimRemotePort, DimRemotePath}, Before: []Dim{DimRemoteAddr, DimRemotePort}, Why: "the hook comes first"})
	case "none":
		all(Support{Why: "no tracing in this kernel"})
	default:
		t.Fatalf("no machine %q", name)
	}
	return m
}

// TestData runs testdata/*.txt: policies (policy-*.txt) to their program and report, conditions (condition-*.txt, with the
// operation in the first line) to their normal form; or either to its errors.
func TestData(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal("no test data", err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			result := conditionResult
			if strings.HasPrefix(filepath.Base(file), "policy") {
				result = policyResult
			}
			runCases(t, file, result)
		})
	}
}

// runCases compares what comes of each case of a file with what stands below it, or writes that there.
func runCases(t *testing.T, file string, result func(t *testing.T, src string) string) {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for i, c := range strings.Split(string(data), caseSep) {
		src, want, ok := strings.Cut(c, resultSep)
		if !ok && !*update {
			t.Fatalf("case %d has no result", i+1)
		}
		got := result(t, src)
		if got != want && !*update {
			t.Errorf("case %d:\n%s\ngot:\n%s\nwant:\n%s", i+1, src, got, want)
		}
		out = append(out, src+resultSep+got)
	}
	if *update {
		if err := os.WriteFile(file, []byte(strings.Join(out, caseSep)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// testSets reads the sets of the cases.
func testSets(file string) ([]byte, error) {
	b, err := os.ReadFile("testdata/sets/" + file)
	if err != nil {
		return nil, errors.Unwrap(err)
	}
	return b, nil
}

func conditionResult(t *testing.T, src string) string {
	first, cond, _ := strings.Cut(src, "\n")
	op, ok := judgedOp(first)
	if !ok {
		t.Fatalf("no operation %q", first)
	}
	sets := &setFiles{read: testSets, dir: "."}
	c, problems := checkWith(cond, true, sets)
	if c != nil {
		problems = c.checkOps([]pavise.Op{op}, false)
	}
	var b strings.Builder
	for _, e := range sets.faults {
		fmt.Fprintln(&b, e)
	}
	for _, p := range problems {
		fmt.Fprintln(&b, (&place{}).error(p))
	}
	if len(problems) > 0 {
		return b.String()
	}
	n, err := normalise(op, testMachine(), nil, c)
	if err != nil {
		return err.Error() + "\n"
	}
	if len(n.cubes) == 0 {
		b.WriteString("false\n")
	}
	for _, c := range n.cubes {
		b.WriteString(c.String() + "\n")
	}
	if c.rate != nil {
		fmt.Fprintf(&b, "%s\n", c.rate)
	}
	for _, f := range unknownFields(n.unknown) {
		b.WriteString("user: " + f + "\n")
	}
	for _, w := range n.warnings {
		fmt.Fprintf(&b, "warning: %v\n", w)
	}
	for _, w := range c.warn {
		fmt.Fprintf(&b, "warning: %s\n", w.msg)
	}
	return b.String()
}

func policyResult(t *testing.T, src string) string {
	src = strings.ReplaceAll(src, "%256x%", strings.Repeat("x", 256))
	set, err := ParseWith("p.yaml", []byte(src), testSets)
	if err != nil {
		return err.Error() + "\n"
	}
	m := machineFor(t, src)
	prog, report, err := compile(set, m)
	if err != nil {
		return err.Error() + "\n"
	}
	report = Review(set, m, report)
	var b strings.Builder
	b.WriteString(prog.String())
	for _, p := range report.Policies {
		for _, r := range p.Rules {
			fmt.Fprintf(&b, "%s/%s %s: %s by %s", p.Name, r.Rule, r.Op, r.State, r.Rung)
			if r.Effective != r.Action {
				fmt.Fprintf(&b, ", %s instead of %s", r.Effective, r.Action)
			}
			if len(r.User) > 0 {
				fmt.Fprintf(&b, ", user space: %s", strings.Join(r.User, ", "))
			}
			if r.Residual != "" {
				fmt.Fprintf(&b, ", residual: %s", r.Residual)
			}
			if r.Why != "" {
				fmt.Fprintf(&b, "; %s", r.Why)
			}
			b.WriteString("\n")
		}
	}
	for _, w := range report.Warnings() {
		fmt.Fprintf(&b, "warning: %v\n", w)
	}
	return b.String()
}
