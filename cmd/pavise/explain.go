package main

import (
	"github.com/pavise-project/pavise/agent"
	"github.com/pavise-project/pavise/policy"
	"github.com/spf13/cobra"
)

func (a *app) explain() *cobra.Command {
	return &cobra.Command{
		Use: "explain FILE...", Short: "Say what of a policy runs in the kernel, by which rung, and how big it is",
		Long: `Say, for each rule and operation, by which rung it is enforced and why not as asked; its normal form, which is what the kernel looks at,
and what is left to user space; and how big the tables are, of each policy alone and of all together. Like check, it asks the agent what
its machine can do, and needs no privileges without one.`,
		Example: "  pavise explain policies/web-shell/policy.yaml\n  pavise explain -o json web.yaml | jq '.policies[].rules[].clauses'",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			ps, err := agent.LoadPolicies(args)
			if err != nil {
				return err
			}
			if err := agent.Duplicates(ps); err != nil {
				return err
			}
			m, where := a.machine(c)
			x, err := explainSet(ps, m)
			if err != nil {
				return agent.Faults(err)
			}
			x.Machine = where
			if a.output == "json" {
				return a.json(x)
			}
			return a.explainText(x)
		},
	}
}

// explained is `pavise explain -o json`.
type explained struct {
	Machine  string            `json:"machine"`
	Policies []explainedPolicy `json:"policies"`
	// Protected are the exact paths whose inodes the kernel knows, so that hard links are judged as the files they are.
	Protected []string    `json:"protected"`
	Tables    tablesSizes `json:"tables"` // of all policies together
}

type explainedPolicy struct {
	Name     string          `json:"name"`
	File     string          `json:"file"`
	Line     int             `json:"line"`
	Mode     string          `json:"mode"`
	Rules    []explainedRule `json:"rules"`
	Warnings []string        `json:"warnings,omitempty"`
	Tables   tablesSizes     `json:"tables"` // of this policy alone
}

// explainedRule is a rule for one operation.
type explainedRule struct {
	agent.RuleStatus
	Hits    int      `json:"hits,omitempty"` // none: this is no running policy
	Clauses []string `json:"clauses"`        // what the kernel looks at: any of these
}

type tablesSizes struct {
	Rules    int             `json:"rules"`
	Atoms    int             `json:"atoms"` // different tests
	Automata []automatonSize `json:"automata"`
	Ops      []opSize        `json:"operations"`
	States   int             `json:"states"`
	Leaves   int             `json:"leaves"`
	Cells    int             `json:"cells"`
	Rows     int             `json:"rows"`  // sets of clauses
	Words    int             `json:"words"` // of the rows, 64 clauses each
	Bytes    int             `json:"bytes"`
	Sets     int             `json:"sets"`
	Entries  int             `json:"entries"` // of all sets
}

type automatonSize struct {
	Field   string `json:"field"`
	States  int    `json:"states"`
	Leaves  int    `json:"leaves"`
	Cells   int    `json:"cells"`
	Columns int    `json:"columns"`
	Classes int    `json:"classes"`
	Tails   int    `json:"tail_bytes"`
}

type opSize struct {
	Op       string `json:"op"`
	Clauses  int    `json:"clauses"`
	Words    int    `json:"words"`
	Automata int    `json:"automata"`
	Classes  int    `json:"classes"`
	Rows     int    `json:"rows"`
}

func explainSet(ps []*policy.Policy, m *policy.Machine) (*explained, error) {
	x, err := policy.Explain(ps, m)
	if err != nil {
		return nil, err
	}
	x.Report = policy.Review(ps, m, x.Report)
	out := &explained{Protected: append([]string{}, x.Image.Protected...), Tables: sizes(x)}
	status := agent.StatusOf(nil, x.Report)
	for i, pr := range x.Report.Policies {
		p := explainedPolicy{Name: pr.Name, File: pr.File, Line: pr.Line, Mode: string(pr.Mode), Rules: []explainedRule{}, Tables: out.Tables}
		for j, r := range status[i].Rules {
			p.Rules = append(p.Rules, explainedRule{RuleStatus: r, Clauses: append([]string{}, pr.Rules[j].Clauses...)})
		}
		p.Warnings = status[i].Warnings
		if len(ps) > 1 {
			for _, one := range ps {
				if one.Name != pr.Name {
					continue
				}
				alone, err := policy.Explain([]*policy.Policy{one}, m)
				if err != nil {
					return nil, err
				}
				p.Tables = sizes(alone)
			}
		}
		out.Policies = append(out.Policies, p)
	}
	return out, nil
}

func sizes(x *policy.Explanation) tablesSizes {
	s := x.Image.Stats()
	t := tablesSizes{
		Rules: s.Rules, Atoms: x.Atoms, States: s.States, Leaves: s.Leaves, Cells: s.Cells, Rows: s.Rows, Words: s.Words, Bytes: s.Bytes,
		Automata: []automatonSize{}, Ops: []opSize{},
	}
	for _, list := range x.Image.Sets {
		t.Sets += len(list)
		for _, set := range list {
			t.Entries += set.Len()
		}
	}
	for _, a := range s.Automata {
		t.Automata = append(t.Automata, automatonSize{a.Dim.String(), a.States, a.Leaves, a.Cells, a.Columns, a.Classes, a.Tails})
	}
	for _, o := range s.Ops {
		t.Ops = append(t.Ops, opSize{o.Op.String(), o.Clauses, o.Words, o.Slots, o.ClassRows, o.Rows})
	}
	return t
}
