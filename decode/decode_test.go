package decode

import (
	"bytes"
	"errors"
	"reflect"
	"strings"
	"testing"
	"unsafe"

	"github.com/cilium/ebpf/btf"

	pavise "github.com/pavise-project/pavise"
	"github.com/pavise-project/pavise/bpf"
)

// encode writes a record as the kernel does.
func encode[T any](r *T, hdr *bpf.KernelRecHdr, strs ...string) []byte {
	size := int(unsafe.Sizeof(*r))
	hdr.Len = uint32(size + len(strings.Join(strs, "")))
	b := bytes.Clone(unsafe.Slice((*byte)(unsafe.Pointer(r)), size))
	for _, s := range strs {
		b = append(b, s...)
	}
	return b
}

func header0(kind bpf.KernelRecKind, op pavise.Op) bpf.KernelRecHdr {
	return bpf.KernelRecHdr{
		Kind: uint8(kind), Op: uint8(op), Time: 500, ExecId: 1<<63 | 9, Pid: 42, Tid: 43, Count: 2, Gen: 7,
		Matched: 1, Rules: [4]uint32{11, 12, 13, 14},
	}
}

func fileRec(path, alias, fs string) []byte {
	r := bpf.KernelRecFile{Hdr: header0(bpf.KernelRecKindREC_FILE, pavise.OpOpen), PathLen: uint16(len(path)), AliasLen: uint16(len(alias)), FsLen: uint8(len(fs))}
	r.Hdr.Action, r.Hdr.Rung, r.Hdr.Flags = uint8(pavise.ActionDeny), uint8(pavise.RungLSM), recMonitor
	r.Inode.Ino, r.Inode.Dev, r.Inode.Links, r.Inode.Owner, r.Inode.Mode = 1<<63|5, 8<<20|1, 2, 1000, 0o100644
	r.Inode.Access, r.Inode.Flags = uint8(pavise.AccessWrite|pavise.AccessAppend), fileDeleted|fileTruncated
	return encode(&r, &r.Hdr, path, alias, fs)
}

// actRec is a verdict on an operation with everything that any of them carries.
func actRec(op pavise.Op, path, alias, newPath, name, target, fs string) []byte {
	r := bpf.KernelRecFile{
		Hdr: header0(bpf.KernelRecKindREC_FILE, op), Value: 1<<63 | 1, Value2: 2, TargetExecId: 1<<63 | 3, TargetPid: 4, TargetUid: 5,
		PathLen: uint16(len(path)), AliasLen: uint16(len(alias)), NewLen: uint16(len(newPath)), NameLen: uint16(len(name)), TargetLen: uint16(len(target)), FsLen: uint8(len(fs)),
	}
	r.Hdr.Action, r.Hdr.Rung = uint8(pavise.ActionDeny), uint8(pavise.RungLSM)
	return encode(&r, &r.Hdr, path, alias, newPath, name, target, fs)
}

func netRec(remote, local, target, device string) []byte {
	r := bpf.KernelRecNet{Hdr: header0(bpf.KernelRecKindREC_NET, pavise.OpConnect), Family: 10, Type: 1, Protocol: 6, RemotePort: 443, LocalPort: 5, RemotePathLen: uint16(len(remote)), LocalPathLen: uint16(len(local)),
		TargetExecId: 1<<63 | 3, TargetPid: 4, TargetLen: uint16(len(target)), InterfaceLen: uint8(len(device))}
	r.Hdr.Action = uint8(pavise.ActionKill)
	r.Remote[0], r.Remote[15], r.Local[15] = 0x20, 1, 2
	return encode(&r, &r.Hdr, remote, local, target, device)
}

func procRec(op pavise.Op, flags uint8, path, script, args, cwd, cgroup, fs, digest, verity string) []byte {
	r := bpf.KernelRecProc{
		Hdr: header0(bpf.KernelRecKindREC_PROC, op), ParentExecId: 8, StartTime: 400, Caps: 3, CgroupId: 77,
		ParentPid: 41, Uid: 1, Gid: 2, Euid: 3, Egid: 4, Login: 5, NsHost: 0x41,
		PathLen: uint16(len(path)), ScriptLen: uint16(len(script)), ArgsLen: uint16(len(args)), CwdLen: uint16(len(cwd)), CgroupLen: uint16(len(cgroup)), FsLen: uint8(len(fs)), DigestLen: uint8(len(digest)), VerityLen: uint8(len(verity)),
		Flags: procMemfd | procSecure | procTTY | procArgsCut | procOnRoot,
	}
	r.Ns.Mnt, r.Ns.Pid, r.Ns.Net, r.Ns.User, r.Ns.Cgroup, r.Ns.Uts, r.Ns.Ipc = 1, 2, 3, 4, 5, 6, 7
	r.Hdr.Flags, r.Exe.Ino = flags, 99
	for i, c := range "bash" {
		r.Comm[i] = int8(c)
	}
	return encode(&r, &r.Hdr, path, script, args, cwd, cgroup, fs, digest, verity)
}

func exitRec(code uint32) []byte {
	r := bpf.KernelRecExit{Hdr: header0(bpf.KernelRecKindREC_EXIT, pavise.OpExit), Code: code}
	return encode(&r, &r.Hdr)
}

func records() map[string][]byte {
	return map[string][]byte{
		"file": fileRec("/etc/shadow", "/srv/x", "ext4"),
		"act":  actRec(pavise.OpMount, "/mnt", "/m", "/dev/sdb1", "ext4", "/usr/bin/x", "tmpfs"),
		"none": actRec(pavise.OpUserns, "", "", "", "", "", ""),
		"net":  netRec("", "", "/usr/bin/x", "eth0"),
		"unix": netRec("@abs\x00tract", "/run/sock", "/usr/bin/x", ""),
		"exec": procRec(pavise.OpExec, recFound, "/bin/bash", "/x.sh", "bash\x00-c\x00id\x00", "/root", "/system.slice/a.service", "overlay", "sha256:01", "sha512:02"),
		"fork": procRec(pavise.OpFork, recThread, "", "", "", "", "", "", "", ""),
		"exit": exitRec(3<<8 | 0x80 | 11),
	}
}

func TestDecode(t *testing.T) {
	base := pavise.Event{Time: 1500, Matched: 1, Gen: 7, Count: 2, PID: 42, TID: 43, ExecID: 1<<63 | 9, RuleIDs: [4]uint32{11, 12, 13, 14}}
	file := base
	file.Op, file.Action, file.Rung, file.Monitor = pavise.OpOpen, pavise.ActionDeny, pavise.RungLSM, true
	file.File = pavise.FileInfo{
		Path: "/etc/shadow", Alias: "/srv/x", FS: "ext4", Deleted: true, Truncated: true, Access: pavise.AccessWrite | pavise.AccessAppend,
		Mode: 0o100644, Owner: 1000, Dev: 8<<20 | 1, Inode: 1<<63 | 5, Links: 2,
	}
	act := base
	act.Op, act.Action, act.Rung = pavise.OpMount, pavise.ActionDeny, pavise.RungLSM
	act.File = pavise.FileInfo{Path: "/mnt", Alias: "/m", FS: "tmpfs"}
	act.Act = pavise.ActInfo{
		Value: 1<<63 | 1, Value2: 2, NewPath: "/dev/sdb1", Name: "ext4", Target: pavise.Target{ExecID: 1<<63 | 3, PID: 4, UID: 5, Path: "/usr/bin/x"},
	}
	none := act
	none.Op, none.File = pavise.OpUserns, pavise.FileInfo{}
	none.Act.NewPath, none.Act.Name, none.Act.Target.Path = "", "", ""
	network := base
	network.Op, network.Action = pavise.OpConnect, pavise.ActionKill
	network.Act.Target = pavise.Target{ExecID: 1<<63 | 3, PID: 4, Path: "/usr/bin/x"}
	network.Net = pavise.NetInfo{Family: 10, Type: 1, Protocol: 6, Interface: "eth0", RemotePort: 443, LocalPort: 5, Remote: [16]byte{0: 0x20, 15: 1}, Local: [16]byte{15: 2}}
	unix := network
	unix.Net.Interface = ""
	unix.Net.RemotePath, unix.Net.LocalPath = "@abs\x00tract", "/run/sock"
	exec := base
	exec.Op = pavise.OpExec
	exec.Exec = pavise.ExecInfo{
		Found: true, ParentExecID: 8, ParentPID: 41, StartTime: 400, Exe: pavise.FileInfo{Path: "/bin/bash", Inode: 99, FS: "overlay", Memfd: true},
		ExeDigest: "sha256:01", ExeVerity: "sha512:02", Script: "/x.sh", Args: []byte("bash\x00-c\x00id\x00"), ArgsCut: true, CWD: "/root", Cgroup: "/system.slice/a.service", CgroupID: 77,
		UID: 1, GID: 2, EUID: 3, EGID: 4, LoginID: 5, Caps: 3, SecureExec: true, TTY: true, OnRoot: true, Comm: "bash",
		Namespaces: pavise.Namespaces{Mnt: 1, PID: 2, Net: 3, User: 4, Cgroup: 5, UTS: 6, IPC: 7, Host: pavise.NSMnt | pavise.NSIPC},
	}
	fork := exec
	fork.Op = pavise.OpFork
	fork.Exec.Found, fork.Exec.Thread = false, true
	fork.Exec.ExeDigest, fork.Exec.ExeVerity = "", ""
	fork.Exec.Exe.Path, fork.Exec.Exe.FS, fork.Exec.Script, fork.Exec.CWD, fork.Exec.Cgroup, fork.Exec.Args = "", "", "", "", "", nil
	exit := base
	exit.Op, exit.Exit = pavise.OpExit, pavise.ExitInfo{Code: 3, Signal: 11}

	recs := records()
	for name, want := range map[string]pavise.Event{"file": file, "act": act, "none": none, "net": network, "unix": unix, "exec": exec, "fork": fork, "exit": exit} {
		for shift := range 8 { // aligned and not
			buf := make([]byte, shift+len(recs[name]))
			copy(buf[shift:], recs[name])
			got := pavise.Event{ID: 1, Policy: "left over", File: pavise.FileInfo{Path: "left over"}}
			if err := Decode(buf[shift:], 1000, &got); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if !reflect.DeepEqual(got, want) {
				t.Errorf("%s: got  %+v\nwant %+v", name, got, want)
			}
		}
	}
}

func TestDecodeRefuses(t *testing.T) {
	before := pavise.Event{ID: 5, Policy: "kept"}
	refuse := func(name string, rec []byte, want error) {
		t.Helper()
		e := before
		if err := Decode(rec, 0, &e); !errors.Is(err, want) {
			t.Errorf("%s: %v", name, err)
		}
		if !reflect.DeepEqual(e, before) {
			t.Errorf("%s: the event changed", name)
		}
	}
	put32 := func(rec []byte, v uint32) []byte {
		c := bytes.Clone(rec)
		*(*uint32)(unsafe.Pointer(&c[0])) = v
		return c
	}
	set := func(rec []byte, at int, v byte) []byte {
		c := bytes.Clone(rec)
		c[at] = v
		return c
	}
	for name, rec := range records() {
		for n := range rec { // every truncation, whether or not the header knows of it
			refuse(name, rec[:n], ErrTruncated)
			if n >= int(unsafe.Sizeof(bpf.KernelRecHdr{})) {
				refuse(name, put32(rec, uint32(n))[:n], ErrTruncated)
			}
		}
		long := append(bytes.Clone(rec), make([]byte, 16)...)
		refuse(name+" with 16 bytes that belong to nothing", put32(long, uint32(len(long))), ErrTruncated)
		e := before
		if err := Decode(long, 0, &e); err != nil { // beyond len: the ring's slot, not the record
			t.Errorf("%s: %v", name, err)
		}
		if err := Decode(put32(long, uint32(len(rec)+7)), 0, &e); err != nil { // alignment
			t.Errorf("%s: %v", name, err)
		}
		refuse(name, put32(rec, 1<<31), ErrTruncated)
		refuse(name, set(rec, 4, 0), ErrUnknownRecord)
		refuse(name, set(rec, 4, 99), ErrUnknownRecord)
		refuse(name, set(rec, 5, 0), ErrUnknownRecord)
		refuse(name, set(rec, 5, byte(pavise.OpLost)), ErrUnknownRecord)
		refuse(name, set(rec, 6, byte(pavise.NumActions)), ErrUnknownRecord)
	}
	for op := pavise.OpExec; op <= pavise.OpExit; op++ { // each in the record of its kind only
		kind, wrong := "file", "net"
		if op.OnSocket() {
			kind, wrong = wrong, kind
		}
		e := before
		if err := Decode(set(records()[kind], 5, byte(op)), 0, &e); (err == nil) != (op < pavise.OpFork) {
			t.Errorf("%s in a %s record: %v", op, kind, err)
		}
		refuse(op.String()+" in a "+wrong+" record", set(records()[wrong], 5, byte(op)), ErrUnknownRecord)
	}
	refuse("an exec in a net record", set(netRec("", "", "/usr/bin/x", "eth0"), 5, byte(pavise.OpExec)), ErrUnknownRecord)
	refuse("nothing", nil, ErrTruncated)
}

// TestSizes holds the generated Go types against the object that the kernel runs.
func TestSizes(t *testing.T) {
	spec, err := bpf.LoadKernel()
	if err != nil {
		t.Fatal(err)
	}
	for name, size := range map[string]uintptr{
		"rec_hdr": unsafe.Sizeof(bpf.KernelRecHdr{}), "rec_file": unsafe.Sizeof(bpf.KernelRecFile{}), "rec_net": unsafe.Sizeof(bpf.KernelRecNet{}),
		"rec_proc": unsafe.Sizeof(bpf.KernelRecProc{}), "rec_exit": unsafe.Sizeof(bpf.KernelRecExit{}),
	} {
		var s *btf.Struct
		if err := spec.Types.TypeByName(name, &s); err != nil {
			t.Fatal(err)
		}
		if s.Size != uint32(size) {
			t.Errorf("%s: %d bytes in the kernel, %d in Go", name, s.Size, size)
		}
	}
}

func TestDecodeAllocatesNothing(t *testing.T) {
	var e pavise.Event
	for name, rec := range records() {
		if n := testing.AllocsPerRun(100, func() {
			if err := Decode(rec, 0, &e); err != nil {
				t.Error(err)
			}
		}); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

func FuzzDecode(f *testing.F) {
	for _, rec := range records() {
		f.Add(rec, uint8(0))
		for n := 0; n < len(rec); n += 7 {
			f.Add(rec[:n], uint8(n))
		}
	}
	f.Fuzz(func(t *testing.T, rec []byte, shift uint8) {
		// An exact allocation, so that the race detector's checkptr and this check see a read beyond it.
		n := int(shift % 8)
		buf := make([]byte, n+len(rec))
		copy(buf[n:], rec)
		buf = buf[n:]
		var e pavise.Event
		if err := Decode(buf, 0, &e); err != nil {
			if !errors.Is(err, ErrTruncated) && !errors.Is(err, ErrUnknownRecord) {
				t.Fatal(err)
			}
			return
		}
		lo := uintptr(unsafe.Pointer(unsafe.SliceData(buf)))
		inside := func(p *byte, n int) {
			if at := uintptr(unsafe.Pointer(p)); n > 0 && (at < lo || at+uintptr(n) > lo+uintptr(len(buf))) {
				t.Fatal("a string points out of its record")
			}
		}
		for _, s := range []string{
			e.File.Path, e.File.Alias, e.File.FS, e.Net.RemotePath, e.Net.LocalPath, e.Exec.Exe.Path, e.Exec.Exe.FS,
			e.Exec.ExeDigest, e.Exec.ExeVerity, e.Exec.Script, e.Exec.CWD, e.Exec.Cgroup, e.Exec.Comm, e.Act.NewPath, e.Act.Name, e.Act.Target.Path,
		} {
			inside(unsafe.StringData(s), len(s))
		}
		inside(unsafe.SliceData(e.Exec.Args), len(e.Exec.Args))
		e.Clone().AppendJSON(nil)
	})
}

func BenchmarkDecode(b *testing.B) {
	var e pavise.Event
	for _, name := range []string{"file", "act", "net", "exec", "fork", "exit"} {
		rec := records()[name]
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := Decode(rec, 0, &e); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(1000, "budget-ns/op")
			if name == "file" || name == "net" {
				b.ReportMetric(0, "budget-allocs/op")
			}
		})
	}
}
