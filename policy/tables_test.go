package policy

import (
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/pavise-project/pavise"
)

// add appends a clause on file.open with a rule of its own; preds are pairs of a dimension and globs, of which any may match.
func (p *program) add(c clause, preds ...any) {
	c.Op, c.Rule, c.Preds = pavise.OpOpen, uint32(len(p.Rules)), nil
	p.Rules = append(p.Rules, Rule{Name: fmt.Sprint(c.Rule)})
	for i := 0; i < len(preds); i += 2 {
		a := atom{Dim: preds[i].(Dim), Key: fmt.Sprint(len(p.Atoms))}
		for _, g := range strings.Fields(preds[i+1].(string)) {
			a.Patterns = append(a.Patterns, glob(g))
		}
		c.Preds = c.Preds.with(a.Dim, &pred{Atom: len(p.Atoms)})
		p.Atoms = append(p.Atoms, a)
	}
	p.Clauses = append(p.Clauses, c)
}

func explicit(a pavise.Action) clause { return clause{Kind: WordExplicit, Action: a} }
func monitor(c clause) clause         { c.Monitor = true; return c }

func mustAssemble(t testing.TB, p *program) *Image {
	t.Helper()
	img, err := assemble(p)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func path(s string) *Facts {
	f := new(Facts)
	f.Values[DimPath] = []byte(s)
	return f
}

// denied returns which of paths the Image denies.
func denied(img *Image, paths ...string) (ps []string) {
	for _, s := range paths {
		if img.Judge(pavise.OpOpen, path(s)).Action == pavise.ActionDeny {
			ps = append(ps, s)
		}
	}
	return ps
}

func want(t *testing.T, what string, got, want any) {
	t.Helper()
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%s: got %v, want %v", what, got, want)
	}
}

func TestLeaves(t *testing.T) {
	p := new(program)
	deny := explicit(pavise.ActionDeny)
	p.add(deny, DimPath, "/etc/shadow")
	p.add(deny, DimPath, "/usr/share//")
	p.add(deny, DimPath, "/var/**")
	p.add(deny, DimPath, "/x")
	img := mustAssemble(t, p)
	a := &img.Automata[0]
	kinds := map[LeafKind][]string{}
	for _, l := range a.Leaves {
		kinds[l.Kind] = append(kinds[l.Kind], string(a.Tails[l.TailOff:][:l.TailLen]))
	}
	want(t, "exact", kinds[LeafExact], []string{"tc/shadow", ""})
	want(t, "under", kinds[LeafUnder], []string{"sr/share"})
	want(t, "any", len(kinds[LeafAny]), 1) // no test
	want(t, "prefix", kinds[LeafPrefix], []string{"ar/"})
	want(t, "states", len(a.Accept), 2) // "", "/"
	want(t, "tails", len(a.Tails), 16+8+8)
	want(t, "denied", denied(img, "/etc/shadow", "/etc/shadow/", "/etc/shado", "/usr/share", "/usr/share/a", "/usr/shared", "/var", "/var/", "/var/a", "/x", "/xx", "", "/"),
		[]string{"/etc/shadow", "/usr/share", "/usr/share/a", "/var/", "/var/a", "/x"})
}

func TestLeafOfPrefixes(t *testing.T) {
	// What is decided already stays so in a leaf for the rest.
	p := new(program)
	p.add(explicit(pavise.ActionAudit), DimPath, "/a/**")
	p.add(explicit(pavise.ActionDeny), DimPath, "/a/long/name")
	p.add(explicit(pavise.ActionDeny), DimPath, "/a/long/name//")
	img := mustAssemble(t, p)
	want(t, "denied", denied(img, "/a/long/name", "/a/long/name/x", "/a/long/namex"), []string{"/a/long/name", "/a/long/name/x"})
	want(t, "audited", img.Judge(pavise.OpOpen, path("/a/long/namex")).Action, pavise.ActionAudit)
	for _, l := range img.Automata[0].Leaves {
		if l.TailLen > 0 && (l.Kind != LeafUnder || l.Miss == 0) {
			t.Errorf("leaf %+v", l)
		}
	}
}

func TestColumns(t *testing.T) {
	p := new(program)
	p.add(explicit(pavise.ActionDeny), DimPath, "**.so")
	a := mustAssemble(t, p).Automata[0]
	want(t, "shift", a.Shift, uint8(2)) // '.', 's', 'o' and the others
	want(t, "alike", a.Column['a'], a.Column[0xff])
	want(t, "states", len(a.Accept), 4)

	p = new(program)
	p.add(explicit(pavise.ActionDeny), DimPath, "**")
	a = mustAssemble(t, p).Automata[0]
	want(t, "shift of a constant", a.Shift, uint8(0))

	p = new(program)
	for b := range 256 {
		p.add(explicit(pavise.ActionDeny))
		p.Clauses[b].Preds = p.Clauses[b].Preds.with(DimAccess, &pred{Atom: b})
		p.Atoms = append(p.Atoms, atom{Dim: DimAccess, Patterns: []pattern{{Items: []item{{Set: one(byte(b))}}}}})
	}
	a = mustAssemble(t, p).Automata[0]
	want(t, "shift of bytes", a.Shift, uint8(8))
	want(t, "classes of bytes", a.Classes, 256+2)
}

func TestFuse(t *testing.T) {
	p := new(program)
	p.add(explicit(pavise.ActionDeny), DimPath, "/a")
	p.add(explicit(pavise.ActionDeny), DimPath, "/b")
	p.add(explicit(pavise.ActionDeny), DimPath, "/c")
	or := &pred{Kind: predOr, Subs: []*pred{{Atom: 0}, {Atom: 1}, {Atom: 2}}}
	for i := range p.Clauses {
		p.Clauses[i].Preds = p.Clauses[i].Preds.with(DimPath, or)
	}
	want(t, "classes", mustAssemble(t, p).Automata[0].Classes, 3)
	p.Clauses[2].Preds = p.Clauses[2].Preds.with(DimPath, &pred{Atom: 2})
	img := mustAssemble(t, p)
	want(t, "classes, one asked for alone", img.Automata[0].Classes, 4)
	want(t, "denied", denied(img, "/a", "/b", "/c", "/d"), []string{"/a", "/b", "/c"})
}

func TestSplit(t *testing.T) {
	p := new(program)
	var paths, none []string
	for i := range 24 {
		p.add(explicit(pavise.ActionDeny), DimPath, fmt.Sprintf("**needle%c**", 'a'+i))
		paths = append(paths, fmt.Sprintf("/hay/needle%c/hay", 'a'+i))
		none = append(none, fmt.Sprintf("/hay/needl%c", 'a'+i))
	}
	p.add(explicit(pavise.ActionDeny), DimPath, "/etc/shadow")
	img := mustAssemble(t, p)
	if n := len(img.Automata); n < 2 || n > 4 { // 2^24 sets of needles in one
		t.Errorf("%d automata", n)
	}
	want(t, "denied", denied(img, append(none, paths...)...), paths)
	want(t, "rules", img.Judge(pavise.OpOpen, path(strings.Join(paths, ""))).Matched, 24)

	// What one predicate asks for cannot be split.
	and := &pred{Kind: predAnd}
	for i := range 24 {
		and.Subs = append(and.Subs, &pred{Atom: i})
	}
	p.Clauses[0].Preds = p.Clauses[0].Preds.with(DimPath, and)
	_, err := assemble(p)
	if err == nil || !strings.HasPrefix(err.Error(), "file.path: more than 131,072 states of 32,768 after splitting over 4 automata") {
		t.Errorf("error %v", err)
	}
}

func TestLimits(t *testing.T) {
	deny := explicit(pavise.ActionDeny)
	for _, l := range []struct {
		want string
		fill func(p *program)
	}{
		{"hold 16,385 rules of 16,384", func(p *program) { p.Rules = make([]Rule, MaxRules+1) }},
		{"judge file.open: 16,385 clauses need 257 words of 256", func(p *program) {
			p.add(deny)
			p.Clauses = make([]clause, MaxOpWords*64+1)
			for i := range p.Clauses {
				p.Clauses[i] = clause{Op: pavise.OpOpen, Kind: WordExplicit, Action: pavise.ActionKill}
			}
		}},
		{"file.path: more than 131,072 states", func(p *program) {
			p.add(deny, DimPath, "**a"+strings.Repeat("?", 20)+"**")
		}},
		{"file.path: 96,026 states of 32,768", func(p *program) {
			for i := range 12 {
				p.add(deny, DimPath, fmt.Sprintf("/%c%s?", 'a'+i, strings.Repeat("x", 4000)))
			}
			and := &pred{Kind: predAnd} // keeps all in one automaton
			for i := range 24 {
				if i >= 12 {
					p.add(deny, DimPath, fmt.Sprintf("/%c%s?", 'a'+i, strings.Repeat("x", 4000)))
				}
				and.Subs = append(and.Subs, &pred{Kind: predNot, Subs: []*pred{{Kind: predNot, Subs: []*pred{{Atom: i}}}}})
			}
			p.Clauses[0].Preds = p.Clauses[0].Preds.with(DimPath, and)
		}},
		{"make tables: 1,049,608 bytes of tails of 1,048,576", func(p *program) {
			for i := range 1025 {
				p.add(deny, DimPath, fmt.Sprintf("/%c%c%s", i/32+64, i%32+64, strings.Repeat("x", 1020)+fmt.Sprint(i)))
			}
		}},
		{"use an atom of file.path on process.exe.path", func(p *program) {
			p.add(deny, DimPath, "/a")
			p.Clauses[0].Preds = p.Clauses[0].Preds.with(DimExe, p.Clauses[0].Preds.of(DimPath))
		}},
		{"inconsistent", func(p *program) { p.add(clause{Kind: WordAllow}) }},
	} {
		p := new(program)
		l.fill(p)
		if _, err := assemble(p); err == nil || !strings.Contains(err.Error(), l.want) {
			t.Errorf("error %v, want %s", err, l.want)
		}
	}
}

func TestOverlong(t *testing.T) {
	allow := clause{Kind: WordAllow, Group: 1}
	deny := clause{Kind: WordDefault, Action: pavise.ActionDeny, Group: 1}
	p := new(program)
	p.add(allow, DimPath, "/a**")
	p.add(deny)
	p.add(explicit(pavise.ActionKill), DimExe, "/bin/sh", DimPath, "/nowhere")
	img := mustAssemble(t, p)
	long := func(n int) *Facts { return path("/" + strings.Repeat("a", n-1)) }
	want(t, "4,095 bytes", img.Judge(pavise.OpOpen, long(MaxString)).Action, pavise.ActionNone)
	v := img.Judge(pavise.OpOpen, long(MaxString+1))
	want(t, "4,096 bytes", v.Action, pavise.ActionDeny)
	want(t, "rule", v.Rule, uint32(1))
	f := long(MaxString + 1)
	f.Values[DimExe] = []byte("/bin/sh")
	want(t, "a kill's path", img.Judge(pavise.OpOpen, f).Action, pavise.ActionKill)
}

func TestWordOrder(t *testing.T) {
	p := new(program)
	group := func(g uint16, a pavise.Action, mon bool) {
		p.add(clause{Kind: WordDefault, Action: a, Monitor: mon, Group: g})
		p.add(clause{Kind: WordAllow, Monitor: mon, Group: g})
	}
	group(1, pavise.ActionAudit, false)
	group(2, pavise.ActionDeny, true)
	group(3, pavise.ActionKill, false)
	group(4, pavise.ActionDeny, false)
	p.add(clause{Kind: WordAllow, Group: 5}) // no default: no effect
	p.add(explicit(pavise.ActionAllow))
	for _, a := range []pavise.Action{pavise.ActionAudit, pavise.ActionDeny, pavise.ActionKill} {
		p.add(monitor(explicit(a)))
		p.add(explicit(a))
		p.add(explicit(a))
	}
	var got []string
	for _, w := range mustAssemble(t, p).Ops[pavise.OpOpen].Words {
		s := fmt.Sprint([]string{"", "explicit", "allow", "default"}[w.Kind], " ", w.Action, " ", w.Group, " ", w.Clauses)
		if w.Monitor {
			s += " monitor"
		}
		got = append(got, s)
	}
	want(t, "words", got, []string{
		"explicit kill 0 2", "explicit deny 0 2", "allow none 3 1", "default kill 3 1", "allow none 4 1", "default deny 4 1",
		"explicit kill 0 1 monitor", "explicit deny 0 1 monitor", "allow none 2 1 monitor", "default deny 2 1 monitor",
		"explicit audit 0 3", "allow none 1 1", "default audit 1 1",
	})
}

func TestVerdict(t *testing.T) {
	p := new(program)
	p.add(explicit(pavise.ActionAudit), DimPath, "/a**")                            // 0
	p.add(monitor(explicit(pavise.ActionKill)), DimPath, "/ab**")                   // 1
	p.add(explicit(pavise.ActionDeny), DimPath, "/abc**")                           // 2
	p.add(explicit(pavise.ActionDeny), DimPath, "/abcd**")                          // 3
	p.add(clause{Kind: WordDefault, Action: pavise.ActionKill, Group: 1})           // 4
	p.add(clause{Kind: WordAllow, Group: 1}, DimPath, "/a** /b**")                  // 5
	p.add(explicit(pavise.ActionAudit), DimExe, "/bin/sh")                          // 6
	p.add(monitor(clause{Kind: WordDefault, Action: pavise.ActionDeny, Group: 2}))  // 7
	p.add(monitor(clause{Kind: WordAllow, Group: 2}), DimPath, "/a** /b** /c** /d") // 8
	img := mustAssemble(t, p)
	for _, c := range []struct {
		names string // the first, and aliases
		want  string
	}{
		{"/b", "none false 4294967295 [] 0"},
		{"/a", "audit false 0 [0] 1"},
		{"/ab", "kill true 1 [1 0] 2"},
		{"/abc", "deny false 2 [2 1 0] 3"},
		{"/abcd", "deny false 2 [2 1 0] 4"},
		{"/c", "kill false 4 [4] 1"},
		{"/x", "kill false 4 [4 7] 2"},
		{"/b /abc", "deny false 2 [2 1 0] 3"}, // explicit rules hold under any name
		{"/c /abc", "kill false 4 [4 1 0] 3"}, // a deny is not looked for any more
		{"/abc /abcd /ab /q", "deny false 2 [2 1 0] 3"},
		{"/a /x", "audit false 0 [0] 1"}, // allow-lists are asked about the first name only
		{"/x /a", "kill false 4 [4 7 0] 3"},
	} {
		names := strings.Fields(c.names)
		f := path(names[0])
		for _, n := range names[1:] {
			f.Aliases = append(f.Aliases, []byte(n))
		}
		v := img.Judge(pavise.OpOpen, f)
		var rules []uint32
		for _, r := range v.Rules {
			if r != NoRule {
				rules = append(rules, r)
			}
		}
		want(t, c.names, fmt.Sprint(v.Action, v.Monitor, " ", v.Rule, " ", rules, " ", v.Matched), c.want)
		if n := testing.AllocsPerRun(10, func() { img.Judge(pavise.OpOpen, f) }); n != 0 {
			t.Errorf("%s: %v allocations", c.names, n)
		}
	}
}

func TestNoSlots(t *testing.T) {
	p := new(program)
	p.add(explicit(pavise.ActionDeny))
	img := mustAssemble(t, p)
	v := img.Judge(pavise.OpOpen, path("/a"))
	want(t, "verdict", v.Action, pavise.ActionDeny)
	want(t, "matched", v.Matched, 1)
	want(t, "used", img.Ops[pavise.OpExec].Used(), false)
}

func TestSlotOrder(t *testing.T) {
	p := new(program)
	p.add(explicit(pavise.ActionDeny), DimPath, "/a", DimOwner, "aaaa", DimUID, "aaaa", DimExe, "/bin/sh", DimRemotePort, "aa")
	img := mustAssemble(t, p)
	var got []Dim
	for _, s := range img.Ops[pavise.OpOpen].Slots {
		got = append(got, img.Automata[s.Automaton].Dim)
	}
	want(t, "slots", got, []Dim{DimExe, DimUID, DimOwner, DimRemotePort, DimPath})
}

func TestManyRules(t *testing.T) {
	p := pathProgram(10000, true)
	img := mustAssemble(t, p)
	if again := mustAssemble(t, p); !reflect.DeepEqual(img, again) {
		t.Error("the same program gave other tables")
	}
	for i := 0; i < len(p.Clauses); i += 31 {
		c := &p.Clauses[i]
		q := c.Preds.of(DimPath)
		if q == nil || c.Preds.of(DimAccess) != nil {
			continue
		}
		f := new(Facts)
		for _, it := range p.Atoms[q.Atom].Patterns[0].Items {
			if !it.Loop {
				f.Values[DimPath] = append(f.Values[DimPath], it.Set.first())
			}
		}
		v := img.Judge(pavise.OpOpen, f)
		f.Values[DimExe] = fmt.Appendf(nil, "/usr/sbin/daemon-%d", i%100)
		if diff := compareVerdict(img.Judge(pavise.OpOpen, f), refJudge(p, pavise.OpOpen, f)); diff != "" {
			t.Fatalf("%s: %s", f.Values[DimPath], diff)
		}
		if v.Action != pavise.ActionNone {
			t.Fatalf("%s: %v by rule %d without an executable", f.Values[DimPath], v.Action, v.Rule)
		}
	}
	s := img.Stats()
	want(t, "clauses", s.Ops[0].Clauses, 10000)
	want(t, "dimensions", s.Automata[0].Dim.String(), "process.exe.path")
	checkImage(t, img)
}

func TestProtected(t *testing.T) {
	img := mustAssemble(t, &program{Protected: []string{"/b", "/a", "/b"}})
	want(t, "protected", img.Protected, []string{"/a", "/b"})
}
