package agent

import (
	"slices"
	"time"

	"github.com/pavise-project/pavise"
	"github.com/pavise-project/pavise/enforce"
	"github.com/pavise-project/pavise/policy"
	"github.com/pavise-project/pavise/proc"
)

// ruleBook names the rules of the last generations, so that an event which was judged just before a flip still finds
// its rule. It is replaced, never changed.
type ruleBook struct {
	gens []generation // newest first
	// shadow is the candidate's that is on, which may be older than the others.
	shadow generation
	// pending are the rules of an Image that is being applied: its events may come before Apply has returned its number.
	pending []policy.Rule
}

type generation struct {
	number uint32
	rules  []policy.Rule
}

// keepGenerations is how many generations' rules are kept: events wait in a ring for less than a few flips.
const keepGenerations = 8

func (b *ruleBook) of(gen uint32) []policy.Rule {
	if gen == b.shadow.number && gen != 0 {
		return b.shadow.rules
	}
	for i := range b.gens {
		if b.gens[i].number == gen {
			return b.gens[i].rules
		}
	}
	return b.pending
}

func (b *ruleBook) with(number uint32, rules []policy.Rule) *ruleBook {
	n := &ruleBook{gens: []generation{{number, rules}}, shadow: b.shadow}
	n.gens = append(n.gens, b.gens[:min(len(b.gens), keepGenerations-1)]...)
	return n
}

// handle takes one record from the kernel to the subscribers. It is called by one goroutine.
func (a *Agent) handle(rec []byte) error {
	e := &a.ev
	e.Process, e.Policy, e.Rule, e.Severity, e.Message = nil, "", "", "", ""
	if err := a.cfg.Decode(rec, a.boot.Load(), e); err != nil {
		if a.undecoded.Add(1) == 1 {
			a.log.Error("a record could not be decoded; more of them are only counted", "err", err, "bytes", len(rec))
		}
		return nil
	}
	switch {
	case e.Op == pavise.OpFork, e.Op == pavise.OpExit, e.Op == pavise.OpExec && e.Action == pavise.ActionNone:
		// Update may forget what the record said of itself.
		found, thread := e.Exec.Found, e.Exec.Thread
		if found && !e.Exec.Kept {
			proc.ReadProc(e.PID, e)
		}
		a.table.Update(e)
		a.received[min(e.Op, pavise.NumOps-1)].Add(1)
		if found || thread || a.own(e) {
			return nil
		}
	default:
		a.table.Resolve(e)
		a.received[min(e.Op, pavise.NumOps-1)].Add(1)
		if a.own(e) {
			return nil
		}
		a.names.tell(e)
		if !a.name(e) {
			a.filtered.Add(1)
			return nil
		}
	}
	a.busy.count(e)
	a.hub.publish(e)
	if f := a.flows.Load(); f != nil {
		f.denied(e)
	}
	return nil
}

// own reports whether e is of the process that the agent starts to see it killed, in a self-test.
func (a *Agent) own(e *pavise.Event) bool {
	p := e.Process
	if p == nil || p.Parent == nil || p.Parent.PID != a.pid {
		return false
	}
	return e.Op == pavise.OpFork && p.Exe.Inode == a.exe || p.Exe.Memfd && p.Exe.Path == enforce.SelftestPath
}

// withAncestors is e with all ancestors of its process, as far as they are known: Process.Parent is one level only.
func (a *Agent) withAncestors(e *pavise.Event) *pavise.Event {
	if e.Process == nil || e.Process.ParentExecID == 0 {
		return e
	}
	c, p := *e, *e.Process
	c.Process = &p
	last := &p
	for q := range a.table.Ancestors(e.Process) {
		q := *q
		last.Parent = &q
		last = &q
	}
	return &c
}

// name gives e the policy and the rule by which it was judged, and reports whether it is to be delivered: when
// rules left a condition to user space, one of them must hold.
func (a *Agent) name(e *pavise.Event) bool {
	rules := a.rules.Load().of(e.Gen)
	// The kernel counts clauses: a rule that holds for two reasons counts twice, but has one place.
	n := min(int(e.Matched), len(e.RuleIDs))
	if i := slices.Index(e.RuleIDs[:n], policy.NoRule); i > 0 {
		n, e.Matched = i, uint8(i)
	}
	var full *pavise.Event
	for _, id := range e.RuleIDs[:n] {
		if int(id) >= len(rules) {
			a.unresolved.Add(1)
			return true // it was judged, and is told, although nobody knows by what name
		}
		r := &rules[id]
		if r.Residual != nil {
			if full == nil {
				full = a.withAncestors(e)
			}
			ok, err := r.Residual.Eval(full)
			if !ok && e.File.Alias != "" { // the kernel's part holds under any name of the file, and so does this one
				other := *full
				other.File.Path = e.File.Alias
				ok, err = r.Residual.Eval(&other)
			}
			if err != nil {
				a.log.Debug("residual condition failed", "policy", r.Policy, "rule", r.Name, "err", err)
			}
			if !ok {
				continue
			}
			e.Action, e.Monitor = r.Action, r.Monitor || e.Shadow != pavise.DecisionNone
		}
		e.Policy, e.Rule, e.Severity, e.Message = r.Policy, r.Name, r.Severity, r.Message
		return true
	}
	return n == 0 || int(e.Matched) > n // rules beyond those that are named may hold
}

// poll looks at the kernel's counters, and reports what was lost since it last did.
func (a *Agent) poll() {
	if n := a.undecoded.Load(); n > a.decodeLost {
		a.lost(pavise.OpNone, "decode", n-a.decodeLost)
		a.decodeLost = n
	}
	c, err := a.kernel.Counters()
	if err != nil {
		a.log.Debug("kernel counters not read", "err", err)
		return
	}
	if n := c.NoScratch + c.NoIdentity + c.NoTexts + c.NoCount + c.NoEngine + c.NoName + c.NoListener + c.Missed; n > a.kernelTrouble {
		a.log.Warn("the kernel side could not do all of its work", "no_scratch", c.NoScratch, "no_identity", c.NoIdentity, "no_texts", c.NoTexts, "no_count", c.NoCount, "no_engine", c.NoEngine, "no_name", c.NoName, "no_listener", c.NoListener, "missed", c.Missed)
		a.kernelTrouble = n
	}
	if c.Unread > a.unread {
		a.lost(pavise.OpNone, "another build", c.Unread-a.unread)
		a.unread = c.Unread
	}
	missed := false
	for op := range c.Ops {
		if n, told := c.Ops[op].Lost, max(a.kernelLost[op], c.Told[op]); n > told {
			a.lost(pavise.Op(op), "kernel-ring", n-told)
			a.kernelLost[op] = n
			if err := a.kernel.Told(pavise.Op(op), n); err != nil {
				a.log.Debug("the next agent may tell of lost events once more", "err", err)
			}
			missed = missed || op == int(pavise.OpFork) || op == int(pavise.OpExit) || op == int(pavise.OpExec)
		}
	}
	if missed { // ends of processes may be among them
		a.table.Prune(time.Now(), a.table.Alive)
	}
}

func (a *Agent) lost(op pavise.Op, where string, n uint64) {
	a.hub.publish(lostEvent(op, where, n))
}

func lostEvent(op pavise.Op, where string, n uint64) *pavise.Event {
	return &pavise.Event{
		Time: time.Now().UnixNano(), Op: pavise.OpLost,
		Lost: pavise.LostInfo{Op: op, Where: where, Count: n},
	}
}
