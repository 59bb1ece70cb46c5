package enforce

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/pavise-project/pavise"
	"github.com/pavise-project/pavise/internal/kerntest"
)

// TestKernelDoctor: the rung of each operation is the one that this kernel is known to have.
func TestKernelDoctor(t *testing.T) {
	x := theEffect(t)
	top := pavise.RungNone // what all operations have
	switch {
	case kerntest.VM() == "" && kerntest.Probe(kerntest.LSM) == nil, os.Getenv("PAVISE_EXPECT") == "lsm":
		top = pavise.RungLSM
	case kerntest.Probe(kerntest.Trampoline) == nil:
		top = pavise.RungFmodRet
	}
	low := map[pavise.Op]pavise.Rung{}
	for op, h := range hooks {
		for _, r := range h.lower {
			// Cgroup programs reach task storage since 6.18.
			if low[op] == pavise.RungNone && (r.rung == pavise.RungKillOnReturn || kerntest.AtLeast(6, 18)) {
				low[op] = r.rung
			}
		}
	}
	got := x.e.Doctor()
	if want := len(hooks); len(got) != want || want != pavise.NumJudged-1 {
		t.Errorf("%d operations, want %d of %d", len(got), want, pavise.NumJudged-1)
	}
	for _, st := range got {
		want := top
		if want == pavise.RungNone {
			want = low[st.Op]
		}
		deny := want != pavise.RungNone && want != pavise.RungKillOnReturn
		if st.Rung != want || st.Deny != deny || st.Kill != (want != pavise.RungNone) || (st.Why == "") != (want == pavise.RungLSM) || len(st.Tried) == 0 {
			t.Errorf("%s: rung %s deny %v kill %v why %q, want rung %s", st.Op, st.Rung, st.Deny, st.Kill, st.Why, want)
		}
		t.Logf("%s: %s %s", st.Op, st.Rung, st.Why)
		for _, p := range x.e.rung[st.Op].all() {
			if p != "on_exec" && x.e.k.Attached(p) {
				t.Errorf("%s is still attached", p)
			}
		}
	}
}

// TestKernelDoctorSkip: what a machine without the better rungs would do is known beforehand.
func TestKernelDoctorSkip(t *testing.T) {
	kerntest.Require(t, kerntest.Root, kerntest.Syscall, kerntest.TpBtf)
	e, err := Open(context.Background(), Options{Skip: []pavise.Rung{pavise.RungLSM, pavise.RungFmodRet, pavise.RungCgroup}})
	must(t, err)
	defer e.Close()
	for op, want := range map[pavise.Op]pavise.Rung{
		pavise.OpOpen: pavise.RungKillOnReturn, pavise.OpExec: pavise.RungKillOnReturn, pavise.OpSocket: pavise.RungKillOnReturn, pavise.OpConnect: pavise.RungNone,
	} {
		if st := e.status[op]; st.Rung != want || !strings.Contains(st.Why, "switched off") {
			t.Errorf("%s: rung %s, %s", op, st.Rung, st.Why)
		}
	}
	if e.ctl.Made != 0 {
		t.Error("IPv4 and IPv6 sockets are not judged on return")
	}
}

// TestKernelRefusal: without privileges or BTF, Open says so.
func TestKernelRefusal(t *testing.T) {
	x := theEffect(t)
	for deed, want := range map[string]string{"unprivileged": "no privileges: run as root", "no-btf": "it has no BTF at /sys/kernel/btf/vmlinux"} {
		x.other.stop() // what was found once is kept
		if o := x.other.do(t, deed); !strings.HasPrefix(o.Err, "as it should: ") || !strings.Contains(o.Err, want) {
			t.Errorf("%s: %s", deed, o)
		} else {
			t.Log(o.Err)
		}
	}
}

// TestKernelOldRefusal: below the floor, Open says what is missing and leaves nothing.
func TestKernelOldRefusal(t *testing.T) {
	kerntest.Require(t, kerntest.Old, kerntest.Root)
	e, err := Open(context.Background(), Options{})
	if err == nil {
		e.Close()
		t.Fatal("it was opened")
	}
	if !errors.Is(err, ErrUnsupported) {
		t.Errorf("%v is not ErrUnsupported", err)
	}
	for _, what := range []string{"task storage (Linux 5.11)", "programs of type syscall (Linux 5.14)"} {
		if !strings.Contains(err.Error(), what) {
			t.Errorf("%q does not say %q", err, what)
		}
	}
	t.Log(err)
}
