package proc

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	pavise "github.com/pavise-project/pavise"
)

// ContainerOptions are the settings of Containers.
type ContainerOptions struct {
	Roots []StateRoot
	// Cgroups are where the hierarchies are mounted that the kernel's paths of cgroups may be of.
	Cgroups []string
	Log     *slog.Logger
}

// Containers knows what the runtimes say of the containers whose cgroups were seen. It asks no runtime: it reads their files, when a
// container is first seen and, as the file may come after the first process, a few times more. It is safe for concurrent use.
//
// A cgroup's name alone proves nothing: whoever may make cgroups below his own can call one docker-ID.scope. So a container is believed
// to be the runtime's only when root alone could have made its cgroup, and only the outermost one on a path.
type Containers struct {
	o       ContainerOptions
	changed chan struct{}

	mu     sync.Mutex
	byBase map[string]*known
	swept  time.Time
	stats  ContainerStats // without Known and Unknown
}

// known is one container. Its fields but base do not change once facts are there.
type known struct {
	base  string // its cgroup
	outer *pavise.Container
	facts *facts
	err   error // why there are none, at the last try
	tries int
	next  time.Time // of the next try; zero for none
	gone  bool      // its cgroup was missing at the last sweep, and no process was seen in it since
}

// KnownContainer is a container of which more is known than its id.
type KnownContainer struct {
	Cgroup    string // its own: its processes are in it or below
	Container *pavise.Container
	Pod       *pavise.Pod
}

// ContainerStats counts what Containers holds.
type ContainerStats struct {
	Known     int    // whose names are known
	Unknown   int    // of which nothing but the id is
	Failed    uint64 // given up: no runtime's file, or none that could be read
	Untrusted uint64 // others than root may make such cgroups, or that could not be seen
	Refused   uint64 // for want of room
}

const (
	maxContainers  = 4096
	containerTries = 6
	containerRetry = time.Second
	containerSweep = 10 * time.Second
)

// NewContainers makes Containers that know of none.
func NewContainers(o ContainerOptions) *Containers {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Containers{o: o, changed: make(chan struct{}, 1), byBase: map[string]*known{}}
}

// Changed tells when Known has changed. One receiver gets each news.
func (c *Containers) Changed() <-chan struct{} { return c.changed }

func (c *Containers) tell() {
	select {
	case c.changed <- struct{}{}:
	default: // it is told already
	}
}

// Known are the containers of which more is known than the id, by cgroup.
func (c *Containers) Known() []KnownContainer {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []KnownContainer
	for _, k := range c.byBase {
		if ct, pod := k.describe(k.outer); k.named() {
			out = append(out, KnownContainer{k.base, ct, pod})
		}
	}
	slices.SortFunc(out, func(a, b KnownContainer) int { return cmp.Compare(a.Cgroup, b.Cgroup) })
	return out
}

// Stats counts what is known.
func (c *Containers) Stats() ContainerStats {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.stats
	for _, k := range c.byBase {
		if k.named() {
			s.Known++
		} else {
			s.Unknown++
		}
	}
	return s
}

// named reports whether more than the id is known: from a runtime, or because the cgroup's own name has it (LXC).
func (k *known) named() bool { return k.facts != nil || k.outer.Name != "" }

// describe is the container in, which is k's or nested in it, with what is known of k, and k's pod.
func (k *known) describe(in *pavise.Container) (*pavise.Container, *pavise.Pod) {
	ct := &pavise.Container{ID: in.ID, Runtime: in.Runtime, Name: k.outer.Name}
	if k.facts == nil {
		return ct, nil
	}
	if in.ID == k.outer.ID {
		ct.Runtime = k.facts.runtime
	}
	ct.Name, ct.Image, ct.Labels = k.facts.name, k.facts.image, k.facts.labels
	return ct, k.facts.pod
}

// of describes the container and the pod of a cgroup, by what is known already.
func (c *Containers) of(g *cgroupPath) (*pavise.Container, *pavise.Pod) {
	if g.outer == nil {
		return nil, nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if k := c.byBase[g.base]; k != nil {
		return k.describe(g.container)
	}
	return &pavise.Container{ID: g.container.ID, Runtime: g.container.Runtime}, nil
}

// meet takes in the container of a cgroup that is seen for the first time, and reads its runtime's files. One that is not to be believed, or for
// which there is no room, is left out.
func (c *Containers) meet(g *cgroupPath) {
	if g.outer == nil {
		return
	}
	c.mu.Lock()
	k, room := c.byBase[g.base], len(c.byBase) < maxContainers
	if k != nil {
		k.gone = false
	}
	c.mu.Unlock()
	if k != nil {
		return
	}
	if err := c.ours(g.base); err != nil {
		c.mu.Lock()
		c.stats.Untrusted++
		first := c.stats.Untrusted == 1
		c.mu.Unlock()
		if first {
			c.o.Log.Info("a container is known by its id alone; more of them are only counted", "id", g.outer.ID, "cgroup", g.base, "err", err)
		}
		return
	}
	if !room {
		c.mu.Lock()
		c.stats.Refused++
		first := c.stats.Refused == 1
		c.mu.Unlock()
		if first {
			c.o.Log.Error("too many containers: more of them are known by their ids alone", "limit", maxContainers)
		}
		return
	}
	k = &known{base: strings.Clone(g.base), outer: &pavise.Container{ID: strings.Clone(g.outer.ID), Runtime: g.outer.Runtime, Name: strings.Clone(g.outer.Name)}}
	f, err := readFacts(c.o.Roots, k.outer.ID)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.byBase[k.base] != nil {
		return
	}
	c.byBase[k.base] = k
	c.settle(k, f, err, time.Now())
	if k.named() {
		c.tell()
	}
}

// settle notes the result of a try.
func (c *Containers) settle(k *known, f *facts, err error, now time.Time) {
	k.facts, k.err, k.next = f, err, time.Time{}
	switch {
	case err == nil:
		if f.cut > 0 {
			c.o.Log.Info("labels of a container are left out", "id", k.outer.ID, "labels", f.cut, "bytes each", maxLabel, "bytes together", maxLabelBytes)
		}
	case !isContainerID(k.outer.ID): // LXC and systemd-nspawn: the cgroup's name says it all
	default:
		if k.tries++; k.tries < containerTries {
			k.next = now.Add(containerRetry)
			return
		}
		c.stats.Failed++
		level := slog.LevelWarn
		if errors.Is(err, fs.ErrNotExist) { // of a runtime that keeps its state elsewhere, or says nothing: as ctr
			level = slog.LevelInfo
		}
		c.o.Log.Log(context.Background(), level, "nothing is known of a container but its id", "id", k.outer.ID, "cgroup", k.base, "err", err)
	}
}

// ours says why a cgroup may have been made by another than root.
func (c *Containers) ours(base string) error {
	err := errors.New("no cgroup hierarchy is mounted")
	found := false
	for _, mount := range c.o.Cgroups {
		dir := filepath.Join(mount, path.Dir(base))
		st, serr := os.Stat(dir)
		switch {
		case serr != nil:
			err = serr
		case !ownedByRoot(st):
			return fmt.Errorf("%s: another user than root may make cgroups here", dir)
		default:
			found = true
		}
	}
	if !found {
		return fmt.Errorf("see who may make cgroups here: %w", err)
	}
	return nil
}

// Tick looks again for what was not found, forgets the containers that are gone, and returns the cgroups of those that are known now.
// To be called about once a second.
func (c *Containers) Tick(now time.Time) (learnt []string) {
	c.mu.Lock()
	var again []*known
	for _, k := range c.byBase {
		if !k.next.IsZero() && !now.Before(k.next) {
			again = append(again, k)
		}
	}
	var all []string
	if now.Sub(c.swept) >= containerSweep {
		c.swept = now
		for base := range c.byBase {
			all = append(all, base)
		}
	}
	c.mu.Unlock()

	for _, k := range again {
		f, err := readFacts(c.o.Roots, k.outer.ID)
		c.mu.Lock()
		c.settle(k, f, err, now)
		c.mu.Unlock()
		if f != nil {
			learnt = append(learnt, k.base)
		}
	}
	news := len(learnt) > 0
	for _, base := range all {
		exists := c.exists(base)
		c.mu.Lock()
		switch k := c.byBase[base]; {
		case exists:
			k.gone = false
		case k.gone: // for two sweeps: it is not between a stop and a start
			news = news || k.named()
			delete(c.byBase, base)
		default:
			k.gone = true
		}
		c.mu.Unlock()
	}
	if news {
		c.tell()
	}
	return learnt
}

func (c *Containers) exists(base string) bool {
	for _, mount := range c.o.Cgroups {
		if _, err := os.Stat(filepath.Join(mount, base)); !errors.Is(err, fs.ErrNotExist) {
			return true
		}
	}
	return false
}
