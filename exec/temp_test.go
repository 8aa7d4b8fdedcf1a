package exec

import (
	"os"
	"path/filepath"
	"testing"
)

// What a killed process left is deleted; what a living one holds is not.
func TestTempDir(t *testing.T) {
	state := t.TempDir()
	held, remove, err := TempDir(state, "a-")
	if err != nil {
		t.Fatal(err)
	}
	left := filepath.Join(state, "tmp", "left")
	for _, dir := range []string{held, left} {
		if err := os.MkdirAll(filepath.Join(dir, "sub"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	empty := filepath.Join(state, "tmp", "empty")
	if err := os.Mkdir(empty, 0o700); err != nil {
		t.Fatal(err)
	}
	_, again, err := TempDir(state, "b-")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(held, "sub")); err != nil {
		t.Errorf("a directory in use was swept: %v", err)
	}
	if _, err := os.Stat(left); err == nil {
		t.Error("a directory of nobody's is still there")
	}
	if _, err := os.Stat(empty); err == nil {
		t.Error("an empty directory of nobody's is still there")
	}
	for _, f := range []func() error{remove, again} {
		if err := f(); err != nil {
			t.Error(err)
		}
	}
	if rest, _ := os.ReadDir(filepath.Join(state, "tmp")); len(rest) > 0 {
		t.Errorf("%d directories are left", len(rest))
	}
}
