package agent

import (
	"bytes"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pavise-project/pavise/policy"
	"golang.org/x/sys/unix"
)

func listed(file string) []byte {
	return []byte(strings.Replace(shadow("listed", "monitor"), `file.path == "/etc/shadow"`, `'file.path.inSet("`+file+`")'`, 1))
}

// TestApplySets: sets come with the request; nothing is read by the agent.
func TestApplySets(t *testing.T) {
	a, c := running(t, newFake(), nil)
	many := bytes.Repeat([]byte("/etc/shadow\n"), 100_000) // over what a policy alone may be
	if _, err := c.Apply(t.Context(), "x/listed.yaml", listed("sub/bad.txt"), map[string][]byte{"sub/bad.txt": many}, ApplyOptions{}); err != nil {
		t.Fatal(err)
	}
	if sets := a.set.Load().image.Sets[policy.SetStrings]; len(sets) != 1 || sets[0].File != "sub/bad.txt" || !sets[0].Has("/etc/shadow") {
		t.Errorf("sets %v", sets)
	}
	for want, sets := range map[string]map[string][]byte{
		"sub/bad.txt:1:1: path \"x\" is relative": {"sub/bad.txt": []byte("x\n")},
		"did not come with the policy":            {"other.txt": []byte("/x\n")},
		"none came with this one":                 nil,
		"over 32 MiB":                             {"sub/bad.txt": make([]byte, MaxApplyBytes)},
	} {
		if _, err := c.Apply(t.Context(), "listed.yaml", listed("sub/bad.txt"), sets, ApplyOptions{}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
	if n := len(a.set.Load().image.Sets[policy.SetStrings]); n != 1 {
		t.Errorf("a bad set left %d", n)
	}
}

// TestApplyParts: requests that the client does not make.
func TestApplyParts(t *testing.T) {
	_, c := running(t, newFake(), nil)
	part := func(name, text string) string {
		return "--b\r\nContent-Disposition: form-data; name=\"" + name + "\"\r\n\r\n" + text + "\r\n"
	}
	for _, tt := range []struct {
		body string
		code int
		want string
	}{
		{part("policy", string(listed("s"))) + part("set:s", "/x\n") + "--b--\r\n", 200, `"dry_run":true`},
		{part("set:s", "/x\n") + part("policy", string(listed("s"))) + "--b--\r\n", 200, `"dry_run":true`},
		{part("set:s", "/x\n") + "--b--\r\n", 400, `no part \"policy\"`},
		{part("policy", "") + part("policy", "") + "--b--\r\n", 400, "unexpected part"},
		{part("set:s", "/x\n") + part("set:s", "/y\n") + part("policy", string(listed("s"))) + "--b--\r\n", 400, "unexpected part"},
		{part("file", "") + "--b--\r\n", 400, "unexpected part"},
		{part("policy", string(listed("s"))), 400, "unexpected EOF"},
		{part("policy", strings.Repeat("#", MaxPolicyBytes+1)) + "--b--\r\n", 422, "too long"},
		{part("set:s", strings.Repeat("#", MaxApplyBytes)) + "--b--\r\n", 413, "32 MiB"},
		{"", 400, `no part \"policy\"`},
	} {
		res, err := c.do(t.Context(), "PUT", "/v1/policies", url.Values{"dry-run": {"1"}}, &typedBody{strings.NewReader(tt.body), "multipart/form-data; boundary=b"})
		code, got := 200, ""
		if err != nil {
			api, ok := err.(*APIError) //nolint:errorlint // as do returns it
			if !ok {
				t.Fatalf("%.60q: %v", tt.body, err)
			}
			code, got = api.Status, strings.ReplaceAll(api.Message, `"`, `\"`)
		} else {
			var b bytes.Buffer
			_, _ = b.ReadFrom(res.Body)
			_ = res.Body.Close()
			got = b.String()
		}
		if code != tt.code || !strings.Contains(got, tt.want) {
			t.Errorf("%.60q: %d %s, want %d with %s", tt.body, code, got, tt.code, tt.want)
		}
	}
}

// TestSetsIn: files of the directory and below, and nothing else.
func TestSetsIn(t *testing.T) {
	dir := t.TempDir()
	in := filepath.Join(dir, "in")
	for _, err := range []error{
		os.MkdirAll(filepath.Join(in, "sub"), 0o755), os.WriteFile(filepath.Join(dir, "out"), []byte("no"), 0o600),
		os.WriteFile(filepath.Join(in, "sub/s"), []byte("yes"), 0o600), os.Symlink("sub/s", filepath.Join(in, "link")),
		os.Symlink("../out", filepath.Join(in, "away")), os.Symlink(filepath.Join(in, "sub/s"), filepath.Join(in, "absolute")),
		unix.Mkfifo(filepath.Join(in, "pipe"), 0o600), os.WriteFile(filepath.Join(in, "big"), make([]byte, policy.MaxSetBytes+10), 0o600),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	read := SetsIn(in)
	for file, want := range map[string]string{
		"sub/s": "yes", "link": "yes", "away": "path escapes from parent", "absolute": "path escapes from parent", "../out": "path escapes from parent",
		"pipe": "it is no regular file", "sub": "it is no regular file", "none": "no such file or directory",
	} {
		b, err := read(file)
		if got := string(b); err != nil && err.Error() != want || err == nil && got != want {
			t.Errorf("%s: %q %v, want %s", file, got, err, want)
		}
	}
	if b, err := read("big"); err != nil || len(b) != policy.MaxSetBytes+1 {
		t.Errorf("%d bytes of a big file, %v", len(b), err)
	}
}
