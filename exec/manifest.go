package exec

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"img/cache"
	"img/dag"
	"img/registry/image"
	"img/snapshot"
)

// Built is the output of a Manifest: the image's manifest and the digest of its configuration. For an Index, it is the index, and no
// configuration.
type Built struct {
	Manifest v1.Descriptor `json:"manifest"`
	Config   v1.Hash       `json:"config,omitzero"`
}

// ID is the image's id as Docker and --iidfile have it: the configuration's digest, for an index its own.
func (b Built) ID() v1.Hash { return cmp.Or(b.Config, b.Manifest.Digest) }

// BuiltImage reads the output of a Manifest or an Index vertex.
func BuiltImage(out cache.Output) (Built, error) { return decode[Built](out) }

func manifestKey(h *cache.Hash, op *dag.Manifest, in []cache.Output) error {
	h.Line("config", string(op.Config))
	h.Line("base history", op.BaseHistory)
	h.Line("docker", op.Docker)
	h.Line("epoch", op.Epoch)
	h.Line("omit history", op.OmitHistory)
	annotationKeys(h, "annotation", op.Annotations)
	annotationKeys(h, "descriptor", op.Descriptor)
	for _, l := range op.BaseLayers {
		h.Line("base", l.DiffID, l.Digest, l.Size, l.MediaType, l.URLs)
	}
	for _, r := range op.Packs {
		p, err := decode[packed](in[r])
		if err != nil {
			return fmt.Errorf("layer %d: %w", r, err)
		}
		h.Line("layer", p.Layer.DiffID, p.Layer.Digest, p.Layer.Size, p.Layer.MediaType)
	}
	return nil
}

// haveManifest: the image is whole in the local store.
func (x *Executor) haveManifest(ctx context.Context, out cache.Output) bool {
	b, err := decode[Built](out)
	if err != nil {
		return false
	}
	img, err := image.Load(ctx, x.o.Layout, b.Manifest, image.Platform{})
	if err != nil {
		return false
	}
	for _, l := range img.Layers {
		if ok, err := x.o.Layout.Has(ctx, l.Descriptor); err != nil || !ok {
			return false
		}
	}
	return true
}

// manifest assembles the image and puts configuration and manifest into the local store.
func (x *Executor) manifest(ctx context.Context, op *dag.Manifest, in []cache.Output) (cache.Output, error) {
	cfg, startInterval, err := image.ParseConfig(op.Config)
	if err != nil {
		return "", fmt.Errorf("configuration: %w", err)
	}
	layers, names, times, err := layersOf(op, in)
	if err != nil {
		return "", err
	}
	settleHistory(cfg, op, times)
	img, err := image.Assemble(cfg, layers, image.AssembleOptions{Docker: op.Docker, Annotations: op.Annotations, StartInterval: startInterval})
	if err != nil {
		return "", err
	}
	img.Descriptor.Annotations = op.Descriptor
	cd := img.Manifest.Config
	if err := x.o.Layout.Push(ctx, cd, bytes.NewReader(img.RawConfig)); err != nil {
		return "", err
	}
	if err := x.o.Layout.Push(ctx, img.Descriptor, bytes.NewReader(img.RawManifest)); err != nil {
		return "", err
	}
	// With an epoch the layers have other times than the snapshots they were packed from.
	if op.Epoch == nil {
		if err := x.alias(layers, names); err != nil {
			return "", err
		}
	}
	return encode(Built{img.Descriptor, cd.Digest})
}

// layersOf returns the image's layers, the snapshots with each of them on top ("" for base layers), and when they were packed.
func layersOf(op *dag.Manifest, in []cache.Output) (layers []image.Layer, names []snapshot.Name, times []time.Time, err error) {
	add := func(l dag.Layer, n snapshot.Name) error {
		d, err := descriptor(l)
		if err != nil {
			return err
		}
		diff, err := v1.NewHash(l.DiffID)
		layers, names = append(layers, image.Layer{DiffID: diff, Descriptor: d}), append(names, n)
		return err
	}
	for _, l := range op.BaseLayers {
		if err := add(l, ""); err != nil {
			return nil, nil, nil, err
		}
	}
	for i, r := range op.Packs {
		p, err := decode[packed](in[r])
		if err != nil {
			return nil, nil, nil, err
		}
		times = append(times, time.Unix(p.Created, 0).UTC())
		state := p.Snapshot
		if i < len(op.States) && op.States[i] != dag.Scratch {
			state = name(op.States[i], in)
		}
		if err := add(p.Layer, state); err != nil {
			return nil, nil, nil, err
		}
	}
	return layers, names, times, nil
}

// alias notes which snapshots the image's ChainIDs name, so that FROM of this image finds its files.
func (x *Executor) alias(layers []image.Layer, names []snapshot.Name) error {
	for i, chain := range image.ChainIDs(layers) {
		if names[i] == "" || !x.o.Snapshots.Has(names[i]) {
			continue
		}
		if err := x.o.Snapshots.Alias(snapshot.Name(chain.String()), names[i]); err != nil {
			return err
		}
	}
	return nil
}
