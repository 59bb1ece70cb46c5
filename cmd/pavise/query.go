package main

import (
	"context"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/pavise-project/pavise"
	"github.com/pavise-project/pavise/agent"
	"github.com/spf13/cobra"
)

func (a *app) query() *cobra.Command {
	q := agent.HistoryQuery{Limit: -1}
	var since, until, from string
	c := &cobra.Command{
		Use: "query", Short: "Search the history of events",
		Long: `Search the events that the agent has kept on disk, oldest first: those of which a CEL condition holds, or with --group-by how many there are of each kind.

--since and --until take a duration back from now (90m, 24h, 7d) or a time (2026-01-02T15:04:05Z, 2026-01-02 15:04). --where is a condition in CEL, in the words of policies, with
the event's own facts: op, action, policy, rule. Text leaves out forks, and exits with code 0.

Without an agent, --from searches the directory of a history itself; the files in it can be read by any Parquet tool too (docs/history.md).`,
		Example: `  pavise query --since 24h --where 'action == "deny" || action == "kill"'
  pavise query --since 7d --group-by policy --group-by rule --group-by process.exe.path
  pavise query --where 'op == "process.exec" && process.exe.path.under("/tmp")' -o csv
  pavise query --from /var/lib/pavise --since 2026-01-02 --until 2026-01-03 -o json`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if c.Flags().Changed("limit") && q.Limit < 0 {
				return usageError{fmt.Errorf("--limit %d: must not be under 0", q.Limit)}
			}
			if from != "" && !c.Flags().Changed("since") {
				since = ""
			}
			if err := span(&q, since, until); err != nil {
				return err
			}
			w := a.historyWriter(&q)
			err := a.history(c.Context(), from, q, w.line)
			return errors.Join(err, w.close())
		},
	}
	f := c.Flags()
	f.StringVar(&since, "since", "1h", "from so long ago, or from this time; with --from, all when it is not given")
	f.StringVar(&until, "until", "", "to so long ago, or to this time (default: now)")
	f.StringVar(&q.Where, "where", "", "only events for which this CEL condition holds")
	f.StringArrayVar(&q.GroupBy, "group-by", nil, "count the events by this field of conditions; may be given more than once")
	f.Int64Var(&q.Limit, "limit", -1, "at most so many events or groups (default: all)")
	f.StringVar(&from, "from", "", "search this directory of a history, or of an agent's state, instead of asking the agent")
	return c
}

// span gives q the bounds that the flags say.
func span(q *agent.HistoryQuery, since, until string) (err error) {
	now := time.Now()
	if q.From, err = moment("--since", since, now); err != nil {
		return err
	}
	if q.To, err = moment("--until", until, now); err != nil {
		return err
	}
	if !q.From.IsZero() && !q.To.IsZero() && !q.From.Before(q.To) {
		return usageError{fmt.Errorf("--since %s is not before --until %s", since, until)}
	}
	return nil
}

// moment reads a point of time: so long before now, or a time. Empty is none.
func moment(flag, s string, now time.Time) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	text, days := s, 0
	if d, rest, ok := strings.Cut(s, "d"); ok {
		if n, err := strconv.Atoi(d); err == nil && n >= 0 && n < 1<<20 {
			days, text = n, rest
			if rest == "" {
				text = "0s"
			}
		}
	}
	if d, err := time.ParseDuration(text); err == nil && d >= 0 {
		return now.Add(-d).AddDate(0, 0, -days), nil
	}
	for _, form := range []string{time.RFC3339Nano, "2006-01-02 15:04:05", "2006-01-02 15:04", "2006-01-02"} {
		if t, err := time.ParseInLocation(form, s, time.Local); err == nil {
			return t, nil
		}
	}
	return time.Time{}, usageError{fmt.Errorf("%s %q: want a duration (90m, 24h, 7d) or a time (2026-01-02T15:04:05Z, 2026-01-02 15:04)", flag, s)}
}

// history searches the agent's history, or that in the directory from.
func (a *app) history(ctx context.Context, from string, q agent.HistoryQuery, fn func(*agent.HistoryLine) error) error {
	if from == "" {
		return a.client().History(ctx, q, fn)
	}
	dir, _ := agent.HistoryIn(from)
	return agent.ReadHistory(ctx, dir, q, fn)
}

// historyWriter writes the lines of a search in one of the forms.
type historyWriter struct {
	a     *app
	by    []string // empty: events
	form  string
	buf   []byte
	table *table
	csv   *csv.Writer
	shown bool // a line of progress stands on the terminal
	end   *agent.ScanEnd
}

func (a *app) historyWriter(q *agent.HistoryQuery) *historyWriter {
	w := &historyWriter{a: a, by: q.GroupBy, form: a.output}
	if w.form == "csv" {
		w.csv = csv.NewWriter(a.stdout)
		head := []string{"time", "op", "action", "monitor", "policy", "rule", "severity", "pid", "exe", "user", "unit", "container", "file", "remote", "count"}
		if len(w.by) > 0 {
			head = append(append([]string{}, w.by...), "events", "count", "first", "last")
		}
		_ = w.csv.Write(head) // Flush tells
	}
	return w
}

func (w *historyWriter) line(l *agent.HistoryLine) error {
	if l.Progress != nil {
		w.progress(l.Progress)
		return nil
	}
	w.clear()
	switch {
	case l.End != nil:
		w.end = l.End
		return nil
	case w.form == "json" && l.Event != nil:
		_, err := w.a.stdout.Write(append(l.Event, '\n'))
		return err
	case w.form == "json":
		return json.NewEncoder(w.a.stdout).Encode(l.Group)
	case l.Event != nil:
		var e pavise.Event
		if err := json.Unmarshal(l.Event, &e); err != nil {
			return err
		}
		if w.csv != nil {
			return w.csv.Write(plainCells(eventCells(&e)))
		}
		if dull(&e) {
			return nil
		}
		w.buf = time.Unix(0, e.Time).Local().AppendFormat(w.buf[:0], "2006-01-02 ")
		w.buf = append(e.AppendText(w.buf, w.a.color()), '\n')
		_, err := w.a.stdout.Write(w.buf)
		return err
	}
	return w.group(l.Group)
}

func (w *historyWriter) group(g *agent.HistoryGroup) error {
	form := time.DateTime
	if w.csv != nil {
		form = time.RFC3339Nano
	}
	cells := append(append([]string{}, g.Values...), strconv.FormatUint(g.Events, 10), strconv.FormatUint(g.Count, 10), g.First.Local().Format(form), g.Last.Local().Format(form))
	if w.csv != nil {
		return w.csv.Write(plainCells(cells))
	}
	if w.table == nil {
		head := []string{}
		for _, f := range w.by {
			head = append(head, strings.ToUpper(f))
		}
		w.table = newTable(w.a.stdout, append(head, "EVENTS", "COUNT", "FIRST", "LAST")...)
	}
	w.table.row(cells...)
	return nil
}

// progress shows a person how far a search is.
func (w *historyWriter) progress(p *agent.ScanProgress) {
	if w.a.watched && p.All > 0 {
		fmt.Fprintf(w.a.stderr, "\r%3d %% of %s", 100*p.Done/p.All, bytesText(uint64(p.All))) //nolint:gosec // a size
		w.shown = true
	}
}

func (w *historyWriter) clear() {
	if w.shown {
		fmt.Fprint(w.a.stderr, "\r\x1b[K")
		w.shown = false
	}
}

// close ends the output, and says what a reader could not know else.
func (w *historyWriter) close() error {
	w.clear()
	var err error
	if w.table != nil {
		err = w.table.flush()
	}
	if w.csv != nil {
		w.csv.Flush()
		err = errors.Join(err, w.csv.Error())
	}
	return errors.Join(err, w.a.scanEnd(w.end))
}

// scanEnd says what a search was, where that is not plain from what it found. Nil: it did not come to its end.
func (a *app) scanEnd(e *agent.ScanEnd) error {
	if e == nil {
		return nil
	}
	if e.Cut {
		fmt.Fprintln(a.stderr, "pavise: there are more: --limit left them out")
	}
	if e.Lost > 0 {
		fmt.Fprintf(a.stderr, "pavise: %d bytes of the history are no events: what a crash has cut off or damaged\n", e.Lost)
	}
	if len(e.Damaged) > 0 {
		return fmt.Errorf("a part of the history could not be read: %s", safe(strings.Join(e.Damaged, "; ")))
	}
	return nil
}

// plainCells keeps text that others chose from controlling a terminal, and from being a formula in a spreadsheet.
func plainCells(cells []string) []string {
	for i, s := range cells {
		s = safe(s)
		cells[i] = s
		if s != "" && strings.ContainsRune("=+-@\t\r", rune(s[0])) {
			cells[i] = "'" + s
		}
	}
	return cells
}

func eventCells(e *pavise.Event) []string {
	p := e.Process
	if p == nil {
		p = &pavise.Process{}
	}
	container, remote := "", ""
	if c := p.Container; c != nil {
		if container = c.Name; container == "" {
			container = c.ID
		}
	}
	if n := &e.Net; n.RemotePath != "" {
		remote = n.RemotePath
	} else if n.RemotePort != 0 || n.Remote != [16]byte{} {
		remote = netip.AddrPortFrom(netip.AddrFrom16(n.Remote).Unmap(), n.RemotePort).String()
	}
	user := p.User.Name
	if user == "" && !p.Unknown {
		user = strconv.FormatUint(uint64(p.User.ID), 10)
	}
	return []string{
		time.Unix(0, e.Time).UTC().Format(time.RFC3339Nano), e.Op.String(), e.Action.String(), strconv.FormatBool(e.Monitor), e.Policy, e.Rule, e.Severity,
		strconv.FormatUint(uint64(p.PID), 10), p.Exe.Path, user, p.Unit, container, e.File.Path, remote, strconv.FormatUint(max(e.Count, 1), 10),
	}
}
