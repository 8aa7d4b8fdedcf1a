package exec

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

const (
	testPasswd = "root:x:0:0:root:/root:/bin/sh\napp:x:1234:2345::/:\nbroken\nneg:x:-1:5::/:\n99:x:7:8::/:\n"
	testGroup  = "root:x:0:\nstaff:x:50:app\nroot2:x:0:\n"
)

// --chown as the Dockerfile reference (section 1.7) has it.
func TestSetOwner(t *testing.T) {
	for _, tc := range []struct {
		text     string
		uid, gid uint32
		note     string // what is told
	}{
		{"", 0, 0, ""},
		{"root", 0, 0, ""},
		{"root:root", 0, 0, ""},
		{"0", 0, 0, ""},
		{"7", 7, 7, ""}, // the group is the same number
		{"7:8", 7, 8, ""},
		{"99999:70000", 99999, 70000, ""},
		{"4294967294:4294967294", 4294967294, 4294967294, ""},
		{"app", 1234, 2345, ""}, // its own group
		{"app:staff", 1234, 50, ""},
		{"app:7", 1234, 7, ""},
		{"app:root", 1234, 0, ""},
		{"app:", 1234, 0, ""}, // an empty group is 0
		{"7:", 7, 0, ""},
		{":staff", 0, 50, ""},
		{":7", 0, 7, ""},
		{":", 0, 0, ""},
		{"99", 99, 99, ""}, // a number is never a name
		{"nosuch", 0, 0, `no user "nosuch"`},
		{"nosuch:7", 0, 7, `no user "nosuch"`},
		{"app:nosuch", 1234, 2345, `no group "nosuch"`},
		{"7:nosuch", 7, 7, `no group "nosuch"`},
		{"-1", 0, 0, `no user "-1"`},
		{"neg", 0, 0, `no user "neg"`}, // it has a number that is no id
	} {
		tg := testTarget(t, map[string]string{"etc/passwd": testPasswd, "etc/group": testGroup})
		if err := tg.setOwner("--chown", tc.text); err != nil {
			t.Errorf("%q: %v", tc.text, err)
			continue
		}
		var note string
		for _, w := range tg.warnings {
			note += w.Text + "; "
		}
		if tg.uid != tc.uid || tg.gid != tc.gid || tg.chown != (tc.text != "") || !strings.Contains(note, tc.note) || tc.note == "" && note != "" {
			t.Errorf("%q: %d:%d %v %q, want %d:%d %q", tc.text, tg.uid, tg.gid, tg.chown, note, tc.uid, tc.gid, tc.note)
		}
	}
}

// The accounts are files of an image: missing, hostile.
func TestSetOwnerOddFiles(t *testing.T) {
	empty := testTarget(t, nil)
	if err := empty.setOwner("--chown", "app:staff"); err != nil || len(empty.warnings) != 2 {
		t.Errorf("no accounts: %v, %q", err, empty.warnings)
	}
	linked := testTarget(t, map[string]string{"usr/passwd": testPasswd})
	if err := os.MkdirAll(linked.path+"/etc", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/usr/passwd", linked.path+"/etc/passwd"); err != nil {
		t.Fatal(err)
	}
	if err := linked.setOwner("--chown", "app"); err != nil || linked.uid != 1234 {
		t.Errorf("an absolute link: %v, %d", err, linked.uid)
	}
	for name, make := range map[string]func(p string) error{
		"is no regular file": func(p string) error { return unix.Mkfifo(p, 0o644) },
		"is larger than":     func(p string) error { return os.WriteFile(p, make([]byte, maxPasswd+1), 0o644) },
	} {
		tg := testTarget(t, map[string]string{"etc/group": ""})
		if err := make(tg.path + "/etc/passwd"); err != nil {
			t.Fatal(err)
		}
		if err := tg.setOwner("--chown", "app"); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%v, want %s", err, name)
		}
	}
}

// testTarget is a root with some files.
func testTarget(t *testing.T, files map[string]string) *target {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	tg, err := newTarget(dir, 65536)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(tg.close)
	return tg
}

// The kernel takes 4294967295 for "leave as it is": a layer with it could not be unpacked.
func TestSetOwnerRefusesWhatIsNoID(t *testing.T) {
	for _, text := range []string{"4294967295", "0:4294967295", "4294967296", "18446744073709551616:0"} {
		tg := testTarget(t, nil)
		if err := tg.setOwner("--chown", text); err == nil || !strings.Contains(err.Error(), "is not an id (0 to 4294967294)") {
			t.Errorf("%s: %v", text, err)
		}
	}
}
