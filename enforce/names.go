package enforce

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/pavise-project/pavise/bpf"
	"github.com/pavise-project/pavise/policy"
	"golang.org/x/sys/unix"
)

// inodeNames is how many names one inode can have in the kernel's table (INODE_NAMES in bpf/path.h).
const inodeNames = 4

// maxName is the longest name in the kernel's tables (NAME_BYTES - 1).
const maxName = 255

// names keeps the kernel's table of protected names: inode -> the exact paths in rules that lead to it. A file with several links, or reached
// through a symbolic link in the rule's own path, is then judged under the rule's name too.
type names struct {
	byPath map[string]*named
	sets   []*policy.Set // whose entries are protected too: of those only what exists is in byPath
	queue  []string      // of paths still to be looked at in this round of refresh
	shade  uint32        // 1: they are those of the shadow's rules, and no names to what judges
}

func newNames(shadow bool) *names {
	n := &names{byPath: map[string]*named{}}
	if shadow {
		n.shade = 1
	}
	return n
}

// perRefresh is how many paths a refresh looks at: about 2 ms of work. Ten thousand are all seen within some seconds.
const perRefresh = 2000

type named struct {
	key   bpf.KernelInodeKey
	seen  unix.Stat_t // when it was last looked at; the time of change tells another file with the same number
	in    bool        // key is in the table
	alias bool        // the path leads through a symbolic link, so that the file is never seen under it
}

// add registers the paths of a new Image. It returns those of the old one that are not in the new, to be removed once the new one judges; and 1
// when files with one link must be looked up too.
func (n *names) add(k *bpf.Kernel, paths []string, sets []*policy.Set) (stale []string, aliases uint32, err error) {
	runtime.LockOSThread() // identify looks at the files of the calling thread
	defer runtime.UnlockOSThread()
	want := make(map[string]bool, len(paths))
	for _, p := range paths {
		want[p] = true
		if n.byPath[p] == nil && len(p) <= maxName {
			n.byPath[p] = &named{}
			if err := n.look(k, p, n.byPath[p]); err != nil {
				return nil, 0, err
			}
		} else if x := n.byPath[p]; x != nil && x.seen == (unix.Stat_t{}) && x.in { // adopted
			if err := n.look(k, p, x); err != nil {
				return nil, 0, err
			}
		}
	}
	before := n.sets
	n.sets = sets
	for _, s := range sets {
		if slices.ContainsFunc(before, func(o *policy.Set) bool { return o.Digest == s.Digest }) {
			continue
		}
		for _, p := range s.Strings {
			if err := n.lookNew(k, p); err != nil {
				n.sets = before
				return nil, 0, err
			}
		}
	}
	for p, x := range n.byPath {
		if !want[p] && !n.inSets(p) {
			stale = append(stale, p)
		} else if x.alias {
			aliases = 1
		}
	}
	return stale, aliases, nil
}

func (n *names) inSets(p string) bool {
	return slices.ContainsFunc(n.sets, func(s *policy.Set) bool { return s.Has(p) })
}

// lookNew is look for an entry of a set, which is kept only when a file stands there.
func (n *names) lookNew(k *bpf.Kernel, p string) error {
	if n.byPath[p] != nil || len(p) > maxName {
		return nil
	}
	x := &named{}
	if err := n.look(k, p, x); err != nil || !x.in {
		return err
	}
	n.byPath[p] = x
	return nil
}

func (n *names) remove(k *bpf.Kernel, stale []string) {
	for _, p := range stale {
		x := n.byPath[p]
		delete(n.byPath, p)
		if x.in {
			n.drop(k, x.key)
		}
	}
}

// refresh looks at paths again, perRefresh at a time, and corrects the table where another file stands there now.
func (n *names) refresh(k *bpf.Kernel) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if len(n.queue) == 0 {
		n.queue = slices.Collect(maps.Keys(n.byPath))
		for _, s := range n.sets {
			n.queue = append(n.queue, s.Strings...)
		}
	}
	for range min(perRefresh, len(n.queue)) {
		p := n.queue[0]
		n.queue = n.queue[1:]
		if x := n.byPath[p]; x != nil {
			if err := n.look(k, p, x); err != nil {
				return err
			}
		} else if n.inSets(p) {
			if err := n.lookNew(k, p); err != nil {
				return err
			}
		}
	}
	return nil
}

// look finds which file stands at a path, and registers it if it is another one than before.
func (n *names) look(k *bpf.Kernel, p string, x *named) error {
	var st unix.Stat_t
	err := unix.Stat(p, &st)
	if x.in && err == nil && st.Dev == x.seen.Dev && st.Ino == x.seen.Ino && st.Ctim == x.seen.Ctim {
		return nil
	}
	var key bpf.KernelInodeKey
	alias, ok := false, false
	if err == nil {
		key, alias, ok = identify(k, p)
	}
	if x.in {
		if ok && key.Ino == x.key.Ino && key.Dev == x.key.Dev && key.Gen == x.key.Gen {
			x.seen, x.alias = st, alias
			return nil // the same file, which has changed, or was adopted
		}
		n.drop(k, x.key)
		x.in = false
	}
	if !ok {
		return nil
	}
	x.seen, x.alias = st, alias
	return n.put(k, p, key, x)
}

// adopt takes over the names that are in the kernel's table. Those of a shadow go, and what an agent left twice that was killed while it took a name away.
func (n *names) adopt(k *bpf.Kernel) error {
	m := k.Map("inodes")
	var key bpf.KernelInodeKey
	var v bpf.KernelInodeName
	var gone []bpf.KernelInodeKey
	it := m.Iterate()
	for it.Next(&key, &v) {
		p := string(v.Name[:min(v.Len, maxName)])
		if key.Shade != n.shade {
			gone = append(gone, key)
		} else if x := n.byPath[p]; x == nil {
			n.byPath[p] = &named{key: key, in: true}
		} else if key.Ino == x.key.Ino && key.Dev == x.key.Dev && key.Gen == x.key.Gen && key.N < x.key.N {
			gone = append(gone, x.key)
			x.key = key
		} else {
			gone = append(gone, key)
		}
	}
	if err := it.Err(); err != nil {
		return fmt.Errorf("read the protected names: %w", err)
	}
	// The last of a file first: the kernel stops at the first gap.
	slices.SortFunc(gone, func(a, b bpf.KernelInodeKey) int { return int(b.N) - int(a.N) })
	for _, key := range gone {
		n.drop(k, key)
	}
	return nil
}

// put takes the first free place among an inode's names.
func (n *names) put(k *bpf.Kernel, p string, key bpf.KernelInodeKey, x *named) error {
	m := k.Map("inodes")
	v := bpf.KernelInodeName{Len: uint32(len(p))}
	copy(v.Name[:], p)
	key.Shade = n.shade
	for key.N = 0; key.N < inodeNames; key.N++ {
		err := m.Update(key, &v, ebpf.UpdateNoExist)
		switch {
		case err == nil:
			x.key, x.in = key, true
			return nil
		case errors.Is(err, unix.E2BIG):
			return fmt.Errorf("register the inode of %s: the files that exist of all exact paths and sets of paths in rules are over %d", p, m.MaxEntries())
		case !errors.Is(err, ebpf.ErrKeyExist):
			return fmt.Errorf("register the inode of %s: %w", p, err)
		}
	}
	return nil // its first four names protect it as well: rules on this one see it under its own path
}

// drop removes a name and moves the last one of that inode into its place: the kernel stops at the first gap.
func (n *names) drop(k *bpf.Kernel, key bpf.KernelInodeKey) {
	m := k.Map("inodes")
	last := key
	for i := uint32(inodeNames - 1); i > key.N; i-- {
		cand := key
		cand.N = i
		var v bpf.KernelInodeName
		if m.Lookup(cand, &v) != nil {
			continue
		}
		if m.Put(key, &v) == nil {
			last = cand
			for _, x := range n.byPath {
				if x.in && x.key == cand {
					x.key = key
				}
			}
		}
		break
	}
	_ = m.Delete(last)
}

// identify asks the kernel for the identity of the file at a path, without opening it for reading.
func identify(k *bpf.Kernel, path string) (key bpf.KernelInodeKey, alias, ok bool) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return key, false, false
	}
	defer unix.Close(fd)
	o := bpf.KernelOpened{Fd: uint32(fd)}
	m := k.Map("openeds")
	if m.Put(uint32(0), &o) != nil || k.Call("resolve") != nil || m.Lookup(uint32(0), &o) != nil {
		return key, false, false
	}
	real, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
	return bpf.KernelInodeKey{Ino: o.Ino, Dev: o.Dev, Gen: o.Gen}, err == nil && real != path, true
}

// mounts keeps the kernel's table of where each file system is first mounted.
type mounts struct {
	last  []byte
	in    map[uint32]bool
	first []uint64 // as the kernel has it
}

// firstMount is the place of a device in first_mounts, of n: first_mount's in bpf/path.h.
func firstMount(dev, n uint32) uint32 { return (dev + dev>>20*37) & (n - 1) }

// adopt takes over the mounts that are in the kernel's table.
func (m *mounts) adopt(k *bpf.Kernel) error {
	m.in = map[uint32]bool{}
	var dev uint32
	var v bpf.KernelMountInfo
	it := k.Map("mounts").Iterate()
	for it.Next(&dev, &v) {
		m.in[dev] = true
	}
	if err := it.Err(); err != nil {
		return fmt.Errorf("read the mounts: %w", err)
	}
	return nil
}

func (m *mounts) refresh(k *bpf.Kernel) error {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return fmt.Errorf("read the mounts: %w", err)
	}
	if bytes.Equal(b, m.last) {
		return nil
	}
	found := parseMounts(string(b))
	for dev, mi := range found {
		if err := k.Map("mounts").Put(dev, &mi); err != nil {
			return fmt.Errorf("register a mount: %w", err)
		}
	}
	for dev := range m.in {
		if _, ok := found[dev]; !ok {
			_ = k.Map("mounts").Delete(dev)
		}
	}
	places := k.Map("first_mounts")
	first := make([]uint64, places.MaxEntries())
	for _, dev := range slices.Sorted(maps.Keys(found)) {
		if at := firstMount(dev, places.MaxEntries()); first[at] == 0 {
			first[at] = uint64(dev)<<32 | uint64(found[dev].MntId)
		}
	}
	for i, x := range first {
		if m.first == nil || x != m.first[i] {
			if err := places.Put(uint32(i), x); err != nil {
				return fmt.Errorf("register a mount: %w", err)
			}
		}
	}
	m.first = first
	m.last, m.in = b, map[uint32]bool{}
	for dev := range found {
		m.in[dev] = true
	}
	return nil
}

// parseMounts takes from mountinfo (proc_pid_mountinfo(5)) the first mount of the root of each file system. Lines that it cannot read, and mount points too
// long for the kernel's table, are left out: such a file system's other mounts are judged as they are seen.
func parseMounts(info string) map[uint32]bpf.KernelMountInfo {
	out := map[uint32]bpf.KernelMountInfo{}
	for line := range strings.Lines(info) {
		f := strings.Fields(line)
		if len(f) < 5 || f[3] != "/" {
			continue
		}
		id, err := strconv.ParseUint(f[0], 10, 32)
		major, minor, ok := strings.Cut(f[2], ":")
		ma, err1 := strconv.ParseUint(major, 10, 12)
		mi, err2 := strconv.ParseUint(minor, 10, 20)
		point := unescape(f[4])
		if err != nil || err1 != nil || err2 != nil || !ok || len(point) > maxName {
			continue
		}
		dev := uint32(ma<<20 | mi)
		if _, ok := out[dev]; ok {
			continue
		}
		x := bpf.KernelMountInfo{MntId: uint32(id), Len: uint32(len(point))}
		copy(x.Path[:], point)
		out[dev] = x
	}
	return out
}

// unescape undoes mountinfo's octal escapes.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if c, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(c))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
