package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/pavise-project/pavise"
	"github.com/pavise-project/pavise/agent"
	"github.com/pavise-project/pavise/policies"
	"github.com/pavise-project/pavise/policy"
	"github.com/pavise-project/pavise/policy/learn"
	"github.com/spf13/cobra"
)

type learnFlags struct {
	subject, name, file, update string
	since, until, from          string // of the history
	ops                         []string
	length                      time.Duration
	maxLoss                     float64
	withoutRare, end, attach    bool
}

func (a *app) learn() *cobra.Command {
	var f learnFlags
	c := &cobra.Command{
		Use: "learn (--subject CEL (--for DURATION | --since TIME) | --attach | --end | --update FILE)", Short: "Write a policy from what a program does",
		Long: `Watch what the processes of a subject do, for a time or until ctrl-C, and write a policy that allows just that: in mode: monitor, to be read before it is enforced.

Paths are generalised to directories and globs, and addresses to networks, where a person would; never over the directories of programs, secrets and
places of persistence. Beside each rule stands its evidence: how often, when first and last, and an example process. What was seen once, and not
at a process's start, stands apart. What the starter library flags, or a policy of the agent's denies, is not learned, and listed.

The agent watches, also when this command is gone: --attach waits for it again, --end ends it early; both write the policy. When more
than --max-loss percent of the acts were lost, nothing is written.

Programs that ran already when learning began have opened what they need at their start: restart them while it goes on.

With --since, instead of --for, it learns from the history: from what rules have told of the subject since then. --update adds to a policy what it would have denied since
then (1h when not given), as the history has it: rules below those that are there, with the same evidence; nothing else of the file changes.`,
		Example: "  pavise learn --subject 'process.unit == \"nginx.service\"' --for 1h -f nginx.yaml\n" +
			"  pavise learn --end -f nginx.yaml\n  pavise learn --update nginx.yaml --since 7d -f nginx.yaml\n  pavise check nginx.yaml && pavise apply -f nginx.yaml",
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return a.runLearn(c, &f) },
	}
	fl := c.Flags()
	fl.StringVar(&f.subject, "subject", "", "whose acts: a CEL condition on the process")
	fl.DurationVar(&f.length, "for", 0, "how long: 10m, 24h")
	fl.StringSliceVar(&f.ops, "on", nil, "operations, as file.open,process.exec; all that this machine can see when not given")
	fl.StringVar(&f.update, "update", "", "add to this policy what it would have denied")
	fl.StringVar(&f.since, "since", "", "learn from the history, from so long ago or from this time")
	fl.StringVar(&f.until, "until", "", "to so long ago, or to this time (default: now)")
	fl.StringVar(&f.from, "from", "", "the directory of a history, or of an agent's state, instead of asking the agent")
	fl.StringVar(&f.name, "name", "learned", "name of the policy")
	fl.StringVarP(&f.file, "file", "f", "-", "where to write the policy; - is standard output")
	fl.BoolVar(&f.withoutRare, "without-rare", false, "leave out what was seen once, and not at a start")
	fl.Float64Var(&f.maxLoss, "max-loss", 0.1, "percent of the acts that may have been lost")
	fl.BoolVar(&f.attach, "attach", false, "wait for the learning that is on")
	fl.BoolVar(&f.end, "end", false, "end the learning that is on")
	return c
}

func (a *app) runLearn(c *cobra.Command, f *learnFlags) error {
	given := func(names ...string) (n int) {
		for _, name := range names {
			if c.Flags().Changed(name) {
				n++
			}
		}
		return n
	}
	switch {
	case given("subject", "attach", "end", "update") != 1:
		return usageError{errors.New("give one of --subject, --attach, --end and --update")}
	case f.subject != "" && given("for", "since") != 1:
		return usageError{errors.New("--subject goes with --for, how long to watch, or with --since, to learn from the history")}
	case given("for") == 1 && (f.subject == "" || f.length <= 0):
		return usageError{errors.New("--for is how long to watch a --subject: more than 0")}
	case given("since", "until", "from") > 0 && given("for", "attach", "end") > 0:
		return usageError{errors.New("--since, --until and --from are about the history: with --subject or --update")}
	case f.maxLoss < 0 || f.maxLoss > 100:
		return usageError{errors.New("--max-loss is a percentage, from 0 to 100")}
	case f.update != "":
		return a.updateLearned(c.Context(), f)
	case given("since") == 1:
		return a.learnHistory(c.Context(), f)
	}
	ctx, cl := c.Context(), a.client()
	var st *agent.Learning
	var err error
	switch {
	case f.end:
		st, err = cl.EndLearning(ctx)
	case f.attach:
		st, err = cl.Learning(ctx)
	default:
		st, err = cl.StartLearning(ctx, agent.LearnRequest{Subject: f.subject, Ops: f.ops, For: f.length})
	}
	if err != nil {
		return err
	}
	if st.On && st.Running > 0 {
		fmt.Fprintf(a.stderr, "processes of the subject that run already: %d; restart them while learning goes on, so that their start is learned\n", st.Running)
	}
	if st, err = a.watchLearning(ctx, cl, st); err != nil {
		return err
	}
	// The context may be done, by ctrl-C: what was learned is written all the same.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	var seen learn.Observed
	if err := cl.Learned(ctx, &seen); err != nil {
		return err
	}
	seen.Seen, seen.Lost = st.Seen, st.Lost
	return a.writeLearned(f, st, &seen)
}

// watchLearning waits until the learning has ended, and ends it when the context is done.
func (a *app) watchLearning(ctx context.Context, cl *agent.Client, st *agent.Learning) (*agent.Learning, error) {
	show := func(end string) {
		if a.terminal {
			fmt.Fprintf(a.stderr, "\rlearning: %d acts, %d different, %d lost, %s left  %s", st.Seen, st.Acts, st.Lost, max(0, time.Until(st.Until)).Round(time.Second), end)
		}
	}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for st.On {
		show("")
		select {
		case <-ctx.Done():
			end, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
			defer cancel()
			st, err := cl.EndLearning(end)
			if errors.Is(err, agent.ErrNoPolicy) { // its time was over just then
				return cl.Learning(end)
			}
			return st, err
		case <-tick.C:
		}
		var err error
		if st, err = cl.Learning(ctx); err != nil && ctx.Err() == nil {
			return nil, fmt.Errorf("%w; what was learned until then is lost when the agent has ended", err)
		} else if err != nil {
			st = &agent.Learning{On: true}
		}
	}
	show("\n")
	return st, nil
}

// learned is what `pavise learn -o json` prints.
type learned struct {
	Learning *agent.Learning    `json:"learning,omitempty"`
	Share    float64            `json:"lost_percent"`
	Rules    []learn.RuleReport `json:"rules"`
	Left     []learn.LeftReport `json:"not_learned"`
	Policy   string             `json:"policy"`
}

func (a *app) writeLearned(f *learnFlags, st *agent.Learning, seen *learn.Observed) error {
	if seen.Len() == 0 {
		return fmt.Errorf("nothing was seen of %s: no process that it holds for did anything; see: pavise ps", st.Subject)
	}
	if err := sound(f, seen); err != nil {
		return err
	}
	l := learn.Learn(seen.Acts(), !f.withoutRare)
	text := l.Write(learn.Options{Name: f.name, Subject: st.Subject, Ops: opsNamed(st.Ops), Notes: notesOf(st, seen)})
	if _, err := policy.Parse(f.name, []byte(text)); err != nil {
		return fmt.Errorf("check what was learned: %w", err)
	}
	if a.output == "json" {
		return a.json(learned{Learning: st, Share: 100 * seen.Share(), Rules: l.RuleReports(), Left: l.LeftReports(), Policy: text})
	}
	if err := a.writePolicy(f, text); err != nil {
		return err
	}
	a.sayLearned(l, seen)
	return nil
}

// sound refuses acts of which too many were lost, and marks those that the starter library flags.
func sound(f *learnFlags, seen *learn.Observed) error {
	if share := 100 * seen.Share(); share > f.maxLoss {
		return fmt.Errorf("%d of %d acts were lost, %.2f %%: a policy of what is left would deny some of them; learn for fewer operations (--on), or see pavise status for where they are lost (--max-loss raises the limit, which is %g %%)",
			seen.Lost, seen.Lost+seen.Seen, share, f.maxLoss)
	}
	library, err := starterLibrary()
	if err != nil {
		return err
	}
	return seen.Flag(library)
}

func (a *app) writePolicy(f *learnFlags, text string) (err error) {
	switch f.file {
	case "-":
		_, err = fmt.Fprint(a.stdout, text)
	case f.update:
		err = writeOver(f.file, text)
	default:
		err = writeNew(f.file, text)
	}
	if err != nil {
		return fmt.Errorf("write the policy: %w", err)
	}
	return nil
}

func (a *app) sayLearned(l *learn.Learned, seen *learn.Observed) {
	rare, left := 0, 0
	for _, r := range l.Rules {
		if r.Rare {
			rare++
		}
	}
	for _, o := range l.Left {
		left += len(o.Acts)
	}
	fmt.Fprintf(a.stderr, "learned %d rules from %d acts, %d different; %d rules are of what was seen once; %d acts were not learned, each is listed\n",
		len(l.Rules), seen.Seen, seen.Len(), rare, left)
}

// historyActs are the acts in the history for which a condition holds.
func (a *app) historyActs(ctx context.Context, f *learnFlags, since, where string) (*learn.Observed, *agent.HistoryQuery, error) {
	q := agent.HistoryQuery{Limit: -1, Where: fmt.Sprintf("op == \"agent.lost\" || (%s)", where)}
	if err := span(&q, since, f.until); err != nil {
		return nil, nil, err
	}
	if q.To.IsZero() {
		q.To = time.Now()
	}
	seen := &learn.Observed{}
	err := a.history(ctx, f.from, q, func(l *agent.HistoryLine) error {
		if l.Event == nil {
			return nil
		}
		var e pavise.Event
		if err := json.Unmarshal(l.Event, &e); err != nil {
			return fmt.Errorf("read an event of the history: %w", err)
		}
		switch {
		case e.Op == pavise.OpLost:
			if int(e.Lost.Op) < pavise.NumJudged {
				seen.Lost += e.Lost.Count
			}
		case e.Action != pavise.ActionNone && e.Shadow == pavise.DecisionNone && (len(f.ops) == 0 || slices.Contains(f.ops, e.Op.String())):
			seen.Add(&e)
		}
		return nil
	})
	return seen, &q, err
}

// learnHistory learns from what rules have told.
func (a *app) learnHistory(ctx context.Context, f *learnFlags) error {
	seen, q, err := a.historyActs(ctx, f, f.since, f.subject)
	if err != nil {
		return err
	}
	for _, act := range seen.Acts() {
		if e := act.Event; e.Action >= pavise.ActionDeny && !strings.HasPrefix(e.Rule, "default/") {
			act.By = e.Policy + "/" + e.Rule
		}
	}
	st := &agent.Learning{Subject: f.subject, Since: q.From, Until: q.To, Acts: seen.Len(), Seen: seen.Seen, Why: "from the history: what no rule has told of is not in it"}
	ops := map[pavise.Op]bool{}
	for _, act := range seen.Acts() {
		ops[act.Event.Op] = true
	}
	for op := range pavise.NumOps {
		if ops[op] {
			st.Ops = append(st.Ops, op.String())
		}
	}
	return a.writeLearned(f, st, seen)
}

// updateLearned adds to a policy what it would have denied.
func (a *app) updateLearned(ctx context.Context, f *learnFlags) error {
	name, data, sets, err := a.policyFile(f.update)
	if err != nil {
		return err
	}
	if len(sets) > 0 {
		return usageError{fmt.Errorf("%s names sets: a policy with sets cannot be updated", name)}
	}
	ps, err := policy.Parse(name, data)
	if err != nil {
		return err
	}
	since := f.since
	if since == "" {
		since = "1h"
	}
	seen, _, err := a.historyActs(ctx, f, since, fmt.Sprintf("policy == %q", ps[0].Name))
	if err != nil {
		return err
	}
	if err := sound(f, seen); err != nil {
		return err
	}
	text, l, err := learn.Update(name, data, seen.Acts(), !f.withoutRare)
	if err != nil {
		return err
	}
	if a.output == "json" {
		return a.json(learned{Share: 100 * seen.Share(), Rules: l.RuleReports(), Left: l.LeftReports(), Policy: string(text)})
	}
	if err := a.writePolicy(f, string(text)); err != nil {
		return err
	}
	for _, o := range l.Left {
		fmt.Fprintf(a.stderr, "not learned, %s: %d acts\n", safe(o.Why), len(o.Acts))
	}
	a.sayLearned(l, seen)
	return nil
}

// writeOver replaces a file as a whole.
func writeOver(name, text string) error {
	w, err := os.CreateTemp(filepath.Dir(name), ".learn-*")
	if err != nil {
		return err
	}
	defer os.Remove(w.Name())
	_, err = w.WriteString(text)
	if err := errors.Join(err, w.Chmod(0o644), w.Sync(), w.Close()); err != nil { //nolint:gosec // a policy is no secret
		return err
	}
	return os.Rename(w.Name(), name)
}

// writeNew writes a file that is not there yet: a policy that a person has changed is not written over.
func writeNew(name, text string) error {
	w, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644) //nolint:gosec // a policy is no secret
	if err != nil {
		return err
	}
	_, err = w.WriteString(text)
	return errors.Join(err, w.Close())
}

func notesOf(st *agent.Learning, seen *learn.Observed) []string {
	notes := []string{
		fmt.Sprintf("Learned from %s to %s UTC, of: %s", st.Since.UTC().Format(time.DateTime), st.Until.UTC().Format(time.DateTime), st.Subject),
		fmt.Sprintf("%d acts, %d different. Lost, of all processes: %d, %.3f %%.", st.Seen, st.Acts, seen.Lost, 100*seen.Share()),
	}
	if st.Why != "" {
		notes[0] += " (" + st.Why + ")"
	}
	if st.Running > 0 {
		notes = append(notes, fmt.Sprintf("Processes that ran already when it began: %d; how they start was not seen, unless they were restarted.", st.Running))
	}
	if len(st.Unseen) > 0 {
		notes = append(notes, "This machine cannot see, and the policy does not deny: "+strings.Join(st.Unseen, " "))
	}
	return notes
}

func opsNamed(names []string) (ops []pavise.Op) {
	for op := range pavise.NumOps {
		if slices.Contains(names, op.String()) {
			ops = append(ops, op)
		}
	}
	return ops
}

// starterLibrary is the policies that are shipped.
func starterLibrary() (ps []*policy.Policy, err error) {
	files, err := policies.Library()
	if err != nil {
		return nil, fmt.Errorf("read the starter library: %w", err)
	}
	for name, data := range files {
		p, err := policy.Parse(name, data)
		if err != nil {
			return nil, fmt.Errorf("read the starter library: %w", err)
		}
		ps = append(ps, p...)
	}
	slices.SortFunc(ps, func(a, b *policy.Policy) int { return strings.Compare(a.Name, b.Name) })
	return ps, nil
}
