package exec

import (
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"img/cache/atomicfile"
	"img/engine"
	"img/exec/inner"
	"img/snapshot"
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

// setup is the first call: what the inner process's own file system consists of.
type setup struct {
	Map    string
	IDs    uint32
	Single bool
	Driver string
	Boot   string
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

// call starts the inner process if need be and calls one of its methods.
func (x *Executor) call(ctx context.Context, method string, args, reply any, files ...*os.File) error {
	out, err := x.callFiles(ctx, method, args, reply, files...)
	closeAll(out)
	return err
}

// callFiles is call for methods that answer with descriptors.
func (x *Executor) callFiles(ctx context.Context, method string, args, reply any, files ...*os.File) ([]*os.File, error) {
	p, err := x.process(ctx)
	if err != nil {
		return nil, err
	}
	out, err := p.conn.Call(ctx, method, args, reply, files...)
	if errors.Is(err, inner.ErrDied) && ctx.Err() == nil {
		return nil, p.died()
	}
	return out, fromWire(err)
}

// process starts the inner process once.
func (x *Executor) process(ctx context.Context) (*process, error) {
	if err := x.start.do(ctx, x.begin); err != nil {
		return nil, err
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.proc, nil
}

var errClosed = errors.New("the executor is closed")

func (x *Executor) begin(ctx context.Context) error {
	p, err := x.startProcess(ctx)
	if err != nil {
		return err
	}
	x.mu.Lock()
	closed := x.closed
	if !closed {
		x.proc = p
	}
	x.mu.Unlock()
	if closed {
		p.close()
		return errClosed
	}
	return nil
}

// Started reports whether the inner process was needed.
func (x *Executor) Started() bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.proc != nil
}

// Close ends the inner process, if there is one, and with it whatever it runs.
func (x *Executor) Close() error {
	x.mu.Lock()
	x.closed = true
	p := x.proc
	x.mu.Unlock()
	var err error
	if p != nil {
		err = p.close()
	}
	for _, remove := range x.temps {
		err = errors.Join(err, remove())
	}
	return err
}

func (x *Executor) startProcess(ctx context.Context) (*process, error) {
	if err := selfContained(); err != nil {
		return nil, err
	}
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

// selfContained finds out whether this program can start where nothing else is: in the inner process's own root.
func selfContained() error {
	f, err := elf.Open("/proc/self/exe")
	if err != nil {
		return fmt.Errorf("read this program: %w", err)
	}
	defer f.Close()
	if slices.ContainsFunc(f.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP }) {
		return errors.New("this img needs a dynamic linker, which builds do not have; link it with -extldflags -static, as make does")
	}
	return nil
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
	s := setup{Map: m.Label(), IDs: m.IDs(), Single: m.Single(), Driver: x.o.Driver, Boot: x.o.Boot, ResolvConf: x.o.ResolvConf}
	var files []*os.File
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	for at, dir := range map[string]string{"state/snapshot": "snapshot", "state/mounts": "exec/mounts"} {
		d := sharedDir{At: at, Path: filepath.Join(x.o.Real, dir)}
		if err := makeMapDir(filepath.Join(x.o.State, dir), m); err != nil {
			return err
		}
		f, err := x.share(&d, unix.O_DIRECTORY)
		if err != nil {
			return err
		}
		s.Dirs, files = append(s.Dirs, d), append(files, f)
	}
	hosts, opened, err := x.shareHost()
	if err != nil {
		return err
	}
	s.Dirs, files = append(s.Dirs, hosts...), append(files, opened...)
	for name, c := range x.o.Contexts {
		d := sharedDir{At: contextDir(name), Path: c.Path, ReadOnly: true}
		f, err := x.shareContext(ctx, c, &d, m)
		if err != nil {
			return fmt.Errorf("build context %s: %w", name, err)
		}
		s.Dirs, files = append(s.Dirs, d), append(files, f)
	}
	var reply setupReply
	if _, err := p.conn.Call(ctx, "setup", s, &reply, files...); err != nil {
		return fmt.Errorf("set up the build's namespaces: %w", fromWire(err))
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

// share opens a directory for the inner process; with kind 0 it may also be a file.
//
// The caller's own root cannot let the mapped ids in by path: the directory may lie below others that are closed to them. It hands over
// a detached mount instead.
func (x *Executor) share(d *sharedDir, kind int) (*os.File, error) {
	if os.Geteuid() == 0 {
		if f, err := cloneMount(d.Path, kind); f != nil || err != nil {
			d.Mount = true
			return f, err
		}
	}
	return os.OpenFile(d.Path, unix.O_PATH|kind|unix.O_CLOEXEC, 0)
}

// shareContext opens a context. Root's is idmapped, so that container ids can read what the caller can (Linux 5.12); where the file system
// cannot do that, it is copied.
func (x *Executor) shareContext(ctx context.Context, c *Context, d *sharedDir, m userns.Mapping) (*os.File, error) {
	f, err := x.share(d, unix.O_DIRECTORY)
	if err != nil || !d.Mount {
		return f, err
	}
	ok, err := idmap(f, m)
	if err == nil && ok {
		return f, nil
	}
	f.Close()
	if err != nil {
		return nil, err
	}
	x.o.Note(c.Path + ": its file system has no id-mapped mounts; the context is copied for the build, which takes time and room")
	if d.Path, err = x.copyContext(ctx, c, m); err != nil {
		return nil, err
	}
	if f, err = x.share(d, unix.O_DIRECTORY); err != nil || !d.Mount {
		return f, err
	}
	// The inner process makes read-only what it mounts itself; this comes mounted.
	attr := unix.MountAttr{Attr_set: readOnly}
	if err := unix.MountSetattr(int(f.Fd()), "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &attr); err != nil {
		f.Close()
		return nil, fmt.Errorf("make %s read-only: %w", d.Path, err)
	}
	return f, nil
}

// idmap shows a context's files to the build's ids: those of the directory's owner as container root's (BuildKit shows all files so), the
// others as what they are in the container's numbers. false means that the file system has no idmapped mounts.
func idmap(f *os.File, m userns.Mapping) (bool, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return false, err
	}
	ns, err := userns.IDMap(userns.OwnerFirst(st.Uid, m.UIDs[0]), userns.OwnerFirst(st.Gid, m.GIDs[0]))
	if err != nil {
		return false, err
	}
	defer ns.Close()
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP | readOnly, Userns_fd: uint64(ns.Fd())}
	return unix.MountSetattr(int(f.Fd()), "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &attr) == nil, nil
}

// readOnly is what contexts are mounted with.
const readOnly = unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOSUID

// cloneMount opens a directory, or with kind 0 anything, as a detached mount of its own; nil where that is forbidden (root in a container may lack the right).
func cloneMount(path string, kind int) (*os.File, error) {
	// Root follows no link: whoever owns a directory on the way could have put it there.
	at, err := unix.Openat2(unix.AT_FDCWD, path, &unix.OpenHow{
		Flags: uint64(unix.O_PATH | kind | unix.O_CLOEXEC), Resolve: unix.RESOLVE_NO_SYMLINKS,
	})
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(at)
	fd, err := unix.OpenTree(at, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE|unix.AT_EMPTY_PATH)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EPERM) {
		return nil, nil
	}
	if err != nil {
		return nil, &os.PathError{Op: "open_tree", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// copyContext copies a context (less what is ignored) for the build's ids. Both processes compute the same digests from it.
func (x *Executor) copyContext(ctx context.Context, c *Context, m userns.Mapping) (string, error) {
	dir, remove, err := TempDir(x.o.State, "context-")
	if err != nil {
		return "", err
	}
	x.temps = append(x.temps, remove)
	t, err := newTarget(dir, ^uint32(0))
	if err != nil {
		return "", err
	}
	defer t.close()
	t.ctx = ctx
	t.chown, t.uid, t.gid = true, m.HostUID(), m.HostGID()
	err = c.walk(".", func(e snapshot.Entry, con content) error {
		if e.Path == "." {
			return nil
		}
		_, err := t.put(e.Path, e, con)
		return err
	})
	if err := errors.Join(err, t.setTimes()); err != nil {
		return "", err
	}
	return filepath.Join(x.o.Real, "tmp", filepath.Base(dir)), errors.Join(os.Chown(dir, int(t.uid), int(t.gid)), os.Chmod(dir, 0o755))
}

// makeMapDir makes the part of a state directory that belongs to a mapping. The directories above it belong to the state's owner. It may
// find what another process has made and not yet given away, so it looks at the owner either way.
func makeMapDir(dir string, m userns.Mapping) error {
	if err := atomicfile.MkdirAll(dir); err != nil {
		return err
	}
	if err := searchable(dir); err != nil {
		return err
	}
	sub := filepath.Join(dir, m.Label())
	if err := os.Mkdir(sub, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	var st unix.Stat_t
	if err := unix.Lstat(sub, &st); err != nil {
		return &os.PathError{Op: "lstat", Path: sub, Err: err}
	}
	if st.Uid == m.HostUID() && st.Gid == m.HostGID() && st.Mode == unix.S_IFDIR|0o755 {
		return nil
	}
	// Owner before mode: a setgid or ACL-bearing parent must not leak in.
	if err := os.Lchown(sub, int(m.HostUID()), int(m.HostGID())); err != nil {
		return err
	}
	return os.Chmod(sub, 0o755)
}

// searchable lets the build's ids pass through a directory, which a umask may have closed to all but its owner. The state directory above
// it keeps other users out.
func searchable(dir string) error {
	st, err := os.Stat(dir)
	if err != nil || st.Mode()&0o011 == 0o011 {
		return err
	}
	return os.Chmod(dir, st.Mode()|0o711)
}

// farewell is how long the inner process may take to tidy up.
const farewell = 5 * time.Second

// close ends the connection, upon which the process ends by itself, or is ended.
func (p *process) close() error {
	var err error
	p.once.Do(func() {
		err = p.conn.Close()
		late := time.AfterFunc(farewell, func() { p.proc.Kill() })
		p.proc.Wait()
		late.Stop()
	})
	return err
}

// goPanic is the exit code of a Go program that a panic ended.
const goPanic = 2

// died says why the inner process is gone.
func (p *process) died() error {
	var exit *userns.ExitError
	if !errors.As(p.proc.Wait(), &exit) {
		return inner.ErrDied
	}
	switch exit.ExitCode() {
	case goPanic:
		return &engine.PanicError{Value: "the inner process crashed; what it said stands above"}
	case 128 + int(unix.SIGKILL):
		return fmt.Errorf("%w: it was killed, as the kernel does when memory runs out", inner.ErrDied)
	}
	return fmt.Errorf("%w: %s", inner.ErrDied, exit.State)
}
