/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Digests of executables, for rules that ask for them: of the content, by IMA, and of fs-verity. They are taken at lsm/bprm_creds_from_file, which has the file
 * that will be the image (an interpreter, not its script), may sleep, and is passed before the exec can no longer fail.
 */
#ifndef PAVISE_DIGEST_H
#define PAVISE_DIGEST_H

#include "kernel.h"
#include "compat.h"

#define DIGEST_BYTES 64
#define DIGEST_TEXT  136 /* "sha512:" and 128 digits, in words of 8 */

struct digest {
	__u32 len;
	__u32 pad;
	__u8 text[DIGEST_TEXT];
};

enum {
	DIGEST_CONTENT,
	DIGEST_VERITY,
	NUM_DIGESTS
};

struct digests {
	struct digest now[NUM_DIGESTS]; /* of the image of the process */
	struct digest next[NUM_DIGESTS]; /* of the file that the thread is about to make its image */
	__u64 next_file;
	__u8 raw[8 + DIGEST_BYTES];
};

/* One for each thread of a process that has called exec, or whose parent had, since a rule first asked for digests; the file's is here between two hooks. */
struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct digests);
} image_digests SEC(".maps");

/* Set for good before a rule asks for digests the first time. */
__u32 digests_used;

/* digest_put writes a digest of n bytes at d->raw + 8 as text behind its algorithm's name. */
static __always_inline void digest_put(struct digests *d, struct digest *to, const char name[8],
				       __u32 n)
{
	if (n > DIGEST_BYTES)
		return;
	__builtin_memcpy(to->text, name, 8);
	for (__u32 i = 0; i < DIGEST_BYTES; i++) {
		__u8 b, hi, lo;

		if (i >= n)
			break;
		b = d->raw[8 + i];
		hi = b >> 4;
		lo = b & 15;
		to->text[7 + 2 * i] = hi + (hi < 10 ? '0' : 'a' - 10);
		to->text[8 + 2 * i] = lo + (lo < 10 ? '0' : 'a' - 10);
	}
	to->len = 7 + 2 * n;
}

/* digest_fork gives a new process, or thread, the digests of the one that made it. */
static __always_inline void digest_fork(struct task_struct *parent, struct task_struct *child)
{
	struct digests *d = bpf_task_storage_get(&image_digests, parent, 0, 0);

	if (!d)
		return;
	d = bpf_task_storage_get(&image_digests, child, d, BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (d)
		d->next_file = 0;
}

/* digest_exec makes the digests that were taken of a file those of the current process, whose image it is now. */
static __always_inline void digest_exec(struct task_struct *t, __u64 file)
{
	struct digests *d = bpf_task_storage_get(&image_digests, t, 0, 0);

	if (!d)
		return;
	if (d->next_file != file) {
		d->next[DIGEST_CONTENT].len = 0;
		d->next[DIGEST_VERITY].len = 0;
	}
	__builtin_memcpy(d->now, d->next, sizeof(d->now));
	d->next_file = 0;
}

#endif
