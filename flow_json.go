package pavise

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// AppendJSON appends f as one line of JSON, without the newline, as Event.AppendJSON does an event. It has the Community ID of seed 0.
func (f *Flow) AppendJSON(b []byte) []byte { return f.appendJSON(b, false) }

// appendJSON leaves out, within an event, what the event says itself.
func (f *Flow) appendJSON(b []byte, event bool) []byte {
	b = append(b, `{"id":"`...)
	b = strconv.AppendUint(b, f.ID, 10)
	b = append(b, `","report":`...)
	b = strconv.AppendUint(b, uint64(f.Report), 10)
	if !event {
		b = append(b, `,"time":`...)
		b = appendTime(b, f.Time)
	}
	if f.Start != 0 {
		b = append(b, `,"start":`...)
		b = appendTime(b, f.Start)
	}
	b = append(b, `,"state":"`...)
	b = append(b, f.State.String()...)
	b = append(b, '"')
	b = appendField(b, `,"end":`, f.End.String())
	b = appendField(b, `,"reset_by":`, f.ResetBy.String())
	b = appendField(b, `,"direction":`, f.Direction.String())
	if f.Found {
		b = append(b, `,"found":true`...)
	}
	if f.Family != 0 {
		b = appendNamed(b, `,"family":"`, FamilyNames, uint64(f.Family))
	}
	if f.Type != 0 {
		b = appendNamed(b, `,"type":"`, TypeNames, uint64(f.Type))
	}
	if f.Protocol != 0 {
		b = appendNamed(b, `,"protocol":"`, ProtocolNames, uint64(f.Protocol))
	}
	b = appendNumber(b, `,"net_ns":`, uint64(f.NetNS))
	begin := len(b)
	b = append(b, `,"community_id":"`...)
	key := len(b)
	if b = f.AppendCommunityID(b, 0); len(b) > key {
		b = append(b, '"')
	} else {
		b = b[:begin]
	}
	b = append(b, `,"local":`...)
	b = f.Local.appendJSON(b, event)
	b = append(b, `,"remote":`...)
	b = f.Remote.appendJSON(b, false)
	b = f.Sent.appendJSON(b, `,"sent":`)
	b = f.Received.appendJSON(b, `,"received":`)
	b = f.SentNew.appendJSON(b, `,"sent_new":`)
	b = f.ReceivedNew.appendJSON(b, `,"received_new":`)
	if f.Others {
		b = append(b, `,"others":true`...)
	}
	b = appendNumber(b, `,"retransmits":`, uint64(f.Retransmits))
	b = appendNanoseconds(b, `,"rtt_ns":`, f.RTT)
	b = appendNanoseconds(b, `,"connect_latency_ns":`, f.ConnectLatency)
	b = appendField(b, `,"policy":`, f.Policy)
	b = appendField(b, `,"rule":`, f.Rule)
	if m := f.ICMP; m != nil {
		b = append(b, `,"icmp":{"type":`...)
		b = strconv.AppendUint(b, uint64(m.Type), 10)
		b = append(b, `,"code":`...)
		b = strconv.AppendUint(b, uint64(m.Code), 10)
		b = append(b, '}')
	}
	if f.TLS != nil {
		b = append(b, `,"tls":`...)
		b = f.TLS.AppendJSON(b)
	}
	return append(b, '}')
}

// appendNumber appends key and n, or nothing when n is 0.
func appendNumber(b []byte, key string, n uint64) []byte {
	if n == 0 {
		return b
	}
	return strconv.AppendUint(append(b, key...), n, 10)
}

func appendNanoseconds(b []byte, key string, ns int64) []byte {
	if ns == 0 {
		return b
	}
	return strconv.AppendInt(append(b, key...), ns, 10)
}

// appendJSON leaves out the process of a side where another says who it is.
func (s *FlowSide) appendJSON(b []byte, known bool) []byte {
	b = append(b, '{')
	begin := len(b)
	if s.Address.IsValid() {
		b = append(b, `,"address":"`...)
		b = appendNetip(b, s.Address)
		b = append(b, '"')
	}
	b = appendNumber(b, `,"port":`, uint64(s.Port))
	b = appendField(b, `,"path":`, s.Path)
	b = appendField(b, `,"name":`, s.Name)
	b = appendField(b, `,"asked_by":`, s.AskedBy)
	switch {
	case known:
	case s.Process != nil:
		b = append(b, `,"process":`...)
		b = s.Process.AppendJSON(b)
	case s.ExecID != 0:
		p := Process{ExecID: s.ExecID, Unknown: true}
		b = append(b, `,"process":`...)
		b = p.AppendJSON(b)
	}
	if len(b) > begin { // without the first comma
		b = append(b[:begin], b[begin+1:]...)
	}
	return append(b, '}')
}

// appendNetip appends a as policies write it. A zone is the name of an interface of one network namespace, and left out.
func appendNetip(b []byte, a netip.Addr) []byte { return a.Unmap().WithZone("").AppendTo(b) }

func (t Traffic) appendJSON(b []byte, key string) []byte {
	b = append(b, key...)
	b = append(b, `{"bytes":`...)
	b = strconv.AppendUint(b, t.Bytes, 10)
	b = append(b, `,"packets":`...)
	b = strconv.AppendUint(b, t.Packets, 10)
	return append(b, '}')
}

// AppendJSON appends t as JSON, whatever the client put into it.
func (t *TLS) AppendJSON(b []byte) []byte {
	b = append(b, '{')
	begin := len(b)
	b = appendField(b, `,"sni":`, t.SNI)
	b = appendList(b, `,"alpn":`, t.ALPN)
	b = appendField(b, `,"version":`, t.Version)
	b = appendList(b, `,"versions":`, t.Versions)
	b = appendField(b, `,"ja3":`, t.JA3)
	b = appendField(b, `,"ja4":`, t.JA4)
	if t.QUIC {
		b = append(b, `,"quic":true`...)
	}
	if t.Encrypted {
		b = append(b, `,"encrypted":true`...)
	}
	if t.Cut {
		b = append(b, `,"truncated":true`...)
	}
	if len(b) > begin {
		b = append(b[:begin], b[begin+1:]...)
	}
	return append(b, '}')
}

// appendList appends key and a list, or nothing when the list is empty.
func appendList(b []byte, key string, list []string) []byte {
	if len(list) == 0 {
		return b
	}
	return appendStrings(append(b, key...), slices.Values(list))
}

// AppendJSON appends d as one line of JSON, without the newline.
func (d *DNS) AppendJSON(b []byte) []byte { return d.appendJSON(b, false) }

// appendJSON leaves out, within an event, what the event says itself.
func (d *DNS) appendJSON(b []byte, event bool) []byte {
	b = append(b, '{')
	if !event {
		b = append(b, `"time":`...)
		b = appendTime(b, d.Time)
		b = append(b, ',')
	}
	b = append(b, `"id":`...)
	b = strconv.AppendUint(b, uint64(d.ID), 10)
	if d.Flow != 0 {
		b = append(b, `,"flow":"`...)
		b = strconv.AppendUint(b, d.Flow, 10)
		b = append(b, '"')
	}
	b = appendNumber(b, `,"net_ns":`, uint64(d.NetNS))
	if d.Protocol != 0 {
		b = appendNamed(b, `,"protocol":"`, ProtocolNames, uint64(d.Protocol))
	}
	b = append(b, `,"client":`...)
	b = d.Client.appendJSON(b, event && !d.Outgoing)
	b = append(b, `,"server":`...)
	b = d.Server.appendJSON(b, event && d.Outgoing)
	b = append(b, `,"query":`...)
	b = appendString(b, d.Query)
	b = append(b, `,"type":`...)
	b = appendString(b, d.Type)
	b = append(b, `,"code":`...)
	b = appendString(b, d.Code)
	if d.Cut {
		b = append(b, `,"truncated":true`...)
	}
	if d.Outgoing {
		b = append(b, `,"outgoing":true`...)
	}
	for i := range d.Answers {
		sep := `,"answers":[`
		if i > 0 {
			sep = ","
		}
		b = append(b, sep...)
		b = d.Answers[i].AppendJSON(b)
	}
	if len(d.Answers) > 0 {
		b = append(b, ']')
	}
	return append(b, '}')
}

// AppendJSON appends r as JSON.
func (r *DNSRecord) AppendJSON(b []byte) []byte {
	b = append(b, `{"name":`...)
	b = appendString(b, r.Name)
	b = append(b, `,"type":`...)
	b = appendString(b, r.Type)
	b = append(b, `,"ttl":`...)
	b = strconv.AppendUint(b, uint64(r.TTL), 10)
	if r.Address.IsValid() {
		b = append(b, `,"address":"`...)
		b = appendNetip(b, r.Address)
		b = append(b, '"')
	}
	b = appendField(b, `,"target":`, r.Target)
	sep := `,"hints":["`
	for _, a := range r.Hints {
		if a.IsValid() {
			b = append(b, sep...)
			b = appendNetip(b, a)
			sep = `","`
		}
	}
	if sep == `","` {
		b = append(b, `"]`...)
	}
	b = appendNumber(b, `,"priority":`, uint64(r.Priority))
	b = appendList(b, `,"alpn":`, r.ALPN)
	if r.Encrypted {
		b = append(b, `,"encrypted":true`...)
	}
	return append(b, '}')
}

// MarshalJSON is AppendJSON for encoding/json.
func (f Flow) MarshalJSON() ([]byte, error) { return f.AppendJSON(nil), nil }

// MarshalJSON is AppendJSON for encoding/json. UnmarshalJSON is not needed: the tags say how it is read.
func (t TLS) MarshalJSON() ([]byte, error) { return t.AppendJSON(nil), nil }

// MarshalJSON is AppendJSON for encoding/json.
func (d DNS) MarshalJSON() ([]byte, error) { return d.AppendJSON(nil), nil }

// MarshalJSON is AppendJSON for encoding/json.
func (r DNSRecord) MarshalJSON() ([]byte, error) { return r.AppendJSON(nil), nil }

// The mirrors by which JSON is read back.
type (
	flowJSON struct {
		ID             uint64        `json:"id,string"`
		Report         uint32        `json:"report"`
		Time           *time.Time    `json:"time"`
		Start          *time.Time    `json:"start"`
		State          string        `json:"state"`
		End            string        `json:"end"`
		ResetBy        string        `json:"reset_by"`
		Direction      string        `json:"direction"`
		Found          bool          `json:"found"`
		Family         string        `json:"family"`
		Type           string        `json:"type"`
		Protocol       string        `json:"protocol"`
		NetNS          uint32        `json:"net_ns"`
		CommunityID    string        `json:"community_id"` // follows from the others
		Local          *flowSideJSON `json:"local"`
		Remote         *flowSideJSON `json:"remote"`
		Sent           Traffic       `json:"sent"`
		Received       Traffic       `json:"received"`
		SentNew        Traffic       `json:"sent_new"`
		ReceivedNew    Traffic       `json:"received_new"`
		Others         bool          `json:"others"`
		Retransmits    uint32        `json:"retransmits"`
		RTT            int64         `json:"rtt_ns"`
		ConnectLatency int64         `json:"connect_latency_ns"`
		Policy         string        `json:"policy"`
		Rule           string        `json:"rule"`
		ICMP           *ICMP         `json:"icmp"`
		TLS            *TLS          `json:"tls"`
	}
	flowSideJSON struct {
		Address string       `json:"address"`
		Port    uint16       `json:"port"`
		Path    string       `json:"path"`
		Name    string       `json:"name"`
		AskedBy string       `json:"asked_by"`
		Process *processJSON `json:"process"`
	}
	dnsJSON struct {
		Time     *time.Time    `json:"time"`
		Flow     uint64        `json:"flow,string"`
		NetNS    uint32        `json:"net_ns"`
		Protocol string        `json:"protocol"`
		Client   *flowSideJSON `json:"client"`
		Server   *flowSideJSON `json:"server"`
		ID       uint16        `json:"id"`
		Query    string        `json:"query"`
		Type     string        `json:"type"`
		Code     string        `json:"code"`
		Cut      bool          `json:"truncated"`
		Outgoing bool          `json:"outgoing"`
		Answers  []DNSRecord   `json:"answers"`
	}
)

// FlowJSONForms are values of the types by which a Flow's and a DNS's JSON are read: for what describes the form.
func FlowJSONForms() (flow, dns any) { return flowJSON{}, dnsJSON{} }

// UnmarshalJSON reads what AppendJSON writes.
func (f *Flow) UnmarshalJSON(data []byte) error {
	var j flowJSON
	if err := json.Unmarshal(data, &j); err != nil {
		return fmt.Errorf("read flow: %w", err)
	}
	r, err := j.flow()
	if err != nil {
		return fmt.Errorf("read flow: %s", withoutEvent(err))
	}
	*f = *r
	return nil
}

// withoutEvent is an error of what reads events and flows alike.
func withoutEvent(err error) string { return strings.TrimPrefix(err.Error(), "read event: ") }

func (j *flowJSON) flow() (*Flow, error) {
	f := &Flow{
		ID: j.ID, Report: j.Report, Time: unixNano(j.Time), Start: unixNano(j.Start), Found: j.Found, NetNS: j.NetNS, Sent: j.Sent, Received: j.Received,
		SentNew: j.SentNew, ReceivedNew: j.ReceivedNew, Others: j.Others, Retransmits: j.Retransmits, RTT: j.RTT, ConnectLatency: j.ConnectLatency,
		Policy: j.Policy, Rule: j.Rule, ICMP: j.ICMP, TLS: j.TLS,
	}
	var err error
	if f.State, err = parseName[FlowState]("state", j.State, flowStateNames[:]); err != nil {
		return nil, err
	}
	if f.End, err = parseName[FlowEnd]("end", j.End, flowEndNames[:]); err != nil {
		return nil, err
	}
	if f.ResetBy, err = parseName[FlowEndpoint]("reset_by", j.ResetBy, flowEndpointNames[:]); err != nil {
		return nil, err
	}
	if f.Direction, err = parseName[FlowDirection]("direction", j.Direction, flowDirectionNames[:]); err != nil {
		return nil, err
	}
	if f.Family, err = parseNumber[uint16]("family", j.Family, FamilyNames, 16); err != nil {
		return nil, err
	}
	if f.Type, err = parseNumber[uint8]("type", j.Type, TypeNames, 8); err != nil {
		return nil, err
	}
	if f.Protocol, err = parseNumber[uint8]("protocol", j.Protocol, ProtocolNames, 8); err != nil {
		return nil, err
	}
	if f.Local, err = j.Local.side(); err != nil {
		return nil, fmt.Errorf("local: %w", err)
	}
	if f.Remote, err = j.Remote.side(); err != nil {
		return nil, fmt.Errorf("remote: %w", err)
	}
	return f, nil
}

func (j *flowSideJSON) side() (s FlowSide, err error) {
	if j == nil {
		return s, nil
	}
	s = FlowSide{Port: j.Port, Path: j.Path, Name: j.Name, AskedBy: j.AskedBy}
	if j.Address != "" {
		if s.Address, err = netip.ParseAddr(j.Address); err != nil {
			return s, fmt.Errorf("read address: %w", err)
		}
	}
	if j.Process != nil {
		if s.Process, err = j.Process.process(); err != nil {
			return s, err
		}
		s.ExecID = s.Process.ExecID
	}
	return s, nil
}

// UnmarshalJSON reads what AppendJSON writes.
func (d *DNS) UnmarshalJSON(data []byte) error {
	var j dnsJSON
	if err := json.Unmarshal(data, &j); err != nil {
		return fmt.Errorf("read dns: %w", err)
	}
	r, err := j.dns()
	if err != nil {
		return fmt.Errorf("read dns: %s", withoutEvent(err))
	}
	*d = *r
	return nil
}

func (j *dnsJSON) dns() (*DNS, error) {
	d := &DNS{
		Time: unixNano(j.Time), Flow: j.Flow, NetNS: j.NetNS, ID: j.ID, Query: j.Query, Type: j.Type, Code: j.Code, Cut: j.Cut, Outgoing: j.Outgoing, Answers: j.Answers,
	}
	var err error
	if d.Protocol, err = parseNumber[uint8]("protocol", j.Protocol, ProtocolNames, 8); err != nil {
		return nil, err
	}
	if d.Client, err = j.Client.side(); err != nil {
		return nil, fmt.Errorf("client: %w", err)
	}
	if d.Server, err = j.Server.side(); err != nil {
		return nil, fmt.Errorf("server: %w", err)
	}
	return d, nil
}

// take gives a side that stands within an event whom the event tells of.
func (s *FlowSide) take(e *Event) {
	if p := e.Process; p != nil {
		s.ExecID = p.ExecID
		if !p.Unknown || p.PID != 0 {
			s.Process = p
		}
	}
}
