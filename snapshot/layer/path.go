package layer

import (
	"errors"
	"fmt"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// clean makes an archive's name a path relative to the root: "a/../../b" is "b", as it would be in a root of its own.
func clean(name string) (string, error) {
	switch {
	case name == "":
		return "", errors.New("empty name")
	case len(name) > maxPath:
		return "", fmt.Errorf("name is longer than %d bytes", maxPath)
	case strings.IndexByte(name, 0) >= 0:
		return "", errors.New("name contains a NUL byte")
	}
	p := path.Clean("/" + name)[1:]
	if p == "" {
		return ".", nil
	}
	for c := range strings.SplitSeq(p, "/") {
		if len(strings.TrimPrefix(c, whPrefix)) > maxComponent {
			return "", fmt.Errorf("a part of the name is longer than %d bytes", maxComponent)
		}
	}
	return p, nil
}

// split separates the last component; the parent of one is ".".
func split(p string) (dir, base string) {
	i := strings.LastIndexByte(p, '/')
	if i < 0 {
		return ".", p
	}
	return p[:i], p[i+1:]
}

// join puts a component below a clean path.
func join(dir, base string) string {
	if dir == "." {
		return base
	}
	return dir + "/" + base
}

// below reports whether p lies below dir.
func below(p, dir string) bool {
	if dir == "." {
		return p != "."
	}
	return len(p) > len(dir) && p[len(dir)] == '/' && p[:len(dir)] == dir
}

// openDir opens a directory below root by a path that must contain no link.
func openDir(root int, p string, flags int) (int, error) {
	flags |= unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	fd, err := unix.Openat2(root, p, &unix.OpenHow{
		Flags:   uint64(flags),
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_SYMLINKS,
	})
	// Old seccomp profiles of containers know no openat2.
	if err == unix.ENOSYS || err == unix.EPERM {
		return openDirByParts(root, p, flags)
	}
	return fd, err
}

// openDirByParts is openDir without openat2: a component at a time, none of them a link.
func openDirByParts(root int, p string, flags int) (int, error) {
	cur, err := unix.Openat(root, ".", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	for rest := p; err == nil; {
		c, tail, more := strings.Cut(rest, "/")
		f := flags
		if more {
			f = unix.O_PATH | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
		}
		var next int
		next, err = unix.Openat(cur, c, f, 0)
		unix.Close(cur)
		if err == nil && !more {
			return next, nil
		}
		cur, rest = next, tail
	}
	return -1, err
}
