package snapshot

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// bootFile says in which run of the machine a snapshot's files were last known to be whole.
const bootFile = "boot"

// filesAreWhole checks files that another run of the machine wrote, once in each run. Nothing in a snapshot is synced: a build that dies
// loses nothing, since the kernel keeps what was written, but a power loss leaves files that are missing or shorter than the tree says
// (a file's size reaches the disk after its data).
func (s *Store) filesAreWhole(dir string) error {
	if s.o.Boot == "" || s.seenWhole(dir) {
		return nil
	}
	// One check at a time: what the first to be done has made from these files, a later one must not take away.
	lock, err := flockDir(dir)
	if err != nil {
		return fmt.Errorf("check files: %w", err)
	}
	defer lock.Close()
	if s.seenWhole(dir) {
		return nil
	}
	if err := compareFiles(dir); err != nil {
		return fmt.Errorf("%s is not whole: %w", filepath.Base(dir), err)
	}
	// A merged block is of the same run as its topmost snapshot, but has no tree to compare it with: it is made anew.
	_ = os.Rename(filepath.Join(s.mergedDir(), filepath.Base(dir)), filepath.Join(s.own(), "trash-"+rand.Text()))
	// Only the mapping's own ids may note it; others look again next time.
	_ = writeFile(dir, bootFile, s.o.Boot+"\n")
	return nil
}

// seenWhole reports whether a snapshot's files were written or checked in this run.
func (s *Store) seenWhole(dir string) bool {
	b, err := os.ReadFile(filepath.Join(dir, bootFile))
	return err == nil && strings.TrimSpace(string(b)) == s.o.Boot
}

// flockDir waits for the flock of a directory, which closing it frees.
func flockDir(dir string) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	_, err = retry(func() (int, error) { return 0, unix.Flock(int(f.Fd()), unix.LOCK_EX) })
	if err != nil {
		f.Close()
		return nil, &fs.PathError{Op: "lock", Path: dir, Err: err}
	}
	return f, nil
}

// compareFiles looks for every entry of a tree with its type and size.
func compareFiles(dir string) error {
	t, err := openTreeFile(filepath.Join(dir, "tree"))
	if err != nil {
		return err
	}
	defer t.Close()
	root, err := os.Open(filepath.Join(dir, "fs"))
	if err != nil {
		return err
	}
	defer root.Close()
	return t.Each(func(e Entry) error {
		if e.Type == Removed {
			return nil // the tree is enough: not every file system can hold the mark
		}
		f, err := openBeneath(root, e.Path, unix.O_PATH|unix.O_NOFOLLOW)
		if errors.Is(err, unix.EACCES) {
			return nil // a directory that only the mapping's ids may enter
		}
		if err != nil {
			return fmt.Errorf("%q: %w", e.Path, err)
		}
		defer f.Close()
		var st unix.Stat_t
		if err := unix.Fstat(int(f.Fd()), &st); err != nil {
			return fmt.Errorf("%q: %w", e.Path, err)
		}
		if e.Type == File && (st.Mode&unix.S_IFMT != unix.S_IFREG || st.Size != e.Size) {
			return fmt.Errorf("%q: has %d bytes, not %d", e.Path, st.Size, e.Size)
		}
		return nil
	})
}
