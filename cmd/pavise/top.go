package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/pavise-project/pavise/agent"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

const (
	minTop = 200 * time.Millisecond
	maxTop = time.Hour
)

func (a *app) top() *cobra.Command {
	var q agent.TopQuery
	v := &topView{by: "process", sort: "events"}
	c := &cobra.Command{
		Use: "top", Short: "Show what goes on, as it goes on: rates, denials, the busiest processes and rules, loss, cost",
		Long: `Show what goes on, for each --interval: how many events of each operation the kernel saw, folded and lost, what was denied, the processes and rules
that are behind it, and what each hook costs.

On a terminal it is a screen:
  p r o h     processes, rules, operations, hooks
  s           sort by events, denials, or name
  space       hold the screen, and go on
  q           quit
A pipe gets a line of JSON for each interval, or with -o text the screens one after another.

Processes are counted by the events that come of them: of an act that no rule asks for, none comes. Hooks are timed by the kernel while this runs: each run of every BPF
program of the machine then takes some tens of nanoseconds longer. --cost=false leaves that out; so does it for who has the role read only.`,
		Example: "  pavise top\n  pavise top --by rule --interval 5s\n  pavise top --count 1 --cost=false | jq '.processes[0]'",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if q.Interval < minTop || q.Interval > maxTop {
				return usageError{fmt.Errorf("--interval %s: %s to %s are possible", q.Interval, minTop, maxTop)}
			}
			if q.Count < 0 {
				return usageError{fmt.Errorf("--count %d: must not be under 0", q.Count)}
			}
			if !slices.Contains(topBy, v.by) {
				return usageError{fmt.Errorf("--by %q: %s are possible", v.by, strings.Join(topBy, ", "))}
			}
			if !slices.Contains(topSort, v.sort) {
				return usageError{fmt.Errorf("--sort %q: %s are possible", v.sort, strings.Join(topSort, ", "))}
			}
			cl := a.client()
			defer cl.Close()
			if q.Cost && !c.Flags().Changed("cost") {
				s, err := cl.Status(c.Context())
				if err != nil {
					return err
				}
				if q.Cost = s.Peer == nil || s.Peer.Role != "read"; !q.Cost {
					v.noCost = "the role read may not have hooks timed"
				}
			}
			if !q.Cost && v.noCost == "" {
				v.noCost = "--cost=false"
			}
			v.color, v.interval = a.color(), q.Interval
			if form := a.streamForm(c); form == "json" {
				return a.topStream(c.Context(), cl, q, func(line []byte) error {
					_, err := a.stdout.Write(append(line, '\n'))
					return err
				})
			}
			if a.terminal {
				q.Rows = 200
				return a.topScreen(c.Context(), cl, q, v)
			}
			return a.topStream(c.Context(), cl, q, func(line []byte) error {
				if err := v.take(line); err != nil {
					return err
				}
				_, err := io.WriteString(a.stdout, strings.Join(v.render(a.width, 0), "\n")+"\n\n")
				return err
			})
		},
	}
	f := c.Flags()
	f.DurationVar(&q.Interval, "interval", 2*time.Second, "the time between two looks")
	f.IntVar(&q.Count, "count", 0, "end after so many; 0 goes on")
	f.IntVar(&q.Rows, "rows", 20, "at most this many processes and rules, when the output is no screen")
	f.StringVar(&v.by, "by", v.by, "what the table is of: process, rule, op or hook")
	f.StringVar(&v.sort, "sort", v.sort, "what it is sorted by: events, denied or name")
	f.BoolVar(&q.Cost, "cost", true, "have the kernel time the hooks while this runs")
	return c
}

// topStream calls fn for each line, until there are enough or the command ends.
func (a *app) topStream(ctx context.Context, cl *agent.Client, q agent.TopQuery, fn func(line []byte) error) error {
	n := 0
	err := cl.Top(ctx, q, func(line []byte) error { n++; return fn(line) })
	switch {
	case ctx.Err() != nil, err == nil && n == q.Count && n > 0:
		return nil
	case err == nil:
		return fmt.Errorf("%w any more: it ended the stream", agent.ErrNoAgent)
	}
	return err
}

// take makes a line of the stream what the view shows.
func (v *topView) take(line []byte) error {
	t := new(agent.Top)
	if err := json.Unmarshal(line, t); err != nil {
		return fmt.Errorf("read what goes on: %w", err)
	}
	v.top = t
	return nil
}

// topScreen draws on the terminal until somebody quits. Whatever ends it, the terminal is as it was.
func (a *app) topScreen(ctx context.Context, cl *agent.Client, q agent.TopQuery, v *topView) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	restore, keys := rawKeys(os.Stdin)
	defer restore()
	// The other screen, without a cursor; and back.
	if _, err := io.WriteString(a.stdout, "\x1b[?1049h\x1b[?25l"); err != nil {
		return err
	}
	defer func() { _, _ = io.WriteString(a.stdout, "\x1b[?25h\x1b[?1049l") }()
	resized := make(chan os.Signal, 1)
	signal.Notify(resized, syscall.SIGWINCH)
	defer signal.Stop(resized)

	lines, ended := make(chan []byte), make(chan error, 1)
	go func() {
		ended <- a.topStream(ctx, cl, q, func(line []byte) error {
			select {
			case lines <- slices.Clone(line):
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
	}()
	for {
		w, h := screenSize(os.Stdout)
		var b strings.Builder
		b.WriteString("\x1b[H")
		for i, l := range v.render(w, h) {
			if i > 0 {
				b.WriteString("\r\n")
			}
			b.WriteString(l + "\x1b[K")
		}
		b.WriteString("\x1b[J")
		if _, err := io.WriteString(a.stdout, b.String()); err != nil {
			return err
		}
		select {
		case line := <-lines:
			if v.held {
				continue
			}
			if err := v.take(line); err != nil {
				return err
			}
		case k := <-keys:
			if !v.key(k) {
				return nil
			}
		case <-resized:
		case err := <-ended:
			return err
		case <-ctx.Done():
			return nil
		}
	}
}

// rawKeys has a terminal give each key as it is pressed. Of what is no terminal, no key comes.
func rawKeys(f *os.File) (restore func(), keys <-chan byte) {
	old, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	if err != nil {
		return func() {}, nil
	}
	raw := *old
	raw.Lflag &^= unix.ICANON | unix.ECHO // ^C stays a signal
	raw.Cc[unix.VMIN], raw.Cc[unix.VTIME] = 1, 0
	raw.Cc[unix.VSUSP] = 0 // a stopped process would leave the terminal without a cursor
	if err := unix.IoctlSetTermios(int(f.Fd()), unix.TCSETS, &raw); err != nil {
		return func() {}, nil
	}
	ch := make(chan byte)
	go func() { // it ends with the process
		var b [1]byte
		for {
			if n, err := f.Read(b[:]); n == 0 || err != nil {
				b[0] = 'q' // the terminal is gone
			}
			ch <- b[0]
			if b[0] == 'q' {
				return
			}
		}
	}()
	return func() { _ = unix.IoctlSetTermios(int(f.Fd()), unix.TCSETS, old) }, ch
}

func screenSize(f *os.File) (w, h int) {
	ws, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil || ws.Col == 0 || ws.Row == 0 {
		return 80, 24
	}
	return int(ws.Col), int(ws.Row)
}
