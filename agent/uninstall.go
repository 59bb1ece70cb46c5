package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/pavise-project/pavise/enforce"
	"golang.org/x/sys/unix"
)

// Places are where an agent leaves something.
type Places struct{ Pins, StateDir, Socket string }

// ErrAgentRuns says that what an agent uses cannot be taken away.
var ErrAgentRuns = errors.New("an agent runs")

// stateNames are what an agent makes in its state directory.
var stateNames = []string{"agent.lock", "history", "revisions", "running.json", "running.json.new"}

// Uninstall ends what agents have left in force and removes what is theirs, or with dry only says what that is; an empty place is left out. It returns what it
// removed, and what it left since it is nobody's it knows. Without an agent's traces it does nothing. The error wraps ErrAgentRuns while one uses them.
func Uninstall(p Places, dry bool) (removed, left []string, err error) {
	if p.Socket != "" {
		if c, err := net.DialTimeout("unix", p.Socket, time.Second); err == nil {
			_ = c.Close()
			return nil, nil, fmt.Errorf("%w: it answers on %s", ErrAgentRuns, p.Socket)
		}
	}
	if p.StateDir != "" {
		if unlock, err := lockLeft(p.StateDir); err != nil {
			return nil, nil, err
		} else {
			defer unlock()
		}
	}
	if p.Pins != "" {
		// First: this is what stops and denies.
		removed, err = enforce.RemoveLeft(p.Pins, dry)
		if errors.Is(err, enforce.ErrPinsInUse) {
			err = fmt.Errorf("%w: %w", ErrAgentRuns, err)
		}
		if err != nil {
			return removed, nil, err
		}
	}
	remove := func(name string, all bool) error {
		if _, err := os.Lstat(name); errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if !dry {
			f := os.Remove
			if all {
				f = os.RemoveAll
			}
			if err := f(name); err != nil {
				return fmt.Errorf("remove: %w", err)
			}
		}
		removed = append(removed, name)
		return nil
	}
	if p.StateDir != "" {
		entries, err := os.ReadDir(p.StateDir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return removed, left, fmt.Errorf("list the state directory: %w", err)
		}
		for _, e := range entries {
			name := filepath.Join(p.StateDir, e.Name())
			if !slices.Contains(stateNames, e.Name()) {
				left = append(left, name)
				continue
			}
			if err := remove(name, true); err != nil {
				return removed, left, err
			}
		}
		if len(left) == 0 {
			if err := remove(p.StateDir, false); err != nil {
				return removed, left, err
			}
		}
	}
	if p.Socket != "" {
		if st, err := os.Lstat(p.Socket); err == nil && st.Mode().Type() == os.ModeSocket {
			if err := remove(p.Socket, false); err != nil {
				return removed, left, err
			}
		}
		if dir := filepath.Dir(p.Socket); dir == filepath.Dir(DefaultSocket) {
			entries, err := os.ReadDir(dir)
			if err == nil && (len(entries) == 0 || dry && slices.Contains(removed, p.Socket) && len(entries) == 1) {
				if err := remove(dir, false); err != nil {
					return removed, left, err
				}
			}
		}
	}
	return removed, left, nil
}

// lockLeft is lockState of a directory that an agent may have left.
func lockLeft(dir string) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(dir, "agent.lock"), os.O_RDWR|unix.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return func() {}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open lock: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("%w: it uses %s", ErrAgentRuns, dir)
		}
		return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	return func() { _ = f.Close() }, nil
}
