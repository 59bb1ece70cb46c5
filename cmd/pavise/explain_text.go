package main

import (
	"fmt"
	"strings"

	"github.com/pavise-project/pavise"
	"github.com/pavise-project/pavise/policy"
)

func (a *app) explainText(x *policy.Explanation, where string) error {
	w := a.stdout
	fmt.Fprintf(w, "on %s\n", where)
	fmt.Fprintln(w, "kernel: what the kernel looks at; user: what is left for the agent to decide before it tells")
	for _, p := range x.Report.Policies {
		fmt.Fprintf(w, "\n%s (%s)\n", a.paint("1", safe(p.Name)), p.Mode)
		for _, r := range p.Rules {
			fmt.Fprintf(w, "  %s on %s: %s", safe(r.Rule), r.Op, r.Action)
			if r.Effective != r.Action && r.Effective != pavise.ActionNone {
				fmt.Fprintf(w, ", done as %s", r.Effective)
			}
			fmt.Fprintf(w, "; %s", r.State)
			if r.Rung != pavise.RungNone {
				fmt.Fprintf(w, " by %s", r.Rung)
			}
			fmt.Fprintln(w)
			if r.Why != "" {
				fmt.Fprintf(w, "    because %s\n", safe(r.Why))
			}
			for i, c := range r.Clauses {
				head := "    kernel  "
				if i > 0 {
					head = "        or  "
				}
				fmt.Fprintf(w, "%s%s\n", head, safe(brief(c)))
			}
			if r.Residual != "" {
				fmt.Fprintf(w, "    user    %s\n", safe(cut(strings.Join(strings.Fields(r.Residual), " "), 200)))
			}
		}
		for _, e := range p.Warnings {
			fmt.Fprintf(w, "  warning: %s\n", safe(e.Error()))
		}
	}
	s := x.Image.Stats()
	fmt.Fprintf(w, "\ntables: %d rules, %d atoms, %d states, %d leaves, %d rows of %d words: %s\n",
		s.Rules, x.Atoms, s.States, s.Leaves, s.Rows, s.Words, bytesText(uint64(max(s.Bytes, 0))))
	return nil
}

// cut is the beginning of s; JSON has all of it.
func cut(s string, n int) string {
	if r := []rune(s); len(r) > n {
		return string(r[:n]) + "… (-o json has all of it)"
	}
	return s
}

// brief cuts the long lists of a clause; JSON has all of them.
func brief(clause string) string {
	words := strings.Split(clause, " ")
	for i, w := range words {
		if l := strings.Split(w, ","); len(l) > 6 {
			closing := w[len(strings.TrimRight(w, ")")):]
			words[i] = strings.Join(l[:4], ",") + fmt.Sprintf(",…(%d more)", len(l)-4) + closing
		}
	}
	return strings.Join(words, " ")
}

// clauses are the kernel's, one each.
func clauses(x *policy.Explanation) []string {
	out := []string{}
	for _, l := range strings.Split(x.Normal, "\n") {
		if l != "" {
			out = append(out, l)
		}
	}
	return out
}
