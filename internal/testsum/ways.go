package testsum

import (
	"bufio"
	"fmt"
	"io"
	"slices"
	"strings"
)

// Ways is the list of ways around a rule, of docs/bypasses.txt: each is covered on some rungs by tests, or not covered, with the reason. A line is
//
//	WAY | RUNG TEST...; RUNG TEST... | why the other rungs do not cover it
//
// where RUNG is lsm, fmod_ret or here (this machine's own rungs: those below fmod_ret), and TEST is package.Test/subtest with underscores for blanks, as go test
// names it; several rungs before a test are joined by commas. A line that ends in a colon is the class of those after it.
type Ways struct{ rows []wayRow }

type wayRow struct {
	class, way, why string
	covers          map[string][]string // rung -> tests
	line            int
}

// wayRungs are the places that results come from, in the order of the table.
var wayRungs = []string{"lsm", "fmod_ret", "here"}

// ReadWays reads a list. The error has all faulty lines.
func ReadWays(name string, r io.Reader) (*Ways, error) {
	w := &Ways{}
	class, n := "", 0
	var faults []string
	fault := func(format string, args ...any) {
		faults = append(faults, fmt.Sprintf("%s:%d: ", name, n)+fmt.Sprintf(format, args...))
	}
	for s := bufio.NewScanner(r); s.Scan(); {
		n++
		line := strings.TrimSpace(s.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		if c, ok := strings.CutSuffix(line, ":"); ok && !strings.Contains(line, "|") {
			class = c
			continue
		}
		parts := strings.Split(line, "|")
		if len(parts) != 3 {
			fault("want WAY | RUNG TEST...; ... | why not elsewhere")
			continue
		}
		row := wayRow{class: class, way: strings.TrimSpace(parts[0]), why: strings.TrimSpace(parts[2]), covers: map[string][]string{}, line: n}
		for _, c := range strings.Split(parts[1], ";") {
			f := strings.Fields(c)
			if len(f) == 0 {
				continue
			}
			if len(f) < 2 {
				fault("rung %s has no test", f[0])
				continue
			}
			for _, rung := range strings.Split(f[0], ",") {
				if !slices.Contains(wayRungs, rung) {
					fault("%q is no rung: lsm, fmod_ret or here", rung)
				}
				row.covers[rung] = append(row.covers[rung], f[1:]...)
			}
		}
		if row.why == "" && len(row.covers) == 0 {
			fault("%q is not covered, and no reason is given", row.way)
		}
		w.rows = append(w.rows, row)
	}
	if len(faults) > 0 {
		return nil, fmt.Errorf("read the ways around a rule:\n%s", strings.Join(faults, "\n"))
	}
	return w, nil
}

// Print writes the table, by the results in s, and returns how many claims did not hold: a test that failed, or did not run where it is said to cover.
func (w *Ways) Print(out io.Writer, s *Summary) (broken int) {
	state := map[string]map[string]string{} // rung -> test -> action
	for _, r := range s.order {
		if r.Test == "" {
			continue
		}
		_, place, _ := strings.Cut(r.Package, " [")
		rung := "here"
		switch {
		case strings.HasSuffix(place, "nolsm]"):
			rung = "fmod_ret"
		case place != "":
			rung = "lsm"
		}
		if state[rung] == nil {
			state[rung] = map[string]string{}
		}
		// One kernel in which it failed is enough; one in which it is skipped is not.
		if have := state[rung][base(r)]; have != "fail" && (r.Action != "skip" || have == "") {
			state[rung][base(r)] = r.Action
		}
	}
	class := ""
	covered := map[string]int{}
	for _, row := range w.rows {
		if row.class != class {
			class = row.class
			fmt.Fprintf(out, "\n%s\n", class)
		}
		fmt.Fprintf(out, "  %-58s", row.way)
		var tests []string
		for _, rung := range wayRungs {
			word := "no"
			if len(row.covers[rung]) > 0 {
				word = "yes"
				covered[rung]++
			}
			for _, t := range row.covers[rung] {
				switch action := state[rung][t]; action {
				case "pass":
				case "":
					word, broken = "NOT RUN", broken+1
				default:
					word, broken = strings.ToUpper(action), broken+1
				}
				if !slices.Contains(tests, t) {
					tests = append(tests, t)
				}
			}
			fmt.Fprintf(out, " %s %-7s", rung, word)
		}
		fmt.Fprintf(out, "  %s", strings.Join(tests, " "))
		if row.why != "" {
			fmt.Fprintf(out, "  (%s)", row.why)
		}
		fmt.Fprintln(out)
	}
	fmt.Fprintf(out, "\n%d ways around a rule; covered at lsm %d, at fmod_ret %d, here %d\n", len(w.rows), covered["lsm"], covered["fmod_ret"], covered["here"])
	return broken
}
