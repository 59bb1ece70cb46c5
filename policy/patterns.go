package policy

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"net/netip"
	"sort"
	"strconv"
	"strings"
	"unicode/utf8"
)

// This file makes patterns (ir.go) of the tests of the language: paths, globs, numbers, prefixes and bits.

// maxAlternatives is how many patterns one glob may stand for, after braces and "**/" are expanded.
const maxAlternatives = 256

func (s *byteSet) add(b byte)     { s[b>>6] |= 1 << (b & 63) }
func (s byteSet) has(b byte) bool { return s[b>>6]&(1<<(b&63)) != 0 }

func byteRange(lo, hi byte) (s byteSet) {
	for b := int(lo); b <= int(hi); b++ {
		s.add(byte(b))
	}
	return s
}

func oneByte(b byte) (s byteSet) { s.add(b); return s }

func (s byteSet) without(b byte) byteSet {
	s[b>>6] &^= 1 << (b & 63)
	return s
}

var (
	anyByte  = byteRange(0, 255)
	nonSlash = anyByte.without('/')
	hexDigit = func() byteSet {
		s := byteRange('0', '9')
		for b := byte('a'); b <= 'f'; b++ {
			s.add(b)
		}
		return s
	}()
)

func literal(s string) []item {
	items := make([]item, len(s))
	for i := range len(s) {
		items[i].Set = oneByte(s[i])
	}
	return items
}

func loop(s byteSet) item { return item{Set: s, Loop: true} }

func seq(parts ...any) []item {
	var items []item
	for _, p := range parts {
		switch p := p.(type) {
		case string:
			items = append(items, literal(p)...)
		case item:
			items = append(items, p)
		case []item:
			items = append(items, p...)
		}
	}
	return items
}

// single returns the byte of an item that matches exactly one.
func (it *item) single() (byte, bool) {
	if it.Loop || it.Set.len() != 1 {
		return 0, false
	}
	return it.Set.first(), true
}

// match reports whether s is one of the strings of p. Its cost is at most len(s) × len(p.Items).
func (p *pattern) match(s string) bool {
	i, j := 0, 0 // literal start
	for i < len(p.Items) && !p.Items[i].Loop {
		if j >= len(s) || !p.Items[i].Set.has(s[j]) {
			return false
		}
		i, j = i+1, j+1
	}
	rest := p.Items[i:]
	end := func(j int) bool { return j == len(s) || p.Under && s[j] == '/' }
	if len(rest) == 0 {
		return end(j)
	}
	n := len(rest)
	cur, next := make([]bool, n+1), make([]bool, n+1)
	set := func(v []bool, k int) {
		for v[k] = true; k < n && rest[k].Loop; v[k] = true {
			k++
		}
	}
	set(cur, 0)
	for {
		if cur[n] && end(j) {
			return true
		}
		if j == len(s) {
			return false
		}
		alive := false
		for k := range n {
			if !cur[k] || !rest[k].Set.has(s[j]) {
				continue
			}
			alive = true
			if rest[k].Loop {
				set(next, k)
			} else {
				set(next, k+1)
			}
		}
		if !alive {
			return false
		}
		cur, next = next, cur
		clear(next)
		j++
	}
}

func matchAny(ps []pattern, s string) bool {
	for i := range ps {
		if ps[i].match(s) {
			return true
		}
	}
	return false
}

// checkPath says why a literal can name no path: a kernel path is absolute and has no empty, "." or ".." component.
func checkPath(s string) error {
	if !strings.HasPrefix(s, "/") {
		return fmt.Errorf("path %q is relative: it must begin with \"/\"", s)
	}
	return checkComponents(s, s)
}

func checkComponents(s, shown string) error {
	if strings.IndexByte(s, 0) >= 0 {
		return fmt.Errorf("path %q has a NUL byte, and no path does", shown)
	}
	if len(s) > MaxString {
		return fmt.Errorf("path of %d bytes is too long: the limit is %d", len(s), MaxString)
	}
	parts := strings.Split(s, "/")
	for i, c := range parts {
		switch {
		case c == "" && i > 0 && i < len(parts)-1:
			return fmt.Errorf("path %q has an empty component (\"//\") and matches nothing: the kernel's paths have none", shown)
		case len(c) > maxComponent && !strings.ContainsAny(c, `[*\`): // of a glob's, these stand for less
			return fmt.Errorf("path %q has a component of %d bytes: the limit is %d", shown, len(c), maxComponent)
		case c == "." || c == "..":
			return fmt.Errorf("path %q has a component %q and matches nothing: the kernel's paths are resolved", shown, c)
		}
	}
	return nil
}

// trimSlash removes the slash at the end of a path that is not the root's.
func trimSlash(s string) string {
	if len(s) > 1 {
		return strings.TrimSuffix(s, "/")
	}
	return s
}

// underPattern matches dir and everything below it.
func underPattern(dir string) (pattern, error) {
	if err := checkPath(dir); err != nil {
		return pattern{}, err
	}
	dir = trimSlash(dir)
	if dir == "/" {
		return pattern{Items: seq("/", loop(anyByte))}, nil
	}
	return pattern{Items: literal(dir), Under: true}, nil
}

// globMode says what a glob is matched with.
type globMode uint8

const (
	globText globMode = iota // any string
	globPath                 // an absolute path
	globName                 // one component
)

// globPatterns compiles a glob: '*' within a component, '**' across, '?' one byte, "[a-z]" and "[!a-z]" classes, braces, and
// '\' before a character that means itself. "**/" also matches nothing.
func globPatterns(glob string, mode globMode) ([]pattern, error) {
	if len(glob) > MaxString {
		return nil, fmt.Errorf("glob of %d bytes is too long: the limit is %d", len(glob), MaxString)
	}
	if strings.IndexByte(glob, 0) >= 0 {
		return nil, fmt.Errorf("glob %q has a NUL byte, and no path does", glob)
	}
	n, err := countBraces(glob)
	if err != nil {
		return nil, err
	}
	if n > maxAlternatives {
		return nil, fmt.Errorf("glob %q has %d alternatives: the limit is %d", glob, n, maxAlternatives)
	}
	var all []pattern
	seen := map[string]bool{}
	for _, g := range expandBraces(glob) {
		if seen[g] {
			continue
		}
		seen[g] = true
		shown := ""
		if g != glob {
			shown = fmt.Sprintf(" (an alternative of glob %q)", glob)
		}
		switch mode {
		case globName:
			if strings.Contains(g, "/") {
				return nil, fmt.Errorf("glob %q%s has a \"/\", and a name has none", g, shown)
			}
		case globPath:
			if !strings.HasPrefix(g, "/") && !strings.HasPrefix(g, "**") {
				return nil, fmt.Errorf("glob %q%s is relative: it must begin with \"/\" or \"**\"", g, shown)
			}
			if err := checkComponents(g, g); err != nil {
				return nil, fmt.Errorf("%w%s", err, shown)
			}
			g = trimSlash(g)
		}
		ps, err := globAlternative(g, mode)
		if err != nil {
			return nil, err
		}
		all = append(all, ps...)
		if len(all) > maxAlternatives {
			return nil, fmt.Errorf("glob %q has more than %d alternatives: each \"**/\" counts twice", glob, maxAlternatives)
		}
	}
	return all, nil
}

// globAlternative compiles a glob without braces.
func globAlternative(g string, mode globMode) ([]pattern, error) {
	heads := [][]item{nil}
	put := func(its ...item) {
		for i := range heads {
			heads[i] = append(heads[i], its...)
		}
	}
	for i := 0; i < len(g); {
		switch c := g[i]; c {
		case '*':
			if !strings.HasPrefix(g[i:], "**") {
				put(loop(nonSlash))
				i++
				break
			}
			start := i == 0 || g[i-1] == '/'
			for i < len(g) && g[i] == '*' {
				i++
			}
			if !start || i >= len(g) || g[i] != '/' {
				put(loop(anyByte))
				break
			}
			i++
			for strings.HasPrefix(g[i:], "**/") { // "**/**/" is "**/"
				i += 3
			}
			var skipped [][]item
			if mode == globText || len(heads[0]) > 0 { // a path begins with '/': "**/x" cannot match "x"
				if 2*len(heads) > maxAlternatives {
					return nil, fmt.Errorf("glob %q has more than %d alternatives: each \"**/\" counts twice", g, maxAlternatives)
				}
				for _, h := range heads {
					skipped = append(skipped, append([]item(nil), h...))
				}
			}
			put(loop(anyByte), item{Set: oneByte('/')})
			heads = append(heads, skipped...)
		case '?':
			put(item{Set: nonSlash})
			i++
		case '[':
			set, n, err := globClass(g[i:])
			if err != nil {
				return nil, fmt.Errorf("glob %q: %w", g, err)
			}
			put(item{Set: set})
			i += n
		case '\\':
			if i+1 == len(g) {
				return nil, fmt.Errorf("glob %q ends in \"\\\": put a character after it", g)
			}
			put(item{Set: oneByte(g[i+1])})
			i += 2
		default:
			put(item{Set: oneByte(c)})
			i++
		}
	}
	ps := make([]pattern, len(heads))
	for i, h := range heads {
		ps[i].Items = h
	}
	return ps, nil
}

// globClass compiles the class at the start of s and returns its length.
func globClass(s string) (set byteSet, n int, err error) {
	i, not := 1, false
	if i < len(s) && (s[i] == '!' || s[i] == '^') {
		not = true
		i++
	}
	first := i
	for ; ; i++ {
		if i >= len(s) {
			return set, 0, fmt.Errorf("class %q is not terminated by \"]\"", s)
		}
		if s[i] == ']' && i > first {
			break
		}
		lo, size := s[i], 1
		if lo == '\\' && i+1 < len(s) {
			i++
			lo = s[i]
		}
		hi := lo
		if i+2 < len(s) && s[i+size] == '-' && s[i+2] != ']' {
			i += 2
			hi = s[i]
			if hi == '\\' && i+1 < len(s) {
				i++
				hi = s[i]
			}
		}
		if lo >= utf8.RuneSelf || hi >= utf8.RuneSelf {
			return set, 0, fmt.Errorf("class %q has a character outside ASCII: write the alternatives in braces", s)
		}
		if lo > hi {
			return set, 0, fmt.Errorf("class %q has the range %q the wrong way round", s, string(lo)+"-"+string(hi))
		}
		for b := int(lo); b <= int(hi); b++ {
			set.add(byte(b))
		}
	}
	if not {
		for w := range set {
			set[w] = ^set[w]
		}
	}
	set = set.without('/')
	if set == (byteSet{}) {
		return set, 0, fmt.Errorf("class %q matches nothing", s[:i+1])
	}
	return set, i + 1, nil
}

// braceEnd returns the index of the '}' that closes the '{' at s[0] and the indexes of its commas, -1 if none does.
func braceEnd(s string) (end int, commas []int) {
	depth := 0
	for i := 0; i < len(s); i++ {
		switch s[i] {
		case '\\':
			i++
		case '{':
			depth++
		case ',':
			if depth == 1 {
				commas = append(commas, i)
			}
		case '}':
			if depth--; depth == 0 {
				return i, commas
			}
		}
	}
	return -1, nil
}

func splitBrace(s string, end int, commas []int) (alts []string) {
	from := 1
	for _, c := range commas {
		alts = append(alts, s[from:c])
		from = c + 1
	}
	return append(alts, s[from:end])
}

// countBraces returns how many strings expandBraces makes of s, without making them.
func countBraces(s string) (int, error) { return countBracesIn(s, s, 0) }

func countBracesIn(s, glob string, depth int) (int, error) {
	if depth > 8 {
		return 0, fmt.Errorf("glob %q nests braces more than 8 deep", glob)
	}
	n := 1
	for i := 0; i < len(s); i++ {
		switch s[i] {
		case '\\':
			i++
		case '}':
			return 0, fmt.Errorf("glob %q has a \"}\" without \"{\": write \"\\\\}\" for the character itself", glob)
		case '{':
			end, commas := braceEnd(s[i:])
			if end < 0 {
				return 0, fmt.Errorf("glob %q has a brace that is not closed by \"}\"", glob)
			}
			sum := 0
			for _, alt := range splitBrace(s[i:], end, commas) {
				k, err := countBracesIn(alt, glob, depth+1)
				if err != nil {
					return 0, err
				}
				sum += k
			}
			if n *= sum; n > 1<<30 {
				n = 1 << 30
			}
			i += end
		}
	}
	return n, nil
}

func expandBraces(s string) []string {
	for i := 0; i < len(s); i++ {
		switch s[i] {
		case '\\':
			i++
		case '{':
			end, commas := braceEnd(s[i:])
			tails := expandBraces(s[i+end+1:])
			var all []string
			for _, alt := range splitBrace(s[i:], end, commas) {
				for _, a := range expandBraces(alt) {
					for _, t := range tails {
						all = append(all, s[:i]+a+t)
					}
				}
			}
			return all
		}
	}
	return []string{s}
}

// rangePatterns matches the big-endian strings lo to hi, both included and of the same length.
func rangePatterns(lo, hi []byte) []pattern {
	if len(lo) == 0 {
		return []pattern{{}}
	}
	tail := func(first byteSet, n int) pattern {
		its := []item{{Set: first}}
		for range n {
			its = append(its, item{Set: anyByte})
		}
		return pattern{Items: its}
	}
	prefix := func(b byte, ps []pattern) []pattern {
		for i := range ps {
			ps[i].Items = append([]item{{Set: oneByte(b)}}, ps[i].Items...)
		}
		return ps
	}
	fill := func(b byte, n int) []byte {
		f := make([]byte, n)
		for i := range f {
			f[i] = b
		}
		return f
	}
	all := func(s []byte, b byte) bool {
		for _, c := range s {
			if c != b {
				return false
			}
		}
		return true
	}
	n := len(lo) - 1
	if lo[0] == hi[0] && (!all(lo[1:], 0) || !all(hi[1:], 255)) {
		return prefix(lo[0], rangePatterns(lo[1:], hi[1:]))
	}
	var ps []pattern
	from, to := int(lo[0]), int(hi[0])
	if !all(lo[1:], 0) {
		ps = append(ps, prefix(lo[0], rangePatterns(lo[1:], fill(255, n)))...)
		from++
	}
	lastPart := !all(hi[1:], 255)
	if lastPart {
		to--
	}
	if from <= to {
		ps = append(ps, tail(byteRange(byte(from), byte(to)), n))
	}
	if lastPart {
		ps = append(ps, prefix(hi[0], rangePatterns(fill(0, n), hi[1:]))...)
	}
	return ps
}

// span is a range of numbers, both ends included.
type span struct{ lo, hi uint64 }

// mergeSpans sorts spans and joins those that touch.
func mergeSpans(in []span) []span {
	sort.Slice(in, func(i, j int) bool { return in[i].lo < in[j].lo })
	var out []span
	for _, s := range in {
		if n := len(out); n > 0 && s.lo <= out[n-1].hi+1 {
			out[n-1].hi = max(out[n-1].hi, s.hi)
			continue
		}
		out = append(out, s)
	}
	return out
}

func spanText(spans []span) string {
	var b strings.Builder
	for i, s := range spans {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(strconv.FormatUint(s.lo, 10))
		if s.hi != s.lo {
			b.WriteString("-" + strconv.FormatUint(s.hi, 10))
		}
	}
	return b.String()
}

func bigEndian(v uint64, n int) []byte {
	b := make([]byte, n)
	for i := n - 1; i >= 0; i-- {
		b[i] = byte(v)
		v >>= 8
	}
	return b
}

// numberPatterns matches the spans as big-endian numbers of n bytes.
func numberPatterns(spans []span, n int) []pattern {
	var ps []pattern
	for _, s := range spans {
		ps = append(ps, rangePatterns(bigEndian(s.lo, n), bigEndian(s.hi, n))...)
	}
	return ps
}

// modePatterns matches the numbers of n bytes whose permission bits (07777) are in spans, with any file type above them.
func modePatterns(spans []span, n int) []pattern {
	ps := numberPatterns(spans, n)
	for i := range ps {
		low := ps[i].Items[n-2].Set
		var s byteSet
		for b := range 256 {
			if low.has(byte(b & 0x0f)) {
				s.add(byte(b))
			}
		}
		ps[i].Items[n-2].Set = s
	}
	return ps
}

// anyBitPatterns matches the big-endian numbers of n bytes that have any bit of mask.
func anyBitPatterns(mask uint64, n int) (ps []pattern) {
	for ; mask != 0; mask &= mask - 1 {
		ps = append(ps, bitPatterns(mask&-mask, n)...)
	}
	return ps
}

// bitPatterns matches the big-endian numbers of n bytes that have all bits of mask.
func bitPatterns(mask uint64, n int) []pattern {
	its := make([]item, n)
	for i, m := range bigEndian(mask, n) {
		for b := range 256 {
			if byte(b)&m == m {
				its[i].Set.add(byte(b))
			}
		}
	}
	return []pattern{{Items: its}}
}

// parsePrefix reads an address or a prefix. An IPv4 prefix may be written mapped (::ffff:10.0.0.0/104).
func parsePrefix(s string) (netip.Prefix, error) {
	var p netip.Prefix
	if a, err := netip.ParseAddr(s); err == nil {
		if a.Zone() != "" {
			return p, fmt.Errorf("address %q has a zone, and the kernel compares none", s)
		}
		p = netip.PrefixFrom(a, a.BitLen())
	} else if p, err = netip.ParsePrefix(s); err != nil {
		return p, fmt.Errorf("bad prefix %q: want an address and a length, as \"10.0.0.0/8\" or \"2001:db8::/32\"", s)
	}
	if p.Addr().Is4In6() && p.Bits() >= 96 {
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	if m := p.Masked(); m != p {
		return p, fmt.Errorf("bad prefix %q: it has bits beyond its length; did you mean %q?", s, m)
	}
	return p, nil
}

// prefixPatterns matches the 16 bytes of an address within p. An IPv6 prefix matches no IPv4 address, even one that covers
// ::ffff:0:0/96, where the kernel's facts hold them: "::/0" means every IPv6 address and "0.0.0.0/0" every IPv4 address.
func prefixPatterns(p netip.Prefix) []pattern {
	lo := p.Addr().As16()
	bits := p.Bits()
	if p.Addr().Is4() {
		bits += 96
	}
	hi := lo
	for i := bits; i < 128; i++ {
		hi[i/8] |= 0x80 >> (i % 8)
	}
	first := [16]byte{10: 0xff, 11: 0xff}
	if p.Addr().Is4() || !p.Contains(netip.AddrFrom16(first)) {
		return rangePatterns(lo[:], hi[:])
	}
	var ps []pattern
	if before := netip.AddrFrom16(first).Prev().As16(); bytes.Compare(lo[:], before[:]) <= 0 {
		ps = rangePatterns(lo[:], before[:])
	}
	if after := [16]byte{9: 1}; bytes.Compare(after[:], hi[:]) <= 0 {
		ps = append(ps, rangePatterns(after[:], hi[:])...)
	}
	return ps
}

// patternText shows a pattern, one to one.
func patternText(p *pattern) string {
	if len(p.Items) == 0 && !p.Under {
		return "<empty>"
	}
	var b strings.Builder
	for _, it := range p.Items {
		switch c, one := it.single(); {
		case one && c > ' ' && c < 0x7f && !strings.ContainsRune(`*?[]\<>,"`, rune(c)):
			b.WriteByte(c)
		case one:
			fmt.Fprintf(&b, `\x%02x`, c)
		case it.Loop && it.Set == anyByte:
			b.WriteString("**")
		case it.Loop && it.Set == nonSlash:
			b.WriteString("*")
		default:
			switch it.Set {
			case anyByte:
				b.WriteString("[any]")
			case nonSlash:
				b.WriteString("?")
			default:
				b.WriteString("[" + setText(it.Set) + "]")
			}
			if it.Loop {
				b.WriteString("*")
			}
		}
	}
	if p.Under {
		b.WriteString("</>")
	}
	return b.String()
}

func setText(s byteSet) string {
	var b strings.Builder
	show := func(c int) {
		if c > ' ' && c < 0x7f && !strings.ContainsRune(`*?[]\<>,"-`, rune(c)) {
			b.WriteByte(byte(c))
		} else {
			b.WriteString(`\x` + hex.EncodeToString([]byte{byte(c)}))
		}
	}
	for c := 0; c < 256; c++ {
		if !s.has(byte(c)) {
			continue
		}
		end := c
		for end < 255 && s.has(byte(end+1)) {
			end++
		}
		show(c)
		if end > c+1 {
			b.WriteByte('-')
		}
		if end > c {
			show(end)
		}
		c = end
	}
	return b.String()
}

// patternsKey is the canonical text of a set of patterns.
func patternsKey(ps []pattern) string {
	texts := make([]string, len(ps))
	for i := range ps {
		texts[i] = patternText(&ps[i])
	}
	sort.Strings(texts)
	return strings.Join(texts, ",")
}
