package policy

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/pavise-project/pavise"
)

// TestTrial tries the policies of testdata/trial on events; of each what they would have asked for is printed.
func TestTrial(t *testing.T) {
	runCases(t, "testdata/trial/trial.txt", tried)
}

// tried are the outcomes of the events in the first lines.
func tried(t *testing.T, src string) string {
	var events []*pavise.Event
	for {
		line, rest, _ := strings.Cut(src, "\n")
		text, ok := strings.CutPrefix(line, "event: ")
		if !ok {
			break
		}
		e, err := pavise.ParseEvent([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		events, src = append(events, e), rest
	}
	set, err := Parse("p.yaml", []byte(src))
	if err != nil {
		t.Fatal(err)
	}
	trial, err := NewTrial(set)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, e := range events {
		o := trial.Judge(e, nil)
		if again := trial.Judge(e, nil); again != o {
			t.Errorf("%s: not remembered", e.AppendJSON(nil))
		}
		if len(o.Missing) == 0 {
			agrees(t, set, e, o)
		}
		if all := trial.Judge(e, func(string) bool { return true }); all.Action > o.Action {
			t.Errorf("%s: of nothing that is known comes %s", e.AppendJSON(nil), all.Action)
		}
		b.WriteString(o.Action.String())
		if o.Policy != nil {
			fmt.Fprintf(&b, " by %s/%s", o.Policy.Name, o.Rule)
		}
		if len(o.Missing) > 0 {
			fmt.Fprintf(&b, "; missing %s", strings.Join(o.Missing, " "))
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// agrees checks an outcome that does not depend on what is missing against the evaluation by which policies' own tests are judged: what is empty there may
// have any value.
func agrees(t *testing.T, set []*Policy, e *pavise.Event, o *Outcome) {
	t.Helper()
	var want pavise.Action
	for _, p := range set {
		asked, err := p.asks(e)
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range asked {
			want = max(want, a.action)
		}
	}
	if max(want, pavise.ActionAudit) != max(o.Action, pavise.ActionAudit) {
		t.Errorf("%s: %s, and the tests of policies have %s", e.AppendJSON(nil), o.Action, want)
	}
}

// TestTrialOfTests: the acts in the tests of the shipped policies come out as there, but where something is missing.
func TestTrialOfTests(t *testing.T) {
	files, err := os.ReadDir("../policies")
	if err != nil {
		t.Fatal(err)
	}
	tests, decided := 0, 0
	for _, d := range files {
		data, err := os.ReadFile("../policies/" + d.Name() + "/policy.yaml")
		if err != nil {
			continue
		}
		set, err := Parse("policy.yaml", data)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range set {
			trial, err := NewTrial([]*Policy{p})
			if err != nil {
				t.Fatal(err)
			}
			for i := range p.Tests {
				tests++
				if o := trial.Judge(p.Tests[i].Event, nil); len(o.Missing) == 0 {
					decided++
					agrees(t, []*Policy{p}, p.Tests[i].Event, o)
				}
			}
		}
	}
	if tests == 0 || decided < tests/2 {
		t.Errorf("%d of %d acts are decided", decided, tests)
	}
	t.Logf("%d of %d acts are decided", decided, tests)
}

func TestTrialOps(t *testing.T) {
	set, err := Parse("p.yaml", []byte(`apiVersion: pavise.dev/v1alpha1
kind: Policy
metadata: {name: p}
spec:
  default: {file.open: deny}
  rules:
  - {name: a, on: [net.bind], action: allow}
  - {name: b, on: [process.exec], action: audit}
`))
	if err != nil {
		t.Fatal(err)
	}
	trial, err := NewTrial(set)
	if err != nil {
		t.Fatal(err)
	}
	if got := trial.Ops(); !slices.Equal(got, []pavise.Op{pavise.OpExec, pavise.OpOpen}) {
		t.Errorf("it judges %v", got)
	}
	if o := trial.Judge(&pavise.Event{Op: pavise.OpBind}, nil); o.Action != pavise.ActionNone || len(o.Missing) > 0 {
		t.Errorf("%+v", o)
	}
}
