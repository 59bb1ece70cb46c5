package main

import (
	"encoding/json"
	"encoding/xml"
	"errors"
	"io"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/pavise-project/pavise"
)

func flowEvent(p *pavise.Process, d pavise.FlowDirection, local, remote string, change func(*pavise.Flow)) *pavise.Event {
	side := func(s string) pavise.FlowSide {
		ap := netip.MustParseAddrPort(s)
		return pavise.FlowSide{Address: ap.Addr(), Port: ap.Port()}
	}
	f := &pavise.Flow{
		Direction: d, Family: pavise.FamilyIPv4, Type: pavise.TypeStream, Protocol: pavise.ProtocolTCP, Local: side(local), Remote: side(remote),
		Sent: pavise.Traffic{Bytes: 1000}, Received: pavise.Traffic{Bytes: 3000},
	}
	f.Local.Process = p
	if change != nil {
		change(f)
	}
	return f.Event()
}

func mapOfTest() *flowMap {
	web := &pavise.Process{Exe: pavise.FileInfo{Path: "/usr/sbin/nginx"}, Unit: "nginx.service"}
	app := &pavise.Process{Exe: pavise.FileInfo{Path: "/opt/app"}, Container: &pavise.Container{ID: strings.Repeat("ab", 32), Name: "app", Runtime: "docker"}}
	evil := &pavise.Process{Exe: pavise.FileInfo{Path: "/tmp/\"x\\\x1b[2J<y>"}}
	return newFlowMap([]*pavise.Event{
		flowEvent(web, pavise.FlowInbound, "10.0.0.1:443", "203.0.113.9:50000", nil),
		flowEvent(web, pavise.FlowInbound, "10.0.0.1:443", "203.0.113.9:50001", nil),
		// One connection, told by both of its ends.
		flowEvent(web, pavise.FlowOutbound, "10.0.0.1:40000", "10.0.0.2:8080", func(f *pavise.Flow) { f.Remote.Process = app }),
		flowEvent(app, pavise.FlowInbound, "10.0.0.2:8080", "10.0.0.1:40000", func(f *pavise.Flow) { f.Remote.Process = web }),
		flowEvent(app, pavise.FlowOutbound, "10.0.0.2:40000", "10.0.0.3:5432", func(f *pavise.Flow) { f.Remote.Name = "db.internal" }),
		flowEvent(evil, pavise.FlowOutbound, "10.0.0.1:41000", "198.51.100.1:4444", func(f *pavise.Flow) {
			f.End, f.Sent, f.Received = pavise.FlowDenied, pavise.Traffic{}, pavise.Traffic{}
		}),
	})
}

func TestFlowMapText(t *testing.T) {
	var b strings.Builder
	if err := mapOfTest().write(&b, "text"); err != nil {
		t.Fatal(err)
	}
	want := `/tmp/"x\\x1b[2J<y> (program)
  -> 198.51.100.1  tcp/4444 ×1 1 denied
203.0.113.9 (address)
  -> nginx.service  tcp/443 ×2 5.9 KiB/2.0 KiB
docker:app (container)
  -> db.internal  tcp/5432 ×1 1000 B/2.9 KiB
nginx.service (unit)
  -> docker:app  tcp/8080 ×1 1000 B/2.9 KiB
`
	if d := cmp.Diff(want, b.String()); d != "" {
		t.Error(d)
	}
}

func TestFlowMapForms(t *testing.T) {
	m := mapOfTest()
	for form, check := range map[string]func(string) error{
		"json": func(s string) error { return json.Unmarshal([]byte(s), new(flowMap)) },
		"svg": func(s string) error {
			d := xml.NewDecoder(strings.NewReader(s))
			for {
				if _, err := d.Token(); errors.Is(err, io.EOF) {
					return nil
				} else if err != nil {
					return err
				}
			}
		},
		"dot": func(s string) error {
			if n := strings.Count(strings.NewReplacer(`\\`, "", `\"`, "").Replace(s), `"`); n%2 != 0 {
				return errors.New("a quote is open")
			}
			return nil
		},
	} {
		for _, m := range []*flowMap{m, newFlowMap(nil)} {
			var b strings.Builder
			if err := m.write(&b, form); err != nil {
				t.Fatal(err)
			}
			if err := check(b.String()); err != nil {
				t.Errorf("%s: %v\n%s", form, err, b.String())
			}
			if strings.Contains(b.String(), "\x1b") {
				t.Errorf("%s: an escape sequence of a name came through", form)
			}
			if len(m.Nodes) > 0 {
				for _, want := range []string{"nginx.service", "docker:app", "db.internal"} {
					if !strings.Contains(b.String(), want) {
						t.Errorf("%s: no %s\n%s", form, want, b.String())
					}
				}
			}
		}
	}
}

// Circles and chains end.
func TestFlowMapColumns(t *testing.T) {
	m := &flowMap{}
	for i := range 20 {
		m.Nodes = append(m.Nodes, &mapNode{ID: i, Name: "n"})
		m.Edges = append(m.Edges, &mapEdge{From: i, To: (i + 1) % 20})
	}
	for _, c := range m.columns() {
		if c < 0 || c > 5 {
			t.Errorf("column %d", c)
		}
	}
}
