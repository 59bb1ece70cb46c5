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
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/ringbuf"
)

// This file makes a Kernel one with what is pinned of it: it pins a set, puts it in force, and adopts one (pin.go).

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
