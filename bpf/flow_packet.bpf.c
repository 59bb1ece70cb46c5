//go:build ignore
/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Datagrams, and what is copied of them and of TCP: cgroup_skb at the root of cgroup v2, and cgroup/sock_release. */

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
	if (!f) /* as flow_of */
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
