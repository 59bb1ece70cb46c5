package convert

import (
	"slices"
	"strconv"
	"strings"
)

// cond is a condition in the making; nil holds always.
type cond struct {
	kind condKind
	subs []*cond // condAnd, condOr, and the one of condNot

	// A leaf is pre, items with commas, post; neg is how its negation is written, by ! before it (and parentheses around) when empty.
	pre, post string
	items     []string
	neg       string
	call      bool // binds stronger than !
	loose     bool // of the user: it may bind weaker than anything
}

type condKind uint8

const (
	condLeaf condKind = iota
	condAnd
	condOr
	condNot
)

// never holds for nothing.
var never = &cond{pre: "false", neg: "true", call: true}

func allOf(cs ...*cond) *cond {
	out := &cond{kind: condAnd}
	for _, c := range cs {
		switch {
		case c == nil:
		case c == never:
			return never
		case c.kind == condAnd:
			out.join(c.subs...)
		default:
			out.join(c)
		}
	}
	return out.simple(nil)
}

func anyOf(cs ...*cond) *cond {
	out := &cond{kind: condOr}
	for _, c := range cs {
		switch {
		case c == nil:
			return nil
		case c == never:
		case c.kind == condOr:
			out.join(c.subs...)
		default:
			out.join(c)
		}
	}
	return out.simple(never)
}

// join appends those of cs that are not there yet.
func (c *cond) join(cs ...*cond) {
	for _, s := range cs {
		if !c.has(s) {
			c.subs = append(c.subs, s)
		}
	}
}

// has reports whether s is one of the parts of c.
func (c *cond) has(s *cond) bool {
	line := s.line()
	return slices.ContainsFunc(c.subs, func(o *cond) bool { return o.line() == line })
}

func (c *cond) simple(none *cond) *cond {
	switch len(c.subs) {
	case 0:
		return none
	case 1:
		return c.subs[0]
	}
	return c
}

func not(c *cond) *cond {
	switch {
	case c == nil:
		return never
	case c == never:
		return nil
	case c.kind == condNot:
		return c.subs[0]
	}
	return &cond{kind: condNot, subs: []*cond{c}}
}

// unless is c except where one of cs holds. What c and the exception both ask for is asked once.
func unless(c *cond, cs ...*cond) *cond {
	outer := c
	for _, x := range cs {
		if x != nil && outer != nil {
			parts := &cond{kind: condAnd, subs: []*cond{outer}}
			if outer.kind == condAnd {
				parts = outer
			}
			inner := &cond{kind: condAnd, subs: []*cond{x}}
			if x.kind == condAnd {
				inner = x
			}
			x = allOf(slices.DeleteFunc(slices.Clone(inner.subs), parts.has)...)
		}
		c = allOf(c, not(x))
	}
	return c
}

// Leaves.

// is is a boolean field, or a call of which there is no better form.
func is(text string) *cond { return &cond{pre: text, call: true} }

// test is any expression.
func test(text string) *cond { return &cond{pre: text} }

// oneOf is field == value, or field in values.
func oneOf(field string, literals ...string) *cond {
	switch len(literals) {
	case 0:
		return never
	case 1:
		return &cond{pre: field + " == " + literals[0], neg: field + " != " + literals[0]}
	}
	return &cond{pre: field + " in [", items: literals, post: "]"}
}

// call is field.fn(values).
func call(field, fn string, literals ...string) *cond {
	if len(literals) == 0 {
		return never
	}
	return &cond{pre: field + "." + fn + "(", items: literals, post: ")", call: true}
}

// each is field.fn(value) for any of the values, where fn takes one.
func each(field, fn string, literals ...string) *cond {
	cs := make([]*cond, len(literals))
	for i, l := range literals {
		cs[i] = call(field, fn, l)
	}
	return anyOf(cs...)
}

// quoted are string literals of CEL.
func quoted(values ...string) []string {
	out := make([]string, len(values))
	for i, v := range values {
		out[i] = strconv.Quote(v)
	}
	return out
}

const lineWidth = 110

// String is the condition in one line.
func (c *cond) String() string { return strings.Join(c.lines(1<<30), "\n") }

// lines is the condition in lines of about width characters.
func (c *cond) lines(width int) []string {
	if c == nil {
		return []string{"true"}
	}
	one := c.line()
	if len(one) <= width {
		return []string{one}
	}
	var out []string
	switch c.kind {
	case condLeaf:
		if len(c.items) < 2 {
			return []string{one}
		}
		line := c.pre
		for i, it := range c.items {
			if it += ","; i == len(c.items)-1 {
				it = it[:len(it)-1] + c.post
			}
			switch {
			case i == 0:
				line += it
			case len(line)+len(it) >= width:
				out, line = append(out, line), "  "+it
			default:
				line += " " + it
			}
		}
		return append(out, line)
	case condNot:
		return wrap("!(", c.subs[0].lines(width-2), ")")
	}
	for i, s := range c.subs {
		ls := s.lines(width - 4)
		if s.binds() < c.binds() {
			ls = wrap("(", ls, ")")
		}
		if i < len(c.subs)-1 {
			ls[len(ls)-1] += c.operator()
		}
		out = append(out, ls...)
	}
	return out
}

func wrap(pre string, ls []string, post string) []string {
	out := make([]string, len(ls))
	for i, l := range ls {
		if i > 0 {
			l = "  " + l
		}
		out[i] = l
	}
	out[0] = pre + out[0]
	out[len(out)-1] += post
	return out
}

func (c *cond) binds() int {
	switch {
	case c.kind == condOr || c.loose:
		return 0
	case c.kind == condAnd:
		return 1
	}
	return 2
}

func (c *cond) operator() string {
	if c.kind == condOr {
		return " ||"
	}
	return " &&"
}

func (c *cond) line() string {
	switch c.kind {
	case condLeaf:
		return c.pre + strings.Join(c.items, ", ") + c.post
	case condNot:
		s := c.subs[0]
		switch {
		case s.neg != "":
			return s.neg
		case s.call:
			return "!" + s.line()
		}
		return "!(" + s.line() + ")"
	}
	parts := make([]string, len(c.subs))
	for i, s := range c.subs {
		parts[i] = s.line()
		if s.binds() < c.binds() {
			parts[i] = "(" + parts[i] + ")"
		}
	}
	return strings.Join(parts, c.operator()+" ")
}
