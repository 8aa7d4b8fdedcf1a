package userns

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func init() { // "facts": print them, as whoever this is
	if len(os.Args) == 3 && os.Args[1] == "facts" {
		json.NewEncoder(os.Stdout).Encode(Facts(context.Background(), os.Args[2]))
		os.Exit(0)
	}
}

func checkFacts(t *testing.T, facts []Fact, must ...string) {
	t.Helper()
	got := map[string]Fact{}
	for _, f := range facts {
		t.Logf("%-22s %-5v %s | %s | %s", f.Name, f.OK, f.Value, f.Effect, f.Remedy)
		if _, twice := got[f.Name]; twice || f.Name == "" || f.Value == "" {
			t.Errorf("%+v", f)
		}
		if f.OK != (f.Effect == "") || f.OK != (f.Remedy == "") {
			t.Errorf("%+v: effect and remedy go with what is missing, and only with that", f)
		}
		got[f.Name] = f
	}
	for _, name := range must {
		if !got[name].OK {
			t.Errorf("no %s here: %+v", name, got[name])
		}
	}
}

func TestFacts(t *testing.T) {
	state := filepath.Join(t.TempDir(), "not", "yet")
	start := time.Now()
	want := []string{"kernel", "user namespaces", "overlay", "mount", "fresh /proc"}
	if m, err := Choose(); err == nil && !m.Single() {
		want = append(want, "mapping")
	}
	checkFacts(t, Facts(t.Context(), state), want...)
	if d := time.Since(start); d > 10*time.Second {
		t.Errorf("it took %v", d)
	}
	if left, _ := os.ReadDir(existing(state)); len(left) != 0 {
		t.Errorf("%v was left behind", left)
	}
}

func TestFactsUnprivileged(t *testing.T) {
	needRoot(t)
	dir, err := os.MkdirTemp("/tmp", "userns-test-") // t.TempDir is closed to others
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := os.Chown(dir, 12345, 12345); err != nil {
		t.Fatal(err)
	}
	out, err := asUser(12345, "facts", dir).Output()
	var facts []Fact
	if err == nil {
		err = json.Unmarshal(out, &facts)
	}
	if err != nil {
		t.Fatal(err)
	}
	checkFacts(t, facts, "user namespaces", "overlay", "mount", "fresh /proc", "state directory")
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("%v was left behind", left)
	}
}

func TestNewerThan(t *testing.T) {
	for release, want := range map[string]bool{
		"5.11.0": true, "5.10.99-generic": false, "6.1.0-18-amd64": true, "4.19": false, "10.0-rc1": true, "x": false, "": false,
	} {
		if newerThan(release, 5, 11) != want {
			t.Errorf("%q", release)
		}
	}
}

func TestOwnCgroup(t *testing.T) {
	const v2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n"
	for _, x := range []struct{ cgroup, mounts, dir, problem string }{
		{"0::/user.slice/a.scope\n", v2, "/sys/fs/cgroup/user.slice/a.scope", ""},
		{"1:cpu:/x\n0::/\n", v2, "/sys/fs/cgroup", ""},
		{"0::/pod/a\n", "30 23 0:26 /pod /sys/fs/cgroup rw - cgroup2 cgroup rw\n", "/sys/fs/cgroup/a", ""},
		{"0::/other\n", "30 23 0:26 /pod /sys/fs/cgroup rw - cgroup2 cgroup rw\n", "", "outside"},
		{"1:cpu:/x\n", v2, "", "no cgroup v2"},
		{"0::/\n", "30 23 0:26 / /sys rw - sysfs sysfs rw\n", "", "no cgroup v2"},
		{"", "", "", "no cgroup v2"},
	} {
		dir, problem := ownCgroup(x.cgroup, x.mounts)
		if dir != x.dir || !strings.Contains(problem, x.problem) || (problem == "") != (x.problem == "") {
			t.Errorf("%+v: %q, %q", x, dir, problem)
		}
	}
}

func TestCheckOwners(t *testing.T) {
	base, uid := t.TempDir(), uint32(os.Getuid())
	for i, x := range []struct {
		mode os.FileMode
		want string
	}{
		{0o700, ""}, {0o755, ""}, {0o1777&^0o1000 | os.ModeSticky, ""}, {0o775, "can be written by others"}, {0o757, "can be written by others"},
	} {
		dir := filepath.Join(base, fmt.Sprint(i))
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(dir, x.mode); err != nil {
			t.Fatal(err)
		}
		err := checkOwners(filepath.Join(dir, "a", "b"), uid)
		if (err == nil) != (x.want == "") || err != nil && !strings.Contains(err.Error(), x.want) {
			t.Errorf("%v: %v", x.mode, err)
		}
	}
	if err := checkOwners(base, uid+1); uid == 0 && err != nil {
		t.Errorf("root's directories are refused: %v", err)
	}
	file := filepath.Join(base, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := checkOwners(file, uid); err == nil || !strings.Contains(err.Error(), "is no directory") {
		t.Errorf("a file: %v", err)
	}
	if existing(filepath.Join(file, "x")) != base || existing("/") != "/" {
		t.Error("existing")
	}
}

func TestEmulators(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"qemu-arm": "enabled\ninterpreter x\n", "qemu-s390x": "disabled\n", "register": ""} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if got := emulators(dir); len(got) != 1 || got[0] != "qemu-arm" {
		t.Errorf("%v", got)
	}
}
