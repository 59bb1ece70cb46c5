package convert

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/pavise-project/pavise"
	"github.com/pavise-project/pavise/policy"
)

// modelEntry is an entry of KubeArmor's matchPaths (no slash at its end) or matchDirectories.
type modelEntry struct {
	path, source        string
	deep, readOnly, own bool
	allow               bool
}

func (e *modelEntry) isDir() bool { return strings.HasSuffix(e.path, "/") }

func (e *modelEntry) has(path string) bool {
	if !e.isDir() {
		return path == e.path
	}
	rest, ok := strings.CutPrefix(path+"/", e.path)
	return ok && (e.deep || strings.Count(rest, "/") <= 1)
}

// modelDenies is what KubeArmor's enforcer does (KubeArmor/BPF/shared.h), in its order: the entry for the path and who acts, for a
// directory and who acts, for the path, for a directory, the longest; and then the default.
func modelDenies(es []modelEntry, path, exe string, write, owner bool) bool {
	var found *modelEntry
	for _, dir := range [][2]bool{{false, true}, {true, true}, {false, false}, {true, false}} {
		for i := range es {
			e := &es[i]
			if e.isDir() == dir[0] && (e.source != "") == dir[1] && (e.source == "" || e.source == exe) && e.has(path) && (found == nil || len(e.path) > len(found.path)) {
				found = e
			}
		}
		if found != nil {
			break
		}
	}
	switch {
	case found == nil:
		return slices.ContainsFunc(es, func(e modelEntry) bool { return e.allow })
	case found.allow:
		return found.readOnly && write
	case found.own && !owner:
		return true
	case found.readOnly:
		return write
	}
	return !found.own
}

// TestKubeArmorModel holds converted policies to KubeArmor's own order of entries, on random policies and acts.
func TestKubeArmorModel(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 7))
	places := []string{"/a/", "/a/b/", "/a/b/c/", "/d/", "/a/x", "/a/b/x", "/a/b/c/x", "/d/x", "/d/e/x"}
	paths := []string{"/a", "/a/x", "/a/b", "/a/b/x", "/a/b/y", "/a/b/c/x", "/a/b/c/d/y", "/d/x", "/d/e/x", "/z"}
	exes := []string{"/bin/cat", "/bin/vi", "/bin/ls"}
	pick := func(of []string) string { return of[r.IntN(len(of))] }
	denied, allowed, policies := 0, 0, 100
	if testing.Short() {
		policies = 30
	}
	for n := range policies {
		var es []modelEntry
		taken := map[string]bool{}
		host, owners := r.IntN(3) == 0, r.IntN(3) == 0
		for range 1 + r.IntN(5) {
			e := modelEntry{path: pick(places), allow: r.IntN(2) == 0, readOnly: r.IntN(3) == 0}
			if e.deep = e.isDir(); e.path == "/d/" { // of directories in directories, all are recursive: KubeArmor forgets the others
				e.deep = r.IntN(2) == 0
			}
			if r.IntN(3) == 0 {
				e.source = pick(exes[:2])
			}
			if host || owners { // there, what is allowed is another policy; and an allow-list cannot ask for owners
				e.allow = false
			}
			e.own = owners && r.IntN(2) == 0
			if !taken[e.path+e.source] { // the last of two for the same would count
				taken[e.path+e.source] = true
				es = append(es, e)
			}
		}
		var paths1, dirs strings.Builder
		for _, e := range es {
			b, key := &paths1, "path"
			if e.isDir() {
				b, key = &dirs, "dir"
			}
			action := "Block"
			if e.allow {
				action = "Allow"
			}
			fmt.Fprintf(b, "    - {%s: %s, recursive: %v, readOnly: %v, ownerOnly: %v, action: %s", key, e.path, e.deep, e.readOnly, e.own, action)
			if !e.isDir() {
				s := strings.Replace(b.String(), ", recursive: false", "", 1)
				b.Reset()
				b.WriteString(s)
			}
			if e.source != "" {
				fmt.Fprintf(b, ", fromSource: [{path: %s}]", e.source)
			}
			b.WriteString("}\n")
		}
		src := fmt.Sprintf("apiVersion: security.kubearmor.com/v1\nkind: KubeArmorPolicy\nmetadata: {name: m, namespace: n}\nspec:\n  selector: {matchLabels: {a: b}}\n  file:\n    matchPaths:\n%s    matchDirectories:\n%s", paths1.String(), dirs.String())
		src = strings.ReplaceAll(src, "    matchPaths:\n    match", "    match")
		src = strings.TrimSuffix(src, "    matchDirectories:\n")
		if host {
			src = strings.ReplaceAll(strings.ReplaceAll(src, "KubeArmorPolicy", "KubeArmorHostPolicy"), "  selector: {matchLabels: {a: b}}\n", "  nodeSelector: {}\n")
		}
		res, err := Convert([]File{{"m.yaml", []byte(src)}}, Options{Subject: `process.cgroup.startsWith("/")`})
		if err != nil {
			t.Fatalf("%v\n%s", err, src)
		}
		ps, err := policy.Parse("m", []byte(res.YAML()))
		if err != nil {
			t.Fatal(err)
		}
		img, _, err := policy.Compile(ps, machine)
		if err != nil {
			t.Fatal(err)
		}
		for range 60 {
			path, exe, write, owner := pick(paths), pick(exes), r.IntN(2) == 0, r.IntN(2) == 0
			e := &pavise.Event{Op: pavise.OpOpen, File: pavise.FileInfo{Path: path, Mode: 0o100644, Access: pavise.AccessRead},
				Process: &pavise.Process{Exe: pavise.FileInfo{Path: exe}, Cgroup: "/user.slice", User: pavise.User{ID: 5}}}
			if write {
				e.File.Access = pavise.AccessWrite
			}
			if owner {
				e.File.Owner = 5
			}
			got, known := denies(t, img, e)
			if !known {
				continue
			}
			if want := modelDenies(es, path, exe, write, owner); got != want {
				t.Fatalf("case %d: %s by %s, write %v, owner %v: denied %v, KubeArmor: %v\n%s\n%s", n, path, exe, write, owner, got, want, src, res.YAML())
			}
			if got {
				denied++
			} else {
				allowed++
			}
		}
	}
	if min(denied, allowed) < policies*10 {
		t.Errorf("%d denied, %d allowed", denied, allowed)
	}
}

// denies reports whether a rule, or a default, denies e. It is not known when more rules match in the kernel than a verdict names, and
// those that it names ask user space.
func denies(t *testing.T, img *policy.Image, e *pavise.Event) (denied, known bool) {
	t.Helper()
	v := img.Judge(e.Op, facts(e))
	named := 0
	for _, id := range v.Rules {
		if id == policy.NoRule {
			break
		}
		named++
		r := img.Rules[id]
		if r.Action != pavise.ActionDeny {
			continue
		}
		if r.Residual == nil {
			return true, true
		}
		ok, err := r.Residual.Eval(e)
		if err != nil {
			t.Fatal(err)
		}
		if ok {
			return true, true
		}
	}
	return false, v.Matched <= named
}
