package snapshot

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// maxChain bounds chains, so that a parent that names its child ends.
const maxChain = 10_000

// own is the directory of this store's mapping.
func (s *Store) own() string { return filepath.Join(s.dir, s.o.Map) }

// maps are the labels of all mappings, this store's first.
func (s *Store) maps() []string {
	out := []string{s.o.Map}
	list, _ := os.ReadDir(s.dir)
	for _, d := range list {
		if d.Name() != s.o.Map && d.IsDir() {
			out = append(out, d.Name())
		}
	}
	return out
}

// makeDirs makes the directory of the mapping and what is always in it.
func (s *Store) makeDirs() error {
	for _, d := range []string{s.own(), s.alias(), s.mergedDir()} {
		err := os.Mkdir(d, 0o755)
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		if err == nil {
			err = plainDir(d)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// find returns the directory of a snapshot whose tree is whole, in this mapping, else in any.
func (s *Store) find(n Name) (string, error) {
	if dir, err := s.findOwn(n); err == nil {
		return dir, nil
	}
	if _, err := n.hex(); err != nil {
		return "", err
	}
	for _, label := range s.maps()[1:] {
		m := filepath.Join(s.dir, label)
		if dir := s.findIn(m, resolveIn(m, n)); dir != "" {
			return dir, nil
		}
	}
	return "", fmt.Errorf("%s: %w", n, ErrNotExist)
}

func (s *Store) findOwn(n Name) (string, error) {
	if _, err := n.hex(); err != nil {
		return "", err
	}
	if dir := s.findIn(s.own(), resolveIn(s.own(), n)); dir != "" {
		return dir, nil
	}
	return "", fmt.Errorf("%s: %w", n, ErrNotExist)
}

func (s *Store) findIn(m string, n Name) string {
	h, err := n.hex()
	if err != nil {
		return ""
	}
	dir := filepath.Join(m, h)
	if s.treeIsWhole(filepath.Join(dir, "tree")) != nil {
		return ""
	}
	return dir
}

// A stamp tells one version of a file from another.
type stamp struct {
	ino         uint64
	size, mtime int64
}

// treeIsWhole checks a tree's checksum, once in a process.
func (s *Store) treeIsWhole(path string) error {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return err
	}
	now := stamp{st.Ino, st.Size, st.Mtim.Nano()}
	s.mu.Lock()
	known := s.checked[path]
	s.mu.Unlock()
	if known == now {
		return nil
	}
	t, err := openTreeFile(path)
	if err != nil {
		return err
	}
	defer t.Close()
	if err := t.Verify(); err != nil {
		return err
	}
	s.mu.Lock()
	s.checked[path] = now
	s.mu.Unlock()
	return nil
}

// openTree opens the tree of a snapshot that find found.
func (s *Store) openTree(dir string) (*Tree, error) {
	t, err := openTreeFile(filepath.Join(dir, "tree"))
	if err != nil {
		return nil, fmt.Errorf("open tree of %s: %w", filepath.Base(dir), err)
	}
	return t, nil
}

// parent reads a snapshot's parent.
func (s *Store) parent(dir string) (Name, error) {
	b, err := os.ReadFile(filepath.Join(dir, "parent"))
	if err != nil {
		return "", err
	}
	n := Name(strings.TrimSpace(string(b)))
	if n == "" {
		return "", nil
	}
	_, err = n.hex()
	return n, err
}

// chain returns the names from n down to the one without a parent, all of which have their files in this mapping.
func (s *Store) chain(n Name) ([]Name, error) {
	var out []Name
	n = s.Resolve(n)
	for n != "" {
		p, err := s.ownParent(n, len(out) == 0)
		if err != nil {
			return nil, err
		}
		out = append(out, n)
		if len(out) > maxChain {
			return nil, fmt.Errorf("chain is longer than %d", maxChain)
		}
		n = p
	}
	return out, nil
}

// ownParent returns a snapshot's parent if its tree and files are in this mapping. What was once seen is looked at again
// only on request: what a build uses is under its lease.
func (s *Store) ownParent(n Name, again bool) (Name, error) {
	s.mu.Lock()
	p, seen := s.parents[n]
	s.mu.Unlock()
	if seen && !again {
		return p, nil
	}
	dir, err := s.findOwn(n)
	if err != nil {
		s.forget(n)
		return "", err
	}
	if seen {
		return p, nil
	}
	if _, err := os.Lstat(filepath.Join(dir, "fs")); err != nil {
		return "", fmt.Errorf("%s: %w", n, ErrNotExist)
	}
	if err := s.filesAreWhole(dir); err != nil {
		return "", fmt.Errorf("%w: %w", ErrNotExist, err)
	}
	if p, err = s.parent(dir); err != nil {
		return "", err
	}
	p = s.Resolve(p)
	s.mu.Lock()
	s.parents[n] = p
	s.mu.Unlock()
	return p, nil
}

func (s *Store) forget(n Name) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.parents, n)
}

// treeDirs returns where the snapshots of a chain are, topmost first: in this mapping, else each in any.
func (s *Store) treeDirs(n Name) ([]string, error) {
	var out []string
	if chain, err := s.chain(n); err == nil {
		for _, dir := range s.layers(chain) {
			out = append(out, filepath.Dir(dir))
		}
		return out, nil
	}
	for n != "" {
		dir, err := s.find(n)
		if err != nil {
			return nil, err
		}
		if out = append(out, dir); len(out) > maxChain {
			return nil, fmt.Errorf("chain is longer than %d", maxChain)
		}
		if n, err = s.parent(dir); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// layers are the directories of a chain's files, topmost first.
func (s *Store) layers(chain []Name) []string {
	var out []string
	for _, n := range chain {
		h, _ := n.hex() // chain has checked it
		out = append(out, filepath.Join(s.own(), h, "fs"))
	}
	return out
}

func (s *Store) alias() string { return filepath.Join(s.own(), "alias") }

// Alias notes that ChainID chain names the same file system as n; Has, View, Prepare and Mount then accept both.
func (s *Store) Alias(chain, n Name) error {
	h, err := chain.hex()
	if err == nil {
		_, err = n.hex()
	}
	if err == nil && chain != n {
		err = writeFile(s.alias(), h, string(n)+"\n")
	}
	if err != nil {
		return fmt.Errorf("alias snapshot: %w", err)
	}
	return nil
}

// Resolve follows an alias of this mapping.
func (s *Store) Resolve(n Name) Name { return resolveIn(s.own(), n) }

// resolveIn follows an alias within one mapping, if n is not itself there and the target is.
func resolveIn(m string, n Name) Name {
	h, err := n.hex()
	if err != nil {
		return n
	}
	if _, err := os.Lstat(filepath.Join(m, h)); err == nil {
		return n
	}
	b, err := os.ReadFile(filepath.Join(m, "alias", h))
	if err != nil {
		return n
	}
	to := Name(strings.TrimSpace(string(b)))
	th, err := to.hex()
	if err != nil {
		return n
	}
	if _, err := os.Lstat(filepath.Join(m, th)); err != nil {
		return n
	}
	return to
}

// List returns all snapshots of all mappings.
func (s *Store) List() ([]Info, error) {
	var out []Info
	for _, label := range s.maps() {
		list, err := os.ReadDir(filepath.Join(s.dir, label))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("list snapshots: %w", err)
		}
		for _, d := range list {
			n := Name("sha256:" + d.Name())
			if _, err := n.hex(); err != nil {
				continue
			}
			i, err := s.info(filepath.Join(s.dir, label, d.Name()))
			if err != nil {
				continue // it has just been removed, or is damaged: absent either way
			}
			i.Name, i.Map = n, label
			out = append(out, i)
		}
	}
	return out, nil
}

func (s *Store) info(dir string) (Info, error) {
	p, err := s.parent(dir)
	if err != nil {
		return Info{}, err
	}
	fi, err := os.Stat(filepath.Join(dir, "used"))
	if err != nil {
		return Info{}, err
	}
	bytes, err := usage(dir)
	return Info{Parent: p, Bytes: bytes, Used: fi.ModTime().Unix()}, err
}

// Usage returns the bytes that a snapshot's own files take on disk, in this mapping or else another.
func (s *Store) Usage(n Name) (int64, error) {
	dir, err := s.find(n)
	if err != nil {
		return 0, err
	}
	return usage(dir)
}

// usage counts allocated blocks. Where the files cannot be read (another user's), sizes in the tree are all there is.
func usage(dir string) (int64, error) {
	n, err := allocated(dir)
	if err == nil || !errors.Is(err, fs.ErrPermission) {
		return n, err
	}
	t, err := openTreeFile(filepath.Join(dir, "tree"))
	if err != nil {
		return 0, err
	}
	defer t.Close()
	const block = 4096
	n = 0
	err = t.Each(func(e Entry) error {
		if e.HardLink == "" {
			n += (e.Size + block - 1) / block * block
		}
		if e.Type == Dir {
			n += block
		}
		return nil
	})
	return n, err
}

func allocated(dir string) (int64, error) {
	var n int64
	linked := map[uint64]bool{}
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return &fs.PathError{Op: "lstat", Path: p, Err: err}
		}
		if st.Nlink > 1 && !d.IsDir() {
			if linked[st.Ino] {
				return nil
			}
			linked[st.Ino] = true
		}
		n += st.Blocks * 512
		return nil
	})
	return n, err
}

// Touch notes that a snapshot was used now. That it cannot be noted (another user's) is no error.
func (s *Store) Touch(n Name) {
	if dir, err := s.find(n); err == nil {
		now := time.Now()
		os.Chtimes(filepath.Join(dir, "used"), now, now)
	}
}

// Remove deletes a snapshot of this mapping: it is renamed away first, so that it is whole or gone. A damaged one can be removed too.
func (s *Store) Remove(n Name) error {
	h, err := n.hex()
	if err != nil {
		return fmt.Errorf("remove snapshot: %w", err)
	}
	s.forget(n)
	s.dropWorking(n)
	err = errors.Join(s.trash(filepath.Join(s.own(), h)), s.trash(filepath.Join(s.mergedDir(), h)), s.unalias(n))
	if err != nil {
		return fmt.Errorf("remove snapshot: %w", err)
	}
	return nil
}

// unalias removes the aliases of a snapshot.
func (s *Store) unalias(n Name) error {
	list, err := os.ReadDir(s.alias())
	for _, d := range list {
		p := filepath.Join(s.alias(), d.Name())
		if b, e := os.ReadFile(p); e == nil && Name(strings.TrimSpace(string(b))) == n {
			err = errors.Join(err, os.Remove(p))
		}
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// copyRoot gives a new root directory the attributes that the root of a chain's file system has.
func (s *Store) copyRoot(to string, chain []Name) error {
	from, err := s.rootLayer(chain)
	if err != nil || from == "" {
		return err
	}
	var st unix.Stat_t
	if err := unix.Lstat(from, &st); err != nil {
		return &fs.PathError{Op: "stat", Path: from, Err: err}
	}
	attrs, err := xattrs(from, kept)
	if err != nil {
		return err
	}
	return setAttributes(to, &st, attrs)
}

// rootLayer is the directory whose attributes the root of a chain's file system has; "" if no layer says.
func (s *Store) rootLayer(chain []Name) (string, error) {
	for i, dir := range s.layers(chain) {
		has, err := s.hasRoot(chain[i], filepath.Dir(dir))
		if err != nil {
			return "", err
		}
		if has {
			return dir, nil
		}
	}
	return "", nil
}

// hasRoot reports whether a snapshot's change set has the root directory.
func (s *Store) hasRoot(n Name, dir string) (bool, error) {
	s.mu.Lock()
	has, known := s.roots[n]
	s.mu.Unlock()
	if known {
		return has, nil
	}
	t, err := s.openTree(dir)
	if err != nil {
		return false, err
	}
	defer t.Close()
	if _, has, err = t.Lookup("."); err != nil {
		return false, err
	}
	s.mu.Lock()
	s.roots[n] = has
	s.mu.Unlock()
	return has, nil
}
