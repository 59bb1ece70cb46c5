package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The bounds of what peers hold at once. One more is told so. What is kept for admins lets them in when others flood the API.
const (
	maxConns         = 256
	maxConnsOfUser   = 64
	connsForAdmins   = 32
	maxStreams       = 64
	maxStreamsOfUser = 16
	streamsForAdmins = 8
)

// listener is the API's Unix socket: it bounds the connections, and knows who is at the other end of each.
type listener struct {
	*net.UnixListener
	path  string
	roles *roles
	conns *quota
}

// listen makes the socket. A socket that is left from an agent that died is replaced; one that answers is an error.
func listen(path string, r *roles, conns *quota) (*listener, error) {
	l := &listener{path: path, roles: r, conns: conns}
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
	if err := r.admit(path); err != nil {
		_ = ln.Close()
		return nil, err
	}
	return l, nil
}

// admit lets the groups reach the socket at path.
func (r *roles) admit(path string) error {
	mode, group := r.mode()
	if group >= 0 {
		if err := os.Chown(path, -1, group); err != nil {
			return fmt.Errorf("give socket to group %d: %w", group, err)
		}
	}
	if err := os.Chmod(path, mode); err != nil {
		return fmt.Errorf("set mode of socket: %w", err)
	}
	if len(r.groups) < 2 {
		return nil
	}
	if err := unix.Setxattr(path, "system.posix_acl_access", acl(slices.Collect(maps.Keys(r.groups))), 0); err != nil {
		return fmt.Errorf("let several groups use the socket: set ACL of %s: %w; give one group, or a --socket on a file system with ACLs", path, err)
	}
	return nil
}

// Accept returns the next connection within the bounds.
func (l *listener) Accept() (net.Conn, error) {
	for {
		c, err := l.AcceptUnix()
		if err != nil {
			return nil, err
		}
		p, err := peerOf(c)
		if err != nil { // it is gone
			_ = c.Close()
			continue
		}
		role := l.roles.of(p)
		if err := l.conns.take(p.UID, role); err != nil {
			refuse(c, err)
			continue
		}
		return &conn{UnixConn: c, listener: l, peer: p, role: role}, nil
	}
}

// refuse answers before anything was asked. It does not wait: an answer of this size fits into the socket.
func refuse(c net.Conn, err error) {
	body := errorBody(err)
	_ = c.SetDeadline(time.Now().Add(time.Second))
	_, _ = fmt.Fprintf(c, "HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	_ = c.Close()
}

// conn is one connection of the API.
type conn struct {
	*net.UnixConn
	listener *listener
	peer     *peer
	role     Role
	once     sync.Once
}

// Close closes the connection and makes room for another.
func (c *conn) Close() error {
	c.once.Do(func() { c.listener.conns.give(c.peer.UID) })
	return c.UnixConn.Close()
}

// peer is who is at the other end of a connection: what the kernel noted when it connected.
type peer struct {
	PID    int32
	UID    uint32
	GID    uint32
	Groups []uint32
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
