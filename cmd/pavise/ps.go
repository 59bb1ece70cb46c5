package main

import (
	"encoding/json"
	"fmt"
	"sort"
	"strconv"
	"strings"

	"github.com/pavise-project/pavise"
	"github.com/spf13/cobra"
)

func (a *app) ps() *cobra.Command {
	var tree bool
	c := &cobra.Command{
		Use: "ps", Short: "Show the processes as the agent knows them",
		Long:    "Show the processes as the agent knows them: by executable file and not by the name that a process gives itself.",
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
			sort.Slice(ps, func(i, j int) bool { return ps[i].PID < ps[j].PID })
			return a.psTable(ps, tree)
		},
	}
	c.Flags().BoolVar(&tree, "tree", false, "show each process below its parent")
	return c
}

func (a *app) psTable(ps []*pavise.Process, tree bool) error {
	byID := make(map[uint64]*pavise.Process, len(ps))
	for _, p := range ps {
		byID[p.ExecID] = p
	}
	t := newTable(a.stdout, "PID", "PPID", "USER", "WHERE", "COMMAND")
	row := func(p *pavise.Process, indent string) {
		ppid := "0"
		if q := byID[p.ParentExecID]; q != nil {
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
	children := map[uint64][]*pavise.Process{}
	var roots []*pavise.Process
	for _, p := range ps {
		if byID[p.ParentExecID] == nil || p.ParentExecID == p.ExecID {
			roots = append(roots, p)
		} else {
			children[p.ParentExecID] = append(children[p.ParentExecID], p)
		}
	}
	shown := map[uint64]bool{}
	var walk func(p *pavise.Process, depth int)
	walk = func(p *pavise.Process, depth int) {
		if shown[p.ExecID] {
			return
		}
		shown[p.ExecID] = true
		indent := ""
		if depth > 0 {
			indent = strings.Repeat("  ", depth-1) + "└ "
		}
		row(p, indent)
		for _, q := range children[p.ExecID] {
			walk(q, depth+1)
		}
	}
	for _, p := range roots {
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
