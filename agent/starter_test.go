package agent

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/pavise-project/pavise"
	"github.com/pavise-project/pavise/enforce"
	"github.com/pavise-project/pavise/internal/kerntest"
	"github.com/pavise-project/pavise/policy"
	"golang.org/x/sys/unix"
)

// seen is what a live agent has told of acts below this test's own process, and of everyone else's.
type seen struct {
	agent *Agent

	mu     sync.Mutex
	mine   []string // policy/rule
	others []string
}

func (s *seen) has(rule string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.mine {
		if r == rule {
			return true
		}
	}
	return false
}

// observed reports whether this machine has a rung for the rule.
func (s *seen) observed(rule string) bool {
	policy, name, _ := strings.Cut(rule, "/")
	for _, p := range s.agent.policyStatus(policy) {
		for _, r := range p.Rules {
			if r.Name == name {
				return r.State != "not observed"
			}
		}
	}
	return false
}

// live runs a real agent until the test ends.
func live(t *testing.T, policies ...string) *seen {
	t.Helper()
	return liveWith(t, func(c *Config) { c.Policies = loaded(t, policies...) })
}

func loaded(t *testing.T, files ...string) []*policy.Policy {
	t.Helper()
	set, err := LoadPolicies(files)
	if err != nil {
		t.Fatal(err)
	}
	return set
}

func liveWith(t *testing.T, edit func(*Config)) *seen {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	log := slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))
	k, err := enforce.Open(ctx, enforce.Options{Log: log})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	s := &seen{}
	ready, done := make(chan struct{}), make(chan error, 1)
	var a *Agent
	cfg := Config{
		Socket: filepath.Join(dir, "p.sock"), StateDir: filepath.Join(dir, "state"), Kernel: k, Log: log,
		OnReady: func(*Status) { close(ready) },
		OnEvent: func(e *pavise.Event) {
			if e.Policy == "" {
				return
			}
			mine := false
			for p := a.withAncestors(e).Process; p != nil; p = p.Parent {
				mine = mine || int(p.PID) == os.Getpid()
			}
			s.mu.Lock()
			defer s.mu.Unlock()
			if mine {
				s.mine = append(s.mine, e.Policy+"/"+e.Rule)
			} else {
				s.others = append(s.others, string(e.AppendText(nil, false)))
			}
		},
	}
	edit(&cfg)
	a, err = New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	s.agent = a
	go func() { done <- a.Run(ctx) }()
	select {
	case <-ready:
	case err := <-done:
		t.Fatal(err)
	case <-time.After(2 * time.Minute):
		t.Fatal("the agent did not get ready")
	}
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return s
}

// act runs a shell script in mount and network namespaces of its own: what it mounts, and writes there, ends with it, and no
// connection of it leads anywhere. $T is a directory for it.
func act(t *testing.T, dir, script string, files ...*os.File) {
	t.Helper()
	c := exec.Command("/bin/sh", "-c", script)
	c.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "T=" + dir}
	c.ExtraFiles = files
	c.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS | unix.CLONE_NEWNET}
	if out, err := c.CombinedOutput(); err != nil {
		t.Logf("%s: %v: %s", script, err, out)
	}
}

// TestKernelStarterPolicies does what each starter policy is for, and what machines do all day.
func TestKernelStarterPolicies(t *testing.T) {
	kerntest.Require(t, kerntest.Root, kerntest.BPF, kerntest.BTF, kerntest.TpBtf, kerntest.Cgroup)
	s := live(t, "../policies")
	dir := t.TempDir()

	// Ordinary life first, before anything else could have been told.
	act(t, dir, `ls -l /etc /root /etc/shadow >/dev/null; cat /etc/passwd >/dev/null; id >/dev/null; : >"$T/new"; rm "$T/new"
		head -c 1 /etc/hostname >/dev/null; perl -e 'print "x"' >/dev/null; sh -c 'true | cat'; find /usr/bin -maxdepth 1 >/dev/null; stat /etc/sudoers >/dev/null 2>&1; true`)
	time.Sleep(3 * time.Second)
	s.mu.Lock()
	if len(s.mine) > 0 {
		t.Errorf("ordinary life is told: %v", s.mine)
	}
	for _, o := range s.others {
		// Tests that others run here are built in /tmp.
		if !strings.Contains(o, "exec-from-writable/") {
			t.Errorf("an idle machine is told: %s", o)
		}
	}
	s.mu.Unlock()

	for _, f := range []string{"nginx", "crontab", "nc"} {
		shell := map[string]string{"nc": "/bin/bash"}[f]
		if shell == "" {
			shell = "/bin/sh"
		}
		if out, err := exec.Command("cp", "-L", shell, filepath.Join(dir, f)).CombinedOutput(); err != nil {
			t.Fatalf("copy %s: %v: %s", shell, err, out)
		}
	}
	memfd := memfdOf(t, "/bin/true")
	for _, c := range []struct{ rule, script string }{
		{"credential-files/password-hashes", `cat /etc/shadow >/dev/null`},
		{"credential-files/ssh-host-keys", `mount -t tmpfs none /etc/ssh; echo x >/etc/ssh/ssh_host_test_key; cat /etc/ssh/ssh_host_test_key`},
		{"credential-files/ssh-user-keys", `mount -t tmpfs none /root; mkdir /root/.ssh; echo x >/root/.ssh/id_test; cat /root/.ssh/id_test`},
		{"credential-files/cloud-credentials", `mount -t tmpfs none /root; mkdir /root/.aws; echo x >/root/.aws/credentials; cat /root/.aws/credentials`},

		{"exec-from-writable/world-writable", `mount -t tmpfs none /tmp; cp -L /bin/true /tmp/dropped; /tmp/dropped`},
		{"exec-from-writable/deleted", `mount -t tmpfs none /mnt; cp -L /bin/true /mnt/gone; exec 4</mnt/gone; rm /mnt/gone; /proc/self/fd/4; true`},
		{"exec-from-writable/memfd", `/proc/self/fd/3; true`},

		{"persistence/binaries", `mount -t tmpfs none /usr/lib/tmpfiles.d; echo x >/usr/lib/tmpfiles.d/x`},
		{"persistence/cron", `mount -t tmpfs none /etc; mkdir /etc/cron.d; echo x >/etc/cron.d/x`},
		{"persistence/crontab", `mount -t tmpfs none /var/spool; mkdir /var/spool/cron; mount --bind "$T" /usr/bin; /usr/bin/crontab -c 'echo x >/var/spool/cron/root'`},
		{"persistence/systemd-units", `mount -t tmpfs none /etc; mkdir -p /etc/systemd/system; echo x >/etc/systemd/system/x.service`},
		{"persistence/ssh-authorized-keys", `mount -t tmpfs none /root; mkdir /root/.ssh; echo x >/root/.ssh/authorized_keys`},
		{"persistence/loader", `mount -t tmpfs none /etc; : >/etc/ld.so.preload`},
		{"persistence/boot-and-login", `mount -t tmpfs none /etc; mkdir /etc/profile.d; echo x >/etc/profile.d/x.sh`},

		{"shell-outbound/shell-connects", `bash -c 'exec 3<>/dev/tcp/192.0.2.1/9'`},
		{"shell-outbound/interpreter-connects", `perl -MSocket -e 'socket(S, PF_INET, SOCK_STREAM, 6); connect(S, sockaddr_in(9, inet_aton("192.0.2.1")))'`},
		{"shell-outbound/relay-connects", `mount --bind "$T" /usr/bin; /usr/bin/nc -c 'exec 3<>/dev/tcp/192.0.2.1/9'`},

		{"web-shell/server-runs-shell", `"$T/nginx" -c '/bin/sh -c :; true'`},
		{"web-shell/server-runs-tool", `"$T/nginx" -c '/usr/bin/id >/dev/null; true'`},
	} {
		if s.has(c.rule) {
			t.Errorf("%s was told before its act", c.rule)
		}
		if !s.observed(c.rule) {
			t.Logf("%s is not observed on this machine", c.rule)
			continue
		}
		act(t, dir, c.script, memfd)
		for end := time.Now().Add(30 * time.Second); !s.has(c.rule); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(end) {
				t.Errorf("%s is not told: %s", c.rule, c.script)
				break
			}
		}
	}
}

// memfdOf is a program in memory, open for reading only: open for writing it could not be executed.
func memfdOf(t *testing.T, program string) *os.File {
	t.Helper()
	b, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.MemfdCreate("dropped", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	w := os.NewFile(uintptr(fd), "dropped")
	defer w.Close()
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	r, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err == nil {
		t.Cleanup(func() { _ = r.Close() })
		return r
	}
	t.Fatal(err)
	return nil
}
