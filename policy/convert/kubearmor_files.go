package convert

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// The rules of KubeArmor's process and file sections, and the order in which it looks for the entry that decides.

// object is which files the entry is about.
func (e *armorEntry) object() (paths, names, dirs, globs []string) {
	switch e.match {
	case matchPath:
		paths = []string{e.text}
	case matchName:
		names = []string{e.text}
	case matchDir:
		if e.deep {
			dirs = []string{cmp.Or(strings.TrimSuffix(e.text, "/"), "/")}
		} else {
			globs = []string{escapeGlob(e.text) + "*"}
			if e.section == "file" && e.text != "/" { // the directory itself can be opened too
				paths = []string{strings.TrimSuffix(e.text, "/")}
			}
		}
	case matchPattern:
		globs = []string{e.text}
	}
	return paths, names, dirs, globs
}

// objects is which files any of the entries is about.
func objects(es []*armorEntry) *cond {
	var paths, names, dirs, globs []string
	for _, e := range es {
		p, n, d, g := e.object()
		paths, names, dirs, globs = append(paths, p...), append(names, n...), append(dirs, d...), append(globs, g...)
	}
	slices.Sort(paths)
	return anyOf(oneOf("file.path", quoted(slices.Compact(paths)...)...), oneOf("file.name", quoted(names...)...),
		call("file.path", "under", quoted(dirs...)...), call("file.path", "glob", quoted(globs...)...))
}

var (
	byOwner  = &cond{pre: "process.user.id == file.owner.id", neg: "process.user.id != file.owner.id"}
	byOthers = not(byOwner)
	writes   = anyOf(is("file.access.write"), is("file.access.truncate"))
)

// wrong is what of an operation on its object the entry forbids (or notes, with audit), reading or changing it. With allow, it is what
// the entry does not allow.
func (e *armorEntry) wrong(change bool) *cond {
	w := never // of an allow without options, nothing
	if e.action != "allow" && !e.readOnly && !e.owner {
		return nil
	}
	if e.readOnly && change {
		return nil
	}
	if e.readOnly {
		w = anyOf(w, writes)
	}
	if e.owner {
		w = anyOf(w, byOthers)
	}
	return w
}

// rank is the order in which KubeArmor looks for the entry that decides: the first that it finds.
func (e *armorEntry) rank() int {
	r := 0
	if e.sources == nil {
		r = 2
	}
	if e.match == matchDir {
		r++
	}
	return r
}

// lets reports whether the entry lets something pass.
func (e *armorEntry) lets() bool {
	return len(e.partial) == 0 && (e.action == "allow" || e.action == "block" && (e.readOnly || e.owner))
}

// before reports whether the entry a decides, and not the block entry e, for some file.
func (e *armorEntry) before(a *armorEntry) bool {
	if a == e || a.section != e.section || e.match == matchPattern || a.match == matchPattern || a.match == matchName || e.match == matchName {
		return false
	}
	if a.sources != nil && e.sources != nil && !slices.ContainsFunc(a.fromPath, func(p string) bool { return slices.Contains(e.fromPath, p) }) {
		return false
	}
	switch {
	case a.rank() > e.rank():
		return false
	case a.rank() == e.rank(): // of two directories, the longer, when it has all below it; of equals, what forbids
		if e.match != matchDir || len(a.text) <= len(e.text) || !a.deep {
			return false
		}
	}
	in := func(dir *armorEntry, path string) bool {
		rest, ok := strings.CutPrefix(path, dir.text)
		return ok && (dir.deep || !strings.Contains(strings.TrimSuffix(rest, "/"), "/"))
	}
	switch {
	case a.match == matchPath && e.match == matchPath:
		return a.text == e.text
	case a.match == matchPath:
		return in(e, a.text)
	case e.match == matchPath:
		return in(a, e.text)
	}
	return in(e, a.text) || in(a, e.text)
}

// covers reports whether all that e is about, a is too.
func (a *armorEntry) covers(e *armorEntry) bool {
	return a.match == e.match && a.text == e.text && (a.deep || !e.deep) || a.match == matchDir && a.deep && strings.HasPrefix(e.text, a.text)
}

// armorFiles makes the rules of the process and file sections: entries that say the same become one rule.
func (c *converter) armorFiles(d *draft, entries []*armorEntry) {
	for _, e := range entries { // what an Allow does not allow of its files, it blocks, whatever a less particular one allows
		if e.action == "allow" && (e.readOnly || e.owner) && !e.elsewhere && slices.ContainsFunc(entries, func(x *armorEntry) bool { return x.action == "allow" && x.before(e) }) {
			own := *e
			own.action = "block"
			entries = append(entries, &own)
		}
	}
	type group struct{ entries, allows []*armorEntry }
	var groups []*group
	byKey := map[string]*group{}
	for _, e := range entries {
		if e.elsewhere {
			continue
		}
		var allows []*armorEntry
		key := fmt.Sprintf("%q", []any{e.section, e.armorAttrs, e.readOnly, e.owner, e.fromPath})
		for _, a := range entries {
			if e.action == "block" && a.lets() && e.before(a) {
				allows = append(allows, a)
				key += a.at.field
			}
		}
		if len(e.partial) > 0 {
			key += e.at.field
		}
		g := byKey[key]
		if g == nil {
			g = &group{allows: allows}
			byKey[key] = g
			groups = append(groups, g)
		}
		g.entries = append(g.entries, e)
	}
	for _, g := range groups {
		c.armorRules(d, g.entries, g.allows)
	}
	for _, section := range []string{"process", "file"} {
		i := slices.IndexFunc(entries, func(e *armorEntry) bool { return !e.elsewhere && e.action == "allow" && e.section == section })
		if i < 0 {
			continue
		}
		ops := supported(armorOps[section])
		for _, e := range entries {
			if e.section == section && e.action == "block" && e.lets() { // what it does not block, it allows
				own := *e
				own.action = "allow"
				c.armorRules(d, []*armorEntry{&own}, nil)
			}
		}
		if section == "file" {
			ops = append(ops, supported(armorOps["change"], "file.path")...)
			r := &rule{name: "file-programs", on: []string{"file.open"}, when: is("file.access.exec"), action: "allow", at: entries[i].at}
			r.differs(r.at, "", "to open a program in order to start it is allowed: whether it may be started is for process.exec")
			d.add(r)
		}
		d.allowList(entries[i].at, ops)
	}
}

// armorRules makes the rules of entries that differ in their object alone. Allows are the entries that decide before them.
func (c *converter) armorRules(d *draft, es, allows []*armorEntry) {
	e := es[0]
	action := map[string]string{"allow": "allow", "audit": "audit", "block": "deny"}[e.action]
	if len(e.partial) > 0 {
		if action == "allow" {
			d.findings = append(d.findings, e.partial...)
			d.lost(e.at, "", "it allows something under a condition that has no equivalent, and is left out")
			d.lostAllow = true
			return
		}
		action = "audit" // it would deny more than the source does
	}
	when := func(op string) *cond {
		change, owned := op != armorOps[e.section][0], supports(op, "file.owner.id")
		wrong := e.wrong(change)
		if action == "allow" {
			wrong = not(wrong)
		}
		is := allOf(objects(es), e.sources, wrong)
		for _, a := range allows {
			obj := objects([]*armorEntry{a})
			if !slices.ContainsFunc(es, func(e *armorEntry) bool { return !a.covers(e) }) {
				obj = nil
			}
			if !a.owner || owned {
				is = unless(is, allOf(obj, a.sources, not(a.wrong(change))))
			}
		}
		return is
	}
	ops := supported(armorOps[e.section])
	if e.section == "file" {
		ops = append(ops, supported(armorOps["change"], "file.path")...)
	}
	var rules []*rule
	for _, op := range ops {
		if e.owner && !supports(op, "file.owner.id") {
			if action != "allow" {
				d.lost(e.at, "", "ownerOnly for %s: what is made has no owner yet", op)
			}
			continue
		}
		is := when(op)
		i := slices.IndexFunc(rules, func(r *rule) bool { return r.when.String() == is.String() })
		switch {
		case is == never:
		case i >= 0:
			rules[i].on = append(rules[i].on, op)
		default:
			rules = append(rules, &rule{on: []string{op}, when: is})
		}
	}
	for _, r := range rules {
		r.name, r.action, r.severity, r.message, r.tags, r.at = e.section+"-"+e.action, action, e.severity, e.message, e.tags, e.at
		r.findings = append(r.findings, e.partial...)
		if len(e.partial) > 0 && e.action == "block" {
			r.lost(e.at, "", "its Block: it is only told, because a condition of it has no equivalent")
		}
		if len(allows) > 0 {
			r.differs(e.at, "", "KubeArmor lets the more particular entry decide; here it is an exception")
		}
		d.add(r)
	}
}
