package main

import (
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

// man writes the manual's pages; packages are made with it.
func (a *app) man() *cobra.Command {
	return &cobra.Command{
		Use: "man DIR", Short: "Write a manual page for each command", Hidden: true,
		Example: "  pavise man /usr/share/man/man1",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if err := os.MkdirAll(args[0], 0o755); err != nil {
				return fmt.Errorf("write the manual: %w", err)
			}
			root := c.Root()
			root.DisableAutoGenTag = true // pages of one version are the same
			day := time.Unix(0, 0).UTC()
			return doc.GenManTree(root, &doc.GenManHeader{Title: "PAVISE", Section: "1", Source: "Pavise " + buildVersion(), Manual: "Pavise", Date: &day}, args[0])
		},
	}
}
