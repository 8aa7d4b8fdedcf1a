package exec

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"strconv"
	"strings"

	"github.com/moby/sys/user"
	"golang.org/x/sys/unix"
)

// maxPasswd bounds /etc/passwd and /etc/group of an image (security-reliability.md §1.9).
const maxPasswd = 10 << 20

// readIn reads a small regular file of a root, links resolved inside it; a missing one is empty. It is opened without waiting,
// since an image may have put a fifo there.
func readIn(root *os.File, p string) ([]byte, error) {
	fd, err := unix.Openat2(int(root.Fd()), p, &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_CLOEXEC | unix.O_NONBLOCK | unix.O_NOCTTY,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return nil, nil
	}
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: "/" + p, Err: err}
	}
	f := os.NewFile(uintptr(fd), p)
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("/%s is no regular file", p)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxPasswd+1))
	if err == nil && len(data) > maxPasswd {
		err = fmt.Errorf("/%s is larger than %d MiB", p, maxPasswd>>20)
	}
	return data, err
}

// accounts reads the users and groups of a root.
func accounts(root *os.File) (passwd, group []byte, err error) {
	if passwd, err = readIn(root, "etc/passwd"); err != nil {
		return nil, nil, err
	}
	group, err = readIn(root, "etc/group")
	return passwd, group, err
}

// runUser finds the ids that a step runs under: USER's rules, "unable to find user" for unknown names.
func runUser(root *os.File, text string) (*user.ExecUser, error) {
	passwd, group, err := accounts(root)
	if err != nil {
		return nil, err
	}
	u, err := user.GetExecUser(text, &user.ExecUser{Home: "/"}, bytes.NewReader(passwd), bytes.NewReader(group))
	if err != nil {
		return nil, err
	}
	return u, nil
}

// setOwner reads --chown (or WORKDIR's USER; what says which) by BuildKit's rules: a number without a group is the group, too; names are
// looked up in the root that is written to. An unknown user is 0, an unknown group the user's: as BuildKit does, but with a warning.
func (t *target) setOwner(what, text string) error {
	if text == "" {
		return nil
	}
	t.chown = true
	userPart, groupPart, hasGroup := strings.Cut(text, ":")
	passwd, group, err := accounts(t.root)
	if err != nil {
		return err
	}
	n, ok, err := parseID(userPart)
	if err != nil {
		return fmt.Errorf("%s %s: %w", what, text, err)
	}
	if ok {
		t.uid, t.gid = n, n
	} else if userPart != "" && userPart != "root" {
		if t.uid, t.gid, ok = lookupUser(passwd, userPart); !ok {
			t.warn(ruleUnknownOwner, "%s %s: the root has no user %q, so the owner is root (0)", what, text, userPart)
		}
	}
	if !hasGroup {
		return nil
	}
	if n, ok, err = parseID(groupPart); err != nil {
		return fmt.Errorf("%s %s: %w", what, text, err)
	}
	if ok || groupPart == "" || groupPart == "root" {
		t.gid = n
	} else if g, ok := lookupGroup(group, groupPart); ok {
		t.gid = g
	} else {
		t.warn(ruleUnknownOwner, "%s %s: the root has no group %q, so the group is %d", what, text, groupPart, t.gid)
	}
	return nil
}

// parseID reads a user or group that is a number. 4294967295 is the kernel's word for "leave as it is", and nobody's id.
func parseID(s string) (id uint32, ok bool, err error) {
	n, err := strconv.ParseUint(s, 10, 64)
	if errors.Is(err, strconv.ErrSyntax) {
		return 0, false, nil
	}
	if err != nil || n >= math.MaxUint32 {
		return 0, false, fmt.Errorf("%s is not an id (0 to %d)", s, uint32(math.MaxUint32-1))
	}
	return uint32(n), true, nil
}

func isID(n int) bool { return 0 <= n && n < math.MaxUint32 }

func lookupUser(passwd []byte, name string) (uid, gid uint32, ok bool) {
	users, err := user.ParsePasswdFilter(bytes.NewReader(passwd), func(u user.User) bool { return u.Name == name })
	if err != nil || len(users) == 0 || !isID(users[0].Uid) || !isID(users[0].Gid) {
		return 0, 0, false
	}
	return uint32(users[0].Uid), uint32(users[0].Gid), true
}

func lookupGroup(group []byte, name string) (uint32, bool) {
	groups, err := user.ParseGroupFilter(bytes.NewReader(group), func(g user.Group) bool { return g.Name == name })
	if err != nil || len(groups) == 0 || !isID(groups[0].Gid) {
		return 0, false
	}
	return uint32(groups[0].Gid), true
}
