package policy

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pavise-project/pavise"
)

// TestWhy runs testdata/why/*.txt: "rules:" and the rules that judged, "event:" and the event, and the policies, to their reasons.
func TestWhy(t *testing.T) {
	files, err := filepath.Glob("testdata/why/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal("no test data", err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) { runCases(t, file, whyResult) })
	}
}

func whyResult(t *testing.T, src string) string {
	t.Helper()
	rules, rest, _ := strings.Cut(src, "\n")
	event, yaml, _ := strings.Cut(rest, "\n")
	var e pavise.Event
	if err := json.Unmarshal([]byte(strings.TrimPrefix(event, "event: ")), &e); err != nil {
		t.Fatal(err)
	}
	set, err := Parse("p.yaml", []byte(yaml))
	if err != nil {
		t.Fatal(err)
	}
	m := testMachine()
	img, _, err := Compile(set, m)
	if err != nil {
		t.Fatal(err)
	}
	for i := range e.RuleIDs {
		e.RuleIDs[i] = NoRule
	}
	for _, name := range strings.Fields(strings.TrimPrefix(rules, "rules:")) {
		for i, r := range img.Rules {
			if r.Policy+"/"+r.Name == name {
				e.RuleIDs[e.Matched] = uint32(i)
				e.Matched++
			}
		}
	}
	reasons, err := Why(set, m, &e)
	if err != nil {
		return err.Error() + "\n"
	}
	var b strings.Builder
	for _, r := range reasons {
		fmt.Fprintf(&b, "%s/%s %s:%d %s %s", r.Policy, r.Rule, r.File, r.Line, r.Action, r.State)
		if r.Effective != "" {
			fmt.Fprintf(&b, ", %s instead: %s", r.Effective, r.Degraded)
		}
		fmt.Fprintf(&b, ": %v\n", r.Holds)
		if r.Alias != "" {
			fmt.Fprintf(&b, "as %s\n", r.Alias)
		}
		if r.Note != "" {
			fmt.Fprintf(&b, "note: %s\n", r.Note)
		}
		showNode(&b, "subject", r.Subject, 1)
		showNode(&b, "when", r.When, 1)
		for _, a := range r.Allows {
			fmt.Fprintf(&b, "  allow %s %s:%d %s\n", a.Rule, a.File, a.Line, a.Note)
			showNode(&b, "failed", a.Failed, 2)
		}
	}
	return b.String()
}

func showNode(b *strings.Builder, title string, n *Node, depth int) {
	if n == nil {
		return
	}
	fmt.Fprintf(b, "%s%s %d:%d %s %s: %s", strings.Repeat("  ", depth), title, n.Line, n.Column, n.Kind, n.Text, n.Result)
	if n.Error != "" {
		fmt.Fprintf(b, " (%s)", n.Error)
	}
	for _, f := range n.Facts {
		v, err := json.Marshal(f.Value)
		if err != nil {
			v = []byte(err.Error())
		}
		fmt.Fprintf(b, " %s=%s", f.Field, v)
	}
	b.WriteByte('\n')
	for _, s := range n.Of {
		showNode(b, "", s, depth+1)
	}
}

// TestWhyRule holds the numbers of rules to those of the compiler, over a set of several policies.
func TestWhyRule(t *testing.T) {
	var src strings.Builder
	for _, name := range []string{"zeta", "alpha", "mid"} {
		fmt.Fprintf(&src, "---\napiVersion: pavise.dev/v1alpha1\nkind: Policy\nmetadata: {name: %s}\nspec:\n  default: {file.open: deny}\n  subject: process.tty\n  rules:\n  - {name: a, on: [file.open], when: file.access.write, action: allow}\n  - {name: b, on: [process.exec], action: audit}\n", name)
	}
	set, err := Parse("p.yaml", []byte(src.String()))
	if err != nil {
		t.Fatal(err)
	}
	m := testMachine()
	img, _, err := Compile(set, m)
	if err != nil {
		t.Fatal(err)
	}
	if len(img.Rules) != 9 {
		t.Fatalf("%d rules", len(img.Rules))
	}
	for id, r := range img.Rules {
		got, err := Why(set, m, &pavise.Event{Op: pavise.OpOpen, Matched: 1, RuleIDs: [4]uint32{uint32(id)}})
		if err != nil || len(got) != 1 || got[0].Policy != r.Policy || got[0].Rule != r.Name {
			t.Errorf("rule %d is %s/%s, got %+v, %v", id, r.Policy, r.Name, got, err)
		}
	}
	if got, err := Why(set, m, &pavise.Event{Op: pavise.OpOpen, Matched: 1, RuleIDs: [4]uint32{9}}); err == nil {
		t.Errorf("rule 9: %+v", got)
	}
	if got, err := Why(set, m, &pavise.Event{Op: pavise.OpFork}); err != nil || got != nil {
		t.Errorf("no rule: %+v, %v", got, err)
	}
}
