package testsum

import (
	"slices"
	"strings"
	"testing"
)

const results = `{"Action":"run","Package":"p","Test":"TestA"}
{"Action":"pass","Package":"p","Test":"TestA"}
{"Action":"run","Package":"p","Test":"TestKernelB"}
{"Action":"output","Package":"p","Test":"TestKernelB","Output":"    b_test.go:3: skip: needs luck\n"}
{"Action":"skip","Package":"p","Test":"TestKernelB"}
{"Action":"run","Package":"p","Test":"TestKernelC"}
{"Action":"skip","Package":"p","Test":"TestKernelC"}
{"Action":"pass","Package":"p"}
{"Action":"pass","Package":"p [6.1 lsm]","Test":"TestKernelC"}
{"Action":"output","Package":"q","Test":"TestD","Output":"    d_test.go:9: wrong\n"}
{"Action":"fail","Package":"q","Test":"TestD"}
{"Action":"fail","Package":"q"}
{"Action":"run","Package":"r","Test":"TestHangs"}
{"Action":"fail","Package":"r"}
not an event
{"Action":"build-output","ImportPath":"s","Output":"syntax error\n"}
{"Action":"fail","Package":"s","FailedBuild":"s"}
`

func TestSummary(t *testing.T) {
	var s Summary
	if err := s.Read(strings.NewReader(results), nil); err != nil {
		t.Fatal(err)
	}
	if got, want := s.Counts(), "2 passed, 3 failed, 1 skipped"; got != want {
		t.Errorf("counts: %s; want %s", got, want)
	}
	if got, want := s.NeverRan(), []string{"p.TestKernelB"}; !slices.Equal(got, want) {
		t.Errorf("never ran: %q; want %q", got, want)
	}
	var out strings.Builder
	s.PrintSkips(&out)
	s.PrintFailures(&out)
	for _, want := range []string{
		"skipped, 1: needs luck\n\tp.TestKernelB (here)\n", "left out where they are not for, and ran elsewhere, 1: no reason given\n\tp.TestKernelC (here)\n",
		"--- FAIL: q.TestD\n        d_test.go:9: wrong\n", "--- FAIL: r.TestHangs (never ended)\n",
		"--- FAIL: s\n    syntax error\n", "not an event\n",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is missing in:\n%s", want, out.String())
		}
	}
}
