package policy

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"fmt"
	"math"
	"net/netip"
	slash "path"
	"slices"
	"sort"
	"strconv"
	"strings"
)

// This file reads sets: lists of up to MaxSetEntries that stand in files next to a policy. A set is one atom, whatever its size: the
// kernel looks a fact up in a hash, and has the answers for all sets of a fact as one byte string (the dimensions *Sets of image.go).

// The limits of sets.
const (
	MaxSetEntries = 100_000  // of one file
	MaxSetBytes   = 16 << 20 // of one file
	MaxSets       = 32       // of each SetKind in an Image
	MaxAllEntries = 1 << 20  // of all sets of a SetKind in an Image
	maxSetErrors  = 20       // that are shown of one file
	maxSetSpans   = 4096     // ranges of numbers that touch no other
)

// SetKind says how the entries of a set are looked up.
type SetKind uint8

// The kinds of sets.
const (
	SetStrings   SetKind = iota // the whole string: paths
	SetNames                    // what follows the last slash
	SetAddresses                // addresses and prefixes
	NumSetKinds
)

var setKindNames = [NumSetKinds]string{"paths", "names", "addresses"}

func (k SetKind) String() string { return setKindNames[k] }

// Set is the entries of one file. It is not changed once read, and may be shared.
type Set struct {
	Kind     SetKind
	File     string         // as the condition names it
	Digest   [32]byte       // of the kind and the entries: sets of one digest are the same
	Strings  []string       // of SetStrings and SetNames: sorted, each once
	Prefixes []netip.Prefix // of SetAddresses: sorted, each once
	// Domains makes it a set of SetAddresses whose entries are not known to the policy: the addresses that have one of these names, or for those that begin with a dot one
	// below them. Sorted.
	Domains []string

	spans  []span // of numbers
	v4, v6 []int  // the lengths of the prefixes
}

// Len is the number of different entries.
func (s *Set) Len() int { return len(s.Strings) + len(s.Prefixes) + len(s.spans) }

// Has reports whether a whole string, or a name, is in the set.
func (s *Set) Has(text string) bool {
	_, ok := slices.BinarySearch(s.Strings, text)
	return ok
}

// Holds reports whether an address is in one of the prefixes.
func (s *Set) Holds(a netip.Addr) bool {
	lengths := s.v6
	if a = a.Unmap(); a.Is4() {
		lengths = s.v4
	}
	for _, n := range lengths {
		p, err := a.Prefix(n)
		if err != nil {
			return false
		}
		if _, ok := slices.BinarySearchFunc(s.Prefixes, p, comparePrefix); ok {
			return true
		}
	}
	return false
}

// String shows a set: its file, how many entries it has, and which they are.
func (s *Set) String() string {
	return fmt.Sprintf("%s (%s, %x)", strconv.Quote(s.File), plural(s.Len(), "entry", "entries"), s.Digest[:6])
}

func comparePrefix(a, b netip.Prefix) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}

// setForm says what the lines of a set file must be.
type setForm struct {
	what  setWhat
	limit uint64 // of numbers
}

type setWhat uint8

const (
	setOfPaths setWhat = iota
	setOfTexts
	setOfNames
	setOfDigests
	setOfAddresses
	setOfNumbers
)

// formOf is the form of the sets that values of f, nil when unknown, are looked for in.
func formOf(f *Field, isInt bool) setForm {
	switch {
	case isInt:
		limit := uint64(math.MaxInt64)
		if f != nil && f.kind != kindUser {
			limit = min(limit, f.limit())
		}
		return setForm{setOfNumbers, limit}
	case f == nil:
	case f.kind == kindAddr:
		return setForm{what: setOfAddresses}
	case f.kind == kindDigest:
		return setForm{what: setOfDigests}
	case globModeOf(f) == globPath:
		return setForm{what: setOfPaths}
	case globModeOf(f) == globName:
		return setForm{what: setOfNames}
	}
	return setForm{what: setOfTexts}
}

// setFiles reads the sets of the policies of one file, each once.
type setFiles struct {
	read   func(file string) ([]byte, error) // nil: there are no files
	dir    string                            // of the policy, for messages
	sets   map[setUse]*setResult
	faults []*Error // of set files, until they are reported
	raw    map[string][]byte
	used   map[string][]byte // by the policy that is being read
}

// setUse is a file as it is used by one form.
type setUse struct {
	file string
	form setForm
}

type setResult struct {
	set *Set
	msg string // why there is none
	tip string
}

// get returns the set of a file. When it is bad, the file's own faults are added to sf.faults the first time.
func (sf *setFiles) get(file string, form setForm) *setResult {
	u := setUse{file, form}
	if sf == nil {
		return &setResult{msg: "sets are read from files next to a policy: there are none here", tip: "use in [...]"}
	}
	if r := sf.sets[u]; r != nil {
		sf.use(file)
		return r
	}
	r := sf.load(u)
	sf.use(file)
	if sf.sets == nil {
		sf.sets = map[setUse]*setResult{}
	}
	sf.sets[u] = r
	return r
}

// use notes that the policy names a file.
func (sf *setFiles) use(file string) {
	data, ok := sf.raw[file]
	if !ok {
		return
	}
	if sf.used == nil {
		sf.used = map[string][]byte{}
	}
	sf.used[file] = data
}

func (sf *setFiles) load(u setUse) *setResult {
	switch {
	case u.file == "":
		return &setResult{msg: "set has no name", tip: `write inSet("FILE"), the name of a file next to the policy`}
	case slash.IsAbs(u.file) || u.file == "." || u.file == ".." || strings.HasPrefix(u.file, "../") || slash.Clean(u.file) != u.file || strings.IndexByte(u.file, 0) >= 0:
		return &setResult{msg: fmt.Sprintf("bad set file %q", u.file), tip: "name a file in the policy's directory or below it, without \".\" and \"..\""}
	case sf.read == nil:
		return &setResult{msg: fmt.Sprintf("set %q cannot be read: sets are files next to a policy, and none came with this one", u.file)}
	}
	shown := slash.Join(sf.dir, u.file)
	data, err := sf.read(u.file)
	if err != nil {
		return &setResult{msg: fmt.Sprintf("read set %q: %v", u.file, err)}
	}
	if sf.raw == nil {
		sf.raw = map[string][]byte{}
	}
	sf.raw[u.file] = data
	set, faults := parseSet(u.file, data, u.form)
	for _, e := range faults {
		e.File = shown
	}
	sf.faults = append(sf.faults, faults...)
	if len(faults) > 0 {
		return &setResult{msg: fmt.Sprintf("set %q is refused: see the errors in %s", u.file, shown)}
	}
	return &setResult{set: set}
}

// ReadSets remembers what ParseWith reads, to send it along with the policy.
type ReadSets struct {
	Read  func(file string) ([]byte, error)
	Files map[string][]byte // by name
	Err   error             // of the first file that could not be read
}

// File is what ParseWith is given.
func (r *ReadSets) File(file string) ([]byte, error) {
	b, err := r.Read(file)
	if err != nil {
		if r.Err == nil {
			r.Err = err
		}
		return nil, err
	}
	if r.Files == nil {
		r.Files = map[string][]byte{}
	}
	r.Files[file] = b
	return b, nil
}

// parseSet reads the lines of a set file: an entry each, but for empty ones and those that begin with '#'. It returns a set, or what is wrong.
func parseSet(file string, data []byte, form setForm) (*Set, []*Error) {
	if len(data) > MaxSetBytes {
		return nil, []*Error{{Msg: fmt.Sprintf("set file of %s bytes is too long: the limit is %s", num(len(data)), num(MaxSetBytes)), Hint: "split it over several sets"}}
	}
	s := &Set{File: file, Kind: SetStrings}
	switch form.what {
	case setOfNames:
		s.Kind = SetNames
	case setOfAddresses:
		s.Kind = SetAddresses
	}
	var faults []*Error
	bad, entries, line := 0, 0, 0
	text := string(data)
	for len(text) > 0 {
		var l string
		l, text, _ = strings.Cut(text, "\n")
		line++
		l = strings.TrimSuffix(l, "\r")
		if strings.TrimSpace(l) == "" || strings.HasPrefix(strings.TrimLeft(l, " \t"), "#") {
			continue
		}
		entries++
		if err := s.add(l, form); err != nil {
			if bad++; bad <= maxSetErrors {
				faults = append(faults, &Error{Line: line, Column: 1, Msg: shorten(err.Error(), 300)})
			}
		}
	}
	if bad > 0 {
		shown := ""
		if bad > maxSetErrors {
			shown = fmt.Sprintf(", of which %d are shown", maxSetErrors)
		}
		return nil, append(faults, &Error{Msg: fmt.Sprintf("%s%s: the set is refused whole", plural(bad, "bad line", "bad lines"), shown), Hint: "it holds one entry a line; a line that begins with \"#\" is a comment"})
	}
	if entries > MaxSetEntries {
		return nil, []*Error{{Msg: fmt.Sprintf("set has %s entries: the limit is %s", num(entries), num(MaxSetEntries)), Hint: "split it over several sets"}}
	}
	s.finish()
	if len(s.spans) > maxSetSpans {
		return nil, []*Error{{Msg: fmt.Sprintf("set has %s numbers and ranges that touch no other: the limit is %s", num(len(s.spans)), num(maxSetSpans)), Hint: "write ranges, as 1000-1999"}}
	}
	return s, nil
}

// add takes one line.
func (s *Set) add(l string, form setForm) error {
	if strings.TrimSpace(l) != l {
		return fmt.Errorf("%s has white space around it", quoted(l))
	}
	switch form.what {
	case setOfPaths:
		if err := checkPath(l); err != nil {
			return err
		}
		if len(l) > 1 && strings.HasSuffix(l, "/") {
			return fmt.Errorf("path %s ends in \"/\": the kernel's paths do not; entries are whole paths, not directories", quoted(l))
		}
		s.Strings = append(s.Strings, l)
	case setOfTexts:
		if len(l) > MaxString {
			return fmt.Errorf("string of %d bytes is too long: the limit is %d", len(l), MaxString)
		}
		s.Strings = append(s.Strings, l)
	case setOfDigests:
		if err := checkDigest(l); err != nil {
			return err
		}
		s.Strings = append(s.Strings, l)
	case setOfNames:
		if strings.Contains(l, "/") {
			return fmt.Errorf("name %s has a \"/\", and a name has none", quoted(l))
		}
		if len(l) > 255 || l == "." || l == ".." || strings.IndexByte(l, 0) >= 0 {
			return fmt.Errorf("%s is no name of a file", quoted(l))
		}
		s.Strings = append(s.Strings, l)
	case setOfAddresses:
		p, err := parsePrefix(l)
		if err != nil {
			return err
		}
		s.Prefixes = append(s.Prefixes, p)
	case setOfNumbers:
		a, b, isRange := strings.Cut(l, "-")
		lo, err := strconv.ParseUint(a, 10, 64)
		hi := lo
		if isRange && err == nil {
			hi, err = strconv.ParseUint(b, 10, 64)
		}
		switch {
		case err != nil:
			return fmt.Errorf("bad number %s: want one, or a range as 1000-1999", quoted(l))
		case hi > form.limit:
			return fmt.Errorf("%s is out of range: 0 to %d", quoted(l), form.limit)
		case lo > hi:
			return fmt.Errorf("range %s is the wrong way round", quoted(l))
		}
		s.spans = append(s.spans, span{lo, hi})
	}
	return nil
}

func plural(n int, one, more string) string {
	if n == 1 {
		return "1 " + one
	}
	return num(n) + " " + more
}

// quoted shows a line, cut when long.
func quoted(l string) string { return strconv.Quote(shorten(l, 80)) }

// finish sorts the entries and takes each once.
func (s *Set) finish() {
	slices.Sort(s.Strings)
	s.Strings = slices.Clip(slices.Compact(s.Strings))
	slices.SortFunc(s.Prefixes, comparePrefix)
	s.Prefixes = slices.Clip(slices.Compact(s.Prefixes))
	s.spans = mergeSpans(s.spans)
	h := sha256.New()
	h.Write([]byte{byte(s.Kind)})
	for _, e := range s.Strings {
		h.Write([]byte(e))
		h.Write([]byte{'\n'})
	}
	for _, p := range s.Prefixes {
		b := p.Addr().As16()
		h.Write(append(b[:], byte(p.Bits()), byte(p.Addr().BitLen()>>3)))
		if p.Addr().Is4() {
			s.v4 = append(s.v4, p.Bits())
		} else {
			s.v6 = append(s.v6, p.Bits())
		}
	}
	h.Write([]byte(spanText(s.spans)))
	h.Sum(s.Digest[:0])
	for _, v := range []*[]int{&s.v4, &s.v6} {
		sort.Sort(sort.Reverse(sort.IntSlice(*v)))
		*v = slices.Clip(slices.Compact(*v))
	}
}

// Sets returns the dimension that says which sets d's fact is in; DimNone when the kernel looks it up in none.
func (d Dim) Sets() Dim {
	for s, src := range setSources {
		if src.dim == d {
			return Dim(s)
		}
	}
	return DimNone
}

// Source returns the dimension whose fact is looked up for a dimension of sets, and whether as an address; DimNone for the others.
func (d Dim) Source() (src Dim, address bool) {
	if d < NumDims {
		src, address = setSources[d].dim, setSources[d].address
	}
	return src, address
}

// fact is the dimension that a hook gives for d: its source, or d itself.
func (d Dim) fact() Dim {
	if src, _ := d.Source(); src != DimNone {
		return src
	}
	return d
}

// setSources are the facts that the kernel looks up in sets, by the dimension of the answers.
var setSources = [NumDims]struct {
	dim     Dim
	address bool
}{
	DimExeSets: {dim: DimExe}, DimParentExeSets: {dim: DimParentExe}, DimScriptSets: {dim: DimScript},
	DimDigestSets: {dim: DimDigest}, DimVeritySets: {dim: DimVerity},
	DimPathSets: {dim: DimPath}, DimNewPathSets: {dim: DimNewPath}, DimTargetExeSets: {dim: DimTargetExe},
	DimRemotePathSets: {dim: DimRemotePath}, DimLocalPathSets: {dim: DimLocalPath},
	DimRemoteAddrSets: {dim: DimRemoteAddr, address: true}, DimLocalAddrSets: {dim: DimLocalAddr, address: true},
}

// setBytes is the length of a dimension of sets: a bit for each set of strings or of addresses, then one for each of names.
const setBytes = 8

// setPatterns matches a dimension of sets where the fact is in the n-th set of its kind.
func setPatterns(k SetKind, n int) []pattern {
	if k != SetNames {
		n += 32
	}
	return bitPatterns(1<<n, setBytes)
}

// setsOf is the value of a dimension of sets for a fact: what bpf/derive.h computes. A fact that is too long to judge gives one that is.
// names are those of an address.
func (img *Image) setsOf(fact []byte, address bool, names []string, buf *[setBytes]byte) []byte {
	if len(fact) > MaxString {
		return fact
	}
	var mask uint64
	if address {
		if len(fact) == 16 {
			a := netip.AddrFrom16([16]byte(fact))
			for i, s := range img.Sets[SetAddresses] {
				if s.Holds(a) {
					mask |= 1 << (32 + i)
				}
			}
			mask |= uint64(img.Named(names)) << 32
		}
	} else {
		for i, s := range img.Sets[SetStrings] {
			if s.Has(string(fact)) {
				mask |= 1 << (32 + i)
			}
		}
		if i := bytes.LastIndexByte(fact, '/'); i >= 0 {
			for j, s := range img.Sets[SetNames] {
				if s.Has(string(fact[i+1:])) {
					mask |= 1 << j
				}
			}
		}
	}
	for i := range buf {
		buf[i] = byte(mask >> (56 - 8*i))
	}
	return buf[:]
}

// numberSets gives each set of the atoms its bit.
func (p *program) numberSets() error {
	total := [NumSetKinds]int{}
	for i := range p.Atoms {
		a := &p.Atoms[i]
		if a.Set == nil {
			continue
		}
		k := a.Set.Kind
		n := slices.IndexFunc(p.Sets[k], func(s *Set) bool { return s.Digest == a.Set.Digest })
		if n < 0 {
			n = len(p.Sets[k])
			p.Sets[k] = append(p.Sets[k], a.Set)
			total[k] += a.Set.Len()
		}
		if n < MaxSets {
			a.Patterns = setPatterns(k, n)
		}
	}
	for k, sets := range p.Sets {
		switch n := total[k]; {
		case len(sets) > MaxSets:
			return Errors{{Msg: fmt.Sprintf("too many sets of %s: %d, the limit is %d", SetKind(k), len(sets), MaxSets), Hint: "join their files"}}
		case n > MaxAllEntries:
			return Errors{{Msg: fmt.Sprintf("too many entries in sets of %s: %s, the limit is %s", SetKind(k), num(n), num(MaxAllEntries))}}
		}
	}
	return nil
}

// protectSet notes a set of paths whose files explicit rules are about.
func (p *program) protectSet(s *Set) {
	if !slices.ContainsFunc(p.ProtectedSets, func(o *Set) bool { return o.Digest == s.Digest }) {
		p.ProtectedSets = append(p.ProtectedSets, s)
	}
}

// pathSets adds the sets of whole paths that p, not negated, is about.
func (p *npred) pathSets(not bool, add func(*Set)) {
	switch p.kind {
	case predAtom:
		if !not && p.atom.set != nil && p.atom.set.Kind == SetStrings {
			add(p.atom.set)
		}
	case predNot:
		p.subs[0].pathSets(!not, add)
	default:
		for _, s := range p.subs {
			s.pathSets(not, add)
		}
	}
}
