package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"sync"
	"time"

	"github.com/pavise-project/pavise/enforce"
	"github.com/pavise-project/pavise/policy"
)

// MaxPolicyBytes bounds one policy file and one request to apply.
const MaxPolicyBytes = 1 << 20

// Errors of a change of policies.
var (
	ErrNoPolicy = errors.New("no such policy")
	ErrStopping = errors.New("the agent is stopping")
)

// policySet is one set of policies that was compiled together. It is replaced, never changed.
type policySet struct {
	policies []*policy.Policy // by name
	machine  *policy.Machine
	image    *policy.Image
	report   *policy.Report
	applied  enforce.Applied

	once   sync.Once
	review *policy.Report
}

// reviewed is the report with the warnings that take longer to find: for who asks to see it, not for who waits for a change.
func (s *policySet) reviewed() *policy.Report {
	s.once.Do(func() { s.review = policy.Review(s.policies, s.machine, s.report) })
	return s.review
}

func (s *policySet) find(name string) *policy.Policy {
	i, ok := slices.BinarySearchFunc(s.policies, name, func(p *policy.Policy, name string) int { return strings.Compare(p.Name, name) })
	if !ok {
		return nil
	}
	return s.policies[i]
}

// LoadPolicies reads policies from files and directories. Of a directory it takes every *.yaml and *.yml below it, except below
// directories named testdata, demo or examples, and hidden ones. Errors in policies are policy.Errors, all of them.
func LoadPolicies(paths []string) ([]*policy.Policy, error) {
	var out []*policy.Policy
	var bad policy.Errors
	for _, path := range paths {
		files, err := policyFiles(path)
		if err != nil {
			return nil, err
		}
		for _, name := range files {
			ps, err := loadFile(name)
			var pe policy.Errors
			switch {
			case errors.As(err, &pe):
				bad = append(bad, pe...)
			case err != nil:
				return nil, err
			}
			out = append(out, ps...)
		}
	}
	if len(bad) > 0 {
		return nil, bad
	}
	return out, nil
}

func policyFiles(path string) ([]string, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("load policies: %w", err)
	}
	if !st.IsDir() {
		return []string{path}, nil
	}
	var files []string
	err = filepath.WalkDir(path, func(p string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir():
			if p != path && (slices.Contains([]string{"testdata", "demo", "examples"}, d.Name()) || strings.HasPrefix(d.Name(), ".")) {
				return fs.SkipDir
			}
		case filepath.Ext(p) == ".yaml" || filepath.Ext(p) == ".yml":
			files = append(files, p)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("load policies: %w", err)
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("load policies: no *.yaml in %s", path)
	}
	return files, nil
}

func loadFile(name string) ([]*policy.Policy, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("load policy: %w", err)
	}
	defer f.Close()
	data, err := ReadPolicy(f)
	if err != nil {
		return nil, fmt.Errorf("load policy %s: %w", name, err)
	}
	return policy.ParseWith(name, data, SetsIn(filepath.Dir(name)))
}

// Duplicates is the error for names that stand twice in ps.
func Duplicates(ps []*policy.Policy) error {
	seen := map[string]bool{}
	var bad policy.Errors
	for _, p := range ps {
		if seen[p.Name] {
			bad = append(bad, &policy.Error{File: p.File, Line: p.Line, Column: 1, Field: "metadata.name", Msg: fmt.Sprintf("policy %q stands twice", p.Name), Hint: "give each policy its own name"})
		}
		seen[p.Name] = true
	}
	if len(bad) > 0 {
		return bad
	}
	return nil
}

// Faults makes policy.Errors of whatever the compiler has against a set, also when it has it against the set as a
// whole (too many states).
func Faults(err error) error {
	var pe policy.Errors
	if err == nil || errors.As(err, &pe) {
		return err
	}
	return policy.Errors{{Msg: err.Error()}}
}

// parse reads policies that are to be added: what stands in them as in those that are there is not checked again.
func (a *Agent) parse(name string, data []byte, sets func(file string) ([]byte, error)) ([]*policy.Policy, error) {
	return policy.ParseWith(name, data, sets, a.set.Load().policies...)
}

// compile compiles policies, with that of what is being learned.
func (a *Agent) compile(ps []*policy.Policy) (*policySet, error) {
	return a.compileBy(&a.compiler, append(applied(ps), a.learningPolicies()...))
}

func (a *Agent) compileBy(c *policy.Compiler, ps []*policy.Policy) (*policySet, error) {
	ps = slices.Clone(ps)
	sort.Slice(ps, func(i, j int) bool { return ps[i].Name < ps[j].Name })
	img, rep, err := c.Compile(ps, a.machine)
	if err != nil {
		return nil, Faults(err)
	}
	if err := policy.TestErrors(ps); err != nil {
		return nil, err
	}
	return &policySet{policies: ps, machine: a.machine, image: img, report: rep}, nil
}

// containerPace spaces the changes of the rules for the sake of containers, so that many that start together are one change: four a second, and half
// of the time at most, but at once when there were fewer.
type containerPace struct {
	starts [4]time.Time
	n      int
}

// next notes a change and returns how long the next one has to wait.
func (p *containerPace) next(start, end time.Time) time.Duration {
	p.starts[p.n] = start
	p.n = (p.n + 1) % len(p.starts)
	return max(end.Sub(start), p.starts[p.n].Add(time.Second).Sub(end))
}

// firstSet is the set of the start policies for the containers that run already: a rule that excuses an image must not act on them meanwhile. To know
// them, it waits until what the kernel said of the running processes has been read.
func (a *Agent) firstSet(ctx context.Context) (*policySet, error) {
	set := a.set.Load()
	if !slices.ContainsFunc(set.policies, (*policy.Policy).AsksContainers) {
		return set, nil
	}
	if !a.catchUp(ctx) {
		a.log.Warn("the rules do not know all containers that run; they will in a moment")
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.machine = a.machine.WithContainers(a.knownContainers())
	return a.compile(set.policies)
}

// catchUp waits, ten seconds at most, until the agent has received what the kernel has told so far, and reports whether it has.
func (a *Agent) catchUp(ctx context.Context) bool {
	until := a.kernel.Position()
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for !a.kernel.Reached(until) {
		select {
		case <-ctx.Done():
			return false
		case <-time.After(2 * time.Millisecond):
		}
	}
	return true
}

func (a *Agent) knownContainers() []policy.Container {
	known := a.containers.Known()
	list := make([]policy.Container, len(known))
	for i, k := range known {
		list[i] = policy.Container(k)
	}
	return list
}

// followContainers compiles the policies for the containers that are known now, when one of their conditions comes out differently.
func (a *Agent) followContainers() {
	list := a.knownContainers()
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return
	}
	start, active := time.Now(), a.set.Load()
	next := a.machine.WithContainers(list)
	same := policy.SameFor(active.policies, a.machine, next)
	a.machine = next
	if same && a.behind.Load() == nil {
		if sh := a.shadow; sh != nil && sh.on && !policy.SameFor(sh.set.policies, sh.set.machine, next) {
			a.followShadow()
		}
		return
	}
	set, err := a.compile(active.policies)
	if err == nil {
		err = a.activate(set)
	}
	if err != nil {
		why := err.Error()
		if a.behind.Swap(&why) == nil {
			a.log.Error("rules on containers do not know of all of them", "err", err)
		}
		return
	}
	a.behind.Store(nil)
	a.recheckFor(RecheckContainers)
	a.log.Info("rules follow the containers", "generation", set.applied.Generation, "containers", len(list), "took", time.Since(start))
}

// activate makes set the kernel's and then the agent's. When it fails, both are as they were. The caller of a
// running agent holds mu.
func (a *Agent) activate(set *policySet) error {
	old, book := a.set.Load(), a.rules.Load()
	a.rules.Store(&ruleBook{gens: book.gens, shadow: book.shadow, pending: set.image.Rules})
	a.noteRunning(set, nil)
	a.names.prepare(set.image.Domains(), a.set.Load().applied.Generation != 0)
	applied, err := a.kernel.Apply(set.image)
	if applied.Shadow != nil {
		a.shadow = a.shadow.with(applied.Shadow)
	}
	if err != nil {
		a.rules.Store(book)
		if applied.Shadow != nil {
			a.followShadow()
		}
		return fmt.Errorf("apply policies to the kernel: %w", err)
	}
	if a.left != nil {
		old = a.left
	}
	hits := map[string]uint64{}
	if old != set { // else it is the first: nothing has counted yet
		hits = a.hits(old, applied.Hits)
	}
	if !applied.Resumed { // else the kernel goes on counting
		a.carry = carried(hits, old, set)
	}
	a.left, applied.Hits, applied.Shadow = nil, nil, nil
	set.applied = applied
	a.rules.Store(book.with(applied.Generation, set.image.Rules))
	a.noteRunning(set, a.carry)
	a.past = a.past.with(applied.Generation, set.policies)
	a.set.Store(set)
	a.followShadow()
	return nil
}

// hits are how often the rules of set matched since their policies were last changed, by ruleKey: carry, and what the kernel counted by rule.
func (a *Agent) hits(set *policySet, counted []uint64) map[string]uint64 {
	return addHits(a.carry, set, counted)
}

// addHits are the hits before, and what the kernel counted by rule of set.
func addHits(before map[string]uint64, set *policySet, counted []uint64) map[string]uint64 {
	out := maps.Clone(before)
	if out == nil {
		out = map[string]uint64{}
	}
	for i, n := range counted[:min(len(counted), len(set.image.Rules))] {
		if n > 0 {
			r := &set.image.Rules[i]
			out[ruleKey(r.Policy, r.Name)] += n
		}
	}
	return out
}

func ruleKey(policy, rule string) string { return policy + "\x00" + rule }

// carried keeps the hits of the policies that are the same in both sets: the kernel counts from 0 in each generation.
func carried(hits map[string]uint64, from, to *policySet) map[string]uint64 {
	out := map[string]uint64{}
	for i := range to.image.Rules {
		r := &to.image.Rules[i]
		key := ruleKey(r.Policy, r.Name)
		n := hits[key]
		if n == 0 {
			continue
		}
		was, is := from.find(r.Policy), to.find(r.Policy)
		if was != nil && is != nil && (was == is || bytes.Equal(was.Source, is.Source)) {
			out[key] = n
		}
	}
	return out
}

// Apply adds policies, or replaces those of the same names, all of them or none.
func (a *Agent) Apply(ps []*policy.Policy, q Request) (*Change, error) {
	if len(ps) == 0 {
		return nil, errors.New("apply: no policy given")
	}
	if err := Duplicates(ps); err != nil {
		return nil, err
	}
	names := make([]string, len(ps))
	for i, p := range ps {
		names[i] = p.Name
	}
	return a.change(names, "apply "+strings.Join(names, " "), q, func(have []*policy.Policy) ([]*policy.Policy, error) { return replaced(have, ps), nil })
}

// replaced is have with ps added, or in the place of those of the same names.
func replaced(have, ps []*policy.Policy) []*policy.Policy {
	next := slices.DeleteFunc(slices.Clone(have), func(p *policy.Policy) bool { return find(ps, p.Name) != nil })
	return append(next, ps...)
}

// Delete takes the policy away.
func (a *Agent) Delete(name string, q Request) (*Change, error) {
	return a.change(nil, "delete "+name, q, func(have []*policy.Policy) ([]*policy.Policy, error) {
		next := slices.DeleteFunc(slices.Clone(have), func(p *policy.Policy) bool { return p.Name == name })
		if len(next) == len(have) {
			return nil, fmt.Errorf("delete %q: %w", name, ErrNoPolicy)
		}
		return next, nil
	})
}

// SetMode puts the policy into a mode, without its file, which keeps the other: the mode stays until the file is changed.
func (a *Agent) SetMode(name string, m policy.Mode, q Request) (*Change, error) {
	return a.change([]string{name}, fmt.Sprintf("mode %s %s", name, m), q, func(have []*policy.Policy) ([]*policy.Policy, error) {
		i := slices.IndexFunc(have, func(p *policy.Policy) bool { return p.Name == name })
		if i < 0 {
			return nil, fmt.Errorf("set the mode of %q: %w", name, ErrNoPolicy)
		}
		p, err := have[i].WithMode(m)
		if err != nil {
			return nil, err
		}
		next := slices.Clone(have)
		next[i] = p
		return next, nil
	})
}

// change makes one new set out of the active one: compile, stage, flip, commit. Names are those that the answer tells about.
func (a *Agent) change(names []string, from string, q Request, edit func([]*policy.Policy) ([]*policy.Policy, error)) (*Change, error) {
	return a.changeTo(names, from, q, false, edit)
}

// changeTo is change; pending says that it ends what waits to be confirmed.
func (a *Agent) changeTo(names []string, from string, q Request, pending bool, edit func([]*policy.Policy) ([]*policy.Policy, error)) (*Change, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return nil, ErrStopping
	}
	if err := a.mayChange(q); err != nil && (!pending || !errors.Is(err, ErrPending)) {
		return nil, err
	}
	start := time.Now()
	next, err := edit(applied(a.set.Load().policies))
	if err != nil {
		return nil, err
	}
	set, err := a.compile(next)
	if err != nil {
		return nil, err
	}
	compiled := time.Since(start)
	if !q.DryRun {
		if err := a.commit(set, from, q); err != nil {
			a.log.Error("policies were not changed", "err", err)
			return nil, err
		}
		a.behind.Store(nil)
		a.log.Info("policies changed", "generation", set.applied.Generation, "policies", len(set.policies), "took", time.Since(start))
		a.recheckSoon(RecheckPolicies)
	}
	c := &Change{
		Generation: set.applied.Generation, DryRun: q.DryRun, Revision: a.revision(), ConfirmBy: a.confirmBy(),
		Policies: StatusOf(set.policies, only(set.report, func(name string) bool { return slices.Contains(names, name) })),
		Compiled: compiled, Staged: set.applied.Staged, Activated: set.applied.Activated, Total: time.Since(start), set: set,
	}
	return c, nil
}

// commit makes set the one that is in force, on disk and in the kernel, or changes nothing. It is on disk first: what was told to be done is never lost.
func (a *Agent) commit(set *policySet, from string, q Request) error {
	if a.revisions == nil {
		return a.activate(set)
	}
	was, err := a.keep(set, from, q)
	if q.Confirm > 0 { // at no moment is it in force without a bound
		a.boundPending()
	}
	defer a.boundPending()
	if err == nil {
		err = a.activate(set)
	}
	if err != nil && a.revisions.Current() != was {
		if berr := a.revisions.Set(was); berr != nil {
			err = errors.Join(err, fmt.Errorf("and the state could not be taken back: %w", berr))
		}
	}
	return err
}

func (a *Agent) revision() uint64 {
	if a.revisions == nil {
		return 0
	}
	return a.revisions.Current().Revision
}

func (a *Agent) confirmBy() *time.Time {
	if a.revisions == nil {
		return nil
	}
	if p := a.revisions.Current().Pending; p != nil {
		return &p.Wall
	}
	return nil
}

// review gives c's policies the warnings of a review.
func (a *Agent) review(c *Change) {
	for _, r := range c.set.reviewed().Policies {
		for i := range c.Policies {
			if p := &c.Policies[i]; p.Name == r.Name {
				p.Warnings = warnings(&r)
			}
		}
	}
}

// ruleHits are how often the rules of the active set matched, by ruleKey.
func (a *Agent) ruleHits() (*policySet, map[string]uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	set := a.set.Load()
	c, err := a.kernel.Counters()
	if err != nil {
		a.log.Warn("read the hits of rules", "err", err)
	}
	return set, a.hits(set, c.RuleHits)
}

// policyStatus is the state of every policy, or of the one with the name.
func (a *Agent) policyStatus(name string) []PolicyStatus {
	set, hits := a.ruleHits()
	all := StatusOf(set.policies, only(set.reviewed(), func(n string) bool { return name == "" || n == name }))
	for i := range all {
		for j := range all[i].Rules {
			r := &all[i].Rules[j]
			r.Hits = hits[ruleKey(all[i].Name, r.Name)]
		}
	}
	if why := a.behind.Load(); why != nil {
		for i := range all {
			if set.find(all[i].Name).AsksContainers() {
				all[i].Warnings = append(all[i].Warnings, "its rules on containers do not know of all of them: "+*why)
			}
		}
	}
	return all
}
