package pavise

import (
	"crypto/sha1" //nolint:gosec // the specification's
	"encoding/base64"
	"encoding/binary"
	"net/netip"
)

// The types of ICMP and ICMPv6 that are one half of a question and its answer, and the other half. Community ID takes the two for the ports of the two ends.
var (
	icmpPairs = map[uint8]uint8{
		0: 8, 8: 0, // echo
		13: 14, 14: 13, // timestamp
		15: 16, 16: 15, // information
		10: 9, 9: 10, // router
		17: 18, 18: 17, // mask
	}
	icmpv6Pairs = map[uint8]uint8{
		128: 129, 129: 128, // echo
		130: 131, 131: 130, // multicast listener
		133: 134, 134: 133, // router
		135: 136, 136: 135, // neighbour
		139: 140, 140: 139, // node information
		144: 145, 145: 144, // home agent
	}
)

// Ports are what stands for the ports of the two ends, the sender first: the type of the message, and that of its answer or, where there is none, the code.
// One way tells of that: a message from the other end is no part of the same flow then.
func (m *ICMP) Ports(protocol uint8) (source, destination uint16, oneWay bool) {
	pairs := icmpPairs
	if protocol == ProtocolICMPv6 {
		pairs = icmpv6Pairs
	}
	if answer, ok := pairs[m.Type]; ok {
		return uint16(m.Type), uint16(answer), false
	}
	return uint16(m.Type), uint16(m.Code), true
}

// CommunityID is AppendCommunityID as a string; empty when there is none.
func (f *Flow) CommunityID(seed uint16) string { return string(f.AppendCommunityID(nil, seed)) }

// AppendCommunityID appends the Community ID of f, version 1, by which other tools know the same flow. Nothing is appended where it cannot be known: for
// Unix sockets, where an address is missing or is that of all of them, as of a socket that is bound to none, and for ICMP without the type of its first
// message.
func (f *Flow) AppendCommunityID(b []byte, seed uint16) []byte {
	source, destination := &f.Local, &f.Remote
	if f.Direction == FlowInbound {
		source, destination = destination, source
	}
	if f.Family != FamilyIPv4 && f.Family != FamilyIPv6 || f.Others || f.Local.Address.IsUnspecified() || f.Remote.Address.IsUnspecified() {
		return b
	}
	if f.Protocol != ProtocolICMP && f.Protocol != ProtocolICMPv6 {
		return AppendCommunityID(b, seed, f.Protocol, netip.AddrPortFrom(source.Address, source.Port), netip.AddrPortFrom(destination.Address, destination.Port))
	}
	m := f.FirstICMP()
	if m == nil {
		return b
	}
	return AppendCommunityID(b, seed, f.Protocol, netip.AddrPortFrom(source.Address, uint16(m.Type)), netip.AddrPortFrom(destination.Address, uint16(m.Code)))
}

// FirstICMP is the first message of a flow of ICMP, or nil when it is not known. A socket of type dgram sends nothing but questions for an echo.
func (f *Flow) FirstICMP() *ICMP {
	switch {
	case f.ICMP != nil:
		return f.ICMP
	case f.Type != TypeDgram:
	case f.Protocol == ProtocolICMP:
		return &ICMP{Type: 8}
	case f.Protocol == ProtocolICMPv6:
		return &ICMP{Type: 128}
	}
	return nil
}

// AppendCommunityID appends the Community ID, version 1, of what goes between two ends, or nothing when an address is missing. Of ICMP and ICMPv6 the ports
// are the type and the code of a message from source to destination. Of protocols without ports they are not used.
func AppendCommunityID(b []byte, seed uint16, protocol uint8, source, destination netip.AddrPort) []byte {
	from, to := source.Addr().Unmap(), destination.Addr().Unmap()
	if !from.IsValid() || !to.IsValid() || from.Is4() != to.Is4() {
		return b
	}
	from, to = from.WithZone(""), to.WithZone("")
	p, q := source.Port(), destination.Port()
	ports, oneWay := true, false
	switch protocol {
	case ProtocolTCP, ProtocolUDP, protocolSCTP:
	case ProtocolICMP, ProtocolICMPv6:
		p, q, oneWay = (&ICMP{uint8(p), uint8(q)}).Ports(protocol) //nolint:gosec // they have 8 bits
	default:
		ports = false
	}
	if c := from.Compare(to); !oneWay && (c > 0 || c == 0 && ports && p > q) {
		from, to, p, q = to, from, q, p
	}
	var few [2 + 2*16 + 2 + 2*2]byte
	h := binary.BigEndian.AppendUint16(few[:0], seed)
	if from.Is4() {
		x, y := from.As4(), to.As4()
		h = append(append(h, x[:]...), y[:]...)
	} else {
		x, y := from.As16(), to.As16()
		h = append(append(h, x[:]...), y[:]...)
	}
	h = append(h, protocol, 0)
	if ports {
		h = binary.BigEndian.AppendUint16(h, p)
		h = binary.BigEndian.AppendUint16(h, q)
	}
	sum := sha1.Sum(h) //nolint:gosec // the specification's
	return base64.StdEncoding.AppendEncode(append(b, "1:"...), sum[:])
}

const protocolSCTP = 132
