package export

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/netip"
	"strings"
	"testing"

	"github.com/pavise-project/pavise"
)

func TestNDJSON(t *testing.T) {
	b := new(bytes.Buffer)
	s := NewNDJSON(b)
	must(t, s.Flow(sampleFlow()))
	must(t, s.DNS(sampleDNS()))
	must(t, s.Flow(&pavise.Flow{Family: pavise.FamilyUnix}))
	if b.Len() != 0 {
		t.Error("nothing is held back")
	}
	must(t, s.Close())
	want := string(sampleFlow().AppendJSON(nil)) + "\n" + string(sampleDNS().AppendJSON(nil)) + "\n" + string((&pavise.Flow{Family: pavise.FamilyUnix}).AppendJSON(nil)) + "\n"
	if b.String() != want {
		t.Errorf("got  %s\nwant %s", b, want)
	}
}

// disk takes no more than it has room for.
type disk struct {
	bytes.Buffer
	room int
}

var errFull = errors.New("no space left on device")

func (d *disk) Write(b []byte) (int, error) {
	n := min(d.room, len(b))
	d.room -= n
	d.Buffer.Write(b[:n])
	if n < len(b) {
		return n, errFull
	}
	return n, nil
}

// TestFullDisk fills a disk at each byte of a file: what was written and what was lost is all that there was, and when there is room again no line is torn.
func TestFullDisk(t *testing.T) {
	small := func(id uint64) *pavise.Flow {
		return &pavise.Flow{ID: id, State: pavise.FlowClosed, Family: pavise.FamilyIPv4, Protocol: pavise.ProtocolUDP}
	}
	for name, open := range map[string]func(io.Writer) Sink{
		"ndjson": func(w io.Writer) Sink { return NewNDJSON(w) },
		"eve":    func(w io.Writer) Sink { return NewEVE(w, EVEOptions{}) },
		"zeek":   func(w io.Writer) Sink { return NewZeek(w, io.Discard, io.Discard, ZeekOptions{Now: now}) },
	} {
		t.Run(name, func(t *testing.T) {
			whole := new(disk)
			whole.room = 1 << 20
			s := open(whole)
			must(t, s.Flow(small(1)))
			must(t, s.Flow(small(2)))
			must(t, s.Close())
			for room := range whole.Len() {
				d := &disk{room: room}
				s := open(d)
				const given = 6
				lost := 0
				add := func(err error) {
					var l *LostError
					switch {
					case err == nil:
					case errors.As(err, &l) && errors.Is(err, errFull):
						lost += l.Records
					default:
						t.Fatal(err)
					}
				}
				for id := uint64(1); id <= 4; id += 2 { // the second pair finds the disk full as well
					add(s.Flow(small(id)))
					add(s.Flow(small(id + 1)))
					add(s.Flush())
				}
				d.room = 1 << 20
				add(s.Flow(small(5)))
				add(s.Flow(small(6)))
				add(s.Close())
				if got := d.String(); name == "zeek" {
					_, rows := readZeek(t, "conn", got)
					if len(rows)+lost != given {
						t.Fatalf("room for %d: %d lines and %d lost: %q", room, len(rows), lost, got)
					}
				} else {
					lines := strings.SplitAfter(got, "\n")
					if lines[len(lines)-1] != "" || len(lines)-1+lost != given {
						t.Fatalf("room for %d: %d lines and %d lost: %q", room, len(lines)-1, lost, got)
					}
					for _, line := range lines[:len(lines)-1] {
						if !json.Valid([]byte(line)) {
							t.Fatalf("room for %d: %q", room, line)
						}
					}
				}
			}
		})
	}
}

// TestBuffer holds that a sink does not hold back more than its buffer.
func TestBuffer(t *testing.T) {
	b := new(bytes.Buffer)
	s := NewNDJSON(b)
	n := 0
	for ; b.Len() == 0; n++ {
		must(t, s.Flow(sampleFlow()))
	}
	if b.Len() < bufferSize || b.Len() > bufferSize+4096 || n != bytes.Count(b.Bytes(), newline) {
		t.Errorf("%d bytes, %d of %d flows", b.Len(), bytes.Count(b.Bytes(), newline), n)
	}
}

// FuzzSinks gives flows and answers with any names and numbers to all sinks, and reads strictly what they make of them.
func FuzzSinks(f *testing.F) {
	f.Add("www.example.org", "/usr/bin/curl", "h2", []byte{192, 0, 2, 1}, uint64(77), int64(5), uint32(0x01020304))
	f.Add("\x1b[2J\xff\u009b", "\u2028\u202e\x00", "\"\\,-", bytes.Repeat([]byte{255}, 16), uint64(1)<<63, int64(-1), uint32(0xffffffff))
	f.Add(strings.Repeat("ä", 150), strings.Repeat("/x", 150), "-", []byte{}, uint64(6), int64(1)<<62, uint32(0))
	f.Add("(empty)", "-", "", []byte{0, 0, 0, 0}, uint64(12), int64(1e18), uint32(0x20601))
	f.Fuzz(func(t *testing.T, name, path, word string, addr []byte, n uint64, when int64, bits uint32) {
		a, _ := netip.AddrFromSlice(addr)
		p := &pavise.Process{
			PID: bits, Unknown: n%7 == 0, Exe: pavise.FileInfo{Path: path}, Args: []string{word, path, name}, User: pavise.User{ID: bits, Name: word}, Unit: name,
			Container: &pavise.Container{ID: path, Name: word}, Parent: &pavise.Process{Exe: pavise.FileInfo{Path: path}},
		}
		flow := &pavise.Flow{
			ID: n, Report: bits % 3, Time: when, Start: when - int64(bits), State: pavise.FlowState(bits % 4), End: pavise.FlowEnd(bits>>4) % 10, ResetBy: pavise.FlowEndpoint(bits>>2) % 4,
			Direction: pavise.FlowDirection(bits>>8) % 6, Found: n%2 == 0, Family: uint16(bits>>12) % 12, Type: uint8(bits>>16) % 4, Protocol: uint8(bits >> 20), NetNS: bits,
			Local: pavise.FlowSide{Address: a, Port: uint16(n), Name: name}, Remote: pavise.FlowSide{Address: a.WithZone(word), Name: name, AskedBy: path, Port: uint16(bits)},
			Sent: pavise.Traffic{Bytes: n, Packets: n >> 1}, Received: pavise.Traffic{Bytes: n >> 2, Packets: n}, SentNew: pavise.Traffic{Bytes: n}, ReceivedNew: pavise.Traffic{Packets: n},
			Others: n%5 == 0, Retransmits: bits, RTT: when, ConnectLatency: -when, Policy: name, Rule: word,
		}
		if bits%5 != 0 {
			flow.Family, flow.State = pavise.FamilyIPv6, pavise.FlowClosed
			if a.Is4() {
				flow.Family = pavise.FamilyIPv4
			}
			flow.Protocol = []uint8{6, 17, 1, 58, 132, 47}[n%6]
		}
		if n%3 != 0 {
			flow.Local.Process = p
		}
		if n%4 != 0 {
			flow.Remote.Process = p
			flow.ICMP = &pavise.ICMP{Type: uint8(n), Code: uint8(bits)}
			flow.TLS = &pavise.TLS{SNI: name, ALPN: []string{word, path}, Version: word, JA3: path, JA4: word, QUIC: n%4 == 1}
		}
		d := &pavise.DNS{
			Time: when, Flow: n, Client: flow.Local, Server: flow.Remote, Protocol: uint8(bits), ID: uint16(n), Query: name, Type: word, Code: path, Cut: n%2 == 0,
			Answers: []pavise.DNSRecord{{Name: name, Type: word, TTL: bits, Address: a, Target: path}, {Type: path, Target: word}},
		}
		give := func(s Sink) {
			for range 2 {
				for _, err := range []error{s.Flow(flow), s.DNS(d)} {
					if err != nil && !errors.Is(err, ErrNoPlace) {
						t.Fatal(err)
					}
				}
			}
			must(t, s.Close())
		}
		lines := func(b *bytes.Buffer) {
			for line := range bytes.Lines(b.Bytes()) {
				if !json.Valid(line) || !bytes.HasSuffix(line, newline) {
					t.Fatalf("%q", line)
				}
				checkText(t, string(bytes.TrimSuffix(line, newline)))
			}
		}
		b, conn, dns, ssl := new(bytes.Buffer), new(bytes.Buffer), new(bytes.Buffer), new(bytes.Buffer)
		give(NewNDJSON(b))
		give(NewEVE(b, EVEOptions{Host: name, DNS2: n%2 == 0}))
		give(NewZeek(b, b, b, ZeekOptions{Salt: name, JSON: true, Now: now}))
		lines(b)
		give(NewZeek(conn, dns, ssl, ZeekOptions{Salt: name, Now: now}))
		for path, log := range map[string]*bytes.Buffer{"conn": conn, "dns": dns, "ssl": ssl} {
			if log.Len() == 0 {
				continue
			}
			if _, rows := readZeek(t, path, log.String()); len(rows) != 2 {
				t.Fatalf("%s: %d rows: %q", path, len(rows), log)
			}
		}
		for _, o := range []IPFIXOptions{{Max: 512 + int(n%1000)}, {Stream: true}} {
			o.Now = now
			c := new(collector)
			s := NewIPFIX(c, o)
			give(s)
			(&decoder{max: s.o.Max}).all(t, c)
		}
	})
}

func BenchmarkSinks(b *testing.B) {
	f := sampleFlow()
	for _, c := range []struct {
		name string
		s    Sink
	}{
		{"ndjson", NewNDJSON(io.Discard)},
		{"eve", NewEVE(io.Discard, EVEOptions{})},
		{"zeek", NewZeek(io.Discard, io.Discard, io.Discard, ZeekOptions{})},
		{"ipfix", NewIPFIX(new(nowhere), IPFIXOptions{})},
	} {
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				must(b, c.s.Flow(f))
			}
		})
	}
}

type nowhere struct{ collector }

func (*nowhere) Write(b []byte) (int, error) { return len(b), nil }
