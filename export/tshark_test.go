package export

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/pavise-project/pavise"
)

// pcap is a capture of datagrams to a collector's port, of raw IPv4.
func pcap(messages [][]byte) []byte {
	be, le := binary.BigEndian, binary.LittleEndian
	b := le.AppendUint32(nil, 0xa1b2c3d4)
	b = le.AppendUint16(le.AppendUint16(b, 2), 4)
	b = le.AppendUint32(le.AppendUint32(le.AppendUint32(le.AppendUint32(b, 0), 0), 65535), 101)
	for i, m := range messages {
		n := 20 + 8 + len(m)
		b = le.AppendUint32(le.AppendUint32(b, uint32(at.Unix())), uint32(i))
		b = le.AppendUint32(le.AppendUint32(b, uint32(n)), uint32(n))
		ip := be.AppendUint16([]byte{0x45, 0}, uint16(n))
		ip = append(ip, 0, 0, 0, 0, 64, 17, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2)
		sum := uint32(0)
		for i := 0; i < len(ip); i += 2 {
			sum += uint32(be.Uint16(ip[i:]))
		}
		be.PutUint16(ip[10:], ^uint16(sum+sum>>16))
		b = append(b, ip...)
		b = be.AppendUint16(be.AppendUint16(b, 40000), 4739)
		b = be.AppendUint16(be.AppendUint16(b, uint16(8+len(m))), 0)
		b = append(b, m...)
	}
	return b
}

// TestIPFIXTshark has another's decoder read what is sent.
func TestIPFIXTshark(t *testing.T) {
	tshark, err := exec.LookPath("tshark")
	if err != nil {
		if testing.Short() {
			t.Skip("no tshark: make deps installs it")
		}
		t.Fatal("no tshark: make deps installs it")
	}
	inbound := sampleFlow()
	inbound.ID, inbound.State, inbound.End, inbound.Direction, inbound.Family, inbound.TLS = 78, pavise.FlowOpen, pavise.FlowNotEnded, pavise.FlowInbound, pavise.FamilyIPv6, nil
	inbound.Local.Address, inbound.Remote.Address = netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2")
	inbound.Remote.Process = &pavise.Process{PID: 4321, Exe: pavise.FileInfo{Path: "/usr/bin/wget"}, Args: []string{"wget"}, User: pavise.User{Name: "root"}}
	ping := &pavise.Flow{
		ID: 79, Time: at.UnixNano(), State: pavise.FlowClosed, End: pavise.FlowDone, Direction: pavise.FlowOutbound, Family: pavise.FamilyIPv4, Type: pavise.TypeDgram, Protocol: pavise.ProtocolICMP,
		Local: pavise.FlowSide{Address: netip.MustParseAddr("192.0.2.1"), Port: 5}, Remote: pavise.FlowSide{Address: netip.MustParseAddr("192.0.2.2")}, SentNew: pavise.Traffic{Bytes: 64, Packets: 1},
	}
	denied := sampleFlow()
	denied.End, denied.Local.Address = pavise.FlowDenied, netip.Addr{}
	c := new(collector)
	s := NewIPFIX(c, IPFIXOptions{Now: now})
	for _, f := range []*pavise.Flow{sampleFlow(), inbound, sampleFlow(), ping, denied} {
		must(t, s.Flow(f))
	}
	must(t, s.Flush())
	if len(c.messages) < 2 {
		t.Errorf("all in %d message", len(c.messages))
	}
	file := filepath.Join(t.TempDir(), "ipfix.pcap")
	must(t, os.WriteFile(file, pcap(c.messages), 0o600))
	// Names as they are for everybody, and not of this machine's settings.
	cmd := exec.Command(tshark, "-n", "-r", file, "-d", "udp.port==4739,cflow", "-T", "json", "--no-duplicate-keys")
	cmd.Env = []string{"HOME=" + t.TempDir(), "TZ=UTC"}
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if bytes.Contains(out, []byte("_ws.malformed")) || bytes.Contains(out, []byte("_ws.expert")) {
		t.Errorf("tshark finds something wrong: %s", out)
	}
	var packets []struct {
		Source struct {
			Layers struct {
				Cflow map[string]any `json:"cflow"`
			} `json:"layers"`
		} `json:"_source"`
	}
	must(t, json.Unmarshal(out, &packets))
	var flows []map[string]any
	for _, p := range packets {
		flows = append(flows, flowsOf(p.Source.Layers.Cflow)...)
	}
	if len(flows) != 5 {
		t.Fatalf("%d flows in %d packets: %s", len(flows), len(packets), out)
	}
	const ntop = "cflow.pie.ntop."
	for i, want := range []map[string]any{
		{
			"cflow.ip_version": "4", "cflow.srcaddr": "128.232.110.120", "cflow.dstaddr": "66.35.250.204", "cflow.srcport": "34855", "cflow.dstport": "443", "cflow.protocol": "6",
			"cflow.octets": []any{"200", "67890"}, "cflow.packets": []any{"2", "45"}, "cflow.flow_end_reason": "3", "cflow.direction": "1", "cflow.biflow_direction": "1", "cflow.flow_id": "77",
			ntop + "retransmitted_in_pkts": "3", ntop + "src_proc_id": "1234", ntop + "src_proc_name": "/usr/bin/curl", ntop + "src_proc_uid": "1000", ntop + "src_proc_user_name": "simone",
			ntop + "src_father_proc_pid": "1200", ntop + "src_father_proc_name": "/bin/bash", ntop + "ssl_server_name": "www.example.org", "cflow.timedelta": "1.123000000",
			ntop + "dst_proc_pid": nil, "cflow.srcaddrv6": nil,
		},
		{
			"cflow.ip_version": "6", "cflow.srcaddrv6": "2001:db8::2", "cflow.dstaddrv6": "2001:db8::1", "cflow.srcport": "443", "cflow.dstport": "34855",
			"cflow.octets": []any{"67890", "200"}, "cflow.packets": []any{"45", "2"}, "cflow.flow_end_reason": "2", "cflow.direction": "0", "cflow.biflow_direction": "1",
			ntop + "retransmitted_out_pkts": "3", ntop + "src_proc_id": "4321", ntop + "src_proc_name": "/usr/bin/wget", ntop + "src_proc_uid": "0", ntop + "src_proc_user_name": "root",
			ntop + "dst_proc_pid": "1234", ntop + "dst_proc_name": "/usr/bin/curl", ntop + "dst_proc_uid": "1000", ntop + "dst_proc_user_name": "simone",
			ntop + "dst_father_proc_pid": "1200", ntop + "dst_father_proc_name": "/bin/bash",
		},
		{"cflow.flow_id": "77"},
		{"cflow.protocol": "1", "cflow.icmp_type_code_ipv4": "0x0800", "cflow.srcport": nil, "cflow.octets": []any{"64", "0"}, ntop + "src_proc_id": nil},
		{"cflow.srcaddr": nil, "cflow.dstaddr": "66.35.250.204", "cflow.flow_end_reason": "4", "cflow.firewall_event": "3"},
	} {
		for key, w := range want {
			if got := flows[i][key]; !reflect.DeepEqual(got, w) {
				t.Errorf("flow %d: %s is %v, want %v", i, key, got, w)
			}
		}
	}
	// Those that this tshark has no name for come as bytes, in their order: FLOW_VERDICT, CMDLINE, CONTAINER_ID, DST_HOST_NAME, JA3, JA4 (SRC_HOST_NAME is empty).
	var texts []string
	for _, v := range flows[0]["cflow.enterprise_private_entry"].([]any) {
		b, err := hex.DecodeString(strings.ReplaceAll(v.(string), ":", ""))
		must(t, err)
		texts = append(texts, string(b))
	}
	for _, want := range []string{"\x00\x01", "curl https://www.example.org/a b", strings.Repeat("ab", 32), "www.example.org", strings.Repeat("0a", 16), "t13d1516h2_8daaf6152771_b186095e22b6"} {
		if !slices.Contains(texts, want) {
			t.Errorf("no %q in %q", want, texts)
		}
	}
}

// flowsOf are the records in what tshark says of one message, in their order.
func flowsOf(v map[string]any) (flows []map[string]any) {
	for _, key := range slices.Sorted(maps.Keys(v)) {
		m, ok := v[key].(map[string]any)
		switch {
		case ok && strings.HasPrefix(key, "Flow "):
			flows = append(flows, m)
		case ok:
			flows = append(flows, flowsOf(m)...)
		}
	}
	return flows
}
