package flow

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pavise-project/pavise"
)

// answer makes an answer of records "name TYPE ttl value".
func answer(query string, records ...string) *pavise.DNS {
	d := &pavise.DNS{NetNS: 1, Query: query, Type: "A", Code: "NOERROR"}
	d.Client.ExecID = 7
	d.Server.Address, d.Server.Port = netip.MustParseAddr("192.0.2.53"), 53
	for _, text := range records {
		f := strings.Fields(text)
		r := pavise.DNSRecord{Name: f[0], Type: f[1]}
		if _, err := fmt.Sscan(f[2], &r.TTL); err != nil {
			panic(err)
		}
		for _, v := range f[3:] {
			a, err := netip.ParseAddr(v)
			switch {
			case err != nil:
				r.Target = v
			case f[1] == "HTTPS":
				r.Hints = append(r.Hints, a)
			default:
				r.Address = a
			}
		}
		d.Answers = append(d.Answers, r)
	}
	return d
}

func TestTies(t *testing.T) {
	mdns := answer("x.local", "x.local A 120 192.0.2.1", "www.example.org A 120 192.0.2.2", "y.LOCAL A 5 192.0.2.3", "local A 5 192.0.2.4")
	mdns.Server.Port = 5353
	failed := answer("www.example.org", "www.example.org A 300 192.0.2.1")
	failed.Code = "NXDOMAIN"
	long := answer("n0.org")
	for i := range 40 {
		long.Answers = append(long.Answers, answer("", fmt.Sprintf("n%d.org CNAME 300 n%d.org", i, i+1)).Answers...)
		long.Answers = append(long.Answers, answer("", fmt.Sprintf("n%d.org A 300 192.0.2.%d", i, i)).Answers...)
	}
	for _, c := range []struct {
		name string
		d    *pavise.DNS
		want []string
	}{
		{"one", answer("www.example.org", "www.example.org A 300 192.0.2.1"), []string{"192.0.2.1 [www.example.org] 5m0s"}},
		{"the case does not matter", answer("wWw.Example.ORG", "WWW.example.org AAAA 300 2001:db8::1"), []string{"2001:db8::1 [www.example.org] 5m0s"}},
		{"a chain, in any order, lives as its shortest", answer("www.example.org", "c.net A 3600 192.0.2.1", "b.net CNAME 300 C.net", "www.example.org CNAME 7200 b.NET"),
			[]string{"192.0.2.1 [www.example.org b.net c.net] 5m0s"}},
		{"not asked for", answer("www.example.org", "www.example.org A 300 192.0.2.1", "bank.example A 300 192.0.2.2", "x.org CNAME 300 y.org", "y.org A 300 192.0.2.3"),
			[]string{"192.0.2.1 [www.example.org] 5m0s"}},
		{"a chain that goes round", answer("a.org", "a.org CNAME 300 b.org", "b.org CNAME 300 a.org", "b.org A 300 192.0.2.1"), []string{"192.0.2.1 [a.org b.org] 5m0s"}},
		{"the life has bounds", answer("a.org", "a.org A 0 192.0.2.1", "a.org A 2147483647 192.0.2.2"), []string{"192.0.2.1 [a.org] 1m0s", "192.0.2.2 [a.org] 168h0m0s"}},
		{"hints", answer("a.org", "a.org HTTPS 300 svc.org 192.0.2.1 2001:db8::1"), []string{"192.0.2.1 [a.org svc.org] 5m0s", "2001:db8::1 [a.org svc.org] 5m0s"}},
		{"an IPv4 address in an IPv6 one", answer("a.org", "a.org AAAA 300 ::ffff:192.0.2.1"), []string{"192.0.2.1 [a.org] 5m0s"}},
		{"blocked", answer("a.org", "a.org A 300 0.0.0.0", "a.org AAAA 300 ::"), nil},
		{"mDNS: of .local alone", mdns, []string{"192.0.2.1 [x.local] 2m0s", "192.0.2.3 [y.local] 1m0s"}},
		{"an error", failed, nil},
		{"nothing", answer("a.org"), nil},
	} {
		var got []string
		for _, tie := range Ties(c.d) {
			got = append(got, fmt.Sprint(tie.Address, tie.Names, tie.Life))
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: got %q, want %q", c.name, got, c.want)
		}
	}
	if n := len(Ties(long)); n != maxChain+1 {
		t.Errorf("a long chain gives %d addresses, want %d", n, maxChain+1)
	}
}

// Names alone, and not their ends.
func TestMatchName(t *testing.T) {
	for pattern, names := range map[string][2][]string{
		"*.example.org":  {{"www.example.org", "a.b.example.org"}, {"example.org", ".example.org", "badexample.org", `evil\046example.org`, "www.example.org.net"}},
		"Example.ORG.":   {{"example.org"}, {"www.example.org", "example.org.", "example.orgs"}},
		"*":              {{"*"}, {"org", ""}},
		"*.":             {nil, {"org", ""}},
		`a\032b.example`: {{`a\032b.example`}, {"a b.example"}},
	} {
		for i, want := range []bool{true, false} {
			for _, name := range names[i] {
				if MatchName(pattern, name) != want {
					t.Errorf("%q matches %q: %t", pattern, name, !want)
				}
			}
		}
	}
}

func TestNames(t *testing.T) {
	n := NewNames(100, 1<<20)
	a1, a2 := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	look := func(a netip.Addr, exe string, now time.Duration, want string) {
		t.Helper()
		got := "nothing"
		if name, ok := n.Lookup(1, a, exe, now); ok {
			got = fmt.Sprint(name.Asked, name.Chain, " by ", name.Exe, " ", name.Live)
		}
		if got != want {
			t.Errorf("at %s, %s by %s is %q, want %q", now, a, exe, got, want)
		}
	}
	within := func(a netip.Addr, pattern string, now time.Duration, live, known bool) {
		t.Helper()
		if l, k := n.Within(1, a, pattern, now); l != live || k != known {
			t.Errorf("at %s, %s within %s: live %t, known %t, want %t, %t", now, a, pattern, l, k, live, known)
		}
	}
	look(a1, "", 0, "nothing")
	n.Learn(answer("www.example.org", "www.example.org CNAME 600 b.cdn.net", "b.cdn.net A 300 192.0.2.1", "b.cdn.net A 300 192.0.2.2"), "/bin/curl", 0)
	look(a1, "", time.Second, "www.example.org[b.cdn.net] by /bin/curl true")
	look(netip.MustParseAddr("::ffff:192.0.2.1"), "", time.Second, "www.example.org[b.cdn.net] by /bin/curl true")
	if _, ok := n.Lookup(2, a1, "", 0); ok {
		t.Error("another namespace knows the name")
	}
	for _, pattern := range []string{"www.example.org", "WWW.Example.Org.", "*.example.org", "*.org", "b.cdn.net", "*.cdn.net"} {
		within(a1, pattern, time.Second, true, true)
	}
	for _, pattern := range []string{"example.org", "*.www.example.org", "*.b.cdn.net", "*ww.example.org", "*", "*.", "", "cdn.net"} {
		within(a1, pattern, time.Second, false, false)
	}

	// Another program asks for another name of the address; each sees its own, the rest the last.
	n.Learn(answer("blog.example.com", "blog.example.com A 60 192.0.2.1"), "/bin/wget", 10*time.Second)
	look(a1, "/bin/curl", 11*time.Second, "www.example.org[b.cdn.net] by /bin/curl true")
	look(a1, "/bin/wget", 11*time.Second, "blog.example.com[] by /bin/wget true")
	look(a1, "/bin/nc", 11*time.Second, "blog.example.com[] by /bin/wget true")
	within(a1, "*.example.org", 11*time.Second, true, true)

	// It is over, and another answer still holds.
	look(a1, "/bin/wget", 100*time.Second, "www.example.org[b.cdn.net] by /bin/curl true")
	within(a1, "blog.example.com", 100*time.Second, false, true)
	// All are over, and shown for an hour.
	look(a1, "/bin/wget", 301*time.Second, "blog.example.com[] by /bin/wget false")
	look(a2, "", 301*time.Second+30*time.Minute, "www.example.org[b.cdn.net] by /bin/curl false")
	look(a2, "", 301*time.Second+time.Hour, "nothing")
	within(a2, "www.example.org", 301*time.Second+time.Hour, false, false)

	// A time before is no time: what is over stays so.
	look(a2, "", 0, "nothing")
	n.Learn(answer("late.example.org", "late.example.org A 300 192.0.2.9"), "", 0)
	look(netip.MustParseAddr("192.0.2.9"), "", 301*time.Second+time.Hour+299*time.Second, "late.example.org[] by  true")

	// What this host's server tells others is nothing that was asked here.
	out := answer("other.example.org", "other.example.org A 300 192.0.2.3")
	out.Outgoing = true
	n.Learn(out, "", 0)
	look(netip.MustParseAddr("192.0.2.3"), "", 0, "nothing")
}

// An answer of a shorter life does not end one of a longer.
func TestNamesLiveAsTheLongest(t *testing.T) {
	n := NewNames(10, 1<<20)
	n.Learn(answer("a.org", "a.org A 600 192.0.2.1"), "", 0)
	n.Learn(answer("a.org", "a.org A 60 192.0.2.1"), "", time.Second)
	if live, _ := n.Within(1, netip.MustParseAddr("192.0.2.1"), "a.org", 500*time.Second); !live {
		t.Error("the longer answer is over")
	}
}

func TestNamesAreBounded(t *testing.T) {
	n := NewNames(1000, 1<<20)
	at := func(i int) string { return netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}).String() }
	for i := range 5000 {
		n.Learn(answer("a.org", "a.org A 300 "+at(i), "a.org A 300 192.0.2.1"), "", time.Duration(i))
	}
	s := n.Stats()
	if s.Addresses != 1000 || s.PushedAddresses != 4001 {
		t.Errorf("%+v, want 1000 addresses and 4001 pushed out", s)
	}
	if _, ok := n.Lookup(1, netip.MustParseAddr("192.0.2.1"), "", 5000); !ok {
		t.Error("the address that came last is gone")
	}

	// Long names: the bytes are the bound.
	n = NewNames(1<<20, 1<<20)
	long := strings.Repeat(`\000`, 200)
	for i := range 5000 {
		n.Learn(answer(long, long+" A 300 "+at(i)), "", time.Duration(i))
	}
	s = n.Stats()
	if s.Bytes > 1<<20 || s.Bytes < 1<<19 || s.Addresses+int(s.PushedAddresses) != 5000 {
		t.Errorf("%+v, want at most 1 MiB", s)
	}

	// Many names of one address.
	for i := range 100 {
		name := fmt.Sprintf("n%d.org", i)
		n.Learn(answer(name, name+" A 300 192.0.2.1"), "", 5000)
	}
	if s := n.Stats(); s.PushedNames != 100-maxNames {
		t.Errorf("%d names pushed out, want %d", s.PushedNames, 100-maxNames)
	}
	if name, _ := n.Lookup(1, netip.MustParseAddr("192.0.2.1"), "", 5000); name.Asked != "n99.org" {
		t.Errorf("the last name is %q", name.Asked)
	}

	// What is over goes without being asked for.
	for i := range 10000 {
		n.Learn(answer("b.org", "b.org A 60 192.0.2.7"), "", 3*time.Hour+time.Duration(i))
	}
	if s := n.Stats(); s.Addresses != 1 || s.Bytes > 1000 {
		t.Errorf("%+v, want one address", s)
	}
}

// What is needed stays when others fill the table, or give the same address other names; and not for ever.
func TestNamesKeepWhatIsNeeded(t *testing.T) {
	at := func(i int) string { return netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}).String() }
	needed := netip.MustParseAddr("192.0.2.1")
	for _, keep := range []bool{false, true} {
		n := NewNames(100, 1<<20)
		if keep {
			n.Keep = func(netNS uint32, server netip.Addr, names []string) bool {
				return netNS == 1 && server == netip.MustParseAddr("192.0.2.53") && slices.Contains(names, "db.example.org")
			}
		}
		n.Learn(answer("db.example.org", "db.example.org A 300 192.0.2.1"), "", 0)
		// Another server says the same: that is another answer.
		other := answer("db.example.org", "db.example.org A 300 192.0.2.1")
		other.Server.Address = netip.MustParseAddr("203.0.113.1")
		n.Learn(other, "", 0)
		for i := range 1000 {
			n.Learn(answer("x.org", "x.org A 300 "+at(i)), "", 1)
			if name := fmt.Sprintf("n%d.org", i); i < 3*maxNames {
				n.Learn(answer(name, name+" A 300 192.0.2.1"), "", 1)
			}
		}
		if live, _ := n.Within(1, needed, "db.example.org", 1); live != keep {
			t.Errorf("keep %t: the needed name is live: %t", keep, live)
		}
		if s := n.Stats(); s.Addresses != 100 || s.PushedNames < 2*maxNames {
			t.Errorf("keep %t: %+v", keep, s)
		}
		// Its time is over: then it goes as the rest.
		for i := range 1000 {
			n.Learn(answer("x.org", "x.org A 300 "+at(i)), "", 2*time.Hour)
		}
		if n.table.nodes[keyOf(1, needed)] != nil {
			t.Errorf("keep %t: the name is there after its time", keep)
		}
	}
	// Where all are needed, the oldest goes.
	n := NewNames(100, 1<<20)
	n.Keep = func(uint32, netip.Addr, []string) bool { return true }
	for i := range 1000 {
		n.Learn(answer("x.org", "x.org A 300 "+at(i)), "", 1)
		name := fmt.Sprintf("n%d.org", i)
		n.Learn(answer(name, name+" A 300 192.0.2.1"), "", 1)
	}
	if s := n.Stats(); s.Addresses != 100 || s.PushedAddresses != 901 || s.PushedNames != 1000-maxNames {
		t.Errorf("%+v", s)
	}
	if name, _ := n.Lookup(1, needed, "", 1); name.Asked != "n999.org" {
		t.Errorf("the last name is %q", name.Asked)
	}
}
