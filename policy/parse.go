package policy

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	slash "path"
	"slices"
	"sort"
	"strings"
	"sync"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"

	"github.com/pavise-project/pavise"
)

// APIVersion and Kind are those of the policies of this version.
const (
	APIVersion = "pavise.dev/v1alpha1"
	Kind       = "Policy"
)

// The limits of a file.
const (
	maxFile  = 1 << 20 // bytes
	maxDepth = 16      // of mappings and sequences
	maxName  = 63
	maxErrs  = 100 // that are reported
)

// Mode says whether a policy acts.
type Mode string

// The modes.
const (
	ModeMonitor Mode = "monitor" // what the policy would do is recorded
	ModeEnforce Mode = "enforce"
)

// Fallback says what becomes of a deny that this machine cannot enforce.
type Fallback string

// The fallbacks.
const (
	FallbackRefuse  Fallback = "refuse"  // the policy is not accepted
	FallbackKill    Fallback = "kill"    // the process is killed
	FallbackMonitor Fallback = "monitor" // the rule is only recorded, and shown as degraded
)

// Established says what becomes of connections that were there when the policies changed.
type Established string

// What can become of them.
const (
	EstablishedKeep    Established = "keep"    // they go on
	EstablishedRecheck Established = "recheck" // what the policy would not let begin now is ended
)

// Policy is one parsed and checked policy. It is not changed after Parse, and may be shared.
type Policy struct {
	Name        string
	Labels      map[string]string
	Annotations map[string]string
	Mode        Mode
	Fallback    Fallback
	Established Established
	Subject     *Condition  // nil: every process
	Default     []pavise.Op // operations that are denied unless a rule allows them, in order of their numbers
	Rules       []RuleSpec
	Tests       []Test
	SetFiles    map[string][]byte // the contents of the set files that it names, by their names
	Source      []byte            // the document as written, but for what WithMode changed
	File        string
	Line        int // of the document's first line
	Warnings    []*Error

	defaultLines map[pavise.Op][2]int
	*memo
}

// memo is what was found out about a policy, so that it is not found out again at the next change of another.
type memo struct {
	mu     sync.Mutex
	cache  *normalPolicy // the last normal form, by machine
	review *review       // the last one, by machine

	results []TestResult // of its tests
}

// RuleSpec is one rule of a policy, as written.
type RuleSpec struct {
	Name     string
	On       []pavise.Op
	When     *Condition // nil: always
	Action   pavise.Action
	Severity string
	Message  string
	Tags     []string

	line, col int
}

// Error is one fault of a policy and its place. Line and Column are from 1, and 0 when there is no place.
type Error struct {
	File   string `json:"file,omitempty"`
	Line   int    `json:"line,omitempty"`
	Column int    `json:"column,omitempty"`
	Field  string `json:"field,omitempty"`
	Msg    string `json:"message"`
	Hint   string `json:"hint,omitempty"`
}

func (e *Error) Error() string {
	var b strings.Builder
	if e.File != "" {
		b.WriteString(e.File)
		b.WriteByte(':')
	}
	if e.Line > 0 {
		fmt.Fprintf(&b, "%d:%d:", e.Line, e.Column)
	}
	if b.Len() > 0 {
		b.WriteByte(' ')
	}
	if e.Field != "" {
		b.WriteString(e.Field + ": ")
	}
	b.WriteString(e.Msg)
	if e.Hint != "" {
		b.WriteString("; " + e.Hint)
	}
	return b.String()
}

// Errors is every fault that was found.
type Errors []*Error

func (es Errors) Error() string {
	s := make([]string, len(es))
	for i, e := range es {
		s[i] = e.Error()
	}
	return strings.Join(s, "\n")
}

// Unwrap lets errors.As find each Error.
func (es Errors) Unwrap() []error {
	out := make([]error, len(es))
	for i, e := range es {
		out[i] = e
	}
	return out
}

func judgedOp(name string) (pavise.Op, bool) {
	for _, op := range judgedOps {
		if op.String() == name {
			return op, true
		}
	}
	return 0, false
}

// Parse reads the policies of a file, one a YAML document, and checks them. The error is an Errors with every fault;
// the policies that have none are returned with it. Name is the file's, for messages. Known is as in ParseWith.
func Parse(name string, data []byte, known ...*Policy) ([]*Policy, error) {
	return ParseWith(name, data, nil, known...)
}

// ParseWith is Parse for policies with sets: read returns the contents of a file by its name relative to the policy's own directory, always without
// ".." and not absolute. A condition that is written as it is in a known policy is not checked again, so that a change of one rule costs one rule; but those with
// sets are, for their files may have changed.
func ParseWith(name string, data []byte, read func(file string) ([]byte, error), known ...*Policy) ([]*Policy, error) {
	p := &parser{file: name, lines: splitLines(data), sets: &setFiles{read: read, dir: slash.Dir(name)}, checked: map[string]*Condition{}}
	for _, pol := range known {
		for _, c := range pol.conditions() {
			if c != nil && !c.mayName() {
				p.checked[c.Source] = c
			}
		}
	}
	switch {
	case len(data) > maxFile:
		p.fail(0, 0, "", "split it", "file of %d bytes is too long: the limit is %d", len(data), maxFile)
		return nil, p.errs
	case bytes.IndexByte(data, 0) >= 0:
		at := bytes.IndexByte(data, 0)
		line := 1 + bytes.Count(data[:at], []byte("\n"))
		p.fail(line, at-bytes.LastIndexByte(data[:at], '\n'), "", "", "file has a NUL byte")
		return nil, p.errs
	case !utf8.Valid(data):
		p.fail(0, 0, "", "", "file is not UTF-8")
		return nil, p.errs
	}
	for i, l := range p.lines { // YAML would count these as lines, and editors do not
		if at := strings.IndexAny(strings.TrimSuffix(l, "\r"), "\r\u0085\u2028\u2029"); at >= 0 {
			p.fail(i+1, utf8.RuneCountInString(l[:at])+1, "", "end lines with a newline", "unusual line break")
			return nil, p.errs
		}
	}
	var set []*Policy
	seen := map[string]int{}
	found := false
	for _, d := range documents(data) {
		root := p.decode(d)
		if root == nil {
			continue
		}
		found = true
		n := p.count
		p.sets.used = nil
		pol := p.policy(root)
		pol.SetFiles = p.sets.used
		pol.Source, pol.File, pol.Line = trimBlank(d.body), name, d.line
		if first, dup := seen[pol.Name]; dup && pol.Name != "" {
			p.fail(p.nameLine, p.nameCol, "metadata.name", "", "duplicate policy name %q: the first is at line %d", pol.Name, first)
		} else {
			seen[pol.Name] = p.nameLine
		}
		if p.count == n {
			set = append(set, pol)
		}
	}
	if !found && len(p.errs) == 0 {
		p.fail(0, 0, "", "", "file has no policy")
	}
	if len(p.errs) > 0 {
		sort.SliceStable(p.errs, func(i, j int) bool {
			a, b := p.errs[i], p.errs[j]
			if a.File != b.File { // the policy's own first, then those of sets
				return a.File == name || b.File != name && a.File < b.File
			}
			if a.Line == 0 || b.Line == 0 { // what is about the whole file last
				return a.Line > b.Line
			}
			return a.Line < b.Line || a.Line == b.Line && a.Column < b.Column
		})
		if more := p.count - len(p.errs); more > 0 {
			p.errs = append(p.errs, &Error{File: name, Msg: fmt.Sprintf("%d more errors", more)})
		}
		return set, p.errs
	}
	return set, nil
}

// document is one YAML document of a file.
type document struct {
	text []byte // with its "---" line
	body []byte // without
	line int    // of text, from 1
}

// documents splits a file at its "---" lines. Inside of a policy none can begin a line: block scalars are indented.
func documents(data []byte) []document {
	var out []document
	from, line, fromLine := 0, 1, 1
	add := func(to int) {
		text := data[from:to]
		body := text
		if isMarker(text) {
			body = text[3:]
		}
		out = append(out, document{text, body, fromLine})
	}
	for i := 0; i < len(data); {
		if i > from && isMarker(data[i:]) {
			add(i)
			from, fromLine = i, line
		}
		nl := bytes.IndexByte(data[i:], '\n')
		if nl < 0 {
			break
		}
		i += nl + 1
		line++
	}
	add(len(data))
	return out
}

// trimBlank removes blank lines before and white space after a document; its first line keeps its indentation.
func trimBlank(b []byte) []byte {
	b = bytes.TrimRight(b, " \t\r\n")
	for {
		line, rest, ok := bytes.Cut(b, []byte("\n"))
		if !ok || len(bytes.TrimSpace(line)) > 0 {
			return b
		}
		b = rest
	}
}

func isMarker(b []byte) bool {
	return bytes.HasPrefix(b, []byte("---")) && (len(b) == 3 || strings.IndexByte(" \t\r\n", b[3]) >= 0)
}

func splitLines(data []byte) []string {
	if len(data) > maxFile {
		return nil
	}
	return strings.Split(string(data), "\n")
}

// parser makes policies of YAML nodes and gathers errors.
type parser struct {
	file              string
	lines             []string
	sets              *setFiles
	errs              Errors
	count             int // of all errors
	base              int // lines before the current document
	nameLine, nameCol int
	checked           map[string]*Condition // by source
}

func (p *parser) fail(line, col int, field, hint, format string, args ...any) {
	p.report(&Error{File: p.file, Line: line, Column: col, Field: field, Msg: fmt.Sprintf(format, args...), Hint: hint})
}

// report keeps the first errors, and counts the others: a bad policy is bad after any number of them.
func (p *parser) report(e *Error) {
	if p.count++; len(p.errs) < maxErrs {
		p.errs = append(p.errs, e)
	}
}

func (p *parser) at(n *yaml.Node, field, hint, format string, args ...any) {
	p.fail(p.base+n.Line, n.Column, field, hint, format, args...)
}

// decode returns the root node of a document, nil when it is empty or bad.
func (p *parser) decode(d document) (root *yaml.Node) {
	p.base = d.line - 1
	if text := bytes.Trim(d.text, " \r\n"); len(text) == 0 || string(text) == "---" {
		return nil
	}
	defer func() {
		if r := recover(); r != nil { // the YAML reader's own fault: a bad file all the same
			p.fail(d.line, 1, "", "", "bad YAML")
			root = nil
		}
	}()
	dec := yaml.NewDecoder(bytes.NewReader(d.text))
	var doc, extra yaml.Node
	if err := dec.Decode(&doc); err != nil {
		if !errors.Is(err, io.EOF) {
			p.yamlError(d, err)
		}
		return nil
	}
	if err := dec.Decode(&extra); err == nil {
		p.at(&extra, "", "begin each document with a line \"---\"", "more than one document after a \"---\" line")
		return nil
	} else if !errors.Is(err, io.EOF) {
		p.yamlError(d, err)
		return nil
	}
	if doc.Kind != yaml.DocumentNode || len(doc.Content) != 1 {
		return nil
	}
	root = doc.Content[0]
	if root.Kind == yaml.ScalarNode && root.Tag == "!!null" {
		return nil
	}
	n := p.count
	p.plain(root, 1)
	if p.count > n {
		return nil
	}
	return root
}

// yamlError reports an error of the YAML reader, whose lines are in its text.
func (p *parser) yamlError(d document, err error) {
	msg := strings.TrimPrefix(err.Error(), "yaml: ")
	line := 1
	if _, e := fmt.Sscanf(msg, "line %d:", &line); e == nil {
		_, msg, _ = strings.Cut(msg, ": ")
	}
	if i := strings.IndexByte(msg, '\n'); i >= 0 {
		msg = msg[:i]
	}
	p.fail(min(d.line-1+max(1, line), len(p.lines)), 1, "", "", "bad YAML: %s", msg)
}

// plain refuses what policies do without: anchors, aliases, tags, deep nesting, duplicate keys.
func (p *parser) plain(n *yaml.Node, depth int) {
	switch {
	case depth > maxDepth:
		p.at(n, "", "", "nested more than %d deep", maxDepth)
		return
	case n.Kind == yaml.AliasNode:
		p.at(n, "", "write it out", "YAML aliases are not accepted")
		return
	case n.Anchor != "":
		p.at(n, "", "write it out", "YAML anchors are not accepted")
		return
	case n.Style&yaml.TaggedStyle != 0:
		p.at(n, "", "", "YAML tags are not accepted")
		return
	}
	if n.Kind == yaml.MappingNode {
		seen := map[string]int{}
		for i := 0; i+1 < len(n.Content); i += 2 {
			k := n.Content[i]
			if k.Kind != yaml.ScalarNode {
				continue
			}
			if first, dup := seen[k.Value]; dup {
				p.at(k, "", "", "duplicate key %q: the first is at line %d", k.Value, p.base+first)
				continue
			}
			seen[k.Value] = k.Line
		}
	}
	if n.Kind == yaml.ScalarNode && strings.IndexByte(n.Value, 0) >= 0 {
		p.at(n, "", "", "value has a NUL byte")
	}
	for _, c := range n.Content {
		p.plain(c, depth+1)
	}
}

// mapping calls each for the known keys of n, and reports the others.
func (p *parser) mapping(n *yaml.Node, field string, keys map[string]func(v *yaml.Node, field string)) {
	if n.Kind != yaml.MappingNode {
		p.at(n, field, "", "want a mapping, not %s", nodeKind(n))
		return
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		path := k.Value
		if field != "" {
			path = field + "." + path
		}
		if f := keys[k.Value]; f != nil && k.Kind == yaml.ScalarNode {
			f(v, path)
			continue
		}
		var names []string
		for name := range keys {
			names = append(names, name)
		}
		sort.Strings(names)
		hint := "it is one of " + strings.Join(names, ", ")
		if near := nearest(k.Value, names); near != "" {
			hint = fmt.Sprintf("did you mean %q?", near)
		}
		p.at(k, field, hint, "unknown field %q", k.Value)
	}
}

func nodeKind(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	case yaml.ScalarNode:
		switch n.Tag {
		case "!!null":
			return "nothing"
		case "!!int", "!!float":
			return "the number " + n.Value
		case "!!bool":
			return "the boolean " + n.Value
		case "!!timestamp":
			return "the date " + n.Value
		}
		return "a string"
	}
	return "something else"
}

// text reads a string.
func (p *parser) text(v *yaml.Node, field string) (string, bool) {
	if v.Kind != yaml.ScalarNode || v.Tag != "!!str" {
		hint := ""
		if v.Kind == yaml.ScalarNode && v.Tag != "!!null" {
			hint = "put it in quotes"
		}
		p.at(v, field, hint, "want a string, not %s", nodeKind(v))
		return "", false
	}
	return v.Value, true
}

// choice reads one of a few words.
func (p *parser) choice(v *yaml.Node, field string, of ...string) string {
	s, ok := p.text(v, field)
	if !ok {
		return ""
	}
	for _, o := range of {
		if s == o {
			return s
		}
	}
	p.at(v, field, "it is one of "+strings.Join(of, ", "), "unknown value %q", s)
	return ""
}

func (p *parser) texts(v *yaml.Node, field string) []string {
	if v.Kind != yaml.SequenceNode {
		p.at(v, field, "write [a, b]", "want a list of strings, not %s", nodeKind(v))
		return nil
	}
	var out []string
	for i, e := range v.Content {
		if s, ok := p.text(e, fmt.Sprintf("%s[%d]", field, i)); ok {
			out = append(out, s)
		}
	}
	return out
}

func (p *parser) textMap(v *yaml.Node, field string) map[string]string {
	if v.Kind != yaml.MappingNode {
		p.at(v, field, "", "want a mapping of strings, not %s", nodeKind(v))
		return nil
	}
	out := map[string]string{}
	for i := 0; i+1 < len(v.Content); i += 2 {
		k := v.Content[i]
		if s, ok := p.text(v.Content[i+1], field+"."+k.Value); ok {
			out[k.Value] = s
		}
	}
	return out
}

// name reads the name of a policy or rule.
func (p *parser) name(v *yaml.Node, field string) string {
	s, ok := p.text(v, field)
	if !ok {
		return ""
	}
	good := len(s) > 0 && len(s) <= maxName && s[0] != '-' && s[len(s)-1] != '-'
	for i := range len(s) {
		good = good && (s[i] == '-' || s[i] >= '0' && s[i] <= '9' || s[i] >= 'a' && s[i] <= 'z')
	}
	if !good {
		p.at(v, field, fmt.Sprintf("names are 1 to %d lower-case letters, digits and inner \"-\"", maxName), "bad name %q", s)
	}
	return s
}

// ops reads an operation, or a whole group as "file.*".
func (p *parser) ops(v *yaml.Node, field string, s string) []pavise.Op {
	if op, ok := judgedOp(s); ok {
		return []pavise.Op{op}
	}
	if group, ok := strings.CutSuffix(s, ".*"); ok {
		if ops := opsOfGroup[group]; ops != nil {
			return ops
		}
		hint := "the groups are " + strings.Join(opGroups, ", ")
		if near := nearest(group, opGroups); near != "" {
			hint = fmt.Sprintf("did you mean \"%s.*\"? %s", near, hint)
		}
		p.at(v, field, hint, "unknown group of operations %q", s)
		return nil
	}
	var names []string
	for _, op := range judgedOps {
		names = append(names, op.String())
	}
	hint := "the operations are " + strings.Join(names, ", ")
	if near := nearest(s, names); near != "" {
		hint = fmt.Sprintf("did you mean %q?", near)
	} else if opsOfGroup[s] != nil {
		hint = fmt.Sprintf("write \"%s.*\" for all of them", s)
	}
	p.at(v, field, hint, "unknown operation %q", s)
	return nil
}

// condition reads and checks a CEL expression.
func (p *parser) condition(v *yaml.Node, field string, ops []pavise.Op, subject bool) *Condition {
	if v.Kind == yaml.ScalarNode && v.Tag == "!!bool" && (v.Value == "true" || v.Value == "false") {
		v.Tag = "!!str" // a constant
	}
	src, ok := p.text(v, field)
	if !ok {
		return nil
	}
	at := place{file: p.file, field: field, line: p.base + v.Line, col: v.Column, locate: p.locator(v)}
	c, problems := p.checked[src], []problem(nil)
	if c == nil {
		c, problems = checkWith(src, true, p.sets)
		for _, e := range p.sets.faults {
			p.report(e)
		}
		p.sets.faults = nil
		if c != nil && !c.mayName() {
			c.sets = nil // each copy has those of its file
			p.checked[src] = c
		}
	}
	if c != nil {
		problems = c.checkOps(ops, subject)
	}
	if c != nil && c.rate != nil && subject {
		problems = append(problems, problem{1, 1, "a rate counts what a rule matches, not what a process is", "move it into a rule's when"})
	}
	for _, pr := range problems {
		p.report(at.error(pr))
	}
	if c == nil {
		return nil
	}
	here := *c
	here.at, here.sets = at, p.sets
	return &here
}

// policy reads one policy.
func (p *parser) policy(root *yaml.Node) *Policy {
	pol := &Policy{Mode: ModeMonitor, Fallback: FallbackRefuse, Established: EstablishedKeep, defaultLines: map[pavise.Op][2]int{}, memo: new(memo)}
	var apiVersion, kind string
	var spec, rules, tests, named, established *yaml.Node
	p.nameLine, p.nameCol = p.base+root.Line, root.Column
	p.mapping(root, "", map[string]func(*yaml.Node, string){
		"apiVersion": func(v *yaml.Node, f string) {
			if apiVersion, _ = p.text(v, f); apiVersion != "" && apiVersion != APIVersion {
				p.at(v, f, "this version reads "+APIVersion, "unknown value %q", apiVersion)
			}
		},
		"kind": func(v *yaml.Node, f string) { kind = p.choice(v, f, Kind) },
		"metadata": func(v *yaml.Node, f string) {
			p.mapping(v, f, map[string]func(*yaml.Node, string){
				"name": func(v *yaml.Node, f string) {
					named = v
					p.nameLine, p.nameCol = p.base+v.Line, v.Column
					pol.Name = p.name(v, f)
				},
				"labels":      func(v *yaml.Node, f string) { pol.Labels = p.textMap(v, f) },
				"annotations": func(v *yaml.Node, f string) { pol.Annotations = p.textMap(v, f) },
			})
		},
		"spec": func(v *yaml.Node, _ string) { spec = v },
	})
	if root.Kind != yaml.MappingNode {
		return pol
	}
	missing := func(ok bool, field, hint string) {
		if !ok {
			p.at(root, field, hint, "is missing")
		}
	}
	missing(apiVersion != "" || hasKey(root, "apiVersion"), "apiVersion", "write "+APIVersion)
	missing(kind != "" || hasKey(root, "kind"), "kind", "write "+Kind)
	missing(named != nil, "metadata.name", "")
	missing(spec != nil, "spec", "")
	if spec == nil {
		return pol
	}
	p.mapping(spec, "spec", map[string]func(*yaml.Node, string){
		"mode": func(v *yaml.Node, f string) {
			if s := p.choice(v, f, string(ModeMonitor), string(ModeEnforce)); s != "" {
				pol.Mode = Mode(s)
			}
		},
		"fallback": func(v *yaml.Node, f string) {
			if s := p.choice(v, f, string(FallbackRefuse), string(FallbackKill), string(FallbackMonitor)); s != "" {
				pol.Fallback = Fallback(s)
			}
		},
		"established": func(v *yaml.Node, f string) {
			if s := p.choice(v, f, string(EstablishedKeep), string(EstablishedRecheck)); s != "" {
				pol.Established, established = Established(s), v
			}
		},
		"subject": func(v *yaml.Node, f string) { pol.Subject = p.condition(v, f, nil, true) },
		"default": func(v *yaml.Node, f string) { p.defaults(pol, v, f) },
		"rules":   func(v *yaml.Node, _ string) { rules = v },
		"tests":   func(v *yaml.Node, _ string) { tests = v },
	})
	if rules != nil {
		p.rules(pol, rules)
	}
	if tests != nil {
		p.tests(pol, tests)
	}
	if spec.Kind == yaml.MappingNode && (rules == nil || len(rules.Content) == 0 && rules.Kind == yaml.SequenceNode) && len(pol.Default) == 0 {
		p.at(spec, "spec", "add rules or a default", "policy asks for nothing")
	}
	p.warn(pol)
	if pol.Established == EstablishedRecheck && p.count == 0 && !pol.endsEstablished() {
		pol.Warnings = append(pol.Warnings, &Error{
			File: p.file, Line: p.base + established.Line, Column: established.Column, Field: "spec.established",
			Msg:  "recheck has no effect: no rule denies net.connect or net.accept, by which connections that are there are judged",
			Hint: "add a rule or a default for one of them, or write keep",
		})
	}
	return pol
}

func hasKey(n *yaml.Node, key string) bool {
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return true
		}
	}
	return false
}

func (p *parser) defaults(pol *Policy, v *yaml.Node, field string) {
	if v.Kind != yaml.MappingNode {
		p.at(v, field, "write {file.open: deny}", "want a mapping of operations, not %s", nodeKind(v))
		return
	}
	for i := 0; i+1 < len(v.Content); i += 2 {
		k, d := v.Content[i], v.Content[i+1]
		ops := p.ops(k, field, k.Value)
		if s, isText := p.text(d, field+"."+k.Value); isText && s != "deny" {
			hint := "it is deny"
			if s == "allow" {
				hint = "leave it out: what no rule denies is allowed"
			}
			p.at(d, field+"."+k.Value, hint, "unknown value %q", s)
		}
		for _, op := range ops {
			if _, dup := pol.defaultLines[op]; dup {
				p.at(k, field, "", "duplicate operation %q", op)
				continue
			}
			pol.Default = append(pol.Default, op)
			pol.defaultLines[op] = [2]int{p.base + k.Line, k.Column}
		}
	}
	sort.Slice(pol.Default, func(i, j int) bool { return pol.Default[i] < pol.Default[j] })
}

func (p *parser) rules(pol *Policy, v *yaml.Node) {
	if v.Kind != yaml.SequenceNode {
		p.at(v, "spec.rules", "begin each rule with \"- name:\"", "want a list of rules, not %s", nodeKind(v))
		return
	}
	seen := map[string]int{}
	for i, n := range v.Content {
		field := fmt.Sprintf("spec.rules[%d]", i)
		r := RuleSpec{Severity: "medium", line: p.base + n.Line, col: n.Column}
		var when, on, name, action *yaml.Node
		p.mapping(n, field, map[string]func(*yaml.Node, string){
			"name": func(v *yaml.Node, f string) { name, r.Name = v, p.name(v, f) },
			"on": func(v *yaml.Node, f string) {
				on = v
				for j, s := range p.texts(v, f) {
					at, f := v.Content[min(j, len(v.Content)-1)], fmt.Sprintf("%s[%d]", f, j)
					for _, op := range p.ops(at, f, s) {
						if slices.Contains(r.On, op) {
							p.at(at, f, "", "duplicate operation %q", op)
							continue
						}
						r.On = append(r.On, op)
					}
				}
				if v.Kind == yaml.SequenceNode && len(v.Content) == 0 {
					p.at(v, f, "write [file.open]", "is empty: the rule is about no operation")
				}
			},
			"when": func(v *yaml.Node, _ string) { when = v },
			"action": func(v *yaml.Node, f string) {
				action = v
				switch p.choice(v, f, "allow", "audit", "deny", "kill") {
				case "allow":
					r.Action = pavise.ActionAllow
				case "audit":
					r.Action = pavise.ActionAudit
				case "deny":
					r.Action = pavise.ActionDeny
				case "kill":
					r.Action = pavise.ActionKill
				}
			},
			"severity": func(v *yaml.Node, f string) {
				if s := p.choice(v, f, "low", "medium", "high", "critical"); s != "" {
					r.Severity = s
				}
			},
			"message": func(v *yaml.Node, f string) { r.Message, _ = p.text(v, f) },
			"tags":    func(v *yaml.Node, f string) { r.Tags = p.texts(v, f) },
		})
		if n.Kind != yaml.MappingNode {
			continue
		}
		if name == nil {
			p.at(n, field+".name", "", "is missing")
		} else if first, dup := seen[r.Name]; dup {
			p.at(name, field+".name", "", "duplicate rule name %q: the first is at line %d", r.Name, first)
		} else {
			seen[r.Name] = p.base + name.Line
		}
		if on == nil {
			p.at(n, field+".on", "write [file.open]", "is missing")
		}
		if action == nil {
			p.at(n, field+".action", "it is one of allow, audit, deny, kill", "is missing")
		}
		if when != nil {
			r.When = p.condition(when, field+".when", r.On, false)
			if r.When != nil && r.When.rate != nil && r.Action == pavise.ActionAllow {
				p.at(when, field+".when", "deny or kill what comes too often", "an allow rule has no rate")
			}
		}
		pol.Rules = append(pol.Rules, r)
	}
}

// warn notes what is accepted and probably not meant.
func (p *parser) warn(pol *Policy) {
	add := func(line, col int, field, hint, format string, args ...any) {
		pol.Warnings = append(pol.Warnings, &Error{File: p.file, Line: line, Column: col, Field: field, Msg: fmt.Sprintf(format, args...), Hint: hint})
	}
	for i := range pol.Rules {
		r := &pol.Rules[i]
		field := fmt.Sprintf("spec.rules[%d]", i)
		for _, op := range r.On {
			if r.Action == pavise.ActionAllow && !slices.Contains(pol.Default, op) {
				add(r.line, r.col, field+".action", fmt.Sprintf("add default: {%s: deny}, or remove the rule", op), "allow has no effect: the policy has no default for %s", op)
			}
		}
		if pol.Subject == nil && r.When == nil && (r.Action == pavise.ActionDeny || r.Action == pavise.ActionKill) {
			add(r.line, r.col, field, "add a subject or a when", "rule %q is about every process and every %s", r.Name, opList(r.On))
		}
	}
	if pol.Subject == nil {
		for _, op := range pol.Default {
			at := pol.defaultLines[op]
			add(at[0], at[1], "spec.default."+op.String(), "add a subject", "the default is about every process")
		}
	}
	for _, c := range pol.conditions() {
		if c == nil {
			continue
		}
		for _, w := range c.warn {
			pol.Warnings = append(pol.Warnings, c.at.error(w))
		}
		seen := map[string]bool{}
		for _, u := range c.uses {
			if u.field.Void && !seen[u.field.Name] {
				seen[u.field.Name] = true
				line, col := c.start(u.expr)
				pol.Warnings = append(pol.Warnings, c.at.error(problem{line, col, fmt.Sprintf("nothing in this version fills %s: it is always empty", u.field.Name), ""}))
			}
		}
	}
}

// locator maps a line and column in the value of a scalar to those in the file. It follows the value through the
// text: exact for plain, quoted and literal scalars, and but for the folded white space in the others.
func (p *parser) locator(n *yaml.Node) func(line, col int) (int, int) {
	line0, col0 := p.base+n.Line, n.Column
	lines, value, style := p.lines, n.Value, n.Style
	return func(line, col int) (int, int) {
		r := &reader{lines: lines, line: line0 - 1}
		if r.line >= len(lines) {
			return line0, col0
		}
		r.row = []rune(lines[r.line])
		r.col = col0 - 1
		block := style&(yaml.LiteralStyle|yaml.FoldedStyle) != 0
		switch {
		case block:
			if !r.nextLine() {
				return line0, col0
			}
		case style&(yaml.DoubleQuotedStyle|yaml.SingleQuotedStyle) != 0:
			r.col++
		}
		l, c := 1, 1
		for _, ch := range value {
			space := ch == ' ' || ch == '\n' || ch == '\t'
			if !space && !r.skipSpace() {
				return line0, col0
			}
			if l == line && c >= col && !space || l > line {
				return r.line + 1, r.col + 1
			}
			if ch == '\n' {
				l, c = l+1, 1
			} else {
				c++
			}
			if space {
				continue
			}
			if !r.take(ch, style) {
				return line0, col0
			}
		}
		return r.line + 1, r.col + 1 // the end
	}
}

// reader walks over the text of a file.
type reader struct {
	lines     []string
	row       []rune
	line, col int
}

func (r *reader) nextLine() bool {
	if r.line+1 >= len(r.lines) {
		return false
	}
	r.line++
	r.row, r.col = []rune(r.lines[r.line]), 0
	return true
}

func (r *reader) skipSpace() bool {
	for {
		for r.col < len(r.row) && strings.ContainsRune(" \t\r", r.row[r.col]) {
			r.col++
		}
		if r.col < len(r.row) {
			return true
		}
		if !r.nextLine() {
			return false
		}
	}
}

// take reads one character of the value as it is written in style.
func (r *reader) take(ch rune, style yaml.Style) bool {
	got := r.row[r.col]
	switch {
	case style&yaml.DoubleQuotedStyle != 0 && got == '\\':
		if r.col+1 >= len(r.row) { // a line continues
			return r.nextLine() && r.skipSpace() && r.take(ch, style)
		}
		switch r.row[r.col+1] {
		case 'n', 't', 'r', '0', ' ', '_': // white space of the value, which has no place
			r.col += 2
			return r.skipSpace() && r.take(ch, style)
		case 'x':
			r.col += 4
		case 'u':
			r.col += 6
		case 'U':
			r.col += 10
		default:
			r.col += 2
		}
		return true
	case style&yaml.SingleQuotedStyle != 0 && got == '\'':
		r.col += 2
		return true
	case got != ch:
		return false
	}
	r.col++
	return true
}
