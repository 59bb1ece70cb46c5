package main

import (
	"github.com/pavise-project/pavise/agent"
	"github.com/pavise-project/pavise/policy"
	"github.com/spf13/cobra"
)

func (a *app) explain() *cobra.Command {
	return &cobra.Command{
		Use: "explain FILE...", Short: "Say what of a policy runs in the kernel, by which rung, and how big it is",
		Long: `Say, for each rule, what of it the kernel decides and what is left to user space, by which rung it is enforced, and how big the
tables are. Like check, it asks the agent what its machine can do, and needs no privileges without one.`,
		Example: "  pavise explain policies/web-shell/policy.yaml\n  pavise explain -o json web.yaml",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			ps, err := agent.LoadPolicies(args)
			if err != nil {
				return err
			}
			m, where := a.machine(c)
			x, err := policy.Explain(ps, m)
			if err != nil {
				return agent.Faults(err)
			}
			if a.output == "json" {
				return a.json(struct {
					Machine  string               `json:"machine"`
					Policies []agent.PolicyStatus `json:"policies"`
					Clauses  []string             `json:"clauses"` // of the kernel
					Atoms    int                  `json:"atoms"`
					Tables   policy.Stats         `json:"tables"`
				}{where, agent.StatusOf(nil, x.Report), clauses(x), x.Atoms, x.Image.Stats()})
			}
			return a.explainText(x, where)
		},
	}
}
