package sandbox

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// The tests run in the place where Run is called: in a user namespace, as first process of a PID namespace, from a sealed memfd.
// The test binary enters it twice: with 65,536 ids, and with one.

const (
	innerVar = "SANDBOX_TEST_MAPPING" // "ids" or "one"; absent outside
	probeVar = "SANDBOX_TEST_PROBE"   // path of the compiled testdata/probe
	keptVar  = "SANDBOX_TEST_GROUPS"  // set where the groups could not be dropped: outside we are not root
)

func init() {
	Init()
	PinMain()
}

func TestMain(m *testing.M) {
	if os.Getenv(innerVar) != "" {
		settle()
		os.Exit(m.Run())
	}
	code, mappings := 0, []string{"ids", "one"}
	if os.Geteuid() != 0 {
		fmt.Println("NOT RUN: mapping ids, which only root can make for itself; root's run has it")
		mappings = mappings[1:]
	}
	for _, mapping := range mappings {
		fmt.Printf("# mapping: %s\n", mapping)
		if err := enter(mapping); err != nil {
			fmt.Println("mapping", mapping+":", err)
			code = 1
		}
	}
	os.Exit(code)
}

// oneID: these tests have one id.
func oneID() bool { return os.Getenv(innerVar) == "one" }

func must(err error) {
	if err != nil {
		panic(err)
	}
}

// enter runs the tests inside. Root makes the mapping; the host's ids do not matter as long as they are not its own.
func enter(mapping string) error {
	dir, err := os.MkdirTemp("", "sandbox")
	must(err)
	defer os.RemoveAll(dir)
	first, size := 100000, 65536
	if mapping == "one" {
		first, size = 12345, 1
	}
	gid := first
	if os.Geteuid() != 0 { // one's own id is all that one may map
		first, gid = os.Getuid(), os.Getgid()
	}
	probe := filepath.Join(dir, "probe")
	build := exec.Command("go", "build", "-o", probe, "./testdata/probe")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build probe: %w\n%s", err, out)
	}
	must(os.Chmod(dir, 0o755))
	must(os.Mkdir(dir+"/tmp", 0o700))
	must(os.Chown(dir+"/tmp", first, gid))

	self := sealedSelf()
	defer self.Close()
	cmd := exec.Command("/proc/self/fd/3")
	cmd.ExtraFiles = []*os.File{self}
	for _, a := range os.Args {
		if !strings.HasPrefix(a, "-test.testlogfile") { // only the outer process may write it
			cmd.Args = append(cmd.Args, a)
		}
	}
	cmd.Args = cmd.Args[1:]
	cmd.Env = append(os.Environ(), innerVar+"="+mapping, probeVar+"="+probe, "TMPDIR="+dir+"/tmp", "LEAK=caller")
	if os.Geteuid() != 0 {
		cmd.Env = append(cmd.Env, keptVar+"=kept")
	}
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: first, Size: size}}
	gids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: gid, Size: size}}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS,
		UidMappings: ids, GidMappings: gids, GidMappingsEnableSetgroups: mapping == "ids",
		Credential: &syscall.Credential{NoSetGroups: mapping == "one"},
		Pdeathsig:  unix.SIGKILL,
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	err = cmd.Run()
	updated, _ := filepath.Glob(dir + "/tmp/golden/*")
	for _, file := range updated {
		data, err := os.ReadFile(file)
		must(err)
		must(os.WriteFile(filepath.Join("../../testdata/exec/sandbox", filepath.Base(file)), data, 0o644))
	}
	return err
}

// sealedSelf is a copy of this binary that nobody can write to, as the build's inner process is started from.
func sealedSelf() *os.File {
	fd, err := unix.MemfdCreate("img", unix.MFD_ALLOW_SEALING)
	must(err)
	to := os.NewFile(uintptr(fd), "img")
	from, err := os.Open("/proc/self/exe")
	must(err)
	defer from.Close()
	_, err = io.Copy(to, from)
	must(err)
	_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SEAL|unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_WRITE)
	must(err)
	// A descriptor open for writing makes execve say ETXTBSY.
	ro, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", fd))
	must(err)
	to.Close()
	return ro
}

// settle does what the inner process does before it calls Run.
func settle() {
	must(unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""))
	must(unix.Mount("proc", "/proc", "proc", noExecSuidDev, ""))
	// Read-only, so that libcontainer makes no cgroups where it could.
	must(unix.MountSetattr(-1, "/sys", unix.AT_RECURSIVE, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}))
	unix.Umask(0)
}

// newRoot makes a root with busybox and the probe: an overlay, as builds have.
func newRoot(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	for _, d := range []string{"lower/bin", "lower/etc", "lower/tmp", "lower/mnt", "upper", "work", "root"} {
		must(os.MkdirAll(filepath.Join(dir, d), 0o755))
	}
	must(os.Chmod(dir+"/lower/tmp", 0o1777))
	copyFile(t, "/bin/busybox", dir+"/lower/bin/busybox")
	copyFile(t, os.Getenv(probeVar), dir+"/lower/bin/probe")
	for _, name := range []string{"sh", "true", "false", "sleep", "cat", "echo", "chown", "mknod", "ln", "kill", "stat", "touch", "mkdir", "rm", "mv", "ls", "chmod", "su", "id"} {
		must(os.Symlink("busybox", dir+"/lower/bin/"+name))
	}
	must(os.WriteFile(dir+"/lower/etc/passwd", []byte("root:x:0:0::/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n"), 0o644))
	must(os.WriteFile(dir+"/lower/etc/motd", []byte("hello\n"), 0o4755))
	options := "userxattr,lowerdir=" + dir + "/lower,upperdir=" + dir + "/upper,workdir=" + dir + "/work"
	must(unix.Mount("overlay", dir+"/root", "overlay", 0, options))
	t.Cleanup(func() { must(unix.Unmount(dir+"/root", 0)) }) // not detached: nothing may keep it busy
	return dir + "/root"
}

func copyFile(t testing.TB, from, to string) {
	t.Helper()
	data, err := os.ReadFile(from)
	must(err)
	must(os.WriteFile(to, data, 0o755))
}

// newSpec is a step without anything special.
func newSpec(t testing.TB, root string, args ...string) Spec {
	return Spec{
		ID: "step", StateDir: t.TempDir(), Root: root, Args: args, Env: []string{"PATH=/bin"}, Network: "host", OneID: oneID(),
		Hostname: "sandbox",
	}
}

// output runs a step, and looks that nothing is left of it.
func output(t testing.TB, s Spec) (string, *Owners, error) {
	t.Helper()
	r, w, err := os.Pipe()
	must(err)
	defer r.Close()
	s.Stdout, s.Stderr = w, w
	var buf bytes.Buffer
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(&buf, r)
	}()
	owners, err := Run(t.Context(), s)
	w.Close()
	<-done
	left, _ := os.ReadDir(s.StateDir)
	if len(left) != 0 {
		t.Errorf("left in the state directory: %v", left)
	}
	return buf.String(), owners, err
}
