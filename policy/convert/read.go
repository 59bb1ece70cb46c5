package convert

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"

	"github.com/pavise-project/pavise/policy"
)

// The limits of a file.
const (
	maxFile  = 1 << 20 // bytes
	maxNodes = 1 << 17 // that are looked at, an alias's each time
	maxDepth = 32
	maxErrs  = 100
)

// value is a part of a document and the path of fields that leads to it.
type value struct {
	n     *yaml.Node
	field string
	file  string
}

func (v value) ok() bool { return v.n != nil }

// key is the value's place under key.
func (v value) key(key string) string {
	if v.field == "" {
		return key
	}
	return v.field + "." + key
}

// reader takes documents apart and gathers what is wrong with them.
type reader struct {
	file  string
	errs  policy.Errors
	nodes int
}

func (r *reader) fail(v value, hint, format string, args ...any) {
	if len(r.errs) == maxErrs {
		return
	}
	e := &policy.Error{File: r.file, Field: oneLine(v.field), Hint: hint, Msg: fmt.Sprintf(format, args...)}
	if v.n != nil {
		e.Line, e.Column = v.n.Line, v.n.Column
	}
	r.errs = append(r.errs, e)
}

// documents returns the roots of the documents that are not empty.
func (r *reader) documents(data []byte) (roots []value) {
	switch {
	case len(data) > maxFile:
		r.fail(value{}, "split it", "file of %d bytes is too long: the limit is %d", len(data), maxFile)
		return nil
	case !utf8.Valid(data):
		r.fail(value{}, "", "file is not UTF-8")
		return nil
	}
	for i, l := range strings.Split(string(data), "\n") { // YAML would count these as lines, and editors do not
		if at := strings.IndexAny(strings.TrimSuffix(l, "\r"), "\r\u0085\u2028\u2029"); at >= 0 {
			r.fail(value{n: &yaml.Node{Line: i + 1, Column: utf8.RuneCountInString(l[:at]) + 1}}, "end lines with a newline", "unusual line break")
			return nil
		}
	}
	defer func() {
		if e := recover(); e != nil { // the YAML reader's own fault: a bad file all the same
			r.fail(value{}, "", "bad YAML")
			roots = nil
		}
	}()
	dec := yaml.NewDecoder(bytes.NewReader(data))
	for {
		var doc yaml.Node
		if err := dec.Decode(&doc); err != nil {
			if !errors.Is(err, io.EOF) {
				r.yamlError(err)
			}
			return roots
		}
		if doc.Kind != yaml.DocumentNode || len(doc.Content) != 1 {
			continue
		}
		if root := doc.Content[0]; root.Tag != "!!null" && r.sound(root, 1) {
			roots = append(roots, value{n: root, file: r.file})
		}
	}
}

func (r *reader) yamlError(err error) {
	msg := strings.TrimPrefix(err.Error(), "yaml: ")
	n := &yaml.Node{}
	if _, e := fmt.Sscanf(msg, "line %d:", &n.Line); e == nil {
		_, msg, _ = strings.Cut(msg, ": ")
		n.Column = 1
	}
	msg, _, _ = strings.Cut(msg, "\n")
	r.fail(value{n: n}, "", "bad YAML: %s", msg)
}

// sound reports whether the tree below n is a finite one without duplicate keys.
func (r *reader) sound(n *yaml.Node, depth int) bool {
	r.nodes++
	switch {
	case r.nodes > maxNodes:
		r.fail(value{n: n}, "split it, or write its aliases out", "more than %d parts", maxNodes)
		return false
	case depth > maxDepth:
		r.fail(value{n: n}, "", "nested more than %d deep", maxDepth)
		return false
	case n.Kind == yaml.AliasNode:
		return r.sound(n.Alias, depth+1)
	}
	if n.Kind == yaml.MappingNode {
		seen := map[string]int{}
		for i := 0; i+1 < len(n.Content); i += 2 {
			k := n.Content[i]
			if k.Kind != yaml.ScalarNode || k.Tag == "!!merge" {
				r.fail(value{n: k}, "write it out", "key is not a plain word")
				return false
			}
			if first, dup := seen[k.Value]; dup {
				r.fail(value{n: k}, "", "duplicate key %q: the first is at line %d", k.Value, first)
				return false
			}
			seen[k.Value] = k.Line
		}
	}
	for _, c := range n.Content {
		if !r.sound(c, depth+1) {
			return false
		}
	}
	return true
}

// object is a mapping whose keys are taken one by one, so that what nobody took can be told.
type object struct {
	value
	r     *reader
	items []item
}

type item struct {
	key   string
	value value
	taken bool
}

func resolve(n *yaml.Node) *yaml.Node {
	for n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	return n
}

// object takes v apart; what is no mapping is an error and an empty object.
func (r *reader) object(v value) *object {
	o := &object{value: v, r: r}
	n := resolve(v.n)
	if n.Kind != yaml.MappingNode {
		r.fail(v, "", "want a mapping, not %s", nodeKind(n))
		return o
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, e := n.Content[i], resolve(n.Content[i+1])
		if e.Tag == "!!null" && e.Kind == yaml.ScalarNode {
			continue // as if it were not there
		}
		at := n.Content[i+1]
		if e.Kind != yaml.ScalarNode { // the key's line is where one looks
			at = &yaml.Node{Kind: yaml.AliasNode, Alias: e, Line: k.Line, Column: k.Column}
		}
		o.items = append(o.items, item{key: k.Value, value: value{n: at, field: v.key(k.Value), file: v.file}})
	}
	return o
}

// take returns the value under key, and marks it as dealt with.
func (o *object) take(key string) value {
	for i := range o.items {
		if o.items[i].key == key {
			o.items[i].taken = true
			return o.items[i].value
		}
	}
	return value{field: o.key(key), file: o.file}
}

// rest is what nobody took.
func (o *object) rest() (vs []value) {
	for _, it := range o.items {
		if !it.taken {
			vs = append(vs, it.value)
		}
	}
	return vs
}

// child is the mapping under key, an empty one when there is none.
func (o *object) child(key string) (*object, bool) {
	v := o.take(key)
	if !v.ok() {
		return &object{value: v, r: o.r}, false
	}
	return o.r.object(v), true
}

// list is the list under key.
func (o *object) list(key string) (vs []value) {
	v := o.take(key)
	if !v.ok() {
		return nil
	}
	return o.r.list(v)
}

func (r *reader) list(v value) (vs []value) {
	n := resolve(v.n)
	if n.Kind != yaml.SequenceNode {
		r.fail(v, "begin each of its items with \"- \"", "want a list, not %s", nodeKind(n))
		return nil
	}
	for i, c := range n.Content {
		vs = append(vs, value{n: c, field: fmt.Sprintf("%s[%d]", v.field, i), file: v.file})
	}
	return vs
}

// objects is the list of mappings under key.
func (o *object) objects(key string) (os []*object) {
	for _, v := range o.list(key) {
		os = append(os, o.r.object(v))
	}
	return os
}

// scalar is a value's text, whatever its type: values are often written without quotes.
func (r *reader) scalar(v value) string {
	n := resolve(v.n)
	if n.Kind != yaml.ScalarNode {
		r.fail(v, "", "want a word, not %s", nodeKind(n))
		return ""
	}
	return n.Value
}

// scalarOf is the same of a value that may be missing.
func (r *reader) scalarOf(v value) string {
	if !v.ok() {
		return ""
	}
	return r.scalar(v)
}

func (o *object) text(key string) string { return o.r.scalarOf(o.take(key)) }

// texts is the list of words under key.
func (o *object) texts(key string) (out []string) {
	for _, v := range o.list(key) {
		out = append(out, o.r.scalar(v))
	}
	return out
}

func (o *object) flag(key string) bool {
	v := o.take(key)
	if !v.ok() {
		return false
	}
	b, err := strconv.ParseBool(o.r.scalar(v))
	if err != nil {
		o.r.fail(v, "write true or false", "want true or false, not %q", resolve(v.n).Value)
	}
	return b
}

func (o *object) number(key string) (n int64, ok bool) {
	v := o.take(key)
	if !v.ok() {
		return 0, false
	}
	n, err := strconv.ParseInt(o.r.scalar(v), 0, 64)
	if err != nil {
		o.r.fail(v, "", "want a number, not %q", resolve(v.n).Value)
		return 0, false
	}
	return n, true
}

// textMap is the mapping of words under key, in its order.
func (o *object) textMap(key string) (out [][2]string) {
	m, ok := o.child(key)
	if !ok {
		return nil
	}
	for i := range m.items {
		m.items[i].taken = true
		out = append(out, [2]string{m.items[i].key, o.r.scalar(m.items[i].value)})
	}
	return out
}

func nodeKind(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	case yaml.ScalarNode:
		if n.Tag == "!!null" {
			return "nothing"
		}
		return fmt.Sprintf("%q", n.Value)
	}
	return "something else"
}
