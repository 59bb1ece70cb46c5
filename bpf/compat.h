/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Where kernels differ: chosen by existence, never by version number.
 */
#ifndef PAVISE_COMPAT_H
#define PAVISE_COMPAT_H

#include "kernel.h"

/*
 * READ reads a field of a kernel object. bpf_rdonly_cast (6.2) makes a typed pointer of an address; what it points at is then loaded by one
 * instruction, and an address that faults reads as zero, as with the helper, whose call costs 20 ns where returns are mitigated.
 */
extern void *bpf_rdonly_cast(const void *obj, __u32 btf_id) __ksym __weak;

#define CAN_CAST (!!bpf_rdonly_cast)
#define CAST(p)	 ((typeof(p))bpf_rdonly_cast((p), bpf_core_type_id_kernel(typeof(*(p)))))
#define READ(p, field)                                                 \
	({                                                             \
		typeof(p) __p = (p);                                   \
		typeof(__p->field) __v = 0;                            \
		if (CAN_CAST)                                          \
			__v = CAST(__p)->field;                        \
		else                                                   \
			bpf_core_read(&__v, sizeof(__v), &__p->field); \
		__v;                                                   \
	})

/* load_word loads 8 bytes at an address; only with CAN_CAST. */
static __always_inline __u64 load_word(const void *addr)
{
	const struct rb_node *n = addr; /* any type that begins with a plain word */

	return CAST(n)->__rb_parent_color;
}

/* read_word reads 8 bytes at an address. */
static __always_inline __u64 read_word(const void *addr)
{
	__u64 v = 0;

	if (CAN_CAST)
		return load_word(addr);
	bpf_probe_read_kernel(&v, sizeof(v), addr);
	return v;
}

/* READ_PTR reads a field that is a pointer, as a number: to the verifier it is one, and can go through memory and to any function. */
#define READ_PTR(p, field)                                                                         \
	({                                                                                         \
		typeof(p) __p = (p);                                                               \
		__u64 __v = 0;                                                                     \
		if (CAN_CAST)                                                                      \
			__v = load_word((void *)__p + bpf_core_field_offset(typeof(*__p), field)); \
		else                                                                               \
			bpf_core_read(&__v, sizeof(__v), &__p->field);                             \
		__v;                                                                               \
	})

/* arg_at is argument n of a hook, as the number that it is, also where the verifier knows a type for it that it does not let through. */
static __always_inline __u64 arg_at(void *ctx, __u32 n)
{
	__u64 v = 0;

	bpf_probe_read_kernel(&v, sizeof(v), ctx + n * 8);
	return v;
}

/* The references to a file are counted by another type since 6.13 (90ee6ed776c0 "fs: port files to file_ref"): 0 is one. */
typedef struct {
	atomic64_t refcnt;
} __attribute__((preserve_access_index)) file_ref_t___new;

struct file___new {
	file_ref_t___new f_ref;
} __attribute__((preserve_access_index));

/* one_file tells whether a file has one reference: a descriptor, in one table. */
static __always_inline bool one_file(struct file *f)
{
	struct file___new *n = (void *)f;

	if (bpf_core_field_exists(n->f_ref))
		return !READ(n, f_ref.refcnt.counter);
	return READ(f, f_count.counter) == 1;
}

/* kernfs_node.parent became __parent, under RCU, in 6.15 (633488947ef6 "kernfs: Use RCU to access kernfs_node::parent"). */
struct kernfs_node___new {
	struct kernfs_node *__parent;
} __attribute__((preserve_access_index));

static __always_inline __u64 kernfs_parent(__u64 kn)
{
	struct kernfs_node___new *n = (void *)kn;

	if (bpf_core_field_exists(n->__parent))
		return READ_PTR(n, __parent);
	return READ_PTR((struct kernfs_node *)kn, parent);
}

/* The mounts of a super block are a list of another kind since 6.18 or so. */
struct super_block___new {
	struct mount *s_mounts;
} __attribute__((preserve_access_index));

struct mount___new {
	struct mount *mnt_next_for_sb;
} __attribute__((preserve_access_index));

/* is_only_mount tells whether a super block has no other mount. */
static __always_inline bool is_only_mount(struct mount *mnt, struct super_block *sb)
{
	struct mount___new *n = (void *)mnt;

	if (bpf_core_field_exists(n->mnt_next_for_sb))
		return !READ_PTR(n, mnt_next_for_sb) &&
		       READ_PTR((struct super_block___new *)sb, s_mounts) == (__u64)mnt;
	return READ_PTR(mnt, mnt_instance.next) == READ_PTR(mnt, mnt_instance.prev);
}

/* The interface by which a connection came was a field of inet_sock before 5.17 (0c0a5ef809f9 "tcp: move inet->rx_dst_ifindex to sk->sk_rx_dst_ifindex"). */
struct inet_sock___old {
	int rx_dst_ifindex;
} __attribute__((preserve_access_index));

static __always_inline __u32 interface_in(struct sock *sk)
{
	struct inet_sock___old *old = (void *)sk;
	struct mptcp_sock *msk = (void *)sk;

	if (bpf_core_type_exists(struct mptcp_sock) && READ(sk, sk_protocol) == IPPROTO_MPTCP)
		sk = (void *)READ_PTR(msk, first);
	if (bpf_core_field_exists(sk->sk_rx_dst_ifindex))
		return READ(sk, sk_rx_dst_ifindex);
	if (bpf_core_field_exists(old->rx_dst_ifindex))
		return READ(old, rx_dst_ifindex);
	return 0;
}

/* x86 tells a 32-bit system call by TS_COMPAT in thread_info.status, arm64 by TIF_32BIT in thread_info.flags. */
struct thread_info___x86 {
	__u32 status;
} __attribute__((preserve_access_index));

struct task_struct___x86 {
	struct thread_info___x86 thread_info;
} __attribute__((preserve_access_index));

static __always_inline bool compat_syscall(struct task_struct *t)
{
	struct task_struct___x86 *x = (void *)t;

	if (bpf_core_field_exists(x->thread_info.status))
		return READ(x, thread_info.status) & 2;
	return READ(t, thread_info.flags) >> 22 & 1;
}

/* The one place that knows where registers are: offsets into pt_regs, set by the loader for the machine's architecture. */
const volatile __u32 regs_nr_off = 120; /* x86-64: orig_ax */
const volatile __u32 regs_arg0_off = 112; /* x86-64: di, as the kernel leaves it during the call */
const volatile __u32 regs_arg0_off_compat = 40; /* i386: bx */
const volatile __u32 regs_arg1_off = 104; /* si */
const volatile __u32 regs_arg1_off_compat = 88; /* cx */
const volatile __u32 regs_arg2_off = 96; /* dx */
const volatile __u32 regs_arg2_off_compat = 96; /* dx */

static __always_inline __u64 reg_at(void *regs, __u32 off)
{
	return read_word(regs + (off & 0x1ff));
}

/* A constant of the preprocessor, 1 << 28, up to 6.12; an enum of other numbers in 6.18. */
enum dentry_flags___pavise {
	DCACHE_PAR_LOOKUP___pavise = 1 << 28,
};

/* The v1 controller whose hierarchy is taken when a process is at the root of v2 (hybrid hosts); found by name since numbers differ. */
enum cgroup_subsys_id___pavise {
	memory_cgrp_id___pavise = 100,
};

#endif
