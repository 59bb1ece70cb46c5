// Package agent is the daemon: it alone knows the order in which the rooms work, from a
// kernel record to an event that a person reads, and from a policy to the kernel's tables.
// It serves the local API and is that API's client too.
package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/pavise-project/pavise"
	"github.com/pavise-project/pavise/bpf"
	"github.com/pavise-project/pavise/decode"
	"github.com/pavise-project/pavise/enforce"
	"github.com/pavise-project/pavise/policy"
	"github.com/pavise-project/pavise/proc"
	"github.com/pavise-project/pavise/store"
	"golang.org/x/sys/unix"
)

// The places of a host's agent.
const (
	DefaultSocket = "/run/pavise/pavise.sock"
	DefaultState  = "/var/lib/pavise"
)

// Errors of an agent that cannot start.
var (
	ErrSocketInUse = errors.New("socket in use")
	ErrStateInUse  = errors.New("state directory in use")
)

// Kernel is what the agent needs of *enforce.Enforcer.
type Kernel interface {
	// Machine says what each operation can do on this kernel.
	Machine() [pavise.NumOps]policy.Support
	// Doctor says why.
	Doctor() []enforce.OpStatus
	// Start attaches the process lifecycle and then reports what already runs, through Read.
	Start() error
	// Position is how far the kernel has told.
	Position() enforce.Position
	// Reached tells whether Read has given all until there, and fn has returned.
	Reached(enforce.Position) bool
	// Adopted is what an agent before this one has left in the kernel and goes on, nil for nothing.
	Adopted() *enforce.Adopted
	// Keep says whether enforcement goes on after Close.
	Keep() enforce.KeepStatus
	// EndWithout has it end in a while all the same, should there be no agent then; 0 takes that back.
	EndWithout(in time.Duration) error
	// Apply makes img the active Image, or fails and leaves everything as it was but the shadow: Applied.Shadow says whether it has ended, and what it had counted.
	Apply(img *policy.Image) (enforce.Applied, error)
	// Shadow makes img judge beside the active Image, without effect, until the next Apply or EndShadow. When it fails, Applied.Shadow says whether the shadow
	// before it has ended.
	Shadow(img *policy.Image) (enforce.Applied, error)
	// EndShadow returns what was counted that nothing else has returned.
	EndShadow() (enforce.ShadowCounters, error)
	// ShadowCounters are of the shadow that is on; RuleHits are by rule of its Image.
	ShadowCounters() (enforce.ShadowCounters, error)
	// Read calls fn for each record until ctx is done. The record is valid only during the call.
	Read(ctx context.Context, fn func(rec []byte) error) error
	// Counters are the kernel's own; RuleHits are by rule of the active Image.
	Counters() (enforce.Counters, error)
	// Time has the kernel time its programs until the Closer is closed, and Runs are what it has measured.
	Time() (io.Closer, error)
	Runs() []bpf.Run
	// Told remembers, also for the next agent, how many losses of an operation have been told.
	Told(op pavise.Op, lost uint64) error
	// Alive puts off the end of enforcement where it is to come some time after the agent's. It waits for nothing.
	Alive() error
	// Refresh follows mounts and the inodes behind protected names; cheap when nothing changed.
	Refresh() error
	// Close detaches everything, but what is to be kept.
	Close() error
}

var _ Kernel = (*enforce.Enforcer)(nil)

// Config is what an Agent is made of.
type Config struct {
	Socket       string
	StateDir     string
	Groups       Groups           // whose members may use the API, beside root and the agent's own user
	HistoryBytes int64            // of the events that are kept on disk; 0: none are
	HistoryAge   time.Duration    // of these; 0: 30 days
	Metrics      string           // loopback address and port on which metrics are served, beside the socket; empty for none
	Policies     []*policy.Policy // active before the agent is ready
	// ContainerState are where container runtimes keep their state; nil for the usual places.
	ContainerState []proc.StateRoot
	// Cgroups are where the host's cgroups are mounted; nil for what /proc/self/mounts says.
	Cgroups []string
	Version string
	Kernel  Kernel
	// Flows begins to follow flows, when the lifecycle is attached; nil: they are not followed.
	Flows func() (FlowSource, error)
	// Exports are what flows and answers of DNS are handed to.
	Exports []Export
	// DNSServers are believed what they say of names, for rules on net.remote.domain, beside those that the host asks.
	DNSServers []netip.Addr
	Log        *slog.Logger
	// LogLevel is what PUT /v1/log sets; nil when the level is fixed.
	LogLevel *slog.LevelVar

	// OnReady is called once, when the policies are active and the API answers.
	OnReady func(*Status)
	// OnEvent is called for each event, by one goroutine of the agent. When it is slow it misses events, which
	// are counted and told to it in an agent.lost event. The event is shared: do not change it.
	OnEvent func(*pavise.Event)

	// Decode is decode.Decode when nil.
	Decode func(rec []byte, boot int64, e *pavise.Event) error
}

// Agent is one agent: New makes it, Run runs it, once.
type Agent struct {
	cfg        Config
	log        *slog.Logger
	kernel     Kernel
	table      *proc.Table
	containers *proc.Containers
	hub        *hub
	roles      *roles
	busy       busy
	conns      *quota
	streams    *quota
	patience   time.Duration // of an answer with whoever takes it
	started    time.Time
	pid        uint32
	exe        uint64 // inode

	ev   pavise.Event // the pipeline's; touched by the reading goroutine alone
	boot atomic.Int64 // nanoseconds since the Unix epoch at CLOCK_BOOTTIME 0

	received      [pavise.NumOps]atomic.Uint64
	filtered      atomic.Uint64 // residual condition was false
	undecoded     atomic.Uint64
	unresolved    atomic.Uint64 // rule numbers of a generation that is no longer known
	kernelLost    [pavise.NumOps]uint64
	kernelTrouble uint64 // NoScratch, NoIdentity, NoTexts, NoCount, NoEngine, NoName, NoListener and Missed together, when they were last told
	decodeLost    uint64
	unread        uint64 // Unread, when it was last told

	rules atomic.Pointer[ruleBook]

	names    *names
	exePath  string
	flows    atomic.Pointer[flows] // nil: they are not followed
	exports  []*exporter
	flowsErr *string // why not; set before the API answers

	mu       sync.Mutex // serialises changes of the policies
	machine  *policy.Machine
	compiler policy.Compiler
	set      atomic.Pointer[policySet]
	// The revisions on disk, nil without a state directory; whether the first set is the one that was in force, and where it comes from else.
	revisions *store.Revisions
	restored  bool
	from      string

	history    *historyWriter // nil: none is kept
	historyErr atomic.Pointer[string]
	recovered  *HistoryRecovery
	scans      *quota // of the history, that run

	carry      map[string]uint64 // hits of rules from before the active generation
	noted      lastRun           // what the next agent is to know
	left       *policySet        // what judged when the agent before this one ended, until the first set is active
	past       past
	shadow     *candidate // nil when none was begun
	learning   *learning  // or was; nil when nothing was
	isolating  sync.Mutex // one at a time
	recheckDue chan RecheckCause
	recheckMay chan RecheckCause             // due when the last is some time ago
	rechecked  atomic.Pointer[RecheckStatus] // the last; nil: there was none
	userName   func(uid uint32) string
	closed     bool
	background sync.WaitGroup         // beside Run's own
	behind     atomic.Pointer[string] // why the active set is of other containers than those that are known; nil when it is not
}

// New checks the configuration and compiles the start policies; it changes nothing. Errors in policies are policy.Errors.
func New(cfg Config) (*Agent, error) {
	if cfg.Kernel == nil || cfg.Log == nil || cfg.Socket == "" {
		return nil, errors.New("make agent: kernel, log and socket are required")
	}
	if cfg.Decode == nil {
		cfg.Decode = decode.Decode
	}
	a := &Agent{
		cfg: cfg, log: cfg.Log, kernel: cfg.Kernel,
		hub: newHub(recentEvents, recentVerdicts), started: time.Now(), pid: uint32(os.Getpid()), carry: map[string]uint64{},
	}
	a.scans = newQuota("searches of the history", maxScans, 1, maxScans/2)
	a.conns = newQuota("connections", maxConns, connsForAdmins, maxConnsOfUser)
	a.streams = newQuota("streams", maxStreams, streamsForAdmins, maxStreamsOfUser)
	a.scans = newQuota("searches of the history", maxScans, 1, maxScans/2)
	a.patience = writeTimeout
	r, err := newRoles(cfg.Groups)
	if err != nil {
		return nil, err
	}
	a.roles = r
	if st, err := os.Stat("/proc/self/exe"); err == nil {
		a.exe = st.Sys().(*syscall.Stat_t).Ino
	}
	users := proc.NewUsers("/etc/passwd", "/etc/group", nil)
	a.userName, a.recheckDue, a.recheckMay = users.Name, make(chan RecheckCause, 1), make(chan RecheckCause, 1)
	a.boot.Store(bootTime())
	roots := cfg.ContainerState
	if roots == nil {
		roots = proc.DefaultStateRoots()
	}
	cgroups := cfg.Cgroups
	if cgroups == nil {
		cgroups = cgroupMounts()
	}
	a.containers = proc.NewContainers(proc.ContainerOptions{Roots: roots, Cgroups: cgroups, Log: a.log})
	a.table = proc.New(proc.Options{Boot: a.boot.Load(), Users: users.Name, Containers: a.containers})
	a.machine = &policy.Machine{Ops: a.kernel.Machine(), LookupUser: users.LookupUser, LookupGroup: users.LookupGroup}
	a.rules.Store(&ruleBook{})
	a.names = a.newNames()
	a.exePath, _ = os.Executable()
	if err := Duplicates(cfg.Policies); err != nil {
		return nil, err
	}
	set, err := a.compile(cfg.Policies)
	if err != nil {
		return nil, err
	}
	a.set.Store(set)
	return a, nil
}

// Run runs the agent until ctx is done, and returns nil then, or what made it stop before. When it returns, the
// kernel is as it was before, unless enforcement is to be kept.
func (a *Agent) Run(ctx context.Context) (err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)

	unlock, err := lockState(a.cfg.StateDir)
	if err != nil {
		return err
	}
	defer unlock()
	if err := a.restore(); err != nil {
		return err
	}
	a.adopt()
	ln, err := listen(a.cfg.Socket, a.roles, a.conns)
	if err != nil {
		return err
	}

	port, err := listenMetrics(ctx, a.cfg.Metrics)
	if err != nil {
		return errors.Join(err, ln.Close())
	}
	if port != nil {
		defer port.Close()
	}

	a.openHistory()
	var wg sync.WaitGroup
	ready := make(chan struct{}) // closed when OnReady has returned: what it says comes first
	told := sync.OnceFunc(func() { close(ready) })
	if a.cfg.OnEvent != nil {
		_, sub, err := a.hub.subscribe(false)
		if err != nil {
			return err
		}
		wg.Go(func() {
			<-ready
			// The hub closes at the end, so that what was seen before the stop is still printed.
			for {
				it, err := sub.next(context.Background())
				if err != nil {
					return
				}
				a.cfg.OnEvent(it.event)
			}
		})
	}
	stopExports, err := a.startExports()
	if err != nil {
		return err
	}
	if a.history != nil {
		sub, err := a.hub.subscribeDeep(historyDepth)
		if err != nil {
			return err
		}
		wg.Go(func() { a.history.keep(sub) })
	}
	reading := make(chan struct{})
	wg.Go(func() {
		defer close(reading)
		if err := a.kernel.Read(ctx, a.handle); err != nil && ctx.Err() == nil {
			cancel(fmt.Errorf("read events: %w", err))
		}
	})
	alive := make(chan struct{})
	wg.Go(func() {
		defer close(alive)
		a.stayAlive(ctx)
	})
	srv, metrics := a.server(ctx), a.metricsServer()
	defer func() {
		cancel(nil)
		a.mu.Lock()
		a.closed = true
		a.mu.Unlock()
		<-reading
		<-alive
		if cerr := a.kernel.Close(); cerr != nil && err == nil {
			err = fmt.Errorf("detach from the kernel: %w", cerr)
		}
		a.hub.close()
		stopExports()
		told()
		stop, done := context.WithTimeout(context.Background(), shutdownTime)
		defer done()
		if serr := metrics.Shutdown(stop); serr != nil {
			_ = metrics.Close()
		}
		if serr := srv.Shutdown(stop); serr != nil {
			_ = srv.Close()
		}
		_ = ln.Close()
		a.background.Wait()
		wg.Wait()
	}()

	// Lifecycle first: a process that starts between the two would otherwise have no facts to be judged by.
	if err := a.kernel.Start(); err != nil {
		return fmt.Errorf("start: %w", err)
	}
	first, err := a.firstSet(ctx)
	if err != nil {
		return err
	}
	if err := a.activate(first); err != nil {
		return err
	}
	if err := a.keepStart(); err != nil {
		return err
	}
	defer a.startFlows(ctx)()
	a.boundPending() // of the agent before this one
	a.noteRunning(a.set.Load(), a.carry)
	a.recheckSoon(RecheckStart)
	wg.Go(func() { a.followRechecks(ctx) })
	wg.Go(func() {
		if err := srv.Serve(ln); err != nil && !errors.Is(err, http.ErrServerClosed) {
			cancel(fmt.Errorf("serve %s: %w", a.cfg.Socket, err))
		}
	})
	if port != nil {
		wg.Go(func() {
			if err := metrics.Serve(port); err != nil && !errors.Is(err, http.ErrServerClosed) {
				cancel(fmt.Errorf("serve metrics: %w", err))
			}
		})
	}
	debug.FreeOSMemory() // what loading needed
	if a.cfg.OnReady != nil {
		a.cfg.OnReady(a.status())
	}
	told()
	a.log.Info("agent is ready", "socket", a.cfg.Socket, "policies", len(a.set.Load().policies))

	tick, seldom := time.NewTicker(time.Second), time.NewTicker(sweepPause)
	defer tick.Stop()
	defer seldom.Stop()
	var pace containerPace
	containers, pause := a.containers.Changed(), (<-chan time.Time)(nil)
	for {
		select {
		case <-containers:
			start := time.Now()
			a.followContainers()
			if d := pace.next(start, time.Now()); d > 0 {
				containers, pause = nil, time.After(d)
			}
		case <-pause:
			containers, pause = a.containers.Changed(), nil
		case <-ctx.Done():
			a.poll()
			if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) && !errors.Is(cause, context.DeadlineExceeded) {
				return cause
			}
			return nil
		case <-seldom.C:
			a.names.tick()
		case now := <-tick.C:
			a.poll()
			a.table.Tick(now)
			if err := a.kernel.Refresh(); err != nil {
				a.log.Warn("follow mounts and protected files", "err", err)
			}
			a.followClock()
			a.followPending()
			if a.behind.Load() != nil {
				a.followContainers()
			}
		}
	}
}

// stayAlive puts off the end of enforcement once a second, also while a change takes long.
func (a *Agent) stayAlive(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		if err := a.kernel.Alive(); err != nil {
			a.log.Error("put off the end of enforcement", "err", err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// bootTime is the wall clock's reading when CLOCK_BOOTTIME was 0.
func bootTime() int64 {
	var boot, wall unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &boot)
	_ = unix.ClockGettime(unix.CLOCK_REALTIME, &wall)
	return wall.Nano() - boot.Nano()
}

// followClock moves the times of events when the wall clock was set.
func (a *Agent) followClock() {
	was, is := a.boot.Load(), bootTime()
	if d := time.Duration(is - was); d.Abs() > 10*time.Millisecond {
		a.boot.Store(is)
		if d.Abs() > time.Second {
			a.log.Warn("wall clock was set", "by", d)
		}
	}
}

// lockState makes dir and holds its lock: one agent for one state directory. An empty dir needs none.
func lockState(dir string) (unlock func(), err error) {
	if dir == "" {
		return func() {}, nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make state directory: %w", err)
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make state directory private: %w", err)
	}
	name := filepath.Join(dir, "agent.lock")
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open lock: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			who := "another agent"
			if pid, err := os.ReadFile(name); err == nil && len(bytes.TrimSpace(pid)) > 0 {
				who += fmt.Sprintf(" (pid %.20s)", bytes.TrimSpace(pid))
			}
			return nil, fmt.Errorf("lock %s: %w: %s runs with it; stop it, or give another --state", name, ErrStateInUse, who)
		}
		return nil, fmt.Errorf("lock %s: %w", name, err)
	}
	if err := f.Truncate(0); err == nil {
		_, _ = f.WriteString(strconv.Itoa(os.Getpid()) + "\n")
	}
	return func() { _ = f.Close() }, nil
}
