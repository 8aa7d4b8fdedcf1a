// Package cache remembers which output each key produced, and why.
//
// It does not know what a step is: keys are digests of labelled text, outputs are words that mean something to the
// executor alone. Several processes may use one Store; they may do the same work twice, they never corrupt each
// other's.
package cache

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"img/cache/atomicfile"
)

// A Key is the SHA-256, in hex, of a Hash's text.
type Key string

// valid reports whether k is a digest in lower-case hex, and so a harmless file name.
func (k Key) valid() bool {
	return len(k) == 64 && strings.Trim(string(k), "0123456789abcdef") == ""
}

// An Output names what a step produced: a snapshot's name, a layer, a manifest. Only the executor knows which.
type Output string

// A Store is a directory of records, safe for concurrent use by any number of goroutines and processes. The zero
// value is not usable; call Open.
//
//	<dir>/9f/9f86d081…   a record
//	<dir>/locks/<key>    exists while somebody makes that key
type Store struct{ dir string }

// Open uses dir (<state>/cache/keys), making it when missing.
func Open(dir string) (*Store, error) {
	if err := atomicfile.MkdirAll(dir); err != nil {
		return nil, fmt.Errorf("open cache: %w", err)
	}
	return &Store{dir}, nil
}

// Get returns the record of a key, or false when there is none that can be trusted.
func (s *Store) Get(k Key) (Record, bool) {
	if !k.valid() {
		return Record{}, false
	}
	r, err := readRecord(s.path(k))
	return r, err == nil && r.Key == k
}

func (s *Store) path(k Key) string { return filepath.Join(s.dir, string(k[:2]), string(k)) }

// buffers hold whole files; decode copies what it keeps.
var buffers = sync.Pool{New: func() any { b := make([]byte, 4096); return &b }}

// readRecord takes three system calls where os.ReadFile takes seven: a build with nothing to do is made of these.
func readRecord(path string) (Record, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return Record{}, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	for data := (*buf)[:0]; ; {
		n, err := unix.Read(fd, data[len(data):cap(data)])
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return Record{}, &fs.PathError{Op: "read", Path: path, Err: err}
		}
		data = data[:len(data)+n]
		if len(data) < cap(data) { // a regular file reads short only at its end
			return decode(data)
		}
		data = slices.Grow(data, len(data))
		*buf = data
	}
}

// Put publishes a record by rename. It is not synced: after a power loss the record may be gone or damaged, which
// is a miss.
func (s *Store) Put(r Record) error {
	if !r.Key.valid() {
		return fmt.Errorf("record key %q: no digest", r.Key)
	}
	path, data := s.path(r.Key), encode(r)
	err := atomicfile.Write(path, data, atomicfile.Options{})
	if errors.Is(err, fs.ErrNotExist) {
		if err := atomicfile.MkdirAll(filepath.Dir(path)); err != nil {
			return fmt.Errorf("record key: %w", err)
		}
		err = atomicfile.Write(path, data, atomicfile.Options{})
	}
	if err != nil {
		return fmt.Errorf("record key: %w", err)
	}
	return nil
}

// Remove forgets a key. Forgetting what is not known is no error.
func (s *Store) Remove(k Key) error {
	if !k.valid() {
		return nil
	}
	return removeFile(s.path(k))
}

// removeFile removes a file that another process may remove as well.
func removeFile(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("forget key: %w", err)
	}
	return nil
}

// Each calls f for every readable record, in no particular order, until f returns false.
func (s *Store) Each(f func(Record) bool) error {
	return s.files(func(path string) (bool, error) {
		r, err := readRecord(path)
		return err != nil || f(r), nil
	})
}

// files calls f with the path of every record's file until f returns false or an error. Directories that vanish
// meanwhile are no error.
func (s *Store) files(f func(path string) (bool, error)) error {
	dirs, err := os.ReadDir(s.dir)
	if err != nil {
		return fmt.Errorf("list cache: %w", err)
	}
	for _, d := range dirs {
		if len(d.Name()) != 2 {
			continue
		}
		names, err := os.ReadDir(filepath.Join(s.dir, d.Name()))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("list cache: %w", err)
		}
		for _, n := range names {
			if !Key(n.Name()).valid() {
				continue
			}
			if more, err := f(filepath.Join(s.dir, d.Name(), n.Name())); err != nil || !more {
				return err
			}
		}
	}
	return nil
}

// Nearest returns the most recent record of a step (Record.Step) whose key text is not text: what to compare a new
// key's text with, by Explain. It reads all records, and is meant for telling people, not for deciding anything.
func (s *Store) Nearest(step, text string) (Record, bool) {
	var best Record
	err := s.Each(func(r Record) bool {
		if r.Step == step && r.Text != text && (best.Key == "" || r.Made.After(best.Made)) {
			best = r
		}
		return true
	})
	return best, err == nil && best.Key != ""
}

// Prune removes the records that keep does not want, damaged ones, and lock files that no living process holds, and
// returns how many records went. Records of other versions of the program stay: they are theirs to judge.
func (s *Store) Prune(keep func(Record) bool) (removed int, err error) {
	err = s.files(func(path string) (bool, error) {
		r, err := readRecord(path)
		switch {
		case errors.Is(err, errDamaged), err == nil && !keep(r):
			removed++
			return true, removeFile(path)
		}
		return true, nil
	})
	return removed, errors.Join(err, s.pruneLocks())
}
