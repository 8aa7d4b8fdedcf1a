package layout

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"img/registry/image"
)

const (
	maxEntries = 100_000 // of an archive
	maxName    = 4096    // bytes
	maxLinks   = 8       // followed from a layer's name to its file
)

// ReadArchive reads either kind of archive (any compression) as a stream into the store and returns the images found, untagged:
// OCI layouts, and what `docker save`, podman, kaniko and others write as "docker-archive". Nothing is unpacked by name: content
// goes to blobs under its digest, and only names of the formats are looked at, regular files (and, for layers of old archives,
// links inside the archive), each once. Refs are full references; bare tags ("latest") name nothing.
func ReadArchive(ctx context.Context, r io.Reader, s *Store) ([]Named, error) {
	images, err := readArchive(ctx, r, s)
	if err != nil {
		return nil, fmt.Errorf("read image archive: %w", err)
	}
	return images, nil
}

func readArchive(ctx context.Context, r io.Reader, s *Store) ([]Named, error) {
	plain, err := image.DecompressAny(&contextReader{ctx, r})
	if err != nil {
		return nil, err
	}
	defer plain.Close()
	in := bufio.NewReader(plain)
	if _, err := in.Peek(1); err == io.EOF {
		return nil, fmt.Errorf("the archive is empty: %w", io.ErrUnexpectedEOF)
	}
	a := &contents{store: s, documents: map[string][]byte{}, files: map[string]v1.Descriptor{}, links: map[string]string{}, seen: map[string]bool{}}
	tr := tar.NewReader(in)
	for {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil && len(a.seen) == 0 {
			return nil, fmt.Errorf("not a tar archive: %w", err)
		}
		if err != nil {
			return nil, err
		}
		if err := a.entry(ctx, h, tr); err != nil {
			return nil, fmt.Errorf("entry %.200q: %w", h.Name, err)
		}
	}
	images, err := a.images(ctx)
	if err == nil && len(images) == 0 {
		err = errors.New("its table of contents names no image")
	}
	return images, err
}

// contents is what an archive holds, by the names in it. The names are keys of maps and never paths on disk.
type contents struct {
	store     *Store
	documents map[string][]byte        // index.json, manifest.json, oci-layout
	files     map[string]v1.Descriptor // now blobs; media type unset
	links     map[string]string        // name to name
	seen      map[string]bool
}

func (a *contents) entry(ctx context.Context, h *tar.Header, r io.Reader) error {
	if len(h.Name) > maxName || len(h.Linkname) > maxName {
		return errors.New("name is too long")
	}
	name := path.Clean(h.Name)
	if path.IsAbs(name) || name == ".." || strings.HasPrefix(name, "../") {
		return errors.New("name leads out of the archive")
	}
	if h.Typeflag == tar.TypeDir {
		return nil
	}
	if a.seen[name] {
		return errors.New("name appears twice")
	}
	if a.seen[name] = true; len(a.seen) > maxEntries {
		return fmt.Errorf("more than %d entries", maxEntries)
	}
	switch kind := kindOf(name); {
	case kind == other:
		return nil
	case h.Typeflag == tar.TypeSymlink && kind == file:
		a.links[name] = path.Join(path.Dir(name), h.Linkname)
		return nil
	case h.Typeflag == tar.TypeLink && kind == file:
		a.links[name] = path.Clean(h.Linkname)
		return nil
	case h.Typeflag != tar.TypeReg:
		return errors.New("not a regular file")
	case kind == document:
		return a.document(name, r)
	default:
		return a.file(ctx, name, h.Size, r)
	}
}

type entryKind int

const (
	other    entryKind = iota
	document           // oci-layout, index.json, manifest.json
	blob               // blobs/sha256/<hex>
	file               // a configuration or layer of docker-archive
)

func kindOf(name string) entryKind {
	switch name {
	case "oci-layout", "index.json", "manifest.json":
		return document
	case "repositories": // what it says manifest.json says too
		return other
	}
	if strings.HasPrefix(name, "blobs/sha256/") {
		return blob
	}
	for _, suffix := range []string{".json", ".tar", ".tar.gz", ".tgz", ".tar.zst"} {
		if strings.HasSuffix(name, suffix) {
			return file
		}
	}
	// kaniko and crane name configurations "sha256:<hex>"; others by the digest alone.
	if base := strings.TrimPrefix(name, "sha256:"); image.CheckDigest(v1.Hash{Algorithm: "sha256", Hex: base}) == nil {
		return file
	}
	return other
}

func (a *contents) document(name string, r io.Reader) error {
	raw, err := io.ReadAll(io.LimitReader(r, image.MaxManifest+1))
	if err != nil {
		return err
	}
	if len(raw) > image.MaxManifest {
		return fmt.Errorf("larger than %d bytes", image.MaxManifest)
	}
	a.documents[name] = raw
	return nil
}

// file makes a blob of an entry, under the digest of its content.
func (a *contents) file(ctx context.Context, name string, size int64, r io.Reader) error {
	d := v1.Descriptor{Size: size}
	claimed, isBlob := strings.CutPrefix(name, "blobs/sha256/")
	if isBlob {
		d.Digest = v1.Hash{Algorithm: "sha256", Hex: claimed}
		a.files[name] = d
		return a.store.Push(ctx, d, r)
	}
	w, err := a.store.Create()
	if err != nil {
		return err
	}
	defer w.Discard()
	sum := sha256.New()
	if _, err := io.Copy(io.MultiWriter(w.File, sum), r); err != nil {
		return err
	}
	d.Digest = v1.Hash{Algorithm: "sha256", Hex: fmt.Sprintf("%x", sum.Sum(nil))}
	a.files[name] = d
	return w.Commit(d)
}

// find returns the blob that a name in manifest.json stands for.
func (a *contents) find(name string) (v1.Descriptor, error) {
	at := path.Clean(name)
	for range maxLinks {
		if d, ok := a.files[at]; ok {
			return d, nil
		}
		to, ok := a.links[at]
		if !ok {
			return v1.Descriptor{}, fmt.Errorf("%.200q is not in the archive", name)
		}
		at = to
	}
	return v1.Descriptor{}, fmt.Errorf("%.200q is behind too many links", name)
}

func (a *contents) images(ctx context.Context) ([]Named, error) {
	index, toc := a.documents["index.json"], a.documents["manifest.json"]
	switch {
	case index != nil:
		return a.fromIndex(ctx, index)
	case toc != nil:
		return a.fromDocker(ctx, toc)
	}
	return nil, errors.New("has neither index.json nor manifest.json: not an image archive (file systems are imported, not loaded)")
}

// fromIndex reads an OCI layout's table of contents. What it names must be complete, but for images of other platforms.
func (a *contents) fromIndex(ctx context.Context, raw []byte) ([]Named, error) {
	idx, err := image.ParseIndex(raw)
	if err != nil {
		return nil, fmt.Errorf("index.json: %w", err)
	}
	var out []Named
	at := map[v1.Hash]int{}
	for _, e := range idx.Manifests {
		i, ok := at[e.Digest]
		if !ok {
			if _, err := a.store.contents(ctx, []Named{{Descriptor: e}}); err != nil {
				return nil, err
			}
			i, at[e.Digest] = len(out), len(out)
			out = append(out, Named{Descriptor: public(e)})
		}
		out[i].Refs = append(out[i].Refs, refsOf(e)...)
	}
	return out, nil
}

// fromDocker makes manifests for the images of manifest.json; configurations keep their bytes, so image ids stay what they are.
func (a *contents) fromDocker(ctx context.Context, toc []byte) ([]Named, error) {
	var entries []dockerEntry
	if err := json.Unmarshal(toc, &entries); err != nil {
		return nil, fmt.Errorf("manifest.json: %w", err)
	}
	if len(entries) > image.MaxDescriptors {
		return nil, fmt.Errorf("manifest.json: more than %d images", image.MaxDescriptors)
	}
	var out []Named
	for i, e := range entries {
		n, err := a.dockerImage(ctx, e)
		if err != nil {
			return nil, fmt.Errorf("manifest.json: image %d: %w", i+1, err)
		}
		out = append(out, n)
	}
	return out, nil
}

func (a *contents) dockerImage(ctx context.Context, e dockerEntry) (Named, error) {
	config, err := a.find(e.Config)
	if err != nil {
		return Named{}, fmt.Errorf("config: %w", err)
	}
	config.MediaType = types.DockerConfigJSON
	raw, err := image.ReadAll(ctx, a.store, config, image.MaxConfig)
	if err != nil {
		return Named{}, fmt.Errorf("config: %w", err)
	}
	cfg, _, err := image.ParseConfig(raw)
	if err != nil {
		return Named{}, fmt.Errorf("config: %w", err)
	}
	if len(e.Layers) != len(cfg.RootFS.DiffIDs) || len(e.Layers) > image.MaxLayers {
		return Named{}, fmt.Errorf("%d layers, config has %d diff ids, limit is %d", len(e.Layers), len(cfg.RootFS.DiffIDs), image.MaxLayers)
	}
	m := v1.Manifest{SchemaVersion: 2, MediaType: types.DockerManifestSchema2, Config: config, Layers: []v1.Descriptor{}}
	for i, name := range e.Layers {
		d, err := a.layer(ctx, name, cfg.RootFS.DiffIDs[i])
		if err != nil {
			return Named{}, fmt.Errorf("layer %d: %w", i+1, err)
		}
		m.Layers = append(m.Layers, d)
	}
	n := Named{}
	for _, tag := range e.RepoTags {
		ref, err := image.NormalizeRef(tag)
		if err != nil {
			return Named{}, err
		}
		n.Refs = append(n.Refs, ref)
	}
	if n.Descriptor, err = a.manifest(ctx, m); err != nil {
		return Named{}, err
	}
	n.Descriptor.Platform = cfg.Platform()
	return n, nil
}

func (a *contents) manifest(ctx context.Context, m v1.Manifest) (v1.Descriptor, error) {
	raw, err := json.Marshal(m)
	if err != nil {
		return v1.Descriptor{}, err
	}
	d := v1.Descriptor{MediaType: m.MediaType, Size: int64(len(raw)), Digest: image.Digest(raw)}
	return d, a.store.Push(ctx, d, bytes.NewReader(raw))
}

// layer finds a layer and checks its diff id: in this format nothing else binds it to the configuration.
func (a *contents) layer(ctx context.Context, name string, diffID v1.Hash) (v1.Descriptor, error) {
	d, err := a.find(name)
	if err != nil {
		return v1.Descriptor{}, err
	}
	if d.Digest == diffID {
		d.MediaType = types.DockerUncompressedLayer
		return d, nil
	}
	f, err := a.store.OpenBlob(d)
	if err != nil {
		return v1.Descriptor{}, err
	}
	defer f.Close()
	var magic [4]byte
	if _, err := f.ReadAt(magic[:], 0); err != nil && err != io.EOF {
		return v1.Descriptor{}, err
	}
	d.MediaType = image.DockerZstdLayer
	if magic[0] == 0x1f {
		d.MediaType = types.DockerLayer
	}
	plain, err := image.Decompress(&contextReader{ctx, f}, string(d.MediaType))
	if err != nil {
		return v1.Descriptor{}, err
	}
	defer plain.Close()
	got, _, err := v1.SHA256(plain)
	if err != nil {
		return v1.Descriptor{}, err
	}
	if got != diffID {
		return v1.Descriptor{}, fmt.Errorf("has diff id %s, config says %s", got, diffID)
	}
	return d, nil
}
