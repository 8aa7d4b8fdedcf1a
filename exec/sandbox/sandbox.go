// Package sandbox runs one process in fresh namespaces on a root, by libcontainer.
//
// It is called inside the build's inner process, in the build's user namespace. It does not know images, snapshots or
// Dockerfile words.
//
// A Spec becomes a libcontainer configuration in one pure function, config; Run adds what only the moment knows. Where a
// single id is mapped (Spec.OneID), a supervisor answers the calls that would need more ids, and notes what they asked for.
package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/configs"
	_ "github.com/opencontainers/runc/libcontainer/nsenter" // enters the namespaces before the Go runtime starts
	"github.com/sirupsen/logrus"
)

// A Spec is one process and the world it sees. The same Spec always gives the same sandbox.
type Spec struct {
	// ID names the container in its state directory: letters, digits, dashes.
	ID string
	// StateDir is a private directory for libcontainer's state. Run leaves nothing in it.
	StateDir string
	// Root is the directory that becomes /.
	Root string
	Args []string
	// Env is the whole environment. HOME is added from the root's /etc/passwd when it is not set; with OneID also APT_CONFIG.
	Env []string
	// Dir is the working directory in the root; empty means /.
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
	// The process runs as that id whatever UID and GID say.
	OneID bool
	// Compat32 also lets the machine's 32-bit programs run (i386 on amd64, arm on arm64). It makes every start slower, since
	// libseccomp compiles the filter anew for each: set it only where the platform asks for it.
	Compat32 bool
	// ShmSize in bytes; 0 means 64 MiB.
	ShmSize int64
	// Grace is the time between SIGTERM and SIGKILL when the context ends; 0 means 5 s.
	Grace time.Duration

	// Stdin, Stdout and Stderr are the process's; nil means /dev/null. They stay the caller's to close.
	Stdin, Stdout, Stderr *os.File `json:"-"`
}

// A Mount is one mount of a Spec.
type Mount struct {
	// Type is "bind" or "tmpfs".
	Type string
	// Source is a bind's path in the inner process's mount namespace. What is mounted below it comes along.
	Source   string
	Target   string
	ReadOnly bool
	// Size and Mode are a tmpfs's; 0 means half of the memory, and 01777.
	Size int64
	Mode uint32
	// NoExec, NoDev and NoSuid restrict the mount.
	NoExec, NoDev, NoSuid bool
}

const (
	defaultGrace = 5 * time.Second

	codeNotExecutable = 126 // as shells say it
	codeNotFound      = 127
)

// An ExitError is a process that ended with a code other than 0, or by a signal (Signal > 0), or that could not be executed
// (Msg says why; Code is 126 or 127, as a shell's would be).
type ExitError struct {
	Code   int
	Signal int
	Msg    string
}

func (e *ExitError) Error() string {
	switch {
	case e.Msg != "":
		return e.Msg
	case e.Signal > 0:
		return fmt.Sprintf("ended by signal %d (%s)", e.Signal, syscall.Signal(e.Signal))
	}
	return fmt.Sprintf("exit code: %d", e.Code)
}

// WireKind lets the error cross to the first process: kind "exit", and the error itself.
func (e *ExitError) WireKind() (string, any) { return "exit", e }

func init() {
	// libcontainer warns through the standard logger, which writes to stderr. Nobody below cmd/img prints.
	logrus.SetOutput(io.Discard)
}

// Init must be called first in main's init: when this process is libcontainer's child (os.Args[1] == "init"), it never returns.
func Init() {
	if len(os.Args) < 2 || os.Args[1] != "init" || os.Getenv("_LIBCONTAINER_INITPIPE") == "" {
		return
	}
	runtime.LockOSThread() // the domain is a thread's, and this is the thread that will exec
	scope()
	libcontainer.Init()
}

// PinMain keeps all other goroutines off the first thread of this process. The inner process calls it in an init function (later, the
// main goroutine may be on any thread).
//
// libcontainer sends a thread into each container's mount namespace and lets it end there. The first thread cannot end: had it been
// chosen, it would keep that step's mounts alive, and /proc/self would show them instead of ours, for the rest of the build.
func PinMain() { runtime.LockOSThread() }

// Run runs the process and waits for it and for everything it started (its PID namespace ends with it). When ctx ends, all
// processes get SIGTERM and, after the grace, SIGKILL; at once when none of them listens to SIGTERM. The error is then ctx's cause.
//
// Many Runs may go on at once. The returned Owners is nil unless OneID.
func Run(ctx context.Context, s Spec) (*Owners, error) {
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	s, err := prepared(s)
	if err != nil {
		return nil, fmt.Errorf("prepare sandbox: %w", err)
	}
	facts := hostFacts(s)
	var sup *supervisor
	if s.OneID {
		if sup, err = newSupervisor(s, &facts); err != nil {
			return nil, fmt.Errorf("prepare supervisor: %w", err)
		}
		defer sup.close()
	}
	c, err := config(s, facts)
	if err != nil {
		return nil, fmt.Errorf("sandbox configuration: %w", err)
	}
	prune(c.Seccomp)
	if err := run(ctx, s, c); err != nil {
		return sup.owners(), err
	}
	return sup.owners(), nil
}

// prepared fills in what has to be read from the root, and refuses roots that would bend the sandbox.
func prepared(s Spec) (Spec, error) {
	root, err := filepath.EvalSymlinks(s.Root)
	if err != nil {
		return s, err
	}
	if s.Root, err = filepath.Abs(root); err != nil {
		return s, err
	}
	for _, dir := range []string{"proc", "dev", "sys"} {
		if err := plainDir(s.Root, dir); err != nil {
			return s, err
		}
	}
	if s.Dir == "" {
		s.Dir = "/"
	}
	s.Env, err = environment(s)
	return s, err
}

// plainDir refuses a mount point of the sandbox that is there but no directory. A link would be followed inside the root only,
// but then masks and read-only paths would sit somewhere else than the process looks (CVE-2026-41579 and its family).
func plainDir(root, name string) error {
	info, err := os.Lstat(filepath.Join(root, name))
	if errors.Is(err, os.ErrNotExist) || err == nil && info.IsDir() {
		return nil
	}
	if err != nil {
		return err
	}
	return fmt.Errorf("/%s of the root is no directory (%s)", name, info.Mode().Type())
}

// run starts the container, waits for its end, and takes it away.
func run(ctx context.Context, s Spec, c *configs.Config) (err error) {
	container, err := create(s, c)
	if err != nil {
		return fmt.Errorf("create container: %w", err)
	}
	defer func() {
		if derr := container.Destroy(); derr != nil && err == nil {
			err = derr
		}
	}()
	p := process(s)
	if err := container.Run(p); err != nil {
		return startError(s.Root, err)
	}
	return wait(ctx, s, p)
}

// create makes the container. Hosts without a devices controller are an error to libcontainer unless device rules are waived
// while it looks for its cgroup; it then insists that they are not waived any more. We make no cgroup and have no rules.
func create(s Spec, c *configs.Config) (*libcontainer.Container, error) {
	c.Cgroups.SkipDevices = true
	container, err := libcontainer.Create(s.StateDir, s.ID, c)
	c.Cgroups.SkipDevices = false
	return container, err
}

func process(s Spec) *libcontainer.Process {
	p := &libcontainer.Process{Init: true, Args: s.Args, Env: s.Env, Cwd: s.Dir}
	if !s.OneID {
		p.UID, p.GID = int(s.UID), int(s.GID)
		for _, g := range s.Groups {
			p.AdditionalGroups = append(p.AdditionalGroups, int(g))
		}
	}
	// A nil *os.File in an interface is not nil: set only what is there.
	if s.Stdin != nil {
		p.Stdin = s.Stdin
	}
	if s.Stdout != nil {
		p.Stdout = s.Stdout
	}
	if s.Stderr != nil {
		p.Stderr = s.Stderr
	}
	return p
}

// wait waits for the process, and ends it when ctx does.
func wait(ctx context.Context, s Spec, p *libcontainer.Process) error {
	pid, err := p.Pid()
	if err != nil {
		return err
	}
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		select {
		case <-done:
		case <-ctx.Done():
			end(pid, s.Grace, p, done)
		}
	}()
	state, err := p.Wait()
	close(done)
	<-ended
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	if state == nil {
		return fmt.Errorf("wait for process: %w", err)
	}
	return exitError(state)
}

func exitError(state *os.ProcessState) error {
	status := state.Sys().(syscall.WaitStatus)
	switch {
	case status.Signaled():
		return &ExitError{Code: 128 + int(status.Signal()), Signal: int(status.Signal())}
	case status.ExitStatus() != 0:
		return &ExitError{Code: status.ExitStatus()}
	}
	return nil
}

// startError tells a program that cannot be executed, and a mount that cannot be made, from a sandbox that cannot. The child's error
// comes as text alone.
func startError(root string, err error) error {
	if e := mountError(root, err.Error()); e != nil {
		return e
	}
	_, msg, found := strings.Cut(err.Error(), `exec: "`)
	switch msg = `exec: "` + msg; {
	case !found:
	case strings.HasSuffix(msg, "executable file not found in $PATH"), strings.HasSuffix(msg, "no such file or directory"),
		strings.HasSuffix(msg, "not a directory"):
		return &ExitError{Code: codeNotFound, Msg: msg}
	case strings.HasSuffix(msg, "permission denied"), strings.HasSuffix(msg, "is a directory"):
		return &ExitError{Code: codeNotExecutable, Msg: msg}
	}
	return fmt.Errorf("start process: %w", err)
}

// mountError makes of libcontainer's text
//
//	... error mounting "/src" to rootfs at "/target": ...: mkdirat /root/target: read-only file system
//
// what concerns the reader: the target and the cause, with paths as the process would have seen them.
func mountError(root, text string) error {
	_, after, found := strings.Cut(text, `" to rootfs at "`)
	target, cause, ok := strings.Cut(after, `": `)
	if !found || !ok {
		return nil
	}
	if strings.HasPrefix(cause, "mount src=") {
		cause = cause[strings.LastIndex(cause, ": ")+2:]
	}
	return fmt.Errorf("mount at %s: %s", target, strings.ReplaceAll(cause, root+"/", "/"))
}
