// Package enforce is a placeholder; delete this file on merge.
package enforce

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/pavise-project/pavise"
	"github.com/pavise-project/pavise/policy"
)

var (
	ErrUnsupported = errors.New("kernel not supported")
	ErrPrivileges  = errors.New("no privileges")
)

type Options struct{ Log *slog.Logger }
type Enforcer struct{}
type Applied struct {
	Generation        uint32
	Staged, Activated time.Duration
}
type RungTry struct {
	Rung pavise.Rung
	OK   bool
	Err  error
}
type OpStatus struct {
	Op         pavise.Op
	Rung       pavise.Rung
	Deny, Kill bool
	Why        string
	Notes      []string
	Tried      []RungTry
}
type OpCounters struct{ Seen, Delivered, Folded, Lost uint64 }
type Counters struct {
	Ops      [pavise.NumOps]OpCounters
	RuleHits []uint64
}

func Open(ctx context.Context, o Options) (*Enforcer, error) { return nil, ErrUnsupported }

func (e *Enforcer) Machine() (m [pavise.NumOps]policy.Support)                { return m }
func (e *Enforcer) Doctor() []OpStatus                                        { return nil }
func (e *Enforcer) Start() error                                              { return nil }
func (e *Enforcer) Apply(img *policy.Image) (Applied, error)                  { return Applied{}, nil }
func (e *Enforcer) Read(ctx context.Context, fn func(rec []byte) error) error { return nil }
func (e *Enforcer) Counters() (Counters, error)                               { return Counters{}, nil }
func (e *Enforcer) Close() error                                              { return nil }
