package learn

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/pavise-project/pavise"
	"github.com/pavise-project/pavise/policy"
)

// MaxActs bounds how many different acts are kept. What comes beyond is counted as lost.
const MaxActs = 50_000

// startup is how long after its start what a process does counts as a part of starting: it is done once in a life, and not rare.
const startup = 10 * time.Second

// An Act is one thing that one program did to one object, however often.
type Act struct {
	Event *pavise.Event `json:"event"` // an example: the first
	Count uint64        `json:"count"`
	First time.Time     `json:"first"`
	Last  time.Time     `json:"last"`
	// Start says that it was done within 10 s of its process's start.
	Start bool `json:"start,omitempty"`
	// By names the policy and the rule that flag the act, empty for none: it is not learned.
	By string `json:"by,omitempty"`
}

// Observed is all that was seen, and how much was not.
type Observed struct {
	acts map[string]*Act
	key  []byte

	Seen uint64 // acts, repeats included
	Lost uint64 // acts that were lost on the way here, or found no room
}

// Add counts an event. It is kept only when it is the first of its kind.
func (o *Observed) Add(e *pavise.Event) {
	n := max(e.Count, 1)
	o.Seen += n
	o.key = appendKey(o.key[:0], e)
	a := o.acts[string(o.key)]
	at := time.Unix(0, e.Time)
	if a == nil {
		if len(o.acts) >= MaxActs {
			o.Lost += n
			return
		}
		if o.acts == nil {
			o.acts = map[string]*Act{}
		}
		a = &Act{Event: e.Clone(), First: at}
		o.acts[string(o.key)] = a
	}
	a.Count += n
	a.First, a.Last = earlier(a.First, at), later(a.Last, at)
	a.Start = a.Start || e.Process != nil && !e.Process.Found && at.Sub(time.Unix(0, e.Process.StartTime)) < startup
}

// Merge adds an act that was counted elsewhere.
func (o *Observed) Merge(a *Act) {
	key := string(appendKey(nil, a.Event))
	o.Seen += a.Count
	have := o.acts[key]
	if have == nil {
		if o.acts == nil {
			o.acts = map[string]*Act{}
		}
		o.acts[key] = a
		return
	}
	have.Count += a.Count
	have.First, have.Last = earlier(have.First, a.First), later(have.Last, a.Last)
	have.Start = have.Start || a.Start
	if have.By == "" {
		have.By = a.By
	}
}

// Acts are what was seen, by operation, program and object.
func (o *Observed) Acts() []*Act {
	keys := make([]string, 0, len(o.acts))
	for k := range o.acts {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	out := make([]*Act, len(keys))
	for i, k := range keys {
		out[i] = o.acts[k]
	}
	return out
}

// Len is how many different acts were seen.
func (o *Observed) Len() int { return len(o.acts) }

// Share of what happened that was lost: 0 to 1.
func (o *Observed) Share() float64 {
	if o.Lost == 0 {
		return 0
	}
	return float64(o.Lost) / float64(o.Seen+o.Lost)
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// appendKey appends what tells an act from others: the operation, the program, and what of the object a condition can name.
func appendKey(b []byte, e *pavise.Event) []byte {
	exe := ""
	if e.Process != nil {
		exe = e.Process.Exe.Path
	}
	part := func(s string) { b = append(append(b, s...), 0) }
	part(string(rune(e.Op)))
	part(exe)
	k := shapeOf(e)
	for _, f := range k.fixed {
		part(f)
	}
	part(k.value)
	for _, p := range k.paths {
		part(p.path)
	}
	part(k.addr)
	if k.addr != "" {
		part(e.Net.RemoteName)
	}
	return b
}

// Flag marks the acts that the policies ask to deny, to kill or to tell of: they are not learned. The policies' modes do not matter.
func (o *Observed) Flag(ps []*policy.Policy) error {
	for _, a := range o.acts {
		for _, p := range ps {
			if a.By != "" {
				break
			}
			rule, err := p.Asks(a.Event)
			if err != nil {
				return fmt.Errorf("ask policy %s about an act: %w", p.Name, err)
			}
			if rule != "" {
				a.By = p.Name + "/" + rule
			}
		}
	}
	return nil
}

// ActsFor is what an observing policy asks for: all that the subject does of these operations. Of files, writing is told apart from reading, since repeats by the same
// rule are one event.
func ActsFor(subject string, ops []pavise.Op) string {
	var b strings.Builder
	b.WriteString("apiVersion: pavise.dev/v1alpha1\nkind: Policy\nmetadata: {name: learning}\nspec:\n  mode: monitor\n")
	fmt.Fprintf(&b, "  subject: %s\n  rules:\n", quote(subject))
	var rest []string
	for _, op := range ops {
		if op != pavise.OpOpen {
			rest = append(rest, op.String())
		}
	}
	if len(rest) < len(ops) {
		b.WriteString("  - {name: write, on: [file.open], when: file.access.write || file.access.truncate, action: audit}\n")
		b.WriteString("  - {name: read, on: [file.open], when: '!(file.access.write || file.access.truncate)', action: audit}\n")
	}
	if len(rest) > 0 {
		fmt.Fprintf(&b, "  - {name: act, on: [%s], action: audit}\n", strings.Join(rest, ", "))
	}
	return b.String()
}
