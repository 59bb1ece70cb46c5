package policy

import (
	"fmt"
	"net/netip"
	"sort"
	"strconv"
	"strings"

	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/types"

	"github.com/pavise-project/pavise"
)

// This file makes a boolean tree of atoms of a checked condition. What depends on the operation or on the machine stays
// open in it, so that one tree serves for all of them.

type cnodeKind uint8

const (
	cFalse cnodeKind = iota
	cTrue
	cAnd
	cOr
	cNot
	cAtom
	cUnknown   // the kernel cannot decide it
	cDirection // true when the operation's direction is one of names
	cUser      // true when the user is one of names
	cContainer // true when test holds for the container
	cIf        // subs[0], and subs[1] when negated
)

// cnode is a node of the tree of a condition.
type cnode struct {
	kind  cnodeKind
	subs  []*cnode
	atom  *natom
	has   *natom // cAtom: where this fails, the atom's negation fails too
	names []string
	test  *containerTest
	late  bool   // cUnknown: it is about the arguments of a new program
	field string // cUnknown: the field that the kernel does not know
	why   string
	expr  ast.Expr
	cond  *Condition // written the same as that which it is a part of; its place may be another
}

// natom is an atom that is not interned yet.
type natom struct {
	dim      Dim
	key      string
	patterns []pattern
	words    []word // of the patterns
	moves    bool   // its patterns are those of the moment: of the containers that are known
	set      *Set   // instead of patterns: those depend on the other sets of the Image
}

// dimKeys are the short names of dimensions, in keys and in explanations.
var dimKeys = [NumDims]string{
	DimExe: "exe", DimParentExe: "parent-exe", DimScript: "script", DimCgroup: "cgroup", DimUID: "uid", DimGID: "gid", DimLogin: "login",
	DimCaps: "caps", DimProcFlags: "process-flags", DimArgs: "args", DimAncestors: "ancestors", DimNS: "ns", DimRealUID: "real-uid",
	DimRealGID: "real-gid", DimDigest: "digest", DimVerity: "verity", DimPath: "path", DimAccess: "access", DimOwner: "owner", DimMode: "mode", DimFS: "fs",
	DimFileFlags: "file-flags", DimRemoteAddr: "remote-address", DimLocalAddr: "local-address", DimRemotePort: "remote-port",
	DimLocalPort: "local-port", DimSocket: "socket", DimRemotePath: "remote-path", DimLocalPath: "local-path",
	DimValue: "value", DimValue2: "value2", DimName: "name", DimNewPath: "new-path", DimTargetExe: "target-exe", DimTargetUID: "target-uid", DimInterface: "interface",
	DimExeSets: "exe", DimParentExeSets: "parent-exe", DimScriptSets: "script", DimDigestSets: "digest", DimVeritySets: "verity", DimPathSets: "path", DimNewPathSets: "new-path", DimTargetExeSets: "target-exe",
	DimRemotePathSets: "remote-path", DimLocalPathSets: "local-path", DimRemoteAddrSets: "remote-address", DimLocalAddrSets: "local-address",
	DimTime: "time",
}

func (d Dim) key() string {
	if d < NumDims && dimKeys[d] != "" {
		return dimKeys[d]
	}
	return "dim" + strconv.Itoa(int(d))
}

func newAtom(dim Dim, key string, patterns []pattern) *natom {
	return &natom{dim: dim, key: dim.key() + " " + key, patterns: patterns, words: wordsOf(patterns)}
}

// atomOf makes an atom of f's dimension, with what is asked of it in the key.
func (f *Field) atomOf(key string, patterns []pattern) *natom {
	if f.shared() {
		return &natom{dim: f.Dim, key: f.Name + " " + key, patterns: patterns}
	}
	return newAtom(f.Dim, key, patterns)
}

// textAtom makes an atom of patterns alone, which are its key.
func (f *Field) textAtom(patterns []pattern) *natom {
	return f.atomOf(patternsKey(patterns), patterns)
}

// shared reports whether other operations have something else in f's dimension, so that keys must name the field.
func (f *Field) shared() bool { return f.Dim >= DimValue && f.Dim <= DimNewPath }

func (c *checker) node(e ast.Expr, kind cnodeKind, subs ...*cnode) *cnode {
	return &cnode{kind: kind, subs: subs, expr: e, cond: c.cond}
}

func (c *checker) leaf(e ast.Expr, a *natom) *cnode {
	n := c.node(e, cAtom)
	n.atom = a
	return n
}

// isBool reports the type of e.
func (c *checker) isBool(e ast.Expr) bool {
	return c.ast.NativeRep().GetType(e.ID()).Kind() == types.BoolKind
}

// build makes the tree of a boolean expression.
func (c *checker) build(e ast.Expr) *cnode {
	if c.cond.isRate(e) {
		return c.node(e, cTrue)
	}
	if b, ok := boolLiteral(e); ok {
		if b {
			return c.node(e, cTrue)
		}
		return c.node(e, cFalse)
	}
	if f := c.field(e); f != nil {
		if f.kind == kindFlag {
			if f.shared() {
				return c.leaf(e, &natom{dim: f.Dim, key: f.Name, patterns: anyBitPatterns(f.bit, f.size)})
			}
			short := strings.TrimPrefix(f.Name, "process.")
			short = strings.TrimPrefix(strings.TrimPrefix(short, "file."), "access.")
			return c.leaf(e, newAtom(f.Dim, short, anyBitPatterns(f.bit, f.size)))
		}
		return c.unknown(e)
	}
	if n := c.containerTest(e); n != nil {
		return n
	}
	if e.Kind() == ast.ComprehensionKind {
		return c.exists(e)
	}
	if e.Kind() != ast.CallKind {
		return c.unknown(e)
	}
	call := e.AsCall()
	args := call.Args()
	switch fn := call.FunctionName(); fn {
	case operators.LogicalAnd, operators.LogicalOr:
		kind := cAnd
		if fn == operators.LogicalOr {
			kind = cOr
		}
		n := c.node(e, kind)
		for _, a := range args {
			n.subs = append(n.subs, c.build(a))
		}
		return n
	case operators.LogicalNot:
		return c.node(e, cNot, c.build(args[0]))
	case operators.Conditional:
		if !c.isBool(e) {
			return c.unknown(e)
		}
		q, a, b := c.build(args[0]), c.build(args[1]), c.build(args[2])
		not := func(n *cnode) *cnode { return c.node(e, cNot, n) }
		either := func(a, b *cnode) *cnode {
			return c.node(e, cOr, c.node(e, cAnd, q, a), c.node(e, cAnd, not(q), b))
		}
		return c.node(e, cIf, either(a, b), either(not(a), not(b)))
	case operators.Equals, operators.NotEquals:
		n := c.equal(e, args[0], args[1])
		if fn == operators.NotEquals {
			return c.node(e, cNot, n)
		}
		return n
	case operators.Less, operators.LessEquals, operators.Greater, operators.GreaterEquals:
		return c.order(e, fn, args[0], args[1])
	case operators.In, operators.OldIn:
		return c.in(e, args[0], args[1])
	case "startsWith", "endsWith", "contains":
		if call.IsMemberFunction() {
			return c.part(e, fn, call.Target(), args[0])
		}
	case "under", "glob", "within", "has":
		if call.IsMemberFunction() {
			return c.patternCall(e, fn, call.Target(), args[0])
		}
	case "inSet":
		return c.inSet(e)
	}
	return c.unknown(e)
}

// unknown is a node for what the kernel cannot decide, and says why.
func (c *checker) unknown(e ast.Expr) *cnode {
	n := c.node(e, cUnknown)
	n.late = c.late(e)
	var known *Field
	ast.PreOrderVisit(e, ast.NewExprVisitor(func(e ast.Expr) {
		if f := c.field(e); f != nil && n.field == "" {
			if f.kind == kindUser {
				n.field = f.Name
				n.why = "use " + f.Tip
			} else if known == nil {
				known = f
			}
		}
	}))
	if n.field == "" && known != nil {
		n.field = known.Name
		n.why = "use " + works[known.kind]
	}
	return n
}

func (c *checker) equal(e, a, b ast.Expr) *cnode {
	if c.isBool(a) && c.isBool(b) {
		x, y := c.build(a), c.build(b)
		return c.node(e, cOr, c.node(e, cAnd, x, y), c.node(e, cAnd, c.node(e, cNot, x), c.node(e, cNot, y)))
	}
	if c.field(a) == nil {
		a, b = b, a
	}
	for _, x := range [][2]ast.Expr{{a, b}, {b, a}} {
		if n := c.listEqual(e, x[0], x[1]); n != nil {
			return n
		}
	}
	if s, ok := stringLiteral(a); ok {
		if t, ok := stringLiteral(b); ok {
			return c.constant(e, s == t)
		}
	}
	if i, ok := intLiteral(a); ok {
		if j, ok := intLiteral(b); ok {
			return c.constant(e, i == j)
		}
	}
	f := c.field(a)
	if f == nil {
		return c.unknown(e)
	}
	return c.oneOf(e, f, []ast.Expr{b})
}

func (c *checker) constant(e ast.Expr, b bool) *cnode {
	if b {
		return c.node(e, cTrue)
	}
	return c.node(e, cFalse)
}

func (c *checker) in(e, a, b ast.Expr) *cnode {
	if f := c.field(b); f != nil && f.kind == kindCaps {
		s, ok := stringLiteral(a)
		if !ok {
			return c.unknown(e)
		}
		n, ok := capNumber(s)
		if !ok {
			hint := ""
			if near := nearest(strings.ToUpper(s), pavise.CapNames[:]); near != "" {
				hint = fmt.Sprintf("did you mean %q?", near)
			}
			c.fail(a, hint, "unknown capability %q", s)
			return c.unknown(e)
		}
		return c.leaf(e, f.atomOf(s, bitPatterns(1<<n, f.size)))
	}
	if f := c.field(b); f != nil && f.kind == kindArgs {
		x := &element{c: c, list: f}
		ps, ok := x.test(nil, "==", []ast.Expr{a})
		if !ok {
			return c.unknown(e)
		}
		return c.anyElement(e, f, ps)
	}
	if b.Kind() != ast.ListKind {
		return c.unknown(e)
	}
	els := b.AsList().Elements()
	if len(els) == 0 {
		return c.node(e, cFalse)
	}
	if n := c.indexed(e, a, "==", els); n != nil {
		return n
	}
	f := c.field(a)
	if f == nil {
		return c.unknown(e)
	}
	return c.oneOf(e, f, els)
}

// oneOf is the test that f equals one of the expressions.
func (c *checker) oneOf(e ast.Expr, f *Field, els []ast.Expr) *cnode {
	var texts []string
	var spans []span
	for _, el := range els {
		if s, ok := stringLiteral(el); ok {
			if s, ok = c.canonical(f, el, s); !ok {
				continue
			}
			texts = append(texts, s)
		} else if i, ok := intLiteral(el); ok {
			limit := f.limit()
			if limit > 0 && (i < 0 || uint64(i) > limit) {
				c.fail(el, "", "%d is out of range: %s is 0 to %d", i, f.Name, limit)
				continue
			}
			spans = append(spans, span{uint64(i), uint64(i)})
		} else {
			return c.unknown(e)
		}
	}
	switch f.kind {
	case kindPath, kindText, kindSysctl, kindCmdline, kindDigest:
		var ps []pattern
		for _, s := range texts {
			ps = append(ps, pattern{Items: literal(s)})
		}
		if f.kind == kindCmdline {
			return c.commandLine(e, f, ps)
		}
		return c.leaf(e, f.textAtom(ps))
	case kindName:
		var ps []pattern
		for _, s := range texts {
			ps = append(ps, namePatterns(literal(s))...)
		}
		return c.leaf(e, f.textAtom(ps))
	case kindInt, kindMode:
		return c.spans(e, f, spans)
	case kindType, kindNamed:
		return c.enum(e, f, els, texts)
	case kindAddr:
		return c.addresses(e, f, texts)
	case kindDomain:
		return c.domains(e, texts)
	case kindUserName:
		n := c.node(e, cUser)
		n.names, n.field = texts, f.Name
		return n
	case kindDirection:
		for i, s := range texts {
			if s != "in" && s != "out" && (s != "" || c.policy) {
				c.fail(els[i], "it is \"in\" or \"out\"", "unknown direction %q", s)
			}
		}
		n := c.node(e, cDirection)
		n.names = texts
		return n
	case kindHour, kindMinute:
		return c.timeTest(e, f, mergeSpans(spans))
	case kindDay:
		return c.days(e, f, els, texts)
	case kindUnit:
		var ps []pattern
		for _, s := range texts {
			if s == "" {
				return c.unknown(e)
			}
			ps = append(ps, unitPatterns([]string{s}, false)...)
		}
		return c.leaf(e, f.textAtom(ps).named("unit="+strings.Join(texts, ",")))
	case kindContainer:
		var subs []*cnode
		for _, s := range texts {
			n := c.leaf(e, containerAtom(s))
			if s == "" { // in no container
				n = c.node(e, cNot, n)
			}
			subs = append(subs, n)
		}
		return c.node(e, cOr, subs...)
	}
	return c.unknown(e)
}

// named gives an atom a shorter key. The name must stand for the same patterns always.
func (a *natom) named(key string) *natom {
	a.key = a.dim.String() + " " + key
	return a
}

// keyText writes names so that no two lists of names are written the same.
func keyText(names ...string) string {
	ps := make([]pattern, len(names))
	for i, s := range names {
		ps[i].Items = literal(s)
	}
	return patternsKey(ps)
}

// limit is the highest value of a number field, 0 for other fields.
func (f *Field) limit() uint64 {
	switch f.kind {
	case kindInt:
		if f.max != 0 {
			return f.max
		}
		return 1<<(8*f.size) - 1
	case kindMode:
		return 0o7777
	case kindHour:
		return 23
	case kindMinute:
		return 59
	}
	return 0
}

// canonical checks a literal that f is compared with and returns it as facts are written.
func (c *checker) canonical(f *Field, e ast.Expr, s string) (string, bool) {
	out, hint, err := canonicalText(f, s)
	if err != nil {
		c.fail(e, hint, "%s", err)
		return "", false
	}
	return out, true
}

var unitSuffixes = []string{".service", ".scope", ".socket", ".mount", ".swap"}

// canonicalText returns s as the facts of f are written, or says why no fact is s.
func canonicalText(f *Field, s string) (out, hint string, err error) {
	switch f.kind {
	case kindPath:
		if s == "" {
			return s, "", nil
		}
		return trimSlash(s), "", checkPath(s)
	case kindName:
		if strings.Contains(s, "/") {
			return "", "compare " + strings.TrimSuffix(f.Name, "name") + "path", fmt.Errorf("name %q has a \"/\", and a name has none", s)
		}
	case kindText, kindSysctl, kindCmdline:
		if f.kind == kindCmdline && strings.IndexByte(s, 0) >= 0 {
			return "", "", fmt.Errorf("string %q has a NUL byte, and no argument does", s)
		}
		if f.kind == kindSysctl {
			s = sysctlName(s)
		}
		if len(s) > MaxString {
			return "", "", fmt.Errorf("string of %d bytes is too long: the limit is %d", len(s), MaxString)
		}
	case kindDigest:
		return s, "", checkDigest(s)
	case kindAddr:
		if s == "" {
			return s, "", nil
		}
		a, err := netip.ParseAddr(s)
		if err != nil || a.Zone() != "" {
			if _, err := netip.ParsePrefix(s); err == nil {
				return "", "use " + f.Name + ".within(" + strconv.Quote(s) + ")", fmt.Errorf("%q is a prefix, not an address", s)
			}
			return "", "", fmt.Errorf("bad address %q", s)
		}
		return a.Unmap().String(), "", nil
	case kindDomain:
		return checkDomain(s)
	case kindUnit:
		if s == "" {
			return s, "", nil
		}
		for _, suf := range unitSuffixes {
			if strings.HasSuffix(s, suf) && !strings.Contains(s, "/") {
				return s, "", nil
			}
		}
		return "", "units of processes end in " + strings.Join(unitSuffixes, ", "), fmt.Errorf("%q is not the name of a unit", s)
	case kindContainer:
		if s != "" && (len(s) != 64 || !isHex(s)) {
			return "", "for a part of an id use startsWith", fmt.Errorf("%q is not a container id: ids are 64 lower-case hexadecimal digits", s)
		}
	}
	return s, "", nil
}

// digits are the hexadecimal digits of the digests that there are.
var digits = map[string]int{"sha256": 64, "sha384": 96, "sha512": 128}

// checkDigest says why no fact is s, a digest.
func checkDigest(s string) error {
	algo, hex, _ := strings.Cut(s, ":")
	if s == "" || len(hex) > 0 && len(hex) == digits[algo] && isHex(hex) {
		return nil
	}
	return fmt.Errorf("bad digest %s: want \"sha256:\" and 64 lower-case hexadecimal digits, or sha384 or sha512 with theirs", quoted(s))
}

func beginsDigest(s string) bool {
	for algo, n := range digits {
		algo += ":"
		if strings.HasPrefix(algo, s) || strings.HasPrefix(s, algo) && len(s) <= len(algo)+n && isHex(s[len(algo):]) {
			return true
		}
	}
	return false
}

func isHex(s string) bool {
	for i := range len(s) {
		if !hexDigit.has(s[i]) {
			return false
		}
	}
	return true
}

// namePatterns matches the paths whose last component matches items.
func namePatterns(items []item) []pattern {
	ps := []pattern{{Items: seq(loop(anyByte), "/", items)}}
	for _, it := range items {
		if !it.Loop {
			return ps
		}
	}
	return append(ps, pattern{Items: seq(loop(nonSlash))}) // no slash: the name is empty
}

// maxSlices is how deep a unit is looked for in the tree of slices.
const maxSlices = 6

// unitPatterns matches the cgroups of units: at most maxSlices slices, then the unit, and what is below it. With prefix the
// units begin with the names.
func unitPatterns(names []string, prefix bool) []pattern {
	var ps []pattern
	for _, name := range names {
		tails := [][]item{literal(name)}
		if prefix {
			tails = nil
			for _, suf := range unitSuffixes {
				tails = append(tails, seq(name, loop(nonSlash), suf))
			}
		}
		for _, t := range tails {
			var head []item
			for range maxSlices + 1 {
				ps = append(ps, pattern{Items: seq(head, "/", t), Under: true})
				head = seq(head, "/", loop(nonSlash), ".slice")
			}
		}
	}
	return ps
}

// containerForms are the components by which runtimes name a container's cgroup, before and after its id.
var containerForms = [][2]string{{"", ""}, {"docker-", ".scope"}, {"cri-containerd-", ".scope"}, {"crio-", ".scope"}, {"libpod-", ".scope"}}

// containerAtom matches the cgroups in a container whose id begins with prefix.
func containerAtom(prefix string) *natom {
	var ps []pattern
	for _, form := range containerForms {
		its := seq(loop(anyByte), "/"+form[0]+prefix)
		for range 64 - len(prefix) {
			its = append(its, item{Set: hexDigit})
		}
		ps = append(ps, pattern{Items: seq(its, form[1]), Under: true})
	}
	return newAtom(DimCgroup, "container="+prefix+strings.Repeat("*", min(1, 64-len(prefix))), ps)
}

// sysctlName is the name of a variable with slashes: as sysctl(8), one without any has them for its dots.
func sysctlName(s string) string {
	if strings.Contains(s, "/") {
		return s
	}
	return strings.ReplaceAll(s, ".", "/")
}

// enum is the test that a named number is one of texts.
func (c *checker) enum(e ast.Expr, f *Field, els []ast.Expr, texts []string) *cnode {
	var numbers []uint64
	var shown []string
	for i, s := range texts {
		n, ok := f.names.Number(s)
		switch {
		case ok:
		case s == "": // what has no number
			if f.names.Name(0) != "" {
				continue
			}
		case f.other:
			v, err := strconv.ParseUint(s, 10, min(8*f.width, 31))
			if n = v; err == nil && v > 0 && f.names.Name(v) == s {
				break
			}
			fallthrough
		default:
			c.unknownName(els[min(i, len(els)-1)], f, s)
			continue
		}
		numbers = append(numbers, n)
		shown = append(shown, s)
	}
	if len(numbers) == 0 {
		return c.node(e, cFalse)
	}
	sort.Strings(shown)
	key := strings.Join(shown, ",")
	if !f.shared() {
		key = strings.TrimPrefix(strings.TrimPrefix(f.Name, "net."), "file.") + "=" + key
	}
	return c.leaf(e, f.atomOf(key, f.namedPatterns(numbers)))
}

// unknownName reports a name that is none of f's.
func (c *checker) unknownName(e ast.Expr, f *Field, s string) {
	var known []string
	for _, name := range f.names {
		if name != "" {
			known = append(known, name)
		}
	}
	hint := ""
	if n, err := strconv.ParseUint(s, 10, 31); err == nil && n < uint64(len(f.names)) && f.names[n] != "" {
		hint = fmt.Sprintf("write %q", f.names[n])
	} else if near := nearName(s, known); near != "" && len(known) > 8 {
		hint = fmt.Sprintf("did you mean %q?", near)
	} else if len(known) <= 8 {
		sort.Strings(known)
		hint = "it is one of " + strings.Join(known, ", ")
	} else {
		hint = "it is one of " + strings.Join(known[:5], ", ") + ", ...; docs/policy-reference.md has all"
	}
	c.fail(e, hint, "unknown value %q of %s", s, f.Name)
}

// nearName is nearest whatever the case, and for a name without its SIG or with a BPF_ before it.
func nearName(s string, known []string) string {
	s = strings.TrimPrefix(strings.ToUpper(s), "BPF_")
	byUpper := map[string]string{}
	var uppers []string
	for _, n := range known {
		u := strings.ToUpper(n)
		if u == s || u == "SIG"+s {
			return n
		}
		byUpper[u] = n
		uppers = append(uppers, u)
	}
	return byUpper[nearest(s, uppers)]
}

// namedPatterns matches the values of f's dimension that hold one of the numbers.
func (f *Field) namedPatterns(numbers []uint64) []pattern {
	around := func(its []item) pattern {
		p := pattern{}
		for range f.at {
			p.Items = append(p.Items, item{Set: anyByte})
		}
		p.Items = append(p.Items, its...)
		for len(p.Items) < f.size {
			p.Items = append(p.Items, item{Set: anyByte})
		}
		return p
	}
	if f.kind == kindNamed && f.width > 1 {
		var ps []pattern
		for _, n := range numbers {
			ps = append(ps, around(literal(string(bigEndian(n, f.width)))))
		}
		return ps
	}
	var set byteSet
	for _, n := range numbers {
		if f.kind != kindType {
			set.add(byte(n))
			continue
		}
		for low := range 16 {
			set.add(byte(n)<<4 | byte(low))
		}
	}
	return []pattern{around([]item{{Set: set}})}
}

// spans is the test that a number is in spans.
func (c *checker) spans(e ast.Expr, f *Field, spans []span) *cnode {
	spans = mergeSpans(spans)
	return c.spansNamed(e, f, spans, spanText(spans))
}

// spansNamed is spans by another name, which must stand for the same spans always.
func (c *checker) spansNamed(e ast.Expr, f *Field, spans []span, key string) *cnode {
	if len(spans) == 0 {
		return c.node(e, cFalse)
	}
	if f.kind == kindMode {
		return c.leaf(e, f.atomOf("bits="+key, modePatterns(spans, f.size)))
	}
	ps := numberPatterns(spans, f.size)
	if f.size == 2 && spans[0].lo == 0 { // the port of a socket without one
		ps = append(ps, pattern{})
	}
	return c.leaf(e, f.atomOf(key, ps))
}

// addresses is the test that an address is in one of texts: addresses, prefixes, or "" for none.
func (c *checker) addresses(e ast.Expr, f *Field, texts []string) *cnode {
	var ps []pattern
	var keys []string
	for _, s := range texts {
		if s == "" {
			ps = append(ps, pattern{})
			keys = append(keys, "none")
			continue
		}
		p, err := parsePrefix(s)
		if err != nil {
			return c.unknown(e) // reported by walk
		}
		ps = append(ps, prefixPatterns(p)...)
		if p.IsSingleIP() {
			keys = append(keys, p.Addr().String())
		} else {
			keys = append(keys, p.String())
		}
	}
	sort.Strings(keys)
	return c.leaf(e, newAtom(f.Dim, strings.Join(keys, ","), ps))
}

// order is the test f < n and its like.
func (c *checker) order(e ast.Expr, fn string, a, b ast.Expr) *cnode {
	f := c.field(a)
	if f == nil && c.size(a) == nil {
		a, b = b, a
		f = c.field(a)
		fn = map[string]string{operators.Less: operators.Greater, operators.LessEquals: operators.GreaterEquals,
			operators.Greater: operators.Less, operators.GreaterEquals: operators.LessEquals}[fn]
	}
	i, ok := intLiteral(b)
	if l := c.size(a); l != nil && ok {
		return c.sizeOrder(e, fn, l, i)
	}
	if f == nil || !ok || f.limit() == 0 {
		return c.unknown(e)
	}
	limit := int64(f.limit()) //nolint:gosec // at most 32 bits
	if i < 0 || i > limit {
		c.fail(b, "", "%d is out of range: %s is 0 to %d", i, f.Name, limit)
		return c.unknown(e)
	}
	lo, hi := int64(0), limit
	switch fn {
	case operators.Less:
		hi = i - 1
	case operators.LessEquals:
		hi = i
	case operators.Greater:
		lo = i + 1
	case operators.GreaterEquals:
		lo = i
	}
	if lo > hi {
		return c.node(e, cFalse)
	}
	if lo == 0 && hi == limit {
		return c.node(e, cTrue)
	}
	if lo == 0 && hi > 0 && f.size == 2 {
		line, col := startOf(c.info, c.starts, e)
		c.warn = append(c.warn, problem{line, col, fmt.Sprintf("%s is also 0 for sockets without a port, as Unix sockets, and this holds for them", f.Name), fmt.Sprintf("add %s > 0 if that is not meant", f.Name)})
	}
	if f.Dim == DimTime {
		return c.timeTest(e, f, []span{{uint64(lo), uint64(hi)}})
	}
	return c.spans(e, f, []span{{uint64(lo), uint64(hi)}})
}

// part is startsWith, endsWith and contains.
func (c *checker) part(e ast.Expr, fn string, target, arg ast.Expr) *cnode {
	if n := c.indexed(e, target, fn, []ast.Expr{arg}); n != nil {
		return n
	}
	f := c.field(target)
	s, ok := stringLiteral(arg)
	if f == nil || !ok {
		return c.unknown(e)
	}
	if s == "" && f.kind != kindUser {
		return c.node(e, cTrue)
	}
	if len(s) > MaxString {
		c.fail(arg, "", "string of %d bytes is too long: the limit is %d", len(s), MaxString)
		return c.unknown(e)
	}
	switch f.kind {
	case kindPath, kindText, kindSysctl:
		if f.kind == kindSysctl {
			s = sysctlName(s)
		}
		if f.kind == kindPath && fn == "startsWith" && !strings.HasPrefix(s, "/") {
			c.fail(arg, "", "path prefix %q is relative and matches nothing: it must begin with \"/\"", s)
			return c.unknown(e)
		}
		return c.leaf(e, f.textAtom([]pattern{{Items: around(fn, s, anyByte)}}))
	case kindDigest:
		if fn == "startsWith" {
			if !beginsDigest(s) {
				c.fail(arg, "", "%s begins no digest: they are \"sha256:\", \"sha384:\" or \"sha512:\" and lower-case hexadecimal digits", quoted(s))
				return c.unknown(e)
			}
			return c.leaf(e, f.textAtom([]pattern{{Items: around(fn, s, anyByte)}}))
		}
	case kindName:
		if _, ok := c.canonical(f, arg, s); !ok {
			return c.unknown(e)
		}
		return c.leaf(e, f.textAtom(namePatterns(around(fn, s, nonSlash))))
	case kindCmdline:
		if _, ok := c.canonical(f, arg, s); !ok {
			return c.unknown(e)
		}
		return c.commandLine(e, f, []pattern{{Items: around(fn, s, anyByte)}})
	case kindUnit:
		if fn == "startsWith" && !strings.Contains(s, "/") {
			return c.leaf(e, f.textAtom(unitPatterns([]string{s}, true)).named("unit="+keyText(s)+"*"))
		}
	case kindContainer:
		if fn != "startsWith" {
			break
		}
		if len(s) > 64 || !isHex(s) {
			c.fail(arg, "", "%q begins no container id: ids are 64 lower-case hexadecimal digits", s)
			return c.unknown(e)
		}
		return c.leaf(e, containerAtom(s))
	case kindAddr:
		c.fail(e, "use within", "addresses are not compared by their text")
	case kindDomain:
		if p, ok := domainPattern("*" + s); ok && fn == "endsWith" {
			return c.domains(e, []string{p})
		}
	}
	return c.unknown(e)
}

// around is the items of startsWith, endsWith or contains s among bytes of l.
func around(fn, s string, l byteSet) []item {
	switch fn {
	case "startsWith":
		return seq(s, loop(l))
	case "endsWith":
		return seq(loop(l), s)
	}
	return seq(loop(l), s, loop(l))
}

// patternCall is under, glob, within and has.
func (c *checker) patternCall(e ast.Expr, fn string, target, arg ast.Expr) *cnode {
	els := []ast.Expr{arg}
	if fn != "has" {
		if arg.Kind() != ast.ListKind {
			return c.unknown(e)
		}
		els = arg.AsList().Elements()
	}
	if fn == "glob" || fn == "under" {
		if n := c.indexed(e, target, fn, els); n != nil {
			return n
		}
	}
	f := c.field(target)
	if f == nil || f.kind == kindUser || !applies(fn, f) {
		return c.unknown(e)
	}
	var texts []string
	var ps []pattern
	for _, el := range els {
		s, ok := stringLiteral(el)
		if !ok {
			return c.unknown(e)
		}
		p, err := functionPatterns(fn, f, s)
		if err != nil {
			return c.unknown(e) // reported by walk
		}
		texts = append(texts, s)
		ps = append(ps, p...)
	}
	switch {
	case fn == "within":
		return c.addresses(e, f, texts)
	case f.kind == kindDomain:
		for i, s := range texts {
			p, ok := domainPattern(s)
			if !ok {
				return c.unknown(e)
			}
			texts[i] = p
		}
		return c.domains(e, texts)
	case fn == "has":
		if m, _ := parseMode(texts[0]); m == 0 {
			return c.node(e, cTrue)
		}
		return c.leaf(e, f.atomOf("has="+strings.TrimLeft(texts[0], "0"), ps))
	case f.kind == kindPath || f.kind == kindText || f.kind == kindSysctl:
		return c.leaf(e, f.textAtom(ps))
	case f.kind == kindCmdline:
		return c.commandLine(e, f, ps)
	case f.kind == kindName:
		var all []pattern
		for _, p := range ps {
			all = append(all, namePatterns(p.Items)...)
		}
		return c.leaf(e, f.textAtom(all))
	}
	return c.unknown(e)
}
