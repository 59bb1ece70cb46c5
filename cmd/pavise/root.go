package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/pavise-project/pavise/agent"
	"github.com/pavise-project/pavise/enforce"
	"github.com/pavise-project/pavise/policy"
	"github.com/spf13/cobra"
)

// The exit codes, as --help tells them.
const (
	exitOK = iota
	exitFailed
	exitUsage
	exitNoAgent
	exitPrivileges
	exitUnsupported
	exitPartly
	exitStopped
)

const rootHelp = `Pavise sees what the processes of a Linux host do, decides in the kernel whether they may, and changes its rules
while everything runs.

"pavise run" is the agent. The other commands talk to it over its socket, or work on policy files alone.

Exit codes:
  0  done
  1  failed
  2  wrong usage, or a bad policy
  3  no agent answers
  4  no privileges: be root, or a member of a group with the role that it needs (pavise run --help)
  5  this kernel is not supported
  6  converted in part: what has no equivalent is listed
  7  replayed, and the candidate would have denied something

NO_COLOR is honoured; colour is used on a terminal only.`

// app is one invocation: where it reads and writes, and the flags that all commands share.
type app struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	terminal       bool // stdout is one
	watched        bool // stderr is one
	width          int  // of a line, for what can be cut

	socket  string
	output  string
	noColor bool

	// openKernel is enforce.Open; tests put a kernel of their own here.
	openKernel func(ctx context.Context, o enforce.Options) (agent.Kernel, error)
	// tweak lets tests change the agent's configuration.
	tweak func(*agent.Config)
}

func newApp() *app {
	return &app{
		stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr, terminal: isTerminal(os.Stdout), watched: isTerminal(os.Stderr), width: lineWidth(os.Stdout),
		openKernel: func(ctx context.Context, o enforce.Options) (agent.Kernel, error) {
			k, err := enforce.Open(ctx, o)
			if err != nil {
				return nil, err // not k: a nil *Enforcer in an interface is not nil
			}
			return k, nil
		},
		tweak: func(*agent.Config) {},
	}
}

// runError is an error of a command that was understood; all others are wrong usage.
type runError struct{ err error }

func (e *runError) Error() string { return e.err.Error() }
func (e *runError) Unwrap() error { return e.err }

// usageError is wrong usage that only the command itself could see.
type usageError struct{ error }

// main runs the command line and returns the exit code.
func (a *app) main(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal ends it at once
	root := a.root()
	root.SetArgs(args)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return exitOK
	}
	code := exitCode(err)
	var quiet *silentError
	if !errors.As(err, &quiet) {
		fmt.Fprintf(a.stderr, "pavise: %s\n", strings.TrimRight(message(err), "\n"))
	}
	var re *runError
	if code == exitUsage && !errors.As(err, &re) {
		fmt.Fprintf(a.stderr, "see: %s --help\n", cmd.CommandPath())
	}
	return code
}

// silentError is one that was already told.
type silentError struct{ err error }

func (e *silentError) Error() string { return e.err.Error() }
func (e *silentError) Unwrap() error { return e.err }

func exitCode(err error) int {
	var re *runError
	var ue usageError
	var pe policy.Errors
	var ae *agent.APIError
	var part *partlyError
	var stopped *stoppedError
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &part):
		return exitPartly
	case errors.As(err, &stopped):
		return exitStopped
	case !errors.As(err, &re), errors.As(err, &ue), errors.As(err, &pe):
		return exitUsage
	case errors.Is(err, agent.ErrNotAllowed), errors.Is(err, enforce.ErrPrivileges):
		return exitPrivileges
	case errors.Is(err, agent.ErrNoAgent):
		return exitNoAgent
	case errors.Is(err, enforce.ErrUnsupported):
		return exitUnsupported
	case errors.As(err, &ae) && ae.BadPolicy():
		return exitUsage
	}
	return exitFailed
}

// message is what a person reads of err: a policy's faults one per line, with what to write instead.
func message(err error) string {
	var ae *agent.APIError
	if !errors.As(err, &ae) || len(ae.Details) == 0 {
		return err.Error()
	}
	pe := make(policy.Errors, len(ae.Details))
	for i, d := range ae.Details {
		pe[i] = &policy.Error{File: d.File, Line: d.Line, Column: d.Column, Field: d.Field, Msg: d.Msg, Hint: d.Hint}
	}
	return pe.Error()
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use: "pavise", Short: "See and stop what processes do, in the kernel", Long: rootHelp,
		Example: "  pavise run --policy policies\n  pavise events --follow\n  pavise apply -f policy.yaml",
		Args:    cobra.NoArgs, Version: buildVersion(), SilenceUsage: true, SilenceErrors: true,
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
		PersistentPreRunE: func(c *cobra.Command, _ []string) error {
			if os.Getenv("NO_COLOR") != "" {
				a.noColor = true
			}
			switch a.output {
			case "text", "json":
			case "csv":
				if c.CommandPath() == "pavise query" {
					return nil
				}
				return usageError{errors.New(`--output "csv": only query has it; text or json are possible here`)}
			case "yaml":
				if c.CommandPath() == "pavise get policies" {
					return nil
				}
				fallthrough
			default:
				if c.CommandPath() == "pavise query" {
					return usageError{fmt.Errorf("--output %q: text, json or csv are possible here", a.output)}
				}
				return usageError{fmt.Errorf("--output %q: text or json are possible here", a.output)}
			}
			return nil
		},
	}
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	f := root.PersistentFlags()
	f.StringVarP(&a.output, "output", "o", "text", "form of the output: text or json")
	f.StringVar(&a.socket, "socket", agent.DefaultSocket, "the agent's socket")
	f.BoolVar(&a.noColor, "no-color", false, "never colour the output")
	root.AddCommand(a.run(), a.events(), a.flows(), a.query(), a.replay(), a.why(), a.ps(), a.status(), a.top(), a.doctor(), a.check(), a.test(), a.explain(), a.convert(), a.shadow(), a.promote(), a.learn(), a.apply(), a.confirm(), a.rollback(), a.diff(), a.mode(), a.get(), a.delete(), a.isolate(), a.release(), a.uninstall(), a.version(), a.man())
	mark(root)
	return root
}

// mark makes the errors of all commands below c runErrors, so that what remains is wrong usage.
func mark(c *cobra.Command) {
	for _, sub := range c.Commands() {
		if run := sub.RunE; run != nil {
			sub.RunE = func(c *cobra.Command, args []string) error {
				if err := run(c, args); err != nil {
					return &runError{err}
				}
				return nil
			}
		}
		mark(sub)
	}
}

// noun makes a command that only holds others: without one of them it is wrong usage.
func noun(use, short, example string, subs ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{
		Use: use, Short: short, Example: example,
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usageError{fmt.Errorf("%q is not something to %s", args[0], c.Name())}
			}
			return usageError{fmt.Errorf("say what to %s", c.Name())}
		},
	}
	c.AddCommand(subs...)
	return c
}

func (a *app) client() *agent.Client { return agent.NewClient(a.socket) }

func (a *app) color() bool { return a.terminal && !a.noColor }
