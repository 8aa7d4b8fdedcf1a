package userns

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// helperTime is how long newuidmap may take; with users from LDAP it asks the network.
const helperTime = 20 * time.Second

// Config of Start.
type Config struct {
	Mapping Mapping
	// Args is the argument vector of the inner process; it runs this program's own binary, from a sealed memfd.
	Args []string
	// Env is its whole environment.
	Env []string
	// Files become descriptors 3, 4, ...
	Files []*os.File
	// Stderr is its standard error; nil is /dev/null, as are standard input and output.
	Stderr *os.File
	// SameSession keeps it in the caller's session and process group, for a command that uses the caller's terminal. Else a
	// terminal's Ctrl-C is for this process alone to handle.
	SameSession bool
	// Dir becomes its working directory, as a place in its own mount namespace; nil is /. This is how the inner process reaches
	// a directory below one that is closed to the mapped ids, such as root's home: no path is walked, and overlay accepts it, while
	// it refuses (EINVAL) places known by a descriptor from here, which belong to the outer mount namespace.
	Dir *os.File
}

// A Process is the inner process: PID 1 of its own PID namespace, with its own user, mount, IPC and UTS namespaces, uid and gid 0 in
// them with all capabilities. It is killed when this process dies (death signal from a locked thread
// that lives as long).
type Process struct {
	// Mapping is the one in force. It is weaker than asked for when the id helpers failed; Why says so.
	Mapping Mapping

	process *os.Process
	users   *os.File // its user namespace, or why it could not be opened
	noUsers error
	wait    func() error
}

// Start forks the inner process and maps its ids. ctx is for the start alone. Errors name the sysctl, package or field to change
// (Error.Remedy).
//
// The first process must be dumpable until Start has returned: else its child's /proc files are root's, and no map can be written.
func Start(ctx context.Context, c Config) (*Process, error) {
	if len(c.Args) == 0 || len(c.Mapping.UIDs) == 0 || len(c.Mapping.GIDs) == 0 {
		return nil, errors.New("start the inner process: no arguments, or no mapping")
	}
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	self, err := readCaller()
	if err != nil {
		return nil, err
	}
	if self.privileged() || c.Mapping.Single() {
		return startDirect(c, self.privileged())
	}
	p, err := startHelped(ctx, c)
	var helper *helperError
	switch {
	case err != nil && ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case !errors.As(err, &helper):
		return p, err
	}
	c.Mapping = one(self)
	c.Mapping.Why = helper.Error()
	return startDirect(c, false)
}

// startDirect forks with maps that this process may write itself. The child waits for them before it does anything.
func startDirect(c Config, privileged bool) (*Process, error) {
	groups := privileged && readLine("/proc/self/setgroups") != "deny"
	p, err := fork(c.Args, c, &syscall.SysProcAttr{
		UidMappings:                sysMap(c.Mapping.UIDs),
		GidMappings:                sysMap(c.Mapping.GIDs),
		GidMappingsEnableSetgroups: groups,
		Credential:                 &syscall.Credential{NoSetGroups: !groups},
	})
	if err != nil {
		return nil, explainStart(fmt.Errorf("start the inner process: %w", err))
	}
	return c.process(p), nil
}

// startHelped forks a process that waits while the id helpers map it, and then becomes the inner one (stage).
func startHelped(ctx context.Context, c Config) (*Process, error) {
	ours, theirs, err := syncPair()
	if err != nil {
		return nil, err
	}
	defer ours.Close()
	args := append([]string{c.Args[0], stageWord, strconv.Itoa(3 + len(c.Files))}, c.Args...)
	staged := c
	staged.Files = append(append([]*os.File{}, c.Files...), theirs)
	// Without a mapping, exec would take the capabilities of the new namespace. Ambient ones stay; all of them, so that
	// nothing is gained at the second exec: a gain would clear the death signal.
	child, err := fork(args, staged, &syscall.SysProcAttr{AmbientCaps: allCapabilities()})
	theirs.Close()
	if err != nil {
		return nil, explainStart(fmt.Errorf("start the inner process: %w", err))
	}
	stop := context.AfterFunc(ctx, func() { child.Kill() })
	defer stop()
	if err := runHelpers(ctx, child.Pid, c.Mapping); err != nil {
		return nil, abandon(child, err)
	}
	if err := release(ours); err != nil {
		return nil, abandon(child, Explain(err))
	}
	if !stop() { // killed meanwhile, which release takes for the exec
		return nil, abandon(child, context.Cause(ctx))
	}
	return c.process(child), nil
}

// abandon ends a child that did not get far; err, or why its context ended, stays the error.
func abandon(child *os.Process, err error) error {
	child.Kill()
	child.Wait()
	return err
}

// release lets the stage go on, and waits until it has become the inner process, which closes its end, or says why not.
func release(ours *os.File) error {
	if _, err := ours.Write([]byte{1}); err != nil {
		return fmt.Errorf("start the inner process: %w", err)
	}
	said, err := io.ReadAll(io.LimitReader(ours, 4096))
	if err != nil {
		return fmt.Errorf("start the inner process: %w", err)
	}
	if len(said) == 0 {
		return nil
	}
	// "<errno> <what was being done>"
	number, doing, _ := strings.Cut(string(said), " ")
	errno, err := strconv.Atoi(number)
	if err != nil {
		return fmt.Errorf("start the inner process: %q", said)
	}
	return fmt.Errorf("start the inner process: %s: %w", doing, syscall.Errno(errno))
}

func syncPair() (ours, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	return os.NewFile(uintptr(fds[0]), "stage"), os.NewFile(uintptr(fds[1]), "staged"), nil
}

// forks runs functions on one thread that never ends: the kernel sends a child its death signal when the thread that made it
// ends, not the process, and Go ends threads as it likes.
var forks = sync.OnceValue(func() chan<- func(ownDir error) {
	work, ready := make(chan func(error)), make(chan struct{})
	go forever(work, ready)
	<-ready
	return work
})

// forever is that thread. It gets a working directory of its own, since clone carries that into the new mount namespace.
func forever(work <-chan func(ownDir error), ready chan<- struct{}) {
	runtime.LockOSThread()
	if unix.Gettid() == unix.Getpid() {
		// Not the main thread: its directory is the one that /proc/self/cwd shows. While this goroutine holds it, another
		// gets another.
		other := make(chan struct{})
		go forever(work, other)
		<-other
		runtime.UnlockOSThread()
		close(ready)
		return
	}
	close(ready)
	err := os.NewSyscallError("unshare CLONE_FS", unix.Unshare(unix.CLONE_FS))
	for f := range work {
		f(err)
	}
}

// stand makes dir, or /, the working directory of this thread.
func stand(ownDir error, dir *os.File) error {
	switch {
	case ownDir != nil && dir == nil:
		return nil // the process's own: as good as any
	case ownDir != nil:
		return ownDir
	case dir == nil:
		return os.NewSyscallError("chdir", unix.Chdir("/"))
	}
	c, err := dir.SyscallConn()
	if err != nil {
		return err
	}
	if cerr := c.Control(func(fd uintptr) { err = os.NewSyscallError("fchdir", unix.Fchdir(int(fd))) }); cerr != nil {
		return cerr
	}
	return err
}

// fork starts this program again in new namespaces.
func fork(args []string, c Config, attr *syscall.SysProcAttr) (*os.Process, error) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	stderr := c.Stderr
	if stderr == nil {
		stderr = null
	}
	files := append([]*os.File{null, null, stderr}, c.Files...)
	binary, err := programAbove(files)
	if err != nil {
		return nil, err
	}
	defer binary.Close()
	attr.Cloneflags = unix.CLONE_NEWUSER | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS
	attr.Pdeathsig = syscall.SIGKILL
	attr.Setsid = !c.SameSession
	var p *os.Process
	done := make(chan struct{})
	forks() <- func(ownDir error) {
		defer close(done)
		if err = stand(ownDir, c.Dir); err != nil {
			return
		}
		defer stand(ownDir, nil) // hold no directory longer than needed
		p, err = os.StartProcess(fmt.Sprintf("/proc/self/fd/%d", binary.Fd()), args, &os.ProcAttr{
			Env:   append([]string{}, c.Env...), // nil would mean: ours
			Files: files,
			Sys:   attr,
		})
	}
	<-done
	return p, err
}

func sysMap(ranges []Range) []syscall.SysProcIDMap {
	var out []syscall.SysProcIDMap
	for _, r := range ranges {
		out = append(out, syscall.SysProcIDMap{ContainerID: int(r.Container), HostID: int(r.Host), Size: int(r.Count)})
	}
	return out
}

// allCapabilities are those that this kernel has.
func allCapabilities() []uintptr {
	last, err := strconv.Atoi(readLine("/proc/sys/kernel/cap_last_cap"))
	if err != nil {
		last = unix.CAP_LAST_CAP
	}
	out := make([]uintptr, last+1)
	for i := range out {
		out[i] = uintptr(i)
	}
	return out
}

// A helperError is newuidmap or newgidmap having failed: there is a weaker mapping that needs neither.
type helperError struct{ text string }

func (e *helperError) Error() string { return e.text }

// runHelpers maps the ids of pid, users and groups side by side.
func runHelpers(ctx context.Context, pid int, m Mapping) error {
	newuidmap, newgidmap, problem := findHelpers(readStatus())
	if problem != "" {
		return &helperError{problem}
	}
	ctx, cancel := context.WithTimeout(ctx, helperTime)
	defer cancel()
	groups := make(chan error, 1)
	go func() { groups <- runHelper(ctx, newgidmap, pid, m.GIDs) }()
	return first(runHelper(ctx, newuidmap, pid, m.UIDs), <-groups)
}

// first is the first of two errors, if there is one.
func first(a, b error) error {
	if a != nil {
		return a
	}
	return b
}

func runHelper(ctx context.Context, path string, pid int, ranges []Range) error {
	args := []string{strconv.Itoa(pid)}
	for _, r := range ranges {
		for _, n := range []uint32{r.Container, r.Host, r.Count} {
			args = append(args, strconv.FormatUint(uint64(n), 10))
		}
	}
	var said bytes.Buffer
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env, cmd.Dir = []string{}, "/" // it runs with rights: nothing of ours is its business
	cmd.Stdout, cmd.Stderr = &said, &said
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	if err == nil {
		return nil
	}
	if text := strings.Join(strings.Fields(said.String()), " "); text != "" {
		return &helperError{text}
	}
	return &helperError{fmt.Sprintf("%s: %v", path, err)}
}

// process makes the Process of a child that runs. Its user namespace is opened now, before its id can be another's; a child that
// has ended already has none, which is for Wait to tell.
func (c Config) process(child *os.Process) *Process {
	users, err := os.Open(fmt.Sprintf("/proc/%d/ns/user", child.Pid))
	p := &Process{Mapping: c.Mapping, process: child, users: users, noUsers: err}
	p.wait = sync.OnceValue(func() error {
		if users != nil {
			defer users.Close()
		}
		state, err := child.Wait()
		switch {
		case err != nil:
			return fmt.Errorf("wait for the inner process: %w", err)
		case !state.Success():
			return &ExitError{state}
		}
		return nil
	})
	return p
}

// Wait waits for its end, and is an *ExitError unless it exited with 0. All processes of its namespaces have ended then.
// It may be called several times, at once too.
func (p *Process) Wait() error { return p.wait() }

// Kill ends it and all that it started, and waits until all are gone.
func (p *Process) Kill() error {
	if err := p.process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("kill the inner process: %w", err)
	}
	_ = p.wait() // that it was killed is no news
	return nil
}

// PID is its process id here.
func (p *Process) PID() int { return p.process.Pid }

// UsernsFile opens the user namespace of the process, for idmapped mounts. It must be called before Wait or Kill return.
func (p *Process) UsernsFile() (*os.File, error) {
	if p.noUsers != nil {
		return nil, fmt.Errorf("open the user namespace: %w", p.noUsers)
	}
	c, err := p.users.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("open the user namespace: %w", err)
	}
	fd := -1
	if cerr := c.Control(func(f uintptr) { fd, err = unix.FcntlInt(f, unix.F_DUPFD_CLOEXEC, 3) }); cerr != nil {
		err = cerr
	}
	if err != nil {
		return nil, fmt.Errorf("open the user namespace: %w", err)
	}
	return os.NewFile(uintptr(fd), "userns"), nil
}
