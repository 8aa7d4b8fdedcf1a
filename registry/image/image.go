// Package image holds images as immutable values, and the small interfaces of the places that hold them.
//
// It knows no HTTP and no path on disk. Formats: OCI image-spec v1.1 and Docker image manifest version 2, schema 2.
package image

import (
	"context"
	"io"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// An Image is one platform's image, read whole but for its layers.
type Image struct {
	// Descriptor is the manifest's.
	Descriptor v1.Descriptor
	Manifest   *v1.Manifest
	Config     *v1.ConfigFile
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
func ChainIDs(layers []Layer) []v1.Hash { panic("unwritten") }

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

// Platform selects from an index; the zero value is the host's.
type Platform = v1.Platform

// Load reads the image of a platform: an index is followed (depth at most 4), digests and sizes are checked, limits
// of security-reliability.md §1.9 hold. The config's diff ids must match the manifest's layers in number.
func Load(ctx context.Context, src Fetcher, d v1.Descriptor, p Platform) (*Image, error) {
	panic("unwritten")
}

// Verify returns a reader that fails at the end if what was read is not what d says.
func Verify(r io.Reader, d v1.Descriptor) io.Reader { panic("unwritten") }

// CopyOptions of Copy.
type CopyOptions struct {
	// Platforms, if not empty, copies only these of an index (and keeps the index's bytes out).
	Progress func(d v1.Descriptor, done bool)
	// Parallel is how many blobs move at once; 0 means 4.
	Parallel int
}

// Copy moves content and everything it names from src to dst: layers and configs before manifests, manifests before indexes.
// It serves pull, push, save and load.
func Copy(ctx context.Context, dst Pusher, src Fetcher, d v1.Descriptor, o CopyOptions) error {
	panic("unwritten")
}

// AssembleOptions of Assemble.
type AssembleOptions struct {
	// Docker chooses Docker's media types.
	Docker      bool
	Annotations map[string]string
}

// Assemble makes an image of a configuration and layers: rootfs is filled in, configuration and manifest are marshalled
// canonically (equal input, equal bytes).
func Assemble(cfg *v1.ConfigFile, layers []Layer, o AssembleOptions) (*Image, error) {
	panic("unwritten")
}
