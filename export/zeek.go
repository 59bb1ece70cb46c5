package export

import (
	"crypto/sha256"
	"encoding/binary"
	"io"
	"math/bits"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/pavise-project/pavise"
)

// Zeek writes the logs conn, dns and ssl as Zeek 6 and 7 do, with the columns of Zeek's community-id, ja3 and ja4 scripts, and, named pavise.*, with whose
// the two ends are. A flow is written when it has ended: conn, and ssl if it began with a ClientHello. Its uid is the same in all three.
type Zeek struct {
	conn, dns, ssl zeekLog
	seed           uint16
	key            [2]uint64
}

var _ Sink = (*Zeek)(nil)

// ZeekOptions say how logs are written.
type ZeekOptions struct {
	// Salt makes the uids of this machine, and of this boot, others than those of another.
	Salt string
	Seed uint16           // of the Community ID
	JSON bool             // lines of JSON, as of Zeek's json-logs policy, and not columns
	Now  func() time.Time // nil: time.Now
}

// NewZeek makes a sink that writes each log to a writer of its own. A log begins with the first line that it gets.
func NewZeek(conn, dns, ssl io.Writer, o ZeekOptions) *Zeek {
	if o.Now == nil {
		o.Now = time.Now
	}
	sum := sha256.Sum256([]byte(o.Salt))
	log := func(path string, w io.Writer, columns []zeekColumn) zeekLog {
		return zeekLog{path: path, columns: columns, json: o.JSON, now: o.Now, lines: lines{w: w}}
	}
	return &Zeek{
		conn: log("conn", conn, zeekConn), dns: log("dns", dns, zeekDNS), ssl: log("ssl", ssl, zeekSSL), seed: o.Seed,
		key: [2]uint64{binary.LittleEndian.Uint64(sum[:]), binary.LittleEndian.Uint64(sum[8:])},
	}
}

type zeekColumn struct{ name, kind string }

var (
	zeekID = []zeekColumn{
		{"ts", "time"}, {"uid", "string"}, {"id.orig_h", "addr"}, {"id.orig_p", "port"}, {"id.resp_h", "addr"}, {"id.resp_p", "port"},
	}
	zeekConn = append(zeekID[:len(zeekID):len(zeekID)], []zeekColumn{
		{"proto", "enum"}, {"service", "string"}, {"duration", "interval"}, {"orig_bytes", "count"}, {"resp_bytes", "count"}, {"conn_state", "string"},
		{"local_orig", "bool"}, {"local_resp", "bool"}, {"missed_bytes", "count"}, {"history", "string"}, {"orig_pkts", "count"}, {"orig_ip_bytes", "count"},
		{"resp_pkts", "count"}, {"resp_ip_bytes", "count"}, {"tunnel_parents", "set[string]"}, {"community_id", "string"},
		{"pavise.orig_pid", "count"}, {"pavise.orig_exe", "string"}, {"pavise.orig_uid", "count"}, {"pavise.orig_user", "string"}, {"pavise.orig_unit", "string"}, {"pavise.orig_container", "string"},
		{"pavise.resp_pid", "count"}, {"pavise.resp_exe", "string"}, {"pavise.resp_uid", "count"}, {"pavise.resp_user", "string"}, {"pavise.resp_unit", "string"}, {"pavise.resp_container", "string"},
		{"pavise.name", "string"}, {"pavise.end", "string"}, {"pavise.policy", "string"}, {"pavise.rule", "string"},
	}...)
	zeekDNS = append(zeekID[:len(zeekID):len(zeekID)], []zeekColumn{
		{"proto", "enum"}, {"trans_id", "count"}, {"rtt", "interval"}, {"query", "string"}, {"qclass", "count"}, {"qclass_name", "string"}, {"qtype", "count"}, {"qtype_name", "string"},
		{"rcode", "count"}, {"rcode_name", "string"}, {"AA", "bool"}, {"TC", "bool"}, {"RD", "bool"}, {"RA", "bool"}, {"Z", "count"}, {"answers", "vector[string]"}, {"TTLs", "vector[interval]"}, {"rejected", "bool"},
		{"pavise.orig_pid", "count"}, {"pavise.orig_exe", "string"}, {"pavise.orig_uid", "count"}, {"pavise.orig_user", "string"}, {"pavise.orig_unit", "string"}, {"pavise.orig_container", "string"},
	}...)
	zeekSSL = append(zeekID[:len(zeekID):len(zeekID)], []zeekColumn{
		{"version", "string"}, {"cipher", "string"}, {"curve", "string"}, {"server_name", "string"}, {"resumed", "bool"}, {"last_alert", "string"}, {"next_protocol", "string"}, {"established", "bool"},
		{"ssl_history", "string"}, {"cert_chain_fps", "vector[string]"}, {"client_cert_chain_fps", "vector[string]"}, {"sni_matches_cert", "bool"}, {"ja3", "string"}, {"ja4", "string"},
		{"pavise.quic", "bool"}, {"pavise.encrypted", "bool"}, {"pavise.truncated", "bool"}, {"pavise.alpn", "vector[string]"}, {"pavise.versions", "vector[string]"},
	}...)
)

// Flow writes a flow that has ended.
func (s *Zeek) Flow(f *pavise.Flow) error {
	if !onIP(f) {
		return ErrNoPlace
	}
	if f.State != pavise.FlowClosed {
		return nil
	}
	e := endsOf(f)
	l := &s.conn
	s.begin(l, f, &e)
	l.word(zeekProto(f.Protocol))
	switch {
	case f.TLS == nil:
		l.unset()
	case f.TLS.QUIC:
		l.word("quic,ssl")
	default:
		l.word("ssl")
	}
	if f.Start != 0 && f.Time > f.Start {
		l.seconds(f.Time - f.Start)
	} else {
		l.unset()
	}
	l.count(e.there.Bytes)
	l.count(e.back.Bytes)
	l.word(zeekState(f, &e))
	l.unset()  // local_orig: of networks that nobody told us
	l.unset()  // local_resp
	l.count(0) // missed_bytes: the kernel's counters miss none
	l.unset()  // history: of packets, which nobody looked at
	l.count(e.there.Packets)
	l.unset() // orig_ip_bytes
	l.count(e.back.Packets)
	l.unset() // resp_ip_bytes
	l.unset() // tunnel_parents
	var id [32]byte
	l.word(string(f.AppendCommunityID(id[:0], s.seed)))
	l.process(e.source)
	l.process(e.destination)
	l.text(f.Remote.Name)
	l.word(f.End.String())
	l.text(f.Policy)
	l.text(f.Rule)
	err := l.endRow()
	if f.TLS == nil {
		return err
	}
	return firstOf(err, s.hello(f, &e))
}

// hello writes what a client said. What the server chose is not known.
func (s *Zeek) hello(f *pavise.Flow, e *ends) error {
	l := &s.ssl
	s.begin(l, f, e)
	l.unset() // version
	l.unset() // cipher
	l.unset() // curve
	l.text(f.TLS.SNI)
	l.unset() // resumed
	l.unset() // last_alert
	l.unset() // next_protocol
	l.unset() // established
	l.unset() // ssl_history
	l.unset() // cert_chain_fps
	l.unset() // client_cert_chain_fps
	l.unset() // sni_matches_cert
	l.text(f.TLS.JA3)
	l.text(f.TLS.JA4)
	l.boolean(f.TLS.QUIC)
	l.boolean(f.TLS.Encrypted)
	l.boolean(f.TLS.Cut)
	l.texts(f.TLS.ALPN)
	l.texts(f.TLS.Versions)
	return l.endRow()
}

func (s *Zeek) begin(l *zeekLog, f *pavise.Flow, e *ends) {
	l.begin()
	l.seconds(start(f))
	s.uid(l, f.ID)
	l.end(e.source, e.from, e.port(e.source, e.from))
	l.end(e.destination, e.to, e.port(e.destination, e.to))
}

// DNS writes an answer.
func (s *Zeek) DNS(d *pavise.DNS) error {
	l := &s.dns
	l.begin()
	l.seconds(d.Time)
	s.uid(l, d.Flow)
	l.end(&d.Client, d.Client.Port, d.Client.Port != 0)
	l.end(&d.Server, d.Server.Port, d.Server.Port != 0)
	l.word(zeekProto(d.Protocol))
	l.count(uint64(d.ID))
	l.unset() // rtt
	l.text(d.Query)
	l.unset() // qclass
	l.unset() // qclass_name
	l.number(dnsNumber(dnsTypes, "TYPE", d.Type))
	l.text(d.Type)
	l.number(dnsNumber(dnsCodes, "RCODE", d.Code))
	l.text(d.Code)
	l.unset() // AA
	l.boolean(d.Cut)
	l.unset() // RD
	l.unset() // RA
	l.unset() // Z
	l.answers(d.Answers)
	l.ttls(d.Answers)
	l.unset() // rejected
	l.process(&d.Client)
	return l.endRow()
}

// Flush writes what is held back.
func (s *Zeek) Flush() error { return firstOf(s.conn.flush(), s.dns.flush(), s.ssl.flush()) }

// Close writes the last line of each log that has begun.
func (s *Zeek) Close() error { return firstOf(s.conn.close(), s.dns.close(), s.ssl.close()) }

// firstOf is the first error of several logs, with what they lost together.
func firstOf(errs ...error) error {
	var all *LostError
	for _, err := range errs {
		lost, ok := err.(*LostError) //nolint:errorlint // lines wrap nothing
		switch {
		case err == nil:
		case !ok:
			return err
		case all == nil:
			all = lost
		default:
			all = &LostError{all.Records + lost.Records, all.Err}
		}
	}
	if all == nil {
		return nil
	}
	return all
}

func zeekProto(protocol uint8) string {
	switch protocol {
	case pavise.ProtocolTCP:
		return "tcp"
	case pavise.ProtocolUDP:
		return "udp"
	case pavise.ProtocolICMP, pavise.ProtocolICMPv6:
		return "icmp"
	}
	return "unknown_transport"
}

// zeekState is the conn_state of a flow that has ended; empty where Zeek's would say more than is known.
func zeekState(f *pavise.Flow, e *ends) string {
	switch f.Protocol {
	case pavise.ProtocolTCP:
	case pavise.ProtocolUDP:
		switch there, back := e.there.Packets > 0, e.back.Packets > 0; {
		case there && back:
			return "SF"
		case there:
			return "S0"
		case back:
			return "SHR"
		}
		return "OTH"
	default:
		return "OTH"
	}
	switch f.End {
	case pavise.FlowRefused:
		return "REJ"
	case pavise.FlowReset:
		source := pavise.EndpointLocal
		if e.local == e.destination {
			source = pavise.EndpointRemote
		}
		switch f.ResetBy {
		case pavise.EndpointUnknown:
			return ""
		case source:
			return "RSTO"
		}
		return "RSTR"
	}
	switch {
	case f.Found: // its handshake was not seen
		return "OTH"
	case f.End == pavise.FlowDone:
		return "SF"
	case f.ConnectLatency > 0 || e.back.Bytes > 0 || f.Direction == pavise.FlowInbound && f.End != pavise.FlowDenied:
		return "S1"
	}
	return "S0"
}

// uid makes the uid of a flow: as Zeek's, C and 17 letters and digits of 96 bits. Two flows of one machine have never the same.
func (s *Zeek) uid(l *zeekLog, id uint64) {
	if id == 0 {
		l.unset()
		return
	}
	const digits = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
	one, two := mix(id^s.key[0]), mix(id+s.key[1]) // one tells the flows apart
	hi, lo := one>>32, one<<32|two>>32
	var u [18]byte
	for i := len(u) - 1; i > 0; i-- {
		var r uint64
		hi, r = bits.Div64(0, hi, 62)
		lo, r = bits.Div64(r, lo, 62)
		u[i] = digits[r]
	}
	u[0] = 'C'
	l.word(string(u[:]))
}

// mix is a permutation of 64 bits in which nothing of its argument is to be seen (splitmix64's).
func mix(x uint64) uint64 {
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// zeekLog is one log. A row is written column by column, in their order.
type zeekLog struct {
	lines
	path    string
	columns []zeekColumn
	json    bool
	now     func() time.Time
	open    bool
	col     int
	row     int // where it begins
}

func (l *zeekLog) begin() {
	if !l.open && !l.json {
		l.first = l.head(l.first)
	}
	l.open, l.col, l.row = true, 0, len(l.b)
	if l.json {
		l.b = append(l.b, '{')
	}
}

func (l *zeekLog) head(b []byte) []byte {
	b = append(b, "#separator \\x09\n#set_separator\t,\n#empty_field\t(empty)\n#unset_field\t-\n#path\t"...)
	b = append(b, l.path...)
	b = l.moment(append(b, "\n#open\t"...))
	b = append(b, "\n#fields"...)
	for _, c := range l.columns {
		b = append(append(b, '\t'), c.name...)
	}
	b = append(b, "\n#types"...)
	for _, c := range l.columns {
		b = append(append(b, '\t'), c.kind...)
	}
	return append(b, '\n')
}

func (l *zeekLog) moment(b []byte) []byte { return l.now().AppendFormat(b, "2006-01-02-15-04-05") }

func (l *zeekLog) endRow() error {
	if l.json {
		l.b = append(l.b, '}')
	}
	l.b = append(l.b, '\n')
	return l.lines.end()
}

func (l *zeekLog) close() error {
	err := l.flush()
	if err != nil || !l.open || l.json {
		return err
	}
	l.open = false
	l.first = append(l.moment([]byte("#close\t")), '\n')
	return l.flush()
}

// column begins the next column.
func (l *zeekLog) column() {
	switch {
	case l.json:
		if len(l.b) > l.row+1 {
			l.b = append(l.b, ',')
		}
		l.b = append(l.b, '"')
		l.b = append(l.b, l.columns[l.col].name...)
		l.b = append(l.b, `":`...)
	case l.col > 0:
		l.b = append(l.b, '\t')
	}
	l.col++
}

func (l *zeekLog) unset() {
	if l.json {
		l.col++
		return
	}
	l.column()
	l.b = append(l.b, '-')
}

// text is a string that somebody else chose; an empty one is not there.
func (l *zeekLog) text(s string) {
	if s == "" {
		l.unset()
		return
	}
	l.column()
	l.value(s, false)
}

// word is a string of ours.
func (l *zeekLog) word(s string) { l.text(s) }

func (l *zeekLog) count(n uint64) {
	l.column()
	l.b = strconv.AppendUint(l.b, n, 10)
}

func (l *zeekLog) number(n uint64, known bool) {
	if known {
		l.count(n)
	} else {
		l.unset()
	}
}

func (l *zeekLog) seconds(ns int64) {
	l.column()
	l.b = appendDecimal(l.b, ns)
}

func (l *zeekLog) boolean(v bool) {
	l.column()
	switch {
	case l.json:
		l.b = strconv.AppendBool(l.b, v)
	case v:
		l.b = append(l.b, 'T')
	default:
		l.b = append(l.b, 'F')
	}
}

func (l *zeekLog) end(s *pavise.FlowSide, port uint16, known bool) {
	if address(s) {
		l.column()
		l.quote()
		l.b = appendAddr(l.b, s.Address)
		l.quote()
	} else {
		l.unset()
	}
	l.number(uint64(port), known)
}

func (l *zeekLog) quote() {
	if l.json {
		l.b = append(l.b, '"')
	}
}

// process is six columns.
func (l *zeekLog) process(s *pavise.FlowSide) {
	p := s.Process
	if p == nil {
		for range 6 {
			l.unset()
		}
		return
	}
	l.number(uint64(p.PID), p.PID != 0)
	l.text(p.Exe.Path)
	l.number(uint64(p.User.ID), !p.Unknown)
	l.text(p.User.Name)
	l.text(p.Unit)
	if p.Container != nil {
		l.text(containerName(p.Container))
	} else {
		l.unset()
	}
}

func containerName(c *pavise.Container) string {
	if c.Name != "" {
		return c.Name
	}
	return c.ID
}

func (l *zeekLog) texts(list []string) {
	if len(list) == 0 {
		l.unset()
		return
	}
	l.column()
	for i, s := range list {
		l.element(i)
		l.value(s, true)
	}
	l.elements()
}

func (l *zeekLog) element(i int) {
	switch {
	case i > 0:
		l.b = append(l.b, ',')
	case l.json:
		l.b = append(l.b, '[')
	}
}

func (l *zeekLog) elements() {
	if l.json {
		l.b = append(l.b, ']')
	}
}

// answers has, for each record, what it says; for those of which that is not known, their type.
func (l *zeekLog) answers(list []pavise.DNSRecord) {
	if len(list) == 0 {
		l.unset()
		return
	}
	l.column()
	for i := range list {
		l.element(i)
		switch r := &list[i]; {
		case r.Address.IsValid():
			l.quote()
			l.b = appendAddr(l.b, r.Address)
			l.quote()
		case r.Target != "":
			l.value(r.Target, true)
		default:
			l.value("<"+r.Type+">", true)
		}
	}
	l.elements()
}

func (l *zeekLog) ttls(list []pavise.DNSRecord) {
	if len(list) == 0 {
		l.unset()
		return
	}
	l.column()
	for i := range list {
		l.element(i)
		l.b = appendDecimal(l.b, int64(list[i].TTL)*1e9)
	}
	l.elements()
}

// value writes a string so that it is one field, one line, and nothing but itself: as Zeek does, other bytes than those of plain text as \x1b, and the first
// of what would read as no value.
func (l *zeekLog) value(s string, within bool) {
	if l.json {
		l.b = pavise.AppendJSONString(l.b, s)
		return
	}
	switch s {
	case "":
		l.b = append(l.b, "(empty)"...)
		return
	case "-", "(empty)":
		l.hex(s[0])
		s = s[1:]
	}
	for i := 0; i < len(s); {
		c := s[i]
		n, harmless := 1, c >= 0x20 && c < 0x7f && c != '\\' && (c != ',' || !within)
		if c >= utf8.RuneSelf {
			var r rune
			r, n = utf8.DecodeRuneInString(s[i:])
			harmless = (r != utf8.RuneError || n > 1) && !pavise.HostileRune(r)
		}
		if harmless {
			l.b = append(l.b, s[i:i+n]...)
		} else {
			for _, c := range []byte(s[i : i+n]) {
				l.hex(c)
			}
		}
		i += n
	}
}

func (l *zeekLog) hex(c byte) {
	const digits = "0123456789abcdef"
	l.b = append(l.b, '\\', 'x', digits[c>>4], digits[c&15])
}
