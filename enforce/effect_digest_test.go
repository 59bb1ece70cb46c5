package enforce

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"github.com/pavise-project/pavise"
	"github.com/pavise-project/pavise/internal/kerntest"
	"github.com/pavise-project/pavise/policy"
	"golang.org/x/sys/unix"
)

// reads reports whether a program, a shell or a copy of it, can read a file; a way to run it comes first, if there is one.
func reads(t *testing.T, file string, run ...string) bool {
	t.Helper()
	c := exec.Command(run[0], append(run[1:], "-c", readLine, file)...)
	var errs bytes.Buffer
	c.Stderr = &errs
	out, err := c.Output()
	if ok := err == nil && string(out) == secret; ok || len(out) == 0 && (strings.Contains(errs.String(), "not permitted") || !c.ProcessState.Exited()) {
		return ok
	}
	t.Fatalf("%q: %q, %s, %v", run, out, errs.String(), err)
	return false
}

// missing applies a rule on a fact that this machine does not have, which must be refused with the reason.
func (x *effect) missing(t *testing.T, op pavise.Op, dim policy.Dim, when string) bool {
	t.Helper()
	if !slices.Contains(x.e.status[op].Missing, dim) {
		return false
	}
	why := x.e.status[op].MissingWhy[dim]
	set, err := policy.Parse("test.yaml", []byte(ruleOn(op, when)))
	must(t, err)
	if _, _, err = policy.Compile(set, x.m); why == "" || err == nil || !strings.Contains(err.Error(), why) {
		t.Errorf("a rule on what is missing for %q: %v", why, err)
	}
	return true
}

func digestOf(t *testing.T, file string) string {
	t.Helper()
	b, err := os.ReadFile(file)
	must(t, err)
	return fmt.Sprintf("sha256:%x", sha256.Sum256(b))
}

// TestKernelSubjectDigest: a program is known by its content, under any name.
func TestKernelSubjectDigest(t *testing.T) {
	x := theEffect(t)
	dir := x.place(t)
	file := write(t, filepath.Join(dir, "secret"), secret)
	sh := reader(t, filepath.Join(dir, "sh"))
	on := fmt.Sprintf("file.path == %q && ", file)
	if x.missing(t, pavise.OpOpen, policy.DimDigest, on+fmt.Sprintf("process.exe.digest == %q", digestOf(t, sh))) {
		kerntest.Require(t, kerntest.LSM)
		t.Fatal("this kernel gives no digests:", x.e.status[pavise.OpOpen].MissingWhy[policy.DimDigest])
	}
	alike := reader(t, filepath.Join(dir, "alike"))
	must(t, os.Link(alike, filepath.Join(dir, "linked")))
	other := reader(t, filepath.Join(dir, "other"))
	f, err := os.OpenFile(other, os.O_APPEND|os.O_WRONLY, 0)
	must(t, err)
	_, err = f.WriteString("x")
	must(t, err)
	must(t, f.Close())

	x.apply(t)
	done(t, x.subject, "", "nothing") // it runs before a rule asks for digests
	for _, p := range []string{sh, alike, other} {
		if !reads(t, file, p) {
			t.Fatal("cannot read without a rule:", p)
		}
	}
	x.applyText(t, ruleOn(pavise.OpOpen, on+fmt.Sprintf("process.exe.digest == %q", digestOf(t, sh))))
	for _, run := range [][]string{{sh}, {alike}, {filepath.Join(dir, "linked")}, {sh, "-c", `exec "$0" "$@"`, alike}, {sh, "-c", `("$0" "$@")`, alike}} {
		if reads(t, file, run...) {
			t.Errorf("%q has the digest, and can read", run)
		}
	}
	// A child that does not call exec is the same program.
	if out, _ := exec.Command(sh, "-c", `(read -r x < "$0"; echo "$x")`, file).Output(); string(out) == secret {
		t.Error("a child can read")
	}
	// What has lost its digest to a fork that failed is not what has none.
	x.applyText(t, ruleOn(pavise.OpOpen, on+fmt.Sprintf("process.exe.digest == %q", digestOf(t, x.self))))
	for _, forks := range []string{"0", "1"} {
		refused(t, x.other, "spawn", x.self, "--forget", forks, file)
	}
	x.applyText(t, ruleOn(pavise.OpOpen, on+fmt.Sprintf("process.exe.digest == %q", digestOf(t, sh))))
	for _, run := range [][]string{{other}, {sh, "-c", `exec "$0" "$@"`, other}} {
		if !reads(t, file, run...) {
			t.Errorf("%q has another digest, and cannot read", run)
		}
	}
	// Every thread has it; a process from before the rule has none.
	x.applyText(t, ruleOn(pavise.OpOpen, on+fmt.Sprintf("process.exe.digest == %q", digestOf(t, x.subject.exe))))
	done(t, x.subject, secret, "read", file)
	x.subject.stop()
	x.stopped(t, pavise.OpOpen, "read", file) // each deed is a thread's
	// Only these may, which is the other way round; and of a set in a file.
	set, err := policy.ParseWith("test.yaml", []byte(ruleOn(pavise.OpOpen, on+`!process.exe.digest.inSet("allowed")`)),
		func(string) ([]byte, error) {
			return []byte("# programs\n" + digestOf(t, sh) + "\n" + digestOf(t, other) + "\n"), nil
		})
	must(t, err)
	img, _, err := policy.Compile(set, x.m)
	must(t, err)
	_, err = x.e.Apply(img)
	must(t, err)
	third := reader(t, filepath.Join(dir, "third"))
	f, err = os.OpenFile(third, os.O_APPEND|os.O_WRONLY, 0)
	must(t, err)
	_, err = f.WriteString("third")
	must(t, err)
	must(t, f.Close())
	if reads(t, file, third) || !reads(t, file, other) || !reads(t, file, alike) {
		t.Error("the set of digests is not what may read")
	}
	x.apply(t)
	// Nobody asks any more: the program that takes digests is gone.
	if slices.Contains(x.e.k.Links(), "lsm_digest") {
		t.Error("digests are still taken")
	}
}

// TestKernelSubjectVerity: likewise by what fs-verity enforces.
func TestKernelSubjectVerity(t *testing.T) {
	x := theEffect(t)
	kerntest.Require(t, kerntest.LSM)
	dir := x.place(t)
	file := write(t, filepath.Join(dir, "secret"), secret)
	on := fmt.Sprintf("file.path == %q && ", file)
	if x.missing(t, pavise.OpOpen, policy.DimVerity, on+`process.exe.verity != ""`) {
		kerntest.Since(t, "6.12", "bpf_get_fsverity_digest")
		t.Fatal("this kernel gives no digests:", x.e.status[pavise.OpOpen].MissingWhy[policy.DimVerity])
	}
	mnt := verityMount(t, dir)
	sh, plain := reader(t, filepath.Join(mnt, "sh")), reader(t, filepath.Join(mnt, "plain"))
	digest := enableVerity(t, sh)
	x.apply(t)
	if !reads(t, file, sh) || !reads(t, file, plain) {
		t.Fatal("cannot read without a rule")
	}
	x.applyText(t, ruleOn(pavise.OpOpen, on+fmt.Sprintf("process.exe.verity == %q", digest)))
	if reads(t, file, sh) || !reads(t, file, plain) {
		t.Error("the rule is not about the program of that digest alone")
	}
	x.applyText(t, ruleOn(pavise.OpOpen, on+`process.exe.path.under("`+mnt+`") && process.exe.verity == ""`))
	if !reads(t, file, sh) || reads(t, file, plain) {
		t.Error("the rule is not about programs without a digest alone")
	}
}

// verityMount mounts a new file system that can have fs-verity.
func verityMount(t *testing.T, dir string) string {
	t.Helper()
	image, mnt := filepath.Join(dir, "image"), filepath.Join(dir, "mnt")
	must(t, os.WriteFile(image, nil, 0o600))
	must(t, os.Truncate(image, 16<<20))
	must(t, os.Mkdir(mnt, 0o700))
	_ = exec.Command("modprobe", "loop").Run() // or it is built in
	for _, c := range [][]string{{"mkfs.ext4", "-q", "-b", "4096", "-O", "verity", image}, {"mount", "-o", "loop", image, mnt}} {
		if out, err := exec.Command(c[0], c[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%q: %v: %s", c, err, out)
		}
	}
	t.Cleanup(func() { _ = unix.Unmount(mnt, unix.MNT_DETACH) })
	return mnt
}

// enableVerity makes a file one that cannot be changed any more, and returns its digest.
func enableVerity(t *testing.T, path string) string {
	t.Helper()
	f, err := os.Open(path)
	must(t, err)
	defer f.Close()
	arg := unix.FsverityEnableArg{Version: 1, Hash_algorithm: 1, Block_size: 4096}
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.FS_IOC_ENABLE_VERITY, uintptr(unsafe.Pointer(&arg))); e != 0 {
		t.Fatal("enable fs-verity:", e)
	}
	var d struct {
		algorithm, size uint16
		digest          [64]byte
	}
	d.size = uint16(len(d.digest))
	const measure = 0xc0046686 // FS_IOC_MEASURE_VERITY
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, f.Fd(), measure, uintptr(unsafe.Pointer(&d))); e != 0 {
		t.Fatal("measure by fs-verity:", e)
	}
	return fmt.Sprintf("sha256:%x", d.digest[:d.size])
}
