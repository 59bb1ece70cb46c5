package pavise_test

import (
	"strings"
	"testing"
)

// Every package says what it is for: "Package name ..." or, for a command, "Command name ...".
func TestPackageDocs(t *testing.T) {
	type pkg struct {
		name string
		docs []string
	}
	pkgs := map[string]*pkg{}
	for _, f := range sources(t) {
		p := pkgs[f.dir]
		if p == nil {
			p = &pkg{name: f.Name.Name}
			pkgs[f.dir] = p
		}
		if f.Doc != nil && strings.TrimSpace(f.Doc.Text()) != "" {
			p.docs = append(p.docs, f.Doc.Text())
		}
	}
	for dir, p := range pkgs {
		start := "Package " + p.name + " "
		if p.name == "main" {
			start = "Command "
		}
		switch {
		case len(p.docs) == 0:
			t.Errorf("%s: no file has a package comment", dir)
		case len(p.docs) > 1:
			t.Errorf("%s: %d files have a package comment; one is enough", dir, len(p.docs))
		case !strings.HasPrefix(p.docs[0], start):
			t.Errorf("%s: the package comment does not begin with %q", dir, start)
		}
	}
}
