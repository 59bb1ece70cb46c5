package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"unsafe"

	"github.com/pavise-project/pavise"
	"github.com/pavise-project/pavise/enforce"
	"github.com/pavise-project/pavise/policy"
)

// ask makes one request over the agent's socket.
func ask(t *testing.T, c *Client, method, path string, body io.Reader) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, "http://pavise"+path, body)
	if err != nil {
		t.Fatal(err)
	}
	res, err := c.http.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(b)
}

func TestAPI(t *testing.T) {
	_, c := running(t, newFake(), nil)
	for _, tt := range []struct {
		method, path, body string
		code               int
		want               string
	}{
		{"GET", "/healthz", "", 200, `"ok"`},
		{"GET", "/v1/status", "", 200, `"generation":1`},
		{"GET", "/v1/doctor", "", 200, `"rung":"lsm"`},
		{"GET", "/v1/processes", "", 200, `{"processes":[`},
		{"GET", "/v1/policies", "", 200, `"policies":[]`},
		{"GET", "/v1/policies/x", "", 404, `"error":{"message":`},
		{"DELETE", "/v1/policies/x", "", 404, "no such policy"},
		{"GET", "/", "", 404, `"error":{"message":`},
		{"POST", "/v1/policies", "", 405, `GET, PUT can be asked`},
		{"GET", "/v1/events?limit=x", "", 400, "limit"},
		{"GET", "/v1/events?limit=-1", "", 400, "limit"},
		{"GET", "/v1/events?where=%29%28", "", 422, `"error":{"message":`},
		{"PUT", "/v1/policies", "", 422, `"error":{"message":`},
		{"PUT", "/v1/policies", "\x00\xff{{{", 422, `"details":[{"file":"policy.yaml"`},
		{"PUT", "/v1/policies?file=../../etc/x.yaml", strings.Replace(shadow("x", "monitor"), "file.open", "file.opn", 1), 422, `"file":"x.yaml"`},
		{"PUT", "/v1/policies", strings.Repeat("a", MaxPolicyBytes+1), 413, "1 MiB"},
		{"PUT", "/v1/policies?dry-run=1", shadow("x", "monitor"), 200, `"dry_run":true`},
		{"GET", "/v1/policies/x", "", 404, "no such policy"},
		{"PUT", "/v1/policies", shadow("x", "monitor") + "---\n" + shadow("y", "enforce"), 200, `"generation":2`},
		{"GET", "/v1/policies/x", "", 200, `"source":"`},
		{"PUT", "/v1/policies/x/mode?dry-run=1", `{"mode": "enforce"}`, 200, `"mode":"enforce"`},
		{"GET", "/v1/policies/x", "", 200, `"mode":"monitor"`},
		{"PUT", "/v1/policies/x/mode", `{"mode": "enforce"}`, 200, `"generation":3`},
		{"GET", "/v1/policies/x", "", 200, `mode: enforce\n`},
		{"PUT", "/v1/policies/x/mode", `{"mode": "loud"}`, 400, "the body is not"},
		{"PUT", "/v1/policies/x/mode", `enforce`, 400, "the body is not"},
		{"PUT", "/v1/policies/none/mode", `{"mode": "enforce"}`, 404, "no such policy"},
		{"DELETE", "/v1/policies/x", "", 200, `"generation":4`},
		{"GET", "/v1/policies", "", 200, `"name":"y"`},
	} {
		code, got := ask(t, c, tt.method, tt.path, strings.NewReader(tt.body))
		if code != tt.code || !strings.Contains(got, tt.want) {
			t.Errorf("%s %s: %d %s, want %d with %s", tt.method, tt.path, code, got, tt.code, tt.want)
		}
		if !json.Valid([]byte(got)) {
			t.Errorf("%s %s: not JSON: %s", tt.method, tt.path, got)
		}
	}
}

// TestSetMode: one policy changes its mode in one switch, or nothing changes.
func TestSetMode(t *testing.T) {
	f := newFake()
	f.machine = func() [pavise.NumOps]policy.Support {
		ops := AnyMachine().Ops
		ops[pavise.OpAccept] = policy.Support{Rung: pavise.RungKillOnReturn, Kill: true, Why: "lsm: not enabled at boot"}
		return ops
	}
	var img *policy.Image // that is active
	full := false
	f.apply = func(i *policy.Image) (enforce.Applied, error) {
		if full {
			return enforce.Applied{}, errors.New("stage tables: no space left")
		}
		f.gen++
		img = i
		return enforce.Applied{Generation: f.gen}, nil
	}
	f.counters = func() (enforce.Counters, error) {
		return enforce.Counters{RuleHits: make([]uint64, len(img.Rules))}, nil
	}
	_, c := running(t, f, nil)
	accept := strings.Replace(shadow("accept", "monitor"), "on: [file.open]\n    when: file.path == \"/etc/shadow\"", "on: [net.accept]\n    when: net.local.port == 22", 1)
	if _, err := c.Apply(t.Context(), "set.yaml", []byte(shadow("x", "monitor")+"---\n"+shadow("y", "monitor")+"---\n"+accept), nil, ApplyOptions{}); err != nil {
		t.Fatal(err)
	}
	// modes are what the agent shows, and what the tables do.
	modes := func() string {
		t.Helper()
		ps, gen, err := c.Policies(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		out := fmt.Sprint(gen)
		for _, p := range ps {
			out += " " + p.Name + "=" + p.Mode
		}
		for _, w := range img.Ops[pavise.OpOpen].Words {
			out += fmt.Sprintf(" monitor=%v", w.Monitor)
		}
		return out
	}
	check := func(want string) {
		t.Helper()
		if got := modes(); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
	check("2 accept=monitor x=monitor y=monitor monitor=true")
	ch, err := c.SetMode(t.Context(), "x", "enforce", true)
	if err != nil || !ch.DryRun || len(ch.Policies) != 1 || ch.Policies[0].Rules[0].State != "enforced" {
		t.Errorf("%+v, %v", ch, err)
	}
	check("2 accept=monitor x=monitor y=monitor monitor=true")
	ch, err = c.SetMode(t.Context(), "x", "enforce", false)
	if err != nil || ch.Generation != 3 || len(ch.Policies) != 1 || ch.Policies[0].Name != "x" || ch.Policies[0].Mode != "enforce" || ch.Policies[0].Source != "" {
		t.Errorf("%+v, %v", ch, err)
	}
	check("3 accept=monitor x=enforce y=monitor monitor=false monitor=true")

	var ae *APIError
	_, err = c.SetMode(t.Context(), "accept", "enforce", false)
	if !errors.As(err, &ae) || !ae.BadPolicy() || len(ae.Details) != 1 || ae.Details[0].File != "set.yaml" || ae.Details[0].Line != 29 || !strings.Contains(ae.Details[0].Msg, "net.accept") {
		t.Errorf("%+v", ae)
	}
	full = true
	_, err = c.SetMode(t.Context(), "y", "enforce", false)
	if !errors.As(err, &ae) || ae.Status != http.StatusInternalServerError || !strings.Contains(ae.Message, "no space left") {
		t.Error(err)
	}
	full = false
	if _, err = c.SetMode(t.Context(), "none", "enforce", false); !errors.Is(err, ErrNoPolicy) {
		t.Error(err)
	}
	check("3 accept=monitor x=enforce y=monitor monitor=false monitor=true")
	if _, err = c.SetMode(t.Context(), "x", "monitor", false); err != nil {
		t.Error(err)
	}
	check("4 accept=monitor x=monitor y=monitor monitor=true")
}

func TestFollow(t *testing.T) {
	f := newFake()
	a, c := running(t, f, nil)
	a.hub.publish(&pavise.Event{Op: pavise.OpOpen, File: pavise.FileInfo{Path: "/old"}})
	a.hub.publish(&pavise.Event{Op: pavise.OpOpen, File: pavise.FileInfo{Path: "/wanted"}})
	ctx, cancel := context.WithCancel(t.Context())
	lines := make(chan string, 16)
	done := make(chan error, 1)
	go func() {
		done <- c.Events(ctx, EventQuery{Follow: true, Limit: 5, Where: `file.path == "/wanted"`}, func(b []byte) error {
			lines <- string(b)
			return nil
		})
	}()
	if l := <-lines; !strings.Contains(l, `"id":2,`) {
		t.Errorf("first line is %s", l)
	}
	f.recs <- &pavise.Event{Op: pavise.OpOpen, File: pavise.FileInfo{Path: "/other"}}
	f.recs <- &pavise.Event{Op: pavise.OpOpen, File: pavise.FileInfo{Path: "/wanted"}}
	if l := <-lines; !strings.Contains(l, `"id":4,`) {
		t.Errorf("second line is %s", l)
	}
	if n := a.hub.subscribers(); n != 1 {
		t.Errorf("%d subscribers", n)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestHandlerPanic(t *testing.T) {
	a := newAgent(t, newFake(), nil)
	ln, err := listen(a.cfg.Socket, a.roles, a.conns)
	if err != nil {
		t.Fatal(err)
	}
	srv := a.server(t.Context())
	srv.Handler = a.guard(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic("oops") }))
	go func() { _ = srv.Serve(ln) }()
	defer srv.Close()
	c := NewClient(a.cfg.Socket)
	for range 2 {
		if code, body := ask(t, c, "GET", "/", nil); code != 500 || strings.Contains(body, "oops") {
			t.Errorf("%d %s", code, body)
		}
	}
}

func TestManyConnections(t *testing.T) {
	_, c := running(t, newFake(), nil)
	const all = 1000
	var ok, full, other atomic.Int64
	hold := make(chan struct{})
	var wg, tried sync.WaitGroup
	tried.Add(all)
	for range all {
		wg.Go(func() {
			var once sync.Once
			defer once.Do(tried.Done)
			nc, err := net.Dial("unix", c.socket)
			if err != nil {
				other.Add(1)
				return
			}
			defer nc.Close()
			_, _ = io.WriteString(nc, "GET /healthz HTTP/1.1\r\nHost: pavise\r\n\r\n")
			b := make([]byte, 4096)
			n, _ := nc.Read(b)
			switch {
			case bytes.HasPrefix(b[:n], []byte("HTTP/1.1 200")):
				ok.Add(1)
			case bytes.Contains(b[:n], []byte("too many connections")):
				full.Add(1)
			default:
				other.Add(1)
			}
			once.Do(tried.Done)
			<-hold
		})
	}
	tried.Wait()
	close(hold)
	wg.Wait()
	if ok.Load() > maxConns || ok.Load() == 0 || full.Load() == 0 || other.Load() != 0 {
		t.Errorf("%d served, %d refused, %d otherwise; want at most %d served", ok.Load(), full.Load(), other.Load(), maxConns)
	}
	// And it serves again.
	for {
		if _, err := c.Status(t.Context()); err == nil {
			break
		} else if t.Context().Err() != nil {
			t.Fatal(err)
		}
	}
}

// TestPeerCredentials connects as others: one thread takes another user and other groups, and ends afterwards.
func TestPeerCredentials(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to be someone else")
	}
	const readers, writers, admins = 54321, 54322, 54323
	a, _ := running(t, newFake(), func(c *Config) { c.Groups = Groups{Read: []string{fmt.Sprint(readers)}} })
	st, err := os.Stat(a.cfg.Socket)
	if err != nil || st.Mode().Perm() != 0o660 || st.Sys().(*syscall.Stat_t).Gid != readers {
		t.Errorf("socket is %v, %v", st.Mode(), err)
	}
	a, _ = running(t, newFake(), func(c *Config) {
		c.Groups = Groups{Read: []string{fmt.Sprint(readers)}, Write: []string{fmt.Sprint(writers)}, Admin: []string{fmt.Sprint(admins)}}
	})
	for d := filepath.Dir(a.cfg.Socket); d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, open := range []bool{false, true} {
		if open { // everybody reaches the socket, so that what decides is the agent
			if err := os.Chmod(a.cfg.Socket, 0o666); err != nil {
				t.Fatal(err)
			}
		}
		for _, tt := range []struct {
			uid, gid          int
			groups            []uint32
			read, write, conf string // the status of each; of a peer without a role when it does reach the socket
		}{
			{0, 0, nil, "200", "422", "400"},
			{65534, 65534, nil, "403", "403", "403"},
			{1234, 1234, []uint32{7, 8, 9}, "403", "403", "403"},
			{1234, readers, nil, "200", "403", "403"},
			{1234, 1234, []uint32{7, readers, 9}, "200", "403", "403"},
			{1234, 1234, []uint32{readers, writers}, "200", "422", "403"},
			{1234, writers, nil, "200", "422", "403"},
			{1234, admins, nil, "200", "422", "400"},
		} {
			for request, want := range map[string]string{"GET /v1/status": tt.read, "PUT /v1/policies": tt.write, "PUT /v1/log": tt.conf} {
				got, err := connectAs(a.cfg.Socket, tt.uid, tt.gid, tt.groups, request)
				switch {
				case !open && tt.read == "403":
					if !errors.Is(err, syscall.EACCES) {
						t.Errorf("%s as %+v reaches the socket: %v %q", request, tt, err, got)
					}
				case err != nil:
					t.Errorf("%s as %+v: %v", request, tt, err)
				case !strings.HasPrefix(got, "HTTP/1.1 "+want):
					t.Errorf("%s as %+v: %q", request, tt, got)
				}
			}
		}
	}
	got, err := connectAs(a.cfg.Socket, 1234, readers, nil, "PUT /v1/policies")
	if want := "not allowed: PUT /v1/policies needs the role write, and uid 1234 has read; members of these groups have it: 54322 (--write-group), 54323 (--admin-group)"; !strings.Contains(got, want) {
		t.Errorf("%q, %v; want %s", got, err, want)
	}
	if got, err = connectAs(a.cfg.Socket, 1234, writers, nil, "GET /v1/status"); !strings.Contains(got, `"peer":{"uid":1234,"pid":`) || !strings.Contains(got, `"role":"write"`) {
		t.Errorf("%q, %v", got, err)
	}
}

// beAs runs fn on a thread that is someone else, and ends.
func beAs(uid, gid int, groups []uint32, fn func()) (err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		var p unsafe.Pointer
		if len(groups) > 0 {
			p = unsafe.Pointer(&groups[0])
		}
		for _, call := range [][4]uintptr{
			{syscall.SYS_SETGROUPS, uintptr(len(groups)), uintptr(p), 0},
			{syscall.SYS_SETRESGID, uintptr(gid), uintptr(gid), uintptr(gid)},
			{syscall.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)},
		} {
			if _, _, errno := syscall.RawSyscall(call[0], call[1], call[2], call[3]); errno != 0 {
				err = errno
				return
			}
		}
		fn()
	}()
	<-done
	return err
}

func connectAs(socket string, uid, gid int, groups []uint32, request string) (answer string, err error) {
	aerr := beAs(uid, gid, groups, func() {
		var c net.Conn
		if c, err = net.Dial("unix", socket); err != nil {
			return
		}
		defer c.Close()
		_, _ = io.WriteString(c, request+" HTTP/1.1\r\nHost: pavise\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}")
		var b []byte
		b, err = io.ReadAll(c)
		answer = string(b)
	})
	return answer, errors.Join(aerr, err)
}

func TestListen(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "sub", "p.sock")
	l, err := listen(path, &roles{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("socket is %v, %v", st.Mode(), err)
	}
	if _, err := listen(path, &roles{}, nil); !errors.Is(err, ErrSocketInUse) {
		t.Errorf("a second agent: %v", err)
	}
	l.SetUnlinkOnClose(false)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l, err = listen(path, &roles{}, nil) // what a dead agent left
	if err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := listen(file, &roles{}, nil); err == nil {
		t.Error("a file was replaced")
	}
	unlock, err := lockState(filepath.Join(dir, "state"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lockState(filepath.Join(dir, "state")); !errors.Is(err, ErrStateInUse) {
		t.Errorf("a second agent: %v", err)
	}
	unlock()
	if unlock, err = lockState(filepath.Join(dir, "state")); err != nil {
		t.Fatal(err)
	}
	unlock()
}

func TestClientWithoutAgent(t *testing.T) {
	c := NewClient(filepath.Join(t.TempDir(), "none.sock"))
	if _, err := c.Status(t.Context()); !errors.Is(err, ErrNoAgent) {
		t.Errorf("no socket: %v", err)
	}
}
