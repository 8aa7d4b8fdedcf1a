package exec

import (
	"bytes"
	"context"
	"fmt"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"img/cache"
	"img/dag"
	"img/registry/image"
)

func indexKey(h *cache.Hash, op *dag.Index, in []cache.Output) error {
	h.Line("docker", op.Docker)
	annotationKeys(h, "annotation", op.Annotations)
	annotationKeys(h, "descriptor", op.Descriptor)
	for _, m := range op.Images {
		b, err := decode[Built](in[m.Manifest])
		if err != nil {
			return fmt.Errorf("image for %s: %w", m.Platform, err)
		}
		h.Line("image", m.Platform, b.Manifest.Digest.String(), b.Manifest.Size, string(b.Manifest.MediaType))
		annotationKeys(h, "image descriptor", b.Manifest.Annotations)
	}
	return nil
}

func annotationKeys(h *cache.Hash, label string, m map[string]string) {
	for _, k := range sortedKeys(m) {
		h.Line(label, k, m[k])
	}
}

// haveIndex: the index is in the local store. Its images are inputs, which are looked for on their own.
func (x *Executor) haveIndex(ctx context.Context, out cache.Output) bool {
	b, err := decode[Built](out)
	if err != nil {
		return false
	}
	ok, err := x.o.Layout.Has(ctx, b.Manifest)
	return ok && err == nil
}

// index puts an index of images into the local store. An entry's platform is the one that was asked for, as BuildKit has it: no variant for
// arm64, whatever its configuration says.
func (x *Executor) index(ctx context.Context, op *dag.Index, in []cache.Output) (cache.Output, error) {
	var entries []v1.Descriptor
	for _, m := range op.Images {
		b, err := decode[Built](in[m.Manifest])
		if err != nil {
			return "", fmt.Errorf("image for %s: %w", m.Platform, err)
		}
		p, err := image.ParsePlatform(m.Platform)
		if err != nil {
			return "", err
		}
		b.Manifest.Platform = &p
		entries = append(entries, b.Manifest)
	}
	raw, d, err := image.Index(entries, image.AssembleOptions{Docker: op.Docker, Annotations: op.Annotations})
	if err != nil {
		return "", err
	}
	d.Annotations = op.Descriptor
	if err := x.o.Layout.Push(ctx, d, bytes.NewReader(raw)); err != nil {
		return "", err
	}
	return encode(Built{Manifest: d})
}
