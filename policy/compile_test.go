package policy

import (
	"errors"
	"strings"
	"testing"

	"github.com/pavise-project/pavise"
)

func mustParse(t *testing.T, name, src string) []*Policy {
	t.Helper()
	set, err := Parse(name, []byte(src))
	if err != nil {
		t.Fatal(err)
	}
	return set
}

const head = "apiVersion: pavise.dev/v1alpha1\nkind: Policy\nmetadata: {name: "

func TestCompileSet(t *testing.T) {
	m := testMachine()
	a := head + "a}\nspec:\n  mode: enforce\n  rules: [{name: r, on: [file.open], when: 'file.path == \"/x\"', action: deny}]\n"
	set := mustParse(t, "a.yaml", a)
	img, report, err := Compile(set, m)
	if err != nil || len(img.Rules) != 1 || len(report.Policies) != 1 || strings.Join(img.Protected, " ") != "/x" {
		t.Fatal(img, report, err)
	}
	kept := set[0].cache
	if _, _, err := Compile(set, m); err != nil || set[0].cache != kept {
		t.Error("normal form is made again", err)
	}
	if _, _, err := Compile(set, testMachine()); err != nil || set[0].cache == kept {
		t.Error("normal form of another machine is used", err)
	}
	_, _, err = Compile(append(set, mustParse(t, "b.yaml", a)...), m)
	var one *Error
	if !errors.As(err, &one) || !strings.Contains(one.Msg, "duplicate policy name") || one.File != "b.yaml" {
		t.Error(err)
	}
	x, err := Explain(set, m)
	if err != nil || x.Atoms != 1 || x.Normal != "a/r file.open deny: path /x\nprotected /x\n" || x.Image == nil {
		t.Error(x, err)
	}
	if img, _, err := Compile(nil, m); err != nil || len(img.Rules) != 0 {
		t.Error("the empty set", err)
	}
}

// TestSource: a policy's source is its own document, and parses to the same.
func TestSource(t *testing.T) {
	doc := "  # one\n  apiVersion: pavise.dev/v1alpha1\n  kind: Policy\n  metadata: {name: a}\n  spec: {rules: [{name: r, on: [net.send], action: audit}]}"
	set := mustParse(t, "x", "---\n\n"+doc+"\n\n---\n"+strings.Replace(doc, "name: a", "name: b", 1)+"\n")
	if len(set) != 2 || string(set[0].Source) != doc || set[1].Name != "b" || set[1].Line != 9 {
		t.Fatalf("%q %d", set[0].Source, set[1].Line)
	}
	if again := mustParse(t, "x", string(set[0].Source)); again[0].Name != "a" {
		t.Error("the source is another policy")
	}
}

func TestParseLimits(t *testing.T) {
	for src, want := range map[string]string{
		strings.Repeat("#", maxFile+1): "f: file of 1048577 bytes is too long: the limit is 1048576; split it",
		"a: b\nc: \x00":                "f:2:4: file has a NUL byte",
		"a: b\nc: é\rd: e":             "f:2:5: unusual line break; end lines with a newline",
		"a: \xff":                      "f: file is not UTF-8",
		"a: \"\\0\"":                   "f:1:4: value has a NUL byte",
	} {
		if _, err := Parse("f", []byte(src)); err == nil || err.Error() != want {
			t.Errorf("%.20q: %v", src, err)
		}
	}
	good := head + "good}\nspec: {rules: [{name: r, on: [net.send], action: audit}]}\n"
	if set, err := Parse("f", []byte(good+"---\n"+head+"bad}\n")); err == nil || len(set) != 1 {
		t.Error("the good policies of a bad file", set, err)
	}
}

// TestFields holds the table to itself: every field that the kernel decides has a dimension, and every other a tip.
func TestFields(t *testing.T) {
	for _, f := range Fields() {
		if f.Doc == "" || !strings.HasSuffix(f.Doc, ".") {
			t.Errorf("%s has no sentence", f.Name)
		}
		if f.kind != kindUser && f.kind != kindDirection && f.Dim == DimNone {
			t.Errorf("%s has no dimension", f.Name)
		}
		if f.kind == kindUser && !f.Only && f.Tip == "" {
			t.Errorf("%s has no tip", f.Name)
		}
		if f.kind != kindUser && works[f.kind] == "" {
			t.Errorf("%s: nothing says what it can be asked", f.Name)
		}
		if v := fieldByName[f.Name].value(&pavise.Event{}); v == nil {
			t.Errorf("%s has no zero value", f.Name)
		}
	}
	for _, f := range Functions() {
		src := f.Example
		if f.Name == "under" {
			src += " == true"
		}
		if _, problems := checkWith(src, true, &setFiles{read: func(string) ([]byte, error) { return []byte("/a\n"), nil }}); len(problems) > 0 {
			t.Errorf("%s: %v", f.Name, problems)
		}
	}
}
