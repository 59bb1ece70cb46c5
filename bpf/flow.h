/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The records of flows, and what is kept of them in the kernel. The numbers of states, ends and directions are those of package pavise.
 */
#ifndef PAVISE_FLOW_H
#define PAVISE_FLOW_H

#include "event.h"

enum flow_state {
	FLOW_OPEN,
	FLOW_CONNECTING,
	FLOW_CLOSED,
};

enum flow_end {
	FLOW_NOT_ENDED,
	FLOW_DONE,
	FLOW_RESET,
	FLOW_REFUSED,
	FLOW_TIMED_OUT,
	FLOW_UNREACHABLE,
};

enum flow_direction {
	FLOW_UNKNOWN,
	FLOW_OUTBOUND,
	FLOW_INBOUND,
};

enum flow_endpoint {
	FLOW_NOBODY,
	FLOW_LOCAL,
	FLOW_REMOTE,
};

#define FLOW_FOUND  (1 << 0) /* it was there before the programs were */
#define FLOW_OTHERS (1 << 1) /* of all peers that found no room */
#define FLOW_ICMP   (1 << 2) /* icmp_type and icmp_code are known */

struct traffic {
	__u64 bytes;
	__u64 packets;
};

/* All counters are since start: of several reports of a flow, the one with the highest number says all. */
struct rec_flow {
	__u32 len; /* of the whole record, strings included */
	__u8 kind;
	__u8 state;
	__u8 end;
	__u8 direction;
	__u64 time; /* ns, CLOCK_BOOTTIME */
	__u64 id;
	__u64 start;
	__u64 exec_id; /* who acted last on the socket; 0 is nobody known */
	__u64 remote_exec_id; /* of a Unix socket's other end */
	struct traffic sent;
	struct traffic received;
	__u64 latency; /* ns, of connect */
	__u32 rtt; /* us */
	__u32 retransmits;
	__u32 report;
	__u32 netns;
	__u16 family; /* of the packets: a mapped IPv4 address makes it AF_INET */
	__u8 type;
	__u8 protocol;
	__u16 remote_port; /* host byte order; of ICMP the identifier of an echo, or the type */
	__u16 local_port;
	__u8 remote[16]; /* IPv4 as ::ffff:a.b.c.d */
	__u8 local[16];
	__u8 flags; /* FLOW_* */
	__u8 reset_by; /* enum flow_endpoint */
	__u8 icmp_type; /* of the first message, if it has FLOW_ICMP */
	__u8 icmp_code;
	__u16 remote_path_len;
	__u16 local_path_len;
	/* remote path, local path */
};

/* Why bytes were copied: pavise.FlowDataKind. */
enum flow_data_kind {
	FLOW_DATA_DNS = 1,
	FLOW_DATA_TLS,
	FLOW_DATA_QUIC,
};

struct rec_flow_data {
	__u32 len; /* of the whole record; its place in the ring may be longer */
	__u8 kind;
	__u8 what; /* enum flow_data_kind */
	__u8 protocol;
	__u8 flags; /* FLOW_DATA_* */
	__u64 time;
	__u64 id; /* of the flow */
	__u64 exec_id;
	__u32 netns;
	__u32 seq;
	__u16 remote_port;
	__u16 local_port;
	__u32 data_len;
	__u8 remote[16];
	__u8 local[16];
	/* the data */
};

#define FLOW_DATA_OUT (1 << 0) /* sent by the local side */
#define FLOW_DATA_CUT (1 << 1) /* there was more */

/* What is counted where it cannot be told: flow_stats. The same order as FlowStats in flows.go. */
enum flow_stat {
	FLOW_STAT_MADE, /* records of flows */
	FLOW_STAT_LOST, /* of those, what the ring had no room for */
	FLOW_STAT_LOST_BYTES, /* that these would have said of flows that ended */
	FLOW_STAT_DATA_MADE, /* records of data */
	FLOW_STAT_DATA_LOST,
	FLOW_STAT_NO_STORAGE, /* sockets for which the kernel had no memory */
	FLOW_STAT_UNOWNED, /* flows that ended without a known owner */
	FLOW_STAT_NO_PEER, /* packets of peers that found no room */
	FLOW_STAT_NO_UNIX, /* acts on Unix sockets that found no room */
	FLOW_STAT_LATE, /* packets of a socket that nobody has any more, or that cannot be read */
	NUM_FLOW_STATS,
};

#endif
