package proc

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	pavise "github.com/pavise-project/pavise"
)

// This file reads what container runtimes keep of their containers on disk. Whoever may start a container chooses most of what
// stands there, so sizes are bounded, and nothing in it is used as a path but ids.

// StateRoot is a directory where container runtimes keep their state.
type StateRoot struct {
	Kind string // docker: dockerd's data root; containerd: its state directory; storage: a root of containers/storage, of Podman and CRI-O
	Dir  string
}

// The kinds of state roots.
const (
	kindDocker     = "docker"
	kindContainerd = "containerd"
	kindStorage    = "storage"
)

// DefaultStateRoots are the places where distributions have the runtimes' state.
func DefaultStateRoots() []StateRoot {
	return []StateRoot{
		{kindDocker, "/var/lib/docker"},
		{kindDocker, "/var/snap/docker/common/var-lib-docker"},
		{kindContainerd, "/run/containerd"},
		{kindContainerd, "/run/k3s/containerd"},
		{kindContainerd, "/run/k0s/containerd"},
		{kindContainerd, "/var/snap/microk8s/common/run/containerd"},
		{kindStorage, "/var/lib/containers/storage"},
		{kindStorage, "/run/containers/storage"},
	}
}

// ParseStateRoot reads KIND=DIR.
func ParseStateRoot(s string) (StateRoot, error) {
	kind, dir, ok := strings.Cut(s, "=")
	if kinds := []string{kindDocker, kindContainerd, kindStorage}; !ok || !slices.Contains(kinds, kind) {
		return StateRoot{}, fmt.Errorf("container state %q: want KIND=DIRECTORY, where KIND is %s", s, strings.Join(kinds, ", "))
	}
	if !filepath.IsAbs(dir) {
		return StateRoot{}, fmt.Errorf("container state %q: the directory must be absolute", s)
	}
	return StateRoot{kind, dir}, nil
}

// The limits of what is read of one container.
const (
	maxStateFile  = 1 << 20
	maxFactText   = 1024 // bytes of a name or an image
	maxLabel      = 1024 // bytes of a label's key and value; a longer one is left out
	maxLabels     = 128
	maxLabelBytes = 16 << 10
	maxListed     = 64 // directories of a root that are looked into
)

// facts are what a runtime says of a container.
type facts struct {
	runtime, name, image string
	labels               map[string]string
	pod                  *pavise.Pod
	sandbox              string // id of the container that stands for the pod and has its labels; "" when none has
	cut                  int    // labels that were left out
}

func (f *facts) empty() bool {
	return f.name == "" && f.image == "" && len(f.labels) == 0 && f.pod == nil
}

// readFacts looks for the container id below roots. Without any trace of it the error wraps fs.ErrNotExist.
func readFacts(roots []StateRoot, id string) (*facts, error) {
	if !isContainerID(id) {
		return nil, fmt.Errorf("look up container %q: %w", id, fs.ErrNotExist)
	}
	var bad error
	for _, r := range roots {
		f, err := r.read(id)
		switch {
		case err == nil && f != nil:
			return f, nil
		case err != nil && !errors.Is(err, fs.ErrNotExist) && bad == nil:
			bad = err
		}
	}
	if bad != nil {
		return nil, bad
	}
	return nil, fmt.Errorf("look up container %.12s: %w", id, fs.ErrNotExist)
}

// read is what one root says of the container id: nil when it knows the container but nothing of it.
func (r StateRoot) read(id string) (*facts, error) {
	root, err := os.OpenRoot(r.Dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	f, err := map[string]func(*os.Root, string) (*facts, error){
		kindDocker: readDocker, kindContainerd: readContainerd, kindStorage: readStorage,
	}[r.Kind](root, id)
	if err != nil {
		return nil, fmt.Errorf("read %s state in %s: %w", r.Kind, r.Dir, err)
	}
	if f == nil || f.empty() {
		return nil, nil
	}
	return f, nil
}

func readDocker(root *os.Root, id string) (*facts, error) {
	read := func(id string) (*facts, error) {
		data, err := readState(root, "containers/"+id+"/config.v2.json")
		if err != nil {
			return nil, err
		}
		return parseDocker(data)
	}
	f, err := read(id)
	if err == nil && isContainerID(f.sandbox) {
		if s, err := read(f.sandbox); err == nil {
			f.pod.Labels = s.labels
		}
	}
	return f, err
}

// parseDocker reads Docker's config.v2.json. Under Kubernetes, cri-dockerd calls a container k8s_NAME_POD_NAMESPACE_UID_ATTEMPT: labels that
// say the same may be the image's.
func parseDocker(data []byte) (*facts, error) {
	var c struct {
		Name   string
		Config struct {
			Image  string
			Labels map[string]string
		}
	}
	if err := json.Unmarshal(data, &c); err != nil {
		return nil, fmt.Errorf("read config.v2.json: %w", err)
	}
	f := &facts{runtime: runtimeDocker, name: strings.TrimPrefix(c.Name, "/"), image: c.Config.Image}
	f.labels, f.cut = boundLabels(c.Config.Labels)
	if k := strings.Split(f.name, "_"); len(k) == 6 && k[0] == "k8s" {
		f.name, f.pod, f.sandbox = k[1], podOf(k[3], k[2]), c.Config.Labels["io.kubernetes.sandbox.id"]
		if f.sandbox == "" { // it is the sandbox itself
			f.pod.Labels = f.labels
		}
	}
	return f.checked()
}

func podOf(namespace, name string) *pavise.Pod {
	if namespace == "" && name == "" {
		return nil
	}
	return &pavise.Pod{Namespace: namespace, Name: name}
}

// What the kubelet calls a container and its pod, in labels.
const (
	kubeContainer = "io.kubernetes.container.name"
	kubePod       = "io.kubernetes.pod.name"
	kubeNamespace = "io.kubernetes.pod.namespace"
)

const containerdTasks = "io.containerd.runtime.v2.task"

// readContainerd reads the OCI bundle of a task, in whatever namespace it is.
func readContainerd(root *os.Root, id string) (*facts, error) {
	namespaces, err := listDir(root, containerdTasks)
	if err != nil {
		return nil, err
	}
	for _, ns := range namespaces {
		if ns == "moby" { // Docker's own files say more
			continue
		}
		data, err := readState(root, containerdTasks+"/"+ns+"/"+id+"/config.json")
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		a, err := parseAnnotations(data)
		if err != nil {
			return nil, err
		}
		return containerdFacts(a)
	}
	return nil, fs.ErrNotExist
}

// containerdFacts are what containerd's CRI plugin, or nerdctl, wrote to an OCI bundle. Labels are in containerd's database alone.
func containerdFacts(a map[string]string) (*facts, error) {
	f := &facts{runtime: runtimeContainerd, name: a["io.kubernetes.cri.container-name"], image: a["io.kubernetes.cri.image-name"]}
	if a["io.kubernetes.cri.container-type"] == "sandbox" {
		f.image = a["io.kubernetes.cri.podsandbox.image-name"]
	}
	if f.name == "" {
		f.name = a["nerdctl/name"]
	}
	f.pod = podOf(a["io.kubernetes.cri.sandbox-namespace"], a["io.kubernetes.cri.sandbox-name"])
	return f.checked()
}

// readStorage reads the OCI bundle that Podman or CRI-O keeps beside the container's storage. Of Podman's containers the names are in a list of all.
func readStorage(root *os.Root, id string) (*facts, error) {
	all, err := listDir(root, ".")
	if err != nil {
		return nil, err
	}
	for _, dir := range all { // overlay-containers, vfs-containers
		if !strings.HasSuffix(dir, "-containers") {
			continue
		}
		a, err := storageBundle(root, dir, id)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		if a["io.container.manager"] == "cri-o" {
			f, err := crioFacts(a)
			if err == nil && isContainerID(f.sandbox) && f.pod != nil {
				if s, err := storageBundle(root, dir, f.sandbox); err == nil {
					f.pod.Labels, _, _ = crioLabels(s)
				}
			}
			return f, err
		}
		for _, list := range []string{"containers.json", "volatile-containers.json"} {
			data, err := readState(root, dir+"/"+list)
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return nil, err
			}
			if f, err := parseStorageList(data, id); f != nil || err != nil {
				return f, err
			}
		}
	}
	return nil, fs.ErrNotExist
}

func storageBundle(root *os.Root, dir, id string) (map[string]string, error) {
	data, err := readState(root, dir+"/"+id+"/userdata/config.json")
	if err != nil {
		return nil, err
	}
	return parseAnnotations(data)
}

// crioFacts are what CRI-O wrote to an OCI bundle.
func crioFacts(a map[string]string) (*facts, error) {
	labels, cut, err := crioLabels(a)
	if err != nil {
		return nil, err
	}
	f := &facts{
		runtime: runtimeCRIO, name: labels[kubeContainer], image: a["io.kubernetes.cri-o.ImageName"],
		labels: labels, cut: cut, sandbox: a["io.kubernetes.cri-o.SandboxID"],
	}
	if f.image == "" {
		f.image = a["io.kubernetes.cri-o.Image"]
	}
	namespace, pod := a[kubeNamespace], a[kubePod]
	if namespace == "" {
		namespace = a["io.kubernetes.cri-o.Namespace"]
	}
	if pod == "" {
		pod = a["io.kubernetes.cri-o.KubeName"]
	}
	f.pod = podOf(namespace, pod)
	return f.checked()
}

// crioLabels are the labels of a container, or of a pod when the bundle is its sandbox's: JSON in an annotation.
func crioLabels(a map[string]string) (labels map[string]string, cut int, err error) {
	text := a["io.kubernetes.cri-o.Labels"]
	if text == "" {
		return nil, 0, nil
	}
	if err := json.Unmarshal([]byte(text), &labels); err != nil {
		return nil, 0, fmt.Errorf("read labels: %w", err)
	}
	labels, cut = boundLabels(labels)
	return labels, cut, nil
}

// parseAnnotations are the annotations of an OCI bundle's config.json.
func parseAnnotations(data []byte) (map[string]string, error) {
	var c struct {
		Annotations map[string]string `json:"annotations"`
	}
	if err := json.Unmarshal(data, &c); err != nil {
		return nil, fmt.Errorf("read config.json: %w", err)
	}
	return c.Annotations, nil
}

// parseStorageList finds the container id in containers.json of containers/storage, where Podman keeps its names; nil when it is not there.
// Labels are in Podman's database alone.
func parseStorageList(data []byte, id string) (*facts, error) {
	var all []struct {
		ID       string
		Names    []string
		Metadata string
	}
	if err := json.Unmarshal(data, &all); err != nil {
		return nil, fmt.Errorf("read containers.json: %w", err)
	}
	for _, c := range all {
		if c.ID != id {
			continue
		}
		var m struct {
			Image string `json:"image-name"`
			Name  string `json:"name"`
		}
		if err := json.Unmarshal([]byte(c.Metadata), &m); err != nil {
			return nil, fmt.Errorf("read metadata of a container: %w", err)
		}
		if len(c.Names) > 0 {
			m.Name = c.Names[0]
		}
		return (&facts{runtime: runtimePodman, name: m.Name, image: m.Image}).checked()
	}
	return nil, nil
}

// boundLabels leaves out what is over the limits, the same for the same labels, and says how many they were.
func boundLabels(all map[string]string) (map[string]string, int) {
	if len(all) == 0 {
		return nil, 0
	}
	keys := make([]string, 0, len(all))
	for k := range all {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	out := make(map[string]string, min(len(all), maxLabels))
	room := maxLabelBytes
	for _, k := range keys {
		n := len(k) + len(all[k])
		if n > maxLabel || n > room || len(out) == maxLabels {
			continue
		}
		room -= n
		out[k] = all[k]
	}
	return out, len(all) - len(out)
}

// checked is f, or an error when a name in it is too long.
func (f *facts) checked() (*facts, error) {
	texts := []string{f.name, f.image}
	if f.pod != nil {
		texts = append(texts, f.pod.Namespace, f.pod.Name)
	}
	for _, s := range texts {
		if len(s) > maxFactText {
			return nil, fmt.Errorf("a name of %d bytes: the limit is %d", len(s), maxFactText)
		}
	}
	return f, nil
}

// readState reads a file below root that root, or the agent's own user, alone may write.
func readState(root *os.Root, name string) ([]byte, error) {
	f, err := root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0) // not to wait for the other end of a fifo
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() || !ownedByRoot(st) {
		return nil, fmt.Errorf("%s is not a regular file that root alone may write", name)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxStateFile+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxStateFile {
		return nil, fmt.Errorf("%s is over %d bytes", name, maxStateFile)
	}
	return data, nil
}

// ownedByRoot reports whether root, or the agent's own user, owns the file and nobody else may write it.
func ownedByRoot(st fs.FileInfo) bool {
	s, ok := st.Sys().(*syscall.Stat_t)
	return ok && (s.Uid == 0 || s.Uid == uint32(os.Geteuid())) && st.Mode().Perm()&0o022 == 0 //nolint:gosec // a uid
}

// listDir lists a directory below root, in order of names; one with more than maxListed entries is none of a runtime's.
func listDir(root *os.Root, name string) ([]string, error) {
	d, err := root.Open(name)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	names, err := d.Readdirnames(maxListed + 1)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if len(names) > maxListed {
		return nil, fmt.Errorf("%s has over %d entries", name, maxListed)
	}
	slices.Sort(names)
	return names, nil
}
