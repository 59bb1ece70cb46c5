package agent

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/pavise-project/pavise"
	"github.com/pavise-project/pavise/policy"
	"golang.org/x/sys/unix"
)

// This file cuts subjects off from the network, and lets them go. An isolation is a policy like any other, which the agent writes; what makes it more is
// that the connections which are there are ended too.

// Errors of isolations.
var (
	errBadIsolation = errors.New("cannot isolate")
	ErrNoSubject    = errors.New("nothing to isolate")
	ErrInexact      = errors.New("cannot isolate that alone")
	ErrCannotCut    = errors.New("cannot isolate on this machine")
	ErrNoIsolation  = errors.New("no such isolation")
)

// What marks a policy as an isolation's, and says of whom and since when it is.
const (
	isolationLabel = "pavise.dev/isolation"
	isolatesNote   = "pavise.dev/isolates"
	sinceNote      = "pavise.dev/isolated-at"
	exceptRule     = "except-"
)

// IsolationRequest is the body of POST /v1/isolations.
type IsolationRequest struct {
	Subject IsolationSubject `json:"subject"`
	Except  []string         `json:"exceptions,omitempty"` // what stays reachable: an address, a prefix, a name, each with a port or without, or a CEL condition on net.*
	Unix    bool             `json:"unix,omitempty"`       // Unix sockets are cut off too
	Kill    bool             `json:"kill,omitempty"`       // where the kernel cannot deny an operation, the process that does it is killed
	Widen   bool             `json:"widen,omitempty"`      // of a process that cannot be isolated alone, isolate those too that look like it
}

// IsolationSubject is who is to be isolated: one of them.
type IsolationSubject struct {
	PID       uint32 `json:"pid,omitempty"`
	Unit      string `json:"unit,omitempty"`      // of systemd, as "nginx.service"
	Container string `json:"container,omitempty"` // its id, the beginning of it, or its name
}

// Isolation is one subject that is cut off.
type Isolation struct {
	Name      string    `json:"name"` // of its policy
	What      string    `json:"what"` // who is isolated, in words
	Subject   string    `json:"subject"`
	Since     time.Time `json:"since,omitzero"`
	Except    []string  `json:"exceptions,omitempty"`
	Open      []string  `json:"open,omitempty"` // what this machine cannot cut off, and why
	Processes int       `json:"processes"`      // of the subject, that run
}

// IsolationList is GET /v1/isolations.
type IsolationList struct {
	Isolations []Isolation `json:"isolations"`
}

// Isolated is the answer to POST /v1/isolations.
type Isolated struct {
	Isolation Isolation `json:"isolation"`
	Cut       CutOff    `json:"cut"` // of the connections that were there
	Change    Change    `json:"change"`
}

// CutOff says what became of the connections of a subject that were there.
type CutOff struct {
	Closed int      `json:"closed"`
	Kept   int      `json:"kept"`             // they are excepted
	Failed []string `json:"failed,omitempty"` // could not be closed, or not be looked for, and why
}

// target is a subject as conditions say it.
type target struct {
	kind, cel, what string
	container       string // its id: processes in a container within it are of it too
	where           *policy.Expr
}

// runningProcesses are those of the table that are there, with the program that they run now.
func (a *Agent) runningProcesses() []*pavise.Process {
	return slices.DeleteFunc(a.table.Snapshot(), func(p *pavise.Process) bool {
		now := a.table.LookupPID(p.PID)
		return p.ExitTime != 0 || now == nil || now.ExecID != p.ExecID || !a.table.Alive(p)
	})
}

func (a *Agent) holds(t *target, p *pavise.Process) bool {
	if t.container != "" && strings.Contains(p.Cgroup, t.container) {
		return true
	}
	ok, err := t.where.Eval(a.withAncestors(&pavise.Event{Op: pavise.OpConnect, Process: p}))
	return ok && err == nil
}

func (a *Agent) holders(t *target) []*pavise.Process {
	return slices.DeleteFunc(a.runningProcesses(), func(p *pavise.Process) bool { return !a.holds(t, p) })
}

// target finds out how to say who is meant.
func (a *Agent) target(q *IsolationRequest) (*target, error) {
	given := 0
	for _, is := range []bool{q.Subject.PID != 0, q.Subject.Unit != "", q.Subject.Container != ""} {
		if is {
			given++
		}
	}
	if given != 1 {
		return nil, fmt.Errorf("%w: subject: give one of pid, unit and container", errBadIsolation)
	}
	var t *target
	var err error
	switch {
	case q.Subject.PID != 0:
		t, err = a.targetProcess(q.Subject.PID, q.Widen)
	case q.Subject.Unit != "":
		t, err = a.targetUnit(q.Subject.Unit)
	default:
		t, err = a.targetContainer(q.Subject.Container)
	}
	if err != nil {
		return nil, err
	}
	for _, p := range a.holders(t) {
		if p.PID == 1 || p.PID == a.pid {
			return nil, fmt.Errorf("%w: %s: process %d is of it, which is %s", errBadIsolation, t.what, p.PID, map[bool]string{true: "the first of the machine", false: "the agent"}[p.PID == 1])
		}
	}
	return t, nil
}

func newTarget(kind, cel, what string) (*target, error) {
	if !utf8.ValidString(cel) {
		return nil, fmt.Errorf("%w: %s: its name is no UTF-8, so that no condition can name it", ErrInexact, what)
	}
	x, err := policy.CompileWhere(cel)
	if err != nil {
		return nil, fmt.Errorf("say who is %s: %w", what, err)
	}
	return &target{kind: kind, cel: cel, what: what, where: x}, nil
}

func (a *Agent) targetUnit(unit string) (*target, error) {
	t, err := newTarget("unit", "process.unit == "+strconv.Quote(unit), "unit "+unit)
	if err == nil && len(a.holders(t)) == 0 {
		err = fmt.Errorf("%w: no process runs in a unit %q; see: pavise ps", ErrNoSubject, unit)
	}
	return t, err
}

func (a *Agent) targetContainer(name string) (*target, error) {
	found := map[string]*pavise.Container{}
	for _, p := range a.runningProcesses() {
		if c := p.Container; c != nil && (c.Name == name || len(name) >= 4 && strings.HasPrefix(c.ID, name)) {
			found[c.ID+" "+c.Name] = c
		}
	}
	switch len(found) {
	case 0:
		return nil, fmt.Errorf("%w: no process runs in a container with the id or name %q; see: pavise ps", ErrNoSubject, name)
	case 1:
	default:
		return nil, fmt.Errorf("%w: %q is the beginning of the id, or the name, of %d containers; give the whole id", ErrInexact, name, len(found))
	}
	for _, c := range found {
		if c.ID == "" {
			return newTarget("container", "process.container.name == "+strconv.Quote(c.Name), "container "+c.Name)
		}
		t, err := newTarget("container", "process.container.id == "+strconv.Quote(c.ID), strings.TrimSpace("container "+c.ID+" "+c.Name))
		if err == nil {
			t.container = c.ID
		}
		return t, err
	}
	return nil, ErrNoSubject
}

// targetProcess says which process is meant by what the kernel knows when it judges, which is not the pid: its cgroup, where nobody else is in that, or its program.
func (a *Agent) targetProcess(pid uint32, widen bool) (*target, error) {
	if pid == 1 || pid == a.pid {
		return nil, fmt.Errorf("%w: process %d is %s", errBadIsolation, pid, map[bool]string{true: "the first of the machine", false: "the agent"}[pid == 1])
	}
	p := a.table.LookupPID(pid)
	if p == nil || p.ExitTime != 0 || !a.table.Alive(p) {
		return nil, fmt.Errorf("%w: no process %d runs", ErrNoSubject, pid)
	}
	if p.Exe.Path == "" {
		return nil, fmt.Errorf("%w: of process %d no program is known: it is a thread of the kernel, or its record was lost", errBadIsolation, pid)
	}
	exe := strconv.Quote(p.Exe.Path)
	program := fmt.Sprintf("process.exe.path == %s", exe)
	started := fmt.Sprintf("process.ancestors.exists(a, a.exe.path == %s)", exe)
	type way struct{ cel, what string }
	var ways []way
	if p.Cgroup != "" && p.Cgroup != "/" {
		ways = append(ways, way{
			fmt.Sprintf("process.cgroup == %s || process.cgroup.startsWith(%s)", strconv.Quote(p.Cgroup), strconv.Quote(p.Cgroup+"/")),
			fmt.Sprintf("process %d (%s), by its cgroup %s, with all that is ever in that", pid, exe, strconv.Quote(p.Cgroup)),
		})
	}
	ways = append(
		ways,
		way{program + " || " + started, fmt.Sprintf("process %d, by its program %s, with all that runs it and what that starts; not any more when it executes another program itself", pid, exe)},
		way{
			fmt.Sprintf("%s && process.user.id == %d || %s", program, p.User.ID, started),
			fmt.Sprintf("process %d, by its program %s and user id %d, with all of these and what the program starts; not any more when it changes its user, or executes another program itself",
				pid, exe, p.User.ID),
		},
	)
	var last *target
	var others []*pavise.Process
	for _, w := range ways {
		t, err := newTarget("pid", w.cel, w.what)
		if err != nil {
			return nil, err
		}
		others = slices.DeleteFunc(a.holders(t), func(q *pavise.Process) bool { return a.startedBy(q, p) })
		if len(others) == 0 {
			return t, nil
		}
		last = t
	}
	if widen {
		last.what += fmt.Sprintf("; these are %d processes more than asked for", len(others))
		return last, nil
	}
	var names []string
	for _, q := range others[:min(3, len(others))] {
		names = append(names, strconv.FormatUint(uint64(q.PID), 10))
	}
	return nil, fmt.Errorf("%w: the kernel does not judge by process ids, and process %d is not alone in its cgroup, nor the only one with its program and user: %d others run %s as user id %d, or were started by it, as %s; isolate its unit or container, or these too with --widen",
		ErrInexact, pid, len(others), exe, p.User.ID, strings.Join(names, ", "))
}

// startedBy reports whether q is p, or was started by it, or by what it started.
func (a *Agent) startedBy(q, p *pavise.Process) bool {
	same := func(q *pavise.Process) bool { return q.PID == p.PID && q.StartTime == p.StartTime }
	if same(q) {
		return true
	}
	for up := range a.table.Ancestors(q) {
		if same(up) {
			return true
		}
	}
	return false
}

// cutOps are the operations by which a process reaches others or is reached. The first one must be denied, or there is no isolation.
var cutOps = []pavise.Op{pavise.OpConnect, pavise.OpSend, pavise.OpAccept, pavise.OpListen, pavise.OpBind}

var (
	exceptName = regexp.MustCompile(`^(\*\.)?([a-z0-9_]([a-z0-9_-]*[a-z0-9_])?\.)*[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?$`)
	exceptPort = regexp.MustCompile(`^(.*):(\d+)$`)
)

// exceptEnd splits an exception that is no condition into an address, prefix or name, and its port, which is 0 when there is none.
func exceptEnd(s string) (to string, port uint16, err error) {
	if _, err := netip.ParseAddr(s); err == nil {
		return s, 0, nil
	}
	if _, err := netip.ParsePrefix(s); err == nil {
		return s, 0, nil
	}
	m := exceptPort.FindStringSubmatch(s)
	if m == nil {
		return s, 0, nil
	}
	n, err := strconv.ParseUint(m[2], 10, 16)
	if err != nil || n == 0 {
		return "", 0, fmt.Errorf("%w: except: %q: a port is 1 to 65535", errBadIsolation, s)
	}
	to = m[1]
	if in, ok := strings.CutPrefix(to, "["); ok {
		to = strings.TrimSuffix(in, "]")
	}
	return to, uint16(n), nil
}

// exception is one of an isolation: what stays reachable.
type exception struct {
	text  string
	cel   string
	where *policy.Expr
	from  netip.Prefix // not valid when it is a name or a condition
	port  uint16
}

func newException(text, cel string) (*exception, error) {
	where, err := policy.CompileWhere(cel)
	if err != nil {
		return nil, fmt.Errorf("%w: except: %q: %s", errBadIsolation, text, err.Error())
	}
	x := &exception{text: text, cel: cel, where: where}
	if to, port, err := exceptEnd(text); err == nil {
		x.port = port
		if a, err := netip.ParseAddr(to); err == nil {
			a = a.Unmap()
			x.from = netip.PrefixFrom(a, a.BitLen())
		} else if p, err := netip.ParsePrefix(to); err == nil {
			x.from = p
		}
	}
	return x, nil
}

// exceptCEL makes a condition of what stays reachable: an address, a prefix or a name, with a port or without, or a condition.
func exceptCEL(s string) (string, error) {
	if strings.ContainsFunc(s, unicode.IsControl) || !utf8.ValidString(s) {
		return "", fmt.Errorf("%w: except: %q has characters that are not printable", errBadIsolation, s)
	}
	if strings.Contains(s, "net.") && strings.ContainsAny(s, "=<>(!") || strings.Contains(s, "process.") {
		if _, err := policy.CompileWhere(s); err != nil {
			return "", fmt.Errorf("%w: except: %q: %s", errBadIsolation, s, err.Error())
		}
		return s, nil
	}
	to, n, err := exceptEnd(s)
	if err != nil {
		return "", err
	}
	port := ""
	if n != 0 {
		port = fmt.Sprintf(" && net.remote.port == %d", n)
	}
	if a, err := netip.ParseAddr(to); err == nil {
		if a.Zone() != "" {
			return "", fmt.Errorf("%w: except: %q: an address with a zone cannot be judged; leave %%%s out", errBadIsolation, s, a.Zone())
		}
		return fmt.Sprintf("net.remote.address == %q", a.Unmap()) + port, nil
	}
	if p, err := netip.ParsePrefix(to); err == nil {
		if p != p.Masked() {
			return "", fmt.Errorf("%w: except: %q has bits behind the prefix; write %s", errBadIsolation, s, p.Masked())
		}
		return fmt.Sprintf("net.remote.address.within(%q)", p) + port, nil
	}
	name := strings.ToLower(strings.TrimSuffix(to, "."))
	if strings.Trim(name, "0123456789./") == "" || len(name) > 253 || !exceptName.MatchString(name) {
		return "", fmt.Errorf("%w: except: %q is no address, prefix or name, as 10.0.0.1, 10.0.0.0/8:443, [2001:db8::1]:22, db.internal:5432 or *.example.com, and no condition on net.*", errBadIsolation, s)
	}
	if strings.HasPrefix(name, "*.") {
		return fmt.Sprintf("net.remote.domain.glob(%q)", name) + port, nil
	}
	return fmt.Sprintf("net.remote.domain == %q", name) + port, nil
}

// does reports whether op is cut off with q: denied, or the process killed.
func (a *Agent) does(op pavise.Op, q *IsolationRequest) bool {
	s := &a.machine.Ops[op]
	return s.Deny || q.Kill && s.Kill
}

// isolationPolicy writes the policy.
func (a *Agent) isolationPolicy(name string, t *target, q *IsolationRequest, except []string) (string, error) {
	if s := &a.machine.Ops[pavise.OpConnect]; !a.does(pavise.OpConnect, q) {
		return "", fmt.Errorf("%w: net.connect cannot be denied: %s; see: pavise doctor", ErrCannotCut, s.Why)
	}
	var ops, reaching []pavise.Op
	for _, op := range cutOps {
		if a.does(op, q) {
			ops = append(ops, op)
		}
	}
	quote := func(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }
	list := func(ops []pavise.Op) string {
		var names []string
		for _, op := range ops {
			names = append(names, op.String())
		}
		return "[" + strings.Join(names, ", ") + "]"
	}
	var b strings.Builder
	fmt.Fprintf(&b, "apiVersion: %s\nkind: %s\nmetadata:\n  name: %s\n  labels: {%s: %s}\n  annotations:\n    %s: %s\n    %s: %s\nspec:\n  mode: enforce\n",
		policy.APIVersion, policy.Kind, name, isolationLabel, t.kind, isolatesNote, quote(t.what), sinceNote, quote(time.Now().UTC().Format(time.RFC3339)))
	if q.Kill {
		b.WriteString("  fallback: kill\n")
	}
	fmt.Fprintf(&b, "  subject: %s\n  default:\n", quote(t.cel))
	for _, op := range ops {
		fmt.Fprintf(&b, "    %s: deny\n", op)
	}
	here := `["unix", "netlink"]`
	if q.Unix {
		here = `["netlink"]`
	}
	fmt.Fprintf(&b, "  rules:\n  - name: this-host\n    on: %s\n    when: 'net.family in %s'\n    action: allow\n", list(ops), here)
	for _, op := range ops {
		if op == pavise.OpConnect || op == pavise.OpSend || op == pavise.OpAccept && !slices.Contains(a.machine.Ops[op].Missing, policy.DimRemoteAddr) {
			reaching = append(reaching, op)
		}
	}
	for i, cel := range except {
		on := reaching
		if !strings.Contains(cel, "net.remote") && a.does(pavise.OpAccept, q) && !slices.Contains(on, pavise.OpAccept) {
			on = append(slices.Clone(on), pavise.OpAccept)
		}
		fmt.Fprintf(&b, "  - name: %s%d\n    on: %s\n    when: %s\n    message: %s\n    action: allow\n", exceptRule, i+1, list(on), quote(cel), quote(q.Except[i]))
	}
	if len(except) > 0 && a.does(pavise.OpBind, q) { // clients of UDP ask for any port before they send
		b.WriteString("  - name: " + anyPortRule + "\n    on: [net.bind]\n    when: 'net.family in [\"ipv4\", \"ipv6\"] && net.local.port == 0'\n    action: allow\n")
	}
	for _, r := range a.noSockets(q, a.sendsRaw(ops)) {
		fmt.Fprintf(&b, "  - name: %s\n    on: [net.socket]\n    when: %s\n    action: deny\n", r.name, quote(r.cel))
	}
	return b.String(), nil
}

// The rules of an isolation on the making of sockets.
const (
	newSocketsRule = "new-sockets" // of IPv4 and IPv6, all
	rawRule        = "raw"         // raw ones, and others that no connect or send is judged of
	packetRule     = "packet"

	anyPortRule = "any-port" // what is not about making them: any port may be bound
)

type socketRule struct{ name, cel string }

// noSockets are the rules on the sockets that may not even be made: what passes them by is judged by no other rule. Without an exception
// a raw socket can be for nothing but to receive; and where the rung cgroup judges what is sent, the kernel gives a socket its port before it asks, and listening is not
// judged, so that then there is none at all.
func (a *Agent) noSockets(q *IsolationRequest, sendsRaw bool) (rules []socketRule) {
	const inet = `net.family in ["ipv4", "ipv6"]`
	s := &a.machine.Ops[pavise.OpSocket]
	switch {
	case s.Deny && s.Rung == pavise.RungCgroup:
		if len(q.Except) == 0 {
			rules = append(rules, socketRule{newSocketsRule, inet})
		} else {
			rules = append(rules, socketRule{rawRule, inet + ` && (net.type == "raw" || !(net.protocol in ["tcp", "udp"]))`})
		}
		if q.Kill && s.Kill {
			rules = append(rules, socketRule{packetRule, `net.family == "packet"`})
		}
	case a.does(pavise.OpSocket, q) && (sendsRaw || len(q.Except) == 0):
		rules = append(rules, socketRule{rawRule, `net.family == "packet" || net.type == "raw" && net.family != "netlink"`})
	}
	return rules
}

// sendsRaw reports whether what a subject sends through raw and packet sockets goes unjudged.
func (a *Agent) sendsRaw(ops []pavise.Op) bool {
	r := a.machine.Ops[pavise.OpSend].Rung
	return !slices.Contains(ops, pavise.OpSend) || r != pavise.RungLSM && r != pavise.RungFmodRet
}

// leftOpen says what an isolation does not cut off on this machine.
func (a *Agent) leftOpen(p *policy.Policy) (open []string) {
	if p.Mode != policy.ModeEnforce {
		return []string{fmt.Sprintf("everything: its policy is in mode %s", p.Mode)}
	}
	has := func(rule string) bool {
		return slices.ContainsFunc(p.Rules, func(r policy.RuleSpec) bool { return r.Name == rule })
	}
	for _, op := range cutOps {
		if slices.Contains(p.Default, op) {
			continue
		}
		what := map[pavise.Op]string{
			pavise.OpSend: "datagrams to an address given with them", pavise.OpAccept: "connections that others make to its listening sockets",
			pavise.OpListen: "new listening sockets", pavise.OpBind: "addresses of its own choice",
		}[op]
		if op == pavise.OpListen && has(newSocketsRule) {
			what = "a socket that it has already may begin to listen"
		}
		s, help := &a.machine.Ops[op], ""
		if s.Kill {
			help = "; --kill kills who does it"
		}
		open = append(open, fmt.Sprintf("%s (%s): it cannot be denied here: %s%s", op, what, s.Why, help))
	}
	if a.sendsRaw(p.Default) {
		which := "raw and packet sockets"
		switch inet := has(newSocketsRule) || has(rawRule); {
		case inet && (has(packetRule) || a.machine.Ops[pavise.OpSocket].Rung != pavise.RungCgroup):
			which += " that it has already"
		case inet:
			which = "packet sockets, and raw sockets that it has already"
		}
		open = append(open, which+": what is sent through them is judged on the rungs lsm and fmod_ret only")
	}
	if has(anyPortRule) {
		open = append(open, "UDP sockets that it makes from now on: it may have some, as there are exceptions, and these receive from anybody")
	}
	if a.machine.Ops[pavise.OpConnect].Rung == pavise.RungCgroup {
		open = append(open, "families other than IPv4 and IPv6, as vsock: the rung cgroup does not judge them")
	}
	return open
}

func (a *Agent) isolationOf(p *policy.Policy) Isolation {
	i := Isolation{Name: p.Name, What: p.Annotations[isolatesNote], Open: a.leftOpen(p)}
	if p.Subject != nil {
		i.Subject = p.Subject.Source
	}
	if at, err := time.Parse(time.RFC3339, p.Annotations[sinceNote]); err == nil {
		i.Since = at
	}
	for _, r := range p.Rules {
		if strings.HasPrefix(r.Name, exceptRule) {
			i.Except = append(i.Except, r.Message)
		}
	}
	i.Processes = a.running(p)
	return i
}

// Isolations are those that are in force, by name.
func (a *Agent) Isolations() []Isolation {
	list := []Isolation{}
	for _, p := range a.set.Load().policies {
		if p.Labels[isolationLabel] != "" {
			list = append(list, a.isolationOf(p))
		}
	}
	return list
}

// Isolate cuts a subject off: by a policy, and by ending what connections it has.
func (a *Agent) Isolate(ctx context.Context, r *IsolationRequest, q Request) (*Isolated, error) {
	a.isolating.Lock() // so that two at once do not take the same name
	defer a.isolating.Unlock()
	cels := make([]string, len(r.Except))
	kept := make([]*exception, len(r.Except))
	for i, s := range r.Except {
		var err error
		if cels[i], err = exceptCEL(s); err != nil {
			return nil, err
		}
		if kept[i], err = newException(s, cels[i]); err != nil {
			return nil, err
		}
	}
	a.catchUp(ctx)
	t, err := a.target(r)
	if err != nil {
		return nil, err
	}
	n := 1
	for a.set.Load().find(fmt.Sprintf("isolate-%d", n)) != nil {
		n++
	}
	name := fmt.Sprintf("isolate-%d", n)
	src, err := a.isolationPolicy(name, t, r, cels)
	if err != nil {
		return nil, err
	}
	ps, err := a.parse("isolation", []byte(src), nil)
	if err != nil {
		return nil, err
	}
	c, err := a.change([]string{name}, "isolate "+t.what, q, func(have []*policy.Policy) ([]*policy.Policy, error) {
		if find(have, name) != nil {
			return nil, fmt.Errorf("%w: a policy %s was applied just now; try again", ErrInexact, name)
		}
		return append(have, ps[0]), nil
	})
	if err != nil {
		return nil, err
	}
	out := &Isolated{Isolation: a.isolationOf(ps[0]), Change: *c}
	if !q.DryRun {
		a.cutOff(ctx, t, kept, &out.Cut)
		a.log.Warn("isolated", "name", name, "subject", t.what, "closed", out.Cut.Closed, "kept", out.Cut.Kept, "failed", len(out.Cut.Failed), "open", len(out.Isolation.Open))
	}
	return out, nil
}

// Release lets an isolated subject go. The connections that were ended stay so.
func (a *Agent) Release(name string, q Request) (*Change, error) {
	p := a.set.Load().find(name)
	if p == nil || p.Labels[isolationLabel] == "" {
		return nil, fmt.Errorf("release %q: %w; see: pavise isolate --list", name, ErrNoIsolation)
	}
	return a.Delete(name, q)
}

// cutPasses bounds how often connections are looked for: one that was judged before the policy was active may come to be a moment later.
const cutPasses = 5

// cutOff ends the connections of a subject, but for those that are excepted.
func (a *Agent) cutOff(ctx context.Context, t *target, except []*exception, out *CutOff) {
	done := map[string]bool{}
	for range cutPasses {
		a.catchUp(ctx)
		before := out.Closed
		a.cutOnce(t, except, out, done)
		if out.Closed == before || ctx.Err() != nil {
			return
		}
	}
}

// flowKey finds a flow by its ends.
type flowKey struct {
	netns         uint32
	protocol      uint8
	local, remote netip.AddrPort
}

// cutOnce ends what connections it finds. Done has those that were kept or could not be ended, and what was told already.
func (a *Agent) cutOnce(t *target, except []*exception, out *CutOff, done map[string]bool) {
	failed := func(what string, err error) {
		if s := fmt.Sprintf("%s: %s", what, err); !done[s] {
			done[s] = true
			out.Failed = append(out.Failed, s)
		}
	}
	// Whose they are: those that a process of the subject has open, and those on which one of them was the last to act.
	inodes := map[uint32]*pavise.Process{}
	places := map[uint32]uint32{} // network namespaces, each with a process in it
	who := a.holders(t)
	for _, p := range who {
		socks, err := socketsOf(p.PID)
		ns, nerr := netNSOf(p.PID)
		if err := errors.Join(err, nerr); err != nil {
			if a.table.Alive(p) {
				failed(fmt.Sprintf("process %d", p.PID), err)
			}
			continue
		}
		places[ns] = p.PID
		for _, n := range socks {
			inodes[n] = p
		}
	}
	known := map[uint64]bool{}
	owns := func(f *pavise.Flow) bool {
		if f == nil || f.Local.Process == nil {
			return false
		}
		is, ok := known[f.Local.ExecID]
		if !ok {
			is = a.holds(t, f.Local.Process)
			known[f.Local.ExecID] = is
		}
		return is
	}
	flows := map[flowKey]*pavise.Flow{}
	if f := a.flows.Load(); f != nil {
		f.sweep()
		for _, fl := range f.table.Open() {
			if fl.Protocol != pavise.ProtocolTCP && fl.Protocol != pavise.ProtocolUDP || !fl.Remote.Address.IsValid() {
				continue
			}
			flows[flowKey{fl.NetNS, fl.Protocol, netip.AddrPortFrom(fl.Local.Address, fl.Local.Port), netip.AddrPortFrom(fl.Remote.Address, fl.Remote.Port)}] = fl
			if places[fl.NetNS] == 0 && owns(fl) {
				places[fl.NetNS] = a.someoneIn(fl.NetNS)
			}
		}
	}
	listed := map[uint32]bool{}
	for ns, pid := range places {
		if pid == 0 {
			failed(fmt.Sprintf("connections in network namespace %d", ns), errors.New("no process is in it"))
			continue
		}
		d, in, err := openDiag(pid)
		if err != nil {
			failed(fmt.Sprintf("connections in network namespace %d", ns), err)
			continue
		}
		for _, k := range diagKinds {
			var mine []*diagSocket
			err := d.list(k.family, k.protocol, k.states, func(s *diagSocket) {
				listed[s.inode] = true
				if s.inode != 0 && inodes[s.inode] != nil || owns(flows[flowKey{in, s.protocol, s.local, s.remote}]) {
					mine = append(mine, s)
				}
			})
			if err != nil {
				failed(fmt.Sprintf("connections of %s in network namespace %d", map[uint8]string{pavise.ProtocolTCP: "tcp", pavise.ProtocolUDP: "udp"}[k.protocol], in), err)
			}
			for _, s := range mine {
				if p := inodes[s.inode]; p != nil && s.unconnected() {
					a.silenceSocket(d, in, s, p, except, out, done, failed)
					continue
				}
				a.cutSocket(d, in, s, inodes[s.inode], flows[flowKey{in, s.protocol, s.local, s.remote}], except, out, done, failed)
			}
		}
		d.close()
	}
	for _, p := range who {
		a.silenceUnlisted(p, listed, except, out, done, failed)
	}
}

// cutSocket ends one connection, unless it is excepted.
func (a *Agent) cutSocket(d *diag, ns uint32, s *diagSocket, p *pavise.Process, fl *pavise.Flow, except []*exception, out *CutOff, done map[string]bool, failed func(string, error)) {
	key := fmt.Sprintf("%d %s", ns, s)
	if done[key] {
		return
	}
	e := &pavise.Event{Op: pavise.OpConnect, Process: p, Net: pavise.NetInfo{
		Family: uint16(s.family), Protocol: s.protocol, Type: pavise.TypeStream,
		Local: s.local.Addr().As16(), LocalPort: s.local.Port(), Remote: s.remote.Addr().As16(), RemotePort: s.remote.Port(),
	}}
	if s.protocol == pavise.ProtocolUDP {
		e.Net.Type = pavise.TypeDgram
	}
	if p == nil && fl != nil {
		e.Process = fl.Local.Process
	}
	if fl != nil && fl.Remote.Name != "" {
		e.Net.RemoteName = fl.Remote.Name // what it was made by
	} else {
		a.names.tell(e)
	}
	e = a.withAncestors(e)
	for _, x := range except {
		if ok, err := x.where.Eval(e); ok && err == nil {
			done[key] = true
			out.Kept++
			return
		}
	}
	if f := a.flows.Load(); f != nil && fl != nil {
		f.cut.Store(fl.ID, true)
	}
	switch err := d.destroy(s); {
	case err == nil:
		out.Closed++
		done[heldKey(s.inode)+" ended"] = true
	case errors.Is(err, unix.ENOENT): // it has ended by itself
	default:
		done[key] = true
		failed(s.String(), err)
		if f := a.flows.Load(); f != nil && fl != nil {
			f.cut.Delete(fl.ID)
		}
	}
}

// silenceSocket takes from a UDP socket that is connected to nobody what it could still receive. What it sends is the policy's to judge.
func (a *Agent) silenceSocket(d *diag, ns uint32, s *diagSocket, p *pavise.Process, except []*exception, out *CutOff, done map[string]bool, failed func(string, error)) {
	key := fmt.Sprintf("%d %s %d", ns, s, s.inode)
	if done[key] {
		return
	}
	done[key] = true
	e := a.withAncestors(&pavise.Event{Op: pavise.OpConnect, Process: p, Net: pavise.NetInfo{
		Family: uint16(s.family), Protocol: s.protocol, Type: pavise.TypeDgram, Local: s.local.Addr().As16(), LocalPort: s.local.Port(),
	}})
	from, kept, err := heardFrom(e, except)
	switch {
	case err != nil:
		failed(s.String(), err)
		return
	case kept:
		out.Kept++
		return
	}
	if err := silence(p.PID, s.inode, from); err != nil {
		if errors.Is(err, errSocketGone) {
			return
		}
		failed(s.String(), fmt.Errorf("it still receives: %w", err))
	} else if !done[heldKey(s.inode)+" ended"] {
		out.Closed++
	}
	if len(from) > 0 {
		return
	}
	// Who waits on it hears of it. (One that shares its address with others may not be found: it is silent all the same.)
	if err := d.destroy(s); err != nil && !errors.Is(err, unix.ENOENT) {
		failed(s.String(), err)
	}
}

// heardFrom says from whom a socket that is connected to nobody may still receive; kept: from all. With err it is left as it is.
func heardFrom(e *pavise.Event, except []*exception) (from []*exception, kept bool, err error) {
	for _, x := range except {
		switch ok, err := x.where.Eval(e); {
		case x.from.IsValid():
			from = append(from, x)
		case strings.Contains(x.cel, "net.remote."):
			return nil, false, fmt.Errorf("it still receives: its peers that %q excepts cannot be told from others by address; except them by address or prefix", x.text)
		case ok && err == nil:
			return nil, true, nil
		}
	}
	return from, false, nil
}

func heldKey(inode uint32) string { return fmt.Sprintf("socket %d", inode) }

// silenceUnlisted is silenceSocket for the sockets of a process that sock_diag does not list: UDP sockets that have no port yet, which the kernel gives them when they send,
// allowed or not; raw sockets; and packet sockets.
func (a *Agent) silenceUnlisted(p *pavise.Process, listed map[uint32]bool, except []*exception, out *CutOff, done map[string]bool, failed func(string, error)) {
	err := eachSocket(p.PID, func(inode uint32) bool { return !listed[inode] && !done[heldKey(inode)] }, func(fd int, inode uint32) error {
		done[heldKey(inode)] = true
		n, err := kindOf(fd)
		if err != nil || n.Family != unix.AF_PACKET && n.Type != pavise.TypeDgram && n.Type != pavise.TypeRaw ||
			n.Family != unix.AF_PACKET && n.Family != unix.AF_INET && n.Family != unix.AF_INET6 {
			return nil //nolint:nilerr // it is no socket any more
		}
		name := fmt.Sprintf("%s %s socket of process %d", pavise.FamilyNames.Name(uint64(n.Family)), pavise.TypeNames.Name(uint64(n.Type)), p.PID)
		from, kept, err := heardFrom(a.withAncestors(&pavise.Event{Op: pavise.OpConnect, Process: p, Net: n}), except)
		switch {
		case err != nil:
			failed(name, err)
			return nil
		case kept:
			out.Kept++
			return nil
		}
		if n.Type != pavise.TypeDgram || n.Protocol != pavise.ProtocolUDP { // they know no ports
			from = slices.DeleteFunc(from, func(x *exception) bool { return x.port != 0 })
		}
		switch err := silenceFD(fd, from); {
		case errors.Is(err, errSocketGone):
		case err != nil:
			failed(name, fmt.Errorf("it still receives: %w", err))
		case !done[heldKey(inode)+" ended"]:
			out.Closed++
		}
		return nil
	})
	if err != nil && a.table.Alive(p) {
		failed(fmt.Sprintf("the sockets of process %d that are not listed", p.PID), err)
	}
}

// someoneIn is a process in a network namespace, 0 when none is known.
func (a *Agent) someoneIn(ns uint32) uint32 {
	for _, p := range a.runningProcesses() {
		if p.Namespaces.Net == ns {
			if now, err := netNSOf(p.PID); err == nil && now == ns {
				return p.PID
			}
		}
	}
	return 0
}

func (a *Agent) getIsolations(w http.ResponseWriter, _ *http.Request) {
	reply(w, http.StatusOK, &IsolationList{a.Isolations()})
}

func (a *Agent) postIsolation(w http.ResponseWriter, r *http.Request) {
	var body IsolationRequest
	if err := readJSON(r, &body, `{"subject": {"pid": NUMBER}}, or with "unit" or "container"`); err != nil {
		failBody(w, err)
		return
	}
	q, ok := requestOf(w, r)
	if !ok {
		return
	}
	out, err := a.Isolate(r.Context(), &body, q)
	if err != nil {
		fail(w, codeOf(err), err)
		return
	}
	for i := range out.Change.Policies {
		out.Change.Policies[i].Source = ""
	}
	reply(w, http.StatusOK, out)
}

func (a *Agent) deleteIsolation(w http.ResponseWriter, r *http.Request) {
	q, ok := requestOf(w, r)
	if !ok {
		return
	}
	c, err := a.Release(r.PathValue("name"), q)
	if err != nil {
		fail(w, codeOf(err), err)
		return
	}
	reply(w, http.StatusOK, c)
}
