package main

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"

	"github.com/pavise-project/pavise/agent"
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
				var k agent.Kernel
				if k, err = a.openKernel(c.Context(), slog.New(slog.DiscardHandler)); err != nil {
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
		lsm = "unknown (securityfs is not mounted)"
	} else if !strings.Contains(","+lsm+",", ",bpf,") {
		lsm += "  (no bpf: boot with it in lsm= for the best rung)"
	}
	t.row("LSMs", lsm)
	cg := "v2 at " + h.Cgroup2
	if h.Cgroup2 == "" {
		cg = "no v2"
	}
	if n := len(h.Cgroup1); n > 0 {
		cg += fmt.Sprintf(", v1 at %d places", n)
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
	t.row("agent", yes[d.Agent])
	if err := t.flush(); err != nil {
		return err
	}
	if len(d.Ops) == 0 {
		return nil
	}
	fmt.Fprintln(a.stdout)
	t = newTable(a.stdout, "OPERATION", "RUNG", "DENY", "KILL", "WHY NOT HIGHER")
	for _, o := range d.Ops {
		t.row(o.Op, o.Rung, yes[o.Deny], yes[o.Kill], o.Why)
	}
	if err := t.flush(); err != nil {
		return err
	}
	for _, o := range d.Ops {
		for _, n := range o.Notes {
			fmt.Fprintf(a.stdout, "%s: %s\n", o.Op, safe(n))
		}
	}
	return nil
}
