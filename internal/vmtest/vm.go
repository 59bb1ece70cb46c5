package vmtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Errors of Run, beside those of the machine's own files.
var (
	ErrBoot    = errors.New("the virtual machine did not boot")
	ErrTimeout = errors.New("the command did not end in time")
	ErrCrash   = errors.New("the virtual machine ended before the command")
	ErrStill   = errors.New("the virtual machine stood still")
	ErrOops    = errors.New("its kernel followed a bad pointer") // beside one of the others
)

// bootTime is how long a boot may take. Some 8 s is usual; more on a loaded machine.
const bootTime = 90 * time.Second

// oops is what the kernel prints when it has read or written what is not there. An emulator that trips over patched code has it meet bad instructions.
var oops = regexp.MustCompile(`BUG: (kernel NULL pointer dereference|unable to handle)`)

// VM describes one run of one command in one kernel.
type VM struct {
	Kernel  Kernel
	NoLSM   bool          // leave bpf out of the kernel's lsm= list
	ICount  bool          // one guest instruction is one guest nanosecond: repeatable counts, slower
	Timeout time.Duration // for the command, after the boot; 0 means 5 minutes
	Quiet   time.Duration // for which the command may print nothing; 0 means for ever
	Dir     string        // working directory of the command; must exist on this machine
	Env     []string      // added to a small default environment
	Command []string
	Output  io.Writer // what the command prints, as it prints it
	Log     io.Writer // remarks of the kit; the console's end if the machine fails
	Console io.Writer // what the kernel prints, after the end; may be nil
}

// Environment returns the variables that kerntest reads in the machine.
func (v *VM) Environment() []string {
	expect := "lsm"
	if v.NoLSM {
		expect = "nolsm"
	}
	return []string{"PAVISE_VM=" + v.Kernel.Name, "PAVISE_EXPECT=" + expect}
}

// Run boots the machine, runs the command and returns its exit status. A machine that hangs
// while it boots is started once more; nothing else is repeated.
func (v *VM) Run(ctx context.Context) (status int, err error) {
	if os.Geteuid() != 0 {
		return 0, errors.New("sharing the root file system with a virtual machine needs root")
	}
	for attempt := 1; ; attempt++ {
		status, err = v.run(ctx)
		if !errors.Is(err, ErrBoot) || attempt == 2 || ctx.Err() != nil {
			return status, err
		}
		fmt.Fprintf(v.Log, "vmtest: %s: %v; trying once more\n", v.Kernel.Release, err)
	}
}

func (v *VM) run(ctx context.Context) (status int, err error) {
	dir, err := os.MkdirTemp("", "vmtest-")
	if err != nil {
		return 0, fmt.Errorf("make the machine's directory: %w", err)
	}
	defer os.RemoveAll(dir)
	if err := v.writeFiles(dir); err != nil {
		return 0, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()

	fsd, err := v.startFileServer(ctx, dir)
	if err != nil {
		return 0, err
	}
	defer func() {
		cancel()
		_ = fsd.Wait() // killed
	}()
	qemu := v.qemu(ctx, dir)
	var qemuLog bytes.Buffer
	qemu.Stdout, qemu.Stderr = &qemuLog, &qemuLog
	if err := qemu.Start(); err != nil {
		return 0, fmt.Errorf("start qemu (run make deps; Debian package qemu-system-x86): %w", err)
	}
	ended := make(chan struct{})
	go func() {
		_ = qemu.Wait() // the status file says what the command did
		close(ended)
	}()
	defer func() {
		cancel()
		<-ended
	}()

	status, err = v.watch(ctx, dir, ended)
	console, _ := os.ReadFile(filepath.Join(dir, "console"))
	if v.Console != nil {
		if _, err := v.Console.Write(console); err != nil {
			return 0, fmt.Errorf("copy the console: %w", err)
		}
	}
	if err != nil && oops.Match(console) {
		err = fmt.Errorf("%w: %w", err, ErrOops)
	}
	if err != nil && ctx.Err() == nil {
		cancel()
		<-ended
		if qemuLog.Len() > 0 {
			fmt.Fprintf(v.Log, "vmtest: qemu says: %s", qemuLog.Bytes())
		}
		lines := strings.Split(strings.ReplaceAll(string(console), "\r", ""), "\n")
		if !errors.Is(err, ErrStill) {
			lines = lines[max(0, len(lines)-60):]
		}
		fmt.Fprintf(v.Log, "vmtest: %s: %v; the console's end:\n\t%s\n", v.Kernel.Release, err, strings.Join(lines, "\n\t"))
	}
	return status, err
}

// backtraces has a machine that stands still panic, by an interrupt that it cannot mask: what each of its processors and tasks was at is then at the console's end.
func backtraces(ctx context.Context, dir string, ended <-chan struct{}) error {
	conn, err := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, "unix", filepath.Join(dir, "qmp"))
	if err != nil {
		return fmt.Errorf("ask the virtual machine what it is at: %w", err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, `{"execute":"qmp_capabilities"}{"execute":"inject-nmi"}`); err != nil {
		return fmt.Errorf("ask the virtual machine what it is at: %w", err)
	}
	select {
	case <-ended:
	case <-time.After(20 * time.Second): // to print it
	}
	return nil
}

// watch copies the command's output until it has ended, and returns its status. On an error the
// caller ends qemu.
func (v *VM) watch(ctx context.Context, dir string, ended <-chan struct{}) (status int, err error) {
	output := &follower{path: filepath.Join(dir, "output"), w: v.Output}
	defer output.close()
	timeout := v.Timeout
	if timeout == 0 {
		timeout = 5 * time.Minute
	}
	deadline := time.Now().Add(bootTime)
	booted := false
	last := time.Now() // when something was printed
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		gone := false
		select {
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-ended:
			gone = true
		case <-tick.C:
		}
		text, statusErr := os.ReadFile(filepath.Join(dir, "status"))
		n, err := output.copy()
		if err != nil {
			return 0, fmt.Errorf("copy the output: %w", err)
		}
		if statusErr == nil {
			status, err := strconv.Atoi(strings.TrimSpace(string(text)))
			if err != nil {
				return 0, fmt.Errorf("read the exit status: %w", err)
			}
			if !gone { // let it power off; its file systems are in memory, so it need not
				select {
				case <-ended:
				case <-time.After(2 * time.Second):
				}
			}
			return status, nil
		}
		if !booted {
			if _, err := os.Stat(filepath.Join(dir, "booted")); err == nil {
				booted = true
				deadline = time.Now().Add(timeout)
			}
		}
		if n > 0 || !booted {
			last = time.Now()
		}
		switch late := time.Now().After(deadline); {
		case gone && !booted:
			return 0, fmt.Errorf("%w: qemu ended", ErrBoot)
		case gone:
			return 0, ErrCrash
		case late && !booted:
			return 0, fmt.Errorf("%w within %v", ErrBoot, bootTime)
		case late:
			return 0, fmt.Errorf("%w: %v", ErrTimeout, timeout)
		case v.Quiet > 0 && time.Since(last) > v.Quiet:
			err := fmt.Errorf("%w: nothing was printed for %v", ErrStill, v.Quiet)
			return 0, errors.Join(err, backtraces(ctx, dir, ended))
		}
	}
}

func (v *VM) writeFiles(dir string) error {
	cwd := v.Dir
	if cwd == "" {
		cwd = "/"
	}
	var cmd strings.Builder
	env := []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		// A plain file system, on which an inode is the file: /tmp lies on the overlay.
		"TMPDIR=/run/tmp", "HOME=/root", "LANG=C.UTF-8",
	}
	env = append(append(env, v.Environment()...), v.Env...)
	for _, kv := range env {
		key, value, _ := strings.Cut(kv, "=")
		fmt.Fprintf(&cmd, "export %s=%s\n", key, quote(value))
	}
	fmt.Fprintf(&cmd, "cd %s || exit 125\nexec", quote(cwd))
	for _, arg := range v.Command {
		cmd.WriteString(" " + quote(arg))
	}
	cmd.WriteString("\n")

	config := fmt.Sprintf("VMTEST_DIR=%s\nVMTEST_KERNEL=%s\nVMTEST_RELEASE=%s\n",
		quote(dir), quote(v.Kernel.Dir), quote(v.Kernel.Release))
	image, err := initramfs(v.Kernel, config)
	if err != nil {
		return fmt.Errorf("make the initramfs: %w", err)
	}
	for name, data := range map[string][]byte{
		"command": []byte(cmd.String()), "guest": []byte(guestScript), "initramfs": image, "output": nil,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			return fmt.Errorf("write the machine's files: %w", err)
		}
	}
	return nil
}

func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// startFileServer serves this machine's root to the guest and waits for its socket.
func (v *VM) startFileServer(ctx context.Context, dir string) (*exec.Cmd, error) {
	socket := filepath.Join(dir, "fs.sock")
	var log bytes.Buffer
	// cache=always: by default each open of a file throws its pages away, so that each start of a test's program, or of a shell, read it anew: seconds. What is run does not
	// change meanwhile, and what the guest writes goes through.
	cmd := exec.CommandContext(ctx, "/usr/lib/qemu/virtiofsd", "-f", "--socket-path="+socket,
		"-o", "source=/", "-o", "cache=always", "-o", "sandbox=chroot", "-o", "log_level=err")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start virtiofsd (run make deps; Debian package qemu-system-common): %w", err)
	}
	for range 100 {
		if _, err := os.Stat(socket); err == nil {
			return cmd, nil
		}
		time.Sleep(50 * time.Millisecond)
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	return nil, fmt.Errorf("virtiofsd made no socket: %s", bytes.TrimSpace(log.Bytes()))
}

func (v *VM) qemu(ctx context.Context, dir string) *exec.Cmd {
	lsm := "lockdown,yama,loadpin,safesetid,integrity,bpf"
	if v.NoLSM {
		lsm = strings.TrimSuffix(lsm, ",bpf")
	}
	cpus, accel := "2", "tcg,thread=multi,tb-size=512"
	if v.Kernel.Name == "5.10" { // hangs at times with two
		cpus = "1"
	}
	slab := ""
	if v.Kernel.Name == "newest" {
		// kmalloc_nolock, from which programs have their task storage, needs cmpxchg16b or a slab that is debugged (mm/slub.c of 7.3).
		slab = " slab_debug=F,kmalloc-* hash_pointers=always"
	}
	var extra []string
	if v.ICount {
		cpus, accel = "1", "tcg,thread=single,tb-size=512"
		extra = []string{"-icount", "shift=0"}
	}
	args := []string{
		"-accel", accel, "-cpu", "max,-cx16,-la57,-pku", // with cx16, kernels panic
		"-smp", cpus, "-m", "2048", "-machine", "pc,memory-backend=m",
		"-object", "memory-backend-memfd,id=m,size=2048M,share=on", // virtiofs needs shared memory
		"-nodefaults", "-display", "none", "-no-reboot",
		"-qmp", "unix:" + filepath.Join(dir, "qmp") + ",server=on,wait=off",
		"-serial", "file:" + filepath.Join(dir, "console"),
		"-chardev", "socket,id=fs,path=" + filepath.Join(dir, "fs.sock"),
		"-device", "vhost-user-fs-pci,chardev=fs,tag=root",
		"-kernel", filepath.Join(v.Kernel.Dir, "vmlinuz"),
		"-initrd", filepath.Join(dir, "initramfs"),
		"-append", "console=ttyS0 loglevel=5 panic=-1 panic_print=65 sysctl.kernel.unknown_nmi_panic=1 tsc=reliable no_timer_check lsm=" + lsm + slab,
	}
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", append(args, extra...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

// follower copies what is appended to a file.
type follower struct {
	path string
	w    io.Writer
	f    *os.File
}

func (f *follower) copy() (int64, error) {
	if f.f == nil {
		file, err := os.Open(f.path)
		if err != nil {
			return 0, err
		}
		f.f = file
	}
	return io.Copy(f.w, f.f)
}

func (f *follower) close() {
	if f.f != nil {
		f.f.Close()
	}
}
