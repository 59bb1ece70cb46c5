package main

import (
	"net"
	"path/filepath"
	"testing"
)

func TestNotify(t *testing.T) {
	if err := notify("", "READY=1"); err != nil {
		t.Error(err)
	}
	for _, name := range []string{filepath.Join(t.TempDir(), "n"), "@pavise-test-" + filepath.Base(t.TempDir())} {
		at := name
		if at[0] == '@' {
			at = "\x00" + at[1:]
		}
		l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: at, Net: "unixgram"})
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		if err := notify(name, "READY=1"); err != nil {
			t.Fatal(err)
		}
		var b [64]byte
		n, err := l.Read(b[:])
		if err != nil || string(b[:n]) != "READY=1" {
			t.Errorf("%q %v", b[:n], err)
		}
	}
	if err := notify(filepath.Join(t.TempDir(), "none"), "READY=1"); err == nil {
		t.Error("told nobody")
	}
}
