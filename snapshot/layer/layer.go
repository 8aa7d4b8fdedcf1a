// Package layer turns a change set into an OCI layer tar and back (image-spec, layer.md).
//
// It knows no compression and no HTTP. Write reads and Apply writes below one directory, and neither follows a name out
// of it: parents are opened by descriptor with openat2(RESOLVE_IN_ROOT|RESOLVE_NO_MAGICLINKS|RESOLVE_NO_SYMLINKS), and the
// links of an archive are resolved here, one component at a time, as the image's own root would resolve them.
//
// A layer is unpacked without its lower layers, so that the layers of an image can be unpacked side by side. What only
// the lower layers can tell (the attributes of a directory the archive leaves out, the target of a link, what an opaque
// directory hides) is noted by Apply and filled in by Settle.
package layer

import (
	"context"
	"io"

	"golang.org/x/sys/unix"

	"img/snapshot"
)

// Names that layers reserve (image-spec, layer.md, "Whiteouts"). What begins with metaPrefix is AUFS's own and means
// nothing here, but for the opaque marker.
const (
	whPrefix   = ".wh."
	metaPrefix = ".wh..wh."
	opaqueName = ".wh..wh..opq"
)

// Limits of what an archive may contain.
const (
	// DefaultMaxEntries is how many entries a layer may have, directories that are only implied included.
	DefaultMaxEntries = 4_000_000

	maxPath      = 4096
	maxComponent = 255
	maxTarget    = 4095 // what symlinkat takes
	maxXattrs    = 256
	maxXattr     = 64 << 10

	// A tar's sparse files make a small archive large: past maxExpandFrom logical bytes, at most maxExpand bytes for one
	// of the archive.
	maxExpandFrom = 100 << 20
	maxExpand     = 1000

	// maxLinks is the kernel's limit for links met while one path is resolved (path_resolution(7)).
	maxLinks = 40
)

// xattrOpaque is "y" on opaque directories in overlay form. A user namespace may set no other attribute of overlay's.
const xattrOpaque = "user.overlay.opaque"

// WriteOptions of Write.
type WriteOptions struct {
	// Epoch bounds times: FromContext entries get it, all others are clamped to it. Unix seconds.
	Epoch *int64
	// FromContext reports whether all entries came from a build context (a COPY from one).
	FromContext bool
	// Root says that the entries are a whole file system (tar output), which nobody reads as a layer: a Removed entry is an error, a name that
	// begins with .wh. is not.
	Root bool
	// Below is a directory, one name, that the entries are put into; "" is none. More says that another Write goes on with the tar.
	Below string
	More  bool
	// Unverified leaves out the comparison of each file's content with its entry's digest.
	Unverified bool
}

// ApplyOptions of Apply and Settle.
type ApplyOptions struct {
	// IDs is how many ids the mapping has: an owner outside is root on disk, itself in the entry and in the
	// user.img.owner attribute. 0 means that every id exists (real root). With 1 nothing is chowned, since all files
	// belong to the one id there is.
	IDs uint32
	// MaxEntries limits the entries; 0 means DefaultMaxEntries.
	MaxEntries int
	// Archive says that the tar is no layer but an archive of ADD: names that begin with .wh. are files like others.
	Archive bool
}

func (o ApplyOptions) maxEntries() int {
	if o.MaxEntries == 0 {
		return DefaultMaxEntries
	}
	return o.MaxEntries
}

// Applied is what Apply found. Until it is settled against the layers below, it may be incomplete.
type Applied struct {
	// Entries is the change set, sorted; later entries of the archive have replaced earlier ones of the same path.
	Entries []snapshot.Entry
	// Implicit are directories that were made because an entry lay below them, though the archive has none for them.
	// They are among Entries, owned by root, with mode 0755 and time 0.
	Implicit []string
	// Opaque are directories below which nothing of the lower layers shows; "." may be one.
	Opaque []string
	// Links are hard links whose target is not in this layer. They are not among Entries.
	Links []Link
}

// A Link is a hard link into a lower layer.
type Link struct{ Path, Target string }

// A Lower is the file system below a layer; *snapshot.View is one.
type Lower interface {
	// Lookup returns the entry at a path; false if there is none. No link is followed.
	Lookup(path string) (snapshot.Entry, bool, error)
	// ReadDir returns the entries of a directory.
	ReadDir(path string) ([]snapshot.Entry, error)
}

var _ Lower = (*snapshot.View)(nil)

// nothing is the file system below the first layer.
type nothing struct{}

func (nothing) Lookup(string) (snapshot.Entry, bool, error) { return snapshot.Entry{}, false, nil }
func (nothing) ReadDir(string) ([]snapshot.Entry, error)    { return nil, nil }

// ctxReader ends a long copy when the build ends.
type ctxReader struct {
	ctx context.Context
	r   io.Reader
	n   int64 // bytes read
}

func (c *ctxReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, context.Cause(c.ctx)
	}
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

// A descriptor reads and writes a regular file; unlike an os.File it costs nothing to make.
type descriptor int

func (d descriptor) Read(p []byte) (int, error) {
	for {
		n, err := unix.Read(int(d), p)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return 0, err
		case n == 0 && len(p) > 0:
			return 0, io.EOF
		default:
			return n, nil
		}
	}
}

func (d descriptor) Write(p []byte) (int, error) {
	for done := 0; ; {
		n, err := unix.Write(int(d), p[done:])
		done += max(n, 0)
		if err != nil && err != unix.EINTR || done == len(p) {
			if err == unix.EINTR {
				err = nil
			}
			return done, err
		}
	}
}
