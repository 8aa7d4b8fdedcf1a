package layer

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"math"
	"os"
	"runtime"
	"strings"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	"img/snapshot"
	"img/snapshot/attr"
)

const bufferSize = 256 << 10

var buffers = sync.Pool{New: func() any { return new([bufferSize]byte) }}

// An unpacker changes a directory in overlay form and keeps the journal of it. Nobody else changes the directory.
type unpacker struct {
	dir  *os.File
	root int
	o    ApplyOptions
	*journal

	// parent is the directory of the last entry, by the name it was asked for.
	parentName string
	parent     place

	free   int64 // what the file system had left when it was last asked
	digest hash.Hash
	buf    *[bufferSize]byte

	// touched are the directories that Settle changed, whose times have to be set again; nil in Apply.
	touched map[string]bool
}

// A place is an open directory (O_PATH) and its path, which has no links in it.
type place struct {
	fd   int
	path string
}

func newUnpacker(dir *os.File, o ApplyOptions, j *journal) *unpacker {
	return &unpacker{
		dir: dir, root: int(dir.Fd()), o: o, journal: j,
		parent: place{fd: -1},
		digest: sha256.New(), buf: buffers.Get().(*[bufferSize]byte),
	}
}

func (u *unpacker) close() {
	u.forget()
	buffers.Put(u.buf)
	runtime.KeepAlive(u.dir)
}

// put notes an entry.
func (u *unpacker) put(e snapshot.Entry, n note) error {
	if u.Len() >= u.o.maxEntries() {
		return fmt.Errorf("more than %d entries", u.o.maxEntries())
	}
	u.journal.put(e, n)
	return nil
}

// forget closes the parent.
func (u *unpacker) forget() {
	if u.parent.fd >= 0 {
		unix.Close(u.parent.fd)
	}
	u.parent = place{fd: -1}
}

// open returns the directory called name, made if need be; it stays open until the next call.
func (u *unpacker) open(name string) (place, error) {
	if u.parent.fd >= 0 && u.parentName == name {
		return u.parent, nil
	}
	u.forget()
	p, err := u.lookup(name, true)
	if err != nil {
		return p, err
	}
	u.parentName, u.parent = name, p
	return p, nil
}

// lookup opens the directory called name. The caller closes it.
func (u *unpacker) lookup(name string, create bool) (place, error) {
	fd, err := openDir(u.root, name, unix.O_PATH)
	switch err {
	case nil:
		return place{fd, name}, nil
	case unix.ENOENT, unix.ELOOP, unix.ENOTDIR:
		return u.walk(name, create)
	}
	return place{}, fmt.Errorf("open directory %q: %w", name, err)
}

// walk opens a directory component by component, as a root of its own would resolve the name: links lead on inside, ".."
// stops at the root. With create, what is missing is made.
func (u *unpacker) walk(name string, create bool) (place, error) {
	at, err := u.restart(".")
	links := 0
	for todo := name; err == nil && todo != ""; {
		var c, target string
		c, todo, _ = strings.Cut(todo, "/")
		switch c {
		case "", ".":
			continue
		case "..":
			unix.Close(at.fd)
			up, _ := split(at.path)
			at, err = u.restart(up)
			continue
		}
		at, target, err = u.step(at, c, create)
		if err != nil || target == "" {
			continue
		}
		if links++; links > maxLinks {
			unix.Close(at.fd)
			return place{}, fmt.Errorf("directory %q: %w", name, unix.ELOOP)
		}
		if todo = target + "/" + todo; target[0] == '/' {
			unix.Close(at.fd)
			at, err = u.restart(".")
		}
	}
	if err != nil {
		return place{}, fmt.Errorf("directory %q: %w", name, err)
	}
	return at, nil
}

// restart begins a walk at a path without links.
func (u *unpacker) restart(p string) (place, error) {
	fd, err := openDir(u.root, p, unix.O_PATH)
	return place{fd, p}, err
}

// step goes from a directory, which it closes, to one below it. If that is a link, it stays and returns the link's target.
func (u *unpacker) step(at place, c string, create bool) (to place, target string, err error) {
	var st unix.Stat_t
	err = unix.Fstatat(at.fd, c, &st, unix.AT_SYMLINK_NOFOLLOW)
	switch {
	case err == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR:
	case err == nil && st.Mode&unix.S_IFMT == unix.S_IFLNK:
		if target, err = readlink(at.fd, c); err == nil {
			return at, target, nil
		}
	case create && (err == unix.ENOENT || err == nil && isWhiteout(&st)):
		err = u.imply(at, c, err == nil)
	case err == nil && isWhiteout(&st):
		err = unix.ENOENT
	case err == nil:
		err = unix.ENOTDIR
	}
	to = place{fd: -1, path: join(at.path, c)}
	if err == nil && len(to.path) > maxPath {
		err = unix.ENAMETOOLONG
	}
	if err == nil {
		to.fd, err = unix.Openat(at.fd, c, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	}
	unix.Close(at.fd)
	return to, "", err
}

// imply makes a directory that the archive does not have (yet).
func (u *unpacker) imply(at place, c string, whiteout bool) error {
	if whiteout {
		if err := unix.Unlinkat(at.fd, c, 0); err != nil {
			return err
		}
	}
	if err := unix.Mkdirat(at.fd, c, 0o700); err != nil {
		return err
	}
	u.touch(at.path)
	e := snapshot.Entry{Path: join(at.path, c), Type: snapshot.Dir, Mode: 0o755}
	u.touch(e.Path)
	return u.put(e, note{implicit: true, opaque: whiteout})
}

func (u *unpacker) touch(p string) {
	if u.touched != nil {
		u.touched[p] = true
	}
}

func readlink(dir int, name string) (string, error) {
	buf := make([]byte, maxTarget+1)
	n, err := unix.Readlinkat(dir, name, buf)
	return string(buf[:max(n, 0)]), err
}

// isWhiteout: overlay's form of "not here" is a character device 0:0. Others are never made (see device).
func isWhiteout(st *unix.Stat_t) bool { return st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0 }

// place makes something that is no directory: what is there goes, even a directory with all it has.
func (u *unpacker) place(at place, base string, create func() error) error {
	err := create()
	switch err {
	case unix.EEXIST, unix.EISDIR, unix.ENOTEMPTY:
		if err = snapshot.RemoveAt(at.fd, base); err == nil {
			err = create()
		}
		u.parentName = "" // at stays open, but its name may lead elsewhere now
	}
	u.touch(at.path)
	return err
}

// mkdir makes a directory, or keeps the one that is there. One that replaces something else shows nothing of the lower
// layers: that something hid them.
func (u *unpacker) mkdir(at place, base string) (opaque bool, err error) {
	err = unix.Mkdirat(at.fd, base, 0o700)
	if err == unix.EEXIST {
		var st unix.Stat_t
		if err = unix.Fstatat(at.fd, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return false, err
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			opaque = true
			err = u.place(at, base, func() error { return unix.Mkdirat(at.fd, base, 0o700) })
		} else {
			err = nil
		}
	}
	u.touch(at.path)
	u.touch(join(at.path, base))
	return opaque, err
}

// whiteout notes that the lower layers' file is gone. What this layer itself has there stays, whichever came first
// (layer.md: whiteouts apply to lower layers only).
func (u *unpacker) whiteout(at place, base string) error {
	p := join(at.path, base)
	err := unix.Mknodat(at.fd, base, unix.S_IFCHR, 0)
	u.touch(at.path)
	if err == nil {
		return u.put(snapshot.Entry{Path: p, Type: snapshot.Removed}, note{})
	}
	var st unix.Stat_t
	if err == unix.EEXIST {
		err = unix.Fstatat(at.fd, base, &st, unix.AT_SYMLINK_NOFOLLOW)
	}
	if err == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return u.hide(p)
	}
	return err
}

// hide makes a directory opaque.
func (u *unpacker) hide(p string) error {
	u.touch(p)
	return u.put(snapshot.Entry{Path: p, Type: snapshot.Dir}, note{mark: true})
}

// file writes a file's content and attributes.
func (u *unpacker) file(at place, base string, e *snapshot.Entry, r io.Reader) error {
	if err := u.room(e.Size); err != nil {
		return err
	}
	fd := -1
	err := u.place(at, base, func() (err error) {
		fd, err = unix.Openat(at.fd, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
		return err
	})
	if err != nil {
		return err
	}
	err = u.fill(descriptor(fd), e, r)
	if err == nil {
		err = u.dress(fd, e)
	}
	if err2 := unix.Close(fd); err == nil {
		err = err2
	}
	if err != nil {
		return err
	}
	return setTime(at.fd, base, e)
}

// fill copies the content and notes its digest.
func (u *unpacker) fill(f io.Writer, e *snapshot.Entry, r io.Reader) error {
	if e.Type != snapshot.File {
		return nil // a placeholder
	}
	u.digest.Reset()
	n, err := io.CopyBuffer(io.MultiWriter(f, u.digest), onlyReader{r}, u.buf[:])
	if err != nil {
		return err
	}
	if n != e.Size {
		return fmt.Errorf("%d bytes of content, %d announced", n, e.Size)
	}
	e.Digest = hex.EncodeToString(u.digest.Sum(nil))
	return nil
}

// onlyReader hides WriteTo, which would bring a buffer of its own.
type onlyReader struct{ io.Reader }

// room asks for free space before it is needed: a header's number must not fill the disk first.
func (u *unpacker) room(size int64) error {
	if size > u.free {
		var st unix.Statfs_t
		if err := unix.Fstatfs(u.root, &st); err != nil {
			return fmt.Errorf("ask for free space: %w", err)
		}
		u.free = freeBytes(&st)
		if size > u.free {
			return fmt.Errorf("%d bytes of content, %d free: %w", size, u.free, unix.ENOSPC)
		}
	}
	u.free -= size
	return nil
}

// freeBytes is what root may still write. File systems that tell no size at all are taken as endless.
func freeBytes(st *unix.Statfs_t) int64 {
	unit := uint64(max(st.Bsize, 1))
	if st.Blocks == 0 || st.Bfree > math.MaxInt64/unit {
		return math.MaxInt64
	}
	return int64(st.Bfree * unit)
}

// special makes what has no content: links, fifos.
func (u *unpacker) special(at place, base string, e *snapshot.Entry) error {
	err := u.place(at, base, func() error {
		if e.Type == snapshot.Symlink {
			return unix.Symlinkat(e.Link, at.fd, base)
		}
		return unix.Mknodat(at.fd, base, unix.S_IFIFO|0o600, 0)
	})
	if err != nil {
		return err
	}
	if uid, gid, ok := u.owner(e); ok {
		if err := unix.Fchownat(at.fd, base, uid, gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return fmt.Errorf("set owner: %w", err)
		}
	}
	if e.Type == snapshot.Fifo { // just made here, so that base is no link
		if err := unix.Fchmodat(at.fd, base, e.Mode, 0); err != nil {
			return fmt.Errorf("set mode: %w", err)
		}
	}
	return setTime(at.fd, base, e)
}

// create makes an entry that is neither a directory nor a hard link.
func (u *unpacker) create(at place, base string, e *snapshot.Entry, r io.Reader) error {
	switch e.Type {
	case snapshot.Symlink, snapshot.Fifo:
		return u.special(at, base, e)
	case snapshot.File, snapshot.Char, snapshot.Block:
		return u.file(at, base, e, r)
	}
	return fmt.Errorf("unknown type %q", e.Type)
}

// dress sets owner, attributes and mode of an open file or directory.
func (u *unpacker) dress(fd int, e *snapshot.Entry) error {
	if u.touched != nil {
		unix.Fremovexattr(fd, aclAccess) // inherited from a finished directory, or not there
	}
	// Owner first: chown clears the set-id bits and the capability.
	if uid, gid, ok := u.owner(e); ok {
		if err := unix.Fchown(fd, uid, gid); err != nil {
			return fmt.Errorf("set owner %d:%d: %w", uid, gid, err)
		}
	}
	if err := setXattrs(fd, append(u.ours(e), e.Xattrs...)); err != nil {
		return err
	}
	// Mode last: an access control list changes it.
	if err := unix.Fchmod(fd, e.Mode); err != nil {
		return fmt.Errorf("set mode: %w", err)
	}
	return nil
}

// owner is what the disk can show of an entry's owner; ok is false if there is nothing to set.
func (u *unpacker) owner(e *snapshot.Entry) (uid, gid int, ok bool) {
	onDisk := func(id uint32) int {
		if u.o.IDs != 0 && id >= u.o.IDs {
			return 0
		}
		return int(id)
	}
	return onDisk(e.UID), onDisk(e.GID), u.o.IDs != 1
}

// ours are the attributes that say what the disk cannot show otherwise.
func (u *unpacker) ours(e *snapshot.Entry) []snapshot.Xattr {
	var out []snapshot.Xattr
	if n := u.o.IDs; n != 0 && (e.UID >= n || e.GID >= n) {
		out = append(out, snapshot.Xattr{Name: attr.Owner, Value: attr.FormatOwner(e.UID, e.GID)})
	}
	if e.Type == snapshot.Char || e.Type == snapshot.Block {
		out = append(out, snapshot.Xattr{Name: attr.Device, Value: attr.FormatDevice(byte(e.Type), e.Major, e.Minor)})
	}
	return out
}

// finish gives a directory its attributes, when nothing will be made in it any more.
func (u *unpacker) finish(e *snapshot.Entry, opaque bool) error {
	fd, err := openDir(u.root, e.Path, unix.O_RDONLY)
	if err != nil {
		return fmt.Errorf("finish directory %q: %w", e.Path, err)
	}
	defer unix.Close(fd)
	if u.touched != nil {
		unix.Fremovexattr(fd, aclDefault)
	}
	if err := u.dress(fd, e); err != nil {
		return fmt.Errorf("finish directory %q: %w", e.Path, err)
	}
	if opaque {
		if err := unix.Fsetxattr(fd, xattrOpaque, []byte("y"), 0); err != nil {
			return fmt.Errorf("make directory %q opaque: %w", e.Path, err)
		}
	}
	if err := futimens(fd, timesOf(e)); err != nil {
		return fmt.Errorf("finish directory %q: set time: %w", e.Path, err)
	}
	return nil
}

// finishAll finishes directories, those below before those above: a mode may forbid the way in. Only tells which; nil
// means all.
func (u *unpacker) finishAll(a *Applied, only map[string]bool) error {
	opaque := a.Opaque
	for i := len(a.Entries) - 1; i >= 0; i-- {
		e := &a.Entries[i]
		if e.Type != snapshot.Dir {
			continue
		}
		for len(opaque) > 0 && snapshot.Compare(opaque[len(opaque)-1], e.Path) > 0 {
			opaque = opaque[:len(opaque)-1]
		}
		if only != nil && !only[e.Path] {
			continue
		}
		hides := len(opaque) > 0 && opaque[len(opaque)-1] == e.Path && e.Path != "."
		if err := u.finish(e, hides); err != nil {
			return err
		}
	}
	return nil
}

// setTime sets the time of something in a directory, and follows no link.
func setTime(dir int, base string, e *snapshot.Entry) error {
	ts := timesOf(e)
	if err := unix.UtimesNanoAt(dir, base, ts[:], unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("set time: %w", err)
	}
	return nil
}

// timesOf are an entry's access and modification time, both the one it has.
func timesOf(e *snapshot.Entry) *[2]unix.Timespec {
	t := unix.NsecToTimespec(e.MTime)
	return &[2]unix.Timespec{t, t}
}

// futimens sets the times of an open file, whatever its mode.
func futimens(fd int, ts *[2]unix.Timespec) error {
	_, _, errno := unix.Syscall6(unix.SYS_UTIMENSAT, uintptr(fd), 0, uintptr(unsafe.Pointer(ts)), 0, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}
