package main

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/pavise-project/pavise/agent"
	"github.com/spf13/cobra"
)

func (a *app) get() *cobra.Command {
	policies := &cobra.Command{
		Use: "policies [NAME]", Aliases: []string{"policy"}, Short: "Show the active policies, rule by rule",
		Long: `Show the active policies: per rule and operation whether it is enforced (and by which rung), monitored, an audit, degraded, or
not observed on this machine, and how often it matched. -o yaml gives the policy itself.`,
		Example: "  pavise get policies\n  pavise get policies web-shell -o yaml",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			cl := a.client()
			var ps []agent.PolicyStatus
			if len(args) == 1 {
				p, err := cl.Policy(c.Context(), args[0])
				if err != nil {
					return err
				}
				if a.output == "json" {
					return a.json(p)
				}
				ps = []agent.PolicyStatus{*p}
			} else {
				all, gen, err := cl.Policies(c.Context())
				if err != nil {
					return err
				}
				if a.output == "json" {
					sh, err := cl.Shadow(c.Context())
					if err != nil {
						return err
					}
					return a.json(map[string]any{"generation": gen, "policies": all, "shadow": shadowed(sh, func(p *agent.PolicyStatus) string { return p.Name })})
				}
				ps = all
			}
			if a.output == "yaml" {
				for i := range ps {
					if ps[i].Source == "" {
						p, err := cl.Policy(c.Context(), ps[i].Name)
						if err != nil {
							return err
						}
						ps[i] = *p
					}
					if i > 0 {
						fmt.Fprintln(a.stdout, "---")
					}
					fmt.Fprintln(a.stdout, strings.TrimRight(lines(ps[i].Source), "\n"))
				}
				return nil
			}
			if len(ps) == 0 {
				fmt.Fprintln(a.stderr, "no policies; add one with: pavise apply -f FILE")
				return nil
			}
			if err := a.policyTable(ps); err != nil {
				return err
			}
			a.warnings(ps)
			sh, err := cl.Shadow(c.Context())
			if err != nil {
				return err
			}
			if names := shadowed(sh, func(p *agent.PolicyStatus) string { return safe(p.Name) + " (" + p.Change + ")" }); len(names) > 0 {
				fmt.Fprintf(a.stdout, "a shadow is on, without effect: %s; see: pavise shadow\n", strings.Join(names, ", "))
			}
			return nil
		},
	}
	return noun("get", "Show what the agent has", "  pavise get policies\n  pavise get revisions", policies, a.getRevisions())
}

// shadowed names the policies of a candidate that is on.
func shadowed(sh *agent.Shadow, name func(*agent.PolicyStatus) string) []string {
	out := []string{}
	for i := range sh.Policies {
		if sh.On {
			out = append(out, name(&sh.Policies[i]))
		}
	}
	return out
}

// actionOf is a rule's action, and what is done instead.
func actionOf(r *agent.RuleStatus) string {
	if r.Effective != "" && r.Effective != "none" {
		return r.Effective + ", not " + r.Action
	}
	return r.Action
}

// policyTable shows policies rule by rule.
func (a *app) policyTable(ps []agent.PolicyStatus) error {
	t := newTable(a.stdout, "POLICY", "MODE", "RULE", "OPERATION", "ACTION", "STATE", "RUNG", "HITS")
	for _, p := range ps {
		for _, r := range p.Rules {
			t.row(p.Name, p.Mode, r.Name, r.Op, actionOf(&r), r.State, r.Rung, strconv.FormatUint(r.Hits, 10))
		}
		if len(p.Rules) == 0 {
			t.row(p.Name, p.Mode, "", "", "", "no rules", "", "")
		}
	}
	if err := t.flush(); err != nil {
		return err
	}
	a.whys(ps)
	return nil
}

// whys tells why rules are degraded or not observed.
func (a *app) whys(ps []agent.PolicyStatus) {
	for _, p := range ps {
		for _, r := range p.Rules {
			if r.Why != "" {
				fmt.Fprintf(a.stdout, "%s/%s on %s: %s\n", safe(p.Name), safe(r.Name), r.Op, safe(r.Why))
			}
		}
	}
}

// warnings shows those of policies, one a line.
func (a *app) warnings(ps []agent.PolicyStatus) {
	for _, p := range ps {
		for _, w := range p.Warnings {
			fmt.Fprintf(a.stdout, "%s: warning: %s\n", safe(p.Name), safe(w))
		}
	}
}
