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
		Exe:       FileInfo{Path: "/usr/sbin/nginx", Mode: 0o100755, Dev: 8 << 20, Inode: 1 << 60, Links: 1, FS: "ext4"},
		ExeDigest: "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef", ExeVerity: "sha512:00", Script: "", Args: []string{"nginx", "-g", "daemon off;"}, CWD: "/",
		User: User{ID: 33, Name: "www-data"}, GroupID: 33, RealUID: 33, RealGID: 33, LoginID: login(0),
		Caps: allCapsMask, Namespaces: Namespaces{Mnt: 4026531840, PID: 4026531836, Net: 4026531992, User: 4026531837, Cgroup: 4026531835, UTS: 4026531838, IPC: 4026531839, Host: NSMnt | NSIPC}, OnRoot: true,
		Cgroup: "/system.slice/nginx.service", CgroupID: 1 << 62, Unit: "nginx.service",
		Container:    &Container{ID: strings.Repeat("ab", 32), Runtime: "docker", Name: "web", Image: "nginx:1.27", Labels: map[string]string{"b": "2", "a": "1"}},
		Pod:          &Pod{Namespace: "shop", Name: "web-0", Labels: map[string]string{"app": "web"}},
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
	shadow := sampleFile()
	shadow.Monitor, shadow.Shadow, shadow.Active = true, DecisionDeny, DecisionAllow
	unix := sampleNet()
	unix.Net = NetInfo{Family: FamilyUnix, Type: TypeDgram, RemotePath: "@a\x00b", LocalPath: "/run/x"}
	odd := sampleNet()
	odd.Net = NetInfo{Family: 17, Type: 10, Protocol: 132, Remote: netip.MustParseAddr("2001:db8::1").As16()}
	any6 := sampleNet()
	any6.Op, any6.Net = OpBind, NetInfo{Family: FamilyIPv6, Type: TypeStream, Protocol: ProtocolTCP, LocalPort: 80}
	established := sampleNet()
	established.Net.Established = true
	hostile := sampleFile()
	hostile.File.Path = "/tmp/\x1b[2J\x9b\u009b\u202e\"\\\n\x00é\ufffd\U0001F600"
	hostile.File.Access = 0xff
	hostile.Process.Args = []string{"\x1b]0;x\a", "\xff"}
	hostile.Process.Caps = 1<<63 | 1<<21
	p := sampleProcess()
	p.ExitTime = 5
	all := []*Event{
		sampleFile(), sampleNet(), shadow, unix, odd, any6, established, hostile, {},
		{Op: OpExec, Process: p, PID: p.PID, ExecID: p.ExecID},
		{Op: OpExec, Action: ActionAudit, Process: p, PID: p.PID, ExecID: p.ExecID, File: FileInfo{Path: "/bin/sh"}},
		{Op: OpExit, Process: p, PID: p.PID, ExecID: p.ExecID, Exit: ExitInfo{Code: 1, Signal: 9}},
		{Op: OpLost, Lost: LostInfo{Op: OpOpen, Where: "kernel-ring", Policy: "p", Count: 1 << 40}},
		{Op: OpOpen, PID: 7, ExecID: 8, File: FileInfo{Path: "/x"}},
		{Op: 200, Action: 200, Rung: 200},
	}
	for _, c := range acts() {
		all = append(all, c.e)
	}
	return all
}

// act is an event about what no socket is.
func act(op Op, path string, a ActInfo) *Event {
	e := &Event{ID: 1, Op: op, Action: ActionDeny, Rung: RungLSM, PID: 7, ExecID: 8, Process: &Process{PID: 7, ExecID: 8}, Act: a}
	if path != "" {
		e.File = FileInfo{Path: path, Mode: 0o100644, Inode: 5, FS: "ext4"}
	}
	return e
}

// acts has an event of every operation that is judged, and what its JSON and text say of the act.
func acts() []struct {
	e          *Event
	json, text string
} {
	const file = `"file":{"path":"/a","mode":33188,"owner":0,"dev":0,"inode":"5","links":0,"fs":"ext4"`
	nginx := Target{ExecID: 9, PID: 123, UID: 33, Path: "/usr/sbin/nginx"}
	const target = `"target":{"exec_id":"9","pid":123,"user":{"id":33},"exe":{"path":"/usr/sbin/nginx"}}`
	socket := act(OpSocket, "", ActInfo{})
	socket.Net = NetInfo{Family: FamilyIPv4, Type: TypeRaw, Protocol: ProtocolICMP}
	bind := act(OpBind, "", ActInfo{})
	bind.Net = NetInfo{Family: 16, Type: TypeRaw}
	connect := act(OpConnect, "", ActInfo{Target: Target{ExecID: 9, PID: 123, Path: "/usr/sbin/nginx"}})
	connect.Net = NetInfo{Family: FamilyIPv4, Type: TypeStream, Protocol: ProtocolTCP, Remote: netip.MustParseAddr("127.0.0.1").As16(), RemotePort: 80}
	unknown := act(OpConnect, "", ActInfo{Target: Target{PID: 123}})
	unknown.Net = connect.Net
	accept := act(OpAccept, "", connect.Act)
	accept.Net = connect.Net
	accept.Net.Local, accept.Net.LocalPort, accept.Net.Interface = accept.Net.Remote, 81, "lo"
	device, sysctl := act(OpDevice, "/a", ActInfo{Value: 8, Value2: 1}), act(OpSysctl, "/a", ActInfo{Name: "kernel/core_pattern"})
	device.File.Access, sysctl.File.Access = AccessRead|AccessWrite, AccessWrite
	open := act(OpOpen, "/a", ActInfo{})
	open.File.Access = AccessRead
	return []struct {
		e          *Event
		json, text string
	}{
		{act(OpExec, "/a", ActInfo{}), file + `}`, "/a"},
		{act(OpExec, "/a", ActInfo{Name: "a\x00-i\x00\x00"}), file + `},"exec":{"args":["a","-i",""]}`, `/a (a -i "")`},
		{act(OpExec, "/a", ActInfo{Name: "a\x00b"}), file + `},"exec":{"args":["a","b"],"args_truncated":true}`, "/a (a b …)"},
		{open, `"file":{"path":"/a","access":["read"],"mode":33188,"owner":0,"dev":0,"inode":"5","links":0,"fs":"ext4"}`, "/a (read)"},
		{connect, `"net":{"family":"ipv4","type":"stream","protocol":"tcp","remote":{"address":"127.0.0.1","port":80,"process":{"exec_id":"9","pid":123,"exe":{"path":"/usr/sbin/nginx"}}}}`, "tcp -> 127.0.0.1:80 -> nginx[123]"},
		{unknown, `"net":{"family":"ipv4","type":"stream","protocol":"tcp","remote":{"address":"127.0.0.1","port":80,"process":{"exec_id":"0","pid":123}}}`, "tcp -> 127.0.0.1:80 -> ?[123]"},
		{accept, `"net":{"family":"ipv4","type":"stream","protocol":"tcp","remote":{"address":"127.0.0.1","port":80,"process":{"exec_id":"9","pid":123,"exe":{"path":"/usr/sbin/nginx"}}},"local":{"address":"127.0.0.1","port":81},"interface":"lo"}`, "tcp 127.0.0.1:81 <- 127.0.0.1:80 <- nginx[123] on lo"},
		{bind, `"net":{"family":"netlink","type":"raw"}`, "family netlink"},
		{socket, `"net":{"family":"ipv4","type":"raw","protocol":"icmp"}`, "ipv4 raw icmp"},
		{act(OpSignal, "", ActInfo{Value: 9, Target: nginx}), `"signal":"SIGKILL",` + target, "SIGKILL -> nginx[123]"},
		{act(OpSignal, "", ActInfo{Value: 0, Target: Target{PID: 5}}), `"signal":"0","target":{"exec_id":"0","pid":5,"user":{"id":0}}`, "0 -> ?[5]"},
		{act(OpSignal, "", ActInfo{Value: 37}), `"signal":"SIGRTMIN+3","target":{"exec_id":"0","pid":0,"user":{"id":0}}`, "SIGRTMIN+3 -> ?[0]"},
		{act(OpPtrace, "", ActInfo{Value: PtraceAttach, Target: nginx}), `"ptrace":{"mode":"attach"},` + target, "attach -> nginx[123]"},
		{act(OpSetid, "", ActInfo{Value: 0, Value2: Unchanged}), `"setid":{"user":{"id":0},"group":{"id":4294967295}}`, "user 0"},
		{act(OpSetid, "", ActInfo{Value: Unchanged, Value2: 5}), `"setid":{"user":{"id":4294967295},"group":{"id":5}}`, "group 5"},
		{act(OpCapset, "", ActInfo{Value: 1 << 21, Value2: allCapsMask}), `"capset":{"effective":["CAP_SYS_ADMIN"],"permitted":` + allCaps + `}`, "effective CAP_SYS_ADMIN permitted all"},
		{act(OpCapset, "", ActInfo{}), `"capset":{"effective":[],"permitted":[]}`, "effective none permitted none"},
		{act(OpMemExec, "", ActInfo{Value: MemAnonymous | MemStack}), `"memory":{"anonymous":true,"stack":true}`, "(anonymous,stack)"},
		{act(OpMemExec, "/a", ActInfo{Value: MemWritten}), file + `},"memory":{"written":true}`, "/a (written)"},
		{act(OpCreate, "/a", ActInfo{}), file + `}`, "/a"},
		{act(OpDelete, "/a", ActInfo{}), file + `}`, "/a"},
		{act(OpRename, "/a", ActInfo{NewPath: "/b c"}), file + `,"new_path":"/b c"}`, `/a -> "/b c"`},
		{act(OpLink, "/a", ActInfo{NewPath: "/b"}), file + `,"new_path":"/b"}`, `/a -> /b`},
		{act(OpSymlink, "/a", ActInfo{Name: "../etc"}), file + `,"target":"../etc"}`, `/a -> ../etc`},
		{act(OpTruncate, "/a", ActInfo{}), file + `}`, "/a"},
		{act(OpChmod, "/a", ActInfo{Value: 0o4755}), file + `,"new_mode":2541}`, "/a to 04755"},
		{act(OpChown, "/a", ActInfo{Value: 0, Value2: Unchanged}), file + `,"new_owner":0,"new_group":4294967295}`, "/a to 0"},
		{act(OpChown, "/a", ActInfo{Value: Unchanged, Value2: 3}), file + `,"new_owner":4294967295,"new_group":3}`, "/a to :3"},
		{act(OpSetxattr, "/a", ActInfo{Name: "security.capability"}), file + `,"xattr":"security.capability"}`, "/a (security.capability)"},
		{act(OpMount, "/a", ActInfo{NewPath: "/dev/sdb1", Name: "ext4", Value: MountNosuid | 1<<30}), file + `},"mount":{"source":"/dev/sdb1","type":"ext4","flags":["nosuid","1073741824"]}`, "/dev/sdb1 on /a (ext4, nosuid, 1073741824)"},
		{act(OpMount, "/a", ActInfo{}), file + `},"mount":{"source":""}`, "/a"},
		{act(OpUmount, "/a", ActInfo{}), file + `}`, "/a"},
		{act(OpChroot, "/a", ActInfo{}), file + `}`, "/a"},
		{act(OpPivotRoot, "/a", ActInfo{NewPath: "/a/old"}), file + `,"new_path":"/a/old"}`, "/a, old root to /a/old"},
		{act(OpModule, "/a", ActInfo{Value: SourceFile}), file + `},"module":{"source":"file"}`, "/a from file"},
		{act(OpModule, "", ActInfo{Value: SourceRequest, Name: "net-pf-10"}), `"module":{"source":"request","name":"net-pf-10"}`, "net-pf-10 from request"},
		{act(OpKexec, "", ActInfo{Value: SourceMemory}), `"kexec":{"source":"memory"}`, "from memory"},
		{act(OpBPF, "", ActInfo{Value: 5}), `"bpf":{"command":"prog_load"}`, "prog_load"},
		{act(OpBPF, "", ActInfo{Value: 99}), `"bpf":{"command":"99"}`, "99"},
		{act(OpPerf, "", ActInfo{Value: 2}), `"perf":{"type":"kernel"}`, "kernel"},
		{act(OpKeyring, "", ActInfo{Name: "user", NewPath: "k 1"}), `"key":{"type":"user","description":"k 1"}`, `user "k 1"`},
		{act(OpUserns, "", ActInfo{}), ``, ""},
		{act(OpIOUring, "", ActInfo{Value: 2}), `"io_uring":{"request":"sqpoll"}`, "sqpoll"},
		{sysctl, `"file":{"path":"/a","access":["write"],"mode":33188,"owner":0,"dev":0,"inode":"5","links":0,"fs":"ext4"},"sysctl":{"name":"kernel/core_pattern"}`, "/a (write) kernel/core_pattern"},
		{device, `"file":{"path":"/a","access":["read","write"],"mode":33188,"owner":0,"dev":0,"inode":"5","links":0,"fs":"ext4"},"device":{"major":8,"minor":1}`, "/a (read,write) 8:1"},
	}
}

// TestActs holds the forms of every operation, and that what is known of an act comes back from its JSON.
func TestActs(t *testing.T) {
	seen := map[Op]bool{OpConnect: true, OpListen: true, OpAccept: true, OpSend: true} // as OpBind
	for _, c := range acts() {
		seen[c.e.Op] = true
		b := string(c.e.AppendJSON(nil))
		head := string((&Event{ID: 1, Op: c.e.Op, Action: ActionDeny, Rung: RungLSM, Process: c.e.Process}).AppendJSON(nil))
		head, _, _ = strings.Cut(head, `"links":0,`)
		head = head[:strings.Index(head, `"real_gid":0`)+len(`"real_gid":0`)]
		want := head + "}}"
		if c.json != "" {
			want = head + "}," + c.json + "}"
		}
		if b != want {
			t.Errorf("%s: got  %s\nwant %s", c.e.Op, b, want)
		}
		line := string(c.e.AppendTextIn(nil, false, time.UTC))
		_, line, _ = strings.Cut(line, "(kernel)[7] 0")
		if line = strings.TrimSpace(line); line != c.text {
			t.Errorf("%s: got  %s\nwant %s", c.e.Op, line, c.text)
		}
		var back Event
		if err := json.Unmarshal([]byte(b), &back); err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(&back, c.e) {
			t.Errorf("%s: got  %+v\nwant %+v", c.e.Op, back, c.e)
		}
	}
	for op := OpExec; op < OpFork; op++ {
		if !seen[op] {
			t.Errorf("no event of %s", op)
		}
	}
}

func TestJSONForm(t *testing.T) {
	e := sampleFile()
	e.Process.Caps = 1 << 21
	want := `{"id":9,"time":"2026-01-01T00:00:00.123456789Z","op":"file.open","action":"deny","rung":"lsm","policy":"secrets","rule":"shadow","severity":"high","message":"reads the shadow file","matched":1,"count":3,` +
		`"process":{"exec_id":"9223372036854775885","pid":1234,"start_time":"2026-01-01T00:00:00.000000001Z","exe":{"path":"/usr/sbin/nginx","mode":33261,"owner":0,"dev":8388608,"inode":"1152921504606846976","links":1,"fs":"ext4"},` +
		`"exe_digest":"sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef","exe_verity":"sha512:00","args":["nginx","-g","daemon off;"],"cwd":"/","user":{"id":33,"name":"www-data"},"group_id":33,"real_uid":33,"real_gid":33,"login_id":0,"caps":["CAP_SYS_ADMIN"],"on_root":true,` +
		`"namespaces":{"mnt":4026531840,"pid":4026531836,"net":4026531992,"user":4026531837,"cgroup":4026531835,"uts":4026531838,"ipc":4026531839,"host":["mnt","ipc"]},` +
		`"cgroup":"/system.slice/nginx.service","cgroup_id":"4611686018427387904","unit":"nginx.service","container":{"id":"` + strings.Repeat("ab", 32) + `","runtime":"docker","name":"web","image":"nginx:1.27","labels":{"a":"1","b":"2"}},"pod":{"namespace":"shop","name":"web-0","labels":{"app":"web"}},` +
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
	shadow := sampleFile()
	shadow.Monitor, shadow.Shadow, shadow.Active = true, DecisionWouldDeny, DecisionKill
	for _, e := range []*Event{sampleFile(), sampleNet(), shadow} { // valid UTF-8: nothing is lost
		var back Event
		if err := json.Unmarshal(e.AppendJSON(nil), &back); err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(&back, e) {
			t.Errorf("got  %+v\nwant %+v", back, e)
		}
	}
	var back Event
	for _, bad := range []string{`[]`, `{"op":"x"}`, `{"action":"x"}`, `{"shadow":"x"}`, `{"active":"x"}`, `{"net":{"family":"x"}}`, `{"net":{"family":"ipv4","remote":{"address":"x"}}}`, `{"file":{"access":["x"]}}`, `{"process":{"caps":["CAP_99"]}}`,
		`{"op":"process.signal","signal":"SIGNOT"}`, `{"op":"process.ptrace","ptrace":{"mode":"x"}}`, `{"op":"process.capset","capset":{"permitted":["x"]}}`,
		`{"op":"fs.mount","mount":{"flags":["x"]}}`, `{"op":"kernel.module","module":{"source":"x"}}`, `{"op":"kernel.bpf","bpf":{"command":"x"}}`} {
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
	for op := range NumOps {
		f.Add("/a", "\x1b", "x y", uint8(op), uint8(3), uint16(16), []byte{}, uint64(1)<<63|uint64(op), int64(0))
	}
	f.Fuzz(func(t *testing.T, path, arg, unit string, op, action uint8, family uint16, addr []byte, n uint64, when int64) {
		e := &Event{
			ID: n, Time: when, Op: Op(op), Action: Action(action), Monitor: n&1 != 0, Rung: Rung(action), Matched: uint8(n), Count: n, Policy: unit, Rule: arg, Message: path,
			File: FileInfo{Path: path, Alias: arg, Access: Access(n), Mode: uint16(n), Owner: uint32(n), Inode: n, FS: unit},
			Net:  NetInfo{Family: family, Type: op, Protocol: action, RemotePort: uint16(n), RemotePath: path, LocalPath: arg},
			Lost: LostInfo{Op: Op(action), Where: arg, Policy: unit, Count: n}, Exit: ExitInfo{Code: op, Signal: action},
			Act: ActInfo{Value: n, Value2: n >> 3, NewPath: arg, Name: unit, Target: Target{ExecID: n, PID: uint32(n), UID: uint32(n), Path: path}},
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
				Pod:       &Pod{Namespace: arg, Name: path, Labels: map[string]string{arg: unit}},
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
