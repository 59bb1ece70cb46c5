//go:build ignore
/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Who sends and receives, by which the owner of a socket is known, and what Unix sockets carry. */

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
