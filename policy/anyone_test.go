package policy

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/pavise-project/pavise"
)

// TestAnyone: what is denied to anyone is denied to each, and rules that ask for no process are enough to deny.
func TestAnyone(t *testing.T) {
	const enforce = "p%d}\nspec:\n  mode: enforce\n  fallback: kill\n"
	policies := []struct {
		name, spec string
		anyone     [2]pavise.Action // for a client in 10.0.0.0/8, and another
	}{
		{"a rule about all", `  rules: [{name: r, on: [net.accept], when: '!net.remote.address.within("10.0.0.0/8")', action: deny}]`, [2]pavise.Action{0, pavise.ActionDeny}},
		{"a rule about some", `  subject: process.user.id == 33
  rules: [{name: r, on: [net.accept], when: '!net.remote.address.within("10.0.0.0/8")', action: deny}]`, [2]pavise.Action{}},
		{"a rule about all but some", `  rules: [{name: r, on: [net.accept], when: 'process.user.id != 33', action: deny}]`, [2]pavise.Action{}},
		{"an allow-list of all", `  default: {net.accept: deny}
  rules: [{name: r, on: [net.accept], when: 'net.remote.address.within("10.0.0.0/8")', action: allow}]`, [2]pavise.Action{0, pavise.ActionDeny}},
		{"an allow-list of some", `  subject: process.exe.name == "nginx"
  default: {net.accept: deny}
  rules: [{name: r, on: [net.accept], when: 'net.remote.address.within("10.0.0.0/8")', action: allow}]`, [2]pavise.Action{}},
		{"an allow-list of all that allows some", `  default: {net.accept: deny}
  rules: [{name: r, on: [net.accept], when: 'process.user.id == 33 && net.remote.address.within("10.0.0.0/8")', action: allow}]`, [2]pavise.Action{0, pavise.ActionDeny}},
		{"a rule that kills", `  rules: [{name: r, on: [net.accept], when: 'net.local.port == 80', action: kill}]`, [2]pavise.Action{pavise.ActionKill, pavise.ActionKill}},
		{"a rule with a rate", `  rules: [{name: r, on: [net.accept], when: 'rate.user("1h") > 0', action: deny}]`, [2]pavise.Action{}},
	}
	facts := func(remote, exe string, uid byte) *Facts {
		a := netip.MustParseAddr(remote).As16()
		f := &Facts{Rates: new(Rates)}
		f.Values[DimRemoteAddr], f.Values[DimLocalPort], f.Values[DimSocket] = a[:], []byte{0, 80}, []byte{2, 1, 6}
		f.Values[DimExe], f.Values[DimUID] = []byte(exe), []byte{0, 0, 0, uid}
		return f
	}
	compile := func(specs ...string) *Image {
		var src strings.Builder
		for i, s := range specs {
			fmt.Fprintf(&src, "---\n"+head+enforce+"%s\n", i, s)
		}
		img, _, err := Compile(mustParse(t, "p.yaml", src.String()), testMachine())
		if err != nil {
			t.Fatalf("%v\n%s", err, src.String())
		}
		return img
	}
	check := func(img *Image) (anyone [2]pavise.Action) {
		for i, remote := range []string{"10.1.2.3", "192.0.2.1"} {
			f := facts(remote, "", 0)
			f.Anyone = true
			v := img.Judge(pavise.OpAccept, f)
			anyone[i] = v.Action
			for _, exe := range []string{"/usr/sbin/nginx", "/bin/x"} {
				for _, uid := range []byte{0, 33} {
					if each := img.Judge(pavise.OpAccept, facts(remote, exe, uid)); each.Action < v.Action {
						t.Errorf("%s to anyone, and %s to %s of user %d from %s", v.Action, each.Action, exe, uid, remote)
					}
				}
			}
		}
		return anyone
	}
	for _, p := range policies {
		t.Run(p.name, func(t *testing.T) { want(t, "to anyone", check(compile(p.spec)), p.anyone) })
	}
	for i, p := range policies {
		for _, q := range policies[:i] { // beside each other they deny what either does
			var both [2]pavise.Action
			for k := range both {
				both[k] = max(p.anyone[k], q.anyone[k])
			}
			want(t, p.name+", and "+q.name, check(compile(p.spec, q.spec)), both)
		}
	}
}
