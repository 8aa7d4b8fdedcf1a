package exec

import (
	"errors"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"img/cache/atomicfile"
)

// TempDir makes a directory below <state>/tmp that lives as long as this process, at most: remove deletes it, and what killed processes left
// behind is deleted by the next caller. A directory is in use while its owner holds a flock on it.
func TempDir(state, prefix string) (dir string, remove func() error, err error) {
	tmp := filepath.Join(state, "tmp")
	if err := atomicfile.MkdirAll(tmp); err != nil {
		return "", nil, err
	}
	f, left, err := makeTemp(tmp, prefix)
	for _, l := range left {
		os.RemoveAll(l.Name())
		l.Close()
	}
	if err != nil {
		return "", nil, err
	}
	return f.Name(), func() error { return errors.Join(os.RemoveAll(f.Name()), f.Close()) }, nil
}

// makeTemp makes a directory and locks it, and locks those that nobody holds any more. Callers take turns by a flock on tmp, so that none
// finds a directory that is made but not locked yet.
func makeTemp(tmp, prefix string) (f *os.File, left []*os.File, err error) {
	turn, err := os.Open(tmp)
	if err != nil {
		return nil, nil, err
	}
	defer turn.Close()
	if err := unix.Flock(int(turn.Fd()), unix.LOCK_EX); err != nil {
		return nil, nil, &os.PathError{Op: "lock", Path: tmp, Err: err}
	}
	left = abandoned(tmp)
	dir, err := os.MkdirTemp(tmp, prefix)
	if err != nil {
		return nil, left, err
	}
	err = atomicfile.Inherit(dir)
	if err == nil {
		f, err = os.Open(dir)
	}
	if err == nil {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
	}
	if err != nil {
		return nil, left, errors.Join(err, os.Remove(dir))
	}
	return f, left, nil
}

// abandoned locks the directories that nobody holds.
func abandoned(tmp string) (left []*os.File) {
	entries, _ := os.ReadDir(tmp)
	for _, e := range entries {
		f, err := os.Open(filepath.Join(tmp, e.Name()))
		if err != nil {
			continue
		}
		if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			left = append(left, f)
		} else {
			f.Close()
		}
	}
	return left
}
