package atomicfile

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func entries(t *testing.T, dir string) string {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range list {
		names = append(names, e.Name())
	}
	return strings.Join(names, " ")
}

func TestWrite(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0o022))
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	for _, c := range []struct {
		data string
		o    Options
		mode fs.FileMode
	}{
		{"", Options{}, 0o644},
		{"one", Options{Sync: true}, 0o644},
		{"two", Options{Mode: 0o600}, 0o600},
		{"three", Options{Mode: 0o444}, 0o444},
		{"four", Options{Mode: 0o777}, 0o755},
	} {
		if err := Write(path, []byte(c.data), c.o); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(path)
		if err != nil || string(got) != c.data {
			t.Errorf("read %q, %v, want %q", got, err, c.data)
		}
		if fi, err := os.Stat(path); err != nil || fi.Mode() != c.mode {
			t.Errorf("%q has mode %v, %v, want %v", c.data, fi.Mode(), err, c.mode)
		}
	}
	if got := entries(t, dir); got != "file" {
		t.Errorf("directory holds %s", got)
	}
}

func TestWriteFails(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "full", "x"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := Write(filepath.Join(dir, "full"), nil, Options{}); err == nil {
		t.Error("a directory is replaced by a file")
	}
	if err := Write(filepath.Join(dir, "none", "file"), nil, Options{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("error %v", err)
	}
	if got := entries(t, dir); got != "full" {
		t.Errorf("left behind: %s", got)
	}
}

func TestMkdirAll(t *testing.T) {
	dir := t.TempDir()
	for range 2 {
		if err := MkdirAll(filepath.Join(dir, "a", "b", "c")); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"file", "file/x"} {
		if err := MkdirAll(filepath.Join(dir, path)); !errors.Is(err, syscall.ENOTDIR) {
			t.Errorf("%s: error %v", path, err)
		}
	}
}

// What root makes in a user's directory is the user's; without root everything is the caller's anyway.
func TestOwner(t *testing.T) {
	dir := t.TempDir()
	want := [2]uint32{uint32(os.Getuid()), uint32(os.Getgid())}
	if os.Geteuid() == 0 {
		want = [2]uint32{4321, 8765}
		if err := os.Chown(dir, 4321, 8765); err != nil {
			t.Fatal(err)
		}
	}
	if err := MkdirAll(filepath.Join(dir, "a", "b")); err != nil {
		t.Fatal(err)
	}
	if err := Write(filepath.Join(dir, "a", "b", "file"), nil, Options{}); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	if err := Inherit(filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a", "a/b", "a/b/file", "link"} {
		fi, err := os.Lstat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		st := fi.Sys().(*syscall.Stat_t)
		if got := [2]uint32{st.Uid, st.Gid}; got != want {
			t.Errorf("%s belongs to %v, want %v", name, got, want)
		}
	}
	if fi, err := os.Stat("/"); err != nil || fi.Sys().(*syscall.Stat_t).Uid == 4321 {
		t.Error("the link was followed")
	}
}
