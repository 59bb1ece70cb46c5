package learn

import (
	"cmp"
	"path"
	"regexp"
	"slices"
	"strings"
	"unicode"
)

// This file generalises paths: to a directory, or a glob, where a person would, and never over a place that intruders want.

// A pattern is some paths, or one value, and what was seen of them.
type pattern struct {
	kind  kind
	text  string // a path, a directory or a glob
	acts  []*Act
	paths int // how many different ones were seen
}

type kind int

const (
	exact kind = iota
	under
	glob
)

const (
	manyFiles = 4 // so many files of a directory stand for all of it
	manyDirs  = 3 // so many directories with something in them stand for the one above
)

// guarded are directories that are never taken as a whole, since of what is in them, one thing is not like the other: the top of the tree, where
// programs are, and the places of secrets and of persistence. What is below them may be, unless it stands here too.
var guarded = []string{
	"/", "/bin", "/boot", "/dev", "/dev/shm", "/etc", "/home", "/media", "/mnt", "/opt", "/proc", "/root", "/run", "/run/user", "/sbin", "/srv", "/sys", "/tmp", "/usr",
	"/usr/bin", "/usr/lib/systemd", "/usr/lib/systemd/*", "/usr/lib/udev", "/usr/libexec", "/usr/local", "/usr/local/bin", "/usr/local/sbin", "/usr/sbin", "/usr/share", "/var", "/var/cache", "/var/lib",
	"/var/log", "/var/opt", "/var/run", "/var/spool", "/var/tmp", "/lib", "/lib32", "/lib64", "/usr/lib", "/usr/lib32", "/usr/lib64", "/usr/local/lib", "/usr/local/share", "/usr/local/etc",
	"/etc/cron.d", "/etc/cron.daily", "/etc/cron.hourly", "/etc/cron.monthly", "/etc/cron.weekly", "/var/spool/cron", "/var/spool/cron/crontabs", "/etc/init.d", "/etc/ld.so.conf.d", "/etc/modules-load.d",
	"/etc/pam.d", "/etc/profile.d", "/etc/security", "/etc/ssh", "/etc/ssl", "/etc/ssl/private", "/etc/sudoers.d", "/etc/systemd", "/etc/systemd/*", "/etc/udev", "/etc/udev/rules.d", "/etc/update-motd.d",
	"/etc/apt", "/etc/apt/*", "/etc/kubernetes", "/etc/wireguard", "/home/*", "/home/*/.*", "/root/.*", "/home/*/.config", "/home/*/.config/*", "/home/*/.config/systemd/user", "/root/.config/*", "/root/.config/systemd/user", "/proc/[0-9]*", "/proc/sys", "/proc/sys/*", "/var/lib/kubelet",
	"/var/lib/private", "/var/log/private", "/sys/fs", "/sys/fs/cgroup", "/sys/kernel", "/sys/kernel/*", "/dev/disk", "/run/secrets", "/run/systemd", "/run/systemd/*",
}

// system are the directories that programs read all the time, and from which the loader takes libraries: reading there tells nothing of a program.
var system = []string{
	"/lib", "/lib32", "/lib64", "/usr/lib", "/usr/lib32", "/usr/lib64", "/usr/share/zoneinfo", "/usr/share/locale", "/usr/share/i18n", "/usr/share/terminfo", "/usr/share/mime",
	"/usr/share/ca-certificates", "/etc/ssl/certs",
}

// temporary are directories in which a name is the choice of the program that made it, and another one the next time.
var temporary = []string{"/tmp", "/var/tmp", "/dev/shm"}

var (
	uuid   = regexp.MustCompile(`[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}`)
	hex    = regexp.MustCompile(`[0-9a-f]{12,}|[0-9A-F]{12,}`)
	digits = regexp.MustCompile(`^[0-9]+$`)
	number = regexp.MustCompile(`^[a-z._-]*[a-z_.-]([0-9]{2,})$`)
	tail   = regexp.MustCompile(`[A-Za-z0-9]{6,}$`)
)

// inDir reports whether p is dir or below it.
func inDir(p, dir string) bool {
	return p == dir || strings.HasPrefix(p, dir) && (dir == "/" || p[len(dir)] == '/')
}

func inAny(p string, dirs []string) string {
	for _, d := range dirs {
		if inDir(p, d) {
			return d
		}
	}
	return ""
}

// guards reports whether a directory must not be taken as a whole; it may be a glob.
func guards(dir string) bool {
	return slices.ContainsFunc(guarded, func(g string) bool { return sameParts(g, dir) || above(dir, g) })
}

// sameParts compares two paths by their components; those of g are globs.
func sameParts(g, dir string) bool {
	a, b := strings.Split(g, "/"), strings.Split(dir, "/")
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if ok, err := path.Match(a[i], b[i]); a[i] != b[i] && (err != nil || !ok || b[i] == "") {
			return false
		}
	}
	return true
}

// above reports whether g is below dir.
func above(dir, g string) bool {
	for i := len(g) - 1; i > 0; i-- {
		if g[i] == '/' && sameParts(g[:i], dir) {
			return true
		}
	}
	return dir == "/"
}

// escape makes a glob that means s.
func escape(s string) string {
	return strings.NewReplacer(`\`, `\\`, "*", `\*`, "?", `\?`, "[", `\[`, "]", `\]`, "{", `\{`, "}", `\}`).Replace(s)
}

// wild makes a glob of a component that will be another one the next time, and reports whether it is such. made says that the program made and removed it.
func wild(part, dir string, made bool) (string, bool) {
	switch {
	case digits.MatchString(part) && (len(part) >= 4 || dir == "/proc" || dir == "/dev/pts" || dir == "/dev/fd" || strings.HasSuffix(dir, "/fd") || strings.HasSuffix(dir, "/task")):
		return "[0-9]*", true
	case uuid.MatchString(part):
		return stars(part, uuid), true
	case hex.MatchString(part) && strings.ContainsAny(part, "0123456789") && strings.ContainsFunc(part, unicode.IsLetter):
		return stars(part, hex), true
	}
	at := tail.FindStringIndex(part)
	if !made || at == nil {
		return "", false
	}
	if n := number.FindStringSubmatchIndex(part); n != nil {
		return escape(part[:n[2]]) + "[0-9]*", true // a process id, or a count
	}
	if !strings.ContainsFunc(part[at[0]:], func(r rune) bool { return r < 'a' || r > 'z' }) {
		return "", false
	}
	if n := len(part) - 6; at[0] < n && (at[0] == 0 || !strings.ContainsRune(".-_", rune(part[at[0]-1]))) {
		at[0] = n // mkstemp's template ends with six
	}
	return escape(part[:at[0]]) + "*", true
}

// stars is part as a glob, with * for what re finds.
func stars(part string, re *regexp.Regexp) string {
	var b strings.Builder
	end := 0
	for _, at := range re.FindAllStringIndex(part, -1) {
		b.WriteString(escape(part[end:at[0]]) + "*")
		end = at[1]
	}
	return b.String() + escape(part[end:])
}

// node is a component of the tree of all paths. Its name is a glob.
type node struct {
	next map[string]*node
	acts []*Act
	seen map[string]bool // the paths that end here
}

func (n *node) add(whole string, made bool, a *Act) {
	dir := ""
	for part := range strings.SplitSeq(strings.TrimPrefix(whole, "/"), "/") {
		name, ok := wild(part, dir, made)
		if !ok {
			name = escape(part)
		}
		dir += "/" + part
		if n.next == nil {
			n.next = map[string]*node{}
		}
		if n.next[name] == nil {
			n.next[name] = &node{}
		}
		n = n.next[name]
	}
	if n.seen == nil {
		n.seen = map[string]bool{}
	}
	n.seen[whole] = true
	n.acts = append(n.acts, a)
}

// patterns are the paths at and below n, which is at the glob. whole says that directories may be taken as a whole.
func (n *node) patterns(at string, whole bool) (out []pattern) {
	if len(n.acts) > 0 {
		p := pattern{kind: glob, text: at, acts: n.acts, paths: len(n.seen)}
		if len(n.seen) == 1 && !isWild(at) {
			p.kind = exact
			for s := range n.seen {
				p.text = s
			}
		}
		out = append(out, p)
	}
	names := make([]string, 0, len(n.next))
	for name := range n.next {
		names = append(names, name)
	}
	slices.Sort(names)
	var below []pattern
	files, dirs := 0, 0
	for _, name := range names {
		c := n.next[name]
		if len(c.acts) > 0 {
			files += len(c.seen)
		}
		if len(c.next) > 0 {
			dirs++
		}
		below = append(below, c.patterns(at+"/"+name, whole)...)
	}
	if whole && (files >= manyFiles || dirs >= manyDirs) && !guards(cmp.Or(at, "/")) {
		p := pattern{kind: glob, text: at + "/*"}
		for _, b := range below {
			p.acts = append(p.acts, b.acts...)
			p.paths += b.paths
		}
		switch {
		case dirs > 0 && !isWild(at):
			p.kind, p.text = under, unescape(at)
			p.acts, p.paths = append(p.acts, n.acts...), p.paths+len(n.seen)
			return []pattern{p} // the directory itself with it
		case dirs > 0:
			p.text = at + "/**"
		default:
			p.text = at + "/" + common(names)
		}
		return append(out, p)
	}
	return append(out, below...)
}

// isWild reports whether a glob stands for more than one path.
func isWild(g string) bool {
	for i := 0; i < len(g); i++ {
		switch g[i] {
		case '\\':
			i++
		case '*', '?', '[', '{':
			return true
		}
	}
	return false
}

func unescape(g string) string {
	var b strings.Builder
	for i := 0; i < len(g); i++ {
		if g[i] == '\\' && i+1 < len(g) {
			i++
		}
		b.WriteByte(g[i])
	}
	return b.String()
}

// common is the glob for all names of a directory: with the ending that they share, when it is one.
func common(names []string) string {
	ext := ""
	for i, n := range names {
		at := strings.LastIndexByte(n, '.')
		if at <= 0 || isWild(n[at:]) {
			return "*"
		}
		if i > 0 && n[at:] != ext {
			return "*"
		}
		ext = n[at:]
	}
	return "*" + ext
}

// generalise makes patterns of the paths of acts, by pick. reads says that the acts change nothing; keep that each path stands for itself.
func generalise(acts []*Act, pick func(*Act) string, made map[string]bool, reads, keep bool) []pattern {
	var tree node
	shared := map[string]*pattern{}
	seen := map[string]bool{}
	for _, a := range acts {
		at := pick(a)
		if d := inAny(at, system); d != "" && reads && !keep {
			p := shared[d]
			if p == nil {
				p = &pattern{kind: under, text: d}
				shared[d] = p
			}
			p.acts = append(p.acts, a)
			if !seen[at] {
				p.paths++
			}
			seen[at] = true
			continue
		}
		tree.add(at, made[at] || inAny(at, temporary) != "", a)
	}
	out := tree.patterns("", !keep)
	for _, p := range shared {
		out = append(out, *p)
	}
	slices.SortFunc(out, func(a, b pattern) int {
		if a.kind != b.kind {
			return int(a.kind) - int(b.kind)
		}
		return strings.Compare(a.text, b.text)
	})
	return out
}
