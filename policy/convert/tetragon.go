package convert

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Tetragon's policies are functions of the kernel with selectors: filters on who acts and on the function's arguments, and
// what to do. The first selector that matches acts (pkg/selectors, and "Selectors" in its documentation).

// selector is one selector of a hook.
type selector struct {
	at      value
	when    *cond
	partial []*Finding // filters that could not be converted
	action  string     // audit, deny, kill; "" for nothing at all
	notes   []*Finding // about its actions
	keeps   bool       // it keeps Tetragon's own books
	ops     []string   // what it is about, if not what its hook is
}

var strictness = map[string]int{"": 0, "audit": 1, "deny": 2, "kill": 3}

// judged are the operations that the selector is about.
func (s *selector) judged(h *hook) []string {
	if s.ops != nil {
		return s.ops
	}
	return supported(h.ops)
}

func (s *selector) lost(at value, hint, format string, args ...any) {
	s.partial = append(s.partial, newFinding(true, at, hint, format, args...))
}

func (c *converter) tracingPolicy(d *draft, spec *object) {
	c.tracingSubject(d, spec)
	lists := map[string][]string{}
	for _, l := range spec.objects("lists") {
		name, kind := l.text("name"), l.text("type")
		l.take("validated")
		if strings.HasPrefix(kind, "generated") {
			d.lost(l.value, "name the functions", "the list %s is made by Tetragon from what the kernel has", oneLine(name))
			lists[name] = []string{}
			l.take("values")
			l.take("pattern")
		} else {
			lists[name] = l.texts("values")
		}
		c.unknown(d, l)
	}
	macros := map[string]*object{}
	if m, ok := spec.child("selectorsMacros"); ok {
		for i := range m.items {
			m.items[i].taken = true
			macros[m.items[i].key] = c.r.object(m.items[i].value)
		}
	}
	for _, o := range spec.objects("options") {
		name, val := o.text("name"), o.text("value")
		if name == "policy-mode" && (val == "monitor" || val == "monitoring") {
			d.monitor = true
		} else if name != "policy-mode" {
			d.differs(o.value, "", "the option %s is about how Tetragon works", oneLine(name))
		}
	}
	for _, key := range []string{"kprobes", "fentries", "lsmhooks"} {
		for _, o := range spec.objects(key) {
			h := &probe{object: o, lists: lists, macros: macros, lsm: key == "lsmhooks"}
			c.probe(d, h)
		}
	}
	for _, key := range []string{"tracepoints", "uprobes", "usdts"} {
		for _, o := range spec.objects(key) {
			var name []string
			for _, part := range []string{"subsystem", "event", "path", "provider", "name"} {
				if s := o.text(part); s != "" {
					name = append(name, s)
				}
			}
			hint := ""
			if slices.Contains(name, "sched_process_exec") || slices.Contains(name, "sys_enter_execve") {
				hint = "security_bprm_check is the hook for programs that are started"
			}
			d.lost(o.value, hint, "%s (%s) is no operation", strings.TrimSuffix(key, "s"), strings.Join(name, "/"))
		}
	}
	for _, key := range []string{"enforcers", "killers"} {
		if v := spec.take(key); v.ok() {
			d.differs(v, "", "how Tetragon enforces needs nothing here")
		}
	}
	if spec.flag("loader") {
		d.lost(spec.take("loader"), "", "the loading of programs and libraries into memory is not told")
	}
}

func (c *converter) unknown(d *draft, o *object) {
	for _, v := range o.rest() {
		d.lost(v, "", "this field is not known to convert")
	}
}

// tracingSubject is whom the policy is about: pods, containers, the host, or all.
func (c *converter) tracingSubject(d *draft, spec *object) {
	pods, isPods := spec.child("podSelector")
	containers, isContainers := spec.child("containerSelector")
	host, isHost := spec.child("hostSelector")
	d.subjectAt = d.at
	for _, o := range []*object{host, containers, pods} {
		if o.ok() {
			d.subjectAt = o.value
		}
	}
	if len(host.items) > 0 {
		d.lost(host.value, "", "hosts are not selected by labels: load it on those that are meant")
		for i := range host.items {
			host.items[i].taken = true
		}
	}
	podConds, some := c.labels(d, pods, podLabel, hasLabel)
	inContainer, someContainer := c.labels(d, containers, containerField, nil)
	cs := []*cond{podConds, inContainer}
	if d.kind == "TracingPolicyNamespaced" {
		if isPods = true; d.namespace == "" {
			d.differs(d.at, "", "it names no namespace, and is about the pods of all")
		} else {
			cs, some = append(cs, oneOf("process.pod.namespace", quoted(d.namespace)...)), true
		}
	}
	sel := allOf(cs...)
	switch {
	case (isPods || isContainers) && isHost && sel == nil && c.opt.Subject == "": // everyone
	case isPods || isContainers:
		if d.pods(c.opt, some || someContainer, sel); isHost {
			d.subject = anyOf(d.subject, onHost)
		}
	case isHost:
		d.subject = onHost
	}
}

var onHost = oneOf("process.container.id", `""`)

// labels is a label selector of Kubernetes; some says that it selects, and not only leaves some out.
func (c *converter) labels(d *draft, o *object, leaf func(key string, negated bool, values ...string) *cond, has func(key string) *cond) (sel *cond, some bool) {
	var cs []*cond
	for _, kv := range o.textMap("matchLabels") {
		cs, some = append(cs, leaf(kv[0], false, kv[1])), true
	}
	for _, e := range o.objects("matchExpressions") {
		key, op, values := e.text("key"), e.text("operator"), e.texts("values")
		switch {
		case op == "In":
			cs, some = append(cs, leaf(key, false, values...)), true
		case op == "NotIn":
			cs = append(cs, not(leaf(key, true, values...)))
		case op == "Exists" && has != nil:
			cs, some = append(cs, has(key)), true
		case op == "DoesNotExist" && has != nil:
			cs = append(cs, not(has(key)))
		default:
			c.r.fail(e.take("operator"), "it is one of In, NotIn, Exists, DoesNotExist", "unknown operator %q", op)
		}
		c.unknown(d, e)
	}
	c.unknown(d, o)
	return allOf(cs...), some
}

// containerField is about the name or the image's repository of the process's container, or about a label of it.
func containerField(key string, _ bool, values ...string) *cond {
	switch key {
	case "name":
		return oneOf("process.container.name", quoted(values...)...)
	case "repo":
		is := never
		for _, v := range values {
			is = anyOf(is, oneOf("process.container.image", quoted(v)...), each("process.container.image", "startsWith", quoted(v+":", v+"@")...))
		}
		return is
	}
	return oneOf("process.container.labels["+quoted(key)[0]+"]", quoted(values...)...)
}

// probe is one item of kprobes, fentries or lsmhooks.
type probe struct {
	*object
	lists  map[string][]string
	macros map[string]*object
	lsm    bool

	message string
	tags    []string
	args    []probeArg
}

// probeArg is an argument that the probe reads.
type probeArg struct {
	index    int
	kind     string
	resolved bool // it is not the argument, but something that it leads to
}

func (c *converter) probe(d *draft, p *probe) {
	key := "call"
	if p.lsm {
		key = "hook"
	}
	at := p.take(key)
	if !at.ok() {
		c.r.fail(value{n: p.n, field: p.key(key), file: p.file}, "", "is missing")
		return
	}
	name := c.r.scalar(at)
	p.message, p.tags = p.text("message"), p.texts("tags")
	p.take("syscall")
	for _, a := range p.objects("args") {
		n, _ := a.number("index")
		p.args = append(p.args, probeArg{index: int(n), kind: a.text("type"), resolved: a.take("resolve").ok() || a.take("extractParam").ok() || a.take("source").ok() || a.take("btfType").ok()})
	}
	tracks := strings.EqualFold(p.text("returnArgAction"), "TrackSock") || strings.EqualFold(p.text("returnArgAction"), "UntrackSock")
	if p.flag("return") || p.take("returnArg").ok() {
		p.take("returnArg")
		if !tracks {
			d.differs(at, "", "the value that it returns is not told: a verdict falls before")
		}
	}
	names := []string{name}
	if list, ok := strings.CutPrefix(name, "list:"); ok {
		if names, ok = p.lists[list]; !ok {
			c.r.fail(at, "", "there is no list %q", list)
		}
	}
	if v := p.take("data"); v.ok() {
		d.lost(v, "", "only what an event of Pavise has is told")
	}
	if v := p.take("ignore"); v.ok() {
		d.differs(v, "", "it is about how Tetragon loads")
	}
	for _, call := range names {
		c.function(d, p, at, call, tracks)
	}
	c.unknown(d, p.object)
}

// function makes the rules of a probe on one function.
func (c *converter) function(d *draft, p *probe, at value, call string, tracks bool) {
	fn := function(call)
	if p.lsm {
		fn = lsmFunction(call)
	}
	h, known := hooks[fn]
	if !known {
		h = &hook{}
	}
	judged := supported(h.ops)
	var sels []*selector
	keeps := tracks
	for _, o := range p.objects("selectors") {
		s := c.selector(p, h, o)
		sels = append(sels, s)
		keeps = keeps || s.keeps
	}
	switch {
	case !known && keeps:
		d.differs(at, "", "%s only keeps Tetragon's books of whose a socket or a descriptor is: Pavise knows", call)
		return
	case !known:
		d.lost(at, "", "%s is not a function with an equivalent", call)
		return
	case len(judged) == 0:
		d.lost(at, "", "%s is %s, which this version does not judge", call, strings.Join(h.ops, ", "))
		return
	}
	if len(sels) == 0 {
		sels = []*selector{{at: at, action: "audit"}}
	}
	first := true
	for i, s := range sels {
		if s.action == "" {
			if len(s.partial) == 0 {
				continue
			}
			d.findings = append(d.findings, s.partial...)
			continue
		}
		if len(s.partial) > 0 && s.when == nil {
			d.findings = append(d.findings, s.partial...)
			d.lost(s.at, "", "it is left out: without this filter it is about every %s", strings.Join(s.judged(h), " or "))
			first = false
			continue
		}
		r := &rule{name: strings.TrimPrefix(fn, "security_"), on: s.judged(h), action: s.action, message: p.message, tags: p.tags, at: s.at}
		when := allOf(h.when, s.when)
		whole := len(s.partial) == 0
		for _, before := range sels[:i] {
			switch {
			case !slices.Equal(before.judged(h), s.judged(h)), strictness[before.action] >= strictness[s.action]:
			case len(before.partial) == 0:
				when = unless(when, before.when)
			default:
				whole = false
				r.lost(before.at, "", "what the selector before lets pass")
			}
		}
		if when == never {
			d.differs(s.at, "", "a selector before matches all that this one does")
			continue
		}
		r.when = when
		r.findings = append(append(r.findings, s.partial...), s.notes...)
		if !whole && (s.action == "deny" || s.action == "kill") {
			r.action = "audit" // it would deny more than the source does
			r.lost(s.at, "", "its %s: it is only told, because a condition of it has no equivalent", s.action)
		}
		if first && h.note != "" && s.ops == nil {
			r.differs(at, "", "%s: %s", call, h.note)
		}
		first = false
		d.add(r)
	}
	if first {
		d.differs(at, "", "%s: nothing is to be done", call)
	}
}

// selector reads one selector for a hook.
func (c *converter) selector(p *probe, h *hook, o *object) *selector {
	s := &selector{at: o.value}
	parts := []*object{o}
	for _, v := range o.list("macros") {
		if m := p.macros[c.r.scalar(v)]; m != nil {
			parts = append(parts, m)
		} else {
			c.r.fail(v, "", "there is no macro %q", c.r.scalar(v))
		}
	}
	objects := func(key string) (all []*object) {
		for _, part := range parts {
			all = append(all, part.objects(key)...)
		}
		return all
	}
	var cs []*cond
	filter := func(key string, read func(*selector, *object) *cond) {
		for _, f := range objects(key) {
			cs = append(cs, read(s, f))
			for _, v := range f.rest() {
				s.lost(v, "", "this field is not known to convert")
			}
		}
	}
	filter("matchBinaries", func(s *selector, f *object) *cond { return c.binaries(s, f, "process.exe.path") })
	filter("matchParentBinaries", func(s *selector, f *object) *cond { return c.binaries(s, f, "process.parent.exe.path") })
	filter("matchPIDs", c.pids)
	filter("matchNamespaces", c.namespaces)
	filter("matchCapabilities", c.capabilities)
	filter("matchCurrentCred", c.credentials)
	filter("matchArgs", func(s *selector, f *object) *cond { return c.argument(s, p, h, f) })
	s.when = allOf(cs...)
	c.actions(s, objects("matchActions"))
	for _, part := range parts {
		for _, v := range part.rest() {
			s.lost(v, "", "%s", map[string]string{
				"matchReturnArgs":        "what the call returns is not known when it is judged",
				"matchReturnActions":     "what the call returns is not known when it is judged",
				"matchData":              "data of the kernel cannot be compared",
				"matchNamespaceChanges":  "a change since the program started is not known",
				"matchCapabilityChanges": "a change since the program started is not known",
			}[v.field[strings.LastIndexByte(v.field, '.')+1:]])
			if f := s.partial[len(s.partial)-1]; f.Message == "" {
				f.Message = "this filter is not known to convert"
			}
		}
	}
	return s
}

// negated reports whether op is the negation of one of a pair, and which it is in lower case.
func negated(op string) (string, bool) {
	op = strings.ToLower(op)
	if op == "neq" {
		return "equal", true
	}
	rest, neg := strings.CutPrefix(op, "not")
	if rest == "eq" {
		rest = "equal"
	}
	return rest, neg
}

// strings is a test on a text by an operator that both binaries and paths have; nil, false when op is another.
func texts(field, op string, values []string) (*cond, bool) {
	op, neg := negated(op)
	var is *cond
	switch op {
	case "in", "equal":
		is = oneOf(field, quoted(values...)...)
	case "prefix":
		is = each(field, "startsWith", quoted(values...)...)
	case "postfix":
		is = each(field, "endsWith", quoted(values...)...)
	default:
		return nil, false
	}
	if neg {
		is = not(is)
	}
	return is, true
}

func (c *converter) binaries(s *selector, o *object, field string) *cond {
	at, values := o.take("operator"), o.texts("values")
	op := o.text("operator")
	is, ok := texts(field, strings.Replace(op, "Not", "", 1), values)
	if !ok {
		c.r.fail(at, "it is one of In, NotIn, Prefix, NotPrefix, Postfix, NotPostfix", "unknown operator %q", op)
		return nil
	}
	if o.flag("followChildren") {
		was := test(fmt.Sprintf("process.ancestors.exists(a, %s)", oneOf("a.exe.path", quoted(values...)...)))
		was.call = true
		is = anyOf(is, was)
	}
	if _, neg := negated(op); neg {
		return not(is)
	}
	return is
}

// members reads an operator that is In or NotIn.
func (c *converter) members(o *object) (not, ok bool) {
	switch op := o.text("operator"); op {
	case "In", "Equal":
		return false, true
	case "NotIn", "NotEqual":
		return true, true
	default:
		c.r.fail(o.take("operator"), "it is one of In, NotIn", "unknown operator %q", op)
		return false, false
	}
}

func (c *converter) pids(s *selector, o *object) *cond {
	neg, ok := c.members(o)
	values := o.texts("values")
	inside, forks := o.flag("isNamespacePID"), o.flag("followForks")
	if !ok {
		return nil
	}
	for i, v := range values {
		n, err := strconv.ParseUint(v, 0, 32)
		if err != nil {
			c.r.fail(o.take("values"), "", "want process ids, not %q", v)
			return nil
		}
		values[i] = strconv.FormatUint(n, 10)
	}
	if inside {
		s.lost(o.value, "", "a process's number in its own namespace is not known")
		return nil
	}
	is := oneOf("process.pid", values...)
	if forks {
		was := test(fmt.Sprintf("process.ancestors.exists(a, %s)", oneOf("a.pid", values...)))
		was.call = true
		is = anyOf(is, was)
	}
	if neg {
		return not(is)
	}
	return is
}

func (c *converter) namespaces(s *selector, o *object) *cond {
	neg, ok := c.members(o)
	name, values := strings.ToLower(o.text("namespace")), o.texts("values")
	if !ok {
		return nil
	}
	host := "process.ns." + name + ".host"
	switch {
	case !slices.Equal(values, []string{"host_ns"}), !hasField(host) && name != "pid" && name != "mnt":
		s.lost(o.value, "process.container.id != \"\" is a process in a container", "the %s namespace cannot be compared with %s", oneLine(name), oneLine(strings.Join(values, ", ")))
		return nil
	case hasField(host):
		if neg {
			return not(is(host))
		}
		return is(host)
	}
	s.notes = append(s.notes, newFinding(false, o.value, "", "a process outside of containers stands for one in the host's %s namespace", name))
	if neg {
		return not(onHost)
	}
	return onHost
}

func (c *converter) capabilities(s *selector, o *object) *cond {
	neg, ok := c.members(o)
	kind, values := o.text("type"), o.texts("values")
	inside := o.flag("isNamespaceCapability")
	if !ok {
		return nil
	}
	if kind != "" && !strings.EqualFold(kind, "effective") || inside {
		s.lost(o.value, "process.caps has the effective ones", "only effective capabilities can be compared, whatever the user namespace")
		return nil
	}
	is := anyCapability("process.caps", values)
	if neg {
		return not(is)
	}
	return is
}

// anyCapability is that any of the capabilities is in a field.
func anyCapability(field string, names []string) *cond {
	is := never
	for _, name := range names {
		is = anyOf(is, test(strconv.Quote(strings.ToUpper(strings.TrimSpace(name)))+" in "+field))
	}
	return is
}

func (c *converter) credentials(s *selector, o *object) *cond {
	var cs []*cond
	for _, id := range []struct{ key, field string }{{"euid", "process.user.id"}, {"uid", "process.real_user.id"}} {
		if !hasField(id.field) {
			continue
		}
		for _, e := range o.objects(id.key) {
			neg, ok := c.members(e)
			is, good := c.numbers(id.field, e.list("values"), 1<<32-1)
			if !ok || !good {
				return nil
			}
			if neg {
				is = not(is)
			}
			cs = append(cs, is)
		}
	}
	return allOf(cs...)
}

// numbers is a field that is any of the numbers or of the ranges "min:max".
func (c *converter) numbers(field string, values []value, largest uint64) (*cond, bool) {
	var singles []string
	is := never
	for _, v := range values {
		lo, hi, isRange := strings.Cut(c.r.scalar(v), ":")
		if !isRange {
			hi = lo
		}
		a, err := strconv.ParseUint(lo, 0, 64)
		b, err2 := strconv.ParseUint(hi, 0, 64)
		switch {
		case err != nil || err2 != nil || max(a, b) > largest:
			c.r.fail(v, fmt.Sprintf("write a number up to %d, or two as 1:5", largest), "bad number %q", c.r.scalar(v))
			return nil, false
		case a == b:
			singles = append(singles, strconv.FormatUint(a, 10))
		default:
			is = anyOf(is, test(fmt.Sprintf("%s >= %d && %s <= %d", field, min(a, b), field, max(a, b))))
		}
	}
	return anyOf(oneOf(field, singles...), is), true
}

// actions reads what a selector does.
func (c *converter) actions(s *selector, list []*object) {
	s.action = "audit"
	quiet := false
	stricter := func(action string) {
		if strictness[action] > strictness[s.action] {
			s.action = action
		}
	}
	note := func(lost bool, at value, format string, args ...any) {
		s.notes = append(s.notes, newFinding(lost, at, "", format, args...))
	}
	for _, a := range list {
		name := a.take("action")
		if !name.ok() {
			c.r.fail(value{n: a.n, field: a.key("action"), file: a.file}, "", "is missing")
			continue
		}
		errno, _ := a.number("argError")
		sig, _ := a.number("argSig")
		override := func() {
			if stricter("deny"); errno != -1 {
				note(false, a.value, "the call fails with EPERM, whatever argError says")
			}
		}
		switch strings.ToLower(c.r.scalar(name)) {
		case "post":
			if v := a.take("rateLimit"); v.ok() {
				a.take("rateLimitScope")
				note(false, v, "repeats of the same process, rule and object within a second are one event")
			}
			for _, key := range []string{"kernelStackTrace", "userStackTrace", "imaHash"} {
				if a.flag(key) {
					note(true, a.take(key), "an event has no such field")
				}
			}
		case "nopost":
			quiet = true
		case "sigkill":
			stricter("kill")
		case "signal":
			if sig == 9 {
				stricter("kill")
			} else {
				note(true, a.value, "the only signal is SIGKILL, not %d", sig)
			}
		case "override":
			override()
		case "notifyenforcer", "notifykiller":
			if sig == 9 {
				stricter("kill")
			} else if sig != 0 {
				note(true, a.value, "the only signal is SIGKILL, not %d", sig)
			}
			if errno != 0 {
				override()
			}
		case "followfd", "unfollowfd", "copyfd", "tracksock", "untracksock", "cleanupenforcernotification":
			s.keeps = true
			for i := range a.items {
				a.items[i].taken = true
			}
			note(false, name, "%s keeps Tetragon's books: Pavise needs none", c.r.scalar(name))
		case "geturl", "dnslookup", "set":
			for i := range a.items {
				a.items[i].taken = true
			}
			note(true, name, "the action %s has no equivalent", c.r.scalar(name))
		default:
			c.r.fail(name, "", "unknown action %q", c.r.scalar(name))
		}
		for _, v := range a.rest() {
			switch resolve(v.n).Value {
			case "", "0", "false": // what an exported policy is full of
			default:
				note(true, v, "this field is not known to convert")
			}
		}
	}
	if !quiet {
		return
	}
	if s.action == "audit" {
		s.action = ""
	} else {
		note(false, s.at, "it is told in spite of NoPost: every denial is an event")
	}
}
