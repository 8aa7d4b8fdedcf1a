package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

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
	wd, err := os.Open(".")
	if err != nil {
		return err
	}
	defer wd.Close()
	p, err := userns.Start(ctx, userns.Config{
		Dir:     wd,
		Mapping: m,
		Args:    append([]string{unshareName}, args...),
		Env:     append(os.Environ(), "container=img"),
		Files:   []*os.File{os.Stdin, os.Stdout, os.Stderr},
		Stderr:  os.Stderr,

		SameSession: true,
	})
	if err != nil {
		return err
	}
	signal.Ignore(syscall.SIGINT) // a terminal sends it to the command, too: that is who decides
	stop := context.AfterFunc(ctx, func() { p.Kill() })
	defer stop()
	err = p.Wait()
	var exit *userns.ExitError
	if errors.As(err, &exit) {
		return withCode(exit.ExitCode(), fmt.Errorf("%s: %s", args[0], exit.State))
	}
	return err
}
