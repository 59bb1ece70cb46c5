package main

import (
	"encoding/json"
	"fmt"

	"github.com/pavise-project/pavise"
	"github.com/pavise-project/pavise/agent"
	"github.com/spf13/cobra"
)

func (a *app) events() *cobra.Command {
	var q agent.EventQuery
	c := &cobra.Command{
		Use: "events", Short: "Show what happened, and what happens",
		Long: `Show the agent's last events (it keeps 4,096), or with --follow those to come, preceded by the last -n.

--where is a condition in CEL, in the words of policies, with the event's own facts: op, action, policy, rule. A terminal gets text
(without forks, and without exits with code 0), a pipe gets lines of JSON, unless -o says otherwise.`,
		Example: `  pavise events -n 20
  pavise events --follow --where 'action == "deny"'
  pavise events --follow -o json --where 'process.exe.name == "curl"' | jq .file.path`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if c.Flags().Changed("number") && q.Limit < 0 {
				return usageError{fmt.Errorf("-n %d: must not be under 0", q.Limit)}
			}
			return a.showEvents(c, q)
		},
	}
	f := c.Flags()
	f.BoolVarP(&q.Follow, "follow", "f", false, "go on with what happens from now on")
	f.StringVar(&q.Where, "where", "", "only events for which this CEL condition holds")
	f.IntVarP(&q.Limit, "number", "n", -1, "at most this many of the last events (default: all; with --follow: none)")
	return c
}

// showEvents prints events until their end, or the command's.
func (a *app) showEvents(c *cobra.Command, q agent.EventQuery) error {
	return a.showStream(c, q.Follow, func(fn func([]byte) error) error { return a.client().Events(c.Context(), q, fn) })
}

// showStream prints the lines of a stream of events.
func (a *app) showStream(c *cobra.Command, endless bool, stream func(fn func(line []byte) error) error) error {
	form := a.streamForm(c)
	write := a.eventWriter("text")
	err := stream(func(line []byte) error {
		if form == "json" {
			_, err := a.stdout.Write(append(line, '\n'))
			return err
		}
		var e pavise.Event
		if err := json.Unmarshal(line, &e); err != nil {
			return fmt.Errorf("read event: %w", err)
		}
		return write(&e)
	})
	if c.Context().Err() != nil {
		return nil
	}
	if err == nil && endless {
		return fmt.Errorf("%w any more: it ended the stream", agent.ErrNoAgent)
	}
	return err
}
