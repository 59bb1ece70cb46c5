package pavise

import (
	"iter"
	"strings"
)

// Process is one executable image of one process: (boot, pid, start time) and a new
// exec generation at each exec. It is immutable once published, except through proc.
type Process struct {
	ExecID    uint64 `json:"exec_id"`
	PID       uint32 `json:"pid"`
	StartTime int64  `json:"start_time"` // of the process, not of this image: nanoseconds since the Unix epoch; RFC 3339 in JSON
	Found     bool   `json:"found,omitempty"`
	Unknown   bool   `json:"unknown,omitempty"` // nothing but ExecID and PID is known: its record was lost or is not here yet

	Exe     FileInfo `json:"exe"`
	Script  string   `json:"script,omitempty"`
	Args    []string `json:"args,omitempty"`
	ArgsCut bool     `json:"args_truncated,omitempty"`
	OnRoot  bool     `json:"on_root,omitempty"` // Exe is on the machine's root file system
	CWD     string   `json:"cwd,omitempty"`

	ExeDigest string `json:"exe_digest,omitempty"` // of its content, "sha256:..."; empty when no rule asked for it
	ExeVerity string `json:"exe_verity,omitempty"` // of fs-verity, likewise

	TTY bool `json:"tty,omitempty"`

	User       User       `json:"user"`
	GroupID    uint32     `json:"group_id"`
	RealUID    uint32     `json:"real_uid"`
	RealGID    uint32     `json:"real_gid"`
	LoginID    *uint32    `json:"login_id,omitempty"` // absent when not set
	Caps       uint64     `json:"caps"`               // effective capabilities, bit n is capability n; in JSON a list of names
	SecureExec bool       `json:"secure_exec,omitempty"`
	Namespaces Namespaces `json:"namespaces"`

	Cgroup    string     `json:"cgroup,omitempty"`
	CgroupID  uint64     `json:"cgroup_id,omitempty"`
	Unit      string     `json:"unit,omitempty"`
	Container *Container `json:"container,omitempty"`
	Pod       *Pod       `json:"pod,omitempty"`

	ParentExecID uint64 `json:"parent_exec_id"`
	// Parent is one level only and its own Parent is nil, so that a long-lived process does not keep
	// every ancestor in memory; proc.Table.Ancestors walks further. In JSON: exec_id, pid, exe.path.
	Parent   *Process `json:"-"`
	ExitTime int64    `json:"exit_time,omitempty"` // nanoseconds since the Unix epoch, 0 while it runs
}

// User is the effective user of a process. Name is empty when it could not be found.
type User struct {
	ID   uint32 `json:"id"`
	Name string `json:"name,omitempty"`
}

// Container is the container a process runs in. ID and Runtime are from its cgroup: of the innermost container. The others
// are what the runtime of the outermost one says of that, empty where it says nothing: a container made inside of another is not believed about itself.
type Container struct {
	ID      string            `json:"id"`
	Runtime string            `json:"runtime,omitempty"`
	Name    string            `json:"name,omitempty"`
	Image   string            `json:"image,omitempty"`
	Labels  map[string]string `json:"labels,omitempty"`
}

// Pod is the Kubernetes pod of a process's container, as the container's runtime says.
type Pod struct {
	Namespace string            `json:"namespace"`
	Name      string            `json:"name,omitempty"`
	Labels    map[string]string `json:"labels,omitempty"`
}

// Namespaces are inode numbers of a process's namespaces, as in /proc/PID/ns.
type Namespaces struct {
	Mnt    uint32 `json:"mnt"`
	PID    uint32 `json:"pid"`
	Net    uint32 `json:"net"`
	User   uint32 `json:"user"`
	Cgroup uint32 `json:"cgroup"`
	UTS    uint32 `json:"uts"`
	IPC    uint32 `json:"ipc"`
	// Host are those that are the machine's own, the ones that were there at boot. In JSON it is a list of names.
	Host NamespaceSet `json:"host,omitempty"`
}

// NamespaceSet is a set of kinds of namespaces. In JSON it is a list of names.
type NamespaceSet uint8

// The bits of NamespaceSet, as in bpf/event.h.
const (
	NSMnt NamespaceSet = 1 << iota
	NSPID
	NSNet
	NSUser
	NSCgroup
	NSUTS
	NSIPC
	NSAll NamespaceSet = 1<<iota - 1
)

// NamespaceNames are the names of the bits of NamespaceSet, lowest first.
var NamespaceNames = [...]string{"mnt", "pid", "net", "user", "cgroup", "uts", "ipc"}

// Args goes through the arguments of a process, which are each followed by NUL, the last one only when it was not cut.
func Args(s string) iter.Seq[string] {
	return func(yield func(string) bool) {
		for s != "" {
			arg, rest, _ := strings.Cut(s, "\x00")
			if !yield(arg) {
				return
			}
			s = rest
		}
	}
}
