package policy

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pavise-project/pavise"
)

func seeds(f *testing.F, kind string) {
	files, _ := filepath.Glob("testdata/" + kind + "-*.txt")
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		for _, c := range strings.Split(string(data), caseSep) {
			src, _, _ := strings.Cut(c, resultSep)
			if kind == "condition" {
				_, src, _ = strings.Cut(src, "\n")
			}
			f.Add(src)
		}
	}
}

// FuzzParse: no input makes Parse or Compile panic, and every error has a place inside of the file.
func FuzzParse(f *testing.F) {
	seeds(f, "policy")
	f.Add("--- |\n x\n--- >-\n a\n b\n")
	f.Add("apiVersion: \"\\x0a\"\n? [a]\n: b\n")
	m := testMachine()
	f.Fuzz(func(t *testing.T, src string) {
		if len(src) > 1<<14 {
			return
		}
		set, err := Parse("f", []byte(src))
		if err != nil {
			var es Errors
			ok := errors.As(err, &es)
			if !ok || len(es) == 0 {
				t.Fatalf("not a list: %v", err)
			}
			lines := strings.Count(src, "\n") + 1
			for _, e := range es {
				if e.Line < 0 || e.Line > lines+1 || e.Column < 0 || e.Msg == "" {
					t.Fatalf("bad place of %v in %d lines", e, lines)
				}
			}
		}
		if x, err := Explain(set, m); err == nil {
			Review(set, m, x.Report)
		}
		for _, p := range set { // the source of a policy is the policy
			again, err := Parse("f", p.Source)
			if err != nil || len(again) != 1 || again[0].Name != p.Name {
				t.Fatalf("source of %s does not parse: %v\n%q", p.Name, err, p.Source)
			}
			mode := ModeEnforce
			if p.Mode == mode {
				mode = ModeMonitor
			}
			other, err := p.WithMode(mode)
			if err != nil {
				continue
			}
			again, err = Parse("f", other.Source)
			if err != nil || len(again) != 1 || again[0].Name != p.Name || again[0].Mode != mode || len(again[0].Rules) != len(p.Rules) {
				t.Fatalf("source of %s in %s mode: %v\n%q\n%q", p.Name, mode, err, p.Source, other.Source)
			}
		}
	})
}

// FuzzCondition: no condition makes the checker, the normal form or the evaluation panic; where the kernel decides
// all of a condition, user space agrees; and what is explained is what was evaluated.
func FuzzCondition(f *testing.F) {
	seeds(f, "condition")
	m := testMachine()
	r := newRand()
	f.Fuzz(func(t *testing.T, src string) {
		if len(src) > 1<<12 {
			return
		}
		sets := &setFiles{read: testSets}
		x, errWhere := compileExprWith(src, false, sets)
		c, problems := checkWith(src, true, sets)
		if len(problems) == 0 && c.rate != nil { // the kernel alone counts
			if errWhere == nil {
				t.Fatalf("%q counts in user space", src)
			}
			return
		}
		if len(problems) == 0 && errWhere != nil {
			t.Fatalf("%q is for policies and not for events: %v", src, errWhere)
		}
		if len(problems) > 0 {
			return
		}
		for _, op := range judgedOps {
			n, err := normalise(op, m, nil, c)
			if err != nil || len(n.unknown) > 0 || len(c.checkOps([]pavise.Op{op}, false)) > 0 {
				continue
			}
			for range 8 {
				e := randomEvent(r, op)
				got, err := x.Eval(e)
				if want := cubesHold(n.cubes, facts(e)); err == nil && got != want {
					t.Fatalf("%q on %s: %v, want %v\n%+v\n%+v", src, op, got, want, e, e.Process)
				}
				why, errWhy := trace(c, e) // every part of it, and the same in all
				if errWhy != nil || err == nil && why.holds() != got {
					t.Fatalf("%q on %s: %v, explained as %+v, %v", src, op, got, why, errWhy)
				}
			}
		}
	})
}
