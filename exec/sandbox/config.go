package sandbox

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/cgroups"
	devices "github.com/opencontainers/cgroups/devices/config"
	"github.com/opencontainers/runc/libcontainer/configs"
	"golang.org/x/sys/unix"
)

// Facts is what a sandbox depends on besides its Spec: the host, and the paths of this one run.
type Facts struct {
	// TTYGroup: gid 5, to which terminals belong by custom, is mapped.
	TTYGroup bool
	// CgroupNS: the kernel has cgroup namespaces.
	CgroupNS bool
	// HostSysfs: /sys is a sysfs, which can be bound. FreshSysfs: one can be mounted in a new network namespace.
	HostSysfs, FreshSysfs bool
	// RecursiveReadOnly: mount_setattr(2) is there (Linux 5.12).
	RecursiveReadOnly bool
	// NoFile is the hard limit of open files.
	NoFile uint64
	// Capabilities are all that the kernel knows, as CAP_X.
	Capabilities []string
	// Listener is the socket to which the seccomp listener of a OneID process goes; empty where the kernel has no notification.
	Listener string
	// AptConf is a file for /dev/img-apt.conf of a OneID process.
	AptConf string
}

const (
	defaultShmSize = 64 << 20
	softNoFile     = 64 << 10
	aptConf        = "/dev/img-apt.conf"

	noExecSuidDev = unix.MS_NOEXEC | unix.MS_NOSUID | unix.MS_NODEV
)

// stepCapabilities are Docker's default set without MKNOD, which means nothing in a user namespace.
var stepCapabilities = []string{
	"CAP_AUDIT_WRITE", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_NET_BIND_SERVICE",
	"CAP_NET_RAW", "CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_CHROOT",
}

// maskedPaths are those of Docker and of containerd together, and the host's cgroups, which a bound /sys brings along.
var maskedPaths = []string{
	"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/sched_debug",
	"/proc/scsi", "/proc/timer_list", "/proc/timer_stats", "/sys/devices/virtual/powercap", "/sys/firmware",
	"/sys/fs/cgroup",
}

var readOnlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}

// deviceNodes are bound from the host: a user namespace cannot make any.
var deviceNodes = []struct {
	name         string
	major, minor int64
}{{"full", 1, 7}, {"null", 1, 3}, {"random", 1, 8}, {"tty", 5, 0}, {"urandom", 1, 9}, {"zero", 1, 5}}

// config is the sandbox: a pure function of what is asked for and what there is.
func config(s Spec, f Facts) (*configs.Config, error) {
	mounts, err := mounts(s, f)
	if err != nil {
		return nil, err
	}
	filter, err := filter(s, f)
	if err != nil {
		return nil, err
	}
	c := &configs.Config{
		Rootfs:          s.Root,
		RootPropagation: unix.MS_SLAVE | unix.MS_REC,
		Hostname:        s.Hostname,
		Namespaces:      namespaces(s, f),
		Mounts:          mounts,
		Devices:         deviceList(),
		Capabilities:    capabilities(s, f),
		Seccomp:         filter,
		Rlimits: []configs.Rlimit{
			{Type: unix.RLIMIT_CORE},
			// Never more than there is: raising takes a right that nobody here has.
			{Type: unix.RLIMIT_NOFILE, Hard: f.NoFile, Soft: min(softNoFile, f.NoFile)},
		},
		// No cgroup is wanted; libcontainer goes on where it cannot make one.
		RootlessCgroups: true,
		Cgroups:         &cgroups.Cgroup{Name: "img-" + s.ID, Rootless: true, Resources: &cgroups.Resources{}},
	}
	switch s.Network {
	case "host":
	case "none":
		c.Networks = []*configs.Network{{Type: "loopback"}}
	default:
		return nil, fmt.Errorf("unknown network %q", s.Network)
	}
	if !s.Insecure {
		c.MaskPaths, c.ReadonlyPaths = maskedPaths, readOnlyPaths
	}
	return c, nil
}

// namespaces: no user namespace, as the build's is this one's.
func namespaces(s Spec, f Facts) configs.Namespaces {
	ns := configs.Namespaces{{Type: configs.NEWNS}, {Type: configs.NEWPID}, {Type: configs.NEWIPC}, {Type: configs.NEWUTS}}
	if f.CgroupNS {
		ns = append(ns, configs.Namespace{Type: configs.NEWCGROUP})
	}
	if s.Network == "none" {
		ns = append(ns, configs.Namespace{Type: configs.NEWNET})
	}
	return ns
}

// capabilities leaves inheritable and ambient empty (CVE-2022-24769). For a user other than root the kernel clears what is
// effective at execve.
func capabilities(s Spec, f Facts) *configs.Capabilities {
	list := stepCapabilities
	if s.Insecure {
		list = f.Capabilities
	}
	return &configs.Capabilities{Bounding: list, Effective: list, Permitted: list}
}

func deviceList() []*devices.Device {
	var list []*devices.Device
	for _, d := range deviceNodes {
		list = append(list, &devices.Device{
			Rule:     devices.Rule{Type: devices.CharDevice, Major: d.major, Minor: d.minor, Permissions: "rwm", Allow: true},
			Path:     "/dev/" + d.name,
			FileMode: 0o666,
		})
	}
	return list
}

func mounts(s Spec, f Facts) ([]*configs.Mount, error) {
	list := append(ownMounts(s, f), sysMount(s, f))
	if s.OneID && f.AptConf != "" {
		list = append(list, bind(Mount{Source: f.AptConf, Target: aptConf, ReadOnly: true, NoExec: true, NoDev: true, NoSuid: true}, f))
	}
	for _, m := range s.Mounts {
		switch m.Type {
		case "bind":
			list = append(list, bind(m, f))
		case "tmpfs":
			list = append(list, tmpfs(m))
		default:
			return nil, fmt.Errorf("mount on %s: unknown type %q", m.Target, m.Type)
		}
	}
	return list, nil
}

func ownMounts(s Spec, f Facts) []*configs.Mount {
	shm := s.ShmSize
	if shm == 0 {
		shm = defaultShmSize
	}
	pts := "newinstance,ptmxmode=0666,mode=0620"
	if f.TTYGroup {
		pts += ",gid=5"
	}
	return []*configs.Mount{
		{Device: "proc", Source: "proc", Destination: "/proc", Flags: noExecSuidDev},
		// Without nodev: the bound nodes are mounts of their own, yet links to them have to work for all.
		{Device: "tmpfs", Source: "tmpfs", Destination: "/dev", Flags: unix.MS_NOSUID | unix.MS_STRICTATIME, Data: "mode=755,size=65536k"},
		{Device: "devpts", Source: "devpts", Destination: "/dev/pts", Flags: unix.MS_NOSUID | unix.MS_NOEXEC, Data: pts},
		{Device: "tmpfs", Source: "shm", Destination: "/dev/shm", Flags: noExecSuidDev, Data: "mode=1777,size=" + strconv.FormatInt(shm, 10)},
	}
}

// sysMount: a sysfs shows the network namespace of who mounts it, so a new one is mounted with a new network only, and the kernel
// allows it only then. Else the host's is bound; where there is none to bind, /sys is empty.
func sysMount(s Spec, f Facts) *configs.Mount {
	readOnly := unix.MS_RDONLY
	if s.Insecure {
		readOnly = 0
	}
	switch {
	case s.Network == "none" && f.FreshSysfs:
		return &configs.Mount{Device: "sysfs", Source: "sysfs", Destination: "/sys", Flags: noExecSuidDev | readOnly}
	case f.HostSysfs && (f.RecursiveReadOnly || s.Insecure):
		return bind(Mount{Source: "/sys", Target: "/sys", ReadOnly: !s.Insecure, NoExec: true, NoDev: true, NoSuid: true}, f)
	}
	return &configs.Mount{Device: "tmpfs", Source: "tmpfs", Destination: "/sys", Flags: noExecSuidDev | readOnly, Data: "mode=755"}
}

// bind takes what is mounted below the source along: in a user namespace a part of an inherited mount cannot be taken alone.
func bind(m Mount, f Facts) *configs.Mount {
	c := &configs.Mount{Device: "bind", Source: m.Source, Destination: m.Target, Flags: unix.MS_BIND | unix.MS_REC | restrictions(m)}
	if m.ReadOnly && f.RecursiveReadOnly {
		c.RecAttr = &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
	}
	return c
}

func tmpfs(m Mount) *configs.Mount {
	mode := m.Mode
	if mode == 0 {
		mode = 0o1777
	}
	data := []string{fmt.Sprintf("mode=%o", mode)}
	if m.Size > 0 {
		data = append(data, fmt.Sprintf("size=%d", m.Size))
	}
	return &configs.Mount{
		Device: "tmpfs", Source: "tmpfs", Destination: m.Target, Flags: restrictions(m), Data: strings.Join(data, ","),
	}
}

func restrictions(m Mount) int {
	flags := 0
	for _, r := range []struct {
		on   bool
		flag int
	}{{m.ReadOnly, unix.MS_RDONLY}, {m.NoExec, unix.MS_NOEXEC}, {m.NoDev, unix.MS_NODEV}, {m.NoSuid, unix.MS_NOSUID}} {
		if r.on {
			flags |= r.flag
		}
	}
	return flags
}

// isSet tells whether env gives the variable a value that is not empty.
func isSet(env []string, name string) bool {
	return slices.ContainsFunc(env, func(kv string) bool {
		k, v, _ := strings.Cut(kv, "=")
		return k == name && v != ""
	})
}
