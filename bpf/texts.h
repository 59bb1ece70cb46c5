/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The texts of processes: the paths of their executable and its ancestors, and their arguments.
 */
#ifndef PAVISE_TEXTS_H
#define PAVISE_TEXTS_H

#include "proc.h"

/*
 * What is long of a process and the same for all its threads, by its exec_id: its line, which is the path of its executable and those of its
 * ancestors, nearest first, and its arguments, all followed by NUL. At fork a child gets its parent's, and the parent's executable is its first
 * ancestor; at exec the new executable takes the place of the old one. Most fit the short form; 32,768 processes, and 8,192 whose texts
 * are long. Without an entry, and where something was too long, the facts are judged as too long: strictly.
 */
#define LINE_BYTES 1024
#define ARGS_BYTES 3000

#define TEXT_UNKNOWN \
	0xfffe /* of a process found running: its arguments, until user space gives them */
#define TEXT_LONG 0xffff

struct texts {
	__u16 line_len; /* 0 to LINE_BYTES - 1, or TEXT_LONG */
	__u16 from; /* where the ancestors begin: behind the executable, once the process has called exec */
	__u16 args_len; /* 0 to ARGS_BYTES, or TEXT_LONG, TEXT_UNKNOWN */
	__u16 pad;
};

/* The values fill 512 bytes and 4 KiB of kernel memory together with what the kernel adds to them. */
struct texts_short {
	struct texts t;
	__u8 bytes[440];
};

struct texts_long {
	struct texts t;
	__u8 bytes[LINE_BYTES + ARGS_BYTES];
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 32768);
	__type(key, __u64);
	__type(value, struct texts_short);
} short_texts SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 8192);
	__type(key, __u64);
	__type(value, struct texts_long);
} long_texts SEC(".maps");

/* texts_load copies the texts of a process to OFF_ALT; 0 when there are none. */
__noinline int texts_load(__u32 si, __u64 exec_id)
{
	struct scratch *s = scratch_at(si);
	void *t;

	if (!s)
		return 0;
	t = bpf_map_lookup_elem(&short_texts, &exec_id);
	if (t) {
		bpf_probe_read_kernel(&s->bytes[OFF_ALT], sizeof(struct texts_short), t);
		return 1;
	}
	t = bpf_map_lookup_elem(&long_texts, &exec_id);
	if (!t)
		return 0;
	bpf_probe_read_kernel(&s->bytes[OFF_ALT], sizeof(struct texts_long), t);
	return 1;
}

/* texts_keep makes the texts at bytes[off] those of a process. */
__noinline int texts_keep(__u32 si, __u64 exec_id, __u32 off)
{
	struct scratch *s = scratch_at(si);
	struct texts *t;
	__u32 len = 0;
	long err;

	if (!s)
		return 0;
	t = (void *)at(s, off);
	if (t->line_len < LINE_BYTES)
		len += t->line_len;
	if (t->args_len <= ARGS_BYTES)
		len += t->args_len;
	if (len <= sizeof(((struct texts_short *)0)->bytes))
		err = bpf_map_update_elem(&short_texts, &exec_id, t, BPF_ANY);
	else
		err = bpf_map_update_elem(&long_texts, &exec_id, t, BPF_ANY);
	if (err)
		count_err(ERR_TEXTS);
	return 0;
}

__noinline int texts_drop(__u64 exec_id)
{
	if (bpf_map_delete_elem(&short_texts, &exec_id))
		bpf_map_delete_elem(&long_texts, &exec_id);
	return 0;
}

/* Where the bytes of the texts at OFF_ALT begin. */
#define OFF_LINE (OFF_ALT + sizeof(struct texts))

/* equal compares two strings of bytes up to PROC_STR long; longer ones differ. */
__noinline int equal(__u32 si, __u32 a, __u32 b, __u32 len)
{
	struct scratch *s = scratch_at(si);

	if (!s || len > PROC_STR)
		return 0;
	for (int i = 0; i < PROC_STR / 8; i++) {
		__u64 x;

		if (!len)
			break;
		x = load64(at(s, a)) ^ load64(at(s, b));
		if (len < 8) {
			x &= (1ULL << ((len & 7) * 8)) - 1;
			len = 8;
		}
		if (x)
			return 0;
		a += 8;
		b += 8;
		len -= 8;
	}
	return 1;
}

/* line_long says that the line of the texts at t is not known: neither are those of the process's descendants, then. */
static __always_inline void line_long(struct texts *t)
{
	t->line_len = TEXT_LONG;
	t->from = 0;
}

/*
 * line_next appends the executable of s->task, which is the turn'th, to the line at OFF_ALT and goes to the task's parent. 1 when there is one, 0 when not, 2
 * when the line becomes too long.
 */
__noinline int line_next(__u32 si, __u32 turn)
{
	struct scratch *s = scratch_at(si);
	struct task_struct *t, *parent;
	struct mm_struct *mm;
	struct file *exe;
	__u32 len = 0;

	if (!s)
		return 0;
	t = (void *)s->task;
	mm = (void *)READ_PTR(t, mm);
	exe = mm ? (void *)READ_PTR(mm, exe_file) : NULL;
	if (exe)
		len = path_build(si, OFF_TMP, READ_PTR(exe, f_path.dentry),
				 READ_PTR(exe, f_path.mnt), 0);
	if (turn && s->line_len - s->line_last == len + 1 &&
	    equal(si, OFF_LINE + s->line_last, OFF_TMP, len)) {
		if (turn == 1)
			s->line_from = 0;
	} else {
		if (s->line_len + len + 1 >= LINE_BYTES)
			return 2;
		bpf_probe_read_kernel(at(s, OFF_LINE + s->line_len), len & (LINE_BYTES - 1),
				      at(s, OFF_TMP));
		s->line_last = s->line_len;
		s->line_len += len + 1;
		*at(s, OFF_LINE + s->line_len - 1) = 0;
		if (!turn)
			s->line_from = s->line_len;
	}
	parent = (void *)READ_PTR(t, real_parent);
	s->task = (__u64)parent;
	return READ(parent, pid) != 0;
}

#define LINE_TURNS 64

/* texts_found makes the texts of a process that already ran, s->task, from the ancestors that still run. */
__noinline int texts_found(__u32 si, __u64 exec_id)
{
	struct scratch *s = scratch_at(si);
	struct texts *t;
	int more = 1;

	if (!s)
		return 0;
	s->line_len = s->line_from = s->line_last = 0;
	for (int i = 0; i < LINE_TURNS; i++) {
		more = line_next(si, i);
		if (more != 1)
			break;
	}
	t = (void *)&s->bytes[OFF_ALT];
	t->line_len = s->line_len;
	t->from = s->line_from;
	if (more)
		line_long(t);
	t->args_len = TEXT_UNKNOWN;
	return texts_keep(si, exec_id, OFF_ALT);
}

/* What found_task does; 2: everything that ran already has been found. A process without texts has lost them then. */
__u32 iter_phase;

/* texts_current is texts_load of the current process, which may not have been found yet. */
static __always_inline int texts_current(struct scratch *s, __u32 si, __u64 exec_id)
{
	if (texts_load(si, exec_id))
		return 1;
	if (iter_phase >= 2)
		return 0;
	s->task = READ_PTR(bpf_get_current_task_btf(), group_leader);
	texts_found(si, exec_id);
	return texts_load(si, exec_id);
}

/* texts_fork gives a child of the current process its texts. */
static __always_inline void texts_fork(struct scratch *s, __u32 si, __u64 parent, __u64 child)
{
	struct texts *t = (void *)&s->bytes[OFF_ALT];

	if (!texts_current(s, si, parent))
		return;
	t->from = 0;
	texts_keep(si, child, OFF_ALT);
}

/* texts_exec gives the current process, whose exec_id was old, the texts of the image whose record stands at OFF_REC. */
__noinline int texts_exec(__u32 si, __u64 old)
{
	struct scratch *s = scratch_at(si);
	__u32 path = OFF_REC + sizeof(struct rec_proc), to = OFF_TMP + sizeof(struct texts);
	__u32 len, up, up_len;
	struct texts *was, *t;
	struct rec_proc *r;

	if (!s)
		return 0;
	r = (void *)&s->bytes[OFF_REC];
	was = (void *)&s->bytes[OFF_ALT];
	t = (void *)&s->bytes[OFF_TMP];
	line_long(t);
	len = r->path_len;
	if (texts_current(s, si, old) && was->line_len < LINE_BYTES &&
	    !(r->exe.flags & FILE_TRUNCATED)) {
		up = OFF_LINE + was->from;
		up_len = was->line_len - was->from;
		t->from = len + 1;
		/* A program that starts itself again and again makes the line no longer. */
		if (up_len > len && !*at(s, up + len) && equal(si, path, up, len))
			t->from = 0;
		t->line_len = t->from + up_len;
		if (t->from + up_len < LINE_BYTES) {
			bpf_probe_read_kernel(at(s, to), len & (LINE_BYTES - 1), at(s, path));
			*at(s, to + len) = 0;
			bpf_probe_read_kernel(at(s, to + t->from), up_len & (LINE_BYTES - 1),
					      at(s, up));
			to += t->line_len;
		} else {
			line_long(t);
		}
	}
	t->args_len = TEXT_LONG;
	if (!(r->flags & PROC_ARGSCUT) && r->args_len <= ARGS_BYTES) {
		t->args_len = r->args_len;
		bpf_probe_read_kernel(at(s, to), t->args_len & 0xfff,
				      at(s, path + len + r->script_len));
	}
	texts_keep(si, r->hdr.exec_id, OFF_TMP);
	return texts_drop(old);
}

#endif
