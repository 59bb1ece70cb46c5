package policy

// Temporary: the language is built beside this; delete this file on merge.

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/pavise-project/pavise"
	"go.yaml.in/yaml/v3"
)

type Error struct {
	File   string `json:"file,omitempty"`
	Line   int    `json:"line,omitempty"`
	Column int    `json:"column,omitempty"`
	Field  string `json:"field,omitempty"`
	Msg    string `json:"message"`
	Hint   string `json:"hint,omitempty"`
}

func (e *Error) Error() string {
	return fmt.Sprintf("%s:%d:%d: %s: %s", e.File, e.Line, e.Column, e.Field, e.Msg)
}

type Errors []*Error

func (e Errors) Error() string {
	s := make([]string, len(e))
	for i := range e {
		s[i] = e[i].Error()
	}
	return strings.Join(s, "\n")
}

type Mode string

const (
	ModeMonitor Mode = "monitor"
	ModeEnforce Mode = "enforce"
)

type State string

const (
	StateEnforced    State = "enforced"
	StateMonitored   State = "monitored"
	StateDegraded    State = "degraded"
	StateNotObserved State = "not observed"
	StateNoEffect    State = "no effect"
)

type Policy struct {
	Name     string
	Mode     Mode
	Labels   map[string]string
	Source   []byte
	Warnings []*Error
	File     string
	Line     int
	rules    []yamlRule
}

type yamlRule struct {
	Name   string
	On     []string
	When   string
	Action string
}

type Support struct {
	Rung       pavise.Rung
	Deny, Kill bool
	Missing    []Dim
	Why        string
}

type Machine struct {
	Ops                     [pavise.NumOps]Support
	LookupUser, LookupGroup func(string) (uint32, error)
}

func Parse(name string, data []byte) ([]*Policy, error) {
	var out []*Policy
	d := yaml.NewDecoder(bytes.NewReader(data))
	for {
		var y struct {
			APIVersion string `yaml:"apiVersion"`
			Kind       string
			Metadata   struct {
				Name   string
				Labels map[string]string
			}
			Spec struct {
				Mode     string
				Subject  string
				Default  map[string]string
				Fallback string
				Rules    []yamlRule
			}
		}
		if err := d.Decode(&y); errors.Is(err, io.EOF) {
			return out, nil
		} else if err != nil {
			return nil, Errors{{File: name, Line: 1, Column: 1, Field: "yaml", Msg: err.Error()}}
		}
		if y.Kind != "Policy" || y.Metadata.Name == "" {
			return nil, Errors{{File: name, Line: 1, Column: 1, Field: "kind", Msg: "not a Policy", Hint: "write kind: Policy"}}
		}
		for _, r := range y.Spec.Rules {
			for _, o := range r.On {
				if !strings.Contains(strings.Join(pavise.OpNames[:], " "), o) {
					return nil, Errors{{File: name, Line: 1, Column: 1, Field: "spec.rules.on", Msg: "unknown operation " + o, Hint: "write file.open"}}
				}
			}
		}
		src, _ := yaml.Marshal(y)
		out = append(out, &Policy{Name: y.Metadata.Name, Mode: Mode(y.Spec.Mode), Labels: y.Metadata.Labels, Source: src, rules: y.Spec.Rules, File: name, Line: 1})
	}
}

type Report struct {
	Policies []PolicyReport `json:"policies"`
}
type PolicyReport struct {
	Name     string       `json:"name"`
	Mode     Mode         `json:"mode"`
	Rules    []RuleReport `json:"rules"`
	Warnings []*Error     `json:"warnings,omitempty"`
}
type RuleReport struct {
	Rule      string        `json:"rule"`
	Op        pavise.Op     `json:"op"`
	Action    pavise.Action `json:"action"`
	Effective pavise.Action `json:"effective"`
	State     State         `json:"state"`
	Rung      pavise.Rung   `json:"rung"`
	Why       string        `json:"why,omitempty"`
	Clauses   []string      `json:"clauses,omitempty"`
	User      []string      `json:"user,omitempty"`
	Residual  string        `json:"residual,omitempty"`
}

func Compile(set []*Policy, m *Machine) (*Image, *Report, error) {
	img, rep := &Image{}, &Report{}
	for _, p := range set {
		pr := PolicyReport{Name: p.Name, Mode: p.Mode}
		for i, r := range p.rules {
			ops := []pavise.Op{}
			for _, o := range r.On {
				for n, s := range pavise.OpNames {
					if s == o {
						ops = append(ops, pavise.Op(n))
						st := StateEnforced
						if p.Mode == "monitor" {
							st = StateMonitored
						}
						if r.Action == "deny" && p.Mode == "enforce" && !m.Ops[n].Deny {
							return nil, nil, Errors{{File: p.Name, Line: 1, Column: 1, Field: r.Name, Msg: "this machine cannot deny " + s}}
						}
						pr.Rules = append(pr.Rules, RuleReport{Rule: r.Name, Op: pavise.Op(n), State: st, Rung: m.Ops[n].Rung})
					}
				}
			}
			rule := Rule{Policy: p.Name, Name: r.Name, Index: i, Ops: ops, Monitor: p.Mode == "monitor"}
			if strings.HasPrefix(r.When, "residual ") {
				rule.Residual, _ = CompileWhere(r.When[9:])
			}
			img.Rules = append(img.Rules, rule)
		}
		rep.Policies = append(rep.Policies, pr)
	}
	return img, rep, nil
}

type Expr struct{ field, value string }

func CompileWhere(src string) (*Expr, error) {
	f, v, ok := strings.Cut(src, " == ")
	if !ok {
		return nil, Errors{{File: "where", Line: 1, Column: 1, Msg: "cannot read " + src}}
	}
	return &Expr{f, strings.Trim(v, `"`)}, nil
}

func (x *Expr) Eval(e *pavise.Event) (bool, error) {
	switch x.field {
	case "file.path":
		return e.File.Path == x.value, nil
	case "op":
		return e.Op.String() == x.value, nil
	}
	return false, nil
}

type Stats struct{ States, Leaves, Rows, Words, Rules, Bytes int }

func (img *Image) Stats() Stats { return Stats{Rules: len(img.Rules)} }

type Explanation struct {
	Report *Report `json:"report"`
	Normal string  `json:"normal"`
	Atoms  int     `json:"atoms"`
	Image  *Image  `json:"-"`
}

func Explain(set []*Policy, m *Machine) (*Explanation, error) {
	img, r, err := Compile(set, m)
	if err != nil {
		return nil, err
	}
	return &Explanation{Report: r, Image: img}, nil
}

type Facts struct {
	Values  [NumDims][]byte
	Aliases [][]byte
}

const NoRule = ^uint32(0)

type Verdict struct {
	Action  pavise.Action
	Monitor bool
	Rule    uint32
	Rules   [4]uint32
	Matched int
}

func (img *Image) Judge(op pavise.Op, facts *Facts) Verdict { return Verdict{} }
