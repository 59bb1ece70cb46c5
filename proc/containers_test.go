package proc

import (
	"bytes"
	"cmp"
	"flag"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/txtar"

	pavise "github.com/pavise-project/pavise"
)

var update = flag.Bool("update", false, "write what is got to testdata")

var idA = "3f4d8a1b" + strings.Repeat("0a1b2c3d", 7)

// host is a machine's runtimes and cgroups, in a directory.
type host struct {
	dir string
	log bytes.Buffer
	c   *Containers
}

func newHost(t testing.TB) *host {
	h := &host{dir: t.TempDir()}
	var roots []StateRoot
	for _, kind := range []string{kindDocker, kindContainerd, kindStorage} {
		roots = append(roots, StateRoot{kind, filepath.Join(h.dir, kind)})
	}
	log := slog.New(slog.NewTextHandler(&h.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	h.c = NewContainers(ContainerOptions{Roots: roots, Cgroups: []string{filepath.Join(h.dir, "cgroup1"), filepath.Join(h.dir, "cgroup2")}, Log: log})
	return h
}

func (h *host) write(t testing.TB, name, text string) string {
	t.Helper()
	file := filepath.Join(h.dir, name)
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func (h *host) cgroup(t testing.TB, path string) string {
	t.Helper()
	dir := filepath.Join(h.dir, "cgroup2", path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// of takes in a cgroup as the table does.
func (h *host) of(path string) (*pavise.Container, *pavise.Pod) {
	g := parseCgroup(path)
	h.c.meet(&g)
	return h.c.of(&g)
}

func (h *host) docker(t testing.TB, name, image string) {
	t.Helper()
	h.write(t, "docker/containers/"+idA+"/config.v2.json", fmt.Sprintf(`{"Name":%q,"Config":{"Image":%q,"Labels":{"app":"x"}}}`, "/"+name, image))
}

func describe(c *pavise.Container, p *pavise.Pod) string {
	if c == nil {
		return "none\n"
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%.12s runtime=%s name=%q image=%q\n", c.ID, c.Runtime, c.Name, c.Image)
	for _, k := range slices.Sorted(maps.Keys(c.Labels)) {
		fmt.Fprintf(&b, "  label %q=%q\n", k, c.Labels[k])
	}
	if p != nil {
		fmt.Fprintf(&b, "pod namespace=%q name=%q\n", p.Namespace, p.Name)
		for _, k := range slices.Sorted(maps.Keys(p.Labels)) {
			fmt.Fprintf(&b, "  label %q=%q\n", k, p.Labels[k])
		}
	}
	return b.String()
}

// TestContainerState reads testdata/containers.txt: the files of runtimes and a cgroup, to what is known of its container.
func TestContainerState(t *testing.T) {
	const name = "testdata/containers.txt"
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, c := range strings.Split(string(data), "==========\n") {
		src, want, _ := strings.Cut(c, "----------\n")
		a := txtar.Parse([]byte(src))
		_, cgroup, _ := strings.Cut(strings.TrimSpace(string(a.Comment)), "\ncgroup ")
		h := newHost(t)
		h.cgroup(t, cgroup)
		for _, f := range a.Files {
			h.write(t, f.Name, string(f.Data))
		}
		got := describe(h.of(cgroup))
		if g := parseCgroup(cgroup); h.c.byBase[g.base] == nil {
			t.Errorf("%s: not taken in", cgroup)
		} else if err := h.c.byBase[g.base].err; err != nil {
			got += strings.ReplaceAll(fmt.Sprintf("error: %v\n", err), h.dir, "")
		}
		if got != want && !*update {
			t.Errorf("%sgot:\n%swant:\n%s", a.Comment, got, want)
		}
		out = append(out, src+"----------\n"+got)
	}
	if *update {
		if err := os.WriteFile(name, []byte(strings.Join(out, "==========\n")), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// TestContainerStateFiles: what is no plain file of root's, of a size, is not read.
func TestContainerStateFiles(t *testing.T) {
	const good = `{"Name":"/web","Config":{"Image":"nginx:1"}}`
	name := "docker/containers/" + idA + "/config.v2.json"
	for _, c := range []struct {
		what  string
		make  func(h *host, file string) error
		want  string
		cause string
	}{
		{"a plain file", func(*host, string) error { return nil }, "web", ""},
		{"a large one", func(_ *host, f string) error {
			return os.WriteFile(f, []byte(good+strings.Repeat(" ", maxStateFile)), 0o600)
		}, "", "is over 1048576 bytes"},
		{"one as large as may be", func(_ *host, f string) error {
			return os.WriteFile(f, []byte(good+strings.Repeat(" ", maxStateFile-len(good))), 0o600)
		}, "web", ""},
		{"a deep one", func(_ *host, f string) error {
			return os.WriteFile(f, []byte(`{"x":`+strings.Repeat("[", 200_000)), 0o600)
		}, "", "exceeded max depth"},
		{"a directory", func(_ *host, f string) error { _ = os.Remove(f); return os.Mkdir(f, 0o755) }, "", "not a regular file"},
		{"a fifo that nobody writes", func(_ *host, f string) error { _ = os.Remove(f); return syscall.Mkfifo(f, 0o600) }, "", "not a regular file"},
		{"a file that others may write", func(_ *host, f string) error { return os.Chmod(f, 0o602) }, "", "that root alone may write"},
		{"another user's file", func(_ *host, f string) error { return os.Chown(f, 12345, -1) }, "", "that root alone may write"},
		{"a link that leaves the root", func(h *host, f string) error {
			_ = os.Remove(f)
			return os.Symlink(h.write(t, "elsewhere", good), f)
		}, "", "escapes"},
	} {
		h := newHost(t)
		h.cgroup(t, "docker/"+idA)
		if err := c.make(h, h.write(t, name, good)); err != nil {
			if os.Geteuid() != 0 {
				continue
			}
			t.Fatal(c.what, err)
		}
		ct, _ := h.of("/docker/" + idA)
		err := h.c.byBase["/docker/"+idA].err
		if ct.Name != c.want || c.cause != "" && (err == nil || !strings.Contains(err.Error(), c.cause)) {
			t.Errorf("%s: name %q, %v", c.what, ct.Name, err)
		}
	}
}

// TestContainerTrust: a cgroup that another user than root may have made is not the container that its name says.
func TestContainerTrust(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to give files away")
	}
	h := newHost(t)
	h.docker(t, "web", "nginx:1.27")
	delegated := "/user.slice/user-1000.slice/user@1000.service"
	dir := h.cgroup(t, delegated+"/docker-"+idA+".scope")
	if err := os.Chown(filepath.Dir(dir), 1000, 1000); err != nil {
		t.Fatal(err)
	}
	h.cgroup(t, "/loose/docker-"+idA+".scope")
	if err := os.Chmod(filepath.Join(h.dir, "cgroup2/loose"), 0o777); err != nil {
		t.Fatal(err)
	}
	h.cgroup(t, "/system.slice/docker-"+idA+".scope")
	for path, want := range map[string]string{
		delegated + "/docker-" + idA + ".scope":       "",
		"/loose/docker-" + idA + ".scope":             "",
		"/nowhere/docker-" + idA + ".scope":           "",
		"/system.slice/docker-" + idA + ".scope":      "web",
		"/system.slice/docker-" + idA + ".scope/deep": "web",
	} {
		ct, _ := h.of(path)
		if ct == nil || ct.ID != idA || ct.Runtime != "docker" || ct.Name != want {
			t.Errorf("%s: %+v, want name %q", path, ct, want)
		}
	}
	if k := h.c.Known(); len(k) != 1 || k[0].Cgroup != "/system.slice/docker-"+idA+".scope" || k[0].Container.Image != "nginx:1.27" {
		t.Errorf("known: %+v", k)
	}
	if s := h.c.Stats(); s != (ContainerStats{Known: 1, Untrusted: 3}) {
		t.Errorf("%+v", s)
	}
	if n := strings.Count(h.log.String(), "known by its id alone"); n != 1 {
		t.Errorf("told %d times:\n%s", n, &h.log)
	}
}

func told(c *Containers) bool {
	select {
	case <-c.Changed():
		return true
	default:
		return false
	}
}

// TestContainerLater: a file that comes after the container's first process is found a second later, and all that was taken in meanwhile is put right.
func TestContainerLater(t *testing.T) {
	h := newHost(t)
	tab := New(Options{Containers: h.c})
	path := "/system.slice/docker-" + idA + ".scope"
	dir := h.cgroup(t, path)
	at := func(id uint64, op pavise.Op, parent uint64, x pavise.ExecInfo) *pavise.Process {
		x.StartTime, x.ParentExecID, x.CgroupID = id, parent, 7
		e := &pavise.Event{Op: op, ExecID: id, PID: uint32(id), Time: int64(id), Exec: x}
		tab.Update(e)
		return e.Process
	}
	first := at(1, pavise.OpExec, 0, pavise.ExecInfo{Cgroup: path})
	at(2, pavise.OpFork, 1, pavise.ExecInfo{})
	if first.Container == nil || first.Container.ID != idA || first.Container.Name != "" || told(h.c) || len(h.c.Known()) != 0 {
		t.Fatalf("before its file: %+v", first.Container)
	}
	h.docker(t, "web", "nginx:1.27")
	now := time.Now()
	tab.Tick(now)
	if tab.Lookup(1).Container.Name != "" || told(h.c) {
		t.Error("looked again at once")
	}
	tab.Tick(now.Add(2 * time.Second))
	if !told(h.c) || told(h.c) {
		t.Error("not told, or twice")
	}
	third := at(3, pavise.OpFork, 2, pavise.ExecInfo{})
	for id := range uint64(3) {
		if p := tab.Lookup(id + 1); p.Container == nil || p.Container.Image != "nginx:1.27" || p.Container.Labels["app"] != "x" {
			t.Errorf("process %d: %+v", id+1, p.Container)
		}
	}
	if third.Parent == nil || third.Parent.Container.Name != "web" || tab.Lookup(2).Parent.Container.Name != "web" {
		t.Errorf("the parent's: %+v", third.Parent)
	}
	if first.Container.Name != "" {
		t.Error("a process that was handed out has changed")
	}
	if k := h.c.Known(); len(k) != 1 || k[0].Cgroup != path {
		t.Errorf("known: %+v", k)
	}

	// It ends: its cgroup goes, and some time later what is known of it.
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	tab.Tick(now.Add(20 * time.Second))
	if len(h.c.Known()) != 1 {
		t.Error("forgotten at once")
	}
	tab.Tick(now.Add(25 * time.Second))
	tab.Tick(now.Add(40 * time.Second))
	if len(h.c.Known()) != 0 || !told(h.c) {
		t.Error("not forgotten, or not told")
	}

	// And comes again, by the name of another image.
	h.cgroup(t, path)
	h.docker(t, "web", "nginx:1.28")
	e := &pavise.Event{Op: pavise.OpExec, ExecID: 9, PID: 9, Exec: pavise.ExecInfo{StartTime: 9, CgroupID: 8, Cgroup: path}}
	tab.Update(e)
	if e.Process.Container.Image != "nginx:1.28" || !told(h.c) {
		t.Errorf("after a restart: %+v", e.Process.Container)
	}
}

// TestContainerNever: what no file says is looked for a few times, and told once.
func TestContainerNever(t *testing.T) {
	h := newHost(t)
	h.cgroup(t, "docker/"+idA)
	h.write(t, "docker/containers/"+idA+"/config.v2.json", "{")
	now := time.Now()
	for i := range 20 {
		if ct, _ := h.of("/docker/" + idA); ct.ID != idA || ct.Name != "" {
			t.Fatalf("%+v", ct)
		}
		h.c.Tick(now.Add(time.Duration(i) * 2 * time.Second))
	}
	k := h.c.byBase["/docker/"+idA]
	if k.tries != containerTries || !k.next.IsZero() || h.c.Stats() != (ContainerStats{Unknown: 1, Failed: 1}) || told(h.c) {
		t.Errorf("%+v %+v", k, h.c.Stats())
	}
	if n := strings.Count(h.log.String(), "nothing is known"); n != 1 || !strings.Contains(h.log.String(), "config.v2.json") {
		t.Errorf("told %d times:\n%s", n, &h.log)
	}
}

// TestContainerRoom: there is an end to how many are kept.
func TestContainerRoom(t *testing.T) {
	h := newHost(t)
	h.cgroup(t, "lxc")
	for i := range maxContainers + 10 {
		ct, _ := h.of(fmt.Sprintf("/lxc/c%d", i))
		if want := cmp.Compare(maxContainers, i) > 0; (ct.Name != "") != want || ct.ID == "" {
			t.Fatalf("container %d: %+v", i, ct)
		}
	}
	if s := h.c.Stats(); s.Known != maxContainers || s.Refused != 10 {
		t.Errorf("%+v", s)
	}
	if n := strings.Count(h.log.String(), "too many containers"); n != 1 {
		t.Errorf("told %d times", n)
	}
}

func TestParseStateRoot(t *testing.T) {
	if r, err := ParseStateRoot("docker=/srv/docker"); err != nil || r != (StateRoot{"docker", "/srv/docker"}) {
		t.Error(r, err)
	}
	for _, s := range []string{"", "docker", "docker=", "docker=x", "lxd=/x", "/var/lib/docker"} {
		if _, err := ParseStateRoot(s); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("%q", s)) {
			t.Errorf("%q: %v", s, err)
		}
	}
	for _, r := range DefaultStateRoots() {
		if got, err := ParseStateRoot(r.Kind + "=" + r.Dir); err != nil || got != r {
			t.Error(r, err)
		}
	}
}

// FuzzContainerState: no file makes a reader panic, and what it gives is within the limits.
func FuzzContainerState(f *testing.F) {
	data, err := os.ReadFile("testdata/containers.txt")
	if err != nil {
		f.Fatal(err)
	}
	for _, c := range strings.Split(string(data), "==========\n") {
		src, _, _ := strings.Cut(c, "----------\n")
		for _, file := range txtar.Parse([]byte(src)).Files {
			f.Add(file.Data)
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		check := func(fs *facts, err error) {
			if (fs == nil) != (err != nil) {
				t.Fatal(fs, err)
			}
			if fs == nil {
				return
			}
			for _, s := range []string{fs.name, fs.image} {
				if len(s) > maxFactText {
					t.Fatal(len(s))
				}
			}
			n := 0
			for k, v := range fs.labels {
				n += len(k) + len(v)
			}
			if n > maxLabelBytes || len(fs.labels) > maxLabels {
				t.Fatal(n, len(fs.labels))
			}
		}
		check(parseDocker(data))
		if a, err := parseAnnotations(data); err == nil {
			check(containerdFacts(a))
			check(crioFacts(a))
		}
		if fs, err := parseStorageList(data, idA); fs != nil || err != nil {
			check(fs, err)
		}
	})
}
