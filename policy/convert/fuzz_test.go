package convert

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pavise-project/pavise/policy"
)

// FuzzConvert: no input makes Convert panic; what it makes are policies, and every finding and error has a place in the input.
func FuzzConvert(f *testing.F) {
	files, _ := filepath.Glob("testdata/*.txt")
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		for _, c := range strings.Split(string(data), caseSep) {
			src, _, _ := strings.Cut(c, resultSep)
			f.Add(src, true)
		}
	}
	f.Add("a: &a [*a]", false)
	f.Add("apiVersion: cilium.io/v1\nkind: TracingPolicy\nmetadata: {name: \"a\\n# b\", labels: {\"x\\ny\": \"\\u2028\"}}\nspec: {kprobes: [{call: sys_execve, message: \"\\0\\x85\\n---\\n\", tags: [\"a, b]\"]}]}", true)
	f.Fuzz(func(t *testing.T, src string, enforce bool) {
		if len(src) > 1<<13 {
			return
		}
		res, err := Convert([]File{{"f.yaml", []byte(src)}}, Options{Enforce: enforce})
		lines := strings.Count(src, "\n") + 2
		if err != nil {
			var es policy.Errors
			if !errors.As(err, &es) || len(es) == 0 {
				t.Fatalf("not a list: %v", err)
			}
			for _, e := range es {
				if e.Line < 0 || e.Line > lines || e.Msg == "" {
					t.Fatalf("bad place of %v in %d lines", e, lines)
				}
			}
			return
		}
		for _, fd := range res.Findings {
			if fd.Line < 1 || fd.Line > lines || fd.Message == "" || strings.ContainsAny(fd.String(), "\n\r") {
				t.Fatalf("bad finding %q in %d lines", fd.String(), lines)
			}
		}
		if len(res.Policies) == 0 {
			if len(res.Findings) == 0 {
				t.Fatal("nothing was made, and nothing says so")
			}
			return
		}
		out := res.YAML()
		if len(out) > 1<<20 {
			return
		}
		ps, err := policy.Parse("out.yaml", []byte(out))
		if err != nil || len(ps) != len(res.Policies) {
			t.Fatalf("%d policies become %d: %v\n%s", len(res.Policies), len(ps), err, out)
		}
		for i, p := range ps {
			if p.Name != res.Policies[i].Name || !enforce && p.Mode != policy.ModeMonitor {
				t.Fatalf("%s is %s, %s", res.Policies[i].Name, p.Name, p.Mode)
			}
		}
		if _, _, err := policy.Compile(ps, machine); err != nil && !strings.Contains(err.Error(), "assemble") {
			t.Fatalf("%v\n%s", err, out)
		}
	})
}
