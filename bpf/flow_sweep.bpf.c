//go:build ignore
/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Iterators: the sockets that were there before, and what goes on. */

/* Finds the sockets that were there before, and their owners: whoever has a file of one. Run twice, as a listener may come after what it has accepted. */
SEC("iter/task_file")
int flow_found(struct bpf_iter__task_file *ctx)
{
	struct task_struct *task = ctx->task;
	struct sock *sk = sock_of(ctx);
	struct flow_listen l;
	struct flow_sock *f;
	__u16 family, protocol;
	__u64 owner;
	__u8 one = 1;

	if (!task || !sk)
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

/* flow_report tells a sweep of a socket, once. It comes again for one whose reports found no room in the iterator's buffer. */
static __always_inline void flow_report(struct seq_file *seq, struct sock *sk)
{
	struct flow_sock *f = bpf_sk_storage_get(&flow_socks, sk, 0, 0);
	struct rec_flow r;

	if (!f || f->flags & FLOW_RELEASED || f->swept == flow_sweeps)
		return;
	if (f->flags & FLOW_UNIX) { /* flow_sweep_unix tells of it */
		struct flow_unix *e = bpf_map_lookup_elem(&flow_unixes, &f->id);

		if (e && !(READ(sk, __sk_common.skc_flags) >> SOCK_DEAD_BIT & 1))
			e->seen = flow_sweeps;
		return;
	}
	if (f->flags & FLOW_DGRAM) {
		if (f->others_id) {
			flow_main(&r, f, sk, true);
			if (bpf_seq_write(seq, &r, sizeof(r)))
				return;
		}
		if (f->claim == CLAIM_READY) {
			flow_main(&r, f, sk, false);
			if (bpf_seq_write(seq, &r, sizeof(r)))
				return;
			__sync_fetch_and_add(&f->report, 1);
		}
		if (f->others_id)
			__sync_fetch_and_add(&f->others_report, 1);
		f->swept = flow_sweeps;
		return;
	}
	if (!(f->flags & FLOW_KNOWN))
		return;
	flow_head(&r, f, sk);
	flow_put_ends(&r, sk);
	flow_tcp_counters(&r, f, sk);
	r.state = READ(sk, __sk_common.skc_state) == TCP_SYN_SENT ? FLOW_CONNECTING : FLOW_OPEN;
	if (bpf_seq_write(seq, &r, sizeof(r)))
		return;
	__sync_fetch_and_add(&f->report, 1);
	f->swept = flow_sweeps;
}

/* Reports all flows that go on, by way of the iterator's file: of that nothing is lost. */
SEC("iter/bpf_sk_storage_map")
int flow_sweep(struct bpf_iter__bpf_sk_storage_map *ctx)
{
	struct sock *sk = ctx->sk;

	if (sk)
		flow_report(ctx->meta->seq, sk);
	return 0;
}

/*
 * The same for sockets that a process has a file of. Since 7.0 (0be08389c7f2 "bpf: Switch to bpf_selem_unlink_nofail in bpf_local_storage_{map_free, destroy}") a socket that is destroyed
 * takes itself out of its storage's entry before this is freed, and the iterator over socket storage reads it without looking: the kernel follows NULL.
 */
SEC("iter/task_file")
int flow_sweep_files(struct bpf_iter__task_file *ctx)
{
	struct sock *sk = ctx->task ? sock_of(ctx) : NULL;

	if (sk)
		flow_report(ctx->meta->seq, sk);
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
