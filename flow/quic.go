package flow

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
)

// The versions of QUIC that are read.
const (
	quicV1 = 1
	quicV2 = 0x6b3343cf
)

var (
	quicSalt1 = []byte("\x38\x76\x2c\xf7\xf5\x59\x34\xb3\x4d\x17\x9a\xe6\xa4\xc8\x0c\xad\xcc\xbb\x7f\x0a") // RFC 9001, 5.2
	quicSalt2 = []byte("\x0d\xed\xe3\xde\xf7\x00\xa6\xdb\x81\x93\x81\xbe\x6e\x26\x9d\xcb\xf9\xbd\x2e\xd9") // RFC 9369, 3.3.1
)

// initialKey opens the Initial packets that a client sends. It comes of the connection ID that the client first sent to (RFC 9001, 5.2), which everyone on
// the way can read: the encryption hides nothing, but a packet that opens is whole.
type initialKey struct {
	version uint32
	dcid    [20]byte
	n       uint8
	aead    cipher.AEAD
	hp      cipher.Block
	iv      [12]byte
}

func newInitialKey(version uint32, dcid []byte) *initialKey {
	k := &initialKey{version: version, n: uint8(len(dcid))} //nolint:gosec // at most 20
	copy(k.dcid[:], dcid)
	salt, label := quicSalt1, "quic "
	if version == quicV2 {
		salt, label = quicSalt2, "quicv2 "
	}
	initial, err := hkdf.Extract(sha256.New, dcid, salt)
	if err != nil {
		panic(err) // SHA-256 is there
	}
	client := expandLabel(initial, "client in", 32)
	k.aead = must(cipher.NewGCM(must(aes.NewCipher(expandLabel(client, label+"key", 16)))))
	k.hp = must(aes.NewCipher(expandLabel(client, label+"hp", 16)))
	copy(k.iv[:], expandLabel(client, label+"iv", 12))
	return k
}

// must is for what fails only with a key of a wrong size.
func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// expandLabel is HKDF-Expand-Label of RFC 8446, 7.1, without a context.
func expandLabel(secret []byte, label string, n int) []byte {
	info := make([]byte, 0, 32)
	info = append(info, byte(n>>8), byte(n), byte(6+len(label))) //nolint:gosec // small
	info = append(info, "tls13 "...)
	info = append(info, label...)
	return must(hkdf.Expand(sha256.New, secret, string(append(info, 0)), n))
}

func (k *initialKey) of(version uint32, dcid []byte) bool {
	return k != nil && k.version == version && string(k.dcid[:k.n]) == string(dcid)
}

// open removes the protection (RFC 9001, 5.3 and 5.4) of a packet whose number begins at pn, and returns its frames, in buf.
func (k *initialKey) open(buf, packet []byte, pn int) ([]byte, bool) {
	if len(packet) < pn+4+16 {
		return nil, false
	}
	var mask [16]byte
	k.hp.Encrypt(mask[:], packet[pn+4:pn+20])
	first := packet[0] ^ mask[0]&0x0f
	n := int(first&3) + 1
	// The header as it was before the protection: what is authenticated. Its number is short, so it is the number itself: it counts from 0.
	buf = append(buf[:0], packet[:pn+n]...)
	buf[0] = first
	number := uint64(0)
	for i := range n {
		buf[pn+i] ^= mask[1+i]
		number = number<<8 | uint64(buf[pn+i])
	}
	nonce := k.iv
	binary.BigEndian.PutUint64(nonce[4:], binary.BigEndian.Uint64(nonce[4:])^number)
	plain, err := k.aead.Open(buf[pn+n:], nonce[:], packet[pn+n:], buf[:pn+n])
	return plain, err == nil
}

// longPacket is one packet with a long header (RFC 8999, 5.1; RFC 9000, 17.2).
type longPacket struct {
	version uint32
	dcid    []byte
	initial bool
	bytes   []byte // the whole packet
	number  int    // where its number begins
}

// nextPacket reads the first packet of a datagram and what follows it: a datagram can have several (RFC 9000, 12.2). Where what follows is no packet with
// a long header, there is none.
func nextPacket(p *longPacket, datagram []byte) (rest []byte, why Reason) {
	in := input(datagram)
	first, _ := in.u8()
	if first&0x80 == 0 {
		return nil, ReasonNone
	}
	version, ok := in.u32()
	if !ok {
		return nil, ReasonShort
	}
	if version != quicV1 && version != quicV2 {
		return nil, ReasonVersion
	}
	kind := first >> 4 & 3
	if version == quicV2 {
		kind = (kind - 1) & 3 // RFC 9369, 3.2
	}
	dcid, ok := in.block8()
	scid, ok2 := in.block8()
	if !ok || !ok2 {
		return nil, ReasonShort
	}
	if len(dcid) > 20 || len(scid) > 20 {
		return nil, ReasonMalformed
	}
	*p = longPacket{version: version, dcid: dcid, initial: kind == 0}
	if kind == 3 { // Retry: the whole datagram
		return nil, ReasonNone
	}
	if p.initial {
		n, ok := in.varint()
		if ok {
			_, ok = in.take(n)
		}
		if !ok {
			return nil, ReasonShort
		}
	}
	size, ok := in.varint()
	p.number = len(datagram) - len(in)
	if _, whole := in.take(size); !ok || !whole {
		return nil, ReasonShort
	}
	p.bytes = datagram[:len(datagram)-len(in)]
	return in, ReasonNone
}

// cryptoFrames puts the CRYPTO frames of an Initial packet's payload into a. Other frames that may be there (RFC 9000, 12.4) are passed over.
func cryptoFrames(a *assembly, frames []byte) Reason {
	in := input(frames)
	skip := func(n uint64) bool {
		for range n {
			if _, ok := in.varint(); !ok {
				return false
			}
		}
		return true
	}
	for len(in) > 0 {
		kind, ok := in.varint()
		if !ok {
			return ReasonFrame
		}
		switch kind {
		case 0, 1: // PADDING, PING
		case 2, 3: // ACK
			ok = skip(2)
			ranges, ok2 := in.varint()
			if ok = ok && ok2 && ranges <= uint64(len(in)); ok {
				ok = skip(1 + 2*ranges)
			}
			if kind == 3 {
				ok = ok && skip(3)
			}
		case 6: // CRYPTO
			off, ok1 := in.varint()
			n, ok2 := in.varint()
			var data input
			if data, ok = in.take(n); !ok || !ok1 || !ok2 {
				return ReasonFrame
			}
			if !a.add(off, data) {
				return ReasonLong
			}
		case 0x1c: // CONNECTION_CLOSE
			ok = skip(2)
			n, ok2 := in.varint()
			if ok = ok && ok2; ok {
				_, ok = in.take(n)
			}
		default:
			return ReasonFrame
		}
		if !ok {
			return ReasonFrame
		}
	}
	return ReasonNone
}
