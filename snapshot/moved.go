package snapshot

import (
	"errors"
	"path"

	"golang.org/x/sys/unix"
)

// With one id, the owner of a link or pipe is known by its path alone. What a step renames would lose it: the new file is told by
// what a rename keeps.
type moves struct {
	// from are the parent's links, pipes and devices with an owner that the disk cannot have; nil until one is wanted.
	from map[moveKey][]Entry
}

// A moveKey is what a file and a copy of it that keeps its times have in common.
type moveKey struct {
	t     Type
	link  string
	mtime int64
}

func keyOf(e *Entry) moveKey { return moveKey{e.Type, e.Link, e.MTime} }

// owner gives a new file of root's the owner of the one that it was in the parent. Where several may be meant, it must be the one of
// the same name, or all must have one owner.
func (m *moves) owner(s *scan, c *change) error {
	if s.ids != 1 {
		return nil // ids outside of a larger mapping are not worth reading all trees for
	}
	if err := m.load(s); err != nil {
		return err
	}
	var gone []Entry
	for _, e := range m.from[keyOf(&c.e)] {
		away, err := s.gone(&e)
		if err != nil {
			return err
		}
		if away && path.Base(e.Path) == path.Base(c.e.Path) {
			gone = []Entry{e}
			break
		}
		if away {
			gone = append(gone, e)
		}
	}
	for _, e := range gone {
		if e.UID != gone[0].UID || e.GID != gone[0].GID {
			return nil
		}
		c.e.UID, c.e.GID = e.UID, e.GID
	}
	return nil
}

func (m *moves) load(s *scan) error {
	if m.from != nil {
		return nil
	}
	m.from = map[moveKey][]Entry{}
	return s.view.walk(".", func(e Entry, _ int) error {
		if e.Type != File && e.Type != Dir && s.foreignOwner(&e) {
			m.from[keyOf(&e)] = append(m.from[keyOf(&e)], e)
		}
		return nil
	})
}

// gone reports whether an entry of the parent's is no longer what is at its path.
func (s *scan) gone(e *Entry) (bool, error) {
	f, err := openBeneath(s.root, e.Path, unix.O_PATH)
	switch {
	case errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP), errors.Is(err, unix.EXDEV):
		return true, nil // something else is on the way
	case errors.Is(err, unix.ENOENT):
		return !s.upper || s.cutOff(e.Path), nil
	case err != nil:
		return false, err
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return false, err
	}
	if typeOf(st.Mode) != e.Type || st.Mtim.Nano() != e.MTime {
		return true, nil
	}
	if e.Type != Symlink {
		return false, nil
	}
	link, err := readlinkAt(f, "")
	return link != e.Link, err
}

// cutOff reports whether a directory on the way to a path hides what lower layers have.
func (s *scan) cutOff(p string) bool {
	for p = path.Dir(p); p != "."; p = path.Dir(p) {
		f, err := openBeneath(s.root, p, unix.O_RDONLY|unix.O_DIRECTORY)
		if err != nil {
			continue // only lower layers have it
		}
		hidden := opaque(f)
		f.Close()
		if hidden {
			return true
		}
	}
	return false
}
