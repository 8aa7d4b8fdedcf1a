package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"

	"img/userns"
)

// unshareName is the name under which the process inside starts.
const unshareName = "img-unshare"

// UnshareCmd is `img unshare`.
type UnshareCmd struct {
	Command []string `arg:"" optional:"" passthrough:"" help:"Command (default: $$SHELL)."`
}

// Run runs a command in a namespace like the builds', so that one can look at what they left: root there is the
// caller, and the subordinate ids are users.
func (c *UnshareCmd) Run(ctx context.Context, g *Globals) error {
	args := c.Command
	if len(args) > 0 && args[0] == "--" {
		args = args[1:]
	}
	if len(args) == 0 {
		args = []string{cmp.Or(g.getenv("SHELL"), "/bin/sh")}
	}
	m, err := userns.Choose()
	if err != nil {
		return err
	}
	if m.Why != "" {
		notef(g.stderr, "%s", m.Why)
	}
	p, err := userns.Start(ctx, userns.Config{
		Mapping: m,
		Args:    append([]string{unshareName}, args...),
		Env:     append(os.Environ(), "container=img"),
		Files:   []*os.File{os.Stdin, os.Stdout, os.Stderr},
		Stderr:  os.Stderr,
	})
	if err != nil {
		return err
	}
	err = p.Wait()
	var exit interface {
		error
		ExitCode() int
	}
	if errors.As(err, &exit) && exit.ExitCode() >= 0 {
		return &coded{err: fmt.Errorf("%s: %w", args[0], err), code: exit.ExitCode()}
	}
	return err
}
