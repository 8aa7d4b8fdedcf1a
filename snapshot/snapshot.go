// Package snapshot keeps file-system states: prepare on a parent, change, commit.
//
// A committed snapshot is <state>/snapshot/<map>/<hex of its name>/ with
//
//	parent   the parent's name, or nothing
//	tree     the change set as data (see tree.go); keys, packing, outputs and du read it
//	fs/      the files in overlay form; owners on disk are never the truth
//	used     its time says when the snapshot was last used
//
// <map> labels an id mapping: each mapping's ids own their directory, so that root and users can share one state. Beside
// the snapshots it has alias/ (see Alias), merged/ (see merged.go), stage-*/ (what is being made; whoever makes it holds
// its flock) and trash-*/ (what is being deleted). A snapshot appears and disappears by one rename and never changes.
//
// The package knows no OCI type, no tar and no cache key.
package snapshot

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
)

// A Name identifies a committed snapshot: "sha256:<hex>". A base image's snapshot is named by its ChainID; a step's by
// its content: H(parent's Name, tree without the mtime column, and the times that the step set).
// Only Commit and Publish make Names of snapshots that exist; only a Name can be a parent. The empty Name is the empty file system.
type Name string

// Driver kinds.
const (
	Overlay = "overlayfs"
	Copies  = "native"
)

// ErrNotExist says that a snapshot is not stored, or not whole.
var ErrNotExist = fmt.Errorf("no such snapshot: %w", fs.ErrNotExist)

// Options of Open.
type Options struct {
	// Map labels the id mapping in force.
	Map string
	// IDs is how many ids the mapping has: container ids 0..IDs-1 exist on disk, others only in tree. 0 means all.
	IDs uint32
	// Driver is Overlay or Copies. Only Prepare and Mount need it.
	Driver string
	// Scratch is a directory on the same file system for mount points, private to this process (inner process only).
	Scratch string
	// Boot is the boot id of this run of the machine. Files of another run are checked before they are used; "" checks none.
	Boot string
}

// A Store is the directory of snapshots. What only reads (Has, View, Parent, List) works in any process; what makes,
// mounts or removes must be called inside the user namespace of the mapping. Its methods may be called side by side.
type Store struct {
	dir string
	o   Options

	mu sync.Mutex
	// parents remembers the chains that were seen whole: snapshots never change.
	parents map[Name]Name
	// roots remembers which change sets have the root directory.
	roots map[Name]bool
	// checked has the tree files whose checksum was right.
	checked map[string]stamp
	// working are the working trees of the copies driver that nobody changes.
	working []*workTree
}

// Open uses dir (<state>/snapshot). With Scratch it also removes what processes that died left behind, for at most a tenth
// of a second.
func Open(dir string, o Options) (*Store, error) {
	if o.Map == "" || strings.ContainsAny(o.Map, "/\x00") || o.Map[0] == '.' {
		return nil, fmt.Errorf("open snapshots: bad label %q of the id mapping", o.Map)
	}
	s := &Store{
		dir: dir, o: o,
		parents: map[Name]Name{}, roots: map[Name]bool{}, checked: map[string]stamp{},
	}
	if o.Scratch == "" {
		return s, nil
	}
	if err := s.makeDirs(); err != nil {
		return nil, fmt.Errorf("open snapshots: %w", err)
	}
	s.sweep(sweepTime)
	return s, nil
}

// Close removes the working trees that this process kept for its next step.
func (s *Store) Close() error {
	s.mu.Lock()
	idle := slices.DeleteFunc(s.working, func(w *workTree) bool { return w.users > 0 })
	s.working = nil
	s.mu.Unlock()
	var errs []error
	for _, w := range idle {
		errs = append(errs, w.stage.drop())
	}
	return errors.Join(errs...)
}

// Has reports whether the snapshot's files, and those of all below it, are there in this store's mapping.
func (s *Store) Has(n Name) bool {
	if n == "" {
		return true
	}
	_, err := s.chain(n)
	return err == nil
}

// Parent returns a snapshot's parent.
func (s *Store) Parent(n Name) (Name, error) {
	dir, err := s.find(n)
	if err != nil {
		return "", err
	}
	return s.parent(dir)
}

// View reads the whole file system that a snapshot describes, from the trees of its chain (in any mapping).
func (s *Store) View(n Name) (*View, error) {
	dirs, err := s.treeDirs(n)
	if err != nil {
		return nil, fmt.Errorf("view snapshot: %w", err)
	}
	v, err := s.viewOf(dirs)
	if err != nil {
		return nil, fmt.Errorf("view snapshot: %w", err)
	}
	return v, nil
}

// Tree opens a snapshot's own change set, from any mapping.
func (s *Store) Tree(n Name) (*Tree, error) {
	dir, err := s.find(n)
	if err != nil {
		return nil, err
	}
	return s.openTree(dir)
}

// Files opens the directory that holds the files of a snapshot's own change set, in overlay form, in this store's mapping.
func (s *Store) Files(n Name) (*os.File, error) {
	dir, err := s.findOwn(n)
	if err != nil {
		return nil, err
	}
	return os.Open(filepath.Join(dir, "fs"))
}

// Prepare gives a writable file system that begins as parent's.
func (s *Store) Prepare(ctx context.Context, parent Name) (*Active, error) {
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	chain, err := s.chain(parent)
	if err != nil {
		return nil, fmt.Errorf("prepare snapshot: %w", err)
	}
	var a *Active
	switch s.o.Driver {
	case Overlay:
		a, err = s.prepareOverlay(ctx, chain)
	case Copies:
		a, err = s.prepareCopy(ctx, chain)
	default:
		err = fmt.Errorf("unknown driver %q", s.o.Driver)
	}
	if err != nil {
		return nil, fmt.Errorf("prepare snapshot: %w", err)
	}
	return a, nil
}

// Mount shows a snapshot's files, read-only, at a directory until release is called.
func (s *Store) Mount(ctx context.Context, n Name) (dir string, release func() error, err error) {
	chain, err := s.chain(n)
	if err != nil {
		return "", nil, fmt.Errorf("mount snapshot: %w", err)
	}
	switch s.o.Driver {
	case Overlay:
		dir, release, err = s.mountOverlay(ctx, chain)
	case Copies:
		dir, release, err = s.mountCopy(ctx, chain)
	default:
		err = fmt.Errorf("unknown driver %q", s.o.Driver)
	}
	if err != nil {
		return "", nil, fmt.Errorf("mount snapshot: %w", err)
	}
	return dir, release, nil
}

// An Active is a file system that is being changed. Exactly one of Commit and Discard ends it; Discard after Commit does nothing.
type Active struct {
	s      *Store
	parent Name
	root   string
	stage  *stage
	// began is the store's clock when the step could first change something, in nanoseconds.
	began int64
	work  *workTree // copies driver
	ended bool
}

// Root is the directory in which the changes are made.
func (a *Active) Root() string { return a.root }

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
func (a *Active) Commit(ctx context.Context, o CommitOptions) (Name, error) {
	if a.ended {
		return "", errors.New("commit snapshot: it has ended")
	}
	a.ended = true
	commit := a.commitOverlay
	if a.work != nil {
		commit = a.commitCopy
	}
	n, err := commit(ctx, o)
	if err != nil {
		return "", fmt.Errorf("commit snapshot: %w", err)
	}
	return n, nil
}

// Discard drops the changes.
func (a *Active) Discard() error {
	if a.ended {
		return nil
	}
	a.ended = true
	if a.work != nil {
		return a.work.stage.drop()
	}
	return errors.Join(a.s.unmount(a.root), a.stage.drop())
}

// A Staging is a directory in which the files of a base layer are unpacked, in overlay form.
type Staging struct {
	s     *Store
	stage *stage
	ended bool
}

// Stage makes an empty staging directory.
func (s *Store) Stage() (*Staging, error) {
	st, err := s.newStage("fs")
	if err != nil {
		return nil, fmt.Errorf("stage snapshot: %w", err)
	}
	return &Staging{s: s, stage: st}, nil
}

// Dir is where the files go.
func (st *Staging) Dir() string { return st.stage.path("fs") }

// Publish makes the staging directory the snapshot called name. Entries are sorted (Compare). If the snapshot exists
// already, the staging directory is dropped.
func (st *Staging) Publish(ctx context.Context, name, parent Name, entries []Entry) error {
	if st.ended {
		return errors.New("publish snapshot: it has ended")
	}
	st.ended = true
	err := st.publish(ctx, name, parent, entries)
	if err != nil {
		st.stage.drop()
		return fmt.Errorf("publish snapshot: %w", err)
	}
	return nil
}

func (st *Staging) publish(ctx context.Context, name, parent Name, entries []Entry) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	if _, err := name.hex(); err != nil {
		return err
	}
	chain, err := st.s.chain(parent)
	if err != nil {
		return fmt.Errorf("parent: %w", err)
	}
	if len(entries) == 0 || entries[0].Path != "." {
		// Without an upper directory, a mount takes the attributes of the root from its topmost layer.
		if err := st.s.copyRoot(st.Dir(), chain); err != nil {
			return err
		}
	}
	if err := st.stage.writeTree(entries); err != nil {
		return err
	}
	return st.s.publish(st.stage, name, st.s.Resolve(parent))
}

// Discard drops the staging directory; after Publish it does nothing.
func (st *Staging) Discard() error {
	if st.ended {
		return nil
	}
	st.ended = true
	return st.stage.drop()
}

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

// hex is the name without its algorithm.
func (n Name) hex() (string, error) {
	h, ok := strings.CutPrefix(string(n), "sha256:")
	if b, err := hex.DecodeString(h); !ok || err != nil || len(b) != 32 || strings.ToLower(h) != h {
		return "", fmt.Errorf("bad snapshot name %q", string(n))
	}
	return h, nil
}
