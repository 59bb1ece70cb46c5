package agent

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/pavise-project/pavise"
	"github.com/pavise-project/pavise/enforce"
	"github.com/pavise-project/pavise/internal/kerntest"
	"github.com/pavise-project/pavise/policy"
	"github.com/pavise-project/pavise/proc"
	"golang.org/x/sys/unix"
)

const imageYAML = `apiVersion: pavise.dev/v1alpha1
kind: Policy
metadata: {name: images}
spec:
  mode: enforce
  rules:
  - name: nginx
    on: [file.open]
    when: file.path == %q && process.container.image.startsWith("nginx:")
    action: kill
`

func containerID(n int) string { return fmt.Sprintf("%064x", 0xc0ffee00+n) }

// dockerState is a directory as dockerd's data root, with containers of these images, numbered from 0.
func dockerState(t testing.TB, images ...string) []proc.StateRoot {
	t.Helper()
	root := t.TempDir()
	for i, image := range images {
		dir := filepath.Join(root, "containers", containerID(i))
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		text := fmt.Sprintf(`{"ID":%q,"Name":"/c%d","Config":{"Image":%q,"Labels":{"n":"%d"}}}`, containerID(i), i, image, i)
		if err := os.WriteFile(filepath.Join(dir, "config.v2.json"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return []proc.StateRoot{{Kind: "docker", Dir: root}}
}

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !f(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("not in 20 s: ", what)
		}
	}
}

// TestRulesFollowContainers: a container that a rule asks for changes the tables, another one does not; what fails is said and tried again.
func TestRulesFollowContainers(t *testing.T) {
	cgroups := t.TempDir()
	if err := os.Mkdir(filepath.Join(cgroups, "docker"), 0o755); err != nil {
		t.Fatal(err)
	}
	f := newFake()
	var mu sync.Mutex
	var images []*policy.Image
	var fails atomic.Bool
	f.apply = func(img *policy.Image) (enforce.Applied, error) {
		if fails.Load() {
			return enforce.Applied{}, errors.New("no memory")
		}
		mu.Lock()
		defer mu.Unlock()
		images = append(images, img)
		return enforce.Applied{Generation: uint32(len(images))}, nil
	}
	applied := func() int {
		mu.Lock()
		defer mu.Unlock()
		return len(images)
	}
	kills := func(i int) bool {
		mu.Lock()
		defer mu.Unlock()
		var facts policy.Facts
		facts.Values[policy.DimPath] = []byte("/secret")
		facts.Values[policy.DimCgroup] = []byte("/docker/" + containerID(i))
		return images[len(images)-1].Judge(pavise.OpOpen, &facts).Action == pavise.ActionKill
	}
	got := make(chan *pavise.Event, 16)
	a, c := running(t, f, func(cfg *Config) {
		cfg.ContainerState, cfg.Cgroups = dockerState(t, "nginx:1.27", "postgres:16", "nginx:1.28"), []string{cgroups}
		cfg.OnEvent = func(e *pavise.Event) { got <- e }
	})
	start := func(i int) *pavise.Process {
		if err := os.MkdirAll(filepath.Join(cgroups, "docker", containerID(i)), 0o755); err != nil {
			t.Error(err)
		}
		e := &pavise.Event{Op: pavise.OpExec, PID: uint32(9000000 + i), ExecID: uint64(100 + i)}
		e.Exec = pavise.ExecInfo{StartTime: uint64(i + 1), CgroupID: uint64(i + 1), Cgroup: "/docker/" + containerID(i)}
		f.recs <- e
		return (<-got).Process
	}
	if _, err := a.Apply(parse(t, fmt.Sprintf(imageYAML, "/secret")), Request{}); err != nil {
		t.Fatal(err)
	}
	before := applied()
	if kills(0) {
		t.Error("a container that nobody has seen is known")
	}

	if p := start(0); p.Container.Name != "c0" || p.Container.Image != "nginx:1.27" || p.Container.Labels["n"] != "0" {
		t.Errorf("the event of its first process has %+v", p.Container)
	}
	eventually(t, "a rule follows a container", func() bool { return applied() > before && kills(0) })
	if kills(1) || kills(2) {
		t.Error("the rule holds for containers that it does not ask for")
	}

	// Another image: seen, and nothing to do.
	before = applied()
	start(1)
	eventually(t, "the second container is known", func() bool {
		s, err := c.Status(t.Context())
		return err == nil && s.Containers.Known == 2
	})
	time.Sleep(300 * time.Millisecond)
	if applied() != before || kills(1) {
		t.Errorf("a container that no rule asks for made %d changes", applied()-before)
	}

	// The kernel refuses: it is said, and tried again.
	fails.Store(true)
	start(2)
	eventually(t, "the failure is said", func() bool {
		s, err := c.Status(t.Context())
		return err == nil && strings.Contains(s.Containers.Behind, "no memory")
	})
	if st := a.policyStatus("images"); len(st) != 1 || !strings.Contains(strings.Join(st[0].Warnings, "\n"), "no memory") {
		t.Errorf("the policy's status does not say it: %+v", st)
	}
	fails.Store(false)
	eventually(t, "it is tried again", func() bool { return kills(2) })
	if s, err := c.Status(t.Context()); err != nil || s.Containers.Behind != "" || s.Containers.Known != 3 {
		t.Errorf("%+v, %v", s.Containers, err)
	}
	if !kills(0) || kills(1) {
		t.Error("the others have changed")
	}
}

// TestRulesKnowWhatRuns: the first tables that are activated know the containers that run when the agent starts.
func TestRulesKnowWhatRuns(t *testing.T) {
	cgroups := t.TempDir()
	if err := os.MkdirAll(filepath.Join(cgroups, "docker", containerID(0)), 0o755); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "p.yaml")
	if err := os.WriteFile(file, []byte(fmt.Sprintf(imageYAML, "/secret")), 0o600); err != nil {
		t.Fatal(err)
	}
	f := newFake()
	var given atomic.Int64
	f.caughtUp = func() bool { return given.Load() == 2 && len(f.recs) == 0 }
	f.start = func() error {
		go func() { // as slowly as a ring is read
			for id := range uint64(2) {
				time.Sleep(50 * time.Millisecond)
				e := &pavise.Event{Op: pavise.OpExec, PID: uint32(9000000 + id), ExecID: id + 1}
				e.Exec = pavise.ExecInfo{Found: true, StartTime: id + 1, CgroupID: id + 1, Cgroup: []string{"/", "/docker/" + containerID(0)}[id]}
				f.recs <- e
				time.Sleep(10 * time.Millisecond)
				given.Add(1)
			}
		}()
		return nil
	}
	first := make(chan *policy.Image, 16)
	f.apply = func(img *policy.Image) (enforce.Applied, error) {
		first <- img
		return enforce.Applied{Generation: 1}, nil
	}
	running(t, f, func(cfg *Config) {
		cfg.Policies, cfg.ContainerState, cfg.Cgroups = loaded(t, file), dockerState(t, "nginx:1.27"), []string{cgroups}
	})
	var facts policy.Facts
	facts.Values[policy.DimPath], facts.Values[policy.DimCgroup] = []byte("/secret"), []byte("/docker/"+containerID(0))
	if (<-first).Judge(pavise.OpOpen, &facts).Action != pavise.ActionKill {
		t.Error("the first tables do not know the container that runs")
	}
}

func TestContainerPace(t *testing.T) {
	var p containerPace
	now := time.Unix(1000, 0)
	var got []string
	for _, took := range []time.Duration{1, 1, 1, 100, 1, 1, 700} {
		end := now.Add(took * time.Millisecond)
		d := p.next(now, end)
		got = append(got, d.String())
		now = end.Add(d)
	}
	if s := strings.Join(got, " "); s != "1ms 1ms 1ms 894ms 1ms 1ms 700ms" {
		t.Error(s)
	}
}

// contained is a shell in a cgroup as Docker makes it.
type contained struct {
	cmd   *exec.Cmd
	in    io.WriteCloser
	out   io.Reader
	begin time.Time
}

// startContained starts a shell in the cgroup of container i, or with i < 0 in this test's, which waits to be told to open file again and again.
func startContained(t *testing.T, mount string, i int, file string) *contained {
	t.Helper()
	c := &contained{cmd: exec.Command("/bin/sh", "-c", `read go; i=0; while read x <"$F"; do i=$((i+1)); echo $i; done`)}
	c.cmd.Env = []string{"F=" + file}
	if i >= 0 {
		group := filepath.Join(mount, "docker-"+containerID(i)+".scope")
		if err := os.Mkdir(group, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = os.Remove(group) })
		fd, err := unix.Open(group, unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		c.cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: fd}
	}
	var err error
	if c.in, err = c.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if c.out, err = c.cmd.StdoutPipe(); err != nil {
		t.Fatal(err)
	}
	c.begin = time.Now()
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.cmd.Process.Kill(); _ = c.cmd.Wait() })
	return c
}

// open lets it go. It returns how often the file was opened, and how long after its start it was killed for that; 0 when it was not, though it opened the
// file enough times.
func (c *contained) open(t *testing.T, enough int) (opened int, killed time.Duration) {
	t.Helper()
	if _, err := io.WriteString(c.in, "go\n"); err != nil {
		t.Fatal(err)
	}
	var ours atomic.Bool
	end := time.AfterFunc(30*time.Second, func() { ours.Store(true); _ = c.cmd.Process.Kill() })
	defer end.Stop()
	for lines := bufio.NewScanner(c.out); lines.Scan(); {
		var err error
		if opened, err = strconv.Atoi(lines.Text()); err != nil {
			t.Fatal(err)
		}
		if opened == enough {
			end.Reset(0)
		}
	}
	took := time.Since(c.begin)
	var exit *exec.ExitError
	if err := c.cmd.Wait(); !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != unix.SIGKILL {
		t.Fatal(err)
	}
	if ours.Load() {
		return opened, 0
	}
	return opened, took
}

// TestKernelContainerImage: a rule on an image kills a process in a container of that image, and not one in another container or in none.
func TestKernelContainerImage(t *testing.T) {
	kerntest.Require(t, kerntest.Root, kerntest.BPF, kerntest.BTF, kerntest.TpBtf, kerntest.Cgroup)
	mount, err := kerntest.CgroupRoot()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	secret, policyFile := filepath.Join(dir, "secret"), filepath.Join(dir, "p.yaml")
	for name, text := range map[string]string{secret: "x\n", policyFile: fmt.Sprintf(imageYAML, secret)} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	roots := dockerState(t, "nginx:1.27", "postgres:16", "nginx:1.28", "nginx:1.29", "postgres:17")
	run := func(i int) *contained { return startContained(t, mount, i, secret) }
	// in is what becomes of a process in container i that opens the file from its start.
	in := func(i, enough int) (opened int, killed time.Duration) {
		t.Helper()
		return run(i).open(t, enough)
	}
	const many, never = 5000, 1 << 30 // many takes much longer than it takes to know a container

	early, other := run(3), run(4)
	s := liveWith(t, func(c *Config) { c.Policies, c.ContainerState = loaded(t, policyFile), roots })
	if n, killed := early.open(t, never); killed == 0 || n > 0 {
		t.Errorf("in a container that ran before the agent: opened %d times, killed after %v", n, killed)
	}
	if n, killed := other.open(t, many); killed > 0 || n < many {
		t.Errorf("in one of another image that ran before the agent: opened %d times, killed after %v", n, killed)
	}

	// The control: without a container of that image nothing happens.
	if n, killed := in(-1, many); killed > 0 || n < many {
		t.Errorf("in no container: opened %d times, killed after %v", n, killed)
	}
	if n, killed := in(1, many); killed > 0 || n < many {
		t.Errorf("in a container of another image: opened %d times, killed after %v", n, killed)
	}
	for _, i := range []int{0, 2} {
		n, killed := in(i, never)
		if killed == 0 {
			t.Errorf("in a container of the image: opened %d times, and lives", n)
		}
		t.Logf("the first process of container %d was killed %v after its start; it had opened the file %d times", i, killed.Round(100*time.Microsecond), n)
		// From then on the rule holds from the first open.
		if n, killed := in(i, never); killed == 0 || n > 0 {
			t.Errorf("in a container that is known: opened %d times, killed after %v", n, killed)
		}
	}
	if n, killed := in(1, many); killed > 0 || n < many {
		t.Errorf("in a container of another image, after that: opened %d times, killed after %v", n, killed)
	}
	eventually(t, "the kill is told", func() bool { return s.has("images/nginx") })
}
