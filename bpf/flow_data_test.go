package bpf_test

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"testing"
	"time"

	pavise "github.com/pavise-project/pavise"
	"github.com/pavise-project/pavise/bpf"
	"golang.org/x/sys/unix"
)

// copied returns what was copied of this namespace's flows, when the ring is empty.
func (w *watch) copied(t testing.TB, kind pavise.FlowDataKind, out bool) []pavise.FlowData {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		s := w.stats()
		w.mu.Lock()
		if uint64(len(w.data)) == s.DataMade-s.DataLost {
			ours := slices.DeleteFunc(slices.Clone(w.data), func(d pavise.FlowData) bool { return d.NetNS != netNS(t) || d.Kind != kind || d.Outgoing != out })
			w.mu.Unlock()
			return ours
		}
		w.mu.Unlock()
		if time.Now().After(deadline) {
			t.Fatalf("%d records of data came, made are %d and lost %d", len(w.data), s.DataMade, s.DataLost)
		}
	}
}

// text is bytes that can be told from others.
func text(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7 + i>>8)
	}
	return b
}

func TestKernelFlowDNS(t *testing.T) {
	w := follow(t, bpf.FlowOptions{Wake: true})
	me := w.owner(os.Getpid())
	for _, p := range []int{53, 5353} {
		t.Run(fmt.Sprint("udp ", p), func(t *testing.T) {
			ownNetNS(t)
			w.t = t
			server, to := datagrams(t, unix.SOCK_DGRAM, 0, fmt.Sprint("127.0.0.1:", p))
			client, from := datagrams(t, unix.SOCK_DGRAM, 0, "127.0.0.1:0")
			sizes := []int{1, 12, 511, 512, 513, 1535, 1536, 1537, 4095, 4096, 4097, 20000}
			for _, n := range sizes {
				sendTo(t, client, to, 40)
				receive(t, server, 40)
				if err := unix.Sendto(server, text(n), 0, sa(from)); err != nil {
					t.Fatal(err)
				}
				receive(t, client, n)
			}
			got := w.copied(t, pavise.FlowDataDNS, false)
			if len(got) != len(sizes) {
				t.Fatalf("%d answers were copied, want %d", len(got), len(sizes))
			}
			for i, n := range sizes {
				d := got[i]
				if !bytes.Equal(d.Data, text(n)[:min(n, 4096)]) || d.Cut != (n > 4096) {
					t.Errorf("%d bytes: %d are there, cut %v", n, len(d.Data), d.Cut)
				}
				if d.ExecID != me || d.Local != from || d.Remote != to || d.Protocol != unix.IPPROTO_UDP || d.Flow == 0 || d.Time == 0 {
					t.Errorf("%d bytes: %+v", n, d)
				}
			}
			if f := slices.IndexFunc(w.sweep(), func(f pavise.Flow) bool { return f.ID == got[0].Flow && f.Local.Port == from.Port() }); f < 0 {
				t.Errorf("there is no flow %d", got[0].Flow)
			}
			if q := w.copied(t, pavise.FlowDataDNS, true); len(q) != 0 {
				t.Errorf("%d questions were copied", len(q))
			}
		})
	}
	t.Run("tcp", func(t *testing.T) {
		ownNetNS(t)
		w.t = t
		l, err := net.Listen("tcp4", "127.0.0.1:53")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		c, err := net.Dial("tcp4", "127.0.0.1:53")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		s, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		var all []byte
		for _, n := range []int{2, 700, 5000, 10000} {
			if _, err := c.Write([]byte("question")); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(s, make([]byte, 8)); err != nil {
				t.Fatal(err)
			}
			if _, err := s.Write(text(n)); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(c, make([]byte, n)); err != nil {
				t.Fatal(err)
			}
			all = append(all, text(n)...)
		}
		got := make([]byte, len(all))
		n := 0
		for _, d := range w.copied(t, pavise.FlowDataDNS, false) {
			if d.Cut || d.ExecID != me || d.Protocol != unix.IPPROTO_TCP || int(d.Seq)+len(d.Data) > len(all) {
				t.Fatalf("%d bytes at %d: %+v", len(d.Data), d.Seq, d)
			}
			n += copy(got[d.Seq:], d.Data)
		}
		if n != len(all) || !bytes.Equal(got, all) {
			t.Errorf("%d bytes were copied, want %d, the same %v", n, len(all), bytes.Equal(got, all))
		}
		// A transfer of a zone is cut off.
		go func() { _, _ = s.Write(make([]byte, 1<<20)) }()
		if _, err := io.ReadFull(c, make([]byte, 1<<20)); err != nil {
			t.Fatal(err)
		}
		n = 0
		for _, d := range w.copied(t, pavise.FlowDataDNS, false) {
			n += len(d.Data)
		}
		if n < 16000 || n > 65536+4096 {
			t.Errorf("of a connection to a name server %d bytes were copied", n)
		}
	})
}

// hello is a ClientHello as Go makes it.
func hello(t testing.TB, c *tls.Config) []byte {
	t.Helper()
	a, b := net.Pipe()
	go func() {
		_ = tls.Client(a, c).Handshake()
		a.Close()
	}()
	head := make([]byte, 5)
	if _, err := io.ReadFull(b, head); err != nil {
		t.Fatal(err)
	}
	body := make([]byte, int(head[3])<<8|int(head[4]))
	if _, err := io.ReadFull(b, body); err != nil {
		t.Fatal(err)
	}
	b.Close()
	return append(head, body...)
}

func TestKernelFlowTLS(t *testing.T) {
	w := follow(t, bpf.FlowOptions{Wake: true})
	me := w.owner(os.Getpid())
	usual := hello(t, &tls.Config{ServerName: "example.org", NextProtos: []string{"h2"}})
	var many []string
	for i := range 20 {
		many = append(many, fmt.Sprintf("%0200d", i))
	}
	long := hello(t, &tls.Config{ServerName: "example.org", NextProtos: many})
	if len(long) <= 4096 {
		t.Fatalf("the long one has %d bytes", len(long))
	}
	rest := text(50000)
	for _, c := range []struct {
		name   string
		writes [][]byte
		want   []byte
		pieces int
		cut    bool
	}{
		{"one", [][]byte{usual, rest}, usual, 1, false},
		{"with what follows", [][]byte{append(slices.Clone(usual), rest...)}, usual, 1, false},
		{"in two", [][]byte{usual[:100], usual[100:], rest}, usual, 2, false},
		{"in three", [][]byte{usual[:100], usual[100:200], usual[200:], rest}, usual, 3, false},
		{"in four", [][]byte{usual[:100], usual[100:200], usual[200:300], usual[300:]}, usual[:300], 3, true},
		{"too long", [][]byte{long, rest}, long[:4096], 1, true},
		{"not TLS", [][]byte{[]byte("GET / HTTP/1.1\r\nHost: example.org\r\nAccept: */*\r\n\r\n"), usual}, nil, 0, false},
		{"a ServerHello", [][]byte{slices.Concat(usual[:5], []byte{2}, usual[6:])}, nil, 0, false},
		{"short", [][]byte{usual[:20], usual[20:]}, nil, 0, false},
	} {
		for _, address := range []string{"127.0.0.1:0", "[::1]:0"} {
			t.Run(c.name+" "+address, func(t *testing.T) {
				ownNetNS(t)
				w.t = t
				l, err := net.Listen("tcp", address)
				if err != nil {
					t.Fatal(err)
				}
				defer l.Close()
				conn, err := net.Dial("tcp", l.Addr().String())
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				s, err := l.Accept()
				if err != nil {
					t.Fatal(err)
				}
				defer s.Close()
				for _, b := range c.writes {
					if _, err := conn.Write(b); err != nil {
						t.Fatal(err)
					}
					if _, err := io.ReadFull(s, make([]byte, len(b))); err != nil {
						t.Fatal(err)
					}
					if _, err := s.Write(usual[:200]); err != nil { // the other way it is nobody's hello
						t.Fatal(err)
					}
					if _, err := io.ReadFull(conn, make([]byte, 200)); err != nil {
						t.Fatal(err)
					}
				}
				for _, out := range []bool{true, false} { // both ends are here
					got := w.copied(t, pavise.FlowDataTLS, out)
					var all []byte
					cut := false
					for _, d := range got {
						if int(d.Seq) != len(all) || d.ExecID != me || d.Protocol != unix.IPPROTO_TCP || d.Flow == 0 {
							t.Errorf("%d bytes at %d, want %d: %+v", len(d.Data), d.Seq, len(all), d)
						}
						all = append(all, d.Data...)
						cut = d.Cut
					}
					if len(got) != c.pieces || !bytes.Equal(all, c.want) || cut != c.cut {
						t.Errorf("sent by this end %v: %d pieces of %d bytes together, cut %v; want %d, %d, %v", out, len(got), len(all), cut, c.pieces, len(c.want), c.cut)
					}
				}
			})
		}
	}
}

func TestKernelFlowQUIC(t *testing.T) {
	w := follow(t, bpf.FlowOptions{Wake: true})
	first := func(version uint32, kind byte, n int) []byte {
		b := text(n)
		b[0], b[1], b[2], b[3], b[4] = kind, byte(version>>24), byte(version>>16), byte(version>>8), byte(version)
		return b
	}
	for _, c := range []struct {
		name string
		send []byte
		want int
	}{
		{"version 1", first(1, 0xc3, 1252), 4},
		{"version 2", first(0x6b3343cf, 0xd1, 1200), 4},
		{"draft", first(0xff00001d, 0xc0, 1200), 4},
		{"handshake", first(1, 0xe0, 1252), 0},
		{"no version", first(0x12345678, 0xc0, 1252), 0},
		{"too short", first(1, 0xc0, 1199), 0},
		{"short header", first(1, 0x43, 1252), 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			ownNetNS(t)
			w.t = t
			server, to := datagrams(t, unix.SOCK_DGRAM, 0, "127.0.0.1:0")
			client, from := datagrams(t, unix.SOCK_DGRAM, 0, "127.0.0.1:0")
			for range 6 {
				if err := unix.Sendto(client, c.send, 0, sa(to)); err != nil {
					t.Fatal(err)
				}
				receive(t, server, len(c.send))
				if err := unix.Sendto(server, c.send, 0, sa(from)); err != nil {
					t.Fatal(err)
				}
				receive(t, client, len(c.send))
			}
			for _, out := range []bool{true, false} {
				got := w.copied(t, pavise.FlowDataQUIC, out)
				if len(got) != c.want {
					t.Fatalf("sent by this end %v: %d datagrams, want %d", out, len(got), c.want)
				}
				for i, d := range got {
					if int(d.Seq) != i || !bytes.Equal(d.Data, c.send) || d.Cut || d.Outgoing != out || (d.Local == from) != out {
						t.Errorf("%d: %+v", i, d)
					}
				}
			}
		})
	}
}
