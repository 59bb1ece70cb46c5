package convert

import (
	"encoding/binary"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/pavise-project/pavise"
	"github.com/pavise-project/pavise/policy"
)

var update = flag.Bool("update", false, "write what is got to testdata")

const (
	caseSep   = "==========\n"
	resultSep = "----------\n"
)

// TestData runs testdata/*.txt: a source, the policies and findings that it becomes, and, optionally, acts with what the
// policies say of them. A first line "# options: enforce subject=CEL" gives options.
func TestData(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal("no test data", err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			var out []string
			for i, c := range strings.Split(string(data), caseSep) {
				src, rest, ok := strings.Cut(c, resultSep)
				want, acts, hasActs := strings.Cut(rest, resultSep)
				if !ok && !*update {
					t.Fatalf("case %d has no result", i+1)
				}
				got, img := converted(t, src)
				if got != want && !*update {
					t.Errorf("case %d:\n%s\ngot:\n%s\nwant:\n%s", i+1, src, got, want)
				}
				out = append(out, src+resultSep+got)
				if hasActs {
					judged := judgeAll(t, img, acts)
					if judged != acts && !*update {
						t.Errorf("case %d: got:\n%s\nwant:\n%s", i+1, judged, acts)
					}
					out[len(out)-1] += resultSep + judged
				}
			}
			if *update {
				if err := os.WriteFile(file, []byte(strings.Join(out, caseSep)), 0o644); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// converted is what becomes of src, in words and as tables.
func converted(t *testing.T, src string) (string, *policy.Image) {
	t.Helper()
	var opt Options
	if line, _, _ := strings.Cut(src, "\n"); strings.HasPrefix(line, "# options: ") {
		line, opt.Subject, _ = strings.Cut(line, " subject=")
		opt.Enforce, opt.Containers = strings.Contains(line, "enforce"), strings.Contains(line, "containers")
	}
	res, err := Convert([]File{{"in.yaml", []byte(src)}}, opt)
	if err != nil {
		return err.Error() + "\n", nil
	}
	var b strings.Builder
	b.WriteString(res.YAML())
	for i := range res.Findings {
		fmt.Fprintf(&b, "> %s [%s %s]\n", res.Findings[i].String(), res.Findings[i].Policy, res.Findings[i].Rule)
	}
	if len(res.Policies) == 0 {
		return b.String(), nil
	}
	ps, err := policy.Parse("out.yaml", []byte(res.YAML()))
	if err != nil {
		t.Fatalf("the converted policies do not parse: %v\n%s", err, b.String())
	}
	if len(ps) != len(res.Policies) {
		t.Fatalf("%d policies instead of %d", len(ps), len(res.Policies))
	}
	img, _, err := policy.Compile(ps, podMachine)
	if err != nil {
		t.Fatalf("the converted policies do not compile: %v\n%s", err, b.String())
	}
	return b.String(), img
}

func judgeAll(t *testing.T, img *policy.Image, acts string) string {
	t.Helper()
	var b strings.Builder
	for line := range strings.Lines(acts) {
		act, _, _ := strings.Cut(strings.TrimSpace(line), " =>")
		if act == "" {
			continue
		}
		said, err := judge(img, strings.Fields(act))
		if err != nil {
			t.Fatalf("%s: %v", act, err)
		}
		fmt.Fprintf(&b, "%s => %s\n", act, said)
	}
	return b.String()
}

// pods are there when policies are judged: by name, their namespace and labels. Their containers have the same labels.
var pods = map[string]pavise.Pod{
	"web":   {Namespace: "default", Labels: map[string]string{"app": "web"}},
	"db":    {Namespace: "default", Labels: map[string]string{"app": "db", "role": "store"}},
	"empty": {Namespace: "default", Labels: map[string]string{"app": ""}},
	"bare":  {Namespace: "default"},
	"other": {Namespace: "other", Labels: map[string]string{"app": "web"}},
}

var podMachine = func() *policy.Machine {
	var list []policy.Container
	for name, pod := range pods {
		pod.Name = name
		list = append(list, policy.Container{Cgroup: "/kubepods.slice/" + name, Pod: &pod,
			Container: &pavise.Container{ID: strings.Repeat("ab", 32), Name: name, Labels: pod.Labels}})
	}
	return machine.WithContainers(list)
}()

// judge says what the policies do to an act: an operation, its object, and facts as key=value. The facts of sockets: tcp, udp, raw,
// unix, local; of opening: read, write, exec, create, truncate; of others value, value2, name and new, as pavise.ActInfo says.
func judge(img *policy.Image, act []string) (string, error) {
	if img == nil {
		return "", fmt.Errorf("there are no policies")
	}
	if len(act) < 2 {
		return "", fmt.Errorf("want an operation and an object")
	}
	p := &pavise.Process{Exe: pavise.FileInfo{Path: "/usr/bin/any"}, Cgroup: "/user.slice"}
	e := &pavise.Event{Process: p}
	for op, name := range pavise.OpNames {
		if name == act[0] {
			e.Op = pavise.Op(op) //nolint:gosec // few
		}
	}
	if e.Op == pavise.OpNone {
		return "", fmt.Errorf("no operation %q", act[0])
	}
	if e.Op.OnSocket() {
		e.Net.Family, e.Net.Type, e.Net.Protocol = 2, 1, 6
		if act[1] != "-" {
			at, err := netip.ParseAddrPort(act[1])
			if err != nil {
				return "", err
			}
			if at.Addr().Is6() {
				e.Net.Family = 10
			}
			if e.Op == pavise.OpBind || e.Op == pavise.OpListen {
				e.Net.Local, e.Net.LocalPort = at.Addr().As16(), at.Port()
			} else {
				e.Net.Remote, e.Net.RemotePort = at.Addr().As16(), at.Port()
			}
		}
	} else {
		e.File = pavise.FileInfo{Path: act[1], Mode: 0o100644, FS: "ext4"}
		if e.Op == pavise.OpExec {
			e.File.Access = pavise.AccessExec
		}
	}
	for _, fact := range act[2:] {
		key, val, _ := strings.Cut(fact, "=")
		n, _ := strconv.ParseUint(val, 0, 32)
		switch key {
		case "exe":
			p.Exe.Path = val
		case "parent":
			p.Parent = &pavise.Process{Exe: pavise.FileInfo{Path: val}}
		case "grandparent":
			p.Parent.Parent = &pavise.Process{Exe: pavise.FileInfo{Path: val}}
		case "uid":
			p.User.ID = uint32(n) //nolint:gosec // 32 bits
		case "owner":
			e.File.Owner = uint32(n) //nolint:gosec // 32 bits
		case "cap":
			for i, name := range pavise.CapNames {
				if name == val {
					p.Caps |= 1 << i
				}
			}
		case "pid":
			p.PID = uint32(n) //nolint:gosec // 32 bits
		case "container":
			id := strings.Repeat("ab", 32)
			p.Cgroup = "/system.slice/docker-" + id + ".scope"
			p.Container = &pavise.Container{ID: id, Name: val, Labels: map[string]string{}}
		case "unit":
			p.Unit, p.Cgroup = val, "/system.slice/"+val
		case "pod":
			p.Cgroup = "/kubepods.slice/" + val + "/" + strings.Repeat("ab", 32)
		case "local":
			at, err := netip.ParseAddrPort(val)
			if err != nil {
				return "", err
			}
			e.Net.Local, e.Net.LocalPort = at.Addr().As16(), at.Port()
		case "namespace":
			p.Container.Labels["io.kubernetes.pod.namespace"] = val
		case "value":
			e.Act.Value = n
		case "value2":
			e.Act.Value2 = n
		case "name":
			e.Act.Name = val
		case "new":
			e.Act.NewPath = val
		case "memfd":
			e.File.Memfd = true
		case "dir":
			e.File.Mode = 0o040755
		case "tcp", "udp", "raw", "unix":
			kind := map[string][3]uint8{"tcp": {2, 1, 6}, "udp": {2, 2, 17}, "raw": {2, 3, 1}, "unix": {1, 1, 0}}[key]
			if key == "unix" || e.Net.Family != 10 {
				e.Net.Family = uint16(kind[0])
			}
			e.Net.Type, e.Net.Protocol = kind[1], kind[2]
		case "read", "write", "exec", "create", "truncate", "append":
			for i, name := range pavise.AccessNames {
				if name == key {
					e.File.Access |= 1 << i
				}
			}
		default:
			return "", fmt.Errorf("no fact %q", fact)
		}
	}
	v := img.Judge(e.Op, facts(e))
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
		mode := "enforced"
		if r.Monitor {
			mode = "monitored"
		}
		if r.Action == pavise.ActionAudit {
			return fmt.Sprintf("audit by %s/%s", r.Policy, r.Name), nil
		}
		return fmt.Sprintf("%s (%s) by %s/%s", r.Action, mode, r.Policy, r.Name), nil
	}
	return "nothing", nil
}

// facts are what the kernel would hand to the engine for e.
func facts(e *pavise.Event) *policy.Facts {
	f, be, p := &policy.Facts{}, binary.BigEndian, e.Process
	u32 := func(n uint32) []byte { return be.AppendUint32(nil, n) }
	f.Values[policy.DimExe], f.Values[policy.DimCgroup] = []byte(p.Exe.Path), []byte(p.Cgroup)
	if p.Parent != nil {
		f.Values[policy.DimParentExe] = []byte(p.Parent.Exe.Path)
	}
	f.Values[policy.DimUID], f.Values[policy.DimGID], f.Values[policy.DimLogin] = u32(p.User.ID), u32(0), u32(0xffffffff)
	f.Values[policy.DimCaps] = be.AppendUint64(nil, p.Caps)
	f.Values[policy.DimProcFlags] = []byte{0}
	for a := p.Parent; a != nil; a = a.Parent {
		f.Values[policy.DimAncestors] = append(append(f.Values[policy.DimAncestors], a.Exe.Path...), 0)
	}
	f.Values[policy.DimNS] = []byte{0} // in a container; outside of one all are the machine's own
	if p.Container == nil {
		f.Values[policy.DimNS][0] = 1<<len(pavise.NamespaceNames) - 1
	}
	if e.Op.OnSocket() {
		f.Values[policy.DimSocket] = []byte{byte(e.Net.Family), e.Net.Type, e.Net.Protocol}
		if e.Net.Family == 2 || e.Net.Family == 10 {
			f.Values[policy.DimRemoteAddr], f.Values[policy.DimLocalAddr] = e.Net.Remote[:], e.Net.Local[:]
			f.Values[policy.DimRemotePort], f.Values[policy.DimLocalPort] = be.AppendUint16(nil, e.Net.RemotePort), be.AppendUint16(nil, e.Net.LocalPort)
		}
		return f
	}
	f.Values[policy.DimPath], f.Values[policy.DimFS], f.Values[policy.DimOwner] = []byte(e.File.Path), []byte(e.File.FS), u32(e.File.Owner)
	f.Values[policy.DimAccess], f.Values[policy.DimMode] = []byte{byte(e.File.Access)}, be.AppendUint16(nil, e.File.Mode)
	f.Values[policy.DimFileFlags] = []byte{0}
	if e.File.Memfd {
		f.Values[policy.DimFileFlags] = []byte{policy.FileFlagMemfd}
	}
	f.Values[policy.DimValue], f.Values[policy.DimValue2] = be.AppendUint64(nil, e.Act.Value), be.AppendUint64(nil, e.Act.Value2)
	f.Values[policy.DimName], f.Values[policy.DimNewPath] = []byte(e.Act.Name), []byte(e.Act.NewPath)
	return f
}
