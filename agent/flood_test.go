package agent

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pavise-project/pavise"
	"golang.org/x/sys/unix"
)

// openTo lets everybody reach the agent's socket.
func openTo(t *testing.T, a *Agent) {
	t.Helper()
	for d := filepath.Dir(a.cfg.Socket); d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
		must(t, os.Chmod(d, 0o755))
	}
}

// TestFlood: a reader opens 10,000 connections at once. It gets its share, and is told so for the others; the admin gets in, a stream
// goes on, and nothing is done to the kernel.
func TestFlood(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to be someone else")
	}
	const readers, uid, threads, each = 54321, 1234, 10, 1000
	f := newFake()
	a, c := running(t, f, func(c *Config) { c.Groups = Groups{Read: []string{fmt.Sprint(readers)}} })
	openTo(t, a)

	ctx, cancel := context.WithCancel(t.Context())
	lines := make(chan string, 16)
	streamed := make(chan error, 1)
	go func() {
		streamed <- c.Events(ctx, EventQuery{Follow: true, Limit: 1}, func(b []byte) error { lines <- string(b); return nil })
	}()
	a.hub.publish(&pavise.Event{Op: pavise.OpOpen, File: pavise.FileInfo{Path: "/before"}})
	if l := <-lines; !strings.Contains(l, "/before") {
		t.Fatal(l)
	}
	_, err := c.Status(t.Context())
	must(t, err)
	before, goroutines := heap(), runtime.NumGoroutine()

	var mu sync.Mutex
	var fds []int
	var wg sync.WaitGroup
	start := make(chan struct{})
	for range threads {
		wg.Go(func() {
			<-start
			err := beAs(uid, readers, nil, func() {
				for range each {
					fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
					if err == nil {
						err = unix.Connect(fd, &unix.SockaddrUnix{Name: a.cfg.Socket}) // waits its turn
					}
					if err != nil {
						t.Error(err)
						return
					}
					mu.Lock()
					fds = append(fds, fd)
					mu.Unlock()
				}
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	close(start)
	during := 0
	for done := make(chan struct{}); ; during++ {
		if during == 0 {
			go func() { wg.Wait(); close(done) }()
		}
		other := NewClient(a.cfg.Socket) // a new connection each time
		s, err := other.Status(t.Context())
		other.Close()
		if err != nil || s.Generation != 1 {
			t.Fatalf("the admin, during the flood: %v", err)
		}
		select {
		case <-done:
		default:
			continue
		}
		break
	}
	a.hub.publish(&pavise.Event{Op: pavise.OpOpen, File: pavise.FileInfo{Path: "/during"}})
	if l := <-lines; !strings.Contains(l, "/during") {
		t.Error(l)
	}
	for end := time.Now().Add(20 * time.Second); a.conns.refused.Load() < threads*each-maxConnsOfUser; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d were refused", a.conns.refused.Load())
		}
	}
	after, more := heap(), runtime.NumGoroutine()-goroutines
	t.Logf("the admin asked %d times during the flood; %d KiB of memory and %d goroutines more", during, max(0, after-before)>>10, more)
	if more > 2*maxConnsOfUser+16 || after-before > 8<<20 {
		t.Errorf("%d goroutines and %d bytes more", more, after-before)
	}
	open, refused := 0, 0
	for _, fd := range fds {
		b := make([]byte, 512)
		n, _, err := unix.Recvfrom(fd, b, unix.MSG_DONTWAIT)
		switch {
		case errors.Is(err, unix.EAGAIN):
			open++
		case bytes.HasPrefix(b[:max(n, 0)], []byte("HTTP/1.1 503")) && bytes.Contains(b[:n], []byte("uid 1234 has 64 open")):
			refused++
		default:
			t.Errorf("%d %v %q", n, err, b[:max(n, 0)])
		}
		_ = unix.Close(fd)
	}
	if open != maxConnsOfUser || refused != threads*each-maxConnsOfUser {
		t.Errorf("%d open and %d refused, want %d open", open, refused, maxConnsOfUser)
	}
	f.mu.Lock()
	if strings.Join(f.did, " ") != "apply" {
		t.Errorf("the kernel was asked for %v", f.did)
	}
	f.mu.Unlock()
	s, err := c.Status(t.Context())
	if err != nil || s.Refused != uint64(refused) {
		t.Errorf("%+v, %v", s, err)
	}
	// The reader gets in again, and so often only, also with streams.
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		got, err := connectAs(a.cfg.Socket, uid, readers, nil, "GET /v1/status")
		if err == nil && strings.HasPrefix(got, "HTTP/1.1 200") {
			break
		}
		if time.Now().After(end) {
			t.Fatal(got, err)
		}
	}
	cancel()
	must(t, <-streamed)
}

func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapInuse + m.StackInuse)
}

// TestStreamsOfUser: one user has so many streams, and gets them back.
func TestStreamsOfUser(t *testing.T) {
	a := newAgent(t, newFake(), nil)
	h := a.routes()
	ask := func(ctx context.Context, uid uint32, role Role) *httptest.ResponseRecorder {
		w := httptest.NewRecorder()
		c := &conn{peer: &peer{UID: uid}, role: role}
		h.ServeHTTP(w, httptest.NewRequest("GET", "/v1/events?follow=1", nil).WithContext(context.WithValue(ctx, connKey{}, c)))
		return w
	}
	for round := range 2 {
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for range maxStreamsOfUser {
			wg.Go(func() {
				if w := ask(ctx, 5, RoleRead); w.Code != http.StatusOK {
					t.Errorf("%d %s", w.Code, w.Body)
				}
			})
		}
		for a.hub.subscribers() < maxStreamsOfUser {
			time.Sleep(time.Millisecond)
		}
		if w := ask(t.Context(), 5, RoleWrite); w.Code != http.StatusServiceUnavailable || !strings.Contains(w.Body.String(), "too many streams: uid 5 has 16 open") {
			t.Errorf("round %d: %d %s", round, w.Code, w.Body)
		}
		cancel()
		wg.Wait()
	}
	if a.hub.subscribers() != 0 || a.streams.n != 0 {
		t.Errorf("%d, %d are left", a.hub.subscribers(), a.streams.n)
	}
}

// stream opens a stream of events by hand, and reads nothing but the head of the answer.
func stream(t *testing.T, a *Agent) (*bufio.Reader, net.Conn) {
	t.Helper()
	was := a.hub.subscribers()
	nc, err := net.Dial("unix", a.cfg.Socket)
	must(t, err)
	_, err = io.WriteString(nc, "GET /v1/events?follow=1 HTTP/1.1\r\nHost: pavise\r\n\r\n")
	must(t, err)
	br := bufio.NewReaderSize(nc, 16)
	res, err := http.ReadResponse(br, nil)
	must(t, err)
	if res.StatusCode != http.StatusOK || a.hub.subscribers() != was+1 {
		t.Fatal(res.Status, a.hub.subscribers())
	}
	return bufio.NewReader(res.Body), nc
}

// TestSlowReader: who takes nothing loses events, is told exactly how many, and slows neither the agent nor another reader.
func TestSlowReader(t *testing.T) {
	const all = 60_000
	a, c := running(t, newFake(), nil)
	slow, nc := stream(t, a)
	defer nc.Close()
	ctx, cancel := context.WithCancel(t.Context())
	var fast atomic.Int64
	done := make(chan error, 1)
	go func() {
		done <- c.Events(ctx, EventQuery{Follow: true}, func(b []byte) error { fast.Add(1); return nil })
	}()
	for a.hub.subscribers() < 2 {
		time.Sleep(time.Millisecond)
	}
	var most time.Duration
	path := "/" + strings.Repeat("x", 200)
	for i := range all {
		start := time.Now()
		a.hub.publish(&pavise.Event{Op: pavise.Op(1 + i%3), File: pavise.FileInfo{Path: path}})
		most = max(most, time.Since(start))
		if i%1000 == 999 { // the other one keeps up
			for fast.Load() <= int64(i) {
				time.Sleep(100 * time.Microsecond)
			}
		}
	}
	cancel()
	must(t, <-done)
	dropped := a.hub.dropped.Load()
	if dropped == 0 || most > 10*time.Second {
		t.Errorf("%d events were too many, and one took %s to hand on", dropped, most)
	}
	got, lost := 0, uint64(0)
	for got+int(lost) < all {
		line, err := slow.ReadBytes('\n')
		must(t, err)
		var e pavise.Event
		must(t, json.Unmarshal(line, &e))
		if e.Op == pavise.OpLost {
			if e.Lost.Where != "subscriber" || e.Lost.Op < 1 || e.Lost.Op > 3 {
				t.Errorf("%s", line)
			}
			lost += e.Lost.Count
		} else {
			got++
		}
	}
	if got+int(lost) != all || lost != dropped {
		t.Errorf("%d came and %d were told as lost, of %d; %d were counted", got, lost, all, dropped)
	}
	t.Logf("%d events came late, %d were lost; handing one on took %s at most", got, lost, most)
}

// TestStuckReader: who takes nothing for long is cut off, and so is who connects and says nothing.
func TestStuckReader(t *testing.T) {
	b := newAgent(t, newFake(), nil)
	b.patience = 20 * time.Millisecond
	ln, err := listen(b.cfg.Socket, b.roles, b.conns)
	must(t, err)
	srv := b.server(t.Context())
	srv.ReadHeaderTimeout, srv.IdleTimeout = 20*time.Millisecond, 20*time.Millisecond
	go func() { _ = srv.Serve(ln) }()
	defer srv.Close()

	_, nc := stream(t, b)
	defer nc.Close()
	for end := time.Now().Add(30 * time.Second); b.hub.subscribers() > 0; {
		b.hub.publish(&pavise.Event{Op: pavise.OpOpen, File: pavise.FileInfo{Path: strings.Repeat("x", 4000)}})
		if time.Now().After(end) {
			t.Fatal("it is still a reader")
		}
	}
	for _, first := range []string{"", "GET /healthz HT", "GET /healthz HTTP/1.1\r\nHost: pavise\r\n\r\n"} {
		nc, err := net.Dial("unix", b.cfg.Socket)
		must(t, err)
		_, err = io.WriteString(nc, first)
		must(t, err)
		_ = nc.SetReadDeadline(time.Now().Add(30 * time.Second))
		if _, err := io.ReadAll(nc); err != nil {
			t.Errorf("after %q: %v", first, err)
		}
		_ = nc.Close()
	}
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
		b.conns.mu.Lock()
		n := b.conns.n
		b.conns.mu.Unlock()
		if n == 0 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("%d connections are left", n)
		}
	}
}

// TestMalformed sends what no client should.
func TestMalformed(t *testing.T) {
	f := newFake()
	a, c := running(t, f, nil)
	big := strings.Repeat("a", 20<<10)
	const put = "PUT /v1/policies HTTP/1.1\r\nHost: p\r\n"
	for _, tt := range []struct{ request, want string }{
		{"\x00\x01\x02\x03\r\n\r\n", "HTTP/1.1 400"},
		{"GET /v1/status\r\n\r\n", "HTTP/1.1 400"},
		{"GET /v1/status HTTP/9.9\r\n\r\n", "HTTP/1.1 505"},
		{"GET /v1/status HTTP/1.1\r\n\r\n", "HTTP/1.1 400"}, // no host
		{"GET /v1/status HTTP/1.1\r\nHost: p\r\nX: " + big + "\r\n\r\n", "HTTP/1.1 431"},
		{"GET /" + big + " HTTP/1.1\r\nHost: p\r\n\r\n", "HTTP/1.1 431"},
		{"GET /v1/status HTTP/1.1\r\nHost: p\r\nContent-Length: -1\r\n\r\n", "HTTP/1.1 400"},
		{"GET /v1/events?limit=%zz HTTP/1.1\r\nHost: p\r\n\r\n", "read the query: invalid URL escape"},
		{"GET /v1/events?limit=1;follow=1 HTTP/1.1\r\nHost: p\r\n\r\n", "read the query: invalid semicolon separator"},
		{"GET /v1/policies/%00%ff HTTP/1.1\r\nHost: p\r\n\r\n", "HTTP/1.1 404"},
		{"GET /v1/revisions/99999999999999999999999 HTTP/1.1\r\nHost: p\r\n\r\n", "not a number"},
		{"GET /../../etc/passwd HTTP/1.1\r\nHost: p\r\n\r\n", "HTTP/1.1 404"},
		{"OPTIONS * HTTP/1.1\r\nHost: p\r\n\r\n", "HTTP/1.1 "},
		{"CONNECT x:1 HTTP/1.1\r\nHost: p\r\n\r\n", "HTTP/1.1 404"},
		{"FROB /v1/status HTTP/1.1\r\nHost: p\r\n\r\n", "GET can be asked"},
		{put + "Transfer-Encoding: chunked\r\n\r\nZZ\r\n", "invalid byte in chunk length"},
		{put + "Transfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n", "chunk length too large"},
		{put + "Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n", "HTTP/1.1 501"},
		{put + "Content-Length: 3\r\n\r\n\x00\x00\x00", "policy.yaml"},
		{put + "Content-Type: image/png\r\nContent-Length: 3\r\n\r\nabc", `content type \"image/png\": PUT /v1/policies takes application/yaml, multipart/form-data, application/json`},
		{put + "Content-Type: ;;;\r\nContent-Length: 3\r\n\r\nabc", "HTTP/1.1 415"},
		{put + "Content-Type: multipart/form-data\r\nContent-Length: 3\r\n\r\nabc", "no multipart boundary param in Content-Type"},
		{put + "Content-Type: multipart/form-data; boundary=x\r\nContent-Length: 3\r\n\r\nabc", `no part \"policy\" in the request`},
		{put + "Content-Length: 9999999\r\n\r\n" + big, ""}, // half a body, and away
		{"GET /v1/stat", ""}, // half a head, and away
		{"PUT /v1/policies/x/mode HTTP/1.1\r\nHost: p\r\nContent-Length: 2\r\n\r\n[]", "the body is not"},
		{"PUT /v1/policies/x/mode HTTP/1.1\r\nHost: p\r\nContent-Length: 24\r\n\r\n" + `{"mode":"enforce","x":1}`, `unknown field \"x\"`},
		{"PUT /v1/policies/x/mode HTTP/1.1\r\nHost: p\r\nContent-Length: 21\r\n\r\n" + `{"mode":"enforce"} {}`, "there is more after it"},
		{"PUT /v1/policies/x/mode HTTP/1.1\r\nHost: p\r\nContent-Type: application/yaml\r\nContent-Length: 2\r\n\r\n{}", "takes application/json"},
		{"PUT /v1/log HTTP/1.1\r\nHost: p\r\nContent-Length: 16\r\n\r\n" + `{"level":"loud"}`, `level \"loud\": the body is not {\"level\": \"debug\"}, or info, warn or error`},
	} {
		nc, err := net.Dial("unix", a.cfg.Socket)
		must(t, err)
		_, _ = io.WriteString(nc, tt.request)
		if tt.want == "" {
			_ = nc.Close()
			continue
		}
		_ = nc.SetReadDeadline(time.Now().Add(20 * time.Second))
		b := make([]byte, 8192)
		n := 0
		for n < len(b) && !strings.Contains(string(b[:n]), tt.want) {
			m, err := nc.Read(b[n:])
			n += m
			if err != nil {
				break
			}
		}
		if !strings.Contains(string(b[:n]), tt.want) {
			t.Errorf("%.80q: %q, want %s", tt.request, b[:n], tt.want)
		}
		_ = nc.Close()
	}
	s, err := c.Status(t.Context())
	if err != nil || s.Generation != 1 || len(f.did) != 1 {
		t.Errorf("generation %+v, %v; the kernel was asked for %v", s, err, f.did)
	}
}

// FuzzRequest gives the API requests of any form. It must not panic, must say what is wrong, and must change nothing but by a request that succeeds.
func FuzzRequest(f *testing.F) {
	f.Add([]byte("GET /v1/events?limit=1&where=op=='file.open' HTTP/1.1\r\nHost: p\r\n\r\n"))
	f.Add([]byte("GET /v1/events/1/why HTTP/1.1\r\nHost: p\r\n\r\n"))
	f.Add([]byte("PUT /v1/policies/x/mode?dry-run=1 HTTP/1.1\r\nHost: p\r\nContent-Length: 18\r\n\r\n{\"mode\":\"enforce\"}"))
	f.Add([]byte("PUT /v1/policies?confirm-within=60s&file=a HTTP/1.1\r\nHost: p\r\nTransfer-Encoding: chunked\r\n\r\n5\r\na: {b\r\n0\r\n\r\n"))
	f.Add([]byte("PUT /v1/policies HTTP/1.1\r\nHost: p\r\nContent-Type: multipart/form-data; boundary=x\r\nContent-Length: 66\r\n\r\n--x\r\nContent-Disposition: form-data; name=\"policy\"\r\n\r\na\r\n--x--\r\n"))
	f.Add([]byte("PUT /v1/policies HTTP/1.1\r\nHost: p\r\nContent-Length: " + fmt.Sprint(len(shadow("x", "monitor"))) + "\r\n\r\n" + shadow("x", "monitor")))
	f.Add([]byte("DELETE /v1/policies/x HTTP/1.1\r\nHost: p\r\n\r\n"))
	f.Add([]byte("POST /v1/revisions/0/rollback HTTP/1.1\r\nHost: p\r\n\r\n"))
	f.Add([]byte("PUT /v1/log HTTP/1.1\r\nHost: p\r\nContent-Length: 16\r\n\r\n{\"level\":\"INFO\"}"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		a := newAgent(t, newFake(), nil)
		h := a.routes() // without what survives a panic
		r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(raw)))
		if err != nil {
			t.Skip()
		}
		was := a.set.Load()
		ctx, cancel := context.WithCancel(context.WithValue(t.Context(), connKey{}, &conn{peer: &peer{}, role: RoleAdmin}))
		cancel() // streams end at once
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r.WithContext(ctx))
		if w.Code >= 400 && r.URL.Path != "/readyz" {
			var e ErrorBody
			if err := json.Unmarshal(w.Body.Bytes(), &e); err != nil || e.Error.Message == "" {
				t.Errorf("%d %s", w.Code, w.Body)
			}
		}
		if w.Code == http.StatusInternalServerError {
			t.Errorf("%d %s", w.Code, w.Body)
		}
		if now := a.set.Load(); now != was && w.Code != http.StatusOK {
			t.Errorf("the policies are others, after %d %s", w.Code, w.Body)
		}
	})
}
