package export

import (
	"io"

	"github.com/pavise-project/pavise"
)

// NDJSON writes the JSON of flows and answers as the agent's API has it, one a line. An answer has a "query", and a flow a "report".
type NDJSON struct{ l lines }

var _ Sink = (*NDJSON)(nil)

// NewNDJSON makes a sink that writes to w.
func NewNDJSON(w io.Writer) *NDJSON { return &NDJSON{lines{w: w}} }

// Flow writes a report of a flow: each of them.
func (s *NDJSON) Flow(f *pavise.Flow) error {
	s.l.b = append(f.AppendJSON(s.l.b), '\n')
	return s.l.end()
}

// DNS writes an answer.
func (s *NDJSON) DNS(d *pavise.DNS) error {
	s.l.b = append(d.AppendJSON(s.l.b), '\n')
	return s.l.end()
}

// Flush writes what is held back.
func (s *NDJSON) Flush() error { return s.l.flush() }

// Close is Flush.
func (s *NDJSON) Close() error { return s.l.flush() }
