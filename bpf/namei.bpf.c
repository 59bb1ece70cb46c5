//go:build ignore
/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What changes names and attributes of files: the lsm/path_* hooks (file.create, delete, rename, link, symlink, truncate, chmod, chown, fs.chroot), and
 * lsm/inode_*xattr and *acl (file.setxattr), which know no mount: such a file is judged where its file system is first mounted. Attached only
 * while a rule judges the operation. When working memory runs out, an operation that some enforced rule judges is refused.
 *
 * A new name is judged as file.create whichever call makes it, and one that goes as file.delete: a rename into a directory is a way to create
 * there. fexit of do_filp_open tells what an open with O_CREAT came to.
 */

/*
 * judge_entry judges op on a directory entry: file.create, on one that has no file yet and gets one of a mode; file.delete; and file.rename and file.link, where
 * the file's new name is (dentry2, mnt2). unsure: there may be a file (hold). A function of its own, as a rename calls it six times; and it takes numbers, as kernels before 6.8 or so give such a
 * function nothing else of an argument.
 */
__noinline int judge_entry(__u32 op, __u64 dentry, __u64 mnt, __u64 dentry2_or_unsure,
			   __u64 mnt2_or_mode)
{
	struct scratch *s;
	__u32 si;
	int ret;

	s = enter(op, &si, &ret);
	if (!s)
		return ret;
	if (op == OP_CREATE) {
		s->obj.dentry = dentry;
		s->obj.mnt = mnt;
		s->obj.mode = mnt2_or_mode;
		s->obj.unsure = dentry2_or_unsure;
	} else {
		set_file(s, dentry, mnt);
		s->obj.dentry2 = dentry2_or_unsure;
		s->obj.mnt2 = mnt2_or_mode;
	}
	return leave(s, si, op);
}

/* judge_name is judge_entry with what the verifier lets a hook return: of a function it knows nothing. */
static __always_inline int judge_name(__u32 op, __u64 dentry, __u64 mnt, __u64 dentry2_or_unsure,
				      __u64 mnt2_or_mode)
{
	return refuse(judge_entry(op, dentry, mnt, dentry2_or_unsure, mnt2_or_mode));
}

static __always_inline __u64 mount_of(const struct path *dir)
{
	return READ_PTR((struct path *)dir, mnt);
}

static __always_inline int judge_new(__u64 mnt, __u64 dentry, __u32 mode)
{
	return judge_name(OP_CREATE, dentry, mnt, 0, mode);
}

static __always_inline int judge_old(__u64 mnt, __u64 dentry)
{
	return judge_name(OP_DELETE, dentry, mnt, 0, 0);
}

static __always_inline __u32 mode_of(__u64 dentry)
{
	return READ((struct inode *)READ_PTR((struct dentry *)dentry, d_inode), i_mode);
}

/* in_lookup tells that the kernel does not know yet whether a name has a file. */
static __always_inline bool in_lookup(__u64 dentry)
{
	__u32 flag =
		bpf_core_enum_value_exists(enum dentry_flags___pavise, DCACHE_PAR_LOOKUP___pavise)
			? bpf_core_enum_value(enum dentry_flags___pavise,
					      DCACHE_PAR_LOOKUP___pavise)
			: 1 << 28;

	return READ((struct dentry *)dentry, d_flags) & flag;
}

SEC("lsm/path_mknod")
int BPF_PROG(lsm_mknod, const struct path *dir, struct dentry *dentry, __u32 mode, __u32 dev,
	     int ret)
{
	mode &= 0xffff;
	return ret
		       ?: judge_name(OP_CREATE, arg_at(ctx, 1), mount_of(dir),
				     in_lookup(arg_at(ctx, 1)),
				     mode & S_IFMT ? mode : mode | S_IFREG);
}

/* there tells whether the name of an open that has failed has a file. A dentry that is another by now, as the kernel does not keep it, had none. */
static __always_inline bool there(struct held *h)
{
	__u64 d = h->dentry;

	return READ_PTR((struct dentry *)d, d_inode) && parent_of(d) == h->parent &&
	       hash_of(d) == h->hash;
}

/* tell_held tells what was held under a key, if a file was made, or refused and is not there. Returns the action to take. */
__noinline int tell_held(__u32 key, __u64 ret)
{
	struct held *h = bpf_map_lookup_elem(&helds, &key);
	struct control *c = ctl();
	struct op_stats *st;
	struct scratch *s;
	struct tables *t;
	bool refused, made;
	__u32 side;
	int i, act;

	if (!h || !c)
		return 0;
	act = h->shade ? 0 : h->v.action[DECIDED_ENFORCED];
	refused = h->shade ? h->was & DONE : act >= ACT_DENY;
	if ((__s64)ret < 0 && (__s64)ret >= -4095)
		made = refused && (__s64)ret == -EPERM && !there(h);
	else
		made = READ((struct file *)ret, f_mode) & FMODE_CREATED;
	if (!made) {
		act = 0;
		goto out;
	}
	side = h->side;
	t = bpf_map_lookup_elem(&sides, &side);
	i = scratch_get();
	s = i < 0 ? NULL : scratch_at(i);
	if (!s)
		count_err(ERR_SCRATCH);
	if (s && t && t->gen == h->gen) {
		s->side = side;
		s->op = OP_CREATE;
		s->rung = c->rung;
		s->shade = h->shade;
		s->was = h->was;
		s->was_rule = h->was_rule;
		s->was_gen = h->was_gen;
		s->v = h->v;
		bpf_probe_read_kernel(&s->bytes[OFF_REC], HELD_REC, h->rec);
		report(i, REC_FILE, c->rung, h->object, h->len);
	} else if (!h->shade) {
		/* Its rules are not known any more. */
		st = stats_of(OP_CREATE);
		if (st) {
			__sync_fetch_and_add(&st->seen, 1);
			__sync_fetch_and_add(&st->lost, 1);
		}
	}
	if (s)
		scratch_put(s);
out:
	bpf_map_delete_elem(&helds, &key);
	return act;
}

/* The end of an open by name, also io_uring's: what was held is told, unless the file was there before. Kernels after 6.18 call it do_file_open. */
SEC("fexit/do_filp_open")
int on_opened(unsigned long long *ctx)
{
	struct control *c = ctl();
	__u32 tid = bpf_get_current_pid_tgid();
	__u64 ret = arg_at(ctx, 3);
	int act;

	if (!c)
		return 0;
	act = tell_held(tid, ret);
	if (c->shadow)
		tell_held(tid | HELD_SHADOW, ret);
	if (act == ACT_KILL)
		bpf_send_signal(SIGKILL);
	return 0;
}

SEC("lsm/path_mkdir")
int BPF_PROG(lsm_mkdir, const struct path *dir, struct dentry *dentry, __u32 mode, int ret)
{
	return ret ?: judge_new(mount_of(dir), arg_at(ctx, 1), (mode & 07777) | S_IFDIR);
}

SEC("lsm/path_symlink")
int BPF_PROG(lsm_symlink, const struct path *dir, struct dentry *dentry, const char *target,
	     int ret)
{
	struct scratch *s;
	__u32 si;

	if (ret)
		return ret;
	ret = judge_new(mount_of(dir), arg_at(ctx, 1), S_IFLNK | 0777);
	if (ret)
		return ret;
	s = enter(OP_SYMLINK, &si, &ret);
	if (!s)
		return ret;
	s->obj.dentry = (__u64)dentry;
	s->obj.mnt = READ_PTR((struct path *)dir, mnt);
	s->obj.mode = S_IFLNK | 0777;
	s->obj.name_len = put_kstr(s, OFF_NAME, (__u64)target);
	return leave(s, si, OP_SYMLINK);
}

SEC("lsm/path_link")
int BPF_PROG(lsm_link, struct dentry *dentry, const struct path *dir, struct dentry *new_dentry,
	     int ret)
{
	/* The file's own mount is that of the new name: links do not cross mounts. */
	return ret ?: judge_new(mount_of(dir), arg_at(ctx, 2), mode_of(arg_at(ctx, 0)))
		   ?: judge_name(OP_LINK, arg_at(ctx, 0), mount_of(dir), arg_at(ctx, 2),
				 mount_of(dir));
}

SEC("lsm/path_unlink")
int BPF_PROG(lsm_unlink, const struct path *dir, struct dentry *dentry, int ret)
{
	return ret ?: judge_old(mount_of(dir), arg_at(ctx, 1));
}

SEC("lsm/path_rmdir")
int BPF_PROG(lsm_rmdir, const struct path *dir, struct dentry *dentry, int ret)
{
	return ret ?: judge_old(mount_of(dir), arg_at(ctx, 1));
}

SEC("lsm/path_rename")
int BPF_PROG(lsm_rename, const struct path *old_dir, struct dentry *old_dentry,
	     const struct path *new_dir, struct dentry *new_dentry, unsigned int flags, int ret)
{
	__u64 from = mount_of(old_dir), to = mount_of(new_dir);
	__u64 old = arg_at(ctx, 1), new = arg_at(ctx, 3);

	ret = ret ?: judge_name(OP_RENAME, old, from, new, to)
		  ?: judge_old(from, old)
		  ?: judge_new(to, new, mode_of(old));
	if (ret || !READ_PTR((struct dentry *)new, d_inode))
		return ret;
	ret = judge_old(to, new);
	if (ret || !(flags & RENAME_EXCHANGE))
		return ret;
	/* The other direction. Some kernels call the hook for it too: judging twice does no harm. */
	return judge_name(OP_RENAME, new, to, old, from) ?: judge_new(from, old, mode_of(new));
}

/* judge_path judges op on a file, with numbers. */
static __always_inline int judge_path(__u32 op, const struct path *path, __u64 value, __u64 value2)
{
	struct scratch *s;
	__u32 si;
	int ret;

	s = enter(op, &si, &ret);
	if (!s)
		return ret;
	set_path(s, path);
	s->obj.value = value;
	s->obj.value2 = value2;
	return leave(s, si, op);
}

SEC("lsm/path_truncate")
int BPF_PROG(lsm_truncate, const struct path *path, int ret)
{
	return ret ?: judge_path(OP_TRUNCATE, path, 0, 0);
}

/* 6.2 (3350607dc563 "security: Create file_truncate hook from path_truncate hook"): ftruncate and open's O_TRUNC come here. */
SEC("lsm/file_truncate")
int BPF_PROG(lsm_ftruncate, struct file *file, int ret)
{
	struct scratch *s;
	__u32 si;

	if (ret)
		return ret;
	s = enter(OP_TRUNCATE, &si, &ret);
	if (!s)
		return ret;
	set_open(s, file, 0);
	return leave(s, si, OP_TRUNCATE);
}

SEC("lsm/path_chmod")
int BPF_PROG(lsm_chmod, const struct path *path, __u32 mode, int ret)
{
	return ret ?: judge_path(OP_CHMOD, path, mode & 07777, 0);
}

SEC("lsm/path_chown")
int lsm_chown(unsigned long long *ctx)
{
	struct path *path = (void *)ctx[0];

	/* The ids are structs, which the verifier of some kernels does not let a program take by name. */
	return judge_path(OP_CHOWN, path, (__u32)arg_at(ctx, 1), (__u32)arg_at(ctx, 2));
}

SEC("lsm/path_chroot")
int BPF_PROG(lsm_chroot, const struct path *path, int ret)
{
	return ret ?: judge_path(OP_CHROOT, path, 0, 0);
}

/* judge_xattr judges file.setxattr on a file of which only the directory entry is known. */
static __always_inline int judge_xattr(struct dentry *dentry, const char *name)
{
	struct scratch *s;
	__u32 si;
	int ret;

	s = enter(OP_SETXATTR, &si, &ret);
	if (!s)
		return ret;
	set_file(s, (__u64)dentry, 0);
	s->obj.name_len = put_kstr(s, OFF_NAME, (__u64)name);
	return leave(s, si, OP_SETXATTR);
}

/* The first argument was a user namespace until 6.3 (39f60c1ccee7 "fs: port xattr to mnt_idmap"). */
SEC("lsm/inode_setxattr")
int BPF_PROG(lsm_setxattr, void *idmap, struct dentry *dentry, const char *name)
{
	return judge_xattr(dentry, name);
}

SEC("lsm/inode_removexattr")
int BPF_PROG(lsm_removexattr, void *idmap, struct dentry *dentry, const char *name)
{
	return judge_xattr(dentry, name);
}

/* Since 6.2 ACLs do not pass inode_setxattr any more, and have these hooks of their own. */
SEC("lsm/inode_set_acl")
int BPF_PROG(lsm_set_acl, void *idmap, struct dentry *dentry, const char *name)
{
	return judge_xattr(dentry, name);
}

SEC("lsm/inode_remove_acl")
int BPF_PROG(lsm_remove_acl, void *idmap, struct dentry *dentry, const char *name)
{
	return judge_xattr(dentry, name);
}
