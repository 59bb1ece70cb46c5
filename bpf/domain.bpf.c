//go:build ignore
/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Domain names: cgroup_skb at the root of cgroup v2, attached only while a rule asks for net.remote.domain. What a server that the host asks answers ties addresses to names before
 * the program that asked can read it: it may connect at once. The agent does the same a moment later, and what is not done here (answers over TCP, aliases that lead further, the
 * end of a name's time): enforce/domains.go. An answer that cannot be read here, or finds no working memory, waits for the agent; a rule that allows by name
 * then denies until it has.
 */

#define ANSWER_BYTES   2048 /* of an answer that is read; what is behind is left to the agent */
#define ANSWER_RECORDS 32
#define ANSWER_LABELS  16 /* of a name, that a rule may be about a name below of */
#define OFF_ANSWER     OFF_EXTRA
#define OFF_DOMAIN     OFF_ALT /* the name that was asked for */
#define DOMAIN_BYTES   256

struct domain_server {
	__u8 address[16]; /* IPv4 as ::ffff:a.b.c.d */
	__u32 netns; /* where it is believed; 0: everywhere */
	__u32 used; /* the last that is used has no used one behind it */
};

/* Who is believed: as many as hosts ask, and those that were named to the agent, which refuses more. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 32);
	__type(key, __u32);
	__type(value, struct domain_server);
} domain_servers SEC(".maps");

/* believed tells whether the server at s->prefix is believed in the network namespace in s->counted[0]. */
__noinline int believed(__u32 si)
{
	struct scratch *s = scratch_at(si);

	if (!s)
		return 0;
	for (__u32 i = 0; i < 32; i++) {
		__u32 k = i;
		struct domain_server *d = bpf_map_lookup_elem(&domain_servers, &k);

		if (!d || !d->used)
			return 0;
		if (*(__u64 *)d->address == s->prefix.hi &&
		    *(__u64 *)&d->address[8] == s->prefix.lo &&
		    (!d->netns || d->netns == (__u32)s->counted[0]))
			return 1;
	}
	return 0;
}

/*
 * domain_some reads up to 32 bytes of the name at bytes[s->tail_in], and writes it to OFF_DOMAIN as text in lower case: s->tail_at bytes so far, s->tail_len more of the
 * label. 1 when there is more, 2 at its end, 0 when it is none that is read here: a pointer, or a label with a dot in it.
 */
__noinline int domain_some(__u32 si)
{
	struct scratch *s = scratch_at(si);

	if (!s)
		return 0;
	for (int i = 0; i < 32; i++) {
		__u32 n = s->tail_at & (DOMAIN_BYTES - 1);
		__u8 c;

		if (s->tail_in >= s->in_len || n >= DOMAIN_BYTES - 2)
			return 0;
		c = *at(s, s->tail_in);
		s->tail_in++;
		if (s->tail_len) {
			s->tail_len--;
			if (c >= 'A' && c <= 'Z')
				c |= 0x20;
			if (c == '.')
				return 0;
		} else {
			if (!c)
				return 2;
			if (c & 0xc0)
				return 0;
			s->tail_len = c;
			if (!n)
				continue;
			c = '.';
		}
		s->bytes[OFF_DOMAIN + n] = c;
		s->tail_at = n + 1;
	}
	return 1;
}

/* domain_bits returns the sets that a string of the name, from OFF_DOMAIN + from on, is in, as a name (SET_DOMAIN) or as what names end in (SET_BELOW). */
__noinline int domain_bits(__u32 si, __u32 kind, __u32 from)
{
	struct scratch *s = scratch_at(si);
	__u32 len;

	if (!s)
		return 0;
	from &= DOMAIN_BYTES - 1;
	len = (s->tail_at - from) & (DOMAIN_BYTES - 1);
	sip_begin(s, kind, OFF_DOMAIN + from, len);
	for (int i = 0; i < DOMAIN_BYTES / CHUNK; i++) {
		if (s->sip_left < 8)
			break;
		sip_some(si);
	}
	return sip_end(si, len);
}

/* domain_dot moves s->in to the next dot of the name, 32 bytes further at most; 0 when there is none. */
__noinline int domain_dot(__u32 si)
{
	struct scratch *s = scratch_at(si);

	if (!s)
		return 0;
	for (int i = 0; i < 64; i++) {
		__u32 n = s->in & (DOMAIN_BYTES - 1);

		if (n >= s->tail_at)
			return 0;
		if (s->bytes[OFF_DOMAIN + n] == '.')
			return 1;
		s->in = n + 1;
	}
	return 0;
}

/* domain_sets puts into s->early[side] which sets of a side the name is in. */
__noinline int domain_sets(__u32 si, __u32 side)
{
	struct scratch *s = scratch_at(si);
	struct tables *t;
	__u32 bits;

	if (!s)
		return 0;
	side &= NUM_SIDES - 1;
	s->side = side;
	s->early[side] = 0;
	t = tables_of(s);
	if (!t || !(t->set_kinds & HAS_DOMAINS))
		return 0;
	bits = domain_bits(si, SET_DOMAIN, 0);
	s->in = 0;
	for (int i = 0; i < ANSWER_LABELS; i++) {
		if (!domain_dot(si))
			break;
		bits |= domain_bits(si, SET_BELOW, s->in);
		s->in++;
	}
	s->early[side] = bits;
	return bits != 0;
}

/* domain_tie adds to the sets of a side the address in s->prefix, which has this name in this network namespace. */
__noinline int domain_tie(__u32 si, __u32 side)
{
	struct scratch *s = scratch_at(si);
	__u32 slot, bits, *old;
	struct tables *t;
	void *map;

	if (!s)
		return 0;
	side &= NUM_SIDES - 1;
	bits = s->early[side];
	s->side = side;
	t = tables_of(s);
	if (!bits || !t)
		return 0;
	slot = t->set_slot;
	map = bpf_map_lookup_elem(&set_prefixes, &slot);
	if (!map)
		return 0;
	old = bpf_map_lookup_elem(map, &s->prefix);
	if (old)
		__sync_fetch_and_or(old, bits);
	else if (bpf_map_update_elem(map, &s->prefix, &bits, BPF_NOEXIST))
		count_err(ERR_DOMAIN);
	return 0;
}

static __always_inline __u16 answer16(struct scratch *s, __u32 off)
{
	return *at(s, off) << 8 | *at(s, off + 1);
}

/* answer_record reads the record at bytes[s->tail_in]; 0 when there is no more to read. */
__noinline int answer_record(__u32 si)
{
	struct scratch *s = scratch_at(si);
	__u32 pos, type, len;
	__u8 c;

	if (!s)
		return 0;
	for (int i = 0; i < 64; i++) {
		pos = s->tail_in;
		if (pos >= s->in_len)
			return 0;
		c = *at(s, pos);
		if ((c & 0xc0) == 0xc0) {
			s->tail_in = pos + 2;
			break;
		}
		s->tail_in = pos + 1 + (c & 63);
		if (!c)
			break;
	}
	pos = s->tail_in;
	if (pos + 10 > s->in_len)
		return 0;
	type = (__u32)answer16(s, pos) << 16 | answer16(s, pos + 2);
	len = answer16(s, pos + 8);
	pos += 10;
	if (pos + len > s->in_len)
		return 0;
	s->tail_in = pos + len;
	if (type == (1 << 16 | 1) && len == 4) { /* A, of the Internet */
		s->prefix.hi = 0;
		s->prefix.lo = 0xffff00000000ULL | __builtin_bswap32(load64(at(s, pos)));
	} else if (type == (28 << 16 | 1) && len == 16) { /* AAAA */
		s->prefix.hi = __builtin_bswap64(load64(at(s, pos)));
		s->prefix.lo = __builtin_bswap64(load64(at(s, pos + 8)));
	} else {
		return 1;
	}
	s->prefix.bits = s->counted[0] << 32 | NAMED;
	domain_tie(si, 0);
	domain_tie(si, 1);
	return 1;
}

/* answer_read reads an answer of s->in_len - OFF_ANSWER bytes. */
__noinline int answer_read(__u32 si)
{
	struct scratch *s = scratch_at(si);
	__u32 records;
	int more = 1;

	if (!s)
		return 0;
	/* An answer, to a plain question, without an error. */
	if (s->in_len < OFF_ANSWER + 17 || (*at(s, OFF_ANSWER + 2) & 0xf8) != 0x80 ||
	    *at(s, OFF_ANSWER + 3) & 15 || answer16(s, OFF_ANSWER + 4) != 1)
		return 0;
	records = answer16(s, OFF_ANSWER + 6);
	s->tail_in = OFF_ANSWER + 12;
	s->tail_at = 0;
	s->tail_len = 0;
	for (int i = 0; i < DOMAIN_BYTES / 32 && more == 1; i++)
		more = domain_some(si);
	if (more != 2 || !s->tail_at)
		return 0;
	s->tail_in += 4;
	if (!(domain_sets(si, 0) | domain_sets(si, 1)))
		return 0;
	for (int i = 0; i < ANSWER_RECORDS; i++)
		if (i >= records || !answer_record(si))
			break;
	return 0;
}

#define ANSWER_UDP  17
#define ANSWER_PORT 53

SEC("cgroup_skb/ingress")
int on_answer(struct __sk_buff *skb)
{
	struct bpf_sock *sk = skb->sk;
	__u32 off = 40, si, hi = 0;
	struct scratch *s;
	__u8 h[24];
	__u64 n;
	int got;

	if (!sk)
		return 1;
	if (skb->protocol == __builtin_bswap16(0x0800)) {
		if (bpf_skb_load_bytes(skb, 0, h, 20) || h[9] != ANSWER_UDP)
			return 1;
		off = (h[0] & 15) * 4;
	} else if (bpf_skb_load_bytes(skb, 6, h, 18) || h[0] != ANSWER_UDP) {
		return 1;
	}
	if (bpf_skb_load_bytes(skb, off, &hi, 2) || hi != __builtin_bswap16(ANSWER_PORT))
		return 1;
	off += 8;
	if (skb->len < off + 17)
		return 1;
	got = scratch_get();
	if (got < 0) {
		count_err(ERR_DOMAIN);
		return 1;
	}
	si = got;
	s = scratch_at(si);
	if (!s)
		return 1;
	/* By way of memory it becomes a number, of which fields can be read. */
	*(volatile __u64 *)&s->dentry = (__u64)sk;
	s->counted[0] = READ((struct net *)READ_PTR((struct sock *)*(volatile __u64 *)&s->dentry,
						    __sk_common.skc_net.net),
			     ns.inum);
	if (skb->protocol == __builtin_bswap16(0x0800)) {
		s->prefix.hi = 0;
		s->prefix.lo = 0xffff0000 | (__u64) * (__u32 *)&h[12] << 32;
	} else {
		__builtin_memcpy(&s->prefix, &h[2], 16);
	}
	if (!believed(si))
		goto out;
	n = skb->len - off - 1;
	if (n > ANSWER_BYTES - 1)
		n = ANSWER_BYTES - 1;
	BOUND(n, ANSWER_BYTES - 1);
	if (bpf_skb_load_bytes(skb, off, &s->bytes[OFF_ANSWER], n + 1))
		goto out;
	s->in_len = OFF_ANSWER + n + 1;
	answer_read(si);
out:
	scratch_put(s);
	return 1;
}
