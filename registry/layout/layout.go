// Package layout is the OCI image layout on disk (image-spec, image-layout.md): the local store, and archives.
//
// The store is <state>/registry: oci-layout, index.json, blobs/sha256. index.json holds one descriptor per tag, with the
// full reference ("docker.io/library/debian:12") in the annotation "org.opencontainers.image.ref.name"
// (skopeo addresses oci:DIR:NAME by it). Beside them are two entries of ours, which other tools ignore: ".lock", flocked while
// index.json changes, and ".tmp", blobs in the making. It uses no network.
package layout

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"img/cache/atomicfile"
	"img/registry/image"
)

const (
	layoutFile = `{"imageLayoutVersion":"1.0.0"}`
	emptyIndex = `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}`
)

// A Store is a layout directory. It implements image.Fetcher, image.Pusher and image.Resolver. Safe for concurrent use, also
// by several processes: index.json changes under a flock and by rename.
type Store struct {
	dir      string
	readOnly bool
}

// Open uses dir, making an empty layout when missing, and drops what killed processes left unfinished.
func Open(dir string) (*Store, error) {
	s := &Store{dir: dir}
	for _, sub := range []string{"blobs/sha256", ".tmp"} {
		if err := atomicfile.MkdirAll(filepath.Join(dir, sub)); err != nil {
			return nil, fmt.Errorf("open image store: %w", err)
		}
	}
	if err := s.init(); err != nil {
		return nil, fmt.Errorf("open image store: %w", err)
	}
	s.sweep()
	return s, nil
}

// init writes what is missing; oci-layout last, since it says that the rest is there.
func (s *Store) init() error {
	if err := s.checkVersion(); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	unlock, err := s.lock()
	if err != nil {
		return err
	}
	defer unlock()
	if _, err := os.Lstat(s.path("index.json")); errors.Is(err, fs.ErrNotExist) {
		if err := atomicfile.Write(s.path("index.json"), []byte(emptyIndex), atomicfile.Options{}); err != nil {
			return err
		}
	}
	return atomicfile.Write(s.path("oci-layout"), []byte(layoutFile), atomicfile.Options{})
}

// OpenReadOnly uses a layout of somebody else's (oci-layout://DIR): nothing is made or written; blob files that are links are refused.
func OpenReadOnly(dir string) (*Store, error) {
	s := &Store{dir: dir, readOnly: true}
	if err := s.checkVersion(); err != nil {
		return nil, fmt.Errorf("open OCI layout: %w", err)
	}
	for _, sub := range []string{"blobs", "blobs/sha256"} {
		fi, err := os.Lstat(s.path(sub))
		if err != nil {
			return nil, fmt.Errorf("open OCI layout: %w", err)
		}
		if !fi.IsDir() {
			return nil, fmt.Errorf("open OCI layout: %s is not a directory", s.path(sub))
		}
	}
	return s, nil
}

func (s *Store) checkVersion() error {
	raw, err := s.readFile("oci-layout", 4096)
	if err != nil {
		return err
	}
	if !bytes.Contains(raw, []byte(`"1.0.`)) {
		return fmt.Errorf("%s: unknown layout version: %.100q", s.path("oci-layout"), raw)
	}
	return nil
}

func (s *Store) path(elem ...string) string {
	return filepath.Join(append([]string{s.dir}, elem...)...)
}

func (s *Store) blobPath(h v1.Hash) string { return s.path("blobs", h.Algorithm, h.Hex) }

// open opens a regular file that is no link; a FIFO in a foreign layout must not block us.
func open(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if errors.Is(err, syscall.ELOOP) {
		return nil, fmt.Errorf("open %s: symbolic links are not followed", path)
	}
	if err != nil {
		return nil, err
	}
	fi, err := f.Stat()
	if err == nil && !fi.Mode().IsRegular() {
		err = fmt.Errorf("open %s: not a regular file", path)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func (s *Store) readFile(name string, limit int64) ([]byte, error) {
	f, err := open(s.path(name))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(raw)) > limit {
		return nil, fmt.Errorf("%s is larger than %d bytes", s.path(name), limit)
	}
	return raw, nil
}

// Has reports whether the blob is there with the right size.
func (s *Store) Has(ctx context.Context, d v1.Descriptor) (bool, error) {
	if err := image.CheckDigest(d.Digest); err != nil {
		return false, err
	}
	fi, err := os.Lstat(s.blobPath(d.Digest))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return fi.Mode().IsRegular() && fi.Size() == d.Size, nil
}

// Fetch opens a blob; image.ErrNotFound if there is none.
func (s *Store) Fetch(ctx context.Context, d v1.Descriptor) (io.ReadCloser, error) {
	f, err := s.OpenBlob(d)
	if err != nil {
		return nil, err // not f: a nil *os.File is no nil ReadCloser
	}
	return f, nil
}

// OpenBlob opens a blob's file. Its size is d's; its content is not verified.
func (s *Store) OpenBlob(d v1.Descriptor) (*os.File, error) {
	if err := image.CheckDigest(d.Digest); err != nil {
		return nil, err
	}
	f, err := open(s.blobPath(d.Digest))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("blob %s: %w", d.Digest, image.ErrNotFound)
	}
	if err != nil {
		return nil, err
	}
	fi, err := f.Stat()
	if err == nil && fi.Size() != d.Size {
		// A power loss can cut a blob that no tag had made durable: it counts as absent, and Push replaces it.
		err = fmt.Errorf("blob %s has %d bytes instead of %d: %w", d.Digest, fi.Size(), d.Size, image.ErrNotFound)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// Push verifies and keeps a blob. It is not durable until something is tagged that names it.
func (s *Store) Push(ctx context.Context, d v1.Descriptor, r io.Reader) error {
	has, err := s.Has(ctx, d)
	if err != nil || has {
		return err
	}
	w, err := s.Create()
	if err != nil {
		return err
	}
	defer w.Discard()
	if _, err := io.Copy(w.File, image.Verify(&contextReader{ctx, r}, d)); err != nil {
		return err
	}
	return w.Commit(d)
}

// contextReader ends a long copy when the context does.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c *contextReader) Read(p []byte) (int, error) {
	if c.ctx.Err() != nil {
		return 0, context.Cause(c.ctx)
	}
	return c.r.Read(p)
}

// Blobs calls f for each blob in the store. used is the later of the times of last change and last reading, as far as the
// file system keeps them.
func (s *Store) Blobs(f func(digest v1.Hash, size int64, used time.Time) error) error {
	dir, err := os.Open(s.path("blobs", "sha256"))
	if err != nil {
		return err
	}
	defer dir.Close()
	for {
		names, err := dir.Readdirnames(1000)
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		for _, name := range names {
			h := v1.Hash{Algorithm: "sha256", Hex: name}
			fi, err := os.Lstat(s.blobPath(h))
			if err != nil || !fi.Mode().IsRegular() || image.CheckDigest(h) != nil {
				continue // deleted meanwhile, or not ours
			}
			if err := f(h, fi.Size(), used(fi)); err != nil {
				return err
			}
		}
	}
}

func used(fi fs.FileInfo) time.Time {
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return fi.ModTime()
	}
	if read := time.Unix(st.Atim.Unix()); read.After(fi.ModTime()) {
		return read
	}
	return fi.ModTime()
}

// Delete removes a blob; image.ErrNotFound if there is none.
func (s *Store) Delete(digest v1.Hash) error {
	if err := s.writable(); err != nil {
		return err
	}
	if err := image.CheckDigest(digest); err != nil {
		return err
	}
	err := os.Remove(s.blobPath(digest))
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("blob %s: %w", digest, image.ErrNotFound)
	}
	return err
}

func (s *Store) writable() error {
	if s.readOnly {
		return fmt.Errorf("layout %s is opened for reading only", s.dir)
	}
	return nil
}

// Reachable returns the digests that a descriptor names, itself included; what is missing is skipped.
func (s *Store) Reachable(ctx context.Context, d v1.Descriptor) ([]v1.Hash, error) {
	var out []v1.Hash
	err := s.walk(ctx, d, func(d v1.Descriptor, there bool) error {
		if there {
			out = append(out, d.Digest)
		}
		return nil
	})
	return out, err
}

// Size returns how many bytes everything that a descriptor names takes in the store; what is missing takes none.
func (s *Store) Size(ctx context.Context, d v1.Descriptor) (n int64, err error) {
	err = s.walk(ctx, d, func(d v1.Descriptor, there bool) error {
		if there {
			n += d.Size
		}
		return nil
	})
	return n, err
}

// walk calls f once for each digest that d names, itself first, and says whether the store has it.
func (s *Store) walk(ctx context.Context, d v1.Descriptor, f func(d v1.Descriptor, there bool) error) error {
	seen := map[v1.Hash]bool{}
	var visit func(d v1.Descriptor, depth int) error
	visit = func(d v1.Descriptor, depth int) error {
		if seen[d.Digest] {
			return nil
		}
		if seen[d.Digest] = true; len(seen) > image.MaxDescriptors {
			return fmt.Errorf("%s names more than %d descriptors", d.Digest, image.MaxDescriptors)
		}
		there, err := s.Has(ctx, d)
		if err != nil {
			return err
		}
		if err := f(d, there); err != nil || !there || !d.MediaType.IsIndex() && !d.MediaType.IsImage() {
			return err
		}
		if depth > image.MaxDepth+1 {
			return fmt.Errorf("index %s: indexes are nested deeper than %d", d.Digest, image.MaxDepth)
		}
		raw, err := image.ReadAll(ctx, s, d, image.MaxManifest)
		if err != nil {
			return fmt.Errorf("read %s: %w", d.Digest, err)
		}
		named, err := image.Children(raw)
		if err != nil {
			return fmt.Errorf("manifest %s: %w", d.Digest, err)
		}
		for _, c := range named {
			if err := visit(c, depth+1); err != nil {
				return err
			}
		}
		return nil
	}
	return visit(d, 1)
}
