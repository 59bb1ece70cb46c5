package convert

import (
	"fmt"
	"slices"
	"strings"
)

// KubeArmor's policies are lists of files, programs and protocols with an action. This follows its BPF LSM enforcer where the
// enforcers differ (KubeArmor/enforcer/bpflsm, KubeArmor/BPF), and AppArmor's for patterns, which only that one has.

// armorOps are the operations that each section is about.
var armorOps = map[string][]string{
	"process": {"process.exec"},
	"file":    {"file.open"},
	// What changes a file without opening it, or its name. A rename and a symbolic link are judged as what appears and disappears.
	"change":  {"file.create", "file.delete", "file.link", "file.truncate", "file.chmod"},
	"network": {"net.socket", "net.connect", "net.bind", "net.listen", "net.accept", "net.send"},
}

// armorProtocols are the words of matchProtocols.
var armorProtocols = map[string]*cond{
	"tcp":       oneOf("net.protocol", `"tcp"`),
	"udp":       oneOf("net.protocol", `"udp"`),
	"icmp":      oneOf("net.protocol", `"icmp"`),
	"icmpv6":    oneOf("net.protocol", `"icmpv6"`),
	"sctp":      oneOf("net.protocol", `"sctp"`),
	"raw":       oneOf("net.type", `"raw"`),
	"stream":    oneOf("net.type", `"stream"`),
	"dgram":     oneOf("net.type", `"dgram"`),
	"seqpacket": oneOf("net.type", `"seqpacket"`),
	"rdm":       oneOf("net.type", `"4"`),
	"dccp":      oneOf("net.type", `"6"`),
	"packet":    oneOf("net.family", `"packet"`),
	"all":       nil,
}

// inetFamilies are those that KubeArmor's protocols are about.
var inetFamilies = oneOf("net.family", `"ipv4"`, `"ipv6"`, `"packet"`)

// armorCapabilities is what to use for a capability, whose use itself is no operation.
var armorCapabilities = map[string]string{
	"chown": "file.chown", "fowner": "file.chmod", "kill": "process.signal", "setgid": "process.setid", "setuid": "process.setid",
	"setpcap": "process.capset", "net_bind_service": "net.bind with net.local.port < 1024", "net_raw": "net.send and net.bind with net.type == \"raw\"",
	"sys_module": "kernel.module", "sys_chroot": "fs.chroot", "sys_ptrace": "process.ptrace", "sys_admin": "fs.mount", "mknod": "file.create",
	"setfcap": "file.setxattr", "net_admin": "net.socket", "bpf": "kernel.bpf", "perfmon": "kernel.perf", "syslog": "file.open on /dev/kmsg",
}

// armorPresets are the presets that are a rule.
var armorPresets = map[string]struct {
	name, op string
	when     *cond
}{
	"filelessExec": {"fileless-exec", "process.exec", anyOf(is("file.memfd"), call("file.path", "under", `"/dev/shm"`, `"/run/shm"`))},
	"anonMapExec":  {"anonymous-exec", "memory.exec", is("memory.anonymous")},
}

// armorAttrs are what spec, section and entry may each say; the inner one counts.
type armorAttrs struct {
	action, severity, message string
	tags                      []string
	elsewhere                 bool // it is in another policy, and only an exception here
}

func (a armorAttrs) of(o *object) armorAttrs {
	if v := o.take("action"); v.ok() {
		a.action = strings.ToLower(o.r.scalar(v))
		if !slices.Contains([]string{"allow", "audit", "block"}, a.action) {
			o.r.fail(v, "it is one of Allow, Audit, Block", "unknown action %q", o.r.scalar(v))
		}
	}
	if n, ok := o.number("severity"); ok {
		switch {
		case n < 1 || n > 10:
			o.r.fail(o.take("severity"), "it is a number from 1 to 10", "bad severity %d", n)
		case n <= 3:
			a.severity = "low"
		case n <= 6:
			a.severity = "medium"
		case n <= 8:
			a.severity = "high"
		default:
			a.severity = "critical"
		}
	}
	if s := o.text("message"); s != "" {
		a.message = s
	}
	if tags := o.texts("tags"); len(tags) > 0 {
		a.tags = tags
	}
	return a
}

// armorMatch is how an entry names its object.
type armorMatch uint8

const (
	matchPath armorMatch = iota
	matchName
	matchDir
	matchPattern
)

// armorEntry is one item of matchPaths, matchDirectories or matchPatterns.
type armorEntry struct {
	armorAttrs
	at       value
	section  string
	match    armorMatch
	text     string // as written; of a directory, with a slash at the end
	deep     bool   // of a directory: what is below its directories too
	readOnly bool
	owner    bool
	sources  *cond // who acts; nil: everyone
	fromPath []string
	partial  []*Finding // conditions that could not be converted
}

func (c *converter) armorPolicy(d *draft, spec *object) {
	if v := spec.take("status"); v.ok() && strings.EqualFold(c.r.scalar(v), "inactive") {
		d.lost(v, "", "the policy is not active")
		for i := range spec.items {
			spec.items[i].taken = true
		}
		return
	}
	attrs := armorAttrs{action: "block"}.of(spec)
	c.armorSubject(d, spec)
	var entries []*armorEntry
	for _, section := range []string{"process", "file"} {
		entries = append(entries, c.armorSection(d, spec, section, attrs)...)
	}
	nets := c.armorNetwork(d, spec, attrs)
	if d.kind == "KubeArmorHostPolicy" {
		c.armorHostAllows(d, entries, nets)
	}
	c.armorFiles(d, entries)
	c.armorProtocols(d, nets)
	c.armorRest(d, spec, attrs)
}

// armorSubject is whom the policy is about.
func (c *converter) armorSubject(d *draft, spec *object) {
	if d.kind == "KubeArmorHostPolicy" {
		d.subject, d.subjectAt = onHost, d.at
		sel, ok := spec.child("nodeSelector")
		if ok {
			labels := sel.textMap("matchLabels")
			if len(labels) > 0 {
				d.differs(sel.value, "", "a policy is about the machine on which it is loaded: load it on the nodes with these labels")
			}
			for _, v := range sel.rest() {
				d.lost(v, "", "this field is not known to convert")
			}
		}
		return
	}
	sel, ok := spec.child("selector")
	d.subjectAt = sel.value
	if !ok {
		d.subjectAt = d.at
	}
	var cs []*cond
	some := false // what selects pods, and not only leaves some out
	if d.kind == "KubeArmorPolicy" && d.namespace != "" {
		some = true
		cs = append(cs, oneOf("process.pod.namespace", quoted(d.namespace)...))
	} else if d.kind == "KubeArmorPolicy" && c.opt.Subject == "" {
		d.differs(d.at, "", "it names no namespace, and is about the pods of all")
	}
	for _, kv := range sel.textMap("matchLabels") {
		some = true
		if kv[0] == "kubearmor.io/container.name" {
			names := strings.FieldsFunc(kv[1], func(r rune) bool { return strings.ContainsRune("[], ", r) })
			cs = append(cs, oneOf("process.container.name", quoted(names...)...))
			continue
		}
		cs = append(cs, podLabel(kv[0], false, kv[1]))
	}
	for _, e := range sel.objects("matchExpressions") {
		op, values := e.text("operator"), e.list("values")
		var is *cond
		negated := op == "NotIn"
		switch key := e.text("key"); key {
		case "namespace":
			var ns []string
			for _, v := range values {
				ns = append(ns, c.r.scalar(v))
			}
			is = oneOf("process.pod.namespace", quoted(ns...)...)
		case "label":
			is = never
			for _, v := range values {
				k, l, ok := strings.Cut(c.r.scalar(v), "=")
				if !ok {
					c.r.fail(v, "write it as app=nginx", "want a label and its value, not %q", c.r.scalar(v))
				}
				is = anyOf(is, podLabel(k, negated, l))
			}
		default:
			c.r.fail(e.take("key"), "it is one of namespace, label", "unknown key %q", key)
		}
		switch op {
		case "In":
			cs, some = append(cs, is), true
		case "NotIn":
			cs = append(cs, not(is))
		default:
			c.r.fail(e.take("operator"), "it is one of In, NotIn", "unknown operator %q", op)
		}
		for _, v := range e.rest() {
			d.lost(v, "", "this field is not known to convert")
		}
	}
	for _, v := range sel.rest() {
		d.lost(v, "", "this field is not known to convert")
	}
	d.pods(c.opt, some, allOf(cs...))
}

// podLabel is about one label of the process's pod. A pod that has none of that name is none of these.
func podLabel(key string, negated bool, values ...string) *cond {
	is := oneOf("process.pod.labels["+quoted(key)[0]+"]", quoted(values...)...)
	if negated {
		is = allOf(hasLabel(key), is)
	}
	return is
}

func hasLabel(key string) *cond { return test(quoted(key)[0] + " in process.pod.labels") }

// pods makes what selects pods, nil for all, the subject, unless the user has another. Some says that it does select, and not only
// leaves some out.
func (d *draft) pods(opt Options, some bool, sel *cond) {
	switch {
	case opt.Subject != "":
		d.subject = opt.subject()
		d.differs(d.subjectAt, "", "--subject stands for the pods that it selects")
	case sel == nil: // all pods
		d.subject = &cond{pre: `process.container.id != ""`, neg: `process.container.id == ""`}
	case !some:
		d.subject = allOf(&cond{pre: `process.pod.name != ""`}, sel)
	default:
		d.subject = sel
	}
}

// armorSection reads the process or file section.
func (c *converter) armorSection(d *draft, spec *object, section string, attrs armorAttrs) (out []*armorEntry) {
	o, ok := spec.child(section)
	if !ok {
		return nil
	}
	attrs = attrs.of(o)
	entry := func(e *object) *armorEntry {
		en := &armorEntry{armorAttrs: attrs.of(e), at: e.value, section: section, owner: e.flag("ownerOnly")}
		if section == "file" {
			en.readOnly = e.flag("readOnly")
		}
		en.sources, en.fromPath = c.armorSources(e)
		if args := e.take("allowedArgs"); args.ok() {
			en.partial = append(en.partial, newFinding(true, args, "", "the arguments of a program that is being started cannot be judged"))
		}
		return en
	}
	done := func(e *object, en *armorEntry) {
		for _, v := range e.rest() {
			en.partial = append(en.partial, newFinding(true, v, "", "this field is not known to convert"))
		}
		out = append(out, en)
	}
	for _, e := range o.objects("matchPaths") {
		en := entry(e)
		en.text = e.text("path")
		if name := e.text("execname"); section == "process" && name != "" {
			en.match, en.text = matchName, name
		} else if en.text == "" {
			c.r.fail(value{n: e.n, field: e.key("path"), file: e.file}, "", "is missing")
		}
		done(e, en)
	}
	for _, e := range o.objects("matchDirectories") {
		en := entry(e)
		en.match, en.deep = matchDir, e.flag("recursive")
		if en.text = e.text("dir"); en.text == "" {
			c.r.fail(value{n: e.n, field: e.key("dir"), file: e.file}, "", "is missing")
		} else if !strings.HasSuffix(en.text, "/") {
			en.text += "/"
		}
		done(e, en)
	}
	for _, e := range o.objects("matchPatterns") {
		en := entry(e)
		en.match = matchPattern
		glob := e.take("pattern")
		if !glob.ok() {
			c.r.fail(value{n: e.n, field: e.key("pattern"), file: e.file}, "", "is missing")
			continue
		}
		text, err := apparmorGlob(c.r.scalar(glob))
		if err != nil {
			d.lost(glob, "", "%s", err)
			d.lostAllow = d.lostAllow || en.action == "allow"
			continue
		}
		en.text = text
		done(e, en)
	}
	for _, v := range o.rest() {
		d.lost(v, "", "this field is not known to convert")
	}
	return out
}

// armorSources reads fromSource: the programs that act, as a condition and as they stand there.
func (c *converter) armorSources(o *object) (*cond, []string) {
	var paths, dirs, globs, all []string
	for _, s := range o.objects("fromSource") {
		if p := s.text("path"); p != "" {
			paths, all = append(paths, p), append(all, p)
		} else if dir := s.text("dir"); dir != "" {
			if s.flag("recursive") {
				dirs = append(dirs, dir)
			} else {
				globs = append(globs, escapeGlob(strings.TrimSuffix(dir, "/"))+"/*")
			}
			all = append(all, dir)
		} else {
			c.r.fail(value{n: s.n, field: s.key("path"), file: s.file}, "", "is missing")
		}
		for _, v := range s.rest() {
			c.r.fail(v, "", "unknown field")
		}
	}
	if len(all) == 0 {
		return nil, nil
	}
	return anyOf(oneOf("process.exe.path", quoted(paths...)...), call("process.exe.path", "under", quoted(dirs...)...),
		call("process.exe.path", "glob", quoted(globs...)...)), all
}

// armorNet is one item of matchProtocols.
type armorNet struct {
	armorAttrs
	at      value
	is      *cond
	sources *cond
	from    []string
}

func (c *converter) armorNetwork(d *draft, spec *object, attrs armorAttrs) (out []*armorNet) {
	o, ok := spec.child("network")
	if !ok {
		return nil
	}
	attrs = attrs.of(o)
	for _, e := range o.objects("matchProtocols") {
		n := &armorNet{armorAttrs: attrs.of(e), at: e.value}
		n.sources, n.from = c.armorSources(e)
		word := e.take("protocol")
		if !word.ok() {
			word = value{n: e.n, field: e.key("protocol"), file: e.file}
			c.r.fail(word, "", "is missing")
			continue
		}
		is, ok := armorProtocols[strings.ToLower(c.r.scalar(word))]
		if !ok {
			c.r.fail(word, "it is one of tcp, udp, icmp, icmpv6, sctp, raw, stream, dgram, seqpacket, rdm, dccp, packet, all", "unknown protocol %q", c.r.scalar(word))
			continue
		}
		n.is = is
		for _, v := range e.rest() {
			d.lost(v, "", "this field is not known to convert")
		}
		out = append(out, n)
	}
	for _, v := range o.rest() {
		d.lost(v, "", "this field is not known to convert")
	}
	return out
}

// armorHostAllows makes policies of a host policy's allow entries, one for each section: about the programs in fromSource alone. The
// entries stay in the others as what they are exceptions of.
func (c *converter) armorHostAllows(d *draft, entries []*armorEntry, nets []*armorNet) {
	for _, section := range []string{"process", "file", "network"} {
		var sources []*cond
		var es []*armorEntry
		var ns []*armorNet
		allow := func(a *armorAttrs, at value, src *cond) bool {
			if a.action != "allow" || a.elsewhere {
				return false
			}
			a.elsewhere = true
			if src == nil {
				a.action = ""
				d.lost(at, "", "KubeArmor ignores an Allow without fromSource on a host")
				return false
			}
			sources = append(sources, src)
			return true
		}
		for _, e := range entries {
			if e.section == section && allow(&e.armorAttrs, e.at, e.sources) {
				own := *e
				own.elsewhere = false
				es = append(es, &own)
			}
		}
		for _, n := range nets {
			if section == "network" && allow(&n.armorAttrs, n.at, n.sources) {
				own := *n
				own.elsewhere = false
				ns = append(ns, &own)
			}
		}
		if len(sources) == 0 {
			continue
		}
		list := *d
		list.name, list.findings, list.rules = c.unique(d.name+"-"+section), nil, nil
		list.subject = allOf(d.subject, anyOf(distinct(sources)...))
		c.armorFiles(&list, es)
		c.armorProtocols(&list, ns)
		d.differs(d.at, "", "what its section %s allows is in the policy %s: on a host, an allow-list is about the programs in fromSource", section, list.name)
		d.joined, list.partNote = true, d.findings[len(d.findings)-1]
		c.drafts = append(c.drafts, &list)
	}
}

func distinct(cs []*cond) (out []*cond) {
	seen := map[string]bool{}
	for _, c := range cs {
		if s := c.String(); !seen[s] {
			seen[s] = true
			out = append(out, c)
		}
	}
	return out
}

// allowList denies to the policy's subjects what no rule allows.
func (d *draft) allowList(at value, ops []string) {
	for _, op := range ops {
		if !slices.Contains(d.defaults, op) {
			d.defaults = append(d.defaults, op)
		}
	}
	if d.allowNote == nil {
		d.allowNote = newFinding(false, at, "", "Allow makes an allow-list: default denies what no rule allows, also where KubeArmor's default posture would only audit")
	}
}

// overlap reports whether there may be a socket of both.
func (n *armorNet) overlap(o *armorNet) bool {
	if n.is == nil || o.is == nil || n.is.pre == o.is.pre {
		return true
	}
	field, _, _ := strings.Cut(n.is.pre, " ")
	other, _, _ := strings.Cut(o.is.pre, " ")
	return field != other
}

// armorProtocols makes the rules of the network section: entries that say the same become one rule.
func (c *converter) armorProtocols(d *draft, nets []*armorNet) {
	ops := supported(armorOps["network"])
	allows := -1
	var rules []*rule
	byKey := map[string]*rule{}
	sources := map[*rule][]*cond{}
	for i, n := range nets {
		if n.elsewhere {
			continue
		}
		var except []*cond
		action := "deny"
		switch n.action {
		case "allow":
			if action = "allow"; allows < 0 {
				allows = i
			}
		case "audit":
			action = "audit"
		default:
			for _, a := range nets {
				if a.action == "allow" && a.sources != nil && n.sources == nil && n.overlap(a) {
					except = append(except, allOf(a.is, a.sources))
				}
			}
		}
		key := fmt.Sprintf("%q", []any{n.armorAttrs, n.from, len(except) > 0})
		r := byKey[key]
		if r == nil || len(except) > 0 {
			r = &rule{name: "network-" + n.action, on: ops, when: never, action: action, severity: n.severity, message: n.message, tags: n.tags, at: n.at}
			byKey[key] = r
			rules = append(rules, r)
		}
		if r.when = anyOf(r.when, n.is); len(except) > 0 {
			r.when = unless(r.when, except...)
			r.differs(n.at, "", "KubeArmor lets the more particular entry decide; here it is an exception")
		}
		sources[r] = []*cond{n.sources}
	}
	for _, r := range rules {
		r.when = allOf(r.when, sources[r][0])
		d.add(r)
	}
	if allows < 0 {
		return
	}
	r := &rule{name: "network-local", on: ops, when: not(inetFamilies), action: "allow", at: nets[allows].at}
	r.differs(r.at, "", "sockets that are not of the Internet (Unix, netlink) stay allowed: KubeArmor's protocols are not about them")
	d.add(r)
	d.allowList(r.at, ops)
}

// armorRest reads the sections that are not about files, programs and sockets.
func (c *converter) armorRest(d *draft, spec *object, attrs armorAttrs) {
	if o, ok := spec.child("capabilities"); ok {
		a := attrs.of(o)
		for _, e := range o.objects("matchCapabilities") {
			a.of(e)
			c.armorSources(e)
			capability := strings.TrimPrefix(strings.ToLower(e.text("capability")), "cap_")
			hint := ""
			if op := armorCapabilities[capability]; op != "" {
				hint = "what it is used for can be judged: " + op
			}
			d.lost(e.value, hint, "the use of a capability (%s) is no operation", capability)
			for _, v := range e.rest() {
				d.lost(v, "", "this field is not known to convert")
			}
		}
		for _, v := range o.rest() {
			d.lost(v, "", "this field is not known to convert")
		}
	}
	c.armorSyscalls(d, spec, attrs)
	for _, e := range spec.objects("presets") {
		a := attrs.of(e)
		name := e.take("name")
		p, ok := armorPresets[c.r.scalarOf(name)]
		if !ok || !supports(p.op) {
			d.lost(e.value, "", "the preset has no equivalent")
			continue
		}
		r := &rule{name: p.name, on: []string{p.op}, when: p.when, action: "deny", severity: a.severity, message: a.message, tags: a.tags, at: e.value}
		if a.action == "audit" {
			r.action = "audit"
		}
		d.add(r)
	}
	for _, key := range []string{"apparmor", "selinux"} {
		if v := spec.take(key); v.ok() {
			d.lost(v, "", "rules of another security module have no equivalent")
		}
	}
}

// armorSyscalls makes audit rules of the system calls that are an operation: KubeArmor only tells of them.
func (c *converter) armorSyscalls(d *draft, spec *object, attrs armorAttrs) {
	o, ok := spec.child("syscalls")
	if !ok {
		return
	}
	attrs = attrs.of(o)
	for _, key := range []string{"matchSyscalls", "matchPaths"} {
		for _, e := range o.objects(key) {
			src, _ := c.armorSources(e)
			var obj *cond
			if key == "matchPaths" {
				path := e.text("path")
				obj = oneOf("file.path", quoted(path)...)
				if strings.HasSuffix(path, "/") {
					en := &armorEntry{section: "file", match: matchDir, text: path, deep: e.flag("recursive")}
					obj = objects([]*armorEntry{en})
				} else if e.flag("recursive") {
					obj = call("file.path", "under", quoted(path)...)
				}
			}
			for _, v := range e.list("syscall") {
				name := c.r.scalar(v)
				h, ok := hooks["sys_"+name]
				var need []string
				if obj != nil {
					need = []string{"file.path"}
				}
				ops := []string(nil)
				if ok {
					ops = supported(h.ops, need...)
				}
				switch {
				case !ok || obj != nil && len(supported(h.ops)) > 0 && len(ops) == 0:
					d.lost(v, "", "the system call %s is no operation", name)
				case len(ops) == 0:
					d.lost(v, "", "the system call %s is %s, which this version does not judge", name, strings.Join(h.ops, ", "))
				default:
					r := &rule{name: "syscall-" + name, on: ops, when: allOf(h.when, obj, src), action: "audit", severity: attrs.severity, message: attrs.message, tags: attrs.tags, at: v}
					r.differs(v, "", "%s is judged, not the system call: a call that fails before is not told", strings.Join(ops, ", "))
					d.add(r)
				}
			}
			for _, v := range e.rest() {
				d.lost(v, "", "this field is not known to convert")
			}
		}
	}
	for _, v := range o.rest() {
		d.lost(v, "", "this field is not known to convert")
	}
}

// escapeGlob makes a glob that matches s alone.
func escapeGlob(s string) string {
	var b strings.Builder
	for _, r := range s {
		if strings.ContainsRune(`*?[]{},\`, r) {
			b.WriteByte('\\')
		}
		b.WriteRune(r)
	}
	return b.String()
}

// apparmorGlob rewrites a pattern of AppArmor's. There "/**/" is at least one directory, here any number of them.
func apparmorGlob(s string) (string, error) {
	if strings.Contains(s, "@{") {
		return "", fmt.Errorf("AppArmor's variables (%s) have no equivalent", oneLine(s))
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '\\' && i+1 < len(s):
			b.WriteString(s[i : i+2])
			i++
		case strings.HasPrefix(s[i:], "/**/"):
			b.WriteString("/*/**")
			i += 2
		default:
			b.WriteByte(s[i])
		}
	}
	return b.String(), nil
}
