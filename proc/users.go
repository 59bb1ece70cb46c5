package proc

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"
)

// ErrUnknownName is wrapped by the error for a user or group that the machine's files do not have.
var ErrUnknownName = errors.New("name is unknown")

// How much of a file of users is believed: a larger one is read in part.
const (
	maxUsersFile = 8 << 20
	maxUsers     = 100_000
)

// Users knows the names of users and groups, from files in the form of passwd(5) and group(5) and
// nothing else: no name service is asked, so no lookup waits for a network. A file is read again
// when it has changed, which is looked for once a second at most. It is safe for concurrent use.
type Users struct {
	now func() time.Time

	mu     sync.Mutex
	passwd nameFile
	group  nameFile
}

// nameFile is one file and what it said when it was read.
type nameFile struct {
	path    string
	checked time.Time
	mtime   time.Time
	size    int64
	inode   uint64
	byID    map[uint32]string
	byName  map[string]uint32
}

// NewUsers reads users from passwd and groups from group, which are /etc/passwd and /etc/group
// but in tests. Nothing is read before the first question. Now is the clock, nil for the machine's.
func NewUsers(passwd, group string, now func() time.Time) *Users {
	if now == nil {
		now = time.Now
	}
	return &Users{now: now, passwd: nameFile{path: passwd}, group: nameFile{path: group}}
}

// Name is the name of the user uid, or "" when there is none. The first of several names wins.
func (u *Users) Name(uid uint32) string {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.passwd.refresh(u.now())
	return u.passwd.byID[uid]
}

// LookupUser is the uid of a user's name. The error wraps ErrUnknownName.
func (u *Users) LookupUser(name string) (uint32, error) {
	return u.lookup(&u.passwd, "user", name)
}

// LookupGroup is the gid of a group's name. The error wraps ErrUnknownName.
func (u *Users) LookupGroup(name string) (uint32, error) {
	return u.lookup(&u.group, "group", name)
}

func (u *Users) lookup(f *nameFile, what, name string) (uint32, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	f.refresh(u.now())
	if id, ok := f.byName[name]; ok {
		return id, nil
	}
	return 0, fmt.Errorf("look up %s %q: %w", what, name, ErrUnknownName)
}

// refresh reads f again if it has changed. A file that cannot be read keeps what it said before: it
// is replaced by a rename, and names must not come and go meanwhile.
func (f *nameFile) refresh(now time.Time) {
	if since := now.Sub(f.checked); !f.checked.IsZero() && since >= 0 && since < time.Second {
		return
	}
	f.checked = now
	r, err := os.Open(f.path)
	if err != nil {
		return
	}
	defer r.Close()
	st, err := r.Stat()
	if err != nil {
		return
	}
	var inode uint64
	if s, ok := st.Sys().(*syscall.Stat_t); ok {
		inode = s.Ino
	}
	if f.byID != nil && st.ModTime().Equal(f.mtime) && st.Size() == f.size && inode == f.inode {
		return
	}
	data, err := io.ReadAll(io.LimitReader(r, maxUsersFile))
	if err != nil {
		return
	}
	f.mtime, f.size, f.inode = st.ModTime(), st.Size(), inode
	f.parse(data)
}

// parse reads name:password:id[:…] lines and skips those that are not.
func (f *nameFile) parse(data []byte) {
	f.byID, f.byName = map[uint32]string{}, map[string]uint32{}
	for line := range bytes.Lines(data) {
		if len(f.byName) >= maxUsers {
			return
		}
		name, rest, ok := bytes.Cut(bytes.TrimRight(line, "\r\n"), []byte(":"))
		if !ok || len(name) == 0 || name[0] == '#' || name[0] == '+' || name[0] == '-' {
			continue
		}
		_, rest, ok = bytes.Cut(rest, []byte(":"))
		if !ok {
			continue
		}
		id, _, ok := bytes.Cut(rest, []byte(":"))
		if !ok {
			continue
		}
		n, err := strconv.ParseUint(string(id), 10, 32)
		if err != nil || n == 1<<32-1 {
			continue
		}
		s := string(name)
		if _, dup := f.byName[s]; !dup {
			f.byName[s] = uint32(n)
		}
		if _, dup := f.byID[uint32(n)]; !dup {
			f.byID[uint32(n)] = s
		}
	}
}
