package convert

import "strings"

// hook is what a function of the kernel, a hook of its security modules or a system call is in Pavise. Operations and fields that
// this version does not have may stand here: they are used as soon as they are there.
type hook struct {
	ops  []string
	when *cond        // what the hook is about, of all that the operations are about
	args map[int]role // by position
	note string       // how the operation differs
}

// role is what an argument of a hook is.
type role struct {
	kind  roleKind
	field string // of the language
}

type roleKind uint8

const (
	roleNone   roleKind = iota
	rolePath            // a file, known by its path
	roleParent          // the directory that the file is in
	roleFD              // a descriptor, of type fd
	roleText            // other text
	roleNumber          // a number
	roleMode            // permission bits
	roleSignal          // a signal
	rolePtrace          // PTRACE_ATTACH
	roleAccess          // PTRACE_MODE_READ, PTRACE_MODE_ATTACH
	roleBPF             // a command of bpf(2)
	roleCaps            // a set of capabilities
	roleMay             // MAY_READ, MAY_WRITE
	roleProt            // PROT_READ, PROT_WRITE, PROT_EXEC
	roleOpen            // O_WRONLY, O_CREAT
	roleLoad            // enum kernel_read_file_id or kernel_load_data_id: a module is 2
	roleFamily          // AF_INET
	roleType            // SOCK_STREAM
	roleProto           // IPPROTO_TCP
	roleSocket          // a socket, or a packet on its way out: the two ends
	rolePeer            // an address: the other end's
	roleOwn             // an address: the socket's own
)

var (
	filePath   = role{rolePath, "file.path"}
	newPath    = role{rolePath, "file.new_path"}
	fileParent = role{roleParent, "file.path"}
	newParent  = role{roleParent, "file.new_path"}
	fileFD     = role{roleFD, "file.path"}
	linkTarget = role{roleText, "file.target"}
	newMode    = role{roleMode, "file.new_mode"}
	newOwner   = role{roleNumber, "file.new_owner.id"}
	newGroup   = role{roleNumber, "file.new_group.id"}
	userID     = role{roleNumber, "setid.user.id"}
	groupID    = role{roleNumber, "setid.group.id"}
	targetPID  = role{roleNumber, "target.pid"}
	signal     = role{roleSignal, "signal"}
	may        = role{kind: roleMay}
	prot       = role{kind: roleProt}
	openFlags  = role{kind: roleOpen}
	socket     = role{kind: roleSocket}
	peer       = role{kind: rolePeer}
	own        = role{kind: roleOwn}
)

// text is an argument that is text.
func text(field string) role { return role{roleText, field} }

const (
	noteOpened = "judged when the file is opened, not at each use of it"
	noteName   = "the file that was reached is judged, not the name that the program gave"
	noteFD     = "fd_install also sees descriptors that are no opened files, and those that are passed or copied: only opening is judged"
	notePacket = "judged when a connection is made and when something is sent, not packet by packet"
	noteSend   = "judged when a connection is made too: not every machine sees each sending"
	noteMount  = "Tetragon's path of a dentry begins at its mount, Pavise's at the root"
)

func ops(names ...string) []string { return names }

var (
	isTCP = oneOf("net.protocol", `"tcp"`)
	isUDP = oneOf("net.protocol", `"udp"`)
	// The other id stays, which is written as the largest number.
	setsUser, setsGroup = test("setid.user.id != 4294967295"), test("setid.group.id != 4294967295")
	isIPv4, isIPv6      = oneOf("net.family", `"ipv4"`), oneOf("net.family", `"ipv6"`)
)

// hooks are those with an equivalent, by the names of functions without the architecture's prefix ("sys_" and "security_" stay).
var hooks = func() map[string]*hook {
	exec, open, modules, sends := ops("process.exec"), ops("file.open"), ops("kernel.module"), ops("net.connect", "net.send")
	reads, writing := is("file.access.read"), is("file.access.write")
	list := []struct {
		names string
		hook  hook
	}{
		// Programs.
		{"security_bprm_check security_bprm_creds_for_exec security_bprm_creds_from_file security_bprm_committing_creds security_bprm_committed_creds",
			hook{ops: exec, args: map[int]role{0: filePath}}},
		{"sys_execve", hook{ops: exec, args: map[int]role{0: filePath}, note: noteName}},
		{"sys_execveat", hook{ops: exec, args: map[int]role{1: filePath}, note: noteName}},

		// Opened files.
		{"security_file_open", hook{ops: open, args: map[int]role{0: filePath}}},
		{"security_file_post_open", hook{ops: open, args: map[int]role{0: filePath, 1: may}}},
		{"fd_install", hook{ops: open, args: map[int]role{1: filePath}, note: noteFD}},
		{"sys_open", hook{ops: open, args: map[int]role{0: filePath, 1: openFlags}, note: noteName}},
		{"sys_creat", hook{ops: open, args: map[int]role{0: filePath}, when: allOf(is("file.access.write"), is("file.access.truncate")), note: noteName}},
		{"sys_openat do_sys_open", hook{ops: open, args: map[int]role{1: filePath, 2: openFlags}, note: noteName}},
		{"sys_openat2 do_sys_openat2 do_filp_open", hook{ops: open, args: map[int]role{1: filePath}, note: noteName}},
		{"security_file_permission", hook{ops: open, args: map[int]role{0: filePath, 1: may}, note: noteOpened}},
		{"security_mmap_file", hook{ops: open, args: map[int]role{0: filePath, 1: prot}, note: noteOpened}},
		{"sys_read sys_pread64 sys_readv sys_preadv sys_preadv2", hook{ops: open, when: reads, args: map[int]role{0: fileFD}, note: noteOpened}},
		{"sys_write sys_pwrite64 sys_writev sys_pwritev sys_pwritev2", hook{ops: open, when: writing, args: map[int]role{0: fileFD}, note: noteOpened}},
		{"vfs_read", hook{ops: open, when: reads, args: map[int]role{0: filePath}, note: noteOpened}},
		{"vfs_write", hook{ops: open, when: writing, args: map[int]role{0: filePath}, note: noteOpened}},

		// Files changed otherwise.
		{"security_path_truncate security_file_truncate", hook{ops: ops("file.truncate"), args: map[int]role{0: filePath}}},
		{"sys_truncate", hook{ops: ops("file.truncate"), args: map[int]role{0: filePath}, note: noteName}},
		{"sys_ftruncate", hook{ops: ops("file.truncate"), args: map[int]role{0: fileFD}}},
		{"security_path_unlink security_path_rmdir", hook{ops: ops("file.delete"), args: map[int]role{0: fileParent, 1: filePath}, note: noteMount}},
		{"security_inode_unlink security_inode_rmdir", hook{ops: ops("file.delete"), args: map[int]role{1: filePath}, note: noteMount}},
		{"sys_unlink sys_rmdir", hook{ops: ops("file.delete"), args: map[int]role{0: filePath}, note: noteName}},
		{"sys_unlinkat do_unlinkat", hook{ops: ops("file.delete"), args: map[int]role{1: filePath}, note: noteName}},
		{"security_path_rename", hook{ops: ops("file.rename"), args: map[int]role{0: fileParent, 1: filePath, 2: newParent, 3: newPath}, note: noteMount}},
		{"security_inode_rename", hook{ops: ops("file.rename"), args: map[int]role{1: filePath, 3: newPath}, note: noteMount}},
		{"sys_rename", hook{ops: ops("file.rename"), args: map[int]role{0: filePath, 1: newPath}, note: noteName}},
		{"sys_renameat sys_renameat2", hook{ops: ops("file.rename"), args: map[int]role{1: filePath, 3: newPath}, note: noteName}},
		{"security_path_link", hook{ops: ops("file.link"), args: map[int]role{0: filePath, 1: newParent, 2: newPath}, note: noteMount}},
		{"security_inode_link", hook{ops: ops("file.link"), args: map[int]role{0: filePath, 2: newPath}, note: noteMount}},
		{"sys_link", hook{ops: ops("file.link"), args: map[int]role{0: filePath, 1: newPath}, note: noteName}},
		{"sys_linkat", hook{ops: ops("file.link"), args: map[int]role{1: filePath, 3: newPath}, note: noteName}},
		{"security_path_symlink", hook{ops: ops("file.symlink"), args: map[int]role{0: fileParent, 1: filePath, 2: linkTarget}, note: noteMount}},
		{"security_inode_symlink", hook{ops: ops("file.symlink"), args: map[int]role{1: filePath, 2: linkTarget}, note: noteMount}},
		{"sys_symlink", hook{ops: ops("file.symlink"), args: map[int]role{0: linkTarget, 1: filePath}, note: noteName}},
		{"sys_symlinkat", hook{ops: ops("file.symlink"), args: map[int]role{0: linkTarget, 2: filePath}, note: noteName}},
		{"security_path_mknod security_path_mkdir", hook{ops: ops("file.create"), args: map[int]role{0: fileParent, 1: filePath}, note: noteMount}},
		{"security_inode_create security_inode_mkdir security_inode_mknod", hook{ops: ops("file.create"), args: map[int]role{1: filePath}, note: noteMount}},
		{"sys_mkdir sys_mknod", hook{ops: ops("file.create"), args: map[int]role{0: filePath}, note: noteName}},
		{"sys_mkdirat sys_mknodat", hook{ops: ops("file.create"), args: map[int]role{1: filePath}, note: noteName}},
		{"security_path_chmod", hook{ops: ops("file.chmod"), args: map[int]role{0: filePath, 1: newMode}}},
		{"sys_chmod", hook{ops: ops("file.chmod"), args: map[int]role{0: filePath, 1: newMode}, note: noteName}},
		{"sys_fchmodat sys_fchmodat2", hook{ops: ops("file.chmod"), args: map[int]role{1: filePath, 2: newMode}, note: noteName}},
		{"sys_fchmod", hook{ops: ops("file.chmod"), args: map[int]role{0: fileFD, 1: newMode}}},
		{"security_path_chown", hook{ops: ops("file.chown"), args: map[int]role{0: filePath, 1: newOwner, 2: newGroup}}},
		{"sys_chown sys_lchown", hook{ops: ops("file.chown"), args: map[int]role{0: filePath, 1: newOwner, 2: newGroup}, note: noteName}},
		{"sys_fchownat", hook{ops: ops("file.chown"), args: map[int]role{1: filePath, 2: newOwner, 3: newGroup}, note: noteName}},
		{"sys_fchown", hook{ops: ops("file.chown"), args: map[int]role{0: fileFD, 1: newOwner, 2: newGroup}}},
		{"security_inode_setxattr", hook{ops: ops("file.setxattr")}},
		{"sys_setxattr sys_lsetxattr", hook{ops: ops("file.setxattr"), args: map[int]role{0: filePath, 1: text("file.xattr")}, note: noteName}},
		{"sys_fsetxattr", hook{ops: ops("file.setxattr"), args: map[int]role{0: fileFD, 1: text("file.xattr")}}},

		// Sockets.
		{"security_socket_create sys_socket", hook{ops: ops("net.socket"), args: map[int]role{0: {kind: roleFamily}, 1: {kind: roleType}, 2: {kind: roleProto}}}},
		{"security_socket_connect", hook{ops: ops("net.connect"), args: map[int]role{0: socket, 1: peer}}},
		{"sys_connect", hook{ops: ops("net.connect"), args: map[int]role{1: peer}}},
		{"tcp_connect", hook{ops: ops("net.connect"), when: isTCP, args: map[int]role{0: socket}}},
		{"tcp_v4_connect", hook{ops: ops("net.connect"), when: allOf(isTCP, isIPv4), args: map[int]role{0: socket, 1: peer}}},
		{"tcp_v6_connect", hook{ops: ops("net.connect"), when: allOf(isTCP, isIPv6), args: map[int]role{0: socket, 1: peer}}},
		{"security_socket_bind", hook{ops: ops("net.bind"), args: map[int]role{0: socket, 1: own}}},
		{"sys_bind", hook{ops: ops("net.bind"), args: map[int]role{1: own}}},
		{"security_socket_listen", hook{ops: ops("net.listen"), args: map[int]role{0: socket}}},
		{"sys_listen", hook{ops: ops("net.listen")}},
		{"inet_csk_listen_start inet_listen", hook{ops: ops("net.listen"), when: isTCP, args: map[int]role{0: socket}}},
		{"security_socket_accept", hook{ops: ops("net.accept"), args: map[int]role{0: socket}}},
		{"sys_accept sys_accept4", hook{ops: ops("net.accept")}},
		{"inet_csk_accept", hook{ops: ops("net.accept"), when: isTCP, args: map[int]role{0: socket}}},
		{"security_socket_sendmsg", hook{ops: sends, args: map[int]role{0: socket}, note: noteSend}},
		{"sys_sendto sys_sendmsg sys_sendmmsg", hook{ops: sends, note: noteSend}},
		{"udp_sendmsg", hook{ops: sends, when: allOf(isUDP, isIPv4), args: map[int]role{0: socket}, note: noteSend}},
		{"udpv6_sendmsg", hook{ops: sends, when: allOf(isUDP, isIPv6), args: map[int]role{0: socket}, note: noteSend}},
		{"tcp_sendmsg", hook{ops: sends, when: isTCP, args: map[int]role{0: socket}, note: noteSend}},
		{"ip_output", hook{ops: sends, when: call("net.remote.address", "within", `"0.0.0.0/0"`), args: map[int]role{1: socket, 2: socket}, note: notePacket}},
		{"ip6_output", hook{ops: sends, when: call("net.remote.address", "within", `"::/0"`), args: map[int]role{1: socket, 2: socket}, note: notePacket}},

		// Processes and memory.
		{"security_task_kill", hook{ops: ops("process.signal"), args: map[int]role{2: signal}}},
		{"sys_kill sys_tkill sys_rt_sigqueueinfo", hook{ops: ops("process.signal"), args: map[int]role{0: targetPID, 1: signal}}},
		{"sys_tgkill sys_rt_tgsigqueueinfo", hook{ops: ops("process.signal"), args: map[int]role{0: targetPID, 2: signal}}},
		{"sys_pidfd_send_signal", hook{ops: ops("process.signal"), args: map[int]role{1: signal}}},
		{"security_ptrace_access_check", hook{ops: ops("process.ptrace"), args: map[int]role{1: {kind: roleAccess}}}},
		{"sys_ptrace", hook{ops: ops("process.ptrace"), args: map[int]role{0: {kind: rolePtrace}, 1: targetPID}, note: "judged when control is taken (attach), not at each request"}},
		{"sys_process_vm_readv sys_process_vm_writev", hook{ops: ops("process.ptrace"), args: map[int]role{0: targetPID}}},
		{"security_task_fix_setuid", hook{ops: ops("process.setid"), when: setsUser}},
		{"security_task_fix_setgid", hook{ops: ops("process.setid"), when: setsGroup}},
		{"sys_setuid sys_setfsuid", hook{ops: ops("process.setid"), when: setsUser, args: map[int]role{0: userID}}},
		{"sys_setgid sys_setfsgid", hook{ops: ops("process.setid"), when: setsGroup, args: map[int]role{0: groupID}}},
		{"sys_setreuid sys_setresuid", hook{ops: ops("process.setid"), when: setsUser, args: map[int]role{1: userID}}},
		{"sys_setregid sys_setresgid", hook{ops: ops("process.setid"), when: setsGroup, args: map[int]role{1: groupID}}},
		{"security_capset", hook{ops: ops("process.capset"), args: map[int]role{2: {roleCaps, "capset.effective"}, 4: {roleCaps, "capset.permitted"}}}},
		{"sys_capset", hook{ops: ops("process.capset")}},
		{"security_file_mprotect", hook{ops: ops("memory.exec"), args: map[int]role{1: prot, 2: prot}}},
		{"sys_mprotect sys_pkey_mprotect", hook{ops: ops("memory.exec"), args: map[int]role{2: prot}}},

		// Mounts.
		{"security_sb_mount", hook{ops: ops("fs.mount"), args: map[int]role{0: text("mount.source"), 1: filePath, 2: text("mount.type")}}},
		{"sys_mount", hook{ops: ops("fs.mount"), args: map[int]role{0: text("mount.source"), 1: filePath, 2: text("mount.type")}, note: noteName}},
		{"security_sb_umount", hook{ops: ops("fs.umount")}},
		{"sys_umount sys_umount2", hook{ops: ops("fs.umount"), args: map[int]role{0: filePath}, note: noteName}},
		{"security_path_chroot", hook{ops: ops("fs.chroot"), args: map[int]role{0: filePath}}},
		{"sys_chroot", hook{ops: ops("fs.chroot"), args: map[int]role{0: filePath}, note: noteName}},
		{"security_sb_pivotroot", hook{ops: ops("fs.pivot_root"), args: map[int]role{0: newPath, 1: filePath}}},
		{"sys_pivot_root", hook{ops: ops("fs.pivot_root"), args: map[int]role{0: filePath, 1: newPath}, note: noteName}},

		// The kernel.
		{"security_kernel_read_file", hook{ops: modules, when: oneOf("module.source", `"file"`), args: map[int]role{0: filePath, 1: {kind: roleLoad}}}},
		{"security_kernel_load_data", hook{ops: modules, when: oneOf("module.source", `"memory"`), args: map[int]role{0: {kind: roleLoad}}}},
		{"security_kernel_module_request", hook{ops: modules, when: oneOf("module.source", `"request"`), args: map[int]role{0: text("module.name")}}},
		{"do_init_module", hook{ops: modules, when: not(oneOf("module.source", `"request"`)), note: "judged before the module is read, also when loading it fails later"}},
		{"sys_init_module", hook{ops: modules, when: oneOf("module.source", `"memory"`)}},
		{"sys_finit_module", hook{ops: modules, when: oneOf("module.source", `"file"`), args: map[int]role{0: fileFD}}},
		{"security_bpf sys_bpf", hook{ops: ops("kernel.bpf"), args: map[int]role{0: {roleBPF, "bpf.command"}}}},
		{"bpf_check", hook{ops: ops("kernel.bpf"), when: oneOf("bpf.command", `"prog_load"`)}},
		{"security_perf_event_open sys_perf_event_open", hook{ops: ops("kernel.perf")}},
		{"sys_add_key sys_request_key", hook{ops: ops("kernel.keyring"), args: map[int]role{0: text("key.type"), 1: text("key.description")}}},
		{"security_key_alloc sys_keyctl", hook{ops: ops("kernel.keyring")}},
		{"security_create_user_ns create_user_ns", hook{ops: ops("kernel.userns")}},
		{"sys_io_uring_setup io_uring_setup", hook{ops: ops("kernel.io_uring"), when: oneOf("io_uring.request", `"setup"`)}},
		{"sys_kexec_load", hook{ops: ops("kernel.kexec"), when: oneOf("kexec.source", `"memory"`)}},
		{"sys_kexec_file_load", hook{ops: ops("kernel.kexec"), when: oneOf("kexec.source", `"file"`), args: map[int]role{0: fileFD}}},
	}
	m := map[string]*hook{}
	for i := range list {
		for _, name := range strings.Fields(list[i].names) {
			if m[name] != nil {
				panic("convert: two equivalents of " + name) // a fault of the table, found by any test
			}
			m[name] = &list[i].hook
		}
	}
	return m
}()

// function is the name of a kprobe's call in the table: without the architecture's prefix.
func function(call string) string {
	for _, prefix := range []string{"__x64_", "__arm64_", "__ia32_", "__se_", "__do_"} {
		if rest, ok := strings.CutPrefix(call, prefix); ok && strings.HasPrefix(rest, "sys_") {
			return rest
		}
	}
	return call
}

// lsmFunction is the name in the table of a hook of security modules: "file_open" is called by security_file_open.
func lsmFunction(name string) string { return "security_" + strings.TrimSuffix(name, "_security") }
