package export

import (
	"io"
	"strconv"
	"time"

	"github.com/pavise-project/pavise"
)

// EVE writes events as Suricata's EVE log has them: flow, tls and quic of a flow that has ended, with the flow_id of all of them the same, and dns of an
// answer. Whose the ends are, and what else Suricata has no word for, stands under "pavise".
type EVE struct {
	l lines
	o EVEOptions
}

var _ Sink = (*EVE)(nil)

// EVEOptions say how events are written.
type EVEOptions struct {
	Host string // the sensor's name: "host" of each event
	Seed uint16 // of the Community ID
	// DNS2 writes dns in version 2, of Suricata up to 7, and not in version 3, of Suricata 8.
	DNS2 bool
}

// NewEVE makes a sink that writes to w.
func NewEVE(w io.Writer, o EVEOptions) *EVE { return &EVE{l: lines{w: w}, o: o} }

// Flow writes a flow that has ended.
func (s *EVE) Flow(f *pavise.Flow) error {
	if !onIP(f) {
		return ErrNoPlace
	}
	if f.State != pavise.FlowClosed {
		return nil
	}
	e := endsOf(f)
	if t := f.TLS; t != nil {
		kind := "tls"
		if t.QUIC {
			kind = "quic"
		}
		s.begin(start(f), f.ID, kind)
		s.between(f, &e)
		s.hello(t, kind)
		b := append(s.l.b, `,"pavise":{`...)
		begin := len(b)
		b = appendWho(b, f, &e)
		b = append(t.AppendJSON(append(b, `,"tls":`...)), "}}\n"...)
		s.l.b = withoutComma(b, begin)
		if err := s.l.end(); err != nil {
			// What was lost was there before; this flow goes on.
			return firstOf(err, s.flow(f, &e))
		}
	}
	return s.flow(f, &e)
}

func (s *EVE) flow(f *pavise.Flow, e *ends) error {
	s.begin(f.Time, f.ID, "flow")
	s.between(f, e)
	if t := f.TLS; t != nil {
		if t.QUIC {
			s.l.b = append(s.l.b, `,"app_proto":"quic"`...)
		} else {
			s.l.b = append(s.l.b, `,"app_proto":"tls"`...)
		}
	}
	b := append(s.l.b, `,"flow":{"pkts_toserver":`...)
	b = strconv.AppendUint(b, e.there.Packets, 10)
	b = append(b, `,"pkts_toclient":`...)
	b = strconv.AppendUint(b, e.back.Packets, 10)
	b = append(b, `,"bytes_toserver":`...)
	b = strconv.AppendUint(b, e.there.Bytes, 10)
	b = append(b, `,"bytes_toclient":`...)
	b = strconv.AppendUint(b, e.back.Bytes, 10)
	b = append(b, `,"start":`...)
	b = appendEVETime(b, start(f))
	b = append(b, `,"end":`...)
	b = appendEVETime(b, f.Time)
	b = append(b, `,"age":`...)
	b = strconv.AppendInt(b, max(f.Time-start(f), 0)/1e9, 10)
	b = append(b, `,"state":"`...)
	b = append(b, eveState(f, e)...)
	b = append(b, '"')
	switch f.End {
	case pavise.FlowTimedOut:
		b = append(b, `,"reason":"timeout"`...)
	case pavise.FlowDenied, pavise.FlowCutOff:
		b = append(b, `,"reason":"forced"`...)
	}
	b = append(b, `,"alerted":false`...)
	if f.End == pavise.FlowDenied || f.End == pavise.FlowCutOff {
		b = append(b, `,"action":"drop"`...)
	}
	b = append(b, `},"pavise":{`...)
	begin := len(b)
	b = appendWho(b, f, e)
	b = appendText(b, `,"end":`, f.End.String())
	b = appendText(b, `,"reset_by":`, f.ResetBy.String())
	if f.Found {
		b = append(b, `,"found":true`...)
	}
	if f.Others {
		b = append(b, `,"others":true`...)
	}
	if f.Retransmits != 0 {
		b = strconv.AppendUint(append(b, `,"retransmits":`...), uint64(f.Retransmits), 10)
	}
	if f.RTT != 0 {
		b = strconv.AppendInt(append(b, `,"rtt_ns":`...), f.RTT, 10)
	}
	if f.ConnectLatency != 0 {
		b = strconv.AppendInt(append(b, `,"connect_latency_ns":`...), f.ConnectLatency, 10)
	}
	b = appendText(b, `,"policy":`, f.Policy)
	b = appendText(b, `,"rule":`, f.Rule)
	s.l.b = append(withoutComma(b, begin), "}}\n"...)
	return s.l.end()
}

// eveState is what became of a flow. Suricata calls one of datagrams established when both ends have spoken.
func eveState(f *pavise.Flow, e *ends) string {
	switch {
	case f.Protocol == pavise.ProtocolTCP && (f.End == pavise.FlowDone || f.End == pavise.FlowReset || f.End == pavise.FlowRefused):
		return "closed"
	case e.there.Packets > 0 && e.back.Packets > 0, f.ConnectLatency > 0:
		return "established"
	}
	return "new"
}

// hello writes what a client said. The version of TLS and of QUIC, which the server chooses, is not known.
func (s *EVE) hello(t *pavise.TLS, kind string) {
	b := append(append(append(s.l.b, `,"`...), kind...), `":{`...)
	begin := len(b)
	b = appendText(b, `,"sni":`, t.SNI)
	if t.JA3 != "" {
		b = append(b, `,"ja3":{"hash":`...)
		b = append(pavise.AppendJSONString(b, t.JA3), '}')
	}
	b = appendText(b, `,"ja4":`, t.JA4)
	if kind == "tls" && len(t.ALPN) > 0 {
		sep := `,"client_alpns":[`
		for _, p := range t.ALPN {
			b = pavise.AppendJSONString(append(b, sep...), p)
			sep = ","
		}
		b = append(b, ']')
	}
	s.l.b = append(withoutComma(b, begin), '}')
}

// withoutComma takes away the comma that the first member of an object begins with.
func withoutComma(b []byte, begin int) []byte {
	if len(b) == begin {
		return b
	}
	return append(b[:begin], b[begin+1:]...)
}

func (s *EVE) begin(time int64, id uint64, kind string) {
	b := append(s.l.b, `{"timestamp":`...)
	b = appendEVETime(b, time)
	if id != 0 {
		b = strconv.AppendUint(append(b, `,"flow_id":`...), flowID(id), 10)
	}
	b = append(append(append(b, `,"event_type":"`...), kind...), '"')
	s.l.b = appendText(b, `,"host":`, s.o.Host)
}

// between writes the ends.
func (s *EVE) between(f *pavise.Flow, e *ends) {
	b := s.l.b
	icmp := f.Protocol == pavise.ProtocolICMP || f.Protocol == pavise.ProtocolICMPv6
	b = appendEVEEnd(b, `,"src_ip":"`, `,"src_port":`, e.source, e.from, e.port(e.source, e.from) && !icmp)
	b = appendEVEEnd(b, `,"dest_ip":"`, `,"dest_port":`, e.destination, e.to, e.port(e.destination, e.to) && !icmp)
	if isIPv6(f) {
		b = append(b, `,"ip_v":6`...)
	} else {
		b = append(b, `,"ip_v":4`...)
	}
	b = appendEVEProto(b, f.Protocol)
	if m := f.FirstICMP(); icmp && m != nil {
		b = strconv.AppendUint(append(b, `,"icmp_type":`...), uint64(m.Type), 10)
		b = strconv.AppendUint(append(b, `,"icmp_code":`...), uint64(m.Code), 10)
	}
	begin := len(b)
	b = append(b, `,"community_id":"`...)
	key := len(b)
	if b = f.AppendCommunityID(b, s.o.Seed); len(b) > key {
		b = append(b, '"')
	} else {
		b = b[:begin]
	}
	s.l.b = b
}

func appendEVEEnd(b []byte, ip, port string, s *pavise.FlowSide, n uint16, known bool) []byte {
	if address(s) {
		b = append(appendAddr(append(b, ip...), s.Address), '"')
	}
	if known {
		b = strconv.AppendUint(append(b, port...), uint64(n), 10)
	}
	return b
}

func appendEVEProto(b []byte, protocol uint8) []byte {
	b = append(b, `,"proto":"`...)
	switch protocol {
	case pavise.ProtocolICMP:
		b = append(b, "ICMP"...)
	case pavise.ProtocolTCP:
		b = append(b, "TCP"...)
	case pavise.ProtocolUDP:
		b = append(b, "UDP"...)
	case pavise.ProtocolICMPv6:
		b = append(b, "IPv6-ICMP"...)
	case sctp:
		b = append(b, "SCTP"...)
	default:
		b = append(b, '0'+protocol/100, '0'+protocol/10%10, '0'+protocol%10)
	}
	return append(b, '"')
}

// appendWho appends whose the ends are.
func appendWho(b []byte, f *pavise.Flow, e *ends) []byte {
	b = appendText(b, `,"direction":`, f.Direction.String())
	b = appendProcess(b, `,"src":`, e.source.Process)
	b = appendProcess(b, `,"dest":`, e.destination.Process)
	b = appendText(b, `,"name":`, f.Remote.Name)
	return appendText(b, `,"asked_by":`, f.Remote.AskedBy)
}

func appendProcess(b []byte, key string, p *pavise.Process) []byte {
	if p == nil {
		return b
	}
	return p.AppendJSON(append(b, key...))
}

func appendText(b []byte, key, s string) []byte {
	if s == "" {
		return b
	}
	return pavise.AppendJSONString(append(b, key...), s)
}

// appendEVETime appends a time as Suricata does, to the microsecond, of UTC.
func appendEVETime(b []byte, ns int64) []byte {
	return time.Unix(0, ns).UTC().AppendFormat(append(b, '"'), `2006-01-02T15:04:05.000000+0000"`)
}

// DNS writes an answer, from who asked to who was asked, as Suricata has it.
func (s *EVE) DNS(d *pavise.DNS) error {
	s.begin(d.Time, d.Flow, "dns")
	b := appendEVEEnd(s.l.b, `,"src_ip":"`, `,"src_port":`, &d.Client, d.Client.Port, d.Client.Port != 0)
	b = appendEVEEnd(b, `,"dest_ip":"`, `,"dest_port":`, &d.Server, d.Server.Port, d.Server.Port != 0)
	if d.Protocol != 0 {
		b = appendEVEProto(b, d.Protocol)
	}
	f := pavise.Flow{Family: pavise.FamilyIPv4, Protocol: d.Protocol, Local: pavise.FlowSide{Address: d.Client.Address, Port: d.Client.Port}, Remote: pavise.FlowSide{Address: d.Server.Address, Port: d.Server.Port}}
	var few [32]byte
	if id := f.AppendCommunityID(few[:0], s.o.Seed); len(id) > 0 && d.Protocol != 0 {
		b = append(append(append(b, `,"community_id":"`...), id...), '"')
	}
	kind := `,"dns":{"version":3,"type":"response","id":`
	if s.o.DNS2 {
		kind = `,"dns":{"version":2,"type":"answer","id":`
	}
	b = append(b, kind...)
	b = strconv.AppendUint(b, uint64(d.ID), 10)
	if d.Cut {
		b = append(b, `,"tc":true`...)
	}
	if s.o.DNS2 {
		b = append(b, `,"rrname":`...)
		b = pavise.AppendJSONString(b, d.Query)
		b = appendText(b, `,"rrtype":`, d.Type)
	}
	b = appendText(b, `,"rcode":`, d.Code)
	if !s.o.DNS2 {
		b = append(b, `,"queries":[{"rrname":`...)
		b = pavise.AppendJSONString(b, d.Query)
		b = appendText(b, `,"rrtype":`, d.Type)
		b = append(b, "}]"...)
	}
	sep := `,"answers":[`
	for i := range d.Answers {
		b = appendEVERecord(append(b, sep...), &d.Answers[i])
		sep = ","
	}
	if len(d.Answers) > 0 {
		b = append(b, ']')
	}
	b = append(b, '}')
	if p := d.Client.Process; p != nil {
		b = append(appendProcess(b, `,"pavise":{"src":`, p), '}')
	}
	s.l.b = append(b, "}\n"...)
	return s.l.end()
}

func appendEVERecord(b []byte, r *pavise.DNSRecord) []byte {
	b = append(b, `{"rrname":`...)
	b = pavise.AppendJSONString(b, r.Name)
	b = appendText(b, `,"rrtype":`, r.Type)
	b = append(b, `,"ttl":`...)
	b = strconv.AppendUint(b, uint64(r.TTL), 10)
	if r.Address.IsValid() {
		b = append(appendAddr(append(b, `,"rdata":"`...), r.Address), '"')
	} else {
		b = appendText(b, `,"rdata":`, r.Target)
	}
	return append(b, '}')
}

// Flush writes what is held back.
func (s *EVE) Flush() error { return s.l.flush() }

// Close is Flush.
func (s *EVE) Close() error { return s.l.flush() }
