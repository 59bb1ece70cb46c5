// Package vmtest boots Debian's kernels in virtual machines that see this machine's files, and
// runs test binaries in them: the kernels that Pavise is proved on are seldom the one at hand.
package vmtest

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Names are the kernels that the kit knows, oldest first. 5.10 lies below Pavise's floor: in it
// only the clean refusal is tested.
var Names = []string{"5.10", "6.1", "6.12", "newest"}

// ErrNoKernel says that a kernel has not been fetched.
var ErrNoKernel = errors.New("kernel not fetched")

//go:embed kernels.sh
var kernelsScript string

// Kernel is an unpacked kernel in the cache.
type Kernel struct {
	Name    string // one of Names
	Release string // as uname -r prints it
	Dir     string // holds vmlinuz and usr/lib/modules/RELEASE
}

// CacheDir is where kernels are kept: $XDG_CACHE_HOME/pavise/kernels, or the same below ~/.cache.
func CacheDir() (string, error) {
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find the cache directory: %w", err)
	}
	return filepath.Join(dir, "pavise", "kernels"), nil
}

// Find returns the named kernel, or ErrNoKernel.
func Find(name string) (Kernel, error) {
	cache, err := CacheDir()
	if err != nil {
		return Kernel{}, err
	}
	dir := filepath.Join(cache, name)
	release, err := os.ReadFile(filepath.Join(dir, "release"))
	if errors.Is(err, fs.ErrNotExist) {
		return Kernel{}, fmt.Errorf("%s: %w", name, ErrNoKernel)
	}
	if err != nil {
		return Kernel{}, fmt.Errorf("read the kernel's release: %w", err)
	}
	return Kernel{Name: name, Release: strings.TrimSpace(string(release)), Dir: dir}, nil
}

// Fetch brings the named kernels into the cache. Those present are kept, unless update asks for
// newer ones. Progress and errors of apt go to log.
func Fetch(ctx context.Context, log io.Writer, update bool, names ...string) error {
	cache, err := CacheDir()
	if err != nil {
		return err
	}
	args := []string{"-s", "--"}
	if update {
		args = append(args, "-u")
	}
	args = append(append(args, cache), names...)
	cmd := exec.CommandContext(ctx, "/bin/sh", args...)
	cmd.Stdin = strings.NewReader(kernelsScript)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("fetch kernels: %w", err)
	}
	return nil
}

// Get finds the named kernel and fetches it if it is missing.
func Get(ctx context.Context, log io.Writer, name string) (Kernel, error) {
	k, err := Find(name)
	if !errors.Is(err, ErrNoKernel) {
		return k, err
	}
	if err := Fetch(ctx, log, false, name); err != nil {
		return Kernel{}, err
	}
	return Find(name)
}
