package export

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/pavise-project/pavise"
)

func TestIPFIXRecord(t *testing.T) {
	c := new(collector)
	s := NewIPFIX(c, IPFIXOptions{Now: now, Domain: 9})
	f := sampleFlow()
	if err := s.Flow(f); err != nil || len(c.messages) != 0 {
		t.Fatal(err, len(c.messages))
	}
	if err := s.Flush(); err != nil {
		t.Fatal(err)
	}
	if got := c.deadline.Sub(at); got != time.Second {
		t.Errorf("a write may take %v", got)
	}
	if m := c.messages[0]; m[7] != byte(at.Unix()&0xff) || m[15] != 9 {
		t.Errorf("header %x", m[:16])
	}
	d := decoder{max: 1400}
	r := d.all(t, c)[0]
	for key, want := range map[string]uint64{
		"0/60": 4, "0/8": 0x80e86e78, "0/12": 0x4223facc, "0/7": 34855, "0/11": 443, "0/4": 6, "0/1": 200, "0/2": 2, "29305/1": 67890, "29305/2": 45,
		"0/152": 1767225600000, "0/153": 1767225601123, "0/136": 3, "0/61": 1, "0/239": 1, "0/148": 77, "35632/522": 1, "35632/109": 3,
		"35632/168": 1234, "35632/425": 1000, "35632/373": 1200,
	} {
		if got := r.number(key); got != want || r.values[key] == nil {
			t.Errorf("%s: got %d, want %d", key, got, want)
		}
	}
	for key, want := range map[string]string{
		"35632/169": "/usr/bin/curl", "35632/372": "simone", "35632/374": "/bin/bash", "35632/556": "curl https://www.example.org/a b", "35632/558": strings.Repeat("ab", 32),
		"35632/491": "", "35632/492": "www.example.org", "35632/188": "www.example.org", "35632/489": strings.Repeat("0a", 16), "35632/576": "t13d1516h2_8daaf6152771_b186095e22b6",
	} {
		if got := r.text(key); got != want || r.values[key] == nil {
			t.Errorf("%s: got %q, want %q", key, got, want)
		}
	}
	if len(r.values) != 31 {
		t.Errorf("%d elements: %v", len(r.values), r.order)
	}
}

// TestIPFIXDirections holds that the source is who began, and that each end has its process.
func TestIPFIXDirections(t *testing.T) {
	c := new(collector)
	s := NewIPFIX(c, IPFIXOptions{Now: now})
	inbound := sampleFlow()
	inbound.Direction = pavise.FlowInbound
	both := sampleFlow()
	both.Remote.Process = &pavise.Process{PID: 9, Unknown: true}
	none := sampleFlow()
	none.Direction, none.Local.Process, none.Local.Address = pavise.FlowUnknown, nil, netip.Addr{}
	none.End = pavise.FlowDenied
	for _, f := range []*pavise.Flow{inbound, both, none} {
		if err := s.Flow(f); err != nil {
			t.Fatal(err)
		}
	}
	must(t, s.Close())
	d := decoder{max: 1400}
	r := d.all(t, c)
	if r[0].number("0/8") != 0x4223facc || r[0].number("0/7") != 443 || r[0].number("0/1") != 67890 || r[0].number("29305/1") != 200 ||
		r[0].number("0/61") != 0 || r[0].number("0/239") != 1 || r[0].number("35632/110") != 3 || r[0].values["35632/109"] != nil {
		t.Errorf("inbound: %v", r[0])
	}
	if r[0].number("35632/375") != 1234 || r[0].text("35632/376") != "/usr/bin/curl" || r[0].values["35632/168"] != nil || r[0].text("35632/491") != "www.example.org" {
		t.Errorf("inbound: %v", r[0])
	}
	if r[1].number("35632/168") != 1234 || r[1].number("35632/375") != 9 || r[1].values["35632/426"] != nil {
		t.Errorf("both: %v", r[1])
	}
	if r[2].values["0/8"] != nil || r[2].number("0/12") == 0 || r[2].values["0/61"] != nil || r[2].number("0/239") != 0 || r[2].number("0/233") != 3 ||
		r[2].number("35632/522") != 2 || r[2].number("0/136") != 4 || r[2].values["35632/168"] != nil {
		t.Errorf("none: %v", r[2])
	}
	if r[0].values["0/233"] != nil {
		t.Error("a flow that was let through has a firewallEvent")
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestIPFIXNoPlace(t *testing.T) {
	c := new(collector)
	s := NewIPFIX(c, IPFIXOptions{Now: now})
	if err := s.Flow(&pavise.Flow{Family: pavise.FamilyUnix}); !errors.Is(err, ErrNoPlace) {
		t.Error(err)
	}
	if err := s.DNS(sampleDNS()); !errors.Is(err, ErrNoPlace) {
		t.Error(err)
	}
	quiet := sampleFlow()
	quiet.State, quiet.SentNew, quiet.ReceivedNew = pavise.FlowOpen, pavise.Traffic{}, pavise.Traffic{}
	must(t, s.Flow(quiet))
	must(t, s.Close())
	if len(c.messages) != 0 {
		t.Errorf("%x", c.messages)
	}
	quiet.Report = 0 // that it has begun is news
	must(t, s.Flow(quiet))
	must(t, s.Close())
	if len(c.messages) != 1 {
		t.Errorf("%x", c.messages)
	}
}

// TestIPFIXTemplates holds that a template goes before the first record that needs it, and over UDP again each minute.
func TestIPFIXTemplates(t *testing.T) {
	for _, stream := range []bool{false, true} {
		clock := at
		c := new(collector)
		s := NewIPFIX(c, IPFIXOptions{Now: func() time.Time { return clock }, Stream: stream})
		d := decoder{max: 16384}
		if !stream {
			d.max = 1400
		}
		count := func() int {
			d.announced = 0
			must(t, s.Flush())
			d.all(t, c)
			c.messages = nil
			return d.announced
		}
		inbound := sampleFlow()
		inbound.Direction = pavise.FlowInbound
		must(t, s.Flow(sampleFlow()))
		must(t, s.Flow(inbound))
		must(t, s.Flow(sampleFlow()))
		if n := count(); n != 2 {
			t.Errorf("stream %v: %d templates at first", stream, n)
		}
		clock = clock.Add(59 * time.Second)
		must(t, s.Flow(sampleFlow()))
		if n := count(); n != 0 {
			t.Errorf("stream %v: %d templates too early", stream, n)
		}
		clock = clock.Add(time.Second)
		must(t, s.Flow(sampleFlow()))
		want := 2
		if stream {
			want = 0
		}
		if n := count(); n != want {
			t.Errorf("stream %v: %d templates after a minute, want %d", stream, n, want)
		}
		clock = clock.Add(time.Minute)
		if n := count(); n != want { // without records too
			t.Errorf("stream %v: %d templates after two minutes, want %d", stream, n, want)
		}
		if d.seq != 5 {
			t.Errorf("sequence number %d", d.seq)
		}
	}
}

// TestIPFIXLost holds that a write that fails is an error with the number of records, that the sequence number shows it, and that the next one goes on.
func TestIPFIXLost(t *testing.T) {
	boom := errors.New("boom")
	lost := func(err error) int {
		var l *LostError
		if !errors.As(err, &l) {
			t.Fatalf("got %v", err)
		}
		return l.Records
	}
	c := &collector{fail: func([]byte) (int, error) { return 0, boom }}
	s := NewIPFIX(c, IPFIXOptions{Now: now})
	n := 0
	for range 10 {
		if err := s.Flow(sampleFlow()); err != nil {
			n += lost(err)
		}
	}
	err := s.Flush()
	if n += lost(err); n != 10 || !errors.Is(err, boom) {
		t.Errorf("%d lost, %v", n, err)
	}
	c.fail = nil
	must(t, s.Flow(sampleFlow()))
	must(t, s.Flush())
	d := decoder{max: 1400, seq: 10} // which sees that 10 did not come, and gets the template
	if r := d.all(t, c); len(r) != 1 {
		t.Errorf("%d records", len(r))
	}

	// Of a stream, a part may have been written: there is nothing to be sent behind it.
	c = &collector{fail: func(b []byte) (int, error) { return len(b) / 2, nil }}
	s = NewIPFIX(c, IPFIXOptions{Now: now, Stream: true})
	must(t, s.Flow(sampleFlow()))
	if err := s.Flush(); lost(err) != 1 || !errors.Is(err, io.ErrShortWrite) {
		t.Error(err)
	}
	c.fail = nil
	if err := s.Flow(sampleFlow()); lost(err) != 1 || !errors.Is(err, ErrBroken) {
		t.Error(err)
	}
	must(t, s.Flush())
	if len(c.messages) != 0 {
		t.Error("something was sent behind a part of a message")
	}
	must(t, s.Reconnect(c))
	must(t, s.Flow(sampleFlow()))
	must(t, s.Flush())
	d = decoder{max: 16384}
	if r := d.all(t, c); len(r) != 1 {
		t.Errorf("%d records", len(r))
	}
	must(t, s.Flow(sampleFlow()))
	if err := s.Reconnect(c); lost(err) != 1 {
		t.Error(err)
	}

	// While many are added to a stream that fails.
	c = &collector{fail: func([]byte) (int, error) { return 0, boom }}
	s = NewIPFIX(c, IPFIXOptions{Now: now, Stream: true, Max: 1400})
	n = 0
	for range 20 {
		if err := s.Flow(sampleFlow()); err != nil {
			n += lost(err)
		}
	}
	must(t, s.Flush())
	if n != 20 {
		t.Errorf("%d lost of 20", n)
	}
}

// TestIPFIXStalled holds that a collector that does not read is an error, and not waited for.
func TestIPFIXStalled(t *testing.T) {
	here, there := net.Pipe() // of which a write waits for a read
	defer here.Close()
	defer there.Close()
	s := NewIPFIX(here, IPFIXOptions{Stream: true, Timeout: time.Millisecond})
	must(t, s.Flow(sampleFlow()))
	var lost *LostError
	if err := s.Flush(); !errors.Is(err, os.ErrDeadlineExceeded) || !errors.As(err, &lost) || lost.Records != 1 {
		t.Errorf("got %v", err)
	}
	if err := s.Flow(sampleFlow()); !errors.Is(err, ErrBroken) {
		t.Errorf("got %v", err)
	}
}

// TestIPFIXLong holds that a record with too much in it is cut so that it fits into a datagram, and shows it.
func TestIPFIXLong(t *testing.T) {
	for _, size := range []int{512, 1400, 65535} {
		c := new(collector)
		s := NewIPFIX(c, IPFIXOptions{Now: now, Max: size})
		long := strings.Repeat("ä/", 2000)
		p := sampleProcess()
		p.Exe.Path, p.User.Name, p.Args, p.Container.ID, p.Parent.Exe.Path = "/"+long+"end", long, []string{long, "x\x1b", long}, long, long+"end"
		f := sampleFlow()
		f.Family, f.Local.Address, f.Remote.Address = pavise.FamilyIPv6, netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2")
		f.Local.Process, f.Remote.Process, f.Local.Name, f.Remote.Name = p, p, long, long
		f.TLS.SNI, f.TLS.JA3, f.TLS.JA4, f.End = long, long, long, pavise.FlowDenied
		for range 3 {
			must(t, s.Flow(f))
		}
		must(t, s.Flush())
		d := decoder{max: size}
		r := d.all(t, c)
		if len(r) != 3 {
			t.Fatalf("%d records", len(r))
		}
		fixed := 0
		for key, v := range r[0].values {
			switch s := string(v); key {
			case "35632/169", "35632/374", "35632/376", "35632/379":
				if !strings.HasPrefix(s, "…") || !strings.HasSuffix(s, "end") {
					t.Errorf("%s: %q", key, s)
				}
			case "35632/372", "35632/556", "35632/558", "35632/377", "35632/557", "35632/559", "35632/491", "35632/492", "35632/188", "35632/489", "35632/576":
				if !strings.HasPrefix(s, "ä/") || !strings.HasSuffix(s, "…") {
					t.Errorf("%s: %q", key, s)
				}
			default:
				fixed += len(v)
			}
		}
		if fixed+numTexts > fixedMax {
			t.Errorf("%d bytes beside the strings: more than fixedMax", fixed+numTexts)
		}
	}
}

func TestIPFIXEndReason(t *testing.T) {
	for end := range pavise.NumFlowEnds {
		f := &pavise.Flow{State: pavise.FlowClosed, End: end}
		want := map[pavise.FlowEnd]uint8{pavise.FlowNotEnded: 5, pavise.FlowTimedOut: 1, pavise.FlowDenied: 4, pavise.FlowCutOff: 4}[end]
		if want == 0 {
			want = 3
		}
		if got := endReason(f); got != want {
			t.Errorf("%v: got %d, want %d", end, got, want)
		}
	}
	if got := endReason(&pavise.Flow{}); got != activeTimeout {
		t.Error(got)
	}
}

// TestIPFIXShapes holds that each shape has a template of its own.
func TestIPFIXShapes(t *testing.T) {
	seen := map[uint16]shape{}
	for bits := range 64 {
		for ports := range portKinds {
			for direction := range uint8(3) {
				for source := range whoses {
					for destination := range whoses {
						h := shape{bits&1 != 0, bits&2 != 0, bits&4 != 0, bits&8 != 0, bits&16 != 0, bits&32 != 0, ports, direction, source, destination}
						id := h.template()
						if other, ok := seen[id]; ok || id < 256 {
							t.Errorf("%+v and %+v are both %d", h, other, id)
						}
						seen[id] = h
					}
				}
			}
		}
	}
}
