package main

import (
	"cmp"
	"context"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"io"
	"math"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/pavise-project/pavise"
	"github.com/pavise-project/pavise/agent"
	"github.com/spf13/cobra"
)

var mapForms = []string{"text", "json", "dot", "svg"}

func (a *app) flowsMap() *cobra.Command {
	var where, since, until, form string
	c := &cobra.Command{
		Use: "map", Short: "Show who talks to whom",
		Long: `Show who talks to whom: units, containers or programs of this host, and the names or addresses that they reach or are reached from, by protocol and port. It is made of the flows that
are open and the last that ended; with --since of those that ended in the history.

An edge goes from who began to who answered. Where both are on this host it is one edge.`,
		Example: "  pavise flows map\n  pavise flows map --since 24h --form svg > map.svg\n  pavise flows map --form dot | dot -Tpng > map.png",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if form == "" {
				form = a.streamForm(c)
			}
			if !slices.Contains(mapForms, form) {
				return usageError{fmt.Errorf("--form %q: %s are possible", form, strings.Join(mapForms, ", "))}
			}
			es, err := a.mapFlows(c.Context(), where, since, until)
			if err != nil {
				return err
			}
			return newFlowMap(es).write(a.stdout, form)
		},
	}
	f := c.Flags()
	f.StringVar(&where, "where", "", "only flows of which this CEL condition holds")
	f.StringVar(&since, "since", "", "of the history, from so long ago or from this time")
	f.StringVar(&until, "until", "", "of the history, to so long ago or to this time (default: now)")
	f.StringVar(&form, "form", "", strings.Join(mapForms, ", ")+" (default: as -o)")
	return c
}

func (a *app) mapFlows(ctx context.Context, where, since, until string) (es []*pavise.Event, err error) {
	if since == "" && until == "" {
		cl := a.client()
		defer cl.Close()
		return a.readFlows(ctx, cl, agent.FlowQuery{Where: where, Ended: true})
	}
	q := agent.HistoryQuery{Limit: -1, Where: `op == "net.flow" && flow.state == "closed"`}
	if where != "" {
		q.Where += " && (" + where + ")"
	}
	if err := span(&q, since, until); err != nil {
		return nil, err
	}
	var end *agent.ScanEnd
	err = a.history(ctx, "", q, func(l *agent.HistoryLine) error {
		if l.End != nil {
			end = l.End
		}
		if l.Event == nil {
			return nil
		}
		e := new(pavise.Event)
		if err := json.Unmarshal(l.Event, e); err != nil {
			return fmt.Errorf("read flow: %w", err)
		}
		if e.Flow != nil {
			es = append(es, e)
		}
		return nil
	})
	if err == nil {
		err = a.scanEnd(end)
	}
	return es, err
}

// flowMap is who talks to whom.
type flowMap struct {
	Nodes []*mapNode `json:"nodes"`
	Edges []*mapEdge `json:"edges"`
}

type mapNode struct {
	ID   int    `json:"id"`
	Name string `json:"name"`
	Kind string `json:"kind"` // unit, container, program; name, address or path of what is not of this host, or of whom no process is known
}

type mapEdge struct {
	From     int    `json:"from"`
	To       int    `json:"to"`
	Service  string `json:"service"` // tcp/443
	Flows    uint64 `json:"flows"`
	Bytes    uint64 `json:"bytes"`    // from From to To
	Returned uint64 `json:"returned"` // and back
	Denied   uint64 `json:"denied"`
}

func newFlowMap(es []*pavise.Event) *flowMap {
	m := &flowMap{Nodes: []*mapNode{}, Edges: []*mapEdge{}}
	nodes := map[[2]string]int{}
	node := func(kind, name string) int {
		k := [2]string{kind, name}
		id, ok := nodes[k]
		if !ok {
			id = len(m.Nodes)
			nodes[k] = id
			m.Nodes = append(m.Nodes, &mapNode{id, name, kind})
		}
		return id
	}
	type edgeKey struct {
		from, to int
		service  string
	}
	edges := map[edgeKey]*mapEdge{}
	for _, e := range es {
		f := e.Flow
		inbound := f.Direction == pavise.FlowInbound
		if inbound && f.Remote.Process != nil {
			continue // the other end tells of it
		}
		port, sent, received := f.Remote.Port, f.Sent.Bytes, f.Received.Bytes
		from, to := node(localNode(f)), node(remoteNode(f))
		if inbound {
			from, to, port, sent, received = to, from, f.Local.Port, received, sent
		}
		service := protocolText(f)
		if port != 0 && (f.Protocol == pavise.ProtocolTCP || f.Protocol == pavise.ProtocolUDP) {
			service += "/" + strconv.Itoa(int(port))
		}
		k := edgeKey{from, to, service}
		ed := edges[k]
		if ed == nil {
			ed = &mapEdge{From: from, To: to, Service: service}
			edges[k] = ed
			m.Edges = append(m.Edges, ed)
		}
		ed.Flows++
		ed.Bytes += sent
		ed.Returned += received
		if f.End == pavise.FlowDenied {
			ed.Denied++
		}
	}
	slices.SortStableFunc(m.Edges, func(e, f *mapEdge) int {
		return cmp.Or(strings.Compare(m.Nodes[e.From].Name, m.Nodes[f.From].Name), cmp.Compare(f.Bytes+f.Returned, e.Bytes+e.Returned), cmp.Compare(f.Flows, e.Flows),
			strings.Compare(m.Nodes[e.To].Name, m.Nodes[f.To].Name), strings.Compare(e.Service, f.Service))
	})
	return m
}

func localNode(f *pavise.Flow) (kind, name string) {
	if f.Local.Process == nil || f.Local.Process.Unknown {
		return "address", cmp.Or(addressText(f.Local.Address), f.Local.Path, "?")
	}
	return processNode(f.Local.Process)
}

func processNode(p *pavise.Process) (kind, name string) {
	switch {
	case p.Container != nil:
		return "container", containerText(p)
	case p.Unit != "":
		return "unit", p.Unit
	}
	return "program", cmp.Or(p.Exe.Path, "?")
}

func remoteNode(f *pavise.Flow) (kind, name string) {
	if p := f.Remote.Process; p != nil && !p.Unknown {
		return processNode(p)
	}
	if name := nameText(f); name != "" {
		return "name", name
	}
	if f.Remote.Path != "" || f.Family == pavise.FamilyUnix {
		return "path", cmp.Or(f.Remote.Path, "?")
	}
	if f.Others {
		return "address", "others"
	}
	return "address", cmp.Or(addressText(f.Remote.Address), "?")
}

func addressText(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}

// label says what an edge carried.
func (e *mapEdge) label() string {
	s := fmt.Sprintf("%s ×%d", e.Service, e.Flows)
	if e.Bytes+e.Returned > 0 {
		s += fmt.Sprintf(" %s/%s", bytesText(e.Bytes), bytesText(e.Returned))
	}
	if e.Denied > 0 {
		s += fmt.Sprintf(" %d denied", e.Denied)
	}
	return s
}

func (m *flowMap) write(w io.Writer, form string) error {
	var b strings.Builder
	switch form {
	case "json":
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		enc.SetEscapeHTML(false)
		return enc.Encode(m)
	case "dot":
		m.dot(&b)
	case "svg":
		m.svg(&b)
	default:
		m.text(&b)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func (m *flowMap) text(b *strings.Builder) {
	last := -1
	for _, e := range m.Edges {
		if e.From != last {
			fmt.Fprintf(b, "%s (%s)\n", safe(m.Nodes[e.From].Name), m.Nodes[e.From].Kind)
			last = e.From
		}
		fmt.Fprintf(b, "  -> %s  %s\n", safe(m.Nodes[e.To].Name), e.label())
	}
	if len(m.Edges) == 0 {
		b.WriteString("no flows\n")
	}
}

func (m *flowMap) dot(b *strings.Builder) {
	// A quoted string of DOT knows one escape for the quote; a backslash before another letter means something to labels.
	quote := func(s string) string {
		return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(safe(s)) + `"`
	}
	b.WriteString("digraph flows {\n  rankdir=LR;\n  node [shape=box, fontname=\"sans-serif\"];\n")
	for _, n := range m.Nodes {
		shape := ""
		if n.Kind == "name" || n.Kind == "address" {
			shape = ", shape=ellipse"
		}
		fmt.Fprintf(b, "  n%d [label=%s%s];\n", n.ID, quote(n.Name), shape)
	}
	for _, e := range m.Edges {
		color := ""
		if e.Denied > 0 {
			color = ", color=red"
		}
		fmt.Fprintf(b, "  n%d -> n%d [label=%s%s];\n", e.From, e.To, quote(e.label()), color)
	}
	b.WriteString("}\n")
}

// columns gives each node a column: one to the right of those that talk to it, as far as there are no circles.
func (m *flowMap) columns() []int {
	const most = 6
	at := make([]int, len(m.Nodes))
	for range most {
		moved := false
		for _, e := range m.Edges {
			if e.From != e.To && at[e.To] <= at[e.From] && at[e.From] < most-1 {
				at[e.To] = at[e.From] + 1
				moved = true
			}
		}
		if !moved {
			break
		}
	}
	return at
}

// svg draws the nodes in columns and the edges between them, wider the more they carried.
func (m *flowMap) svg(b *strings.Builder) {
	const boxH, gapX, gapY, margin, char = 26, 260, 22, 20, 7.2
	cols := m.columns()
	widths := map[int]float64{}
	last := 0
	for i, n := range m.Nodes {
		widths[cols[i]] = max(widths[cols[i]], char*float64(min(utf8.RuneCountInString(n.Name), 48))+20)
		last = max(last, cols[i])
	}
	x := make([]float64, last+2)
	x[0] = margin
	for c := range last + 1 {
		x[c+1] = x[c] + widths[c] + gapX
	}
	y, rows := make([]float64, len(m.Nodes)), map[int]int{}
	height := 0.0
	for i := range m.Nodes {
		y[i] = margin + float64(rows[cols[i]])*(boxH+gapY)
		rows[cols[i]]++
		height = max(height, y[i]+boxH+margin)
	}
	width := x[last+1] - gapX + margin
	if len(m.Nodes) == 0 {
		width, height = 2*margin, 2*margin
	}
	escape := func(s string) string {
		var e strings.Builder
		_ = xml.EscapeText(&e, []byte(safe(s))) // a Builder takes all
		return e.String()
	}
	fmt.Fprintf(b, `<svg xmlns="http://www.w3.org/2000/svg" width="%.0f" height="%.0f" viewBox="0 0 %.0f %.0f" font-family="sans-serif" font-size="12">`+"\n", width, height, width, height)
	b.WriteString(`<rect width="100%" height="100%" fill="#fff"/>` + "\n")
	for _, e := range m.Edges {
		x1, y1 := x[cols[e.From]]+widths[cols[e.From]], y[e.From]+boxH/2
		x2, y2 := x[cols[e.To]], y[e.To]+boxH/2
		bend := max((x2-x1)/2, 60)
		color := "#678"
		if e.Denied > 0 {
			color = "#c22"
		}
		thick := 1 + min(math.Log10(float64(e.Bytes+e.Returned)+1)/2, 5)
		fmt.Fprintf(b, `<path d="M%.0f %.0f C%.0f %.0f %.0f %.0f %.0f %.0f" fill="none" stroke="%s" stroke-width="%.1f" opacity=".7"><title>%s</title></path>`+"\n",
			x1, y1, x1+bend, y1, x2-bend, y2, x2, y2, color, thick, escape(m.Nodes[e.From].Name+" -> "+m.Nodes[e.To].Name+": "+e.label()))
		fmt.Fprintf(b, `<text x="%.0f" y="%.0f" text-anchor="end" fill="%s" font-size="10">%s</text>`+"\n", x2-6, y2-4, color, escape(e.label()))
	}
	for i, n := range m.Nodes {
		fill := "#e8f0fa"
		if n.Kind == "name" || n.Kind == "address" {
			fill = "#f6efe0"
		}
		name := []rune(safe(n.Name))
		if len(name) > 48 {
			name = append(name[:47], '…')
		}
		fmt.Fprintf(b, `<rect x="%.0f" y="%.0f" width="%.0f" height="%d" rx="4" fill="%s" stroke="#9ab"><title>%s</title></rect>`+"\n",
			x[cols[i]], y[i], widths[cols[i]], boxH, fill, escape(n.Kind+" "+n.Name))
		fmt.Fprintf(b, `<text x="%.0f" y="%.0f">%s</text>`+"\n", x[cols[i]]+10, y[i]+17, escape(string(name)))
	}
	b.WriteString("</svg>\n")
}
