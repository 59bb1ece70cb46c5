package flow

import (
	"crypto/md5" //nolint:gosec // JA3 is defined with it
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"strconv"
)

// ja3 is the MD5 of five lists in decimal: version, ciphers, extensions, groups, point formats, in the order of the hello and without GREASE.
func (h *hello) ja3() string {
	b := make([]byte, 0, 512)
	b = strconv.AppendUint(b, uint64(h.version), 10)
	for _, list := range [][]uint16{h.ciphers, h.extensions, h.groups} {
		b = append(b, ',')
		for i, v := range list {
			if i > 0 {
				b = append(b, '-')
			}
			b = strconv.AppendUint(b, uint64(v), 10)
		}
	}
	b = append(b, ',')
	for i, v := range h.points {
		if i > 0 {
			b = append(b, '-')
		}
		b = strconv.AppendUint(b, uint64(v), 10)
	}
	sum := md5.Sum(b) //nolint:gosec // as above
	return hex.EncodeToString(sum[:])
}

// ja4 is JA4, "t13d1516h2_8daaf6152771_e5627efa2ab1": what can be read at a glance; a hash of the sorted ciphers; and one of the sorted extensions, without
// those that differ from one server to the next (SNI and ALPN), and of the signature algorithms as they are sent.
func (h *hello) ja4(quic bool) string {
	b := make([]byte, 0, 36)
	if quic {
		b = append(b, 'q')
	} else {
		b = append(b, 't')
	}
	b = append(b, h.ja4Version()...)
	if h.hasSNI {
		b = append(b, 'd')
	} else {
		b = append(b, 'i')
	}
	for _, n := range []int{len(h.ciphers), len(h.extensions)} {
		n = min(n, 99)
		b = append(b, '0'+byte(n/10), '0'+byte(n%10))
	}
	b = append(b, h.ja4ALPN()...)

	list := make([]byte, 0, 512)
	sorted := slices.Sorted(slices.Values(h.ciphers))
	list = appendHexList(list, sorted)
	b = appendJA4Hash(append(b, '_'), list)

	sorted = sorted[:0]
	for _, e := range h.extensions {
		if e != extServerName && e != extALPN {
			sorted = append(sorted, e)
		}
	}
	slices.Sort(sorted)
	list = appendHexList(list[:0], sorted)
	if len(list) > 0 && len(h.signatures) > 0 {
		list = appendHexList(append(list, '_'), h.signatures)
	}
	return string(appendJA4Hash(append(b, '_'), list))
}

func (h *hello) ja4Version() string {
	v := h.version
	if len(h.versions) > 0 {
		v = slices.Max(h.versions)
	}
	switch v {
	case 0x0304:
		return "13"
	case 0x0303:
		return "12"
	case 0x0302:
		return "11"
	case 0x0301:
		return "10"
	case 0x0300:
		return "s3"
	case 0x0002:
		return "s2"
	}
	return "00"
}

// ja4ALPN is the first and the last character of the first protocol, or the first and the last digit of its bytes in hexadecimal.
func (h *hello) ja4ALPN() []byte {
	if len(h.alpn) == 0 || len(h.alpn[0]) == 0 {
		return []byte("00")
	}
	p := h.alpn[0]
	first, last := p[0], p[len(p)-1]
	if alphanumeric(first) && alphanumeric(last) {
		return []byte{first, last}
	}
	const digits = "0123456789abcdef"
	return []byte{digits[first>>4], digits[last&15]}
}

func alphanumeric(c byte) bool {
	return '0' <= c && c <= '9' || 'A' <= c && c <= 'Z' || 'a' <= c && c <= 'z'
}

func appendHexList(b []byte, list []uint16) []byte {
	for i, v := range list {
		if i > 0 {
			b = append(b, ',')
		}
		b = hex.AppendEncode(b, []byte{byte(v >> 8), byte(v)}) //nolint:gosec // its two bytes
	}
	return b
}

// appendJA4Hash appends the first 12 digits of the SHA-256 of a list, and zeros for an empty one.
func appendJA4Hash(b, list []byte) []byte {
	if len(list) == 0 {
		return append(b, "000000000000"...)
	}
	sum := sha256.Sum256(list)
	return hex.AppendEncode(b, sum[:6])
}
