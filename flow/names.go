package flow

import (
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/pavise-project/pavise"
)

const (
	// minLife is how long an answer holds at least: a program connects some time after it asked, and browsers keep a name for a minute whatever its TTL.
	minLife = time.Minute
	// maxLife bounds what a server may ask for: as RFC 8767, 4 advises.
	maxLife = 7 * 24 * time.Hour
	// grace is for how long after its time a name is still shown.
	grace = time.Hour
	// maxNames is how many names one address has: those of a content network have thousands.
	maxNames = 16
	// maxChain is how many CNAME records are followed.
	maxChain = 16
	// maxKept is how many addresses are passed over, for Keep, before one goes all the same: so no call takes long.
	maxKept = 16
	// nameCost and addressCost are what a name and an address take beside their strings, about.
	nameCost, addressCost = 160, 192
)

// The bounds that NewNames is meant for.
const (
	DefaultAddresses  = 1 << 16
	DefaultNamesBytes = 32 << 20
)

// Names are the names that addresses have been given, in each network namespace, as its processes asked for them. It is bounded: the address that was
// longest neither given a name nor looked up goes first. It is for one goroutine at a time.
//
// A name says what an answer said, and an answer says what its server likes: a process that may ask a server of its choice can give any address any name.
//
// Time is that of a clock that never goes back, the same in all calls, and goes on in suspend (CLOCK_BOOTTIME): so the wall clock may jump as it likes.
type Names struct {
	// Keep, where it is set, tells of an answer whether it is needed (a rule asks about its names): what is not goes first. It is not to call back.
	Keep func(netNS uint32, server netip.Addr, names []string) bool

	addresses, bytes int // at most
	table            *lru[addressKey, addressNames]
	size             int
	now              time.Duration
	stats            NamesStats
}

// NamesStats count what is in Names, and what has left it before its time.
type NamesStats struct {
	Addresses       int    // that have a name
	Bytes           int    // that the table takes, about
	PushedAddresses uint64 // that newer ones needed the room of
	PushedNames     uint64 // of addresses that have more names than are kept
}

type addressKey struct {
	netNS   uint32
	address netip.Addr
}

type addressNames struct {
	names []bond // the newest first
	size  int
}

// bond is one name of an address.
type bond struct {
	names   []string // the one that was asked for first
	exe     string
	exec    uint64
	server  netip.Addr
	expires time.Duration
}

// Name is what an address was looked up as.
type Name struct {
	Asked  string   // the name that was asked for, in lower case
	Chain  []string // those that it leads to, one after the other: the last has the address. Not to be written
	Exe    string   // the executable that asked last, and its exec_id
	ExecID uint64
	Server netip.Addr // who answered
	Live   bool       // within its time: else it was, less than an hour ago
}

// NewNames returns an empty table of at most so many addresses, that takes about so many bytes at most.
func NewNames(addresses, bytes int) *Names {
	return &Names{addresses: max(addresses, 1), bytes: bytes, table: newLRU[addressKey, addressNames]()}
}

// Stats returns the counts.
func (n *Names) Stats() NamesStats {
	s := n.stats
	s.Addresses, s.Bytes = len(n.table.nodes), n.size
	return s
}

// Learn takes in an answer that a process got; exe is the executable of who asked, which is d.Client. An answer that this host's server sent tells nothing.
func (n *Names) Learn(d *pavise.DNS, exe string, now time.Duration) {
	now = n.tick(now)
	if d.Outgoing {
		return
	}
	for _, t := range Ties(d) {
		b := bond{names: t.Names, exe: exe, exec: d.Client.ExecID, server: d.Server.Address, expires: now + t.Life}
		n.tie(addressKey{d.NetNS, t.Address}, b, now)
	}
	n.sweep(now)
	for len(n.table.nodes) > n.addresses || n.size > n.bytes && len(n.table.nodes) > 1 {
		o := n.table.oldest()
		for range min(maxKept, len(n.table.nodes)-1) {
			if !n.keeps(o, now) {
				break
			}
			n.table.get(o.key)
			o = n.table.oldest()
		}
		n.drop(o)
		n.stats.PushedAddresses++
	}
}

// keeps tells whether an address has a name that is needed.
func (n *Names) keeps(o *node[addressKey, addressNames], now time.Duration) bool {
	return n.Keep != nil && slices.ContainsFunc(o.value.names, func(b bond) bool {
		return b.expires+grace >= now && n.Keep(o.key.netNS, b.server, b.names)
	})
}

func (n *Names) tie(k addressKey, b bond, now time.Duration) {
	a := n.table.get(k)
	if a == nil {
		a = n.table.add(k)
	}
	a.names = slices.DeleteFunc(a.names, func(old bond) bool {
		same := old.exe == b.exe && old.server == b.server && slices.Equal(old.names, b.names)
		if same { // a cache may still hold an answer before this one, of a longer life
			b.expires = max(b.expires, old.expires)
		}
		return same || old.expires+grace < now
	})
	if len(a.names) >= maxNames {
		i := maxNames - 1
		for n.Keep != nil && i > 0 && n.Keep(k.netNS, a.names[i].server, a.names[i].names) {
			i--
		}
		if i == 0 { // all are needed
			i = maxNames - 1
		}
		a.names = slices.Delete(a.names, i, i+1)
		n.stats.PushedNames++
	}
	a.names = slices.Insert(a.names, 0, b)
	n.size -= a.size
	a.size = addressCost
	for _, b := range a.names {
		a.size += b.size()
	}
	n.size += a.size
}

func (b *bond) size() int {
	size := nameCost
	for _, s := range b.names {
		size += 16 + len(s)
	}
	return size
}

// sweep takes away what is oldest and over: a few, so that no call takes long.
func (n *Names) sweep(now time.Duration) {
	for range 4 {
		o := n.table.oldest()
		if o == nil || slices.ContainsFunc(o.value.names, func(b bond) bool { return b.expires+grace >= now }) {
			return
		}
		n.drop(o)
	}
}

func (n *Names) drop(o *node[addressKey, addressNames]) {
	n.size -= o.value.size
	n.table.remove(o.key)
}

// tick holds the time where the caller's goes back.
func (n *Names) tick(now time.Duration) time.Duration {
	n.now = max(n.now, now)
	return n.now
}

// Lookup returns the name that the address is known by in a namespace: the last one that the executable asked for, else the last one that anyone asked
// for; and a live one before one whose time is over.
func (n *Names) Lookup(netNS uint32, a netip.Addr, exe string, now time.Duration) (Name, bool) {
	now = n.tick(now)
	t := n.table.get(keyOf(netNS, a))
	if t == nil {
		return Name{}, false
	}
	var best *bond
	rank := -1
	for i := range t.names {
		b := &t.names[i]
		if b.expires+grace < now {
			continue
		}
		r := 0
		if b.expires >= now {
			r = 2
		}
		if b.exe == exe {
			r++
		}
		if r > rank {
			best, rank = b, r
		}
	}
	if best == nil {
		return Name{}, false
	}
	return Name{Asked: best.names[0], Chain: best.names[1:], Exe: best.exe, ExecID: best.exec, Server: best.server, Live: rank >= 2}, true
}

// Within tells whether a pattern has the address by any name of its chains, whoever asked: live while one of the answers holds, known for an hour longer.
func (n *Names) Within(netNS uint32, a netip.Addr, pattern string, now time.Duration) (live, known bool) {
	now = n.tick(now)
	t := n.table.get(keyOf(netNS, a))
	if t == nil {
		return false, false
	}
	for i := range t.names {
		b := &t.names[i]
		if b.expires+grace < now || b.expires < now && known {
			continue
		}
		if slices.ContainsFunc(b.names, func(name string) bool { return MatchName(pattern, name) }) {
			known = true
			if b.expires >= now {
				return true, true
			}
		}
	}
	return false, known
}

// Each calls fn for each answer that holds or held less than an hour ago: the address that it gave, who gave it, and the names of its chain, which are not to be written.
func (n *Names) Each(now time.Duration, fn func(netNS uint32, a, server netip.Addr, names []string)) {
	now = n.tick(now)
	for k, o := range n.table.nodes {
		for _, b := range o.value.names {
			if b.expires+grace >= now {
				fn(k.netNS, k.address, b.server, b.names)
			}
		}
	}
}

func keyOf(netNS uint32, a netip.Addr) addressKey {
	return addressKey{netNS, a.Unmap().WithZone("")}
}

// MatchName tells whether a name, as Names and Ties have it, matches a pattern: a name, or "*.example.com", which has every name below example.com and not
// that itself.
func MatchName(pattern, name string) bool {
	pattern = CanonicalName(pattern)
	if suffix, ok := strings.CutPrefix(pattern, "*"); ok && len(suffix) > 1 && suffix[0] == '.' {
		return len(name) > len(suffix) && strings.HasSuffix(name, suffix)
	}
	return name == pattern
}

// CanonicalName returns a name in lower case and without the last dot.
func CanonicalName(name string) string {
	if len(name) > 1 {
		name = strings.TrimSuffix(name, ".")
	}
	for i := range len(name) { // ASCII alone: DNS knows no other case
		if c := name[i]; 'A' <= c && c <= 'Z' {
			b := []byte(name)
			for j := i; j < len(b); j++ {
				if c := b[j]; 'A' <= c && c <= 'Z' {
					b[j] = c + 'a' - 'A'
				}
			}
			return string(b)
		}
	}
	return name
}

// Tie is an address, and the names that an answer gives it.
type Tie struct {
	Address netip.Addr
	Names   []string      // the one that was asked for first, then what it leads to; canonical
	Life    time.Duration // how long the answer holds: the shortest TTL on the way, within bounds
}

// Ties returns what an answer says of addresses: those of the name that was asked for and of what its CNAME records lead to, and no other records: a server
// has no say in names that it was not asked for. An answer of mDNS has no question, and says what it likes, but of names under .local alone.
func Ties(d *pavise.DNS) []Tie {
	if d.Code != codeNames[0] || len(d.Answers) == 0 {
		return nil
	}
	if d.Server.Port == 5353 {
		return localTies(d)
	}
	var ties []Tie
	names := []string{CanonicalName(d.Query)}
	life := maxLife
	for {
		name := names[len(names)-1]
		var next string
		var nextLife time.Duration
		for i := range d.Answers {
			r := &d.Answers[i]
			if !sameName(name, r.Name) {
				continue
			}
			l := min(life, time.Duration(r.TTL)*time.Second)
			switch {
			case r.Address.IsValid():
				ties = appendTie(ties, r.Address, names, l)
			case r.Type == "CNAME" && next == "":
				next, nextLife = CanonicalName(r.Target), l
			case len(r.Hints) > 0:
				to := names
				if r.Target != "" {
					if target := CanonicalName(r.Target); !slices.Contains(names, target) {
						to = append(slices.Clone(names), target)
					}
				}
				for _, a := range r.Hints {
					ties = appendTie(ties, a, to, l)
				}
			}
		}
		if next == "" || len(names) > maxChain || slices.Contains(names, next) {
			return ties
		}
		names = append(names[:len(names):len(names)], next)
		life = nextLife
	}
}

func localTies(d *pavise.DNS) []Tie {
	var ties []Tie
	for i := range d.Answers {
		r := &d.Answers[i]
		if name := CanonicalName(r.Name); r.Address.IsValid() && MatchName("*.local", name) {
			ties = appendTie(ties, r.Address, []string{name}, min(maxLife, time.Duration(r.TTL)*time.Second))
		}
	}
	return ties
}

func appendTie(ties []Tie, a netip.Addr, names []string, life time.Duration) []Tie {
	if a.IsUnspecified() { // how servers say that a name is blocked; whoever connects there reaches this host
		return ties
	}
	return append(ties, Tie{a.Unmap(), names, max(life, minLife)})
}

// sameName compares a canonical name with one that need not be.
func sameName(canonical, name string) bool {
	if len(canonical) != len(name) {
		return false
	}
	for i := range len(name) {
		c := name[i]
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		if c != canonical[i] {
			return false
		}
	}
	return true
}
