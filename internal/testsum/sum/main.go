// Command sum reads the results of tests, as go test -json prints them:
//
//	go test -json ./... | sum -live FILE    print results as they come, and keep them in FILE
//	sum FILE...                             print a summary: failures, skips with reasons, counts
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
	flag.Parse()
	var err error
	if *live != "" {
		err = follow(*live)
	} else {
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

func summarise(files []string) error {
	var s testsum.Summary
	for _, name := range files {
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		err = s.Read(f, func(r *testsum.Result) {
			if r.Test == "" {
				fmt.Println(testsum.PackageLine(r))
			}
		})
		f.Close()
		if err != nil {
			return fmt.Errorf("read %s: %w", name, err)
		}
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
	return verdict(&s)
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
