package store

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// ErrDamaged says that a file is not what was written.
var ErrDamaged = errors.New("damaged")

// maxFile bounds what is read of a file: policies and their sets.
const maxFile = 256 << 20

// version is that of the form of the files. A file of another one is not read.
const version = 1

// header is the first line of a file: what it is, in which version, and the SHA-256 of all that follows.
func header(kind string, body []byte) []byte {
	return fmt.Appendf(nil, "pavise %s %d sha256:%x\n", kind, version, sha256.Sum256(body))
}

// writeFile makes v the contents of a file, whole or not at all: when it returns nil, they survive a crash of the machine.
func writeFile(name, kind string, v any) (err error) {
	body, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode %s: %w", name, err)
	}
	dir := filepath.Dir(name)
	f, err := os.CreateTemp(dir, ".new-") // mode 0600
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	defer func() {
		if err != nil {
			_ = f.Close()
			_ = os.Remove(f.Name())
		}
	}()
	if _, err = f.Write(append(header(kind, body), body...)); err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = f.Close()
	}
	if err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err == nil {
		err = syncDir(dir)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	err = d.Sync()
	if errors.Is(err, syscall.EINVAL) { // a file system that has no such thing
		err = nil
	}
	return errors.Join(err, d.Close())
}

// readFile reads what writeFile wrote. The error wraps ErrDamaged when that is not what stands there, and fs.ErrNotExist.
func readFile(name, kind string, v any) error {
	f, err := os.OpenFile(name, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("read %s: %w", name, plain(err))
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return fmt.Errorf("read %s: %w: it is no regular file", name, ErrDamaged)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return fmt.Errorf("read %s: %w", name, err)
	}
	if err := decodeFile(data, kind, v); err != nil {
		return fmt.Errorf("read %s: %w", name, err)
	}
	return nil
}

func decodeFile(data []byte, kind string, v any) error {
	line, body, ok := bytes.Cut(data, []byte("\n"))
	var of int
	var sum string
	prefix := "pavise " + kind + " "
	switch n, _ := fmt.Sscanf(string(bytes.TrimPrefix(line, []byte(prefix))), "%d sha256:%64s", &of, &sum); {
	case len(data) > maxFile:
		return fmt.Errorf("%w: it is over %d MiB", ErrDamaged, maxFile>>20)
	case !ok || !bytes.HasPrefix(line, []byte(prefix)) || n != 2:
		return fmt.Errorf("%w: its first line is not that of a %s", ErrDamaged, kind)
	case of != version:
		return fmt.Errorf("it is of version %d, and this agent reads version %d", of, version)
	case !bytes.Equal(header(kind, body), append(bytes.Clone(line), '\n')):
		return fmt.Errorf("%w: its contents are not those that were written", ErrDamaged)
	}
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return nil
}

// plain is err without the path, which whoever says this names.
func plain(err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}
