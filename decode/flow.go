package decode

import (
	"fmt"
	"net/netip"
	"unsafe"

	pavise "github.com/pavise-project/pavise"
	"github.com/pavise-project/pavise/bpf"
)

// The bits that bpf/flow.h defines.
const (
	flowFound  = 1 << 0
	flowOthers = 1 << 1
	flowICMP   = 1 << 2

	flowDataOut = 1 << 0
	flowDataCut = 1 << 1
)

const (
	afInet  = 2
	afInet6 = 10
)

// Flow reads a record of flows (bpf/flow.h) into f, or one of what was copied of a flow into d, and tells by data which. It overwrites that one, the other is as it
// was; on an error both are. What is in the record fills them, and nothing else: no processes but their ExecID, no names, and SentNew and ReceivedNew are zero. The
// strings of f and Data of d point into rec: they are valid only as long as rec is.
// Boot is the Unix time in nanoseconds at which CLOCK_BOOTTIME was zero.
func Flow(rec []byte, boot int64, f *pavise.Flow, d *pavise.FlowData) (data bool, err error) {
	const lenAndKind = 5
	if len(rec) < lenAndKind {
		return false, fmt.Errorf("decode %d bytes: %w", len(rec), ErrTruncated)
	}
	var aligned uint32
	n := *view(rec, &aligned)
	if uint64(n) > uint64(len(rec)) || n < lenAndKind {
		return false, fmt.Errorf("decode %d bytes that say %d: %w", len(rec), n, ErrTruncated)
	}
	rec = rec[:n:n]
	switch kind := bpf.KernelRecKind(rec[4]); kind {
	case bpf.KernelRecKindREC_FLOW:
		return false, decodeFlow(rec, boot, f)
	case bpf.KernelRecKindREC_FLOWDATA:
		return true, decodeFlowData(rec, boot, d)
	default:
		return false, fmt.Errorf("decode kind %d of flows: %w", rec[4], ErrUnknownRecord)
	}
}

func decodeFlow(rec []byte, boot int64, f *pavise.Flow) error {
	const size = int(unsafe.Sizeof(bpf.KernelRecFlow{}))
	if len(rec) < size {
		return fmt.Errorf("decode a flow of %d bytes: %w", len(rec), ErrTruncated)
	}
	var aligned bpf.KernelRecFlow
	r := view(rec, &aligned)
	if !fits(len(rec), size, int(r.RemotePathLen)+int(r.LocalPathLen)) {
		return fmt.Errorf("decode a flow of %d bytes: %w", len(rec), ErrTruncated)
	}
	if r.State >= uint8(pavise.NumFlowStates) || r.End >= uint8(pavise.NumFlowEnds) || r.Direction >= uint8(pavise.NumFlowDirections) || r.ResetBy >= uint8(pavise.NumFlowEndpoints) {
		return fmt.Errorf("decode a flow of state %d, end %d, direction %d, reset by %d: %w", r.State, r.End, r.Direction, r.ResetBy, ErrUnknownRecord)
	}
	*f = pavise.Flow{
		ID: r.Id, Report: r.Report, Time: boot + int64(r.Time), Start: boot + int64(r.Start),
		State: pavise.FlowState(r.State), End: pavise.FlowEnd(r.End), Direction: pavise.FlowDirection(r.Direction), Found: r.Flags&flowFound != 0,
		Family: r.Family, Type: r.Type, Protocol: r.Protocol, NetNS: r.Netns,
		Local:  pavise.FlowSide{Port: r.LocalPort, ExecID: r.ExecId},
		Remote: pavise.FlowSide{Port: r.RemotePort, ExecID: r.RemoteExecId},
		Sent:   pavise.Traffic{Bytes: r.Sent.Bytes, Packets: r.Sent.Packets}, Received: pavise.Traffic{Bytes: r.Received.Bytes, Packets: r.Received.Packets},
		Others: r.Flags&flowOthers != 0, Retransmits: r.Retransmits, RTT: int64(r.Rtt) * 1000, ConnectLatency: int64(r.Latency), ResetBy: pavise.FlowEndpoint(r.ResetBy),
	}
	if r.Flags&flowICMP != 0 {
		f.ICMP = &pavise.ICMP{Type: r.IcmpType, Code: r.IcmpCode}
	}
	if r.Family == afInet || r.Family == afInet6 {
		f.Local.Address = netip.AddrFrom16(r.Local).Unmap()
		if !f.Others {
			f.Remote.Address = netip.AddrFrom16(r.Remote).Unmap()
		}
	}
	s := rec[size:]
	f.Remote.Path, s = text(s, int(r.RemotePathLen))
	f.Local.Path, _ = text(s, int(r.LocalPathLen))
	return nil
}

func decodeFlowData(rec []byte, boot int64, d *pavise.FlowData) error {
	const size = int(unsafe.Sizeof(bpf.KernelRecFlowData{}))
	if len(rec) < size {
		return fmt.Errorf("decode data of a flow of %d bytes: %w", len(rec), ErrTruncated)
	}
	var aligned bpf.KernelRecFlowData
	r := view(rec, &aligned)
	if uint64(size)+uint64(r.DataLen) != uint64(len(rec)) {
		return fmt.Errorf("decode data of a flow of %d bytes: %w", len(rec), ErrTruncated)
	}
	kind := pavise.FlowDataKind(r.What)
	if kind < pavise.FlowDataDNS || kind > pavise.FlowDataQUIC {
		return fmt.Errorf("decode data of a flow of kind %d: %w", r.What, ErrUnknownRecord)
	}
	*d = pavise.FlowData{
		Flow: r.Id, Time: boot + int64(r.Time), Kind: kind, Protocol: r.Protocol, Outgoing: r.Flags&flowDataOut != 0, NetNS: r.Netns, ExecID: r.ExecId,
		Local:  netip.AddrPortFrom(netip.AddrFrom16(r.Local).Unmap(), r.LocalPort),
		Remote: netip.AddrPortFrom(netip.AddrFrom16(r.Remote).Unmap(), r.RemotePort),
		Seq:    r.Seq, Cut: r.Flags&flowDataCut != 0, Data: rec[size:],
	}
	return nil
}
