package convert

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"unicode"

	"github.com/pavise-project/pavise/policy"
)

// yaml writes a policy of some of the draft's rules, with or without comments.
func (d *draft) yaml(mode policy.Mode, defaults []string, rules []*rule, comments bool) string {
	var b strings.Builder
	if comments {
		fmt.Fprintf(&b, "# %s\n", d.from())
		writeFindings(&b, "", d.all())
	}
	fmt.Fprintf(&b, "apiVersion: %s\nkind: %s\nmetadata:\n  name: %s\n", policy.APIVersion, policy.Kind, d.name)
	writeMap(&b, "labels", d.labels)
	writeMap(&b, "annotations", d.annotations)
	fmt.Fprintf(&b, "spec:\n  mode: %s\n", mode)
	if d.subject != nil {
		writeCondition(&b, "  ", "subject", d.subject)
	}
	if len(defaults) > 0 {
		b.WriteString("  default:\n")
		for _, op := range defaults {
			fmt.Fprintf(&b, "    %s: deny\n", op)
		}
	}
	if len(rules) > 0 {
		b.WriteString("  rules:\n")
	}
	for _, r := range rules {
		if comments {
			writeFindings(&b, "  ", r.findings)
		}
		fmt.Fprintf(&b, "  - name: %s\n    on: [%s]\n", r.name, strings.Join(r.on, ", "))
		if r.when != nil {
			writeCondition(&b, "    ", "when", r.when)
		}
		fmt.Fprintf(&b, "    action: %s\n", r.action)
		if r.severity != "" {
			fmt.Fprintf(&b, "    severity: %s\n", r.severity)
		}
		if r.message != "" {
			fmt.Fprintf(&b, "    message: %s\n", scalar(r.message))
		}
		if len(r.tags) > 0 {
			tags := make([]string, len(r.tags))
			for i, t := range r.tags {
				tags[i] = scalar(t)
			}
			fmt.Fprintf(&b, "    tags: [%s]\n", strings.Join(tags, ", "))
		}
	}
	return b.String()
}

// all are the findings about no rule.
func (d *draft) all() []*Finding {
	fs := d.findings[:len(d.findings):len(d.findings)]
	for _, f := range []*Finding{d.nameNote, d.allowNote} {
		if f != nil {
			fs = append(fs, f)
		}
	}
	return fs
}

// from says what the policy was made of.
func (d *draft) from() string {
	name := d.kind
	if d.source != "" {
		name += " " + strings.TrimPrefix(d.namespace+"/"+d.source, "/")
	}
	return oneLine(fmt.Sprintf("From %s (%s:%d).", name, d.at.file, d.at.n.Line))
}

func writeFindings(b *strings.Builder, indent string, fs []*Finding) {
	for _, f := range fs {
		fmt.Fprintf(b, "%s# %s\n", indent, oneLine(f.String()))
	}
}

func writeMap(b *strings.Builder, key string, m [][2]string) {
	if len(m) == 0 {
		return
	}
	fmt.Fprintf(b, "  %s:\n", key)
	for _, kv := range m {
		fmt.Fprintf(b, "    %s: %s\n", scalar(kv[0]), scalar(kv[1]))
	}
}

// plainCondition is one that YAML reads as it stands.
var plainCondition = regexp.MustCompile(`^[A-Za-z(][!-~ ]*[!-9;-~]$`)

func writeCondition(b *strings.Builder, indent, key string, c *cond) {
	ls := c.lines(lineWidth)
	if len(ls) == 1 && plainCondition.MatchString(ls[0]) && !strings.Contains(ls[0], ": ") && !strings.Contains(ls[0], " #") {
		fmt.Fprintf(b, "%s%s: %s\n", indent, key, ls[0])
		return
	}
	fmt.Fprintf(b, "%s%s: |-\n", indent, key)
	for _, l := range ls {
		fmt.Fprintf(b, "%s  %s\n", indent, l)
	}
}

var (
	plainScalar = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_./-]*( [A-Za-z0-9_./-]+)*$`)
	otherScalar = regexp.MustCompile(`(?i)^(y|yes|n|no|true|false|on|off|null|nan|inf|_.*)$`) // not a string in some YAML
)

// scalar writes a string.
func scalar(s string) string {
	s = strings.ReplaceAll(s, "\x00", "")
	if plainScalar.MatchString(s) && !otherScalar.MatchString(s) {
		return s
	}
	return strconv.Quote(s)
}

// oneLine makes what came from a file fit for a comment or a message: one printable line.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsSpace(r) {
			return ' '
		}
		if !unicode.IsPrint(r) {
			return '\uFFFD'
		}
		return r
	}, s)
}
