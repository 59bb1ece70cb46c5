package flow

import (
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/pavise-project/pavise"
)

var update = flag.Bool("update", false, "write what is got to testdata")

const (
	caseSep   = "==========\n"
	resultSep = "----------\n"
)

// plainDNS and plainTLS are as their tags say, whatever the forms of JSON for people are.
type (
	plainDNS pavise.DNS
	plainTLS pavise.TLS
)

// dataCase is one case of testdata: pieces of flows, in a form that testdata/README.md describes.
type dataCase struct {
	file   string
	source string
	want   string
	pieces []*pavise.FlowData
	forget bool
	said   []string // "ja3 ..." and "ja4 ...", by another program
}

func loadCases(t testing.TB, pattern string) []dataCase {
	t.Helper()
	files, err := filepath.Glob("testdata/" + pattern)
	if err != nil || len(files) == 0 {
		t.Fatalf("no testdata/%s: %v", pattern, err)
	}
	var cases []dataCase
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, text := range strings.Split(string(data), caseSep) {
			c := dataCase{file: file}
			c.source, c.want, _ = strings.Cut(text, resultSep)
			c.parse(t)
			cases = append(cases, c)
		}
	}
	return cases
}

func (c *dataCase) parse(t testing.TB) {
	t.Helper()
	for line := range strings.Lines(c.source) {
		line = strings.TrimSpace(line)
		if text, ok := strings.CutPrefix(line, "#"); ok {
			if _, said, ok := strings.Cut(text, ": ja"); ok {
				c.said = append(c.said, "ja"+said)
			}
			continue
		}
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		d := &pavise.FlowData{Flow: 7, Time: 1, Protocol: pavise.ProtocolUDP, NetNS: 4026531840, ExecID: 9,
			Local: netip.MustParseAddrPort("192.0.2.1:40000"), Remote: netip.MustParseAddrPort("192.0.2.53:53")}
		switch words[0] {
		case "forget":
			c.forget = true
			continue
		case "dns":
			d.Kind = pavise.FlowDataDNS
		case "tls":
			d.Kind, d.Protocol = pavise.FlowDataTLS, pavise.ProtocolTCP
		case "quic":
			d.Kind = pavise.FlowDataQUIC
		default:
			if len(c.pieces) == 0 {
				t.Fatalf("%s: %q is in no piece: write dns, tls or quic before it", c.file, line)
			}
			last := c.pieces[len(c.pieces)-1]
			b, err := hex.DecodeString(strings.Join(words, ""))
			if err != nil {
				var s string
				if s, err = strconv.Unquote(line); err != nil {
					t.Fatalf("%s: %q is neither hexadecimal nor a string in quotes", c.file, line)
				}
				b = []byte(s)
			}
			last.Data = append(last.Data, b...)
			continue
		}
		for _, w := range words[1:] {
			value, isSeq := strings.CutPrefix(w, "seq=")
			switch {
			case isSeq:
				n, err := strconv.ParseUint(value, 0, 32)
				if err != nil {
					t.Fatal(err)
				}
				d.Seq = uint32(n)
			case w == "out":
				d.Outgoing = true
				if d.Kind == pavise.FlowDataDNS {
					d.Local, d.Remote = d.Remote, d.Local
				}
			case w == "cut":
				d.Cut = true
			case w == "tcp":
				d.Protocol = pavise.ProtocolTCP
			case w == "mdns":
				d.Remote = netip.MustParseAddrPort("[fe80::1%3]:5353")
			default:
				t.Fatalf("%s: %q: want out, cut, tcp, mdns or seq=N", c.file, w)
			}
		}
		c.pieces = append(c.pieces, d)
	}
}

// run gives the pieces to a new Reader, and returns all that it says.
func (c *dataCase) run(t testing.TB) (string, []*pavise.TLS) {
	t.Helper()
	var b strings.Builder
	var hellos []*pavise.TLS
	write := func(v any) {
		j, err := json.MarshalIndent(v, "", " ")
		if err != nil {
			t.Fatal(err)
		}
		b.Write(append(j, '\n'))
	}
	r := NewReader()
	hello := func(h *pavise.TLS) {
		if h != nil {
			hellos = append(hellos, h)
			write((*plainTLS)(h))
		}
	}
	for _, d := range c.pieces {
		answers, h := r.Data(d)
		for _, a := range answers {
			write((*plainDNS)(a))
		}
		hello(h)
	}
	if c.forget {
		hello(r.Forget(7))
		if len(r.flows.nodes) != 0 || r.bytes != 0 {
			t.Errorf("%s: %d flows with %d bytes are left", c.file, len(r.flows.nodes), r.bytes)
		}
	}
	for p, reasons := range r.Counters().Refused {
		for why, n := range reasons {
			if n > 0 {
				fmt.Fprintf(&b, "refused %s %s %d\n", Protocol(p), Reason(why), n)
			}
		}
	}
	return b.String(), hellos
}

// TestData runs testdata/*.txt: pieces to what a Reader makes of them.
func TestData(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			cases := loadCases(t, filepath.Base(file))
			var out []string
			for i, c := range cases {
				got, _ := c.run(t)
				if got != c.want && !*update {
					t.Errorf("case %d of %s:\n%.300s\ngot:\n%swant:\n%s", i, file, c.source, got, c.want)
				}
				out = append(out, c.source+resultSep+got)
			}
			if *update {
				if err := os.WriteFile(file, []byte(strings.Join(out, caseSep)), 0o644); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// The fingerprints are those that another program computes of the same bytes.
func TestFingerprintsAsOthersSay(t *testing.T) {
	n := 0
	for _, c := range loadCases(t, "*-clients.txt") {
		_, hellos := c.run(t)
		if len(c.said) != 2 || len(hellos) != 1 {
			t.Errorf("%s: %.60s: %d hellos, and %q", c.file, c.source, len(hellos), c.said)
			continue
		}
		slices.Sort(c.said)
		if got := []string{"ja3 " + hellos[0].JA3, "ja4 " + hellos[0].JA4}; !slices.Equal(got, c.said) {
			t.Errorf("%s: %.60s: %q, another program says %q", c.file, c.source, got, c.said)
		}
		n++
	}
	if n < 12 {
		t.Errorf("only %d clients", n)
	}
}
