package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/pavise-project/pavise/agent"
)

// TestTopRender draws each testdata/top file: the settings, the line of the stream, ----------, the screen.
func TestTopRender(t *testing.T) {
	files, err := filepath.Glob("testdata/top/*.txt")
	if err != nil || len(files) < 5 {
		t.Fatal(files, err)
	}
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		src, want, _ := strings.Cut(string(text), "----------\n")
		v, w, h := topOf(t, src)
		got := strings.Join(v.render(w, h), "\n") + "\n"
		got = strings.ReplaceAll(got, "\x1b", "ESC")
		if *updateScripts {
			if err := os.WriteFile(name, []byte(src+"----------\n"+got), 0o644); err != nil {
				t.Fatal(err)
			}
		} else if got != want {
			t.Errorf("%s:\n%s\nwant\n%s", name, got, want)
		}
		// Whatever is shown, it keeps to its place, also where there is none.
		for _, w := range []int{0, 1, 7, 40, 79, 300} {
			for _, h := range []int{0, 1, 3, 10} {
				for _, by := range topBy {
					for _, sort := range topSort {
						v.by, v.sort, v.color = by, sort, w%2 == 0
						lines := v.render(w, h)
						if h > 0 && len(lines) > h {
							t.Errorf("%s: %d lines in %d", name, len(lines), h)
						}
						for _, l := range lines {
							if cells(l) > w {
								t.Errorf("%s: %d cells in %d: %q", name, cells(l), w, l)
							}
							for _, c := range colorless(l) {
								if !unicode.IsPrint(c) {
									t.Errorf("%s: %q in %q", name, c, l)
								}
							}
						}
					}
				}
			}
		}
	}
}

// colorless takes out the colours that pavise itself writes.
func colorless(s string) string {
	return strings.NewReplacer("\x1b[7m", "", "\x1b[31m", "", "\x1b[0m", "").Replace(s)
}

// topOf reads "w=80 h=24 by=process sort=events keys=... color", and a line of the stream; without that, none has come.
func topOf(t *testing.T, src string) (v *topView, w, h int) {
	t.Helper()
	settings, line, _ := strings.Cut(src, "\n")
	v = &topView{by: "process", sort: "events", interval: 2 * time.Second}
	keys := ""
	for _, s := range strings.Fields(settings) {
		key, value, _ := strings.Cut(s, "=")
		switch key {
		case "w", "h":
			_, _ = fmt.Sscan(value, map[string]*int{"w": &w, "h": &h}[key])
		case "by":
			v.by = value
		case "sort":
			v.sort = value
		case "color":
			v.color = true
		case "nocost":
			v.noCost = "the role read may not have hooks timed"
		case "keys":
			keys = strings.ReplaceAll(value, "_", " ")
		default:
			t.Fatalf("unknown setting %q", s)
		}
	}
	if strings.TrimSpace(line) == "" {
		return v, w, h
	}
	v.top = new(agent.Top)
	if err := json.Unmarshal([]byte(line), v.top); err != nil {
		t.Fatal(err)
	}
	at := v.top.Time
	v.top.Time = time.Date(at.Year(), at.Month(), at.Day(), at.Hour(), at.Minute(), at.Second(), 0, time.Local)
	for _, k := range []byte(keys) {
		if !v.key(k) {
			t.Fatalf("%q quits", k)
		}
	}
	return v, w, h
}

func TestTopKeys(t *testing.T) {
	v := &topView{by: "process", sort: "events"}
	for _, k := range "orhpss x?" {
		if !v.key(byte(k)) {
			t.Errorf("%q quits", k)
		}
	}
	if v.by != "process" || v.sort != "name" || !v.held {
		t.Errorf("%+v", v)
	}
	for _, k := range []byte{'q', 'Q', 3, 4} {
		if v.key(k) {
			t.Errorf("%q goes on", k)
		}
	}
}

func TestTopRate(t *testing.T) {
	v := &topView{top: &agent.Top{Interval: 2 * time.Second}}
	for n, want := range map[uint64]string{0: "0", 1: "0.5", 19: "9.5", 20: "10", 19_998: "9999", 20_000: "10k", 400_000: "200k", 40_000_000: "20M"} {
		if got := v.rate(n); got != want {
			t.Errorf("%d in 2 s: %s, want %s", n, got, want)
		}
	}
}

func TestFit(t *testing.T) {
	for _, tt := range []struct {
		s    string
		w    int
		want string
	}{
		{"abc", 3, "abc"}, {"abcd", 3, "ab…"}, {"abcd", 1, "…"}, {"abcd", 0, ""}, {"", 0, ""},
		{"日本語", 6, "日本語"}, {"日本語", 5, "日本…"}, {"日本語", 4, "日…"},
		{"e\u0301e\u0301", 2, "e\u0301e\u0301"},
		{"a\x1b[31mred\x1b[0m", 4, "a\x1b[31mred\x1b[0m"}, {"a\x1b[31mred\x1b[0m", 3, "a\x1b[31mr…\x1b[0m"},
	} {
		if got := fit(tt.s, tt.w); got != tt.want || cells(got) > tt.w {
			t.Errorf("fit(%q, %d) = %q, want %q", tt.s, tt.w, got, tt.want)
		}
	}
}
