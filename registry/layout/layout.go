// Package layout is the OCI image layout on disk (image-spec, image-layout.md): the local store, and archives.
//
// The store is <state>/registry: oci-layout, index.json, blobs/sha256. index.json holds one descriptor per tag, with the
// full reference ("docker.io/library/debian:12") in the annotation "org.opencontainers.image.ref.name"
// (skopeo addresses oci:DIR:NAME by it). It uses no network.
package layout

import (
	"context"
	"io"
	"os"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// A Store is a layout directory. It implements image.Fetcher, image.Pusher and image.Resolver. Safe for concurrent use, also
// by several processes: index.json changes under a flock and by rename.
type Store struct{ dir string }

// Open uses dir, making an empty layout when missing.
func Open(dir string) (*Store, error) { panic("unwritten") }

// OpenReadOnly uses a layout of somebody else's (oci-layout://DIR): nothing is made or written; blob files that are links are refused.
func OpenReadOnly(dir string) (*Store, error) { panic("unwritten") }

func (s *Store) Has(ctx context.Context, d v1.Descriptor) (bool, error) { panic("unwritten") }
func (s *Store) Fetch(ctx context.Context, d v1.Descriptor) (io.ReadCloser, error) {
	panic("unwritten")
}
func (s *Store) Push(ctx context.Context, d v1.Descriptor, r io.Reader) error   { panic("unwritten") }
func (s *Store) Resolve(ctx context.Context, ref string) (v1.Descriptor, error) { panic("unwritten") }

// OpenBlob opens a blob's file.
func (s *Store) OpenBlob(d v1.Descriptor) (*os.File, error) { panic("unwritten") }

// Create makes a temporary file that becomes a blob.
func (s *Store) Create() (*Writer, error) { panic("unwritten") }

// A Writer is a blob in the making. Another process may write to File; Commit names the blob by the descriptor, whose size is
// checked (the digest is trusted: the writer computed it).
type Writer struct{ File *os.File }

func (w *Writer) Commit(d v1.Descriptor) error { panic("unwritten") }

// Discard drops the file; after Commit it does nothing.
func (w *Writer) Discard() error { panic("unwritten") }

// Tag makes ref (a full reference) name d, replacing what it named. Before the name is written, everything that d names is made
// durable (fsync of blobs and directory).
func (s *Store) Tag(ctx context.Context, ref string, d v1.Descriptor) error { panic("unwritten") }

// Untag removes a name; image.ErrNotFound if there is none.
func (s *Store) Untag(ctx context.Context, ref string) error { panic("unwritten") }

// A Tagged is a name in the store.
type Tagged struct {
	Ref        string
	Descriptor v1.Descriptor
	Updated    time.Time
}

// List returns all names, sorted.
func (s *Store) List(ctx context.Context) ([]Tagged, error) { panic("unwritten") }

// Blobs calls f for each blob in the store.
func (s *Store) Blobs(f func(digest v1.Hash, size int64, used time.Time) error) error {
	panic("unwritten")
}

// Delete removes a blob.
func (s *Store) Delete(digest v1.Hash) error { panic("unwritten") }

// Reachable returns the digests that a descriptor names, itself included; what is missing is skipped.
func (s *Store) Reachable(ctx context.Context, d v1.Descriptor) ([]v1.Hash, error) {
	panic("unwritten")
}

// A Named is an image and its names, for archives.
type Named struct {
	Descriptor v1.Descriptor
	Refs       []string
}

// WriteOCIArchive writes images as a tar of an OCI layout; times are 0, order is fixed.
func WriteOCIArchive(ctx context.Context, w io.Writer, s *Store, images []Named) error {
	panic("unwritten")
}

// WriteDockerArchive writes images in the form of `docker save` (manifest.json, and an OCI layout beside it).
func WriteDockerArchive(ctx context.Context, w io.Writer, s *Store, images []Named) error {
	panic("unwritten")
}

// ReadArchive reads either kind of archive (any compression) as a stream into the store and returns the images found, untagged.
func ReadArchive(ctx context.Context, r io.Reader, s *Store) ([]Named, error) { panic("unwritten") }
