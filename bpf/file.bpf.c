//go:build ignore
/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Files: lsm/file_open (file.open) and lsm/bprm_check_security (process.exec). Attached only while a rule judges the
 * operation. When working memory runs out, an operation that some enforced rule judges is refused.
 */

#define ACCESS_READ	(1 << 0)
#define ACCESS_WRITE	(1 << 1)
#define ACCESS_EXEC	(1 << 2)
#define ACCESS_CREATE	(1 << 3)
#define ACCESS_TRUNCATE (1 << 4)
#define ACCESS_APPEND	(1 << 5)

#define FMODE_READ    0x1
#define FMODE_WRITE   0x2
#define FMODE_EXEC    0x20 /* __FMODE_EXEC, in f_flags */
#define FMODE_CREATED 0x100000
#define O_CREAT	      0100
#define O_EXCL	      0200
#define O_TRUNC	      01000
#define O_APPEND      02000
#define O_PATH	      010000000

static __always_inline __u8 access_of(__u32 mode, __u32 flags)
{
	__u8 a = 0;

	if (mode & FMODE_READ)
		a |= ACCESS_READ;
	if (mode & FMODE_WRITE)
		a |= ACCESS_WRITE;
	if (flags & FMODE_EXEC)
		a |= ACCESS_EXEC;
	if (mode & FMODE_CREATED)
		a |= ACCESS_CREATE;
	if (flags & O_TRUNC)
		a |= ACCESS_TRUNCATE;
	if (flags & O_APPEND)
		a |= ACCESS_APPEND;
	return a;
}

/* Which name of a file decided, in verdict.alias. */
#define ALIAS_CANON 1
#define ALIAS_EXTRA 2
#define ALIAS_INODE 3 /* and INODE_NAMES more */

/*
 * verdict_file judges op on a file under all its names: s->v. The path stands behind the record, path_len and canon_len say how long
 * it and the canonical path at OFF_ALT are. known: the thread has an identity, or does not get one (programs that sleep cannot give it). Returns whether there is anything to act on or to report.
 */
static __always_inline int verdict_file(struct scratch *s, __u32 si, __u32 op, __u64 dentry,
					__u64 mnt, __u64 inode, __u8 access, bool known)
{
	struct rec_file *r = (void *)&s->bytes[OFF_REC];
	struct op_table *ot;
	struct tables *t;
	struct control *c = ctl();
	__u32 side, len, pos;
	bool other;

	if (!c)
		return 0;
	side = c->active & 1;
	t = bpf_map_lookup_elem(&sides, &side);
	if (!t)
		return 0;
	s->side = side;
	ot = &t->ops[op & (NUM_JUDGED - 1)];
	if (!ot->n_words)
		return 0;
	read_inode(inode, &r->inode);
	r->inode.access = access;
	set_u8(s, DIM_ACCESS, access);
	set_be32(s, DIM_OWNER, r->inode.owner);
	set_be16(s, DIM_MODE, r->inode.mode);
	if (NEED(ot->need, DIM_FS))
		set_dim(s, DIM_FS, OFF_SMALL + DIM_FS * 16,
			read_fs(s, OFF_SMALL + DIM_FS * 16, inode));
	pos = OFF_REC + sizeof(*r);
	if (NEED(ot->need, DIM_FILE_FLAGS)) {
		/* Whether the file has a name is known by its path alone. */
		len = path_build(si, pos, dentry, mnt, 0);
		set_u8(s, DIM_FILE_FLAGS, exe_flags(s, r->inode.links));
		if (!(known ? judge_early_with(si, op, 0) : judge_early(si, op)))
			return 0;
	} else {
		if (!(known ? judge_early_with(si, op, 0) : judge_early(si, op)))
			return 0;
		len = path_build(si, pos, dentry, mnt, 0);
	}
	r->inode.flags = (s->path_flags & PATH_PSEUDO ? FILE_MEMFD : 0) |
			 (s->path_flags & PATH_DELETED || !r->inode.links ? FILE_DELETED : 0) |
			 (len > MAX_STRING ? FILE_TRUNCATED : 0);
	s->path_len = len;
	s->canon_len = 0;
	other = s->path_flags & PATH_OTHER;
	judge(si, pos, len, 0);
	if (NEED(ot->need, DIM_PATH)) {
		if (other) {
			s->canon_len = path_build(si, OFF_ALT, dentry, mnt, 1);
			if (s->canon_len)
				judge(si, OFF_ALT, s->canon_len, ALIAS_CANON);
		}
		if (s->extra_len)
			judge(si, OFF_EXTRA, s->extra_len, ALIAS_EXTRA);
		if (r->inode.links > 1 || t->aliases) {
			struct inode_key k = { .ino = r->inode.ino,
					       .dev = r->inode.dev,
					       .gen = inode_gen(inode) };

			for (int n = 0; n < INODE_NAMES; n++) {
				struct inode_name *in;

				k.n = n;
				in = bpf_map_lookup_elem(&inodes, &k);
				if (!in)
					break;
				bpf_probe_read_kernel(&s->bytes[OFF_TMP + n * NAME_BYTES],
						      NAME_BYTES, in->name);
				judge(si, OFF_TMP + n * NAME_BYTES, in->len & (NAME_BYTES - 1),
				      ALIAS_INODE + n);
			}
		}
	}
	return decided(&s->v) < NUM_DECIDED;
}

/* judge_file judges op on a file, reports, and returns the action to take. */
static __always_inline int judge_file(struct scratch *s, __u32 si, __u32 op, __u64 dentry,
				      __u64 mnt, __u64 inode, __u8 access, __u8 rung)
{
	struct rec_file *r = (void *)&s->bytes[OFF_REC];
	__u32 aoff = 0, pos = OFF_REC + sizeof(*r);

	if (!verdict_file(s, si, op, dentry, mnt, inode, access, false))
		return 0;
	r->path_len = clip(s->path_len);
	pos += r->path_len;
	r->alias_len = 0;
	if (s->v.alias == ALIAS_CANON) {
		aoff = OFF_ALT;
		r->alias_len = clip(s->canon_len);
	} else if (s->v.alias == ALIAS_EXTRA) {
		aoff = OFF_EXTRA;
		r->alias_len = clip(s->extra_len);
	} else if (s->v.alias) {
		struct inode_key k = { .ino = r->inode.ino,
				       .dev = r->inode.dev,
				       .gen = inode_gen(inode),
				       .n = s->v.alias - ALIAS_INODE };
		struct inode_name *in = bpf_map_lookup_elem(&inodes, &k);

		aoff = OFF_TMP + (s->v.alias - ALIAS_INODE) * NAME_BYTES;
		if (in)
			r->alias_len = in->len & (NAME_BYTES - 1);
	}
	if (r->alias_len)
		bpf_probe_read_kernel(at(s, pos), r->alias_len & 0xfff, at(s, aoff));
	pos += r->alias_len;
	r->fs_len = read_fs(s, pos, inode);
	pos += r->fs_len;
	return report(si, REC_FILE, rung, r->inode.ino ^ (__u64)r->inode.dev << 40 ^ access,
		      pos - OFF_REC);
}

/* enforces tells whether refusing without a verdict is right: some enforced rule judges the operation. */
static __always_inline bool enforces(struct control *c, __u32 op)
{
	__u32 side = c->active & 1;
	struct tables *t = bpf_map_lookup_elem(&sides, &side);

	return t && t->ops[op & (NUM_JUDGED - 1)].enforces;
}

/* idle tells that nothing judges op: the first thing a hook asks. */
static __always_inline bool idle(struct control *c, __u32 op)
{
	__u32 side = c->active & 1;
	struct tables *t = bpf_map_lookup_elem(&sides, &side);

	return !t || !t->ops[op & (NUM_JUDGED - 1)].n_words;
}

/* selftest tells whether this call is the one by which the agent proves the rung. */
static __always_inline bool selftest(struct control *c, __u32 op)
{
	if (!c->selftest_tid || c->selftest_tid != (__u32)bpf_get_current_pid_tgid() ||
	    c->selftest_op != op)
		return false;
	__sync_fetch_and_add(&c->selftest_hits, 1);
	return true;
}

/* deny_lsm carries out an action where the call can still be refused. */
static __always_inline int deny_lsm(int action)
{
	if (action < ACT_DENY)
		return 0;
	if (action == ACT_KILL)
		bpf_send_signal(SIGKILL);
	return -EPERM;
}

static __always_inline int lsm_file(struct file *file, __u32 op, __u8 access)
{
	struct control *c = ctl();
	struct scratch *s;
	int si, ret;

	if (!c)
		return 0;
	if (selftest(c, op))
		return -EPERM;
	if (idle(c, op))
		return 0;
	si = scratch_get();
	if (si < 0) {
		count_err(ERR_SCRATCH);
		return enforces(c, op) ? -EPERM : 0;
	}
	s = scratch_at(si);
	if (!s)
		return 0;
	s->extra_len = 0;
	ret = deny_lsm(judge_file(s, si, op, READ_PTR(file, f_path.dentry),
				  READ_PTR(file, f_path.mnt), READ_PTR(file, f_inode), access,
				  RUNG_LSM));
	scratch_put(s);
	return ret;
}

SEC("lsm/file_open")
int BPF_PROG(lsm_file_open, struct file *file, int ret)
{
	if (ret)
		return ret;
	return lsm_file(file, OP_OPEN, access_of(file->f_mode, file->f_flags));
}

SEC("lsm/bprm_check_security")
int BPF_PROG(lsm_bprm_check, struct linux_binprm *bprm, int ret)
{
	if (ret)
		return ret;
	return lsm_file(bprm->file, OP_EXEC, ACCESS_READ | ACCESS_EXEC);
}

/* judge_open_once is what lsm/file_open does short of reporting: its cost is the verdict's (make bench). */
__noinline int judge_open_once(__u32 si, __u64 file)
{
	struct scratch *s = scratch_at(si);
	struct file *f = (void *)file;

	if (!s)
		return 0;
	s->extra_len = 0;
	return verdict_file(s, si, OP_OPEN, READ_PTR(f, f_path.dentry), READ_PTR(f, f_path.mnt),
			    READ_PTR(f, f_inode), access_of(READ(f, f_mode), READ(f, f_flags)),
			    true);
}
