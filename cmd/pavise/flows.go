package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pavise-project/pavise"
	"github.com/pavise-project/pavise/agent"
	"github.com/pavise-project/pavise/policy"
	"github.com/spf13/cobra"
)

func (a *app) flows() *cobra.Command {
	var q agent.FlowQuery
	var by []string
	c := &cobra.Command{
		Use: "flows", Short: "Show connections, and who made them",
		Long: `Show the connections that are open, with the process, user and unit or container at this end, and at the other end too where that is on this host; with --ended also the last
that ended, with --follow those that end from now on, those that were denied, and every ten seconds those that go on.

--where is a condition in CEL, in the words of policies, with those of flows: flow.bytes, flow.end, net.remote.domain, tls.sni (docs/flows.md lists them). --group-by adds the flows
up by a field. A terminal gets text, a pipe gets lines of JSON, unless -o says otherwise.`,
		Example: `  pavise flows
  pavise flows --follow --where 'process.exe.name == "curl"'
  pavise flows --ended --group-by process.exe.path --group-by net.remote.domain
  pavise flows --ended --where 'flow.end == "denied"' -o json | jq .flow.remote`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if len(by) > 0 {
				if q.Follow {
					return usageError{fmt.Errorf("--group-by needs an end: leave out --follow")}
				}
				return a.flowGroups(c.Context(), q, by)
			}
			if !q.Follow && a.streamForm(c) == "text" {
				return a.flowTable(c.Context(), q)
			}
			return a.showStream(c, q.Follow, func(fn func([]byte) error) error { return a.client().Flows(c.Context(), q, fn) })
		},
	}
	f := c.Flags()
	f.BoolVarP(&q.Follow, "follow", "f", false, "show those that end from now on, and what is said of those that go on")
	f.BoolVar(&q.Begun, "begun", false, "with --follow: also when one begins")
	f.BoolVar(&q.Ended, "ended", false, "also the last 2,048 that ended")
	f.StringVar(&q.Where, "where", "", "only flows of which this CEL condition holds")
	f.StringArrayVar(&by, "group-by", nil, "add the flows up by this field of conditions; may be given more than once")
	c.AddCommand(a.flowsTop(), a.flowsMap())
	return c
}

// readFlows returns the flows of an answer that has an end.
func (a *app) readFlows(ctx context.Context, cl *agent.Client, q agent.FlowQuery) (out []*pavise.Event, err error) {
	err = cl.Flows(ctx, q, func(line []byte) error {
		e := new(pavise.Event)
		if err := json.Unmarshal(line, e); err != nil {
			return fmt.Errorf("read flow: %w", err)
		}
		if e.Flow != nil {
			out = append(out, e)
		}
		return nil
	})
	return out, err
}

func (a *app) flowTable(ctx context.Context, q agent.FlowQuery) error {
	es, err := a.readFlows(ctx, a.client(), q)
	if err != nil {
		return err
	}
	rows := [][]string{{"PROCESS", "USER", "WHERE", "PROTO", "STATE", "AGE", "SENT", "RECEIVED", "LOCAL", "", "REMOTE"}}
	for _, e := range es {
		f := e.Flow
		state := f.State.String()
		if f.State == pavise.FlowClosed {
			state = cmp.Or(f.End.String(), state)
		}
		if f.Rule != "" {
			state += " " + f.Policy + "/" + f.Rule
		}
		rows = append(rows, []string{
			processText(e.Process), userText(e.Process), whereText(e.Process), protocolText(f), state, ageText(time.Duration(f.Time - f.Start)),
			bytesText(f.Sent.Bytes), bytesText(f.Received.Bytes), sideText(&f.Local, f), directionText(f), remoteText(f),
		})
	}
	return a.cutTable(rows)
}

func processText(p *pavise.Process) string {
	switch {
	case p == nil:
		return "?"
	case p.Unknown:
		return fmt.Sprintf("?[%d]", p.PID)
	}
	name := p.Exe.Path[strings.LastIndexByte(p.Exe.Path, '/')+1:]
	return fmt.Sprintf("%s[%d]", name, p.PID)
}

func userText(p *pavise.Process) string {
	if p == nil || p.Unknown {
		return ""
	}
	return cmp.Or(p.User.Name, strconv.FormatUint(uint64(p.User.ID), 10))
}

func whereText(p *pavise.Process) string {
	switch {
	case p == nil:
		return ""
	case p.Container != nil:
		return containerText(p)
	}
	return p.Unit
}

// protocolText names what a flow speaks, as far as that is known.
func protocolText(f *pavise.Flow) string {
	name := pavise.ProtocolNames.Name(uint64(f.Protocol))
	if f.Family == pavise.FamilyUnix {
		name = "unix"
	}
	if f.TLS != nil {
		if f.TLS.QUIC {
			return "quic"
		}
		return name + "/tls"
	}
	return name
}

func directionText(f *pavise.Flow) string {
	switch f.Direction {
	case pavise.FlowOutbound:
		return "->"
	case pavise.FlowInbound:
		return "<-"
	}
	return "--"
}

func sideText(s *pavise.FlowSide, f *pavise.Flow) string {
	switch {
	case s.Path != "":
		return s.Path
	case !s.Address.IsValid():
		if f.Others && s == &f.Remote {
			return "others"
		}
		return ""
	case s.Port == 0:
		return s.Address.String()
	}
	return netip.AddrPortFrom(s.Address, s.Port).String()
}

// nameText is what a flow's other end is called: by who looked it up, or by what the client asked it for.
func nameText(f *pavise.Flow) string {
	name := f.Remote.Name
	if name == "" && f.TLS != nil && f.Direction != pavise.FlowInbound {
		name = f.TLS.SNI
	}
	return name
}

func remoteText(f *pavise.Flow) string {
	s := sideText(&f.Remote, f)
	if name := nameText(f); name != "" {
		s += " (" + name + ")"
	}
	if p := f.Remote.Process; p != nil {
		s += " " + processText(p)
	}
	return s
}

func ageText(d time.Duration) string {
	switch {
	case d < 0:
		return "-"
	case d < time.Millisecond:
		return d.Round(time.Microsecond).String()
	case d < time.Second:
		return d.Round(time.Millisecond).String()
	}
	return d.Round(time.Second).String()
}

// flowGroup is what flows that have the same values of some fields come to.
type flowGroup struct {
	Values   []string `json:"values"`
	Flows    uint64   `json:"flows"`
	Sent     uint64   `json:"sent_bytes"`
	Received uint64   `json:"received_bytes"`
	Denied   uint64   `json:"denied"`
}

func (a *app) flowGroups(ctx context.Context, q agent.FlowQuery, by []string) error {
	var fields []func(*pavise.Event) string
	for _, name := range by {
		f, err := policy.FieldText(name)
		if err != nil {
			return usageError{fmt.Errorf("--group-by: %w", err)}
		}
		fields = append(fields, f)
	}
	es, err := a.readFlows(ctx, a.client(), q)
	if err != nil {
		return err
	}
	groups := groupFlows(es, fields)
	if a.output == "json" || a.output == "" && !a.terminal {
		enc := json.NewEncoder(a.stdout)
		for _, g := range groups {
			if err := enc.Encode(g); err != nil {
				return err
			}
		}
		return nil
	}
	head := make([]string, len(by))
	for i, name := range by {
		head[i] = strings.ToUpper(name)
	}
	t := newTable(a.stdout, append(head, "FLOWS", "SENT", "RECEIVED", "DENIED")...)
	for _, g := range groups {
		t.row(append(slices.Clone(g.Values), strconv.FormatUint(g.Flows, 10), bytesText(g.Sent), bytesText(g.Received), strconv.FormatUint(g.Denied, 10))...)
	}
	return t.flush()
}

// groupFlows adds flows up, those that carried most first.
func groupFlows(es []*pavise.Event, fields []func(*pavise.Event) string) []*flowGroup {
	groups := map[string]*flowGroup{}
	var list []*flowGroup
	for _, e := range es {
		values := make([]string, len(fields))
		for i, f := range fields {
			values[i] = f(e)
		}
		key := strings.Join(values, "\x00")
		g := groups[key]
		if g == nil {
			g = &flowGroup{Values: values}
			groups[key] = g
			list = append(list, g)
		}
		g.Flows++
		g.Sent += e.Flow.Sent.Bytes
		g.Received += e.Flow.Received.Bytes
		if e.Flow.End == pavise.FlowDenied {
			g.Denied++
		}
	}
	slices.SortStableFunc(list, func(g, h *flowGroup) int {
		return cmp.Or(cmp.Compare(h.Sent+h.Received, g.Sent+g.Received), cmp.Compare(h.Flows, g.Flows), slices.Compare(g.Values, h.Values))
	})
	return list
}

func (a *app) flowsTop() *cobra.Command {
	var where, by string
	var interval time.Duration
	var count, rows int
	c := &cobra.Command{
		Use: "top", Short: "Show who sends and receives most, as it goes on",
		Long: `Show, for each --interval, who sent and received most: flows that are open, and those that ended meanwhile.

On a terminal it is a screen, until ^C; a pipe gets a line of JSON for each interval, or with -o text one table after another.`,
		Example: "  pavise flows top\n  pavise flows top --by net.remote.domain --interval 5s\n  pavise flows top --count 1 -o json | jq '.groups[0]'",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if interval < minTop || interval > maxTop {
				return usageError{fmt.Errorf("--interval %s: %s to %s are possible", interval, minTop, maxTop)}
			}
			field, err := policy.FieldText(by)
			if err != nil {
				return usageError{fmt.Errorf("--by: %w", err)}
			}
			t := &flowTop{app: a, by: by, field: field, rows: rows, form: a.streamForm(c), last: map[uint64]*pavise.Flow{}}
			err = t.run(c.Context(), agent.FlowQuery{Where: where, Ended: true}, interval, count)
			if c.Context().Err() != nil {
				return nil
			}
			return err
		},
	}
	f := c.Flags()
	f.StringVar(&by, "by", "process.exe.path", "add up by this field of conditions")
	f.StringVar(&where, "where", "", "only flows of which this CEL condition holds")
	f.DurationVar(&interval, "interval", 2*time.Second, "the time between two looks")
	f.IntVar(&count, "count", 0, "end after so many; 0 goes on")
	f.IntVar(&rows, "rows", 20, "at most this many rows")
	return c
}

// flowTop adds up what flows carried between two looks at them.
type flowTop struct {
	app   *app
	by    string
	field func(*pavise.Event) string
	rows  int
	form  string
	last  map[uint64]*pavise.Flow // what was seen of each at the last look
	at    time.Time
}

type flowRates struct {
	Time    time.Time    `json:"time"`
	Seconds float64      `json:"seconds"` // that it is about
	By      string       `json:"by"`
	Open    int          `json:"open"`
	Began   int          `json:"began"`
	Ended   int          `json:"ended"`
	Groups  []*flowGroup `json:"groups"` // bytes are those of the interval
}

func (t *flowTop) run(ctx context.Context, q agent.FlowQuery, interval time.Duration, count int) error {
	cl := t.app.client()
	defer cl.Close()
	look := func() (*flowRates, error) {
		es, err := t.app.readFlows(ctx, cl, q)
		return t.take(es, time.Now()), err
	}
	if _, err := look(); err != nil { // what was before is nobody's rate
		return err
	}
	screen := t.form == "text" && t.app.terminal
	for n := 1; ; n++ {
		select {
		case <-time.After(interval):
		case <-ctx.Done():
			return nil
		}
		r, err := look()
		if err != nil {
			return err
		}
		if t.form == "json" {
			if err := json.NewEncoder(t.app.stdout).Encode(r); err != nil {
				return err
			}
		} else {
			var b strings.Builder
			if screen {
				b.WriteString("\x1b[H\x1b[J")
			}
			if err := t.render(&b, r); err != nil {
				return err
			}
			if _, err := io.WriteString(t.app.stdout, b.String()+"\n"); err != nil {
				return err
			}
		}
		if n == count {
			return nil
		}
	}
}

// take adds up what is new in flows since it was called last.
func (t *flowTop) take(es []*pavise.Event, now time.Time) *flowRates {
	r := &flowRates{Time: now, Seconds: now.Sub(t.at).Seconds(), By: t.by}
	seen := make(map[uint64]*pavise.Flow, len(es))
	var news []*pavise.Event
	for _, e := range es {
		f := e.Flow
		seen[f.ID] = f
		was := t.last[f.ID]
		open := f.State != pavise.FlowClosed
		if open {
			r.Open++
		}
		began := was == nil && f.Start >= t.at.UnixNano()
		if !open && (was == nil && !began || was != nil && was.State == pavise.FlowClosed) {
			continue // it was over before
		}
		if began {
			r.Began++
		}
		if !open {
			r.Ended++
		}
		g, h := *e, *f
		switch {
		case was != nil:
			h.Sent.Bytes -= min(was.Sent.Bytes, h.Sent.Bytes)
			h.Received.Bytes -= min(was.Received.Bytes, h.Received.Bytes)
		case !began: // what it carried before is not of this interval
			h.Sent, h.Received = h.SentNew, h.ReceivedNew
		}
		g.Flow = &h
		news = append(news, &g)
	}
	t.last, t.at = seen, now
	r.Groups = groupFlows(news, []func(*pavise.Event) string{t.field})
	r.Groups = r.Groups[:min(len(r.Groups), t.rows)]
	return r
}

func (t *flowTop) render(w io.Writer, r *flowRates) error {
	fmt.Fprintf(w, "%s  %d open, %d began, %d ended in %.1f s\n", r.Time.Format(time.TimeOnly), r.Open, r.Began, r.Ended, r.Seconds)
	tb := newTable(w, strings.ToUpper(t.by), "FLOWS", "SENT/s", "RECEIVED/s", "DENIED")
	rate := func(n uint64) string { return bytesText(uint64(float64(n) / max(r.Seconds, 0.001))) }
	for _, g := range r.Groups {
		tb.row(g.Values[0], strconv.FormatUint(g.Flows, 10), rate(g.Sent), rate(g.Received), strconv.FormatUint(g.Denied, 10))
	}
	return tb.flush()
}
