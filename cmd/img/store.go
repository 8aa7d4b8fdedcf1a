package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
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

// exportFiles writes an image's files into a directory as the caller's.
func (i *inside) exportFiles(ctx context.Context, ref, dest string) error {
	d, err := i.s.images.Resolve(ctx, ref)
	if err != nil {
		return err
	}
	image, err := image.Load(ctx, i.s.images, d, image.HostPlatform())
	if err != nil {
		return err
	}
	return i.again(func() error { return writeFiles(ctx, i.x, i.x.BaseFiles(ref, image), dest, nil) })
}

// writeFiles unpacks a vertex's file system into a directory; everything in it belongs to the caller.
func writeFiles(ctx context.Context, x *exec.Executor, files cache.Output, dest string, epoch *int64) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	wrote := make(chan error, 1)
	go func() {
		err := x.WriteTar(ctx, files, epoch, w)
		w.Close()
		wrote <- err
	}()
	err = exec.Untar(ctx, r, dest)
	if err != nil {
		io.Copy(io.Discard, r)
	}
	// If the writer failed, the reader's error is only that the archive was cut.
	if werr := <-wrote; werr != nil {
		return werr
	}
	return err
}

// bases finds base images: in the local store, in oci-layout contexts, in registries. As a Fetcher it gives their layers.
type bases struct {
	g     *Globals
	s     *store
	pull  string
	insec bool
	// from says which place has which layer.
	from map[v1.Hash]image.Fetcher
	// fetched are the references that came from a registry, to be remembered once all their layers are here.
	fetched map[string]*image.Image
	layouts map[string]NamedContext
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

// local returns an image of the local store.
func (b *bases) local(ctx context.Context, ref string, p image.Platform) (*image.Image, error) {
	d, err := b.s.images.Resolve(ctx, ref)
	if err != nil {
		return nil, err
	}
	return image.Load(ctx, b.s.images, d, p)
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

// splitLayout cuts DIR[:TAG|@DIGEST]; a directory of that whole name goes first.
func splitLayout(v string) (dir, ref string) {
	if _, err := os.Stat(v); err == nil {
		return v, ""
	}
	if dir, digest, ok := strings.Cut(v, "@"); ok {
		return dir, digest
	}
	if i := strings.LastIndexByte(v, ':'); i > 0 {
		return v[:i], v[i+1:]
	}
	return v, ""
}

// remote returns an image of a registry.
func (b *bases) remote(ctx context.Context, ref string, p image.Platform) (*image.Image, image.Fetcher, error) {
	c, err := newClient(b.g, b.insec, ref)
	if err != nil {
		return nil, nil, err
	}
	d, err := c.Resolve(ctx, ref)
	if err != nil {
		return nil, nil, err
	}
	repo, err := c.Repository(ref)
	if err != nil {
		return nil, nil, err
	}
	img, err := image.Load(ctx, repo, d, p)
	return img, repo, err
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
	img, src, err := b.remote(ctx, ref, p)
	if err != nil {
		if local, lerr := b.local(ctx, ref, p); lerr == nil && b.pull == pullNewer {
			return local, nil
		}
		return nil, err
	}
	mu.Lock()
	defer mu.Unlock()
	b.know(img, src)
	b.fetched[ref] = img
	return img, nil
}

// remember keeps a fetched base under its name if all of it is here.
func (b *bases) remember(ctx context.Context, ref string) error {
	img := b.fetched[ref]
	for _, l := range img.Layers {
		if ok, err := b.s.images.Has(ctx, l.Descriptor); err != nil || !ok {
			return err // a layer that nothing needed was never fetched
		}
	}
	if err := b.s.images.Push(ctx, img.Manifest.Config, bytes.NewReader(img.RawConfig)); err != nil {
		return err
	}
	if err := b.s.images.Push(ctx, img.Descriptor, bytes.NewReader(img.RawManifest)); err != nil {
		return err
	}
	d := img.Descriptor
	d.Annotations = map[string]string{layout.PulledFrom: ref}
	return b.s.images.Tag(ctx, ref, d)
}
