package enforce

import (
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// seeForks makes a fork fail, to see whether a task has its storage after that (bpf/proc.h, identities). Where that cannot be seen, it is taken to lose it.
func (e *Enforcer) seeForks() error {
	stays := make(chan bool)
	var see func()
	see = func() {
		runtime.LockOSThread()              // which ends with this: it may have lost more than its identity, and its root is another
		if unix.Gettid() == unix.Getpid() { // but this one would stay, and what it has is what the process is said to have
			defer runtime.UnlockOSThread()
			done := make(chan struct{})
			go func() { defer close(done); see() }()
			<-done
			return
		}
		stays <- stay() && e.k.Call("find_storage") == nil && forkFails() && e.k.Call("find_storage") == nil
	}
	go see()
	if !<-stays {
		return nil
	}
	return e.k.SetVariable("storage_stays", 1)
}

// stay keeps the calling thread on its CPU.
func stay() bool {
	var cpu uint32
	if _, _, err := unix.RawSyscall(unix.SYS_GETCPU, uintptr(unsafe.Pointer(&cpu)), 0, 0); err != 0 {
		return false
	}
	var set unix.CPUSet
	set.Set(int(cpu))
	return unix.SchedSetaffinity(0, &set) == nil
}

// clone3 makes a process that ends at once, and returns why it did not; 0 when it did.
func clone3(flags uint64) unix.Errno {
	args := [8]uint64{flags} // struct clone_args
	pid, _, err := unix.RawSyscall(unix.SYS_CLONE3, uintptr(unsafe.Pointer(&args)), unsafe.Sizeof(args), 0)
	if err == 0 && pid == 0 {
		unix.Exit(0)
	}
	return err
}

// mayAdmin tells whether the calling thread has CAP_SYS_ADMIN.
func mayAdmin() bool {
	var data [2]unix.CapUserData
	err := unix.Capget(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &data[0])
	return err == nil && data[0].Effective>>unix.CAP_SYS_ADMIN&1 == 1
}

// forkFails tells whether it made the making of a process fail, and its remains are gone: who has another root may make no user namespace, which copy_process finds
// before it comes to the storage. The kernel frees the remains behind a grace period of RCU, each CPU in order, and membarrier(2) waits for one that begins later.
func forkFails() bool {
	// Without that capability, or by a filter of system calls, it may be refused before the kernel comes so far. A filter does not see the flags: it would refuse the first of these too,
	// which the kernel does for its flags.
	if !mayAdmin() || clone3(unix.CLONE_NEWUSER|unix.CLONE_FS) != unix.EINVAL {
		return false
	}
	if unix.Unshare(unix.CLONE_FS) != nil || unix.Chroot("/proc") != nil {
		return false
	}
	if err := clone3(unix.CLONE_NEWUSER); err != unix.EPERM && err != unix.ENOSPC { // there may be none at all
		return false
	}
	for range 2 {
		if _, _, err := unix.Syscall(unix.SYS_MEMBARRIER, membarrierGlobal, 0, 0); err != 0 {
			return false
		}
	}
	return true
}
