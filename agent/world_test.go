package agent

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A world is a network of its own with a DNS server on 127.0.0.53, in which programs run: this test binary, in a network and a mount namespace of its own.

const worldEnv = "PAVISE_TEST_WORLD"

// worldNames are what the world's DNS server knows.
var worldNames = map[string]netip.Addr{
	"db.internal.":    netip.MustParseAddr("127.0.0.9"),
	"other.internal.": netip.MustParseAddr("127.0.0.8"),
}

type world struct {
	in  *json.Encoder
	out *bufio.Scanner
	pid int
}

// guest is the directory of a world that is only a program in another one.
const guest = "guest"

// deed is what the world is to do: run a program, or one of its own acts.
type deed struct {
	Run []string `json:"run,omitempty"`
	Act string   `json:"act,omitempty"` // connect, udp, raw, hold, held
	To  string   `json:"to,omitempty"`
	Via string   `json:"via,omitempty"` // of give: the socket
}

func newWorld(t *testing.T) *world {
	t.Helper()
	return newWorldAs(t, &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL})
}

// newWorldAs is newWorld of a process that is started so too. Pdeathsig is of the thread that starts it, which may end with an agent that is begun later.
func newWorldAs(t *testing.T, attr *syscall.SysProcAttr) *world {
	t.Helper()
	attr.Cloneflags = unix.CLONE_NEWNET | unix.CLONE_NEWNS
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "resolv.conf"), []byte("nameserver 127.0.0.53\noptions timeout:1 attempts:2\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "nsswitch.conf"), []byte("hosts: dns\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	return startWorld(t, filepath.Join(dir, "world"), dir, attr, func(start func()) { start() })
}

// guest starts a program with the name in the world's network, which does deeds too.
func (w *world) guest(t *testing.T, name string) *world {
	t.Helper()
	return startWorld(t, filepath.Join(t.TempDir(), name), guest, nil, func(start func()) {
		runtime.LockOSThread()
		here, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		must(t, err)
		defer unix.Close(here)
		there, err := unix.Open(fmt.Sprintf("/proc/%d/ns/net", w.pid), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		must(t, err)
		defer unix.Close(there)
		must(t, unix.Setns(there, unix.CLONE_NEWNET))
		start()
		must(t, unix.Setns(here, unix.CLONE_NEWNET))
		runtime.UnlockOSThread()
	})
}

// startWorld starts a copy of this program: rules can be about that alone.
func startWorld(t *testing.T, exe, dir string, attr *syscall.SysProcAttr, in func(start func())) *world {
	t.Helper()
	b, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(exe, b, 0o755); err != nil {
		t.Fatal(err)
	}
	c := exec.Command(exe)
	c.Env = append(os.Environ(), worldEnv+"="+dir)
	c.Stderr = os.Stderr
	c.SysProcAttr = attr
	stdin, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	in(func() { err = c.Start() })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		stdin.Close()
		_ = c.Wait()
	})
	w := &world{json.NewEncoder(stdin), bufio.NewScanner(out), c.Process.Pid}
	w.out.Buffer(nil, 1<<20)
	if got := w.read(t); got != "ready" {
		t.Fatal(got)
	}
	return w
}

func (w *world) read(t *testing.T) string {
	t.Helper()
	if !w.out.Scan() {
		t.Fatal("the world has ended: ", w.out.Err())
	}
	var s string
	if err := json.Unmarshal(w.out.Bytes(), &s); err != nil {
		t.Fatalf("%s: %v", w.out.Bytes(), err)
	}
	return s
}

// do does something in the world, and returns "" or how it failed.
func (w *world) do(t *testing.T, d deed) string {
	t.Helper()
	if err := w.in.Encode(d); err != nil {
		t.Fatal(err)
	}
	return w.read(t)
}

// worldMain is the world's side.
func worldMain(dir string) {
	out := json.NewEncoder(os.Stdout)
	if dir != guest {
		if err := worldSetUp(dir); err != nil {
			_ = out.Encode(err.Error())
			os.Exit(1)
		}
	}
	_ = out.Encode("ready")
	held := map[string]net.Conn{}
	in := json.NewDecoder(os.Stdin)
	for {
		var d deed
		if err := in.Decode(&d); err != nil {
			os.Exit(0)
		}
		err := worldDo(&d, held)
		if err == nil {
			_ = out.Encode("")
		} else {
			_ = out.Encode(err.Error())
		}
	}
}

func worldSetUp(dir string) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	for _, f := range []string{"resolv.conf", "nsswitch.conf"} {
		if _, err := os.Stat("/etc/" + f); err != nil {
			continue
		}
		if err := unix.Mount(filepath.Join(dir, f), "/etc/"+f, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount %s: %w", f, err)
		}
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	lo.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo); err != nil {
		return fmt.Errorf("bring lo up: %w", err)
	}
	dns, err := net.ListenPacket("udp4", "127.0.0.53:53")
	if err != nil {
		return err
	}
	go serveDNS(dns)
	for _, ip := range []string{"127.0.0.8", "127.0.0.9"} {
		for _, port := range []string{"5432", "80"} {
			l, err := net.Listen("tcp4", ip+":"+port)
			if err != nil {
				return err
			}
			go echo(l)
			u, err := net.ListenPacket("udp4", ip+":"+port)
			if err != nil {
				return err
			}
			go echoPackets(u)
		}
	}
	l, err := net.Listen("tcp4", "127.0.0.9:443")
	if err != nil {
		return err
	}
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write(bytes.Repeat([]byte("x"), 20000))
	}))
	s.Listener = l
	s.EnableHTTP2 = true
	s.TLS = &tls.Config{MinVersion: tls.VersionTLS12}
	s.StartTLS()
	return nil
}

func echo(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			_, _ = io.Copy(c, c)
		}()
	}
}

func echoPackets(u net.PacketConn) {
	var b [1500]byte
	for {
		n, from, err := u.ReadFrom(b[:])
		if err != nil {
			return
		}
		_, _ = u.WriteTo(b[:n], from)
	}
}

// serveDNS answers questions for A; www.NAME is an alias of NAME.
func serveDNS(u net.PacketConn) {
	var b [1500]byte
	for {
		n, from, err := u.ReadFrom(b[:])
		if err != nil {
			return
		}
		if n < 17 {
			continue
		}
		q := b[12:n]
		end := bytes.IndexByte(q, 0)
		if end < 0 || len(q) < end+5 {
			continue
		}
		var name strings.Builder
		for at := 0; q[at] != 0; at += int(q[at]) + 1 {
			name.Write(q[at+1 : at+1+int(q[at])])
			name.WriteByte('.')
		}
		kind := binary.BigEndian.Uint16(q[end+1:])
		question := q[:end+5]
		alias := strings.HasPrefix(name.String(), "www.")
		a, known := worldNames[strings.TrimPrefix(strings.ToLower(name.String()), "www.")]
		var answers []byte
		count := 0
		owner := []byte{0xc0, 12}
		if known && alias {
			answers = append(answers, owner...)
			answers = append(answers, 0, 5, 0, 1, 0, 0, 0, 60, 0, 2, 0xc0, 12+4) // what follows www.
			owner = []byte{0xc0, 12 + 4}
			count++
		}
		if known && kind == 1 {
			answers = append(answers, owner...)
			ip := a.As4()
			answers = append(append(answers, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4), ip[:]...)
			count++
		}
		code := byte(0)
		if !known {
			code = 3
		}
		reply := append([]byte{b[0], b[1], 0x81, 0x80 | code, 0, 1, 0, byte(count), 0, 0, 0, 0}, question...)
		_, _ = u.WriteTo(append(reply, answers...), from)
	}
}

// worldDo does one deed. Connections to a name resolve it as Go's own resolver does, by the world's server.
func worldDo(d *deed, held map[string]net.Conn) error {
	if len(d.Run) > 0 {
		b, err := exec.Command(d.Run[0], d.Run[1:]...).CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w: %s", err, b)
		}
		return nil
	}
	switch d.Act {
	case "connect":
		c, err := net.DialTimeout("tcp", d.To, 3*time.Second)
		if err != nil {
			return err
		}
		defer c.Close()
		return talk(c)
	case "mapped":
		return connectMapped(netip.MustParseAddrPort(d.To))
	case "hold-udp":
		c, err := net.Dial("udp", d.To)
		if err == nil {
			held[d.To] = c
			err = talk(c)
		}
		return err
	case "udp":
		c, err := net.Dial("udp", d.To)
		if err != nil {
			return err
		}
		defer c.Close()
		return talk(c)
	case "sendto":
		c, err := net.ListenPacket("udp4", "")
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.WriteTo([]byte("hello"), net.UDPAddrFromAddrPort(netip.MustParseAddrPort(d.To)))
		return err
	case "raw":
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW, 253)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		ip := netip.MustParseAddrPort(d.To).Addr().As4()
		return unix.Sendto(fd, []byte("hello"), 0, &unix.SockaddrInet4{Addr: ip})
	case "lie":
		return lie(d.To)
	case "hold":
		c, err := net.DialTimeout("tcp", d.To, 3*time.Second)
		if err == nil {
			held[d.To], held[""] = c, c // one that is asked for without its end is the last
		}
		return err
	case "open-udp": // a socket that is connected to nobody
		c, err := net.ListenPacket("udp", d.To)
		if err == nil {
			held[d.To] = c.(*net.UDPConn)
		}
		return err
	case "open-socket", "open-raw": // one that has no address yet; and one of a protocol of nobody's
		typ, protocol := unix.SOCK_DGRAM, 0
		if d.Act == "open-raw" {
			typ, protocol = unix.SOCK_RAW, 253
		}
		fd, err := unix.Socket(unix.AF_INET, typ|unix.SOCK_CLOEXEC, protocol)
		if err != nil {
			return err
		}
		f := os.NewFile(uintptr(fd), d.To)
		defer f.Close()
		c, err := net.FilePacketConn(f)
		if err == nil {
			held[d.To] = c.(net.Conn)
		}
		return err
	case "port": // tells it instead of an error
		raw, err := held[d.To].(*net.UDPConn).SyscallConn()
		if err != nil {
			return err
		}
		var sa unix.Sockaddr
		if cerr := raw.Control(func(fd uintptr) { sa, err = unix.Getsockname(int(fd)) }); cerr != nil || err != nil {
			return errors.Join(cerr, err)
		}
		return fmt.Errorf("port %d", sa.(*unix.SockaddrInet4).Port)
	case "give":
		_ = held[d.Via].SetDeadline(time.Time{})
		_, err := held[d.Via].(*net.UDPConn).WriteToUDPAddrPort([]byte("hello"), netip.MustParseAddrPort(d.To))
		return err
	case "take":
		_ = held[d.To].SetDeadline(time.Now().Add(500 * time.Millisecond))
		_, err := held[d.To].Read(make([]byte, 100))
		return err
	case "close":
		c := held[d.To]
		if c == nil {
			return io.ErrClosedPipe
		}
		delete(held, d.To)
		return c.Close()
	case "held":
		if held[d.To] == nil {
			return io.ErrClosedPipe
		}
		return talk(held[d.To])
	}
	return fmt.Errorf("no deed %q", d.Act)
}

// lie has a server that is none of the host's say that db.internal is at an address.
func lie(address string) error {
	server, err := net.ListenPacket("udp4", "127.0.0.54:53")
	if err != nil {
		return err
	}
	defer server.Close()
	client, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer client.Close()
	ip := netip.MustParseAddr(address).As4()
	m := append([]byte("\x00\x07\x81\x80\x00\x01\x00\x01\x00\x00\x00\x00\x02db\x08internal\x00\x00\x01\x00\x01\xc0\x0c\x00\x01\x00\x01\x00\x00\x0e\x10\x00\x04"), ip[:]...)
	if _, err := server.WriteTo(m, client.LocalAddr()); err != nil {
		return nil //nolint:nilerr // a rule may forbid that too
	}
	_ = client.SetReadDeadline(time.Now().Add(time.Second))
	_, _, err = client.ReadFrom(make([]byte, 512))
	return err
}

func talk(c net.Conn) error {
	_ = c.SetDeadline(time.Now().Add(3 * time.Second))
	if _, err := c.Write([]byte("hello")); err != nil {
		return err
	}
	var b [5]byte
	_, err := io.ReadFull(c, b[:])
	return err
}

func connectMapped(to netip.AddrPort) error {
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Connect(fd, &unix.SockaddrInet6{Port: int(to.Port()), Addr: to.Addr().As16()})
}
