package exec

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Untar writes a tar's files into a directory as the caller's own: modes and times are kept, owners are not, device nodes are left out.
// The directory is made if missing. Nothing is written outside of it (os.Root), whatever the names and links in the archive.
func Untar(ctx context.Context, r io.Reader, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	t := tar.NewReader(contextReader{ctx, r})
	var dirs []*tar.Header
	for {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("read archive: %w", err)
		}
		h.Name = path.Clean("/" + h.Name)[1:]
		if h.Name == "" {
			continue
		}
		if err := untarOne(root, h, t); err != nil {
			return fmt.Errorf("write %s: %w", h.Name, err)
		}
		if h.Typeflag == tar.TypeDir {
			dirs = append(dirs, h)
		}
	}
	// Modes and times of directories come last: a read-only one could not be filled.
	for i := len(dirs) - 1; i >= 0; i-- {
		if err := finish(root, dirs[i]); err != nil {
			return fmt.Errorf("write %s: %w", dirs[i].Name, err)
		}
	}
	return nil
}

func untarOne(root *os.Root, h *tar.Header, content io.Reader) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	if err := root.MkdirAll(path.Dir(h.Name), 0o755); err != nil {
		return err
	}
	old, err := root.Lstat(h.Name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return err
	case old.IsDir() && h.Typeflag == tar.TypeDir:
		return nil
	default:
		if err := root.RemoveAll(h.Name); err != nil {
			return err
		}
	}
	switch h.Typeflag {
	case tar.TypeDir:
		return root.Mkdir(h.Name, 0o755)
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse:
		f, err := root.OpenFile(h.Name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		_, err = io.Copy(f, content)
		userXattrs(f, h)
		return errors.Join(err, f.Close(), finish(root, h))
	case tar.TypeSymlink:
		return errors.Join(root.Symlink(h.Linkname, h.Name), linkTime(root, h.Name, h.ModTime))
	case tar.TypeLink:
		return root.Link(path.Clean("/" + h.Linkname)[1:], h.Name)
	case tar.TypeFifo:
		dir, err := root.Open(path.Dir(h.Name))
		if err != nil {
			return err
		}
		defer dir.Close()
		return errors.Join(unix.Mknodat(int(dir.Fd()), path.Base(h.Name), unix.S_IFIFO|0o600, 0), finish(root, h))
	}
	return nil // devices are the image's business, not the caller's disk's
}

// userXattrs sets the attributes that a user may set, where the file system can hold them.
func userXattrs(f *os.File, h *tar.Header) {
	for k, v := range h.PAXRecords {
		if name, ok := strings.CutPrefix(k, "SCHILY.xattr."); ok && strings.HasPrefix(name, "user.") {
			_ = unix.Fsetxattr(int(f.Fd()), name, []byte(v), 0)
		}
	}
}

// linkTime sets the time of a name, which may be a link's: it is in the layer of whoever copies it.
func linkTime(root *os.Root, name string, t time.Time) error {
	dir, err := root.Open(path.Dir(name))
	if err != nil {
		return err
	}
	defer dir.Close()
	ts, err := unix.TimeToTimespec(t)
	if err != nil {
		return fmt.Errorf("time %v: %w", t, err)
	}
	return unix.UtimesNanoAt(int(dir.Fd()), path.Base(name), []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW)
}

// finish sets what was left open, unless something else has taken the name since.
func finish(root *os.Root, h *tar.Header) error {
	now, err := root.Lstat(h.Name)
	if errors.Is(err, fs.ErrNotExist) || err == nil && now.Mode().Type() != h.FileInfo().Mode().Type() {
		return nil
	}
	mode := h.FileInfo().Mode()
	if err := root.Chmod(h.Name, mode.Perm()|mode&(os.ModeSetuid|os.ModeSetgid|os.ModeSticky)); err != nil {
		return err
	}
	return root.Chtimes(h.Name, time.Time{}, h.ModTime)
}
