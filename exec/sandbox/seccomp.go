package sandbox

import (
	"fmt"
	"slices"
	"sync"

	"github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runc/libcontainer/specconv"
	"github.com/opencontainers/runtime-spec/specs-go"
	libseccomp "github.com/seccomp/libseccomp-golang"
)

// refused never reach the kernel, whatever the default profile of the day thinks of them. (It refuses sockets of AF_ALG and
// AF_VSOCK itself.)
var refused = []string{
	"add_key", "keyctl", "request_key", "io_uring_setup", "io_uring_enter", "io_uring_register",
	"userfaultfd", "perf_event_open", "bpf",
}

// ownership are the calls that need ids which a OneID process has not: the supervisor carries them out as far as one id goes.
var ownership = []string{"chown", "fchown", "lchown", "fchownat", "mknod", "mknodat"}

// identity are the calls a OneID process may make without effect.
var identity = []string{
	"setuid", "setgid", "setgroups", "setresuid", "setresgid", "setreuid", "setregid", "setfsuid", "setfsgid",
}

// filter is the seccomp filter of a process; nil means none.
func filter(s Spec, f Facts) (*configs.Seccomp, error) {
	profile := &specs.LinuxSeccomp{DefaultAction: specs.ActAllow}
	if !s.Insecure {
		var err error
		if profile, err = defaultProfile(s.Compat32); err != nil {
			return nil, err
		}
	}
	if s.OneID {
		pretend(profile, f.Listener)
	}
	if len(profile.Syscalls) == 0 {
		return nil, nil
	}
	c, err := specconv.SetupSeccomp(profile)
	if err != nil {
		return nil, fmt.Errorf("seccomp profile: %w", err)
	}
	return c, nil
}

// defaultProfile is Docker's, for the native architecture alone: the two others of amd64 are most of what a filter costs.
func defaultProfile(compat32 bool) (*specs.LinuxSeccomp, error) {
	spec := &specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{Bounding: stepCapabilities}}}
	profile, err := seccomp.GetDefaultProfile(spec)
	if err != nil {
		return nil, fmt.Errorf("default seccomp profile: %w", err)
	}
	if !compat32 {
		profile.Architectures = nil // the native one is always there
	}
	dropRules(profile, refused)
	return profile, nil
}

// pretend turns the rules of the ownership and identity calls into notifications and into success without effect.
func pretend(profile *specs.LinuxSeccomp, listener string) {
	dropRules(profile, ownership)
	dropRules(profile, identity)
	success := uint(0)
	none := specs.LinuxSyscall{Names: slices.Clone(identity), Action: specs.ActErrno, ErrnoRet: &success}
	if listener == "" {
		none.Names = append(none.Names, ownership...)
	} else {
		profile.ListenerPath = listener
		profile.Syscalls = append(profile.Syscalls, specs.LinuxSyscall{Names: ownership, Action: specs.ActNotify})
	}
	profile.Syscalls = append(profile.Syscalls, none)
}

// dropRules takes the calls out of all rules, so that the default action meets them.
func dropRules(profile *specs.LinuxSeccomp, names []string) {
	for i := range profile.Syscalls {
		rule := &profile.Syscalls[i]
		rule.Names = slices.DeleteFunc(slices.Clone(rule.Names), func(n string) bool { return slices.Contains(names, n) })
	}
	profile.Syscalls = slices.DeleteFunc(profile.Syscalls, func(r specs.LinuxSyscall) bool { return len(r.Names) == 0 })
}

// prune takes out the calls that this architecture does not have, a fifth of the profile: they would cross to the child as JSON
// and be looked up there at every start, for nothing. Not part of filter, since it depends on what this libseccomp knows.
func prune(c *configs.Seccomp) {
	if c == nil || len(c.Architectures) > 0 {
		return
	}
	c.Syscalls = slices.DeleteFunc(c.Syscalls, func(s *configs.Syscall) bool { return !native(s.Name) })
}

// natives remembers the answers of native: libseccomp goes through its whole table for each.
var natives sync.Map

func native(name string) bool {
	if known, ok := natives.Load(name); ok {
		return known.(bool)
	}
	nr, err := libseccomp.GetSyscallFromName(name) // negative for calls of other architectures
	known := err == nil && nr >= 0
	natives.Store(name, known)
	return known
}
