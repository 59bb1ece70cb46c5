package enforce

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"github.com/pavise-project/pavise"
	"golang.org/x/sys/unix"
)

// What the deeds of the operations tell is what came of them: nothing when nothing changed, whatever the call said.

func num(s string) int {
	n, err := strconv.ParseInt(s, 0, 64)
	if err != nil {
		panic(err)
	}
	return int(n)
}

// quiet is a deed that tells nothing.
func quiet(f func(a []string) error) func([]string) (string, error) {
	return func(a []string) (string, error) { return "", f(a) }
}

// onOpen is a deed on a descriptor of its first argument, opened before.
func onOpen(flags int, f func(fd int, a []string) error) func([]string) (string, error) {
	return quiet(func(a []string) error {
		fd, err := unix.Open(a[0], flags|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return f(fd, a)
	})
}

// ringed is a deed that is one request on one or two names.
func ringed(f func(a []string) (uringSQE, []string)) func([]string) (string, error) {
	return quiet(func(a []string) error {
		sqe, names := f(a)
		_, err := uringNames(sqe, names...)
		return err
	})
}

func raw(nr uintptr, a ...uintptr) error {
	a = append(a, 0, 0, 0, 0, 0)
	_, _, e := unix.RawSyscall6(nr, a[0], a[1], a[2], a[3], a[4], a[5])
	return errno(e)
}

// whether tells what when was is not any more what it was.
func whether(was, is, what string, err error) (string, error) {
	if was != is {
		return what, err
	}
	return "", err
}

const here = unix.AT_FDCWD

var fileDeeds = map[string]func(a []string) (string, error){
	"mkdir":   quiet(func(a []string) error { return unix.Mkdir(a[0], 0o755) }),
	"mknod":   quiet(func(a []string) error { return unix.Mknod(a[0], uint32(num(a[1])), num(a[2])) }),
	"symlink": quiet(func(a []string) error { return unix.Symlink(a[0], a[1]) }),
	"link":    quiet(func(a []string) error { return unix.Link(a[0], a[1]) }),
	"link-proc": onOpen(unix.O_PATH, func(fd int, a []string) error {
		return unix.Linkat(here, fmt.Sprintf("/proc/thread-self/fd/%d", fd), here, a[1], unix.AT_SYMLINK_FOLLOW)
	}),
	"link-fd": onOpen(unix.O_RDONLY, func(fd int, a []string) error { return unix.Linkat(fd, "", here, a[1], unix.AT_EMPTY_PATH) }),
	"tmpfile": quiet(func(a []string) error { // DIR NAME: a file without a name gets one
		fd, err := unix.Open(a[0], unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
		if err != nil {
			return fmt.Errorf("open: %w", noErrno(err))
		}
		defer unix.Close(fd)
		return unix.Linkat(fd, "", here, a[1], unix.AT_EMPTY_PATH)
	}),
	"rename":    quiet(func(a []string) error { return unix.Rename(a[0], a[1]) }),
	"exchange":  quiet(func(a []string) error { return unix.Renameat2(here, a[0], here, a[1], unix.RENAME_EXCHANGE) }),
	"noreplace": quiet(func(a []string) error { return unix.Renameat2(here, a[0], here, a[1], unix.RENAME_NOREPLACE) }),
	"unlink":    quiet(func(a []string) error { return unix.Unlink(a[0]) }),
	"rmdir":     quiet(func(a []string) error { return unix.Rmdir(a[0]) }),
	"truncate":  quiet(func(a []string) error { return unix.Truncate(a[0], int64(num(a[1]))) }),
	"ftruncate": onOpen(unix.O_RDWR, func(fd int, a []string) error { return unix.Ftruncate(fd, int64(num(a[1]))) }),
	"chmod":     quiet(func(a []string) error { return unix.Chmod(a[0], uint32(num(a[1]))) }),
	"fchmod":    onOpen(unix.O_RDONLY, func(fd int, a []string) error { return unix.Fchmod(fd, uint32(num(a[1]))) }),
	"fchmodat2": onOpen(unix.O_PATH, func(fd int, a []string) error {
		empty := []byte{0}
		return raw(unix.SYS_FCHMODAT2, uintptr(fd), uintptr(unsafe.Pointer(&empty[0])), uintptr(num(a[1])), unix.AT_EMPTY_PATH)
	}),
	"chown":  quiet(func(a []string) error { return unix.Chown(a[0], num(a[1]), num(a[2])) }),
	"lchown": quiet(func(a []string) error { return unix.Lchown(a[0], num(a[1]), num(a[2])) }),
	"fchown": onOpen(unix.O_RDONLY, func(fd int, a []string) error { return unix.Fchown(fd, num(a[1]), num(a[2])) }),
	"fchownat": onOpen(unix.O_PATH, func(fd int, a []string) error {
		return unix.Fchownat(fd, "", num(a[1]), num(a[2]), unix.AT_EMPTY_PATH)
	}),
	"setxattr":    quiet(func(a []string) error { return unix.Setxattr(a[0], a[1], xattrs[a[1]], 0) }),
	"lsetxattr":   quiet(func(a []string) error { return unix.Lsetxattr(a[0], a[1], xattrs[a[1]], 0) }),
	"fsetxattr":   onOpen(unix.O_RDONLY, func(fd int, a []string) error { return unix.Fsetxattr(fd, a[1], xattrs[a[1]], 0) }),
	"removexattr": quiet(func(a []string) error { return unix.Removexattr(a[0], a[1]) }),

	"uring-create": ringed(func(a []string) (uringSQE, []string) {
		return uringSQE{op: uringOpenat, fd: here, len: 0o600, how: unix.O_WRONLY | unix.O_CREAT | unix.O_EXCL}, a
	}),
	"uring-mkdir":  ringed(func(a []string) (uringSQE, []string) { return uringSQE{op: uringMkdirat, fd: here, len: 0o755}, a }),
	"uring-unlink": ringed(func(a []string) (uringSQE, []string) { return uringSQE{op: uringUnlinkat, fd: here}, a }),
	"uring-rename": ringed(func(a []string) (uringSQE, []string) {
		return uringSQE{op: uringRenameat, fd: here, len: hereLen}, a
	}),
	"uring-symlink": ringed(func(a []string) (uringSQE, []string) { return uringSQE{op: uringSymlinkat, fd: here}, a }),
	"uring-link": ringed(func(a []string) (uringSQE, []string) {
		return uringSQE{op: uringLinkat, fd: here, len: hereLen}, a
	}),
	"uring-fsetxattr": onOpen(unix.O_RDONLY, func(fd int, a []string) error {
		var pin runtime.Pinner
		defer pin.Unpin()
		v := xattrs[a[1]]
		pin.Pin(&v[0])
		_, err := uringNames(uringSQE{op: uringFsetxattr, fd: int32(fd), off: uint64(uintptr(unsafe.Pointer(&v[0]))), len: uint32(len(v))}, a[1])
		return err
	}),
}

const hereLen = 1<<32 + unix.AT_FDCWD // as the directory that stands where a length does

// noErrno hides the number of an error that is not the one that is meant.
func noErrno(err error) error { return errors.New(err.Error()) }

// xattrs are values that the kernel takes.
var xattrs = map[string][]byte{
	"trusted.a": []byte("value"),
	"trusted.b": []byte("value"),
	// struct vfs_cap_data: CAP_NET_RAW, of revision 2
	"security.capability": {0, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0},
	"system.posix_acl_access": acl(
		[3]uint32{1, 6, ^uint32(0)}, [3]uint32{2, 4, 1234}, [3]uint32{4, 0, ^uint32(0)}, [3]uint32{16, 4, ^uint32(0)}, [3]uint32{32, 0, ^uint32(0)}),
}

// acl encodes an ACL as setfacl does: entries of a tag, permissions and an id (include/uapi/linux/posix_acl_xattr.h).
func acl(entries ...[3]uint32) []byte {
	b := []byte{2, 0, 0, 0}
	for _, e := range entries {
		b = binary.LittleEndian.AppendUint16(b, uint16(e[0]))
		b = binary.LittleEndian.AppendUint16(b, uint16(e[1]))
		b = binary.LittleEndian.AppendUint32(b, e[2])
	}
	return b
}

// moved is a deed in a mount namespace of its own that changes what is mounted at its last argument; before is done before, and judged too.
func moved(before, f func(a []string) error) func([]string) (string, error) {
	return func(a []string) (string, error) {
		if err := apart(); err != nil {
			return "", noErrno(err)
		}
		if before != nil {
			if err := before(a); err != nil {
				return "", fmt.Errorf("before: %w", noErrno(err))
			}
		}
		at := a[len(a)-1]
		was := mountedAt(at)
		err := f(a)
		return whether(was, mountedAt(at), "mounted", err)
	}
}

// mountedAt is the last line of a mount point in mountinfo.
func mountedAt(path string) (last string) {
	text, err := os.ReadFile("/proc/thread-self/mountinfo")
	if err != nil {
		return err.Error()
	}
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 4 && f[4] == path {
			last = line
		}
	}
	return last
}

func mountTmpfs(a []string) error { return unix.Mount("none", a[0], "tmpfs", 0, "") }

// rooted is a deed that changes the root directory.
func rooted(before, f func(a []string) error) func([]string) (string, error) {
	return func(a []string) (string, error) {
		if before != nil {
			if err := before(a); err != nil {
				return "", fmt.Errorf("before: %w", noErrno(err))
			}
		}
		root := func() string {
			var st unix.Stat_t
			if err := unix.Stat("/", &st); err != nil {
				return err.Error()
			}
			return fmt.Sprint(st.Dev, st.Ino)
		}
		was := root()
		err := f(a)
		return whether(was, root(), "another root", err)
	}
}

var mountDeeds = map[string]func(a []string) (string, error){
	"mount-tmpfs":   moved(nil, mountTmpfs),
	"mount-bind":    moved(nil, func(a []string) error { return unix.Mount(a[0], a[1], "", unix.MS_BIND, "") }),
	"mount-remount": moved(mountTmpfs, func(a []string) error { return unix.Mount("", a[0], "", unix.MS_REMOUNT|unix.MS_RDONLY, "") }),
	"mount-move":    moved(mountTmpfs, func(a []string) error { return unix.Mount(a[0], a[1], "", unix.MS_MOVE, "") }),
	"mount-shared":  moved(mountTmpfs, func(a []string) error { return unix.Mount("", a[0], "", unix.MS_SHARED, "") }),
	"fsmount": moved(nil, inDirOf(func(dir int, a []string) error {
		return unix.MoveMount(dir, "", here, a[0], unix.MOVE_MOUNT_F_EMPTY_PATH)
	})),
	"open-tree": moved(nil, func(a []string) error {
		fd, err := unix.OpenTree(here, a[0], unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
		if err != nil {
			return noErrno(err)
		}
		defer unix.Close(fd)
		return unix.MoveMount(fd, "", here, a[1], unix.MOVE_MOUNT_F_EMPTY_PATH)
	}),
	"mount-unknown": quiet(func(a []string) error { return unix.Mount("none", a[0], a[1], 0, "") }),
	"move-mount":    moved(mountTmpfs, func(a []string) error { return unix.MoveMount(here, a[0], here, a[1], 0) }),
	"setattr": moved(mountTmpfs, func(a []string) error {
		return unix.MountSetattr(here, a[0], 0, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
	}),
	"reconfigure": moved(mountTmpfs, func(a []string) error {
		fd, err := unix.Fspick(here, a[0], unix.FSPICK_CLOEXEC)
		if err != nil {
			return noErrno(err)
		}
		defer unix.Close(fd)
		if err := unix.FsconfigSetFlag(fd, "ro"); err != nil {
			return noErrno(err)
		}
		return unix.FsconfigReconfigure(fd)
	}),
	"umount": moved(mountTmpfs, func(a []string) error { return unix.Unmount(a[0], 0) }),
	"detach": moved(mountTmpfs, func(a []string) error { return unix.Unmount(a[0], unix.MNT_DETACH) }),
	"pivot-root": rooted(func(a []string) error {
		return errors.Join(apart(), mountTmpfs(a), unix.Chdir(a[0]))
	}, func([]string) error { return unix.PivotRoot(".", ".") }),
	"change-root": rooted(nil, func(a []string) error { return unix.Chroot(a[0]) }),
}

// inDirOf is inDir for a deed.
func inDirOf(f func(dir int, a []string) error) func([]string) error {
	return func(a []string) error { return inDir(func(dir int) error { return f(dir, a) })(nil) }
}

// ids are those of the thread, without the capabilities that go with some.
func ids() string {
	text, err := os.ReadFile("/proc/thread-self/status")
	if err != nil {
		return err.Error()
	}
	var b strings.Builder
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, "Uid:") || strings.HasPrefix(line, "Gid:") || strings.HasPrefix(line, "Groups:") {
			b.WriteString(line)
		}
	}
	return b.String()
}

var setidCalls = map[string]func(id uintptr) error{
	"setuid":    func(id uintptr) error { return raw(unix.SYS_SETUID, id) },
	"setreuid":  func(id uintptr) error { return raw(unix.SYS_SETREUID, same, id) },
	"setresuid": func(id uintptr) error { return raw(unix.SYS_SETRESUID, same, id, same) },
	"setfsuid":  func(id uintptr) error { _ = raw(unix.SYS_SETFSUID, id); return nil }, // it returns the old one
	"setgid":    func(id uintptr) error { return raw(unix.SYS_SETGID, id) },
	"setresgid": func(id uintptr) error { return raw(unix.SYS_SETRESGID, same, id, same) },
	"setfsgid":  func(id uintptr) error { _ = raw(unix.SYS_SETFSGID, id); return nil },
	"setgroups": func(id uintptr) error {
		g := uint32(id)
		return raw(unix.SYS_SETGROUPS, 1, uintptr(unsafe.Pointer(&g)))
	},
}

const same = ^uintptr(0)

// traced is a deed that becomes the tracer of a process, and lets it go again.
func traced(attach func(pid int) error) func([]string) (string, error) {
	return func(a []string) (string, error) {
		pid := num(a[0])
		if err := attach(pid); err != nil {
			return "", err
		}
		const all = 0x40000000 // __WALL
		var st unix.WaitStatus
		if _, err := unix.Wait4(pid, &st, all, nil); err != nil {
			return "", err
		}
		return "attached", unix.PtraceDetach(pid)
	}
}

// mappings tells the first byte of a process's list of mappings. Newer kernels give it to who has CAP_PERFMON, whatever an LSM says.
func mappings(a []string) (string, error) {
	text, err := readFD(unix.Open("/proc/"+a[0]+"/maps", readOnly, 0))
	return text[:min(len(text), 1)], err
}

// withoutCaps takes effective capabilities from the thread.
func withoutCaps(caps ...int) error {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return err
	}
	for _, c := range caps {
		data[c/32].Effective &^= 1 << (c % 32)
	}
	return unix.Capset(&hdr, &data[0])
}

var processDeeds = map[string]func(a []string) (string, error){
	"kill":   quiet(func(a []string) error { return unix.Kill(num(a[0]), syscall.Signal(num(a[1]))) }),
	"tgkill": quiet(func(a []string) error { return unix.Tgkill(num(a[0]), num(a[0]), syscall.Signal(num(a[1]))) }),
	"sigqueue": quiet(func(a []string) error {
		info := struct {
			signo, errno, code int32
			_                  [116]byte
		}{signo: int32(num(a[1])), code: -1} // SI_QUEUE
		return raw(unix.SYS_RT_SIGQUEUEINFO, uintptr(num(a[0])), uintptr(num(a[1])), uintptr(unsafe.Pointer(&info)))
	}),
	"pidfd-signal": quiet(func(a []string) error {
		fd, err := unix.PidfdOpen(num(a[0]), 0)
		if err != nil {
			return noErrno(err)
		}
		defer unix.Close(fd)
		return unix.PidfdSendSignal(fd, syscall.Signal(num(a[1])), nil, 0)
	}),
	"own-signal": func([]string) (string, error) { // SIGURG does nothing
		return "sent", unix.Tgkill(unix.Getpid(), unix.Gettid(), unix.SIGURG)
	},

	"attach": traced(unix.PtraceAttach),
	"seize": traced(func(pid int) error {
		if err := raw(unix.SYS_PTRACE, 0x4206 /* PTRACE_SEIZE */, uintptr(pid)); err != nil {
			return err
		}
		return unix.PtraceInterrupt(pid)
	}),
	"traceme": func([]string) (string, error) { // a child asks to be traced
		pid, err := syscall.ForkExec("/bin/true", []string{"true"}, &syscall.ProcAttr{Sys: &syscall.SysProcAttr{Ptrace: true}})
		if err != nil {
			return "", err
		}
		var st unix.WaitStatus
		if _, err := unix.Wait4(pid, &st, 0, nil); err != nil {
			return "", err
		}
		if !st.Stopped() {
			return "", nil
		}
		_ = unix.Kill(pid, unix.SIGKILL)
		_, err = unix.Wait4(pid, &st, 0, nil)
		return "stopped for its tracer", err
	},
	"vm-readv": func(a []string) (string, error) { // PID ADDRESS
		b := make([]byte, len(secret))
		_, err := unix.ProcessVMReadv(num(a[0]), []unix.Iovec{{Base: &b[0], Len: uint64(len(b))}},
			[]unix.RemoteIovec{{Base: uintptr(num(a[1])), Len: len(b)}}, 0)
		return strings.TrimRight(string(b), "\x00"), err
	},
	"read-mem": func(a []string) (string, error) { // PID ADDRESS
		fd, err := unix.Open("/proc/"+a[0]+"/mem", readOnly, 0)
		if err != nil {
			return "", err
		}
		defer unix.Close(fd)
		b := make([]byte, len(secret))
		_, err = unix.Pread(fd, b, int64(num(a[1])))
		return strings.TrimRight(string(b), "\x00"), err
	},
	"pidfd-getfd": func(a []string) (string, error) { // PID: its standard input
		fd, err := unix.PidfdOpen(num(a[0]), 0)
		if err != nil {
			return "", noErrno(err)
		}
		defer unix.Close(fd)
		got, err := unix.PidfdGetfd(fd, 0, 0)
		if err != nil {
			return "", err
		}
		return "got", unix.Close(got)
	},
	"maps": func(a []string) (string, error) {
		if err := withoutCaps(unix.CAP_PERFMON, unix.CAP_SYS_ADMIN); err != nil {
			return "", noErrno(err)
		}
		return mappings(a)
	},
	"maps-perfmon": mappings,

	"setid": func(a []string) (string, error) { // CALL ID
		was := ids()
		err := setidCalls[a[0]](uintptr(num(a[1])))
		return whether(was, ids(), "changed", err)
	},
	"dropcap": func(a []string) (string, error) { // NUMBER: from the effective ones
		hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var was, data [2]unix.CapUserData
		if err := unix.Capget(&hdr, &was[0]); err != nil {
			return "", noErrno(err)
		}
		data = was
		data[num(a[0])/32].Effective &^= 1 << (num(a[0]) % 32)
		err := unix.Capset(&hdr, &data[0])
		if gerr := unix.Capget(&hdr, &data[0]); gerr != nil {
			return "", noErrno(gerr)
		}
		return whether(fmt.Sprint(was), fmt.Sprint(data), "dropped", err)
	},
	"userns-clone": func([]string) (string, error) { return ownUserns(&syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER}) },
	"userns-unshare": func([]string) (string, error) {
		return ownUserns(&syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWUSER})
	},
}

// ownUserns starts a program and tells whether it has a user namespace of its own.
func ownUserns(attr *syscall.SysProcAttr) (string, error) {
	was, err := os.Readlink("/proc/self/ns/user")
	if err != nil {
		return "", err
	}
	is, err := spawn("/bin/readlink", []string{"readlink", "/proc/self/ns/user"}, attr)
	if err != nil {
		return "", err
	}
	return whether(was, strings.TrimSpace(is), "another namespace", nil)
}

func page(prot, flags int) ([]byte, error) {
	return unix.Mmap(-1, 0, os.Getpagesize(), prot, flags|unix.MAP_ANONYMOUS)
}

const (
	protRW = unix.PROT_READ | unix.PROT_WRITE
	protRX = unix.PROT_READ | unix.PROT_EXEC
)

// executable is a deed that makes memory executable. It is given back afterwards.
func executable(f func(a []string) ([]byte, error)) func([]string) (string, error) {
	return func(a []string) (string, error) {
		b, err := f(a)
		if b == nil {
			return "", err
		}
		perm, perr := permissions(uintptr(unsafe.Pointer(&b[0])))
		if perr != nil {
			return "", noErrno(perr)
		}
		if uerr := unix.Munmap(b); uerr != nil && err == nil {
			err = noErrno(uerr)
		}
		if strings.Contains(perm, "x") {
			return "executable", err
		}
		return "", err
	}
}

// permissions are those of the mapping at an address.
func permissions(addr uintptr) (string, error) {
	text, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(text)) {
		var from, to uintptr
		var perm string
		if _, err := fmt.Sscanf(line, "%x-%x %s", &from, &to, &perm); err == nil && from <= addr && addr < to {
			return perm, nil
		}
	}
	return "", errors.New("it is not mapped")
}

// protect changes the protection of memory that Go knows nothing about.
func protect(addr uintptr, size, prot int) error {
	return raw(unix.SYS_MPROTECT, addr, uintptr(size), uintptr(prot))
}

// steps maps a page, writes to it and gives it one protection after the other.
func steps(flags int, prots ...int) func([]string) ([]byte, error) {
	return func([]string) ([]byte, error) {
		b, err := page(protRW, flags)
		if err != nil {
			return nil, err
		}
		b[0] = 0xc3
		for _, p := range prots {
			if err := unix.Mprotect(b, p); err != nil {
				return b, err
			}
		}
		return b, nil
	}
}

// mapFile maps a page of a file.
func mapFile(path string, offset int64, prot int) ([]byte, error) {
	fd, err := unix.Open(path, readOnly, 0)
	if err != nil {
		return nil, noErrno(err)
	}
	defer unix.Close(fd)
	return unix.Mmap(fd, offset, os.Getpagesize(), prot, unix.MAP_PRIVATE)
}

// executableAt is a deed that makes a page executable that the process has and does not use.
func executableAt(find func() (uintptr, error)) func([]string) (string, error) {
	return func([]string) (string, error) {
		addr, err := find()
		if err != nil {
			return "", noErrno(err)
		}
		err = protect(addr, os.Getpagesize(), protRW|unix.PROT_EXEC)
		perm, perr := permissions(addr)
		if perr != nil {
			return "", noErrno(perr)
		}
		if !strings.Contains(perm, "x") {
			return "", err
		}
		return "executable", errors.Join(err, protect(addr, os.Getpagesize(), protRW))
	}
}

var memoryDeeds = map[string]func(a []string) (string, error){
	"mmap-rx":         executable(func([]string) ([]byte, error) { return page(protRX, unix.MAP_PRIVATE) }),
	"mmap-rwx":        executable(func([]string) ([]byte, error) { return page(protRW|unix.PROT_EXEC, unix.MAP_PRIVATE) }),
	"mprotect-rx":     executable(steps(unix.MAP_PRIVATE, protRX)),
	"mprotect-rwx":    executable(steps(unix.MAP_PRIVATE, protRW|unix.PROT_EXEC)),
	"mprotect-r-rx":   executable(steps(unix.MAP_PRIVATE, unix.PROT_READ, protRX)),
	"mprotect-shared": executable(steps(unix.MAP_SHARED, unix.PROT_READ, protRX)),
	"mmap-memfd": executable(func([]string) ([]byte, error) {
		fd, err := unix.MemfdCreate("code", unix.MFD_CLOEXEC)
		if err != nil {
			return nil, noErrno(err)
		}
		defer unix.Close(fd)
		if _, err := unix.Write(fd, make([]byte, os.Getpagesize())); err != nil {
			return nil, noErrno(err)
		}
		return unix.Mmap(fd, 0, os.Getpagesize(), protRX, unix.MAP_PRIVATE)
	}),
	"mmap-file": executable(func(a []string) ([]byte, error) { return mapFile(a[0], 0, protRX) }),
	// What ld.so does with a library's data that is read-only once it is relocated, and with its code.
	"library": executable(func(a []string) ([]byte, error) {
		data, err := mapFile(a[0], 0, protRW)
		if err != nil {
			return nil, err
		}
		defer func() { _ = unix.Munmap(data) }()
		data[0]++
		if err := unix.Mprotect(data, unix.PROT_READ); err != nil {
			return nil, err
		}
		code, err := mapFile(a[0], 0, unix.PROT_READ)
		if err != nil {
			return nil, err
		}
		return code, unix.Mprotect(code, protRX)
	}),
	"text-relocation": executable(func(a []string) ([]byte, error) {
		code, err := mapFile(a[0], 0, protRW)
		if err != nil {
			return nil, err
		}
		code[0]++
		return code, unix.Mprotect(code, protRX)
	}),
	"stack": executableAt(func() (uintptr, error) {
		text, err := os.ReadFile("/proc/self/maps")
		if err != nil {
			return 0, err
		}
		for line := range strings.Lines(string(text)) {
			var from uintptr
			if _, err := fmt.Sscanf(line, "%x-", &from); err == nil && strings.HasSuffix(line, "[stack]\n") {
				return from, nil
			}
		}
		return 0, errors.New("there is no stack")
	}),
	"heap": executableAt(func() (uintptr, error) { // Go does not use brk
		page := uintptr(os.Getpagesize())
		end, _, _ := unix.RawSyscall(unix.SYS_BRK, 0, 0, 0)
		now, _, _ := unix.RawSyscall(unix.SYS_BRK, end+2*page, 0, 0)
		if now != end+2*page {
			return 0, errors.New("brk does not grow")
		}
		return (end + page - 1) &^ (page - 1), nil
	}),
	// Code is written through /proc/self/mem, and stays executable: docs/THREATS.md.
	"self-mem": func(a []string) (string, error) {
		code, err := mapFile(a[0], 0, protRX)
		if err != nil {
			return "", err
		}
		defer func() { _ = unix.Munmap(code) }()
		fd, err := unix.Open("/proc/self/mem", unix.O_WRONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return "", err
		}
		defer unix.Close(fd)
		was := code[0]
		_, err = unix.Pwrite(fd, []byte{was + 1}, int64(uintptr(unsafe.Pointer(&code[0]))))
		return whether(string(was), string(code[0]), "written", err)
	},
}

func made(fd int, err error) (string, error) {
	if err != nil {
		return "", err
	}
	return "made", unix.Close(fd)
}

var kernelDeeds = map[string]func(a []string) (string, error){
	"socket": func(a []string) (string, error) { // FAMILY TYPE PROTOCOL
		return made(unix.Socket(num(a[0]), num(a[1])|unix.SOCK_CLOEXEC, num(a[2])))
	},
	"socketpair": func(a []string) (string, error) {
		p, err := unix.Socketpair(num(a[0]), num(a[1])|unix.SOCK_CLOEXEC, num(a[2]))
		if err == nil {
			unix.Close(p[1])
		}
		return made(p[0], err)
	},
	"uring-socket": func(a []string) (string, error) {
		return made(uring(uringSQE{op: uringSocket, fd: int32(num(a[0])), off: uint64(num(a[1])), len: uint32(num(a[2]))}))
	},
	"finit-module": onOpen(unix.O_RDONLY, func(fd int, _ []string) error { return unix.FinitModule(fd, "", 0) }),
	"init-module":  quiet(func([]string) error { return unix.InitModule([]byte(strings.Repeat("no module ", 20)), "") }),
	"kexec-load":   quiet(func([]string) error { return acts[pavise.OpKexec](nil) }),
	"kexec-file-load": onOpen(unix.O_RDONLY, func(fd int, _ []string) error {
		return unix.KexecFileLoad(fd, -1, "", unix.KEXEC_FILE_NO_INITRAMFS)
	}),
	"map-create": func([]string) (string, error) {
		attr := [8]uint32{2 /* an array */, 4, 4, 1}
		fd, _, e := unix.Syscall(unix.SYS_BPF, 0, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
		return made(int(fd), errno(e))
	},
	"next-program": quiet(func([]string) error {
		var attr [2]uint32
		return raw(unix.SYS_BPF, 11, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
	}),
	// TYPE, on one CPU: an event of a process would have the kernel patch its scheduler, over which QEMU's emulated processors can stumble. A type that there is
	// not is asked for of the thread.
	"perf": func(a []string) (string, error) {
		attr := unix.PerfEventAttr{Type: uint32(num(a[0])), Config: unix.PERF_COUNT_SW_DUMMY, Size: uint32(unsafe.Sizeof(unix.PerfEventAttr{})), Bits: unix.PerfBitExcludeKernel}
		pid, cpu := -1, 0
		if attr.Type != unix.PERF_TYPE_SOFTWARE {
			pid, cpu = 0, -1
		}
		return made(unix.PerfEventOpen(&attr, pid, cpu, -1, unix.PERF_FLAG_FD_CLOEXEC))
	},
	"add-key": func(a []string) (string, error) { // DESCRIPTION
		_, err := unix.AddKey("user", a[0], []byte("x"), unix.KEY_SPEC_THREAD_KEYRING)
		if _, serr := unix.KeyctlSearch(unix.KEY_SPEC_THREAD_KEYRING, "user", a[0], 0); serr == nil {
			return "added", err
		}
		return "", err
	},
	"read-key": func(a []string) (string, error) { // ID
		b := make([]byte, 64)
		n, err := unix.KeyctlBuffer(unix.KEYCTL_READ, num(a[0]), b, 0)
		return string(b[:max(n, 0)]), err
	},
	"describe-key": func(a []string) (string, error) {
		s, err := unix.KeyctlString(unix.KEYCTL_DESCRIBE, num(a[0]))
		return s[strings.LastIndex(s, ";")+1:], err
	},

	"uring-setup": func(a []string) (string, error) { // UID
		if err := raw(unix.SYS_SETRESUID, uintptr(num(a[0])), uintptr(num(a[0])), uintptr(num(a[0]))); err != nil {
			return "", noErrno(err)
		}
		_, err := uring(uringSQE{op: uringNop})
		if err == nil {
			return "made", nil
		}
		return "", err
	},
	"uring-sqpoll": func([]string) (string, error) {
		_, err := uringRing(uringSQPoll, uringSQE{op: uringNop}, nil)
		if err == nil {
			return "made", nil
		}
		return "", err
	},
	"uring-credentials": func([]string) (string, error) {
		_, err := uringRing(0, uringSQE{op: uringNop}, func(ring int, sqe *uringSQE) error {
			id, _, e := unix.Syscall6(unix.SYS_IO_URING_REGISTER, uintptr(ring), uringRegPersona, 0, 0, 0, 0)
			if e != 0 {
				return noErrno(e)
			}
			sqe.persona = uint16(id)
			return nil
		})
		if err == nil {
			return "taken", nil
		}
		return "", err
	},
	"uring-command": onOpen(unix.O_RDONLY, func(fd int, _ []string) error {
		_, err := uring(uringSQE{op: uringCmd, fd: int32(fd)})
		return err
	}),

	"sysctl-write": func(a []string) (string, error) { // NAME VALUE, in a network namespace of its own
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return "", noErrno(err)
		}
		path := "/proc/sys/" + a[0]
		was, err := os.ReadFile(path)
		if err != nil {
			return "", noErrno(err)
		}
		err = func() error {
			fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			_, err = unix.Write(fd, []byte(a[1]))
			return err
		}()
		is, rerr := os.ReadFile(path)
		if rerr != nil {
			return "", noErrno(rerr)
		}
		return whether(string(was), string(is), "set", err)
	},
	"write-file": func(a []string) (string, error) { // PATH TEXT
		fd, err := unix.Open(a[0], unix.O_WRONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return "", err
		}
		defer unix.Close(fd)
		_, err = unix.Write(fd, []byte(a[1]))
		return "", err
	},
	"mknod-read": func(a []string) (string, error) { // PATH DEVICE: of a node that it makes
		if err := unix.Unlink(a[0]); err != nil && !errors.Is(err, unix.ENOENT) {
			return "", noErrno(err)
		}
		if err := unix.Mknod(a[0], unix.S_IFCHR|0o600, num(a[1])); err != nil {
			return "", noErrno(err)
		}
		return readFD(unix.Open(a[0], readOnly, 0))
	},
	"uring-read": func(a []string) (string, error) { return readFD(uringOpen(a[0], 0)) },
}

// snapshot describes what is below a directory: names, modes, owners, contents, links, attributes.
func snapshot(dir string) string {
	var b strings.Builder
	err := filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		fmt.Fprintf(&b, "%s %o %d:%d %d", strings.TrimPrefix(path, dir), st.Mode, st.Uid, st.Gid, st.Nlink)
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			text, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			fmt.Fprintf(&b, " %q", text)
		case unix.S_IFLNK:
			to, err := os.Readlink(path)
			if err != nil {
				return err
			}
			fmt.Fprintf(&b, " -> %s", to)
		}
		list := make([]byte, 4096)
		n, err := unix.Llistxattr(path, list)
		if err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
			return err
		}
		names := strings.Split(strings.Trim(string(list[:max(n, 0)]), "\x00"), "\x00")
		slices.Sort(names)
		fmt.Fprintf(&b, " %q\n", names)
		return nil
	})
	if err != nil {
		fmt.Fprintf(&b, "%v\n", err)
	}
	return b.String()
}
