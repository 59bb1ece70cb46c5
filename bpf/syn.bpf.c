//go:build ignore
/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * SYNs: a TCP connection that nobody behind its listening socket may accept ends before the SYN is answered. lsm/inet_conn_request, and cgroup_skb at the root of cgroup v2 for
 * kernels without BPF LSM; tp_btf/inet_sock_set_state, and an iterator over files, for who listens. Attached only while an enforced rule denies net.accept.
 *
 * A SYN has no process. It is judged as the accept(2) that would follow, by the process that has the socket, where that is one alone: the socket's file has one reference, which
 * stands in the descriptor table of that process, which no other shares. Else it may be anybody's, and only what asks for no process denies. Whatever is not sure is left to
 * accept(2): without working memory, too.
 */

#define SYN_FDS 64
#define SYN_MORE \
	64 /* times SYN_FDS: how many descriptors are looked at when a socket begins to listen */

#define SYN_TOLD 64 /* SYNs to one socket that are told within SYN_NS by where they came from */
#define SYN_NS	 1000000000ULL

/* What is known of a socket that listens. */
struct syn_listener {
	__u64 task; /* the main thread of the process that began to, or that was found to have it: an address */
	__u64 start;
	__u64 exec; /* how many programs it had executed */
	__u64 since;
	__u32 told; /* since then */
	__u32 tgid;
	__u32 fd;
	__u32 busy; /* who judges by the classes in proc, and changes them */
	struct proc proc; /* its identity, and its classes at the last SYN */
};

/*
 * By the address of the socket: fmod_ret programs have no socket storage. 8,192 sockets, some 350 bytes each, which is taken only for what is there. What finds no room is counted, and
 * judged as anybody's. What is known of a socket that is gone says nothing of the next one there: syn_table.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 8192);
	__type(key, __u64);
	__type(value, struct syn_listener);
} syn_listeners SEC(".maps");

struct syn_listener syn_none;

__u32 syn_lost; /* SYNs to a socket that one process has, and another than was known: user space looks for it then */

/* fd_some looks for a file at SYN_FDS descriptors of a table, from one on; -1 when it is none of these. */
__noinline int fd_some(__u64 fdt, __u64 file, __u32 from)
{
	__u64 fds = READ_PTR((struct fdtable *)fdt, fd);
	__u32 max = READ((struct fdtable *)fdt, max_fds);

	for (__u32 i = 0; i < SYN_FDS; i++) {
		__u64 fd = from + i;

		if (fd >= max)
			break;
		if (read_word((void *)(fds + fd * 8)) == file)
			return fd;
	}
	return -1;
}

/* syn_of is what is known of a socket; of one of which nothing was, that it is there. */
static __always_inline struct syn_listener *syn_of(__u64 sk)
{
	struct syn_listener *l = bpf_map_lookup_elem(&syn_listeners, &sk);

	if (l)
		return l;
	bpf_map_update_elem(&syn_listeners, &sk, &syn_none, BPF_NOEXIST);
	l = bpf_map_lookup_elem(&syn_listeners, &sk);
	if (!l)
		count_err(ERR_LISTEN);
	return l;
}

/* fd_of looks for a file in a table of descriptors; -1 when it is not among those that are looked at. */
__noinline int fd_of(__u64 fdt, __u64 file)
{
	int fd = -1;

	for (int i = 0; i < SYN_MORE && fd < 0; i++)
		fd = fd_some(fdt, file, i * SYN_FDS);
	return fd;
}

/* syn_begin notes whose socket it is. */
static __always_inline void syn_begin(struct syn_listener *l, struct task_struct *t, __u32 fd)
{
	__u64 leader = READ_PTR(t, group_leader);
	struct proc *p = proc_of(t);

	l->task = 0; /* nobody's, until the rest stands there */
	__builtin_memset(&l->proc, 0, sizeof(l->proc));
	if (p)
		__builtin_memcpy(&l->proc, p, KNOWN_BYTES);
	l->start = READ((struct task_struct *)leader, start_boottime);
	l->exec = READ((struct task_struct *)leader, self_exec_id);
	l->tgid = READ(t, tgid);
	l->fd = fd;
	l->task = leader;
}

/* syn_table is the descriptor table of the process that is known, if that has the file there; 0 if not. The process may be gone: what is read then is not its own. */
static __always_inline __u64 syn_table(struct syn_listener *l, __u64 file)
{
	struct task_struct *t = (void *)l->task;
	struct fdtable *fdt;
	__u64 files;

	if (!t || !l->proc.exec_id || READ(t, pid) != l->tgid || READ(t, tgid) != l->tgid ||
	    READ(t, start_boottime) != l->start || READ(t, self_exec_id) != l->exec)
		return 0;
	files = READ_PTR(t, files);
	if (!files)
		return 0;
	fdt = (void *)READ_PTR((struct files_struct *)files, fdt);
	if (!fdt || l->fd >= READ(fdt, max_fds) ||
	    read_word((void *)(READ_PTR(fdt, fd) + (__u64)l->fd * 8)) != file)
		return 0;
	return files;
}

/* syn_alone tells whether no process but the one that is known has the socket. */
static __always_inline bool syn_alone(struct syn_listener *l, struct sock *sk)
{
	__u64 socket = READ_PTR(sk, sk_socket), file, files;
	struct signal_struct *sig;

	file = socket ? READ_PTR((struct socket *)socket, file) : 0;
	if (!file || !one_file((struct file *)file))
		return false;
	files = syn_table(l, file);
	if (!files) {
		__sync_fetch_and_add(&syn_lost, 1);
		return false;
	}
	/* Of threads that end some have it no more. */
	sig = (void *)READ_PTR((struct task_struct *)l->task, signal);
	return sig && READ((struct files_struct *)files, count.counter) <= READ(sig, nr_threads);
}

/* listen(2), and the end of it, are calls of a process. */
SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(on_syn_listen, struct sock *sk, int was, int state)
{
	struct task_struct *t = bpf_get_current_task_btf();
	struct syn_listener *l;
	__u64 socket, file, fdt, key = (__u64)sk;

	if ((was != TCP_LISTEN && state != TCP_LISTEN) || was == state || !listen_can(sk))
		return 0;
	if (state != TCP_LISTEN) {
		bpf_map_delete_elem(&syn_listeners, &key);
		return 0;
	}
	socket = READ_PTR(sk, sk_socket);
	file = socket ? READ_PTR((struct socket *)socket, file) : 0;
	fdt = READ_PTR((struct files_struct *)READ_PTR(t, files), fdt);
	if (!file || !fdt)
		return 0;
	l = syn_of((__u64)sk);
	if (!l)
		return 0;
	syn_begin(l, t, fd_of(fdt, file));
	return 0;
}

/* Finds who has the sockets that listen already, or that others began to. */
SEC("iter/task_file")
int found_syn_listener(struct bpf_iter__task_file *ctx)
{
	struct task_struct *task = ctx->task;
	struct sock *sk = sock_of(ctx);
	struct syn_listener *l;

	if (!task || !sk || !listens_now(sk))
		return 0;
	l = syn_of((__u64)sk);
	if (!l)
		return 0;
	if (!syn_table(l, (__u64)ctx->file))
		syn_begin(l, task, ctx->fd);
	return 0;
}

/* syn_guest makes the process of a socket the guest of working memory: with the classes that were found before, if nobody else judges by these now. Returns whether that is so. */
static __always_inline bool syn_guest(struct scratch *s, struct syn_listener *l, struct proc *g)
{
	if (s->who == WHO_GUEST && !__sync_val_compare_and_swap(&l->busy, 0, 1)) {
		__builtin_memcpy(g, &l->proc, sizeof(*g));
		return true;
	}
	__builtin_memset(g, 0, sizeof(*g));
	__builtin_memcpy(g, &l->proc, KNOWN_BYTES);
	g->pid = l->tgid;
	return false;
}

/* syn_enter begins the judgement of a SYN to sk, as enter does; NULL where none is to be. */
static __always_inline struct scratch *syn_enter(void *socket, struct syn_listener *l, __u32 *si,
						 bool *mine)
{
	struct sock *sk;
	struct control *c = ctl();
	struct scratch *s;
	struct tables *t;
	struct proc *g;
	__u32 i;
	int got;

	*mine = false;
	if (!c || !enforces(c, OP_ACCEPT))
		return NULL;
	got = scratch_get();
	if (got < 0) {
		count_err(ERR_SCRATCH);
		return NULL;
	}
	i = got;
	s = scratch_at(i);
	g = bpf_map_lookup_elem(&guests, &i);
	if (!s)
		return NULL;
	begin(s, c);
	s->shadow = 0;
	s->extra_len = 0;
	s->rung = c->rung;
	__builtin_memset(&s->obj, 0, sizeof(s->obj));
	t = tables_of(s);
	if (!t || !g) {
		scratch_put(s);
		return NULL;
	}
	/* By way of memory it becomes a number, of which fields can be read. */
	*(volatile __u64 *)&s->who_task = (__u64)socket;
	sk = (void *)*(volatile __u64 *)&s->who_task;
	s->who = WHO_UNKNOWN;
	s->who_net = READ((struct net *)net_of(sk), ns.inum);
	s->crowd = 0;
	s->sent = 0;
	if (l) {
		/* The digests of a process are where it alone can reach them. */
		if (t->ops[OP_ACCEPT].n_subject && !(t->ops[OP_ACCEPT].need & DIMS_DIGEST) &&
		    syn_alone(l, sk))
			s->who = WHO_GUEST;
		s->who_task = l->task;
		s->crowd = l->told >= SYN_TOLD && bpf_ktime_get_ns() - l->since < SYN_NS;
		*mine = syn_guest(s, l, g);
	} else {
		__builtin_memset(g, 0, sizeof(*g));
	}
	*si = i;
	return s;
}

/* syn_leave ends it. */
static __always_inline void syn_leave(struct scratch *s, __u32 si, struct syn_listener *l,
				      bool mine)
{
	struct proc *g = bpf_map_lookup_elem(&guests, &si);
	__u64 now;

	if (l && s->sent) {
		now = bpf_ktime_get_ns();
		if (now - l->since >= SYN_NS) {
			l->since = now;
			l->told = 0;
		}
		__sync_fetch_and_add(&l->told, 1);
	}
	if (l && mine) {
		if (g && l->proc.exec_id == g->exec_id) /* or it is another's by now */
			__builtin_memcpy((void *)&l->proc + CLASSES_OFF, (void *)g + CLASSES_OFF,
					 CLASSES_BYTES);
		__sync_lock_test_and_set(&l->busy, 0);
	}
	s->who = WHO_CURRENT;
	scratch_put(s);
}

/* syn_selftest tells whether the SYN is the one by which the agent proves that it would be dropped: to a socket of its own. */
static __always_inline bool syn_selftest(struct syn_listener *l)
{
	struct control *c = ctl();

	if (!c || !l || c->selftest_op != OP_SYN || !c->selftest_tid ||
	    c->selftest_tid != l->tgid || (c->agent && c->agent != l->proc.exec_id))
		return false;
	__sync_fetch_and_add(&c->selftest_hits, 1);
	return true;
}

/* syn_rec begins the record. Who connects and by which interface may be anything here: of that nothing is refused before accept(2). */
static __always_inline struct rec_net *syn_rec(struct scratch *s)
{
	struct rec_net *r = net_rec(s);

	s->dim_len[DIM_INTERFACE] = ANY_FACT;
	s->obj.target_len = ANY_FACT;
	return r;
}

SEC("lsm/inet_conn_request")
int BPF_PROG(lsm_conn_request, struct sock *sk, struct sk_buff *skb, struct request_sock *req,
	     int ret)
{
	struct syn_listener *l;
	__u64 key = (__u64)sk;
	struct sock *from;
	struct scratch *s;
	struct rec_net *r;
	bool mine;
	__u32 si;

	if (ret)
		return ret;
	if (!listen_can(sk))
		return 0;
	l = bpf_map_lookup_elem(&syn_listeners, &key);
	if (syn_selftest(l))
		return refuse(1);
	s = syn_enter(sk, l, &si, &mine);
	if (!s)
		return 0;
	r = syn_rec(s);
	r->family = READ(sk, __sk_common.skc_family);
	r->type = SOCK_STREAM;
	r->protocol = READ(sk, sk_protocol);
	from = (void *)
		req; /* it begins as a socket does; its own end is the socket's, as to accept(2) here */
	r->local_port = READ(sk, __sk_common.skc_num);
	r->remote_port = __builtin_bswap16(READ(from, __sk_common.skc_dport));
	if (r->family == AF_INET) {
		put_v4(r->local, READ(sk, __sk_common.skc_rcv_saddr));
		put_v4(r->remote, READ(from, __sk_common.skc_daddr));
	} else {
		BPF_CORE_READ_INTO((struct in6_addr *)r->local, sk, __sk_common.skc_v6_rcv_saddr);
		BPF_CORE_READ_INTO((struct in6_addr *)r->remote, from, __sk_common.skc_v6_daddr);
	}
	ret = judge_socket(si, OP_ACCEPT);
	asm volatile("" : "+r"(ret));
	syn_leave(s, si, l, mine);
	return refuse(ret >= ACT_DENY);
}

#define SYN_HEADERS 4 /* of IPv6 before TCP's; a SYN behind more is left to accept(2) */

/* syn_tcp is where TCP's header begins in a packet; 0 when it has none. */
static __always_inline __u32 syn_tcp(struct __sk_buff *skb)
{
	__u8 h[8];
	__u32 off = 40;
	__u8 next;

	if (skb->protocol == __builtin_bswap16(0x0800)) {
		if (bpf_skb_load_bytes(skb, 0, h, 1) || bpf_skb_load_bytes(skb, 9, &next, 1))
			return 0;
		return next == IPPROTO_TCP ? (h[0] & 15) * 4 : 0;
	}
	if (bpf_skb_load_bytes(skb, 6, &next, 1))
		return 0;
	for (int i = 0; i < SYN_HEADERS; i++) {
		if (next == IPPROTO_TCP)
			return off;
		if (next != 0 && next != 43 && next != 60) /* options and routes */
			return 0;
		if (bpf_skb_load_bytes(skb, off, h, 2))
			return 0;
		next = h[0];
		off += (h[1] + 1) * 8;
	}
	return next == IPPROTO_TCP ? off : 0;
}

#define TCP_SYN 0x02
#define TCP_ACK 0x10

/* syn_ends fills a record with the ends of a packet, of which the TCP header stands in h. False when it has none. */
static __always_inline bool syn_ends(struct __sk_buff *skb, struct rec_net *r, const __u8 *h)
{
	__u32 a[8];

	r->type = SOCK_STREAM;
	r->protocol = IPPROTO_TCP;
	r->remote_port = h[0] << 8 | h[1];
	r->local_port = h[2] << 8 | h[3];
	if (skb->protocol == __builtin_bswap16(0x0800)) {
		if (bpf_skb_load_bytes(skb, 12, a, 8))
			return false;
		put_v4(r->remote, a[0]);
		put_v4(r->local, a[1]);
		return true;
	}
	if (bpf_skb_load_bytes(skb, 8, a, 32))
		return false;
	__builtin_memcpy(r->remote, a, 16);
	__builtin_memcpy(r->local, a + 4, 16);
	return true;
}

SEC("cgroup_skb/ingress")
int cg_syn(struct __sk_buff *skb)
{
	struct bpf_sock *sk = skb->sk;
	struct syn_listener *l;
	struct scratch *s;
	struct rec_net *r;
	__u8 h[14];
	__u32 off, si;
	int act = 0;
	__u64 key;
	bool mine;

	if (!sk || sk->state != TCP_LISTEN)
		return 1;
	sk = bpf_sk_fullsock(sk);
	if (!sk)
		return 1;
	off = syn_tcp(skb);
	if (!off || bpf_skb_load_bytes(skb, off, h, sizeof(h)) ||
	    (h[13] & (TCP_SYN | TCP_ACK)) != TCP_SYN)
		return 1;
	key = (__u64)sk;
	l = bpf_map_lookup_elem(&syn_listeners, &key);
	if (syn_selftest(l))
		return 0;
	s = syn_enter(sk, l, &si, &mine);
	if (!s)
		return 1;
	s->rung = RUNG_CGROUP;
	r = syn_rec(s);
	r->family = sk->family;
	if (syn_ends(skb, r, h))
		act = judge_socket(si, OP_ACCEPT);
	syn_leave(s, si, l, mine);
	return act < ACT_DENY;
}
