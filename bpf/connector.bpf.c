//go:build ignore
/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Connectors: which program on this host made a TCP connection that is accepted. tp_btf/inet_sock_set_state knows who connects, but not from which port; a sock_ops program at the
 * root of cgroup v2 knows the port before the SYN leaves. Attached only while a rule on net.accept asks for net.remote.process. A connection is known by its four numbers, from
 * before its SYN until both of its ends are closed: who made it may have ended when it is accepted. What cannot be known is judged strictly.
 */

struct connect_key {
	__u8 client[16]; /* IPv4 as ::ffff:a.b.c.d */
	__u8 server[16];
	__u32 netns; /* 0: the other end may be in another one */
	__u16 client_port;
	__u16 server_port;
};

/*
 * 16,384 connections, some 400 bytes each, which is taken only for what is there. What finds no room is counted in connect_lost. An entry that is two connections' of different
 * processes, by addresses that two network namespaces both have, is nobody's that is known, as long as it is there.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 16384);
	__type(key, struct connect_key);
	__type(value, struct listen_owner);
} connects SEC(".maps");

/* Who connects, until the port is known. */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct listen_owner);
} connectings SEC(".maps");

struct connect_sock {
	__u64 epoch; /* connect_epoch when it was taken into account */
	struct connect_key key;
	__u32 placed; /* it holds an entry of connects, or else it is one of connect_lost */
	__u32 pad;
	__u64 sk; /* where it is */
};

/* Sockets of either end that hold an entry. */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct connect_sock);
} connect_socks SEC(".maps");

__u64 connect_epoch; /* another number each time that these programs are attached; set by user space, which empties connects then */
__u32 connect_lost; /* sockets that connect and do not stand in connects */

/* connect_own tells that both ends are of one network namespace by their addresses alone. */
static __always_inline bool connect_own(struct connect_key *k)
{
	__u64 hi = *(__u64 *)k->server, lo = *(__u64 *)&k->server[8];

	if (hi == *(__u64 *)k->client && lo == *(__u64 *)&k->client[8])
		return true;
	if (hi)
		return false;
	return lo == 1ULL << 56 || ((__u32)lo == 0xffff0000 && k->server[12] == 127);
}

/* connect_hold makes an entry last until one socket more is closed. */
static __always_inline bool connect_hold(struct listen_owner *o)
{
	for (int i = 0; i < 4; i++) {
		__u32 n = o->socks;

		if (!n) /* it is being taken away */
			return false;
		if (__sync_val_compare_and_swap(&o->socks, n, n + 1) == n)
			return true;
	}
	return false;
}

static __always_inline bool connect_place(struct connect_key *k, struct listen_owner *o)
{
	struct listen_owner *was = bpf_map_lookup_elem(&connects, k);

	if (!was) {
		if (!bpf_map_update_elem(&connects, k, o, BPF_NOEXIST))
			return true;
		was = bpf_map_lookup_elem(&connects, k);
	}
	if (!was || !connect_hold(was))
		return false;
	if (was->exec_id != o->exec_id || was->netns != o->netns)
		was->exe_len = MAX_STRING + 1;
	return true;
}

/* connect_leave forgets a socket. */
static __always_inline void connect_leave(struct connect_sock *l)
{
	struct listen_owner *o;

	if (l->epoch != connect_epoch)
		return;
	if (!l->placed) {
		__sync_fetch_and_add(&connect_lost, -1);
		return;
	}
	o = bpf_map_lookup_elem(&connects, &l->key);
	if (o && __sync_fetch_and_add(&o->socks, -1) == 1)
		bpf_map_delete_elem(&connects, &l->key);
}

/* connect_by keeps who connects: the current process. One without an identity, which is seldom, is not known: to give it one takes more than all the rest here. */
static __always_inline void connect_by(struct sock *sk)
{
	struct listen_owner *o;
	struct scratch *s;
	int si;

	if (bpf_sk_storage_get(&connectings, sk, 0, 0)) /* the other program has seen it */
		return;
	si = scratch_get();
	if (si < 0) {
		count_err(ERR_SCRATCH);
		return;
	}
	s = scratch_at(si);
	if (!s)
		return;
	owner_of(s, si, bpf_get_current_task_btf(), false);
	o = (void *)&s->bytes[OFF_TMP];
	o->netns = READ((struct net *)net_of(sk), ns.inum);
	bpf_sk_storage_get(&connectings, sk, &s->bytes[OFF_TMP], BPF_SK_STORAGE_GET_F_CREATE);
	scratch_put(s);
}

/* connect_ends fills the addresses and ports of a socket's connection. */
static __always_inline void connect_ends(__u8 *remote, __u8 *local, __u16 *remote_port,
					 __u16 *local_port, struct sock *sk)
{
	if (READ(sk, __sk_common.skc_family) == AF_INET) {
		put_v4(remote, READ(sk, __sk_common.skc_daddr));
		put_v4(local, READ(sk, __sk_common.skc_rcv_saddr));
	} else {
		BPF_CORE_READ_INTO((struct in6_addr *)remote, sk, __sk_common.skc_v6_daddr);
		BPF_CORE_READ_INTO((struct in6_addr *)local, sk, __sk_common.skc_v6_rcv_saddr);
	}
	*remote_port = __builtin_bswap16(READ(sk, __sk_common.skc_dport));
	*local_port = READ(sk, __sk_common.skc_num);
}

/* connect_reached has the server's end of a connection hold the entry that the client's made. */
static __always_inline void connect_reached(struct sock *sk)
{
	struct connect_key k = {};
	struct connect_sock *l;
	struct listen_owner *o;

	if (bpf_sk_storage_get(&connect_socks, sk, 0,
			       0)) /* it is there, or both ends have connected */
		return;
	connect_ends(k.client, k.server, &k.client_port, &k.server_port, sk);
	if (connect_own(&k))
		k.netns = READ((struct net *)net_of(sk), ns.inum);
	o = bpf_map_lookup_elem(&connects, &k);
	if (!o)
		return;
	l = bpf_sk_storage_get(&connect_socks, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!l)
		return;
	if (!connect_hold(o)) {
		bpf_sk_storage_delete(&connect_socks, sk);
		return;
	}
	l->key = k;
	l->placed = 1;
	l->epoch = connect_epoch;
}

static __always_inline void connect_closed(struct sock *sk)
{
	struct connect_sock *l = bpf_sk_storage_get(&connect_socks, sk, 0, 0);

	bpf_sk_storage_delete(&connectings, sk);
	if (!l)
		return;
	connect_leave(l);
	bpf_sk_storage_delete(&connect_socks, sk);
}

/* SYN_SENT is a call of a process; the other changes are anybody's whom an interrupt found. */
static __always_inline int connect_state(struct sock *sk, int was, int state)
{
	__u16 family = READ(sk, __sk_common.skc_family);

	if (was == state || (family != AF_INET && family != AF_INET6) ||
	    READ(sk, sk_protocol) != IPPROTO_TCP)
		return 0;
	if (state == TCP_SYN_SENT)
		connect_by(sk);
	else if (state == TCP_ESTABLISHED && was == TCP_SYN_RECV)
		connect_reached(sk);
	else if (state == TCP_CLOSE && was != TCP_LISTEN)
		connect_closed(sk);
	return 0;
}

SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(on_connecting, struct sock *sk, int was, int state)
{
	return connect_state(sk, was, state);
}

/* Once more, for a change of state that interrupts the one above on its CPU: the kernel skips a program that runs there. */
SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(on_connecting_again, struct sock *sk, int was, int state)
{
	return connect_state(sk, was, state);
}

/* Only the beginning of a connection is ours. What other programs reply is left as it is. */
SEC("sockops")
int connect_begun(struct bpf_sock_ops *ctx)
{
	struct connect_key k = {};
	struct connect_sock *l;
	struct listen_owner *o;
	struct bpf_sock *sk;

	if (ctx->op != BPF_SOCK_OPS_TCP_CONNECT_CB)
		return 1;
	sk = ctx->sk;
	if (!sk)
		return 1;
	l = bpf_sk_storage_get(&connect_socks, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!l) {
		count_err(ERR_LISTEN);
		__sync_fetch_and_add(&connect_lost, 1);
		return 1;
	}
	connect_leave(l); /* of a socket whose end was missed */
	/* By way of memory it becomes a number, of which fields can be read. */
	*(volatile __u64 *)&l->sk = (__u64)sk;
	connect_ends(k.server, k.client, &k.server_port, &k.client_port,
		     (struct sock *)*(volatile __u64 *)&l->sk);
	o = bpf_sk_storage_get(&connectings, sk, 0, 0);
	if (o && connect_own(&k))
		k.netns = o->netns;
	l->key = k;
	l->placed = o && connect_place(&l->key, o);
	l->epoch = connect_epoch;
	if (!l->placed) {
		count_err(ERR_LISTEN);
		__sync_fetch_and_add(&connect_lost, 1);
	}
	bpf_sk_storage_delete(&connectings, sk);
	return 1;
}

/*
 * find_connector makes who made the connection at OFF_TMP, a connect_key without a network namespace, the target. An address of this network namespace is only believed to be that of a
 * socket in it, and another's only that of one elsewhere. What no socket of this host holds comes from another one, but where the address is this namespace's own or something was lost.
 */
__noinline int find_connector(__u32 si, __u64 net)
{
	struct scratch *s = scratch_at(si);
	struct listen_owner *o;
	struct connect_key *k;
	__u32 own, from = 0;
	int is = LOCAL_IS;
	bool known;

	if (!s)
		return 0;
	k = (void *)&s->bytes[OFF_TMP];
	own = READ((struct net *)net, ns.inum);
	k->netns = connect_own(k) ? own : 0;
	o = bpf_map_lookup_elem(&connects, k);
	if (o) {
		from = o->netns;
		s->obj.target_exec_id = o->exec_id;
		s->obj.target_pid = o->pid;
		s->obj.target_len = o->exe_len;
		bpf_probe_read_kernel(&s->bytes[OFF_TARGET], EXE_BYTES, o->exe);
	}
	if (!k->netns) /* the client's address stands where a listen_key has its own */
		is = is_local(si, net);
	if (from)
		known = is == LOCAL_MAYBE || (is == LOCAL_IS) == (from == own);
	else
		known = is == LOCAL_NOT && !connect_lost;
	if (!known) {
		no_target(s);
		s->obj.target_len = MAX_STRING + 1;
	}
	return 0;
}

_Static_assert(!__builtin_offsetof(struct connect_key, client) &&
		       !__builtin_offsetof(struct listen_key, addr),
	       "is_local finds the address of either");

/* set_connector is find_connector for the ends of the record. */
static __always_inline void set_connector(struct scratch *s, __u32 si, struct rec_net *r, __u64 net)
{
	struct connect_key *k = (void *)&s->bytes[OFF_TMP];

	__builtin_memcpy(k->client, r->remote, 16);
	__builtin_memcpy(k->server, r->local, 16);
	k->client_port = r->remote_port;
	k->server_port = r->local_port;
	find_connector(si, net);
}
