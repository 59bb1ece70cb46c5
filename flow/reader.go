package flow

import (
	"net/netip"
	"slices"

	"github.com/pavise-project/pavise"
)

const (
	// tlsPieces and quicDatagrams are what the kernel copies of one side of a flow.
	tlsPieces     = 3
	quicDatagrams = 4

	// maxHalf and maxHalfBytes bound what a Reader keeps: of flows in all, and of bytes of messages whose end has not come.
	maxHalf      = 4096
	maxHalfBytes = 4 << 20
)

// Reader reads what the kernel copied of flows. It keeps what is half read, within bounds: the flow that was longest silent goes first. It is for one
// goroutine at a time.
type Reader struct {
	counters Counters
	flows    *lru[halfKey, half]
	bytes    int // in flows

	hello   hello
	records []byte
	frames  []byte
	answers []*pavise.DNS
}

type halfKey struct {
	flow     uint64
	kind     pavise.FlowDataKind
	outgoing bool // false for QUIC, whose client is known by its key
}

// half is what is known of one side of a flow.
type half struct {
	done   bool // it was read, or given up: the kernel may copy more
	cut    bool
	pieces uint8
	size   int // as counted in Reader.bytes
	hello  assembly

	// Of QUIC: the key that opened the client's first packet, and which side that is.
	key      *initialKey
	outgoing bool

	// Of DNS over TCP: see stream.
	stream stream
}

// NewReader returns a Reader that has read nothing.
func NewReader() *Reader { return &Reader{flows: newLRU[halfKey, half]()} }

// Counters returns what was read and refused until now.
func (r *Reader) Counters() Counters { return r.counters }

// Data reads a piece, and returns what it completes: answers of DNS, of which one piece of a TCP stream may have several, or a ClientHello. What is
// returned keeps nothing of d; the slice is valid until the next call.
func (r *Reader) Data(d *pavise.FlowData) ([]*pavise.DNS, *pavise.TLS) {
	switch d.Kind {
	case pavise.FlowDataDNS:
		r.answers = r.answers[:0]
		if d.Protocol == pavise.ProtocolTCP {
			r.dnsStream(d)
		} else {
			r.dns(d, d.Data, d.Cut)
		}
		return r.answers, nil
	case pavise.FlowDataTLS:
		return nil, r.tls(d)
	case pavise.FlowDataQUIC:
		return nil, r.quic(d)
	}
	return nil, nil
}

// Forget ends a flow. Of a ClientHello whose end never came it returns what is known.
func (r *Reader) Forget(flow uint64) *pavise.TLS {
	var t *pavise.TLS
	for _, k := range [...]halfKey{
		{flow, pavise.FlowDataDNS, false}, {flow, pavise.FlowDataDNS, true}, {flow, pavise.FlowDataTLS, false}, {flow, pavise.FlowDataTLS, true},
		{flow, pavise.FlowDataQUIC, false},
	} {
		n := r.flows.nodes[k]
		if n == nil {
			continue
		}
		h := &n.value
		switch {
		case h.done:
		case k.kind == pavise.FlowDataDNS:
			if len(h.stream.buf) > 0 {
				r.refuse(DNS, ReasonEnded)
			}
		default:
			if known := r.known(h, k.kind == pavise.FlowDataQUIC, ReasonEnded); known != nil {
				t = known
			}
		}
		r.drop(k, h)
	}
	return t
}

func (r *Reader) refuse(p Protocol, why Reason) { r.counters.Refused[p][why]++ }

// half returns what is known of one side of a flow; nothing yet of one that is new.
func (r *Reader) half(k halfKey) *half {
	if h := r.flows.get(k); h != nil {
		return h
	}
	return r.flows.add(k)
}

// finish marks one side as done, and lets its bytes go.
func (r *Reader) finish(k halfKey) {
	h := r.half(k)
	r.bytes -= h.size
	*h = half{done: true}
	r.fit()
}

// keep counts what h holds, and makes room for it.
func (r *Reader) keep(h *half) {
	size := cap(h.hello.buf) + cap(h.hello.have)*16 + cap(h.stream.buf)
	if h.key != nil {
		size += 1 << 10 // the expanded keys
	}
	r.bytes += size - h.size
	h.size = size
	r.fit()
}

// fit pushes out the oldest. The newest stays: it alone is never too big.
func (r *Reader) fit() {
	for len(r.flows.nodes) > maxHalf || r.bytes > maxHalfBytes && len(r.flows.nodes) > 1 {
		n := r.flows.oldest()
		if !n.value.done && (n.key.kind != pavise.FlowDataDNS || len(n.value.stream.buf) > 0) {
			r.refuse(protocolOf(n.key.kind), ReasonPushedOut)
		}
		r.drop(n.key, &n.value)
	}
}

func (r *Reader) drop(k halfKey, h *half) {
	r.bytes -= h.size
	r.flows.remove(k)
}

func protocolOf(k pavise.FlowDataKind) Protocol {
	switch k {
	case pavise.FlowDataTLS:
		return TLS
	case pavise.FlowDataQUIC:
		return QUIC
	}
	return DNS
}

func (r *Reader) tls(d *pavise.FlowData) *pavise.TLS {
	k := halfKey{d.Flow, pavise.FlowDataTLS, d.Outgoing}
	h := r.flows.get(k)
	if h != nil && h.done {
		return nil
	}
	fits := true
	bytes := d.Data
	if h != nil || d.Seq > 0 { // not the usual: all in the first piece
		if h == nil {
			h = r.flows.add(k)
		}
		fits = h.hello.add(uint64(d.Seq), d.Data)
		bytes = h.hello.start()
	}
	message, why := r.unwrap(bytes)
	if why == ReasonNone {
		why = parseHello(&r.hello, message)
	}
	switch {
	case why == ReasonNone:
		t := r.hello.result(false, true)
		r.counters.Read[TLS]++
		r.finish(k)
		return t
	case why != ReasonShort:
		r.refuse(TLS, why)
		r.finish(k)
		return nil
	}
	if h == nil {
		h = r.flows.add(k)
		fits = h.hello.add(0, d.Data)
	}
	h.pieces++
	h.cut = h.cut || d.Cut
	switch {
	case !fits:
		why = ReasonLong
	case h.cut && len(bytes) > 0:
		why = ReasonCut
	case h.pieces >= tlsPieces:
		why = ReasonPieces
	default:
		r.keep(h)
		return nil
	}
	t := r.known(h, false, why)
	r.finish(k)
	return t
}

// known gives a hello up for a reason, and returns what is known of it.
func (r *Reader) known(h *half, quic bool, why Reason) *pavise.TLS {
	p, bytes := TLS, h.hello.start()
	if quic {
		p = QUIC
	} else {
		bytes, _ = r.unwrap(bytes)
	}
	r.refuse(p, why)
	if len(bytes) == 0 || parseHello(&r.hello, bytes) != ReasonShort {
		return nil
	}
	r.counters.Read[p]++
	return r.hello.result(quic, false)
}

func (r *Reader) quic(d *pavise.FlowData) *pavise.TLS {
	k := halfKey{d.Flow, pavise.FlowDataQUIC, false}
	h := r.half(k)
	if h.done || h.key != nil && h.outgoing != d.Outgoing { // the server's are not for us
		return nil
	}
	h.pieces++
	refused := ReasonNone
	var p longPacket
	for rest := d.Data; len(rest) > 0; {
		p.bytes = nil
		var why Reason
		if rest, why = nextPacket(&p, rest); why == ReasonNone && p.initial && p.bytes != nil {
			why = r.open(h, &p, d.Outgoing)
		}
		if why != ReasonNone {
			refused = why
		}
	}
	if refused == ReasonShort && d.Cut {
		refused = ReasonCut
	}
	if refused != ReasonNone {
		r.refuse(QUIC, refused)
	}
	why := ReasonShort
	if start := h.hello.start(); len(start) > 0 {
		why = parseHello(&r.hello, start)
	}
	switch {
	case why == ReasonNone:
		t := r.hello.result(true, true)
		r.counters.Read[QUIC]++
		r.finish(k)
		return t
	case why != ReasonShort:
		r.refuse(QUIC, why)
		r.finish(k)
		return nil
	case h.pieces >= quicDatagrams || refused == ReasonLong:
		if refused != ReasonLong {
			refused = ReasonPieces
		}
		t := r.known(h, true, refused)
		r.finish(k)
		return t
	}
	r.keep(h)
	return nil
}

// open opens an Initial packet and keeps its CRYPTO frames.
func (r *Reader) open(h *half, p *longPacket, outgoing bool) Reason {
	r.frames = slices.Grow(r.frames[:0], len(p.bytes)+4)
	var frames []byte
	ok := false
	// The client goes on with the key of its first packet when the server has chosen another connection ID. It has a new one of the packet's own
	// connection ID after a Retry, and one of the first connection ID when it changes the version (RFC 9369, 4.1).
	if h.key != nil && h.key.version == p.version {
		frames, ok = h.key.open(r.frames, p.bytes, p.number)
	}
	if !ok && !h.key.of(p.version, p.dcid) {
		key := newInitialKey(p.version, p.dcid)
		if frames, ok = key.open(r.frames, p.bytes, p.number); ok {
			h.key = key
		}
	}
	if !ok && h.key != nil && h.key.version != p.version {
		key := newInitialKey(p.version, h.key.dcid[:h.key.n])
		if frames, ok = key.open(r.frames, p.bytes, p.number); ok {
			h.key = key
		}
	}
	if !ok {
		return ReasonDecrypt
	}
	h.outgoing = outgoing
	return cryptoFrames(&h.hello, frames)
}

// dns reads one message.
func (r *Reader) dns(d *pavise.FlowData, message []byte, cut bool) {
	a, why := parseDNS(message, cut)
	if why != ReasonNone {
		r.refuse(DNS, why)
	}
	if a == nil {
		return
	}
	r.counters.Read[DNS]++
	a.Time, a.Flow, a.NetNS, a.Protocol, a.Outgoing = d.Time, d.Flow, d.NetNS, d.Protocol, d.Outgoing
	a.Client, a.Server = side(d.Local, d.ExecID), side(d.Remote, 0)
	if d.Outgoing {
		a.Client, a.Server = side(d.Remote, 0), side(d.Local, d.ExecID)
	}
	r.answers = append(r.answers, a)
}

func side(a netip.AddrPort, exec uint64) pavise.FlowSide {
	return pavise.FlowSide{Address: a.Addr().Unmap(), Port: a.Port(), ExecID: exec}
}

// stream is DNS over TCP: messages, each behind its length in two bytes (RFC 1035, 4.2.2).
type stream struct {
	seen bool   // something of it
	next uint32 // the offset of the byte that is waited for
	buf  []byte // the message that has begun, and its length
	skip int    // bytes until the next message begins, after a gap
	lost bool   // nobody knows where the next message begins
}

// need is how long the message in buf is to be, with its length; 0 where that is not known yet.
func (s *stream) need() int {
	if len(s.buf) < 2 {
		return 0
	}
	return 2 + int(s.buf[0])<<8 + int(s.buf[1])
}

func (r *Reader) dnsStream(d *pavise.FlowData) {
	h := r.half(halfKey{d.Flow, pavise.FlowDataDNS, d.Outgoing})
	s := &h.stream
	data := d.Data
	if !s.seen {
		*s = stream{seen: true, lost: d.Seq != 0}
	}
	switch ahead := int64(int32(d.Seq - s.next)); { //nolint:gosec // offsets wrap
	case s.lost:
	case ahead < 0: // sent again
		data = data[min(-ahead, int64(len(data))):]
	case ahead > 0:
		r.gap(s, d, ahead)
	}
	if s.lost {
		r.refuse(DNS, ReasonGap)
		r.keep(h)
		return
	}
	s.next += uint32(len(data)) //nolint:gosec // as above
	for len(data) > 0 {
		switch need := s.need(); {
		case s.skip > 0:
			n := min(s.skip, len(data))
			s.skip -= n
			data = data[n:]
		case len(s.buf) == 0 && len(data) >= 2 && len(data) >= 2+int(data[0])<<8+int(data[1]): // whole, where it is
			n := 2 + int(data[0])<<8 + int(data[1])
			r.dns(d, data[2:n], false)
			data = data[n:]
		case need == 0:
			s.buf = append(s.buf, data[0])
			data = data[1:]
		default:
			s.buf = slices.Grow(s.buf, need-len(s.buf))
			n := min(need-len(s.buf), len(data))
			s.buf = append(s.buf, data[:n]...)
			data = data[n:]
		}
		if need := s.need(); need > 0 && len(s.buf) == need {
			r.dns(d, s.buf[2:], false)
			s.buf = nil
		}
	}
	if d.Cut && s.need() > 0 { // the rest of this message will not come whole
		r.gap(s, d, 0)
	}
	r.keep(h)
}

// gap passes over bytes that were not copied. The message that has begun ends there for us; where the next one begins is known from its length.
func (r *Reader) gap(s *stream, d *pavise.FlowData, n int64) {
	if need := s.need(); need > 0 {
		s.skip = need - len(s.buf)
		r.dns(d, s.buf[2:], true)
		s.buf = nil
	}
	s.next += uint32(n) //nolint:gosec // offsets wrap
	if s.lost = s.lost || len(s.buf) > 0 || n > int64(s.skip); s.lost {
		s.buf = nil
		return
	}
	s.skip -= int(n)
}
