package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/pavise-project/pavise"
	"github.com/pavise-project/pavise/export"
)

// This file hands flows and answers of DNS to others, each by a goroutine of its own that nobody waits for: what a slow one has no room for is counted.

// Export is where flows go to, beside the readers of the API.
type Export struct {
	Form string // ndjson, eve, zeek or ipfix
	To   string // a file; a directory for zeek; udp://HOST:PORT or tcp://HOST:PORT for ipfix
}

// ExportForms are the forms that there are.
var ExportForms = []string{"ndjson", "eve", "zeek", "ipfix"}

func (x Export) String() string { return x.Form + ":" + x.To }

// ParseExport reads FORM:WHERE.
func ParseExport(s string) (Export, error) {
	form, to, ok := strings.Cut(s, ":")
	if !ok || to == "" || !slices.Contains(ExportForms, form) {
		return Export{}, fmt.Errorf("%q: want FORM:WHERE, where FORM is one of %s", s, strings.Join(ExportForms, ", "))
	}
	if form != "ipfix" {
		if !filepath.IsAbs(to) {
			return Export{}, fmt.Errorf("%q: want %s:PATH with an absolute path", s, form)
		}
		return Export{form, to}, nil
	}
	network, address, ok := strings.Cut(to, "://")
	if !ok || network != "udp" && network != "tcp" {
		return Export{}, fmt.Errorf("%q: want ipfix:udp://HOST:PORT or ipfix:tcp://HOST:PORT", s)
	}
	if host, port, err := net.SplitHostPort(address); err != nil || host == "" || port == "" {
		return Export{}, fmt.Errorf("%q: want HOST:PORT behind %s://, as %s://192.0.2.1:4739", s, network, network)
	}
	return Export{form, to}, nil
}

// ExportStatus is what became of an export.
type ExportStatus struct {
	Form    string `json:"form"`
	To      string `json:"to"`
	Written uint64 `json:"written"`         // records that were given on
	Lost    uint64 `json:"lost"`            // that could not be written, or came too fast
	NoPlace uint64 `json:"no_place"`        // that the form has no place for
	Error   string `json:"error,omitempty"` // why it does not work now
}

const (
	exportFlush = time.Second     // what is held back goes then
	exportRetry = 5 * time.Second // between two attempts to open what failed
	exportDial  = 2 * time.Second
)

// exporter serves one export.
type exporter struct {
	a    *Agent
	to   Export
	sink export.Sink // nil while it is not open
	end  []func() error
	at   time.Time // of the last attempt

	mu     sync.Mutex
	status ExportStatus
}

func (a *Agent) startExports() (stop func(), err error) {
	var wg sync.WaitGroup
	for _, to := range a.cfg.Exports {
		sub, err := a.hub.subscribeFlows()
		if err != nil {
			return nil, err
		}
		x := &exporter{a: a, to: to, status: ExportStatus{Form: to.Form, To: to.To}}
		a.exports = append(a.exports, x)
		wg.Go(func() { x.run(sub) })
	}
	return wg.Wait, nil
}

// run writes until the hub closes.
func (x *exporter) run(sub *subscription) {
	defer x.close()
	x.open(time.Now())
	for {
		ctx, cancel := context.WithTimeout(context.Background(), exportFlush)
		it, err := sub.next(ctx)
		cancel()
		switch {
		case errors.Is(err, context.DeadlineExceeded):
			if x.sink != nil {
				x.note(x.sink.Flush())
			}
		case err != nil:
			return
		default:
			x.take(it.event)
		}
	}
}

func (x *exporter) take(e *pavise.Event) {
	if e.Op == pavise.OpLost {
		x.count(func(s *ExportStatus) { s.Lost += e.Lost.Count })
		return
	}
	if f := e.Flow; f != nil && f.State != pavise.FlowClosed && f.Report == 0 {
		return // it only began
	}
	if x.sink == nil {
		x.open(time.Now())
	}
	if x.sink == nil {
		x.count(func(s *ExportStatus) { s.Lost++ })
		return
	}
	var err error
	switch {
	case e.Flow != nil:
		err = x.sink.Flow(e.Flow)
	case e.DNS != nil:
		err = x.sink.DNS(e.DNS)
	}
	if errors.Is(err, export.ErrNoPlace) {
		x.count(func(s *ExportStatus) { s.NoPlace++ })
		return
	}
	x.count(func(s *ExportStatus) { s.Written++ })
	x.note(err)
}

func (x *exporter) count(fn func(*ExportStatus)) {
	x.mu.Lock()
	defer x.mu.Unlock()
	fn(&x.status)
}

// note says when it begins to fail and when it works again.
func (x *exporter) note(err error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if lost := (*export.LostError)(nil); errors.As(err, &lost) {
		n := min(uint64(max(lost.Records, 0)), x.status.Written) //nolint:gosec // not below 0
		x.status.Lost += n
		x.status.Written -= n
	}
	was := x.status.Error
	x.status.Error = ""
	if err != nil {
		x.status.Error = err.Error()
		if was == "" {
			x.a.log.Error("flows are not exported as they should be", "to", x.to.String(), "err", err)
		}
		if errors.Is(err, export.ErrBroken) {
			x.drop()
		}
	}
}

// open opens what the export goes to, unless that failed a moment ago.
func (x *exporter) open(now time.Time) {
	if now.Sub(x.at) < exportRetry {
		return
	}
	x.at = now
	err := x.try()
	if err != nil {
		x.drop()
	}
	x.note(err)
}

func (x *exporter) try() error {
	switch x.to.Form {
	case "ipfix":
		network, address, _ := strings.Cut(x.to.To, "://")
		c, err := net.DialTimeout(network, address, exportDial)
		if err != nil {
			return err
		}
		x.end = append(x.end, c.Close)
		x.sink = export.NewIPFIX(c, export.IPFIXOptions{Stream: network == "tcp"})
		return nil
	case "zeek":
		var logs [3]*os.File
		for i, name := range []string{"conn.log", "dns.log", "ssl.log"} {
			f, err := x.file(filepath.Join(x.to.To, name))
			if err != nil {
				return err
			}
			logs[i] = f
		}
		x.sink = export.NewZeek(logs[0], logs[1], logs[2], export.ZeekOptions{Salt: bootID()})
		return nil
	}
	f, err := x.file(x.to.To)
	if err != nil {
		return err
	}
	if x.to.Form == "eve" {
		host, _ := os.Hostname()
		x.sink = export.NewEVE(f, export.EVEOptions{Host: cmp.Or(host, "localhost")})
		return nil
	}
	x.sink = export.NewNDJSON(f)
	return nil
}

// file opens a file to append to it. What somebody else could have put there, a link or a pipe, is refused.
func (x *exporter) file(name string) (*os.File, error) {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_APPEND|os.O_CREATE|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0o600)
	if err != nil {
		return nil, err
	}
	x.end = append(x.end, f.Close)
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is no regular file", name)
	}
	return f, nil
}

func (x *exporter) drop() {
	for _, end := range x.end {
		_ = end()
	}
	x.sink, x.end = nil, nil
}

func (x *exporter) close() {
	if x.sink != nil {
		x.note(x.sink.Close())
	}
	x.drop()
}

func (a *Agent) exportStatus() (out []ExportStatus) {
	for _, x := range a.exports {
		x.mu.Lock()
		out = append(out, x.status)
		x.mu.Unlock()
	}
	return out
}
