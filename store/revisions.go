package store

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// ErrNoRevision says that there is no revision of that number.
var ErrNoRevision = errors.New("no such revision")

// Document is one policy of a revision, as it was written.
type Document struct {
	Name string            `json:"name"`
	File string            `json:"file,omitempty"`
	YAML string            `json:"yaml"`
	Sets map[string][]byte `json:"sets,omitempty"` // the files that it names
}

// By is who asked for a revision. A local caller is known to the kernel; the agent itself has no UID.
type By struct {
	UID     *uint32 `json:"uid,omitempty"`
	PID     int32   `json:"pid,omitempty"`
	Command string  `json:"command,omitempty"` // the caller's own name for itself: it proves nothing
}

// Revision is one whole set of policies.
type Revision struct {
	Number    uint64     `json:"number"` // from 1
	ID        string     `json:"id"`     // "sha256:..." of the documents: the same set has the same one
	Time      time.Time  `json:"time"`
	By        By         `json:"by"`
	From      string     `json:"from"` // what made it: apply, delete, mode, rollback, start
	Documents []Document `json:"documents"`
	Files     []Document `json:"files"` // the files that the agent was started with then
}

// Pending is a revision that is taken back unless it is confirmed.
type Pending struct {
	BackTo uint64    `json:"back_to"`
	Boot   string    `json:"boot"`  // the boot during which it was made
	Until  int64     `json:"until"` // CLOCK_BOOTTIME of that boot, nanoseconds
	Wall   time.Time `json:"wall"`  // the same for people
}

// Current says which revision is in force.
type Current struct {
	Revision uint64   `json:"revision"`
	Pending  *Pending `json:"pending,omitempty"`
}

// The limits of what is kept; what is in force, and what may come back, is kept in any case.
const (
	keepRevisions = 256
	keepBytes     = 256 << 20
)

const (
	kindRevision = "revision"
	kindCurrent  = "current"
)

// Revisions are the revisions in a directory. Its methods may be called from any goroutine. One process uses it at a time.
type Revisions struct {
	dir string

	mu      sync.Mutex
	last    uint64
	current Current
}

// OpenRevisions makes the directory if need be, and finds out which revision is in force. Damaged are the files that are not what was written: what
// was in force then is the newest revision that is whole, and before that one.
func OpenRevisions(dir string) (r *Revisions, damaged []error, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, nil, fmt.Errorf("make the directory of revisions: %w", err)
	}
	r = &Revisions{dir: dir}
	numbers, err := r.numbers()
	if err != nil {
		return nil, nil, err
	}
	if len(numbers) > 0 {
		r.last = numbers[len(numbers)-1]
	}
	switch err := readFile(r.currentName(), kindCurrent, &r.current); {
	case errors.Is(err, fs.ErrNotExist) && len(numbers) == 0:
		return r, nil, nil
	case err != nil:
		damaged = append(damaged, err)
		r.current = Current{Revision: r.last}
	}
	// A pointer to what is gone or damaged: the one before.
	for i := len(numbers) - 1; i >= 0; i-- {
		if numbers[i] > r.current.Revision {
			continue
		}
		if _, err := r.Get(numbers[i]); err != nil {
			damaged = append(damaged, err)
			continue
		}
		if r.current.Revision != numbers[i] {
			r.current = Current{Revision: numbers[i]}
		}
		return r, damaged, nil
	}
	r.current = Current{}
	return r, damaged, nil
}

func (r *Revisions) currentName() string { return filepath.Join(r.dir, "current") }

func (r *Revisions) name(n uint64) string { return revisionName(r.dir, n) }

func revisionName(dir string, n uint64) string {
	return filepath.Join(dir, fmt.Sprintf("%010d.json", n))
}

// numbers are those of the files that are there, in order. It removes what a crash left behind.
func (r *Revisions) numbers() ([]uint64, error) {
	entries, err := os.ReadDir(r.dir)
	if err != nil {
		return nil, fmt.Errorf("list revisions: %w", err)
	}
	var out []uint64
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".new-") {
			_ = os.Remove(filepath.Join(r.dir, e.Name()))
			continue
		}
		digits, ok := strings.CutSuffix(e.Name(), ".json")
		if n, err := strconv.ParseUint(digits, 10, 64); ok && err == nil && n > 0 {
			out = append(out, n)
		}
	}
	slices.Sort(out)
	return out, nil
}

// Current says which revision is in force; its number is 0 when there is none.
func (r *Revisions) Current() Current {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.current
}

// IDOf is the name of a set of policies by its contents.
func IDOf(docs []Document) string {
	b, err := json.Marshal(docs)
	if err != nil {
		return ""
	}
	return fmt.Sprintf("sha256:%x", sha256.Sum256(b))
}

// Add keeps a revision, and gives it its number and ID. It is not in force yet.
func (r *Revisions) Add(rev *Revision) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	rev.ID, rev.Number = IDOf(rev.Documents), r.last+1
	if err := writeFile(r.name(rev.Number), kindRevision, rev); err != nil {
		return err
	}
	r.last = rev.Number
	return nil
}

// Set says which revision is in force from now on, and removes those that are too many.
func (r *Revisions) Set(c Current) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := writeFile(r.currentName(), kindCurrent, c); err != nil {
		return err
	}
	r.current = c
	return r.trim()
}

// trim removes the oldest revisions beyond the limits.
func (r *Revisions) trim() error {
	numbers, err := r.numbers()
	if err != nil {
		return err
	}
	kept, bytes := 0, int64(0)
	for i := len(numbers) - 1; i >= 0; i-- {
		n := numbers[i]
		st, err := os.Lstat(r.name(n))
		if err != nil {
			continue
		}
		kept++
		bytes += st.Size()
		if kept <= keepRevisions && bytes <= keepBytes || n == r.current.Revision || r.current.Pending != nil && n == r.current.Pending.BackTo {
			continue
		}
		if err := os.Remove(r.name(n)); err != nil {
			return fmt.Errorf("remove an old revision: %w", plain(err))
		}
	}
	return nil
}

// Get reads a revision. The error wraps ErrNoRevision or ErrDamaged.
func (r *Revisions) Get(n uint64) (*Revision, error) { return ReadRevision(r.dir, n) }

// ReadRevision reads a revision by the directory alone, which it does not touch: an agent may use it meanwhile. The error wraps ErrNoRevision or ErrDamaged.
func ReadRevision(dir string, n uint64) (*Revision, error) {
	name := revisionName(dir, n)
	rev := new(Revision)
	err := readFile(name, kindRevision, rev)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("%w: %d", ErrNoRevision, n)
	case err != nil:
		return nil, err
	case rev.Number != n || rev.ID != IDOf(rev.Documents):
		return nil, fmt.Errorf("read %s: %w: it is not revision %d", name, ErrDamaged, n)
	}
	return rev, nil
}

// List reads all revisions, oldest first, and tells of those that are damaged.
func (r *Revisions) List() (revs []*Revision, damaged []error, err error) {
	numbers, err := r.numbers()
	if err != nil {
		return nil, nil, err
	}
	for _, n := range numbers {
		switch rev, err := r.Get(n); {
		case errors.Is(err, ErrNoRevision): // removed meanwhile
		case err != nil:
			damaged = append(damaged, err)
		default:
			revs = append(revs, rev)
		}
	}
	return revs, damaged, nil
}
