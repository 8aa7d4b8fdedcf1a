package exec

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"img/cache/atomicfile"
	"img/exec/inner"
	"img/userns"
)

// InnerName is the name that the inner process is started under: cmd/img calls Serve when it finds it.
const InnerName = "img-inner"

// A RemappedError says that the inner process got another id mapping than the snapshots were opened for: the caller opens them anew with
// this mapping and solves again.
type RemappedError struct{ Mapping userns.Mapping }

func (e *RemappedError) Error() string {
	return "the id helpers failed; the build goes on with one id: " + e.Mapping.Why
}

// process is the inner process, from outside.
type process struct {
	conn *inner.Conn
	proc *userns.Process
	once sync.Once
}

// setup is the first call: what the inner process's own file system consists of. Files, in order: the snapshot directory, the
// cache mount directory, the contexts.
type setup struct {
	Map    string
	IDs    uint32
	Single bool
	Driver string
	// Dirs describe the files that come with the call.
	Dirs       []sharedDir
	ResolvConf []byte
}

// A sharedDir is a directory that the inner process shows at At. Mount says that the file is a mount of its own, ready to be
// attached; otherwise the inner process opens Path, which must be the very directory of the file.
type sharedDir struct {
	At       string
	Path     string
	Mount    bool
	ReadOnly bool
}

type setupReply struct {
	Driver string
	Notes  []string
}

// process starts the inner process once.
func (x *Executor) process(ctx context.Context) (*process, error) {
	x.start.Do(func() {
		x.proc, x.err = x.startProcess(ctx)
	})
	return x.proc, x.err
}

func (x *Executor) startProcess(ctx context.Context) (*process, error) {
	conn, far, err := inner.Pair()
	if err != nil {
		return nil, err
	}
	defer far.Close()
	proc, err := userns.Start(context.WithoutCancel(ctx), userns.Config{
		Mapping: x.o.Mapping,
		Args:    []string{InnerName},
		Env:     []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
		Files:   []*os.File{far},
		Stderr:  x.o.Stderr,
	})
	if err != nil {
		conn.Close()
		return nil, err
	}
	p := &process{conn: conn, proc: proc}
	if err := x.setUp(ctx, p); err != nil {
		p.close()
		return nil, err
	}
	return p, nil
}

// setUp hands the directories over and makes the inner process build its file system of them.
func (x *Executor) setUp(ctx context.Context, p *process) error {
	m := p.proc.Mapping
	if m.Label() != x.o.Mapping.Label() {
		return &RemappedError{Mapping: m}
	}
	if m.Why != "" {
		x.o.Note(weaker(m))
	}
	s := setup{Map: m.Label(), IDs: m.IDs(), Single: m.Single(), Driver: x.o.Driver, ResolvConf: x.o.ResolvConf}
	var files []*os.File
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	add := func(d sharedDir, owner *userns.Mapping) error {
		f, err := x.share(p, &d, owner)
		if err != nil {
			return err
		}
		s.Dirs, files = append(s.Dirs, d), append(files, f)
		return nil
	}
	if err := add(sharedDir{At: "state/snapshot", Path: filepath.Join(x.o.State, "snapshot")}, &m); err != nil {
		return err
	}
	if err := add(sharedDir{At: "state/mounts", Path: filepath.Join(x.o.State, "exec", "mounts")}, &m); err != nil {
		return err
	}
	for name, c := range x.o.Contexts {
		if err := add(sharedDir{At: contextDir(name), Path: c.Path, ReadOnly: true}, nil); err != nil {
			return fmt.Errorf("build context %s: %w", name, err)
		}
	}
	var reply setupReply
	if _, err := p.conn.Call(ctx, "setup", s, &reply, files...); err != nil {
		return fmt.Errorf("set up the build's namespaces: %w", err)
	}
	for _, n := range reply.Notes {
		x.o.Note(n)
	}
	return nil
}

// weaker says in one line what a mapping lacks, and what it costs.
func weaker(m userns.Mapping) string {
	if m.Single() {
		return m.Why + ": the build has one id; RUN sees every file as root's, the layers keep the owners that steps ask for (img doctor says more)"
	}
	return m.Why
}

// contextDir is where the inner process shows a context. Names are encoded, since people choose them.
func contextDir(name string) string { return "ctx/" + hexName(name) }

// share opens one directory for the inner process. A directory of the state (owner set) has a part of its own for each mapping, which
// belongs to the mapping's root.
//
// The caller's own root cannot let the mapped ids in by path: the state lies below directories that are closed to them. It hands over
// a detached mount instead, idmapped for contexts, so that container ids can read what the caller can (Linux 5.12, and the file
// system must support it; if not, contexts are shown as they are and files that others may not read fail by name).
func (x *Executor) share(p *process, d *sharedDir, owner *userns.Mapping) (*os.File, error) {
	if owner != nil {
		if err := makeMapDir(d.Path, *owner); err != nil {
			return nil, err
		}
	}
	if os.Geteuid() != 0 {
		return os.OpenFile(d.Path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	}
	d.Mount = true
	fd, err := unix.OpenTree(unix.AT_FDCWD, d.Path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EPERM) {
		// Root in a container may not clone mounts; then the path is all there is.
		d.Mount = false
		return os.OpenFile(d.Path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	}
	if err != nil {
		return nil, &os.PathError{Op: "open_tree", Path: d.Path, Err: err}
	}
	f := os.NewFile(uintptr(fd), d.Path)
	if owner == nil {
		if err := x.idmap(p, f, d.Path); err != nil {
			f.Close()
			return nil, err
		}
	}
	return f, nil
}

// idmap shifts a detached mount's ids into the build's range.
func (x *Executor) idmap(p *process, f *os.File, path string) error {
	ns, err := p.proc.UsernsFile()
	if err != nil {
		return err
	}
	defer ns.Close()
	attr := unix.MountAttr{
		Attr_set:  unix.MOUNT_ATTR_IDMAP | unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOSUID,
		Userns_fd: uint64(ns.Fd()),
	}
	err = unix.MountSetattr(int(f.Fd()), "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &attr)
	if err == nil {
		return nil
	}
	x.o.Note(fmt.Sprintf("%s: its file system has no id-mapped mounts (%v): files that others may not read cannot be used as root", path, err))
	return nil
}

// makeMapDir makes the part of a state directory that belongs to a mapping. The directories above it belong to the state's owner.
func makeMapDir(dir string, m userns.Mapping) error {
	if err := atomicfile.MkdirAll(dir); err != nil {
		return err
	}
	sub := filepath.Join(dir, m.Label())
	err := os.Mkdir(sub, 0o755)
	if errors.Is(err, os.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	// A setgid or ACL-bearing parent must not leak in.
	if err := os.Chown(sub, int(m.HostUID()), int(m.HostGID())); err != nil {
		return err
	}
	return os.Chmod(sub, 0o755)
}

func (p *process) close() error {
	var err error
	p.once.Do(func() {
		err = p.conn.Close()
		p.proc.Kill()
		p.proc.Wait()
	})
	return err
}
