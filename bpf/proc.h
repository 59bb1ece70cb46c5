/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The identity of processes (DESIGN 4), and the subject's part of a judgement: each thread carries its process's identity in task
 * storage, with the classes of its facts and the generation they were computed for.
 */
#ifndef PAVISE_PROC_H
#define PAVISE_PROC_H

#include "path.h"
#include "digest.h"

#define PROC_STR \
	256 /* bytes of a path kept with the process; a longer executable path is walked again when it is needed */

struct proc {
	__u64 exec_id;
	__u64 parent_exec_id;
	__u64 start;
	/* The classes of the facts, and those facts of which they are that change while it runs: shadow_classes has these for the shadow. */
	__u64 caps;
	__u64 cgroup_id;
	__u32 euid, egid, uid, gid, login;
	__u32 gen;
	__u16 cls[NUM_AUTOMATA];
	__u8 ns; /* the namespaces that are the machine's own */
	__u8 pad[7];
	__u32 pid; /* the first of the rest */
	__u16 exe_len; /* the real lengths; over PROC_STR - 1 the string here is cut */
	__u16 parent_exe_len;
	__u16 script_len;
	__u8 flags; /* PROC_* */
	__u8 found;
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

#define CLASSES_OFF   __builtin_offsetof(struct proc, caps)
#define CLASSES_BYTES (__builtin_offsetof(struct proc, pid) - CLASSES_OFF)

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

/*
 * What is long of a process and the same for all its threads, by its exec_id: its line, which is the path of its executable and those of its
 * ancestors, nearest first, and its arguments, all followed by NUL. At fork a child gets its parent's, and the parent's executable is its first
 * ancestor; at exec the new executable takes the place of the old one. Most fit the short form; 32,768 processes, and 8,192 whose texts
 * are long. Without an entry, and where something was too long, the facts are judged as too long: strictly.
 */
#define LINE_BYTES 1024
#define ARGS_BYTES 3000

#define TEXT_UNKNOWN \
	0xfffe /* of a process found running: its arguments, until user space gives them */
#define TEXT_LONG 0xffff

struct texts {
	__u16 line_len; /* 0 to LINE_BYTES - 1, or TEXT_LONG */
	__u16 from; /* where the ancestors begin: behind the executable, once the process has called exec */
	__u16 args_len; /* 0 to ARGS_BYTES, or TEXT_LONG, TEXT_UNKNOWN */
	__u16 pad;
};

/* The values fill 512 bytes and 4 KiB of kernel memory together with what the kernel adds to them. */
struct texts_short {
	struct texts t;
	__u8 bytes[440];
};

struct texts_long {
	struct texts t;
	__u8 bytes[LINE_BYTES + ARGS_BYTES];
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 32768);
	__type(key, __u64);
	__type(value, struct texts_short);
} short_texts SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 8192);
	__type(key, __u64);
	__type(value, struct texts_long);
} long_texts SEC(".maps");

/* The machine's own namespaces and the device of its root file system: find_host. */
struct host {
	struct ns ns;
	__u32 root_dev;
} host;

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
	ERR_TEXTS, /* no room for a process's texts */
	ERR_RATE, /* no memory for a count */
	ERR_ENGINE, /* a hook without what judges for it */
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

static __always_inline void read_ns(struct task_struct *t, struct ns *n)
{
	struct nsproxy *ns = (void *)READ_PTR(t, nsproxy);
	struct cred *c = (void *)READ_PTR(t, cred);
	struct pid *pid = (void *)READ_PTR(t, thread_pid);
	struct pid_namespace *pns = NULL;
	__u32 level;

	__builtin_memset(n, 0, sizeof(*n));
	n->user = READ((struct user_namespace *)READ_PTR(c, user_ns), ns.inum);
	if (ns) {
		n->mnt = READ((struct mnt_namespace *)READ_PTR(ns, mnt_ns), ns.inum);
		n->net = READ((struct net *)READ_PTR(ns, net_ns), ns.inum);
		n->uts = READ((struct uts_namespace *)READ_PTR(ns, uts_ns), ns.inum);
		n->ipc = READ((struct ipc_namespace *)READ_PTR(ns, ipc_ns), ns.inum);
		if (bpf_core_field_exists(ns->cgroup_ns))
			n->cgroup =
				READ((struct cgroup_namespace *)READ_PTR(ns, cgroup_ns), ns.inum);
	}
	level = READ(pid, level);
	bpf_probe_read_kernel(&pns, sizeof(pns),
			      (void *)pid + bpf_core_field_offset(struct pid, numbers) +
				      (level & 31) * bpf_core_type_size(struct upid) +
				      bpf_core_field_offset(struct upid, ns));
	if (pns)
		n->pid = READ(pns, ns.inum);
}

static __always_inline __u8 host_ns(struct ns *n)
{
	return (n->mnt == host.ns.mnt) << 0 | (n->pid == host.ns.pid) << 1 |
	       (n->net == host.ns.net) << 2 | (n->user == host.ns.user) << 3 |
	       (n->cgroup == host.ns.cgroup) << 4 | (n->uts == host.ns.uts) << 5 |
	       (n->ipc == host.ns.ipc) << 6;
}

/* current_ns is host_ns of the current thread. */
__noinline int current_ns(void)
{
	struct ns n;

	read_ns(bpf_get_current_task_btf(), &n);
	return host_ns(&n);
}

/* texts_load copies the texts of a process to OFF_ALT; 0 when there are none. */
__noinline int texts_load(__u32 si, __u64 exec_id)
{
	struct scratch *s = scratch_at(si);
	void *t;

	if (!s)
		return 0;
	t = bpf_map_lookup_elem(&short_texts, &exec_id);
	if (t) {
		bpf_probe_read_kernel(&s->bytes[OFF_ALT], sizeof(struct texts_short), t);
		return 1;
	}
	t = bpf_map_lookup_elem(&long_texts, &exec_id);
	if (!t)
		return 0;
	bpf_probe_read_kernel(&s->bytes[OFF_ALT], sizeof(struct texts_long), t);
	return 1;
}

/* texts_keep makes the texts at bytes[off] those of a process. */
__noinline int texts_keep(__u32 si, __u64 exec_id, __u32 off)
{
	struct scratch *s = scratch_at(si);
	struct texts *t;
	__u32 len = 0;
	long err;

	if (!s)
		return 0;
	t = (void *)at(s, off);
	if (t->line_len < LINE_BYTES)
		len += t->line_len;
	if (t->args_len <= ARGS_BYTES)
		len += t->args_len;
	if (len <= sizeof(((struct texts_short *)0)->bytes))
		err = bpf_map_update_elem(&short_texts, &exec_id, t, BPF_ANY);
	else
		err = bpf_map_update_elem(&long_texts, &exec_id, t, BPF_ANY);
	if (err)
		count_err(ERR_TEXTS);
	return 0;
}

__noinline int texts_drop(__u64 exec_id)
{
	if (bpf_map_delete_elem(&short_texts, &exec_id))
		bpf_map_delete_elem(&long_texts, &exec_id);
	return 0;
}

/* Where the bytes of the texts at OFF_ALT begin. */
#define OFF_LINE (OFF_ALT + sizeof(struct texts))

/* equal compares two strings of bytes up to PROC_STR long; longer ones differ. */
__noinline int equal(__u32 si, __u32 a, __u32 b, __u32 len)
{
	struct scratch *s = scratch_at(si);

	if (!s || len > PROC_STR)
		return 0;
	for (int i = 0; i < PROC_STR / 8; i++) {
		__u64 x;

		if (!len)
			break;
		x = load64(at(s, a)) ^ load64(at(s, b));
		if (len < 8) {
			x &= (1ULL << ((len & 7) * 8)) - 1;
			len = 8;
		}
		if (x)
			return 0;
		a += 8;
		b += 8;
		len -= 8;
	}
	return 1;
}

/* line_long says that the line of the texts at t is not known: neither are those of the process's descendants, then. */
static __always_inline void line_long(struct texts *t)
{
	t->line_len = TEXT_LONG;
	t->from = 0;
}

/*
 * line_next appends the executable of s->task, which is the turn'th, to the line at OFF_ALT and goes to the task's parent. 1 when there is one, 0 when not, 2
 * when the line becomes too long.
 */
__noinline int line_next(__u32 si, __u32 turn)
{
	struct scratch *s = scratch_at(si);
	struct task_struct *t, *parent;
	struct mm_struct *mm;
	struct file *exe;
	__u32 len = 0;

	if (!s)
		return 0;
	t = (void *)s->task;
	mm = (void *)READ_PTR(t, mm);
	exe = mm ? (void *)READ_PTR(mm, exe_file) : NULL;
	if (exe)
		len = path_build(si, OFF_TMP, READ_PTR(exe, f_path.dentry),
				 READ_PTR(exe, f_path.mnt), 0);
	if (turn && s->line_len - s->line_last == len + 1 &&
	    equal(si, OFF_LINE + s->line_last, OFF_TMP, len)) {
		if (turn == 1)
			s->line_from = 0;
	} else {
		if (s->line_len + len + 1 >= LINE_BYTES)
			return 2;
		bpf_probe_read_kernel(at(s, OFF_LINE + s->line_len), len & (LINE_BYTES - 1),
				      at(s, OFF_TMP));
		s->line_last = s->line_len;
		s->line_len += len + 1;
		*at(s, OFF_LINE + s->line_len - 1) = 0;
		if (!turn)
			s->line_from = s->line_len;
	}
	parent = (void *)READ_PTR(t, real_parent);
	s->task = (__u64)parent;
	return READ(parent, pid) != 0;
}

#define LINE_TURNS 64

/* texts_found makes the texts of a process that already ran, s->task, from the ancestors that still run. */
__noinline int texts_found(__u32 si, __u64 exec_id)
{
	struct scratch *s = scratch_at(si);
	struct texts *t;
	int more = 1;

	if (!s)
		return 0;
	s->line_len = s->line_from = s->line_last = 0;
	for (int i = 0; i < LINE_TURNS; i++) {
		more = line_next(si, i);
		if (more != 1)
			break;
	}
	t = (void *)&s->bytes[OFF_ALT];
	t->line_len = s->line_len;
	t->from = s->line_from;
	if (more)
		line_long(t);
	t->args_len = TEXT_UNKNOWN;
	return texts_keep(si, exec_id, OFF_ALT);
}

/* What found_task does; 2: everything that ran already has been found. A process without texts has lost them then. */
__u32 iter_phase;

/* texts_current is texts_load of the current process, which may not have been found yet. */
static __always_inline int texts_current(struct scratch *s, __u32 si, __u64 exec_id)
{
	if (texts_load(si, exec_id))
		return 1;
	if (iter_phase >= 2)
		return 0;
	s->task = READ_PTR(bpf_get_current_task_btf(), group_leader);
	texts_found(si, exec_id);
	return texts_load(si, exec_id);
}

/* texts_fork gives a child of the current process its texts. */
static __always_inline void texts_fork(struct scratch *s, __u32 si, __u64 parent, __u64 child)
{
	struct texts *t = (void *)&s->bytes[OFF_ALT];

	if (!texts_current(s, si, parent))
		return;
	t->from = 0;
	texts_keep(si, child, OFF_ALT);
}

/* texts_exec gives the current process, whose exec_id was old, the texts of the image whose record stands at OFF_REC. */
__noinline int texts_exec(__u32 si, __u64 old)
{
	struct scratch *s = scratch_at(si);
	__u32 path = OFF_REC + sizeof(struct rec_proc), to = OFF_TMP + sizeof(struct texts);
	__u32 len, up, up_len;
	struct texts *was, *t;
	struct rec_proc *r;

	if (!s)
		return 0;
	r = (void *)&s->bytes[OFF_REC];
	was = (void *)&s->bytes[OFF_ALT];
	t = (void *)&s->bytes[OFF_TMP];
	line_long(t);
	len = r->path_len;
	if (texts_current(s, si, old) && was->line_len < LINE_BYTES &&
	    !(r->exe.flags & FILE_TRUNCATED)) {
		up = OFF_LINE + was->from;
		up_len = was->line_len - was->from;
		t->from = len + 1;
		/* A program that starts itself again and again makes the line no longer. */
		if (up_len > len && !*at(s, up + len) && equal(si, path, up, len))
			t->from = 0;
		t->line_len = t->from + up_len;
		if (t->from + up_len < LINE_BYTES) {
			bpf_probe_read_kernel(at(s, to), len & (LINE_BYTES - 1), at(s, path));
			*at(s, to + len) = 0;
			bpf_probe_read_kernel(at(s, to + t->from), up_len & (LINE_BYTES - 1),
					      at(s, up));
			to += t->line_len;
		} else {
			line_long(t);
		}
	}
	t->args_len = TEXT_LONG;
	if (!(r->flags & PROC_ARGSCUT) && r->args_len <= ARGS_BYTES) {
		t->args_len = r->args_len;
		bpf_probe_read_kernel(at(s, to), t->args_len & 0xfff,
				      at(s, path + len + r->script_len));
	}
	texts_keep(si, r->hdr.exec_id, OFF_TMP);
	return texts_drop(old);
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

/* image_flags is what a process keeps of the inode of its executable. */
static __always_inline __u8 image_flags(__u16 mode, __u32 dev)
{
	return (mode & S_ISUID ? PROC_SETUID : 0) | (mode & S_ISGID ? PROC_SETGID : 0) |
	       (dev && dev == host.root_dev ? PROC_ON_ROOT : 0);
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
		p->flags = exe_flags(s, BPF_CORE_READ(exe, f_inode, __i_nlink)) |
			   image_flags(BPF_CORE_READ(exe, f_inode, i_mode),
				       BPF_CORE_READ(exe, f_inode, i_sb, s_dev));
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
#define OFF_DIGESTS    (OFF_TMP + 1024 + CGROUP_PATH)

#define CLASSES 4

/* classes_some is subject_classes for CLASSES automata, from s->first on; 0 after the last. */
__noinline int classes_some(__u32 si, __u64 dims)
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
	for (int i = 0; i < CLASSES; i++) {
		__u64 ai = s->first;
		__u32 dim;

		BOUND(ai, NUM_AUTOMATA - 1);
		dim = t->automata[ai].dim & (NUM_DIMS - 1);
		if (!dim)
			return 0;
		if (dim < DIM_PATH && NEED(dims, dim))
			p->cls[ai] = classify(si, ai, s->dim_off[dim], s->dim_len[dim]);
		s->first++;
	}
	return 1;
}

/* subject_classes classifies the current thread's facts in these dimensions. */
static __always_inline void subject_classes(struct scratch *s, __u32 si, __u64 dims)
{
	s->derived = 0;
	s->first = 0;
	for (int i = 0; i < NUM_AUTOMATA / CLASSES; i++)
		if (!classes_some(si, dims))
			break;
}

/* subject_texts reads the texts of the current process. */
__noinline int subject_texts(__u32 si)
{
	struct scratch *s = scratch_at(si);
	struct proc *p = bpf_task_storage_get(&procs, bpf_get_current_task_btf(), 0, 0);
	__u32 args = OFF_LINE, args_len = MAX_STRING + 1, up = OFF_LINE, up_len = MAX_STRING + 1;

	if (!s || !p)
		return 0;
	if (texts_load(si, p->exec_id)) {
		struct texts *t = (void *)&s->bytes[OFF_ALT];

		if (t->line_len < LINE_BYTES) {
			up += t->from;
			up_len = t->line_len - t->from;
			args += t->line_len;
		}
		if (t->args_len <= ARGS_BYTES)
			args_len = t->args_len;
	}
	set_dim(s, DIM_ARGS, args, args_len);
	set_dim(s, DIM_ANCESTORS, up, up_len);
	return 0;
}

#define DIMS_CRED                                                                           \
	(DIM(DIM_UID) | DIM(DIM_GID) | DIM(DIM_LOGIN) | DIM(DIM_CAPS) | DIM(DIM_REAL_UID) | \
	 DIM(DIM_REAL_GID))
#define DIMS_TEXTS  (DIM(DIM_ARGS) | DIM(DIM_ANCESTORS))
#define DIMS_DIGEST (DIM(DIM_DIGEST) | DIM(DIM_VERITY))

/* subject_digests lays out the digests of the current process's image. */
__noinline int subject_digests(__u32 si)
{
	struct scratch *s = scratch_at(si);
	struct digests *d = bpf_task_storage_get(&image_digests, bpf_get_current_task_btf(), 0, 0);
	__u32 off = OFF_DIGESTS + DIGEST_TEXT;

	if (!s)
		return 0;
	set_dim(s, DIM_DIGEST, OFF_DIGESTS, 0);
	set_dim(s, DIM_VERITY, off, 0);
	if (!d)
		return 0;
	set_dim(s, DIM_DIGEST, OFF_DIGESTS, d->now[DIGEST_CONTENT].len);
	__builtin_memcpy(&s->bytes[OFF_DIGESTS], d->now[DIGEST_CONTENT].text, DIGEST_TEXT);
	set_dim(s, DIM_VERITY, off, d->now[DIGEST_VERITY].len);
	__builtin_memcpy(&s->bytes[OFF_DIGESTS + DIGEST_TEXT], d->now[DIGEST_VERITY].text,
			 DIGEST_TEXT);
	return 0;
}

/* renew lays out a thread's own facts of these dimensions, for subject_classes. */
static __always_inline void renew(struct scratch *s, __u32 si, struct task_struct *t,
				  struct proc *p, __u64 stale)
{
	if (NEED(stale, DIM_EXE)) {
		set_dim(s, DIM_EXE, OFF_EXE, p->exe_len);
		if (p->exe_len < PROC_STR) {
			bpf_probe_read_kernel(&s->bytes[OFF_EXE], PROC_STR, p->exe);
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
		bpf_probe_read_kernel(&s->bytes[OFF_PARENT_EXE], PROC_STR, p->parent_exe);
	}
	if (NEED(stale, DIM_SCRIPT)) {
		set_dim(s, DIM_SCRIPT, OFF_SCRIPT,
			p->script_len < PROC_STR ? p->script_len : MAX_STRING + 1);
		bpf_probe_read_kernel(&s->bytes[OFF_SCRIPT], PROC_STR, p->script);
	}
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

/*
 * moved takes those of the current thread's facts in the dimensions need that can change while it runs, and returns stale with those that
 * have changed.
 */
__noinline int moved(__u32 si, __u32 need, __u32 stale)
{
	struct scratch *s = scratch_at(si);
	struct task_struct *t = bpf_get_current_task_btf();
	struct proc *p = bpf_task_storage_get(&procs, t, 0, 0);
	__u64 cgrp, cgid;
	__u8 ns;

	if (!s || !p)
		return 0;
	if (need & DIMS_CRED && renew_creds(t, p))
		stale |= need & DIMS_CRED;
	if (NEED(need, DIM_NS)) {
		ns = current_ns();
		if (ns != p->ns)
			stale |= DIM(DIM_NS);
		p->ns = ns;
	}
	if (NEED(need, DIM_CGROUP)) {
		cgrp = cgroup_of(t);
		cgid = READ_PTR((struct kernfs_node *)READ_PTR((struct cgroup *)cgrp, kn), id);
		if (stale || cgid != p->cgroup_id) {
			stale |= DIM(DIM_CGROUP);
			p->cgroup_id = cgid;
			set_dim(s, DIM_CGROUP, OFF_CGROUP, cgroup_path(si, OFF_CGROUP, cgrp));
		}
	}
	return stale;
}

#define DIMS_MOVING (DIMS_CRED | DIM(DIM_NS) | DIM(DIM_CGROUP))

/*
 * subject brings the classes of the current thread's facts up to date: all of them when the generation has moved on, those of
 * credentials, namespaces and cgroup when these have changed. Reads only what some rule needs. Returns NULL without an identity.
 */
static __always_inline struct proc *subject(struct scratch *s, __u32 si, struct tables *tb)
{
	struct task_struct *t = bpf_get_current_task_btf();
	struct proc *p = bpf_task_storage_get(&procs, t, 0, 0);
	__u32 stale = 0;

	if (!p)
		return NULL;
	if (p->gen != tb->gen)
		stale = tb->subject_need;
	if (tb->subject_need & DIMS_MOVING)
		stale = moved(si, tb->subject_need, stale);
	if (stale) {
		if (stale & DIMS_TEXTS) { /* before DIM_EXE, which may stand at the same place */
			subject_texts(si);
			subject_classes(s, si, stale & DIMS_TEXTS);
		}
		renew(s, si, t, p, stale);
		subject_classes(s, si, stale & ~DIMS_TEXTS);
		p->gen = tb->gen;
	}
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
		s->unknown[i] = t->automata[i].overlong;
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
	cls = s->unknown;
	s->op = op & (NUM_JUDGED - 1);
	s->met = 0;
	s->alias = 0;
	__builtin_memset(&s->v, 0, sizeof(s->v));
	__builtin_memset(&s->counted, 0, sizeof(s->counted));
	s->derived = 0;
	s->now *= how >> 1; /* 0 but for tests; without a branch, for the verifier's sake */
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
	if (!meet_slots(s, si, t, ot, ot->n_subject, ot->n_early, 0, 0))
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
	p = bpf_task_storage_get(&procs, bpf_get_current_task_btf(), 0, 0);
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
			if (rung == RUNG_KILL && h->action == ACT_DENY)
				h->flags = REC_MONITOR;
			else
				action = h->action;
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
	send(s, h, len, action != ACT_NONE, true);
	return action;
}

#endif
