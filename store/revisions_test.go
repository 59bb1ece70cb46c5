package store

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func open(t *testing.T, dir string, faults int) *Revisions {
	t.Helper()
	r, damaged, err := OpenRevisions(dir)
	must(t, err)
	if len(damaged) != faults {
		t.Fatalf("damaged: %v, want %d", damaged, faults)
	}
	return r
}

func add(t *testing.T, r *Revisions, yaml string) *Revision {
	t.Helper()
	rev := &Revision{Time: time.Unix(1, 0).UTC(), From: "apply", Documents: []Document{{Name: "p", YAML: yaml, Sets: map[string][]byte{"s": {0xff}}}}}
	must(t, r.Add(rev))
	must(t, r.Set(Current{Revision: rev.Number}))
	return rev
}

func TestRevisions(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "r")
	r := open(t, dir, 0)
	if c := r.Current(); c.Revision != 0 {
		t.Error("new:", c)
	}
	a, b := add(t, r, "a"), add(t, r, "b")
	again := add(t, r, "a")
	if a.Number != 1 || again.Number != 3 || a.ID != again.ID || a.ID == b.ID {
		t.Error(a, b, again)
	}
	must(t, r.Set(Current{Revision: 2, Pending: &Pending{BackTo: 1, Boot: "x", Until: 5}}))
	r = open(t, dir, 0)
	if c := r.Current(); c.Revision != 2 || c.Pending == nil || c.Pending.BackTo != 1 || c.Pending.Until != 5 {
		t.Error("opened again:", c)
	}
	got, err := r.Get(2)
	if err != nil || got.Documents[0].YAML != "b" || got.Documents[0].Sets["s"][0] != 0xff || !got.Time.Equal(b.Time) {
		t.Error(got, err)
	}
	if _, err := r.Get(9); !errors.Is(err, ErrNoRevision) {
		t.Error(err)
	}
	if revs, damaged, err := r.List(); len(revs) != 3 || len(damaged) != 0 || err != nil {
		t.Error(revs, damaged, err)
	}
	for _, e := range []string{dir, r.name(1), r.currentName()} {
		st, err := os.Stat(e)
		must(t, err)
		if st.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s is open to others: %v", e, st.Mode())
		}
	}
}

// Whatever is cut or changed of a file is seen, and the one before is in force.
func TestDamage(t *testing.T) {
	dir := t.TempDir()
	r := open(t, dir, 0)
	add(t, r, "a")
	add(t, r, "b")
	for _, name := range []string{r.name(2), r.currentName()} {
		whole, err := os.ReadFile(name)
		must(t, err)
		for i := range whole {
			for _, bad := range [][]byte{whole[:i], append(append(whole[:i:i], whole[i]^1), whole[i+1:]...)} {
				must(t, os.WriteFile(name, bad, 0o600))
				o, damaged, err := OpenRevisions(dir)
				must(t, err)
				want := uint64(1)
				if name == r.currentName() {
					want = 2 // the newest that is whole
				}
				if len(damaged) != 1 || o.Current().Revision != want {
					t.Fatalf("%s cut or changed at %d: revision %d, %v", filepath.Base(name), i, o.Current().Revision, damaged)
				}
			}
		}
		must(t, os.WriteFile(name, append(whole, 'x'), 0o600))
		if _, damaged, _ := OpenRevisions(dir); len(damaged) != 1 {
			t.Error("longer:", damaged)
		}
		must(t, os.WriteFile(name, whole, 0o600))
	}
	// Of another version: said, not guessed.
	b, err := os.ReadFile(r.name(2))
	must(t, err)
	must(t, os.WriteFile(r.name(2), []byte(strings.Replace(string(b), "revision 1 ", "revision 2 ", 1)), 0o600))
	if _, err := r.Get(2); err == nil || !strings.Contains(err.Error(), "it is of version 2, and this agent reads version 1") {
		t.Error(err)
	}
	must(t, os.Remove(r.name(2)))
	must(t, os.Symlink("/etc/passwd", r.name(2)))
	if _, err := r.Get(2); err == nil {
		t.Error("followed a link")
	}
	must(t, os.WriteFile(filepath.Join(dir, ".new-123"), []byte("half"), 0o600))
	open(t, dir, 1)
	if _, err := os.Stat(filepath.Join(dir, ".new-123")); err == nil {
		t.Error("what a crash left is still there")
	}
}

func TestTrim(t *testing.T) {
	r := open(t, t.TempDir(), 0)
	first := add(t, r, "first")
	for range keepRevisions + 3 {
		rev := &Revision{Documents: []Document{{Name: "p"}}}
		must(t, r.Add(rev))
		must(t, r.Set(Current{Revision: rev.Number, Pending: &Pending{BackTo: first.Number}}))
	}
	revs, _, err := r.List()
	must(t, err)
	if len(revs) != keepRevisions+1 || revs[0].Number != first.Number || revs[1].Number != 5 {
		t.Errorf("%d revisions are kept, from %d and %d", len(revs), revs[0].Number, revs[1].Number)
	}
}

// A disk that is full, or read-only, changes nothing.
func TestNoRoom(t *testing.T) {
	dir := t.TempDir()
	r := open(t, dir, 0)
	add(t, r, "a")
	must(t, os.RemoveAll(dir)) // root may write everywhere else
	if err := r.Add(&Revision{}); err == nil {
		t.Error("added to nothing")
	}
	if err := r.Set(Current{Revision: 2}); err == nil || r.Current().Revision != 1 {
		t.Error("set:", err, r.Current())
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte("pavise revision 1 sha256:0000\n{}"))
	body := []byte(`{"number":1}`)
	f.Add(append(header(kindRevision, body), body...))
	f.Fuzz(func(t *testing.T, data []byte) {
		var rev Revision
		if err := decodeFile(data, kindRevision, &rev); err != nil && err.Error() == "" {
			t.Error("no message")
		}
	})
}
