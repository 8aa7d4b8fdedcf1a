package userns

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// An Error says what this host does not allow, and what to change.
type Error struct {
	Err    error
	Remedy string
}

func (e *Error) Error() string { return e.Err.Error() }
func (e *Error) Unwrap() error { return e.Err }

// WireKind lets an Error cross between the two processes of a build: kind "userns", and the remedy.
func (e *Error) WireKind() (kind string, data any) {
	return "userns", e.Remedy
}

// An ExitError is an inner process that did not exit with 0.
type ExitError struct{ State *os.ProcessState }

func (e *ExitError) Error() string { return "the inner process ended: " + e.State.String() }

// ExitCode is the code, or as shells have it 128 and the signal's number.
func (e *ExitError) ExitCode() int {
	if status, ok := e.State.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return 128 + int(status.Signal())
	}
	return e.State.ExitCode()
}

// Explain adds to EPERM and EACCES of a call that needs the rights of a user namespace (mount, setgroups, sethostname ...)
// what on this host forbids it: the result is an *Error. Other errors come back as they are. Both processes may call it.
func Explain(err error) error {
	if !errors.Is(err, syscall.EPERM) && !errors.Is(err, syscall.EACCES) {
		return err
	}
	return explainStart(err)
}

// explainStart also knows the errnos of clone, which mean other things elsewhere.
func explainStart(err error) error {
	var errno syscall.Errno
	var known *Error
	if err == nil || errors.As(err, &known) || !errors.As(err, &errno) {
		return err
	}
	cause, remedy := explain(errno, readLimits())
	if cause == "" {
		return err
	}
	return &Error{Err: fmt.Errorf("%w: %s", err, cause), Remedy: remedy}
}

// limits is what the host says about user namespaces. Texts of sysctls are "" where the kernel does not have them.
type limits struct {
	uid     uint32
	status  status
	chroot  bool
	pod     bool
	maxNS   string // user.max_user_namespaces
	clone   string // kernel.unprivileged_userns_clone (Debian)
	confine string // kernel.apparmor_restrict_unprivileged_userns (Ubuntu)
}

const (
	remedyMaxNS   = "sysctl -w user.max_user_namespaces=28633 (and a line in /etc/sysctl.d/)"
	remedyClone   = "sysctl -w kernel.unprivileged_userns_clone=1 (and a line in /etc/sysctl.d/)"
	remedyConfine = "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0, or an AppArmor profile with \"userns,\" for this program"
	remedyDocker  = "docker run --security-opt seccomp=unconfined --security-opt apparmor=unconfined --security-opt systempaths=unconfined"
	remedyPod     = "securityContext.seccompProfile.type: Unconfined and appArmorProfile.type: Unconfined (or hostUsers: false with capabilities.add: [SYS_ADMIN])"
	remedyRootPod = "securityContext.runAsUser: 1000, or capabilities.add: [SETUID, SETGID, SETFCAP]"
)

// explain finds the cause of an errno, "" if it is none of the known ones.
func explain(errno syscall.Errno, l limits) (cause, remedy string) {
	const setfcap = 1 << unix.CAP_SETFCAP
	switch errno {
	case syscall.ENOSPC, syscall.EUSERS:
		return fmt.Sprintf("no more user namespaces (user.max_user_namespaces = %s, at most 32 levels deep)", l.maxNS), remedyMaxNS
	case syscall.ENOSYS, syscall.EINVAL:
		return "this kernel has no user namespaces, or not these", "use a kernel with CONFIG_USER_NS, CONFIG_PID_NS, CONFIG_IPC_NS and CONFIG_UTS_NS"
	case syscall.EPERM, syscall.EACCES:
	default:
		return "", ""
	}
	switch {
	case l.maxNS == "0":
		return "user namespaces are off (user.max_user_namespaces = 0)", remedyMaxNS
	case l.clone == "0" && l.uid != 0:
		return "user namespaces are off for users (kernel.unprivileged_userns_clone = 0)", remedyClone
	case l.confine == "1" && l.uid != 0:
		return "AppArmor takes the rights of users' namespaces (kernel.apparmor_restrict_unprivileged_userns = 1)", remedyConfine
	case l.chroot:
		return "the kernel makes no user namespaces within a chroot", "run outside of the chroot, or enter it by pivot_root (systemd-nspawn, unshare --root with a mount namespace)"
	case l.uid == 0 && l.status.caps&setfcap == 0 && !l.status.seccomp:
		return "root without capabilities cannot map itself", remedyRootPod
	case l.status.seccomp && l.pod:
		return "the pod's seccomp or AppArmor profile forbids it", remedyPod
	case l.status.seccomp:
		return "the container's seccomp or AppArmor profile forbids it", remedyDocker
	}
	return "a security module or container profile forbids it", "look for a denial in the kernel log (dmesg, ausearch -m avc); within a container: " + remedyDocker
}

func readLimits() limits {
	return limits{
		uid:     uint32(os.Geteuid()),
		status:  readStatus(),
		chroot:  inChroot(),
		pod:     os.Getenv("KUBERNETES_SERVICE_HOST") != "",
		maxNS:   readLine("/proc/sys/user/max_user_namespaces"),
		clone:   readLine("/proc/sys/kernel/unprivileged_userns_clone"),
		confine: readLine("/proc/sys/kernel/apparmor_restrict_unprivileged_userns"),
	}
}

// readLine is a small file of the kernel's, "" if it cannot be read.
func readLine(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// inChroot reports whether / is not the root of a mount, as after a chroot into a plain directory.
func inChroot() bool {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 4 && f[4] == "/" {
			return false
		}
	}
	return true
}
