package learn

import (
	"bytes"
	"errors"
	"fmt"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/pavise-project/pavise/policy"
)

// Update adds what a policy would have denied to the file that it stands in: rules below its own, and nothing else of the file changes. Acts that the policy
// allows, or says something else of, are passed over. It fails when the file is not one policy.
func Update(name string, text []byte, acts []*Act, rare bool) (out []byte, l *Learned, err error) {
	ps, err := policy.Parse(name, text)
	if err != nil {
		return nil, nil, err
	}
	if len(ps) != 1 {
		return nil, nil, fmt.Errorf("update %s: it has %d policies: put the one that is to be updated into a file of its own", name, len(ps))
	}
	p := ps[0]
	var denied []*Act
	for _, a := range acts {
		rule, err := p.Asks(a.Event)
		if err != nil {
			return nil, nil, fmt.Errorf("update %s: %w", name, err)
		}
		switch {
		case strings.HasPrefix(rule, "default/"):
			denied = append(denied, a)
		case rule != "" && a.By == "":
			flagged := *a
			flagged.By = p.Name + "/" + rule
			denied = append(denied, &flagged)
		}
	}
	l = Learn(denied, rare)
	if len(l.Rules) == 0 {
		return text, l, nil
	}
	used := map[string]bool{}
	for i := range p.Rules {
		used[p.Rules[i].Name] = true
	}
	for i := range l.Rules {
		r := &l.Rules[i]
		for base, n := r.Name, 2; used[r.Name]; n++ {
			r.Name = fmt.Sprintf("%s-%d", base, n)
		}
		used[r.Name] = true
	}
	line, margin, err := endOfRules(text)
	if err != nil {
		return nil, nil, fmt.Errorf("update %s: %w", name, err)
	}
	lines := bytes.SplitAfter(text, []byte("\n"))
	var b strings.Builder
	for _, s := range lines[:line] {
		b.Write(s)
	}
	if s := b.String(); s != "" && !strings.HasSuffix(s, "\n") {
		b.WriteString("\n")
	}
	l.writeRules(&b, margin)
	for _, s := range lines[line:] {
		b.Write(s)
	}
	out = []byte(b.String())
	if _, err := policy.Parse(name, out); err != nil {
		return nil, nil, fmt.Errorf("update %s: the rules that were learned do not fit there: %w", name, err)
	}
	return out, l, nil
}

// errStyle is about files that cannot be added to without writing them anew.
var errStyle = errors.New(`spec.rules is not a list with a "- " for each rule: write it so, or learn a new policy`)

// endOfRules finds how many lines stand before where another rule goes, and what stands before its "-".
func endOfRules(text []byte) (line int, margin string, err error) {
	var doc yaml.Node
	if err := yaml.Unmarshal(text, &doc); err != nil || len(doc.Content) == 0 {
		return 0, "", errStyle
	}
	_, spec, _ := member(doc.Content[0], "spec")
	if spec == nil {
		return 0, "", errStyle
	}
	_, rules, next := member(spec, "rules")
	if rules == nil || rules.Kind != yaml.SequenceNode || rules.Style&yaml.FlowStyle != 0 || len(rules.Content) == 0 {
		return 0, "", errStyle
	}
	lines := strings.SplitAfter(string(text), "\n")
	margin = lines[rules.Line-1][:rules.Column-1]
	if strings.Trim(margin, " ") != "" {
		return 0, "", errStyle
	}
	line = len(lines)
	if lines[line-1] == "" {
		line--
	}
	if next == nil { // spec's last; another key of the document may follow
		_, _, next = member(doc.Content[0], "spec")
	}
	if next != nil {
		line = next.Line - 1
	}
	for line > 0 { // what stands before the next key is that key's
		if s := strings.TrimSpace(lines[line-1]); s != "" && (next == nil || !strings.HasPrefix(s, "#")) {
			break
		}
		line--
	}
	return line, margin, nil
}

// member finds a key of a mapping, its value, and the key after it.
func member(m *yaml.Node, name string) (key, value, next *yaml.Node) {
	if m.Kind != yaml.MappingNode {
		return nil, nil, nil
	}
	for i := 0; i+1 < len(m.Content); i += 2 {
		if m.Content[i].Value == name {
			if i+2 < len(m.Content) {
				next = m.Content[i+2]
			}
			return m.Content[i], m.Content[i+1], next
		}
	}
	return nil, nil, nil
}
