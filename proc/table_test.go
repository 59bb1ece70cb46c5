package proc

import (
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"

	pavise "github.com/pavise-project/pavise"
)

const boot = int64(1_700_000_000_000_000_000)

// The records of a test: at is in nanoseconds since boot.
func forkRec(id, parent uint64, pid uint32, at uint64) *pavise.Event {
	return &pavise.Event{
		Op: pavise.OpFork, Time: boot + int64(at), ExecID: id, PID: pid, TID: pid,
		Exec: pavise.ExecInfo{ParentExecID: parent, StartTime: at, LoginID: 1<<32 - 1, EUID: 33, CgroupID: 7},
	}
}

func execRec(id, parent uint64, pid uint32, start, at uint64, exe string) *pavise.Event {
	return &pavise.Event{
		Op: pavise.OpExec, Time: boot + int64(at), ExecID: id, PID: pid, TID: pid,
		Exec: pavise.ExecInfo{
			ParentExecID: parent, StartTime: start, LoginID: 1000, EUID: 33, UID: 33, CgroupID: 7, Cgroup: "/system.slice/nginx.service",
			Exe: pavise.FileInfo{Path: exe, Inode: 5, FS: "ext4"}, CWD: "/srv", Args: []byte(exe + "\x00-x\x00\x00"), Comm: "c",
		},
	}
}

func foundRec(id, parent uint64, pid uint32, start, at uint64, exe string) *pavise.Event {
	e := execRec(id, parent, pid, start, at, exe)
	e.Exec.Found = true
	return e
}

func exitRec(id uint64, pid uint32, at uint64) *pavise.Event {
	return &pavise.Event{Op: pavise.OpExit, Time: boot + int64(at), ExecID: id, PID: pid, TID: pid}
}

func newTable(o Options) *Table {
	o.Boot = boot
	return New(o)
}

// feed updates t with all, and then holds its books against its contents.
func feed(t *testing.T, tab *Table, events ...*pavise.Event) {
	t.Helper()
	for _, e := range events {
		tab.Update(e)
		if e.Process == nil {
			t.Fatalf("no process for %s of %d", e.Op, e.ExecID)
		}
	}
	audit(t, tab)
}

// audit recounts everything that Table counts as it goes.
func audit(t *testing.T, tab *Table) {
	t.Helper()
	kids := map[uint64]int32{}
	n, cost := 0, 0
	seen := map[*image]int{}
	for _, l := range []*list{&tab.live, &tab.pinned, &tab.ended} {
		count := 0
		for en := l.first(); en != nil; en = l.after(en) {
			count++
			if tab.byID[en.p.ExecID] != en || en.in != l {
				t.Fatalf("%d is not where it should be", en.p.ExecID)
			}
			if en.p.Parent != nil && en.p.Parent.Parent != nil {
				t.Fatalf("%d has a grandparent in memory", en.p.ExecID)
			}
			if (l == &tab.live) != (en.p.ExitTime == 0) || (l == &tab.live) != (tab.byPID[en.p.PID] == en) {
				t.Fatalf("%d: exit time %d", en.p.ExecID, en.p.ExitTime)
			}
			if (l == &tab.pinned && en.kids == 0) || (l == &tab.ended && en.kids != 0) {
				t.Fatalf("%d has %d children in the wrong list", en.p.ExecID, en.kids)
			}
			if l != &tab.ended && en.p.ParentExecID != 0 {
				kids[en.p.ParentExecID]++
			}
			if en.img != nil {
				seen[en.img]++
			}
		}
		if count != l.n {
			t.Fatalf("a list of %d says %d", count, l.n)
		}
		n += count
	}
	if n != len(tab.byID) || len(tab.byPID) != tab.live.n {
		t.Fatalf("%d in lists, %d by id; %d live, %d by pid", n, len(tab.byID), tab.live.n, len(tab.byPID))
	}
	for img, refs := range seen {
		if img.refs != refs {
			t.Fatalf("an account of %d says %d", refs, img.refs)
		}
		cost += img.cost
	}
	if cost != tab.bytes {
		t.Fatalf("%d bytes, counted %d", cost, tab.bytes)
	}
	for id, k := range kids {
		if en := tab.byID[id]; en != nil {
			if en.kids != k {
				t.Fatalf("%d has %d children, counted %d", id, k, en.kids)
			}
		} else if tab.orphans[id] != k {
			t.Fatalf("%d, unknown, has %d children, counted %d", id, k, tab.orphans[id])
		}
	}
	for id, k := range tab.orphans {
		if kids[id] != k {
			t.Fatalf("%d has %d orphans, counted %d", id, kids[id], k)
		}
	}
	for _, en := range tab.byID {
		if kids[en.p.ExecID] != en.kids {
			t.Fatalf("%d has %d children, counted %d", en.p.ExecID, kids[en.p.ExecID], en.kids)
		}
	}
}

func ids(tab *Table, p *pavise.Process) (list []uint64) {
	for q := range tab.Ancestors(p) {
		list = append(list, q.ExecID)
	}
	return list
}

func TestForkExecExit(t *testing.T) {
	tab := newTable(Options{Users: func(uid uint32) string { return fmt.Sprint("u", uid) }})
	ex := execRec(2, 1, 100, 50, 60, "/usr/sbin/nginx")
	feed(t, tab, foundRec(1, 0, 1, 1, 10, "/sbin/init"), forkRec(22, 1, 100, 50), ex)
	p := ex.Process
	if p.Exe.Path != "/usr/sbin/nginx" || !slices.Equal(p.Args, []string{"/usr/sbin/nginx", "-x", ""}) || p.CWD != "/srv" || p.User.Name != "u33" ||
		p.Unit != "nginx.service" || p.StartTime != boot+50 || p.Found || p.LoginID == nil || *p.LoginID != 1000 || p.Parent == nil || p.Parent.ExecID != 1 {
		t.Errorf("%+v", p)
	}
	if old := tab.Lookup(22); old.ExitTime != boot+60 || old.Exe.Path != "/sbin/init" || old.PID != 100 {
		t.Errorf("the image before exec: %+v", old)
	}
	child := forkRec(3, 2, 101, 70)
	feed(t, tab, child)
	c := child.Process
	if c.Exe.Path != "/usr/sbin/nginx" || len(c.Args) != 3 || c.CWD != "/srv" || c.Unit != "nginx.service" || c.Cgroup == "" || c.ExecID != 3 || c.PID != 101 ||
		c.StartTime != boot+70 || c.ParentExecID != 2 || c.Parent.ExecID != 2 || c.Parent.Exe.Path != "/usr/sbin/nginx" || c.LoginID != nil {
		t.Errorf("%+v", c)
	}
	elsewhere := forkRec(4, 2, 102, 71)
	elsewhere.Exec.CgroupID = 8
	thread := forkRec(2, 1, 100, 72)
	thread.Exec.Thread, thread.TID = true, 103
	feed(t, tab, elsewhere, thread)
	if e := elsewhere.Process; e.Unit != "" || e.Cgroup != "" || e.CgroupID != 8 {
		t.Errorf("cloned into another cgroup: %+v", e)
	}
	if thread.Process != p || tab.Stats().Live != 4 {
		t.Errorf("a thread is not a process: %+v", tab.Stats())
	}
	open := &pavise.Event{Op: pavise.OpOpen, ExecID: 3, PID: 101}
	verdict := &pavise.Event{Op: pavise.OpExec, Action: pavise.ActionDeny, ExecID: 3, PID: 101, File: pavise.FileInfo{Path: "/bin/sh"}}
	feed(t, tab, open, verdict)
	if open.Process != c || verdict.Process != c {
		t.Error("not resolved")
	}
	// The parent execs again: the child's parent stays the image that forked it.
	feed(t, tab, execRec(5, 1, 100, 50, 80, "/bin/new"))
	if got := ids(tab, c); !slices.Equal(got, []uint64{2, 1}) {
		t.Error(got)
	}
	exit := exitRec(3, 101, 90)
	feed(t, tab, exit)
	if exit.Process.ExitTime != boot+90 || c.ExitTime != 0 || tab.LookupPID(101) != nil || tab.Lookup(3) != exit.Process {
		t.Error("exit")
	}
	unknown := &pavise.Event{Op: pavise.OpOpen, ExecID: 999, PID: 77}
	if tab.Resolve(unknown) || !unknown.Process.Unknown || unknown.Process.PID != 77 || tab.Stats().Unknown != 1 {
		t.Errorf("%+v", unknown.Process)
	}
	none := &pavise.Event{Op: pavise.OpExit, PID: 102, Time: boot + 91}
	feed(t, tab, none)
	if tab.LookupPID(102) != nil || tab.Lookup(0) != nil {
		t.Error("an exit without exec_id")
	}
}

func TestRetention(t *testing.T) {
	tab := newTable(Options{Retain: time.Minute})
	const sec = uint64(time.Second)
	// 1 forks 2 forks 3 forks 4; 2 and 3 end, and 4 keeps them.
	feed(t, tab, foundRec(1, 0, 1, 1, 2, "/init"), forkRec(2, 1, 2, 3), forkRec(3, 2, 3, 4), forkRec(4, 3, 4, 5),
		exitRec(2, 2, 10*sec), exitRec(3, 3, 11*sec))
	tick := func(at uint64) {
		t.Helper()
		tab.Tick(time.Unix(0, boot+int64(at)))
		audit(t, tab)
	}
	tick(1000 * sec)
	if got := ids(tab, tab.Lookup(4)); !slices.Equal(got, []uint64{3, 2, 1}) {
		t.Fatal(got)
	}
	feed(t, tab, exitRec(4, 4, 2000*sec))
	tick(2000 * sec)
	if tab.Lookup(2) != nil || tab.Lookup(3) != nil || tab.Lookup(4) == nil {
		t.Error("ancestors of what ended")
	}
	tick(2059 * sec)
	if tab.Lookup(4) == nil {
		t.Error("dropped too early")
	}
	tick(2060 * sec)
	if tab.Lookup(4) != nil || tab.Stats().Kept != 0 || tab.Stats().Evicted != 0 {
		t.Errorf("kept too long: %+v", tab.Stats())
	}
}

func TestPIDReuse(t *testing.T) {
	tab := newTable(Options{})
	feed(t, tab, foundRec(1, 0, 1, 1, 2, "/init"), forkRec(2, 1, 50, 10), execRec(3, 1, 50, 10, 11, "/bin/a"), forkRec(4, 3, 51, 12), exitRec(3, 50, 13))
	// pid 50 again, another parent, and its own child.
	feed(t, tab, forkRec(5, 4, 50, 20), execRec(6, 4, 50, 20, 21, "/bin/b"), forkRec(7, 6, 52, 22))
	for id, want := range map[uint64][]uint64{4: {3, 1}, 7: {6, 4, 3, 1}} {
		if got := ids(tab, tab.Lookup(id)); !slices.Equal(got, want) {
			t.Errorf("%d: %v, want %v", id, got, want)
		}
	}
	// The end of pid 52 was lost: the new owner of the pid ends it.
	feed(t, tab, forkRec(8, 1, 52, 30))
	if p := tab.Lookup(7); p.ExitTime != boot+30 || tab.LookupPID(52).ExecID != 8 || tab.Stats().Missed != 1 {
		t.Errorf("%+v %+v", p, tab.Stats())
	}
	// The records of an exec were lost: the exit of the later image ends the one we know.
	feed(t, tab, exitRec(99, 52, 40))
	if tab.LookupPID(52) != nil || tab.Lookup(8).ExitTime != boot+40 {
		t.Error("the image before the one that ended runs on")
	}
}

func TestExecChain(t *testing.T) {
	tab := newTable(Options{})
	feed(t, tab, foundRec(1, 0, 1, 1, 2, "/init"), forkRec(2, 1, 50, 10))
	for i := range uint64(5) {
		feed(t, tab, execRec(3+i, 1, 50, 10, 11+i, fmt.Sprint("/bin/", i)), forkRec(100+i, 3+i, uint32(100+i), 11+i))
	}
	for i := range uint64(5) {
		c, img := tab.Lookup(100+i), tab.Lookup(3+i)
		if c.ParentExecID != 3+i || c.Exe.Path != fmt.Sprint("/bin/", i) || c.Parent.Exe.Path != c.Exe.Path {
			t.Errorf("%+v", c)
		}
		if i < 4 && img.ExitTime != boot+int64(12+i) || i == 4 && img.ExitTime != 0 {
			t.Errorf("image %d ends at %d", i, img.ExitTime-boot)
		}
	}
	if s := tab.Stats(); s.Live != 7 || s.Missed != 0 {
		t.Errorf("%+v", s)
	}
}

func TestOutOfOrder(t *testing.T) {
	t.Run("exit before fork", func(t *testing.T) {
		tab := newTable(Options{})
		fork := forkRec(2, 1, 50, 10)
		feed(t, tab, foundRec(1, 0, 1, 1, 2, "/init"), exitRec(2, 50, 11), fork)
		if p := fork.Process; p.Unknown || p.ExitTime != boot+11 || p.Exe.Path != "/init" || tab.LookupPID(50) != nil {
			t.Errorf("%+v", p)
		}
	})
	t.Run("exit before exec and found", func(t *testing.T) {
		tab := newTable(Options{})
		feed(t, tab, exitRec(2, 50, 11), execRec(2, 1, 50, 9, 10, "/bin/a"), foundRec(2, 1, 50, 9, 12, "/bin/b"))
		if p := tab.Lookup(2); p.ExitTime != boot+11 || p.Exe.Path != "/bin/a" || tab.LookupPID(50) != nil {
			t.Errorf("%+v", p)
		}
	})
	t.Run("child before its parent was found", func(t *testing.T) {
		tab := newTable(Options{})
		feed(t, tab, forkRec(3, 2, 51, 20), forkRec(4, 3, 52, 21), foundRec(2, 1, 50, 5, 22, "/bin/sh"), foundRec(1, 0, 1, 1, 22, "/init"))
		open := &pavise.Event{Op: pavise.OpOpen, ExecID: 4, PID: 52}
		feed(t, tab, open)
		p := open.Process
		if p.Exe.Path != "/bin/sh" || p.Parent == nil || p.Parent.ExecID != 3 || p.Parent.Exe.Path != "/bin/sh" || p.PID != 52 || p.StartTime != boot+21 {
			t.Errorf("%+v", p)
		}
		if got := ids(tab, p); !slices.Equal(got, []uint64{3, 2, 1}) {
			t.Error(got)
		}
		sh := &pavise.Event{Op: pavise.OpOpen, ExecID: 2, PID: 50}
		feed(t, tab, sh)
		if sh.Process.Parent == nil || sh.Process.Parent.Exe.Path != "/init" {
			t.Error("a parent that was found later")
		}
	})
	t.Run("found completes a fork of an unknown parent", func(t *testing.T) {
		tab := newTable(Options{})
		feed(t, tab, forkRec(3, 2, 51, 20), foundRec(3, 2, 51, 20, 21, "/bin/sh"), execRec(4, 2, 51, 20, 22, "/bin/ls"))
		if tab.Lookup(3).Exe.Path != "/bin/sh" || tab.Lookup(3).ExitTime != boot+22 || tab.LookupPID(51).ExecID != 4 {
			t.Errorf("%+v", tab.Lookup(3))
		}
	})
	t.Run("found before the fork record", func(t *testing.T) {
		tab := newTable(Options{})
		feed(t, tab, foundRec(1, 0, 1, 1, 2, "/init"), foundRec(3, 1, 51, 20, 21, "/init"), forkRec(3, 1, 51, 20))
		if tab.Stats().Live != 2 {
			t.Errorf("%+v", tab.Stats())
		}
	})
	t.Run("found does not overwrite an exec of the same id", func(t *testing.T) {
		tab := newTable(Options{})
		ex := execRec(3, 1, 51, 20, 21, "/bin/a")
		found := foundRec(3, 1, 51, 20, 22, "/bin/a")
		found.Exec.Args = nil
		feed(t, tab, ex, found)
		if found.Process != ex.Process || len(found.Process.Args) == 0 {
			t.Errorf("%+v", found.Process)
		}
	})
	t.Run("exec completes a found of the same id", func(t *testing.T) {
		tab := newTable(Options{})
		found := foundRec(3, 1, 51, 20, 21, "/bin/a")
		found.Exec.Args = nil
		feed(t, tab, found, execRec(3, 1, 51, 20, 22, "/bin/a"))
		if p := tab.Lookup(3); len(p.Args) == 0 || p.Found {
			t.Errorf("%+v", p)
		}
	})
	t.Run("found of an image before the one that runs", func(t *testing.T) {
		tab := newTable(Options{})
		feed(t, tab, execRec(4, 1, 51, 20, 25, "/bin/new"), foundRec(3, 1, 51, 20, 30, "/bin/old"))
		if tab.LookupPID(51).ExecID != 4 || tab.Lookup(4).ExitTime != 0 || tab.Lookup(3).ExitTime == 0 {
			t.Error("a found record has overwritten a newer image")
		}
	})
	t.Run("found of a process whose pid is used again", func(t *testing.T) {
		tab := newTable(Options{})
		feed(t, tab, forkRec(4, 1, 51, 25), foundRec(3, 1, 51, 20, 30, "/bin/old"))
		if tab.LookupPID(51).ExecID != 4 || tab.Lookup(3).ExitTime == 0 {
			t.Error("a found record has overwritten a newer process")
		}
	})
	t.Run("found just before the record of its exec", func(t *testing.T) {
		tab := newTable(Options{})
		feed(t, tab, execRec(3, 1, 51, 20, 21, "/bin/a"), foundRec(4, 1, 51, 20, 30, "/bin/b"), execRec(4, 1, 51, 20, 29, "/bin/b"))
		if p := tab.LookupPID(51); p == nil || p.ExecID != 4 || p.ExitTime != 0 || tab.Lookup(3).ExitTime == 0 {
			t.Error("the newest image does not run")
		}
	})
	t.Run("found after exit", func(t *testing.T) {
		tab := newTable(Options{})
		feed(t, tab, forkRec(4, 1, 51, 25), exitRec(4, 51, 26), foundRec(4, 1, 51, 25, 30, "/bin/x"))
		if tab.Stats().Live != 0 {
			t.Error("what ended runs again")
		}
	})
}

func TestForkBomb(t *testing.T) {
	tab := newTable(Options{MaxProcesses: 1000})
	feed(t, tab, foundRec(1, 0, 1, 1, 2, "/init"), forkRec(2, 1, 2, 3), execRec(3, 1, 2, 3, 4, "/bomb"))
	// Each forks the next and lives on; then wide: all of one parent; then each ends at once.
	id, at := uint64(3), uint64(10)
	for range 20_000 {
		tab.Update(forkRec(id+1, id, uint32(id+1), at))
		id, at = id+1, at+1
	}
	audit(t, tab)
	for range 20_000 {
		id, at = id+1, at+1
		tab.Update(forkRec(id, 3, uint32(id), at))
	}
	audit(t, tab)
	s := tab.Stats()
	if s.Live+s.Kept > 1000 || s.EvictedLive == 0 {
		t.Errorf("%+v", s)
	}
	if tab.Lookup(1) == nil || tab.Lookup(3) == nil {
		t.Error("what was here before the flood is gone")
	}
	for range 20_000 {
		id, at = id+1, at+1
		tab.Update(forkRec(id, 3, uint32(id), at))
		tab.Update(exitRec(id, uint32(id), at))
	}
	audit(t, tab)
	// A chain in which each forks the next and ends: the ancestors of one running process are without number.
	for range 20_000 {
		tab.Update(forkRec(id+1, id, uint32(id+1), at))
		tab.Update(exitRec(id, uint32(id), at))
		id, at = id+1, at+1
	}
	audit(t, tab)
	if s := tab.Stats(); s.Live+s.Kept > 1000 || len(tab.orphans) > 1000 {
		t.Errorf("%+v", s)
	}
	if p := tab.Lookup(id); p == nil || p.Exe.Path != "/bomb" {
		t.Errorf("%+v", p)
	}
}

func TestBigArguments(t *testing.T) {
	tab := newTable(Options{MaxBytes: 1 << 20})
	for i := range uint64(5000) {
		e := execRec(i+10, 1, uint32(i+10), i+1, i+1, fmt.Sprint("/bin/", i))
		e.Exec.Args = []byte(strings.Repeat("a\x00", 2048))
		tab.Update(e)
	}
	audit(t, tab)
	s := tab.Stats()
	if s.Bytes > 2<<20 || s.ArgsCut == 0 || s.EvictedLive == 0 {
		t.Errorf("%+v", s)
	}
}

func TestMillionForks(t *testing.T) {
	if testing.Short() {
		t.Skip("seconds long")
	}
	tab := newTable(Options{})
	feed(t, tab, foundRec(1, 0, 1, 1, 2, "/init"), execRec(2, 1, 2, 3, 4, "/bin/sh"))
	before := heap()
	at := uint64(10)
	start := time.Now()
	for i := range uint64(1_000_000) {
		id, pid := 100+i, uint32(100+i%32_000)
		at += 100_000 // 10,000 a second
		tab.Update(forkRec(id, 2, pid, at))
		tab.Update(exitRec(id, pid, at+50_000))
		if i%10_000 == 0 {
			tab.Tick(time.Unix(0, boot+int64(at)))
		}
	}
	took := time.Since(start)
	audit(t, tab)
	s := tab.Stats()
	if s.Live != 2 || s.Kept > 65_536 || s.Missed != 0 || s.EvictedLive != 0 || s.Unknown != 0 {
		t.Errorf("%+v", s)
	}
	full := heap() - before
	tab.Tick(time.Unix(0, boot+int64(at)).Add(2 * time.Minute))
	if s := tab.Stats(); s.Kept != 0 || s.Bytes > 4096 {
		t.Errorf("%+v", s)
	}
	t.Logf("1,000,000 forks and exits in %v; %d KiB of heap with %d kept, %d KiB after", took, full/1024, s.Kept, (heap()-before)/1024)
	runtime.KeepAlive(tab)
}

func heap() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

func TestMemory(t *testing.T) {
	fill := func(n uint64, fork bool) int64 {
		before := heap()
		tab := newTable(Options{})
		tab.Update(foundRec(1, 0, 1, 1, 2, "/init"))
		tab.Update(execRec(2, 1, 2, 3, 4, "/usr/bin/bash"))
		for i := range n {
			tab.Update(forkRec(10+2*i, 2, uint32(10+i), 10+i))
			if !fork {
				e := execRec(11+2*i, 2, uint32(10+i), 10+i, 11+i, fmt.Sprintf("/usr/lib/app-%d/bin/worker", i%500))
				e.Exec.Args = fmt.Appendf(nil, "/usr/lib/app/bin/worker\x00--config\x00/etc/app/%d.conf\x00--id=%d\x00--verbose\x00", i, i)
				tab.Update(e)
			}
		}
		tab.Tick(time.Unix(0, boot).Add(time.Hour))
		grew := heap() - before
		if s := tab.Stats(); s.Live != int(n)+2 {
			t.Fatalf("%+v", s)
		}
		runtime.KeepAlive(tab)
		return grew
	}
	exec, fork := fill(10_000, false), fill(10_000, true)
	t.Logf("10,000 running processes: %d KiB after exec, %d KiB after fork only; a Process is %d bytes, an entry %d",
		exec/1024, fork/1024, unsafe.Sizeof(pavise.Process{}), unsafe.Sizeof(entry{}))
	if exec > 15<<20 || fork > 15<<20 {
		t.Error("over 15 MiB")
	}
}

// TestRandom holds the books through arbitrary events in arbitrary order.
func TestRandom(t *testing.T) {
	for seed := range uint64(60) {
		r := rand.New(rand.NewPCG(seed, 1))
		tab := newTable(Options{MaxProcesses: 3 + r.IntN(30), MaxBytes: 200 + r.IntN(4000)})
		for at := range uint64(600) {
			id, parent, pid := uint64(r.IntN(40)), uint64(r.IntN(40)), uint32(r.IntN(12))
			switch r.IntN(6) {
			case 0, 1:
				feed(t, tab, forkRec(id, parent, pid, at))
			case 2:
				feed(t, tab, execRec(id, parent, pid, at-uint64(r.IntN(3)), at, fmt.Sprint("/bin/", r.IntN(9))))
			case 3:
				feed(t, tab, foundRec(id, parent, pid, at-uint64(r.IntN(3)), at, "/found"))
			case 4:
				feed(t, tab, exitRec(id, pid, at))
			default:
				feed(t, tab, &pavise.Event{Op: pavise.OpOpen, ExecID: id, PID: pid})
				tab.Tick(time.Unix(0, boot+int64(at)).Add(time.Minute - time.Duration(r.IntN(50))))
				audit(t, tab)
			}
			if s := tab.Stats(); s.Live+s.Kept > tab.max {
				t.Fatalf("%+v", s)
			}
		}
	}
}

func TestConcurrentReaders(t *testing.T) {
	tab := newTable(Options{MaxProcesses: 200})
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for r := range 3 {
		wg.Go(func() {
			var buf []byte
			for id := uint64(r); ; id++ {
				select {
				case <-stop:
					return
				default:
				}
				e := &pavise.Event{Op: pavise.OpOpen, ExecID: id % 3000, PID: 1}
				tab.Resolve(e)
				buf = e.AppendJSON(buf[:0])
				if id%500 == 0 {
					buf = AppendTree(buf[:0], tab.Snapshot())
					tab.Stats()
				}
			}
		})
	}
	for i := range uint64(3000) {
		tab.Update(forkRec(i, i/2, uint32(i), i+1))
		tab.Update(execRec(i+5000, i/2, uint32(i), i+1, i+2, "/bin/x"))
		if i%3 != 0 {
			tab.Update(exitRec(i+5000, uint32(i), i+3))
		}
		if i%100 == 0 {
			tab.Tick(time.Unix(0, boot).Add(time.Hour))
		}
	}
	close(stop)
	wg.Wait()
	audit(t, tab)
}

func TestPrune(t *testing.T) {
	tab := newTable(Options{})
	feed(t, tab, foundRec(1, 0, 1, 1, 2, "/init"), forkRec(2, 1, 2, 3), forkRec(3, 1, 3, 4))
	self := uint32(os.Getpid())
	if tab.Alive(&pavise.Process{PID: self, StartTime: boot + 1<<60}) {
		t.Error("alive, and started in the future")
	}
	if stat, err := os.ReadFile("/proc/self/stat"); err == nil {
		if ticks, _ := statStart(stat); !tab.Alive(&pavise.Process{PID: self, StartTime: boot + int64(ticks)*1e7}) {
			t.Error("not alive")
		}
	}
	n := tab.Prune(time.Unix(0, boot+100), func(p *pavise.Process) bool { return p.PID != 2 })
	audit(t, tab)
	if n != 1 || tab.Lookup(2).ExitTime != boot+100 || tab.Stats().Live != 2 || tab.Stats().Missed != 1 {
		t.Errorf("%d %+v", n, tab.Stats())
	}
}

func TestKeepsNothingOfTheRecord(t *testing.T) {
	tab := newTable(Options{})
	buf := []byte("/bin/a/srv/system.slice/x.service")
	e := execRec(2, 1, 2, 3, 4, unsafe.String(&buf[0], 6))
	e.Exec.CWD, e.Exec.Cgroup = unsafe.String(&buf[6], 4), unsafe.String(&buf[10], 23)
	e.Exec.Args = buf[:6]
	feed(t, tab, e)
	for i := range buf {
		buf[i] = 'X'
	}
	p := tab.Lookup(2)
	if p.Exe.Path != "/bin/a" || p.CWD != "/srv" || p.Cgroup != "/system.slice/x.service" || p.Unit != "x.service" || p.Args[0] != "/bin/a" {
		t.Errorf("%+v", p)
	}
}

func TestSnapshotAndTree(t *testing.T) {
	tab := newTable(Options{Users: func(uint32) string { return "root" }})
	feed(t, tab, foundRec(1, 0, 1, 1, 2, "/sbin/init"), forkRec(2, 1, 20, 10), execRec(3, 1, 20, 10, 11, "/bin/sh"), forkRec(4, 3, 21, 12),
		execRec(5, 1, 20, 10, 13, "/bin/new"), execRec(6, 5, 21, 12, 14, "/tmp/a\x1bb"), forkRec(7, 6, 22, 15), forkRec(8, 7, 23, 16), exitRec(7, 22, 17))
	list := tab.Snapshot()
	var order []uint64
	for _, p := range list {
		order = append(order, p.ExecID)
	}
	if !slices.Equal(order, []uint64{1, 2, 3, 5, 4, 6, 7, 8}) {
		t.Error(order)
	}
	last, depth := list[len(list)-1], 0
	for p := last; p != nil; p = p.Parent {
		depth++
	}
	if depth != 5 { // 8 7 6 5 1
		t.Errorf("depth %d", depth)
	}
	want := `1        root         nginx.service            /sbin/init -x ""
20       root         nginx.service              /bin/new -x ""
21       root         nginx.service                "/tmp/a\x1bb" -x ""
23       root         nginx.service                  "/tmp/a\x1bb" -x ""
`
	if got := string(AppendTree(nil, list)); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestReadProc(t *testing.T) {
	pid := uint32(os.Getpid())
	stat, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		t.Skip(err)
	}
	ticks, ok := statStart(stat)
	if !ok {
		t.Fatal("no start time")
	}
	e := foundRec(1, 0, pid, ticks*1e7+5, 1, "/x")
	e.Exec.Args, e.Exec.CWD = nil, ""
	ReadProc(pid, e)
	cwd, _ := os.Getwd()
	if args := slices.Collect(pavise.Args(string(e.Exec.Args))); !slices.Equal(args, os.Args) || e.Exec.CWD != cwd {
		t.Errorf("%q %q", args, e.Exec.CWD)
	}
	other := foundRec(1, 0, pid, ticks*1e7+1e9, 1, "/x")
	other.Exec.Args, other.Exec.CWD = nil, ""
	ReadProc(pid, other)
	ReadProc(1<<31, other)
	if other.Exec.Args != nil || other.Exec.CWD != "" {
		t.Error("read of another process")
	}
	for in, want := range map[string]uint64{"1 (a) b) (c) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4242 20": 4242, "": 0, "1 (x": 0, "1 (x) S 1": 0} {
		if got, ok := statStart([]byte(in)); got != want || ok != (want != 0) {
			t.Errorf("%q: %d", in, got)
		}
	}
}

func BenchmarkUpdate(b *testing.B) {
	setup := func() *Table {
		tab := newTable(Options{Users: NewUsers("/etc/passwd", "/etc/group", nil).Name})
		tab.Update(foundRec(1, 0, 1, 1, 2, "/init"))
		tab.Update(execRec(2, 1, 2, 3, 4, "/usr/bin/bash"))
		for i := range uint64(70_000) { // full, so that each new one puts out an old one
			tab.Update(forkRec(1000+i, 2, uint32(1000+i), 5))
			tab.Update(exitRec(1000+i, uint32(1000+i), 6))
		}
		return tab
	}
	b.Run("fork+exit", func(b *testing.B) {
		tab := setup()
		f, x := forkRec(0, 2, 0, 100), exitRec(0, 0, 101)
		id := uint64(1 << 32)
		b.ReportAllocs()
		for b.Loop() {
			id++
			f.ExecID, f.PID, x.ExecID, x.PID = id, uint32(id%100_000), id, uint32(id%100_000)
			tab.Update(f)
			tab.Update(x)
		}
	})
	b.Run("fork+exec+exit", func(b *testing.B) {
		tab := setup()
		f, e, x := forkRec(0, 2, 0, 100), execRec(0, 2, 0, 100, 101, "/usr/bin/sed"), exitRec(0, 0, 102)
		e.Exec.Args = []byte("sed\x00-e\x00s/a/b/\x00--\x00/etc/hosts\x00")
		id := uint64(1 << 32)
		b.ReportAllocs()
		for b.Loop() {
			id += 2
			pid := uint32(id % 100_000)
			f.ExecID, f.PID, e.ExecID, e.PID, x.ExecID, x.PID = id, pid, id+1, pid, id+1, pid
			tab.Update(f)
			tab.Update(e)
			tab.Update(x)
		}
	})
	b.Run("resolve", func(b *testing.B) {
		tab := setup()
		e := &pavise.Event{Op: pavise.OpOpen, ExecID: 2, PID: 2}
		b.ReportAllocs()
		for b.Loop() {
			tab.Resolve(e)
		}
	})
	b.Run("bomb", func(b *testing.B) { // all running: the last resort
		tab := setup()
		f := forkRec(0, 2, 0, 100)
		id := uint64(1 << 32)
		b.ReportAllocs()
		for b.Loop() {
			id++
			f.ExecID, f.PID = id, uint32(id)
			tab.Update(f)
		}
	})
}
