package policy

import (
	"math/bits"
	"net/netip"
	"slices"
	"strings"

	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"

	"github.com/pavise-project/pavise"
)

// Field is one name that conditions may use. The table of fields is the one source of the checker, of the normal
// form, of the messages and of the reference.
type Field struct {
	Name string
	Type string      // CEL type: string, int, bool, list(string), map(string, string), list(process)
	Ops  []pavise.Op // the operations it exists for; nil for a fact of the process or of the event, which always exists
	Dim  Dim         // what the kernel decides it by; DimNone: only user space knows it
	Doc  string      // one sentence
	Tip  string      // what a rule the kernel must decide can use instead
	Void bool        // no source of this version fills it: it is always empty
	Only bool        // only in `pavise events --where`, not in policies

	kind  fieldKind
	size  int          // numbers and bits: bytes in Dim
	bit   uint64       // kindFlag: the bit in Dim, or bits of which any is meant
	max   uint64       // kindInt: the highest, when it is not that of the size
	at    int          // kindNamed: the first byte of the number in Dim
	width int          // kindNamed: bytes of the number
	names pavise.Names // kindNamed, kindType
	other bool         // kindNamed: numbers without a name are written in decimal
	mask  uint64       // Ops, as bits; and net.flow and net.dns, which are not judged
	event func(*pavise.Event) ref.Val
	proc  func(*pavise.Process) ref.Val
}

// fieldKind says how tests of a field become atoms.
type fieldKind uint8

const (
	kindUser   fieldKind = iota // not decidable in the kernel
	kindPath                    // an absolute path
	kindName                    // the last component of the path in Dim
	kindText                    // any string
	kindDigest                  // "sha256:..."
	kindSysctl                  // a string, with dots for its slashes if it has none
	kindInt                     // a big-endian number
	kindFlag                    // a bit
	kindMode                    // permission bits
	kindType                    // the file type in the mode
	kindNamed                   // a number whose values have names
	kindCaps                    // a bit set with names
	kindAddr                    // an address
	kindDomain                  // a name that the address in Dim was looked up by
	kindUserName
	kindUnit
	kindContainer
	kindRuntime   // what a container's runtime says of it
	kindArgs      // a list of strings
	kindCmdline   // the same, joined by spaces
	kindAncestors // a list of paths
	kindHour      // of the minute of the week
	kindMinute
	kindDay
	kindDirection // fixed by the operation
)

// works is what each kind can be asked so that the kernel decides it.
var works = map[fieldKind]string{
	kindPath:      "==, !=, in, startsWith, endsWith, contains, under and glob with literal strings",
	kindName:      "==, !=, in, startsWith, endsWith, contains and glob with literal strings",
	kindText:      "==, !=, in, startsWith, endsWith, contains, under and glob with literal strings",
	kindDigest:    "==, !=, in, inSet and startsWith with literal digests",
	kindSysctl:    "==, !=, in, startsWith, endsWith, contains, under and glob with literal strings",
	kindInt:       "==, !=, <, <=, >, >= and in with literal numbers",
	kindFlag:      "the field itself, or its negation",
	kindMode:      "==, !=, <, <=, >, >=, in and has(\"04000\")",
	kindType:      "==, != and in with the names of types",
	kindNamed:     "==, != and in with literal names",
	kindCaps:      "\"CAP_...\" in the field",
	kindAddr:      "==, !=, in and within with literal addresses",
	kindDomain:    "==, != and in with literal names, glob(\"*.example.com\") and endsWith(\".example.com\")",
	kindUserName:  "==, != and in with literal names",
	kindUnit:      "==, !=, in and startsWith with literal names",
	kindContainer: "==, !=, in and startsWith with literal ids",
	kindRuntime:   "==, !=, in, startsWith, endsWith, contains, glob and matches with literals",
	kindArgs:      "exists, all, in and [0] to [31] with ==, !=, in, startsWith, endsWith, contains and glob of literal strings, == with a list of them, or size() with literal numbers up to 31",
	kindCmdline:   "==, !=, in, startsWith, endsWith, contains and glob with literal strings",
	kindAncestors: "exists and all with ==, !=, in, startsWith, endsWith, contains, under and glob of exe.path and exe.name with literal strings",
	kindHour:      "==, !=, <, <=, >, >= and in with literal numbers",
	kindMinute:    "==, !=, <, <=, >, >= and in with literal numbers",
	kindDay:       "==, != and in with literal names",
	kindDirection: "== and != with \"in\" or \"out\"",
}

// The sets of operations that have the same fields.
var (
	judgedOps = func() (ops []pavise.Op) {
		for op := pavise.OpNone + 1; int(op) < pavise.NumJudged; op++ {
			ops = append(ops, op)
		}
		return ops
	}()
	fileOps   = opsThat(pavise.Op.OnFile)
	oldOps    = opsThat(onOldFile)
	accessOps = []pavise.Op{pavise.OpExec, pavise.OpOpen, pavise.OpSysctl, pavise.OpDevice}
	socketOps = opsThat(pavise.Op.OnSocket)
	netOps    = []pavise.Op{pavise.OpConnect, pavise.OpBind, pavise.OpListen, pavise.OpAccept, pavise.OpSend}
	remoteOps = []pavise.Op{pavise.OpConnect, pavise.OpAccept, pavise.OpSend}
	moveOps   = []pavise.Op{pavise.OpRename, pavise.OpLink, pavise.OpPivotRoot}
	targetOps = []pavise.Op{pavise.OpSignal, pavise.OpPtrace}
)

// onOldFile reports whether the operation's object is a file that exists before it.
func onOldFile(op pavise.Op) bool {
	return op.OnFile() && op != pavise.OpCreate && op != pavise.OpSymlink
}

func opsThat(are func(pavise.Op) bool) (ops []pavise.Op) {
	for _, op := range judgedOps {
		if are(op) {
			ops = append(ops, op)
		}
	}
	return ops
}

// has reports whether f exists for op.
func (f *Field) has(op pavise.Op) bool { return f.Ops == nil || f.mask&(1<<op) != 0 }

// value returns the field's value in e; the zero value of its type when e has no such fact.
func (f *Field) value(e *pavise.Event) ref.Val {
	if !f.has(e.Op) {
		return zeroVal(f.Type)
	}
	if f.event != nil {
		return f.event(e)
	}
	p := e.Process
	if strings.HasPrefix(f.Name, "process.parent.") && p != nil {
		p = p.Parent
	}
	if p == nil {
		p = &noProcess
	}
	return f.proc(p)
}

// zeroVal is the value of a field that an event does not have.
func zeroVal(typ string) ref.Val {
	switch typ {
	case "int":
		return types.Int(0)
	case "bool":
		return types.False
	case "list(string)":
		return noStrings
	}
	return types.String("")
}

var (
	noProcess pavise.Process
	noStrings = types.NewStringList(types.DefaultTypeAdapter, nil)
	noMap     = types.NewStringStringMap(types.DefaultTypeAdapter, map[string]string{})
)

func capNumber(name string) (int, bool) {
	n := slices.Index(pavise.CapNames[:], name)
	return n, n >= 0
}

func capList(mask uint64) ref.Val {
	if mask == 0 {
		return noStrings
	}
	names := make([]string, 0, bits.OnesCount64(mask))
	for i, n := range pavise.CapNames {
		if mask&(1<<i) != 0 {
			names = append(names, n)
		}
	}
	return types.NewStringList(types.DefaultTypeAdapter, names)
}

func textVal(s string) ref.Val { return types.String(s) }
func intVal[T uint8 | uint16 | uint32 | uint64](n T) ref.Val {
	return types.Int(n) //nolint:gosec // the facts are at most 32 bits, an event's id wraps
}

// baseName is what follows the last slash; nothing when there is none.
func baseName(path string) string {
	if i := strings.LastIndexByte(path, '/'); i >= 0 {
		return path[i+1:]
	}
	return ""
}

// addrText is the text of an address of a network socket, IPv4 also when mapped; nothing for other sockets.
func addrText(n *pavise.NetInfo, a *[16]byte) ref.Val {
	if n.Family != 2 && n.Family != 10 {
		return textVal("")
	}
	return textVal(netip.AddrFrom16(*a).Unmap().String())
}

// peerPath is the executable at the other end of a connection, as far as it is known.
func peerPath(e *pavise.Event) string {
	switch {
	case e.Flow == nil:
		return e.Act.Target.Path
	case e.Flow.Remote.Process != nil:
		return e.Flow.Remote.Process.Exe.Path
	}
	return ""
}

func direction(op pavise.Op) string {
	switch op {
	case pavise.OpConnect, pavise.OpSend:
		return "out"
	case pavise.OpBind, pavise.OpListen, pavise.OpAccept:
		return "in"
	}
	return ""
}

func argList(args []string) ref.Val {
	if len(args) == 0 {
		return noStrings
	}
	return types.NewStringList(types.DefaultTypeAdapter, args)
}

func containerOf(p *pavise.Process) *pavise.Container {
	if p.Container != nil {
		return p.Container
	}
	return &noContainer
}

func podOf(p *pavise.Process) *pavise.Pod {
	if p.Pod != nil {
		return p.Pod
	}
	return &noPod
}

func labelsVal(l map[string]string) ref.Val {
	if len(l) == 0 {
		return noMap
	}
	return types.NewStringStringMap(types.DefaultTypeAdapter, l)
}

var (
	noContainer pavise.Container
	noPod       pavise.Pod
)

// processFields are the facts of a process, without "process." before their names.
var processFields = append([]Field{
	{Name: "pid", Type: "int", Doc: "Process id in the initial pid namespace.", Tip: "process.exe.path or process.cgroup",
		proc: func(p *pavise.Process) ref.Val { return intVal(p.PID) }},
	{Name: "exe.path", Type: "string", Dim: DimExe, kind: kindPath, Doc: "Path of the executable file.",
		proc: func(p *pavise.Process) ref.Val { return textVal(p.Exe.Path) }},
	{Name: "exe.name", Type: "string", Dim: DimExe, kind: kindName, Doc: "Last component of the executable's path.",
		proc: func(p *pavise.Process) ref.Val { return textVal(baseName(p.Exe.Path)) }},
	{Name: "exe.digest", Type: "string", Dim: DimDigest, kind: kindDigest, Doc: "Digest of the content of the executable, which IMA takes when it is started: \"sha256:...\", as sha256sum prints it. It costs the reading of the file. Empty when it is not known: of a process that was started before a rule asked for it.",
		proc: func(p *pavise.Process) ref.Val { return textVal(p.ExeDigest) }},
	{Name: "exe.verity", Type: "string", Dim: DimVerity, kind: kindDigest, Doc: "Digest of the executable that fs-verity enforces, \"sha256:...\", as fsverity measure prints it. It costs nothing. Empty when the file has none, or the process was started before a rule asked for it.",
		proc: func(p *pavise.Process) ref.Val { return textVal(p.ExeVerity) }},
	{Name: "exe.deleted", Type: "bool", Dim: DimProcFlags, kind: kindFlag, size: 1, bit: ProcFlagDeleted, Doc: "Whether the executable file had no name any more when it was started.",
		proc: func(p *pavise.Process) ref.Val { return types.Bool(p.Exe.Deleted) }},
	{Name: "exe.memfd", Type: "bool", Dim: DimProcFlags, kind: kindFlag, size: 1, bit: ProcFlagMemfd, Doc: "Whether the executable is an anonymous memory file.",
		proc: func(p *pavise.Process) ref.Val { return types.Bool(p.Exe.Memfd) }},
	{Name: "exe.setuid", Type: "bool", Dim: DimProcFlags, kind: kindFlag, size: 1, bit: ProcFlagSetuid, Doc: "Whether the executable has the set-user-ID bit; secure_exec says whether it had an effect.",
		proc: func(p *pavise.Process) ref.Val { return types.Bool(p.Exe.Mode&0o4000 != 0) }},
	{Name: "exe.setgid", Type: "bool", Dim: DimProcFlags, kind: kindFlag, size: 1, bit: ProcFlagSetgid, Doc: "Whether the executable has the set-group-ID bit.",
		proc: func(p *pavise.Process) ref.Val { return types.Bool(p.Exe.Mode&0o2000 != 0) }},
	{Name: "exe.on_root", Type: "bool", Dim: DimProcFlags, kind: kindFlag, size: 1, bit: ProcFlagOnRoot, Doc: "Whether the executable is on the machine's root file system: not on another mount, in a container's image or in memory.",
		proc: func(p *pavise.Process) ref.Val { return types.Bool(p.OnRoot) }},
	{Name: "script.path", Type: "string", Dim: DimScript, kind: kindPath, Doc: "Path of the script that the executable interprets, empty when there is none.",
		proc: func(p *pavise.Process) ref.Val { return textVal(p.Script) }},
	{Name: "args", Type: "list(string)", Dim: DimArgs, kind: kindArgs, Doc: "Arguments, the program's name first, as they were at exec.",
		proc: func(p *pavise.Process) ref.Val { return argList(p.Args) }},
	{Name: "cmdline", Type: "string", Dim: DimArgs, kind: kindCmdline, Doc: "The arguments, joined by single spaces: a space in an argument is not told from one between two.",
		proc: func(p *pavise.Process) ref.Val { return textVal(strings.Join(p.Args, " ")) }},
	{Name: "cwd", Type: "string", Doc: "Working directory at exec.", Tip: "process.exe.path or file.path",
		proc: func(p *pavise.Process) ref.Val { return textVal(p.CWD) }},
	{Name: "user.id", Type: "int", Dim: DimUID, kind: kindInt, size: 4, Doc: "Effective user id.",
		proc: func(p *pavise.Process) ref.Val { return intVal(p.User.ID) }},
	{Name: "user.name", Type: "string", Dim: DimUID, kind: kindUserName, Doc: "Name of the effective user; in the kernel its id when the policy was loaded.", Tip: "process.user.id",
		proc: func(p *pavise.Process) ref.Val { return textVal(p.User.Name) }},
	{Name: "group.id", Type: "int", Dim: DimGID, kind: kindInt, size: 4, Doc: "Effective group id.",
		proc: func(p *pavise.Process) ref.Val { return intVal(p.GroupID) }},
	{Name: "real_user.id", Type: "int", Dim: DimRealUID, kind: kindInt, size: 4, Doc: "Real user id.",
		proc: func(p *pavise.Process) ref.Val { return intVal(p.RealUID) }},
	{Name: "real_group.id", Type: "int", Dim: DimRealGID, kind: kindInt, size: 4, Doc: "Real group id.",
		proc: func(p *pavise.Process) ref.Val { return intVal(p.RealGID) }},
	{Name: "login.id", Type: "int", Dim: DimLogin, kind: kindInt, size: 4, Doc: "User id of the login session, kept over su and sudo; 4294967295 when not set.",
		proc: func(p *pavise.Process) ref.Val {
			if p.LoginID == nil {
				return types.Int(0xffffffff)
			}
			return intVal(*p.LoginID)
		}},
	{Name: "caps", Type: "list(string)", Dim: DimCaps, kind: kindCaps, size: 8, Doc: "Names of the effective capabilities, as \"CAP_SYS_ADMIN\".",
		proc: func(p *pavise.Process) ref.Val { return capList(p.Caps) }},
	{Name: "tty", Type: "bool", Dim: DimProcFlags, kind: kindFlag, size: 1, bit: ProcFlagTTY, Doc: "Whether the process has a controlling terminal.",
		proc: func(p *pavise.Process) ref.Val { return types.Bool(p.TTY) }},
	{Name: "secure_exec", Type: "bool", Dim: DimProcFlags, kind: kindFlag, size: 1, bit: ProcFlagSecureExec, Doc: "Whether set-user-ID, set-group-ID or file capabilities raised its privileges at exec.",
		proc: func(p *pavise.Process) ref.Val { return types.Bool(p.SecureExec) }},
	{Name: "unit", Type: "string", Dim: DimCgroup, kind: kindUnit, Doc: "The systemd unit, as \"nginx.service\".", Tip: "process.cgroup.under(...)",
		proc: func(p *pavise.Process) ref.Val { return textVal(p.Unit) }},
	{Name: "cgroup", Type: "string", Dim: DimCgroup, kind: kindPath, Doc: "Path of the cgroup below the root of cgroup v2.",
		proc: func(p *pavise.Process) ref.Val { return textVal(p.Cgroup) }},
	{Name: "container.id", Type: "string", Dim: DimCgroup, kind: kindContainer, Doc: "The container's id, 64 lower-case hexadecimal digits, empty outside of containers; in the kernel the process is also in the containers around that one.",
		proc: func(p *pavise.Process) ref.Val { return textVal(containerOf(p).ID) }},
	{Name: "container.name", Type: "string", Dim: DimCgroup, kind: kindRuntime, Doc: "The container's name, from its runtime's files; of LXC and systemd-nspawn from the cgroup's path. In a container within another, this and what follows is of the outermost.",
		proc: func(p *pavise.Process) ref.Val { return textVal(containerOf(p).Name) }},
	{Name: "container.image", Type: "string", Dim: DimCgroup, kind: kindRuntime, Doc: "The container's image, as its runtime calls it: with Docker as it was given, \"nginx:1.27\".",
		proc: func(p *pavise.Process) ref.Val { return textVal(containerOf(p).Image) }},
	{Name: "container.labels", Type: "map(string, string)", Dim: DimCgroup, kind: kindRuntime, Doc: "The container's labels (Docker and CRI-O); one that is not there is \"\".",
		proc: func(p *pavise.Process) ref.Val { return labelsVal(containerOf(p).Labels) }},
	{Name: "pod.namespace", Type: "string", Dim: DimCgroup, kind: kindRuntime, Doc: "Namespace of the Kubernetes pod.",
		proc: func(p *pavise.Process) ref.Val { return textVal(podOf(p).Namespace) }},
	{Name: "pod.name", Type: "string", Dim: DimCgroup, kind: kindRuntime, Doc: "Name of the Kubernetes pod.",
		proc: func(p *pavise.Process) ref.Val { return textVal(podOf(p).Name) }},
	{Name: "pod.labels", Type: "map(string, string)", Dim: DimCgroup, kind: kindRuntime, Doc: "Labels of the Kubernetes pod (CRI-O and Docker), those of the kubelet among them; one that is not there is \"\".",
		proc: func(p *pavise.Process) ref.Val { return labelsVal(podOf(p).Labels) }},
	{Name: "service", Type: "string", Void: true, Doc: "The service identity (SPIFFE id).", Tip: "process.unit or process.cgroup",
		proc: func(*pavise.Process) ref.Val { return textVal("") }},
}, namespaceFields()...)

// namespaceFields are two fields for each kind of namespace.
func namespaceFields() []Field {
	ids := [...]func(*pavise.Namespaces) uint32{
		func(n *pavise.Namespaces) uint32 { return n.Mnt }, func(n *pavise.Namespaces) uint32 { return n.PID },
		func(n *pavise.Namespaces) uint32 { return n.Net }, func(n *pavise.Namespaces) uint32 { return n.User },
		func(n *pavise.Namespaces) uint32 { return n.Cgroup }, func(n *pavise.Namespaces) uint32 { return n.UTS },
		func(n *pavise.Namespaces) uint32 { return n.IPC },
	}
	var fs []Field
	for i, name := range pavise.NamespaceNames {
		bit := pavise.NamespaceSet(1) << i
		fs = append(fs, Field{Name: "ns." + name + ".host", Type: "bool", Dim: DimNS, kind: kindFlag, size: 1, bit: uint64(bit), Doc: "Whether the " + name + " namespace is the machine's own, the one that was there at boot.",
			proc: func(p *pavise.Process) ref.Val { return types.Bool(p.Namespaces.Host&bit != 0) }},
			Field{Name: "ns." + name + ".id", Type: "int", Doc: "Inode number of the " + name + " namespace.", Tip: "process.ns." + name + ".host",
				proc: func(p *pavise.Process) ref.Val { return intVal(ids[i](&p.Namespaces)) }})
	}
	return fs
}

func accessField(name string, bit pavise.Access, doc string) Field {
	return Field{Name: "file.access." + name, Type: "bool", Ops: accessOps, Dim: DimAccess, kind: kindFlag, size: 1, bit: uint64(bit), Doc: doc,
		event: func(e *pavise.Event) ref.Val { return types.Bool(e.File.Access&bit != 0) }}
}

func on(ops ...pavise.Op) []pavise.Op { return ops }

// idField is a user or group id that an operation sets.
func idField(name string, op pavise.Op, dim Dim, doc string) Field {
	return Field{Name: name, Type: "int", Ops: on(op), Dim: dim, kind: kindInt, size: 8, max: pavise.Unchanged, Doc: doc + "; 4294967295 when it stays.",
		event: func(e *pavise.Event) ref.Val {
			if dim == DimValue2 {
				return intVal(e.Act.Value2)
			}
			return intVal(e.Act.Value)
		}}
}

// bitField is a bit of DimValue, or any of some bits.
func bitField(name string, op pavise.Op, bit uint64, doc string) Field {
	return Field{Name: name, Type: "bool", Ops: on(op), Dim: DimValue, kind: kindFlag, size: 8, bit: bit, Doc: doc,
		event: func(e *pavise.Event) ref.Val { return types.Bool(e.Act.Value&bit != 0) }}
}

// namedField is DimValue as a number with a name.
func namedField(name string, op pavise.Op, names pavise.Names, other bool, doc string) Field {
	return Field{Name: name, Type: "string", Ops: on(op), Dim: DimValue, kind: kindNamed, size: 8, width: 8, names: names, other: other, Doc: doc,
		event: func(e *pavise.Event) ref.Val { return textVal(names.Name(e.Act.Value)) }}
}

// objectFields are the facts of the object and of the event.
var objectFields = []Field{
	{Name: "file.path", Type: "string", Ops: fileOps, Dim: DimPath, kind: kindPath, Doc: "Path of the file; for process.exec, of the new executable; for file.create and file.symlink, the new name; empty where memory is executed or loaded.",
		event: func(e *pavise.Event) ref.Val { return textVal(e.File.Path) }},
	{Name: "file.name", Type: "string", Ops: fileOps, Dim: DimPath, kind: kindName, Doc: "Last component of the file's path.",
		event: func(e *pavise.Event) ref.Val { return textVal(baseName(e.File.Path)) }},
	{Name: "exec.args", Type: "list(string)", Ops: []pavise.Op{pavise.OpExec}, Dim: DimName, kind: kindArgs, Doc: "Arguments of the new program, its name first. Rules on them are judged when it is in place, where the process can be killed, and the call cannot be denied any more.",
		event: func(e *pavise.Event) ref.Val { return argList(slices.Collect(pavise.Args(e.Act.Name))) }},
	{Name: "exec.cmdline", Type: "string", Ops: []pavise.Op{pavise.OpExec}, Dim: DimName, kind: kindCmdline, Doc: "The same, joined by single spaces.",
		event: func(e *pavise.Event) ref.Val {
			return textVal(strings.Join(slices.Collect(pavise.Args(e.Act.Name)), " "))
		}},
	{Name: "file.type", Type: "string", Ops: fileOps, Dim: DimMode, kind: kindType, size: 2, names: pavise.FileTypeNames, Doc: "regular, directory, symlink, char, block, fifo or socket; for file.create, what the file will be; empty when there is no file.",
		event: func(e *pavise.Event) ref.Val { return textVal(pavise.FileTypeNames.Name(uint64(e.File.Mode >> 12))) }},
	{Name: "file.mode", Type: "int", Ops: fileOps, Dim: DimMode, kind: kindMode, size: 2, Doc: "Permission bits (07777), before the operation; for file.create, those it is made with; file.mode.has(\"04000\") tests bits given in octal.",
		event: func(e *pavise.Event) ref.Val { return intVal(e.File.Mode & 0o7777) }},
	{Name: "file.owner.id", Type: "int", Ops: oldOps, Dim: DimOwner, kind: kindInt, size: 4, Doc: "User id of the file's owner.",
		event: func(e *pavise.Event) ref.Val { return intVal(e.File.Owner) }},
	{Name: "file.fs", Type: "string", Ops: fileOps, Dim: DimFS, kind: kindText, Doc: "Name of the file system's type: ext4, overlay, tmpfs.",
		event: func(e *pavise.Event) ref.Val { return textVal(e.File.FS) }},
	accessField("read", pavise.AccessRead, "Whether the file is opened to be read."),
	accessField("write", pavise.AccessWrite, "Whether the file is opened to be written."),
	accessField("exec", pavise.AccessExec, "Whether the file is opened to be executed."),
	accessField("create", pavise.AccessCreate, "Whether the open creates the file."),
	accessField("truncate", pavise.AccessTruncate, "Whether the open truncates the file."),
	accessField("append", pavise.AccessAppend, "Whether the file is opened to be appended to."),
	{Name: "file.deleted", Type: "bool", Ops: oldOps, Dim: DimFileFlags, kind: kindFlag, size: 1, bit: FileFlagDeleted, Doc: "Whether the file has no name any more.",
		event: func(e *pavise.Event) ref.Val { return types.Bool(e.File.Deleted) }},
	{Name: "file.memfd", Type: "bool", Ops: oldOps, Dim: DimFileFlags, kind: kindFlag, size: 1, bit: FileFlagMemfd, Doc: "Whether the file is an anonymous memory file.",
		event: func(e *pavise.Event) ref.Val { return types.Bool(e.File.Memfd) }},
	{Name: "file.new_path", Type: "string", Ops: moveOps, Dim: DimNewPath, kind: kindPath, Doc: "The path that the file gets, by file.rename and file.link; where the old root goes, by fs.pivot_root.",
		event: func(e *pavise.Event) ref.Val { return textVal(e.Act.NewPath) }},
	{Name: "file.new_name", Type: "string", Ops: moveOps, Dim: DimNewPath, kind: kindName, Doc: "Last component of the new path.",
		event: func(e *pavise.Event) ref.Val { return textVal(baseName(e.Act.NewPath)) }},
	{Name: "file.target", Type: "string", Ops: on(pavise.OpSymlink), Dim: DimName, kind: kindText, Doc: "What the symbolic link says.",
		event: func(e *pavise.Event) ref.Val { return textVal(e.Act.Name) }},
	{Name: "file.new_mode", Type: "int", Ops: on(pavise.OpChmod), Dim: DimValue, kind: kindMode, size: 8, Doc: "The new permission bits; file.new_mode.has(\"04000\") is a file that becomes set-user-ID.",
		event: func(e *pavise.Event) ref.Val { return intVal(e.Act.Value & 0o7777) }},
	idField("file.new_owner.id", pavise.OpChown, DimValue, "User id of the new owner"),
	idField("file.new_group.id", pavise.OpChown, DimValue2, "Group id of the new group"),
	{Name: "file.xattr", Type: "string", Ops: on(pavise.OpSetxattr), Dim: DimName, kind: kindText, Doc: "Name of the extended attribute that is set.",
		event: func(e *pavise.Event) ref.Val { return textVal(e.Act.Name) }},

	{Name: "net.family", Type: "string", Ops: socketOps, Dim: DimSocket, kind: kindNamed, size: 3, at: 0, width: 1, names: pavise.FamilyNames, other: true, Doc: "unix, ipv4, ipv6, netlink, packet, vsock, or the number of another family. An IPv6 socket that talks to an IPv4 address is ipv6.",
		event: func(e *pavise.Event) ref.Val { return textVal(pavise.FamilyNames.Name(uint64(e.Net.Family))) }},
	{Name: "net.type", Type: "string", Ops: socketOps, Dim: DimSocket, kind: kindNamed, size: 3, at: 1, width: 1, names: pavise.TypeNames, other: true, Doc: "stream, dgram, raw, seqpacket, or the number of another type.",
		event: func(e *pavise.Event) ref.Val { return textVal(pavise.TypeNames.Name(uint64(e.Net.Type))) }},
	{Name: "net.protocol", Type: "string", Ops: socketOps, Dim: DimSocket, kind: kindNamed, size: 3, at: 2, width: 1, names: pavise.ProtocolNames, other: true, Doc: "tcp, udp, icmp, icmpv6, sctp, the number of another protocol as \"47\", or empty when there is none.",
		event: func(e *pavise.Event) ref.Val { return textVal(pavise.ProtocolNames.Name(uint64(e.Net.Protocol))) }},
	{Name: "net.direction", Type: "string", Ops: netOps, kind: kindDirection, Doc: "out for net.connect and net.send, in for net.bind, net.listen and net.accept.",
		event: func(e *pavise.Event) ref.Val { return textVal(directionOf(e)) }},
	{Name: "net.interface", Type: "string", Ops: netOps, Dim: DimInterface, kind: kindText, Doc: "Name of a network interface, in the socket's network namespace. For net.accept, the one by which the connection came in: \"lo\" from this namespace itself. For the others, the one that the socket is bound to (SO_BINDTODEVICE), empty when it is bound to none, as most are: not the one that routing will choose. docs/policy-language.md says what follows.", Tip: "net.local.address or net.remote.address",
		event: func(e *pavise.Event) ref.Val { return textVal(e.Net.Interface) }},
	{Name: "net.remote.address", Type: "string", Ops: remoteOps, Dim: DimRemoteAddr, kind: kindAddr, Doc: "The other end's address; IPv4 also when an IPv6 socket uses it mapped; empty for Unix sockets.",
		event: func(e *pavise.Event) ref.Val { return addrText(&e.Net, &e.Net.Remote) }},
	{Name: "net.remote.port", Type: "int", Ops: remoteOps, Dim: DimRemotePort, kind: kindInt, size: 2, Doc: "The other end's port, 0 for sockets that have none.",
		event: func(e *pavise.Event) ref.Val { return intVal(e.Net.RemotePort) }},
	{Name: "net.remote.path", Type: "string", Ops: remoteOps, Dim: DimRemotePath, kind: kindText, Doc: "Path of the other end's Unix socket; an abstract name begins with \"@\".",
		event: func(e *pavise.Event) ref.Val { return textVal(e.Net.RemotePath) }},
	{Name: "net.remote.domain", Type: "string", Ops: remoteOps, Dim: DimRemoteAddr, kind: kindDomain, Doc: "Name by which the other end's address was looked up, in lower case and without the last dot; in the kernel any of the names that lead to the address. docs/flows.md says which answers are believed, and how long.", Tip: "net.remote.address.within(...)",
		event: func(e *pavise.Event) ref.Val {
			if e.Flow != nil {
				return textVal(e.Flow.Remote.Name)
			}
			return textVal(e.Net.RemoteName)
		}},
	{Name: "net.remote.process.exe.path", Type: "string", Ops: on(pavise.OpConnect, pavise.OpAccept), Dim: DimTargetExe, kind: kindPath, Doc: "Path of the executable of the process at the other end of a TCP connection, when that is on this host: for net.connect, of the one that listens in the same network namespace; for net.accept, of the one that connected, in whatever network namespace. Empty when it is elsewhere, when nobody listens, and for other sockets. docs/flows.md says who that is.", Tip: "net.remote.port and net.remote.address",
		event: func(e *pavise.Event) ref.Val { return textVal(peerPath(e)) }},
	{Name: "net.remote.process.exe.name", Type: "string", Ops: on(pavise.OpConnect, pavise.OpAccept), Dim: DimTargetExe, kind: kindName, Doc: "Last component of it.", Tip: "net.remote.port and net.remote.address",
		event: func(e *pavise.Event) ref.Val { return textVal(baseName(peerPath(e))) }},
	{Name: "net.local.address", Type: "string", Ops: netOps, Dim: DimLocalAddr, kind: kindAddr, Doc: "The socket's own address.",
		event: func(e *pavise.Event) ref.Val { return addrText(&e.Net, &e.Net.Local) }},
	{Name: "net.local.port", Type: "int", Ops: netOps, Dim: DimLocalPort, kind: kindInt, size: 2, Doc: "The socket's own port, 0 for sockets that have none yet.",
		event: func(e *pavise.Event) ref.Val { return intVal(e.Net.LocalPort) }},
	{Name: "net.local.path", Type: "string", Ops: netOps, Dim: DimLocalPath, kind: kindText, Doc: "Path of the Unix socket itself; an abstract name begins with \"@\".",
		event: func(e *pavise.Event) ref.Val { return textVal(e.Net.LocalPath) }},

	namedField("signal", pavise.OpSignal, pavise.SignalNames, true, "Name of the signal, as \"SIGKILL\" or \"SIGRTMIN+3\"; \"0\" only asks whether the process is there."),
	namedField("ptrace.mode", pavise.OpPtrace, pavise.PtraceNames, false, "read, as of /proc/PID/maps, or attach: control, as by ptrace(2) and /proc/PID/mem."),
	{Name: "target.exe.path", Type: "string", Ops: targetOps, Dim: DimTargetExe, kind: kindPath, Doc: "Path of the other process's executable.",
		event: func(e *pavise.Event) ref.Val { return textVal(e.Act.Target.Path) }},
	{Name: "target.exe.name", Type: "string", Ops: targetOps, Dim: DimTargetExe, kind: kindName, Doc: "Last component of it.",
		event: func(e *pavise.Event) ref.Val { return textVal(baseName(e.Act.Target.Path)) }},
	{Name: "target.user.id", Type: "int", Ops: targetOps, Dim: DimTargetUID, kind: kindInt, size: 4, Doc: "The other process's effective user id.",
		event: func(e *pavise.Event) ref.Val { return intVal(e.Act.Target.UID) }},
	{Name: "target.pid", Type: "int", Ops: targetOps, Doc: "The other process's id in the initial pid namespace.", Tip: "target.exe.path",
		event: func(e *pavise.Event) ref.Val { return intVal(e.Act.Target.PID) }},

	idField("setid.user.id", pavise.OpSetid, DimValue, "The new effective user id (for setfsuid, of the file system)"),
	idField("setid.group.id", pavise.OpSetid, DimValue2, "The new effective group id (for setfsgid, of the file system)"),
	{Name: "capset.effective", Type: "list(string)", Ops: on(pavise.OpCapset), Dim: DimValue, kind: kindCaps, size: 8, Doc: "Names of the new effective capabilities.",
		event: func(e *pavise.Event) ref.Val { return capList(e.Act.Value) }},
	{Name: "capset.permitted", Type: "list(string)", Ops: on(pavise.OpCapset), Dim: DimValue2, kind: kindCaps, size: 8, Doc: "Names of the new permitted capabilities.",
		event: func(e *pavise.Event) ref.Val { return capList(e.Act.Value2) }},

	bitField("memory.anonymous", pavise.OpMemExec, pavise.MemAnonymous, "Whether no file is mapped there."),
	bitField("memory.written", pavise.OpMemExec, pavise.MemWritten, "Whether it was or could have been written: write, then execute."),
	bitField("memory.writable", pavise.OpMemExec, pavise.MemWritable, "Whether it becomes writable and executable at once."),
	bitField("memory.stack", pavise.OpMemExec, pavise.MemStack, "Whether it is the stack."),
	bitField("memory.heap", pavise.OpMemExec, pavise.MemHeap, "Whether it is the heap (brk)."),

	{Name: "mount.source", Type: "string", Ops: on(pavise.OpMount), Dim: DimNewPath, kind: kindText, Doc: "What is mounted, as given: a device, a directory, or any word.",
		event: func(e *pavise.Event) ref.Val { return textVal(e.Act.NewPath) }},
	{Name: "mount.type", Type: "string", Ops: on(pavise.OpMount), Dim: DimName, kind: kindText, Doc: "Type of the file system, as given: ext4, tmpfs; for bind, move, remount and propagation it means nothing.",
		event: func(e *pavise.Event) ref.Val { return textVal(e.Act.Name) }},
	bitField("mount.readonly", pavise.OpMount, pavise.MountReadonly, "Whether it is mounted read-only."),
	bitField("mount.nosuid", pavise.OpMount, pavise.MountNosuid, "Whether set-user-ID bits and file capabilities do nothing there."),
	bitField("mount.nodev", pavise.OpMount, pavise.MountNodev, "Whether device files do nothing there."),
	bitField("mount.noexec", pavise.OpMount, pavise.MountNoexec, "Whether nothing can be executed there."),
	bitField("mount.remount", pavise.OpMount, pavise.MountRemount, "Whether a mount that exists is changed."),
	bitField("mount.bind", pavise.OpMount, pavise.MountBind, "Whether a directory or file is mounted a second time."),
	bitField("mount.move", pavise.OpMount, pavise.MountMove, "Whether a mount is moved."),
	bitField("mount.propagation", pavise.OpMount, pavise.MountPropagation, "Whether a mount becomes shared, slave, private or unbindable."),

	namedField("module.source", pavise.OpModule, pavise.SourceNames, false, "file (finit_module), memory (init_module), or request: the kernel asks for a module by name."),
	{Name: "module.name", Type: "string", Ops: on(pavise.OpModule), Dim: DimName, kind: kindText, Doc: "Name of the module that is requested; empty when one is loaded.",
		event: func(e *pavise.Event) ref.Val { return textVal(e.Act.Name) }},
	namedField("kexec.source", pavise.OpKexec, pavise.SourceNames[:pavise.SourceRequest], false, "file (kexec_file_load) or memory (kexec_load)."),
	namedField("bpf.command", pavise.OpBPF, pavise.BPFNames, true, "The command of bpf(2) in lower case, as prog_load or map_create; the number of one that has no name here."),
	namedField("perf.type", pavise.OpPerf, pavise.PerfNames, false, "What perf_event_open(2) asks for: open (the call itself), cpu (all processes on a CPU), kernel, or tracepoint."),
	{Name: "key.type", Type: "string", Ops: on(pavise.OpKeyring), Dim: DimName, kind: kindText, Doc: "Type of the key: user, keyring, logon.",
		event: func(e *pavise.Event) ref.Val { return textVal(e.Act.Name) }},
	{Name: "key.description", Type: "string", Ops: on(pavise.OpKeyring), Dim: DimNewPath, kind: kindText, Doc: "Description (name) of the key.",
		event: func(e *pavise.Event) ref.Val { return textVal(e.Act.NewPath) }},
	namedField("io_uring.request", pavise.OpIOUring, pavise.IOUringNames, false, "setup (a new ring), sqpoll (a submission thread of the kernel), credentials (those of another), or command (to a device or socket)."),
	{Name: "sysctl.name", Type: "string", Ops: on(pavise.OpSysctl), Dim: DimName, kind: kindSysctl, Doc: "The variable, as \"kernel/core_pattern\" or \"kernel.core_pattern\": a literal without a slash has slashes for its dots.",
		event: func(e *pavise.Event) ref.Val { return textVal(e.Act.Name) }},
	{Name: "device.major", Type: "int", Ops: on(pavise.OpDevice), Dim: DimValue, kind: kindInt, size: 8, max: 1<<12 - 1, Doc: "Major number of the device; file.type says char or block.",
		event: func(e *pavise.Event) ref.Val { return intVal(e.Act.Value) }},
	{Name: "device.minor", Type: "int", Ops: on(pavise.OpDevice), Dim: DimValue2, kind: kindInt, size: 8, max: 1<<20 - 1, Doc: "Minor number of the device.",
		event: func(e *pavise.Event) ref.Val { return intVal(e.Act.Value2) }},

	{Name: "op", Type: "string", Only: true, Doc: "The operation, as \"file.open\".",
		event: func(e *pavise.Event) ref.Val { return textVal(e.Op.String()) }},
	{Name: "action", Type: "string", Only: true, Doc: "What was done: allow, audit, deny or kill; with monitor, what would have been done.",
		event: func(e *pavise.Event) ref.Val { return textVal(e.Action.String()) }},
	{Name: "verdict", Type: "string", Only: true, Doc: "The same as action.",
		event: func(e *pavise.Event) ref.Val { return textVal(e.Action.String()) }},
	{Name: "monitor", Type: "bool", Only: true, Doc: "Whether the action was only what would have been done.",
		event: func(e *pavise.Event) ref.Val { return types.Bool(e.Monitor) }},
	{Name: "shadow", Type: "bool", Only: true, Doc: "Whether it tells what a candidate (pavise shadow) would have done, where that is not what the active policies did.",
		event: func(e *pavise.Event) ref.Val { return types.Bool(e.Shadow != pavise.DecisionNone) }},
	{Name: "active", Type: "string", Only: true, Doc: "With shadow: what the active policies did: allow, deny or kill; would-deny or would-kill when they are monitored.",
		event: func(e *pavise.Event) ref.Val {
			if e.Shadow == pavise.DecisionNone {
				return types.String("")
			}
			return types.String(e.Active.String())
		}},
	{Name: "net.established", Type: "bool", Only: true, Doc: "Whether it is a connection that was there when the policies changed, and was judged again: spec.established: recheck.",
		event: func(e *pavise.Event) ref.Val { return types.Bool(e.Net.Established) }},
	{Name: "policy", Type: "string", Only: true, Doc: "Name of the policy that decided.",
		event: func(e *pavise.Event) ref.Val { return textVal(e.Policy) }},
	{Name: "rule", Type: "string", Only: true, Doc: "Name of the rule that decided.",
		event: func(e *pavise.Event) ref.Val { return textVal(e.Rule) }},
	{Name: "severity", Type: "string", Only: true, Doc: "Severity of the rule that decided.",
		event: func(e *pavise.Event) ref.Val { return textVal(e.Severity) }},
}

// fieldList is every field, fieldByName the same by name.
var fieldList, fieldByName = func() ([]*Field, map[string]*Field) {
	var list []*Field
	for i := range processFields {
		f := processFields[i]
		f.Name = "process." + f.Name
		list = append(list, &f)
	}
	for i := range processFields {
		f := processFields[i]
		f.Name = "process.parent." + f.Name
		f.Doc = "Of the parent: " + strings.ToLower(f.Doc[:1]) + f.Doc[1:]
		switch f.kind {
		case kindPath, kindName:
			if f.Dim == DimExe {
				f.Dim = DimParentExe
				break
			}
			fallthrough
		default:
			f.Dim, f.kind, f.Tip = DimNone, kindUser, "process.parent.exe.path"
		}
		list = append(list, &f)
	}
	list = append(list, &Field{Name: "process.ancestors", Type: "list(process)", Dim: DimAncestors, kind: kindAncestors,
		Doc:  "The process that forked this one, the one that forked that, and so on, whether they still run or not, each with the program that it ran then; each has the fields of process: process.ancestors.exists(a, a.exe.name == \"sshd\").",
		proc: func(p *pavise.Process) ref.Val { return ancestorList(p) }})
	for i := range objectFields {
		f := objectFields[i]
		for _, op := range f.Ops {
			f.mask |= 1 << op
		}
		if strings.HasPrefix(f.Name, "net.") {
			f.mask |= 1<<pavise.OpFlow | 1<<pavise.OpDNS
		}
		list = append(list, &f)
	}
	seen := func(op pavise.Op, fields []Field) {
		for _, f := range fields {
			f.Only, f.Ops, f.mask = true, on(op), 1<<op
			list = append(list, &f)
		}
	}
	seen(pavise.OpFlow, flowFields)
	seen(pavise.OpDNS, dnsFields)
	for i := range timeFields {
		list = append(list, &timeFields[i])
	}
	byName := map[string]*Field{}
	for _, f := range list {
		byName[f.Name] = f
	}
	return list, byName
}()

// Fields returns the fields of the language, in the order of the reference.
func Fields() []Field {
	fs := make([]Field, len(fieldList))
	for i, f := range fieldList {
		fs[i] = *f
	}
	return fs
}

// Function is a function of the language, beside the operators of CEL.
type Function struct{ Name, Example, Doc string }

// Functions returns the functions of the language.
func Functions() []Function {
	return []Function{
		{"under", `file.path.under("/etc", "/usr/lib")`, "The directory itself and everything below it; true for any of the directories."},
		{"glob", `file.path.glob("/{,usr/}bin/*sh", "/opt/**/bin/*")`, "`*` within a component, `**` across components (`**/` also matches nothing), `?` one byte, `[a-z]` and `[!a-z]` classes, `{a,b}` alternatives, `\\` before a character that means itself; true for any of the globs."},
		{"within", `net.remote.address.within("10.0.0.0/8", "2001:db8::/32")`, "Whether the address is in any of the prefixes. An IPv6 prefix, even ::/0, holds no IPv4 address: \"0.0.0.0/0\" is every IPv4 address."},
		{"inSet", `file.path.inSet("bad.txt")`, "Whether the value is an entry of a file next to the policy, one a line, up to 100,000: paths, names, addresses and prefixes, or numbers."},
		{"rate.process", `rate.process("10s") > 100`, "Beside `&&` in a rule's `when`: whether the rest of it has held more often than this within the time, by one process. Also `rate.user` and `rate.container`."},
		{"has", `file.mode.has("06000")`, "Whether all of these permission bits, given in octal, are set."},
		{"startsWith", `file.path.startsWith("/tmp/x-")`, "Whether the string begins so."},
		{"endsWith", `file.name.endsWith(".so")`, "Whether the string ends so."},
		{"contains", `file.path.contains("/.ssh/")`, "Whether the string has this in it."},
		{"in", `process.user.id in [0, 33]`, "Whether the value is one of the list; also `\"CAP_NET_RAW\" in process.caps`."},
		{"exists", `process.args.exists(a, a == "-i")`, "Whether it holds for one of the list; `all`: for each of it. In user space also `exists_one`, `filter` and `map`."},
		{"size", `process.args.size() > 2`, "How many are in the list."},
		{"matches", `file.name.matches("^[0-9]+$")`, "Whether the regular expression (RE2) matches somewhere; user space only."},
	}
}

// nearest returns the candidate that is most like name, or "" when none is.
func nearest(name string, candidates []string) string {
	best, at := "", max(2, len(name)/3)+1
	for _, c := range candidates {
		if strings.HasSuffix(c, "."+name) && len(name) > 2 {
			return c
		}
		if d := distance(name, c); d < at {
			best, at = c, d
		}
	}
	return best
}

// distance is the number of changes of one character (or swaps of two) from a to b.
func distance(a, b string) int {
	if len(a) > 100 || len(b) > 100 {
		return 1000
	}
	rows := [3][]int{make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)}
	for j := range rows[1] {
		rows[1][j] = j
	}
	for i := 1; i <= len(a); i++ {
		old, prev, cur := rows[0], rows[1], rows[2]
		cur[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			cur[j] = min(prev[j]+1, cur[j-1]+1, prev[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				cur[j] = min(cur[j], old[j-2]+1)
			}
		}
		rows = [3][]int{prev, cur, old}
	}
	return rows[1][len(b)]
}

func fieldNames(policy bool) []string {
	var names []string
	for _, f := range fieldList {
		if !policy || !f.Only {
			names = append(names, f.Name)
		}
	}
	return names
}
