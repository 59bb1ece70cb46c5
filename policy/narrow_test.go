package policy

import (
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/pavise-project/pavise"
)

func TestNarrow(t *testing.T) {
	for _, c := range []struct {
		where  string
		equal  map[string][]string
		fields string
	}{
		{`op == "file.open"`, map[string][]string{"op": {"file.open"}}, "op"},
		{`"deny" == action && process.user.id == 0`, map[string][]string{"action": {"deny"}}, "action process.user.id"},
		{`op in ["net.connect", "file.open", "net.connect"] && policy == "a" + "b"`, map[string][]string{"op": {"file.open", "net.connect"}, "policy": {"ab"}}, "op policy"},
		{`op in ["net.connect", "file.open"] && op == "file.open"`, map[string][]string{"op": {"file.open"}}, "op"},
		{`op == "net.bind" && op == "file.open"`, map[string][]string{"op": {}}, "op"},
		{`op == "net.bind" && rule == "r" || op == "file.open"`, map[string][]string{"op": {"file.open", "net.bind"}}, "op rule"},
		{`op == "net.bind" || process.exe.path == "/bin/sh"`, map[string][]string{}, "op process.exe.path"},
		{`op == "net.bind" || monitor`, nil, "monitor op"},
		{`op != "net.bind"`, nil, "op"},
		{`!(op == "net.bind")`, nil, "op"},
		{`(op == "net.bind") == false`, nil, "op"},
		{`op == policy`, nil, "op policy"},
		{`op in [policy]`, nil, "op policy"},
		{`process.ancestors.exists(p, p.exe.path == "/bin/sh")`, nil, "process.ancestors"},
		{`net.remote.address == "2001:db8:0::1"`, map[string][]string{"net.remote.address": {"2001:db8::1"}}, "net.remote.address"},
		{`op == "net.bind" ? true : monitor`, nil, "monitor op"},
	} {
		x, err := CompileWhere(c.where)
		if err != nil {
			t.Fatalf("%s: %v", c.where, err)
		}
		n := x.Narrow()
		if len(n.Equal) != len(c.equal) || len(n.Equal) > 0 && !reflect.DeepEqual(n.Equal, c.equal) || strings.Join(n.Fields, " ") != c.fields {
			t.Errorf("%s: got %v %v", c.where, n.Equal, n.Fields)
		}
		// What is narrowed away is what the condition does not hold for.
		for _, e := range []*pavise.Event{
			{}, {Op: pavise.OpOpen, Policy: "ab", Action: pavise.ActionDeny, File: pavise.FileInfo{Path: "/etc/shadow"}}, {Op: pavise.OpBind, Rule: "r", Monitor: true}, {Op: pavise.OpConnect, Policy: "ab"},
		} {
			holds, err := x.Eval(e)
			if err != nil || !holds {
				continue
			}
			for _, field := range slices.Sorted(maps.Keys(n.Equal)) {
				if v, _ := fieldByName[field].value(e).Value().(string); !slices.Contains(n.Equal[field], v) {
					t.Errorf("%s holds for %+v, whose %s is not in %v", c.where, e, field, n.Equal[field])
				}
			}
		}
	}
}
