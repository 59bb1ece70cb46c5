package agent

import (
	"errors"
	"io"

	"github.com/pavise-project/pavise"
	"github.com/pavise-project/pavise/policy"
)

// only is the part of a report about some policies.
func only(rep *policy.Report, wanted func(name string) bool) *policy.Report {
	out := &policy.Report{}
	for i := range rep.Policies {
		if wanted(rep.Policies[i].Name) {
			out.Policies = append(out.Policies, rep.Policies[i])
		}
	}
	return out
}

// StatusOf is what the compiler reported of policies, in the API's words.
func StatusOf(ps []*policy.Policy, rep *policy.Report) []PolicyStatus {
	out := make([]PolicyStatus, 0, len(rep.Policies))
	byName := make(map[string]*policy.Policy, len(ps))
	for _, p := range ps {
		byName[p.Name] = p
	}
	for _, pr := range rep.Policies {
		st := PolicyStatus{Name: pr.Name, File: pr.File, Mode: string(pr.Mode), Rules: []RuleStatus{}, Warnings: warnings(&pr)}
		if p := byName[pr.Name]; p != nil {
			st.Labels, st.Source = p.Labels, string(p.Source)
		}
		for _, r := range pr.Rules {
			rs := RuleStatus{
				Name: r.Rule, Line: r.Line, Op: r.Op.String(), Action: r.Action.String(), State: string(r.State), Why: r.Why, User: r.User, Residual: r.Residual,
			}
			if r.Effective != r.Action {
				rs.Effective = r.Effective.String()
			}
			if r.Rung != pavise.RungNone {
				rs.Rung = r.Rung.String()
			}
			st.Rules = append(st.Rules, rs)
		}
		out = append(out, st)
	}
	return out
}

func warnings(r *policy.PolicyReport) (out []string) {
	for _, w := range r.Warnings {
		out = append(out, w.Error())
	}
	return out
}

// AnyMachine is a machine on which every operation can be judged and denied: what a policy is checked against when no
// agent says what the real one can.
func AnyMachine() *policy.Machine {
	m := &policy.Machine{LookupUser: func(string) (uint32, error) { return 0, nil }, LookupGroup: func(string) (uint32, error) { return 0, nil }}
	for op := pavise.OpExec; op < pavise.OpFork; op++ {
		m.Ops[op] = policy.Support{Rung: pavise.RungLSM, Deny: true, Kill: true}
	}
	return m
}

// ReadPolicy reads a policy file within its limit.
func ReadPolicy(r io.Reader) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, MaxPolicyBytes+1))
	if err != nil {
		return nil, err
	}
	if len(data) > MaxPolicyBytes {
		return nil, errors.New("over 1 MiB, the limit of a policy file")
	}
	return data, nil
}
