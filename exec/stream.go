package exec

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"img/registry/image"
	"img/snapshot/attr"
	"img/snapshot/layer"
)

// Limits of a build context that comes as an archive. Archives are other people's.
const (
	// maxText bounds what is taken for a Dockerfile, in bytes.
	maxText = 16 << 20
	// maxStreamEntries is how many entries an archive may have.
	maxStreamEntries = layer.DefaultMaxEntries
	// maxStreamPath is the longest path of an entry, in bytes.
	maxStreamPath = 4096
	// A tar's sparse files make a small archive large: past sparseFrom bytes of content, at most sparseRatio for one of the archive.
	sparseFrom  = 100 << 20
	sparseRatio = 1000
)

// Attributes of a streamed context's files on disk, for what the caller's disk cannot show. Nobody's archive can set them.
const (
	// xattrMode is the mode, octal, of a file or directory that its owner could not read or enter. On disk it has heldMode.
	xattrMode = attr.Prefix + "mode"
	// xattrCapability is security.capability, which only root may set.
	xattrCapability = attr.Prefix + "capability"

	heldFileMode = 0o600
	heldDirMode  = 0o700
)

// A Stream is what a build context was that came as a stream of bytes.
type Stream struct {
	// Text is the content of what is no archive. It is not nil then, even if it is empty.
	Text []byte
	// NoText says why Text is no Dockerfile.
	NoText error
	// Archive says that the one file there is would be an archive.
	Archive bool
	// Newest is the time of the newest regular file of what was unpacked; zero if there is none.
	Newest time.Time
	// Notes say what of the archive is not in the context.
	Notes []string
}

// ReadContext reads a build context that comes as a stream: a tar in any compression is unpacked into dir, anything else is Text.
//
// What is in dir belongs to the caller, whatever owners the archive tells; OpenContext needs Streamed to see modes and attributes as the
// archive has them. Nothing is written outside of dir, and on an error dir holds what came until then.
func ReadContext(ctx context.Context, r io.Reader, dir string) (*Stream, error) {
	plain, err := image.DecompressAny(contextReader{ctx, r})
	if err != nil {
		return nil, err
	}
	defer plain.Close()
	b := bufio.NewReaderSize(plain, 64<<10)
	head, _ := b.Peek(64 << 10) // extended headers may come before the first file's
	switch _, err := tar.NewReader(bytes.NewReader(head)).Next(); {
	case err == nil:
		return unpackStream(ctx, b, dir)
	case len(head) >= 1024 && len(bytes.Trim(head, "\x00")) == 0:
		return nil, errors.New("the archive is empty")
	}
	return readText(b)
}

func readText(r io.Reader) (*Stream, error) {
	text, err := io.ReadAll(io.LimitReader(r, maxText+1))
	switch {
	case err != nil:
	case len(text) > maxText:
		err = fmt.Errorf("neither a tar nor a Dockerfile: more than %d MiB of text", maxText>>20)
	case bytes.IndexByte(text, 0) >= 0:
		err = errors.New("neither a tar nor a Dockerfile, but other data")
	}
	return &Stream{Text: text}, err
}

// FetchedName is the file that a context consists of whose URL is no archive (BuildKit's name).
const FetchedName = "context"

// PlaceFetched makes a context of a file that was fetched, in an empty directory: an archive is unpacked if unpack says so, anything else is
// the one file FetchedName with BuildKit's mode for it and the time of its origin. Text is then its beginning, if it is text.
func PlaceFetched(ctx context.Context, f *os.File, modified time.Time, unpack bool, dir string) (*Stream, error) {
	archive, err := isArchive(f)
	if err != nil {
		return nil, err
	}
	if archive && unpack {
		return ReadContext(ctx, f, dir)
	}
	dst, err := os.OpenFile(filepath.Join(dir, FetchedName), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	_, err = io.Copy(dst, contextReader{ctx, f})
	if err := errors.Join(err, dst.Close(), os.Chtimes(dst.Name(), modified, modified)); err != nil {
		return nil, err
	}
	made := &Stream{Archive: archive}
	if !unpack {
		return made, nil
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	plain, err := image.DecompressAny(contextReader{ctx, f})
	if err != nil {
		return nil, err
	}
	defer plain.Close()
	text, err := readText(plain)
	made.Text, made.NoText = text.Text, err
	return made, nil
}

// NewestFile is the time of the newest regular file in an archive; zero for what is none, or is damaged.
func NewestFile(ctx context.Context, f *os.File) (newest time.Time, err error) {
	if ok, err := isArchive(f); err != nil || !ok {
		return newest, err
	}
	plain, err := image.DecompressAny(contextReader{ctx, f})
	if err != nil {
		return newest, err
	}
	defer plain.Close()
	for t := tar.NewReader(plain); ; {
		h, err := t.Next()
		switch {
		case ctx.Err() != nil:
			return newest, context.Cause(ctx)
		case errors.Is(err, io.EOF):
			return newest, nil
		case err != nil:
			return time.Time{}, nil
		case h.FileInfo().Mode().IsRegular() && h.ModTime.After(newest):
			newest = h.ModTime
		}
	}
}

func unpackStream(ctx context.Context, r io.Reader, dir string) (*Stream, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	u := &streamer{ctx: ctx, root: root, in: &countingReader{r: r}, made: &Stream{}, buf: make([]byte, len(zeros))}
	u.tar = tar.NewReader(u.in)
	if err := u.all(); err != nil {
		return nil, err
	}
	if err := u.finish(); err != nil {
		return nil, err
	}
	return u.made, u.drain()
}

// A streamer unpacks the tar of a build context.
type streamer struct {
	ctx  context.Context
	root *os.Root
	in   *countingReader
	tar  *tar.Reader
	made *Stream
	buf  []byte

	entries int
	content int64 // bytes so far
	free    int64 // bytes that were free and are not spoken for
	// times are those of directories, set at the end: what is put into one changes it.
	times []streamTime
	// left are the first entries that could not be kept, by reason.
	left [leftReasons]leftOut
}

type streamTime struct {
	name string
	time time.Time
}

// What of an archive is not in the context.
const (
	leftDevices = iota
	leftXattrs
	leftReasons
)

type leftOut struct {
	first string
	count int
}

type countingReader struct {
	r io.Reader
	n int64
	// zeros is how many of the last bytes were zero.
	zeros int64
}

func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	if end := bytes.TrimRight(p[:n], "\x00"); len(end) > 0 {
		c.zeros = int64(n - len(end))
	} else {
		c.zeros += int64(n)
	}
	return n, err
}

func (u *streamer) all() error {
	for {
		if u.ctx.Err() != nil {
			return context.Cause(u.ctx)
		}
		u.in.zeros = 0 // what fills up the last entry's block is less than one
		h, err := u.tar.Next()
		if errors.Is(err, io.EOF) {
			u.end()
			return nil
		}
		if err != nil {
			return fmt.Errorf("read archive: %w", err)
		}
		if u.entries++; u.entries > maxStreamEntries {
			return fmt.Errorf("the archive has more than %d entries", maxStreamEntries)
		}
		if h.Typeflag == tar.TypeXGlobalHeader {
			continue
		}
		if err := u.entry(h); err != nil {
			return fmt.Errorf("archive entry %.300q: %w", h.Name, err)
		}
	}
}

// end looks for the block of zeros that ends an archive. A tar that died in the middle left none, as do some writers.
func (u *streamer) end() {
	if u.in.zeros < 512 {
		u.made.Notes = append(u.made.Notes, "the archive has no end mark: it may have been cut")
	}
}

// entry unpacks one entry. A later one replaces an earlier one of its name, but for directories, which are joined.
func (u *streamer) entry(h *tar.Header) error {
	if len(h.Name) > maxStreamPath {
		return fmt.Errorf("the path is longer than %d bytes", maxStreamPath)
	}
	// As if the directory were the root: "/a" and "../a" are "a".
	name := path.Clean("/" + h.Name)[1:]
	if name == "" && h.Typeflag != tar.TypeDir {
		return errors.New("the root is no directory")
	} else if name == "" {
		return u.dir(".", h) // COPY gives its time to what it makes of the context
	}
	if err := u.parents(path.Dir(name)); err != nil {
		return err
	}
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse:
		return u.file(name, h)
	case tar.TypeDir:
		return u.dir(name, h)
	case tar.TypeSymlink:
		if err := u.clear(name); err != nil {
			return err
		}
		return errors.Join(u.root.Symlink(h.Linkname, name), u.setTime(name, h))
	case tar.TypeLink:
		return u.link(name, h)
	case tar.TypeFifo:
		return u.fifo(name, h)
	case tar.TypeChar, tar.TypeBlock:
		u.leave(leftDevices, name) // the caller's disk is no place for them
		return u.clear(name)
	}
	return fmt.Errorf("unknown type %q", h.Typeflag)
}

// parents makes the directories above an entry that the archive does not have: with mode 0755, whatever the caller's umask.
func (u *streamer) parents(dir string) error {
	if info, err := u.root.Stat(dir); err == nil && info.IsDir() {
		return nil
	}
	parts := strings.Split(dir, "/")
	first := sort.Search(len(parts), func(i int) bool {
		_, err := u.root.Stat(path.Join(parts[:i+1]...))
		return err != nil
	})
	if err := u.root.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	f, err := u.root.Open(path.Join(parts[:first+1]...))
	if err != nil {
		return err
	}
	for _, name := range parts[first+1:] {
		next, err := openIn(f, name)
		if err := errors.Join(err, f.Chmod(0o755), f.Close()); err != nil {
			return err
		}
		f = next
	}
	return errors.Join(f.Chmod(0o755), notTooDeep(f), f.Close())
}

// notTooDeep refuses directories that links have nested deeper than any path is long: they could hardly be read, or removed.
func notTooDeep(dir *os.File) error {
	if _, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", dir.Fd())); errors.Is(err, unix.ENAMETOOLONG) {
		return fmt.Errorf("directories are nested deeper than %d bytes of path", maxStreamPath)
	}
	return nil
}

// clear makes room for an entry.
func (u *streamer) clear(name string) error {
	err := u.root.Remove(name)
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return u.root.RemoveAll(name)
}

func (u *streamer) file(name string, h *tar.Header) error {
	if err := u.clear(name); err != nil {
		return err
	}
	if err := u.room(h.Size); err != nil {
		return err
	}
	f, err := u.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, heldFileMode)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := u.fill(f); err != nil {
		return err
	}
	if err := u.dress(f, name, h, 0o400, heldFileMode); err != nil {
		return err
	}
	if h.ModTime.After(u.made.Newest) {
		u.made.Newest = h.ModTime
	}
	return errors.Join(f.Close(), u.setTime(name, h))
}

var zeros [256 << 10]byte

// fill writes the content of the current entry. Zeros stay holes: a sparse file takes no more room than it did.
func (u *streamer) fill(f *os.File) error {
	for at := int64(0); ; {
		n, err := streamContent{u}.Read(u.buf)
		if !bytes.Equal(u.buf[:n], zeros[:n]) {
			if _, err := f.WriteAt(u.buf[:n], at); err != nil {
				return err
			}
		}
		at += int64(n)
		if errors.Is(err, io.EOF) {
			return f.Truncate(at)
		}
		if err != nil {
			return err
		}
	}
}

func (u *streamer) dir(name string, h *tar.Header) error {
	if info, err := u.root.Lstat(name); err != nil || !info.IsDir() {
		if err := errors.Join(u.clear(name), u.root.Mkdir(name, heldDirMode)); err != nil {
			return err
		}
	}
	f, err := u.root.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := notTooDeep(f); err != nil {
		return err
	}
	u.times = append(u.times, streamTime{name, h.ModTime})
	return u.dress(f, name, h, 0o700, heldDirMode)
}

// dress gives a file or directory its attributes and mode. Without the rights in needs the owner could not use it, so the mode is kept apart.
func (u *streamer) dress(f *os.File, name string, h *tar.Header, needs, held uint32) error {
	attrs, err := layer.Xattrs(h)
	if err != nil {
		return err
	}
	for _, x := range attrs {
		attr := x.Name
		if attr == "security.capability" {
			attr = xattrCapability
		} else if !strings.HasPrefix(attr, "user.") {
			continue // access control lists are not the context's
		}
		if err := unix.Fsetxattr(int(f.Fd()), attr, x.Value, 0); err != nil {
			u.leave(leftXattrs, name)
		}
	}
	mode := uint32(h.Mode & 0o7777)
	if mode&needs == needs && mode != held {
		return unix.Fchmod(int(f.Fd()), mode)
	}
	if mode != held {
		if err := unix.Fsetxattr(int(f.Fd()), xattrMode, strconv.AppendUint(nil, uint64(mode), 8), 0); err != nil {
			return fmt.Errorf("keep mode %04o, which its owner cannot read with: %w", mode, err)
		}
	} else {
		_ = unix.Fremovexattr(int(f.Fd()), xattrMode) // a directory that the archive has twice
	}
	return unix.Fchmod(int(f.Fd()), held)
}

func (u *streamer) link(name string, h *tar.Header) error {
	target := path.Clean("/" + h.Linkname)[1:]
	if target == name {
		_, err := u.root.Lstat(name)
		return err
	}
	if info, err := u.root.Lstat(target); err != nil || info.IsDir() {
		return fmt.Errorf("hard link to %.300q, which the archive does not have before it as a file", h.Linkname)
	}
	if err := u.clear(name); err != nil {
		return err
	}
	return u.root.Link(target, name)
}

func (u *streamer) fifo(name string, h *tar.Header) error {
	if err := u.clear(name); err != nil {
		return err
	}
	dir, err := u.root.Open(path.Dir(name))
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := unix.Mknodat(int(dir.Fd()), path.Base(name), unix.S_IFIFO|0o600, 0); err != nil {
		return err
	}
	// Just made here, so that it is no link.
	return errors.Join(unix.Fchmodat(int(dir.Fd()), path.Base(name), uint32(h.Mode&0o7777), 0), u.setTime(name, h))
}

func (u *streamer) setTime(name string, h *tar.Header) error {
	return linkTime(u.root, name, h.ModTime)
}

// room asks for free space before it is needed: a header's number must not fill the disk first.
func (u *streamer) room(size int64) error {
	if size > u.free {
		var st unix.Statfs_t
		dir, err := u.root.Open(".")
		if err != nil {
			return err
		}
		defer dir.Close()
		if err := unix.Fstatfs(int(dir.Fd()), &st); err != nil {
			return fmt.Errorf("ask for free space: %w", err)
		}
		u.free = int64(min(st.Bavail, 1<<62/uint64(max(st.Bsize, 1))) * uint64(max(st.Bsize, 1)))
		if st.Blocks == 0 { // it tells no size
			u.free = 1 << 62
		}
		if size > u.free {
			return fmt.Errorf("%d bytes of content, %d free: %w", size, u.free, unix.ENOSPC)
		}
	}
	u.free -= size
	return nil
}

// A streamContent is the content of the current entry. It refuses to grow out of proportion to the archive.
type streamContent struct{ *streamer }

func (c streamContent) Read(p []byte) (int, error) {
	n, err := c.tar.Read(p)
	c.content += int64(n)
	if c.content > sparseFrom && c.content/sparseRatio > c.in.n {
		return 0, fmt.Errorf("content is more than %d times as long as the archive", sparseRatio)
	}
	return n, err
}

func (u *streamer) leave(reason int, name string) {
	if l := &u.left[reason]; l.count == 0 {
		l.first = name
	}
	u.left[reason].count++
}

// finish sets the times of directories and says what was left out.
func (u *streamer) finish() error {
	for _, d := range u.times { // of a directory that the archive has twice, the last word counts
		if info, err := u.root.Lstat(d.name); err != nil || !info.IsDir() {
			continue // something else has the name by now
		}
		if err := linkTime(u.root, d.name, d.time); err != nil {
			return err
		}
	}
	for reason, text := range [leftReasons]string{
		leftDevices: "device nodes are left out", leftXattrs: "extended attributes are lost, the state's file system cannot hold them",
	} {
		if l := u.left[reason]; l.count > 0 {
			u.made.Notes = append(u.made.Notes, fmt.Sprintf("%s: %d entries, the first is %.300q", text, l.count, l.first))
		}
	}
	return nil
}

// drain reads what follows the archive's end: whoever writes it need not see a broken pipe. A second archive there would be lost silently.
func (u *streamer) drain() error {
	buf, more := make([]byte, 64<<10), false
	for {
		n, err := contextReader{u.ctx, u.in}.Read(buf)
		if !more && len(bytes.Trim(buf[:n], "\x00")) > 0 {
			more = true
			u.made.Notes = append(u.made.Notes, "what follows the end of the archive is ignored")
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read archive: %w", err)
		}
	}
}
