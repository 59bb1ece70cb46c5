// Package convert turns the policies of other engines, KubeArmor's, Tetragon's and Kubernetes's own, into Pavise's. What has no
// equivalent becomes a finding, with its place and the reason. It is pure: bytes in, policies and findings out.
package convert

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/pavise-project/pavise/policy"
)

// File is one input: its name, for messages, and its YAML documents.
type File struct {
	Name string
	Data []byte
}

// Options say what the policies shall be like.
type Options struct {
	// Enforce makes policies that act, where the source acts. Otherwise they only monitor.
	Enforce bool
	// Subject, a condition, takes the place of what selects Kubernetes pods and containers.
	Subject string
	// Containers makes what selects pods in a NetworkPolicy select containers, by their own labels: there may be no Kubernetes.
	Containers bool
}

// Result is what became of the files.
type Result struct {
	Policies []Policy
	Findings []Finding // in the order of the files
	notes    []string  // comments about what became no policy
}

// Policy is one policy that was made.
type Policy struct {
	Name string `json:"name"`
	From string `json:"from"` // kind and name of what it was made of
	File string `json:"file"`
	Line int    `json:"line"`
	YAML string `json:"yaml"` // one document, with comments
}

// Finding is something that a reader of a converted policy must know.
type Finding struct {
	File   string `json:"file"`
	Line   int    `json:"line,omitempty"`
	Column int    `json:"column,omitempty"`
	Field  string `json:"field,omitempty"`
	// Lost says that the part has no equivalent and is not in the policy; else it is, and differs.
	Lost    bool   `json:"lost"`
	Message string `json:"message"`
	Hint    string `json:"hint,omitempty"`
	Policy  string `json:"policy,omitempty"` // that was made
	Rule    string `json:"rule,omitempty"`   // that was made
}

// String is the finding in one line.
func (f *Finding) String() string {
	return (&policy.Error{File: f.File, Line: f.Line, Column: f.Column, Field: f.Field, Msg: f.kind() + ": " + f.Message, Hint: f.Hint}).Error()
}

func (f *Finding) kind() string {
	if f.Lost {
		return "not converted"
	}
	return "differs"
}

// Lost reports how many findings are of something that is not in the policies.
func (r *Result) Lost() int {
	n := 0
	for i := range r.Findings {
		if r.Findings[i].Lost {
			n++
		}
	}
	return n
}

// YAML is all policies as one file.
func (r *Result) YAML() string {
	var docs []string
	if len(r.notes) > 0 {
		docs = append(docs, strings.Join(r.notes, ""))
	}
	for i := range r.Policies {
		docs = append(docs, r.Policies[i].YAML)
	}
	return strings.Join(docs, "---\n")
}

// Convert converts all policies of files. The error is a policy.Errors: what is wrong with the files themselves; nothing is
// converted then.
func Convert(files []File, opt Options) (*Result, error) {
	c := &converter{opt: opt, names: map[string]bool{}}
	if opt.Subject != "" {
		d := &draft{name: "subject", subject: opt.subject()}
		if err := d.compiles(policy.ModeMonitor, nil, []*rule{probeRule}); err != nil {
			return nil, policy.Errors{{Field: "subject", Msg: reason(err)}}
		}
	}
	for _, f := range files {
		r := &reader{file: f.Name}
		c.r = r
		roots := r.documents(f.Data)
		if len(roots) == 0 && len(r.errs) == 0 {
			r.fail(value{}, "", "file has no policy")
		}
		for _, root := range roots {
			if resolve(root.n).Kind != yaml.MappingNode {
				r.fail(root, "", "want a mapping, not %s", nodeKind(resolve(root.n)))
				continue
			}
			c.document(r.object(root))
		}
		c.errs = append(c.errs, r.errs...)
	}
	if len(c.errs) > 0 {
		slices.SortStableFunc(c.errs, func(a, b *policy.Error) int {
			if a.File != b.File {
				return 0
			}
			return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
		})
		return nil, c.errs
	}
	c.joinNetworkPolicies()
	c.joinAllowLists()
	res := &Result{}
	for _, d := range c.drafts {
		c.finish(res, d)
	}
	order := map[string]int{}
	for i, f := range files {
		order[f.Name] = i
	}
	slices.SortStableFunc(res.Findings, func(a, b Finding) int {
		return cmp.Or(cmp.Compare(order[a.File], order[b.File]), cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
	return res, nil
}

func (o *Options) subject() *cond {
	return &cond{pre: strings.NewReplacer("\n", " ", "\r", " ", "\t", " ").Replace(o.Subject), loose: true}
}

// joinAllowLists gives allow-lists about the same processes to the first of their policies: in KubeArmor what they allow adds up, here
// each would deny what it does not allow itself.
func (c *converter) joinAllowLists() {
	for i, d := range c.drafts {
		for _, o := range c.drafts[i+1:] {
			if d.net != nil || o.net != nil || d.subject.String() != o.subject.String() || !slices.ContainsFunc(o.defaults, func(op string) bool { return slices.Contains(d.defaults, op) }) {
				continue
			}
			o.rules = slices.DeleteFunc(o.rules, func(r *rule) bool {
				if r.action == "allow" {
					d.add(r)
				}
				return r.action == "allow"
			})
			d.allowList(d.at, o.defaults)
			d.lostAllow = d.lostAllow || o.lostAllow
			o.defaults, o.allowNote, o.lostAllow, o.joined = nil, nil, false, true
			if o.partNote != nil {
				o.partNote.Message = strings.Replace(o.partNote.Message, o.name, d.name, 1)
			} else {
				o.differs(o.at, "", "what it allows is in the policy %s, which is about the same processes", d.name)
			}
		}
	}
}

type converter struct {
	opt    Options
	r      *reader
	errs   policy.Errors
	drafts []*draft
	names  map[string]bool // of policies
}

// sources are the kinds that convert knows: the groups of their API, and who reads them.
var sources = map[string]struct {
	groups  []string
	convert func(*converter, *draft, *object)
}{
	"KubeArmorPolicy":         {armorGroups, (*converter).armorPolicy},
	"KubeArmorHostPolicy":     {armorGroups, (*converter).armorPolicy},
	"KubeArmorClusterPolicy":  {armorGroups, (*converter).armorPolicy},
	"TracingPolicy":           {[]string{"cilium.io"}, (*converter).tracingPolicy},
	"TracingPolicyNamespaced": {[]string{"cilium.io"}, (*converter).tracingPolicy},
	"NetworkPolicy":           {[]string{"networking.k8s.io"}, (*converter).networkPolicy},
}

var armorGroups = []string{"security.kubearmor.com", "security.accuknox.com"}

const knownKinds = "it is one of KubeArmorPolicy, KubeArmorHostPolicy, KubeArmorClusterPolicy, TracingPolicy, TracingPolicyNamespaced and NetworkPolicy"

// document converts one document, or each item of a list.
func (c *converter) document(o *object) {
	kind := o.take("kind")
	if !kind.ok() {
		c.r.fail(o.value, knownKinds, "kind is missing")
		return
	}
	name := c.r.scalar(kind)
	apiVersion := o.text("apiVersion")
	if items := o.take("items"); items.ok() && strings.HasSuffix(name, "List") {
		for _, it := range c.r.list(items) {
			c.document(c.r.object(it))
		}
		return
	}
	d := &draft{at: o.value, kind: name}
	src, ok := sources[name]
	group, _, _ := strings.Cut(apiVersion, "/")
	switch {
	case !ok:
		d.lost(kind, knownKinds, "a %s is nothing that can be converted", oneLine(name))
		c.drafts = append(c.drafts, d)
		return
	case !slices.Contains(src.groups, group):
		at := o.take("apiVersion")
		if !at.ok() {
			at = o.value
			at.field = "apiVersion"
		}
		c.r.fail(at, "write "+src.groups[0]+"/...", "%q is not that of a %s", apiVersion, name)
		return
	}
	meta, _ := o.child("metadata")
	d.source = meta.text("name")
	if d.source == "" {
		at := meta.value
		if !at.ok() {
			at.n = o.n
		}
		at.field = "metadata.name"
		c.r.fail(at, "", "is missing")
		return
	}
	d.namespace = meta.text("namespace")
	d.labels, d.annotations = meta.textMap("labels"), meta.textMap("annotations")
	d.annotations = slices.DeleteFunc(d.annotations, func(kv [2]string) bool { return strings.HasPrefix(kv[0], "kubectl.kubernetes.io/") })
	d.name = c.unique(policyName(d.source))
	if d.name != d.source {
		d.nameNote = newFinding(false, meta.take("name"), "", "the policy's name is %s", d.name)
	}
	o.take("status")
	spec, ok := o.child("spec")
	if !ok {
		at := o.value
		at.field = "spec"
		c.r.fail(at, "", "is missing")
		return
	}
	src.convert(c, d, spec)
	for _, v := range append(o.rest(), spec.rest()...) {
		d.lost(v, "", "this field is not known to convert")
	}
	c.drafts = append(c.drafts, d)
}

// policyName makes a name of the language of another.
func policyName(s string) string {
	var b strings.Builder
	for _, r := range strings.ToLower(s) {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			b.WriteRune(r)
		} else if b.Len() > 0 && !strings.HasSuffix(b.String(), "-") {
			b.WriteByte('-')
		}
		if b.Len() == 44 { // of 63: there is room for what tells two apart
			break
		}
	}
	if name := strings.Trim(b.String(), "-"); name != "" {
		return name
	}
	return "converted"
}

// unique returns name, or name with a number when it is taken.
func (c *converter) unique(name string) string {
	return uniqueIn(c.names, name)
}

func uniqueIn(taken map[string]bool, name string) string {
	for n, s := 2, name; ; n++ {
		if !taken[s] {
			taken[s] = true
			return s
		}
		s = fmt.Sprintf("%s-%d", name, n)
	}
}

// draft is a policy in the making.
type draft struct {
	at        value // of the document
	kind      string
	source    string // its name there
	namespace string

	name                string
	labels, annotations [][2]string
	subject             *cond
	subjectAt           value // what it was made of
	defaults            []string
	monitor             bool // the source does not act either
	lostAllow           bool // some of what the source allows is missing
	joined              bool // what it allows is in another policy
	net                 *netList
	// Notes that depend on what becomes of it.
	nameNote, allowNote *Finding
	partNote            *Finding // of the draft that this one is a part of
	rules               []*rule
	findings            []*Finding // about no rule
}

// rule is a rule in the making.
type rule struct {
	name     string
	on       []string
	when     *cond
	action   string
	severity string
	message  string
	tags     []string
	at       value
	findings []*Finding
}

func newFinding(lost bool, at value, hint, format string, args ...any) *Finding {
	f := &Finding{File: at.file, Field: oneLine(at.field), Lost: lost, Message: oneLine(fmt.Sprintf(format, args...)), Hint: oneLine(hint)}
	if r := []rune(f.Message); len(r) > 400 {
		f.Message = string(r[:397]) + "..."
	}
	if at.n != nil {
		f.Line, f.Column = at.n.Line, at.n.Column
	}
	return f
}

func (d *draft) lost(at value, hint, format string, args ...any) {
	d.findings = append(d.findings, newFinding(true, at, hint, format, args...))
}

func (d *draft) differs(at value, hint, format string, args ...any) {
	d.findings = append(d.findings, newFinding(false, at, hint, format, args...))
}

func (r *rule) lost(at value, hint, format string, args ...any) {
	r.findings = append(r.findings, newFinding(true, at, hint, format, args...))
}

func (r *rule) differs(at value, hint, format string, args ...any) {
	r.findings = append(r.findings, newFinding(false, at, hint, format, args...))
}

// add adds a rule, or joins it with one that says the same.
func (d *draft) add(r *rule) {
	for _, o := range d.rules {
		if o.action == r.action && o.severity == r.severity && o.message == r.message && slices.Equal(o.tags, r.tags) && slices.Equal(o.on, r.on) && o.when.String() == r.when.String() {
			for _, f := range r.findings {
				if !slices.ContainsFunc(o.findings, func(g *Finding) bool { return *f == *g }) {
					o.findings = append(o.findings, f)
				}
			}
			return
		}
	}
	taken := map[string]bool{}
	for _, o := range d.rules {
		taken[o.name] = true
	}
	r.name = uniqueIn(taken, policyName(r.name))
	d.rules = append(d.rules, r)
}
