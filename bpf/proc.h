/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The identity of processes (DESIGN 4): each thread carries its process's in task storage.
 */
#ifndef PAVISE_PROC_H
#define PAVISE_PROC_H

#include "path.h"
#include "digest.h"

struct proc {
	/* What nothing but the programs knows of it: KNOWN_BYTES. */
	__u64 exec_id;
	__u64 parent_exec_id;
	__u64 start;
	__u64 image; /* the exec_id that its texts are under: those of the image that it runs; 0 for none */
	__u32 pid;
	__u8 flags; /* PROC_* */
	__u8 found;
	__u8 forked; /* it runs its parent's image: the executable's path is its first ancestor's too */
	__u8 recalled; /* its storage was lost, and what else was in it with it: the digests */
	/* The classes of the facts, and those facts of which they are that change while it runs: shadow_classes has these for the shadow. */
	__u64 caps;
	__u64 cgroup_id;
	__u32 euid, egid, uid, gid, login;
	__u32 gen;
	__u16 cls[NUM_AUTOMATA];
	__u8 ns; /* the namespaces that are the machine's own */
	__u8 pad[7];
};

/* One entry per thread, 256 bytes, which is what the kernel is quick to make, from the first time it is seen until it ends. The kernel limits it by memory only. */
struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct proc);
} procs SEC(".maps");

#define KNOWN_BYTES __builtin_offsetof(struct proc, caps)

/*
 * The first KNOWN_BYTES of each process by its pid: the kernel takes task storage away from a task whose fork fails, as the half-made child still has the pointer
 * to it (7df67a479906 "bpf,fork: wipe ->bpf_storage before bailouts that access it").
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1 << 17);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, KNOWN_BYTES);
} identities SEC(".maps");

/* The machine's own namespaces and the device of its root file system: find_host. */
struct host {
	struct ns ns;
	__u32 root_dev;
} host;

/* Things that should not happen, counted. */
enum err {
	ERR_SCRATCH,
	ERR_PROC,
	ERR_TEXTS, /* no room for a process's texts */
	ERR_RATE, /* no memory for a count */
	ERR_ENGINE, /* a hook without what judges for it */
	ERR_DOMAIN, /* no room for the name of an address */
	ERR_LISTEN, /* no room for who listens, or connects */
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

/*
 * Boot time in 256 ns, which grows between two forks on one CPU, and the CPU: unique until reboot, and 52 bits of it
 * last 36 years.
 */
static __always_inline __u64 new_exec_id(__u64 now)
{
	return (now >> 8) << 12 | (bpf_get_smp_processor_id() & 0xfff);
}

/* Set by user space when it has seen that this kernel leaves a task its storage: then nothing has to be noted. */
__u32 storage_stays;

/* keep notes what p is, for when its storage is lost. */
static __always_inline void keep(struct proc *p)
{
	__u32 pid = p->pid;

	if (storage_stays)
		return;
	if (bpf_map_update_elem(&identities, &pid, p, BPF_ANY))
		count_err(ERR_PROC);
}

/* keep_current is keep as a function of its own, for who calls deep functions too: their stacks add up. */
__noinline int keep_current(void)
{
	struct proc *p;

	if (storage_stays)
		return 1;
	p = bpf_task_storage_get(&procs, bpf_get_current_task_btf(), 0, 0);
	if (!p)
		return 0;
	keep(p);
	return 1;
}

/* kept_of is what was noted of a thread's process; NULL for one of which nothing was, or of another process that had its pid. */
static __always_inline struct proc *kept_of(struct task_struct *t)
{
	__u32 pid = t->tgid;
	struct proc *k = bpf_map_lookup_elem(&identities, &pid);

	return k && k->start == t->group_leader->start_boottime ? k : NULL;
}

/* recall gives a thread without an identity the one that was noted. */
static __always_inline struct proc *recall(struct task_struct *t)
{
	struct proc *k = kept_of(t);
	struct proc *p;

	if (!k)
		return NULL;
	p = bpf_task_storage_get(&procs, t, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (!p)
		return NULL;
	__builtin_memcpy(p, k, KNOWN_BYTES);
	p->recalled = 1;
	p->gen = 0;
	return p;
}

/* proc_of is a thread's identity. */
static __always_inline struct proc *proc_of(struct task_struct *t)
{
	struct proc *p = bpf_task_storage_get(&procs, t, 0, 0);

	return p ? p : recall(t);
}

/* recall_current is recall as keep_current is keep. */
__noinline int recall_current(void)
{
	return !!recall(bpf_get_current_task_btf());
}

/* exec_id_of is proc_of's where nothing more is asked. */
static __always_inline __u64 exec_id_of(struct task_struct *t)
{
	struct proc *p = bpf_task_storage_get(&procs, t, 0, 0);
	struct proc *k;

	if (p)
		return p->exec_id;
	k = kept_of(t);
	return k ? k->exec_id : 0;
}

/* is_agent tells whether the current thread is the agent's, which has no identity while it starts. */
__noinline int is_agent(__u64 agent)
{
	return !agent || exec_id_of(bpf_get_current_task_btf()) == agent;
}

static __always_inline __u64 cgroup_of(struct task_struct *t)
{
	struct cgroup *c = (void *)READ_PTR((struct css_set *)READ_PTR(t, cgroups), dfl_cgrp);
	__u32 id;

	if (READ(c, level) > 0)
		return (__u64)c;
	/* At the root of v2: on a hybrid host a v1 hierarchy says more. */
	if (bpf_core_enum_value_exists(enum cgroup_subsys_id___pavise, memory_cgrp_id___pavise)) {
		struct cgroup_subsys_state *css;
		struct css_set *set = (void *)READ_PTR(t, cgroups);

		id = bpf_core_enum_value(enum cgroup_subsys_id___pavise, memory_cgrp_id___pavise);
		css = (void *)read_word((void *)set +
					bpf_core_field_offset(struct css_set, subsys) + id * 8);
		if (css) {
			struct cgroup *v1 = (void *)READ_PTR(css, cgroup);

			if (READ(v1, level) > 0)
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

/*
 * The last path of a cgroup that was told with each piece of working memory, which is nearly always that of the next process on that CPU too. Names of
 * cgroups of v1 can change, those above it unseen: so it is believed for CGROUP_NS only.
 */
#define CGROUP_NS 1000000000ULL
#define PATH_TOLD 256

struct cgroup_told {
	__u64 id;
	__u64 name; /* where its name stands */
	__u64 time;
	__u32 len;
	__u8 path[PATH_TOLD];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 8); /* as scratches */
	__type(key, __u32);
	__type(value, struct cgroup_told);
} cgroups_told SEC(".maps");

/* cgroup_tell is cgroup_path for the record at OFF_REC. */
__noinline int cgroup_tell(__u32 si, __u32 off, __u64 cgrp)
{
	struct cgroup_told *c = bpf_map_lookup_elem(&cgroups_told, &si);
	struct kernfs_node *kn = (void *)READ_PTR((struct cgroup *)cgrp, kn);
	__u64 id = READ(kn, id), name = READ_PTR(kn, name), len;
	struct scratch *s = scratch_at(si);
	struct rec_proc *r;

	if (!s || !c)
		return 0;
	r = (void *)&s->bytes[OFF_REC];
	r->cgroup_id = id;
	if (c->id == id && c->name == name && r->hdr.time - c->time < CGROUP_NS) {
		len = c->len;
		BOUND(len, PATH_TOLD - 1);
		bpf_probe_read_kernel(at(s, off), len, c->path);
		return len;
	}
	len = cgroup_path(si, off, cgrp);
	c->id = 0;
	if (len < PATH_TOLD) {
		bpf_probe_read_kernel(c->path, PATH_TOLD, at(s, off));
		c->len = len;
		c->name = name;
		c->time = r->hdr.time;
		c->id = id;
	}
	return len;
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

/* kernel_cap_t is 8 bytes, of two types: 6.3 made one word of two (f122a08b197d "capability: just use a 'u64' instead of a 'u32[2]' array"). */
static __always_inline __u64 read_caps(const struct cred *c)
{
	return READ_PTR(c, cap_effective);
}

static __always_inline __u32 read_login(struct task_struct *t)
{
	return bpf_core_field_exists(t->loginuid) ? READ(t, loginuid.val) : ~0U;
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

/* found fills the identity of a task that already ran, from what the kernel still knows of its exec. */
static __always_inline void found(struct scratch *s, __u32 si, struct task_struct *t,
				  struct proc *p)
{
	struct mm_struct *mm = BPF_CORE_READ(t, mm);

	p->exec_id = (BPF_CORE_READ(t, group_leader, start_boottime) >> 8) << 12 |
		     (0x800 | (BPF_CORE_READ(t, tgid) & 0x7ff)); /* the same for all its threads */
	p->image = p->exec_id;
	p->forked = 0;
	p->start = BPF_CORE_READ(t, group_leader, start_boottime);
	p->pid = BPF_CORE_READ(t, tgid);
	p->found = 1;
	if (mm) {
		struct file *exe = BPF_CORE_READ(mm, exe_file);

		path_build(si, OFF_ALT, (__u64)BPF_CORE_READ(exe, f_path.dentry),
			   (__u64)BPF_CORE_READ(exe, f_path.mnt), 0);
		p->flags = exe_flags(s, BPF_CORE_READ(exe, f_inode, __i_nlink)) |
			   image_flags(BPF_CORE_READ(exe, f_inode, i_mode),
				       BPF_CORE_READ(exe, f_inode, i_sb, s_dev));
	}
}

/*
 * identify gives the current thread an identity when it has none: it lost it, it was made between the attachment of the programs and the end of the iteration,
 * or the program that sees new tasks was skipped for it. A thread takes its process's.
 */
__noinline int identify(__u32 si)
{
	struct scratch *s = scratch_at(si);
	struct task_struct *t = bpf_get_current_task_btf();
	struct proc *p, *leader = NULL;

	if (!s)
		return 0;
	if (recall_current())
		return 1;
	if (t->pid != t->tgid)
		leader = bpf_task_storage_get(&procs, t->group_leader, 0, 0);
	p = bpf_task_storage_get(&procs, t, leader, BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (!p)
		return 0;
	if (!p->exec_id) {
		found(s, si, t, p);
		p->recalled = 1; /* it may be one that was not kept for lack of room */
	}
	return 1;
}

#endif
