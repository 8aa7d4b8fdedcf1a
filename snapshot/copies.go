package snapshot

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// A workTree is a whole file system as plain files, which steps change in place. Its stage has
//
//	root/   the files
//	dirs    the directories and their inode numbers, in the format of trees (SIZE is the inode number)
type workTree struct {
	stage *stage
	// at is what the files are, when nobody changes them.
	at Name
	// since is the store's clock when they were last as at says: what changes has a later ctime.
	since int64
	// users counts read-only uses.
	users int
}

func (w *workTree) root() string { return w.stage.path("root") }

// prepareCopy takes an idle working tree at the parent, or makes one.
func (s *Store) prepareCopy(ctx context.Context, chain []Name) (*Active, error) {
	w, err := s.workTreeAt(ctx, chain)
	if err != nil {
		return nil, err
	}
	a := &Active{s: s, parent: w.at, work: w, stage: w.stage, root: w.root()}
	if err = w.stage.nextTick(w.since); err == nil {
		a.began, err = w.stage.clock()
	}
	if err != nil {
		w.stage.drop()
		return nil, err
	}
	return a, nil
}

// workTreeAt returns a working tree that nobody else has.
func (s *Store) workTreeAt(ctx context.Context, chain []Name) (*workTree, error) {
	var n Name
	if len(chain) > 0 {
		n = chain[0]
	}
	if w := s.takeIdle(n); w != nil {
		return w, nil
	}
	return s.materialise(ctx, chain)
}

func (s *Store) takeIdle(n Name) *workTree {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, w := range s.working {
		if w.at == n && w.users == 0 {
			s.working = slices.Delete(s.working, i, i+1)
			return w
		}
	}
	return nil
}

func (s *Store) putIdle(w *workTree) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.working = append(s.working, w)
}

// dropWorking deletes the idle working trees at a snapshot that is being removed.
func (s *Store) dropWorking(n Name) {
	for w := s.takeIdle(n); w != nil; w = s.takeIdle(n) {
		w.stage.drop() // what is left is swept
	}
}

// materialise copies the file system of a chain.
func (s *Store) materialise(ctx context.Context, chain []Name) (*workTree, error) {
	st, err := s.newStage("root")
	if err != nil {
		return nil, err
	}
	w := &workTree{stage: st}
	if len(chain) > 0 {
		w.at = chain[0]
	}
	if err := s.copyChain(ctx, w, chain); err != nil {
		st.drop()
		return nil, fmt.Errorf("copy snapshot: %w", err)
	}
	if w.since, err = st.clock(); err != nil {
		st.drop()
		return nil, err
	}
	return w, nil
}

func (s *Store) copyChain(ctx context.Context, w *workTree, chain []Name) (err error) {
	view, err := s.View(w.at)
	if err != nil {
		return err
	}
	defer view.Close()
	from, err := s.openLayers(chain)
	if err != nil {
		return err
	}
	defer closeAll(from)
	if err := s.copyRoot(w.root(), chain); err != nil {
		return err
	}
	b, err := newBuilder(w.root(), func(path string) (*os.File, error) {
		return nil, fmt.Errorf("%q is below no directory", path)
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.close()) }()
	dirs, err := newDirIndex(w.stage)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dirs.close(w.stage)) }()
	return view.walk(".", func(e Entry, tree int) error {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		if e.Path != "." {
			if err := copyEntry(b, e, tree, from[tree]); err != nil {
				return err
			}
		}
		if e.Type != Dir {
			return nil
		}
		f, err := b.dir(e.Path)
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Fstat(int(f.Fd()), &st); err != nil {
			return err
		}
		return dirs.write(e.Path, st.Ino)
	})
}

func (s *Store) openLayers(chain []Name) ([]*os.File, error) {
	var out []*os.File
	for _, dir := range s.layers(chain) {
		f, err := os.Open(dir)
		if err != nil {
			closeAll(out)
			return nil, err
		}
		out = append(out, f)
	}
	return out, nil
}

// copyEntry copies one entry from a directory that has it.
func copyEntry(b *builder, e Entry, tree int, from *os.File) error {
	src, err := openBeneath(from, e.Path, unix.O_PATH)
	if err != nil {
		return err
	}
	defer src.Close()
	return b.add(e, tree, src)
}

// commitCopy finds the changes by their ctime and copies them into a new snapshot.
func (a *Active) commitCopy(ctx context.Context, o CommitOptions) (n Name, err error) {
	w := a.work
	defer func() {
		if err != nil {
			w.stage.drop()
		}
	}()
	ended, err := w.stage.clock()
	if err != nil {
		return "", err
	}
	st, err := a.s.newStage("fs")
	if err != nil {
		return "", err
	}
	if n, err = a.findChanges(ctx, st, o, ended); err != nil {
		st.drop()
		return "", err
	}
	if a.s.Has(n) {
		// The snapshot that is there has the times of when it was made; later steps must see those.
		return n, errors.Join(st.drop(), w.stage.drop())
	}
	if err := a.copyChanges(ctx, st); err != nil {
		st.drop()
		return "", err
	}
	if err := a.s.publish(st, n, a.parent); err != nil {
		st.drop()
		return "", err
	}
	w.at, w.since = n, ended
	a.s.putIdle(w)
	return n, nil
}

func (a *Active) findChanges(ctx context.Context, st *stage, o CommitOptions, ended int64) (n Name, err error) {
	view, err := a.s.View(a.parent)
	if err != nil {
		return "", err
	}
	defer view.Close()
	dirs, err := newDirIndex(a.work.stage)
	if err != nil {
		return "", err
	}
	n, err = a.writeChanges(st, &scan{
		ctx: ctx, view: view, ids: a.s.o.IDs, o: o, since: a.work.since, dirs: dirs, began: a.began, ended: ended,
	}, a.work.root())
	if e := dirs.close(a.work.stage); err == nil {
		err = e
	}
	return n, err
}

// copyChanges copies what a stage's tree names from the working tree into fs/, in overlay form.
func (a *Active) copyChanges(ctx context.Context, st *stage) (err error) {
	from, err := os.Open(a.work.root())
	if err != nil {
		return err
	}
	defer from.Close()
	rootSt, attrs, err := attributes(from)
	if err != nil {
		return err
	}
	if err := setAttributes(st.path("fs"), &rootSt, attrs); err != nil {
		return err
	}
	t, err := openTreeFile(st.path("tree"))
	if err != nil {
		return err
	}
	defer t.Close()
	b, err := newBuilder(st.path("fs"), func(path string) (*os.File, error) {
		return openBeneath(from, path, unix.O_PATH|unix.O_DIRECTORY)
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.close()) }()
	return t.Each(func(e Entry) error {
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case e.Path == ".":
			return nil
		case e.Type == Removed:
			return b.white(e.Path)
		}
		return copyEntry(b, e, 0, from)
	})
}

// mountCopy shows a working tree: bound read-only where that is allowed, else as it is.
func (s *Store) mountCopy(ctx context.Context, chain []Name) (string, func() error, error) {
	w, err := s.shareWorkTree(ctx, chain)
	if err != nil {
		return "", nil, err
	}
	done := func() error {
		s.mu.Lock()
		defer s.mu.Unlock()
		w.users--
		return nil
	}
	at, err := s.bindReadOnly(w.root())
	if err != nil {
		return w.root(), done, nil
	}
	return at, func() error { return errors.Join(s.unmount(at), done()) }, nil
}

// shareWorkTree counts one more user of a working tree that nobody changes, made if need be. It stays for later steps.
func (s *Store) shareWorkTree(ctx context.Context, chain []Name) (*workTree, error) {
	var n Name
	if len(chain) > 0 {
		n = chain[0]
	}
	if w := s.shareExisting(n); w != nil {
		return w, nil
	}
	w, err := s.materialise(ctx, chain)
	if err != nil {
		return nil, err
	}
	w.users = 1
	s.putIdle(w)
	return w, nil
}

func (s *Store) shareExisting(n Name) *workTree {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, w := range s.working {
		if w.at == n {
			w.users++
			return w
		}
	}
	return nil
}

func (s *Store) bindReadOnly(dir string) (string, error) {
	at := filepath.Join(s.o.Scratch, "root-"+rand.Text())
	if err := os.Mkdir(at, 0o700); err != nil {
		return "", err
	}
	if err := unix.Mount(dir, at, "", unix.MS_BIND, ""); err != nil {
		os.Remove(at)
		return "", err
	}
	if err := unix.Mount("", at, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY|lockedFlags(at), ""); err != nil {
		s.unmount(at)
		return "", err
	}
	return at, nil
}

// lockedFlags are the flags that a remount in a user namespace must repeat, since it may not clear them.
func lockedFlags(at string) uintptr {
	var st unix.Statfs_t
	if unix.Statfs(at, &st) != nil {
		return 0
	}
	var out uintptr
	for from, to := range map[int64]uintptr{
		unix.ST_NOSUID: unix.MS_NOSUID, unix.ST_NODEV: unix.MS_NODEV, unix.ST_NOEXEC: unix.MS_NOEXEC,
		unix.ST_NOATIME: unix.MS_NOATIME, unix.ST_NODIRATIME: unix.MS_NODIRATIME, unix.ST_RELATIME: unix.MS_RELATIME,
	} {
		if int64(st.Flags)&from != 0 {
			out |= to
		}
	}
	return out
}

// A dirIndex tells whether the directory at a path is the one that was there before: a renamed directory brings files whose
// ctime is old. It reads the old list of directories while it writes the new one.
type dirIndex struct {
	old  *cursor
	at   Entry
	more bool
	from *os.File
	new  *os.File
	w    *TreeWriter
}

func newDirIndex(st *stage) (*dirIndex, error) {
	d := &dirIndex{}
	var err error
	if d.new, err = createFile(st.path("dirs.new")); err != nil {
		return nil, err
	}
	d.w = NewTreeWriter(d.new)
	if d.from, err = os.Open(st.path("dirs")); errors.Is(err, os.ErrNotExist) {
		return d, nil
	}
	if err == nil {
		err = d.openOld()
	}
	if err != nil {
		d.new.Close()
		d.from.Close() // an error where it could not be opened
		return nil, err
	}
	return d, nil
}

func (d *dirIndex) openOld() error {
	fi, err := d.from.Stat()
	if err != nil {
		return err
	}
	t, err := OpenTree(d.from, fi.Size())
	if err != nil {
		return err
	}
	d.old = t.cursor(t.start, t.end)
	d.at, d.more, err = d.old.next()
	return err
}

func (d *dirIndex) write(path string, ino uint64) error {
	return d.w.WriteEntry(Entry{Path: path, Type: Dir, Size: int64(ino)})
}

// moved notes a directory of the new list and reports whether the old one has another at its path, or none.
func (d *dirIndex) moved(path string, ino uint64) (bool, error) {
	if err := d.write(path, ino); err != nil {
		return false, err
	}
	var err error
	for err == nil && d.more && Compare(d.at.Path, path) < 0 {
		d.at, d.more, err = d.old.next()
	}
	return !d.more || d.at.Path != path || d.at.Size != int64(ino), err
}

// close replaces the old list.
func (d *dirIndex) close(st *stage) error {
	err := d.w.Close()
	if d.from != nil {
		d.from.Close()
	}
	if e := d.new.Close(); err == nil {
		err = e
	}
	if err == nil {
		err = os.Rename(st.path("dirs.new"), st.path("dirs"))
	}
	return err
}
