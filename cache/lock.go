package cache

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"img/cache/atomicfile"
)

// Waiting for a lock is done by asking again: a blocking flock(2) in a goroutine could not be given up when ctx
// ends. The pause grows up to maxPause, which is small beside any step worth waiting for.
const (
	minPause = 2 * time.Millisecond
	maxPause = 100 * time.Millisecond
)

// Lock makes equal keys run once across processes (flock, released by the kernel at death). waiting is called once
// if another process holds the lock; it may be nil. Unlock is idempotent. If ctx ends first, its cause is returned.
//
// The holder removes the lock's file before it unlocks. Who gets a lock therefore looks whether its file is still the
// one at the path; if not, somebody else may hold the new one, and it begins again.
func (s *Store) Lock(ctx context.Context, k Key, waiting func()) (unlock func(), err error) {
	if !k.valid() {
		return nil, fmt.Errorf("lock key %q: no digest", k)
	}
	path := filepath.Join(s.dir, "locks", string(k))
	for pause := minPause; ; pause = min(2*pause, maxPause) {
		f, err := tryLock(path)
		if err != nil {
			return nil, fmt.Errorf("lock key: %w", err)
		}
		if f != nil {
			return sync.OnceFunc(func() { removeLock(f) }), nil
		}
		if waiting != nil {
			waiting()
			waiting = nil
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(pause):
		}
	}
}

// tryLock returns the locked file at path, or nil when somebody else holds it.
func tryLock(path string) (*os.File, error) {
	for {
		f, err := openLock(path)
		if err != nil {
			return nil, err
		}
		if held, err := flock(f); err != nil || !held {
			f.Close()
			return nil, err
		}
		if isAt(f, path) {
			return f, nil
		}
		f.Close()
	}
}

func openLock(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if errors.Is(err, fs.ErrNotExist) {
		if err := atomicfile.MkdirAll(filepath.Dir(path)); err != nil {
			return nil, err
		}
		f, err = os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	}
	if errors.Is(err, fs.ErrPermission) { // root made it and has not given it away yet; reading is enough for flock
		return os.Open(path)
	}
	if err != nil {
		return nil, err
	}
	if err := atomicfile.Inherit(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		f.Close()
		return nil, err
	}
	return f, nil
}

// flock reports whether it got the lock. File systems without flock (some network ones) get an open file description
// lock, which lives and dies the same way.
func flock(f *os.File) (bool, error) {
	err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOLCK) {
		err = unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK})
	}
	if errors.Is(err, unix.EWOULDBLOCK) || errors.Is(err, unix.EACCES) {
		return false, nil
	}
	return err == nil, err
}

// isAt reports whether path still names the open file.
func isAt(f *os.File, path string) bool {
	open, err := f.Stat()
	if err != nil {
		return false
	}
	named, err := os.Lstat(path)
	return err == nil && os.SameFile(open, named)
}

// removeLock gives up a held lock. A file that cannot be removed is locked again by the next comer.
func removeLock(f *os.File) {
	os.Remove(f.Name())
	f.Close()
}

// pruneLocks removes the files of killed holders.
func (s *Store) pruneLocks() error {
	names, err := os.ReadDir(filepath.Join(s.dir, "locks"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("list locks: %w", err)
	}
	for _, n := range names {
		f, err := tryLock(filepath.Join(s.dir, "locks", n.Name()))
		if err != nil {
			return fmt.Errorf("prune locks: %w", err)
		}
		if f != nil {
			removeLock(f)
		}
	}
	return nil
}
