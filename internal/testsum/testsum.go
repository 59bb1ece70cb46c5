// Package testsum reads the results of tests, as go test -json prints them, and sums them up: what
// passed, what failed and with which words, what was skipped and why.
package testsum

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
)

// Event is a line of go test -json; see go doc test2json.
type Event struct {
	Action      string
	Package     string  `json:",omitempty"`
	Test        string  `json:",omitempty"`
	Elapsed     float64 `json:",omitempty"`
	Output      string  `json:",omitempty"`
	ImportPath  string  `json:",omitempty"` // of build-output
	FailedBuild string  `json:",omitempty"`
}

// Result is the end of a test, or of a package if Test is empty. A Package may carry a place in
// brackets: the same test in another kernel is another result.
type Result struct {
	Package, Test string
	Action        string // pass, fail, skip, or "" while it runs
	Elapsed       float64
	Output        strings.Builder
}

// Name is the test with its package.
func (r *Result) Name() string {
	if r.Test == "" {
		return r.Package
	}
	return r.Package + "." + r.Test
}

var logLine = regexp.MustCompile(`(?m)^\s+\S+\.go:\d+: (.*)$`)

// Reason is what a skipped test said last.
func (r *Result) Reason() string {
	lines := logLine.FindAllStringSubmatch(r.Output.String(), -1)
	if len(lines) == 0 {
		return "no reason given"
	}
	return lines[len(lines)-1][1]
}

// Summary gathers results. The zero value is ready.
type Summary struct {
	results map[[2]string]*Result
	order   []*Result
	builds  map[string]*strings.Builder
	stray   strings.Builder
}

// Add takes one event and returns the result that it ended, if it ended one.
func (s *Summary) Add(e Event) *Result {
	if e.Action == "build-output" {
		if s.builds == nil {
			s.builds = map[string]*strings.Builder{}
		}
		if s.builds[e.ImportPath] == nil {
			s.builds[e.ImportPath] = new(strings.Builder)
		}
		s.builds[e.ImportPath].WriteString(e.Output)
		return nil
	}
	if e.Package == "" {
		return nil
	}
	key := [2]string{e.Package, e.Test}
	r := s.results[key]
	if r == nil {
		r = &Result{Package: e.Package, Test: e.Test}
		if s.results == nil {
			s.results = map[[2]string]*Result{}
		}
		s.results[key] = r
		s.order = append(s.order, r)
	}
	switch e.Action {
	case "output":
		r.Output.WriteString(e.Output)
	case "pass", "fail", "skip":
		r.Action, r.Elapsed = e.Action, e.Elapsed
		if b := s.builds[e.FailedBuild]; b != nil {
			r.Output.WriteString(b.String())
		}
		return r
	}
	return nil
}

// Read takes all events of r and calls ended, if not nil, for each result. Lines that are no
// events are kept and shown with the failures.
func (s *Summary) Read(r io.Reader, ended func(*Result)) error {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		var e Event
		if line := lines.Bytes(); !bytes.HasPrefix(line, []byte("{")) || json.Unmarshal(line, &e) != nil {
			s.stray.Write(line)
			s.stray.WriteByte('\n')
			continue
		}
		if r := s.Add(e); r != nil && ended != nil {
			ended(r)
		}
	}
	return lines.Err()
}

// Results returns the tests (not the packages) that ended with the action, in order.
func (s *Summary) Results(action string) []*Result {
	var found []*Result
	for _, r := range s.order {
		if r.Test != "" && r.Action == action {
			found = append(found, r)
		}
	}
	return found
}

// Result returns the result of a test, or nil.
func (s *Summary) Result(pkg, test string) *Result { return s.results[[2]string{pkg, test}] }

// Failures returns the failed tests, tests that never ended, and packages that failed without a
// failed test, such as by not compiling.
func (s *Summary) Failures() []*Result {
	failed := map[string]bool{}
	var found []*Result
	for _, r := range s.order {
		if r.Test != "" && (r.Action == "fail" || r.Action == "") {
			failed[r.Package] = true
			found = append(found, r)
		}
	}
	for _, r := range s.order {
		if r.Test == "" && r.Action == "fail" && !failed[r.Package] {
			found = append(found, r)
		}
	}
	return found
}

// skips returns the skipped tests: those that ran nowhere, and those that only ran elsewhere, in
// a kernel that they are for.
func (s *Summary) skips() (skipped, elsewhere []*Result) {
	ran := map[string]bool{}
	for _, r := range s.order {
		if r.Action == "pass" || r.Action == "fail" {
			ran[base(r)] = true
		}
	}
	for _, r := range s.Results("skip") {
		if ran[base(r)] {
			elsewhere = append(elsewhere, r)
		} else {
			skipped = append(skipped, r)
		}
	}
	return skipped, elsewhere
}

// base is a test's name without the kernel it met and without the module.
func base(r *Result) string {
	pkg, _, _ := strings.Cut(r.Package, " [")
	return strings.TrimPrefix(pkg, "github.com/pavise-project/pavise/") + "." + r.Test
}

// NeverRan names the TestKernel* tests that were skipped in every kernel they met.
func (s *Summary) NeverRan() []string {
	var names []string
	skipped, _ := s.skips()
	for _, r := range skipped {
		if strings.HasPrefix(r.Test, "TestKernel") && !strings.Contains(r.Test, "/") && !slices.Contains(names, base(r)) {
			names = append(names, base(r))
		}
	}
	return names
}

// PackageLine is what go test prints when a package ends.
func PackageLine(r *Result) string {
	if strings.Contains(r.Output.String(), "[no test files]") {
		return fmt.Sprintf("?   \t%s\t[no test files]", r.Package)
	}
	word := map[string]string{"pass": "ok  ", "fail": "FAIL", "skip": "ok  "}[r.Action]
	if r.Elapsed == 0 { // unknown, of another machine
		return word + "\t" + r.Package
	}
	return fmt.Sprintf("%s\t%s\t%.3fs", word, r.Package, r.Elapsed)
}

// PrintFailures writes each failure with its words.
func (s *Summary) PrintFailures(w io.Writer) {
	for _, r := range s.Failures() {
		state := ""
		if r.Action == "" {
			state = " (never ended)"
		}
		fmt.Fprintf(w, "--- FAIL: %s%s\n", r.Name(), state)
		for line := range strings.Lines(r.Output.String()) {
			fmt.Fprintf(w, "    %s", line)
		}
	}
	if s.stray.Len() > 0 {
		fmt.Fprintf(w, "beside the results:\n%s", s.stray.String())
	}
}

// PrintSkips writes the reasons of the skips, each with its tests and their kernels.
func (s *Summary) PrintSkips(w io.Writer) {
	skipped, elsewhere := s.skips()
	printGroups(w, "left out where they are not for, and ran elsewhere", elsewhere)
	printGroups(w, "skipped", skipped)
}

// printGroups writes results by their reason.
func printGroups(w io.Writer, title string, results []*Result) {
	type group struct {
		reason string
		names  []string
		places map[string][]string
		count  int
	}
	var groups []*group
	for _, r := range results {
		i := slices.IndexFunc(groups, func(g *group) bool { return g.reason == r.Reason() })
		if i < 0 {
			i = len(groups)
			groups = append(groups, &group{reason: r.Reason(), places: map[string][]string{}})
		}
		g := groups[i]
		_, place, _ := strings.Cut(r.Package, " [")
		name := base(r)
		if place == "" {
			place = "here"
		}
		if g.places[name] == nil {
			g.names = append(g.names, name)
		}
		g.places[name] = append(g.places[name], strings.TrimSuffix(place, "]"))
		g.count++
	}
	for _, g := range groups {
		fmt.Fprintf(w, "%s, %d: %s\n", title, g.count, strings.TrimPrefix(g.reason, "skip: "))
		for _, name := range g.names {
			fmt.Fprintf(w, "\t%s (%s)\n", name, strings.Join(g.places[name], ", "))
		}
	}
}

// Counts is the closing line. A test that was skipped in one kernel and ran in another is not
// counted as skipped.
func (s *Summary) Counts() string {
	skipped, _ := s.skips()
	return fmt.Sprintf("%d passed, %d failed, %d skipped", len(s.Results("pass")), len(s.Failures()), len(skipped))
}
