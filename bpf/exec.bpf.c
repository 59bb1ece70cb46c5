//go:build ignore
/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Processes: tp_btf newtask, exec, exit, and iter/task for what already runs. Attached always: identity depends on them. When task storage
 * cannot be had, the thread is identified at its first judgement, or judged strictly (judge.h). process.exec is judged at
 * lsm/bprm_check_security, or here, in sched_process_exec, on the kill-on-return rung: the process is killed before its first instruction.
 */

const volatile bool exec_events = true; /* lifecycle records; off only in benchmarks */

static __always_inline void fill_proc(struct rec_proc *r, struct task_struct *t, struct proc *p,
				      __u8 op, __u64 now)
{
	struct cred *c = (void *)READ_PTR(t, cred);

	__builtin_memset(r, 0, sizeof(*r));
	r->hdr.kind = REC_PROC;
	r->hdr.op = op;
	r->hdr.time = now;
	r->hdr.exec_id = p->exec_id;
	r->hdr.pid = READ(t, tgid);
	r->hdr.tid = READ(t, pid);
	r->hdr.count = 1;
	r->parent_exec_id = p->parent_exec_id;
	r->start_time = p->start;
	r->parent_pid = READ((struct task_struct *)READ_PTR(t, real_parent), tgid);
	r->uid = READ(c, uid.val);
	r->gid = READ(c, gid.val);
	r->euid = READ(c, euid.val);
	r->egid = READ(c, egid.val);
	r->caps = read_caps(c);
	r->login = ~0U;
	if (bpf_core_field_exists(t->loginuid))
		r->login = READ(t, loginuid.val);
	read_ns(t, &r->ns);
	r->ns_host = host_ns(&r->ns);
	if (READ_PTR((struct signal_struct *)READ_PTR(t, signal), tty))
		p->flags |= PROC_TTY;
	else
		p->flags &= ~PROC_TTY;
	r->flags = p->flags;
	store64(r->comm, read_word(t->comm));
	store64(r->comm + 8, read_word(t->comm + 8));
}

/* task_newtask and not sched_process_fork, which does not see io_uring's workers (create_io_thread). */
SEC("tp_btf/task_newtask")
int BPF_PROG(on_fork, struct task_struct *child, unsigned long clone_flags)
{
	struct task_struct *parent = bpf_get_current_task_btf();
	struct proc *pp, *p;
	struct scratch *s;
	__u64 now;
	int si;

	pp = bpf_task_storage_get(&procs, parent, 0, 0);
	si = scratch_get();
	if (si < 0) {
		count_err(ERR_SCRATCH);
		return 0;
	}
	s = scratch_at(si);
	if (!s)
		return 0;
	if (!pp) {
		identify(si);
		pp = bpf_task_storage_get(&procs, parent, 0, 0);
	}
	if (!pp) {
		count_err(ERR_PROC);
		goto out;
	}
	p = bpf_task_storage_get(&procs, child, pp, BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (!p) {
		count_err(ERR_PROC);
		goto out;
	}
	if (digests_used)
		digest_fork(parent, child);
	if (child->pid != child->tgid)
		goto out; /* a thread: the same process, the same identity */
	now = bpf_ktime_get_boot_ns();
	p->parent_exec_id = pp->exec_id;
	p->exec_id = new_exec_id(now);
	p->pid = child->pid;
	p->start = READ(child, start_boottime);
	p->found = 0;
	p->gen = 0; /* its parent is another */
	texts_fork(s, si, pp, p);
	keep(p);
	if (exec_events) {
		struct rec_proc *r = (void *)&s->bytes[OFF_REC];

		fill_proc(r, child, p, OP_FORK, now);
		r->parent_pid = READ(parent, tgid);
		send(s, &r->hdr, sizeof(*r), true, false);
	}
out:
	scratch_put(s);
	return 0;
}

/* put_str appends what path_build and its like left at bytes[*pos] to the record: it already stands there. */
static __always_inline __u16 took(__u32 *pos, __u32 len)
{
	len = clip(len);
	*pos += len;
	return len;
}

static __always_inline void fill_exe(struct scratch *s, struct rec_proc *r, struct file *exe,
				     __u32 len)
{
	read_inode(READ_PTR(exe, f_inode), &r->exe);
	r->exe.flags = (s->path_flags & PATH_PSEUDO ? FILE_MEMFD : 0) |
		       (s->path_flags & PATH_DELETED || !r->exe.links ? FILE_DELETED : 0) |
		       (len > MAX_STRING ? FILE_TRUNCATED : 0);
}

/* take_args appends the arguments of the current process, which has just called exec, to a record. */
static __always_inline void take_args(struct scratch *s, struct rec_proc *r, struct task_struct *t,
				      __u32 *pos)
{
	struct mm_struct *mm = (void *)READ_PTR(t, mm);
	unsigned long start = READ(mm, arg_start), end = READ(mm, arg_end);
	__u64 len = end - start;

	if (len > 4096) {
		len = 4096;
		r->flags |= PROC_ARGSCUT;
	}
	if (len && bpf_probe_read_user(at(s, *pos), len & 0x1fff, (void *)start)) {
		len = 0;
		r->flags |= PROC_ARGSCUT; /* paged out since: said, not guessed */
	}
	r->args_len = took(pos, len);
}

/* put_digests appends the digests of a process's image that were taken when it began. */
static __always_inline void put_digests(struct scratch *s, struct rec_proc *r,
					struct task_struct *t, __u32 *pos)
{
	struct digests *d = bpf_task_storage_get(&image_digests, t, 0, 0);

	if (!d || r->hdr.flags == REC_FOUND)
		return;
	r->digest_len = d->now[DIGEST_CONTENT].len;
	bpf_probe_read_kernel(at(s, *pos), DIGEST_TEXT, d->now[DIGEST_CONTENT].text);
	*pos += r->digest_len;
	r->verity_len = d->now[DIGEST_VERITY].len;
	bpf_probe_read_kernel(at(s, *pos), DIGEST_TEXT, d->now[DIGEST_VERITY].text);
	*pos += r->verity_len;
}

/* finish_proc appends cwd, cgroup and file system to a record whose path, script and arguments stand, and sends it. */
static __always_inline void finish_proc(struct scratch *s, __u32 si, struct rec_proc *r,
					struct task_struct *t, struct file *exe, __u32 pos)
{
	struct fs_struct *fs = (void *)READ_PTR(t, fs);
	struct task_struct *parent;
	__u64 cgrp = cgroup_of(t);
	bool wake = false;

	/* Perhaps the first program in a new container: rules that ask for its image wait for this record. */
	parent = (void *)READ_PTR(t, real_parent);
	if (!(r->hdr.flags & REC_FOUND) && READ_PTR(t, cgroups) != READ_PTR(parent, cgroups))
		wake = cgroup_of(parent) != cgrp;
	if (fs)
		r->cwd_len = took(&pos, path_build(si, pos, READ_PTR(fs, pwd.dentry),
						   READ_PTR(fs, pwd.mnt), 0));
	r->cgroup_len = took(&pos, cgroup_tell(si, pos, cgrp) & 0x7ff);
	if (exe) {
		r->fs_len = read_fs(s, pos, READ_PTR(exe, f_inode));
		pos += r->fs_len;
	}
	if (digests_used)
		put_digests(s, r, t, &pos);
	send(s, &r->hdr, pos - OFF_REC, true, wake);
}

/*
 * script_path writes the path of a script, from the name that execve was given, at bytes[off] and returns its length: as it stands when it is absolute,
 * behind the working directory otherwise, without "./" at its beginning. It is not resolved further: the kernel has let go of the script's file here. (lsm/bprm_check_security sees the file.)
 */
__noinline int script_path(__u32 si, __u32 off, __u64 filename)
{
	struct scratch *s = scratch_at(si);
	struct fs_struct *fs;
	__u32 len = 0;
	char first = 0;
	long n;

	if (!s)
		return 0;
	for (int i = 0; i < 4; i++) {
		char dot[2] = {};

		bpf_probe_read_kernel(dot, 2, (void *)filename);
		if (dot[0] != '.' || dot[1] != '/')
			break;
		filename += 2;
	}
	bpf_probe_read_kernel(&first, 1, (void *)filename);
	if (first != '/') {
		fs = (void *)READ_PTR(bpf_get_current_task_btf(), fs);
		len = path_build(si, off, READ_PTR(fs, pwd.dentry), READ_PTR(fs, pwd.mnt), 0);
		if (len > MAX_STRING)
			return len;
		if (len > 1) { /* not at the root */
			*at(s, off + len) = '/';
			len++;
		}
	}
	n = bpf_probe_read_kernel_str(at(s, off + len), 4096, (void *)filename);
	return len + (n > 1 ? n - 1 : 0);
}

/* The arguments of the new program, as the kernel has just laid them out; its name is in the record what they are. */
static __always_inline void put_args(struct scratch *s)
{
	struct mm_struct *mm = (void *)READ_PTR(bpf_get_current_task_btf(), mm);
	unsigned long start = READ(mm, arg_start);
	__u64 len = READ(mm, arg_end) - start;

	s->obj.name_len = len > MAX_STRING ? MAX_STRING + 1 : len;
	if (len > MAX_STRING)
		len = MAX_STRING;
	BOUND(len, 0xfff);
	if (len && bpf_probe_read_user(at(s, OFF_NAME), len, (void *)start))
		s->obj.name_len = MAX_STRING + 1;
}

/*
 * judge_exec judges the execution of a file by the current process, whose identity is still that of the image before; a script is judged
 * as another name of its interpreter. op is OP_EXEC, or OP_LATE for what is about the arguments. A function of its own, for its stack.
 */
__noinline int judge_exec(__u32 si, __u64 binprm, __u32 script, __u32 op)
{
	struct linux_binprm *bprm = (void *)binprm;
	struct scratch *s = scratch_at(si);
	struct control *c = ctl();
	int act;

	if (!s || !c)
		return 0;
	begin(s, c);
	__builtin_memset(&s->obj, 0, sizeof(s->obj));
	s->extra_len = script ? script_path(si, OFF_EXTRA, READ_PTR(bprm, filename)) : 0;
	s->rung = RUNG_KILL;
	set_open(s, (void *)READ_PTR(bprm, file), ACCESS_READ | ACCESS_EXEC);
	if (op == OP_LATE)
		put_args(s);
	act = judge_object(si, op);
	shadow_object(s, si, op);
	return act;
}

/* judge_exec_once is what judge_exec does of a program that is no script, short of reporting: its cost is the verdict's (make bench). */
__noinline int judge_exec_once(__u32 si, __u64 file)
{
	struct scratch *s = scratch_at(si);

	if (!s)
		return 0;
	s->extra_len = 0;
	set_open(s, (void *)file, ACCESS_READ | ACCESS_EXEC);
	return verdict_file(s, si, OP_EXEC, true);
}

/* new_image gives the current process the identity of the program that it has just begun, and sends its record. A function of its own, for its stack. */
__noinline int new_image(__u32 si, __u64 binprm, __u32 script)
{
	struct linux_binprm *bprm = (void *)binprm;
	struct task_struct *t = bpf_get_current_task_btf();
	struct scratch *s = scratch_at(si);
	struct rec_proc *r;
	struct file *exe;
	struct proc *p;
	__u64 old, now;
	__u32 len, pos;

	if (!s)
		return 0;
	p = bpf_task_storage_get(&procs, t, 0, 0);
	if (!p) {
		identify(si);
		p = bpf_task_storage_get(&procs, t, 0, 0);
	}
	if (!p) {
		count_err(ERR_PROC);
		return 0;
	}
	r = (void *)&s->bytes[OFF_REC];
	old = p->image;
	now = bpf_ktime_get_boot_ns();
	p->exec_id = new_exec_id(now);
	p->found = 0;
	p->gen = 0;
	exe = (void *)READ_PTR(bprm, file);
	if (digests_used)
		digest_exec(t, (__u64)exe);
	fill_proc(r, t, p, OP_EXEC, now);
	pos = OFF_REC + sizeof(*r);
	len = path_build(si, pos, READ_PTR(exe, f_path.dentry), READ_PTR(exe, f_path.mnt), 0);
	fill_exe(s, r, exe, len);
	r->path_len = took(&pos, len);
	p->flags = (p->flags & PROC_TTY) | exe_flags(s, r->exe.links) |
		   image_flags(r->exe.mode, r->exe.dev) |
		   (BPF_CORE_READ_BITFIELD_PROBED(bprm, secureexec) ? PROC_SECURE : 0);
	r->flags = p->flags;

	if (script) {
		len = script_path(si, pos, READ_PTR(bprm, filename));
		r->script_len = took(&pos, len);
	}
	take_args(s, r, t, &pos);
	texts_exec(si, old, p->forked);
	p->image = p->exec_id;
	p->forked = 0;
	p->recalled = 0;
	keep_current();
	texts_drop(old);
	if (exec_events)
		finish_proc(s, si, r, t, exe, pos);
	return 0;
}

/* A child of the agent, and not of another process that has its pid by now. */
static __always_inline bool child_of_agent(struct task_struct *t, struct control *c)
{
	struct proc *p = bpf_task_storage_get(&procs, t, 0, 0);

	return !c->agent || (p && p->parent_exec_id == c->agent);
}

SEC("tp_btf/sched_process_exec")
int BPF_PROG(on_exec, struct task_struct *t, int old_pid, struct linux_binprm *bprm)
{
	struct control *c = ctl();
	struct scratch *s;
	bool script;
	int si;

	si = scratch_get();
	if (si < 0) {
		count_err(ERR_SCRATCH);
		return 0;
	}
	s = scratch_at(si);
	if (!s)
		return 0;
	/* binfmt_script and binfmt_misc replace interp and leave filename, as given to execve, naming the script. */
	script = READ_PTR(bprm, interp) != READ_PTR(bprm, filename);
	for (int late = 0; late < 2; late++) {
		__u32 op = late ? OP_LATE : OP_EXEC;

		asm volatile("" : "+r"(op)); /* or clang makes the judgement twice */
		if (!c || !(c->hooks & 1ULL << (op & 63)))
			continue;
		/* The agent proves this rung on a child of its own, since the one that execs here is gone. */
		if (c->selftest_op == op && c->selftest_tid &&
		    c->selftest_tid == BPF_CORE_READ(t, real_parent, tgid) &&
		    child_of_agent(t, c)) {
			__sync_fetch_and_add(&c->selftest_hits, 1);
			bpf_send_signal(SIGKILL);
		}
		if (judge_exec(si, arg_at(ctx, 2), script, op) == ACT_KILL) {
			bpf_send_signal(SIGKILL);
			break;
		}
	}
	new_image(si, arg_at(ctx, 2), script);
	scratch_put(s);
	return 0;
}

SEC("tp_btf/sched_process_exit")
int BPF_PROG(on_exit, struct task_struct *t)
{
	struct proc *p = proc_of(t);
	struct op_stats *st;
	struct rec_exit r = {};
	__u32 pid = t->tgid;
	long err;

	/* The last thread to go ends the process (do_exit has counted it down already). */
	if (!p || READ((struct signal_struct *)READ_PTR(t, signal), live.counter) > 0)
		return 0;
	texts_drop(p->image);
	if (!storage_stays)
		bpf_map_delete_elem(&identities, &pid);
	if (!exec_events)
		return 0;
	r.hdr.kind = REC_EXIT;
	r.hdr.op = OP_EXIT;
	r.hdr.len = sizeof(r);
	r.hdr.time = bpf_ktime_get_boot_ns();
	r.hdr.exec_id = p->exec_id;
	r.hdr.pid = t->tgid;
	r.hdr.tid = t->pid;
	r.hdr.count = 1;
	r.code = t->exit_code;
	err = bpf_ringbuf_output(&critical, &r, sizeof(r), BPF_RB_NO_WAKEUP);
	st = stats_of(OP_EXIT);
	if (st) {
		__sync_fetch_and_add(&st->seen, 1);
		__sync_fetch_and_add(err ? &st->lost : &st->delivered, 1);
	}
	return 0;
}

/* find_storage returns 0 where the current thread has its storage. */
SEC("syscall")
int find_storage(void *ctx)
{
	return !bpf_task_storage_get(&procs, bpf_get_current_task_btf(), 0, 0);
}

/* host_up goes from s->task to its parent; 0 when that is the kernel's first task, whose namespaces are the machine's own. */
__noinline int host_up(__u32 si)
{
	struct scratch *s = scratch_at(si);
	struct task_struct *t, *parent;

	if (!s)
		return 0;
	t = (void *)s->task;
	parent = (void *)READ_PTR(t, real_parent);
	s->task = (__u64)parent;
	if (READ(parent, pid))
		return 1;
	read_ns(parent, &host.ns);
	host.root_dev = BPF_CORE_READ(t, fs, root.mnt, mnt_sb, s_dev);
	return 0;
}

/* find_host finds the machine's own namespaces and root, from any process: before all other programs. */
SEC("syscall")
int find_host(void *ctx)
{
	struct scratch *s;
	int si, more = 1;

	si = scratch_get();
	if (si < 0)
		return 1;
	s = scratch_at(si);
	if (!s)
		return 1;
	s->task = READ_PTR(bpf_get_current_task_btf(), group_leader);
	for (int i = 0; i < 4 * LINE_TURNS; i++) {
		more = host_up(si);
		if (!more)
			break;
	}
	scratch_put(s);
	return more;
}

/* leader_of is the identity of a thread's process, NULL when it has none yet. */
static __always_inline struct proc *leader_of(struct task_struct *t)
{
	if (t->pid == t->tgid || !t->group_leader)
		return NULL;
	return bpf_task_storage_get(&procs, t->group_leader, 0, 0);
}

/* put_kept appends the script and the arguments of a process as they were when it began to its record, up to pos. */
static __always_inline __u32 put_kept(__u32 si, __u32 pos, struct proc *p)
{
	struct scratch *s = scratch_at(si);
	__u32 args, len = 0, slen = 0;
	struct rec_proc *r;
	struct texts *t;

	if (!s)
		return pos;
	r = (void *)&s->bytes[OFF_REC];
	t = (void *)&s->bytes[OFF_ALT];
	if (!texts_load(si, p->image)) {
		r->flags |= PROC_ARGSCUT;
		return pos;
	}
	args = OFF_LINE + t->line_len;
	slen = script_kept(t);
	bpf_probe_read_kernel(at(s, pos), slen & (SCRIPT_BYTES - 1), at(s, args + args_kept(t)));
	r->script_len = slen;
	pos += slen;
	if (t->args_len == TEXT_UNKNOWN) {
		len = texts_given(si, p->image, pos);
	} else {
		len = t->args_len;
		if (len <= ARGS_BYTES)
			bpf_probe_read_kernel(at(s, pos), len & 0xfff, at(s, args));
	}
	if (len > ARGS_BYTES) {
		r->flags |= PROC_ARGSCUT;
		return pos;
	}
	r->args_len = len;
	return pos + len;
}

/*
 * found_task is run twice over all tasks: first each gets its identity, then, since parents have theirs by now, its parent, and
 * a record. A thread made meanwhile inherits at fork; one that was judged meanwhile identified itself. For an agent that has found what another left, it is
 * run once more, and tells of all.
 */

SEC("iter/task")
int found_task(struct bpf_iter__task *ctx)
{
	struct task_struct *t = ctx->task;
	struct proc *p, *pp;
	struct scratch *s;
	struct rec_proc *r;
	struct file *exe;
	struct mm_struct *mm;
	__u32 pos, len;
	int si;

	if (!t)
		return 0;
	si = scratch_get();
	if (si < 0) {
		count_err(ERR_SCRATCH);
		return 0;
	}
	s = scratch_at(si);
	if (!s)
		return 0;
	/* A thread takes its process's, which may be from an agent before this one. */
	p = proc_of(t);
	if (!p && iter_phase != 1)
		p = bpf_task_storage_get(&procs, t, leader_of(t), BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (!p)
		goto out;
	if (!p->exec_id)
		found(s, si, t, p);
	if (t->pid == t->tgid)
		keep(p);
	if (!iter_phase)
		goto out;
	if (!p->parent_exec_id && t->real_parent) {
		pp = bpf_task_storage_get(&procs, t->real_parent, 0, 0);
		if (pp && pp != p) {
			p->parent_exec_id = pp->exec_id;
			p->gen = 0;
			if (t->pid == t->tgid)
				keep(p);
		}
	}
	if (p->found && t->pid == t->tgid && !texts_of(p->image)) {
		s->task = READ_PTR(t, group_leader);
		texts_found(si, p->image);
	}
	if ((!p->found && iter_phase != ITER_KEPT) || t->pid != t->tgid)
		goto out;
	r = (void *)&s->bytes[OFF_REC];
	fill_proc(r, t, p, OP_EXEC, p->start);
	r->hdr.flags = p->found ? REC_FOUND : REC_FOUND | REC_KEPT;
	pos = OFF_REC + sizeof(*r);
	mm = (void *)READ_PTR(t, mm);
	exe = mm ? (void *)READ_PTR(mm, exe_file) : NULL;
	if (exe) {
		len = path_build(si, pos, READ_PTR(exe, f_path.dentry), READ_PTR(exe, f_path.mnt),
				 0);
		fill_exe(s, r, exe, len);
		r->path_len = took(&pos, len);
	}
	if (!p->found)
		pos = put_kept(si, pos, p);
	finish_proc(s, si, r, t, exe, pos);
out:
	scratch_put(s);
	return 0;
}
