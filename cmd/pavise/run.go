package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/pavise-project/pavise"
	"github.com/pavise-project/pavise/agent"
	"github.com/pavise-project/pavise/bpf"
	"github.com/pavise-project/pavise/enforce"
	"github.com/pavise-project/pavise/proc"
	"github.com/spf13/cobra"
)

func (a *app) run() *cobra.Command {
	var policies, containers []string
	var state, events, level, format, metrics, keep, pins string
	var groups agent.Groups
	var writers []string
	var span, historyAge time.Duration
	var historySize uint32
	var flows bool
	var servers, exports []string
	c := &cobra.Command{
		Use: "run", Short: "Run the agent in the foreground",
		Long: `Run the agent in the foreground: load the policies into the kernel, print events, and answer on the socket.

A --policy that is a directory stands for every *.yaml and *.yml below it, except below directories named testdata, demo or examples.
SIGINT, SIGTERM and the end of --for detach everything from the kernel; a second signal ends the agent at once. With --keep, enforcement goes on
without the agent, also when it is killed: the next one takes it over, and "pavise uninstall" ends it.
Events go to the standard output, all else to the standard error.

Who may use the socket is known from the kernel. Root and the agent's own user may do everything (the role admin); members of a --read-group see events, processes,
policies and how the agent is; those of a --write-group change the policies too; those of an --admin-group also change the agent. A group is a name in /etc/group or
a number. "pavise status" says which role you have.`,
		Example: `  pavise run --policy policies
  pavise run --policy web.yaml --for 1m --events json > events.ndjson
  pavise run --policy /etc/pavise --read-group adm --write-group wheel --events none --keep forever`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			var lv slog.Level
			if err := lv.UnmarshalText([]byte(level)); err != nil {
				return usageError{fmt.Errorf("--log-level %q: debug, info, warn and error are possible", level)}
			}
			if c.Flags().Changed("for") && span <= 0 {
				return usageError{fmt.Errorf("--for %s: must be over 0", span)}
			}
			if historyAge <= 0 {
				return usageError{fmt.Errorf("--history-age %s: must be over 0; --history-size 0 keeps none", historyAge)}
			}
			if events == "" {
				events = a.streamForm(c)
			}
			if events != "text" && events != "json" && events != "none" {
				return usageError{fmt.Errorf("--events %q: text, json and none are possible", events)}
			}
			var roots []proc.StateRoot
			for _, s := range containers {
				r, err := proc.ParseStateRoot(s)
				if err != nil {
					return usageError{fmt.Errorf("--container-state: %w", err)}
				}
				roots = append(roots, r)
			}
			if format != "text" && format != "json" {
				return usageError{fmt.Errorf("--log-format %q: text and json are possible", format)}
			}
			leveler := new(slog.LevelVar)
			leveler.Set(lv)
			log := slog.New(logHandler(a.stderr, format, leveler))
			groups.Write = append(groups.Write, writers...)
			stay, err := enforce.ParseKeep(keep)
			if err != nil {
				return usageError{fmt.Errorf("--keep %w", err)}
			}
			believed, err := addresses(servers)
			if err != nil {
				return usageError{fmt.Errorf("--dns-server: %w", err)}
			}
			var sinks []agent.Export
			for _, s := range exports {
				x, err := agent.ParseExport(s)
				if err != nil {
					return usageError{fmt.Errorf("--export %w", err)}
				}
				if !flows {
					return usageError{fmt.Errorf("--export %s: there are no flows with --flows=false", s)}
				}
				sinks = append(sinks, x)
			}
			// A bad policy is told before the kernel is touched.
			set, err := agent.LoadPolicies(policies)
			if err != nil {
				return err
			}
			ctx, cancel := context.WithCancelCause(c.Context())
			defer cancel(nil)
			k, err := a.openKernel(ctx, enforce.Options{Log: log, Keep: stay, PinDir: pins})
			if err != nil {
				return err
			}
			cfg := agent.Config{
				Socket: a.socket, StateDir: state, Groups: groups, Metrics: metrics, HistoryBytes: int64(historySize) << 20, HistoryAge: historyAge, Policies: set, Version: buildVersion(), Kernel: k, Log: log, LogLevel: leveler, ContainerState: roots,
				DNSServers: believed, Exports: sinks,
				OnReady: func(s *agent.Status) {
					a.banner(s, span)
					if err := notify(os.Getenv("NOTIFY_SOCKET"), "READY=1"); err != nil {
						log.Warn("say that the agent is ready", "err", err)
					}
				},
			}
			if e, ok := k.(*enforce.Enforcer); ok && flows {
				cfg.Flows = func() (agent.FlowSource, error) { return e.Flows(bpf.FlowOptions{Opens: true}) }
			}
			if events != "none" {
				signal.Ignore(syscall.SIGPIPE) // a reader who leaves must not keep the agent from detaching
				write := a.eventWriter(events)
				cfg.OnEvent = func(e *pavise.Event) {
					if err := write(e); err != nil {
						cancel(fmt.Errorf("print events: %w", err))
					}
				}
			}
			a.tweak(&cfg)
			ag, err := agent.New(cfg)
			if err != nil {
				return errors.Join(err, k.Close())
			}
			if span > 0 {
				t := time.AfterFunc(span, func() { cancel(nil) })
				defer t.Stop()
			}
			if err := ag.Run(ctx); err != nil || stay == enforce.KeepNot {
				return err
			}
			fmt.Fprintf(a.stderr, "pavise: the policies stay in force without an agent (--keep %s); \"pavise uninstall\" ends that\n", stay)
			return nil
		},
	}
	f := c.Flags()
	f.StringArrayVar(&policies, "policy", nil, "policy file or directory; may be given more than once")
	f.StringVar(&state, "state", agent.DefaultState, "the agent's own directory; one agent at a time uses it")
	f.DurationVar(&span, "for", 0, "stop after this time (30s, 5m); 0 runs until stopped")
	f.StringVar(&events, "events", "", "print events as text, json or none (default: text on a terminal, else json)")
	f.StringArrayVar(&containers, "container-state", nil, "where a container runtime keeps its state: docker=DIR (its data root), containerd=DIR (its state directory) or\nstorage=DIR (of Podman and CRI-O); may be given more than once, replaces the usual places")
	f.StringArrayVar(&groups.Read, "read-group", nil, "members of this group may see everything; may be given more than once")
	f.StringArrayVar(&groups.Write, "write-group", nil, "members of this group may change the policies too; may be given more than once")
	f.StringArrayVar(&groups.Admin, "admin-group", nil, "members of this group may do everything; may be given more than once")
	f.StringArrayVar(&writers, "group", nil, "another name of --write-group")
	f.StringVar(&metrics, "metrics", "", "serve Prometheus metrics on this loopback address too (127.0.0.1:9599); they are always on the socket, as /metrics")
	f.Uint32Var(&historySize, "history-size", 256, "MiB of disk for the events that are kept in the state directory (pavise query); 0 for none")
	f.DurationVar(&historyAge, "history-age", 30*24*time.Hour, "how long they are kept at most")
	f.StringVar(&keep, "keep", "no", "how long enforcement goes on without the agent: no, forever, or a time (10m)")
	f.StringVar(&pins, "pin-dir", enforce.DefaultPins, "where it is pinned then, on a bpf file system")
	f.BoolVar(&flows, "flows", true, "follow connections (pavise flows), and the names that addresses are looked up by")
	f.StringArrayVar(&exports, "export", nil, "write flows and answers of DNS for others: ndjson:FILE, eve:FILE, zeek:DIRECTORY, ipfix:udp://HOST:PORT\nor ipfix:tcp://HOST:PORT; may be given more than once")
	f.StringArrayVar(&servers, "dns-server", nil, "a server that rules on net.remote.domain believe, beside those of /etc/resolv.conf; may be given more than once")
	f.StringVar(&level, "log-level", "warn", "least level of the log: debug, info, warn or error")
	f.StringVar(&format, "log-format", "text", "form of the log, on the standard error: text or json")
	return c
}

func addresses(list []string) (out []netip.Addr, err error) {
	for _, s := range list {
		a, err := netip.ParseAddr(s)
		if err != nil {
			return nil, fmt.Errorf("%q is no address", s)
		}
		out = append(out, a.Unmap())
	}
	return out, nil
}

func logHandler(w io.Writer, format string, level slog.Leveler) slog.Handler {
	o := &slog.HandlerOptions{Level: level}
	if format == "json" {
		return slog.NewJSONHandler(w, o)
	}
	return slog.NewTextHandler(w, o)
}

// streamForm is the form of a stream of events when no flag says otherwise: text for people, JSON for programs.
func (a *app) streamForm(c *cobra.Command) string {
	if c.Flags().Changed("output") || a.terminal {
		return a.output
	}
	return "json"
}

// dull tells whether text leaves an event out: forks, each of which is followed by what the child does, and processes that ended well.
func dull(e *pavise.Event) bool {
	return e.Op == pavise.OpFork || e.Op == pavise.OpExit && e.Exit == (pavise.ExitInfo{})
}

// eventWriter writes events to the standard output; text without those that are dull.
func (a *app) eventWriter(form string) func(*pavise.Event) error {
	var buf []byte
	color := a.color()
	return func(e *pavise.Event) error {
		if form == "json" {
			buf = e.AppendJSON(buf[:0])
		} else {
			if dull(e) {
				return nil
			}
			buf = e.AppendText(buf[:0], color)
		}
		if len(buf) == 0 || buf[len(buf)-1] != '\n' {
			buf = append(buf, '\n')
		}
		_, err := a.stdout.Write(buf)
		return err
	}
}

// banner says what this agent is, to a person: it goes to the standard error.
func (a *app) banner(s *agent.Status, span time.Duration) {
	var order []string
	by := map[string][]string{}
	for _, o := range s.Ops {
		if !judged(o.Op) {
			continue
		}
		if by[o.Rung] == nil {
			order = append(order, o.Rung)
		}
		by[o.Rung] = append(by[o.Rung], o.Op)
	}
	rungs := make([]string, len(order))
	for i, r := range order {
		rungs[i] = r + ": " + strings.Join(by[r], " ")
	}
	names := make([]string, len(s.Policies))
	for i, p := range s.Policies {
		names[i] = safe(p.Name) + " (" + p.Mode + ")"
	}
	if len(names) == 0 {
		names = []string{"none: everything is allowed, and process starts and ends are shown"}
	}
	w := a.stderr
	fmt.Fprintf(w, "pavise %s on Linux %s\n", s.Version, safe(s.Kernel))
	fmt.Fprintf(w, "  rungs     %s\n", strings.Join(rungs, "; "))
	fmt.Fprintf(w, "  policies  %s\n", strings.Join(names, ", "))
	fmt.Fprintf(w, "  socket    %s\n", safe(s.Socket))
	if s.Keep.Keep != "no" || s.Keep.Adopted || s.Keep.Replaced != "" {
		fmt.Fprintf(w, "  agentless %s\n", keepText(&s.Keep))
	}
	if span > 0 {
		fmt.Fprintf(w, "  ends      in %s\n", span)
	}
	_, _ = io.WriteString(w, "\n")
}

// judged reports whether policies may have rules on op.
func judged(op string) bool { return op != pavise.OpFork.String() && op != pavise.OpExit.String() }
