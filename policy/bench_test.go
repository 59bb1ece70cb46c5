package policy

import (
	"fmt"
	"testing"

	"github.com/pavise-project/pavise"
)

// pathProgram has n rules on file.open: exact paths, and with globs every kind that a shipped policy has, for a hundred executables.
func pathProgram(n int, globs bool) *program {
	p := &program{}
	newAtom := func(d Dim, ps ...pattern) *pred {
		p.Atoms = append(p.Atoms, atom{Dim: d, Key: fmt.Sprint(len(p.Atoms)), Patterns: ps})
		return &pred{Atom: len(p.Atoms) - 1}
	}
	dirs := []string{"/usr/lib/x86_64-linux-gnu", "/var/lib/dpkg/info", "/etc/alternatives", "/opt/vendor/app", "/home/user/.config", "/srv/data"}
	var exes []*pred
	for i := range 100 {
		exes = append(exes, newAtom(DimExe, pattern{Items: literal(fmt.Sprintf("/usr/sbin/daemon-%d", i))}))
	}
	for i := range n {
		path := pattern{Items: literal(fmt.Sprintf("%s/%x/file-%d.conf", dirs[i%len(dirs)], i*2654435761%65536, i))}
		c := clause{Op: pavise.OpOpen, Rule: uint32(i), Kind: WordExplicit, Action: pavise.ActionDeny}
		if globs {
			c.Preds = c.Preds.with(DimExe, exes[i%len(exes)])
			switch i % 20 {
			case 0:
				path = glob(fmt.Sprintf("%s/*/cache-%d/**", dirs[i%len(dirs)], i))
			case 1:
				path = glob(fmt.Sprintf("%s/%d/*.so", dirs[i%len(dirs)], i))
			case 2:
				path = glob(fmt.Sprintf("/srv/www-%d//", i))
			case 3:
				c.Preds = c.Preds.with(DimAccess, newAtom(DimAccess, pattern{Items: []item{{Set: byteSet{uint64(i) * 0x9e3779b97f4a7c15}}}}))
			}
			if i%100 == 50 {
				path = glob(fmt.Sprintf("**/secret-%d.pem", i))
			}
		}
		if !globs || i%100 != 51 {
			c.Preds = c.Preds.with(DimPath, newAtom(DimPath, path))
		}
		p.Clauses = append(p.Clauses, c)
		p.Rules = append(p.Rules, Rule{Name: fmt.Sprint(i)})
	}
	return p
}

func BenchmarkAssemble(b *testing.B) {
	for _, bench := range []struct {
		name  string
		n     int
		globs bool
	}{{"exact-10", 10, false}, {"exact-1000", 1000, false}, {"exact-10000", 10000, false}, {"mixed-1000", 1000, true}, {"mixed-10000", 10000, true}} {
		b.Run(bench.name, func(b *testing.B) {
			p := pathProgram(bench.n, bench.globs)
			var img *Image
			for b.Loop() {
				var err error
				if img, err = assemble(p); err != nil {
					b.Fatal(err)
				}
			}
			s := img.Stats()
			b.ReportMetric(float64(s.States), "states")
			b.ReportMetric(float64(s.Cells), "cells")
			b.ReportMetric(float64(s.Words), "words")
			b.ReportMetric(float64(s.Bytes)/1024, "KiB")
		})
	}
}

func BenchmarkJudge(b *testing.B) {
	for _, n := range []int{10, 1000, 10000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			img, err := assemble(pathProgram(n, false))
			if err != nil {
				b.Fatal(err)
			}
			var f Facts
			f.Values[DimPath] = []byte("/usr/lib/x86_64-linux-gnu/perl5/5.36/auto/Encode/JP/JP-12.so")
			b.ReportAllocs()
			for b.Loop() {
				img.Judge(pavise.OpOpen, &f)
			}
		})
	}
}
