package pavise_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/pavise-project/pavise"

// law says which rooms each room may import; what those may import, it may too. "" is package
// pavise. A room that is not here has no place in the house yet. (After go/build's deps_test.go.)
var law = map[string][]string{
	"":         nil,
	"policy":   {""},
	"proc":     {""},
	"flow":     {""},
	"detect":   {""},
	"store":    {""},
	"export":   {""},
	"ui":       {""},
	"policies": {""}, // the shipped library
	"bpf":      {""},
	"decode":   {"bpf"},
	"enforce":  {"bpf", "policy"},
	"agent":    {"policy", "proc", "flow", "detect", "store", "export", "ui", "policies", "bpf", "decode", "enforce"},
	"fleet":    {"ui", "policy", "store", "export"},
	"cmd":      {"agent", "fleet", "policy"},
}

// outside says which rooms may import, themselves, what is not theirs to ask for everywhere.
var outside = map[string][]string{
	"github.com/cilium/ebpf": {"bpf", "enforce"},
	"github.com/spf13/cobra": {"cmd"},
	"flag":                   {"cmd"},
	"cel.dev/cel-go":         {"policy", "detect"},
	"github.com/parquet-go":  {"store"},
	"os/signal":              {"cmd", "agent", "fleet"},
}

func TestImportLaw(t *testing.T) {
	for _, f := range sources(t) {
		room := roomOf(f.dir)
		if room == "internal" {
			continue // the test kit may import what it tests
		}
		if _, ok := law[room]; !ok {
			t.Errorf("%s: %q is no room of the house: see law in deps_test.go", f.name, room)
			continue
		}
		for _, spec := range f.Imports {
			imported, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				t.Fatal(err)
			}
			if inside, ok := strings.CutPrefix(imported+"/", module+"/"); ok {
				to := roomOf(path.Clean(inside))
				if to == "internal" {
					t.Errorf("%s imports the test kit, %s", f.name, imported)
				} else if to != room && !slices.Contains(allowed(room), to) {
					t.Errorf("%s imports %s: room %q may import %q", f.name, imported, room, allowed(room))
				}
				continue
			}
			if room == "" && strings.Contains(strings.Split(imported, "/")[0], ".") {
				t.Errorf("%s imports %s: package pavise needs the standard library only", f.name, imported)
			}
			for prefix, rooms := range outside {
				if strings.HasPrefix(imported+"/", prefix+"/") && !slices.Contains(rooms, room) {
					t.Errorf("%s imports %s, which is for %q", f.name, imported, rooms)
				}
			}
		}
	}
}

// Only cmd reads the environment: elsewhere, a setting is an argument.
func TestEnvironmentIsReadByCmd(t *testing.T) {
	for _, f := range sources(t) {
		if room := roomOf(f.dir); room == "cmd" || room == "internal" {
			continue
		}
		ast.Inspect(f.File, func(n ast.Node) bool {
			sel, ok := n.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			if pkg, ok := sel.X.(*ast.Ident); ok && pkg.Name == "os" &&
				slices.Contains([]string{"Getenv", "LookupEnv", "Environ", "Args"}, sel.Sel.Name) {
				t.Errorf("%s: os.%s is for cmd", f.fset.Position(n.Pos()), sel.Sel.Name)
			}
			return true
		})
	}
}

// allowed returns the rooms that a room may import, directly or through another.
func allowed(room string) []string {
	var rooms []string
	for _, r := range law[room] {
		rooms = append(append(rooms, r), allowed(r)...)
	}
	slices.Sort(rooms)
	return slices.Compact(rooms)
}

// roomOf returns the first element of a directory, "" for the root.
func roomOf(dir string) string {
	if dir == "." {
		return ""
	}
	room, _, _ := strings.Cut(dir, "/")
	return room
}

type source struct {
	*ast.File
	fset      *token.FileSet
	name, dir string
}

// sources parses the Go files of the module that are no tests.
func sources(t *testing.T) []source {
	t.Helper()
	var files []source
	err := filepath.WalkDir(".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if base := d.Name(); d.IsDir() {
			if name != "." && (strings.HasPrefix(base, ".") || base == "testdata" || base == "bin") {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") {
			return nil
		}
		fset := token.NewFileSet()
		f, err := parser.ParseFile(fset, name, nil, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		files = append(files, source{f, fset, name, filepath.ToSlash(filepath.Dir(name))})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}
