package enforce

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/pavise-project/pavise"
	"github.com/pavise-project/pavise/bpf"
	"github.com/pavise-project/pavise/policy"
)

// Shadow lets an Image judge beside the active one, without effect, in place of the one that did before, until the next Apply or EndShadow. What the active
// Image does not judge is judged by the shadow alone, so the programs for it are attached and proved as Apply does.
func (e *Enforcer) Shadow(img *policy.Image) (Applied, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	next := &staged{}
	if e.shadow != nil {
		next.names = e.shadow.names
	} else {
		next.names = newNames(true)
	}
	a, err := e.put(img, next, func() error {
		if err := e.clearCounts(next.side); err != nil {
			return err
		}
		return e.judgeBy(e.live, next)
	})
	a.Hits = nil // nothing that is active has changed
	return a, err
}

// stopShadow waits until no program judges by the shadow's side any more, and returns what it has counted.
func (e *Enforcer) stopShadow() (*ShadowCounters, error) {
	off := *e.shadow
	off.off = true
	if err := e.judgeBy(e.live, &off); err != nil {
		return nil, err
	}
	e.grace(off.side)
	c, err := e.shadowCounters(&off)
	return &c, err
}

// EndShadow ends what Shadow began, and returns what it has counted since then, or since an Apply ended it; none is no error.
func (e *Enforcer) EndShadow() (c ShadowCounters, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	old := e.shadow
	if old == nil {
		return c, nil
	}
	defer e.trim()
	if old.on() {
		n, err := e.stopShadow()
		if err != nil {
			return c, err
		}
		c = *n
	}
	e.shadow = nil
	e.leaveSets()
	stale, _, err := old.names.add(e.k, nil, nil)
	old.names.remove(e.k, stale)
	e.detach()
	e.counting[1] = false
	return c, errors.Join(err, e.k.SetInner("rate_counts", 1, nil))
}

// ShadowCount is what a shadow found on one operation.
type ShadowCount struct {
	Judged          uint64
	Stricter, Laxer uint64 // than what the active Image decided
}

// ShadowCounters are the kernel's own, since Shadow. Events about what is counted as Stricter or Laxer are counted with the operation's others
// (Counters).
type ShadowCounters struct {
	Ops          [pavise.NumOps]ShadowCount
	RuleHits     []uint64 // by rule of the shadow
	RuleStricter []uint64 // how often it decided, and more strictly than the active Image
}

// ShadowCounters reads them; they are zero when no shadow is on.
func (e *Enforcer) ShadowCounters() (c ShadowCounters, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.shadow.on() {
		return c, nil
	}
	defer e.trim()
	return e.shadowCounters(e.shadow)
}

// shadowCounters leaves it to the caller to trim.
func (e *Enforcer) shadowCounters(s *staged) (c ShadowCounters, err error) {
	for op := range c.Ops {
		var per []bpf.KernelShadeCount
		if err := e.k.Map("shade_counts").Lookup(shadeKey(s.side, op), &per); err != nil {
			return c, fmt.Errorf("read the shadow's counters of %s: %w", pavise.Op(op), err)
		}
		for _, n := range per {
			c.Ops[op].Judged += n.Judged
			c.Ops[op].Stricter += n.Stricter
			c.Ops[op].Laxer += n.Laxer
		}
	}
	c.RuleHits, c.RuleStricter, err = e.hits(s)
	return c, err
}

// numOps is NUM_OPS of bpf/event.h.
const numOps = 64

func shadeKey(side, op int) uint32 { return uint32(side*numOps + op) }

// clearCounts makes the counters of a side zero that it has as a shadow.
func (e *Enforcer) clearCounts(side int) error {
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return fmt.Errorf("count the CPUs: %w", err)
	}
	zero := make([]bpf.KernelShadeCount, cpus)
	for op := range int(pavise.NumOps) {
		if err := e.k.Map("shade_counts").Put(shadeKey(side, op), zero); err != nil {
			return fmt.Errorf("clear the shadow's counters: %w", err)
		}
	}
	return nil
}
