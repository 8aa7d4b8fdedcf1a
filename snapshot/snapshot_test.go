package snapshot_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"img/snapshot"
	"img/snapshot/snapshottest"
)

// idsEnv tells a test process inside a user namespace how many ids it has.
const idsEnv = "IMG_SNAPSHOT_TEST_IDS"

// The tests mount. A user without that right runs them as root of a namespace with one id.
func TestMain(m *testing.M) {
	if os.Getuid() == 0 {
		os.Exit(m.Run())
	}
	cmd := inNamespace(os.Args[0], os.Getuid(), os.Getgid(), 1)
	cmd.Args = append(cmd.Args, os.Args[1:]...)
	if err := cmd.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "in a user namespace:", err)
		os.Exit(1)
	}
}

// inNamespace is a command as root of a user namespace whose ids 0... are the host's from uid and gid on.
func inNamespace(program string, uid, gid, ids int) *exec.Cmd {
	cmd := exec.Command(program)
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d", idsEnv, ids))
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:                 syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
		UidMappings:                []syscall.SysProcIDMap{{ContainerID: 0, HostID: uid, Size: ids}},
		GidMappings:                []syscall.SysProcIDMap{{ContainerID: 0, HostID: gid, Size: ids}},
		GidMappingsEnableSetgroups: os.Getuid() == 0,
		Credential:                 &syscall.Credential{Uid: 0, Gid: 0, NoSetGroups: ids == 1},
		Pdeathsig:                  syscall.SIGKILL,
	}
	return cmd
}

func ids(t *testing.T) uint32 {
	var n uint32 = 1 << 20 // real root: as many as the tests use
	if s := os.Getenv(idsEnv); s != "" {
		if _, err := fmt.Sscan(s, &n); err != nil {
			t.Fatal(err)
		}
	}
	return n
}

func open(driver string) snapshottest.Opener {
	return func(t *testing.T, dir string) *snapshot.Store {
		t.Helper()
		if err := os.MkdirAll(filepath.Join(dir, "test"), 0o755); err != nil {
			t.Fatal(err)
		}
		s, err := snapshot.Open(dir, snapshot.Options{Map: "test", IDs: ids(t), Driver: driver, Scratch: t.TempDir()})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		return s
	}
}

func TestOverlay(t *testing.T) { snapshottest.Suite(t, ids(t), open(snapshot.Overlay)) }
func TestCopies(t *testing.T)  { snapshottest.Suite(t, ids(t), open(snapshot.Copies)) }

// The suites again, where they run for users: in a user namespace with subordinate ids, and in one with a single id.
func TestInUserNamespace(t *testing.T) {
	if os.Getenv(idsEnv) != "" {
		return // this is the inside
	}
	const host = 300_000
	for _, n := range []int{65536, 1} {
		t.Run(fmt.Sprint(n, " ids"), func(t *testing.T) {
			dir := shared(t, host)
			cmd := inNamespace(copyProgram(t, dir), host, host, n)
			cmd.Dir = dir
			cmd.Env = append(cmd.Env, "TMPDIR="+dir)
			cmd.Args = append(cmd.Args, "-test.run", "^(TestOverlay|TestCopies|TestDriversAgree)$", "-test.count=1")
			if testing.Verbose() {
				cmd.Args = append(cmd.Args, "-test.v")
			}
			if err := cmd.Run(); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// shared makes a directory that the ids of a namespace own and reach.
func shared(t *testing.T, uid int) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "img-snapshot")
	if err == nil {
		err = os.Chmod(dir, 0o755)
	}
	if err == nil {
		err = os.Chown(dir, uid, uid)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func copyProgram(t *testing.T, dir string) string {
	t.Helper()
	b, err := os.ReadFile("/proc/self/exe")
	to := filepath.Join(dir, "test")
	if err == nil {
		err = os.WriteFile(to, b, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	return to
}

// Both drivers give equal changes one name and one tree.
func TestDriversAgree(t *testing.T) {
	set := snapshot.CommitOptions{Times: snapshot.TimesSet}
	overlay, copies := open(snapshot.Overlay)(t, t.TempDir()), open(snapshot.Copies)(t, t.TempDir())
	var a, b snapshot.Name
	for _, script := range []string{
		"mkdir -p etc usr/lib; echo root >etc/passwd; echo 1 >usr/lib/a; ln usr/lib/a usr/lib/b; ln -s lib usr/lib64",
		"echo user >>etc/passwd; rm usr/lib64; mkdir usr/lib64; chmod 700 etc; touch -d @5 usr/lib64",
		"mv usr opt; mkdir usr; touch -d 2001-01-01 usr/x",
		"rm -r opt/lib; echo 1 >opt/lib; chmod 1777 .",
		"true",
		"ln etc/passwd etc/shadow; mkfifo etc/p",
		"rm -r *",
	} {
		a = snapshottest.Step(t, overlay, a, set, snapshottest.Script(script))
		b = snapshottest.Step(t, copies, b, set, snapshottest.Script(script))
		if x, y := snapshottest.Tree(t, overlay, a), snapshottest.Tree(t, copies, b); a != b || x != y {
			t.Fatalf("%s\noverlay: %s\n%scopies: %s\n%s", script, a, x, b, y)
		}
	}
}

// The one difference that is allowed: a write in place to a file with several names. Overlay copies the one name up, and the
// link is broken; on plain files all names change.
func TestDriversDiffer(t *testing.T) {
	for driver, want := range map[string]string{
		snapshot.Overlay: "f a\n",
		snapshot.Copies:  "f a\nf b = a\n",
	} {
		s := open(driver)(t, t.TempDir())
		n := snapshottest.Step(t, s, "", snapshot.CommitOptions{}, snapshottest.Script("echo 1 >a; ln a b"))
		n = snapshottest.Step(t, s, n, snapshot.CommitOptions{}, snapshottest.Script("echo 2 >>a"))
		if got := snapshottest.Tree(t, s, n); got != want {
			t.Errorf("%s: tree is\n%swant\n%s", driver, got, want)
		}
	}
}

// What one driver commits the other can go on from.
func TestDriversShare(t *testing.T) {
	dir := t.TempDir()
	overlay, copies := open(snapshot.Overlay)(t, dir), open(snapshot.Copies)(t, dir)
	var n snapshot.Name
	for i, script := range []string{
		"mkdir -p a/b; echo 1 >a/b/c; echo 1 >f; ln f g",
		"rm -r a; mkdir a; echo 2 >a/d; rm f",
		"mv a z; echo 3 >z/e",
		"rm z/d; ln g h",
	} {
		s := []*snapshot.Store{copies, overlay}[i%2]
		n = snapshottest.Step(t, s, n, snapshot.CommitOptions{}, snapshottest.Script(script))
	}
	const want = "f g\nf h = g\nd z\nf z/e\n"
	for _, s := range []*snapshot.Store{overlay, copies} {
		if got := snapshottest.View(t, s, n); got != want {
			t.Errorf("view is\n%swant\n%s", got, want)
		}
		dir, release, err := s.Mount(context.Background(), n)
		if err != nil {
			t.Fatal(err)
		}
		if b, err := os.ReadFile(filepath.Join(dir, "z/e")); string(b) != "3\n" {
			t.Errorf("z/e is %q, %v", b, err)
		}
		if err := release(); err != nil {
			t.Error(err)
		}
	}
}
