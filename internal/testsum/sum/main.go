// Command sum reads the results of tests, as go test -json prints them:
//
//	go test -json ./... | sum -live FILE    print results as they come, and keep them in FILE
//	sum FILE...                             print a summary: failures, skips with reasons, counts
//	sum -ways LIST FILE...                  print which ways around a rule are covered, by which test, on which rung
//
// It fails if a test failed, if there was no test, and (the summary) if a TestKernel* test was
// skipped in every kernel.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"

	"github.com/pavise-project/pavise/internal/testsum"
)

var errFailed = errors.New("some tests failed")

func main() {
	live := flag.String("live", "", "read from standard input and keep the results in this file")
	ways := flag.String("ways", "", "print the table of the ways around a rule, which this file lists, by the results")
	flag.Parse()
	var err error
	switch {
	case *live != "":
		err = follow(*live)
	case *ways != "":
		err = table(*ways, flag.Args())
	default:
		err = summarise(flag.Args())
	}
	if err != nil {
		if !errors.Is(err, errFailed) { // the counts have said it
			fmt.Fprintln(os.Stderr, "sum:", err)
		}
		os.Exit(1)
	}
}

func follow(name string) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	var s testsum.Summary
	err = s.Read(io.TeeReader(os.Stdin, f), func(r *testsum.Result) {
		switch {
		case r.Test == "":
			fmt.Println(testsum.PackageLine(r))
		case r.Action == "fail":
			fmt.Printf("--- FAIL: %s\n", r.Name())
		}
	})
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	s.PrintFailures(os.Stdout)
	fmt.Println(s.Counts())
	return verdict(&s)
}

func read(files []string, ended func(*testsum.Result)) (*testsum.Summary, error) {
	s := &testsum.Summary{}
	for _, name := range files {
		f, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		err = s.Read(f, ended)
		f.Close()
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", name, err)
		}
	}
	return s, nil
}

// table fails when a claim of the list does not hold.
func table(list string, files []string) error {
	f, err := os.Open(list)
	if err != nil {
		return err
	}
	defer f.Close()
	w, err := testsum.ReadWays(list, f)
	if err != nil {
		return err
	}
	s, err := read(files, nil)
	if err != nil {
		return err
	}
	if n := w.Print(os.Stdout, s); n > 0 {
		return fmt.Errorf("%d claims of %s do not hold", n, list)
	}
	return nil
}

func summarise(files []string) error {
	s, err := read(files, func(r *testsum.Result) {
		if r.Test == "" {
			fmt.Println(testsum.PackageLine(r))
		}
	})
	if err != nil {
		return err
	}
	s.PrintSkips(os.Stdout)
	s.PrintFailures(os.Stdout)
	for _, name := range s.NeverRan() {
		fmt.Printf("ran in no kernel: %s\n", name)
	}
	fmt.Println(s.Counts())
	if len(s.NeverRan()) > 0 {
		return errFailed
	}
	return verdict(s)
}

func verdict(s *testsum.Summary) error {
	if len(s.Failures()) > 0 {
		return errFailed
	}
	if len(s.Results("pass")) == 0 {
		return errors.New("no test passed")
	}
	return nil
}
