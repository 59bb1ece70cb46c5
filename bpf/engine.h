/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The verdict engine: the tables of two generations of policy.Image, and the functions that judge with
 * them. docs/design/001-verdict-engine.md says how; policy.Image.Judge is the same in Go, and a test compares
 * the two. Nothing here knows of a hook or of the meaning of a dimension.
 */
#ifndef PAVISE_ENGINE_H
#define PAVISE_ENGINE_H

#include "kernel.h"
#include "event.h"

/* Sizes: those of policy/image.go (Max*); enforce checks that they agree. */
#define NUM_AUTOMATA  32
#define NUM_SLOTS     16
#define NUM_OPWORDS   256
#define NUM_JUDGED    64 /* operations below this number can be judged: a mask, for the verifier */
#define NUM_RULES     16384
#define NUM_CLAUSES   (2048 * 64) /* of all operations */
#define NUM_ROWS      16384
#define NUM_ROWWORDS  65536
#define NUM_CLASSROWS 131072
#define NUM_CELLS     (2 << 20)
#define NUM_ALLSTATES 131072
#define NUM_ALLLEAVES 32768
#define NUM_TAILS     (1 << 20)
#define NUM_RATES     256
#define RATED	      8 /* words with a rate that one function judges */
#define NUM_SIDES     2
#define MAX_STRING    4095
#define LEAF_BIT      0x8000
#define ANY_FACT      0xfffd /* the length of a fact that may be any: as of WHO_UNKNOWN */

#define DIM_EXE	       1
#define DIM_PARENT_EXE 2
#define DIM_SCRIPT     3
#define DIM_CGROUP     4
#define DIM_UID	       5
#define DIM_GID	       6
#define DIM_LOGIN      7
#define DIM_CAPS       8
#define DIM_PROC_FLAGS 9
#define DIM_ARGS       10
#define DIM_ANCESTORS  11
#define DIM_NS	       12
#define DIM_REAL_UID   13
#define DIM_REAL_GID   14
#define DIM_DIGEST     15
#define DIM_VERITY     16
#define DIM_EXE_SETS   20 /* the sets that hold DIM_EXE; their like: DIM_PATH_SETS and on */
#define DIM_PATH       24 /* the first dimension of the object */
#define DIM_ACCESS     25
#define DIM_OWNER      26
#define DIM_MODE       27
#define DIM_FS	       28
#define DIM_FILE_FLAGS 29
#define DIM_RADDR      30
#define DIM_LADDR      31
#define DIM_RPORT      32
#define DIM_LPORT      33
#define DIM_SOCKET     34
#define DIM_RPATH      35
#define DIM_LPATH      36
#define DIM_VALUE      37
#define DIM_VALUE2     38
#define DIM_NAME       39
#define DIM_NEW_PATH   40
#define DIM_TARGET_EXE 41
#define DIM_TARGET_UID 42
#define DIM_INTERFACE  43
#define DIM_PATH_SETS  48
#define DIM_TIME       56
#define NUM_DIMS       64

/* DIM is the bit of a dimension in a set of them. */
#define DIM(d)	   (1ULL << (d))
#define NEED(m, d) ((m) & DIM(d))

#define AUTOMATON_NAMED	  (1 << 0) /* it is about the name that is judged */
#define AUTOMATON_ADDRESS (1 << 1) /* source is looked up in sets of addresses */

struct automaton {
	__u32 cell_off;
	__u32 accept_off;
	__u32 leaf_off;
	__u32 tail_off;
	__u16 start;
	__u16 overlong;
	__u16 last; /* the class depends on so many bytes at the end; MAX_STRING for all */
	__u16 pad;
	__u8 shift;
	__u8 dim;
	__u8 source; /* dim is derived: DIM_TIME of itself, one of sets of the fact that is looked up; 0 for none */
	__u8 flags; /* AUTOMATON_* */
	__u8 column[256];
};

enum {
	LEAF_ANY,
	LEAF_EXACT,
	LEAF_UNDER,
	LEAF_PREFIX
};

struct leaf {
	__u32 tail_off; /* from the automaton's tail_off */
	__u16 tail_len;
	__u16 kind;
	__u16 match;
	__u16 miss;
};

struct slot {
	__u32 automaton;
	__u32 class_row; /* offset into class_rows */
};

enum {
	WORD_NONE,
	WORD_EXPLICIT,
	WORD_ALLOW,
	WORD_DEFAULT
};

struct word {
	__u64 clauses; /* those that exist */
	__u8 kind;
	__u8 action;
	__u8 monitor;
	__u8 pad;
	__u16 group;
	__u16 rate; /* 1 + number in rates of the one that must be passed; 0 for none */
};

struct op_table {
	__u32 n_slots;
	__u32 n_subject; /* the first n_slots of these are about the subject */
	__u32 n_early; /* and this many need no path */
	__u32 n_words; /* 0: nothing judges this operation */
	__u64 need; /* bit per dimension that some slot reads */
	__u32 enforces; /* some word is enforced: without a verdict the operation is refused */
	__u32 rule_off; /* of its clauses' rules in rules */
	__u32 n_rated; /* words with a rate, the last of all */
	__u32 pad;
	__u64 rated[4]; /* a bit for each */
	__u64 all[4]; /* a bit for each word */
	struct slot slots[NUM_SLOTS];
	struct word words[NUM_OPWORDS];
};

struct row {
	__u64 sum[4];
	__u32 off[4]; /* where the words of sum[i] begin in words */
};

struct rate {
	__u64 id;
	__u64 window; /* microseconds */
	__u32 n;
	__u32 by; /* BY_* */
};

/* The hash of a string. */
struct set_string {
	__u64 lo, hi;
};

/* A prefix, or the mask of a length of prefixes. */
struct set_prefix {
	__u64 hi, lo; /* of the address, in host byte order */
	/* 1 + its length; an IPv4 prefix has 96 and more. 0 for none. An address that has a domain name in a network namespace: that one's inode << 32 | NAMED. */
	__u64 bits;
};

#define NAMED	    129
#define SET_MASKS   256
#define MAX_LENGTHS 129 /* of one family of addresses */
#define HAS_WHOLE   (1 << 0) /* there are sets of whole strings */
#define HAS_NAMES   (1 << 1)
#define HAS_DOMAINS (1 << 2) /* sets of addresses that have a domain name */
#define SETS_BYTES  8

/*
 * One generation. An array of two: the hook reads control.active once and uses that side throughout; the other side is the shadow's, if there is
 * one (control.shadow), or user space writes it through its mapping after a grace period. 4 MiB is the largest value of an array map on 5.15.
 */
struct tables {
	__u32 gen; /* never 0 once staged */
	__u32 aliases; /* a protected name leads through a symbolic link: files with one link are looked up too */
	__u64 subject_need; /* dimensions of the subject that some operation reads */
	struct automaton automata[NUM_AUTOMATA];
	struct op_table ops[NUM_JUDGED];
	struct row rows[NUM_ROWS];
	__u64 words[NUM_ROWWORDS];
	__u32 class_rows[NUM_CLASSROWS];
	__u16 accept[NUM_ALLSTATES];
	__u16 rules[NUM_CLAUSES]; /* by operation and clause */
	struct leaf leaves[NUM_ALLLEAVES];
	__u8 tails[NUM_TAILS + 8] __attribute__((aligned(8)));
	struct rate rates[NUM_RATES];
	__u32 set_slot; /* of set_strings and set_prefixes */
	__u32 set_kinds; /* HAS_* */
	__u32 set_masks6; /* where those of IPv6 begin; IPv4's begin at 0 */
	__u32 pad;
	/* Of all lengths of prefixes in sets; one with no bits is behind the last of each family. */
	struct set_prefix set_masks[SET_MASKS];
	/* For the next agent: of the Image, zero until it stands here whole, and of the names of its rules. */
	__u8 image[16];
	__u8 names[16];
	__u32 n_rules;
	__u32 pad2;
};

struct pool {
	__u16 cells[NUM_CELLS];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, NUM_SIDES);
	__type(key, __u32);
	__type(value, struct tables);
} sides SEC(".maps");

/* The transitions of all automata of a generation: at most 2 Mi cells, refused by the compiler beyond. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, NUM_SIDES);
	__type(key, __u32);
	__type(value, struct pool);
} pools SEC(".maps");

struct control {
	__u32 active; /* which side judges: the one word that activates a generation */
	__u32 selftest_tid; /* the thread whose next call of selftest_op is refused, to prove the rung; 0 for none */
	__u32 selftest_op;
	__u32 selftest_hits;
	__u32 rung; /* RUNG_LSM or RUNG_FMOD_RET: what the lsm programs are attached as */
	__u32 agent_dev; /* with agent_ino, the file of the agent's program: the next agent is that too */
	__u64 agent; /* its exec_id, 0 until it has one: a pid could be another's by now */
	__u64 agent_ino;
	__u64 clock; /* minutes of the week are counted from this many nanoseconds before boot */
	__u64 hooks; /* bit per operation that sched_process_exec and sys_exit judge: those on the kill-on-return rung */
	/* With a shadow, those of hooks that the active side, and those that the shadow does not judge there. */
	__u64 not_active;
	__u64 not_shadow;
	__u32 shadow; /* 1 + the side that judges beside the active one, without effect; 0: none does */
	__u32 made; /* 1: IPv4 and IPv6 sockets are judged when they are made (the cgroup rung), and not on return */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct control);
} controls SEC(".maps");

/*
 * When nothing is refused any more, in ns of CLOCK_MONOTONIC, 0 for never: the agent puts it off while it lives, where enforcement is to end some time after it.
 * Not of CLOCK_BOOTTIME: after the machine has slept it would be past before the agent can run. A word of its own, so that it is written at once.
 */
volatile __u64 release_at;

/* released is asked only where something would be refused. */
static __always_inline bool released(void)
{
	__u64 at = release_at;

	return at && bpf_ktime_get_ns() >= at;
}

/* What was matched, by side and rule. */
struct hit {
	__u64 hits;
	__u64 lost; /* of these, what could not be delivered; of the shadow, where it decided more strictly than the active side */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, (NUM_SIDES * NUM_RULES));
	__type(key, __u32);
	__type(value, struct hit);
} hits SEC(".maps");

/* The classes of decisions, strictest first: what decides is the first that is not empty. */
enum {
	DECIDED_ENFORCED,
	DECIDED_MONITOR,
	DECIDED_AUDIT,
	NUM_DECIDED
};

struct verdict {
	__u8 action[NUM_DECIDED]; /* 0: nothing of this class */
	__u8 n_rules; /* of rules */
	__u8 matched; /* clauses that hold, at most 255 */
	__u8 alias; /* 1 + number of the alias under which the enforced, monitored or audited action was decided; 0: the first name */
	__u8 pad[2];
	__u32 rule[NUM_DECIDED];
	__u32 rules[REC_RULES];
};

#define NO_RULE (~0U)

/*
 * What a verdict comes to, in one byte: 0 for nothing; the action that would be done if its rule were not only monitored; or
 * DONE and the action that is done. The stricter one is the greater number.
 */
#define DONE 8

/*
 * Working memory of one judgement. Hooks can be preempted between migrate_disable and migrate_enable, and the next task on the same
 * CPU can enter a hook too, so it is not per CPU: a few per CPU are claimed by compare-and-swap.
 * bytes holds the small dimensions (16 bytes each), then the record with its strings, then other names.
 */
#define BYTES	  32768
#define OFF_SMALL 0
#define OFF_REC	  1024
#define OFF_EXTRA \
	14336 /* behind three strings of a record: the shadow judges after the record is made */
#define OFF_NEW \
	OFF_EXTRA /* the new path; only process.exec has an extra name, and it has no new path */
#define OFF_TARGET (OFF_EXTRA + 4608)
#define OFF_NAME   (OFF_EXTRA + 5120)
#define OFF_ALT	   24576
#define OFF_TMP	   28672
#define MAX_COMPS  256 /* components and mounts of a path */

struct comp {
	__u64 name;
	__u32 len;
	__u32 pad;
};

/* What a hook judges, beside a socket: pavise.ActInfo says what an operation has of it. */
struct object {
	__u64 dentry;
	__u64 mnt; /* vfsmount; 0: the path within the file system */
	__u64 inode; /* 0: there is no file, or not yet */
	__u64 dentry2; /* the new path; 0: it stands at OFF_NEW, new_len long */
	__u64 mnt2;
	__u64 value;
	__u64 value2;
	__u64 target_exec_id;
	__u32 target_pid;
	__u32 target_uid;
	__u32 target_len; /* of the executable's path at OFF_TARGET */
	__u32 new_len;
	__u32 name_len; /* of the name at OFF_NAME */
	__u16 mode; /* of a file that is to be made */
	__u8 access;
	__u8 unsure; /* whether there is such a file already is not known: hold() */
};

/* Whose facts are those of the subject. */
enum who {
	WHO_CURRENT,
	WHO_GUEST, /* a process that does not run now: its part of procs stands in guests */
	WHO_UNKNOWN, /* any process: a rule that asks for one denies nothing, and allows */
};

struct scratch {
	__u32 busy;
	__u32 side;
	__u32 shadow; /* 1 + the side that judges next, as in control; 0 for none */
	__u32 shade; /* this is the shadow's judgement: nothing comes of it */
	__u32 was; /* and this is what the active side decided before it, */
	__u32 was_rule; /* by which rule */
	__u32 was_gen; /* of which generation */
	__u32 op;
	__u32 alias; /* of the name that is judged */
	__u32 rows[NUM_SLOTS]; /* by slot; 0 is every clause */
	/* Classes of the subject, where they do not stand in its identity: not yet, or it has none. */
	__u16 cls[NUM_AUTOMATA] __attribute__((aligned(8)));
	__u64 early[4]; /* the words that may hold after judge_early */
	__u64 left[4]; /* and after all slots, for one name */
	__u32 met; /* the group whose allow rule was met last */
	__u32 state; /* of the automaton that runs */
	__u32 in; /* what it has still to read: where it stands in bytes, */
	__u32 in_len; /* and how long it is */
	__u32 first; /* the automaton that is asked next */
	__u32 tail_in; /* what is left to compare with a tail: where it stands in bytes, */
	__u32 tail_at; /* where in tails, */
	__u32 tail_len; /* and how long it is */
	__u64 digest; /* of strings, as far as they are read */
	__u16 dim_off[NUM_DIMS];
	__u16 dim_len[NUM_DIMS]; /* over MAX_STRING: too long to judge exactly */
	struct verdict v;
	__u64 now; /* ns since boot, for rates and the time of day; 0 until it is asked for */
	__u64 counted[4]; /* words with a rate that were counted */
	__u64 over[4]; /* those of them that passed it; it says nothing of others */
	__u64 rated[4]; /* and those that are still to be judged */
	__u64 derived; /* dimensions that stand there already for the name that is judged */
	/* Lookups in sets. */
	__u64 sip[4];
	__u32 sip_pos;
	__u32 sip_left;
	struct set_string string;
	struct set_prefix prefix;
	/* The walk of path_build. */
	__u64 dentry;
	__u64 mnt;
	__u64 root;
	__u32 path_flags; /* PATH_* */
	__u32 n_comps; /* used of comps */
	__u32 path_pos;
	__u32 path_len; /* of the first name */
	__u32 canon_len; /* of the canonical one */
	__u32 extra_len; /* of the one at OFF_EXTRA, 0 for none */
	__u32 rung;
	__u32 rec_end; /* of the record, in bytes */
	/* For what no process does: whose facts are judged (enum who), where its task_struct is, and in which network namespace. */
	__u32 who;
	__u32 who_net;
	__u64 who_task;
	__u32 crowd; /* it is one of too many to be told one by one */
	__u32 sent; /* report() has sent a record */
	struct object obj;
	/* The walk of line_next. */
	__u64 task; /* the process that is next */
	__u32 line_len; /* how long the line is by now */
	__u32 line_from; /* where its ancestors begin */
	__u32 line_last; /* where the last of them stands */
	__u32 pad;
	struct comp comps[MAX_COMPS];
	__u8 bytes[BYTES + 4096 + 16];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 8); /* set by the loader: SCRATCH_PER_CPU for each possible CPU */
	__type(key, __u32);
	__type(value, struct scratch);
} scratches SEC(".maps");

#define SCRATCH_PER_CPU 4
const volatile __u32 num_scratches = 8;

static __always_inline struct scratch *scratch_at(__u32 i)
{
	return bpf_map_lookup_elem(&scratches, &i);
}

/* scratch_get claims working memory; -1 when all that it tried is in use. A function of its own: a caller is then verified once, and not for each turn here. */
__noinline int scratch_get(void)
{
	__u32 first = bpf_get_smp_processor_id() * SCRATCH_PER_CPU;

#pragma unroll
	for (int k = 0; k < 3 * SCRATCH_PER_CPU; k++) {
		__u32 i = first + k;
		struct scratch *s;

		if (i >= num_scratches)
			i -= num_scratches;
		s = scratch_at(i);
		if (!s)
			continue;
		if (__sync_val_compare_and_swap(&s->busy, 0, 1) == 0)
			return i;
	}
	return -1;
}

static __always_inline void scratch_put(struct scratch *s)
{
	__sync_lock_test_and_set(&s->busy, 0);
}

/* The side that judges, NULL when s is. */
static __always_inline struct tables *tables_of(struct scratch *s)
{
	__u32 side;

	if (!s)
		return NULL;
	side = s->side;
	return bpf_map_lookup_elem(&sides, &side);
}

static __always_inline struct pool *pool_of(struct scratch *s)
{
	__u32 side;

	if (!s)
		return NULL;
	side = s->side;
	return bpf_map_lookup_elem(&pools, &side);
}

/* BOUND masks a __u64 where the verifier sees it: clang likes to move a mask behind the arithmetic that it should have bounded. */
#define BOUND(x, mask) asm volatile("%0 &= %1" : "+r"(x) : "i"(mask))

/* FORGET makes clang read again what it needs of memory: of what it kept the verifier would follow each value on its own. */
#define FORGET() asm volatile("" ::: "memory")

/* at is the place of an offset in bytes. */
static __always_inline __u8 *at(struct scratch *s, __u64 off)
{
	BOUND(off, BYTES - 1);
	return &s->bytes[off];
}

static __always_inline __u32 popcount(__u64 x)
{
	x -= x >> 1 & 0x5555555555555555ULL;
	x = (x & 0x3333333333333333ULL) + (x >> 2 & 0x3333333333333333ULL);
	x = (x + (x >> 4)) & 0x0f0f0f0f0f0f0f0fULL;
	return x * 0x0101010101010101ULL >> 56;
}

/*
 * Strings are read in steps, so that the verifier walks some turns and not 4,095: CHUNK bytes where they are asked for, which is all of most, and
 * then PIECE by one function, STEPS of these by one more.
 */
#define CHUNK 64
#define PIECE 32
#define STEPS 8
#define LEAPS ((MAX_STRING + 1) / (PIECE * STEPS))

/* load64 loads 8 bytes at any address; by way of a parameter, or clang sees the alignment of the array and loads bytes. */
static __always_inline __u64 load64(const void *p)
{
	return *(const __u64 *)p;
}

static __always_inline void store64(void *p, __u64 v)
{
	*(__u64 *)p = v;
}

/*
 * run runs an automaton from the state in s->state over bytes[off, off+len), most bytes of it at most, and leaves the state there. Returns how many
 * bytes it read: fewer when it came to a leaf.
 */
static __always_inline __u32 run(struct scratch *s, struct pool *p, struct automaton *a, __u32 off,
				 __u64 len, __u64 most)
{
	const __u8 *in = at(s, off), *column = a->column;
	const void *cells = p->cells;
	__u64 base = a->cell_off, shift = (a->shift & 15) + 1, st = s->state, i;

	for (i = 0; i < most; i++) {
		__u64 cell;

		if (i >= len)
			break;
		/* Each state waits for the one before: what does not depend on it is done beside, and the offset is bounded by a branch, which is foretold. */
		cell = (base + column[in[i]]) * sizeof(__u16);
		asm volatile("" : "+r"(cell));
		cell += st << shift;
		if (cell > (NUM_CELLS - 1) * sizeof(__u16))
			break;
		st = *(const __u16 *)(cells + cell);
		asm volatile("" : "+r"(st)); /* or it tests the bit by way of a sign */
		if (st >= LEAF_BIT) {
			i++;
			break;
		}
	}
	s->state = st;
	return i;
}

/* step is run as a function of its own, for a string over CHUNK: s->in_len bytes at bytes[s->in], of which it takes what it has read. */
__noinline int step(__u32 si, __u32 ai)
{
	struct scratch *s = scratch_at(si);
	struct tables *t = tables_of(s);
	struct pool *p = pool_of(s);
	__u32 n;

	if (!s || !t || !p)
		return 0;
	n = run(s, p, &t->automata[ai & (NUM_AUTOMATA - 1)], s->in, PIECE, PIECE);
	s->in += n;
	s->in_len -= n;
	return 0;
}

/* steps is up to STEPS steps: 0 when no more than CHUNK is left, or a leaf was reached. */
__noinline int steps(__u32 si, __u32 ai)
{
	struct scratch *s = scratch_at(si);

	if (!s)
		return 0;
	for (int i = 0; i < STEPS; i++) {
		if (s->in_len <= CHUNK || s->state & LEAF_BIT)
			return 0;
		step(si, ai);
	}
	return 1;
}

/*
 * same compares up to most of the s->tail_len bytes at bytes[s->tail_in] with the tails of a side, which are zero-padded; 0 when they differ. What it
 * has still to do is kept in memory, where the verifier does not follow it.
 */
static __always_inline int same(struct scratch *s, struct tables *t, int most)
{
	__u64 x;

	for (int i = 0; i < most / 8; i++) {
		__u32 len = s->tail_len;

		if (!len)
			break;
		x = load64(at(s, s->tail_in));
		if (len < 8) {
			x &= (1ULL << ((len & 7) * 8)) - 1;
			s->tail_len = 8;
		}
		if (x != load64(&t->tails[s->tail_at & (NUM_TAILS - 1)]))
			return 0;
		s->tail_in += 8;
		s->tail_at += 8;
		s->tail_len -= 8;
	}
	return 1;
}

__noinline int same_more(__u32 si)
{
	struct scratch *s = scratch_at(si);
	struct tables *t = tables_of(s);

	return s && t ? same(s, t, CHUNK) : 0;
}

/* fits tells whether len bytes at bytes[off] can be what a leaf says, by their number. */
static __always_inline bool fits(struct scratch *s, struct leaf *lf, __u32 off, __u32 len)
{
	__u32 tlen = lf->tail_len;

	return len >= tlen &&
	       (len == tlen ||
		(lf->kind != LEAF_EXACT && (lf->kind != LEAF_UNDER || *at(s, off + tlen) == '/')));
}

/* leaf_class ends a reading in a leaf with a tail. */
__noinline int leaf_class(__u32 si, __u32 ai)
{
	struct scratch *s = scratch_at(si);
	struct tables *t = tables_of(s);
	struct automaton *a;
	struct leaf *lf;
	__u32 off, len;

	if (!s || !t)
		return 0;
	off = s->in;
	len = s->in_len;
	a = &t->automata[ai & (NUM_AUTOMATA - 1)];
	lf = &t->leaves[(a->leaf_off + (s->state & ~LEAF_BIT)) & (NUM_ALLLEAVES - 1)];
	if (!fits(s, lf, off, len))
		return lf->miss;
	s->tail_in = off;
	s->tail_at = a->tail_off + lf->tail_off;
	s->tail_len = lf->tail_len;
	if (!same(s, t, CHUNK))
		return lf->miss;
	for (int i = 1; i < (MAX_STRING + 1) / CHUNK; i++) {
		if (!s->tail_len)
			break;
		if (!same_more(si))
			return lf->miss;
	}
	return lf->match;
}

__noinline int derive(__u32 si, __u32 ai, __u32 off, __u32 len); /* derive.h */

/* classify runs an automaton over bytes[off, off+len) of a scratch and returns the class. */
__noinline int classify(__u32 si, __u32 ai, __u32 off, __u32 len)
{
	struct scratch *s = scratch_at(si);
	struct tables *t = tables_of(s);
	struct pool *p = pool_of(s);
	struct automaton *a;
	__u32 n = 0;
	__u64 left;

	if (!s || !t || !p)
		return 0;
	a = &t->automata[ai & (NUM_AUTOMATA - 1)];
	if (a->source) {
		derive(si, ai, off, len);
		off = s->dim_off[a->dim & (NUM_DIMS - 1)];
		len = s->dim_len[a->dim & (NUM_DIMS - 1)];
	}
	if (len > MAX_STRING)
		return a->overlong + (len == ANY_FACT);
	s->state = a->start;
	s->in_len = len;
	FORGET();
	if (s->in_len > CHUNK) { /* as memory: of len the verifier would know what follows */
		s->in = off;
		for (int i = 0; i < LEAPS; i++)
			if (!steps(si, ai))
				break;
		off = s->in;
		len = s->in_len;
	}
	left = len;
	BOUND(left, MAX_STRING);
	if (!(s->state & LEAF_BIT))
		n = run(s, p, a, off, left, CHUNK);
	if (s->state & LEAF_BIT) {
		/* The leaf that reads nothing more is the common one: no call for it. */
		struct leaf *lf =
			&t->leaves[(a->leaf_off + (s->state & ~LEAF_BIT)) & (NUM_ALLLEAVES - 1)];

		if (lf->kind == LEAF_ANY)
			return lf->match;
		s->in = off + n;
		s->in_len = left - n;
		return leaf_class(si, ai);
	}
	return t->accept[(a->accept_off + s->state) & (NUM_ALLSTATES - 1)];
}

/* meet takes the row of a slot's class into s->left; 0 when nothing is left. */
static __always_inline int meet(struct scratch *s, struct tables *t, struct op_table *ot,
				__u64 slot, __u64 class)
{
	struct row *r;
	__u64 left;
	__u32 ri;

	BOUND(class, 0xffff); /* however it was found, to the verifier it then looks alike */
	ri = t->class_rows[(ot->slots[slot].class_row + class) & (NUM_CLASSROWS - 1)];
	s->rows[slot] = ri;
	if (!ri)
		return 1;
	r = &t->rows[ri & (NUM_ROWS - 1)];
	left = s->left[0] &= r->sum[0];
	left |= s->left[1] &= r->sum[1];
	left |= s->left[2] &= r->sum[2];
	left |= s->left[3] &= r->sum[3];
	return left != 0;
}

/* class_of is the class of decisions that a word makes. */
static __always_inline __u32 class_of(struct word *wd)
{
	return wd->action == ACT_AUDIT ? DECIDED_AUDIT
	       : wd->monitor	       ? DECIDED_MONITOR
				       : DECIDED_ENFORCED;
}

/* meet_row is what is left of the clauses w of word q*64 + n by the row of a slot, where low has the n lowest bits set. */
static __always_inline __u64 meet_row(struct scratch *s, struct tables *t, __u32 slot, __u32 q,
				      __u64 low, __u64 w)
{
	__u32 ri = s->rows[slot];
	struct row *row = &t->rows[ri & (NUM_ROWS - 1)];

	if (ri)
		w &= t->words[(row->off[q] + popcount(row->sum[q] & low)) & (NUM_ROWWORDS - 1)];
	return w;
}

/*
 * tally_word judges word q*64 + n of the operation, where low has the n lowest bits set: judgement.word of policy/judge.go. Returns the word's rate
 * when it must be known first whether that is passed.
 */
__noinline int tally_word(__u32 si, __u32 q, __u64 low)
{
	struct scratch *s = scratch_at(si);
	__u32 wi, matched, rule, class;
	struct verdict *v;
	struct op_table *ot;
	struct tables *t;
	struct word *wd;
	__u64 w, clause;

	t = tables_of(s);
	if (!s || !t)
		return 0;
	q &= 3;
	v = &s->v;
	ot = &t->ops[s->op & (NUM_JUDGED - 1)];
	wi = q * 64 + popcount(low);
	wd = &ot->words[wi & (NUM_OPWORDS - 1)];
	if (wd->kind != WORD_EXPLICIT && s->alias)
		return 0;
	if (class_of(wd) == DECIDED_ENFORCED && wd->kind != WORD_ALLOW &&
	    wd->action <= v->action[DECIDED_ENFORCED])
		return 0;
	FORGET();
	w = wd->clauses;
#pragma unroll
	for (int i = 0; i < NUM_SLOTS; i++) {
		if (i >= ot->n_slots)
			break;
		w = meet_row(s, t, i, q, low, w);
	}
	if (!w)
		return 0;
	/* It is counted for the first name under which it holds; rated() asks, and comes again. */
	if (wd->rate && !(s->counted[q] & s->over[q] & (low + 1))) {
		if (s->counted[q] & (low + 1))
			return 0;
		s->counted[q] |= low + 1;
		return wd->rate;
	}
	if (wd->kind == WORD_ALLOW) {
		s->met = wd->group;
		return 0;
	}
	if (wd->kind == WORD_DEFAULT && s->met == wd->group)
		return 0;
	class = class_of(wd);
	clause = ot->rule_off + wi * 64 + popcount((w & -w) - 1);
	BOUND(clause, NUM_CLAUSES - 1);
	rule = t->rules[clause];
	if (wd->action > v->action[class]) {
		v->action[class] = wd->action;
		v->rule[class] = rule;
		if (class == DECIDED_ENFORCED || !v->action[DECIDED_ENFORCED])
			v->alias = s->alias;
	}
	matched = v->matched + popcount(w);
	v->matched = matched > 255 ? 255 : matched;
	for (int i = 0; i < REC_RULES; i++) {
		if (i >= v->n_rules)
			break;
		if (v->rules[i] == rule) {
			v->matched--;
			return 0;
		}
	}
	if (v->n_rules < REC_RULES) {
		v->rules[v->n_rules & (REC_RULES - 1)] = rule;
		v->n_rules++;
	}
	return 0;
}

#define TALLY 16

/* tally goes through the first TALLY words that are left of quarter q, lowest first; 0 when no word is left. */
__noinline int tally(__u32 si, __u32 q)
{
	struct scratch *s = scratch_at(si);

	if (!s)
		return 0;
	for (int k = 0; k < TALLY; k++) {
		__u64 m = s->left[q & 3];

		if (!m)
			return 0;
		s->left[q & 3] = m & (m - 1);
		tally_word(si, q, (m & -m) - 1);
	}
	return 1;
}

/* quick is classify without a call for what is usual: a string of up to most bytes that a hook gives. */
static __always_inline int quick(struct scratch *s, struct tables *t, struct pool *p, __u32 si,
				 __u32 ai, __u32 off, __u32 len, __u32 most)
{
	struct automaton *a = &t->automata[ai];
	struct leaf *lf;
	__u64 left;
	__u32 n = 0;

	if (len > a->last && len <= MAX_STRING) {
		off += len - a->last;
		len = a->last;
	}
	if (a->source || len > most)
		return classify(si, ai, off, len);
	left = len;
	BOUND(left, MAX_STRING);
	s->state = a->start;
	if (!(s->state & LEAF_BIT))
		n = run(s, p, a, off, left, most);
	if (!(s->state & LEAF_BIT))
		return t->accept[(a->accept_off + s->state) & (NUM_ALLSTATES - 1)];
	lf = &t->leaves[(a->leaf_off + (s->state & ~LEAF_BIT)) & (NUM_ALLLEAVES - 1)];
	if (lf->kind == LEAF_ANY)
		return lf->match;
	s->in = off + n;
	s->in_len = left - n;
	FORGET();
	if (lf->tail_len > CHUNK)
		return leaf_class(si, ai);
	if (!fits(s, lf, s->in, s->in_len))
		return lf->miss;
	s->tail_in = s->in;
	s->tail_at = a->tail_off + lf->tail_off;
	s->tail_len = lf->tail_len;
	return same(s, t, CHUNK) ? lf->match : lf->miss;
}

/* How many slots are asked without a call, of those that read up to so many bytes. */
#define QUICK 2

/* slot_class is the class of the operation's slot i; what is about the name is read at [off, off+len). */
static __always_inline int slot_class(struct scratch *s, struct tables *t, struct pool *p, __u32 si,
				      __u32 ai, __u32 off, __u32 len, __u32 most)
{
	__u32 dim = t->automata[ai].dim & (NUM_DIMS - 1);

	if (!(t->automata[ai].flags & AUTOMATON_NAMED)) {
		off = s->dim_off[dim];
		len = s->dim_len[dim];
	}
	return most ? quick(s, t, p, si, ai, off, len, most) : classify(si, ai, off, len);
}

/* meet_slots asks the slots from first to before last for the name at [off, off+len); 0 when nothing is left. */
static __always_inline int meet_slots(struct scratch *s, __u32 si, struct tables *t,
				      struct op_table *ot, __u32 first, __u32 last, __u32 off,
				      __u32 len, __u32 most)
{
	struct pool *p = pool_of(s);

	if (!p)
		return 0;
	/* Not a loop: in one the verifier keeps too few states to see that turns are alike. */
#pragma unroll
	for (int i = 0; i < NUM_SLOTS; i++) {
		__u64 slot = first + i;
		__u32 ai;

		if (slot >= last)
			break;
		BOUND(slot, NUM_SLOTS - 1);
		asm volatile(""
			     : "+r"(t), "+r"(p),
			       "+r"(s)); /* or clang keeps the places of its tables on the stack */
		ai = ot->slots[slot].automaton & (NUM_AUTOMATA - 1);
		if (!meet(s, t, ot, slot,
			  slot_class(s, t, p, si, ai, off, len, i < QUICK ? most : 0)))
			return 0;
	}
	return 1;
}

__noinline int rated(__u32 si, __u32 q); /* rate.h */

/* set_apart takes the words with a rate out of those that are left: they are the last, and asked when all others have been. */
__noinline int set_apart(__u32 si)
{
	struct scratch *s = scratch_at(si);
	struct tables *t = tables_of(s);
	struct op_table *ot;

	if (!s || !t)
		return 0;
	ot = &t->ops[s->op & (NUM_JUDGED - 1)];
	for (int q = 0; q < 4; q++) {
		s->rated[q] = s->left[q] & ot->rated[q];
		s->left[q] &= ~ot->rated[q];
	}
	return 0;
}

/* judge completes a judgement that judge_early began, for the name at [off, off+len); alias is 0 for the first name. */
__noinline int judge(__u32 si, __u32 off, __u32 len, __u32 alias)
{
	struct scratch *s = scratch_at(si);
	struct op_table *ot;
	struct tables *t;

	t = tables_of(s);
	if (!s || !t)
		return 0;
	ot = &t->ops[s->op & (NUM_JUDGED - 1)];
	s->alias = alias;
	s->derived = 0;
	s->left[0] = s->early[0];
	s->left[1] = s->early[1];
	s->left[2] = s->early[2];
	s->left[3] = s->early[3];
	if (!meet_slots(s, si, t, ot, ot->n_early, ot->n_slots, off, len, CHUNK))
		return 0;
	if (ot->n_rated)
		set_apart(si);
	for (int q = 0; q < 4; q++) {
		/* Mostly there is one word, and no call needed to find it. */
		for (int k = 0; k < 4; k++) {
			__u64 m = s->left[q], low = (m & -m) - 1, w, slot = ot->n_early;

			if (!m)
				break;
			s->left[q] = m & (m - 1);
			/* Clauses that share a word mostly differ in how they name the file. */
			w = -1;
			asm volatile("" : "+r"(t), "+r"(s)); /* as in meet_slots */
			BOUND(slot, 7);
#pragma unroll
			for (int i = 0; i < 2; i++)
				w = meet_row(s, t, slot + i, q, low, w);
			if (w)
				tally_word(si, q, low);
		}
		for (int k = 0; k < 64 / TALLY && s->left[q]; k++)
			if (!tally(si, q))
				break;
	}
	for (int q = 0; q < 4 && ot->n_rated; q++)
		for (int i = 0; i < 64 / RATED; i++)
			if (!rated(si, q))
				break;
	return 0;
}

/* now is the time of this judgement. */
static __always_inline __u64 now_of(struct scratch *s)
{
	if (!s->now)
		s->now = bpf_ktime_get_boot_ns();
	return s->now;
}

/* decision is what a verdict comes to. A rung that can only kill does not deny. */
static __always_inline __u32 decision(struct verdict *v, __u32 rung)
{
	__u32 action = v->action[DECIDED_ENFORCED];

	if (!action)
		return v->action[DECIDED_MONITOR];
	return rung == RUNG_KILL && action == ACT_DENY ? action : DONE | action;
}

/* decided is the class that decides, NUM_DECIDED when none does. */
static __always_inline __u32 decided(struct verdict *v)
{
	if (v->action[DECIDED_ENFORCED])
		return DECIDED_ENFORCED;
	if (v->action[DECIDED_MONITOR])
		return DECIDED_MONITOR;
	return v->action[DECIDED_AUDIT] ? DECIDED_AUDIT : NUM_DECIDED;
}

/* begin makes working memory ready to judge by what control says now. */
static __always_inline void begin(struct scratch *s, struct control *c)
{
	s->side = c->active;
	s->shade = 0;
	s->was = 0;
	s->shadow = c->shadow;
	if (s->shadow)
		__builtin_memset(&s->v, 0,
				 sizeof(s->v)); /* also where nothing is judged before turn */
}

/* settle puts the deciding rule first, as Judge does at its end, and ends the list with NO_RULE. */
static __always_inline void settle(struct verdict *v, __u32 class)
{
	__u32 rule;

	for (int i = 0; i < REC_RULES; i++)
		if (i >= v->n_rules)
			v->rules[i] = NO_RULE;
	if (class >= NUM_DECIDED)
		return;
	rule = v->rule[class];
	for (int i = 0; i < REC_RULES; i++)
		if (v->rules[i] == rule)
			v->rules[i] = v->rules[0];
	v->rules[0] = rule;
}

static __always_inline void set_dim(struct scratch *s, __u32 dim, __u32 off, __u32 len)
{
	s->dim_off[dim] = off;
	s->dim_len[dim] = len;
}

static __always_inline void set_be32(struct scratch *s, __u32 dim, __u32 v)
{
	*(__u32 *)&s->bytes[OFF_SMALL + dim * 16] = __builtin_bswap32(v);
	set_dim(s, dim, OFF_SMALL + dim * 16, 4);
}

static __always_inline void set_be16(struct scratch *s, __u32 dim, __u16 v)
{
	*(__u16 *)&s->bytes[OFF_SMALL + dim * 16] = __builtin_bswap16(v);
	set_dim(s, dim, OFF_SMALL + dim * 16, 2);
}

static __always_inline void set_u8(struct scratch *s, __u32 dim, __u8 v)
{
	s->bytes[OFF_SMALL + dim * 16] = v;
	set_dim(s, dim, OFF_SMALL + dim * 16, 1);
}

#endif
