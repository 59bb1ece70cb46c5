package flow

import (
	"bytes"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pavise-project/pavise"
)

// harmless tells that text has nothing but printable ASCII.
func harmless(t *testing.T, texts ...string) {
	t.Helper()
	for _, s := range texts {
		if strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' }) {
			t.Fatalf("not harmless: %q", s)
		}
	}
}

// FuzzDNS: no message makes the parser or Names panic, names are harmless text of at most 255 bytes, and each answer or reason is counted.
func FuzzDNS(f *testing.F) {
	for _, file := range []string{"dns-made.txt", "dns-servers.txt"} {
		for _, c := range loadCases(f, file) {
			for _, d := range c.pieces {
				f.Add(d.Data, d.Cut)
			}
		}
	}
	f.Fuzz(func(t *testing.T, data []byte, cut bool) {
		if len(data) > 1<<16 {
			return
		}
		d, why := parseDNS(data, cut)
		if d == nil && why == ReasonNone || d != nil && why != ReasonNone && !d.Cut || why == ReasonCut && !cut {
			t.Fatalf("%+v, %s", d, why)
		}
		if d == nil {
			return
		}
		if len(d.Answers) > maxRecords {
			t.Fatalf("%d records", len(d.Answers))
		}
		check := func(name string) {
			harmless(t, name)
			if n := len(name) - 3*strings.Count(name, `\`); n > 253 {
				t.Fatalf("a name of %d bytes: %q", n, name)
			}
		}
		check(d.Query)
		for _, r := range d.Answers {
			check(r.Name)
			check(r.Target)
			harmless(t, r.ALPN...)
		}
		n := NewNames(100, 1<<16)
		n.Learn(d, "/x", time.Second)
		n.Learn(d, "/x", 0)
		for _, tie := range Ties(d) {
			if name, ok := n.Lookup(0, tie.Address, "/x", time.Second); ok && (!name.Live || len(name.Chain) > maxChain+1) {
				t.Fatalf("%+v", name)
			}
		}
		if s := n.Stats(); s.Addresses > 100 {
			t.Fatalf("%+v", s)
		}
	})
}

// FuzzDNSStream: a stream gives the same answers however it is split, and Forget leaves nothing.
func FuzzDNSStream(f *testing.F) {
	for _, file := range []string{"dns-made.txt", "dns-servers.txt"} {
		for _, c := range loadCases(f, file) {
			var b []byte
			for _, d := range c.pieces {
				if d.Protocol == pavise.ProtocolUDP {
					b = append(b, byte(len(d.Data)>>8), byte(len(d.Data)))
				}
				b = append(b, d.Data...)
			}
			f.Add(b, uint16(len(b)/2), uint16(len(b)/3))
		}
	}
	f.Fuzz(func(t *testing.T, data []byte, i, j uint16) {
		run := func(cuts ...int) ([]*pavise.DNS, Counters) {
			r := NewReader()
			var all []*pavise.DNS
			at := 0
			for _, to := range append(cuts, len(data)) {
				as, _ := r.Data(&pavise.FlowData{Flow: 1, Kind: pavise.FlowDataDNS, Protocol: pavise.ProtocolTCP, Seq: uint32(at), Data: bytes.Clone(data[at:to])})
				all = append(all, as...)
				at = to
			}
			c := r.Counters()
			r.Forget(1)
			if len(r.flows.nodes) != 0 || r.bytes != 0 {
				t.Fatalf("%d flows with %d bytes are left", len(r.flows.nodes), r.bytes)
			}
			return all, c
		}
		cuts := []int{min(int(i), len(data)), min(int(j), len(data))}
		slices.Sort(cuts)
		want, wantCounts := run()
		got, counts := run(cuts...)
		if !reflect.DeepEqual(got, want) || counts != wantCounts {
			t.Fatalf("split at %v: %d answers, %v; whole: %d, %v", cuts, len(got), counts, len(want), wantCounts)
		}
		// With a hole, anything but a panic.
		r := NewReader()
		for k, b := range [][]byte{data[:cuts[0]], data[cuts[1]:], data} {
			r.Data(&pavise.FlowData{Flow: 1, Kind: pavise.FlowDataDNS, Protocol: pavise.ProtocolTCP, Seq: uint32(k * cuts[1]), Cut: k == 0, Data: b})
		}
	})
}

// FuzzHello: a stream gives the same hello in one piece and in two, and Forget leaves nothing.
func FuzzHello(f *testing.F) {
	for _, file := range []string{"tls-made.txt", "tls-clients.txt"} {
		for _, c := range loadCases(f, file) {
			f.Add(c.pieces[0].Data, uint16(50))
		}
	}
	f.Fuzz(func(t *testing.T, data []byte, i uint16) {
		if len(data) > maxHello {
			return
		}
		at := min(int(i), len(data))
		run := func(ps ...*pavise.FlowData) *pavise.TLS {
			r := NewReader()
			var got *pavise.TLS
			for _, p := range ps {
				if _, h := r.Data(p); h != nil {
					got = h
				}
			}
			if h := r.Forget(1); h != nil {
				got = h
			}
			if len(r.flows.nodes) != 0 || r.bytes != 0 {
				t.Fatalf("%d flows with %d bytes are left", len(r.flows.nodes), r.bytes)
			}
			if got != nil {
				harmless(t, got.SNI)
				harmless(t, got.ALPN...)
				if got.Cut != (got.JA4 == "") || got.Cut != (got.JA3 == "") {
					t.Fatalf("%+v", got)
				}
			}
			return got
		}
		want := run(tlsPiece(0, data))
		if got := run(tlsPiece(0, data[:at]), tlsPiece(at, data[at:])); !reflect.DeepEqual(got, want) {
			t.Fatalf("split at %d: %+v, whole: %+v", at, got, want)
		}
	})
}

// FuzzQUIC: datagrams as they come.
func FuzzQUIC(f *testing.F) {
	for _, file := range []string{"quic-made.txt", "quic-clients.txt"} {
		for _, c := range loadCases(f, file) {
			f.Add(c.pieces[0].Data, c.pieces[len(c.pieces)-1].Data)
		}
	}
	f.Fuzz(func(t *testing.T, first, second []byte) {
		fuzzDatagrams(t, first, second)
	})
}

// FuzzQUICFrames: what a client has encrypted is no more to be trusted than the rest.
func FuzzQUICFrames(f *testing.F) {
	dcid := []byte("12345678")
	k := newInitialKey(quicV1, dcid)
	hello := sampleHello(f)
	f.Add(crypto(0, hello), []byte{1})
	f.Add(crypto(0, hello[:99]), crypto(99, hello[99:]))
	f.Add(crypto(50, hello[50:]), append([]byte{2, 1, 1, 0, 1}, crypto(0, hello[:80])...))
	f.Fuzz(func(t *testing.T, first, second []byte) {
		if len(first) > 1500 || len(second) > 1500 {
			return
		}
		fuzzDatagrams(t, seal(k, 0, dcid, 0, first), seal(k, 0, dcid, 1, second))
	})
}

func fuzzDatagrams(t *testing.T, datagrams ...[]byte) {
	r := NewReader()
	for i, b := range datagrams {
		before := bytes.Clone(b)
		if _, h := r.Data(quicPiece(i, b)); h != nil {
			harmless(t, h.SNI)
			harmless(t, h.ALPN...)
			if !h.QUIC || h.Cut != (h.JA4 == "") {
				t.Fatalf("%+v", h)
			}
		}
		if !bytes.Equal(before, b) {
			t.Fatal("the datagram was written to")
		}
	}
	r.Forget(1)
	if len(r.flows.nodes) != 0 || r.bytes != 0 {
		t.Fatalf("%d flows with %d bytes are left", len(r.flows.nodes), r.bytes)
	}
}
