package exec

import (
	"context"
	"errors"
	"fmt"
	"os"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sync/errgroup"

	"img/cache"
	"img/dag"
	"img/registry/image"
	"img/snapshot"
	"img/snapshot/layer"
)

func imageKey(h *cache.Hash, op *dag.Image) { h.Line("chain", op.ChainID) }

// descriptor returns a layer's descriptor.
func descriptor(l dag.Layer) (v1.Descriptor, error) {
	h, err := v1.NewHash(l.Digest)
	return v1.Descriptor{MediaType: types.MediaType(l.MediaType), Digest: h, Size: l.Size, URLs: l.URLs}, err
}

func (x *Executor) rememberBase(op *dag.Image) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.bases[snapshot.Name(op.ChainID)] = op
}

// BaseFiles makes an image of the local store known as a base and returns the output that stands for its files.
func (x *Executor) BaseFiles(ref string, img *image.Image) cache.Output {
	if len(img.Layers) == 0 {
		return ""
	}
	chain := image.ChainIDs(img.Layers)
	op := &dag.Image{Ref: ref, ChainID: chain[len(chain)-1].String()}
	for _, l := range img.Layers {
		d := l.Descriptor
		op.Layers = append(op.Layers, dag.Layer{
			DiffID: l.DiffID.String(), Digest: d.Digest.String(), Size: d.Size, MediaType: string(d.MediaType), URLs: d.URLs,
		})
	}
	x.rememberBase(op)
	return cache.Output(op.ChainID)
}

func (x *Executor) haveBase(ctx context.Context, op *dag.Image) bool {
	for _, l := range op.Layers {
		d, err := descriptor(l)
		if err != nil {
			return false
		}
		if ok, err := x.o.Layout.Has(ctx, d); err != nil || !ok {
			return false
		}
	}
	return true
}

// image brings a base image's layers into the local store. They are unpacked when the first step needs their files.
func (x *Executor) image(ctx context.Context, op *dag.Image) (cache.Output, error) {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(4)
	for _, l := range op.Layers {
		g.Go(func() error {
			d, err := descriptor(l)
			if err != nil {
				return err
			}
			return x.fetch(ctx, d)
		})
	}
	return cache.Output(op.ChainID), g.Wait()
}

func (x *Executor) fetch(ctx context.Context, d v1.Descriptor) error {
	if ok, err := x.o.Layout.Has(ctx, d); ok || err != nil {
		return err
	}
	if x.o.Base == nil {
		return fmt.Errorf("layer %s is not in the local store", d.Digest)
	}
	r, err := x.o.Base.Fetch(ctx, d)
	if err != nil {
		return fmt.Errorf("fetch layer %s: %w", d.Digest, err)
	}
	defer r.Close()
	if err := x.o.Layout.Push(ctx, d, r); err != nil {
		return fmt.Errorf("fetch layer %s: %w", d.Digest, err)
	}
	return nil
}

// materialize sees to it that a snapshot's files are there: those of base images are unpacked on first need.
func (x *Executor) materialize(ctx context.Context, n snapshot.Name) error {
	if n == "" {
		return nil
	}
	x.mu.Lock()
	f := x.unpacked[n]
	if f == nil {
		f = &flight{}
		x.unpacked[n] = f
	}
	x.mu.Unlock()
	return f.do(ctx, func(ctx context.Context) error { return x.ensure(ctx, n) })
}

func (x *Executor) ensure(ctx context.Context, n snapshot.Name) error {
	x.mu.Lock()
	base := x.bases[n]
	x.mu.Unlock()
	if x.o.Snapshots.Has(n) && base == nil {
		parent, err := x.o.Snapshots.Parent(n)
		if err != nil {
			return err
		}
		return x.materialize(ctx, parent)
	}
	if base == nil {
		return fmt.Errorf("the files of %s are gone from the store; build again with --no-cache", n)
	}
	return x.unpackBase(ctx, base)
}

// unpackBatch is how many layers are unpacked with one call: descriptors travel with it.
const unpackBatch = 64

func (x *Executor) unpackBase(ctx context.Context, op *dag.Image) error {
	var layers []image.Layer
	for _, l := range op.Layers {
		d, err := descriptor(l)
		if err != nil {
			return err
		}
		diff, err := v1.NewHash(l.DiffID)
		if err != nil {
			return err
		}
		layers = append(layers, image.Layer{DiffID: diff, Descriptor: d})
	}
	chain := image.ChainIDs(layers)
	// The highest layer whose files are there is the parent of those that are not.
	first := 0
	for i := range layers {
		if x.o.Snapshots.Has(snapshot.Name(chain[i].String())) {
			first = i + 1
		}
	}
	for first < len(layers) {
		last := min(first+unpackBatch, len(layers))
		a := unpackArgs{}
		if first > 0 {
			a.Parent = snapshot.Name(chain[first-1].String())
		}
		for i := first; i < last; i++ {
			a.Layers = append(a.Layers, unpackLayer{snapshot.Name(chain[i].String()), layers[i]})
		}
		if err := x.unpackSome(ctx, a); err != nil {
			return fmt.Errorf("unpack %s: %w", op.Ref, err)
		}
		first = last
	}
	return nil
}

// A DamagedError is a layer of a base image that is not what its image says.
type DamagedError struct{ Msg string }

func (e *DamagedError) Error() string { return e.Msg }

// WireKind implements inner.Kinder.
func (e *DamagedError) WireKind() (string, any) { return "damaged", nil }

func damaged(err error) error {
	var bad badInput
	if errors.As(err, &bad) {
		return &DamagedError{err.Error()}
	}
	return err
}

type unpackArgs struct {
	Parent snapshot.Name
	Layers []unpackLayer
}

type unpackLayer struct {
	Name  snapshot.Name
	Layer image.Layer
}

func (x *Executor) unpackSome(ctx context.Context, a unpackArgs) error {
	var files []*os.File
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	for _, l := range a.Layers {
		f, err := x.o.Layout.OpenBlob(l.Layer.Descriptor)
		if err != nil {
			return err
		}
		files = append(files, f)
	}
	return x.call(ctx, "unpack", a, nil, files...)
}

// unpack applies layers side by side, each into its own directory, and settles them bottom-up.
func (w *world) unpack(ctx context.Context, a unpackArgs, files []*os.File) (struct{}, error) {
	none := struct{}{}
	stages := make([]*snapshot.Staging, len(a.Layers))
	applied := make([]*layer.Applied, len(a.Layers))
	defer func() {
		for _, s := range stages {
			if s != nil {
				s.Discard()
			}
		}
	}()
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(4)
	for i, l := range a.Layers {
		g.Go(func() (err error) {
			if stages[i], err = w.snaps.Stage(); err != nil {
				return err
			}
			applied[i], err = w.extract(gctx, files[i], stages[i].Dir(), extractArgs{
				MediaType: string(l.Layer.Descriptor.MediaType), DiffID: l.Layer.DiffID.String(), IDs: w.setup.IDs,
			})
			if err != nil {
				return damaged(fmt.Errorf("layer %s: %w", l.Layer.Descriptor.Digest, err))
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return none, err
	}
	parent := a.Parent
	for i, l := range a.Layers {
		if err := w.settle(ctx, stages[i], applied[i], l.Name, parent); err != nil {
			return none, fmt.Errorf("layer %s: %w", l.Layer.Descriptor.Digest, err)
		}
		parent = l.Name
		applied[i] = nil
	}
	return none, nil
}

// settle completes a layer against the ones below and publishes it.
func (w *world) settle(ctx context.Context, st *snapshot.Staging, a *layer.Applied, n, parent snapshot.Name) error {
	lower, err := w.snaps.View(parent)
	if err != nil {
		return err
	}
	defer lower.Close()
	dir, err := os.Open(st.Dir())
	if err != nil {
		return err
	}
	defer dir.Close()
	var mounted *os.File
	var release func() error
	defer func() {
		if mounted != nil {
			mounted.Close()
			release()
		}
	}()
	open := func(p string) (*os.File, error) {
		if mounted == nil {
			at, rel, err := w.snaps.Mount(ctx, parent)
			if err != nil {
				return nil, err
			}
			f, err := os.Open(at)
			if err != nil {
				return nil, errors.Join(err, rel())
			}
			mounted, release = f, rel
		}
		return openIn(mounted, p)
	}
	if err := a.Settle(ctx, dir, lower, open, layer.ApplyOptions{IDs: w.setup.IDs}); err != nil {
		return err
	}
	return st.Publish(ctx, n, parent, a.Entries)
}

// viewOf reads what a vertex made. A base image's trees exist only once it is unpacked.
func (x *Executor) viewOf(ctx context.Context, n snapshot.Name) (*snapshot.View, error) {
	v, err := x.o.Snapshots.View(n)
	if err == nil {
		return v, nil
	}
	if merr := x.materialize(ctx, n); merr != nil {
		return nil, errors.Join(merr, err)
	}
	return x.o.Snapshots.View(n)
}
