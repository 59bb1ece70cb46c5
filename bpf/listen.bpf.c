//go:build ignore
/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Listeners: which program is at the other end of a TCP connection to this host. tp_btf/inet_sock_set_state, where a socket begins and ends to listen, attached only
 * while a rule asks for net.remote.process; what listens already is found by an iterator over files. A connect looks up its destination in the socket's network
 * namespace: the address itself, or any address if the destination is one of that namespace's. Where it cannot be known who listens, that is judged strictly.
 */

struct listen_key {
	__u8 addr[16]; /* IPv4 as ::ffff:a.b.c.d */
	__u32 netns;
	__u16 port;
	__u16 nth; /* of the programs that share it, by SO_REUSEPORT or by devices: two are told apart */
};

struct listen_owner {
	__u64 exec_id;
	__u32 pid;
	__u32 socks; /* how many listen */
	__u32 exe_len; /* over MAX_STRING: not known */
	__u32 netns; /* of one that connects (connector.bpf.c) */
	__u8 exe[EXE_BYTES]; /* as it was then: it outlives the process */
};

/* 8,192 addresses and ports, some 400 bytes each, which is taken only for what is there. What finds no room is counted in listen_lost. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 8192);
	__type(key, struct listen_key);
	__type(value, struct listen_owner);
} listens SEC(".maps");

struct listen_sock {
	__u64 epoch; /* listen_epoch when it was taken into account; 0: it is not */
	struct listen_key key;
	__u32 placed; /* it stands in listens under key, or else it is one of listen_lost */
	__u32 pad;
};

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct listen_sock);
} listen_socks SEC(".maps");

__u64 listen_epoch; /* another number each time that these programs are attached; set by user space, which empties listens then */
__u32 listen_lost; /* sockets that listen and do not stand in listens */

static __always_inline void put_v4(__u8 *dst, __u32 be)
{
	*(__u32 *)&dst[8] = 0xffff0000;
	*(__u32 *)&dst[12] = be;
}

/* listen_same tells whether the program at OFF_TMP is the one of an owner. */
static __always_inline bool listen_same(struct scratch *s, __u32 si, struct listen_owner *o)
{
	struct listen_owner *new = (void *)&s->bytes[OFF_TMP];

	if (o->exe_len != new->exe_len)
		return false;
	if (o->exe_len > MAX_STRING)
		return true;
	bpf_probe_read_kernel(&s->bytes[OFF_ALT], EXE_BYTES, o->exe);
	return equal(si, OFF_TMP + __builtin_offsetof(struct listen_owner, exe), OFF_ALT,
		     new->exe_len);
}

/*
 * listen_place puts the program at OFF_TMP into listens; false when there is no room. A socket of the same program that ends just now can take the entry with it: then
 * nobody is known to listen there.
 */
static __always_inline bool listen_place(struct scratch *s, __u32 si, struct listen_key *k)
{
	struct listen_owner *o;

	for (int i = 0; i < 2; i++) {
		k->nth = i;
		o = bpf_map_lookup_elem(&listens, k);
		if (o && listen_same(s, si, o)) {
			__sync_fetch_and_add(&o->socks, 1);
			return true;
		}
	}
	for (int i = 0; i < 2; i++) {
		k->nth = i;
		if (!bpf_map_update_elem(&listens, k, &s->bytes[OFF_TMP], BPF_NOEXIST))
			return true;
	}
	count_err(ERR_LISTEN);
	return false;
}

/* owner_of lays out who a thread of the process t is, at OFF_TMP: the owner of one socket. */
static __always_inline void owner_of(struct scratch *s, __u32 si, struct task_struct *t,
				     bool current)
{
	struct listen_owner *o = (void *)&s->bytes[OFF_TMP];
	struct proc *p = proc_of(t);

	if (!p && current && identify(si))
		p = bpf_task_storage_get(&procs, t, 0, 0);
	o->exec_id = 0;
	o->pid = t->tgid;
	o->socks = 1;
	o->exe_len = MAX_STRING + 1;
	o->netns = 0;
	if (p) {
		__u64 image = p->image;

		o->exec_id = p->exec_id;
		o->exe_len = texts_exe(si, image,
				       OFF_TMP + __builtin_offsetof(struct listen_owner, exe));
		FORGET();
		if (p->image != image) /* as in set_target */
			o->exe_len = MAX_STRING + 1;
	}
}

/* listen_of is listen_place for who listens: a thread of the process t. */
static __always_inline bool listen_of(struct listen_key *k, struct task_struct *t, bool current)
{
	struct scratch *s;
	bool placed;
	int si;

	if (!k->port) /* the kernel chooses one after this */
		return false;
	si = scratch_get();
	if (si < 0) {
		count_err(ERR_SCRATCH);
		return false;
	}
	s = scratch_at(si);
	if (!s)
		return false;
	owner_of(s, si, t, current);
	placed = listen_place(s, si, k);
	scratch_put(s);
	return placed;
}

static __always_inline __u64 net_of(struct sock *sk)
{
	return READ_PTR(sk, __sk_common.skc_net.net);
}

/* listen_begin takes a socket that listens into account, once. */
static __always_inline void listen_begin(struct sock *sk, struct task_struct *t, bool current)
{
	struct listen_sock *l =
		bpf_sk_storage_get(&listen_socks, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	__u64 epoch = listen_epoch, was;

	if (!l) {
		count_err(ERR_LISTEN);
		__sync_fetch_and_add(&listen_lost, 1);
		return;
	}
	was = l->epoch;
	if (was == epoch || __sync_val_compare_and_swap(&l->epoch, was, epoch) != was)
		return;
	__builtin_memset(&l->key, 0, sizeof(l->key));
	if (READ(sk, __sk_common.skc_family) == AF_INET) {
		put_v4(l->key.addr, READ(sk, __sk_common.skc_rcv_saddr));
	} else {
		BPF_CORE_READ_INTO((struct in6_addr *)l->key.addr, sk,
				   __sk_common.skc_v6_rcv_saddr);
	}
	l->key.netns = READ((struct net *)net_of(sk), ns.inum);
	l->key.port = READ(sk, __sk_common.skc_num);
	l->placed = listen_of(&l->key, t, current);
	if (!l->placed)
		__sync_fetch_and_add(&listen_lost, 1);
}

static __always_inline void listen_end(struct sock *sk)
{
	struct listen_sock *l = bpf_sk_storage_get(&listen_socks, sk, 0, 0);
	__u64 epoch = listen_epoch;
	struct listen_owner *o;

	if (!l || __sync_val_compare_and_swap(&l->epoch, epoch, 0) != epoch)
		return;
	if (!l->placed) {
		__sync_fetch_and_add(&listen_lost, -1);
		return;
	}
	o = bpf_map_lookup_elem(&listens, &l->key);
	if (o && __sync_fetch_and_add(&o->socks, -1) == 1)
		bpf_map_delete_elem(&listens, &l->key);
}

static __always_inline bool listen_can(struct sock *sk)
{
	__u16 family = READ(sk, __sk_common.skc_family), protocol = READ(sk, sk_protocol);

	return (family == AF_INET || family == AF_INET6) &&
	       (protocol == IPPROTO_TCP || protocol == IPPROTO_MPTCP);
}

static __always_inline bool listens_now(struct sock *sk)
{
	return listen_can(sk) && READ(sk, __sk_common.skc_state) == TCP_LISTEN;
}

/* sock_of is the socket that an iterator over files has come to; NULL for another file. */
static __always_inline struct sock *sock_of(struct bpf_iter__task_file *ctx)
{
	struct file *file = ctx->file;
	struct socket *socket = file ? bpf_sock_from_file(file) : NULL;

	return socket ? socket->sk : NULL;
}

/* listen(2), and the end of it, are calls of a process; all other changes of state are none of ours. */
SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(on_listen, struct sock *sk, int was, int state)
{
	if ((was != TCP_LISTEN && state != TCP_LISTEN) || was == state || !listen_can(sk))
		return 0;
	if (state == TCP_LISTEN)
		listen_begin(sk, bpf_get_current_task_btf(), true);
	else
		listen_end(sk);
	return 0;
}

/* Finds what listens already, once on_listen is attached. Who began to is not known any more: whoever has a file of it, the one with the lowest pid. */
SEC("iter/task_file")
int found_listener(struct bpf_iter__task_file *ctx)
{
	struct task_struct *task = ctx->task;
	struct sock *sk = sock_of(ctx);

	if (!task || !sk || !listens_now(sk))
		return 0;
	listen_begin(sk, task, false);
	return 0;
}

#define LOCAL_SOME 8
#define LOCAL_MORE 16 /* its square times LOCAL_SOME: 2,048 devices and addresses of them */

enum {
	LOCAL_NOT,
	LOCAL_MAYBE, /* there are more */
	LOCAL_IS,
};

/* local4_some looks for the IPv4 address in s->prefix.lo in up to LOCAL_SOME of the devices behind s->dentry and of the addresses from s->mnt on. */
__noinline int local4_some(__u32 si)
{
	struct scratch *s = scratch_at(si);
	struct net_device *dev;
	struct in_device *in;

	if (!s)
		return 0;
	for (int i = 0; i < LOCAL_SOME; i++) {
		struct in_ifaddr *a = (void *)s->mnt;

		if (a) {
			if (READ(a, ifa_local) == (__u32)s->prefix.lo)
				return LOCAL_IS;
			s->mnt = READ_PTR(a, ifa_next);
			continue;
		}
		s->dentry = READ_PTR((struct list_head *)s->dentry, next);
		if (s->dentry == s->root)
			return LOCAL_NOT;
		dev = (void *)s->dentry - bpf_core_field_offset(struct net_device, dev_list);
		in = (void *)READ_PTR(dev, ip_ptr);
		s->mnt = in ? READ_PTR(in, ifa_list) : 0;
	}
	return LOCAL_MAYBE;
}

/* local6_some does the same for the IPv6 address in s->prefix. An address is followed by the next one, or by the head of the list, s->task. */
__noinline int local6_some(__u32 si)
{
	struct scratch *s = scratch_at(si);
	struct inet6_ifaddr *a;
	struct inet6_dev *in;
	struct net_device *dev;

	if (!s)
		return 0;
	for (int i = 0; i < LOCAL_SOME; i++) {
		if (s->mnt != s->task) {
			a = (void *)s->mnt - bpf_core_field_offset(struct inet6_ifaddr, if_list);
			if (read_word((void *)a + bpf_core_field_offset(struct inet6_ifaddr,
									addr)) == s->prefix.hi &&
			    read_word((void *)a + bpf_core_field_offset(struct inet6_ifaddr, addr) +
				      8) == s->prefix.lo)
				return LOCAL_IS;
			s->mnt = READ_PTR((struct list_head *)s->mnt, next);
			continue;
		}
		s->dentry = READ_PTR((struct list_head *)s->dentry, next);
		if (s->dentry == s->root)
			return LOCAL_NOT;
		dev = (void *)s->dentry - bpf_core_field_offset(struct net_device, dev_list);
		in = (void *)READ_PTR(dev, ip6_ptr);
		s->mnt = s->task = 0;
		if (!in)
			continue;
		s->task = (__u64)in + bpf_core_field_offset(struct inet6_dev, addr_list);
		s->mnt = READ_PTR((struct list_head *)s->task, next);
	}
	return LOCAL_MAYBE;
}

/* local_more is LOCAL_MORE times local4_some or local6_some, as long as they find nothing. */
__noinline int local_more(__u32 si, __u32 v4)
{
	int is = LOCAL_MAYBE;

	for (int i = 0; i < LOCAL_MORE && is == LOCAL_MAYBE; i++)
		is = v4 ? local4_some(si) : local6_some(si);
	return is;
}

/* is_local tells whether an address is one of a network namespace's own. Not those that are so only by a route of type local, or by a translation of addresses. */
__noinline int is_local(__u32 si, __u64 net)
{
	struct scratch *s = scratch_at(si);
	struct listen_key *k;
	int is = LOCAL_MAYBE;
	bool v4;

	if (!s)
		return 0;
	k = (void *)&s->bytes[OFF_TMP];
	s->prefix.hi = *(__u64 *)k->addr;
	s->prefix.lo = *(__u64 *)&k->addr[8];
	v4 = !s->prefix.hi && (__u32)s->prefix.lo == 0xffff0000;
	if (v4 && k->addr[12] == 127)
		return LOCAL_IS;
	if (!s->prefix.hi && s->prefix.lo == 1ULL << 56)
		return LOCAL_IS;
	if (v4)
		s->prefix.lo >>= 32;
	s->root = net + bpf_core_field_offset(struct net, dev_base_head);
	s->dentry = s->root;
	s->mnt = s->task = 0;
	for (int i = 0; i < LOCAL_MORE && is == LOCAL_MAYBE; i++)
		is = local_more(si, v4);
	return is;
}

/* listener_at makes who listens at the listen_key at OFF_TMP the target; 0 when nobody does. */
__noinline int listener_at(__u32 si)
{
	struct scratch *s = scratch_at(si);
	struct listen_owner *a, *b;
	struct listen_key *k;

	if (!s)
		return 0;
	k = (void *)&s->bytes[OFF_TMP];
	k->nth = 0;
	a = bpf_map_lookup_elem(&listens, k);
	k->nth = 1;
	b = bpf_map_lookup_elem(&listens, k);
	if (!a) {
		a = b;
		b = NULL;
	}
	if (!a)
		return 0;
	s->obj.target_exec_id = a->exec_id;
	s->obj.target_pid = a->pid;
	s->obj.target_len = a->exe_len;
	bpf_probe_read_kernel(&s->bytes[OFF_TARGET], EXE_BYTES, a->exe);
	if (b) {
		bpf_probe_read_kernel(&s->bytes[OFF_ALT], EXE_BYTES, b->exe);
		if (b->exe_len != s->obj.target_len ||
		    !equal(si, OFF_TARGET, OFF_ALT, s->obj.target_len))
			s->obj.target_len = MAX_STRING + 1; /* one of the two */
	}
	return 1;
}

/* any_listener is listener_at for a socket at any address: the port's, of IPv4 first for an address of IPv4. */
__noinline int any_listener(__u32 si)
{
	struct scratch *s = scratch_at(si);
	struct listen_key *k;

	if (!s)
		return 0;
	k = (void *)&s->bytes[OFF_TMP];
	if (!*(__u64 *)k->addr && *(__u32 *)&k->addr[8] == 0xffff0000) {
		*(__u32 *)&k->addr[12] = 0;
		if (listener_at(si))
			return 1;
	}
	__builtin_memset(k->addr, 0, sizeof(k->addr));
	return listener_at(si);
}

static __always_inline void no_target(struct scratch *s)
{
	s->obj.target_exec_id = 0;
	s->obj.target_pid = 0;
	s->obj.target_len = 0;
}

/* find_listener makes who listens at the remote end of the record the target, as far as it is in this network namespace. */
__noinline int find_listener(__u32 si, __u64 net)
{
	struct scratch *s = scratch_at(si);
	struct listen_key *k;
	struct rec_net *r;
	bool loop6, loop4;
	int found, is;

	if (!s)
		return 0;
	r = (void *)&s->bytes[OFF_REC];
	k = (void *)&s->bytes[OFF_TMP];
	__builtin_memcpy(k->addr, r->remote, 16);
	k->netns = READ((struct net *)net, ns.inum);
	k->port = r->remote_port;
	/* Of the unspecified address the kernel makes the local one, which the record does not say. */
	loop6 = !*(__u64 *)k->addr && *(__u64 *)&k->addr[8] == 1ULL << 56;
	if (loop6 && !*(__u64 *)r->local && *(__u32 *)&r->local[8] == 0xffff0000)
		put_v4(k->addr, __builtin_bswap32(0x7f000001));
	loop4 = !*(__u64 *)k->addr && *(__u64 *)&k->addr[8] == 0x0100007fffff0000ULL;
	if (listener_at(si))
		return 0;
	if (loop4 && *(__u32 *)&r->local[12]) {
		__builtin_memcpy(k->addr, r->local, 16);
		if (listener_at(si))
			return 0;
	}
	found = any_listener(si);
	if (!found && !listen_lost)
		return 0;
	__builtin_memcpy(k->addr, r->remote, 16);
	is = is_local(si, net);
	if (is == LOCAL_NOT) {
		no_target(s);
	} else if (!found || is == LOCAL_MAYBE) {
		no_target(s);
		s->obj.target_len = MAX_STRING + 1;
	}
	return 0;
}

/* asked is the facts that rules on op are about, of the sides that judge. */
static __always_inline __u64 asked(struct scratch *s, __u32 op)
{
	struct tables *t = tables_of(s);
	__u32 side = s->shadow - 1;
	__u64 need;

	if (!t)
		return 0;
	need = t->ops[op & (NUM_JUDGED - 1)].need;
	if (s->shadow) {
		t = bpf_map_lookup_elem(&sides, &side);
		if (t)
			need |= t->ops[op & (NUM_JUDGED - 1)].need;
	}
	return need;
}
