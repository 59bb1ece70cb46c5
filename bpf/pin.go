package bpf

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/ringbuf"
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

// Build names what a set consists of: the object, and what the loader makes of it on every machine of this architecture. Within one boot, in which pins live, the
// machine is the same.
var Build = sync.OnceValue(func() string {
	h := sha256.New()
	h.Write(_KernelBytes)
	fmt.Fprint(h, runtime.GOARCH, arches[runtime.GOARCH], scratchPerCPU, securityNames, renamed)
	return fmt.Sprintf("%x", h.Sum(nil)[:8])
})

// recordLayout and processLayout name the layouts of the records in the rings with their counters, and of the identities of processes: a build that has the same can
// read those of another.
var (
	recordLayout = layoutOf(reflect.TypeFor[KernelRecHdr](), reflect.TypeFor[KernelRecFile](), reflect.TypeFor[KernelRecNet](), reflect.TypeFor[KernelRecProc](),
		reflect.TypeFor[KernelRecExit](), reflect.TypeFor[KernelOpStats]())
	processLayout = layoutOf(reflect.TypeFor[KernelProc](), reflect.TypeFor[KernelTextsShort](), reflect.TypeFor[KernelTextsLong]())
)

func layoutOf(types ...reflect.Type) func() string {
	return sync.OnceValue(func() string {
		h := sha256.New()
		for _, t := range types {
			fmt.Fprintln(h, t.String(), t.Size())
			for i := range t.NumField() {
				f := t.Field(i)
				fmt.Fprintln(h, f.Name, f.Type, f.Offset, f.Type.Size())
			}
		}
		return fmt.Sprintf("%x", h.Sum(nil)[:8])
	})
}

// manifest is what an agent must know of a set besides what the kernel says, pinned with it.
type manifest struct {
	Records   string                 `json:"records"`   // recordLayout of the build that made it
	Processes string                 `json:"processes"` // processLayout
	Maps      []string               `json:"maps"`
	Variables map[string]variableAt  `json:"variables"`
	Inner     map[string]innerLayout `json:"inner"`
	Note      json.RawMessage        `json:"note"` // of who loaded it
}

// variableAt is where a variable of the object is.
type variableAt struct {
	Section string `json:"section"`
	Offset  uint32 `json:"offset"`
	Size    uint32 `json:"size"`
}

// innerLayout is that of the maps in an array of maps.
type innerLayout struct {
	Name       string       `json:"name"`
	Type       ebpf.MapType `json:"type"`
	KeySize    uint32       `json:"key_size"`
	ValueSize  uint32       `json:"value_size"`
	MaxEntries uint32       `json:"max_entries"`
	Flags      uint32       `json:"flags"`
}

const (
	manifestPin   = "manifest"
	manifestBytes = 256 << 10
	lastPin       = "last" // the number of the last generation, one word, of whatever build
)

// pinned is where a Kernel is pinned.
type pinned struct {
	pins *Pins
	set  string
}

func (p *pinned) name(kind, name string) string {
	// A bpf file system takes no names with dots.
	return filepath.Join(p.pins.dir, p.set, kind, strings.ReplaceAll(name, ".", "section-"))
}

// Pin pins what there is of k, and from now on what is loaded and attached, as a new set, which is not in force before Commit. Note is for the one who adopts it.
func (k *Kernel) Pin(p *Pins, note []byte) (err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.pinned != nil {
		return errors.New("pin: it is pinned already")
	}
	set := ""
	for n := 1; ; n++ { // a set of the same build may be there that could not be taken over
		set = fmt.Sprintf("v%d-%s-%d", pinVersion, p.Build, n)
		if err := os.Mkdir(filepath.Join(p.dir, set), 0o700); err == nil {
			break
		} else if !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("make a directory for pins: %w", err)
		}
	}
	k.pinned = &pinned{p, set}
	defer func() {
		if err != nil {
			k.pinned = nil
			err = errors.Join(err, unpin(filepath.Join(p.dir, set)))
		}
	}()
	for _, kind := range []string{"maps", "programs", "engines", "links"} {
		if err := os.Mkdir(filepath.Join(p.dir, set, kind), 0o700); err != nil {
			return fmt.Errorf("make a directory for pins: %w", err)
		}
	}
	m := manifest{Records: recordLayout(), Processes: processLayout(), Variables: k.vars, Inner: k.inners, Note: note}
	for name, x := range k.maps {
		if err := x.Pin(k.pinned.name("maps", name)); err != nil {
			return fmt.Errorf("pin map %s: %w", name, err)
		}
		m.Maps = append(m.Maps, name)
	}
	for name, x := range k.programs {
		if err := k.pinProgram(name, x); err != nil {
			return err
		}
	}
	for name, x := range k.links {
		if err := k.pinLink(name, x); err != nil {
			return err
		}
	}
	if k.last, err = ebpf.NewMap(&ebpf.MapSpec{Name: lastPin, Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1}); err != nil {
		return fmt.Errorf("make the map of the last generation: %w", cause(err))
	}
	if err := k.last.Pin(k.pinned.name("maps", lastPin)); err != nil {
		return fmt.Errorf("pin map %s: %w", lastPin, err)
	}
	return k.pinManifest(&m)
}

// SetLast remembers the number of a generation before it judges, for an agent of another build.
func (k *Kernel) SetLast(gen uint32) error {
	if k.last == nil {
		return nil
	}
	if err := k.last.Put(uint32(0), gen); err != nil {
		return fmt.Errorf("remember the last generation: %w", err)
	}
	return nil
}

// Other is a set of another build, which goes on until it is removed. What cannot be read of it is nil.
type Other struct {
	Last    uint32 // its last generation
	Rings   *Rings
	Unread  uint64 // records in its rings, when they cannot be read
	Stats   *ebpf.Map
	Told    *ebpf.Map
	Procs   *ebpf.Map
	Texts   map[string]*ebpf.Map
	toClose []*ebpf.Map
}

// Other looks at the set in force, of another build.
func (p *Pins) Other() *Other {
	o := &Other{Texts: map[string]*ebpf.Map{}}
	dir := filepath.Join(p.dir, p.Current())
	load := func(name string) *ebpf.Map {
		m, err := ebpf.LoadPinnedMap(filepath.Join(dir, "maps", name), nil)
		if err != nil {
			return nil
		}
		o.toClose = append(o.toClose, m)
		return m
	}
	if m := load(lastPin); m != nil {
		_ = m.Lookup(uint32(0), &o.Last)
	}
	critical, telemetry := load("critical"), load("telemetry")
	m, err := readManifest(dir)
	if err == nil && m.Records == recordLayout() && critical != nil && telemetry != nil {
		o.Rings, _ = newRings(critical, telemetry)
		o.Stats, o.Told = load("stats"), load("told")
	}
	if o.Rings == nil {
		for _, x := range []*ebpf.Map{critical, telemetry} {
			o.Unread += unread(x)
		}
	}
	if err == nil && m.Processes == processLayout() {
		o.Procs = load("procs")
		for _, name := range []string{"short_texts", "long_texts"} {
			if x := load(name); x != nil {
				o.Texts[name] = x
			}
		}
	}
	return o
}

// unread counts the records in a ring, of whatever layout.
func unread(m *ebpf.Map) (n uint64) {
	if m == nil || m.Type() != ebpf.RingBuf {
		return 0
	}
	r, err := ringbuf.NewReader(m)
	if err != nil {
		return 0
	}
	defer r.Close()
	r.SetDeadline(time.Now())
	for {
		if _, err := r.Read(); err != nil {
			return n
		}
		n++
	}
}

// Close lets go of it.
func (o *Other) Close() error {
	var errs []error
	if o.Rings != nil {
		errs = append(errs, o.Rings.Close())
	}
	for _, m := range o.toClose {
		errs = append(errs, m.Close())
	}
	return errors.Join(errs...)
}

func (k *Kernel) pinManifest(m *manifest) error {
	text, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("write down what is pinned: %w", err)
	}
	if len(text) > manifestBytes-4 {
		return fmt.Errorf("write down what is pinned: %d bytes; the limit is %d", len(text), manifestBytes-4)
	}
	x, err := ebpf.NewMap(&ebpf.MapSpec{Name: "manifest", Type: ebpf.Array, KeySize: 4, ValueSize: manifestBytes, MaxEntries: 1})
	if err != nil {
		return fmt.Errorf("make the map that says what is pinned: %w", cause(err))
	}
	defer x.Close()
	value := make([]byte, manifestBytes)
	binary.LittleEndian.PutUint32(value, uint32(len(text)))
	copy(value[4:], text)
	if err := x.Put(uint32(0), value); err != nil {
		return fmt.Errorf("write down what is pinned: %w", err)
	}
	if err := x.Pin(k.pinned.name("maps", manifestPin)); err != nil {
		return fmt.Errorf("pin map %s: %w", manifestPin, err)
	}
	return nil
}

func readManifest(set string) (m manifest, err error) {
	x, err := ebpf.LoadPinnedMap(filepath.Join(set, "maps", manifestPin), nil)
	if err != nil {
		return m, fmt.Errorf("find out what is pinned: %w", cause(err))
	}
	defer x.Close()
	value, err := x.LookupBytes(uint32(0))
	if err != nil {
		return m, fmt.Errorf("find out what is pinned: %w", err)
	}
	if len(value) < 4 || int(binary.LittleEndian.Uint32(value)) > len(value)-4 {
		return m, errors.New("find out what is pinned: the map is not what was written")
	}
	if err := json.Unmarshal(value[4:][:binary.LittleEndian.Uint32(value)], &m); err != nil {
		return m, fmt.Errorf("find out what is pinned: %w", err)
	}
	return m, nil
}

// pinProgram pins a program that was loaded, and before it the engine that it shares: without that it would refuse what it cannot judge. The caller holds mu.
func (k *Kernel) pinProgram(name string, p *ebpf.Program) error {
	if k.pinned == nil {
		return nil
	}
	k.engines.mu.Lock()
	defer k.engines.mu.Unlock()
	for engine, l := range k.engines.links {
		if strings.HasSuffix(engine, ":"+name) {
			if err := l.Pin(k.pinned.name("engines", engine)); err != nil {
				return fmt.Errorf("pin the engine of %s: %w", name, err)
			}
		}
	}
	if err := p.Pin(k.pinned.name("programs", name)); err != nil {
		return fmt.Errorf("pin program %s: %w", name, err)
	}
	return nil
}

// pinLink pins a link, so that its program stays attached when nobody holds it. The caller holds mu.
func (k *Kernel) pinLink(name string, l link.Link) error {
	if k.pinned == nil {
		return nil
	}
	if err := l.Pin(k.pinned.name("links", name)); err != nil {
		return fmt.Errorf("pin the attachment of %s: %w", name, err)
	}
	return nil
}

// unpinLink lets go of a link that is to be closed. The caller holds mu.
func (k *Kernel) unpinLink(name string) error {
	if k.pinned == nil {
		return nil
	}
	if err := os.Remove(k.pinned.name("links", name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("unpin the attachment of %s: %w", name, err)
	}
	return nil
}

// Pinned tells whether k stays in the kernel when it is closed.
func (k *Kernel) Pinned() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.pinned != nil
}

// Commit makes the set that k is pinned as the one in force, at once.
func (k *Kernel) Commit() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.pinned == nil {
		return errors.New("commit pins: nothing is pinned")
	}
	return k.pinned.pins.setCurrent(k.pinned.set)
}

func (p *Pins) setCurrent(set string) error {
	if p.Current() == set {
		return nil
	}
	next := filepath.Join(p.dir, "next")
	if err := os.Remove(next); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("say which pins are in force: %w", err)
	}
	if err := os.Symlink(set, next); err != nil {
		return fmt.Errorf("say which pins are in force: %w", err)
	}
	if err := os.Rename(next, filepath.Join(p.dir, currentPin)); err != nil {
		return fmt.Errorf("say which pins are in force: %w", err)
	}
	return nil
}

// Unpin lets what k has in the kernel end with it.
func (k *Kernel) Unpin() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.pinned == nil {
		return nil
	}
	p := k.pinned
	k.pinned = nil
	var err error
	if p.pins.Current() == p.set {
		if err = os.Remove(filepath.Join(p.pins.dir, currentPin)); err != nil {
			err = fmt.Errorf("remove pin: %w", err)
		}
	}
	return errors.Join(err, unpin(filepath.Join(p.pins.dir, p.set)))
}

// Adopt takes over the set in force, of the same build, as it is: nothing is loaded, and what is attached stays so. It returns the note that Pin was given.
func (p *Pins) Adopt() (*Kernel, []byte, error) {
	set := p.Current()
	switch {
	case set == "":
		return nil, nil, fmt.Errorf("adopt what is in %s: %w", p.dir, ErrNoPins)
	case !p.Ours(set):
		return nil, nil, fmt.Errorf("adopt %s: it is of another build", filepath.Join(p.dir, set))
	}
	k := newKernel(btf.NewCache())
	k.pinned = &pinned{p, set}
	note, err := k.adopt()
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("adopt %s: %w", filepath.Join(p.dir, set), err), k.Close())
	}
	return k, note, nil
}

func (k *Kernel) adopt() ([]byte, error) {
	dir := filepath.Join(k.pinned.pins.dir, k.pinned.set)
	m, err := readManifest(dir)
	if err != nil {
		return nil, err
	}
	k.vars, k.inners = m.Variables, m.Inner
	for _, name := range m.Maps {
		x, err := ebpf.LoadPinnedMap(k.pinned.name("maps", name), nil)
		if err != nil {
			return nil, fmt.Errorf("open map %s: %w", name, cause(err))
		}
		k.maps[name] = x
	}
	if err := eachPin(filepath.Join(dir, "programs"), func(name, path string) error {
		x, err := ebpf.LoadPinnedProgram(path, nil)
		if err != nil {
			return fmt.Errorf("open program %s: %w", name, cause(err))
		}
		k.programs[name] = x
		return nil
	}); err != nil {
		return nil, err
	}
	if err := eachPin(filepath.Join(dir, "engines"), func(name, path string) error {
		if _, program, _ := strings.Cut(name, ":"); k.programs[program] == nil { // the agent was killed before it pinned that
			return os.Remove(path)
		}
		x, err := link.LoadPinnedLink(path, nil)
		if err != nil {
			return fmt.Errorf("open the engine %s: %w", name, cause(err))
		}
		k.engines.links[name] = x
		return nil
	}); err != nil {
		return nil, err
	}
	if err := eachPin(filepath.Join(dir, "links"), func(name, path string) error {
		x, err := link.LoadPinnedLink(path, nil)
		if err != nil {
			return fmt.Errorf("open the attachment of %s: %w", name, cause(err))
		}
		k.links[name] = x
		return nil
	}); err != nil {
		return nil, err
	}
	if k.last, err = ebpf.LoadPinnedMap(k.pinned.name("maps", lastPin), nil); err != nil {
		return nil, fmt.Errorf("open map %s: %w", lastPin, cause(err))
	}
	if err := k.adoptInner(); err != nil {
		return nil, err
	}
	var key [16]byte
	if err := k.constant("sip_key", key[:]); err != nil {
		return nil, err
	}
	k.sip = [2]uint64{binary.LittleEndian.Uint64(key[:]), binary.LittleEndian.Uint64(key[8:])}
	return m.Note, nil
}

func eachPin(dir string, fn func(name, path string) error) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("list pins: %w", err)
	}
	for _, e := range entries {
		if err := fn(e.Name(), filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// adoptInner finds the maps in the arrays of maps.
func (k *Kernel) adoptInner() error {
	for outer := range k.inners {
		for slot := range k.maps[outer].MaxEntries() {
			var m *ebpf.Map
			switch err := k.maps[outer].Lookup(slot, &m); {
			case err == nil:
				k.inner[innerSlot{outer, slot}] = m
			case !errors.Is(err, ebpf.ErrKeyNotExist):
				return fmt.Errorf("open the map in slot %d of %s: %w", slot, outer, err)
			}
		}
	}
	return nil
}

// Inner tells whether a slot of an array of maps has one.
func (k *Kernel) Inner(outer string, slot uint32) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.inner[innerSlot{outer, slot}] != nil
}

// layouts of what the object's variables and arrays of maps are, for who has no object.
func layouts(spec *ebpf.CollectionSpec) (map[string]variableAt, map[string]innerLayout) {
	vars, inners := map[string]variableAt{}, map[string]innerLayout{}
	for name, v := range spec.Variables {
		vars[name] = variableAt{v.SectionName, v.Offset, v.Size()}
	}
	for name, m := range spec.Maps {
		if i := m.InnerMap; i != nil {
			inners[name] = innerLayout{i.Name, i.Type, i.KeySize, i.ValueSize, i.MaxEntries, i.Flags}
		}
	}
	return vars, inners
}

// constant reads a constant as it was when the programs were loaded.
func (k *Kernel) constant(name string, to []byte) error {
	v, ok := k.vars[name]
	m := k.maps[v.Section]
	if !ok || m == nil || int(v.Size) != len(to) {
		return fmt.Errorf("read %s: there is no constant of that name and size", name)
	}
	b, err := m.LookupBytes(uint32(0))
	if err != nil || int(v.Offset)+len(to) > len(b) {
		return errors.Join(fmt.Errorf("read %s", name), err)
	}
	copy(to, b[v.Offset:])
	return nil
}

// SetVariable sets a variable of the object by its name in C, of 4 or 8 bytes, by one write.
func (k *Kernel) SetVariable(name string, value uint64) error {
	p, size, err := k.variable(name)
	switch {
	case err != nil:
		return fmt.Errorf("set %s: %w", name, err)
	case size == 8:
		atomic.StoreUint64((*uint64)(p), value)
	case size == 4 && value>>32 == 0:
		atomic.StoreUint32((*uint32)(p), uint32(value))
	default:
		return fmt.Errorf("set %s: it has %d bytes", name, size)
	}
	return nil
}

// Word is a variable of 8 bytes of the object by its name in C, until Close: to be written while all else waits.
func (k *Kernel) Word(name string) (*atomic.Uint64, error) {
	p, size, err := k.variable(name)
	if err == nil && size != 8 {
		err = fmt.Errorf("it has %d bytes", size)
	}
	if err != nil {
		return nil, fmt.Errorf("find %s: %w", name, err)
	}
	return (*atomic.Uint64)(p), nil
}

// Variable reads a variable of the object by its name in C, of 4 or 8 bytes.
func (k *Kernel) Variable(name string) (uint64, error) {
	p, size, err := k.variable(name)
	switch {
	case err != nil:
		return 0, fmt.Errorf("read %s: %w", name, err)
	case size == 8:
		return atomic.LoadUint64((*uint64)(p)), nil
	case size == 4:
		return uint64(atomic.LoadUint32((*uint32)(p))), nil
	}
	return 0, fmt.Errorf("read %s: it has %d bytes", name, size)
}

func (k *Kernel) variable(name string) (unsafe.Pointer, uint32, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	v, ok := k.vars[name]
	m := k.maps[v.Section]
	if !ok || m == nil {
		return nil, 0, errors.New("the object has no variable of that name")
	}
	b := k.sections[v.Section]
	if b == nil {
		size := (int(m.ValueSize()) + os.Getpagesize() - 1) &^ (os.Getpagesize() - 1)
		var err error
		if b, err = unix.Mmap(m.FD(), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
			return nil, 0, fmt.Errorf("map %s into memory: %w", v.Section, err)
		}
		k.sections[v.Section] = b
	}
	if uint64(v.Offset)+uint64(v.Size) > uint64(len(b)) || v.Offset%v.Size != 0 {
		return nil, 0, fmt.Errorf("it is at %d of %s", v.Offset, v.Section)
	}
	return unsafe.Pointer(&b[v.Offset]), v.Size, nil
}
