// Package policies is the shipped library of policies, so that what they flag is known where their files are not installed.
package policies

import (
	"embed"
	"io/fs"
)

//go:embed */policy.yaml
var files embed.FS

// Library are the policies of the starter library, by their names in it: credential-files, persistence, and so on.
func Library() (map[string][]byte, error) {
	out := map[string][]byte{}
	err := fs.WalkDir(files, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := fs.ReadFile(files, name)
		out[name] = data
		return err
	})
	delete(out, "demo/policy.yaml") // it is about its own files
	return out, err
}
