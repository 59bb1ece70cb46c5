package policy

import (
	"fmt"
	"strings"
	"testing"

	"github.com/pavise-project/pavise"
)

// TestRecheck judges the connections of testdata/established by the policies there; what becomes of each is printed.
func TestRecheck(t *testing.T) {
	runCases(t, "testdata/established/established.txt", rechecked)
}

func rechecked(t *testing.T, src string) string {
	m := machineFor(t, src)
	var events []*pavise.Event
	for {
		line, rest, _ := strings.Cut(src, "\n")
		if text, ok := strings.CutPrefix(line, "event: "); ok {
			e, err := pavise.ParseEvent([]byte(text))
			if err != nil {
				t.Fatal(err)
			}
			events = append(events, e)
		} else if !strings.HasPrefix(line, "#") {
			break
		}
		src = rest
	}
	set, err := Parse("p.yaml", []byte(src))
	if err != nil {
		t.Fatal(err)
	}
	_, report, err := Compile(set, m)
	if err != nil {
		t.Fatal(err)
	}
	r, err := NewRecheck(set, report)
	if err != nil {
		t.Fatal(err)
	}
	if r == nil {
		return "no policy asks for it\n"
	}
	var b strings.Builder
	for _, e := range events {
		o, tell := r.Judge(e, strings.Fields(e.Net.RemoteName), func(field string) bool { return field == "net.local.port" && e.Op == pavise.OpConnect })
		switch {
		case len(o.Missing) > 0:
			fmt.Fprintf(&b, "unknown; missing %s\n", strings.Join(o.Missing, " "))
		case o.Action < pavise.ActionDeny:
			b.WriteString("kept\n")
		case tell:
			fmt.Fprintf(&b, "would be ended by %s/%s\n", o.Policy.Name, o.Rule)
		default:
			fmt.Fprintf(&b, "ended by %s/%s\n", o.Policy.Name, o.Rule)
		}
	}
	return b.String()
}

// TestRecheckAncestors: all ancestors of a process that is there are known, unless the first of them has one that is not.
func TestRecheckAncestors(t *testing.T) {
	set, err := Parse("p.yaml", []byte(`apiVersion: pavise.dev/v1alpha1
kind: Policy
metadata: {name: p}
spec:
  mode: enforce
  established: recheck
  subject: process.ancestors.exists(a, a.exe.path == "/x")
  default: {net.connect: deny}
`))
	if err != nil {
		t.Fatal(err)
	}
	_, report, err := Compile(set, testMachine())
	if err != nil {
		t.Fatal(err)
	}
	r, err := NewRecheck(set, report)
	if err != nil {
		t.Fatal(err)
	}
	process := func(above uint64, chain ...string) *pavise.Process {
		p := &pavise.Process{ExecID: above + 1, ParentExecID: above, Exe: pavise.FileInfo{Path: chain[len(chain)-1]}}
		for i := len(chain) - 2; i >= 0; i-- {
			p = &pavise.Process{ExecID: p.ExecID + 1, ParentExecID: p.ExecID, Parent: p, Exe: pavise.FileInfo{Path: chain[i]}}
		}
		return p
	}
	for _, c := range []struct {
		p       *pavise.Process
		ended   bool
		unknown bool
	}{
		{process(0, "/a", "/b", "/x"), true, false},
		{process(7, "/a", "/b", "/x"), true, false},
		{process(0, "/a", "/b", "/c"), false, false},
		{process(7, "/a", "/b", "/c"), false, true},
		{process(0, "/x"), false, false},
	} {
		o, tell := r.Judge(&pavise.Event{Op: pavise.OpConnect, Process: c.p, Net: pavise.NetInfo{Family: pavise.FamilyIPv4}}, nil, nil)
		if (o.Action == pavise.ActionDeny && !tell) != c.ended || (len(o.Missing) > 0) != c.unknown {
			t.Errorf("%+v: %s, missing %v", c.p, o.Action, o.Missing)
		}
	}
}
