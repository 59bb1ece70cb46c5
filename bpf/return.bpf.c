//go:build ignore
/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The kill-on-return rung: tp_btf/sys_exit judges the object that a system call has produced (the opened file, the socket) and kills the
 * process before it is back in user mode. Only operations whose object is still there to be judged, and of no use before the call is back, have this
 * rung: not those that are done when the call is (delete, mount, signal ...). Attached only while a rule needs it: an empty program here costs every system call
 * 80 ns. What the call did besides (created, truncated, connected) has happened. io_uring's operations do not pass here.
 *
 * When working memory runs out, a process in an operation that some enforced rule judges is killed.
 */

/*
 * What a system call, by number, produces: an operation, for native and 32-bit calls; and, for opens, where its flags are. Set by the
 * loader for the architecture.
 */
#define SYS_NR	  512
#define SYS_OP	  0x3f
#define SYS_FLAGS 0x700 /* enum sys_flags */

enum sys_flags {
	FLAGS_ARG1 = 1 << 8,
	FLAGS_ARG2 = 2 << 8,
	FLAGS_HOW = 3 << 8, /* argument 2 points to struct open_how, in user memory */
	FLAGS_CREAT = 4 << 8,
	FLAGS_PAIR = 5 << 8, /* socketpair */
};

const volatile __u16 sys_op[2][SYS_NR];

static __always_inline struct file *file_of(struct task_struct *t, __u32 fd)
{
	struct fdtable *fdt = BPF_CORE_READ(t, files, fdt);
	struct file **fds = BPF_CORE_READ(fdt, fd), *f = NULL;

	if (fd >= BPF_CORE_READ(fdt, max_fds))
		return NULL;
	bpf_probe_read_kernel(&f, sizeof(f), fds + fd);
	return f;
}

/*
 * open_flags is what the call was asked for: the file has lost O_TRUNC by now. Registers are the caller's own; open_how may have
 * been changed by another thread (docs/THREATS.md).
 */
static __always_inline __u32 open_flags(void *regs, bool compat, __u16 where)
{
	__u64 v;

	switch (where) {
	case FLAGS_ARG1:
		return reg_at(regs, compat ? regs_arg1_off_compat : regs_arg1_off);
	case FLAGS_ARG2:
		return reg_at(regs, compat ? regs_arg2_off_compat : regs_arg2_off);
	case FLAGS_HOW:
		v = reg_at(regs, compat ? regs_arg2_off_compat : regs_arg2_off);
		if (bpf_probe_read_user(&v, sizeof(v), (void *)v))
			return O_TRUNC;
		return v;
	case FLAGS_CREAT:
		return O_TRUNC;
	}
	return 0;
}

/* enter_return begins a judgement of op on return: working memory with an empty object, or NULL. */
static __always_inline struct scratch *enter_return(struct control *c, __u32 op, __u32 *si)
{
	struct scratch *s;
	int i;

	if (!(c->hooks & 1ULL << (op & 63)))
		return NULL;
	if (selftest(c, op)) {
		bpf_send_signal_thread(SIGCONT);
		return NULL;
	}
	if (idle(c, op))
		return NULL;
	i = scratch_get();
	if (i < 0) {
		count_err(ERR_SCRATCH);
		if (enforces(c, op))
			bpf_send_signal(SIGKILL);
		return NULL;
	}
	s = scratch_at(i);
	if (!s)
		return NULL;
	*si = i;
	begin(s, c);
	s->extra_len = 0;
	s->rung = RUNG_KILL;
	__builtin_memset(&s->obj, 0, sizeof(s->obj));
	return s;
}

/* leave_return gives the working memory back and does what was decided; the shadow has judged by now. */
static __always_inline void leave_return(struct scratch *s, int act)
{
	scratch_put(s);
	if (act == ACT_KILL)
		bpf_send_signal(SIGKILL);
}

static __always_inline void return_open(struct control *c, struct file *f, __u32 flags)
{
	struct inode *inode = (void *)READ_PTR(f, f_inode);
	__u8 access = access_of(READ(f, f_mode), flags);
	struct scratch *s;
	__u32 si, op = 0;
	int act;

	s = enter_return(c, OP_OPEN, &si);
	if (s) {
		set_open(s, f, access);
		act = judge_object(si, OP_OPEN);
		shadow_object(s, si, OP_OPEN);
		leave_return(s, act);
	}
	if (is_device(READ(inode, i_mode)))
		op = OP_DEVICE;
	else if (in_proc(inode))
		op = OP_SYSCTL;
	if (!op)
		return;
	s = enter_return(c, op, &si);
	if (s) {
		set_open(s, f, access);
		act = judge_special(si, op);
		shadow_special(s, si, op);
		leave_return(s, act);
	}
}

/* shadow_allows tells that the shadow does not judge at all where the active side has decided something. */
__noinline int shadow_allows(__u32 si)
{
	struct scratch *s = scratch_at(si);

	if (!s)
		return 0;
	__builtin_memset(&s->v, 0, sizeof(s->v));
	tell_net(s, si);
	return turn_back();
}

static __always_inline void return_socket(struct control *c, struct file *f, __u32 op)
{
	struct socket *sock;
	struct scratch *s;
	struct rec_net *r;
	struct sock *sk;
	__u32 si;
	int act = 0;

	s = enter_return(c, op, &si);
	if (!s)
		return;
	sock = BPF_CORE_READ(f, private_data);
	sk = BPF_CORE_READ(sock, sk);
	r = net_rec(s);
	if (op == OP_SOCKET)
		put_type(r, BPF_CORE_READ(sk, __sk_common.skc_family), BPF_CORE_READ(sk, sk_type),
			 BPF_CORE_READ(sk, sk_protocol));
	else
		put_sk(s, si, r, sk, op == OP_CONNECT || op == OP_ACCEPT);
	/* IPv4 and IPv6 connect, bind and send are the cgroup rung's; and the making of a socket, where it has that. */
	if (r->family != AF_UNIX && op != OP_LISTEN && op != OP_ACCEPT && op != OP_SOCKET)
		goto out;
	if (op == OP_SOCKET && c->made && (r->family == AF_INET || r->family == AF_INET6))
		goto out;
	if (r->family == AF_INET || r->family == AF_INET6) {
		if (op == OP_ACCEPT)
			set_asked(s, si, r, OP_ACCEPT, sk);
		else if (op == OP_LISTEN)
			set_asked(s, si, r, OP_LISTEN, sk);
	}
	/* Each side judges Unix sockets here as it would without the other. */
	if (!(c->not_active & 1ULL << (op & 63)))
		act = judge_socket(si, op);
	if (!(c->not_shadow & 1ULL << (op & 63)))
		shadow_socket(s, si, op);
	else if (s->shadow && decision(&s->v, s->rung) && turn(si, op))
		shadow_allows(si);
out:
	leave_return(s, act);
}

/* return_pair judges socketpair by its arguments, in registers: domain, type and protocol. */
static __always_inline void return_pair(struct control *c, void *regs, bool compat)
{
	struct scratch *s;
	__u32 si;
	int act;

	s = enter_return(c, OP_SOCKET, &si);
	if (!s)
		return;
	put_type(net_rec(s), reg_at(regs, compat ? regs_arg0_off_compat : regs_arg0_off),
		 reg_at(regs, compat ? regs_arg1_off_compat : regs_arg1_off) & SOCK_TYPE_MASK,
		 reg_at(regs, compat ? regs_arg2_off_compat : regs_arg2_off));
	act = judge_socket(si, OP_SOCKET);
	shadow_socket(s, si, OP_SOCKET);
	leave_return(s, act);
}

/* return_plain judges what has no object but a number. */
static __always_inline void return_plain(struct control *c, __u32 op)
{
	struct scratch *s;
	__u32 si;
	int act;

	s = enter_return(c, op, &si);
	if (!s)
		return;
	if (op == OP_IO_URING)
		s->obj.value = IO_URING_SETUP;
	if (op == OP_CHROOT) {
		struct fs_struct *fs = BPF_CORE_READ(bpf_get_current_task_btf(), fs);

		set_file(s, (__u64)BPF_CORE_READ(fs, root.dentry),
			 (__u64)BPF_CORE_READ(fs, root.mnt));
	}
	act = judge_object(si, op);
	shadow_object(s, si, op);
	leave_return(s, act);
}

/* What the calls of open are judged as. */
#define OPENS (1ULL << OP_OPEN | 1ULL << OP_DEVICE | 1ULL << OP_SYSCTL)

SEC("tp_btf/sys_exit")
int BPF_PROG(on_sys_exit, struct pt_regs *regs, long ret)
{
	struct task_struct *t;
	struct control *c;
	struct file *f;
	__u32 nr, fd, compat, flags;
	__u16 op, where;

	/* Failed calls produce nothing; a connect that is under way does. */
	if (ret < 0 && ret != -EINPROGRESS)
		return 0;
	t = bpf_get_current_task_btf();
	compat = compat_syscall(t);
	nr = reg_at(regs, regs_nr_off) & ~0x40000000; /* x32 sets this bit */
	if (nr >= SYS_NR)
		return 0;
	op = sys_op[compat & 1][nr & (SYS_NR - 1)];
	if (!op)
		return 0;
	where = op & SYS_FLAGS;
	op &= SYS_OP;
	c = ctl();
	if (!c || !(c->hooks & (op == OP_OPEN ? OPENS : 1ULL << op)))
		return 0;
	if (op == OP_IO_URING || op == OP_PERF || op == OP_CHROOT) {
		return_plain(c, op);
		return 0;
	}
	fd = op == OP_OPEN || op == OP_ACCEPT || op == OP_SOCKET
		     ? ret
		     : reg_at(regs, compat ? regs_arg0_off_compat : regs_arg0_off);
	if (where == FLAGS_PAIR) {
		return_pair(c, regs, compat);
		return 0;
	}
	f = file_of(t, fd);
	if (!f)
		return 0;
	flags = READ(f, f_flags);
	if (op == OP_OPEN) {
		/* O_PATH gives no access: ls and stat use it. What it is used for is judged then. */
		if (!(flags & O_PATH))
			return_open(c, f, flags | (open_flags(regs, compat, where) & O_TRUNC));
	} else if ((BPF_CORE_READ(f, f_inode, i_mode) & S_IFMT) == S_IFSOCK) {
		return_socket(c, f, op);
	}
	return 0;
}

/*
 * Probes: what a rung needs, in a few instructions each, so that it can be tried at start without loading the real programs. Each
 * counts the calls of the thread that the agent names in the control.
 */
static __always_inline bool probed(void)
{
	struct control *c = ctl();

	if (!c || c->selftest_tid != (__u32)bpf_get_current_pid_tgid() || !is_agent(c->agent))
		return false;
	__sync_fetch_and_add(&c->selftest_hits, 1);
	return true;
}

SEC("lsm/task_getpgid")
int BPF_PROG(lsm_probe, struct task_struct *p, int ret)
{
	if (ret)
		return ret;
	return probed() ? -EPERM : 0;
}

SEC("cgroup/connect4")
int probe_cgroup(struct bpf_sock_addr *ctx)
{
	/* The identity of the caller is in task storage, which cgroup programs could not reach before 6.18 or so. */
	bpf_task_storage_get(&procs, bpf_get_current_task_btf(), 0, 0);
	return !probed();
}

SEC("tp_btf/sys_exit")
int BPF_PROG(probe_return, struct pt_regs *regs, long ret)
{
	if (probed())
		bpf_send_signal_thread(SIGCONT);
	return 0;
}

/* What is asked of, and said about, a file that the caller has open: one question at a time. */
struct opened {
	__u32 op;
	__u32 fd;
	__u32 count;
	__u32 action; /* of the last */
	__u64 ns; /* for all */
	__u64 ino;
	__u32 dev;
	__u32 links;
	__u32 gen;
	__u32 addr_len; /* of an address to connect to */
	__u8 addr[24];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct opened);
} openeds SEC(".maps");

/* resolve tells the identity of an open file as the kernel sees it: stat's differs on btrfs and overlayfs. */
SEC("syscall")
int resolve(void *ctx)
{
	__u32 zero = 0;
	struct opened *in = bpf_map_lookup_elem(&openeds, &zero);
	struct file *f;

	if (!in)
		return 1;
	f = file_of(bpf_get_current_task_btf(), in->fd);
	if (!f)
		return 1;
	in->ino = BPF_CORE_READ(f, f_inode, i_ino);
	in->dev = BPF_CORE_READ(f, f_inode, i_sb, s_dev);
	in->links = BPF_CORE_READ(f, f_inode, __i_nlink);
	in->gen = inode_gen((__u64)BPF_CORE_READ(f, f_inode));
	return 0;
}
