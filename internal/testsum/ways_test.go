package testsum

import (
	"strings"
	"testing"
)

func TestWays(t *testing.T) {
	w, err := ReadWays("list", strings.NewReader(`# a comment
aliases:
symbolic link | lsm,fmod_ret e.TestA/symbolic_link; here e.TestA/symbolic_link |
hard link | lsm e.TestB | here: it is not there
libraries | | data of the program
`))
	if err != nil {
		t.Fatal(err)
	}
	results := func(b string) *Summary {
		var s Summary
		for _, e := range []Event{
			{Action: "pass", Package: "github.com/pavise-project/pavise/e [6.1 lsm]", Test: "TestA/symbolic_link"},
			{Action: "pass", Package: "e [6.1 nolsm]", Test: "TestA/symbolic_link"},
			{Action: "pass", Package: "e", Test: "TestA/symbolic_link"},
			{Action: "pass", Package: "e [6.12 lsm]", Test: "TestB"},
			{Action: "skip", Package: "e [6.1 lsm]", Test: "TestB"},
			{Action: b, Package: "e [newest lsm]", Test: "TestB"},
		} {
			s.Add(e)
		}
		return &s
	}
	for action, want := range map[string]struct {
		broken int
		text   string
	}{"pass": {0, "lsm yes"}, "fail": {1, "lsm FAIL"}} {
		var b strings.Builder
		if n := w.Print(&b, results(action)); n != want.broken || !strings.Contains(b.String(), want.text) {
			t.Errorf("%s: %d broken:\n%s", action, n, b.String())
		}
		for _, s := range []string{"3 ways around a rule; covered at lsm 2, at fmod_ret 1, here 1", "(data of the program)", "(here: it is not there)"} {
			if !strings.Contains(b.String(), s) {
				t.Errorf("%q is missing in:\n%s", s, b.String())
			}
		}
	}
	var b strings.Builder
	if n := w.Print(&b, &Summary{}); n != 4 || !strings.Contains(b.String(), "NOT RUN") {
		t.Errorf("without results %d are broken:\n%s", n, b.String())
	}
}

func TestWaysErrors(t *testing.T) {
	_, err := ReadWays("list", strings.NewReader("a | lsm\nb | kill e.T |\nc | lsm |\nd | |\n"))
	for _, want := range []string{"list:1: want WAY", `list:2: "kill" is no rung`, "list:3: rung lsm has no test", `list:4: "d" is not covered`} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q is missing in %v", want, err)
		}
	}
}
