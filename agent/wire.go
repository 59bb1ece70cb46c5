package agent

import (
	"fmt"
	"slices"
	"time"

	"github.com/pavise-project/pavise"
	"github.com/pavise-project/pavise/enforce"
	"github.com/pavise-project/pavise/policy"
)

// Status is GET /v1/status.
type Status struct {
	Version        string        `json:"version,omitempty"`
	PID            int           `json:"pid"`
	Started        time.Time     `json:"started"`
	Uptime         time.Duration `json:"uptime_ns"`
	Kernel         string        `json:"kernel"`
	Socket         string        `json:"socket"`
	Generation     uint32        `json:"generation"`
	Revision       uint64        `json:"revision,omitempty"`   // in force; 0 without a state directory
	ConfirmBy      *time.Time    `json:"confirm_by,omitempty"` // else it is taken back
	Policies       []PolicyMode  `json:"policies"`
	Rules          int           `json:"rules"`
	Ops            []OpCount     `json:"operations"`
	Filtered       uint64        `json:"filtered"`        // by the part of a rule that runs in user space
	Undecoded      uint64        `json:"undecoded"`       // records that could not be read
	UnnamedRules   uint64        `json:"unnamed_rules"`   // events whose generation was already forgotten
	SubscriberLost uint64        `json:"subscriber_lost"` // all subscribers together
	Subscribers    int           `json:"subscribers"`
	Refused        uint64        `json:"refused"` // connections and streams beyond the limits
	Processes      int           `json:"processes"`
	Peer           *Peer         `json:"peer,omitempty"` // who asked

	Keep KeepInfo `json:"keep"`

	Containers ContainerCount `json:"containers"`
	History    HistoryStatus  `json:"history"`
	Flows      FlowStatus     `json:"flows"`
	Recheck    *RecheckStatus `json:"recheck,omitempty"` // the last one; absent when there was none
	// What should not happen in the kernel: no working memory for a judgement, a thread without an identity, no room for a process's arguments and
	// ancestors, or for a count of a rate, a hook that had lost what judges for it, a program that was skipped because it was running already on that CPU.
	NoScratch  uint64 `json:"kernel_no_scratch"`
	NoIdentity uint64 `json:"kernel_no_identity"`
	NoTexts    uint64 `json:"kernel_no_texts"`
	NoCount    uint64 `json:"kernel_no_count"`
	NoName     uint64 `json:"kernel_no_name"`     // no room for the domain name of an address, which rules then know a moment later, or not
	NoListener uint64 `json:"kernel_no_listener"` // no room for who listens at an address or connects from it, so that rules on that were strict
	NoEngine   uint64 `json:"kernel_no_engine"`
	Missed     uint64 `json:"kernel_missed"`
	MapBytes   uint64 `json:"kernel_map_bytes"`
	RSS        uint64 `json:"rss_bytes"`
}

// Health is GET /healthz.
type Health struct {
	Status string `json:"status"` // ok
}

// Readiness is GET /readyz.
type Readiness struct {
	Ready      bool     `json:"ready"`
	Generation uint32   `json:"generation"` // of the policies that judge
	Reasons    []string `json:"reasons"`    // why it is not ready
}

// ProcessList is GET /v1/processes.
type ProcessList struct {
	Processes []pavise.Process `json:"processes"`
}

// PolicyList is GET /v1/policies.
type PolicyList struct {
	Generation uint32         `json:"generation"`
	Policies   []PolicyStatus `json:"policies"`
	Shadow     []string       `json:"shadow"` // the names of the candidate's policies, while one is on
}

// RevisionList is GET /v1/revisions.
type RevisionList struct {
	Revisions []RevisionStatus `json:"revisions"`
	Damaged   []string         `json:"damaged"` // files that are not what was written
}

// Confirmed is the answer to POST /v1/confirm.
type Confirmed struct {
	Revision uint64 `json:"revision"` // that stays
}

// KeepInfo says what becomes of enforcement when the agent ends.
type KeepInfo struct {
	Keep     string `json:"keep,omitempty"`     // no, forever, or for how long it goes on
	Pins     string `json:"pins,omitempty"`     // the directory in which it is pinned
	Adopted  bool   `json:"adopted,omitempty"`  // what an agent before this one had left went on with this one
	Replaced string `json:"replaced,omitempty"` // or why not: it went on until the policies of this one judged
	Left     bool   `json:"left,omitempty"`     // no agent runs, and one before has left its policies in force
}

func keepInfo(k enforce.KeepStatus) KeepInfo {
	return KeepInfo{Keep: k.Keep.String(), Pins: k.Pins, Adopted: k.Adopted, Replaced: k.Replaced}
}

// Why is GET /v1/events/ID/why: the event, and the rules by which it was judged, as they were then, strictest first.
type Why struct {
	Event      *pavise.Event   `json:"event"`
	Generation uint32          `json:"generation,omitempty"` // of the policies that judged; 0 when none did
	Active     uint32          `json:"active_generation"`
	Rules      []policy.Reason `json:"rules"`
	// Unnamed is how many clauses matched beyond the rules that the event names; 255 at most are counted.
	Unnamed int      `json:"unnamed,omitempty"`
	Notes   []string `json:"notes,omitempty"` // what is not known any more, or has changed since
}

// ContainerCount says of how many running containers the names are known, and of how many nothing but the id is.
type ContainerCount struct {
	Known     int    `json:"known"`
	Unknown   int    `json:"unknown"`
	Failed    uint64 `json:"failed"`           // given up: the runtime's files say nothing, or cannot be read
	Untrusted uint64 `json:"untrusted"`        // others than root may have made their cgroups
	Refused   uint64 `json:"refused"`          // too many at once
	Behind    string `json:"behind,omitempty"` // why the rules do not know of all that are known
}

// PolicyMode is a policy's name and mode.
type PolicyMode struct {
	Name string `json:"name"`
	Mode string `json:"mode"`
}

// OpCount are an operation's counters: the kernel's, and how many records of it the agent has received.
type OpCount struct {
	Op        string `json:"op"`
	Rung      string `json:"rung"`
	Seen      uint64 `json:"seen"`
	Delivered uint64 `json:"delivered"`
	Folded    uint64 `json:"folded"`
	Lost      uint64 `json:"lost"`
	Received  uint64 `json:"received"`
}

// PolicyStatus is a policy in GET /v1/policies.
type PolicyStatus struct {
	Name     string            `json:"name"`
	File     string            `json:"file,omitempty"` // as it was named when it was loaded or applied
	Mode     string            `json:"mode"`
	Change   string            `json:"change,omitempty"` // of a candidate's policy: added, replaced or unchanged
	Labels   map[string]string `json:"labels,omitempty"`
	Rules    []RuleStatus      `json:"rules"`
	Warnings []string          `json:"warnings,omitempty"`
	Source   string            `json:"source,omitempty"` // canonical YAML; GET of one policy only
}

// RuleStatus is one rule on one operation. State is enforced, monitored, audit, degraded, not observed or no effect.
type RuleStatus struct {
	Name      string   `json:"name"`
	Line      int      `json:"line,omitempty"` // in the policy's file
	Op        string   `json:"op"`
	Action    string   `json:"action"`
	Effective string   `json:"effective,omitempty"` // what is done instead, when it is not the action
	State     string   `json:"state"`
	Why       string   `json:"why,omitempty"` // when it is degraded or not observed
	Rung      string   `json:"rung,omitempty"`
	User      []string `json:"user,omitempty"`     // the fields that user space decides
	Residual  string   `json:"residual,omitempty"` // the condition that user space decides
	Hits      uint64   `json:"hits"`               // of the rule, on all its operations
	Stricter  uint64   `json:"stricter,omitempty"` // of a candidate's rule: how often it decided, and more strictly than the active policies
}

// Change is the answer to PUT and DELETE.
type Change struct {
	Generation uint32         `json:"generation"` // 0 for a dry run
	DryRun     bool           `json:"dry_run,omitempty"`
	Revision   uint64         `json:"revision,omitempty"`   // in force; 0 without a state directory
	ConfirmBy  *time.Time     `json:"confirm_by,omitempty"` // else it is taken back
	Policies   []PolicyStatus `json:"policies"`
	Compiled   time.Duration  `json:"compiled_ns"`
	Staged     time.Duration  `json:"staged_ns"`
	Activated  time.Duration  `json:"activated_ns"`
	Total      time.Duration  `json:"total_ns"`

	set *policySet
}

// Shadow is GET /v1/shadow, and the answer to PUT and DELETE: the candidate that is judged beside the active policies, or the last one.
type Shadow struct {
	On         bool           `json:"on"`
	Ended      string         `json:"ended,omitempty"` // why it ended, when nobody ended it
	Since      time.Time      `json:"since,omitzero"`
	Generation uint32         `json:"generation,omitempty"`
	Active     uint32         `json:"active_generation"`
	Policies   []PolicyStatus `json:"policies"`           // those that were given; the candidate is the active policies with these added or replaced
	Ops        []ShadowCount  `json:"operations"`         // on which it has judged
	Total      time.Duration  `json:"total_ns,omitempty"` // that PUT took
}

// ShadowCount is how often a candidate judged an operation, and how often it was stricter or laxer than the active policies.
type ShadowCount struct {
	Op       string `json:"op"`
	Judged   uint64 `json:"judged"`
	Stricter uint64 `json:"stricter"`
	Laxer    uint64 `json:"laxer"`
}

// Detail is one fault of a policy, where it stands and what to write instead.
type Detail struct {
	File   string `json:"file,omitempty"`
	Line   int    `json:"line,omitempty"`
	Column int    `json:"column,omitempty"`
	Field  string `json:"field,omitempty"`
	Msg    string `json:"msg"`
	Hint   string `json:"hint,omitempty"`
}

// ErrorBody is every answer that is not a success.
type ErrorBody struct {
	Error struct {
		Message string   `json:"message"`
		Details []Detail `json:"details,omitempty"`
	} `json:"error"`
}

// Doctor is GET /v1/doctor: what this machine can do, and why not more.
type Doctor struct {
	Agent bool       `json:"agent"` // an agent runs and gave this answer
	Host  Host       `json:"host"`
	Ops   []OpDoctor `json:"operations"`
	Keep  *KeepInfo  `json:"keep,omitempty"`
	Error string     `json:"error,omitempty"` // why the operations could not be probed
}

// Host is what matters of a host's kernel and settings.
type Host struct {
	Kernel       string   `json:"kernel"`
	Arch         string   `json:"arch"`
	BTF          bool     `json:"btf"`
	LSM          []string `json:"lsm"` // active security modules, in order
	Cgroup2      string   `json:"cgroup2,omitempty"`
	Cgroup1      []string `json:"cgroup1,omitempty"` // mount points of version 1
	Capabilities []string `json:"capabilities"`      // effective, of those that the agent needs
	Missing      []string `json:"missing_capabilities,omitempty"`
	Lockdown     string   `json:"lockdown,omitempty"`
}

// OpDoctor is one operation's rung, and why it is not a higher one.
type OpDoctor struct {
	Op    string    `json:"op"`
	Rung  string    `json:"rung"`
	Deny  bool      `json:"deny"`
	Kill  bool      `json:"kill"`
	Why   string    `json:"why,omitempty"`
	Notes []string  `json:"notes,omitempty"`
	Tried []RungTry `json:"tried,omitempty"`
	// Facts that the rung does not have, and facts that it has only after the act, where it can still kill.
	Missing    []string          `json:"missing,omitempty"`
	MissingWhy map[string]string `json:"missing_why,omitempty"` // of those that no rung of the machine has
	KillOnly   []string          `json:"kill_only,omitempty"`
	Before     []string          `json:"before,omitempty"` // of missing, what it has before the act, to rules that ask nothing of the process
}

// RungTry is one rung that was tried.
type RungTry struct {
	Rung  string `json:"rung"`
	OK    bool   `json:"ok"`
	Error string `json:"error,omitempty"`
}

// DoctorOps is the kernel's own report in the API's words.
func DoctorOps(in []enforce.OpStatus) []OpDoctor {
	out := make([]OpDoctor, 0, len(in))
	for _, o := range in {
		d := OpDoctor{Op: o.Op.String(), Rung: o.Rung.String(), Deny: o.Deny, Kill: o.Kill, Why: o.Why, Notes: o.Notes}
		for _, dim := range o.Missing {
			d.Missing = append(d.Missing, dim.String())
			if why := o.MissingWhy[dim]; why != "" {
				if d.MissingWhy == nil {
					d.MissingWhy = map[string]string{}
				}
				d.MissingWhy[dim.String()] = why
				d.Notes = append(d.Notes[:len(d.Notes):len(d.Notes)], fmt.Sprintf("%s is not known: %s", dim, why))
			}
		}
		for _, dim := range o.Before {
			d.Before = append(d.Before, dim.String())
		}
		for _, dim := range o.KillOnly {
			d.KillOnly = append(d.KillOnly, dim.String())
		}
		for _, t := range o.Tried {
			rt := RungTry{Rung: t.Rung.String(), OK: t.OK}
			if t.Err != nil {
				rt.Error = t.Err.Error()
			}
			d.Tried = append(d.Tried, rt)
		}
		out = append(out, d)
	}
	return out
}

// dimsByName reads facts back from the wire. One that this version does not know matters to no rule of it.
func dimsByName(names []string) (out []policy.Dim) {
	for d := policy.DimNone + 1; d < policy.NumDims; d++ {
		if slices.Contains(names, d.String()) {
			out = append(out, d)
		}
	}
	return out
}

// whysByName reads the reasons back.
func whysByName(names map[string]string) map[policy.Dim]string {
	var out map[policy.Dim]string
	for d := policy.DimNone + 1; d < policy.NumDims && len(out) < len(names); d++ {
		if why := names[d.String()]; why != "" {
			if out == nil {
				out = map[policy.Dim]string{}
			}
			out[d] = why
		}
	}
	return out
}

// rungByName reads a rung back from the wire.
func rungByName(s string) pavise.Rung {
	for r := pavise.RungNone; r < pavise.NumRungs; r++ {
		if r.String() == s {
			return r
		}
	}
	return pavise.RungNone
}

// LearnRequest is the body of PUT /v1/learning.
type LearnRequest struct {
	Subject string        `json:"subject"`              // CEL, as a policy's subject
	Ops     []string      `json:"operations,omitempty"` // none: all that can be seen on this machine
	For     time.Duration `json:"for_ns"`
}

// Learning is GET /v1/learning: what is being learned, or was last. GET /v1/learning/acts has what was seen.
type Learning struct {
	On      bool      `json:"on"`
	Why     string    `json:"why,omitempty"` // it ended, when nobody ended it
	Subject string    `json:"subject"`
	Since   time.Time `json:"since"`
	Until   time.Time `json:"until"`
	Ops     []string  `json:"operations"`
	Unseen  []string  `json:"unseen,omitempty"` // operations that this machine cannot see
	Running int       `json:"running"`          // processes of the subject that ran already when it began: how they started was not seen
	Acts    int       `json:"acts"`             // that differ
	Seen    uint64    `json:"seen"`             // with repeats
	Lost    uint64    `json:"lost"`             // of these operations, by any process
}
