package export

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/pavise-project/pavise"
)

// at is when all tests are.
var at = time.Date(2026, 1, 1, 0, 0, 10, 0, time.UTC)

func now() time.Time { return at }

// collector is a connection that keeps what is sent, each write by itself, until it fails.
type collector struct {
	messages [][]byte
	fail     func(b []byte) (int, error)
	deadline time.Time
}

func (c *collector) Write(b []byte) (int, error) {
	if c.fail != nil {
		if n, err := c.fail(b); err != nil || n < len(b) {
			return n, err
		}
	}
	c.messages = append(c.messages, bytes.Clone(b))
	return len(b), nil
}

func (c *collector) SetWriteDeadline(t time.Time) error {
	c.deadline = t
	return nil
}

// decoder reads IPFIX, and takes nothing that RFC 7011 does not allow.
type decoder struct {
	max       int
	templates map[uint16][]decoderField
	seq       uint32
	announced int // templates
}

type decoderField struct {
	pen    uint32
	id     uint16
	length uint16
}

// decoded is one record: the values by "pen/id".
type decoded struct {
	template uint16
	order    []string
	values   map[string][]byte
}

func (r *decoded) text(key string) string { return string(r.values[key]) }

func (r *decoded) number(key string) uint64 {
	var n uint64
	for _, c := range r.values[key] {
		n = n<<8 | uint64(c)
	}
	return n
}

func (d *decoder) message(b []byte) (records []decoded, err error) {
	if len(b) < 16 || len(b) > d.max {
		return nil, fmt.Errorf("%d bytes", len(b))
	}
	be := binary.BigEndian
	if v := be.Uint16(b); v != 10 {
		return nil, fmt.Errorf("version %d", v)
	}
	if n := be.Uint16(b[2:]); int(n) != len(b) {
		return nil, fmt.Errorf("says %d bytes, has %d", n, len(b))
	}
	if seq := be.Uint32(b[8:]); seq != d.seq {
		return nil, fmt.Errorf("sequence number %d, want %d", seq, d.seq)
	}
	if d.templates == nil {
		d.templates = map[uint16][]decoderField{}
	}
	if len(b) == 16 {
		return nil, errors.New("no set")
	}
	for b = b[16:]; len(b) > 0; {
		if len(b) < 4 {
			return nil, fmt.Errorf("%d bytes behind the last set", len(b))
		}
		id, n := be.Uint16(b), int(be.Uint16(b[2:]))
		if n <= 4 || n > len(b) {
			return nil, fmt.Errorf("set of %d bytes, in %d", n, len(b))
		}
		set := b[4:n]
		b = b[n:]
		switch {
		case id == 2:
			if err := d.set(set); err != nil {
				return nil, err
			}
			continue
		case d.templates[id] == nil:
			return nil, fmt.Errorf("set of template %d, which is not known", id)
		}
		for len(set) > 0 {
			r := decoded{template: id, values: map[string][]byte{}}
			for _, f := range d.templates[id] {
				n := int(f.length)
				if f.length == 65535 {
					if len(set) == 0 || set[0] == 255 {
						return nil, errors.New("length of a string is not there")
					}
					n, set = int(set[0]), set[1:]
				}
				if n > len(set) {
					return nil, fmt.Errorf("element %d/%d has %d bytes, in %d", f.pen, f.id, n, len(set))
				}
				key := fmt.Sprintf("%d/%d", f.pen, f.id)
				if _, ok := r.values[key]; ok {
					return nil, fmt.Errorf("element %s twice", key)
				}
				r.values[key] = set[:n]
				r.order = append(r.order, key)
				if f.length == 65535 {
					if !utf8.Valid(set[:n]) {
						return nil, fmt.Errorf("element %s is not UTF-8: %q", key, set[:n])
					}
					for _, c := range string(set[:n]) {
						if c < 0x20 || c == 0x7f || c > 0x7f && pavise.HostileRune(c) {
							return nil, fmt.Errorf("element %s has %U", key, c)
						}
					}
				}
				set = set[n:]
			}
			records = append(records, r)
			d.seq++
		}
	}
	return records, nil
}

func (d *decoder) set(b []byte) error {
	be := binary.BigEndian
	for len(b) > 0 {
		if len(b) < 4 {
			return errors.New("a part of a template")
		}
		id, n := be.Uint16(b), int(be.Uint16(b[2:]))
		if id < 256 || n == 0 {
			return fmt.Errorf("template %d of %d elements", id, n)
		}
		b = b[4:]
		var fields []decoderField
		for range n {
			if len(b) < 4 {
				return errors.New("a part of an element")
			}
			f := decoderField{id: be.Uint16(b), length: be.Uint16(b[2:])}
			b = b[4:]
			if f.id&0x8000 != 0 {
				if len(b) < 4 {
					return errors.New("an element without its enterprise")
				}
				f.id, f.pen = f.id&0x7fff, be.Uint32(b)
				b = b[4:]
			}
			fields = append(fields, f)
		}
		if old := d.templates[id]; old != nil && fmt.Sprint(old) != fmt.Sprint(fields) {
			return fmt.Errorf("template %d is another than before", id)
		}
		d.templates[id] = fields
		d.announced++
	}
	return nil
}

// all decodes what a collector got.
func (d *decoder) all(t *testing.T, c *collector) (records []decoded) {
	t.Helper()
	for i, m := range c.messages {
		r, err := d.message(m)
		if err != nil {
			t.Fatalf("message %d: %v: %x", i, err, m)
		}
		records = append(records, r...)
	}
	return records
}

func sampleProcess() *pavise.Process {
	return &pavise.Process{
		ExecID: 1<<63 + 77, PID: 1234, Exe: pavise.FileInfo{Path: "/usr/bin/curl"}, Args: []string{"curl", "https://www.example.org/a b"},
		User: pavise.User{ID: 1000, Name: "simone"}, Unit: "ssh.service", Container: &pavise.Container{ID: strings.Repeat("ab", 32), Name: "web"},
		ParentExecID: 5, Parent: &pavise.Process{ExecID: 5, PID: 1200, Exe: pavise.FileInfo{Path: "/bin/bash"}},
	}
}

func sampleFlow() *pavise.Flow {
	return &pavise.Flow{
		ID: 77, Report: 1, Time: 1767225601123456789, Start: 1767225600000000001, State: pavise.FlowClosed, End: pavise.FlowDone, Direction: pavise.FlowOutbound,
		Family: pavise.FamilyIPv4, Type: pavise.TypeStream, Protocol: pavise.ProtocolTCP, NetNS: 4026531992,
		Local:  pavise.FlowSide{Address: netip.MustParseAddr("128.232.110.120"), Port: 34855, ExecID: 1<<63 + 77, Process: sampleProcess()},
		Remote: pavise.FlowSide{Address: netip.MustParseAddr("66.35.250.204"), Port: 443, Name: "www.example.org", AskedBy: "/usr/bin/curl"},
		Sent:   pavise.Traffic{Bytes: 1200, Packets: 12}, Received: pavise.Traffic{Bytes: 34567890, Packets: 23000},
		SentNew: pavise.Traffic{Bytes: 200, Packets: 2}, ReceivedNew: pavise.Traffic{Bytes: 67890, Packets: 45},
		Retransmits: 3, RTT: 12345678, ConnectLatency: 850000,
		TLS: &pavise.TLS{SNI: "www.example.org", ALPN: []string{"h2", "http/1.1"}, Version: "1.3", Versions: []string{"1.3", "1.2"}, JA3: strings.Repeat("0a", 16), JA4: "t13d1516h2_8daaf6152771_b186095e22b6"},
	}
}

func sampleDNS() *pavise.DNS {
	return &pavise.DNS{
		Time: 1767225601123456789, Flow: 78, Protocol: pavise.ProtocolUDP, ID: 4711, Query: "www.example.org", Type: "A", Code: "NOERROR",
		Client: pavise.FlowSide{Address: netip.MustParseAddr("192.0.2.2"), Port: 40000, Process: sampleProcess()},
		Server: pavise.FlowSide{Address: netip.MustParseAddr("192.0.2.53"), Port: 53},
		Answers: []pavise.DNSRecord{
			{Name: "www.example.org", Type: "CNAME", TTL: 60, Target: "example.org"},
			{Name: "example.org", Type: "A", TTL: 300, Address: netip.MustParseAddr("66.35.250.204")},
		},
	}
}
