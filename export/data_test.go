package export

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pavise-project/pavise"
)

var update = flag.Bool("update", false, "write what is got to testdata")

const (
	caseSep   = "\n==========\n"
	resultSep = "\n----------\n"
)

// read takes a line of JSON to a flow or an answer.
func read(t *testing.T, line string) (f *pavise.Flow, d *pavise.DNS) {
	t.Helper()
	var err error
	if strings.Contains(line, `"query":`) {
		d = new(pavise.DNS)
		err = json.Unmarshal([]byte(line), d)
	} else {
		f = new(pavise.Flow)
		err = json.Unmarshal([]byte(line), f)
	}
	if err != nil {
		t.Fatalf("%v: %s", err, line)
	}
	return f, d
}

// give gives lines to a sink, and reports which it has no place for.
func give(t *testing.T, s Sink, src string) (refused string) {
	t.Helper()
	for _, line := range strings.Split(src, "\n") {
		if line == "" || line[0] == '#' {
			continue
		}
		f, d := read(t, line)
		var err error
		if f != nil {
			err = s.Flow(f)
		} else {
			err = s.DNS(d)
		}
		switch {
		case errors.Is(err, ErrNoPlace):
			refused += "no place for " + line[:min(len(line), 12)] + "\n"
		case err != nil:
			t.Fatal(err)
		}
	}
	must(t, s.Close())
	return refused
}

// TestData runs testdata/*.txt: flows and answers as NDJSON, and what each sink makes of them. Of Zeek's logs, which have many columns, those that are set.
func TestData(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal("no test data", err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			data, err := os.ReadFile(file)
			must(t, err)
			var out []string
			for i, c := range strings.Split(string(data), caseSep) {
				src, want, ok := strings.Cut(c, resultSep)
				if !ok && !*update {
					t.Fatalf("case %d has no result", i+1)
				}
				got := results(t, src)
				if got != want && !*update {
					t.Errorf("case %d:\n%s\ngot:\n%s\nwant:\n%s", i+1, src, got, want)
				}
				out = append(out, src+resultSep+got)
			}
			if *update {
				must(t, os.WriteFile(file, []byte(strings.Join(out, caseSep)), 0o644))
			}
		})
	}
}

func results(t *testing.T, src string) string {
	var out strings.Builder
	section := func(name, text string) {
		if text != "" {
			fmt.Fprintf(&out, "# %s\n%s", name, text)
		}
	}
	conn, dns, ssl, eve, eve2 := new(bytes.Buffer), new(bytes.Buffer), new(bytes.Buffer), new(bytes.Buffer), new(bytes.Buffer)
	refused := give(t, NewZeek(conn, dns, ssl, ZeekOptions{Salt: "host", Now: now}), src)
	section("conn.log", set(t, "conn", conn.String()))
	section("dns.log", set(t, "dns", dns.String()))
	section("ssl.log", set(t, "ssl", ssl.String()))
	section("zeek", refused)
	refused = give(t, NewEVE(eve, EVEOptions{Host: "sensor-1"}), src)
	section("eve.json", eve.String()+refused)
	give(t, NewEVE(eve2, EVEOptions{Host: "sensor-1", DNS2: true}), src)
	if a, b := eve.String(), eve2.String(); a != b {
		section("eve.json, dns in version 2", b)
	}
	c := new(collector)
	refused = give(t, NewIPFIX(c, IPFIXOptions{Now: now}), src)
	d := decoder{max: 1400}
	var records strings.Builder
	for _, r := range d.all(t, c) {
		fmt.Fprintf(&records, "template %d:", r.template)
		for _, key := range r.order {
			switch v := r.values[key]; {
			case isText[key]:
				fmt.Fprintf(&records, " %s=%q", key, v)
			case len(v) > 8:
				fmt.Fprintf(&records, " %s=%x", key, v)
			default:
				fmt.Fprintf(&records, " %s=%d", key, r.number(key))
			}
		}
		records.WriteByte('\n')
	}
	section("ipfix", records.String()+refused)
	return out.String()
}

// isText tells of the elements that are strings.
var isText = func() map[string]bool {
	m := map[string]bool{}
	for _, e := range elements {
		if e.put == nil {
			m[fmt.Sprintf("%d/%d", e.pen, e.id)] = true
		}
	}
	return m
}()

// set reads a log strictly, and returns what is set in each line.
func set(t *testing.T, path, log string) string {
	t.Helper()
	if log == "" {
		return ""
	}
	fields, rows := readZeek(t, path, log)
	var out strings.Builder
	for _, row := range rows {
		sep := ""
		for i, v := range row {
			if v != "-" {
				out.WriteString(sep + fields[i] + "=" + v)
				sep = " "
			}
		}
		out.WriteByte('\n')
	}
	return out.String()
}

// readZeek takes nothing but what Zeek writes.
func readZeek(t *testing.T, path, log string) (fields []string, rows [][]string) {
	t.Helper()
	all := strings.Split(log, "\n")
	const moment = "2026-01-01-00-00-10"
	head := []string{`#separator \x09`, "#set_separator\t,", "#empty_field\t(empty)", "#unset_field\t-", "#path\t" + path, "#open\t" + moment}
	n := len(head)
	if len(all) < n+4 {
		t.Fatalf("%d lines: %q", len(all), log)
	}
	for i, want := range head {
		if all[i] != want {
			t.Errorf("line %d: got %q, want %q", i+1, all[i], want)
		}
	}
	fields = strings.Split(all[n], "\t")
	types := strings.Split(all[n+1], "\t")
	if fields[0] != "#fields" || types[0] != "#types" || len(fields) != len(types) {
		t.Fatalf("%q\n%q", fields, types)
	}
	fields, types = fields[1:], types[1:]
	end := all[len(all)-2:]
	if end[0] != "#close\t"+moment || end[1] != "" {
		t.Errorf("ends with %q", end)
	}
	for _, line := range all[n+2 : len(all)-2] {
		row := strings.Split(line, "\t")
		if len(row) != len(fields) {
			t.Fatalf("%d columns, want %d: %q", len(row), len(fields), line)
		}
		for i, v := range row {
			if v == "" {
				t.Fatalf("%s is empty: %q", fields[i], line)
			}
			checkText(t, v)
			if v != "-" && !zeekTypes[types[i]].MatchString(v) {
				t.Errorf("%s is no %s: %q", fields[i], types[i], v)
			}
		}
		rows = append(rows, row)
	}
	return fields, rows
}

func checkText(t *testing.T, s string) {
	t.Helper()
	for _, r := range s {
		if r < 0x20 || r == 0x7f || r > 0x7f && pavise.HostileRune(r) {
			t.Fatalf("%U in %q", r, s)
		}
	}
}
