package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pavise-project/pavise/agent"
	"github.com/pavise-project/pavise/policy"
)

// TestDocs compiles every policy that stands in the pages.
func TestDocs(t *testing.T) {
	pages, err := filepath.Glob("../../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, page := range append(pages, "../../README.md") {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for i, block := range strings.Split(string(text), "```yaml\n")[1:] {
			src, _, _ := strings.Cut(block, "\n```")
			ps, err := policy.Parse(fmt.Sprintf("%s, policy %d", page, i+1), []byte(src))
			if err == nil {
				_, _, err = policy.Compile(ps, agent.AnyMachine())
			}
			if err != nil {
				t.Error(err)
			}
			n++
		}
	}
	if n < 2 {
		t.Errorf("%d policies", n)
	}
}
