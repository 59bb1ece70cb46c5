package pavise

// Temporary: the encoding of events is built beside this; delete this file on merge.

import (
	"encoding/json"
	"fmt"
	"time"
)

type jsonEvent struct {
	ID       uint64    `json:"id"`
	Time     string    `json:"time"`
	Op       string    `json:"op"`
	Action   string    `json:"action,omitempty"`
	Monitor  bool      `json:"monitor,omitempty"`
	Rung     string    `json:"rung,omitempty"`
	Policy   string    `json:"policy,omitempty"`
	Rule     string    `json:"rule,omitempty"`
	Severity string    `json:"severity,omitempty"`
	Message  string    `json:"message,omitempty"`
	Count    uint64    `json:"count,omitempty"`
	PID      uint32    `json:"pid"`
	Process  *Process  `json:"process,omitempty"`
	File     *FileInfo `json:"file,omitempty"`
	Lost     *jsonLost `json:"lost,omitempty"`
}

type jsonLost struct {
	Op    string `json:"op"`
	Where string `json:"where"`
	Count uint64 `json:"count"`
}

// AppendJSON appends e as one JSON object.
func (e *Event) AppendJSON(b []byte) []byte {
	j := jsonEvent{ID: e.ID, Time: time.Unix(0, e.Time).UTC().Format(time.RFC3339Nano), Op: e.Op.String(), Monitor: e.Monitor,
		Policy: e.Policy, Rule: e.Rule, Severity: e.Severity, Message: e.Message, Count: e.Count, PID: e.PID, Process: e.Process}
	if e.Action != ActionNone {
		j.Action, j.Rung = e.Action.String(), e.Rung.String()
	}
	if e.File.Path != "" {
		j.File = &e.File
	}
	if e.Op == OpLost {
		j.Lost = &jsonLost{e.Lost.Op.String(), e.Lost.Where, e.Lost.Count}
	}
	o, err := json.Marshal(j)
	if err != nil {
		panic(err)
	}
	return append(b, o...)
}

// UnmarshalJSON reads what AppendJSON writes.
func (e *Event) UnmarshalJSON(b []byte) error {
	var j jsonEvent
	if err := json.Unmarshal(b, &j); err != nil {
		return err
	}
	op := func(s string) Op {
		for i, n := range OpNames {
			if n == s {
				return Op(i)
			}
		}
		return OpNone
	}
	*e = Event{ID: j.ID, Op: op(j.Op), Monitor: j.Monitor, Policy: j.Policy, Rule: j.Rule, Message: j.Message, Count: j.Count, PID: j.PID, Process: j.Process}
	t, _ := time.Parse(time.RFC3339Nano, j.Time)
	e.Time = t.UnixNano()
	for i, n := range actionNames {
		if n == j.Action {
			e.Action = Action(i)
		}
	}
	if j.File != nil {
		e.File = *j.File
	}
	if j.Lost != nil {
		e.Lost = LostInfo{Op: op(j.Lost.Op), Where: j.Lost.Where, Count: j.Lost.Count}
	}
	return nil
}

// AppendText appends e as one line for a person, without a newline.
func (e *Event) AppendText(b []byte, color bool) []byte {
	exe := ""
	if e.Process != nil {
		exe = e.Process.Exe.Path
	}
	b = fmt.Appendf(b, "%s %s %d %q %q", e.Op, e.Action, e.PID, exe, e.File.Path)
	if e.Policy != "" {
		b = fmt.Appendf(b, " %s/%s", e.Policy, e.Rule)
	}
	if e.Op == OpLost {
		b = fmt.Appendf(b, " lost %d %s (%s)", e.Lost.Count, e.Lost.Op, e.Lost.Where)
	}
	return b
}

// AppendJSON appends p as one JSON object.
func (p *Process) AppendJSON(b []byte) []byte {
	o, err := json.Marshal(p)
	if err != nil {
		panic(err)
	}
	return append(b, o...)
}
