package policy

import (
	"fmt"
	"strings"
	"testing"

	"github.com/pavise-project/pavise"
)

// containerConditions are decided in the kernel; the number is of how many of testContainers they hold.
var containerConditions = []struct {
	src  string
	hold int
}{
	{`process.container.image == "nginx:1.27"`, 1},
	{`process.container.image != "nginx:1.27"`, 2},
	{`!(process.container.image == "nginx:1.27")`, 2},
	{`process.container.image == ""`, 1},
	{`process.container.image != ""`, 2},
	{`process.container.name == "db"`, 2},
	{`process.container.name in ["db", "web"]`, 3},
	{`!(process.container.name in ["web", ""])`, 2},
	{`process.container.image.startsWith("nginx:")`, 1},
	{`process.container.image.endsWith(":1.27")`, 2},
	{`!process.container.image.contains("nginx")`, 1},
	{`process.container.image.glob("docker.io/*/nginx:*", "nginx:*")`, 2},
	{`process.container.image.matches("^(docker[.]io/library/)?nginx:1[.][0-9]+$")`, 2},
	{`process.container.labels["app"] == "db"`, 1},
	{`process.container.labels["app"] != "db"`, 2},
	{`process.container.labels.app.startsWith("d")`, 1},
	{`"tier" in process.container.labels`, 1},
	{`has(process.container.labels.tier)`, 1},
	{`process.container.labels["tier"] == ""`, 3},
	{`process.pod.namespace == "prod" && process.pod.name.startsWith("web-")`, 1},
	{`process.pod.namespace in ["prod"] || process.container.name == "db"`, 3},
	{`process.pod.labels["app"] == process.container.name`, 1},
	{`process.pod.labels.app == "web" ? process.container.image.startsWith("docker.io/") : process.container.labels.app == "db"`, 2},
	{`process.container.name == "db" && process.container.image == ""`, 1},
	{`process.container.name == "db" && !(process.container.image.startsWith("nginx:") || process.pod.name != "")`, 1},
	{`process.container.name == "nobody's"`, 0},
	{`process.container.name != "nobody's"`, 3},
}

func containerPolicy(t *testing.T, when string) []*Policy {
	t.Helper()
	set, err := Parse("p.yaml", []byte("apiVersion: pavise.dev/v1alpha1\nkind: Policy\nmetadata: {name: p}\nspec:\n  mode: enforce\n  rules:\n"+
		"  - name: r\n    on: [file.open]\n    action: deny\n    when: |\n      "+when+"\n"))
	if err != nil {
		t.Fatalf("%s: %v", when, err)
	}
	return set
}

func judgeCgroup(img *Image, path string) bool {
	var f Facts
	f.Values[DimCgroup] = []byte(path)
	return img.Judge(pavise.OpOpen, &f).Action == pavise.ActionDeny
}

// TestContainers: the tables say of a cgroup what the condition says of its container; a process in none, or in one of which nothing is known, has
// no name, image, labels or pod.
func TestContainers(t *testing.T) {
	unknown := "/docker/" + strings.Repeat("e", 64)
	for _, c := range containerConditions {
		img, _, err := Compile(containerPolicy(t, c.src), testMachine())
		if err != nil {
			t.Errorf("%s: %v", c.src, err)
			continue
		}
		x, err := CompileWhere(c.src)
		if err != nil {
			t.Fatal(c.src, err)
		}
		check := func(path string, p *pavise.Process) bool {
			t.Helper()
			want, err := x.Eval(&pavise.Event{Process: p})
			if err != nil {
				t.Errorf("%s: %v", c.src, err)
			}
			if got := judgeCgroup(img, path); got != want {
				t.Errorf("%s: %s: the kernel says %v, user space %v", c.src, path, got, want)
			}
			return want
		}
		hold := 0
		for _, k := range testContainers {
			p := &pavise.Process{Container: k.Container, Pod: k.Pod}
			if check(k.Cgroup, p) {
				hold++
			}
			check(k.Cgroup+"/init.scope", p)
			check(k.Cgroup+unknown, p) // what is nested in it
			check(k.Cgroup+"x", &pavise.Process{})
		}
		if hold != c.hold {
			t.Errorf("%s holds for %d containers, not %d", c.src, hold, c.hold)
		}
		check("/system.slice/ssh.service", &pavise.Process{})
		check(unknown, &pavise.Process{Container: &pavise.Container{ID: unknown[8:]}})
	}
}

// TestContainersChange: a change of the containers changes the tables of the policies that ask for them, and makes nothing anew of others.
func TestContainersChange(t *testing.T) {
	none := testMachine().WithContainers(nil)
	all := none.WithContainers(testContainers)
	set := containerPolicy(t, `process.container.image.startsWith("nginx:")`)
	other := containerPolicy(t, `process.exe.path == "/x" && process.container.name == "nobody's"`)
	other[0].Name = "other"
	docker := testContainers[1].Cgroup
	for _, m := range []*Machine{none, all, none, all} {
		img, _, err := Compile(append(set, other...), m)
		if err != nil {
			t.Fatal(err)
		}
		if !img.Ops[pavise.OpOpen].Used() {
			t.Error("nothing is attached for a rule on containers that are not there yet")
		}
		if got, want := judgeCgroup(img, docker), m == all; got != want {
			t.Errorf("in a container, when it is known (%v): %v", want, got)
		}
	}
	if SameFor(set, none, all) || SameFor(append(other, set...), none, all) || !SameFor(other, none, all) || !SameFor(set, all, all.WithContainers(testContainers)) {
		t.Error("does not know whom a change of containers concerns")
	}
	before := other[0].normal(all)
	if other[0].normal(none) != before {
		t.Error("a policy that no change concerns was brought to normal form again")
	}
	if before := set[0].normal(all); set[0].normal(none) == before {
		t.Error("a policy that a change concerns was not brought to normal form again")
	}
	if again := other[0].normal(testMachine()); again == before {
		t.Error("another machine's normal form was taken")
	}
}

// TestContainersUndecided: what could fail, or what asks for more, is not taken for a test of containers.
func TestContainersUndecided(t *testing.T) {
	for _, src := range []string{
		`process.container.name.matches(process.container.image)`, `process.container.name.glob(process.container.labels["g"])`,
		`int(process.container.labels["port"]) > 80`, `process.container.labels.exists(k, k == "x")`, `process.container.name == process.cwd`,
		`process.container.name + "x" == "dbx"`, `process.parent.container.name == "db"`, `size(process.container.labels) / size(process.pod.labels) == 1`,
	} {
		_, _, err := Compile(containerPolicy(t, src), testMachine())
		if err == nil || !strings.Contains(err.Error(), "the kernel c") {
			t.Errorf("%s: %v", src, err)
		}
	}
}

// TestManyContainers: a thousand containers' cgroups are one test of a few rows.
func TestManyContainers(t *testing.T) {
	var list []Container
	for i := range 1000 {
		id := fmt.Sprintf("%064x", uint64(i)*0x9e3779b97f4a7c15)
		list = append(list, Container{"/system.slice/docker-" + id + ".scope", &pavise.Container{ID: id, Image: fmt.Sprintf("nginx:%d", i%10)}, nil})
	}
	img, _, err := Compile(containerPolicy(t, `process.container.image == "nginx:7"`), testMachine().WithContainers(list))
	if err != nil {
		t.Fatal(err)
	}
	for i, k := range list {
		if got := judgeCgroup(img, k.Cgroup+"/x"); got != (i%10 == 7) {
			t.Fatalf("container %d: %v", i, got)
		}
	}
	t.Logf("%+v", img.Stats())
	if n := img.Stats().States; n > 2000 {
		t.Errorf("%d states", n)
	}
}

// TestContainersReview: what holds for the containers of today is no proof that rules contradict each other.
func TestContainersReview(t *testing.T) {
	set, err := Parse("p.yaml", []byte(`apiVersion: pavise.dev/v1alpha1
kind: Policy
metadata: {name: p}
spec:
  mode: enforce
  subject: process.exe.path == "/x"
  default: {file.open: deny}
  rules:
  - {name: nobody, on: [file.open], when: process.container.name == "nobody's" && process.container.image != "y", action: allow}
  - {name: db, on: [file.open], when: process.container.image == "nginx:1.27", action: allow}
  - {name: name, on: [file.open], when: process.container.name == "db", action: kill}
  - {name: none, on: [process.exec], when: process.cgroup == "/a" && process.container.name == "db", action: kill}
`))
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range []*Machine{testMachine(), testMachine().WithContainers(nil)} {
		_, r, err := Compile(set, m)
		if err != nil {
			t.Fatal(err)
		}
		if w := Review(set, m, r).Warnings(); len(w) > 0 {
			t.Error(w)
		}
	}
	// On the same condition they do contradict each other, whatever is known.
	set = append(containerPolicy(t, `process.container.name == "db"`), containerPolicy(t, `process.container.name == "db"`)...)
	set[1].Name, set[1].Rules[0].Action = "q", pavise.ActionKill
	m := testMachine()
	_, r, err := Compile(set, m)
	if err != nil {
		t.Fatal(err)
	}
	if w := Review(set, m, r).Warnings(); len(w) != 2 || !strings.Contains(w[0].Msg, "on the same condition") {
		t.Error(w)
	}
}
