package export

import (
	"bytes"
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"testing"

	"github.com/pavise-project/pavise"
)

// zeekTypes are what values of a type look like.
var zeekTypes = map[string]*regexp.Regexp{
	"time":             regexp.MustCompile(`^-?\d+\.\d{6}$`),
	"interval":         regexp.MustCompile(`^\d+\.\d{6}$`),
	"vector[interval]": regexp.MustCompile(`^\d+\.\d{6}(,\d+\.\d{6})*$`),
	"string":           regexp.MustCompile(`^([^\\]|\\x[0-9a-f]{2})+$`),
	"vector[string]":   regexp.MustCompile(`^([^\\]|\\x[0-9a-f]{2})+$`),
	"set[string]":      regexp.MustCompile(`^([^\\]|\\x[0-9a-f]{2})+$`),
	"addr":             regexp.MustCompile(`^[0-9a-f.:]+$`),
	"port":             regexp.MustCompile(`^\d{1,5}$`),
	"count":            regexp.MustCompile(`^\d+$`),
	"bool":             regexp.MustCompile(`^[TF]$`),
	"enum":             regexp.MustCompile(`^[a-z_]+$`),
}

// TestZeekHeader holds that the logs begin with the columns of Zeek 7's own, in their order (its testing/btest/Baseline), before those that scripts add.
func TestZeekHeader(t *testing.T) {
	for _, c := range []struct {
		columns             []zeekColumn
		fields, types, more string
	}{
		{zeekConn, "ts\tuid\tid.orig_h\tid.orig_p\tid.resp_h\tid.resp_p\tproto\tservice\tduration\torig_bytes\tresp_bytes\tconn_state\tlocal_orig\tlocal_resp\tmissed_bytes\thistory\torig_pkts\torig_ip_bytes\tresp_pkts\tresp_ip_bytes\ttunnel_parents\t",
			"time\tstring\taddr\tport\taddr\tport\tenum\tstring\tinterval\tcount\tcount\tstring\tbool\tbool\tcount\tstring\tcount\tcount\tcount\tcount\tset[string]\t", "community_id"},
		{zeekDNS, "ts\tuid\tid.orig_h\tid.orig_p\tid.resp_h\tid.resp_p\tproto\ttrans_id\trtt\tquery\tqclass\tqclass_name\tqtype\tqtype_name\trcode\trcode_name\tAA\tTC\tRD\tRA\tZ\tanswers\tTTLs\trejected\t",
			"time\tstring\taddr\tport\taddr\tport\tenum\tcount\tinterval\tstring\tcount\tstring\tcount\tstring\tcount\tstring\tbool\tbool\tbool\tbool\tcount\tvector[string]\tvector[interval]\tbool\t", "pavise.orig_pid"},
		{zeekSSL, "ts\tuid\tid.orig_h\tid.orig_p\tid.resp_h\tid.resp_p\tversion\tcipher\tcurve\tserver_name\tresumed\tlast_alert\tnext_protocol\testablished\tssl_history\tcert_chain_fps\tclient_cert_chain_fps\tsni_matches_cert\t",
			"time\tstring\taddr\tport\taddr\tport\tstring\tstring\tstring\tstring\tbool\tstring\tstring\tbool\tstring\tvector[string]\tvector[string]\tbool\t", "ja3"},
	} {
		l := zeekLog{path: "x", columns: c.columns, now: now}
		head := string(l.head(nil))
		if !strings.Contains(head, "\n#fields\t"+c.fields+c.more) || !strings.Contains(head, "\n#types\t"+c.types) {
			t.Errorf("%s\nwant %s\n%s", head, c.fields, c.types)
		}
	}
}

func TestZeekState(t *testing.T) {
	const tcp, udp = pavise.ProtocolTCP, pavise.ProtocolUDP
	some := pavise.Traffic{Bytes: 1, Packets: 1}
	for _, c := range []struct {
		f    pavise.Flow
		want string
	}{
		{pavise.Flow{Protocol: tcp, End: pavise.FlowDone}, "SF"},
		{pavise.Flow{Protocol: tcp, End: pavise.FlowDone, Found: true}, "OTH"},
		{pavise.Flow{Protocol: tcp, End: pavise.FlowRefused}, "REJ"},
		{pavise.Flow{Protocol: tcp, End: pavise.FlowReset}, ""},
		{pavise.Flow{Protocol: tcp, End: pavise.FlowReset, ResetBy: pavise.EndpointLocal, Direction: pavise.FlowOutbound}, "RSTO"},
		{pavise.Flow{Protocol: tcp, End: pavise.FlowReset, ResetBy: pavise.EndpointRemote, Direction: pavise.FlowOutbound}, "RSTR"},
		{pavise.Flow{Protocol: tcp, End: pavise.FlowReset, ResetBy: pavise.EndpointLocal, Direction: pavise.FlowInbound}, "RSTR"},
		{pavise.Flow{Protocol: tcp, End: pavise.FlowReset, ResetBy: pavise.EndpointRemote, Direction: pavise.FlowInbound}, "RSTO"},
		{pavise.Flow{Protocol: tcp, End: pavise.FlowTimedOut, Sent: pavise.Traffic{Packets: 3}}, "S0"},
		{pavise.Flow{Protocol: tcp, End: pavise.FlowTimedOut, ConnectLatency: 1}, "S1"},
		{pavise.Flow{Protocol: tcp, End: pavise.FlowUnreachable}, "S0"},
		{pavise.Flow{Protocol: tcp, End: pavise.FlowDenied, Direction: pavise.FlowOutbound}, "S0"},
		{pavise.Flow{Protocol: tcp, End: pavise.FlowDenied, Direction: pavise.FlowInbound}, "S0"},
		{pavise.Flow{Protocol: tcp, End: pavise.FlowCutOff, Direction: pavise.FlowInbound}, "S1"},
		{pavise.Flow{Protocol: tcp, End: pavise.FlowCutOff, Received: some}, "S1"},
		{pavise.Flow{Protocol: tcp, End: pavise.FlowNotEnded, Received: some}, "S1"},
		{pavise.Flow{Protocol: udp, End: pavise.FlowDone, Sent: some, Received: some}, "SF"},
		{pavise.Flow{Protocol: udp, End: pavise.FlowDone, Sent: some}, "S0"},
		{pavise.Flow{Protocol: udp, End: pavise.FlowDone, Received: some}, "SHR"},
		{pavise.Flow{Protocol: udp, End: pavise.FlowDone, Received: some, Direction: pavise.FlowInbound}, "S0"},
		{pavise.Flow{Protocol: udp, End: pavise.FlowDenied}, "OTH"},
		{pavise.Flow{Protocol: pavise.ProtocolICMP, End: pavise.FlowDone, Sent: some}, "OTH"},
	} {
		e := endsOf(&c.f)
		if got := zeekState(&c.f, &e); got != c.want {
			t.Errorf("%+v: got %q, want %q", c.f, got, c.want)
		}
	}
}

func TestZeekUID(t *testing.T) {
	uid := func(salt string, id uint64) string {
		s := NewZeek(nil, nil, nil, ZeekOptions{Salt: salt, JSON: true})
		l := &zeekLog{columns: zeekID[1:2], json: true}
		l.begin()
		s.uid(l, id)
		return strings.TrimSuffix(strings.TrimPrefix(string(l.b[l.row:]), `{"uid":"`), `"`)
	}
	form := regexp.MustCompile(`^C[0-9A-Za-z]{17}$`)
	seen := map[string]string{}
	for _, salt := range []string{"a", "b"} {
		for id := uint64(1); id < 2000; id++ {
			for _, id := range []uint64{id, 1<<63 | id} {
				u, key := uid(salt, id), fmt.Sprint(salt, id)
				if !form.MatchString(u) {
					t.Fatalf("%s: %q", key, u)
				}
				if other := seen[u]; other != "" {
					t.Fatalf("%s and %s are both %s", key, other, u)
				}
				seen[u] = key
			}
		}
	}
	if got := uid("a", 5); seen[got] != "a5" {
		t.Errorf("not stable: %s", got)
	}
	if got := uid("a", 0); got != "{" {
		t.Errorf("the uid of no flow is %s", got)
	}
}

// TestZeekEscapes holds the escapes of Zeek's ASCII writer: what is written can be taken back, byte by byte, and is never another field, row or value.
func TestZeekEscapes(t *testing.T) {
	for s, want := range map[string]string{
		"plain é": "plain é", "a\tb\nc": `a\x09b\x0ac`, "\x1b[2J\x00": `\x1b[2J\x00`, `a\b`: `a\x5cb`, "\xff\xfe": `\xff\xfe`, "\u202e\u009b": `\xe2\x80\xae\xc2\x9b`,
		"-": `\x2d`, "--": "--", "(empty)": `\x28empty)`, "a,b": "a,b", "#close": "#close",
	} {
		l := zeekLog{}
		l.value(s, false)
		if got := string(l.b); got != want {
			t.Errorf("%q: got %s, want %s", s, got, want)
		}
	}
	l := zeekLog{columns: []zeekColumn{{"x", "vector[string]"}}}
	l.texts([]string{"a,b", "", "-"})
	if got := string(l.b); got != `a\x2cb,(empty),\x2d` {
		t.Errorf("got %s", got)
	}
}

// TestZeekJSON holds that lines of JSON have the same as the columns.
func TestZeekJSON(t *testing.T) {
	conn, dns, ssl := new(bytes.Buffer), new(bytes.Buffer), new(bytes.Buffer)
	s := NewZeek(conn, dns, ssl, ZeekOptions{Salt: "host", JSON: true, Now: now})
	must(t, s.Flow(sampleFlow()))
	must(t, s.DNS(sampleDNS()))
	must(t, s.Close())
	for _, c := range []struct {
		log  *bytes.Buffer
		want string
	}{
		{conn, `{"ts":1767225600.000000,"uid":"C01mnoGKAndYJimWH2","id.orig_h":"128.232.110.120","id.orig_p":34855,"id.resp_h":"66.35.250.204","id.resp_p":443,"proto":"tcp","service":"ssl","duration":1.123456,"orig_bytes":1200,"resp_bytes":34567890,"conn_state":"SF","missed_bytes":0,"orig_pkts":12,"resp_pkts":23000,` +
			`"community_id":"1:X6hKbxFFGCghwOEHDPRZXDinC10=","pavise.orig_pid":1234,"pavise.orig_exe":"/usr/bin/curl","pavise.orig_uid":1000,"pavise.orig_user":"simone","pavise.orig_unit":"ssh.service","pavise.orig_container":"web","pavise.name":"www.example.org","pavise.end":"closed"}`},
		{dns, `{"ts":1767225601.123456,"uid":"C0OZ0N5Ni30BL94xtd","id.orig_h":"192.0.2.2","id.orig_p":40000,"id.resp_h":"192.0.2.53","id.resp_p":53,"proto":"udp","trans_id":4711,"query":"www.example.org","qtype":1,"qtype_name":"A","rcode":0,"rcode_name":"NOERROR","TC":false,"answers":["example.org","66.35.250.204"],"TTLs":[60.000000,300.000000],` +
			`"pavise.orig_pid":1234,"pavise.orig_exe":"/usr/bin/curl","pavise.orig_uid":1000,"pavise.orig_user":"simone","pavise.orig_unit":"ssh.service","pavise.orig_container":"web"}`},
		{ssl, `{"ts":1767225600.000000,"uid":"C01mnoGKAndYJimWH2","id.orig_h":"128.232.110.120","id.orig_p":34855,"id.resp_h":"66.35.250.204","id.resp_p":443,"server_name":"www.example.org","ja3":"0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a","ja4":"t13d1516h2_8daaf6152771_b186095e22b6","pavise.quic":false,"pavise.encrypted":false,"pavise.truncated":false,"pavise.alpn":["h2","http/1.1"],"pavise.versions":["1.3","1.2"]}`},
	} {
		got := strings.TrimSuffix(c.log.String(), "\n")
		var v map[string]any
		must(t, json.Unmarshal([]byte(got), &v))
		if got != c.want {
			t.Errorf("got  %s\nwant %s", got, c.want)
		}
	}
}

func TestZeekNothing(t *testing.T) {
	conn := new(bytes.Buffer)
	s := NewZeek(conn, conn, conn, ZeekOptions{Now: now})
	open := sampleFlow()
	open.State = pavise.FlowOpen
	must(t, s.Flow(open))
	if err := s.Flow(&pavise.Flow{Family: pavise.FamilyUnix}); err != ErrNoPlace { //nolint:errorlint // itself
		t.Error(err)
	}
	must(t, s.Close())
	if conn.Len() != 0 {
		t.Errorf("%q", conn)
	}
}
