package agent

import (
	"cmp"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/pavise-project/pavise/enforce"
	"github.com/pavise-project/pavise/policy"
)

// This file is what an agent needs to go on where one before it ended, when enforcement did not: which rules the generations in the kernel have, by which events that
// nobody has read yet are named, and what had been counted before them.

// lastRun is what stands in the state directory of the last generations. It is of use during this boot alone, in which what was written is not lost: it is not synced.
type lastRun struct {
	Boot        string      `json:"boot"`
	Generations []generated `json:"generations"` // newest first
}

// generated says how a generation came about.
type generated struct {
	Image      string             `json:"image"`  // enforce.ImageOf
	Number     uint32             `json:"number"` // 0 while it is not known
	Revision   uint64             `json:"revision"`
	Containers []policy.Container `json:"containers,omitempty"` // for which it was compiled
	Hits       map[string]uint64  `json:"hits"`                 // of its rules before it began, by ruleKey; null while that is not known
}

const keepRunning = 4

func (a *Agent) runningFile() string { return filepath.Join(a.cfg.StateDir, "running.json") }

// noteRunning remembers what the next agent needs of a set that is to judge, or, with hits, judges.
func (a *Agent) noteRunning(set *policySet, hits map[string]uint64) {
	if a.revisions == nil || a.kernel.Keep().Keep == enforce.KeepNot {
		return
	}
	id := enforce.ImageOf(set.image)
	g := generated{Image: hex.EncodeToString(id[:]), Number: set.applied.Generation, Revision: a.revision(), Containers: set.machine.Containers(), Hits: hits}
	r := lastRun{Boot: bootID(), Generations: []generated{g}}
	for _, old := range a.noted.Generations {
		if old.Image != g.Image && len(r.Generations) < keepRunning {
			r.Generations = append(r.Generations, old)
		}
	}
	a.noted = r
	if err := writeRunning(a.runningFile(), &r); err != nil {
		a.log.Warn("should this agent be killed, the next one may not know the rules of the events that nobody had read", "err", err)
	}
}

func writeRunning(name string, r *lastRun) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	if err := os.WriteFile(name+".new", b, 0o600); err != nil {
		return err
	}
	return os.Rename(name+".new", name)
}

func readRunning(name string) (r lastRun, err error) {
	b, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return r, nil
	}
	if err == nil {
		err = json.Unmarshal(b, &r)
	}
	if err != nil || r.Boot != bootID() {
		return lastRun{}, err
	}
	return r, nil
}

// adopt finds out which rules the generations have that were found in the kernel: their events may come as soon as it is read.
func (a *Agent) adopt() {
	ad := a.kernel.Adopted()
	if ad == nil && a.kernel.Keep().Replaced == "" {
		return
	}
	if a.revisions != nil {
		var err error
		if a.noted, err = readRunning(a.runningFile()); err != nil {
			a.log.Warn("read what was running", "err", err)
		}
	}
	if ad == nil {
		a.replace()
		return
	}
	gens := slices.Clone(ad.Generations)
	slices.SortFunc(gens, func(x, y enforce.AdoptedGeneration) int { return cmp.Compare(x.Number, y.Number) })
	book, first := a.rules.Load(), a.set.Load()
	var before *policySet
	var counted map[string]uint64
	for _, g := range gens {
		note := a.noted.of(g.Image)
		set := first
		if enforce.NamesOf(set.image.Rules) != g.Names {
			set = a.recompile(note, &g.Names)
		}
		if set == nil {
			if g.Active {
				a.log.Warn("the rules that were in force are not known: what they did while there was no agent is told without their names", "generation", g.Number)
			}
			continue
		}
		book = book.with(g.Number, set.image.Rules)
		a.past = a.past.with(g.Number, set.policies)
		hits := map[string]uint64{}
		switch {
		case note != nil && note.Hits != nil:
			hits = note.Hits
		case before != nil: // the agent was killed just after the flip
			hits = carried(counted, before, set)
		}
		if g.Active {
			a.left, a.carry = set, hits
			break
		}
		before, counted = set, addHits(hits, set, g.Hits)
	}
	a.rules.Store(book)
}

// replace is adopt where the generations in the kernel are another build's: their numbers are those that were noted.
func (a *Agent) replace() {
	book := a.rules.Load()
	for _, g := range slices.Backward(a.noted.Generations) {
		if g.Number == 0 {
			continue
		}
		set := a.recompile(&g, nil)
		if set == nil {
			continue
		}
		book = book.with(g.Number, set.image.Rules)
		a.past = a.past.with(g.Number, set.policies)
		if g.Hits != nil {
			a.left, a.carry = set, g.Hits
		}
	}
	a.rules.Store(book)
}

func (r *lastRun) of(image [16]byte) *generated {
	id := hex.EncodeToString(image[:])
	i := slices.IndexFunc(r.Generations, func(g generated) bool { return g.Image == id })
	if i < 0 {
		return nil
	}
	return &r.Generations[i]
}

// recompile makes the set again of which a generation was made, nil when its rules have come to be others than names.
func (a *Agent) recompile(g *generated, names *[16]byte) *policySet {
	if g == nil || a.revisions == nil {
		return nil
	}
	rev, err := a.revisions.Get(g.Revision)
	if err != nil {
		a.log.Warn("read the revision that was in force", "err", err)
		return nil
	}
	ps, err := fromDocuments(rev.Documents)
	if err != nil {
		a.log.Warn("read the revision that was in force", "revision", g.Revision, "err", err)
		return nil
	}
	was := a.machine
	a.machine = was.WithContainers(g.Containers)
	defer func() { a.machine = was }()
	set, err := a.compileBy(new(policy.Compiler), ps)
	if err != nil || names != nil && enforce.NamesOf(set.image.Rules) != *names {
		a.log.Warn("the revision that was in force has other rules by now", "revision", g.Revision, "err", err)
		return nil
	}
	return set
}
