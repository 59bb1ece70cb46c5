package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// maxConns bounds the API's connections; one more is told so and closed.
const maxConns = 256

// listener is the API's Unix socket: it bounds the connections, and knows who is at the other end of each.
type listener struct {
	*net.UnixListener
	path  string
	group int64 // -1: none
	open  atomic.Int64
}

// listen makes the socket. A socket that is left from an agent that died is replaced; one that answers is an error.
func listen(path, group string) (*listener, error) {
	l := &listener{path: path, group: -1}
	mode := os.FileMode(0o600)
	if group != "" {
		gid, err := groupID(group)
		if err != nil {
			return nil, err
		}
		l.group, mode = int64(gid), 0o660
	}
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("make socket directory: %w", err)
	}
	if st, err := os.Lstat(path); err == nil {
		if st.Mode().Type() != os.ModeSocket {
			return nil, fmt.Errorf("listen on %s: it exists and is not a socket", path)
		}
		c, err := net.DialTimeout("unix", path, 2*time.Second)
		if err == nil {
			_ = c.Close()
			return nil, fmt.Errorf("listen on %s: %w: an agent answers there; stop it, or give another --socket", path, ErrSocketInUse)
		}
		if !errors.Is(err, unix.ECONNREFUSED) {
			return nil, fmt.Errorf("listen on %s: %w: %w", path, ErrSocketInUse, err)
		}
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("remove stale socket: %w", err)
		}
	}
	// The socket is born 0600, by the mode of the descriptor that bind copies, so that there is no moment in which others may connect.
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var serr error
		if err := c.Control(func(fd uintptr) { serr = unix.Fchmod(int(fd), 0o600) }); err != nil {
			return err
		}
		return serr
	}}
	ln, err := lc.Listen(context.Background(), "unix", path)
	if err != nil {
		if errors.Is(err, unix.EADDRINUSE) {
			return nil, fmt.Errorf("listen on %s: %w", path, ErrSocketInUse)
		}
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	l.UnixListener = ln.(*net.UnixListener)
	if l.group >= 0 {
		if err := os.Chown(path, -1, int(l.group)); err != nil {
			_ = ln.Close()
			return nil, fmt.Errorf("give socket to group %s: %w", group, err)
		}
	}
	if err := os.Chmod(path, mode); err != nil {
		_ = ln.Close()
		return nil, fmt.Errorf("set mode of socket: %w", err)
	}
	return l, nil
}

func groupID(name string) (uint32, error) {
	g, err := user.LookupGroup(name)
	if err != nil {
		if id, nerr := strconv.ParseUint(name, 10, 32); nerr == nil {
			return uint32(id), nil
		}
		return 0, fmt.Errorf("look up group: %w", err)
	}
	id, err := strconv.ParseUint(g.Gid, 10, 32)
	if err != nil {
		return 0, fmt.Errorf("look up group %s: %w", name, err)
	}
	return uint32(id), nil
}

const tooManyConns = `{"error":{"message":"too many connections: 256 are the limit"}}` + "\n"

// Accept returns the next connection within the bound.
func (l *listener) Accept() (net.Conn, error) {
	for {
		c, err := l.AcceptUnix()
		if err != nil {
			return nil, err
		}
		if l.open.Add(1) <= maxConns {
			return &conn{UnixConn: c, listener: l}, nil
		}
		l.open.Add(-1)
		_ = c.SetDeadline(time.Now().Add(time.Second))
		_, _ = fmt.Fprintf(c, "HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s",
			len(tooManyConns), tooManyConns)
		_ = c.Close()
	}
}

// conn is one connection of the API.
type conn struct {
	*net.UnixConn
	listener *listener
	once     sync.Once
}

// Close closes the connection and makes room for another.
func (c *conn) Close() error {
	c.once.Do(func() { c.listener.open.Add(-1) })
	return c.UnixConn.Close()
}

// peer is who is at the other end of a connection: what the kernel noted when it connected.
type peer struct {
	PID    int32
	UID    uint32
	GID    uint32
	Groups []uint32
}

// mayUse reports whether p may use the API of an agent that runs as self and serves group (-1: none).
func (p *peer) mayUse(self uint32, group int64) bool {
	if p.UID == 0 || p.UID == self {
		return true
	}
	return group >= 0 && (int64(p.GID) == group || slices.Contains(p.Groups, uint32(group)))
}

// peerOf asks the kernel. Groups come from SO_PEERGROUPS (Linux 4.13), not from /proc, where the pid may have been reused.
func peerOf(c *net.UnixConn) (*peer, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	var p peer
	var serr error
	err = raw.Control(func(fd uintptr) {
		cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
		if err != nil {
			serr = fmt.Errorf("read peer credentials: %w", err)
			return
		}
		p.PID, p.UID, p.GID = cred.Pid, cred.Uid, cred.Gid
		p.Groups, serr = peerGroups(fd)
	})
	if err == nil {
		err = serr
	}
	if err != nil {
		return nil, err
	}
	return &p, nil
}

func peerGroups(fd uintptr) ([]uint32, error) {
	groups := make([]uint32, 64)
	for {
		size := uint32(4 * len(groups))
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, fd, unix.SOL_SOCKET, unix.SO_PEERGROUPS,
			uintptr(unsafe.Pointer(&groups[0])), uintptr(unsafe.Pointer(&size)), 0)
		switch errno {
		case 0:
			return groups[:size/4], nil
		case unix.ERANGE:
			groups = make([]uint32, size/4)
		case unix.ENODATA, unix.ENOPROTOOPT:
			return nil, nil
		default:
			return nil, fmt.Errorf("read peer groups: %w", errno)
		}
	}
}
