//go:build ignore
/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Files: lsm/file_open (file.open, device.open, kernel.sysctl) and lsm/bprm_check_security (process.exec); and how a hook judges an object, for the
 * other families. Attached only while a rule judges the operation. When working memory runs out, an operation that some enforced rule judges is
 * refused.
 *
 * Every lsm program is also the fmod_ret program of the security_* function that calls its hook, where BPF LSM is missing: the loader gives it that
 * type. Where the function's arguments are others than the hook's, there is a program fmod_* of its own.
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

static __always_inline void set_be64(struct scratch *s, __u32 dim, __u64 v)
{
	*(__u64 *)&s->bytes[OFF_SMALL + dim * 16] = __builtin_bswap64(v);
	set_dim(s, dim, OFF_SMALL + dim * 16, 8);
}

/* set_file names the object of a judgement: a file, by its directory entry and mount (0: where it is seen does not matter). */
static __always_inline void set_file(struct scratch *s, __u64 dentry, __u64 mnt)
{
	s->obj.dentry = dentry;
	s->obj.mnt = mnt;
	s->obj.inode = READ_PTR((struct dentry *)dentry, d_inode);
}

/* set_path is set_file for a struct path. */
static __always_inline void set_path(struct scratch *s, const struct path *path)
{
	set_file(s, READ_PTR((struct path *)path, dentry), READ_PTR((struct path *)path, mnt));
}

/* put_kstr copies a string of the kernel's to bytes[off], 4,095 bytes of it at most, and returns its length. */
static __always_inline __u32 put_kstr(struct scratch *s, __u32 off, __u64 str)
{
	long n = str ? bpf_probe_read_kernel_str(at(s, off), 4096, (void *)str) : 0;

	return n > 1 ? n - 1 : 0;
}

/* link_of looks up the nth protected name of the object's inode. */
static __always_inline struct inode_name *link_of(struct scratch *s, __u32 n)
{
	struct rec_file *r = (void *)&s->bytes[OFF_REC];
	struct inode_key k = {
		.ino = r->inode.ino,
		.dev = r->inode.dev,
		.gen = inode_gen(s->obj.inode),
		.n = n,
		.shade = s->shade,
	};

	return bpf_map_lookup_elem(&inodes, &k);
}

/* case_folds tells that a file system can have directories where case does not matter: then a file is seen under whatever spelling its name was first looked up by. */
static __always_inline bool case_folds(__u64 inode)
{
	struct super_block *sb = (void *)READ_PTR((struct inode *)inode, i_sb);

	return bpf_core_field_exists(sb->s_encoding) && READ_PTR(sb, s_encoding);
}

/* judge_links judges the object under the protected names of its inode. Not a function of its own: calls are 8 deep below it. */
static __always_inline void judge_links(struct scratch *s, __u32 si)
{
	for (int n = 0; n < INODE_NAMES; n++) {
		struct inode_name *in = link_of(s, n);

		if (!in)
			break;
		bpf_probe_read_kernel(&s->bytes[OFF_TMP + n * NAME_BYTES], NAME_BYTES, in->name);
		judge(si, OFF_TMP + n * NAME_BYTES, in->len & (NAME_BYTES - 1), ALIAS_INODE + n);
	}
}

/*
 * verdict_file judges op on s->obj under all the names of its file: s->v. The path stands behind the record, path_len and canon_len say how long
 * it and the canonical path at OFF_ALT are. The side is that of begin or turn. known: the thread has an identity, or does not get one (programs that sleep cannot give it). Returns whether there is anything to act on or to report.
 */
static __always_inline int verdict_file(struct scratch *s, __u32 si, __u32 op, bool known)
{
	struct rec_file *r = (void *)&s->bytes[OFF_REC];
	struct object *o = &s->obj;
	__u64 inode = o->inode;
	struct op_table *ot;
	struct tables *t;
	__u32 side = s->side, len, pos;

	t = bpf_map_lookup_elem(&sides, &side);
	if (!t)
		return 0;
	ot = &t->ops[op & (NUM_JUDGED - 1)];
	if (inode) {
		read_inode(inode, &r->inode);
	} else {
		__builtin_memset(&r->inode, 0, sizeof(r->inode));
		r->inode.mode = o->mode;
	}
	r->inode.access = o->access;
	set_u8(s, DIM_ACCESS, o->access);
	set_be32(s, DIM_OWNER, r->inode.owner);
	set_be16(s, DIM_MODE, r->inode.mode);
	set_dim(s, DIM_FS, OFF_SMALL + DIM_FS * 16, 0);
	if (NEED(ot->need, DIM_FS) && inode)
		set_dim(s, DIM_FS, OFF_SMALL + DIM_FS * 16,
			read_fs(s, OFF_SMALL + DIM_FS * 16, inode));
	if (op >= OP_SOCKET) { /* process.exec and file.open have nothing else */
		set_be64(s, DIM_VALUE, o->value);
		set_be64(s, DIM_VALUE2, o->value2);
		set_be32(s, DIM_TARGET_UID, o->target_uid);
		set_dim(s, DIM_TARGET_EXE, OFF_TARGET, o->target_len);
		set_dim(s, DIM_NAME, OFF_NAME, o->name_len);
	}
	pos = OFF_REC + sizeof(*r);
	if (NEED(ot->need, DIM_FILE_FLAGS)) {
		/* Whether the file has a name is known by its path alone. */
		len = path_of(si, pos, o->dentry, o->mnt);
		set_u8(s, DIM_FILE_FLAGS, inode ? exe_flags(s, r->inode.links) : 0);
		if (!early(s, si, op, known))
			return 0;
	} else {
		if (!early(s, si, op, known))
			return 0;
		len = path_of(si, pos, o->dentry, o->mnt);
	}
	r->inode.flags = (len > MAX_STRING ? FILE_TRUNCATED : 0);
	if (inode)
		r->inode.flags |=
			(s->path_flags & PATH_PSEUDO ? FILE_MEMFD : 0) |
			(s->path_flags & PATH_DELETED || !r->inode.links ? FILE_DELETED : 0);
	s->path_len = len;
	s->canon_len = s->path_flags &
		       PATH_OTHER; /* there is one, for now: kept in memory for the stack's sake */
	if (op >= OP_SOCKET) {
		if (o->dentry2)
			o->new_len = path_of(si, OFF_NEW, o->dentry2, o->mnt2);
		set_dim(s, DIM_NEW_PATH, OFF_NEW, o->new_len);
	}
	judge(si, pos, len, 0);
	if (NEED(ot->need, DIM_PATH)) {
		if (s->canon_len) {
			s->canon_len = path_build(si, OFF_ALT, o->dentry, o->mnt, 1);
			if (s->canon_len)
				judge(si, OFF_ALT, s->canon_len, ALIAS_CANON);
		}
		if (s->extra_len)
			judge(si, OFF_EXTRA, s->extra_len, ALIAS_EXTRA);
		inode = o->inode;
		if (r->inode.links > 1 || (inode && (t->aliases || case_folds(inode))))
			judge_links(s, si);
	}
	return decided(&s->v) < NUM_DECIDED || s->was;
}

/* append copies a string to the end of the record, which s->rec_end keeps in memory for the verifier's sake. */
static __always_inline __u16 append(struct scratch *s, __u32 off, __u32 len)
{
	__u64 n = clip(len);

	BOUND(n, 0xfff);
	if (n)
		bpf_probe_read_kernel(at(s, s->rec_end), n, at(s, off));
	s->rec_end += n;
	return n;
}

/* digest_some mixes up to CHUNK of the s->tail_len bytes at bytes[s->tail_in] into s->digest. */
__noinline int digest_some(__u32 si)
{
	struct scratch *s = scratch_at(si);
	__u64 x;

	if (!s)
		return 0;
	for (int i = 0; i < CHUNK / 8; i++) {
		__u32 len = s->tail_len;

		if (!len)
			break;
		x = load64(at(s, s->tail_in));
		if (len < 8) {
			x &= (1ULL << ((len & 7) * 8)) - 1;
			s->tail_len = 8;
		}
		s->digest = (s->digest ^ x) * 0x100000001b3ULL;
		s->digest ^= s->digest >> 32;
		s->tail_in += 8;
		s->tail_len -= 8;
	}
	return 0;
}

#define DIGESTS 16

/* digest_more is up to DIGESTS times digest_some. */
__noinline int digest_more(__u32 si)
{
	struct scratch *s = scratch_at(si);

	if (!s)
		return 0;
	for (int i = 0; i < DIGESTS; i++) {
		if (!s->tail_len)
			break;
		digest_some(si);
	}
	return 0;
}

/* digest makes one number of bytes[from, to): to tell repeats, against nobody. */
static __always_inline __u64 digest(struct scratch *s, __u32 si, __u32 from, __u32 to)
{
	s->digest = 0;
	s->tail_in = from;
	s->tail_len = to - from;
	for (int i = 0; i < 4 * (MAX_STRING + 1) / CHUNK / DIGESTS; i++) {
		if (!s->tail_len)
			break;
		digest_more(si);
	}
	return s->digest;
}

/* put_act appends what an operation is about beside its file. */
__noinline int put_act(__u32 si)
{
	struct scratch *s = scratch_at(si);
	struct rec_file *r;
	struct object *o;

	if (!s)
		return 0;
	r = (void *)&s->bytes[OFF_REC];
	o = &s->obj;
	r->value = o->value;
	r->value2 = o->value2;
	r->target_exec_id = o->target_exec_id;
	r->target_pid = o->target_pid;
	r->target_uid = o->target_uid;
	r->new_len = append(s, OFF_NEW, o->new_len);
	r->name_len = append(s, OFF_NAME, o->name_len);
	r->target_len = append(s, OFF_TARGET, o->target_len);
	return 0;
}

/*
 * An open with O_CREAT asks whether it may make a file before it looks whether the name is there (lookup_open in fs/namei.c), unless the kernel still knows that. A
 * refusal then only means that none is made, and the file that is there is opened all the same. So what is decided about such a name is held until the open is done, by
 * thread: on_opened tells it, and kills, if a file was made or refused. 8,192 opens at once; beyond that, and where a record is longer, it is done at once. A thread whose
 * open ends elsewhere leaves its entry to the next open that asks. What the shadow decides is held beside it (HELD_SHADOW).
 */
#define HELD_REC    3840
#define HELD_SHADOW (1U << 31) /* beside the thread's number in the key */

struct held {
	__u64 object;
	__u64 dentry; /* of the name, and what it was, to know it again */
	__u64 parent;
	__u64 hash;
	__u32 side;
	__u32 gen;
	__u32 len; /* of rec */
	__u32 shade; /* the rest as in struct scratch */
	__u32 was;
	__u32 was_rule;
	__u32 was_gen;
	struct verdict v;
	__u8 rec[HELD_REC];
};

_Static_assert(sizeof(struct held) <= BYTES - OFF_TMP, "it is made in working memory");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 8192);
	__type(key, __u32);
	__type(value, struct held);
} helds SEC(".maps");

static __always_inline __u64 parent_of(__u64 dentry)
{
	return READ_PTR((struct dentry *)dentry, d_parent);
}

static __always_inline __u64 hash_of(__u64 dentry)
{
	return READ((struct dentry *)dentry, d_name.hash_len);
}

/* hold keeps the verdict and the record of len bytes at OFF_REC for on_opened. Returns the action to take until then; -1 when it cannot be kept. */
__noinline int hold(__u32 si, __u64 object, __u32 len)
{
	struct scratch *s = scratch_at(si);
	__u32 side, tid = bpf_get_current_pid_tgid();
	struct tables *t;
	struct held *h;

	if (!s || len > HELD_REC)
		return -1;
	side = s->side;
	t = bpf_map_lookup_elem(&sides, &side);
	if (!t)
		return -1;
	h = (void *)&s->bytes[OFF_TMP];
	h->object = object;
	h->dentry = s->obj.dentry;
	h->parent = parent_of(h->dentry);
	h->hash = hash_of(h->dentry);
	h->side = side;
	h->gen = t->gen;
	h->len = len;
	h->shade = s->shade;
	h->was = s->was;
	h->was_rule = s->was_rule;
	h->was_gen = s->was_gen;
	h->v = s->v;
	bpf_probe_read_kernel(h->rec, HELD_REC, &s->bytes[OFF_REC]);
	if (h->shade)
		tid |= HELD_SHADOW;
	if (bpf_map_update_elem(&helds, &tid, h, BPF_ANY))
		return -1;
	return s->v.action[DECIDED_ENFORCED] >= ACT_DENY && !released() ? ACT_DENY : ACT_NONE;
}

/* tell_file completes the record of a verdict and reports it. */
__noinline int tell_file(__u32 si)
{
	struct scratch *s = scratch_at(si);
	struct rec_file *r;
	struct object *o;
	__u64 object;

	if (!s)
		return 0;
	r = (void *)&s->bytes[OFF_REC];
	o = &s->obj;
	r->path_len = clip(s->path_len);
	s->rec_end = OFF_REC + sizeof(*r) + r->path_len;
	r->alias_len = 0;
	if (s->v.alias == ALIAS_CANON) {
		r->alias_len = append(s, OFF_ALT, s->canon_len);
	} else if (s->v.alias == ALIAS_EXTRA) {
		r->alias_len = append(s, OFF_EXTRA, s->extra_len);
	} else if (s->v.alias) {
		struct inode_name *in = link_of(s, s->v.alias - ALIAS_INODE);

		if (in)
			r->alias_len = append(s, OFF_TMP + (s->v.alias - ALIAS_INODE) * NAME_BYTES,
					      in->len & (NAME_BYTES - 1));
	}
	object = same_object(same_object(same_object(0, r->inode.ino), r->inode.dev),
			     r->inode.access);
	if (s->op >= OP_SOCKET) {
		put_act(si);
		/* Names tell apart what has no inode, or more names than one. */
		object = same_object(object, o->value);
		object = same_object(object, o->value2);
		object = same_object(object, o->target_exec_id ^ o->target_pid);
		object ^= digest(s, si, OFF_REC + sizeof(*r), s->rec_end);
	} else {
		__builtin_memset(&r->value, 0,
				 __builtin_offsetof(struct rec_file, path_len) -
					 __builtin_offsetof(struct rec_file, value));
		r->new_len = 0;
		r->name_len = 0;
		r->target_len = 0;
	}
	r->fs_len = 0;
	if (o->inode)
		r->fs_len = read_fs(s, s->rec_end, o->inode);
	if (s->op == OP_LATE)
		s->op = OP_EXEC;
	if (o->unsure) {
		int act = hold(si, object, s->rec_end + r->fs_len - OFF_REC);

		if (act >= 0)
			return act;
	}
	return report(si, REC_FILE, s->rung, object, s->rec_end + r->fs_len - OFF_REC);
}

/* judge_file judges op on s->obj, reports, and returns the action to take. */
static __always_inline int judge_file(struct scratch *s, __u32 si, __u32 op)
{
	return verdict_file(s, si, op, false) ? tell_file(si) : 0;
}

/* judge_object is judge_file as a function of its own, for hooks whose own cost does not matter. */
__noinline int judge_object(__u32 si, __u32 op)
{
	struct scratch *s = scratch_at(si);

	if (!s)
		return 0;
	return judge_file(s, si, op & (NUM_JUDGED - 1));
}

/* enforces tells whether refusing without a verdict is right: some enforced rule judges the operation. */
static __always_inline bool enforces(struct control *c, __u32 op)
{
	__u32 side = c->active;
	struct tables *t = bpf_map_lookup_elem(&sides, &side);

	return t && t->ops[op & (NUM_JUDGED - 1)].enforces && !released();
}

/* idle tells that nothing judges op: the first thing a hook asks. */
static __always_inline bool idle(struct control *c, __u32 op)
{
	return !judges(c->active, op) && !(c->shadow && judges(c->shadow - 1, op));
}

/*
 * selftest tells whether this call is the one by which the agent proves the rung. The number of its thread is not enough: it may have been killed before it
 * took that away.
 */
static __always_inline bool selftest(struct control *c, __u32 op)
{
	if (!c->selftest_tid || c->selftest_tid != (__u32)bpf_get_current_pid_tgid() ||
	    c->selftest_op != op || !is_agent(c->agent))
		return false;
	__sync_fetch_and_add(&c->selftest_hits, 1);
	return true;
}

/*
 * refuse is what a hook returns: -EPERM if it is to refuse, as a constant. Clang would else compute it from the condition, and the verifier would not see that it
 * is an error number (6.12: 5d99e198be27 "bpf, lsm: Add check for BPF LSM return value").
 */
static __always_inline int refuse(int yes)
{
	int ret = 0;

	if (yes) {
		ret = -EPERM;
		asm volatile("" : "+r"(ret));
	}
	return ret;
}

/*
 * What judge_object and its like return where the program that was put in their place has been taken away while the hook was not (bpf/share.go): then it is as without
 * working memory.
 */
#define NO_ENGINE (-2)

/* deny_lsm carries out an action on op where the call can still be refused. */
static __always_inline int deny_lsm(int action, __u32 op)
{
	struct control *c = ctl();

	asm volatile(""
		     : "+r"(action)); /* clang sees that the function itself does not return it */
	if (action == ACT_KILL)
		bpf_send_signal(SIGKILL);
	if (action == NO_ENGINE) {
		count_err(ERR_ENGINE);
		return refuse(c && enforces(c, op));
	}
	return refuse(action >= ACT_DENY);
}

/*
 * enter begins a hook that can refuse op: it gives working memory with an empty object, to be given back by leave; or NULL, and then *ret is what the hook
 * returns.
 */
static __always_inline struct scratch *enter(__u32 op, __u32 *si, int *ret)
{
	struct control *c = ctl();
	struct scratch *s;
	int i;

	*ret = 0;
	if (!c)
		return NULL;
	if (selftest(c, op)) {
		*ret = refuse(1);
		return NULL;
	}
	if (idle(c, op))
		return NULL;
	i = scratch_get();
	if (i < 0) {
		count_err(ERR_SCRATCH);
		*ret = refuse(enforces(c, op));
		return NULL;
	}
	s = scratch_at(i);
	if (!s)
		return NULL;
	*si = i;
	begin(s, c);
	s->extra_len = 0;
	s->rung = c->rung;
	__builtin_memset(&s->obj, 0, sizeof(s->obj));
	return s;
}

/*
 * shadow_* let the shadow judge op, where one is on. They are called by the hook itself: functions can be nested eight deep at most, and a judgement
 * takes seven.
 */
static __always_inline void shadow_object(struct scratch *s, __u32 si, __u32 op)
{
	if (s->shadow && turn(si, op)) {
		judge_object(si, op);
		turn_back();
	}
}

/* leave judges op on the object, gives the working memory back, and returns what the hook returns. */
static __always_inline int leave(struct scratch *s, __u32 si, __u32 op)
{
	int ret = deny_lsm(judge_object(si, op), op);

	shadow_object(s, si, op);
	scratch_put(s);
	return ret;
}

static __always_inline void set_open(struct scratch *s, struct file *file, __u8 access)
{
	s->obj.dentry = READ_PTR(file, f_path.dentry);
	s->obj.mnt = READ_PTR(file, f_path.mnt);
	s->obj.inode = READ_PTR(file, f_inode);
	s->obj.access = access;
}

/* set_device adds a device's numbers, which the kernel keeps as major << 20 | minor. */
static __always_inline void set_device(struct scratch *s)
{
	__u32 dev = READ((struct inode *)s->obj.inode, i_rdev);

	s->obj.value = dev >> 20;
	s->obj.value2 = dev & 0xfffff;
}

static __always_inline bool is_device(__u32 mode)
{
	return (mode & S_IFMT) == S_IFCHR || (mode & S_IFMT) == S_IFBLK;
}

/* in_proc tells whether a file is of procfs, where the kernel's variables are. */
static __always_inline bool in_proc(struct inode *inode)
{
	return READ((struct super_block *)READ_PTR(inode, i_sb), s_magic) == PROC_SUPER_MAGIC;
}

/* set_sysctl puts the name of the kernel's variable that the object is, as kernel/core_pattern; false when it is another file of procfs. */
static __always_inline bool set_sysctl(struct scratch *s, __u32 si)
{
	__u32 len = path_build(si, OFF_NEW, s->obj.dentry, 0, 0);
	__u64 head = load64(at(s, OFF_NEW));

	/* "/sys/" */
	if (len <= 5 || len > MAX_STRING || (head & 0xffffffffffULL) != 0x2f7379732fULL)
		return false;
	len -= 5;
	bpf_probe_read_kernel(at(s, OFF_NAME), len & 0xfff, at(s, OFF_NEW + 5));
	s->obj.name_len = len;
	return true;
}

/*
 * What an opened file is beside a file: a device (device.open), a variable of the kernel (kernel.sysctl). Both are judged in addition to file.open, by a
 * function of its own.
 */
__noinline int judge_special(__u32 si, __u32 op)
{
	struct scratch *s = scratch_at(si);

	if (!s)
		return 0;
	if (op == OP_DEVICE)
		set_device(s);
	else if (!set_sysctl(s, si))
		return 0;
	return judge_file(s, si, op & (NUM_JUDGED - 1));
}

static __always_inline void shadow_special(struct scratch *s, __u32 si, __u32 op)
{
	if (op == OP_SYSCTL && !s->obj.name_len)
		return; /* another file of procfs */
	if (s->shadow && turn(si, op)) {
		judge_special(si, op);
		turn_back();
	}
}

static __always_inline int lsm_special(struct file *file, __u8 access, __u32 op)
{
	struct scratch *s;
	__u32 si;
	int ret;

	s = enter(op, &si, &ret);
	if (!s)
		return ret;
	set_open(s, file, access);
	ret = deny_lsm(judge_special(si, op), op);
	shadow_special(s, si, op);
	scratch_put(s);
	return ret;
}

SEC("lsm/file_open")
int BPF_PROG(lsm_file_open, struct file *file, int ret)
{
	__u8 access = access_of(READ(file, f_mode), READ(file, f_flags));
	struct inode *inode = (void *)READ_PTR(file, f_inode);
	struct scratch *s;
	__u32 si;

	if (ret)
		return ret;
	s = enter(OP_OPEN, &si, &ret);
	if (s) {
		set_open(s, file, access);
		ret = leave(s, si, OP_OPEN);
	}
	if (!ret && is_device(READ(inode, i_mode)))
		ret = lsm_special(file, access, OP_DEVICE);
	if (!ret && in_proc(inode))
		ret = lsm_special(file, access, OP_SYSCTL);
	return ret;
}

SEC("lsm/bprm_check_security")
int BPF_PROG(lsm_bprm_check, struct linux_binprm *bprm, int ret)
{
	struct scratch *s;
	__u32 si;

	if (ret)
		return ret;
	s = enter(OP_EXEC, &si, &ret);
	if (!s)
		return ret;
	set_open(s, bprm->file, ACCESS_READ | ACCESS_EXEC);
	return leave(s, si, OP_EXEC);
}

/* judge_open_once is what lsm/file_open does short of reporting: its cost is the verdict's (make bench). */
__noinline int judge_open_once(__u32 si, __u64 file)
{
	struct scratch *s = scratch_at(si);
	struct file *f = (void *)file;

	if (!s)
		return 0;
	s->extra_len = 0;
	set_open(s, f, access_of(READ(f, f_mode), READ(f, f_flags)));
	return verdict_file(s, si, OP_OPEN, true);
}
