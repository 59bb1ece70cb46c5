package agent

import (
	"context"
	"errors"
	"iter"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/pavise-project/pavise"
	"github.com/pavise-project/pavise/enforce"
	"github.com/pavise-project/pavise/flow"
)

// This file keeps what addresses are called: for people, every answer counts; for rules on net.remote.domain those alone that come from a server which the host itself asks.

// resolverFiles name the servers that the host asks: glibc's, and what systemd-resolved asks behind its stub.
var resolverFiles = []string{"/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"}

const (
	warmTime  = 2 * time.Second // that a change of policies waits for their names to be looked up
	warmPause = 5 * time.Minute // after which they are looked up again
	maxWarmed = 1024            // of them
)

// DomainKernel is what the agent needs of a Kernel that judges by domain names.
type DomainKernel interface {
	// Named gives an address names, NamedAre replaces all names.
	Named(a enforce.NamedAddress, names []string) error
	NamedAre(all iter.Seq2[enforce.NamedAddress, []string]) error
	// DomainServers says whom rules believe.
	DomainServers(list []enforce.DomainServer) error
	// Domains are the names that policies ask about; one that begins with a dot stands for all below it.
	Domains() []string
}

// names is what addresses are called.
type names struct {
	a      *Agent
	kernel DomainKernel // nil: nothing judges by names

	mu        sync.Mutex
	reader    *flow.Reader
	table     *flow.Names
	servers   []netip.Addr
	told      bool     // to the kernel
	domains   []string // that policies ask about
	hostNetNS uint32
	warmed    map[string]time.Duration // when names of policies were looked up
	tied      map[tie]bool             // what rules know of
}

// tie is a name that policies ask about, and one of its addresses.
type tie struct {
	at   enforce.NamedAddress
	name string
}

func (a *Agent) newNames() *names {
	n := &names{a: a, reader: flow.NewReader(), table: flow.NewNames(flow.DefaultAddresses, flow.DefaultNamesBytes), warmed: map[string]time.Duration{}, tied: map[tie]bool{}}
	if k, ok := a.kernel.(DomainKernel); ok {
		n.kernel = k
	}
	if st, err := os.Stat("/proc/self/ns/net"); err == nil {
		n.hostNetNS = uint32(st.Sys().(*syscall.Stat_t).Ino) //nolint:gosec // such a number has 32 bits
	}
	n.table.Keep = n.keep
	n.readServers()
	return n
}

// readServers looks which servers the host asks.
func (n *names) readServers() {
	servers := slices.Clone(n.a.cfg.DNSServers)
	for _, file := range resolverFiles {
		b, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		servers = append(servers, parseServers(string(b))...)
	}
	slices.SortFunc(servers, netip.Addr.Compare)
	servers = slices.Compact(servers)
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.told && slices.Equal(servers, n.servers) {
		return
	}
	n.servers = servers
	if n.kernel == nil {
		return
	}
	var list []enforce.DomainServer
	for _, a := range servers {
		s := enforce.DomainServer{Address: a}
		if a.IsLoopback() && !slices.Contains(n.a.cfg.DNSServers, a) {
			s.NetNS = n.hostNetNS
		}
		list = append(list, s)
	}
	if err := n.kernel.DomainServers(list); err != nil {
		n.a.log.Error("rules on domain names do not believe all servers", "err", err)
	}
	n.told = true
}

// parseServers reads resolv.conf(5).
func parseServers(text string) (servers []netip.Addr) {
	for line := range strings.Lines(text) {
		if f := strings.Fields(line); len(f) >= 2 && f[0] == "nameserver" {
			if a, err := netip.ParseAddr(f[1]); err == nil {
				servers = append(servers, a.Unmap().WithZone(""))
			}
		}
	}
	return servers
}

// keep tells whether rules need what a server says of some names.
func (n *names) keep(netNS uint32, server netip.Addr, names []string) bool {
	return n.kernel != nil && n.believed(netNS, server) && slices.ContainsFunc(names, func(name string) bool { return asked(n.domains, name) })
}

// believed tells whether rules believe a server's answers in a network namespace. Whoever may make processes in a namespace of his own can be any loopback address there.
func (n *names) believed(netNS uint32, server netip.Addr) bool {
	if !server.IsValid() {
		return true // the agent asked
	}
	if server.IsLoopback() && netNS != n.hostNetNS && !slices.Contains(n.a.cfg.DNSServers, server) {
		return false
	}
	return slices.Contains(n.servers, server)
}

// data reads what was copied of a flow. It returns the answers of DNS in it, and the ClientHello that it completes.
func (n *names) data(d *pavise.FlowData) (answers []*pavise.DNS, tls *pavise.TLS) {
	n.mu.Lock()
	defer n.mu.Unlock()
	got, tls := n.reader.Data(d)
	for _, dns := range got {
		side, exe := &dns.Client, ""
		if dns.Outgoing {
			side = &dns.Server
		}
		if side.Process = n.a.table.Lookup(side.ExecID); side.Process != nil {
			exe = side.Process.Exe.Path
		}
		n.table.Learn(dns, exe, sinceBoot())
		n.enforce(dns)
	}
	return slices.Clone(got), tls
}

// enforce tells the kernel of an answer, where a policy asks about its names.
func (n *names) enforce(d *pavise.DNS) {
	if n.kernel == nil || d.Outgoing || !n.believed(d.NetNS, d.Server.Address) {
		return
	}
	for _, t := range flow.Ties(d) {
		at := enforce.NamedAddress{NetNS: d.NetNS, Address: t.Address}
		is, news := n.tie(at, t.Names)
		if !is {
			continue
		}
		if err := n.kernel.Named(at, t.Names); err != nil {
			n.a.log.Error("a rule does not know a name's address", "name", t.Names[0], "address", t.Address, "err", err)
		}
		if news {
			n.a.recheckFor(RecheckNames)
		}
	}
}

// tie notes which of an address's names policies ask about: whether there is one, and one that the address had not.
func (n *names) tie(at enforce.NamedAddress, names []string) (is, news bool) {
	if len(n.tied) > flow.DefaultAddresses { // more than is known: they are counted anew
		clear(n.tied)
	}
	for _, name := range names {
		if !asked(n.domains, name) {
			continue
		}
		is = true
		if !n.tied[tie{at, name}] {
			n.tied[tie{at, name}], news = true, true
		}
	}
	return is, news
}

// asked tells whether a name is one of domains.
func asked(domains []string, name string) bool {
	return slices.ContainsFunc(domains, func(d string) bool { return d == name || d[0] == '.' && strings.HasSuffix(name, d) })
}

// forget ends a flow. Of a ClientHello that was never whole it returns what is known.
func (n *names) forget(id uint64) *pavise.TLS {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.reader.Forget(id)
}

// name is what an address is called, and the executable that asked.
// exe is who wants to know: it may have asked itself.
func (n *names) name(netNS uint32, a netip.Addr, exe string) (name, askedBy string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	found, ok := n.table.Lookup(netNS, a, exe, sinceBoot())
	if !ok {
		return "", ""
	}
	return found.Asked, found.Exe
}

// tell gives an event on a socket the name of the other end.
func (n *names) tell(e *pavise.Event) {
	e.Net.RemoteName = ""
	if !e.Op.OnSocket() || e.Process == nil || e.Net.Remote == [16]byte{} {
		return
	}
	e.Net.RemoteName, _ = n.name(e.Process.Namespaces.Net, netip.AddrFrom16(e.Net.Remote).Unmap(), e.Process.Exe.Path)
}

// tick takes away what is over, and looks whether the host asks others now, and whether the names of policies have other addresses.
func (n *names) tick() {
	n.readServers()
	if n.kernel == nil {
		return
	}
	domains := n.kernel.Domains()
	n.give(domains)
	n.warm(domains)
}

// prepare is called before policies that ask about these names are applied: whoever knows their addresses already may connect at once. It does not wait for
// answers where nothing is in force yet: the network may not be up, and is to find the policies there.
func (n *names) prepare(domains []string, wait bool) {
	if n.kernel == nil || len(domains) == 0 {
		return
	}
	n.give(append(n.kernel.Domains(), domains...))
	done := n.warm(domains)
	if !wait {
		return
	}
	select {
	case <-done:
	case <-time.After(warmTime):
		n.a.log.Warn("not all names of the policies could be looked up in time; their addresses are known when they come", "after", warmTime)
	}
}

// give tells the kernel of all that is known of some names.
func (n *names) give(domains []string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.domains = domains
	clear(n.tied)
	err := n.kernel.NamedAre(func(yield func(enforce.NamedAddress, []string) bool) {
		if len(domains) == 0 {
			return
		}
		n.table.Each(sinceBoot(), func(netNS uint32, a, server netip.Addr, names []string) {
			if !n.believed(netNS, server) {
				return
			}
			at := enforce.NamedAddress{NetNS: netNS, Address: a}
			if is, _ := n.tie(at, names); is {
				yield(at, names)
			}
		})
	})
	if err != nil {
		n.a.log.Error("rules do not know all addresses of names", "err", err)
	}
}

// warm looks up names that were not looked up for a while. What is returned is closed when all answers are there.
func (n *names) warm(domains []string) <-chan struct{} {
	done := make(chan struct{})
	n.mu.Lock()
	defer n.mu.Unlock()
	now := sinceBoot()
	var due []string
	for _, d := range domains {
		if at, ok := n.warmed[d]; d[0] == '.' || ok && now-at < warmPause || !ok && len(n.warmed) >= maxWarmed {
			continue
		}
		n.warmed[d] = now
		due = append(due, d)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*warmTime)
	var wg sync.WaitGroup
	limit := make(chan struct{}, 16)
	for _, d := range due {
		wg.Go(func() {
			limit <- struct{}{}
			defer func() { <-limit }()
			n.lookUp(ctx, d)
		})
	}
	n.a.background.Go(func() {
		wg.Wait()
		cancel()
		close(done)
	})
	return done
}

func (n *names) lookUp(ctx context.Context, name string) {
	addresses, err := net.DefaultResolver.LookupNetIP(ctx, "ip", name+".")
	if err != nil {
		if none := (*net.DNSError)(nil); !errors.As(err, &none) || !none.IsNotFound {
			n.a.log.Warn("a name of a policy could not be looked up; its addresses are known when somebody has", "name", name, "err", err)
		}
		return
	}
	d := &pavise.DNS{NetNS: n.hostNetNS, Query: name, Code: "NOERROR"} // of no server: hosts(5) may have it
	for _, a := range addresses {
		d.Answers = append(d.Answers, pavise.DNSRecord{Name: name, TTL: uint32(2 * warmPause / time.Second), Address: a.Unmap()})
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.table.Learn(d, n.a.exePath, sinceBoot())
	n.enforce(d)
}
