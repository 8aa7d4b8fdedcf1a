package exec

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"strings"
	"time"

	securejoin "github.com/cyphar/filepath-securejoin"
	"golang.org/x/sys/unix"

	"img/cache"
	"img/dag"
	"img/snapshot"
)

// copyPlan is what the first process finds out for a step's key and needs again to carry it out.
type copyPlan struct {
	matches []match
	sum     string
}

func (x *Executor) copyKey(ctx context.Context, h *cache.Hash, op *dag.Copy, in []cache.Output) error {
	h.Line("base", string(name(op.Base, in)))
	h.Line("dest", op.Dest)
	h.Line("chown", op.Chown)
	h.Line("chmod", op.Chmod)
	h.Line("unpack", op.Unpack)
	h.Line("parents", op.Parents)
	h.Line("link", op.Link)
	h.Line("exclude", op.Exclude)
	for _, f := range op.Files {
		h.Line("file", f.Name, f.Data)
	}
	plan, err := x.planCopy(ctx, op, in)
	if err != nil {
		return err
	}
	h.Line("sources", len(plan.matches), plan.sum)
	x.plans.Store(op, plan)
	return nil
}

// planCopy finds what the sources name and computes the digest of all of it.
func (x *Executor) planCopy(ctx context.Context, op *dag.Copy, in []cache.Output) (*copyPlan, error) {
	src, release, err := x.source(op.From, in)
	if err != nil {
		return nil, err
	}
	defer release()
	keep, err := newFilter(op.Exclude)
	if err != nil {
		return nil, fmt.Errorf("--exclude: %w", err)
	}
	p := &copyPlan{}
	sum := newTreeSum()
	for _, pattern := range op.Paths {
		found, err := resolve(src, pattern, op.Parents)
		if err != nil {
			return nil, err
		}
		for _, m := range found {
			if err := sumMatch(ctx, sum, src, m, keep); err != nil {
				return nil, err
			}
		}
		p.matches = append(p.matches, found...)
	}
	p.sum = sum.sum()
	return p, nil
}

// sumMatch adds one match to a digest. The root of a directory that is copied as contents does not count.
func sumMatch(ctx context.Context, sum *treeSum, src source, m match, keep filter) error {
	sum.match(m)
	return visit(src, m, keep, func(rel string, e snapshot.Entry, c content) error {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		if rel == "." && e.Type == snapshot.Dir {
			return nil
		}
		digest := ""
		if c != nil {
			var err error
			if digest, err = c.digest(); err != nil {
				return err
			}
		}
		sum.entry(rel, e, digest)
		return nil
	})
}

// source opens where a step takes files from.
func (x *Executor) source(from dag.Source, in []cache.Output) (source, func(), error) {
	if from.Context != "" {
		c, ok := x.o.Contexts[from.Context]
		if !ok {
			return nil, nil, fmt.Errorf("there is no build context %q", from.Context)
		}
		return c, func() {}, nil
	}
	n := name(from.Input, in)
	if n == "" {
		return emptySource{}, func() {}, nil
	}
	v, err := x.viewOf(n)
	if err != nil {
		return nil, nil, err
	}
	return viewSource{view: v}, func() { v.Close() }, nil
}

// copyArgs is a copy on the wire.
type copyArgs struct {
	Op      *dag.Copy
	Base    snapshot.Name
	From    fromRef
	Matches []match
	Sum     string
}

// A fromRef is a dag.Source on the wire.
type fromRef struct {
	Context *contextRef
	Name    snapshot.Name
}

func (x *Executor) fromRef(ctx context.Context, from dag.Source, in []cache.Output) (fromRef, error) {
	if from.Context != "" {
		return fromRef{Context: &contextRef{from.Context, x.o.Contexts[from.Context].Patterns}}, nil
	}
	n := name(from.Input, in)
	return fromRef{Name: n}, x.materialize(ctx, n)
}

func (x *Executor) copy(ctx context.Context, op *dag.Copy, in []cache.Output) (cache.Output, error) {
	v, ok := x.plans.Load(op)
	if !ok {
		return "", errors.New("copy has no key")
	}
	plan := v.(*copyPlan)
	base := name(op.Base, in)
	if err := x.materialize(ctx, base); err != nil {
		return "", err
	}
	from, err := x.fromRef(ctx, op.From, in)
	if err != nil {
		return "", err
	}
	var out snapshot.Name
	err = x.call(ctx, "copy", copyArgs{op, base, from, plan.matches, plan.sum}, &out)
	return cache.Output(out), err
}

// openFrom opens a fromRef in the inner process.
func (w *world) openFrom(ctx context.Context, from fromRef) (source, func(), error) {
	if from.Context != nil {
		c, err := w.context(*from.Context)
		if err != nil {
			return nil, nil, err
		}
		return c, func() { c.Close() }, nil
	}
	if from.Name == "" {
		return emptySource{}, func() {}, nil
	}
	v, err := w.snaps.View(from.Name)
	if err != nil {
		return nil, nil, err
	}
	dir, release, err := w.snaps.Mount(ctx, from.Name)
	if err != nil {
		v.Close()
		return nil, nil, err
	}
	f, err := os.Open(dir)
	done := func() {
		f.Close()
		v.Close()
		release()
	}
	if err != nil {
		done()
		return nil, nil, err
	}
	return viewSource{v, f}, done, nil
}

// copy is the step itself, in the inner process.
func (w *world) copy(ctx context.Context, a copyArgs, _ []*os.File) (snapshot.Name, error) {
	active, err := w.snaps.Prepare(ctx, a.Base)
	if err != nil {
		return "", err
	}
	defer active.Discard()
	src, release, err := w.openFrom(ctx, a.From)
	if err != nil {
		return "", err
	}
	defer release()
	t, err := newTarget(active.Root(), w.setup.IDs)
	if err != nil {
		return "", err
	}
	defer t.close()
	c := &copier{t: t, op: a.Op, src: src, sum: newTreeSum(), w: w}
	if err := c.all(ctx, a.Matches); err != nil {
		return "", err
	}
	if got := c.sum.sum(); got != a.Sum {
		return "", &changedError{"a source file of this step"}
	}
	if err := t.setTimes(); err != nil {
		return "", err
	}
	o := snapshot.CommitOptions{Times: snapshot.TimesNever, Owner: t.ownerOf}
	if c.unpacked {
		o.Times = snapshot.TimesSet
	}
	return active.Commit(ctx, o)
}

// A changedError is a file that is not what the key was computed from.
type changedError struct{ what string }

func (e *changedError) Error() string           { return e.what + " " + errChanged.Error() }
func (e *changedError) Unwrap() error           { return errChanged }
func (e *changedError) WireKind() (string, any) { return "changed", e.what }

// A copier copies one step's sources.
type copier struct {
	w    *world
	t    *target
	op   *dag.Copy
	src  source
	sum  *treeSum
	keep filter
	// unpacked says that an archive was extracted: its times count.
	unpacked bool
}

func (c *copier) all(ctx context.Context, matches []match) error {
	var err error
	if c.keep, err = newFilter(c.op.Exclude); err != nil {
		return err
	}
	if err := c.t.setOwner(c.op.Chown); err != nil {
		return err
	}
	if c.t.mode, err = parseMode(c.op.Chmod); err != nil {
		return err
	}
	for _, m := range matches {
		c.sum.match(m)
		if err := c.one(ctx, m); err != nil {
			return err
		}
	}
	for _, f := range c.op.Files {
		dst, err := c.fileDest(f.Name)
		if err != nil {
			return err
		}
		e := snapshot.Entry{Type: snapshot.File, Mode: 0o644, Size: int64(len(f.Data)), MTime: time.Now().UnixNano()}
		if err := c.t.putData(dst, e, f.Data); err != nil {
			return err
		}
	}
	return nil
}

func (c *copier) one(ctx context.Context, m match) error {
	switch {
	case m.Type == snapshot.Dir:
		return c.dir(ctx, m)
	case c.op.Unpack && m.Type == snapshot.File:
		done, err := c.unpack(ctx, m)
		if done || err != nil {
			return err
		}
	}
	dst, err := c.fileDest(m.Name)
	if m.Under != "" {
		dst, err = c.t.resolve(path.Join(c.op.Dest, m.Under))
	}
	if err != nil {
		return err
	}
	return c.visit(ctx, m, func(string) string { return dst })
}

// fileDest returns where a single file goes: into an existing directory or one that a trailing slash asks for, else exactly there.
func (c *copier) fileDest(base string) (string, error) {
	dst, err := c.t.resolve(c.op.Dest)
	if err != nil {
		return "", err
	}
	into := strings.HasSuffix(c.op.Dest, "/") || strings.HasSuffix(c.op.Dest, "/.")
	if !into {
		isDir, err := c.t.isDir(dst)
		if err != nil {
			return "", err
		}
		into = isDir
	}
	if into {
		dst = path.Join(dst, base)
	}
	return dst, c.t.mkdirAll(path.Dir(dst))
}

// dir copies a directory's contents. The destination itself is made as a parent is: the source's mode does not count, its time does.
func (c *copier) dir(ctx context.Context, m match) error {
	dst, err := c.t.resolve(path.Join(c.op.Dest, m.Under))
	if err != nil {
		return err
	}
	if err := c.t.mkdirAll(dst); err != nil {
		return err
	}
	return c.visit(ctx, m, func(rel string) string { return path.Join(dst, rel) })
}

func (c *copier) visit(ctx context.Context, m match, to func(rel string) string) error {
	return visit(c.src, m, c.keep, func(rel string, e snapshot.Entry, con content) error {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if rel == "." && e.Type == snapshot.Dir {
			c.t.later(to(rel), e.MTime)
			return nil
		}
		link := e.HardLink
		if link != "" {
			e.HardLink = to(link)
		}
		digest, err := c.t.put(to(rel), e, con)
		if err != nil {
			return err
		}
		e.HardLink = link
		c.sum.entry(rel, e, digest)
		return nil
	})
}

// unpack extracts a local archive at the destination; done is false when the file is no archive.
func (c *copier) unpack(ctx context.Context, m match) (done bool, err error) {
	var e snapshot.Entry
	var digest string
	var archive *os.File
	err = visit(c.src, m, filter{}, func(_ string, entry snapshot.Entry, con content) error {
		e = entry
		if archive, err = con.open(); err != nil {
			return err
		}
		if done, err = isArchive(archive); err != nil || !done {
			return err
		}
		digest, err = con.digest()
		return err
	})
	if archive != nil {
		defer archive.Close()
	}
	if err != nil || !done {
		return false, err
	}
	dst, err := c.t.resolve(c.op.Dest)
	if err != nil {
		return true, err
	}
	if err := c.t.mkdirAll(dst); err != nil {
		return true, err
	}
	c.unpacked = true
	if err := c.w.unpackArchive(ctx, archive, c.t, dst); err != nil {
		return true, fmt.Errorf("unpack /%s: %w", m.Real, err)
	}
	c.sum.entry(".", e, digest)
	return true, nil
}

// A target is the root that a step writes into. Paths are relative to it and free of links (resolve makes them so).
type target struct {
	root *os.File
	path string
	ids  uint32
	// uid and gid are --chown's, if chown is set.
	chown    bool
	uid, gid uint32
	mode     modeChange

	// parent is the directory of the last path, kept open.
	parent     *os.File
	parentPath string
	times      []dirTime
	// owners are intended owners that the disk cannot show: links and special files with ids outside the mapping.
	owners map[string][2]uint32
}

type dirTime struct {
	path  string
	mtime int64
}

func newTarget(root string, ids uint32) (*target, error) {
	f, err := os.OpenFile(root, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return &target{root: f, path: root, ids: ids, owners: map[string][2]uint32{}}, nil
}

func (t *target) close() {
	if t.parent != nil {
		t.parent.Close()
	}
	t.root.Close()
}

func (t *target) ownerOf(p string, _ uint64) (uid, gid uint32, ok bool) {
	o, ok := t.owners[p]
	return o[0], o[1], ok
}

// resolve returns a path with every link resolved inside the root; what does not exist yet stays as it is. Nothing else changes the
// root meanwhile, and every use of the result refuses links.
func (t *target) resolve(p string) (string, error) {
	full, err := securejoin.SecureJoin(t.path, p)
	if err != nil {
		return "", fmt.Errorf("%s: %w", p, err)
	}
	rel := strings.TrimPrefix(strings.TrimPrefix(full, t.path), "/")
	if rel == "" {
		return ".", nil
	}
	return rel, nil
}

// dir opens the directory of a path and returns the path's last component.
func (t *target) dir(p string) (int, string, error) {
	parent, base := path.Dir(p), path.Base(p)
	if t.parent != nil && t.parentPath == parent {
		return int(t.parent.Fd()), base, nil
	}
	fd, err := t.open(parent, unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return -1, "", err
	}
	if t.parent != nil {
		t.parent.Close()
	}
	t.parent, t.parentPath = os.NewFile(uintptr(fd), parent), parent
	return fd, base, nil
}

func (t *target) open(p string, flags uint64) (int, error) {
	fd, err := unix.Openat2(int(t.root.Fd()), p, &unix.OpenHow{
		Flags:   flags | unix.O_CLOEXEC | unix.O_NOFOLLOW,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: "/" + p, Err: err}
	}
	return fd, nil
}

func (t *target) isDir(p string) (bool, error) {
	st, err := statIn(t.root, p)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return false, nil
	}
	if err != nil {
		return false, &os.PathError{Op: "lstat", Path: "/" + p, Err: err}
	}
	return st.Mode&unix.S_IFMT == unix.S_IFDIR, nil
}

// mkdirAll makes a directory and its missing parents: 0755 (or an octal --chmod), owned by 0:0 (or --chown).
func (t *target) mkdirAll(p string) error {
	if p == "." || p == "/" {
		return nil
	}
	st, err := statIn(t.root, p)
	if err == nil {
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			return fmt.Errorf("cannot copy to non-directory: %q", "/"+p)
		}
		return nil
	}
	if !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENOTDIR) {
		return &os.PathError{Op: "lstat", Path: "/" + p, Err: err}
	}
	if err := t.mkdirAll(path.Dir(p)); err != nil {
		return err
	}
	fd, base, err := t.dir(p)
	if err != nil {
		return err
	}
	if err := unix.Mkdirat(fd, base, 0o755); err != nil {
		return &os.PathError{Op: "mkdir", Path: "/" + p, Err: err}
	}
	e := snapshot.Entry{Type: snapshot.Dir, Mode: t.mode.parents()}
	return t.restore(fd, base, p, e)
}

// setTimes gives directories their times, after everything in them has been made.
func (t *target) setTimes() error {
	for i := len(t.times) - 1; i >= 0; i-- {
		d := t.times[i]
		fd, base, err := t.dir(d.path)
		if err != nil {
			return err
		}
		if err := utimes(fd, base, d.mtime); err != nil {
			return &os.PathError{Op: "set times of", Path: "/" + d.path, Err: err}
		}
	}
	return nil
}

func (t *target) later(p string, mtime int64) { t.times = append(t.times, dirTime{p, mtime}) }

func utimes(dirfd int, base string, mtime int64) error {
	ts := unix.NsecToTimespec(mtime)
	return unix.UtimesNanoAt(dirfd, base, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW)
}
