package bpf

import (
	"errors"
	"fmt"
	"runtime"
	"testing"
	"time"

	"github.com/cilium/ebpf"
)

func TestZZLoad(t *testing.T) {
	spec, err := LoadKernel()
	if err != nil {
		t.Fatal(err)
	}
	n := uint32(runtime.NumCPU() * 4)
	spec.Maps["scratches"].MaxEntries = n
	spec.Variables["num_scratches"].Set(n)
	ms := map[string]*ebpf.Map{}
	for name, p := range spec.Programs {
		s := &ebpf.CollectionSpec{Maps: spec.Maps, Programs: map[string]*ebpf.ProgramSpec{name: p}, Types: spec.Types, ByteOrder: spec.ByteOrder, Variables: spec.Variables}
		t0 := time.Now()
		c, err := ebpf.NewCollectionWithOptions(s, ebpf.CollectionOptions{MapReplacements: ms})
		var ve *ebpf.VerifierError
		if errors.As(err, &ve) {
			l := ve.Log
			if len(l) > 25 {
				l = l[len(l)-25:]
			}
			fmt.Println("FAIL", name, err)
			for _, x := range l {
				fmt.Println("    ", x)
			}
			continue
		}
		if err != nil {
			fmt.Println("ERR", name, err)
			continue
		}
		in, _ := c.Programs[name].Info()
		vi, _ := in.VerifiedInstructions()
		fmt.Println("ok", name, time.Since(t0), vi)
		if len(ms) == 0 {
			for k, m := range c.Maps {
				ms[k] = m
			}
		}
	}
}
