package vmtest

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
)

// initScript makes the shared root writable (in memory) and hands over to the guest script.
// Everything it mounts is what a systemd machine has.
const initScript = `#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /share /over /new
/bin/busybox --install -s /bin
fail() { echo "vmtest: $*"; poweroff -f; }
mount -t devtmpfs dev /dev || fail no devtmpfs
mount -t proc proc /proc && mount -t sysfs sys /sys || fail no proc or sys
for m in /modules/*.ko; do [ ! -e "$m" ] || insmod "$m" || fail "insmod $m"; done
mount -t virtiofs root /share || fail no shared root
mount -t tmpfs over /over && mkdir /over/up /over/work || fail no tmpfs
mount -t overlay -o lowerdir=/share,upperdir=/over/up,workdir=/over/work root /new || fail no overlay
. /config
mount -t tmpfs -o mode=755 run /new/run && mkdir /new/run/vmtest /new/run/lock && mkdir -m 1777 /new/run/tmp || fail no /run
mount --bind "/share$VMTEST_DIR" /new/run/vmtest || fail "no $VMTEST_DIR in the shared root"
mkdir -p "/new/usr/lib/modules/$VMTEST_RELEASE"
mount --bind "/share$VMTEST_KERNEL/usr/lib/modules/$VMTEST_RELEASE" "/new/usr/lib/modules/$VMTEST_RELEASE" || fail no modules
mkdir -p /dev/pts /dev/shm
mount -t devpts -o mode=620,ptmxmode=666 devpts /dev/pts
mount -t tmpfs -o mode=1777 shm /dev/shm
mount -t cgroup2 cgroup2 /sys/fs/cgroup || fail no cgroup2
mount -t bpf -o mode=700 bpf /sys/fs/bpf || fail no bpffs
mount -t debugfs debug /sys/kernel/debug
mount -t tracefs trace /sys/kernel/tracing || fail no tracefs
mount -t securityfs security /sys/kernel/security || fail no securityfs
ip link set lo up || fail no loopback
hostname pavise-vm
for d in dev proc sys; do mount --move /$d /new/$d || fail "move /$d"; done
exec switch_root /new /bin/sh /run/vmtest/guest
`

// guestScript runs the command as a child of process 1. The kernel's console stays out of its output.
const guestScript = `echo booted >/run/vmtest/booted
/bin/sh /run/vmtest/command >/run/vmtest/output 2>&1 </dev/null
echo $? >/run/vmtest/status.new
mv /run/vmtest/status.new /run/vmtest/status
echo o >/proc/sysrq-trigger
while :; do sleep 1; done
`

// bootModules are what the root file system needs, in the order of their dependencies. A kernel
// that lacks the file has it built in.
var bootModules = []string{
	"drivers/virtio/virtio", "drivers/virtio/virtio_ring", "drivers/virtio/virtio_pci_modern_dev",
	"drivers/virtio/virtio_pci_legacy_dev", "drivers/virtio/virtio_pci",
	"fs/fuse/fuse", "fs/fuse/virtiofs", "fs/overlayfs/overlay",
}

// initramfs makes the archive that the kernel unpacks at boot; config is sourced by the init script.
func initramfs(k Kernel, config string) ([]byte, error) {
	busybox, err := staticBusybox()
	if err != nil {
		return nil, err
	}
	var a archive
	for _, dir := range []string{"bin", "modules"} {
		a.add(dir, 0o040755, nil)
	}
	a.add("bin/busybox", 0o100755, busybox)
	a.add("init", 0o100755, []byte(initScript))
	a.add("config", 0o100644, []byte(config))
	for i, name := range bootModules {
		path := filepath.Join(k.Dir, "usr/lib/modules", k.Release, "kernel", name+".ko")
		data, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			if _, err := os.Stat(path + ".xz"); errors.Is(err, fs.ErrNotExist) {
				continue
			}
			data, err = exec.Command("xz", "-dc", path+".xz").Output()
		}
		if err != nil {
			return nil, fmt.Errorf("read module %s: %w", name, err)
		}
		a.add(fmt.Sprintf("modules/%02d-%s.ko", i, filepath.Base(name)), 0o100644, data)
	}
	a.add("TRAILER!!!", 0, nil)
	return a.buf.Bytes(), nil
}

func staticBusybox() ([]byte, error) {
	const path = "/bin/busybox"
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read busybox (run make deps; Debian package busybox-static): %w", err)
	}
	f, err := elf.NewFile(bytes.NewReader(data))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return nil, fmt.Errorf("%s is linked dynamically: run make deps (Debian package busybox-static)", path)
		}
	}
	return data, nil
}

// archive is a cpio archive of the "newc" kind, see the kernel's
// Documentation/driver-api/early-userspace/buffer-format.rst.
type archive struct {
	buf   bytes.Buffer
	inode int
}

func (a *archive) add(name string, mode int, data []byte) {
	a.inode++
	fmt.Fprintf(&a.buf, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		a.inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name)+1, 0, name)
	a.pad()
	a.buf.Write(data)
	a.pad()
}

func (a *archive) pad() {
	for a.buf.Len()%4 != 0 {
		a.buf.WriteByte(0)
	}
}
