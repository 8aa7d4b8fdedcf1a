package userns

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// init makes the test binary what this package starts. Init functions run on the main thread, as in the real program.
func init() {
	Init()
	if len(os.Args) < 2 {
		return
	}
	switch os.Args[1] {
	case "inner": // report, then stay until descriptor 3 ends
		settled := Settle()
		json.NewEncoder(os.NewFile(4, "report")).Encode(lookAround(settled))
		io.Copy(io.Discard, os.NewFile(3, "hold"))
		os.Exit(0)
	case "exit3":
		os.Exit(3)
	case "touch":
		if err := os.WriteFile("touched", nil, 0o600); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	case "outer": // start an inner process, say its pid, and wait to be killed
		outer(os.Args[2])
	case "start": // start an inner process as whoever this is, and print its report
		startAndPrint(os.Args[2] == "nohelpers")
	}
}

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("img/userns.forever"))
}

// A report is what the inner process sees of itself.
type report struct {
	Mapping                   string // the first process's view: Why
	PID, UID, GID             int
	Groups                    []int
	UIDMap, GIDMap, SetGroups string
	CapEff, CapInh, CapAmb    string
	Settled                   string
	Sealed                    bool
	Signal                    int
	Env                       []string
	SID                       int
	Namespaces                map[string]string
	MountErr                  string
}

func lookAround(settled error) report {
	r := report{PID: os.Getpid(), UID: os.Getuid(), GID: os.Getgid(), Env: os.Environ(), Namespaces: map[string]string{}}
	r.Groups, _ = os.Getgroups()
	r.UIDMap, r.GIDMap = squeeze(readLine("/proc/self/uid_map")), squeeze(readLine("/proc/self/gid_map"))
	r.SetGroups = readLine("/proc/self/setgroups")
	b, _ := os.ReadFile("/proc/self/status")
	for line := range strings.Lines(string(b)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ":\t")
		switch name {
		case "CapEff":
			r.CapEff = value
		case "CapInh":
			r.CapInh = value
		case "CapAmb":
			r.CapAmb = value
		}
	}
	if settled != nil {
		r.Settled = settled.Error()
	}
	if exe, err := os.Open("/proc/self/exe"); err == nil {
		seals, err := unix.FcntlInt(exe.Fd(), unix.F_GET_SEALS, 0)
		r.Sealed = err == nil && seals&sealed == sealed
	}
	var sig int32
	unix.Prctl(unix.PR_GET_PDEATHSIG, uintptr(unsafe.Pointer(&sig)), 0, 0, 0)
	r.Signal = int(sig)
	r.SID, _ = unix.Getsid(0)
	for _, ns := range []string{"user", "mnt", "pid", "ipc", "uts", "net"} {
		r.Namespaces[ns], _ = os.Readlink("/proc/self/ns/" + ns)
	}
	r.MountErr = fmt.Sprint(unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
	return r
}

func squeeze(s string) string {
	var lines []string
	for line := range strings.Lines(s) {
		lines = append(lines, strings.Join(strings.Fields(line), " "))
	}
	return strings.Join(lines, ",")
}

// begin starts an inner process that reports and stays until hold is closed.
func begin(ctx context.Context, m Mapping) (p *Process, r report, hold *os.File, err error) {
	holdR, hold, err := os.Pipe()
	if err != nil {
		return nil, r, nil, err
	}
	defer holdR.Close()
	said, say, err := os.Pipe()
	if err != nil {
		return nil, r, nil, err
	}
	defer said.Close()
	p, err = Start(ctx, Config{Mapping: m, Args: []string{"img", "inner"}, Env: []string{"A=b"}, Files: []*os.File{holdR, say}, Stderr: os.Stderr})
	say.Close()
	if err != nil {
		hold.Close()
		return nil, r, nil, err
	}
	if err := json.NewDecoder(said).Decode(&r); err != nil {
		return nil, r, nil, fmt.Errorf("no report: %w, %v", err, p.Wait())
	}
	r.Mapping = p.Mapping.Why
	return p, r, hold, nil
}

func startAndPrint(noHelpers bool) {
	m, err := Choose()
	if err == nil && noHelpers {
		// A mapping that only newuidmap could write, and newuidmap would refuse.
		m.UIDs = append(m.UIDs[:1], Range{1, 3000000000, 10})
		m.GIDs = append(m.GIDs[:1], Range{1, 3000000000, 10})
	}
	var r report
	if err == nil {
		var p *Process
		var hold *os.File
		p, r, hold, err = begin(context.Background(), m)
		if err == nil {
			hold.Close()
			err = p.Wait()
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	json.NewEncoder(os.Stdout).Encode(r)
	os.Exit(0)
}

func outer(what string) {
	m, err := Choose()
	if err == nil && what == "one" {
		m = One()
	}
	var p *Process
	if err == nil {
		p, _, _, err = begin(context.Background(), m)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(p.PID())
	time.Sleep(time.Hour)
}

func TestStart(t *testing.T) {
	full, err := Choose()
	if err != nil {
		t.Fatal(err)
	}
	for name, m := range map[string]Mapping{"chosen": full, "one": One()} {
		t.Run(name, func(t *testing.T) {
			p, r, hold, err := begin(t.Context(), m)
			if err != nil {
				t.Fatal(err)
			}
			checkReport(t, r)
			if want := squeeze(mapText(m.UIDs)); r.UIDMap != want {
				t.Errorf("users %q, want %q", r.UIDMap, want)
			}
			if want := squeeze(mapText(m.GIDs)); r.GIDMap != want {
				t.Errorf("groups %q, want %q", r.GIDMap, want)
			}
			checkUsers(t, p, r)
			hold.Close()
			if err := p.Wait(); err != nil {
				t.Error(err)
			}
			if err := p.Wait(); err != nil {
				t.Errorf("the second time: %v", err)
			}
		})
	}
}

func checkReport(t *testing.T, r report) {
	t.Helper()
	if r.PID != 1 || r.UID != 0 || r.GID != 0 || r.SID != 1 {
		t.Errorf("pid %d, uid %d, gid %d, session %d", r.PID, r.UID, r.GID, r.SID)
	}
	full := uint64(1)<<len(allCapabilities()) - 1
	if r.CapEff != fmt.Sprintf("%016x", full) || strings.Trim(r.CapInh+r.CapAmb, "0") != "" {
		t.Errorf("capabilities: effective %s, inheritable %s, ambient %s", r.CapEff, r.CapInh, r.CapAmb)
	}
	if r.SetGroups == "allow" {
		checkGroups(t, r.Groups)
	}
	if r.Settled != "" || r.MountErr != "<nil>" {
		t.Errorf("Settle: %s; mount: %s", r.Settled, r.MountErr)
	}
	if !r.Sealed {
		t.Error("the program can be overwritten")
	}
	if r.Signal != int(syscall.SIGKILL) {
		t.Errorf("death signal %d", r.Signal)
	}
	if len(r.Env) != 1 || r.Env[0] != "A=b" {
		t.Errorf("environment %q", r.Env)
	}
	for ns, inside := range r.Namespaces {
		outside, err := os.Readlink("/proc/self/ns/" + ns)
		if err != nil || (inside == outside) != (ns == "net") {
			t.Errorf("%s namespace: %s inside, %s outside, %v", ns, inside, outside, err)
		}
	}
}

// checkGroups: what root has by its groups is not the build's business; users keep theirs for the files that they read by them.
func checkGroups(t *testing.T, inside []int) {
	t.Helper()
	want, err := os.Getgroups()
	if os.Getuid() == 0 {
		want = nil
	}
	if err != nil || len(inside) != len(want) {
		t.Errorf("groups %v, want %d", inside, len(want))
	}
}

func checkUsers(t *testing.T, p *Process, r report) {
	t.Helper()
	f, err := p.UsernsFile()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var s unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &s); err != nil || fmt.Sprintf("user:[%d]", s.Ino) != r.Namespaces["user"] {
		t.Errorf("UsernsFile is user:[%d], not %s, %v", s.Ino, r.Namespaces["user"], err)
	}
}

// The inner process stands in a directory to which it knows no way.
func TestDir(t *testing.T) {
	closed := filepath.Join(t.TempDir(), "closed")
	inside := filepath.Join(closed, "inside")
	for _, err := range []error{os.Mkdir(closed, 0o700), os.Mkdir(inside, 0o700)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	m, err := Choose()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(inside, int(m.HostUID()), int(m.HostGID())); err != nil {
		t.Fatal(err)
	}
	dir, err := os.Open(inside)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	before, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	p, err := Start(t.Context(), Config{Mapping: m, Args: []string{"img", "touch"}, Dir: dir, Stderr: os.Stderr})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Wait(); err != nil {
		t.Error(err)
	}
	var s unix.Stat_t
	if err := unix.Stat(filepath.Join(inside, "touched"), &s); err != nil || s.Uid != m.HostUID() {
		t.Errorf("owner %d, %v", s.Uid, err)
	}
	if after, err := os.Readlink("/proc/self/cwd"); err != nil || after != before {
		t.Errorf("this process moved from %s to %s, %v", before, after, err)
	}
}

// What the child is given may have any number, also the one below the program's: the program must not be overwritten while the
// child's files are put in their places.
func TestHighFiles(t *testing.T) {
	m, err := Choose()
	if err != nil {
		t.Fatal(err)
	}
	for at := 8; at < 40; at++ {
		fd, err := unix.FcntlInt(os.Stderr.Fd(), unix.F_DUPFD_CLOEXEC, at)
		if err != nil {
			t.Fatal(err)
		}
		high := os.NewFile(uintptr(fd), "high")
		p, err := Start(t.Context(), Config{Mapping: m, Args: []string{"img", "exit3"}, Files: []*os.File{high}})
		if err != nil {
			t.Fatalf("with a file at %d: %v", fd, err)
		}
		p.Wait()
		high.Close()
	}
}

func TestWait(t *testing.T) {
	m := One()
	p, err := Start(t.Context(), Config{Mapping: m, Args: []string{"img", "exit3"}})
	if err != nil {
		t.Fatal(err)
	}
	var exit *ExitError
	if err := p.Wait(); !errors.As(err, &exit) || exit.ExitCode() != 3 || err.Error() != "the inner process ended: exit status 3" {
		t.Errorf("Wait: %v", err)
	}
	if err := p.Kill(); err != nil {
		t.Errorf("Kill afterwards: %v", err)
	}
	p, _, hold, err := begin(t.Context(), m)
	if err != nil {
		t.Fatal(err)
	}
	defer hold.Close()
	if err := p.Kill(); err != nil {
		t.Errorf("Kill: %v", err)
	}
	if err := p.Wait(); !errors.As(err, &exit) || exit.ExitCode() != 128+9 || err.Error() != "the inner process ended: signal: killed" {
		t.Errorf("Wait: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Start(ctx, Config{Mapping: m, Args: []string{"img", "exit3"}}); !errors.Is(err, context.Canceled) {
		t.Errorf("Start without time: %v", err)
	}
}

// As an ordinary user without subordinate ids, and with a mapping that newuidmap refuses.
func TestStartUnprivileged(t *testing.T) {
	needRoot(t)
	for _, x := range []struct{ how, why string }{{"plain", "/etc/subuid has no range"}, {"nohelpers", "newuidmap: "}} {
		t.Run(x.how, func(t *testing.T) {
			cmd := asUser(12345, "start", x.how)
			out, err := cmd.Output()
			var r report
			if err == nil {
				err = json.Unmarshal(out, &r)
			}
			if err != nil {
				t.Fatal(err)
			}
			checkReport(t, r)
			if r.UIDMap != "0 12345 1" || r.GIDMap != "0 12345 1" || r.SetGroups != "deny" {
				t.Errorf("maps %q and %q, setgroups %s", r.UIDMap, r.GIDMap, r.SetGroups)
			}
			if !strings.Contains(r.Mapping, x.why) {
				t.Errorf("why %q", r.Mapping)
			}
		})
	}
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("NOT RUN: needs root to become another user")
	}
}

// asUser runs this test binary as a user that owns nothing, with groups that must not get in.
func asUser(uid uint32, args ...string) *exec.Cmd {
	self, err := program()
	if err != nil {
		panic(err)
	}
	cmd := exec.Command("/proc/self/fd/3", args...)
	cmd.ExtraFiles = []*os.File{self}
	cmd.Dir, cmd.Stderr = "/", os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid, Groups: []uint32{4, 20}}}
	return cmd
}

// SIGKILL of the first process ends the inner one within a second, though that never looks at its descriptors.
func TestDeathSignal(t *testing.T) {
	needRoot(t)
	self := func(args ...string) *exec.Cmd { return asUser(0, args...) }
	user := func(args ...string) *exec.Cmd { return asUser(12345, args...) }
	for _, x := range []struct {
		name string
		cmd  *exec.Cmd
	}{{"root", self("outer", "chosen")}, {"root, one id", self("outer", "one")}, {"user", user("outer", "chosen")}} {
		t.Run(x.name, func(t *testing.T) { diesWith(t, x.cmd) })
	}
}

func diesWith(t *testing.T, cmd *exec.Cmd) {
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	pid, err2 := strconv.Atoi(strings.TrimSpace(line))
	if err != nil || err2 != nil {
		t.Fatalf("%q, %v, %v", line, err, cmd.Wait())
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	cmd.Process.Kill()
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 1000)
	for err == unix.EINTR { // the runtime's own signals
		n, err = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 1000)
	}
	if err != nil || n != 1 {
		t.Errorf("process %d lives on, %v", pid, err)
		syscall.Kill(pid, syscall.SIGKILL)
	}
	cmd.Wait()
}

func TestExplain(t *testing.T) {
	user := limits{uid: 1000, maxNS: "100"}
	with := func(change func(*limits)) limits { l := user; change(&l); return l }
	filtered := func(l *limits) { l.status.seccomp = true }
	for _, x := range []struct {
		errno         syscall.Errno
		l             limits
		cause, remedy string
	}{
		{syscall.ENOSPC, user, "max_user_namespaces = 100", "user.max_user_namespaces="},
		{syscall.EUSERS, user, "32 levels", "user.max_user_namespaces="},
		{syscall.ENOSYS, user, "no user namespaces", "CONFIG_USER_NS"},
		{syscall.EINVAL, user, "no user namespaces", "CONFIG_USER_NS"},
		{syscall.EPERM, with(func(l *limits) { l.maxNS = "0" }), "are off", "user.max_user_namespaces="},
		{syscall.EPERM, with(func(l *limits) { l.clone = "0" }), "for users", "kernel.unprivileged_userns_clone=1"},
		{syscall.EACCES, with(func(l *limits) { l.confine = "1" }), "AppArmor", "apparmor_restrict_unprivileged_userns=0"},
		{syscall.EPERM, with(func(l *limits) { l.chroot = true }), "chroot", "pivot_root"},
		{syscall.EPERM, with(func(l *limits) { l.uid = 0 }), "root without capabilities", "runAsUser"},
		{syscall.EPERM, with(filtered), "container's", "--security-opt seccomp=unconfined"},
		{syscall.EPERM, with(func(l *limits) { filtered(l); l.pod = true }), "pod's", "seccompProfile.type: Unconfined"},
		{syscall.EPERM, with(func(l *limits) { filtered(l); l.uid = 0 }), "container's", "--security-opt seccomp=unconfined"},
		{syscall.EPERM, user, "security module", "dmesg"},
		{syscall.EIO, user, "", ""},
	} {
		cause, remedy := explain(x.errno, x.l)
		if !strings.Contains(cause, x.cause) || !strings.Contains(remedy, x.remedy) || (x.cause == "") != (cause == "") {
			t.Errorf("%v of %+v: %q, %q", x.errno, x.l, cause, remedy)
		}
	}
	var e *Error
	if err := Explain(fmt.Errorf("mount: %w", syscall.EPERM)); !errors.As(err, &e) || !errors.Is(err, syscall.EPERM) || e.Remedy == "" {
		t.Errorf("Explain: %v", err)
	}
	if err := errors.New("x"); Explain(err) != err || Explain(nil) != nil {
		t.Error("Explain changes what it does not know")
	}
	if kind, data := (&Error{Remedy: "do it"}).WireKind(); kind != "userns" || data != "do it" {
		t.Errorf("wire: %s %v", kind, data)
	}
}

func TestHelperProblem(t *testing.T) {
	plain := filepath.Join(t.TempDir(), "newuidmap")
	if err := os.WriteFile(plain, nil, 0o755); err != nil {
		t.Fatal(err)
	}
	if got := helperProblem(plain); !strings.Contains(got, "neither the setuid bit") {
		t.Errorf("a plain file: %q", got)
	}
	if got := helperProblem(plain + "x"); !strings.Contains(got, "no such file") {
		t.Errorf("no file: %q", got)
	}
	if _, _, got := findHelpers(status{noNewPrivs: true}); got == "" {
		t.Error("no_new_privs is no problem")
	}
	s := parseStatus("Name:\timg\nCapEff:\t000001ffffffffff\nNoNewPrivs:\t1\nSeccomp:\t2\n")
	if s.caps != 1<<41-1 || !s.noNewPrivs || !s.seccomp {
		t.Errorf("status %+v", s)
	}
}
