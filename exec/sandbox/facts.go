package sandbox

import (
	"os"
	"strconv"
	"strings"
	"sync"

	"github.com/moby/sys/capability"
	"golang.org/x/sys/unix"
)

// ttyGroup is the group of terminals on all Linux systems of note.
const ttyGroup = 5

// hostFacts finds out what the host has. Only a new network needs the (dearer) look at sysfs.
func hostFacts(s Spec) Facts {
	f := steadyFacts()
	f.NoFile = openFilesLimit()
	if s.Network == "none" {
		f.FreshSysfs = freshSysfs()
	}
	return f
}

// steadyFacts do not change while this process lives.
var steadyFacts = sync.OnceValue(func() Facts {
	_, err := os.Stat("/proc/self/ns/cgroup")
	return Facts{
		TTYGroup:          mapped("/proc/self/gid_map", ttyGroup),
		CgroupNS:          err == nil,
		HostSysfs:         isSysfs("/sys"),
		RecursiveReadOnly: hasMountSetattr(),
		Capabilities:      allCapabilities(),
	}
})

// mapped tells whether an id is mapped. A line of the file is "inside outside count".
func mapped(file string, id uint64) bool {
	text, err := os.ReadFile(file)
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if len(f) != 3 {
			continue
		}
		first, err1 := strconv.ParseUint(f[0], 10, 64)
		count, err2 := strconv.ParseUint(f[2], 10, 64)
		if err1 == nil && err2 == nil && id >= first && id-first < count {
			return true
		}
	}
	return false
}

func isSysfs(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && st.Type == unix.SYSFS_MAGIC
}

// hasMountSetattr asks for no change: an old kernel does not know the call, a new one looks at its arguments.
func hasMountSetattr() bool {
	return unix.MountSetattr(-1, "/", 0, &unix.MountAttr{}) != unix.ENOSYS
}

func openFilesLimit() uint64 {
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		return softNoFile
	}
	return lim.Max
}

func allCapabilities() []string {
	list, err := capability.ListSupported()
	if err != nil {
		return stepCapabilities
	}
	var names []string
	for _, c := range list {
		names = append(names, "CAP_"+strings.ToUpper(c.String()))
	}
	return names
}

// freshSysfs tries what a process without network will need. The kernel refuses it where parts of the caller's own /sys are
// covered by mounts that the caller may not take away.
var freshSysfs = sync.OnceValue(func() (ok bool) {
	onOwnThread(func() { ok = mountsSysfs() })
	return ok
})

func mountsSysfs() bool {
	if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS | unix.CLONE_NEWNET); err != nil {
		return false
	}
	if err := unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
		return false
	}
	return unix.Mount("sysfs", "/sys", "sysfs", noExecSuidDev|unix.MS_RDONLY, "") == nil
}
