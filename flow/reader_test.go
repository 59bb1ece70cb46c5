package flow

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"

	"github.com/pavise-project/pavise"
)

// clientBytes are the hellos of testdata, whole, as one stream or as datagrams.
func clientBytes(t testing.TB, pattern string) [][][]byte {
	var all [][][]byte
	for _, c := range loadCases(t, pattern) {
		var pieces [][]byte
		for _, d := range c.pieces {
			pieces = append(pieces, d.Data)
		}
		all = append(all, pieces)
	}
	return all
}

func tlsPiece(seq int, data []byte) *pavise.FlowData {
	return &pavise.FlowData{Flow: 1, Kind: pavise.FlowDataTLS, Protocol: pavise.ProtocolTCP, Outgoing: true, Seq: uint32(seq), Data: data}
}

func quicPiece(seq int, data []byte) *pavise.FlowData {
	return &pavise.FlowData{Flow: 1, Kind: pavise.FlowDataQUIC, Protocol: pavise.ProtocolUDP, Outgoing: true, Seq: uint32(seq), Data: data}
}

// A hello is the same however it is split, and in whatever order its pieces come.
func TestHelloInPieces(t *testing.T) {
	for _, pieces := range clientBytes(t, "tls-clients.txt") {
		b := pieces[0]
		_, want := NewReader().Data(tlsPiece(0, b))
		if want == nil || want.Cut {
			t.Fatalf("%x: %+v", b, want)
		}
		check := func(what string, ps ...*pavise.FlowData) {
			t.Helper()
			r := NewReader()
			var got *pavise.TLS
			for _, p := range ps {
				if _, h := r.Data(p); h != nil {
					got = h
				}
			}
			if !reflect.DeepEqual(got, want) {
				t.Fatalf("%s: got %+v, want %+v; %v", what, got, want, r.Counters())
			}
		}
		for i := 1; i < len(b); i++ {
			check(fmt.Sprint("two, at ", i), tlsPiece(0, b[:i]), tlsPiece(i, b[i:]))
			check(fmt.Sprint("two, the second first, at ", i), tlsPiece(i, b[i:]), tlsPiece(0, b[:i]))
			j := 1 + i/2
			k := min(len(b), i+7)
			check(fmt.Sprint("three, one over the others, at ", j), tlsPiece(j, b[j:k]), tlsPiece(i, b[i:]), tlsPiece(0, b[:i]))
		}
		// Each beginning says something or nothing, and never what is not so.
		for i := range b {
			r := NewReader()
			d := tlsPiece(0, b[:i])
			d.Cut = true
			_, h := r.Data(d)
			if h == nil {
				h = r.Forget(1)
			}
			if h != nil && (!h.Cut || h.JA3 != "" || h.JA4 != "" || h.SNI != "" && h.SNI != want.SNI || len(h.ALPN) > 0 && !slices.Equal(h.ALPN, want.ALPN)) {
				t.Fatalf("the first %d bytes: %+v", i, h)
			}
		}
	}
}

// The datagrams of a real client in any order.
func TestDatagramsInAnyOrder(t *testing.T) {
	for i, pieces := range clientBytes(t, "quic-clients.txt") {
		var want *pavise.TLS
		for try := range 20 {
			order := rand.New(rand.NewPCG(1, uint64(try))).Perm(len(pieces))
			if try == 0 {
				slices.Sort(order)
			}
			r := NewReader()
			var got *pavise.TLS
			for _, j := range order {
				if _, h := r.Data(quicPiece(j, pieces[j])); h != nil {
					got = h
				}
			}
			if try == 0 {
				want = got
			}
			if got == nil || !reflect.DeepEqual(got, want) {
				t.Errorf("client %d, order %v: got %+v, want %+v; %v", i, order, got, want, r.Counters())
			}
		}
	}
}

// seal makes an Initial packet (or, with another kind, one that is passed over) as a client does.
func seal(k *initialKey, kind byte, dcid []byte, number uint32, frames []byte) []byte {
	if k.version == quicV2 {
		kind = (kind + 1) & 3
	}
	b := []byte{0xc3 | kind<<4}
	b = binary.BigEndian.AppendUint32(b, k.version)
	b = append(append(b, byte(len(dcid))), dcid...)
	b = append(b, 2, 0xaa, 0xbb)
	if kind = b[0] >> 4 & 3; k.version == quicV1 && kind == 0 || k.version == quicV2 && kind == 1 {
		b = append(b, 3, 't', 'o', 'k')
	}
	frames = append(slices.Clone(frames), make([]byte, max(0, 20-len(frames)))...)
	b = binary.BigEndian.AppendUint16(b, 0x4000|uint16(4+len(frames)+16))
	pn := len(b)
	b = binary.BigEndian.AppendUint32(b, number)
	nonce := k.iv
	binary.BigEndian.PutUint64(nonce[4:], binary.BigEndian.Uint64(nonce[4:])^uint64(number))
	b = k.aead.Seal(b, nonce[:], frames, b)
	var mask [16]byte
	k.hp.Encrypt(mask[:], b[pn+4:pn+20])
	b[0] ^= mask[0] & 0x0f
	for i := range 4 {
		b[pn+i] ^= mask[1+i]
	}
	return b
}

func crypto(off int, data []byte) []byte {
	b := []byte{6}
	b = binary.BigEndian.AppendUint32(b, 0x80000000|uint32(off))
	b = binary.BigEndian.AppendUint16(b, 0x4000|uint16(len(data)))
	return append(b, data...)
}

// sampleHello is a handshake message.
func sampleHello(t testing.TB) []byte {
	b, why := NewReader().unwrap(loadCases(t, "tls-clients.txt")[0].pieces[0].Data)
	if why != ReasonNone {
		t.Fatal(why)
	}
	return slices.Clone(b)
}

// The keys of RFC 9001, A.1, and RFC 9369, A.1.
func TestInitialKeys(t *testing.T) {
	dcid, _ := hex.DecodeString("8394c8f03e515708")
	for _, c := range []struct {
		version     uint32
		secret      string
		key, iv, hp string
	}{
		{quicV1, "c00cf151ca5be075ed0ebfb5c80323c42d6b7db67881289af4008f1f6c357aea", "1f369613dd76d5467730efcbe3b1a22d", "fa044b2f42a3fd3b46fb255c", "9f50449e04a0e810283a1e9933adedd2"},
		{quicV2, "14ec9d6eb9fd7af83bf5a668bc17a7e283766aade7ecd0891f70f9ff7f4bf47b", "8b1a0bc121284290a29e0971b5cd045d", "91f73e2351d8fa91660e909f", "45b95e15235d6f45a6b19cbcb0294ba9"},
	} {
		k := newInitialKey(c.version, dcid)
		if got := hex.EncodeToString(k.iv[:]); got != c.iv {
			t.Errorf("version %x: iv %s, want %s", c.version, got, c.iv)
		}
		secret, _ := hex.DecodeString(c.secret)
		label := map[uint32]string{quicV1: "quic ", quicV2: "quicv2 "}[c.version]
		if key, hp := hex.EncodeToString(expandLabel(secret, label+"key", 16)), hex.EncodeToString(expandLabel(secret, label+"hp", 16)); key != c.key || hp != c.hp {
			t.Errorf("version %x: key %s, hp %s, want %s, %s", c.version, key, hp, c.key, c.hp)
		}
	}
}

func TestQUIC(t *testing.T) {
	hello := sampleHello(t)
	first, later := []byte("\x83\x94\xc8\xf0\x3e\x51\x57\x08"), []byte("server")
	v1, v2 := newInitialKey(quicV1, first), newInitialKey(quicV2, first)
	retried := newInitialKey(quicV1, later)
	third, half := hello[:100], hello[100:300]
	rest := hello[300:]
	join := func(bs ...[]byte) []byte { return bytes.Join(bs, nil) }
	ack := []byte{2, 0x40, 0x20, 0, 1, 3, 0, 1} // ranges: one more
	ackECN := append([]byte{3, 5, 0, 0, 1}, 1, 2, 3)
	closed := []byte{0x1c, 0, 6, 3, 'b', 'y', 'e'}
	type datagram struct {
		data []byte
		in   bool
	}
	for _, c := range []struct {
		name    string
		pieces  []datagram
		refused string
		want    string // "whole", "cut" or nothing
	}{
		{"in one frame", []datagram{{data: seal(v1, 0, first, 0, crypto(0, hello))}}, "", "whole"},
		{"version 2", []datagram{{data: seal(v2, 0, first, 0, crypto(0, hello))}}, "", "whole"},
		{"frames in no order, with others between",
			[]datagram{{data: seal(v1, 0, first, 70000, join(crypto(300, rest), []byte{0, 1, 0}, crypto(0, third), ack, ackECN, closed, crypto(100, half)))}}, "", "whole"},
		{"two packets in one datagram, others between, zeros behind",
			[]datagram{{data: join(seal(v1, 0, first, 0, crypto(100, hello[100:])), seal(v1, 1, first, 0, nil), seal(v1, 2, first, 0, nil), seal(v1, 0, first, 1, crypto(0, third)), make([]byte, 99))}}, "", "whole"},
		{"two datagrams, an answer between, another connection ID",
			[]datagram{{data: seal(v1, 0, first, 0, crypto(0, third))}, {seal(retried, 0, []byte("xx"), 0, crypto(0, hello)), true}, {data: seal(v1, 0, later, 1, crypto(100, hello[100:]))}}, "", "whole"},
		{"a retry: another key", []datagram{{data: seal(v1, 0, first, 0, crypto(0, third))}, {data: seal(retried, 0, later, 1, crypto(100, hello[100:]))}}, "", "whole"},
		{"another version: the key of the first connection ID",
			[]datagram{{data: seal(v1, 0, first, 0, crypto(0, third))}, {data: seal(v2, 0, later, 1, crypto(100, hello[100:]))}}, "", "whole"},
		{"a piece is missing", []datagram{
			{data: seal(v1, 0, first, 0, crypto(0, third))}, {data: seal(v1, 0, first, 1, crypto(200, hello[200:]))},
			{data: seal(v1, 0, first, 2, []byte{1})}, {data: seal(v1, 0, first, 3, []byte{1})}}, "quic pieces 1 ", "cut"},
		{"the beginning is missing", []datagram{
			{data: seal(v1, 0, first, 0, crypto(300, rest))}, {data: seal(v1, 0, first, 1, []byte{1})},
			{data: seal(v1, 0, first, 2, []byte{1})}, {data: seal(v1, 0, first, 3, []byte{1})}}, "quic pieces 1 ", ""},
		{"the flow ends", []datagram{{data: seal(v1, 0, first, 0, crypto(0, hello[:400]))}}, "quic ended 1 ", "cut"},
		{"a hello too long", []datagram{{data: seal(v1, 0, first, 0, join(crypto(0, third), crypto(maxHello-1, []byte("ab"))))}}, "quic long 2 ", "cut"},
		{"an offset beyond all", []datagram{{data: seal(v1, 0, first, 0, append([]byte{6, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, 0))}}, "quic long 2 ", ""},
		{"a frame that may not be there", []datagram{{data: seal(v1, 0, first, 0, []byte{8, 1, 2, 3})}}, "quic frame 1 quic ended 1 ", ""},
		{"a frame that is too short", []datagram{{data: seal(v1, 0, first, 0, append(make([]byte, 20), 6, 0, 5, 'a'))}}, "quic frame 1 quic ended 1 ", ""},
		{"an ACK of too many", []datagram{{data: seal(v1, 0, first, 0, []byte{2, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0})}}, "quic frame 1 quic ended 1 ", ""},
		{"another handshake message", []datagram{{data: seal(v1, 0, first, 0, crypto(0, []byte{2, 0, 0, 9}))}}, "quic no-hello 1 ", ""},
	} {
		r := NewReader()
		var got *pavise.TLS
		for i, p := range c.pieces {
			d := quicPiece(i, p.data)
			d.Outgoing = !p.in
			if _, h := r.Data(d); h != nil {
				got = h
			}
		}
		if h := r.Forget(1); h != nil {
			got = h
		}
		refused := ""
		for why, n := range r.Counters().Refused[QUIC] {
			if n > 0 {
				refused += fmt.Sprintf("quic %s %d ", Reason(why), n)
			}
		}
		said := ""
		if got != nil {
			said = "whole"
			if got.Cut {
				said = "cut"
			}
			if !got.QUIC || !got.Cut && (got.SNI != "www.example.org" || got.JA4[0] != 'q') {
				t.Errorf("%s: %+v", c.name, got)
			}
		}
		if said != c.want || refused != c.refused {
			t.Errorf("%s: got %q and %q, want %q and %q", c.name, said, refused, c.want, c.refused)
		}
		if r.bytes != 0 {
			t.Errorf("%s: %d bytes are left", c.name, r.bytes)
		}
	}
}

// A ClientHello of more than is kept is given up, with what is known.
func TestLongHello(t *testing.T) {
	b := slices.Clone(loadCases(t, "tls-clients.txt")[0].pieces[0].Data)
	binary.BigEndian.PutUint16(b[3:], 1<<14)
	// The extensions go on, and the last of them, padding, is long.
	grow := 0x5000
	copy(b[6:], []byte{byte((len(b) - 9 + grow) >> 16), byte((len(b) - 9 + grow) >> 8), byte(len(b) - 9 + grow)})
	at := 5 + 4 + 2 + 32
	at += 1 + int(b[at])
	at += 2 + int(binary.BigEndian.Uint16(b[at:]))
	at += 1 + int(b[at])
	binary.BigEndian.PutUint16(b[at:], uint16(len(b)-at-2+grow))
	b = append(b, 0, 21, byte((grow-4)>>8), byte(grow-4))
	r := NewReader()
	if _, h := r.Data(tlsPiece(0, b)); h != nil {
		t.Fatal(h)
	}
	_, h := r.Data(tlsPiece(len(b), make([]byte, maxHello)))
	if h == nil || !h.Cut || h.SNI != "www.example.org" || r.Counters().Refused[TLS][ReasonLong] != 1 {
		t.Errorf("%+v, %v", h, r.Counters())
	}
}

// What is kept of half-read flows is bounded in number and in bytes, and what is pushed out is counted.
func TestReaderIsBounded(t *testing.T) {
	hello := loadCases(t, "tls-clients.txt")[0].pieces[0].Data
	r := NewReader()
	const flows = 3 * maxHalf
	for i := range flows {
		d := tlsPiece(0, hello[:100])
		d.Flow = uint64(i)
		r.Data(d)
		if len(r.flows.nodes) > maxHalf || r.bytes > maxHalfBytes {
			t.Fatalf("%d flows, %d bytes", len(r.flows.nodes), r.bytes)
		}
	}
	if got := r.Counters().Refused[TLS][ReasonPushedOut]; got != flows-maxHalf {
		t.Errorf("%d pushed out, want %d", got, flows-maxHalf)
	}
	d := tlsPiece(100, hello[100:])
	d.Flow = flows - 1
	if _, h := r.Data(d); h == nil || h.Cut {
		t.Errorf("the newest was not kept: %+v", h)
	}
	for i := range flows {
		r.Forget(uint64(i))
	}
	if len(r.flows.nodes) != 0 || r.bytes != 0 {
		t.Errorf("%d flows, %d bytes are left", len(r.flows.nodes), r.bytes)
	}

	// Streams of DNS that promise 64 KiB each.
	for i := range 1000 {
		d := &pavise.FlowData{Flow: uint64(i), Kind: pavise.FlowDataDNS, Protocol: pavise.ProtocolTCP, Data: append([]byte{0xff, 0xff}, make([]byte, 1000)...)}
		r.Data(d)
	}
	if r.bytes > maxHalfBytes || r.Counters().Refused[DNS][ReasonPushedOut] == 0 {
		t.Errorf("%d bytes, %d pushed out", r.bytes, r.Counters().Refused[DNS][ReasonPushedOut])
	}

	// Flows that were read keep only a mark.
	r = NewReader()
	for i := range flows {
		d := tlsPiece(0, hello)
		d.Flow = uint64(i)
		r.Data(d)
	}
	if c := r.Counters(); r.bytes != 0 || len(r.flows.nodes) > maxHalf || c.Read[TLS] != flows || c.Refused[TLS][ReasonPushedOut] != 0 {
		t.Errorf("%d flows, %d bytes, %v", len(r.flows.nodes), r.bytes, c)
	}
}

// What assembly keeps is what came first, whatever comes over it.
func TestAssembly(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		var a assembly
		want := make([]int, 64) // 0 where there is nothing
		for i := 1; i <= 1+rnd.IntN(12); i++ {
			off, n := rnd.IntN(48), rnd.IntN(16)
			if !a.add(uint64(off), bytes.Repeat([]byte{byte(i)}, n)) {
				t.Fatal("too long")
			}
			for j := off; j < off+n; j++ {
				if want[j] == 0 {
					want[j] = i
				}
			}
		}
		n := slices.Index(want, 0)
		start := a.start()
		if len(start) != n {
			t.Fatalf("%v: starts with %d bytes, want %d of %v", a.have, len(start), n, want)
		}
		have := 0
		for i, s := range a.have {
			have += s.to - s.from
			if s.from >= s.to || i > 0 && s.from <= a.have[i-1].to {
				t.Fatalf("%v", a.have)
			}
			for j := s.from; j < s.to; j++ {
				if int(a.buf[j]) != want[j] {
					t.Fatalf("byte %d is %d, want %v", j, a.buf[j], want)
				}
			}
		}
		for _, w := range want {
			if w != 0 {
				have--
			}
		}
		if have != 0 {
			t.Fatalf("%v: %d bytes too many", a.have, have)
		}
	}
}

// Messages come out of a stream the same however it is split.
func TestStreamInPieces(t *testing.T) {
	var b []byte
	n := 0
	for _, c := range loadCases(t, "dns-servers.txt") {
		for _, d := range c.pieces {
			if d.Protocol == pavise.ProtocolUDP {
				b = binary.BigEndian.AppendUint16(b, uint16(len(d.Data)))
				b = append(b, d.Data...)
				n++
			}
		}
	}
	for try := range 300 {
		rnd := rand.New(rand.NewPCG(3, uint64(try)))
		r := NewReader()
		got := 0
		seq := uint32(0)
		for at := 0; at < len(b); {
			size := min(len(b)-at, 1+rnd.IntN(1+rnd.IntN(700)))
			as, _ := r.Data(&pavise.FlowData{Flow: 1, Kind: pavise.FlowDataDNS, Protocol: pavise.ProtocolTCP, Seq: seq, Data: b[at : at+size]})
			for _, a := range as {
				if a.Cut != (a.ID == 0x100c) {
					t.Fatalf("%+v", a)
				}
			}
			got += len(as)
			at += size
			seq += uint32(size)
		}
		if c := r.Counters(); got != n || c.Refused != (Counters{}).Refused || len(r.flows.nodes) != 1 {
			t.Fatalf("try %d: %d of %d; %v", try, got, n, c)
		}
	}
}

// An offset wraps after 4 GiB.
func TestStreamWraps(t *testing.T) {
	var message []byte
	for _, d := range loadCases(t, "dns-made.txt")[0].pieces {
		message = append(binary.BigEndian.AppendUint16(nil, uint16(len(d.Data))), d.Data...)
	}
	r := NewReader()
	h := r.half(halfKey{1, pavise.FlowDataDNS, false})
	h.stream = stream{seen: true, next: 1<<32 - 10}
	piece := func(seq uint32, b []byte) int {
		as, _ := r.Data(&pavise.FlowData{Flow: 1, Kind: pavise.FlowDataDNS, Protocol: pavise.ProtocolTCP, Seq: seq, Data: b})
		return len(as)
	}
	if piece(1<<32-10, message[:10]) != 0 || piece(0, message[10:]) != 1 || r.Counters().Refused != (Counters{}).Refused {
		t.Errorf("%v", r.Counters())
	}
}
