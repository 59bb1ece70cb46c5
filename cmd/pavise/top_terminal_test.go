package main

import (
	"bytes"
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

	"github.com/pavise-project/pavise/agent"
	"golang.org/x/sys/unix"
)

// pty is a terminal: what is written to its near end are keys, and what comes out is the screen.
func pty(t *testing.T) (near, far *os.File) {
	t.Helper()
	near, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = near.Close() })
	if err := unix.IoctlSetPointerInt(int(near.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(near.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	far, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = far.Close() })
	return near, far
}

// screen keeps what a terminal was sent.
type screen struct {
	mu  sync.Mutex
	all bytes.Buffer
}

func (s *screen) text() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.all.String()
}

// await waits until the screen has text beyond the first n bytes, and returns how many it has then.
func (s *screen) await(t *testing.T, n int, text string) int {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		all := s.text()
		if strings.Contains(all[n:], text) {
			return len(all)
		}
		if time.Now().After(end) {
			t.Fatalf("no %q in %q", text, all[n:])
		}
	}
}

// TestTopOnTerminal runs pavise top on a terminal: it draws, follows keys and the terminal's size, and leaves the terminal as it was.
func TestTopOnTerminal(t *testing.T) {
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	ready := make(chan struct{})
	cfg := agent.Config{
		Socket: filepath.Join(dir, "p.sock"), Kernel: &fakeKernel{gone: make(chan struct{})}, Log: slog.New(slog.DiscardHandler),
		OnReady: func(*agent.Status) { close(ready) },
	}
	testApp().tweak(&cfg)
	ag, err := agent.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- ag.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	<-ready

	near, far := pty(t)
	size := func(w, h uint16) {
		t.Helper()
		if err := unix.IoctlSetWinsize(int(near.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Col: w, Row: h}); err != nil {
			t.Fatal(err)
		}
	}
	size(80, 24)
	before, err := unix.IoctlGetTermios(int(far.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	var s screen
	go func() {
		buf := make([]byte, 64<<10)
		for {
			n, err := near.Read(buf)
			s.mu.Lock()
			s.all.Write(buf[:n])
			s.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, end := range []string{"key", "signal"} {
		begin := len(s.text())
		c := exec.Command(self, "--socket", cfg.Socket, "top", "--interval", "200ms")
		c.Env = append(os.Environ(), benchAgent+"=1", "NO_COLOR=")
		c.Stdin, c.Stdout, c.Stderr = far, far, far
		c.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		n := s.await(t, begin, "\x1b[?1049h\x1b[?25l\x1b[H") // another screen, without a cursor
		n = s.await(t, n, "EVENTS/S  DENIED/S  WOULD/S  PID  USER  IN  PROGRAM")
		if end == "key" {
			if _, err := near.WriteString("h"); err != nil {
				t.Fatal(err)
			}
			s.await(t, n, "lsm_file_open")
			n = len(s.text())
			size(20, 3)
			n = s.await(t, n, "…\x1b[K\x1b[J") // the third line is the last, and cut
			if _, err := near.WriteString("q"); err != nil {
				t.Fatal(err)
			}
		} else if err := c.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		if err := c.Wait(); err != nil {
			t.Errorf("%s: %v", end, err)
		}
		s.await(t, n, "\x1b[?25h\x1b[?1049l")
		after, err := unix.IoctlGetTermios(int(far.Fd()), unix.TCGETS)
		if err != nil || *after != *before {
			t.Errorf("%s: the terminal is another: %+v, was %+v, %v", end, after, before, err)
		}
		size(80, 24)
	}
}
