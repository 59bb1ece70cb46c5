package main

import (
	"fmt"

	"github.com/pavise-project/pavise/policy"
	"github.com/spf13/cobra"
)

func (a *app) mode() *cobra.Command {
	var dry bool
	c := &cobra.Command{
		Use: "mode POLICY monitor|enforce", Short: "Let a policy act, or only tell, while the agent runs",
		Long: `Put one active policy into monitor mode, where it only tells what it would do, or into enforce mode, where it does it. It is compiled
anew and takes effect in one switch, with no moment in which it does not judge. What this machine cannot enforce is refused as by apply, and then nothing
changes. The policy's file is not read, and not changed: when the file changes, its mode is the file's again at the agent's next start.`,
		Example: "  pavise mode web-shell enforce\n  pavise mode web-shell enforce --dry-run\n  pavise mode web-shell monitor",
		Args:    cobra.ExactArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			name, mode := args[0], args[1]
			if mode != string(policy.ModeMonitor) && mode != string(policy.ModeEnforce) {
				return usageError{fmt.Errorf("mode %q: monitor and enforce are possible", mode)}
			}
			ch, err := a.client().SetMode(c.Context(), name, mode, dry)
			if err != nil {
				return err
			}
			return a.changed(ch)
		},
	}
	c.Flags().BoolVar(&dry, "dry-run", false, "compile it in the agent, and change nothing")
	return c
}
