package agent

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pavise-project/pavise"
	"github.com/pavise-project/pavise/store"
)

// dayEvents are n events of a machine with a web server, a database and jobs: opens and connections that are audited, processes that end, and now and then a denial.
func dayEvents(n int) []*pavise.Event {
	r := rand.New(rand.NewPCG(1, 2))
	programs := []string{"/usr/sbin/nginx", "/usr/bin/python3.12", "/usr/bin/bash", "/usr/lib/systemd/systemd", "/usr/bin/postgres"}
	processes := make([]*pavise.Process, 500)
	for i := range processes {
		k := i % len(programs)
		p := &pavise.Process{
			ExecID: 1<<63 + uint64(i)<<8, PID: uint32(1000 + i), StartTime: 1_700_000_000_000_000_000 + int64(i)*1e6, ParentExecID: 1 << 63,
			Exe:  pavise.FileInfo{Path: programs[k], Mode: 0o100755, Inode: uint64(100 + k), Links: 1, FS: "ext4"},
			Args: []string{programs[k], "-c", fmt.Sprint(i)}, CWD: "/", User: pavise.User{ID: uint32(k), Name: fmt.Sprintf("user%d", k)}, GroupID: uint32(k),
			Cgroup: fmt.Sprintf("/system.slice/unit%d.service", k), CgroupID: uint64(7000 + k), Unit: fmt.Sprintf("unit%d.service", k),
			Namespaces: pavise.Namespaces{Mnt: 4026531840, PID: 4026531836, Net: 4026531992, User: 4026531837, Cgroup: 4026531835, UTS: 4026531838, IPC: 4026531839, Host: pavise.NSAll},
			Parent:     &pavise.Process{ExecID: 1 << 63, PID: 1, Exe: pavise.FileInfo{Path: "/usr/lib/systemd/systemd"}},
		}
		if k == 1 {
			p.Container = &pavise.Container{ID: strings.Repeat("ab", 32), Runtime: "containerd", Name: "web", Image: "shop/web:1.2"}
			p.Pod = &pavise.Pod{Namespace: "shop", Name: "web-0", Labels: map[string]string{"app": "web"}}
		}
		processes[i] = p
	}
	events := make([]*pavise.Event, n)
	for i := range events {
		p := processes[r.IntN(len(processes))]
		e := &pavise.Event{Op: pavise.OpOpen, Action: pavise.ActionAudit, Rung: pavise.RungLSM, Policy: "files", Rule: "reads", Severity: "low", Matched: 1, Count: 1, PID: p.PID, ExecID: p.ExecID, Process: p}
		e.File = pavise.FileInfo{Path: fmt.Sprintf("/srv/www/%d/page%d.html", r.IntN(20), r.IntN(200)), Access: pavise.AccessRead, Mode: 0o100644, Dev: 8 << 20, Inode: r.Uint64N(1 << 20), Links: 1, FS: "ext4"}
		switch k := r.IntN(5000); {
		case k == 0:
			e.Action, e.Monitor, e.Policy, e.Rule, e.Severity, e.Message = pavise.ActionDeny, true, "secrets", "shadow", "high", "reads the shadow file"
			e.File.Path = "/etc/shadow"
		case k < 500:
			e.Op, e.Rung, e.Policy, e.Rule, e.File = pavise.OpConnect, pavise.RungCgroup, "egress", "internet", pavise.FileInfo{}
			e.Net = pavise.NetInfo{Family: pavise.FamilyIPv4, Type: pavise.TypeStream, Protocol: pavise.ProtocolTCP, RemotePort: 443, LocalPort: uint16(32768 + r.IntN(20000))}
			e.Net.Remote = netip.MustParseAddr(fmt.Sprintf("::ffff:192.0.2.%d", r.IntN(256))).As16()
			e.Net.Local = netip.MustParseAddr("::ffff:10.0.0.2").As16()
		case k < 1000:
			e.Op, e.Action, e.Rung, e.Policy, e.Rule, e.Severity, e.Matched, e.Count, e.File = pavise.OpExit, 0, 0, "", "", "", 0, 0, pavise.FileInfo{}
			e.Exit = pavise.ExitInfo{Code: uint8(r.IntN(3))}
		}
		events[i] = e
	}
	return events
}

// BenchmarkHistory writes a history as the agent does, until all of it is in segments, and searches it: ten million events with PAVISE_LONG=1, else 200,000.
func BenchmarkHistory(b *testing.B) {
	n := 200_000
	if os.Getenv("PAVISE_LONG") != "" {
		n = 10_000_000
	}
	const ages = 100 * 365 * 24 * time.Hour
	dir := b.TempDir()
	begin := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	events := dayEvents(1 << 16)
	written := b.Run("write", func(b *testing.B) {
		if b.N > 1 { // one is as long as is wanted
			b.Skip()
		}
		h, _, err := store.OpenHistory(dir, store.Options{MaxBytes: 1 << 40, LogBytes: 64 << 20, MaxAge: ages})
		if err != nil {
			b.Fatal(err)
		}
		var wg sync.WaitGroup
		done, seal := make(chan struct{}), make(chan struct{}, 1)
		wg.Go(func() {
			for range seal {
				if err := h.Seal(b.Context()); err != nil {
					b.Error(err)
				}
			}
		})
		wg.Go(func() {
			defer close(seal)
			t := time.NewTicker(time.Second)
			defer t.Stop()
			for {
				select {
				case <-done:
					return
				case <-t.C:
				}
				if err := h.Tick(); err != nil {
					b.Error(err)
				}
				select {
				case seal <- struct{}{}:
				default:
				}
			}
		})
		b.ResetTimer()
		start := time.Now()
		var appending time.Duration
		for i := 0; i < n; {
			t := time.Now()
			for range 10_000 {
				e := events[i%len(events)]
				e.ID, e.Time = uint64(i+1), begin.UnixNano()+int64(i)*1e6
				if err := h.Append(e); err != nil {
					b.Fatal(err)
				}
				i++
			}
			appending += time.Since(t)
			for i < n && h.Stats().Bytes > int64(i)*200+512<<20 { // half a GiB of logs waits for segments
				time.Sleep(10 * time.Millisecond)
			}
		}
		close(done)
		wg.Wait()
		if err := h.Flush(); err != nil {
			b.Fatal(err)
		}
		st := h.Stats()
		if err := h.Close(); err != nil {
			b.Fatal(err)
		}
		// The last log becomes a segment too.
		h, _, err = store.OpenHistory(dir, store.Options{MaxBytes: 1 << 40, LogAge: 1, MaxAge: ages})
		if err != nil {
			b.Fatal(err)
		}
		if err := errors.Join(h.Tick(), h.Seal(b.Context())); err != nil {
			b.Fatal(err)
		}
		took := time.Since(start)
		if st.Appended != uint64(n) || st.Dropped != 0 || st.Removed != 0 {
			b.Fatalf("%+v", st)
		}
		st = h.Stats()
		if err := h.Close(); err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(n)/appending.Seconds(), "appended/s")
		b.ReportMetric(float64(n)/took.Seconds(), "in-segments/s")
		b.ReportMetric(float64(st.Bytes)/float64(n), "B/event")
		b.ReportMetric(float64(st.Segments), "segments")
	})
	if !written {
		return
	}
	for _, c := range []struct {
		name string
		q    HistoryQuery
	}{
		{"count-by-op", HistoryQuery{GroupBy: []string{"op"}}},
		{"count-by-rule-and-program", HistoryQuery{GroupBy: []string{"policy", "rule", "process.exe.path"}}},
		{"denials", HistoryQuery{Where: `action == "deny"`}},
		{"program-that-is-not-there", HistoryQuery{Where: `process.exe.path == "/usr/bin/nc"`}},
		{"files-below", HistoryQuery{Where: `op == "file.open" && file.path.under("/srv/www/7")`, GroupBy: []string{"file.path"}}},
		{"one-minute", HistoryQuery{From: begin.Add(time.Duration(n/2) * time.Millisecond), To: begin.Add(time.Duration(n/2)*time.Millisecond + time.Minute)}},
		{"connections-by-address", HistoryQuery{Where: `op == "net.connect"`, GroupBy: []string{"net.remote.address"}}},
		{"exits-by-arguments", HistoryQuery{Where: `op == "process.exit" && process.args.exists(a, a == "-x")`}},
	} {
		c.q.Limit = -1
		b.Run("query/"+c.name, func(b *testing.B) {
			found := int64(0)
			for b.Loop() {
				err := ReadHistory(b.Context(), dir, c.q, func(l *HistoryLine) error {
					if l.End != nil {
						found = l.End.Matched
						if len(l.End.Damaged) > 0 || l.End.Lost > 0 {
							return fmt.Errorf("%+v", l.End)
						}
					}
					return nil
				})
				if err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(n)*float64(b.N)/b.Elapsed().Seconds(), "events/s")
			b.ReportMetric(float64(found), "found")
		})
	}
}
