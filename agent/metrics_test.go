package agent

import (
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/pavise-project/pavise"
	"github.com/pavise-project/pavise/enforce"
)

func TestMetrics(t *testing.T) {
	f := newFake()
	f.counters = func() (c enforce.Counters, err error) {
		c.Ops[pavise.OpOpen] = enforce.OpCounters{Seen: 7, Delivered: 4, Folded: 2, Lost: 1}
		c.RuleHits = []uint64{5}
		c.MapBytes = 4096
		return c, nil
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	port := l.Addr().String()
	must(t, l.Close())
	a, c := running(t, f, func(cfg *Config) {
		cfg.Policies, cfg.Metrics, cfg.Version = parse(t, shadow("one", "monitor")), port, "1.2"
	})
	get := func(do func() (*http.Response, error)) string {
		t.Helper()
		res, err := do()
		must(t, err)
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		must(t, err)
		return string(b)
	}
	for where, text := range map[string]string{
		"the port":   get(func() (*http.Response, error) { return http.Get("http://" + port + "/metrics") }),
		"the socket": get(func() (*http.Response, error) { return c.do(t.Context(), "GET", "/metrics", nil, nil) }),
	} {
		for _, want := range []string{
			`pavise_events_total{operation="file.open",state="seen"} 7`, `pavise_events_total{operation="file.open",state="lost"} 1`,
			`pavise_policies{mode="monitor"} 1`, `pavise_rule_hits_total{policy="one",rule="`, `pavise_kernel_map_bytes 4096`, `pavise_info{`, `version="1.2"`, `pavise_generation 1`,
		} {
			if !strings.Contains(text, want) {
				t.Errorf("%s: no %s in\n%s", where, want, text)
			}
		}
	}
	// Nothing is on the port but what all may see.
	onPort := []string{}
	for _, rt := range a.routeList() {
		req, err := http.NewRequestWithContext(t.Context(), rt.method, "http://"+port+pathParam.ReplaceAllString(rt.path, "1"), strings.NewReader("{}"))
		must(t, err)
		res, err := http.DefaultClient.Do(req)
		must(t, err)
		_ = res.Body.Close()
		if res.StatusCode == http.StatusOK {
			onPort = append(onPort, rt.path)
		} else if res.StatusCode != http.StatusNotFound && res.StatusCode != http.StatusMethodNotAllowed {
			t.Error(rt.method, rt.path, res.Status)
		}
	}
	if got := strings.Join(onPort, " "); got != "/healthz /readyz /metrics" {
		t.Errorf("on the port are %s", got)
	}
	if text := get(func() (*http.Response, error) { return c.do(t.Context(), "GET", "/readyz", nil, nil) }); !strings.Contains(text, `"ready":true`) {
		t.Error(text)
	}
	why := "compile: too many"
	a.behind.Store(&why)
	res, err := http.Get("http://" + port + "/readyz")
	must(t, err)
	defer res.Body.Close()
	if b, err := io.ReadAll(res.Body); err != nil || res.StatusCode != http.StatusServiceUnavailable || !strings.Contains(string(b), "rules on containers do not know of all of them: compile: too many") {
		t.Error(res.Status, string(b), err)
	}
}

func TestMetricsAddress(t *testing.T) {
	for address, want := range map[string]string{"0.0.0.0:9599": "loopback", "[::]:1": "loopback", "localhost:1": "want an address", "9599": "want an address"} {
		if _, err := listenMetrics(t.Context(), address); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", address, err)
		}
	}
}
