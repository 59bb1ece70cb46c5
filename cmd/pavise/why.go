package main

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"sort"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/pavise-project/pavise/agent"
	"github.com/pavise-project/pavise/policy"
	"github.com/spf13/cobra"
)

// testWidth is how many characters of a test a line shows; JSON has more.
const testWidth = 90

func (a *app) why() *cobra.Command {
	return &cobra.Command{
		Use: "why EVENT_ID", Short: "Say why an event was judged as it was: which conditions held, on which values",
		Long: `Say, for an event of the running agent, which rules judged it, and for each what every part of its condition was on the values of
the event, with the policies as they were then. Of a default that denied, it says for each allow rule what did not hold.

EVENT_ID is the number in the second column of "pavise events", and "id" in JSON. The agent keeps the last 4,096 events, and of
older ones the last 1,024 that deny or kill and the last 1,024 audits. Numbers begin at 1 when the agent starts.`,
		Example: "  pavise why 1842\n  pavise why 1842 -o json | jq '.rules[0].when'\n  pavise events --where 'action == \"deny\"' -o json | tail -n 1 | jq .id | xargs pavise why",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			id, err := strconv.ParseUint(args[0], 10, 64)
			if err != nil {
				return usageError{fmt.Errorf("%q is not the number of an event: it stands in the second column of pavise events", args[0])}
			}
			w, err := a.client().Why(c.Context(), id)
			if err != nil {
				return err
			}
			if a.output == "json" {
				return a.json(w)
			}
			return a.whyText(w)
		},
	}
}

func (a *app) whyText(w *agent.Why) error {
	e := w.Event
	fmt.Fprintf(a.stdout, "%s\n", e.AppendText(nil, a.color()))
	if w.Generation > 0 {
		fmt.Fprintf(a.stdout, "judged by the policies of generation %d, at rung %s\n", w.Generation, e.Rung)
	}
	for _, n := range w.Notes {
		fmt.Fprintf(a.stdout, "note: %s\n", safe(n))
	}
	for _, r := range w.Rules {
		if err := a.reasonText(&r); err != nil {
			return err
		}
	}
	if w.Unnamed > 0 {
		fmt.Fprintf(a.stdout, "\n%d more alternatives of rules matched: an event names four rules\n", w.Unnamed)
	}
	return nil
}

func (a *app) reasonText(r *policy.Reason) error {
	fmt.Fprintf(a.stdout, "\n%s  %s", a.paint("1", safe(r.Policy+"/"+r.Rule)), r.Action)
	if r.Effective != "" {
		fmt.Fprintf(a.stdout, ", done as %s", r.Effective)
	}
	if string(r.State) != r.Action { // an audit is an audit
		fmt.Fprintf(a.stdout, ", %s", r.State)
	}
	fmt.Fprintf(a.stdout, "  (%s)\n", place(r.File, r.Line))
	if r.Degraded != "" {
		fmt.Fprintf(a.stdout, "  because %s\n", safe(r.Degraded))
	}
	if r.Alias != "" {
		fmt.Fprintf(a.stdout, "  under another name of the file: %s\n", safe(r.Alias))
	}
	isDefault := strings.HasPrefix(r.Rule, "default/")
	var t tree
	t.condition("subject", r.Subject, "every process")
	if !isDefault {
		t.condition("when", r.When, "always")
	}
	if err := t.write(a.stdout); err != nil {
		return err
	}
	if r.Note != "" {
		fmt.Fprintf(a.stdout, "  it does not hold on the values that the event has: %s\n", safe(r.Note))
	}
	if !isDefault {
		return nil
	}
	if len(r.Allows) == 0 {
		fmt.Fprintln(a.stdout, "  the policy has no allow rule for the operation")
		return nil
	}
	fmt.Fprintln(a.stdout, "  no allow rule matched; what failed first:")
	t = nil
	for _, x := range r.Allows {
		t.line(2, safe(x.Rule)+"  ("+place(x.File, x.Line)+")", "", "")
		if x.Failed != nil {
			t.node(x.Failed, 3)
		}
		if x.Note != "" {
			t.line(3, safe(x.Note), "", "")
		}
	}
	return t.write(a.stdout)
}

func place(file string, line int) string {
	if file == "" {
		return "line " + strconv.Itoa(line)
	}
	return safe(file) + ":" + strconv.Itoa(line)
}

// tree is lines of an indented text, a result and values. The results stand in one column, the values in another.
type tree [][3]string

func (t *tree) line(depth int, text, result, values string) {
	*t = append(*t, [3]string{strings.Repeat("  ", depth) + text, result, values})
}

func (t tree) write(w io.Writer) error {
	var width [2]int
	for _, l := range t {
		for i := range width {
			if l[1] != "" { // a title may be as long as it is
				width[i] = max(width[i], utf8.RuneCountInString(l[i]))
			}
		}
	}
	for _, l := range t {
		s := fmt.Sprintf("%-*s  %-*s  %s", width[0], l[0], width[1], l[1], l[2])
		if _, err := fmt.Fprintln(w, strings.TrimRight(s, " ")); err != nil {
			return err
		}
	}
	return nil
}

// condition adds the tree of a condition, or what its absence means.
func (t *tree) condition(title string, n *policy.Node, absent string) {
	if n == nil {
		t.line(1, title+": "+absent, "", "")
		return
	}
	t.line(1, title, "", "")
	t.node(n, 2)
}

// node adds a sub-expression, its result and its values, and below it its parts.
func (t *tree) node(n *policy.Node, depth int) {
	text := map[policy.NodeKind]string{policy.NodeAll: "all of", policy.NodeAny: "any of", policy.NodeNot: "not", policy.NodeIf: "if, then, else"}[n.Kind]
	if text == "" {
		text = n.Text
		if r := []rune(text); len(r) > testWidth {
			text = string(r[:testWidth-1]) + "…"
		}
	}
	values := factsText(n)
	if n.Error != "" {
		values = strings.TrimPrefix(values+"  "+n.Error, "  ")
	}
	t.line(depth, safe(text), n.Result, safe(values))
	for _, s := range n.Of {
		t.node(s, depth+1)
	}
}

// factsText is the value of a test's field, or the values of its fields by their names. What the result says already is left out.
func factsText(n *policy.Node) string {
	var s []string
	for _, f := range n.Facts {
		if _, flag := f.Value.(bool); flag && n.Text == f.Field {
			continue
		}
		v := valueText(f.Value)
		if len(n.Facts) > 1 {
			v = f.Field + " = " + v
		}
		s = append(s, v)
	}
	return strings.Join(s, ", ")
}

func valueText(v any) string {
	switch x := v.(type) {
	case string:
		if x == "" {
			return `""`
		}
		return x
	case float64: // JSON has no other numbers
		if x == math.Trunc(x) {
			return strconv.FormatFloat(x, 'f', 0, 64)
		}
	case []any:
		s := make([]string, len(x))
		for i := range x {
			s[i] = valueText(x[i])
		}
		return "[" + strings.Join(s, " ") + "]"
	case map[string]any:
		var s []string
		for k := range x {
			s = append(s, k+"="+valueText(x[k]))
		}
		sort.Strings(s)
		return "{" + strings.Join(s, " ") + "}"
	}
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Sprint(v)
	}
	return string(b)
}
