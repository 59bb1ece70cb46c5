package policy

import (
	"bytes"
	"strings"
	"testing"

	"github.com/pavise-project/pavise"
)

// TestWithMode: a policy in another mode is the same policy, compiled anew; its source says so, and is otherwise as it was.
func TestWithMode(t *testing.T) {
	const rules = "rules: [{name: r, on: [file.open], when: 'file.path == \"/mode: monitor/é\"', action: deny}]"
	for _, c := range []struct{ name, from, to string }{
		{"block", "spec:\n  mode: monitor # for now\n  " + rules, "spec:\n  mode: enforce # for now\n  " + rules},
		{"quotes", "spec:\n  mode: \"monitor\"\n  " + rules, "spec:\n  mode: \"enforce\"\n  " + rules},
		{"single quotes", "spec:\n  'mode': 'monitor'\n  " + rules, "spec:\n  'mode': 'enforce'\n  " + rules},
		{"last", "spec:\n  " + rules + "\n  mode: monitor", "spec:\n  " + rules + "\n  mode: enforce"},
		{"flow", "spec: {" + rules + ", mode: monitor}", "spec: {" + rules + ", mode: enforce}"},
		{"flow, behind wide characters", "spec: {subject: 'process.exe.path == \"/ü/€\"', mode: monitor, " + rules + "}", "spec: {subject: 'process.exe.path == \"/ü/€\"', mode: enforce, " + rules + "}"},
		{"flow over lines", "spec: {\n  " + rules + ",\n  mode: monitor}", "spec: {\n  " + rules + ",\n  mode: enforce}"},
		{"absent", "spec:\n    # a comment\n    " + rules, "spec:\n    # a comment\n    mode: enforce\n    " + rules},
		{"absent, flow", "spec: {" + rules + "}", "spec: {mode: enforce, " + rules + "}"},
		{"carriage returns", "spec:\r\n  mode: monitor\r\n  " + rules, "spec:\r\n  mode: enforce\r\n  " + rules},
		{"a mode elsewhere", "spec:\n  mode: monitor\n  " + strings.Replace(rules, "name: r", "name: mode, message: 'mode: monitor'", 1), "spec:\n  mode: enforce\n  " + strings.Replace(rules, "name: r", "name: mode, message: 'mode: monitor'", 1)},
	} {
		t.Run(c.name, func(t *testing.T) {
			const other = head + "other}\nspec: {mode: enforce, rules: [{name: r, on: [net.send], action: audit}]}\n---\n"
			p := mustParse(t, "p.yaml", other+head+"p, labels: {mode: monitor}}\n"+c.from)[1]
			m := testMachine()
			compiled := func(p *Policy) (*Image, *PolicyReport) {
				img, rep, err := Compile([]*Policy{p}, m)
				if err != nil {
					t.Fatal(err)
				}
				return img, &rep.Policies[0]
			}
			img, _ := compiled(p)
			if img.Ops[pavise.OpOpen].Words[0].Monitor != true {
				t.Fatal("it is not in monitor mode at first")
			}
			before := bytes.Clone(p.Source)
			q, err := p.WithMode(ModeEnforce)
			if err != nil {
				t.Fatal(err)
			}
			if want := head + "p, labels: {mode: monitor}}\n" + c.to; string(q.Source) != want || q.Mode != ModeEnforce {
				t.Errorf("mode %s, source\n%s\nwant\n%s", q.Mode, q.Source, want)
			}
			if !bytes.Equal(p.Source, before) || p.Mode != ModeMonitor {
				t.Error("the policy itself was changed")
			}
			img, rep := compiled(q)
			if img.Ops[pavise.OpOpen].Words[0].Monitor || rep.Mode != ModeEnforce || rep.Rules[0].State != StateEnforced {
				t.Errorf("it compiles to %+v", rep)
			}
			_, old := compiled(p)
			if rep.Line != old.Line || rep.Rules[0].Line != old.Rules[0].Line || rep.File != "p.yaml" {
				t.Errorf("line %d, rule's line %d, they were %d and %d", rep.Line, rep.Rules[0].Line, old.Line, old.Rules[0].Line)
			}
			if r := mustParse(t, "again", string(q.Source))[0]; r.Mode != ModeEnforce || r.Name != "p" {
				t.Error("the source is another policy")
			}
			if back, err := q.WithMode(ModeMonitor); err != nil || back.Mode != ModeMonitor || !strings.Contains(c.name, "absent") && !bytes.Equal(back.Source, before) {
				t.Errorf("and back: %v\n%s", err, back.Source)
			}
			if same, err := q.WithMode(ModeEnforce); err != nil || same != q {
				t.Error("the mode that it has makes another policy of it")
			}
		})
	}
	p := mustParse(t, "p.yaml", head+"p}\nspec:\n  mode: >-\n    monitor\n  "+rules)[0]
	_, err := p.WithMode(ModeEnforce)
	if want := `p.yaml:1:1: spec.mode: is written in a way that cannot be changed in place; write "mode: enforce" on a line of its own, and apply the file`; err == nil || err.Error() != want {
		t.Error(err)
	}
}
