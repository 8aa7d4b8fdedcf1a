package layer

import (
	"archive/tar"
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"img/snapshot"
)

// ErrChanged says that a file is no longer what its entry says.
var ErrChanged = errors.New("changed on disk")

// Write writes a change set as a deterministic layer tar: sorted, PAX only where needed, no times but mtime in whole
// seconds, no user names, explicit whiteouts (.wh.NAME). fsys is the directory that holds the files of the entries, each
// at its path; entries have to come sorted. The root's own entry is written as "./".
func Write(ctx context.Context, w io.Writer, entries func(yield func(snapshot.Entry) error) error, fsys *os.File, o WriteOptions) error {
	buf := buffers.Get().(*[bufferSize]byte)
	defer buffers.Put(buf)
	// Headers and small files in one write each would cost a call of hash and compressor for 512 bytes.
	bw := bufio.NewWriterSize(w, 64<<10)
	lw := &writer{ctx: ctx, tar: tar.NewWriter(bw), root: int(fsys.Fd()), parentFD: -1, o: o, buf: buf, digest: sha256.New()}
	defer lw.close()
	defer runtime.KeepAlive(fsys)
	if err := entries(lw.entry); err != nil {
		return err
	}
	end := lw.tar.Close
	if o.More {
		end = lw.tar.Flush
	}
	if err := end(); err != nil {
		return fmt.Errorf("end layer: %w", err)
	}
	return bw.Flush()
}

type writer struct {
	ctx    context.Context
	tar    *tar.Writer
	root   int
	o      WriteOptions
	buf    *[bufferSize]byte
	digest hash.Hash

	last string // path of the last entry

	parent   string
	parentFD int
}

func (w *writer) close() {
	if w.parentFD >= 0 {
		unix.Close(w.parentFD)
	}
}

func (w *writer) entry(e snapshot.Entry) error {
	if err := w.ctx.Err(); err != nil {
		return context.Cause(w.ctx)
	}
	if err := w.write(&e); err != nil {
		return fmt.Errorf("write %q to layer: %w", e.Path, err)
	}
	return nil
}

func (w *writer) write(e *snapshot.Entry) error {
	if err := w.check(e); err != nil {
		return err
	}
	h, err := header(e, w.o)
	if err != nil {
		return err
	}
	if w.o.Below != "" {
		put(h, w.o.Below)
	}
	if h.Typeflag == tar.TypeReg {
		return w.file(h, e)
	}
	return w.tar.WriteHeader(h)
}

// check refuses what would be read back as something else.
func (w *writer) check(e *snapshot.Entry) error {
	if w.last != "" && snapshot.Compare(w.last, e.Path) >= 0 {
		return fmt.Errorf("entries are not sorted: it comes after %q", w.last)
	}
	w.last = e.Path
	if !w.o.Root && (strings.HasPrefix(e.Path, whPrefix) || strings.Contains(e.Path, "/"+whPrefix)) {
		return errors.New("names that begin with .wh. mean a removal in a layer")
	}
	if e.Type == snapshot.Removed && (w.o.Root || e.Path == ".") {
		return errors.New("a removal has no meaning here")
	}
	return nil
}

// header is pure: equal entries and options give equal bytes. archive/tar takes USTAR where that holds everything, else
// PAX.
func header(e *snapshot.Entry, o WriteOptions) (*tar.Header, error) {
	if e.Type == snapshot.Removed {
		dir, base := split(e.Path)
		return &tar.Header{Typeflag: tar.TypeReg, Name: join(dir, whPrefix+base), ModTime: time.Unix(0, 0)}, nil
	}
	h := &tar.Header{
		Name: e.Path, Mode: int64(e.Mode & 0o7777), Uid: int(e.UID), Gid: int(e.GID),
		ModTime:    time.Unix(seconds(e.MTime, o), 0),
		PAXRecords: records(e.Xattrs),
	}
	return h, kind(h, e)
}

// put moves an entry into a directory. Links keep their targets, but for hard links, which are paths of the archive.
func put(h *tar.Header, dir string) {
	h.Name = dir + "/" + strings.TrimPrefix(h.Name, "./")
	if h.Typeflag == tar.TypeLink {
		h.Linkname = dir + "/" + h.Linkname
	}
}

// kind fills in the type and what depends on it.
func kind(h *tar.Header, e *snapshot.Entry) error {
	if e.HardLink != "" {
		h.Typeflag, h.Linkname = tar.TypeLink, e.HardLink
		return nil
	}
	switch e.Type {
	case snapshot.Dir:
		h.Typeflag, h.Name = tar.TypeDir, e.Path+"/"
	case snapshot.File:
		h.Typeflag, h.Size = tar.TypeReg, e.Size
	case snapshot.Symlink:
		h.Typeflag, h.Linkname, h.Mode = tar.TypeSymlink, e.Link, 0o777
	case snapshot.Fifo:
		h.Typeflag = tar.TypeFifo
	case snapshot.Char, snapshot.Block:
		h.Typeflag, h.Devmajor, h.Devminor = tar.TypeChar, int64(e.Major), int64(e.Minor)
		if e.Type == snapshot.Block {
			h.Typeflag = tar.TypeBlock
		}
	default:
		return fmt.Errorf("unknown type %q", e.Type)
	}
	return nil
}

// seconds rounds a time down, so that it does not depend on what the file system can store, and applies the epoch.
func seconds(ns int64, o WriteOptions) int64 {
	s := ns / int64(time.Second)
	if ns%int64(time.Second) < 0 {
		s--
	}
	if o.Epoch != nil && (o.FromContext || s > *o.Epoch) {
		return *o.Epoch
	}
	return s
}

func records(attrs []snapshot.Xattr) map[string]string {
	if len(attrs) == 0 {
		return nil
	}
	m := make(map[string]string, len(attrs))
	for _, x := range attrs {
		m[paxXattr+encodeName.Replace(x.Name)] = string(x.Value)
	}
	return m
}

// file writes a header and the content, which has to be what the entry says.
func (w *writer) file(h *tar.Header, e *snapshot.Entry) error {
	if e.Type == snapshot.Removed {
		return w.tar.WriteHeader(h)
	}
	fd, err := w.open(e.Path)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Size != e.Size {
		return fmt.Errorf("%w: mode %#o, %d bytes, recorded a file of %d", ErrChanged, st.Mode, st.Size, e.Size)
	}
	if err := w.tar.WriteHeader(h); err != nil {
		return err
	}
	return w.content(descriptor(fd), e)
}

// content copies exactly the bytes that the header announces.
func (w *writer) content(f io.Reader, e *snapshot.Entry) error {
	var out io.Writer = w.tar
	verify := e.Digest != "" && !w.o.Unverified
	if verify {
		w.digest.Reset()
		out = io.MultiWriter(w.tar, w.digest)
	}
	// One byte more than there should be, so that a file that grew is seen.
	n, err := io.CopyBuffer(out, &ctxReader{ctx: w.ctx, r: io.LimitReader(f, e.Size+1)}, w.buf[:])
	if errors.Is(err, tar.ErrWriteTooLong) || err == nil && n != e.Size {
		return fmt.Errorf("%w: it has another size than the recorded %d bytes", ErrChanged, e.Size)
	}
	if err != nil {
		return err
	}
	if verify {
		if got := hex.EncodeToString(w.digest.Sum(nil)); got != e.Digest {
			return fmt.Errorf("%w: its digest is %s, recorded %s", ErrChanged, got, e.Digest)
		}
	}
	return nil
}

// open opens a file; the directory of the last one stays open, since entries come sorted.
func (w *writer) open(p string) (int, error) {
	dir, base := split(p)
	if w.parentFD < 0 || w.parent != dir {
		w.close()
		var err error
		if w.parentFD, err = openDir(w.root, dir, unix.O_PATH); err != nil {
			return -1, fmt.Errorf("open directory: %w", err)
		}
		w.parent = dir
	}
	// Not blocking: it may be a fifo by now.
	fd, err := unix.Openat(w.parentFD, base, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open: %w", err)
	}
	return fd, nil
}
