package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/pavise-project/pavise"
	"github.com/spf13/cobra"
)

func (a *app) ps() *cobra.Command {
	var tree, kernel bool
	c := &cobra.Command{
		Use: "ps", Short: "Show the processes as the agent knows them",
		Long:    "Show the processes as the agent knows them: by executable file and not by the name that a process gives itself. Commands are\ncut to the terminal's width; JSON has all of them, kernel threads, and, for a while, what ended and what was replaced by exec.",
		Example: "  pavise ps\n  pavise ps --tree\n  pavise ps --all\n  pavise ps -o json | jq .exe.path",
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
			return a.psTable(ps, tree, kernel)
		},
	}
	c.Flags().BoolVar(&tree, "tree", false, "show each process below its parent")
	c.Flags().BoolVar(&kernel, "all", false, "show kernel threads too")
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
func (a *app) psTable(all []*pavise.Process, tree, kernel bool) error {
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
	if !kernel {
		ps = slices.DeleteFunc(ps, func(p *pavise.Process) bool { return kernelThread(p) })
	}
	rows := [][]string{{"PID", "PPID", "USER", "WHERE", "COMMAND"}}
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
			where = containerText(p)
		}
		if where == "" {
			where = "-"
		}
		rows = append(rows, []string{strconv.Itoa(int(p.PID)), ppid, user, where, indent + command(p)})
	}
	if !tree {
		for _, p := range ps {
			row(p, "")
		}
		return a.cutTable(rows)
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
	return a.cutTable(rows)
}

// whereWidth is how much of a container's name and image a row shows.
const whereWidth = 48

// containerText is a process's container: the runtime, and its names and image where they are known, else its id.
func containerText(p *pavise.Process) string {
	c := p.Container
	s := c.Name
	if pod := p.Pod; pod != nil {
		s = pod.Namespace + "/" + pod.Name
		if c.Name != "" {
			s += "/" + c.Name
		}
	}
	if s == "" {
		s = c.ID[:min(12, len(c.ID))]
	}
	if c.Runtime != "" {
		s = c.Runtime + ":" + s
	}
	if c.Image != "" {
		s += " (" + c.Image + ")"
	}
	if r := []rune(safe(s)); len(r) > whereWidth {
		s = string(r[:whereWidth-1]) + "…"
	}
	return s
}

// kernelThread reports whether p is one. They have no executable; nor has a process of which nothing is known.
func kernelThread(p *pavise.Process) bool { return p.Exe.Path == "" && !p.Unknown && len(p.Args) == 0 }

// cutTable writes rows with the last column cut to the terminal's width.
func (a *app) cutTable(rows [][]string) error {
	room := a.width
	for col := range len(rows[0]) - 1 {
		widest := 0
		for _, r := range rows {
			widest = max(widest, utf8.RuneCountInString(safe(r[col])))
		}
		room -= widest + 2
	}
	room = max(room, 20)
	t := newTable(a.stdout)
	for _, r := range rows {
		last := []rune(safe(r[len(r)-1]))
		if len(last) > room {
			r[len(r)-1] = string(last[:room-1]) + "…"
		}
		t.row(r...)
	}
	return t.flush()
}

// command is a process's executable and arguments.
func command(p *pavise.Process) string {
	s := p.Exe.Path
	if len(p.Args) > 1 {
		s += " " + strings.Join(p.Args[1:], " ")
	}
	switch {
	case s != "":
		return s
	case p.Unknown:
		return "(unknown)"
	}
	return "(kernel)"
}
