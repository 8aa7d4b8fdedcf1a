package userns

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Words in os.Args[1] by which this program knows that it was started by this package.
const (
	stageWord = "userns-stage"
	probeWord = "userns-probe"
)

// Init must be called first in main's init: in a process that this package started for its own ends, it never returns.
// Programs and tests that use Start or Facts call it.
func Init() {
	if len(os.Args) < 3 {
		return
	}
	switch os.Args[1] {
	case stageWord:
		stage(os.Args[2], os.Args[3:])
	case probeWord:
		probe(os.Args[2:])
	case holdWord:
		hold()
	}
}

// stage waits until the ids are mapped and becomes the inner process. It runs on the main thread, which init functions are
// locked to: capabilities and groups are a thread's, and exec keeps those of the thread that calls it.
func stage(descriptor string, args []string) {
	fd, err := strconv.Atoi(descriptor)
	if err != nil || len(args) == 0 {
		fmt.Fprintf(os.Stderr, "%s is for this program's own use\n", stageWord)
		os.Exit(2)
	}
	unix.CloseOnExec(fd)
	var go1 [1]byte
	if n, err := unix.Read(fd, go1[:]); n != 1 || err != nil {
		os.Exit(1) // the first process is gone, or gave up
	}
	doing, err := become(args)
	var errno unix.Errno
	errors.As(err, &errno)
	_, _ = unix.Write(fd, fmt.Appendf(nil, "%d %s", int(errno), doing)) // nobody else can be told
	os.Exit(1)
}

// WithoutGroups makes a child of the inner process one that has none of the caller's groups. The inner process keeps them, since it reads
// files for the caller that may be open to a group alone. Where they cannot be dropped, with one id or where newgidmap denies setgroups
// (the user has no subordinate groups), the child keeps them.
func WithoutGroups() *syscall.Credential {
	return &syscall.Credential{NoSetGroups: readLine("/proc/self/setgroups") == "deny"}
}

// become drops what the stage alone needed, and execs. It returns only what failed.
func become(args []string) (doing string, err error) {
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return "clear ambient capabilities", err
	}
	if err := clearInheritable(); err != nil {
		return "clear inheritable capabilities", err
	}
	return "exec", unix.Exec("/proc/self/exe", args, os.Environ())
}

func clearInheritable() error {
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&head, &data[0]); err != nil {
		return err
	}
	data[0].Inheritable, data[1].Inheritable = 0, 0
	return unix.Capset(&head, &data[0])
}

// Settle is the inner process's first act, called from an init function of its program so that it runs on the main thread,
// which lives as long as the process. It sets the death signal once more, makes the process non-dumpable, and finds out
// whether the namespaces came with rights: AppArmor gives them without (Ubuntu 24.04). The error is an *Error then.
func Settle() error {
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
		return fmt.Errorf("set the death signal: %w", err)
	}
	if os.Getuid() != 0 || os.Getgid() != 0 {
		return fmt.Errorf("enter the user namespace: uid %d, gid %d inside", os.Getuid(), os.Getgid())
	}
	if err := keepHostname(); err != nil {
		return Explain(fmt.Errorf("use the rights of the user namespace: %w", err))
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("become non-dumpable: %w", err)
	}
	return nil
}

// keepHostname sets the host name to what it is: harmless, and only for those with CAP_SYS_ADMIN here.
func keepHostname() error {
	name, err := os.Hostname()
	if err != nil {
		return err
	}
	return os.NewSyscallError("sethostname", unix.Sethostname([]byte(strings.TrimSpace(name))))
}

// landlockABI asks for the version of Landlock, 0 if there is none.
func landlockABI() int {
	v, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if errno != 0 {
		return 0
	}
	return int(v)
}
