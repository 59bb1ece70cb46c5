package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pavise-project/pavise"
	"github.com/pavise-project/pavise/policy"
	"github.com/pavise-project/pavise/store"
)

// withHistory keeps events in a directory.
func withHistory(t *testing.T, dir string) func(*Config) {
	return func(c *Config) {
		c.StateDir, c.HistoryBytes = dir, 64<<20
		c.Policies = parse(t, shadow("secrets", "enforce"))
	}
}

// openEvents are n events of a file that is opened, and that are denied but for every tenth.
func openEvents(f *fake, n int) {
	exec := &pavise.Event{Op: pavise.OpExec, PID: 9100001, ExecID: 5, Time: time.Now().UnixNano()}
	exec.Exec.Exe.Path, exec.Exec.StartTime = "/usr/bin/cat", 2
	f.recs <- exec
	for i := range n {
		e := &pavise.Event{
			Op: pavise.OpOpen, PID: 9100001, ExecID: 5, Time: time.Now().UnixNano(), Count: 3,
			Action: pavise.ActionDeny, Matched: 1, Gen: 1, File: pavise.FileInfo{Path: fmt.Sprintf("/etc/shadow%d", i%2)},
		}
		if i%10 == 9 {
			e.Action, e.Monitor = pavise.ActionKill, true
		}
		f.recs <- e
	}
}

// awaitStatus asks for the status until it is as it should be.
func awaitStatus(t *testing.T, c *Client, ok func(*Status) bool) *Status {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for {
		s, err := c.Status(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if ok(s) {
			return s
		}
	}
}

// ask are the events, as JSON, and the groups that a search gets.
func askHistory(t *testing.T, search func(HistoryQuery, func(*HistoryLine) error) error, q HistoryQuery) (events []string, groups []string, end *ScanEnd) {
	t.Helper()
	err := search(q, func(l *HistoryLine) error {
		switch {
		case l.Event != nil:
			events = append(events, string(l.Event))
		case l.Group != nil:
			groups = append(groups, fmt.Sprintf("%s %d %d", strings.Join(l.Group.Values, " "), l.Group.Events, l.Group.Count))
		case l.End != nil:
			end = l.End
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return events, groups, end
}

func TestHistoryIsKeptAndSearched(t *testing.T) {
	dir := t.TempDir()
	begin := time.Now()
	t.Run("first", func(t *testing.T) {
		f := newFake()
		_, c := running(t, f, withHistory(t, dir))
		openEvents(f, 40)
		s := awaitStatus(t, c, func(s *Status) bool { return s.History.Written == 41 })
		if !s.History.On || s.History.Error != "" || s.History.Dropped != 0 || s.History.Bytes == 0 || s.History.Recovered != nil {
			t.Errorf("%+v", s.History)
		}
		all := func(q HistoryQuery, fn func(*HistoryLine) error) error { return c.History(t.Context(), q, fn) }
		events, _, end := askHistory(t, all, HistoryQuery{Limit: -1})
		if len(events) != 41 || end.Matched != 41 || end.Cut || !strings.Contains(events[0], `"/usr/bin/cat"`) || !strings.Contains(events[40], `"rule":"shadow"`) {
			t.Errorf("%d events, %+v: %q", len(events), end, events[0])
		}
		events, _, end = askHistory(t, all, HistoryQuery{Limit: 2, Where: `action == "kill" && file.path.endsWith("1")`})
		if len(events) != 2 || end.Matched != 2 || !end.Cut || !strings.Contains(events[1], `"id":21`) {
			t.Errorf("%d events, %+v: %q", len(events), end, events)
		}
		// What stands in columns, and what does not.
		for _, by := range []string{"process.exe.name", "process.script.path"} {
			_, groups, end := askHistory(t, all, HistoryQuery{Limit: 2, GroupBy: []string{"file.path", "action", by}, Where: `op == "file.open"`})
			name := map[string]string{"process.exe.name": "cat"}[by]
			if want := []string{"/etc/shadow0 deny " + name + " 20 60", "/etc/shadow1 deny " + name + " 16 48"}; !slices.Equal(groups, want) || !end.Cut || end.Matched != 40 {
				t.Errorf("%s: %q, %+v", by, groups, end)
			}
		}
		for _, q := range []HistoryQuery{{From: time.Now(), Limit: -1}, {To: begin, Limit: -1}, {Limit: -1, Where: `op == "net.bind"`}} {
			if events, _, _ := askHistory(t, all, q); len(events) != 0 {
				t.Errorf("%+v: %d events", q, len(events))
			}
		}
		var ae *APIError
		for q, want := range map[*HistoryQuery]string{
			{Where: "file.path =="}:         ":1:13:",
			{Where: "file.pth == \"\""}:     "did you mean",
			{GroupBy: []string{"file.pth"}}: `unknown field "file.pth"`,
		} {
			err := c.History(t.Context(), *q, func(*HistoryLine) error { return nil })
			if !errors.As(err, &ae) || ae.Status != 422 || !strings.Contains(policyErrors(ae), want) {
				t.Errorf("%+v: %v %q", q, err, policyErrors(ae))
			}
		}
		if s, err := c.Status(t.Context()); err != nil || s.Subscribers != 0 {
			t.Errorf("%d subscribers, %v", s.Subscribers, err)
		}
	})
	t.Run("after a restart", func(t *testing.T) {
		f := newFake()
		_, c := running(t, f, withHistory(t, dir))
		openEvents(f, 1)
		s := awaitStatus(t, c, func(s *Status) bool { return s.History.Written == 2 })
		if r := s.History.Recovered; r == nil || r.Events != 41 || r.LostBytes != 0 || r.Until.Before(begin) || len(r.Damaged) > 0 {
			t.Errorf("%+v", r)
		}
		events, _, _ := askHistory(t, func(q HistoryQuery, fn func(*HistoryLine) error) error { return c.History(t.Context(), q, fn) }, HistoryQuery{Limit: -1})
		if len(events) != 43 {
			t.Errorf("%d events", len(events))
		}
	})
	t.Run("without an agent", func(t *testing.T) {
		_, groups, end := askHistory(t, func(q HistoryQuery, fn func(*HistoryLine) error) error {
			return ReadHistory(t.Context(), filepath.Join(dir, HistoryDir), q, fn)
		}, HistoryQuery{Limit: -1, GroupBy: []string{"op"}})
		if want := []string{"file.open 41 123", "process.exec 2 2"}; !slices.Equal(groups, want) || end.Lost != 0 {
			t.Errorf("%q, %+v", groups, end)
		}
	})
}

func policyErrors(ae *APIError) string {
	var b strings.Builder
	if ae == nil {
		return ""
	}
	for _, d := range ae.Details {
		fmt.Fprintf(&b, "%s:%d:%d: %s (%s)\n", d.Field, d.Line, d.Column, d.Msg, d.Hint)
	}
	return b.String()
}

// TestHistoryAfterKill starts from what a killed agent's directory is: all that the kernel was given, and half a record.
func TestHistoryAfterKill(t *testing.T) {
	dir := t.TempDir()
	killed := filepath.Join(t.TempDir(), "state")
	t.Run("killed", func(t *testing.T) {
		f := newFake()
		_, c := running(t, f, withHistory(t, dir))
		openEvents(f, 10)
		awaitStatus(t, c, func(s *Status) bool { return s.History.Written == 11 })
		if err := os.CopyFS(killed, os.DirFS(dir)); err != nil {
			t.Fatal(err)
		}
	})
	logs, _ := filepath.Glob(filepath.Join(killed, HistoryDir, "*.log"))
	if len(logs) != 1 {
		t.Fatal(logs)
	}
	b, err := os.ReadFile(logs[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(logs[0], b[:len(b)-7], 0o600); err != nil {
		t.Fatal(err)
	}
	f := newFake()
	_, c := running(t, f, withHistory(t, killed))
	openEvents(f, 1)
	s := awaitStatus(t, c, func(s *Status) bool { return s.History.Written == 2 })
	if r := s.History.Recovered; r == nil || r.Events != 10 || r.LostBytes < 100 {
		t.Errorf("%+v", r)
	}
	events, _, end := askHistory(t, func(q HistoryQuery, fn func(*HistoryLine) error) error { return c.History(t.Context(), q, fn) }, HistoryQuery{Limit: -1})
	if len(events) != 12 || end.Lost != 0 {
		t.Errorf("%d events, %+v", len(events), end)
	}
}

// TestHistoryFullDisk: events go on to be told, those that found no room are counted, and it is said why.
func TestHistoryFullDisk(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Skip("mount: ", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, 0) })
	f := newFake()
	told := make(chan *pavise.Event, 1000)
	_, c := running(t, f, func(c *Config) {
		withHistory(t, dir)(c)
		c.OnEvent = func(e *pavise.Event) { told <- e }
	})
	other := filepath.Join(dir, "other")
	if err := os.WriteFile(other, make([]byte, 1<<20), 0o600); !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	openEvents(f, 200)
	for range 201 {
		<-told
	}
	s := awaitStatus(t, c, func(s *Status) bool { return s.History.Written+s.History.Dropped == 201 && s.History.Error != "" })
	if s.History.Dropped == 0 || !strings.Contains(s.History.Error, "no space left on device") {
		t.Errorf("%+v", s.History)
	}
	if err := os.Remove(other); err != nil {
		t.Fatal(err)
	}
	before := s.History
	openEvents(f, 3)
	s = awaitStatus(t, c, func(s *Status) bool { return s.History.Written+s.History.Dropped == 205 && s.History.Error == "" })
	if s.History.Dropped != before.Dropped {
		t.Errorf("%+v", s.History)
	}
}

// TestHistoryCannotBeKept: an agent whose history cannot be opened runs without, and says why.
func TestHistoryCannotBeKept(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, HistoryDir), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, c := running(t, newFake(), withHistory(t, dir))
	s, err := c.Status(t.Context())
	if err != nil || s.History.On || !strings.Contains(s.History.Error, "not a directory") {
		t.Errorf("%+v, %v", s.History, err)
	}
	if err := c.History(t.Context(), HistoryQuery{}, nil); err == nil || !strings.Contains(err.Error(), "keeps no history: make the directory") {
		t.Error(err)
	}
}

// TestHistoryQueueKeepsRoomForVerdicts: when the disk stands still, audits do not push out what was denied.
func TestHistoryQueueKeepsRoomForVerdicts(t *testing.T) {
	h := newHub(8, 8)
	sub, err := h.subscribeDeep(16)
	if err != nil {
		t.Fatal(err)
	}
	for range 100 {
		h.publish(&pavise.Event{Op: pavise.OpOpen, Action: pavise.ActionAudit})
	}
	h.publish(&pavise.Event{Op: pavise.OpOpen, Action: pavise.ActionDeny})
	h.publish(&pavise.Event{Op: pavise.OpOpen, Action: pavise.ActionKill, Monitor: true})
	if n, lost := len(sub.ch), sub.lost[pavise.OpOpen].Load(); n != 16 || lost != 86 {
		t.Errorf("%d wait, %d are lost", n, lost)
	}
}

// TestHistoryColumns holds what is read from columns to what is read from the whole event, for every field that stands in one.
func TestHistoryColumns(t *testing.T) {
	full := &pavise.Process{
		ExecID: 7, PID: 77, Exe: pavise.FileInfo{Path: "/usr/bin/\xffcurl", Inode: 3}, ExeDigest: "sha256:" + strings.Repeat("0f", 32), User: pavise.User{ID: 33, Name: "www-data"}, Unit: "web.service",
		Cgroup: "/system.slice/web.service", Container: &pavise.Container{ID: strings.Repeat("ab", 32), Name: "web", Image: "nginx:1"}, Pod: &pavise.Pod{Namespace: "shop", Name: "web-0"},
		ParentExecID: 6, Parent: &pavise.Process{ExecID: 6, PID: 66, Exe: pavise.FileInfo{Path: "/usr/bin/bash"}},
	}
	var events []*pavise.Event
	for _, p := range []*pavise.Process{full, {ExecID: 9, PID: 99, Unknown: true}, {ExecID: 8, PID: 88, User: pavise.User{ID: 0, Name: "root"}}, nil} {
		for op := pavise.OpExec; op < pavise.NumOps; op++ {
			e := &pavise.Event{ID: uint64(len(events) + 1), Time: time.Now().UnixNano(), Op: op, Action: pavise.Action(len(events) % 5), Policy: "p", Rule: "r", Severity: "high", Process: p, Monitor: op%2 == 0, PID: 5}
			if op.OnFile() {
				e.File = pavise.FileInfo{Path: "/etc/a b\n", Inode: 4}
			}
			if op.OnSocket() {
				switch op % 3 {
				case 0:
					e.Net = pavise.NetInfo{Family: pavise.FamilyIPv4, RemotePort: 443, LocalPort: 40000, Remote: netip.MustParseAddr("::ffff:192.0.2.1").As16()}
				case 1:
					e.Net = pavise.NetInfo{Family: pavise.FamilyIPv6, RemotePort: 53, Remote: netip.MustParseAddr("2001:db8::1").As16(), Local: netip.MustParseAddr("2001:db8::2").As16()}
				default:
					e.Net = pavise.NetInfo{Family: pavise.FamilyUnix, RemotePath: "@x\x00y", LocalPath: "/run/s"}
				}
			}
			events = append(events, e)
		}
	}
	h, _, err := store.OpenHistory(t.TempDir(), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	for _, e := range events {
		if err := h.Append(e); err != nil {
			t.Fatal(err)
		}
	}
	for _, field := range slices.Sorted(maps.Keys(historyColumns)) {
		value, err := policy.FieldText(field)
		if err != nil {
			t.Fatal(err)
		}
		var whole []string
		read := func(hq HistoryQuery) (values []string) {
			r, q, err := newHistoryReader(hq)
			if err != nil {
				t.Fatal(err)
			}
			if r.whole {
				t.Errorf("%s is read from the whole event", field)
			}
			q.Columns = append(q.Columns, "event") // to compare
			if _, err := h.Scan(t.Context(), q, func(row *store.Row) error {
				e, ok, err := r.next(row)
				if ok {
					var all pavise.Event
					if err := all.UnmarshalJSON(row.JSON); err != nil {
						t.Fatal(err)
					}
					values, whole = append(values, value(e)), append(whole, value(&all))
				}
				return err
			}); err != nil {
				t.Fatal(err)
			}
			return values
		}
		values := read(HistoryQuery{GroupBy: []string{field}})
		if !slices.Equal(values, whole) || len(values) != len(events) {
			t.Errorf("%s: by column %q, whole %q", field, values, whole)
		}
		// And each value is found again, as often as it is there.
		found := map[string]int{}
		for _, v := range values {
			found[v]++
		}
		for v, n := range found {
			literal := policyString(v)
			if field == "monitor" || strings.HasSuffix(field, ".pid") || strings.HasSuffix(field, ".port") || field == "process.user.id" {
				literal = v
			}
			if got := read(HistoryQuery{Where: field + " == " + literal}); len(got) != n {
				t.Errorf("%s == %s: %d of %d", field, literal, len(got), n)
			}
		}
	}
}

// policyString is s as a literal of conditions.
func policyString(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range s {
		fmt.Fprintf(&b, `\U%08x`, r)
	}
	return b.String() + `"`
}
