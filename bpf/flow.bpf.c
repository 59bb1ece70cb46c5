//go:build ignore
/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Connections of TCP, at their beginning and their end: tp_btf/inet_sock_set_state. */
#include "flows.h"

#define ECONNABORTED 103
#define ECONNRESET   104
#define ETIMEDOUT    110
#define ECONNREFUSED 111
#define EPIPE	     32

#define RCV_SHUTDOWN 1

/* flow_tcp_end says how a connection ended, of the state that it was in, and by whom it was reset. */
static __always_inline __u8 flow_tcp_end(struct sock *sk, int was, __u8 *by)
{
	int err = READ(sk, sk_err);

	switch (err) {
	case 0:
		break;
	case ECONNREFUSED:
		return FLOW_REFUSED;
	case ECONNABORTED: /* sock_diag, bpf_sock_destroy */
		*by = FLOW_LOCAL;
		return FLOW_RESET;
	case ECONNRESET:
		/* Where nobody reads any more, it may also be this end that answered to data with a reset. */
		if ((was != TCP_FIN_WAIT1 && was != TCP_FIN_WAIT2) ||
		    !(READ(sk, sk_shutdown) & RCV_SHUTDOWN))
			*by = FLOW_REMOTE;
		return FLOW_RESET;
	case EPIPE: /* a reset, after the other end's FIN */
		*by = FLOW_REMOTE;
		return FLOW_RESET;
	case ETIMEDOUT:
		return FLOW_TIMED_OUT;
	default: /* what ICMP said, or a route */
		return FLOW_UNREACHABLE;
	}
	/* Whoever closes in order is in another state first: this end had data unread, or asked for a reset (SO_LINGER). */
	if (was == TCP_ESTABLISHED || was == TCP_CLOSE_WAIT) {
		*by = FLOW_LOCAL;
		return FLOW_RESET;
	}
	/* connect(2) itself failed: there was no port left, or no way. */
	if (was == TCP_SYN_SENT && !READ((struct tcp_sock *)sk, segs_out))
		return FLOW_UNREACHABLE;
	return FLOW_DONE;
}

/*
 * Current is whoever made the system call in SYN_SENT and LISTEN only; else it may be anybody whom an interrupt found. A connection that comes in has a
 * socket when its handshake is done: until then it costs nothing here.
 */
static __always_inline int flow_state(struct sock *sk, int was, int state)
{
	struct flow_sock *f;
	struct rec_flow r;
	__u8 before;

	if (state != TCP_ESTABLISHED && state != TCP_SYN_SENT && state != TCP_SYN_RECV &&
	    state != TCP_CLOSE && state != TCP_LISTEN)
		return 0;
	if (was == state || READ(sk, sk_protocol) != IPPROTO_TCP)
		return 0;
	f = flow_of(sk, was != TCP_LISTEN || state != TCP_CLOSE);
	if (!f || f->state == state)
		return 0;
	before = f->state;
	f->state = state;
	switch (state) {
	case TCP_LISTEN:
		f->exec_id = flow_actor();
		f->actor = flow_stamp();
		f->flags = 0;
		return 0;
	case TCP_SYN_SENT:
		f->exec_id = flow_actor();
		f->actor = flow_stamp();
		flow_begin(f, sk, FLOW_OUTBOUND, 0);
		return 0;
	case TCP_SYN_RECV:
		if (was == TCP_LISTEN)
			flow_begin(f, sk, FLOW_INBOUND, 0);
		return 0;
	case TCP_ESTABLISHED:
		if (!(f->flags & FLOW_KNOWN))
			flow_begin(f, sk, was == TCP_SYN_SENT ? FLOW_OUTBOUND : FLOW_INBOUND,
				   before == TCP_LISTEN ? 0 : FLOW_FOUND);
		else if (f->direction == FLOW_OUTBOUND)
			f->latency = bpf_ktime_get_boot_ns() - f->start;
		if (!flow_opens)
			return 0;
		break;
	default:
		if (was == TCP_LISTEN || !READ(sk, __sk_common.skc_dport))
			return 0; /* nobody was at the other end */
		/* It began before this was attached, and nothing found it; or unseen, and all there is of it is its listener's. */
		if (!(f->flags & FLOW_KNOWN))
			flow_begin(f, sk, before == TCP_LISTEN ? FLOW_INBOUND : FLOW_UNKNOWN,
				   before == TCP_LISTEN ? 0 : FLOW_FOUND);
	}
	flow_head(&r, f, sk);
	flow_put_ends(&r, sk);
	flow_tcp_counters(&r, f, sk);
	f->report++;
	if (state == TCP_CLOSE) {
		r.state = FLOW_CLOSED;
		r.end = flow_tcp_end(sk, was, &r.reset_by);
		f->flags = 0;
	}
	flow_tell(&r);
	return 0;
}

SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(flow_tcp, struct sock *sk, int was, int state)
{
	return flow_state(sk, was, state);
}

/*
 * The kernel skips a program that it has interrupted on the same CPU, and packets of one connection may interrupt the system call of another
 * (TestKernelFlowInterrupted). What had no end when the socket goes is told here, by another program: how it ended is no more known than by its error.
 */
SEC("tp_btf/tcp_destroy_sock")
int BPF_PROG(flow_tcp_gone, struct sock *sk)
{
	struct flow_sock *f = flow_of(sk, false);

	if (!f || f->state == TCP_CLOSE || READ(sk, __sk_common.skc_state) != TCP_CLOSE)
		return 0;
	return flow_state(sk, TCP_LAST_ACK, TCP_CLOSE);
}

/* Ports that are listened on when sockets are looked for at the start: who is connected to one of them did not begin. Freed after that; when full, it is said that they did. */
struct flow_listen {
	__u32 netns;
	__u32 port;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 16384);
	__type(key, struct flow_listen);
	__type(value, __u8);
} flow_listens SEC(".maps");

/* flow_found begins the flow of a connection that was there before. */
static __always_inline void flow_found_tcp(struct flow_sock *f, struct sock *sk, __u64 owner)
{
	__u8 state = READ(sk, __sk_common.skc_state);

	if (!f->exec_id)
		f->exec_id = owner;
	if (state != TCP_CLOSE && state != TCP_LISTEN && !(f->flags & FLOW_KNOWN))
		flow_begin(f, sk, FLOW_UNKNOWN, FLOW_FOUND);
}

#define ENETDOWN     100
#define ENETUNREACH  101
#define EHOSTUNREACH 113
#define FLOW_MOMENT  10000000 /* ns */

/* flow_no_way tells of a connect for which there was no route: TCP has no state for that. It needs a trampoline. */
static __always_inline void flow_no_way(struct sock *sk, void *addr, int err)
{
	struct sockaddr_in_any a = {};
	struct flow_sock *f;
	struct rec_flow r;

	if (err != -ENETUNREACH && err != -EHOSTUNREACH && err != -ENETDOWN)
		return;
	f = flow_of(sk, true);
	/* Told already: it was on its way. */
	if (!f || f->flags & FLOW_KNOWN ||
	    (f->report && bpf_ktime_get_boot_ns() - f->start < FLOW_MOMENT))
		return;
	f->exec_id = flow_actor();
	flow_begin(f, sk, FLOW_OUTBOUND, 0);
	flow_head(&r, f, sk);
	flow_put_ends(&r, sk);
	if (READ(sk, __sk_common.skc_family) == AF_INET6) {
		bpf_probe_read_kernel(&a, sizeof(a), addr);
		__builtin_memcpy(r.remote, a.v6, 16);
		r.family = AF_INET6;
	} else {
		bpf_probe_read_kernel(&a, 8, addr);
		__builtin_memset(r.remote, 0, 16);
		flow_v4(r.remote, a.v4);
	}
	r.remote_port = __builtin_bswap16(a.port);
	r.state = FLOW_CLOSED;
	r.end = FLOW_UNREACHABLE;
	f->report++;
	f->flags = 0;
	flow_tell(&r);
}

SEC("fexit/tcp_v4_connect")
int BPF_PROG(flow_connect4, struct sock *sk, struct sockaddr *addr, int len, int ret)
{
	/* An IPv6 socket comes here as well with a mapped address; flow_connect6 tells of it. */
	if (READ(sk, __sk_common.skc_family) == AF_INET)
		flow_no_way(sk, addr, ret);
	return 0;
}

SEC("fexit/tcp_v6_connect")
int BPF_PROG(flow_connect6, struct sock *sk, struct sockaddr *addr, int len, int ret)
{
	flow_no_way(sk, addr, ret);
	return 0;
}
