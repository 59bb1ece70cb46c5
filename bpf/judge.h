/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Judging and telling: the subject's part of a judgement, the shadow's turn, and the records that come of verdicts. A thread's classes stand
 * in its identity with the generation they were computed for.
 */
#ifndef PAVISE_JUDGE_H
#define PAVISE_JUDGE_H

#include "texts.h"

#define CLASSES_OFF   __builtin_offsetof(struct proc, caps)
#define CLASSES_BYTES (sizeof(struct proc) - CLASSES_OFF)

struct shadow_classes {
	__u64 exec_id; /* of the image that they are of */
	__u64 classes[CLASSES_BYTES / 8];
};

_Static_assert(!(CLASSES_OFF & 7 || CLASSES_BYTES & 7), "classes are swapped in words of 8 bytes");

/* What a thread's proc has of one generation, for the other one: 192 bytes per thread, from its first operation that a shadow judges until it ends. */
struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct shadow_classes);
} shadow_classes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4 << 20); /* 4 MiB: 10,000 execs a second for half a second unread */
} critical SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4 << 20);
} telemetry SEC(".maps");

/* Conservation: seen = delivered + folded + lost, for each operation. */
struct op_stats {
	__u64 seen;
	__u64 delivered;
	__u64 folded;
	__u64 lost;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, NUM_OPS);
	__type(key, __u32);
	__type(value, struct op_stats);
} stats SEC(".maps");

/* How many of stats.lost an agent has told, by operation, for the next one. Programs do not know it. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, NUM_OPS);
	__type(key, __u32);
	__type(value, __u64);
} told SEC(".maps");

/* What the shadow judged, and where it was stricter or laxer than the active side, by side and operation. */
struct shade_count {
	__u64 judged;
	__u64 stricter;
	__u64 laxer;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, (NUM_SIDES * NUM_OPS));
	__type(key, __u32);
	__type(value, struct shade_count);
} shade_counts SEC(".maps");

static __always_inline struct op_stats *stats_of(__u32 op)
{
	return bpf_map_lookup_elem(&stats, &op);
}

static __always_inline struct control *ctl(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&controls, &zero);
}

/* The identity of a guest, by its working memory; of WHO_UNKNOWN the one to be told. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 8); /* as scratches */
	__type(key, __u32);
	__type(value, struct proc);
} guests SEC(".maps");

/* subject_proc is the identity of who is judged. */
static __always_inline struct proc *subject_proc(struct scratch *s, __u32 si)
{
	if (s->who != WHO_CURRENT)
		return bpf_map_lookup_elem(&guests, &si);
	return bpf_task_storage_get(&procs, bpf_get_current_task_btf(), 0, 0);
}

/* subject_task is its task_struct, to be read. */
static __always_inline struct task_struct *subject_task(struct scratch *s)
{
	if (s->who != WHO_CURRENT)
		return (void *)s->who_task;
	return bpf_get_current_task_btf();
}

/* renew_creds takes the current thread's credentials; whether they are others than those its classes were computed for. */
static __always_inline bool renew_creds(struct task_struct *t, struct proc *p)
{
	struct cred *c = (void *)READ_PTR(t, cred);
	__u64 caps = read_caps(c), diff = caps ^ p->caps;
	__u32 v;

	p->caps = caps;
	v = READ(c, euid.val);
	diff |= v ^ p->euid;
	p->euid = v;
	v = READ(c, egid.val);
	diff |= v ^ p->egid;
	p->egid = v;
	v = READ(c, uid.val);
	diff |= v ^ p->uid;
	p->uid = v;
	v = READ(c, gid.val);
	diff |= v ^ p->gid;
	p->gid = v;
	v = read_login(t);
	diff |= v ^ p->login;
	p->login = v;
	return diff;
}

/* Where subject() puts strings while it classifies them. The texts stand at OFF_ALT. */
#define OFF_CGROUP  OFF_TMP
#define OFF_DIGESTS (OFF_TMP + CGROUP_PATH)

#define CLASSES 4

/*
 * classes_some is subject_classes for CLASSES automata, from s->first on; 0 after the last. What it needs it looks up in each turn: a call below it may be the
 * deepest, and its stack counts.
 */
__noinline int classes_some(__u32 si, __u64 dims)
{
	for (int i = 0; i < CLASSES; i++) {
		struct scratch *s = scratch_at(si);
		struct tables *t = tables_of(s);
		__u64 ai;
		__u32 dim;

		if (!s || !t)
			return 0;
		ai = s->first;
		BOUND(ai, NUM_AUTOMATA - 1);
		s->first = ai + 1;
		dim = t->automata[ai].dim & (NUM_DIMS - 1);
		if (!dim)
			return 0;
		if (dim < DIM_PATH && NEED(dims, dim))
			s->cls[ai] = classify(si, ai, s->dim_off[dim], s->dim_len[dim]);
	}
	return 1;
}

/* subject_classes classifies the subject's facts in these dimensions: s->cls. */
static __always_inline void subject_classes(struct scratch *s, __u32 si, __u64 dims)
{
	s->derived = 0;
	s->first = 0;
	for (int i = 0; i < NUM_AUTOMATA / CLASSES; i++)
		if (!classes_some(si, dims))
			break;
}

/* subject_texts lays out the texts of the current process; 0 when the path of its executable is not among them. */
__noinline int subject_texts(__u32 si)
{
	struct scratch *s = scratch_at(si);
	struct proc *p = s ? subject_proc(s, si) : NULL;
	__u32 from = 0, exe_len = TEXT_LONG, parent_len = TEXT_LONG, up_len = TEXT_LONG;
	__u32 args = OFF_LINE, args_len = TEXT_LONG, script = OFF_LINE, script_len = TEXT_LONG;

	if (!s || !p)
		return 0;
	if (texts_load(si, p->image)) {
		struct texts *t = (void *)&s->bytes[OFF_ALT];

		exe_len = t->exe_len;
		parent_len = exe_len;
		if (!p->forked) {
			from = t->from;
			parent_len = t->parent_len;
		}
		if (!t->cut)
			up_len = t->line_len - from;
		args += t->line_len;
		args_len = t->args_len;
		if (args_len == TEXT_UNKNOWN)
			args_len = texts_given(si, p->image, args);
		script = args + args_kept(t);
		script_len = t->script_len;
	}
	set_dim(s, DIM_EXE, OFF_LINE, exe_len);
	set_dim(s, DIM_PARENT_EXE, OFF_LINE + from, parent_len);
	set_dim(s, DIM_ANCESTORS, OFF_LINE + from, up_len);
	set_dim(s, DIM_ARGS, args, args_len);
	set_dim(s, DIM_SCRIPT, script, script_len);
	return exe_len <= MAX_STRING;
}

/* subject_exe lays out the path of the executable of the current process where its texts do not have it. */
__noinline int subject_exe(__u32 si)
{
	struct scratch *s = scratch_at(si);
	struct mm_struct *mm;
	struct file *exe;
	__u32 len = 0;

	if (!s)
		return 0;
	mm = (void *)READ_PTR(subject_task(s), mm);
	exe = mm ? (void *)READ_PTR(mm, exe_file) : NULL;
	if (exe)
		len = path_build(si, OFF_ALT, READ_PTR(exe, f_path.dentry),
				 READ_PTR(exe, f_path.mnt), 0);
	set_dim(s, DIM_EXE, OFF_ALT, len);
	return 0;
}

#define DIMS_CRED                                                                           \
	(DIM(DIM_UID) | DIM(DIM_GID) | DIM(DIM_LOGIN) | DIM(DIM_CAPS) | DIM(DIM_REAL_UID) | \
	 DIM(DIM_REAL_GID))
#define DIMS_EXE (DIM(DIM_EXE) | DIM(DIM_EXE_SETS))
/* And the sets of the parent's executable and of the script. */
#define DIMS_TEXTS                                                                  \
	(DIMS_EXE | DIM(DIM_PARENT_EXE) | DIM(DIM_EXE_SETS + 1) | DIM(DIM_SCRIPT) | \
	 DIM(DIM_EXE_SETS + 2) | DIM(DIM_ARGS) | DIM(DIM_ANCESTORS))
#define DIMS_DIGEST (DIM(DIM_DIGEST) | DIM(DIM_VERITY))

/* subject_digests lays out the digests of the current process's image. */
__noinline int subject_digests(__u32 si)
{
	struct scratch *s = scratch_at(si);
	struct digests *d = bpf_task_storage_get(&image_digests, bpf_get_current_task_btf(), 0, 0);
	struct proc *p = bpf_task_storage_get(&procs, bpf_get_current_task_btf(), 0, 0);
	__u32 off = OFF_DIGESTS + DIGEST_TEXT, none;

	if (!s || !p)
		return 0;
	none = p->recalled && digests_used ? TEXT_LONG : 0; /* not known: judged strictly */
	set_dim(s, DIM_DIGEST, OFF_DIGESTS, none);
	set_dim(s, DIM_VERITY, off, none);
	if (!d)
		return 0;
	set_dim(s, DIM_DIGEST, OFF_DIGESTS, d->now[DIGEST_CONTENT].len ?: none);
	__builtin_memcpy(&s->bytes[OFF_DIGESTS], d->now[DIGEST_CONTENT].text, DIGEST_TEXT);
	set_dim(s, DIM_VERITY, off, d->now[DIGEST_VERITY].len ?: none);
	__builtin_memcpy(&s->bytes[OFF_DIGESTS + DIGEST_TEXT], d->now[DIGEST_VERITY].text,
			 DIGEST_TEXT);
	return 0;
}

/* renew lays out a thread's own facts that are no texts, for subject_classes. */
static __always_inline void renew(struct scratch *s, __u32 si, struct proc *p, __u64 stale)
{
	if (stale & DIMS_DIGEST)
		subject_digests(si);
	if (NEED(stale, DIM_PROC_FLAGS))
		set_u8(s, DIM_PROC_FLAGS, p->flags);
	set_be32(s, DIM_UID, p->euid);
	set_be32(s, DIM_GID, p->egid);
	set_be32(s, DIM_REAL_UID, p->uid);
	set_be32(s, DIM_REAL_GID, p->gid);
	set_be32(s, DIM_LOGIN, p->login);
	set_u8(s, DIM_NS, p->ns);
	*(__u64 *)&s->bytes[OFF_SMALL + DIM_CAPS * 16] = __builtin_bswap64(p->caps);
	set_dim(s, DIM_CAPS, OFF_SMALL + DIM_CAPS * 16, 8);
}

/* subject_ns is host_ns of who is judged. */
__noinline int subject_ns(__u32 si)
{
	struct scratch *s = scratch_at(si);
	struct ns n;

	if (!s)
		return 0;
	read_ns(subject_task(s), &n);
	return host_ns(&n);
}

/*
 * moved takes those of the current thread's facts in the dimensions need that can change while it runs, and returns stale with those that
 * have changed.
 */
__noinline int moved(__u32 si, __u32 need, __u32 stale)
{
	struct scratch *s = scratch_at(si);
	struct proc *p = s ? subject_proc(s, si) : NULL;
	__u64 cgrp, cgid;
	__u8 ns;

	if (!s || !p)
		return 0;
	if (NEED(need, DIM_NS)) {
		ns = subject_ns(si);
		if (ns != p->ns)
			stale |= DIM(DIM_NS);
		p->ns = ns;
	}
	if (NEED(need, DIM_CGROUP)) {
		cgrp = cgroup_of(subject_task(s));
		cgid = READ_PTR((struct kernfs_node *)READ_PTR((struct cgroup *)cgrp, kn), id);
		if (stale || cgid != p->cgroup_id) {
			stale |= DIM(DIM_CGROUP);
			p->cgroup_id = cgid;
			set_dim(s, DIM_CGROUP, OFF_CGROUP, cgroup_path(si, OFF_CGROUP, cgrp));
		}
	}
	return stale;
}

/*
 * subject_now brings the classes of a subject's facts up to date: all of them when the generation has moved on, those of
 * credentials, namespaces and cgroup when these have changed. Reads only what some rule needs.
 */
static __always_inline void subject_now(struct scratch *s, __u32 si, struct tables *tb,
					struct task_struct *t, struct proc *p)
{
	__u32 stale = 0;

	if (p->gen != tb->gen)
		stale = tb->subject_need;
	/* Credentials are what most rules ask for: no call for them. */
	if (tb->subject_need & DIMS_CRED && renew_creds(t, p))
		stale |= tb->subject_need & DIMS_CRED;
	if (tb->subject_need & (DIM(DIM_NS) | DIM(DIM_CGROUP)))
		stale = moved(si, tb->subject_need, stale);
	if (stale) {
		__builtin_memcpy(s->cls, p->cls, sizeof(s->cls));
		if (stale & DIMS_TEXTS) {
			__u64 exe = subject_texts(si) ? 0 : stale & DIMS_EXE;

			subject_classes(s, si, stale & DIMS_TEXTS & ~exe);
			if (exe)
				subject_exe(si); /* where the texts stood */
			stale &= ~DIMS_TEXTS | exe;
		}
		renew(s, si, p, stale);
		subject_classes(s, si, stale);
		__builtin_memcpy(p->cls, s->cls, sizeof(p->cls));
		p->gen = tb->gen;
	}
}

/* subject is subject_now for the current thread. Returns NULL without an identity. */
static __always_inline struct proc *subject(struct scratch *s, __u32 si, struct tables *tb)
{
	struct task_struct *t = bpf_get_current_task_btf();
	struct proc *p = bpf_task_storage_get(&procs, t, 0, 0);

	if (p)
		subject_now(s, si, tb, t, p);
	return p;
}

/* unknown_classes are those of a thread without an identity, which takes lack of memory: each of its facts counts as too long to judge. */
__noinline int unknown_classes(__u32 si)
{
	struct scratch *s = scratch_at(si);
	struct tables *t;
	__u32 side;

	count_err(ERR_PROC);
	if (!s)
		return 0;
	side = s->side;
	t = bpf_map_lookup_elem(&sides, &side);
	if (!t)
		return 0;
	for (int i = 0; i < NUM_AUTOMATA; i++)
		s->cls[i] = t->automata[i].overlong;
	return 0;
}

/*
 * guest_classes puts into s->cls the classes of a subject that is not the current thread; they are not brought up to date after this. Of one that may be any process: slots of operations
 * that are judged so have one more row than classes (policy's anyone).
 */
__noinline int guest_classes(__u32 si)
{
	struct scratch *s = scratch_at(si);
	struct tables *t = tables_of(s);
	struct proc *p = bpf_map_lookup_elem(&guests, &si);

	if (!s || !t || !p)
		return 0;
	if (s->who == WHO_GUEST) {
		subject_now(s, si, t, (void *)s->who_task, p);
		__builtin_memcpy(s->cls, p->cls, sizeof(s->cls));
		return 0;
	}
	for (int i = 0; i < NUM_AUTOMATA; i++)
		s->cls[i] = t->automata[i].overlong + 1;
	return 0;
}

/*
 * judge_early begins a judgement of op by the side in s->side: the subject, and the facts that need no path. Returns 0 when no
 * rule can hold any more, which is the common case: nothing more is read then. how: the classes in the thread's identity are brought up to date, or used as
 * they are (tests); and without an identity it returns -1, or judges strictly.
 */
#define RENEW_OR_FAIL	0
#define RENEW_OR_STRICT 1
#define AS_THEY_ARE	2

__noinline int judge_early_with(__u32 si, __u32 op, __u32 how)
{
	struct scratch *s = scratch_at(si);
	struct proc *p = NULL;
	struct op_table *ot;
	struct tables *t;
	__u16 *cls;
	__u32 side;

	if (!s)
		return 0;
	side = s->side;
	t = bpf_map_lookup_elem(&sides, &side);
	if (!t)
		return 0;
	cls = s->cls;
	s->op = op & (NUM_JUDGED - 1);
	s->met = 0;
	s->alias = 0;
	__builtin_memset(&s->v, 0, sizeof(s->v));
	__builtin_memset(&s->counted, 0, sizeof(s->counted));
	__builtin_memset(&s->rows, 0, sizeof(s->rows));
	s->derived = 0;
	s->now *= how >> 1; /* 0 but for tests; without a branch, for the verifier's sake */
	ot = &t->ops[op & (NUM_JUDGED - 1)];
	if (!ot->n_words)
		return 0;
	s->left[0] = ot->all[0];
	s->left[1] = ot->all[1];
	s->left[2] = ot->all[2];
	s->left[3] = ot->all[3];
	if (ot->n_subject && s->who == WHO_CURRENT) {
		if (how == AS_THEY_ARE)
			p = bpf_task_storage_get(&procs, bpf_get_current_task_btf(), 0, 0);
		else
			p = subject(s, si, t);
		if (!p && how == RENEW_OR_FAIL)
			return -1;
		if (p)
			cls = p->cls;
		else
			unknown_classes(si);
	}
#pragma unroll
	for (int i = 0; i < NUM_SLOTS; i++) {
		if (i >= ot->n_subject)
			break;
		if (!meet(s, t, ot, i, cls[ot->slots[i].automaton & (NUM_AUTOMATA - 1)]))
			return 0;
	}
	if (!meet_slots(s, si, t, ot, ot->n_subject, ot->n_early, 0, 0, 16))
		return 0;
	s->early[0] = s->left[0];
	s->early[1] = s->left[1];
	s->early[2] = s->left[2];
	s->early[3] = s->left[3];
	return 1;
}

/* judge_early gives the thread an identity if it has none. Programs that sleep cannot. */
static __always_inline int judge_early(__u32 si, __u32 op)
{
	int ret = judge_early_with(si, op, RENEW_OR_FAIL);

	if (ret >= 0)
		return ret;
	identify(si);
	return judge_early_with(si, op, RENEW_OR_STRICT);
}

/*
 * early is judge_early, or without it when known; and it is true too where no rule of the shadow can hold, but the active side decided something: that is
 * told with all its facts.
 */
static __always_inline bool early(struct scratch *s, __u32 si, __u32 op, bool known)
{
	if (known ? judge_early_with(si, op, RENEW_OR_STRICT) : judge_early(si, op))
		return true;
	if (!s->was)
		return false;
	__builtin_memset(&s->early, 0, sizeof(s->early));
	return true;
}

/* judges tells whether a side has rules on op. */
static __always_inline bool judges(__u32 side, __u32 op)
{
	struct tables *t = bpf_map_lookup_elem(&sides, &side);

	return t && t->ops[op & (NUM_JUDGED - 1)].n_words;
}

/*
 * swap_classes puts the classes of the current thread for the shadow in the place of those for the active side, and back: the subject is then judged by
 * the same instructions. It is a matter of speed alone, as classes go with the generation that they are for.
 */
static __always_inline void swap_classes(void)
{
	struct task_struct *t = bpf_get_current_task_btf();
	struct proc *p = bpf_task_storage_get(&procs, t, 0, 0);
	struct shadow_classes *sc =
		bpf_task_storage_get(&shadow_classes, t, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
	__u64 *a, *b;

	if (!p || !sc)
		return;
	a = (void *)p + CLASSES_OFF;
	b = sc->classes;
	if (sc->exec_id != p->exec_id)
		__builtin_memset(b, 0, CLASSES_BYTES);
	sc->exec_id = p->exec_id;
	for (int i = 0; i < CLASSES_BYTES / 8; i++) {
		__u64 x = a[i];

		a[i] = b[i];
		b[i] = x;
	}
}

/*
 * turn is called when the active side has judged op and a shadow waits in s->shadow: what judges until turn_back is the shadow, and nothing comes of
 * that. Returns 0 when the shadow has nothing to say.
 */
__noinline int turn(__u32 si, __u32 op)
{
	struct scratch *s = scratch_at(si);
	struct shade_count *n;
	struct tables *t;
	__u32 side, class;

	if (!s)
		return 0;
	t = tables_of(s);
	if (!t)
		return 0;
	class = decided(&s->v);
	s->was = decision(&s->v, s->rung);
	s->was_rule = class < NUM_DECIDED ? s->v.rule[class] : NO_RULE;
	s->was_gen = t->gen;
	side = s->shadow - 1;
	s->shadow = 0;
	if (!s->was && !judges(side, op))
		return 0;
	swap_classes();
	s->side = side;
	s->shade = 1;
	if (op == OP_LATE)
		op = OP_EXEC;
	op = side * NUM_OPS + (op & (NUM_OPS - 1));
	n = bpf_map_lookup_elem(&shade_counts, &op);
	if (n)
		__sync_fetch_and_add(&n->judged, 1);
	return 1;
}

__noinline int turn_back(void)
{
	swap_classes();
	return 0;
}

/*
 * same_object adds a fact to the number by which repeats on one object are known. Inodes, modes and values are small numbers: put together as they are, two objects would
 * soon be one, and the second one's event a repeat of the first's. So the first fact too is added, to 0.
 */
static __always_inline __u64 same_object(__u64 object, __u64 fact)
{
	return (object ^ fact) *
	       0x9e3779b97f4a7c15ULL; /* odd, and of no pattern: 2^64 by the golden ratio */
}

/* Repeats of one rule by one process on one object within FOLD_NS are one event with a count. 16,384 entries; the least recent one goes, and its unreported count with it (it stays in op_stats.folded). */
#define FOLD_NS 1000000000ULL

struct fold_key {
	__u64 exec_id;
	__u64 object;
	__u32 rule;
	__u32 op; /* and the action, flags and was of the record */
};

struct fold {
	__u64 start;
	__u64 count; /* repeats since the last record */
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, struct fold_key);
	__type(value, struct fold);
} folds SEC(".maps");

/* send puts a finished record, at OFF_REC, into its ring and counts it. */
static __always_inline void send(struct scratch *s, struct rec_hdr *h, __u32 len, bool is_critical,
				 bool wake)
{
	struct op_stats *st = stats_of(h->op);
	__u64 n = len;
	long err;

	h->len = len;
	BOUND(n, BYTES - 1);
	/* Readers poll every few milliseconds: waking them for each record would cost the processes that are watched. */
	if (is_critical)
		err = bpf_ringbuf_output(&critical, h, n,
					 wake ? BPF_RB_FORCE_WAKEUP : BPF_RB_NO_WAKEUP);
	else
		err = bpf_ringbuf_output(&telemetry, h, n, BPF_RB_NO_WAKEUP);
	if (!st)
		return;
	if (!h->action) /* of lifecycle; a verdict has been counted, folded or not */
		__sync_fetch_and_add(&st->seen, 1);
	if (err)
		__sync_fetch_and_add(&st->lost, 1);
	else
		__sync_fetch_and_add(&st->delivered, 1);
	if (err && h->action && !(h->flags & REC_SHADOW)) {
		__u32 hk = s->side * NUM_RULES + (h->rules[0] & (NUM_RULES - 1));
		struct hit *hit = bpf_map_lookup_elem(&hits, &hk);

		if (hit)
			__sync_fetch_and_add(&hit->lost, 1);
	}
}

/* count_hits counts the rules that matched. */
static __always_inline void count_hits(struct scratch *s, __u32 side)
{
	for (int i = 0; i < REC_RULES; i++) {
		__u32 hk = side * NUM_RULES + (s->v.rules[i] & (NUM_RULES - 1));
		struct hit *hit;

		if (s->v.rules[i] == NO_RULE)
			continue;
		hit = bpf_map_lookup_elem(&hits, &hk);
		if (hit)
			__sync_fetch_and_add(&hit->hits, 1);
	}
}

/*
 * differs tells whether the shadow decided otherwise than the active side, and completes the record then. Where the shadow has no rule against it, the
 * active side's is named.
 */
static __always_inline bool differs(struct scratch *s, struct rec_hdr *h, __u32 side)
{
	__u32 is = decision(&s->v, s->rung), k = side * NUM_OPS + (s->op & (NUM_OPS - 1));
	struct shade_count *n;

	if (is == s->was)
		return false;
	h->action = is ? is & ~DONE : ACT_ALLOW;
	h->flags = REC_SHADOW | (is & DONE ? 0 : REC_MONITOR);
	h->was = s->was;
	n = bpf_map_lookup_elem(&shade_counts, &k);
	if (!is) {
		h->gen = s->was_gen;
		h->matched = 1;
		s->v.rules[0] = s->was_rule;
		s->v.rules[1] = NO_RULE;
		s->v.rules[2] = NO_RULE;
		s->v.rules[3] = NO_RULE;
	}
	if (is < s->was) {
		if (n)
			__sync_fetch_and_add(&n->laxer, 1);
	} else {
		__u32 hk = side * NUM_RULES + (s->v.rules[0] & (NUM_RULES - 1));
		struct hit *hit = bpf_map_lookup_elem(&hits, &hk);

		if (n)
			__sync_fetch_and_add(&n->stricter, 1);
		if (hit)
			__sync_fetch_and_add(&hit->lost, 1);
	}
	return true;
}

/*
 * report finishes the verdict record of len bytes at OFF_REC and sends it, unless it is a repeat. Returns the action to take.
 * A rung that cannot deny (KILL) reports a deny as one that would have been. Of the shadow's verdicts it reports those that differ, and takes no action.
 */
__noinline int report(__u32 si, __u32 kind, __u32 rung, __u64 object, __u32 len)
{
	struct scratch *s = scratch_at(si);
	struct rec_hdr *h;
	struct tables *t;
	struct proc *p;
	struct op_stats *st;
	struct fold_key k = {};
	struct fold *f, nf = {};
	__u64 now, id;
	__u32 side, class;
	int action = ACT_NONE;

	if (!s)
		return 0;
	side = s->side;
	t = bpf_map_lookup_elem(&sides, &side);
	if (!t)
		return 0;
	class = decided(&s->v);
	if (class >= NUM_DECIDED && !s->was)
		return 0;
	settle(&s->v, class);
	count_hits(s, side);
	h = (void *)&s->bytes[OFF_REC];
	now = bpf_ktime_get_boot_ns();
	id = bpf_get_current_pid_tgid();
	p = subject_proc(s, si);
	if (s->who != WHO_CURRENT && p)
		id = (__u64)p->pid << 32 | p->pid;
	st = stats_of(s->op);
	h->kind = kind;
	h->op = s->op;
	h->gen = t->gen;
	h->matched = s->v.matched;
	if (s->shade) {
		if (!differs(s, h, side))
			return 0;
	} else if (class < NUM_DECIDED) {
		h->action = s->v.action[class];
		h->flags = class == DECIDED_MONITOR ? REC_MONITOR : 0;
		h->was = 0;
		if (class == DECIDED_ENFORCED) {
			if ((rung == RUNG_KILL && h->action == ACT_DENY) || released())
				h->flags = REC_MONITOR;
			else
				action = h->action;
			if (s->who != WHO_CURRENT && action)
				h->action = ACT_DENY; /* nobody is there to be killed */
		}
	}
	h->time = now;
	h->exec_id = p ? p->exec_id : 0;
	h->pid = id >> 32;
	h->tid = id;
	h->rung = rung;
	__builtin_memcpy(h->rules, s->v.rules, sizeof(h->rules));
	if (st)
		__sync_fetch_and_add(&st->seen, 1);
	k.exec_id = h->exec_id;
	k.object = object;
	k.rule = h->rules[0];
	k.op = h->op | h->action << 8 | h->flags << 16 | (__u32)h->was << 24;
	h->count = 1;
	f = bpf_map_lookup_elem(&folds, &k);
	if (f) {
		if (now - f->start < FOLD_NS) {
			__sync_fetch_and_add(&f->count, 1);
			if (st)
				__sync_fetch_and_add(&st->folded, 1);
			return action;
		}
		h->count += f->count;
	}
	nf.start = now;
	bpf_map_update_elem(&folds, &k, &nf, BPF_ANY);
	s->sent = 1;
	send(s, h, len, action != ACT_NONE, true);
	return action;
}

#endif
