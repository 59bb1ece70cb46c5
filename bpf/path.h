/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Paths from kernel objects. A path is built from its dentries and mounts, never from a string in user memory. Addresses are
 * plain numbers read by bpf_probe_read_kernel, so that one piece of code serves every program type and kernel; a stale
 * pointer reads as zero and ends the walk. Without rename_lock, a rename of a parent during the walk gives a path
 * that mixes both places (docs/THREATS.md).
 */
#ifndef PAVISE_PATH_H
#define PAVISE_PATH_H

#include "engine.h"
#include "compat.h"

#define PATH_OTHER \
	(1         \
	 << 0) /* the file's mount is not its file system's first one: the canonical path may differ */
#define PATH_PSEUDO  (1 << 1) /* no directory entry: memfd, anonymous inode */
#define PATH_DELETED (1 << 2) /* the directory entry was removed */
#define PATH_LONG    (1 << 3)
#define PATH_WITHIN  (1 << 4) /* within the file system: mounts are not followed */
#define PATH_CANON   (1 << 5) /* behind its first mount point */

#define NAME_BYTES 256

/*
 * Where each file system is first mounted, as seen from the host: the prefix of canonical paths. Filled by user space from
 * mountinfo. 4,096 file systems; one that is missing has no canonical path, its mounts are judged as they are seen.
 */
struct mount_info {
	__u32 mnt_id;
	__u32 len;
	__u8 path[NAME_BYTES];
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 4096);
	__type(key, __u32);
	__type(value, struct mount_info);
} mounts SEC(".maps");

/*
 * The mnt_id of mounts once more, as device << 32 | mnt_id at a place that the device gives, which costs no call: a lookup in a hash table takes as long as
 * three directories. 1,024 places; of file systems that have the same one, one is here.
 */
#define NUM_FIRST_MOUNTS 1024

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, NUM_FIRST_MOUNTS);
	__type(key, __u32);
	__type(value, __u64);
} first_mounts SEC(".maps");

/* first_mount is where a device is mounted first, 0 when that is not known. The place is firstMount's in enforce/names.go. */
static __always_inline __u32 first_mount(__u32 dev)
{
	__u32 at = (dev + (dev >> 20) * 37) & (NUM_FIRST_MOUNTS - 1);
	__u64 *first = bpf_map_lookup_elem(&first_mounts, &at);
	struct mount_info *mi;

	if (first && *first >> 32 == dev)
		return *first;
	mi = bpf_map_lookup_elem(&mounts, &dev);
	return mi ? mi->mnt_id : 0;
}

/*
 * Protected names of inodes: a file with several links is judged under these too. Filled by user space, up to INODE_NAMES for one
 * inode. 65,536 names; enforce refuses an Image with more.
 */
#define INODE_NAMES 4

struct inode_key {
	__u64 ino;
	__u32 dev;
	__u32 gen; /* another file with the same number has another one */
	__u32 n;
	__u32 shade; /* 1: of the shadow's rules; they are no names to the active side */
};

struct inode_name {
	__u32 len;
	__u8 name[NAME_BYTES];
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, struct inode_key);
	__type(value, struct inode_name);
} inodes SEC(".maps");

/*
 * Walks go over components in groups of WALK, each by a function of its own: the verifier then walks WALK turns and not MAX_COMPS. The first FIRST, which are all of
 * most paths, cost no call.
 */
#define WALK  4
#define FIRST 10
#define LEGS  (MAX_COMPS / (WALK * STEPS))

/* write_some appends up to n comps, from the one before s->n_comps down. */
static __always_inline void write_some(struct scratch *s, int n)
{
	for (int i = 0; i < n; i++) {
		struct comp *c;
		__u32 len;
		__u8 *p;

		if (!s->n_comps)
			break;
		s->n_comps--;
		c = &s->comps[s->n_comps & (MAX_COMPS - 1)];
		len = c->len &
		      0xff; /* 0: a mount was crossed; without a branch, for the verifier's sake */
		*at(s, s->path_pos) = '/';
		p = at(s, s->path_pos + 1);
		if (CAN_CAST) {
			/* Most are this short: three words, and what stands behind is overwritten. */
			store64(p, load_word((void *)c->name));
			store64(p + 8, load_word((void *)c->name + 8));
			store64(p + 16, load_word((void *)c->name + 16));
		}
		if (!CAN_CAST || len > 24)
			bpf_probe_read_kernel(p, len, (void *)c->name);
		s->path_pos += len + ((len + 255) >> 8);
	}
}

__noinline int path_write_some(__u32 si)
{
	struct scratch *s = scratch_at(si);

	if (s)
		write_some(s, WALK);
	return 0;
}

/* path_write_more is up to STEPS times path_write_some. */
__noinline int path_write_more(__u32 si)
{
	struct scratch *s = scratch_at(si);

	if (!s)
		return 0;
	for (int i = 0; i < STEPS; i++) {
		if (!s->n_comps)
			break;
		path_write_some(si);
	}
	return 0;
}

/* path_write appends the first s->n_comps comps, last first, at bytes[s->path_pos]. */
static __always_inline void path_write(struct scratch *s, __u32 si)
{
	write_some(s, FIRST);
	for (int i = 0; i < LEGS; i++) {
		if (!s->n_comps)
			break;
		path_write_more(si);
	}
}

/* path_up goes from the root of a mount to where it is mounted; 0 at the root of all. */
static __always_inline int path_up(struct scratch *s)
{
	struct mount *mnt = (void *)s->mnt, *parent = (void *)READ_PTR(mnt, mnt_parent);

	if (!parent || parent == mnt)
		return 0;
	s->dentry = READ_PTR(mnt, mnt_mountpoint);
	s->mnt = (__u64)parent;
	s->root = READ_PTR(parent, mnt.mnt_root);
	return 1;
}

/* path_comp takes the name of s->dentry as the next component and goes to its parent; 0 when the walk has ended. */
static __always_inline int path_comp(struct scratch *s)
{
	struct dentry *d = (void *)s->dentry;
	__u64 parent = READ_PTR(d, d_parent), name = READ_PTR(d, d_name.name);
	struct comp *c;
	__u32 len;

	if (parent == s->dentry || !name) {
		s->path_flags &= ~PATH_LONG;
		/* The root of a file system; or, without a place in any tree, a pseudo file, whose name is its own. */
		if (s->n_comps || s->path_flags & PATH_WITHIN || !name)
			return 0;
		s->path_flags |= PATH_PSEUDO;
	}
	len = READ(d, d_name.len);
	if (len > 255 || s->path_pos + len + 1 > MAX_STRING - 4)
		return 0;
	c = &s->comps[s->n_comps & (MAX_COMPS - 1)];
	c->name = name;
	c->len = len;
	s->path_pos += len + 1;
	s->dentry = parent;
	return 1;
}

/*
 * walk_some collects up to n components from s->dentry upwards; 0 when the walk has ended. Its state is kept in memory, where the verifier does not
 * follow it: each turn then looks alike.
 */
static __always_inline int walk_some(struct scratch *s, int n)
{
	for (int i = 0; i < n; i++) {
		s->comps[s->n_comps & (MAX_COMPS - 1)].len = 0;
		if (s->dentry == s->root && !(s->path_flags & PATH_WITHIN)) {
			if (!path_up(s)) {
				s->path_flags &= ~PATH_LONG;
				return 0;
			}
		} else if (!path_comp(s)) {
			return 0;
		}
		s->n_comps++;
		if (s->path_flags & PATH_PSEUDO)
			return 0;
	}
	return 1;
}

__noinline int path_walk_some(__u32 si)
{
	struct scratch *s = scratch_at(si);

	return s ? walk_some(s, WALK) : 0;
}

/* path_walk_more is up to STEPS times path_walk_some; 0 when the walk has ended, or there is no more room. */
__noinline int path_walk_more(__u32 si)
{
	struct scratch *s = scratch_at(si);

	if (!s)
		return 0;
	for (int i = 0; i < STEPS; i++)
		if (s->n_comps >= MAX_COMPS || !path_walk_some(si))
			return 0;
	return 1;
}

/* path_walk collects the components from s->dentry to the root. */
static __always_inline void path_walk(struct scratch *s, __u32 si)
{
	s->n_comps = 0;
	if (!walk_some(s, FIRST))
		return;
	for (int i = 0; i < LEGS; i++)
		if (!path_walk_more(si))
			break;
}

/* path_begin writes what stands before the components at bytes[off], of a path that was s->path_pos long. What path_build knows is looked up again: the verifier would else follow each case of it through the walk. */
__noinline int path_begin(__u32 si, __u32 off, __u64 dentry)
{
	struct scratch *s = scratch_at(si);
	struct mount_info *mi;
	__u32 dev, len;

	if (!s)
		return 0;
	len = s->path_pos;
	s->path_pos = off;
	if (s->path_flags & PATH_LONG) {
		*at(s, off) = '.';
		*at(s, off + 1) = '.';
		*at(s, off + 2) = '.';
		s->path_pos += 3;
		return 0;
	}
	dev = READ((struct super_block *)READ_PTR((struct dentry *)dentry, d_sb), s_dev);
	mi = bpf_map_lookup_elem(&mounts, &dev);
	if (mi && mi->len > 1 && mi->len < NAME_BYTES) {
		if (len + mi->len > MAX_STRING)
			s->path_flags |= PATH_LONG;
		bpf_probe_read_kernel(at(s, off), mi->len & (NAME_BYTES - 1), mi->path);
		s->path_pos += mi->len;
	}
	return 0;
}

/*
 * path_build writes the path of (dentry, vfsmnt) at bytes[off] of a scratch and returns its length; over MAX_STRING (with
 * the last components after ".../") when it is longer. The path is the one seen from the root of the mount namespace, whatever the process's
 * root; with canonical it is the path within the file system after that file system's first mount point. Without a mount it is the path within the
 * file system alone. Sets path_flags.
 */
__noinline int path_build(__u32 si, __u32 off, __u64 dentry, __u64 vfsmnt, __u32 canonical)
{
	struct scratch *s = scratch_at(si);
	struct super_block *sb;
	__u32 dev;

	if (!s)
		return 0;
	s->path_flags = 0;
	if (!dentry)
		return 0;
	s->dentry = dentry;
	s->path_pos = 0;
	s->path_flags = PATH_LONG; /* until the root is reached */
	if (canonical)
		s->path_flags |= PATH_WITHIN | PATH_CANON;
	if (!vfsmnt)
		s->path_flags |= PATH_WITHIN;
	if (!READ_PTR((struct dentry *)dentry, d_hash.pprev))
		s->path_flags |= PATH_DELETED;
	sb = (void *)READ_PTR((struct dentry *)dentry, d_sb);
	dev = READ(sb, s_dev);
	if (canonical && !bpf_map_lookup_elem(&mounts, &dev))
		return 0;
	s->root = 0;
	if (vfsmnt) {
		s->mnt = vfsmnt - bpf_core_field_offset(struct mount, mnt);
		s->root = READ_PTR((struct vfsmount *)vfsmnt, mnt_root);
	}
	if (!(s->path_flags & PATH_WITHIN)) {
		struct mount *m = (void *)s->mnt;
		__u32 first = first_mount(dev);

		if (first && (first != READ(m, mnt_id) || s->root != READ_PTR(sb, s_root)))
			s->path_flags |= PATH_OTHER;
	}

	path_walk(s, si);
	if (s->path_flags & (PATH_LONG | PATH_CANON))
		path_begin(si, off, dentry);
	else
		s->path_pos = off;
	path_write(s, si);
	if (s->path_pos == off) {
		*at(s, off) = '/';
		return 1;
	}
	if (s->path_flags & PATH_LONG)
		return MAX_STRING + 1;
	return s->path_pos - off;
}

/* path_of is path_build for an object that may have no mount: where it is first mounted is then where it is. */
static __always_inline __u32 path_of(__u32 si, __u32 off, __u64 dentry, __u64 mnt)
{
	__u32 len = dentry && !mnt ? path_build(si, off, dentry, 0, 1) : 0;

	return len ? len : path_build(si, off, dentry, mnt, 0);
}

/* path_len is how much of a built path stands in memory: path_build's return value, or up to its last byte when it was too long. */
static __always_inline __u32 clip(__u32 len)
{
	return len > MAX_STRING ? MAX_STRING : len;
}

static __always_inline __u32 inode_gen(__u64 inode)
{
	return READ((struct inode *)inode, i_generation);
}

static __always_inline void read_inode(__u64 inode, struct rec_inode *r)
{
	struct inode *i = (void *)inode;

	r->ino = READ(i, i_ino);
	r->dev = READ((struct super_block *)READ_PTR(i, i_sb), s_dev);
	r->links = READ(i, __i_nlink);
	r->owner = READ(i, i_uid.val);
	r->mode = READ(i, i_mode);
	r->access = 0;
	r->flags = 0;
}

/* read_fs writes the name of the file system's type at bytes[off] and returns its length, 15 at most. */
static __always_inline __u32 read_fs(struct scratch *s, __u32 off, __u64 inode)
{
	__u64 name = READ_PTR((struct file_system_type *)READ_PTR(
				      (struct super_block *)READ_PTR((struct inode *)inode, i_sb),
				      s_type),
			      name);
	long n = bpf_probe_read_kernel_str(at(s, off), 16, (void *)name);

	return n > 1 ? n - 1 : 0;
}

#endif
