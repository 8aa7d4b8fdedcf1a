package exec

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
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
	sources []sourcePlan
}

// A sourcePlan is what one source names, and the digest of all of it.
type sourcePlan struct {
	Matches []match
	Sum     string
	// warnings are about the sources; the first process says them.
	warnings []cache.Warning
}

func (x *Executor) copyKey(ctx context.Context, h *cache.Hash, op *dag.Copy, in []cache.Output) error {
	h.Line("base", string(name(op.Base, in)))
	h.Line("dest", op.Dest)
	h.Line("chown", op.Chown)
	h.Line("chmod", op.Chmod)
	h.Line("parents", op.Parents)
	h.Line("exclude", op.Exclude)
	for _, f := range op.Files {
		h.Line("file", f.Name, f.Data)
	}
	plan, err := x.planCopy(ctx, op, in)
	if err != nil {
		return err
	}
	for i, s := range plan.sources {
		h.Line("source", op.Sources[i].Unpack, op.Sources[i].Literal, op.Sources[i].Times, len(s.Matches), s.Sum)
	}
	x.plans.Store(op, plan)
	return nil
}

// planCopy finds what the sources name and computes the digest of all of it.
func (x *Executor) planCopy(ctx context.Context, op *dag.Copy, in []cache.Output) (*copyPlan, error) {
	keep, err := newFilter(op.Exclude)
	if err != nil {
		return nil, fmt.Errorf("--exclude: %w", err)
	}
	p := &copyPlan{}
	for _, s := range op.Sources {
		one, err := x.planSource(ctx, op, s, keep, in)
		if err != nil {
			return nil, err
		}
		p.sources = append(p.sources, one)
	}
	return p, nil
}

func (x *Executor) planSource(ctx context.Context, op *dag.Copy, from dag.CopySource, keep filter, in []cache.Output) (p sourcePlan, err error) {
	src, release, err := x.source(ctx, from.From, in)
	if err != nil {
		return p, err
	}
	defer release()
	sum := newTreeSum()
	sum.times = from.Times
	for _, pattern := range from.Paths {
		found, err := resolve(src, pattern, op.Parents, from.Literal)
		if err != nil {
			return p, err
		}
		matched := sum.entries
		for _, m := range found {
			before := sum.entries
			if err := sumMatch(ctx, sum, src, m, keep); err != nil {
				return p, err
			}
			if m.Must && sum.entries == before {
				gone := path.Join(m.Real, m.Include)
				return p, &NotFoundError{Path: gone, Ignored: src.ignoredBy(gone)}
			}
		}
		if !from.Literal && hasMeta(pattern) && (len(found) == 0 || op.Parents && sum.entries == matched) {
			p.warnings = append(p.warnings, cache.Warning{Rule: rulePatternNoMatch, Text: fmt.Sprintf("Nothing matches %q, so nothing is copied for it", pattern)})
		}
		p.Matches = append(p.Matches, found...)
	}
	p.Sum = sum.sum()
	return p, nil
}

// sumMatch adds one match to a digest. The root of a directory that is copied as contents does not count.
func sumMatch(ctx context.Context, sum *treeSum, src source, m match, keep filter) error {
	sum.match(m)
	return visit(src, m, keep, func(i item) error {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if i.rel == "." && i.e.Type == snapshot.Dir {
			return nil
		}
		digest := ""
		if i.c != nil {
			var err error
			if digest, err = digestOf(ctx, i.c); err != nil {
				return err
			}
		}
		sum.entry(i, digest)
		return nil
	})
}

// source opens where a step takes files from.
func (x *Executor) source(ctx context.Context, from dag.Source, in []cache.Output) (source, func(), error) {
	if from.Context != "" {
		c, ok := x.o.Contexts[from.Context]
		if !ok {
			return nil, nil, fmt.Errorf("there is no build context %q", from.Context)
		}
		if c.own == "." {
			return nil, nil, fmt.Errorf("the build context %s is img's state directory", c.Path)
		}
		return c, func() {}, nil
	}
	n := name(from.Input, in)
	if n == "" {
		return emptySource{}, func() {}, nil
	}
	v, err := x.viewOf(ctx, n)
	if err != nil {
		return nil, nil, err
	}
	return viewSource{view: v}, func() { v.Close() }, nil
}

// copyArgs is a copy on the wire.
type copyArgs struct {
	Op      *dag.Copy
	Base    snapshot.Name
	From    []fromRef
	Sources []sourcePlan
}

// A written is the answer of a step that writes files itself.
type written struct {
	Name     snapshot.Name
	Warnings []cache.Warning
}

// A fromRef is a dag.Source on the wire.
type fromRef struct {
	Context *contextRef
	// Own is the context's own.
	Own  string
	Name snapshot.Name
}

func (x *Executor) fromRef(ctx context.Context, from dag.Source, in []cache.Output) (fromRef, error) {
	if from.Context != "" {
		c := x.o.Contexts[from.Context]
		return fromRef{Context: &contextRef{from.Context, c.Patterns, c.Streamed}, Own: c.own}, nil
	}
	n := name(from.Input, in)
	return fromRef{Name: n}, x.materialize(ctx, n)
}

func (x *Executor) copy(ctx context.Context, op *dag.Copy, in []cache.Output) (cache.Output, []cache.Warning, error) {
	v, ok := x.plans.Load(op)
	if !ok {
		return "", nil, errors.New("copy has no key")
	}
	plan := v.(*copyPlan)
	base := name(op.Base, in)
	if err := x.materialize(ctx, base); err != nil {
		return "", nil, err
	}
	args := copyArgs{Op: op, Base: base, Sources: plan.sources}
	var warnings []cache.Warning
	for i, s := range op.Sources {
		from, err := x.fromRef(ctx, s.From, in)
		if err != nil {
			return "", nil, err
		}
		args.From = append(args.From, from)
		warnings = append(warnings, plan.sources[i].warnings...)
	}
	var r written
	err := x.call(ctx, "copy", args, &r)
	return cache.Output(r.Name), append(warnings, r.Warnings...), err
}

// openFrom opens a fromRef in the inner process.
func (w *world) openFrom(ctx context.Context, from fromRef) (source, func(), error) {
	if from.Context != nil {
		c, err := w.context(*from.Context)
		if err != nil {
			return nil, nil, err
		}
		c.own = from.Own
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
func (w *world) copy(ctx context.Context, a copyArgs, _ []*os.File) (written, error) {
	return w.write(ctx, a.Base, func(t *target) (snapshot.Times, error) {
		c := &copier{t: t, op: a.Op, w: w}
		err := c.all(ctx, a.From, a.Sources)
		if c.unpacked {
			return snapshot.TimesSet, err
		}
		return snapshot.TimesNever, err
	})
}

// write makes a snapshot of what put puts on a base. put also says which times count in the snapshot's name.
func (w *world) write(ctx context.Context, base snapshot.Name, put func(t *target) (snapshot.Times, error)) (written, error) {
	active, err := w.snaps.Prepare(ctx, base)
	if err != nil {
		return written{}, err
	}
	defer active.Discard()
	t, err := newTarget(active.Root(), w.setup.IDs)
	if err != nil {
		return written{}, err
	}
	defer t.close()
	t.ctx = ctx
	times, err := put(t)
	if err != nil {
		return written{}, err
	}
	if err := t.setTimes(); err != nil {
		return written{}, err
	}
	n, err := active.Commit(ctx, snapshot.CommitOptions{Times: times, Owner: t.ownerOf})
	return written{n, t.warnings}, err
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
	keep filter
	// src is the source being copied, as from describes it; sum is the digest of what was taken from it.
	src  source
	from dag.CopySource
	sum  *treeSum
	// unpacked says that an archive was extracted: its times count.
	unpacked bool
	// placed says what the place of each single file got; made, that the step made the destination of the directory under way.
	placed map[string]string
	made   bool
}

func (c *copier) all(ctx context.Context, from []fromRef, sources []sourcePlan) error {
	var err error
	if c.keep, err = newFilter(c.op.Exclude); err != nil {
		return err
	}
	if err := c.t.setOwner("--chown", c.op.Chown); err != nil {
		return err
	}
	if c.t.mode, err = parseMode(c.op.Chmod); err != nil {
		return err
	}
	for i, s := range sources {
		c.from = c.op.Sources[i]
		if err := c.source(ctx, from[i], s); err != nil {
			return err
		}
	}
	return c.files()
}

// source copies what one source has. It must be what the key was computed from.
func (c *copier) source(ctx context.Context, from fromRef, plan sourcePlan) error {
	src, release, err := c.w.openFrom(ctx, from)
	if err != nil {
		return err
	}
	defer release()
	c.src, c.sum = src, newTreeSum()
	c.sum.times = c.from.Times
	for _, m := range plan.Matches {
		c.sum.match(m)
		if err := c.one(ctx, m); err != nil {
			return err
		}
	}
	if c.sum.sum() != plan.Sum {
		return &changedError{"a source file of this step"}
	}
	return nil
}

// files makes the heredocs' files.
func (c *copier) files() error {
	for _, f := range c.op.Files {
		dst, err := c.fileDest(f.Name)
		if err != nil {
			return err
		}
		c.place(dst, "<<"+f.Name)
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
	case c.from.Unpack && m.Type == snapshot.File:
		done, err := c.unpack(ctx, m)
		if done || err != nil {
			return err
		}
	}
	dst, err := c.fileDest(m.Name)
	if err != nil {
		return err
	}
	if m.Include == "" {
		c.place(dst, m.Real)
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
	dst, err := c.t.resolve(c.op.Dest)
	if err != nil {
		return err
	}
	there, err := c.t.isDir(dst)
	if err != nil {
		return err
	}
	if err := c.t.mkdirAll(dst); err != nil {
		return err
	}
	c.made = !there
	return c.visit(ctx, m, func(rel string) string { return path.Join(dst, rel) })
}

func (c *copier) visit(ctx context.Context, m match, to func(rel string) string) error {
	return visit(c.src, m, c.keep, func(i item) error {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		dst := to(i.rel)
		if i.rel == "." && i.e.Type == snapshot.Dir {
			c.t.later(dst, i.e.MTime)
			c.destination(dst, i.e)
			return nil
		}
		if i.passed {
			c.sum.entry(i, "")
			return c.t.pass(dst, i.e)
		}
		e := i.e
		if e.HardLink != "" {
			e.HardLink = to(e.HardLink)
		}
		digest, err := c.t.put(dst, e, i.c)
		if err != nil {
			return err
		}
		c.sum.entry(i, digest)
		return nil
	})
}

// unpack extracts a local archive at the destination; done is false when the file is no archive.
func (c *copier) unpack(ctx context.Context, m match) (done bool, err error) {
	err = visit(c.src, m, filter{}, func(i item) error {
		archive, err := i.c.open()
		if err != nil {
			return err
		}
		defer archive.Close()
		if done, err = isArchive(archive); err != nil || !done {
			return err
		}
		if err := c.extract(ctx, archive); err != nil {
			return fmt.Errorf("unpack /%s: %w", m.Real, err)
		}
		// After extraction: if the file changed since its digest went into the key, this sees it.
		digest, err := fileDigest(ctx, archive)
		c.sum.entry(i, digest)
		return err
	})
	return done, err
}

// extract puts an archive's files at the destination, which is a directory. --chmod does not count, for the destination neither.
func (c *copier) extract(ctx context.Context, archive *os.File) error {
	mode := c.t.mode
	c.t.mode = modeChange{}
	defer func() { c.t.mode = mode }()
	dst, err := c.t.resolve(c.op.Dest)
	if err != nil {
		return err
	}
	if err := c.t.mkdirAll(dst); err != nil {
		return err
	}
	c.unpacked = true
	return c.w.unpackArchive(ctx, archive, c.t, dst)
}

// fileDigest hashes a file from its start.
func fileDigest(ctx context.Context, f *os.File) (string, error) {
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return "", err
	}
	h := sha256.New()
	if _, err := io.Copy(h, contextReader{ctx, f}); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// A contextReader ends with its context, with the cause as error.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c contextReader) Read(p []byte) (int, error) {
	if c.ctx.Err() != nil {
		return 0, context.Cause(c.ctx)
	}
	return c.r.Read(p)
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
	// ctx, if set, ends the copying of a file: a target serves one step.
	ctx context.Context

	// parent is the directory of the last path, kept open.
	parent     *os.File
	parentPath string
	times      []dirTime
	// owners are intended owners that the disk cannot show: links and special files with ids outside the mapping.
	owners map[string][2]uint32
	// replace makes files replace directories, and directories files: what archives do.
	replace bool
	// warnings are surprises to tell.
	warnings []cache.Warning
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
		// The error names where the root is for now, which helps nobody.
		var errno unix.Errno
		if errors.As(err, &errno) {
			err = errno
		}
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

// isDir reports whether there is a directory at a path.
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

// mkdirAll makes a directory and its missing parents: 0755 (or the permissions of an octal --chmod), owned by 0:0 (or --chown).
func (t *target) mkdirAll(p string) error {
	if p == "." || p == "/" {
		return nil
	}
	if done, err := t.isDir(p); done || err != nil {
		return err
	}
	if err := t.mkdirAll(path.Dir(p)); err != nil {
		return err
	}
	fd, base, err := t.dir(p)
	if err != nil {
		return err
	}
	if _, err := t.mkdir(fd, base, p); err != nil {
		return err
	}
	return t.restoreAs(fd, base, p, snapshot.Entry{Type: snapshot.Dir}, t.mode.parents())
}

// mkdir makes one directory; made is false if it was there.
func (t *target) mkdir(fd int, base, p string) (made bool, err error) {
	err = unix.Mkdirat(fd, base, 0o700)
	if errors.Is(err, unix.EEXIST) {
		var st unix.Stat_t
		if err = unix.Fstatat(fd, base, &st, unix.AT_SYMLINK_NOFOLLOW); err == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR {
			return false, nil
		}
		if err == nil && t.replace {
			if err = unix.Unlinkat(fd, base, 0); err == nil {
				err = unix.Mkdirat(fd, base, 0o700)
			}
		} else if err == nil {
			err = unix.ENOTDIR
		}
	}
	if err != nil {
		return false, &os.PathError{Op: "mkdir", Path: "/" + p, Err: err}
	}
	return true, nil
}

// setTimes gives directories their times, after everything in them has been made.
func (t *target) setTimes() error {
	for _, d := range t.times { // of two sources for one directory the later counts
		fd, base, err := t.dir(d.path)
		if err == nil {
			err = utimes(fd, base, d.mtime)
		}
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
			continue // an archive has replaced it
		}
		if err != nil {
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
