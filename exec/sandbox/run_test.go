package sandbox

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"img/snapshot/attr"
)

var (
	update = flag.Bool("update", false, "rewrite what is expected")
	many   = flag.Bool("many", false, "look for leaks over 1,000 steps")
)

// golden compares with a file of testdata/exec/sandbox.
func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("../../testdata/exec/sandbox", name)
	if *update { // the outer process may write it, this one not
		must(os.MkdirAll(filepath.Join(os.Getenv("TMPDIR"), "golden"), 0o755))
		must(os.WriteFile(filepath.Join(os.Getenv("TMPDIR"), "golden", name), []byte(got), 0o644))
		return
	}
	want, err := os.ReadFile(file)
	must(err)
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", name, diff)
	}
}

func mappingName() string { return os.Getenv(innerVar) }

// What a step can see and do is a file of facts. A change there is a change of the promise.
func TestProbe(t *testing.T) {
	root := newRoot(t)
	for _, test := range []struct {
		name, what string
		change     func(*Spec)
	}{
		{"step", "fds,ids,env,status,calls,paths,devices,limits", func(*Spec) {}},
		{"user", "ids,env,status", func(s *Spec) { s.UID, s.GID, s.Groups, s.Dir = 1000, 1000, []uint32{7}, "/tmp" }},
		{"insecure", "fds,status", func(s *Spec) { s.Insecure = true }},
		{"none", "net,paths", func(s *Spec) { s.Network = "none" }},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newSpec(t, root, "/bin/probe", test.what)
			test.change(&s)
			out, _, err := output(t, s)
			if err != nil {
				t.Fatal(err)
			}
			if os.Getenv(keptVar) != "" { // a user with one id may not drop its groups: its own shows as 0
				out = strings.NewReplacer("Groups 0\n", "Groups \n", "groups [0]\n", "groups []\n").Replace(out)
			}
			golden(t, "probe-"+test.name+"-"+mappingName()+".txt", out)
		})
	}
}

// Five of seven namespaces are the step's own; the build's user namespace and the host's network are shared.
func TestNamespaces(t *testing.T) {
	out, _, err := output(t, newSpec(t, newRoot(t), "/bin/probe", "namespaces"))
	if err != nil {
		t.Fatal(err)
	}
	shared := ""
	for line := range strings.Lines(out) {
		name, _, _ := strings.Cut(line, ":")
		if own, _ := os.Readlink("/proc/self/ns/" + name); own == strings.TrimSpace(line) {
			shared += name + " "
		}
	}
	if shared != "net user " {
		t.Errorf("shared namespaces: %s", shared)
	}
}

func TestExit(t *testing.T) {
	root := newRoot(t)
	must(os.WriteFile(root+"/plain", []byte("text"), 0o644))
	for _, test := range []struct {
		name string
		args []string
		want *ExitError
	}{
		{"zero", []string{"true"}, nil},
		{"code", []string{"sh", "-c", "exit 42"}, &ExitError{Code: 42}},
		{"child's signal", []string{"sh", "-c", "sh -c 'kill -9 $$'; exit $?"}, &ExitError{Code: 137}},
		{"not found", []string{"nothing"}, &ExitError{Code: 127, Msg: `exec: "nothing": executable file not found in $PATH`}},
		{"no such file", []string{"/nothing"}, &ExitError{Code: 127, Msg: `exec: "/nothing": stat /nothing: no such file or directory`}},
		{"not executable", []string{"/plain"}, &ExitError{Code: 126, Msg: `exec: "/plain": permission denied`}},
		{"directory", []string{"/etc"}, &ExitError{Code: 126, Msg: `exec: "/etc": is a directory`}},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, _, err := output(t, newSpec(t, root, test.args...))
			var got *ExitError
			if err != nil && !errors.As(err, &got) {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// A sandbox that cannot be made is no exit of the process, and says what could not be done.
func TestStartError(t *testing.T) {
	s := newSpec(t, newRoot(t), "true")
	s.Mounts = []Mount{{Type: "bind", Source: "/no/such/source", Target: "/mnt"}}
	_, _, err := output(t, s)
	var exit *ExitError
	if err == nil || errors.As(err, &exit) || !strings.Contains(err.Error(), "/no/such/source") {
		t.Errorf("error %v", err)
	}
}

func TestCancel(t *testing.T) {
	root := newRoot(t)
	stop := errors.New("stopped by the test")
	for _, test := range []struct {
		name     string
		args     []string
		grace    time.Duration
		min, max time.Duration
	}{
		{"at the start", []string{"sleep", "60"}, 30 * time.Second, 0, 25 * time.Second},
		{"nobody listens", []string{"sleep", "60"}, 30 * time.Second, 0, 25 * time.Second},
		{"children end", []string{"sh", "-c", "sleep 60 & sleep 60; true"}, 30 * time.Second, 0, 25 * time.Second},
		{"listens", []string{"probe", "trap"}, 30 * time.Second, 0, 25 * time.Second},
		{"listens and stays", []string{"sh", "-c", "trap : TERM; echo; while true; do sleep 1; done"}, time.Second, time.Second, 25 * time.Second},
	} {
		t.Run(test.name, func(t *testing.T) {
			ctx, cancel := context.WithCancelCause(t.Context())
			s := newSpec(t, root, test.args...)
			s.Grace = test.grace
			r, w, err := os.Pipe()
			must(err)
			defer r.Close()
			s.Stdout = w
			var began time.Time
			canceled := make(chan struct{})
			go func() {
				defer close(canceled)
				switch test.name {
				case "at the start":
					time.Sleep(3 * time.Millisecond)
				case "listens and stays": // the trap is set once it speaks
					_, _ = r.Read(make([]byte, 1))
				default:
					time.Sleep(300 * time.Millisecond)
				}
				began = time.Now()
				cancel(stop)
			}()
			_, err = Run(ctx, s)
			w.Close()
			<-canceled
			if took := time.Since(began); !errors.Is(err, stop) || took < test.min || took > test.max {
				t.Errorf("%v after %v", err, took)
			}
			if left := children(t); left != 0 {
				t.Errorf("%d processes left", left)
			}
		})
	}
}

// children counts the processes of this PID namespace besides the test.
func children(t *testing.T) int {
	t.Helper()
	procs, err := filepath.Glob("/proc/[0-9]*")
	must(err)
	return len(procs) - 1
}

// Background processes hold the pipe; they end with the step, and so does the pipe.
func TestBackground(t *testing.T) {
	out, _, err := output(t, newSpec(t, newRoot(t), "sh", "-c", "sleep 60 & echo started"))
	if err != nil || out != "started\n" {
		t.Errorf("%q, %v", out, err)
	}
}

// Eight sleeping steps take as long as one.
func TestParallel(t *testing.T) {
	root := newRoot(t)
	began := time.Now()
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			s := newSpec(t, root, "sleep", "1")
			s.ID = "step-" + strconv.Itoa(i)
			if _, err := Run(t.Context(), s); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if took := time.Since(began); took > 2500*time.Millisecond {
		t.Errorf("8 steps of 1 s took %v", took)
	}
}

// Run leaves nothing behind: no descriptor, no thread, no goroutine, no mount, no file.
func TestLeaks(t *testing.T) {
	root := newRoot(t)
	run := func(times int) (fds, threads, routines, mounts int) {
		for range times {
			if _, _, err := output(t, newSpec(t, root, "true")); err != nil {
				t.Fatal(err)
			}
		}
		mountinfo, err := os.ReadFile("/proc/self/mountinfo")
		must(err)
		return count("/proc/self/fd"), count("/proc/self/task"), runtime.NumGoroutine(), strings.Count(string(mountinfo), "\n")
	}
	times := 50
	if *many {
		times = 1000
	}
	fds, threads, routines, mounts := run(5)
	fds2, threads2, routines2, mounts2 := run(times)
	// Threads and descriptors of a step that just ended may still be on their way out.
	if fds2 > fds+2 || threads2 > threads+6 || routines2 > routines+2 || mounts2 > mounts {
		t.Errorf("descriptors %d→%d, threads %d→%d, goroutines %d→%d, mounts %d→%d",
			fds, fds2, threads, threads2, routines, routines2, mounts, mounts2)
	}
}

func count(dir string) int {
	list, err := os.ReadDir(dir)
	must(err)
	return len(list)
}

// The host's abstract sockets are in the shared network namespace, yet out of reach.
func TestAbstractSocket(t *testing.T) {
	name := "sandbox-test-" + strconv.Itoa(int(time.Now().UnixNano()))
	l, err := net.Listen("unix", "@"+name)
	must(err)
	defer l.Close()
	out, _, err := output(t, newSpec(t, newRoot(t), "probe", "abstract", name))
	if err != nil || out != "abstract EPERM\n" {
		t.Errorf("%q, %v", out, err)
	}
}

func TestMounts(t *testing.T) {
	s := newSpec(t, newRoot(t), "probe", "mounts", "/mnt/a", "/mnt/a/sub", "/mnt/b", "/mnt/t", "/mnt/f")
	src := t.TempDir()
	must(os.MkdirAll(src+"/sub", 0o755))
	must(unix.Mount("t", src+"/sub", "tmpfs", 0, ""))
	defer func() { must(unix.Unmount(src+"/sub", 0)) }()
	must(os.WriteFile(src+"/file", []byte("content"), 0o644))
	for _, d := range []string{"a", "b", "t"} {
		must(os.MkdirAll(s.Root+"/mnt/"+d, 0o755))
	}
	must(os.WriteFile(s.Root+"/mnt/f", nil, 0o644))
	s.Mounts = []Mount{
		{Type: "bind", Source: src, Target: "/mnt/a", ReadOnly: true},
		{Type: "bind", Source: src, Target: "/mnt/b", NoExec: true},
		{Type: "tmpfs", Target: "/mnt/t", Size: 1 << 20, Mode: 0o700, NoSuid: true},
		{Type: "bind", Source: src + "/file", Target: "/mnt/f", ReadOnly: true, NoDev: true},
	}
	out, _, err := output(t, s)
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "mounts-"+mappingName()+".txt", out)
}

// The environment is what was given, and HOME; the root's /etc/passwd may be anything.
func TestHome(t *testing.T) {
	for _, test := range []struct {
		name   string
		passwd func(file string)
		want   string
	}{
		{"known", func(string) {}, "/home/app"},
		{"absent", func(f string) { must(os.Remove(f)) }, "/"},
		{"fifo", func(f string) { must(os.Remove(f)); must(unix.Mkfifo(f, 0o644)) }, "/"},
		{"directory", func(f string) { must(os.Remove(f)); must(os.Mkdir(f, 0o755)) }, "/"},
		{"link out", func(f string) { must(os.Remove(f)); must(os.Symlink("../../../../../../../etc/passwd", f)) }, "/"},
		{"link to device", func(f string) { must(os.Remove(f)); must(os.Symlink("/dev/zero", f)) }, "/"},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newSpec(t, newRoot(t), "probe", "env")
			s.UID, s.GID, s.Env = 1000, 1000, []string{"PATH=/bin", "HOME=", "A=1", "APT_CONFIG=mine"}
			test.passwd(s.Root + "/etc/passwd")
			out, _, err := output(t, s)
			if want := "env A=1\nenv APT_CONFIG=mine\nenv HOME=" + test.want + "\nenv PATH=/bin\n"; err != nil || out != want {
				t.Errorf("%q, %v", out, err)
			}
		})
	}
}

// A root whose /dev, /proc or /sys is a link gets an error; nothing is written where the link points.
func TestHostileRoot(t *testing.T) {
	outside := t.TempDir()
	for _, dir := range []string{"dev", "proc", "sys"} {
		for _, target := range []string{outside, "/etc", "missing", "../../../../../.." + outside} {
			t.Run(dir+" to "+filepath.Base(target), func(t *testing.T) {
				s := newSpec(t, newRoot(t), "true")
				must(os.Symlink(target, filepath.Join(s.Root, dir)))
				_, _, err := output(t, s)
				if err == nil || !strings.Contains(err.Error(), "/"+dir+" of the root is no directory") {
					t.Errorf("error %v", err)
				}
			})
		}
	}
	for _, bend := range []func(root string) error{
		func(r string) error { return os.Symlink("/etc/passwd", r+"/dev/null") },
		func(r string) error { return os.Symlink(outside, r+"/dev/pts") },
		func(r string) error { return os.Symlink(outside, r+"/dev/shm") },
		func(r string) error { return unix.Mkfifo(r+"/dev/null", 0o666) },
		func(r string) error { return os.Symlink(outside, r+"/sys/firmware") },
		func(r string) error { return os.Symlink(outside, r+"/proc/kcore") },
	} {
		s := newSpec(t, newRoot(t), "probe", "devices,paths")
		for _, dir := range []string{"dev", "proc", "sys"} {
			must(os.Mkdir(filepath.Join(s.Root, dir), 0o755))
		}
		must(bend(s.Root))
		out, _, err := output(t, s)
		if err != nil {
			t.Fatal(err)
		}
		golden(t, "probe-hostile-"+mappingName()+".txt", out)
	}
	if n := count(outside); n != 0 {
		t.Errorf("%d files appeared outside", n)
	}
}

// Where one id is mapped, owners and devices are kept as data.
func TestOneID(t *testing.T) {
	if !oneID() {
		return // has all ids: TestOwners
	}
	s := newSpec(t, newRoot(t), "sh", "-ec", `
		cd /tmp
		touch a b c d; mkdir dir; ln -s a link; ln -s a gone
		chown 7:8 a; probe fchown a 9 -1 dir -1 99
		chown 5:6 b; chown 0:0 b
		chmod 4755 c; chown 1000:1000 c
		chown -h 3:4 link; chown -h 3:4 gone; rm gone
		chown 44 /etc/motd
		cd dir; chown 70:71 ../d; cd ..
		mknod null c 1 3; mknod disk b 8 17; mknod fifo p; chown 11:12 fifo
		chown 6:6 null
		chown 5 /dev/null; chown 5 /dev/stdout /proc/self/fd/1
		su app -c true
		if mknod white c 0 0; then exit 3; fi
		if chown 1 missing; then exit 4; fi
		if mknod a c 1 3; then exit 5; fi
		cat /dev/img-apt.conf`)
	out, owners, err := output(t, s)
	if err != nil {
		t.Fatal(err, out)
	}
	golden(t, "oneid.txt", out+recorded(t, s.Root, owners))
}

// recorded prints what is known of the files a step made.
func recorded(t *testing.T, root string, owners *Owners) string {
	t.Helper()
	var b strings.Builder
	for _, name := range []string{"a", "b", "c", "d", "dir", "link", "fifo", "null", "disk", "../etc/motd"} {
		file := filepath.Join(root, "tmp", name)
		var st unix.Stat_t
		must(unix.Lstat(file, &st))
		fmt.Fprintf(&b, "%s %o disk %d:%d", name, st.Mode, st.Uid, st.Gid)
		for _, attr := range []string{attr.Owner, attr.Device} {
			buf := make([]byte, 64)
			if n, err := unix.Lgetxattr(file, attr, buf); err == nil {
				fmt.Fprintf(&b, " %s=%s", attr, buf[:n])
			}
		}
		if uid, gid, ok := owners.Owner("tmp/"+name, st.Ino); ok {
			fmt.Fprintf(&b, " owner %d:%d", uid, gid)
		}
		if kind, major, minor, ok := owners.Device(st.Ino); ok {
			fmt.Fprintf(&b, " device %c %d:%d", kind, major, minor)
		}
		b.WriteByte('\n')
	}
	fmt.Fprintf(&b, "owners %d, devices %d\n", len(owners.ids), len(owners.devices))
	return b.String()
}

// Owners of what an earlier layer has are found by who looks into the upper directory, where the files have other numbers.
func TestOneIDLower(t *testing.T) {
	if !oneID() {
		return // has all ids: nothing is recorded
	}
	s := newSpec(t, newRoot(t), "sh", "-ec", `
		chown -h 5:6 /bin/ls
		chown -h 7:8 /bin/id; mv /bin/id /tmp/moved
		chown -h 9:9 /bin/su; rm /bin/su; ln -s x /bin/su
		chown -h 0:0 /bin/touch
		mkdir /tmp/top; chown -h 3:3 /bin/kill; mv /bin/kill /tmp/top/kill; mv /tmp/top /tmp/end`)
	out, owners, err := output(t, s)
	if err != nil {
		t.Fatal(err, out)
	}
	upper := filepath.Join(filepath.Dir(s.Root), "upper")
	for name, want := range map[string]string{
		"bin/ls": "5:6 true", "tmp/moved": "7:8 true", "bin/su": "0:0 false", "bin/touch": "0:0 true", "tmp/end/kill": "3:3 true",
		"tmp/end": "0:0 false",
	} {
		var st unix.Stat_t
		must(unix.Lstat(filepath.Join(upper, name), &st))
		uid, gid, ok := owners.Owner(name, st.Ino)
		if got := fmt.Sprintf("%d:%d %v", uid, gid, ok); got != want {
			t.Errorf("%s is %s, want %s", name, got, want)
		}
	}
}

// Where all ids are mapped, files have their owners, and su works.
func TestOwners(t *testing.T) {
	if oneID() {
		return // has one id: TestOneID
	}
	s := newSpec(t, newRoot(t), "sh", "-ec", "cd /tmp; touch a; chown 7:8 a; stat -c %u:%g a; su app -c 'id -u'")
	out, owners, err := output(t, s)
	if err != nil || owners != nil || out != "7:8\n1000\n" {
		t.Errorf("%q, %v, %v", out, owners, err)
	}
}

func BenchmarkRun(b *testing.B) {
	root := newRoot(b)
	for b.Loop() {
		if _, err := Run(b.Context(), newSpec(b, root, "/bin/true")); err != nil {
			b.Fatal(err)
		}
	}
}
