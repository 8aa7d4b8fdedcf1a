package layout

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"slices"
	"sort"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sync/errgroup"

	"img/cache/atomicfile"
	"img/registry/image"
)

// Annotations of index.json's entries. Those of the descriptors themselves stay beside them. What begins with private is the
// store's own note about a name: other tools pass over it, and archives neither carry nor bring it.
const (
	refName       = "org.opencontainers.image.ref.name" // image-spec, annotations.md; ours hold full references
	containerName = "io.containerd.image.name"          // full reference, by containerd, BuildKit and Docker
	private       = "img."
	updated       = private + "updated" // RFC 3339
)

// PulledFrom is the annotation of a name whose image came from a registry: the full reference it was fetched by.
const PulledFrom = private + "pulled-from"

// A Tagged is a name in the store.
type Tagged struct {
	Ref        string
	Descriptor v1.Descriptor
	Updated    time.Time
}

func (s *Store) index() (*v1.IndexManifest, error) {
	raw, err := s.readFile("index.json", image.MaxManifest)
	if err != nil {
		return nil, err
	}
	idx, err := image.ParseIndex(raw)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", s.path("index.json"), err)
	}
	return idx, nil
}

// change rewrites index.json durably under the lock; edit returns false if there is nothing to change.
func (s *Store) change(edit func(*v1.IndexManifest) (bool, error)) error {
	if err := s.writable(); err != nil {
		return err
	}
	unlock, err := s.lock()
	if err != nil {
		return err
	}
	defer unlock()
	idx, err := s.index()
	if err != nil {
		return err
	}
	if changed, err := edit(idx); err != nil || !changed {
		return err
	}
	raw, err := json.Marshal(idx)
	if err != nil {
		return err
	}
	s.sweepIndex()
	if len(idx.Manifests) > image.MaxDescriptors || len(raw) > image.MaxManifest {
		return fmt.Errorf("%d names are too many for one image store; remove some", len(idx.Manifests))
	}
	return atomicfile.Write(s.path("index.json"), raw, atomicfile.Options{Sync: true})
}

// Tag makes ref (a full reference) name d, replacing what it named. Before the name is written, everything that d names is made
// durable (fsync of blobs and directory). d's annotations are kept with the name. Where ref names d already nothing is written.
func (s *Store) Tag(ctx context.Context, ref string, d v1.Descriptor) error {
	if err := s.tag(ctx, ref, d); err != nil {
		return fmt.Errorf("tag %s: %w", ref, err)
	}
	return nil
}

func (s *Store) tag(ctx context.Context, ref string, d v1.Descriptor) error {
	if has, err := s.Has(ctx, d); err != nil {
		return err
	} else if !has {
		return fmt.Errorf("manifest %s: %w", d.Digest, image.ErrNotFound)
	}
	idx, err := s.index()
	if err != nil {
		return err
	}
	if named(idx, ref, d) {
		return nil
	}
	if err := s.sync(ctx, d); err != nil {
		return err
	}
	entry := v1.Descriptor{MediaType: d.MediaType, Size: d.Size, Digest: d.Digest, Platform: d.Platform, ArtifactType: d.ArtifactType}
	entry.Annotations = map[string]string{}
	maps.Copy(entry.Annotations, d.Annotations)
	entry.Annotations[refName], entry.Annotations[updated] = ref, time.Now().UTC().Format(time.RFC3339)
	return s.change(func(idx *v1.IndexManifest) (bool, error) {
		idx.Manifests = slices.DeleteFunc(idx.Manifests, func(e v1.Descriptor) bool { return goesBy(e, ref) })
		idx.Manifests = append(idx.Manifests, entry)
		return true, nil
	})
}

// named reports whether ref names d, and nothing else, already, with d's annotations.
func named(idx *v1.IndexManifest, ref string, d v1.Descriptor) bool {
	n := 0
	for _, e := range idx.Manifests {
		if !goesBy(e, ref) {
			continue
		}
		if n++; e.Digest != d.Digest || e.Annotations[refName] != ref {
			return false
		}
		for k, v := range d.Annotations {
			if e.Annotations[k] != v {
				return false
			}
		}
	}
	return n == 1
}

// goesBy reports whether an entry has this full reference, also in the short form in which other tools may have written it.
func goesBy(e v1.Descriptor, ref string) bool {
	name := e.Annotations[refName]
	if name == ref {
		return name != ""
	}
	if !strings.ContainsAny(name, ":/") {
		return false // a bare tag names no repository
	}
	full, err := image.NormalizeRef(name)
	return err == nil && full == ref
}

// sync makes everything that d names durable. Blob by blob, not by syncfs: that would wait for what the build's steps have
// written to the same file system.
func (s *Store) sync(ctx context.Context, d v1.Descriptor) error {
	hashes, err := s.Reachable(ctx, d)
	if err != nil {
		return err
	}
	var g errgroup.Group
	g.SetLimit(8) // side by side they share journal commits
	for _, h := range hashes {
		g.Go(func() error { return syncFile(s.blobPath(h)) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return atomicfile.SyncDir(s.path("blobs", "sha256"))
}

func syncFile(path string) error {
	f, err := open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

// Untag removes a name; image.ErrNotFound if there is none.
func (s *Store) Untag(ctx context.Context, ref string) error {
	err := s.change(func(idx *v1.IndexManifest) (bool, error) {
		before := len(idx.Manifests)
		idx.Manifests = slices.DeleteFunc(idx.Manifests, func(e v1.Descriptor) bool { return goesBy(e, ref) })
		if len(idx.Manifests) == before {
			return false, image.ErrNotFound
		}
		return true, nil
	})
	if err != nil {
		return fmt.Errorf("untag %s: %w", ref, err)
	}
	return nil
}

// List returns all names, sorted. An entry without a name (other tools make such) has an empty Ref.
func (s *Store) List(ctx context.Context) ([]Tagged, error) {
	idx, err := s.index()
	if err != nil {
		return nil, err
	}
	out := make([]Tagged, 0, len(idx.Manifests))
	for _, e := range idx.Manifests {
		t := Tagged{Ref: e.Annotations[refName], Descriptor: plain(e)}
		t.Updated, _ = time.Parse(time.RFC3339, e.Annotations[updated])
		out = append(out, t)
	}
	sort.SliceStable(out, func(i, j int) bool { return out[i].Ref < out[j].Ref })
	return out, nil
}

// plain is an entry of index.json as the descriptor it was before it got a name; what the store noted about it stays.
func plain(e v1.Descriptor) v1.Descriptor {
	e.Annotations = maps.Clone(e.Annotations)
	for _, key := range []string{refName, containerName, updated} {
		delete(e.Annotations, key)
	}
	if len(e.Annotations) == 0 {
		e.Annotations = nil
	}
	e.Data, e.URLs = nil, nil
	return e
}

// public is a descriptor as it goes into archives and comes out of them: without this store's notes.
func public(e v1.Descriptor) v1.Descriptor {
	e = plain(e)
	maps.DeleteFunc(e.Annotations, func(key, _ string) bool { return strings.HasPrefix(key, private) })
	if len(e.Annotations) == 0 {
		e.Annotations = nil
	}
	return e
}

// Resolve finds an image by full reference, or by digest ("sha256:…", "name@sha256:…") if its manifest is there.
// In a layout opened by OpenReadOnly the tag alone, or the name just as it is written in index.json, serves as well,
// and "" is the only entry.
func (s *Store) Resolve(ctx context.Context, ref string) (v1.Descriptor, error) {
	idx, err := s.index()
	if err != nil {
		return v1.Descriptor{}, err
	}
	if _, digest, ok := strings.Cut("@"+ref, "@sha256:"); ok {
		return s.byDigest(ctx, idx, ref, v1.Hash{Algorithm: "sha256", Hex: digest})
	}
	matches := []func(v1.Descriptor) bool{
		func(e v1.Descriptor) bool { return ref != "" && e.Annotations[refName] == ref },
		func(e v1.Descriptor) bool { return goesBy(e, ref) },
	}
	if s.readOnly {
		matches = append(matches,
			func(e v1.Descriptor) bool { return ref == "" },
			func(e v1.Descriptor) bool { return e.Annotations[containerName] == ref },
			func(e v1.Descriptor) bool { return tagOf(e.Annotations[refName]) == ref })
	}
	for _, match := range matches {
		d, n := find(idx, match)
		if n == 1 {
			return plain(d), nil
		}
		if n > 1 {
			return v1.Descriptor{}, fmt.Errorf("%d images in %s go by the name %q; give a digest", n, s.dir, ref)
		}
	}
	return v1.Descriptor{}, fmt.Errorf("image %s: %w", ref, image.ErrNotFound)
}

// find returns the first entry that matches, and how many different ones do.
func find(idx *v1.IndexManifest, match func(v1.Descriptor) bool) (d v1.Descriptor, n int) {
	for _, e := range idx.Manifests {
		if !match(e) || n > 0 && e.Digest == d.Digest {
			continue
		}
		if n++; n == 1 {
			d = e
		}
	}
	return d, n
}

func tagOf(ref string) string {
	if i := strings.LastIndexByte(ref, ':'); i > strings.LastIndexByte(ref, '/') {
		return ref[i+1:]
	}
	return ""
}

// byDigest finds a manifest among the names, else among the blobs, where its own bytes tell what it is.
func (s *Store) byDigest(ctx context.Context, idx *v1.IndexManifest, ref string, h v1.Hash) (v1.Descriptor, error) {
	if err := image.CheckDigest(h); err != nil {
		return v1.Descriptor{}, fmt.Errorf("image %s: %w", ref, err)
	}
	if d, n := find(idx, func(e v1.Descriptor) bool { return e.Digest == h }); n > 0 {
		if has, err := s.Has(ctx, d); err != nil || has {
			return plain(d), err
		}
	}
	fi, err := os.Lstat(s.blobPath(h))
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			err = image.ErrNotFound
		}
		return v1.Descriptor{}, fmt.Errorf("image %s: %w", ref, err)
	}
	d := v1.Descriptor{Size: fi.Size(), Digest: h}
	raw, err := image.ReadAll(ctx, s, d, image.MaxManifest)
	if err == nil {
		d.MediaType, err = image.Kind(raw)
	}
	if err != nil {
		return v1.Descriptor{}, fmt.Errorf("image %s: blob is not a manifest: %w", ref, err)
	}
	return d, nil
}

// refsOf returns the full reference of an entry that another tool may have written. containerd's annotation is one; the other
// only if it has a repository (BuildKit and umoci put the bare tag there).
func refsOf(e v1.Descriptor) []string {
	for _, name := range []string{e.Annotations[containerName], e.Annotations[refName]} {
		if !strings.ContainsAny(name, ":/") || path.IsAbs(name) {
			continue
		}
		if full, err := image.NormalizeRef(name); err == nil {
			return []string{full}
		}
	}
	return nil
}
