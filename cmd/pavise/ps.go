package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/pavise-project/pavise"
	"github.com/spf13/cobra"
)

func (a *app) ps() *cobra.Command {
	var tree bool
	c := &cobra.Command{
		Use: "ps", Short: "Show the processes as the agent knows them",
		Long:    "Show the processes as the agent knows them: by executable file and not by the name that a process gives itself. JSON also has, for\na while, what ended and what was replaced by exec.",
		Example: "  pavise ps\n  pavise ps --tree\n  pavise ps -o json | jq .exe.path",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			raw, err := a.client().Processes(c.Context())
			if err != nil {
				return err
			}
			if a.output == "json" {
				for _, r := range raw {
					if _, err := fmt.Fprintf(a.stdout, "%s\n", r); err != nil {
						return err
					}
				}
				return nil
			}
			ps := make([]*pavise.Process, len(raw))
			for i, r := range raw {
				if err := json.Unmarshal(r, &ps[i]); err != nil {
					return fmt.Errorf("read process: %w", err)
				}
			}
			return a.psTable(ps, tree)
		},
	}
	c.Flags().BoolVar(&tree, "tree", false, "show each process below its parent")
	return c
}

// life is one process through all its images.
type life struct {
	pid   uint32
	start int64
}

func lifeOf(p *pavise.Process) life { return life{p.PID, p.StartTime} }

// psTable shows the newest image of each running process. All has also those that were replaced and that ended: a child
// may name one of them as its parent.
func (a *app) psTable(all []*pavise.Process, tree bool) error {
	byID := make(map[uint64]*pavise.Process, len(all))
	running := map[life]*pavise.Process{}
	for _, p := range all {
		byID[p.ExecID] = p
		if p.ExitTime == 0 {
			running[lifeOf(p)] = p // the later image wins: the agent gives them in order
		}
	}
	// parent is the nearest ancestor that runs.
	parent := func(p *pavise.Process) *pavise.Process {
		me := lifeOf(p)
		for range all {
			p = byID[p.ParentExecID]
			if p == nil {
				return nil
			}
			if q := running[lifeOf(p)]; q != nil && lifeOf(p) != me {
				return q
			}
		}
		return nil
	}
	ps := slices.SortedFunc(maps.Values(running), func(p, q *pavise.Process) int {
		return cmp.Or(cmp.Compare(p.PID, q.PID), cmp.Compare(p.StartTime, q.StartTime))
	})
	t := newTable(a.stdout, "PID", "PPID", "USER", "WHERE", "COMMAND")
	row := func(p *pavise.Process, indent string) {
		ppid := "0"
		if q := parent(p); q != nil {
			ppid = strconv.Itoa(int(q.PID))
		}
		user := p.User.Name
		if user == "" {
			user = strconv.Itoa(int(p.User.ID))
		}
		where := p.Unit
		if p.Container != nil {
			where = p.Container.Runtime + ":" + p.Container.ID[:min(12, len(p.Container.ID))]
		}
		t.row(strconv.Itoa(int(p.PID)), ppid, user, where, indent+command(p))
	}
	if !tree {
		for _, p := range ps {
			row(p, "")
		}
		return t.flush()
	}
	children := map[*pavise.Process][]*pavise.Process{} // nil: the roots
	for _, p := range ps {
		q := parent(p)
		children[q] = append(children[q], p)
	}
	shown := map[*pavise.Process]bool{}
	var walk func(p *pavise.Process, depth int)
	walk = func(p *pavise.Process, depth int) {
		if shown[p] {
			return
		}
		shown[p] = true
		indent := ""
		if depth > 0 {
			indent = strings.Repeat("  ", depth-1) + "└ "
		}
		row(p, indent)
		for _, q := range children[p] {
			walk(q, depth+1)
		}
	}
	for _, p := range children[nil] {
		walk(p, 0)
	}
	for _, p := range ps { // a circle has no root; show it all the same
		walk(p, 0)
	}
	return t.flush()
}

// command is a process's executable and arguments, cut for a line.
func command(p *pavise.Process) string {
	s := p.Exe.Path
	if len(p.Args) > 1 {
		s += " " + strings.Join(p.Args[1:], " ")
	}
	if s == "" {
		return "(kernel)"
	}
	if r := []rune(s); len(r) > 160 {
		s = string(r[:159]) + "…"
	}
	return s
}
