//go:build ignore
/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Sockets: the lsm/socket_* and lsm/unix_* hooks, and the cgroup connect, bind, sendmsg and sock_create hooks at the root of cgroup v2 for kernels
 * without BPF LSM. Attached only while a rule judges the operation. Addresses are the kernel's copies, not user memory. When working memory
 * runs out, an operation that some enforced rule judges is refused.
 *
 * MSG_FASTOPEN connects without passing security_socket_connect: lsm/socket_sendmsg judges it as net.connect. (The cgroup hook sees it by itself,
 * through tcp's pre_connect.)
 */

static __always_inline struct rec_net *net_rec(struct scratch *s)
{
	struct rec_net *r = (void *)&s->bytes[OFF_REC];

	__builtin_memset(r, 0, sizeof(*r));
	no_target(s);
	s->dim_len[DIM_INTERFACE] = 0;
	s->obj.value = 0;
	return r;
}

#define OFF_NETSTR (OFF_REC + sizeof(struct rec_net))

static __always_inline bool is_zero16(const __u8 *a)
{
	return !(*(__u64 *)a | *(__u64 *)(a + 8));
}

/* loopback_if_any: connecting to the unspecified address reaches this host itself, so that is what is judged. */
static __always_inline void loopback_if_any(__u8 *a)
{
	if (is_zero16(a))
		a[15] = 1;
	else if (*(__u64 *)a == 0 && *(__u64 *)(a + 8) == 0xffff0000)
		put_v4(a, __builtin_bswap32(0x7f000001));
}

/*
 * verdict_net judges op by the record at OFF_REC (its paths follow it): s->v. known is as verdict_file's. Returns whether there is anything to act on or to
 * report, and leaves the record's end in s->rec_end.
 */
static __always_inline int verdict_net(struct scratch *s, __u32 si, __u32 op, bool known)
{
	struct rec_net *r = (void *)&s->bytes[OFF_REC];
	__u32 pos = OFF_NETSTR;
	__u8 *sock = &s->bytes[OFF_SMALL + DIM_SOCKET * 16];
	bool inet = r->family == AF_INET || r->family == AF_INET6;

	sock[0] = r->family;
	sock[1] = r->type;
	sock[2] = r->protocol;
	set_dim(s, DIM_SOCKET, OFF_SMALL + DIM_SOCKET * 16, 3);
	set_be16(s, DIM_RPORT, r->remote_port);
	set_be16(s, DIM_LPORT, r->local_port);
	set_dim(s, DIM_RADDR, OFF_REC + __builtin_offsetof(struct rec_net, remote), 16);
	set_dim(s, DIM_LADDR, OFF_REC + __builtin_offsetof(struct rec_net, local), 16);
	/* What does not exist is the empty string. */
	inet = inet && op != OP_SOCKET;
	if (!inet || op == OP_BIND || op == OP_LISTEN) {
		s->dim_len[DIM_RPORT] = 0;
		s->dim_len[DIM_RADDR] = 0;
	}
	if (!inet) {
		s->dim_len[DIM_LPORT] = 0;
		s->dim_len[DIM_LADDR] = 0;
	}
	/* The hook knows of no connection yet: what asks for its other end was judged when that sent a SYN (syn.bpf.c). */
	if (op == OP_ACCEPT && inet && s->who == WHO_CURRENT && s->rung != RUNG_KILL) {
		s->dim_len[DIM_RPORT] = ANY_FACT;
		s->dim_len[DIM_RADDR] = ANY_FACT;
	}
	set_dim(s, DIM_RPATH, pos, r->remote_path_len);
	pos += clip(r->remote_path_len);
	set_dim(s, DIM_LPATH, pos, r->local_path_len);
	pos += clip(r->local_path_len);
	set_dim(s, DIM_TARGET_EXE, OFF_TARGET, s->obj.target_len);
	s->rec_end = pos;
	if (!early(s, si, op, known))
		return 0;
	judge(si, 0, 0, 0);
	return decided(&s->v) < NUM_DECIDED || s->was;
}

/*
 * syn_object is the object of a SYN: where it came from, whatever its port; of a crowd, where it went to, and where it came from is not told. So a flood is a few events a
 * second, and takes few places in folds.
 */
static __always_inline __u64 syn_object(struct scratch *s, struct rec_net *r)
{
	__u64 object = same_object(same_object(0, r->local_port), s->who_net);

	if (s->crowd) {
		__builtin_memset(r->remote, 0, sizeof(r->remote));
		r->remote_port = 0;
	}
	return same_object(same_object(object, *(__u64 *)&r->remote[8]), *(__u64 *)r->remote);
}

/* tell_net completes the record of a verdict and reports it. */
static __always_inline int tell_net(struct scratch *s, __u32 si)
{
	struct rec_net *r = (void *)&s->bytes[OFF_REC];
	__u64 object;
	int action;

	r->remote_path_len = clip(r->remote_path_len);
	r->local_path_len = clip(r->local_path_len);
	object = same_object(same_object(0, *(__u64 *)&r->remote[8]), *(__u64 *)r->remote);
	object = same_object(object, (__u64)r->remote_port << 48 | (__u64)r->local_port << 32 |
					     r->protocol << 16 | r->family);
	if (r->remote_path_len | r->local_path_len)
		object ^= digest(s, si, OFF_REC + sizeof(*r), s->rec_end);
	r->target_exec_id = s->obj.target_exec_id;
	r->target_pid = s->obj.target_pid;
	object = same_object(object, r->target_exec_id);
	object = same_object(object, s->obj.value);
	if (s->who != WHO_CURRENT)
		object = syn_object(s, r);
	if (s->obj.target_len <= MAX_STRING)
		r->target_len = append(s, OFF_TARGET, s->obj.target_len);
	if (s->dim_len[DIM_INTERFACE] < 16)
		r->interface_len =
			append(s, OFF_SMALL + DIM_INTERFACE * 16, s->dim_len[DIM_INTERFACE] & 15);
	action = report(si, REC_NET, s->rung, object, s->rec_end - OFF_REC);
	/* For the shadow, which judges after this. */
	r->remote_path_len = s->dim_len[DIM_RPATH];
	r->local_path_len = s->dim_len[DIM_LPATH];
	return action;
}

/* judge_net is verdict_net, reports, and returns the action to take. */
static __always_inline int judge_net(struct scratch *s, __u32 si, __u32 op)
{
	if (!verdict_net(s, si, op, false))
		return 0;
	/* Of a guest's act only what is refused is told: else the act itself will be. */
	if (s->who != WHO_CURRENT && (s->v.action[DECIDED_ENFORCED] < ACT_DENY || released()))
		return 0;
	return tell_net(s, si);
}

/* judge_socket is judge_net as a function of its own, for hooks whose own cost does not matter. */
__noinline int judge_socket(__u32 si, __u32 op)
{
	struct scratch *s = scratch_at(si);

	if (!s)
		return 0;
	if (s->who != WHO_CURRENT)
		guest_classes(si);
	return judge_net(s, si, op & (NUM_JUDGED - 1));
}

static __always_inline void shadow_socket(struct scratch *s, __u32 si, __u32 op)
{
	if (s->shadow && turn(si, op)) {
		judge_socket(si, op);
		turn_back();
	}
}

/* put_unix writes a Unix socket's name at bytes[off]: the path of its file, or '@' and the abstract name. */
static __always_inline __u32 put_unix(struct scratch *s, __u32 si, __u32 off, __u64 sk)
{
	struct unix_sock *u = (void *)sk;
	__u64 dentry = (__u64)BPF_CORE_READ(u, path.dentry), addr;
	int len;

	if (dentry)
		return path_build(si, off, dentry, (__u64)BPF_CORE_READ(u, path.mnt), 0);
	addr = (__u64)BPF_CORE_READ(u, addr);
	if (!addr)
		return 0;
	len = BPF_CORE_READ((struct unix_address *)addr, len);
	if (len <= 3 || len > 110)
		return 0;
	bpf_probe_read_kernel(at(s, off), (len - 2) & 0x7f,
			      (void *)addr + bpf_core_field_offset(struct unix_address, name) + 2);
	*at(s, off) = '@';
	return len - 2;
}

/* put_sk fills a record from a socket: what it is, and its ends as far as they are known. */
static __always_inline void put_sk(struct scratch *s, __u32 si, struct rec_net *r, struct sock *sk,
				   bool remote)
{
	r->family = BPF_CORE_READ(sk, __sk_common.skc_family);
	r->type = BPF_CORE_READ(sk, sk_type);
	r->protocol = BPF_CORE_READ(sk, sk_protocol);
	if (r->family == AF_UNIX) {
		__u64 peer = remote ? (__u64)BPF_CORE_READ((struct unix_sock *)sk, peer) : 0;

		if (peer)
			r->remote_path_len = put_unix(s, si, OFF_NETSTR, peer);
		r->local_path_len =
			put_unix(s, si, OFF_NETSTR + clip(r->remote_path_len), (__u64)sk);
		return;
	}
	if (r->family != AF_INET && r->family != AF_INET6)
		return;
	r->local_port = BPF_CORE_READ(sk, __sk_common.skc_num);
	if (remote)
		r->remote_port = __builtin_bswap16(BPF_CORE_READ(sk, __sk_common.skc_dport));
	if (r->family == AF_INET) {
		put_v4(r->local, BPF_CORE_READ(sk, __sk_common.skc_rcv_saddr));
		if (remote)
			put_v4(r->remote, BPF_CORE_READ(sk, __sk_common.skc_daddr));
	} else {
		BPF_CORE_READ_INTO((struct in6_addr *)r->local, sk, __sk_common.skc_v6_rcv_saddr);
		if (remote)
			BPF_CORE_READ_INTO((struct in6_addr *)r->remote, sk,
					   __sk_common.skc_v6_daddr);
	}
}

struct sockaddr_in_any {
	__u16 family;
	__be16 port;
	__u32 v4;
	__u8 v6[16]; /* sockaddr_in6: after flowinfo, which stands where v4 does */
};

/* put_addr overwrites one end of a record with a socket address in kernel memory; false when it has none that is judged. */
static __always_inline bool put_addr(struct scratch *s, struct rec_net *r, void *addr, int len,
				     bool remote)
{
	struct sockaddr_in_any a = {};
	__u8 *dst = remote ? r->remote : r->local;

	if (len < 8)
		return false;
	if (len >= sizeof(a))
		bpf_probe_read_kernel(&a, sizeof(a), addr);
	else
		bpf_probe_read_kernel(&a, 8, addr);
	/* A bind to AF_UNSPEC means AF_INET's any address on an IPv4 socket. */
	if (a.family != AF_INET && a.family != AF_INET6 &&
	    !(a.family == AF_UNSPEC && !remote && r->family == AF_INET))
		return false;
	__builtin_memset(dst, 0, 16);
	if (a.family == AF_INET6)
		__builtin_memcpy(dst, a.v6, 16);
	else
		put_v4(dst, a.v4);
	if (remote) {
		r->remote_port = __builtin_bswap16(a.port);
		loopback_if_any(dst);
	} else {
		r->local_port = __builtin_bswap16(a.port);
	}
	return true;
}

/*
 * bind_path writes the path that a Unix socket of len bytes of name is to be made at, to OFF_NETSTR, and returns its length: the name that was given, behind
 * the working directory if it is relative. It is not resolved further (docs/THREATS.md).
 */
static __always_inline __u32 bind_path(struct scratch *s, __u32 si, const void *name, __u32 len)
{
	struct fs_struct *fs;
	__u32 dir = 0;
	char first = 0;
	long n;

	bpf_probe_read_kernel(&first, 1, name);
	if (first != '/') {
		fs = BPF_CORE_READ(bpf_get_current_task_btf(), fs);
		dir = path_build(si, OFF_NETSTR, (__u64)BPF_CORE_READ(fs, pwd.dentry),
				 (__u64)BPF_CORE_READ(fs, pwd.mnt), 0);
		if (dir > MAX_STRING - 128)
			return MAX_STRING + 1;
		if (dir > 1) {
			*at(s, OFF_NETSTR + dir) = '/';
			dir++;
		}
	}
	n = bpf_probe_read_kernel_str(at(s, OFF_NETSTR + dir), len < 108 ? (len + 1) & 0x7f : 109,
				      (void *)name);
	return dir + (n > 1 ? n - 1 : 0);
}

#define INTERFACES 16 /* in one of the 256 rows of a network namespace's table */

/* find_interface names an interface of a network namespace, by its number. One that is not found, as it is gone by now, is judged strictly. */
__noinline int find_interface(__u32 si, __u64 net, __u32 index)
{
	struct scratch *s = scratch_at(si);
	__u32 off = OFF_SMALL + DIM_INTERFACE * 16;
	__u64 at;
	long n;

	if (!s)
		return 0;
	s->obj.value = index;
	set_dim(s, DIM_INTERFACE, off, MAX_STRING + 1);
	at = read_word((void *)READ_PTR((struct net *)net, dev_index_head) + (index & 255) * 8);
	for (int i = 0; i < INTERFACES && at; i++) {
		struct net_device *dev =
			(void *)at - bpf_core_field_offset(struct net_device, index_hlist);

		if (READ(dev, ifindex) == index) {
			n = bpf_probe_read_kernel_str(
				&s->bytes[off], 16,
				(void *)dev + bpf_core_field_offset(struct net_device, name));
			if (n > 1)
				set_dim(s, DIM_INTERFACE, off, (n - 1) & 15);
			break;
		}
		at = READ_PTR((struct hlist_node *)at, next);
	}
	return 0;
}

/* set_asked finds out what takes longer, of a socket of IPv4 or IPv6, if some rule asks for it: the program at the other end of TCP, and the interface. */
static __always_inline void set_asked(struct scratch *s, __u32 si, struct rec_net *r, __u32 op,
				      struct sock *sk)
{
	__u64 need = asked(s, op);
	__u32 index;

	if (NEED(need, DIM_TARGET_EXE) && r->protocol == IPPROTO_TCP) {
		if (op == OP_CONNECT)
			find_listener(si, net_of(sk));
		else if (op == OP_ACCEPT)
			set_connector(s, si, r, net_of(sk));
	}
	if (!NEED(need, DIM_INTERFACE))
		return;
	index = op == OP_ACCEPT ? interface_in(sk) : READ(sk, __sk_common.skc_bound_dev_if);
	if (index || op == OP_ACCEPT)
		find_interface(si, net_of(sk), index);
}

/* Which end an address argument is, and whether the other end is read from the socket. */
enum net_arg {
	ARG_NONE,
	ARG_REMOTE,
	ARG_LOCAL
};

static __always_inline int lsm_net(struct sock *sk, void *addr, int len, enum net_arg arg, __u32 op)
{
	struct rec_net *r;
	struct scratch *s;
	__u32 si;
	int ret;

	if (!sk)
		return 0;
	s = enter(op, &si, &ret);
	if (!s)
		return ret;
	r = net_rec(s);
	put_sk(s, si, r, sk, op == OP_SEND || op == OP_ACCEPT);
	if (r->family == AF_UNIX) {
		/* connect and sendto: unix_stream_connect and unix_may_send judge the socket reached, not the name given. */
		if (arg == ARG_REMOTE || (op == OP_SEND && arg == ARG_NONE && r->type != 1))
			goto out;
		if (arg == ARG_LOCAL) { /* bind: the name is to be made */
			len = len > 110 ? 110 : len;
			if (len <= 2)
				goto out;
			len -= 2;
			bpf_probe_read_kernel(&s->bytes[OFF_NETSTR], len & 0x7f, addr + 2);
			if (!s->bytes[OFF_NETSTR]) {
				s->bytes[OFF_NETSTR] = '@';
				r->local_path_len = len;
			} else {
				r->local_path_len = bind_path(s, si, addr + 2, len);
			}
			r->remote_path_len = 0;
		}
	} else if (r->family == AF_INET || r->family == AF_INET6) {
		if (arg != ARG_NONE && !put_addr(s, r, addr, len, arg == ARG_REMOTE))
			goto out;
		if (op != OP_ACCEPT) /* what is accepted is not known yet */
			set_asked(s, si, r, op, sk);
	}
	ret = deny_lsm(judge_socket(si, op), op);
	shadow_socket(s, si, op);
out:
	scratch_put(s);
	return ret;
}

SEC("lsm/socket_connect")
int BPF_PROG(lsm_connect, struct socket *sock, struct sockaddr *addr, int len, int ret)
{
	if (ret)
		return ret;
	return lsm_net(sock->sk, addr, len, ARG_REMOTE, OP_CONNECT);
}

SEC("lsm/socket_bind")
int BPF_PROG(lsm_bind, struct socket *sock, struct sockaddr *addr, int len, int ret)
{
	if (ret)
		return ret;
	return lsm_net(sock->sk, addr, len, ARG_LOCAL, OP_BIND);
}

SEC("lsm/socket_listen")
int BPF_PROG(lsm_listen, struct socket *sock, int backlog, int ret)
{
	if (ret)
		return ret;
	return lsm_net(sock->sk, NULL, 0, ARG_NONE, OP_LISTEN);
}

SEC("lsm/socket_accept")
int BPF_PROG(lsm_accept, struct socket *sock, struct socket *newsock, int ret)
{
	if (ret)
		return ret;
	return lsm_net(sock->sk, NULL, 0, ARG_NONE, OP_ACCEPT);
}

SEC("lsm/socket_sendmsg")
int BPF_PROG(lsm_sendmsg, struct socket *sock, struct msghdr *msg, int size, int ret)
{
	void *name = msg->msg_name;
	int len = msg->msg_namelen;

	if (ret)
		return ret;
	if (name && msg->msg_flags & MSG_FASTOPEN) {
		ret = lsm_net(sock->sk, name, len, ARG_REMOTE, OP_CONNECT);
		if (ret)
			return ret;
	}
	return lsm_net(sock->sk, name, len, name ? ARG_REMOTE : ARG_NONE, OP_SEND);
}

/* put_type fills a record with what socket(2) was asked for. The protocol that a type stands for by itself is named. */
static __always_inline void put_type(struct rec_net *r, int family, int type, int protocol)
{
	r->family = family;
	r->type = type;
	r->protocol = protocol;
	if (!protocol && (family == AF_INET || family == AF_INET6))
		r->protocol = type == SOCK_STREAM  ? IPPROTO_TCP
			      : type == SOCK_DGRAM ? IPPROTO_UDP
						   : 0;
}

SEC("lsm/socket_create")
int BPF_PROG(lsm_socket, int family, int type, int protocol, int kern, int ret)
{
	struct scratch *s;
	__u32 si;

	if (ret || kern)
		return ret;
	s = enter(OP_SOCKET, &si, &ret);
	if (!s)
		return ret;
	put_type(net_rec(s), family, type, protocol);
	ret = deny_lsm(judge_socket(si, OP_SOCKET), OP_SOCKET);
	shadow_socket(s, si, OP_SOCKET);
	scratch_put(s);
	return ret;
}

/* unix_op judges an operation of a Unix socket on the socket it reaches. */
static __always_inline int unix_op(struct sock *sk, struct sock *other, __u32 op)
{
	struct rec_net *r;
	struct scratch *s;
	__u32 si;
	int ret;

	if (!sk || !other)
		return 0;
	s = enter(op, &si, &ret);
	if (!s)
		return ret;
	r = net_rec(s);
	r->family = AF_UNIX;
	r->type = BPF_CORE_READ(sk, sk_type);
	r->remote_path_len = put_unix(s, si, OFF_NETSTR, (__u64)other);
	r->local_path_len = put_unix(s, si, OFF_NETSTR + clip(r->remote_path_len), (__u64)sk);
	ret = deny_lsm(judge_socket(si, op), op);
	shadow_socket(s, si, op);
	scratch_put(s);
	return ret;
}

SEC("lsm/unix_stream_connect")
int BPF_PROG(lsm_unix_connect, struct sock *sk, struct sock *other, struct sock *newsk, int ret)
{
	if (ret)
		return ret;
	return unix_op(sk, other, OP_CONNECT);
}

SEC("lsm/unix_may_send")
int BPF_PROG(lsm_unix_send, struct socket *sock, struct socket *other, int ret)
{
	struct sock *sk = sock->sk, *to = other->sk;

	/* The verifier wants both seen, since 6.9 or so. */
	if (ret || !sk || !to)
		return ret;
	return unix_op(sk, to, OP_SEND);
}

/* The cgroup rung. 1 lets the call go on, 0 refuses it with EPERM. */
static __always_inline int cgroup_net(struct bpf_sock_addr *ctx, __u32 op, bool v6)
{
	struct bpf_sock *sk = ctx->sk;
	struct rec_net *r;
	struct scratch *s;
	__u32 a[4], si;
	__u8 *dst;
	int act;

	s = enter(op, &si, &act);
	if (!s)
		return !act;
	s->rung = RUNG_CGROUP;
	r = net_rec(s);
	r->family = ctx->family;
	r->type = ctx->type;
	r->protocol = ctx->protocol;
	dst = op == OP_BIND ? r->local : r->remote;
	if (v6) {
		a[0] = ctx->user_ip6[0];
		a[1] = ctx->user_ip6[1];
		a[2] = ctx->user_ip6[2];
		a[3] = ctx->user_ip6[3];
		__builtin_memcpy(dst, a, 16);
	} else {
		put_v4(dst, ctx->user_ip4);
	}
	if (op == OP_BIND) {
		r->local_port = __builtin_bswap16(ctx->user_port);
	} else {
		if (sk) {
			r->local_port = sk->src_port;
			if (v6) {
				a[0] = sk->src_ip6[0];
				a[1] = sk->src_ip6[1];
				a[2] = sk->src_ip6[2];
				a[3] = sk->src_ip6[3];
				__builtin_memcpy(r->local, a, 16);
			} else {
				put_v4(r->local, sk->src_ip4);
			}
		}
		r->remote_port = __builtin_bswap16(ctx->user_port);
		loopback_if_any(dst);
	}
	if (sk) {
		/* By way of memory it becomes a number, of which fields can be read. */
		*(volatile __u64 *)&s->dentry = (__u64)sk;
		set_asked(s, si, r, op, (struct sock *)*(volatile __u64 *)&s->dentry);
	}
	act = judge_net(s, si, op);
	shadow_socket(s, si, op);
	scratch_put(s);
	if (act == ACT_KILL)
		bpf_send_signal(SIGKILL);
	return act < ACT_DENY;
}

SEC("cgroup/connect4")
int cg_connect4(struct bpf_sock_addr *ctx)
{
	return cgroup_net(ctx, OP_CONNECT, false);
}

SEC("cgroup/connect6")
int cg_connect6(struct bpf_sock_addr *ctx)
{
	return cgroup_net(ctx, OP_CONNECT, true);
}

SEC("cgroup/bind4")
int cg_bind4(struct bpf_sock_addr *ctx)
{
	return cgroup_net(ctx, OP_BIND, false);
}

SEC("cgroup/bind6")
int cg_bind6(struct bpf_sock_addr *ctx)
{
	return cgroup_net(ctx, OP_BIND, true);
}

SEC("cgroup/sendmsg4")
int cg_sendmsg4(struct bpf_sock_addr *ctx)
{
	return cgroup_net(ctx, OP_SEND, false);
}

SEC("cgroup/sendmsg6")
int cg_sendmsg6(struct bpf_sock_addr *ctx)
{
	return cgroup_net(ctx, OP_SEND, true);
}

/* For IPv4 and IPv6 alone, and not for the kernel's own sockets, as lsm_socket. */
SEC("cgroup/sock_create")
int cg_socket(struct bpf_sock *ctx)
{
	struct scratch *s;
	__u32 si;
	int act;

	s = enter(OP_SOCKET, &si, &act);
	if (!s)
		return !act;
	s->rung = RUNG_CGROUP;
	put_type(net_rec(s), ctx->family, ctx->type, ctx->protocol);
	act = judge_net(s, si, OP_SOCKET);
	shadow_socket(s, si, OP_SOCKET);
	scratch_put(s);
	if (act == ACT_KILL)
		bpf_send_signal(SIGKILL);
	return act < ACT_DENY;
}
