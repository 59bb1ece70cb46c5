package policy

import (
	"math/bits"
	"net/netip"
	"strconv"
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
	bit   uint64 // kindFlag: the bit in Dim
	size  int    // kindInt: bytes in Dim
	at    int    // kindSocket: byte in DimSocket
	names map[string]uint8
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
	kindInt                     // a big-endian number
	kindFlag                    // a bit
	kindMode                    // permission bits
	kindType                    // the file type in the mode
	kindSocket                  // a byte of DimSocket
	kindCaps                    // a bit set with names
	kindAddr                    // an address
	kindUserName
	kindUnit
	kindContainer
	kindDirection // fixed by the operation
)

// works is what each kind can be asked so that the kernel decides it.
var works = map[fieldKind]string{
	kindPath:      "==, !=, in, startsWith, endsWith, contains, under and glob with literal strings",
	kindName:      "==, !=, in, startsWith, endsWith, contains and glob with literal strings",
	kindText:      "==, !=, in, startsWith, endsWith, contains, under and glob with literal strings",
	kindInt:       "==, !=, <, <=, >, >= and in with literal numbers",
	kindFlag:      "the field itself, or its negation",
	kindMode:      "==, !=, <, <=, >, >=, in and has(\"04000\")",
	kindType:      "==, != and in with the names of types",
	kindSocket:    "==, != and in with literal names",
	kindCaps:      "\"CAP_...\" in the field",
	kindAddr:      "==, !=, in and within with literal addresses",
	kindUserName:  "==, != and in with literal names",
	kindUnit:      "==, !=, in and startsWith with literal names",
	kindContainer: "==, !=, in and startsWith with literal ids",
	kindDirection: "== and != with \"in\" or \"out\"",
}

var (
	fileOps   = []pavise.Op{pavise.OpExec, pavise.OpOpen}
	netOps    = []pavise.Op{pavise.OpConnect, pavise.OpBind, pavise.OpListen, pavise.OpAccept, pavise.OpSend}
	remoteOps = []pavise.Op{pavise.OpConnect, pavise.OpAccept, pavise.OpSend}
	judgedOps = append(append([]pavise.Op(nil), fileOps...), netOps...)
)

// has reports whether f exists for op.
func (f *Field) has(op pavise.Op) bool {
	if f.Ops == nil {
		return true
	}
	for _, o := range f.Ops {
		if o == op {
			return true
		}
	}
	return false
}

// value returns the field's value in e; the zero value of its type when e has no such fact.
func (f *Field) value(e *pavise.Event) ref.Val {
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

var (
	noProcess pavise.Process
	noStrings = types.NewStringList(types.DefaultTypeAdapter, nil)
	noMap     = types.NewStringStringMap(types.DefaultTypeAdapter, map[string]string{})
)

// CapNames are the names of the capabilities, by number.
var CapNames = strings.Fields(`CAP_CHOWN CAP_DAC_OVERRIDE CAP_DAC_READ_SEARCH CAP_FOWNER CAP_FSETID CAP_KILL CAP_SETGID
	CAP_SETUID CAP_SETPCAP CAP_LINUX_IMMUTABLE CAP_NET_BIND_SERVICE CAP_NET_BROADCAST CAP_NET_ADMIN CAP_NET_RAW
	CAP_IPC_LOCK CAP_IPC_OWNER CAP_SYS_MODULE CAP_SYS_RAWIO CAP_SYS_CHROOT CAP_SYS_PTRACE CAP_SYS_PACCT CAP_SYS_ADMIN
	CAP_SYS_BOOT CAP_SYS_NICE CAP_SYS_RESOURCE CAP_SYS_TIME CAP_SYS_TTY_CONFIG CAP_MKNOD CAP_LEASE CAP_AUDIT_WRITE
	CAP_AUDIT_CONTROL CAP_SETFCAP CAP_MAC_OVERRIDE CAP_MAC_ADMIN CAP_SYSLOG CAP_WAKE_ALARM CAP_BLOCK_SUSPEND
	CAP_AUDIT_READ CAP_PERFMON CAP_BPF CAP_CHECKPOINT_RESTORE`)

func capNumber(name string) (int, bool) {
	for i, n := range CapNames {
		if n == name {
			return i, true
		}
	}
	return 0, false
}

func capList(mask uint64) ref.Val {
	if mask == 0 {
		return noStrings
	}
	names := make([]string, 0, bits.OnesCount64(mask))
	for i, n := range CapNames {
		if mask&(1<<i) != 0 {
			names = append(names, n)
		}
	}
	return types.NewStringList(types.DefaultTypeAdapter, names)
}

// The names of the numbers of sockets and files. Others are written as decimal numbers.
var (
	familyNames   = map[string]uint8{"unix": 1, "ipv4": 2, "ipv6": 10, "netlink": 16, "packet": 17, "vsock": 40}
	socketTypes   = map[string]uint8{"stream": 1, "dgram": 2, "raw": 3, "seqpacket": 5}
	protocolNames = map[string]uint8{"icmp": 1, "tcp": 6, "udp": 17, "icmpv6": 58, "sctp": 132}
	fileTypes     = map[string]uint8{"fifo": 1, "char": 2, "directory": 4, "block": 6, "regular": 8, "symlink": 10, "socket": 12}
)

// nameOf returns the name of n in names, its decimal digits when it has none, and "" for 0.
func nameOf(names map[string]uint8, n uint64) string {
	if n == 0 {
		return ""
	}
	for name, v := range names {
		if uint64(v) == n {
			return name
		}
	}
	return strconv.FormatUint(n, 10)
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

func direction(op pavise.Op) string {
	switch op {
	case pavise.OpConnect, pavise.OpSend:
		return "out"
	case pavise.OpBind, pavise.OpListen, pavise.OpAccept:
		return "in"
	}
	return ""
}

func containerOf(p *pavise.Process) *pavise.Container {
	if p.Container != nil {
		return p.Container
	}
	return &noContainer
}

var noContainer pavise.Container

// podKey are the labels by which container runtimes name the pod.
const (
	podNamespaceLabel = "io.kubernetes.pod.namespace"
	podNameLabel      = "io.kubernetes.pod.name"
)

// processFields are the facts of a process, without "process." before their names.
var processFields = []Field{
	{Name: "pid", Type: "int", Doc: "Process id in the initial pid namespace.", Tip: "process.exe.path or process.cgroup",
		proc: func(p *pavise.Process) ref.Val { return intVal(p.PID) }},
	{Name: "exe.path", Type: "string", Dim: DimExe, kind: kindPath, Doc: "Path of the executable file.",
		proc: func(p *pavise.Process) ref.Val { return textVal(p.Exe.Path) }},
	{Name: "exe.name", Type: "string", Dim: DimExe, kind: kindName, Doc: "Last component of the executable's path.",
		proc: func(p *pavise.Process) ref.Val { return textVal(baseName(p.Exe.Path)) }},
	{Name: "exe.digest", Type: "string", Void: true, Doc: "Digest of the executable file, as \"sha256:...\".", Tip: "process.exe.path",
		proc: func(*pavise.Process) ref.Val { return textVal("") }},
	{Name: "exe.deleted", Type: "bool", Dim: DimProcFlags, kind: kindFlag, bit: ProcFlagDeleted, Doc: "Whether the executable file had no name any more when it was started.",
		proc: func(p *pavise.Process) ref.Val { return types.Bool(p.Exe.Deleted) }},
	{Name: "exe.memfd", Type: "bool", Dim: DimProcFlags, kind: kindFlag, bit: ProcFlagMemfd, Doc: "Whether the executable is an anonymous memory file.",
		proc: func(p *pavise.Process) ref.Val { return types.Bool(p.Exe.Memfd) }},
	{Name: "script.path", Type: "string", Dim: DimScript, kind: kindPath, Doc: "Path of the script that the executable interprets, empty when there is none.",
		proc: func(p *pavise.Process) ref.Val { return textVal(p.Script) }},
	{Name: "args", Type: "list(string)", Doc: "Arguments, the program's name first.", Tip: "process.exe.path or process.script.path",
		proc: func(p *pavise.Process) ref.Val {
			if len(p.Args) == 0 {
				return noStrings
			}
			return types.NewStringList(types.DefaultTypeAdapter, p.Args)
		}},
	{Name: "cwd", Type: "string", Doc: "Working directory at exec.", Tip: "process.exe.path or file.path",
		proc: func(p *pavise.Process) ref.Val { return textVal(p.CWD) }},
	{Name: "user.id", Type: "int", Dim: DimUID, kind: kindInt, size: 4, Doc: "Effective user id.",
		proc: func(p *pavise.Process) ref.Val { return intVal(p.User.ID) }},
	{Name: "user.name", Type: "string", Dim: DimUID, kind: kindUserName, Doc: "Name of the effective user; in the kernel its id when the policy was loaded.", Tip: "process.user.id",
		proc: func(p *pavise.Process) ref.Val { return textVal(p.User.Name) }},
	{Name: "group.id", Type: "int", Dim: DimGID, kind: kindInt, size: 4, Doc: "Effective group id.",
		proc: func(p *pavise.Process) ref.Val { return intVal(p.GroupID) }},
	{Name: "login.id", Type: "int", Dim: DimLogin, kind: kindInt, size: 4, Doc: "User id of the login session, kept over su and sudo; 4294967295 when not set.",
		proc: func(p *pavise.Process) ref.Val {
			if p.LoginID == nil {
				return types.Int(0xffffffff)
			}
			return intVal(*p.LoginID)
		}},
	{Name: "caps", Type: "list(string)", Dim: DimCaps, kind: kindCaps, Doc: "Names of the effective capabilities, as \"CAP_SYS_ADMIN\".",
		proc: func(p *pavise.Process) ref.Val { return capList(p.Caps) }},
	{Name: "tty", Type: "bool", Dim: DimProcFlags, kind: kindFlag, bit: ProcFlagTTY, Doc: "Whether the process has a controlling terminal.",
		proc: func(p *pavise.Process) ref.Val { return types.Bool(p.TTY) }},
	{Name: "secure_exec", Type: "bool", Dim: DimProcFlags, kind: kindFlag, bit: ProcFlagSecureExec, Doc: "Whether set-user-ID, set-group-ID or file capabilities raised its privileges at exec.",
		proc: func(p *pavise.Process) ref.Val { return types.Bool(p.SecureExec) }},
	{Name: "unit", Type: "string", Dim: DimCgroup, kind: kindUnit, Doc: "The systemd unit, as \"nginx.service\".", Tip: "process.cgroup.under(...)",
		proc: func(p *pavise.Process) ref.Val { return textVal(p.Unit) }},
	{Name: "cgroup", Type: "string", Dim: DimCgroup, kind: kindPath, Doc: "Path of the cgroup below the root of cgroup v2.",
		proc: func(p *pavise.Process) ref.Val { return textVal(p.Cgroup) }},
	{Name: "container.id", Type: "string", Dim: DimCgroup, kind: kindContainer, Doc: "The container's id, 64 lower-case hexadecimal digits, empty outside of containers; in the kernel the process is also in the containers around that one.",
		proc: func(p *pavise.Process) ref.Val { return textVal(containerOf(p).ID) }},
	{Name: "container.name", Type: "string", Doc: "The container's name: of LXC and systemd-nspawn only, where it is in the cgroup's path.", Tip: "process.container.id or process.cgroup",
		proc: func(p *pavise.Process) ref.Val { return textVal(containerOf(p).Name) }},
	{Name: "container.image", Type: "string", Void: true, Doc: "The container's image, from its runtime.", Tip: "process.container.id or process.cgroup",
		proc: func(p *pavise.Process) ref.Val { return textVal(containerOf(p).Image) }},
	{Name: "container.labels", Type: "map(string, string)", Void: true, Doc: "The container's labels, from its runtime.", Tip: "process.container.id or process.cgroup",
		proc: func(p *pavise.Process) ref.Val {
			if l := containerOf(p).Labels; len(l) > 0 {
				return types.NewStringStringMap(types.DefaultTypeAdapter, l)
			}
			return noMap
		}},
	{Name: "pod.namespace", Type: "string", Void: true, Doc: "Namespace of the Kubernetes pod, from the container's labels.", Tip: "process.container.id or process.cgroup",
		proc: func(p *pavise.Process) ref.Val { return textVal(containerOf(p).Labels[podNamespaceLabel]) }},
	{Name: "pod.name", Type: "string", Void: true, Doc: "Name of the Kubernetes pod, from the container's labels.", Tip: "process.container.id or process.cgroup",
		proc: func(p *pavise.Process) ref.Val { return textVal(containerOf(p).Labels[podNameLabel]) }},
	{Name: "pod.labels", Type: "map(string, string)", Void: true, Doc: "Labels of the Kubernetes pod.", Tip: "process.container.id or process.cgroup",
		proc: func(*pavise.Process) ref.Val { return noMap }},
	{Name: "service", Type: "string", Void: true, Doc: "The service identity (SPIFFE id).", Tip: "process.unit or process.cgroup",
		proc: func(*pavise.Process) ref.Val { return textVal("") }},
}

func accessField(name string, bit pavise.Access, doc string) Field {
	return Field{Name: "file.access." + name, Type: "bool", Ops: fileOps, Dim: DimAccess, kind: kindFlag, bit: uint64(bit), Doc: doc,
		event: func(e *pavise.Event) ref.Val { return types.Bool(e.File.Access&bit != 0) }}
}

// objectFields are the facts of the object and of the event.
var objectFields = []Field{
	{Name: "file.path", Type: "string", Ops: fileOps, Dim: DimPath, kind: kindPath, Doc: "Path of the file; for process.exec, of the new executable.",
		event: func(e *pavise.Event) ref.Val { return textVal(e.File.Path) }},
	{Name: "file.name", Type: "string", Ops: fileOps, Dim: DimPath, kind: kindName, Doc: "Last component of the file's path.",
		event: func(e *pavise.Event) ref.Val { return textVal(baseName(e.File.Path)) }},
	{Name: "file.type", Type: "string", Ops: fileOps, Dim: DimMode, kind: kindType, names: fileTypes, Doc: "regular, directory, symlink, char, block, fifo or socket.",
		event: func(e *pavise.Event) ref.Val { return textVal(nameOf(fileTypes, uint64(e.File.Mode>>12))) }},
	{Name: "file.mode", Type: "int", Ops: fileOps, Dim: DimMode, kind: kindMode, Doc: "Permission bits (07777); file.mode.has(\"04000\") tests bits given in octal.",
		event: func(e *pavise.Event) ref.Val { return intVal(e.File.Mode & 0o7777) }},
	{Name: "file.owner.id", Type: "int", Ops: fileOps, Dim: DimOwner, kind: kindInt, size: 4, Doc: "User id of the file's owner.",
		event: func(e *pavise.Event) ref.Val { return intVal(e.File.Owner) }},
	{Name: "file.fs", Type: "string", Ops: fileOps, Dim: DimFS, kind: kindText, Doc: "Name of the file system's type: ext4, overlay, tmpfs.",
		event: func(e *pavise.Event) ref.Val { return textVal(e.File.FS) }},
	accessField("read", pavise.AccessRead, "Whether the file is opened to be read."),
	accessField("write", pavise.AccessWrite, "Whether the file is opened to be written."),
	accessField("exec", pavise.AccessExec, "Whether the file is opened to be executed."),
	accessField("create", pavise.AccessCreate, "Whether the open creates the file."),
	accessField("truncate", pavise.AccessTruncate, "Whether the open truncates the file."),
	accessField("append", pavise.AccessAppend, "Whether the file is opened to be appended to."),
	{Name: "file.deleted", Type: "bool", Ops: fileOps, Dim: DimFileFlags, kind: kindFlag, bit: FileFlagDeleted, Doc: "Whether the file has no name any more.",
		event: func(e *pavise.Event) ref.Val { return types.Bool(e.File.Deleted) }},
	{Name: "file.memfd", Type: "bool", Ops: fileOps, Dim: DimFileFlags, kind: kindFlag, bit: FileFlagMemfd, Doc: "Whether the file is an anonymous memory file.",
		event: func(e *pavise.Event) ref.Val { return types.Bool(e.File.Memfd) }},

	{Name: "net.family", Type: "string", Ops: netOps, Dim: DimSocket, kind: kindSocket, at: 0, names: familyNames, Doc: "unix, ipv4, ipv6, netlink, packet, vsock, or the number of another family. An IPv6 socket that talks to an IPv4 address is ipv6.",
		event: func(e *pavise.Event) ref.Val { return textVal(nameOf(familyNames, uint64(e.Net.Family))) }},
	{Name: "net.type", Type: "string", Ops: netOps, Dim: DimSocket, kind: kindSocket, at: 1, names: socketTypes, Doc: "stream, dgram, raw, seqpacket, or the number of another type.",
		event: func(e *pavise.Event) ref.Val { return textVal(nameOf(socketTypes, uint64(e.Net.Type))) }},
	{Name: "net.protocol", Type: "string", Ops: netOps, Dim: DimSocket, kind: kindSocket, at: 2, names: protocolNames, Doc: "tcp, udp, icmp, icmpv6, sctp, the number of another protocol as \"47\", or empty when there is none.",
		event: func(e *pavise.Event) ref.Val { return textVal(nameOf(protocolNames, uint64(e.Net.Protocol))) }},
	{Name: "net.direction", Type: "string", Ops: netOps, kind: kindDirection, Doc: "out for net.connect and net.send, in for net.bind, net.listen and net.accept.",
		event: func(e *pavise.Event) ref.Val { return textVal(direction(e.Op)) }},
	{Name: "net.remote.address", Type: "string", Ops: remoteOps, Dim: DimRemoteAddr, kind: kindAddr, Doc: "The other end's address; IPv4 also when an IPv6 socket uses it mapped; empty for Unix sockets.",
		event: func(e *pavise.Event) ref.Val { return addrText(&e.Net, &e.Net.Remote) }},
	{Name: "net.remote.port", Type: "int", Ops: remoteOps, Dim: DimRemotePort, kind: kindInt, size: 2, Doc: "The other end's port, 0 for sockets that have none.",
		event: func(e *pavise.Event) ref.Val { return intVal(e.Net.RemotePort) }},
	{Name: "net.remote.path", Type: "string", Ops: remoteOps, Dim: DimRemotePath, kind: kindText, Doc: "Path of the other end's Unix socket; an abstract name begins with \"@\".",
		event: func(e *pavise.Event) ref.Val { return textVal(e.Net.RemotePath) }},
	{Name: "net.remote.domain", Type: "string", Ops: remoteOps, Void: true, Doc: "Name by which the other end's address was looked up.", Tip: "net.remote.address.within(...)",
		event: func(*pavise.Event) ref.Val { return textVal("") }},
	{Name: "net.local.address", Type: "string", Ops: netOps, Dim: DimLocalAddr, kind: kindAddr, Doc: "The socket's own address.",
		event: func(e *pavise.Event) ref.Val { return addrText(&e.Net, &e.Net.Local) }},
	{Name: "net.local.port", Type: "int", Ops: netOps, Dim: DimLocalPort, kind: kindInt, size: 2, Doc: "The socket's own port, 0 for sockets that have none yet.",
		event: func(e *pavise.Event) ref.Val { return intVal(e.Net.LocalPort) }},
	{Name: "net.local.path", Type: "string", Ops: netOps, Dim: DimLocalPath, kind: kindText, Doc: "Path of the Unix socket itself; an abstract name begins with \"@\".",
		event: func(e *pavise.Event) ref.Val { return textVal(e.Net.LocalPath) }},

	{Name: "op", Type: "string", Only: true, Doc: "The operation, as \"file.open\".",
		event: func(e *pavise.Event) ref.Val { return textVal(e.Op.String()) }},
	{Name: "action", Type: "string", Only: true, Doc: "What was done: allow, audit, deny or kill; with monitor, what would have been done.",
		event: func(e *pavise.Event) ref.Val { return textVal(e.Action.String()) }},
	{Name: "verdict", Type: "string", Only: true, Doc: "The same as action.",
		event: func(e *pavise.Event) ref.Val { return textVal(e.Action.String()) }},
	{Name: "monitor", Type: "bool", Only: true, Doc: "Whether the action was only what would have been done.",
		event: func(e *pavise.Event) ref.Val { return types.Bool(e.Monitor) }},
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
	list = append(list, &Field{Name: "process.ancestors", Type: "list(process)",
		Doc:  "The parent, its parent, and so on; each has the fields of process: process.ancestors.exists(a, a.exe.name == \"sshd\").",
		Tip:  "process.parent.exe.path",
		proc: func(p *pavise.Process) ref.Val { return ancestorList(p) }})
	for i := range objectFields {
		f := objectFields[i]
		list = append(list, &f)
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
		{"has", `file.mode.has("06000")`, "Whether all of these permission bits, given in octal, are set."},
		{"startsWith", `file.path.startsWith("/tmp/x-")`, "Whether the string begins so."},
		{"endsWith", `file.name.endsWith(".so")`, "Whether the string ends so."},
		{"contains", `file.path.contains("/.ssh/")`, "Whether the string has this in it."},
		{"in", `process.user.id in [0, 33]`, "Whether the value is one of the list; also `\"CAP_NET_RAW\" in process.caps`."},
		{"exists", `process.args.exists(a, a == "-i")`, "Whether it holds for one of the list; user space only. Also `all`, `filter` and `size`."},
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
