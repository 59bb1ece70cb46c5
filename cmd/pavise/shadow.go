package main

import (
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/pavise-project/pavise/agent"
	"github.com/spf13/cobra"
)

func (a *app) shadow() *cobra.Command {
	var file string
	var off, follow bool
	c := &cobra.Command{
		Use: "shadow [-f FILE] [--follow] | --off", Short: "Try policies beside the active ones, without effect",
		Long: `With -f: judge what happens by a candidate too, which is the active policies with those of the file added or replaced. It denies and
kills nothing. What it would decide is counted rule by rule, and where that is not what the active policies decide, there is an
event: pavise events --where shadow; --follow shows them as they come. Without a flag: show the candidate and its counters. With --off: end it.
"pavise promote" makes its policies active.

When the active policies change, the candidate is made anew of them and its own. It ends when its policies are active, or with the agent.`,
		Example: "  pavise shadow -f web.yaml --follow\n  pavise shadow\n  pavise events --follow --where 'shadow && action == \"deny\"'\n  pavise shadow --off",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			cl := a.client()
			var sh *agent.Shadow
			var err error
			switch {
			case off && c.Flags().Changed("file"):
				return usageError{errors.New("-f and --off: give one of them")}
			case off && follow:
				return usageError{errors.New("--follow and --off: give one of them")}
			case off:
				sh, err = cl.EndShadow(c.Context())
			case c.Flags().Changed("file"):
				name, data, sets, ferr := a.policyFile(file)
				if ferr != nil {
					return ferr
				}
				sh, err = cl.SetShadow(c.Context(), name, data, sets)
			default:
				sh, err = cl.Shadow(c.Context())
			}
			if err != nil {
				return err
			}
			if follow {
				fmt.Fprintln(a.stderr, "what the candidate would do, where that is not what the active policies do; ctrl-C leaves it on")
				return a.showEvents(c, agent.EventQuery{Follow: true, Where: "shadow", Limit: -1})
			}
			if a.output == "json" {
				return a.json(sh)
			}
			return a.shadowTable(sh)
		},
	}
	c.Flags().StringVarP(&file, "file", "f", "", "policy file, or - for the standard input")
	c.Flags().BoolVar(&off, "off", false, "end it")
	c.Flags().BoolVar(&follow, "follow", false, "show what it would do, as it comes")
	return c
}

func (a *app) promote() *cobra.Command {
	var o agent.ApplyOptions
	most := int64(-1)
	c := &cobra.Command{
		Use: "promote", Short: "Make the policies of the shadow active",
		Long: `Make the policies that "pavise shadow -f FILE" has judged beside the active ones active: all or none, in one switch, as a revision of its own. The shadow ends.

With --max-stricter it is refused when the candidate was stricter than the active policies more often than that, with the rules that were, and the exit code is 1.`,
		Example: "  pavise promote --dry-run\n  pavise promote --max-stricter 0 --confirm-within 60s",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if c.Flags().Changed("max-stricter") && most < 0 {
				return usageError{fmt.Errorf("--max-stricter %d: must not be under 0", most)}
			}
			ch, err := a.client().Promote(c.Context(), most, o)
			if err != nil {
				return err
			}
			return a.changed(ch)
		},
	}
	c.Flags().Int64Var(&most, "max-stricter", -1, "how often it may have been stricter than the active policies (default: any number)")
	changeFlags(c, &o)
	return c
}

// shadowTable shows a candidate: its policies rule by rule, and what it found by operation.
func (a *app) shadowTable(sh *agent.Shadow) error {
	if len(sh.Policies) == 0 {
		fmt.Fprintln(a.stderr, "no shadow is on; begin one with: pavise shadow -f FILE")
		return nil
	}
	t := newTable(a.stdout, "POLICY", "CHANGE", "MODE", "RULE", "OPERATION", "ACTION", "WOULD BE", "RUNG", "MATCHED", "STRICTER")
	for _, p := range sh.Policies {
		for _, r := range p.Rules {
			t.row(p.Name, p.Change, p.Mode, r.Name, r.Op, actionOf(&r), r.State, r.Rung, strconv.FormatUint(r.Hits, 10), strconv.FormatUint(r.Stricter, 10))
		}
		if len(p.Rules) == 0 {
			t.row(p.Name, p.Change, p.Mode, "", "", "", "no rules", "", "", "")
		}
	}
	if err := t.flush(); err != nil {
		return err
	}
	a.whys(sh.Policies)
	a.warnings(sh.Policies)
	if len(sh.Ops) > 0 {
		fmt.Fprintln(a.stdout)
		t := newTable(a.stdout, "OPERATION", "JUDGED", "STRICTER", "LAXER")
		for _, o := range sh.Ops {
			t.row(o.Op, strconv.FormatUint(o.Judged, 10), strconv.FormatUint(o.Stricter, 10), strconv.FormatUint(o.Laxer, 10))
		}
		if err := t.flush(); err != nil {
			return err
		}
	}
	state := "off"
	switch {
	case sh.On:
		state = fmt.Sprintf("on since %s, as generation %d beside %d: it has no effect", sh.Since.Local().Format(time.DateTime), sh.Generation, sh.Active)
	case sh.Ended != "":
		state = "off: " + safe(sh.Ended)
	}
	fmt.Fprintf(a.stdout, "the shadow is %s\n", state)
	return nil
}
