package export

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
)

// TestDocs holds that docs/export.md has what is exported: each element of IPFIX, each column and state of Zeek's logs that is ours to explain.
func TestDocs(t *testing.T) {
	data, err := os.ReadFile("../docs/export.md")
	must(t, err)
	_, ipfix, _ := strings.Cut(string(data), "\n## IPFIX\n")
	ipfix, zeek, _ := strings.Cut(ipfix, "\n## Zeek\n")
	zeek, _, _ = strings.Cut(zeek, "\n## Suricata EVE\n")
	known := map[string]bool{}
	for _, e := range elements {
		name := fmt.Sprint(e.id)
		if e.pen != 0 {
			name = fmt.Sprintf("%d.%d", e.pen, e.id)
		}
		known[name] = true
		if !strings.Contains(ipfix, "`"+name+"`") {
			t.Errorf("element %s is not in the table", name)
		}
	}
	for _, m := range regexp.MustCompile("`((?:[0-9]+\\.)?[0-9]+)`").FindAllStringSubmatch(ipfix, -1) {
		if !known[m[1]] {
			t.Errorf("the table has element %s, which is not sent", m[1])
		}
	}
	for _, columns := range [][]zeekColumn{zeekConn, zeekDNS, zeekSSL} {
		for _, c := range columns {
			name := strings.Replace(c.name, ".resp_", ".orig_", 1) // one row is of both
			short := strings.TrimPrefix(name, "pavise.orig")
			if strings.HasPrefix(name, "pavise.") && !strings.Contains(zeek, "`"+name+"`") && !strings.Contains(zeek, "`"+short+"`") {
				t.Errorf("column %s is not explained", c.name)
			}
		}
	}
	for _, state := range []string{"SF", "S0", "S1", "REJ", "RSTO", "RSTR", "SHR", "OTH"} {
		if !strings.Contains(zeek, "`"+state+"`") {
			t.Errorf("conn_state %s is not explained", state)
		}
	}
}
