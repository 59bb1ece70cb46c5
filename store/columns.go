package store

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"unicode/utf8"
	"unsafe"

	"github.com/parquet-go/parquet-go"

	"github.com/pavise-project/pavise"
)

// Row is one event of the history as its columns hold it: what is asked for often, and in JSON the whole of it. Text that an
// event does not have is empty, and a number 0. Action is "none" where no rule asked.
type Row struct {
	Time                                               int64 // nanoseconds since the Unix epoch
	ID                                                 uint64
	Op, Action, Rung, Policy, Rule, Severity, Message  string
	Monitor                                            bool
	Count                                              int64
	PID                                                int64
	ExecID                                             uint64
	ExePath, ExeDigest, Unit, Cgroup                   string
	UserID                                             int64 // -1 when it is not known
	UserName                                           string
	ContainerID, ContainerName, ContainerImage         string
	PodNamespace, PodName                              string
	ParentPID                                          int64
	ParentExePath                                      string
	FilePath, NewPath                                  string
	NetFamily                                          string // as in JSON: ipv4, unix; empty where there is no socket
	RemoteAddress, RemotePath, LocalAddress, LocalPath string
	RemotePort, LocalPort                              int64
	JSON                                               []byte // the wire form of package pavise
}

// column is one of the columns: how it is called, where its value stands in a Row, and its form. One of the functions is set.
type column struct {
	name  string
	text  func(*Row) *string
	num   func(*Row) *int64
	id    func(*Row) *uint64 // as many as there are: no sign
	is    func(*Row) *bool
	node  parquet.Node // nil: the usual one
	maybe bool         // num: -1 is null
}

// The names of the columns that other code speaks of.
const (
	columnTime = "time"
	columnJSON = "event"
)

// columns are those of a segment but for the last, the event as JSON. Their order is that of the log: a change of it, or of what they hold, is
// another version of logHeader.
var columns = []column{
	{name: columnTime, num: func(r *Row) *int64 { return &r.Time }, node: parquet.Encoded(parquet.Timestamp(parquet.Nanosecond), &parquet.DeltaBinaryPacked)},
	{name: "id", id: func(r *Row) *uint64 { return &r.ID }, node: parquet.Encoded(parquet.Uint(64), &parquet.DeltaBinaryPacked)},
	{name: "op", text: func(r *Row) *string { return &r.Op }},
	{name: "action", text: func(r *Row) *string { return &r.Action }},
	{name: "monitor", is: func(r *Row) *bool { return &r.Monitor }},
	{name: "rung", text: func(r *Row) *string { return &r.Rung }},
	{name: "policy", text: func(r *Row) *string { return &r.Policy }},
	{name: "rule", text: func(r *Row) *string { return &r.Rule }},
	{name: "severity", text: func(r *Row) *string { return &r.Severity }},
	{name: "message", text: func(r *Row) *string { return &r.Message }},
	{name: "count", num: func(r *Row) *int64 { return &r.Count }},
	{name: "pid", num: func(r *Row) *int64 { return &r.PID }},
	{name: "exec_id", id: func(r *Row) *uint64 { return &r.ExecID }},
	{name: "exe_path", text: func(r *Row) *string { return &r.ExePath }},
	{name: "exe_digest", text: func(r *Row) *string { return &r.ExeDigest }},
	{name: "unit", text: func(r *Row) *string { return &r.Unit }},
	{name: "cgroup", text: func(r *Row) *string { return &r.Cgroup }},
	{name: "user_id", num: func(r *Row) *int64 { return &r.UserID }, maybe: true},
	{name: "user_name", text: func(r *Row) *string { return &r.UserName }},
	{name: "container_id", text: func(r *Row) *string { return &r.ContainerID }},
	{name: "container_name", text: func(r *Row) *string { return &r.ContainerName }},
	{name: "container_image", text: func(r *Row) *string { return &r.ContainerImage }},
	{name: "pod_namespace", text: func(r *Row) *string { return &r.PodNamespace }},
	{name: "pod_name", text: func(r *Row) *string { return &r.PodName }},
	{name: "parent_pid", num: func(r *Row) *int64 { return &r.ParentPID }},
	{name: "parent_exe_path", text: func(r *Row) *string { return &r.ParentExePath }},
	{name: "file_path", text: func(r *Row) *string { return &r.FilePath }},
	{name: "new_path", text: func(r *Row) *string { return &r.NewPath }},
	{name: "net_family", text: func(r *Row) *string { return &r.NetFamily }},
	{name: "remote_address", text: func(r *Row) *string { return &r.RemoteAddress }},
	{name: "remote_port", num: func(r *Row) *int64 { return &r.RemotePort }},
	{name: "remote_path", text: func(r *Row) *string { return &r.RemotePath }},
	{name: "local_address", text: func(r *Row) *string { return &r.LocalAddress }},
	{name: "local_port", num: func(r *Row) *int64 { return &r.LocalPort }},
	{name: "local_path", text: func(r *Row) *string { return &r.LocalPath }},
}

// Columns are the names of the columns, in order.
func Columns() []string {
	names := make([]string, 0, len(columns)+1)
	for i := range columns {
		names = append(names, columns[i].name)
	}
	return append(names, columnJSON)
}

// columnOf is the index of a column in columns, len(columns) for that of the JSON, -1 when there is none of that name.
func columnOf(name string) int {
	for i := range columns {
		if columns[i].name == name {
			return i
		}
	}
	if name == columnJSON {
		return len(columns)
	}
	return -1
}

// schema is the Parquet schema of a segment, and schemaIndex says which of its columns each of columns is, the JSON last.
var schema, schemaIndex = func() (*parquet.Schema, []int) {
	group := parquet.Group{columnJSON: parquet.JSON()}
	for i := range columns {
		c := &columns[i]
		node := c.node
		switch {
		case node != nil:
		case c.text != nil:
			node = parquet.Encoded(parquet.String(), &parquet.RLEDictionary)
		case c.is != nil:
			node = parquet.Leaf(parquet.BooleanType)
		case c.id != nil:
			node = parquet.Encoded(parquet.Uint(64), &parquet.RLEDictionary)
		default:
			node = parquet.Encoded(parquet.Int(64), &parquet.RLEDictionary)
		}
		if c.maybe {
			node = parquet.Optional(node)
		}
		group[c.name] = node
	}
	s := parquet.NewSchema("event", group)
	var index []int
	for _, name := range Columns() {
		leaf, _ := s.Lookup(name)
		index = append(index, leaf.ColumnIndex)
	}
	return s, index
}()

// values appends r's values as Parquet has them, in the order of the schema. They point into r.
func (r *Row) values(row parquet.Row) parquet.Row {
	row = row[:len(columns)+1]
	for i := range columns {
		c, at := &columns[i], schemaIndex[i]
		switch {
		case c.text != nil:
			s := *c.text(r)
			row[at] = parquet.ByteArrayValue(unsafe.Slice(unsafe.StringData(s), len(s))).Level(0, 0, at)
		case c.is != nil:
			row[at] = parquet.BooleanValue(*c.is(r)).Level(0, 0, at)
		case c.id != nil:
			row[at] = parquet.Int64Value(int64(*c.id(r))).Level(0, 0, at) //nolint:gosec // the bits, as Uint(64) has them
		case c.maybe && *c.num(r) < 0:
			row[at] = parquet.NullValue().Level(0, 0, at)
		case c.maybe:
			row[at] = parquet.Int64Value(*c.num(r)).Level(0, 1, at)
		default:
			row[at] = parquet.Int64Value(*c.num(r)).Level(0, 0, at)
		}
	}
	at := schemaIndex[len(columns)]
	row[at] = parquet.ByteArrayValue(r.JSON).Level(0, 0, at)
	return row
}

// set is values for one column. Strings are kept in names, so that what comes again costs nothing.
func (r *Row) set(i int, v parquet.Value, names *names) {
	if i == len(columns) {
		r.JSON = slices.Clip(v.ByteArray())
		return
	}
	switch c := &columns[i]; {
	case c.text != nil:
		*c.text(r) = names.of(v.ByteArray())
	case c.is != nil:
		*c.is(r) = v.Boolean()
	case c.id != nil:
		*c.id(r) = v.Uint64()
	case v.IsNull():
		*c.num(r) = -1
	default:
		*c.num(r) = v.Int64()
	}
}

// names keeps the strings that were read last.
type names map[string]string

func (n *names) of(b []byte) string {
	if len(b) == 0 {
		return ""
	}
	if s, ok := (*n)[string(b)]; ok {
		return s
	}
	if len(*n) >= 1<<14 || *n == nil {
		*n = make(names)
	}
	s := string(b)
	(*n)[s] = s
	return s
}

// fill makes r the columns of e but for its JSON. It points into e, and into scratch.
func (r *Row) fill(e *pavise.Event, scratch []byte) {
	*r = Row{
		Time: min(e.Time, math.MaxInt64-1), ID: e.ID, Op: e.Op.String(), Monitor: e.Monitor, Policy: valid(e.Policy), Rule: valid(e.Rule),
		Severity: valid(e.Severity), Action: e.Action.String(), Message: valid(e.Message), Count: int64(min(e.Count, 1<<62)), PID: int64(e.PID), ExecID: e.ExecID, UserID: -1, //nolint:gosec // bounded
		NewPath: valid(e.Act.NewPath),
	}
	if e.Rung != pavise.RungNone {
		r.Rung = e.Rung.String()
	}
	if e.Op.OnFile() {
		r.FilePath = valid(e.File.Path)
	}
	if e.Op.OnSocket() {
		n := &e.Net
		r.NetFamily = pavise.FamilyNames.Name(uint64(n.Family))
		r.RemotePath, r.LocalPath = valid(n.RemotePath), valid(n.LocalPath)
		if n.Family == pavise.FamilyIPv4 || n.Family == pavise.FamilyIPv6 {
			r.RemotePort, r.LocalPort = int64(n.RemotePort), int64(n.LocalPort)
			r.RemoteAddress, scratch = address(&n.Remote, n.RemotePort, scratch)
			r.LocalAddress, _ = address(&n.Local, n.LocalPort, scratch)
		}
	}
	p := e.Process
	if p == nil {
		return
	}
	r.PID, r.ExecID = int64(p.PID), p.ExecID
	if !p.Unknown {
		r.UserID, r.UserName = int64(p.User.ID), valid(p.User.Name)
		r.ExePath, r.ExeDigest = valid(p.Exe.Path), valid(p.ExeDigest)
		r.Unit, r.Cgroup = valid(p.Unit), valid(p.Cgroup)
		if c := p.Container; c != nil {
			r.ContainerID, r.ContainerName, r.ContainerImage = valid(c.ID), valid(c.Name), valid(c.Image)
		}
		if pod := p.Pod; pod != nil {
			r.PodNamespace, r.PodName = valid(pod.Namespace), valid(pod.Name)
		}
	}
	if q := p.Parent; q != nil {
		r.ParentPID, r.ParentExePath = int64(q.PID), valid(q.Exe.Path)
	}
}

// address is an address as text, in scratch; what is left of that follows.
func address(a *[16]byte, port uint16, scratch []byte) (string, []byte) {
	if port == 0 && *a == ([16]byte{}) {
		return "", scratch // as in JSON: not known
	}
	b := netip.AddrFrom16(*a).Unmap().AppendTo(scratch[:0])
	return unsafe.String(unsafe.SliceData(b), len(b)), scratch[len(b):]
}

// valid is s as UTF-8, which readers of Parquet insist on: as in JSON, U+FFFD stands for each byte that is none.
func valid(s string) string {
	if utf8.ValidString(s) {
		return s
	}
	return string([]rune(s))
}

var errShort = errors.New("it ends too early")

// encode appends r as the log holds it.
func (r *Row) encode(b []byte) []byte {
	for i := range columns {
		switch c := &columns[i]; {
		case c.text != nil:
			s := *c.text(r)
			b = append(binary.AppendUvarint(b, uint64(len(s))), s...)
		case c.num != nil:
			b = binary.AppendVarint(b, *c.num(r))
		case c.id != nil:
			b = binary.AppendUvarint(b, *c.id(r))
		case *c.is(r):
			b = append(b, 1)
		default:
			b = append(b, 0)
		}
	}
	return b // the rest of a record is the JSON
}

// decode is the reverse of encode. The JSON points into b.
func (r *Row) decode(b []byte, names *names) error {
	for i := range columns {
		c := &columns[i]
		v, n := binary.Uvarint(b)
		if c.num != nil {
			*c.num(r), n = binary.Varint(b)
		}
		if n <= 0 {
			return fmt.Errorf("column %s: %w", c.name, errShort)
		}
		b = b[n:]
		switch {
		case c.text != nil:
			if v > uint64(len(b)) {
				return fmt.Errorf("column %s: %w", c.name, errShort)
			}
			*c.text(r), b = names.of(b[:v]), b[v:]
		case c.id != nil:
			*c.id(r) = v
		case c.is != nil:
			*c.is(r) = v != 0
		}
	}
	r.JSON = slices.Clip(b) // who appends to it must not write over the next record
	return nil
}
