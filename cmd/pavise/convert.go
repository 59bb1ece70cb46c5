package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/pavise-project/pavise/policy/convert"
	"github.com/spf13/cobra"
)

// maxSource is more than convert takes of one file, so that it can say so.
const maxSource = 2 << 20

func (a *app) convert() *cobra.Command {
	var opt convert.Options
	c := &cobra.Command{
		Use: "convert FILE|DIR...", Short: "Turn KubeArmor's, Tetragon's and Kubernetes's policies into Pavise's",
		Long: `Turn KubeArmorPolicy, KubeArmorHostPolicy, KubeArmorClusterPolicy, TracingPolicy and NetworkPolicy documents (also TracingPolicyNamespaced, and
lists of them) into policies of Pavise, on standard output. FILE may be "-", standard input. It needs no privileges and no agent.

What differs, and what has no equivalent, is listed on standard error with its place and the reason, and stands as a comment beside the
policy or rule that it concerns. Nothing is dropped silently. A condition without an equivalent never makes a rule deny more: the
rule is made an audit rule, or, with Allow, left out. What a NetworkPolicy allows and cannot be said is not allowed.

The policies are in mode: monitor, whatever they are there, and only tell what they would do. --enforce makes those that act there act here; what
the kernel cannot decide exactly stays in mode: monitor, in a policy of its own, and is listed.

Exit codes beside those of all commands:
  0  all is converted; something may differ
  2  a file is no policy that can be read: nothing is converted
  6  not all is converted: the rest is listed`,
		Example: "  pavise convert ksp-nginx.yaml > nginx.yaml\n  kubectl get tracingpolicies -o yaml | pavise convert - > policies.yaml\n" +
			"  pavise convert --subject 'process.unit == \"nginx.service\"' ksp-nginx.yaml\n  pavise convert --containers netpol-db.yaml\n  pavise check nginx.yaml",
		Args: cobra.MinimumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			files, err := a.sources(args)
			if err != nil {
				return err
			}
			res, err := convert.Convert(files, opt)
			if err != nil {
				if a.output == "json" {
					return errors.Join(a.json(conversion{Error: err.Error()}), err)
				}
				return err
			}
			lost := res.Lost()
			if a.output == "json" {
				if err := a.json(conversion{OK: lost == 0, Policies: res.Policies, Findings: res.Findings, Lost: lost}); err != nil {
					return err
				}
			} else {
				if _, err := io.WriteString(a.stdout, res.YAML()); err != nil {
					return fmt.Errorf("write policies: %w", err)
				}
				for i := range res.Findings {
					fmt.Fprintln(a.stderr, safe(res.Findings[i].String()))
				}
			}
			if lost > 0 {
				return &partlyError{policies: len(res.Policies), lost: lost}
			}
			return nil
		},
	}
	c.Flags().BoolVar(&opt.Enforce, "enforce", false, "mode: enforce for what acts there; otherwise all only monitors")
	c.Flags().StringVar(&opt.Subject, "subject", "", "a CEL condition in place of what selects Kubernetes pods, as 'process.unit == \"nginx.service\"'")
	c.Flags().BoolVar(&opt.Containers, "containers", false, "what selects pods in a NetworkPolicy selects containers by their own labels, as Docker's")
	return c
}

// partlyError says that not all was converted.
type partlyError struct{ policies, lost int }

func (e *partlyError) Error() string {
	return fmt.Sprintf("converted to %d policies; not converted: %d, each listed with its place", e.policies, e.lost)
}

type conversion struct {
	OK       bool              `json:"ok"`
	Policies []convert.Policy  `json:"policies,omitempty"`
	Findings []convert.Finding `json:"findings,omitempty"`
	Lost     int               `json:"lost"`
	Error    string            `json:"error,omitempty"`
}

// sources reads the files, and those of the directories that end in .yaml or .yml.
func (a *app) sources(args []string) (files []convert.File, err error) {
	read := func(name string, r io.Reader) error {
		data, err := io.ReadAll(io.LimitReader(r, maxSource))
		if err != nil {
			return fmt.Errorf("read %s: %w", name, err)
		}
		files = append(files, convert.File{Name: name, Data: data})
		return nil
	}
	open := func(name string) error {
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		defer f.Close()
		return read(name, f)
	}
	for _, arg := range args {
		n := len(files)
		switch st, statErr := os.Stat(arg); {
		case arg == "-":
			err = read("stdin", a.stdin)
		case statErr != nil:
			err = statErr
		case !st.IsDir():
			err = open(arg)
		default:
			err = filepath.WalkDir(arg, func(name string, e fs.DirEntry, err error) error {
				if err == nil && !e.IsDir() && (strings.HasSuffix(name, ".yaml") || strings.HasSuffix(name, ".yml")) {
					return open(name)
				}
				return err
			})
			if err == nil && len(files) == n {
				err = fmt.Errorf("no *.yaml in %s", arg)
			}
		}
		if err != nil {
			return nil, fmt.Errorf("read policies: %w", err)
		}
	}
	return files, nil
}
