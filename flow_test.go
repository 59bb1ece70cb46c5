package pavise

import (
	"bytes"
	"encoding/json"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

func sampleFlow() *Flow {
	p := sampleProcess()
	return &Flow{
		ID: 77, Report: 1, Time: 1767225601123456789, Start: 1767225600000000001, State: FlowClosed, End: FlowDone, Direction: FlowOutbound,
		Family: FamilyIPv4, Type: TypeStream, Protocol: ProtocolTCP, NetNS: 4026531992,
		Local:  FlowSide{Address: netip.MustParseAddr("128.232.110.120"), Port: 34855, ExecID: p.ExecID, Process: p},
		Remote: FlowSide{Address: netip.MustParseAddr("66.35.250.204"), Port: 80, Name: "www.example.org", AskedBy: "/usr/lib/systemd/systemd-resolved"},
		Sent:   Traffic{1200, 12}, Received: Traffic{34567890, 23000}, SentNew: Traffic{200, 2}, ReceivedNew: Traffic{67890, 45},
		Retransmits: 3, RTT: 12345678, ConnectLatency: 850000,
		TLS: &TLS{SNI: "www.example.org", ALPN: []string{"h2", "http/1.1"}, Version: "1.3", Versions: []string{"1.3", "1.2"}, JA3: strings.Repeat("0a", 16), JA4: "t13d1516h2_8daaf6152771_b186095e22b6"},
	}
}

func sampleDNS() *DNS {
	p := sampleProcess()
	return &DNS{
		Time: 1767225601123456789, Flow: 78, NetNS: 4026531992, Protocol: ProtocolUDP, ID: 4711, Query: "www.example.org", Type: "A", Code: "NOERROR",
		Client: FlowSide{Address: netip.MustParseAddr("192.0.2.2"), Port: 40000, ExecID: p.ExecID, Process: p},
		Server: FlowSide{Address: netip.MustParseAddr("192.0.2.53"), Port: 53},
		Answers: []DNSRecord{
			{Name: "www.example.org", Type: "CNAME", TTL: 60, Target: "example.org"},
			{Name: "example.org", Type: "A", TTL: 300, Address: netip.MustParseAddr("66.35.250.204")},
			{Name: "example.org", Type: "HTTPS", TTL: 300, Hints: []netip.Addr{netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("192.0.2.1")}, Priority: 1, ALPN: []string{"h3"}, Encrypted: true},
		},
	}
}

func sampleFlows() []*Flow {
	denied := sampleFlow()
	denied.ID, denied.Report, denied.End, denied.Policy, denied.Rule, denied.TLS = 1<<63|5, 0, FlowDenied, "egress", "internet", nil
	denied.Local = FlowSide{ExecID: denied.Local.ExecID, Process: denied.Local.Process}
	denied.Sent, denied.Received, denied.SentNew, denied.ReceivedNew = Traffic{}, Traffic{}, Traffic{}, Traffic{}
	denied.Retransmits, denied.RTT, denied.ConnectLatency = 0, 0, 0
	inbound := sampleFlow()
	inbound.Direction, inbound.End, inbound.ResetBy, inbound.Family, inbound.Found = FlowInbound, FlowReset, EndpointRemote, FamilyIPv6, true
	inbound.Local.Address, inbound.Remote.Address = netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2")
	inbound.Remote.Process = &Process{ExecID: 5, PID: 6, Exe: FileInfo{Path: "/usr/bin/curl"}, User: User{ID: 1000}}
	inbound.Remote.ExecID = 5
	ping := &Flow{
		ID: 3, Family: FamilyIPv4, Type: TypeRaw, Protocol: ProtocolICMP, ICMP: &ICMP{Type: 8}, Direction: FlowOutbound,
		Local: FlowSide{Address: netip.MustParseAddr("192.0.2.1"), Port: 9}, Remote: FlowSide{Address: netip.MustParseAddr("192.0.2.2"), ExecID: 12},
	}
	others := &Flow{ID: 4, Family: FamilyIPv6, Type: TypeDgram, Protocol: ProtocolUDP, Others: true, Local: FlowSide{Address: netip.IPv6Unspecified(), Port: 53}, Sent: Traffic{1 << 63, 1}}
	unix := &Flow{ID: 5, Family: FamilyUnix, Type: TypeStream, Direction: FlowInbound, Local: FlowSide{Path: "/run/x y"}, State: FlowConnecting}
	hostile := sampleFlow()
	hostile.End, hostile.Policy, hostile.Rule = FlowRefused, "\x1b[2J", "a\u202e"
	hostile.Remote.Name, hostile.Remote.AskedBy, hostile.Remote.Process = "\x1b]0;x\a.example", "\xff", &Process{PID: 5, Unknown: true}
	hostile.TLS = &TLS{SNI: "a\u009bb\x00", ALPN: []string{"\xff\xfe"}, JA4: "\n", QUIC: true, Encrypted: true, Cut: true}
	hostile.Remote.Address = netip.MustParseAddr("fe80::1").WithZone("\x1b\"\\")
	odd := &Flow{State: 9, End: 99, ResetBy: 9, Direction: 9, Family: 17, Type: 99, Protocol: 47, RTT: -1, ConnectLatency: -5}
	return []*Flow{sampleFlow(), denied, inbound, ping, others, unix, hostile, odd, {}}
}

// checkLine holds that nothing in a line controls a terminal.
func checkLine(t *testing.T, line []byte) {
	t.Helper()
	for _, r := range string(line) {
		if r < 0x20 || r == 0x7f || r > 0x7f && hostileRune(r) {
			t.Fatalf("%U in %q", r, line)
		}
	}
}

// checkFlowJSON holds what must be true of every flow and every DNS answer.
func checkFlowJSON[T any, P interface {
	*T
	AppendJSON(b []byte) []byte
	AppendTextIn(b []byte, color bool, zone *time.Location) []byte
}](t *testing.T, v P) {
	t.Helper()
	b := v.AppendJSON(nil)
	if !json.Valid(b) {
		t.Fatalf("invalid: %q", b)
	}
	checkLine(t, b)
	checkLine(t, v.AppendTextIn(nil, false, time.UTC))
	std, err := json.Marshal(*v)
	if err != nil || !json.Valid(std) {
		t.Fatal(err, string(std))
	}
	var back T
	if err := json.Unmarshal(b, &back); err != nil {
		t.Fatalf("%v: %s", err, b)
	}
	again := P(&back).AppendJSON(nil)
	if !bytes.Equal(again, b) {
		t.Fatalf("wrote %s\nthen  %s", b, again)
	}
}

func TestFlowJSONRoundTrip(t *testing.T) {
	for i, f := range sampleFlows() {
		checkFlowJSON(t, f)
		checkJSON(t, f.Event())
		if i > 2 {
			continue
		}
		var back Flow
		if err := json.Unmarshal(f.AppendJSON(nil), &back); err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(&back, f) { // nothing is lost
			t.Errorf("got  %+v\nwant %+v", back, f)
		}
		var e Event
		if err := json.Unmarshal(f.Event().AppendJSON(nil), &e); err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(e.Flow, f) {
			t.Errorf("within an event: got  %+v\nwant %+v", e.Flow, f)
		}
		if want := f.Event(); !reflect.DeepEqual(&e, want) {
			t.Errorf("an event: got  %+v\nwant %+v", e, want)
		}
	}
	ours := sampleDNS()
	ours.Outgoing, ours.Client, ours.Server = true, ours.Server, ours.Client
	checkFlowJSON(t, ours)
	checkJSON(t, ours.Event())
	if e := ours.Event(); e.Process == nil || e.Net.LocalPort != 40000 || e.Net.RemotePort != 53 {
		t.Errorf("the event of an answer that this host sent: %+v", e.Net)
	}
	d := sampleDNS()
	checkFlowJSON(t, d)
	checkFlowJSON(t, &DNS{})
	checkJSON(t, d.Event())
	var e Event
	if err := json.Unmarshal(d.Event().AppendJSON(nil), &e); err != nil {
		t.Fatal(err)
	}
	if want := d.Event(); !reflect.DeepEqual(&e, want) {
		t.Errorf("an event: got  %+v\nwant %+v", e, want)
	}
	var back DNS
	if err := json.Unmarshal(d.AppendJSON(nil), &back); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(&back, d) {
		t.Errorf("got  %+v\nwant %+v", back, d)
	}
	for bad, want := range map[string]string{
		`[]`:                                    "read flow: json: ",
		`{"state":"x"}`:                         `read flow: unknown state "x"`,
		`{"end":"x"}`:                           `read flow: unknown end "x"`,
		`{"reset_by":"x"}`:                      `read flow: unknown reset_by "x"`,
		`{"direction":"x"}`:                     `read flow: unknown direction "x"`,
		`{"family":"x"}`:                        `read flow: unknown family "x"`,
		`{"type":"x"}`:                          `read flow: unknown type "x"`,
		`{"protocol":"256"}`:                    `read flow: unknown protocol "256"`,
		`{"local":{"address":"x"}}`:             "read flow: local: read address: ",
		`{"remote":{"process":{"caps":["x"]}}}`: `read flow: remote: read event: unknown capability "x"`,
	} {
		var f Flow
		if err := json.Unmarshal([]byte(bad), &f); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%s: got %v, want %s", bad, err, want)
		}
	}
	for bad, want := range map[string]string{`[]`: "read dns: json: ", `{"protocol":"x"}`: `read dns: unknown protocol "x"`, `{"client":{"address":"x"}}`: "read dns: client: read address: ", `{"server":{"address":"x"}}`: "read dns: server: "} {
		if err := json.Unmarshal([]byte(bad), &back); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%s: got %v, want %s", bad, err, want)
		}
	}
}

func TestFlowJSONForm(t *testing.T) {
	f := sampleFlow()
	process := string(f.Local.Process.AppendJSON(nil))
	const flow = `"state":"closed","end":"closed","direction":"outbound","family":"ipv4","type":"stream","protocol":"tcp","net_ns":4026531992,` +
		`"community_id":"1:LQU9qZlK+B5F3KDmev6m5PMibrg=","local":{"address":"128.232.110.120","port":34855`
	rest := `},"remote":{"address":"66.35.250.204","port":80,"name":"www.example.org","asked_by":"/usr/lib/systemd/systemd-resolved"},` +
		`"sent":{"bytes":1200,"packets":12},"received":{"bytes":34567890,"packets":23000},"sent_new":{"bytes":200,"packets":2},"received_new":{"bytes":67890,"packets":45},` +
		`"retransmits":3,"rtt_ns":12345678,"connect_latency_ns":850000,` +
		`"tls":{"sni":"www.example.org","alpn":["h2","http/1.1"],"version":"1.3","versions":["1.3","1.2"],"ja3":"` + strings.Repeat("0a", 16) + `","ja4":"t13d1516h2_8daaf6152771_b186095e22b6"}}`
	want := `{"id":"77","report":1,"time":"2026-01-01T00:00:01.123456789Z","start":"2026-01-01T00:00:00.000000001Z",` + flow + `,"process":` + process + rest
	if got := string(f.AppendJSON(nil)); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	want = `{"id":0,"time":"2026-01-01T00:00:01.123456789Z","op":"net.flow","process":` + process +
		`,"flow":{"id":"77","report":1,"start":"2026-01-01T00:00:00.000000001Z",` + flow + rest + `}`
	if got := string(f.Event().AppendJSON(nil)); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	want = `{"id":"0","report":0,"time":"1970-01-01T00:00:00.000000000Z","state":"open","local":{},"remote":{},"sent":{"bytes":0,"packets":0},"received":{"bytes":0,"packets":0},"sent_new":{"bytes":0,"packets":0},"received_new":{"bytes":0,"packets":0}}`
	if got := string((&Flow{}).AppendJSON(nil)); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	const dns = `"id":4711,"flow":"78","net_ns":4026531992,"protocol":"udp","client":{"address":"192.0.2.2","port":40000`
	answer := `},"server":{"address":"192.0.2.53","port":53},"query":"www.example.org","type":"A","code":"NOERROR","answers":[{"name":"www.example.org","type":"CNAME","ttl":60,"target":"example.org"},` +
		`{"name":"example.org","type":"A","ttl":300,"address":"66.35.250.204"},{"name":"example.org","type":"HTTPS","ttl":300,"hints":["2001:db8::1","192.0.2.1"],"priority":1,"alpn":["h3"],"encrypted":true}]}`
	want = `{"time":"2026-01-01T00:00:01.123456789Z",` + dns + `,"process":` + process + answer
	if got := string(sampleDNS().AppendJSON(nil)); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	want = `{"id":0,"time":"2026-01-01T00:00:01.123456789Z","op":"net.dns","process":` + process + `,"dns":{` + dns + answer + `}`
	if got := string(sampleDNS().Event().AppendJSON(nil)); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if got, err := json.Marshal(struct{ T TLS }{*sampleFlows()[6].TLS}); err != nil || bytes.ContainsRune(got, '\u009b') || !json.Valid(got) {
		t.Error(string(got), err)
	}
}

// TestFlowJSONTags holds that what the tags of Flow, DNS and their parts say, which describe the form to others, is what is written and read.
func TestFlowJSONTags(t *testing.T) {
	names := func(v any, also ...string) []string {
		rt := reflect.TypeOf(v)
		list := also
		for i := range rt.NumField() {
			if name, _, _ := strings.Cut(rt.Field(i).Tag.Get("json"), ","); name != "-" {
				list = append(list, name)
			}
		}
		slices.Sort(list)
		return list
	}
	flow, dns := FlowJSONForms()
	for _, c := range []struct{ of, form []string }{
		{names(Flow{}, "time", "start", "family", "type", "protocol", "community_id"), names(flow)},
		{names(DNS{}, "time", "protocol"), names(dns)},
		{names(FlowSide{}), names(flowSideJSON{})},
	} {
		if !slices.Equal(c.of, c.form) {
			t.Errorf("got  %q\nwant %q", c.form, c.of)
		}
	}
}

func TestFlowText(t *testing.T) {
	flows := sampleFlows()
	for i, want := range []string{
		`00:00:01.123456 closed      nginx[1234] www-data nginx.service/web tcp 128.232.110.120:34855 -> 66.35.250.204:80 (www.example.org) tls www.example.org t13d1516h2_8daaf6152771_b186095e22b6  1.2 kB out, 34 MB in, rtt 12ms, 3 sent again`,
		`00:00:01.123456 denied      nginx[1234] www-data nginx.service/web tcp * -> 66.35.250.204:80 (www.example.org)  0 B out, 0 B in  egress/internet`,
		`00:00:01.123456 reset       nginx[1234] www-data nginx.service/web tcp [2001:db8::1]:34855 <- [2001:db8::2]:80 (www.example.org) = curl[6] 1000 tls www.example.org t13d1516h2_8daaf6152771_b186095e22b6  1.2 kB out, 34 MB in, rtt 12ms, 3 sent again, reset by the remote end`,
		`00:00:00.000000 open        -                                    icmp 192.0.2.1:9 -> 192.0.2.2  0 B out, 0 B in, icmp type 8 code 0`,
		`00:00:00.000000 open        -                                    udp [::]:53 - others  9.2 EB out, 0 B in`,
		`00:00:00.000000 connecting  -                                    unix "/run/x y" <- (unnamed)  0 B out, 0 B in`,
		`00:00:01.123456 refused     nginx[1234] www-data nginx.service/web tcp 128.232.110.120:34855 -> [fe80::1]:80 ("\x1b]0;x\x07.example") = ?[5] quic "a\u009bb\x00" (encrypted) "\x0a"  1.2 kB out, 34 MB in, rtt 12ms, 3 sent again  "\x1b[2J"/"a\u202e"`,
	} {
		got := string(flows[i].AppendTextIn(nil, false, time.UTC))
		if got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
		if e := string(flows[i].Event().AppendTextIn(nil, false, time.UTC)); e != got {
			t.Errorf("as an event %s", e)
		}
		colored := string(flows[i].AppendTextIn(nil, true, time.UTC))
		switch flows[i].End {
		case FlowDenied:
			want = strings.Replace(want, "denied", textRed+"denied", 1) + textReset
		case FlowRefused:
			want = strings.Replace(want, "refused", textYellow+"refused", 1) + textReset
		}
		if colored != want {
			t.Errorf("got  %q\nwant %q", colored, want)
		}
	}
	want := `00:00:01.123456 NOERROR     nginx[1234] www-data nginx.service/web A www.example.org -> example.org, 66.35.250.204, HTTPS  from 192.0.2.53`
	if got := string(sampleDNS().AppendTextIn(nil, true, time.UTC)); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	ours := sampleDNS() // the server's side of it
	ours.Outgoing, ours.Client, ours.Server = true, ours.Server, ours.Client
	want = "00:00:01.123456 NOERROR     nginx[1234] www-data nginx.service/web A www.example.org -> example.org, 66.35.250.204, HTTPS  to 192.0.2.53"
	if got := string(ours.AppendTextIn(nil, false, time.UTC)); got != want {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	none := &DNS{Query: "\x1b.example", Type: "AAAA", Code: "NXDOMAIN", Cut: true}
	want = "00:00:00.000000 " + textYellow + `NXDOMAIN    -                                    AAAA "\x1b.example" (truncated)` + textReset
	if got := string(none.AppendTextIn(nil, true, time.UTC)); got != want {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	for ns, want := range map[int64]string{1: "0.0us", 8500: "8.5us", 850000: "850us", 1500000: "1.5ms", 12e9: "12s", 1<<63 - 1: "9223372036s"} {
		if got := string(appendDuration(nil, ns)); got != want {
			t.Errorf("%d: got %s, want %s", ns, got, want)
		}
	}
	for n, want := range map[uint64]string{0: "0 B", 999: "999 B", 1000: "1.0 kB", 999999: "999 kB", 1e6: "1.0 MB", 1<<64 - 1: "18 EB"} {
		if got := string(appendBytes(nil, n)); got != want {
			t.Errorf("%d: got %s, want %s", n, got, want)
		}
	}
	_ = flows[0].AppendText(nil, false)
	_ = none.AppendText(nil, false)
}

func TestAppendFlowAllocatesNothing(t *testing.T) {
	buf := make([]byte, 0, 8192)
	for i, f := range sampleFlows()[:6] {
		if n := testing.AllocsPerRun(20, func() { buf = f.AppendJSON(buf[:0]) }); n != 0 {
			t.Errorf("%d: %v allocations of JSON", i, n)
		}
		if n := testing.AllocsPerRun(20, func() { buf = f.AppendText(buf[:0], true) }); n != 0 {
			t.Errorf("%d: %v allocations of text", i, n)
		}
	}
	d := sampleDNS()
	if n := testing.AllocsPerRun(20, func() { buf = d.AppendJSON(buf[:0]) }); n != 0 {
		t.Errorf("%v allocations of a DNS", n)
	}
}

func FuzzFlowJSON(f *testing.F) {
	f.Add("www.example.org", "/usr/bin/curl", "h2", []byte{192, 0, 2, 1}, uint64(77), int64(5), uint32(0x01020304))
	f.Add("\x1b[2J\xff\u009b", "\u2028\u202e", "\"\\", bytes.Repeat([]byte{255}, 16), uint64(1)<<63, int64(-1), uint32(0xffffffff))
	f.Add("", "", "", []byte{}, uint64(0), int64(0), uint32(0))
	f.Fuzz(func(t *testing.T, name, path, word string, addr []byte, n uint64, when int64, bits uint32) {
		a, _ := netip.AddrFromSlice(addr)
		side := FlowSide{Address: a, Port: uint16(n), Path: path, Name: name, AskedBy: path, ExecID: n}
		if n%3 == 0 {
			side.Process = &Process{ExecID: n, PID: uint32(n), Unknown: n%2 == 0, Exe: FileInfo{Path: path}, Args: []string{word}, User: User{Name: name}, Parent: &Process{Exe: FileInfo{Path: word}}}
		}
		flow := &Flow{
			ID: n, Report: bits, Time: when, Start: when / 2, State: FlowState(bits), End: FlowEnd(bits >> 4), ResetBy: FlowEndpoint(bits >> 2), Direction: FlowDirection(bits >> 8),
			Found: n%2 == 0, Family: uint16(bits >> 12), Type: uint8(bits >> 16), Protocol: uint8(bits >> 20), NetNS: bits, Local: side, Remote: FlowSide{Address: a.WithZone(word), Name: word},
			Sent: Traffic{n, n >> 1}, Received: Traffic{n >> 2, n}, Others: n%5 == 0, Retransmits: bits, RTT: when, ConnectLatency: -when, Policy: name, Rule: word,
		}
		if n%2 == 0 {
			flow.Family = FamilyIPv4
			flow.ICMP = &ICMP{uint8(n), uint8(bits)}
			flow.TLS = &TLS{SNI: name, ALPN: []string{word, path}, Version: word, JA3: path, QUIC: n%4 == 0}
		}
		checkFlowJSON(t, flow)
		checkJSON(t, flow.Event())
		d := &DNS{
			Time: when, Flow: n, NetNS: bits, Client: side, Server: FlowSide{Address: a}, Protocol: uint8(bits), ID: uint16(n), Query: name, Type: word, Code: path, Cut: n%2 == 0, Outgoing: n%3 == 0,
			Answers: []DNSRecord{{Name: name, Type: word, TTL: bits, Address: a.WithZone(word), Target: path, Hints: []netip.Addr{a, {}}, Priority: uint16(bits), ALPN: []string{word}}},
		}
		checkFlowJSON(t, d)
		checkJSON(t, d.Event())
	})
}

func BenchmarkAppendFlow(b *testing.B) {
	flow, buf := sampleFlow(), make([]byte, 0, 8192)
	for name, one := range map[string]func(){
		"json":         func() { buf = flow.AppendJSON(buf[:0]) },
		"text":         func() { buf = flow.AppendText(buf[:0], true) },
		"community-id": func() { buf = flow.AppendCommunityID(buf[:0], 0) },
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				one()
			}
		})
	}
}
