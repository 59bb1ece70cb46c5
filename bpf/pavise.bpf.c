//go:build ignore
/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#include "kernel.h"
#include <bpf/bpf_helpers.h>
#include "event.h"

/* Kept for their BTF: bpf2go makes Go types of them. */
struct rec_hdr *unused_rec_hdr __attribute__((unused));
struct rec_file *unused_rec_file __attribute__((unused));
struct rec_net *unused_rec_net __attribute__((unused));
struct rec_proc *unused_rec_proc __attribute__((unused));
struct rec_exit *unused_rec_exit __attribute__((unused));
enum rec_kind *unused_rec_kind __attribute__((unused));

SEC("syscall")
int nothing(void *ctx)
{
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
