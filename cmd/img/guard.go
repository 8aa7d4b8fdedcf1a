package main

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// A guarded is the state directory in force. Path is where its files are reached; dir is how people know it.
type guarded struct {
	path, dir string
	// mount keeps the guard alive.
	mount *os.File
}

// guard makes a state directory safe to be used by root when it belongs to somebody else: the owner can put links anywhere in it, and root
// would follow them, to write or delete what is behind. Root reaches it through a mount of its own in which no link is followed
// (MOUNT_ATTR_NOSYMFOLLOW, Linux 5.12), detached, so that nobody else sees it and it goes with the process. For everybody else it is
// the directory itself.
func guard(dir string) (*guarded, error) {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return nil, &os.PathError{Op: "stat", Path: dir, Err: err}
	}
	if os.Geteuid() != 0 || st.Uid == 0 {
		return &guarded{path: dir, dir: dir}, nil
	}
	f, err := noLinks(dir)
	if err != nil {
		return nil, withHint(exitHost, fmt.Errorf("state directory %s belongs to user %d, and root cannot use it safely here: %w", dir, st.Uid, err),
			"choose another one with --state DIR or IMG_STATE, or build as that user")
	}
	return &guarded{path: fmt.Sprintf("/proc/self/fd/%d", f.Fd()), dir: dir, mount: f}, nil
}

// noLinks opens a directory, whose path has no link, as a detached mount in which none is followed.
func noLinks(dir string) (*os.File, error) {
	at, err := unix.Openat2(unix.AT_FDCWD, dir, &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_SYMLINKS,
	})
	if err != nil {
		return nil, err
	}
	defer unix.Close(at)
	fd, err := unix.OpenTree(at, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
	if err != nil {
		return nil, fmt.Errorf("open_tree: %w", err)
	}
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NOSYMFOLLOW | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("mount_setattr: %w", err)
	}
	return os.NewFile(uintptr(fd), dir), nil
}

// named gives paths of the state directory the name that people know.
func (g *guarded) named(text string) string {
	if g == nil || g.path == g.dir {
		return text
	}
	return strings.ReplaceAll(text, g.path, g.dir)
}
