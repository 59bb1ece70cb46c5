package vmtest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pavise-project/pavise/internal/kerntest"
	"github.com/pavise-project/pavise/internal/testsum"
)

// Matrix runs the kernel tests of packages in several kernels, with and without BPF LSM.
type Matrix struct {
	Packages []string // patterns of go list
	Kernels  []string // some of Names
	Pattern  string   // of the tests
	Timeout  time.Duration
	Log      io.Writer
}

// suite is the test binary of one package.
type suite struct {
	pkg, dir, binary string
	tests            []string
}

// Run builds the test binaries, boots each kernel and prints a line for each; the results go to
// jsonFile, if given, with the kernel in brackets behind the package. The status is 1 if a test
// failed, never ended, or was skipped for another reason than kerntest's.
func (m *Matrix) Run(ctx context.Context, jsonFile string) (status int, err error) {
	dir, err := os.MkdirTemp("", "vmtest-binaries-")
	if err != nil {
		return 0, fmt.Errorf("make a directory: %w", err)
	}
	defer os.RemoveAll(dir)
	suites, broken, err := m.build(ctx, dir)
	if err != nil {
		return 0, err
	}
	if len(suites) == 0 && len(broken) == 0 {
		return 0, fmt.Errorf("no package has tests that match %s", m.Pattern)
	}
	record := io.Discard
	if jsonFile != "" {
		f, err := os.Create(jsonFile)
		if err != nil {
			return 0, fmt.Errorf("keep the results: %w", err)
		}
		defer f.Close()
		record = f
	}
	// What cannot be run is a failure, and the rest is run all the same.
	fail := func(what string, err error) error {
		status = 1
		fmt.Fprintf(m.Log, "FAIL\t%s: %v\n", what, err)
		return write(record, failed(what, err)...)
	}
	for _, err := range broken {
		if err := fail("tests for virtual machines", err); err != nil {
			return 0, err
		}
	}
	jobs, err := m.jobs(ctx, suites, fail)
	if err != nil {
		return 0, err
	}
	// An emulated machine keeps about one core busy.
	results := make(chan result)
	next := make(chan job)
	go func() {
		defer close(next)
		for _, j := range jobs {
			next <- j
		}
	}()
	for range runtime.NumCPU() {
		go func() {
			for j := range next {
				results <- m.boot(ctx, j)
			}
		}()
	}
	for range jobs {
		r := <-results
		switch {
		case ctx.Err() != nil: // the others end by themselves
		case r.err != nil:
			err = fail("virtual machine ["+r.place+"]", r.err)
		default:
			if len(r.sum.Failures()) > 0 {
				status = 1
			}
			_, err = record.Write(r.events)
		}
		fmt.Fprint(m.Log, r.log.String())
		if err != nil {
			return 0, fmt.Errorf("keep the results: %w", err)
		}
	}
	return status, ctx.Err()
}

// job is a machine to boot and what to run in it.
type job struct {
	kernel Kernel
	noLSM  bool
	suites []suite
}

// result is what came of a job: its events in the form of go test -json, and what to tell.
type result struct {
	place  string
	sum    *testsum.Summary
	events []byte
	log    *bytes.Buffer
	err    error
}

// jobs returns the machines to boot, those with the most to run first: one that ends late would keep the rest waiting. A kernel that is not to be had goes to fail.
func (m *Matrix) jobs(ctx context.Context, suites []suite, fail func(string, error) error) ([]job, error) {
	var jobs []job
	for _, name := range m.Kernels {
		for _, noLSM := range []bool{false, true} {
			chosen := selected(suites, name, noLSM)
			if noLSM && name == "5.10" || len(chosen) == 0 {
				continue // 5.10 is refused either way
			}
			k, err := Get(ctx, m.Log, name)
			if err != nil {
				if err := fail("virtual machine ["+name+"]", err); err != nil {
					return nil, err
				}
				break
			}
			jobs = append(jobs, job{k, noLSM, chosen})
		}
	}
	slices.SortStableFunc(jobs, func(a, b job) int { return b.tests() - a.tests() })
	return jobs, nil
}

func (j job) tests() (n int) {
	for _, s := range j.suites {
		n += len(s.tests)
	}
	return n
}

// write appends events in the form of go test -json.
func write(w io.Writer, events ...testsum.Event) error {
	for _, e := range events {
		line, err := json.Marshal(e)
		if err != nil {
			return err
		}
		if _, err := w.Write(append(line, '\n')); err != nil {
			return fmt.Errorf("keep the results: %w", err)
		}
	}
	return nil
}

var kernelTest = regexp.MustCompile(`(?m)^func TestKernel`)

// build compiles the tests of every package that has kernel tests. A package that does not
// compile is an error among broken.
func (m *Matrix) build(ctx context.Context, dir string) (suites []suite, broken []error, err error) {
	const format = `{{.ImportPath}}{{"\t"}}{{.Dir}}{{"\t"}}{{join .TestGoFiles " "}} {{join .XTestGoFiles " "}}`
	list, err := m.goTool(ctx, append([]string{"list", "-f", format}, m.Packages...)...)
	if err != nil {
		return nil, nil, err
	}
	for line := range strings.Lines(string(list)) {
		f := strings.Split(strings.TrimRight(line, "\n"), "\t")
		s := suite{pkg: f[0], dir: f[1], binary: filepath.Join(dir, strings.ReplaceAll(f[0], "/", "_")+".test")}
		if !slices.ContainsFunc(strings.Fields(f[2]), func(name string) bool {
			text, err := os.ReadFile(filepath.Join(s.dir, name))
			return err == nil && kernelTest.Match(text)
		}) {
			continue
		}
		fmt.Fprintf(m.Log, "vmtest: building the tests of %s\n", s.pkg)
		if _, err := m.goTool(ctx, "test", "-c", "-o", s.binary, s.pkg); err != nil {
			broken = append(broken, fmt.Errorf("compile %s: %w", s.pkg, err))
			continue
		}
		names := exec.CommandContext(ctx, s.binary, "-test.list", m.Pattern)
		names.Dir, names.Stderr = s.dir, m.Log
		out, err := names.Output()
		if err != nil {
			return nil, nil, fmt.Errorf("list the tests of %s: %w", s.pkg, err)
		}
		for _, test := range strings.Fields(string(out)) {
			if strings.HasPrefix(test, "Test") {
				s.tests = append(s.tests, test)
			}
		}
		if len(s.tests) > 0 {
			suites = append(suites, s)
		}
	}
	return suites, broken, nil
}

func (m *Matrix) goTool(ctx context.Context, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	cmd.Stderr = m.Log
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go %s: %w", args[0], err)
	}
	return out, nil
}

// Lines that the script in the guest prints around the output of each binary.
const (
	beginMark = "\x01vmtest begin "
	endMark   = "\x01vmtest end "
)

// quiet is for how long a machine may print nothing: the longest test takes 90 s in one.
const quiet = 5 * time.Minute

// boots is how many machines a job may take, where the emulator fails.
const boots = 3

// boot runs all suites of a job in one machine. Where that ends or stands still before them, what has not ended is run in another: the emulator sometimes trips over code that
// the guest patches while it runs, as at each attachment to a tracepoint. A fault of ours comes back, and a test in which a machine failed twice has failed.
func (m *Matrix) boot(ctx context.Context, j job) (r result) {
	mode := "lsm"
	if j.noLSM {
		mode = "nolsm"
	}
	r.place, r.log, r.sum = j.kernel.Name+" "+mode, &bytes.Buffer{}, &testsum.Summary{}
	start := time.Now()
	var events bytes.Buffer
	stuck := map[string]bool{} // the tests in which a machine failed
	for boot, rest := 1, j.suites; len(rest) > 0; boot++ {
		output, runErr := m.run(ctx, j, rest, r.log)
		again := boot < boots && (errors.Is(runErr, ErrCrash) || errors.Is(runErr, ErrStill))
		if runErr != nil && !again && !errors.Is(runErr, ErrBoot) && !errors.Is(runErr, ErrCrash) && !errors.Is(runErr, ErrTimeout) && !errors.Is(runErr, ErrStill) {
			r.err = runErr
			return r
		}
		if errors.Is(runErr, ErrOops) && again { // the rest is run, and this is told all the same: no emulator does that
			if err := write(&events, failed("virtual machine ["+r.place+"]", runErr)...); err != nil {
				r.err = err
				return r
			}
		}
		parts := strings.Split(output, beginMark)
		var left []suite
		for i, s := range rest {
			pkg := s.pkg + " [" + r.place + "]"
			var text string
			if i+1 < len(parts) {
				_, text, _ = strings.Cut(parts[i+1], "\n")
			}
			text, end, ended := strings.Cut(text, endMark)
			exit := strings.TrimSpace(end)
			raw, err := toEvents(ctx, pkg, text)
			if err != nil {
				r.err = err
				return r
			}
			if !ended && again {
				var later suite
				if raw, s, later, err = split(raw, s, pkg, stuck); err != nil {
					r.err = err
					return r
				}
				if len(later.tests) > 0 {
					left = append(left, later)
					ended, exit = true, "0"
				}
			}
			var one testsum.Summary
			if err := one.Read(bytes.NewReader(raw), nil); err != nil {
				r.err = err
				return r
			}
			events.Write(raw)
			if err := write(&events, check(&one, s, pkg, runErr, ended, exit)...); err != nil {
				r.err = err
				return r
			}
		}
		if rest = left; len(rest) > 0 {
			fmt.Fprintf(r.log, "vmtest: %s: %v; another machine runs the %d tests that are left\n", r.place, runErr, job{suites: rest}.tests())
		}
	}
	elapsed := time.Since(start)
	if err := r.sum.Read(bytes.NewReader(events.Bytes()), nil); err != nil {
		r.err = err
		return r
	}
	r.events = events.Bytes()
	word := "ok  "
	if len(r.sum.Failures()) > 0 {
		word = "FAIL"
		r.sum.PrintFailures(r.log)
	}
	fmt.Fprintf(r.log, "%s\tLinux %s, %s: %s\t%.1fs\n", word, j.kernel.Release, mode, r.sum.Counts(), elapsed.Seconds())
	return r
}

// failed is the failure of what is no test.
func failed(what string, err error) []testsum.Event {
	return []testsum.Event{{Action: "output", Package: what, Output: err.Error() + "\n"}, {Action: "fail", Package: what}}
}

// run runs suites in one machine and returns what it printed.
func (m *Matrix) run(ctx context.Context, j job, suites []suite, log io.Writer) (string, error) {
	timeout := m.Timeout
	if timeout == 0 {
		timeout = 5 * time.Minute
	}
	var script strings.Builder
	for i, s := range suites {
		fmt.Fprintf(&script, "printf '%s%d\\n'\ncd %s\n", beginMark, i, quote(s.dir))
		fmt.Fprintf(&script, "%s -test.v=test2json -test.run %s -test.timeout %s\n",
			quote(s.binary), quote("^("+strings.Join(s.tests, "|")+")$"), timeout-timeout/20)
		fmt.Fprintf(&script, "printf '\\n%s%%d\\n' $?\n", endMark)
	}
	var output bytes.Buffer
	vm := VM{
		Kernel: j.kernel, NoLSM: j.noLSM, Timeout: timeout, Quiet: quiet, Command: []string{"/bin/sh", "-c", script.String()},
		Output: &output, Log: log,
	}
	_, err := vm.Run(ctx)
	return output.String(), err
}

// split parts the events and the tests of a suite whose machine failed: what ended, and what is to be run again in another. A test that was running then is added to stuck; one that
// is in stuck stays with what ended, and has failed.
func split(raw []byte, s suite, pkg string, stuck map[string]bool) (events []byte, done, later suite, err error) {
	var sum testsum.Summary
	if err := sum.Read(bytes.NewReader(raw), nil); err != nil {
		return nil, done, later, err
	}
	done, later = s, s
	done.tests, later.tests = nil, nil
	for _, test := range s.tests {
		r := sum.Result(pkg, test)
		switch {
		case r == nil, r.Action == "" && !stuck[pkg+test]:
			later.tests = append(later.tests, test)
			stuck[pkg+test] = r != nil
		default:
			done.tests = append(done.tests, test)
		}
	}
	var kept bytes.Buffer
	for line := range bytes.Lines(raw) {
		var e testsum.Event
		if err := json.Unmarshal(line, &e); err != nil {
			return nil, done, later, fmt.Errorf("read the results: %w", err)
		}
		top, _, _ := strings.Cut(e.Test, "/")
		if e.Test != "" && !slices.Contains(later.tests, top) || e.Test == "" && len(later.tests) == 0 {
			kept.Write(line)
		}
	}
	return kept.Bytes(), done, later, nil
}

// Which tests run where: with BPF LSM, all of them in each kernel, but for those below. TestKernelOld* are for the kernel below the floor, and nothing else is.
// TestKernelUnderLoad* are about load and not about the kernel: they run on the machine itself. So do those of here: Runs has the kernel patch its own code while others run it, at
// which the emulator of a 6.1 stood still; KeepGarbage is about what stands in a directory; FlowMany is about how quickly 10,000 connections are told.
var here = regexp.MustCompile(`^TestKernel(Runs|KeepGarbage|FlowMany)$`)

// in are tests that take long in an emulated machine, and ask of the kernel what others ask of each, or nothing that differs with it, as most of agents: they run in one kernel, with BPF LSM.
var in = map[string]*regexp.Regexp{
	"newest": regexp.MustCompile(`^TestKernel(AgentKilled|AgentUnconfirmed|StarterPolicies|Domain|IsolateDatagrams|Recheck(|Inbound|Start))$`),
	"6.12":   regexp.MustCompile(`^TestKernel(LearnServer|ClockJump|ContainerImage|FlowUnrelatedChange)$`),
	"6.1":    regexp.MustCompile(`^TestKernel(LearnInstall|DoctorCommand|FlowCurl|AgentGuarded|ProtectedByItself|ShadowThroughAPI|Recheck(Name|Names|Containers))$`),
}

// All run with BPF LSM at both ends of what is promised; the kernel in between runs what differs with the hooks and the structures of the kernel. Without BPF LSM, the newest kernel runs what
// those with it do, but for what is the same there: engine are tests of what judges, called without a hook, agents those of agents, which do not know by which rung, and flows those of programs that refuse nothing. Older ones run
// withoutLSM: what differs with the rungs that are left.
var (
	engine     = regexp.MustCompile(`^TestKernel(Judge.*|ShadowJudge|Set(Strings|Names|Addresses|Slots))$`)
	agents     = regexp.MustCompile(`^TestKernel(Agent.*|Uninstall)$`)
	flows      = regexp.MustCompile(`^TestKernelFlow.*$`)
	between    = regexp.MustCompile(`^TestKernel(Refusal|Bind|Send|Unix|FileModes|FileOverlay|FileCompat|SubjectDigest|SubjectVerity|StorageStays|Flow(TCP|UDP|Unix|ICMP|Owner|Sweep))$`)
	withoutLSM = regexp.MustCompile(`^TestKernel(Doctor|Features|Smoke|NoLSM|Load|Share|Alone|FileAccess|FileAliases|FileCase|Exec|Connect|Ops.*)$`)
)

// selected returns the suites with those of their tests that are to run in a kernel.
func selected(suites []suite, kernel string, noLSM bool) []suite {
	var chosen []suite
	for _, s := range suites {
		s.tests = slices.DeleteFunc(slices.Clone(s.tests), func(test string) bool { return !runs(test, kernel, noLSM) })
		if len(s.tests) > 0 {
			chosen = append(chosen, s)
		}
	}
	return chosen
}

func runs(test, kernel string, noLSM bool) bool {
	if old := strings.HasPrefix(test, "TestKernelOld"); old || kernel == "5.10" {
		return old && kernel == "5.10"
	}
	if strings.HasPrefix(test, "TestKernelUnderLoad") || here.MatchString(test) {
		return false
	}
	for k, tests := range in {
		if tests.MatchString(test) {
			return k == kernel && !noLSM
		}
	}
	switch {
	case test == "TestKernelDoctor" && (kernel == "6.12" || kernel == "newest" && noLSM): // it proves each operation, for a minute
		return false
	case kernel == "6.12" && !noLSM:
		return between.MatchString(test) || withoutLSM.MatchString(test)
	case !noLSM:
		return true
	case kernel == "newest":
		return !engine.MatchString(test) && !agents.MatchString(test) && !flows.MatchString(test)
	}
	return withoutLSM.MatchString(test)
}

// toEvents turns the output of a test binary into the events of go test -json.
func toEvents(ctx context.Context, pkg, text string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, "go", "tool", "test2json", "-p", pkg)
	cmd.Stdin = strings.NewReader(text)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("convert the test output: %w", err)
	}
	return out, nil
}

// check returns what test2json cannot know: that a test is missing, was skipped without need, or
// that the binary or the machine failed.
func check(sum *testsum.Summary, s suite, pkg string, runErr error, ended bool, exit string) []testsum.Event {
	var events []testsum.Event
	fail := func(test, why string) {
		events = append(events,
			testsum.Event{Action: "output", Package: pkg, Test: test, Output: why + "\n"},
			testsum.Event{Action: "fail", Package: pkg, Test: test})
	}
	for _, test := range s.tests {
		if r := sum.Result(pkg, test); r == nil {
			fail(test, "never started")
		} else if r.Action == "" {
			fail(test, "never ended")
		}
	}
	for _, r := range sum.Results("skip") {
		if strings.HasPrefix(r.Test, "TestKernel") && !strings.HasPrefix(r.Reason(), kerntest.NotExpected) {
			fail(r.Test, "skipped, and only kerntest may skip a kernel test here")
		}
	}
	switch code, err := strconv.Atoi(exit); {
	case runErr != nil && !ended:
		fail("", runErr.Error())
	case err != nil:
		fail("", "the test binary left no exit status")
	case code != 0:
		fail("", fmt.Sprintf("the test binary ended with status %d", code))
	case len(events) > 0:
		fail("", "some tests did not run as they should")
	}
	return events
}
