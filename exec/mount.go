package exec

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"sort"
	"strings"

	"golang.org/x/sys/unix"

	"img/cache"
	"img/dag"
	"img/exec/sandbox"
	"img/snapshot"
)

// mountPlan is what the first process finds out about a bind mount's source for the key, and needs again.
type mountPlan struct {
	m match
	// sum is the digest that went into the key.
	sum string
	// hidden are paths below the source that an ignore file hides.
	hidden []string
}

type mountID struct {
	op *dag.Run
	i  int
}

func (x *Executor) mountKey(ctx context.Context, h *cache.Hash, op *dag.Run, i int, in []cache.Output) error {
	m := op.Mounts[i]
	h.Line("mount", m.Type, m.Target, m.ReadOnly)
	switch m.Type {
	case dag.MountBind:
		return x.bindKey(ctx, h, op, i, m.Source, in)
	case dag.MountCache:
		// What the cache holds is not in the key, nor is what its source shows then.
		h.Line("cache", m.ID, m.Source, m.Sharing, optional(m.Mode), optional(m.UID), optional(m.GID))
		if m.From.Context != "" || m.From.Input != dag.Scratch {
			return x.bindKey(ctx, h, op, i, "/", in)
		}
	case dag.MountTmpfs:
		h.Line("tmpfs", m.Size)
	case dag.MountSecret, dag.MountSSH:
		given := m.Type == dag.MountSSH && x.o.Agents[m.ID] != nil
		if m.Type == dag.MountSecret && x.o.Secret != nil {
			_, ok, err := x.o.Secret(m.ID)
			if err != nil {
				return err
			}
			given = ok
		}
		h.Line("secret", m.ID, m.Env, m.Required, optional(m.Mode), optional(m.UID), optional(m.GID), given)
	}
	return nil
}

func optional(n *uint32) string {
	if n == nil {
		return "-"
	}
	return fmt.Sprint(*n)
}

// bindKey adds the digest of exactly what is shown of a mount's from, or that a cache begins with: what is at p.
func (x *Executor) bindKey(ctx context.Context, h *cache.Hash, op *dag.Run, i int, p string, in []cache.Output) error {
	src, release, err := x.source(ctx, op.Mounts[i].From, in)
	if err != nil {
		return err
	}
	defer release()
	found, ok, err := lookup(src, path.Clean("./"+p))
	if err != nil {
		return err
	}
	if !ok {
		return &NotFoundError{Path: p, Ignored: src.ignoredBy(path.Clean("./" + p))}
	}
	plan := &mountPlan{m: found}
	if plan.sum, err = bindSum(ctx, src, found); err != nil {
		return err
	}
	h.Line("bind", found.Type == snapshot.Dir, plan.sum)
	if c, ok := src.(*Context); ok && found.Type == snapshot.Dir {
		if plan.hidden, err = c.hiddenBelow(found.Real); err != nil {
			return err
		}
	}
	x.plans.Store(mountID{op, i}, plan)
	return nil
}

// bindSum is the digest of what a bind mount shows: as of a copy, and of the directory itself, whose mode, owner and attributes the step
// sees, too.
func bindSum(ctx context.Context, src source, m match) (string, error) {
	sum := newTreeSum()
	if m.Type == snapshot.Dir {
		e, ok, err := src.lstat(m.Real)
		if err == nil && !ok {
			err = &NotFoundError{Path: m.Real, Ignored: src.ignoredBy(m.Real)}
		}
		if err != nil {
			return "", err
		}
		sum.entry(item{rel: ".", e: e}, "")
	}
	err := sumMatch(ctx, sum, src, m, filter{})
	return sum.sum(), err
}

// unchanged looks, after the step, whether the contexts that it saw by mounts are still what the key was made of.
func (x *Executor) unchanged(ctx context.Context, op *dag.Run) error {
	for i, m := range op.Mounts {
		c := x.o.Contexts[m.From.Context]
		v, ok := x.plans.Load(mountID{op, i})
		if m.From.Context == "" || c == nil || !ok {
			continue
		}
		plan := v.(*mountPlan)
		sum, err := bindSum(ctx, c, plan.m)
		if err != nil {
			return err
		}
		if sum != plan.sum {
			return &changedError{fmt.Sprintf("what is mounted at %s from the build context", m.Target)}
		}
	}
	return nil
}

// hiddenBelow lists what an ignore file hides below a directory, outermost paths only, relative to it.
func (c *Context) hiddenBelow(root string) ([]string, error) {
	if c.ignore == nil && c.own == "" {
		return nil, nil
	}
	var out []string
	var scan func(dir string) error
	scan = func(dir string) error {
		f, err := openIn(c.dir, dir)
		if err != nil {
			return fmt.Errorf("build context: %w", err)
		}
		entries, err := f.ReadDir(-1)
		f.Close()
		if err != nil {
			return fmt.Errorf("build context: %w", err)
		}
		for _, e := range entries {
			p := path.Join(dir, e.Name())
			hidden, err := c.hides(p)
			if err != nil {
				return err
			}
			if hidden {
				rel, _ := relative(root, p)
				out = append(out, rel)
			} else if e.IsDir() {
				if err := scan(p); err != nil {
					return err
				}
			}
		}
		return nil
	}
	err := scan(root)
	sort.Strings(out)
	return out, err
}

// mountArgs is a mount on the wire.
type mountArgs struct {
	M      dag.Mount
	From   fromRef
	Real   string
	IsDir  bool
	Hidden []string
	// Secret is the content; Given says that there is one, or an agent.
	Secret []byte
	Given  bool
	// Cache is where a cache mount's directory is.
	Cache string
	// Socket is the number of the descriptor that becomes an agent's socket.
	Socket int
}

// or is a number of a mount's, or what it is when nothing was said.
func or(n *uint32, missing uint32) uint32 {
	if n == nil {
		return missing
	}
	return *n
}

func (x *Executor) mountArgs(ctx context.Context, op *dag.Run, i int, in []cache.Output, lent *agents) (a mountArgs, err error) {
	m := op.Mounts[i]
	a = mountArgs{M: m}
	switch m.Type {
	case dag.MountSSH:
		err = x.agentArgs(m, &a, lent)
		return a, err
	case dag.MountSecret:
		err = x.secretArgs(m, &a)
		return a, err
	case dag.MountCache:
		if a.Cache, err = x.cachePath(op, i); err != nil {
			return a, err
		}
	}
	v, ok := x.plans.Load(mountID{op, i})
	if !ok {
		return a, nil
	}
	plan := v.(*mountPlan)
	a.Real, a.IsDir, a.Hidden = plan.m.Real, plan.m.Type == snapshot.Dir, plan.hidden
	a.From, err = x.fromRef(ctx, m.From, in)
	return a, err
}

// secretArgs reads a secret. One that is missing is skipped unless it is required.
func (x *Executor) secretArgs(m dag.Mount, a *mountArgs) (err error) {
	if x.o.Secret != nil {
		a.Secret, a.Given, err = x.o.Secret(m.ID)
	}
	if err == nil && !a.Given && m.Required {
		err = &MissingError{Err: fmt.Errorf("secret %s: not found", m.ID), Remedy: fmt.Sprintf("give it with --secret id=%s,src=FILE or --secret id=%s,env=VARIABLE", m.ID, m.ID)}
	}
	return err
}

// mountAll makes the step's mounts, sorted by target as BuildKit has them: what is mounted below another mount shows whatever the
// Dockerfile's order is.
func (s *step) mountAll(ctx context.Context, mounts []mountArgs) error {
	mounts = slices.Clone(mounts)
	slices.SortStableFunc(mounts, func(a, b mountArgs) int { return strings.Compare(a.M.Target, b.M.Target) })
	for _, m := range mounts {
		if err := s.mount(ctx, m); err != nil {
			return fmt.Errorf("mount %s at %s: %w", m.M.Type, m.M.Target, err)
		}
	}
	return nil
}

func (s *step) mount(ctx context.Context, m mountArgs) error {
	switch m.M.Type {
	case dag.MountBind:
		return s.bind(ctx, m)
	case dag.MountCache:
		return s.cache(ctx, m)
	case dag.MountTmpfs:
		return s.tmpfs(m)
	case dag.MountSecret:
		return s.secret(m)
	case dag.MountSSH:
		return s.agent(m)
	}
	return fmt.Errorf("unknown type of mount %q", m.M.Type)
}

// tmpfs has the mode of the directory that it covers, as runc does it; over none it is everybody's.
func (s *step) tmpfs(m mountArgs) error {
	t := sandbox.Mount{Type: "tmpfs", Target: m.M.Target, Size: m.M.Size, NoSuid: true, NoDev: true}
	p, err := s.resolve(m.M.Target)
	if err != nil {
		return err
	}
	if _, _, covered := s.covered(p); !covered {
		if st, err := statIn(s.root.root, p); err == nil {
			t.Mode = st.Mode & 0o7777
		}
	}
	s.mounts = append(s.mounts, t)
	return s.point(m.M.Target, true, "")
}

// bind shows a part of a source. What the key did not see is hidden, and writes to a writable bind are thrown away: both by an overlay
// whose upper directory goes with the step, or by a copy where there is no overlay.
func (s *step) bind(ctx context.Context, m mountArgs) error {
	at, err := s.shown(ctx, m)
	if err != nil {
		return err
	}
	if err := s.point(m.M.Target, m.IsDir, at); err != nil {
		return err
	}
	s.mounts = append(s.mounts, sandbox.Mount{Type: "bind", Source: at, Target: m.M.Target, ReadOnly: m.M.ReadOnly, NoDev: true})
	return nil
}

// shown returns where what a bind mount shows is.
func (s *step) shown(ctx context.Context, m mountArgs) (string, error) {
	if !m.IsDir && !m.M.ReadOnly {
		dir, err := s.scratch()
		if err != nil {
			return "", err
		}
		return s.copyFrom(ctx, m, dir)
	}
	dir, err := s.sourceDir(ctx, m.From)
	if err != nil {
		return "", err
	}
	held, _, err := s.hold(dir, m.Real, unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_CLOEXEC | unix.O_NOFOLLOW,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil || m.M.ReadOnly && len(m.Hidden) == 0 {
		return held, err
	}
	return s.throwaway(ctx, m, held)
}

// scratch makes a directory that goes with the step. It is on the disk: nobody knows how much will be written to it.
func (s *step) scratch() (string, error) {
	st, err := s.w.snaps.Stage()
	if err != nil {
		return "", err
	}
	s.later(st.Discard)
	return st.Dir(), nil
}

// sourceDir returns a directory that shows a source.
func (s *step) sourceDir(ctx context.Context, from fromRef) (string, error) {
	if from.Context != nil {
		return "/" + contextDir(from.Context.Name), nil
	}
	if from.Name == "" {
		dir := path.Join(s.dir, "empty")
		return dir, os.MkdirAll(dir, 0o755)
	}
	dir, release, err := s.w.snaps.Mount(ctx, from.Name)
	if err == nil {
		s.later(release)
	}
	return dir, err
}

// hold binds a path inside a directory to a name that nobody else can change, by descriptor: nothing between look-up and mount can be
// swapped. It says whether that is a directory.
func (s *step) hold(dir, p string, how unix.OpenHow) (at string, isDir bool, err error) {
	fd, err := openHow(dir, p, how)
	if err != nil {
		return "", false, err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return "", false, err
	}
	at = path.Join(s.dir, fmt.Sprintf("mount-%d", len(s.undo)))
	if isDir = st.Mode&unix.S_IFMT == unix.S_IFDIR; isDir {
		err = os.Mkdir(at, 0o755)
	} else {
		err = os.WriteFile(at, nil, 0o644)
	}
	if err != nil {
		return "", false, err
	}
	if err := unix.Mount(fmt.Sprintf("/proc/self/fd/%d", fd), at, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return "", false, fmt.Errorf("bind: %w", err)
	}
	s.later(func() error { return unix.Unmount(at, unix.MNT_DETACH) })
	return at, isDir, nil
}

// openHow opens a path inside a directory. A ".." in a link, resolved while anything is renamed, is none that the kernel could check: it
// says to try again.
func openHow(dir, p string, how unix.OpenHow) (fd int, err error) {
	root, err := os.Open(dir)
	if err != nil {
		return -1, err
	}
	defer root.Close()
	for range 1000 {
		if fd, err = unix.Openat2(int(root.Fd()), p, &how); err != unix.EAGAIN && err != unix.EINTR {
			break
		}
	}
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: path.Join("/", p), Err: err}
	}
	return fd, nil
}

// throwaway shows a directory less the hidden paths; what is written there goes with the step.
func (s *step) throwaway(ctx context.Context, m mountArgs, lower string) (string, error) {
	base, err := s.scratch()
	if err != nil {
		return "", err
	}
	over := &overlay{lower: lower, upper: path.Join(base, "upper"), work: path.Join(base, "work"), at: path.Join(base, "merged")}
	for _, d := range []string{over.upper, over.work, over.at} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return "", err
		}
	}
	if err := likeRoot(over.upper, lower); err != nil {
		return "", err
	}
	if err := over.mount(); err != nil {
		return s.copyFrom(ctx, m, over.at)
	}
	s.later(over.unmount)
	if len(m.Hidden) == 0 {
		return over.at, nil
	}
	return over.at, over.hide(m.Hidden)
}

// likeRoot gives a new directory the mode, the owner and the time of another. An owner that the mapping does not have cannot be given; the
// directory then stays root's.
func likeRoot(dir, of string) error {
	var st unix.Stat_t
	if err := unix.Stat(of, &st); err != nil {
		return &os.PathError{Op: "stat", Path: of, Err: err}
	}
	// Owner before mode: chown clears the set-id bits.
	err := os.Chown(dir, int(st.Uid), int(st.Gid))
	if err == nil || errors.Is(err, unix.EINVAL) {
		err = unix.Chmod(dir, st.Mode&0o7777)
	}
	if err == nil {
		err = unix.UtimesNano(dir, []unix.Timespec{st.Atim, st.Mtim})
	}
	return err
}

// An overlay is a directory that can be written to above one that cannot. work holds its work directories.
type overlay struct{ lower, upper, work, at string }

// mount makes the work directory, which is new for every mount: a volatile one cannot be used again. Without volatile (Linux 5.10) the
// end of the mount waits for the disk.
func (o *overlay) mount() error {
	work, err := os.MkdirTemp(o.work, "")
	if err != nil {
		return err
	}
	opts := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s,userxattr", o.lower, o.upper, work)
	if err = unix.Mount("overlay", o.at, "overlay", 0, opts+",volatile"); err == unix.EINVAL {
		err = unix.Mount("overlay", o.at, "overlay", 0, opts)
	}
	return err
}

func (o *overlay) unmount() error { return unix.Unmount(o.at, unix.MNT_DETACH) }

// hide puts whiteouts into the upper directory, beside the mount: removing by it would cost as much as there is below the paths. The
// overlay itself makes their parents in the upper directory, with all attributes, when it is told to change one.
func (o *overlay) hide(paths []string) error {
	if err := o.copyUp(paths); err != nil {
		return err
	}
	if err := o.unmount(); err != nil {
		return fmt.Errorf("unmount overlay: %w", err)
	}
	upper, err := os.Open(o.upper)
	if err != nil {
		return err
	}
	defer upper.Close()
	for _, p := range paths {
		if err := o.makeParents(path.Dir(p)); err != nil {
			return err
		}
		if err := whiteOut(upper, p); err != nil {
			return &os.PathError{Op: "hide", Path: p, Err: err}
		}
	}
	return o.mount()
}

func (o *overlay) copyUp(paths []string) error {
	root, err := os.OpenRoot(o.at)
	if err != nil {
		return err
	}
	defer root.Close()
	done := ""
	for _, p := range paths {
		dir := path.Dir(p)
		if dir == done {
			continue
		}
		info, err := root.Lstat(dir)
		if err == nil {
			err = root.Chmod(dir, info.Mode())
		}
		if err != nil && !errors.Is(err, unix.EPERM) {
			return err
		}
		done = dir
	}
	return nil
}

// makeParents makes the directories of the upper that the overlay could not be told to make: those of owners that the mapping does not
// have. They show as root's, with the mode and time that they have below.
func (o *overlay) makeParents(dir string) error {
	if dir == "." {
		return nil
	}
	to := path.Join(o.upper, dir)
	if _, err := os.Lstat(to); err == nil {
		return nil
	}
	if err := o.makeParents(path.Dir(dir)); err != nil {
		return err
	}
	if err := os.Mkdir(to, 0o755); err != nil {
		return err
	}
	return likeRoot(to, path.Join(o.lower, dir))
}

func whiteOut(upper *os.File, p string) error {
	fd, err := unix.Openat2(int(upper.Fd()), path.Dir(p), &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
	})
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Mknodat(fd, path.Base(p), unix.S_IFCHR, 0)
}

// copyFrom copies what a mount shows into an empty directory, with its owners and without what is hidden, and returns where it is.
func (s *step) copyFrom(ctx context.Context, m mountArgs, to string) (string, error) {
	src, release, err := s.w.openFrom(ctx, m.From)
	if err != nil {
		return "", err
	}
	defer release()
	t, err := newTarget(to, s.w.setup.IDs)
	if err != nil {
		return "", err
	}
	defer t.close()
	t.ctx = ctx
	root := "."
	if !m.IsDir {
		root = "file"
	}
	err = src.walk(m.Real, func(e snapshot.Entry, c content) error {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		rel, _ := relative(m.Real, e.Path)
		if e.HardLink != "" {
			// A first name that is not shown leaves a file of its own.
			first, ok := relative(m.Real, e.HardLink)
			if e.HardLink = first; !ok {
				e.HardLink = ""
			}
		}
		_, err := t.put(path.Join(root, rel), e, c)
		return err
	})
	return path.Join(to, root), errors.Join(err, t.setTimes())
}

// secret shows a secret as a file on the step's tmpfs, as a variable, or both. A missing one that is not required is skipped.
func (s *step) secret(m mountArgs) error {
	if !m.Given {
		return nil
	}
	if m.M.Env != "" {
		s.env = append(s.env, m.M.Env+"="+string(m.Secret))
	}
	if m.M.Target == "" {
		return nil
	}
	mode := os.FileMode(or(m.M.Mode, 0o400) & 0o777)
	if err := s.show(m.M.Target, m.Secret, mode); err != nil {
		return err
	}
	uid, gid := s.owner(m)
	return os.Chown(s.mounts[len(s.mounts)-1].Source, uid, gid)
}

// owner is whose a mount is: with one id, that one's.
func (s *step) owner(m mountArgs) (uid, gid int) {
	if s.w.setup.Single {
		return 0, 0
	}
	return int(or(m.M.UID, 0)), int(or(m.M.GID, 0))
}
