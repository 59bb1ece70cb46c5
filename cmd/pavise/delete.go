package main

import (
	"fmt"

	"github.com/spf13/cobra"
)

func (a *app) delete() *cobra.Command {
	policy := &cobra.Command{
		Use: "policy NAME", Aliases: []string{"policies"}, Short: "Take a policy away while the agent runs",
		Example: "  pavise delete policy web-shell",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			ch, err := a.client().Delete(c.Context(), args[0])
			if err != nil {
				return err
			}
			if a.output == "json" {
				return a.json(ch)
			}
			fmt.Fprintf(a.stdout, "deleted %s; generation %d is active\n", safe(args[0]), ch.Generation)
			return nil
		},
	}
	return noun("delete", "Take something away from the agent", "  pavise delete policy web-shell", policy)
}
