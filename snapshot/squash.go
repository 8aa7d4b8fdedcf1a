package snapshot

import (
	"fmt"
	"math"
	"path/filepath"
	"slices"
)

// A Squash is what the change sets of several snapshots make together: the one change set that brings a base's file system to that of a
// snapshot made of it. What the steps between made and removed again is not in it. It is for one goroutine.
type Squash struct {
	lower, upper *View
	names        []Name // of the upper trees, topmost first
}

// Squash reads the chain from base (the empty Name for nothing), which is not part of the change set, to top.
func (s *Store) Squash(base, top Name) (*Squash, error) {
	below, err := s.treeDirs(base)
	if err != nil {
		return nil, fmt.Errorf("squash: base: %w", err)
	}
	all, err := s.treeDirs(top)
	if err != nil {
		return nil, fmt.Errorf("squash: %w", err)
	}
	n := len(all) - len(below)
	same := func(a, b string) bool { return filepath.Base(a) == filepath.Base(b) } // in whatever mapping
	if n < 0 || !slices.EqualFunc(all[n:], below, same) {
		return nil, fmt.Errorf("squash: %s was not made of %s", top, base)
	}
	q := &Squash{}
	for _, dir := range all[:n] {
		q.names = append(q.names, Name("sha256:"+filepath.Base(dir)))
	}
	if q.upper, err = s.viewOf(all[:n]); err != nil {
		return nil, fmt.Errorf("squash: %w", err)
	}
	if q.lower, err = s.viewOf(below); err != nil {
		q.upper.Close()
		return nil, fmt.Errorf("squash: %w", err)
	}
	return q, nil
}

// viewOf opens the trees of directories.
func (s *Store) viewOf(dirs []string) (*View, error) {
	var trees []*Tree
	for _, dir := range dirs {
		t, err := s.openTree(dir)
		if err != nil {
			NewView(trees...).Close()
			return nil, err
		}
		trees = append(trees, t)
	}
	return NewView(trees...), nil
}

// Close releases the files.
func (q *Squash) Close() error {
	err := q.upper.Close()
	if lerr := q.lower.Close(); err == nil {
		err = lerr
	}
	return err
}

// Each calls f for each entry of the change set, in order, with the snapshot that it is from; removals have none. The entries' files are
// those of the top's file system.
func (q *Squash) Each(f func(e Entry, from Name) error) error {
	w := squashWalk{Squash: q, f: f}
	if err := w.walk(); err != nil {
		return err
	}
	return w.flush("")
}

// A squashWalk merges the upper trees, and with them the removals of what is in the lower file system alone.
type squashWalk struct {
	*Squash
	f func(Entry, Name) error
	// fresh is the directory, removed and made again above the base, that the walk is in, or was in last; "" for none. What the lower file
	// system has in it is gone, but for what is there again.
	fresh string
	// gone are the paths in fresh still to be reported as removed, in order.
	gone []string
}

func (w *squashWalk) walk() error {
	m := merge{limits: []limit{{".", math.MaxInt}}}
	for i, t := range w.upper.trees {
		if err := m.add(t.cursor(t.start, t.end), i); err != nil {
			return err
		}
	}
	for len(m.heads) > 0 {
		e, tree, cut, err := m.settle()
		if err != nil {
			return err
		}
		if tree < 0 {
			continue
		}
		if err := w.entry(e, tree, cut); err != nil {
			return err
		}
	}
	return nil
}

// entry takes the topmost entry of a path; cut says that the trees have something there that hides what is below.
func (w *squashWalk) entry(e Entry, tree int, cut bool) error {
	inFresh := w.fresh != "" && below(e.Path, w.fresh)
	if inFresh && e.Type == Removed {
		return nil // among gone, if it was there at all
	}
	if err := w.flush(e.Path); err != nil {
		return err
	}
	if e.Type == Removed {
		_, there, err := w.lower.Lookup(e.Path)
		if err != nil || !there {
			return err
		}
		return w.f(Entry{Path: e.Path, Type: Removed}, "")
	}
	if e.Type == Dir && cut && !inFresh {
		if err := w.enter(e.Path); err != nil {
			return err
		}
	}
	e, err := w.upper.relink(e, tree)
	if err != nil {
		return err
	}
	return w.f(e, w.names[tree])
}

// enter begins a fresh directory.
func (w *squashWalk) enter(dir string) error {
	w.fresh = dir
	was, there, err := w.lower.Lookup(dir)
	if err != nil || !there || was.Type != Dir {
		return err
	}
	return w.compare(dir)
}

// compare finds what is not there again in a directory that both file systems have.
func (w *squashWalk) compare(dir string) error {
	old, err := w.lower.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, o := range old {
		e, there, err := w.upper.Lookup(o.Path)
		switch {
		case err != nil:
			return err
		case !there:
			w.gone = append(w.gone, o.Path)
		case e.Type == Dir && o.Type == Dir:
			if err := w.compare(o.Path); err != nil {
				return err
			}
		}
	}
	return nil
}

// flush reports the removals that come before a path; all of them for "".
func (w *squashWalk) flush(before string) error {
	for len(w.gone) > 0 && (before == "" || Compare(w.gone[0], before) < 0) {
		if err := w.f(Entry{Path: w.gone[0], Type: Removed}, ""); err != nil {
			return err
		}
		w.gone = w.gone[1:]
	}
	return nil
}
