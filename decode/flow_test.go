package decode

import (
	"bytes"
	"errors"
	"math"
	"net/netip"
	"reflect"
	"testing"
	"unsafe"

	"github.com/cilium/ebpf/btf"

	pavise "github.com/pavise-project/pavise"
	"github.com/pavise-project/pavise/bpf"
)

// write makes a record of flows: the struct, what follows it, and the length at its head.
func write[T any](r *T, n *uint32, rest ...string) []byte {
	*n = uint32(unsafe.Sizeof(*r))
	for _, s := range rest {
		*n += uint32(len(s))
	}
	b := bytes.Clone(unsafe.Slice((*byte)(unsafe.Pointer(r)), unsafe.Sizeof(*r)))
	for _, s := range rest {
		b = append(b, s...)
	}
	return b
}

var mapped = [16]byte{10: 0xff, 11: 0xff, 12: 192, 13: 0, 14: 2, 15: 9}

func flowRec(family uint16, flags uint8, remote, local string) []byte {
	r := bpf.KernelRecFlow{
		Kind: uint8(bpf.KernelRecKindREC_FLOW), State: uint8(pavise.FlowClosed), End: uint8(pavise.FlowRefused), Direction: uint8(pavise.FlowInbound),
		Time: 500, Id: 1<<63 | 1, Start: 400, ExecId: 1<<63 | 2, RemoteExecId: 1<<63 | 3, Latency: 1 << 40, Rtt: 1 << 31, Retransmits: 1 << 30, Report: 6,
		Netns: 7, Family: family, Type: 1, Protocol: 6, RemotePort: 443, LocalPort: 50000, Flags: flags, Remote: mapped, Local: [16]byte{0: 0x20, 15: 1},
		RemotePathLen: uint16(len(remote)), LocalPathLen: uint16(len(local)), ResetBy: uint8(pavise.EndpointRemote), IcmpType: 3, IcmpCode: 1,
	}
	r.Sent.Bytes, r.Sent.Packets, r.Received.Bytes, r.Received.Packets = math.MaxUint64, 11, 12, 13
	return write(&r, &r.Len, remote, local)
}

func dataRec(kind pavise.FlowDataKind, flags uint8, data string) []byte {
	r := bpf.KernelRecFlowData{
		Kind: uint8(bpf.KernelRecKindREC_FLOWDATA), What: uint8(kind), Protocol: 17, Flags: flags, Time: 500, Id: 1<<63 | 1, ExecId: 1<<63 | 2, Netns: 7,
		Seq: 8, RemotePort: 53, LocalPort: 50000, DataLen: uint32(len(data)), Remote: mapped, Local: [16]byte{0: 0x20, 15: 1},
	}
	return write(&r, &r.Len, data)
}

func flowRecords() map[string][]byte {
	return map[string][]byte{
		"inet": flowRec(afInet, flowFound, "", ""), "others": flowRec(afInet6, flowOthers, "", ""), "icmp": flowRec(afInet, flowICMP, "", ""), "unix": flowRec(1, 0, "@abs\x00tract", "/run/sock"),
		"data": dataRec(pavise.FlowDataDNS, flowDataCut, "answer"), "nothing": dataRec(pavise.FlowDataQUIC, flowDataOut, ""),
	}
}

func TestFlow(t *testing.T) {
	inet := pavise.Flow{
		ID: 1<<63 | 1, Report: 6, Time: 1500, Start: 1400, State: pavise.FlowClosed, End: pavise.FlowRefused, Direction: pavise.FlowInbound, Found: true,
		Family: afInet, Type: 1, Protocol: 6, NetNS: 7,
		Local:  pavise.FlowSide{Address: netip.MustParseAddr("2000::1"), Port: 50000, ExecID: 1<<63 | 2},
		Remote: pavise.FlowSide{Address: netip.MustParseAddr("192.0.2.9"), Port: 443, ExecID: 1<<63 | 3},
		Sent:   pavise.Traffic{Bytes: math.MaxUint64, Packets: 11}, Received: pavise.Traffic{Bytes: 12, Packets: 13},
		Retransmits: 1 << 30, RTT: 1000 << 31, ConnectLatency: 1 << 40, ResetBy: pavise.EndpointRemote,
	}
	icmp := inet
	icmp.Found, icmp.ICMP = false, &pavise.ICMP{Type: 3, Code: 1}
	others := inet
	others.Found, others.Others, others.Family, others.Remote.Address = false, true, afInet6, netip.Addr{}
	unix := inet
	unix.Found, unix.Family, unix.Local.Address, unix.Remote.Address = false, 1, netip.Addr{}, netip.Addr{}
	unix.Remote.Path, unix.Local.Path = "@abs\x00tract", "/run/sock"
	wantFlow := map[string]pavise.Flow{"inet": inet, "others": others, "icmp": icmp, "unix": unix}
	answer := pavise.FlowData{
		Flow: 1<<63 | 1, Time: 1500, Kind: pavise.FlowDataDNS, Protocol: 17, NetNS: 7, ExecID: 1<<63 | 2, Seq: 8, Cut: true, Data: []byte("answer"),
		Local: netip.MustParseAddrPort("[2000::1]:50000"), Remote: netip.MustParseAddrPort("192.0.2.9:53"),
	}
	nothing := answer
	nothing.Kind, nothing.Cut, nothing.Outgoing, nothing.Data = pavise.FlowDataQUIC, false, true, []byte{}
	wantData := map[string]pavise.FlowData{"data": answer, "nothing": nothing}
	for name, rec := range flowRecords() {
		for shift := range 8 { // aligned and not
			buf := make([]byte, shift+len(rec))
			copy(buf[shift:], rec)
			leftFlow, leftData := pavise.Flow{Policy: "left over"}, pavise.FlowData{Seq: 99}
			f, d := leftFlow, leftData
			data, err := Flow(buf[shift:], 1000, &f, &d)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			wantF, isFlow := wantFlow[name]
			wantD := wantData[name]
			if isFlow {
				wantD = leftData
			} else {
				wantF = leftFlow
			}
			if data == isFlow || !reflect.DeepEqual(f, wantF) || !reflect.DeepEqual(d, wantD) {
				t.Errorf("%s: got  %+v, %+v\nwant %+v, %+v", name, f, d, wantF, wantD)
			}
		}
	}
}

func TestFlowRefuses(t *testing.T) {
	refuse := func(name string, rec []byte, want error) {
		t.Helper()
		f, d := pavise.Flow{Policy: "kept"}, pavise.FlowData{Seq: 99}
		if _, err := Flow(rec, 0, &f, &d); !errors.Is(err, want) {
			t.Errorf("%s: %v", name, err)
		}
		if !reflect.DeepEqual(f, pavise.Flow{Policy: "kept"}) || !reflect.DeepEqual(d, pavise.FlowData{Seq: 99}) {
			t.Errorf("%s: it was changed", name)
		}
	}
	put32 := func(rec []byte, v uint32) []byte {
		c := bytes.Clone(rec)
		*(*uint32)(unsafe.Pointer(&c[0])) = v
		return c
	}
	set := func(rec []byte, at uintptr, v byte) []byte {
		c := bytes.Clone(rec)
		c[at] = v
		return c
	}
	for name, rec := range flowRecords() {
		for n := range rec { // every truncation, whether or not the head knows of it
			refuse(name, rec[:n], ErrTruncated)
			if n > 4 {
				refuse(name, put32(rec, uint32(n))[:n], ErrTruncated)
			}
		}
		long := append(bytes.Clone(rec), make([]byte, 4096)...)
		refuse(name+" with bytes that belong to nothing", put32(long, uint32(len(rec)+16)), ErrTruncated)
		var f pavise.Flow
		var d pavise.FlowData
		if _, err := Flow(long, 0, &f, &d); err != nil { // beyond its length: its place in the ring
			t.Errorf("%s: %v", name, err)
		}
		refuse(name, put32(rec, 1<<31), ErrTruncated)
		for kind := range 10 {
			if kind != int(bpf.KernelRecKindREC_FLOW) && kind != int(bpf.KernelRecKindREC_FLOWDATA) {
				refuse(name, set(rec, 4, byte(kind)), ErrUnknownRecord)
			}
		}
	}
	inet, data := flowRecords()["inet"], flowRecords()["data"]
	refuse("state", set(inet, unsafe.Offsetof(bpf.KernelRecFlow{}.State), byte(pavise.NumFlowStates)), ErrUnknownRecord)
	refuse("end", set(inet, unsafe.Offsetof(bpf.KernelRecFlow{}.End), byte(pavise.NumFlowEnds)), ErrUnknownRecord)
	refuse("direction", set(inet, unsafe.Offsetof(bpf.KernelRecFlow{}.Direction), byte(pavise.NumFlowDirections)), ErrUnknownRecord)
	refuse("reset by", set(inet, unsafe.Offsetof(bpf.KernelRecFlow{}.ResetBy), byte(pavise.NumFlowEndpoints)), ErrUnknownRecord)
	refuse("kind of data", set(data, unsafe.Offsetof(bpf.KernelRecFlowData{}.What), 0), ErrUnknownRecord)
	refuse("kind of data", set(data, unsafe.Offsetof(bpf.KernelRecFlowData{}.What), byte(pavise.FlowDataQUIC)+1), ErrUnknownRecord)
}

// TestFlowNumbers holds the numbers of the kernel's enums against package pavise's.
func TestFlowNumbers(t *testing.T) {
	spec, err := bpf.LoadKernel()
	if err != nil {
		t.Fatal(err)
	}
	for name, size := range map[string]uintptr{"rec_flow": unsafe.Sizeof(bpf.KernelRecFlow{}), "rec_flow_data": unsafe.Sizeof(bpf.KernelRecFlowData{})} {
		var s *btf.Struct
		if err := spec.Types.TypeByName(name, &s); err != nil {
			t.Fatal(err)
		}
		if s.Size != uint32(size) {
			t.Errorf("%s: %d bytes in the kernel, %d in Go", name, s.Size, size)
		}
	}
	for name, want := range map[string][2]uint32{
		"FLOW_CONNECTING": {uint32(bpf.KernelFlowStateFLOW_CONNECTING), uint32(pavise.FlowConnecting)}, "FLOW_CLOSED": {uint32(bpf.KernelFlowStateFLOW_CLOSED), uint32(pavise.FlowClosed)},
		"FLOW_UNREACHABLE": {uint32(bpf.KernelFlowEndFLOW_UNREACHABLE), uint32(pavise.FlowUnreachable)}, "FLOW_RESET": {uint32(bpf.KernelFlowEndFLOW_RESET), uint32(pavise.FlowReset)},
		"FLOW_REFUSED": {uint32(bpf.KernelFlowEndFLOW_REFUSED), uint32(pavise.FlowRefused)}, "FLOW_TIMED_OUT": {uint32(bpf.KernelFlowEndFLOW_TIMED_OUT), uint32(pavise.FlowTimedOut)},
		"FLOW_DONE": {uint32(bpf.KernelFlowEndFLOW_DONE), uint32(pavise.FlowDone)}, "FLOW_INBOUND": {uint32(bpf.KernelFlowDirectionFLOW_INBOUND), uint32(pavise.FlowInbound)},
		"FLOW_OUTBOUND": {uint32(bpf.KernelFlowDirectionFLOW_OUTBOUND), uint32(pavise.FlowOutbound)}, "FLOW_DATA_QUIC": {uint32(bpf.KernelFlowDataKindFLOW_DATA_QUIC), uint32(pavise.FlowDataQUIC)},
		"FLOW_DATA_DNS": {uint32(bpf.KernelFlowDataKindFLOW_DATA_DNS), uint32(pavise.FlowDataDNS)}, "FLOW_DATA_TLS": {uint32(bpf.KernelFlowDataKindFLOW_DATA_TLS), uint32(pavise.FlowDataTLS)},
	} {
		if want[0] != want[1] {
			t.Errorf("%s is %d in the kernel, %d in package pavise", name, want[0], want[1])
		}
	}
}

func TestFlowAllocatesNothing(t *testing.T) {
	var f pavise.Flow
	var d pavise.FlowData
	for name, rec := range flowRecords() {
		if n := testing.AllocsPerRun(100, func() {
			if _, err := Flow(rec, 0, &f, &d); err != nil {
				t.Error(err)
			}
		}); n != 0 && name != "icmp" || n > 1 { // type and code are shared by all reports that are made of it
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

func FuzzFlow(f *testing.F) {
	for _, rec := range flowRecords() {
		f.Add(rec, uint8(0))
		for n := 0; n < len(rec); n += 7 {
			f.Add(rec[:n], uint8(n))
		}
	}
	f.Fuzz(func(t *testing.T, rec []byte, shift uint8) {
		n := int(shift % 8)
		buf := make([]byte, n+len(rec))
		copy(buf[n:], rec)
		buf = buf[n:]
		var flow pavise.Flow
		var data pavise.FlowData
		if _, err := Flow(buf, 0, &flow, &data); err != nil {
			if !errors.Is(err, ErrTruncated) && !errors.Is(err, ErrUnknownRecord) {
				t.Fatal(err)
			}
			return
		}
		lo := uintptr(unsafe.Pointer(unsafe.SliceData(buf)))
		for _, s := range []string{flow.Local.Path, flow.Remote.Path, unsafe.String(unsafe.SliceData(data.Data), len(data.Data))} {
			if at := uintptr(unsafe.Pointer(unsafe.StringData(s))); len(s) > 0 && (at < lo || at+uintptr(len(s)) > lo+uintptr(len(buf))) {
				t.Fatal("it points out of its record")
			}
		}
	})
}

func BenchmarkFlow(b *testing.B) {
	var f pavise.Flow
	var d pavise.FlowData
	for _, name := range []string{"inet", "unix", "data"} {
		rec := flowRecords()[name]
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := Flow(rec, 0, &f, &d); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(1000, "budget-ns/op")
			b.ReportMetric(0, "budget-allocs/op")
		})
	}
}
