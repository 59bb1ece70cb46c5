//go:build ignore
/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The kernel's own doors: lsm/kernel_read_file, kernel_load_data and kernel_module_request (kernel.module, kernel.kexec), bpf, perf_event_open,
 * key_permission and key_alloc (kernel.keyring), inode_init_security_anon and uring_* (kernel.io_uring). Attached only while a rule judges the operation. When
 * working memory runs out, an operation that some enforced rule judges is refused.
 */

/* The numbers of these differ between kernels. */
enum kernel_read_file_id___pavise {
	READING_MODULE___pavise = 1,
	READING_MODULE_COMPRESSED___pavise,
	READING_KEXEC_IMAGE___pavise,
	READING_KEXEC_INITRAMFS___pavise,
};

enum kernel_load_data_id___pavise {
	LOADING_MODULE___pavise = 1,
	LOADING_KEXEC_IMAGE___pavise,
	LOADING_KEXEC_INITRAMFS___pavise,
};

#define IS(id, type, name) \
	(bpf_core_enum_value_exists(type, name) && (id) == bpf_core_enum_value(type, name))

SEC("lsm/kernel_read_file")
int BPF_PROG(lsm_read_file, struct file *file, int id, bool contents, int ret)
{
	struct scratch *s;
	__u32 op, si;

	if (ret || !file)
		return ret;
	if (IS(id, enum kernel_read_file_id___pavise, READING_MODULE___pavise) ||
	    IS(id, enum kernel_read_file_id___pavise, READING_MODULE_COMPRESSED___pavise))
		op = OP_MODULE;
	else if (IS(id, enum kernel_read_file_id___pavise, READING_KEXEC_IMAGE___pavise) ||
		 IS(id, enum kernel_read_file_id___pavise, READING_KEXEC_INITRAMFS___pavise))
		op = OP_KEXEC;
	else
		return 0;
	s = enter(op, &si, &ret);
	if (!s)
		return ret;
	set_open(s, file, 0);
	s->obj.value = SOURCE_FILE;
	return leave(s, si, op);
}

SEC("lsm/kernel_load_data")
int BPF_PROG(lsm_load_data, int id, bool contents, int ret)
{
	if (ret)
		return ret;
	if (IS(id, enum kernel_load_data_id___pavise, LOADING_MODULE___pavise))
		return judge_number(OP_MODULE, SOURCE_MEMORY, 0);
	if (IS(id, enum kernel_load_data_id___pavise, LOADING_KEXEC_IMAGE___pavise) ||
	    IS(id, enum kernel_load_data_id___pavise, LOADING_KEXEC_INITRAMFS___pavise))
		return judge_number(OP_KEXEC, SOURCE_MEMORY, 0);
	return 0;
}

/* judge_named judges an operation on a number and a name of the kernel's. */
static __always_inline int judge_named(__u32 op, __u64 value, __u64 name)
{
	struct scratch *s;
	__u32 si;
	int ret;

	s = enter(op, &si, &ret);
	if (!s)
		return ret;
	s->obj.value = value;
	s->obj.name_len = put_kstr(s, OFF_NAME, name);
	return leave(s, si, op);
}

/* What a process does makes the kernel load a module: a protocol, a file system. The loading itself is done by another process. */
SEC("lsm/kernel_module_request")
int BPF_PROG(lsm_module_request, char *name, int ret)
{
	return ret ?: judge_named(OP_MODULE, SOURCE_REQUEST, (__u64)name);
}

#define BPF_PROG_GET_NEXT_ID 11

/* next_agent tells whether the current process runs the agent's program: before an agent has found what one before it has left, nothing tells it from others else. */
static __always_inline bool next_agent(struct control *c)
{
	struct inode *exe = BPF_CORE_READ(bpf_get_current_task_btf(), mm, exe_file, f_inode);

	return exe && c->agent_ino && READ(exe, i_ino) == c->agent_ino &&
	       READ((struct super_block *)READ_PTR(exe, i_sb), s_dev) == c->agent_dev;
}

/*
 * The agent itself is not judged, nor the one that is to take its place: a rule that denies bpf(2) to all could not be taken back otherwise. It proves the rung by
 * a call that it makes for nothing else.
 */
SEC("lsm/bpf")
int BPF_PROG(lsm_bpf, int cmd)
{
	struct control *c = ctl();

	if (c && ((c->agent && is_agent(c->agent)) || next_agent(c)) &&
	    (c->selftest_op != OP_BPF || cmd != BPF_PROG_GET_NEXT_ID))
		return 0;
	return judge_number(OP_BPF, (__u32)cmd, 0);
}

/* The number of the argument type: there was one before it, attr, until 6.16 or so. Set by the loader from BTF. */
const volatile __u32 perf_type_arg;

SEC("lsm/perf_event_open")
int lsm_perf(unsigned long long *ctx)
{
	return judge_number(OP_PERF, (__u32)arg_at(ctx, perf_type_arg), 0);
}

static __always_inline int judge_key(struct key *key)
{
	struct scratch *s;
	__u32 si;
	int ret;

	s = enter(OP_KEYRING, &si, &ret);
	if (!s)
		return ret;
	s->obj.name_len = put_kstr(
		s, OFF_NAME, READ_PTR((struct key_type *)READ_PTR(key, index_key.type), name));
	s->obj.new_len = put_kstr(s, OFF_NEW, READ_PTR(key, index_key.description));
	return leave(s, si, OP_KEYRING);
}

/* A key_ref_t is the address of a key with a flag in its lowest bit. */
SEC("lsm/key_permission")
int lsm_key_permission(unsigned long long *ctx)
{
	return judge_key((void *)(arg_at(ctx, 0) & ~1ULL));
}

SEC("lsm/key_alloc")
int BPF_PROG(lsm_key_alloc, struct key *key)
{
	return judge_key(key);
}

/* 5.16 (91a9ab7c942a "io_uring: convert io_uring to the secure anon inode interface"): the ring's file is made under this name. */
SEC("lsm/inode_init_security_anon")
int BPF_PROG(lsm_anon_inode, struct inode *inode, const struct qstr *name, struct inode *context,
	     int ret)
{
	char n[12] = {};

	if (ret)
		return ret;
	bpf_probe_read_kernel_str(n, sizeof(n), (void *)READ_PTR((struct qstr *)name, name));
	if (__builtin_memcmp(n, "[io_uring]", 11))
		return 0;
	return judge_number(OP_IO_URING, IO_URING_SETUP, 0);
}

SEC("lsm/uring_sqpoll")
int BPF_PROG(lsm_uring_sqpoll, int ret)
{
	return ret ?: judge_number(OP_IO_URING, IO_URING_SQPOLL, 0);
}

SEC("lsm/uring_override_creds")
int BPF_PROG(lsm_uring_creds, const struct cred *new, int ret)
{
	return ret ?: judge_number(OP_IO_URING, IO_URING_CREDENTIALS, 0);
}

/* 6.0 (2a5840124009 "lsm,io_uring: add LSM hooks for the new uring_cmd file op"). */
SEC("lsm/uring_cmd")
int BPF_PROG(lsm_uring_cmd, void *cmd, int ret)
{
	return ret ?: judge_number(OP_IO_URING, IO_URING_COMMAND, 0);
}
