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
	sweep(tmp)
	if dir, err = os.MkdirTemp(tmp, prefix); err != nil {
		return "", nil, err
	}
	if err := atomicfile.Inherit(dir); err != nil {
		return "", nil, errors.Join(err, os.Remove(dir))
	}
	f, err := os.Open(dir)
	if err != nil {
		return "", nil, errors.Join(err, os.Remove(dir))
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		f.Close()
		return "", nil, errors.Join(err, os.Remove(dir))
	}
	return dir, func() error { return errors.Join(os.RemoveAll(dir), f.Close()) }, nil
}

// sweep deletes what nobody holds. A directory between its making and its lock may be lost to it, so a fresh one is left alone: empty.
func sweep(tmp string) {
	entries, _ := os.ReadDir(tmp)
	for _, e := range entries {
		dir := filepath.Join(tmp, e.Name())
		f, err := os.Open(dir)
		if err != nil {
			continue
		}
		if names, _ := f.Readdirnames(1); len(names) > 0 && unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			os.RemoveAll(dir)
		}
		f.Close()
	}
}
