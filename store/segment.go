package store

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/parquet-go/parquet-go"
	"github.com/parquet-go/parquet-go/compress/zstd"
)

// rowGroup is how many rows are written, and held in memory, together.
const rowGroup = 16 << 10

// segment is one Parquet file of the history. All but its size is in its name.
type segment struct {
	seq      uint64 // of the log that it was made of
	from, to int64  // the first and last time of its events
	sum      uint32 // CRC-32C of what the pages' own do not cover: see openParquet
	size     int64
	name     string // with the directory
}

const (
	segmentSuffix = ".parquet"
	logSuffix     = ".log"
	damagedSuffix = ".damaged" // behind that of a log
	nameTime      = "20060102T150405.000000000Z"
)

func segmentName(seq uint64, from, to int64, sum uint32) string {
	return fmt.Sprintf("%012d_%s_%s_%08x%s", seq, time.Unix(0, from).UTC().Format(nameTime), time.Unix(0, to).UTC().Format(nameTime), sum, segmentSuffix)
}

func logName(seq uint64) string { return fmt.Sprintf("%012d%s", seq, logSuffix) }

func parseSegmentName(name string) (s segment, ok bool) {
	base, ok := strings.CutSuffix(name, segmentSuffix)
	parts := strings.Split(base, "_")
	if !ok || len(parts) != 4 {
		return s, false
	}
	seq, err1 := strconv.ParseUint(parts[0], 10, 64)
	from, err2 := time.Parse(nameTime, parts[1])
	to, err3 := time.Parse(nameTime, parts[2])
	sum, err4 := strconv.ParseUint(parts[3], 16, 32)
	if errors.Join(err1, err2, err3, err4) != nil {
		return s, false
	}
	s = segment{seq: seq, from: from.UnixNano(), to: to.UnixNano(), sum: uint32(sum)}
	return s, segmentName(s.seq, s.from, s.to, s.sum) == name
}

// parts are the files of a history, in the order in which they were begun.
type parts struct {
	segments []segment
	logs     []uint64 // those that are no segment yet
	done     []uint64 // those that are, and were not removed
	aside    []string // what was being written
	damaged  []segment
}

// listParts reads a directory.
func listParts(dir string) (p parts, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return p, fmt.Errorf("list the history: %w", err)
	}
	sealed := make(map[uint64]bool)
	var logs []uint64
	for _, e := range entries {
		name := e.Name()
		if strings.HasPrefix(name, ".new-") {
			p.aside = append(p.aside, filepath.Join(dir, name))
		} else if s, ok := parseSegmentName(name); ok || strings.HasSuffix(name, logSuffix+damagedSuffix) {
			info, err := e.Info()
			if errors.Is(err, fs.ErrNotExist) {
				continue
			} else if err != nil {
				return p, fmt.Errorf("list the history: %w", err)
			}
			s.name, s.size = filepath.Join(dir, name), info.Size()
			if !ok {
				p.damaged = append(p.damaged, s)
				continue
			}
			p.segments = append(p.segments, s)
			sealed[s.seq] = true
		} else if digits, ok := strings.CutSuffix(name, logSuffix); ok {
			if seq, err := strconv.ParseUint(digits, 10, 64); err == nil && logName(seq) == name {
				logs = append(logs, seq)
			}
		}
	}
	slices.SortFunc(p.segments, func(a, b segment) int { return strings.Compare(a.name, b.name) })
	slices.Sort(logs)
	for _, seq := range logs {
		if sealed[seq] {
			p.done = append(p.done, seq)
		} else {
			p.logs = append(p.logs, seq)
		}
	}
	return p, nil
}

// writeSegment makes a segment of a log, whole or not at all, and says what the log was. A log without a record makes none: its segment has no name.
func writeSegment(dir string, seq uint64, log io.Reader) (s segment, l logEnd, err error) {
	s = segment{seq: seq, from: math.MaxInt64, to: math.MinInt64}
	f, err := os.CreateTemp(dir, ".new-") // mode 0600
	if err != nil {
		return s, l, fmt.Errorf("write a segment of the history: %w", err)
	}
	defer func() {
		_ = f.Close()
		if err != nil || s.name == "" {
			_ = os.Remove(f.Name())
		}
		if err != nil {
			err = fmt.Errorf("write a segment of the history: %w", err)
		}
	}()
	w := parquet.NewGenericWriter[any](f, schema, parquet.Compression(&zstd.Codec{Level: zstd.SpeedDefault}),
		parquet.MaxRowsPerRowGroup(rowGroup), parquet.CreatedBy("pavise", "1", ""),
		parquet.SkipPageBounds(columnJSON))
	var row Row
	var names names
	rows := []parquet.Row{make(parquet.Row, len(columns)+1)}
	bad := int64(0)
	l, err = readLog(log, func(payload []byte) error {
		if err := row.decode(payload, &names); err != nil {
			bad += int64(len(payload))
			l.records--
			return nil
		}
		s.from, s.to = min(s.from, row.Time), max(s.to, row.Time)
		rows[0] = row.values(rows[0])
		_, err := w.WriteRows(rows)
		return err
	})
	l.gap += bad
	if err != nil {
		return s, l, err
	}
	if s.from > s.to {
		return s, l, nil
	}
	if err = w.Close(); err != nil {
		return s, l, err
	}
	if err = f.Sync(); err != nil {
		return s, l, err
	}
	st, err := f.Stat()
	if err != nil {
		return s, l, err
	}
	s.size = st.Size()
	_, s.sum, err = openParquet(f, s.size)
	if err != nil {
		return s, l, err
	}
	name := filepath.Join(dir, segmentName(seq, s.from, s.to, s.sum))
	if err = os.Rename(f.Name(), name); err != nil {
		return s, l, err
	}
	s.name = name
	return s, l, syncDir(dir)
}

// pageHead is more than the header of a page, which has no statistics of its own, takes.
const pageHead = 96

// openParquet reads the footer, and sums up what the checksums of the pages do not cover: the headers of the pages, and all that follows the last
// page, which are the indexes and the footer.
func openParquet(f io.ReaderAt, size int64) (pf *parquet.File, sum uint32, err error) {
	pf, err = parquet.OpenFile(f, size, parquet.SkipPageIndex(true), parquet.SkipBloomFilters(true))
	if err != nil {
		return nil, 0, err
	}
	end := int64(len("PAR1"))
	var head [pageHead]byte
	add := func(at int64) error {
		n, err := f.ReadAt(head[:], at)
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		sum = crc32.Update(sum, castagnoli, head[:n])
		return nil
	}
	if err := add(0); err != nil {
		return nil, 0, err
	}
	groups := pf.RowGroups()
	for i, g := range pf.Metadata().RowGroups {
		for j, c := range g.Columns {
			at := c.MetaData.DataPageOffset
			if d := c.MetaData.DictionaryPageOffset; d != 0 {
				at = min(at, d)
			}
			end = max(end, at+c.MetaData.TotalCompressedSize)
			if err := add(at); err != nil {
				return nil, 0, err
			}
			pages, err := groups[i].ColumnChunks()[j].OffsetIndex()
			if err != nil {
				return nil, 0, err
			}
			for k := range pages.NumPages() {
				if err := add(pages.Offset(k)); err != nil {
					return nil, 0, err
				}
			}
		}
	}
	if end > size {
		return nil, 0, errShort
	}
	h := crc32.New(castagnoli)
	if _, err := io.Copy(h, io.NewSectionReader(f, end, size-end)); err != nil {
		return nil, 0, err
	}
	return pf, sum ^ h.Sum32(), nil
}

// scan goes through the rows of a segment that the plan wants. The error wraps ErrDamaged when the file is not what was written.
func (s *segment) scan(ctx context.Context, p *plan, read func(int64)) (err error) {
	f, err := os.Open(s.name)
	if err != nil {
		return fmt.Errorf("read %s: %w", s.name, plain(err))
	}
	defer f.Close()
	calling := false
	defer func() {
		if calling {
			return // what the caller's function panics with is its own
		}
		// The reader of Parquet panics over some files.
		if r := recover(); r != nil {
			err = fmt.Errorf("read %s: %w: %v", s.name, ErrDamaged, r)
		}
	}()
	st, err := f.Stat()
	if err != nil {
		return fmt.Errorf("read %s: %w", s.name, err)
	}
	pf, sum, err := openParquet(f, st.Size())
	if err != nil || sum != s.sum {
		return fmt.Errorf("read %s: %w: its indexes are not what was written", s.name, ErrDamaged)
	}
	var mine error // the caller's
	for i, g := range pf.RowGroups() {
		err := scanGroup(ctx, p, g, func(r *Row) error {
			calling = true
			mine = p.call(r)
			calling = false
			return mine
		})
		switch {
		case err != nil && (mine != nil || ctx.Err() != nil):
			return err
		case err != nil:
			return fmt.Errorf("read %s: %w: %w", s.name, ErrDamaged, err)
		}
		read(pf.Metadata().RowGroups[i].TotalCompressedSize)
	}
	return nil
}

// scanGroup goes through a row group: first the columns that rows are chosen by, and the others only where a row was chosen.
func scanGroup(ctx context.Context, p *plan, g parquet.RowGroup, fn func(*Row) error) error {
	chunks := g.ColumnChunks()
	chunk := func(i int) *cursor { return &cursor{chunk: chunks[schemaIndex[i]]} }
	for _, e := range p.equal {
		switch has, err := dictionaryHas(chunks[schemaIndex[e.column]], e.values); {
		case err != nil:
			return err
		case !has:
			return nil
		}
	}
	// Which rows: nil is all.
	var chosen []int64
	all := true
	if first, last, ok := bounds(chunks[schemaIndex[0]]); !ok || first < p.from || last >= p.to {
		if ok && (last < p.from || first >= p.to) {
			return nil
		}
		all = false
		c := chunk(0)
		defer c.close()
		for at := range g.NumRows() {
			v, err := c.value(at)
			if err != nil {
				return err
			}
			if t := v.Int64(); t >= p.from && t < p.to {
				chosen = append(chosen, at)
			}
		}
	}
	for _, e := range p.equal {
		if all {
			all = false
			chosen = make([]int64, g.NumRows())
			for i := range chosen {
				chosen[i] = int64(i)
			}
		}
		c := chunk(e.column)
		defer c.close()
		kept := chosen[:0]
		for _, at := range chosen {
			v, err := c.value(at)
			if err != nil {
				return err
			}
			if _, ok := e.values[string(v.ByteArray())]; ok {
				kept = append(kept, at)
			}
		}
		chosen = kept
	}
	var cursors []*cursor
	for _, i := range p.columns {
		c := chunk(i)
		defer c.close()
		cursors = append(cursors, c)
	}
	n := int64(len(chosen))
	if all {
		n = g.NumRows()
	}
	var row Row
	for k := range n {
		at := k
		if !all {
			at = chosen[k]
		}
		if k%1024 == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		for k, c := range cursors {
			v, err := c.value(at)
			if err != nil {
				return err
			}
			row.set(p.columns[k], v, &p.names)
		}
		if err := fn(&row); err != nil {
			return err
		}
	}
	return nil
}

// bounds are the least and the greatest number in a column.
func bounds(c parquet.ColumnChunk) (first, last int64, ok bool) {
	fc, isFile := c.(*parquet.FileColumnChunk)
	if !isFile {
		return 0, 0, false
	}
	lo, hi, ok := fc.Bounds()
	return lo.Int64(), hi.Int64(), ok
}

// dictionaryHas tells whether one of the values may stand in a column.
func dictionaryHas(c parquet.ColumnChunk, values map[string]struct{}) (bool, error) {
	pages := c.Pages()
	defer pages.Close()
	fp, ok := pages.(*parquet.FilePages)
	if !ok {
		return true, nil
	}
	d, err := fp.ReadDictionary()
	if err != nil {
		return false, err
	}
	if d == nil {
		return true, nil
	}
	for i := range d.Len() {
		if _, ok := values[string(d.Index(int32(i)).ByteArray())]; ok { //nolint:gosec // below the rows of a group
			return true, nil
		}
	}
	return false, nil
}

// cursor reads values of a flat column by ascending row, and no page that has none of them.
type cursor struct {
	chunk  parquet.ColumnChunk
	pages  parquet.Pages
	page   parquet.Page
	values []parquet.Value
	first  int64 // the row of values[0]
}

func (c *cursor) value(at int64) (parquet.Value, error) {
	if i := at - c.first; i < int64(len(c.values)) {
		return c.values[i], nil
	}
	if c.pages == nil {
		c.pages = c.chunk.Pages()
	}
	if next := c.first + int64(len(c.values)); at != next || next == 0 {
		if err := c.pages.SeekToRow(at); err != nil {
			return parquet.Value{}, err
		}
	}
	if c.page != nil {
		parquet.Release(c.page)
		c.page = nil
	}
	page, err := c.pages.ReadPage()
	if err != nil {
		return parquet.Value{}, err
	}
	c.page = page
	n := int(page.NumValues())
	if n == 0 || page.NumRows() != int64(n) {
		return parquet.Value{}, errShort
	}
	if cap(c.values) < n {
		c.values = make([]parquet.Value, n)
	}
	c.values, c.first = c.values[:n], at
	if got, err := page.Values().ReadValues(c.values); got != n {
		return parquet.Value{}, errors.Join(errShort, err)
	}
	return c.values[0], nil
}

func (c *cursor) close() {
	if c.page != nil {
		parquet.Release(c.page)
	}
	if c.pages != nil {
		_ = c.pages.Close()
	}
}
