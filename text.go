package pavise

import (
	"iter"
	"math/bits"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// The escape sequences of AppendText; nothing else in its output begins with ESC.
const (
	textRed    = "\x1b[1;31m"
	textYellow = "\x1b[33m"
	textReset  = "\x1b[0m"
)

// textArgs is how many bytes of arguments a line shows; JSON has all that the kernel took.
const textArgs = 160

// AppendText appends e as one line for people, without the newline, its time in the machine's
// zone: time, id (what `pavise why` takes), verdict, operation, process, object, policy/rule. With color, what was denied or killed is bold red and
// what would have been is yellow. Whatever the names in e hold, the line cannot control a terminal.
func (e *Event) AppendText(b []byte, color bool) []byte {
	return e.AppendTextIn(b, color, time.Local)
}

// AppendTextIn is AppendText with the time in a zone of the caller's.
func (e *Event) AppendTextIn(b []byte, color bool, zone *time.Location) []byte {
	switch {
	case e.Op == OpFlow && e.Flow != nil:
		return e.Flow.AppendTextIn(b, color, zone)
	case e.Op == OpDNS && e.DNS != nil:
		return e.DNS.AppendTextIn(b, color, zone)
	}
	b = time.Unix(0, e.Time).In(zone).AppendFormat(b, "15:04:05.000000 ")
	col := len(b)
	if e.ID != 0 {
		b = strconv.AppendUint(b, e.ID, 10)
	} else { // it was never published
		b = append(b, '-')
	}
	b = pad(b, col, 6)
	paint := ""
	if color && (e.Action == ActionDeny || e.Action == ActionKill || e.Shadow != DecisionNone) {
		paint = textRed
		if e.Monitor {
			paint = textYellow
		}
	}
	if color && e.Op == OpLost {
		paint = textRed
	}
	b = append(b, paint...)
	col = len(b)
	switch {
	case e.Action == ActionNone:
		b = append(b, '-')
	case e.Monitor:
		b = append(b, "would-"...)
		b = append(b, e.Action.String()...)
	default:
		b = append(b, e.Action.String()...)
	}
	b = pad(b, col, 11)
	col = len(b)
	b = append(b, e.Op.String()...)
	b = pad(b, col, 13)
	if e.Op != OpLost {
		col = len(b)
		b = e.appendActor(b)
		b = pad(b, col, 36)
	}
	b = e.appendObject(b)
	if e.Count > 1 {
		b = append(b, " ("...)
		b = strconv.AppendUint(b, e.Count, 10)
		b = append(b, " times)"...)
	}
	if e.Shadow != DecisionNone {
		b = append(b, "  (shadow: "...)
		b = append(b, e.Shadow.String()...)
		b = append(b, ", active: "...)
		b = append(b, e.Active.String()...)
		b = append(b, ')')
	}
	if e.Policy != "" || e.Rule != "" {
		b = append(b, "  "...)
		b = AppendEscaped(b, e.Policy)
		if e.Rule != "" {
			b = append(b, '/')
			b = AppendEscaped(b, e.Rule)
		}
		if e.Matched > 1 {
			b = append(b, " +"...)
			b = strconv.AppendUint(b, uint64(e.Matched)-1, 10)
		}
	}
	if e.Severity != "" {
		b = append(b, " ["...)
		b = AppendEscaped(b, e.Severity)
		b = append(b, ']')
	}
	if e.Message != "" {
		b = append(b, "  "...)
		b = appendEscaped(b, e.Message, false)
	}
	if paint != "" {
		b = append(b, textReset...)
	}
	return b
}

// appendActor appends name[pid] user unit/container.
func (e *Event) appendActor(b []byte) []byte {
	if e.Process == nil || e.Process.Unknown {
		b = append(b, "?["...)
		b = strconv.AppendUint(b, uint64(e.PID), 10)
		return append(b, ']')
	}
	return e.Process.appendActor(b)
}

// appendActor is of a process that is not Unknown.
func (p *Process) appendActor(b []byte) []byte {
	b = appendName(b, p)
	b = append(b, ' ')
	if p.User.Name != "" {
		b = AppendEscaped(b, p.User.Name)
	} else {
		b = strconv.AppendUint(b, uint64(p.User.ID), 10)
	}
	if p.Unit != "" {
		b = append(b, ' ')
		b = AppendEscaped(b, p.Unit)
	}
	if c := p.Container; c != nil {
		sep := byte(' ')
		if p.Unit != "" {
			sep = '/'
		}
		b = append(b, sep)
		if c.Name != "" {
			b = AppendEscaped(b, c.Name)
		} else {
			b = AppendEscaped(b, c.ID[:min(12, len(c.ID))])
		}
	}
	return b
}

func appendName(b []byte, p *Process) []byte {
	name := p.Exe.Path[strings.LastIndexByte(p.Exe.Path, '/')+1:]
	switch {
	case name != "":
		b = AppendEscaped(b, name)
	case p.Unknown:
		b = append(b, '?')
	default:
		b = append(b, "(kernel)"...)
	}
	b = append(b, '[')
	b = strconv.AppendUint(b, uint64(p.PID), 10)
	return append(b, ']')
}

func (e *Event) appendObject(b []byte) []byte {
	col := len(b)
	if e.onFile() && e.Op != OpMount {
		b = e.appendFileText(b)
	}
	if e.Op >= OpSignal && e.Op < OpFork {
		return e.appendActText(b, col)
	}
	switch {
	case e.onFile():
		if e.Op == OpExec && e.Act.Name != "" {
			b = append(b, " ("...)
			b = appendArgs(b, Args(e.Act.Name), !strings.HasSuffix(e.Act.Name, "\x00"))
			b = append(b, ')')
		}
	case e.Op == OpSocket:
		n := &e.Net
		b = FamilyNames.append(b, uint64(n.Family))
		b = append(b, ' ')
		b = TypeNames.append(b, uint64(n.Type))
		if n.Protocol != 0 {
			b = append(b, ' ')
			b = ProtocolNames.append(b, uint64(n.Protocol))
		}
	case e.onNet():
		n := &e.Net
		b = appendNetLabel(b, n)
		local, remote := n.LocalPort != 0 || n.LocalPath != "", n.RemotePort != 0 || n.RemotePath != "" || n.Remote != [16]byte{}
		if local {
			b = append(b, ' ')
			b = appendEndpointText(b, n.Family, &n.Local, n.LocalPort, n.LocalPath)
		}
		if remote {
			arrow := " -> "
			if e.Op == OpAccept {
				arrow = " <- "
			}
			b = append(b, arrow...)
			b = appendEndpointText(b, n.Family, &n.Remote, n.RemotePort, n.RemotePath)
			if n.RemoteName != "" {
				b = append(b, " ("...)
				b = AppendEscaped(b, n.RemoteName)
				b = append(b, ')')
			}
			if t := e.otherEnd(); t != nil {
				b = t.appendPeerText(append(b, arrow...))
			}
		}
		if n.Interface != "" {
			b = append(b, " on "...)
			b = AppendEscaped(b, n.Interface)
		}
		if n.Established {
			b = append(b, " (established)"...)
		}
	case e.Op == OpExec && e.Process != nil:
		p := e.Process
		if len(p.Args) == 0 {
			return AppendEscaped(b, p.Exe.Path)
		}
		b = appendArgs(b, slices.Values(p.Args), p.ArgsCut)
	case e.Op == OpFork && e.Process != nil && e.Process.Parent != nil:
		b = append(b, "by "...)
		b = appendName(b, e.Process.Parent)
	case e.Op == OpExit && e.Exit.Signal != 0:
		b = append(b, "signal "...)
		b = strconv.AppendUint(b, uint64(e.Exit.Signal), 10)
	case e.Op == OpExit:
		b = append(b, "code "...)
		b = strconv.AppendUint(b, uint64(e.Exit.Code), 10)
	case e.Op == OpLost:
		b = strconv.AppendUint(b, e.Lost.Count, 10)
		b = append(b, ' ')
		b = append(b, e.Lost.Op.String()...)
		b = append(b, " events lost at "...)
		b = AppendEscaped(b, e.Lost.Where)
		if e.Lost.Policy != "" {
			b = append(b, " of policy "...)
			b = AppendEscaped(b, e.Lost.Policy)
		}
	}
	return b
}

// appendArgs appends the arguments of a program, textArgs bytes at most.
func appendArgs(b []byte, args iter.Seq[string], cut bool) []byte {
	col := len(b)
	for a := range args {
		if len(b) > col {
			b = append(b, ' ')
		}
		b = AppendEscaped(b, a)
		if len(b)-col > textArgs {
			b = b[:col+textArgs]
			for r, n := utf8.DecodeLastRune(b[col:]); r == utf8.RuneError && n == 1; r, n = utf8.DecodeLastRune(b[col:]) {
				b = b[:len(b)-1]
			}
			return append(b, "…"...)
		}
	}
	if cut {
		b = append(b, " …"...)
	}
	return b
}

func (e *Event) appendFileText(b []byte) []byte {
	f := &e.File
	b = AppendEscaped(b, f.Path)
	if f.Deleted {
		b = append(b, " (deleted)"...)
	}
	if f.Memfd {
		b = append(b, " (memfd)"...)
	}
	if f.Alias != "" {
		b = append(b, " also "...)
		b = AppendEscaped(b, f.Alias)
	}
	if f.Access != 0 && (e.Op == OpOpen || e.Op == OpDevice || e.Op == OpSysctl) {
		sep := " ("
		for a := f.Access; a != 0; a &= a - 1 {
			b = append(b, sep...)
			b = appendAccess(b, a&-a)
			sep = ","
		}
		b = append(b, ')')
	}
	return b
}

// appendActText appends what Act says; the object, if there is one, begins at col.
func (e *Event) appendActText(b []byte, col int) []byte {
	a := &e.Act
	from := func(names Names) {
		if len(b) > col {
			b = append(b, ' ')
		}
		b = append(b, "from "...)
		b = names.append(b, a.Value)
	}
	switch e.Op {
	case OpSignal:
		b = SignalNames.append(b, a.Value)
		b = a.Target.appendText(b)
	case OpPtrace:
		b = PtraceNames.append(b, a.Value)
		b = a.Target.appendText(b)
	case OpSetid:
		b = appendIDs(b, "user ", " group ", a.Value, a.Value2)
	case OpCapset:
		b = append(b, "effective "...)
		b = appendCapText(b, a.Value)
		b = append(b, " permitted "...)
		b = appendCapText(b, a.Value2)
	case OpMemExec:
		sep := " ("
		if len(b) == col {
			sep = "("
		}
		for i, name := range MemNames {
			if a.Value&(1<<i) != 0 {
				b = append(b, sep...)
				b = append(b, name...)
				sep = ","
			}
		}
		if sep == "," {
			b = append(b, ')')
		}
	case OpRename, OpLink:
		b = append(b, " -> "...)
		b = AppendEscaped(b, a.NewPath)
	case OpPivotRoot:
		b = append(b, ", old root to "...)
		b = AppendEscaped(b, a.NewPath)
	case OpSymlink:
		b = append(b, " -> "...)
		b = AppendEscaped(b, a.Name)
	case OpChmod:
		b = append(b, " to 0"...)
		b = strconv.AppendUint(b, a.Value, 8)
	case OpChown:
		b = append(b, " to "...)
		b = appendIDs(b, "", ":", a.Value, a.Value2)
	case OpSetxattr:
		b = append(b, " ("...)
		b = AppendEscaped(b, a.Name)
		b = append(b, ')')
	case OpMount:
		if a.NewPath != "" {
			b = AppendEscaped(b, a.NewPath)
			b = append(b, " on "...)
		}
		b = e.appendFileText(b)
		sep := " ("
		if a.Name != "" {
			b = append(b, sep...)
			b = AppendEscaped(b, a.Name)
			sep = ", "
		}
		for f := a.Value; f != 0; f &= f - 1 {
			b = append(b, sep...)
			b = appendMountFlag(b, f&-f)
			sep = ", "
		}
		if sep == ", " {
			b = append(b, ')')
		}
	case OpModule:
		if a.Name != "" {
			if len(b) > col {
				b = append(b, ' ')
			}
			b = AppendEscaped(b, a.Name)
		}
		from(SourceNames)
	case OpKexec:
		from(SourceNames)
	case OpBPF:
		b = BPFNames.append(b, a.Value)
	case OpPerf:
		b = PerfNames.append(b, a.Value)
	case OpKeyring:
		b = AppendEscaped(b, a.Name)
		if a.NewPath != "" {
			b = append(b, ' ')
			b = AppendEscaped(b, a.NewPath)
		}
	case OpIOUring:
		b = IOUringNames.append(b, a.Value)
	case OpSysctl:
		if len(b) > col {
			b = append(b, ' ')
		}
		b = AppendEscaped(b, a.Name)
	case OpDevice:
		b = append(b, ' ')
		b = strconv.AppendUint(b, a.Value, 10)
		b = append(b, ':')
		b = strconv.AppendUint(b, a.Value2, 10)
	}
	return b
}

// appendIDs appends a user and a group, each with what stands before it, or nothing where it is Unchanged.
func appendIDs(b []byte, user, group string, uid, gid uint64) []byte {
	if uid != Unchanged {
		b = append(b, user...)
		b = strconv.AppendUint(b, uid, 10)
	} else if len(group) > 0 && group[0] == ' ' {
		group = group[1:]
	}
	if gid != Unchanged {
		b = append(b, group...)
		b = strconv.AppendUint(b, gid, 10)
	}
	return b
}

func appendCapText(b []byte, caps uint64) []byte {
	switch caps {
	case 0:
		return append(b, "none"...)
	case allCapsMask:
		return append(b, "all"...)
	}
	for c := caps; c != 0; c &= c - 1 {
		if c != caps {
			b = append(b, ',')
		}
		b = appendCap(b, bits.TrailingZeros64(c))
	}
	return b
}

// appendText appends name[pid] of the target.
func (t *Target) appendText(b []byte) []byte {
	return t.appendPeerText(append(b, " -> "...))
}

func (t *Target) appendPeerText(b []byte) []byte {
	p := Process{PID: t.PID, Unknown: t.Path == ""}
	p.Exe.Path = t.Path
	return appendName(b, &p)
}

// appendNetLabel appends the shortest name of what a socket speaks.
func appendNetLabel(b []byte, n *NetInfo) []byte {
	switch {
	case n.Family == FamilyUnix:
		return append(b, "unix"...)
	case n.Family != FamilyIPv4 && n.Family != FamilyIPv6:
		return FamilyNames.append(append(b, "family "...), uint64(n.Family))
	case n.Protocol != 0:
		return ProtocolNames.append(b, uint64(n.Protocol))
	}
	return TypeNames.append(b, uint64(n.Type))
}

func appendEndpointText(b []byte, family uint16, addr *[16]byte, port uint16, path string) []byte {
	if family == FamilyUnix {
		return AppendEscaped(b, path)
	}
	col := len(b)
	b = appendAddr(b, addr)
	for _, c := range b[col:] {
		if c == ':' { // IPv6 wants brackets before a port
			b = append(b, 0)
			copy(b[col+1:], b[col:])
			b[col] = '['
			b = append(b, ']')
			break
		}
	}
	b = append(b, ':')
	return strconv.AppendUint(b, uint64(port), 10)
}

// pad appends spaces until what stands from col on is width characters and one space wide.
func pad(b []byte, col, width int) []byte {
	for n := utf8.RuneCount(b[col:]); n < width; n++ {
		b = append(b, ' ')
	}
	return append(b, ' ')
}

// AppendEscaped appends s as one word for people: as it is when it is harmless, else in double
// quotes with control characters, bytes that are not UTF-8 and characters that reorder text as
// \x1b or \u202e. A name with a blank is quoted too, so that it cannot pass for two columns.
func AppendEscaped(b []byte, s string) []byte {
	return appendEscaped(b, s, true)
}

// AppendHarmless appends s as running text: as AppendEscaped does, but not in quotes, so that what is harmless stays what it is.
func AppendHarmless(b []byte, s string) []byte { return appendEscaped(b, s, false) }

// appendEscaped without word leaves blanks, quotes and the whole unquoted: for running text.
func appendEscaped(b []byte, s string, word bool) []byte {
	quote := false
	if word {
		quote = s == ""
		for i := 0; i < len(s) && !quote; i++ {
			quote = !plain[s[i]] || s[i] == ' '
			if s[i] >= utf8.RuneSelf {
				r, n := utf8.DecodeRuneInString(s[i:])
				quote = r == utf8.RuneError && n == 1 || hostileRune(r)
				i += n - 1
			}
		}
	}
	if quote {
		b = append(b, '"')
	}
	for i := 0; i < len(s); {
		c := s[i]
		if c < utf8.RuneSelf {
			switch {
			case quote && (c == '"' || c == '\\'):
				b = append(b, '\\', c)
			case c >= 0x20 && c < 0x7f:
				b = append(b, c)
			default:
				b = append(b, '\\', 'x', hexDigits[c>>4], hexDigits[c&15])
			}
			i++
			continue
		}
		r, n := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && n == 1:
			b = append(b, '\\', 'x', hexDigits[c>>4], hexDigits[c&15])
		case hostileRune(r):
			b = append(b, '\\', 'u')
			for shift := 12; shift >= 0; shift -= 4 {
				b = append(b, hexDigits[r>>shift&15])
			}
		default:
			b = append(b, s[i:i+n]...)
		}
		i += n
	}
	if quote {
		b = append(b, '"')
	}
	return b
}
