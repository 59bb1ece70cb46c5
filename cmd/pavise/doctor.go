package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/pavise-project/pavise/agent"
	"github.com/pavise-project/pavise/enforce"
	"github.com/spf13/cobra"
)

func (a *app) doctor() *cobra.Command {
	return &cobra.Command{
		Use: "doctor", Short: "Say what this machine can enforce, by which means, and why not by a better one",
		Long: `Say, for each operation, which rung of the enforcement ladder is used here, and why not a higher one:
lsm and fmod_ret and cgroup make the call fail; kill-on-return kills the process before it sees the result.

The running agent is asked. Without one, the kernel is probed by this command itself, which needs root.`,
		Example: "  pavise doctor\n  pavise doctor -o json | jq '.operations[] | {op, rung}'",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			d, err := a.client().Doctor(c.Context())
			if err != nil {
				if !errors.Is(err, agent.ErrNoAgent) {
					return err
				}
				d = &agent.Doctor{Host: agent.ReadHost(), Ops: []agent.OpDoctor{}}
				if enforce.Left(enforce.DefaultPins) {
					d.Keep = &agent.KeepInfo{Pins: enforce.DefaultPins, Left: true}
				}
				var k agent.Kernel
				if k, err = a.openKernel(c.Context(), enforce.Options{}); err != nil {
					d.Error = err.Error()
				} else {
					d.Ops = agent.DoctorOps(k.Doctor())
					err = k.Close()
				}
			}
			if a.output == "json" {
				return errors.Join(a.json(d), err)
			}
			return errors.Join(a.doctorText(d), err)
		},
	}
}

func (a *app) doctorText(d *agent.Doctor) error {
	yes := map[bool]string{true: "yes", false: "no"}
	h := d.Host
	t := newTable(a.stdout)
	t.row("kernel", h.Kernel+" "+h.Arch)
	t.row("BTF", yes[h.BTF])
	lsm := strings.Join(h.LSM, ",")
	if lsm == "" {
		lsm = "unknown (to see them: mount -t securityfs securityfs /sys/kernel/security)"
	} else if !strings.Contains(","+lsm+",", ",bpf,") {
		lsm += "  (no bpf: boot with it in lsm= for the best rung)"
	}
	t.row("LSMs", lsm)
	cg := "v2 at " + h.Cgroup2
	if h.Cgroup2 == "" {
		cg = "no v2"
	}
	if n := len(h.Cgroup1); n > 0 {
		cg += fmt.Sprintf(", and %d of v1", n)
	}
	t.row("cgroups", cg)
	if h.Lockdown != "" {
		t.row("lockdown", h.Lockdown)
	}
	if len(h.Missing) > 0 {
		t.row("capabilities", "missing: "+strings.Join(h.Missing, " "))
	} else {
		t.row("capabilities", "all that are needed")
	}
	t.row("agent", map[bool]string{true: "runs, and gave this answer", false: "does not run; the kernel was asked"}[d.Agent])
	if d.Keep != nil {
		t.row("without an agent", keepText(d.Keep))
	}
	if err := t.flush(); err != nil {
		return err
	}
	if len(d.Ops) == 0 {
		return nil
	}
	fmt.Fprintln(a.stdout)
	t = newTable(a.stdout, "OPERATION", "RUNG", "DENY", "KILL")
	for _, o := range d.Ops {
		t.row(o.Op, o.Rung, yes[o.Deny], yes[o.Kill])
	}
	if err := t.flush(); err != nil {
		return err
	}
	a.reasons("why not a higher rung", d.Ops, func(o agent.OpDoctor) []string {
		if o.Why == "" {
			return nil
		}
		return []string{o.Why}
	})
	a.reasons("good to know", d.Ops, func(o agent.OpDoctor) []string { return o.Notes })
	return nil
}

// reasons prints each of the texts once, with the operations that it holds for.
func (a *app) reasons(title string, ops []agent.OpDoctor, of func(agent.OpDoctor) []string) {
	var order []string
	by := map[string][]string{}
	for _, o := range ops {
		for _, s := range of(o) {
			if by[s] == nil {
				order = append(order, s)
			}
			by[s] = append(by[s], o.Op)
		}
	}
	if len(order) == 0 {
		return
	}
	fmt.Fprintf(a.stdout, "\n%s\n", title)
	for _, s := range order {
		who := strings.Join(by[s], " ")
		if len(by[s]) == len(ops) {
			who = "all"
		}
		fmt.Fprintf(a.stdout, "  %s: %s\n", who, safe(s))
	}
}
