package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pavise-project/pavise"
	"github.com/pavise-project/pavise/enforce"
	"github.com/pavise-project/pavise/internal/kerntest"
	"golang.org/x/sys/unix"
)

func connectTo(a, b byte) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Connect(fd, &unix.SockaddrInet4{Port: 9, Addr: [4]byte{127, a, b, 1}})
}

// TestKernelUnderLoadPolicyChange applies, edits and deletes policies through the API of an agent on this kernel, under load.
func TestKernelUnderLoadPolicyChange(t *testing.T) {
	kerntest.Require(t, kerntest.Root, kerntest.Syscall, kerntest.TpBtf)
	k, err := enforce.Open(t.Context(), enforce.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if !k.Machine()[pavise.OpConnect].Deny {
		k.Close()
		t.Skip(kerntest.NotExpected + "net.connect cannot be denied")
	}
	var denied atomic.Int64
	ready, done := make(chan struct{}), make(chan error, 1)
	a, err := New(Config{
		Socket: filepath.Join(t.TempDir(), "s"), Kernel: k, Log: slog.New(slog.NewTextHandler(testWriter{t}, nil)),
		OnReady: func(*Status) { close(ready) },
		OnEvent: func(e *pavise.Event) {
			if e.Op == pavise.OpConnect && e.Action == pavise.ActionDeny {
				if e.Policy == "" || e.Rule == "" || e.Process == nil {
					t.Errorf("an event without its policy or process: %+v", e)
				}
				denied.Add(1)
			}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() { done <- a.Run(ctx) }()
	<-ready
	c := NewClient(a.cfg.Socket)
	defer func() {
		c.Close()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	yaml := func(name string, nets ...int) []byte {
		s := fmt.Sprintf("apiVersion: pavise.dev/v1alpha1\nkind: Policy\nmetadata: {name: %s}\nspec:\n  mode: enforce\n  rules:\n", name)
		for _, n := range nets {
			s += fmt.Sprintf("  - {name: net%d, on: [net.connect], action: deny, when: 'net.remote.address.within(\"127.%d.0.0/16\")'}\n", n, n)
		}
		return []byte(s)
	}
	apply := func(data []byte) error {
		_, err := c.Apply(t.Context(), "test.yaml", data, nil, ApplyOptions{})
		return err
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(apply(yaml("always", 91)))

	load, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for net, want := range map[byte]error{91: unix.EPERM, 99: nil} {
		wg.Go(func() {
			for i := byte(0); load.Err() == nil; i++ {
				if err := connectTo(net, i); !errors.Is(err, want) {
					t.Errorf("connect to 127.%d: %v, want %v", net, err, want)
					return
				}
			}
		})
	}
	check := func(when string, net byte, want error) {
		t.Helper()
		if err := connectTo(net, 1); !errors.Is(err, want) {
			t.Errorf("%s, connect to 127.%d: %v, want %v", when, net, err, want)
		}
	}
	rounds := 20
	if kerntest.VM() != "" {
		rounds = 3
	}
	begin := time.Now()
	for range rounds {
		must(apply(yaml("mine", 92)))
		check("after apply", 92, unix.EPERM)
		must(apply(yaml("mine", 93, 91)))
		check("after an edit", 92, nil)
		check("after an edit", 93, unix.EPERM)
		if err := apply([]byte("apiVersion: pavise.dev/v1alpha1\nkind: Policy\nmetadata: {name: mine}\nspec: {mode: enforce, rules: [{name: r, on: [net.connect], action: deny, when: 'net.remote.adress == 1'}]}\n")); err == nil {
			t.Error("a bad edit was accepted")
		}
		check("after a bad edit", 93, unix.EPERM)
		if _, err := c.Delete(t.Context(), "mine"); err != nil {
			t.Fatal(err)
		}
		check("after delete", 93, nil)
		check("after delete", 91, unix.EPERM)
	}
	took := time.Since(begin)
	stop()
	wg.Wait()
	time.Sleep(50 * time.Millisecond)
	if denied.Load() == 0 {
		t.Error("no denied connect was told")
	}
	t.Logf("%d changes in %v, %d events of denied connects", 3*rounds, took.Round(time.Millisecond), denied.Load())
}

// TestKernelShadowThroughAPI tries a candidate on this kernel through the API: it has no effect, its events name its rules, and it follows the active policies.
func TestKernelShadowThroughAPI(t *testing.T) {
	kerntest.Require(t, kerntest.Root, kerntest.Syscall, kerntest.TpBtf)
	k, err := enforce.Open(t.Context(), enforce.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if !k.Machine()[pavise.OpConnect].Deny {
		k.Close()
		t.Skip(kerntest.NotExpected + "net.connect cannot be denied")
	}
	events := make(chan string, 64)
	ready, done := make(chan struct{}), make(chan error, 1)
	a, err := New(Config{
		Socket: filepath.Join(t.TempDir(), "s"), Kernel: k, Log: slog.New(slog.NewTextHandler(testWriter{t}, nil)),
		OnReady: func(*Status) { close(ready) },
		OnEvent: func(e *pavise.Event) {
			if e.Shadow != pavise.DecisionNone {
				events <- fmt.Sprintf("%s/%s: %s, not %s", e.Policy, e.Rule, e.Shadow, e.Active)
			}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() { done <- a.Run(ctx) }()
	<-ready
	c := NewClient(a.cfg.Socket)
	defer func() {
		c.Close()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	yaml := func(name string, net int) []byte {
		return fmt.Appendf(nil, "apiVersion: pavise.dev/v1alpha1\nkind: Policy\nmetadata: {name: %s}\nspec:\n  mode: enforce\n  rules:\n"+
			"  - {name: net%d, on: [net.connect], action: deny, when: 'net.remote.address.within(\"127.%d.0.0/16\")'}\n", name, net, net)
	}
	apply := func(name string, net int) {
		t.Helper()
		if _, err := c.Apply(t.Context(), "x.yaml", yaml(name, net), nil, ApplyOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	try := func(net byte, denied bool) {
		t.Helper()
		if err := connectTo(net, 1); errors.Is(err, unix.EPERM) != denied {
			t.Errorf("a connect to 127.%d.1.1 gave %v", net, err)
		}
	}
	told := func(want string) {
		t.Helper()
		select {
		case got := <-events:
			if got != want {
				t.Errorf("told %q, want %q", got, want)
			}
		case <-time.After(20 * time.Second):
			t.Errorf("not told: %q", want)
		}
	}

	apply("web", 91)
	if _, err := c.SetShadow(t.Context(), "x.yaml", yaml("web", 92), nil); err != nil {
		t.Fatal(err)
	}
	try(92, false)
	told("web/net92: deny, not allow")
	try(91, true)
	told("web/net91: allow, not deny")

	// Another policy becomes active: it is the candidate's too.
	apply("late", 93)
	try(93, true)
	try(94, false)
	try(92, false)
	try(91, true)
	s, err := c.Shadow(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if r := s.Policies[0].Rules[0]; !s.On || r.Hits != 2 || r.Stricter != 2 || len(s.Ops) != 1 || s.Ops[0].Stricter != 2 || s.Ops[0].Laxer != 2 {
		t.Errorf("%+v", s)
	}
	var shadowed int
	if err := c.Events(t.Context(), EventQuery{Where: "shadow", Limit: -1}, func([]byte) error { shadowed++; return nil }); err != nil || shadowed < 2 {
		t.Errorf("%d events where shadow, %v", shadowed, err)
	}
	if _, err := c.EndShadow(t.Context()); err != nil {
		t.Fatal(err)
	}
	try(92, false)
	try(91, true)
	if _, err := c.Apply(t.Context(), "x.yaml", yaml("web", 92), nil, ApplyOptions{}); err != nil {
		t.Fatal(err)
	}
	try(92, true) // the same, active
	try(91, false)
	st := a.status()
	for _, o := range st.Ops {
		if o.Seen != o.Delivered+o.Folded+o.Lost {
			t.Errorf("%s: %d seen, %d delivered + %d folded + %d lost", o.Op, o.Seen, o.Delivered, o.Folded, o.Lost)
		}
	}
}
