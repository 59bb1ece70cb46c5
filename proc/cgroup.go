package proc

import (
	"strings"

	pavise "github.com/pavise-project/pavise"
)

// The names of container runtimes, as in Container.Runtime.
const (
	runtimeDocker     = "docker"
	runtimeContainerd = "containerd"
	runtimeCRIO       = "crio"
	runtimePodman     = "podman"
	runtimeLXC        = "lxc"
	runtimeNspawn     = "systemd-nspawn"
)

// idPrefixes are what runtimes write before a container's id in the name of its cgroup.
// libpod-conmon- is the monitor beside the container, not in it: it has no entry, and its "conmon-…" is no id.
var idPrefixes = [...]struct{ prefix, runtime string }{
	{"docker-", runtimeDocker},
	{"cri-containerd-", runtimeContainerd},
	{"crio-", runtimeCRIO},
	{"libpod-payload-", runtimePodman}, // --cgroups=split, as Quadlet has it
	{"libpod-", runtimePodman},
	{"nerdctl-", runtimeContainerd},
}

// unitSuffixes are the kinds of systemd units that own a cgroup, and .timer and .path beside them. A slice is not among them: it groups units.
var unitSuffixes = [...]string{".service", ".scope", ".socket", ".mount", ".swap", ".timer", ".path", ".automount", ".target", ".device"}

// ParseCgroup finds the systemd unit and the container in the path of a cgroup, as the
// kernel gives it (v2) or as a line of /proc/PID/cgroup has it (v1 and hybrid: with "name=systemd:" or the like
// before the path). No runtime is asked. The unit is empty, or the container nil, where there is none.
//
// The innermost container wins: in Docker in Docker, a process belongs to the inner one.
func ParseCgroup(path string) (unit string, c *pavise.Container) {
	g := parseCgroup(path)
	return g.unit, g.container
}

// cgroupPath is what the path of a cgroup says.
type cgroupPath struct {
	unit      string
	container *pavise.Container // the innermost
	outer     *pavise.Container // the outermost
	base      string            // the outermost one's own cgroup, from the first slash on
}

func parseCgroup(path string) (g cgroupPath) {
	if i := strings.IndexByte(path, '/'); i > 0 {
		path = path[i:]
	}
	whole := path
	slices := true // still among *.slice components, from the root
	parent, runtime := "", ""
	for path != "" {
		var name string
		name, path, _ = strings.Cut(path, "/")
		if name == "" {
			continue
		}
		if slices && !strings.HasSuffix(name, ".slice") {
			slices = false
			if isUnit(name) {
				g.unit = name
			}
		}
		// What the parents say of the runtime of a bare id below them.
		switch {
		case name == "docker" || name == "buildkit":
			runtime = runtimeDocker
		case name == "libpod_parent" || name == "libpod":
			runtime = runtimePodman
		case name == "kubepods", name == "kubepods.slice", strings.HasPrefix(name, "kubepods-"), name == "k8s.io":
			runtime = runtimeContainerd // the CRI-O and Docker forms have a prefix
		}
		if found := parseContainer(name, parent, runtime); found != nil {
			g.container = found
			if g.outer == nil {
				g.outer = found
				g.base = strings.TrimSuffix(whole[:len(whole)-len(path)], "/")
			}
		}
		parent = name
	}
	return g
}

func isUnit(name string) bool {
	for _, s := range unitSuffixes {
		if len(name) > len(s) && strings.HasSuffix(name, s) {
			return true
		}
	}
	return false
}

// parseContainer reads one component of a path.
func parseContainer(name, parent, runtime string) *pavise.Container {
	id := strings.TrimSuffix(name, ".scope")
	if i := strings.LastIndexByte(id, ':'); i >= 0 {
		// The CRI cgroupfs form: slice:cri-containerd:ID, or system.slice:docker:ID.
		switch {
		case strings.HasSuffix(id[:i], "cri-containerd"):
			runtime = runtimeContainerd
		case strings.HasSuffix(id[:i], "docker"):
			runtime = runtimeDocker
		case strings.HasSuffix(id[:i], "crio"):
			runtime = runtimeCRIO
		case strings.HasSuffix(id[:i], "libpod"):
			runtime = runtimePodman
		}
		id = id[i+1:]
	}
	if isContainerID(id) {
		return &pavise.Container{ID: id, Runtime: runtime}
	}
	for _, p := range idPrefixes {
		if rest, ok := strings.CutPrefix(id, p.prefix); ok && isContainerID(rest) {
			return &pavise.Container{ID: rest, Runtime: p.runtime}
		}
	}
	if rest, ok := strings.CutPrefix(name, "lxc.payload."); ok && rest != "" {
		return &pavise.Container{ID: rest, Runtime: runtimeLXC, Name: rest}
	}
	if parent == "lxc" || parent == "lxc.payload" {
		return &pavise.Container{ID: name, Runtime: runtimeLXC, Name: name}
	}
	if rest, ok := strings.CutPrefix(name, "machine-"); ok && parent == "machine.slice" && len(id) < len(name) {
		m := unescapeUnit(strings.TrimSuffix(rest, ".scope"))
		// Virtual machines of libvirt have a scope there too: machine-qemu\x2d1\x2dNAME.scope.
		if m != "" && !strings.HasPrefix(m, "qemu-") && !strings.HasPrefix(m, "lxc-") {
			return &pavise.Container{ID: m, Runtime: runtimeNspawn, Name: m}
		}
	}
	if rest, ok := strings.CutPrefix(name, "systemd-nspawn@"); ok && strings.HasSuffix(rest, ".service") {
		if m := unescapeUnit(strings.TrimSuffix(rest, ".service")); m != "" {
			return &pavise.Container{ID: m, Runtime: runtimeNspawn, Name: m}
		}
	}
	return nil
}

// isContainerID reports whether s is 64 lower-case hexadecimal digits.
func isContainerID(s string) bool {
	if len(s) != 64 {
		return false
	}
	for i := range len(s) {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// unescapeUnit undoes systemd's \x2d in the names of units.
func unescapeUnit(s string) string {
	if !strings.Contains(s, `\x`) {
		return s
	}
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) && s[i+1] == 'x' {
			hi, lo := unhex(s[i+2]), unhex(s[i+3])
			if hi >= 0 && lo >= 0 {
				b = append(b, byte(hi<<4|lo))
				i += 3
				continue
			}
		}
		b = append(b, s[i])
	}
	return string(b)
}

func unhex(c byte) int {
	switch {
	case c >= '0' && c <= '9':
		return int(c - '0')
	case c >= 'a' && c <= 'f':
		return int(c-'a') + 10
	}
	return -1
}
