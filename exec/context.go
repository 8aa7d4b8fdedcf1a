package exec

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/moby/patternmatcher"
	"golang.org/x/sys/unix"

	"img/cache/contenthash"
	"img/snapshot"
	"img/snapshot/attr"
)

// A Context is a local build context: a directory of the caller's, less what its ignore file hides. Files in it belong to 0:0,
// whoever owns them outside (BuildKit's rule). It is a source.
type Context struct {
	// Path is the directory, absolute.
	Path string
	// Patterns are the ignore file's; Rules is how errors call it (".dockerignore").
	Patterns []string
	Rules    string
	// RuleOf, if set, names the rule that hides a path (".dockerignore:3"); without it Rules is all that errors say.
	RuleOf func(path string) string
	// Streamed says that ReadContext filled the directory: what its files cannot show stands in attributes.
	Streamed bool

	dir   *os.File
	index *contenthash.Index
	// own is where img's own state lies inside the context, "" if it does not: it is never part of the context.
	own string

	// mu guards the matcher, which compiles patterns when it first needs them.
	mu     sync.Mutex
	ignore *patternmatcher.PatternMatcher
}

// OpenContext opens a directory as a context. indexPath is where file digests are remembered; "" remembers none.
func OpenContext(dir string, patterns []string, rules, indexPath string) (*Context, error) {
	// The inner process opens the path again and follows no link.
	dir, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(dir, os.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	c := &Context{Path: dir, Patterns: patterns, Rules: rules, dir: f}
	if err := c.prepare(indexPath); err != nil {
		f.Close()
		return nil, err
	}
	return c, nil
}

func (c *Context) prepare(indexPath string) (err error) {
	if len(c.Patterns) > 0 {
		if c.ignore, err = patternmatcher.New(c.Patterns); err != nil {
			return fmt.Errorf("%s: %w", c.Rules, err)
		}
	}
	if indexPath != "" {
		c.index, err = contenthash.Open(indexPath)
	}
	return err
}

// Close releases the directory and keeps what was learned about its files.
func (c *Context) Close() error {
	var err error
	if c.index != nil {
		err = c.index.Save()
	}
	return errors.Join(err, c.dir.Close())
}

// hide leaves a directory out of the context: the state, which changes while it is read.
func (c *Context) hide(dir string) {
	if real, err := filepath.EvalSymlinks(dir); err == nil {
		dir = real
	}
	rel, err := filepath.Rel(c.Path, dir)
	if err == nil && rel != ".." && !strings.HasPrefix(rel, "../") {
		c.own = rel
	}
}

// ReadInside reads a file of a directory that somebody else filled. Links in the path are followed as if the directory were the root, so
// that none leads out. More than limit bytes, and what is no regular file, are errors.
func ReadInside(dir, name string, limit int) ([]byte, error) {
	root, err := os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	fd, err := unix.Openat2(int(root.Fd()), name, &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_CLOEXEC | unix.O_NONBLOCK, // a fifo must not keep the build waiting
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
	if errors.Is(err, unix.ENOTDIR) {
		err = unix.ENOENT // a component is a file: there is nothing of that name
	}
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return nil, cmp.Or(err, error(&os.PathError{Op: "read", Path: name, Err: errors.New("it is no regular file")}))
	}
	data, err := io.ReadAll(io.LimitReader(f, int64(limit)+1))
	if err == nil && len(data) > limit {
		err = &os.PathError{Op: "read", Path: name, Err: fmt.Errorf("more than %d MiB", limit>>20)}
	}
	return data, err
}

// openIn opens a path inside a directory for reading; no component may be a link, and none leads out.
func openIn(dir *os.File, p string) (*os.File, error) {
	fd, err := unix.Openat2(int(dir.Fd()), p, &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_CLOEXEC | unix.O_NOFOLLOW | unix.O_NONBLOCK,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: p, Err: err}
	}
	return os.NewFile(uintptr(fd), p), nil
}

// statIn is lstat inside a directory, by the same rules.
func statIn(dir *os.File, p string) (unix.Stat_t, error) {
	var st unix.Stat_t
	parent, base := path.Split(p)
	if parent == "" {
		err := unix.Fstatat(int(dir.Fd()), base, &st, unix.AT_SYMLINK_NOFOLLOW)
		return st, err
	}
	fd, err := unix.Openat2(int(dir.Fd()), parent, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_CLOEXEC | unix.O_DIRECTORY,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return st, err
	}
	defer unix.Close(fd)
	err = unix.Fstatat(fd, base, &st, unix.AT_SYMLINK_NOFOLLOW)
	return st, err
}

func (c *Context) lstat(p string) (snapshot.Entry, bool, error) {
	if hidden, err := c.hides(p); err != nil || hidden {
		return snapshot.Entry{}, false, err
	}
	st, err := statIn(c.dir, p)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return snapshot.Entry{}, false, nil
	}
	if err != nil {
		return snapshot.Entry{}, false, fmt.Errorf("build context: %w", &os.PathError{Op: "lstat", Path: p, Err: err})
	}
	e, err := c.entry(p, &st, func() (string, error) { return readlinkIn(c.dir, p) })
	if err == nil && c.holdsMode(&st) {
		var f *os.File
		if f, err = openIn(c.dir, p); err != nil {
			return e, false, fmt.Errorf("build context: %w", err)
		}
		defer f.Close()
		e.Mode, err = heldMode(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), e.Mode)
	}
	return e, err == nil, err
}

// isOwn reports whether a path is img's own.
func (c *Context) isOwn(p string) bool {
	return c.own != "" && (p == c.own || strings.HasPrefix(p, c.own+"/"))
}

// ignored reports whether the ignore file leaves a path out.
func (c *Context) ignored(p string) (bool, error) {
	if c.isOwn(p) {
		return true, nil
	}
	if c.ignore == nil || p == "." {
		return false, nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ignore.MatchesOrParentMatches(p)
}

// hides reports whether a path cannot be reached: ignored itself, and not a directory that holds something re-included.
func (c *Context) hides(p string) (bool, error) {
	ignored, err := c.ignored(p)
	if err != nil || !ignored || !c.mayReturn(p) {
		return ignored, err
	}
	// A pattern with "!" may bring back something below an ignored directory.
	st, err := statIn(c.dir, p)
	if err != nil || st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return true, nil
	}
	seen := false
	err = c.walkBelow(p, true, func(snapshot.Entry, content) error { seen = true; return errStop })
	if errors.Is(err, errStop) {
		err = nil
	}
	return !seen, err
}

// mayReturn reports whether something below an ignored directory may be in the context all the same.
func (c *Context) mayReturn(dir string) bool {
	return !c.isOwn(dir) && c.ignore != nil && mayReturn(c.ignore, dir)
}

var errStop = errors.New("stop")

func (c *Context) ignoredBy(p string) string {
	if c.ignore == nil {
		return ""
	}
	if _, err := statIn(c.dir, p); err != nil {
		return ""
	}
	if ignored, err := c.ignored(p); err == nil && ignored && !c.isOwn(p) {
		if c.RuleOf != nil {
			return c.RuleOf(p)
		}
		return c.Rules
	}
	return ""
}

func (c *Context) names(dir string) ([]string, error) {
	f, err := openIn(c.dir, dir)
	if err != nil {
		return nil, fmt.Errorf("build context: %w", err)
	}
	defer f.Close()
	all, err := f.Readdirnames(-1)
	if err != nil {
		return nil, fmt.Errorf("build context: %w", err)
	}
	slices.Sort(all)
	out := all[:0]
	for _, n := range all {
		hidden, err := c.hides(path.Join(dir, n))
		if err != nil {
			return nil, err
		}
		if !hidden {
			out = append(out, n)
		}
	}
	return out, nil
}

// walk visits what the ignore file leaves. An ignored directory is visited only when something below it is re-included.
func (c *Context) walk(root string, f visitor) error {
	e, ok, err := c.lstat(root)
	if err != nil || !ok {
		return err
	}
	if e.Type != snapshot.Dir {
		return c.visitOne(root, e, f)
	}
	if err := f(e, nil); errors.Is(err, errSkip) {
		return nil
	} else if err != nil {
		return err
	}
	ignored, err := c.ignored(root)
	if err != nil {
		return err
	}
	return c.walkBelow(root, ignored, f)
}

// visitOne visits a walk's root that is no directory.
func (c *Context) visitOne(root string, e snapshot.Entry, f visitor) error {
	dir, err := openIn(c.dir, path.Dir(root))
	if err != nil {
		return fmt.Errorf("build context: %w", err)
	}
	defer dir.Close()
	var st unix.Stat_t
	if err := unix.Fstatat(int(dir.Fd()), path.Base(root), &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("build context: %w", &os.PathError{Op: "lstat", Path: root, Err: err})
	}
	if e.Type == snapshot.File {
		if e.Xattrs, err = c.xattrs(dir, path.Base(root)); err != nil {
			return err
		}
	}
	return f(e, contextFile{c, dir, path.Base(root), root, &st}.content(e))
}

// walkBelow visits what is below a directory, but not the directory.
func (c *Context) walkBelow(root string, ignored bool, f visitor) error {
	dir, err := openIn(c.dir, root)
	if err != nil {
		return fmt.Errorf("build context: %w", err)
	}
	defer dir.Close()
	w := walker{c: c, f: f, links: map[[2]uint64]string{}}
	return w.dir(dir, root, ignored)
}

// A walker is one walk of a context.
type walker struct {
	c *Context
	f visitor
	// links are the files with several names, by device and inode, with the first name met.
	links map[[2]uint64]string
	// pending are ignored directories whose visit waits for something below them that is not ignored.
	pending []snapshot.Entry
}

func (w *walker) dir(dir *os.File, rel string, ignored bool) error {
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return fmt.Errorf("build context: %w", &os.PathError{Op: "read directory", Path: rel, Err: errors.Unwrap(err)})
	}
	slices.Sort(names)
	for _, n := range names {
		if err := w.one(dir, n, path.Join(rel, n)); err != nil {
			return err
		}
	}
	return nil
}

func (w *walker) one(dir *os.File, name, rel string) error {
	ignored, err := w.c.ignored(rel)
	if err != nil {
		return err
	}
	if ignored && !w.c.mayReturn(rel) {
		return nil
	}
	var st unix.Stat_t
	if err := unix.Fstatat(int(dir.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		if errors.Is(err, unix.ENOENT) {
			return nil // gone since the directory was read
		}
		return fmt.Errorf("build context: %w", &os.PathError{Op: "lstat", Path: rel, Err: err})
	}
	isDir := st.Mode&unix.S_IFMT == unix.S_IFDIR
	if ignored && !isDir {
		return nil
	}
	e, err := w.c.entry(rel, &st, func() (string, error) { return readlinkAt(dir, name) })
	if err == nil && w.c.holdsMode(&st) {
		e.Mode, err = heldMode(fdPath(dir, name), e.Mode)
	}
	if err != nil {
		return err
	}
	if isDir {
		return w.enter(dir, name, e, ignored)
	}
	if e.Type == snapshot.File && st.Nlink > 1 {
		id := [2]uint64{uint64(st.Dev), st.Ino}
		if first, ok := w.links[id]; ok {
			e.HardLink = first
		} else {
			w.links[id] = rel
		}
	}
	if e.Type == snapshot.File {
		if e.Xattrs, err = w.c.xattrs(dir, name); err != nil {
			return err
		}
	}
	if err := w.flush(); err != nil {
		return err
	}
	return w.f(e, contextFile{w.c, dir, name, rel, &st}.content(e))
}

// A contextFile is the content of a file that a walk of a context is at.
type contextFile struct {
	c         *Context
	dir       *os.File
	name, rel string
	st        *unix.Stat_t
}

func (f contextFile) content(e snapshot.Entry) content {
	if e.Type != snapshot.File {
		return nil
	}
	return f
}

func (f contextFile) isSocket() bool { return f.st.Mode&unix.S_IFMT == unix.S_IFSOCK }

func (f contextFile) open() (*os.File, error) {
	if f.isSocket() {
		return os.Open(os.DevNull)
	}
	fd, err := unix.Openat(int(f.dir.Fd()), f.name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("build context: %w", &os.PathError{Op: "open", Path: f.rel, Err: err})
	}
	return os.NewFile(uintptr(fd), f.rel), nil
}

func (f contextFile) digest() (string, error) { return f.digestUntil(context.Background()) }

// digestUntil is digest, ended by ctx: files of a context are as large as they like.
func (f contextFile) digestUntil(ctx context.Context) (string, error) {
	if f.c.index != nil && !f.isSocket() {
		return f.c.index.Digest(ctx, f.rel, statInfo{f.name, f.st}, f.open)
	}
	file, err := f.open()
	if err != nil {
		return "", err
	}
	defer file.Close()
	return fileDigest(ctx, file)
}

// digestOf is c's digest; reading for it ends with ctx. Only files of contexts are read: others' digests stand in their trees.
func digestOf(ctx context.Context, c content) (string, error) {
	if f, ok := c.(contextFile); ok {
		return f.digestUntil(ctx)
	}
	return c.digest()
}

// statInfo shows a stat result as package os does.
type statInfo struct {
	name string
	st   *unix.Stat_t
}

func (i statInfo) Name() string       { return i.name }
func (i statInfo) Size() int64        { return i.st.Size }
func (i statInfo) Mode() os.FileMode  { return os.FileMode(i.st.Mode & 0o777) }
func (i statInfo) ModTime() time.Time { return time.Unix(i.st.Mtim.Unix()) }
func (i statInfo) IsDir() bool        { return false }
func (i statInfo) Sys() any {
	s := i.st
	return &syscall.Stat_t{
		Dev: s.Dev, Ino: s.Ino, Nlink: s.Nlink, Mode: s.Mode, Uid: s.Uid, Gid: s.Gid, Rdev: s.Rdev, Size: s.Size,
		Mtim: syscall.Timespec(s.Mtim), Ctim: syscall.Timespec(s.Ctim),
	}
}

func (w *walker) enter(parent *os.File, name string, e snapshot.Entry, ignored bool) error {
	var err error
	if e.Xattrs, err = w.c.xattrs(parent, name); err != nil {
		return err
	}
	if ignored {
		w.pending = append(w.pending, e)
	} else {
		if err := w.flush(); err != nil {
			return err
		}
		if err := w.f(e, nil); errors.Is(err, errSkip) {
			return nil
		} else if err != nil {
			return err
		}
	}
	fd, err := unix.Openat(int(parent.Fd()), name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("build context: %w", &os.PathError{Op: "open", Path: e.Path, Err: err})
	}
	dir := os.NewFile(uintptr(fd), e.Path)
	defer dir.Close()
	if err := w.dir(dir, e.Path, ignored); err != nil {
		return err
	}
	if n := len(w.pending); ignored && n > 0 && w.pending[n-1].Path == e.Path {
		w.pending = w.pending[:n-1] // nothing below it was re-included
	}
	return nil
}

// flush visits the directories that waited.
func (w *walker) flush() error {
	for _, e := range w.pending {
		// Something below it is wanted by the ignore file; whether the visitor wants it, it says again there.
		if err := w.f(e, nil); err != nil && !errors.Is(err, errSkip) {
			return err
		}
	}
	w.pending = w.pending[:0]
	return nil
}

// holdsMode reports whether a file may have another mode than its directory entry says.
func (c *Context) holdsMode(st *unix.Stat_t) bool {
	return c.Streamed && (st.Mode == unix.S_IFREG|heldFileMode || st.Mode == unix.S_IFDIR|heldDirMode)
}

// heldMode reads the mode that ReadContext kept apart, if it did.
func heldMode(path string, mode uint32) (uint32, error) {
	var buf [16]byte
	n, err := unix.Getxattr(path, xattrMode, buf[:])
	if err != nil {
		return mode, nil // the usual case: the mode on disk is the file's own
	}
	held, err := strconv.ParseUint(string(buf[:n]), 8, 12)
	return uint32(held), err
}

// entry describes a file of the context. A socket is an empty file (as it is in BuildKit).
func (c *Context) entry(rel string, st *unix.Stat_t, readlink func() (string, error)) (e snapshot.Entry, err error) {
	e = snapshot.Entry{Path: rel, Mode: st.Mode & 0o7777, MTime: st.Mtim.Nano()}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		e.Type = snapshot.Dir
	case unix.S_IFREG:
		e.Type, e.Size = snapshot.File, st.Size
	case unix.S_IFLNK:
		e.Type, e.Mode = snapshot.Symlink, 0o777
		if e.Link, err = readlink(); err != nil {
			return e, fmt.Errorf("build context: %w", err)
		}
	case unix.S_IFCHR, unix.S_IFBLK:
		e.Type = snapshot.Char
		if st.Mode&unix.S_IFMT == unix.S_IFBLK {
			e.Type = snapshot.Block
		}
		e.Major, e.Minor = unix.Major(uint64(st.Rdev)), unix.Minor(uint64(st.Rdev))
	case unix.S_IFIFO:
		e.Type = snapshot.Fifo
	case unix.S_IFSOCK:
		e.Type = snapshot.File
	default:
		return e, fmt.Errorf("build context: %s is of an unknown type (mode %o)", rel, st.Mode)
	}
	return e, nil
}

func readlinkIn(dir *os.File, p string) (string, error) {
	f, err := unix.Openat2(int(dir.Fd()), p, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return "", &os.PathError{Op: "readlink", Path: p, Err: err}
	}
	defer unix.Close(f)
	return readlinkFD(f, "", p)
}

func readlinkAt(dir *os.File, name string) (string, error) {
	return readlinkFD(int(dir.Fd()), name, filepath.Join(dir.Name(), name))
}

func readlinkFD(fd int, name, label string) (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(fd, name, buf)
	if err != nil {
		return "", &os.PathError{Op: "readlink", Path: label, Err: err}
	}
	return string(buf[:n]), nil
}

// fdPath is a path of a file in an open directory.
func fdPath(dir *os.File, name string) string {
	return "/proc/self/fd/" + strconv.Itoa(int(dir.Fd())) + "/" + name
}

// xattrs reads the extended attributes of a context file that a layer keeps: user.* and security.capability.
func (c *Context) xattrs(dir *os.File, name string) ([]snapshot.Xattr, error) {
	p := fdPath(dir, name)
	// Most files have none, which the size alone says: this is asked of every file of a context.
	if n, err := unix.Llistxattr(p, nil); err != nil || n == 0 {
		return nil, nil // none, or a file system without
	}
	buf := make([]byte, 4096)
	list, err := attribute(buf, func(b []byte) (int, error) { return unix.Llistxattr(p, b) })
	if err != nil {
		return nil, fmt.Errorf("build context: %w", &os.PathError{Op: "list attributes of", Path: path.Join(dir.Name(), name), Err: err})
	}
	var out []snapshot.Xattr
	for n := range strings.SplitSeq(strings.TrimRight(string(list), "\x00"), "\x00") {
		as := c.shownAs(n)
		if as == "" {
			continue
		}
		v, err := attribute(buf, func(b []byte) (int, error) { return unix.Lgetxattr(p, n, b) })
		if err != nil {
			return nil, fmt.Errorf("build context: %w", &os.PathError{Op: "read attribute " + n + " of", Path: path.Join(dir.Name(), name), Err: err})
		}
		out = append(out, snapshot.Xattr{Name: as, Value: slices.Clone(v)})
	}
	slices.SortFunc(out, func(a, b snapshot.Xattr) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

// shownAs is the name under which an attribute on disk is the context's, "" if it is not.
func (c *Context) shownAs(name string) string {
	switch {
	case c.Streamed && name == xattrCapability:
		return "security.capability"
	case c.Streamed && name == "security.capability": // not the archive's
	case strings.HasPrefix(name, "user.overlay."), strings.HasPrefix(name, attr.Prefix):
	case strings.HasPrefix(name, "user."), name == "security.capability":
		return name
	}
	return ""
}

// attribute reads into buf, or into a buffer of the kernel's limit if that is too small.
func attribute(buf []byte, read func([]byte) (int, error)) ([]byte, error) {
	n, err := read(buf)
	if errors.Is(err, unix.ERANGE) {
		buf = make([]byte, 64<<10) // XATTR_SIZE_MAX, XATTR_LIST_MAX
		n, err = read(buf)
	}
	return buf[:max(n, 0)], err
}

var _ source = (*Context)(nil)
var _ io.Closer = (*Context)(nil)
