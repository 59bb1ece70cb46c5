package policy

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
)

// evalPred evaluates p on a string by its patterns.
func evalPred(p *npred, s string) bool {
	switch p.kind {
	case predAtom:
		return matchAny(p.atom.patterns, s)
	case predNot:
		return !evalPred(p.subs[0], s)
	}
	for _, q := range p.subs {
		if evalPred(q, s) != (p.kind == predAnd) {
			return p.kind == predOr
		}
	}
	return p.kind == predAnd
}

// TestRelations holds what is claimed of random predicates to all short strings.
func TestRelations(t *testing.T) {
	var all []string
	var grow func(s string, n int)
	grow = func(s string, n int) {
		all = append(all, s)
		if n > 0 {
			for _, c := range "/ab" {
				grow(s+string(c), n-1)
			}
		}
	}
	grow("", 5)
	rnd := rand.New(rand.NewPCG(3, 4))
	sets := []byteSet{oneByte('/'), oneByte('a'), oneByte('b'), anyByte, nonSlash}
	leaf := func() *npred {
		var ps []pattern
		for range 1 + rnd.IntN(2) {
			p := pattern{Under: rnd.IntN(4) == 0}
			for range 1 + rnd.IntN(3) {
				p.Items = append(p.Items, item{Set: sets[rnd.IntN(len(sets))], Loop: rnd.IntN(4) == 0})
			}
			ps = append(ps, p)
		}
		a := newAtom(DimPath, patternsKey(ps), ps)
		return &npred{kind: predAtom, atom: a, key: a.key}
	}
	var tree func(depth int) *npred
	tree = func(depth int) *npred {
		switch k := rnd.IntN(6); {
		case depth == 0 || k < 2:
			return leaf()
		case k == 2:
			return npredOf(predNot, tree(depth-1))
		case k == 3:
			return npredOf(predOr, tree(depth-1), tree(depth-1))
		default:
			return npredOf(predAnd, tree(depth-1), tree(depth-1))
		}
	}
	never, implied, missed := 0, 0, 0
	for range 150 {
		var preds []*npred
		for range 6 {
			preds = append(preds, tree(2))
		}
		holds := make([][]bool, len(preds))
		some := make([]bool, len(preds))
		for i, p := range preds {
			for _, s := range all {
				b := evalPred(p, s)
				holds[i] = append(holds[i], b)
				some[i] = some[i] || b
			}
		}
		r := relate(DimPath, preds)
		for i, p := range preds {
			switch got := r.never(p); {
			case got && some[i]:
				t.Fatalf("%s can hold", p.key)
			case got:
				never++
			case !some[i]:
				missed++
			}
			for j, q := range preds {
				if !r.implies(p, q) {
					continue
				}
				if i != j {
					implied++
				}
				for k := range all {
					if holds[i][k] && !holds[j][k] {
						t.Fatalf("%q meets %s, and not %s", all[k], p.key, q.key)
					}
				}
			}
		}
	}
	if never < 25 || implied < 25 || missed > never/4 {
		t.Errorf("%d never hold, %d implied, %d not found", never, implied, missed)
	}
}

// reviewSource is a policy of n rules, half of them allows.
func reviewSource(n int) []byte {
	var b strings.Builder
	b.WriteString("apiVersion: pavise.dev/v1alpha1\nkind: Policy\nmetadata: {name: p}\nspec:\n  default: {file.open: deny}\n  subject: process.user.id < 1000\n  rules:\n")
	for i := range n {
		action := "allow"
		if i%2 == 1 {
			action = "deny"
		}
		fmt.Fprintf(&b, "  - {name: r%d, on: [file.open], action: %s, when: 'file.path.under(\"/srv/app-%d\") && !file.path.under(\"/srv/app-%d/tmp\") && file.access.write || file.path.glob(\"/etc/app-%d/*.conf\")'}\n", i, action, i, i, i)
	}
	return []byte(b.String())
}

func TestReviewBig(t *testing.T) {
	set, err := Parse("p.yaml", append(reviewSource(1000), "  - {name: in, on: [file.open], action: allow, when: 'file.path == \"/etc/app-7/x.conf\"'}\n"...))
	if err != nil {
		t.Fatal(err)
	}
	m := testMachine()
	r := Review(set, m, &Report{Policies: []PolicyReport{{Name: "p", Warnings: []*Error{{Msg: "first"}}}}})
	if w := r.Warnings(); len(w) != 2 || !strings.Contains(w[1].Error(), `rule "in" never allows file.open: wherever it holds, so does rule "r7" (p.yaml:15), which asks for deny`) {
		t.Errorf("%v", w)
	}
}

// TestReviewKeeps: a review changes neither the report nor, the second time, what it found.
func TestReviewKeeps(t *testing.T) {
	set, err := Parse("p.yaml", []byte("apiVersion: pavise.dev/v1alpha1\nkind: Policy\nmetadata: {name: p}\nspec:\n  rules:\n  - {name: a, on: [file.open], action: audit}\n  - {name: b, on: [file.open], action: deny}\n"))
	if err != nil {
		t.Fatal(err)
	}
	m := testMachine()
	_, rep, err := Compile(set, m)
	if err != nil {
		t.Fatal(err)
	}
	before := len(rep.Warnings())
	first, second := Review(set, m, rep), Review(set, m, rep)
	if len(rep.Warnings()) != before || len(first.Warnings()) != before+1 || len(second.Warnings()) != before+1 {
		t.Errorf("%d, then %d and %d", before, len(first.Warnings()), len(second.Warnings()))
	}
}

func BenchmarkReview(b *testing.B) {
	set, err := Parse("p.yaml", reviewSource(1000))
	if err != nil {
		b.Fatal(err)
	}
	m := testMachine()
	n := set[0].normal(m)
	for b.Loop() {
		reviewPolicy(set[0], n)
	}
}
