package policy

import (
	"testing"

	"github.com/pavise-project/pavise"
)

// TestOtherFamilies: an Image says whether sockets of other families than IPv4 and IPv6 have to be looked at.
func TestOtherFamilies(t *testing.T) {
	for when, want := range map[string]bool{
		`net.family == "ipv4"`:                                                                      false,
		`net.family in ["ipv4", "ipv6"] && net.type == "raw"`:                                       false,
		`net.family == "ipv6" && net.protocol != "tcp" || net.family == "ipv4"`:                     false,
		`!(net.family != "ipv4" || net.type == "stream")`:                                           false,
		`net.type == "raw"`:                                                                         true,
		`net.family != "unix"`:                                                                      true,
		`net.family == "packet"`:                                                                    true,
		`net.family in ["ipv4", "unix"] && net.type == "dgram"`:                                     true,
		`net.family == "ipv4" || net.protocol == "sctp"`:                                            true,
		`process.user.id == 7`:                                                                      true,
		`process.user.id == 7 && net.family == "ipv6" || process.user.id == 8`:                      true,
		`process.user.id == 7 && net.family == "ipv6" || net.family == "ipv4" && net.type == "raw"`: false,
	} {
		src := "apiVersion: pavise.dev/v1alpha1\nkind: Policy\nmetadata: {name: p}\nspec:\n  mode: monitor\n  rules:\n  - {name: r, on: [net.socket], action: deny, when: '" + when + "'}\n"
		set, err := Parse("p.yaml", []byte(src))
		if err != nil {
			t.Fatal(err)
		}
		img, _, err := Compile(set, testMachine())
		if err != nil {
			t.Fatal(err)
		}
		if got := img.OtherFamilies(pavise.OpSocket); got != want {
			t.Errorf("%s: %v, want %v", when, got, want)
		}
		if img.OtherFamilies(pavise.OpConnect) {
			t.Errorf("%s: also on an operation that no rule judges", when)
		}
	}
}
