//go:build ignore
/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Flows: who talks to whom, and how much. Of TCP the kernel counts itself: tp_btf/inet_sock_set_state sees the beginning and the end, and iter/bpf_sk_storage_map
 * tells what goes on; no packet is looked at for it. Datagrams are counted where they pass a socket: cgroup_skb. Attached only while somebody wants flows: their maps are made then, and end with them. What finds
 * no memory is counted, and told by nobody: no connection is ever held up or refused for it.
 */
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
	__u32 pad;
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

static __always_inline struct flow_sock *flow_of(struct sock *sk, bool create)
{
	struct flow_sock *f =
		bpf_sk_storage_get(&flow_socks, sk, 0, create ? BPF_SK_STORAGE_GET_F_CREATE : 0);

	if (!f && create)
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

static __always_inline void flow_add(struct traffic *t, __u64 bytes, __u64 packets)
{
	__sync_fetch_and_add(&t->bytes, bytes);
	__sync_fetch_and_add(&t->packets, packets);
}

/* flow_acts makes the current process the owner of a socket that it sends or receives by: the one that accepted, a child, or one that was given it. */
static __always_inline void flow_acts(struct sock *sk)
{
	__u64 stamp = flow_stamp(), actor;
	struct flow_sock *f = bpf_sk_storage_get(&flow_socks, sk, 0, 0);

	if (!f) { /* it waited to be accepted when the others were found */
		__u16 family = READ(sk, __sk_common.skc_family);

		if (READ(sk, sk_protocol) != IPPROTO_TCP ||
		    (family != AF_INET && family != AF_INET6))
			return;
		f = flow_of(sk, true);
		if (!f)
			return;
		flow_found_tcp(f, sk, 0);
	}
	if (f->state == TCP_LISTEN &&
	    READ(sk, __sk_common.skc_state) != TCP_LISTEN) { /* it began unseen */
		f->state = TCP_ESTABLISHED;
		flow_begin(f, sk, FLOW_INBOUND, 0);
	}
	if (f->actor == stamp)
		return;
	actor = flow_actor();
	if (!actor)
		return;
	f->actor = stamp;
	if (f->exec_id == actor)
		return;
	f->exec_id = actor;
	if (f->peers) {
		struct flow_owner *o = bpf_map_lookup_elem(&flow_owners, &f->id);

		if (o)
			o->exec_id = actor;
	}
}

/* flow_unix_name writes what a Unix socket is bound to as a path: of an abstract name the first byte is '@'. */
static __always_inline __u16 flow_unix_name(__u8 *to, __u64 sk)
{
	struct unix_address *a;
	void *name;
	__u32 len;
	long n;

	a = sk ? (void *)READ_PTR((struct unix_sock *)sk, addr) : NULL;
	if (!a)
		return 0;
	len = READ(a, len) - 2;
	name = (void *)a + bpf_core_field_offset(struct unix_address, name) + 2;
	if (!len || len > UNIX_NAME)
		return 0;
	n = bpf_probe_read_kernel_str(to, UNIX_NAME, name);
	if (n > 1)
		return n - 1;
	if (bpf_probe_read_kernel(to, len, name))
		return 0;
	to[0] = '@';
	return len;
}

static __noinline int flow_unix_new(__u64 sk, __u64 cookie)
{
	__u64 peer = READ_PTR((struct unix_sock *)sk, peer);
	struct flow_unix e;

	__builtin_memset(&e, 0, sizeof(e));
	e.id = flow_epoch + __sync_fetch_and_add(&flow_seq, 1);
	e.start = e.last = bpf_ktime_get_boot_ns();
	e.netns = flow_netns((struct sock *)sk);
	e.type = READ((struct sock *)sk, sk_type);
	e.seen = flow_sweeps;
	e.local_len = flow_unix_name(e.local, sk);
	e.remote_len = flow_unix_name(e.remote, peer);
	/* Who was connected to has a name; who connects has none, mostly. */
	if (e.remote_len)
		e.direction = FLOW_OUTBOUND;
	else if (e.local_len && peer)
		e.direction = FLOW_INBOUND;
	return bpf_map_update_elem(&flow_unixes, &cookie, &e, BPF_NOEXIST);
}

#define MSG_PEEK 2

/* flow_unix_acts counts what the current process sent or received by a Unix socket. */
static __always_inline void flow_unix_acts(struct sock *sk, __u64 n, bool out, bool counted)
{
	__u64 actor = flow_actor(), cookie, peer, zero = 0;
	struct flow_unix *e, *other;
	struct flow_sock *f;

	f = flow_of(sk, true); /* tells a sweep that it is there */
	if (!f)
		return;
	if (!f->id) {
		f->sk = (__u64)sk;
		f->id = bpf_get_socket_cookie(sk);
		f->flags = FLOW_UNIX;
	}
	cookie = f->id;
	e = bpf_map_lookup_elem(&flow_unixes, &cookie);
	if (!e) {
		flow_unix_new(f->sk, cookie);
		e = bpf_map_lookup_elem(&flow_unixes, &cookie);
	}
	if (!e) {
		flow_count(FLOW_STAT_NO_UNIX, 1);
		e = bpf_map_lookup_elem(&flow_unixes, &zero);
		if (e)
			flow_add(out ? &e->sent : &e->received, n, 0);
		return;
	}
	flow_add(out ? &e->sent : &e->received, n, counted ? 1 : 0);
	e->last = bpf_ktime_get_boot_ns();
	if (e->seen != flow_sweeps)
		e->seen = flow_sweeps;
	if (actor && e->exec_id != actor)
		e->exec_id = actor;
	if (e->remote_exec_id)
		return;
	peer = READ_PTR((struct unix_sock *)f->sk, peer);
	if (!peer)
		return;
	cookie = READ((struct sock *)peer, __sk_common.skc_cookie.counter);
	if (!cookie)
		return;
	other = bpf_map_lookup_elem(&flow_unixes, &cookie);
	if (!other)
		return;
	e->remote_exec_id = other->exec_id;
	if (!other->remote_exec_id)
		other->remote_exec_id = e->exec_id;
}

/* flow_moved: the current process sent or received n bytes. */
static __always_inline void flow_moved(struct sock *sk, int n, int flags, bool out)
{
	if (n <= 0)
		return;
	if (READ(sk, __sk_common.skc_family) != AF_UNIX)
		flow_acts(sk);
	else if (flow_unixes_too && (out || !(flags & MSG_PEEK)))
		flow_unix_acts(sk, n, out, READ(sk, sk_type) != SOCK_STREAM);
}

/* 6.3 (6e6eda44b939 "sock: add tracepoint for send recv length"). They see every way there is to send and to receive but splice(2) from a socket. */
SEC("tp_btf/sock_send_length")
int BPF_PROG(flow_send, struct sock *sk, int n, int flags)
{
	flow_moved(sk, n, flags, true);
	return 0;
}

SEC("tp_btf/sock_recv_length")
int BPF_PROG(flow_receive, struct sock *sk, int n, int flags)
{
	flow_moved(sk, n, flags, false);
	return 0;
}

/*
 * Where those tracepoints are not, trampolines are used: fentry on what asks for permission to send and to receive, which sees who acts, and fexit on
 * what Unix sockets do, which sees how much.
 */
static __always_inline void flow_tries(struct socket *sock)
{
	struct sock *sk = sock->sk;
	__u16 family;

	if (!sk)
		return;
	family = READ(sk, __sk_common.skc_family);
	/* A datagram socket is known from its first packet on, which comes after this. */
	if ((family == AF_INET || family == AF_INET6) && READ(sk, sk_type) != SOCK_STREAM &&
	    !flow_of(sk, true))
		return;
	if (family != AF_UNIX)
		flow_acts(sk);
}

SEC("fentry/security_socket_sendmsg")
int BPF_PROG(flow_sendmsg, struct socket *sock)
{
	flow_tries(sock);
	return 0;
}

SEC("fentry/security_socket_recvmsg")
int BPF_PROG(flow_recvmsg, struct socket *sock)
{
	flow_tries(sock);
	return 0;
}

SEC("fexit/unix_stream_sendmsg")
int BPF_PROG(flow_stream_sent, struct socket *sock, struct msghdr *msg, unsigned long len, int ret)
{
	if (sock->sk)
		flow_moved(sock->sk, ret, 0, true);
	return 0;
}

/* Those of SOCK_SEQPACKET call these. */
SEC("fexit/unix_dgram_sendmsg")
int BPF_PROG(flow_dgram_sent, struct socket *sock, struct msghdr *msg, unsigned long len, int ret)
{
	if (sock->sk)
		flow_moved(sock->sk, ret, 0, true);
	return 0;
}

SEC("fexit/unix_stream_recvmsg")
int BPF_PROG(flow_stream_received, struct socket *sock, struct msghdr *msg, unsigned long len,
	     int flags, int ret)
{
	if (sock->sk)
		flow_moved(sock->sk, ret, flags, false);
	return 0;
}

/* What unix_dgram_recvmsg calls, and what is compiled into that of SOCK_SEQPACKET. Since 5.15. */
SEC("fexit/__unix_dgram_recvmsg")
int BPF_PROG(flow_dgram_received, struct sock *sk, struct msghdr *msg, unsigned long len, int flags,
	     int ret)
{
	flow_moved(sk, ret, flags, false);
	return 0;
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

/* A packet as the accounting wants it. */
struct flow_packet {
	struct flow_ends ends;
	__u32 bytes; /* of UDP the payload, of others all behind the IP header */
	__u32 packets;
	__u32 payload; /* where it begins */
};

#define ETH_P_IP	 0x0800
#define IP_HEADER	 20
#define IP6_HEADER	 40
#define IPPROTO_HOPOPTS	 0
#define IPPROTO_ROUTING	 43
#define IPPROTO_FRAGMENT 44
#define IPPROTO_DSTOPTS	 60
#define IPPROTO_SCTP	 132
#define IPPROTO_UDPLITE	 136

/* flow_parse reads the headers of a packet. It begins with the IP header. */
static __always_inline bool flow_parse(struct __sk_buff *skb, struct flow_packet *p, bool out,
				       __u32 type)
{
	__u8 *from = out ? p->ends.local : p->ends.remote;
	__u8 *to = out ? p->ends.remote : p->ends.local;
	__u16 ports[4] = {};
	__u32 at, off = 0;
	__u8 h[IP6_HEADER];

	if (skb->protocol == __builtin_bswap16(ETH_P_IP)) {
		if (bpf_skb_load_bytes(skb, 0, h, IP_HEADER))
			return false;
		at = (h[0] & 15) * 4;
		off = (h[6] & 0x1f) << 8 | h[7]; /* a later fragment, which a raw socket sent */
		p->ends.family = AF_INET;
		p->ends.protocol = h[9];
		flow_v4(from, *(__u32 *)&h[12]);
		flow_v4(to, *(__u32 *)&h[16]);
	} else {
		__u8 next;

		if (bpf_skb_load_bytes(skb, 0, h, IP6_HEADER))
			return false;
		at = IP6_HEADER;
		next = h[6];
		p->ends.family = AF_INET6;
		__builtin_memcpy(from, &h[8], 16);
		__builtin_memcpy(to, &h[24], 16);
		for (int i = 0; i < 6; i++) {
			__u8 ext[2];

			if (next != IPPROTO_HOPOPTS && next != IPPROTO_ROUTING &&
			    next != IPPROTO_DSTOPTS && next != IPPROTO_FRAGMENT)
				break;
			if (bpf_skb_load_bytes(skb, at, ext, 2))
				return false;
			at += next == IPPROTO_FRAGMENT ? 8 : (ext[1] + 1) * 8;
			next = ext[0];
		}
		p->ends.protocol = next;
	}
	p->packets = skb->gso_segs ?: 1;
	p->bytes = skb->len > at ? skb->len - at : 0;
	p->payload = at;
	if (off || bpf_skb_load_bytes(skb, at, ports, 8))
		return true;
	switch (p->ends.protocol) {
	case IPPROTO_UDP:
	case IPPROTO_UDPLITE:
		if (type == SOCK_DGRAM) {
			p->bytes -= 8;
			p->payload += 8;
		}
		/* fall through */
	case IPPROTO_TCP:
	case IPPROTO_SCTP:
		p->ends.local_port = __builtin_bswap16(out ? ports[0] : ports[1]);
		p->ends.remote_port = __builtin_bswap16(out ? ports[1] : ports[0]);
		break;
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6: {
		__u8 kind = ports[0] & 0xff;
		bool echo = p->ends.protocol == IPPROTO_ICMP ? kind == 8 || kind == 0
							     : kind == 128 || kind == 129;

		p->ends.local_port = p->ends.remote_port = echo ? __builtin_bswap16(ports[2])
								: kind;
		p->ends.icmp = 1;
		p->ends.icmp_type = kind;
		p->ends.icmp_code = ports[0] >> 8;
	}
	}
	return true;
}

static __always_inline bool flow_same(const struct flow_ends *a, const struct flow_ends *b)
{
	const __u64 *x = (const void *)a->remote, *y = (const void *)b->remote;

	return x[0] == y[0] && x[1] == y[1] && a->remote_port == b->remote_port &&
	       a->protocol == b->protocol;
}

/* flow_dgram makes what is kept of a datagram socket. Its address goes through memory, where it becomes a number, so that fields can be read. */
static __always_inline struct sock *flow_dgram(struct flow_sock *f, void *sk)
{
	if (!f->id) {
		*(volatile __u64 *)&f->sk = (__u64)sk;
		f->flags |= FLOW_DGRAM;
		__sync_val_compare_and_swap(&f->id, 0,
					    flow_epoch + __sync_fetch_and_add(&flow_seq, 1));
	}
	return (void *)*(volatile __u64 *)&f->sk;
}

/* flow_claim makes a peer the main one of its socket, if there is none. */
static __always_inline bool flow_claim(struct flow_sock *f, const struct flow_ends *e, bool out,
				       __u8 flags)
{
	if (f->claimed || __sync_fetch_and_add(&f->claimed, 1))
		return false;
	f->main = *e;
	f->start = bpf_ktime_get_boot_ns();
	f->direction = out ? FLOW_OUTBOUND : FLOW_INBOUND;
	f->flags |= FLOW_KNOWN | flags;
	/* Only now does anybody look at it. */
	__sync_fetch_and_add(&f->peers, 0);
	*(volatile __u8 *)&f->claim = CLAIM_READY;
	return true;
}

static __always_inline bool flow_has_file(struct sock *sk)
{
	struct socket *socket = (void *)READ_PTR(sk, sk_socket);

	return socket && READ_PTR(socket, file);
}

static __noinline int flow_peer_new(struct flow_sock *f, struct flow_peer_key *key,
				    struct flow_ends *e, __u32 type, __u32 direction)
{
	struct flow_peer p;

	__builtin_memset(&p, 0, sizeof(p));
	p.id = flow_epoch + __sync_fetch_and_add(&flow_seq, 1);
	p.start = bpf_ktime_get_boot_ns();
	__builtin_memcpy(p.local, e->local, 16);
	p.local_port = e->local_port;
	p.family = e->family;
	p.type = type;
	p.direction = direction;
	p.icmp = e->icmp;
	p.icmp_type = e->icmp_type;
	p.icmp_code = e->icmp_code;
	if (!__sync_fetch_and_add(&f->peers, 1)) {
		struct flow_owner o = { .exec_id = f->exec_id };

		bpf_map_update_elem(&flow_owners, &f->id, &o, BPF_NOEXIST);
	}
	return bpf_map_update_elem(&flow_peers, key, &p, BPF_NOEXIST);
}

/* flow_peer finds a peer, or makes it. */
static __always_inline struct flow_peer *flow_peer(struct flow_sock *f, struct flow_ends *e,
						   bool out, __u32 type)
{
	struct flow_peer_key key = {};
	struct flow_peer *p;

	key.socket = f->id;
	key.netns = flow_netns((struct sock *)f->sk);
	key.port = e->remote_port;
	key.protocol = e->protocol;
	__builtin_memcpy(key.remote, e->remote, 16);
	p = bpf_map_lookup_elem(&flow_peers, &key);
	if (p && p->dead) {
		key.again = 1;
		p = bpf_map_lookup_elem(&flow_peers, &key);
	}
	if (p)
		return p;
	flow_peer_new(f, &key, e, type, out ? FLOW_OUTBOUND : FLOW_INBOUND);
	p = bpf_map_lookup_elem(&flow_peers, &key); /* also when it was made at the same time */
	if (!p)
		flow_count(FLOW_STAT_NO_PEER, 1);
	return p;
}

struct flow_copy {
	__u64 id;
	__u64 exec_id;
	__u64 sk;
	struct flow_ends ends;
	__u32 at; /* where in the packet */
	__u32 len;
	__u32 seq;
	__u8 what;
	__u8 flags;
};

/* flow_copy_to copies into a place of a fixed size in the ring, a power of two, for the verifier to know it. n is no more than that, and not 0. */
#define flow_copy_to(size)                                                                    \
	({                                                                                    \
		struct rec_flow_data *__r =                                                   \
			bpf_ringbuf_reserve(&flow_ring, sizeof(*__r) + (size), 0);            \
		__u64 __less = n - 1;                                                         \
		bool __ok = false;                                                            \
		if (__r) {                                                                    \
			flow_copy_head(__r, c, n);                                            \
			BOUND(__less, (size) - 1);                                            \
			if (!bpf_skb_load_bytes(skb, c->at, (void *)(__r + 1), __less + 1)) { \
				bpf_ringbuf_submit(__r, flow_wake ? BPF_RB_FORCE_WAKEUP       \
								  : BPF_RB_NO_WAKEUP);        \
				__ok = true;                                                  \
			} else {                                                              \
				bpf_ringbuf_discard(__r, BPF_RB_NO_WAKEUP);                   \
			}                                                                     \
		}                                                                             \
		__ok;                                                                         \
	})

static __always_inline void flow_copy_head(struct rec_flow_data *r, struct flow_copy *c, __u32 n)
{
	r->len = sizeof(*r) + n;
	r->kind = REC_FLOWDATA;
	r->what = c->what;
	r->protocol = c->ends.protocol;
	r->flags = c->flags | (n < c->len ? FLOW_DATA_CUT : 0);
	r->time = bpf_ktime_get_boot_ns();
	r->id = c->id;
	r->exec_id = c->exec_id;
	r->netns = flow_netns((struct sock *)c->sk);
	r->seq = c->seq;
	r->remote_port = c->ends.remote_port;
	r->local_port = c->ends.local_port;
	r->data_len = n;
	__builtin_memcpy(r->remote, c->ends.remote, 16);
	__builtin_memcpy(r->local, c->ends.local, 16);
}

/* flow_copy tells what a packet has. */
static __noinline int flow_copy(struct __sk_buff *skb, struct flow_copy *c)
{
	__u64 n = c->len;
	bool ok = false;

	if (!n)
		return 0;
	if (n > FLOW_COPY)
		n = FLOW_COPY;
	flow_count(FLOW_STAT_DATA_MADE, 1);
	if (bpf_ringbuf_query(&flow_ring, BPF_RB_AVAIL_DATA) < flow_ring_data) {
		if (n <= 512)
			ok = flow_copy_to(512);
		else if (n <= 2048)
			ok = flow_copy_to(2048);
		else
			ok = flow_copy_to(FLOW_COPY);
	}
	if (!ok)
		flow_count(FLOW_STAT_DATA_LOST, 1);
	return ok;
}

#define PORT_DNS  53
#define PORT_MDNS 5353

#define QUIC_BYTES 1200 /* of a datagram with a ClientHello at least: RFC 9000, 14.1 */
#define QUIC_LOOK  8 /* how many datagrams of a flow are looked at */
#define QUIC_V1	   0x00000001
#define QUIC_V2	   0x6b3343cf
#define QUIC_DRAFT 0xff000000

/* flow_quic tells whether a datagram is the first of QUIC: an Initial, of a version that is known. */
static __always_inline bool flow_quic(struct __sk_buff *skb, __u32 at)
{
	__u8 h[5];
	__u32 version;

	if (bpf_skb_load_bytes(skb, at, h, sizeof(h)))
		return false;
	version = (__u32)h[1] << 24 | (__u32)h[2] << 16 | (__u32)h[3] << 8 | h[4];
	if (version == QUIC_V2)
		return (h[0] & 0xf0) == 0xd0;
	return (h[0] & 0xf0) == 0xc0 &&
	       (version == QUIC_V1 || (version & 0xffffff00) == QUIC_DRAFT);
}

/* flow_look copies what a datagram has of DNS or QUIC. n is how many the flow has had that way, direction who began it. */
static __always_inline void flow_look(struct __sk_buff *skb, struct flow_sock *f,
				      struct flow_packet *p, __u64 id, __u64 n, __u8 direction,
				      __u8 *copies, bool out)
{
	struct flow_copy c;

	if (p->ends.protocol != IPPROTO_UDP || !p->bytes)
		return;
	__builtin_memset(&c, 0, sizeof(c));
	if (!out && (p->ends.remote_port == PORT_DNS || p->ends.remote_port == PORT_MDNS)) {
		c.what = FLOW_DATA_DNS;
	} else if (p->bytes >= QUIC_BYTES && n <= QUIC_LOOK && *copies < flow_quic_datagrams &&
		   out == (direction == FLOW_OUTBOUND) && flow_quic(skb, p->payload)) {
		c.what = FLOW_DATA_QUIC;
		c.seq = *copies;
		(*copies)++;
	} else {
		return;
	}
	c.id = id;
	c.exec_id = f->exec_id;
	c.sk = f->sk;
	c.ends = p->ends;
	c.at = p->payload;
	c.len = p->bytes;
	c.flags = out ? FLOW_DATA_OUT : 0;
	flow_copy(skb, &c);
}

static __noinline int flow_datagram(struct __sk_buff *skb, struct bpf_sock *bsk, bool out)
{
	struct flow_packet pkt = {};
	struct flow_sock *f;
	struct flow_peer *p;

	f = bpf_sk_storage_get(&flow_socks, bsk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!f) {
		flow_count(FLOW_STAT_NO_STORAGE, 1);
		return 0;
	}
	if (!flow_parse(skb, &pkt, out, bsk->type) || f->flags & FLOW_RELEASED) {
		flow_count(FLOW_STAT_LATE, 1);
		return 0;
	}
	flow_dgram(f, bsk);
	/*
	 * The first that it sends to, or is connected to; who writes to a server has a place of its own, and an end. So has who the kernel talks to by a
	 * socket of its own, which has no file: there is no end to that.
	 */
	if (!f->claimed && !f->peers && (out || bsk->state == TCP_ESTABLISHED) &&
	    flow_has_file((struct sock *)f->sk))
		flow_claim(f, &pkt.ends, out, 0);
	if (f->claim == CLAIM_READY && flow_same(&f->main, &pkt.ends)) {
		flow_add(out ? &f->sent : &f->received, pkt.bytes, pkt.packets);
		if (flow_data)
			flow_look(skb, f, &pkt, f->id, out ? f->sent.packets : f->received.packets,
				  f->direction, &f->copies, out);
		return 0;
	}
	p = flow_peer(f, &pkt.ends, out, bsk->type);
	if (!p) {
		if (!f->others_id)
			__sync_val_compare_and_swap(
				&f->others_id, 0, flow_epoch + __sync_fetch_and_add(&flow_seq, 1));
		flow_add(out ? &f->others_sent : &f->others_received, pkt.bytes, pkt.packets);
		if (flow_data) {
			__u8 none = HELLO_DONE;

			flow_look(skb, f, &pkt, f->others_id, QUIC_LOOK + 1, 0, &none, out);
		}
		return 0;
	}
	flow_add(out ? &p->sent : &p->received, pkt.bytes, pkt.packets);
	p->last = bpf_ktime_get_boot_ns();
	if (p->exec_id != f->exec_id)
		p->exec_id = f->exec_id;
	if (flow_data)
		flow_look(skb, f, &pkt, p->id, out ? p->sent.packets : p->received.packets,
			  p->direction, &p->copies, out);
	return 0;
}

#define TCP_HEADER   20
#define TLS_RECORD   5 /* bytes before the handshake message */
#define TLS_SHORTEST 45 /* no ClientHello is shorter */

/* flow_tcp_ends reads the headers of a segment: where its payload begins, 0 if there is none. */
static __always_inline __u32 flow_tcp_ends(struct __sk_buff *skb, struct flow_ends *e, __u32 *seq,
					   bool out)
{
	__u8 *from = out ? e->local : e->remote;
	__u8 *to = out ? e->remote : e->local;
	__u8 h[IP6_HEADER];
	__u32 at;

	if (skb->protocol == __builtin_bswap16(ETH_P_IP)) {
		if (bpf_skb_load_bytes(skb, 0, h, IP_HEADER))
			return 0;
		at = (h[0] & 15) * 4;
		flow_v4(from, *(__u32 *)&h[12]);
		flow_v4(to, *(__u32 *)&h[16]);
	} else {
		if (bpf_skb_load_bytes(skb, 0, h, IP6_HEADER) || h[6] != IPPROTO_TCP)
			return 0;
		at = IP6_HEADER;
		__builtin_memcpy(from, &h[8], 16);
		__builtin_memcpy(to, &h[24], 16);
	}
	if (bpf_skb_load_bytes(skb, at, h, TCP_HEADER))
		return 0;
	e->protocol = IPPROTO_TCP;
	e->local_port = out ? h[0] << 8 | h[1] : h[2] << 8 | h[3];
	e->remote_port = out ? h[2] << 8 | h[3] : h[0] << 8 | h[1];
	*seq = __builtin_bswap32(*(__u32 *)&h[4]) +
	       (h[13] >> 1 & 1); /* data in a SYN comes after it */
	at += (h[12] >> 4) * 4;
	return skb->len > at ? at : 0;
}

/* flow_segment copies the ClientHello of a connection, and what a name server answers. */
static __noinline int flow_segment(struct __sk_buff *skb, bool out)
{
	struct bpf_sock *bsk = skb->sk;
	bool dns;
	struct flow_sock *f;
	struct flow_copy c;
	__u32 seq, off, len;
	__u8 h[9];

	if (!bsk)
		return 0;
	f = bpf_sk_storage_get(&flow_socks, bsk, 0, 0);
	if (!f || f->copies == HELLO_DONE || !(f->flags & FLOW_KNOWN))
		return 0;
	dns = bsk->dst_port == __builtin_bswap16(PORT_DNS);
	if (out != (dns ? false : f->direction == FLOW_OUTBOUND))
		return 0;
	__builtin_memset(&c, 0, sizeof(c));
	c.at = flow_tcp_ends(skb, &c.ends, &seq, out);
	if (!c.at)
		return 0;
	len = skb->len - c.at;
	if (!f->copied && !f->copies) {
		f->base = seq;
		if (!dns) {
			if (len < TLS_SHORTEST || bpf_skb_load_bytes(skb, c.at, h, sizeof(h)) ||
			    h[0] != 22 || h[1] != 3 || h[TLS_RECORD] != 1) {
				f->copies = HELLO_DONE;
				return 0;
			}
			/* How long it is, if it is one record; some more if it is not. */
			len = (__u32)h[6] << 16 | (__u32)h[7] << 8 | h[8];
			f->hello = len + 9 + (len + 4 > (__u32)(h[3] << 8 | h[4]) ? 64 : 0);
			len = skb->len - c.at;
		}
	}
	off = seq - f->base;
	c.id = f->id;
	c.exec_id = f->exec_id;
	c.sk = f->sk;
	c.flags = out ? FLOW_DATA_OUT : 0;
	if (dns) {
		c.what = FLOW_DATA_DNS;
		/* A segment that comes again is copied again: it says where it belongs. */
		for (int i = 0; i < 4 && len; i++) {
			if (off >= flow_dns_stream) {
				f->copies = HELLO_DONE;
				return 0;
			}
			c.seq = off;
			c.len = len > FLOW_COPY && i < 3 ? FLOW_COPY : len;
			f->copied = 1;
			flow_copy(skb, &c);
			c.at += c.len;
			off += c.len;
			len -= c.len;
		}
		return 0;
	}
	if (off + len <= f->copied) /* again */
		return 0;
	if (off >= flow_hello_bytes) {
		f->copies = HELLO_DONE;
		return 0;
	}
	c.what = FLOW_DATA_TLS;
	c.seq = off;
	c.len = len;
	if (off < f->hello && off + len > f->hello)
		c.len = f->hello - off;
	if (off + c.len >
	    flow_hello_bytes) { /* it is longer than what is copied, and the record says so */
		c.flags |= FLOW_DATA_CUT;
		c.len = flow_hello_bytes - off;
	}
	f->copied = off + len;
	f->copies++;
	if (f->copies >= flow_hello_pieces && f->copied < f->hello)
		c.flags |= FLOW_DATA_CUT;
	flow_copy(skb, &c);
	if (f->copies >= flow_hello_pieces || f->copied >= f->hello ||
	    f->copied >= flow_hello_bytes)
		f->copies = HELLO_DONE;
	return 0;
}

/*
 * flow_tcp_packet tells of most segments of TCP that they are of no interest, without a call. A socket with such a port is not a raw one, whose port is its
 * protocol: so what it sends and receives is what it is itself.
 */
static __always_inline bool flow_tcp_packet(struct __sk_buff *skb, struct bpf_sock *sk, bool *empty)
{
	__u8 *h = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;

	if (sk->src_port <= 255 || h + IP_HEADER + TCP_HEADER > end)
		return false;
	if (h[0] == 0x45) {
		if (h[9] != IPPROTO_TCP)
			return false;
		*empty = skb->len == IP_HEADER + (h[IP_HEADER + 12] >> 4) * 4;
		return true;
	}
	if (h[0] >> 4 != 6 || h[6] != IPPROTO_TCP || h + IP6_HEADER + TCP_HEADER > end)
		return false;
	*empty = skb->len == IP6_HEADER + (h[IP6_HEADER + 12] >> 4) * 4;
	return true;
}

/* flow_skb looks at a packet on its way from or to a socket, and always lets it pass. */
static __always_inline int flow_skb(struct __sk_buff *skb, bool out)
{
	struct bpf_sock *sk = skb->sk;
	bool empty = false;

	if (!sk)
		return 1;
	if (flow_tcp_packet(skb, sk, &empty)) {
		if (flow_data && !empty)
			flow_segment(skb, out);
		return 1;
	}
	sk = bpf_sk_fullsock(sk);
	if (!sk)
		return 1;
	if (sk->protocol != IPPROTO_TCP)
		flow_datagram(skb, sk, out);
	else if (flow_data)
		flow_segment(skb, out);
	return 1;
}

/* At the root of cgroup v2. The hook is one for all protocols. */
SEC("cgroup_skb/egress")
int flow_egress(struct __sk_buff *skb)
{
	return flow_skb(skb, true);
}

SEC("cgroup_skb/ingress")
int flow_ingress(struct __sk_buff *skb)
{
	return flow_skb(skb, false);
}

/* flow_main fills a record with the main peer of a datagram socket, or with all that found no room. */
static __always_inline void flow_main(struct rec_flow *r, struct flow_sock *f, struct sock *sk,
				      bool others)
{
	flow_head(r, f, sk);
	r->remote_port = f->main.remote_port;
	r->local_port = f->main.local_port;
	__builtin_memcpy(r->remote, f->main.remote, 16);
	__builtin_memcpy(r->local, f->main.local, 16);
	r->family = f->main.family;
	r->protocol = f->main.protocol;
	r->sent = f->sent;
	r->received = f->received;
	if (!others) {
		r->flags |= f->main.icmp ? FLOW_ICMP : 0;
		r->icmp_type = f->main.icmp_type;
		r->icmp_code = f->main.icmp_code;
		return;
	}
	r->id = f->others_id;
	r->report = f->others_report;
	r->sent = f->others_sent;
	r->received = f->others_received;
	r->flags |= FLOW_OTHERS;
	r->remote_port = 0;
	__builtin_memset(r->remote, 0, 16);
	if (f->claim != CLAIM_READY) { /* all that is known is the socket */
		r->start = r->time;
		r->local_port = READ(sk, __sk_common.skc_num);
		r->family = READ(sk, __sk_common.skc_family);
		r->protocol = READ(sk, sk_protocol);
	}
}

/* 5.9 (f5836749c9c0 "bpf: Add BPF_CGROUP_INET_SOCK_RELEASE hook"). The last file of a socket is closed: by a process, not by an interrupt. */
SEC("cgroup/sock_release")
int flow_release(struct bpf_sock *ctx)
{
	struct flow_sock *f;
	struct rec_flow r;
	struct sock *sk;

	if (ctx->protocol == IPPROTO_TCP)
		return 1;
	f = bpf_sk_storage_get(&flow_socks, ctx, 0, 0);
	if (!f || !(f->flags & FLOW_DGRAM))
		return 1;
	f->flags |= FLOW_RELEASED;
	sk = (void *)*(volatile __u64 *)&f->sk;
	if (f->claim == CLAIM_READY) {
		flow_main(&r, f, sk, false);
		r.state = FLOW_CLOSED;
		r.end = FLOW_DONE;
		flow_tell(&r);
	}
	if (f->others_id) {
		flow_main(&r, f, sk, true);
		r.state = FLOW_CLOSED;
		r.end = FLOW_DONE;
		flow_tell(&r);
	}
	if (f->peers) {
		struct flow_owner *o = bpf_map_lookup_elem(&flow_owners, &f->id);

		if (o)
			o->gone = bpf_ktime_get_boot_ns();
	}
	return 1;
}

/* Finds the sockets that were there before, and their owners: whoever has a file of one. Run twice, as a listener may come after what it has accepted. */
SEC("iter/task_file")
int flow_found(struct bpf_iter__task_file *ctx)
{
	struct task_struct *task = ctx->task;
	struct file *file = ctx->file;
	struct socket *socket;
	struct flow_listen l;
	struct flow_sock *f;
	struct sock *sk;
	__u16 family, protocol;
	__u64 owner;
	__u8 one = 1;

	if (!task || !file)
		return 0;
	socket = bpf_sock_from_file(file);
	if (!socket)
		return 0;
	sk = socket->sk;
	if (!sk)
		return 0;
	family = READ(sk, __sk_common.skc_family);
	if (family != AF_INET && family != AF_INET6)
		return 0;
	l.netns = flow_netns(sk);
	l.port = READ(sk, __sk_common.skc_num);
	owner = exec_id_of(task);
	protocol = READ(sk, sk_protocol);
	if (READ(sk, __sk_common.skc_state) == TCP_LISTEN)
		bpf_map_update_elem(&flow_listens, &l, &one, BPF_ANY);
	if (protocol == IPPROTO_MPTCP) /* its connections are TCP's, which have no files */
		return 0;
	f = flow_of(sk, true);
	if (!f)
		return 0;
	if (protocol == IPPROTO_TCP) {
		flow_found_tcp(f, sk, owner);
		if (f->flags & FLOW_FOUND)
			f->direction = bpf_map_lookup_elem(&flow_listens, &l) ? FLOW_INBOUND
									      : FLOW_OUTBOUND;
		return 0;
	}
	if (!f->exec_id)
		f->exec_id = owner;
	flow_dgram(f, sk);
	if (READ(sk, __sk_common.skc_state) == TCP_ESTABLISHED) {
		struct rec_flow r = {};
		struct flow_ends e = {};

		flow_put_ends(&r, sk);
		__builtin_memcpy(e.remote, r.remote, 16);
		__builtin_memcpy(e.local, r.local, 16);
		e.remote_port = r.remote_port;
		e.local_port = r.local_port;
		e.family = r.family;
		e.protocol = protocol;
		if (e.protocol == IPPROTO_ICMP || e.protocol == IPPROTO_ICMPV6)
			e.remote_port = e.local_port;
		if (e.remote_port)
			flow_claim(f, &e, true, FLOW_FOUND);
	}
	return 0;
}

/* Reports all flows that go on, by way of the iterator's file: of that nothing is lost. It calls again for a socket whose reports found no room in its buffer. */
SEC("iter/bpf_sk_storage_map")
int flow_sweep(struct bpf_iter__bpf_sk_storage_map *ctx)
{
	struct seq_file *seq = ctx->meta->seq;
	struct sock *sk = ctx->sk;
	struct flow_sock *f;
	struct rec_flow r;

	if (!sk)
		return 0;
	f = bpf_sk_storage_get(&flow_socks, sk, 0, 0);
	if (!f || f->flags & FLOW_RELEASED)
		return 0;
	if (f->flags & FLOW_UNIX) { /* flow_sweep_unix tells of it */
		struct flow_unix *e = bpf_map_lookup_elem(&flow_unixes, &f->id);

		if (e && !(READ(sk, __sk_common.skc_flags) >> SOCK_DEAD_BIT & 1))
			e->seen = flow_sweeps;
		return 0;
	}
	if (f->flags & FLOW_DGRAM) {
		if (f->others_id) {
			flow_main(&r, f, sk, true);
			if (bpf_seq_write(seq, &r, sizeof(r)))
				return 0;
		}
		if (f->claim == CLAIM_READY) {
			flow_main(&r, f, sk, false);
			if (bpf_seq_write(seq, &r, sizeof(r)))
				return 0;
			__sync_fetch_and_add(&f->report, 1);
		}
		if (f->others_id)
			__sync_fetch_and_add(&f->others_report, 1);
		return 0;
	}
	if (!(f->flags & FLOW_KNOWN))
		return 0;
	flow_head(&r, f, sk);
	flow_put_ends(&r, sk);
	flow_tcp_counters(&r, f, sk);
	r.state = READ(sk, __sk_common.skc_state) == TCP_SYN_SENT ? FLOW_CONNECTING : FLOW_OPEN;
	if (!bpf_seq_write(seq, &r, sizeof(r)))
		__sync_fetch_and_add(&f->report, 1);
	return 0;
}

#define FLOW_GRACE 1000000000ULL /* no program still adds to what it found before that */

/*
 * Reports the peers of unconnected sockets, each followed by its key, by which user space takes away those that have ended. A peer that was idle for long ends in two
 * steps, so that nothing is added when its end was told: from the first on packets find another place.
 */
SEC("iter/bpf_map_elem")
int flow_sweep_peers(struct bpf_iter__bpf_map_elem *ctx)
{
	struct flow_peer_key *k = ctx->key, key;
	struct flow_peer *p;
	struct flow_owner *o;
	__u64 gone, now;
	struct {
		struct rec_flow r;
		struct flow_peer_key key;
	} out;

	if (!k)
		return 0;
	bpf_probe_read_kernel(&key, sizeof(key), k);
	p = bpf_map_lookup_elem(&flow_peers, &key);
	if (!p)
		return 0;
	__builtin_memset(&out, 0, sizeof(out));
	now = bpf_ktime_get_boot_ns();
	o = bpf_map_lookup_elem(&flow_owners, &key.socket);
	gone = o ? o->gone : 0;
	out.r.len = sizeof(out.r);
	out.r.kind = REC_FLOW;
	out.r.time = now;
	if (gone && now - gone > FLOW_GRACE) {
		out.r.state = FLOW_CLOSED;
		out.r.time = gone;
	} else if (p->dead && p->dead != flow_sweeps && now - p->last > FLOW_GRACE) {
		out.r.state = FLOW_CLOSED;
		out.r.time = p->last;
	} else if (!p->dead && !gone && now - p->last > flow_idle && now > p->last) {
		p->dead = flow_sweeps;
	}
	if (out.r.state == FLOW_CLOSED)
		out.r.end = FLOW_DONE;
	out.r.direction = p->direction;
	out.r.id = p->id;
	out.r.start = p->start;
	out.r.exec_id = o ? o->exec_id : p->exec_id;
	out.r.sent = p->sent;
	out.r.received = p->received;
	out.r.report = p->report;
	out.r.netns = key.netns;
	out.r.family = p->family;
	out.r.type = p->type;
	out.r.protocol = key.protocol;
	out.r.flags = p->icmp ? FLOW_ICMP : 0;
	out.r.icmp_type = p->icmp_type;
	out.r.icmp_code = p->icmp_code;
	out.r.remote_port = key.port;
	out.r.local_port = p->local_port;
	__builtin_memcpy(out.r.remote, key.remote, 16);
	__builtin_memcpy(out.r.local, p->local, 16);
	out.key = key;
	if (!bpf_seq_write(ctx->meta->seq, &out, sizeof(out)))
		__sync_fetch_and_add(&p->report, 1);
	return 0;
}

/*
 * Reports Unix sockets, each followed by its key. One that flow_sweep, which runs before, has not found twice has ended when it last did something: once it
 * may have been left out, when others came and went meanwhile.
 */
SEC("iter/bpf_map_elem")
int flow_sweep_unix(struct bpf_iter__bpf_map_elem *ctx)
{
	struct seq_file *seq = ctx->meta->seq;
	__u64 *k = ctx->key, key;
	struct rec_flow r = {};
	__u64 remote, local;
	struct flow_unix *e;

	if (!k)
		return 0;
	key = *k;
	e = bpf_map_lookup_elem(&flow_unixes, &key);
	if (!e || (!key && !e->sent.bytes && !e->received.bytes))
		return 0;
	remote = e->remote_len;
	local = e->local_len;
	if (remote > UNIX_NAME || local > UNIX_NAME)
		return 0;
	r.len = sizeof(r) + remote + local;
	r.kind = REC_FLOW;
	r.time = bpf_ktime_get_boot_ns();
	if (!key) {
		r.flags = FLOW_OTHERS;
	} else if (flow_sweeps - e->seen >= 2) {
		r.state = FLOW_CLOSED;
		r.end = FLOW_DONE;
		r.time = e->last;
	}
	r.family = AF_UNIX;
	r.type = e->type;
	r.direction = e->direction;
	r.id = e->id;
	r.start = e->start;
	r.exec_id = e->exec_id;
	r.remote_exec_id = e->remote_exec_id;
	r.sent = e->sent;
	r.received = e->received;
	r.report = e->report;
	r.netns = e->netns;
	r.remote_path_len = remote;
	r.local_path_len = local;
	if (bpf_seq_write(seq, &r, sizeof(r)) || bpf_seq_write(seq, e->remote, remote) ||
	    bpf_seq_write(seq, e->local, local) || bpf_seq_write(seq, &key, sizeof(key)))
		return 0;
	__sync_fetch_and_add(&e->report, 1);
	return 0;
}
