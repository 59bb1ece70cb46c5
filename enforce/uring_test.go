package enforce

import (
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// io_uring in as few lines as one request takes: include/uapi/linux/io_uring.h.

const (
	uringOpenat  = 18
	uringConnect = 16
	iosqeAsync   = 1 << 4
)

type uringOffsets struct {
	head, tail, mask, entries, x1, x2, x3, x4 uint32
	addr                                      uint64
}

type uringParams struct {
	sqEntries, cqEntries, flags, cpu, idle, features, wq uint32
	_                                                    [3]uint32
	sq, cq                                               uringOffsets
}

type uringSQE struct {
	op, flags uint8
	prio      uint16
	fd        int32
	off, addr uint64
	len, how  uint32
	user      uint64
	_         [3]uint64
}

// uring has the kernel do one request and returns its result.
func uring(sqe uringSQE) (int, error) {
	var p uringParams
	fd, _, e := unix.Syscall(unix.SYS_IO_URING_SETUP, 1, uintptr(unsafe.Pointer(&p)), 0)
	if e != 0 {
		return 0, e
	}
	defer unix.Close(int(fd))
	ring := func(off int64, size uint32) ([]byte, error) {
		return unix.Mmap(int(fd), off, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
	}
	sq, err := ring(0, p.sq.x3+4*p.sqEntries)
	if err != nil {
		return 0, err
	}
	defer func() { _ = unix.Munmap(sq) }()
	cq, err := ring(0x8000000, p.cq.x2+16*p.cqEntries)
	if err != nil {
		return 0, err
	}
	defer func() { _ = unix.Munmap(cq) }()
	sqes, err := ring(0x10000000, 64*p.sqEntries)
	if err != nil {
		return 0, err
	}
	defer func() { _ = unix.Munmap(sqes) }()
	*(*uringSQE)(unsafe.Pointer(&sqes[0])) = sqe
	*(*uint32)(unsafe.Pointer(&sq[p.sq.x3])) = 0 // array[0] is the first entry
	*(*uint32)(unsafe.Pointer(&sq[p.sq.tail])) = 1
	if _, _, e := unix.Syscall6(unix.SYS_IO_URING_ENTER, fd, 1, 1, 1 /* IORING_ENTER_GETEVENTS */, 0, 0); e != 0 {
		return 0, e
	}
	res := *(*int32)(unsafe.Pointer(&cq[p.cq.x2+8]))
	if res < 0 {
		return 0, unix.Errno(-res)
	}
	return int(res), nil
}

func uringOpen(path string, flags uint8) (int, error) {
	p, err := unix.BytePtrFromString(path)
	if err != nil {
		return 0, err
	}
	fd, err := uring(uringSQE{op: uringOpenat, flags: flags, fd: unix.AT_FDCWD, addr: uint64(uintptr(unsafe.Pointer(p))), how: readOnly})
	runtime.KeepAlive(p)
	return fd, err
}
