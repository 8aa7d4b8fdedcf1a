package image

import (
	"bytes"
	"context"
	"fmt"
	"io"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sync/errgroup"
)

// maxDocuments bounds the bytes of all manifests and indexes that one Copy keeps in memory.
const maxDocuments = 32 << 20

// CopyOptions of Copy.
type CopyOptions struct {
	// Progress is called before and after each piece of content, from several goroutines at once.
	Progress func(d v1.Descriptor, done bool)
	// Parallel is how many blobs move at once; 0 means 4.
	Parallel int
}

// Copy moves content and everything it names from src to dst: layers and configs before manifests, manifests before indexes.
// It serves pull, push, save and load. Content that dst has is not read. To copy one platform of an index, Select it first.
// Non-distributable layers that name other places are left out, as all registries expect.
func Copy(ctx context.Context, dst Pusher, src Fetcher, d v1.Descriptor, o CopyOptions) error {
	tree, err := gather(ctx, src, d)
	if err != nil {
		return err
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(4)
	if o.Parallel > 0 {
		g.SetLimit(o.Parallel)
	}
	for _, b := range tree.blobs {
		g.Go(func() error { return copyBlob(gctx, dst, src, b, o) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	for _, doc := range tree.documents {
		if err := push(ctx, dst, doc.descriptor, bytes.NewReader(doc.raw), o); err != nil {
			return fmt.Errorf("copy %s: %w", doc.descriptor.Digest, err)
		}
	}
	return nil
}

func copyBlob(ctx context.Context, dst Pusher, src Fetcher, d v1.Descriptor, o CopyOptions) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	has, err := dst.Has(ctx, d)
	if err != nil {
		return fmt.Errorf("look for %s: %w", d.Digest, err)
	}
	if has {
		if o.Progress != nil {
			o.Progress(d, true)
		}
		return nil
	}
	rc, err := src.Fetch(ctx, d)
	if err != nil {
		return fmt.Errorf("fetch %s: %w", d.Digest, err)
	}
	defer rc.Close()
	if err := push(ctx, dst, d, rc, o); err != nil {
		return fmt.Errorf("copy %s: %w", d.Digest, err)
	}
	return nil
}

func push(ctx context.Context, dst Pusher, d v1.Descriptor, r io.Reader, o CopyOptions) error {
	if o.Progress != nil {
		o.Progress(d, false)
	}
	if err := dst.Push(ctx, d, r); err != nil {
		return err
	}
	if o.Progress != nil {
		o.Progress(d, true)
	}
	return nil
}

// A document is a manifest or an index with its bytes.
type document struct {
	descriptor v1.Descriptor
	raw        []byte
}

// A tree is everything that a descriptor names, each digest once; documents come after what they name.
type tree struct {
	src       Fetcher
	seen      map[v1.Hash]bool
	blobs     []v1.Descriptor
	documents []document
	bytes     int64
}

func gather(ctx context.Context, src Fetcher, d v1.Descriptor) (*tree, error) {
	t := &tree{src: src, seen: map[v1.Hash]bool{}}
	return t, t.add(ctx, d, 1)
}

func (t *tree) add(ctx context.Context, d v1.Descriptor, depth int) error {
	if t.seen[d.Digest] {
		return nil
	}
	if t.seen[d.Digest] = true; len(t.seen) > MaxDescriptors {
		return fmt.Errorf("more than %d descriptors", MaxDescriptors)
	}
	if !d.MediaType.IsIndex() && !d.MediaType.IsImage() {
		if !d.MediaType.IsDistributable() && len(d.URLs) > 0 {
			return nil
		}
		t.blobs = append(t.blobs, d)
		return nil
	}
	// One more level than of indexes: the manifest itself.
	if depth > MaxDepth+1 {
		return fmt.Errorf("index %s: indexes are nested deeper than %d", d.Digest, MaxDepth)
	}
	raw, err := ReadAll(ctx, t.src, d, MaxManifest)
	if err != nil {
		return fmt.Errorf("read %s: %w", d.Digest, err)
	}
	if t.bytes += d.Size; t.bytes > maxDocuments {
		return fmt.Errorf("manifests are more than %d bytes", maxDocuments)
	}
	named, err := t.children(d, raw)
	if err != nil {
		return fmt.Errorf("manifest %s: %w", d.Digest, err)
	}
	for _, c := range named {
		if err := t.add(ctx, c, depth+1); err != nil {
			return err
		}
	}
	t.documents = append(t.documents, document{d, raw})
	return nil
}

// children also refuses a document that is not what its descriptor calls it: others would read it differently.
func (t *tree) children(d v1.Descriptor, raw []byte) ([]v1.Descriptor, error) {
	kind, err := Kind(raw)
	if err != nil {
		return nil, err
	}
	if kind.IsIndex() != d.MediaType.IsIndex() {
		return nil, fmt.Errorf("media type is %q, descriptor says %q", kind, d.MediaType)
	}
	return Children(raw)
}

// Children returns the descriptors that a manifest (config first, then layers) or an index names. A subject is not among them.
func Children(raw []byte) ([]v1.Descriptor, error) {
	kind, err := Kind(raw)
	if err != nil {
		return nil, err
	}
	if kind.IsIndex() {
		idx, err := ParseIndex(raw)
		if err != nil {
			return nil, err
		}
		return idx.Manifests, nil
	}
	m, err := ParseManifest(raw)
	if err != nil {
		return nil, err
	}
	return append([]v1.Descriptor{m.Config}, m.Layers...), nil
}
