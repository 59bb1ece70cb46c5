//go:build ignore
/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Mounts: lsm/sb_mount and lsm/move_mount (fs.mount), sb_umount, sb_pivotroot. Attached only while a rule judges the operation. When working memory
 * runs out, an operation that some enforced rule judges is refused. mount_setattr(2), and fsconfig(2) of a mounted file system, pass no hook that
 * knows the mount (docs/THREATS.md).
 */

#define MS_BIND 4096
#define MS_MOVE 8192

SEC("lsm/sb_mount")
int BPF_PROG(lsm_mount, const char *source, const struct path *path, const char *type,
	     unsigned long flags, void *data, int ret)
{
	struct scratch *s;
	__u32 si;

	if (ret)
		return ret;
	s = enter(OP_MOUNT, &si, &ret);
	if (!s)
		return ret;
	set_path(s, path);
	s->obj.new_len = put_kstr(s, OFF_NEW, (__u64)source);
	s->obj.name_len = put_kstr(s, OFF_NAME, (__u64)type);
	s->obj.value = flags;
	return leave(s, si, OP_MOUNT);
}

/*
 * move_mount(2) also attaches what fsmount(2) and open_tree(2) made: such a mount is its own parent. What is mounted elsewhere too, or is not all of its file
 * system, is a directory mounted a second time, as by MS_BIND; its source is then where it lies, and not the root of a mount that is nowhere.
 */
SEC("lsm/move_mount")
int BPF_PROG(lsm_move_mount, const struct path *from, const struct path *to, int ret)
{
	struct super_block *sb;
	struct mount *mnt;
	struct scratch *s;
	__u64 vfsmnt;
	__u32 si;

	if (ret)
		return ret;
	s = enter(OP_MOUNT, &si, &ret);
	if (!s)
		return ret;
	set_path(s, to);
	vfsmnt = READ_PTR((struct path *)from, mnt);
	s->obj.dentry2 = READ_PTR((struct path *)from, dentry);
	s->obj.mnt2 = vfsmnt;
	mnt = (void *)(vfsmnt - bpf_core_field_offset(struct mount, mnt));
	sb = (void *)READ_PTR((struct vfsmount *)vfsmnt, mnt_sb);
	if (READ_PTR(mnt, mnt_parent) != (__u64)mnt) {
		s->obj.value = MS_MOVE;
	} else {
		s->obj.mnt2 = 0;
		if (READ_PTR((struct vfsmount *)vfsmnt, mnt_root) != READ_PTR(sb, s_root) ||
		    !is_only_mount(mnt, sb))
			s->obj.value = MS_BIND;
	}
	s->obj.name_len = put_kstr(s, OFF_NAME,
				   READ_PTR((struct file_system_type *)READ_PTR(sb, s_type), name));
	return leave(s, si, OP_MOUNT);
}

SEC("lsm/sb_umount")
int BPF_PROG(lsm_umount, struct vfsmount *mnt, int flags, int ret)
{
	struct scratch *s;
	__u32 si;

	if (ret)
		return ret;
	s = enter(OP_UMOUNT, &si, &ret);
	if (!s)
		return ret;
	set_file(s, READ_PTR(mnt, mnt_root), (__u64)mnt);
	return leave(s, si, OP_UMOUNT);
}

SEC("lsm/sb_pivotroot")
int BPF_PROG(lsm_pivot_root, const struct path *put_old, const struct path *new_root, int ret)
{
	struct scratch *s;
	__u32 si;

	if (ret)
		return ret;
	s = enter(OP_PIVOT_ROOT, &si, &ret);
	if (!s)
		return ret;
	set_path(s, new_root);
	s->obj.dentry2 = READ_PTR((struct path *)put_old, dentry);
	s->obj.mnt2 = READ_PTR((struct path *)put_old, mnt);
	return leave(s, si, OP_PIVOT_ROOT);
}
