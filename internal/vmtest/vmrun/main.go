// Command vmrun runs a command in a virtual machine with another kernel:
//
//	vmrun -kernel 6.1 [-lsm with|without] [-icount] [-timeout 120s] [-env K=V] -- CMD ARG...
//	vmrun -list                 print the kernels that are present
//	vmrun -fetch [-update]      fetch the kernels that are missing, or newer ones
//	vmrun -matrix ./PKG...      run the packages' TestKernel tests in every kernel
//
// The machine sees this machine's files (changes stay in its memory) and starts in the current
// directory. Its output carries a prefix on a terminal and in a log; -plain leaves it away.
// vmrun exits as the command did.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/pavise-project/pavise/internal/vmtest"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	status, err := run(ctx)
	if err != nil {
		fmt.Fprintln(os.Stderr, "vmrun:", err)
		status = 125
	}
	os.Exit(status)
}

type listFlag []string

func (l *listFlag) String() string     { return strings.Join(*l, ",") }
func (l *listFlag) Set(s string) error { *l = append(*l, s); return nil }

func run(ctx context.Context) (status int, err error) {
	var env listFlag
	kernel := flag.String("kernel", "newest", "the kernel, one of: "+strings.Join(vmtest.Names, " "))
	lsm := flag.String("lsm", "with", "with or without bpf in the kernel's lsm= list")
	icount := flag.Bool("icount", false, "count instructions as time: repeatable, slower, one CPU")
	timeout := flag.Duration("timeout", 5*time.Minute, "end the command after this time, not counting the boot")
	quiet := flag.Duration("quiet", 0, "end the machine, with what its processors are at, when nothing was printed for this time")
	plain := flag.Bool("plain", false, "print the output without a prefix")
	console := flag.Bool("console", false, "print the kernel's console at the end")
	flag.Var(&env, "env", "set a variable, K=V; may be repeated")
	list := flag.Bool("list", false, "print the kernels that are present")
	fetch := flag.Bool("fetch", false, "fetch the kernels that are missing")
	update := flag.Bool("update", false, "with -fetch: look for newer ones too")
	matrix := flag.Bool("matrix", false, "run the TestKernel tests of the packages named in every kernel")
	kernels := flag.String("kernels", strings.Join(vmtest.Names, ","), "with -matrix: the kernels")
	jsonFile := flag.String("json", "", "with -matrix: write the results there, as go test -json does")
	pattern := flag.String("run", "^TestKernel", "with -matrix: the tests")
	flag.Parse()

	switch {
	case *list:
		return 0, printKernels(os.Stdout)
	case *fetch:
		return 0, vmtest.Fetch(ctx, os.Stderr, *update, vmtest.Names...)
	case *matrix:
		m := vmtest.Matrix{
			Packages: flag.Args(), Kernels: strings.Split(*kernels, ","), Pattern: *pattern,
			Timeout: *timeout, Log: os.Stdout,
		}
		return m.Run(ctx, *jsonFile)
	}
	if flag.NArg() == 0 {
		return 0, errors.New("no command: vmrun -kernel NAME -- CMD ARG")
	}
	if *lsm != "with" && *lsm != "without" {
		return 0, fmt.Errorf("-lsm %s: neither with nor without", *lsm)
	}
	k, err := vmtest.Get(ctx, os.Stderr, *kernel)
	if err != nil {
		return 0, err
	}
	dir, err := os.Getwd()
	if err != nil {
		return 0, err
	}
	var out io.Writer = os.Stdout
	if !*plain {
		p := &prefixer{w: os.Stdout, prefix: "[" + *kernel + "] "}
		defer p.flush()
		out = p
	}
	vm := vmtest.VM{
		Kernel: k, NoLSM: *lsm == "without", ICount: *icount, Timeout: *timeout, Quiet: *quiet, Dir: dir, Env: env,
		Command: flag.Args(), Output: out, Log: os.Stderr,
	}
	if *console {
		vm.Console = os.Stderr
	}
	return vm.Run(ctx)
}

func printKernels(w io.Writer) error {
	for _, name := range vmtest.Names {
		k, err := vmtest.Find(name)
		switch {
		case errors.Is(err, vmtest.ErrNoKernel):
			fmt.Fprintf(w, "%-8s not fetched\n", name)
		case err != nil:
			return err
		default:
			fmt.Fprintf(w, "%-8s %-30s %s\n", name, k.Release, k.Dir)
		}
	}
	return nil
}

// prefixer writes whole lines with a prefix.
type prefixer struct {
	w      io.Writer
	prefix string
	line   []byte
}

func (p *prefixer) Write(b []byte) (int, error) {
	n := len(b)
	for {
		i := bytes.IndexByte(b, '\n')
		if i < 0 {
			p.line = append(p.line, b...)
			return n, nil
		}
		p.line = append(p.line, b[:i+1]...)
		if _, err := fmt.Fprintf(p.w, "%s%s", p.prefix, p.line); err != nil {
			return 0, err
		}
		p.line, b = p.line[:0], b[i+1:]
	}
}

func (p *prefixer) flush() {
	if len(p.line) > 0 {
		fmt.Fprintf(p.w, "%s%s\n", p.prefix, p.line)
	}
}
