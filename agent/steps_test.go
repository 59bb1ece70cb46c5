package agent

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/pavise-project/pavise/internal/kerntest"
	"golang.org/x/sys/unix"
)

// killer kills a process before one of its system calls that change something outside of it.
type killer struct{ m *ebpf.Map }

// What the map holds, by key.
const (
	killerPID   = 0
	killerSteps = 1 // those that are left
)

func newKiller(t *testing.T) *killer {
	t.Helper()
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 2})
	if err != nil {
		t.Fatal(err)
	}
	at := func(key int32, reg asm.Register) asm.Instructions {
		return asm.Instructions{
			asm.StoreImm(asm.R10, -4, int64(key), asm.Word),
			asm.LoadMapPtr(asm.R1, m.FD()),
			asm.Mov.Reg(asm.R2, asm.R10),
			asm.Add.Imm(asm.R2, -4),
			asm.FnMapLookupElem.Call(),
			asm.JEq.Imm(asm.R0, 0, "out"),
			asm.Mov.Reg(reg, asm.R0),
		}
	}
	ins := asm.Instructions{asm.LoadMem(asm.R6, asm.R1, 8, asm.DWord)} // the number of the call
	for _, nr := range []int32{unix.SYS_BPF, unix.SYS_WRITE, unix.SYS_PWRITE64, unix.SYS_OPENAT, unix.SYS_RENAMEAT, unix.SYS_RENAMEAT2, unix.SYS_UNLINKAT, unix.SYS_MKDIRAT, unix.SYS_SYMLINKAT, unix.SYS_FSYNC, unix.SYS_FTRUNCATE, unix.SYS_MMAP, unix.SYS_MUNMAP} {
		ins = append(ins, asm.JEq.Imm(asm.R6, nr, "step"))
	}
	ins = append(ins, asm.Ja.Label("out"))
	ins = append(ins, asm.FnGetCurrentPidTgid.Call().WithSymbol("step"), asm.RSh.Imm(asm.R0, 32), asm.Mov.Reg(asm.R7, asm.R0))
	ins = append(ins, at(killerPID, asm.R8)...)
	ins = append(ins, asm.LoadMem(asm.R8, asm.R8, 0, asm.DWord), asm.JNE.Reg(asm.R8, asm.R7, "out"))
	ins = append(ins, at(killerSteps, asm.R8)...)
	ins = append(ins,
		asm.LoadMem(asm.R1, asm.R8, 0, asm.DWord),
		asm.Mov.Reg(asm.R2, asm.R1),
		asm.Add.Imm(asm.R2, -1),
		asm.StoreMem(asm.R8, 0, asm.R2, asm.DWord), // two threads at once may count as one
		asm.JNE.Imm(asm.R1, 1, "out"),
		asm.Mov.Imm(asm.R1, int32(unix.SIGKILL)),
		asm.FnSendSignal.Call(),
		asm.Mov.Imm(asm.R0, 0).WithSymbol("out"),
		asm.Return())
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.RawTracepoint, Instructions: ins, License: "GPL"})
	if err != nil {
		t.Fatalf("%+v", err)
	}
	l, err := link.AttachRawTracepoint(link.RawTracepointOptions{Name: "sys_enter", Program: p})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close(); _ = p.Close(); _ = m.Close() })
	return &killer{m}
}

// arm lets pid make steps-1 such calls. With as many as never come it counts.
func (k *killer) arm(t *testing.T, pid int, steps int64) {
	t.Helper()
	if err := errors.Join(k.m.Put(uint32(killerSteps), steps), k.m.Put(uint32(killerPID), uint64(pid))); err != nil {
		t.Fatal(err)
	}
}

func (k *killer) left(t *testing.T) (n int64) {
	t.Helper()
	if err := k.m.Lookup(uint32(killerSteps), &n); err != nil {
		t.Fatal(err)
	}
	return n
}

// TestKernelUnderLoadSteps kills the agent before each system call of a change, one after the other: what is in force then is one of the two revisions, and what was answered
// is the new one. Then before those of a start.
func TestKernelUnderLoadSteps(t *testing.T) {
	k := newKillable(t)
	kill := newKiller(t)
	const never = 1 << 40
	k.begin(t)
	k.wait(t)
	if !k.denies() {
		t.Skip(kerntest.NotExpected + "net.connect cannot be denied")
	}
	revisions := [2][]byte{deniesNets(91, 92), deniesNets(91, 93)}
	apply := func(i int) error {
		c := k.client()
		defer c.Close()
		_, err := c.Apply(t.Context(), "killed.yaml", revisions[i], nil, ApplyOptions{})
		return err
	}
	is := func(when string) int {
		t.Helper()
		a, b := errors.Is(connectTo(92, 1), unix.EPERM), errors.Is(connectTo(93, 1), unix.EPERM)
		if a == b || !errors.Is(connectTo(91, 1), unix.EPERM) {
			t.Fatalf("%s, 127.92 is denied: %v, and 127.93: %v", when, a, b)
		}
		if a {
			return 0
		}
		return 1
	}
	if err := errors.Join(apply(1), apply(0)); err != nil { // what is done once is done
		t.Fatal(err)
	}
	kill.arm(t, k.cmd.Process.Pid, never)
	begin := time.Now()
	if err := apply(1); err != nil {
		t.Fatal(err)
	}
	n := never - kill.left(t)
	took := time.Since(begin)
	old, kills, after := 1, 0, 0
	for step := int64(1); step <= n; step++ {
		kill.arm(t, k.cmd.Process.Pid, step)
		err := apply(1 - old)
		kill.arm(t, 0, never)
		now := is(fmt.Sprintf("before call %d of a change", step))
		switch {
		case err == nil && now == old:
			t.Fatalf("before call %d: a change that was answered is not in force", step)
		case err == nil:
			old = now
			select {
			case <-k.done: // killed when it had answered
			default:
				if step < n/2 {
					t.Logf("before call %d: it was not killed", step)
				}
				continue
			}
		default:
			<-k.done
		}
		_ = k.cmd.Wait()
		kills++
		k.begin(t)
		k.wait(t)
		then := is(fmt.Sprintf("after the start that followed call %d", step))
		if err == nil && then != now {
			t.Fatalf("before call %d: a change that was answered is not in force after the next start", step)
		}
		if then != old {
			after++
		}
		old = then
	}
	if int64(kills) < n/2 || after == 0 || after == kills {
		t.Errorf("%d kills before %d calls, %d of them changed", kills, n, after)
	}

	// The start.
	k.end(syscall.SIGKILL)
	k.begin(t)
	kill.arm(t, k.cmd.Process.Pid, never)
	k.wait(t)
	calls := never - kill.left(t)
	killed := 0
	const starts = 60
	for i := range int64(starts) {
		k.end(syscall.SIGKILL)
		k.begin(t)
		kill.arm(t, k.cmd.Process.Pid, 1+i*calls/starts)
		select {
		case <-k.ready:
		case <-k.done:
			killed++
		case <-time.After(2 * time.Minute):
			t.Fatal("the agent neither starts nor ends")
		}
		kill.arm(t, 0, never)
		is(fmt.Sprintf("before call %d of a start", 1+i*calls/starts))
	}
	k.end(syscall.SIGKILL)
	if killed < starts/2 {
		t.Errorf("%d of %d starts ended in a kill", killed, starts)
	}
	k.begin(t)
	k.wait(t)
	is("at the end")
	t.Logf("a change is %d calls, in %v: %d kills, after %d of them the new revision was in force; %d kills during starts of %d calls", n, took.Round(time.Millisecond), kills, after, killed, calls)
}

// TestKernelUnderLoadStateFull: where the state cannot be written, a change is refused, and what is in force stays.
func TestKernelUnderLoadStateFull(t *testing.T) {
	k := newKillable(t)
	state := filepath.Join(k.Dir, "state")
	if err := os.Mkdir(state, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", state, "tmpfs", 0, "size=256k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if k.cmd != nil {
			k.end(syscall.SIGKILL)
			k.cmd = nil
		}
		if err := unix.Unmount(state, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	k.begin(t)
	k.wait(t)
	c := k.client()
	defer func() { c.Close() }()
	if !k.denies() {
		t.Skip(kerntest.NotExpected + "net.connect cannot be denied")
	}
	same := func(when string) {
		t.Helper()
		if _, err := c.Apply(t.Context(), "killed.yaml", deniesNets(91, 93), nil, ApplyOptions{}); err == nil {
			t.Errorf("%s, a change was taken", when)
		} else {
			t.Logf("%s: %v", when, err)
		}
		if !errors.Is(connectTo(92, 1), unix.EPERM) || connectTo(93, 1) != nil || !errors.Is(connectTo(91, 1), unix.EPERM) {
			t.Errorf("%s, something else is in force", when)
		}
	}
	if err := os.WriteFile(filepath.Join(state, "filler"), make([]byte, 1<<20), 0o600); !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
	same("with a full disk")
	k.end(syscall.SIGKILL)
	c.Close()
	k.begin(t)
	k.wait(t)
	c = k.client()
	same("after a start with a full disk")
	if err := os.Remove(filepath.Join(state, "filler")); err != nil {
		t.Fatal(err)
	}
	// Of the whole, files are open for writing.
	revisions := filepath.Join(state, "revisions")
	if err := errors.Join(unix.Mount(revisions, revisions, "", unix.MS_BIND, ""), unix.Mount("", revisions, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, "")); err != nil {
		t.Fatal(err)
	}
	same("with a read-only file system")
	if err := unix.Unmount(revisions, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Apply(t.Context(), "killed.yaml", deniesNets(91, 93), nil, ApplyOptions{}); err != nil {
		t.Error(err)
	}
	if !errors.Is(connectTo(93, 1), unix.EPERM) || connectTo(92, 1) != nil {
		t.Error("the change is not in force")
	}
}
