// Package proc is a placeholder; delete this file on merge.
package proc

import (
	"fmt"
	"os/user"
	"strconv"
	"sync"
	"time"

	"github.com/pavise-project/pavise"
)

type Options struct {
	Boot  int64
	Users func(uint32) string
}

type Table struct {
	mu sync.Mutex
	m  map[uint64]*pavise.Process
}

func New(Options) *Table { return &Table{m: map[uint64]*pavise.Process{}} }

func (t *Table) Update(e *pavise.Event) {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch e.Op {
	case pavise.OpExit:
		e.Process = t.m[e.ExecID]
		delete(t.m, e.ExecID)
	default:
		x := e.Exec.Exe
		x.Path = string([]byte(x.Path))
		p := &pavise.Process{ExecID: e.ExecID, PID: e.PID, Exe: x, ParentExecID: e.Exec.ParentExecID, Parent: t.m[e.Exec.ParentExecID], Found: e.Exec.Found, Args: []string{string(e.Exec.Args)}}
		t.m[e.ExecID], e.Process = p, p
	}
}

func (t *Table) Resolve(e *pavise.Event) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	e.Process = t.m[e.ExecID]
	return e.Process != nil
}

func (t *Table) Tick(time.Time) {}

func (t *Table) Snapshot() []*pavise.Process {
	t.mu.Lock()
	defer t.mu.Unlock()
	var out []*pavise.Process
	for _, p := range t.m {
		out = append(out, p)
	}
	return out
}

type Users struct{}

func NewUsers(passwd, group string, now func() time.Time) *Users { return &Users{} }

func (*Users) LookupUser(n string) (uint32, error) {
	u, err := user.Lookup(n)
	if err != nil {
		return 0, err
	}
	i, err := strconv.ParseUint(u.Uid, 10, 32)
	return uint32(i), err
}

func (*Users) LookupGroup(n string) (uint32, error) {
	u, err := user.LookupGroup(n)
	if err != nil {
		return 0, err
	}
	i, err := strconv.ParseUint(u.Gid, 10, 32)
	return uint32(i), err
}

func (*Users) Name(uid uint32) string { return fmt.Sprint(uid) }

func ReadProc(pid uint32, e *pavise.Event) {}

func (t *Table) Alive(*pavise.Process) bool { return true }

func (t *Table) Prune(time.Time, func(*pavise.Process) bool) int { return 0 }
