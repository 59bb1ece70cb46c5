package export

import (
	"net/netip"
	"strconv"

	"github.com/pavise-project/pavise"
)

// ends are those of a flow in the order of others' forms: who began it is the source. Where that is not known it is the local side.
type ends struct {
	source, destination *pavise.FlowSide
	there, back         pavise.Traffic // from the source, and to it
	local               *pavise.FlowSide
	ports               bool // the protocol has ports, or what stands for them
	from, to            uint16
}

func endsOf(f *pavise.Flow) ends {
	e := ends{source: &f.Local, destination: &f.Remote, there: f.Sent, back: f.Received, local: &f.Local}
	if f.Direction == pavise.FlowInbound {
		e.source, e.destination, e.there, e.back = e.destination, e.source, e.back, e.there
	}
	switch f.Protocol {
	case pavise.ProtocolICMP, pavise.ProtocolICMPv6:
		if m := f.FirstICMP(); m != nil {
			e.ports = true
			e.from, e.to, _ = m.Ports(f.Protocol)
		}
	case pavise.ProtocolTCP, pavise.ProtocolUDP, sctp, udpLite:
		e.ports, e.from, e.to = true, e.source.Port, e.destination.Port
	}
	return e
}

const (
	sctp    = 132
	udpLite = 136
)

// address reports whether an end has one. That of a socket that is bound to none is not what others see of it.
func address(s *pavise.FlowSide) bool { return s.Address.IsValid() && !s.Address.IsUnspecified() }

// port reports whether an end has one that is known, which an end with an address has.
func (e *ends) port(s *pavise.FlowSide, n uint16) bool { return e.ports && (n != 0 || address(s)) }

// onIP reports whether a flow is one of addresses.
func onIP(f *pavise.Flow) bool { return f.Family == pavise.FamilyIPv4 || f.Family == pavise.FamilyIPv6 }

// isIPv6 reports what is spoken: an IPv6 socket may speak IPv4.
func isIPv6(f *pavise.Flow) bool {
	for _, a := range []netip.Addr{f.Remote.Address, f.Local.Address} {
		if a.IsValid() {
			return !a.Unmap().Is4()
		}
	}
	return f.Family == pavise.FamilyIPv6
}

func start(f *pavise.Flow) int64 {
	if f.Start != 0 {
		return f.Start
	}
	return f.Time
}

// flowID is a flow's id within 53 bits, which every reader of JSON can hold: the kernel's count from 1, and those that were made for want of one are
// told apart by their highest bit.
func flowID(id uint64) uint64 { return id&(1<<52-1) | id>>63<<52 }

func appendAddr(b []byte, a netip.Addr) []byte { return a.Unmap().WithZone("").AppendTo(b) }

// appendDecimal appends nanoseconds as seconds with six digits behind the point.
func appendDecimal(b []byte, ns int64) []byte {
	u := uint64(ns) //nolint:gosec // what is below 0 follows
	if ns < 0 {
		b = append(b, '-')
		u = -u
	}
	b = strconv.AppendUint(b, u/1e9, 10)
	b = append(b, '.')
	for u, unit := u%1e9, uint64(1e8); unit >= 1e3; unit /= 10 {
		b = append(b, byte('0'+u/unit%10)) //nolint:gosec // a digit
	}
	return b
}

// The numbers of types of records and of codes of answers, where they are known by a name.
var (
	dnsTypes = map[string]uint64{
		"A": 1, "NS": 2, "CNAME": 5, "SOA": 6, "NULL": 10, "PTR": 12, "HINFO": 13, "MX": 15, "TXT": 16, "RP": 17, "AAAA": 28, "LOC": 29, "SRV": 33, "NAPTR": 35,
		"DNAME": 39, "OPT": 41, "DS": 43, "SSHFP": 44, "RRSIG": 46, "NSEC": 47, "DNSKEY": 48, "NSEC3": 50, "NSEC3PARAM": 51, "TLSA": 52, "SVCB": 64, "HTTPS": 65,
		"IXFR": 251, "AXFR": 252, "ANY": 255, "URI": 256, "CAA": 257,
	}
	dnsCodes = map[string]uint64{
		"NOERROR": 0, "FORMERR": 1, "SERVFAIL": 2, "NXDOMAIN": 3, "NOTIMP": 4, "REFUSED": 5, "YXDOMAIN": 6, "YXRRSET": 7, "NXRRSET": 8, "NOTAUTH": 9, "NOTZONE": 10,
		"BADVERS": 16,
	}
)

// dnsNumber is the number of a name, which may be made of it as TYPE123.
func dnsNumber(names map[string]uint64, prefix, name string) (uint64, bool) {
	if n, ok := names[name]; ok {
		return n, true
	}
	if len(name) > len(prefix) && name[:len(prefix)] == prefix {
		n, err := strconv.ParseUint(name[len(prefix):], 10, 16)
		return n, err == nil
	}
	return 0, false
}
