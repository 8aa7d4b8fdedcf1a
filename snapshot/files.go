package snapshot

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"img/snapshot/attr"
)

// Attributes of the kernel that matter here.
const (
	capabilityAttr = "security.capability"
	aclAccess      = "system.posix_acl_access"
	aclDefault     = "system.posix_acl_default"
	overlayPrefix  = "user.overlay."
	opaqueAttr     = "user.overlay.opaque"
)

// openBeneath opens a path below root without following any link.
func openBeneath(root *os.File, path string, flags int) (*os.File, error) {
	if len(path) < unix.PathMax-1 {
		how := unix.OpenHow{
			Flags:   uint64(flags | unix.O_CLOEXEC | unix.O_NOFOLLOW),
			Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
		}
		fd, err := retry(func() (int, error) { return unix.Openat2(int(root.Fd()), path, &how) })
		if err == nil {
			return os.NewFile(uintptr(fd), path), nil
		}
		if err != unix.ENOSYS && err != unix.EPERM {
			return nil, &fs.PathError{Op: "open", Path: path, Err: err}
		}
	}
	return openStepwise(root, path, flags)
}

// openStepwise does the same a component at a time: paths longer than the kernel takes, kernels and filters without openat2.
func openStepwise(root *os.File, path string, flags int) (*os.File, error) {
	at := int(root.Fd())
	for {
		name, rest, more := strings.Cut(path, "/")
		f := unix.O_PATH | unix.O_DIRECTORY
		if !more {
			f = flags
		}
		fd, err := retry(func() (int, error) { return unix.Openat(at, name, f|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0) })
		if at != int(root.Fd()) {
			unix.Close(at)
		}
		if err != nil {
			return nil, &fs.PathError{Op: "open", Path: path, Err: err}
		}
		if !more {
			return os.NewFile(uintptr(fd), name), nil
		}
		at, path = fd, rest
	}
}

// retry repeats a call that a signal interrupted (openat2 also says EAGAIN when something was renamed meanwhile).
func retry(f func() (int, error)) (int, error) {
	for {
		n, err := f()
		if err != unix.EINTR && err != unix.EAGAIN {
			return n, err
		}
	}
}

// openAt opens a name in a directory, not following a link.
func openAt(dir *os.File, name string, flags int) (*os.File, error) {
	fd, err := retry(func() (int, error) {
		return unix.Openat(int(dir.Fd()), name, flags|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	})
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}

func statAt(dir *os.File, name string) (unix.Stat_t, error) {
	var st unix.Stat_t
	if err := unix.Fstatat(int(dir.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return st, &fs.PathError{Op: "stat", Path: name, Err: err}
	}
	return st, nil
}

// readlinkAt reads a link's target.
func readlinkAt(dir *os.File, name string) (string, error) {
	for size := 256; ; size *= 2 {
		b := make([]byte, size)
		n, err := unix.Readlinkat(int(dir.Fd()), name, b)
		if err != nil {
			return "", &fs.PathError{Op: "readlink", Path: name, Err: err}
		}
		if n < size {
			return string(b[:n]), nil
		}
	}
}

// sortedNames reads a directory.
func sortedNames(dir *os.File) ([]string, error) {
	names, err := dir.Readdirnames(-1)
	slices.Sort(names)
	return names, err
}

// procName is a name for a descriptor by which calls that take only paths reach it. It stays short and has no
// characters that mount options give a meaning.
func procName(f *os.File) string { return "/proc/self/fd/" + strconv.Itoa(int(f.Fd())) }

func chmodAt(at int, name string, mode uint32) error { return unix.Fchmodat(at, name, mode, 0) }

// whiteout reports whether a file is overlay's mark for a removed one.
func whiteout(st *unix.Stat_t) bool {
	return st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0
}

// typeOf is the type that a mode has; 0 for sockets, which trees leave out.
func typeOf(mode uint32) Type {
	switch mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return Dir
	case unix.S_IFREG:
		return File
	case unix.S_IFLNK:
		return Symlink
	case unix.S_IFCHR:
		return Char
	case unix.S_IFBLK:
		return Block
	case unix.S_IFIFO:
		return Fifo
	}
	return 0
}

// xattrs reads the attributes of a path whose name satisfies want, sorted. The path is a procName, so that links on the way are none;
// the last component is not followed.
func xattrs(path string, want func(name string) bool) ([]Xattr, error) {
	names, err := xattrNames(path)
	if err != nil {
		return nil, err
	}
	var out []Xattr
	for _, name := range names {
		if !want(name) {
			continue
		}
		v, err := xattr(path, name)
		if err == unix.ENODATA {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read attribute %s: %w", name, err)
		}
		out = append(out, Xattr{name, v})
	}
	slices.SortFunc(out, func(a, b Xattr) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

func xattrNames(path string) ([]string, error) {
	var small [512]byte
	b := small[:]
	for {
		n, err := unix.Llistxattr(path, b)
		switch {
		case err == unix.ERANGE:
			b = make([]byte, 64<<10)
			continue
		case err == unix.EOPNOTSUPP || err == nil && n == 0:
			return nil, nil
		case err != nil:
			return nil, fmt.Errorf("list attributes: %w", err)
		}
		return strings.Split(strings.TrimSuffix(string(b[:n]), "\x00"), "\x00"), nil
	}
}

func xattr(path, name string) ([]byte, error) {
	b := make([]byte, 256)
	for {
		n, err := unix.Lgetxattr(path, name, b)
		if err == unix.ERANGE && len(b) < 64<<10 {
			b = make([]byte, 64<<10)
			continue
		}
		if err != nil {
			return nil, err
		}
		return b[:n], nil
	}
}

// counts reports whether an attribute is part of a snapshot.
func counts(name string) bool {
	if strings.HasPrefix(name, "user.") {
		return !strings.HasPrefix(name, overlayPrefix) && !strings.HasPrefix(name, attr.Prefix)
	}
	return name == capabilityAttr || name == aclAccess || name == aclDefault
}

// kept reports whether an attribute goes along when a file is copied inside the store.
func kept(name string) bool { return counts(name) || strings.HasPrefix(name, attr.Prefix) }

// normalCapability takes the root id off a file capability (revision 3, linux/capability.h).
func normalCapability(v []byte) []byte {
	const rev2, rev3, revMask = 0x02000000, 0x03000000, 0xff000000
	if len(v) != 24 {
		return v
	}
	magic := binary.LittleEndian.Uint32(v)
	if magic&revMask != rev3 {
		return v
	}
	out := bytes.Clone(v[:20])
	binary.LittleEndian.PutUint32(out, magic&^revMask|rev2)
	return out
}

// setAttributes gives a new file the owner, attributes, mode and times of another. at is a procName/name or procName.
func setAttributes(at string, st *unix.Stat_t, attrs []Xattr) error {
	// Owner before mode and capabilities: chown clears both.
	if err := unix.Lchown(at, int(st.Uid), int(st.Gid)); err != nil {
		return fmt.Errorf("chown: %w", err)
	}
	link := st.Mode&unix.S_IFMT == unix.S_IFLNK
	if !link {
		if err := unix.Chmod(at, st.Mode&0o7777); err != nil {
			return fmt.Errorf("chmod: %w", err)
		}
	}
	for _, x := range attrs {
		if err := unix.Lsetxattr(at, x.Name, x.Value, 0); err != nil {
			return fmt.Errorf("set attribute %s: %w", x.Name, err)
		}
	}
	return setTimes(at, st)
}

func setTimes(at string, st *unix.Stat_t) error {
	ts := []unix.Timespec{st.Atim, st.Mtim}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, at, ts, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("set times: %w", err)
	}
	return nil
}

// cloneData copies a file's content, sharing blocks where the file system can.
func cloneData(to, from *os.File, size int64) error {
	if size == 0 {
		return nil
	}
	if unix.IoctlFileClone(int(to.Fd()), int(from.Fd())) == nil {
		return nil
	}
	// io.Copy between files is copy_file_range with a fallback to read and write; only holes would be lost.
	return copySparse(to, from, size)
}

// copySparse copies the parts of a file that have data.
func copySparse(to, from *os.File, size int64) error {
	for off := int64(0); off < size; {
		data, err := unix.Seek(int(from.Fd()), off, unix.SEEK_DATA)
		if err == unix.ENXIO {
			break
		}
		if err != nil {
			data = off
		}
		end, err := unix.Seek(int(from.Fd()), data, unix.SEEK_HOLE)
		if err != nil || end <= data {
			end = size
		}
		if _, err := from.Seek(data, io.SeekStart); err != nil {
			return err
		}
		if _, err := to.Seek(data, io.SeekStart); err != nil {
			return err
		}
		if _, err := io.Copy(to, io.LimitReader(from, end-data)); err != nil {
			return err
		}
		off = end
	}
	return to.Truncate(size)
}

// A builder makes a directory tree from entries that come in order, taking each file from where it is on disk.
type builder struct {
	// open are the directories on the way to the last entry, root first. Their times are set when they are left.
	open []builtDir
	// source opens a directory whose attributes one gets that no entry made.
	source func(path string) (*os.File, error)
	// first has, of files with several names, where the first name was made.
	first map[linkKey]string
}

type builtDir struct {
	path string
	f    *os.File
	st   unix.Stat_t
}

// A linkKey is a hard-link group: of one tree, by the path of its first name.
type linkKey struct {
	tree int
	path string
}

func newBuilder(root string, source func(string) (*os.File, error)) (*builder, error) {
	f, err := os.Open(root)
	if err != nil {
		return nil, err
	}
	b := &builder{source: source, first: map[linkKey]string{}}
	b.open = []builtDir{{path: ".", f: f}}
	if err := unix.Fstat(int(f.Fd()), &b.open[0].st); err != nil {
		f.Close()
		return nil, err
	}
	return b, nil
}

// close sets the times of the directories that are still open.
func (b *builder) close() error {
	var errs []error
	for len(b.open) > 0 {
		errs = append(errs, b.leave())
	}
	return errors.Join(errs...)
}

func (b *builder) leave() error {
	d := b.open[len(b.open)-1]
	b.open = b.open[:len(b.open)-1]
	err := setTimes(procName(d.f)+"/.", &d.st)
	return errors.Join(err, d.f.Close())
}

// dir makes path the innermost open directory, making those on the way that are missing.
func (b *builder) dir(path string) (*os.File, error) {
	for {
		top := b.open[len(b.open)-1]
		if top.path == path || below(path, top.path) {
			break
		}
		if err := b.leave(); err != nil {
			return nil, err
		}
	}
	for {
		top := b.open[len(b.open)-1]
		if top.path == path {
			return top.f, nil
		}
		rest := path
		if top.path != "." {
			rest = path[len(top.path)+1:]
		}
		name, _, _ := strings.Cut(rest, "/")
		src, err := b.source(join(top.path, name))
		if err != nil {
			return nil, err
		}
		err = b.mkdir(top, name, src)
		src.Close()
		if err != nil {
			return nil, err
		}
	}
}

// mkdir makes a directory like src, and opens it.
func (b *builder) mkdir(in builtDir, name string, src *os.File) error {
	st, attrs, err := attributes(src)
	if err != nil {
		return err
	}
	if err := unix.Mkdirat(int(in.f.Fd()), name, 0o700); err != nil {
		return &fs.PathError{Op: "mkdir", Path: join(in.path, name), Err: err}
	}
	f, err := openAt(in.f, name, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	b.open = append(b.open, builtDir{join(in.path, name), f, st})
	if err := removeInherited(procName(f) + "/."); err != nil {
		return err
	}
	return setAttributes(procName(f)+"/.", &st, attrs)
}

// removeInherited takes off ACLs that a directory's default ACL gave a new file.
func removeInherited(at string) error {
	for _, x := range []string{aclAccess, aclDefault} {
		if err := unix.Lremovexattr(at, x); err != nil && err != unix.ENODATA && err != unix.EOPNOTSUPP && err != unix.EACCES {
			return fmt.Errorf("remove attribute %s: %w", x, err)
		}
	}
	return nil
}

// attributes reads what setAttributes sets, of a file opened with any flags.
func attributes(f *os.File) (unix.Stat_t, []Xattr, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return st, nil, err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFLNK {
		return st, nil, nil // a link has none that count
	}
	// Through the link in /proc, since an O_PATH descriptor has no flistxattr.
	attrs, err := followedXattrs(procName(f))
	return st, attrs, err
}

func followedXattrs(path string) ([]Xattr, error) {
	b := make([]byte, 1024)
	n, err := unix.Listxattr(path, b)
	if err == unix.ERANGE {
		b = make([]byte, 64<<10)
		n, err = unix.Listxattr(path, b)
	}
	if err == unix.EOPNOTSUPP || err == nil && n == 0 {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list attributes: %w", err)
	}
	var out []Xattr
	for _, name := range strings.Split(strings.TrimSuffix(string(b[:n]), "\x00"), "\x00") {
		if !kept(name) {
			continue
		}
		v := make([]byte, 64<<10)
		n, err := unix.Getxattr(path, name, v)
		if err != nil {
			return nil, fmt.Errorf("read attribute %s: %w", name, err)
		}
		out = append(out, Xattr{name, bytes.Clone(v[:n])})
	}
	return out, nil
}

// add makes one entry. src is the file on disk, opened with O_PATH, that it is a copy of; tree is which tree the entry is from.
func (b *builder) add(e Entry, tree int, src *os.File) error {
	parent, name := ".", e.Path
	if i := strings.LastIndexByte(e.Path, '/'); i >= 0 {
		parent, name = e.Path[:i], e.Path[i+1:]
	}
	dir, err := b.dir(parent)
	if err != nil {
		return err
	}
	key := linkKey{tree, e.Path}
	if e.HardLink != "" {
		key.path = e.HardLink
		if first, ok := b.first[key]; ok && b.link(first, dir, name) == nil {
			return nil
		}
	}
	links, err := b.make(dir, name, src)
	if err != nil {
		return err
	}
	if _, known := b.first[key]; links > 1 && !known {
		b.first[key] = e.Path
	}
	return nil
}

// link gives a file that was made before another name. Where that fails (too many links) the caller copies.
func (b *builder) link(first string, dir *os.File, name string) error {
	old, err := openBeneath(b.open[0].f, first, unix.O_PATH)
	if err != nil {
		return err
	}
	defer old.Close()
	return unix.Linkat(unix.AT_FDCWD, procName(old), int(dir.Fd()), name, unix.AT_SYMLINK_FOLLOW)
}

// make copies one file. It returns how many names the source has, if other names of it may come.
func (b *builder) make(dir *os.File, name string, src *os.File) (links uint64, err error) {
	st, attrs, err := attributes(src)
	if err != nil {
		return 0, err
	}
	kind := st.Mode & unix.S_IFMT
	if kind == unix.S_IFDIR {
		return 0, b.mkdir(b.open[len(b.open)-1], name, src)
	}
	at := procName(dir) + "/" + name
	switch kind {
	case unix.S_IFREG:
		err = copyFile(dir, name, src, st.Size)
	case unix.S_IFLNK:
		var target string
		if target, err = readlinkAt(src, ""); err == nil {
			err = unix.Symlinkat(target, int(dir.Fd()), name)
		}
	default:
		err = unix.Mknodat(int(dir.Fd()), name, kind|0o600, int(st.Rdev))
	}
	if err == nil && kind != unix.S_IFLNK {
		err = removeInherited(at)
	}
	if err == nil {
		err = setAttributes(at, &st, attrs)
	}
	if err != nil {
		return 0, fmt.Errorf("copy %q: %w", name, err)
	}
	return uint64(st.Nlink), nil
}

func copyFile(dir *os.File, name string, src *os.File, size int64) error {
	from, err := os.Open(procName(src))
	if err != nil {
		return err
	}
	defer from.Close()
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	to := os.NewFile(uintptr(fd), name)
	defer to.Close()
	return cloneData(to, from, size)
}

// white marks a path as removed in overlay form. Kernels that do not let us make the mark have no overlay for us either, so
// that the tree alone is enough there.
func (b *builder) white(path string) error {
	parent, name := ".", path
	if i := strings.LastIndexByte(path, '/'); i >= 0 {
		parent, name = path[:i], path[i+1:]
	}
	dir, err := b.dir(parent)
	if err != nil {
		return err
	}
	err = unix.Mknodat(int(dir.Fd()), name, unix.S_IFCHR, 0)
	if err != nil && err != unix.EPERM {
		return fmt.Errorf("mark %q as removed: %w", path, err)
	}
	return nil
}
