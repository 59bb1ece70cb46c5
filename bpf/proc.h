/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The identity of processes (DESIGN 4), and the subject's part of a judgement: each thread carries its process's identity in task
 * storage, with the classes of its facts and the generation they were computed for.
 */
#ifndef PAVISE_PROC_H
#define PAVISE_PROC_H

#include "path.h"

#define PROC_STR \
	256 /* bytes of a path kept with the process; a longer executable path is walked again when it is needed */

struct proc {
	__u64 exec_id;
	__u64 parent_exec_id;
	__u64 start;
	__u64 caps; /* the facts for which cls was computed */
	__u64 cgroup_id;
	__u32 euid, egid, login;
	__u32 gen;
	__u32 pid;
	__u16 exe_len; /* the real lengths; over PROC_STR - 1 the string here is cut */
	__u16 parent_exe_len;
	__u16 script_len;
	__u8 flags; /* PROC_* */
	__u8 found;
	__u16 cls[NUM_AUTOMATA];
	__u8 exe[PROC_STR];
	__u8 parent_exe[PROC_STR];
	__u8 script[PROC_STR];
};

/* One entry per thread, about 1 KiB, from the first time it is seen until it ends. The kernel limits it by memory only. */
struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct proc);
} procs SEC(".maps");

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

/* Things that should not happen, counted. */
enum err {
	ERR_SCRATCH,
	ERR_PROC,
	ERR_TOO_LONG,
	NUM_ERRS = 8
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, NUM_ERRS);
	__type(key, __u32);
	__type(value, __u64);
} errors SEC(".maps");

static __always_inline void count_err(__u32 e)
{
	__u64 *n = bpf_map_lookup_elem(&errors, &e);

	if (n)
		(*n)++;
}

static __always_inline struct op_stats *stats_of(__u32 op)
{
	return bpf_map_lookup_elem(&stats, &op);
}

static __always_inline struct control *ctl(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&controls, &zero);
}

/*
 * Boot time in 256 ns, which grows between two forks on one CPU, and the CPU: unique until reboot, and 52 bits of it
 * last 36 years.
 */
static __always_inline __u64 new_exec_id(void)
{
	return (bpf_ktime_get_boot_ns() >> 8) << 12 | (bpf_get_smp_processor_id() & 0xfff);
}

static __always_inline __u64 cgroup_of(struct task_struct *t)
{
	struct cgroup *c = (void *)READ_PTR((struct css_set *)READ_PTR(t, cgroups), dfl_cgrp);
	__u32 id;

	if (READ(c, level) > 0)
		return (__u64)c;
	/* At the root of v2: on a hybrid host a v1 hierarchy says more. */
	if (bpf_core_enum_value_exists(enum cgroup_subsys_id___pavise, memory_cgrp_id___pavise)) {
		struct cgroup_subsys_state *css = NULL;
		struct css_set *set = BPF_CORE_READ(t, cgroups);

		id = bpf_core_enum_value(enum cgroup_subsys_id___pavise, memory_cgrp_id___pavise);
		bpf_probe_read_kernel(&css, sizeof(css),
				      (void *)set + bpf_core_field_offset(struct css_set, subsys) +
					      id * 8);
		if (css) {
			struct cgroup *v1 = BPF_CORE_READ(css, cgroup);

			if (BPF_CORE_READ(v1, level) > 0)
				return (__u64)v1;
		}
	}
	return (__u64)c;
}

#define CGROUP_DEPTH 32
#define CGROUP_PATH  2048

/* cgroup_up collects the names from s->dentry, a kernfs node, upwards, up to WALK of them; 0 when the root is reached. */
__noinline int cgroup_up(__u32 si)
{
	struct scratch *s = scratch_at(si);

	if (!s)
		return 0;
	for (int i = 0; i < WALK; i++) {
		__u64 kn = s->dentry, parent = kernfs_parent(kn);

		if (!parent)
			return 0;
		s->comps[s->n_comps & (MAX_COMPS - 1)].name =
			READ_PTR((struct kernfs_node *)kn, name);
		s->n_comps++;
		s->dentry = parent;
	}
	return 1;
}

/* cgroup_write appends up to WALK of the collected names, last first; 0 when it would become too long. */
__noinline int cgroup_write(__u32 si, __u32 off)
{
	struct scratch *s = scratch_at(si);

	if (!s)
		return 0;
	for (int i = 0; i < WALK; i++) {
		long len;

		if (!s->n_comps)
			break;
		s->n_comps--;
		*at(s, s->path_pos) = '/';
		len = bpf_probe_read_kernel_str(
			at(s, s->path_pos + 1), NAME_BYTES,
			(void *)s->comps[s->n_comps & (MAX_COMPS - 1)].name);
		s->path_pos += len < 1 ? 1 : len;
		if (s->path_pos - off > CGROUP_PATH - NAME_BYTES)
			return 0;
	}
	return 1;
}

/* cgroup_path writes the path of a cgroup at bytes[off], CGROUP_PATH at most, and returns its length; over MAX_STRING when it is deeper or longer. */
__noinline int cgroup_path(__u32 si, __u32 off, __u64 cgrp)
{
	struct scratch *s = scratch_at(si);
	int more = 1;

	if (!s)
		return 0;
	s->dentry = READ_PTR((struct cgroup *)cgrp, kn);
	s->n_comps = 0;
	for (int i = 0; i < CGROUP_DEPTH / WALK && more; i++)
		more = cgroup_up(si);
	if (more)
		return MAX_STRING + 1;
	s->path_pos = off;
	for (int i = 0; i < CGROUP_DEPTH / WALK; i++) {
		if (!s->n_comps)
			break;
		if (!cgroup_write(si, off))
			return MAX_STRING + 1;
	}
	if (s->path_pos == off) {
		*at(s, off) = '/';
		return 1;
	}
	return s->path_pos - off;
}

/* kernel_cap_t is 8 bytes, of two types: 6.3 made one word of two (f122a08b197d "capability: just use a 'u64' instead of a 'u32[2]' array"). */
static __always_inline __u64 read_caps(const struct cred *c)
{
	return READ_PTR(c, cap_effective);
}

static __always_inline __u32 read_login(struct task_struct *t)
{
	return bpf_core_field_exists(t->loginuid) ? READ(t, loginuid.val) : ~0U;
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
	v = read_login(t);
	diff |= v ^ p->login;
	p->login = v;
	return diff;
}

/* keep copies the first PROC_STR bytes at bytes[off] into a string of a proc. */
static __always_inline void keep(struct scratch *s, __u8 *dst, __u32 off)
{
	bpf_probe_read_kernel(dst, PROC_STR, at(s, off));
}

static __always_inline __u8 exe_flags(struct scratch *s, __u32 links)
{
	if (s->path_flags & PATH_PSEUDO)
		return PROC_MEMFD | (links ? 0 : PROC_DELETED);
	return s->path_flags & PATH_DELETED || !links ? PROC_DELETED : 0;
}

/* found fills the identity of a task that already ran, from what the kernel still knows of its exec. Its strings go to OFF_ALT and are left there. */
static __always_inline __u32 found(struct scratch *s, __u32 si, struct task_struct *t,
				   struct proc *p)
{
	struct mm_struct *mm = BPF_CORE_READ(t, mm);
	__u32 len = 0;

	p->exec_id = (BPF_CORE_READ(t, group_leader, start_boottime) >> 8) << 12 |
		     (0x800 | (BPF_CORE_READ(t, tgid) & 0x7ff)); /* the same for all its threads */
	p->start = BPF_CORE_READ(t, group_leader, start_boottime);
	p->pid = BPF_CORE_READ(t, tgid);
	p->found = 1;
	if (mm) {
		struct file *exe = BPF_CORE_READ(mm, exe_file);

		len = path_build(si, OFF_ALT, (__u64)BPF_CORE_READ(exe, f_path.dentry),
				 (__u64)BPF_CORE_READ(exe, f_path.mnt), 0);
		p->exe_len = len;
		p->flags = exe_flags(s, BPF_CORE_READ(exe, f_inode, __i_nlink));
		keep(s, p->exe, OFF_ALT);
	}
	return len;
}

/*
 * identify gives the current thread an identity when it has none: it was made between the attachment of the programs and the end of the iteration, or the
 * program that sees new tasks was skipped for it. A thread takes its process's.
 */
__noinline int identify(__u32 si)
{
	struct scratch *s = scratch_at(si);
	struct task_struct *t = bpf_get_current_task_btf();
	struct proc *p, *leader = NULL;

	if (!s)
		return 0;
	if (t->pid != t->tgid)
		leader = bpf_task_storage_get(&procs, t->group_leader, 0, 0);
	p = bpf_task_storage_get(&procs, t, leader, BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (!p)
		return 0;
	if (!p->exec_id)
		found(s, si, t, p);
	return 1;
}

/* Where subject() puts strings while it classifies them. */
#define OFF_EXE	       OFF_TMP
#define OFF_PARENT_EXE (OFF_TMP + 256)
#define OFF_SCRIPT     (OFF_TMP + 512)
#define OFF_CGROUP     (OFF_TMP + 1024)

/* subject_classes classifies the current thread's facts in these dimensions. */
__noinline int subject_classes(__u32 si, __u64 dims)
{
	struct scratch *s = scratch_at(si);
	struct proc *p = bpf_task_storage_get(&procs, bpf_get_current_task_btf(), 0, 0);
	struct tables *t;
	__u32 side;

	if (!s || !p)
		return 0;
	side = s->side;
	t = bpf_map_lookup_elem(&sides, &side);
	if (!t)
		return 0;
	for (int i = 0; i < NUM_AUTOMATA; i++) {
		__u32 dim = t->automata[i].dim & (NUM_DIMS - 1);

		if (!dim)
			break;
		if (dim < DIM_PATH && NEED(dims, dim))
			p->cls[i] = classify(si, side, i, s->dim_off[dim], s->dim_len[dim]);
	}
	return 0;
}

/* renew lays out a thread's own facts of these dimensions, for subject_classes. */
static __always_inline void renew(struct scratch *s, __u32 si, struct task_struct *t,
				  struct proc *p, __u64 stale)
{
	if (NEED(stale, DIM_EXE)) {
		set_dim(s, DIM_EXE, OFF_EXE, p->exe_len);
		if (p->exe_len < PROC_STR) {
			__builtin_memcpy(&s->bytes[OFF_EXE], p->exe, PROC_STR);
		} else {
			struct file *exe = BPF_CORE_READ(t, mm, exe_file);

			set_dim(s, DIM_EXE, OFF_ALT,
				path_build(si, OFF_ALT, (__u64)BPF_CORE_READ(exe, f_path.dentry),
					   (__u64)BPF_CORE_READ(exe, f_path.mnt), 0));
		}
	}
	if (NEED(stale, DIM_PARENT_EXE)) {
		set_dim(s, DIM_PARENT_EXE, OFF_PARENT_EXE,
			p->parent_exe_len < PROC_STR ? p->parent_exe_len : MAX_STRING + 1);
		__builtin_memcpy(&s->bytes[OFF_PARENT_EXE], p->parent_exe, PROC_STR);
	}
	if (NEED(stale, DIM_SCRIPT)) {
		set_dim(s, DIM_SCRIPT, OFF_SCRIPT,
			p->script_len < PROC_STR ? p->script_len : MAX_STRING + 1);
		__builtin_memcpy(&s->bytes[OFF_SCRIPT], p->script, PROC_STR);
	}
	if (NEED(stale, DIM_PROC_FLAGS))
		set_u8(s, DIM_PROC_FLAGS, p->flags);
	set_be32(s, DIM_UID, p->euid);
	set_be32(s, DIM_GID, p->egid);
	set_be32(s, DIM_LOGIN, p->login);
	*(__u64 *)&s->bytes[OFF_SMALL + DIM_CAPS * 16] = __builtin_bswap64(p->caps);
	set_dim(s, DIM_CAPS, OFF_SMALL + DIM_CAPS * 16, 8);
}

#define DIMS_CRED (DIM(DIM_UID) | DIM(DIM_GID) | DIM(DIM_LOGIN) | DIM(DIM_CAPS))

/*
 * subject brings the classes of the current thread's facts up to date: all of them when the generation has moved on, those of
 * credentials and cgroup when these have changed. Reads only what some rule needs. Returns NULL without an identity.
 */
static __always_inline struct proc *subject(struct scratch *s, __u32 si, struct tables *tb)
{
	struct task_struct *t = bpf_get_current_task_btf();
	struct proc *p = bpf_task_storage_get(&procs, t, 0, 0);
	__u64 need = tb->subject_need, cgrp, cgid, stale = 0;

	if (!p)
		return NULL;
	if (p->gen != tb->gen)
		stale = need;
	if (need & DIMS_CRED && renew_creds(t, p))
		stale |= need & DIMS_CRED;
	if (NEED(need, DIM_CGROUP)) {
		cgrp = cgroup_of(t);
		cgid = READ_PTR((struct kernfs_node *)READ_PTR((struct cgroup *)cgrp, kn), id);
		if (stale || cgid != p->cgroup_id) {
			stale |= DIM(DIM_CGROUP);
			p->cgroup_id = cgid;
			set_dim(s, DIM_CGROUP, OFF_CGROUP, cgroup_path(si, OFF_CGROUP, cgrp));
		}
	}
	if (stale) {
		renew(s, si, t, p, stale);
		subject_classes(si, stale);
		p->gen = tb->gen;
	}
	return p;
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
	struct tables *t;
	struct op_table *ot;
	__u32 side;

	if (!s)
		return 0;
	side = s->side;
	t = bpf_map_lookup_elem(&sides, &side);
	if (!t)
		return 0;
	s->op = op & (NUM_JUDGED - 1);
	s->met = 0;
	s->alias = 0;
	__builtin_memset(&s->v, 0, sizeof(s->v));
	ot = &t->ops[op & (NUM_JUDGED - 1)];
	if (!ot->n_words)
		return 0;
	s->left[0] = ot->all[0];
	s->left[1] = ot->all[1];
	s->left[2] = ot->all[2];
	s->left[3] = ot->all[3];
	if (ot->n_subject) {
		if (how == AS_THEY_ARE)
			p = bpf_task_storage_get(&procs, bpf_get_current_task_btf(), 0, 0);
		else
			p = subject(s, si, t);
		if (!p && how == RENEW_OR_FAIL)
			return -1;
		/* Without an identity, which takes lack of memory, every fact of the subject counts as too long to judge. */
		if (!p)
			count_err(ERR_PROC);
	}
	for (int i = 0; i < NUM_SLOTS; i++) {
		__u32 ai = ot->slots[i].automaton & (NUM_AUTOMATA - 1);

		if (i >= ot->n_early)
			break;
		if (i >= ot->n_subject)
			s->class = slot_class(s, si, t, ai, 0, 0);
		else if (p)
			s->class = p->cls[ai];
		else
			s->class = t->automata[ai].overlong;
		if (!meet(s, t, ot, i))
			return 0;
	}
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

/* Repeats of one rule by one process on one object within FOLD_NS are one event with a count. 16,384 entries; the least recent one goes, and its unreported count with it (it stays in op_stats.folded). */
#define FOLD_NS 1000000000ULL

struct fold_key {
	__u64 exec_id;
	__u64 object;
	__u32 rule;
	__u32 op; /* and the action */
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
	if (err)
		__sync_fetch_and_add(&st->lost, 1);
	else
		__sync_fetch_and_add(&st->delivered, 1);
	if (err && (h->action)) {
		__u32 hk = s->side * NUM_RULES + (h->rules[0] & (NUM_RULES - 1));
		struct hit *hit = bpf_map_lookup_elem(&hits, &hk);

		if (hit)
			__sync_fetch_and_add(&hit->lost, 1);
	}
}

/*
 * report finishes the verdict record of len bytes at OFF_REC and sends it, unless it is a repeat. Returns the action to take.
 * A rung that cannot deny (KILL) reports a deny as one that would have been.
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
	if (class >= NUM_DECIDED)
		return 0;
	settle(&s->v, class);
	h = (void *)&s->bytes[OFF_REC];
	now = bpf_ktime_get_boot_ns();
	id = bpf_get_current_pid_tgid();
	p = bpf_task_storage_get(&procs, bpf_get_current_task_btf(), 0, 0);
	st = stats_of(s->op);
	h->kind = kind;
	h->op = s->op;
	h->action = s->v.action[class];
	h->flags = class == DECIDED_MONITOR ? REC_MONITOR : 0;
	if (class == DECIDED_ENFORCED) {
		if (rung == RUNG_KILL && h->action == ACT_DENY)
			h->flags = REC_MONITOR;
		else
			action = h->action;
	}
	h->time = now;
	h->exec_id = p ? p->exec_id : 0;
	h->pid = id >> 32;
	h->tid = id;
	h->gen = t->gen;
	h->rung = rung;
	h->matched = s->v.matched;
	for (int i = 0; i < REC_RULES; i++) {
		__u32 hk = side * NUM_RULES + (s->v.rules[i] & (NUM_RULES - 1));
		struct hit *hit;

		h->rules[i] = s->v.rules[i];
		if (h->rules[i] == NO_RULE)
			continue;
		hit = bpf_map_lookup_elem(&hits, &hk);
		if (hit)
			__sync_fetch_and_add(&hit->hits, 1);
	}
	if (st)
		__sync_fetch_and_add(&st->seen, 1);
	k.exec_id = h->exec_id;
	k.object = object;
	k.rule = h->rules[0];
	k.op = h->op | h->action << 8 | h->flags << 16;
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
	send(s, h, len, action != ACT_NONE, true);
	return action;
}

#endif
