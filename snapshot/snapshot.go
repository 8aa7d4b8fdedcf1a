// Package snapshot keeps file-system states: prepare on a parent, change, commit.
//
// A committed snapshot is <state>/snapshot/<map>/<name>/ with
//
//	parent   the parent's name, or nothing
//	tree     the change set as data (see tree.go); keys, packing, outputs and du read it
//	fs/      the files in overlay form; owners on disk are never the truth
//
// <map> labels an id mapping: each mapping's ids own their directory, so that root and users can share one state.
// The package knows no OCI type, no tar and no cache key.
package snapshot

import "context"

// A Name identifies a committed snapshot: "sha256:<hex>". A base image's snapshot is named by its ChainID; a step's by
// its content: H(parent's Name, tree without the mtime column, and the times that the step set).
// Only Commit and Publish make Names of snapshots that exist; only a Name can be a parent. The empty Name is the empty file system.
type Name string

// Driver kinds.
const (
	Overlay = "overlayfs"
	Copies  = "native"
)

// Options of Open.
type Options struct {
	// Map labels the id mapping in force.
	Map string
	// IDs is how many ids the mapping has: container ids 0..IDs-1 exist on disk, others only in tree.
	IDs uint32
	// Driver is Overlay or Copies. Only Prepare and Mount need it.
	Driver string
	// Scratch is a directory on the same file system for mount points and work directories, private to this process
	// (inner process only).
	Scratch string
}

// A Store is the directory of snapshots. What only reads (Has, View, Parent, List) works in any process; what makes,
// mounts or removes must be called inside the user namespace of the mapping.
type Store struct {
	dir string
	o   Options
}

// Open uses dir (<state>/snapshot).
func Open(dir string, o Options) (*Store, error) { panic("unwritten") }

// Has reports whether the snapshot's files are there in this store's mapping.
func (s *Store) Has(n Name) bool { panic("unwritten") }

// Parent returns a snapshot's parent.
func (s *Store) Parent(n Name) (Name, error) { panic("unwritten") }

// View reads the whole file system that a snapshot describes, from the trees of its chain (in any mapping).
func (s *Store) View(n Name) (*View, error) { panic("unwritten") }

// Prepare gives a writable file system that begins as parent's.
func (s *Store) Prepare(ctx context.Context, parent Name) (*Active, error) { panic("unwritten") }

// Mount shows a snapshot's files, read-only, at a directory until release is called.
func (s *Store) Mount(ctx context.Context, n Name) (dir string, release func() error, err error) {
	panic("unwritten")
}

// An Active is a file system that is being changed. Exactly one of Commit and Discard ends it; Discard after Commit does nothing.
type Active struct{}

// Root is the directory in which the changes are made.
func (a *Active) Root() string { panic("unwritten") }

// Times says which modification times count in the name.
type Times int

const (
	// TimesNever: entries taken by COPY, directories made by WORKDIR.
	TimesNever Times = iota
	// TimesSet: whole seconds count where the step set them: outside the step's own span of the store's clock (plus or
	// minus one tick) and different from the parent's entry.
	TimesSet
)

// CommitOptions of Active.Commit.
type CommitOptions struct {
	Times Times
	// Owner returns the intended owner of an entry where the disk does not show it (ids outside the mapping); ok is
	// false where the disk (and the user.img.owner attribute) is right. May be nil.
	Owner func(path string, ino uint64) (uid, gid uint32, ok bool)
	// Device likewise returns type and number of an entry whose device node could not be made. May be nil.
	Device func(path string, ino uint64) (t Type, major, minor uint32, ok bool)
}

// Commit makes the changes a snapshot and returns its name. If the same snapshot exists, the changes are dropped and
// the existing one is returned: a step that ran again and made the same files keeps everything after it cached.
func (a *Active) Commit(ctx context.Context, o CommitOptions) (Name, error) { panic("unwritten") }

// Discard drops the changes.
func (a *Active) Discard() error { panic("unwritten") }

// A Staging is a directory in which the files of a base layer are unpacked, in overlay form.
type Staging struct{}

// Stage makes an empty staging directory.
func (s *Store) Stage() (*Staging, error) { panic("unwritten") }

// Dir is where the files go.
func (st *Staging) Dir() string { panic("unwritten") }

// Publish makes the staging directory the snapshot called name. Entries are sorted (Compare). If the snapshot exists
// already, the staging directory is dropped.
func (st *Staging) Publish(ctx context.Context, name, parent Name, entries []Entry) error {
	panic("unwritten")
}

// Discard drops the staging directory; after Publish it does nothing.
func (st *Staging) Discard() error { panic("unwritten") }

// Alias notes that ChainID chain names the same file system as n; Has, View, Prepare and Mount then accept both.
func (s *Store) Alias(chain, n Name) error { panic("unwritten") }

// Resolve follows an alias.
func (s *Store) Resolve(n Name) Name { panic("unwritten") }

// Info describes a stored snapshot.
type Info struct {
	Name   Name
	Parent Name
	// Map is the mapping whose ids own the files.
	Map string
	// Bytes is what the files take on disk (allocated blocks, directories included).
	Bytes int64
	// Used is the unix time of last use.
	Used int64
}

// List returns all snapshots of all mappings.
func (s *Store) List() ([]Info, error) { panic("unwritten") }

// Touch notes that a snapshot was used now.
func (s *Store) Touch(n Name) { panic("unwritten") }

// Remove deletes a snapshot of this mapping: it is renamed away first, so that it is whole or gone.
func (s *Store) Remove(n Name) error { panic("unwritten") }

// Tree opens a snapshot's own change set, from any mapping.
func (s *Store) Tree(n Name) (*Tree, error) { panic("unwritten") }
