package flow

// input is what is left to read. A read that finds too little takes nothing. (Not cryptobyte: QUIC's integers are not in it, nor is the rest of a block
// that the copy cut short, which is still worth reading.)
type input []byte

func (in *input) u8() (uint8, bool) {
	s := *in
	if len(s) < 1 {
		return 0, false
	}
	*in = s[1:]
	return s[0], true
}

func (in *input) u16() (uint16, bool) {
	s := *in
	if len(s) < 2 {
		return 0, false
	}
	*in = s[2:]
	return uint16(s[0])<<8 | uint16(s[1]), true
}

func (in *input) u32() (uint32, bool) {
	s := *in
	if len(s) < 4 {
		return 0, false
	}
	*in = s[4:]
	return uint32(s[0])<<24 | uint32(s[1])<<16 | uint32(s[2])<<8 | uint32(s[3]), true
}

// varint reads an integer of QUIC (RFC 9000, 16).
func (in *input) varint() (uint64, bool) {
	s := *in
	if len(s) < 1 || len(s) < 1<<(s[0]>>6) {
		return 0, false
	}
	n := 1 << (s[0] >> 6)
	v := uint64(s[0] & 0x3f)
	for _, c := range s[1:n] {
		v = v<<8 | uint64(c)
	}
	*in = s[n:]
	return v, true
}

func (in *input) take(n uint64) (input, bool) {
	s := *in
	if n > uint64(len(s)) {
		return nil, false
	}
	*in = s[n:]
	return s[:n:n], true
}

// block8 and block16 read a length and that many bytes.
func (in *input) block8() (input, bool) {
	rest := *in
	n, ok := rest.u8()
	if !ok {
		return nil, false
	}
	b, ok := rest.take(uint64(n))
	if ok {
		*in = rest
	}
	return b, ok
}

func (in *input) block16() (input, bool) {
	rest := *in
	n, ok := rest.u16()
	if !ok {
		return nil, false
	}
	b, ok := rest.take(uint64(n))
	if ok {
		*in = rest
	}
	return b, ok
}

// appendText appends bytes as text: those that are not printable ASCII, the backslash, blanks, and those in more, as \DDD.
func appendText(b, s []byte, more byte) []byte {
	for _, c := range s {
		if c > ' ' && c < 0x7f && c != '\\' && c != more {
			b = append(b, c)
		} else {
			b = append(b, '\\', '0'+c/100, '0'+c/10%10, '0'+c%10)
		}
	}
	return b
}
