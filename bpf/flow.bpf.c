//go:build ignore
/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Flows: who talks to whom, and how much. Of TCP the kernel counts itself: tp_btf/inet_sock_set_state sees the beginning and the end, and iter/bpf_sk_storage_map
 * tells what goes on; no packet is looked at for it. Attached only while somebody wants flows: their maps are made then, and end with them. What finds
 * no memory is counted, and told by nobody: no connection is ever held up or refused for it.
 */
#include "flow.h"

const volatile __u64
	flow_epoch SEC(".rodata.flow") = 0; /* the first id, which no run before this had */
const volatile bool
	flow_opens SEC(".rodata.flow") = false; /* tell also that a connection is made */
const volatile bool flow_wake SEC(".rodata.flow") = false; /* wake the reader for each record */

__u64 flow_seq SEC(".data.flow") = 0;

#define FLOW_KNOWN (1 << 7) /* flow_sock.flags: it has an id, and its end was not told */

/* What a socket's flow is that the kernel does not keep itself. */
struct flow_sock {
	__u64 id;
	__u64 start;
	__u64 exec_id; /* of who acted on it last */
	__u64 latency;
	struct traffic sent; /* of TCP the packets only: what the kernel has 32 bits for */
	struct traffic received;
	__u32 report; /* the number of the next */
	__u8 direction;
	__u8 flags;
	__u8 pad[2];
};

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
	struct proc *p = bpf_task_storage_get(&procs, bpf_get_current_task_btf(), 0, 0);

	return p ? p->exec_id : 0;
}

static __always_inline struct flow_sock *flow_of(struct sock *sk, bool create)
{
	struct flow_sock *f =
		bpf_sk_storage_get(&flow_socks, sk, 0, create ? BPF_SK_STORAGE_GET_F_CREATE : 0);

	if (!f && create)
		flow_count(FLOW_STAT_NO_STORAGE, 1);
	return f;
}

/* flow_begin makes a new flow of what a socket had before. Its owner stays. */
static __always_inline void flow_begin(struct flow_sock *f, __u8 direction, __u8 flags)
{
	f->id = flow_epoch + __sync_fetch_and_add(&flow_seq, 1);
	f->start = bpf_ktime_get_boot_ns();
	f->latency = 0;
	f->sent.bytes = f->sent.packets = 0;
	f->received.bytes = f->received.packets = 0;
	f->report = 0;
	f->direction = direction;
	f->flags = FLOW_KNOWN | flags;
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
static __always_inline void flow_ends(struct rec_flow *r, struct sock *sk)
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

enum tcp_state {
	TCP_ESTABLISHED = 1,
	TCP_SYN_SENT = 2,
	TCP_SYN_RECV = 3,
	TCP_CLOSE_WAIT = 8,
	TCP_CLOSE = 7,
	TCP_LISTEN = 10,
};

#define ECONNABORTED 103
#define ECONNRESET   104
#define ETIMEDOUT    110
#define ECONNREFUSED 111
#define EPIPE	     32

/* flow_tcp_end says how a connection ended, of the state that it was in. */
static __always_inline __u8 flow_tcp_end(struct sock *sk, int was)
{
	int err = READ(sk, sk_err);

	switch (err) {
	case 0:
		break;
	case ECONNREFUSED:
		return FLOW_REFUSED;
	case ECONNRESET:
	case ECONNABORTED:
	case EPIPE: /* a reset, after the other end's FIN */
		return FLOW_RESET;
	case ETIMEDOUT:
		return FLOW_TIMED_OUT;
	default: /* what ICMP said, or a route */
		return FLOW_UNREACHABLE;
	}
	/* Whoever closes in order is in another state first: this end had data unread, or asked for a reset (SO_LINGER). */
	if (was == TCP_ESTABLISHED || was == TCP_CLOSE_WAIT)
		return FLOW_RESET;
	/* connect(2) itself failed: there was no port left, or no way. */
	if (was == TCP_SYN_SENT && !READ((struct tcp_sock *)sk, segs_out))
		return FLOW_UNREACHABLE;
	return FLOW_DONE;
}

/*
 * Current is whoever made the system call in SYN_SENT and LISTEN only; else it may be anybody whom an interrupt found. A connection that comes in has a
 * socket when its handshake is done: until then it costs nothing here.
 */
SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(flow_tcp, struct sock *sk, int was, int state)
{
	struct flow_sock *f;
	struct rec_flow r;

	if (state != TCP_ESTABLISHED && state != TCP_SYN_SENT && state != TCP_SYN_RECV &&
	    state != TCP_CLOSE && state != TCP_LISTEN)
		return 0;
	if (was == state || (state == TCP_CLOSE && was == TCP_LISTEN))
		return 0;
	if (READ(sk, sk_protocol) != IPPROTO_TCP)
		return 0;
	f = flow_of(sk, true);
	if (!f)
		return 0;
	switch (state) {
	case TCP_LISTEN:
		f->exec_id = flow_actor();
		f->flags = 0;
		return 0;
	case TCP_SYN_SENT:
		f->exec_id = flow_actor();
		flow_begin(f, FLOW_OUTBOUND, 0);
		return 0;
	case TCP_SYN_RECV:
		if (was == TCP_LISTEN)
			flow_begin(f, FLOW_INBOUND, 0);
		return 0;
	case TCP_ESTABLISHED:
		if (!(f->flags & FLOW_KNOWN))
			flow_begin(f, was == TCP_SYN_SENT ? FLOW_OUTBOUND : FLOW_INBOUND,
				   FLOW_FOUND);
		else if (f->direction == FLOW_OUTBOUND)
			f->latency = bpf_ktime_get_boot_ns() - f->start;
		if (!flow_opens)
			return 0;
		break;
	default:
		if (!(f->flags &
		      FLOW_KNOWN)) /* it began before this was attached, and nothing found it */
			flow_begin(f, FLOW_UNKNOWN, FLOW_FOUND);
	}
	flow_head(&r, f, sk);
	flow_ends(&r, sk);
	flow_tcp_counters(&r, f, sk);
	f->report++;
	if (state == TCP_CLOSE) {
		r.state = FLOW_CLOSED;
		r.end = flow_tcp_end(sk, was);
		f->flags = 0;
	}
	flow_tell(&r);
	return 0;
}

/* flow_acts makes the current process the owner of a socket that it sends or receives by: the one that accepted, a child, or one that was given it. */
static __always_inline void flow_acts(struct sock *sk)
{
	struct flow_sock *f = bpf_sk_storage_get(&flow_socks, sk, 0, 0);
	__u64 actor;

	if (!f)
		return;
	actor = flow_actor();
	if (actor && f->exec_id != actor)
		f->exec_id = actor;
}

/* 6.3 (6e6eda44b939 "sock: add tracepoint for send recv length"). They see every way there is to send and to receive but splice(2) from a socket. */
SEC("tp_btf/sock_send_length")
int BPF_PROG(flow_send, struct sock *sk, int n, int flags)
{
	if (n > 0)
		flow_acts(sk);
	return 0;
}

SEC("tp_btf/sock_recv_length")
int BPF_PROG(flow_receive, struct sock *sk, int n, int flags)
{
	if (n > 0)
		flow_acts(sk);
	return 0;
}

/* Reports all flows that go on, by way of the iterator's file: of that nothing is lost. It calls again for a socket whose reports found no room in its buffer. */
SEC("iter/bpf_sk_storage_map")
int flow_sweep(struct bpf_iter__bpf_sk_storage_map *ctx)
{
	struct sock *sk = ctx->sk;
	struct flow_sock *f;
	struct rec_flow r;

	if (!sk)
		return 0;
	f = bpf_sk_storage_get(&flow_socks, sk, 0, 0);
	if (!f || !(f->flags & FLOW_KNOWN))
		return 0;
	flow_head(&r, f, sk);
	flow_ends(&r, sk);
	flow_tcp_counters(&r, f, sk);
	r.state = READ(sk, __sk_common.skc_state) == TCP_SYN_SENT ? FLOW_CONNECTING : FLOW_OPEN;
	if (!bpf_seq_write(ctx->meta->seq, &r, sizeof(r)))
		__sync_fetch_and_add(&f->report, 1);
	return 0;
}
