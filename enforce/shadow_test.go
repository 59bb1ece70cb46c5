package enforce

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/pavise-project/pavise"
	"github.com/pavise-project/pavise/bpf"
	"github.com/pavise-project/pavise/internal/kerntest"
	"github.com/pavise-project/pavise/policy"
)

const enforced = "mode: enforce\n  fallback: kill"

// shadow makes a policy the shadow; none is an Image without rules.
func (x *effect) shadow(t *testing.T, text string) *policy.Image {
	t.Helper()
	var set []*policy.Policy
	if text != "" {
		set = parse(t, text)
	}
	img := image(t, x.m, set)
	if _, err := x.e.Shadow(img); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	return img
}

func (x *effect) endShadow(t *testing.T) {
	t.Helper()
	if _, err := x.e.EndShadow(); err != nil {
		t.Fatal(err)
	}
}

// fresh forgets the events so far, and makes the subject another process, whose events are not folded into those before.
func (x *effect) fresh() {
	x.subject.stop()
	x.forget()
}

func (x *effect) differs(t *testing.T, op pavise.Op) *pavise.Event {
	t.Helper()
	return x.event(t, "the shadow", func(e *pavise.Event) bool { return e.Shadow != pavise.DecisionNone && e.Op == op })
}

// agrees fails the test when the shadow has told of a difference.
func (x *effect) agrees(t *testing.T) {
	t.Helper()
	time.Sleep(100 * time.Millisecond)
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, e := range x.events {
		if e.Shadow != pavise.DecisionNone {
			t.Errorf("the shadow tells of %s pid %d %s: shadow %s, active %s", e.Op, e.PID, e.File.Path, e.Shadow, e.Active)
		}
	}
}

func (x *effect) shadowCounters(t *testing.T) ShadowCounters {
	t.Helper()
	c, err := x.e.ShadowCounters()
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestKernelShadow: what a shadow decides has no effect, is counted, and is told where the active policies decided otherwise. The same rules,
// active, have an effect each time.
func TestKernelShadow(t *testing.T) {
	x := theEffect(t)
	t.Cleanup(func() { x.endShadow(t) })
	dir := x.place(t)
	file := write(t, filepath.Join(dir, "secret"), secret)
	touch, err := exec.LookPath("touch")
	must(t, err)
	program, mark := filepath.Join(dir, "touch"), filepath.Join(dir, "mark")
	must(t, copyFile(program, touch))
	addr := serve(t, "tcp4", "127.0.0.1:0")
	socket := serve(t, "unix", filepath.Join(dir, "s"))
	for _, c := range []struct {
		op     pavise.Op
		when   string
		deed   string
		args   []string
		killed bool // below lsm, whatever the operation's rung is
		late   bool // killed on all rungs
	}{
		{pavise.OpOpen, fmt.Sprintf("file.path == %q", file), "read", []string{file}, true, false},
		{pavise.OpExec, fmt.Sprintf("file.path == %q", program), "spawn", []string{program, mark}, true, false},
		{pavise.OpExec, fmt.Sprintf("file.path == %q && %q in exec.args", program, mark), "spawn", []string{program, mark}, true, true},
		{pavise.OpConnect, `net.remote.address.within("127.0.0.0/8")`, "connect", []string{addr}, false, false},
		{pavise.OpConnect, fmt.Sprintf("net.remote.path == %q", socket), "connect", []string{socket}, true, false},
	} {
		t.Run(fmt.Sprintf("%s/%s", c.op, filepath.Base(c.args[0])), func(t *testing.T) {
			rung := x.needs(t, c.op)
			if c.late || c.killed && rung != pavise.RungLSM && rung != pavise.RungFmodRet {
				rung = pavise.RungKillOnReturn
			}
			does := pavise.DecisionDeny
			if rung == pavise.RungKillOnReturn {
				does = pavise.DecisionKill
			}
			// act does the deed and tells whether it came to nothing.
			act := func() bool {
				_ = os.Remove(mark)
				o := x.subject.do(t, c.deed, c.args...)
				_, err := os.Stat(mark)
				return o.Killed || o.Err != "" || c.op == pavise.OpExec && err != nil
			}
			harmless := func(n int) {
				t.Helper()
				for range n {
					if act() {
						t.Error("the shadow has an effect")
					}
				}
			}
			rule := fmt.Sprintf("on: [%s], action: deny, when: '%s'", c.op, c.when)
			text := x.text(enforced, rule)
			x.apply(t)
			without := x.e.k.Links()

			// The candidate alone: what it judges, nothing else does.
			x.fresh()
			img := x.shadow(t, text)
			if c.op != pavise.OpExec && slices.Equal(x.e.k.Links(), without) {
				t.Errorf("nothing was attached to %v", without)
			}
			harmless(5)
			e := x.differs(t, c.op)
			if e.Shadow != does || e.Active != pavise.DecisionAllow || !e.Monitor || e.Rung != rung || img.Rules[e.RuleIDs[0]].Name != "r0" {
				t.Errorf("shadow %s, active %s, monitor %v, rung %s, want shadow %s, active allow, rung %s", e.Shadow, e.Active, e.Monitor, e.Rung, does, rung)
			}
			if c.op != pavise.OpConnect && e.File.Path != c.args[0] {
				t.Errorf("the event is about %q", e.File.Path)
			}
			n := x.shadowCounters(t)
			if o := n.Ops[c.op]; n.RuleHits[0] != 5 || n.RuleStricter[0] != 5 || o.Stricter != 5 || o.Laxer != 0 || o.Judged < 5 {
				t.Errorf("%+v, hits %d, stricter %d; want 5 of each", o, n.RuleHits[0], n.RuleStricter[0])
			}
			done(t, x.other, map[bool]string{true: secret}[c.op == pavise.OpOpen], c.deed, c.args...)

			// The active policy alone: the control, and no trace of the shadow.
			x.endShadow(t)
			if !slices.Equal(x.e.k.Links(), without) {
				t.Errorf("attached: %v, before the shadow %v", x.e.k.Links(), without)
			}
			x.fresh()
			x.applyText(t, text)
			if !act() {
				t.Error("the rule has no effect when it is active")
			}
			x.agrees(t)

			// Both: they agree.
			x.fresh()
			x.shadow(t, text)
			for range 2 {
				if !act() {
					t.Error("with a shadow that agrees, the active rule has no effect")
				}
			}
			x.agrees(t)
			n = x.shadowCounters(t)
			if o := n.Ops[c.op]; n.RuleHits[0] != 2 || n.RuleStricter[0] != 0 || o.Stricter != 0 || o.Laxer != 0 {
				t.Errorf("where both agree: %+v, hits %d, stricter %d", o, n.RuleHits[0], n.RuleStricter[0])
			}

			// The candidate has no such rule: the active one's act is told with all that it is about, and under its name.
			for _, lax := range []string{"", x.text(enforced, fmt.Sprintf("on: [%s], action: deny, when: 'process.user.id == 4711'", c.op))} {
				x.fresh()
				x.shadow(t, lax)
				if !act() {
					t.Error("the shadow takes the active rule's effect away")
				}
				e := x.differs(t, c.op)
				if e.Shadow != pavise.DecisionAllow || e.Active != does || e.Action != pavise.ActionAllow || e.Gen != x.e.ctlGen(t) || x.rule(e) != "r0" {
					t.Errorf("shadow %s, active %s, action %s, generation %d, rule %s", e.Shadow, e.Active, e.Action, e.Gen, x.rule(e))
				}
				if c.op != pavise.OpConnect && e.File.Path != c.args[0] || c.op == pavise.OpConnect && e.Net.RemotePort == 0 && e.Net.RemotePath == "" {
					t.Errorf("the event is about %q %+v", e.File.Path, e.Net)
				}
				if n := x.shadowCounters(t); n.Ops[c.op].Laxer != 1 || n.Ops[c.op].Stricter != 0 {
					t.Errorf("where the candidate has no rule: %+v", n.Ops[c.op])
				}
			}

			// From monitor to enforce. A change ends the shadow, and says what it has counted.
			x.fresh()
			x.applyText(t, x.text("mode: monitor", rule))
			x.shadow(t, text)
			harmless(1)
			if e := x.differs(t, c.op); e.Shadow != does || e.Active != pavise.DecisionWouldDeny {
				t.Errorf("shadow %s, active %s, want %s and would-deny", e.Shadow, e.Active, does)
			}
			x.fresh()
			a, err := x.e.Apply(image(t, x.m, nil))
			must(t, err)
			if a.Shadow == nil || a.Shadow.Ops[c.op].Stricter != 1 || a.Shadow.RuleStricter[0] != 1 || len(a.Hits) == 0 {
				t.Errorf("the change says of the shadow: %+v", a)
			}
			harmless(1)
			x.agrees(t)
			if n := x.shadowCounters(t); n.Ops[c.op].Judged != 0 {
				t.Errorf("after its end: %+v", n.Ops[c.op])
			}
			if n, err := x.e.EndShadow(); err != nil || n.Ops[c.op].Judged != 0 {
				t.Errorf("its counters are told twice: %+v, %v", n.Ops[c.op], err)
			}
			if !slices.Equal(x.e.k.Links(), without) {
				t.Errorf("attached: %v, before the shadow %v", x.e.k.Links(), without)
			}
		})
	}
}

// TestKernelShadowRates: what a shadow counts for its rates does not bring the active rules' rates nearer, nor the other way round.
func TestKernelShadowRates(t *testing.T) {
	x := theEffect(t)
	x.needs(t, pavise.OpOpen)
	t.Cleanup(func() { x.endShadow(t) })
	file := write(t, filepath.Join(x.place(t), "secret"), secret)
	over := func(n int) string {
		return fmt.Sprintf("on: [file.open], action: deny, when: 'file.path == %q && rate.process(\"24h\") > %d'", file, n)
	}
	x.apply(t, over(4))
	for _, c := range []struct{ shadow, stricter, laxer uint64 }{{2, 2, 0}, {4, 0, 0}, {5, 0, 1}} {
		x.fresh()
		x.shadow(t, x.text(enforced, over(int(c.shadow))))
		for range 4 {
			done(t, x.subject, secret, "read", file)
		}
		x.stopped(t, pavise.OpOpen, "read", file)
		if n := x.shadowCounters(t).Ops[pavise.OpOpen]; n.Stricter != c.stricter || n.Laxer != c.laxer {
			t.Errorf("over 4, beside over %d: %+v, want %d stricter and %d laxer", c.shadow, n, c.stricter, c.laxer)
		}
	}
	x.endShadow(t)
	x.fresh()
	x.shadow(t, x.text(enforced, over(2)))
	for range 3 {
		done(t, x.subject, secret, "read", file)
	}
	if n := x.shadowCounters(t); n.RuleStricter[0] != 1 {
		t.Errorf("after another end: %+v", n)
	}
}

// TestKernelShadowDefault: an allow-list is tried as a rule is.
func TestKernelShadowDefault(t *testing.T) {
	x := theEffect(t)
	x.needs(t, pavise.OpOpen)
	t.Cleanup(func() { x.endShadow(t) })
	dir := x.place(t)
	in, out := write(t, filepath.Join(dir, "in"), secret), write(t, filepath.Join(dir, "out"), secret)
	x.apply(t)
	x.fresh()
	x.shadow(t, x.text("mode: enforce\n  fallback: kill\n  default: {file.open: deny}", fmt.Sprintf("on: [file.open], action: allow, when: '!file.path.under(%q) || file.path == %q'", dir, in)))
	done(t, x.subject, secret, "read", in)
	x.agrees(t)
	done(t, x.subject, secret, "read", out)
	if e := x.differs(t, pavise.OpOpen); e.File.Path != out || e.Active != pavise.DecisionAllow || e.Shadow < pavise.DecisionDeny {
		t.Errorf("%s: shadow %s, active %s", e.File.Path, e.Shadow, e.Active)
	}
}

// TestKernelShadowCreate: what the shadow decides about a name of which the kernel does not know yet whether it has a file is held beside what the active side
// decides, until that is known.
func TestKernelShadowCreate(t *testing.T) {
	kerntest.Require(t, kerntest.LSM)
	x := theEffect(t)
	t.Cleanup(func() { x.endShadow(t) })
	cold, err := os.MkdirTemp("/var/tmp", "effect") // it forgets names, unlike tmpfs
	must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(cold) })
	there, fresh := write(t, filepath.Join(cold, "there"), "there"), filepath.Join(cold, "new")
	// open opens both with O_CREAT, and tells whether the new one was made.
	open := func() bool {
		t.Helper()
		_ = os.Remove(fresh)
		must(t, os.WriteFile("/proc/sys/vm/drop_caches", []byte("2"), 0))
		x.fresh()
		done(t, x.subject, "", "open", there, "creates")
		x.agrees(t)
		if o := x.subject.do(t, "open", fresh, "creates"); o.Killed {
			t.Errorf("it was killed")
		}
		_, err := os.Stat(fresh)
		return err == nil
	}
	rule := fmt.Sprintf("on: [file.create], action: deny, when: 'file.path.under(%q)'", cold)
	x.apply(t)
	x.shadow(t, x.text(enforced, rule))
	if !open() {
		t.Error("the shadow has an effect")
	}
	if e := x.differs(t, pavise.OpCreate); e.File.Path != fresh || e.Shadow != pavise.DecisionDeny || e.Active != pavise.DecisionAllow {
		t.Errorf("%s: shadow %s, active %s", e.File.Path, e.Shadow, e.Active)
	}
	if n := x.shadowCounters(t); n.Ops[pavise.OpCreate].Stricter != 1 || n.RuleStricter[0] != 1 {
		t.Errorf("%+v", n.Ops[pavise.OpCreate])
	}
	x.apply(t, rule)
	x.shadow(t, "")
	if open() {
		t.Error("the rule has no effect beside a shadow")
	}
	if e := x.differs(t, pavise.OpCreate); e.File.Path != fresh || e.Shadow != pavise.DecisionAllow || e.Active != pavise.DecisionDeny {
		t.Errorf("%s: shadow %s, active %s", e.File.Path, e.Shadow, e.Active)
	}
	x.shadow(t, x.text(enforced, rule))
	if open() {
		t.Error("the rule has no effect beside a shadow that agrees")
	}
	x.event(t, "the active rule", func(e *pavise.Event) bool { return e.Op == pavise.OpCreate && e.File.Path == fresh && !e.Monitor })
	x.agrees(t)
	if n := x.shadowCounters(t).Ops[pavise.OpCreate]; n.Stricter != 0 || n.Laxer != 0 || n.Judged == 0 {
		t.Errorf("where both agree: %+v", n)
	}
}

// ctlGen is the generation that judges.
func (e *Enforcer) ctlGen(t *testing.T) uint32 {
	t.Helper()
	e.mu.Lock()
	defer e.mu.Unlock()
	tables, _, err := e.k.Side(e.live.side, policy.MaxCells)
	if err != nil {
		t.Fatal(err)
	}
	return tables.Gen
}

// TestKernelShadowApart: what the shadow needs does not make the active side judge more than it did.
func TestKernelShadowApart(t *testing.T) {
	x := theEffect(t)
	x.needs(t, pavise.OpOpen)
	t.Cleanup(func() { x.endShadow(t) })
	dir := x.place(t)
	must(t, os.Mkdir(filepath.Join(dir, "p"), 0o755))
	file := write(t, filepath.Join(dir, "p/secret"), secret)
	link := filepath.Join(dir, "link")
	must(t, os.Link(file, link))
	socket := serve(t, "unix", filepath.Join(dir, "s"))

	t.Run("protected names", func(t *testing.T) {
		x.apply(t, fmt.Sprintf("on: [file.open], action: deny, when: 'file.path.under(%q)'", filepath.Join(dir, "p")))
		x.stopped(t, pavise.OpOpen, "read", file)
		done(t, x.subject, secret, "read", link)
		x.fresh()
		x.shadow(t, x.text(enforced, fmt.Sprintf("on: [file.open], action: deny, when: 'file.path == %q'", file)))
		done(t, x.subject, secret, "read", link)
		if e := x.differs(t, pavise.OpOpen); e.File.Path != link || e.File.Alias != file {
			t.Errorf("the shadow does not know the link: %+v", e.File)
		}
		x.endShadow(t)
		var key bpf.KernelInodeKey
		var name bpf.KernelInodeName
		for it := x.e.k.Map("inodes").Iterate(); it.Next(&key, &name); {
			if key.Shade != 0 {
				t.Errorf("after the shadow %q is still protected", name.Name[:name.Len])
			}
		}
	})
	t.Run("Unix sockets", func(t *testing.T) {
		x.needs(t, pavise.OpConnect)
		x.apply(t, `on: [net.connect], action: deny, when: 'net.type == "stream"'`)
		without := x.subject.do(t, "connect", socket).String()
		x.shadow(t, x.text(enforced, `on: [net.connect], action: deny, when: 'net.remote.path == "/nowhere"'`))
		if with := x.subject.do(t, "connect", socket).String(); with != without {
			t.Errorf("without a shadow the connection is %s, with it %s", without, with)
		}
		x.endShadow(t)

		// And the other way round: where the active rule is judged on return, the candidate's would not be.
		x.apply(t, fmt.Sprintf("on: [net.connect], action: deny, when: 'net.remote.path == %q'", socket))
		x.fresh()
		x.shadow(t, x.text(enforced, `on: [net.connect], action: deny, when: 'net.type == "stream"'`))
		if x.e.status[pavise.OpConnect].Rung != pavise.RungCgroup {
			x.stopped(t, pavise.OpConnect, "connect", socket)
			x.agrees(t)
		} else {
			x.stoppedBy(t, pavise.RungKillOnReturn, "connect", socket)
			if e := x.differs(t, pavise.OpConnect); e.Shadow != pavise.DecisionAllow || e.Active != pavise.DecisionKill || e.Net.RemotePath != socket {
				t.Errorf("shadow %s, active %s, %+v", e.Shadow, e.Active, e.Net)
			}
		}
		x.endShadow(t)
	})
	t.Run("subjects", func(t *testing.T) {
		// A process has classes of its own for each of the two, and is judged by them in turns.
		second := write(t, filepath.Join(dir, "second"), secret)
		x.apply(t, fmt.Sprintf("on: [file.open], action: deny, when: 'file.path == %q && process.user.id == 0'", file))
		x.shadow(t, x.text(enforced, fmt.Sprintf("on: [file.open], action: deny, when: 'file.path == %q && process.user.id == 0'", second)))
		for range 3 {
			x.fresh()
			done(t, x.subject, secret, "read", second)
			if e := x.differs(t, pavise.OpOpen); e.Active != pavise.DecisionAllow {
				t.Errorf("active %s", e.Active)
			}
			x.fresh()
			done(t, x.other, secret, "read", file)
			x.stopped(t, pavise.OpOpen, "read", file)
			if e := x.differs(t, pavise.OpOpen); e.Shadow != pavise.DecisionAllow { // it comes by the other ring, and may be the later one
				t.Errorf("shadow %s", e.Shadow)
			}
		}
		if n := x.shadowCounters(t); n.RuleStricter[0] != 3 || n.Ops[pavise.OpOpen].Laxer != 3 {
			t.Errorf("stricter %v, %+v; want 3 and 3", n.RuleStricter, n.Ops[pavise.OpOpen])
		}
		x.endShadow(t)
	})
	t.Run("failure", func(t *testing.T) {
		x.apply(t)
		x.shadow(t, x.text(enforced, fmt.Sprintf("on: [file.open], action: deny, when: 'file.path == %q'", file)))
		bad := *x.img
		bad.Rules = make([]policy.Rule, policy.MaxRules+1)
		if _, err := x.e.Shadow(&bad); err == nil {
			t.Error("an Image with too many rules was made the shadow")
		}
		x.fresh()
		done(t, x.subject, secret, "read", file)
		x.differs(t, pavise.OpOpen) // the shadow that was
		x.endShadow(t)
		if n, err := x.e.ShadowCounters(); err != nil || len(n.RuleHits) > 0 {
			t.Errorf("without a shadow: %+v, %v", n, err)
		}
	})
}

// decisionOf is what a verdict comes to where a call can be refused, as DONE says in bpf/engine.h.
func decisionOf(v policy.Verdict) uint32 {
	switch {
	case v.Action < pavise.ActionDeny:
		return 0
	case v.Monitor:
		return uint32(v.Action)
	}
	return 8 | uint32(v.Action)
}

// TestKernelShadowJudge: where one Image judges and then another as its shadow, the shadow's verdict is what that Image gives where it is the one that judges, in the
// kernel and by Image.Judge; and the other's is what it is without a shadow. Random pairs, whose subjects are not the same.
func TestKernelShadowJudge(t *testing.T) {
	kerntest.Require(t, kerntest.Root, kerntest.Syscall)
	k := load(t)
	seed := uint64(os.Getpid())
	if s := os.Getenv("PAVISE_SEED"); s != "" {
		seed, _ = strconv.ParseUint(s, 10, 64)
	}
	g := gen{rand.New(rand.NewPCG(seed, 2))}
	images, cases := 300, 60
	if kerntest.VM() != "" {
		images, cases = 30, 40
	}
	var sets sets
	for shade := range uint32(2) {
		counts, err := k.NewInner("rate_counts", rateCounts)
		must(t, err)
		must(t, k.SetInner("rate_counts", shade, counts))
	}
	var rates, shadowRates policy.Rates // each has counts of its own
	pairs := map[string]int{}
	for i := range images {
		op := []pavise.Op{pavise.OpOpen, pavise.OpExec, pavise.OpConnect}[i%3]
		var src [2]string
		var img [2]*policy.Image
		active := i % bpf.Sides
		shadow := 1 - active
		for j, side := range []int{active, shadow} {
			img[j] = image(t, able(), nil)
			if g.IntN(10) > 0 {
				src[j], img[j] = g.image(t, op)
			}
			tables, pool, err := k.Side(side, policy.MaxCells)
			if err != nil {
				t.Fatal(err)
			}
			must(t, errors.Join(stage(tables, pool, img[j], uint32(2*i+j+1)), sets.stage(k, tables, side, img[j]), sets.trim(k)))
		}
		for range cases {
			f := g.facts()
			f.Rates = &rates
			was := img[0].Judge(op, f)
			f.Rates = &shadowRates
			is := img[1].Judge(op, f)
			got, in := judgeWith(t, k, bpf.KernelTestJudge{Op: uint32(op), Side: uint32(active), Shadow: uint32(shadow) + 1}, f)
			if len(img[1].Rates) == 0 {
				if alone, _ := judgeWith(t, k, bpf.KernelTestJudge{Op: uint32(op), Side: uint32(shadow)}, f); alone != is {
					t.Fatalf("seed %d: the candidate, active: %+v, Judge %+v", seed, alone, is)
				}
			}
			pairs[fmt.Sprint(was.Action, was.Monitor, is.Action, is.Monitor)]++
			want := is
			if turns := decisionOf(was) != 0 || img[1].Ops[op].Used(); (in.Turned != 0) != turns {
				t.Fatalf("seed %d: turned %d, want %v", seed, in.Turned, turns)
			} else if !turns {
				want = was
			}
			if got != want || in.Was != decisionOf(was) {
				t.Fatalf("seed %d: the kernel says %+v after %d, Judge %+v after %+v\nfacts %+v\nactive\n%s\nshadow\n%s", seed, got, in.Was, want, was, f, src[0], src[1])
			}
		}
	}
	t.Logf("seed %d: %d cases, %d different pairs of verdicts", seed, images*cases, len(pairs))
	if len(pairs) < 20 {
		t.Errorf("only the pairs %v came up", pairs)
	}
}
