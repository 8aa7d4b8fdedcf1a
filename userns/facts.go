package userns

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

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

// unless is the fact with its effect and remedy only where it is not there.
func (f Fact) unless(ok bool) Fact {
	if f.OK = ok; ok {
		f.Effect, f.Remedy = "", ""
	}
	return f
}

// Facts finds out what this host allows, as far as possible by doing it in a child (two seconds each). The program must call
// Init. stateDir need not exist; it is left as it is, but for a directory of a moment's life.
func Facts(ctx context.Context, stateDir string) []Fact {
	out := []Fact{kernelFact()}
	c, err := readCaller()
	if err != nil {
		return append(out, Fact{Name: "user namespaces", Value: err.Error(), Effect: effectNoUsers, Remedy: remedyOf(err)})
	}
	m, failed := try(ctx, choose(c), "namespaces", nil)
	status := readStatus()
	out = append(out, usersFact(failed), subIDsFact(c), helpersFact(c, status), mappingFact(m, failed),
		overlayFact(ctx, m, stateDir, failed), mountFact(ctx, m, failed), procFact(ctx, m, failed), seccompFact(status, failed))
	out = append(out, lsmFacts()...)
	return append(out, landlockFact(), cgroupFact(), tunFact(), networkFact(), binfmtFact(ctx, m, failed), qemuFact(), stateFact(stateDir))
}

const effectNoUsers = "nothing can be built here; images can be pulled, loaded, saved and pushed"

// What does not matter yet is said so: a network of their own for steps, and foreign platforms.
const (
	effectNoNet   = "none for now: steps have the host's network or none (--network none)"
	effectForeign = "none for now: builds are for this machine's platform"
)

// remedyOf is the remedy of a probe's error, found where it happened or from its errno.
func remedyOf(err error) string {
	var e *Error
	if errors.As(Explain(err), &e) {
		return e.Remedy
	}
	return "see the kernel log (dmesg)"
}

func kernelFact() Fact {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return Fact{Name: "kernel", Value: err.Error(), Effect: "unknown", Remedy: "none"}
	}
	release := unix.ByteSliceToString(u.Release[:])
	return Fact{Name: "kernel", Value: release, Effect: effectNoUsers,
		Remedy: "use Linux 5.12 or newer; 6.8 for the fastest way"}.unless(newerThan(release, 5, 12))
}

// newerThan reports whether a release like "6.1.0-18-amd64" is at least major.minor.
func newerThan(release string, major, minor int) bool {
	var a, b int
	if n, err := fmt.Sscanf(release, "%d.%d", &a, &b); n != 2 || err != nil {
		return false
	}
	return a > major || a == major && b >= minor
}

func usersFact(failed error) Fact {
	f := Fact{Name: "user namespaces", Value: "yes, with mount, pid, ipc and uts namespaces"}
	if failed != nil {
		f.Value, f.Effect, f.Remedy = Explain(failed).Error(), effectNoUsers, remedyOf(failed)
	}
	return f.unless(failed == nil)
}

func subIDsFact(c caller) Fact {
	f := Fact{Name: "sub-ids", Effect: "one id is mapped: owners of files are simulated, some package managers need it so told",
		Remedy: fmt.Sprintf("usermod --add-subuids 100000-165535 --add-subgids 100000-165535 %s", c.who())}
	if c.uid == 0 {
		f.Value = "not needed by root"
		return f.unless(true)
	}
	uids := subordinate(c, c.uid, parseMap(c.uidMap), c.subuid)
	gids := subordinate(c, c.gid, parseMap(c.gidMap), c.subgid)
	n, g := total(uids)-1, total(gids)-1
	f.Value = fmt.Sprintf("%d users, %d groups for %s", n, g, c.who())
	return f.unless(min(n, g) >= wanted-1)
}

func helpersFact(c caller, s status) Fact {
	f := Fact{Name: "newuidmap", Effect: "one id is mapped, whatever /etc/subuid says"}
	newuidmap, newgidmap, problem := findHelpers(s)
	switch {
	case c.privileged():
		f.Value = "not needed by root"
		return f.unless(true)
	case problem == "":
		f.Value = newuidmap + ", " + newgidmap
	case strings.Contains(problem, "not installed"):
		f.Remedy = "apt-get install uidmap (Debian), dnf install shadow-utils (Fedora), apk add shadow-subids (Alpine)"
	case s.noNewPrivs:
		f.Remedy = "securityContext.allowPrivilegeEscalation: true (or without --security-opt no-new-privileges)"
	default:
		f.Remedy = "chmod u+s /usr/bin/newuidmap /usr/bin/newgidmap, on a file system without nosuid"
	}
	if problem != "" {
		f.Value = problem
	}
	return f.unless(problem == "")
}

func mappingFact(m Mapping, failed error) Fact {
	f := Fact{Name: "mapping", Effect: "ids beyond it are kept in records only; setuid programs in steps have no effect",
		Remedy: "see sub-ids and newuidmap"}
	if failed != nil {
		f.Value, f.Effect, f.Remedy = "none", effectNoUsers, "see user namespaces"
		return f
	}
	f.Value = fmt.Sprintf("%d ids, container root is %d:%d here", m.IDs(), m.HostUID(), m.HostGID())
	if m.Why != "" {
		f.Value += ": " + m.Why
	}
	if m.HostUID() == 0 {
		f.Remedy = remedyRootPod
	}
	return f.unless(m.Why == "")
}

// needs is a fact that a probe decides, but only where user namespaces work at all.
func (f Fact) needs(failed error, probe func() error) Fact {
	if failed != nil {
		f.Value, f.Remedy = "not tried without user namespaces", "see user namespaces"
		return f
	}
	err := probe()
	if err == nil {
		return f.unless(true)
	}
	f.Value = err.Error()
	var inside *told // an EPERM of this process has nothing to do with namespaces
	if errors.As(err, &inside) {
		f.Value = Explain(err).Error()
	}
	if f.Remedy == "" {
		f.Remedy = remedyOf(err)
	}
	return f
}

func overlayFact(ctx context.Context, m Mapping, stateDir string, failed error) Fact {
	at := existing(stateDir)
	f := Fact{Name: "overlay", Value: "yes, on " + at, Effect: "files are copied between stages and scanned for changes",
		Remedy: "put the state (--state) on a local ext4, xfs, btrfs or tmpfs, in a container on a volume; Linux 5.11 or newer"}
	return f.needs(failed, func() error { return probeOverlay(ctx, m, at) })
}

// probeOverlay lends a new directory to the child.
func probeOverlay(ctx context.Context, m Mapping, at string) error {
	name, err := os.MkdirTemp(at, ".img-probe-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(name)
	if os.Geteuid() == 0 {
		if err := os.Lchown(name, int(m.HostUID()), int(m.HostGID())); err != nil {
			return err
		}
	}
	dir, err := os.Open(name)
	if err != nil {
		return err
	}
	defer dir.Close()
	_, err = try(ctx, m, "overlay", dir)
	return err
}

// existing is the nearest directory above path, or path, that exists.
func existing(path string) string {
	path, err := filepath.Abs(path)
	for err == nil {
		if fi, serr := os.Stat(path); serr == nil && fi.IsDir() || path == "/" {
			return path
		}
		path = filepath.Dir(path)
	}
	return "/"
}

func mountFact(ctx context.Context, m Mapping, failed error) Fact {
	f := Fact{Name: "mount", Value: "yes", Effect: effectNoUsers}
	return f.needs(failed, func() error { _, err := try(ctx, m, "mount", nil); return err })
}

func procFact(ctx context.Context, m Mapping, failed error) Fact {
	f := Fact{Name: "fresh /proc", Value: "yes", Effect: effectNoUsers,
		Remedy: "securityContext.procMount: Unmasked with hostUsers: false (Kubernetes), --security-opt systempaths=unconfined (docker)"}
	return f.needs(failed, func() error { _, err := try(ctx, m, "proc", nil); return err })
}

func seccompFact(s status, failed error) Fact {
	f := Fact{Name: "seccomp", Value: "no filter on this process", Effect: effectNoUsers}
	if s.seccomp {
		f.Value = "a filter is on this process (a container's profile)"
	}
	if f.Remedy = remedyDocker; os.Getenv("KUBERNETES_SERVICE_HOST") != "" {
		f.Remedy = remedyPod
	}
	return f.unless(!s.seccomp || failed == nil)
}

func lsmFacts() []Fact {
	confine := readLine("/proc/sys/kernel/apparmor_restrict_unprivileged_userns")
	apparmor := Fact{Name: "AppArmor", Value: "does not restrict user namespaces", Effect: effectNoUsers, Remedy: remedyConfine}
	if confine == "1" {
		apparmor.Value = "kernel.apparmor_restrict_unprivileged_userns = 1"
	}
	selinux := Fact{Name: "SELinux", OK: true, Value: "off"}
	switch readLine("/sys/fs/selinux/enforce") {
	case "1":
		selinux.Value = "enforcing; steps keep the label of this process"
	case "0":
		selinux.Value = "permissive"
	}
	return []Fact{apparmor.unless(confine != "1" || os.Geteuid() == 0), selinux}
}

func landlockFact() Fact {
	const scopes = 6 // the first ABI that knows abstract sockets and signals
	abi := landlockABI()
	return Fact{Name: "Landlock", Value: fmt.Sprintf("ABI %d", abi),
		Effect: "steps with the host's network reach abstract sockets of the host",
		Remedy: "Linux 6.12 or newer with landlock in the lsm= list of the kernel's command line"}.unless(abi >= scopes)
}

func cgroupFact() Fact {
	f := Fact{Name: "cgroup v2 delegation", Effect: "limits of memory, CPU and processes cannot be set for steps",
		Remedy: "systemd-run --user --scope -p Delegate=yes img ... (in a pod: a writable cgroup v2 mount)"}
	dir, problem := ownCgroup(readLine("/proc/self/cgroup"), readLine("/proc/self/mountinfo"))
	if problem != "" {
		f.Value = problem
		return f
	}
	controllers := strings.Fields(readLine(filepath.Join(dir, "cgroup.controllers")))
	writable := unix.Access(dir, unix.W_OK) == nil && unix.Access(filepath.Join(dir, "cgroup.procs"), unix.W_OK) == nil
	switch f.Value = dir + ": " + strings.Join(controllers, " "); {
	case !writable:
		f.Value = dir + " is not writable"
	case !slices.Contains(controllers, "memory") || !slices.Contains(controllers, "pids"):
		f.Value, writable = dir+" has not both memory and pids", false
	}
	return f.unless(writable)
}

// ownCgroup is the directory of this process's cgroup v2, from the texts of /proc/self/cgroup and mountinfo.
func ownCgroup(cgroup, mountinfo string) (dir, problem string) {
	path, found := "", false
	for line := range strings.Lines(cgroup) {
		if p, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			path, found = p, true
		}
	}
	for line := range strings.Lines(mountinfo) {
		left, right, _ := strings.Cut(line, " - ")
		if l := strings.Fields(left); found && len(l) > 4 && strings.HasPrefix(right, "cgroup2 ") {
			root := strings.TrimSuffix(l[3], "/")
			if rel, ok := strings.CutPrefix(path, root); ok {
				return filepath.Join(l[4], rel), ""
			}
			return "", "the cgroup is outside of " + l[4]
		}
	}
	return "", "no cgroup v2 is mounted"
}

func tunFact() Fact {
	f := Fact{Name: "/dev/net/tun", Value: "yes", Effect: effectNoNet,
		Remedy: "docker run --device /dev/net/tun; modprobe tun and chmod 666 /dev/net/tun on a host"}
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		f.Value = err.Error()
		return f
	}
	unix.Close(fd)
	return f.unless(true)
}

func networkFact() Fact {
	f := Fact{Name: "network helper", Effect: effectNoNet, Remedy: "apt-get install passt (or slirp4netns)"}
	for _, name := range []string{"pasta", "slirp4netns"} {
		if path := findProgram(name); path != "" {
			f.Value = path
			return f.unless(true)
		}
	}
	f.Value = "neither pasta nor slirp4netns is installed"
	return f
}

func binfmtFact(ctx context.Context, m Mapping, failed error) Fact {
	f := Fact{Name: "binfmt_misc", Effect: effectForeign,
		Remedy: "apt-get install qemu-user-static binfmt-support (on the host), or Linux 6.7 or newer"}
	if names := emulators("/proc/sys/fs/binfmt_misc"); len(names) > 0 {
		f.Value = "registered here: " + strings.Join(names, " ")
		return f.unless(true)
	}
	f.Value = "can be registered in a namespace of a build's own"
	return f.needs(failed, func() error { _, err := try(ctx, m, "binfmt", nil); return err })
}

// emulators are the enabled handlers of foreign platforms in a binfmt_misc directory.
func emulators(dir string) []string {
	paths, _ := filepath.Glob(filepath.Join(dir, "*qemu*")) // the pattern is good
	var out []string
	for _, path := range paths {
		if strings.HasPrefix(readLine(path), "enabled") {
			out = append(out, filepath.Base(path))
		}
	}
	return out
}

func qemuFact() Fact {
	f := Fact{Name: "qemu", Effect: effectForeign,
		Remedy: "apt-get install qemu-user-static"}
	var found []string
	for _, arch := range []string{"x86_64", "aarch64", "arm", "riscv64", "ppc64le", "s390x", "i386", "loongarch64", "mips64el"} {
		if findProgram("qemu-"+arch+"-static") != "" {
			found = append(found, arch)
		}
	}
	if f.Value = "qemu-*-static: " + strings.Join(found, " "); len(found) == 0 {
		f.Value = "no qemu-*-static is installed"
	}
	return f.unless(len(found) > 0)
}

func stateFact(dir string) Fact {
	f := Fact{Name: "state directory", Effect: "builds refuse to use it", Remedy: "--state with a directory of your own, mode 0700"}
	path, err := filepath.Abs(dir)
	if err == nil {
		err = checkOwners(path, uint32(os.Geteuid()))
	}
	if err != nil {
		f.Value = err.Error()
		return f
	}
	at := existing(path)
	var s unix.Statfs_t
	if err := unix.Statfs(at, &s); err != nil {
		f.Value = fmt.Sprintf("%s: %v", at, err)
		return f
	}
	name, local := fileSystem(int64(s.Type))
	f.Value = fmt.Sprintf("%s on %s, %d GiB free", path, name, s.Bavail*uint64(s.Bsize)>>30)
	switch {
	case unix.Access(at, unix.W_OK) != nil:
		f.Value += ", not writable"
	case !local:
		f.Effect, f.Remedy = "slow; owners, locks or overlay may not work", "--state on a local file system"
	default:
		return f.unless(true)
	}
	return f
}

// checkOwners refuses a path where somebody else could change what is found: each existing directory belongs to uid or root, and
// is writable for others only where the sticky bit protects (as /tmp).
func checkOwners(path string, uid uint32) error {
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real
	}
	for dir := path; ; dir = filepath.Dir(dir) {
		var s unix.Stat_t
		err := unix.Lstat(dir, &s)
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return &fs.PathError{Op: "stat", Path: dir, Err: err}
		case s.Mode&unix.S_IFMT != unix.S_IFDIR:
			return fmt.Errorf("%s is no directory", dir)
		case s.Uid != uid && s.Uid != 0:
			return fmt.Errorf("%s belongs to user %s", dir, strconv.FormatUint(uint64(s.Uid), 10))
		case s.Mode&0o022 != 0 && s.Mode&unix.S_ISVTX == 0:
			return fmt.Errorf("%s can be written by others (mode %04o)", dir, s.Mode&0o7777)
		}
		if dir == "/" {
			return nil
		}
	}
}

// fileSystem names a statfs magic number, and says whether it is a local file system.
func fileSystem(magic int64) (name string, local bool) {
	known := map[int64]string{
		unix.EXT4_SUPER_MAGIC: "ext4", unix.XFS_SUPER_MAGIC: "xfs", unix.BTRFS_SUPER_MAGIC: "btrfs", unix.TMPFS_MAGIC: "tmpfs",
		unix.OVERLAYFS_SUPER_MAGIC: "overlay", unix.F2FS_SUPER_MAGIC: "f2fs", 0x2fc12fc1: "zfs", 0xca451a4e: "bcachefs",
	}
	remote := map[int64]string{
		unix.NFS_SUPER_MAGIC: "nfs", unix.CIFS_SUPER_MAGIC: "cifs", unix.SMB2_SUPER_MAGIC: "smb", unix.FUSE_SUPER_MAGIC: "fuse",
		unix.V9FS_MAGIC: "9p", unix.CEPH_SUPER_MAGIC: "ceph", unix.AFS_FS_MAGIC: "afs",
	}
	if name, ok := remote[magic]; ok {
		return name, false
	}
	if name, ok := known[magic]; ok {
		return name, true
	}
	return fmt.Sprintf("file system %#x", magic), true
}
