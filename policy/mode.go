package policy

import (
	"bytes"
	"fmt"
	"reflect"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// WithMode is the policy in another mode: the same but for that word, which its source gets too, so that what is shown is what judges. Its lines stay
// those of its file, which is not changed. The policy itself is returned when it has the mode; the error is an Errors.
func (p *Policy) WithMode(m Mode) (*Policy, error) {
	if p.Mode == m {
		return p, nil
	}
	src := sourceWithMode(p.Source, m)
	if src == nil {
		return nil, Errors{{
			File: p.File, Line: p.Line, Column: 1, Field: "spec.mode", Msg: "is written in a way that cannot be changed in place",
			Hint: fmt.Sprintf("write \"mode: %s\" on a line of its own, and apply the file", m),
		}}
	}
	out := *p
	out.Mode, out.Source, out.memo = m, src, new(memo)
	return &out, nil
}

// sourceWithMode writes m into a policy's source, where its mode stands or at the beginning of its spec; nil when it cannot without touching anything else.
func sourceWithMode(src []byte, m Mode) []byte {
	var doc yaml.Node
	if err := yaml.Unmarshal(src, &doc); err != nil || len(doc.Content) != 1 {
		return nil
	}
	spec := valueOf(doc.Content[0], "spec")
	if spec == nil {
		return nil
	}
	at, old, text := offset(src, spec), "", "mode: "+string(m)
	switch mode := valueOf(spec, "mode"); {
	case mode != nil:
		at, old, text = offset(src, mode), mode.Value, string(m)
		if q := src[at : at+1]; mode.Style&(yaml.DoubleQuotedStyle|yaml.SingleQuotedStyle) != 0 {
			old, text = string(q)+old+string(q), string(q)+text+string(q)
		}
	case spec.Style&yaml.FlowStyle != 0:
		old, text = "{", "{"+text+", "
	default:
		indent := src[bytes.LastIndexByte(src[:at], '\n')+1 : at]
		text += "\n" + string(indent)
	}
	if !bytes.HasPrefix(src[at:], []byte(old)) {
		return nil
	}
	out := bytes.Join([][]byte{src[:at], []byte(text), src[at+len(old):]}, nil)
	want, got := contents(src), contents(out)
	if want == nil {
		return nil
	}
	want["spec"].(map[string]any)["mode"] = string(m)
	if !reflect.DeepEqual(want, got) {
		return nil
	}
	return out
}

func valueOf(n *yaml.Node, key string) *yaml.Node {
	for i := 0; n.Kind == yaml.MappingNode && i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return n.Content[i+1]
		}
	}
	return nil
}

// offset is where a node begins: its column counts characters.
func offset(src []byte, n *yaml.Node) int {
	at := 0
	for range n.Line - 1 {
		at += bytes.IndexByte(src[at:], '\n') + 1
	}
	for range n.Column - 1 {
		_, size := utf8.DecodeRune(src[at:])
		at += size
	}
	return at
}

// contents is what a policy's source says, nil when that is no policy.
func contents(src []byte) map[string]any {
	var out map[string]any
	if err := yaml.Unmarshal(src, &out); err != nil {
		return nil
	}
	if _, ok := out["spec"].(map[string]any); !ok {
		return nil
	}
	return out
}
