package snapshot

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
)

// Lay makes the change set of a snapshot without a parent one upon another snapshot, and returns the result's name: what Commit would
// return for a step that makes exactly those entries, those that the parent has already included. In overlay form a directory merges with
// the parent's and anything else replaces what is there, so the files are taken over as they are, by hard links.
func (s *Store) Lay(ctx context.Context, changes, on Name) (Name, error) {
	n, err := s.lay(ctx, changes, on)
	if err != nil {
		return "", fmt.Errorf("lay snapshot: %w", err)
	}
	return n, nil
}

func (s *Store) lay(ctx context.Context, changes, on Name) (Name, error) {
	from, err := s.findOwn(changes)
	if err != nil {
		return "", err
	}
	if p, err := s.parent(from); err != nil || p != "" {
		return "", errors.Join(err, fmt.Errorf("%s has the parent %q", changes, p))
	}
	chain, err := s.chain(on)
	if err != nil {
		return "", err
	}
	st, err := s.newStage("fs")
	if err != nil {
		return "", err
	}
	n, err := s.layIn(ctx, st, filepath.Join(from, "tree"), filepath.Join(from, "fs"), chain)
	if err != nil {
		return "", errors.Join(err, st.drop())
	}
	return n, nil
}

// layIn fills a stage with a tree and its files, and publishes it.
func (s *Store) layIn(ctx context.Context, st *stage, tree, files string, chain []Name) (Name, error) {
	var on Name
	if len(chain) > 0 {
		on = chain[0]
	}
	w, err := st.newTree(on, "tree")
	if err != nil {
		return "", err
	}
	hasRoot := false
	err = copyTree(tree, w, func(path string) bool {
		hasRoot = hasRoot || path == "."
		return true
	})
	n, e := w.close()
	if err = errors.Join(err, e); err != nil {
		return "", err
	}
	if s.Has(n) {
		return n, st.drop()
	}
	if err := mergeLayers(ctx, st.path("fs"), []string{files}); err != nil {
		return "", err
	}
	if !hasRoot {
		// A mount takes the attributes of the root from its topmost layer.
		if err := s.copyRoot(st.path("fs"), chain); err != nil {
			return "", err
		}
	}
	return n, s.publish(st, n, on)
}
