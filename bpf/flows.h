/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Flows: who talks to whom, and how much. Of TCP the kernel counts itself: flow.bpf.c sees the beginning and the end, and flow_sweep.bpf.c tells what goes on; no packet is looked at for
 * it. Who acts on a socket, and what Unix sockets carry, is seen by flow_acts.bpf.c; datagrams are counted where they pass a socket, flow_packet.bpf.c. Attached only while somebody wants
 * flows: their maps are made then, and end with them. What finds no memory is counted, and told by nobody: no connection is ever held up or refused for it.
 */
#ifndef PAVISE_FLOWS_H
#define PAVISE_FLOWS_H

#include "flow.h"

const volatile __u64
	flow_epoch SEC(".rodata.flow") = 0; /* the first id, which no run before this had */
const volatile bool
	flow_opens SEC(".rodata.flow") = false; /* tell also that a connection is made */
const volatile bool flow_wake SEC(".rodata.flow") = false; /* wake the reader for each record */

__u64 flow_seq SEC(".data.flow") = 0;

const volatile __u64 flow_idle SEC(".rodata.flow") =
	60000000000; /* ns after which a peer of an unconnected socket is one no more */

/* flow_sock.flags */
#define FLOW_RELEASED (1 << 5) /* the last file of the socket is closed, what it had is told */
#define FLOW_UNIX     (1 << 4)
#define FLOW_DGRAM    (1 << 6)
#define FLOW_KNOWN    (1 << 7) /* it has an id, and its end was not told */

/* The ends of a flow, and by what they are known to each other. */
struct flow_ends {
	__u8 remote[16];
	__u8 local[16];
	__u16 remote_port;
	__u16 local_port;
	__u16 family;
	__u8 protocol;
	__u8 icmp; /* whether the next two are known */
	__u8 icmp_type; /* of the first message */
	__u8 icmp_code;
	__u8 pad[2];
};

/* What a socket's flow is that the kernel does not keep itself. */
struct flow_sock {
	__u64 id; /* of a connection; by that of a datagram socket its peers are known */
	__u64 start;
	__u64 exec_id; /* of who acted on it last */
	__u64 actor; /* flow_stamp of that one */
	__u64 latency;
	struct traffic sent; /* of TCP the packets only: what the kernel has 32 bits for */
	struct traffic received;
	__u32 report; /* the number of the next */
	__u8 direction;
	__u8 flags;
	__u8 claim; /* whether a datagram socket has a main peer: CLAIM_* */
	__u8 state; /* of TCP, the last that was seen */
	__u8 copies; /* of the ClientHello, of TCP or of the main peer's QUIC; HELLO_DONE when there is nothing more to copy */
	__u32 base; /* TCP's sequence number of the first byte */
	__u32 copied; /* how far from there was copied */
	__u32 hello; /* how long the ClientHello is, with its record's head */
	__u32 swept; /* the last sweep that told of it */
	__u64 sk; /* where it is */
	/* Of datagram sockets. */
	__u32 claimed; /* who adds the first makes the claim */
	__u32 peers; /* that it has in flow_peers, or had */
	struct flow_ends main; /* the one peer that most have */
	__u32 others_report;
	__u64 others_id;
	struct traffic others_sent;
	struct traffic others_received;
};

#define CLAIM_READY 1

/* What is copied of flows, and how much of it. Bytes of a record are FLOW_COPY at most. */
#define FLOW_COPY 4096
const volatile bool flow_data SEC(".rodata.flow") = true;
const volatile __u32 flow_hello_bytes SEC(".rodata.flow") =
	4096; /* of a ClientHello over TCP: post-quantum key shares make it 2 KiB */
const volatile __u32 flow_hello_pieces SEC(".rodata.flow") = 3;
const volatile __u32
	flow_quic_datagrams SEC(".rodata.flow") = 4; /* of each flow, from who began it */
const volatile __u32 flow_dns_stream SEC(".rodata.flow") =
	65536; /* of each connection to a name server: a transfer of a zone is of no use */
const volatile __u32 flow_ring_data SEC(".rodata.flow") =
	3 << 20; /* data is lost when so much of the ring is waiting, so that flows are not */

#define HELLO_DONE 255

const volatile bool flow_unixes_too SEC(".rodata.flow") = true;

struct flow_peer_key {
	__u64 socket; /* flow_sock.id */
	__u8 remote[16];
	__u16 port;
	__u8 protocol;
	__u8 again; /* the one before has ended, and is still to be told */
	__u32 netns; /* the kernel's own sockets, as for its answers of ICMP, serve several */
};

struct flow_peer {
	__u64 id;
	__u64 start;
	__u64 last; /* when something was sent or received */
	__u64 exec_id;
	struct traffic sent;
	struct traffic received;
	__u8 local[16];
	__u32 report;
	__u32 dead; /* the sweep that found it idle: nothing is added any more */
	__u16 local_port;
	__u16 family;
	__u8 type;
	__u8 direction;
	__u8 copies;
	__u8 icmp; /* as flow_ends */
	__u8 icmp_type;
	__u8 icmp_code;
	__u8 pad[2];
};

/*
 * The peers of unconnected sockets, but for the first that a socket sends to. It takes memory for what is there: some 200 bytes each. When it is full, or the
 * kernel has no memory, what goes to and from a peer that is not in it is added up with the socket: detail is lost, bytes never.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 32768);
	__type(key, struct flow_peer_key);
	__type(value, struct flow_peer);
} flow_peers SEC(".maps");

/* Of a socket that has peers there, what a sweep over them does not find. */
struct flow_owner {
	__u64 exec_id;
	__u64 gone; /* when the socket was closed: the next sweep tells of these peers */
};

/* By flow_sock.id. When it is full, peers keep the owner that the socket had at their last packet, and end as idle ones do. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 16384);
	__type(key, __u64);
	__type(value, struct flow_owner);
} flow_owners SEC(".maps");

#define UNIX_NAME 108

struct flow_unix {
	__u64 id;
	__u64 start;
	__u64 last;
	__u64 exec_id;
	__u64 remote_exec_id;
	struct traffic sent;
	struct traffic received;
	__u32 report;
	__u32 netns;
	__u32 seen; /* the last sweep for which the socket was there */
	__u8 type;
	__u8 direction;
	__u8 flags;
	__u8 pad;
	__u16 remote_len;
	__u16 local_len;
	__u8 remote[UNIX_NAME];
	__u8 local[UNIX_NAME];
};

/*
 * Unix sockets, by cookie: no program is there when one ends, so what was counted must outlive it. It takes memory for what is there, some 400 bytes each. When it is
 * full, what others carry is added up under 0, which user space puts there.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 8192);
	__type(key, __u64);
	__type(value, struct flow_unix);
} flow_unixes SEC(".maps");

__u32 flow_sweeps SEC(".data.flow") = 1;

/* One entry per socket, from when it is first seen until it is freed; a connection that is accepted begins with its listener's. The kernel limits it by memory only. */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC | BPF_F_CLONE);
	__type(key, int);
	__type(value, struct flow_sock);
} flow_socks SEC(".maps");

/* A ring of their own: flows can never push out a verdict. 4 MiB are some 26,000 ends of flows between two looks of the reader; what does not fit is counted. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4 << 20);
} flow_ring SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, NUM_FLOW_STATS);
	__type(key, __u32);
	__type(value, __u64);
} flow_stats SEC(".maps");

static __always_inline void flow_count(__u32 what, __u64 n)
{
	__u64 *v = bpf_map_lookup_elem(&flow_stats, &what);

	if (v)
		__sync_fetch_and_add(v, n);
}

/* flow_actor is the current process; only where it acts on a socket. */
static __always_inline __u64 flow_actor(void)
{
	return exec_id_of(bpf_get_current_task_btf());
}

/* flow_stamp tells one image of a process from others as well as its exec_id does, and is had by three loads. */
static __always_inline __u64 flow_stamp(void)
{
	struct task_struct *t = bpf_get_current_task_btf();

	return t->group_leader->start_boottime + (t->self_exec_id << 48);
}

/* flow_of is what is kept of a socket. Of two CPUs that make it at the same time the kernel tells one that it cannot, which then finds it. */
static __always_inline struct flow_sock *flow_of(struct sock *sk, bool create)
{
	struct flow_sock *f =
		bpf_sk_storage_get(&flow_socks, sk, 0, create ? BPF_SK_STORAGE_GET_F_CREATE : 0);

	if (f || !create)
		return f;
	f = bpf_sk_storage_get(&flow_socks, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!f)
		flow_count(FLOW_STAT_NO_STORAGE, 1);
	return f;
}

/* flow_begin makes a new flow of what a socket had before. Its owner stays. */
static __always_inline void flow_begin(struct flow_sock *f, struct sock *sk, __u8 direction,
				       __u8 flags)
{
	f->sk = (__u64)sk;
	f->id = flow_epoch + __sync_fetch_and_add(&flow_seq, 1);
	f->start = bpf_ktime_get_boot_ns();
	f->latency = 0;
	f->sent.bytes = f->sent.packets = 0;
	f->received.bytes = f->received.packets = 0;
	f->report = 0;
	f->direction = direction;
	f->flags = FLOW_KNOWN | flags;
	f->copies = flags & FLOW_FOUND ? HELLO_DONE : 0; /* its beginning has gone by */
	f->base = f->copied = 0;
}

static __always_inline __u32 flow_netns(struct sock *sk)
{
	return READ((struct net *)READ_PTR(sk, __sk_common.skc_net.net), ns.inum);
}

/* flow_head fills a record with what all have. */
static __always_inline void flow_head(struct rec_flow *r, struct flow_sock *f, struct sock *sk)
{
	__builtin_memset(r, 0, sizeof(*r));
	r->len = sizeof(*r);
	r->kind = REC_FLOW;
	r->direction = f->direction;
	r->time = bpf_ktime_get_boot_ns();
	r->id = f->id;
	r->start = f->start;
	r->exec_id = f->exec_id;
	r->latency = f->latency;
	r->report = f->report;
	r->netns = flow_netns(sk);
	r->flags = f->flags & FLOW_FOUND;
	r->type = READ(sk, sk_type);
	r->protocol = READ(sk, sk_protocol);
}

static __always_inline void flow_store16(__u8 *to, const void *from)
{
	*(__u64 *)to = read_word(from);
	*(__u64 *)(to + 8) = read_word(from + 8);
}

static __always_inline void flow_v4(__u8 *to, __u32 be)
{
	*(__u32 *)(to + 8) = 0xffff0000;
	*(__u32 *)(to + 12) = be;
}

/* flow_ends fills a record with the ends of a socket that has two. skc_num is gone when TCP's end is told, inet_sport is not. */
static __always_inline void flow_put_ends(struct rec_flow *r, struct sock *sk)
{
	struct inet_sock *inet = (void *)sk;

	r->family = READ(sk, __sk_common.skc_family);
	r->remote_port = __builtin_bswap16(READ(sk, __sk_common.skc_dport));
	r->local_port = __builtin_bswap16(READ(inet, inet_sport));
	if (r->family == AF_INET6) {
		flow_store16(r->remote,
			     (void *)sk + bpf_core_field_offset(sk->__sk_common.skc_v6_daddr));
		flow_store16(r->local,
			     (void *)sk + bpf_core_field_offset(sk->__sk_common.skc_v6_rcv_saddr));
		if (!*(__u64 *)r->remote && *(__u32 *)&r->remote[8] == 0xffff0000)
			r->family = AF_INET;
	}
	if (r->family == AF_INET) {
		flow_v4(r->remote, READ(sk, __sk_common.skc_daddr));
		flow_v4(r->local, READ(sk, __sk_common.skc_rcv_saddr));
	}
}

/* flow_more extends a counter of 32 bits to 64. */
static __always_inline void flow_more(__u64 *n, __u32 now)
{
	*n += (__u32)(now - (__u32)*n);
}

#define SOCK_DEAD_BIT 0 /* enum sock_flags: it has no file any more */
#define SOCK_DONE_BIT 1 /* enum sock_flags: the other end's FIN has come */

static __always_inline void flow_tcp_counters(struct rec_flow *r, struct flow_sock *f,
					      struct sock *sk)
{
	struct tcp_sock *tp = (void *)sk;
	__u64 received = READ(tp, bytes_received);

	/* A FIN counts as a byte there; what is sent again does in bytes_sent. */
	if (received && READ(sk, __sk_common.skc_flags) >> SOCK_DONE_BIT & 1)
		received--;
	flow_more(&f->sent.packets, READ(tp, segs_out));
	flow_more(&f->received.packets, READ(tp, segs_in));
	r->sent.packets = f->sent.packets;
	r->received.packets = f->received.packets;
	r->sent.bytes = READ(tp, bytes_sent) - READ(tp, bytes_retrans);
	r->received.bytes = received;
	r->retransmits = READ(tp, total_retrans);
	r->rtt = READ(tp, srtt_us) >> 3;
}

/* flow_tell puts a record into the ring. */
static __always_inline void flow_tell(struct rec_flow *r)
{
	flow_count(FLOW_STAT_MADE, 1);
	if (!r->exec_id && r->state == FLOW_CLOSED)
		flow_count(FLOW_STAT_UNOWNED, 1);
	if (!bpf_ringbuf_output(&flow_ring, r, sizeof(*r),
				flow_wake ? BPF_RB_FORCE_WAKEUP : BPF_RB_NO_WAKEUP))
		return;
	flow_count(FLOW_STAT_LOST, 1);
	if (r->state == FLOW_CLOSED)
		flow_count(FLOW_STAT_LOST_BYTES, r->sent.bytes + r->received.bytes);
}

static __always_inline void flow_add(struct traffic *t, __u64 bytes, __u64 packets)
{
	__sync_fetch_and_add(&t->bytes, bytes);
	__sync_fetch_and_add(&t->packets, packets);
}

#endif
