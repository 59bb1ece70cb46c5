package agent

import (
	"bufio"
	"errors"
	"fmt"
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
	if _, err := a.Apply(parse(t, fmt.Sprintf(imageYAML, "/secret")), false); err != nil {
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
	roots := dockerState(t, "nginx:1.27", "postgres:16", "nginx:1.28")
	s := liveWith(t, func(c *Config) { c.Policies, c.ContainerState = []string{policyFile}, roots })

	// in runs a shell in the cgroup of container i, or in that of this test, which opens the file again and again. It returns how often it did, and how
	// long after its start it was killed; 0 when it still lived after a time.
	in := func(i int, limit time.Duration) (opened int, killed time.Duration) {
		t.Helper()
		c := exec.Command("/bin/sh", "-c", `i=0; while read x <"$F"; do i=$((i+1)); echo $i; done`)
		c.Env = []string{"F=" + secret}
		c.SysProcAttr = &syscall.SysProcAttr{}
		if i >= 0 {
			group := filepath.Join(mount, "docker-"+containerID(i)+".scope")
			if err := os.Mkdir(group, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
				t.Fatal(err)
			}
			defer os.Remove(group)
			fd, err := unix.Open(group, unix.O_PATH|unix.O_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(fd)
			c.SysProcAttr.UseCgroupFD, c.SysProcAttr.CgroupFD = true, fd
		}
		out, err := c.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		var ours atomic.Bool
		end := time.AfterFunc(limit, func() { ours.Store(true); _ = c.Process.Kill() })
		defer end.Stop()
		for lines := bufio.NewScanner(out); lines.Scan(); {
			if opened, err = strconv.Atoi(lines.Text()); err != nil {
				t.Fatal(err)
			}
		}
		took := time.Since(begin)
		var exit *exec.ExitError
		if err := c.Wait(); !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != unix.SIGKILL {
			t.Fatal(err)
		}
		if ours.Load() {
			return opened, 0
		}
		return opened, took
	}

	// The control: without a container of that image nothing happens.
	if n, killed := in(-1, 400*time.Millisecond); killed > 0 || n < 10 {
		t.Errorf("in no container: opened %d times, killed after %v", n, killed)
	}
	if n, killed := in(1, 400*time.Millisecond); killed > 0 || n < 10 {
		t.Errorf("in a container of another image: opened %d times, killed after %v", n, killed)
	}
	for _, i := range []int{0, 2} {
		n, killed := in(i, 20*time.Second)
		if killed == 0 {
			t.Errorf("in a container of the image: opened %d times, and lives", n)
		}
		t.Logf("the first process of container %d was killed %v after its start; it had opened the file %d times", i, killed.Round(100*time.Microsecond), n)
		// From then on the rule holds from the first open.
		if n, killed := in(i, 20*time.Second); killed == 0 || n > 0 {
			t.Errorf("in a container that is known: opened %d times, killed after %v", n, killed)
		}
	}
	if n, killed := in(1, 400*time.Millisecond); killed > 0 || n < 10 {
		t.Errorf("in a container of another image, after that: opened %d times, killed after %v", n, killed)
	}
	eventually(t, "the kill is told", func() bool { return s.has("images/nginx") })
}
