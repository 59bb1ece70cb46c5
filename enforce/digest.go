package enforce

import (
	"crypto/sha256"
	"crypto/sha512"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"syscall"
	"unsafe"

	"github.com/pavise-project/pavise"
	"github.com/pavise-project/pavise/bpf"
	"github.com/pavise-project/pavise/policy"
	"golang.org/x/sys/unix"
)

// digests are the facts of processes that a program of their own takes, attached while a rule asks for them.
var digests = []struct {
	dim     policy.Dim
	program string
}{
	{policy.DimDigest, "lsm_digest"},
	{policy.DimVerity, "lsm_verity"},
}

// digestPrograms adds the programs that take the digests that an Image asks for.
func digestPrograms(img *policy.Image, need map[string]pavise.Op) {
	for i := range img.Automata {
		dim := img.Automata[i].Dim
		if src, _ := dim.Source(); src != policy.DimNone {
			dim = src
		}
		for _, d := range digests {
			if d.dim == dim {
				need[d.program] = pavise.OpExec
			}
		}
	}
}

// useDigests tells the programs of the lifecycle that digests are taken.
func (e *Enforcer) useDigests(on bool) error {
	n := uint64(0)
	if on {
		n = 1
	}
	return e.k.SetVariable("digests_used", n)
}

// chooseDigests finds out which digests this machine gives, once the rungs are chosen; lsm is why BPF LSM cannot be used, or nil.
func (e *Enforcer) chooseDigests(lsm error) {
	for _, d := range digests {
		err := lsm
		if err != nil {
			err = fmt.Errorf("it takes BPF LSM: %w", err)
		} else if err = e.k.Attach(d.program); err != nil {
			err = short(err)
		} else {
			if d.dim == policy.DimVerity {
				err = e.hasVerity()
			} else {
				err = e.proveDigest()
			}
			err = errors.Join(err, e.k.Detach(d.program))
		}
		if err == nil {
			continue
		}
		for op := range e.status {
			st := &e.status[op]
			if st.Rung == pavise.RungNone {
				continue
			}
			st.Missing = append(st.Missing[:len(st.Missing):len(st.Missing)], d.dim)
			if st.MissingWhy == nil {
				st.MissingWhy = map[policy.Dim]string{}
			}
			st.MissingWhy[d.dim] = err.Error()
		}
	}
}

func (e *Enforcer) hasVerity() error {
	switch ok, err := e.k.Function("bpf_get_fsverity_digest"); {
	case err != nil:
		return err
	case !ok:
		return errors.New("the kernel does not tell programs of fs-verity (CONFIG_FS_VERITY, and Linux 6.11)")
	}
	return nil
}

// proveDigest starts a small program and compares the digest that was taken of it.
func (e *Enforcer) proveDigest() error {
	code, ok := waits[runtime.GOARCH]
	if !ok {
		return fmt.Errorf("there is no program to try on %s", runtime.GOARCH)
	}
	image := elf(code.machine, code.text)
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		return err
	}
	defer unix.Close(pipe[0])
	pid, err := startImage(image, &syscall.ProcAttr{Files: []uintptr{uintptr(pipe[0])}})
	if err != nil {
		return errors.Join(fmt.Errorf("start the program to be known by its digest: %w", err), unix.Close(pipe[1]))
	}
	got, err := e.digestOf(pid)
	err = errors.Join(err, unix.Close(pipe[1])) // and it ends
	if _, werr := unix.Wait4(pid, nil, 0, nil); werr != nil {
		err = errors.Join(err, werr)
	}
	switch algo, _, _ := strings.Cut(got, ":"); {
	case err != nil:
		return err
	case got == "":
		return errors.New("IMA gives no digest (CONFIG_IMA, and ima_hash= one of sha256, sha384 and sha512)")
	case algo == "sha256" && got != fmt.Sprintf("sha256:%x", sha256.Sum256(image)),
		algo == "sha384" && got != fmt.Sprintf("sha384:%x", sha512.Sum384(image)),
		algo == "sha512" && got != fmt.Sprintf("sha512:%x", sha512.Sum512(image)):
		return fmt.Errorf("IMA gives another digest than the content has: %s", got)
	}
	return nil
}

// digestOf is the digest of the content that was taken at the last exec of a process.
func (e *Enforcer) digestOf(pid int) (string, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	b, err := e.k.Map("image_digests").LookupBytes(uint32(fd))
	if err != nil {
		return "", fmt.Errorf("look for the digest that was taken: %w", err)
	}
	if len(b) < int(unsafe.Sizeof(bpf.KernelDigests{})) {
		return "", nil
	}
	d := (*bpf.KernelDigests)(unsafe.Pointer(&b[0]))
	next := &d.Next[0]
	return string(next.Text[:min(int(next.Len), len(next.Text))]), nil
}

// startImage runs an executable that is no file.
func startImage(image []byte, attr *syscall.ProcAttr) (pid int, err error) {
	fd, err := unix.MemfdCreate(selftestName, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	if _, err := unix.Write(fd, image); err != nil {
		return 0, err
	}
	if err := unix.Fchmod(fd, 0o700); err != nil {
		return 0, err
	}
	// Open for writing it could not be executed: go through a new description.
	ro, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", fd), unix.O_RDONLY, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(ro)
	// The child sees it by its number here.
	return syscall.ForkExec(fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), ro), []string{selftestName}, attr)
}

// waits reads one byte, or none, and ends with 0, in machine code.
var waits = map[string]struct {
	machine uint16
	text    []byte
}{
	"amd64": {62, append([]byte{0x31, 0xc0, 0x31, 0xff, 0x48, 0x89, 0xe6, 0xba, 1, 0, 0, 0, 0x0f, 0x05}, // xor eax, eax; xor edi, edi; mov rsi, rsp; mov edx, 1; syscall
		exitCode["amd64"].text...)},
	"arm64": {183, append([]byte{0xe8, 0x07, 0x80, 0xd2, 0x00, 0x00, 0x80, 0xd2, 0xe1, 0x03, 0x00, 0x91, 0x22, 0x00, 0x80, 0xd2, 0x01, 0x00, 0x00, 0xd4}, // mov x8, 63; mov x0, 0; mov x1, sp; mov x2, 1; svc 0
		exitCode["arm64"].text...)},
}
