package main

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/pavise-project/pavise/agent"
)

// What the table may be of, and sorted by.
var (
	topBy   = []string{"process", "rule", "op", "hook"}
	topSort = []string{"events", "denied", "name"}
)

// topView is what pavise top shows: the last line of the stream, and what the keys have made of it.
type topView struct {
	top      *agent.Top // nil before the first
	interval time.Duration
	by, sort string
	held     bool
	color    bool
	noCost   string // why hooks are not timed
}

// key does what a key asks for, and returns false when that is to quit.
func (v *topView) key(k byte) bool {
	switch k {
	case 'q', 'Q', 3, 4: // ^C, ^D
		return false
	case 'p', 'r', 'o', 'h':
		v.by = map[byte]string{'p': "process", 'r': "rule", 'o': "op", 'h': "hook"}[k]
	case 's':
		v.sort = topSort[(slices.Index(topSort, v.sort)+1)%len(topSort)]
	case ' ':
		v.held = !v.held
	}
	return true
}

// render is the screen: lines of at most w cells, and at most h of them when h is over 0. It depends on nothing else.
func (v *topView) render(w, h int) []string {
	t := v.top
	if t == nil {
		return clip([]string{fmt.Sprintf("pavise top: waiting %s for the first look; q quits", v.interval)}, w, h)
	}
	var seen, folded, lost, denied, would uint64
	for _, o := range t.Operations {
		seen, folded, lost = seen+o.Seen, folded+o.Folded, lost+o.Lost
		denied, would = denied+o.Denied, would+o.Would
	}
	force := fmt.Sprintf("generation %d", t.Generation)
	if t.Revision > 0 {
		force = fmt.Sprintf("revision %d, ", t.Revision) + force
	}
	held := ""
	if v.held {
		held = "  HELD: space goes on"
	}
	lines := []string{
		fmt.Sprintf("pavise top  %s, %s long  %d policies, %s%s", t.Time.Local().Format(time.TimeOnly), t.Interval.Round(10*time.Millisecond), t.Policies, force, held),
		fmt.Sprintf("events      %s/s seen, %s/s folded, %s", v.rate(seen), v.rate(folded), v.mark("31", lost+t.SubscriberLost+t.Undecoded > 0,
			fmt.Sprintf("%s/s lost (kernel), %s/s (readers), %s/s (undecoded)", v.rate(lost), v.rate(t.SubscriberLost), v.rate(t.Undecoded)))),
		fmt.Sprintf("denials     %s, %s/s would be", v.mark("31", denied > 0, v.rate(denied)+"/s"), v.rate(would)),
		fmt.Sprintf("memory      %s resident, %s of kernel maps; %d readers", bytesText(t.RSS), bytesText(t.MapBytes), t.Subscribers),
	}
	cost := "not measured: " + v.noCost
	if t.HooksError != "" {
		cost = "not measured: " + safe(t.HooksError)
	} else if v.noCost == "" {
		cost = v.costLine()
	}
	lines = append(lines, "hooks       "+cost)
	if t.Trouble > 0 {
		lines = append(lines, v.mark("31", true, fmt.Sprintf("trouble     %d: pavise status says of which kind", t.Trouble)))
	}
	lines = append(lines, "")
	head, rows := v.table()
	return clip(append(lines, columns(head, rows, w, v.color)...), w, h)
}

func (v *topView) costLine() string {
	var runs uint64
	var spent time.Duration
	for _, k := range v.top.Hooks {
		runs, spent = runs+k.Runs, spent+k.Time
	}
	if runs == 0 {
		return "did not run"
	}
	return fmt.Sprintf("%s runs/s, %s each, %.2f%% of one CPU", v.rate(runs), nanos(spent, runs), 100*float64(spent)/float64(v.top.Interval))
}

func nanos(d time.Duration, n uint64) string { return fmt.Sprintf("%d ns", uint64(d)/max(n, 1)) }

// rate is how many a second.
func (v *topView) rate(n uint64) string {
	r := float64(n) / max(v.top.Interval.Seconds(), 1e-9)
	switch {
	case n == 0:
		return "0"
	case r < 10:
		return strconv.FormatFloat(r, 'f', 1, 64)
	case r < 10_000:
		return strconv.FormatFloat(r, 'f', 0, 64)
	case r < 10_000_000:
		return strconv.FormatFloat(r/1000, 'f', 0, 64) + "k"
	}
	return strconv.FormatFloat(r/1e6, 'f', 0, 64) + "M"
}

// mark colours s when something is so.
func (v *topView) mark(code string, so bool, s string) string {
	if !so || !v.color {
		return s
	}
	return "\x1b[" + code + "m" + s + "\x1b[0m"
}

// sorted sorts rows by what the view is sorted by; those that are equal stay as the agent has sorted them.
func sorted[T any](v *topView, rows []T, events, denied func(*T) uint64, name func(*T) string) []T {
	rows = slices.Clone(rows)
	slices.SortStableFunc(rows, func(a, b T) int {
		switch v.sort {
		case "denied":
			return cmp.Compare(denied(&b), denied(&a))
		case "name":
			return cmp.Compare(name(&a), name(&b))
		}
		return cmp.Compare(events(&b), events(&a))
	})
	return rows
}

// table is the head and the cells of what is shown. A head that begins with '>' is of numbers.
func (v *topView) table() (head []string, rows [][]string) {
	t := v.top
	switch v.by {
	case "rule":
		head = []string{">HITS/S", "ACTION", "POLICY", "RULE"}
		stops := func(r *agent.TopRule) uint64 {
			if r.Action == "deny" || r.Action == "kill" {
				return r.Hits
			}
			return 0
		}
		for _, r := range sorted(v, t.Rules, func(r *agent.TopRule) uint64 { return r.Hits }, stops, func(r *agent.TopRule) string { return r.Policy + "/" + r.Rule }) {
			action := r.Action
			if r.Monitor && stops(&r) > 0 {
				action = "would-" + action
			}
			rows = append(rows, []string{v.rate(r.Hits), action, r.Policy, r.Rule})
		}
	case "op":
		head = []string{">SEEN/S", ">FOLDED/S", ">LOST/S", ">DENIED/S", ">WOULD/S", "RUNG", "OPERATION"}
		for _, o := range sorted(v, t.Operations, func(o *agent.TopOp) uint64 { return max(o.Seen, o.Events) }, func(o *agent.TopOp) uint64 { return o.Denied + o.Would }, func(o *agent.TopOp) string { return o.Op }) {
			rows = append(rows, []string{v.rate(o.Seen), v.rate(o.Folded), v.rate(o.Lost), v.rate(o.Denied), v.rate(o.Would), o.Rung, o.Op})
		}
	case "hook":
		head = []string{">RUNS/S", ">EACH", ">CPU", "HOOK"}
		for _, k := range sorted(v, t.Hooks, func(k *agent.TopHook) uint64 { return uint64(k.Time) }, func(k *agent.TopHook) uint64 { return 0 }, func(k *agent.TopHook) string { return k.Program }) {
			rows = append(rows, []string{v.rate(k.Runs), nanos(k.Time, k.Runs), fmt.Sprintf("%.3f%%", 100*float64(k.Time)/float64(t.Interval)), k.Program})
		}
	default:
		head = []string{">EVENTS/S", ">DENIED/S", ">WOULD/S", ">PID", "USER", "IN", "PROGRAM"}
		for _, p := range sorted(v, t.Processes, func(p *agent.TopProcess) uint64 { return p.Events }, func(p *agent.TopProcess) uint64 { return p.Denied + p.Would }, func(p *agent.TopProcess) string { return p.Exe }) {
			in := p.Container
			if in == "" {
				in = p.Unit
			} else if len(in) > 24 {
				in = in[:12]
			}
			rows = append(rows, []string{v.rate(p.Events), v.rate(p.Denied), v.rate(p.Would), strconv.FormatUint(uint64(p.PID), 10), p.User, in, p.Exe})
		}
		if o := t.OtherProcesses; o.Events > 0 {
			rows = append(rows, []string{v.rate(o.Events), v.rate(o.Denied), v.rate(o.Would), "", "", "", "(others)"})
		}
	}
	return head, rows
}

// columns aligns cells. What programs chose cannot forge a column, a line or a terminal's command; columns of names but the last are cut to 24 cells.
func columns(head []string, rows [][]string, w int, color bool) []string {
	wide := make([]int, len(head))
	cell := func(i int, s string) string {
		if s = safe(s); s == "" {
			s = "-"
		}
		if i < len(head)-1 {
			s = fit(s, 24)
		}
		return s
	}
	all := append([][]string{nil}, rows...)
	for i, h := range head {
		all[0] = append(all[0], strings.TrimPrefix(h, ">"))
		for _, r := range all {
			wide[i] = max(wide[i], cells(cell(i, r[i])))
		}
	}
	out := make([]string, 0, len(all))
	for n, r := range all {
		var b strings.Builder
		for i, s := range r {
			s = cell(i, s)
			pad := strings.Repeat(" ", wide[i]-cells(s))
			switch {
			case strings.HasPrefix(head[i], ">"):
				b.WriteString(pad + s)
			case i < len(r)-1:
				b.WriteString(s + pad)
			default:
				b.WriteString(s)
			}
			if i < len(r)-1 {
				b.WriteString("  ")
			}
		}
		line := fit(strings.TrimRight(b.String(), " "), w)
		if n == 0 && color {
			line = "\x1b[7m" + line + strings.Repeat(" ", max(0, w-cells(line))) + "\x1b[0m"
		}
		out = append(out, line)
	}
	return out
}

// clip cuts lines to w cells, and to h of them when h is over 0. Colours end within a line.
func clip(lines []string, w, h int) []string {
	if h > 0 && len(lines) > h {
		lines = lines[:h]
	}
	for i, l := range lines {
		lines[i] = fit(l, w)
	}
	return lines
}

// fit is s in at most w cells. The colours in it are no cells, and end.
func fit(s string, w int) string {
	if cells(s) <= w {
		return s
	}
	n, escape := 0, false
	for i, r := range s {
		switch {
		case r == '\x1b':
			escape = true
		case escape:
			escape = r != 'm'
		default:
			if n += runeCells(r); n >= w {
				end := "…"
				if w < 1 {
					end = ""
				}
				if strings.Contains(s[:i], "\x1b") {
					end += "\x1b[0m"
				}
				return s[:i] + end
			}
		}
	}
	return s
}

// cells is how wide s is on a terminal.
func cells(s string) (n int) {
	escape := false
	for _, r := range s {
		switch {
		case r == '\x1b':
			escape = true
		case escape:
			escape = r != 'm'
		default:
			n += runeCells(r)
		}
	}
	return n
}

// runeCells is how many cells a rune takes: none when it goes onto the one before, two in the scripts of East Asia and for pictures.
func runeCells(r rune) int {
	switch {
	case unicode.In(r, unicode.Mn, unicode.Me):
		return 0
	case r >= 0x1100 && r <= 0x115f, r >= 0x2e80 && r <= 0xa4cf, r >= 0xac00 && r <= 0xd7a3, r >= 0xf900 && r <= 0xfaff, r >= 0xfe30 && r <= 0xfe6f,
		r >= 0xff00 && r <= 0xff60, r >= 0xffe0 && r <= 0xffe6, r >= 0x1f300 && r <= 0x1faff, r >= 0x20000 && r <= 0x3fffd:
		return 2
	}
	return 1
}
