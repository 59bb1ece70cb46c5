package policy

import (
	"math/rand/v2"
	"strings"
	"testing"
)

// isPath reports whether the kernel builds s as the path of a file or a cgroup in a tree.
func isPath(s string) bool {
	if s == "" || s == "/" {
		return true
	}
	if s[0] != '/' {
		return false
	}
	for _, c := range strings.Split(s[1:], "/") {
		if c == "" || c == "." || c == ".." || len(c) > maxComponent {
			return false
		}
	}
	return true
}

// TestChance holds chance to all short strings: what it calls impossible matches no path, and what it calls possible matches one.
func TestChance(t *testing.T) {
	var paths []string
	var grow func(s string, n int)
	grow = func(s string, n int) {
		if isPath(s) {
			paths = append(paths, s)
		}
		if n > 0 {
			for _, c := range "/.a" {
				grow(s+string(c), n-1)
			}
		}
	}
	grow("", 8)
	rnd := rand.New(rand.NewPCG(1, 2))
	sets := []byteSet{oneByte('/'), oneByte('.'), oneByte('a'), anyByte, nonSlash, nonSlash.without('.'), oneByte('/'), byteRange('.', '/')}
	counts := map[bool]int{}
	for range 5000 {
		p := pattern{Under: rnd.IntN(4) == 0}
		for range rnd.IntN(6) {
			p.Items = append(p.Items, item{Set: sets[rnd.IntN(len(sets))], Loop: rnd.IntN(4) == 0})
		}
		want := false
		for _, s := range paths {
			if p.match(s) {
				want = true
				break
			}
		}
		if got := p.chance(true) == somePath; got != want {
			t.Fatalf("%s: possible %v, want %v", patternText(&p), got, want)
		}
		counts[want]++
	}
	if counts[true] < 300 || counts[false] < 300 {
		t.Errorf("%v", counts)
	}
	for text, want := range map[string]chance{
		"/a//b": noPath, "//": somePath, "/memfd:": somePath, "/memfd:a//b": memfdOnly, "/memfd:../x/..": memfdOnly, "/memf/./x": noPath,
	} {
		p := pattern{Items: literal(text)}
		if got := p.chance(false); got != want {
			t.Errorf("%s: %d, want %d", text, got, want)
		}
	}
	dir := pattern{Items: literal("/memfd:a"), Under: true}
	for _, p := range []pattern{dir, {Items: seq("/", loop(anyByte), "//x")}, {Items: seq(loop(anyByte), "/.")}} {
		if got := p.chance(false); (got == memfdOnly) != !p.Under {
			t.Errorf("%s: %d", patternText(&p), got)
		}
	}
}

func BenchmarkUnreachable(b *testing.B) {
	c, problems := checkCondition(`file.path.under("/srv/app-1/data") && file.access.write || file.path.glob("/etc/{a,b,c}/**/*.conf")`, true)
	if problems != nil {
		b.Fatal(problems)
	}
	for b.Loop() {
		c.unreachable(nil)
	}
}
