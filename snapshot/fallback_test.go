package snapshot

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// mount(2) takes as many layers as lower ever gives: those of a block and a chain's blocks.
func TestOldMount(t *testing.T) {
	dir := t.TempDir()
	var m overlayMount
	for i := range 100 {
		l := filepath.Join(dir, fmt.Sprintf("layer:,\\%d", i))
		if err := os.Mkdir(l, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(l, fmt.Sprint("f", i)), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		fd, err := unix.Open(l, unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		f := os.NewFile(uintptr(fd), l)
		defer f.Close()
		m.lower = append(m.lower, procName(f))
	}
	at := t.TempDir()
	if err := m.oldMount(at, false); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(at, 0)
	if list, err := os.ReadDir(at); len(list) != 100 || err != nil {
		t.Error(len(list), err)
	}
}

// Without openat2 a path is opened a component at a time; neither way follows a link.
func TestOpenBeneath(t *testing.T) {
	dir := t.TempDir()
	for _, err := range []error{
		os.MkdirAll(filepath.Join(dir, "a/b"), 0o755), os.WriteFile(filepath.Join(dir, "a/b/c"), nil, 0o644),
		os.Symlink("b", filepath.Join(dir, "a/l")), os.Symlink("/etc/passwd", filepath.Join(dir, "out")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	root, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	for path, want := range map[string]bool{"a/b/c": true, "a/b": true, "a/l/c": false, "out": false, "a/x": false} {
		for name, open := range map[string]func(*os.File, string, int) (*os.File, error){"openat2": openBeneath, "steps": openStepwise} {
			f, err := open(root, path, unix.O_RDONLY)
			if (err == nil) != want {
				t.Errorf("%s %s: %v", name, path, err)
			}
			if err == nil {
				f.Close()
			}
		}
	}
}
