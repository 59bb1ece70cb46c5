package store

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

// The log of the history is a line that says what it is, and records: a mark, the length of the payload, the CRC-32C of both, little
// endian, and the payload: a Row's columns and its JSON. The mark is not UTF-8, so that no text of an event can pass for one,
// and what follows a damaged record is found again.
const (
	logHeader  = "pavise history 1\n"
	recordHead = 12
	maxRecord  = 1 << 20 // an event with its longest paths and arguments is some 100 KiB
)

var (
	recordMark = []byte{0xf5, 'p', 0xf5, 'v'}
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
)

// beginRecord makes room for the head, and endRecord fills it in.
func beginRecord(b []byte) []byte { return append(b, make([]byte, recordHead)...) }

func endRecord(b []byte) {
	copy(b, recordMark)
	binary.LittleEndian.PutUint32(b[4:], uint32(len(b)-recordHead)) //nolint:gosec // bounded by maxRecord
	binary.LittleEndian.PutUint32(b[8:], sumRecord(b))
}

func sumRecord(b []byte) uint32 {
	return crc32.Update(crc32.Checksum(b[4:8], castagnoli), castagnoli, b[recordHead:])
}

// logEnd is what a log was found to be.
type logEnd struct {
	records int64
	end     int64 // of the last whole record
	gap     int64 // bytes before that which are no record
	tail    int64 // bytes after it
}

// readLog calls fn with the payload of each whole record; it is valid until the next one. What is no record is skipped and
// counted. The error is fn's or the reader's, or wraps ErrDamaged when this is no log at all.
func readLog(r io.Reader, fn func(payload []byte) error) (l logEnd, err error) {
	br := bufio.NewReaderSize(r, recordHead+maxRecord)
	line, err := br.Peek(len(logHeader))
	switch {
	case err != nil && !errors.Is(err, io.EOF):
		return l, err
	case string(line) == logHeader:
		_, _ = br.Discard(len(line))
		l.end = int64(len(line))
	case len(line) < len(logHeader) && bytes.HasPrefix([]byte(logHeader), line):
		l.tail = int64(len(line)) // cut off when it was made
		return l, nil
	default:
		return l, fmt.Errorf("%w: its first line is not %q", ErrDamaged, logHeader)
	}
	at := l.end
	for {
		head, err := br.Peek(recordHead)
		if err != nil && !errors.Is(err, io.EOF) {
			return l, err
		}
		if len(head) < recordHead {
			l.tail = at + int64(len(head)) - l.end
			return l, nil
		}
		if n := binary.LittleEndian.Uint32(head[4:]); bytes.HasPrefix(head, recordMark) && n <= maxRecord {
			rec, err := br.Peek(recordHead + int(n))
			if err != nil && !errors.Is(err, io.EOF) {
				return l, err
			}
			if err == nil && sumRecord(rec) == binary.LittleEndian.Uint32(rec[8:]) {
				l.gap += at - l.end
				at += int64(len(rec))
				l.end, l.records = at, l.records+1
				if err := fn(rec[recordHead:]); err != nil {
					return l, err
				}
				_, _ = br.Discard(len(rec))
				continue
			}
		}
		// Not a record: on to the next mark.
		_, _ = br.Discard(1)
		at++
		for {
			next, err := br.Peek(max(br.Buffered(), len(recordMark)))
			if err != nil && !errors.Is(err, io.EOF) {
				return l, err
			}
			if i := bytes.Index(next, recordMark); i >= 0 {
				_, _ = br.Discard(i)
				at += int64(i)
				break
			}
			n := max(len(next)-len(recordMark)+1, 0) // the mark may have begun
			if err != nil {
				n = len(next)
			}
			_, _ = br.Discard(n)
			at += int64(n)
			if err != nil {
				break
			}
		}
	}
}
