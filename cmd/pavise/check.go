package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/pavise-project/pavise/agent"
	"github.com/pavise-project/pavise/policy"
	"github.com/spf13/cobra"
)

func (a *app) check() *cobra.Command {
	var strict bool
	c := &cobra.Command{
		Use: "check FILE...", Short: "Compile policies, and change nothing",
		Long: `Compile policies as one set and run the tests that stand in them, and change nothing. It needs no privileges. When an agent answers, they are checked against
what its machine can do; else against a machine that can do everything.

With --strict, a warning or a rule that would be degraded is a failure.`,
		Example: "  pavise check policies\n  pavise check --strict web.yaml db.yaml",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			ps, err := agent.LoadPolicies(args)
			if err == nil {
				err = agent.Duplicates(ps)
			}
			m, where := a.machine(c)
			var st []agent.PolicyStatus
			if err == nil {
				var rep *policy.Report
				_, rep, err = policy.Compile(ps, m)
				if err = agent.Faults(err); err == nil {
					err = policy.TestErrors(ps)
				}
				if err == nil {
					st = agent.StatusOf(ps, policy.Review(ps, m, rep))
				}
			}
			if err == nil && strict {
				err = strictly(st)
			}
			if a.output == "json" {
				return errors.Join(a.json(checked(st, where, err)), err)
			}
			if st != nil {
				if err := a.policyTable(st); err != nil {
					return err
				}
				a.warnings(st)
				fmt.Fprintf(a.stdout, "%d policies, checked against %s\n", len(st), where)
			}
			return err
		},
	}
	c.Flags().BoolVar(&strict, "strict", false, "warnings and degraded rules are failures")
	return c
}

// machine is what policies are compiled against without applying them, and a name for it.
func (a *app) machine(c *cobra.Command) (*policy.Machine, string) {
	cl := a.client()
	defer cl.Close()
	ctx, cancel := context.WithTimeout(c.Context(), 3*time.Second)
	defer cancel()
	if d, err := cl.Doctor(ctx); err == nil {
		return d.Machine(), "the agent's machine (Linux " + safe(d.Host.Kernel) + ")"
	}
	return agent.AnyMachine(), "a machine that can do everything (no agent answers)"
}

func strictly(st []agent.PolicyStatus) error {
	var bad policy.Errors
	for _, p := range st {
		for _, w := range p.Warnings {
			bad = append(bad, &policy.Error{File: p.Name, Msg: w})
		}
		for _, r := range p.Rules {
			if r.State == "degraded" || r.State == "not observed" || r.State == "no effect" {
				bad = append(bad, &policy.Error{File: p.Name, Field: r.Name, Msg: r.Op + " would be " + r.State, Hint: r.Why})
			}
		}
	}
	if len(bad) > 0 {
		return bad
	}
	return nil
}

type checkResult struct {
	OK       bool                 `json:"ok"`
	Machine  string               `json:"machine"`
	Policies []agent.PolicyStatus `json:"policies,omitempty"`
	Error    string               `json:"error,omitempty"`
	Details  []agent.Detail       `json:"details,omitempty"`
}

func checked(st []agent.PolicyStatus, where string, err error) checkResult {
	r := checkResult{OK: err == nil, Machine: where, Policies: st}
	if err != nil {
		r.Error = err.Error()
		r.Details = agent.Details(err)
	}
	for i := range r.Policies {
		r.Policies[i].Source = ""
	}
	return r
}
