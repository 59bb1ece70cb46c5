package enforce

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

func sockaddr(s string) (int, unix.Sockaddr, error) {
	if strings.HasPrefix(s, "/") || strings.HasPrefix(s, "@") {
		return unix.AF_UNIX, &unix.SockaddrUnix{Name: s}, nil
	}
	ap, err := netip.ParseAddrPort(s)
	if err != nil {
		return 0, nil, err
	}
	if ap.Addr().Is4() {
		return unix.AF_INET, &unix.SockaddrInet4{Port: int(ap.Port()), Addr: ap.Addr().As4()}, nil
	}
	return unix.AF_INET6, &unix.SockaddrInet6{Port: int(ap.Port()), Addr: ap.Addr().As16()}, nil
}

// with opens a socket for an address.
func with(addr string, typ int, act func(fd int, sa unix.Sockaddr) error) error {
	family, sa, err := sockaddr(addr)
	if err != nil {
		return err
	}
	fd, err := unix.Socket(family, typ|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return act(fd, sa)
}

func do(addr string, typ int, act func(fd int, sa unix.Sockaddr) error) (string, error) {
	return "", with(addr, typ, act)
}

// onDevice is do for DEVICE ADDRESS, with a socket that is bound to the device; "" for none.
func onDevice(a []string, typ int, act func(fd int, sa unix.Sockaddr) error) (string, error) {
	return do(a[1], typ, func(fd int, sa unix.Sockaddr) error {
		if err := unix.BindToDevice(fd, a[0]); err != nil {
			return fmt.Errorf("bind to the device: %w", err)
		}
		return act(fd, sa)
	})
}

// disconnect is connect to AF_UNSPEC.
func disconnect(fd int) error {
	var sa unix.RawSockaddr
	if _, _, e := unix.Syscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&sa)), unsafe.Sizeof(sa)); e != 0 {
		return e
	}
	return nil
}

// kept are the actor's connections that stay open between deeds.
var kept = map[string]int{}

// connectRace connects to an address whose port another thread changes between that of HARMLESS and that of FORBIDDEN, for two seconds at most, until it is
// connected to the forbidden one. Both are of IPv4.
func connectRace(a []string) (string, error) {
	var raw [2]unix.RawSockaddrInet4
	for i := range raw {
		ap, err := netip.ParseAddrPort(a[i])
		if err != nil {
			return "", err
		}
		raw[i] = unix.RawSockaddrInet4{Family: unix.AF_INET, Port: ap.Port()>>8 | ap.Port()<<8, Addr: ap.Addr().As4()}
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	buf := raw[0]
	var stop atomic.Bool
	var swapper sync.WaitGroup
	swapper.Go(func() {
		runtime.LockOSThread()
		for i := 0; !stop.Load(); i++ {
			buf.Port = raw[i&1].Port // a data race, and meant to be one
		}
	})
	defer swapper.Wait()
	defer stop.Store(true)
	passed, refused := 0, 0
	for end := time.Now().Add(2 * time.Second); time.Now().Before(end); {
		switch _, _, e := unix.Syscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&buf)), unsafe.Sizeof(buf)); e {
		case 0:
			passed++
		case unix.EPERM:
			refused++
			continue
		default:
			return "", e
		}
		peer, err := unix.Getpeername(fd)
		if err != nil {
			return "", err
		}
		if p := uint16(peer.(*unix.SockaddrInet4).Port); p == raw[1].Port>>8|raw[1].Port<<8 {
			return "reached", nil
		}
	}
	if passed == 0 || refused == 0 {
		return "", fmt.Errorf("there was no race: %d passed, %d refused", passed, refused)
	}
	return "", unix.EPERM
}

// pollIn waits for milliseconds until there is something to read, or to accept. A signal of the runtime's does not end it.
func pollIn(fd, ms int) (n int, err error) {
	for {
		n, err = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, ms)
		if !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}

var netDeeds = map[string]func(a []string) (string, error){
	"connect":      func(a []string) (string, error) { return do(a[0], unix.SOCK_STREAM, unix.Connect) },
	"connect-race": connectRace,
	"connect-mptcp": func(a []string) (string, error) {
		family, sa, err := sockaddr(a[0])
		if err != nil {
			return "", err
		}
		fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_MPTCP)
		if err != nil {
			return "", err
		}
		defer unix.Close(fd)
		return "", unix.Connect(fd, sa)
	},
	"send-raw": func(a []string) (string, error) { // an echo request by a raw socket
		_, sa, err := sockaddr(a[0])
		if err != nil {
			return "", err
		}
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMP)
		if err != nil {
			return "", err
		}
		defer unix.Close(fd)
		return "", unix.Sendto(fd, []byte{8, 0, 0xf7, 0xff, 0, 0, 0, 0}, 0, sa)
	},
	"bind-in": func(a []string) (string, error) { // DIR NAME
		if err := unix.Chdir(a[0]); err != nil {
			return "", err
		}
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return "", err
		}
		defer unix.Close(fd)
		return "", unix.Bind(fd, &unix.SockaddrUnix{Name: a[1]})
	},
	"connect-udp": func(a []string) (string, error) {
		return do(a[0], unix.SOCK_DGRAM, unix.Connect)
	},
	"connect-again": func(a []string) (string, error) { // FIRST THEN, by way of AF_UNSPEC
		return do(a[0], unix.SOCK_DGRAM, func(fd int, first unix.Sockaddr) error {
			if err := unix.Connect(fd, first); err != nil {
				return fmt.Errorf("the first connect: %w", err)
			}
			if err := disconnect(fd); err != nil {
				return fmt.Errorf("disconnect: %w", err)
			}
			_, then, err := sockaddr(a[1])
			if err != nil {
				return err
			}
			return unix.Connect(fd, then)
		})
	},
	"fastopen": func(a []string) (string, error) {
		return do(a[0], unix.SOCK_STREAM, func(fd int, sa unix.Sockaddr) error {
			return unix.Sendto(fd, []byte("x"), unix.MSG_FASTOPEN|unix.MSG_NOSIGNAL, sa)
		})
	},
	"connect-elsewhere": func(a []string) (string, error) { // in a network namespace of its own
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return "", err
		}
		if err := loopbackUp(); err != nil {
			return "", fmt.Errorf("lo: %w", err)
		}
		return do(a[0], unix.SOCK_STREAM, func(fd int, sa unix.Sockaddr) error {
			return with(a[0], unix.SOCK_STREAM, func(c int, _ unix.Sockaddr) error {
				if err := unix.Bind(fd, sa); err != nil {
					return fmt.Errorf("bind: %w", err)
				}
				if err := unix.Listen(fd, 1); err != nil {
					return fmt.Errorf("listen: %w", err)
				}
				return unix.Connect(c, sa)
			})
		})
	},
	"connect-uring": func(a []string) (string, error) {
		ap, err := netip.ParseAddrPort(a[0])
		if err != nil {
			return "", err
		}
		sa := unix.RawSockaddrInet4{Family: unix.AF_INET, Port: ap.Port()<<8 | ap.Port()>>8, Addr: ap.Addr().As4()}
		return do(a[0], unix.SOCK_STREAM, func(fd int, _ unix.Sockaddr) error {
			_, err := uring(uringSQE{op: uringConnect, flags: iosqeAsync, fd: int32(fd), addr: uint64(uintptr(unsafe.Pointer(&sa))), off: uint64(unsafe.Sizeof(sa))})
			runtime.KeepAlive(&sa)
			return err
		})
	},
	"keep": func(a []string) (string, error) { // opens a connection and keeps it
		family, sa, err := sockaddr(a[0])
		if err != nil {
			return "", err
		}
		fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return "", err
		}
		kept[a[0]] = fd
		return "", unix.Connect(fd, sa)
	},
	"echo": func(a []string) (string, error) { // over a kept connection
		if _, err := unix.Write(kept[a[0]], []byte(a[1])); err != nil {
			return "", err
		}
		var b [64]byte
		n, err := unix.Read(kept[a[0]], b[:])
		return string(b[:max(n, 0)]), err
	},
	"bind-tcp": func(a []string) (string, error) { return do(a[0], unix.SOCK_STREAM, unix.Bind) },
	"bind-udp": func(a []string) (string, error) {
		return do(a[0], unix.SOCK_DGRAM, unix.Bind)
	},
	"listen": func(a []string) (string, error) {
		return do(a[0], unix.SOCK_STREAM, func(fd int, sa unix.Sockaddr) error {
			_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
			if err := unix.Bind(fd, sa); err != nil {
				return fmt.Errorf("bind: %w", err)
			}
			return unix.Listen(fd, 1)
		})
	},
	"serve": func(a []string) (string, error) { // listens until unserve, and says where
		family, sa, err := sockaddr(a[0])
		if err != nil {
			return "", err
		}
		protocol := 0
		if slices.Contains(a, "mptcp") {
			protocol = unix.IPPROTO_MPTCP
		}
		fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, protocol)
		if err != nil {
			return "", err
		}
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
		if slices.Contains(a, "shared") {
			err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
		}
		if !slices.Contains(a, "unbound") {
			err = errors.Join(err, unix.Bind(fd, sa))
		}
		if err = errors.Join(err, unix.Listen(fd, 64)); err != nil {
			return "", errors.Join(err, unix.Close(fd))
		}
		at, err := unix.Getsockname(fd)
		if err != nil {
			return "", err
		}
		where := ""
		switch at := at.(type) {
		case *unix.SockaddrInet4:
			where = netip.AddrPortFrom(netip.AddrFrom4(at.Addr), uint16(at.Port)).String()
		case *unix.SockaddrInet6:
			where = netip.AddrPortFrom(netip.AddrFrom16(at.Addr), uint16(at.Port)).String()
		}
		kept[where] = fd
		return where, nil
	},
	"waits": func(a []string) (string, error) { // whether a connection waits at a kept socket
		n, err := pollIn(kept[a[0]], 0)
		return fmt.Sprint(n), err
	},
	"take-now": func(a []string) (string, error) { // accepts at a kept socket
		fd, _, err := unix.Accept4(kept[a[0]], unix.SOCK_CLOEXEC)
		if err == nil {
			unix.Close(fd)
		}
		return "", err
	},
	"serve-by": func(a []string) (string, error) { // WHERE PROGRAM [NEXT]: has a child accept at a kept socket, as that program or, when it is there, the next
		_, err := syscall.ForkExec(a[1], []string{a[1]}, &syscall.ProcAttr{Env: append(os.Environ(), acceptEnv+"="+strings.Join(a[2:], "")), Files: []uintptr{0, 1, 2, uintptr(kept[a[0]])}})
		return "", err
	},
	"move": func(a []string) (string, error) { // gives a kept socket another descriptor
		fd, err := unix.FcntlInt(uintptr(kept[a[0]]), unix.F_DUPFD_CLOEXEC, 700)
		if err != nil {
			return "", err
		}
		err = unix.Close(kept[a[0]])
		kept[a[0]] = fd
		return "", err
	},
	"take": func(a []string) (string, error) { // accepts a connection where it listens
		if _, err := pollIn(kept[a[0]], 10_000); err != nil {
			return "", err
		}
		if err := unix.SetNonblock(kept[a[0]], true); err != nil {
			return "", err
		}
		fd, _, err := unix.Accept4(kept[a[0]], unix.SOCK_CLOEXEC)
		if err != nil {
			return "", err
		}
		return "", unix.Close(fd)
	},
	"keep-from": func(a []string) (string, error) { // LOCAL TO
		family, to, err := sockaddr(a[1])
		if err != nil {
			return "", err
		}
		_, from, err := sockaddr(a[0])
		if err != nil {
			return "", err
		}
		fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return "", err
		}
		kept[a[1]] = fd
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
		return "", errors.Join(unix.Bind(fd, from), unix.Connect(fd, to))
	},
	"connect-on": func(a []string) (string, error) { // DEVICE TO
		return onDevice(a, unix.SOCK_STREAM, unix.Connect)
	},
	"bind-on": func(a []string) (string, error) { return onDevice(a, unix.SOCK_STREAM, unix.Bind) },
	"listen-on": func(a []string) (string, error) {
		return onDevice(a, unix.SOCK_STREAM, func(fd int, sa unix.Sockaddr) error {
			return errors.Join(unix.Bind(fd, sa), unix.Listen(fd, 1))
		})
	},
	"send-on": func(a []string) (string, error) {
		return onDevice(a, unix.SOCK_DGRAM, func(fd int, sa unix.Sockaddr) error { return unix.Sendto(fd, []byte("x"), 0, sa) })
	},
	"send-by": func(a []string) (string, error) { // DEVICE OTHER AT: a datagram to oneself, by IP_PKTINFO over the other device
		arrived := ""
		_, err := do(a[2], unix.SOCK_DGRAM, func(to int, sa unix.Sockaddr) error {
			if err := unix.Bind(to, sa); err != nil {
				return err
			}
			sa, err := unix.Getsockname(to)
			if err != nil {
				return err
			}
			_, err = onDevice([]string{a[0], a[2]}, unix.SOCK_DGRAM, func(fd int, _ unix.Sockaddr) error {
				var oob []byte
				if a[1] != "" {
					dev, err := net.InterfaceByName(a[1])
					if err != nil {
						return err
					}
					oob = unix.PktInfo4(&unix.Inet4Pktinfo{Ifindex: int32(dev.Index)})
				}
				if err := unix.Sendmsg(fd, []byte("x"), oob, sa, 0); err != nil {
					return err
				}
				if n, _, err := unix.Recvfrom(to, make([]byte, 1), unix.MSG_DONTWAIT); err != nil || n != 1 {
					return fmt.Errorf("nothing arrived: %w", err)
				}
				arrived = "arrived"
				return nil
			})
			return err
		})
		return arrived, err
	},
	"unserve": func(a []string) (string, error) { return "", unix.Close(kept[a[0]]) },
	"connect-from": func(a []string) (string, error) {
		return do(a[1], unix.SOCK_STREAM, func(fd int, sa unix.Sockaddr) error {
			_, from, err := sockaddr(a[0])
			if err == nil {
				err = unix.Bind(fd, from)
			}
			if err != nil {
				return err
			}
			return unix.Connect(fd, sa)
		})
	},
	"accept": func(a []string) (string, error) { // a connection of its own
		return do(a[0], unix.SOCK_STREAM, func(fd int, sa unix.Sockaddr) error {
			// With another descriptor the SYN is not judged by who has the socket: it is what accept(2) does that is tried.
			two, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
			if err != nil {
				return err
			}
			defer unix.Close(two)
			return with(a[0], unix.SOCK_STREAM, func(c int, _ unix.Sockaddr) error {
				_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
				if err := unix.Bind(fd, sa); err != nil {
					return fmt.Errorf("bind: %w", err)
				}
				if err := unix.Listen(fd, 1); err != nil {
					return fmt.Errorf("listen: %w", err)
				}
				if err := unix.Connect(c, sa); err != nil {
					return fmt.Errorf("connect: %w", err)
				}
				n, _, err := unix.Accept4(fd, unix.SOCK_CLOEXEC)
				if err == nil {
					unix.Close(n)
				}
				return err
			})
		})
	},
	"send": func(a []string) (string, error) { // a datagram, without connect
		return do(a[0], unix.SOCK_DGRAM, func(fd int, sa unix.Sockaddr) error { return unix.Sendto(fd, []byte(a[1]), 0, sa) })
	},
	"send-many": func(a []string) (string, error) { // by sendmmsg
		ap, err := netip.ParseAddrPort(a[0])
		if err != nil {
			return "", err
		}
		sa := unix.RawSockaddrInet4{Family: unix.AF_INET, Port: ap.Port()<<8 | ap.Port()>>8, Addr: ap.Addr().As4()}
		b := []byte(a[1])
		iov := unix.Iovec{Base: &b[0], Len: uint64(len(b))}
		m := struct {
			h unix.Msghdr
			n uint32
			_ uint32
		}{h: unix.Msghdr{Name: (*byte)(unsafe.Pointer(&sa)), Namelen: uint32(unsafe.Sizeof(sa)), Iov: &iov, Iovlen: 1}}
		return do(a[0], unix.SOCK_DGRAM, func(fd int, _ unix.Sockaddr) error {
			if _, _, e := unix.Syscall6(unix.SYS_SENDMMSG, uintptr(fd), uintptr(unsafe.Pointer(&m)), 1, 0, 0, 0); e != 0 {
				return e
			}
			return nil
		})
	},
}

// acceptEnv makes this program one that accepts at descriptor 3, and greets; or, with the name of a program, only has it until there is that, and becomes it.
const acceptEnv = "PAVISE_TEST_ACCEPT"

// acceptForever ends with the process that started it.
func acceptForever() {
	for parent := unix.Getppid(); unix.Getppid() == parent; {
		if program := os.Getenv(acceptEnv); program != "" {
			time.Sleep(20 * time.Millisecond)
			_ = unix.Exec(program, []string{program}, []string{acceptEnv + "="})
			continue
		}
		if n, _ := unix.Poll([]unix.PollFd{{Fd: 3, Events: unix.POLLIN}}, 20); n < 1 {
			continue
		}
		fd, _, err := unix.Accept4(3, unix.SOCK_CLOEXEC)
		if err != nil {
			return
		}
		_, _ = unix.Write(fd, []byte("hello"))
		unix.Close(fd)
	}
}

// loopbackUp brings lo up in the thread's network namespace.
func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	r, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	r.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, r)
}
