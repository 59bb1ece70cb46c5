package agent

import (
	"bufio"
	"encoding/json"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pavise-project/pavise"
)

func TestParseExport(t *testing.T) {
	for s, bad := range map[string]bool{
		"ndjson:/x/flows": false, "eve:/x": false, "zeek:/var/log/zeek": false, "ipfix:udp://192.0.2.1:4739": false, "ipfix:tcp://[2001:db8::1]:4739": false, "ipfix:tcp://collector:4739": false,
		"": true, "ndjson": true, "ndjson:": true, "ndjson:x": true, "csv:/x": true, "ipfix:192.0.2.1:4739": true, "ipfix:sctp://192.0.2.1:4739": true, "ipfix:udp://192.0.2.1": true, "ipfix:udp://:4739": true,
	} {
		x, err := ParseExport(s)
		if (err != nil) != bad || err == nil && x.String() != s {
			t.Errorf("%q: %v, %v", s, x, err)
		}
	}
}

// exported publishes flows to exports, and returns what became of these.
func exported(t *testing.T, n int, to ...Export) []ExportStatus {
	t.Helper()
	a := &Agent{cfg: Config{Exports: to}, log: slog.New(slog.DiscardHandler), hub: newHub(4, 4)}
	stop, err := a.startExports()
	if err != nil {
		t.Fatal(err)
	}
	for i := range n {
		for _, state := range []pavise.FlowState{pavise.FlowOpen, pavise.FlowClosed} {
			f := &pavise.Flow{
				ID: uint64(i + 1), Time: time.Now().UnixNano(), Start: time.Now().UnixNano(), State: state, Direction: pavise.FlowOutbound, Family: pavise.FamilyIPv4, Type: pavise.TypeStream, Protocol: pavise.ProtocolTCP,
				Local:  pavise.FlowSide{Address: netip.MustParseAddr("192.0.2.1"), Port: 1000},
				Remote: pavise.FlowSide{Address: netip.MustParseAddr("192.0.2.2"), Port: 443}, Sent: pavise.Traffic{Bytes: 10, Packets: 1}, SentNew: pavise.Traffic{Bytes: 10, Packets: 1},
			}
			a.hub.publishFlow(f.Event())
		}
	}
	a.hub.close()
	stop()
	return a.exportStatus()
}

func TestExports(t *testing.T) {
	dir := t.TempDir()
	collector, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer collector.Close()
	for _, s := range exported(t, 10, Export{"ndjson", dir + "/flows"}, Export{"eve", dir + "/eve"}, Export{"zeek", dir}, Export{"ipfix", "udp://" + collector.LocalAddr().String()}) {
		if s.Written != 10 || s.Lost != 0 || s.Error != "" {
			t.Errorf("%+v", s)
		}
	}
	for name, want := range map[string]int{"flows": 10, "eve": 10, "conn.log": 10} {
		f, err := os.Open(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if st, _ := f.Stat(); st.Mode().Perm() != 0o600 {
			t.Errorf("%s: mode %v", name, st.Mode())
		}
		n := 0
		for s := bufio.NewScanner(f); s.Scan(); {
			if strings.HasPrefix(s.Text(), "#") {
				continue
			}
			n++
			if name != "conn.log" && !json.Valid(s.Bytes()) {
				t.Errorf("%s: %s", name, s.Text())
			}
		}
		if n != want {
			t.Errorf("%s: %d lines, want %d", name, n, want)
		}
		f.Close()
	}
	var b [65536]byte
	_ = collector.SetReadDeadline(time.Now().Add(5 * time.Second))
	if n, _, err := collector.ReadFrom(b[:]); err != nil || n < 16 || b[1] != 10 {
		t.Errorf("the collector got %d bytes, version %d: %v", n, b[1], err)
	}
}

// What cannot be written is counted, and says why; a link that somebody left there is not followed.
func TestExportsFail(t *testing.T) {
	dir := t.TempDir()
	if err := os.Symlink(dir+"/secret", dir+"/link"); err != nil {
		t.Fatal(err)
	}
	for _, s := range exported(t, 3, Export{"ndjson", dir}, Export{"ndjson", dir + "/link"}, Export{"eve", "/dev/full"}, Export{"zeek", dir + "/missing"}, Export{"ipfix", "tcp://127.0.0.1:1"}) {
		if s.Written != 0 || s.Lost != 3 || s.Error == "" {
			t.Errorf("%+v", s)
		}
	}
	if _, err := os.Stat(dir + "/secret"); err == nil {
		t.Error("a link was followed")
	}
}
