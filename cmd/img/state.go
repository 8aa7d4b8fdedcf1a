package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"img/cache/atomicfile"
)

// stateDir returns the state directory: the flag's; else img below the first entry of XDG_DATA_HOME, below
// HOME/.local/share, or below /tmp. It is made with mode 0700 if missing. A directory that another user could change
// below our feet is refused, with the remedy as hint.
func stateDir(flag string, getenv func(string) string) (string, error) {
	dir, err := filepath.Abs(statePath(flag, getenv))
	if err != nil {
		return "", fmt.Errorf("state directory: %w", err)
	}
	if err := makeState(dir); err != nil {
		return "", withHint(exitHost, fmt.Errorf("state directory: %w", err), "choose another one with --state DIR or IMG_STATE")
	}
	// What a link in the path points to is what counts.
	real, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return "", withCode(exitHost, fmt.Errorf("state directory: %w", err))
	}
	err = checkOwners(real, os.Geteuid(), getenv("KUBERNETES_SERVICE_HOST") != "")
	if err == nil && dir == lastResort {
		err = checkOwn(dir, os.Geteuid())
	}
	if err != nil {
		return "", withHint(exitHost, fmt.Errorf("state directory %s: %w", dir, err), "choose another one with --state DIR or IMG_STATE")
	}
	return real, nil
}

// lastResort is the state directory of those without a home. Everybody can make it first.
const lastResort = "/tmp/img"

func statePath(flag string, getenv func(string) string) string {
	if flag != "" {
		return flag
	}
	// The XDG specification has one absolute path here; the original img took the first of a list.
	data, _, _ := strings.Cut(getenv("XDG_DATA_HOME"), ":")
	if filepath.IsAbs(data) {
		return filepath.Join(data, "img")
	}
	if home := getenv("HOME"); filepath.IsAbs(home) {
		return filepath.Join(home, ".local", "share", "img")
	}
	return lastResort
}

func makeState(dir string) error {
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	err := os.Mkdir(dir, 0o700)
	if errors.Is(err, fs.ErrExist) {
		return nil // another img was faster, or a dangling link, which the check will find
	}
	return err
}

// checkOwners looks at each component of a path without links, from the directory up. Each must belong to us or to
// root, and others must not be able to replace what is below it: not writable for them, or sticky. Root may
// use a user's state directory: the files that root writes there become the user's. A pod's volumes are mode 0777, and
// a pod has one user.
func checkOwners(dir string, euid int, pod bool) error {
	for p := dir; ; p = filepath.Dir(p) {
		info, err := os.Lstat(p)
		if err != nil {
			return err
		}
		if !info.IsDir() {
			return fmt.Errorf("%s is not a directory", p)
		}
		owner := int(info.Sys().(*syscall.Stat_t).Uid)
		switch {
		case euid != 0 && owner != euid && owner != 0 && owner != overflowUID:
			return fmt.Errorf("%s belongs to user %d, not to us (user %d)", p, owner, euid)
		case !pod && writable(info) && info.Mode()&fs.ModeSticky == 0:
			return fmt.Errorf("%s is writable for others (mode %04o); chmod go-w takes that away", p, info.Mode().Perm())
		}
		if p == "/" {
			return nil
		}
	}
}

// writable reports whether others than the owner can write. A group of the owner's own, as most distributions give each
// user (its number is the user's), is nobody else: there a umask of 002 makes every directory mode 0775.
func writable(info fs.FileInfo) bool {
	st := info.Sys().(*syscall.Stat_t)
	others := info.Mode().Perm() & 0o022
	if st.Gid == st.Uid {
		others &= 0o002
	}
	return others != 0
}

// checkOwn refuses a directory, or a link, of somebody else's even to root, who would build upon what another user put there.
func checkOwn(dir string, euid int) error {
	info, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	if owner := int(info.Sys().(*syscall.Stat_t).Uid); owner != euid {
		return fmt.Errorf("%s belongs to user %d, not to us (user %d)", dir, owner, euid)
	}
	return nil
}

// overflowUID shows in user namespaces where the owner is not mapped, as the host's root is; nobody inside can act as it.
const overflowUID = 65534

// lockState takes the state directory's lock: shared for what makes images or cache entries, exclusive for what
// removes them, so that nothing is removed between being made and being named. The kernel releases it at death.
// waiting is called once if the lock is not free.
func lockState(ctx context.Context, dir string, exclusive bool, waiting func()) (unlock func(), err error) {
	path := filepath.Join(dir, "locks", "state")
	if err := atomicfile.MkdirAll(filepath.Dir(path)); err != nil {
		return nil, fmt.Errorf("lock the state directory: %w", err)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("lock the state directory: %w", err)
	}
	if err := atomicfile.Inherit(path); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock the state directory: %w", err)
	}
	how := unix.LOCK_SH
	if exclusive {
		how = unix.LOCK_EX
	}
	said := false
	for {
		err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			f.Close()
			return nil, fmt.Errorf("lock the state directory: %w", err)
		}
		if !said && waiting != nil {
			waiting()
			said = true
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, context.Cause(ctx)
		case <-time.After(50 * time.Millisecond):
		}
	}
}
