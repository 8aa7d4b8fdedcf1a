package exec

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/moby/sys/user"
	"golang.org/x/sys/unix"

	"img/cache"
	"img/dag"
	"img/exec/sandbox"
	"img/snapshot"
	"img/snapshot/attr"
	"img/userns"
)

// runKey: proxy variables, limits and the addresses of added hosts do not count; of cache and secret mounts only the options and
// whether a secret was given.
func (x *Executor) runKey(ctx context.Context, h *cache.Hash, op *dag.Run, in []cache.Output) error {
	h.Line("base", string(name(op.Base, in)))
	h.Line("run", op.Args)
	h.Line("env", op.Env)
	h.Line("dir", op.Dir)
	h.Line("user", op.User)
	h.Line("hostname", op.Hostname)
	h.Line("network", op.Network)
	h.Line("security", op.Security)
	h.Line("script", op.ScriptPath, op.Script)
	for _, host := range op.Hosts {
		h.Line("host", host.Name)
	}
	for i := range op.Mounts {
		if err := x.mountKey(ctx, h, op, i, in); err != nil {
			return err
		}
	}
	return x.deviceKey(h, op)
}

// runArgs is a step on the wire. The first file that comes with it takes what the step prints; if there are others, they are sockets of
// agents, and what is written to once these listen.
type runArgs struct {
	Op      *dag.Run
	Base    snapshot.Name
	Mounts  []mountArgs
	Devices deviceArgs
}

func (x *Executor) run(ctx context.Context, op *dag.Run, platform string, in []cache.Output, log io.Writer) (cache.Output, []cache.Warning, error) {
	if !slices.Contains([]string{"", "none", "host"}, op.Network) {
		return "", nil, fmt.Errorf("RUN with the network %q: this version of img has default, host and none", op.Network)
	}
	base := name(op.Base, in)
	if err := x.materialize(ctx, base); err != nil {
		return "", nil, err
	}
	devices, err := x.deviceArgs(op)
	if err != nil {
		return "", nil, err
	}
	a := runArgs{Op: op, Base: base, Devices: devices}
	var lent agents
	for i := range op.Mounts {
		m, err := x.mountArgs(ctx, op, i, in, &lent)
		if err != nil {
			closeAll(lent.sockets)
			return "", nil, err
		}
		a.Mounts = append(a.Mounts, m)
	}
	r, wr, err := outputPipe()
	if err != nil {
		closeAll(lent.sockets)
		return "", nil, err
	}
	printed, end := make(chan error, 1), &ending{w: log}
	go func() {
		_, err := io.Copy(end, r)
		printed <- err
	}()
	var out snapshot.Name
	err = lent.during(ctx, func(files []*os.File) error {
		return x.call(ctx, "run", a, &out, append([]*os.File{wr}, files...)...)
	})
	// The inner process's end is closed with the step, so that the copy ends when the last byte has been read.
	wr.Close()
	<-printed
	r.Close()
	if err == nil {
		err = x.unchanged(ctx, op)
	}
	return cache.Output(out), a.notGiven(), end.foreign(err, platform)
}

// outputPipe is a pipe whose writing end blocks, as programs expect of their standard output. Those of os.Pipe do not: a step that prints
// faster than we read would get EAGAIN.
func outputPipe() (r, w *os.File, err error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, os.NewSyscallError("pipe2", err)
	}
	if err := unix.SetNonblock(fds[0], true); err != nil { // so that reading keeps no thread
		return nil, nil, os.NewSyscallError("fcntl", errors.Join(err, unix.Close(fds[0]), unix.Close(fds[1])))
	}
	return os.NewFile(uintptr(fds[0]), "output"), os.NewFile(uintptr(fds[1]), "output"), nil
}

// run is the step itself, in the inner process.
func (w *world) run(ctx context.Context, a runArgs, files []*os.File) (snapshot.Name, error) {
	if len(files) == 0 {
		return "", errors.New("run came without descriptors")
	}
	active, err := w.snaps.Prepare(ctx, a.Base)
	if err != nil {
		return "", err
	}
	defer active.Discard()
	s, err := w.newStep(ctx, a, active, files[1:])
	if err != nil {
		return "", err
	}
	defer s.release()
	if err := listening(files[1:]); err != nil {
		return "", err
	}
	spec, err := s.spec(a, files[0])
	if err != nil {
		return "", err
	}
	owners, err := sandbox.Run(ctx, spec)
	if err != nil {
		return "", err
	}
	if err := s.removePoints(); err != nil {
		return "", err
	}
	o, err := s.commitOptions(owners, a.Base)
	if err != nil {
		return "", err
	}
	return active.Commit(ctx, o)
}

// A step is a RUN in the inner process: its root, its private directory, and what has to be undone after it.
type step struct {
	w    *world
	id   string
	root *target
	// dir holds what is the step's alone (secrets, scripts, resolv.conf), on a tmpfs.
	dir    string
	env    []string
	mounts []sandbox.Mount
	points []mountPoint
	// parents are the directories that were made for the step, by number.
	parents map[string]uint64
	over    []cover
	user    *user.ExecUser
	sockets []*os.File
	// groups are those that devices bring.
	groups []uint32
	undo   []func() error
}

func (w *world) newStep(ctx context.Context, a runArgs, active *snapshot.Active, sockets []*os.File) (*step, error) {
	s := &step{w: w, id: fmt.Sprintf("step-%d", w.steps.Add(1)), sockets: sockets}
	s.dir = path.Join("/run", s.id)
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return nil, err
	}
	s.later(func() error { return os.RemoveAll(s.dir) })
	root, err := newTarget(active.Root(), w.setup.IDs)
	if err != nil {
		s.release()
		return nil, err
	}
	s.root = root
	s.later(func() error { root.close(); return nil })
	if err := s.prepare(ctx, a); err != nil {
		s.release()
		return nil, err
	}
	return s, nil
}

func (s *step) later(f func() error) { s.undo = append(s.undo, f) }

// release undoes in reverse order; a second call does nothing.
func (s *step) release() {
	for _, f := range slices.Backward(s.undo) {
		f()
	}
	s.undo = nil
}

// prepare makes everything that the step's process expects to be there.
func (s *step) prepare(ctx context.Context, a runArgs) error {
	// BuildKit's executor makes a missing working directory, and it stays in the layer.
	if err := s.workDir(a.Op.Dir); err != nil {
		return fmt.Errorf("make the working directory: %w", err)
	}
	for _, d := range []string{"/proc", "/sys", "/dev"} {
		if err := s.point(d, true, ""); err != nil {
			return err
		}
	}
	if err := s.hostFiles(a); err != nil {
		return err
	}
	if err := s.script(a.Op); err != nil {
		return err
	}
	if err := s.devices(a.Devices); err != nil {
		return err
	}
	return s.mountAll(ctx, a.Mounts)
}

// workDir makes the working directory, root's, and notes what was made.
func (s *step) workDir(at string) error {
	dir, err := s.root.resolve(at)
	if err != nil {
		return err
	}
	missing, err := s.missing(dir)
	if err != nil {
		return err
	}
	if err := s.root.mkdirAll(dir); err != nil {
		return err
	}
	s.parents = map[string]uint64{}
	for _, p := range missing {
		st, err := statIn(s.root.root, p)
		if err != nil {
			return &os.PathError{Op: "lstat", Path: "/" + p, Err: err}
		}
		s.parents[p] = st.Ino
	}
	return nil
}

// hostFiles shows private copies of resolv.conf and hosts, read-only, that never get into the layer.
func (s *step) hostFiles(a runArgs) error {
	hostname := a.Op.Hostname
	if hostname == "" {
		hostname = "buildkitsandbox"
	}
	hosts := "127.0.0.1\tlocalhost " + hostname + "\n::1\tlocalhost ip6-localhost ip6-loopback\n"
	for _, h := range a.Op.Hosts {
		hosts += h.IP + "\t" + h.Name + "\n"
	}
	if err := s.show("/etc/hosts", []byte(hosts), 0o644); err != nil {
		return err
	}
	return s.show("/etc/resolv.conf", s.w.setup.ResolvConf, 0o644)
}

// show binds a file with the given content over a path, read-only.
func (s *step) show(target string, data []byte, mode os.FileMode) error {
	f := path.Join(s.dir, fmt.Sprintf("file-%d", len(s.mounts)))
	if err := os.WriteFile(f, data, mode); err != nil {
		return err
	}
	if err := os.Chmod(f, mode); err != nil {
		return err
	}
	if err := s.point(target, false, f); err != nil {
		return err
	}
	s.mounts = append(s.mounts, sandbox.Mount{Type: "bind", Source: f, Target: target, ReadOnly: true})
	return nil
}

// script shows a heredoc's script in a directory of its own, read-only as in BuildKit.
func (s *step) script(op *dag.Run) error {
	if op.ScriptPath == "" {
		return nil
	}
	at, name := path.Split(op.ScriptPath)
	dir := path.Join(s.dir, "script")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(path.Join(dir, name), op.Script, 0o755); err != nil {
		return err
	}
	at = path.Clean(at)
	if err := s.point(at, true, dir); err != nil {
		return err
	}
	s.mounts = append(s.mounts, sandbox.Mount{Type: "bind", Source: dir, Target: at, ReadOnly: true})
	return nil
}

// spec puts the process together.
func (s *step) spec(a runArgs, out *os.File) (sandbox.Spec, error) {
	u, err := runUser(s.root.root, a.Op.User)
	if err != nil {
		return sandbox.Spec{}, err
	}
	s.user = u
	state := path.Join(s.dir, "state")
	if err := os.Mkdir(state, 0o700); err != nil {
		return sandbox.Spec{}, err
	}
	spec := sandbox.Spec{
		ID: s.id, StateDir: state, Root: s.root.path,
		Args: a.Op.Args, Env: environment(a.Op.Env, a.Op.ProxyEnv, s.env), Dir: a.Op.Dir,
		UID: uint32(u.Uid), GID: uint32(u.Gid),
		Hostname: a.Op.Hostname, Mounts: s.mounts, Network: "host",
		Insecure: a.Op.Security == "insecure", OneID: s.w.setup.Single,
		Stdout: out, Stderr: out,
	}
	if a.Op.Network == "none" {
		spec.Network = "none"
	}
	for _, g := range u.Sgids {
		spec.Groups = append(spec.Groups, uint32(g))
	}
	spec.Groups = append(spec.Groups, s.groups...)
	return spec, s.checkIDs(&spec, a.Op.User)
}

// checkIDs sees to it that the process's ids exist in the mapping. With one id the sandbox runs everything as root.
func (s *step) checkIDs(spec *sandbox.Spec, name string) error {
	if s.w.setup.Single {
		spec.Groups = nil
		return nil
	}
	for _, id := range append([]uint32{spec.UID, spec.GID}, spec.Groups...) {
		if id >= s.w.setup.IDs {
			return &userns.Error{
				Err:    fmt.Errorf("USER %s: id %d is outside of the build's %d ids", name, id, s.w.setup.IDs),
				Remedy: "give the builder more subordinate ids in /etc/subuid and /etc/subgid",
			}
		}
	}
	return nil
}

// environment joins variables: a later one replaces an earlier one; proxy variables do not replace the step's own.
func environment(env, proxy, secrets []string) []string {
	own := map[string]bool{}
	for _, kv := range env {
		k, _, _ := strings.Cut(kv, "=")
		own[k] = true
	}
	out := slices.Clone(env)
	for _, kv := range proxy {
		if k, _, _ := strings.Cut(kv, "="); !own[k] {
			out = append(out, kv)
		}
	}
	return append(out, secrets...)
}

// commitOptions hands on what the supervisor and the preparation know about owners that the disk does not show.
func (s *step) commitOptions(owners *sandbox.Owners, base snapshot.Name) (snapshot.CommitOptions, error) {
	o := snapshot.CommitOptions{
		Times: snapshot.TimesSet,
		Owner: func(p string, ino uint64) (uid, gid uint32, ok bool) {
			if owners != nil {
				if uid, gid, ok = owners.Owner(p, ino); ok {
					return uid, gid, true
				}
			}
			return s.root.ownerOf(p, ino)
		},
		Device: func(_ string, ino uint64) (snapshot.Type, uint32, uint32, bool) {
			if owners == nil {
				return 0, 0, 0, false
			}
			kind, major, minor, ok := owners.Device(ino)
			return snapshot.Type(kind), major, minor, ok
		},
	}
	if !s.w.setup.Single || s.user.Uid == 0 {
		return o, nil
	}
	// With one id, USER's process runs as root. What it makes is USER's all the same, unless it asked for another owner.
	// What was there and was not root's has its owner noted; without the note it is another file, made in its place.
	view, err := s.w.snaps.View(base)
	if err != nil {
		return o, err
	}
	s.later(view.Close)
	asked := o.Owner
	o.Owner = func(p string, ino uint64) (uint32, uint32, bool) {
		if uid, gid, ok := asked(p, ino); ok {
			return uid, gid, true
		}
		old, was, err := view.Lookup(p)
		if err != nil || was && old.UID == 0 && old.GID == 0 || s.noted(p) {
			return 0, 0, false
		}
		if made, ok := s.parents[p]; ok && made == ino {
			return 0, 0, false
		}
		return uint32(s.user.Uid), uint32(s.user.Gid), true
	}
	return o, nil
}

// noted reports whether a file carries an intended owner of its own.
func (s *step) noted(p string) bool {
	fd, base, err := s.root.dir(p)
	if err != nil {
		return false
	}
	_, err = unix.Lgetxattr(fmt.Sprintf("/proc/self/fd/%d/%s", fd, base), attr.Owner, nil)
	return err == nil
}

// A mountPoint is a file or directory that was made for a mount. It is removed by the descriptor of its directory: the step may have
// replaced any name on the way.
type mountPoint struct {
	parent *os.File
	base   string
	ino    uint64
	isDir  bool
	// times of the parent before, set back after removal.
	atime, mtime unix.Timespec
}

// A cover is a path that a mount covers, links resolved, and what shows there: "" is nothing yet, or nothing with links.
type cover struct{ at, source string }

// covered returns the last of the mounts so far that a path lies in: the files of the root, and of earlier mounts, do not show there.
func (s *step) covered(p string) (c cover, rel string, ok bool) {
	for _, c := range slices.Backward(s.over) {
		if rel, ok := relative(c.at, p); ok {
			return c, rel, true
		}
	}
	return cover{}, "", false
}

// A stepView is what the step will see of links, in the root and in the mounts so far.
type stepView struct {
	emptySource
	s *step
}

func (v stepView) lstat(p string) (e snapshot.Entry, ok bool, err error) {
	dir, rel := v.s.root.root, p
	if c, below, ok := v.s.covered(p); ok {
		if c.source == "" {
			return e, false, nil
		}
		if dir, err = os.OpenFile(c.source, unix.O_PATH|unix.O_CLOEXEC, 0); err != nil {
			return e, false, err
		}
		defer dir.Close()
		rel = below
	}
	st, err := statIn(dir, rel)
	switch {
	case errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR):
		return e, false, nil
	case err != nil:
		return e, false, &os.PathError{Op: "lstat", Path: "/" + p, Err: err}
	case st.Mode&unix.S_IFMT != unix.S_IFLNK:
		return e, true, nil
	}
	e.Type = snapshot.Symlink
	e.Link, err = readlinkIn(dir, rel)
	return e, err == nil, err
}

// resolve returns a path with every link resolved as the step will see it. A link in a mount may well lead out of it.
func (s *step) resolve(at string) (string, error) { return follow(stepView{s: s}, at) }

// point makes what is missing of a mount point and remembers it. In another mount the sandbox makes it. source is what is shown there, as
// a cover has it.
func (s *step) point(at string, isDir bool, source string) error {
	p, err := s.resolve(at)
	if err != nil || p == "." {
		return err
	}
	_, _, covered := s.covered(p)
	s.over = append(s.over, cover{p, source})
	if covered {
		return nil
	}
	missing, err := s.missing(p)
	if err != nil {
		return err
	}
	for i, m := range missing {
		if err := s.makePoint(m, isDir || i < len(missing)-1); err != nil {
			return err
		}
	}
	return nil
}

// missing returns the components of a path that do not exist, outermost first.
func (s *step) missing(p string) ([]string, error) {
	var out []string
	for ; p != "."; p = path.Dir(p) {
		_, err := statIn(s.root.root, p)
		if err == nil {
			break
		}
		if err != unix.ENOENT && err != unix.ENOTDIR {
			return nil, &os.PathError{Op: "lstat", Path: "/" + p, Err: err}
		}
		out = append(out, p)
	}
	slices.Reverse(out)
	return out, nil
}

func (s *step) makePoint(p string, isDir bool) error {
	fd, err := s.root.open(path.Dir(p), unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	m := mountPoint{parent: os.NewFile(uintptr(fd), path.Dir(p)), base: path.Base(p), isDir: isDir}
	s.later(m.parent.Close)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	m.atime, m.mtime = st.Atim, st.Mtim
	if isDir {
		err = unix.Mkdirat(fd, m.base, 0o755)
	} else {
		err = unix.Mknodat(fd, m.base, unix.S_IFREG|0o644, 0)
	}
	if err != nil {
		return &os.PathError{Op: "make the mount point", Path: "/" + p, Err: err}
	}
	if err := unix.Fstatat(fd, m.base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	m.ino = st.Ino
	s.points = append(s.points, m)
	return nil
}

// removePoints removes the mount points again where they are still what was made and empty, innermost first.
func (s *step) removePoints() error {
	for _, m := range slices.Backward(s.points) {
		fd := int(m.parent.Fd())
		var st unix.Stat_t
		if unix.Fstatat(fd, m.base, &st, unix.AT_SYMLINK_NOFOLLOW) != nil || st.Ino != m.ino {
			continue // the step took it away, or put something else there
		}
		flags := 0
		if m.isDir {
			flags = unix.AT_REMOVEDIR
		} else if st.Size > 0 {
			continue
		}
		if unix.Unlinkat(fd, m.base, flags) != nil {
			continue // a directory that the step filled stays
		}
		times := []unix.Timespec{m.atime, m.mtime}
		if err := unix.UtimesNanoAt(fd, ".", times, 0); err != nil {
			return &os.PathError{Op: "set back the times of", Path: "/" + m.parent.Name(), Err: err}
		}
	}
	return nil
}
