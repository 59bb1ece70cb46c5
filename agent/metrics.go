package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// ErrNotLoopback says that metrics would be seen by others than this machine.
var ErrNotLoopback = errors.New("metrics are served on loopback addresses only")

// metrics collects what the status says, at each scrape: nothing is counted twice.
type metrics struct {
	a    *Agent
	desc map[string]*prometheus.Desc
}

// metricHelp is every metric, with the labels that it has.
var metricHelp = map[string]struct {
	help   string
	labels []string
}{
	"info":                   {"Constant 1; the version of the agent and of the kernel.", []string{"version", "kernel"}},
	"started_seconds":        {"When the agent started, as seconds since the Unix epoch.", nil},
	"generation":             {"The generation of the rules that judge; each change makes one.", nil},
	"revision":               {"The revision of the policies that is in force; 0 without a state directory.", nil},
	"revision_unconfirmed":   {"1 while the revision in force waits to be confirmed.", nil},
	"policies":               {"Active policies.", []string{"mode"}},
	"rules":                  {"Active rules.", nil},
	"rule_hits_total":        {"How often a rule matched, since its policy was last changed.", []string{"policy", "rule"}},
	"operation_rung":         {"1 for the rung by which an operation is judged here.", []string{"operation", "rung"}},
	"events_total":           {"Events of an operation: seen = delivered + folded + lost in the kernel; received by the agent.", []string{"operation", "state"}},
	"subscriber_lost_total":  {"Events that readers were too slow for.", nil},
	"subscribers":            {"Readers of the stream of events.", nil},
	"refused_total":          {"Connections and streams of the API that were beyond its limits.", nil},
	"undecoded_total":        {"Records of the kernel that could not be read.", nil},
	"unnamed_rules_total":    {"Events whose generation was already forgotten.", nil},
	"processes":              {"Processes in the table.", nil},
	"containers":             {"Running containers, by whether the runtime's files say more of them than their ids.", []string{"state"}},
	"kernel_trouble_total":   {"What should not happen in the kernel.", []string{"kind"}},
	"kernel_map_bytes":       {"Kernel memory of all maps.", nil},
	"history_events_total":   {"Events written to the history, dropped because it could not be written or they came too fast.", []string{"state"}},
	"history_bytes":          {"Size of the history on disk.", nil},
	"history_removed_total":  {"Files of the history that went for its limits or for room.", nil},
	"flows":                  {"Flows that are open.", nil},
	"flow_reports_total":     {"Records of flows: made and lost in the kernel; ended; and behind a later one of the same flow.", []string{"what"}},
	"flow_bytes_total":       {"What flows carried, without headers: by protocol (tcp, udp, icmp, unix, other) and direction (sent, received).", []string{"protocol", "direction"}},
	"flow_packets_total":     {"Segments, datagrams and messages of flows, as flow_bytes_total.", []string{"protocol", "direction"}},
	"flow_trouble_total":     {"What could not be told as it should: packets of peers and acts on Unix sockets that found no room, which are told with others; sockets without memory; packets that nobody has any more.", []string{"kind"}},
	"flow_lost_bytes":        {"Bytes that lost records of flows would have told.", nil},
	"flow_unowned_total":     {"Flows that ended and whose process is not known.", nil},
	"flow_exported_total":    {"Records that were exported, by where to: written, lost, or of a kind that the form has no place for.", []string{"to", "what"}},
	"history_trouble":        {"1 while events are not kept as they should be.", nil},
	"resident_bytes":         {"Resident memory of the agent.", nil},
	"container_rules_behind": {"1 while rules on containers do not know of all of them.", nil},
}

func newMetrics(a *Agent) *metrics {
	m := &metrics{a: a, desc: map[string]*prometheus.Desc{}}
	for name, d := range metricHelp {
		m.desc[name] = prometheus.NewDesc("pavise_"+name, d.help, d.labels, nil)
	}
	return m
}

// Describe implements prometheus.Collector.
func (m *metrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range m.desc {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (m *metrics) Collect(ch chan<- prometheus.Metric) {
	s := m.a.status()
	gauge := func(name string, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(m.desc[name], prometheus.GaugeValue, v, labels...)
	}
	count := func(name string, v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(m.desc[name], prometheus.CounterValue, float64(v), labels...)
	}
	bit := map[bool]float64{true: 1}
	gauge("info", 1, s.Version, s.Kernel)
	gauge("started_seconds", float64(s.Started.UnixMilli())/1000)
	gauge("generation", float64(s.Generation))
	gauge("revision", float64(s.Revision))
	gauge("revision_unconfirmed", bit[s.ConfirmBy != nil])
	modes := map[string]int{"monitor": 0, "enforce": 0}
	for _, p := range s.Policies {
		modes[p.Mode]++
	}
	for mode, n := range modes {
		gauge("policies", float64(n), mode)
	}
	gauge("rules", float64(s.Rules))
	set, hits := m.a.ruleHits()
	for i := range set.image.Rules {
		r := &set.image.Rules[i]
		count("rule_hits_total", hits[ruleKey(r.Policy, r.Name)], r.Policy, r.Name)
	}
	for _, o := range s.Ops {
		if o.Rung != "" {
			gauge("operation_rung", 1, o.Op, o.Rung)
		}
		count("events_total", o.Seen, o.Op, "seen")
		count("events_total", o.Delivered, o.Op, "delivered")
		count("events_total", o.Folded, o.Op, "folded")
		count("events_total", o.Lost, o.Op, "lost")
		count("events_total", o.Received, o.Op, "received")
	}
	count("subscriber_lost_total", s.SubscriberLost)
	count("refused_total", s.Refused)
	gauge("subscribers", float64(s.Subscribers))
	count("undecoded_total", s.Undecoded)
	count("unnamed_rules_total", s.UnnamedRules)
	gauge("processes", float64(s.Processes))
	gauge("containers", float64(s.Containers.Known), "known")
	gauge("containers", float64(s.Containers.Unknown), "unknown")
	for kind, n := range map[string]uint64{"no_scratch": s.NoScratch, "no_identity": s.NoIdentity, "no_texts": s.NoTexts, "no_count": s.NoCount, "no_engine": s.NoEngine, "no_name": s.NoName, "no_listener": s.NoListener, "missed": s.Missed} {
		count("kernel_trouble_total", n, kind)
	}
	gauge("kernel_map_bytes", float64(s.MapBytes))
	count("history_events_total", s.History.Written, "written")
	count("history_events_total", s.History.Dropped, "dropped")
	gauge("history_bytes", float64(s.History.Bytes))
	count("history_removed_total", s.History.Removed)
	gauge("history_trouble", bit[s.History.Error != ""])
	if f := &s.Flows; f.On {
		gauge("flows", float64(f.Table.Open))
		count("flow_reports_total", f.Made, "made")
		count("flow_reports_total", f.Lost, "lost")
		count("flow_reports_total", f.Table.Ended, "ended")
		count("flow_reports_total", f.Table.Behind, "behind")
		for _, sum := range f.Sums {
			count("flow_bytes_total", sum.Sent.Bytes, sum.Protocol, "sent")
			count("flow_bytes_total", sum.Received.Bytes, sum.Protocol, "received")
			count("flow_packets_total", sum.Sent.Packets, sum.Protocol, "sent")
			count("flow_packets_total", sum.Received.Packets, sum.Protocol, "received")
		}
		for kind, n := range map[string]uint64{"no_peer": f.NoPeer, "no_unix": f.NoUnix, "no_storage": f.NoStorage, "late": f.Late} {
			count("flow_trouble_total", n, kind)
		}
		count("flow_lost_bytes", f.LostBytes)
		count("flow_unowned_total", f.Unowned)
		for _, x := range f.Exports {
			to := x.Form + ":" + x.To
			count("flow_exported_total", x.Written, to, "written")
			count("flow_exported_total", x.Lost, to, "lost")
			count("flow_exported_total", x.NoPlace, to, "no_place")
		}
	}
	gauge("resident_bytes", float64(s.RSS))
	gauge("container_rules_behind", bit[s.Containers.Behind != ""])
}

// metricsHandler answers scrapes.
func (a *Agent) metricsHandler() http.Handler {
	r := prometheus.NewRegistry()
	r.MustRegister(newMetrics(a))
	return promhttp.HandlerFor(r, promhttp.HandlerOpts{ErrorLog: slog.NewLogLogger(a.log.Handler(), slog.LevelWarn), MaxRequestsInFlight: 4})
}

// listenMetrics is the port on which metrics are served; nil when there is to be none.
func listenMetrics(ctx context.Context, address string) (net.Listener, error) {
	if address == "" {
		return nil, nil
	}
	ap, err := netip.ParseAddrPort(address)
	if err != nil {
		return nil, fmt.Errorf("serve metrics on %q: want an address and a port, as 127.0.0.1:9599", address)
	}
	if !ap.Addr().IsLoopback() {
		return nil, fmt.Errorf("serve metrics on %s: %w; let a proxy with authentication pass them on", address, ErrNotLoopback)
	}
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("serve metrics: %w", err)
	}
	return ln, nil
}

// metricsServer serves metrics, health and readiness on a port that every user of the machine can reach: they say no more than numbers and names of rules.
func (a *Agent) metricsServer() *http.Server {
	mux := http.NewServeMux()
	for _, rt := range a.routeList() {
		if rt.port {
			mux.HandleFunc(rt.method+" "+rt.path, rt.handler(nil))
		}
	}
	return &http.Server{
		Handler: mux, ReadHeaderTimeout: headerTimeout, ReadTimeout: readTimeout, WriteTimeout: writeTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: 16 << 10,
		ErrorLog: slog.NewLogLogger(a.log.Handler(), slog.LevelDebug),
	}
}

// ready says whether the agent does what it is for.
func (a *Agent) ready(w http.ResponseWriter, _ *http.Request) {
	a.mu.Lock()
	closed := a.closed
	a.mu.Unlock()
	r := Readiness{Ready: true, Generation: a.set.Load().applied.Generation, Reasons: []string{}}
	not := func(why string) { r.Ready, r.Reasons = false, append(r.Reasons, why) }
	if closed {
		not("the agent is stopping")
	}
	if r.Generation == 0 {
		not("no policies judge yet")
	}
	if why := a.behind.Load(); why != nil {
		not("rules on containers do not know of all of them: " + *why)
	}
	code := http.StatusOK
	if !r.Ready {
		code = http.StatusServiceUnavailable
	}
	reply(w, code, r)
}

const shutdownTime = 2 * time.Second
