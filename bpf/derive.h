/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Facts that are derived of others: the time of day, and which sets a fact is in.
 *
 * Sets are up to 100,000 strings or prefixes, and one atom. A fact is looked up once for all sets: what the maps hold for an entry is a bit
 * for each set that it is in. The answers are a dimension of their own, of SETS_BYTES bytes, which an automaton reads as any other
 * (policy/sets.go).
 *
 * Strings are known by a keyed hash of 128 bits: SipHash-1-3 (Aumasson and Bernstein, "SipHash: a fast short-input PRF", 2012; reference
 * implementation https://github.com/veorq/SipHash), with a key made at each start of the agent that nobody else sees. Who does not know the key finds
 * a string outside a set of n that is taken for one in it with a chance of n / 2^128 for each that is tried.
 */
#ifndef PAVISE_DERIVE_H
#define PAVISE_DERIVE_H

#include "judge.h"

/* Which string an entry is, in the first word that is hashed. */
enum {
	SET_WHOLE,
	SET_NAME,
	SET_DOMAIN, /* of domain names */
	SET_BELOW /* ".example.com", of those that end so */
};

/*
 * The sets of two Images at most, by tables.set_slot: a map of the size that is needed, made and filled by user space before it is activated, and not
 * changed then. So they cost nothing while no policy has a set, and are never full.
 */
struct set_strings {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__type(key, struct set_string);
	__type(value, __u32);
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, NUM_SIDES);
	__type(key, __u32);
	__array(values, struct set_strings);
} set_strings SEC(".maps");

struct set_prefixes {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__type(key, struct set_prefix);
	__type(value, __u32);
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, NUM_SIDES);
	__type(key, __u32);
	__array(values, struct set_prefixes);
} set_prefixes SEC(".maps");

const volatile __u64 sip_key[2]; /* random, set by the loader */

#define ROTL(x, n) ((x) << (n) | (x) >> (64 - (n)))
#define SIP_ROUND                  \
	do {                       \
		v0 += v1;          \
		v1 = ROTL(v1, 13); \
		v1 ^= v0;          \
		v0 = ROTL(v0, 32); \
		v2 += v3;          \
		v3 = ROTL(v3, 16); \
		v3 ^= v2;          \
		v0 += v3;          \
		v3 = ROTL(v3, 21); \
		v3 ^= v0;          \
		v2 += v1;          \
		v1 = ROTL(v1, 17); \
		v1 ^= v2;          \
		v2 = ROTL(v2, 32); \
	} while (0)

/* sip_some takes up to CHUNK bytes of the s->sip_left at bytes[s->sip_pos] into the hash, in words of 8; fewer than 8 are left for sip_end. */
__noinline int sip_some(__u32 si)
{
	struct scratch *s = scratch_at(si);
	__u64 v0, v1, v2, v3;

	if (!s)
		return 0;
	v0 = s->sip[0];
	v1 = s->sip[1];
	v2 = s->sip[2];
	v3 = s->sip[3];
	for (int i = 0; i < CHUNK / 8; i++) {
		__u64 m;

		if (s->sip_left < 8)
			break;
		m = load64(at(s, s->sip_pos));
		v3 ^= m;
		SIP_ROUND;
		v0 ^= m;
		s->sip_pos += 8;
		s->sip_left -= 8;
	}
	s->sip[0] = v0;
	s->sip[1] = v1;
	s->sip[2] = v2;
	s->sip[3] = v3;
	return 0;
}

/* sip_begin begins the hash of a word and of bytes[off, off+len). */
static __always_inline void sip_begin(struct scratch *s, __u64 first, __u32 off, __u32 len)
{
	__u64 v0 = 0x736f6d6570736575ULL ^ sip_key[0];
	__u64 v1 = 0x646f72616e646f6dULL ^ sip_key[1] ^ 0xee; /* for 128 bits */
	__u64 v2 = 0x6c7967656e657261ULL ^ sip_key[0];
	__u64 v3 = 0x7465646279746573ULL ^ sip_key[1];

	v3 ^= first;
	SIP_ROUND;
	v0 ^= first;
	s->sip[0] = v0;
	s->sip[1] = v1;
	s->sip[2] = v2;
	s->sip[3] = v3;
	s->sip_pos = off;
	s->sip_left = len;
}

/* sip_end completes the hash of a string of len bytes, and returns a bit for each set that has it. */
__noinline int sip_end(__u32 si, __u32 len)
{
	struct scratch *s = scratch_at(si);
	__u32 side, slot, *bits;
	struct tables *t;
	__u64 v0, v1, v2, v3, m;
	void *map;

	if (!s)
		return 0;
	v0 = s->sip[0];
	v1 = s->sip[1];
	v2 = s->sip[2];
	v3 = s->sip[3];
	m = load64(at(s, s->sip_pos)) & ((1ULL << (s->sip_left & 7) * 8) - 1);
	m |= (__u64)(len + 8) << 56;
	v3 ^= m;
	SIP_ROUND;
	v0 ^= m;
	v2 ^= 0xee;
	SIP_ROUND;
	SIP_ROUND;
	SIP_ROUND;
	s->string.lo = v0 ^ v1 ^ v2 ^ v3;
	v1 ^= 0xdd;
	SIP_ROUND;
	SIP_ROUND;
	SIP_ROUND;
	s->string.hi = v0 ^ v1 ^ v2 ^ v3;
	side = s->side;
	t = bpf_map_lookup_elem(&sides, &side);
	if (!t)
		return 0;
	slot = t->set_slot;
	map = bpf_map_lookup_elem(&set_strings, &slot);
	if (!map)
		return 0;
	bits = bpf_map_lookup_elem(map, &s->string);
	return bits ? *bits : 0;
}

#define BACK 16

/* slash_before moves s->sip_pos back by up to BACK of s->sip_left bytes, to behind a slash; 1 when there is one. */
__noinline int slash_before(__u32 si)
{
	struct scratch *s = scratch_at(si);

	if (!s)
		return 0;
	for (int i = 0; i < BACK; i++) {
		if (!s->sip_left)
			return 0;
		if (*at(s, s->sip_pos - 1) == '/')
			return 1;
		s->sip_pos--;
		s->sip_left--;
	}
	return 0;
}

/* set_prefixes_some tries WALK masks, from the s->sip_pos-th on, on the address in s->sip. What holds it is added to s->sip[2]. 0 after the last. */
__noinline int set_prefixes_some(__u32 si)
{
	struct scratch *s = scratch_at(si);
	struct tables *t;
	__u32 side, slot;
	void *map;

	if (!s)
		return 0;
	side = s->side;
	t = bpf_map_lookup_elem(&sides, &side);
	if (!t)
		return 0;
	slot = t->set_slot;
	map = bpf_map_lookup_elem(&set_prefixes, &slot);
	if (!map)
		return 0;
	for (int i = 0; i < WALK; i++) {
		struct set_prefix *mask = &t->set_masks[s->sip_pos & (SET_MASKS - 1)];
		__u32 *bits;

		if (!mask->bits)
			return 0;
		s->sip_pos++;
		s->prefix.hi = s->sip[0] & mask->hi;
		s->prefix.lo = s->sip[1] & mask->lo;
		s->prefix.bits = mask->bits;
		bits = bpf_map_lookup_elem(map, &s->prefix);
		if (bits)
			s->sip[2] |= *bits;
	}
	return 1;
}

/* named adds to s->sip[2] the sets of names that the address in s->sip has one of, in the network namespace of the current thread, or of a guest's socket. */
__noinline int named(__u32 si)
{
	struct scratch *s = scratch_at(si);
	struct tables *t = tables_of(s);
	struct nsproxy *ns;
	__u32 slot, net, *bits;
	void *map;

	if (!s || !t)
		return 0;
	net = s->who_net;
	if (s->who == WHO_CURRENT) {
		ns = (void *)READ_PTR(bpf_get_current_task_btf(), nsproxy);
		if (!ns)
			return 0;
		net = READ((struct net *)READ_PTR(ns, net_ns), ns.inum);
	}
	slot = t->set_slot;
	map = bpf_map_lookup_elem(&set_prefixes, &slot);
	if (!map)
		return 0;
	s->prefix.hi = s->sip[0];
	s->prefix.lo = s->sip[1];
	s->prefix.bits = (__u64)net << 32 | NAMED;
	bits = bpf_map_lookup_elem(map, &s->prefix);
	if (bits)
		s->sip[2] |= *bits;
	return 0;
}

#define MINUTE	       60000000000ULL
#define MINUTES_A_WEEK 10080

/*
 * derive writes the dimension that automaton ai reads and no hook gives, for a file whose name is bytes[off, off+len), unless it stands there already:
 * the time, or which sets a fact is in. A fact that is too long to judge gives one that is.
 */
__noinline int derive(__u32 si, __u32 ai, __u32 off, __u32 len)
{
	struct scratch *s = scratch_at(si);
	__u32 side, dim, fact, out, name;
	struct control *c = ctl();
	struct automaton *a;
	struct tables *t;
	__u64 bits = 0;
	int found = 0;

	if (!s || !c)
		return 0;
	side = s->side;
	t = bpf_map_lookup_elem(&sides, &side);
	if (!t)
		return 0;
	a = &t->automata[ai & (NUM_AUTOMATA - 1)];
	dim = a->dim & (NUM_DIMS - 1);
	fact = a->source & (NUM_DIMS - 1);
	if (s->derived & DIM(dim))
		return 0;
	s->derived |= DIM(dim);
	if (fact == DIM_TIME) {
		set_be16(s, DIM_TIME, (now_of(s) + c->clock) / MINUTE % MINUTES_A_WEEK);
		return 0;
	}
	out = OFF_SMALL + dim * 16;
	if (fact != DIM_PATH) {
		off = s->dim_off[fact];
		len = s->dim_len[fact];
	}
	s->dim_off[dim] = out;
	s->dim_len[dim] = len > MAX_STRING ? len : SETS_BYTES;
	if (len > MAX_STRING)
		return 0;
	if (a->flags & AUTOMATON_ADDRESS) {
		s->sip[0] = __builtin_bswap64(load64(at(s, off)));
		s->sip[1] = __builtin_bswap64(load64(at(s, off + 8)));
		s->sip[2] = 0;
		s->sip_pos = t->set_masks6;
		if (!s->sip[0] && s->sip[1] >> 32 == 0xffff)
			s->sip_pos = 0;
		for (int i = 0; i < MAX_LENGTHS / WALK + 1; i++)
			if (len != 16 || !set_prefixes_some(si))
				break;
		if (t->set_kinds & HAS_DOMAINS && fact == DIM_RADDR && len == 16)
			named(si);
		bits = s->sip[2] << 32;
	} else if (len) {
		if (t->set_kinds & HAS_WHOLE) {
			sip_begin(s, SET_WHOLE, off, len);
			for (int i = 0; i < (MAX_STRING + 1) / CHUNK; i++) {
				if (s->sip_left < 8)
					break;
				sip_some(si);
			}
			bits = (__u64)(__u32)sip_end(si, len) << 32;
		}
		/* A name has at most 255 bytes. */
		s->sip_pos = off + len;
		s->sip_left = t->set_kinds & HAS_NAMES ? len : 0;
		for (int i = 0; i < NAME_BYTES / BACK && !found; i++)
			found = slash_before(si);
		if (found) {
			name = off + len - s->sip_pos;
			sip_begin(s, SET_NAME, s->sip_pos, name);
			for (int i = 0; i < NAME_BYTES / CHUNK; i++)
				if (s->sip_left >= 8)
					sip_some(si);
			bits |= (__u32)sip_end(si, name);
		}
	}
	store64(at(s, out), __builtin_bswap64(bits));
	return 0;
}

#endif
