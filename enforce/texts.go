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

// textMaps hold the texts of images: in the first what fits there.
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

// identity is what the kernel knows of a process, zero for nothing.
func (e *Enforcer) identity(pid int) (p bpf.KernelProc) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return p
	}
	defer unix.Close(fd)
	if err := e.k.Map("procs").Lookup(uint32(fd), &p); err != nil {
		return bpf.KernelProc{}
	}
	return p
}

// texts are those of an image.
func (e *Enforcer) texts(image uint64) (t bpf.KernelTextsLong, ok bool) {
	var s bpf.KernelTextsShort
	if e.k.Map(textMaps[0]).Lookup(image, &s) == nil {
		t.T = s.T
		copy(t.Bytes[:], s.Bytes[:])
		return t, true
	}
	return t, e.k.Map(textMaps[1]).Lookup(image, &t) == nil
}

// given is the key of the arguments that were given for an image, as in bpf/texts.h.
func given(image uint64) uint64 { return ^image }

// giveArgs gives the kernel the arguments of the processes that already ran, which it cannot read itself. A process may have changed what it shows of
// them by now; not after this.
func (e *Enforcer) giveArgs() error {
	for range 4 { // a process that begins meanwhile may not be listed until the next time
		more := false
		var failed error
		err := eachProcess(func(pid int) {
			image := e.identity(pid).Image
			if t, ok := e.texts(image); !ok || t.T.ArgsLen != textUnknown {
				return
			}
			if _, ok := e.texts(given(image)); ok {
				return
			}
			more = true
			if err := e.putArgs(image, readArgs(pid)); err != nil {
				failed = err
			}
			if _, ok := e.texts(image); !ok { // the last process of it has ended: nobody else takes them away
				e.dropTexts(given(image))
			}
		})
		if err = errors.Join(err, failed); err != nil || !more {
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

func (e *Enforcer) putArgs(image uint64, args []byte) error {
	var t bpf.KernelTextsLong
	t.T.ArgsLen = textLong
	if len(args) <= argsBytes {
		t.T.ArgsLen = uint16(copy(t.Bytes[:], args))
	}
	s := bpf.KernelTextsShort{T: t.T}
	var err error
	if len(args) <= len(s.Bytes) || t.T.ArgsLen == textLong {
		copy(s.Bytes[:], args)
		err = e.k.Map(textMaps[0]).Put(given(image), &s)
	} else {
		err = e.k.Map(textMaps[1]).Put(given(image), &t)
	}
	if err != nil {
		return fmt.Errorf("give the kernel the arguments of a process: %w", err)
	}
	return nil
}

func (e *Enforcer) dropTexts(key uint64) {
	for _, name := range textMaps {
		_ = e.k.Map(name).Delete(key)
	}
}

// sweepEvery is how often texts are looked through at most.
const sweepEvery = time.Minute

// sweep takes away the texts of processes whose end the kernel did not tell, as it does when it skips a program, and of those that nobody counts: inherit.
func (e *Enforcer) sweep() error {
	missed := e.k.Missed()
	if missed == e.missed && e.adopted == nil && e.other == nil || time.Since(e.swept) < sweepEvery {
		return nil
	}
	e.missed, e.swept = missed, time.Now()
	return e.dropEnded()
}

func (e *Enforcer) dropEnded() error {
	ended, err := e.ended()
	for key := range ended {
		e.dropTexts(key)
	}
	return err
}

// ended are the keys of texts that no process runs.
func (e *Enforcer) ended() (map[uint64]bool, error) {
	ended := map[uint64]bool{}
	for _, name := range textMaps {
		var key uint64
		var value []byte
		it := e.k.Map(name).Iterate()
		for it.Next(&key, &value) {
			ended[key] = true
		}
		if err := it.Err(); err != nil && !errors.Is(err, ebpf.ErrIterationAborted) {
			return nil, fmt.Errorf("look for the texts of ended processes: %w", err)
		}
	}
	// Listed after the texts were: what runs now and has none of these is no matter here. Twice, since a process that is not listed any more may
	// have left its image to a child that is not listed yet.
	for range 2 {
		err := eachProcess(func(pid int) {
			image := e.identity(pid).Image
			delete(ended, image)
			delete(ended, given(image))
		})
		if err != nil {
			return nil, err
		}
	}
	return ended, nil
}
