package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/pavise-project/pavise/agent"
	"github.com/pavise-project/pavise/enforce"
	"github.com/spf13/cobra"
)

func (a *app) uninstall() *cobra.Command {
	var p agent.Places
	var dry, keep bool
	c := &cobra.Command{
		Use: "uninstall", Short: "End what an agent has left in force, and remove what it left on disk",
		Long: `End what an agent has left in force, and remove what it left on disk: its pins with all programs and tables in the kernel, its state directory with the
revisions and the history, and its socket. Each thing that is removed is printed. Policies in /etc, and the program itself, are not touched.

While an agent runs nothing is removed: stop it first (systemctl disable --now pavise).`,
		Example: "  pavise uninstall --dry-run\n  pavise uninstall --keep-state",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if os.Geteuid() != 0 {
				return fmt.Errorf("uninstall: %w", enforce.ErrPrivileges)
			}
			p.Socket = a.socket
			if keep {
				p.StateDir = ""
			}
			removed, left, err := agent.Uninstall(p, dry)
			if a.output == "json" {
				if removed == nil {
					removed = []string{}
				}
				err = errors.Join(a.json(map[string]any{"removed": removed, "left": left, "dry_run": dry}), err)
			} else {
				what := "removed "
				if dry {
					what = "would remove "
				}
				for _, name := range removed {
					fmt.Fprintf(a.stdout, "%s%s\n", what, safe(name))
				}
				if len(removed) == 0 && err == nil {
					fmt.Fprintln(a.stdout, "nothing of an agent is here")
				}
			}
			switch {
			case errors.Is(err, agent.ErrAgentRuns):
				return fmt.Errorf("uninstall: %w; stop it first (systemctl disable --now pavise): nothing was removed", err)
			case err != nil:
				return fmt.Errorf("uninstall: %w", err)
			case len(left) > 0:
				return fmt.Errorf("uninstall: %s is not empty: %s is no agent's", safe(p.StateDir), safe(left[0]))
			}
			return nil
		},
	}
	f := c.Flags()
	f.StringVar(&p.Pins, "pin-dir", enforce.DefaultPins, "where the agent pinned what it has in the kernel")
	f.StringVar(&p.StateDir, "state", agent.DefaultState, "the agent's own directory")
	f.BoolVar(&keep, "keep-state", false, "do not remove the state directory: the next agent goes on from there")
	f.BoolVar(&dry, "dry-run", false, "only say what would be removed")
	return c
}
