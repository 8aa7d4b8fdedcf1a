package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"img/cache"
	"img/dag/dockerfile"
	"img/exec"
	"img/registry/image"
	"img/registry/layout"
	"img/snapshot"
	"img/userns"
)

// A store is the state directory, opened.
type store struct {
	dir     string
	driver  string
	mapping userns.Mapping
	snaps   *snapshot.Store
	images  *layout.Store
	records *cache.Store
}

// openStore opens the state directory for builds with the best mapping that the caller can have.
func openStore(g *Globals) (*store, error) {
	dir, err := g.stateDir()
	if err != nil {
		return nil, err
	}
	mapping, err := userns.Choose()
	if err != nil {
		return nil, err
	}
	s := &store{dir: dir, driver: driver(g)}
	if s.images, err = layout.Open(filepath.Join(dir, "registry")); err != nil {
		return nil, err
	}
	if s.records, err = cache.Open(filepath.Join(dir, "cache", "keys")); err != nil {
		return nil, err
	}
	return s, s.remap(mapping)
}

// remap opens the snapshots of a mapping.
func (s *store) remap(m userns.Mapping) (err error) {
	s.mapping = m
	s.snaps, err = snapshot.Open(filepath.Join(s.dir, "snapshot"), snapshot.Options{Map: m.Label(), IDs: m.IDs(), Boot: bootID()})
	return err
}

// driver translates --backend. The original's fuse-overlayfs is never needed: the kernel's overlay works in user namespaces.
func driver(g *Globals) string {
	switch g.Backend {
	case "overlayfs":
		return snapshot.Overlay
	case "native":
		return snapshot.Copies
	case "fuse-overlayfs":
		notef(g.stderr, "--backend fuse-overlayfs means auto: the kernel's own overlay is used where it works")
	}
	return ""
}

// executor makes an Executor on the store.
func (s *store) executor(g *Globals, o exec.Options) *exec.Executor {
	o.State, o.Real, o.Boot = s.dir, g.state.dir, bootID()
	o.Mapping, o.Snapshots, o.Layout, o.Driver = s.mapping, s.snaps, s.images, s.driver
	if f, ok := g.stderr.(*os.File); ok {
		o.Stderr = f
	}
	if o.Note == nil {
		o.Note = func(text string) { notef(g.stderr, "%s", text) }
	}
	return exec.New(o)
}

// An inside is what needs the inner process but is no build: deleting snapshots, exporting files.
type inside struct {
	g *Globals
	s *store
	x *exec.Executor
}

func openInsider(_ context.Context, g *Globals) (insider, error) {
	s, err := openStore(g)
	if err != nil {
		return nil, err
	}
	return &inside{g, s, s.executor(g, exec.Options{})}, nil
}

func (i *inside) Close() error { return i.x.Close() }

// again runs f, and once more if the id helpers failed and the mapping became one id.
func (i *inside) again(f func() error) error {
	err := f()
	var remapped *exec.RemappedError
	if !errors.As(err, &remapped) {
		return err
	}
	i.x.Close()
	if err := i.s.remap(remapped.Mapping); err != nil {
		return err
	}
	i.x = i.s.executor(i.g, exec.Options{})
	return f()
}

// removeInside implements insider.
func (i *inside) removeInside(ctx context.Context, names []string) error {
	var snaps []snapshot.Name
	var caches []string
	for _, n := range names {
		if p, ok := strings.CutPrefix(n, mountPrefix); ok {
			caches = append(caches, p)
		} else if !strings.HasPrefix(n, "snapshot/") { // unfinished ones have no name

			snaps = append(snaps, snapshot.Name(n))
		}
	}
	return i.again(func() error { return i.x.Remove(ctx, snaps, caches) })
}

// exportFiles writes an image's files for a platform (as loadPlatform has it) into a directory as the caller's.
func (i *inside) exportFiles(ctx context.Context, ref, platform, dest string) error {
	d, err := i.s.images.Resolve(ctx, ref)
	if err != nil {
		return err
	}
	image, err := loadPlatform(ctx, i.s.images, d, platform)
	if err != nil {
		return err
	}
	return i.again(func() error { return writeFiles(ctx, i.x, []exec.Part{{Files: i.x.BaseFiles(ref, image)}}, dest, nil) })
}

// writeFiles unpacks file systems into a directory; everything in it belongs to the caller.
func writeFiles(ctx context.Context, x *exec.Executor, files []exec.Part, dest string, epoch *int64) error {
	return throughPipe(
		func(w *os.File) error { return x.WriteTar(ctx, files, epoch, w) },
		func(r io.Reader) error { return exec.Untar(ctx, r, dest) })
}

// bases finds base images: in the local store, in oci-layout contexts, in registries. As a Fetcher it gives their layers.
type bases struct {
	g     *Globals
	s     *store
	pull  string
	insec bool
	// implied: nobody named a platform.
	implied bool
	// from says which place has which layer.
	from map[v1.Hash]image.Fetcher
	// fetched are the references that came from a registry, to be remembered once all their layers are here.
	fetched map[string]*fetched
	layouts map[string]NamedContext
}

// A fetched is what a registry's reference stands for: images of some platforms. top is what it names, an index or the one image.
type fetched struct {
	top    v1.Descriptor
	src    image.Fetcher
	images []*image.Image
}

// Fetch implements image.Fetcher.
func (b *bases) Fetch(ctx context.Context, d v1.Descriptor) (io.ReadCloser, error) {
	src, ok := b.from[d.Digest]
	if !ok {
		return nil, sourceError(fmt.Errorf("layer %s: %w", d.Digest, image.ErrNotFound))
	}
	r, err := src.Fetch(ctx, d)
	if err != nil {
		return nil, sourceError(err)
	}
	return r, nil
}

func (b *bases) know(img *image.Image, src image.Fetcher) {
	for _, l := range img.Layers {
		b.from[l.Descriptor.Digest] = src
	}
}

// local returns an image of the local store. One that a registry gave may be there for other platforms alone: that is image.ErrNotFound.
// One that was built or imported here is the name's only meaning, so that it is a plain error; where nobody named a platform, an image
// that is no index is taken as it is, with the warning that lowering has for it.
func (b *bases) local(ctx context.Context, ref string, p image.Platform) (*image.Image, error) {
	d, err := b.s.images.Resolve(ctx, ref)
	if err != nil {
		return nil, err
	}
	if whole, herr := b.s.images.Has(ctx, d); herr == nil && !whole {
		return nil, withHint(exitSource, fmt.Errorf("the local image %s is damaged: its manifest %s is not there or cut short", image.Familiar(ref), d.Digest),
			"`img rm %s`, then pull, load or import it again", image.Familiar(ref))
	}
	img, err := image.Load(ctx, b.s.images, d, p)
	pulled := b.pulled(ctx, ref)
	if err == nil && (pulled || !b.implied) && !image.Runs(p, img.Config.Platform()) {
		err = fmt.Errorf("the local image is for %s, not for %s: %w", image.FormatPlatform(*img.Config.Platform()), image.FormatPlatform(p), image.ErrNotFound)
	}
	if errors.Is(err, image.ErrNotFound) && b.pull != pullNever && !pulled {
		return nil, withHint(exitSource, errors.New(strings.TrimSuffix(err.Error(), ": "+image.ErrNotFound.Error())),
			"build it for that platform as well, or `img pull --platform` an image that has it")
	}
	return img, err
}

// pulled reports whether a name of the local store was given by a registry.
func (b *bases) pulled(ctx context.Context, ref string) bool {
	tags, err := b.s.images.List(ctx)
	return err == nil && slices.ContainsFunc(tags, func(t layout.Tagged) bool {
		return t.Ref == ref && t.Descriptor.Annotations[layout.PulledFrom] != ""
	})
}

// layout returns an image of an oci-layout context: DIR[:TAG|@DIGEST].
func (b *bases) layout(ctx context.Context, name string, p image.Platform) (*image.Image, image.Fetcher, error) {
	dir, ref := splitLayout(b.layouts[name].Value)
	s, err := layout.OpenReadOnly(dir)
	if err != nil {
		return nil, nil, err
	}
	d, err := s.Resolve(ctx, ref)
	if err != nil {
		return nil, nil, err
	}
	img, err := image.Load(ctx, s, d, p)
	return img, s, err
}

// splitLayout cuts DIR[:TAG][@DIGEST]; a directory of that whole name goes first. With a digest the tag says nothing.
func splitLayout(v string) (dir, ref string) {
	if _, err := os.Stat(v); err == nil {
		return v, ""
	}
	if dir, digest, ok := strings.Cut(v, "@"); ok {
		dir, _ = splitLayout(dir)
		return dir, digest
	}
	if i := strings.LastIndexByte(v, ':'); i > 0 {
		return v[:i], v[i+1:]
	}
	return v, ""
}

// remote returns an image of a registry.
func (b *bases) remote(ctx context.Context, ref string, p image.Platform) (*fetched, error) {
	c, err := newClient(b.g, b.insec, ref)
	if err != nil {
		return nil, err
	}
	d, err := c.Resolve(ctx, ref)
	if err != nil {
		return nil, err
	}
	repo, err := c.Repository(ref)
	if err != nil {
		return nil, err
	}
	img, err := image.Load(ctx, repo, d, p)
	return &fetched{top: d, src: repo, images: []*image.Image{img}}, err
}

// resolve finds a base image. mu guards what is learned on the way.
func (b *bases) resolve(ctx context.Context, mu *sync.Mutex, r dockerfile.BaseRef) (*image.Image, error) {
	p, err := image.ParsePlatform(r.Platform)
	if err != nil {
		return nil, err
	}
	if r.Layout != "" {
		img, src, err := b.layout(ctx, r.Layout, p)
		if err != nil {
			return nil, err
		}
		mu.Lock()
		defer mu.Unlock()
		b.know(img, src)
		return img, nil
	}
	ref, err := image.NormalizeRef(r.Ref)
	if err != nil {
		return nil, err
	}
	if b.pull != pullAlways && b.pull != pullNewer {
		img, err := b.local(ctx, ref, p)
		if err == nil || !errors.Is(err, image.ErrNotFound) || b.pull == pullNever {
			return img, err
		}
	}
	found, err := b.remote(ctx, ref, p)
	if err != nil {
		if local, lerr := b.local(ctx, ref, p); lerr == nil && b.pull == pullNewer {
			return local, nil
		}
		return nil, err
	}
	mu.Lock()
	defer mu.Unlock()
	img := found.images[0]
	b.know(img, found.src)
	if before := b.fetched[ref]; before != nil && before.top.Digest == found.top.Digest {
		found.images = append(found.images, before.images...)
	}
	b.fetched[ref] = found
	return img, nil
}

// remember keeps a fetched base under its name if all of it is here: one platform's image, or, where the store has several platforms of it,
// the registry's index, of which the others are missing.
func (b *bases) remember(ctx context.Context, ref string) error {
	f := b.fetched[ref]
	var here []*image.Image
	for _, img := range f.images {
		whole, err := b.keep(ctx, img)
		if err != nil {
			return err
		}
		if whole {
			here = append(here, img)
		}
	}
	if len(here) == 0 {
		return nil
	}
	d := here[0].Descriptor
	if len(here) > 1 || b.other(ctx, ref, f) {
		d = f.top
		raw, err := image.ReadAll(ctx, f.src, d, image.MaxManifest)
		if err != nil {
			return sourceError(err)
		}
		if err := b.s.images.Push(ctx, d, bytes.NewReader(raw)); err != nil {
			return err
		}
	}
	d.Annotations = map[string]string{layout.PulledFrom: ref}
	return b.s.images.Tag(ctx, ref, d)
}

// keep puts the documents of an image into the store if its layers are all there: those that nothing needed were never fetched.
func (b *bases) keep(ctx context.Context, img *image.Image) (whole bool, err error) {
	for _, l := range img.Layers {
		if ok, err := b.s.images.Has(ctx, l.Descriptor); err != nil || !ok {
			return false, err
		}
	}
	if err := b.s.images.Push(ctx, img.Manifest.Config, bytes.NewReader(img.RawConfig)); err != nil {
		return false, err
	}
	return true, b.s.images.Push(ctx, img.Descriptor, bytes.NewReader(img.RawManifest))
}

// other reports whether the name stands for another platform's image of the same index until now.
func (b *bases) other(ctx context.Context, ref string, f *fetched) bool {
	old, err := b.s.images.Resolve(ctx, ref)
	if err != nil || !f.top.MediaType.IsIndex() || !b.pulled(ctx, ref) {
		return false
	}
	if old.MediaType.IsIndex() {
		return true
	}
	img, err := image.Load(ctx, b.s.images, old, image.Platform{})
	now := f.images[0].Config.Platform()
	return err == nil && now != nil && !image.Runs(*now, img.Config.Platform())
}
