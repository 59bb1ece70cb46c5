package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/pavise-project/pavise"
	"github.com/pavise-project/pavise/policy"
	"github.com/pavise-project/pavise/store"
)

// recorded is a search that gives lines, each an event but for what all have: ID and time count up by a millisecond.
func recorded(lines ...string) func(context.Context, HistoryQuery, func(*HistoryLine) error) error {
	return func(_ context.Context, q HistoryQuery, fn func(*HistoryLine) error) error {
		r, _, err := newHistoryReader(q)
		if err != nil {
			return err
		}
		for i, line := range lines {
			head := fmt.Sprintf(`{"id":%d,"time":"%s",`, i+1, time.Date(2026, 1, 2, 3, 4, 5, i*1e6, time.UTC).Format(time.RFC3339Nano))
			if strings.HasPrefix(line, `{"id"`) {
				head = "{"
			}
			row := store.Row{JSON: []byte(head + line[1:])}
			r.whole = true
			if _, ok, err := r.next(&row); err != nil || !ok {
				if err != nil {
					return err
				}
				continue
			}
			if err := fn(&HistoryLine{Event: row.JSON}); err != nil {
				return err
			}
		}
		return fn(&HistoryLine{End: &ScanEnd{Damaged: []string{"a.parquet"}, Lost: 7}})
	}
}

func replayed(t *testing.T, src string, q HistoryQuery, lines ...string) *Replay {
	t.Helper()
	ps, err := policy.Parse("c.yaml", []byte(src))
	if err != nil {
		t.Fatal(err)
	}
	r, err := RunReplay(t.Context(), ps, q, recorded(lines...), nil)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// told is a replay in a few words.
func told(r *Replay) string {
	var b strings.Builder
	for _, x := range r.Rules {
		fmt.Fprintf(&b, "%s/%s %s %s %s %d/%d already %d %s..%s\n", x.Policy, x.Rule, x.Operation, x.Action, x.Mode, x.Events, x.Count, x.Already.Events,
			x.First.Format("05.000"), x.Last.Format("05.000"))
		for _, s := range x.Subjects {
			fmt.Fprintf(&b, "  exe=%q parent=%q user=%q unit=%q container=%q %d/%d example %d %s\n", s.Exe, s.Parent, s.User, s.Unit, s.Container, s.Events, s.Count, s.Example.ID, s.Example.Object)
		}
	}
	for _, o := range r.Operations {
		fmt.Fprintf(&b, "%s %d/%d undecided %d %v by %v\n", o.Operation, o.Events, o.Count, o.Undecided.Events, o.Missing, o.By)
	}
	for _, l := range r.Lost {
		fmt.Fprintf(&b, "lost %s %s %d\n", l.Operation, l.Where, l.Count)
	}
	return b.String()
}

const (
	replayHead = "apiVersion: pavise.dev/v1alpha1\nkind: Policy\nmetadata: {name: c}\nspec:\n"
	opensYAML  = replayHead + `  rules:
  - {name: secret, on: [file.open], when: file.path == "/etc/shadow", action: deny}
  - {name: digest, on: [file.open], when: 'file.path == "/x" && process.exe.digest != ""', action: deny}
  - {name: look, on: [file.open], when: file.path == "/tmp/a", action: audit}
  - {name: bind, on: [net.bind], action: deny}
`
)

// procJSON is a process that runs exe.
func procJSON(pid, execID int, exe, more string) string {
	return fmt.Sprintf(`"process":{"exec_id":"%d","pid":%d,"start_time":"2026-01-01T00:00:%02dZ","exe":{"path":%q,"mode":33261,"inode":"9","owner":0},"user":{"id":33,"name":"www-data"},"unit":"web.service","parent_exec_id":"1","parent":{"exec_id":"1","pid":1,"exe":{"path":"/sbin/init"}}%s}`,
		execID, pid, pid%60, exe, more)
}

func TestReplayCounts(t *testing.T) {
	cat, unknown := procJSON(5, 50, "/usr/bin/cat", ""), `"process":{"exec_id":"60","pid":6,"unknown":true}`
	open := func(path, more, who string) string {
		return `{"op":"file.open",` + more + who + `,"file":{"path":"` + path + `","access":["read"]}}`
	}
	lines := []string{
		open("/etc/shadow", `"action":"audit","policy":"web","rule":"opens","count":4,`, cat),
		open("/etc/shadow", `"action":"deny","policy":"web","rule":"no","count":1,`, cat),
		open("/etc/shadow", `"action":"kill","monitor":true,"policy":"web","rule":"opens",`, unknown),
		open("/etc/shadow", `"action":"deny","monitor":true,"shadow":"deny","active":"allow",`, cat),
		open("/tmp/a", `"action":"audit","policy":"web","rule":"opens",`, cat),
		open("/x", `"action":"audit","policy":"web","rule":"opens",`, cat),
		open("/y", `"action":"audit",`, cat),
		`{"op":"file.delete","action":"audit",` + cat + `,"file":{"path":"/etc/shadow"}}`,
		`{"op":"agent.lost","lost":{"op":"file.open","where":"kernel-ring","count":3}}`,
		`{"op":"agent.lost","lost":{"op":"file.open","where":"kernel-ring","count":4}}`,
	}
	r := replayed(t, opensYAML, HistoryQuery{}, lines...)
	want := `c/secret file.open deny monitor 3/6 already 1 05.000..05.002
  exe="/usr/bin/cat" parent="" user="www-data" unit="web.service" container="" 2/5 example 1 /etc/shadow
  exe="" parent="" user="" unit="" container="" 1/1 example 3 /etc/shadow
c/look file.open audit monitor 1/1 already 0 05.004..05.004
  exe="/usr/bin/cat" parent="" user="www-data" unit="web.service" container="" 1/1 example 5 /tmp/a
file.open 6/9 undecided 1 [{process.exe.digest 1}] by [web/no web/opens]
net.bind 0/0 undecided 0 [] by []
lost file.open kernel-ring 7
`
	if got := told(r); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if !r.Stopped(false) || !r.Stopped(true) || r.Whole() || r.Shadow != 1 || len(r.Damaged) != 1 || r.LostBytes != 7 || r.Already.Events != 1 {
		t.Errorf("%+v", r)
	}
	// Only what had been stopped then; the condition goes for what is judged, not for what was lost.
	r = replayed(t, opensYAML, HistoryQuery{Where: `action == "deny" && !monitor // what was denied`}, lines...)
	if !r.Stopped(false) || r.Stopped(true) || r.Judged.Events != 1 || len(r.Lost) != 1 {
		t.Errorf("%+v", r)
	}
	ps, err := policy.Parse("c.yaml", []byte(opensYAML))
	if err != nil {
		t.Fatal(err)
	}
	var pe policy.Errors
	if _, err := RunReplay(t.Context(), ps, HistoryQuery{Where: "file.pth == 1"}, recorded(), nil); !errors.As(err, &pe) || !strings.Contains(err.Error(), `where: unknown field "file.pth"`) {
		t.Errorf("a bad condition: %v", err)
	}
	if _, err := RunReplay(t.Context(), ps, HistoryQuery{}, func(_ context.Context, _ HistoryQuery, fn func(*HistoryLine) error) error {
		return fn(&HistoryLine{Event: []byte(`{"op":"file.opn"}`)})
	}, nil); err == nil || !strings.Contains(err.Error(), "file.opn") {
		t.Errorf("an event that cannot be read: %v", err)
	}
}

const execsYAML = replayHead + `  subject: process.exe.path == "/usr/sbin/nginx"
  rules:
  - {name: shell, on: [process.exec], when: file.path.glob("/usr/bin/*sh"), action: kill}
  - {name: tmp, on: [process.exec], when: file.path.under("/tmp"), action: deny}
  - {name: args, on: [process.exec], when: 'exec.cmdline.contains("-o /tmp")', action: kill}
`

// TestReplayExecs: the start of a program is an act of the image before.
func TestReplayExecs(t *testing.T) {
	nginx, bash := procJSON(5, 50, "/usr/sbin/nginx", ""), procJSON(5, 60, "/usr/bin/bash", `,"args":["bash","-c","x"]`)
	exec := func(p string) string { return `{"op":"process.exec",` + p + `}` }
	fork := func(p string) string { return `{"op":"process.fork",` + p + `}` }
	judged := func(more, who, path string) string {
		return `{"op":"process.exec","action":"audit",` + more + `"policy":"web","rule":"execs",` + who + `,"file":{"path":"` + path + `","access":["read","exec"]}}`
	}
	rule := func(s string) string { return "c/" + s }
	who := `  exe="/usr/sbin/nginx" parent="" user="www-data" unit="web.service" container="" 1/1 example `
	later := func(line string, id int) string {
		return fmt.Sprintf(`{"id":%d,"time":"2026-01-02T03:04:%02dZ",%s`, id, 10+id, line[1:])
	}
	for name, tt := range map[string]struct {
		lines []string
		where string
		want  string
	}{
		"after a fork": {
			lines: []string{fork(nginx), exec(bash)},
			want: rule("shell process.exec kill monitor 1/1 already 0 05.001..05.001\n") + who + "2 /usr/bin/bash\n" +
				"process.exec 1/1 undecided 0 [] by []\n",
		},
		"the second of a process": {
			lines: []string{fork(nginx), exec(bash), exec(procJSON(5, 70, "/usr/bin/dash", ""))},
			want: rule("shell process.exec kill monitor 1/1 already 0 05.001..05.001\n") + who + "2 /usr/bin/bash\n" +
				"process.exec 2/2 undecided 0 [] by []\n",
		},
		"known from another event": {
			lines: []string{`{"op":"file.open","action":"audit",` + nginx + `,"file":{"path":"/a"}}`, judged("", nginx, "/usr/bin/true"), exec(bash)},
			want: rule("shell process.exec kill monitor 1/1 already 0 05.002..05.002\n") + who + "3 /usr/bin/bash\n" +
				"process.exec 2/2 undecided 1 [{exec.cmdline 1}] by [web/execs]\n",
		},
		"not known": {
			lines: []string{exec(bash), exec(procJSON(6, 80, "/usr/bin/true", `,"args":["true"]`))},
			want:  "process.exec 2/2 undecided 1 [{process.exe.path 1}] by []\n",
		},
		"a process that ended": {
			lines: []string{fork(nginx), `{"op":"process.exit",` + nginx + `,"exit":{"code":0}}`, exec(bash)},
			want:  "process.exec 1/1 undecided 1 [{process.exe.path 1}] by []\n",
		},
		"another process of the number": {
			lines: []string{fork(nginx), exec(strings.Replace(bash, "2026-01-01", "2026-01-02", 1))},
			want:  "process.exec 1/1 undecided 1 [{process.exe.path 1}] by []\n",
		},
		"after a loss": {
			lines: []string{fork(nginx), `{"op":"agent.lost","lost":{"op":"process.exec","where":"subscriber","count":1}}`, exec(bash)},
			want:  "process.exec 1/1 undecided 1 [{process.exe.path 1}] by []\nlost process.exec subscriber 1\n",
		},
		"with another agent": {
			lines: []string{later(fork(nginx), 5), later(exec(bash), 1)},
			want:  "process.exec 1/1 undecided 1 [{process.exe.path 1}] by []\n",
		},
		"judged before": {
			lines: []string{judged("", nginx, "/usr/bin/bash"), exec(bash)},
			want: rule("shell process.exec kill monitor 1/1 already 0 05.000..05.000\n") + who + "1 /usr/bin/bash\n" +
				"process.exec 1/1 undecided 0 [] by [web/execs]\n",
		},
		"judged, told late": {
			lines: []string{exec(bash), judged("", nginx, "/usr/bin/bash")},
			want: rule("shell process.exec kill monitor 1/1 already 0 05.000..05.000\n") + who + "1 /usr/bin/bash\n" +
				"process.exec 1/1 undecided 0 [] by [web/execs]\n",
		},
		"denied": {
			lines: []string{`{"op":"process.exec","action":"deny","policy":"web","rule":"no",` + nginx + `,"file":{"path":"/usr/bin/bash"}}`},
			want: rule("shell process.exec kill monitor 1/1 already 1 05.000..05.000\n") + who + "1 /usr/bin/bash\n" +
				"process.exec 1/1 undecided 0 [] by [web/no]\n",
		},
		"arguments of the other record": {
			lines: []string{judged("", nginx, "/usr/bin/curl"), exec(procJSON(5, 60, "/usr/bin/curl", `,"args":["curl","-o","/tmp/x"]`))},
			want: rule("args process.exec kill monitor 1/1 already 0 05.000..05.000\n") + who + "1 /usr/bin/curl\n" +
				"process.exec 1/1 undecided 0 [] by [web/execs]\n",
		},
		"arguments that are not there": {
			lines: []string{judged("", nginx, "/usr/bin/curl")},
			want:  "process.exec 1/1 undecided 1 [{exec.cmdline 1}] by [web/execs]\n",
		},
		"a script": {
			lines: []string{fork(nginx), exec(procJSON(5, 60, "/usr/bin/python3", `,"script":"/tmp/x.py","args":["x"]`))},
			want: rule("tmp process.exec deny monitor 1/1 already 0 05.001..05.001\n") + who + "2 /tmp/x.py\n" +
				"process.exec 1/1 undecided 0 [] by []\n",
		},
		"a script of which the interpreter was judged": {
			lines: []string{judged("", nginx, "/usr/bin/python3"), exec(procJSON(5, 60, "/usr/bin/python3", `,"script":"/tmp/x.py","args":["x"]`))},
			want: rule("tmp process.exec deny monitor 1/1 already 0 05.000..05.000\n") + who + "1 /tmp/x.py\n" +
				"process.exec 1/1 undecided 0 [] by [web/execs]\n",
		},
		"chosen": {
			lines: []string{fork(nginx), exec(bash), judged("", nginx, "/usr/bin/bash")},
			where: `action == "deny"`,
			want:  "process.exec 0/0 undecided 0 [] by []\n",
		},
		"long after": {
			lines: []string{later(judged("", nginx, "/usr/bin/bash"), 1), later(fork(nginx), 2), later(exec(bash), 3)},
			want: rule("shell process.exec kill monitor 2/2 already 0 11.000..13.000\n") + strings.Replace(who, "1/1", "2/2", 1) + "1 /usr/bin/bash\n" +
				"process.exec 2/2 undecided 0 [] by [web/execs]\n",
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := replayed(t, execsYAML, HistoryQuery{Where: tt.where}, tt.lines...)
			if got := told(r); got != tt.want {
				t.Errorf("got\n%s\nwant\n%s", got, tt.want)
			}
		})
	}
}

// TestReplayCredentials: what an exec says of the image before, and what not.
func TestReplayCredentials(t *testing.T) {
	src := replayHead + `  rules:
  - {name: user, on: [process.exec], when: process.user.id == 33, action: deny}
  - {name: caps, on: [process.exec], when: '"CAP_SYS_ADMIN" in process.caps', action: kill}
  - {name: unit, on: [process.exec], when: process.unit == "x.service", action: deny}
`
	root := strings.Replace(procJSON(5, 50, "/usr/sbin/sshd", `,"caps":["CAP_SYS_ADMIN"]`), `{"id":33,"name":"www-data"}`, `{"id":0}`, 1)
	for name, tt := range map[string]struct {
		lines []string
		want  string
	}{
		"changed in between": {[]string{`{"op":"process.fork",` + root + `}`, `{"op":"process.exec",` + procJSON(5, 60, "/bin/sh", "") + `}`}, "user denied 1, undecided 0"},
		"the same": {[]string{
			`{"op":"process.fork",` + root + `}`, `{"op":"process.exec",` + strings.Replace(root, `"50"`, `"60"`, 1) + `}`,
		}, "caps denied 1, undecided 0"},
		"raised": {[]string{
			`{"op":"process.fork",` + procJSON(5, 50, "/bin/sh", "") + `}`,
			`{"op":"process.exec",` + strings.Replace(root, `"50"`, `"60"`, 1)[:len(root)-1] + `,"secure_exec":true}}`,
		}, "user denied 1, undecided 0"},
		"raised, and not seen": {[]string{`{"op":"process.exec",` + root[:len(root)-1] + `,"secure_exec":true}}`}, "- denied 0, undecided 1"},
	} {
		t.Run(name, func(t *testing.T) {
			r := replayed(t, src, HistoryQuery{}, tt.lines...)
			rule := "-"
			if len(r.Rules) > 0 {
				rule = r.Rules[0].Rule
			}
			if got := fmt.Sprintf("%s denied %d, undecided %d", rule, r.Denied.Events+r.Killed.Events, r.Undecided.Events); got != tt.want {
				t.Errorf("got %s, want %s\n%s", got, tt.want, told(r))
			}
		})
	}
}

// TestReplayEndToEnd: what an agent has recorded, through it and without it, through a file's policies and a revision's.
func TestReplayEndToEnd(t *testing.T) {
	dir := t.TempDir()
	f := newFake()
	_, c := running(t, f, withHistory(t, dir))
	openEvents(f, 40)
	awaitStatus(t, c, func(s *Status) bool { return s.History.Written == 41 })
	if _, err := c.Apply(t.Context(), "x.yaml", []byte(replayHead+"  rules: [{name: one, on: [file.open], when: file.path.endsWith(\"1\"), action: kill}]\n"), nil, ApplyOptions{}); err != nil {
		t.Fatal(err)
	}
	ps, err := ReadRevisionPolicies(dir, 2)
	if err != nil || len(ps) != 2 {
		t.Fatalf("%v, %d policies", err, len(ps))
	}
	rev, err := c.Revision(t.Context(), 2)
	if err != nil {
		t.Fatal(err)
	}
	same, err := RevisionPolicies(&rev.Revision)
	if err != nil || len(same) != 2 {
		t.Fatalf("%v, %d policies", err, len(same))
	}
	if _, err := ReadRevisionPolicies(dir, 9); !errors.Is(err, store.ErrNoRevision) {
		t.Errorf("a revision that is not there: %v", err)
	}
	history, state := HistoryIn(dir)
	if again, s := HistoryIn(filepath.Join(dir, HistoryDir)); state != dir || again != history || s != dir {
		t.Errorf("%s, %s and %s, %s", history, state, again, s)
	}
	if h, s := HistoryIn(t.TempDir()); s != "" || h == "" {
		t.Errorf("%s, %s", h, s)
	}
	for name, search := range map[string]func(context.Context, HistoryQuery, func(*HistoryLine) error) error{
		"agent": c.History,
		"files": func(ctx context.Context, q HistoryQuery, fn func(*HistoryLine) error) error {
			return ReadHistory(ctx, history, q, fn)
		},
	} {
		r, err := RunReplay(t.Context(), ps, HistoryQuery{}, search, nil)
		if err != nil {
			t.Fatal(err)
		}
		// Of the 40, every other ends in 1; all but every tenth were denied then.
		if len(r.Rules) != 1 || r.Rules[0].Events != 20 || r.Rules[0].Count != 60 || r.Rules[0].Already.Events != 16 || r.Rules[0].Mode != "monitor" || r.Judged.Events != 40 ||
			r.Rules[0].Subjects[0].Exe != "/usr/bin/cat" || r.Operations[0].By[0] != "secrets/shadow" || r.Undecided.Events != 0 || !r.Whole() {
			t.Errorf("%s: %s", name, told(r))
		}
		r, err = RunReplay(t.Context(), ps, HistoryQuery{To: time.Now().Add(-time.Hour)}, search, nil)
		if err != nil || r.Judged.Events != 0 || r.Stopped(false) || r.Whole() {
			t.Errorf("%s: nothing: %v, %s", name, err, told(r))
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := RunReplay(ctx, ps, HistoryQuery{}, c.History, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("ended: %v", err)
	}
}

// TestReplayReads: an event that is read in two parts is what it is read in one.
func TestReplayReads(t *testing.T) {
	known := new(processes)
	lines := [][]byte{
		[]byte(`{"id":1,"op":"agent.lost","lost":{"op":"file.open","where":"x","count":3}}`),
		[]byte(`{"id":1,"op":"file.open","message":",\"process\":{","process":{"exec_id":"5","pid":7,"args":["}","\\","\"{"]},"file":{"path":",\"process\":{"}}`),
	}
	for _, e := range dayEvents(2000) {
		lines = append(lines, e.AppendJSON(nil))
	}
	for _, line := range lines {
		var want, got pavise.Event
		if err := want.UnmarshalJSON(line); err != nil {
			t.Fatal(err)
		}
		if err := known.read(bytes.Clone(line), &got); err != nil || !reflect.DeepEqual(got, want) {
			t.Fatalf("%s\n%v, %+v, want %+v", line, err, got, want)
		}
	}
	if n := len(known.by); n == 0 || n > 501 {
		t.Errorf("%d processes are kept", n)
	}
	for _, bad := range []string{`{"op":"file.open","process":{"pid":"x"}}`, `{"op":"file.open","process":{"pid":5`, `{"op":"file.open","process":{}x}`} {
		if err := known.read([]byte(bad), new(pavise.Event)); err == nil {
			t.Errorf("%s was read", bad)
		}
	}
}

// BenchmarkReplay has a history of opens and execs in files, and 20 rules.
func BenchmarkReplay(b *testing.B) {
	n := 100_000
	if os.Getenv("PAVISE_LONG") != "" {
		n = 1_000_000
	}
	dir := b.TempDir()
	writeEvents(b, dir, n)
	src := replayHead + "  rules:\n"
	for i := range 20 {
		src += fmt.Sprintf("  - {name: r%d, on: [file.open, process.exec], when: 'file.path.glob(\"/srv/%d/*\") && process.user.id == %d && !process.args.exists(a, a == \"-%d\")', action: deny}\n", i, i, i, i)
	}
	ps, err := policy.Parse("c.yaml", []byte(src))
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		r, err := RunReplay(b.Context(), ps, HistoryQuery{}, func(ctx context.Context, q HistoryQuery, fn func(*HistoryLine) error) error {
			return ReadHistory(ctx, dir, q, fn)
		}, nil)
		if err != nil || r.Judged.Events == 0 {
			b.Fatal(err, r)
		}
	}
	b.ReportMetric(float64(n)*float64(b.N)/b.Elapsed().Seconds(), "events/s")
}

// writeEvents makes a history of n events, in segments and a log.
func writeEvents(b *testing.B, dir string, n int) {
	h, _, err := store.OpenHistory(dir, store.Options{MaxBytes: 1 << 40, LogBytes: 64 << 20, MaxAge: 100 * 365 * 24 * time.Hour})
	if err != nil {
		b.Fatal(err)
	}
	events := dayEvents(1 << 14)
	at := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC).UnixNano()
	for i := range n {
		e := *events[i%len(events)]
		e.ID, e.Time = uint64(i+1), at+int64(i)*1e6
		if err := h.Append(&e); err != nil {
			b.Fatal(err)
		}
		if i%50_000 == 0 {
			if err := errors.Join(h.Tick(), h.Seal(b.Context())); err != nil {
				b.Fatal(err)
			}
		}
	}
	if err := h.Close(); err != nil {
		b.Fatal(err)
	}
}
