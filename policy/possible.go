package policy

import (
	"fmt"

	"github.com/pavise-project/pavise"
)

// This file finds tests of paths that no path can meet. The kernel's paths are "/" or components of 1 to 255 bytes, none of them
// "." or "..", each after a slash. Two have another form: a memfd is "/memfd:" and whatever name its maker gave it, and
// a file without a place in any tree may be "//".

// maxComponent is how long a component of a path may be: bpf/path.h takes a path with a longer one for overlong.
const maxComponent = 255

// chance says which paths a pattern can match.
type chance uint8

const (
	noPath    chance = iota
	memfdOnly        // only what the maker of a memfd chose to make look so
	somePath
)

// resolved reports whether d holds paths as the kernel builds them, whatever the operation. Of process.exec, the name of a script is judged too,
// and that is as it was given.
func resolved(d Dim, ops []pavise.Op) bool {
	switch d {
	case DimExe, DimParentExe, DimCgroup:
		return true
	case DimPath:
		for _, op := range ops {
			if op == pavise.OpExec {
				return false
			}
		}
		return true
	}
	return false
}

// unreachable returns problems for the tests of paths in c that no path can meet, and warnings for those that none is meant to.
func (c *Condition) unreachable(ops []pavise.Op) (errs, warns []problem) {
	seen := map[int64]bool{}
	var walk func(n *cnode)
	walk = func(n *cnode) {
		for _, s := range n.subs {
			walk(s)
		}
		if n.kind != cAtom || !resolved(n.atom.dim, ops) || seen[n.expr.ID()] {
			return
		}
		seen[n.expr.ID()] = true
		line, col := 0, 0
		at := func(format string, args ...any) problem {
			if line == 0 {
				line, col = c.start(n.expr)
			}
			return problem{line, col, fmt.Sprintf(format, args...), ""}
		}
		best, long := noPath, 0
		for i := range n.atom.patterns {
			p := &n.atom.patterns[i]
			if l := p.component(); l > maxComponent {
				long = l
				continue
			}
			if best = max(best, p.chance(n.atom.dim == DimCgroup)); best == somePath {
				return
			}
		}
		switch {
		case best == memfdOnly:
			w := at("%s holds for no path but a memfd's: the kernel's paths are resolved, without \"//\", \".\" and \"..\"", c.text(n.expr))
			w.hint = "test the path that was meant"
			warns = append(warns, w)
		case long > 0:
			e := at("%s matches nothing: it asks for a component of %d bytes, and the limit is %d", c.text(n.expr), long, maxComponent)
			errs = append(errs, e)
		default:
			e := at("%s matches nothing: the kernel's paths begin with \"/\" and are resolved, without \"//\", \".\" and \"..\"", c.text(n.expr))
			e.hint = "write the path as realpath(1) prints it"
			errs = append(errs, e)
		}
	}
	walk(c.tree)
	return errs, warns
}

// component is the length of the longest component that every string of p has.
func (p *pattern) component() int {
	n, most := 0, 0
	for i := range p.Items {
		switch it := &p.Items[i]; {
		case it.Set.has('/'):
			n = 0
		case !it.Loop:
			n++
			most = max(most, n)
		}
	}
	return most
}

// The states of reading a path.
const (
	pathStart = iota
	pathRoot  // after the first slash
	pathSlash // after another
	pathDot   // the component is "." so far
	pathDots  // ".."
	pathName  // anything else
	pathDead
)

// pathStep is the state after state s and a slash, a dot, or another byte.
var pathStep = [pathDead][3]uint8{
	pathStart: {pathRoot, pathDead, pathDead},
	pathRoot:  {pathDead, pathDot, pathName},
	pathSlash: {pathDead, pathDot, pathName},
	pathDot:   {pathDead, pathDots, pathName},
	pathDots:  {pathDead, pathName, pathName},
	pathName:  {pathSlash, pathName, pathName},
}

// chance reads p and a path side by side. An Under pattern matches more paths only where it matches one by itself. Plain paths have
// no other forms.
func (p *pattern) chance(plain bool) chance {
	for i := range p.Items {
		if p.Items[i].Set == (byteSet{}) && !p.Items[i].Loop {
			return noPath
		}
	}
	type place struct {
		item  int
		state uint8
	}
	seen := make([]uint8, len(p.Items)+1) // bits of states
	stack := []place{{0, pathStart}}
	push := func(item int, state uint8) {
		if state < pathDead && seen[item]&(1<<state) == 0 {
			seen[item] |= 1 << state
			stack = append(stack, place{item, state})
		}
	}
	for len(stack) > 0 {
		at := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		if at.item == len(p.Items) {
			if at.state == pathStart || at.state == pathRoot || at.state == pathName { // no path at all is ""
				return somePath
			}
			continue
		}
		it := &p.Items[at.item]
		next := at.item + 1
		if it.Loop {
			push(next, at.state)
			next = at.item
		}
		for class, s := range pathStep[at.state] {
			if it.Set.hasClass(class) {
				push(next, s)
			}
		}
	}
	switch {
	case plain:
	case p.match("//"):
		return somePath
	case p.begins("/memfd:"):
		return memfdOnly
	}
	return noPath
}

// hasClass reports whether s has a slash (0), a dot (1) or another byte (2).
func (s byteSet) hasClass(class int) bool {
	switch class {
	case 0:
		return s.has('/')
	case 1:
		return s.has('.')
	}
	return s.without('/').without('.') != byteSet{}
}

// begins reports whether p, all of whose sets have bytes, matches a string that begins with prefix.
func (p *pattern) begins(prefix string) bool {
	cur := make([]bool, len(p.Items)+1)
	set := func(v []bool, k int) {
		for v[k] = true; k < len(p.Items) && p.Items[k].Loop; v[k] = true {
			k++
		}
	}
	set(cur, 0)
	for i := range len(prefix) {
		next := make([]bool, len(p.Items)+1)
		for k := range p.Items {
			if cur[k] && p.Items[k].Set.has(prefix[i]) {
				if p.Items[k].Loop {
					set(next, k)
				} else {
					set(next, k+1)
				}
			}
		}
		if p.Under && cur[len(p.Items)] && prefix[i] == '/' {
			return true
		}
		cur = next
	}
	for _, alive := range cur {
		if alive {
			return true
		}
	}
	return false
}
