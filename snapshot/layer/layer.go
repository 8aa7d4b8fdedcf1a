// Package layer turns a change set into an OCI layer tar and back (image-spec, layer.md).
//
// It knows no compression and no HTTP. Apply never follows a name out of the directory it is given: every path is
// resolved by descriptor with openat2(RESOLVE_IN_ROOT|RESOLVE_NO_MAGICLINKS).
package layer

import (
	"context"
	"io"
	"os"

	"img/snapshot"
)

// WriteOptions of Write.
type WriteOptions struct {
	// Epoch bounds times: FromContext entries get it, all others are clamped to it. Unix seconds.
	Epoch *int64
	// FromContext reports whether all entries came from a build context (a COPY from one).
	FromContext bool
	// Root includes every directory of a whole file system (tar output): no whiteouts are expected.
}

// Write writes a change set as a deterministic layer tar: sorted, PAX only where needed, no times but mtime in whole
// seconds, no user names, explicit whiteouts (.wh.NAME). fsys is the directory that holds the files of the entries.
func Write(ctx context.Context, w io.Writer, entries func(yield func(snapshot.Entry) error) error, fsys *os.File, o WriteOptions) error {
	panic("unwritten")
}

// ApplyOptions of Apply.
type ApplyOptions struct {
	// IDs is how many ids the mapping has; an owner outside is root on disk, itself in the entry and in the
	// user.img.owner attribute.
	IDs uint32
	// Limits; zero values mean the defaults of security-reliability.md §1.9.
	MaxEntries int
}

// Applied is what Apply found, before it is settled against the layers below.
type Applied struct {
	// Entries is the change set, sorted; later entries of the archive have replaced earlier ones of the same path.
	Entries []snapshot.Entry
	// Implicit are directories that were made because an entry lay below them, though the archive has none for them.
	Implicit []string
	// Links are hard links whose target is not in this layer.
	Links []Link
}

// A Link is a hard link into a lower layer.
type Link struct{ Path, Target string }

// Apply unpacks a layer's tar into dir, an empty directory, in overlay form: a whiteout becomes a 0:0 character device,
// an opaque whiteout the attribute user.overlay.opaque (and explicit Removed entries when it is settled).
func Apply(ctx context.Context, r io.Reader, dir *os.File, o ApplyOptions) (*Applied, error) {
	panic("unwritten")
}

// Settle completes what Apply noted, given the settled file system below: implicit directories take the lower
// directory's attributes, links into lower layers become copies with two names, opaque directories become explicit
// removals. open reads a file of the lower file system.
func (a *Applied) Settle(ctx context.Context, dir *os.File, lower *snapshot.View, open func(path string) (*os.File, error), o ApplyOptions) error {
	panic("unwritten")
}
