package enforce

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"time"

	"github.com/cilium/ebpf"
	"github.com/pavise-project/pavise/bpf"
	"golang.org/x/sys/unix"
)

// What bpf/texts.h says of texts.
const (
	argsBytes   = 3000
	textUnknown = 0xfffe
	textLong    = 0xffff
)

// textMaps hold the texts of processes by exec_id: in the first what fits there.
var textMaps = [...]string{"short_texts", "long_texts"}

// eachProcess calls f with the pid of all processes.
func eachProcess(f func(pid int)) error {
	dir, err := os.Open("/proc")
	if err != nil {
		return fmt.Errorf("list the processes: %w", err)
	}
	defer dir.Close()
	for {
		names, err := dir.Readdirnames(256)
		for _, name := range names {
			if pid, err := strconv.Atoi(name); err == nil {
				f(pid)
			}
		}
		if err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return fmt.Errorf("list the processes: %w", err)
		}
	}
}

// execID is the identity that the kernel has of a process, 0 for none.
func (e *Enforcer) execID(pid int) uint64 {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return 0
	}
	defer unix.Close(fd)
	var p bpf.KernelProc
	if err := e.k.Map("procs").Lookup(uint32(fd), &p); err != nil {
		return 0
	}
	return p.ExecId
}

// texts are those of an exec_id.
func (e *Enforcer) texts(id uint64) (t bpf.KernelTextsLong, ok bool) {
	var s bpf.KernelTextsShort
	if e.k.Map(textMaps[0]).Lookup(id, &s) == nil {
		t.T = s.T
		copy(t.Bytes[:], s.Bytes[:])
		return t, true
	}
	return t, e.k.Map(textMaps[1]).Lookup(id, &t) == nil
}

// giveArgs gives the kernel the arguments of the processes that already ran, which it cannot read itself. A process may have changed what it shows of
// them by now; not after this.
func (e *Enforcer) giveArgs() error {
	for range 4 { // a child that a process makes meanwhile may not be listed until the next time
		given := 0
		var failed error
		err := eachProcess(func(pid int) {
			id := e.execID(pid)
			t, ok := e.texts(id)
			if !ok || t.T.ArgsLen != textUnknown {
				return
			}
			given++
			if err := e.putArgs(id, &t, readArgs(pid)); err != nil {
				failed = err
			}
			if e.execID(pid) != id { // it has ended, or runs another program: nobody else takes them away
				e.dropTexts(id)
			}
		})
		if err = errors.Join(err, failed); err != nil || given == 0 {
			return err
		}
	}
	return nil
}

// readArgs reads the arguments of a process, each followed by NUL; more than argsBytes when they are too long.
func readArgs(pid int) []byte {
	f, err := os.Open("/proc/" + strconv.Itoa(pid) + "/cmdline")
	if err != nil {
		return nil
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, argsBytes+1))
	if err != nil {
		return nil
	}
	if len(b) > 0 && !bytes.HasSuffix(b, []byte{0}) {
		b = append(b, 0)
	}
	return b
}

func (e *Enforcer) putArgs(id uint64, t *bpf.KernelTextsLong, args []byte) error {
	line := int(t.T.LineLen)
	if t.T.LineLen == textLong {
		line = 0
	}
	t.T.ArgsLen = textLong
	if len(args) <= argsBytes {
		t.T.ArgsLen = uint16(len(args))
		copy(t.Bytes[line:], args)
		line += len(args)
	}
	s := bpf.KernelTextsShort{T: t.T}
	var err error
	if line <= len(s.Bytes) {
		copy(s.Bytes[:], t.Bytes[:])
		err = e.k.Map(textMaps[0]).Put(id, &s)
	} else if err = e.k.Map(textMaps[1]).Put(id, t); err == nil {
		_ = e.k.Map(textMaps[0]).Delete(id)
	}
	if err != nil {
		return fmt.Errorf("give the kernel the arguments of a process: %w", err)
	}
	return nil
}

func (e *Enforcer) dropTexts(id uint64) {
	for _, name := range textMaps {
		_ = e.k.Map(name).Delete(id)
	}
}

// sweepEvery is how often texts are looked through at most.
const sweepEvery = time.Minute

// sweep takes away the texts of processes whose end the kernel did not tell, as it does when it skips a program.
func (e *Enforcer) sweep() error {
	missed := e.k.Missed()
	if missed == e.missed || time.Since(e.swept) < sweepEvery {
		return nil
	}
	e.missed, e.swept = missed, time.Now()
	return e.dropEnded()
}

func (e *Enforcer) dropEnded() error {
	ended := map[uint64]bool{}
	for _, name := range textMaps {
		var id uint64
		var value []byte
		it := e.k.Map(name).Iterate()
		for it.Next(&id, &value) {
			ended[id] = true
		}
		if err := it.Err(); err != nil && !errors.Is(err, ebpf.ErrIterationAborted) {
			return fmt.Errorf("look for the texts of ended processes: %w", err)
		}
	}
	// Listed after the texts were: what runs now and has none of these is no matter here.
	if err := eachProcess(func(pid int) { delete(ended, e.execID(pid)) }); err != nil {
		return err
	}
	for id := range ended {
		e.dropTexts(id)
	}
	return nil
}
