package main

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/pavise-project/pavise/agent"
	"github.com/spf13/cobra"
)

func (a *app) isolate() *cobra.Command {
	var r agent.IsolationRequest
	var o agent.ApplyOptions
	var list bool
	c := &cobra.Command{
		Use: "isolate PID|UNIT|CONTAINER", Short: "Cut a process, unit or container off from the network at once",
		Long: `Deny a subject the network, and end the connections that it has, but for what --except names. It holds until "pavise release", also when the agent or the machine
starts anew: it is a policy like others, isolate-N (pavise get policies, pavise why, pavise get revisions).

A number is a process, a name that ends as those of systemd's units do (.service, .scope) is a unit, anything else a container: its id, the beginning of that, or its
name. pid:, unit: or container: before it says so. The kernel does not judge by process ids: a process is isolated by its cgroup, where nobody else is in that, or by its
program and user, where nobody else has those; else it is refused, unless --widen takes the others too. What is said to be isolated is what is.

--except may be given more than once: an address, a prefix or a name, with a port or without (10.0.0.1, 10.0.0.0/8:443, [2001:db8::1]:22, db.internal:5432, *.example.com), or a
CEL condition on net.* ('net.local.port == 22' keeps a server's port). Nothing else is excepted, not loopback and not the DNS server, which a name needs. Unix sockets
stay, unless --unix. What this machine cannot deny stays open, and is listed: --kill kills who does it.`,
		Example: "  pavise isolate 4711\n  pavise isolate nginx.service --except 10.0.0.0/8:443 --except 127.0.0.53:53\n  pavise isolate container:web --kill\n" +
			"  pavise isolate session-3.scope --confirm-within 60s\n  pavise isolate --list\n  pavise release isolate-1",
		Args: cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if list {
				if len(args) > 0 {
					return usageError{errors.New("--list goes alone")}
				}
				return a.isolations(c)
			}
			if len(args) == 0 {
				return usageError{errors.New("say what to isolate: a process id, a unit or a container")}
			}
			var err error
			if r.Subject, err = isolationSubject(args[0]); err != nil {
				return usageError{err}
			}
			i, err := a.client().Isolate(c.Context(), &r, o)
			if err != nil {
				return err
			}
			return a.isolated(i)
		},
	}
	fl := c.Flags()
	fl.StringArrayVar(&r.Except, "except", nil, "what stays reachable")
	fl.BoolVar(&r.Unix, "unix", false, "cut Unix sockets off too")
	fl.BoolVar(&r.Kill, "kill", false, "where the kernel cannot deny an act, kill the process that does it")
	fl.BoolVar(&r.Widen, "widen", false, "isolate also what cannot be told from the process")
	fl.BoolVar(&list, "list", false, "list what is isolated")
	changeFlags(c, &o)
	return c
}

// unitSuffixes are how the names of those units end that processes run in.
var unitSuffixes = []string{".service", ".scope", ".socket", ".mount", ".swap"}

func isolationSubject(s string) (q agent.IsolationSubject, err error) {
	kind, name, ok := strings.Cut(s, ":")
	if !ok || kind != "pid" && kind != "unit" && kind != "container" {
		kind, name = "container", s
		if strings.Trim(s, "0123456789") == "" {
			kind = "pid"
		}
		for _, suffix := range unitSuffixes {
			if strings.HasSuffix(s, suffix) {
				kind = "unit"
			}
		}
	}
	if name == "" {
		return q, errors.New("say what to isolate: a process id, a unit or a container")
	}
	switch kind {
	case "pid":
		n, err := strconv.ParseUint(name, 10, 32)
		if err != nil || n == 0 {
			return q, fmt.Errorf("%q is no process id", name)
		}
		q.PID = uint32(n)
	case "unit":
		q.Unit = name
	default:
		q.Container = name
	}
	return q, nil
}

func (a *app) isolated(i *agent.Isolated) error {
	if a.output == "json" {
		return a.json(i)
	}
	fmt.Fprintf(a.stdout, "isolated: %s\n", safe(i.Isolation.What))
	fmt.Fprintf(a.stdout, "processes: %d; subject: %s\n", i.Isolation.Processes, safe(i.Isolation.Subject))
	for _, s := range i.Isolation.Except {
		fmt.Fprintf(a.stdout, "except: %s\n", safe(s))
	}
	if i.Change.DryRun {
		for _, s := range i.Isolation.Open {
			fmt.Fprintf(a.stdout, "would stay open: %s\n", safe(s))
		}
		fmt.Fprintln(a.stdout, "dry run: nothing was changed")
		return nil
	}
	fmt.Fprintf(a.stdout, "connections: %d ended, %d excepted, %d not ended\n", i.Cut.Closed, i.Cut.Kept, len(i.Cut.Failed))
	for _, s := range i.Cut.Failed {
		fmt.Fprintf(a.stderr, "not ended: %s\n", safe(s))
	}
	for _, s := range i.Isolation.Open {
		fmt.Fprintf(a.stderr, "left open: %s\n", safe(s))
	}
	fmt.Fprintf(a.stdout, "active as generation %d, after %s; end it with: pavise release %s\n", i.Change.Generation, i.Change.Total.Round(10*time.Microsecond), safe(i.Isolation.Name))
	if i.Change.ConfirmBy != nil {
		fmt.Fprintf(a.stdout, "taken back at %s unless it is confirmed: pavise confirm\n", i.Change.ConfirmBy.Local().Format(time.TimeOnly))
	}
	return nil
}

func (a *app) isolations(c *cobra.Command) error {
	list, err := a.client().Isolations(c.Context())
	if err != nil {
		return err
	}
	if a.output == "json" {
		return a.json(agent.IsolationList{Isolations: list})
	}
	if len(list) == 0 {
		fmt.Fprintln(a.stdout, "nothing is isolated")
		return nil
	}
	t := newTable(a.stdout, "NAME", "SINCE", "PROCESSES", "EXCEPT", "LEFT OPEN", "WHO")
	for _, i := range list {
		var open []string
		for _, s := range i.Open {
			what, _, _ := strings.Cut(s, ":")
			what, _, _ = strings.Cut(what, " (")
			open = append(open, what)
		}
		t.row(i.Name, i.Since.Local().Format(time.DateTime), strconv.Itoa(i.Processes), strings.Join(i.Except, ", "), strings.Join(open, ", "), i.What)
	}
	return t.flush()
}

func (a *app) release() *cobra.Command {
	var o agent.ApplyOptions
	var all bool
	c := &cobra.Command{
		Use: "release NAME|--all", Short: "Let what was isolated use the network again",
		Long:    `Take an isolation away, or all of them. The connections that it ended stay ended: the subject has to make them anew.`,
		Example: "  pavise release isolate-1\n  pavise release --all",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if all == (len(args) == 1) {
				return usageError{errors.New("give the name of an isolation, or --all; see: pavise isolate --list")}
			}
			cl := a.client()
			if all {
				list, err := cl.Isolations(c.Context())
				if err != nil {
					return err
				}
				for _, i := range list {
					args = append(args, i.Name)
				}
			}
			changes := []*agent.Change{}
			for _, name := range args {
				ch, err := cl.Release(c.Context(), name, o)
				if err != nil {
					return err
				}
				changes = append(changes, ch)
				switch {
				case a.output == "json":
				case ch.DryRun:
					fmt.Fprintf(a.stdout, "would release %s\n", safe(name))
				default:
					fmt.Fprintf(a.stdout, "released %s; generation %d is active\n", safe(name), ch.Generation)
				}
			}
			if a.output == "json" {
				return a.json(changes)
			}
			if len(args) == 0 {
				fmt.Fprintln(a.stdout, "nothing is isolated")
			}
			return nil
		},
	}
	c.Flags().BoolVar(&all, "all", false, "all isolations")
	changeFlags(c, &o)
	return c
}
