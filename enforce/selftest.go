package enforce

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"syscall"
	"unsafe"

	"github.com/pavise-project/pavise"
	"github.com/pavise-project/pavise/policy"
	"golang.org/x/sys/unix"
)

const selftestName = "pavise-selftest"

// SelftestPath is the executable of the child that a self-test starts.
const SelftestPath = "/memfd:" + selftestName

// prove attaches the programs of an operation's rung and shows their effect on a harmless act of this thread's own, or, for process.exec on
// the kill-on-return rung, of a child's. Programs stay attached.
func (e *Enforcer) prove(op pavise.Op) error {
	r := e.rung[op]
	for _, p := range r.programs {
		if err := e.k.Attach(p); err != nil {
			return short(err)
		}
	}
	err := e.proveBy(op, r)
	if errors.Is(err, unix.ENOSYS) {
		return nil // this kernel has no such call: there is nothing to judge
	}
	return err
}

func (e *Enforcer) proveBy(op pavise.Op, r rung) error {
	if r.rung == pavise.RungKillOnReturn {
		hooks := e.ctl.Hooks
		e.ctl.Hooks |= 1 << op
		defer func() { e.ctl.Hooks = hooks; _ = e.putControl() }()
		if op == pavise.OpExec || op == policy.OpLate {
			return e.as(op, unix.Getpid, killedChild)
		}
		return e.as(op, unix.Gettid, func() error {
			var aerr error
			got, err := signalled(func() { aerr = acts[op](nil) })
			switch {
			case err != nil:
				return err
			case aerr != nil:
				return fmt.Errorf("the act itself failed: %w", aerr)
			case !got:
				return errors.New("the program was called and its signal does not arrive")
			}
			return nil
		})
	}
	return e.as(op, unix.Gettid, func() error {
		if err := acts[op](func() {}); !errors.Is(err, unix.EPERM) {
			return errors.Join(errors.New("the act was not refused"), err)
		}
		return nil
	})
}

// acts are harmless acts on loopback, on the process's own descriptors, or in a file system of their own that nobody else sees: harmless also when nothing refuses
// them. ready, when it is not nil, asks for the shortest way to the hook.
var acts = map[pavise.Op]func(ready func()) error{
	pavise.OpSocket: func(func()) error { return socket(unix.SOCK_DGRAM, func(int) error { return nil }) },
	pavise.OpSignal: func(func()) error { return unix.Kill(unix.Getpid(), 0) },
	pavise.OpPtrace: func(func()) error {
		// The list of robust futexes of another process: its parent's, or that of init.
		var head, size uintptr
		for _, pid := range []int{unix.Getppid(), 1, 2} {
			if pid == 0 || pid == unix.Getpid() {
				continue
			}
			_, _, e := unix.RawSyscall(unix.SYS_GET_ROBUST_LIST, uintptr(pid), uintptr(unsafe.Pointer(&head)), uintptr(unsafe.Pointer(&size)))
			if e != unix.ESRCH {
				return errno(e)
			}
		}
		return errors.New("there is no other process to look at")
	},
	// Raw calls, for this thread alone; both change nothing.
	pavise.OpSetid: func(func()) error {
		_, _, e := unix.RawSyscall(unix.SYS_SETREUID, ^uintptr(0), ^uintptr(0), 0)
		return errno(e)
	},
	pavise.OpCapset: func(func()) error {
		hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var data [2]unix.CapUserData
		if err := unix.Capget(&hdr, &data[0]); err != nil {
			return err
		}
		return unix.Capset(&hdr, &data[0])
	},
	pavise.OpMemExec: func(func()) error {
		b, err := unix.Mmap(-1, 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_EXEC, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
		if err == nil {
			err = unix.Munmap(b)
		}
		return err
	},
	pavise.OpCreate: inDir(func(dir int) error { return unix.Mkdirat(dir, "x", 0o700) }),
	pavise.OpDelete: inDir(func(dir int) error {
		if err := unix.Mkdirat(dir, "x", 0o700); err != nil {
			return err
		}
		return unix.Unlinkat(dir, "x", unix.AT_REMOVEDIR)
	}),
	pavise.OpRename: inDir(func(dir int) error {
		if err := unix.Mkdirat(dir, "x", 0o700); err != nil {
			return err
		}
		return unix.Renameat(dir, "x", dir, "y")
	}),
	pavise.OpLink:     inFile(func(dir, _ int) error { return unix.Linkat(dir, "f", dir, "y", 0) }),
	pavise.OpSymlink:  inDir(func(dir int) error { return unix.Symlinkat("x", dir, "y") }),
	pavise.OpTruncate: inFile(func(_, f int) error { return unix.Ftruncate(f, 0) }),
	pavise.OpChmod:    inFile(func(_, f int) error { return unix.Fchmod(f, 0o600) }),
	pavise.OpChown:    inFile(func(_, f int) error { return unix.Fchown(f, -1, -1) }),
	pavise.OpSetxattr: inFile(func(_, f int) error {
		if err := unix.Fsetxattr(f, "trusted.x", nil, 0); !errors.Is(err, unix.EOPNOTSUPP) {
			return err
		}
		return unix.Fsetxattr(f, "security.x", nil, 0)
	}),
	// Refused for its arguments after the hook: no change of what is mounted where.
	pavise.OpMount: inDir(func(dir int) error {
		return unix.Mount("none", fmt.Sprintf("/proc/self/fd/%d", dir), "", unix.MS_REMOUNT|unix.MS_BIND, "")
	}),
	pavise.OpUmount:    func(func()) error { return unix.Unmount("/", unix.MNT_EXPIRE|unix.MNT_DETACH) },
	pavise.OpPivotRoot: func(func()) error { return unix.PivotRoot("/", "/") },
	pavise.OpChroot:    func(func()) error { return unix.Chroot("/") },
	pavise.OpModule:    func(func()) error { return unix.InitModule(make([]byte, 128), "") }, // no module: refused after the hook
	pavise.OpKexec: func(func()) error {
		const unknown = 1 << 15 // a flag that no kernel has: refused after the hook, and what is loaded stays
		_, _, e := unix.RawSyscall6(unix.SYS_KEXEC_LOAD, 0, 0, 0, unknown, 0, 0)
		return errno(e)
	},
	pavise.OpBPF: func(func()) error {
		const progGetNextID = 11
		attr := [2]uint32{^uint32(0) - 1, 0} // there is none after it
		_, _, e := unix.RawSyscall(unix.SYS_BPF, progGetNextID, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
		return errno(e)
	},
	pavise.OpPerf: func(func()) error {
		fd, err := unix.PerfEventOpen(&unix.PerfEventAttr{Type: unix.PERF_TYPE_SOFTWARE, Config: unix.PERF_COUNT_SW_DUMMY, Size: uint32(unsafe.Sizeof(unix.PerfEventAttr{}))}, 0, -1, -1, unix.PERF_FLAG_FD_CLOEXEC)
		if err == nil {
			unix.Close(fd)
		}
		return err
	},
	pavise.OpKeyring: func(func()) error {
		_, err := unix.AddKey("user", selftestName, []byte("x"), unix.KEY_SPEC_THREAD_KEYRING)
		return err
	},
	pavise.OpUserns: func(func()) error {
		// In a child, which finds no program to run.
		_, err := syscall.ForkExec("/proc/self/fd/-1", nil, &syscall.ProcAttr{Sys: &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER}})
		return err
	},
	pavise.OpIOUring: func(func()) error {
		var params [120]byte // struct io_uring_params
		fd, _, e := unix.RawSyscall(unix.SYS_IO_URING_SETUP, 1, uintptr(unsafe.Pointer(&params)), 0)
		if e == 0 {
			unix.Close(int(fd))
		}
		return errno(e)
	},
	pavise.OpSysctl: func(func()) error {
		fd, err := unix.Open("/proc/sys/kernel/osrelease", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			unix.Close(fd)
		}
		return err
	},
	pavise.OpDevice: func(func()) error {
		fd, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			unix.Close(fd)
		}
		return err
	},
	pavise.OpExec: func(func()) error {
		// A file that no format handler takes: execve fails with ENOEXEC, after the security hook and before anything is done.
		fd, err := unix.MemfdCreate(selftestName, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if err := unix.Fchmod(fd, 0o700); err != nil {
			return err
		}
		empty, argv := []byte{0}, [2]*byte{}
		argv[0] = &empty[0]
		_, _, e := syscall.RawSyscall6(unix.SYS_EXECVEAT, uintptr(fd), uintptr(unsafe.Pointer(&empty[0])),
			uintptr(unsafe.Pointer(&argv)), uintptr(unsafe.Pointer(&argv[1])), unix.AT_EMPTY_PATH, 0)
		return e
	},
	pavise.OpOpen: func(func()) error {
		fd, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			unix.Close(fd)
		}
		return err
	},
	pavise.OpConnect: func(func()) error { return connectUDP() },
	pavise.OpBind: func(func()) error {
		return socket(unix.SOCK_DGRAM, func(fd int) error { return unix.Bind(fd, loopback(0)) })
	},
	pavise.OpListen: func(func()) error {
		return socket(unix.SOCK_STREAM, func(fd int) error {
			if err := unix.Bind(fd, loopback(0)); err != nil {
				return err
			}
			return unix.Listen(fd, 1)
		})
	},
	pavise.OpAccept: func(ready func()) error {
		return socket(unix.SOCK_STREAM|unix.SOCK_NONBLOCK, func(fd int) error {
			if err := unix.Bind(fd, loopback(0)); err != nil {
				return err
			}
			if err := unix.Listen(fd, 1); err != nil {
				return err
			}
			if ready == nil { // something to accept
				sa, err := unix.Getsockname(fd)
				if err != nil {
					return err
				}
				c, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
				if err != nil {
					return err
				}
				defer unix.Close(c)
				if err := unix.Connect(c, sa); err != nil {
					return err
				}
				// The connection is the client's before it is the listener's.
				for {
					if _, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 1000); !errors.Is(err, unix.EINTR) {
						break // if there is nothing, accept says so
					}
				}
			}
			n, _, err := unix.Accept4(fd, unix.SOCK_CLOEXEC)
			if err == nil {
				unix.Close(n)
			}
			return err
		})
	},
	pavise.OpSend: func(func()) error {
		return socket(unix.SOCK_DGRAM, func(fd int) error { return unix.Sendto(fd, nil, 0, loopback(9)) })
	},
}

func errno(e syscall.Errno) error {
	if e == 0 {
		return nil
	}
	return e
}

// inDir runs act in the root of a new tmpfs that is mounted nowhere.
func inDir(act func(dir int) error) func(func()) error {
	return func(func()) error {
		fs, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
		if err != nil {
			return err
		}
		defer unix.Close(fs)
		if err := unix.FsconfigCreate(fs); err != nil {
			return err
		}
		dir, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(dir)
		return act(dir)
	}
}

// inFile is inDir with a file f.
func inFile(act func(dir, f int) error) func(func()) error {
	return inDir(func(dir int) error {
		f, err := unix.Openat(dir, "f", unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC, 0o600)
		if err != nil {
			return err
		}
		defer unix.Close(f)
		return act(dir, f)
	})
}

func loopback(port int) unix.Sockaddr {
	return &unix.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}}
}

func socket(typ int, act func(fd int) error) error {
	fd, err := unix.Socket(unix.AF_INET, typ|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return act(fd)
}

// connectUDP names a peer and sends nothing.
func connectUDP() error {
	return socket(unix.SOCK_DGRAM, func(fd int) error { return unix.Connect(fd, loopback(9)) })
}

// signalled tells whether act made a program send SIGCONT to this thread, which holds it back while act runs.
func signalled(act func()) (bool, error) {
	var set, old unix.Sigset_t
	set.Val[0] = 1 << (unix.SIGCONT - 1)
	if err := unix.PthreadSigmask(unix.SIG_BLOCK, &set, &old); err != nil {
		return false, err
	}
	defer func() { _ = unix.PthreadSigmask(unix.SIG_SETMASK, &old, nil) }()
	fd, err := unix.Signalfd(-1, &set, unix.SFD_NONBLOCK|unix.SFD_CLOEXEC)
	if err != nil {
		return false, err
	}
	defer unix.Close(fd)
	act()
	var buf [128]byte
	n, err := unix.Read(fd, buf[:])
	switch {
	case errors.Is(err, unix.EAGAIN):
		return false, nil
	case err != nil:
		return false, err
	}
	return n > 0, nil
}

// killedChild runs the smallest program there is, which ends with 0, and expects it to be killed before it can.
func killedChild() error {
	code, ok := exitCode[runtime.GOARCH]
	if !ok {
		return fmt.Errorf("there is no program to try on %s", runtime.GOARCH)
	}
	pid, err := startImage(elf(code.machine, code.text), nil)
	if err != nil {
		return fmt.Errorf("start the program to be killed: %w", err)
	}
	var st unix.WaitStatus
	if _, err := unix.Wait4(pid, &st, 0, nil); err != nil {
		return err
	}
	if !st.Signaled() || st.Signal() != unix.SIGKILL {
		return fmt.Errorf("the program was not killed (it ended with status %#x)", uint32(st))
	}
	return nil
}

// exitCode is exit(0) in machine code.
var exitCode = map[string]struct {
	machine uint16
	text    []byte
}{
	"amd64": {62, []byte{0xb8, 60, 0, 0, 0, 0x31, 0xff, 0x0f, 0x05}},                               // mov eax, 60; xor edi, edi; syscall
	"arm64": {183, []byte{0xa8, 0x0b, 0x80, 0xd2, 0x00, 0x00, 0x80, 0xd2, 0x01, 0x00, 0x00, 0xd4}}, // mov x8, 93; mov x0, 0; svc 0
}

// elf makes a static executable of one segment (System V ABI, "Object Files").
func elf(machine uint16, text []byte) []byte {
	const base, head = 0x400000, 64 + 56
	b := []byte{0x7f, 'E', 'L', 'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	le := binary.LittleEndian
	b = le.AppendUint16(b, 2) // ET_EXEC
	b = le.AppendUint16(b, machine)
	b = le.AppendUint32(b, 1)
	b = le.AppendUint64(b, base+head) // entry
	b = le.AppendUint64(b, 64)        // program headers
	b = le.AppendUint64(b, 0)
	b = le.AppendUint32(b, 0)
	for _, x := range []uint16{64, 56, 1, 0, 0, 0} {
		b = le.AppendUint16(b, x)
	}
	b = le.AppendUint32(b, 1) // PT_LOAD
	b = le.AppendUint32(b, 5) // read, execute
	for _, x := range []uint64{0, base, base, uint64(head + len(text)), uint64(head + len(text)), 4096} {
		b = le.AppendUint64(b, x)
	}
	return append(b, text...)
}
