package enforce

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/pavise-project/pavise"
	"github.com/pavise-project/pavise/bpf"
	"github.com/pavise-project/pavise/internal/kerntest"
	"github.com/pavise-project/pavise/policy"
)

// testSets are the sets of random policies, of the words of gen.
func testSets(file string) ([]byte, error) {
	g := gen{rand.New(rand.NewPCG(uint64(len(file))<<8|uint64(file[len(file)-1]), 7))}
	var b strings.Builder
	kind := strings.TrimRight(file, "0123456789")
	n := 300
	if kind == "prefixes" { // few, as there are few addresses
		n = 4
	}
	for range n {
		switch kind {
		case "paths":
			fmt.Fprintln(&b, g.path()+strings.Repeat("/long-component-of-a-path", g.IntN(2)*g.IntN(20)))
		case "names":
			fmt.Fprintln(&b, g.pick("a", "shadow", "x.conf", "long-component-of-a-path", strings.Repeat("n", 1+g.IntN(255))))
		case "prefixes":
			fmt.Fprintln(&b, g.pick(fmt.Sprintf("10.%d.2.%d", g.IntN(3), g.IntN(4)), fmt.Sprintf("10.%d.0.0/16", g.IntN(9)),
				fmt.Sprintf("10.%d.2.0/%d", g.IntN(9), 24+g.IntN(3)), fmt.Sprintf("fd%02x::/16", g.IntN(9)), fmt.Sprintf("2001:db8::%d", g.IntN(9))))
		default:
			return nil, fs.ErrNotExist
		}
	}
	return []byte(b.String()), nil
}

// TestSip: the results that https://github.com/veorq/SipHash publishes (vectors.h) for SipHash-2-4 with 128 bits, of the key 00 01 ... 0f and the
// messages 00 01 ... of 8 bytes and more.
func TestSip(t *testing.T) {
	var b [32]byte
	for i := range b {
		b[i] = byte(i)
	}
	key := [2]uint64{binary.LittleEndian.Uint64(b[:]), binary.LittleEndian.Uint64(b[8:])}
	for n, want := range map[int]string{
		8: "3b62a9ba6258f5610f83e264f31497b4", 9: "264499060ad9baabc47f8b02bb6d71ed", 13: "9869e247e9c08b10d029934fc4b952f7",
		14: "31fcefac66d7de9c7ec7485fe4494902", 15: "5493e99933b0a8117e08ec0f97cfc3d9",
	} {
		lo, hi := sipRounds(key, 2, 4, key[0], string(b[8:n]))
		got := binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(nil, lo), hi)
		if hex.EncodeToString(got) != want {
			t.Errorf("%d bytes: %x", n, got)
		}
	}
}

func TestLengthMasks(t *testing.T) {
	s := &policy.Set{}
	for _, p := range []string{"0.0.0.0/0", "10.0.0.0/8", "192.0.2.1/32", "::/0", "2001:db8::/64", "2001:db8::/65", "::1/128"} {
		s.Prefixes = append(s.Prefixes, netip.MustParsePrefix(p))
	}
	const all = ^uint64(0)
	masks, six := lengthMasks([]*policy.Set{s})
	want := []bpf.KernelSetPrefix{
		{Hi: all, Lo: all, Bits: 129}, {Hi: all, Lo: 0xffffffffff000000, Bits: 105}, {Hi: all, Lo: 0xffffffff00000000, Bits: 97}, {},
		{Hi: all, Lo: all, Bits: 129}, {Hi: all, Lo: 1 << 63, Bits: 66}, {Hi: all, Bits: 65}, {Bits: 1}, {},
	}
	for i, w := range want {
		if masks[i] != w {
			t.Errorf("mask %d: %+v, want %+v", i, masks[i], w)
		}
	}
	if six != 4 {
		t.Error("IPv6 begins at", six)
	}
}

// engine is the kernel's engine with one Image, to be asked as TestKernelJudge does.
type engine struct {
	t    testing.TB
	k    *bpf.Kernel
	sets sets
	side int
	img  *policy.Image
}

func newEngine(t testing.TB) *engine {
	kerntest.Require(t, kerntest.Root, kerntest.Syscall)
	return &engine{t: t, k: load(t)}
}

func (e *engine) stage(src string, read func(string) ([]byte, error)) {
	e.t.Helper()
	ps, err := policy.ParseWith("p.yaml", []byte(src), read)
	must(e.t, err)
	e.img, _, err = policy.Compile(ps, able())
	must(e.t, err)
	tables, pool, err := e.k.Side(e.side, policy.MaxCells)
	must(e.t, err)
	must(e.t, errors.Join(stage(tables, pool, e.img, uint32(1+e.side)), e.sets.stage(e.k, tables, e.side, e.img)))
}

// denies asks about one fact.
func (e *engine) denies(op pavise.Op, d policy.Dim, fact []byte) bool {
	e.t.Helper()
	f := new(policy.Facts)
	f.Values[d] = fact
	v := judge(e.t, e.k, op, f)
	if want := e.img.Judge(op, f); v != want {
		e.t.Errorf("%s of %.80q: the kernel says %+v, Judge %+v", d, fact, v, want)
	}
	return v.Action == pavise.ActionDeny
}

const oneRule = "apiVersion: pavise.dev/v1alpha1\nkind: Policy\nmetadata: {name: p}\nspec:\n  mode: enforce\n  rules:\n  - {name: r, on: [%s], action: deny, when: '%s'}\n"

// TestKernelSetStrings: strings of all lengths around the engine's words and chunks are in a set, and their neighbours are not.
func TestKernelSetStrings(t *testing.T) {
	e := newEngine(t)
	text := func(n int) string {
		s := strings.Repeat("/a234567", 513)[:n]
		if n > 1 && s[n-1] == '/' {
			s = s[:n-1] + "b"
		}
		return s
	}
	lengths := []int{1, 2, 7, 8, 9, 15, 16, 17, 63, 64, 65, 71, 72, 73, 127, 128, 129, 255, 256, 257, 1000, 4087, 4088, 4089, 4094, 4095}
	var b strings.Builder
	for _, n := range lengths {
		fmt.Fprintln(&b, text(n))
	}
	e.stage(fmt.Sprintf(oneRule, "file.open", `file.path.inSet("s")`), func(string) ([]byte, error) { return []byte(b.String()), nil })
	for _, s := range e.img.Sets[policy.SetStrings][0].Strings {
		if !e.denies(pavise.OpOpen, policy.DimPath, []byte(s)) {
			t.Errorf("%d bytes: not in the set", len(s))
		}
		for _, other := range []string{s + "x", s[:len(s)-1], s[:len(s)-1] + "\x00", s[:len(s)/2] + "\x01" + s[min(len(s), len(s)/2+1):]} {
			if len(other) <= policy.MaxString && !e.img.Sets[policy.SetStrings][0].Has(other) && e.denies(pavise.OpOpen, policy.DimPath, []byte(other)) {
				t.Errorf("%d bytes: another string is in the set", len(s))
			}
		}
	}
	if e.denies(pavise.OpOpen, policy.DimPath, nil) {
		t.Error("nothing is in the set")
	}
	if !e.denies(pavise.OpOpen, policy.DimPath, []byte(text(4096))) {
		t.Error("what is too long is not judged strictly")
	}
}

// TestKernelSetNames: the last component, of any length and behind a path of any length.
func TestKernelSetNames(t *testing.T) {
	e := newEngine(t)
	var names []string
	for _, n := range []int{1, 7, 8, 9, 31, 32, 33, 63, 64, 65, 254, 255} {
		names = append(names, strings.Repeat("n", n))
	}
	e.stage(fmt.Sprintf(oneRule, "file.open", `file.name.inSet("s") || process.exe.name.inSet("s")`),
		func(string) ([]byte, error) { return []byte(strings.Join(names, "\n")), nil })
	for _, dir := range []string{"", "/a", strings.Repeat("/long", 40), strings.Repeat("/long", 700)} {
		for _, n := range names {
			for _, d := range []policy.Dim{policy.DimPath, policy.DimExe} {
				p := dir + "/" + n
				if !e.denies(pavise.OpOpen, d, []byte(p)) {
					t.Errorf("%s: %d bytes behind %d", d, len(n), len(dir))
				}
				if e.denies(pavise.OpOpen, d, []byte(p+"m")) || e.denies(pavise.OpOpen, d, []byte(p+"/")) || e.denies(pavise.OpOpen, d, []byte(n)) {
					t.Errorf("%s: %d bytes behind %d: another name is in the set", d, len(n), len(dir))
				}
			}
		}
	}
}

// TestKernelSetAddresses: prefixes of every length of both families.
func TestKernelSetAddresses(t *testing.T) {
	e := newEngine(t)
	g := rand.New(rand.NewPCG(3, 3))
	var b strings.Builder
	for bits := range 129 {
		var a [16]byte
		binary.BigEndian.PutUint64(a[:], g.Uint64())
		binary.BigEndian.PutUint64(a[8:], g.Uint64())
		if bits > 2 { // ::/0 and its like hold nearly all
			p, _ := netip.AddrFrom16(a).Prefix(bits)
			fmt.Fprintln(&b, p)
		}
		if bits > 2 && bits < 33 {
			p, _ := netip.AddrFrom4([4]byte(a[:4])).Prefix(bits)
			fmt.Fprintln(&b, p)
		}
	}
	e.stage(fmt.Sprintf(oneRule, "net.connect", `net.remote.address.inSet("s")`), func(string) ([]byte, error) { return []byte(b.String()), nil })
	in, out := 0, 0
	for _, p := range e.img.Sets[policy.SetAddresses][0].Prefixes {
		first := p.Addr().As16()
		last, beyond := first, first
		from := p.Bits()
		if p.Addr().Is4() {
			from += 96
		}
		for i := from; i < 128; i++ {
			last[i/8] |= 0x80 >> (i % 8)
		}
		beyond[(from-1)/8] ^= 0x80 >> ((from - 1) % 8)
		for _, a := range [][16]byte{first, last, beyond} {
			if e.denies(pavise.OpConnect, policy.DimRemoteAddr, a[:]) { // denies compares with Judge
				in++
			} else {
				out++
			}
		}
	}
	if in < 2*100 || out < 50 {
		t.Errorf("%d in, %d out", in, out)
	}
	if e.denies(pavise.OpConnect, policy.DimRemoteAddr, nil) {
		t.Error("no address is in the set")
	}
}

// TestKernelSetSlots: unchanged sets are not written again, and sets that nothing names any more are freed.
func TestKernelSetSlots(t *testing.T) {
	kerntest.Require(t, kerntest.Root, kerntest.Syscall, kerntest.TpBtf)
	l := start(t, nil)
	apply := func(when string, files map[string]string) {
		t.Helper()
		src := fmt.Sprintf(oneRule, "file.open", when)
		ps, err := policy.ParseWith("p.yaml", []byte(strings.Replace(src, "mode: enforce", "mode: monitor", 1)), func(f string) ([]byte, error) { return []byte(files[f]), nil })
		must(t, err)
		img, _, err := policy.Compile(ps, l.machine())
		must(t, err)
		_, err = l.Apply(img)
		must(t, err)
	}
	slots := func() string { return fmt.Sprint(len(l.sets.slots[0]), len(l.sets.slots[1]), l.sets.used) }
	bytes := func() uint64 {
		c, err := l.Counters()
		must(t, err)
		return c.MapBytes
	}
	before := bytes()
	one := map[string]string{"a": "/nowhere/a\n", "b": "/nowhere/b\n"}
	many := map[string]string{"a": "", "b": "/nowhere/b\n"}
	for i := range 10000 {
		many["a"] += fmt.Sprintf("/nowhere/%d\n", i)
	}
	for i, c := range []struct {
		when  string
		files map[string]string
		want  string
	}{
		{`file.path.inSet("a")`, one, "1 0 [0 1]"},
		{`file.path.inSet("a") && file.access.write`, one, "1 0 [1 1]"},
		{`file.path.inSet("a") && file.access.read`, one, "1 0 [1 1]"},
		{`file.path.inSet("a") || file.path.inSet("b")`, many, "1 2 [2 1]"},
		{`file.path.inSet("a")`, one, "1 2 [2 1]"},
		{`file.path == "/nowhere"`, one, "1 0 [0 1]"},
		{`file.path == "/nowhere/2"`, one, "0 0 [0 0]"},
	} {
		apply(c.when, c.files)
		if i == 3 && bytes() < before+200_000 { // old kernels reckon by the keys and values alone
			t.Errorf("%d bytes of maps, %d before", bytes(), before)
		}
		if got := slots(); got != c.want {
			t.Errorf("change %d: slots %s, want %s", i, got, c.want)
		}
	}
	if n := bytes(); n > before+100_000 { // some grow with the processes that there are
		t.Errorf("%d bytes of maps without sets, %d before", n, before)
	}
}

// BenchmarkSet is the cost of a verdict with one set of paths, for a path in it and one that is not: the same for any size.
func BenchmarkSet(b *testing.B) {
	e := newEngine(b)
	var m mounts
	must(b, m.refresh(e.k))
	hit, miss := opened(b)
	for side, n := range []int{10, policy.MaxSetEntries} {
		e.side = side
		e.stage(strings.Replace(fmt.Sprintf(oneRule, "file.open", `file.path.inSet("s")`), "deny", "audit", 1), manyPaths(n, hit.Name()))
	}
	objects := []object{{"hit", int(hit.Fd()), netip.AddrPort{}, pavise.ActionAudit}, {"miss", int(miss.Fd()), netip.AddrPort{}, 0}}
	ns, ratios := make([][]float64, len(objects)), make([][]float64, len(objects))
	for range 2 * passes { // as BenchmarkVerdict
		for i, o := range objects {
			for begin := time.Now(); time.Since(begin) < pass; {
				few := timed(b, e.k, 0, "run_open", &o)
				many := timed(b, e.k, 1, "run_open", &o)
				ns[i], ratios[i] = append(ns[i], many), append(ratios[i], many/few)
			}
		}
	}
	for i, o := range objects {
		b.Run("file.open/"+o.name, func(b *testing.B) {
			b.ReportMetric(quantile(0.1, ns[i]), "ns/op")
			b.ReportMetric(quantile(0.5, ns[i]), "median-ns")
			budget(b, quantile(0.5, ratios[i]), 1.3, "x10entries")
		})
	}
}

// manyPaths is a set of n paths of about 60 bytes.
func manyPaths(n int, one string) func(string) ([]byte, error) {
	var s []byte
	for i := range n - 1 {
		s = fmt.Appendf(s, "/opt/vendor/app/releases/%08x/assets/file-%06d.conf\n", uint32(i)*2654435761, i)
	}
	s = append(s, one+"\n"...)
	return func(string) ([]byte, error) { return s, nil }
}

// BenchmarkSetChange is a change of policies with a set of 100,000 paths, none of which exists: the set itself, and a rule beside it.
func BenchmarkSetChange(b *testing.B) {
	kerntest.Require(b, kerntest.Root, kerntest.Syscall, kerntest.TpBtf)
	l := start(b, func(*pavise.Event) {})
	before, err := l.Counters()
	must(b, err)
	withSet := func(i int) []*policy.Policy {
		src := strings.Replace(fmt.Sprintf(oneRule, "file.open", `file.path.inSet("s")`), "enforce", "monitor", 1)
		ps, err := policy.ParseWith("p.yaml", []byte(src), manyPaths(policy.MaxSetEntries, fmt.Sprint("/nowhere/", i)))
		must(b, err)
		return ps
	}
	m := l.machine()
	ms := func(ds []time.Duration) float64 { return float64(quantile(0.5, ds)) / 1e6 }
	b.Run("set", func(b *testing.B) {
		var parsed, applied []time.Duration
		mib := 0.0
		for i := 0; b.Loop(); i++ {
			begin := time.Now()
			ps := withSet(i)
			parsed = append(parsed, time.Since(begin))
			begin = time.Now()
			_, err := l.Apply(image(b, m, ps))
			must(b, err)
			applied = append(applied, time.Since(begin))
			if i == 0 { // one generation alone has it
				c, err := l.Counters()
				must(b, err)
				mib = float64(c.MapBytes-before.MapBytes) / (1 << 20)
			}
		}
		b.ReportMetric(ms(parsed), "parse-ms")
		b.ReportMetric(ms(applied), "apply-ms")
		b.ReportMetric(mib, "map-MiB")
	})
	b.Run("rule", func(b *testing.B) {
		set := withSet(0)
		var took []time.Duration
		for i := 0; b.Loop(); i++ {
			time.Sleep(20 * time.Millisecond)
			begin := time.Now()
			rule := strings.Replace(fmt.Sprintf(oneRule, "file.open", fmt.Sprintf(`file.path == "/nowhere/%d"`, i)), "name: p}", "name: q}", 1)
			_, err := l.Apply(image(b, m, append(parse(b, strings.Replace(rule, "enforce", "monitor", 1)), set...)))
			must(b, err)
			took = append(took, time.Since(begin))
		}
		budget(b, float64(quantile(0.99, took))/1e6, 20, "p99-ms")
	})
}
