package pavise

// Op is an operation that Pavise sees and judges. The string is the name used in
// policies and in JSON; the number is the kernel's (bpf/event.h) and is stable.
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
	OpFork
	OpExit
	// OpLost is the agent's own record of events that were lost before they could be delivered.
	OpLost
	NumOps
)

// OpNames are the operations' names, by number.
var OpNames = [NumOps]string{
	"none", "process.exec", "file.open", "net.connect", "net.bind", "net.listen",
	"net.accept", "net.send", "process.fork", "process.exit", "agent.lost",
}

func (o Op) String() string {
	if o < NumOps {
		return OpNames[o]
	}
	return "unknown"
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

	File FileInfo `json:"file,omitzero"` // process.exec (the new executable) and file.open
	Net  NetInfo  `json:"net,omitzero"`  // net.*
	Exec ExecInfo `json:"-"`             // lifecycle process.exec and process.fork: merged into Process by proc
	Exit ExitInfo `json:"exit,omitzero"` // process.exit
	Lost LostInfo `json:"lost,omitzero"` // agent.lost
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
	LocalPath  string   `json:"-"`
}

// ExecInfo is what the kernel captured of a process at exec, at fork or when it was found running.
// Proc makes a Process of it.
type ExecInfo struct {
	Found        bool // already ran when the agent started
	Thread       bool // fork: a new thread, not a process
	ParentExecID uint64
	ParentPID    uint32
	StartTime    uint64 // nanoseconds since boot
	Exe          FileInfo
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
		&c.File.Path, &c.File.Alias, &c.File.FS, &c.Net.RemotePath, &c.Net.LocalPath,
		&c.Exec.Script, &c.Exec.CWD, &c.Exec.Cgroup, &c.Exec.Comm,
		&c.Exec.Exe.Path, &c.Exec.Exe.Alias, &c.Exec.Exe.FS,
	} {
		clone(s)
	}
	c.Exec.Args = append([]byte(nil), c.Exec.Args...)
	return &c
}
