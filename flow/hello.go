package flow

import (
	"fmt"
	"slices"
	"strconv"

	"github.com/pavise-project/pavise"
)

// maxHello bounds the bytes kept of a ClientHello. Those of today's browsers have some 1,800.
const maxHello = 16 << 10

// The extensions that are read.
const (
	extServerName   = 0
	extGroups       = 10
	extPointFormats = 11
	extSignatures   = 13
	extALPN         = 16
	extVersions     = 43
	extECH          = 0xfe0d
)

// hello is what a ClientHello (RFC 8446, 4.1.2) has in it, GREASE left out.
type hello struct {
	version    uint16 // the field of old: 1.2 at most
	ciphers    []uint16
	extensions []uint16
	groups     []uint16
	points     []byte
	signatures []uint16
	alpn       []input
	versions   []uint16
	sni        input
	hasSNI     bool
	encrypted  bool
}

// clear makes h empty, and keeps its memory.
func (h *hello) clear() {
	*h = hello{
		ciphers: h.ciphers[:0], extensions: h.extensions[:0], groups: h.groups[:0], points: h.points[:0], signatures: h.signatures[:0],
		alpn: h.alpn[:0], versions: h.versions[:0],
	}
}

// grease tells a value that is there to be ignored (RFC 8701).
func grease(v uint16) bool { return v&0x0f0f == 0x0a0a && v>>8 == v&0xff }

// handshakeSize returns how long the handshake message is that b begins, its four bytes included; 0 where that is not known yet.
func handshakeSize(b []byte) (int, Reason) {
	if len(b) > 0 && b[0] != 1 {
		return 0, ReasonNoHello
	}
	if len(b) < 4 {
		return 0, ReasonNone
	}
	n := 4 + int(b[1])<<16 + int(b[2])<<8 + int(b[3])
	if n < 4+2+32+1+2+1 { // what no ClientHello is shorter than
		return 0, ReasonMalformed
	}
	return n, ReasonNone
}

// parseHello reads a ClientHello from its handshake message. Where data ends before the message does, h has what stands before that, and the reason is
// ReasonShort.
func parseHello(h *hello, data []byte) Reason {
	h.clear()
	n, why := handshakeSize(data)
	if why != ReasonNone {
		return why
	}
	if n == 0 {
		return ReasonShort
	}
	whole := n <= len(data)
	missing := max(n-len(data), 0)
	lacking := ReasonMalformed // what it means that a length is longer than what is left
	if !whole {
		lacking = ReasonShort
	}
	in := input(data[4:min(n, len(data))])
	var ok bool
	if h.version, ok = in.u16(); !ok {
		return lacking
	}
	if _, ok = in.take(32); !ok {
		return lacking
	}
	if _, ok = in.block8(); !ok { // session
		return lacking
	}
	b, ok := in.block16()
	if !ok {
		return lacking
	}
	if h.ciphers, ok = numbers(h.ciphers, b); !ok {
		return ReasonMalformed
	}
	if _, ok = in.block8(); !ok { // compression
		return lacking
	}
	if len(in) == 0 { // before TLS 1.2 there may be none
		if !whole {
			return ReasonShort
		}
		return ReasonNone
	}
	size, ok := in.u16()
	if !ok {
		return lacking
	}
	if int(size) != len(in)+missing {
		return ReasonMalformed
	}
	for len(in) > 0 {
		kind, _ := in.u16()
		b, ok := in.block16()
		if !ok {
			return lacking
		}
		if grease(kind) {
			continue
		}
		h.extensions = append(h.extensions, kind)
		if !h.extension(kind, b) {
			return ReasonMalformed
		}
	}
	if !whole {
		return ReasonShort
	}
	return ReasonNone
}

// extension reads one; a kind that it does not know is well.
func (h *hello) extension(kind uint16, b input) bool {
	ok := true
	switch kind {
	case extServerName:
		list, whole := b.block16()
		h.hasSNI = true
		ok = whole && len(b) == 0
		for ok && len(list) > 0 {
			var name input
			t, _ := list.u8()
			if name, ok = list.block16(); ok && t == 0 && h.sni == nil {
				ok = len(name) > 0
				h.sni = name
			}
		}
	case extALPN:
		list, whole := b.block16()
		ok = whole && len(b) == 0
		for ok && len(list) > 0 {
			var p input
			if p, ok = list.block8(); ok {
				h.alpn = append(h.alpn, p)
			}
		}
	case extVersions:
		list, whole := b.block8()
		if h.versions, ok = numbers(h.versions, list); !whole || len(b) > 0 {
			ok = false
		}
	case extGroups, extSignatures:
		list, whole := b.block16()
		into := &h.groups
		if kind == extSignatures {
			into = &h.signatures
		}
		if *into, ok = numbers(*into, list); !whole || len(b) > 0 {
			ok = false
		}
	case extPointFormats:
		var list input
		list, ok = b.block8()
		h.points = append(h.points, list...)
		ok = ok && len(b) == 0
	case extECH:
		h.encrypted = true
	}
	return ok
}

// numbers appends the numbers of two bytes that b is made of, but for GREASE.
func numbers(to []uint16, b input) ([]uint16, bool) {
	for len(b) > 0 {
		v, ok := b.u16()
		if !ok {
			return to, false
		}
		if !grease(v) {
			to = append(to, v)
		}
	}
	return to, true
}

// result is what h says for people; whole with fingerprints.
func (h *hello) result(quic, whole bool) *pavise.TLS {
	t := &pavise.TLS{QUIC: quic, Encrypted: h.encrypted, Cut: !whole}
	if h.hasSNI {
		t.SNI = string(appendText(nil, h.sni, '\\'))
	}
	if len(h.alpn) > 0 {
		t.ALPN = make([]string, len(h.alpn))
		for i, p := range h.alpn {
			t.ALPN[i] = string(appendText(nil, p, '\\'))
		}
	}
	versions := slices.Clone(h.versions)
	if len(versions) == 0 && whole {
		versions = []uint16{h.version}
	}
	slices.Sort(versions)
	slices.Reverse(versions)
	for _, v := range slices.Compact(versions) {
		t.Versions = append(t.Versions, versionName(v))
	}
	if len(t.Versions) > 0 {
		t.Version = t.Versions[0]
	}
	if whole {
		t.JA3, t.JA4 = h.ja3(), h.ja4(quic)
	}
	return t
}

// versionName is what a person calls a version of TLS.
func versionName(v uint16) string {
	switch {
	case v == 0x0300:
		return "SSL 3.0"
	case v > 0x0300 && v < 0x0309:
		return "1." + strconv.Itoa(int(v-0x0301))
	case v>>8 == 0x7f:
		return fmt.Sprintf("1.3-draft%d", v&0xff)
	}
	return fmt.Sprintf("0x%04x", v)
}

// unwrap takes a handshake message out of the records of a TLS stream (RFC 8446, 5.1), as far as it goes: a message may go over many. The result is
// valid until the next call.
func (r *Reader) unwrap(stream []byte) ([]byte, Reason) {
	r.records = r.records[:0]
	for in, first := input(stream), true; ; first = false {
		kind, some := in.u8()
		version, ok := in.u16()
		size, ok2 := in.u16()
		switch {
		case first && some && kind != 22, first && ok && version>>8 != 3:
			return nil, ReasonNoHello
		case !ok2:
			return r.records, ReasonNone
		case kind != 22 || size == 0 || size > 1<<14:
			return nil, ReasonMalformed
		}
		body, _ := in.take(min(uint64(size), uint64(len(in))))
		if first && len(in) == 0 {
			return body, ReasonNone
		}
		r.records = append(r.records, body...)
		if n, why := handshakeSize(r.records); why != ReasonNone || n != 0 && len(r.records) >= n {
			return r.records, why
		}
	}
}
