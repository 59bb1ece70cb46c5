// Package export hands flows and answers to questions for names to others, in the forms that they read: NDJSON, IPFIX, Zeek's logs and Suricata's EVE.
//
// What is not known is left out, in the way that each form has for that, and never invented. Names are chosen by whoever is being watched: none of them
// can forge a line or control a terminal.
package export

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/pavise-project/pavise"
)

// Sink takes what there is to export. None of its methods waits for more than a write, and none is called by two at once.
//
// What a sink was given is in its buffer until that is full, or until Flush. An error of a method, other than ErrNoPlace, is that of a write, and says
// by *LostError how many records went with it, which may have been given earlier. The sink can be used again after one: a disk may have room again.
type Sink interface {
	Flow(f *pavise.Flow) error
	DNS(d *pavise.DNS) error
	Flush() error
	// Close flushes, and writes what belongs at the end. It does not close what is below.
	Close() error
}

// ErrNoPlace is of a record that the form of the sink has no place for: Unix sockets have none in those that know addresses only. Nothing is written.
var ErrNoPlace = errors.New("the form has no place for this record")

// LostError tells how many records were lost by a failed write.
type LostError struct {
	Records int
	Err     error
}

func (e *LostError) Error() string {
	return fmt.Sprintf("export: lost %d records: %v", e.Records, e.Err)
}

func (e *LostError) Unwrap() error { return e.Err }

// bufferSize is how much a sink holds back. A write of that size costs little for each record.
const bufferSize = 32 << 10

// lines are written to w some at a time, and each whole.
type lines struct {
	w       io.Writer
	first   []byte // goes before b, and is not lost: what stands at the beginning, or the rest of a line of which w took only a part
	b       []byte
	records int // lines in b
}

// end is called behind each line.
func (l *lines) end() error {
	l.records++
	if len(l.b) >= bufferSize {
		return l.flush()
	}
	return nil
}

func (l *lines) flush() error {
	if n, err := l.write(l.first); err != nil {
		l.first = l.first[n:]
		return l.lose(l.records, err)
	}
	l.first = nil
	n, err := l.write(l.b)
	if err != nil {
		lost := l.records - bytes.Count(l.b[:n], newline)
		if n > 0 && l.b[n-1] != '\n' {
			lost--
			l.first = bytes.Clone(l.b[n : n+bytes.IndexByte(l.b[n:], '\n')+1])
		}
		return l.lose(lost, err)
	}
	l.b, l.records = l.b[:0], 0
	return nil
}

func (l *lines) write(b []byte) (n int, err error) {
	if len(b) == 0 {
		return 0, nil
	}
	if n, err = l.w.Write(b); err == nil && n < len(b) {
		err = io.ErrShortWrite
	}
	return min(max(n, 0), len(b)), err
}

func (l *lines) lose(n int, err error) error {
	l.b, l.records = l.b[:0], 0
	return &LostError{n, err}
}

var newline = []byte{'\n'}
