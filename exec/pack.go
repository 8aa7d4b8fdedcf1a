package exec

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"os"
	"slices"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"
	"github.com/klauspost/pgzip"

	"img/cache"
	"img/dag"
	"img/snapshot"
	"img/snapshot/layer"
)

// packed is the output of a Pack.
type packed struct {
	Layer dag.Layer `json:"layer"`
	// Snapshot is what was packed.
	Snapshot snapshot.Name `json:"snapshot"`
	// Created is when, in seconds since 1970: the time of the layer's entry in an image's history.
	Created int64 `json:"created"`
}

func packKey(h *cache.Hash, op *dag.Pack, in []cache.Output) {
	h.Line("of", string(name(op.Of, in)))
	if op.Squash {
		h.Line("squash", string(name(op.Above, in)))
		for _, r := range op.FromContexts {
			h.Line("step from a context", string(name(r, in)))
		}
	}
	h.Line("compression", op.Compression)
	h.Line("docker", op.Docker)
	h.Line("epoch", op.Epoch)
	h.Line("context", op.FromContext)
}

func (x *Executor) havePacked(ctx context.Context, out cache.Output) bool {
	p, err := decode[packed](out)
	if err != nil {
		return false
	}
	d, err := descriptor(p.Layer)
	if err != nil {
		return false
	}
	ok, err := x.o.Layout.Has(ctx, d)
	return ok && err == nil
}

type packArgs struct {
	Name        snapshot.Name
	Compression string
	Epoch       *int64
	FromContext bool
	// Squash, if given, packs all changes from it to Name.
	Squash *squashArgs
}

type squashArgs struct {
	Above snapshot.Name
	// FromContexts are the snapshots whose entries come from a build context.
	FromContexts []snapshot.Name
}

type packReply struct {
	DiffID, Digest string
	Size           int64
}

func (x *Executor) pack(ctx context.Context, op *dag.Pack, in []cache.Output) (cache.Output, error) {
	n := name(op.Of, in)
	w, err := x.o.Layout.Create()
	if err != nil {
		return "", err
	}
	defer w.Discard()
	a := packArgs{Name: n, Compression: op.Compression, Epoch: op.Epoch, FromContext: op.FromContext}
	if op.Squash {
		if err := x.materialize(ctx, n); err != nil {
			return "", err
		}
		a.Squash = &squashArgs{Above: name(op.Above, in)}
		for _, r := range op.FromContexts {
			a.Squash.FromContexts = append(a.Squash.FromContexts, name(r, in))
		}
	}
	var r packReply
	if err := x.call(ctx, "pack", a, &r, w.File); err != nil {
		return "", err
	}
	l := dag.Layer{DiffID: r.DiffID, Digest: r.Digest, Size: r.Size, MediaType: string(mediaType(op.Compression, op.Docker))}
	d, err := descriptor(l)
	if err != nil {
		return "", err
	}
	if err := w.Commit(d); err != nil {
		return "", err
	}
	return encode(packed{l, n, time.Now().Unix()})
}

// mediaType is a layer's, as image-spec (layer.md) and Docker's schema 2 have it. Docker has none for zstd.
func mediaType(compression string, docker bool) types.MediaType {
	switch {
	case compression == dag.Zstd:
		return types.OCILayerZStd
	case compression == dag.Uncompressed && docker:
		return types.DockerUncompressedLayer
	case compression == dag.Uncompressed:
		return types.OCIUncompressedLayer
	case docker:
		return types.DockerLayer
	}
	return types.OCILayer
}

// gzipBlock and gzipLevel are fixed, so that the same layer has the same digest on every machine, whatever its number of cores.
const (
	gzipBlock = 1 << 20
	gzipLevel = 5
)

// Compressor compresses a layer in the form that Pack has, to be closed by the caller.
func Compressor(w io.Writer, compression string) (io.WriteCloser, error) {
	switch compression {
	case dag.Uncompressed:
		return nopCloser{w}, nil
	case dag.Zstd:
		return zstd.NewWriter(w, zstd.WithEncoderLevel(zstd.SpeedDefault), zstd.WithEncoderConcurrency(1))
	case dag.Gzip, "":
		z, err := pgzip.NewWriterLevel(w, gzipLevel)
		if err != nil {
			return nil, err
		}
		return z, z.SetConcurrency(gzipBlock, 4)
	}
	return nil, fmt.Errorf("unknown compression %q (gzip, zstd and uncompressed are known)", compression)
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

// A counter hashes and counts what passes to w.
type counter struct {
	w io.Writer
	h hash.Hash
	n int64
}

func newCounter(w io.Writer) *counter { return &counter{w: w, h: sha256.New()} }

func (c *counter) Write(b []byte) (int, error) {
	n, err := c.w.Write(b)
	c.h.Write(b[:n])
	c.n += int64(n)
	return n, err
}

func (c *counter) digest() string { return "sha256:" + hex.EncodeToString(c.h.Sum(nil)) }

// pack writes a layer in one pass: tar, DiffID, compression, digest.
func (w *world) pack(ctx context.Context, a packArgs, files []*os.File) (packReply, error) {
	c, err := w.changes(ctx, a)
	if err != nil {
		return packReply{}, err
	}
	defer c.close()
	blob := newCounter(files[0])
	z, err := Compressor(blob, a.Compression)
	if err != nil {
		return packReply{}, err
	}
	defer z.Close() // ends its goroutines where an error comes first; a second time it does nothing
	diff := newCounter(z)
	o := layer.WriteOptions{Epoch: a.Epoch, FromContext: a.FromContext}
	if err := layer.Write(ctx, diff, c.each, c.files, o); err != nil {
		return packReply{}, err
	}
	if err := z.Close(); err != nil {
		return packReply{}, err
	}
	return packReply{DiffID: diff.digest(), Digest: blob.digest(), Size: blob.n}, nil
}

// changes are a change set to be packed, with the directory that has its files.
type changes struct {
	each  func(func(snapshot.Entry) error) error
	files *os.File
	close func()
}

func (w *world) changes(ctx context.Context, a packArgs) (changes, error) {
	if a.Squash != nil {
		return w.squashed(ctx, a)
	}
	tree, err := w.snaps.Tree(a.Name)
	if err != nil {
		return changes{}, err
	}
	dir, err := w.snaps.Files(a.Name)
	if err != nil {
		tree.Close()
		return changes{}, err
	}
	return changes{tree.Each, dir, func() { tree.Close(); dir.Close() }}, nil
}

// squashed are the changes of several steps. Their files are spread over as many directories, so that they are read from the whole.
func (w *world) squashed(ctx context.Context, a packArgs) (changes, error) {
	q, err := w.snaps.Squash(a.Squash.Above, a.Name)
	if err != nil {
		return changes{}, err
	}
	at, release, err := w.snaps.Mount(ctx, a.Name)
	if err != nil {
		q.Close()
		return changes{}, err
	}
	dir, err := os.Open(at)
	if err != nil {
		q.Close()
		release()
		return changes{}, err
	}
	each := func(yield func(snapshot.Entry) error) error {
		return q.Each(func(e snapshot.Entry, from snapshot.Name) error {
			if a.Epoch != nil && slices.Contains(a.Squash.FromContexts, from) {
				e.MTime = *a.Epoch * int64(time.Second)
			}
			return yield(e)
		})
	}
	return changes{each, dir, func() { q.Close(); dir.Close(); release() }}, nil
}
