package enforce

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/pavise-project/pavise"
	"github.com/pavise-project/pavise/bpf"
	"github.com/pavise-project/pavise/internal/kerntest"
	"github.com/pavise-project/pavise/policy"
)

// able is a machine that can do everything.
func able() *policy.Machine {
	m := &policy.Machine{
		LookupUser:  func(string) (uint32, error) { return 1000, nil },
		LookupGroup: func(string) (uint32, error) { return 1000, nil },
	}
	for op := range m.Ops {
		m.Ops[op] = policy.Support{Rung: pavise.RungLSM, Deny: true, Kill: true}
	}
	return m
}

func compile(t testing.TB, m *policy.Machine, src string) *policy.Image {
	t.Helper()
	ps, err := policy.ParseWith("test.yaml", []byte(src), testSets)
	if err != nil {
		t.Fatalf("%v\n%s", err, src)
	}
	img, _, err := policy.Compile(ps, m)
	if err != nil {
		t.Fatalf("%v\n%s", err, src)
	}
	return img
}

// image makes policies on op and compiles them. Some that it makes ask of more different facts than an operation can consult: those are refused, and others taken.
func (g gen) image(t testing.TB, op pavise.Op) (string, *policy.Image) {
	t.Helper()
	for range 100 {
		src := g.policies(op)
		ps, err := policy.ParseWith("test.yaml", []byte(src), testSets)
		if err != nil {
			t.Fatalf("%v\n%s", err, src)
		}
		img, _, err := policy.Compile(ps, able())
		switch {
		case err == nil:
			return src, img
		case !strings.Contains(err.Error(), fmt.Sprintf("automata of %d", policy.MaxSlots)):
			t.Fatalf("%v\n%s", err, src)
		}
	}
	t.Fatal("none of a hundred random sets of policies fits")
	return "", nil
}

// load makes a Kernel that goes with the test.
func load(t testing.TB) *bpf.Kernel {
	t.Helper()
	k, err := bpf.Load()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := k.Close(); err != nil {
			t.Error(err)
		}
	})
	return k
}

// judged asks the kernel's engine.
func judge(t testing.TB, k *bpf.Kernel, op pavise.Op, f *policy.Facts) policy.Verdict {
	t.Helper()
	v, _ := judgeWith(t, k, bpf.KernelTestJudge{Op: uint32(op)}, f)
	return v
}

// judgeWith asks as in says, which is returned with the answer: the verdict is the shadow's where one judged.
func judgeWith(t testing.TB, k *bpf.Kernel, in bpf.KernelTestJudge, f *policy.Facts) (policy.Verdict, bpf.KernelTestJudge) {
	t.Helper()
	in.N_alias, in.Now = uint32(len(f.Aliases)), f.Now
	at := uint16(0)
	put := func(b []byte) uint16 {
		off := at
		copy(in.Bytes[at:], b)
		at += uint16((len(b) + 7) &^ 7)
		return off
	}
	for d, v := range f.Values {
		in.Off[d], in.Len[d] = put(v), uint16(len(v))
	}
	for i, a := range f.Aliases {
		in.AliasOff[i], in.AliasLen[i] = put(a), uint16(len(a))
	}
	m := k.Map("test_judges")
	if err := m.Put(uint32(0), &in); err != nil {
		t.Fatal(err)
	}
	if err := k.Call("run_judge"); err != nil {
		t.Fatal(err)
	}
	if err := m.Lookup(uint32(0), &in); err != nil {
		t.Fatal(err)
	}
	v := policy.Verdict{Rule: policy.NoRule, Rules: in.Out.Rules, Matched: int(in.Out.Matched)}
	for class, a := range in.Out.Action {
		if a != 0 {
			v.Action, v.Monitor, v.Rule = pavise.Action(a), class == 1, in.Out.Rule[class]
			break
		}
	}
	return v, in
}

// gen makes random policies and facts from few words, so that they meet.
type gen struct{ *rand.Rand }

func (g gen) pick(s ...string) string { return s[g.IntN(len(s))] }

func (g gen) path() string {
	var b strings.Builder
	for range 1 + g.IntN(4) {
		b.WriteString("/" + g.pick("a", "ab", "etc", "shadow", "usr", "bin", "x.conf", "long-component-of-a-path", "é"))
	}
	return b.String()
}

func (g gen) atom(op pavise.Op) string {
	file := func(f string) string {
		switch g.IntN(8) {
		case 7:
			if !strings.HasPrefix(f, "p.") { // ancestors are looked up in none
				return fmt.Sprintf("%s.inSet(%q)", f, g.pick("paths0", "paths1", "paths2"))
			}
			fallthrough
		case 0:
			return fmt.Sprintf("%s == %q", f, g.path())
		case 1:
			return fmt.Sprintf("%s.under(%q)", f, g.path())
		case 2:
			return fmt.Sprintf("%s.glob(%q)", f, g.path()+g.pick("*", "/**", "/*", "/?", "/{a,ab}*"))
		case 3:
			return fmt.Sprintf("%s.glob(%q)", f, "/**/"+g.pick("a", "*.conf", "shadow"))
		case 4:
			return fmt.Sprintf("%s.startsWith(%q)", f, g.path())
		case 5:
			return fmt.Sprintf("%s.endsWith(%q)", f, g.pick("a", "/a", "conf"))
		}
		return fmt.Sprintf("%s.contains(%q)", f, g.pick("a", "etc/s", "//"))
	}
	subject := []func() string{
		func() string { return file("process.exe.path") },
		func() string { return fmt.Sprintf("process.user.id %s %d", g.pick("==", "!=", "<", ">="), g.IntN(4)) },
		func() string { return "process.exe.memfd" },
		func() string { return `"CAP_SYS_ADMIN" in process.caps` },
		func() string { return fmt.Sprintf("process.exe.name == %q", g.pick("a", "bin", "shadow")) },
		func() string {
			return fmt.Sprintf("process.args.exists(a, a%s && a != %q)", g.pick(` == "-i"`, `.startsWith("--x")`, `.contains("x")`, `.endsWith("x")`), g.pick("-i", "--x"))
		},
		func() string {
			return fmt.Sprintf("process.args[%d] %s %q", g.IntN(3), g.pick("==", "!="), g.pick("-i", "--x", ""))
		},
		func() string { return fmt.Sprintf("process.args.size() %s %d", g.pick("==", "<", ">="), g.IntN(4)) },
		func() string {
			return fmt.Sprintf("process.cmdline%s", g.pick(` == "-i --x"`, `.contains("x -")`, `.startsWith("-i ")`, `.endsWith(" x")`))
		},
		func() string { return fmt.Sprintf("process.ancestors.exists(p, %s)", file("p.exe.path")) },
		func() string { return fmt.Sprintf("process.ancestors.all(p, p.exe.name != %q)", g.pick("a", "bin")) },
		func() string { return "process.ns." + g.pick("mnt", "pid", "net", "ipc") + ".host" },
		func() string { return fmt.Sprintf("process.real_%s.id == %d", g.pick("user", "group"), g.IntN(3)) },
		func() string { return "process.exe." + g.pick("setuid", "setgid", "on_root") },
		func() string { return fmt.Sprintf("process.exe.name.inSet(%q)", g.pick("names0", "names1")) },
		func() string { return fmt.Sprintf("time.hour %s %d", g.pick("==", "<", ">="), g.IntN(24)) },
		func() string { return fmt.Sprintf("time.day %s %q", g.pick("==", "!="), g.pick("mon", "thu", "sun")) },
	}
	object := []func() string{func() string { return file("file.path") }, func() string { return "file.access.write" }, func() string { return fmt.Sprintf("file.owner.id == %d", g.IntN(3)) },
		func() string { return fmt.Sprintf("file.name.inSet(%q)", g.pick("names0", "names1")) },
	}
	if op == pavise.OpConnect {
		object = []func() string{
			func() string {
				return fmt.Sprintf("net.remote.address.within(%q)", g.pick("10.0.0.0/8", "10.0.0.0/15", "fd00::/9", "0.0.0.0/0", "::/0", "10.1.2.3/32"))
			},
			func() string {
				return fmt.Sprintf("net.remote.address.inSet(%q)", g.pick("prefixes0", "prefixes1"))
			},
			func() string {
				return fmt.Sprintf("net.remote.port %s %d", g.pick("==", "<", ">=", "!="), g.IntN(5)*255)
			},
			func() string { return fmt.Sprintf("net.protocol == %q", g.pick("tcp", "udp")) },
			func() string { return file("net.remote.path") },
		}
	}
	if g.IntN(3) == 0 {
		return subject[g.IntN(len(subject))]()
	}
	return object[g.IntN(len(object))]()
}

func (g gen) cond(op pavise.Op, depth int) string {
	if depth == 0 || g.IntN(3) == 0 {
		return g.atom(op)
	}
	switch g.IntN(5) {
	case 0, 1:
		return fmt.Sprintf("(%s && %s)", g.cond(op, depth-1), g.cond(op, depth-1))
	case 2, 3:
		return fmt.Sprintf("(%s || %s)", g.cond(op, depth-1), g.cond(op, depth-1))
	}
	return fmt.Sprintf("!(%s)", g.cond(op, depth-1))
}

func (g gen) policies(op pavise.Op) string {
	var b strings.Builder
	for p := range 1 + g.IntN(4) {
		fmt.Fprintf(&b, "---\napiVersion: pavise.dev/v1alpha1\nkind: Policy\nmetadata: {name: p%d}\nspec:\n  mode: %s\n", p, g.pick("enforce", "monitor"))
		if g.IntN(2) == 0 {
			fmt.Fprintf(&b, "  subject: %s\n", strconv.Quote(g.pick("process.user.id < 2", "process.exe.path.under(\"/usr\")", "true")))
		}
		allow := g.IntN(2) == 0
		if allow {
			fmt.Fprintf(&b, "  default: {%s: deny}\n", op)
		}
		b.WriteString("  rules:\n")
		for r := range 1 + g.IntN(6) {
			actions := []string{"deny", "kill", "audit"}
			if allow {
				actions = append(actions, "allow", "allow")
			}
			action, cond := g.pick(actions...), g.cond(op, 2)
			if action != "allow" && g.IntN(4) == 0 {
				cond += fmt.Sprintf(" && rate.%s(%q) > %d", g.pick("process", "user", "container"), g.pick("100ms", "10s", "24h"), g.IntN(4))
			}
			fmt.Fprintf(&b, "  - {name: r%d, on: [%s], action: %s, when: %s}\n", r, op, action, strconv.Quote(cond))
		}
	}
	return b.String()
}

func (g gen) facts() *policy.Facts {
	f := new(policy.Facts)
	be := func(n int, v uint32) []byte {
		b := []byte{byte(v >> 24), byte(v >> 16), byte(v >> 8), byte(v)}
		return b[4-n:]
	}
	name := func() []byte {
		switch g.IntN(12) {
		case 0:
			return nil
		case 1:
			return []byte("/")
		case 2: // too long to judge
			return bytes.Repeat([]byte("/a"), 2048)
		case 3:
			return []byte(g.path() + strings.Repeat("/long-component-of-a-path", g.IntN(20)))
		}
		return []byte(g.path())
	}
	f.Now = uint64(g.IntN(3))*3*24*uint64(time.Hour) + uint64(g.IntN(20))*uint64(5*time.Second) + uint64(1+g.IntN(1000))
	f.Values[policy.DimTime] = be(2, uint32(f.Now/uint64(time.Minute)%10080))
	f.Values[policy.DimExe] = name()
	f.Values[policy.DimPath] = name()
	f.Values[policy.DimUID] = be(4, uint32(g.IntN(4)))
	f.Values[policy.DimOwner] = be(4, uint32(g.IntN(3)))
	f.Values[policy.DimCaps] = []byte{0, 0, 0, 0, 0, byte(g.IntN(2)) << 5, 0, 0}
	f.Values[policy.DimProcFlags] = []byte{byte(g.IntN(256))}
	f.Values[policy.DimNS] = []byte{byte(g.IntN(128))}
	f.Values[policy.DimRealUID], f.Values[policy.DimRealGID] = be(4, uint32(g.IntN(3))), be(4, uint32(g.IntN(3)))
	for range g.IntN(4) {
		f.Values[policy.DimArgs] = append(f.Values[policy.DimArgs], g.pick("-i", "--x", "--xx", "", "x", "x -i")+"\x00"...)
	}
	for range g.IntN(4) {
		f.Values[policy.DimAncestors] = append(f.Values[policy.DimAncestors], g.path()+"\x00"...)
	}
	if g.IntN(20) == 0 { // too long to judge
		f.Values[policy.DimArgs] = bytes.Repeat([]byte("x"), policy.MaxString+1)
	}
	f.Values[policy.DimAccess] = []byte{byte(1 + g.IntN(63))}
	if g.IntN(4) > 0 {
		f.Values[policy.DimRemoteAddr] = append([]byte{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff}, 10, byte(g.IntN(3)), 2, byte(g.IntN(4)))
		f.Values[policy.DimRemotePort] = be(2, uint32(g.IntN(5)*255+g.IntN(2)))
		f.Values[policy.DimSocket] = []byte{2, 1, []byte{6, 17}[g.IntN(2)]}
	} else {
		f.Values[policy.DimSocket] = []byte{1, 1, 0}
		f.Values[policy.DimRemotePath] = name()
	}
	for range g.IntN(3) {
		if len(f.Values[policy.DimPath]) < 4000 && len(f.Values[policy.DimExe]) < 4000 {
			f.Aliases = append(f.Aliases, []byte(g.path()))
		}
	}
	size := 0
	for _, v := range f.Values {
		size += len(v) + 8
	}
	if size > 8000 {
		return g.facts()
	}
	return f
}

// TestKernelJudge compares the kernel's engine with Image.Judge, which policy's tests compare with a plain evaluation of the rules: random
// policies, staged as Apply stages them, and random facts.
func TestKernelJudge(t *testing.T) {
	kerntest.Require(t, kerntest.Root, kerntest.Syscall)
	k := load(t)
	tables, pool, err := k.Side(0, policy.MaxCells)
	if err != nil {
		t.Fatal(err)
	}
	seed := uint64(os.Getpid())
	if s := os.Getenv("PAVISE_SEED"); s != "" {
		seed, _ = strconv.ParseUint(s, 10, 64)
	}
	g := gen{rand.New(rand.NewPCG(seed, 1))}
	images, cases := 600, 100
	if os.Getenv("PAVISE_VM") != "" {
		images, cases = 60, 40
	}
	var sets sets
	var rates policy.Rates
	counts, err := k.NewInner("rate_counts", rateCounts)
	must(t, err)
	must(t, k.SetInner("rate_counts", 0, counts))
	verdicts := map[string]int{}
	for i := range images {
		op := []pavise.Op{pavise.OpOpen, pavise.OpExec, pavise.OpConnect}[i%3]
		src, img := g.image(t, op)
		if err := errors.Join(stage(tables, pool, img, uint32(i+1)), sets.stage(k, tables, 0, img)); err != nil {
			t.Fatal(err)
		}
		for range cases {
			f := g.facts()
			f.Rates = &rates
			got, want := judge(t, k, op, f), img.Judge(op, f)
			verdicts[fmt.Sprint(want.Action, want.Monitor)]++
			if got != want {
				t.Fatalf("seed %d: the kernel says %+v, Judge %+v\nfacts %q, aliases %q, at %d\n%s", seed, got, want, f.Values, f.Aliases, f.Now, src)
			}
		}
	}
	t.Logf("seed %d: %d cases, verdicts %v", seed, images*cases, verdicts)
	if len(verdicts) < 6 {
		t.Errorf("only the verdicts %v came up", verdicts)
	}
}

// TestKernelJudgeBroken shows that the comparison can fail: an engine whose tables have one bit turned gives another verdict somewhere.
func TestKernelJudgeBroken(t *testing.T) {
	kerntest.Require(t, kerntest.Root, kerntest.Syscall)
	k := load(t)
	g := gen{rand.New(rand.NewPCG(1, 1))}
	img := compile(t, able(), `{apiVersion: pavise.dev/v1alpha1, kind: Policy, metadata: {name: p}, spec: {mode: enforce, rules: [{name: r, on: [file.open], action: deny, when: 'file.path.under("/etc") && file.access.write'}]}}`)
	tables, pool, err := k.Side(0, policy.MaxCells)
	if err != nil {
		t.Fatal(err)
	}
	if err := stage(tables, pool, img, 1); err != nil {
		t.Fatal(err)
	}
	tables.Ops[pavise.OpOpen].Words[0].Clauses ^= 1
	for range 10000 {
		f := g.facts()
		if judge(t, k, pavise.OpOpen, f) != img.Judge(pavise.OpOpen, f) {
			return
		}
	}
	t.Error("a broken engine was not noticed")
}
