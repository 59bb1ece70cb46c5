package policy

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/pavise-project/pavise"
)

func TestSetLimits(t *testing.T) {
	lines := func(n int) []byte {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, "/opt/%d\n", i)
		}
		return []byte(b.String())
	}
	if s, faults := parseSet("f", lines(MaxSetEntries), setForm{what: setOfPaths}); len(faults) > 0 || s.Len() != MaxSetEntries || !s.Has("/opt/99999") || s.Has("/opt/100000") {
		t.Errorf("%d entries: %v", MaxSetEntries, faults)
	}
	for want, data := range map[string][]byte{
		"set has 100,001 entries: the limit is 100,000; split it over several sets":                     lines(MaxSetEntries + 1),
		"set file of 16,777,217 bytes is too long: the limit is 16,777,216; split it over several sets": make([]byte, MaxSetBytes+1),
	} {
		if s, faults := parseSet("f", data, setForm{what: setOfPaths}); s != nil || len(faults) != 1 || faults[0].Error() != want {
			t.Errorf("%v, want %s", faults, want)
		}
	}
	var b strings.Builder
	for i := range 5000 {
		fmt.Fprintln(&b, 2*i)
	}
	if s, faults := parseSet("f", []byte(b.String()), setForm{setOfNumbers, 65535}); s != nil || len(faults) != 1 || !strings.Contains(faults[0].Msg, "5,000 numbers and ranges") {
		t.Error(faults)
	}
}

func TestSetHolds(t *testing.T) {
	s, faults := parseSet("f", []byte("0.0.0.0/1\n192.0.2.7\n::/3\n2001:db8::/32\n2001:db8::1\n"), setForm{what: setOfAddresses})
	if len(faults) > 0 {
		t.Fatal(faults)
	}
	for a, want := range map[string]bool{
		"1.2.3.4": true, "127.255.255.255": true, "128.0.0.0": false, "192.0.2.7": true, "::ffff:192.0.2.7": true, "192.0.2.8": false,
		"2001:db8::1": true, "2001:db8:1::": true, "2001:db9::": true, "2fff::": false, "1fff::": true, "4000::": false, "::1": true,
	} {
		if a == "2001:db9::" || a == "2fff::" { // beyond ::/3 (0000 to 1fff)
			want = false
		}
		if got := s.Holds(netip.MustParseAddr(a)); got != want {
			t.Errorf("%s: %v", a, got)
		}
	}
}

// setPolicy has one rule on sets of distinct names.
func setPolicy(field string, n int) string {
	var terms []string
	for i := range n {
		terms = append(terms, fmt.Sprintf("%s.inSet(%q)", field, fmt.Sprint(i)))
	}
	var b strings.Builder
	b.WriteString(head + "p}\nspec:\n  rules:\n")
	for i := 0; i < len(terms); i += 8 {
		fmt.Fprintf(&b, "  - {name: r%d, on: [file.open], when: '%s', action: audit}\n", i, strings.Join(terms[i:min(i+8, len(terms))], " || "))
	}
	return b.String()
}

func TestManySets(t *testing.T) {
	read := func(file string) ([]byte, error) { return fmt.Appendf(nil, "/opt/%s\n/opt/all\n", file), nil }
	compileSets := func(n int) (*Image, error) {
		set, err := ParseWith("p.yaml", []byte(setPolicy("file.path", n)), read)
		if err != nil {
			t.Fatal(err)
		}
		img, _, err := Compile(set, testMachine())
		return img, err
	}
	img, err := compileSets(MaxSets)
	if err != nil {
		t.Fatal(err)
	}
	want(t, "sets", len(img.Sets[SetStrings]), MaxSets)
	for i := range MaxSets {
		v := img.Judge(pavise.OpOpen, path(fmt.Sprintf("/opt/%d", i)))
		want(t, fmt.Sprint("rule of ", i), img.Rules[v.Rule].Name, fmt.Sprint("r", i/8*8))
	}
	want(t, "all", img.Judge(pavise.OpOpen, path("/opt/all")).Matched, 4)
	want(t, "none", img.Judge(pavise.OpOpen, path("/opt/99")).Rule, NoRule)
	_, err = compileSets(MaxSets + 1)
	if err == nil || err.Error() != "too many sets of paths: 33, the limit is 32; join their files" {
		t.Error(err)
	}
	// The same entries under two names are one set.
	read = func(string) ([]byte, error) { return []byte("/opt/0\n"), nil }
	if img, err = compileSets(MaxSets + 8); err != nil || len(img.Sets[SetStrings]) != 1 {
		t.Error(err)
	}
}

// TestSetNames: a file is judged under all its names, a too long name strictly, and explicit rules protect what is in a set.
func TestSetNames(t *testing.T) {
	src := head + `p}
spec:
  mode: enforce
  default: {process.exec: deny}
  rules:
  - {name: deny, on: [file.open], when: 'file.path.inSet("s")', action: deny}
  - {name: allow, on: [process.exec], when: 'file.path.inSet("s")', action: allow}
  - {name: not, on: [process.exec], when: '!file.path.inSet("t")', action: kill}
`
	read := func(file string) ([]byte, error) { return []byte("/etc/shadow\n/" + file + "\n"), nil }
	set, err := ParseWith("p.yaml", []byte(src), read)
	if err != nil {
		t.Fatal(err)
	}
	img, _, err := Compile(set, testMachine())
	if err != nil {
		t.Fatal(err)
	}
	f := path("/x")
	want(t, "another file", img.Judge(pavise.OpOpen, f).Action, pavise.ActionNone)
	f.Aliases = [][]byte{[]byte("/y"), []byte("/etc/shadow")}
	want(t, "by another name", img.Judge(pavise.OpOpen, f).Action, pavise.ActionDeny)
	long := path("/" + strings.Repeat("x", MaxString))
	want(t, "too long", img.Judge(pavise.OpOpen, long).Action, pavise.ActionDeny)
	want(t, "too long to allow", img.Judge(pavise.OpExec, long).Action, pavise.ActionKill)
	want(t, "allowed", img.Judge(pavise.OpExec, path("/etc/shadow")).Action, pavise.ActionNone)
	want(t, "protected", len(img.ProtectedSets), 1)
	want(t, "which", img.ProtectedSets[0].File, "s")
}

// TestRates holds the counting to what is promised of it: exact for even traffic; never over with N or fewer within two windows; never more than 2N
// that are not over within any one.
func TestRates(t *testing.T) {
	r := newRand()
	const window, n = time.Second, 20
	for range 300 {
		rate := Rate{ID: r.Uint64(), N: n, Window: window}
		var rs Rates
		var all, passed []uint64
		now := r.Uint64() >> 10
		burst := time.Duration(1 + r.IntN(int(window)))
		for range 400 {
			switch r.IntN(40) {
			case 0:
				now += uint64(r.Int64N(int64(3 * window)))
			case 1:
				burst = time.Duration(1 + r.IntN(int(window)/10))
			}
			now += uint64(r.Int64N(int64(burst)))
			within := func(list []uint64, d time.Duration) (c int) {
				for _, at := range list {
					if now-at < uint64(d) {
						c++
					}
				}
				return c
			}
			all = append(all, now)
			if !rs.over(&rate, 7, now) {
				passed = append(passed, now)
				if c := within(passed, window); c > 2*n {
					t.Fatalf("%d within one window are not over", c)
				}
			} else if c := within(all, 2*window); c <= n {
				t.Fatalf("over at %d within two windows", c)
			}
		}
	}
	for _, every := range []time.Duration{window / n, window / (n + 2)} { // as many as may be, and two more
		rate := Rate{N: n, Window: window}
		var rs Rates
		over := 0
		for i := range 10 * n {
			if rs.over(&rate, 1, uint64(i)*uint64(every)) && i > n+2 {
				over++
			}
		}
		if (over > 0) != (every < window/n) {
			t.Errorf("one each %s: %d over", every, over)
		}
	}
}

// TestRateJudge: what a stricter or as strict rule refused is not counted, and an act is counted once for all its names.
func TestRateJudge(t *testing.T) {
	src := head + `p}
spec:
  mode: enforce
  rules:
  - {name: often, on: [file.open], when: 'file.path.under("/a") && rate.user("1h") > 2', action: deny}
  - {name: never, on: [file.open], when: 'file.path.under("/a/b")', action: deny}
  - {name: tell, on: [file.open], when: 'rate.process("1h") >= 4', action: audit}
`
	img, _, err := Compile(mustParse(t, "p.yaml", src), testMachine())
	if err != nil {
		t.Fatal(err)
	}
	var rs Rates
	judge := func(user uint64, names ...string) string {
		f := path(names[0])
		for _, n := range names[1:] {
			f.Aliases = append(f.Aliases, []byte(n))
		}
		f.Rates, f.Now = &rs, uint64(time.Minute)
		f.Who[ByUser] = user
		v := img.Judge(pavise.OpOpen, f)
		var out []string
		for _, r := range v.Rules {
			if r != NoRule {
				out = append(out, img.Rules[r].Name)
			}
		}
		return fmt.Sprint(v.Action, " ", strings.Join(out, " "))
	}
	for _, c := range []struct {
		user  uint64
		names string
		want  string
	}{
		{1, "/a/1", "none "},
		{1, "/a/b/x", "deny never"}, // not counted
		{1, "/a/1 /a/2 /a/3", "none "},
		{1, "/a/b/x", "deny never tell"}, // tell counts all
		{2, "/a/1", "audit tell"},
		{1, "/x /a/1", "deny often tell"}, // by another name
		{1, "/x", "audit tell"},
	} {
		want(t, c.names, judge(c.user, strings.Fields(c.names)...), c.want)
	}
	want(t, "without counts", img.Judge(pavise.OpOpen, path("/a/1")).Action, pavise.ActionNone)
	again, _, err := Compile(mustParse(t, "p.yaml", src+"# more\n"), testMachine())
	want(t, "identity", again.Rates, img.Rates)
	changed, _, err2 := Compile(mustParse(t, "p.yaml", strings.Replace(src, "/a\"", "/b\"", 1)), testMachine())
	if err := errors.Join(err, err2); err != nil || changed.Rates[0].ID == img.Rates[0].ID || changed.Rates[1].ID != img.Rates[1].ID {
		t.Error("identity of a changed rule", err)
	}
}

func TestMinuteOfWeek(t *testing.T) {
	for in, want := range map[string]int{"2024-01-01T00:00:00Z": 0, "2024-01-07T23:59:59Z": 10079, "2024-01-03T12:30:00Z": 2*1440 + 750} {
		at, err := time.Parse(time.RFC3339, in)
		if got := minuteOfWeek(at); err != nil || got != want {
			t.Errorf("%s: %d", in, got)
		}
	}
}

// FuzzSet: whatever a file holds, there is either a set, whose entries are in it, or an error with a line.
func FuzzSet(f *testing.F) {
	for _, name := range []string{"paths", "paths-crlf", "paths-bad", "names", "names-bad", "prefixes", "prefixes-bad", "ports", "ports-bad", "empty"} {
		b, err := testSets(name)
		if err != nil {
			f.Fatal(err)
		}
		for what := range setOfNumbers + 1 {
			f.Add(b, uint8(what))
		}
	}
	f.Fuzz(func(t *testing.T, data []byte, what uint8) {
		s, faults := parseSet("f", data, setForm{setWhat(what) % (setOfNumbers + 1), 65535})
		if (s == nil) != (len(faults) > 0) {
			t.Fatal(s, faults)
		}
		for _, e := range faults {
			if e.Msg == "" || e.Line > strings.Count(string(data), "\n")+1 {
				t.Fatal(e)
			}
		}
		if s == nil {
			return
		}
		for _, e := range s.Strings {
			if !s.Has(e) || e == "" {
				t.Fatalf("%q", e)
			}
		}
		for _, p := range s.Prefixes {
			if !s.Holds(p.Addr()) {
				t.Fatal(p)
			}
		}
	})
}
