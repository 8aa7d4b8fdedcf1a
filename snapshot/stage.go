package snapshot

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// sweepTime bounds what Open spends on the leftovers of dead processes; what remains is the next one's.
const sweepTime = 100 * time.Millisecond

// tick is more than the step of a file system's clock on any kernel.
const tick = int64(10 * time.Millisecond)

// A stage is a directory in which something is made, alive as long as its flock is held.
type stage struct {
	dir  string
	lock *os.File
}

func (st *stage) path(name string) string { return filepath.Join(st.dir, name) }

// newStage makes a stage with directories in it.
func (s *Store) newStage(dirs ...string) (*stage, error) {
	for {
		st := &stage{dir: filepath.Join(s.own(), "stage-"+rand.Text())}
		err := os.Mkdir(st.dir, 0o755)
		if err != nil {
			return nil, err
		}
		alive, err := st.hold()
		if err == nil && !alive {
			continue // swept between mkdir and flock
		}
		if err == nil {
			err = st.mkdirs(dirs)
		}
		if err != nil {
			st.drop()
			return nil, err
		}
		return st, nil
	}
}

// hold takes the flock; false if a sweep was faster.
func (st *stage) hold() (bool, error) {
	f, err := os.Open(st.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if err == unix.EWOULDBLOCK {
			return false, nil
		}
		return false, fmt.Errorf("lock %s: %w", filepath.Base(st.dir), err)
	}
	mine, err1 := f.Stat()
	named, err2 := os.Stat(st.dir)
	if err1 != nil || err2 != nil || !os.SameFile(mine, named) {
		f.Close()
		return false, nil
	}
	st.lock = f
	return true, plainDir(st.dir)
}

func (st *stage) mkdirs(names []string) error {
	for _, name := range names {
		if err := os.Mkdir(st.path(name), 0o755); err != nil {
			return err
		}
		if err := plainDir(st.path(name)); err != nil {
			return err
		}
	}
	return nil
}

// plainDir frees a new directory from what it inherited: umask, set-group-id, group, and default ACLs.
func plainDir(dir string) error {
	for _, x := range []string{aclDefault, aclAccess} {
		if err := unix.Lremovexattr(dir, x); err != nil && err != unix.ENODATA && err != unix.EOPNOTSUPP {
			return &fs.PathError{Op: "removexattr", Path: dir, Err: err}
		}
	}
	if err := os.Lchown(dir, os.Getuid(), os.Getgid()); err != nil {
		return err
	}
	if err := unix.Chmod(dir, 0o755); err != nil {
		return &fs.PathError{Op: "chmod", Path: dir, Err: err}
	}
	return nil
}

// drop deletes the stage.
func (st *stage) drop() error {
	err := removeTree(st.dir, time.Time{})
	if st.lock != nil {
		st.lock.Close()
	}
	return err
}

// clock reads the file system's clock, in nanoseconds.
func (st *stage) clock() (int64, error) {
	f, err := os.OpenFile(st.path("clock"), os.O_CREATE|os.O_WRONLY|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return 0, fmt.Errorf("read clock: %w", err)
	}
	defer f.Close()
	if err := unix.Futimes(int(f.Fd()), nil); err != nil {
		return 0, fmt.Errorf("read clock: %w", err)
	}
	var fi unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &fi); err != nil {
		return 0, fmt.Errorf("read clock: %w", err)
	}
	return fi.Mtim.Nano(), nil
}

// nextTick waits until the clock is past now, so that what changes from here on has a later time.
func (st *stage) nextTick(now int64) error {
	for {
		t, err := st.clock()
		if err != nil || t > now {
			return err
		}
		time.Sleep(time.Millisecond)
	}
}

// writeTree writes the tree file.
func (st *stage) writeTree(entries []Entry) error {
	w, err := st.newTree("", "tree")
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := w.write(e); err != nil {
			w.file.Close()
			return err
		}
	}
	_, err = w.close()
	return err
}

// A namedTree writes a tree file and computes the name it makes.
type namedTree struct {
	file *os.File
	tree *TreeWriter
	sum  hash.Hash
	line []byte
}

// newTree begins a tree file whose snapshot has a parent.
func (st *stage) newTree(parent Name, file string) (*namedTree, error) {
	f, err := createFile(st.path(file))
	if err != nil {
		return nil, err
	}
	w := &namedTree{file: f, tree: NewTreeWriter(f), sum: sha256.New()}
	fmt.Fprintf(w.sum, "img snapshot 1\nparent %s\n", parent)
	return w, nil
}

func (w *namedTree) write(e Entry) error {
	w.line = appendNameLine(w.line[:0], &e)
	w.sum.Write(w.line)
	return w.tree.WriteEntry(e)
}

func (w *namedTree) close() (Name, error) {
	err := w.tree.Close()
	if e := w.file.Close(); err == nil {
		err = e
	}
	return Name("sha256:" + hex.EncodeToString(w.sum.Sum(nil))), err
}

// createFile makes a file that everyone may read, whatever the umask.
func createFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC|unix.O_NOFOLLOW, 0o644)
	if err != nil {
		return nil, err
	}
	if err := f.Chmod(0o644); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// writeFile replaces a small file by rename.
func writeFile(dir, name, content string) error {
	tmp := filepath.Join(dir, "."+name+"-"+rand.Text())
	f, err := createFile(tmp)
	if err != nil {
		return err
	}
	_, err = f.WriteString(content)
	if e := f.Close(); err == nil {
		err = e
	}
	if err == nil {
		err = os.Rename(tmp, filepath.Join(dir, name))
	}
	if err != nil {
		os.Remove(tmp)
	}
	return err
}

// publish makes a stage that has tree and fs/ the snapshot n, or drops it if there is one.
func (s *Store) publish(st *stage, n, parent Name) error {
	h, err := n.hex()
	if err != nil {
		return err
	}
	for name, content := range map[string]string{"parent": string(parent) + "\n", "used": "", bootFile: s.o.Boot + "\n"} {
		if err := writeFile(st.dir, name, content); err != nil {
			return err
		}
	}
	os.Remove(st.path("clock"))
	to := filepath.Join(s.own(), h)
	for {
		err := os.Rename(st.dir, to)
		if err == nil {
			return st.lock.Close()
		}
		if !errors.Is(err, fs.ErrExist) && !errors.Is(err, unix.ENOTEMPTY) {
			return err
		}
		if s.treeIsWhole(filepath.Join(to, "tree")) == nil && s.filesAreWhole(to) == nil {
			return st.drop()
		}
		// What is there is damaged, so it counts as absent.
		if err := s.trash(to); err != nil {
			return err
		}
	}
}

// trash renames a directory away and deletes it.
func (s *Store) trash(dir string) error {
	away := filepath.Join(s.own(), "trash-"+rand.Text())
	if err := os.Rename(dir, away); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	return removeTree(away, time.Time{})
}

// Sweep removes all that dead processes left. Open does so, too, but only for a moment.
func (s *Store) Sweep() { s.sweep(time.Hour) }

// sweep removes what dead processes left: stages whose flock is free, and trash.
func (s *Store) sweep(d time.Duration) {
	until := time.Now().Add(d)
	list, _ := os.ReadDir(s.own())
	for _, e := range list {
		dir := filepath.Join(s.own(), e.Name())
		if strings.HasPrefix(e.Name(), "stage-") {
			dir = takeDead(dir)
		} else if !strings.HasPrefix(e.Name(), "trash-") {
			continue
		}
		if dir != "" {
			removeTree(dir, until) // an error leaves it to the next sweep
		}
		if time.Now().After(until) {
			return
		}
	}
}

// takeDead renames a stage away if nobody holds its flock, and returns where it is; "" if it lives. A stage that is just
// being made notices (see hold).
func takeDead(dir string) string {
	f, err := os.Open(dir)
	if err != nil {
		return ""
	}
	defer f.Close()
	if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil {
		return ""
	}
	away := filepath.Join(filepath.Dir(dir), "trash-"+rand.Text())
	if os.Rename(dir, away) != nil {
		return ""
	}
	return away
}

// errTime says that the time for removing was over.
var errTime = errors.New("out of time")

// removeTree deletes a directory and all below it. Directories without permissions (overlay's work directories, a step's
// own) are made accessible first. A zero until means no limit; what was done until then need not be done again.
func removeTree(dir string, until time.Time) error {
	parent, err := os.Open(filepath.Dir(dir))
	if err != nil {
		return err
	}
	defer parent.Close()
	r := remover{until: until}
	if err := r.remove(int(parent.Fd()), filepath.Base(dir), 0); err != nil {
		return fmt.Errorf("remove %s: %w", filepath.Base(dir), err)
	}
	return nil
}

// RemoveAt deletes what is called name in an open directory and all below it, however deep. It follows no link; that there is nothing is
// no error.
func RemoveAt(dir int, name string) error { return new(remover).remove(dir, name, 0) }

// maxNested bounds how many directories a remover has open. Those below are moved up beside the topmost's own entries.
const maxNested = 64

// A remover deletes a tree of any depth.
type remover struct {
	until time.Time
	// top is the topmost directory.
	top int
}

// remove deletes a name in an open directory; depth is how many directories of the tree are open.
func (r *remover) remove(at int, name string, depth int) error {
	if !r.until.IsZero() && time.Now().After(r.until) {
		return errTime
	}
	err := unix.Unlinkat(at, name, 0)
	if err == nil || err == unix.ENOENT {
		return nil
	}
	if err != unix.EISDIR && err != unix.EPERM && err != unix.EACCES {
		return err
	}
	if depth == maxNested {
		return r.moveUp(at, name)
	}
	if err := r.contents(at, name, depth); err != nil {
		return err
	}
	if err := unix.Unlinkat(at, name, unix.AT_REMOVEDIR); err != nil && err != unix.ENOENT {
		return err
	}
	return nil
}

// moveUp puts a directory into the topmost one, which is read again until it is empty.
func (r *remover) moveUp(at int, name string) error {
	to := "deep-" + rand.Text()
	err := unix.Renameat(at, name, r.top, to)
	if err == unix.EACCES && chmodAt(at, name, 0o700) == nil { // its ".." is written
		err = unix.Renameat(at, name, r.top, to)
	}
	return err
}

// contents deletes what is in a directory.
func (r *remover) contents(at int, name string, depth int) error {
	d, err := openToEmpty(at, name)
	if err == unix.ENOENT {
		return nil
	}
	if err != nil {
		return err
	}
	defer d.Close()
	if depth > 0 {
		_, err := r.pass(d, depth)
		return err
	}
	r.top = int(d.Fd())
	for n := 1; n > 0; {
		if _, err := d.Seek(0, io.SeekStart); err != nil {
			return err
		}
		if n, err = r.pass(d, depth); err != nil {
			return err
		}
	}
	return nil
}

// pass deletes what a directory has, and returns how much that was.
func (r *remover) pass(d *os.File, depth int) (int, error) {
	names, err := d.Readdirnames(-1)
	if err != nil {
		return 0, err
	}
	at := int(d.Fd())
	retried := false
	for i := 0; i < len(names); i++ {
		err := r.remove(at, names[i], depth+1)
		if err == unix.EACCES && !retried {
			retried = true
			if unix.Fchmod(at, 0o700) == nil {
				i--
				continue
			}
		}
		if err != nil {
			return 0, err
		}
	}
	return len(names), nil
}

// openToEmpty opens a directory, if need be after giving its owner all rights.
func openToEmpty(at int, name string) (*os.File, error) {
	const flags = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	fd, err := unix.Openat(at, name, flags, 0)
	if err == unix.EACCES {
		if err := chmodAt(at, name, 0o700); err != nil {
			return nil, err
		}
		fd, err = unix.Openat(at, name, flags, 0)
	}
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

// copyTree filters a tree file into another.
func copyTree(from string, w *namedTree, keep func(path string) bool) error {
	f, err := os.Open(from)
	if err != nil {
		return err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	t, err := OpenTree(f, fi.Size())
	if err != nil {
		return err
	}
	return t.Each(func(e Entry) error {
		if !keep(e.Path) {
			return nil
		}
		return w.write(e)
	})
}
