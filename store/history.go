package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/pavise-project/pavise"
)

// ErrInUse says that another process writes the history.
var ErrInUse = errors.New("another agent uses it")

// Options are the limits of a history. A field that is 0 or nil has the default that stands beside it.
type Options struct {
	MaxBytes int64         // 1 GiB: of all files; the oldest segments are removed
	MaxAge   time.Duration // 30 days: since the last event of a segment
	LogBytes int64         // 64 MiB: a log of that size becomes a segment
	LogAge   time.Duration // an hour: and one that was begun so long ago

	Now  func() time.Time     // time.Now
	Mono func() time.Duration // a clock that nobody sets: that of time.Since
}

func (o *Options) defaults() {
	set := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	if o.MaxBytes <= 0 {
		o.MaxBytes = 1 << 30
	}
	if o.LogBytes <= 0 {
		o.LogBytes = min(64<<20, max(o.MaxBytes/8, 64<<10))
	}
	set(&o.MaxAge, 30*24*time.Hour)
	set(&o.LogAge, time.Hour)
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Mono == nil {
		begin := time.Now()
		o.Mono = func() time.Duration { return time.Since(begin) }
	}
}

// A clock that is set forward by more than clockJump would make all segments old at once. For clockHold after that, none is removed for its age: an error
// in the time is noticed and set right meanwhile.
const (
	clockJump = time.Minute
	clockHold = time.Hour
)

// Recovered is what OpenHistory found of a log that was not closed. What the kernel was given before the agent was killed is
// there; a crash of the machine loses what came after the last Tick.
type Recovered struct {
	Events    int64 // in logs that are no segment yet
	LostBytes int64 // of those logs that are no whole record
	Until     time.Time
	Damaged   []error // logs of which nothing could be read; they stay as they are, as *.log.damaged, while there is room
}

// HistoryStats are counts since OpenHistory, and what is on disk.
type HistoryStats struct {
	Appended uint64 // events
	Dropped  uint64 // events that could not be written
	Lost     uint64 // bytes of damaged logs that were found when segments were made of them
	Removed  uint64 // segments and logs that were removed for the limits or for room
	Jumps    uint64 // of the clock, forward
	Segments int
	Bytes    int64
	Unsynced int64 // bytes that a crash of the machine would lose now
}

// History is what was seen, on disk: a log to which events are appended, and the segments that were made of full logs. Append and Flush are called by one
// goroutine, Tick by one, Seal by one; Scan and Stats by any.
type History struct {
	dir  string
	o    Options
	lock *os.File // the directory

	mu       sync.Mutex
	active   *os.File // nil after Close
	seq      uint64   // of active
	size     int64    // of active
	synced   int64    // of size
	begun    time.Duration
	full     []fullLog // logs that are to become segments, oldest first
	segments []segment // oldest first
	stats    HistoryStats
	broken   bool      // the disk does not keep what it is given: the log goes on in another file
	damaged  []segment // logs that were put aside: of them only the name and the size is known
	buf      []byte    // records that the kernel was not given yet
	buffered uint64    // how many

	scratch [2 * 64]byte // of Append
	row     Row

	wall time.Time // at the last Tick
	mono time.Duration
	hold time.Duration // until then nothing is removed for its age
}

type fullLog struct {
	seq  uint64
	size int64
}

// OpenHistory opens or makes the history in a directory, and finds what a crash left. The error wraps ErrInUse when another process has it.
func OpenHistory(dir string, o Options) (h *History, rec Recovered, err error) {
	o.defaults()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, rec, fmt.Errorf("make the directory of the history: %w", err)
	}
	h = &History{dir: dir, o: o, wall: o.Now(), mono: o.Mono()}
	if h.lock, err = os.Open(dir); err != nil {
		return nil, rec, fmt.Errorf("open the history: %w", err)
	}
	defer func() {
		if err != nil {
			_ = h.lock.Close()
			if h.active != nil {
				_ = h.active.Close()
			}
			h = nil
		}
	}()
	switch err := syscall.Flock(int(h.lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); {
	case errors.Is(err, syscall.EWOULDBLOCK):
		return h, rec, fmt.Errorf("open the history in %s: %w", dir, ErrInUse)
	case err != nil:
		return h, rec, fmt.Errorf("lock the history in %s: %w", dir, err)
	}
	p, err := listParts(dir)
	if err != nil {
		return h, rec, err
	}
	for _, seq := range p.done { // the crash came between the segment and the removal of its log
		p.aside = append(p.aside, h.logName(seq))
		h.seq = max(h.seq, seq)
	}
	for _, name := range p.aside {
		if err := os.Remove(name); err != nil {
			return h, rec, fmt.Errorf("remove what a crash left of the history: %w", err)
		}
	}
	h.segments, h.damaged = p.segments, p.damaged
	for _, s := range p.segments {
		h.seq = max(h.seq, s.seq)
	}
	for i, seq := range p.logs {
		h.seq = max(h.seq, seq)
		if err := h.recover(seq, i == len(p.logs)-1, &rec); err != nil {
			return h, rec, err
		}
	}
	if h.active == nil {
		if err := h.rotateIn(); err != nil {
			return h, rec, err
		}
	}
	return h, rec, h.trim()
}

func (h *History) logName(seq uint64) string { return filepath.Join(h.dir, logName(seq)) }

// recover looks at a log that is no segment. The last one goes on behind its last whole record.
func (h *History) recover(seq uint64, last bool, rec *Recovered) error {
	name := h.logName(seq)
	f, err := os.OpenFile(name, os.O_RDWR|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return fmt.Errorf("recover the history: %w", err)
	}
	var row Row
	var names names
	end, err := readLog(f, func(payload []byte) error {
		if err := row.decode(payload, &names); err != nil {
			rec.LostBytes += int64(len(payload))
			return nil
		}
		rec.Events++
		rec.Until = time.Unix(0, row.Time)
		return nil
	})
	rec.LostBytes += end.gap + end.tail
	switch {
	case errors.Is(err, ErrDamaged):
		size := int64(0)
		if st, err := f.Stat(); err == nil {
			size = st.Size()
		}
		_ = f.Close()
		rec.Damaged = append(rec.Damaged, fmt.Errorf("read %s: %w", name, err))
		if err := os.Rename(name, name+damagedSuffix); err != nil {
			return fmt.Errorf("recover the history: %w", err)
		}
		h.damaged = append(h.damaged, segment{name: name + damagedSuffix, size: size})
		return nil
	case err != nil:
		_ = f.Close()
		return fmt.Errorf("recover %s: %w", name, plain(err))
	case end.records == 0 && end.gap == 0:
		_ = f.Close()
		if err := os.Remove(name); err != nil {
			return fmt.Errorf("recover the history: %w", err)
		}
		return nil
	case !last || end.gap > 0: // its segment gets what is whole
		_ = f.Close()
		h.full = append(h.full, fullLog{seq, end.end})
		return nil
	}
	if end.tail > 0 {
		err = f.Truncate(end.end)
	}
	if err == nil {
		err = f.Sync()
	}
	if err != nil {
		_ = f.Close()
		return fmt.Errorf("recover the history: %w", err)
	}
	h.active, h.seq, h.size, h.synced, h.begun = f, seq, end.end, end.end, h.mono
	return nil
}

// rotate begins another log. What the one before has is to become a segment.
func (h *History) rotate() error {
	seq := h.seq + 1
	f, err := os.OpenFile(h.logName(seq), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("begin a log of the history: %w", err)
	}
	if _, err = f.WriteString(logHeader); err == nil {
		err = syncDir(h.dir)
	}
	if err != nil {
		_ = f.Close()
		_ = os.Remove(f.Name())
		return fmt.Errorf("begin a log of the history: %w", err)
	}
	h.mu.Lock()
	before, size := h.active, h.size
	if before != nil {
		h.full = append(h.full, fullLog{h.seq, size})
	}
	h.active, h.seq, h.size, h.synced, h.begun, h.broken = f, seq, int64(len(logHeader)), 0, h.o.Mono(), false
	h.mu.Unlock()
	if before != nil {
		if err := errors.Join(before.Sync(), before.Close()); err != nil {
			return fmt.Errorf("sync the history: %w", err)
		}
	}
	return nil
}

// rotateIn is rotate where there may be no room.
func (h *History) rotateIn() error {
	for {
		err := h.rotate()
		if full(err) && h.freed() {
			continue
		}
		return err
	}
}

// full tells whether an error is that there is no room.
func full(err error) bool { return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) }

// flushBytes is how much of Append's is given to the kernel together: a call for each event costs more than all else of it.
const flushBytes = 64 << 10

// Append keeps an event. The kernel has it after the next Flush, which comes by itself now and then, and the disk after the next Tick. The error is Flush's.
func (h *History) Append(e *pavise.Event) error {
	h.row.fill(e, h.scratch[:])
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.active == nil {
		h.stats.Dropped++
		return fmt.Errorf("append to the history: %w", fs.ErrClosed)
	}
	begin := len(h.buf)
	h.buf = h.row.encode(beginRecord(h.buf))
	h.buf = e.AppendJSON(h.buf)
	if n := len(h.buf) - begin - recordHead; n > maxRecord {
		h.stats.Dropped++
		h.buf = slices.Clone(h.buf[:begin])
		return fmt.Errorf("append to the history: an event of %d bytes, %d at most", n, maxRecord)
	}
	endRecord(h.buf[begin:])
	h.buffered++
	if len(h.buf) >= flushBytes {
		return h.flush()
	}
	return nil
}

// Flush gives the kernel what was appended: it is not lost when the process is killed. An error says that it was dropped, which is counted. On a full disk
// the oldest segments make room.
func (h *History) Flush() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.flush()
}

// flush is Flush. h.mu is held.
func (h *History) flush() error {
	if h.buffered == 0 {
		return nil
	}
	n, b := h.buffered, h.buf
	h.buffered, h.buf = 0, h.buf[:0]
	if cap(b) > 4*flushBytes {
		h.buf = nil
	}
	if h.active == nil {
		h.stats.Dropped += n
		return fmt.Errorf("append to the history: %w", fs.ErrClosed)
	}
	for {
		_, err := h.active.WriteAt(b, h.size)
		if err == nil {
			h.size += int64(len(b))
			h.stats.Appended += n
			return nil
		}
		// What was written of it is written over by the next one, or skipped by who reads it.
		_ = h.active.Truncate(h.size)
		if full(err) && h.removeOldest() {
			continue
		}
		h.stats.Dropped += n
		return fmt.Errorf("append to the history: %w", plain(err))
	}
}

// removeOldest removes what cannot be read, or the oldest segment, and tells whether there was one. h.mu is held.
func (h *History) removeOldest() bool {
	for len(h.damaged) > 0 {
		s := h.damaged[0]
		h.damaged = slices.Delete(h.damaged, 0, 1)
		h.stats.Removed++
		if err := os.Remove(s.name); err == nil {
			return true
		}
	}
	for len(h.segments) > 0 {
		s := h.segments[0]
		h.segments = slices.Delete(h.segments, 0, 1)
		h.stats.Removed++
		if err := os.Remove(s.name); err == nil {
			return true
		}
	}
	return false
}

func (h *History) freed() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.removeOldest()
}

// Tick is called once a second. It brings what was appended to the disk, begins another log when this one is full or old, and keeps the limits. It may take as long as the disk.
func (h *History) Tick() error {
	h.mu.Lock()
	err := h.flush()
	f, size, synced := h.active, h.size, h.synced
	h.mu.Unlock()
	if f == nil {
		return fmt.Errorf("sync the history: %w", fs.ErrClosed)
	}
	if size > synced {
		serr := f.Sync()
		if serr != nil {
			err = errors.Join(err, fmt.Errorf("sync the history: %w", plain(serr)))
		}
		h.mu.Lock()
		if serr == nil {
			h.synced = size
		} else {
			h.broken = true // what the kernel could not write it may have forgotten
		}
		h.mu.Unlock()
	}
	empty := size <= int64(len(logHeader))
	if !empty && (size >= h.o.LogBytes || h.o.Mono()-h.begun >= h.o.LogAge || h.broken) {
		err = errors.Join(err, h.rotateIn())
	}
	h.clock()
	return errors.Join(err, h.trim())
}

// clock notices when the clock is set forward.
func (h *History) clock() {
	wall, mono := h.o.Now(), h.o.Mono()
	if wall.Round(0).Sub(h.wall.Round(0))-(mono-h.mono) > clockJump {
		h.mu.Lock()
		h.stats.Jumps++
		h.mu.Unlock()
		h.hold = mono + clockHold
	}
	h.wall, h.mono = wall, mono
}

// trim removes the oldest files beyond the limits. A segment whose time is yet to come, after the clock was set back, goes by size alone.
func (h *History) trim() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.mono >= h.hold {
		old := h.wall.Add(-h.o.MaxAge).UnixNano()
		for i := 0; i < len(h.segments); {
			if h.segments[i].to >= old {
				i++
				continue
			}
			if err := os.Remove(h.segments[i].name); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("remove an old segment of the history: %w", err)
			}
			h.segments = slices.Delete(h.segments, i, i+1)
			h.stats.Removed++
		}
	}
	for h.bytes() > h.o.MaxBytes {
		if h.removeOldest() {
			continue
		}
		if len(h.full) < 2 { // the first may be the one that Seal works on
			break
		}
		if err := os.Remove(h.logName(h.full[1].seq)); err != nil {
			return fmt.Errorf("remove a log of the history: %w", err)
		}
		h.full = slices.Delete(h.full, 1, 2)
		h.stats.Removed++
	}
	return nil
}

// bytes is the size of all files. h.mu is held.
func (h *History) bytes() int64 {
	n := h.size
	for _, s := range h.segments {
		n += s.size
	}
	for _, s := range h.damaged {
		n += s.size
	}
	for _, l := range h.full {
		n += l.size
	}
	return n
}

// Seal makes segments of the logs that are full; it returns at once when there are none. It is called after Tick, by a goroutine of its own: what comes
// is appended and brought to the disk meanwhile. After an error, the next call tries again.
func (h *History) Seal(ctx context.Context) error {
	for ctx.Err() == nil {
		h.mu.Lock()
		if len(h.full) == 0 {
			h.mu.Unlock()
			return nil
		}
		l := h.full[0]
		h.mu.Unlock()
		err := h.seal(l)
		if full(err) && h.freed() {
			continue
		}
		if err != nil {
			return err
		}
	}
	return ctx.Err()
}

func (h *History) seal(l fullLog) error {
	f, err := os.Open(h.logName(l.seq))
	if err != nil {
		return fmt.Errorf("write a segment of the history: %w", err)
	}
	defer f.Close()
	s, end, err := writeSegment(h.dir, l.seq, io.NewSectionReader(f, 0, l.size))
	if err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.full = slices.Delete(h.full, 0, 1)
	h.stats.Lost += uint64(end.gap) //nolint:gosec // a count
	if s.name != "" {
		h.segments = append(h.segments, s)
	}
	if err := os.Remove(f.Name()); err != nil {
		return fmt.Errorf("remove a log of the history: %w", err)
	}
	return nil
}

// Scan is Scan of a history that is being written: of what it held at the call.
func (h *History) Scan(ctx context.Context, q Query, fn func(*Row) error) (Scanned, error) {
	p, err := q.plan(fn)
	if err != nil {
		return Scanned{}, err
	}
	h.mu.Lock()
	_ = h.flush() // what is dropped is counted
	segments := slices.Clone(h.segments)
	var seqs []uint64
	for _, l := range h.full {
		seqs = append(seqs, l.seq)
	}
	if h.size > 0 {
		seqs = append(seqs, h.seq)
	}
	logs, err := openLogs(h.dir, seqs)
	h.mu.Unlock()
	if err != nil {
		return Scanned{}, err
	}
	return scan(ctx, p, segments, logs, q.Progress)
}

// Stats says how the history is.
func (h *History) Stats() HistoryStats {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.stats
	s.Segments, s.Bytes, s.Unsynced = len(h.segments), h.bytes(), h.size-h.synced
	return s
}

// Close brings all to the disk. What Append gets after it is dropped.
func (h *History) Close() error {
	h.mu.Lock()
	lost := h.flush()
	f := h.active
	h.active = nil
	h.mu.Unlock()
	if f == nil {
		return nil
	}
	if err := errors.Join(lost, f.Sync(), f.Close(), h.lock.Close()); err != nil {
		return fmt.Errorf("close the history: %w", err)
	}
	return nil
}
