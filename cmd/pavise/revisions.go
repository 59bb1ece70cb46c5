package main

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pavise-project/pavise/agent"
	"github.com/rogpeppe/go-internal/diff"
	"github.com/spf13/cobra"
)

func (a *app) getRevisions() *cobra.Command {
	return &cobra.Command{
		Use: "revisions", Aliases: []string{"revision"}, Short: "Show the sets of policies that were in force, and who made them so",
		Long: `Show the revisions that the agent keeps: every change of the policies makes one, of the whole set, with its time, who asked for it and by what command.
The one that is in force is marked; revisions of the same contents have the same id.`,
		Example: "  pavise get revisions\n  pavise get revisions -o json | jq '.revisions[-1].id'",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			revs, damaged, err := a.client().Revisions(c.Context())
			if err != nil {
				return err
			}
			if a.output == "json" {
				return a.json(map[string]any{"revisions": revs, "damaged": damaged})
			}
			t := newTable(a.stdout, "", "REVISION", "ID", "TIME", "BY", "FROM", "POLICIES")
			for _, r := range revs {
				mark := " "
				if r.Current {
					mark = "*"
				}
				t.row(mark, strconv.FormatUint(r.Number, 10), shortID(r.ID), r.Time.Local().Format(time.DateTime), byText(&r), r.From, strings.Join(r.Policies, " "))
			}
			if err := t.flush(); err != nil {
				return err
			}
			for _, r := range revs {
				if r.ConfirmBy != nil {
					fmt.Fprintf(a.stdout, "revision %d is taken back at %s unless it is confirmed: pavise confirm\n", r.Number, r.ConfirmBy.Local().Format(time.TimeOnly))
				}
			}
			for _, d := range damaged {
				fmt.Fprintf(a.stderr, "pavise: %s\n", safe(d))
			}
			return nil
		},
	}
}

func shortID(id string) string {
	_, hex, _ := strings.Cut(id, ":")
	return hex[:min(12, len(hex))]
}

func byText(r *agent.RevisionStatus) string {
	if r.By.UID == nil {
		return "the agent"
	}
	s := fmt.Sprintf("uid %d", *r.By.UID)
	if r.By.Command != "" {
		s += ", " + r.By.Command
	}
	return s
}

// revisionArg reads the number of a revision.
func revisionArg(s string) (uint64, error) {
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil || n == 0 {
		return 0, usageError{fmt.Errorf("revision %q: want its number, from 1 (pavise get revisions)", s)}
	}
	return n, nil
}

func (a *app) diff() *cobra.Command {
	return &cobra.Command{
		Use: "diff A [B]", Short: "Show what changed between two revisions",
		Long:    `Show, policy by policy, what changed from revision A to revision B, or to the one that is in force.`,
		Example: "  pavise diff 3 4\n  pavise diff 3",
		Args:    cobra.RangeArgs(1, 2),
		RunE: func(c *cobra.Command, args []string) error {
			cl := a.client()
			from, err := revisionArg(args[0])
			if err != nil {
				return err
			}
			var to uint64
			if len(args) == 2 {
				if to, err = revisionArg(args[1]); err != nil {
					return err
				}
			} else {
				revs, _, err := cl.Revisions(c.Context())
				if err != nil {
					return err
				}
				for _, r := range revs {
					if r.Current {
						to = r.Number
					}
				}
			}
			old, err := cl.Revision(c.Context(), from)
			if err != nil {
				return err
			}
			next, err := cl.Revision(c.Context(), to)
			if err != nil {
				return err
			}
			changes := policyChanges(old, next)
			if a.output == "json" {
				return a.json(map[string]any{"from": from, "to": to, "policies": changes})
			}
			for _, ch := range changes {
				fmt.Fprintf(a.stdout, "%s: %s\n%s", safe(ch.Policy), ch.Change, lines(ch.Diff))
			}
			if len(changes) == 0 {
				fmt.Fprintf(a.stdout, "revisions %d and %d are the same\n", from, to)
			}
			return nil
		},
	}
}

// policyChange is what happened to one policy between two revisions.
type policyChange struct {
	Policy string `json:"policy"`
	Change string `json:"change"` // added, removed or changed
	Diff   string `json:"diff"`
}

func policyChanges(from, to *agent.RevisionStatus) []policyChange {
	type sides struct{ old, next string }
	all := map[string]*sides{}
	var order []string
	side := func(name string) *sides {
		if all[name] == nil {
			all[name] = &sides{}
			order = append(order, name)
		}
		return all[name]
	}
	text := func(r *agent.RevisionStatus, i int) string {
		d := &r.Documents[i]
		s := strings.TrimRight(d.YAML, "\n") + "\n"
		for _, name := range slices.Sorted(maps.Keys(d.Sets)) {
			s += fmt.Sprintf("# set %s\n%s", name, d.Sets[name])
			if !strings.HasSuffix(s, "\n") {
				s += "\n"
			}
		}
		return s
	}
	for i := range from.Documents {
		side(from.Documents[i].Name).old = text(from, i)
	}
	for i := range to.Documents {
		side(to.Documents[i].Name).next = text(to, i)
	}
	out := []policyChange{}
	for _, name := range order {
		s := all[name]
		if s.old == s.next {
			continue
		}
		ch := policyChange{Policy: name, Change: "changed"}
		switch {
		case s.old == "":
			ch.Change = "added"
		case s.next == "":
			ch.Change = "removed"
		}
		ch.Diff = string(diff.Diff(fmt.Sprintf("%d/%s", from.Number, name), []byte(s.old), fmt.Sprintf("%d/%s", to.Number, name), []byte(s.next)))
		out = append(out, ch)
	}
	return out
}

func (a *app) rollback() *cobra.Command {
	var o agent.ApplyOptions
	c := &cobra.Command{
		Use: "rollback [REVISION]", Short: "Put an older revision of the policies into force",
		Long: `Put the policies of an older revision into force, in one switch: of the one before, when no number is given. It becomes a new revision
of the same contents. What waits to be confirmed is undone by it.`,
		Example: "  pavise rollback\n  pavise rollback 12 --dry-run",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			var n uint64
			var err error
			if len(args) == 1 {
				if n, err = revisionArg(args[0]); err != nil {
					return err
				}
			}
			ch, err := a.client().Rollback(c.Context(), n, o)
			if err != nil {
				return err
			}
			return a.changed(ch)
		},
	}
	changeFlags(c, &o)
	return c
}

func (a *app) confirm() *cobra.Command {
	return &cobra.Command{
		Use: "confirm", Short: "Keep the change that was made with --confirm-within",
		Example: "  pavise apply -f web.yaml --confirm-within 60s && pavise confirm",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			n, err := a.client().Confirm(c.Context())
			if err != nil {
				return err
			}
			if a.output == "json" {
				return a.json(map[string]uint64{"revision": n})
			}
			fmt.Fprintf(a.stdout, "revision %d stays\n", n)
			return nil
		},
	}
}

// changeFlags are those of the commands that change the policies.
func changeFlags(c *cobra.Command, o *agent.ApplyOptions) {
	c.Flags().BoolVar(&o.DryRun, "dry-run", false, "compile it in the agent, and change nothing")
	c.Flags().DurationVar(&o.ConfirmWithin, "confirm-within", 0, "the node goes back by itself unless \"pavise confirm\" comes within this time (1s to 24h)")
	c.PreRunE = func(c *cobra.Command, _ []string) error {
		if c.Flags().Changed("confirm-within") && o.ConfirmWithin < time.Second {
			return usageError{errors.New("--confirm-within: 1s to 24h")}
		}
		return nil
	}
}
