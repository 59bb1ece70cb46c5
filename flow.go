package pavise

import "net/netip"

// Flow is one connection, or one exchange of datagrams between two ends, as this host saw it, with the process that owns this end. A flow is reported
// when it has ended, and every ten seconds while it goes on: each report has all counters since Start, and what was added since the report before.
// A published Flow is never written again.
type Flow struct {
	ID        uint64        `json:"id,string"` // the same in all reports of a flow; unique until the machine boots
	Report    uint32        `json:"report"`    // the number of this report, from 0
	Time      int64         `json:"-"`         // of this report: nanoseconds since the Unix epoch; "time" in JSON, RFC 3339, as Start
	Start     int64         `json:"-"`         // of the flow: when it was asked for, or found
	State     FlowState     `json:"state"`
	End       FlowEnd       `json:"end,omitempty"`       // how it ended
	ResetBy   FlowEndpoint  `json:"reset_by,omitempty"`  // of FlowReset, where it is known
	Direction FlowDirection `json:"direction,omitempty"` // who began
	Found     bool          `json:"found,omitempty"`     // it was there before the agent was

	Family   uint16 `json:"-"` // AF_*; names in JSON, as in NetInfo
	Type     uint8  `json:"-"` // SOCK_*
	Protocol uint8  `json:"-"` // IPPROTO_*; 0 for Unix sockets
	// NetNS is the inode number of the network namespace.
	NetNS uint32 `json:"net_ns,omitempty"`

	Local  FlowSide `json:"local"`
	Remote FlowSide `json:"remote"`
	// Sent and Received count from the local side. Bytes are those of the payload of TCP and UDP, of the whole message of ICMP and raw sockets.
	Sent     Traffic `json:"sent"`
	Received Traffic `json:"received"`
	// SentNew and ReceivedNew are what was added since the report before.
	SentNew     Traffic `json:"sent_new"`
	ReceivedNew Traffic `json:"received_new"`
	// Others tells that Remote is none in particular: the table of peers was full, and this is what went between the socket and all that are not in it.
	Others bool `json:"others,omitempty"`

	Retransmits    uint32 `json:"retransmits,omitempty"`
	RTT            int64  `json:"rtt_ns,omitempty"`             // smoothed, of TCP
	ConnectLatency int64  `json:"connect_latency_ns,omitempty"` // from the first SYN to the connection

	// Policy and Rule are those that denied it.
	Policy string `json:"policy,omitempty"`
	Rule   string `json:"rule,omitempty"`

	ICMP *ICMP `json:"icmp,omitempty"`
	TLS  *TLS  `json:"tls,omitempty"`
}

// Event is the report as an event, whose Flow it is.
func (f *Flow) Event() *Event {
	e := &Event{Time: f.Time, Op: OpFlow, Flow: f, Net: NetInfo{Family: f.Family, Type: f.Type, Protocol: f.Protocol}}
	e.between(&f.Local, &f.Remote)
	if f.End == FlowDenied {
		e.Policy, e.Rule = f.Policy, f.Rule
	}
	return e
}

// Event is the answer as an event, whose DNS it is.
func (d *DNS) Event() *Event {
	e := &Event{Time: d.Time, Op: OpDNS, DNS: d, Net: NetInfo{Family: FamilyIPv6, Type: TypeDgram, Protocol: d.Protocol}}
	if d.Protocol == ProtocolTCP {
		e.Net.Type = TypeStream
	}
	if d.Server.Address.Is4() {
		e.Net.Family = FamilyIPv4
	}
	e.between(d.sides())
	return e
}

// sides returns the end on this host, whose process the event is of, and the other one.
func (d *DNS) sides() (local, remote *FlowSide) {
	if d.Outgoing {
		return &d.Server, &d.Client
	}
	return &d.Client, &d.Server
}

func (e *Event) between(local, remote *FlowSide) {
	e.ExecID, e.Process = local.ExecID, local.Process
	if e.Process != nil {
		e.PID = e.Process.PID
	}
	n := &e.Net
	n.LocalPort, n.LocalPath, n.RemotePort, n.RemotePath = local.Port, local.Path, remote.Port, remote.Path
	if local.Address.IsValid() {
		n.Local = local.Address.As16()
	}
	if remote.Address.IsValid() {
		n.Remote = remote.Address.As16()
	}
}

// FlowSide is one end of a flow.
type FlowSide struct {
	Address netip.Addr `json:"address,omitzero"` // never an IPv4-mapped IPv6 address
	Port    uint16     `json:"port,omitempty"`   // of ICMP the identifier of an echo, or the type
	Path    string     `json:"path,omitempty"`   // of a Unix socket; an abstract name begins with '@'
	// Name is the domain name that the owner's namespace knows the address by, and AskedBy the executable that asked for it.
	Name    string `json:"name,omitempty"`
	AskedBy string `json:"asked_by,omitempty"`
	ExecID  uint64 `json:"-"`
	// Process is who acts at this end, when that is on this host.
	Process *Process `json:"process,omitempty"`
}

// ICMP is the first message of a flow of ICMP or ICMPv6, where it is known.
type ICMP struct {
	Type uint8 `json:"type"`
	Code uint8 `json:"code"`
}

// Traffic is what went one way.
type Traffic struct {
	Bytes   uint64 `json:"bytes"`
	Packets uint64 `json:"packets"` // segments of TCP, datagrams, messages; 0 of Unix streams, which have none
}

// TLS is what a ClientHello says in the clear.
type TLS struct {
	SNI      string   `json:"sni,omitempty"` // as it was sent; bytes that are no text as \DDD, here and in ALPN
	ALPN     []string `json:"alpn,omitempty"`
	Version  string   `json:"version,omitempty"`  // the highest that is offered: "1.3"
	Versions []string `json:"versions,omitempty"` // all that are offered, highest first, without GREASE
	JA3      string   `json:"ja3,omitempty"`      // the MD5 in hexadecimal
	JA4      string   `json:"ja4,omitempty"`
	QUIC     bool     `json:"quic,omitempty"`
	// Encrypted tells of an encrypted ClientHello: SNI is the outer one then, and not the name that is meant. Or it is the one that is meant: browsers
	// send the extension always, filled with random bytes where they have no key, and nobody but the server can tell one from the other.
	Encrypted bool `json:"encrypted,omitempty"`
	// Cut tells that only the beginning of the ClientHello was seen. There are no fingerprints of it then.
	Cut bool `json:"truncated,omitempty"`
}

// DNS is one answer to a question for a name. One of mDNS has no question: Query and Type are those of the first record.
type DNS struct {
	Time     int64    `json:"-"`                     // nanoseconds since the Unix epoch; "time" in JSON
	Flow     uint64   `json:"flow,string,omitempty"` // Flow.ID of what it came in, where that is known
	NetNS    uint32   `json:"net_ns,omitempty"`
	Client   FlowSide `json:"client"`
	Server   FlowSide `json:"server"`
	Protocol uint8    `json:"-"` // UDP or TCP
	ID       uint16   `json:"id"`
	// Query is as it was asked for, without the last dot, upper and lower case as they are; bytes that are no text, and dots in a label, as \DDD.
	Query string `json:"query"`
	Type  string `json:"type"` // "A", "AAAA", "HTTPS", or "TYPE123"
	Code  string `json:"code"` // "NOERROR", "NXDOMAIN", or "RCODE12"
	// Cut tells that answers are missing: the server says so, or not all was copied or read.
	Cut bool `json:"truncated,omitempty"`
	// Outgoing tells that the server is this host's: Server is the local side.
	Outgoing bool        `json:"outgoing,omitempty"`
	Answers  []DNSRecord `json:"answers,omitempty"`
}

// DNSRecord is one record of an answer.
type DNSRecord struct {
	Name string `json:"name"`
	Type string `json:"type"`
	TTL  uint32 `json:"ttl"` // seconds
	// Address is of A and AAAA, and Target of CNAME, and of HTTPS where it names another. An HTTPS record's address hints are in Hints.
	Address netip.Addr   `json:"address,omitzero"`
	Target  string       `json:"target,omitempty"`
	Hints   []netip.Addr `json:"hints,omitempty"`
	// Priority is of HTTPS and SVCB: 0 makes the record an alias for Target. ALPN are the protocols that it offers, and Encrypted tells that it has the
	// key for an encrypted ClientHello.
	Priority  uint16   `json:"priority,omitempty"`
	ALPN      []string `json:"alpn,omitempty"`
	Encrypted bool     `json:"encrypted,omitempty"`
}

// FlowData is what a decoder makes of bytes that the kernel copied of a flow, for the flow room to parse. It is valid until the next decode.
type FlowData struct {
	Flow     uint64 // Flow.ID
	Time     int64  // nanoseconds since the Unix epoch
	Kind     FlowDataKind
	Protocol uint8
	Outgoing bool // sent by the local side
	NetNS    uint32
	ExecID   uint64 // the owner of the local side
	Local    netip.AddrPort
	Remote   netip.AddrPort
	Seq      uint32 // the offset of Data in what that side has sent, for TCP; the number of the datagram for QUIC
	Cut      bool   // there was more
	Data     []byte // from the first byte behind the TCP or UDP header
}

// FlowDataKind is why bytes were copied.
type FlowDataKind uint8

// The kinds of FlowData.
const (
	FlowDataDNS  FlowDataKind = iota + 1 // from port 53 or 5353: a whole datagram, or a piece of a TCP stream
	FlowDataTLS                          // the beginning of a TCP stream that looks like a ClientHello
	FlowDataQUIC                         // one of the first datagrams with a long header
)

// FlowState is where a flow is in its life.
type FlowState uint8

// The states of a flow.
const (
	FlowOpen FlowState = iota
	FlowConnecting
	FlowClosed
	NumFlowStates
)

var flowStateNames = [NumFlowStates]string{"open", "connecting", "closed"}

func (s FlowState) String() string { return nameOf(flowStateNames[:], s) }

// FlowEnd is how a flow ended.
type FlowEnd uint8

// The ends of a flow.
const (
	FlowNotEnded    FlowEnd = iota
	FlowDone                // both ends closed it; a datagram socket was closed, or was idle
	FlowReset               // by either end
	FlowRefused             // nobody listens there
	FlowTimedOut            // no answer
	FlowUnreachable         // no way there
	FlowDenied              // by Rule
	FlowCutOff              // by pavise isolate
	NumFlowEnds
)

var flowEndNames = [NumFlowEnds]string{"", "closed", "reset", "refused", "timed-out", "unreachable", "denied", "cut-off"}

func (e FlowEnd) String() string { return nameOf(flowEndNames[:], e) }

// FlowDirection is who began a flow.
type FlowDirection uint8

// The directions of a flow.
const (
	FlowUnknown FlowDirection = iota
	FlowOutbound
	FlowInbound
	FlowForwarded // by this host, between two others: Local is who began
	NumFlowDirections
)

var flowDirectionNames = [NumFlowDirections]string{"", "outbound", "inbound", "forwarded"}

func (d FlowDirection) String() string { return nameOf(flowDirectionNames[:], d) }

// FlowEndpoint is one of the two ends of a flow.
type FlowEndpoint uint8

// The ends.
const (
	EndpointUnknown FlowEndpoint = iota
	EndpointLocal
	EndpointRemote
	NumFlowEndpoints
)

var flowEndpointNames = [NumFlowEndpoints]string{"", "local", "remote"}

func (e FlowEndpoint) String() string { return nameOf(flowEndpointNames[:], e) }

func nameOf[T ~uint8](names []string, n T) string {
	if int(n) < len(names) {
		return names[n]
	}
	return "unknown"
}
