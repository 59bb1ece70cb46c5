package convert

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// A NetworkPolicy of Kubernetes makes an allow-list of the pods it selects, for each direction. What the policies of a pod allow adds
// up, so those of a namespace become one policy for each direction, whose rules ask whom they are about.

// direction is how ingress or egress is said.
type direction struct {
	name, kind string // as in spec and in policyTypes
	peers      string
	ops        []string
	port       string
	own        string // the address that is a loopback address when a process talks to its own machine or pod
	note       string
	hint       string // for peers whose addresses are not known
}

var (
	ingress = &direction{name: "ingress", kind: "Ingress", peers: "from", ops: []string{"net.accept"}, port: "net.local.port",
		own:  "net.local.address", // at the LSM hook the other end is not known yet
		note: "Ingress makes an allow-list: default denies what no rule allows, also from the pod's own address and from its node, whose probes Kubernetes lets in",
		hint: `add a rule with their addresses, as 'net.remote.address.within("10.244.0.0/16")'`}
	egress = &direction{name: "egress", kind: "Egress", peers: "to", ops: []string{"net.connect", "net.send"}, port: "net.remote.port",
		own:  "net.remote.address",
		note: "Egress makes an allow-list: default denies what no rule allows, also to the pod's own address and to its node",
		hint: `add a rule with their addresses, or with their name, as 'net.remote.domain == "db.internal"'`}
)

// netList is what a draft is before it is known which other policies are about its pods.
type netList struct {
	*direction
	sel  *cond // by labels; nil: all
	some bool  // as of pods
	at   value // of what it allows
	open bool  // it allows everything
}

func (c *converter) networkPolicy(d *draft, spec *object) {
	sel, ok := spec.child("podSelector")
	if d.subjectAt = sel.value; !ok {
		d.subjectAt = d.at
	}
	conds, some := c.labels(d, sel, c.netLabel, c.hasNetLabel)
	switch {
	case c.opt.Subject != "":
	case c.opt.Containers:
		if d.namespace != "" {
			d.differs(d.at, "", "containers have no namespace: it is about all with these labels")
		}
	case d.namespace == "":
		d.differs(d.at, "", "it names no namespace, and is about the pods of all")
	}
	var dirs []*direction
	types := spec.list("policyTypes")
	for _, v := range types {
		switch word := c.r.scalar(v); word {
		case ingress.kind:
			dirs = append(dirs, ingress)
		case egress.kind:
			dirs = append(dirs, egress)
		default:
			c.r.fail(v, "it is one of Ingress, Egress", "unknown policy type %q", word)
		}
	}
	if len(types) == 0 {
		dirs = append(dirs, ingress)
		if at := spec.take("egress"); at.ok() && len(resolve(at.n).Content) > 0 {
			dirs = append(dirs, egress)
		}
	}
	both := slices.Contains(dirs, ingress) && slices.Contains(dirs, egress)
	base := d.name
	if both {
		in := *d
		in.name, in.findings, in.nameNote = c.unique(base+"-ingress"), nil, nil
		c.netRules(&in, spec, &netList{direction: ingress, sel: conds, some: some})
		c.drafts = append(c.drafts, &in)
		d.name = c.unique(base + "-egress")
		d.nameNote = newFinding(false, d.at, "", "its ingress and its egress become a policy each")
	}
	for _, dir := range []*direction{ingress, egress} {
		switch at := spec.take(dir.name); {
		case !slices.Contains(dirs, dir):
			if at.ok() {
				d.differs(at, "", "it has no effect in Kubernetes either: policyTypes does not name %s", dir.kind)
			}
		case dir == egress || !both:
			c.netRules(d, spec, &netList{direction: dir, sel: conds, some: some})
		}
	}
}

// netLabel is about one label of the process's pod or container.
func (c *converter) netLabel(key string, negated bool, values ...string) *cond {
	is := oneOf(c.labelMap()+"["+quoted(key)[0]+"]", quoted(values...)...)
	if negated || slices.Contains(values, "") { // a label that is not there is "" too
		is = allOf(c.hasNetLabel(key), is)
	}
	return is
}

func (c *converter) hasNetLabel(key string) *cond {
	return test(quoted(key)[0] + " in " + c.labelMap())
}

func (c *converter) labelMap() string {
	if c.opt.Containers {
		return "process.container.labels"
	}
	return "process.pod.labels"
}

// netRules makes the rules of one direction.
func (c *converter) netRules(d *draft, spec *object, list *netList) {
	d.net = list
	d.defaults = supported(list.ops)
	if list.at = spec.take(list.name); !list.at.ok() {
		list.at = d.at
	}
	for _, o := range spec.objects(list.name) {
		r := &rule{name: list.name, on: d.defaults, action: "allow", at: o.value}
		ports, ok := c.netPorts(d, r, o, list)
		peers, ok2 := c.netPeers(d, r, o, list)
		if r.when = allOf(ports, peers); c.netKnown(d, o) && ok && ok2 {
			list.open = list.open || r.when == nil
			d.add(r)
		}
	}
}

// netKnown reports whether nothing is left of what allows something. If there is, it may allow less than what was read, and is left out.
func (c *converter) netKnown(d *draft, o *object) bool {
	rest := o.rest()
	for _, v := range rest {
		d.lost(v, "", "this field is not known to convert: what it is a part of is not allowed")
		d.lostAllow = true
	}
	return len(rest) == 0
}

// netPorts is the ports of a rule; not ok when none of them could be converted.
func (c *converter) netPorts(d *draft, r *rule, o *object, list *netList) (is *cond, ok bool) {
	entries := o.objects("ports")
	if len(entries) == 0 {
		return nil, true
	}
	var protocols []string
	singles, others := map[string][]string{}, map[string]*cond{}
	for _, e := range entries {
		protocol := strings.ToLower(e.text("protocol"))
		if protocol == "" {
			protocol = "tcp"
		}
		if !slices.Contains([]string{"tcp", "udp", "sctp"}, protocol) {
			c.r.fail(e.take("protocol"), "it is one of TCP, UDP, SCTP", "unknown protocol %q", e.text("protocol"))
			continue
		}
		at, endAt := e.take("port"), e.take("endPort")
		known := c.netKnown(d, e)
		from, named := c.netPort(at, true)
		to, _ := c.netPort(endAt, false)
		switch {
		case named && endAt.ok():
			c.r.fail(endAt, "write port as a number", "a range does not begin with a name")
			continue
		case endAt.ok() && !at.ok():
			c.r.fail(endAt, "write port, the first one", "a range has no beginning")
			continue
		case endAt.ok() && to > 0 && to < from:
			c.r.fail(endAt, "", "the range ends before it begins, at %d", from)
			continue
		case !known:
			continue
		case named:
			d.lost(at, "write its number", "the port %q is named by the pods, which are not known: it is not allowed", c.r.scalar(at))
			d.lostAllow = true
			continue
		case protocol == "udp" && list.direction == ingress:
			d.differs(e.value, "", "UDP needs no rule: datagrams that come in are not judged")
			continue
		}
		if !slices.Contains(protocols, protocol) {
			protocols, others[protocol] = append(protocols, protocol), never
		}
		switch {
		case !at.ok():
			others[protocol] = nil
		case endAt.ok() && to > from:
			others[protocol] = anyOf(others[protocol], test(fmt.Sprintf("%s >= %d && %s <= %d", list.port, from, list.port, to)))
		default:
			if n := strconv.FormatUint(from, 10); !slices.Contains(singles[protocol], n) {
				singles[protocol] = append(singles[protocol], n)
			}
		}
	}
	is = never
	for _, p := range protocols {
		is = anyOf(is, allOf(oneOf("net.protocol", quoted(p)...), anyOf(oneOf(list.port, singles[p]...), others[p])))
	}
	return is, len(protocols) > 0
}

// netPort reads a port, or says that it is a name.
func (c *converter) netPort(v value, names bool) (n uint64, named bool) {
	if !v.ok() {
		return 0, false
	}
	word := c.r.scalar(v)
	n, err := strconv.ParseUint(word, 10, 16)
	switch {
	case err == nil && n > 0:
		return n, false
	case names && word != "" && strings.ContainsFunc(word, func(r rune) bool { return r >= 'a' && r <= 'z' }):
		return 0, true
	}
	c.r.fail(v, "it is a number from 1 to 65535", "bad port %q", word)
	return 0, false
}

// netPeers is the other ends of a rule; not ok when none of them could be converted.
func (c *converter) netPeers(d *draft, r *rule, o *object, list *netList) (is *cond, ok bool) {
	entries := o.objects(list.peers)
	if len(entries) == 0 {
		return nil, true
	}
	const field = "net.remote.address"
	var whole []string
	is = never
	for _, e := range entries {
		pods, namespaces, block := e.take("podSelector"), e.take("namespaceSelector"), e.take("ipBlock")
		known := c.netKnown(d, e)
		switch {
		case block.ok() && (pods.ok() || namespaces.ok()):
			c.r.fail(block, "write two entries", "an entry is either an ipBlock or selects pods")
			continue
		case pods.ok() || namespaces.ok():
			d.lost(e.value, list.hint, "these pods are selected by labels, and their addresses are not known: they are not allowed")
			d.lostAllow = true
			continue
		case !known:
			continue
		case !block.ok():
			c.r.fail(e.value, "", "want an ipBlock, a podSelector or a namespaceSelector")
			continue
		}
		b := c.r.object(block)
		at := b.take("cidr")
		if !at.ok() {
			c.r.fail(value{n: b.n, field: b.key("cidr"), file: b.file}, "", "is missing")
			continue
		}
		cidr, valid := c.netPrefix(at)
		var except []string
		for _, v := range b.list("except") {
			p, valid := c.netPrefix(v)
			if valid && cidr.IsValid() && (!cidr.Contains(p.Addr()) || p.Bits() < cidr.Bits()) {
				c.r.fail(v, "", "%s is not within %s", p, cidr)
			}
			except = append(except, p.String())
		}
		switch {
		case !c.netKnown(d, b) || !valid:
		case len(except) == 0:
			whole = append(whole, cidr.String())
		default:
			is = anyOf(is, allOf(call(field, "within", quoted(cidr.String())...), not(call(field, "within", quoted(except...)...))))
		}
	}
	is = anyOf(call(field, "within", quoted(whole...)...), is)
	if is == never {
		return nil, false
	}
	if list.direction == ingress {
		r.differs(r.at, "", "who connects is known when the connection is there: to enforce it, the policy needs fallback: kill")
	}
	return is, true
}

func (c *converter) netPrefix(v value) (p netip.Prefix, ok bool) {
	p, err := netip.ParsePrefix(c.r.scalar(v))
	if err != nil || p.Addr().Is4In6() {
		c.r.fail(v, "write it as 10.0.0.0/8", "bad prefix %q", c.r.scalar(v))
		return netip.Prefix{}, false
	}
	return p.Masked(), true
}

// joinNetworkPolicies makes one policy of those of a namespace and direction, and says whom each is about.
func (c *converter) joinNetworkPolicies() {
	var order []string
	groups := map[string][]*draft{}
	for _, d := range c.drafts {
		if d.net == nil {
			continue
		}
		key := d.net.name + " " + d.namespace
		if c.opt.Subject != "" || c.opt.Containers {
			key = d.net.name
		}
		if groups[key] == nil {
			order = append(order, key)
		}
		groups[key] = append(groups[key], d)
	}
	for _, key := range order {
		c.joinNetwork(groups[key])
	}
}

func (c *converter) joinNetwork(ds []*draft) {
	first := ds[0]
	sel, some, same := never, true, true
	for _, d := range ds {
		sel, some = anyOf(sel, d.net.sel), some && d.net.some
		same = same && (c.opt.Subject != "" || d.net.sel.String() == first.net.sel.String())
	}
	if same {
		sel = first.net.sel
	}
	var others []string
	for i, d := range ds {
		rules := d.rules
		d.rules = nil
		for _, r := range rules {
			if len(ds) > 1 {
				r.name = d.source + "-" + r.name
			}
			if !same {
				r.when = allOf(d.net.sel, r.when)
			}
			first.add(r)
		}
		if i == 0 {
			continue
		}
		others = append(others, d.source)
		first.lostAllow = first.lostAllow || d.lostAllow
		d.defaults, d.lostAllow, d.joined = nil, false, true
		d.differs(d.at, "", "its %s is in the policy %s: what the policies of a pod allow adds up", d.net.name, first.name)
	}
	if len(others) > 0 {
		first.differs(first.at, "", "%s is in it too: what the policies of a pod allow adds up", strings.Join(others, ", "))
	}
	if i := slices.IndexFunc(ds, func(d *draft) bool { return !d.net.open }); i >= 0 {
		first.netNotes(ds[i].net)
	}
	container := &cond{pre: `process.container.id != ""`}
	switch {
	case c.opt.Subject != "":
		first.pods(c.opt, some, sel)
	case c.opt.Containers && some && sel != nil:
		first.subject = sel
	case c.opt.Containers:
		first.subject = allOf(container, sel)
	case first.namespace != "":
		first.pods(c.opt, true, allOf(oneOf("process.pod.namespace", quoted(first.namespace)...), sel))
	default:
		first.pods(c.opt, some, sel)
	}
	first.add(&rule{name: "local", on: first.defaults, action: "allow", at: first.at,
		when: anyOf(not(inetFamilies), call(first.net.own, "within", `"127.0.0.0/8"`, `"::1/128"`))})
}

// netNotes says what differs wherever something is not allowed.
func (d *draft) netNotes(list *netList) {
	d.allowNote = newFinding(false, list.at, "", "%s", list.note)
	if list.direction == ingress {
		d.lost(list.at, "", "datagrams (UDP) that come in are not judged: they are not restricted")
		return
	}
	d.differs(list.at, `for a server add an allow rule on net.send, as 'net.protocol == "udp" && net.local.port == 53'`,
		"what a server of UDP answers is judged as sent, and denied where no rule allows it; Kubernetes lets answers pass")
}
