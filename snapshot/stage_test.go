package snapshot

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// nest makes directories each in the one before, with a file in some.
func nest(t *testing.T, dir string, levels int) {
	t.Helper()
	at, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	for i := 0; i < levels && err == nil; i++ {
		if err = unix.Mkdirat(at, "d", 0o755); err != nil {
			break
		}
		var next int
		next, err = unix.Openat(at, "d", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		unix.Close(at)
		if at = next; err == nil && i%100 == 0 {
			err = unix.Mknodat(at, "f", unix.S_IFREG|0o644, 0)
		}
	}
	unix.Close(at)
	if err != nil {
		t.Fatal(err)
	}
}

// fewFiles lowers the limit of open files for a test.
func fewFiles(t *testing.T, n uint64) {
	t.Helper()
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: n, Max: old.Max}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
			t.Error(err)
		}
	})
}

// A tree with more levels than files may be open is removed, at once or bit by bit.
func TestRemoveDeep(t *testing.T) {
	fewFiles(t, 256)
	for _, limit := range []time.Duration{0, time.Millisecond} {
		dir := filepath.Join(t.TempDir(), "tree")
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		nest(t, dir, 5000)
		err := errTime
		for n := 0; errors.Is(err, errTime) && n < 10_000; n++ {
			var until time.Time
			if limit > 0 {
				until = time.Now().Add(limit)
			}
			err = removeTree(dir, until)
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, err := os.Lstat(dir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the tree is still there: %v", err)
		}
	}
}

// A commit of more levels than can be gone through says where they are and leaves nothing; as many as have names are committed.
func TestCommitDeep(t *testing.T) {
	for _, driver := range []string{Overlay, Copies} {
		for _, c := range []struct {
			name   string
			levels int
			files  uint64 // limit of open files; 0 leaves it
			want   string
		}{
			{"deep", 1000, 0, ""},
			{"deeper than any path", 5000, 0, "more than 2048 directories"},
			{"deeper than files may be open", 1000, 512, "too many open files"},
		} {
			t.Run(driver+" "+c.name, func(t *testing.T) {
				dir := t.TempDir()
				s, err := Open(dir, Options{Map: "m", Driver: driver, Scratch: t.TempDir()})
				if err != nil {
					t.Fatal(err)
				}
				defer s.Close()
				a, err := s.Prepare(t.Context(), "")
				if err != nil {
					t.Fatal(err)
				}
				nest(t, a.Root(), c.levels)
				if c.files > 0 {
					fewFiles(t, c.files)
				}
				_, err = a.Commit(t.Context(), CommitOptions{})
				if c.want == "" {
					if err != nil {
						t.Error(err)
					}
					return
				}
				if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "\"d/d/d") || len(err.Error()) > 500 {
					t.Errorf("error %v", err)
				}
				if left, _ := filepath.Glob(filepath.Join(dir, "m", "*-*")); len(left) > 0 {
					t.Errorf("left: %q", left)
				}
			})
		}
	}
}
