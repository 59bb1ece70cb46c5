package learn

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/pavise-project/pavise"
	"github.com/pavise-project/pavise/policy"
)

var update = flag.Bool("update", false, "write the expected policies anew")

// TestLearn learns from the events of each data file: events in the form of `pavise events -o json`, "----------", and the policy. Each event that was learned
// must be allowed by it, and the acts after "deny:" lines must not.
func TestLearn(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal("no data files", err)
	}
	for _, name := range files {
		t.Run(strings.TrimSuffix(filepath.Base(name), ".txt"), func(t *testing.T) {
			data, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			in, want, ok := strings.Cut(string(data), "----------\n")
			if !ok {
				t.Fatal("no ---------- line")
			}
			var seen Observed
			var denied []*pavise.Event
			ops := map[pavise.Op]bool{}
			for line := range strings.Lines(in) {
				line = strings.TrimSpace(line)
				if line == "" || strings.HasPrefix(line, "#") {
					continue
				}
				text, bad := strings.CutPrefix(line, "deny: ")
				e, err := pavise.ParseEvent([]byte(text))
				if err != nil {
					t.Fatalf("%s: %v", line, err)
				}
				ops[e.Op] = true
				if bad {
					denied = append(denied, e)
				} else {
					seen.Add(e)
				}
			}
			o := Options{Name: "learned", Subject: `process.exe.path == "/usr/sbin/nginx"`, Rare: true}
			for op := range pavise.NumOps {
				if ops[op] {
					o.Ops = append(o.Ops, op)
				}
			}
			l := Learn(seen.Acts(), true)
			got := l.Write(o)
			if *update {
				if err := os.WriteFile(name, []byte(in+"----------\n"+got), 0o600); err != nil {
					t.Fatal(err)
				}
			} else if d := cmp.Diff(want, got); d != "" {
				t.Errorf("the policy is not as expected (-want +got):\n%s", d)
			}
			p := parse(t, got)
			for _, a := range seen.Acts() {
				if rule, err := p.Asks(a.Event); err != nil || rule != "" {
					t.Errorf("%s was seen, and is denied by %q, %v", describe(a), rule, err)
				}
			}
			for _, e := range denied {
				if rule, err := p.Asks(e); err != nil || !strings.HasPrefix(rule, "default/") {
					t.Errorf("%s was not seen, and is not denied: %q, %v", describe(&Act{Event: e}), rule, err)
				}
			}
		})
	}
}

func parse(t *testing.T, text string) *policy.Policy {
	t.Helper()
	ps, err := policy.Parse("learned.yaml", []byte(text))
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	for _, w := range ps[0].Warnings {
		t.Errorf("the policy has a warning: %v", w)
	}
	return ps[0]
}

// TestGuarded asks for the places of the starter library: no set of paths, however large, makes a pattern that reaches into one of them from above.
func TestGuarded(t *testing.T) {
	for _, place := range []string{
		"/etc/cron.d/x", "/etc/crontab", "/etc/systemd/system/x.service", "/root/.ssh/authorized_keys", "/home/me/.ssh/authorized_keys", "/home/me/.ssh/id_rsa", "/etc/ld.so.preload", "/etc/shadow",
		"/etc/profile.d/x.sh", "/etc/pam.d/sshd", "/etc/sudoers.d/x", "/usr/bin/ls", "/usr/sbin/nginx", "/etc/init.d/x", "/etc/ssl/private/key.pem", "/proc/1/mem", "/var/spool/cron/crontabs/root",
		"/root/.aws/credentials", "/home/me/.config/systemd/user/x.service", "/etc/update-motd.d/x", "/etc/rc.local", "/usr/local/bin/x", "/boot/vmlinuz",
	} {
		for dir := filepath.Dir(place); ; dir = filepath.Dir(dir) {
			if !guards(dir) {
				t.Errorf("%s may be taken as a whole, with %s in it", dir, place)
			}
			if dir == "/" {
				break
			}
		}
	}
	for _, dir := range []string{"/etc/nginx", "/srv/www", "/var/www/html", "/usr/share/nginx", "/var/lib/postgresql", "/opt/app", "/home/me/src", "/var/log/nginx"} {
		if guards(dir) {
			t.Errorf("%s may not be taken as a whole", dir)
		}
	}
}

func TestWild(t *testing.T) {
	for _, c := range []struct {
		part, dir string
		made      bool
		want      string
	}{
		{"1234", "/proc", false, "[0-9]*"},
		{"7", "/proc", false, "[0-9]*"},
		{"7", "/srv", false, ""},
		{"0000000001", "/var/lib/nginx/body", false, "[0-9]*"},
		{"tmp.AbCd12", "/tmp", true, "tmp.*"},
		{"sedAbCd12", "/etc/x", true, "sed*"},
		{"tmp.AbCd12", "/tmp", false, ""},
		{"file24517", "/tmp", true, "file[0-9]*"},
		{"control", "/tmp/x", true, ""},
		{"a[1]-4fe5a0c1d2b3e4f5.so", "/x", false, `a\[1\]-*.so`},
		{"123e4567-e89b-12d3-a456-426614174000.json", "/x", false, "*.json"},
		{"x86_64-linux-gnu", "/usr/lib", false, ""},
		{"nginx.conf", "/etc/nginx", true, ""},
	} {
		got, ok := wild(c.part, c.dir, c.made)
		if ok != (c.want != "") || got != c.want {
			t.Errorf("wild(%q, %q, %v) = %q, %v, want %q", c.part, c.dir, c.made, got, ok, c.want)
		}
	}
}

// TestLoss counts what finds no room.
func TestLoss(t *testing.T) {
	var o Observed
	e := &pavise.Event{Op: pavise.OpOpen, Count: 3, Time: time.Now().UnixNano()}
	e.File.Path = "/etc/x"
	o.Add(e)
	o.Add(e)
	if o.Seen != 6 || o.Len() != 1 || o.Share() != 0 {
		t.Errorf("seen %d, %d acts, share %g", o.Seen, o.Len(), o.Share())
	}
	o.Lost = 2
	if got := o.Share(); got != 0.25 {
		t.Errorf("share lost %g, want 0.25", got)
	}
	o = Observed{}
	for i := range MaxActs + 2 {
		e.Count, e.File.Path = 1, "/x/"+string(rune('a'+i%26))+time.Duration(i).String()
		o.Add(e)
	}
	if o.Len() != MaxActs || o.Lost != 2 {
		t.Errorf("%d acts kept, %d lost", o.Len(), o.Lost)
	}
}

// FuzzLearn: whatever paths were seen, the policy compiles and allows them.
func FuzzLearn(f *testing.F) {
	f.Add("/etc/nginx/nginx.conf\n/tmp/tmp.AbCd12\n/proc/12/maps", uint8(pavise.OpOpen))
	f.Add("/a/*?[x]{y}\\/b\n/a/\"q\"\n/a/#c\n/a/é", uint8(pavise.OpDelete))
	f.Add("/x/1\n/x/2\n/x/3\n/x/4\n/x/1/2", uint8(pavise.OpExec))
	f.Add("//a//b\n/a/../b\n/", uint8(pavise.OpRename))
	f.Fuzz(func(t *testing.T, paths string, op uint8) {
		if int(op) == 0 || int(op) >= pavise.NumJudged || len(paths) > 4000 || bytes.ContainsRune([]byte(paths), 0) {
			return
		}
		var o Observed
		for p := range strings.SplitSeq(paths, "\n") {
			e := &pavise.Event{Op: pavise.Op(op), Process: &pavise.Process{}}
			e.File.Path, e.Act.NewPath, e.Act.Name, e.Act.Target.Path, e.Net.RemotePath, e.Net.LocalPath = p, p, p, p, p, p
			e.Net.Family = pavise.FamilyUnix
			o.Add(e)
		}
		l := Learn(o.Acts(), true)
		text := l.Write(Options{Name: "x", Subject: "true", Ops: []pavise.Op{pavise.Op(op)}, Rare: true})
		ps, err := policy.Parse("x.yaml", []byte(text))
		if err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
		left := map[*Act]bool{}
		for _, why := range l.Left {
			for _, a := range why.Acts {
				left[a] = true
			}
		}
		for _, a := range o.Acts() {
			if rule, err := ps[0].Asks(a.Event); !left[a] && (err != nil || rule != "") {
				t.Fatalf("%s is denied by %s, %v\n%s", describe(a), rule, err, text)
			}
		}
	})
}

const confined = `# kept
apiVersion: pavise.dev/v1alpha1
kind: Policy
metadata: {name: web}
spec:
  subject: process.exe.name == "web" # kept too
  default: {file.open: deny}
  rules:
    - name: read
      on: [file.open]
      when: file.path.under("/srv")
      action: allow
    - {name: secret, on: [file.open], when: file.path == "/etc/shadow", action: deny}

  # the tests
  tests:
  - {name: t, on: file.open, process: {exe: {path: /x/web}}, file: {path: /srv/a, access: [read]}, expect: none}
`

func TestUpdate(t *testing.T) {
	var o Observed
	for _, path := range []string{"/srv/page", "/etc/web.conf", "/etc/shadow"} {
		for range 2 {
			e := &pavise.Event{Op: pavise.OpOpen, Time: 1e18, Process: &pavise.Process{PID: 7, Exe: pavise.FileInfo{Path: "/x/web"}}}
			e.File.Path, e.File.Access = path, pavise.AccessRead
			o.Add(e)
		}
	}
	got, l, err := Update("web.yaml", []byte(confined), o.Acts(), true)
	if err != nil {
		t.Fatal(err)
	}
	want := strings.Replace(confined, "\n  # the tests", `    - name: read-2
      # /etc/web.conf: 2 times, 2001-09-09 01:46:40 to 2001-09-09 01:46:40, by /x/web[7]
      on: [file.open]
      when: >-
        !file.access.write
        && !file.access.truncate
        && file.path == "/etc/web.conf"
      action: allow

  # the tests`, 1)
	if d := cmp.Diff(want, string(got)); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
	if len(l.Left) != 1 || l.Left[0].Why != "flagged by web/secret" {
		t.Errorf("left out: %+v", l.Left)
	}
	again, _, err := Update("web.yaml", got, o.Acts(), true)
	if err != nil || !bytes.Equal(again, got) {
		t.Errorf("a second update: %v\n%s", err, again)
	}
	for _, bad := range []string{
		confined + "---\n" + strings.Replace(confined, "name: web", "name: other", 1),
		strings.Replace(confined, "file.open: deny", "file.opn: deny", 1),
		"apiVersion: pavise.dev/v1alpha1\nkind: Policy\nmetadata: {name: web}\nspec: {subject: process.exe.name == \"web\", default: {file.open: deny}, rules: [{name: r, on: [file.open], action: allow, when: file.path == \"/x\"}]}\n",
	} {
		if out, _, err := Update("web.yaml", []byte(bad), o.Acts(), true); err == nil {
			t.Errorf("updated to\n%s", out)
		} else {
			t.Log(err)
		}
	}
}
