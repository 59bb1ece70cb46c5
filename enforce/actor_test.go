package enforce

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/pavise-project/pavise/internal/kerntest"
	"golang.org/x/sys/unix"
)

// An actor is a process that does as it is told, so that a rule can be made for it alone: this test binary, under another path, with
// actorEnv set. Each deed runs on a thread of its own with its own working directory, root and, where it asks, namespaces; the thread ends with it.
const actorEnv = "PAVISE_TEST_ACTOR"

func TestMain(m *testing.M) {
	if _, ok := os.LookupEnv(acceptEnv); ok {
		acceptForever()
		return
	}
	if os.Getenv(actorEnv) != "" {
		act()
		os.Exit(0)
	}
	if d, err := time.ParseDuration(os.Getenv("PAVISE_SPAWN")); err == nil {
		spawnShort(os.Getenv("PAVISE_PROGRAM"), d)
		return
	}
	code := m.Run()
	if effects.x != nil {
		effects.x.stop()
	}
	os.Exit(code)
}

type order struct {
	Deed string
	Args []string
}

// outcome is what came of a deed. Data is all that it read.
type outcome struct {
	Errno  syscall.Errno
	Err    string
	Data   string
	Killed bool // by SIGKILL, before it could answer
}

func (o outcome) String() string {
	switch {
	case o.Killed:
		return "killed"
	case o.Errno != 0 || o.Err != "":
		return fmt.Sprintf("failed (%d: %s)", int(o.Errno), o.Err)
	}
	return fmt.Sprintf("done (%q)", o.Data)
}

// act is the actor's main.
func act() {
	in, out := json.NewDecoder(os.Stdin), json.NewEncoder(os.NewFile(3, "answers"))
	for {
		var o order
		if in.Decode(&o) != nil {
			return
		}
		done := make(chan outcome)
		go func() {
			runtime.LockOSThread() // and never unlocked: the thread ends
			var r outcome
			err := unix.Unshare(unix.CLONE_FS)
			if err == nil {
				r.Data, err = deeds[o.Deed](o.Args)
			}
			var k killedError
			if errors.As(err, &k) {
				r.Killed = true
			} else if err != nil {
				r.Err = err.Error()
				_ = errors.As(err, &r.Errno)
			}
			done <- r
		}()
		if out.Encode(<-done) != nil {
			return
		}
	}
}

// killedError says that a process the deed started was killed.
type killedError struct{}

func (killedError) Error() string { return "killed" }

type actor struct {
	exe  string
	args []string
	attr *syscall.SysProcAttr
	cmd  *exec.Cmd
	in   *json.Encoder
	out  *json.Decoder
	end  []io.Closer
}

func (a *actor) start(t testing.TB) {
	t.Helper()
	must(t, a.begin())
}

func (a *actor) begin() error {
	a.cmd = exec.Command(a.exe, a.args...)
	a.cmd.Env = append(os.Environ(), actorEnv+"=1")
	a.cmd.SysProcAttr = a.attr
	a.cmd.Stderr = os.Stderr
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer w.Close()
	a.cmd.ExtraFiles = []*os.File{w}
	in, err := a.cmd.StdinPipe()
	if err != nil {
		return err
	}
	if err := a.cmd.Start(); err != nil {
		return err
	}
	a.in, a.out, a.end = json.NewEncoder(in), json.NewDecoder(r), []io.Closer{in, r}
	return nil
}

func (a *actor) stop() {
	if a.cmd == nil {
		return
	}
	for _, c := range a.end {
		_ = c.Close()
	}
	_ = a.cmd.Process.Kill()
	_ = a.cmd.Wait()
	a.cmd = nil
}

// do has the actor do a deed. An actor that was killed for the last one is started anew.
func (a *actor) do(t testing.TB, deed string, args ...string) outcome {
	t.Helper()
	if deeds[deed] == nil {
		t.Fatalf("there is no deed %q", deed)
	}
	if a.cmd == nil {
		a.start(t)
	}
	limit := 20 * time.Second
	if kerntest.VM() != "" {
		limit = 2 * time.Minute
	}
	p := a.cmd.Process
	var once sync.Once
	late := false
	timer := time.AfterFunc(limit, func() { once.Do(func() { late = true; _ = p.Kill() }) })
	defer timer.Stop()
	err := a.in.Encode(order{deed, args})
	var o outcome
	if err == nil {
		err = a.out.Decode(&o)
	}
	once.Do(func() {})
	if err == nil {
		return o
	}
	if late {
		t.Fatalf("%s %q: no answer after %v", deed, args, limit)
	}
	for _, c := range a.end {
		_ = c.Close()
	}
	werr := a.cmd.Wait()
	st, _ := a.cmd.ProcessState.Sys().(syscall.WaitStatus)
	a.cmd = nil
	if !errors.Is(err, io.EOF) || !st.Signaled() || st.Signal() != syscall.SIGKILL {
		t.Fatalf("%s %q: the actor ended: %v (%v)", deed, args, werr, err)
	}
	return outcome{Killed: true}
}

// pid is the process of the next deed.
func (a *actor) pid(t testing.TB) uint32 {
	if a.cmd == nil {
		a.start(t)
	}
	return uint32(a.cmd.Process.Pid)
}

func readFD(fd int, err error) (string, error) {
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	var b [256]byte
	n, err := unix.Read(fd, b[:])
	return string(b[:max(n, 0)]), err
}

// apart gives the thread a mount namespace of its own.
func apart() error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return err
	}
	return unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
}

const readOnly = unix.O_RDONLY | unix.O_CLOEXEC

var openFlags = map[string]int{
	"read": unix.O_RDONLY, "write": unix.O_WRONLY, "rdwr": unix.O_RDWR, "append": unix.O_WRONLY | unix.O_APPEND,
	"create": unix.O_WRONLY | unix.O_CREAT | unix.O_EXCL, "creates": unix.O_WRONLY | unix.O_CREAT, "trunc": unix.O_WRONLY | unix.O_TRUNC,
}

var deeds map[string]func(a []string) (string, error)

// race opens a path that another thread changes between HARMLESS and FORBIDDEN all the time, until it reads what stands in FORBIDDEN.
func race(a []string) (string, error) {
	paths := [2][]byte{append([]byte(a[0]), 0), append([]byte(a[1]), 0)}
	buf := make([]byte, max(len(paths[0]), len(paths[1])))
	copy(buf, paths[0])
	harmless, err := readFD(unix.Open(a[0], readOnly, 0))
	if err != nil {
		return "", err
	}
	var stop atomic.Bool
	var swapper sync.WaitGroup
	swapper.Add(1)
	go func() {
		defer swapper.Done()
		runtime.LockOSThread()
		for i := 0; !stop.Load(); i++ {
			copy(buf, paths[i&1]) // a data race, and meant to be one
		}
	}()
	defer swapper.Wait()
	defer stop.Store(true)
	refused := 0
	dir := unix.AT_FDCWD
	for range 200_000 {
		fd, _, e := unix.Syscall6(unix.SYS_OPENAT, uintptr(dir), uintptr(unsafe.Pointer(&buf[0])), readOnly, 0, 0, 0)
		switch e {
		case 0:
			if got, err := readFD(int(fd), nil); err != nil || got != harmless {
				return got, err
			}
		case unix.EPERM:
			if refused++; refused == 1000 {
				return "", e
			}
		}
	}
	return "", fmt.Errorf("the path was never the forbidden one (%d refusals)", refused)
}

func init() {
	deeds = map[string]func(a []string) (string, error){
		"nothing": func([]string) (string, error) { return "", nil },
		"read":    func(a []string) (string, error) { return readFD(unix.Open(a[0], readOnly, 0)) },
		"open": func(a []string) (string, error) { // PATH HOW
			fd, err := unix.Open(a[0], openFlags[a[1]]|unix.O_CLOEXEC, 0o600)
			if err == nil {
				unix.Close(fd)
			}
			return "", err
		},
		"openat2": func(a []string) (string, error) {
			return readFD(unix.Openat2(unix.AT_FDCWD, a[0], &unix.OpenHow{Flags: readOnly}))
		},
		"look": func(a []string) (string, error) { // what ls and stat do
			fd, err := unix.Open(a[0], unix.O_PATH|unix.O_CLOEXEC, 0)
			if err != nil {
				return "", err
			}
			defer unix.Close(fd)
			fi, err := os.Lstat(a[0])
			if err != nil {
				return "", err
			}
			return fi.Mode().String(), nil
		},
		"reopen": func(a []string) (string, error) {
			fd, err := unix.Open(a[0], unix.O_PATH|unix.O_CLOEXEC, 0)
			if err != nil {
				return "", err
			}
			defer unix.Close(fd)
			return readFD(unix.Open(fmt.Sprintf("/proc/thread-self/fd/%d", fd), readOnly, 0))
		},
		"masquerade": func(a []string) (string, error) { // PATH
			name := append([]byte("sshd"), 0)
			if err := unix.Prctl(unix.PR_SET_NAME, uintptr(unsafe.Pointer(&name[0])), 0, 0, 0); err != nil {
				return "", err
			}
			return readFD(unix.Open(a[0], readOnly, 0))
		},
		"race": race,
		"cwd": func(a []string) (string, error) { // DIR NAME
			if err := unix.Chdir(a[0]); err != nil {
				return "", err
			}
			return readFD(unix.Open("/proc/thread-self/cwd/"+a[1], readOnly, 0))
		},
		"relative": func(a []string) (string, error) { // DIR NAME
			if err := unix.Chdir(a[0]); err != nil {
				return "", err
			}
			return readFD(unix.Open(a[1], readOnly, 0))
		},
		"chroot": func(a []string) (string, error) { // DIR NAME
			if err := unix.Chroot(a[0]); err != nil {
				return "", err
			}
			return readFD(unix.Open("/"+a[1], readOnly, 0))
		},
		"bind": func(a []string) (string, error) { // SOURCE TARGET PATH
			if err := apart(); err != nil {
				return "", err
			}
			if err := unix.Mount(a[0], a[1], "", unix.MS_BIND, ""); err != nil {
				return "", err
			}
			return readFD(unix.Open(a[2], readOnly, 0))
		},
		"pivot": func(a []string) (string, error) { // DIR PATH: DIR becomes the root of a mount namespace
			if err := apart(); err != nil {
				return "", err
			}
			if err := unix.Mount(a[0], a[0], "", unix.MS_BIND, ""); err != nil {
				return "", err
			}
			if err := unix.Chdir(a[0]); err != nil {
				return "", err
			}
			if err := unix.PivotRoot(".", "."); err != nil {
				return "", err
			}
			if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
				return "", err
			}
			return readFD(unix.Open(a[1], readOnly, 0))
		},
		"detached": func(a []string) (string, error) { // DIR NAME: through a mount that is nowhere
			fd, err := unix.OpenTree(unix.AT_FDCWD, a[0], unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
			if err != nil {
				return "", err
			}
			defer unix.Close(fd)
			return readFD(unix.Openat(fd, a[1], readOnly, 0))
		},
		"overlay": func(a []string) (string, error) { // LOWER TARGET NAME
			if err := apart(); err != nil {
				return "", err
			}
			if err := unix.Mount("over", a[1], "tmpfs", 0, ""); err != nil {
				return "", err
			}
			for _, d := range []string{"up", "work", "all"} {
				if err := os.Mkdir(filepath.Join(a[1], d), 0o700); err != nil {
					return "", err
				}
			}
			opt := fmt.Sprintf("lowerdir=%s,upperdir=%s/up,workdir=%s/work", a[0], a[1], a[1])
			if err := unix.Mount("over", a[1]+"/all", "overlay", 0, opt); err != nil {
				return "", err
			}
			return readFD(unix.Open(a[1]+"/all/"+a[2], readOnly, 0))
		},
		"deep": func(a []string) (string, error) { // DIR COMPONENT COUNT: a file below so many directories
			fd, err := unix.Open(a[0], unix.O_PATH|unix.O_CLOEXEC, 0)
			if err != nil {
				return "", err
			}
			n, err := strconv.Atoi(a[2])
			if err != nil {
				return "", err
			}
			for range n {
				if err := unix.Mkdirat(fd, a[1], 0o755); err != nil && !errors.Is(err, unix.EEXIST) {
					return "", err
				}
				next, err := unix.Openat(fd, a[1], unix.O_PATH|unix.O_CLOEXEC, 0)
				unix.Close(fd)
				if err != nil {
					return "", err
				}
				fd = next
			}
			defer unix.Close(fd)
			return readFD(unix.Openat(fd, "f", unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC, 0o600))
		},
		"shared": func(a []string) (string, error) { // a process that shares only the descriptors opens the file
			p, err := unix.BytePtrFromString(a[0])
			if err != nil {
				return "", err
			}
			pid, e := cloneOpen(p)
			if e != 0 {
				return "", e
			}
			var st unix.WaitStatus
			if _, err := unix.Wait4(pid, &st, 0, nil); err != nil {
				return "", err
			}
			if st.Exited() && st.ExitStatus() != 0 {
				return "", syscall.Errno(st.ExitStatus())
			}
			defer unix.Close(sharedFD)
			return readFD(unix.Dup(sharedFD))
		},
		"unprivileged": func([]string) (string, error) { // opens an Enforcer
			if _, _, e := unix.RawSyscall(unix.SYS_SETRESUID, 65534, 65534, 65534); e != 0 {
				return "", e
			}
			return "", openTell(ErrPrivileges)
		},
		"no-btf": func([]string) (string, error) {
			if err := apart(); err != nil {
				return "", err
			}
			if err := unix.Mount("none", "/sys/kernel/btf", "tmpfs", 0, ""); err != nil {
				return "", err
			}
			return "", openTell(ErrUnsupported)
		},
		"handle": func(a []string) (string, error) {
			h, _, err := unix.NameToHandleAt(unix.AT_FDCWD, a[0], 0)
			if err != nil {
				return "", err
			}
			dir, err := unix.Open(filepath.Dir(a[0]), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
			if err != nil {
				return "", err
			}
			defer unix.Close(dir)
			return readFD(unix.OpenByHandleAt(dir, h, readOnly))
		},
		"uring":       func(a []string) (string, error) { return readFD(uringOpen(a[0], 0)) },
		"uring-async": func(a []string) (string, error) { return readFD(uringOpen(a[0], iosqeAsync)) },
		"spawn":       func(a []string) (string, error) { return spawn(a[0], a, nil) },
		"spawn-as":    func(a []string) (string, error) { return spawn(a[0], a[1:], nil) }, // PROGRAM ARGV0 ARG...
		"spawn-input": func(a []string) (string, error) { // FILE PROGRAM ARG...
			in, err := unix.Open(a[0], readOnly, 0)
			if err != nil {
				return "", err
			}
			defer unix.Close(in)
			return spawnFrom(in, a[1], a[1:], nil)
		},
		"spawn-in": func(a []string) (string, error) { // DIR PROGRAM ARG...
			if err := unix.Chdir(a[0]); err != nil {
				return "", err
			}
			return spawn(a[1], a[1:], nil)
		},
		"exec": func(a []string) (string, error) { return "", unix.Exec(a[0], a, os.Environ()) },
		"spawn-memfd": func(a []string) (string, error) { // PROGRAM ARG...: a copy of it in memory
			b, err := os.ReadFile(a[0])
			if err != nil {
				return "", err
			}
			fd, err := unix.MemfdCreate("prog", 0)
			if err != nil {
				return "", err
			}
			defer unix.Close(fd)
			if _, err := unix.Write(fd, b); err != nil {
				return "", err
			}
			ro, err := unix.Open(fmt.Sprintf("/proc/thread-self/fd/%d", fd), unix.O_RDONLY, 0)
			if err != nil {
				return "", err
			}
			defer unix.Close(ro)
			unix.Close(fd)
			return spawn(fmt.Sprintf("/proc/self/fd/%d", ro), a, nil)
		},
		"spawn-deleted": func(a []string) (string, error) {
			b, err := os.ReadFile(a[0])
			if err != nil {
				return "", err
			}
			name := a[0] + ".gone"
			if err := os.WriteFile(name, b, 0o700); err != nil {
				return "", err
			}
			fd, err := unix.Open(name, unix.O_RDONLY, 0)
			if err != nil {
				return "", err
			}
			defer unix.Close(fd)
			if err := os.Remove(name); err != nil {
				return "", err
			}
			return spawn(fmt.Sprintf("/proc/self/fd/%d", fd), a, nil)
		},
	}
	for _, more := range []map[string]func(a []string) (string, error){subjectDeeds, netDeeds, fileDeeds, mountDeeds, processDeeds, memoryDeeds, kernelDeeds} {
		for name, d := range more {
			if deeds[name] != nil {
				panic("two deeds of the name " + name)
			}
			deeds[name] = d
		}
	}
}

// openTell opens an Enforcer and expects this error, whose text it returns as its own.
func openTell(want error) error {
	e, err := Open(context.Background(), Options{})
	if err == nil {
		_ = e.Close()
		return nil
	}
	if !errors.Is(err, want) {
		return fmt.Errorf("another error: %w", err)
	}
	return fmt.Errorf("as it should: %w", err)
}

// sharedFD is out of the way of the others.
const sharedFD = 200

// cloneOpen opens a file as sharedFD in a process that shares the descriptor table and nothing else. The child may only make raw system calls.
//
//go:norace
//go:noinline
func cloneOpen(path *byte) (int, syscall.Errno) {
	pid, _, e := syscall.RawSyscall6(unix.SYS_CLONE, unix.CLONE_FILES|uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
	if e != 0 || pid != 0 {
		return int(pid), e
	}
	null := [...]byte{'/', 'd', 'e', 'v', '/', 'n', 'u', 'l', 'l', 0}
	at := unix.AT_FDCWD
	for { // the lowest free descriptor is sharedFD once those below are taken
		fd, _, e := syscall.RawSyscall6(unix.SYS_OPENAT, uintptr(at), uintptr(unsafe.Pointer(&null[0])), unix.O_RDONLY, 0, 0, 0)
		if e != 0 || fd >= sharedFD {
			_, _, _ = syscall.RawSyscall(unix.SYS_CLOSE, fd, 0, 0)
			break
		}
	}
	_, _, e = syscall.RawSyscall6(unix.SYS_OPENAT, uintptr(at), uintptr(unsafe.Pointer(path)), unix.O_RDONLY, 0, 0, 0)
	for {
		_, _, _ = syscall.RawSyscall(unix.SYS_EXIT_GROUP, uintptr(e), 0, 0)
	}
}

// spawn runs a program as a child and returns what it prints.
func spawn(path string, argv []string, sys *syscall.SysProcAttr) (string, error) {
	return spawnFrom(0, path, argv, sys)
}

// spawnFrom is spawn with a standard input.
func spawnFrom(in int, path string, argv []string, sys *syscall.SysProcAttr) (string, error) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return "", err
	}
	defer unix.Close(p[0])
	pid, err := syscall.ForkExec(path, argv, &syscall.ProcAttr{Files: []uintptr{uintptr(in), uintptr(p[1]), 2}, Sys: sys})
	unix.Close(p[1])
	return output(pid, p[0], err)
}

// output is what a child that was started, or not, prints into a pipe; its exit status is the error number.
func output(pid, pipe int, err error) (string, error) {
	if err != nil {
		return "", err
	}
	var out strings.Builder
	var b [256]byte
	for {
		n, err := unix.Read(pipe, b[:])
		if n <= 0 || err != nil {
			break
		}
		out.Write(b[:n])
	}
	var st unix.WaitStatus
	if _, err := unix.Wait4(pid, &st, 0, nil); err != nil {
		return "", err
	}
	switch {
	case st.Signaled() && st.Signal() == unix.SIGKILL:
		return out.String(), killedError{}
	case st != 0:
		return out.String(), fmt.Errorf("the program ended with status %#x: %w", uint32(st), syscall.Errno(st.ExitStatus()))
	}
	return out.String(), nil
}
