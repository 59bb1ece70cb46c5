package agent

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"mime"
	"mime/multipart"
	"net/http"
	"net/textproto"
	"os"
	"slices"
	"strings"

	"github.com/pavise-project/pavise/policy"
	"golang.org/x/sys/unix"
)

// MaxApplyBytes bounds one request to apply policies with their sets.
const MaxApplyBytes = 32 << 20

// The parts of such a request, which is multipart/form-data: the policies, and each set by its name.
const (
	policyPart = "policy"
	setPart    = "set:"
)

// SetsIn reads sets from files in a directory or below it, for policy.ParseWith. A link out of the directory is an error.
func SetsIn(dir string) func(file string) ([]byte, error) {
	return func(file string) ([]byte, error) {
		b, err := readSet(dir, file)
		var pe *fs.PathError
		if errors.As(err, &pe) { // whoever says this names the file
			err = pe.Err
		}
		return b, err
	}
}

func readSet(dir, file string) ([]byte, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	f, err := root.OpenFile(file, os.O_RDONLY|unix.O_NONBLOCK, 0) // a pipe must not keep the agent waiting
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil {
		return nil, err
	} else if !st.Mode().IsRegular() {
		return nil, errors.New("it is no regular file")
	}
	return io.ReadAll(io.LimitReader(f, policy.MaxSetBytes+1))
}

// typedBody is a request's body that says what it is.
type typedBody struct {
	io.Reader
	kind string
}

// applyBody is the body of a request to apply policies: as they are, or with the sets that they name.
func applyBody(data []byte, sets map[string][]byte) (io.Reader, error) {
	if len(sets) == 0 {
		return bytes.NewReader(data), nil
	}
	var b bytes.Buffer
	w := multipart.NewWriter(&b)
	part := func(name string, data []byte) error {
		h := textproto.MIMEHeader{"Content-Disposition": {mime.FormatMediaType("form-data", map[string]string{"name": name, "filename": "file"})}}
		p, err := w.CreatePart(h)
		if err != nil {
			return err
		}
		_, err = p.Write(data)
		return err
	}
	err := part(policyPart, data)
	for _, name := range slices.Sorted(maps.Keys(sets)) {
		err = errors.Join(err, part(setPart+name, sets[name]))
	}
	if err = errors.Join(err, w.Close()); err != nil {
		return nil, fmt.Errorf("make the request: %w", err)
	}
	if b.Len() > MaxApplyBytes {
		return nil, fmt.Errorf("the policies and their sets are over %d MiB, the limit of a request", MaxApplyBytes>>20)
	}
	return &typedBody{&b, w.FormDataContentType()}, nil
}

// withSets reports whether a request has parts.
func withSets(r *http.Request) bool {
	t, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type"))
	return t == "multipart/form-data"
}

// readApply reads the body of a request to apply policies.
func readApply(r *http.Request) (data []byte, sets map[string][]byte, err error) {
	if !withSets(r) {
		data, err = io.ReadAll(r.Body)
		return data, nil, err
	}
	m, err := r.MultipartReader()
	if err != nil {
		return nil, nil, err
	}
	sets = map[string][]byte{}
	found := false
	for {
		p, err := m.NextRawPart()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, nil, fmt.Errorf("read the parts of the request: %w", err)
		}
		b, err := io.ReadAll(p)
		if err != nil {
			return nil, nil, fmt.Errorf("read part %q: %w", p.FormName(), err)
		}
		name, isSet := strings.CutPrefix(p.FormName(), setPart)
		switch _, dup := sets[name]; {
		case isSet && !dup:
			sets[name] = b
		case p.FormName() == policyPart && !found:
			data, found = b, true
		default:
			return nil, nil, fmt.Errorf("unexpected part %q: a request has one part \"policy\", and one \"set:FILE\" for each set", p.FormName())
		}
	}
	if !found {
		return nil, nil, errors.New("no part \"policy\" in the request")
	}
	return data, sets, nil
}

// sentSets are the sets of a request, for policy.ParseWith; nil when none came.
func sentSets(sets map[string][]byte) func(file string) ([]byte, error) {
	if sets == nil {
		return nil
	}
	return func(file string) ([]byte, error) {
		if b, ok := sets[file]; ok {
			return b, nil
		}
		return nil, errors.New("it did not come with the policy")
	}
}
