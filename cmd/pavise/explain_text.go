package main

import (
	"fmt"

	"github.com/pavise-project/pavise/policy"
)

func (a *app) explainText(x *policy.Explanation, where string) error {
	fmt.Fprintf(a.stdout, "on %s\n\n", where)
	t := newTable(a.stdout, "POLICY", "MODE", "RULE", "OPERATION", "STATE", "RUNG", "IN USER SPACE")
	for _, p := range x.Policies {
		for _, r := range p.Rules {
			t.row(p.Name, p.Mode, r.Name, r.Op.String(), r.State, r.Rung.String(), r.Split)
		}
	}
	if err := t.flush(); err != nil {
		return err
	}
	fmt.Fprintf(a.stdout, "\ntables: %+v\n", x.Stats)
	return nil
}
