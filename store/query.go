package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// ErrNoHistory says that a directory has none.
var ErrNoHistory = errors.New("no history is here")

// Query says which rows of a history are asked for, and what of them.
type Query struct {
	From, To time.Time // of the events: From is in it, To is not; zero is no bound
	// Equal names columns of text, and for each the values of which a row has one. What has none of them is not read.
	Equal map[string][]string
	// Columns are those that are read: the rest of a Row is as it was. See Columns.
	Columns []string
	// Progress, if set, is called with how many of all bytes have been gone through.
	Progress func(done, all int64)
}

// Scanned says what a scan went through.
type Scanned struct {
	Rows    int64   // that were chosen
	Bytes   int64   // of the files, also of those that were passed over
	Damaged []error // files of which something could not be read; each wraps ErrDamaged
	Lost    int64   // bytes of logs that are no records
}

// plan is a Query as a scan uses it.
type plan struct {
	from, to int64 // to is not in it
	equal    []equal
	columns  []int
	names    names
	call     func(*Row) error
}

type equal struct {
	column int
	values map[string]struct{}
}

func (q *Query) plan(call func(*Row) error) (*plan, error) {
	p := &plan{from: math.MinInt64, to: math.MaxInt64, call: call}
	// Beyond what nanoseconds reach, a bound is none, or nothing is within it.
	if first := time.Unix(0, math.MinInt64); q.From.After(first) && !q.From.IsZero() {
		p.from = math.MaxInt64
		if q.From.Before(time.Unix(0, math.MaxInt64)) {
			p.from = q.From.UnixNano()
		}
	}
	if last := time.Unix(0, math.MaxInt64); q.To.Before(last) && !q.To.IsZero() {
		p.to = math.MinInt64
		if q.To.After(time.Unix(0, math.MinInt64)) {
			p.to = q.To.UnixNano()
		}
	}
	for name, values := range q.Equal {
		i := columnOf(name)
		if i < 0 || i == len(columns) || columns[i].text == nil {
			return nil, fmt.Errorf("query by %q: it is no column of text", name)
		}
		e := equal{column: i, values: make(map[string]struct{}, len(values))}
		for _, v := range values {
			e.values[valid(v)] = struct{}{}
		}
		p.equal = append(p.equal, e)
	}
	// Those that are likely to leave few rows first; the order is the same each time.
	slices.SortFunc(p.equal, func(a, b equal) int { return b.column - a.column })
	for _, name := range q.Columns {
		i := columnOf(name)
		if i < 0 {
			return nil, fmt.Errorf("query column %q: there is none of that name: write one of %v", name, Columns())
		}
		if !slices.Contains(p.columns, i) {
			p.columns = append(p.columns, i)
		}
	}
	return p, nil
}

// wants tells whether a row of a log is one of those that are asked for.
func (p *plan) wants(r *Row) bool {
	if r.Time < p.from || r.Time >= p.to {
		return false
	}
	for _, e := range p.equal {
		if _, ok := e.values[*columns[e.column].text(r)]; !ok {
			return false
		}
	}
	return true
}

// openLog is a log that a scan reads: open, so that it may be made a segment and removed meanwhile.
type openLog struct {
	*os.File
	size int64
}

// Scan goes through a history by its directory alone, in the order in which the events came. Where an agent writes it, the last of them may not be there yet. The error wraps ErrNoHistory when there is none. The Row is valid until fn returns; an error of fn ends the scan.
func Scan(ctx context.Context, dir string, q Query, fn func(*Row) error) (Scanned, error) {
	p, err := q.plan(fn)
	if err != nil {
		return Scanned{}, err
	}
	for try := 0; ; try++ {
		parts, err := listParts(dir)
		if err != nil {
			return Scanned{}, err
		}
		if len(parts.segments)+len(parts.logs)+len(parts.damaged) == 0 {
			return Scanned{}, fmt.Errorf("list the history: %s: %w", dir, ErrNoHistory)
		}
		logs, err := openLogs(dir, parts.logs)
		switch {
		case errors.Is(err, fs.ErrNotExist) && try < 3: // an agent that writes it has made a segment of it meanwhile
			continue
		case err != nil:
			return Scanned{}, err
		}
		return scan(ctx, p, parts.segments, logs, q.Progress)
	}
}

func openLogs(dir string, seqs []uint64) (logs []openLog, err error) {
	for _, seq := range seqs {
		f, err := os.Open(filepath.Join(dir, logName(seq)))
		if err == nil {
			var st fs.FileInfo
			if st, err = f.Stat(); err == nil {
				logs = append(logs, openLog{f, st.Size()})
				continue
			}
			_ = f.Close()
		}
		closeLogs(logs)
		return nil, fmt.Errorf("read the history: %w", err)
	}
	return logs, nil
}

func closeLogs(logs []openLog) {
	for _, l := range logs {
		_ = l.Close()
	}
}

func scan(ctx context.Context, p *plan, segments []segment, logs []openLog, progress func(done, all int64)) (res Scanned, err error) {
	defer closeLogs(logs)
	call := p.call
	p.call = func(r *Row) error {
		res.Rows++
		return call(r)
	}
	all := int64(0)
	for _, s := range segments {
		all += s.size
	}
	for _, l := range logs {
		all += l.size
	}
	tell := func(n int64) {
		if progress != nil {
			progress(n, all)
		}
	}
	for _, s := range segments {
		if err := ctx.Err(); err != nil {
			return res, err
		}
		if s.to >= p.from && s.from < p.to {
			done := res.Bytes
			err := s.scan(ctx, p, func(n int64) {
				done += n
				tell(done)
			})
			switch {
			case errors.Is(err, fs.ErrNotExist): // it was the oldest, and is removed
			case errors.Is(err, ErrDamaged) && ctx.Err() == nil:
				res.Damaged = append(res.Damaged, err)
			case err != nil:
				return res, err
			}
		}
		res.Bytes += s.size
		tell(res.Bytes)
	}
	for _, l := range logs {
		var row Row
		n := 0
		var stop error
		end, err := readLog(io.NewSectionReader(l, 0, l.size), func(payload []byte) error {
			if n++; n%1024 == 0 && ctx.Err() != nil {
				stop = ctx.Err()
				return stop
			}
			if err := row.decode(payload, &p.names); err != nil {
				res.Lost += int64(len(payload))
				return nil
			}
			if p.wants(&row) {
				stop = p.call(&row)
			}
			return stop
		})
		switch {
		case stop != nil:
			return res, stop
		case errors.Is(err, ErrDamaged):
			res.Damaged = append(res.Damaged, fmt.Errorf("read %s: %w", l.Name(), err))
		case err != nil:
			return res, fmt.Errorf("read %s: %w", l.Name(), err)
		}
		res.Lost += end.gap + end.tail
		res.Bytes += l.size
		tell(res.Bytes)
	}
	return res, nil
}
