package enforce

import (
	"runtime"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// io_uring in as few lines as one request takes: include/uapi/linux/io_uring.h.

const (
	uringNop       = 0
	uringConnect   = 16
	uringOpenat    = 18
	uringRenameat  = 35
	uringUnlinkat  = 36
	uringMkdirat   = 37
	uringSymlinkat = 38
	uringLinkat    = 39
	uringFsetxattr = 41
	uringSocket    = 45
	uringCmd       = 46

	iosqeAsync      = 1 << 4
	uringSQPoll     = 1 << 1 // a flag of the ring
	uringRegPersona = 9      // IORING_REGISTER_PERSONALITY
	uringSQWakeup   = 1 << 1 // a flag of enter
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
	_         uint16
	persona   uint16 // the credentials to use
	_         [20]byte
}

// uring has the kernel do one request and returns its result.
func uring(sqe uringSQE) (int, error) { return uringRing(0, sqe, nil) }

// uringRing is uring with a ring of certain flags; prepare, if given, has the ring before the request.
func uringRing(flags uint32, sqe uringSQE, prepare func(ring int, sqe *uringSQE) error) (int, error) {
	p := uringParams{flags: flags}
	fd, _, e := unix.Syscall(unix.SYS_IO_URING_SETUP, 1, uintptr(unsafe.Pointer(&p)), 0)
	if e != 0 {
		return 0, e
	}
	defer unix.Close(int(fd))
	if prepare != nil {
		if err := prepare(int(fd), &sqe); err != nil {
			return 0, err
		}
	}
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
	atomic.StoreUint32((*uint32)(unsafe.Pointer(&sq[p.sq.tail])), 1)
	enter := uintptr(1) // IORING_ENTER_GETEVENTS
	if flags&uringSQPoll != 0 {
		enter |= uringSQWakeup
	}
	// A signal, such as Go's own, ends the wait.
	for submit := uintptr(1); atomic.LoadUint32((*uint32)(unsafe.Pointer(&cq[p.cq.tail]))) == 0; submit = 0 {
		if _, _, e := unix.Syscall6(unix.SYS_IO_URING_ENTER, fd, submit, 1, enter, 0, 0); e != 0 && e != unix.EINTR {
			return 0, e
		}
	}
	res := *(*int32)(unsafe.Pointer(&cq[p.cq.x2+8]))
	if res < 0 {
		return 0, unix.Errno(-res)
	}
	return int(res), nil
}

// uringNames is uring for a request with one or two names.
func uringNames(sqe uringSQE, names ...string) (int, error) {
	var pin runtime.Pinner
	defer pin.Unpin()
	for i, to := range []*uint64{&sqe.addr, &sqe.off} {
		if i == len(names) {
			break
		}
		p, err := unix.BytePtrFromString(names[i])
		if err != nil {
			return 0, err
		}
		pin.Pin(p)
		*to = uint64(uintptr(unsafe.Pointer(p)))
	}
	return uring(sqe)
}

func uringOpen(path string, flags uint8) (int, error) {
	return uringNames(uringSQE{op: uringOpenat, flags: flags, fd: unix.AT_FDCWD, how: readOnly}, path)
}
