package agent

import (
	"bufio"
	"bytes"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// needed are the capabilities that the agent uses, by number.
var needed = []struct {
	bit  int
	name string
}{
	{1, "CAP_DAC_OVERRIDE"}, {12, "CAP_NET_ADMIN"}, {19, "CAP_SYS_PTRACE"}, {21, "CAP_SYS_ADMIN"},
	{38, "CAP_PERFMON"}, {39, "CAP_BPF"},
}

// ReadHost looks at the host. What cannot be read is left out.
func ReadHost() Host {
	h := Host{Arch: runtime.GOARCH, LSM: []string{}, Capabilities: []string{}}
	h.Kernel = kernelRelease()
	if _, err := os.Stat("/sys/kernel/btf/vmlinux"); err == nil {
		h.BTF = true
	}
	if b, err := os.ReadFile("/sys/kernel/security/lsm"); err == nil {
		h.LSM = strings.Split(strings.TrimSpace(string(b)), ",")
	}
	if b, err := os.ReadFile("/sys/kernel/security/lockdown"); err == nil {
		if _, rest, ok := strings.Cut(string(b), "["); ok {
			h.Lockdown, _, _ = strings.Cut(rest, "]")
		}
	}
	if b, err := os.ReadFile("/proc/self/mounts"); err == nil {
		for s := bufio.NewScanner(bytes.NewReader(b)); s.Scan(); {
			f := strings.Fields(s.Text())
			if len(f) < 3 {
				continue
			}
			switch f[2] {
			case "cgroup2":
				if h.Cgroup2 == "" {
					h.Cgroup2 = f[1]
				}
			case "cgroup":
				h.Cgroup1 = append(h.Cgroup1, f[1])
			}
		}
	}
	var caps uint64
	if b, err := os.ReadFile("/proc/self/status"); err == nil {
		if _, rest, ok := strings.Cut(string(b), "CapEff:\t"); ok {
			line, _, _ := strings.Cut(rest, "\n")
			caps, _ = strconv.ParseUint(line, 16, 64)
		}
	}
	for _, c := range needed {
		if caps&(1<<c.bit) != 0 {
			h.Capabilities = append(h.Capabilities, c.name)
		} else {
			h.Missing = append(h.Missing, c.name)
		}
	}
	return h
}

// cgroupMounts are where the hierarchies are mounted that the kernel side takes the paths of cgroups from: version 2, and the
// memory controller's of version 1 for processes at the root of that.
func cgroupMounts() []string {
	b, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return nil
	}
	var out []string
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) > 3 && (f[2] == "cgroup2" || f[2] == "cgroup" && slices.Contains(strings.Split(f[3], ","), "memory")) {
			out = append(out, f[1])
		}
	}
	return out
}

func kernelRelease() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "unknown"
	}
	return unix.ByteSliceToString(u.Release[:])
}

// rss is the agent's resident memory in bytes, 0 when it cannot be read.
func rss() uint64 {
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0
	}
	if f := strings.Fields(string(b)); len(f) > 1 {
		n, _ := strconv.ParseUint(f[1], 10, 64)
		return n * uint64(os.Getpagesize())
	}
	return 0
}
