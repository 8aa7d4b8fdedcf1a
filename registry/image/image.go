// Package image holds images as immutable values, and the small interfaces of the places that hold them.
//
// It knows no HTTP and no path on disk. Formats: OCI image-spec v1.1 and Docker image manifest version 2, schema 2.
// Everything that is read is untrusted: digests, sizes and limits are checked before a document is used.
package image

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// ErrNotFound is what places return, wrapped with the name or digest, for what they do not hold.
var ErrNotFound = errors.New("not found")

// Limits on what an image may ask of us.
const (
	MaxManifest    = 4 << 20 // bytes of a manifest or an index
	MaxConfig      = 8 << 20 // bytes of a configuration
	MaxLayers      = 512     // of one image
	MaxDepth       = 4       // of indexes in indexes
	MaxDescriptors = 10_000  // in everything an index names
)

// An Image is one platform's image, read whole but for its layers.
type Image struct {
	// Descriptor is the manifest's.
	Descriptor v1.Descriptor
	Manifest   *v1.Manifest
	Config     *v1.ConfigFile
	// StartInterval is HEALTHCHECK's --start-interval, for which v1.HealthConfig has no field; 0 if not set.
	StartInterval time.Duration
	// RawManifest and RawConfig are the bytes that the digests are of.
	RawManifest, RawConfig []byte
	// Layers, base first.
	Layers []Layer
}

// A Layer is a packed layer.
type Layer struct {
	DiffID     v1.Hash
	Descriptor v1.Descriptor
}

// ChainIDs returns the ChainID after each layer (image-spec, config.md, "Layer ChainID").
func ChainIDs(layers []Layer) []v1.Hash {
	ids := make([]v1.Hash, len(layers))
	for i, l := range layers {
		if i == 0 {
			ids[i] = l.DiffID
			continue
		}
		ids[i] = Digest([]byte(ids[i-1].String() + " " + l.DiffID.String()))
	}
	return ids
}

// Digest returns the sha256 digest of data.
func Digest(data []byte) v1.Hash {
	return v1.Hash{Algorithm: "sha256", Hex: fmt.Sprintf("%x", sha256.Sum256(data))}
}

// A Fetcher reads content by descriptor. What it returns is checked by the caller (Verify), never trusted.
type Fetcher interface {
	Fetch(ctx context.Context, d v1.Descriptor) (io.ReadCloser, error)
}

// A Pusher takes content. Pushing what is there already succeeds without reading r. It verifies digest and size.
type Pusher interface {
	// Has reports whether the content is there already.
	Has(ctx context.Context, d v1.Descriptor) (bool, error)
	Push(ctx context.Context, d v1.Descriptor, r io.Reader) error
}

// A Resolver finds the descriptor that a name stands for.
type Resolver interface {
	Resolve(ctx context.Context, ref string) (v1.Descriptor, error)
}

// Load reads the image of a platform: an index is followed (depth at most 4), digests and sizes are checked, limits
// hold. The config's diff ids must match the manifest's layers in number. A manifest that is named directly is loaded
// whatever its platform is; compare Config.Platform.
func Load(ctx context.Context, src Fetcher, d v1.Descriptor, p Platform) (*Image, error) {
	d, err := Select(ctx, src, d, p)
	if err != nil {
		return nil, err
	}
	raw, err := ReadAll(ctx, src, d, MaxManifest)
	if err != nil {
		return nil, fmt.Errorf("read manifest %s: %w", d.Digest, err)
	}
	m, err := ParseManifest(raw)
	if err != nil {
		return nil, fmt.Errorf("manifest %s: %w", d.Digest, err)
	}
	if err := checkImage(m); err != nil {
		return nil, fmt.Errorf("manifest %s: %w", d.Digest, err)
	}
	rawConfig, err := ReadAll(ctx, src, m.Config, MaxConfig)
	if err != nil {
		return nil, fmt.Errorf("read config %s: %w", m.Config.Digest, err)
	}
	img := &Image{Descriptor: d, Manifest: m, RawManifest: raw, RawConfig: rawConfig}
	if img.Config, img.StartInterval, err = ParseConfig(rawConfig); err != nil {
		return nil, fmt.Errorf("config %s: %w", m.Config.Digest, err)
	}
	if img.Layers, err = pair(img.Config.RootFS.DiffIDs, m.Layers); err != nil {
		return nil, fmt.Errorf("manifest %s: %w", d.Digest, err)
	}
	return img, nil
}

// checkImage refuses manifests of things that are not container images, such as charts, signatures and build caches.
func checkImage(m *v1.Manifest) error {
	if !m.Config.MediaType.IsConfig() {
		return fmt.Errorf("not a container image: config has media type %q", m.Config.MediaType)
	}
	if len(m.Layers) > MaxLayers {
		return fmt.Errorf("%d layers, limit is %d", len(m.Layers), MaxLayers)
	}
	for i, l := range m.Layers {
		if !isLayer(l.MediaType) {
			return fmt.Errorf("layer %d has unknown media type %q", i+1, l.MediaType)
		}
	}
	return nil
}

func pair(ids []v1.Hash, layers []v1.Descriptor) ([]Layer, error) {
	if len(ids) != len(layers) {
		return nil, fmt.Errorf("config has %d diff ids, manifest has %d layers", len(ids), len(layers))
	}
	out := make([]Layer, len(layers))
	for i, l := range layers {
		if err := CheckDigest(ids[i]); err != nil {
			return nil, fmt.Errorf("diff id %d: %w", i+1, err)
		}
		out[i] = Layer{DiffID: ids[i], Descriptor: l}
	}
	return out, nil
}

// CheckDigest returns an error unless h is a well-formed sha256 digest, the one algorithm in use.
func CheckDigest(h v1.Hash) error {
	if h.Algorithm != "sha256" {
		return fmt.Errorf("digest algorithm %q is not sha256", h.Algorithm)
	}
	if len(h.Hex) != 2*sha256.Size {
		return fmt.Errorf("digest %q has a wrong length", h.Hex)
	}
	for _, c := range h.Hex {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return fmt.Errorf("digest %q has a character that is no lower-case hexadecimal digit", h.Hex)
		}
	}
	return nil
}

// ReadAll reads a document whole and verifies it; more than limit bytes is an error.
func ReadAll(ctx context.Context, src Fetcher, d v1.Descriptor, limit int64) ([]byte, error) {
	if d.Size > limit {
		return nil, fmt.Errorf("%d bytes, limit is %d", d.Size, limit)
	}
	rc, err := src.Fetch(ctx, d)
	if err != nil {
		return nil, err
	}
	defer rc.Close()
	var b bytes.Buffer
	if _, err := b.ReadFrom(Verify(rc, d)); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// Verify returns a reader that fails if what was read is not what d says. It never returns more than d.Size bytes, and the last of
// them only if the digest is right.
func Verify(r io.Reader, d v1.Descriptor) io.Reader {
	return &verifier{r: r, want: d, sum: sha256.New(), err: verifiable(d)}
}

func verifiable(d v1.Descriptor) error {
	if d.Size < 0 {
		return fmt.Errorf("size %d is negative", d.Size)
	}
	return CheckDigest(d.Digest)
}

type verifier struct {
	r    io.Reader
	want v1.Descriptor
	sum  hash.Hash
	n    int64
	err  error // sticky
}

func (v *verifier) Read(p []byte) (int, error) {
	if v.err != nil {
		return 0, v.err
	}
	n, err := v.r.Read(p)
	if over := v.n + int64(n) - v.want.Size; over > 0 {
		v.err = fmt.Errorf("content of %s is longer than its size %d", v.want.Digest, v.want.Size)
		return 0, v.err
	}
	v.sum.Write(p[:n])
	v.n += int64(n)
	switch {
	case err == io.EOF:
		err = v.atEnd()
	case n > 0 && v.n == v.want.Size:
		// Now, not at EOF: a writer that knows the size may never ask for more.
		if wrong := v.checkSum(); wrong != nil {
			v.err = wrong
			return 0, wrong
		}
	}
	v.err = err
	return n, err
}

func (v *verifier) atEnd() error {
	if v.n < v.want.Size {
		return fmt.Errorf("content of %s ends after %d of %d bytes: %w", v.want.Digest, v.n, v.want.Size, io.ErrUnexpectedEOF)
	}
	if err := v.checkSum(); err != nil {
		return err
	}
	return io.EOF
}

func (v *verifier) checkSum() error {
	if got := fmt.Sprintf("%x", v.sum.Sum(nil)); got != v.want.Digest.Hex {
		return fmt.Errorf("content has digest sha256:%s, want %s", got, v.want.Digest)
	}
	return nil
}
