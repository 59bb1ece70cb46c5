package pavise

import "strconv"

// Names are the names of numbers, in JSON, in text and in policies: Names[n] is that of n. A number without a name is written
// in decimal; 0 without a name is nothing.
type Names []string

// Name returns the name of n, or its digits; nothing for a 0 without a name.
func (t Names) Name(n uint64) string {
	switch {
	case n < uint64(len(t)) && t[n] != "":
		return t[n]
	case n == 0:
		return ""
	}
	return strconv.FormatUint(n, 10)
}

// Number returns the number with a name.
func (t Names) Number(name string) (uint64, bool) {
	if name == "" {
		return 0, false
	}
	for n, s := range t {
		if s == name {
			return uint64(n), true //nolint:gosec // an index
		}
	}
	return 0, false
}

// append appends the name of n, or its digits.
func (t Names) append(b []byte, n uint64) []byte {
	if n < uint64(len(t)) && t[n] != "" {
		return append(b, t[n]...)
	}
	return strconv.AppendUint(b, n, 10)
}

// Numbers that have a name in JSON and in policies.
const (
	FamilyUnix = 1
	FamilyIPv4 = 2
	FamilyIPv6 = 10

	TypeStream    = 1
	TypeDgram     = 2
	TypeRaw       = 3
	TypeSeqpacket = 5

	ProtocolICMP   = 1
	ProtocolTCP    = 6
	ProtocolUDP    = 17
	ProtocolICMPv6 = 58
)

// The names of the numbers of sockets, and of the numbers in ActInfo.
var (
	FamilyNames   = Names{FamilyUnix: "unix", FamilyIPv4: "ipv4", FamilyIPv6: "ipv6", 16: "netlink", 17: "packet", 40: "vsock"}
	TypeNames     = Names{TypeStream: "stream", TypeDgram: "dgram", TypeRaw: "raw", TypeSeqpacket: "seqpacket"}
	ProtocolNames = Names{ProtocolICMP: "icmp", ProtocolTCP: "tcp", ProtocolUDP: "udp", ProtocolICMPv6: "icmpv6", 132: "sctp"}
	// FileTypeNames name the highest four bits of a file's mode.
	FileTypeNames = Names{1: "fifo", 2: "char", 4: "directory", 6: "block", 8: "regular", 10: "symlink", 12: "socket"}

	PtraceNames  = Names{PtraceRead: "read", PtraceAttach: "attach"}
	SourceNames  = Names{SourceFile: "file", SourceMemory: "memory", SourceRequest: "request"}
	PerfNames    = Names{"open", "cpu", "kernel", "tracepoint"}
	IOUringNames = Names{1: "setup", 2: "sqpoll", 3: "credentials", 4: "command"}
	// BPFNames are the commands of bpf(2): enum bpf_cmd of Linux 6.19.
	BPFNames = Names{
		"map_create", "map_lookup_elem", "map_update_elem", "map_delete_elem", "map_get_next_key", "prog_load", "obj_pin", "obj_get",
		"prog_attach", "prog_detach", "prog_test_run", "prog_get_next_id", "map_get_next_id", "prog_get_fd_by_id", "map_get_fd_by_id",
		"obj_get_info_by_fd", "prog_query", "raw_tracepoint_open", "btf_load", "btf_get_fd_by_id", "task_fd_query",
		"map_lookup_and_delete_elem", "map_freeze", "btf_get_next_id", "map_lookup_batch", "map_lookup_and_delete_batch",
		"map_update_batch", "map_delete_batch", "link_create", "link_update", "link_get_fd_by_id", "link_get_next_id", "enable_stats",
		"iter_create", "link_detach", "prog_bind_map", "token_create", "prog_stream_read_by_fd", "prog_assoc_struct_ops",
	}
	// SignalNames are those of amd64 and arm64, which are the same. The real-time signals count from glibc's first, 34, as kill(1) does.
	SignalNames = signalNames()
)

func signalNames() Names {
	t := Names{
		"0", "SIGHUP", "SIGINT", "SIGQUIT", "SIGILL", "SIGTRAP", "SIGABRT", "SIGBUS", "SIGFPE", "SIGKILL", "SIGUSR1", "SIGSEGV", "SIGUSR2",
		"SIGPIPE", "SIGALRM", "SIGTERM", "SIGSTKFLT", "SIGCHLD", "SIGCONT", "SIGSTOP", "SIGTSTP", "SIGTTIN", "SIGTTOU", "SIGURG", "SIGXCPU",
		"SIGXFSZ", "SIGVTALRM", "SIGPROF", "SIGWINCH", "SIGIO", "SIGPWR", "SIGSYS", "", "", "SIGRTMIN",
	}
	for n := 1; n <= 30; n++ {
		t = append(t, "SIGRTMIN+"+strconv.Itoa(n))
	}
	return t
}

// MemNames and MountNames name the bits of ActInfo.Value of memory.exec and fs.mount, lowest first.
var (
	MemNames   = [...]string{"anonymous", "written", "writable", "stack", "heap"}
	MountNames = [...]string{
		"readonly", "nosuid", "nodev", "noexec", "synchronous", "remount", "mandlock", "dirsync", "nosymfollow", "", "noatime", "nodiratime",
		"bind", "move", "recursive", "silent", "posixacl", "unbindable", "private", "slave", "shared", "relatime", "kernmount", "i_version",
		"strictatime", "lazytime",
	}
)

// Flags of mount(2) that policies name.
const (
	MountReadonly    = 1 << 0
	MountNosuid      = 1 << 1
	MountNodev       = 1 << 2
	MountNoexec      = 1 << 3
	MountRemount     = 1 << 5
	MountBind        = 1 << 12
	MountMove        = 1 << 13
	MountPropagation = 0xf << 17 // unbindable, private, slave, shared
)

// Unchanged stands in ActInfo for a user or group that process.setid and file.chown leave as it is.
const Unchanged = 1<<32 - 1

// CapNames are the names of the capabilities, by number. A bit beyond them is written as "CAP_63".
var CapNames = [...]string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID",
	"CAP_SETUID", "CAP_SETPCAP", "CAP_LINUX_IMMUTABLE", "CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST", "CAP_NET_ADMIN",
	"CAP_NET_RAW", "CAP_IPC_LOCK", "CAP_IPC_OWNER", "CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_SYS_CHROOT",
	"CAP_SYS_PTRACE", "CAP_SYS_PACCT", "CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_NICE", "CAP_SYS_RESOURCE",
	"CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_MKNOD", "CAP_LEASE", "CAP_AUDIT_WRITE", "CAP_AUDIT_CONTROL",
	"CAP_SETFCAP", "CAP_MAC_OVERRIDE", "CAP_MAC_ADMIN", "CAP_SYSLOG", "CAP_WAKE_ALARM", "CAP_BLOCK_SUSPEND",
	"CAP_AUDIT_READ", "CAP_PERFMON", "CAP_BPF", "CAP_CHECKPOINT_RESTORE",
}
