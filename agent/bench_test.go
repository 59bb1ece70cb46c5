package agent

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pavise-project/pavise/enforce"
	"github.com/pavise-project/pavise/internal/kerntest"
	"github.com/pavise-project/pavise/policy"
)

// hundredRules is a policy. Its last rule is about files below dir+"/srv".
func hundredRules(n int, dir string) string {
	var src strings.Builder
	fmt.Fprintf(&src, "---\napiVersion: pavise.dev/v1alpha1\nkind: Policy\nmetadata: {name: p%d}\nspec:\n  mode: monitor\n  subject: process.user.id < 1000\n  rules:\n", n)
	for i := range 100 {
		under := fmt.Sprintf("/srv/app-%d-%d", n, i)
		if i == 99 {
			under = dir + under
		}
		fmt.Fprintf(&src, "  - {name: r%d, on: [file.open], action: audit, when: 'file.path.under(%q) && file.access.write || file.path == \"/etc/app-%d-%d/secret.conf\"'}\n", i, under, n, i)
	}
	return src.String()
}

// BenchmarkChange is a change of one rule among a thousand in a running agent: from YAML until it is active.
func BenchmarkChange(b *testing.B) {
	kerntest.Require(b, kerntest.Root, kerntest.Syscall, kerntest.TpBtf)
	var set []*policy.Policy
	for i := range 10 {
		ps, err := policy.Parse("p.yaml", []byte(hundredRules(i, "")))
		if err != nil {
			b.Fatal(err)
		}
		set = append(set, ps...)
	}
	k, err := enforce.Open(b.Context(), enforce.Options{})
	if err != nil {
		b.Fatal(err)
	}
	a, err := New(Config{Socket: filepath.Join(b.TempDir(), "s"), Policies: set, Kernel: k, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		b.Fatal(err)
	}
	ready, done := make(chan struct{}), make(chan error, 1)
	ctx, cancel := context.WithCancel(b.Context())
	a.cfg.OnReady = func(*Status) { close(ready) }
	go func() { done <- a.Run(ctx) }()
	<-ready
	var took []time.Duration
	for i := 0; b.Loop(); i++ {
		time.Sleep(50 * time.Millisecond)
		src := []byte(hundredRules(5, fmt.Sprintf("/x%d", i)))
		begin := time.Now()
		ps, err := a.parse("p.yaml", src, nil)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := a.Apply(ps, Request{}); err != nil {
			b.Fatal(err)
		}
		took = append(took, time.Since(begin))
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2]), "ns/op")
	b.ReportMetric(float64(took[min(len(took)-1, len(took)*99/100)])/1e6, "p99-ms")
	b.ReportMetric(20, "budget-p99-ms")
	cancel()
	if err := <-done; err != nil {
		b.Fatal(err)
	}
}
