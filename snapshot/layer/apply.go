package layer

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"img/snapshot"
)

// Apply unpacks a layer's tar into dir, an empty directory, in overlay form: a whiteout becomes a 0:0 character device,
// an opaque whiteout the attribute user.overlay.opaque (and explicit Removed entries when it is settled). It reads r to
// its end.
//
// Names are taken as in a root of their own: ".." stops at dir, links lead on inside it. The later of two entries of one
// name wins; directories merge. A hard link has its file's attributes, whatever its own header says. Devices become empty
// files with the attribute user.img.device. After an error dir holds a part of the layer and nothing outside it has changed.
func Apply(ctx context.Context, r io.Reader, dir *os.File, o ApplyOptions) (*Applied, error) {
	in := &ctxReader{ctx: ctx, r: r}
	a := &applier{unpacker: newUnpacker(dir, o, &journal{}), in: in, tar: tar.NewReader(in)}
	defer a.close()
	if err := a.all(); err != nil {
		return nil, err
	}
	// The digest of a layer covers what follows the end of the archive.
	if _, err := io.CopyBuffer(io.Discard, onlyReader{in}, a.buf[:]); err != nil {
		return nil, fmt.Errorf("read layer: %w", err)
	}
	found := a.reduce()
	return found, a.finishAll(found, nil)
}

// An applier unpacks one archive.
type applier struct {
	*unpacker
	in      *ctxReader
	tar     *tar.Reader
	headers int
	logical int64 // bytes of content so far
}

func (a *applier) all() error {
	for {
		h, err := a.tar.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read layer: %w", err)
		}
		if err := a.next(h); err != nil {
			return fmt.Errorf("entry %.300q: %w", h.Name, err)
		}
	}
}

// next unpacks one entry.
func (a *applier) next(h *tar.Header) error {
	if a.headers++; a.headers > a.o.maxEntries() {
		return fmt.Errorf("more than %d entries", a.o.maxEntries())
	}
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	name, err := clean(h.Name)
	if err != nil {
		return err
	}
	if !a.o.Archive {
		white, skip, err := reserved(name)
		if err != nil || skip {
			return err
		}
		if white {
			return a.white(name)
		}
	}
	e, err := entry(h)
	if err != nil {
		return err
	}
	if name == "." {
		return a.rootEntry(e)
	}
	return a.make(name, e, h)
}

// reserved finds names that are no files: a whiteout's own, and what AUFS kept for itself.
func reserved(name string) (white, skip bool, err error) {
	if !strings.HasPrefix(name, whPrefix) && !strings.Contains(name, "/"+whPrefix) {
		return false, false, nil
	}
	dir, base := split(name)
	if strings.HasPrefix(dir, metaPrefix) || strings.Contains(dir, "/"+metaPrefix) {
		return false, true, nil
	}
	if strings.HasPrefix(dir, whPrefix) || strings.Contains(dir, "/"+whPrefix) {
		return false, false, errors.New("lies below a whiteout")
	}
	if base == opaqueName {
		return true, false, nil
	}
	if strings.HasPrefix(base, metaPrefix) {
		return false, true, nil
	}
	switch base[len(whPrefix):] {
	case "", ".", "..":
		return false, false, errors.New("whiteout of no name")
	}
	return true, false, nil
}

// white takes a whiteout.
func (a *applier) white(name string) error {
	dir, base := split(name)
	at, err := a.open(dir)
	if err != nil {
		return err
	}
	if base == opaqueName {
		return a.hide(at.path)
	}
	return a.whiteout(at, base[len(whPrefix):])
}

// A content is the content of the current entry. It refuses to grow out of proportion to the archive: a sparse file's
// holes take no room in it.
type content struct{ *applier }

func (c content) Read(p []byte) (int, error) {
	n, err := c.tar.Read(p)
	c.logical += int64(n)
	if c.logical > maxExpandFrom && c.logical/maxExpand > c.in.n {
		return 0, fmt.Errorf("content is more than %d times as long as the archive", maxExpand)
	}
	return n, err
}

// rootEntry takes the entry of the root itself, which is nothing but a directory.
func (a *applier) rootEntry(e snapshot.Entry) error {
	if e.Type != snapshot.Dir {
		return errors.New("root is no directory")
	}
	e.Path = "."
	return a.put(e, note{})
}

// make puts an entry on disk and into the journal.
func (a *applier) make(name string, e snapshot.Entry, h *tar.Header) error {
	dir, base := split(name)
	at, err := a.open(dir)
	if err != nil {
		return err
	}
	if e.Path = name; at.path != dir {
		e.Path = join(at.path, base)
	}
	var n note
	switch {
	case h.Typeflag == tar.TypeLink:
		n, err = a.link(at, base, h.Linkname)
	case e.Type == snapshot.Dir:
		n.opaque, err = a.mkdir(at, base)
	default:
		err = a.create(at, base, &e, content{a})
	}
	if err != nil {
		return err
	}
	return a.put(e, n)
}

// link makes a hard link, or an empty file in its place if the target must be in a lower layer.
func (a *applier) link(at place, base, target string) (note, error) {
	name, err := clean(target)
	if err != nil {
		return note{}, fmt.Errorf("link target: %w", err)
	}
	if name == "." {
		return note{}, errors.New("hard link to a directory")
	}
	dir, tbase := split(name)
	to, err := a.lookup(dir, false)
	if errors.Is(err, unix.ENOENT) {
		return a.pending(at, base, name)
	}
	if err != nil {
		return note{}, fmt.Errorf("link target %.300q: %w", target, err)
	}
	defer unix.Close(to.fd)
	var st unix.Stat_t
	err = unix.Fstatat(to.fd, tbase, &st, unix.AT_SYMLINK_NOFOLLOW)
	switch {
	case to.path == at.path && tbase == base:
		return note{}, errors.New("hard link to itself")
	case err == unix.ENOENT || err == nil && isWhiteout(&st):
		return a.pending(at, base, name)
	case err == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR:
		return note{}, errors.New("hard link to a directory")
	case err == nil:
		err = a.place(at, base, func() error { return unix.Linkat(to.fd, tbase, at.fd, base, 0) })
	}
	if err != nil {
		return note{}, fmt.Errorf("link to %.300q: %w", target, err)
	}
	return note{link: join(to.path, tbase)}, nil
}

// pending leaves a file where Settle will put the link.
func (a *applier) pending(at place, base, target string) (note, error) {
	if target == join(at.path, base) {
		return note{}, errors.New("hard link to itself")
	}
	e := snapshot.Entry{Type: snapshot.File}
	return note{target: target}, a.file(at, base, &e, strings.NewReader(""))
}

// entry reads a header. For a hard link the file's columns are filled in later.
func entry(h *tar.Header) (snapshot.Entry, error) {
	e := snapshot.Entry{Mode: uint32(h.Mode & 0o7777), MTime: nanoseconds(h.ModTime)}
	if err := typeOf(h, &e); err != nil {
		return e, err
	}
	if h.Typeflag == tar.TypeLink {
		return e, nil
	}
	var err error
	if e.UID, err = id("uid", h.Uid); err != nil {
		return e, err
	}
	if e.GID, err = id("gid", h.Gid); err != nil {
		return e, err
	}
	e.Xattrs, err = xattrs(h.PAXRecords, e.Type)
	return e, err
}

// typeOf fills in type and what depends on it.
func typeOf(h *tar.Header, e *snapshot.Entry) error {
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse:
		e.Type, e.Size = snapshot.File, h.Size
	case tar.TypeLink: // what it is, its target says
		e.Type = snapshot.File
	case tar.TypeDir:
		e.Type = snapshot.Dir
	case tar.TypeFifo:
		e.Type = snapshot.Fifo
	case tar.TypeSymlink:
		e.Type, e.Link, e.Mode = snapshot.Symlink, h.Linkname, 0o777
		if l := len(h.Linkname); l == 0 || l > maxTarget {
			return fmt.Errorf("link target has %d bytes, not 1 to %d", l, maxTarget)
		}
	case tar.TypeChar:
		e.Type = snapshot.Char
		return device(h, e)
	case tar.TypeBlock:
		e.Type = snapshot.Block
		return device(h, e)
	default:
		return fmt.Errorf("unknown type %q", h.Typeflag)
	}
	return nil
}

// device reads a device's number. A character device 0:0 would be a whiteout that no reader of the layer sees.
func device(h *tar.Header, e *snapshot.Entry) error {
	if h.Devmajor < 0 || h.Devminor < 0 || h.Devmajor > math.MaxUint32 || h.Devminor > math.MaxUint32 {
		return fmt.Errorf("device number %d:%d is out of range", h.Devmajor, h.Devminor)
	}
	e.Major, e.Minor = uint32(h.Devmajor), uint32(h.Devminor)
	if e.Type == snapshot.Char && e.Major == 0 && e.Minor == 0 {
		return errors.New("character device 0:0 is overlay's whiteout, not a file")
	}
	return nil
}

// id checks a user or group id. 4294967295 is the kernel's word for "leave as it is".
func id(what string, n int) (uint32, error) {
	if n < 0 || n >= math.MaxUint32 {
		return 0, fmt.Errorf("%s %d is not an id (0 to %d)", what, n, uint32(math.MaxUint32-1))
	}
	return uint32(n), nil
}

// nanoseconds since 1970, or the nearest that an int64 can say (the years 1677 to 2262).
func nanoseconds(t time.Time) int64 {
	const limit = math.MaxInt64 / int64(time.Second)
	switch s := t.Unix(); {
	case s >= limit:
		return limit * int64(time.Second)
	case s <= -limit:
		return -limit * int64(time.Second)
	}
	return t.UnixNano()
}
