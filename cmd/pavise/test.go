package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/pavise-project/pavise/agent"
	"github.com/pavise-project/pavise/policy"
	"github.com/spf13/cobra"
)

func (a *app) test() *cobra.Command {
	var strict bool
	c := &cobra.Command{
		Use: "test FILE...", Short: "Run the tests that stand in policies",
		Long: `Run the tests of policies (spec.tests): acts, and what the policy is to say of each, on whatever machine and in whatever mode. It needs no
privileges and no agent. The same tests are run by check, apply and run, which refuse policies that fail them.

An act is written as events are printed: "pavise events -o json" gives one to paste.

With --strict, a rule of which no test says that it acts is a failure too.`,
		Example: "  pavise test policies\n  pavise test --strict web.yaml -o json",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			ps, err := agent.LoadPolicies(args)
			if err == nil {
				err = agent.Duplicates(ps)
			}
			out := testOutput{Results: []policy.TestResult{}, Untested: map[string][]string{}}
			if err == nil {
				for _, p := range ps {
					out.Results = append(out.Results, p.RunTests()...)
					if u := p.Untested(); len(u) > 0 {
						out.Untested[p.Name] = u
					}
				}
				err = policy.TestErrors(ps)
			}
			if err == nil && strict && len(out.Untested) > 0 {
				err = fmt.Errorf("%d policies have rules that no test sees act", len(out.Untested))
			}
			if out.OK = err == nil; err != nil {
				out.Error = err.Error()
			}
			if a.output == "json" {
				return errors.Join(a.json(out), err)
			}
			if len(ps) > 0 && (err == nil || len(out.Results) > 0) {
				if err := a.testTable(ps, out.Untested); err != nil {
					return err
				}
			}
			return err
		},
	}
	c.Flags().BoolVar(&strict, "strict", false, "rules that no test sees act are failures")
	return c
}

type testOutput struct {
	OK       bool                `json:"ok"`
	Results  []policy.TestResult `json:"results"`
	Untested map[string][]string `json:"untested"` // rules, by policy
	Error    string              `json:"error,omitempty"`
}

func (a *app) testTable(ps []*policy.Policy, untested map[string][]string) error {
	t := newTable(a.stdout, "POLICY", "TESTS", "FAILED", "RULES THAT NO TEST SEES ACT")
	for _, p := range ps {
		failed := 0
		for _, r := range p.RunTests() {
			if !r.OK {
				failed++
			}
		}
		t.row(p.Name, fmt.Sprint(len(p.Tests)), fmt.Sprint(failed), strings.Join(untested[p.Name], " "))
	}
	return t.flush()
}
