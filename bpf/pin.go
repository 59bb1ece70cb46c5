package bpf

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// This file keeps a Kernel in being when no process holds it. Its maps, programs and links are pinned as one set in a directory of a bpf file system, each under its
// name, and a symbolic link, written last and all at once, names the set that is in force. The next agent takes that over as it is when it is of the same build, or
// puts another one beside it and then removes it. What no symbolic link names is left of an agent that was killed while it made or removed it.
//
//	DIR/current -> v1-BUILD-N
//	DIR/v1-BUILD-N/{maps,programs,engines,links}/NAME

// DefaultPins is where the host's agent pins what it has in the kernel.
const DefaultPins = "/sys/fs/bpf/pavise"

// Errors of a directory of pins.
var (
	ErrPinsInUse = errors.New("pin directory in use")
	ErrNoPins    = errors.New("nothing is pinned")
)

// pinVersion is that of what this file says of the directory.
const pinVersion = 1

const currentPin = "current"

// Pins is a directory of a bpf file system. One process has it at a time.
type Pins struct {
	// Build tells sets that can be taken over as they are from others: Build() unless a test says otherwise.
	Build string

	dir  string
	lock *os.File
}

// OpenPins makes the directory if need be, and locks it. It mounts a bpf file system at /sys/fs/bpf if the directory is to be there and none is. The error wraps
// ErrPinsInUse when another process has it.
func OpenPins(dir string) (*Pins, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("open pin directory: %w", err)
	}
	if err := onBPFFS(dir); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make pin directory: %w", err)
	}
	return lockPins(dir)
}

// FindPins is OpenPins of a directory that is there already. The error wraps ErrNoPins when it is not.
func FindPins(dir string) (*Pins, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("open pin directory: %w", err)
	}
	if _, err := os.Lstat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("open %s: %w", dir, ErrNoPins)
	}
	return lockPins(dir)
}

func lockPins(dir string) (*Pins, error) {
	// Below a file system that all may write to, somebody else may have made it.
	f, err := os.OpenFile(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open pin directory: %w", err)
	}
	var st unix.Stat_t
	var sf unix.Statfs_t
	switch err := errors.Join(unix.Fstat(int(f.Fd()), &st), unix.Fstatfs(int(f.Fd()), &sf)); {
	case err != nil:
		return nil, errors.Join(fmt.Errorf("open pin directory: %w", err), f.Close())
	case int64(sf.Type) != unix.BPF_FS_MAGIC:
		return nil, errors.Join(fmt.Errorf("open pin directory %s: it is not on a bpf file system; mount one (mount -t bpf bpf DIR), or give another --pin-dir", dir), f.Close())
	case st.Uid != uint32(unix.Geteuid()):
		return nil, errors.Join(fmt.Errorf("open pin directory %s: it belongs to user %d; remove it, or give another --pin-dir", dir, st.Uid), f.Close())
	}
	if err := f.Chmod(0o700); err != nil {
		return nil, errors.Join(fmt.Errorf("make pin directory private: %w", err), f.Close())
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("lock pin directory %s: %w", dir, err)
		}
		who := "another agent"
		if pid := lockHolder(st.Dev, st.Ino); pid != 0 {
			who += fmt.Sprintf(" (pid %d)", pid)
		}
		return nil, fmt.Errorf("lock pin directory %s: %w: %s enforces with it; stop it, or give another --pin-dir", dir, ErrPinsInUse, who)
	}
	return &Pins{Build: Build(), dir: dir, lock: f}, nil
}

// usual is where a bpf file system is mounted; mountSource is what stands in /proc/mounts of one that an agent has mounted there.
const (
	usual       = "/sys/fs/bpf"
	mountSource = "pavise"
)

// Unmount unmounts the bpf file system that an agent has mounted, when nothing else is on it. It reports whether it did, or with dry whether it would.
func Unmount(dry bool) (bool, error) {
	b, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return false, fmt.Errorf("read the mounts: %w", err)
	}
	if !strings.Contains("\n"+string(b), "\n"+mountSource+" "+usual+" bpf ") {
		return false, nil
	}
	entries, err := os.ReadDir(usual)
	if err != nil {
		return false, fmt.Errorf("list pins: %w", err)
	}
	others := slices.DeleteFunc(entries, func(e os.DirEntry) bool {
		return strings.Contains(e.Name(), ".") || // maps.debug and progs.debug are the kernel's own
			dry && filepath.Join(usual, e.Name()) == DefaultPins
	})
	if len(others) > 0 || dry {
		return len(others) == 0, nil
	}
	if err := unix.Unmount(usual, unix.UMOUNT_NOFOLLOW); err != nil {
		return false, fmt.Errorf("unmount %s: %w", usual, err)
	}
	return true, nil
}

// onBPFFS sees to it that a directory is, or will be, on a bpf file system.
func onBPFFS(dir string) error {
	for at := dir; ; at = filepath.Dir(at) {
		var sf unix.Statfs_t
		err := unix.Statfs(at, &sf)
		switch {
		case errors.Is(err, unix.ENOENT) && at != "/":
			continue
		case err != nil:
			return fmt.Errorf("look for a bpf file system at %s: %w", at, err)
		case int64(sf.Type) == unix.BPF_FS_MAGIC:
			return nil
		case dir != usual && !strings.HasPrefix(dir, usual+"/"):
			return fmt.Errorf("pin in %s: it is not on a bpf file system; mount one (mount -t bpf bpf DIR), or give another --pin-dir", dir)
		}
		if err := unix.Mount(mountSource, usual, "bpf", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC|unix.MS_RELATIME, "mode=700"); err != nil {
			return fmt.Errorf("mount a bpf file system at %s: %w", usual, err)
		}
		return nil
	}
}

// lockHolder is the process that holds the lock of a file, 0 when that is not known: proc_locks(5).
func lockHolder(dev, ino uint64) int {
	b, err := os.ReadFile("/proc/locks")
	if err != nil {
		return 0
	}
	at := fmt.Sprintf("%02x:%02x:%d", unix.Major(dev), unix.Minor(dev), ino)
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) >= 6 && f[1] == "FLOCK" && f[5] == at {
			pid, _ := strconv.Atoi(f[4])
			return pid
		}
	}
	return 0
}

// Left tells whether a set is in force in a directory that no process has.
func Left(dir string) bool {
	var st unix.Stat_t
	if unix.Stat(dir, &st) != nil {
		return false
	}
	return (&Pins{dir: dir}).Current() != "" && lockHolder(st.Dev, st.Ino) == 0
}

// Close gives the directory back.
func (p *Pins) Close() error { return p.lock.Close() }

// Dir is the directory.
func (p *Pins) Dir() string { return p.dir }

// Current is the set in force, "" for none.
func (p *Pins) Current() string {
	set, err := os.Readlink(filepath.Join(p.dir, currentPin))
	if err != nil || !isSet.MatchString(set) {
		return ""
	}
	if st, err := os.Lstat(filepath.Join(p.dir, set)); err != nil || !st.IsDir() {
		return ""
	}
	return set
}

var isSet = regexp.MustCompile(`^v[0-9]+-[0-9a-f]+-[0-9]+$`)

// Ours tells whether a set is one that this build can take over.
func (p *Pins) Ours(set string) bool {
	return strings.HasPrefix(set, fmt.Sprintf("v%d-%s-", pinVersion, p.Build))
}

// sets are all that are there.
func (p *Pins) sets() ([]string, error) {
	entries, err := os.ReadDir(p.dir)
	if err != nil {
		return nil, fmt.Errorf("list pins: %w", err)
	}
	var out []string
	for _, e := range entries {
		if isSet.MatchString(e.Name()) {
			out = append(out, e.Name())
		}
	}
	return out, nil
}

// Clean removes all sets but some: what is attached by them alone ends.
func (p *Pins) Clean(but ...string) error {
	sets, err := p.sets()
	for _, s := range sets {
		if !slices.Contains(but, s) {
			err = errors.Join(err, removePins(filepath.Join(p.dir, s)))
		}
	}
	return err
}

// Remove removes all that is pinned, and the directory. It returns what it removed.
func (p *Pins) Remove() (removed []string, err error) {
	r := remover{}
	err = p.walk(r.release, r.remove)
	return r.removed, err
}

// List is what Remove would remove.
func (p *Pins) List() (names []string, err error) {
	return names, p.walk(func(string) {}, func(name string) error { names = append(names, name); return nil })
}

// walk calls fn with all that this file says of, in the order in which it is to be removed.
func (p *Pins) walk(release func(set string), fn func(name string) error) error {
	sets, err := p.sets()
	if err != nil {
		return err
	}
	cur := filepath.Join(p.dir, currentPin)
	if _, err := os.Lstat(cur); err == nil {
		if err := fn(cur); err != nil {
			return err
		}
	}
	for _, s := range sets {
		if err := walkPins(filepath.Join(p.dir, s), release, fn); err != nil {
			return err
		}
	}
	return fn(p.dir)
}

// walkPins goes through a set: links first, and of these the ones of the lifecycle last, since without them all processes would be judged strictly. A hook must be gone
// before its engine, or it would refuse what it cannot judge: release is called between them.
func walkPins(set string, release func(set string), fn func(name string) error) error {
	kinds := []string{"links", "engines", "programs", "maps"}
	entries, err := os.ReadDir(set)
	if err != nil {
		return fmt.Errorf("list pins: %w", err)
	}
	for _, e := range entries { // of another version
		if !e.IsDir() {
			if err := fn(filepath.Join(set, e.Name())); err != nil {
				return fmt.Errorf("remove pin: %w", err)
			}
		} else if !slices.Contains(kinds, e.Name()) {
			kinds = append(kinds, e.Name())
		}
	}
	for _, kind := range kinds {
		if kind == "engines" {
			release(set)
		}
		dir := filepath.Join(set, kind)
		entries, err := os.ReadDir(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("list pins: %w", err)
		}
		slices.SortStableFunc(entries, func(a, b os.DirEntry) int {
			return lifecycleLast(a.Name()) - lifecycleLast(b.Name())
		})
		for _, e := range entries {
			if err := fn(filepath.Join(dir, e.Name())); err != nil {
				return fmt.Errorf("remove pin: %w", err)
			}
		}
		if err := fn(dir); err != nil {
			return fmt.Errorf("remove pin: %w", err)
		}
	}
	return fn(set)
}

func lifecycleLast(name string) int {
	if strings.HasPrefix(name, "on_") {
		return 1
	}
	return 0
}

func removePins(set string) error {
	r := remover{}
	return walkPins(set, r.release, r.remove)
}

// unpin removes the pins of a set that this process holds.
func unpin(set string) error { return walkPins(set, func(string) {}, os.Remove) }

// remover removes pins. The kernel detaches what was pinned a while later.
type remover struct {
	links   []link.ID
	removed []string
}

func (r *remover) remove(name string) error {
	if filepath.Base(filepath.Dir(name)) == "links" {
		if l, err := link.LoadPinnedLink(name, nil); err == nil {
			if info, err := l.Info(); err == nil {
				r.links = append(r.links, info.ID)
			}
			_ = l.Close()
		}
	}
	if err := os.Remove(name); err != nil {
		return err
	}
	r.removed = append(r.removed, name)
	return nil
}

// release waits until what was removed is gone, or is held by a process, and has it refuse nothing any more: the kernel gives up the number of a link before it detaches it.
func (r *remover) release(set string) {
	for end := time.Now().Add(5 * time.Second); len(r.links) > 0 && time.Now().Before(end); {
		l, err := link.NewFromID(r.links[0])
		if err != nil {
			r.links = r.links[1:]
			continue
		}
		_ = l.Close()
		time.Sleep(time.Millisecond)
	}
	r.links = nil
	m, err := readManifest(set)
	if err != nil {
		return // nothing of it is attached, or it is of nobody's making
	}
	k := newKernel(nil)
	defer func() { _ = k.Close() }()
	k.vars = m.Variables
	section := m.Variables[releaseAt].Section
	if k.maps[section], err = ebpf.LoadPinnedMap((&pinned{&Pins{dir: filepath.Dir(set)}, filepath.Base(set)}).name("maps", section), nil); err != nil {
		delete(k.maps, section)
	}
	k.release()
}

// releaseAt is the variable that says from when on nothing is refused.
const releaseAt = "release_at"

// release has what is attached refuse nothing any more, for good.
func (k *Kernel) release() {
	_ = k.SetVariable(releaseAt, 1) // of an object that has none, or is not there, nothing is attached
}
