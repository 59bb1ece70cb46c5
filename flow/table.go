package flow

import (
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/pavise-project/pavise"
)

// The bounds of a Table.
const (
	// DefaultMax flows are followed at once; each takes about 700 bytes. One that finds no place is reported all the same, each time as if it were the first.
	DefaultMax = 1 << 17
	// remembered is how many flows that have ended can still be found by those at their other ends, whose last reports come a moment later.
	remembered = 4096
	// DefaultMissing is after how many sweeps that did not find a flow it is taken to have ended: the report of its end was lost.
	DefaultMissing = 2
)

// Options are what a Table asks about others. Both are called with the Table's lock held, and must not call it.
type Options struct {
	// Process is the process that had an exec_id; nil when it is not known.
	Process func(execID uint64) *pavise.Process
	// Name is the name that an address was looked up by, if it can be by an executable, and the executable that did.
	Name func(netns uint32, a netip.Addr, exe string) (name, askedBy string)
	Max  int // 0: DefaultMax
	// Missing is how many sweeps may not find a flow that goes on; 0: DefaultMissing.
	Missing uint32
}

// Table follows flows from report to report: it tells what is new in each, whose the ends are, and what they are called.
type Table struct {
	o Options

	mu    sync.Mutex
	open  map[uint64]*entry
	ends  map[ends]*entry     // the first of those with the same ends
	gone  [remembered]*entry  // a circle of those that have ended, still in ends
	over  map[uint64]struct{} // their ids
	next  int
	sweep uint32
	made  uint64 // ids for flows that the kernel has none for
	stats Stats
	sums  [len(sumNames)]Sum
}

// Sum is what all flows of a protocol carried since the Table was made: what was there before counts from where its own counters begin.
type Sum struct {
	Protocol string         `json:"protocol"` // tcp, udp, icmp (and ICMPv6), unix, or other
	Sent     pavise.Traffic `json:"sent"`
	Received pavise.Traffic `json:"received"`
}

var sumNames = [...]string{"tcp", "udp", "icmp", "unix", "other"}

// Stats count what a Table has done.
type Stats struct {
	Open     int    `json:"open"`
	Reports  uint64 `json:"reports"`
	Ended    uint64 `json:"ended"`
	Crowded  uint64 `json:"crowded"`   // reports of flows that found no place in the table
	EndsLost uint64 `json:"ends_lost"` // flows that were not there any more, without a report of their end
	Behind   uint64 `json:"behind"`    // reports that were overtaken by later ones of the same flow, which say more
}

type entry struct {
	flow  *pavise.Flow // the last report
	ends  ends         // where it stands in Table.ends; zero when it does not
	next  *entry       // there
	tls   *pavise.TLS
	seen  uint32 // the sweep that was going on
	ended bool
}

// ends is a connection as one end sees it. Addresses of the loopback mean something within their network namespace alone.
type ends struct {
	local, remote netip.AddrPort
	netns         uint32
	protocol      uint8
}

func endsOf(f *pavise.Flow) ends {
	e := ends{netip.AddrPortFrom(f.Local.Address, f.Local.Port), netip.AddrPortFrom(f.Remote.Address, f.Remote.Port), 0, f.Protocol}
	if e.local.Addr().IsLoopback() || e.remote.Addr().IsLoopback() {
		e.netns = f.NetNS
	}
	return e
}

func (e ends) other() ends { e.local, e.remote = e.remote, e.local; return e }

// New makes an empty table.
func New(o Options) *Table {
	if o.Max == 0 {
		o.Max = DefaultMax
	}
	if o.Missing == 0 {
		o.Missing = DefaultMissing
	}
	t := &Table{o: o, open: map[uint64]*entry{}, ends: map[ends]*entry{}, over: map[uint64]struct{}{}}
	for i, name := range sumNames {
		t.sums[i].Protocol = name
	}
	return t
}

// Report takes a report as the kernel made it, which the caller may use again, and returns it with all that is known. It returns nil for one that comes behind a later one.
func (t *Table) Report(raw *pavise.Flow) *pavise.Flow {
	t.mu.Lock()
	defer t.mu.Unlock()
	f := *raw
	f.SentNew, f.ReceivedNew = f.Sent, f.Received
	e := t.open[f.ID]
	if _, over := t.over[f.ID]; over || e != nil && f.Report < e.flow.Report {
		t.stats.Behind++
		return nil
	}
	t.stats.Reports++
	if e != nil {
		t.follow(&f, e.flow)
	}
	t.identify(&f.Local)
	t.identify(&f.Remote)
	if e == nil {
		if e = t.begin(&f); e == nil {
			if f.State == pavise.FlowClosed { // each of its reports says all: only the last is added
				t.add(&f)
			}
			return &f
		}
	}
	t.add(&f)
	if e.tls != nil {
		f.TLS = e.tls
	}
	e.flow, e.seen = &f, t.sweep
	t.link(e)
	t.join(e)
	if f.State == pavise.FlowClosed {
		t.end(e)
	}
	return &f
}

// add counts what a report says that is new.
func (t *Table) add(f *pavise.Flow) {
	i := len(sumNames) - 1
	switch {
	case f.Family == pavise.FamilyUnix:
		i = 3
	case f.Protocol == pavise.ProtocolTCP:
		i = 0
	case f.Protocol == pavise.ProtocolUDP:
		i = 1
	case f.Protocol == pavise.ProtocolICMP, f.Protocol == pavise.ProtocolICMPv6:
		i = 2
	}
	s := &t.sums[i]
	s.Sent.Bytes += f.SentNew.Bytes
	s.Sent.Packets += f.SentNew.Packets
	s.Received.Bytes += f.ReceivedNew.Bytes
	s.Received.Packets += f.ReceivedNew.Packets
}

// follow gives f what the report before it had.
func (t *Table) follow(f, before *pavise.Flow) {
	f.SentNew, f.ReceivedNew = since(f.Sent, before.Sent), since(f.Received, before.Received)
	f.Found = f.Found || before.Found
	if f.Start == 0 {
		f.Start = before.Start
	}
	if f.Direction == pavise.FlowUnknown {
		f.Direction = before.Direction
	}
	if f.RTT == 0 {
		f.RTT = before.RTT
	}
	if f.ConnectLatency == 0 {
		f.ConnectLatency = before.ConnectLatency
	}
	keep := func(side, was *pavise.FlowSide) {
		if side.ExecID == 0 {
			side.ExecID = was.ExecID
		}
		if side.ExecID == was.ExecID {
			side.Process = was.Process
		}
		if side.Path == "" {
			side.Path = was.Path
		}
		// The name is the one that it was made by, whatever the address is called later.
		if side.Address == was.Address {
			side.Name, side.AskedBy = was.Name, was.AskedBy
		}
	}
	keep(&f.Local, &before.Local)
	keep(&f.Remote, &before.Remote)
}

func since(is, was pavise.Traffic) pavise.Traffic {
	return pavise.Traffic{Bytes: is.Bytes - min(is.Bytes, was.Bytes), Packets: is.Packets - min(is.Packets, was.Packets)}
}

func (t *Table) identify(s *pavise.FlowSide) {
	if s.ExecID != 0 && (s.Process == nil || s.Process.Unknown) && t.o.Process != nil {
		s.Process = t.o.Process(s.ExecID)
	}
}

// begin gives a flow a place, and its other end a name; nil when there is none left.
func (t *Table) begin(f *pavise.Flow) *entry {
	t.name(f)
	if len(t.open) >= t.o.Max {
		t.stats.Crowded++
		return nil
	}
	e := &entry{flow: f}
	if f.State != pavise.FlowClosed { // most are told of once
		t.open[f.ID] = e
	}
	return e
}

// link puts e where its other end finds it: its addresses may not have been known at first.
func (t *Table) link(e *entry) {
	k := endsOf(e.flow)
	if k == e.ends || !k.local.Addr().IsValid() || !k.remote.Addr().IsValid() {
		return
	}
	t.unlink(e)
	e.ends = k
	for o := t.ends[k]; o != nil; {
		next := o.next
		if o.ended { // the same ends, before
			t.unlink(o)
		}
		o = next
	}
	e.next = t.ends[k]
	t.ends[k] = e
}

func (t *Table) name(f *pavise.Flow) {
	if t.o.Name != nil && f.Remote.Name == "" && f.Remote.Address.IsValid() {
		exe := ""
		if p := f.Local.Process; p != nil {
			exe = p.Exe.Path
		}
		f.Remote.Name, f.Remote.AskedBy = t.o.Name(f.NetNS, f.Remote.Address, exe)
	}
}

// join finds out who is at the other end of e, whose report nobody has yet, where that is on this host. Two connections with the same ends in different network
// namespaces are not told apart, so none is taken for the other.
func (t *Table) join(e *entry) {
	if e.ends == (ends{}) || t.ends[e.ends] != e || e.next != nil {
		return
	}
	o := t.ends[e.ends.other()]
	if o == nil || o.next != nil || o == e || o.ended && o.flow.Time < e.flow.Start { // the port was used before
		return
	}
	known := func(e *entry, with *pavise.FlowSide) bool {
		r := &e.flow.Remote
		return with.ExecID == 0 || r.ExecID == with.ExecID && r.Process != nil
	}
	if with := &o.flow.Local; !known(e, with) {
		e.flow.Remote.ExecID, e.flow.Remote.Process = with.ExecID, with.Process
	}
	if with := &e.flow.Local; !o.ended && !known(o, with) {
		f := *o.flow // the last report may be with a reader
		f.Remote.ExecID, f.Remote.Process = with.ExecID, with.Process
		o.flow = &f
	}
}

func (t *Table) end(e *entry) {
	t.stats.Ended++
	delete(t.open, e.flow.ID)
	e.ended = true
	if old := t.gone[t.next]; old != nil {
		t.unlink(old)
		delete(t.over, old.flow.ID)
	}
	t.gone[t.next] = e
	t.over[e.flow.ID] = struct{}{}
	t.next = (t.next + 1) % remembered
}

func (t *Table) unlink(e *entry) {
	first := t.ends[e.ends]
	switch {
	case first == nil:
		return
	case first == e && e.next == nil:
		delete(t.ends, e.ends)
	case first == e:
		t.ends[e.ends] = e.next
	default:
		for o := first; o != nil; o = o.next {
			if o.next == e {
				o.next = e.next
				break
			}
		}
	}
	e.next = nil
}

// Hello gives a flow what its ClientHello says. It reports whether the flow is followed.
func (t *Table) Hello(id uint64, tls *pavise.TLS) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.open[id]
	if e == nil {
		return false
	}
	f := *e.flow
	f.TLS, e.tls = tls, tls
	e.flow = &f
	return true
}

// Denied makes a flow of a verdict that let none begin: nil when e is no such verdict.
func (t *Table) Denied(e *pavise.Event) *pavise.Flow {
	if e.Monitor || e.Action != pavise.ActionDeny && e.Action != pavise.ActionKill {
		return nil
	}
	f := &pavise.Flow{
		Time: e.Time, Start: e.Time, State: pavise.FlowClosed, End: pavise.FlowDenied, Family: e.Net.Family, Type: e.Net.Type, Protocol: e.Net.Protocol,
		Local:  pavise.FlowSide{Port: e.Net.LocalPort, Path: strings.Clone(e.Net.LocalPath), ExecID: e.ExecID, Process: e.Process},
		Remote: pavise.FlowSide{Port: e.Net.RemotePort, Path: strings.Clone(e.Net.RemotePath)},
		Policy: e.Policy, Rule: e.Rule,
	}
	switch e.Op {
	case pavise.OpConnect, pavise.OpSend:
		f.Direction = pavise.FlowOutbound
	case pavise.OpAccept:
		f.Direction = pavise.FlowInbound
	default:
		return nil
	}
	if e.Process != nil {
		f.NetNS = e.Process.Namespaces.Net
	}
	if e.Net.Local != [16]byte{} {
		f.Local.Address = netip.AddrFrom16(e.Net.Local).Unmap()
	}
	if e.Net.Remote != [16]byte{} {
		f.Remote.Address = netip.AddrFrom16(e.Net.Remote).Unmap()
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.made++
	f.ID = 1<<63 | t.made // the kernel's are cookies, which count from 1
	t.stats.Reports++
	t.stats.Ended++
	t.name(f)
	return f
}

// Sweep is called before the kernel is asked for all flows that there are, whose reports then go to Report.
func (t *Table) Sweep() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.sweep++
}

// Swept is called behind that. It ends, and returns, those flows that have not been seen for a while.
func (t *Table) Swept(now int64) (lost []*pavise.Flow) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, e := range t.open {
		if t.sweep-e.seen < t.o.Missing {
			continue
		}
		f := *e.flow
		f.Report++
		f.Time, f.State = now, pavise.FlowClosed
		f.SentNew, f.ReceivedNew = pavise.Traffic{}, pavise.Traffic{}
		e.flow = &f
		t.stats.EndsLost++
		t.end(e)
		lost = append(lost, &f)
	}
	return lost
}

// Open returns the last reports of the flows that are open.
func (t *Table) Open() []*pavise.Flow {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := make([]*pavise.Flow, 0, len(t.open))
	for _, e := range t.open {
		out = append(out, e.flow)
	}
	return out
}

// Stats returns the table's counters.
func (t *Table) Stats() Stats {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.stats
	s.Open = len(t.open)
	return s
}

// Sums are what all flows carried, by protocol.
func (t *Table) Sums() []Sum {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.sums[:])
}
