// Package decode turns a kernel record (bpf/event.h) into a pavise.Event. It is pure, allocates
// nothing but what an error needs, and believes no length that a record states.
package decode

import (
	"errors"
	"fmt"
	"unsafe"

	pavise "github.com/pavise-project/pavise"
	"github.com/pavise-project/pavise/bpf"
)

var (
	// ErrTruncated is wrapped by the error for a record that is shorter than it says, or whose lengths contradict each other.
	ErrTruncated = errors.New("record is truncated")
	// ErrUnknownRecord is wrapped by the error for a record of a kind, operation, action or rung that this agent does not know.
	ErrUnknownRecord = errors.New("record is unknown")
)

// The bits that bpf/event.h defines; the preprocessor's names do not reach BTF.
const (
	recMonitor = 1 << 0
	recFound   = 1 << 1
	recThread  = 1 << 2
	recShadow  = 1 << 3
	recKept    = 1 << 4

	done = 8 // DONE, in engine.h

	fileDeleted   = 1 << 0
	fileMemfd     = 1 << 1
	fileTruncated = 1 << 2

	procDeleted = 1 << 0
	procMemfd   = 1 << 1
	procSecure  = 1 << 2
	procTTY     = 1 << 3
	procArgsCut = 1 << 4
	procOnRoot  = 1 << 7
)

// slack is how much longer than its contents a record may be: the ring's own alignment.
const slack = 8

// Decode reads rec into e, which it overwrites; on an error e is as it was. The strings and Args
// of e point into rec: they are valid only as long as rec is, and Clone keeps them.
// Boot is the Unix time in nanoseconds at which CLOCK_BOOTTIME was zero.
func Decode(rec []byte, boot int64, e *pavise.Event) error {
	const hdrSize = int(unsafe.Sizeof(bpf.KernelRecHdr{}))
	if len(rec) < hdrSize {
		return fmt.Errorf("decode %d bytes: %w", len(rec), ErrTruncated)
	}
	var aligned bpf.KernelRecHdr
	hdr := view(rec, &aligned)
	if uint64(hdr.Len) > uint64(len(rec)) || int(hdr.Len) < hdrSize {
		return fmt.Errorf("decode %d bytes that say %d: %w", len(rec), hdr.Len, ErrTruncated)
	}
	rec = rec[:hdr.Len:hdr.Len]
	op := pavise.Op(hdr.Op)
	if op == pavise.OpNone || op >= pavise.OpLost || hdr.Action >= uint8(pavise.NumActions) || hdr.Rung >= uint8(pavise.NumRungs) {
		return fmt.Errorf("decode kind %d, op %d, action %d, rung %d: %w", hdr.Kind, hdr.Op, hdr.Action, hdr.Rung, ErrUnknownRecord)
	}
	var ok bool
	kind := bpf.KernelRecKind(hdr.Kind)
	switch {
	case kind == bpf.KernelRecKindREC_FILE && op < pavise.OpFork && !op.OnSocket():
		ok = decodeFile(rec, boot, e)
	case kind == bpf.KernelRecKindREC_NET && op.OnSocket():
		ok = decodeNet(rec, boot, e)
	case kind == bpf.KernelRecKindREC_PROC && (op == pavise.OpExec || op == pavise.OpFork):
		ok = decodeProc(rec, boot, e)
	case kind == bpf.KernelRecKindREC_EXIT && op == pavise.OpExit:
		ok = decodeExit(rec, boot, e)
	default:
		return fmt.Errorf("decode kind %d of %s: %w", hdr.Kind, op, ErrUnknownRecord)
	}
	if !ok {
		return fmt.Errorf("decode %s of %d bytes: %w", op, len(rec), ErrTruncated)
	}
	return nil
}

// view is rec read as a T: in place where it is aligned for one, else by way of a copy in aligned.
// Rec must hold at least a T.
func view[T any](rec []byte, aligned *T) *T {
	_ = rec[unsafe.Sizeof(*aligned)-1]
	p := unsafe.Pointer(unsafe.SliceData(rec))
	if uintptr(p)%unsafe.Alignof(*aligned) == 0 {
		return (*T)(p)
	}
	copy(unsafe.Slice((*byte)(unsafe.Pointer(aligned)), unsafe.Sizeof(*aligned)), rec)
	return aligned
}

// fits reports whether a record of n bytes is its struct and its strings, and nothing more than alignment.
func fits(n, size, strings int) bool {
	return size+strings <= n && n-(size+strings) < slack
}

func decodeFile(rec []byte, boot int64, e *pavise.Event) bool {
	const size = int(unsafe.Sizeof(bpf.KernelRecFile{}))
	if len(rec) < size {
		return false
	}
	var aligned bpf.KernelRecFile
	r := view(rec, &aligned)
	if !fits(len(rec), size, int(r.PathLen)+int(r.AliasLen)+int(r.NewLen)+int(r.NameLen)+int(r.TargetLen)+int(r.FsLen)) {
		return false
	}
	header(&r.Hdr, boot, e)
	f := &e.File
	f.Dev, f.Inode, f.Links, f.Owner, f.Mode = r.Inode.Dev, r.Inode.Ino, r.Inode.Links, r.Inode.Owner, r.Inode.Mode
	f.Access = pavise.Access(r.Inode.Access)
	f.Deleted, f.Memfd, f.Truncated = r.Inode.Flags&fileDeleted != 0, r.Inode.Flags&fileMemfd != 0, r.Inode.Flags&fileTruncated != 0
	s := rec[size:]
	f.Path, s = text(s, int(r.PathLen))
	f.Alias, s = text(s, int(r.AliasLen))
	a := &e.Act
	a.Value, a.Value2 = r.Value, r.Value2
	a.Target.ExecID, a.Target.PID, a.Target.UID = r.TargetExecId, r.TargetPid, r.TargetUid
	a.NewPath, s = text(s, int(r.NewLen))
	a.Name, s = text(s, int(r.NameLen))
	a.Target.Path, s = text(s, int(r.TargetLen))
	f.FS, _ = text(s, int(r.FsLen))
	return true
}

func decodeNet(rec []byte, boot int64, e *pavise.Event) bool {
	const size = int(unsafe.Sizeof(bpf.KernelRecNet{}))
	if len(rec) < size {
		return false
	}
	var aligned bpf.KernelRecNet
	r := view(rec, &aligned)
	if !fits(len(rec), size, int(r.RemotePathLen)+int(r.LocalPathLen)+int(r.TargetLen)+int(r.InterfaceLen)) {
		return false
	}
	header(&r.Hdr, boot, e)
	n := &e.Net
	n.Family, n.Type, n.Protocol = r.Family, r.Type, r.Protocol
	n.Remote, n.Local, n.RemotePort, n.LocalPort = r.Remote, r.Local, r.RemotePort, r.LocalPort
	s := rec[size:]
	n.RemotePath, s = text(s, int(r.RemotePathLen))
	n.LocalPath, s = text(s, int(r.LocalPathLen))
	t := &e.Act.Target
	t.ExecID, t.PID = r.TargetExecId, r.TargetPid
	t.Path, s = text(s, int(r.TargetLen))
	n.Interface, _ = text(s, int(r.InterfaceLen))
	return true
}

func decodeProc(rec []byte, boot int64, e *pavise.Event) bool {
	const size = int(unsafe.Sizeof(bpf.KernelRecProc{}))
	if len(rec) < size {
		return false
	}
	var aligned bpf.KernelRecProc
	r := view(rec, &aligned)
	if !fits(len(rec), size, int(r.PathLen)+int(r.ScriptLen)+int(r.ArgsLen)+int(r.CwdLen)+int(r.CgroupLen)+int(r.FsLen)+int(r.DigestLen)+int(r.VerityLen)) {
		return false
	}
	header(&r.Hdr, boot, e)
	x := &e.Exec
	x.Found, x.Kept, x.Thread = r.Hdr.Flags&recFound != 0, r.Hdr.Flags&recKept != 0, r.Hdr.Flags&recThread != 0
	x.ParentExecID, x.ParentPID, x.StartTime = r.ParentExecId, r.ParentPid, r.StartTime
	f := &x.Exe
	f.Dev, f.Inode, f.Links, f.Owner, f.Mode = r.Exe.Dev, r.Exe.Ino, r.Exe.Links, r.Exe.Owner, r.Exe.Mode
	f.Access = pavise.Access(r.Exe.Access)
	f.Deleted = r.Exe.Flags&fileDeleted != 0 || r.Flags&procDeleted != 0
	f.Memfd = r.Exe.Flags&fileMemfd != 0 || r.Flags&procMemfd != 0
	f.Truncated = r.Exe.Flags&fileTruncated != 0
	x.CgroupID, x.Caps = r.CgroupId, r.Caps
	x.UID, x.GID, x.EUID, x.EGID, x.LoginID = r.Uid, r.Gid, r.Euid, r.Egid, r.Login
	x.SecureExec, x.TTY, x.ArgsCut = r.Flags&procSecure != 0, r.Flags&procTTY != 0, r.Flags&procArgsCut != 0
	x.OnRoot = r.Flags&procOnRoot != 0
	x.Namespaces = pavise.Namespaces{
		Mnt: r.Ns.Mnt, PID: r.Ns.Pid, Net: r.Ns.Net, User: r.Ns.User, Cgroup: r.Ns.Cgroup, UTS: r.Ns.Uts, IPC: r.Ns.Ipc,
		Host: pavise.NamespaceSet(r.NsHost),
	}
	s := rec[size:]
	f.Path, s = text(s, int(r.PathLen))
	x.Script, s = text(s, int(r.ScriptLen))
	x.Args, s = s[:r.ArgsLen:r.ArgsLen], s[r.ArgsLen:]
	x.CWD, s = text(s, int(r.CwdLen))
	x.Cgroup, s = text(s, int(r.CgroupLen))
	f.FS, s = text(s, int(r.FsLen))
	x.ExeDigest, s = text(s, int(r.DigestLen))
	x.ExeVerity, _ = text(s, int(r.VerityLen))

	// Comm is taken from rec, not from r: r may be the copy on this stack.
	comm := rec[unsafe.Offsetof(r.Comm):][:len(r.Comm)]
	n := 0
	for n < len(comm) && comm[n] != 0 {
		n++
	}
	x.Comm, _ = text(comm, n)
	if len(x.Args) == 0 {
		x.Args = nil
	}
	return true
}

func decodeExit(rec []byte, boot int64, e *pavise.Event) bool {
	const size = int(unsafe.Sizeof(bpf.KernelRecExit{}))
	if len(rec) < size {
		return false
	}
	var aligned bpf.KernelRecExit
	r := view(rec, &aligned)
	if !fits(len(rec), size, 0) {
		return false
	}
	header(&r.Hdr, boot, e)
	e.Exit = pavise.ExitInfo{Code: uint8(r.Code >> 8), Signal: uint8(r.Code & 0x7f)} // wait(2); bit 7 is the core dump
	return true
}

func header(h *bpf.KernelRecHdr, boot int64, e *pavise.Event) {
	*e = pavise.Event{
		Time: boot + int64(h.Time), Op: pavise.Op(h.Op), Action: pavise.Action(h.Action), Monitor: h.Flags&recMonitor != 0,
		Rung: pavise.Rung(h.Rung), RuleIDs: h.Rules, Matched: h.Matched, Gen: h.Gen, Count: h.Count,
		PID: h.Pid, TID: h.Tid, ExecID: h.ExecId,
	}
	if h.Flags&recShadow != 0 {
		e.Shadow, e.Active = decision(h.Action, !e.Monitor), decision(h.Was&^done, h.Was&done != 0)
		e.Monitor = true
	}
}

// decision is what an action comes to that is carried out, or would be.
func decision(action uint8, done bool) pavise.Decision {
	switch a := pavise.Action(action); {
	case a == pavise.ActionDeny && done:
		return pavise.DecisionDeny
	case a == pavise.ActionDeny:
		return pavise.DecisionWouldDeny
	case a == pavise.ActionKill && done:
		return pavise.DecisionKill
	case a == pavise.ActionKill:
		return pavise.DecisionWouldKill
	}
	return pavise.DecisionAllow
}

// text is the first n bytes of s as a string without a copy, and the rest. The caller has checked n.
func text(s []byte, n int) (string, []byte) {
	if n == 0 {
		return "", s
	}
	return unsafe.String(unsafe.SliceData(s[:n]), n), s[n:]
}
