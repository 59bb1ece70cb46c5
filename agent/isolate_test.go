package agent

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pavise-project/pavise"
	"github.com/pavise-project/pavise/policy"
	"golang.org/x/sys/unix"
)

func TestExceptions(t *testing.T) {
	for in, want := range map[string]string{
		"10.0.0.1":             `net.remote.address == "10.0.0.1"`,
		"10.0.0.1:22":          `net.remote.address == "10.0.0.1" && net.remote.port == 22`,
		"10.0.0.0/8":           `net.remote.address.within("10.0.0.0/8")`,
		"10.0.0.0/8:443":       `net.remote.address.within("10.0.0.0/8") && net.remote.port == 443`,
		"2001:db8::1":          `net.remote.address == "2001:db8::1"`,
		"[2001:db8::1]:22":     `net.remote.address == "2001:db8::1" && net.remote.port == 22`,
		"[2001:db8::/32]:22":   `net.remote.address.within("2001:db8::/32") && net.remote.port == 22`,
		"::ffff:10.0.0.1":      `net.remote.address == "10.0.0.1"`,
		"DB.internal.":         `net.remote.domain == "db.internal"`,
		"db.internal:5432":     `net.remote.domain == "db.internal" && net.remote.port == 5432`,
		"*.example.com:443":    `net.remote.domain.glob("*.example.com") && net.remote.port == 443`,
		"localhost":            `net.remote.domain == "localhost"`,
		"net.local.port == 22": `net.local.port == 22`,
	} {
		got, err := exceptCEL(in)
		if err != nil || got != want {
			t.Errorf("%s: %s, %v; want %s", in, got, err, want)
		}
		if _, err := policy.CompileWhere(got); err != nil {
			t.Errorf("%s: %s: %v", in, got, err)
		}
	}
	for in, want := range map[string]string{
		"":                     "is no address",
		"10.0.0.1/8":           "write 10.0.0.0/8",
		"10.0.0.1:0":           "1 to 65535",
		"10.0.0.1:70000":       "1 to 65535",
		"10.0.0.300":           "is no address",
		"fe80::1%eth0":         "leave %eth0 out",
		"two words":            "is no address",
		"a\nb":                 "not printable",
		"*":                    "is no address",
		`net.remot.port == 22`: "net.remot",
		`") || (true`:          "is no address",
	} {
		if got, err := exceptCEL(in); !errors.Is(err, errBadIsolation) || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %s, %v; want %q", in, got, err, want)
		}
	}
}

// runs has the agent know a process that is there, with a cgroup.
func runs(t *testing.T, f *fake, id uint64, exe, cgroup string, parent uint64, as func(*exec.Cmd)) uint32 {
	t.Helper()
	c := exec.Command("/bin/sleep", "60")
	if as != nil {
		as(c)
	}
	must(t, c.Start())
	t.Cleanup(func() { _ = c.Process.Kill(); _ = c.Wait() })
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", c.Process.Pid))
	must(t, err)
	var ticks uint64
	_, err = fmt.Sscan(strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))[19], &ticks)
	must(t, err)
	e := &pavise.Event{Op: pavise.OpExec, PID: uint32(c.Process.Pid), ExecID: id}
	e.Exec = pavise.ExecInfo{StartTime: ticks * 10_000_000, CgroupID: id, Cgroup: cgroup, ParentExecID: parent}
	e.Exec.Exe.Path = exe
	f.recs <- e
	return e.PID
}

// TestIsolate says whom each subject is, and refuses those that cannot be said.
func TestIsolate(t *testing.T) {
	f := newFake()
	a, c := running(t, f, nil)
	id := strings.Repeat("c0ffee00", 8)
	web := runs(t, f, 1, "/usr/sbin/nginx", "/system.slice/nginx.service", 0, nil)
	child := runs(t, f, 2, "/bin/sh", "/system.slice/nginx.service/sub", 1, nil)
	one := runs(t, f, 3, "/usr/bin/nc", "/user.slice", 0, nil)
	two := runs(t, f, 4, "/usr/bin/nc", "/user.slice", 0, nil)
	only := runs(t, f, 5, "/usr/bin/socat", "/user.slice", 0, nil)
	runs(t, f, 6, "/app", "/docker-"+id+".scope", 0, nil)
	thread := runs(t, f, 7, "", "/", 0, nil)
	eventually(t, "the processes are known", func() bool { return len(a.runningProcesses()) == 7 })

	for _, tc := range []struct {
		name    string
		request IsolationRequest
		status  int    // 200 when it can be done
		want    string // in the subject, or in the error
		running int
	}{
		{"a process alone in its cgroup, with its child", IsolationRequest{Subject: IsolationSubject{PID: web}}, 200, `process.cgroup == "/system.slice/nginx.service" || process.cgroup.startsWith("/system.slice/nginx.service/")`, 2},
		{"a child alone in its own", IsolationRequest{Subject: IsolationSubject{PID: child}}, 200, `process.cgroup == "/system.slice/nginx.service/sub"`, 1},
		{"a program that runs once", IsolationRequest{Subject: IsolationSubject{PID: only}}, 200, `process.exe.path == "/usr/bin/socat" || process.ancestors.exists(a, a.exe.path == "/usr/bin/socat")`, 1},
		{"a program that runs twice", IsolationRequest{Subject: IsolationSubject{PID: one}}, 409, fmt.Sprintf("process %d is not alone in its cgroup, nor the only one with its program and user: 1 others run", one), 0},
		{"a program that runs twice, both", IsolationRequest{Subject: IsolationSubject{PID: one}, Widen: true}, 200, `process.exe.path == "/usr/bin/nc" && process.user.id == 0 ||`, 2},
		{"a unit", IsolationRequest{Subject: IsolationSubject{Unit: "nginx.service"}}, 200, `process.unit == "nginx.service"`, 2},
		{"a unit that does not run", IsolationRequest{Subject: IsolationSubject{Unit: "ngnix.service"}}, 404, `no process runs in a unit "ngnix.service"`, 0},
		{"a container", IsolationRequest{Subject: IsolationSubject{Container: "c0ffee"}}, 200, `process.container.id == "` + id + `"`, 1},
		{"no container", IsolationRequest{Subject: IsolationSubject{Container: "c0f"}}, 404, "no process runs in a container", 0},
		{"a thread of the kernel", IsolationRequest{Subject: IsolationSubject{PID: thread}}, 400, "no program is known", 0},
		{"no process", IsolationRequest{Subject: IsolationSubject{PID: 4100000}}, 404, "no process 4100000 runs", 0},
		{"nobody", IsolationRequest{}, 400, "give one of pid, unit and container", 0},
		{"two", IsolationRequest{Subject: IsolationSubject{PID: two, Unit: "x.service"}}, 400, "give one of pid, unit and container", 0},
		{"the first process", IsolationRequest{Subject: IsolationSubject{PID: 1}}, 400, "the first of the machine", 0},
		{"the agent", IsolationRequest{Subject: IsolationSubject{PID: uint32(os.Getpid())}}, 400, "the agent", 0},
		{"a bad exception", IsolationRequest{Subject: IsolationSubject{Unit: "nginx.service"}, Except: []string{"10.0.0.1/8"}}, 400, "write 10.0.0.0/8", 0},
	} {
		got, err := c.Isolate(t.Context(), &tc.request, ApplyOptions{})
		var ae *APIError
		if tc.status != 200 {
			if !errors.As(err, &ae) || ae.Status != tc.status || !strings.Contains(ae.Message, tc.want) {
				t.Errorf("%s: %v, want %d with %q", tc.name, err, tc.status, tc.want)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", tc.name, err)
			continue
		}
		if !strings.HasPrefix(got.Isolation.Subject, tc.want) || got.Isolation.Processes != tc.running || len(got.Cut.Failed) > 0 {
			t.Errorf("%s: %+v, %+v", tc.name, got.Isolation, got.Cut)
		}
		if _, err := c.Release(t.Context(), got.Isolation.Name, ApplyOptions{}); err != nil {
			t.Errorf("%s: %v", tc.name, err)
		}
	}

	// An isolation is a policy, which survives as others do; a policy that is none cannot be released.
	if _, err := c.Apply(t.Context(), "p.yaml", []byte(shadow("isolate-1", "monitor")), nil, ApplyOptions{}); err != nil {
		t.Fatal(err)
	}
	got, err := c.Isolate(t.Context(), &IsolationRequest{Subject: IsolationSubject{Unit: "nginx.service"}, Except: []string{"10.0.0.0/8", "it.example"}}, ApplyOptions{})
	must(t, err)
	if got.Isolation.Name != "isolate-2" || a.set.Load().find("isolate-2") == nil {
		t.Errorf("%+v", got.Isolation)
	}
	var ae *APIError
	if _, err := c.Release(t.Context(), "isolate-1", ApplyOptions{}); !errors.As(err, &ae) || ae.Status != 404 {
		t.Errorf("release a policy that is no isolation: %v", err)
	}
	if _, err := c.SetMode(t.Context(), "isolate-2", "monitor", false); err != nil {
		t.Fatal(err)
	}
	list, err := c.Isolations(t.Context())
	must(t, err)
	if len(list) != 1 || !slices.Equal(list[0].Except, []string{"10.0.0.0/8", "it.example"}) || !slices.Equal(list[0].Open, []string{"everything: its policy is in mode monitor"}) {
		t.Errorf("%+v", list)
	}
}

// TestIsolateRungs holds what is denied, killed and left open to what the machine can.
func TestIsolateRungs(t *testing.T) {
	weak := func(deny bool) func() [pavise.NumOps]policy.Support {
		return func() (m [pavise.NumOps]policy.Support) {
			m = AnyMachine().Ops
			for _, op := range []pavise.Op{pavise.OpAccept, pavise.OpListen, pavise.OpSocket} {
				m[op] = policy.Support{Rung: pavise.RungKillOnReturn, Kill: true, Why: "lsm: not enabled at boot"}
			}
			m[pavise.OpConnect] = policy.Support{Rung: pavise.RungCgroup, Deny: deny, Why: "no cgroup v2"}
			m[pavise.OpSend] = policy.Support{Why: "no rung"}
			return m
		}
	}
	cgroup := func() (m [pavise.NumOps]policy.Support) {
		m = weak(true)()
		for _, op := range []pavise.Op{pavise.OpConnect, pavise.OpBind, pavise.OpSend, pavise.OpSocket} {
			m[op] = policy.Support{Rung: pavise.RungCgroup, Deny: true, Kill: true, Why: "lsm: not enabled at boot"}
		}
		return m
	}
	some := []string{"10.0.0.1", "net.local.port == 22"}
	const accept, listen, udp, others = "net.accept (", "net.listen (new", "UDP sockets that it makes", "families other"
	const raw, rawInet = `net.family == "packet" || net.type == "raw" && net.family != "netlink"`, `net.family in ["ipv4", "ipv6"] && (net.type == "raw" || !(net.protocol in ["tcp", "udp"]))`
	const inet, packet = `net.family in ["ipv4", "ipv6"]`, `net.family == "packet"`
	for _, tc := range []struct {
		name          string
		machine       func() [pavise.NumOps]policy.Support
		except        []string
		kill          bool
		denied, fails string
		sockets       []string // the conditions of the rules on making some
		open          []string
	}{
		{"all can be denied", nil, nil, false, "net.connect net.bind net.listen net.accept net.send", "", []string{raw}, nil},
		{"all, with exceptions", nil, some, false, "net.connect net.bind net.listen net.accept net.send", "", nil, []string{udp}},
		{"some cannot", weak(true), some, false, "net.connect net.bind", "", nil, []string{"net.send (", accept, listen, "raw and packet sockets:", udp, others}},
		{"some can only be killed", weak(true), some, true, "net.connect net.bind net.listen net.accept", "", []string{raw}, []string{"net.send (", "raw and packet sockets that it has already", udp, others}},
		{"the rung cgroup", cgroup, nil, false, "net.connect net.bind net.send", "", []string{inet}, []string{accept, "net.listen (a socket that it has", "packet sockets, and raw sockets that it has", others}},
		{"the rung cgroup, with exceptions", cgroup, some, false, "net.connect net.bind net.send", "", []string{rawInet}, []string{accept, listen, "packet sockets, and raw sockets that it has", udp, others}},
		{"the rung cgroup, and killed", cgroup, nil, true, "net.connect net.bind net.listen net.accept net.send", "", []string{inet, packet}, []string{"raw and packet sockets that it has already", others}},
		{"none", weak(false), some, false, "", "net.connect cannot be denied: no cgroup v2", nil, nil},
	} {
		f := newFake()
		f.machine = tc.machine
		a, c := running(t, f, nil)
		runs(t, f, 1, "/usr/sbin/nginx", "/system.slice/nginx.service", 0, nil)
		eventually(t, "the process is known", func() bool { return len(a.runningProcesses()) == 1 })
		got, err := c.Isolate(t.Context(), &IsolationRequest{Subject: IsolationSubject{Unit: "nginx.service"}, Except: tc.except, Kill: tc.kill}, ApplyOptions{})
		if tc.fails != "" {
			var ae *APIError
			if !errors.As(err, &ae) || ae.Status != 409 || !strings.Contains(ae.Message, tc.fails) {
				t.Errorf("%s: %v", tc.name, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", tc.name, err)
			continue
		}
		var denied, sockets []string
		for _, op := range a.set.Load().find("isolate-1").Default {
			denied = append(denied, op.String())
		}
		for _, r := range a.set.Load().find("isolate-1").Rules {
			if slices.Contains(r.On, pavise.OpSocket) {
				sockets = append(sockets, r.When.Source)
			}
		}
		if !slices.Equal(sockets, tc.sockets) {
			t.Errorf("%s: no sockets are made where %q, want %q", tc.name, sockets, tc.sockets)
		}
		if strings.Join(denied, " ") != tc.denied {
			t.Errorf("%s: denied are %v", tc.name, denied)
		}
		if !slices.EqualFunc(got.Isolation.Open, tc.open, strings.HasPrefix) {
			t.Errorf("%s: open are %q, want %q", tc.name, got.Isolation.Open, tc.open)
		}
		for _, p := range got.Change.Policies {
			for _, r := range p.Rules {
				if r.State != "enforced" && r.Effective != "kill" && (r.Action != "allow" || r.Effective != "") {
					t.Errorf("%s: %s on %s is %s: %s", tc.name, r.Name, r.Op, r.State, r.Why)
				}
			}
		}
	}
}

// TestDestroy lists the connections of this network namespace and ends one of them, and no other.
func TestDestroy(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("not root")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer l.Close()
	var ends [2]net.Conn
	for i := range ends {
		ends[i], err = net.Dial("tcp", l.Addr().String())
		must(t, err)
		defer ends[i].Close()
		o, err := l.Accept()
		must(t, err)
		defer o.Close()
	}
	d, ns, err := openDiag(uint32(os.Getpid()))
	must(t, err)
	defer d.close()
	if here, err := netNSOf(uint32(os.Getpid())); err != nil || here != ns {
		t.Errorf("network namespace %d, not %d: %v", ns, here, err)
	}
	mine, err := socketsOf(uint32(os.Getpid()))
	must(t, err)
	find := func(local string) (found *diagSocket) {
		t.Helper()
		must(t, d.list(unix.AF_INET, unix.IPPROTO_TCP, tcpStates, func(s *diagSocket) {
			if s.local == netip.MustParseAddrPort(local) {
				found = s
			}
		}))
		return found
	}
	s := find(ends[0].LocalAddr().String())
	if s == nil || s.remote.String() != l.Addr().String() || !slices.Contains(mine, s.inode) {
		t.Fatalf("the connection is listed as %v", s)
	}
	switch err := d.destroy(s); {
	case errors.Is(err, unix.EOPNOTSUPP):
		t.Skip("this kernel cannot end connections")
	case err != nil:
		t.Fatal(err)
	}
	_ = ends[0].SetDeadline(time.Now().Add(3 * time.Second))
	if _, err := ends[0].Read(make([]byte, 1)); !errors.Is(err, unix.ECONNABORTED) {
		t.Errorf("a connection that was ended: %v", err)
	}
	if _, err := ends[1].Write([]byte("x")); err != nil || find(ends[1].LocalAddr().String()) == nil {
		t.Errorf("another connection: %v", err)
	}
	if err := d.destroy(s); !errors.Is(err, unix.ENOENT) {
		t.Errorf("ended twice: %v", err)
	}
}

func FuzzReadDiag(f *testing.F) {
	msg := binary.NativeEndian.AppendUint32(nil, 16+diagMsgLen)
	msg = binary.NativeEndian.AppendUint16(msg, sockDiagByFamily)
	msg = append(msg, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, unix.AF_INET6)
	msg = append(msg, make([]byte, diagMsgLen-1)...)
	f.Add(msg)
	f.Add(msg[:40])
	f.Add([]byte{20, 0, 0, 0, unix.NLMSG_ERROR, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0xfe, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		n := 0
		_, err := readDiag(b, 1, func(b []byte) {
			if s, ok := readSocket(b, unix.IPPROTO_TCP); ok && s.local.Addr().Is4In6() {
				t.Errorf("%v", s.local)
			}
			n++
		})
		if n > len(b)/unix.NLMSG_HDRLEN {
			t.Errorf("%d messages in %d bytes: %v", n, len(b), err)
		}
	})
}
