package exec

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"img/snapshot"
	"img/snapshot/attr"
)

// put makes one entry at a path and returns the digest of a file's content, computed while it is copied.
func (t *target) put(p string, e snapshot.Entry, c content) (digest string, err error) {
	if e.Type == snapshot.Dir {
		return "", t.putDir(p, e)
	}
	fd, base, err := t.dir(p)
	if err != nil {
		return "", err
	}
	if err := t.clear(fd, base, p); err != nil {
		return "", err
	}
	switch e.Type {
	case snapshot.File:
		if e.HardLink != "" {
			if digest, err = digestOf(t.context(), c); err != nil {
				return "", err
			}
			return digest, t.link(e.HardLink, fd, base, p)
		}
		return t.putFile(fd, base, p, e, c)
	case snapshot.Symlink:
		err = unix.Symlinkat(e.Link, fd, base)
	case snapshot.Fifo:
		err = unix.Mknodat(fd, base, unix.S_IFIFO|0o600, 0)
	case snapshot.Char, snapshot.Block:
		err = t.putDevice(fd, base, e)
	default:
		err = fmt.Errorf("unknown type %q", e.Type)
	}
	if err != nil {
		return "", &os.PathError{Op: "make", Path: "/" + p, Err: err}
	}
	if err := t.restore(fd, base, p, e); err != nil {
		return "", err
	}
	return "", utimes(fd, base, e.MTime)
}

// clear removes what a file replaces; a directory stays and is an error, unless the step replaces those too.
func (t *target) clear(fd int, base, p string) error {
	err := unix.Unlinkat(fd, base, 0)
	switch {
	case err == nil || errors.Is(err, unix.ENOENT):
		return nil
	case !errors.Is(err, unix.EISDIR):
		return &os.PathError{Op: "remove", Path: "/" + p, Err: err}
	case t.replace:
		return os.RemoveAll(fmt.Sprintf("/proc/self/fd/%d/%s", fd, base))
	}
	return fmt.Errorf("cannot replace to directory %q with file", "/"+p)
}

// putDir makes a directory, or gives an existing one the source's mode and owner.
func (t *target) putDir(p string, e snapshot.Entry) error {
	fd, base, err := t.dir(p)
	if err != nil {
		return err
	}
	if _, err := t.mkdir(fd, base, p); err != nil {
		return notDir(err, p)
	}
	t.later(p, e.MTime)
	return t.restore(fd, base, p, e)
}

// pass makes a directory that is only on the way to what is copied. An existing one gets the source's mode, but keeps its owner.
func (t *target) pass(p string, e snapshot.Entry) error {
	fd, base, err := t.dir(p)
	if err != nil {
		return err
	}
	made, err := t.mkdir(fd, base, p)
	if err != nil {
		return notDir(err, p)
	}
	if made {
		t.later(p, e.MTime)
		return t.restore(fd, base, p, e)
	}
	if err := unix.Fchmodat(fd, base, e.Mode, 0); err != nil {
		return &os.PathError{Op: "chmod", Path: "/" + p, Err: err}
	}
	return nil
}

func notDir(err error, p string) error {
	if errors.Is(err, unix.ENOTDIR) {
		return fmt.Errorf("cannot copy to non-directory: %q", "/"+p)
	}
	return err
}

func (t *target) link(first string, fd int, base, p string) error {
	old, err := t.open(first, unix.O_PATH)
	if err != nil {
		return err
	}
	defer unix.Close(old)
	if err := unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", old), fd, base, unix.AT_SYMLINK_FOLLOW); err != nil {
		return &os.PathError{Op: "link", Path: "/" + p, Err: err}
	}
	return nil
}

func (t *target) context() context.Context {
	if t.ctx == nil {
		return context.Background()
	}
	return t.ctx
}

var buffers = sync.Pool{New: func() any { b := make([]byte, 256<<10); return &b }}

func (t *target) putFile(fd int, base, p string, e snapshot.Entry, c content) (string, error) {
	src, err := c.open()
	if err != nil {
		return "", err
	}
	defer src.Close()
	dst, err := create(fd, base, p)
	if err != nil {
		return "", err
	}
	defer dst.Close()
	h := sha256.New()
	b := buffers.Get().(*[]byte)
	defer buffers.Put(b)
	// Neither side may take over the copy: every byte goes by the hash.
	if _, err := io.CopyBuffer(struct{ io.Writer }{io.MultiWriter(dst, h)}, contextReader{t.context(), src}, *b); err != nil {
		return "", fmt.Errorf("copy to /%s: %w", p, err)
	}
	if err := t.restore(fd, base, p, e); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), utimes(fd, base, e.MTime)
}

func create(fd int, base, p string) (*os.File, error) {
	n, err := unix.Openat(fd, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, &os.PathError{Op: "create", Path: "/" + p, Err: err}
	}
	return os.NewFile(uintptr(n), p), nil
}

// putData makes a file of bytes.
func (t *target) putData(p string, e snapshot.Entry, data []byte) error {
	fd, base, err := t.dir(p)
	if err != nil {
		return err
	}
	if err := t.clear(fd, base, p); err != nil {
		return err
	}
	f, err := create(fd, base, p)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Write(data); err != nil {
		return err
	}
	if err := t.restore(fd, base, p, e); err != nil {
		return err
	}
	return utimes(fd, base, e.MTime)
}

// putDevice makes a placeholder: a real device node cannot be made in a user namespace, nor should it.
func (t *target) putDevice(fd int, base string, e snapshot.Entry) error {
	f, err := create(fd, base, base)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.Fsetxattr(int(f.Fd()), attr.Device, attr.FormatDevice(byte(e.Type), e.Major, e.Minor), 0)
}

// restore sets owner, mode and attributes. Owner before mode: chown clears the set-id bits. Attributes last: chown clears
// security.capability.
func (t *target) restore(fd int, base, p string, e snapshot.Entry) error {
	return t.restoreAs(fd, base, p, e, t.mode.apply(e.Mode, e.Type == snapshot.Dir))
}

// restoreAs is restore with a mode in place of the entry's.
func (t *target) restoreAs(fd int, base, p string, e snapshot.Entry, mode uint32) error {
	uid, gid := e.UID, e.GID
	if t.chown {
		uid, gid = t.uid, t.gid
	}
	if err := t.setID(fd, base, p, e.Type, uid, gid); err != nil {
		return err
	}
	proc := fmt.Sprintf("/proc/self/fd/%d/%s", fd, base)
	if e.Type != snapshot.Symlink {
		if err := unix.Fchmodat(fd, base, mode, 0); err != nil {
			return &os.PathError{Op: "chmod", Path: "/" + p, Err: err}
		}
	}
	for _, a := range e.Xattrs {
		err := unix.Lsetxattr(proc, a.Name, a.Value, 0)
		if err != nil && !errors.Is(err, unix.ENOTSUP) && !errors.Is(err, unix.EPERM) {
			return &os.PathError{Op: "set attribute " + a.Name + " of", Path: "/" + p, Err: err}
		}
	}
	return nil
}

// setID sets the owner on disk, or notes it where the mapping does not have the ids.
func (t *target) setID(fd int, base, p string, typ snapshot.Type, uid, gid uint32) error {
	proc := fmt.Sprintf("/proc/self/fd/%d/%s", fd, base)
	hasAttr := typ == snapshot.File || typ == snapshot.Dir || typ == snapshot.Char || typ == snapshot.Block
	delete(t.owners, p)
	if uid < t.ids && gid < t.ids {
		if typ == snapshot.Dir { // an existing one may have had another owner
			unix.Lremovexattr(proc, attr.Owner)
		}
		if err := unix.Fchownat(fd, base, int(uid), int(gid), unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return &os.PathError{Op: "chown", Path: "/" + p, Err: err}
		}
		return nil
	}
	if err := unix.Fchownat(fd, base, 0, 0, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &os.PathError{Op: "chown", Path: "/" + p, Err: err}
	}
	if !hasAttr {
		t.owners[p] = [2]uint32{uid, gid}
		return nil
	}
	if err := unix.Lsetxattr(proc, attr.Owner, attr.FormatOwner(uid, gid), 0); err != nil {
		return &os.PathError{Op: "note the owner of", Path: "/" + p, Err: err}
	}
	return nil
}
