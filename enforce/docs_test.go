package enforce

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/pavise-project/pavise"
	"github.com/pavise-project/pavise/policy"
)

var update = flag.Bool("update", false, "write docs/rungs.md")

// TestRungsTable holds docs/rungs.md to the ladder.
func TestRungsTable(t *testing.T) {
	var b bytes.Buffer
	b.WriteString(`# What each operation has on each rung

Printed from the code by ` + "`go test ./enforce -run TestRungsTable -update`" + `. ` + "`pavise doctor`" + ` says which rung is used on the machine at hand, and why not a higher one.

At **lsm** and **fmod_ret** the call fails with EPERM before anything is done; both have the same programs and the same limits. At **cgroup** too, for
network operations. At **kill-on-return** the process is killed before the call is back: ` + "`deny`" + ` rules need ` + "`fallback: kill`" + ` there. An operation that has
only lsm and fmod_ret has no lower rung because its effect is the call's own: when it is back, the file is gone, the signal sent, the module loaded; or, for process.setid and
process.capset, because the process is no longer the subject that asked; or, for memory.exec, because another thread can run there before.

| operation | deny | below it | what it cannot do there |
| --- | --- | --- | --- |
`)
	for _, op := range judged {
		h := hooks[op]
		var lower, notes []string
		for _, n := range h.notes {
			notes = append(notes, "lsm, fmod_ret: "+n)
		}
		if len(h.missing) > 0 {
			notes = append(notes, "lsm, fmod_ret: "+dimNames(op, h.missing)+" is not known")
		}
		for _, r := range h.lower {
			does := "kills"
			if r.deny {
				does = "denies"
			}
			lower = append(lower, fmt.Sprintf("%s: %s", r.rung, does))
			for _, n := range r.notes {
				notes = append(notes, fmt.Sprintf("%s: %s", r.rung, n))
			}
			if len(r.missing) > 0 {
				notes = append(notes, fmt.Sprintf("%s: %s is not known", r.rung, dimNames(op, r.missing)))
			}
		}
		if len(lower) == 0 {
			lower = []string{"–"}
		}
		fmt.Fprintf(&b, "| `%s` | lsm, fmod_ret | %s | %s |\n", op, strings.Join(lower, "; "), strings.Join(notes, "; "))
	}
	const file = "../docs/rungs.md"
	if *update {
		must(t, os.WriteFile(file, b.Bytes(), 0o644))
	}
	got, err := os.ReadFile(file)
	must(t, err)
	if !bytes.Equal(got, b.Bytes()) {
		t.Errorf("%s is not current: go test ./enforce -run TestRungsTable -update", file)
	}
	if len(hooks) != pavise.NumJudged-1 {
		t.Errorf("%d operations have hooks, of %d", len(hooks), pavise.NumJudged-1)
	}
}

func dimNames(op pavise.Op, dims []policy.Dim) string {
	var s []string
	for _, d := range dims {
		s = append(s, d.Of(op))
	}
	return strings.Join(s, ", ")
}
