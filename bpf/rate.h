/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Rates: a rule that acts on what comes too often. policy/rates.go says how it is counted (Rates.over is the same in Go) and what is exact.
 */
#ifndef PAVISE_RATE_H
#define PAVISE_RATE_H

#include "judge.h"

#define RATE_BITS   20
#define RATE_MASK   ((1ULL << RATE_BITS) - 1)
#define WINDOW_MASK ((1ULL << (64 - 2 * RATE_BITS)) - 1)
#define RATE_TRIES  4

enum {
	BY_PROCESS,
	BY_USER,
	BY_CONTAINER
};

struct rate_key {
	__u64 id; /* of the rule, which stays the same when a policy is loaded anew */
	__u64 who;
	__u64 start; /* of a process */
};

/*
 * One map for what judges, made when the first policy with a rate is applied, and kept; and one for the shadow, so that what it counts takes no place
 * from the others. 65,536 counts; when it is full the one that was used least recently is forgotten, and begins at 0 when it is needed again.
 */
struct rate_counts {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1);
	__type(key, struct rate_key);
	__type(value, __u64);
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 2);
	__type(key, __u32);
	__array(values, struct rate_counts);
} rate_counts SEC(".maps");

static __always_inline void rate_who(struct rate_key *k, __u32 by)
{
	struct task_struct *t = bpf_get_current_task_btf();

	switch (by) {
	case BY_PROCESS:
		/* It stays the same process when it executes another program. */
		k->who = bpf_get_current_pid_tgid() >> 32;
		k->start = READ((struct task_struct *)READ_PTR(t, group_leader), start_boottime);
		break;
	case BY_USER:
		k->who = READ((struct cred *)READ_PTR(t, cred), euid.val);
		break;
	case BY_CONTAINER:
		k->who =
			READ((struct kernfs_node *)READ_PTR((struct cgroup *)cgroup_of(t), kn), id);
		break;
	}
}

/*
 * rate_passed counts one more act for the rate ri of word q*64 + n, where low has the n lowest bits set, and tells whether it is one too many. When there is no memory
 * for a count, it is not, and that is counted as an error.
 */
__noinline int rate_passed(__u32 si, __u32 ri, __u32 q, __u64 low)
{
	struct scratch *s = scratch_at(si);
	__u64 now, w, window, into, old, at, prev = 0, count = 0, zero = 0, *v;
	struct rate_key k = {};
	struct tables *t;
	struct rate *r;
	__u32 side, slot;
	void *m;

	if (!s)
		return 0;
	s->over[q & 3] &= ~(low + 1);
	side = s->side;
	slot = s->shade;
	t = bpf_map_lookup_elem(&sides, &side);
	m = bpf_map_lookup_elem(&rate_counts, &slot);
	if (!t || !m)
		return 0;
	r = &t->rates[ri & (NUM_RATES - 1)];
	k.id = r->id;
	rate_who(&k, r->by);
	v = bpf_map_lookup_elem(m, &k);
	if (!v) {
		bpf_map_update_elem(m, &k, &zero, BPF_NOEXIST);
		v = bpf_map_lookup_elem(m, &k);
		if (!v) {
			count_err(ERR_RATE);
			return 0;
		}
	}
	now = now_of(s) / 1000;
	w = r->window;
	window = w ? now / w : 0;
	into = now - window * w;
	window &= WINDOW_MASK;
	/* Others count too. Who loses RATE_TRIES times in a row is judged rightly all the same, and not counted. */
	for (int i = 0; i < RATE_TRIES; i++) {
		old = *(volatile __u64 *)v;
		at = old >> 2 * RATE_BITS;
		prev = old & RATE_MASK;
		count = old >> RATE_BITS & RATE_MASK;
		if (at != window) {
			prev = ((at + 1) & WINDOW_MASK) == window ? count : 0;
			count = 0;
		}
		if (count < RATE_MASK)
			count++;
		if (__sync_val_compare_and_swap(
			    v, old, window << 2 * RATE_BITS | count << RATE_BITS | prev) == old)
			break;
	}
	if (prev && w)
		prev = (prev * (w - into) - 1) / w;
	if (prev + count <= r->n)
		return 0;
	s->over[q & 3] |= low + 1;
	return 1;
}

/*
 * rated judges up to RATED words of quarter q of s->rated, lowest first: of those whose clauses hold, which is one more act for their rates, those whose rates are
 * passed. 0 when no word is left. What a guest has not done yet is not counted; no rule with a rate allows.
 */
__noinline int rated(__u32 si, __u32 q)
{
	struct scratch *s = scratch_at(si);

	if (!s || s->who != WHO_CURRENT)
		return 0;
	for (int i = 0; i < RATED; i++) {
		__u64 m = s->rated[q & 3], low = (m & -m) - 1;
		int rate;

		if (!m)
			return 0;
		s->rated[q & 3] = m & (m - 1);
		rate = tally_word(si, q, low);
		if (rate && rate_passed(si, rate - 1, q, low))
			tally_word(si, q, low);
	}
	return 1;
}

#endif
