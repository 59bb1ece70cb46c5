package convert

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/pavise-project/pavise"
)

// argument reads one item of matchArgs.
func (c *converter) argument(s *selector, p *probe, h *hook, o *object) *cond {
	at := o.take("operator")
	op := o.text("operator")
	values := o.list("values")
	index, hasIndex := o.number("index")
	spec := probeArg{index: int(index)}
	if args := o.list("args"); len(args) > 0 { // positions in the probe's own list
		n, err := strconv.Atoi(c.r.scalar(args[0]))
		switch {
		case err != nil || n < 0 || n >= len(p.args):
			c.r.fail(args[0], "", "there is no argument %q", c.r.scalar(args[0]))
			return nil
		case len(args) > 1:
			s.lost(o.value, "", "arguments cannot be compared with each other")
			return nil
		}
		spec, hasIndex = p.args[n], true
	} else {
		for _, a := range p.args {
			if a.index == spec.index {
				spec = a
			}
		}
	}
	switch {
	case !at.ok():
		c.r.fail(value{n: o.n, field: o.key("operator"), file: o.file}, "", "is missing")
		return nil
	case !hasIndex && len(p.args) > 0:
		c.r.fail(value{n: o.n, field: o.key("index"), file: o.file}, "", "is missing")
		return nil
	case spec.resolved:
		s.lost(o.value, "", "what an argument leads to in the kernel cannot be compared")
		return nil
	}
	for i, v := range values {
		if list, ok := strings.CutPrefix(c.r.scalar(v), "list:"); ok {
			s.lost(values[i], "", "numbers from the list %s cannot be compared", oneLine(list))
			return nil
		}
	}
	role := h.args[spec.index]
	if role.kind == roleFD && spec.kind != "fd" {
		role.kind = roleNone
	}
	if role.kind == roleProt && c.executes(op, values) {
		if supports("memory.exec", "file.path") {
			s.ops = []string{"memory.exec"}
			return nil
		}
		role.kind = roleNone
	}
	is, why := c.compare(h, s, role, op, values)
	if why != "" {
		s.lost(o.value, "", "%s on argument %d: %s", oneLine(op), spec.index, why)
		return nil
	}
	return is
}

// executes reports whether a test of PROT_ bits is one of PROT_EXEC.
func (c *converter) executes(op string, values []value) bool {
	kind, neg := negated(op)
	if len(values) != 1 || neg {
		return false
	}
	n, err := strconv.ParseUint(c.r.scalar(values[0]), 0, 32)
	return err == nil && (kind == "mask" && n == 4 || kind == "equal" && n&4 != 0)
}

// compare is a test on an argument, or why there is none.
func (c *converter) compare(h *hook, s *selector, role role, op string, values []value) (is *cond, why string) {
	const noOperator = "the operator has no equivalent for what it is about"
	words := make([]string, len(values))
	for i, v := range values {
		words[i] = strings.TrimRight(c.r.scalar(v), "\x00") // old policies write the string's end
	}
	kind, neg := negated(op)
	if role.field != "" {
		for _, o := range s.judged(h) {
			if !supports(o, role.field) {
				return nil, fmt.Sprintf("%s has no %s in this version", o, role.field)
			}
		}
	}
	switch role.kind {
	case rolePath, roleFD, roleParent, roleText:
		if kind == "filetype" && role.field == "file.path" {
			return c.fileType(values, neg)
		}
		if role.kind == roleParent {
			if kind != "equal" {
				return nil, noOperator
			}
			for i, w := range words {
				words[i] = escapeGlob(strings.TrimSuffix(w, "/")) + "/*"
			}
			is = call(role.field, "glob", quoted(words...)...)
			break
		}
		is, ok := texts(role.field, op, words)
		if !ok {
			return nil, noOperator
		}
		return is, ""
	case roleCaps:
		if kind != "capability" {
			return nil, noOperator
		}
		is = anyCapability(role.field, words)
	case roleNumber:
		switch kind {
		case "gt", "greaterthan", "lt", "lessthan":
			if len(words) != 1 {
				return nil, "it is compared with no number"
			}
			n, err := strconv.ParseUint(words[0], 0, 32)
			if err != nil {
				return nil, "it is compared with no number"
			}
			is = test(fmt.Sprintf("%s %s %d", role.field, map[byte]string{'g': ">", 'l': "<"}[kind[0]], n))
		case "equal", "inmap", "inrange":
			var ok bool
			if is, ok = c.numbers(role.field, values, 1<<32-1); !ok {
				return nil, ""
			}
		default:
			return nil, noOperator
		}
	case roleMode:
		is, why = c.modes(role.field, kind, values)
	case roleSignal:
		is, why = c.named(role.field, kind, values, pavise.SignalNames)
	case roleBPF:
		is, why = c.named(role.field, kind, values, pavise.BPFNames)
	case rolePtrace: // PTRACE_ATTACH, PTRACE_SEIZE
		for _, w := range words {
			if n, err := strconv.ParseUint(w, 0, 32); kind != "equal" || neg || err != nil || n != 16 && n != 0x4206 {
				return nil, "only taking control (PTRACE_ATTACH, PTRACE_SEIZE) can be told"
			}
		}
		return oneOf("ptrace.mode", `"attach"`), ""
	case roleAccess:
		if is = never; kind != "mask" && kind != "equal" {
			return nil, noOperator
		}
		for _, w := range words {
			name := map[string]string{"1": "read", "2": "attach"}[w]
			if name == "" {
				return nil, "only PTRACE_MODE_READ (1) and PTRACE_MODE_ATTACH (2) can be told"
			}
			is = anyOf(is, oneOf("ptrace.mode", quoted(name)...))
		}
	case roleMay:
		is, why = c.bits(kind, values, map[uint64]string{1: "exec", 2: "write", 4: "read", 8: "append"})
	case roleProt:
		is, why = c.bits(kind, values, map[uint64]string{1: "read", 2: "write"})
	case roleOpen:
		if kind != "mask" {
			return nil, noOperator
		}
		is, why = c.bits(kind, values, map[uint64]string{1: "write", 2: "write", 0o100: "create", 0o1000: "truncate", 0o2000: "append"})
	case roleLoad:
		if kind == "equal" && !neg && len(words) == 1 && words[0] == "2" {
			return nil, ""
		}
		return nil, "only the loading of modules (2) can be told"
	case roleFamily, roleType, roleProto:
		if kind != "equal" && kind != "inmap" {
			return nil, noOperator
		}
		is, why = c.socketWords(map[roleKind]string{roleFamily: "family", roleType: "type", roleProto: "protocol"}[role.kind], values)
	case roleSocket, rolePeer, roleOwn:
		return c.endpoint(s.judged(h), role.kind, kind, neg, values)
	default:
		return nil, "the argument is nothing that a rule can ask for"
	}
	if why == "" && neg {
		is = not(is)
	}
	return is, why
}

func (c *converter) fileType(values []value, neg bool) (*cond, string) {
	names := map[string]string{"sock": "socket", "socket": "socket", "lnk": "symlink", "link": "symlink", "reg": "regular", "regular": "regular",
		"blk": "block", "block": "block", "dir": "directory", "chr": "char", "char": "char", "fifo": "fifo", "pipe": "fifo"}
	var types []string
	for _, v := range values {
		name := names[c.r.scalar(v)]
		if name == "" {
			return nil, fmt.Sprintf("the file type %q is not known", oneLine(c.r.scalar(v)))
		}
		types = append(types, name)
	}
	is := oneOf("file.type", quoted(types...)...)
	if neg {
		is = not(is)
	}
	return is, ""
}

// bits is a test of bits that are how a file is opened: all of one value's with equal, any of any value's with mask.
func (c *converter) bits(kind string, values []value, names map[uint64]string) (*cond, string) {
	any := never
	for _, v := range values {
		n, err := strconv.ParseUint(c.r.scalar(v), 0, 32)
		if err != nil {
			c.r.fail(v, "", "want a number, not %q", c.r.scalar(v))
			return nil, ""
		}
		all := (*cond)(nil)
		for left, bit := n, uint64(1); left != 0; bit <<= 1 {
			if left&bit == 0 {
				continue
			}
			left &^= bit
			if names[bit] == "" {
				return nil, fmt.Sprintf("the bit %#x has no equivalent", bit)
			}
			one := is("file.access." + names[bit])
			switch kind {
			case "equal":
				all = allOf(all, one)
			case "mask":
				any = anyOf(any, one)
			default:
				return nil, "the operator has no equivalent for what it is about"
			}
		}
		if kind == "equal" {
			if n == 0 {
				return nil, "0 has no equivalent"
			}
			any = anyOf(any, all)
		}
	}
	return any, ""
}

// modes is a test of permission bits: any of any value's with mask.
func (c *converter) modes(field, kind string, values []value) (*cond, string) {
	is := never
	for _, v := range values {
		n, err := strconv.ParseUint(c.r.scalar(v), 0, 12)
		switch {
		case err != nil:
			return nil, fmt.Sprintf("%q are no permission bits", oneLine(c.r.scalar(v)))
		case kind == "equal":
			is = anyOf(is, oneOf(field, strconv.FormatUint(n, 10)))
		case kind == "mask":
			for bit := uint64(1); bit <= n; bit <<= 1 {
				if n&bit != 0 {
					is = anyOf(is, call(field, "has", quoted(fmt.Sprintf("%04o", bit))...))
				}
			}
		default:
			return nil, "the operator has no equivalent for what it is about"
		}
	}
	return is, ""
}

// named is a field whose numbers have names.
func (c *converter) named(field, kind string, values []value, names pavise.Names) (*cond, string) {
	if kind != "equal" && kind != "inmap" {
		return nil, "the operator has no equivalent for what it is about"
	}
	var words []string
	for _, v := range values {
		n, err := strconv.ParseUint(c.r.scalar(v), 0, 16)
		if err != nil {
			return nil, fmt.Sprintf("%q is no number", oneLine(c.r.scalar(v)))
		}
		words = append(words, names.Name(n))
	}
	return oneOf(field, quoted(words...)...), ""
}

// socketNumbers are the numbers of Tetragon's words for sockets.
var socketNumbers = map[string]uint64{
	"AF_UNIX": 1, "AF_LOCAL": 1, "AF_INET": 2, "AF_INET6": 10, "AF_NETLINK": 16, "AF_PACKET": 17, "AF_VSOCK": 40,
	"SOCK_STREAM": 1, "SOCK_DGRAM": 2, "SOCK_RAW": 3, "SOCK_SEQPACKET": 5,
	"IPPROTO_ICMP": 1, "IPPROTO_IGMP": 2, "IPPROTO_IPIP": 4, "IPPROTO_TCP": 6, "IPPROTO_UDP": 17, "IPPROTO_DCCP": 33, "IPPROTO_IPV6": 41,
	"IPPROTO_GRE": 47, "IPPROTO_ESP": 50, "IPPROTO_AH": 51, "IPPROTO_ICMPV6": 58, "IPPROTO_SCTP": 132, "IPPROTO_UDPLITE": 136,
}

// socketWords is net.family, net.type or net.protocol.
func (c *converter) socketWords(which string, values []value) (*cond, string) {
	names := map[string]pavise.Names{"family": pavise.FamilyNames, "type": pavise.TypeNames, "protocol": pavise.ProtocolNames}[which]
	var words []string
	for _, v := range values {
		word := c.r.scalar(v)
		n, ok := socketNumbers[strings.ToUpper(word)]
		if !ok {
			var err error
			if n, err = strconv.ParseUint(word, 0, 8); err != nil {
				return nil, fmt.Sprintf("the %s %q is not known", which, oneLine(word))
			}
		}
		words = append(words, names.Name(n))
	}
	return oneOf("net."+which, quoted(words...)...), ""
}

// endpoint is a test on one end of a socket.
func (c *converter) endpoint(judged []string, role roleKind, kind string, neg bool, values []value) (is *cond, why string) {
	field := ""
	switch end, rest := kind[:min(1, len(kind))], strings.TrimPrefix(kind, kind[:min(1, len(kind))]); {
	case kind == "family" || kind == "protocol":
		if is, why = c.socketWords(kind, values); why == "" && neg {
			is = not(is)
		}
		return is, why
	case (end == "s" || end == "d") && (rest == "addr" || rest == "port" || rest == "portpriv"):
		field = map[bool]string{true: "net.remote.", false: "net.local."}[(end == "d") != (role == rolePeer)]
		if end == "d" && (role == rolePeer || role == roleOwn) {
			return nil, "an address has no destination"
		}
		field += map[bool]string{true: "address", false: "port"}[rest == "addr"]
	default:
		return nil, "the operator has no equivalent for sockets"
	}
	for _, o := range judged {
		switch {
		case !supports(o, field):
			return nil, fmt.Sprintf("%s has no %s", o, field)
		case strings.HasPrefix(field, "net.local.") && (o == "net.connect" || o == "net.send"):
			return nil, fmt.Sprintf("the socket's own end is chosen after %s is judged", o)
		}
	}
	switch {
	case strings.HasSuffix(kind, "addr"):
		if is = c.addresses(field, values); is == nil {
			return nil, ""
		}
	case strings.HasSuffix(kind, "portpriv"):
		is = test(field + " < 1024")
	default:
		var ok bool
		if is, ok = c.numbers(field, values, 65535); !ok {
			return nil, ""
		}
	}
	if neg { // of sockets that have such an end at all
		is = allOf(oneOf("net.family", `"ipv4"`, `"ipv6"`), not(is))
	}
	return is, ""
}

// addresses is a field that is any of the addresses or in any of the prefixes; nil after an error.
func (c *converter) addresses(field string, values []value) *cond {
	var singles, prefixes []string
	for _, v := range values {
		word := c.r.scalar(v)
		if p, err := netip.ParsePrefix(word); err == nil {
			prefixes = append(prefixes, p.Masked().String())
		} else if a, err := netip.ParseAddr(word); err == nil && a.Zone() == "" {
			singles = append(singles, a.Unmap().String())
		} else {
			c.r.fail(v, "write it as 10.0.0.1 or 10.0.0.0/8", "bad address %q", word)
			return nil
		}
	}
	return anyOf(oneOf(field, quoted(singles...)...), call(field, "within", quoted(prefixes...)...))
}
