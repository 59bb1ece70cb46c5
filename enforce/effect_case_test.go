package enforce

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/pavise-project/pavise"
	"github.com/pavise-project/pavise/internal/kerntest"
	"golang.org/x/sys/unix"
)

// foldedIn makes a directory where case does not matter.
func foldedIn(t *testing.T, dir string) string {
	t.Helper()
	folded := filepath.Join(dir, "Folded")
	must(t, os.Mkdir(folded, 0o755))
	fd, err := unix.Open(folded, readOnly|unix.O_DIRECTORY, 0)
	must(t, err)
	defer unix.Close(fd)
	must(t, unix.IoctlSetPointerInt(fd, unix.FS_IOC_SETFLAGS, 0x40000000)) // FS_CASEFOLD_FL
	must(t, os.Mkdir(filepath.Join(folded, "Deep"), 0o755))
	return folded
}

// TestKernelFileCase: files in directories where case does not matter.
func TestKernelFileCase(t *testing.T) {
	x := theEffect(t)
	x.needs(t, pavise.OpOpen)
	// It keeps the name under which a file was made.
	t.Run("tmpfs", func(t *testing.T) {
		kerntest.Since(t, "6.13", "casefold of tmpfs")
		dir := x.place(t)
		if err := unix.Mount("effect", dir, "tmpfs", 0, "casefold"); err != nil {
			if kerntest.VM() == "" && errors.Is(err, unix.EINVAL) {
				t.Skip(kerntest.NotExpected + "needs CONFIG_UNICODE")
			}
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
		x.foldCase(t, foldedIn(t, dir), true)
	})
	// It has a file under the name by which it was first looked up.
	t.Run("ext4", func(t *testing.T) {
		dir := x.place(t)
		image, mnt := filepath.Join(dir, "image"), filepath.Join(dir, "mnt")
		must(t, os.WriteFile(image, nil, 0o600))
		must(t, os.Truncate(image, 16<<20))
		must(t, os.Mkdir(mnt, 0o755))
		_ = exec.Command("modprobe", "loop").Run() // or it is built in
		for _, c := range [][]string{{"mkfs.ext4", "-q", "-O", "casefold", "-E", "encoding=utf8", image}, {"mount", "-o", "loop", image, mnt}} {
			if out, err := exec.Command(c[0], c[1:]...).CombinedOutput(); err != nil {
				if kerntest.VM() == "" {
					t.Skipf("%sneeds ext4 with casefold: %q: %v: %s", kerntest.NotExpected, c, err, out)
				}
				t.Fatalf("%q: %v: %s", c, err, out)
			}
		}
		t.Cleanup(func() { _ = unix.Unmount(mnt, unix.MNT_DETACH) })
		x.foldCase(t, foldedIn(t, mnt), false)
	})
}

// foldCase tries other spellings of names that rules have: of a file, and, where they are covered, of the directory above.
func (x *effect) foldCase(t *testing.T, folded string, above bool) {
	at := func(name string) string { return filepath.Join(folded, name) }
	file, below, open := write(t, at("Straße"), secret), write(t, at("Deep/f"), secret), write(t, at("Open"), secret)
	must(t, x.e.Refresh())
	for _, c := range []struct {
		name, when string
		others     []string
		covered    bool
	}{
		{"a file", fmt.Sprintf("file.path == %q", file), []string{at("STRASSE"), at("straße"), file}, true},
		{"a file in another spelling of its directory", fmt.Sprintf("file.path == %q", below), []string{at("DEEP/F"), at("deep/f"), below}, true},
		// docs/THREATS.md says where this is not covered.
		{"a directory", fmt.Sprintf("file.path.under(%q)", filepath.Dir(below)), []string{at("DEEP/F")}, above},
	} {
		t.Run(c.name, func(t *testing.T) {
			x.apply(t)
			for _, o := range c.others {
				done(t, x.subject, secret, "read", o)
			}
			x.apply(t, "on: [file.open], action: deny, when: '"+c.when+"'")
			for _, o := range c.others {
				unix.Sync() // only what is clean is forgotten
				must(t, os.WriteFile("/proc/sys/vm/drop_caches", []byte("2"), 0))
				if !c.covered {
					done(t, x.subject, secret, "read", o)
					continue
				}
				x.stopped(t, pavise.OpOpen, "read", o)
				done(t, x.other, secret, "read", o)
			}
			done(t, x.subject, secret, "read", open)
			done(t, x.subject, secret, "read", at("OPEN"))
		})
	}
}
