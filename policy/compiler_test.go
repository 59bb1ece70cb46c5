package policy

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/pavise-project/pavise"
)

// draft is a policy that a random editor works on.
type draft struct {
	head  string
	rules []string
}

func (d *draft) source(name string) string {
	src := head + name + "}\nspec:\n" + d.head + "  rules:\n"
	for i, r := range d.rules {
		src += "  - {name: r" + strconv.Itoa(i) + ", " + r + "}\n"
	}
	return src
}

// randomTerm is a condition from few enough values that rules share atoms, now and then.
func randomTerm(r *rand.Rand, net bool) string {
	n := func(most int) int { return r.IntN(most) }
	dir := []string{"/usr/lib", "/usr", "/etc", "/opt/app/data"}[n(4)]
	terms := []func() string{
		func() string { return fmt.Sprintf(`process.exe.path == "%s/daemon-%d"`, dir, n(4)) },
		func() string { return fmt.Sprintf(`process.exe.name in ["sh", "tool-%d"]`, n(4)) },
		func() string { return fmt.Sprintf(`process.parent.exe.path.under("%s")`, dir) },
		func() string { return fmt.Sprintf(`process.user.id < %d`, 1+n(2000)) },
		func() string { return fmt.Sprintf(`process.user.id in [%d, %d]`, n(3), n(2000)) },
		func() string { return fmt.Sprintf(`%q in process.caps`, "CAP_NET_"+[]string{"ADMIN", "RAW"}[n(2)]) },
		func() string { return `process.tty` },
		func() string { return fmt.Sprintf(`process.unit == "unit-%d.service"`, n(3)) },
		func() string { return fmt.Sprintf(`process.container.image == "image-%d"`, n(3)) },
		func() string { return fmt.Sprintf(`process.exe.path.inSet("set-%d.txt")`, n(3)) },
	}
	if r.IntN(12) == 0 { // what the kernel cannot decide, or this machine does not know
		return []string{`process.cwd == "/tmp"`, `process.user.name == "nobody"`, `process.user.name == "root"`}[n(3)]
	}
	if net {
		terms = append(terms,
			func() string { return fmt.Sprintf(`net.remote.port in [%d, %d]`, 1+n(9), 1+n(60000)) },
			func() string { return fmt.Sprintf(`net.remote.address.within("10.%d.0.0/16")`, n(200)) },
			func() string { return `net.family == "ipv6"` },
			func() string { return fmt.Sprintf(`net.remote.path.startsWith("/run/s-%d")`, n(3)) },
		)
	} else {
		path := func() string { return fmt.Sprintf("%s/%s-%d.conf", dir, []string{"a", "bb", "ccc"}[n(3)], n(50)) }
		terms = append(terms,
			func() string { return fmt.Sprintf(`file.path == %q`, path()) },
			func() string { return fmt.Sprintf(`file.path in [%q, %q, "%s/"]`, path(), path(), dir) },
			func() string { return fmt.Sprintf(`file.path.under("%s/tree-%d", %q)`, dir, n(9), path()) },
			func() string { return fmt.Sprintf(`file.path.glob("%s/*/x-%d/**")`, dir, n(5)) },
			func() string { return fmt.Sprintf(`file.path.glob("**/{secret,key}-%d.pem")`, n(5)) },
			func() string { return fmt.Sprintf(`file.path.endsWith("-%d.so")`, n(3)) },
			func() string { return fmt.Sprintf(`file.path.contains("needle-%d")`, n(3)) },
			func() string { return fmt.Sprintf(`file.name == "n-%d"`, n(5)) },
			func() string { return []string{"file.access.write", "file.access.exec", "file.access.create"}[n(3)] },
			func() string { return fmt.Sprintf(`file.owner.id >= %d`, 1+n(2000)) },
			func() string { return `file.type == "regular"` },
		)
	}
	return terms[n(len(terms))]()
}

func randomRule(r *rand.Rand) string {
	net := r.IntN(4) == 0
	when := randomTerm(r, net)
	for range r.IntN(4) {
		op := []string{" && ", " || "}[r.IntN(2)]
		not := []string{"", "", "!"}[r.IntN(3)]
		when = "(" + when + ")" + op + not + "(" + randomTerm(r, net) + ")"
	}
	on := []string{"file.open", "process.exec", "file.open, process.exec"}[r.IntN(3)]
	if net {
		on = []string{"net.connect", "net.send", "net.connect, net.send"}[r.IntN(3)]
	}
	return fmt.Sprintf("on: [%s], action: %s, when: '%s'", on, []string{"allow", "audit", "deny", "kill"}[r.IntN(4)], when)
}

func randomDraft(r *rand.Rand) *draft {
	d := &draft{head: "  mode: " + []string{"monitor", "enforce"}[r.IntN(2)] + "\n"}
	if r.IntN(3) == 0 {
		d.head += "  subject: '" + randomTerm(r, false) + "'\n"
		if strings.Contains(d.head, "file.") {
			d.head = "  subject: process.user.id == 7\n"
		}
	}
	if r.IntN(3) == 0 {
		d.head += "  default: {file.open: deny}\n"
	}
	for range 1 + r.IntN(12) {
		d.rules = append(d.rules, randomRule(r))
	}
	return d
}

// plain returns an Image without what has no value to compare.
func plain(img *Image) Image {
	c := *img
	c.Rules = append([]Rule(nil), img.Rules...)
	for i := range c.Rules {
		c.Rules[i].Residual = nil
	}
	return c
}

// TestCompilerProperty edits a set of policies at random, and compares what a Compiler makes of it, which knows the sets before, with
// what is made of the same sources from nothing.
func TestCompilerProperty(t *testing.T) {
	runs, edits := 6, 30
	if testing.Short() {
		runs = 1
	}
	shared := 0
	for range runs {
		seed := rand.Uint64()
		r := rand.New(rand.NewPCG(seed, 2))
		var c Compiler
		m := testMachine()
		drafts, live := map[string]*draft{}, map[string]*Policy{}
		files := map[string]map[string]string{} // by policy: what its sets were when it was read
		reader := func(files map[string]string) func(string) ([]byte, error) {
			return func(name string) ([]byte, error) { return []byte(files[name]), nil }
		}
		var last *Image
		for edit := range edits {
			name := "p" + strconv.Itoa(r.IntN(8))
			d := drafts[name]
			switch k := r.IntN(10); {
			case d == nil:
				d = randomDraft(r)
			case k == 0:
				d = nil
			case k < 4:
				d.rules = append(d.rules, randomRule(r))
			case k < 6 && len(d.rules) > 1:
				i := r.IntN(len(d.rules))
				d.rules = append(d.rules[:i:i], d.rules[i+1:]...)
			default:
				d.rules[r.IntN(len(d.rules))] = randomRule(r)
			}
			if d == nil {
				delete(drafts, name)
				delete(live, name)
			} else {
				drafts[name] = d
				files[name] = map[string]string{}
				for i := range 3 {
					files[name][fmt.Sprintf("set-%d.txt", i)] = fmt.Sprintf("/bin/one\n/bin/%d\n", r.IntN(3))
				}
				set, err := ParseWith(name, []byte(d.source(name)), reader(files[name]), slices.Collect(maps.Values(live))...)
				if err != nil {
					t.Fatalf("seed %d: %v\n%s", seed, err, d.source(name))
				}
				live[name] = set[0]
			}
			switch r.IntN(20) {
			case 0:
				m = testMachine() // another one
			case 1, 2, 3:
				var list []Container
				for i := range 2 {
					list = append(list, Container{Cgroup: fmt.Sprintf("/c/%d", r.IntN(9)), Container: &pavise.Container{Image: fmt.Sprintf("image-%d", i)}})
				}
				m = m.WithContainers(list)
			}
			var set, fresh []*Policy
			for name, p := range live {
				set = append(set, p)
				again, err := ParseWith(name, p.Source, reader(files[name]))
				if err != nil {
					t.Fatal(err)
				}
				fresh = append(fresh, again...)
			}
			got, gotReport, err := c.Compile(set, m)
			want, wantReport, wantErr := Compile(fresh, m)
			if fmt.Sprint(err) != fmt.Sprint(wantErr) {
				t.Fatalf("seed %d, edit %d: %v, and from nothing: %v", seed, edit, err, wantErr)
			}
			if err != nil {
				delete(drafts, name)
				delete(live, name)
				continue
			}
			if !reflect.DeepEqual(plain(got), plain(want)) {
				t.Fatalf("seed %d, edit %d: the image is not that which is made from nothing", seed, edit)
			}
			if !reflect.DeepEqual(gotReport, wantReport) {
				t.Fatalf("seed %d, edit %d: the report is not that which is made from nothing", seed, edit)
			}
			for i := range got.Automata {
				for j := 0; last != nil && j < len(last.Automata); j++ {
					if a, b := got.Automata[i].Next, last.Automata[j].Next; &a[0] == &b[0] {
						shared++
					}
				}
			}
			last = got
			if n := len(c.built); n > 3*len(got.Automata) {
				t.Fatalf("seed %d, edit %d: keeps %d automata for %d", seed, edit, n, len(got.Automata))
			}
		}
		if _, _, err := c.Compile(nil, m); err != nil || len(c.built) != 0 {
			t.Fatalf("seed %d: keeps %d automata for no policy: %v", seed, len(c.built), err)
		}
	}
	if shared < runs*edits {
		t.Errorf("only %d automata were used again in %d edits", shared, runs*edits)
	}
}

// TestBuiltProperty is the same for programs whose automata do not fit, so that they are split in all ways.
func TestBuiltProperty(t *testing.T) {
	programs := 400
	if testing.Short() {
		programs = 60
	}
	hits := 0
	for range programs {
		seed := rand.Uint64()
		r := rand.New(rand.NewPCG(seed, 3))
		whole := randomProgram(r)
		for i := range whole.Atoms {
			whole.Atoms[i].Key = patternsKey(whole.Atoms[i].Patterns) + " " + strconv.Itoa(i)
		}
		few, most := 1+r.IntN(10), 10+r.IntN(60)
		var built []*build
		for edit := range 5 {
			p := *whole
			p.Clauses = nil
			for _, c := range whole.Clauses {
				if r.IntN(8) > 0 {
					p.Clauses = append(p.Clauses, c)
				}
			}
			make := func(built []*build) (*Image, []*build, error) {
				a := newAssembler(&p)
				a.few, a.most, a.built = few, most, built
				img, err := a.run()
				for _, x := range a.kept {
					for _, y := range built {
						if x == y {
							hits++
						}
					}
				}
				return img, a.kept, err
			}
			want, _, wantErr := make(nil)
			got, kept, err := make(built)
			if fmt.Sprint(err) != fmt.Sprint(wantErr) {
				t.Fatalf("seed %d, edit %d: %v, and from nothing: %v", seed, edit, err, wantErr)
			}
			if err == nil {
				built = kept
				if !reflect.DeepEqual(got, want) {
					t.Fatalf("seed %d, edit %d: the image is not that which is made from nothing", seed, edit)
				}
			}
		}
	}
	if hits < programs {
		t.Errorf("only %d automata were used again in %d programs", hits, programs)
	}
}
