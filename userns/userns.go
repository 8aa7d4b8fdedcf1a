// Package userns enters a user namespace with mapped ids, and says what this host allows.
//
// It knows nothing of root file systems, images or steps.
package userns

import (
	"context"
	"os"
)

// A Range maps Count ids from Container (inside) to Host (outside).
type Range struct{ Container, Host, Count uint32 }

// A Mapping is the ids of a build.
type Mapping struct {
	UIDs, GIDs []Range
	// Why says in one line why the mapping is weaker than it could be; "" when it is not.
	Why string
}

// Single reports whether only one id is mapped (no subordinate ids).
func (m Mapping) Single() bool { panic("unwritten") }

// IDs is how many consecutive container ids, from 0, are mapped in both maps.
func (m Mapping) IDs() uint32 { panic("unwritten") }

// Label names the mapping in paths: short, lower-case letters, digits and dashes, equal for equal mappings.
func (m Mapping) Label() string { panic("unwritten") }

// HostUID returns the host id of container user 0.
func (m Mapping) HostUID() uint32 { panic("unwritten") }
func (m Mapping) HostGID() uint32 { panic("unwritten") }

// Choose finds the mapping that the caller can have, without entering a namespace. Root: container 0-65535 is root's
// subuid range, else the highest free block of /proc/self/uid_map, else 1-65535; never 0 = 0. Others: container root is the
// caller, the rest are all its subordinate ranges if newuidmap and newgidmap can work, else one id.
func Choose() (Mapping, error) { panic("unwritten") }

// One is the mapping of one id.
func One() Mapping { panic("unwritten") }

// Config of Start.
type Config struct {
	Mapping Mapping
	// Args is the argument vector of the inner process; it runs this program's own binary, from a sealed memfd.
	Args []string
	// Env is its whole environment.
	Env []string
	// Files become descriptors 3, 4, ...
	Files  []*os.File
	Stderr *os.File
}

// A Process is the inner process: PID 1 of its own PID namespace, with its own user, mount, IPC and UTS namespaces, uid and gid 0 in
// them with all capabilities. It is killed when this process dies (death signal from a locked thread that lives as long).
type Process struct {
	// Mapping is the one in force. It is weaker than asked for when the id helpers failed; Why says so.
	Mapping Mapping
}

// Start forks the inner process and maps its ids. Errors name the sysctl, package or field to change (Error.Remedy).
func Start(ctx context.Context, c Config) (*Process, error) { panic("unwritten") }

// Wait waits for its end. Kill ends it and all that it started.
func (p *Process) Wait() error { panic("unwritten") }
func (p *Process) Kill() error { panic("unwritten") }

// UsernsFile opens the user namespace of the process, for idmapped mounts.
func (p *Process) UsernsFile() (*os.File, error) { panic("unwritten") }

// An Error says what this host does not allow, and what to change.
type Error struct {
	Err    error
	Remedy string
}

func (e *Error) Error() string { return e.Err.Error() }
func (e *Error) Unwrap() error { return e.Err }

// A Fact is one line of `img doctor`.
type Fact struct {
	// Name is the facility: "user namespaces".
	Name string `json:"name"`
	// OK says it is there. Value says how, or why not.
	OK    bool   `json:"ok"`
	Value string `json:"value"`
	// Effect says what is different without it; Remedy is the command, sysctl or pod field that changes it. Both are "" when OK.
	Effect string `json:"effect,omitempty"`
	Remedy string `json:"remedy,omitempty"`
}
