package snapshot

// A Type is what kind of file an entry is.
type Type byte

const (
	Dir     Type = 'd'
	File    Type = 'f'
	Symlink Type = 'l'
	Char    Type = 'c'
	Block   Type = 'b'
	Fifo    Type = 'p'
	// Removed says that the parent's entry, and what is below it, is gone.
	Removed Type = 'x'
)

// An Entry is one line of a tree: a path and what is there now.
type Entry struct {
	// Path is relative to the root, slash-separated, clean; "." is the root itself.
	Path string
	Type Type
	// Mode is the permission bits with set-id and sticky: 07777.
	Mode uint32
	// UID and GID are the intended owners, as the image has them.
	UID, GID     uint32
	Major, Minor uint32
	// Size is a File's, in bytes.
	Size int64
	// MTime is in nanoseconds since 1970.
	MTime int64
	// TimeSet says that the step set the time, so that it counts in the name.
	TimeSet bool
	// Link is a symlink's target.
	Link string
	// HardLink is the path of the first entry, in order, of this change set that is the same file; "" for that first
	// one and for files with one name. All other columns are filled for every name.
	HardLink string
	// Xattrs that count, sorted by name: user.* (less overlay's and ours), security.capability without its root id, POSIX ACLs.
	Xattrs []Xattr
	// Digest is the SHA-256 of a File's content, in hex.
	Digest string
}

// An Xattr is an extended attribute.
type Xattr struct {
	Name  string
	Value []byte
}

// Compare orders paths as a sorted walk meets them: component by component, "." first, a directory before what is below it
// and everything below it before its next sibling.
func Compare(a, b string) int { panic("unwritten") }

// A Tree is one snapshot's change set, read from its file without holding it in memory.
type Tree struct{}

// Each calls f for every entry in order until f returns an error, which it returns.
func (t *Tree) Each(f func(Entry) error) error { panic("unwritten") }

// Lookup finds a path by binary search.
func (t *Tree) Lookup(path string) (Entry, bool, error) { panic("unwritten") }

// Close releases the file.
func (t *Tree) Close() error { panic("unwritten") }

// Tree opens a snapshot's own change set, from any mapping.
func (s *Store) Tree(n Name) (*Tree, error) { panic("unwritten") }

// A View is the whole file system of a chain of trees.
type View struct{}

// Lookup returns the entry at a path; false if there is none. No link is followed.
func (v *View) Lookup(path string) (Entry, bool, error) { panic("unwritten") }

// ReadDir returns the entries of a directory, sorted.
func (v *View) ReadDir(path string) ([]Entry, error) { panic("unwritten") }

// Walk calls f for the entry at path and all below it, in order (no Removed ones).
func (v *View) Walk(path string, f func(Entry) error) error { panic("unwritten") }

// Close releases the files.
func (v *View) Close() error { panic("unwritten") }
