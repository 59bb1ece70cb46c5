//go:build ignore
/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * lsm/bprm_creds_from_file: the digests of an executable, each attached only while a rule asks for it. What cannot be had, say of a file system that IMA cannot
 * read twice, has no digest; rules see an empty string.
 */

/* Of enum hash_algo (include/uapi/linux/hash_info.h), and of fs-verity (FS_VERITY_HASH_ALG_*). */
#define HASH_SHA256   4
#define HASH_SHA384   5
#define HASH_SHA512   6
#define VERITY_SHA256 1
#define VERITY_SHA512 2

/* Since 6.11 with this type of its last argument (cce4c40b9606 "bpf: treewide: Align kfunc signatures to prog point-of-view"). */
extern int bpf_get_fsverity_digest(struct file *file, struct bpf_dynptr *digest) __ksym __weak;

/* digest_begin makes room for a digest of the file that the current thread is about to execute. */
static __always_inline struct digests *digest_begin(__u64 file, __u32 which)
{
	struct digests *d = bpf_task_storage_get(&image_digests, bpf_get_current_task_btf(), 0,
						 BPF_LOCAL_STORAGE_GET_F_CREATE);

	if (!d) {
		count_err(ERR_PROC);
		return NULL;
	}
	if (d->next_file != file) /* that of an exec that failed, or of one long ago */
		d->next[!which].len = 0;
	d->next_file = file;
	d->next[which].len = 0;
	return d;
}

/* The kernel computes the digest of the content, or has it from a measurement (280fe8367b0d "ima: Always return a file measurement in ima_file_hash()", 5.18). */
SEC("lsm.s/bprm_creds_from_file")
int BPF_PROG(lsm_digest, struct linux_binprm *bprm)
{
	struct digests *d = digest_begin((__u64)bprm->file, DIGEST_CONTENT);
	struct digest *to;
	long algo;

	if (!d)
		return 0;
	to = &d->next[DIGEST_CONTENT];
	algo = bpf_ima_file_hash(bprm->file, d->raw + 8, DIGEST_BYTES);
	if (algo == HASH_SHA256)
		digest_put(d, to, "sha256:", 32);
	else if (algo == HASH_SHA384)
		digest_put(d, to, "sha384:", 48);
	else if (algo == HASH_SHA512)
		digest_put(d, to, "sha512:", 64);
	return 0;
}

SEC("lsm.s/bprm_creds_from_file")
int BPF_PROG(lsm_verity, struct linux_binprm *bprm)
{
	struct digests *d = digest_begin((__u64)bprm->file, DIGEST_VERITY);
	struct bpf_dynptr out;
	struct digest *to;

	if (!d || !bpf_get_fsverity_digest)
		return 0;
	to = &d->next[DIGEST_VERITY];
	/* struct fsverity_digest: the algorithm and the size, two bytes each, and the digest. */
	if (bpf_dynptr_from_mem(d->raw + 4, 4 + DIGEST_BYTES, 0, &out) ||
	    bpf_get_fsverity_digest(bprm->file, &out) < 0)
		return 0;
	if (*(__u16 *)(d->raw + 4) == VERITY_SHA256)
		digest_put(d, to, "sha256:", 32);
	else if (*(__u16 *)(d->raw + 4) == VERITY_SHA512)
		digest_put(d, to, "sha512:", 64);
	return 0;
}
