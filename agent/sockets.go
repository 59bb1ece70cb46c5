package agent

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"strings"
	"unsafe"

	"github.com/pavise-project/pavise"
	"golang.org/x/sys/unix"
)

// This file asks the kernel for the sockets of a network namespace, and has it end connections: sock_diag(7), as ss(8) does.

// Of linux/sock_diag.h and linux/inet_diag.h.
const (
	sockDiagByFamily = 20
	sockDestroy      = 21
	diagMsgLen       = 72
	diagReqLen       = 56
	diagIDLen        = 48
)

// The states of TCP in which there is, or may soon be, another end: not LISTEN, CLOSE, TIME_WAIT and NEW_SYN_RECV. Of UDP,
// those of sockets that are connected, and that are not.
const (
	tcpStates = 1<<unix.BPF_TCP_ESTABLISHED | 1<<unix.BPF_TCP_SYN_SENT | 1<<unix.BPF_TCP_SYN_RECV | 1<<unix.BPF_TCP_FIN_WAIT1 | 1<<unix.BPF_TCP_FIN_WAIT2 |
		1<<unix.BPF_TCP_CLOSE_WAIT | 1<<unix.BPF_TCP_LAST_ACK | 1<<unix.BPF_TCP_CLOSING
	udpStates = 1<<unix.BPF_TCP_ESTABLISHED | 1<<unix.BPF_TCP_CLOSE
)

// diagKinds are the sockets that can be listed and ended.
var diagKinds = [...]struct {
	family, protocol uint8
	states           uint32
}{
	{unix.AF_INET, unix.IPPROTO_TCP, tcpStates}, {unix.AF_INET6, unix.IPPROTO_TCP, tcpStates},
	{unix.AF_INET, unix.IPPROTO_UDP, udpStates}, {unix.AF_INET6, unix.IPPROTO_UDP, udpStates},
}

// diagSocket is one connection, as the kernel lists it.
type diagSocket struct {
	family, protocol uint8
	inode            uint32
	local, remote    netip.AddrPort // never IPv4-mapped IPv6
	id               [diagIDLen]byte
}

func (s *diagSocket) String() string {
	if s.unconnected() {
		return "udp " + s.local.String()
	}
	return fmt.Sprintf("%s %s to %s", map[uint8]string{pavise.ProtocolTCP: "tcp", pavise.ProtocolUDP: "udp"}[s.protocol], s.local, s.remote)
}

// unconnected tells of a UDP socket that takes datagrams from anybody.
func (s *diagSocket) unconnected() bool {
	return s.protocol == pavise.ProtocolUDP && s.remote.Port() == 0
}

// netNSOf is the inode number of a process's network namespace.
func netNSOf(pid uint32) (uint32, error) {
	var st unix.Stat_t
	if err := unix.Stat(fmt.Sprintf("/proc/%d/ns/net", pid), &st); err != nil {
		return 0, err
	}
	return uint32(st.Ino), nil //nolint:gosec // they are of 32 bits
}

// socketsOf are the inode numbers of the sockets that a process has open. What ends meanwhile has none.
func socketsOf(pid uint32) ([]uint32, error) {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	var out []uint32
	for _, name := range names {
		to, err := os.Readlink(dir + "/" + name)
		if err != nil {
			continue // closed meanwhile
		}
		if n, ok := socketInode(to); ok {
			out = append(out, n)
		}
	}
	return out, nil
}

// diag is a socket of sock_diag in one network namespace.
type diag struct {
	fd  int
	seq uint32
	buf []byte
}

// openDiag opens one in the network namespace of a process, and returns which that is. A netlink socket stays where it was made, so that the thread is
// there for a moment only.
func openDiag(pid uint32) (*diag, uint32, error) {
	var d *diag
	var in uint32
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		here, e := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if e != nil {
			runtime.UnlockOSThread()
			err = fmt.Errorf("open the agent's network namespace: %w", e)
			return
		}
		defer unix.Close(here)
		d, in, err = openDiagThere(pid)
		if e := unix.Setns(here, unix.CLONE_NEWNET); e != nil {
			err = errors.Join(err, fmt.Errorf("go back to the agent's network namespace: %w", e))
			return // the thread ends with the goroutine: it is nobody's any more
		}
		runtime.UnlockOSThread()
	}()
	<-done
	if err != nil {
		if d != nil {
			d.close()
		}
		return nil, 0, err
	}
	return d, in, nil
}

func openDiagThere(pid uint32) (*diag, uint32, error) {
	there, err := unix.Open(fmt.Sprintf("/proc/%d/ns/net", pid), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, 0, fmt.Errorf("open the network namespace of process %d: %w", pid, err)
	}
	defer unix.Close(there)
	var st unix.Stat_t
	if err := unix.Fstat(there, &st); err != nil {
		return nil, 0, fmt.Errorf("look at the network namespace of process %d: %w", pid, err)
	}
	if err := unix.Setns(there, unix.CLONE_NEWNET); err != nil {
		return nil, 0, fmt.Errorf("enter the network namespace of process %d: %w", pid, err)
	}
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return nil, 0, fmt.Errorf("open a socket to list sockets: %w", err)
	}
	d := &diag{fd: fd, buf: make([]byte, 64<<10)}
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 5}); err != nil {
		d.close()
		return nil, 0, fmt.Errorf("bound the wait for an answer: %w", err)
	}
	return d, uint32(st.Ino), nil //nolint:gosec // they are of 32 bits
}

func (d *diag) close() { unix.Close(d.fd) }

// send sends a request about sockets.
func (d *diag) send(kind, flags uint16, family, protocol uint8, states uint32, id *[diagIDLen]byte) error {
	d.seq++
	ne := binary.NativeEndian
	b := make([]byte, 0, unix.NLMSG_HDRLEN+diagReqLen)
	b = ne.AppendUint32(b, unix.NLMSG_HDRLEN+diagReqLen)
	b = ne.AppendUint16(b, kind)
	b = ne.AppendUint16(b, unix.NLM_F_REQUEST|flags)
	b = ne.AppendUint32(b, d.seq)
	b = ne.AppendUint32(b, 0)
	b = append(b, family, protocol, 0, 0)
	b = ne.AppendUint32(b, states)
	b = append(b, id[:]...)
	return unix.Sendto(d.fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
}

// receive calls fn with each message of the answer, until one ends it.
func (d *diag) receive(fn func(b []byte)) error {
	for {
		n, _, err := unix.Recvfrom(d.fd, d.buf, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		end, err := readDiag(d.buf[:n], d.seq, fn)
		if end || err != nil {
			return err
		}
	}
}

var errDiagCut = errors.New("an answer of the kernel is cut off")

// readDiag reads the messages of one datagram, and reports whether the answer has ended.
func readDiag(b []byte, seq uint32, fn func(b []byte)) (end bool, err error) {
	ne := binary.NativeEndian
	for len(b) >= unix.NLMSG_HDRLEN {
		n := int(ne.Uint32(b))
		if n < unix.NLMSG_HDRLEN || n > len(b) {
			return true, errDiagCut
		}
		body := b[unix.NLMSG_HDRLEN:n]
		if ne.Uint32(b[8:]) == seq { // else it is of a request that was given up
			switch ne.Uint16(b[4:]) {
			case unix.NLMSG_DONE, unix.NLMSG_ERROR:
				if len(body) < 4 {
					return true, errDiagCut
				}
				if e := int32(ne.Uint32(body)); e < 0 { //nolint:gosec // an errno, negated
					return true, unix.Errno(-e)
				}
				return true, nil
			case sockDiagByFamily:
				fn(body)
			}
		}
		b = b[min((n+3)&^3, len(b)):]
	}
	return false, nil
}

// list calls fn with each connection of a kind.
func (d *diag) list(family, protocol uint8, states uint32, fn func(*diagSocket)) error {
	if err := d.send(sockDiagByFamily, unix.NLM_F_DUMP, family, protocol, states, new([diagIDLen]byte)); err != nil {
		return err
	}
	return d.receive(func(b []byte) {
		if s, ok := readSocket(b, protocol); ok {
			fn(&s)
		}
	})
}

// readSocket reads an inet_diag_msg.
func readSocket(b []byte, protocol uint8) (s diagSocket, ok bool) {
	if len(b) < diagMsgLen {
		return s, false
	}
	s.family, s.protocol = b[0], protocol
	copy(s.id[:], b[4:])
	end := func(port, at int) netip.AddrPort {
		a := netip.AddrFrom16([16]byte(s.id[at:]))
		if s.family == unix.AF_INET {
			a = netip.AddrFrom4([4]byte(s.id[at:]))
		}
		return netip.AddrPortFrom(a.Unmap(), binary.BigEndian.Uint16(s.id[port:]))
	}
	s.local, s.remote = end(0, 4), end(2, 20)
	s.inode = binary.NativeEndian.Uint32(b[68:])
	return s, true
}

// destroy ends a connection: who waits on it gets ECONNABORTED, and the other end of TCP a reset.
func (d *diag) destroy(s *diagSocket) error {
	if err := d.send(sockDestroy, unix.NLM_F_ACK, s.family, s.protocol, 0, &s.id); err != nil {
		return err
	}
	return d.receive(func([]byte) {})
}

var errSocketGone = errors.New("the socket is closed")

// silence has a socket of a process receive nothing any more, but from some. The process cannot undo it: nobody can.
func silence(pid, inode uint32, from []*exception) error {
	found := errSocketGone
	err := eachSocket(pid, func(n uint32) bool { return n == inode && found != nil }, func(fd int, _ uint32) error {
		found = nil
		return silenceFD(fd, from)
	})
	if errors.Is(err, errProcessGone) {
		return errSocketGone
	}
	return errors.Join(err, found)
}

var errProcessGone = errors.New("the process has ended")

// eachSocket calls fn with a descriptor of each socket of a process that is wanted, once for each of the process's, until it fails.
func eachSocket(pid uint32, want func(inode uint32) bool, fn func(fd int, inode uint32) error) error {
	pidfd, err := unix.PidfdOpen(int(pid), 0)
	if err != nil {
		return errProcessGone
	}
	defer unix.Close(pidfd)
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	names, err := os.ReadDir(dir)
	if err != nil {
		return errProcessGone
	}
	for _, n := range names {
		to, err := os.Readlink(dir + "/" + n.Name())
		if err != nil {
			continue // closed meanwhile
		}
		inode, ok := socketInode(to)
		if !ok || !want(inode) {
			continue
		}
		theirs, err := strconv.Atoi(n.Name())
		if err != nil {
			continue
		}
		if err := withSocket(pidfd, theirs, inode, fn); err != nil {
			return fmt.Errorf("descriptor %d of process %d: %w", theirs, pid, err)
		}
	}
	return nil
}

func withSocket(pidfd, theirs int, inode uint32, fn func(fd int, inode uint32) error) error {
	fd, err := unix.PidfdGetfd(pidfd, theirs, 0)
	if errors.Is(err, unix.EBADF) || errors.Is(err, unix.ESRCH) {
		return nil // closed meanwhile
	}
	if err != nil {
		return fmt.Errorf("take it: %w", err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || uint32(st.Ino) != inode { //nolint:gosec // of sockets they are of 32 bits
		return nil // another one by now
	}
	return fn(fd, inode)
}

// socketInode is the inode number of the socket that a link in /proc/PID/fd names.
func socketInode(link string) (uint32, bool) {
	s, ok := strings.CutPrefix(link, "socket:[")
	if !ok {
		return 0, false
	}
	n, err := strconv.ParseUint(strings.TrimSuffix(s, "]"), 10, 32)
	return uint32(n), err == nil
}

// kindOf is what a socket is.
func kindOf(fd int) (n pavise.NetInfo, err error) {
	var got [3]int
	for i, opt := range []int{unix.SO_DOMAIN, unix.SO_TYPE, unix.SO_PROTOCOL} {
		if got[i], err = unix.GetsockoptInt(fd, unix.SOL_SOCKET, opt); err != nil {
			return n, err
		}
	}
	n.Family, n.Type, n.Protocol = uint16(got[0]), uint8(got[1]), uint8(got[2]) //nolint:gosec // the kernel's, which are that small but for protocols of TCP
	return n, nil
}

// silenceFD attaches the filter, and locks it.
func silenceFD(fd int, from []*exception) error {
	filter := dropsAllBut(from)
	if len(filter) > maxFilter {
		return fmt.Errorf("%d exceptions are more than a filter can hold", len(from))
	}
	if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}); err != nil { //nolint:gosec // bounded above
		if isSilent(fd) {
			return errSocketGone
		}
		return fmt.Errorf("attach a filter to it: %w (the process, or an isolation before that had exceptions, has locked one)", err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_LOCK_FILTER, 1); err != nil {
		return fmt.Errorf("lock its filter: %w", err)
	}
	return nil
}

// isSilent tells whether a socket has a filter that drops all.
func isSilent(fd int) bool {
	var have [1]unix.SockFilter
	n := uint32(len(have)) // of instructions
	_, _, e := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_GET_FILTER, uintptr(unsafe.Pointer(&have)), uintptr(unsafe.Pointer(&n)), 0)
	return e == 0 && n == 1 && have[0] == dropsAllBut(nil)[0]
}

const maxFilter = 4096 // BPF_MAXINSNS

// dropsAllBut makes a filter for datagrams of UDP, which it gets from the UDP header on: it lets pass what comes from an exception.
func dropsAllBut(from []*exception) []unix.SockFilter {
	const network = 0xfff00000 // SKF_NET_OFF: from the IP header on
	var out []unix.SockFilter
	for _, x := range from {
		type test struct {
			load        uint16
			at          uint32
			mask, value uint32
		}
		a := x.from.Addr()
		version, first := uint32(0x40), uint32(12)
		if a.Is6() {
			version, first = 0x60, 8
		}
		tests := []test{{unix.BPF_B, network, 0xf0, version}}
		for i, b := 0, a.AsSlice(); i < len(b) && i*8 < x.from.Bits(); i += 4 {
			mask := ^uint32(0)
			if rest := x.from.Bits() - i*8; rest < 32 {
				mask <<= 32 - rest
			}
			tests = append(tests, test{unix.BPF_W, network + first + uint32(i), mask, binary.BigEndian.Uint32(b[i:]) & mask})
		}
		if x.port != 0 {
			tests = append(tests, test{unix.BPF_H, 0, 0xffff, uint32(x.port)})
		}
		for i, t := range tests {
			out = append(
				out,
				unix.SockFilter{Code: unix.BPF_LD | unix.BPF_ABS | t.load, K: t.at},
				unix.SockFilter{Code: unix.BPF_ALU | unix.BPF_AND | unix.BPF_K, K: t.mask},
				unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: t.value, Jf: uint8(3*(len(tests)-1-i) + 1)}, //nolint:gosec // of six tests at most
			)
		}
		out = append(out, unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: 0xffffffff})
	}
	return append(out, unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K})
}
