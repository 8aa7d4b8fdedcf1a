// Probe tells what a process can see and do in its sandbox: one line a fact, the same on every host.
package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

func main() {
	what := map[string]func(args []string){
		"status": status, "calls": calls, "paths": paths, "devices": deviceNodes, "fds": fds, "env": env, "mounts": mounts,
		"net": network, "ids": ids, "abstract": abstract, "trap": trap, "limits": limits, "namespaces": namespaces,
		"fchown": fchown,
	}
	for _, name := range strings.Split(os.Args[1], ",") {
		what[name](os.Args[2:])
	}
}

func status([]string) {
	text, _ := os.ReadFile("/proc/self/status")
	for line := range strings.Lines(string(text)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		switch name {
		case "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "Seccomp", "NoNewPrivs", "Groups":
			fmt.Println(name, strings.TrimSpace(value))
		}
	}
	procs, _ := filepath.Glob("/proc/[0-9]*")
	fmt.Println("processes", len(procs), "pid", os.Getpid())
	cgroup, _ := os.ReadFile("/proc/self/cgroup")
	own := true
	for line := range strings.Lines(string(cgroup)) {
		own = own && strings.HasSuffix(strings.TrimSpace(line), ":/")
	}
	fmt.Println("cgroup path is /:", own)
	a, b := stat("/"), stat("/proc/1/root/")
	fmt.Println("/proc/1/root is /:", a.Ino == b.Ino && a.Dev == b.Dev)
}

func stat(p string) (st unix.Stat_t) { _ = unix.Stat(p, &st); return }

func namespaces([]string) {
	for _, n := range []string{"cgroup", "ipc", "mnt", "net", "pid", "user", "uts"} {
		link, _ := os.Readlink("/proc/self/ns/" + n)
		fmt.Println(link)
	}
}

// calls prints how the kernel refuses what a step has no business with.
func calls([]string) {
	empty := unsafe.Pointer(&[256]byte{})
	z := uintptr(empty)
	str := func(s string) uintptr { b, _ := unix.BytePtrFromString(s); return uintptr(unsafe.Pointer(b)) }
	list := []struct {
		name string
		nr   uintptr
		a    [6]uintptr
	}{
		{"mount tmpfs", unix.SYS_MOUNT, [6]uintptr{str("t"), str("/mnt"), str("tmpfs")}},
		{"mount proc", unix.SYS_MOUNT, [6]uintptr{str("t"), str("/mnt"), str("proc")}},
		{"mount bind", unix.SYS_MOUNT, [6]uintptr{str("/"), str("/mnt"), 0, unix.MS_BIND}},
		{"umount2", unix.SYS_UMOUNT2, [6]uintptr{str("/proc/sys")}},
		{"unshare user", unix.SYS_UNSHARE, [6]uintptr{unix.CLONE_NEWUSER}},
		{"unshare mount", unix.SYS_UNSHARE, [6]uintptr{unix.CLONE_NEWNS}},
		{"clone3", unix.SYS_CLONE3, [6]uintptr{z, 8}},
		{"pivot_root", unix.SYS_PIVOT_ROOT, [6]uintptr{str("/"), str("/")}},
		{"setns", unix.SYS_SETNS, [6]uintptr{0, 0}},
		{"keyctl", unix.SYS_KEYCTL, [6]uintptr{}}, {"add_key", unix.SYS_ADD_KEY, [6]uintptr{}},
		{"request_key", unix.SYS_REQUEST_KEY, [6]uintptr{}},
		{"bpf", unix.SYS_BPF, [6]uintptr{}}, {"perf_event_open", unix.SYS_PERF_EVENT_OPEN, [6]uintptr{z}},
		{"userfaultfd", unix.SYS_USERFAULTFD, [6]uintptr{1}},
		{"io_uring_setup", unix.SYS_IO_URING_SETUP, [6]uintptr{1, z}},
		{"io_uring_enter", unix.SYS_IO_URING_ENTER, [6]uintptr{}}, {"io_uring_register", unix.SYS_IO_URING_REGISTER, [6]uintptr{}},
		{"open_by_handle_at", unix.SYS_OPEN_BY_HANDLE_AT, [6]uintptr{}}, {"reboot", unix.SYS_REBOOT, [6]uintptr{}},
		{"swapon", unix.SYS_SWAPON, [6]uintptr{z}}, {"swapoff", unix.SYS_SWAPOFF, [6]uintptr{z}},
		{"init_module", unix.SYS_INIT_MODULE, [6]uintptr{}}, {"finit_module", unix.SYS_FINIT_MODULE, [6]uintptr{}},
		{"delete_module", unix.SYS_DELETE_MODULE, [6]uintptr{z}},
		{"kexec_load", unix.SYS_KEXEC_LOAD, [6]uintptr{}}, {"kexec_file_load", unix.SYS_KEXEC_FILE_LOAD, [6]uintptr{}},
		{"settimeofday", unix.SYS_SETTIMEOFDAY, [6]uintptr{z}}, {"clock_settime", unix.SYS_CLOCK_SETTIME, [6]uintptr{0, z}},
		{"sethostname", unix.SYS_SETHOSTNAME, [6]uintptr{z, 1}}, {"setdomainname", unix.SYS_SETDOMAINNAME, [6]uintptr{z, 1}},
		{"socket AF_ALG", unix.SYS_SOCKET, [6]uintptr{unix.AF_ALG, unix.SOCK_SEQPACKET}},
		{"socket AF_VSOCK", unix.SYS_SOCKET, [6]uintptr{unix.AF_VSOCK, unix.SOCK_STREAM}},
		{"acct", unix.SYS_ACCT, [6]uintptr{}}, {"quotactl", unix.SYS_QUOTACTL, [6]uintptr{}},
		{"lookup_dcookie", unix.SYS_LOOKUP_DCOOKIE, [6]uintptr{}}, {"vhangup", unix.SYS_VHANGUP, [6]uintptr{}},
		{"move_pages", unix.SYS_MOVE_PAGES, [6]uintptr{}}, {"mbind", unix.SYS_MBIND, [6]uintptr{}},
		{"set_mempolicy", unix.SYS_SET_MEMPOLICY, [6]uintptr{}}, {"migrate_pages", unix.SYS_MIGRATE_PAGES, [6]uintptr{}},
		{"nfsservctl", unix.SYS_NFSSERVCTL, [6]uintptr{}}, {"fsopen", unix.SYS_FSOPEN, [6]uintptr{str("tmpfs")}},
		{"fsmount", unix.SYS_FSMOUNT, [6]uintptr{}}, {"fsconfig", unix.SYS_FSCONFIG, [6]uintptr{}},
		{"fspick", unix.SYS_FSPICK, [6]uintptr{^uintptr(99), str("/")}},
		{"open_tree", unix.SYS_OPEN_TREE, [6]uintptr{^uintptr(99), str("/"), 1}},
		{"move_mount", unix.SYS_MOVE_MOUNT, [6]uintptr{}}, {"mount_setattr", unix.SYS_MOUNT_SETATTR, [6]uintptr{}},
		{"fanotify_init", unix.SYS_FANOTIFY_INIT, [6]uintptr{}}, {"syslog", unix.SYS_SYSLOG, [6]uintptr{3, z, 10}},
		{"chroot", unix.SYS_CHROOT, [6]uintptr{str("/")}}, {"process_madvise", unix.SYS_PROCESS_MADVISE, [6]uintptr{^uintptr(0)}},
	}
	for _, c := range list {
		_, _, errno := unix.RawSyscall6(c.nr, c.a[0], c.a[1], c.a[2], c.a[3], c.a[4], c.a[5])
		fmt.Println(c.name, word(errno))
	}
	fmt.Println("mknod block", word(unix.Mknod("/tmp/sda", unix.S_IFBLK|0o600, 8<<8)))
	_, err := os.Open("/tmp/sda")
	fmt.Println("open it", err != nil)
	_ = os.Remove("/tmp/sda")
}

func word(err error) string {
	var errno unix.Errno
	if err == nil || errors.As(err, &errno) && errno == 0 {
		return "ok"
	}
	return unix.ErrnoName(errno)
}

func paths([]string) {
	for _, p := range []string{
		"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/sched_debug",
		"/proc/scsi", "/proc/timer_list", "/proc/timer_stats", "/sys/firmware", "/sys/devices/virtual/powercap", "/sys/fs/cgroup",
	} {
		fmt.Println("masked", p, masked(p))
	}
	for _, p := range []string{"/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger", "/sys/kernel/uevent_seqnum", "/proc/sys/vm/drop_caches"} {
		f, err := os.OpenFile(p, os.O_WRONLY|os.O_APPEND, 0)
		fmt.Println("write", p, err == nil)
		if err == nil {
			f.Close()
		}
	}
	for _, p := range []string{"/sys/fs/cgroup", "/sys", "/proc/sys", "/dev/shm", "/dev", "/"} {
		err := os.Mkdir(p+"/probe", 0o755)
		fmt.Println("mkdir in", p, err == nil)
		_ = os.Remove(p + "/probe")
	}
}

// masked: not there, an empty directory, or a file that reads as nothing.
func masked(p string) bool {
	info, err := os.Stat(p)
	if err != nil {
		return true
	}
	if info.IsDir() {
		list, err := os.ReadDir(p)
		return err != nil || len(list) == 0
	}
	text, err := os.ReadFile(p)
	return err != nil || len(text) == 0
}

func deviceNodes([]string) {
	_ = filepath.WalkDir("/dev", func(p string, d os.DirEntry, err error) error {
		if err != nil {
			return nil
		}
		st := unix.Stat_t{}
		_ = unix.Lstat(p, &st)
		link, _ := os.Readlink(p)
		switch {
		case p == "/dev/core": // where the kernel has /proc/kcore
		case link != "":
			fmt.Println(p, "->", link)
		case st.Mode&unix.S_IFMT == unix.S_IFCHR:
			fmt.Printf("%s c %d:%d\n", p, unix.Major(st.Rdev), unix.Minor(st.Rdev))
		default:
			fmt.Printf("%s %v %o\n", p, d.Type(), st.Mode&0o7777)
		}
		return nil
	})
	f, err := os.OpenFile("/dev/null", os.O_WRONLY, 0)
	fmt.Println("open /dev/null", word(err))
	f.Close()
	_, err = os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	fmt.Println("open /dev/ptmx", word(err))
}

func fds([]string) {
	var open []string
	for fd := range 100 {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil {
			continue
		}
		link, _ := os.Readlink(fmt.Sprint("/proc/self/fd/", fd))
		if strings.HasPrefix(link, "anon_inode:[event") || strings.HasPrefix(link, "/sys/fs/cgroup/") {
			continue // the Go runtime's poller, and its look at CPU limits
		}
		open = append(open, fmt.Sprint(fd))
	}
	fmt.Println("fds", strings.Join(open, " "))
}

func env([]string) {
	list := os.Environ()
	sort.Strings(list)
	for _, kv := range list {
		fmt.Println("env", kv)
	}
}

func ids([]string) {
	groups, _ := os.Getgroups()
	fmt.Println("uid", os.Getuid(), "gid", os.Getgid(), "groups", groups)
	wd, _ := os.Getwd()
	host, _ := os.Hostname()
	fmt.Println("dir", wd, "host", host)
}

func limits([]string) {
	var lim unix.Rlimit
	_ = unix.Getrlimit(unix.RLIMIT_CORE, &lim)
	fmt.Println("core", lim.Cur, lim.Max)
}

func mounts(args []string) {
	text, _ := os.ReadFile("/proc/self/mountinfo")
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		for _, want := range args {
			if f[4] == want {
				fmt.Println(f[4], strings.ReplaceAll(f[5], ",relatime", ""))
			}
		}
	}
}

func network([]string) {
	list, _ := net.Interfaces()
	for _, i := range list {
		fmt.Println("interface", i.Name, i.Flags&net.FlagUp != 0)
	}
	sys, _ := os.ReadDir("/sys/class/net")
	fmt.Println("sysfs interfaces", len(sys) == len(list))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	fmt.Println("loopback", err == nil)
	if err == nil {
		l.Close()
	}
}

func abstract(args []string) {
	_, err := net.Dial("unix", "@"+args[0])
	fmt.Println("abstract", word(err))
}

// fchown changes owners by descriptor: file uid gid ….
func fchown(args []string) {
	for ; len(args) > 2; args = args[3:] {
		f, err := os.Open(args[0])
		if err == nil {
			uid, _ := strconv.Atoi(args[1])
			gid, _ := strconv.Atoi(args[2])
			err = f.Chown(uid, gid)
		}
		fmt.Println("fchown", args, word(err))
	}
}

// trap waits for SIGTERM and says so.
func trap([]string) {
	c := make(chan os.Signal, 1)
	signal.Notify(c, unix.SIGTERM)
	fmt.Println("ready")
	select {
	case <-c:
		fmt.Println("terminated")
		os.Exit(9)
	case <-time.After(20 * time.Second):
	}
}
