package pavise

import (
	"net/netip"
	"strconv"
	"time"
)

// AppendText appends f as one line for people, without the newline, its time in the machine's zone: time, how it ended or what it does, process,
// protocol, local and remote end with an arrow from who began, names, bytes both ways, times, policy/rule. With color, what was denied or cut off is bold red
// and what found no connection is yellow. Whatever the names in f hold, the line cannot control a terminal.
func (f *Flow) AppendText(b []byte, color bool) []byte { return f.AppendTextIn(b, color, time.Local) }

// AppendTextIn is AppendText with the time in a zone of the caller's.
func (f *Flow) AppendTextIn(b []byte, color bool, zone *time.Location) []byte {
	b = time.Unix(0, f.Time).In(zone).AppendFormat(b, "15:04:05.000000 ")
	paint := ""
	switch {
	case !color:
	case f.End == FlowDenied || f.End == FlowCutOff:
		paint = textRed
	case f.End == FlowRefused || f.End == FlowTimedOut || f.End == FlowUnreachable:
		paint = textYellow
	}
	b = append(b, paint...)
	col := len(b)
	if f.End != FlowNotEnded {
		b = append(b, f.End.String()...)
	} else {
		b = append(b, f.State.String()...)
	}
	b = pad(b, col, 11)
	col = len(b)
	b = f.Local.appendActor(b)
	b = pad(b, col, 36)
	n := NetInfo{Family: f.Family, Type: f.Type, Protocol: f.Protocol}
	b = appendNetLabel(b, &n)
	b = append(b, ' ')
	b = f.Local.appendEnd(b, f.Family)
	b = append(b, flowArrows[min(f.Direction, NumFlowDirections)]...)
	if f.Others {
		b = append(b, "others"...)
	} else {
		b = f.Remote.appendEnd(b, f.Family)
	}
	if f.Remote.Name != "" {
		b = append(b, " ("...)
		b = AppendEscaped(b, f.Remote.Name)
		b = append(b, ')')
	}
	if p := f.Remote.Process; p != nil {
		b = append(b, " = "...)
		b = f.Remote.appendActor(b)
	}
	b = f.TLS.appendText(b)
	b = append(b, "  "...)
	b = appendBytes(b, f.Sent.Bytes)
	b = append(b, " out, "...)
	b = appendBytes(b, f.Received.Bytes)
	b = append(b, " in"...)
	if f.RTT > 0 {
		b = append(b, ", rtt "...)
		b = appendDuration(b, f.RTT)
	}
	if f.Retransmits > 0 {
		b = append(b, ", "...)
		b = strconv.AppendUint(b, uint64(f.Retransmits), 10)
		b = append(b, " sent again"...)
	}
	if f.ResetBy != EndpointUnknown {
		b = append(b, ", reset by the "...)
		b = append(b, f.ResetBy.String()...)
		b = append(b, " end"...)
	}
	if m := f.ICMP; m != nil {
		b = strconv.AppendUint(append(b, ", icmp type "...), uint64(m.Type), 10)
		b = strconv.AppendUint(append(b, " code "...), uint64(m.Code), 10)
	}
	if f.Policy != "" || f.Rule != "" {
		b = append(b, "  "...)
		b = AppendEscaped(b, f.Policy)
		if f.Rule != "" {
			b = append(b, '/')
			b = AppendEscaped(b, f.Rule)
		}
	}
	if paint != "" {
		b = append(b, textReset...)
	}
	return b
}

// flowArrows point from who began.
var flowArrows = [...]string{FlowUnknown: " - ", FlowOutbound: " -> ", FlowInbound: " <- ", FlowForwarded: " => ", NumFlowDirections: " ? "}

// appendActor appends name[pid] user unit/container; "-" where nobody at this end is known.
func (s *FlowSide) appendActor(b []byte) []byte {
	p := s.Process
	if p == nil {
		return append(b, '-')
	}
	if p.Unknown {
		return appendName(b, p)
	}
	return p.appendActor(b)
}

func (s *FlowSide) appendEnd(b []byte, family uint16) []byte {
	switch {
	case family == FamilyUnix && s.Path == "":
		return append(b, "(unnamed)"...)
	case family == FamilyUnix:
		return AppendEscaped(b, s.Path)
	case !s.Address.IsValid():
		b = append(b, '*')
	default:
		b = appendHost(b, s.Address)
	}
	if s.Port != 0 {
		b = append(b, ':')
		b = strconv.AppendUint(b, uint64(s.Port), 10)
	}
	return b
}

// appendHost puts IPv6 into brackets, as it stands before a port.
func appendHost(b []byte, a netip.Addr) []byte {
	if a = a.Unmap(); a.Is4() {
		return a.AppendTo(b)
	}
	return append(appendNetip(append(b, '['), a), ']')
}

// appendText appends what a client said of itself: no more than a word for each.
func (t *TLS) appendText(b []byte) []byte {
	if t == nil {
		return b
	}
	name := " tls"
	if t.QUIC {
		name = " quic"
	}
	b = append(b, name...)
	if t.SNI != "" {
		b = append(b, ' ')
		b = AppendEscaped(b, t.SNI)
	}
	if t.Encrypted {
		b = append(b, " (encrypted)"...)
	}
	if t.JA4 != "" {
		b = append(b, ' ')
		b = AppendEscaped(b, t.JA4)
	}
	return b
}

// appendBytes appends n with three digits at least, and a unit of a thousand.
func appendBytes(b []byte, n uint64) []byte {
	const units = "kMGTPE"
	if n < 1000 {
		return append(strconv.AppendUint(b, n, 10), " B"...)
	}
	i, unit := 0, uint64(1000)
	for ; i < len(units)-1 && n/unit >= 1000; i++ {
		unit *= 1000
	}
	return append(append(appendTenth(b, n, unit), ' ', units[i]), 'B')
}

func appendDuration(b []byte, ns int64) []byte {
	n := uint64(ns) //nolint:gosec // not below 0
	switch {
	case n < 1e6:
		return append(appendTenth(b, n, 1e3), "us"...)
	case n < 1e9:
		return append(appendTenth(b, n, 1e6), "ms"...)
	}
	return append(appendTenth(b, n, 1e9), 's')
}

// appendTenth appends n/unit, with one digit behind the point while it is below ten.
func appendTenth(b []byte, n, unit uint64) []byte {
	b = strconv.AppendUint(b, n/unit, 10)
	if n/unit < 10 {
		b = append(b, '.', byte('0'+n%unit*10/unit)) //nolint:gosec // a digit
	}
	return b
}

// AppendText appends d as one line for people: time, code, process, what was asked for, the answers, whom.
func (d *DNS) AppendText(b []byte, color bool) []byte { return d.AppendTextIn(b, color, time.Local) }

// AppendTextIn is AppendText with the time in a zone of the caller's.
func (d *DNS) AppendTextIn(b []byte, color bool, zone *time.Location) []byte {
	b = time.Unix(0, d.Time).In(zone).AppendFormat(b, "15:04:05.000000 ")
	paint := ""
	if color && d.Code != "NOERROR" {
		paint = textYellow
	}
	b = append(b, paint...)
	col := len(b)
	b = AppendEscaped(b, d.Code)
	b = pad(b, col, 11)
	col = len(b)
	local, remote := d.sides()
	b = local.appendActor(b)
	b = pad(b, col, 36)
	b = AppendEscaped(b, d.Type)
	b = append(b, ' ')
	b = AppendEscaped(b, d.Query)
	for i := range d.Answers {
		r := &d.Answers[i]
		sep := ", "
		if i == 0 {
			sep = " -> "
		}
		b = append(b, sep...)
		switch {
		case r.Address.IsValid():
			b = appendNetip(b, r.Address)
		case r.Target != "":
			b = AppendEscaped(b, r.Target)
		default:
			b = AppendEscaped(b, r.Type)
		}
	}
	if d.Cut {
		b = append(b, " (truncated)"...)
	}
	if remote.Address.IsValid() {
		way := "  from "
		if d.Outgoing {
			way = "  to "
		}
		b = append(b, way...)
		b = appendNetip(b, remote.Address)
	}
	if paint != "" {
		b = append(b, textReset...)
	}
	return b
}
