//go:build ignore
/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What processes do to each other and to themselves: lsm/task_kill (process.signal), ptrace_access_check and ptrace_traceme (process.ptrace),
 * task_fix_set* (process.setid), capset, userns_create (kernel.userns), mmap_file and file_mprotect (memory.exec). Attached only while a rule judges the
 * operation. When working memory runs out, an operation that some enforced rule judges is refused.
 */

/* set_target describes the process that is acted on. */
static __always_inline void set_target(struct scratch *s, __u32 si, struct task_struct *t)
{
	struct proc *p = proc_of(t);
	__u64 image;

	s->obj.target_pid = t->tgid;
	s->obj.target_uid = READ((struct cred *)READ_PTR(t, cred), euid.val);
	if (!p)
		return;
	s->obj.target_exec_id = p->exec_id;
	/* What is not known, and a longer path, is judged strictly, as too long. */
	image = p->image;
	s->obj.target_len = texts_exe(si, image, OFF_TARGET);
	FORGET();
	if (p->image != image) /* it has begun another: what was read may be of who knows whom */
		s->obj.target_len = MAX_STRING + 1;
}

/* The signals of a process to itself are no act on another. */
SEC("lsm/task_kill")
int BPF_PROG(lsm_kill, struct task_struct *p, void *info, int sig, const struct cred *cred, int ret)
{
	struct task_struct *t = bpf_get_current_task_btf();
	struct control *c = ctl();
	struct scratch *s;
	__u32 si;

	/*
	 * With cred it is another process's signal, sent on its behalf (USB): the current one is not its sender. As a number: of a pointer the verifier would
	 * believe that it is never NULL.
	 */
	if (ret || arg_at(ctx, 3))
		return ret;
	if ((!sig || p->tgid == t->tgid) && !(c && c->selftest_op == OP_SIGNAL))
		return 0;
	s = enter(OP_SIGNAL, &si, &ret);
	if (!s)
		return ret;
	if (!sig || p->tgid == t->tgid) {
		scratch_put(s);
		return 0;
	}
	set_target(s, si, p);
	s->obj.value = sig;
	return leave(s, si, OP_SIGNAL);
}

#define PTRACE_MODE_READ   1
#define PTRACE_MODE_ATTACH 2

static __always_inline int judge_ptrace(struct task_struct *target, __u32 mode)
{
	struct scratch *s;
	__u32 si;
	int ret;

	s = enter(OP_PTRACE, &si, &ret);
	if (!s)
		return ret;
	set_target(s, si, target);
	s->obj.value = mode & PTRACE_MODE_ATTACH ? PTRACE_ATTACH : PTRACE_READ;
	return leave(s, si, OP_PTRACE);
}

SEC("lsm/ptrace_access_check")
int BPF_PROG(lsm_ptrace, struct task_struct *child, unsigned int mode, int ret)
{
	return ret ?: judge_ptrace(child, mode);
}

/* A process asks its parent to trace it: it still runs the parent's program, mostly. */
SEC("lsm/ptrace_traceme")
int BPF_PROG(lsm_traceme, struct task_struct *parent, int ret)
{
	return ret ?: judge_ptrace(parent, PTRACE_MODE_ATTACH);
}

static __always_inline int judge_number(__u32 op, __u64 value, __u64 value2)
{
	struct scratch *s;
	__u32 si;
	int ret;

	s = enter(op, &si, &ret);
	if (!s)
		return ret;
	s->obj.value = value;
	s->obj.value2 = value2;
	return leave(s, si, op);
}

#define LSM_SETID_FS 8

SEC("lsm/task_fix_setuid")
int BPF_PROG(lsm_setuid, struct cred *new, const struct cred *old, int flags, int ret)
{
	return ret
		       ?: judge_number(OP_SETID,
				       flags & LSM_SETID_FS ? READ(new, fsuid.val)
							    : READ(new, euid.val),
				       UNCHANGED);
}

SEC("lsm/task_fix_setgid")
int BPF_PROG(lsm_setgid, struct cred *new, const struct cred *old, int flags, int ret)
{
	return ret
		       ?: judge_number(OP_SETID, UNCHANGED,
				       flags & LSM_SETID_FS ? READ(new, fsgid.val)
							    : READ(new, egid.val));
}

/* 6.1 (fcfe0ac2fcfa "security: Add LSM hook to setgroups() syscall"). */
SEC("lsm/task_fix_setgroups")
int BPF_PROG(lsm_setgroups, struct cred *new, const struct cred *old, int ret)
{
	return ret ?: judge_number(OP_SETID, UNCHANGED, UNCHANGED);
}

SEC("lsm/capset")
int BPF_PROG(lsm_capset, struct cred *new, const struct cred *old, const kernel_cap_t *effective,
	     const kernel_cap_t *inheritable, const kernel_cap_t *permitted, int ret)
{
	__u64 e = 0, p = 0;

	if (ret)
		return ret;
	bpf_probe_read_kernel(&e, sizeof(e), effective);
	bpf_probe_read_kernel(&p, sizeof(p), permitted);
	return judge_number(OP_CAPSET, e, p);
}

/* 6.1 (7cd4c5c2101c "security, lsm: Introduce security_create_user_ns()"). */
SEC("lsm/userns_create")
int BPF_PROG(lsm_userns, const struct cred *cred, int ret)
{
	return ret ?: judge_number(OP_USERNS, 0, 0);
}

#define PROT_WRITE  2
#define PROT_EXEC   4
#define VM_WRITE    2
#define VM_EXEC	    4
#define VM_SHARED   8
#define VM_MAYWRITE 0x20

/* Anonymous memory that is shared has a file of the kernel's own, of this name, which nobody can open. */
static __always_inline bool is_shared_memory(__u64 file)
{
	struct dentry *d = (void *)READ_PTR((struct file *)file, f_path.dentry);
	char name[9] = {};

	if (READ_PTR(d, d_parent) != (__u64)d)
		return false;
	bpf_probe_read_kernel_str(name, sizeof(name), (void *)READ_PTR(d, d_name.name));
	return !__builtin_memcmp(name, "dev/zero", 8);
}

static __always_inline int judge_memory(__u64 file, __u64 bits)
{
	struct scratch *s;
	__u32 si;
	int ret;

	s = enter(OP_MEMEXEC, &si, &ret);
	if (!s)
		return ret;
	if (file && !is_shared_memory(file))
		set_open(s, (struct file *)file, 0);
	else
		bits |= MEM_ANONYMOUS;
	s->obj.value = bits;
	return leave(s, si, OP_MEMEXEC);
}

static __always_inline int judge_mmap(__u64 file, unsigned long prot)
{
	if (!(prot & PROT_EXEC))
		return 0;
	return judge_memory(file, prot & PROT_WRITE ? MEM_WRITABLE | MEM_WRITTEN : 0);
}

/* The file as a number: until 6.13 or so the verifier believes of the pointer that it is never NULL. */
SEC("lsm/mmap_file")
int BPF_PROG(lsm_mmap, struct file *file, unsigned long reqprot, unsigned long prot,
	     unsigned long flags, int ret)
{
	return ret ?: judge_mmap(arg_at(ctx, 0), prot);
}

/* What READ_IMPLIES_EXEC adds is not known here yet. */
SEC("fmod_ret/security_mmap_file")
int BPF_PROG(fmod_mmap, struct file *file, unsigned long prot, unsigned long flags, int ret)
{
	return ret ?: judge_mmap(arg_at(ctx, 0), prot);
}

/* Private pages that were written to have an anon_vma, also when they are no longer writable; of shared ones it is enough that they could have been. */
SEC("lsm/file_mprotect")
int BPF_PROG(lsm_mprotect, struct vm_area_struct *vma, unsigned long reqprot, unsigned long prot,
	     int ret)
{
	unsigned long was = READ(vma, vm_flags), start = READ(vma, vm_start),
		      end = READ(vma, vm_end);
	struct mm_struct *mm = (void *)READ_PTR(vma, vm_mm);
	__u64 bits = 0;

	if (ret)
		return ret;
	if (!(prot & PROT_EXEC) || (was & VM_EXEC && !(prot & PROT_WRITE)))
		return 0;
	if (prot & PROT_WRITE)
		bits |= MEM_WRITABLE;
	if (prot & PROT_WRITE || was & VM_WRITE || READ_PTR(vma, anon_vma) ||
	    (was & (VM_SHARED | VM_MAYWRITE)) == (VM_SHARED | VM_MAYWRITE))
		bits |= MEM_WRITTEN;
	if (start <= READ(mm, start_stack) && end > READ(mm, start_stack))
		bits |= MEM_STACK;
	if (start < READ(mm, brk) && end > READ(mm, start_brk))
		bits |= MEM_HEAP;
	return judge_memory(READ_PTR(vma, vm_file), bits);
}
