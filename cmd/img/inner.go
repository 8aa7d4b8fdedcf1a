package main

import (
	"fmt"
	"os"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"

	executor "img/exec"
)

// innerMain is the inner process of a build. It never returns.
func innerMain() {
	if err := executor.Serve(settleErr); err != nil {
		fmt.Fprintln(os.Stderr, "img: inner process:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// extractMain is the child that unpacks one layer. It never returns.
func extractMain() {
	if len(os.Args) != 2 {
		os.Exit(exitBug)
	}
	if err := executor.Extract(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// unshareMain is the command of `img unshare`, in its namespaces: descriptors 3, 4 and 5 are the caller's standard ones. It never returns.
func unshareMain() {
	err := enterShell(os.Args[1:])
	fmt.Fprintln(os.Stderr, "img: error:", err)
	os.Exit(127)
}

func enterShell(args []string) error {
	for i := range 3 {
		if err := unix.Dup3(3+i, i, 0); err != nil {
			return err
		}
		unix.CloseOnExec(3 + i)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	// Without a fresh /proc (masked in containers) the command still sees the outer one.
	unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
	path, err := exec.LookPath(args[0])
	if err != nil {
		return err
	}
	return syscall.Exec(path, args, os.Environ())
}
