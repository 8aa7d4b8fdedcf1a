package snapshot

// links are the hard-link groups of a view's trees of which some entry was asked for: an upper tree may hide a group's first name,
// or have another file at its path.
type links struct {
	// first is each group's first visible path.
	first map[linkKey]string
	// scanned are the trees of which first has every group.
	scanned map[int]bool
}

// relink makes an entry's HardLink, which its tree has for itself, the one of the whole file system.
func (v *View) relink(e Entry, tree int) (Entry, error) {
	if e.HardLink == "" {
		return e, nil // the first of its tree, and seen
	}
	first, err := v.firstName(linkKey{tree, e.HardLink})
	if first == e.Path {
		first = ""
	}
	e.HardLink = first
	return e, err
}

// firstName returns the first visible path of a group that has one.
func (v *View) firstName(k linkKey) (string, error) {
	if p, known := v.links.first[k]; known {
		return p, nil
	}
	if v.links.first == nil {
		v.links = links{first: map[linkKey]string{}, scanned: map[int]bool{}}
	}
	seen, err := v.shows(k.path, k.tree)
	if err != nil {
		return "", err
	}
	if seen {
		v.links.first[k] = k.path
		return k.path, nil
	}
	if err := v.scanLinks(k.tree); err != nil {
		return "", err
	}
	return v.links.first[k], nil
}

// shows reports whether what is at a path is a tree's.
func (v *View) shows(path string, tree int) (bool, error) {
	_, from, ok, err := v.lookup(path)
	return ok && from == tree, err
}

// scanLinks finds the first visible name of all groups of a tree. One look at the tree costs less than one for each group, and
// names of a group can be anywhere in it.
func (v *View) scanLinks(tree int) error {
	if v.links.scanned[tree] {
		return nil
	}
	v.links.scanned[tree] = true
	return v.trees[tree].Each(func(e Entry) error {
		if e.HardLink == "" {
			return nil
		}
		k := linkKey{tree, e.HardLink}
		if _, known := v.links.first[k]; known {
			return nil
		}
		for _, p := range []string{e.HardLink, e.Path} {
			seen, err := v.shows(p, tree)
			if err != nil {
				return err
			}
			if seen {
				v.links.first[k] = p
				return nil
			}
		}
		return nil
	})
}
