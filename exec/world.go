package exec

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"img/exec/inner"
	"img/snapshot"
	"img/userns"
)

// A world is the inner process's side: its own root file system, which holds nothing but what the build needs, and the snapshots.
//
//	/state/snapshot   the snapshots
//	/state/mounts     cache mounts
//	/ctx/<name>       contexts, read-only
//	/proc /sys /dev   for the sandboxes
//	/device/<n>       what devices need of the host
//	/run              secrets, scripts, libcontainer's state: a tmpfs
type world struct {
	setup setup
	snaps *snapshot.Store
	steps atomic.Int64

	broken error
}

// Serve is the inner process: it answers the Executor's calls on descriptor 3 until the Executor is gone. broken is why the process
// cannot work (userns.Settle); the first call says so.
func Serve(broken error) error {
	unix.Umask(0)
	// What ends all processes of a session or a control group asks this one, too; the first process decides when it ends. Caught and
	// not ignored: what is ignored stays so in the steps.
	signal.Notify(make(chan os.Signal, 1), unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	w := &world{broken: broken}
	defer w.close()
	return inner.Serve(os.NewFile(3, "calls"), map[string]inner.Handler{
		"setup":   w.setUp,
		"lock":    w.lock,
		"run":     handle(w.run),
		"copy":    handle(w.copy),
		"fetched": handle(w.fetched),
		"merge":   handle(w.merge),
		"mkdir":   handle(w.mkdir),
		"pack":    handle(w.pack),
		"unpack":  handle(w.unpack),
		"export":  handle(w.export),
		"remove":  handle(w.remove),
	})
}

// close removes the working trees that no step needs any more.
func (w *world) close() {
	if w.snaps != nil {
		_ = w.snaps.Close() // what is left, the next process sweeps
	}
}

// handle decodes a method's arguments.
func handle[A, R any](f func(ctx context.Context, a A, files []*os.File) (R, error)) inner.Handler {
	return func(ctx context.Context, raw []byte, files []*os.File) (any, []*os.File, error) {
		defer func() {
			for _, f := range files {
				f.Close()
			}
		}()
		var a A
		if err := inner.Unmarshal(raw, &a); err != nil {
			return nil, nil, err
		}
		r, err := f(ctx, a, files)
		return r, nil, wire(err)
	}
}

func hexName(s string) string { return "n" + hex.EncodeToString([]byte(s)) }

// setUp builds the file system and opens the snapshots in it.
func (w *world) setUp(_ context.Context, raw []byte, files []*os.File) (any, []*os.File, error) {
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	if w.broken != nil {
		return nil, nil, w.broken
	}
	if err := inner.Unmarshal(raw, &w.setup); err != nil {
		return nil, nil, err
	}
	if len(files) != len(w.setup.Dirs) {
		return nil, nil, fmt.Errorf("%d directories came with %d descriptors", len(w.setup.Dirs), len(files))
	}
	if err := w.build(files); err != nil {
		return nil, nil, wire(userns.Explain(err))
	}
	reply, err := w.openSnapshots()
	return reply, nil, wire(err)
}

// build makes the new root on a tmpfs and pivots into it: after that no path of the host can be named.
func (w *world) build(files []*os.File) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	mounts, err := w.collect(files)
	if err != nil {
		return err
	}
	defer func() {
		for _, m := range mounts {
			unix.Close(m.fd)
		}
	}()
	const at = "/tmp" // any directory does: it is covered in this mount namespace only
	if err := unix.Mount("img", at, "tmpfs", unix.MS_NODEV|unix.MS_NOSUID, "mode=0755"); err != nil {
		return fmt.Errorf("mount a tmpfs: %w", err)
	}
	for _, m := range mounts {
		if err := m.attach(at); err != nil {
			return err
		}
	}
	for _, d := range []string{"run", "old", "tmp"} {
		if err := os.MkdirAll(filepath.Join(at, d), 0o755); err != nil {
			return err
		}
	}
	if err := unix.PivotRoot(at, filepath.Join(at, "old")); err != nil {
		return fmt.Errorf("pivot_root: %w", err)
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	if err := unix.Unmount("/old", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("detach the old root: %w", err)
	}
	return os.Remove("/old")
}

// A detached is a mount that is attached nowhere yet.
type detached struct {
	fd int
	at string
}

func (m detached) attach(root string) error {
	target := filepath.Join(root, m.at)
	if err := m.point(target); err != nil {
		return err
	}
	if err := unix.MoveMount(m.fd, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("attach /%s: %w", m.at, err)
	}
	return nil
}

// point makes a directory, or a file, to attach to.
func (m detached) point(target string) error {
	var st unix.Stat_t
	if err := unix.Fstat(m.fd, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return os.MkdirAll(target, 0o755)
	}
	if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
		return err
	}
	return os.WriteFile(target, nil, 0o600)
}

// collect takes hold of every mount of the new root while the old one is still there.
func (w *world) collect(files []*os.File) ([]detached, error) {
	var out []detached
	proc, err := newProc()
	if err != nil {
		return nil, err
	}
	out = append(out, detached{fd: proc, at: "proc"})
	for _, d := range []string{"sys", "dev"} {
		fd, err := unix.OpenTree(unix.AT_FDCWD, "/"+d, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
		if err != nil {
			return out, fmt.Errorf("open_tree /%s: %w", d, err)
		}
		out = append(out, detached{fd: fd, at: d})
		if d == "sys" {
			// libcontainer makes a cgroup wherever it may write one; steps are not put into cgroups.
			attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
			if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &attr); err != nil {
				return out, fmt.Errorf("make /sys read-only: %w", err)
			}
		}
	}
	for i, d := range w.setup.Dirs {
		fd, err := openShared(d, files[i])
		if err != nil {
			return out, err
		}
		out = append(out, detached{fd: fd, at: d.At})
	}
	return out, nil
}

// newProc mounts a proc of this PID namespace. It is refused where the visible one is masked (containers): see design §6, tier 3.
func newProc() (int, error) {
	fs, err := unix.Fsopen("proc", unix.FSOPEN_CLOEXEC)
	if err == nil {
		defer unix.Close(fs)
		if err = unix.FsconfigCreate(fs); err == nil {
			var fd int
			fd, err = unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC)
			if err == nil {
				return fd, nil
			}
		}
	}
	return -1, &userns.Error{
		Err: fmt.Errorf("mount a fresh /proc: %w", err),
		Remedy: "the /proc of this container is masked; Kubernetes: securityContext.procMount: Unmasked with hostUsers: false; " +
			"docker run: --security-opt systempaths=unconfined",
	}
}

// openShared returns a detached mount of a shared directory.
func openShared(d sharedDir, f *os.File) (int, error) {
	if d.Mount {
		return unix.Dup(int(f.Fd()))
	}
	// The descriptor belongs to the first process's mount namespace, so it cannot be mounted here. The path can, if it is still
	// the same directory.
	fd, err := unix.OpenTree(unix.AT_FDCWD, d.Path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE|unix.AT_SYMLINK_NOFOLLOW)
	if err != nil {
		return -1, &os.PathError{Op: "open_tree", Path: d.Path, Err: err}
	}
	var a, b unix.Stat_t
	if err := errors.Join(unix.Fstat(fd, &a), unix.Fstat(int(f.Fd()), &b)); err != nil {
		unix.Close(fd)
		return -1, err
	}
	if a.Dev != b.Dev || a.Ino != b.Ino {
		unix.Close(fd)
		return -1, fmt.Errorf("%s: %w: the directory was replaced", d.Path, errChanged)
	}
	if d.ReadOnly {
		attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOSUID}
		if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &attr); err != nil {
			unix.Close(fd)
			return -1, fmt.Errorf("make %s read-only: %w", d.Path, err)
		}
	}
	return fd, nil
}

// openSnapshots opens the store with the best driver that works here.
func (w *world) openSnapshots() (setupReply, error) {
	o := snapshot.Options{Map: w.setup.Map, IDs: w.setup.IDs, Driver: w.setup.Driver, Scratch: "/run/snapshot", Boot: w.setup.Boot}
	if err := os.MkdirAll(o.Scratch, 0o755); err != nil {
		return setupReply{}, err
	}
	var reply setupReply
	if o.Driver == "" {
		o.Driver = snapshot.Overlay
		err := tryOverlay("/state/snapshot/" + w.setup.Map)
		if err != nil && !lacksOverlay(err) {
			return reply, fmt.Errorf("try an overlay: %w", err)
		}
		if err != nil {
			o.Driver = snapshot.Copies
			reply.Notes = append(reply.Notes, fmt.Sprintf("overlay cannot be mounted here (%v): layers are made by copying files, which is slower", err))
		}
	}
	reply.Driver = o.Driver
	s, err := snapshot.Open("/state/snapshot", o)
	w.snaps = s
	return reply, err
}

// lacksOverlay reports whether an error says that there can be no overlay here (design §6). Others, such as a full disk, are no reason to
// go on by weaker means.
func lacksOverlay(err error) bool {
	for _, e := range []error{unix.EPERM, unix.EACCES, unix.ENOSYS, unix.EINVAL, unix.ENODEV, unix.EOPNOTSUPP, unix.EROFS} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// probeDir makes a directory that the sweeps of other builds' stores leave alone while it is locked, and take away once it is not.
func probeDir(dir string) (*os.File, error) {
	for {
		tmp, err := os.MkdirTemp(dir, "stage-probe-")
		if err != nil {
			return nil, err
		}
		f, err := os.Open(tmp)
		if err == nil {
			if err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err == nil {
				_, err = os.Lstat(tmp) // a sweep may have been faster
			}
			if err == nil {
				return f, nil
			}
			f.Close()
		}
		if !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("lock %s: %w", tmp, err)
		}
	}
}

// tryOverlay mounts an overlay in a directory once.
func tryOverlay(dir string) error {
	held, err := probeDir(dir)
	if err != nil {
		return err
	}
	defer held.Close()
	tmp := held.Name()
	defer os.RemoveAll(tmp)
	for _, d := range []string{"l", "u", "w", "m"} {
		if err := os.Mkdir(filepath.Join(tmp, d), 0o755); err != nil {
			return err
		}
	}
	opts := fmt.Sprintf("lowerdir=%[1]s/l,upperdir=%[1]s/u,workdir=%[1]s/w,userxattr", tmp)
	if err := unix.Mount("overlay", tmp+"/m", "overlay", 0, opts); err != nil {
		return err
	}
	err = unix.Mknod(tmp+"/u/x", unix.S_IFCHR, 0)
	os.Chmod(tmp+"/w/work", 0o700)
	return errors.Join(err, unix.Unmount(tmp+"/m", unix.MNT_DETACH))
}

// context opens a context in the inner process: the same directory, the same rules.
func (w *world) context(c contextRef) (*Context, error) {
	opened, err := OpenContext("/"+contextDir(c.Name), c.Patterns, "", "")
	if err == nil {
		opened.Streamed = c.Streamed
	}
	return opened, err
}

// A contextRef names a context on the wire.
type contextRef struct {
	Name     string
	Patterns []string
	Streamed bool
}
