package layout

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"sort"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"img/registry/image"
)

// A Named is an image and its names, for archives.
type Named struct {
	Descriptor v1.Descriptor
	Refs       []string
}

// A dockerEntry is an element of manifest.json, the table of contents of `docker save`.
type dockerEntry struct {
	Config   string
	RepoTags []string
	Layers   []string
}

// WriteOCIArchive writes images as a tar of an OCI layout; times are 0, order is fixed: oci-layout, index.json, blobs by digest.
// Images of an index that the store lacks are left out; anything else missing is an error.
func WriteOCIArchive(ctx context.Context, w io.Writer, s *Store, images []Named) error {
	return writeArchive(ctx, w, s, images, nil)
}

// WriteDockerArchive writes images in the form of `docker save` (manifest.json, and an OCI layout beside it). Of an index, manifest.json
// has the host's image.
func WriteDockerArchive(ctx context.Context, w io.Writer, s *Store, images []Named) error {
	entries := make([]dockerEntry, len(images))
	for i, n := range images {
		img, err := image.Load(ctx, s, n.Descriptor, image.Platform{})
		if err != nil {
			return fmt.Errorf("write Docker archive: %w", err)
		}
		entries[i] = entryOf(img, n.Refs)
	}
	toc, err := json.Marshal(entries)
	if err != nil {
		return fmt.Errorf("write Docker archive: %w", err)
	}
	return writeArchive(ctx, w, s, images, toc)
}

func entryOf(img *image.Image, refs []string) dockerEntry {
	e := dockerEntry{Config: blobName(img.Manifest.Config.Digest), RepoTags: []string{}, Layers: []string{}}
	for _, ref := range refs {
		if !strings.Contains(ref, "@") { // docker load takes tags alone
			e.RepoTags = append(e.RepoTags, image.Familiar(ref))
		}
	}
	for _, l := range img.Layers {
		e.Layers = append(e.Layers, blobName(l.Descriptor.Digest))
	}
	return e
}

func blobName(h v1.Hash) string { return "blobs/" + h.Algorithm + "/" + h.Hex }

func writeArchive(ctx context.Context, w io.Writer, s *Store, images []Named, toc []byte) error {
	blobs, err := s.contents(ctx, images)
	if err != nil {
		return fmt.Errorf("write archive: %w", err)
	}
	index, err := archiveIndex(images)
	if err != nil {
		return fmt.Errorf("write archive: %w", err)
	}
	a := archive{tar.NewWriter(w)}
	if err := a.writeAll(ctx, s, index, toc, blobs); err != nil {
		return fmt.Errorf("write archive: %w", err)
	}
	return nil
}

// contents returns what an archive of images holds, sorted by digest.
func (s *Store) contents(ctx context.Context, images []Named) ([]v1.Descriptor, error) {
	set := map[v1.Hash]v1.Descriptor{}
	for _, n := range images {
		err := s.walk(ctx, n.Descriptor, func(d v1.Descriptor, there bool) error {
			optional := d.Digest != n.Descriptor.Digest && (d.MediaType.IsImage() || d.MediaType.IsIndex()) ||
				!d.MediaType.IsDistributable()
			switch {
			case there:
				set[d.Digest] = d
			case !optional:
				return fmt.Errorf("blob %s: %w", d.Digest, image.ErrNotFound)
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	blobs := make([]v1.Descriptor, 0, len(set))
	for _, d := range set {
		blobs = append(blobs, d)
	}
	sort.Slice(blobs, func(i, j int) bool { return blobs[i].Digest.Hex < blobs[j].Digest.Hex })
	return blobs, nil
}

func archiveIndex(images []Named) ([]byte, error) {
	var entries []v1.Descriptor
	for _, n := range images {
		d := public(n.Descriptor)
		if len(n.Refs) == 0 {
			entries = append(entries, d)
		}
		for _, ref := range n.Refs {
			named := d
			named.Annotations = map[string]string{refName: ref, containerName: ref}
			for k, v := range d.Annotations {
				named.Annotations[k] = v
			}
			entries = append(entries, named)
		}
	}
	raw, _, err := image.Index(entries, image.AssembleOptions{})
	return raw, err
}

type archive struct{ *tar.Writer }

func (a archive) writeAll(ctx context.Context, s *Store, index, toc []byte, blobs []v1.Descriptor) error {
	files := []struct {
		name string
		data []byte
	}{{"oci-layout", []byte(layoutFile)}, {"index.json", index}, {"manifest.json", toc}}
	for _, f := range files {
		if f.data == nil {
			continue
		}
		if err := a.file(f.name, int64(len(f.data)), bytes.NewReader(f.data)); err != nil {
			return err
		}
	}
	for _, dir := range []string{"blobs/", "blobs/sha256/"} {
		if err := a.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: 0o755, ModTime: time.Unix(0, 0)}); err != nil {
			return err
		}
	}
	for _, d := range blobs {
		if err := a.blob(ctx, s, d); err != nil {
			return fmt.Errorf("blob %s: %w", d.Digest, err)
		}
	}
	return a.Close()
}

func (a archive) blob(ctx context.Context, s *Store, d v1.Descriptor) error {
	f, err := s.OpenBlob(d)
	if err != nil {
		return err
	}
	defer f.Close()
	return a.file(blobName(d.Digest), d.Size, image.Verify(&contextReader{ctx, f}, d))
}

func (a archive) file(name string, size int64, r io.Reader) error {
	if err := a.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o644, ModTime: time.Unix(0, 0)}); err != nil {
		return err
	}
	_, err := io.Copy(a, r)
	return err
}
