package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
)

func (a *app) explainText(x *explained) error {
	w := a.stdout
	fmt.Fprintf(w, "on %s\n", x.Machine)
	fmt.Fprintln(w, "kernel: what the kernel looks at; user: what the agent evaluates before it tells, by the fields that only it knows")
	for i := range x.Policies {
		p := &x.Policies[i]
		fmt.Fprintf(w, "\n%s  %s  %s\n", a.paint("1", safe(p.Name)), p.Mode, place(p.File, p.Line))
		for len(p.Rules) > 0 { // the reports on a rule stand together
			n := 1
			for n < len(p.Rules) && p.Rules[n].Name == p.Rules[0].Name {
				n++
			}
			if err := ruleText(w, p.Rules[:n]); err != nil {
				return err
			}
			p.Rules = p.Rules[n:]
		}
		for _, d := range p.Warnings {
			fmt.Fprintf(w, "\n  warning: %s\n", safe(d))
		}
		fmt.Fprintln(w)
		what := "this policy alone"
		if len(x.Policies) == 1 {
			what = "this policy"
		}
		if err := tablesText(w, what, &p.Tables); err != nil {
			return err
		}
	}
	if len(x.Policies) > 1 {
		fmt.Fprintln(w)
		return tablesText(w, fmt.Sprintf("all %d policies", len(x.Policies)), &x.Tables)
	}
	return nil
}

// ruleText shows one rule: for its operations what is done, then what is looked at.
func ruleText(w io.Writer, rs []explainedRule) error {
	fmt.Fprintf(w, "\n  %s  %s  line %d\n", safe(rs[0].Name), rs[0].Action, rs[0].Line)
	for len(rs) > 0 {
		first := &rs[0]
		var same, others []explainedRule
		for _, r := range rs {
			if slices.Equal(r.Clauses, first.Clauses) && r.Residual == first.Residual {
				same = append(same, r)
			} else {
				others = append(others, r)
			}
		}
		t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
		for _, r := range same {
			state := r.State
			if r.Rung != "" {
				state += " by " + r.Rung
			}
			if r.Effective != "" && r.Effective != "none" {
				state += ", done as " + r.Effective
			}
			if r.Why != "" {
				state += ": " + safe(r.Why)
			}
			fmt.Fprintf(t, "    %s\t%s\n", r.Op, state)
		}
		if err := t.Flush(); err != nil {
			return err
		}
		for i, c := range first.Clauses {
			head := "kernel"
			if i > 0 {
				head = "    or"
			}
			fmt.Fprintf(w, "      %s  %s\n", head, safe(brief(c)))
		}
		if first.Residual != "" {
			fmt.Fprintf(w, "      user    by %s: %s\n", safe(strings.Join(first.User, ", ")), safe(cut(strings.Join(strings.Fields(first.Residual), " "), 200)))
		}
		rs = others
	}
	return nil
}

func tablesText(w io.Writer, what string, s *tablesSizes) error {
	fmt.Fprintf(w, "  tables of %s: %d rules, %d atoms, %d states, %d cells, %d rows; %s\n", what, s.Rules, s.Atoms, s.States, s.Cells, s.Rows, bytesText(uint64(max(s.Bytes, 0))))
	if s.Sets > 0 {
		fmt.Fprintf(w, "  sets: %d, of %d entries\n", s.Sets, s.Entries)
	}
	if len(s.Automata) > 0 {
		t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
		fmt.Fprintln(t, "    states\tleaves\tcells\tcolumns\tclasses\ttail bytes\t  automaton of")
		for _, a := range s.Automata {
			fmt.Fprintf(t, "%d\t%d\t%d\t%d\t%d\t%d\t  %s\n", a.States, a.Leaves, a.Cells, a.Columns, a.Classes, a.Tails, a.Field)
		}
		if err := t.Flush(); err != nil {
			return err
		}
	}
	if len(s.Ops) == 0 {
		return nil
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "   clauses\twords\tautomata\tclasses\trows\t  clauses of")
	for _, o := range s.Ops {
		fmt.Fprintf(t, "%d\t%d\t%d\t%d\t%d\t  %s\n", o.Clauses, o.Words, o.Automata, o.Classes, o.Rows, o.Op)
	}
	return t.Flush()
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
