package proc

import (
	"bytes"
	"cmp"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	pavise "github.com/pavise-project/pavise"
)

// Snapshot is a copy of every image in the table, running or kept, by start time and then by
// generation. Their Parents point to one another, so that here the whole ancestry can be walked.
func (t *Table) Snapshot() []*pavise.Process {
	type aged struct {
		p     *pavise.Process
		since int64
	}
	t.mu.RLock()
	all := make([]aged, 0, len(t.byID))
	for _, en := range t.byID {
		all = append(all, aged{en.p, en.since})
	}
	t.mu.RUnlock()
	slices.SortFunc(all, func(a, b aged) int {
		return cmp.Or(cmp.Compare(a.p.StartTime, b.p.StartTime), cmp.Compare(a.since, b.since), cmp.Compare(a.p.ExecID, b.p.ExecID))
	})
	copies := make([]pavise.Process, len(all))
	list := make([]*pavise.Process, len(all))
	byID := make(map[uint64]*pavise.Process, len(all))
	for i, a := range all {
		copies[i] = *a.p
		list[i] = &copies[i]
		byID[a.p.ExecID] = list[i]
	}
	for _, p := range list {
		if q := byID[p.ParentExecID]; q != nil {
			p.Parent = q
		}
	}
	return list
}

// AppendTree appends the running ones of a Snapshot as a tree, one line each: pid, user, unit, command.
// One whose parent has ended stands below its nearest running ancestor, and below a parent's
// newest image when the parent has executed another since.
func AppendTree(b []byte, snapshot []*pavise.Process) []byte {
	type identity struct {
		pid   uint32
		start int64
	}
	running := map[identity]*pavise.Process{}
	for _, p := range snapshot {
		if p.ExitTime == 0 {
			running[identity{p.PID, p.StartTime}] = p
		}
	}
	children := map[*pavise.Process][]*pavise.Process{}
	for _, p := range snapshot {
		if p.ExitTime != 0 {
			continue
		}
		q := p.Parent
		for steps := 0; q != nil && steps < len(snapshot); steps++ {
			if r := running[identity{q.PID, q.StartTime}]; r != nil && r != p {
				q = r
				break
			}
			q = q.Parent
		}
		if q != nil && q.ExitTime != 0 {
			q = nil
		}
		children[q] = append(children[q], p)
	}
	// Depth first with a stack of our own: a chain of processes may be as long as the table.
	type line struct {
		p     *pavise.Process
		depth int
	}
	var stack []line
	push := func(list []*pavise.Process, depth int) {
		for _, p := range slices.Backward(list) {
			stack = append(stack, line{p, depth})
		}
	}
	push(children[nil], 0)
	for len(stack) > 0 {
		l := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		b = appendLine(b, l.p, l.depth)
		push(children[l.p], l.depth+1)
	}
	return b
}

const maxIndent = 40

func appendLine(b []byte, p *pavise.Process, depth int) []byte {
	col := len(b)
	b = strconv.AppendUint(b, uint64(p.PID), 10)
	b = padTo(b, col, 8)
	col = len(b)
	if p.User.Name != "" {
		b = pavise.AppendEscaped(b, p.User.Name)
	} else {
		b = strconv.AppendUint(b, uint64(p.User.ID), 10)
	}
	b = padTo(b, col, 12)
	col = len(b)
	switch {
	case p.Unit != "":
		b = pavise.AppendEscaped(b, p.Unit)
	case p.Container != nil:
		b = pavise.AppendEscaped(b, p.Container.ID[:min(12, len(p.Container.ID))])
	default:
		b = append(b, '-')
	}
	b = padTo(b, col, 24)
	for range min(depth, maxIndent) {
		b = append(b, "  "...)
	}
	if len(p.Args) == 0 {
		b = pavise.AppendEscaped(b, p.Exe.Path)
	}
	for i, a := range p.Args {
		if i > 0 {
			b = append(b, ' ')
		}
		b = pavise.AppendEscaped(b, a)
	}
	return append(b, '\n')
}

func padTo(b []byte, col, width int) []byte {
	for len(b)-col < width {
		b = append(b, ' ')
	}
	return append(b, ' ')
}

const (
	maxArgs = 4096
	hz      = 100 // clock ticks in /proc/PID/stat, the same on all that Linux runs on
)

// ReadProc sets e.Exec.Args and CWD, which the kernel does not know of a process that already ran,
// from /proc. It is to be used for such records only (e.Exec.Found), before Table.Update; it does nothing when the
// pid belongs to a process that started at another time, or to none.
func ReadProc(pid uint32, e *pavise.Event) { readProc("/proc", pid, e) }

func readProc(root string, pid uint32, e *pavise.Event) {
	dir := filepath.Join(root, strconv.FormatUint(uint64(pid), 10))
	if !sameStart(dir, e.Exec.StartTime) {
		return
	}
	args, cut := readHead(filepath.Join(dir, "cmdline"), maxArgs)
	cwd, err := os.Readlink(filepath.Join(dir, "cwd"))
	if !sameStart(dir, e.Exec.StartTime) { // it ended while we read, and the pid may have been used again
		return
	}
	if len(args) > 0 {
		e.Exec.Args, e.Exec.ArgsCut = args, cut
	}
	if err == nil {
		e.Exec.CWD = cwd
	}
}

// Alive asks /proc whether p, of this table, still runs, in whatever image: for Prune.
func (t *Table) Alive(p *pavise.Process) bool {
	return sameStart(filepath.Join("/proc", strconv.FormatUint(uint64(p.PID), 10)), uint64(p.StartTime-t.boot))
}

// sameStart reports whether the process at dir started at start, nanoseconds since boot, by the clock's tick.
func sameStart(dir string, start uint64) bool {
	stat, _ := readHead(filepath.Join(dir, "stat"), maxArgs)
	ticks, ok := statStart(stat)
	if !ok {
		return false
	}
	want := start / (1e9 / hz)
	return ticks+1 >= want && ticks <= want+1
}

// statStart is the start time in a /proc/PID/stat, in ticks: the 22nd field, the 20th after the
// name, which is in parentheses and may hold anything.
func statStart(stat []byte) (uint64, bool) {
	i := bytes.LastIndexByte(stat, ')')
	if i < 0 {
		return 0, false
	}
	f := bytes.Fields(stat[i+1:])
	if len(f) < 20 {
		return 0, false
	}
	n, err := strconv.ParseUint(string(f[19]), 10, 64)
	return n, err == nil
}

// readHead reads at most n bytes of a file, and reports whether there was more.
func readHead(path string, n int) ([]byte, bool) {
	f, err := os.Open(path)
	if err != nil {
		return nil, false
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, int64(n)+1))
	if err != nil {
		return nil, false
	}
	if len(b) > n {
		return b[:n], true
	}
	return b, false
}
