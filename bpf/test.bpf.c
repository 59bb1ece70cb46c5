//go:build ignore
/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Programs that Program.Run calls, on any machine and without a hook: the engine with given facts (compared with policy.Image.Judge), the
 * engine on a real file, timed, and the identity of a file as the kernel sees it. And one for a hook, which tells how often the kernel runs a program there.
 */

#define TEST_BYTES 8192

struct test_judge {
	__u32 op;
	__u32 side;
	__u32 n_alias;
	__u32 shadow; /* as in control: then judges, beside side */
	__u16 off[NUM_DIMS];
	__u16 len[NUM_DIMS];
	__u16 alias_off[4];
	__u16 alias_len[4];
	__u64 now;
	struct verdict out; /* the shadow's, if there is one */
	__u32 turned; /* it judged, */
	__u32 was; /* and this is what it came to by side */
	__u8 bytes[TEST_BYTES];
};

/* What a test gives and gets: one at a time. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct test_judge);
} test_judges SEC(".maps");

/* judge_given judges by s->side, with the facts of a test_judge. */
__noinline int judge_given(__u32 si)
{
	__u32 zero = 0;
	struct test_judge *in = bpf_map_lookup_elem(&test_judges, &zero);
	struct proc *p = bpf_task_storage_get(&procs, bpf_get_current_task_btf(), 0, 0);
	struct scratch *s = scratch_at(si);
	struct tables *t = tables_of(s);

	if (!in || !p || !s || !t)
		return 0;
	/* Give the caller the classes of the given facts, as subject() would have. */
	s->now = in->now;
	subject_classes(s, si, ~0ULL);
	__builtin_memcpy(p->cls, s->cls, sizeof(p->cls));
	if (judge_early_with(si, in->op, AS_THEY_ARE)) {
		judge(si, s->dim_off[DIM_PATH], s->dim_len[DIM_PATH], 0);
		for (int n = 0; n < 4; n++) {
			if (n >= in->n_alias ||
			    !NEED(t->ops[s->op & (NUM_JUDGED - 1)].need, DIM_PATH))
				break;
			judge(si, OFF_REC + in->alias_off[n], in->alias_len[n], 1 + n);
		}
	}
	p->gen = 0; /* nor are they the caller's after this */
	return 1;
}

SEC("syscall")
int run_judge(void *ctx)
{
	__u32 zero = 0;
	struct test_judge *in = bpf_map_lookup_elem(&test_judges, &zero);
	struct scratch *s;
	int si;

	if (!in || !bpf_task_storage_get(&procs, bpf_get_current_task_btf(), 0,
					 BPF_LOCAL_STORAGE_GET_F_CREATE))
		return 1;
	si = scratch_get();
	if (si < 0)
		return 1;
	s = scratch_at(si);
	if (!s)
		return 1;
	for (int d = 0; d < NUM_DIMS; d++)
		set_dim(s, d, OFF_REC + in->off[d], in->len[d]);
	bpf_probe_read_kernel(&s->bytes[OFF_REC], TEST_BYTES, in->bytes);
	s->side = in->side;
	s->shadow = in->shadow;
	s->shade = 0;
	s->was = 0;
	s->rung = RUNG_LSM;
	if (!judge_given(si))
		return 2;
	in->turned = s->shadow && turn(si, in->op);
	if (in->turned) {
		judge_given(si);
		turn_back();
	}
	in->was = s->was;
	settle(&s->v, decided(&s->v));
	in->out = s->v;
	scratch_put(s);
	return 0;
}

/* judge_connect_once is what lsm/socket_connect does, to the address in openeds, short of reporting: its cost is the verdict's (make bench). */
__noinline int judge_connect_once(__u32 si, __u64 sk)
{
	__u32 zero = 0;
	struct opened *in = bpf_map_lookup_elem(&openeds, &zero);
	struct scratch *s = scratch_at(si);
	struct rec_net *r;

	if (!s || !in)
		return 0;
	r = net_rec(s);
	put_sk(s, si, r, (void *)sk, false);
	if (!put_addr(s, r, in->addr, in->addr_len, true))
		return 0;
	return verdict_net(s, si, OP_CONNECT, true);
}

static __always_inline __u32 action_of(struct verdict *v)
{
	__u32 class = decided(v);

	return class < NUM_DECIDED ? v->action[class] : ACT_NONE;
}

/*
 * timed judges an open file, or a socket that is to connect, in->count times, each by the function that is its hook's but for the report, and says how long
 * it took. Nothing is reported, and nothing acted on.
 */
static __always_inline int timed(__u32 op)
{
	__u32 zero = 0;
	struct opened *in = bpf_map_lookup_elem(&openeds, &zero);
	struct control *c = ctl();
	struct socket *sock;
	struct scratch *s;
	struct file *f;
	__u64 start, object;
	int si;

	if (!in || !c)
		return 1;
	f = file_of(bpf_get_current_task_btf(), in->fd);
	if (!f)
		return 1;
	object = (__u64)f;
	if (op == OP_CONNECT) {
		if ((BPF_CORE_READ(f, f_inode, i_mode) & S_IFMT) != S_IFSOCK)
			return 1;
		sock = BPF_CORE_READ(f, private_data);
		object = (__u64)BPF_CORE_READ(sock, sk);
	}
	si = scratch_get();
	if (si < 0)
		return 2;
	s = scratch_at(si);
	if (!s)
		return 2;
	begin(s, c);
	bpf_task_storage_get(&procs, bpf_get_current_task_btf(), 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
	start = bpf_ktime_get_ns();
	for (int i = 0; i < 4096; i++) {
		if (i >= in->count)
			break;
		if (op == OP_OPEN)
			judge_open_once(si, object);
		else if (op == OP_EXEC)
			judge_exec_once(si, object);
		else
			judge_connect_once(si, object);
	}
	in->ns = bpf_ktime_get_ns() - start;
	in->action = action_of(&s->v);
	scratch_put(s);
	return 0;
}

SEC("syscall")
int run_open(void *ctx)
{
	return timed(OP_OPEN);
}

SEC("syscall")
int run_exec(void *ctx)
{
	return timed(OP_EXEC);
}

SEC("syscall")
int run_connect(void *ctx)
{
	return timed(OP_CONNECT);
}

/* judge_open_both is judge_open_once by the side that control names, and then by the shadow. */
__noinline int judge_open_both(__u32 si, __u64 file, __u32 then)
{
	struct scratch *s = scratch_at(si);
	struct file *f = (void *)file;
	struct control *c = ctl();
	int ret;

	if (!s || !c)
		return 0;
	if (!then)
		begin(s, c);
	else if (!turn(si, OP_OPEN))
		return 0;
	s->extra_len = 0;
	set_open(s, f, access_of(READ(f, f_mode), READ(f, f_flags)));
	ret = verdict_file(s, si, OP_OPEN, true);
	if (then)
		turn_back();
	return ret;
}

/* run_shadow is run_open with the shadow's judgement after each, where there is a shadow. */
SEC("syscall")
int run_shadow(void *ctx)
{
	__u32 zero = 0;
	struct opened *in = bpf_map_lookup_elem(&openeds, &zero);
	struct scratch *s;
	struct file *f;
	__u64 start;
	int si;

	if (!in)
		return 1;
	f = file_of(bpf_get_current_task_btf(), in->fd);
	if (!f)
		return 1;
	si = scratch_get();
	if (si < 0)
		return 2;
	s = scratch_at(si);
	if (!s)
		return 2;
	s->rung = RUNG_LSM;
	bpf_task_storage_get(&procs, bpf_get_current_task_btf(), 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
	start = bpf_ktime_get_ns();
	for (int i = 0; i < 512; i++) {
		if (i >= in->count)
			break;
		judge_open_both(si, (__u64)f, 0);
		if (s->shadow)
			judge_open_both(si, (__u64)f, 1);
	}
	in->ns = bpf_ktime_get_ns() - start;
	in->action = action_of(&s->v);
	scratch_put(s);
	return 0;
}

__u32 test_netns;
__u64 test_destroyed; /* sockets of TCP in that network namespace whose end a program was run for */

SEC("tp_btf/tcp_destroy_sock")
int BPF_PROG(test_destroy, struct sock *sk)
{
	if (flow_netns(sk) == test_netns)
		__sync_fetch_and_add(&test_destroyed, 1);
	return 0;
}
