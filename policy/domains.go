package policy

import (
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"

	"cel.dev/cel-go/common/ast"
)

// This file is conditions on net.remote.domain. The kernel knows no names: a test of one is a set of addresses, whose entries are those that answers of DNS tie to
// such a name, and come and go while the policy is in force (enforce/domains.go).

const maxDomain = 253 // bytes of a name (RFC 1035, as text without the last dot)

// checkDomain returns a name as facts are written: in lower case, without the last dot.
func checkDomain(s string) (out, hint string, err error) {
	out = strings.ToLower(strings.TrimSuffix(s, "."))
	switch {
	case s == "":
		return s, "", nil
	case strings.ContainsAny(s, "*?"):
		return "", `use glob("*.example.com"), or endsWith(".example.com")`, fmt.Errorf("%s is no name", quoted(s))
	case strings.ContainsFunc(s, func(r rune) bool { return r >= 0x80 }):
		return "", "write it as DNS has it, \"xn--...\"", fmt.Errorf("name %s has characters that are not ASCII", quoted(s))
	case strings.ContainsAny(s, "/: @"):
		return "", "write the name alone, as \"db.example.com\"", fmt.Errorf("%s is no name", quoted(s))
	case len(out) > maxDomain:
		return "", "", fmt.Errorf("name of %d bytes is too long: the limit is %d", len(out), maxDomain)
	}
	for label := range strings.SplitSeq(out, ".") {
		if label == "" || len(label) > 63 {
			return "", "labels, between the dots, have 1 to 63 bytes", fmt.Errorf("%s is no name", quoted(s))
		}
	}
	return out, "", nil
}

// domainPattern is what a glob says: a name, or ".example.com" for "*.example.com", all names below one.
func domainPattern(glob string) (string, bool) {
	name, below := strings.CutPrefix(glob, "*")
	if below {
		if !strings.HasPrefix(name, ".") {
			return "", false
		}
		name = name[1:]
	}
	if strings.ContainsAny(name, `*?[]{}\`) {
		return "", false
	}
	name, _, err := checkDomain(name)
	if err != nil || name == "" {
		return "", false
	}
	if below {
		name = "." + name
	}
	return name, true
}

// domains is the test whether the other end's address has one of some names, or, for those that begin with a dot, one below.
func (c *checker) domains(e ast.Expr, names []string) *cnode {
	if slices.Contains(names, "") || len(names) == 0 {
		return c.unknown(e)
	}
	s := domainSet(names)
	a := newAtom(DimRemoteAddrSets, "named "+strings.Join(s.Domains, ", "), nil)
	a.set = s
	return c.leaf(e, a)
}

// domainSet is the set of the addresses that have one of some names.
func domainSet(names []string) *Set {
	s := &Set{Kind: SetAddresses, Domains: slices.Clone(names)}
	slices.Sort(s.Domains)
	s.Domains = slices.Compact(s.Domains)
	h := sha256.New()
	h.Write([]byte("domains\n"))
	for _, d := range s.Domains {
		h.Write([]byte(d))
		h.Write([]byte{'\n'})
	}
	h.Sum(s.Digest[:0])
	return s
}

// Named reports whether an address that has this name is in a set of names.
func (s *Set) Named(name string) bool {
	for _, d := range s.Domains {
		if d == name || d[0] == '.' && len(name) > len(d) && strings.HasSuffix(name, d) {
			return true
		}
	}
	return false
}

// Domains returns the patterns of names that the policies of an Image ask about, sorted: a name, or ".example.com" for all below it.
func (img *Image) Domains() (list []string) {
	for _, s := range img.Sets[SetAddresses] {
		list = append(list, s.Domains...)
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// Named returns a bit for each of an Image's sets of addresses that an address with these names is in.
func (img *Image) Named(names []string) (mask uint32) {
	for i, s := range img.Sets[SetAddresses] {
		if len(s.Domains) > 0 && slices.ContainsFunc(names, s.Named) {
			mask |= 1 << i
		}
	}
	return mask
}
