package pavise

import (
	"encoding/json"
	"fmt"
	"math/bits"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// Numbers of socket families, types and protocols that have a name in JSON and in policies.
const (
	FamilyUnix = 1
	FamilyIPv4 = 2
	FamilyIPv6 = 10

	TypeStream    = 1
	TypeDgram     = 2
	TypeRaw       = 3
	TypeSeqpacket = 5

	ProtocolICMP   = 1
	ProtocolTCP    = 6
	ProtocolUDP    = 17
	ProtocolICMPv6 = 58
)

// FamilyNames, TypeNames and ProtocolNames name the socket numbers. A number without
// a name is written as the number, in a string.
var (
	FamilyNames   = map[string]uint16{"unix": FamilyUnix, "ipv4": FamilyIPv4, "ipv6": FamilyIPv6}
	TypeNames     = map[string]uint8{"stream": TypeStream, "dgram": TypeDgram, "raw": TypeRaw, "seqpacket": TypeSeqpacket}
	ProtocolNames = map[string]uint8{"icmp": ProtocolICMP, "tcp": ProtocolTCP, "udp": ProtocolUDP, "icmpv6": ProtocolICMPv6}
)

// CapNames are the names of the capabilities, by number. A bit beyond them is written as "CAP_63".
var CapNames = [...]string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID",
	"CAP_SETUID", "CAP_SETPCAP", "CAP_LINUX_IMMUTABLE", "CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST", "CAP_NET_ADMIN",
	"CAP_NET_RAW", "CAP_IPC_LOCK", "CAP_IPC_OWNER", "CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_SYS_CHROOT",
	"CAP_SYS_PTRACE", "CAP_SYS_PACCT", "CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_NICE", "CAP_SYS_RESOURCE",
	"CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_MKNOD", "CAP_LEASE", "CAP_AUDIT_WRITE", "CAP_AUDIT_CONTROL",
	"CAP_SETFCAP", "CAP_MAC_OVERRIDE", "CAP_MAC_ADMIN", "CAP_SYSLOG", "CAP_WAKE_ALARM", "CAP_BLOCK_SUSPEND",
	"CAP_AUDIT_READ", "CAP_PERFMON", "CAP_BPF", "CAP_CHECKPOINT_RESTORE",
}

// allCaps is the JSON of the full set: most processes of root have it, and it is copied, not built.
var (
	allCapsMask = uint64(1)<<len(CapNames) - 1
	allCaps     = string(appendCapList(nil, allCapsMask))
)

// FamilyName is the name of a socket family, or its number.
func FamilyName(family uint16) string {
	switch family {
	case FamilyUnix:
		return "unix"
	case FamilyIPv4:
		return "ipv4"
	case FamilyIPv6:
		return "ipv6"
	}
	return strconv.Itoa(int(family))
}

// TypeName is the name of a socket type, or its number.
func TypeName(typ uint8) string {
	switch typ {
	case TypeStream:
		return "stream"
	case TypeDgram:
		return "dgram"
	case TypeRaw:
		return "raw"
	case TypeSeqpacket:
		return "seqpacket"
	}
	return strconv.Itoa(int(typ))
}

// ProtocolName is the name of an IP protocol, or its number.
func ProtocolName(protocol uint8) string {
	switch protocol {
	case ProtocolICMP:
		return "icmp"
	case ProtocolTCP:
		return "tcp"
	case ProtocolUDP:
		return "udp"
	case ProtocolICMPv6:
		return "icmpv6"
	}
	return strconv.Itoa(int(protocol))
}

// onFile reports whether e's File says something: in file.*, and in a verdict on process.exec,
// but not in the lifecycle fact of the same name.
func (e *Event) onFile() bool {
	return strings.HasPrefix(e.Op.String(), "file.") || e.Op == OpExec && (e.Action != ActionNone || e.File.Path != "")
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
	switch {
	case e.onFile():
		b = append(b, `,"file":`...)
		b = e.File.appendJSON(b)
	case e.onNet():
		b = append(b, `,"net":`...)
		b = e.Net.appendJSON(b)
	case e.Op == OpExit:
		b = append(b, `,"exit":{"code":`...)
		b = strconv.AppendUint(b, uint64(e.Exit.Code), 10)
		if e.Exit.Signal != 0 {
			b = append(b, `,"signal":`...)
			b = strconv.AppendUint(b, uint64(e.Exit.Signal), 10)
		}
		b = append(b, '}')
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
	b = appendField(b, `,"script":`, p.Script)
	if len(p.Args) > 0 {
		b = append(b, `,"args":[`...)
		for i, a := range p.Args {
			if i > 0 {
				b = append(b, ',')
			}
			b = appendString(b, a)
		}
		b = append(b, ']')
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
	return b
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
	b = appendField(b, `,"fs":`, f.FS)
	return append(b, '}')
}

// appendAccess appends the name of one bit.
func appendAccess(b []byte, bit Access) []byte {
	n := bits.TrailingZeros8(uint8(bit))
	if n < len(AccessNames) {
		return append(b, AccessNames[n]...)
	}
	return strconv.AppendUint(b, uint64(bit), 10)
}

func appendCapList(b []byte, caps uint64) []byte {
	b = append(b, '[')
	for c := caps; c != 0; c &= c - 1 {
		if c != caps {
			b = append(b, ',')
		}
		b = append(b, '"')
		n := bits.TrailingZeros64(c)
		if n < len(CapNames) {
			b = append(b, CapNames[n]...)
		} else {
			b = append(b, "CAP_"...)
			b = strconv.AppendUint(b, uint64(n), 10)
		}
		b = append(b, '"')
	}
	return append(b, ']')
}

func (n *NetInfo) appendJSON(b []byte) []byte {
	b = append(b, `{"family":"`...)
	b = append(b, FamilyName(n.Family)...)
	b = append(b, '"')
	if n.Type != 0 {
		b = append(b, `,"type":"`...)
		b = append(b, TypeName(n.Type)...)
		b = append(b, '"')
	}
	if n.Protocol != 0 {
		b = append(b, `,"protocol":"`...)
		b = append(b, ProtocolName(n.Protocol)...)
		b = append(b, '"')
	}
	b = appendEndpoint(b, `,"remote":`, n.Family, &n.Remote, n.RemotePort, n.RemotePath)
	b = appendEndpoint(b, `,"local":`, n.Family, &n.Local, n.LocalPort, n.LocalPath)
	return append(b, '}')
}

// appendEndpoint leaves out an end that is not known or has no name.
func appendEndpoint(b []byte, key string, family uint16, addr *[16]byte, port uint16, path string) []byte {
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
		Policy   string       `json:"policy"`
		Rule     string       `json:"rule"`
		Severity string       `json:"severity"`
		Message  string       `json:"message"`
		Matched  uint8        `json:"matched"`
		Count    uint64       `json:"count"`
		Process  *processJSON `json:"process"`
		File     *fileJSON    `json:"file"`
		Net      *netJSON     `json:"net"`
		Exit     *ExitInfo    `json:"exit"`
		Lost     *struct {
			Op     string `json:"op"`
			Where  string `json:"where"`
			Policy string `json:"policy"`
			Count  uint64 `json:"count"`
		} `json:"lost"`
	}
	processJSON struct {
		ExecID       uint64       `json:"exec_id,string"`
		PID          uint32       `json:"pid"`
		Unknown      bool         `json:"unknown"`
		StartTime    *time.Time   `json:"start_time"`
		ExitTime     *time.Time   `json:"exit_time"`
		Found        bool         `json:"found"`
		Exe          *fileJSON    `json:"exe"`
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
		Namespaces   Namespaces   `json:"namespaces"`
		Cgroup       string       `json:"cgroup"`
		CgroupID     uint64       `json:"cgroup_id,string"`
		Unit         string       `json:"unit"`
		Container    *Container   `json:"container"`
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
	}
	endpointJSON struct {
		Address string `json:"address"`
		Port    uint16 `json:"port"`
		Path    string `json:"path"`
	}
)

// UnmarshalJSON reads what AppendJSON writes. Fields that are not in the JSON form (TID, RuleIDs,
// Gen, Exec) are zero; PID and ExecID come from the process.
func (e *Event) UnmarshalJSON(data []byte) error {
	var j eventJSON
	if err := json.Unmarshal(data, &j); err != nil {
		return fmt.Errorf("read event: %w", err)
	}
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
	if j.Exit != nil {
		r.Exit = *j.Exit
	}
	if j.Lost != nil {
		r.Lost = LostInfo{Where: j.Lost.Where, Policy: j.Lost.Policy, Count: j.Lost.Count}
		if r.Lost.Op, err = parseName[Op]("op", j.Lost.Op, OpNames[:]); err != nil {
			return err
		}
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
		ExecID: j.ExecID, PID: j.PID, Unknown: j.Unknown, Found: j.Found, Script: j.Script, Args: j.Args,
		ArgsCut: j.ArgsCut, CWD: j.CWD, TTY: j.TTY, User: j.User, GroupID: j.GroupID, RealUID: j.RealUID,
		RealGID: j.RealGID, LoginID: j.LoginID, SecureExec: j.SecureExec, Namespaces: j.Namespaces,
		Cgroup: j.Cgroup, CgroupID: j.CgroupID, Unit: j.Unit, Container: j.Container, ParentExecID: j.ParentExecID,
	}
	p.StartTime, p.ExitTime = unixNano(j.StartTime), unixNano(j.ExitTime)
	var err error
	for _, name := range j.Caps {
		n := slices.Index(CapNames[:], name)
		if n < 0 {
			if n, err = strconv.Atoi(strings.TrimPrefix(name, "CAP_")); err != nil || n < 0 || n > 63 {
				return nil, fmt.Errorf("read process: unknown capability %q", name)
			}
		}
		p.Caps |= 1 << n
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
	if n.Family, err = parseNumber("family", j.Family, FamilyNames, 16); err != nil {
		return n, err
	}
	if n.Type, err = parseNumber("type", j.Type, TypeNames, 8); err != nil {
		return n, err
	}
	if n.Protocol, err = parseNumber("protocol", j.Protocol, ProtocolNames, 8); err != nil {
		return n, err
	}
	if n.Remote, err = j.Remote.addr(); err != nil {
		return n, err
	}
	if n.Local, err = j.Local.addr(); err != nil {
		return n, err
	}
	if j.Remote != nil {
		n.RemotePort, n.RemotePath = j.Remote.Port, j.Remote.Path
	}
	if j.Local != nil {
		n.LocalPort, n.LocalPath = j.Local.Port, j.Local.Path
	}
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

func parseNumber[T uint8 | uint16](what, name string, names map[string]T, size int) (T, error) {
	if name == "" {
		return 0, nil
	}
	if v, ok := names[name]; ok {
		return v, nil
	}
	v, err := strconv.ParseUint(name, 10, size)
	if err != nil {
		return 0, fmt.Errorf("read event: unknown %s %q", what, name)
	}
	return T(v), nil
}
