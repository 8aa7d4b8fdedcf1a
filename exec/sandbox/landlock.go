package sandbox

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// scopeABI is the first Landlock version that has scopes (Linux 6.12).
const scopeABI = 6

// scope takes a Landlock domain for this thread and all that it starts, out of which no abstract Unix socket and no signal
// reaches. The network namespace is the host's, where abstract sockets of session buses and display servers listen. The domain has
// no file rules, which would forbid every mount that is still to come. Best effort: older kernels have no such wall.
func scope() {
	abi, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if errno != 0 || abi < scopeABI {
		return
	}
	attr := unix.LandlockRulesetAttr{Scoped: unix.LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET | unix.LANDLOCK_SCOPE_SIGNAL}
	size := unsafe.Offsetof(attr.Scoped) + unsafe.Sizeof(attr.Scoped) // what version 6 knows
	fd, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&attr)), size, 0)
	if errno != 0 {
		return
	}
	defer unix.Close(int(fd))
	// Without no_new_privs this needs CAP_SYS_ADMIN in the user namespace, which the child still has here.
	_, _, _ = unix.Syscall(unix.SYS_LANDLOCK_RESTRICT_SELF, fd, 0, 0)
}
