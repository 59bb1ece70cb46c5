package flow

import (
	"fmt"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"github.com/pavise-project/pavise"
)

// BenchmarkData times one piece: what completes a message, and what completes none.
func BenchmarkData(b *testing.B) {
	dns := loadCases(b, "dns-servers.txt")[0].pieces[0]
	hello := loadCases(b, "tls-clients.txt")[0].pieces[0]
	datagram := loadCases(b, "quic-made.txt")[0].pieces[0]
	query := *loadCases(b, "dns-made.txt")[3].pieces[0]
	malformed := *loadCases(b, "dns-made.txt")[7].pieces[0]
	b.Run("dns", func(b *testing.B) {
		r := NewReader()
		b.ReportAllocs()
		for b.Loop() {
			if as, _ := r.Data(dns); len(as) != 1 {
				b.Fatal(as)
			}
		}
	})
	for _, c := range []struct {
		name string
		d    *pavise.FlowData
	}{{"dns/query", &query}, {"dns/malformed", &malformed}} {
		b.Run(c.name, func(b *testing.B) {
			r := NewReader()
			b.ReportAllocs()
			for b.Loop() {
				if as, _ := r.Data(c.d); len(as) != 0 {
					b.Fatal(as)
				}
			}
		})
	}
	b.Run("tls", func(b *testing.B) {
		r := NewReader()
		d := *hello
		b.ReportAllocs()
		for b.Loop() {
			d.Flow++
			if _, h := r.Data(&d); h == nil {
				b.Fatal("no hello")
			}
			r.Forget(d.Flow)
		}
	})
	b.Run("tls/behind", func(b *testing.B) { // what the kernel copies of a flow whose hello was read
		r := NewReader()
		r.Data(hello)
		d := *hello
		d.Seq = uint32(len(hello.Data))
		b.ReportAllocs()
		for b.Loop() {
			if _, h := r.Data(&d); h != nil {
				b.Fatal(h)
			}
		}
	})
	b.Run("tls/three", func(b *testing.B) {
		r := NewReader()
		d := *hello
		all := hello.Data
		b.ReportAllocs()
		for b.Loop() {
			d.Flow++
			for i := range 3 {
				d.Seq, d.Data = uint32(i*len(all)/3), all[i*len(all)/3:(i+1)*len(all)/3]
				r.Data(&d)
			}
			r.Forget(d.Flow)
		}
		if c := r.Counters(); c.Refused[TLS] != [NumReasons]uint64{} {
			b.Fatal(c)
		}
	})
	b.Run("quic", func(b *testing.B) {
		r := NewReader()
		d := *datagram
		b.ReportAllocs()
		for b.Loop() {
			d.Flow++
			if _, h := r.Data(&d); h == nil {
				b.Fatal("no hello")
			}
			r.Forget(d.Flow)
		}
	})
}

// BenchmarkNames times the table when it is full, and prints what it takes.
func BenchmarkNames(b *testing.B) {
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	n := NewNames(DefaultAddresses, DefaultNamesBytes)
	addr := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}) }
	answers := make([]*pavise.DNS, 2*DefaultAddresses)
	fill := func(i int) {
		name := fmt.Sprintf("host-%d.service.example.org", i)
		answers[i] = answer(name, name+" CNAME 300 edge.example.net", "edge.example.net A 300 "+addr(i).String())
	}
	for i := range DefaultAddresses {
		fill(i)
		n.Learn(answers[i], "/usr/bin/curl", 0)
		answers[i] = nil
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	mib := float64(after.HeapAlloc-before.HeapAlloc) / (1 << 20)
	if s := n.Stats(); s.Addresses != DefaultAddresses {
		b.Fatalf("%+v", s)
	}
	b.Run("learn", func(b *testing.B) {
		i := 0
		for j := range 4096 {
			fill(DefaultAddresses + j)
		}
		b.ReportAllocs()
		for b.Loop() {
			n.Learn(answers[DefaultAddresses+i%4096], "/usr/bin/curl", time.Second)
			i++
		}
		b.ReportMetric(mib, "MiB-full")
		b.ReportMetric(float64(n.Stats().Bytes)/(1<<20), "MiB-counted")
	})
	b.Run("lookup", func(b *testing.B) {
		i := 0
		b.ReportAllocs()
		for b.Loop() {
			n.Lookup(1, addr(i%DefaultAddresses), "/usr/bin/curl", time.Second)
			i++
		}
	})
	b.Run("within", func(b *testing.B) {
		i := 0
		b.ReportAllocs()
		for b.Loop() {
			n.Within(1, addr(i%DefaultAddresses), "*.example.org", time.Second)
			i++
		}
	})
}
