/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The texts of an image: what is long of it, and the same for all that run it. A child runs its parent's image until it calls exec.
 */
#ifndef PAVISE_TEXTS_H
#define PAVISE_TEXTS_H

#include "proc.h"

/*
 * By the exec_id of the process that began the image: its line, which is the path of its executable and those of its ancestors, nearest first, each
 * followed by NUL; its arguments, likewise; and the path of its script. Of a line that would become too long the executable and the parent are kept. Most texts
 * fit the short form; 32,768 images, and 8,192 whose texts are long. Without an entry, and where something was too long, the facts are judged as too long:
 * strictly.
 */
#define LINE_BYTES   1024
#define ARGS_BYTES   3000
#define SCRIPT_BYTES 256
#define EXE_BYTES    256 /* of another process's executable, where it is judged */

#define TEXT_UNKNOWN \
	0xfffe /* of a process found running: its arguments are where user space puts them, given() */
#define TEXT_LONG 0xffff /* over MAX_STRING: too long for the automata too */

struct texts {
	__u64 refs; /* processes that run the image; the last one takes the texts away */
	__u16 line_len; /* 0 to LINE_BYTES - 1 */
	__u16 from; /* where the ancestors begin: behind the executable, unless the first of them is the same */
	__u16 exe_len; /* of the first in the line, or TEXT_LONG */
	__u16 parent_len; /* of the first ancestor, or TEXT_LONG */
	__u16 args_len; /* 0 to ARGS_BYTES, or TEXT_LONG, TEXT_UNKNOWN */
	__u16 script_len; /* 0 to SCRIPT_BYTES - 1, or TEXT_LONG */
	__u8 cut; /* there are more ancestors */
	__u8 pad[3];
};

/* The values fill 512 bytes and 4 KiB of kernel memory together with what the kernel adds to them. */
struct texts_short {
	struct texts t;
	__u8 bytes[424];
};

struct texts_long {
	struct texts t;
	__u8 bytes[4008];
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

static __always_inline struct texts *texts_of(__u64 image)
{
	struct texts *t = bpf_map_lookup_elem(&short_texts, &image);

	return t ?: bpf_map_lookup_elem(&long_texts, &image);
}

/* texts_load copies the texts of an image to OFF_ALT; 0 when there are none. */
__noinline int texts_load(__u32 si, __u64 image)
{
	struct scratch *s = scratch_at(si);
	void *t;

	if (!s)
		return 0;
	t = bpf_map_lookup_elem(&short_texts, &image);
	if (t) {
		bpf_probe_read_kernel(&s->bytes[OFF_ALT], sizeof(struct texts_short), t);
		return 1;
	}
	t = bpf_map_lookup_elem(&long_texts, &image);
	if (!t)
		return 0;
	bpf_probe_read_kernel(&s->bytes[OFF_ALT], sizeof(struct texts_long), t);
	return 1;
}

/* args_kept and script_kept are how much of the texts at t is there. */
static __always_inline __u32 args_kept(struct texts *t)
{
	return t->args_len <= ARGS_BYTES ? t->args_len : 0;
}

static __always_inline __u32 script_kept(struct texts *t)
{
	return t->script_len < SCRIPT_BYTES ? t->script_len : 0;
}

/* texts_keep makes the texts at bytes[off] those of an image that one process runs. */
__noinline int texts_keep(__u32 si, __u64 image, __u32 off)
{
	struct scratch *s = scratch_at(si);
	struct texts *t;
	long err;

	if (!s)
		return 0;
	t = (void *)at(s, off);
	t->refs = 1;
	if (t->line_len + args_kept(t) + script_kept(t) <= sizeof(((struct texts_short *)0)->bytes))
		err = bpf_map_update_elem(&short_texts, &image, t, BPF_NOEXIST);
	else
		err = bpf_map_update_elem(&long_texts, &image, t, BPF_NOEXIST);
	if (err && err != -EEXIST) /* somebody else has found the process too */
		count_err(ERR_TEXTS);
	return 0;
}

/* Arguments that user space gives for the texts of an image have an entry of their own, under this key: the texts' own may be in use. */
static __always_inline __u64 given(__u64 image)
{
	return ~image;
}

/* texts_given copies arguments that user space has given to bytes[off] and returns their length. */
__noinline int texts_given(__u32 si, __u64 image, __u32 off)
{
	struct scratch *s = scratch_at(si);
	__u64 key = given(image), len;
	struct texts_short *t;
	struct texts_long *l;

	if (!s)
		return 0;
	t = bpf_map_lookup_elem(&short_texts, &key);
	if (t) {
		len = t->t.args_len;
		if (len > sizeof(t->bytes))
			return TEXT_LONG;
		bpf_probe_read_kernel(at(s, off), len, t->bytes);
		return len;
	}
	l = bpf_map_lookup_elem(&long_texts, &key);
	if (!l || l->t.args_len > ARGS_BYTES)
		return TEXT_LONG;
	len = l->t.args_len;
	BOUND(len, 0xfff);
	bpf_probe_read_kernel(at(s, off), len, l->bytes);
	return len;
}

static __always_inline void given_drop(__u64 image)
{
	__u64 key = given(image);

	if (bpf_map_delete_elem(&short_texts, &key))
		bpf_map_delete_elem(&long_texts, &key);
}

/* texts_drop is called when a process runs an image no longer. */
__noinline int texts_drop(__u64 image)
{
	struct texts *t = bpf_map_lookup_elem(&short_texts, &image);
	__u16 args_len;

	if (t) {
		args_len = t->args_len;
		if (__sync_fetch_and_add(&t->refs, -1) != 1)
			return 0;
		bpf_map_delete_elem(&short_texts, &image);
	} else {
		t = bpf_map_lookup_elem(&long_texts, &image);
		if (!t)
			return 0;
		args_len = t->args_len;
		if (__sync_fetch_and_add(&t->refs, -1) != 1)
			return 0;
		bpf_map_delete_elem(&long_texts, &image);
	}
	if (args_len == TEXT_UNKNOWN)
		given_drop(image);
	return 0;
}

/* Where the bytes of the texts at OFF_ALT begin. */
#define OFF_LINE (OFF_ALT + sizeof(struct texts))

/* equal compares two strings of bytes up to EXE_BYTES long; longer ones differ. */
__noinline int equal(__u32 si, __u32 a, __u32 b, __u32 len)
{
	struct scratch *s = scratch_at(si);

	if (!s || len > EXE_BYTES)
		return 0;
	for (int i = 0; i < EXE_BYTES / 8; i++) {
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

/*
 * line_next appends the executable of s->task, which is the turn'th, to the line at OFF_ALT and goes to the task's parent. 1 when there is one, 0 when not, 2
 * when the line becomes too long.
 */
__noinline int line_next(__u32 si, __u32 turn)
{
	struct scratch *s = scratch_at(si);
	struct task_struct *t, *parent;
	struct mm_struct *mm;
	struct texts *to;
	struct file *exe;
	__u32 len = 0;

	if (!s)
		return 0;
	to = (void *)&s->bytes[OFF_ALT];
	t = (void *)s->task;
	mm = (void *)READ_PTR(t, mm);
	exe = mm ? (void *)READ_PTR(mm, exe_file) : NULL;
	if (exe)
		len = path_build(si, OFF_TMP, READ_PTR(exe, f_path.dentry),
				 READ_PTR(exe, f_path.mnt), 0);
	if (turn == 1)
		to->parent_len = TEXT_LONG;
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
	if (!turn)
		to->exe_len = len;
	if (turn == 1)
		to->parent_len = len;
	parent = (void *)READ_PTR(t, real_parent);
	s->task = (__u64)parent;
	return READ(parent, pid) != 0;
}

#define LINE_TURNS 64

/* texts_found makes the texts of a process that already ran, s->task, from the ancestors that still run. */
__noinline int texts_found(__u32 si, __u64 image)
{
	struct scratch *s = scratch_at(si);
	struct texts *t;
	int more = 1;

	if (!s)
		return 0;
	s->line_len = s->line_from = s->line_last = 0;
	t = (void *)&s->bytes[OFF_ALT];
	__builtin_memset(t, 0, sizeof(*t));
	t->exe_len = TEXT_LONG;
	for (int i = 0; i < LINE_TURNS; i++) {
		more = line_next(si, i);
		if (more != 1)
			break;
	}
	if (t->exe_len == TEXT_LONG)
		t->parent_len = TEXT_LONG;
	t->line_len = s->line_len;
	t->from = s->line_from;
	t->cut = more != 0;
	t->args_len = TEXT_UNKNOWN;
	return texts_keep(si, image, OFF_ALT);
}

/* What found_task does; 2 and more: everything that ran already has been found. A process without texts has lost them then. */
__u32 iter_phase;

#define ITER_KEPT 3

/* texts_now makes the texts of the current process, which has not been found yet; 0 when it is too late for that. */
static __always_inline int texts_now(struct scratch *s, __u32 si, __u64 image)
{
	if (iter_phase >= 2)
		return 0;
	s->task = READ_PTR(bpf_get_current_task_btf(), group_leader);
	texts_found(si, image);
	return 1;
}

/* texts_fork lets a child of the current process share its image, which is pp's. */
static __always_inline void texts_fork(struct scratch *s, __u32 si, struct proc *pp, struct proc *p)
{
	__u64 image = pp->image;
	struct texts *t = texts_of(image);

	if (!t && texts_now(s, si, image))
		t = texts_of(image);
	p->forked = 1;
	p->image = t ? image : 0;
	if (t)
		__sync_fetch_and_add(&t->refs, 1);
}

/* texts_exec makes the texts of the image whose record stands at OFF_REC; the current process ran the image old until now. */
__noinline int texts_exec(__u32 si, __u64 old, __u32 forked)
{
	struct scratch *s = scratch_at(si);
	__u32 path = OFF_REC + sizeof(struct rec_proc), to = OFF_TMP + sizeof(struct texts);
	__u32 len, next, up_len = 0, room;
	struct texts *was, *t;
	struct rec_proc *r;
	__u64 from = 0, n;
	void *up;

	if (!s)
		return 0;
	was = texts_of(old);
	if (!was && texts_now(s, si, old))
		was = texts_of(old);
	r = (void *)&s->bytes[OFF_REC];
	t = (void *)&s->bytes[OFF_TMP];
	__builtin_memset(t, 0, sizeof(*t));
	len = r->path_len;
	t->args_len = r->flags & PROC_ARGSCUT || r->args_len > ARGS_BYTES ? TEXT_LONG : r->args_len;
	t->script_len = r->script_len < SCRIPT_BYTES ? r->script_len : TEXT_LONG;
	t->exe_len = t->parent_len = TEXT_LONG;
	t->cut = 1;
	room = sizeof(((struct texts_long *)0)->bytes) - args_kept(t) - script_kept(t);
	if (room > LINE_BYTES)
		room = LINE_BYTES;
	if (!(r->exe.flags & FILE_TRUNCATED) && len + 1 < room) {
		t->exe_len = len;
		n = len;
		BOUND(n, LINE_BYTES - 1);
		bpf_probe_read_kernel(at(s, to), n, at(s, path));
		*at(s, to + len) = 0;
		t->from = len + 1;
		next = to + len + 1;
		if (was) {
			if (!forked)
				from = was->from;
			up_len = was->line_len - from;
			t->parent_len = forked ? was->exe_len : was->parent_len;
			t->cut = was->cut;
			BOUND(from, LINE_BYTES - 1);
			up = (void *)was + sizeof(*was) + from;
			bpf_probe_read_kernel(at(s, next), up_len & (LINE_BYTES - 1), up);
			/* A program that starts itself again and again makes the line no longer. */
			if (up_len > len && !*at(s, next + len) && equal(si, to, next, len)) {
				t->from = 0;
				bpf_probe_read_kernel(at(s, to), up_len & (LINE_BYTES - 1), up);
			}
		}
		if (t->from + up_len >= room) {
			t->cut = 1;
			up_len = t->parent_len + 1;
			if (t->from + up_len >= room) {
				up_len = 0;
				t->parent_len = TEXT_LONG;
			}
		}
		t->line_len = t->from + up_len;
	}
	to += t->line_len;
	n = args_kept(t);
	BOUND(n, 0xfff);
	bpf_probe_read_kernel(at(s, to), n, at(s, path + len + r->script_len));
	to += n;
	n = script_kept(t);
	BOUND(n, SCRIPT_BYTES - 1);
	bpf_probe_read_kernel(at(s, to), n, at(s, path + len));
	return texts_keep(si, r->hdr.exec_id, OFF_TMP);
}

/* texts_exe copies the path of the executable of a process's image to bytes[off] and returns its length; of one that is not known or does not fit, over MAX_STRING. */
__noinline int texts_exe(__u32 si, __u64 image, __u32 off)
{
	struct scratch *s = scratch_at(si);
	struct texts_short *t;
	__u64 len;

	if (!s)
		return 0;
	t = bpf_map_lookup_elem(&short_texts, &image);
	if (!t)
		t = bpf_map_lookup_elem(&long_texts, &image);
	if (!t || t->t.exe_len >= EXE_BYTES)
		return MAX_STRING + 1;
	len = t->t.exe_len;
	BOUND(len, EXE_BYTES - 1);
	bpf_probe_read_kernel(at(s, off), len, t->bytes);
	return len;
}

#endif
