package layout

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"syscall"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"img/cache/atomicfile"
	"img/registry/image"
)

// A Writer is a blob in the making. Another process may write to File; Commit names the blob by the descriptor, whose size is
// checked (the digest is trusted: the writer computed it).
type Writer struct {
	File  *os.File
	store *Store
	done  bool
}

// Create makes a temporary file that becomes a blob.
func (s *Store) Create() (*Writer, error) {
	if err := s.writable(); err != nil {
		return nil, err
	}
	for {
		f, err := os.CreateTemp(s.path(".tmp"), "blob-")
		if err != nil {
			return nil, fmt.Errorf("make blob: %w", err)
		}
		// The flock tells sweepers that the writer lives. One may have come between making and locking.
		err = flock(f, syscall.LOCK_EX)
		if err == nil && !isAt(f, f.Name()) {
			f.Close()
			continue
		}
		if err != nil {
			os.Remove(f.Name())
			f.Close()
			return nil, fmt.Errorf("make blob: %w", err)
		}
		return &Writer{File: f, store: s}, nil
	}
}

// Commit publishes the blob. If the store has it already, that copy, which may be durable, is kept.
func (w *Writer) Commit(d v1.Descriptor) error {
	if w.done {
		return fmt.Errorf("commit blob %s: %w", d.Digest, os.ErrClosed)
	}
	defer w.Discard()
	if err := w.publish(d); err != nil {
		return fmt.Errorf("commit blob %s: %w", d.Digest, err)
	}
	return nil
}

func (w *Writer) publish(d v1.Descriptor) error {
	if err := image.CheckDigest(d.Digest); err != nil {
		return err
	}
	fi, err := w.File.Stat()
	if err != nil {
		return err
	}
	if fi.Size() != d.Size {
		return fmt.Errorf("wrote %d bytes, descriptor says %d", fi.Size(), d.Size)
	}
	path := w.store.blobPath(d.Digest)
	if old, err := os.Lstat(path); err == nil && old.Mode().IsRegular() && old.Size() == d.Size {
		return nil
	}
	if err := w.File.Chmod(0o644); err != nil {
		return err
	}
	if err := atomicfile.Inherit(w.File.Name()); err != nil {
		return err
	}
	return os.Rename(w.File.Name(), path)
}

// Discard drops the file; after Commit it does nothing.
func (w *Writer) Discard() error {
	if w.done {
		return nil
	}
	w.done = true
	err := os.Remove(w.File.Name())
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return errors.Join(err, w.File.Close())
}

// sweep removes temporary files whose writer is dead, told by flock alone. It is a courtesy: errors are of no consequence.
func (s *Store) sweep() {
	entries, _ := os.ReadDir(s.path(".tmp"))
	for _, e := range entries {
		s.sweepOne(s.path(".tmp", e.Name()))
	}
}

// sweepIndex removes what writers of index.json left that were killed. Called under the lock, when no other writer lives.
func (s *Store) sweepIndex() {
	entries, _ := os.ReadDir(s.dir)
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), atomicfile.TempPrefix) {
			os.Remove(s.path(e.Name()))
		}
	}
}

func (s *Store) sweepOne(name string) {
	f, err := open(name)
	if err != nil {
		return
	}
	defer f.Close()
	if flock(f, syscall.LOCK_EX|syscall.LOCK_NB) == nil && isAt(f, name) {
		os.Remove(name)
	}
}

// isAt reports whether path still names the open file.
func isAt(f *os.File, path string) bool {
	a, err := f.Stat()
	if err != nil {
		return false
	}
	b, err := os.Lstat(path)
	return err == nil && os.SameFile(a, b)
}

func flock(f *os.File, how int) error {
	for {
		err := syscall.Flock(int(f.Fd()), how)
		if err != syscall.EINTR {
			return err
		}
	}
}

// lock takes the lock under which index.json changes.
func (s *Store) lock() (unlock func(), err error) {
	f, err := os.OpenFile(s.path(".lock"), os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o644)
	if err != nil {
		return nil, err
	}
	if err := atomicfile.Inherit(f.Name()); err != nil {
		f.Close()
		return nil, err
	}
	if err := flock(f, syscall.LOCK_EX); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	return func() { f.Close() }, nil
}
