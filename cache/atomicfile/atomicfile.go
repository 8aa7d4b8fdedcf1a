// Package atomicfile publishes files and directories by rename, so that a reader sees the old content or the new.
//
// Files that root writes into another user's state directory get that directory's owner, so that root and the user
// can share one state. It knows nothing about what the files hold.
package atomicfile

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
)

// TempPrefix begins the names of files that are not published yet. What bears it and belongs to no living process is
// garbage: a writer was killed.
const TempPrefix = ".tmp-"

// Options of Write.
type Options struct {
	// Sync makes the content and the name durable before Write returns.
	Sync bool
	// Mode is the file's mode, less the umask; 0 means 0644.
	Mode os.FileMode
}

// Write replaces path by data: a temporary file in the same directory, fsync if asked, owner as the directory's, rename.
//
// After an error path still has its old content, unless only making the new name durable went wrong; no temporary
// file is left. A failed fsync is final: the kernel reports it once and forgets it, a second one would lie.
func Write(path string, data []byte, o Options) error {
	if o.Mode == 0 {
		o.Mode = 0o644
	}
	dir := filepath.Dir(path)
	f, err := createTemp(dir, o.Mode)
	if err != nil {
		return err
	}
	if err := fill(f, data, o.Sync); err != nil {
		os.Remove(f.Name())
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		os.Remove(f.Name())
		return err
	}
	if !o.Sync {
		return nil
	}
	return SyncDir(dir)
}

// createTemp is os.CreateTemp with a mode: chmod afterwards would ignore the umask.
func createTemp(dir string, mode os.FileMode) (*os.File, error) {
	for try := 0; ; try++ {
		name := filepath.Join(dir, TempPrefix+strconv.FormatUint(rand.Uint64(), 36))
		f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
		if !errors.Is(err, fs.ErrExist) || try == 100 {
			return f, err
		}
	}
}

// fill writes and closes f.
func fill(f *os.File, data []byte, sync bool) error {
	defer f.Close()
	if _, err := f.Write(data); err != nil {
		return err
	}
	if err := Inherit(f.Name()); err != nil {
		return err
	}
	if sync {
		if err := f.Sync(); err != nil {
			return err
		}
	}
	return f.Close() // some network file systems report a full disk only here
}

// MkdirAll makes dir and missing parents, mode 0755 less the umask, each with the owner of its parent.
func MkdirAll(dir string) error {
	if fi, err := os.Stat(dir); err == nil {
		if !fi.IsDir() {
			return &fs.PathError{Op: "mkdir", Path: dir, Err: syscall.ENOTDIR}
		}
		return nil
	}
	if parent := filepath.Dir(dir); parent != dir {
		if err := MkdirAll(parent); err != nil {
			return err
		}
	}
	err := os.Mkdir(dir, 0o755)
	if errors.Is(err, fs.ErrExist) { // made by another process meanwhile, or no directory
		fi, statErr := os.Stat(dir)
		if statErr == nil && fi.IsDir() {
			return nil
		}
	}
	if err != nil {
		return err
	}
	return Inherit(dir)
}

// overflow is what the kernel shows for an id that the user namespace does not map (user_namespaces(7)). The number
// itself may well be mapped, to somebody else.
const overflow = 65534

// Inherit gives path the owner of its directory when the caller is root and they differ; otherwise it does nothing.
// A symbolic link itself is given, not what it points to.
//
// Where the owner cannot be given away (root without CAP_CHOWN, a squashing file server, an owner that the user
// namespace does not map) path stays as it is: it works for the caller, only sharing is lost.
func Inherit(path string) error {
	if os.Geteuid() != 0 {
		return nil
	}
	var dir, own syscall.Stat_t
	if err := syscall.Stat(filepath.Dir(path), &dir); err != nil {
		return &fs.PathError{Op: "stat", Path: filepath.Dir(path), Err: err}
	}
	if err := syscall.Lstat(path, &own); err != nil {
		return &fs.PathError{Op: "lstat", Path: path, Err: err}
	}
	if dir.Uid == own.Uid && dir.Gid == own.Gid || (dir.Uid == overflow || dir.Gid == overflow) && !initialIDs() {
		return nil
	}
	err := os.Lchown(path, int(dir.Uid), int(dir.Gid))
	if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.EINVAL) {
		return nil
	}
	return err
}

// initialIDs reports whether all ids are mapped to themselves, as outside of any user namespace: 65534 is then a user like others, and
// not where unmapped owners show.
var initialIDs = sync.OnceValue(func() bool {
	m, err := os.ReadFile("/proc/self/uid_map")
	return err == nil && strings.Join(strings.Fields(string(m)), " ") == "0 0 4294967295"
})

// SyncDir makes the names in a directory durable.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("make names durable: %w", err)
	}
	return nil
}
