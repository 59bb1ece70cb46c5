package proc

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestUsers(t *testing.T) {
	dir := t.TempDir()
	passwd, group := filepath.Join(dir, "passwd"), filepath.Join(dir, "group")
	write := func(path, s string) {
		t.Helper()
		if err := os.WriteFile(path+".new", []byte(s), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
	}
	now := time.Unix(1000, 0)
	u := NewUsers(passwd, group, func() time.Time { return now })
	if got := u.Name(0); got != "" {
		t.Errorf("without a file: %q", got)
	}
	write(passwd, "root:x:0:0:root:/root:/bin/sh\ntoor:x:0:0::/root:/bin/sh\n#x:x:5:5\n+nis::6:\nbad\nbad:x\nbad:x:no:0:\nbad:x:-1:0:\nbad:x:4294967295:0:\n:x:9:\n"+
		"www-data:x:33:33::/:/bin/false\nroot:x:44:44:::\nlast:x:4294967294:1:::")
	write(group, "adm:x:4:a,b\nwww-data:*:33:\n")
	if got := u.Name(0); got != "" {
		t.Errorf("looked again within a second: %q", got)
	}
	now = now.Add(time.Second)
	for uid, want := range map[uint32]string{0: "root", 33: "www-data", 44: "root", 1<<32 - 2: "last", 1<<32 - 1: "", 5: "", 6: "", 9: ""} {
		if got := u.Name(uid); got != want {
			t.Errorf("%d: %q, want %q", uid, got, want)
		}
	}
	if id, err := u.LookupUser("toor"); id != 0 || err != nil {
		t.Error(id, err)
	}
	if id, err := u.LookupUser("www-data"); id != 33 || err != nil {
		t.Error(id, err)
	}
	if id, err := u.LookupGroup("adm"); id != 4 || err != nil {
		t.Error(id, err)
	}
	if _, err := u.LookupUser("bad"); !errors.Is(err, ErrUnknownName) {
		t.Error(err)
	}
	if _, err := u.LookupGroup("root"); !errors.Is(err, ErrUnknownName) {
		t.Error(err)
	}
	write(passwd, "root:x:0:0:root:/root:/bin/sh\nnew:x:7:7:::\n")
	now = now.Add(time.Second)
	if got := u.Name(7); got != "new" {
		t.Errorf("after a change: %q", got)
	}
	if got := u.Name(33); got != "" {
		t.Errorf("after a change: %q", got)
	}
	if err := os.Remove(passwd); err != nil {
		t.Fatal(err)
	}
	now = now.Add(time.Second)
	if got := u.Name(7); got != "new" {
		t.Errorf("while the file is away: %q", got)
	}
}

func BenchmarkUsersName(b *testing.B) {
	u := NewUsers("/etc/passwd", "/etc/group", nil)
	b.ReportAllocs()
	for b.Loop() {
		u.Name(0)
	}
}
