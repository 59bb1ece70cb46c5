package main

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/pavise-project/pavise/agent"
	"github.com/spf13/cobra"
)

// rechecks says why connections were judged anew, where the policies are not it.
var rechecks = map[agent.RecheckCause]string{
	agent.RecheckStart: ", at the start of the agent", agent.RecheckContainers: ", as more is known of containers", agent.RecheckNames: ", as a name has another address",
}

func (a *app) status() *cobra.Command {
	return &cobra.Command{
		Use: "status", Short: "Say how the agent is: what is in force, what it saw, what was lost",
		Long: `Say how the agent is: the revision in force, how many events of each operation the kernel saw, folded and lost, memory, and whatever should not be.
The same numbers are Prometheus metrics at /metrics on the socket.`,
		Example: "  pavise status\n  pavise status -o json | jq '.operations[] | select(.lost > 0)'",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			s, err := a.client().Status(c.Context())
			if err != nil {
				return err
			}
			if a.output == "json" {
				return a.json(s)
			}
			return a.statusText(s)
		},
	}
}

func (a *app) statusText(s *agent.Status) error {
	t := newTable(a.stdout)
	t.row("agent", fmt.Sprintf("%s, pid %d, for %s", s.Version, s.PID, s.Uptime.Round(time.Second)))
	t.row("kernel", s.Kernel)
	if s.Peer != nil {
		t.row("you", fmt.Sprintf("uid %d: role %s", s.Peer.UID, s.Peer.Role))
	}
	force := fmt.Sprintf("generation %d", s.Generation)
	if s.Revision > 0 {
		force = fmt.Sprintf("revision %d, ", s.Revision) + force
	}
	if s.ConfirmBy != nil {
		force += "; taken back at " + s.ConfirmBy.Local().Format(time.TimeOnly) + " unless it is confirmed"
	}
	t.row("in force", force)
	modes := map[string]int{}
	for _, p := range s.Policies {
		modes[p.Mode]++
	}
	t.row("policies", fmt.Sprintf("%d enforce, %d monitor; %d rules", modes["enforce"], modes["monitor"], s.Rules))
	t.row("without an agent", keepText(&s.Keep))
	t.row("processes", strconv.Itoa(s.Processes))
	t.row("containers", fmt.Sprintf("%d known, %d by their ids alone", s.Containers.Known, s.Containers.Unknown))
	t.row("history", historyText(&s.History))
	t.row("connections", flowsText(&s.Flows))
	if r := s.Recheck; r != nil {
		t.row("rechecked", fmt.Sprintf("%s; by generation %d%s, at %s", r, r.Generation, rechecks[r.Cause], r.Time.Local().Format(time.TimeOnly)))
	}
	for _, x := range s.Flows.Exports {
		t.row("exported to", fmt.Sprintf("%s:%s: %d written, %d lost, %d that have no place there", x.Form, x.To, x.Written, x.Lost, x.NoPlace))
	}
	t.row("memory", fmt.Sprintf("%d MiB resident, %d MiB of kernel maps", s.RSS>>20, s.MapBytes>>20))
	if err := t.flush(); err != nil {
		return err
	}
	fmt.Fprintln(a.stdout)
	t = newTable(a.stdout, "OPERATION", "RUNG", "SEEN", "FOLDED", "LOST", "RECEIVED")
	for _, o := range s.Ops {
		if o.Seen > 0 {
			t.row(o.Op, o.Rung, strconv.FormatUint(o.Seen, 10), strconv.FormatUint(o.Folded, 10), strconv.FormatUint(o.Lost, 10), strconv.FormatUint(o.Received, 10))
		}
	}
	if err := t.flush(); err != nil {
		return err
	}
	if trouble := troubles(s); len(trouble) > 0 {
		fmt.Fprintf(a.stdout, "\nwhat should not be\n  %s\n", strings.Join(trouble, "\n  "))
	}
	return nil
}

// flowsText says how flows are followed.
func flowsText(f *agent.FlowStatus) string {
	if !f.On {
		if f.Error != "" {
			return "not followed: " + f.Error
		}
		return "not followed"
	}
	return fmt.Sprintf("%d open, %d ended; %s of kernel maps", f.Table.Open, f.Table.Ended, bytesText(f.MapsMemory))
}

// historyText says how the history is.
func historyText(h *agent.HistoryStatus) string {
	if !h.On {
		return "none is kept"
	}
	text := fmt.Sprintf("%d events written, %s of at most %s", h.Written, bytesText(uint64(h.Bytes)), bytesText(uint64(h.Max))) //nolint:gosec // sizes
	if r := h.Recovered; r != nil {
		text += fmt.Sprintf("; found at the start: %d until %s, and %d bytes that were lost", r.Events, r.Until.Local().Format(time.DateTime), r.LostBytes)
	}
	return text
}

// keepText says what becomes of enforcement without an agent.
func keepText(k *agent.KeepInfo) string {
	var out string
	switch {
	case k.Left:
		return "an agent that has ended has left its policies in force, in " + safe(k.Pins) + ": start one with --keep, or remove them with pavise uninstall --keep-state"
	case k.Keep == "no":
		return "enforcement ends with the agent"
	case k.Keep == "forever":
		out = "enforcement goes on"
	default:
		out = "enforcement goes on for " + k.Keep
	}
	out += ", from " + safe(k.Pins)
	if k.Adopted {
		out += "; this agent took it over from one before"
	}
	if k.Replaced != "" {
		out += "; what one before had left was replaced: " + safe(k.Replaced)
	}
	return out
}

// troubles are what a healthy agent has none of.
func troubles(s *agent.Status) (out []string) {
	for _, x := range []struct {
		n    uint64
		what string
	}{
		{s.Undecoded, "records of the kernel that could not be read"},
		{s.UnnamedRules, "events whose rules were already forgotten"},
		{s.SubscriberLost, "events that readers were too slow for"},
		{s.Refused, "connections and streams that were refused: too many at once"},
		{s.NoScratch, "judgements without working memory, made strictly"},
		{s.NoIdentity, "threads without an identity, judged strictly"},
		{s.NoTexts, "processes whose arguments and ancestors found no room"},
		{s.NoCount, "counts of rates that found no memory"},
		{s.NoName, "addresses with a domain name that found no room"},
		{s.NoListener, "sockets that listen or connect and found no room"},
		{s.NoEngine, "calls of hooks that had lost their engine: what an enforced rule judges was refused"},
		{s.Missed, "calls of programs that the kernel skipped"},
		{s.Flows.Lost, "reports of flows that found no room in the ring"},
		{s.Flows.DataLost, "answers of DNS and ClientHellos that found no room in the ring"},
		{s.Flows.NoStorage, "sockets for which the kernel had no memory: their flows are not told in full"},
		{s.Flows.NoPeer, "packets whose peer found no room: they are told in one flow of their socket, with those of others"},
		{s.Flows.NoUnix, "acts on Unix sockets that found no room: they are told in one flow, with those of others"},
		{s.Flows.Undecoded, "reports of flows that could not be read"},
		{s.Flows.Table.Crowded, "reports of flows beyond those that can be followed"},
		{s.Flows.Table.EndsLost, "flows whose end was not told"},
		{s.Containers.Refused, "containers beyond those that can be known"},
		{s.History.Dropped, "events that are missing in the history: they could not be written, or came too fast"},
		{s.History.Lost, "bytes of the history that are no events: damaged on the disk"},
	} {
		if x.n > 0 {
			out = append(out, fmt.Sprintf("%d %s", x.n, x.what))
		}
	}
	if s.Containers.Behind != "" {
		out = append(out, "rules on containers do not know of all of them: "+safe(s.Containers.Behind))
	}
	if s.Flows.Error != "" {
		out = append(out, "connections are not followed as they should be: "+safe(s.Flows.Error))
	}
	for _, x := range s.Flows.Exports {
		if x.Error != "" {
			out = append(out, safe(x.Form+":"+x.To)+": "+safe(x.Error))
		}
	}
	if s.Recheck != nil {
		for _, why := range s.Recheck.Failed {
			out = append(out, "a connection that is denied was not ended, or not looked for: "+safe(why))
		}
	}
	if s.History.Error != "" {
		out = append(out, "the history: "+safe(s.History.Error))
	}
	if r := s.History.Recovered; r != nil {
		for _, d := range r.Damaged {
			out = append(out, "the history has lost a file: "+safe(d))
		}
	}
	return out
}
