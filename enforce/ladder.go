package enforce

import (
	"slices"
	"strings"

	"github.com/pavise-project/pavise"
	"github.com/pavise-project/pavise/policy"
)

// onReturn is the program of the kill-on-return rung. process.exec's is one of the lifecycle programs.
const onReturn = "on_sys_exit"

// rung is how an operation is judged by one mechanism.
type rung struct {
	rung       pavise.Rung
	programs   []string
	optional   []string     // programs whose hook not every kernel has; choose moves those that it has to programs
	unix       string       // the program that judges Unix sockets, and net.socket of other families than IPv4 and IPv6, where another one does; it can only kill
	deny, kill bool         // what it can do
	killOnly   []policy.Dim // what it knows only after the act
	missing    []policy.Dim // what it does not know at all
	notes      []string
}

// synNote is what is done beside judging accept(2).
const synNote = "a SYN to a socket that one process alone has, or that the rules deny to every process, is dropped before it is answered"

var (
	unixPaths = []policy.Dim{policy.DimRemotePath, policy.DimLocalPath}
	remote    = []policy.Dim{policy.DimRemoteAddr, policy.DimRemotePort, policy.DimRemotePath, policy.DimTargetExe, policy.DimInterface}
	number    = []policy.Dim{policy.DimValue}
	execArgs  = []policy.Dim{policy.DimName}
)

// hook is the lsm programs of an operation. The same programs serve the fmod_ret rung.
type hook struct {
	programs, optional []string
	missing, killOnly  []policy.Dim
	notes              []string
	lower              []rung // below lsm and fmod_ret
}

func onReturnRung(notes ...string) []rung {
	return []rung{{rung: pavise.RungKillOnReturn, programs: []string{onReturn}, kill: true, notes: notes}}
}

// hooks is, for each operation that can be judged, how.
var hooks = map[pavise.Op]hook{
	pavise.OpExec: {programs: []string{"lsm_bprm_check"}, killOnly: execArgs,
		notes: []string{"rules on exec.args are judged when the new program is in place: there the process can only be killed"},
		lower: []rung{{rung: pavise.RungKillOnReturn, programs: []string{"on_exec"}, kill: true, killOnly: execArgs, notes: []string{"the process is killed before the first instruction of the new program"}}}},
	pavise.OpOpen: {programs: []string{"lsm_file_open"},
		lower: onReturnRung("the process is killed before it can use the file; a file that the call created or truncated stays so",
			"files opened through io_uring are not judged")},
	pavise.OpConnect: {programs: []string{"lsm_connect", "lsm_unix_connect", "lsm_sendmsg"},
		lower: []rung{{rung: pavise.RungCgroup, programs: []string{"cg_connect4", "cg_connect6"}, unix: onReturn, deny: true, kill: true, killOnly: unixPaths, notes: []string{
			"IPv4 and IPv6; rules on Unix socket paths are judged on return, where the process can only be killed",
		}}}},
	pavise.OpBind: {programs: []string{"lsm_bind"},
		lower: []rung{{rung: pavise.RungCgroup, programs: []string{"cg_bind4", "cg_bind6"}, unix: onReturn, deny: true, kill: true, killOnly: unixPaths, notes: []string{
			"IPv4 and IPv6; rules on Unix socket paths are judged on return, where the process can only be killed",
		}}}},
	pavise.OpListen: {programs: []string{"lsm_listen"}, lower: onReturnRung()},
	pavise.OpAccept: {programs: []string{"lsm_accept"}, missing: remote,
		notes: []string{"judged before a connection is taken: net.remote.address and .port are known to a SYN alone, where rules that ask nothing of the process deny by them; rules on the rest of net.remote.*, and on net.interface, need another rung", synNote},
		lower: onReturnRung("where connections are judged at cgroup: " + synNote)},
	pavise.OpSend: {programs: []string{"lsm_sendmsg", "lsm_unix_send"},
		lower: []rung{{rung: pavise.RungCgroup, programs: []string{"cg_sendmsg4", "cg_sendmsg6"}, deny: true, kill: true, missing: unixPaths, notes: []string{
			"UDP sent without connect only",
		}}}},
	pavise.OpSocket: {programs: []string{"lsm_socket"}, lower: append([]rung{
		{rung: pavise.RungCgroup, programs: []string{"cg_socket"}, unix: onReturn, deny: true, kill: true, notes: []string{
			"IPv4 and IPv6; sockets of other families, but not those made through io_uring, are judged on return, where the process can only be killed",
		}},
	}, onReturnRung("sockets made through io_uring are not judged")...)},

	pavise.OpSignal: {programs: []string{"lsm_kill"}, notes: []string{"signals of a process to itself, and signal 0, are no act on another: they are not judged"}},
	pavise.OpPtrace: {programs: []string{"lsm_ptrace", "lsm_traceme"}},
	pavise.OpSetid: {programs: []string{"lsm_setuid", "lsm_setgid"}, optional: []string{"lsm_setgroups"},
		notes: []string{"what execve of a set-user-ID program changes is process.exec's"}},
	pavise.OpCapset: {programs: []string{"lsm_capset"}},
	pavise.OpMemExec: {programs: []string{"lsm_mmap", "lsm_mprotect"}, notes: []string{
		"the mappings that execve makes are judged as made by the program before; an executable stack that a program's header asks for is not judged",
	}},

	pavise.OpCreate:   {programs: []string{"lsm_mknod", "on_opened", "lsm_mkdir", "lsm_symlink", "lsm_link", "lsm_rename"}},
	pavise.OpDelete:   {programs: []string{"lsm_unlink", "lsm_rmdir", "lsm_rename"}},
	pavise.OpRename:   {programs: []string{"lsm_rename"}},
	pavise.OpLink:     {programs: []string{"lsm_link"}},
	pavise.OpSymlink:  {programs: []string{"lsm_symlink"}},
	pavise.OpTruncate: {programs: []string{"lsm_truncate"}, optional: []string{"lsm_ftruncate"}},
	pavise.OpChmod:    {programs: []string{"lsm_chmod"}},
	pavise.OpChown:    {programs: []string{"lsm_chown"}},
	pavise.OpSetxattr: {programs: []string{"lsm_setxattr", "lsm_removexattr"}, optional: []string{"lsm_set_acl", "lsm_remove_acl"},
		notes: []string{"the path is that where the file system is first mounted"}},

	pavise.OpMount:     {programs: []string{"lsm_mount", "lsm_move_mount"}, notes: []string{"mount_setattr, and fsconfig of a mounted file system, are not judged"}},
	pavise.OpUmount:    {programs: []string{"lsm_umount"}},
	pavise.OpChroot:    {programs: []string{"lsm_chroot"}, lower: onReturnRung()},
	pavise.OpPivotRoot: {programs: []string{"lsm_pivot_root"}},

	pavise.OpModule:  {programs: []string{"lsm_read_file", "lsm_load_data", "lsm_module_request"}, notes: []string{"unloading is not judged"}},
	pavise.OpBPF:     {programs: []string{"lsm_bpf"}, notes: []string{"the agent itself is not judged, nor is one that is to take its place"}},
	pavise.OpPerf:    {programs: []string{"lsm_perf"}, lower: []rung{{rung: pavise.RungKillOnReturn, programs: []string{onReturn}, kill: true, missing: number}}},
	pavise.OpKeyring: {programs: []string{"lsm_key_permission", "lsm_key_alloc"}},
	pavise.OpUserns:  {programs: []string{"lsm_userns"}},
	pavise.OpIOUring: {programs: []string{"lsm_anon_inode", "lsm_uring_sqpoll", "lsm_uring_creds"}, optional: []string{"lsm_uring_cmd"},
		lower: []rung{{rung: pavise.RungKillOnReturn, programs: []string{onReturn}, kill: true, missing: number, notes: []string{"the making of a ring only"}}}},
	pavise.OpKexec:  {programs: []string{"lsm_read_file", "lsm_load_data"}},
	pavise.OpSysctl: {programs: []string{"lsm_file_open"}, notes: []string{"judged when the variable's file is opened"}, lower: onReturnRung("judged when the variable's file is opened; not through io_uring")},
	pavise.OpDevice: {programs: []string{"lsm_file_open"}, lower: onReturnRung("the process is killed before it can use the device; what opening alone does has been done", "devices opened through io_uring are not judged")},
}

// judged are the operations that can be judged, in order.
var judged = func() (ops []pavise.Op) {
	for op := pavise.OpNone + 1; int(op) < pavise.NumJudged; op++ {
		ops = append(ops, op)
	}
	return ops
}()

// ladder is, for each operation, the rungs that can judge it, best first.
var ladder = func() map[pavise.Op][]rung {
	m := map[pavise.Op][]rung{}
	for op, h := range hooks {
		lsm := rung{rung: pavise.RungLSM, programs: h.programs, optional: h.optional, deny: true, kill: true, missing: h.missing, killOnly: h.killOnly, notes: h.notes}
		fmod := lsm
		fmod.rung, fmod.programs, fmod.optional = pavise.RungFmodRet, fmodNames(h.programs), fmodNames(h.optional)
		m[op] = append([]rung{lsm, fmod}, h.lower...)
	}
	return m
}()

// fmodNames are the names that the loader gives lsm programs on the fmod_ret rung; others stay what they are.
func fmodNames(programs []string) []string {
	out := slices.Clone(programs)
	for i, p := range out {
		if hook, ok := strings.CutPrefix(p, "lsm_"); ok {
			out[i] = "fmod_" + hook
		}
	}
	return out
}
