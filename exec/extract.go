package exec

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"img/exec/inner"
	"img/registry/image"
	"img/snapshot"
	"img/snapshot/layer"
	"img/userns"
)

// ExtractName is the name that the extraction child is started under: cmd/img calls Extract when it finds it.
const ExtractName = "img-extract"

// extractArgs tell the child what comes on its standard input. Descriptor 3 is the directory to fill, 4 takes the answer.
type extractArgs struct {
	// MediaType is the layer's; "" means that the compression is found out (archives of ADD).
	MediaType string
	// DiffID, if set, must be the digest of the uncompressed stream.
	DiffID string
	IDs    uint32
	// Archive: no whiteouts, as in the archives of ADD.
	Archive bool
}

type extractReply struct {
	Applied *layer.Applied
	Err     string
	Errno   int
}

// extract applies an archive in a child that has its own mount namespace and has pivoted into the directory: whatever is in the
// archive, there is nothing else to reach.
func (w *world) extract(ctx context.Context, blob *os.File, dir string, a extractArgs) (*layer.Applied, error) {
	args, err := json.Marshal(a)
	if err != nil {
		return nil, err
	}
	target, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer target.Close()
	r, wr, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	var stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	cmd.Args = []string{ExtractName, string(args)}
	cmd.Env, cmd.Stdin, cmd.Stderr = []string{}, blob, &stderr
	cmd.ExtraFiles = []*os.File{target, wr}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS,
		Credential: userns.WithoutGroups(),
	}
	err = cmd.Start()
	wr.Close()
	if err != nil {
		return nil, fmt.Errorf("start the extraction: %w", err)
	}
	answer, rerr := io.ReadAll(r)
	werr := cmd.Wait()
	var reply extractReply
	if rerr == nil {
		rerr = inner.Unmarshal(answer, &reply)
	}
	switch {
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case rerr != nil:
		return nil, fmt.Errorf("the extraction died (%v): %s", werr, strings.TrimSpace(stderr.String()))
	case reply.Err != "" && reply.Errno != 0:
		return nil, errnoError{errors.New(reply.Err), syscall.Errno(reply.Errno)}
	case reply.Err != "":
		return nil, badInput(reply.Err)
	}
	return reply.Applied, nil
}

// badInput is an error of the archive, not of this host.
type badInput string

func (e badInput) Error() string { return string(e) }

// Extract is the extraction child.
func Extract(args string) error {
	var reply extractReply
	var err error
	if reply.Applied, err = extractHere(args); err != nil {
		var n syscall.Errno
		errors.As(err, &n)
		reply = extractReply{Err: err.Error(), Errno: int(n)}
	}
	answer, err := inner.Marshal(reply)
	if err != nil {
		return err
	}
	_, err = os.NewFile(4, "answer").Write(answer)
	return err
}

func extractHere(args string) (*layer.Applied, error) {
	var a extractArgs
	if err := json.Unmarshal([]byte(args), &a); err != nil {
		return nil, err
	}
	unix.Umask(0)
	target := os.NewFile(3, "target")
	if err := enterTarget(target); err != nil {
		return nil, err
	}
	in := io.Reader(bufio.NewReaderSize(os.Stdin, 256<<10))
	var plain io.ReadCloser
	var err error
	if a.Archive {
		plain, err = image.DecompressAny(in)
	} else {
		plain, err = image.Decompress(in, a.MediaType)
	}
	if err != nil {
		return nil, err
	}
	defer plain.Close()
	h := sha256.New()
	stream := io.TeeReader(plain, h)
	applied, err := layer.Apply(context.Background(), stream, target, layer.ApplyOptions{IDs: a.IDs, Archive: a.Archive})
	if err != nil {
		return nil, err
	}
	// What follows the archive's end belongs to the digest.
	if _, err := io.Copy(io.Discard, stream); err != nil {
		return nil, err
	}
	if got := "sha256:" + hex.EncodeToString(h.Sum(nil)); a.DiffID != "" && got != a.DiffID {
		return nil, fmt.Errorf("the uncompressed layer has the digest %s, the image's configuration says %s", got, a.DiffID)
	}
	return applied, nil
}

// enterTarget makes the target the root of this process's mount namespace and lets go of everything else but /proc/self/fd, which setting
// attributes needs: it is not reachable from the new root.
func enterTarget(target *os.File) error {
	runtime.LockOSThread()
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	self := fmt.Sprintf("/proc/self/fd/%d", target.Fd())
	dir, err := os.Readlink(self)
	if err != nil {
		return err
	}
	if err := unix.Mount(dir, dir, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind %s: %w", dir, err)
	}
	if err := unix.Chdir(dir); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot_root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("detach the old root: %w", err)
	}
	return unix.Chdir("/")
}

// isArchive reports whether a file is a tar archive in any compression: its first header parses. The file is read from its start again.
func isArchive(f *os.File) (bool, error) {
	defer f.Seek(0, io.SeekStart)
	plain, err := image.DecompressAny(f)
	if err != nil {
		return false, nil
	}
	defer plain.Close()
	_, err = tar.NewReader(plain).Next()
	return err == nil, nil
}

// unpackArchive extracts an archive of ADD: into a directory of its own first, then over the root as a copy is.
func (w *world) unpackArchive(ctx context.Context, archive *os.File, t *target, dst string) error {
	st, err := w.snaps.Stage()
	if err != nil {
		return err
	}
	defer st.Discard()
	applied, err := w.extract(ctx, archive, st.Dir(), extractArgs{IDs: t.ids, Archive: true})
	if err != nil {
		return err
	}
	dir, err := os.Open(st.Dir())
	if err != nil {
		return err
	}
	defer dir.Close()
	t.replace = true
	defer func() { t.replace = false }()
	implicit := map[string]bool{}
	for _, p := range applied.Implicit {
		implicit[p] = true
	}
	for _, e := range applied.Entries {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := t.merge(dst, e, viewFile{dir, e}, implicit[e.Path]); err != nil {
			return err
		}
	}
	for _, l := range applied.Links {
		if err := t.mergeLink(dst, l); err != nil {
			return err
		}
	}
	return nil
}

// mergeLink makes a hard link to a file that is not in the archive, but at the destination.
func (t *target) mergeLink(dst string, l layer.Link) error {
	to, err := t.within(dst, l.Path)
	if err != nil {
		return err
	}
	first, err := t.within(dst, l.Target)
	if err != nil {
		return err
	}
	if to == first {
		return nil
	}
	if st, err := statIn(t.root, first); err != nil || st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return fmt.Errorf("hard link %s: there is no file %s", l.Path, l.Target)
	}
	if err := t.imply(path.Dir(to)); err != nil {
		return err
	}
	fd, base, err := t.dir(to)
	if err != nil {
		return err
	}
	if err := t.clear(fd, base, to); err != nil {
		return err
	}
	return t.link(first, fd, base, to)
}

// merge puts one entry of an extracted archive in place. A directory that the archive only implies follows links of the root and belongs
// to 0:0 whatever --chown says; anything else replaces what is there, two directories excepted.
func (t *target) merge(dst string, e snapshot.Entry, c viewFile, implied bool) error {
	if e.Path == "." {
		return nil
	}
	to, err := t.within(dst, e.Path)
	if err != nil {
		return err
	}
	if implied {
		return t.imply(to)
	}
	if e.HardLink != "" {
		if e.HardLink, err = t.within(dst, e.HardLink); err != nil {
			return err
		}
	}
	_, err = t.put(to, e, c)
	return err
}

// within returns where an archive's path lies: links on the way are followed, the last component is not.
func (t *target) within(dst, p string) (string, error) {
	parent, err := t.resolve(path.Dir(path.Join(dst, p)))
	return path.Join(parent, path.Base(p)), err
}

func (t *target) imply(p string) error {
	defer func(chown bool) { t.chown = chown }(t.chown)
	t.chown = false
	real, err := t.resolve(p)
	if err != nil {
		return err
	}
	return t.mkdirAll(real)
}
