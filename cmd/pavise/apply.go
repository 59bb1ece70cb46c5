package main

import (
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/pavise-project/pavise/agent"
	"github.com/pavise-project/pavise/policy"
	"github.com/spf13/cobra"
)

func (a *app) apply() *cobra.Command {
	var file string
	var o agent.ApplyOptions
	c := &cobra.Command{
		Use: "apply -f FILE", Short: "Add or replace policies while the agent runs",
		Long: `Add policies to the running agent, or replace those of the same names: all of the file or none, in one switch, with no moment
between the old rules and the new. A bad policy changes nothing. They make a new revision (pavise get revisions), from which the agent starts the next time.

With --confirm-within the node undoes the change by itself, unless "pavise confirm" comes in time: also when the agent was killed meanwhile, or the machine rebooted.

The sets that policies name (inSet) are read here, from the file's directory, or from the working directory for the standard input, and sent along.`,
		Example: "  pavise apply -f web.yaml\n  pavise apply -f web.yaml --dry-run\n  pavise apply -f web.yaml --confirm-within 60s\n  pavise get policies web -o yaml | pavise apply -f -",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			name, data, sets, err := a.policyFile(file)
			if err != nil {
				return err
			}
			ch, err := a.client().Apply(c.Context(), name, data, sets, o)
			if err != nil {
				return err
			}
			return a.changed(ch)
		},
	}
	c.Flags().StringVarP(&file, "file", "f", "", "policy file, or - for the standard input")
	changeFlags(c, &o)
	if err := c.MarkFlagRequired("file"); err != nil {
		panic(err)
	}
	return c
}

// changed shows what a change did, or would do.
func (a *app) changed(ch *agent.Change) error {
	if a.output == "json" {
		return a.json(ch)
	}
	if err := a.policyTable(ch.Policies); err != nil {
		return err
	}
	a.warnings(ch.Policies)
	if ch.DryRun {
		fmt.Fprintln(a.stdout, "dry run: nothing was changed")
		return nil
	}
	revision := ""
	if ch.Revision > 0 {
		revision = fmt.Sprintf(", revision %d", ch.Revision)
	}
	fmt.Fprintf(a.stdout, "active as generation %d%s, after %s\n", ch.Generation, revision, ch.Total.Round(10*time.Microsecond))
	if ch.ConfirmBy != nil {
		fmt.Fprintf(a.stdout, "taken back at %s unless it is confirmed: pavise confirm\n", ch.ConfirmBy.Local().Format(time.TimeOnly))
	}
	return nil
}

// setsOf reads the sets that policies name. What else is wrong with the policies the agent says, which may be of another version.
func setsOf(name string, data []byte) (map[string][]byte, error) {
	sets := policy.ReadSets{Read: agent.SetsIn(filepath.Dir(name))}
	if _, err := policy.ParseWith(name, data, sets.File); sets.Err != nil {
		return nil, err
	}
	return sets.Files, nil
}

// policyFile reads a policy file, or the standard input for -, and the sets that its policies name.
func (a *app) policyFile(file string) (name string, data []byte, sets map[string][]byte, err error) {
	in, name := a.stdin, "stdin"
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return "", nil, nil, fmt.Errorf("read policy: %w", err)
		}
		defer f.Close()
		in, name = f, file
	}
	if data, err = agent.ReadPolicy(in); err != nil {
		return "", nil, nil, usageError{fmt.Errorf("read policy: %w", err)}
	}
	sets, err = setsOf(name, data)
	return name, data, sets, err
}
