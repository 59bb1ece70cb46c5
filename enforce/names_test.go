package enforce

import (
	"strings"
	"testing"
)

const mountinfo = `22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
23 22 0:21 / /proc rw - proc proc rw
30 22 254:0 /etc /mnt/etc rw - ext4 /dev/vda rw
31 22 254:0 / /mnt/again rw - ext4 /dev/vda rw
40 22 8:1 / /media/a\040b\011c rw - vfat /dev/sda1 rw
41 22 9:1 / /` + "\x00" + ` rw
42 22 x:1 / /bad rw
43 22
`

func TestParseMounts(t *testing.T) {
	got := map[uint32]string{}
	for dev, m := range parseMounts(mountinfo + "44 22 10:1 / /" + strings.Repeat("x", 300) + " rw\n") {
		got[dev] = string(m.Path[:m.Len])
		if dev == 254<<20 && m.MntId != 22 {
			t.Errorf("the root's mount is %d, want the first one, 22", m.MntId)
		}
	}
	want := map[uint32]string{254 << 20: "/", 21: "/proc", 8<<20 | 1: "/media/a b\tc", 9<<20 | 1: "/\x00"}
	for dev, p := range want {
		if got[dev] != p {
			t.Errorf("device %#x: got %q, want %q", dev, got[dev], p)
		}
		delete(got, dev)
	}
	if len(got) > 0 {
		t.Errorf("more than was asked for: %v", got)
	}
}

func FuzzParseMounts(f *testing.F) {
	f.Add(mountinfo)
	f.Fuzz(func(t *testing.T, s string) {
		for _, m := range parseMounts(s) {
			if m.Len > maxName {
				t.Errorf("length %d", m.Len)
			}
		}
	})
}
