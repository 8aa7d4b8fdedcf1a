package sandbox

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/moby/sys/user"
	"golang.org/x/sys/unix"
)

// passwdLimit bounds what is read of a root's /etc/passwd: the file is the image's.
const passwdLimit = 4 << 20

// environment adds what the process gets unasked: HOME, and what apt needs to live with one id.
//
// libcontainer would look HOME up itself, but opens whatever the image has at /etc/passwd: a fifo would hang it (CVE-2024-9676).
func environment(s Spec) ([]string, error) {
	env := slices.Clone(s.Env)
	if !isSet(env, "HOME") {
		home, err := home(s.Root, int(s.UID))
		if err != nil {
			return nil, err
		}
		env = append(env, "HOME="+home)
	}
	if s.OneID && !isSet(env, "APT_CONFIG") {
		env = append(env, "APT_CONFIG="+aptConf)
	}
	return env, nil
}

// home is the user's home directory by the root's /etc/passwd, or / for users it does not have.
func home(root string, uid int) (string, error) {
	f, err := openPlain(root, "/etc/passwd")
	if err != nil {
		return "/", nil
	}
	defer f.Close()
	users, err := user.ParsePasswdFilter(io.LimitReader(f, passwdLimit), func(u user.User) bool { return u.Uid == uid })
	if err != nil {
		return "", fmt.Errorf("read /etc/passwd of the root: %w", err)
	}
	if len(users) == 0 || users[0].Home == "" || strings.ContainsRune(users[0].Home, 0) {
		return "/", nil
	}
	return users[0].Home, nil
}

// openPlain opens a regular file inside the root. It does not block on what turns out to be none, and links end in the root.
func openPlain(root, path string) (*os.File, error) {
	dir, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(dir)
	fd, err := unix.Openat2(dir, path, &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_NONBLOCK | unix.O_CLOEXEC | unix.O_NOCTTY,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), path)
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		f.Close()
		return nil, fmt.Errorf("%s is no regular file", path)
	}
	return f, nil
}
