package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/pavise-project/pavise"
	"github.com/pavise-project/pavise/enforce"
	"github.com/pavise-project/pavise/policy"
)

const confinedYAML = `apiVersion: pavise.dev/v1alpha1
kind: Policy
metadata: {name: confined}
spec:
  mode: enforce
  subject: process.exe.path == "/usr/sbin/nginx"
  default: {file.open: deny}
  rules:
  - {name: web, on: [file.open], when: 'file.path.under("/srv") && !file.access.write', action: allow}
  - {name: keys, on: [file.open], when: 'file.path == "/srv/key" && !process.tty', action: kill}
`

// whyAgent runs an agent with one policy; nginx runs in it.
func whyAgent(t *testing.T) (*Agent, *Client, func(*pavise.Event) uint64) {
	f := newFake()
	got := make(chan *pavise.Event, 16)
	a, c := running(t, f, func(c *Config) { c.OnEvent = func(e *pavise.Event) { got <- e } })
	if _, err := a.Apply(parse(t, confinedYAML), Request{}); err != nil {
		t.Fatal(err)
	}
	send := func(e *pavise.Event) uint64 {
		f.recs <- e
		return (<-got).ID
	}
	exec := &pavise.Event{Op: pavise.OpExec, PID: 9000001, ExecID: 5}
	exec.Exec.Exe.Path, exec.Exec.StartTime = "/usr/sbin/nginx", 2
	send(exec)
	return a, c, send
}

func opened(action pavise.Action, gen, rule uint32, file pavise.FileInfo) *pavise.Event {
	return &pavise.Event{
		Op: pavise.OpOpen, PID: 9000001, ExecID: 5, Action: action, Rung: pavise.RungLSM, Gen: gen, Matched: 1,
		RuleIDs: [4]uint32{rule, policy.NoRule, policy.NoRule, policy.NoRule}, File: file,
	}
}

func TestWhy(t *testing.T) {
	a, c, send := whyAgent(t)
	kill := send(opened(pavise.ActionKill, 2, 1, pavise.FileInfo{Path: "/tmp/link", Alias: "/srv/key"}))
	w, err := c.Why(t.Context(), kill)
	if err != nil {
		t.Fatal(err)
	}
	if w.Event.ID != kill || w.Generation != 2 || w.Active != 2 || len(w.Rules) != 1 || len(w.Notes) != 0 {
		t.Fatalf("%+v", w)
	}
	r := w.Rules[0]
	if r.Policy != "confined" || r.Rule != "keys" || r.Line != 10 || !r.Holds || r.Alias != "/srv/key" || r.State != policy.StateEnforced {
		t.Errorf("%+v", r)
	}
	if r.Subject == nil || len(r.Subject.Facts) != 1 || r.Subject.Facts[0].Value != "/usr/sbin/nginx" {
		t.Errorf("subject %+v", r.Subject)
	}
	if r.When == nil || r.When.Kind != policy.NodeAll || len(r.When.Of) != 2 || r.When.Of[0].Facts[0].Value != "/srv/key" || r.When.Of[1].Of[0].Result != "false" {
		t.Errorf("when %+v", r.When)
	}

	deny := send(opened(pavise.ActionDeny, 2, 2, pavise.FileInfo{Path: "/srv/index", Access: pavise.AccessWrite}))
	if w, err = c.Why(t.Context(), deny); err != nil {
		t.Fatal(err)
	}
	r = w.Rules[0]
	if r.Rule != "default/file.open" || r.Line != 7 || !r.Holds || len(r.Allows) != 1 || r.Allows[0].Rule != "web" {
		t.Fatalf("%+v", r)
	}
	if f := r.Allows[0].Failed; f == nil || f.Text != "!file.access.write" {
		t.Errorf("failed first: %+v", f)
	}

	for id, want := range map[string]string{
		"0": "no event 0: the last is 3", fmt.Sprint(deny + 1): "no event 4: the last is 3", "x": "not the number", "-1": "not the number",
	} {
		if code, body := ask(t, c, "GET", "/v1/events/"+id+"/why", nil); code/100 != 4 || !strings.Contains(body, want) {
			t.Errorf("event %s: %d %s", id, code, body)
		}
	}
	if w, err = c.Why(t.Context(), 1); err != nil || len(w.Rules) != 0 || len(w.Notes) != 1 || !strings.Contains(w.Notes[0], "no rule judged it") {
		t.Errorf("a fact of the lifecycle: %+v, %v", w, err)
	}
	a.lost(pavise.OpOpen, "decode", 1)
	if w, err = c.Why(t.Context(), 4); err != nil || !strings.Contains(strings.Join(w.Notes, ""), "agent's own") {
		t.Errorf("a loss: %+v, %v", w, err)
	}
}

// TestWhyAfterChange: an event is explained by the policies that judged it, and what has become of them is said.
func TestWhyAfterChange(t *testing.T) {
	a, c, send := whyAgent(t)
	id := send(opened(pavise.ActionKill, 2, 1, pavise.FileInfo{Path: "/srv/key"}))
	why := func() *Why {
		t.Helper()
		w, err := c.Why(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		return w
	}
	apply := func(src string) {
		t.Helper()
		if _, err := a.Apply(parse(t, src), Request{}); err != nil {
			t.Fatal(err)
		}
	}
	apply(shadow("aaa", "monitor")) // another policy: the numbers of rules change, and nothing else
	if w := why(); len(w.Notes) != 0 || w.Rules[0].Rule != "keys" || w.Active != 3 {
		t.Errorf("%+v", w)
	}
	apply(strings.Replace(confinedYAML, "/srv/key", "/srv/other", 1))
	if w := why(); len(w.Notes) != 1 || !strings.Contains(w.Notes[0], `policy "confined" was changed since`) || !w.Rules[0].Holds {
		t.Errorf("%+v", w)
	}
	if _, err := a.Delete("confined", Request{}); err != nil {
		t.Fatal(err)
	}
	if w := why(); len(w.Notes) != 1 || !strings.Contains(w.Notes[0], `policy "confined" was deleted since`) || !w.Rules[0].Holds {
		t.Errorf("%+v", w)
	}
	for range pastGenerations {
		apply(shadow("aaa", "monitor"))
	}
	if w := why(); len(w.Rules) != 0 || len(w.Notes) != 1 || !strings.Contains(w.Notes[0], "generation 2 judged, and its policies are no longer kept") || w.Event.Rule != "keys" {
		t.Errorf("%+v", w)
	}
}

// TestVerdictsAreKept: what is told of the lifecycle and of audits does not push out what was denied.
func TestVerdictsAreKept(t *testing.T) {
	h := newHub(8, 4)
	put := func(a pavise.Action) uint64 {
		e := &pavise.Event{Action: a}
		e.File.Path = fmt.Sprint("/", h.seq+1)
		h.publish(e)
		return e.ID
	}
	var denied, audited []uint64
	for range 6 {
		denied = append(denied, put(pavise.ActionDeny))
	}
	for range 100 {
		put(pavise.ActionNone)
		audited = append(audited, put(pavise.ActionAudit))
	}
	for i, id := range denied {
		e, last := h.find(id)
		if kept := i >= 2; kept != (e != nil) || last != 206 {
			t.Errorf("denied %d: %v, last %d", id, e, last)
		} else if kept && (e.ID != id || e.File.Path != fmt.Sprint("/", id)) {
			t.Errorf("denied %d: %+v", id, e)
		}
	}
	for i, id := range audited { // the last four are among the recent events
		if e, _ := h.find(id); (e != nil) != (i >= 92) || e != nil && e.File.Path != fmt.Sprint("/", id) {
			t.Errorf("audited %d: %v", id, e)
		}
	}
	for id := uint64(199); id <= 206; id++ {
		if e, _ := h.find(id); e == nil || e.ID != id {
			t.Errorf("recent %d: %v", id, e)
		}
	}
	if e, _ := h.find(207); e != nil {
		t.Error(e)
	}
}

func TestPast(t *testing.T) {
	var p past
	big := func(n int) *policy.Policy { return &policy.Policy{Rules: make([]policy.RuleSpec, n)} }
	stays := big(10 * pastRules)
	for i := range uint32(200) {
		p = p.with(i, []*policy.Policy{stays, big(3)})
	}
	if len(p) != pastGenerations || p[0].last != 199 || p.of(199) == nil || p.of(135) != nil {
		t.Errorf("%d generations", len(p))
	}
	same := []*policy.Policy{stays, big(3)}
	for i := range uint32(1000) { // containers come and go
		p = p.with(200+i, slices.Clone(same))
	}
	if len(p) != pastGenerations || !slices.Equal(p.of(200), same) || !slices.Equal(p.of(1199), same) || p.of(1200) != nil || p.of(199) == nil || p.of(137) == nil {
		t.Errorf("%d generations after a thousand of the same policies", len(p))
	}
	p = p[1:]
	p = p.with(200, []*policy.Policy{stays, big(pastRules / 2)})
	p = p.with(201, []*policy.Policy{stays, big(pastRules)})
	p = p.with(202, []*policy.Policy{stays})
	if p.of(202) == nil || p.of(201) != nil || len(p) != 1 { // 201 alone has too many rules that are gone
		t.Errorf("%d generations", len(p))
	}
}

func TestWhyNotFound(t *testing.T) {
	_, c := running(t, newFake(), nil)
	_, err := c.Why(t.Context(), 7)
	var ae *APIError
	if !errors.As(err, &ae) || ae.Status != 404 || !strings.Contains(ae.Message, "no event 7") {
		t.Errorf("%v", err)
	}
}

// TestDoctorMachine: what is compiled without the agent, by its answer, is compiled for the same machine.
func TestDoctorMachine(t *testing.T) {
	in := []enforce.OpStatus{
		{Op: pavise.OpConnect, Rung: pavise.RungCgroup, Deny: true, Kill: true, Why: "x", Missing: []policy.Dim{policy.DimExe, policy.DimCaps, policy.DimDigest},
			MissingWhy: map[policy.Dim]string{policy.DimDigest: "no IMA"}},
		{Op: pavise.OpOpen, Rung: pavise.RungKillOnReturn, Kill: true, KillOnly: []policy.Dim{policy.DimMode}},
	}
	b, err := json.Marshal(Doctor{Ops: DoctorOps(in)})
	if err != nil {
		t.Fatal(err)
	}
	var d Doctor
	if err := json.Unmarshal(b, &d); err != nil {
		t.Fatal(err)
	}
	m := d.Machine()
	for _, want := range in {
		got, w := m.Ops[want.Op], policy.Support{Rung: want.Rung, Deny: want.Deny, Kill: want.Kill, Why: want.Why, Missing: want.Missing, MissingWhy: want.MissingWhy, KillOnly: want.KillOnly}
		if !reflect.DeepEqual(got, w) {
			t.Errorf("%s: %+v, want %+v", want.Op, got, w)
		}
	}
}
