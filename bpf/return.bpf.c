//go:build ignore
/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The kill-on-return rung: tp_btf/sys_exit judges the object that a system call has produced (the opened file, the socket) and kills the
 * process before it is back in user mode. Attached only while a rule needs it: an empty program here costs every system call
 * 80 ns. What the call did besides (created, truncated, connected) has happened. io_uring's operations do not pass here.
 *
 * When working memory runs out, a process in an operation that some enforced rule judges is killed.
 */

/* What a system call, by number, produces: an operation, for native and 32-bit calls. Set by the loader for the architecture. */
#define SYS_NR 512
const volatile __u8 sys_op[2][SYS_NR];

static __always_inline struct file *file_of(struct task_struct *t, __u32 fd)
{
	struct fdtable *fdt = BPF_CORE_READ(t, files, fdt);
	struct file **fds = BPF_CORE_READ(fdt, fd), *f = NULL;

	if (fd >= BPF_CORE_READ(fdt, max_fds))
		return NULL;
	bpf_probe_read_kernel(&f, sizeof(f), fds + fd);
	return f;
}

SEC("tp_btf/sys_exit")
int BPF_PROG(on_sys_exit, struct pt_regs *regs, long ret)
{
	struct task_struct *t;
	struct control *c;
	struct scratch *s;
	struct file *f;
	__u32 nr, fd, compat;
	__u8 op;
	int si, act = 0;

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
	c = ctl();
	if (!c || !(c->hooks & 1 << (op & 31)))
		return 0;
	fd = op == OP_OPEN || op == OP_ACCEPT ? ret : reg_at(regs, compat ? regs_arg0_off_compat : regs_arg0_off);
	f = file_of(t, fd);
	if (!f)
		return 0;
	if (selftest(c, op)) {
		bpf_send_signal(SIGCONT);
		return 0;
	}
	if (idle(c, op))
		return 0;
	si = scratch_get();
	if (si < 0) {
		count_err(ERR_SCRATCH);
		if (enforces(c, op))
			bpf_send_signal(SIGKILL);
		return 0;
	}
	s = scratch_at(si);
	if (!s)
		return 0;
	if (op == OP_OPEN) {
		act = judge_file(s, si, OP_OPEN, (__u64)BPF_CORE_READ(f, f_path.dentry),
				 (__u64)BPF_CORE_READ(f, f_path.mnt), (__u64)BPF_CORE_READ(f, f_inode),
				 access_of(BPF_CORE_READ(f, f_mode), BPF_CORE_READ(f, f_flags)), RUNG_KILL);
	} else if ((BPF_CORE_READ(f, f_inode, i_mode) & S_IFMT) == S_IFSOCK) {
		struct socket *sock = BPF_CORE_READ(f, private_data);
		struct rec_net *r = net_rec(s);

		put_sk(s, si, r, BPF_CORE_READ(sock, sk), op == OP_CONNECT || op == OP_ACCEPT);
		/* IPv4 and IPv6 connect, bind and send are the cgroup rung's. */
		if (r->family == AF_UNIX || op == OP_LISTEN || op == OP_ACCEPT)
			act = judge_net(s, si, op, RUNG_KILL);
	}
	scratch_put(s);
	if (act == ACT_KILL)
		bpf_send_signal(SIGKILL);
	return 0;
}
