//go:build ignore
/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The one object of Pavise. Each hook family has a file; the loader loads only the programs that are needed.
 */
#include "kernel.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_tracing.h>
#include "event.h"
#include "compat.h"
#include "engine.h"
#include "path.h"
#include "proc.h"
#include "texts.h"
#include "judge.h"
#include "derive.h"
#include "rate.h"

#include "file.bpf.c"
#include "exec.bpf.c"
#include "digest.bpf.c"
#include "listen.bpf.c"
#include "connector.bpf.c"
#include "net.bpf.c"
#include "syn.bpf.c"
#include "namei.bpf.c"
#include "mount.bpf.c"
#include "task.bpf.c"
#include "kern.bpf.c"
#include "return.bpf.c"
#include "domain.bpf.c"
#include "flow.bpf.c"
#include "flow_acts.bpf.c"
#include "flow_packet.bpf.c"
#include "flow_sweep.bpf.c"
#include "test.bpf.c"

/* Kept for their BTF: bpf2go makes Go types of them. */
struct rec_hdr *unused_rec_hdr __attribute__((unused));
struct rec_file *unused_rec_file __attribute__((unused));
struct rec_net *unused_rec_net __attribute__((unused));
struct rec_proc *unused_rec_proc __attribute__((unused));
struct rec_exit *unused_rec_exit __attribute__((unused));
enum rec_kind *unused_rec_kind __attribute__((unused));
struct rec_flow *unused_rec_flow __attribute__((unused));
struct rec_flow_data *unused_rec_flow_data __attribute__((unused));
enum flow_data_kind *unused_flow_data_kind __attribute__((unused));
struct flow_peer_key *unused_flow_peer_key __attribute__((unused));
enum flow_state *unused_flow_state __attribute__((unused));
enum flow_end *unused_flow_end __attribute__((unused));
enum flow_direction *unused_flow_direction __attribute__((unused));
struct set_string *unused_set_string __attribute__((unused));
struct set_prefix *unused_set_prefix __attribute__((unused));
struct domain_server *unused_domain_server __attribute__((unused));
struct listen_key *unused_listen_key __attribute__((unused));
struct connect_key *unused_connect_key __attribute__((unused));
struct rate_key *unused_rate_key __attribute__((unused));

char LICENSE[] SEC("license") = "Dual BSD/GPL";
