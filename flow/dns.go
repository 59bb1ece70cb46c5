package flow

import (
	"net/netip"
	"strconv"

	"github.com/pavise-project/pavise"
)

// The types of records that are read; of the others only the name is told.
const (
	typeA     = 1
	typeCNAME = 5
	typeAAAA  = 28
	typeSVCB  = 64
	typeHTTPS = 65

	classIN = 1
)

var typeNames = map[uint16]string{
	typeA: "A", 2: "NS", typeCNAME: "CNAME", 6: "SOA", 12: "PTR", 13: "HINFO", 15: "MX", 16: "TXT", typeAAAA: "AAAA", 29: "LOC", 33: "SRV",
	35: "NAPTR", 37: "CERT", 39: "DNAME", 41: "OPT", 43: "DS", 44: "SSHFP", 46: "RRSIG", 47: "NSEC", 48: "DNSKEY", 50: "NSEC3", 51: "NSEC3PARAM",
	52: "TLSA", 53: "SMIMEA", 59: "CDS", 60: "CDNSKEY", 61: "OPENPGPKEY", typeSVCB: "SVCB", typeHTTPS: "HTTPS", 99: "SPF", 249: "TKEY", 250: "TSIG",
	251: "IXFR", 252: "AXFR", 255: "ANY", 256: "URI", 257: "CAA",
}

var codeNames = [...]string{
	"NOERROR", "FORMERR", "SERVFAIL", "NXDOMAIN", "NOTIMP", "REFUSED", "YXDOMAIN", "YXRRSET", "NXRRSET", "NOTAUTH", "NOTZONE", "DSOTYPENI",
}

const (
	// maxRecords bounds what one answer may cost: with compression, 64 KiB can hold 5,000 records with names of 1,000 characters each.
	maxRecords = 512
	// maxPointers is how often a name may point elsewhere: as often as a name can have labels.
	maxPointers = 127
)

func typeName(t uint16) string {
	if name := typeNames[t]; name != "" {
		return name
	}
	return "TYPE" + strconv.Itoa(int(t))
}

func codeName(c uint16) string {
	if int(c) < len(codeNames) {
		return codeNames[c]
	}
	return "RCODE" + strconv.Itoa(int(c))
}

// message reads a DNS message. It is not x/net's dnsmessage, which refuses names that are real (a label of mDNS may have a dot in it) and the
// records before a cut, cannot tell why it refuses, and holds each name in an array of 255 bytes.
type message struct {
	all  []byte
	off  int
	seen [8]seenName // names of this message by where they begin: most answers repeat the question's
	next int
	text []byte
}

type seenName struct {
	at   int
	name string
}

// parseDNS reads an answer. With an whyor it returns nil or, where only the end is missing, what stands before that.
func parseDNS(data []byte, cut bool) (*pavise.DNS, Reason) {
	m := message{all: data}
	in := input(data)
	id, _ := in.u16()
	flags, _ := in.u16()
	questions, _ := in.u16()
	answers, ok := in.u16()
	if _, ok2 := in.u32(); !ok || !ok2 {
		return nil, short(cut)
	}
	if flags&0x8000 == 0 || flags>>11&15 != 0 {
		return nil, ReasonQuery
	}
	d := &pavise.DNS{ID: id, Code: codeName(flags & 15), Cut: flags&0x0200 != 0}
	m.off = 12
	for i := range questions {
		name, kind, _, why := m.head()
		if why != ReasonNone {
			if why == ReasonShort {
				why = short(cut)
			}
			return nil, why
		}
		if i == 0 {
			d.Query, d.Type = name, typeName(kind)
		}
	}
	many := answers > maxRecords
	if n := int(min(answers, maxRecords)); n > 0 {
		d.Answers = make([]pavise.DNSRecord, 0, min(n, len(data)/11)) // a record has 11 bytes at least
	}
	for range min(answers, maxRecords) {
		r, why := m.record()
		if why == ReasonShort && (cut || d.Cut) {
			// Servers before EDNS cut where the datagram is full.
			if cut {
				d.Cut = true
				return d, ReasonCut
			}
			return d, ReasonNone
		}
		if why != ReasonNone {
			return nil, why
		}
		d.Answers = append(d.Answers, r)
	}
	if questions == 0 && len(d.Answers) > 0 { // mDNS
		d.Query, d.Type = d.Answers[0].Name, d.Answers[0].Type
	}
	if many {
		d.Cut = true
		return d, ReasonMany
	}
	return d, ReasonNone
}

func short(cut bool) Reason {
	if cut {
		return ReasonCut
	}
	return ReasonShort
}

// head reads what a question and a record begin with.
func (m *message) head() (name string, kind, class uint16, why Reason) {
	name, m.off, why = m.name(m.off, len(m.all))
	if why != ReasonNone {
		return "", 0, 0, why
	}
	in := input(m.all[m.off:])
	kind, _ = in.u16()
	class, ok := in.u16()
	if !ok {
		return "", 0, 0, ReasonShort
	}
	m.off += 4
	return name, kind, class & 0x7fff, ReasonNone // the highest bit is mDNS's, of the cache
}

func (m *message) record() (pavise.DNSRecord, Reason) {
	name, kind, class, why := m.head()
	if why != ReasonNone {
		return pavise.DNSRecord{}, why
	}
	in := input(m.all[m.off:])
	ttl, ok := in.u32()
	size, ok2 := in.u16()
	if !ok || !ok2 || int(size) > len(in) {
		return pavise.DNSRecord{}, ReasonShort
	}
	if ttl > 1<<31-1 { // RFC 2181, 8
		ttl = 0
	}
	r := pavise.DNSRecord{Name: name, Type: typeName(kind), TTL: ttl}
	at := m.off + 6
	m.off = at + int(size)
	if class != classIN {
		return r, ReasonNone
	}
	data := input(m.all[at:m.off])
	switch kind {
	case typeA, typeAAAA:
		if a, ok := netip.AddrFromSlice(data); ok && a.Is4() == (kind == typeA) {
			r.Address = a.Unmap()
			return r, ReasonNone
		}
		return r, ReasonRecord
	case typeCNAME:
		var end int
		r.Target, end, why = m.name(at, m.off)
		if why == ReasonShort || why == ReasonNone && end != m.off {
			why = ReasonRecord
		}
		return r, why
	case typeSVCB, typeHTTPS:
		return r, m.service(&r, at)
	}
	return r, ReasonNone
}

// service reads the contents of an SVCB or HTTPS record (RFC 9460, 2.2).
func (m *message) service(r *pavise.DNSRecord, at int) Reason {
	in := input(m.all[at:m.off])
	priority, ok := in.u16()
	if !ok {
		return ReasonRecord
	}
	r.Priority = priority
	target, end, why := m.name(at+2, m.off)
	switch {
	case why == ReasonShort:
		return ReasonRecord
	case why != ReasonNone:
		return why
	case target != ".":
		r.Target = target
	}
	in = input(m.all[end:m.off])
	if priority == 0 { // an alias; its parameters mean nothing
		return ReasonNone
	}
	for last := -1; len(in) > 0; {
		key, _ := in.u16()
		value, ok := in.block16()
		if !ok || int(key) <= last {
			return ReasonRecord
		}
		last = int(key)
		size := 4
		switch key {
		case 1: // alpn
			for len(value) > 0 {
				p, ok := value.block8()
				if !ok || len(p) == 0 {
					return ReasonRecord
				}
				r.ALPN = append(r.ALPN, string(appendText(nil, p, '\\')))
			}
		case 5: // ech
			r.Encrypted = true
		case 6: // ipv6hint
			size = 16
			fallthrough
		case 4: // ipv4hint
			if len(value) == 0 || len(value)%size != 0 {
				return ReasonRecord
			}
			for ; len(value) > 0; value = value[size:] {
				a, _ := netip.AddrFromSlice(value[:size])
				r.Hints = append(r.Hints, a.Unmap())
			}
		}
	}
	return ReasonNone
}

// name reads the name at an offset, whose own bytes end at end at the latest, and returns it as text, and where what follows it begins. Its dots part
// labels; a dot within one is \046, so that no label can pass for two. The root is ".".
func (m *message) name(at, end int) (string, int, Reason) {
	if s := m.compressed(at, end); s != "" {
		return s, at + 2, ReasonNone
	}
	b := m.text[:0]
	after := -1
	size := 1 // as it would be without compression
	pos, floor := at, at
	for pointers := 0; ; {
		if pos >= end {
			return "", 0, ReasonShort
		}
		n := int(m.all[pos])
		switch {
		case n == 0:
			if after < 0 {
				after = pos + 1
			}
			if len(b) == 0 {
				b = append(b, '.')
			}
			m.text = b
			s := string(b)
			m.seen[m.next%len(m.seen)] = seenName{at, s}
			m.next++
			return s, after, ReasonNone
		case n < 64:
			if size += 1 + n; size > 255 {
				return "", 0, ReasonLongName
			}
			if pos+1+n > end {
				return "", 0, ReasonShort
			}
			if len(b) > 0 {
				b = append(b, '.')
			}
			b = appendText(b, m.all[pos+1:pos+1+n], '.')
			pos += 1 + n
		case n < 192:
			return "", 0, ReasonLabel
		default:
			if pos+2 > end {
				return "", 0, ReasonShort
			}
			if after < 0 {
				after = pos + 2
			}
			// Always further back, so that it ends.
			pos = n&63<<8 | int(m.all[pos+1])
			if pointers++; pos >= floor || pos < 12 || pointers > maxPointers {
				return "", 0, ReasonPointer
			}
			floor, end = pos, len(m.all)
		}
	}
}

// compressed returns the name at an offset if it is nothing but a pointer to one that was read.
func (m *message) compressed(at, end int) string {
	if at+2 > end || m.all[at] < 192 {
		return ""
	}
	to := int(m.all[at])&63<<8 | int(m.all[at+1])
	for _, s := range m.seen {
		if s.name != "" && s.at == to {
			return s.name
		}
	}
	return ""
}
