package snapshot

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// prepareOverlay mounts a new upper directory over a chain.
func (s *Store) prepareOverlay(ctx context.Context, chain []Name) (*Active, error) {
	st, err := s.newStage("fs", "work", "empty")
	if err != nil {
		return nil, err
	}
	a := &Active{s: s, stage: st}
	if len(chain) > 0 {
		a.parent = chain[0]
	}
	if err := a.start(ctx, chain); err != nil {
		st.drop()
		return nil, err
	}
	return a, nil
}

func (a *Active) start(ctx context.Context, chain []Name) (err error) {
	if err := a.s.copyRoot(a.stage.path("fs"), chain); err != nil {
		return err
	}
	lower, err := a.s.lower(ctx, chain)
	if err != nil {
		return err
	}
	if len(lower) == 0 {
		lower = []string{a.stage.path("empty")} // overlay wants one
	}
	if a.began, err = a.stage.clock(); err != nil {
		return err
	}
	a.root, err = a.s.mountAt(overlayMount{lower: lower, upper: a.stage.path("fs"), work: a.stage.path("work")})
	return err
}

// commitOverlay takes the upper directory as it is.
func (a *Active) commitOverlay(ctx context.Context, o CommitOptions) (n Name, err error) {
	defer func() {
		if err != nil {
			a.stage.drop()
		}
	}()
	if err := a.s.unmount(a.root); err != nil {
		return "", err
	}
	ended, err := a.stage.clock()
	if err != nil {
		return "", err
	}
	view, err := a.s.View(a.parent)
	if err != nil {
		return "", err
	}
	defer view.Close()
	n, err = a.writeChanges(a.stage, &scan{
		ctx: ctx, view: view, ids: a.s.o.IDs, o: o, upper: true, began: a.began, ended: ended,
	}, a.stage.path("fs"))
	if err != nil {
		return "", err
	}
	for _, d := range []string{"work", "empty"} {
		if err := removeTree(a.stage.path(d), time.Time{}); err != nil {
			return "", err
		}
	}
	return n, a.s.publish(a.stage, n, a.parent)
}

// mountOverlay shows a chain read-only.
func (s *Store) mountOverlay(ctx context.Context, chain []Name) (string, func() error, error) {
	st, err := s.newStage("empty", "empty2")
	if err != nil {
		return "", nil, err
	}
	lower, err := s.lower(ctx, chain)
	if err == nil && len(chain) == 0 {
		lower = []string{st.path("empty2")}
	}
	var root string
	if err == nil {
		// Without an upper directory overlay wants two lower ones.
		root, err = s.mountAt(overlayMount{lower: append(lower, st.path("empty"))})
	}
	if err != nil {
		st.drop()
		return "", nil, err
	}
	return root, func() error { return errors.Join(s.unmount(root), st.drop()) }, nil
}

// An overlayMount says what to mount: directories topmost first; without upper and work it is read-only.
type overlayMount struct {
	lower       []string
	upper, work string
}

// mountAt mounts at a new directory in the scratch directory.
func (s *Store) mountAt(m overlayMount) (string, error) {
	at := filepath.Join(s.o.Scratch, "root-"+rand.Text())
	if err := os.Mkdir(at, 0o700); err != nil {
		return "", fmt.Errorf("make mount point: %w", err)
	}
	if err := m.mount(at); err != nil {
		os.Remove(at)
		return "", fmt.Errorf("mount overlay of %d layers: %w", len(m.lower), err)
	}
	return at, nil
}

// unmount ends a mount and its mount point. Where a descriptor of this process is still in it, the mount is taken off the
// tree of names, and ends with the descriptor.
func (s *Store) unmount(at string) error {
	err := unix.Unmount(at, unix.UMOUNT_NOFOLLOW)
	if err == unix.EBUSY {
		err = unix.Unmount(at, unix.UMOUNT_NOFOLLOW|unix.MNT_DETACH)
	}
	if err != nil {
		return fmt.Errorf("unmount: %w", err)
	}
	return os.Remove(at)
}

// mount gives the kernel the directories by names of descriptors: those are short (fsconfig takes 255 bytes, mount(2) one page
// for all), and nothing in them needs escaping.
func (m overlayMount) mount(at string) error {
	var open []*os.File
	defer func() {
		for _, f := range open {
			f.Close()
		}
	}()
	name := func(dir string) (string, error) {
		fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return "", &fs.PathError{Op: "open", Path: dir, Err: err}
		}
		f := os.NewFile(uintptr(fd), dir)
		open = append(open, f)
		return procName(f), nil
	}
	short := overlayMount{}
	var err error
	for _, dir := range m.lower {
		n, err := name(dir)
		if err != nil {
			return err
		}
		short.lower = append(short.lower, n)
	}
	if m.upper != "" {
		if short.upper, err = name(m.upper); err != nil {
			return err
		}
		if short.work, err = name(m.work); err != nil {
			return err
		}
	}
	for _, volatile := range []bool{true, false} { // since Linux 5.10
		if err = short.try(at, volatile && m.upper != ""); err != unix.EINVAL {
			return err
		}
	}
	return err
}

// try mounts by the new calls, or where they or lowerdir+ (Linux 6.8) are missing by mount(2).
func (m overlayMount) try(at string, volatile bool) error {
	err := m.fsmount(at, volatile)
	switch err {
	case unix.ENOSYS, unix.EINVAL, unix.EPERM:
		if old := m.oldMount(at, volatile); old != unix.ENOSYS {
			return old
		}
	}
	return err
}

func (m overlayMount) fsmount(at string, volatile bool) error {
	fsfd, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(fsfd)
	for _, o := range m.options() {
		if err := unix.FsconfigSetString(fsfd, o[0], o[1]); err != nil {
			return err
		}
	}
	flags := []string{"userxattr"}
	if volatile {
		flags = append(flags, "volatile")
	}
	for _, o := range flags {
		if err := unix.FsconfigSetFlag(fsfd, o); err != nil {
			return err
		}
	}
	if err := unix.FsconfigCreate(fsfd); err != nil {
		return err
	}
	attr := 0
	if m.upper == "" {
		attr = unix.MOUNT_ATTR_RDONLY
	}
	mfd, err := unix.Fsmount(fsfd, unix.FSMOUNT_CLOEXEC, attr)
	if err != nil {
		return err
	}
	defer unix.Close(mfd)
	return unix.MoveMount(mfd, "", unix.AT_FDCWD, at, unix.MOVE_MOUNT_F_EMPTY_PATH)
}

func (m overlayMount) options() [][2]string {
	var out [][2]string
	for _, l := range m.lower {
		out = append(out, [2]string{"lowerdir+", l})
	}
	if m.upper != "" {
		out = append(out, [2]string{"upperdir", m.upper}, [2]string{"workdir", m.work})
	}
	return append(out, [2]string{"source", "overlay"})
}

func (m overlayMount) oldMount(at string, volatile bool) error {
	o := "userxattr,lowerdir=" + strings.Join(m.lower, ":")
	flags := uintptr(unix.MS_RDONLY)
	if m.upper != "" {
		flags = 0
		o += ",upperdir=" + m.upper + ",workdir=" + m.work
	}
	if volatile {
		o += ",volatile"
	}
	return unix.Mount("overlay", at, "overlay", flags, o)
}
