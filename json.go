package pavise

import (
	"bytes"
	"encoding/json"
	"fmt"
	"iter"
	"math/bits"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// allCaps is the JSON of the full set: most processes of root have it, and it is copied, not built.
var (
	allCapsMask = uint64(1)<<len(CapNames) - 1
	allCaps     = string(appendCapList(nil, allCapsMask))
)

// onFile reports whether e's File says something: not in the lifecycle fact of process.exec, nor where what is loaded or
// executed is no file.
func (e *Event) onFile() bool {
	switch e.Op {
	case OpExec:
		return e.Action != ActionNone || e.File.Path != ""
	case OpMemExec, OpModule, OpKexec:
		return e.File.Path != "" || e.File.Inode != 0
	}
	return e.Op.OnFile()
}

func (e *Event) onNet() bool { return e.Op.OnSocket() }

// AppendJSON appends e as one line of JSON, without the newline: the one form of an event from
// the agent to the browser. It allocates nothing when b is large enough. The output is valid JSON
// whatever bytes e's strings hold, and printing it cannot control a terminal (see appendString).
func (e *Event) AppendJSON(b []byte) []byte {
	b = append(b, `{"id":`...)
	b = strconv.AppendUint(b, e.ID, 10)
	b = append(b, `,"time":`...)
	b = appendTime(b, e.Time)
	b = append(b, `,"op":"`...)
	b = append(b, e.Op.String()...)
	b = append(b, '"')
	if e.Action != ActionNone {
		b = append(b, `,"action":"`...)
		b = append(b, e.Action.String()...)
		b = append(b, '"')
	}
	if e.Monitor {
		b = append(b, `,"monitor":true`...)
	}
	if e.Rung != RungNone {
		b = append(b, `,"rung":"`...)
		b = append(b, e.Rung.String()...)
		b = append(b, '"')
	}
	if e.Shadow != DecisionNone {
		b = append(b, `,"shadow":"`...)
		b = append(b, e.Shadow.String()...)
		b = append(b, `","active":"`...)
		b = append(b, e.Active.String()...)
		b = append(b, '"')
	}
	b = appendField(b, `,"policy":`, e.Policy)
	b = appendField(b, `,"rule":`, e.Rule)
	b = appendField(b, `,"severity":`, e.Severity)
	b = appendField(b, `,"message":`, e.Message)
	if e.Matched != 0 {
		b = append(b, `,"matched":`...)
		b = strconv.AppendUint(b, uint64(e.Matched), 10)
	}
	if e.Count != 0 {
		b = append(b, `,"count":`...)
		b = strconv.AppendUint(b, e.Count, 10)
	}
	switch {
	case e.Process != nil:
		b = append(b, `,"process":`...)
		b = e.Process.AppendJSON(b)
	case e.PID != 0 || e.ExecID != 0:
		p := Process{ExecID: e.ExecID, PID: e.PID, Unknown: true}
		b = append(b, `,"process":`...)
		b = p.AppendJSON(b)
	}
	if e.onFile() {
		b = append(b, `,"file":`...)
		b = e.File.appendOpen(b)
		b = e.appendFileAct(b)
		b = append(b, '}')
	}
	b = e.appendAct(b)
	switch {
	case e.onNet():
		b = append(b, `,"net":`...)
		b = e.Net.appendJSON(b, e.otherEnd())
	case e.Op == OpExit:
		b = append(b, `,"exit":{"code":`...)
		b = strconv.AppendUint(b, uint64(e.Exit.Code), 10)
		if e.Exit.Signal != 0 {
			b = append(b, `,"signal":`...)
			b = strconv.AppendUint(b, uint64(e.Exit.Signal), 10)
		}
		b = append(b, '}')
	case e.Op == OpFlow && e.Flow != nil:
		b = append(b, `,"flow":`...)
		b = e.Flow.appendJSON(b, true)
	case e.Op == OpDNS && e.DNS != nil:
		b = append(b, `,"dns":`...)
		b = e.DNS.appendJSON(b, true)
	case e.Op == OpLost:
		b = append(b, `,"lost":{"op":"`...)
		b = append(b, e.Lost.Op.String()...)
		b = append(b, `","where":`...)
		b = appendString(b, e.Lost.Where)
		b = appendField(b, `,"policy":`, e.Lost.Policy)
		b = append(b, `,"count":`...)
		b = strconv.AppendUint(b, e.Lost.Count, 10)
		b = append(b, '}')
	}
	return append(b, '}')
}

// AppendJSON appends p as one line of JSON, with one level of its parent, without the newline.
func (p *Process) AppendJSON(b []byte) []byte {
	b = append(b, `{"exec_id":"`...)
	b = strconv.AppendUint(b, p.ExecID, 10)
	b = append(b, `","pid":`...)
	b = strconv.AppendUint(b, uint64(p.PID), 10)
	if p.Unknown {
		b = append(b, `,"unknown":true`...)
	}
	if p.StartTime != 0 {
		b = append(b, `,"start_time":`...)
		b = appendTime(b, p.StartTime)
	}
	if p.ExitTime != 0 {
		b = append(b, `,"exit_time":`...)
		b = appendTime(b, p.ExitTime)
	}
	if !p.Unknown {
		b = p.appendFacts(b)
	}
	if p.ParentExecID != 0 {
		b = append(b, `,"parent_exec_id":"`...)
		b = strconv.AppendUint(b, p.ParentExecID, 10)
		b = append(b, '"')
	}
	if q := p.Parent; q != nil {
		b = append(b, `,"parent":{"exec_id":"`...)
		b = strconv.AppendUint(b, q.ExecID, 10)
		b = append(b, `","pid":`...)
		b = strconv.AppendUint(b, uint64(q.PID), 10)
		if q.Exe.Path != "" {
			b = append(b, `,"exe":{"path":`...)
			b = appendString(b, q.Exe.Path)
			b = append(b, '}')
		}
		b = append(b, '}')
	}
	return append(b, '}')
}

// appendFacts appends what is known of every process that is not Unknown.
func (p *Process) appendFacts(b []byte) []byte {
	if p.Found {
		b = append(b, `,"found":true`...)
	}
	if p.Exe != (FileInfo{}) {
		b = append(b, `,"exe":`...)
		b = p.Exe.appendJSON(b)
	}
	b = appendField(b, `,"exe_digest":`, p.ExeDigest)
	b = appendField(b, `,"exe_verity":`, p.ExeVerity)
	b = appendField(b, `,"script":`, p.Script)
	if len(p.Args) > 0 {
		b = append(b, `,"args":`...)
		b = appendStrings(b, slices.Values(p.Args))
	}
	if p.ArgsCut {
		b = append(b, `,"args_truncated":true`...)
	}
	b = appendField(b, `,"cwd":`, p.CWD)
	if p.TTY {
		b = append(b, `,"tty":true`...)
	}
	b = append(b, `,"user":{"id":`...)
	b = strconv.AppendUint(b, uint64(p.User.ID), 10)
	b = appendField(b, `,"name":`, p.User.Name)
	b = append(b, `},"group_id":`...)
	b = strconv.AppendUint(b, uint64(p.GroupID), 10)
	b = append(b, `,"real_uid":`...)
	b = strconv.AppendUint(b, uint64(p.RealUID), 10)
	b = append(b, `,"real_gid":`...)
	b = strconv.AppendUint(b, uint64(p.RealGID), 10)
	if p.LoginID != nil {
		b = append(b, `,"login_id":`...)
		b = strconv.AppendUint(b, uint64(*p.LoginID), 10)
	}
	if p.Caps != 0 {
		b = append(b, `,"caps":`...)
		if p.Caps == allCapsMask {
			b = append(b, allCaps...)
		} else {
			b = appendCapList(b, p.Caps)
		}
	}
	if p.SecureExec {
		b = append(b, `,"secure_exec":true`...)
	}
	if p.OnRoot {
		b = append(b, `,"on_root":true`...)
	}
	if n := &p.Namespaces; *n != (Namespaces{}) {
		b = append(b, `,"namespaces":{"mnt":`...)
		b = strconv.AppendUint(b, uint64(n.Mnt), 10)
		b = append(b, `,"pid":`...)
		b = strconv.AppendUint(b, uint64(n.PID), 10)
		b = append(b, `,"net":`...)
		b = strconv.AppendUint(b, uint64(n.Net), 10)
		b = append(b, `,"user":`...)
		b = strconv.AppendUint(b, uint64(n.User), 10)
		b = append(b, `,"cgroup":`...)
		b = strconv.AppendUint(b, uint64(n.Cgroup), 10)
		b = append(b, `,"uts":`...)
		b = strconv.AppendUint(b, uint64(n.UTS), 10)
		b = append(b, `,"ipc":`...)
		b = strconv.AppendUint(b, uint64(n.IPC), 10)
		if n.Host&NSAll != 0 {
			b = append(b, `,"host":`...)
			b = n.Host.appendJSON(b)
		}
		b = append(b, '}')
	}
	b = appendField(b, `,"cgroup":`, p.Cgroup)
	if p.CgroupID != 0 {
		b = append(b, `,"cgroup_id":"`...)
		b = strconv.AppendUint(b, p.CgroupID, 10)
		b = append(b, '"')
	}
	b = appendField(b, `,"unit":`, p.Unit)
	if c := p.Container; c != nil {
		b = append(b, `,"container":{"id":`...)
		b = appendString(b, c.ID)
		b = appendField(b, `,"runtime":`, c.Runtime)
		b = appendField(b, `,"name":`, c.Name)
		b = appendField(b, `,"image":`, c.Image)
		if len(c.Labels) > 0 {
			b = append(b, `,"labels":`...)
			b = appendLabels(b, c.Labels)
		}
		b = append(b, '}')
	}
	if pod := p.Pod; pod != nil {
		b = append(b, `,"pod":{"namespace":`...)
		b = appendString(b, pod.Namespace)
		b = appendField(b, `,"name":`, pod.Name)
		if len(pod.Labels) > 0 {
			b = append(b, `,"labels":`...)
			b = appendLabels(b, pod.Labels)
		}
		b = append(b, '}')
	}
	return b
}

func appendStrings(b []byte, list iter.Seq[string]) []byte {
	b = append(b, '[')
	begin := len(b)
	for s := range list {
		if len(b) > begin {
			b = append(b, ',')
		}
		b = appendString(b, s)
	}
	return append(b, ']')
}

func appendLabels(b []byte, labels map[string]string) []byte {
	var few [32]string // on the stack: Kubernetes rarely has more
	keys := few[:0]
	for k := range labels {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	for i, k := range keys {
		sep := byte(',')
		if i == 0 {
			sep = '{'
		}
		b = append(b, sep)
		b = appendString(b, k)
		b = append(b, ':')
		b = appendString(b, labels[k])
	}
	return append(b, '}')
}

func (f *FileInfo) appendJSON(b []byte) []byte {
	return append(f.appendOpen(b), '}')
}

// appendOpen appends all but the closing brace.
func (f *FileInfo) appendOpen(b []byte) []byte {
	b = append(b, `{"path":`...)
	b = appendString(b, f.Path)
	b = appendField(b, `,"alias":`, f.Alias)
	if f.Truncated {
		b = append(b, `,"truncated":true`...)
	}
	if f.Deleted {
		b = append(b, `,"deleted":true`...)
	}
	if f.Memfd {
		b = append(b, `,"memfd":true`...)
	}
	if f.Access != 0 {
		b = append(b, `,"access":[`...)
		for a := f.Access; a != 0; a &= a - 1 {
			if a != f.Access {
				b = append(b, ',')
			}
			b = append(b, '"')
			b = appendAccess(b, a&-a)
			b = append(b, '"')
		}
		b = append(b, ']')
	}
	if f.Mode != 0 {
		b = append(b, `,"mode":`...)
		b = strconv.AppendUint(b, uint64(f.Mode), 10)
	}
	if f.Inode != 0 { // no inode: nothing is known of the file but its name
		b = append(b, `,"owner":`...)
		b = strconv.AppendUint(b, uint64(f.Owner), 10)
		b = append(b, `,"dev":`...)
		b = strconv.AppendUint(b, uint64(f.Dev), 10)
		b = append(b, `,"inode":"`...)
		b = strconv.AppendUint(b, f.Inode, 10)
		b = append(b, `","links":`...)
		b = strconv.AppendUint(b, uint64(f.Links), 10)
	}
	return appendField(b, `,"fs":`, f.FS)
}

// appendFileAct appends what of Act is about the file.
func (e *Event) appendFileAct(b []byte) []byte {
	a := &e.Act
	switch e.Op {
	case OpRename, OpLink, OpPivotRoot:
		b = appendField(b, `,"new_path":`, a.NewPath)
	case OpSymlink:
		b = appendField(b, `,"target":`, a.Name)
	case OpChmod:
		b = append(b, `,"new_mode":`...)
		b = strconv.AppendUint(b, a.Value, 10)
	case OpChown:
		b = append(b, `,"new_owner":`...)
		b = strconv.AppendUint(b, a.Value, 10)
		b = append(b, `,"new_group":`...)
		b = strconv.AppendUint(b, a.Value2, 10)
	case OpSetxattr:
		b = appendField(b, `,"xattr":`, a.Name)
	}
	return b
}

// appendAct appends what else the operation is about, under the names that policies use.
func (e *Event) appendAct(b []byte) []byte {
	a := &e.Act
	switch e.Op {
	case OpExec:
		if a.Name != "" {
			b = append(b, `,"exec":{"args":`...)
			b = appendStrings(b, Args(a.Name))
			if !strings.HasSuffix(a.Name, "\x00") {
				b = append(b, `,"args_truncated":true`...)
			}
			b = append(b, '}')
		}
	case OpSignal:
		b = append(b, `,"signal":"`...)
		b = SignalNames.append(b, a.Value)
		b = append(b, '"')
		b = a.Target.appendJSON(b)
	case OpPtrace:
		b = appendNamed(b, `,"ptrace":{"mode":"`, PtraceNames, a.Value)
		b = append(b, '}')
		b = a.Target.appendJSON(b)
	case OpSetid:
		b = append(b, `,"setid":{"user":{"id":`...)
		b = strconv.AppendUint(b, a.Value, 10)
		b = append(b, `},"group":{"id":`...)
		b = strconv.AppendUint(b, a.Value2, 10)
		b = append(b, "}}"...)
	case OpCapset:
		b = append(b, `,"capset":{"effective":`...)
		b = appendCapList(b, a.Value)
		b = append(b, `,"permitted":`...)
		b = appendCapList(b, a.Value2)
		b = append(b, '}')
	case OpMemExec:
		b = append(b, `,"memory":{`...)
		first := true
		for i, name := range MemNames {
			if a.Value&(1<<i) == 0 {
				continue
			}
			if !first {
				b = append(b, ',')
			}
			first = false
			b = append(b, '"')
			b = append(b, name...)
			b = append(b, `":true`...)
		}
		b = append(b, '}')
	case OpMount:
		b = append(b, `,"mount":{"source":`...)
		b = appendString(b, a.NewPath)
		b = appendField(b, `,"type":`, a.Name)
		if a.Value != 0 {
			b = append(b, `,"flags":[`...)
			for f := a.Value; f != 0; f &= f - 1 {
				if f != a.Value {
					b = append(b, ',')
				}
				b = append(b, '"')
				b = appendMountFlag(b, f&-f)
				b = append(b, '"')
			}
			b = append(b, ']')
		}
		b = append(b, '}')
	case OpModule:
		b = appendNamed(b, `,"module":{"source":"`, SourceNames, a.Value)
		b = appendField(b, `,"name":`, a.Name)
		b = append(b, '}')
	case OpKexec:
		b = appendNamed(b, `,"kexec":{"source":"`, SourceNames, a.Value)
		b = append(b, '}')
	case OpBPF:
		b = appendNamed(b, `,"bpf":{"command":"`, BPFNames, a.Value)
		b = append(b, '}')
	case OpPerf:
		b = appendNamed(b, `,"perf":{"type":"`, PerfNames, a.Value)
		b = append(b, '}')
	case OpKeyring:
		b = append(b, `,"key":{"type":`...)
		b = appendString(b, a.Name)
		b = appendField(b, `,"description":`, a.NewPath)
		b = append(b, '}')
	case OpIOUring:
		b = appendNamed(b, `,"io_uring":{"request":"`, IOUringNames, a.Value)
		b = append(b, '}')
	case OpSysctl:
		b = append(b, `,"sysctl":{"name":`...)
		b = appendString(b, a.Name)
		b = append(b, '}')
	case OpDevice:
		b = append(b, `,"device":{"major":`...)
		b = strconv.AppendUint(b, a.Value, 10)
		b = append(b, `,"minor":`...)
		b = strconv.AppendUint(b, a.Value2, 10)
		b = append(b, '}')
	}
	return b
}

// appendNamed appends key, which opens a string, the name of n, and the closing quote.
func appendNamed(b []byte, key string, names Names, n uint64) []byte {
	b = append(b, key...)
	b = names.append(b, n)
	return append(b, '"')
}

func (t *Target) appendJSON(b []byte) []byte {
	b = append(b, `,"target":{"exec_id":"`...)
	b = strconv.AppendUint(b, t.ExecID, 10)
	b = append(b, `","pid":`...)
	b = strconv.AppendUint(b, uint64(t.PID), 10)
	b = append(b, `,"user":{"id":`...)
	b = strconv.AppendUint(b, uint64(t.UID), 10)
	b = append(b, '}')
	if t.Path != "" {
		b = append(b, `,"exe":{"path":`...)
		b = appendString(b, t.Path)
		b = append(b, '}')
	}
	return append(b, '}')
}

// appendPeer appends who is at an end. Of its user nothing is known.
func (t *Target) appendPeer(b []byte) []byte {
	b = append(b, `,"process":{"exec_id":"`...)
	b = strconv.AppendUint(b, t.ExecID, 10)
	b = append(b, `","pid":`...)
	b = strconv.AppendUint(b, uint64(t.PID), 10)
	if t.Path != "" {
		b = append(b, `,"exe":{"path":`...)
		b = appendString(b, t.Path)
		b = append(b, '}')
	}
	return append(b, '}')
}

// appendMountFlag appends the name of one bit, or its number.
func appendMountFlag(b []byte, bit uint64) []byte {
	if n := bits.TrailingZeros64(bit); n < len(MountNames) && MountNames[n] != "" {
		return append(b, MountNames[n]...)
	}
	return strconv.AppendUint(b, bit, 10)
}

// appendAccess appends the name of one bit.
func appendAccess(b []byte, bit Access) []byte {
	n := bits.TrailingZeros8(uint8(bit))
	if n < len(AccessNames) {
		return append(b, AccessNames[n]...)
	}
	return strconv.AppendUint(b, uint64(bit), 10)
}

func (s NamespaceSet) appendJSON(b []byte) []byte {
	sep := byte('[')
	for n, name := range NamespaceNames {
		if s&(1<<n) != 0 {
			b = append(b, sep, '"')
			b = append(b, name...)
			b = append(b, '"')
			sep = ','
		}
	}
	if sep == '[' {
		b = append(b, '[')
	}
	return append(b, ']')
}

// MarshalJSON writes the names of the set.
func (s NamespaceSet) MarshalJSON() ([]byte, error) { return s.appendJSON(nil), nil }

// UnmarshalJSON reads what MarshalJSON writes.
func (s *NamespaceSet) UnmarshalJSON(data []byte) error {
	var names []string
	if err := json.Unmarshal(data, &names); err != nil {
		return fmt.Errorf("read namespaces: %w", err)
	}
	*s = 0
	for _, name := range names {
		n := slices.Index(NamespaceNames[:], name)
		if n < 0 {
			return fmt.Errorf("read namespaces: unknown kind %q: want one of %s", name, strings.Join(NamespaceNames[:], ", "))
		}
		*s |= 1 << n
	}
	return nil
}

func appendCapList(b []byte, caps uint64) []byte {
	b = append(b, '[')
	for c := caps; c != 0; c &= c - 1 {
		if c != caps {
			b = append(b, ',')
		}
		b = append(b, '"')
		b = appendCap(b, bits.TrailingZeros64(c))
		b = append(b, '"')
	}
	return append(b, ']')
}

// appendCap appends the name of one capability.
func appendCap(b []byte, n int) []byte {
	if n < len(CapNames) {
		return append(b, CapNames[n]...)
	}
	b = append(b, "CAP_"...)
	return strconv.AppendUint(b, uint64(n), 10)
}

// otherEnd is who is reached by a connect, or who made the connection that is accepted; nil when that is not known.
func (e *Event) otherEnd() *Target {
	if t := &e.Act.Target; (e.Op == OpConnect || e.Op == OpAccept) && e.Net.Family != FamilyUnix && (t.PID != 0 || t.Path != "") {
		return t
	}
	return nil
}

func (n *NetInfo) appendJSON(b []byte, peer *Target) []byte {
	b = append(b, `{"family":"`...)
	b = FamilyNames.append(b, uint64(n.Family))
	b = append(b, '"')
	if n.Type != 0 {
		b = append(b, `,"type":"`...)
		b = TypeNames.append(b, uint64(n.Type))
		b = append(b, '"')
	}
	if n.Protocol != 0 {
		b = append(b, `,"protocol":"`...)
		b = ProtocolNames.append(b, uint64(n.Protocol))
		b = append(b, '"')
	}
	b = appendEndpoint(b, `,"remote":`, n.Family, &n.Remote, n.RemotePort, n.RemotePath, n.RemoteName, peer)
	b = appendEndpoint(b, `,"local":`, n.Family, &n.Local, n.LocalPort, n.LocalPath, "", nil)
	b = appendField(b, `,"interface":`, n.Interface)
	if n.Established {
		b = append(b, `,"established":true`...)
	}
	return append(b, '}')
}

// appendEndpoint leaves out an end that is not known or has no name.
func appendEndpoint(b []byte, key string, family uint16, addr *[16]byte, port uint16, path, name string, peer *Target) []byte {
	if family == FamilyUnix {
		if path == "" {
			return b
		}
		b = append(b, key...)
		b = append(b, `{"path":`...)
		b = appendString(b, path)
		return append(b, '}')
	}
	if port == 0 && *addr == ([16]byte{}) {
		return b
	}
	b = append(b, key...)
	b = append(b, `{"address":"`...)
	b = appendAddr(b, addr)
	b = append(b, `","port":`...)
	b = strconv.AppendUint(b, uint64(port), 10)
	b = appendField(b, `,"name":`, name)
	if peer != nil {
		b = peer.appendPeer(b)
	}
	return append(b, '}')
}

func appendAddr(b []byte, addr *[16]byte) []byte {
	return netip.AddrFrom16(*addr).Unmap().AppendTo(b)
}

// appendTime appends t, nanoseconds since the Unix epoch, in quotes: always UTC and nine digits, so
// that the text sorts as the time does.
func appendTime(b []byte, t int64) []byte {
	u := time.Unix(0, t).UTC()
	year, month, day := u.Date()
	hour, minute, sec := u.Clock()
	b = append(b, '"')
	b = appendDigits(b, year, 4)
	b = append(b, '-')
	b = appendDigits(b, int(month), 2)
	b = append(b, '-')
	b = appendDigits(b, day, 2)
	b = append(b, 'T')
	b = appendDigits(b, hour, 2)
	b = append(b, ':')
	b = appendDigits(b, minute, 2)
	b = append(b, ':')
	b = appendDigits(b, sec, 2)
	b = append(b, '.')
	b = appendDigits(b, u.Nanosecond(), 9)
	return append(b, 'Z', '"')
}

func appendDigits(b []byte, v, width int) []byte {
	var d [9]byte
	for i := width - 1; i >= 0; i-- {
		d[i] = byte('0' + v%10)
		v /= 10
	}
	return append(b, d[:width]...)
}

// appendField appends key and s in quotes, or nothing when s is empty.
func appendField(b []byte, key, s string) []byte {
	if s == "" {
		return b
	}
	b = append(b, key...)
	return appendString(b, s)
}

// plain marks the ASCII bytes that stand for themselves inside a JSON string.
var plain = func() (t [256]bool) {
	for c := 0x20; c < 0x7f; c++ {
		t[c] = c != '"' && c != '\\'
	}
	return t
}()

const hexDigits = "0123456789abcdef"

// appendString appends s as a JSON string. Names of files and arguments are chosen by whoever is
// being watched, so: control characters (C0, DEL, C1), line separators and characters that
// reorder text become \u escapes, which a JSON reader turns back into what they were; a byte that
// is not UTF-8 becomes U+FFFD.
func appendString(b []byte, s string) []byte {
	b = append(b, '"')
	start := 0
	for i := 0; i < len(s); {
		c := s[i]
		if plain[c] {
			i++
			continue
		}
		if c < utf8.RuneSelf {
			b = append(b, s[start:i]...)
			if c == '"' || c == '\\' {
				b = append(b, '\\', c)
			} else {
				b = append(b, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
			}
			i++
			start = i
			continue
		}
		r, n := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && n == 1:
			b = append(b, s[start:i]...)
			b = append(b, "\ufffd"...)
			start = i + 1
		case hostileRune(r):
			b = append(b, s[start:i]...)
			b = append(b, '\\', 'u', hexDigits[r>>12&15], hexDigits[r>>8&15], hexDigits[r>>4&15], hexDigits[r&15])
			start = i + n
		}
		i += n
	}
	b = append(b, s[start:]...)
	return append(b, '"')
}

// AppendJSONString is how every string stands in JSON here: for what writes another form than these types have.
func AppendJSONString(b []byte, s string) []byte { return appendString(b, s) }

// HostileRune reports whether a terminal or a reader takes r, which is beyond ASCII, for something else than a letter: it is never to be written as it is.
func HostileRune(r rune) bool { return hostileRune(r) }

// hostileRune reports whether printing r, which is beyond ASCII, does something else than show it:
// C1 controls (U+009B is a terminal's CSI), line and paragraph separators, and the bidirectional
// controls that make a line read otherwise than it is. All are below U+10000.
func hostileRune(r rune) bool {
	switch {
	case r <= 0x9f, r == 0x61c, r == 0x200e, r == 0x200f, r >= 0x2028 && r <= 0x202e, r >= 0x2066 && r <= 0x2069, r == 0xfeff:
		return true
	}
	return false
}

// MarshalJSON is AppendJSON for encoding/json. The receiver is a value, so that no Event, however it is
// passed, is written in another form.
func (e Event) MarshalJSON() ([]byte, error) { return e.AppendJSON(nil), nil }

// MarshalJSON is AppendJSON for encoding/json.
func (p Process) MarshalJSON() ([]byte, error) { return p.AppendJSON(nil), nil }

// The mirrors by which JSON is read back, on the slow path.
type (
	eventJSON struct {
		ID       uint64       `json:"id"`
		Time     *time.Time   `json:"time"`
		Op       string       `json:"op"`
		Action   string       `json:"action"`
		Monitor  bool         `json:"monitor"`
		Rung     string       `json:"rung"`
		Shadow   string       `json:"shadow"`
		Active   string       `json:"active"`
		Policy   string       `json:"policy"`
		Rule     string       `json:"rule"`
		Severity string       `json:"severity"`
		Message  string       `json:"message"`
		Matched  uint8        `json:"matched"`
		Count    uint64       `json:"count"`
		Process  *processJSON `json:"process"`
		File     *struct {
			fileJSON
			NewPath  string `json:"new_path"`
			Target   string `json:"target"`
			NewMode  uint64 `json:"new_mode"`
			NewOwner uint64 `json:"new_owner"`
			NewGroup uint64 `json:"new_group"`
			Xattr    string `json:"xattr"`
		} `json:"file"`
		Net    *netJSON    `json:"net"`
		Signal string      `json:"signal"`
		Target *targetJSON `json:"target"`
		Ptrace struct {
			Mode string `json:"mode"`
		} `json:"ptrace"`
		Setid struct {
			User  idJSON `json:"user"`
			Group idJSON `json:"group"`
		} `json:"setid"`
		Capset struct {
			Effective []string `json:"effective"`
			Permitted []string `json:"permitted"`
		} `json:"capset"`
		Memory map[string]bool `json:"memory"`
		Mount  struct {
			Source string   `json:"source"`
			Type   string   `json:"type"`
			Flags  []string `json:"flags"`
		} `json:"mount"`
		Module sourceJSON `json:"module"`
		Kexec  sourceJSON `json:"kexec"`
		BPF    struct {
			Command string `json:"command"`
		} `json:"bpf"`
		Perf struct {
			Type string `json:"type"`
		} `json:"perf"`
		Exec struct {
			Args []string `json:"args"`
			Cut  bool     `json:"args_truncated"`
		} `json:"exec"`
		Key struct {
			Type        string `json:"type"`
			Description string `json:"description"`
		} `json:"key"`
		IOUring struct {
			Request string `json:"request"`
		} `json:"io_uring"`
		Sysctl struct {
			Name string `json:"name"`
		} `json:"sysctl"`
		Device struct {
			Major uint64 `json:"major"`
			Minor uint64 `json:"minor"`
		} `json:"device"`
		Exit *ExitInfo `json:"exit"`
		Lost *struct {
			Op     string `json:"op"`
			Where  string `json:"where"`
			Policy string `json:"policy"`
			Count  uint64 `json:"count"`
		} `json:"lost"`
		Flow *flowJSON `json:"flow"`
		DNS  *dnsJSON  `json:"dns"`
	}
	processJSON struct {
		ExecID       uint64       `json:"exec_id,string"`
		PID          uint32       `json:"pid"`
		Unknown      bool         `json:"unknown"`
		StartTime    *time.Time   `json:"start_time"`
		ExitTime     *time.Time   `json:"exit_time"`
		Found        bool         `json:"found"`
		Exe          *fileJSON    `json:"exe"`
		ExeDigest    string       `json:"exe_digest"`
		ExeVerity    string       `json:"exe_verity"`
		Script       string       `json:"script"`
		Args         []string     `json:"args"`
		ArgsCut      bool         `json:"args_truncated"`
		CWD          string       `json:"cwd"`
		TTY          bool         `json:"tty"`
		User         User         `json:"user"`
		GroupID      uint32       `json:"group_id"`
		RealUID      uint32       `json:"real_uid"`
		RealGID      uint32       `json:"real_gid"`
		LoginID      *uint32      `json:"login_id"`
		Caps         []string     `json:"caps"`
		SecureExec   bool         `json:"secure_exec"`
		OnRoot       bool         `json:"on_root"`
		Namespaces   Namespaces   `json:"namespaces"`
		Cgroup       string       `json:"cgroup"`
		CgroupID     uint64       `json:"cgroup_id,string"`
		Unit         string       `json:"unit"`
		Container    *Container   `json:"container"`
		Pod          *Pod         `json:"pod"`
		ParentExecID uint64       `json:"parent_exec_id,string"`
		Parent       *processJSON `json:"parent"`
	}
	fileJSON struct {
		Path      string   `json:"path"`
		Alias     string   `json:"alias"`
		Truncated bool     `json:"truncated"`
		Deleted   bool     `json:"deleted"`
		Memfd     bool     `json:"memfd"`
		Access    []string `json:"access"`
		Mode      uint16   `json:"mode"`
		Owner     uint32   `json:"owner"`
		Dev       uint32   `json:"dev"`
		Inode     uint64   `json:"inode,string"`
		Links     uint32   `json:"links"`
		FS        string   `json:"fs"`
	}
	netJSON struct {
		Family   string        `json:"family"`
		Type     string        `json:"type"`
		Protocol string        `json:"protocol"`
		Remote   *endpointJSON `json:"remote"`
		Local    *endpointJSON `json:"local"`

		// Interface is the one by which a connection came (net.accept), or that the socket is bound to, where a rule asked for it.
		Interface   string `json:"interface"`
		Established bool   `json:"established"`
	}
	idJSON struct {
		ID uint64 `json:"id"`
	}
	targetJSON struct {
		ExecID uint64 `json:"exec_id,string"`
		PID    uint32 `json:"pid"`
		User   struct {
			ID uint32 `json:"id"`
		} `json:"user"`
		Exe struct {
			Path string `json:"path"`
		} `json:"exe"`
	}
	sourceJSON struct {
		Source string `json:"source"`
		Name   string `json:"name"`
	}
	endpointJSON struct {
		Name    string `json:"name"`
		Address string `json:"address"`
		Port    uint16 `json:"port"`
		Path    string `json:"path"`
		// Process is who listens there, of net.connect, or who connects from there, of net.accept, where a rule asked for it.
		Process *peerJSON `json:"process"`
	}
	peerJSON struct {
		ExecID uint64 `json:"exec_id,string"`
		PID    uint32 `json:"pid"`
		Exe    struct {
			Path string `json:"path"`
		} `json:"exe"`
	}
)

// JSONForms are values of the types by which an Event's and a Process's JSON are read: for what describes the form.
func JSONForms() (event, process any) { return eventJSON{}, processJSON{} }

// UnmarshalJSON reads what AppendJSON writes. Fields that are not in the JSON form (TID, RuleIDs,
// Gen, Exec) are zero; PID and ExecID come from the process.
func (e *Event) UnmarshalJSON(data []byte) error {
	var j eventJSON
	if err := json.Unmarshal(data, &j); err != nil {
		return fmt.Errorf("read event: %w", err)
	}
	return e.from(&j)
}

// ParseEvent reads an event that a person wrote: as UnmarshalJSON does, but a field that it does not know is an error.
func ParseEvent(data []byte) (*Event, error) {
	var j eventJSON
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(&j); err != nil {
		return nil, fmt.Errorf("read event: %s", strings.TrimPrefix(err.Error(), "json: "))
	}
	e := new(Event)
	if err := e.from(&j); err != nil {
		return nil, err
	}
	return e, nil
}

func (e *Event) from(j *eventJSON) error {
	r := Event{
		ID: j.ID, Time: unixNano(j.Time), Monitor: j.Monitor, Policy: j.Policy, Rule: j.Rule,
		Severity: j.Severity, Message: j.Message, Matched: j.Matched, Count: j.Count,
	}
	var err error
	if r.Op, err = parseName[Op]("op", j.Op, OpNames[:]); err != nil {
		return err
	}
	if r.Action, err = parseName[Action]("action", j.Action, actionNames[:]); err != nil {
		return err
	}
	if r.Rung, err = parseName[Rung]("rung", j.Rung, rungNames[:]); err != nil {
		return err
	}
	if r.Shadow, err = parseName[Decision]("shadow", j.Shadow, decisionNames[:]); err != nil {
		return err
	}
	if r.Active, err = parseName[Decision]("active", j.Active, decisionNames[:]); err != nil {
		return err
	}
	if j.Process != nil {
		if r.Process, err = j.Process.process(); err != nil {
			return err
		}
		r.PID, r.ExecID = r.Process.PID, r.Process.ExecID
	}
	if j.File != nil {
		if r.File, err = j.File.file(); err != nil {
			return err
		}
	}
	if j.Net != nil {
		if r.Net, err = j.Net.net(); err != nil {
			return err
		}
	}
	if r.Act, err = j.act(r.Op); err != nil {
		return err
	}
	if j.Exit != nil {
		r.Exit = *j.Exit
	}
	if j.Lost != nil {
		r.Lost = LostInfo{Where: j.Lost.Where, Policy: j.Lost.Policy, Count: j.Lost.Count}
		if r.Lost.Op, err = parseName[Op]("op", j.Lost.Op, OpNames[:]); err != nil {
			return err
		}
	}
	if j.Flow != nil {
		if r.Flow, err = j.Flow.flow(); err != nil {
			return err
		}
		r.Flow.Time = r.Time
		r.Flow.Local.take(&r)
		r.Net = r.Flow.Event().Net
	}
	if j.DNS != nil {
		if r.DNS, err = j.DNS.dns(); err != nil {
			return err
		}
		r.DNS.Time = r.Time
		local, _ := r.DNS.sides()
		local.take(&r)
		r.Net = r.DNS.Event().Net
	}
	*e = r
	return nil
}

// UnmarshalJSON reads what AppendJSON writes.
func (p *Process) UnmarshalJSON(data []byte) error {
	var j processJSON
	if err := json.Unmarshal(data, &j); err != nil {
		return fmt.Errorf("read process: %w", err)
	}
	r, err := j.process()
	if err != nil {
		return err
	}
	*p = *r
	return nil
}

func (j *processJSON) process() (*Process, error) {
	p := &Process{
		ExecID: j.ExecID, PID: j.PID, Unknown: j.Unknown, Found: j.Found, ExeDigest: j.ExeDigest, ExeVerity: j.ExeVerity, Script: j.Script, Args: j.Args,
		ArgsCut: j.ArgsCut, CWD: j.CWD, TTY: j.TTY, User: j.User, GroupID: j.GroupID, RealUID: j.RealUID,
		RealGID: j.RealGID, LoginID: j.LoginID, SecureExec: j.SecureExec, OnRoot: j.OnRoot, Namespaces: j.Namespaces,
		Cgroup: j.Cgroup, CgroupID: j.CgroupID, Unit: j.Unit, Container: j.Container, Pod: j.Pod, ParentExecID: j.ParentExecID,
	}
	p.StartTime, p.ExitTime = unixNano(j.StartTime), unixNano(j.ExitTime)
	var err error
	if p.Caps, err = parseCaps(j.Caps); err != nil {
		return nil, err
	}
	if j.Exe != nil {
		if p.Exe, err = j.Exe.file(); err != nil {
			return nil, err
		}
	}
	if j.Parent != nil {
		if p.Parent, err = j.Parent.process(); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// act is what an operation is about, of the objects that it has.
func (j *eventJSON) act(op Op) (a ActInfo, err error) {
	if j.File != nil {
		a.NewPath = j.File.NewPath
		switch op {
		case OpSymlink:
			a.Name = j.File.Target
		case OpChmod:
			a.Value = j.File.NewMode
		case OpChown:
			a.Value, a.Value2 = j.File.NewOwner, j.File.NewGroup
		case OpSetxattr:
			a.Name = j.File.Xattr
		}
	}
	if (op == OpConnect || op == OpAccept) && j.Net != nil && j.Net.Remote != nil && j.Net.Remote.Process != nil {
		t := j.Net.Remote.Process
		a.Target = Target{ExecID: t.ExecID, PID: t.PID, Path: t.Exe.Path}
	}
	if t := j.Target; t != nil {
		a.Target = Target{ExecID: t.ExecID, PID: t.PID, UID: t.User.ID, Path: t.Exe.Path}
	}
	switch op {
	case OpExec:
		if len(j.Exec.Args) > 0 {
			a.Name = strings.Join(j.Exec.Args, "\x00")
			if !j.Exec.Cut {
				a.Name += "\x00"
			}
		}
	case OpSignal:
		a.Value, err = parseNumber[uint64]("signal", j.Signal, SignalNames, 64)
	case OpPtrace:
		a.Value, err = parseNumber[uint64]("ptrace mode", j.Ptrace.Mode, PtraceNames, 64)
	case OpSetid:
		a.Value, a.Value2 = j.Setid.User.ID, j.Setid.Group.ID
	case OpCapset:
		if a.Value, err = parseCaps(j.Capset.Effective); err == nil {
			a.Value2, err = parseCaps(j.Capset.Permitted)
		}
	case OpMemExec:
		for i, name := range MemNames {
			if j.Memory[name] {
				a.Value |= 1 << i
			}
		}
	case OpMount:
		a.NewPath, a.Name = j.Mount.Source, j.Mount.Type
		for _, name := range j.Mount.Flags {
			if n := slices.Index(MountNames[:], name); n >= 0 && name != "" {
				a.Value |= 1 << n
			} else if v, err := strconv.ParseUint(name, 10, 64); err == nil {
				a.Value |= v
			} else {
				return a, fmt.Errorf("read event: unknown mount flag %q", name)
			}
		}
	case OpModule:
		a.Name = j.Module.Name
		a.Value, err = parseNumber[uint64]("module source", j.Module.Source, SourceNames, 64)
	case OpKexec:
		a.Value, err = parseNumber[uint64]("kexec source", j.Kexec.Source, SourceNames, 64)
	case OpBPF:
		a.Value, err = parseNumber[uint64]("bpf command", j.BPF.Command, BPFNames, 64)
	case OpPerf:
		a.Value, err = parseNumber[uint64]("perf type", j.Perf.Type, PerfNames, 64)
	case OpKeyring:
		a.Name, a.NewPath = j.Key.Type, j.Key.Description
	case OpIOUring:
		a.Value, err = parseNumber[uint64]("io_uring request", j.IOUring.Request, IOUringNames, 64)
	case OpSysctl:
		a.Name = j.Sysctl.Name
	case OpDevice:
		a.Value, a.Value2 = j.Device.Major, j.Device.Minor
	}
	return a, err
}

func parseCaps(names []string) (caps uint64, err error) {
	for _, name := range names {
		n := slices.Index(CapNames[:], name)
		if n < 0 {
			if n, err = strconv.Atoi(strings.TrimPrefix(name, "CAP_")); err != nil || n < 0 || n > 63 {
				return 0, fmt.Errorf("read event: unknown capability %q", name)
			}
		}
		caps |= 1 << n
	}
	return caps, nil
}

func (j *fileJSON) file() (FileInfo, error) {
	f := FileInfo{
		Path: j.Path, Alias: j.Alias, Truncated: j.Truncated, Deleted: j.Deleted, Memfd: j.Memfd, Mode: j.Mode,
		Owner: j.Owner, Dev: j.Dev, Inode: j.Inode, Links: j.Links, FS: j.FS,
	}
	for _, name := range j.Access {
		if n := slices.Index(AccessNames[:], name); n >= 0 {
			f.Access |= 1 << n
		} else if v, err := strconv.ParseUint(name, 10, 8); err == nil {
			f.Access |= Access(v)
		} else {
			return f, fmt.Errorf("read file: unknown access %q", name)
		}
	}
	return f, nil
}

func (j *netJSON) net() (n NetInfo, err error) {
	if n.Family, err = parseNumber[uint16]("family", j.Family, FamilyNames, 16); err != nil {
		return n, err
	}
	if n.Type, err = parseNumber[uint8]("type", j.Type, TypeNames, 8); err != nil {
		return n, err
	}
	if n.Protocol, err = parseNumber[uint8]("protocol", j.Protocol, ProtocolNames, 8); err != nil {
		return n, err
	}
	if n.Remote, err = j.Remote.addr(); err != nil {
		return n, err
	}
	if n.Local, err = j.Local.addr(); err != nil {
		return n, err
	}
	if j.Remote != nil {
		n.RemotePort, n.RemotePath, n.RemoteName = j.Remote.Port, j.Remote.Path, j.Remote.Name
	}
	if j.Local != nil {
		n.LocalPort, n.LocalPath = j.Local.Port, j.Local.Path
	}
	n.Interface, n.Established = j.Interface, j.Established
	return n, nil
}

func (j *endpointJSON) addr() (a [16]byte, err error) {
	if j == nil || j.Address == "" {
		return a, nil
	}
	ip, err := netip.ParseAddr(j.Address)
	if err != nil {
		return a, fmt.Errorf("read address: %w", err)
	}
	return ip.As16(), nil
}

func unixNano(t *time.Time) int64 {
	if t == nil {
		return 0
	}
	return t.UnixNano()
}

// parseName finds the number of a name. "unknown", which String gives for a number
// without a name, is read as the highest.
func parseName[T ~uint8](what, name string, names []string) (T, error) {
	if name == "" {
		return 0, nil
	}
	if name == "unknown" {
		return ^T(0), nil
	}
	if i := slices.Index(names, name); i >= 0 {
		return T(i), nil
	}
	return 0, fmt.Errorf("read event: unknown %s %q", what, name)
}

func parseNumber[T uint8 | uint16 | uint64](what, name string, names Names, size int) (T, error) {
	if name == "" {
		return 0, nil
	}
	v, ok := names.Number(name)
	if !ok {
		var err error
		if v, err = strconv.ParseUint(name, 10, size); err != nil {
			return 0, fmt.Errorf("read event: unknown %s %q", what, name)
		}
	}
	return T(v), nil
}
