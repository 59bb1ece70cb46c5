package policy

import (
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"

	"github.com/pavise-project/pavise"
)

var (
	noFlow pavise.Flow
	noTLS  pavise.TLS
)

func flowOf(e *pavise.Event) *pavise.Flow {
	if e.Flow != nil {
		return e.Flow
	}
	return &noFlow
}

func tlsOf(e *pavise.Event) *pavise.TLS {
	if t := flowOf(e).TLS; t != nil {
		return t
	}
	return &noTLS
}

// peerOf is who is at the other end of a flow.
func peerOf(e *pavise.Event) *pavise.Process {
	if p := flowOf(e).Remote.Process; p != nil {
		return p
	}
	return &noProcess
}

func directionOf(e *pavise.Event) string {
	if e.Op != pavise.OpFlow {
		return direction(e.Op)
	}
	switch flowOf(e).Direction {
	case pavise.FlowOutbound:
		return "out"
	case pavise.FlowInbound:
		return "in"
	}
	return ""
}

func flowText(name, doc string, value func(*pavise.Event) string) Field {
	return Field{Name: name, Type: "string", Doc: doc, event: func(e *pavise.Event) ref.Val { return textVal(value(e)) }}
}

func flowInt(name, doc string, value func(*pavise.Flow) uint64) Field {
	return Field{Name: name, Type: "int", Doc: doc, event: func(e *pavise.Event) ref.Val { return intVal(value(flowOf(e))) }}
}

// flowFields are the facts of a report of a flow, beside those of its process and of its socket.
var flowFields = []Field{
	flowText("flow.state", "open, connecting or closed.", func(e *pavise.Event) string { return flowOf(e).State.String() }),
	flowText("flow.end", "How it ended: closed, reset, refused, timed-out, unreachable, denied or cut-off; empty while it goes on, or when nobody saw it end.",
		func(e *pavise.Event) string { return flowOf(e).End.String() }),
	{Name: "flow.found", Type: "bool", Doc: "Whether it was there before the agent.", event: func(e *pavise.Event) ref.Val { return types.Bool(flowOf(e).Found) }},
	flowInt("flow.bytes", "Bytes, both ways, since it began.", func(f *pavise.Flow) uint64 { return f.Sent.Bytes + f.Received.Bytes }),
	flowInt("flow.sent.bytes", "Bytes that were sent since it began.", func(f *pavise.Flow) uint64 { return f.Sent.Bytes }),
	flowInt("flow.sent.packets", "Segments, datagrams or messages that were sent.", func(f *pavise.Flow) uint64 { return f.Sent.Packets }),
	flowInt("flow.received.bytes", "Bytes that were received since it began.", func(f *pavise.Flow) uint64 { return f.Received.Bytes }),
	flowInt("flow.received.packets", "Segments, datagrams or messages that were received.", func(f *pavise.Flow) uint64 { return f.Received.Packets }),
	flowInt("flow.retransmits", "Segments of TCP that were sent again.", func(f *pavise.Flow) uint64 { return uint64(f.Retransmits) }),
	flowInt("flow.rtt", "Smoothed round trip time of TCP, in microseconds.", func(f *pavise.Flow) uint64 { return microseconds(f.RTT) }),
	flowInt("flow.connect_latency", "From the first segment to the connection, in microseconds.", func(f *pavise.Flow) uint64 { return microseconds(f.ConnectLatency) }),
	flowInt("flow.duration", "From its beginning to this report, in milliseconds.", func(f *pavise.Flow) uint64 { return microseconds(f.Time-f.Start) / 1000 }),
	flowInt("flow.net_ns", "Inode number of its network namespace.", func(f *pavise.Flow) uint64 { return uint64(f.NetNS) }),
	flowText("flow.asked_by", "Executable that looked up the other end's name.", func(e *pavise.Event) string { return flowOf(e).Remote.AskedBy }),
	flowText("flow.peer.exe.path", "Executable of the process at the other end, when that is on this host.", func(e *pavise.Event) string { return peerOf(e).Exe.Path }),
	flowText("flow.peer.exe.name", "Last component of it.", func(e *pavise.Event) string { return baseName(peerOf(e).Exe.Path) }),
	flowText("flow.peer.user.name", "User of the process at the other end.", func(e *pavise.Event) string { return peerOf(e).User.Name }),
	flowText("flow.peer.unit", "systemd unit of the process at the other end.", func(e *pavise.Event) string { return peerOf(e).Unit }),
	flowText("flow.peer.container.name", "Container of the process at the other end.", func(e *pavise.Event) string { return containerOf(peerOf(e)).Name }),
	flowText("tls.sni", "The name that a TLS or QUIC client asks for; with an encrypted ClientHello the outer one.", func(e *pavise.Event) string { return tlsOf(e).SNI }),
	{Name: "tls.alpn", Type: "list(string)", Doc: "The protocols that a TLS or QUIC client offers, as \"h2\".", event: func(e *pavise.Event) ref.Val { return argList(tlsOf(e).ALPN) }},
	flowText("tls.version", "The highest version that a client offers, as \"1.3\".", func(e *pavise.Event) string { return tlsOf(e).Version }),
	flowText("tls.ja3", "JA3 of the ClientHello.", func(e *pavise.Event) string { return tlsOf(e).JA3 }),
	flowText("tls.ja4", "JA4 of the ClientHello.", func(e *pavise.Event) string { return tlsOf(e).JA4 }),
	{Name: "tls.quic", Type: "bool", Doc: "Whether it is QUIC's.", event: func(e *pavise.Event) ref.Val { return types.Bool(tlsOf(e).QUIC) }},
}

// dnsFields are the facts of an answer to a question for a name.
var dnsFields = []Field{
	flowText("dns.query", "The name that was asked for.", func(e *pavise.Event) string { return dnsOf(e).Query }),
	flowText("dns.type", "The type of record that was asked for: A, AAAA, HTTPS.", func(e *pavise.Event) string { return dnsOf(e).Type }),
	flowText("dns.code", "How it was answered: NOERROR, NXDOMAIN, SERVFAIL.", func(e *pavise.Event) string { return dnsOf(e).Code }),
	{Name: "dns.addresses", Type: "list(string)", Doc: "The addresses of the answer.", event: func(e *pavise.Event) ref.Val {
		var list []string
		for _, r := range dnsOf(e).Answers {
			if r.Address.IsValid() {
				list = append(list, r.Address.String())
			}
		}
		return argList(list)
	}},
}

var noDNS pavise.DNS

func dnsOf(e *pavise.Event) *pavise.DNS {
	if e.DNS != nil {
		return e.DNS
	}
	return &noDNS
}

func microseconds(ns int64) uint64 { return uint64(max(ns, 0)) / 1000 } //nolint:gosec // not below 0
