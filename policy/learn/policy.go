package learn

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/pavise-project/pavise"
)

// Options of Write.
type Options struct {
	Name    string      // of the policy
	Subject string      // CEL
	Ops     []pavise.Op // what was looked at: of these, what was not seen is denied
	Since   time.Time
	Until   time.Time
	// Rare has acts that were seen once, and not at a start, learned too. They stand apart either way.
	Rare bool
	// Notes are written into the head.
	Notes []string
}

// A Rule is one allow rule of what was learned.
type Rule struct {
	Name string
	On   []pavise.Op
	When string // CEL; empty: always
	Rare bool
	Of   []Line
}

// A Line is the evidence for one pattern of a rule.
type Line struct {
	What  string
	Acts  []*Act
	Paths int
}

// Learned is what comes of what was observed.
type Learned struct {
	Rules []Rule
	// Left are the acts that are not learned, and why.
	Left []Leftover
}

// Leftover are acts that no rule allows, for one reason.
type Leftover struct {
	Why  string
	Acts []*Act
}

// group is acts that differ only in what can be generalised.
type group struct {
	op    pavise.Op
	fixed []string
	list  string
	paths []string // the fields
	addr  bool
	acts  []*Act
}

// Learn makes rules of acts.
func Learn(acts []*Act, rare bool) *Learned {
	l := &Learned{}
	groups := map[string]*group{}
	var order []string
	made := temporaries(acts)
	for _, a := range acts {
		s := shapeOf(a.Event)
		switch {
		case a.By != "":
			l.leave("flagged by "+a.By, a)
			continue
		case s.odd != "":
			l.leave(s.odd, a)
			continue
		}
		g := &group{op: a.Event.Op, fixed: s.fixed, list: s.list, addr: s.addr != ""}
		for _, p := range s.paths {
			g.paths = append(g.paths, p.field)
		}
		key := fmt.Sprint(g.op, g.fixed, g.list, g.paths, g.addr)
		if groups[key] == nil {
			groups[key] = g
			order = append(order, key)
		}
		groups[key].acts = append(groups[key].acts, a)
	}
	slices.SortStableFunc(order, func(a, b string) int { return int(groups[a].op) - int(groups[b].op) })
	for _, key := range order {
		l.group(groups[key], made)
	}
	if !rare {
		l.Rules = slices.DeleteFunc(l.Rules, func(r Rule) bool {
			for _, line := range r.Of {
				for _, a := range line.Acts {
					if r.Rare {
						l.leave("seen once, and not at a start", a)
					}
				}
			}
			return r.Rare
		})
	}
	l.merge()
	l.name()
	return l
}

func (l *Learned) leave(why string, a *Act) {
	i := slices.IndexFunc(l.Left, func(o Leftover) bool { return o.Why == why })
	if i < 0 {
		i = len(l.Left)
		l.Left = append(l.Left, Leftover{Why: why})
	}
	l.Left[i].Acts = append(l.Left[i].Acts, a)
}

// temporaries are paths that the subject made and took away again.
func temporaries(acts []*Act) map[string]bool {
	created, both := map[string]bool{}, map[string]bool{}
	for _, a := range acts {
		if a.Event.Op == pavise.OpCreate || a.Event.Op == pavise.OpOpen && a.Event.File.Access&pavise.AccessCreate != 0 {
			created[a.Event.File.Path] = true
		}
	}
	for _, a := range acts {
		if e := a.Event; (e.Op == pavise.OpDelete || e.Op == pavise.OpRename) && created[e.File.Path] {
			both[e.File.Path] = true
		}
	}
	return both
}

// reads are the operations and groups that change nothing.
func (g *group) reads() bool {
	switch g.op {
	case pavise.OpOpen:
		return len(g.fixed) > 0 && g.fixed[0] == "!file.access.write"
	case pavise.OpMemExec:
		return true
	}
	return false
}

// each reports whether each path stands for itself: a program that is started, or an other process's, is not like its neighbours.
func (g *group) each() bool {
	switch g.op {
	case pavise.OpExec, pavise.OpSignal, pavise.OpPtrace, pavise.OpDevice, pavise.OpMount, pavise.OpUmount, pavise.OpChroot, pavise.OpPivotRoot, pavise.OpModule, pavise.OpKexec:
		return true
	}
	return g.op.OnSocket()
}

// group makes the rules of one group: one, and one for what is rare in it.
func (l *Learned) group(g *group, made map[string]bool) {
	if len(g.paths) == 1 && g.list == "" {
		patterns := generalise(g.acts, func(a *Act) string { return shapeOf(a.Event).paths[0].path }, made, g.reads(), g.each())
		var usual, rare []pattern
		for _, p := range patterns {
			if isRare(p.acts) {
				rare = append(rare, p)
			} else {
				usual = append(usual, p)
			}
		}
		for i, ps := range [][]pattern{usual, rare} {
			if len(ps) > 0 {
				l.rule(g, i == 1, pathTest(g.paths[0], ps), lines(ps))
			}
		}
		return
	}
	if g.addr {
		l.remotes(g)
		return
	}
	var usual, rare []*Act
	for _, a := range g.acts {
		if isRare([]*Act{a}) {
			rare = append(rare, a)
		} else {
			usual = append(usual, a)
		}
	}
	for i, acts := range [][]*Act{usual, rare} {
		if len(acts) == 0 {
			continue
		}
		var tests []string
		var of []Line
		if g.list != "" {
			values := map[string][]*Act{}
			for _, a := range acts {
				v := shapeOf(a.Event).value
				values[v] = append(values[v], a)
			}
			tests = append(tests, listTest(g.list, keys(values)))
			for _, v := range keys(values) {
				of = append(of, Line{What: g.list + " " + v, Acts: values[v]})
			}
		}
		for n, field := range g.paths {
			ps := generalise(acts, func(a *Act) string { return shapeOf(a.Event).paths[n].path }, made, g.reads(), g.each())
			tests = append(tests, pathTest(field, ps))
			of = append(of, lines(ps)...)
		}
		if len(of) == 0 {
			of = []Line{{What: g.op.String(), Acts: acts}}
		}
		l.rule(g, i == 1, strings.Join(tests, " && "), of)
	}
}

// isRare reports whether all that is known of a pattern is one act that was not part of a start.
func isRare(acts []*Act) bool { return len(acts) == 1 && acts[0].Count == 1 && !acts[0].Start }

func (l *Learned) rule(g *group, rare bool, test string, of []Line) {
	conds := slices.Clone(g.fixed)
	if test != "" {
		conds = append(conds, test)
	}
	l.Rules = append(l.Rules, Rule{On: []pavise.Op{g.op}, When: strings.Join(conds, "\n&& "), Rare: rare, Of: of})
}

// remotes makes the rules of connections: the ports that are reached at the same addresses are one rule.
func (l *Learned) remotes(g *group) {
	type place struct {
		port  string
		rare  bool
		named bool
	}
	names := namesOf(g.acts)
	by := map[place][]*Act{}
	for _, a := range g.acts {
		p := place{shapeOf(a.Event).value, isRare([]*Act{a}), names[shapeOf(a.Event).addr] != ""}
		by[p] = append(by[p], a)
	}
	// What is also done often is not rare.
	for p, acts := range by {
		if usual, ok := by[place{p.port, false, p.named}]; ok && p.rare {
			by[place{p.port, false, p.named}] = append(usual, acts...)
			delete(by, p)
		}
	}
	type dest struct {
		ports []string
		acts  []*Act
		rare  bool
		named bool
	}
	where := func(named bool, acts []*Act) []string {
		if !named {
			return prefixes(acts)
		}
		all := map[string]bool{}
		for _, a := range acts {
			all[names[shapeOf(a.Event).addr]] = true
		}
		return keys(all)
	}
	to := map[string]*dest{}
	for p, acts := range by {
		key := fmt.Sprint(p.rare) + strings.Join(where(p.named, acts), " ")
		if to[key] == nil {
			to[key] = &dest{rare: p.rare, named: p.named}
		}
		to[key].ports, to[key].acts = append(to[key].ports, p.port), append(to[key].acts, acts...)
	}
	for _, key := range keys(to) {
		d := to[key]
		slices.Sort(d.ports)
		of := make([]Line, 0, len(d.ports))
		for _, port := range d.ports {
			var acts []*Act
			for _, a := range d.acts {
				if shapeOf(a.Event).value == port {
					acts = append(acts, a)
				}
			}
			of = append(of, Line{What: strings.Join(where(d.named, acts), " ") + " port " + port, Acts: acts})
		}
		at := call("net.remote.address.within", prefixes(d.acts))
		if d.named {
			at = call("net.remote.domain.glob", where(true, d.acts))
		}
		l.rule(g, d.rare, listTest(g.list, d.ports)+"\n&& "+at, of)
	}
}

// namesOf are the domain names of addresses, where one is known and can stand in a rule. An address that was reached by its name is known by it when it is reached without.
func namesOf(acts []*Act) map[string]string {
	names := map[string]string{}
	for _, a := range acts {
		name := a.Event.Net.RemoteName
		if at := shapeOf(a.Event).addr; at != "" && plainName(name) && (names[at] == "" || name < names[at]) {
			names[at] = name
		}
	}
	return names
}

// plainName tells whether a name is one of a host as hosts are called.
func plainName(name string) bool {
	return name != "" && strings.Contains(name, ".") && strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789-_.") == "" && !strings.Contains(name, "..") &&
		!strings.HasPrefix(name, ".") && !strings.HasSuffix(name, ".")
}

// manyAddresses of a network stand for all of it.
const manyAddresses = 3

// prefixes are the addresses of acts, with neighbours taken together: the machine itself, and a /24 or /64 of which three or more were seen.
func prefixes(acts []*Act) []string {
	nets := map[netip.Prefix]map[netip.Addr]bool{}
	for _, a := range acts {
		addr, err := netip.ParseAddr(shapeOf(a.Event).addr)
		if err != nil {
			continue
		}
		bits := 24
		if addr.Is6() {
			bits = 64
		}
		if addr.IsLoopback() && addr.Is4() {
			bits = 8
		}
		p, err := addr.WithZone("").Prefix(bits)
		if err != nil {
			continue
		}
		if nets[p] == nil {
			nets[p] = map[netip.Addr]bool{}
		}
		nets[p][addr.WithZone("")] = true
	}
	var out []string
	for p, addrs := range nets {
		if p.Addr().IsLoopback() && p.Addr().Is4() || len(addrs) >= manyAddresses {
			out = append(out, p.String())
			continue
		}
		for a := range addrs {
			out = append(out, netip.PrefixFrom(a, a.BitLen()).String())
		}
	}
	slices.Sort(out)
	return out
}

func keys[V any](m map[string]V) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

func lines(ps []pattern) []Line {
	out := make([]Line, len(ps))
	for i, p := range ps {
		out[i] = Line{What: p.text, Acts: p.acts, Paths: p.paths}
		if p.kind == under {
			out[i].What = "below " + p.text
		}
	}
	return out
}

// call is fn of literals.
func call(fn string, args []string) string {
	q := make([]string, len(args))
	for i, a := range args {
		q[i] = quote(a)
	}
	return fn + "(" + wrap(q) + ")"
}

// wrap joins literals with commas, in lines of about a hundred bytes, the later ones indented.
func wrap(items []string) string {
	var b strings.Builder
	n := 0
	for i, s := range items {
		switch {
		case i == 0:
		case n+len(s) > 100:
			b.WriteString(",\n    ")
			n = 0
		default:
			b.WriteString(", ")
		}
		b.WriteString(s)
		n += len(s) + 2
	}
	return b.String()
}

// listTest asks whether a field is one of some literals.
func listTest(field string, values []string) string {
	var plain, tests []string
	for _, v := range values {
		if strings.HasPrefix(v, ">=") {
			tests = append(tests, field+" "+v)
		} else {
			plain = append(plain, v)
		}
	}
	switch len(plain) {
	case 0:
	case 1:
		tests = slices.Insert(tests, 0, field+" == "+plain[0])
	default:
		tests = slices.Insert(tests, 0, field+" in ["+wrap(plain)+"]")
	}
	return either(tests)
}

func either(tests []string) string {
	if len(tests) == 1 {
		return tests[0]
	}
	return "(" + strings.Join(tests, "\n  || ") + ")"
}

// pathTest asks whether a path is one of the patterns.
func pathTest(field string, ps []pattern) string {
	var is, below, like []string
	for _, p := range ps {
		switch p.kind {
		case exact:
			is = append(is, quote(p.text))
		case under:
			below = append(below, p.text)
		case glob:
			like = append(like, p.text)
		}
	}
	var tests []string
	switch len(is) {
	case 0:
	case 1:
		tests = append(tests, field+" == "+is[0])
	default:
		tests = append(tests, field+" in ["+wrap(is)+"]")
	}
	if len(below) > 0 {
		tests = append(tests, call(field+".under", below))
	}
	if len(like) > 0 {
		tests = append(tests, call(field+".glob", like))
	}
	return either(tests)
}

// merge makes one rule of those with the same condition.
func (l *Learned) merge() {
	var out []Rule
	for _, r := range l.Rules {
		i := slices.IndexFunc(out, func(o Rule) bool {
			return o.When == r.When && o.Rare == r.Rare && r.When != "" && !slices.Contains(o.On, r.On[0])
		})
		if i < 0 {
			out = append(out, r)
			continue
		}
		out[i].On = append(out[i].On, r.On...)
		for _, line := range r.Of {
			j := slices.IndexFunc(out[i].Of, func(o Line) bool { return o.What == line.What })
			out[i].Of[j].Acts = append(out[i].Of[j].Acts, line.Acts...)
		}
	}
	slices.SortStableFunc(out, func(a, b Rule) int {
		if a.Rare != b.Rare {
			if a.Rare {
				return 1
			}
			return -1
		}
		return 0
	})
	l.Rules = out
}

// name gives the rules names that say what they are about.
func (l *Learned) name() {
	used := map[string]int{}
	for i := range l.Rules {
		r := &l.Rules[i]
		name := strings.ReplaceAll(strings.ReplaceAll(r.On[0].String(), ".", "-"), "_", "-")
		if r.On[0] == pavise.OpOpen {
			name = "write"
			if strings.HasPrefix(r.When, "!file.access.write") {
				name = "read"
			}
		}
		if r.Rare {
			name = "rare-" + name
		}
		used[name]++
		if n := used[name]; n > 1 {
			name += "-" + strconv.Itoa(n)
		}
		r.Name = name
	}
}

// Write writes the policy, with the evidence for each rule in comments.
func (l *Learned) Write(o Options) string {
	var b strings.Builder
	for _, s := range o.Notes {
		fmt.Fprintf(&b, "# %s\n", clean(s))
	}
	for _, left := range l.Left {
		fmt.Fprintf(&b, "#\n# Not learned, %s:\n", clean(left.Why))
		for i, a := range left.Acts {
			if i == 20 {
				fmt.Fprintf(&b, "#   and %d more\n", len(left.Acts)-i)
				break
			}
			fmt.Fprintf(&b, "#   %s\n", clean(describe(a)+": "+evidence([]*Act{a})))
		}
	}
	fmt.Fprintf(&b, "apiVersion: pavise.dev/v1alpha1\nkind: Policy\nmetadata:\n  name: %s\n  labels: {learned: \"true\"}\nspec:\n  mode: monitor\n", o.Name)
	fmt.Fprintf(&b, "  subject: >-\n%s\n", indent(o.Subject, "    "))
	b.WriteString("  default:\n")
	for _, op := range o.Ops {
		fmt.Fprintf(&b, "    %s: deny\n", op)
	}
	if len(l.Rules) == 0 {
		b.WriteString("  rules: []\n")
		return b.String()
	}
	b.WriteString("  rules:\n")
	l.writeRules(&b, "  ")
	return b.String()
}

func (l *Learned) writeRules(b *strings.Builder, margin string) {
	rare := false
	for _, r := range l.Rules {
		if r.Rare && !rare {
			fmt.Fprintf(b, "%s# Each of these was seen once, and not at a start. Look at them before the policy is enforced.\n", margin)
		}
		rare = r.Rare
		fmt.Fprintf(b, "%s- name: %s\n", margin, r.Name)
		for i, line := range r.Of {
			if i == 50 {
				fmt.Fprintf(b, "%s  # and %d more\n", margin, len(r.Of)-i)
				break
			}
			files := ""
			if line.Paths > 1 {
				files = fmt.Sprintf("%d different, ", line.Paths)
			}
			fmt.Fprintf(b, "%s  # %s: %s%s\n", margin, clean(line.What), files, clean(evidence(line.Acts)))
		}
		ops := make([]string, len(r.On))
		for i, op := range r.On {
			ops[i] = op.String()
		}
		fmt.Fprintf(b, "%s  on: [%s]\n", margin, strings.Join(ops, ", "))
		if r.When != "" {
			fmt.Fprintf(b, "%s  when: >-\n%s\n", margin, indent(r.When, margin+"    "))
		}
		fmt.Fprintf(b, "%s  action: allow\n", margin)
	}
}

func indent(s, by string) string { return by + strings.ReplaceAll(s, "\n", "\n"+by) }

// evidence says how often acts were seen, when, and by whom for example.
func evidence(acts []*Act) string {
	var n uint64
	first, last := acts[0].First, acts[0].Last
	who := acts[0]
	exes := map[string]bool{}
	for _, a := range acts {
		n += a.Count
		first, last = earlier(first, a.First), later(last, a.Last)
		if a.Count > who.Count {
			who = a
		}
		if a.Event.Process != nil {
			exes[a.Event.Process.Exe.Path] = true
		}
	}
	s := "once, " + first.UTC().Format(time.DateTime)
	if n > 1 {
		s = fmt.Sprintf("%d times, %s to %s", n, first.UTC().Format(time.DateTime), last.UTC().Format(time.DateTime))
	}
	if p := who.Event.Process; p != nil {
		s += fmt.Sprintf(", by %s[%d]", cmp.Or(p.Exe.Path, "?"), p.PID)
	}
	if len(exes) > 1 {
		s += fmt.Sprintf(" and %d other programs", len(exes)-1)
	}
	return s
}

// describe says an act in a line.
func describe(a *Act) string {
	s := shapeOf(a.Event)
	parts := []string{a.Event.Op.String()}
	for _, p := range s.paths {
		parts = append(parts, p.path)
	}
	if s.addr != "" {
		parts = append(parts, s.addr)
	}
	if s.value != "" {
		parts = append(parts, s.value)
	}
	if len(s.paths) == 0 && a.Event.File.Path != "" {
		parts = append(parts, a.Event.File.Path)
	}
	return strings.Join(parts, " ")
}

// clean makes text that a policy's reader can be shown: one line, without what a terminal would obey.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '?'
	}, strings.ToValidUTF8(s, "?"))
}

// A RuleReport is a rule with its evidence, for machines.
type RuleReport struct {
	Name     string     `json:"name"`
	On       []string   `json:"on"`
	When     string     `json:"when,omitempty"`
	Rare     bool       `json:"rare,omitempty"`
	Evidence []Evidence `json:"evidence"`
}

// Evidence is what was seen of one pattern, or of one act.
type Evidence struct {
	What  string        `json:"what"`
	Paths int           `json:"paths,omitempty"` // how many different ones
	Count uint64        `json:"count"`
	First time.Time     `json:"first"`
	Last  time.Time     `json:"last"`
	Event *pavise.Event `json:"example"`
}

// A LeftReport is acts that no rule allows, and why.
type LeftReport struct {
	Why  string     `json:"why"`
	Acts []Evidence `json:"acts"`
}

// RuleReports are the rules, for machines.
func (l *Learned) RuleReports() []RuleReport {
	out := make([]RuleReport, len(l.Rules))
	for i, r := range l.Rules {
		out[i] = RuleReport{Name: r.Name, When: r.When, Rare: r.Rare}
		for _, op := range r.On {
			out[i].On = append(out[i].On, op.String())
		}
		for _, line := range r.Of {
			out[i].Evidence = append(out[i].Evidence, evidenceOf(line.What, line.Paths, line.Acts))
		}
	}
	return out
}

// LeftReports are the acts that are not learned, for machines.
func (l *Learned) LeftReports() []LeftReport {
	out := make([]LeftReport, len(l.Left))
	for i, o := range l.Left {
		out[i].Why = o.Why
		for _, a := range o.Acts {
			out[i].Acts = append(out[i].Acts, evidenceOf(describe(a), 0, []*Act{a}))
		}
	}
	return out
}

func evidenceOf(what string, paths int, acts []*Act) Evidence {
	e := Evidence{What: what, Paths: paths, First: acts[0].First, Last: acts[0].Last, Event: acts[0].Event}
	for _, a := range acts {
		e.Count += a.Count
		e.First, e.Last = earlier(e.First, a.First), later(e.Last, a.Last)
	}
	return e
}
