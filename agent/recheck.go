package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pavise-project/pavise"
	"github.com/pavise-project/pavise/enforce"
	"github.com/pavise-project/pavise/policy"
	"golang.org/x/sys/unix"
)

// This file judges the connections that are there anew when the policies have changed, or what they depend on, by those policies that say established: recheck, and ends what these deny.
// What is not known of a connection is never guessed to its harm: it goes on, and is counted.

// RecheckStatus is what came of the last time that the connections which were there were judged anew: TCP, and UDP sockets that are connected.
type RecheckStatus struct {
	Generation uint32       `json:"generation"` // whose policies judged
	Cause      RecheckCause `json:"cause"`      // policies, start, containers or names: what had changed
	Time       time.Time    `json:"time"`       // when it was done
	Checked    int          `json:"checked"`    // the sum of those that follow, and of those that were not ended though denied
	Ended      int          `json:"ended"`
	Would      int          `json:"would_end"` // by policies in monitor mode, and by rules that this machine cannot carry out
	Kept       int          `json:"kept"`
	Unknown    int          `json:"unknown"` // left alone, as something is missing to judge them
	// Missing says what, and of how many connections.
	Missing map[string]int `json:"missing,omitempty"`
	Failed  []string       `json:"failed,omitempty"` // could not be ended, or not be looked for, and why
	Took    time.Duration  `json:"took_ns"`
}

// RecheckCause says why connections were judged anew.
type RecheckCause string

// The causes.
const (
	RecheckPolicies   RecheckCause = "policies"   // they were changed
	RecheckStart      RecheckCause = "start"      // of the agent
	RecheckContainers RecheckCause = "containers" // more became known of some, and a rule comes out differently
	RecheckNames      RecheckCause = "names"      // an address has a name that a rule asks for
)

func (s *RecheckStatus) String() string {
	out := fmt.Sprintf("%d connections: %d ended, %d kept, %d unknown", s.Checked, s.Ended, s.Kept, s.Unknown)
	if s.Would > 0 {
		out += fmt.Sprintf(", %d would be ended", s.Would)
	}
	if n := len(s.Failed); n > 0 {
		out += fmt.Sprintf(", %d failures", n)
	}
	return out
}

// What may be missing beside fields.
const (
	missingOwner     = "its process"
	missingAgreement = "which of its processes or directions to judge by"
)

// recheckSoon has the connections judged by the policies that have just become active. It waits for nothing.
func (a *Agent) recheckSoon(cause RecheckCause) {
	select {
	case a.recheckDue <- cause:
	default: // it is to be done anyway, by what is active then
	}
}

// recheckFor has it done, if a policy depends on the cause, when the last time is some time ago: the cause may come again and again.
func (a *Agent) recheckFor(cause RecheckCause) {
	if !slices.ContainsFunc(a.set.Load().policies, func(p *policy.Policy) bool {
		on := p.Rechecks()
		return cause == RecheckContainers && on.Containers || cause == RecheckNames && on.Names
	}) {
		return
	}
	select {
	case a.recheckMay <- cause:
	default:
	}
}

// Between two rechecks that no change of the policies is the cause of, there is a pause of that long, and of that many times what one takes.
const (
	recheckPause = time.Second
	recheckShare = 20
)

// followRechecks judges connections when they are due, until ctx is done.
func (a *Agent) followRechecks(ctx context.Context) {
	may, pause := (<-chan RecheckCause)(a.recheckMay), (<-chan time.Time)(nil)
	var told recheckTold
	for {
		var cause RecheckCause
		select {
		case <-ctx.Done():
			return
		case <-pause:
			may, pause = a.recheckMay, nil
			continue
		case cause = <-may:
		case cause = <-a.recheckDue:
		}
		start := time.Now()
		for !a.recheck(ctx, cause, &told) && ctx.Err() == nil {
			continue
		}
		may, pause = nil, time.After(max(recheckPause, recheckShare*time.Since(start)))
	}
}

// recheckTold are the connections of which was told that they would be ended: once, as long as the policies are the same.
type recheckTold struct {
	by   []*policy.Policy
	keys map[string]bool
}

// recheck judges what connections are there by the active policies. It gives up, and returns false, when others become active.
func (a *Agent) recheck(ctx context.Context, cause RecheckCause, told *recheckTold) bool {
	set := a.set.Load()
	judge, err := policy.NewRecheck(set.policies, set.report)
	if err != nil {
		a.log.Error("judge connections that are there", "err", err)
		return true
	}
	if judge == nil {
		return true
	}
	if !slices.Equal(told.by, set.policies) {
		*told = recheckTold{set.policies, map[string]bool{}}
	}
	start := time.Now()
	r := &recheck{
		a: a, set: set, judge: judge, out: &RecheckStatus{Generation: set.applied.Generation, Cause: cause, Missing: map[string]int{}}, ports: localPorts(),
		done: map[string]bool{}, now: map[*pavise.Process]*processNow{}, told: told.keys,
	}
	for range cutPasses { // one that was judged before the policies were active may come to be a moment later
		a.catchUp(ctx)
		before := r.out.Ended
		r.pass(ctx)
		if !r.goesOn(ctx) {
			return false
		}
		if r.out.Ended == before {
			break
		}
	}
	maps.DeleteFunc(told.keys, func(key string, _ bool) bool { return !r.done[key] }) // they have ended
	if last := a.rechecked.Load(); last != nil && last.Generation == r.out.Generation && r.out.Ended == 0 && r.tells == 0 && len(r.out.Failed) == 0 {
		return true // the last one that something came of says more
	}
	r.out.Time, r.out.Took = time.Now().UTC(), time.Since(start)
	a.rechecked.Store(r.out)
	a.log.Info("rechecked "+r.out.String(), "generation", r.out.Generation, "cause", r.out.Cause, "took", r.out.Took)
	for _, why := range r.out.Failed {
		a.log.Error("a connection that is denied was not ended, or not looked for", "err", why)
	}
	return true
}

// recheck is one recheck that is being done.
type recheck struct {
	a     *Agent
	set   *policySet
	judge *policy.Recheck
	out   *RecheckStatus
	ports [2]uint16       // those that the kernel chooses for who connects
	done  map[string]bool // connections that were judged, and failures that were told
	told  map[string]bool // connections of which was told before that they would be ended
	tells int             // of those, what is new

	// Of a pass.
	now     map[*pavise.Process]*processNow
	inodes  map[uint32][]*pavise.Process // who has a socket open
	flows   map[flowKey]*pavise.Flow
	names   map[enforce.NamedAddress][]string // that rules believe
	listens map[listening]bool
}

// listening is a socket that listens in the network namespace that is looked at.
type listening struct {
	family uint8
	at     netip.AddrPort
}

// goesOn reports whether the policies that judge are still the active ones.
func (r *recheck) goesOn(ctx context.Context) bool {
	return ctx.Err() == nil && r.a.set.Load() == r.set
}

func (r *recheck) failed(what string, err error) {
	if s := fmt.Sprintf("%s: %s", what, err); !r.done[s] {
		r.done[s] = true
		r.out.Failed = append(r.out.Failed, s)
	}
}

// pass judges the connections that it finds and that were not judged yet.
func (r *recheck) pass(ctx context.Context) {
	a := r.a
	clear(r.now)
	r.inodes = map[uint32][]*pavise.Process{}
	places := map[uint32]uint32{} // network namespaces, each with a process in it
	for _, p := range a.runningProcesses() {
		if !r.goesOn(ctx) {
			return
		}
		socks, err := socketsOf(p.PID)
		ns, nerr := netNSOf(p.PID)
		if err := errors.Join(err, nerr); err != nil {
			if a.table.Alive(p) && !errors.Is(err, unix.ENOENT) { // a thread of the kernel, or one that ends, has none
				r.failed(fmt.Sprintf("process %d", p.PID), err)
			}
			continue
		}
		places[ns] = p.PID
		for _, n := range socks {
			r.inodes[n] = append(r.inodes[n], p)
		}
	}
	r.flows = map[flowKey]*pavise.Flow{}
	if f := a.flows.Load(); f != nil {
		f.sweep()
		for _, fl := range f.table.Open() {
			r.flows[flowKey{fl.NetNS, fl.Protocol, netip.AddrPortFrom(fl.Local.Address, fl.Local.Port), netip.AddrPortFrom(fl.Remote.Address, fl.Remote.Port)}] = fl
		}
	}
	r.names = a.names.believedNames(r.set.image.Domains())
	for ns, pid := range places {
		if r.goesOn(ctx) {
			r.place(ctx, ns, pid)
		}
	}
}

// place judges the connections in the network namespace of a process.
func (r *recheck) place(ctx context.Context, ns, pid uint32) {
	d, in, err := openDiag(pid)
	if err != nil {
		if _, gone := netNSOf(pid); gone == nil {
			r.failed(fmt.Sprintf("connections in network namespace %d", ns), err)
		}
		return
	}
	defer d.close()
	r.listens = map[listening]bool{}
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		err := d.list(family, unix.IPPROTO_TCP, 1<<unix.BPF_TCP_LISTEN, func(s *diagSocket) { r.listens[listening{s.family, s.local}] = true })
		if err != nil {
			r.failed(fmt.Sprintf("listening sockets in network namespace %d", in), err)
			return // it would not be known who began
		}
	}
	for _, k := range diagKinds {
		var found []*diagSocket
		// One without an inode is no program's any more, or not yet: when it is accepted it is judged.
		err := d.list(k.family, k.protocol, k.states, func(s *diagSocket) {
			if s.inode != 0 && !s.unconnected() {
				found = append(found, s)
			}
		})
		if err != nil {
			r.failed(fmt.Sprintf("connections of %s in network namespace %d", pavise.ProtocolNames[k.protocol], in), err)
		}
		for _, s := range found {
			key := fmt.Sprintf("%d %x", in, s.id)
			if r.done[key] {
				continue
			}
			if !r.goesOn(ctx) {
				return
			}
			r.done[key] = true
			r.socket(d, in, s, key)
		}
	}
}

// socket judges one connection, and ends it when it is denied.
func (r *recheck) socket(d *diag, ns uint32, s *diagSocket, key string) {
	r.out.Checked++
	fl := r.flows[flowKey{ns, s.protocol, s.local, s.remote}]
	v := r.verdict(s, fl)
	switch {
	case v.missing != nil:
		r.out.Unknown++
		for _, m := range v.missing {
			r.out.Missing[m]++
		}
		return
	case v.outcome.Action < pavise.ActionDeny:
		r.out.Kept++
		return
	case v.tell:
		r.out.Would++
		if !r.told[key] {
			r.told[key] = true
			r.tells++
			r.tell(v)
		}
		return
	}
	f := r.a.flows.Load()
	if f != nil && fl != nil {
		f.cut.Store(fl.ID, true)
	}
	switch err := d.destroy(s); {
	case err == nil:
		r.out.Ended++
		r.tell(v)
	case errors.Is(err, unix.ENOENT): // it has ended by itself
		r.out.Checked--
	default:
		r.failed(s.String(), err)
		if f != nil && fl != nil {
			f.cut.Delete(fl.ID)
		}
	}
}

// rechecked is what comes of judging a connection.
type rechecked struct {
	outcome *policy.Outcome
	tell    bool // it is only told
	missing []string
	event   *pavise.Event
	by      *processNow
}

// verdict judges a connection as whoever may be meant, and in whatever direction it may have been made: they have to agree.
func (r *recheck) verdict(s *diagSocket, fl *pavise.Flow) *rechecked {
	owners := r.owners(s, fl)
	if len(owners) == 0 {
		return &rechecked{missing: []string{missingOwner}}
	}
	var v *rechecked
	for _, op := range r.ops(s, fl) {
		for _, p := range owners {
			e, names := r.act(op, s, fl, p.Process)
			o, tell := r.judge.Judge(e, names, func(field string) bool {
				// What its own end was called before it was connected is not known any more.
				return op == pavise.OpConnect && strings.HasPrefix(field, "net.local.") || p.missing(field)
			})
			w := &rechecked{outcome: o, tell: tell, missing: o.Missing, event: e, by: p}
			switch {
			case len(w.missing) > 0:
				return w
			case v == nil:
				v = w
			case (v.outcome.Action >= pavise.ActionDeny) != (o.Action >= pavise.ActionDeny) || o.Action >= pavise.ActionDeny && v.tell != tell:
				return &rechecked{missing: []string{missingAgreement}}
			}
		}
	}
	return v
}

// ops are the operations by which the connection may have begun.
func (r *recheck) ops(s *diagSocket, fl *pavise.Flow) []pavise.Op {
	local := func(port uint16) bool { return r.ports[0] <= port && port <= r.ports[1] }
	any4, any6 := netip.IPv4Unspecified(), netip.IPv6Unspecified()
	switch {
	case s.protocol == pavise.ProtocolUDP: // it takes connect(2)
		return []pavise.Op{pavise.OpConnect}
	case fl != nil && fl.Direction == pavise.FlowOutbound:
		return []pavise.Op{pavise.OpConnect}
	case fl != nil && fl.Direction == pavise.FlowInbound:
		return []pavise.Op{pavise.OpAccept}
	case r.listens[listening{s.family, s.local}], r.listens[listening{s.family, netip.AddrPortFrom(any4, s.local.Port())}], r.listens[listening{s.family, netip.AddrPortFrom(any6, s.local.Port())}]:
		return []pavise.Op{pavise.OpAccept}
	case local(s.local.Port()) && !local(s.remote.Port()):
		return []pavise.Op{pavise.OpConnect}
	}
	return []pavise.Op{pavise.OpConnect, pavise.OpAccept}
}

// owners are who was the last to act on a connection, or, when that is not known, who has it open.
func (r *recheck) owners(s *diagSocket, fl *pavise.Flow) (out []*processNow) {
	if fl != nil && fl.Local.Process != nil {
		p := r.a.table.LookupPID(fl.Local.Process.PID)
		if p != nil && p.StartTime == fl.Local.Process.StartTime && slices.ContainsFunc(r.inodes[s.inode], func(q *pavise.Process) bool { return q.PID == p.PID }) {
			if n := r.processNow(p); n != nil {
				return []*processNow{n}
			}
		}
	}
	for _, p := range r.inodes[s.inode] {
		if n := r.processNow(p); n != nil {
			out = append(out, n)
		}
	}
	return out
}

// act is the operation by which the connection began, as the hooks would see it now, and the names that the other end has.
func (r *recheck) act(op pavise.Op, s *diagSocket, fl *pavise.Flow, p *pavise.Process) (e *pavise.Event, names []string) {
	e = &pavise.Event{Time: time.Now().UnixNano(), Op: op, PID: p.PID, TID: p.PID, ExecID: p.ExecID, Process: p, Count: 1, Net: pavise.NetInfo{
		Family: uint16(s.family), Protocol: s.protocol, Type: pavise.TypeStream, Established: true,
		Local: s.local.Addr().As16(), LocalPort: s.local.Port(), Remote: s.remote.Addr().As16(), RemotePort: s.remote.Port(),
	}}
	if s.protocol == pavise.ProtocolUDP {
		e.Net.Type = pavise.TypeDgram
	}
	names = r.names[enforce.NamedAddress{NetNS: p.Namespaces.Net, Address: s.remote.Addr()}]
	switch {
	case len(names) > 0:
		e.Net.RemoteName = names[0]
	case fl != nil && !fl.Found && fl.Remote.Name == "":
		// One that was made while nobody had looked its address up has no name. Of another it is not known: what it was made by may be over.
		e.Flow = fl
	}
	return e, names
}

// tell tells what a rule says of a connection, as an event like that of the act itself.
func (r *recheck) tell(v *rechecked) {
	e, o := v.event, v.outcome
	e.Flow, e.Process = nil, v.by.told
	e.Action, e.Monitor, e.Gen = pavise.ActionDeny, v.tell, r.set.applied.Generation // also where the rule kills: the process goes on
	e.Policy, e.Rule = o.Policy.Name, o.Rule
	e.RuleIDs = [4]uint32{policy.NoRule, policy.NoRule, policy.NoRule, policy.NoRule}
	for i := range r.set.image.Rules {
		if rule := &r.set.image.Rules[i]; rule.Policy == e.Policy && rule.Name == e.Rule {
			e.RuleIDs[0], e.Matched = uint32(i), 1 //nolint:gosec // of MaxRules
			e.Severity, e.Message = rule.Severity, rule.Message
		}
	}
	r.a.names.tell(e)
	r.a.busy.count(e)
	r.a.hub.publish(e)
}

// processNow is a process with what may have changed since its program was started.
type processNow struct {
	*pavise.Process                 // with all its ancestors
	told            *pavise.Process // as events have it
	elsewhere       bool            // it is in another cgroup now
	otherNS         bool            // or in another namespace
}

// missing reports whether a field is not known of it as it is now.
func (n *processNow) missing(field string) bool {
	name, ok := strings.CutPrefix(field, "process.")
	if !ok {
		return false
	}
	switch group, _, _ := strings.Cut(name, "."); group {
	case "cgroup", "unit", "container", "pod":
		return n.elsewhere
	case "ns":
		return n.otherNS
	}
	return false
}

// processNow is p as it is now, nil when it has ended.
func (r *recheck) processNow(p *pavise.Process) *processNow {
	if n, ok := r.now[p]; ok {
		return n
	}
	r.now[p] = r.a.processNow(p)
	return r.now[p]
}

func (a *Agent) processNow(p *pavise.Process) *processNow {
	dir := fmt.Sprintf("/proc/%d/", p.PID)
	status, err := os.ReadFile(dir + "status")
	if err != nil {
		return nil
	}
	is := *p
	if !readCredentials(string(status), &is) {
		return nil
	}
	if is.User.ID != p.User.ID {
		is.User.Name = a.userName(is.User.ID)
	}
	n := &processNow{told: &is}
	for file, was := range map[string]uint32{"mnt": p.Namespaces.Mnt, "net": p.Namespaces.Net, "user": p.Namespaces.User, "uts": p.Namespaces.UTS, "ipc": p.Namespaces.IPC, "cgroup": p.Namespaces.Cgroup} {
		var st unix.Stat_t
		if err := unix.Stat(dir+"ns/"+file, &st); err != nil || st.Ino != uint64(was) {
			n.otherNS = true
		}
		if file == "net" {
			is.Namespaces.Net = uint32(st.Ino) //nolint:gosec // they are of 32 bits
		}
	}
	cgroup, err := os.ReadFile(dir + "cgroup")
	n.elsewhere = err != nil || movedTo(string(cgroup), p.Cgroup)
	if !a.table.Alive(p) { // it ended while its files were read, and they may be another's
		return nil
	}
	n.Process = a.withAncestors(&pavise.Event{Process: &is}).Process
	return n
}

// readCredentials sets what a /proc/PID/status says, which a process can change without a new program.
func readCredentials(status string, p *pavise.Process) bool {
	var got int
	for line := range strings.Lines(status) {
		key, value, _ := strings.Cut(line, ":")
		f := strings.Fields(value)
		number := func(i, base, size int) uint64 {
			if i >= len(f) {
				return 0
			}
			n, err := strconv.ParseUint(f[i], base, size)
			if err == nil {
				got++
			}
			return n
		}
		switch key {
		case "Uid":
			p.RealUID, p.User.ID = uint32(number(0, 10, 32)), uint32(number(1, 10, 32)) //nolint:gosec // they are of 32 bits
		case "Gid":
			p.RealGID, p.GroupID = uint32(number(0, 10, 32)), uint32(number(1, 10, 32)) //nolint:gosec // they are of 32 bits
		case "CapEff":
			p.Caps = number(0, 16, 64)
		}
	}
	return got == 5
}

// movedTo reports whether a /proc/PID/cgroup names another cgroup than was. Whoever reads it may see paths from elsewhere, of which the last part is the same;
// the root of such a view says nothing.
func movedTo(file, was string) bool {
	for line := range strings.Lines(file) {
		if is, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "0::"); ok {
			base := path.Base(is)
			return base != "/" && base != ".." && base != path.Base(was)
		}
	}
	return false
}

// localPorts are the ports that the kernel chooses for who connects.
func localPorts() [2]uint16 {
	ports := [2]uint16{32768, 60999} // its own default
	b, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	if f := strings.Fields(string(b)); err == nil && len(f) == 2 {
		for i := range ports {
			if n, err := strconv.ParseUint(f[i], 10, 16); err == nil {
				ports[i] = uint16(n)
			}
		}
	}
	return ports
}

// believedNames are the names of addresses that rules go by, where any rule asks for some.
func (n *names) believedNames(domains []string) map[enforce.NamedAddress][]string {
	out := map[enforce.NamedAddress][]string{}
	if len(domains) == 0 {
		return out
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	seen := map[enforce.NamedAddress]map[string]bool{}
	n.table.Each(sinceBoot(), func(netNS uint32, a, server netip.Addr, names []string) {
		if !n.believed(netNS, server) {
			return
		}
		at := enforce.NamedAddress{NetNS: netNS, Address: a}
		if seen[at] == nil {
			seen[at] = map[string]bool{}
		}
		for _, name := range names {
			seen[at][name] = true
		}
	})
	for at, names := range seen {
		out[at] = slices.Sorted(maps.Keys(names))
	}
	return out
}
