package pavise

// Op is an operation that Pavise sees and judges. The string is the name used in
// policies and in JSON, and is stable; the number is that of enum op in bpf/event.h of the same build.
type Op uint8

// The operations. OpFork and OpExit are lifecycle facts: seen, never judged.
const (
	OpNone Op = iota
	OpExec
	OpOpen
	OpConnect
	OpBind
	OpListen
	OpAccept
	OpSend
	OpSocket
	OpSignal
	OpPtrace
	OpSetid
	OpCapset
	OpMemExec
	OpCreate
	OpDelete
	OpRename
	OpLink
	OpSymlink
	OpTruncate
	OpChmod
	OpChown
	OpSetxattr
	OpMount
	OpUmount
	OpChroot
	OpPivotRoot
	OpModule
	OpBPF
	OpPerf
	OpKeyring
	OpUserns
	OpIOUring
	OpKexec
	OpSysctl
	OpDevice
	OpFork
	OpExit
	// OpLost is the agent's own record of events that were lost before they could be delivered.
	OpLost
	// OpFlow is a report of a flow: Event.Flow.
	OpFlow
	// OpDNS is an answer to a question for a name: Event.DNS.
	OpDNS
	NumOps
)

// NumJudged is how many operations, OpNone included, can be judged: those below OpFork.
const NumJudged = int(OpFork)

// OpNames are the operations' names, by number.
var OpNames = [NumOps]string{
	"none", "process.exec", "file.open", "net.connect", "net.bind", "net.listen", "net.accept", "net.send", "net.socket",
	"process.signal", "process.ptrace", "process.setid", "process.capset", "memory.exec",
	"file.create", "file.delete", "file.rename", "file.link", "file.symlink", "file.truncate", "file.chmod", "file.chown", "file.setxattr",
	"fs.mount", "fs.umount", "fs.chroot", "fs.pivot_root",
	"kernel.module", "kernel.bpf", "kernel.perf", "kernel.keyring", "kernel.userns", "kernel.io_uring", "kernel.kexec", "kernel.sysctl",
	"device.open", "process.fork", "process.exit", "agent.lost", "net.flow", "net.dns",
}

func (o Op) String() string {
	if o < NumOps {
		return OpNames[o]
	}
	return "unknown"
}

// OnSocket tells whether the operation's object is a socket: those named net.*.
func (o Op) OnSocket() bool { return o >= OpConnect && o <= OpSocket }

// OnFile tells whether the operation's object is a file, or may be one.
func (o Op) OnFile() bool {
	switch o {
	case OpExec, OpOpen, OpMemExec, OpModule, OpKexec, OpSysctl, OpDevice:
		return true
	}
	return o >= OpCreate && o <= OpPivotRoot
}

// Action is what a rule asks for, from lenient to strict. The strictest wins.
type Action uint8

// The actions.
const (
	ActionNone Action = iota
	ActionAllow
	ActionAudit
	ActionDeny
	ActionKill
	NumActions
)

var actionNames = [NumActions]string{"none", "allow", "audit", "deny", "kill"}

func (a Action) String() string {
	if a < NumActions {
		return actionNames[a]
	}
	return "unknown"
}

// Decision is what a verdict comes to: what is done, or would be if its rule were not only monitored. The stricter one is the greater.
type Decision uint8

// The decisions.
const (
	DecisionNone Decision = iota // there is no verdict
	DecisionAllow
	DecisionWouldDeny
	DecisionWouldKill
	DecisionDeny
	DecisionKill
	NumDecisions
)

var decisionNames = [NumDecisions]string{"none", "allow", "would-deny", "would-kill", "deny", "kill"}

func (d Decision) String() string {
	if d < NumDecisions {
		return decisionNames[d]
	}
	return "unknown"
}

// Rung is the mechanism by which an operation is judged (DESIGN, the enforcement ladder).
type Rung uint8

// The rungs, best first.
const (
	RungNone Rung = iota
	RungLSM
	RungFmodRet
	RungCgroup
	RungKillOnReturn
	NumRungs
)

var rungNames = [NumRungs]string{"none", "lsm", "fmod_ret", "cgroup", "kill-on-return"}

func (r Rung) String() string {
	if r < NumRungs {
		return rungNames[r]
	}
	return "unknown"
}

// Event is one thing that happened, as every room of Pavise and every reader of its
// API sees it. Decoders reuse one Event: its strings may point into the record they
// were decoded from and are valid only until the next decode. Clone keeps one.
type Event struct {
	ID   uint64 `json:"id"`
	Time int64  `json:"-"` // nanoseconds since the Unix epoch; "time" in JSON, RFC 3339 with nanoseconds
	Op   Op     `json:"op"`

	// Verdict. Action is what was (Monitor false) or would have been (Monitor true) done.
	// ActionNone marks a lifecycle fact that no rule asked for.
	Action  Action `json:"action,omitempty"`
	Monitor bool   `json:"monitor,omitempty"`
	Rung    Rung   `json:"rung,omitempty"`
	// Shadow and Active are of an event about a candidate (pavise shadow) alone: what the candidate would do, and what the active policies did
	// instead. Action is the candidate's then, and Monitor is true.
	Shadow Decision `json:"shadow,omitempty"`
	Active Decision `json:"active,omitempty"`
	// RuleIDs index the Image's rules, strictest first; at most len(RuleIDs) of the Matched rules are named.
	RuleIDs  [4]uint32 `json:"-"`
	Matched  uint8     `json:"matched,omitempty"` // how many rules matched, 255 at most
	Gen      uint32    `json:"-"`                 // the generation that judged
	Policy   string    `json:"policy,omitempty"`
	Rule     string    `json:"rule,omitempty"`
	Severity string    `json:"severity,omitempty"`
	Message  string    `json:"message,omitempty"`
	Count    uint64    `json:"count,omitempty"` // repeats folded into this event, itself included

	PID     uint32   `json:"-"` // thread group id of the actor, in the initial pid namespace
	TID     uint32   `json:"-"`
	ExecID  uint64   `json:"-"` // the actor's exec_id; Process has the rest once proc has resolved it
	Process *Process `json:"process,omitempty"`

	File FileInfo `json:"file,omitzero"`  // process.exec (the new executable), file.*, fs.*, and others whose object is a file
	Net  NetInfo  `json:"net,omitzero"`   // net.*
	Act  ActInfo  `json:"-"`              // what else an operation is about; in JSON under names of its own, as ActInfo says
	Exec ExecInfo `json:"-"`              // lifecycle process.exec and process.fork: merged into Process by proc
	Exit ExitInfo `json:"exit,omitzero"`  // process.exit
	Lost LostInfo `json:"lost,omitzero"`  // agent.lost
	Flow *Flow    `json:"flow,omitempty"` // net.flow: Process is who acts at its local side, and Net are its two ends
	DNS  *DNS     `json:"dns,omitempty"`  // net.dns: Process is who asked, and Net are the two ends
}

// FileInfo is the file an operation acts on.
type FileInfo struct {
	Path      string `json:"path"`
	Alias     string `json:"alias,omitempty"` // the other name by which a rule matched: a hard link's or a bind mount's source
	Truncated bool   `json:"truncated,omitempty"`
	Deleted   bool   `json:"deleted,omitempty"`
	Memfd     bool   `json:"memfd,omitempty"`
	Access    Access `json:"access,omitempty"`
	Mode      uint16 `json:"mode,omitempty"` // permission bits and type, as in stat(2)
	Owner     uint32 `json:"owner"`
	Dev       uint32 `json:"dev"` // as the kernel's dev_t: major<<20 | minor
	Inode     uint64 `json:"inode"`
	Links     uint32 `json:"links"`
	FS        string `json:"fs,omitempty"` // file system type: ext4, overlay, tmpfs
}

// ActInfo is what an operation is about beside a file or a socket. Which of it an operation has, and what it means there:
//
//	process.exec     Name: the new program's arguments, each followed by NUL, when the rule that decided is about them
//	net.connect      Target: who listens at the remote end, without its user, where a rule asked for it and it is on this host
//	process.signal   Value: the signal; Target
//	process.ptrace   Value: PtraceRead or PtraceAttach; Target
//	process.setid    Value, Value2: the new effective (file system, for setfsuid) user and group id; 4294967295 where unchanged
//	process.capset   Value, Value2: the new effective and permitted capabilities
//	memory.exec      Value: Mem* bits (and File, when the memory is a file's)
//	file.rename link NewPath: the name it gets; fs.pivot_root: where the old root goes
//	file.symlink     Name: what the link says
//	file.chmod       Value: the new permission bits
//	file.chown       Value, Value2: the new owner and group, 4294967295 where unchanged
//	file.setxattr    Name: of the attribute
//	fs.mount         NewPath: the source; Name: the file system's type; Value: MS_* flags (mount(2))
//	kernel.module    Value: SourceFile, SourceMemory or SourceRequest; Name: of the module that is requested
//	kernel.kexec     Value: SourceFile or SourceMemory
//	kernel.bpf       Value: the command of bpf(2)
//	kernel.perf      Value: PERF_SECURITY_*: 0 open, 1 a CPU, 2 the kernel, 3 a tracepoint
//	kernel.keyring   Name: the key's type; NewPath: its description
//	kernel.io_uring  Value: 1 setup, 2 a submission thread, 3 other credentials, 4 a command to a device
//	kernel.sysctl    Name: of the variable, as kernel/core_pattern
//	device.open      Value, Value2: major and minor number
type ActInfo struct {
	Value, Value2 uint64
	NewPath       string
	Name          string
	Target        Target
}

// Target is the process that an operation acts on, or reaches.
type Target struct {
	ExecID uint64
	PID    uint32
	UID    uint32
	Path   string // of its executable
}

// Values of ActInfo.Value.
const (
	PtraceRead   = 1 // reading: PTRACE_MODE_READ, as of /proc/PID/maps
	PtraceAttach = 2 // control: PTRACE_MODE_ATTACH, as of ptrace(2) and /proc/PID/mem

	SourceFile    = 1
	SourceMemory  = 2
	SourceRequest = 3

	MemAnonymous = 1 << 0 // no file
	MemWritten   = 1 << 1 // it was or is writable: write, then execute
	MemWritable  = 1 << 2 // writable and executable at once
	MemStack     = 1 << 3
	MemHeap      = 1 << 4
)

// Access is how a file is opened, as a bit set. In JSON it is a list of names.
type Access uint8

// The bits of Access, as in bpf/event.h.
const (
	AccessRead Access = 1 << iota
	AccessWrite
	AccessExec
	AccessCreate
	AccessTruncate
	AccessAppend
)

// AccessNames are the names of the bits of Access, lowest first.
var AccessNames = [...]string{"read", "write", "exec", "create", "truncate", "append"}

// NetInfo is the socket an operation acts on.
type NetInfo struct {
	Family     uint16   `json:"family"` // AF_UNIX 1, AF_INET 2, AF_INET6 10; names in JSON
	Type       uint8    `json:"type"`   // SOCK_STREAM 1, SOCK_DGRAM 2, SOCK_RAW 3, SOCK_SEQPACKET 5; names in JSON
	Protocol   uint8    `json:"protocol"`
	Remote     [16]byte `json:"-"` // IPv6, or IPv4 as ::ffff:a.b.c.d; "remote": {"address","port","path"} in JSON
	Local      [16]byte `json:"-"`
	RemotePort uint16   `json:"-"`
	LocalPort  uint16   `json:"-"`
	RemotePath string   `json:"-"` // Unix sockets; an abstract name begins with '@'
	RemoteName string   `json:"-"` // the domain name that Remote was looked up by
	LocalPath  string   `json:"-"`
	Interface  string   `json:"interface,omitempty"` // where a rule asked for it
	// Established marks a connection that was there when the policies changed, and was judged again (established: recheck).
	Established bool `json:"established,omitempty"`
}

// ExecInfo is what the kernel captured of a process at exec, at fork or when it was found running.
// Proc makes a Process of it.
type ExecInfo struct {
	Found        bool // already ran when the agent started
	Kept         bool // and its facts were taken when it began, by an agent before this one
	Thread       bool // fork: a new thread, not a process
	ParentExecID uint64
	ParentPID    uint32
	StartTime    uint64 // nanoseconds since boot
	Exe          FileInfo
	ExeDigest    string // of its content, "sha256:..."; empty when it is not known
	ExeVerity    string // of fs-verity, likewise
	Script       string
	Args         []byte // NUL-separated, at most 4 KiB
	ArgsCut      bool   // there was more
	CWD          string
	Cgroup       string
	CgroupID     uint64
	UID, GID     uint32 // real
	EUID, EGID   uint32
	LoginID      uint32 // 4294967295: not set
	Caps         uint64 // effective
	SecureExec   bool
	TTY          bool
	OnRoot       bool // Exe is on the machine's root file system
	Namespaces   Namespaces
	Comm         string
}

// ExitInfo is how a process ended.
type ExitInfo struct {
	Code   uint8 `json:"code"`
	Signal uint8 `json:"signal,omitempty"`
}

// LostInfo counts events that were not delivered: Op says of which kind they were.
type LostInfo struct {
	Op     Op     `json:"op"`
	Where  string `json:"where"` // kernel-ring, decode, subscriber
	Policy string `json:"policy,omitempty"`
	Count  uint64 `json:"count"`
}

// Clone returns a copy of e that shares no memory with the record e was decoded from.
// The Process, which is never rewritten in place, is shared.
func (e *Event) Clone() *Event {
	c := *e
	clone := func(s *string) { *s = string(append([]byte(nil), *s...)) }
	for _, s := range []*string{
		&c.File.Path, &c.File.Alias, &c.File.FS, &c.Net.RemotePath, &c.Net.LocalPath, &c.Net.Interface,
		&c.Act.NewPath, &c.Act.Name, &c.Act.Target.Path,
		&c.Exec.ExeDigest, &c.Exec.ExeVerity, &c.Exec.Script, &c.Exec.CWD, &c.Exec.Cgroup, &c.Exec.Comm,
		&c.Exec.Exe.Path, &c.Exec.Exe.Alias, &c.Exec.Exe.FS,
	} {
		clone(s)
	}
	c.Exec.Args = append([]byte(nil), c.Exec.Args...)
	return &c
}
