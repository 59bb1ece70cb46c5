package main

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/pavise-project/pavise"
	"github.com/pavise-project/pavise/agent"
	"github.com/pavise-project/pavise/policy"
)

// TestLibrary judges the cases of policies/NAME/testdata/cases.txt, and of policies/examples: each line is an act, and the rule that tells of it, or -.
//
//	open EXE PATH r|w [fact...] => RULE
//	exec EXE PATH [fact...] => RULE
//	connect EXE ADDRESS PORT [fact...] => RULE
//	send EXE ADDRESS PORT [fact...] => RULE
//	accept EXE LOCAL-ADDRESS LOCAL-PORT [fact...] => RULE
//	OPERATION EXE PATH|- [fact...] => RULE    of an operation that is not net.*
//
// Facts are r, w (file.access), new=PATH, name=TEXT, value=N, value2=N (as pavise.ActInfo says), target=PATH, target-user=ID, script=PATH, user=ID, time=DAY:HH:MM, cgroup=PATH, unit=NAME, parent=PATH (the nearest first), interface=NAME, tty, netns (the machine's network namespace), deleted, memfd and dgram. The exe is the actor's, and
// the path of exec is the new program's.
func TestLibrary(t *testing.T) {
	var files []string
	for _, dir := range []string{"*", "examples/*"} {
		fs, err := filepath.Glob(filepath.Join("..", "..", "policies", dir, "testdata", "cases.txt"))
		if err != nil || len(fs) < 2 {
			t.Fatalf("%d files of cases in %s, %v", len(fs), dir, err)
		}
		files = append(files, fs...)
	}
	for _, name := range files {
		dir := filepath.Dir(filepath.Dir(name))
		t.Run(filepath.Base(dir), func(t *testing.T) {
			ps, err := agent.LoadPolicies([]string{filepath.Join(dir, "policy.yaml")})
			if err != nil {
				t.Fatal(err)
			}
			img, _, err := policy.Compile(ps, agent.AnyMachine())
			if err != nil {
				t.Fatal(err)
			}
			if len(img.Automata) == 0 {
				t.Skip("the compiler that was built in makes no tables")
			}
			f, err := os.Open(name)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			told := map[string]bool{}
			for n, s := 1, bufio.NewScanner(f); s.Scan(); n++ {
				act, want, ok := strings.Cut(s.Text(), " => ")
				if !ok {
					if l := strings.TrimSpace(s.Text()); l != "" && !strings.HasPrefix(l, "#") {
						t.Errorf("%s:%d: no => in it", name, n)
					}
					continue
				}
				got, err := judge(img, strings.Fields(act))
				if err != nil {
					t.Errorf("%s:%d: %v", name, n, err)
				} else if got != strings.TrimSpace(want) {
					t.Errorf("%s:%d: %s: told by %s, want %s", name, n, act, got, want)
				}
				told[got] = true
			}
			for _, r := range img.Rules {
				if !told[r.Name] {
					t.Errorf("%s: no case for rule %s", name, r.Name)
				}
			}
		})
	}
}

// TestJudge holds the acts that the library does not use yet.
func TestJudge(t *testing.T) {
	const src = `apiVersion: pavise.dev/v1alpha1
kind: Policy
metadata: {name: p}
spec:
  rules:
  - {name: rename, on: [file.rename], when: file.new_path.under("/etc") && file.path.under("/tmp"), action: audit}
  - {name: modules, on: [kernel.module], when: module.source == "request" && module.name == "dccp" && file.path == "", action: audit}
  - {name: kill, on: [process.signal], when: signal == "SIGKILL" && target.exe.name == "sshd" && target.user.id == 5, action: audit}
  - {name: device, on: [device.open], when: device.major == 8 && device.minor == 1 && file.access.write, action: audit}
`
	ps, err := policy.Parse("p", []byte(src))
	if err != nil {
		t.Fatal(err)
	}
	img, _, err := policy.Compile(ps, agent.AnyMachine())
	if err != nil {
		t.Fatal(err)
	}
	for act, want := range map[string]string{
		"file.rename /bin/mv /tmp/x new=/etc/x":                                    "rename",
		"file.rename /bin/mv /etc/x new=/tmp/x":                                    "-",
		"kernel.module /bin/x - value=3 name=dccp":                                 "modules",
		"kernel.module /bin/x - value=1 name=dccp":                                 "-",
		"process.signal /bin/kill - value=9 target=/usr/sbin/sshd target-user=5":   "kill",
		"process.signal /bin/kill - value=9 target=/usr/sbin/sshd target-user=256": "-",
		"device.open /bin/dd /dev/sda1 w value=8 value2=1":                         "device",
		"device.open /bin/dd /dev/sda1 r value=8 value2=1":                         "-",
	} {
		if got, err := judge(img, strings.Fields(act)); err != nil || got != want {
			t.Errorf("%s: %s, %v; want %s", act, got, err, want)
		}
	}
	for _, act := range []string{"net.bind /bin/x -", "process.fork /bin/x -", "device.open /bin/dd /dev/sda1 value=x"} {
		if _, err := judge(img, strings.Fields(act)); err == nil {
			t.Errorf("%s is an act", act)
		}
	}
}

// judge is what the kernel and the agent do with an act: the name of the rule that tells of it, or -.
func judge(img *policy.Image, act []string) (string, error) {
	if len(act) < 3 {
		return "", fmt.Errorf("too short: %q", act)
	}
	var f policy.Facts
	e := &pavise.Event{Process: &pavise.Process{Exe: pavise.FileInfo{Path: act[1]}}}
	set := func(d policy.Dim, b ...byte) { f.Values[d] = b }
	f.Values[policy.DimExe] = []byte(act[1])
	set(policy.DimUID, 0, 0, 0, 0)
	set(policy.DimGID, 0, 0, 0, 0)
	set(policy.DimOwner, 0, 0, 0, 0)
	set(policy.DimLogin, 0xff, 0xff, 0xff, 0xff)
	set(policy.DimCaps, 0, 0, 0, 0, 0, 0, 0, 0)
	f.Values[policy.DimCgroup] = []byte("/user.slice")
	var procFlags, fileFlags byte
	typ, rest := byte(1), act[3:]
	switch act[0] {
	case "open":
		e.Op, e.File.Access = pavise.OpOpen, pavise.AccessRead
		if len(rest) == 0 {
			return "", fmt.Errorf("open: no access")
		}
		if rest[0] == "w" {
			e.File.Access = pavise.AccessWrite
		}
		rest = rest[1:]
	case "exec":
		e.Op, e.File.Access = pavise.OpExec, pavise.AccessExec
	case "connect", "send", "accept":
		e.Op = map[string]pavise.Op{"connect": pavise.OpConnect, "send": pavise.OpSend, "accept": pavise.OpAccept}[act[0]]
		addr, err := netip.ParseAddr(act[2])
		if err != nil {
			return "", err
		}
		if len(rest) == 0 {
			return "", fmt.Errorf("%s: no port", act[0])
		}
		port, err := strconv.ParseUint(rest[0], 10, 16)
		if err != nil {
			return "", err
		}
		rest = rest[1:]
		e.Net.Family, e.Net.Type = 10, 1
		if addr.Is4() {
			e.Net.Family = 2
		}
		addr16 := addr.As16()
		if e.Op == pavise.OpAccept {
			e.Net.Local, e.Net.LocalPort = addr16, uint16(port)
			set(policy.DimLocalAddr, addr16[:]...)
			f.Values[policy.DimLocalPort] = binary.BigEndian.AppendUint16(nil, uint16(port))
			break
		}
		e.Net.Remote, e.Net.RemotePort = addr16, uint16(port)
		set(policy.DimRemoteAddr, addr16[:]...)
		f.Values[policy.DimRemotePort] = binary.BigEndian.AppendUint16(nil, uint16(port))
	default:
		if i := slices.Index(pavise.OpNames[:], act[0]); i > 0 && i < int(pavise.OpFork) && !pavise.Op(i).OnSocket() {
			e.Op = pavise.Op(i)
			break
		}
		return "", fmt.Errorf("no act %q", act[0])
	}
	if !e.Op.OnSocket() && act[2] != "-" {
		e.File.Path, e.File.Mode, e.File.FS = act[2], 0o100644, "ext4"
		f.Values[policy.DimPath] = []byte(act[2])
		f.Values[policy.DimMode] = binary.BigEndian.AppendUint16(nil, e.File.Mode)
		f.Values[policy.DimFS] = []byte("ext4")
	}
	last := e.Process
	for _, fact := range rest {
		k, v, _ := strings.Cut(fact, "=")
		switch k {
		case "r":
			e.File.Access |= pavise.AccessRead
		case "w":
			e.File.Access |= pavise.AccessWrite
		case "new":
			e.Act.NewPath = v
		case "name":
			e.Act.Name = v
		case "value", "value2":
			n, err := strconv.ParseUint(v, 0, 64)
			if err != nil {
				return "", err
			}
			if k == "value" {
				e.Act.Value = n
			} else {
				e.Act.Value2 = n
			}
		case "target":
			e.Act.Target.Path = v
		case "target-user":
			n, err := strconv.ParseUint(v, 10, 32)
			if err != nil {
				return "", err
			}
			e.Act.Target.UID = uint32(n)
		case "script":
			e.Process.Script = v
			f.Values[policy.DimScript] = []byte(v)
		case "user":
			id, err := strconv.ParseUint(v, 10, 32)
			if err != nil {
				return "", err
			}
			e.Process.User.ID = uint32(id)
			f.Values[policy.DimUID] = binary.BigEndian.AppendUint32(nil, uint32(id))
		case "time":
			day, clock, _ := strings.Cut(v, ":")
			at, err := time.Parse("15:04", clock)
			d := slices.Index(strings.Fields("mon tue wed thu fri sat sun"), day)
			if err != nil || d < 0 {
				return "", fmt.Errorf("no time %q", v)
			}
			f.Values[policy.DimTime] = binary.BigEndian.AppendUint16(nil, uint16(d*24*60+at.Hour()*60+at.Minute()))
		case "cgroup":
			e.Process.Cgroup = v
			f.Values[policy.DimCgroup] = []byte(v)
		case "unit":
			e.Process.Unit = v
			f.Values[policy.DimCgroup] = []byte("/system.slice/" + v)
		case "parent":
			last.Parent = &pavise.Process{Exe: pavise.FileInfo{Path: v}}
			if last == e.Process {
				f.Values[policy.DimParentExe] = []byte(v)
			}
			f.Values[policy.DimAncestors] = append(f.Values[policy.DimAncestors], v+"\x00"...)
			last = last.Parent
		case "interface":
			e.Net.Interface = v
			f.Values[policy.DimInterface] = []byte(v)
		case "netns":
			e.Process.Namespaces.Host = 1 << slices.Index(pavise.NamespaceNames[:], "net")
			set(policy.DimNS, byte(e.Process.Namespaces.Host))
		case "tty":
			e.Process.TTY = true
			procFlags |= policy.ProcFlagTTY
		case "deleted":
			e.File.Deleted = true
			fileFlags |= policy.FileFlagDeleted
		case "memfd":
			e.File.Memfd = true
			fileFlags |= policy.FileFlagMemfd
		case "dgram":
			typ = 2
		default:
			return "", fmt.Errorf("no fact %q", fact)
		}
	}
	set(policy.DimProcFlags, procFlags)
	set(policy.DimFileFlags, fileFlags)
	set(policy.DimAccess, byte(e.File.Access))
	f.Values[policy.DimNewPath], f.Values[policy.DimName] = []byte(e.Act.NewPath), []byte(e.Act.Name)
	f.Values[policy.DimValue] = binary.BigEndian.AppendUint64(nil, e.Act.Value)
	f.Values[policy.DimValue2] = binary.BigEndian.AppendUint64(nil, e.Act.Value2)
	f.Values[policy.DimTargetExe] = []byte(e.Act.Target.Path)
	f.Values[policy.DimTargetUID] = binary.BigEndian.AppendUint32(nil, e.Act.Target.UID)
	if e.Op.OnSocket() {
		e.Net.Type = typ
		e.Net.Protocol = map[byte]byte{1: 6, 2: 17}[typ]
		set(policy.DimSocket, byte(e.Net.Family), typ, e.Net.Protocol)
	}
	v := img.Judge(e.Op, &f)
	for _, id := range v.Rules {
		if id == policy.NoRule {
			break
		}
		r := img.Rules[id]
		if r.Residual != nil {
			if ok, err := r.Residual.Eval(e); err != nil || !ok {
				continue
			}
		}
		return r.Name, nil
	}
	return "-", nil
}
