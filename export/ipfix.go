package export

import (
	"encoding/binary"
	"errors"
	"io"
	"slices"
	"time"
	"unicode/utf8"

	"github.com/pavise-project/pavise"
)

// IPFIX sends flows to a collector (RFC 7011), both directions of a flow in one record (RFC 5103), with the elements of ntop (PEN 35632) for whose the ends
// are. Each report of a flow is a record of what was added since the report before; but one of a flow that goes on and to which nothing was added is not.
type IPFIX struct {
	conn Conn
	o    IPFIXOptions

	b       []byte    // the message that is being made, with room for its header
	set     int       // where its last set begins; 0: there is none
	setID   uint16    // and what it has
	records int       // in it
	seq     uint32    // of the records before it
	known   []shape   // whose templates the collector has been sent, in this session
	due     time.Time // when it is to be sent them again
	broken  error     // of a stream: nothing can be sent behind a part of a message

	r       record
	scratch []byte // of the record's strings
	data    []byte // the record
}

var _ Sink = (*IPFIX)(nil)

// Conn is a connection with a collector: a net.Conn. A write that cannot be done at once fails when its deadline is past.
type Conn interface {
	io.Writer
	SetWriteDeadline(t time.Time) error
}

// IPFIXOptions say how messages are sent. What is zero has the value that stands beside it.
type IPFIXOptions struct {
	Stream    bool             // Conn is a TCP connection, and not a UDP socket
	Domain    uint32           // the observation domain
	Max       int              // bytes of a message: 1,400, or 16,384 of a stream; from 512 to 65,535
	Templates time.Duration    // a datagram may be lost, so templates are sent again: each minute
	Timeout   time.Duration    // of a write: a second
	Now       func() time.Time // time.Now
}

// ErrBroken is of a stream that has failed: see Reconnect.
var ErrBroken = errors.New("the connection to the collector has failed before")

// NewIPFIX makes a sink that sends to conn.
func NewIPFIX(conn Conn, o IPFIXOptions) *IPFIX {
	if o.Max == 0 {
		o.Max = 1400
		if o.Stream {
			o.Max = 16384
		}
	}
	o.Max = min(max(o.Max, 512), 65535)
	if o.Templates == 0 {
		o.Templates = time.Minute
	}
	if o.Timeout == 0 {
		o.Timeout = time.Second
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return &IPFIX{conn: conn, o: o, b: make([]byte, messageHeader)}
}

// Reconnect begins a session on another connection. What was held back for the one before is lost: flush it first, if that still works.
func (s *IPFIX) Reconnect(conn Conn) error {
	lost := s.records
	s.conn, s.broken, s.known, s.seq, s.set, s.records = conn, nil, s.known[:0], 0, 0, 0
	s.b = append(s.b[:0], make([]byte, messageHeader)...)
	if lost > 0 {
		return &LostError{lost, ErrBroken}
	}
	return nil
}

// The sizes of headers.
const (
	messageHeader = 16
	setHeader     = 4
)

// A shape is which elements a record has: each has a template of its own, 256 + shape.
type shape struct {
	ipv6, noSource, noDestination, noSourcePort, noDestinationPort, denied bool
	ports                                                                  portKind
	direction                                                              uint8 // 0: not known; 1 + flowDirection
	source, destination                                                    whose
}

type portKind uint8

const (
	noPorts portKind = iota
	transportPorts
	icmpType
	portKinds
)

// whose is what is known of the process at an end.
type whose uint8

const (
	nobody whose = iota
	onlyPID
	known
	whoses
)

func (h shape) template() uint16 {
	n := uint16(0)
	for _, v := range []bool{h.ipv6, h.noSource, h.noDestination, h.noSourcePort, h.noDestinationPort, h.denied} {
		n *= 2
		if v {
			n++
		}
	}
	n = n*uint16(portKinds) + uint16(h.ports)
	n = n*3 + uint16(h.direction)
	n = n*uint16(whoses) + uint16(h.source)
	return 256 + n*uint16(whoses) + uint16(h.destination)
}

// record is what the elements of one flow are made of.
type record struct {
	shape
	f     *pavise.Flow
	e     ends
	texts [numTexts][]byte
	used  [numTexts]bool
}

// The strings of a record.
const (
	sourceName = iota
	sourceUser
	sourceFather
	sourceCommand
	sourceContainer
	destinationName
	destinationUser
	destinationFather
	destinationCommand
	destinationContainer
	sourceHost
	destinationHost
	serverName
	ja3
	ja4
	numTexts
)

// Enterprise numbers.
const (
	penReverse = 29305
	penNtop    = 35632
)

// element is one of a template. Put appends its value, of which length is the size; an element that is a string has no put.
type element struct {
	pen    uint32
	id     uint16
	length uint16
	in     func(shape) bool // nil: in all
	put    func([]byte, *record) []byte
	text   int
}

const variable = 65535

func u8(b []byte, v uint8) []byte   { return append(b, v) }
func u16(b []byte, v uint16) []byte { return binary.BigEndian.AppendUint16(b, v) }
func u32(b []byte, v uint32) []byte { return binary.BigEndian.AppendUint32(b, v) }
func u64(b []byte, v uint64) []byte { return binary.BigEndian.AppendUint64(b, v) }

// elements are all that there are, in the order in which they stand in a record.
var elements = func() []element {
	source4 := func(h shape) bool { return !h.ipv6 && !h.noSource }
	source6 := func(h shape) bool { return h.ipv6 && !h.noSource }
	destination4 := func(h shape) bool { return !h.ipv6 && !h.noDestination }
	destination6 := func(h shape) bool { return h.ipv6 && !h.noDestination }
	sourcePort := func(h shape) bool { return h.ports == transportPorts && !h.noSourcePort }
	destinationPort := func(h shape) bool { return h.ports == transportPorts && !h.noDestinationPort }
	icmp4 := func(h shape) bool { return h.ports == icmpType && !h.ipv6 }
	icmp6 := func(h shape) bool { return h.ports == icmpType && h.ipv6 }
	putICMP := func(b []byte, r *record) []byte { m := r.f.FirstICMP(); return append(b, m.Type, m.Code) }
	toLocal := func(h shape) bool { return h.direction == 1 }
	fromLocal := func(h shape) bool { return h.direction != 1 }
	list := []element{
		{id: 60, length: 1, put: func(b []byte, r *record) []byte { // ipVersion
			if r.ipv6 {
				return u8(b, 6)
			}
			return u8(b, 4)
		}},
		{id: 8, length: 4, in: source4, put: func(b []byte, r *record) []byte { a := r.e.source.Address.Unmap().As4(); return append(b, a[:]...) }}, // sourceIPv4Address
		{id: 27, length: 16, in: source6, put: func(b []byte, r *record) []byte { a := r.e.source.Address.As16(); return append(b, a[:]...) }},      // sourceIPv6Address
		{id: 12, length: 4, in: destination4, put: func(b []byte, r *record) []byte {
			a := r.e.destination.Address.Unmap().As4()
			return append(b, a[:]...)
		}}, // destinationIPv4Address
		{id: 28, length: 16, in: destination6, put: func(b []byte, r *record) []byte { a := r.e.destination.Address.As16(); return append(b, a[:]...) }}, // destinationIPv6Address
		{id: 7, length: 2, in: sourcePort, put: func(b []byte, r *record) []byte { return u16(b, r.e.from) }},                                            // sourceTransportPort
		{id: 11, length: 2, in: destinationPort, put: func(b []byte, r *record) []byte { return u16(b, r.e.to) }},                                        // destinationTransportPort
		{id: 32, length: 2, in: icmp4, put: putICMP},                                                                                                   // icmpTypeCodeIPv4
		{id: 139, length: 2, in: icmp6, put: putICMP},                                                                                                  // icmpTypeCodeIPv6
		{id: 4, length: 1, put: func(b []byte, r *record) []byte { return u8(b, r.f.Protocol) }},                                                       // protocolIdentifier
		{id: 1, length: 8, put: func(b []byte, r *record) []byte { return u64(b, r.e.there.Bytes) }},                                                   // octetDeltaCount
		{id: 2, length: 8, put: func(b []byte, r *record) []byte { return u64(b, r.e.there.Packets) }},                                                 // packetDeltaCount
		{pen: penReverse, id: 1, length: 8, put: func(b []byte, r *record) []byte { return u64(b, r.e.back.Bytes) }},                                   // reverseOctetDeltaCount
		{pen: penReverse, id: 2, length: 8, put: func(b []byte, r *record) []byte { return u64(b, r.e.back.Packets) }},                                 // reversePacketDeltaCount
		{id: 152, length: 8, put: func(b []byte, r *record) []byte { return u64(b, milliseconds(start(r.f))) }},                                        // flowStartMilliseconds
		{id: 153, length: 8, put: func(b []byte, r *record) []byte { return u64(b, milliseconds(r.f.Time)) }},                                          // flowEndMilliseconds
		{id: 136, length: 1, put: func(b []byte, r *record) []byte { return u8(b, endReason(r.f)) }},                                                   // flowEndReason
		{id: 61, length: 1, in: func(h shape) bool { return h.direction != 0 }, put: func(b []byte, r *record) []byte { return u8(b, r.direction-1) }}, // flowDirection
		{id: 239, length: 1, put: func(b []byte, r *record) []byte { // biflowDirection: the source is the initiator, or is taken for it
			if r.f.Direction == pavise.FlowUnknown {
				return u8(b, 0)
			}
			return u8(b, 1)
		}},
		{id: 148, length: 8, put: func(b []byte, r *record) []byte { return u64(b, r.f.ID) }},                                       // flowId
		{id: 233, length: 1, in: func(h shape) bool { return h.denied }, put: func(b []byte, _ *record) []byte { return u8(b, 3) }}, // firewallEvent: Flow Denied
		{pen: penNtop, id: 522, length: 2, put: func(b []byte, r *record) []byte { // FLOW_VERDICT: 1 pass, 2 drop
			if r.denied || r.f.End == pavise.FlowCutOff {
				return u16(b, 2)
			}
			return u16(b, 1)
		}},
		{pen: penNtop, id: 109, length: 4, in: fromLocal, put: func(b []byte, r *record) []byte { return u32(b, r.f.Retransmits) }}, // RETRANSMITTED_IN_PKTS, from the source
		{pen: penNtop, id: 110, length: 4, in: toLocal, put: func(b []byte, r *record) []byte { return u32(b, r.f.Retransmits) }},   // RETRANSMITTED_OUT_PKTS, to it
	}
	process := func(side func(*record) *pavise.Process, is func(shape) whose, pid, name, uid, user, fatherPID, father, command, container uint16, text int) {
		there := func(h shape) bool { return is(h) != nobody }
		full := func(h shape) bool { return is(h) == known }
		list = append(list,
			element{pen: penNtop, id: pid, length: 4, in: there, put: func(b []byte, r *record) []byte { return u32(b, side(r).PID) }},
			element{pen: penNtop, id: name, length: variable, in: full, text: text},
			element{pen: penNtop, id: uid, length: 4, in: full, put: func(b []byte, r *record) []byte { return u32(b, side(r).User.ID) }},
			element{pen: penNtop, id: user, length: variable, in: full, text: text + 1},
			element{pen: penNtop, id: fatherPID, length: 4, in: full, put: func(b []byte, r *record) []byte {
				if p := side(r).Parent; p != nil {
					return u32(b, p.PID)
				}
				return u32(b, 0)
			}},
			element{pen: penNtop, id: father, length: variable, in: full, text: text + 2},
			element{pen: penNtop, id: command, length: variable, in: full, text: text + 3},
			element{pen: penNtop, id: container, length: variable, in: full, text: text + 4},
		)
	}
	// {SRC,DST}_PROC_PID, _NAME, _UID, _USER_NAME, {SRC,DST}_FATHER_PROC_PID, _NAME, {SRC,DST}_PROC_CMDLINE, _CONTAINER_ID
	process(func(r *record) *pavise.Process { return r.e.source.Process }, func(h shape) whose { return h.source }, 168, 169, 425, 372, 373, 374, 556, 558, sourceName)
	process(func(r *record) *pavise.Process { return r.e.destination.Process }, func(h shape) whose { return h.destination }, 375, 376, 426, 377, 378, 379, 557, 559, destinationName)
	return append(list,
		element{pen: penNtop, id: 491, length: variable, text: sourceHost},      // SRC_HOST_NAME
		element{pen: penNtop, id: 492, length: variable, text: destinationHost}, // DST_HOST_NAME
		element{pen: penNtop, id: 188, length: variable, text: serverName},      // TLS_SERVER_NAME
		element{pen: penNtop, id: 489, length: variable, text: ja3},             // JA3C_HASH
		element{pen: penNtop, id: 576, length: variable, text: ja4},             // JA4C_HASH
	)
}()

func milliseconds(ns int64) uint64 { return uint64(max(ns, 0)) / 1e6 } //nolint:gosec // not below 0

// The values of flowEndReason.
const (
	idleTimeout     = 1
	activeTimeout   = 2
	endDetected     = 3
	forcedEnd       = 4
	lackOfResources = 5
)

func endReason(f *pavise.Flow) uint8 {
	if f.State != pavise.FlowClosed {
		return activeTimeout
	}
	switch f.End {
	case pavise.FlowNotEnded: // the report of its end was lost
		return lackOfResources
	case pavise.FlowTimedOut:
		return idleTimeout
	case pavise.FlowDenied, pavise.FlowCutOff:
		return forcedEnd
	}
	return endDetected
}

// Flow sends a report of a flow.
func (s *IPFIX) Flow(f *pavise.Flow) error {
	if !onIP(f) {
		return ErrNoPlace
	}
	if f.Report > 0 && f.State != pavise.FlowClosed && f.SentNew == (pavise.Traffic{}) && f.ReceivedNew == (pavise.Traffic{}) {
		return nil
	}
	if s.broken != nil {
		return &LostError{1, s.broken}
	}
	s.describe(f)
	s.encode()
	return s.add()
}

// DNS has no place in IPFIX: what is known of an answer is no flow.
func (s *IPFIX) DNS(*pavise.DNS) error { return ErrNoPlace }

// describe finds out what there is to say of f.
func (s *IPFIX) describe(f *pavise.Flow) {
	r := &s.r
	*r = record{f: f, e: endsOf(f), texts: r.texts}
	r.ipv6 = isIPv6(f)
	r.noSource, r.noDestination = !r.has(r.e.source), !r.has(r.e.destination)
	r.denied = f.End == pavise.FlowDenied
	if r.e.ports {
		r.ports = transportPorts
		if f.Protocol == pavise.ProtocolICMP || f.Protocol == pavise.ProtocolICMPv6 {
			r.ports = icmpType
		} else {
			r.noSourcePort, r.noDestinationPort = !r.e.port(r.e.source, r.e.from), !r.e.port(r.e.destination, r.e.to)
		}
	}
	r.e.there, r.e.back = f.SentNew, f.ReceivedNew
	switch f.Direction {
	case pavise.FlowOutbound:
		r.direction = 2
	case pavise.FlowInbound:
		r.direction = 1
		r.e.there, r.e.back = r.e.back, r.e.there
	}
	r.source, r.destination = whoseIs(r.e.source.Process), whoseIs(r.e.destination.Process)
	s.strings()
}

// has reports whether an end has an address of the kind that the flow speaks.
func (r *record) has(s *pavise.FlowSide) bool {
	return address(s) && s.Address.Unmap().Is4() == !r.ipv6
}

func whoseIs(p *pavise.Process) whose {
	switch {
	case p == nil || p.Unknown && p.PID == 0:
		return nobody
	case p.Unknown:
		return onlyPID
	}
	return known
}

// textMax is how much of a string is sent.
const textMax = 254

// strings makes the strings of the record, harmless and short enough for a message.
func (s *IPFIX) strings() {
	r := &s.r
	b := s.scratch[:0]
	add := func(i int, text string, tail bool) {
		begin := len(b)
		switch {
		case len(text) <= textMax:
		case tail:
			text = text[len(text)-textMax-1:]
		default:
			text = text[:textMax+1]
		}
		b = pavise.AppendHarmless(b, text)
		r.texts[i], r.used[i] = b[begin:len(b):len(b)], true
	}
	process := func(p *pavise.Process, i int) {
		add(i, p.Exe.Path, true)
		add(i+1, p.User.Name, false)
		father := ""
		if p.Parent != nil {
			father = p.Parent.Exe.Path
		}
		add(i+2, father, true)
		begin := len(b)
		for n, arg := range p.Args {
			if len(b)-begin > textMax {
				break
			}
			if n > 0 {
				b = append(b, ' ')
			}
			b = pavise.AppendHarmless(b, arg[:min(len(arg), textMax+1)])
		}
		r.texts[i+3], r.used[i+3] = b[begin:len(b):len(b)], true
		container := ""
		if p.Container != nil {
			container = p.Container.ID
		}
		add(i+4, container, false)
	}
	if r.source == known {
		process(r.e.source.Process, sourceName)
	}
	if r.destination == known {
		process(r.e.destination.Process, destinationName)
	}
	add(sourceHost, r.e.source.Name, false)
	add(destinationHost, r.e.destination.Name, false)
	var hello pavise.TLS
	if r.f.TLS != nil {
		hello = *r.f.TLS
	}
	add(serverName, hello.SNI, false)
	add(ja3, hello.JA3, false)
	add(ja4, hello.JA4, false)
	s.scratch = b
	limit := textMax
	for room := s.o.Max - messageHeader - setHeader - fixedMax; r.length(limit) > room; {
		limit--
	}
	for i := range r.texts {
		if r.used[i] {
			r.texts[i] = cut(r.texts[i], limit, i == sourceName || i == destinationName || i == sourceFather || i == destinationFather)
		}
	}
}

// fixedMax is the most that a record can have beside its strings.
const fixedMax = 160

// length is that of the strings if none is longer than limit.
func (r *record) length(limit int) (n int) {
	for i := range r.texts {
		if r.used[i] {
			n += min(len(r.texts[i]), limit)
		}
	}
	return n
}

// cut makes a string no longer than limit, and shows that it was. Of a path the end stays, which is its name.
func cut(s []byte, limit int, tail bool) []byte {
	const mark = "…"
	if len(s) <= limit {
		return s
	}
	if limit < len(mark) {
		return nil
	}
	n := limit - len(mark)
	if tail {
		s = s[len(s)-n:]
		for len(s) > 0 && !utf8.RuneStart(s[0]) {
			s = s[1:]
		}
		return append([]byte(mark), s...)
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return append(s[:n:n], mark...)
}

// encode makes the record.
func (s *IPFIX) encode() {
	b := s.data[:0]
	for i := range elements {
		e := &elements[i]
		switch {
		case e.in != nil && !e.in(s.r.shape):
		case e.put != nil:
			b = e.put(b, &s.r)
		default:
			t := s.r.texts[e.text]
			b = append(append(b, byte(len(t))), t...)
		}
	}
	s.data = b
}

// add puts the record into the message, behind its template when the collector has none.
func (s *IPFIX) add() (err error) {
	var template []byte
	if !slices.Contains(s.known, s.r.shape) {
		template = s.r.appendTemplate(nil)
	}
	if len(s.b)+len(template)+len(s.data)+2*setHeader > s.o.Max {
		err = s.send()
	}
	if len(s.b) == messageHeader {
		err = firstOf(err, s.refresh())
	}
	if template != nil {
		err = firstOf(err, s.append(templateSet, template))
		s.known = append(s.known, s.r.shape)
	}
	err = firstOf(err, s.append(s.r.template(), s.data))
	s.records++
	if s.broken != nil { // nothing more goes there
		s.b, s.set, s.records = s.b[:messageHeader], 0, 0
		return firstOf(err, &LostError{1, s.broken})
	}
	return err
}

const templateSet = 2

// append puts a record into a set of its kind. A message that has no room for it is sent first.
func (s *IPFIX) append(id uint16, record []byte) (err error) {
	if len(s.b)+setHeader+len(record) > s.o.Max {
		err = s.send()
	}
	if s.set == 0 || s.setID != id {
		s.set, s.setID = len(s.b), id
		s.b = u16(u16(s.b, id), 0)
	}
	s.b = append(s.b, record...)
	binary.BigEndian.PutUint16(s.b[s.set+2:], uint16(len(s.b)-s.set)) //nolint:gosec // no longer than a message
	return err
}

func (h shape) appendTemplate(b []byte) []byte {
	begin := len(b)
	b = u16(u16(b, h.template()), 0)
	n := uint16(0)
	for i := range elements {
		e := &elements[i]
		if e.in != nil && !e.in(h) {
			continue
		}
		n++
		if e.pen == 0 {
			b = u16(u16(b, e.id), e.length)
		} else {
			b = u32(u16(u16(b, e.id|1<<15), e.length), e.pen)
		}
	}
	binary.BigEndian.PutUint16(b[begin+2:], n)
	return b
}

// refresh sends the templates again when it is time for that.
func (s *IPFIX) refresh() (err error) {
	if s.o.Stream {
		return nil
	}
	now := s.o.Now()
	if len(s.known) == 0 {
		s.due = now.Add(s.o.Templates)
	}
	if now.Before(s.due) {
		return nil
	}
	s.due = now.Add(s.o.Templates)
	for _, h := range s.known {
		err = firstOf(err, s.append(templateSet, h.appendTemplate(nil)))
	}
	return err
}

// send sends the message, whether it has records or templates only.
func (s *IPFIX) send() error {
	if len(s.b) == messageHeader {
		return nil
	}
	now := s.o.Now()
	h := u16(s.b[:0], 10)
	h = u16(h, uint16(len(s.b)))   //nolint:gosec // no longer than Max
	h = u32(h, uint32(now.Unix())) //nolint:gosec // until 2106
	u32(u32(h, s.seq), s.o.Domain)
	err := s.conn.SetWriteDeadline(now.Add(s.o.Timeout))
	if err == nil {
		var n int
		if n, err = s.conn.Write(s.b); err == nil && n < len(s.b) {
			err = io.ErrShortWrite
		}
	}
	lost := s.records
	s.seq += uint32(s.records) //nolint:gosec // modulo 2^32; of those that were lost too, so that the collector sees that it has not all
	s.b, s.set, s.records = s.b[:messageHeader], 0, 0
	if err == nil {
		return nil
	}
	if s.o.Stream {
		s.broken = ErrBroken
	}
	s.due = now // the templates may have been in it
	return &LostError{lost, err}
}

// Flush sends what is held back, and templates when it is time for that.
func (s *IPFIX) Flush() error {
	if s.broken != nil {
		return nil
	}
	var err error
	if len(s.b) == messageHeader {
		err = s.refresh()
	}
	return firstOf(err, s.send())
}

// Close is Flush.
func (s *IPFIX) Close() error { return s.Flush() }
