package convert

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"unicode"

	"github.com/pavise-project/pavise"
	"github.com/pavise-project/pavise/policy"
)

// Whether something fits into a policy is asked of the compiler itself, so that convert cannot promise what check refuses, and
// knows more with each version of the language.

// machine can do everything: what a real one cannot is said when the policy is applied there.
var machine = func() *policy.Machine {
	nobody := func(string) (uint32, error) { return 0, errors.New("users are not looked up") }
	m := &policy.Machine{LookupUser: nobody, LookupGroup: nobody}
	for op := range m.Ops {
		m.Ops[op] = policy.Support{Rung: pavise.RungLSM, Deny: true, Kill: true}
	}
	return m
}()

// probeRule is one that fits into any policy without a default.
var probeRule = &rule{name: "probe", on: []string{"process.exec"}, action: "audit"}

// compiles reports why the draft with only these rules is not a policy.
func (d *draft) compiles(mode policy.Mode, defaults []string, rules []*rule) error {
	ps, err := policy.Parse(d.name, []byte(d.yaml(mode, defaults, rules, false)))
	if err != nil {
		return err
	}
	_, _, err = policy.Compile(ps, machine)
	return err
}

// reason is the first thing that is wrong, without its place in a text that nobody has seen.
func reason(err error) string {
	var es policy.Errors
	if errors.As(err, &es) && len(es) > 0 {
		return es[0].Msg
	}
	return err.Error()
}

var (
	judgedOps sync.Map // whether this version judges an operation

	fieldOps = sync.OnceValue(func() map[string][]pavise.Op {
		m := map[string][]pavise.Op{}
		for _, f := range policy.Fields() {
			m[f.Name] = f.Ops
		}
		return m
	})
)

// hasField reports whether the language has a field.
func hasField(name string) bool {
	_, ok := fieldOps()[name]
	return ok
}

// supports reports whether this version of the language judges op, and has these fields for it.
func supports(op string, fields ...string) bool {
	judged, asked := judgedOps.Load(op)
	if !asked {
		d := &draft{name: "probe"}
		judged = d.compiles(policy.ModeMonitor, nil, []*rule{{name: "probe", on: []string{op}, action: "audit"}}) == nil
		judgedOps.Store(op, judged)
	}
	if judged != true {
		return false
	}
	for _, f := range fields {
		ops, ok := fieldOps()[f]
		if !ok || ops != nil && !slices.ContainsFunc(ops, func(o pavise.Op) bool { return o.String() == op }) {
			return false
		}
	}
	return true
}

// supported are those of ops that this version judges.
func supported(ops []string, fields ...string) (out []string) {
	for _, op := range ops {
		if supports(op, fields...) {
			out = append(out, op)
		}
	}
	return out
}

// voidFields are the fields of the language that nothing fills yet.
var voidFields = sync.OnceValue(func() (names []string) {
	for _, f := range policy.Fields() {
		if f.Void && strings.HasPrefix(f.Name, "process.") && !strings.HasPrefix(f.Name, "process.parent.") {
			names = append(names, f.Name)
		}
	}
	return names
})

// finish turns a draft into policies: what the kernel cannot decide goes into one of its own that only monitors.
func (c *converter) finish(res *Result, d *draft) {
	mode := policy.ModeMonitor
	acts := len(d.defaults) > 0 || slices.ContainsFunc(d.rules, func(r *rule) bool { return r.action == "deny" || r.action == "kill" })
	if c.opt.Enforce && acts && !d.monitor {
		mode = policy.ModeEnforce
	}
	sets := c.sort(d, mode)
	for _, s := range sets {
		res.Policies = append(res.Policies, Policy{Name: s.name, From: strings.TrimSuffix(strings.TrimPrefix(s.from(), "From "), "."), File: s.at.file, Line: s.at.n.Line, YAML: s.yaml(s.mode, s.defaults, s.rules, true)})
		s.collect(res)
	}
	if len(sets) == 0 {
		d.nameNote, d.allowNote = nil, nil
		if !d.joined && !slices.ContainsFunc(d.findings, func(f *Finding) bool { return f.Lost }) {
			d.lost(d.at, "", "it asks for nothing")
		}
		var b strings.Builder
		if fmt.Fprintf(&b, "# %s", d.from()); !d.joined {
			b.WriteString(" Nothing of it is a policy:")
		}
		b.WriteByte('\n')
		writeFindings(&b, "", d.all())
		if len(d.all()) > 0 {
			res.notes = append(res.notes, b.String())
		}
		(&set{draft: d}).collect(res)
	}
}

// set is a draft with its mode.
type set struct {
	*draft
	mode policy.Mode
}

// collect adds the findings.
func (s *set) collect(res *Result) {
	name := s.name
	if len(s.rules) == 0 && len(s.defaults) == 0 {
		name = ""
	}
	for _, f := range s.all() {
		f.Policy = name
		res.Findings = append(res.Findings, *f)
	}
	for _, r := range s.rules {
		for _, f := range r.findings {
			f.Policy, f.Rule = name, r.name
			res.Findings = append(res.Findings, *f)
		}
	}
}

// sort returns the policies that the draft becomes, each of which compiles.
func (c *converter) sort(d *draft, mode policy.Mode) (sets []*set) {
	if len(d.rules) == 0 && len(d.defaults) == 0 {
		return nil
	}
	if err := d.compiles(policy.ModeMonitor, nil, []*rule{probeRule}); err != nil {
		d.lost(d.subjectAt, "", "whom it selects cannot be said: %s", reason(err))
		return nil
	}
	if d.subject != nil {
		var void []string
		words := strings.FieldsFunc(d.subject.String(), func(r rune) bool { return r != '.' && r != '_' && !unicode.IsLetter(r) })
		for _, f := range voidFields() {
			if slices.Contains(words, f) {
				void = append(void, f)
			}
		}
		if len(void) > 0 {
			d.lost(d.subjectAt, "give --subject, as 'process.cgroup.under(\"/kubepods.slice\")'", "whom it is about: nothing in this version fills %s, and the policy is about nobody", strings.Join(void, " and "))
		}
	}
	decided := d.compiles(policy.ModeEnforce, nil, []*rule{{name: "probe", on: []string{"process.exec"}, action: "deny"}})
	if decided != nil {
		if len(d.defaults) > 0 {
			d.lost(d.subjectAt, "give --subject", "its allow-list, because the kernel must decide whom a default is about: %s", reason(decided))
			d.defaults, d.allowNote = nil, nil
			d.rules = slices.DeleteFunc(d.rules, func(r *rule) bool { return r.action == "allow" })
		}
		if mode == policy.ModeEnforce && len(d.rules) > 0 {
			d.lost(d.subjectAt, "give --subject", "its enforcement (it only monitors), because the kernel must decide whom it is about: %s", reason(decided))
			mode = policy.ModeMonitor
		}
	}
	user := &draft{name: d.name, at: d.at, kind: d.kind, source: d.source, namespace: d.namespace, labels: d.labels, annotations: d.annotations, subject: d.subject, subjectAt: d.subjectAt}
	var rules []*rule
	for _, r := range d.rules {
		err := d.compiles(mode, d.defaults, []*rule{r})
		if err == nil {
			rules = append(rules, r)
			continue
		}
		if (mode == policy.ModeEnforce || len(d.defaults) > 0) && r.action != "allow" {
			if user.compiles(policy.ModeMonitor, nil, []*rule{r}) == nil {
				if mode == policy.ModeEnforce && r.action != "audit" {
					r.lost(r.at, "", "its enforcement (it only monitors): %s", reason(err))
				} else {
					r.differs(r.at, "", "it is in a policy of its own, which only monitors: %s", reason(err))
				}
				user.rules = append(user.rules, r)
				continue
			}
		}
		d.findings = append(d.findings, r.findings...)
		d.lost(r.at, "", "%s", reason(err))
		d.lostAllow = d.lostAllow || r.action == "allow"
	}
	d.rules = rules
	if d.lostAllow && len(d.defaults) > 0 {
		if !slices.ContainsFunc(rules, func(r *rule) bool { return r.action == "allow" }) {
			d.lost(d.at, "", "its allow-list: nothing of what it allows could be converted")
			d.defaults, d.allowNote = nil, nil
		} else if mode == policy.ModeEnforce {
			d.lost(d.at, "", "its enforcement (it only monitors), because not all that it allows could be converted")
			mode = policy.ModeMonitor
		}
	}
	if len(user.rules) > 0 {
		user.name = c.unique(d.name + "-monitor")
	}
	if len(d.rules) == 0 && len(d.defaults) == 0 && len(user.rules) > 0 {
		user.name, user.findings, user.nameNote = d.name, d.findings, d.nameNote
		sets = append(sets, &set{user, policy.ModeMonitor})
	} else {
		if len(d.rules) > 0 || len(d.defaults) > 0 {
			sets = append(sets, &set{d, mode})
		}
		if len(user.rules) > 0 {
			sets = append(sets, &set{user, policy.ModeMonitor})
		}
	}
	for _, s := range sets {
		if err := s.compiles(s.mode, s.defaults, s.rules); err != nil {
			d.lost(d.at, "split it", "as a whole it is no policy: %s", reason(err))
			d.rules, d.defaults = nil, nil
			return nil
		}
	}
	return sets
}
