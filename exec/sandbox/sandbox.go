// Package sandbox runs one process in fresh namespaces on a root, by libcontainer.
//
// It is called inside the build's inner process, in the build's user namespace. It does not know images, snapshots or
// Dockerfile words.
package sandbox

import (
	"context"
	"os"
)

// A Spec is one process and the world it sees. The same Spec always gives the same sandbox.
type Spec struct {
	// ID names the container in its state directory: letters, digits, dashes.
	ID string
	// StateDir is a private directory for libcontainer's state.
	StateDir string
	// Root is the directory that becomes /.
	Root string
	Args []string
	// Env is the whole environment.
	Env      []string
	Dir      string
	UID, GID uint32
	Groups   []uint32
	Hostname string
	// Mounts come after the sandbox's own (/proc, /dev, /sys ...), in order. Mount points exist already.
	Mounts []Mount
	// Network is "host" (the caller's own namespace) or "none" (loopback alone).
	Network string
	// Insecure: all capabilities of the user namespace, no seccomp, no masks.
	Insecure bool
	// OneID: only one id is mapped; chown- and mknod-family calls go to the supervisor, setuid-family calls succeed without effect.
	OneID bool
	// ShmSize in bytes; 0 means 64 MiB.
	ShmSize int64

	Stdin, Stdout, Stderr *os.File
}

// A Mount is one mount of a Spec.
type Mount struct {
	// Type is "bind" or "tmpfs".
	Type string
	// Source is a bind's path in the inner process's mount namespace.
	Source   string
	Target   string
	ReadOnly bool
	// Size and Mode are a tmpfs's; 0 means half of the memory, and 01777.
	Size int64
	Mode uint32
	// NoExec, NoDev and NoSuid restrict the mount.
	NoExec, NoDev, NoSuid bool
}

// An ExitError is a process that ended with a code other than 0, or by a signal (Signal > 0).
type ExitError struct {
	Code   int
	Signal int
}

func (e *ExitError) Error() string { panic("unwritten") }

// Owners is what the supervisor of a OneID step recorded: the owners and devices that the step asked for. Keys are inode
// numbers as the step's root shows them.
type Owners struct{}

// Owner returns the recorded owner of an inode.
func (o *Owners) Owner(ino uint64) (uid, gid uint32, ok bool) { panic("unwritten") }

// Device returns the recorded device of an inode: kind 'c' or 'b'.
func (o *Owners) Device(ino uint64) (kind byte, major, minor uint32, ok bool) { panic("unwritten") }

// Run runs the process and waits for it and for everything it started (its PID namespace ends with it). When ctx ends, the process gets
// SIGTERM and, after grace (5 s), SIGKILL.
func Run(ctx context.Context, s Spec) (*Owners, error) { panic("unwritten") }

// Init must be called first in main's init: when this process is libcontainer's child (os.Args[1] == "init"), it never returns.
func Init() { panic("unwritten") }
