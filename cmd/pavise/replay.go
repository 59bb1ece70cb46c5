package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/pavise-project/pavise/agent"
	"github.com/pavise-project/pavise/policy"
	"github.com/spf13/cobra"
)

// replaySubjects is how many of those whom a rule would have stopped stand in the table; JSON has more.
const replaySubjects = 10

// stoppedError says that a candidate would have stopped something. It was told already.
type stoppedError struct{ error }

func (e *stoppedError) Unwrap() error { return e.error }

func (a *app) replay() *cobra.Command {
	q := agent.HistoryQuery{}
	var since, until, from string
	var newOnly, strict bool
	c := &cobra.Command{
		Use: "replay REVISION|FILE", Short: "Run recorded events through policies, and say what these would have denied",
		Long: `Run the events of the history through a candidate, which is the policies of a file (- for the standard input) and no others, or a revision of the whole set, by its number.
It says what would have been killed, denied and audited if all of these policies were enforced: by which rule, to whom, how often, when first and last, and with
an event as an example. Nothing is changed.

Replay sees only what was recorded: the start of every program, and of everything else what some rule in force asked for. It says for each operation that the candidate
judges what was recorded of it, what could not be decided for want of a fact that was not, and what was lost.

--since and --until take a duration back from now (90m, 24h, 7d) or a time (2026-01-02T15:04:05Z, 2026-01-02 15:04). Without an agent, --from searches the directory of a
history itself, or that of an agent's state, which has the revisions too.

It exits with code 7 when the candidate would have killed or denied anything, in whatever mode its policies are; with --new, only when that was not
stopped at its time. With --strict, also when something was lost, damaged or undecided, or when nothing was recorded of an operation.`,
		Example: `  pavise replay web.yaml --since 7d
  pavise replay 12 --since 24h --where 'process.unit == "nginx.service"'
  pavise replay --from /var/lib/pavise web.yaml -o json | jq .rules
  pavise replay web.yaml --new && pavise apply -f web.yaml`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if from != "" && !c.Flags().Changed("since") {
				since = ""
			}
			if err := span(&q, since, until); err != nil {
				return err
			}
			ps, err := a.candidate(c.Context(), args[0], from)
			if err != nil {
				return err
			}
			w := &historyWriter{a: a}
			r, err := agent.RunReplay(c.Context(), ps, q, func(ctx context.Context, q agent.HistoryQuery, fn func(*agent.HistoryLine) error) error {
				return a.history(ctx, from, q, fn)
			}, w.progress)
			w.clear()
			if err != nil {
				return err
			}
			if a.output == "json" {
				err = a.json(r)
			} else {
				err = a.replayText(r)
			}
			if err != nil {
				return err
			}
			switch {
			case r.Stopped(newOnly):
				return &stoppedError{&silentError{errors.New("the candidate would have stopped something")}}
			case strict && !r.Whole():
				return &stoppedError{&silentError{errors.New("not everything was decided")}}
			case len(r.Damaged) > 0:
				return fmt.Errorf("a part of the history could not be read: %s", safe(strings.Join(r.Damaged, "; ")))
			}
			return nil
		},
	}
	f := c.Flags()
	f.StringVar(&since, "since", "1h", "from so long ago, or from this time; with --from, all when it is not given")
	f.StringVar(&until, "until", "", "to so long ago, or to this time (default: now)")
	f.StringVar(&q.Where, "where", "", "only events for which this CEL condition holds")
	f.StringVar(&from, "from", "", "read this directory of a history, or of an agent's state, instead of asking the agent")
	f.BoolVar(&newOnly, "new", false, "exit with code 7 only for what was not stopped at its time")
	f.BoolVar(&strict, "strict", false, "exit with code 7 also when something was lost or undecided, or an operation not recorded")
	return c
}

// candidate are the policies of a revision or a file.
func (a *app) candidate(ctx context.Context, arg, from string) ([]*policy.Policy, error) {
	if n, err := strconv.ParseUint(arg, 10, 64); err == nil {
		if n == 0 {
			_, err := revisionArg(arg)
			return nil, err
		}
		if from == "" {
			rev, err := a.client().Revision(ctx, n)
			if err != nil {
				return nil, err
			}
			return agent.RevisionPolicies(&rev.Revision)
		}
		_, state := agent.HistoryIn(from)
		if state == "" {
			return nil, usageError{fmt.Errorf("revision %d: %s is no directory of an agent's state, which has the revisions: give a file of policies", n, safe(from))}
		}
		return agent.ReadRevisionPolicies(state, n)
	}
	var ps []*policy.Policy
	var err error
	if arg == "-" {
		var data []byte
		if data, err = agent.ReadPolicy(a.stdin); err != nil {
			return nil, usageError{fmt.Errorf("read policy: %w", err)}
		}
		ps, err = policy.ParseWith("stdin", data, agent.SetsIn("."))
	} else {
		ps, err = agent.LoadPolicies([]string{arg})
	}
	if err == nil {
		err = agent.Duplicates(ps)
	}
	return ps, err
}

var pastOf = map[string]string{"kill": "killed", "deny": "denied", "audit": "audited"}

func (a *app) replayText(r *agent.Replay) error {
	if len(r.Rules) > 0 {
		t := newTable(a.stdout, "POLICY", "RULE", "OPERATION", "WOULD BE", "MODE", "BY", "USER", "WHERE", "COUNT", "FIRST", "LAST", "EXAMPLE")
		for _, rule := range r.Rules {
			left := rule.Others
			for i, s := range rule.Subjects {
				if i >= replaySubjects {
					left += s.Events
					continue
				}
				t.row(rule.Policy, rule.Rule, rule.Operation, pastOf[rule.Action], rule.Mode, replayExe(&s), s.User, replayPlace(&s), strconv.FormatUint(s.Count, 10),
					localTime(s.First), localTime(s.Last), strings.TrimSuffix(fmt.Sprintf("%d %s", s.Example.ID, s.Example.Object), " "))
			}
			if left > 0 {
				t.row(rule.Policy, rule.Rule, rule.Operation, pastOf[rule.Action], rule.Mode, fmt.Sprintf("others, %d events", left))
			}
		}
		if err := t.flush(); err != nil {
			return err
		}
		fmt.Fprintln(a.stdout)
	}
	t := newTable(a.stdout, "OPERATION", "EVENTS", "COUNT", "UNDECIDED", "RECORDED")
	for _, o := range r.Operations {
		t.row(o.Operation, strconv.FormatInt(o.Events, 10), strconv.FormatUint(o.Count, 10), strconv.FormatInt(o.Undecided.Events, 10), replayRecorded(&o))
	}
	if err := t.flush(); err != nil {
		return err
	}
	a.replayGaps(a.stdout, r)
	span := "no event of these operations is in the history"
	if r.First != nil {
		span = fmt.Sprintf("judged %d events, from %s to %s", r.Judged.Events, localTime(*r.First), localTime(*r.Last))
	}
	fmt.Fprintf(a.stdout, "%s, in %s\n", span, r.Took.Round(time.Millisecond))
	fmt.Fprintf(a.stdout, "would be killed: %d, denied: %d, audited: %d; of the killed and denied, %d were stopped then, too\n",
		r.Killed.Count, r.Denied.Count, r.Audited.Count, r.Already.Count)
	return nil
}

// replayGaps says what is not known.
func (a *app) replayGaps(w io.Writer, r *agent.Replay) {
	for _, o := range r.Operations {
		for _, m := range o.Missing {
			fmt.Fprintf(w, "undecided: %d events of %s, for want of %s, which was not recorded\n", m.Events, o.Operation, m.Field)
		}
	}
	for _, l := range r.Lost {
		of := " of " + l.Operation
		if l.Operation == "none" {
			of = ""
		}
		fmt.Fprintf(w, "lost: %d events%s (%s)\n", l.Count, of, safe(l.Where))
	}
	for _, d := range r.Damaged {
		fmt.Fprintf(w, "damaged: %s\n", safe(d))
	}
	if r.LostBytes > 0 {
		fmt.Fprintf(w, "lost: %d bytes of the history are no events: what a crash has cut off or damaged\n", r.LostBytes)
	}
	if r.Shadow > 0 {
		fmt.Fprintf(w, "left out: %d events about a shadow\n", r.Shadow)
	}
}

func replayExe(s *agent.ReplaySubject) string {
	switch {
	case s.Exe != "":
		return s.Exe
	case s.Parent != "":
		return "not recorded, a child of " + s.Parent
	}
	return "not recorded"
}

func replayPlace(s *agent.ReplaySubject) string {
	if s.Container != "" {
		return "container " + s.Container
	}
	return s.Unit
}

func replayRecorded(o *agent.ReplayOp) string {
	by := strings.Join(o.By, " ")
	switch {
	case o.Always:
		return "each that succeeds"
	case o.Events == 0:
		return "none: no rule in force asked for it, or it did not happen"
	case by == "":
		return "what rules asked for"
	}
	return "what rules asked for: " + by
}

func localTime(t time.Time) string { return t.Local().Format(time.DateTime) }
