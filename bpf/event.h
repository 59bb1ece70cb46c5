/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The records that cross from the kernel to user space, through the two rings. decode/ reads them
 * by the types that bpf2go makes of these structs (BTF), never by a mirror written by hand. A record is
 * its struct followed by its strings, in the order and of the lengths that the struct gives, without NULs between.
 */
#ifndef PAVISE_EVENT_H
#define PAVISE_EVENT_H

/* The numbers of operations, actions and rungs are those of package pavise. */
enum op {
	OP_NONE,
	OP_EXEC,
	OP_OPEN,
	OP_CONNECT,
	OP_BIND,
	OP_LISTEN,
	OP_ACCEPT,
	OP_SEND,
	OP_SOCKET,
	OP_SIGNAL,
	OP_PTRACE,
	OP_SETID,
	OP_CAPSET,
	OP_MEMEXEC,
	OP_CREATE,
	OP_DELETE,
	OP_RENAME,
	OP_LINK,
	OP_SYMLINK,
	OP_TRUNCATE,
	OP_CHMOD,
	OP_CHOWN,
	OP_SETXATTR,
	OP_MOUNT,
	OP_UMOUNT,
	OP_CHROOT,
	OP_PIVOT_ROOT,
	OP_MODULE,
	OP_BPF,
	OP_PERF,
	OP_KEYRING,
	OP_USERNS,
	OP_IO_URING,
	OP_KEXEC,
	OP_SYSCTL,
	OP_DEVICE,
	OP_FORK, /* the first that is not judged */
	OP_LATE =
		OP_FORK, /* the part of process.exec that is judged in sched_process_exec on every rung: policy.OpLate */
	OP_EXIT,
	OP_SYN = 63, /* no operation: the self-test of the programs that drop SYNs */
	NUM_OPS = 64,
};

enum action {
	ACT_NONE,
	ACT_ALLOW,
	ACT_AUDIT,
	ACT_DENY,
	ACT_KILL,
};

enum rung {
	RUNG_NONE,
	RUNG_LSM,
	RUNG_FMOD_RET,
	RUNG_CGROUP,
	RUNG_KILL,
};

/* Which struct a record is. */
enum rec_kind {
	REC_PROC = 1, /* struct rec_proc: exec, fork, found running */
	REC_EXIT = 2, /* struct rec_exit */
	REC_FILE = 3, /* struct rec_file: a verdict on an operation that is not on a socket */
	REC_NET = 4, /* struct rec_net: a verdict on net.* */
	REC_FLOW =
		5, /* struct rec_flow, in flow.h: a connection and its counters. In a ring of its own, as the next */
	REC_FLOWDATA = 6, /* struct rec_flow_data: bytes that went through one */
};

#define REC_MONITOR (1 << 0) /* the action would have been done, and was not */
#define REC_FOUND   (1 << 1) /* rec_proc: already ran */
#define REC_THREAD  (1 << 2) /* rec_proc, fork: a thread */
#define REC_SHADOW \
	(1 << 3) /* what the shadow decided, where the active side decided otherwise: was */
#define REC_KEPT \
	(1       \
	 << 4) /* rec_proc, with REC_FOUND: its facts were taken when it began, by an agent before this one */

#define REC_RULES 4

struct rec_hdr {
	__u32 len; /* of the whole record, strings included */
	__u8 kind;
	__u8 op;
	__u8 action;
	__u8 flags;
	__u64 time; /* ns, CLOCK_BOOTTIME */
	__u64 exec_id; /* of the actor; for OP_FORK, of the child */
	__u32 pid; /* thread group id, initial pid namespace */
	__u32 tid;
	__u64 count; /* repeats folded into this record, itself included; at least 1 for verdicts */
	__u32 gen;
	__u8 rung;
	__u8 matched; /* rules that matched, at most 255; rules[] names the first of them */
	__u8 was; /* with REC_SHADOW: what the active side decided, as DONE says in engine.h */
	__u8 pad;
	__u32 rules[REC_RULES];
};

/* Values of rec_file.value, as in package pavise. */
#define PTRACE_READ   1
#define PTRACE_ATTACH 2

#define SOURCE_FILE    1
#define SOURCE_MEMORY  2
#define SOURCE_REQUEST 3

#define MEM_ANONYMOUS (1 << 0)
#define MEM_WRITTEN   (1 << 1)
#define MEM_WRITABLE  (1 << 2)
#define MEM_STACK     (1 << 3)
#define MEM_HEAP      (1 << 4)

#define IO_URING_SETUP	     1
#define IO_URING_SQPOLL	     2
#define IO_URING_CREDENTIALS 3
#define IO_URING_COMMAND     4

#define UNCHANGED 0xffffffffU /* an id that an operation leaves as it is */

#define FILE_DELETED (1 << 0)
#define FILE_MEMFD   (1 << 1)
#define FILE_TRUNCATED \
	(1 << 2) /* the path was over 4,095 bytes: its last components stand here after ".../" */

struct rec_inode {
	__u64 ino;
	__u32 dev; /* kernel dev_t */
	__u32 links;
	__u32 owner;
	__u16 mode;
	__u8 access;
	__u8 flags; /* FILE_* */
};

/* What of it an operation has, and what it means there: pavise.ActInfo. What it has not is zero. */
struct rec_file {
	struct rec_hdr hdr;
	struct rec_inode inode;
	__u64 value;
	__u64 value2;
	__u64 target_exec_id;
	__u32 target_pid;
	__u32 target_uid;
	__u16 path_len;
	__u16 alias_len;
	__u16 new_len;
	__u16 name_len;
	__u16 target_len;
	__u8 fs_len;
	__u8 pad[5];
	/* path, alias, new path, name, target's executable, fs */
};

struct rec_net {
	struct rec_hdr hdr;
	__u16 family;
	__u8 type;
	__u8 protocol;
	__u16 remote_port; /* host byte order */
	__u16 local_port;
	__u8 remote[16]; /* IPv4 as ::ffff:a.b.c.d; zero when there is none */
	__u8 local[16];
	__u64 target_exec_id; /* of who listens at the remote end, or connects from there, where a rule asked for it and it is on this host */
	__u32 target_pid;
	__u16 target_len;
	__u16 remote_path_len;
	__u16 local_path_len;
	__u8 interface_len;
	__u8 pad[5];
	/* remote path, local path, target's executable, interface where a rule asked for it; an abstract name begins with '@' and its other NULs are kept */
};

#define PROC_DELETED (1 << 0) /* as policy.ProcFlag* */
#define PROC_MEMFD   (1 << 1)
#define PROC_SECURE  (1 << 2)
#define PROC_TTY     (1 << 3)
#define PROC_ARGSCUT (1 << 4) /* of the record alone */
#define PROC_SETUID  (1 << 5)
#define PROC_SETGID  (1 << 6)
#define PROC_ON_ROOT (1 << 7)

/* Inode numbers of namespaces; and as a set, a bit for each in this order: pavise.NamespaceSet. */
struct ns {
	__u32 mnt, pid, net, user, cgroup, uts, ipc;
};

struct rec_proc {
	struct rec_hdr hdr;
	__u64 parent_exec_id;
	__u64 start_time; /* ns since boot */
	__u64 caps;
	__u64 cgroup_id;
	struct rec_inode exe;
	__u32 parent_pid;
	__u32 uid, gid, euid, egid, login;
	struct ns ns;
	__u16 path_len;
	__u16 script_len;
	__u16 args_len;
	__u16 cwd_len;
	__u16 cgroup_len;
	__u8 fs_len;
	__u8 flags; /* PROC_* */
	__u8 ns_host; /* the namespaces that are the machine's own */
	__u8 digest_len;
	__u8 verity_len;
	__u8 pad;
	char comm[16];
	/* exe path, script, args, cwd, cgroup path, fs, digest of the content, digest of fs-verity. OP_FORK has no strings and no exe: a child is its parent's image. */
};

struct rec_exit {
	struct rec_hdr hdr;
	__u32 code; /* as wait(2)'s status */
	__u32 pad;
};

#endif
