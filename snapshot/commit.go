package snapshot

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"

	"img/snapshot/attr"
)

// A scan goes through what a driver says may have changed, in order, and compares it with the parent's view.
//
// Overlay's upper directory is gone through whole: all that is there is a candidate, marks for removed files and replaced
// ("opaque") directories count. A working tree of the copies driver is gone through for what has a later ctime than since; there
// a directory with a later ctime is searched for names that are gone, and one that is not the directory that was at
// its path (dirs) is taken whole.
type scan struct {
	ctx   context.Context
	view  *View
	ids   uint32
	o     CommitOptions
	upper bool
	since int64
	dirs  *dirIndex
	// began and ended are the step's span of the store's clock.
	began, ended int64
	// out takes the changes in order. It is called from one goroutine.
	out func(*change) error

	root *os.File
	// depth is how many directories are open, root included.
	depth int
	// links has the first change of each file with several names.
	links map[uint64]*change
	moves moves
}

// maxLevels is as deep as a scan goes, with a descriptor for each level: nothing deeper has a name that the kernel takes (PATH_MAX).
const maxLevels = unix.PathMax / 2

// shown is a path for a message. What is nested too deep for a scan has a path of many lines.
func shown(path string) string {
	const most = 120
	if len(path) <= most {
		return strconv.Quote(path)
	}
	return strconv.Quote(path[:most]) + "…"
}

// A change is a candidate for the tree.
type change struct {
	e Entry
	// old is what the parent has there; tree is which of the view's trees it is from.
	old  Entry
	tree int
	had  bool
	// file is open while its content is to be hashed; hashed is closed when the digest is there.
	file   *os.File
	hashed chan struct{}
	err    error
	// same is the first change with the same file, which has the digest: itself, for most.
	same *change
	// multi says that the file has other names.
	multi bool
}

// run scans the directory root.
func (s *scan) run(root string) error {
	f, err := os.Open(root)
	if err != nil {
		return err
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return err
	}
	s.root, s.links = f, map[uint64]*change{}
	return s.dir(f, ".", &st, false)
}

// dir looks at a directory and all below it. fresh says that it has nothing in common with the parent's.
func (s *scan) dir(f *os.File, path string, st *unix.Stat_t, fresh bool) error {
	if s.depth++; s.depth > maxLevels {
		return fmt.Errorf("%s: more than %d directories in one another", shown(path), maxLevels)
	}
	defer func() { s.depth-- }()
	if err := s.ctx.Err(); err != nil {
		return context.Cause(s.ctx)
	}
	changed := true
	search := false
	var err error
	if s.upper {
		fresh = fresh || opaque(f)
		search = fresh
	} else {
		var moved bool
		if moved, err = s.dirs.moved(path, st.Ino); err != nil {
			return err
		}
		changed = fresh || st.Ctim.Nano() > s.since
		fresh = fresh || changed && moved
		search = changed
	}
	if changed {
		if err := s.directory(f, path, st); err != nil {
			return err
		}
	}
	return s.children(f, path, fresh, search)
}

func opaque(f *os.File) bool {
	var v [1]byte
	n, err := unix.Fgetxattr(int(f.Fd()), opaqueAttr, v[:])
	return err == nil && n == 1 && v[0] == 'y'
}

// children looks at what is in a directory, and with search for what the parent has there and it has not.
func (s *scan) children(f *os.File, path string, fresh, search bool) error {
	names, err := sortedNames(f)
	if err != nil {
		return fmt.Errorf("read directory %q: %w", path, err)
	}
	var lower []Entry
	if search {
		if lower, err = s.view.ReadDir(path); err != nil {
			return err
		}
	}
	for _, name := range names {
		child := join(path, name)
		for len(lower) > 0 && Compare(lower[0].Path, child) < 0 {
			if err := s.removed(lower[0]); err != nil {
				return err
			}
			lower = lower[1:]
		}
		if len(lower) > 0 && lower[0].Path == child {
			lower = lower[1:]
		}
		if err := s.child(f, name, child, fresh); err != nil {
			return err
		}
	}
	for _, e := range lower {
		if err := s.removed(e); err != nil {
			return err
		}
	}
	return nil
}

func (s *scan) child(dir *os.File, name, path string, fresh bool) error {
	st, err := statAt(dir, name)
	if err != nil {
		return err
	}
	switch t := typeOf(st.Mode); {
	case t == 0, whiteout(&st):
		return s.absent(dir, name, path, t == 0)
	case t == Dir:
		f, err := openAt(dir, name, unix.O_RDONLY|unix.O_DIRECTORY)
		if err != nil {
			return fmt.Errorf("%s, %d directories deep: %w", shown(path), s.depth, err)
		}
		defer f.Close()
		return s.dir(f, path, &st, fresh)
	case !s.upper && !fresh && st.Ctim.Nano() <= s.since:
		return nil
	default:
		return s.leaf(dir, name, path, t, &st)
	}
}

// absent treats a path where there is nothing that a tree could have: a mark of overlay's, or a socket. Other than overlay's
// own marks it is removed from the files too, so that they show what the tree says.
func (s *scan) absent(dir *os.File, name, path string, socket bool) error {
	old, had, err := s.view.Lookup(path)
	if err != nil {
		return err
	}
	if socket || !s.upper {
		if err := s.unlink(dir, name, had); err != nil {
			return fmt.Errorf("remove %q: %w", path, err)
		}
	}
	if !had {
		return nil // a mark where there is nothing
	}
	return s.removed(old)
}

// unlink removes a name; in an upper directory a mark must hide what the parent has. The directory keeps its times.
func (s *scan) unlink(dir *os.File, name string, had bool) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(dir.Fd()), &st); err != nil {
		return err
	}
	if err := unix.Unlinkat(int(dir.Fd()), name, 0); err != nil {
		return err
	}
	if s.upper && had {
		if err := unix.Mknodat(int(dir.Fd()), name, unix.S_IFCHR, 0); err != nil {
			return err
		}
	}
	return setTimes(procName(dir)+"/.", &st)
}

func (s *scan) removed(old Entry) error {
	return s.out(&change{e: Entry{Path: old.Path, Type: Removed}, old: old, had: true})
}

func (s *scan) directory(f *os.File, path string, st *unix.Stat_t) error {
	c, err := s.begin(path, Dir, st)
	if err != nil {
		return err
	}
	if err := s.attributes(c, procName(f)+"/.", st); err != nil {
		return err
	}
	return s.finish(c, st)
}

// leaf makes a change of what is no directory.
func (s *scan) leaf(dir *os.File, name, path string, t Type, st *unix.Stat_t) error {
	c, err := s.begin(path, t, st)
	if err != nil {
		return err
	}
	switch t {
	case Symlink:
		c.e.Mode = 0o777
		if c.e.Link, err = readlinkAt(dir, name); err != nil {
			return err
		}
	case Char, Block:
		c.e.Major, c.e.Minor = unix.Major(st.Rdev), unix.Minor(st.Rdev)
	}
	if t != Symlink {
		if err := s.attributes(c, procName(dir)+"/"+name, st); err != nil {
			return fmt.Errorf("%q: %w", path, err)
		}
	}
	s.device(c, st)
	if c.e.Type == File {
		c.e.Size = st.Size
		if err := s.content(c, dir, name, st); err != nil {
			return err
		}
	}
	return s.finish(c, st)
}

// begin fills what stat tells, and finds the parent's entry.
func (s *scan) begin(path string, t Type, st *unix.Stat_t) (*change, error) {
	old, tree, had, err := s.view.lookup(path)
	if err != nil {
		return nil, err
	}
	c := &change{old: old, tree: tree, had: had}
	c.same = c
	c.e = Entry{
		Path: path, Type: t,
		Mode: st.Mode & 0o7777, UID: st.Uid, GID: st.Gid,
		MTime: st.Mtim.Nano(),
	}
	return c, nil
}

// attributes reads the extended attributes: those that count, and those that say what the disk cannot.
func (s *scan) attributes(c *change, at string, st *unix.Stat_t) error {
	all, err := xattrs(at, kept)
	if err != nil {
		return err
	}
	for _, x := range all {
		switch {
		case x.Name == attr.Owner && st.Uid == 0 && st.Gid == 0:
			if u, g, ok := attr.ParseOwner(x.Value); ok {
				c.e.UID, c.e.GID = u, g
			}
		case x.Name == attr.Device && c.e.Type == File && st.Size == 0:
			if kind, major, minor, ok := attr.ParseDevice(x.Value); ok {
				c.e.Type, c.e.Major, c.e.Minor = Type(kind), major, minor
			}
		case x.Name == capabilityAttr:
			c.e.Xattrs = append(c.e.Xattrs, Xattr{x.Name, normalCapability(x.Value)})
		case counts(x.Name):
			c.e.Xattrs = append(c.e.Xattrs, x)
		}
	}
	return nil
}

func (s *scan) device(c *change, st *unix.Stat_t) {
	if s.o.Device == nil {
		return
	}
	if t, major, minor, ok := s.o.Device(c.e.Path, st.Ino); ok {
		c.e.Type, c.e.Major, c.e.Minor = t, major, minor
	}
}

// content opens a file for hashing, unless another name of it has been.
func (s *scan) content(c *change, dir *os.File, name string, st *unix.Stat_t) error {
	if st.Nlink > 1 {
		c.multi = true
		if first := s.links[st.Ino]; first != nil {
			c.same = first
			return nil
		}
		s.links[st.Ino] = c
	}
	f, err := openAt(dir, name, unix.O_RDONLY|unix.O_NONBLOCK)
	if err != nil {
		return err
	}
	c.file = f
	return nil
}

// finish settles owner and time and hands the change on.
func (s *scan) finish(c *change, st *unix.Stat_t) error {
	if err := s.owner(c, st); err != nil {
		return err
	}
	c.e.TimeSet = s.o.Times == TimesSet && s.timeSet(c)
	return s.out(c)
}

func (s *scan) owner(c *change, st *unix.Stat_t) error {
	asked := false
	if s.o.Owner != nil {
		var u, g uint32
		if u, g, asked = s.o.Owner(c.e.Path, st.Ino); asked {
			c.e.UID, c.e.GID = u, g
		}
	}
	// What cannot carry an attribute of ours keeps the owner that only the parent's tree knows.
	bare := c.e.Type != File && c.e.Type != Dir
	if !bare || st.Uid != 0 || st.Gid != 0 || c.e.UID != 0 || c.e.GID != 0 {
		return nil
	}
	same := c.had && c.old.Type == c.e.Type && c.old.Link == c.e.Link
	if same && asked {
		return nil
	}
	if same && s.foreignOwner(&c.old) {
		c.e.UID, c.e.GID = c.old.UID, c.old.GID
	}
	if same && c.old.MTime == c.e.MTime {
		return nil
	}
	// Also where 0:0 was asked for: mv to another file system, as which a lower layer's directory counts, asks for what it sees.
	return s.moves.owner(s, c)
}

func (s *scan) foreignOwner(e *Entry) bool { return s.foreign(e.UID) || s.foreign(e.GID) }

// foreign reports whether an id is outside the mapping.
func (s *scan) foreign(id uint32) bool { return s.ids != 0 && id >= s.ids }

func (s *scan) timeSet(c *change) bool {
	if c.e.Type == Dir && c.had && c.old.Type == Dir {
		// Its time changes with what is in it, without an entry in any tree. So what the disk has may be an earlier
		// step's moment, which must not get into the name.
		return false
	}
	if c.e.MTime >= s.began-tick && c.e.MTime <= s.ended+tick {
		return false
	}
	return !c.had || floorSeconds(c.old.MTime) != floorSeconds(c.e.MTime)
}

// equal reports whether a change changes nothing. A directory's time changes with what is in it, so it does not count.
func (c *change) equal() bool {
	a, b := &c.e, &c.old
	return c.had && a.Type == b.Type && a.Mode == b.Mode && a.UID == b.UID && a.GID == b.GID &&
		a.Major == b.Major && a.Minor == b.Minor && a.Size == b.Size && a.Link == b.Link && a.Digest == b.Digest &&
		(a.MTime == b.MTime || a.Type == Dir) &&
		slices.EqualFunc(a.Xattrs, b.Xattrs, func(x, y Xattr) bool { return x.Name == y.Name && string(x.Value) == string(y.Value) })
}

// leader identifies the file that the parent has at the change's path.
func (c *change) leader() linkKey {
	if c.old.HardLink != "" {
		return linkKey{c.tree, c.old.HardLink}
	}
	return linkKey{c.tree, c.old.Path}
}

// A collector hashes the contents of changes side by side, drops those that change nothing, and writes the others in order.
type collector struct {
	tree    *namedTree
	pending []*change
	slots   chan struct{}
	groups  map[*change]*linkGroup
}

// A linkGroup is the changes that are one file. It is dropped only as a whole: a new name for an old file needs
// the old names in the same change set.
type linkGroup struct {
	leader linkKey
	keep   bool
	// doubtful are the paths of members that by themselves change nothing.
	doubtful []string
}

// maxPending bounds how many open files wait for being hashed.
const maxPending = 64

func newCollector(tree *namedTree) *collector {
	return &collector{
		tree: tree, groups: map[*change]*linkGroup{},
		slots: make(chan struct{}, runtime.GOMAXPROCS(0)),
	}
}

// add takes the next change.
func (c *collector) add(ch *change) error {
	if ch.file != nil {
		ch.hashed = make(chan struct{})
		c.slots <- struct{}{}
		go func() {
			defer func() { <-c.slots; close(ch.hashed) }()
			ch.e.Digest, ch.err = digest(ch.file, ch.e.Size)
		}()
	}
	c.pending = append(c.pending, ch)
	if len(c.pending) < maxPending {
		return nil
	}
	first := c.pending[0]
	c.pending = slices.Delete(c.pending, 0, 1)
	return c.settle(first)
}

// flush settles what is pending. It must be called whether or not there was an error, since it waits for what was started.
func (c *collector) flush() error {
	var failed error
	for _, ch := range c.pending {
		if err := c.settle(ch); err != nil && failed == nil {
			failed = err
		}
	}
	c.pending = nil
	return failed
}

func (c *collector) settle(ch *change) error {
	if ch.hashed != nil {
		<-ch.hashed
		ch.file.Close()
		ch.file = nil
		if ch.err != nil {
			return fmt.Errorf("hash %q: %w", ch.e.Path, ch.err)
		}
	}
	if ch.e.Type == File && ch.same != ch {
		ch.e.Digest = ch.same.e.Digest
		ch.e.HardLink = ch.same.e.Path
	}
	switch {
	case ch.e.Type == Removed:
	case ch.multi:
		c.group(ch)
	case ch.equal():
		return nil
	}
	return c.tree.write(ch.e)
}

// group notes a name of a file with several; whether it is kept shows at the end.
func (c *collector) group(ch *change) {
	g := c.groups[ch.same]
	if g == nil {
		g = &linkGroup{leader: ch.leader()}
		c.groups[ch.same] = g
	}
	if ch.equal() && ch.leader() == g.leader {
		g.doubtful = append(g.doubtful, ch.e.Path)
	} else {
		g.keep = true
	}
}

// dropped are the paths that were written but change nothing.
func (c *collector) dropped() map[string]bool {
	out := map[string]bool{}
	for _, g := range c.groups {
		if g.keep {
			continue
		}
		for _, p := range g.doubtful {
			out[p] = true
		}
	}
	return out
}

var hashBuffers = sync.Pool{New: func() any { return new([64 << 10]byte) }}

// digest is the SHA-256 of a file's content, in hex.
func digest(f *os.File, size int64) (string, error) {
	h := sha256.New()
	buf := hashBuffers.Get().(*[64 << 10]byte)
	defer hashBuffers.Put(buf)
	n, err := io.CopyBuffer(h, struct{ io.Reader }{f}, buf[:])
	if err != nil {
		return "", err
	}
	if n != size {
		return "", errors.New("its size changed meanwhile")
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// writeChanges makes the tree file of a stage from a scan of root, and returns the name of the snapshot.
func (a *Active) writeChanges(st *stage, s *scan, root string) (Name, error) {
	w, err := st.newTree(a.parent, "tree")
	if err != nil {
		return "", err
	}
	c := newCollector(w)
	s.out = c.add
	err = s.run(root)
	if e := c.flush(); err == nil {
		err = e
	}
	name, e := w.close()
	if err == nil {
		err = e
	}
	if err != nil {
		return "", err
	}
	if drop := c.dropped(); len(drop) > 0 {
		return a.rewrite(st, drop)
	}
	return name, nil
}

// rewrite leaves paths out of a stage's tree.
func (a *Active) rewrite(st *stage, drop map[string]bool) (Name, error) {
	w, err := st.newTree(a.parent, "tree.new")
	if err != nil {
		return "", err
	}
	err = copyTree(st.path("tree"), w, func(p string) bool { return !drop[p] })
	name, e := w.close()
	if err == nil {
		err = e
	}
	if err != nil {
		return "", err
	}
	return name, os.Rename(st.path("tree.new"), st.path("tree"))
}
