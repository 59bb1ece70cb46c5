package learn

import (
	"net/netip"
	"path"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/pavise-project/pavise"
	"github.com/pavise-project/pavise/policy"
)

// shape is an act as conditions can say it.
type shape struct {
	fixed []string // conditions that are as they are: acts in which they differ do not share a rule
	paths []named  // paths and names, to be generalised
	list  string   // a field whose values are listed
	value string   // as a literal
	addr  string   // a remote address
	odd   string   // why no condition can say it, empty when one can
}

type named struct{ field, path string }

const (
	nonPath   = "its path is longer than the kernel tells"
	noPath    = "no condition can name its path"
	noText    = "it is not UTF-8, and a condition is"
	ephemeral = 32768 // ports from here on are the kernel's choice (ip_local_port_range)
)

// ports of the kernel's choice are one value.
const anyEphemeral = ">= 32768"

var texts = map[string]func(*pavise.Event) string{}

func init() {
	for _, name := range []string{
		"net.family", "net.type", "net.protocol", "signal", "ptrace.mode", "module.source", "module.name", "kexec.source", "bpf.command", "perf.type", "key.type",
		"io_uring.request", "sysctl.name", "mount.type", "setid.user.id", "setid.group.id", "file.fs", "file.xattr",
	} {
		f, err := policy.FieldText(name)
		if err != nil {
			panic(err) // a name that this file misspells
		}
		texts[name] = f
	}
}

// is fixes a field that has a string.
func (s *shape) is(e *pavise.Event, field string) {
	s.fixed = append(s.fixed, field+" == "+s.literal(texts[field](e)))
}

// flag fixes a condition or its contrary.
func (s *shape) flag(cond string, holds bool) {
	if !holds {
		cond = "!" + cond
	}
	s.fixed = append(s.fixed, cond)
}

// lists has the values of a field listed.
func (s *shape) lists(e *pavise.Event, field string) {
	s.list, s.value = field, s.literal(texts[field](e))
}

// literal is a string as conditions have it: not all are.
func (s *shape) literal(v string) string {
	if !utf8.ValidString(v) {
		s.odd = noText
	}
	return quote(v)
}

// at is a path; what has none is told by its file system.
func (s *shape) at(e *pavise.Event, field, at string) {
	switch {
	case field == "file.path" && e.File.Truncated:
		s.odd = nonPath
	case field == "file.path" && e.File.Memfd:
		s.flag("file.memfd", true)
	case strings.HasPrefix(at, "/") && !nameable(at):
		s.odd = noPath
	case strings.HasPrefix(at, "/"):
		s.paths = append(s.paths, named{field, at})
	case field == "file.path":
		s.is(e, "file.fs")
	case at != "" && !strings.HasPrefix(field, "net."):
		s.odd = noPath
	default:
		s.fixed = append(s.fixed, field+" == "+s.literal(at))
	}
}

// nameable reports whether a condition can name a path: what the kernel gives is resolved, and its names have 255 bytes at most.
func nameable(at string) bool {
	if path.Clean(at) != at || !utf8.ValidString(at) {
		return false
	}
	for part := range strings.SplitSeq(at, "/") {
		if len(part) > 255 {
			return false
		}
	}
	return true
}

func (s *shape) port(field string, n uint16) {
	s.list, s.value = field, strconv.Itoa(int(n))
	if n >= ephemeral {
		s.value = anyEphemeral
	}
}

// local is the end of a socket that is the process's own.
func (s *shape) local(e *pavise.Event) {
	switch {
	case e.Net.Family != pavise.FamilyUnix:
		s.is(e, "net.type")
		s.port("net.local.port", e.Net.LocalPort)
	case e.Net.LocalPath != "":
		s.at(e, "net.local.path", e.Net.LocalPath)
	}
}

// shapeOf says an event as conditions can.
func shapeOf(e *pavise.Event) (s shape) {
	switch e.Op {
	case pavise.OpOpen, pavise.OpDevice:
		if e.File.Access&(pavise.AccessWrite|pavise.AccessTruncate) == 0 {
			s.flag("file.access.write", false)
			s.flag("file.access.truncate", false)
		}
		s.at(e, "file.path", e.File.Path)
	case pavise.OpSysctl:
		s.flag("file.access.write", e.File.Access&pavise.AccessWrite != 0)
		s.lists(e, "sysctl.name")
		if strings.Contains(e.Act.Name, ".") && !strings.Contains(e.Act.Name, "/") {
			s.odd = noPath // its dots would be taken for slashes
		}
	case pavise.OpConnect, pavise.OpSend:
		s.is(e, "net.family")
		switch e.Net.Family {
		case pavise.FamilyUnix:
			s.at(e, "net.remote.path", e.Net.RemotePath)
		case pavise.FamilyIPv4, pavise.FamilyIPv6:
			s.is(e, "net.type")
			s.port("net.remote.port", e.Net.RemotePort)
			s.addr = netip.AddrFrom16(e.Net.Remote).Unmap().String()
		}
	case pavise.OpBind, pavise.OpListen, pavise.OpAccept:
		s.is(e, "net.family")
		s.local(e)
	case pavise.OpSocket:
		s.is(e, "net.family")
		s.is(e, "net.type")
	case pavise.OpSignal:
		s.lists(e, "signal")
		s.at(e, "target.exe.path", e.Act.Target.Path)
	case pavise.OpPtrace:
		s.is(e, "ptrace.mode")
		s.at(e, "target.exe.path", e.Act.Target.Path)
	case pavise.OpSetid:
		s.fixed = append(s.fixed, "setid.group.id == "+texts["setid.group.id"](e))
		s.list, s.value = "setid.user.id", texts["setid.user.id"](e)
	case pavise.OpMemExec:
		for i, name := range pavise.MemNames {
			s.flag("memory."+name, e.Act.Value&(1<<i) != 0)
		}
		if e.Act.Value&pavise.MemAnonymous == 0 {
			s.at(e, "file.path", e.File.Path)
		}
	case pavise.OpRename, pavise.OpLink, pavise.OpPivotRoot:
		s.at(e, "file.path", e.File.Path)
		s.at(e, "file.new_path", e.Act.NewPath)
	case pavise.OpChmod:
		const privileged = 0o6000
		s.flag(`file.new_mode.has("04000")`, e.Act.Value&0o4000 != 0)
		if e.Act.Value&privileged != 0 {
			s.flag(`file.new_mode.has("02000")`, e.Act.Value&0o2000 != 0)
		}
		s.at(e, "file.path", e.File.Path)
	case pavise.OpSetxattr:
		s.lists(e, "file.xattr")
		s.at(e, "file.path", e.File.Path)
	case pavise.OpMount:
		s.lists(e, "mount.type")
		s.at(e, "file.path", e.File.Path)
	case pavise.OpModule:
		s.is(e, "module.source")
		switch e.Act.Value {
		case pavise.SourceFile:
			s.at(e, "file.path", e.File.Path)
		case pavise.SourceRequest:
			s.lists(e, "module.name")
		}
	case pavise.OpKexec:
		s.is(e, "kexec.source")
		if e.Act.Value == pavise.SourceFile {
			s.at(e, "file.path", e.File.Path)
		}
	case pavise.OpBPF:
		s.lists(e, "bpf.command")
	case pavise.OpPerf:
		s.lists(e, "perf.type")
	case pavise.OpKeyring:
		s.lists(e, "key.type")
	case pavise.OpIOUring:
		s.lists(e, "io_uring.request")
	case pavise.OpCapset, pavise.OpUserns:
	default: // the object is a file
		s.at(e, "file.path", e.File.Path)
	}
	return s
}

// quote makes a string literal of CEL that is also one of YAML within a plain scalar.
func quote(s string) string { return strconv.Quote(s) }
