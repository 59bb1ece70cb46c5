package proc

import (
	"strings"
	"testing"
)

func TestParseCgroup(t *testing.T) {
	id := "3f4d8a1b" + strings.Repeat("0a1b2c3d", 7)
	for _, c := range []struct{ path, unit, id, runtime string }{
		// v2: plain units.
		{"/", "", "", ""},
		{"", "", "", ""},
		{"/init.scope", "init.scope", "", ""},
		{"/system.slice/nginx.service", "nginx.service", "", ""},
		{"/system.slice/system-getty.slice/getty@tty1.service", "getty@tty1.service", "", ""},
		{"/system.slice/dev-hugepages.mount", "dev-hugepages.mount", "", ""},
		{"/system.slice/docker.socket", "docker.socket", "", ""},
		{"/system.slice/dev-sda2.swap", "dev-sda2.swap", "", ""},
		{"/user.slice/user-1000.slice/session-3.scope", "session-3.scope", "", ""},
		{"/user.slice/user-1000.slice/user@1000.service/app.slice/app-org.gnome.Terminal.slice/vte-spawn-1.scope", "user@1000.service", "", ""},
		{"/system.slice/ssh.service/child", "ssh.service", "", ""},
		{"/plain/deeper.service", "", "", ""},
		{"/.service", "", "", ""},
		// v2: containers.
		{"/system.slice/docker-" + id + ".scope", "docker-" + id + ".scope", id, "docker"},
		{"/docker/" + id, "", id, "docker"},
		{"/docker/" + id + "/init", "", id, "docker"},
		{"/docker/buildkit/" + id, "", id, "docker"},
		{"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod0c6a2f1e_93e7_4f55.slice/cri-containerd-" + id + ".scope", "cri-containerd-" + id + ".scope", id, "containerd"},
		{"/kubepods.slice/kubepods-pod0c6a.slice/crio-" + id + ".scope", "crio-" + id + ".scope", id, "crio"},
		{"/kubepods.slice/kubepods-pod0c6a.slice/crio-" + id + ".scope/container", "crio-" + id + ".scope", id, "crio"},
		{"/kubepods.slice/kubepods-pod0c6a.slice/crio-conmon-" + id + ".scope", "crio-conmon-" + id + ".scope", "", ""},
		{"/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod1.slice/docker-" + id + ".scope", "docker-" + id + ".scope", id, "docker"},
		{"/kubepods/burstable/pod0c6a2f1e-93e7/" + id, "", id, "containerd"},
		{"/kubelet/kubepods/besteffort/pod1/" + id, "", id, "containerd"},
		{"/system.slice/containerd.service/kubepods-besteffort-pod1.slice:cri-containerd:" + id, "containerd.service", id, "containerd"},
		{"/machine.slice/libpod-" + id + ".scope", "libpod-" + id + ".scope", id, "podman"},
		{"/machine.slice/libpod-" + id + ".scope/container", "libpod-" + id + ".scope", id, "podman"},
		{"/machine.slice/libpod-conmon-" + id + ".scope", "libpod-conmon-" + id + ".scope", "", ""},
		{"/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-" + id + ".scope/container", "user@1000.service", id, "podman"},
		{"/libpod_parent/libpod-" + id, "", id, "podman"},
		{"/system.slice/web.service/libpod-payload-" + id, "web.service", id, "podman"},
		{"/system.slice/nerdctl-" + id + ".scope", "nerdctl-" + id + ".scope", id, "containerd"},
		{"/k8s.io/" + id, "", id, "containerd"},
		{"/default/" + id, "", id, ""},
		// Docker in Docker: the inner one.
		{"/docker/" + strings.Repeat("a", 64) + "/docker/" + id, "", id, "docker"},
		// kind: a node in Docker, its kubelet in systemd, a pod in it.
		{"/system.slice/docker-" + strings.Repeat("b", 64) + ".scope/kubelet.slice/kubelet-kubepods.slice/cri-containerd-" + id + ".scope", "docker-" + strings.Repeat("b", 64) + ".scope", id, "containerd"},
		// LXC, Incus, nspawn, and a virtual machine, which is none.
		{"/lxc/web1", "", "web1", "lxc"},
		{"/lxc/web1/system.slice/ssh.service", "", "web1", "lxc"},
		{"/lxc.payload.web1/system.slice/cron.service", "", "web1", "lxc"},
		{"/lxc.payload/web1", "", "web1", "lxc"},
		{"/lxc.monitor.web1", "", "", ""},
		{`/machine.slice/machine-debian\x2dtest.scope`, `machine-debian\x2dtest.scope`, "debian-test", "systemd-nspawn"},
		{`/machine.slice/machine-deb.scope/payload/system.slice/cron.service`, `machine-deb.scope`, "deb", "systemd-nspawn"},
		{"/machine.slice/systemd-nspawn@deb.service/payload", "systemd-nspawn@deb.service", "deb", "systemd-nspawn"},
		{`/machine.slice/machine-qemu\x2d1\x2dvm.scope/libvirt/emulator`, `machine-qemu\x2d1\x2dvm.scope`, "", ""},
		// v1 and hybrid, as in /proc/PID/cgroup.
		{"name=systemd:/system.slice/cron.service", "cron.service", "", ""},
		{"1:name=systemd:/docker/" + id, "", id, "docker"},
		{"4:memory:/system.slice/docker-" + id + ".scope", "docker-" + id + ".scope", id, "docker"},
		{"0::/system.slice/containerd.service", "containerd.service", "", ""},
		{"11:cpu,cpuacct:/kubepods/pod0c6a/" + id, "", id, "containerd"},
		// Not ids.
		{"/docker/" + id[:63], "", "", ""},
		{"/docker/" + strings.ToUpper(id), "", "", ""},
		{"/docker/" + id + "0", "", "", ""},
		{"/system.slice/docker-" + id + "x.scope", "docker-" + id + "x.scope", "", ""},
	} {
		unit, got := ParseCgroup(c.path)
		gotID, gotRuntime := "", ""
		if got != nil {
			gotID, gotRuntime = got.ID, got.Runtime
		}
		if unit != c.unit || gotID != c.id || gotRuntime != c.runtime {
			t.Errorf("%s: got %q %q %q, want %q %q %q", c.path, unit, gotID, gotRuntime, c.unit, c.id, c.runtime)
		}
	}
}

func FuzzParseCgroup(f *testing.F) {
	f.Add("/system.slice/docker-x.scope")
	f.Add(`/machine.slice/machine-\x2.scope`)
	f.Fuzz(func(t *testing.T, path string) {
		if _, c := ParseCgroup(path); c != nil && c.ID == "" {
			t.Error("a container without an id")
		}
	})
}
