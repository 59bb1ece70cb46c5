package pavise

import (
	"bytes"
	"encoding/json"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"
)

func login(id uint32) *uint32 { return &id }

func sampleProcess() *Process {
	parent := &Process{ExecID: 1<<63 + 1, PID: 1, Exe: FileInfo{Path: "/usr/lib/systemd/systemd"}}
	return &Process{
		ExecID: 1<<63 + 77, PID: 1234, StartTime: 1767225600000000001,
		Exe:    FileInfo{Path: "/usr/sbin/nginx", Mode: 0o100755, Dev: 8 << 20, Inode: 1 << 60, Links: 1, FS: "ext4"},
		Script: "", Args: []string{"nginx", "-g", "daemon off;"}, CWD: "/",
		User: User{ID: 33, Name: "www-data"}, GroupID: 33, RealUID: 33, RealGID: 33, LoginID: login(0),
		Caps: allCapsMask, Namespaces: Namespaces{Mnt: 4026531840, PID: 4026531836, Net: 4026531992, User: 4026531837, Cgroup: 4026531835, UTS: 4026531838, IPC: 4026531839},
		Cgroup: "/system.slice/nginx.service", CgroupID: 1 << 62, Unit: "nginx.service",
		Container:    &Container{ID: strings.Repeat("ab", 32), Runtime: "docker", Labels: map[string]string{"b": "2", "a": "1"}},
		ParentExecID: parent.ExecID, Parent: parent,
	}
}

func sampleFile() *Event {
	p := sampleProcess()
	return &Event{
		ID: 9, Time: 1767225600123456789, Op: OpOpen, Action: ActionDeny, Rung: RungLSM, Policy: "secrets", Rule: "shadow",
		Severity: "high", Message: "reads the shadow file", Matched: 1, Count: 3, PID: p.PID, ExecID: p.ExecID, Process: p,
		File: FileInfo{Path: "/etc/shadow", Access: AccessRead | AccessWrite, Mode: 0o100640, Owner: 0, Dev: 8<<20 | 1, Inode: 1<<63 + 3, Links: 2, FS: "ext4"},
	}
}

func sampleNet() *Event {
	p := sampleProcess()
	return &Event{
		ID: 10, Time: 1767225600123456789, Op: OpConnect, Action: ActionKill, Monitor: true, Rung: RungCgroup, Policy: "egress", Rule: "internet",
		Matched: 1, Count: 1, PID: p.PID, ExecID: p.ExecID, Process: p,
		Net: NetInfo{
			Family: FamilyIPv4, Type: TypeStream, Protocol: ProtocolTCP, RemotePort: 443, LocalPort: 51234,
			Remote: netip.MustParseAddr("::ffff:192.0.2.7").As16(), Local: netip.MustParseAddr("::ffff:10.0.0.2").As16(),
		},
	}
}

func samples() []*Event {
	unix := sampleNet()
	unix.Net = NetInfo{Family: FamilyUnix, Type: TypeDgram, RemotePath: "@a\x00b", LocalPath: "/run/x"}
	odd := sampleNet()
	odd.Net = NetInfo{Family: 17, Type: 10, Protocol: 132, Remote: netip.MustParseAddr("2001:db8::1").As16()}
	any6 := sampleNet()
	any6.Op, any6.Net = OpBind, NetInfo{Family: FamilyIPv6, Type: TypeStream, Protocol: ProtocolTCP, LocalPort: 80}
	hostile := sampleFile()
	hostile.File.Path = "/tmp/\x1b[2J\x9b\u009b\u202e\"\\\n\x00é\ufffd\U0001F600"
	hostile.File.Access = 0xff
	hostile.Process.Args = []string{"\x1b]0;x\a", "\xff"}
	hostile.Process.Caps = 1<<63 | 1<<21
	p := sampleProcess()
	p.ExitTime = 5
	return []*Event{
		sampleFile(), sampleNet(), unix, odd, any6, hostile, {},
		{Op: OpExec, Process: p, PID: p.PID, ExecID: p.ExecID},
		{Op: OpExec, Action: ActionAudit, Process: p, PID: p.PID, ExecID: p.ExecID, File: FileInfo{Path: "/bin/sh"}},
		{Op: OpExit, Process: p, PID: p.PID, ExecID: p.ExecID, Exit: ExitInfo{Code: 1, Signal: 9}},
		{Op: OpLost, Lost: LostInfo{Op: OpOpen, Where: "kernel-ring", Policy: "p", Count: 1 << 40}},
		{Op: OpOpen, PID: 7, ExecID: 8, File: FileInfo{Path: "/x"}},
		{Op: 200, Action: 200, Rung: 200},
	}
}

func TestJSONForm(t *testing.T) {
	e := sampleFile()
	e.Process.Caps = 1 << 21
	want := `{"id":9,"time":"2026-01-01T00:00:00.123456789Z","op":"file.open","action":"deny","rung":"lsm","policy":"secrets","rule":"shadow","severity":"high","message":"reads the shadow file","matched":1,"count":3,` +
		`"process":{"exec_id":"9223372036854775885","pid":1234,"start_time":"2026-01-01T00:00:00.000000001Z","exe":{"path":"/usr/sbin/nginx","mode":33261,"owner":0,"dev":8388608,"inode":"1152921504606846976","links":1,"fs":"ext4"},` +
		`"args":["nginx","-g","daemon off;"],"cwd":"/","user":{"id":33,"name":"www-data"},"group_id":33,"real_uid":33,"real_gid":33,"login_id":0,"caps":["CAP_SYS_ADMIN"],` +
		`"namespaces":{"mnt":4026531840,"pid":4026531836,"net":4026531992,"user":4026531837,"cgroup":4026531835,"uts":4026531838,"ipc":4026531839},` +
		`"cgroup":"/system.slice/nginx.service","cgroup_id":"4611686018427387904","unit":"nginx.service","container":{"id":"` + strings.Repeat("ab", 32) + `","runtime":"docker","labels":{"a":"1","b":"2"}},` +
		`"parent_exec_id":"9223372036854775809","parent":{"exec_id":"9223372036854775809","pid":1,"exe":{"path":"/usr/lib/systemd/systemd"}}},` +
		`"file":{"path":"/etc/shadow","access":["read","write"],"mode":33184,"owner":0,"dev":8388609,"inode":"9223372036854775811","links":2,"fs":"ext4"}}`
	if got := string(e.AppendJSON(nil)); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	n := sampleNet()
	n.Process = nil
	want = `{"id":10,"time":"2026-01-01T00:00:00.123456789Z","op":"net.connect","action":"kill","monitor":true,"rung":"cgroup","policy":"egress","rule":"internet","matched":1,"count":1,` +
		`"process":{"exec_id":"9223372036854775885","pid":1234,"unknown":true},` +
		`"net":{"family":"ipv4","type":"stream","protocol":"tcp","remote":{"address":"192.0.2.7","port":443},"local":{"address":"10.0.0.2","port":51234}}}`
	if got := string(n.AppendJSON(nil)); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if got := string((&Event{Op: OpFork}).AppendJSON(nil)); got != `{"id":0,"time":"1970-01-01T00:00:00.000000000Z","op":"process.fork"}` {
		t.Error(got)
	}
}

// checkJSON holds what must be true of every event.
func checkJSON(t *testing.T, e *Event) {
	t.Helper()
	b := e.AppendJSON(nil)
	if !json.Valid(b) {
		t.Fatalf("invalid: %q", b)
	}
	for _, r := range string(b) {
		if r < 0x20 || r == 0x7f || r > 0x7f && hostileRune(r) {
			t.Fatalf("%U in %q", r, b)
		}
	}
	var back Event
	if err := json.Unmarshal(b, &back); err != nil {
		t.Fatalf("%v: %s", err, b)
	}
	if again := back.AppendJSON(nil); !bytes.Equal(again, b) {
		t.Fatalf("wrote %s\nthen  %s", b, again)
	}
	line := e.AppendTextIn(nil, false, time.UTC)
	for _, r := range string(line) {
		if r < 0x20 || r == 0x7f || r > 0x7f && hostileRune(r) {
			t.Fatalf("%U in %q", r, line)
		}
	}
}

func TestJSONRoundTrip(t *testing.T) {
	for _, e := range samples() {
		checkJSON(t, e)
	}
	for _, e := range []*Event{sampleFile(), sampleNet()} { // valid UTF-8: nothing is lost
		var back Event
		if err := json.Unmarshal(e.AppendJSON(nil), &back); err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(&back, e) {
			t.Errorf("got  %+v\nwant %+v", back, e)
		}
	}
	var back Event
	for _, bad := range []string{`[]`, `{"op":"x"}`, `{"action":"x"}`, `{"net":{"family":"x"}}`, `{"net":{"family":"ipv4","remote":{"address":"x"}}}`, `{"file":{"access":["x"]}}`, `{"process":{"caps":["CAP_99"]}}`} {
		if json.Unmarshal([]byte(bad), &back) == nil {
			t.Errorf("read %s", bad)
		}
	}
}

func TestJSONMatchesEncodingJSON(t *testing.T) {
	e := sampleFile()
	viaStd, err := json.Marshal(e)
	if err != nil || !bytes.Equal(viaStd, e.AppendJSON(nil)) {
		t.Errorf("%v: %s", err, viaStd)
	}
	byValue, err := json.Marshal(map[string]any{"e": *e, "p": *e.Process})
	if want := `{"e":` + string(viaStd) + `,"p":` + string(e.Process.AppendJSON(nil)) + `}`; err != nil || string(byValue) != want {
		t.Errorf("%v: %s", err, byValue)
	}
}

func FuzzAppendJSON(f *testing.F) {
	f.Add("/etc/passwd", "arg", "unit", uint8(2), uint8(3), uint16(2), []byte{1, 2, 3}, uint64(1), int64(5))
	f.Add("\x1b[2J\xff\u009b", "\u2028\u202e", "\"\\", uint8(3), uint8(4), uint16(1), []byte{}, uint64(1)<<63, int64(-1))
	f.Add("\xf0\x9f\x98", "\ufffd\xed\xa0\x80", "</script>", uint8(9), uint8(0), uint16(10), bytes.Repeat([]byte{255}, 32), uint64(0), int64(1)<<62)
	f.Fuzz(func(t *testing.T, path, arg, unit string, op, action uint8, family uint16, addr []byte, n uint64, when int64) {
		e := &Event{
			ID: n, Time: when, Op: Op(op), Action: Action(action), Monitor: n&1 != 0, Rung: Rung(action), Matched: uint8(n), Count: n, Policy: unit, Rule: arg, Message: path,
			File: FileInfo{Path: path, Alias: arg, Access: Access(n), Mode: uint16(n), Owner: uint32(n), Inode: n, FS: unit},
			Net:  NetInfo{Family: family, Type: op, Protocol: action, RemotePort: uint16(n), RemotePath: path, LocalPath: arg},
			Lost: LostInfo{Op: Op(action), Where: arg, Policy: unit, Count: n}, Exit: ExitInfo{Code: op, Signal: action},
			PID: uint32(n), ExecID: n,
		}
		copy(e.Net.Remote[:], addr)
		if len(addr) > 16 {
			copy(e.Net.Local[:], addr[16:])
		}
		if n%3 != 0 {
			e.Process = &Process{
				ExecID: n, PID: uint32(n), Unknown: n%3 == 2, StartTime: when, Exe: FileInfo{Path: path}, Args: []string{arg, path}, CWD: arg, Unit: unit,
				User: User{ID: uint32(n), Name: arg}, Caps: n, CgroupID: n, ParentExecID: n, ExitTime: when,
				Parent:    &Process{ExecID: n, Exe: FileInfo{Path: path}},
				Container: &Container{ID: unit, Name: arg, Labels: map[string]string{path: arg}},
			}
		}
		checkJSON(t, e)
	})
}

func BenchmarkAppendJSON(b *testing.B) {
	for _, c := range []struct {
		name string
		e    *Event
	}{{"file", sampleFile()}, {"net", sampleNet()}} {
		buf := make([]byte, 0, 4096)
		if n := testing.AllocsPerRun(100, func() { buf = c.e.AppendJSON(buf[:0]) }); n != 0 {
			b.Errorf("%s: %v allocations", c.name, n)
		}
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				buf = c.e.AppendJSON(buf[:0])
			}
			b.SetBytes(int64(len(buf)))
			b.ReportMetric(2000, "budget-ns/op")
		})
	}
}

func TestAppendJSONAllocatesNothing(t *testing.T) {
	buf := make([]byte, 0, 8192)
	for i, e := range samples() {
		if n := testing.AllocsPerRun(20, func() { buf = e.AppendJSON(buf[:0]) }); n != 0 && i != 3 && e.Op < NumOps { // 3: numbers without names
			t.Errorf("%s: %v allocations", buf, n)
		}
	}
}
