package convert

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"

	"github.com/pavise-project/pavise"
	"github.com/pavise-project/pavise/policy"
)

// modelNet is a NetworkPolicy of the namespace default.
type modelNet struct {
	app             string // the pods' label; "*" for all pods
	ingress, egress bool   // policyTypes
	in, out         []modelNetRule
}

type modelNetRule struct {
	cidrs, excepts []netip.Prefix // an except for each, maybe none
	pods           bool           // there is a peer that selects pods, too
	protocol       string
	port, end      uint16 // port 0 for all
}

// modelAllows is what Kubernetes says of a connection, with the peers that are pods left out: a pod that no policy selects is free,
// and what those allow that do select it adds up.
func modelAllows(ps []modelNet, egress bool, app, protocol string, peer netip.Addr, port uint16) bool {
	isolated := false
	for _, p := range ps {
		rules, acts := p.in, p.ingress
		if egress {
			rules, acts = p.out, p.egress
		}
		if !acts || p.app != "*" && p.app != app {
			continue
		}
		isolated = true
		for _, r := range rules {
			if r.port != 0 && (r.protocol != protocol || port < r.port || port > max(r.port, r.end)) {
				continue
			}
			if len(r.cidrs) == 0 && !r.pods {
				return true
			}
			for i, c := range r.cidrs {
				if c.Contains(peer) && !r.excepts[i].Contains(peer) {
					return true
				}
			}
		}
	}
	return !isolated
}

func (p *modelNet) yaml(name string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: %s, namespace: default}\nspec:\n", name)
	if p.app != "*" {
		fmt.Fprintf(&b, "  podSelector: {matchLabels: {app: %s}}\n", p.app)
	}
	var types []string
	for _, dir := range []struct {
		on          bool
		kind, peers string
		rules       []modelNetRule
	}{{p.ingress, "Ingress", "from", p.in}, {p.egress, "Egress", "to", p.out}} {
		if !dir.on {
			continue
		}
		types = append(types, dir.kind)
		fmt.Fprintf(&b, "  %s:\n", strings.ToLower(dir.kind))
		for _, r := range dir.rules {
			if len(r.cidrs) == 0 && !r.pods && r.port == 0 {
				b.WriteString("  - {}\n")
				continue
			}
			b.WriteString("  -\n")
			if len(r.cidrs) > 0 || r.pods {
				fmt.Fprintf(&b, "    %s:\n", dir.peers)
			}
			for i, c := range r.cidrs {
				if r.excepts[i].IsValid() {
					fmt.Fprintf(&b, "    - ipBlock: {cidr: %q, except: [%q]}\n", c, r.excepts[i])
				} else {
					fmt.Fprintf(&b, "    - ipBlock: {cidr: %q}\n", c)
				}
			}
			if r.pods {
				b.WriteString("    - podSelector: {}\n")
			}
			if r.port != 0 {
				fmt.Fprintf(&b, "    ports: [{protocol: %s, port: %d", strings.ToUpper(r.protocol), r.port)
				if r.end != 0 {
					fmt.Fprintf(&b, ", endPort: %d", r.end)
				}
				b.WriteString("}]\n")
			}
		}
	}
	fmt.Fprintf(&b, "  policyTypes: [%s]\n", strings.Join(types, ", "))
	return b.String()
}

// TestNetworkPolicyModel holds converted policies to Kubernetes's own rules, on random policies and connections.
func TestNetworkPolicyModel(t *testing.T) {
	rnd := rand.New(rand.NewPCG(7, 7)) //nolint:gosec // the same each time
	pick := func(words ...string) string { return words[rnd.IntN(len(words))] }
	rules := func() (out []modelNetRule) {
		for range rnd.IntN(3) {
			r := modelNetRule{pods: rnd.IntN(4) == 0}
			for range rnd.IntN(3) {
				c, except := netip.MustParsePrefix(pick("10.0.0.0/8", "10.1.0.0/16", "0.0.0.0/0", "2001:db8::/32")), netip.Prefix{}
				if c.Addr().Is4() && rnd.IntN(2) == 0 {
					except = netip.MustParsePrefix(pick("10.1.1.0/24", "10.1.2.3/32"))
				}
				r.cidrs, r.excepts = append(r.cidrs, c), append(r.excepts, except)
			}
			if rnd.IntN(3) > 0 {
				r.protocol, r.port = pick("tcp", "udp"), 80
				if rnd.IntN(3) == 0 {
					r.end = 443
				}
			}
			out = append(out, r)
		}
		return out
	}
	var allowed, denied int
	for range 100 {
		var ps []modelNet
		var docs []string
		for i := range 1 + rnd.IntN(3) {
			p := modelNet{app: pick("web", "db", "*"), in: rules(), out: rules()}
			p.ingress = rnd.IntN(2) == 0
			p.egress = !p.ingress || rnd.IntN(2) == 0
			ps, docs = append(ps, p), append(docs, p.yaml(fmt.Sprintf("p%d", i)))
		}
		src := strings.Join(docs, "---\n")
		out, img := converted(t, src)
		if img == nil {
			t.Fatalf("%s\nis no policy:\n%s", src, out)
		}
		for range 60 {
			pod, peer := pick("web", "db", "bare", "other"), netip.MustParseAddr(pick("10.1.1.1", "10.1.2.3", "10.2.0.1", "192.0.2.1", "2001:db8::1", "2001:db9::1"))
			protocol, op := pick("tcp", "udp"), pick("net.connect", "net.send", "net.accept")
			port := []uint16{22, 80, 200, 443, 444}[rnd.IntN(5)]
			egress := op != "net.accept"
			if !egress {
				protocol = "tcp" // what is accepted is a connection
			} else if op == "net.send" {
				protocol = "udp"
			}
			act := []string{op, netip.AddrPortFrom(peer, port).String(), protocol, "pod=" + pod}
			if !egress {
				act = []string{op, netip.AddrPortFrom(peer, 40000).String(), protocol, "pod=" + pod, fmt.Sprintf("local=10.9.9.9:%d", port)}
			}
			said, err := judge(img, act)
			if err != nil {
				t.Fatal(err)
			}
			want := pod == "other" || modelAllows(ps, egress, pods[pod].Labels["app"], protocol, peer, port)
			if want {
				allowed++
			} else {
				denied++
			}
			if got := !strings.HasPrefix(said, "deny"); got != want {
				t.Fatalf("%s\n%s\n%v: %s, and Kubernetes allows it: %v", src, out, act, said, want)
			}
		}
	}
	if min(allowed, denied) < 1000 {
		t.Errorf("%d allowed and %d denied are no test", allowed, denied)
	}
}

// TestNetworkPolicyAccept holds what is said of ingress to machines: with ports alone it is enforced where the other end is not known yet,
// and with addresses where that is known and accepting can only be answered with a kill, if the policy says so.
func TestNetworkPolicyAccept(t *testing.T) {
	const src = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: n, namespace: default}\nspec:\n  ingress: [{%sports: [{port: 80}]}]\n"
	before, after := *machine, *machine
	before.Ops[pavise.OpAccept].Missing = []policy.Dim{policy.DimRemoteAddr, policy.DimRemotePort}
	after.Ops[pavise.OpAccept] = policy.Support{Rung: pavise.RungKillOnReturn, Kill: true}
	for _, c := range []struct {
		peers, fallback string
		m               *policy.Machine
		ok              bool
	}{
		{"", "", &before, true},
		{"from: [{ipBlock: {cidr: 10.0.0.0/8}}], ", "", &before, false},
		{"from: [{ipBlock: {cidr: 10.0.0.0/8}}], ", "", &after, false},
		{"from: [{ipBlock: {cidr: 10.0.0.0/8}}], ", "  fallback: kill\n", &after, true},
	} {
		res, err := Convert([]File{{"in.yaml", fmt.Appendf(nil, src, c.peers)}}, Options{Enforce: true})
		if err != nil {
			t.Fatal(err)
		}
		text := strings.Replace(res.YAML(), "  mode: enforce\n", "  mode: enforce\n"+c.fallback, 1)
		ps, err := policy.Parse("out.yaml", []byte(text))
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err = policy.Compile(ps, c.m); (err == nil) != c.ok {
			t.Errorf("%q %q: %v\n%s", c.peers, c.fallback, err, text)
		}
	}
}
