package bpf

import (
	"bufio"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
)

func TestZZWho(t *testing.T) {
	spec, _ := LoadKernel()
	name := os.Getenv("P")
	s := &ebpf.CollectionSpec{Maps: spec.Maps, Programs: map[string]*ebpf.ProgramSpec{name: spec.Programs[name]}, Types: spec.Types, ByteOrder: spec.ByteOrder, Variables: spec.Variables}
	c, err := ebpf.NewCollectionWithOptions(s, ebpf.CollectionOptions{Programs: ebpf.ProgramOptions{LogLevel: ebpf.LogLevelInstruction, LogSizeStart: 1 << 28}})
	if err != nil {
		t.Fatal(err)
	}
	sc := bufio.NewScanner(strings.NewReader(c.Programs[name].VerifierLog))
	sc.Buffer(make([]byte, 1<<20), 1<<20)
	cur, n := "main", 0
	for sc.Scan() {
		l := sc.Text()
		if strings.HasPrefix(l, "Validating") {
			fmt.Println(cur, n)
			cur, n = l, 0
		}
		n++
	}
	fmt.Println(cur, n)
}
