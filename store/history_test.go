package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/parquet-go/parquet-go"

	"github.com/pavise-project/pavise"
)

// begin is when the events of tests begin.
var begin = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// ages is for tests whose events are older than what is kept.
const ages = 100 * 365 * 24 * time.Hour

// long tells whether to try every byte, and many kills: make test does not wait for that.
func long() bool { return os.Getenv("PAVISE_LONG") != "" }

// eventAt is the n-th event of a machine that does much the same all day, and now and then something else. One event follows the other after a millisecond.
func eventAt(n int) *pavise.Event {
	r := rand.New(rand.NewPCG(uint64(n), 7))
	programs := []string{"/usr/sbin/nginx", "/usr/bin/python3.12", "/usr/bin/bash", "/usr/lib/systemd/systemd", "/usr/bin/postgres"}
	k := r.IntN(len(programs))
	pid := uint32(1000 + r.IntN(500))
	p := &pavise.Process{
		ExecID: 1<<63 + uint64(pid)<<8, PID: pid, StartTime: begin.UnixNano() + int64(pid)*1e6, Exe: pavise.FileInfo{Path: programs[k], Mode: 0o100755, Inode: uint64(100 + k), Links: 1, FS: "ext4"},
		Args: []string{programs[k], "-c", strconv.Itoa(int(pid))}, CWD: "/", User: pavise.User{ID: uint32(k), Name: "user" + strconv.Itoa(k)}, GroupID: uint32(k),
		Cgroup: "/system.slice/unit" + strconv.Itoa(k) + ".service", CgroupID: uint64(7000 + k), Unit: "unit" + strconv.Itoa(k) + ".service", ParentExecID: 1 << 63,
		Namespaces: pavise.Namespaces{Mnt: 4026531840, PID: 4026531836, Net: 4026531992, User: 4026531837, Cgroup: 4026531835, UTS: 4026531838, IPC: 4026531839, Host: pavise.NSAll},
		Parent:     &pavise.Process{ExecID: 1 << 63, PID: 1, Exe: pavise.FileInfo{Path: "/usr/lib/systemd/systemd"}},
	}
	if k == 1 {
		p.Container = &pavise.Container{ID: strings.Repeat("ab", 32), Runtime: "containerd", Name: "web", Image: "shop/web:1.2"}
		p.Pod = &pavise.Pod{Namespace: "shop", Name: "web-0", Labels: map[string]string{"app": "web"}}
	}
	e := &pavise.Event{
		ID: uint64(n + 1), Time: begin.UnixNano() + int64(n)*1e6, Op: pavise.OpOpen, Action: pavise.ActionAudit, Rung: pavise.RungLSM, Policy: "files", Rule: "reads",
		Severity: "low", Matched: 1, Count: 1, PID: pid, ExecID: p.ExecID, Process: p,
	}
	switch r.IntN(10) {
	case 0:
		e.Op, e.Rung, e.Policy, e.Rule = pavise.OpConnect, pavise.RungCgroup, "egress", "internet"
		e.Net = pavise.NetInfo{Family: pavise.FamilyIPv4, Type: pavise.TypeStream, Protocol: pavise.ProtocolTCP, RemotePort: 443, LocalPort: uint16(32768 + r.IntN(20000)),
			Remote: netip.AddrFrom4([4]byte{192, 0, 2, byte(r.IntN(256))}).As16(), Local: netip.AddrFrom4([4]byte{10, 0, 0, 2}).As16()}
		e.Net.Remote[10], e.Net.Remote[11], e.Net.Local[10], e.Net.Local[11] = 0xff, 0xff, 0xff, 0xff
	case 1:
		e.Op, e.Action, e.Rung, e.Policy, e.Rule, e.Severity, e.Matched, e.Count = pavise.OpExit, 0, 0, "", "", "", 0, 0
		e.Exit = pavise.ExitInfo{Code: uint8(r.IntN(3))}
	default:
		e.File = pavise.FileInfo{Path: fmt.Sprintf("/srv/www/%d/page%d.html", r.IntN(20), r.IntN(200)), Access: pavise.AccessRead, Mode: 0o100644, Dev: 8 << 20, Inode: r.Uint64N(1 << 20), Links: 1, FS: "ext4"}
	}
	if n%5000 == 4321 {
		e.Op, e.Action, e.Monitor, e.Policy, e.Rule, e.Severity, e.Message = pavise.OpOpen, pavise.ActionDeny, true, "secrets", "shadow", "high", "reads the shadow file"
		e.Net, e.Exit = pavise.NetInfo{}, pavise.ExitInfo{}
		e.File = pavise.FileInfo{Path: "/etc/shadow", Access: pavise.AccessRead | pavise.AccessWrite, Mode: 0o100640, Inode: 5, FS: "ext4"}
	}
	return e
}

// oddEvents have what is rare, and what someone would like to be read wrong.
func oddEvents() []*pavise.Event {
	hostile := eventAt(4321)
	hostile.File.Path = "/tmp/\x1b[2J\"\\\n\x00\xff\xfe" + string(recordMark) + "\U0001F600"
	hostile.Process.Exe.Path = strings.Repeat("/\xf5p", 700)
	hostile.Message = strings.Repeat("x", 100_000)
	unix := eventAt(0)
	unix.Op, unix.Net = pavise.OpConnect, pavise.NetInfo{Family: pavise.FamilyUnix, Type: pavise.TypeDgram, RemotePath: "@a\x00b", LocalPath: "/run/x"}
	unix.File = pavise.FileInfo{}
	return []*pavise.Event{
		hostile, unix, {}, {Op: pavise.OpFork, Time: -5}, {ID: 1<<64 - 1, Op: pavise.OpExit, PID: 7, ExecID: 1<<64 - 1, Count: 1<<64 - 1},
		{Op: pavise.OpLost, Lost: pavise.LostInfo{Op: pavise.OpOpen, Where: "kernel-ring", Count: 9}},
		{Op: pavise.OpRename, Action: pavise.ActionKill, File: pavise.FileInfo{Path: "/a", Inode: 5}, Act: pavise.ActInfo{NewPath: "/b"}},
	}
}

func openHistory(t testing.TB, dir string, o Options) (*History, Recovered) {
	t.Helper()
	if o.MaxAge == 0 {
		o.MaxAge = ages
	}
	h, rec, err := OpenHistory(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = h.Close() })
	return h, rec
}

func do(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// seal makes a segment of what is in the log.
func seal(t testing.TB, h *History) {
	t.Helper()
	h.mu.Lock()
	h.begun = h.o.Mono() - h.o.LogAge
	h.mu.Unlock()
	do(t, h.Tick())
	do(t, h.Seal(t.Context()))
}

// read are the rows that a query gets.
func read(t testing.TB, h *History, q Query) (rows []Row, res Scanned) {
	t.Helper()
	res, err := h.Scan(t.Context(), q, func(r *Row) error {
		c := *r
		c.JSON = bytes.Clone(r.JSON)
		rows = append(rows, c)
		return nil
	})
	do(t, err)
	if int(res.Rows) != len(rows) {
		t.Errorf("%d rows, told of %d", len(rows), res.Rows)
	}
	return rows, res
}

// rowOf is what the history must give back of an event.
func rowOf(e *pavise.Event) (r Row) {
	r.fill(e, make([]byte, 128))
	r.JSON = e.AppendJSON(nil)
	return r
}

func TestHistoryRoundTrip(t *testing.T) {
	t.Parallel()
	h, _ := openHistory(t, t.TempDir(), Options{})
	var want []Row
	add := func(events ...*pavise.Event) {
		for _, e := range events {
			do(t, h.Append(e))
			want = append(want, rowOf(e))
		}
	}
	check := func() {
		t.Helper()
		rows, res := read(t, h, Query{Columns: Columns()})
		if res.Lost != 0 || len(res.Damaged) != 0 {
			t.Errorf("%+v", res)
		}
		if len(rows) != len(want) {
			t.Fatalf("%d rows, not %d", len(rows), len(want))
		}
		for i := range rows {
			if !reflect.DeepEqual(rows[i], want[i]) {
				t.Fatalf("row %d: got\n%.2000v\nwant\n%.2000v", i, rows[i], want[i])
			}
			if i%100 == 0 || i >= rowGroup {
				if _, err := pavise.ParseEvent(rows[i].JSON); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	check()
	for n := range rowGroup + 100 { // a row group, and another
		add(eventAt(n))
	}
	add(oddEvents()...)
	check()
	seal(t, h)
	check()
	add(oddEvents()...)
	check()
	if s := h.Stats(); s.Segments != 1 || s.Appended != uint64(len(want)) || s.Unsynced == 0 {
		t.Errorf("%+v", s)
	}
	// Any other reader: a Parquet file of these columns with statistics.
	p, err := listParts(h.dir)
	do(t, err)
	f, err := os.Open(p.segments[0].name)
	do(t, err)
	defer f.Close()
	pf, err := parquet.OpenFile(f, p.segments[0].size)
	do(t, err)
	md := pf.Metadata()
	if len(md.RowGroups) != 2 || pf.NumRows() != int64(rowGroup+100+len(oddEvents())) {
		t.Errorf("%d row groups, %d rows", len(md.RowGroups), pf.NumRows())
	}
	for _, c := range md.RowGroups[0].Columns {
		name := c.MetaData.PathInSchema[0]
		if c.MetaData.Codec.String() != "ZSTD" || slices.Contains([]string{"time", "op", "policy", "exe_path", "file_path", "user_id"}, name) && len(c.MetaData.Statistics.MaxValue) == 0 {
			t.Errorf("column %s: %s, %+v", name, c.MetaData.Codec, c.MetaData.Statistics)
		}
	}
	type some struct {
		Time time.Time `parquet:"time,timestamp(nanosecond)"`
		Op   string    `parquet:"op"`
		User *int64    `parquet:"user_id,optional"`
	}
	rows, err := parquet.ReadFile[some](p.segments[0].name)
	do(t, err)
	if first := eventAt(0); !rows[0].Time.Equal(begin) || rows[0].Op != first.Op.String() || *rows[0].User != int64(first.Process.User.ID) || rows[len(rows)-1].User != nil {
		t.Errorf("%+v", rows[0])
	}
}

// TestHistoryQuery holds that what a query gets is what going through all rows gets.
// A caller that appends to what it gets changes nothing of what it will get.
func TestHistoryRowIsItsOwn(t *testing.T) {
	t.Parallel()
	h, _ := openHistory(t, t.TempDir(), Options{})
	for i := range 6 {
		do(t, h.Append(eventAt(i)))
		if i == 2 {
			seal(t, h)
		}
	}
	n := 0
	res, err := h.Scan(t.Context(), Query{Columns: Columns()}, func(r *Row) error {
		if want := string(eventAt(n).AppendJSON(nil)); string(r.JSON) != want {
			t.Errorf("event %d is %s", n, r.JSON)
		}
		_ = append(r.JSON, "something else"...)
		n++
		return nil
	})
	if do(t, err); n != 6 || res.Lost != 0 || len(res.Damaged) != 0 {
		t.Errorf("%d events, %+v", n, res)
	}
}

func TestHistoryQuery(t *testing.T) {
	t.Parallel()
	h, _ := openHistory(t, t.TempDir(), Options{})
	const n = 3000
	for i := range n {
		e := eventAt(i)
		if i >= 2000 { // the clock was set back
			e.Time -= int64(1500 * time.Millisecond)
		}
		do(t, h.Append(e))
		if i == 1000 || i == 2500 {
			seal(t, h)
		}
	}
	all, _ := read(t, h, Query{Columns: Columns()})
	if len(all) != n {
		t.Fatal(len(all))
	}
	at := func(ms int) time.Time { return begin.Add(time.Duration(ms) * time.Millisecond) }
	for _, q := range []Query{
		{}, {From: at(500)}, {To: at(600)}, {From: at(700), To: at(1300)}, {From: at(99999)}, {To: at(0)}, {From: at(1500), To: at(1501)},
		{Equal: map[string][]string{"op": {"net.connect"}}},
		{Equal: map[string][]string{"op": {"net.connect", "process.exit"}}, From: at(900), To: at(1700)},
		{Equal: map[string][]string{"exe_path": {"/usr/bin/bash"}, "op": {"file.open"}, "policy": {"files"}}},
		{Equal: map[string][]string{"exe_path": {"/usr/bin/nothing"}}},
		{Equal: map[string][]string{"file_path": {}}},
		{Equal: map[string][]string{"policy": {""}}},
		{From: time.Unix(-1<<40, 0), To: time.Unix(1<<40, 0)}, {From: time.Unix(1<<40, 0)},
	} {
		q.Columns = []string{"id", columnJSON}
		var done, total int64
		q.Progress = func(d, all int64) {
			if d < done || d > all {
				t.Errorf("progress from %d to %d of %d", done, d, all)
			}
			done, total = d, all
		}
		rows, res := read(t, h, q)
		if done != total || res.Bytes != total || total == 0 {
			t.Errorf("progress ends with %d of %d, %d", done, total, res.Bytes)
		}
		p, err := q.plan(nil)
		do(t, err)
		want := slices.DeleteFunc(slices.Clone(all), func(r Row) bool { return !p.wants(&r) })
		if !slices.EqualFunc(rows, want, func(a, b Row) bool { return a.ID == b.ID && bytes.Equal(a.JSON, b.JSON) }) {
			t.Errorf("%+v: %d rows, not %d", q.Equal, len(rows), len(want))
		}
	}
	for _, q := range []Query{{Columns: []string{"x"}}, {Equal: map[string][]string{"pid": {"1"}}}, {Equal: map[string][]string{columnJSON: {"1"}}}} {
		if _, err := h.Scan(t.Context(), q, nil); err == nil {
			t.Errorf("%+v: no error", q)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := h.Scan(ctx, Query{}, func(*Row) error { return nil }); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	enough := errors.New("enough")
	if res, err := h.Scan(t.Context(), Query{}, func(*Row) error { return enough }); !errors.Is(err, enough) || res.Rows != 1 {
		t.Error(res, err)
	}
}

// TestHistoryCut cuts a log at every byte: what is whole is there, the rest is told, and the log goes on.
func TestHistoryCut(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	h, _ := openHistory(t, dir, Options{})
	ends := []int64{int64(len(logHeader))}
	for n := range 3 {
		do(t, h.Append(&pavise.Event{ID: uint64(n + 1), Op: pavise.OpFork, Time: int64(n)}))
		do(t, h.Flush())
		ends = append(ends, h.size)
	}
	do(t, h.Close())
	data, err := os.ReadFile(h.logName(1))
	do(t, err)
	for cut := range len(data) + 1 {
		do(t, os.WriteFile(h.logName(1), data[:cut], 0o600))
		whole, end := 0, int64(0)
		for i, e := range ends {
			if e <= int64(cut) {
				whole, end = i, e
			}
		}
		h, rec, err := OpenHistory(dir, Options{})
		do(t, err)
		if rec.Events != int64(whole) || rec.LostBytes != int64(cut)-end || len(rec.Damaged) != 0 {
			t.Fatalf("cut at %d: %+v", cut, rec)
		}
		do(t, h.Append(&pavise.Event{ID: 99, Op: pavise.OpFork}))
		rows, res := read(t, h, Query{Columns: []string{"id"}})
		if len(rows) != whole+1 || rows[whole].ID != 99 || res.Lost != 0 {
			t.Fatalf("cut at %d: %d rows, %+v", cut, len(rows), res)
		}
		name := h.active.Name()
		do(t, h.Close())
		do(t, os.Remove(name))
	}
}

// TestHistoryDamagedLog changes bytes of a log in turn: at most the record that it is in is lost, and that is told.
func TestHistoryDamagedLog(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	h, _ := openHistory(t, dir, Options{})
	var ends []int64
	for n := range 3 {
		do(t, h.Append(&pavise.Event{ID: uint64(n + 1), Op: pavise.OpFork}))
		do(t, h.Flush())
		ends = append(ends, h.size)
	}
	do(t, h.Close())
	data, err := os.ReadFile(h.logName(1))
	do(t, err)
	step := 5
	if long() {
		step = 1
	}
	for at := len(logHeader); at < len(data); at += step {
		bad := bytes.Clone(data)
		bad[at] ^= 0x41
		do(t, os.WriteFile(h.logName(1), bad, 0o600))
		h, rec, err := OpenHistory(dir, Options{})
		do(t, err)
		if rec.Events != 2 || rec.LostBytes == 0 {
			t.Fatalf("byte %d: %+v", at, rec)
		}
		do(t, h.Seal(t.Context()))
		do(t, h.Append(&pavise.Event{ID: 99, Op: pavise.OpFork}))
		rows, _ := read(t, h, Query{Columns: []string{"id"}})
		lost := uint64(1)
		for int64(at) >= ends[lost-1] {
			lost++
		}
		if len(rows) != 3 || rows[2].ID != 99 || slices.ContainsFunc(rows, func(r Row) bool { return r.ID == lost }) {
			t.Fatalf("byte %d: %+v", at, rows)
		}
		do(t, h.Close())
		names, err := filepath.Glob(filepath.Join(dir, "*"))
		do(t, err)
		for _, n := range names {
			do(t, os.Remove(n))
		}
	}
	other := []byte("something else\nthat is no history")
	do(t, os.WriteFile(h.logName(1), other, 0o600))
	h, rec := openHistory(t, dir, Options{})
	if len(rec.Damaged) != 1 || !errors.Is(rec.Damaged[0], ErrDamaged) {
		t.Errorf("%+v", rec)
	}
	aside := h.logName(1) + damagedSuffix
	if b, err := os.ReadFile(aside); err != nil || !bytes.Equal(b, other) {
		t.Errorf("%q, %v", b, err)
	}
	if s := h.Stats(); s.Bytes != int64(len(other)+len(logHeader)) {
		t.Errorf("%d bytes", s.Bytes)
	}
	do(t, h.Close())
	// It is of no use but to a person: when there is too much, it goes first.
	h, rec = openHistory(t, dir, Options{MaxBytes: 40, LogBytes: 1 << 20})
	if _, err := os.Stat(aside); !errors.Is(err, fs.ErrNotExist) || len(rec.Damaged) != 0 || h.Stats().Removed != 1 {
		t.Errorf("%v, %+v, %+v", err, rec, h.Stats())
	}
}

// TestHistoryDamagedSegment changes bytes all over a segment: a scan gives what was written, or tells of damage and goes on.
func TestHistoryDamagedSegment(t *testing.T) {
	t.Parallel()
	h, _ := openHistory(t, t.TempDir(), Options{})
	var want []Row
	for n := range 60 {
		do(t, h.Append(eventAt(n)))
		want = append(want, rowOf(eventAt(n)))
	}
	seal(t, h)
	do(t, h.Append(eventAt(1000)))
	last := rowOf(eventAt(1000))
	name := h.segments[0].name
	data, err := os.ReadFile(name)
	do(t, err)
	told := 0
	check := func(what string, bad []byte) {
		t.Helper()
		do(t, os.WriteFile(name, bad, 0o600))
		rows, res := read(t, h, Query{Columns: Columns()})
		told += len(res.Damaged)
		whole := len(want)
		if len(res.Damaged) > 0 {
			whole = len(rows) - 1
		}
		if len(rows) != whole+1 || !reflect.DeepEqual(rows[whole], last) {
			t.Fatalf("%s: %d rows, damaged %v", what, len(rows), res.Damaged)
		}
		for i := range whole {
			if !reflect.DeepEqual(rows[i], want[i]) {
				t.Fatalf("%s: row %d is another, and no damage is told", what, i)
			}
		}
	}
	changed := 0
	step := 53
	if long() {
		step = 1
	}
	for at := 0; at < len(data); at += step {
		bad := bytes.Clone(data)
		bad[at] ^= 0x55
		changed++
		check("byte "+strconv.Itoa(at), bad)
	}
	for _, n := range []int{0, 1, 4, 12, len(data) / 2, len(data) - 1} {
		check("cut at "+strconv.Itoa(n), data[:n])
	}
	if told < changed/2 {
		t.Errorf("%d of %d changes were told", told, changed)
	}
	t.Logf("%d bytes, %d of %d changes told", len(data), told, changed)
}

func TestHistoryCrashWhileSealing(t *testing.T) {
	dir := t.TempDir()
	h, _ := openHistory(t, dir, Options{})
	for n := range 10 {
		do(t, h.Append(eventAt(n)))
	}
	do(t, h.Flush())
	log, err := os.ReadFile(h.logName(1))
	do(t, err)
	seal(t, h)
	do(t, h.Close())
	// The segment was there, the log not yet gone, and another segment was being written.
	do(t, os.WriteFile(h.logName(1), log, 0o600))
	do(t, os.WriteFile(filepath.Join(dir, ".new-1"), []byte("PAR1"), 0o600))
	n := 0
	if res, err := Scan(t.Context(), dir, Query{}, func(*Row) error { n++; return nil }); err != nil || n != 10 {
		t.Fatal(n, res, err)
	}
	h, rec := openHistory(t, dir, Options{})
	if rows, _ := read(t, h, Query{}); len(rows) != 10 || rec.Events != 0 {
		t.Errorf("%d rows, %+v", len(rows), rec)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, ".new-*")); left != nil {
		t.Error(left)
	}
	if _, _, err := OpenHistory(dir, Options{}); !errors.Is(err, ErrInUse) {
		t.Errorf("a second one: %v", err)
	}
}

func TestHistoryLimits(t *testing.T) {
	t.Parallel()
	now, mono := begin, time.Duration(0)
	o := Options{MaxBytes: 200 << 10, LogBytes: 64 << 10, MaxAge: 24 * time.Hour, Now: func() time.Time { return now }, Mono: func() time.Duration { return mono }}
	pass := func(d time.Duration) { now, mono = now.Add(d), mono+d }
	h, _ := openHistory(t, t.TempDir(), o)
	n := 0
	for range 200 {
		for range 100 {
			e := eventAt(n)
			e.Message = strconv.FormatUint(rand.Uint64(), 36) + strconv.FormatUint(rand.Uint64(), 36)
			do(t, h.Append(e))
			n++
		}
		pass(time.Second)
		do(t, h.Tick())
		do(t, h.Seal(t.Context()))
		if s := h.Stats(); s.Bytes > o.MaxBytes+o.LogBytes*3 {
			t.Fatalf("%+v", s)
		}
	}
	do(t, h.Tick())
	s := h.Stats()
	rows, _ := read(t, h, Query{Columns: []string{"id"}})
	if s.Bytes > o.MaxBytes || s.Removed == 0 || s.Segments == 0 || len(rows) == 0 || rows[len(rows)-1].ID != uint64(n) || rows[0].ID != uint64(n-len(rows)+1) {
		t.Errorf("%+v, %d rows", s, len(rows))
	}
	seal(t, h)
	do(t, h.Tick())
	before := h.Stats()
	// The clock is set a year ahead: nothing goes for its age, until an hour later.
	now = now.Add(365 * 24 * time.Hour)
	for range 59 {
		do(t, h.Tick())
		pass(time.Minute)
	}
	if s := h.Stats(); s.Segments != before.Segments || s.Jumps != 1 || s.Segments == 0 {
		t.Errorf("%+v, before %+v", s, before)
	}
	// And back: what is to come is not old.
	now = now.Add(-2 * 365 * 24 * time.Hour)
	pass(2 * time.Hour)
	do(t, h.Tick())
	if s := h.Stats(); s.Segments != before.Segments || s.Jumps != 1 {
		t.Errorf("%+v, before %+v", s, before)
	}
	// A day passes.
	now = begin.Add(25 * time.Hour)
	do(t, h.Tick()) // a jump
	pass(2 * time.Hour)
	do(t, h.Tick())
	if s := h.Stats(); s.Segments != 0 || s.Jumps != 2 {
		t.Errorf("%+v", s)
	}
}

// TestHistoryFullDisk writes to a file system of one MiB, which someone else fills and clears.
func TestHistoryFullDisk(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Skip("mount: ", err)
	}
	defer func() { _ = syscall.Unmount(dir, 0) }()
	h, _ := openHistory(t, filepath.Join(dir, "history"), Options{MaxBytes: 1 << 30, LogBytes: 100 << 10})
	defer h.Close()
	n := 0
	other, err := os.OpenFile(filepath.Join(dir, "other"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	do(t, err)
	defer other.Close()
	greedy := false
	add := func(many int) (dropped int) {
		for range many {
			e := eventAt(n)
			e.Message = strconv.FormatUint(rand.Uint64(), 36) + strconv.FormatUint(rand.Uint64(), 36)
			n++
			if err := errors.Join(h.Append(e), h.Flush()); err != nil {
				if !errors.Is(err, syscall.ENOSPC) {
					t.Fatal(err)
				}
				dropped++
			}
			if n%50 == 0 {
				if greedy {
					if _, err := other.Write(make([]byte, 2<<20)); !full(err) {
						t.Fatal(err)
					}
				}
				if err := errors.Join(h.Tick(), h.Seal(t.Context())); err != nil && !full(err) {
					t.Fatal(err)
				}
			}
		}
		return dropped
	}
	if d := add(4000); d != 0 {
		t.Errorf("%d dropped while there were segments to remove", d)
	}
	if s := h.Stats(); s.Removed == 0 || s.Dropped != 0 {
		t.Errorf("%+v", s)
	}
	greedy = true
	d := add(1000)
	greedy = false
	// The last record that was kept is whole: nothing that Append took is lost but with its segment.
	s := h.Stats()
	if d == 0 || s.Dropped != uint64(d) {
		t.Errorf("%d dropped, %+v", d, s)
	}
	do(t, other.Truncate(0))
	if d := add(100); d != 0 {
		t.Errorf("%d dropped when there was room again", d)
	}
	rows, res := read(t, h, Query{Columns: []string{"id"}})
	if len(rows) < 100 || rows[len(rows)-1].ID != uint64(n) || rows[len(rows)-100].ID != uint64(n-99) || res.Lost != 0 || len(res.Damaged) != 0 {
		t.Errorf("%d rows, %+v", len(rows), res)
	}
}

func TestHistoryReadOnly(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", syscall.MS_RDONLY, "size=1m"); err != nil {
		t.Skip("mount: ", err)
	}
	defer func() { _ = syscall.Unmount(dir, 0) }()
	if _, _, err := OpenHistory(dir, Options{}); !errors.Is(err, syscall.EROFS) {
		t.Error(err)
	}
}

// TestHistoryChild is the child of TestHistoryKilled: it appends until it is killed, and says on file 3 which event it brought to the disk last.
func TestHistoryChild(t *testing.T) {
	dir := os.Getenv("PAVISE_TEST_HISTORY")
	if dir == "" {
		t.Skip("the child of TestHistoryKilled")
	}
	out := os.NewFile(3, "acknowledged")
	h, rec, err := OpenHistory(dir, Options{LogBytes: 20 << 10, MaxAge: ages})
	do(t, err)
	if len(rec.Damaged) != 0 {
		t.Fatal(rec)
	}
	next := 0
	if _, err := h.Scan(t.Context(), Query{Columns: []string{"id"}}, func(r *Row) error { next = int(r.ID); return nil }); err != nil {
		t.Fatal(err)
	}
	go func() {
		for t.Context().Err() == nil {
			do(t, h.Seal(t.Context()))
			time.Sleep(100 * time.Microsecond)
		}
	}()
	for {
		for range 10 {
			do(t, h.Append(eventAt(next)))
			next++
		}
		do(t, h.Tick())
		fmt.Fprintln(out, next)
	}
}

// TestHistoryKilled kills a process that appends at random points, again and again: all that it was told is on the disk is there, each
// event once, in order.
func TestHistoryKilled(t *testing.T) { // not parallel: what it forks holds the locks of other tests until it execs
	dir := t.TempDir()
	rounds := 5
	if long() {
		rounds = 60
	}
	acknowledged, events := 0, 0
	for round := range rounds {
		r, w, err := os.Pipe()
		do(t, err)
		cmd := exec.Command(os.Args[0], "-test.run=^TestHistoryChild$")
		cmd.Env = append(os.Environ(), "PAVISE_TEST_HISTORY="+dir)
		cmd.ExtraFiles = []*os.File{w}
		var said bytes.Buffer
		cmd.Stdout, cmd.Stderr = &said, &said
		do(t, cmd.Start())
		_ = w.Close()
		// Killed in the midst of it: when the pipe has said so much, and a little later.
		buf := make([]byte, 64<<10)
		var all []byte
		for want := rand.IntN(400); len(all) < want; {
			n, err := r.Read(buf)
			all = append(all, buf[:n]...)
			if err != nil {
				break
			}
		}
		time.Sleep(time.Duration(rand.IntN(3000)) * time.Microsecond)
		do(t, cmd.Process.Kill())
		if err := cmd.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
			t.Fatalf("%v: %s", err, &said)
		}
		for {
			n, err := r.Read(buf)
			all = append(all, buf[:n]...)
			if err != nil {
				break
			}
		}
		_ = r.Close()
		if lines := strings.Fields(string(all)); len(lines) > 0 {
			n, err := strconv.Atoi(lines[len(lines)-1])
			do(t, err)
			acknowledged = n
		}
		h, rec, err := OpenHistory(dir, Options{LogBytes: 20 << 10, MaxAge: ages})
		do(t, err)
		rows, res := read(t, h, Query{Columns: []string{"id"}})
		for i, row := range rows {
			if row.ID != uint64(i+1) { // an event's place is its ID
				t.Fatalf("round %d: row %d is event %d", round, i, row.ID)
			}
		}
		if len(rows) < acknowledged || len(rows) < events || res.Lost != 0 || len(res.Damaged) != 0 || len(rec.Damaged) != 0 {
			t.Fatalf("round %d: %d rows, %d acknowledged, %d before: %+v %+v", round, len(rows), acknowledged, events, rec, res)
		}
		events = len(rows)
		do(t, h.Close())
	}
	p, err := listParts(dir)
	do(t, err)
	if events == 0 || len(p.segments) == 0 {
		t.Errorf("%d events, %d segments", events, len(p.segments))
	}
	t.Logf("%d kills, %d events, %d segments", rounds, events, len(p.segments))
}

// FuzzHistoryLog reads any bytes as a log: no panic, the counts add up, and what is read is read again.
func FuzzHistoryLog(f *testing.F) {
	log := []byte(logHeader)
	for n := range 2 {
		e := eventAt(n)
		r := rowOf(e)
		b := append(r.encode(beginRecord(nil)), r.JSON...)
		endRecord(b)
		log = append(log, b...)
	}
	f.Add(log)
	f.Add(log[:len(log)-3])
	f.Add([]byte(logHeader + "\xf5p\xf5v"))
	f.Add([]byte(logHeader + "\xf5p\xf5\xf5p\xf5v\x00\x00\x00\x00\x00\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, data []byte) {
		var names names
		sum := int64(len(logHeader))
		again := []byte(logHeader)
		end, err := readLog(bytes.NewReader(data), func(payload []byte) error {
			sum += int64(recordHead + len(payload))
			b := append(beginRecord(nil), payload...)
			endRecord(b)
			again = append(again, b...)
			var r Row
			if r.decode(payload, &names) == nil {
				var back Row
				if err := back.decode(append(r.encode(nil), r.JSON...), &names); err != nil || !reflect.DeepEqual(back, r) {
					t.Errorf("got %+v, %v, not %+v", back, err, r)
				}
			}
			return nil
		})
		if err != nil {
			if !errors.Is(err, ErrDamaged) {
				t.Error(err)
			}
			return
		}
		if end.end == 0 {
			sum = 0
		}
		if sum+end.gap != end.end || end.end+end.tail != int64(len(data)) {
			t.Errorf("%+v of %d bytes, %d in records", end, len(data), sum)
		}
		if e, err := readLog(bytes.NewReader(again), func([]byte) error { return nil }); err != nil || e.records != end.records || e.gap+e.tail != 0 {
			t.Errorf("again: %+v, %v", e, err)
		}
	})
}

func BenchmarkHistoryAppend(b *testing.B) {
	h, _ := openHistory(b, b.TempDir(), Options{LogBytes: 1 << 40})
	var events []*pavise.Event
	for n := range 4096 {
		events = append(events, eventAt(n))
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if err := h.Append(events[i%len(events)]); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(h.size)/float64(b.N), "log-B/event")
}

// BenchmarkHistorySeal is how long a segment takes, and what an event takes in it.
func BenchmarkHistorySeal(b *testing.B) {
	h, _ := openHistory(b, b.TempDir(), Options{LogBytes: 1 << 40})
	const n = 50_000
	for i := range n {
		do(b, h.Append(eventAt(i)))
	}
	f, err := os.Open(h.logName(1))
	do(b, err)
	defer f.Close()
	size := int64(0)
	for b.Loop() {
		_, err := f.Seek(0, 0)
		do(b, err)
		s, _, err := writeSegment(b.TempDir(), 1, f)
		do(b, err)
		size = s.size
	}
	b.ReportMetric(float64(size)/n, "B/event")
	b.ReportMetric(n*float64(b.N)/b.Elapsed().Seconds(), "events/s")
}

func BenchmarkHistoryScan(b *testing.B) {
	h, _ := openHistory(b, b.TempDir(), Options{LogBytes: 1 << 40})
	const n = 200_000
	for i := range n {
		do(b, h.Append(eventAt(i)))
		if i%50_000 == 49_999 {
			seal(b, h)
		}
	}
	for _, c := range []struct {
		name string
		q    Query
		want int64
	}{
		{"all", Query{Columns: Columns()}, n},
		{"count-by-op", Query{Columns: []string{"op"}}, n},
		{"denied-as-json", Query{Columns: []string{columnJSON}, Equal: map[string][]string{"action": {"deny"}}}, n / 5000},
		{"a-program-that-is-not-there", Query{Columns: []string{columnJSON}, Equal: map[string][]string{"exe_path": {"/usr/bin/nc"}}}, 0},
		{"a-second", Query{Columns: []string{columnJSON}, From: begin.Add(100 * time.Second), To: begin.Add(101 * time.Second)}, 1000},
	} {
		b.Run(c.name, func(b *testing.B) {
			for b.Loop() {
				res, err := h.Scan(b.Context(), c.q, func(*Row) error { return nil })
				if err != nil || res.Rows != c.want {
					b.Fatal(res, err)
				}
			}
			b.ReportMetric(n*float64(b.N)/b.Elapsed().Seconds(), "events/s")
		})
	}
}
