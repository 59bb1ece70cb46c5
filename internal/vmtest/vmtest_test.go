package vmtest

import (
	"bytes"
	"errors"
	"os/exec"
	"strings"
	"testing"

	"github.com/pavise-project/pavise/internal/testsum"
)

// A matrix that calls a crashed or skipped test passed would be worse than none.
func TestCheck(t *testing.T) {
	const good = `{"Action":"pass","Package":"p","Test":"TestKernelA"}
{"Action":"output","Package":"p","Test":"TestKernelB","Output":"    b_test.go:3: skip: not expected here: needs lsm\n"}
{"Action":"skip","Package":"p","Test":"TestKernelB"}
`
	s := suite{tests: []string{"TestKernelA", "TestKernelB"}}
	for _, test := range []struct {
		name, events string
		err          error
		ended        bool
		exit         string
		want         string // of the output of the first failure
	}{
		{"all ran", good, nil, true, "0", ""},
		{"never started", strings.SplitAfter(good, "\n")[0], nil, true, "0", "never started"},
		{"own skip", strings.Replace(good, "not expected here", "no time", 1), nil, true, "0", "only kerntest"},
		{"never ended", strings.Replace(good, `"pass"`, `"run"`, 1), nil, true, "0", "never ended"},
		{"exit status", good, nil, true, "2", "status 2"},
		{"no exit status", good, nil, true, "", "no exit status"},
		{"crash", good, ErrCrash, false, "", ErrCrash.Error()},
	} {
		t.Run(test.name, func(t *testing.T) {
			var sum testsum.Summary
			if err := sum.Read(strings.NewReader(test.events), nil); err != nil {
				t.Fatal(err)
			}
			events := check(&sum, s, "p", test.err, test.ended, test.exit)
			if test.want == "" {
				if len(events) > 0 {
					t.Errorf("unexpected: %+v", events)
				}
				return
			}
			if len(events) == 0 || !strings.Contains(events[0].Output, test.want) {
				t.Errorf("%q is missing in %+v", test.want, events)
			}
			if last := len(events) - 1; last >= 0 && events[last].Action != "fail" {
				t.Errorf("the last event is no failure: %+v", events[last])
			}
		})
	}
}

// What a machine that failed has left is run in another, and a test in which two failed has failed.
func TestSplit(t *testing.T) {
	const output = `{"Action":"run","Package":"p","Test":"TestKernelA"}
{"Action":"pass","Package":"p","Test":"TestKernelA/x"}
{"Action":"fail","Package":"p","Test":"TestKernelA"}
{"Action":"run","Package":"p","Test":"TestKernelB"}
{"Action":"pass","Package":"p","Test":"TestKernelB/x"}
{"Action":"fail","Package":"p"}
`
	s := suite{tests: []string{"TestKernelA", "TestKernelB", "TestKernelC"}}
	stuck := map[string]bool{}
	for _, want := range []struct{ done, later, failure string }{
		{"TestKernelA", "TestKernelB TestKernelC", "p.TestKernelA"},
		{"TestKernelA TestKernelB", "TestKernelC", "p.TestKernelA p.TestKernelB"},
	} {
		events, done, later, err := split([]byte(output), s, "p", stuck)
		if err != nil || strings.Join(done.tests, " ") != want.done || strings.Join(later.tests, " ") != want.later {
			t.Errorf("%v then %v, %v: want %+v", done.tests, later.tests, err, want)
		}
		var sum testsum.Summary
		if err := sum.Read(bytes.NewReader(events), nil); err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, r := range sum.Failures() {
			names = append(names, r.Name())
		}
		if strings.Join(names, " ") != want.failure {
			t.Errorf("%q failed, want %s", names, want.failure)
		}
	}
}

// A kernel that followed a bad pointer is a failure, though all tests passed in another machine.
func TestOops(t *testing.T) {
	for text, want := range map[string]bool{
		"[  486.4] BUG: kernel NULL pointer dereference, address: 0000000000000088\n": true,
		"[    1.0] BUG: unable to handle page fault for address: ffff89d54bf6b900\n":  true,
		"[    1.0] invalid opcode: 0000 [#1] PREEMPT SMP\n":                           false,
	} {
		if oops.MatchString(text) != want {
			t.Errorf("%q: %v", text, !want)
		}
	}
	var sum testsum.Summary
	sum.Add(testsum.Event{Action: "pass", Package: "p [newest lsm]", Test: "TestKernelA"})
	for _, e := range failed("virtual machine [newest lsm]", ErrOops) {
		sum.Add(e)
	}
	if f := sum.Failures(); len(f) != 1 || f[0].Name() != "virtual machine [newest lsm]" {
		t.Errorf("failures %v", f)
	}
}

func TestSelected(t *testing.T) {
	all := []string{"Old", "X", "UnderLoadX", "Runs", "Doctor", "Judge", "AgentKept", "AgentKilled", "LearnServer", "Bind", "Exec"}
	for _, c := range []struct {
		kernel string
		noLSM  bool
		want   string
	}{
		{"5.10", false, "Old"},
		{"6.1", false, "X Doctor Judge AgentKept Bind Exec"},
		{"6.12", false, "LearnServer Bind Exec"},
		{"newest", false, "X Doctor Judge AgentKept AgentKilled Bind Exec"},
		{"6.1", true, "Doctor Exec"},
		{"6.12", true, "Exec"},
		{"newest", true, "X Bind Exec"},
	} {
		suites := []suite{{pkg: "a"}, {pkg: "b", tests: []string{"TestKernelUnderLoadY"}}}
		for _, name := range all {
			suites[0].tests = append(suites[0].tests, "TestKernel"+name)
		}
		got := selected(suites, c.kernel, c.noLSM)
		if len(got) != 1 || strings.ReplaceAll(strings.Join(got[0].tests, " "), "TestKernel", "") != c.want {
			t.Errorf("%s, without LSM %v: %+v, want %s", c.kernel, c.noLSM, got, c.want)
		}
	}
}

func TestQuote(t *testing.T) {
	const s = "it's $HOME `x` \\ \"y\"\n*"
	out, err := exec.Command("/bin/sh", "-c", "printf %s "+quote(s)).Output()
	if err != nil || string(out) != s {
		t.Errorf("%q, %v", out, err)
	}
}

func TestArchive(t *testing.T) {
	var a archive
	a.add("bin", 0o040755, nil)
	a.add("bin/x", 0o100644, []byte("hello"))
	a.add("TRAILER!!!", 0, nil)
	if a.buf.Len()%4 != 0 || bytes.Count(a.buf.Bytes(), []byte("070701")) != 3 {
		t.Errorf("%q", a.buf.Bytes())
	}
}

func TestFindMissing(t *testing.T) {
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	if _, err := Find("6.1"); !errors.Is(err, ErrNoKernel) {
		t.Error(err)
	}
}
