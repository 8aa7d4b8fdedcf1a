package layer

import (
	"slices"
	"sort"

	"img/snapshot"
)

// A journal is what was done to the directory, in the order it was done. Two slices, since they are sorted in place and
// the first becomes Applied.Entries: a layer has up to millions of entries.
type journal struct {
	entries []snapshot.Entry
	notes   []note
}

// A note is what is known of an entry besides the entry.
type note struct {
	seq int
	// group is the same number for names of one file; 0 if there is but one name.
	group int
	// link is where a hard link's file is in this layer, until the link is joined with it.
	link string
	// target is the name of a hard link's file, which is not in this layer.
	target string
	// implicit: made for what lies below. opaque: a directory that hides the lower one. mark: no entry, only opaque.
	implicit, opaque, mark bool
}

func (j *journal) put(e snapshot.Entry, n note) {
	n.seq = len(j.notes)
	j.entries, j.notes = append(j.entries, e), append(j.notes, n)
}

func (j *journal) Len() int { return len(j.notes) }

func (j *journal) Less(a, b int) bool {
	if c := snapshot.Compare(j.entries[a].Path, j.entries[b].Path); c != 0 {
		return c < 0
	}
	return j.notes[a].seq < j.notes[b].seq
}

func (j *journal) Swap(a, b int) {
	j.entries[a], j.entries[b] = j.entries[b], j.entries[a]
	j.notes[a], j.notes[b] = j.notes[b], j.notes[a]
}

// join gives hard links the columns of their file. It must run before the journal is sorted: a link means what its target's
// path meant at that moment.
func (j *journal) join() {
	last := map[string]int{} // of the paths that links name, who came last
	for i := range j.notes {
		if l := j.notes[i].link; l != "" {
			last[l] = -1
		}
	}
	if len(last) == 0 {
		return
	}
	for i := range j.notes {
		n, e := &j.notes[i], &j.entries[i]
		if n.link != "" {
			j.copyFrom(last[n.link], e, n)
		}
		if _, ok := last[e.Path]; ok && !n.mark {
			last[e.Path] = i
		}
	}
}

// copyFrom makes e, at its own path, another name of the entry at index i.
func (j *journal) copyFrom(i int, e *snapshot.Entry, n *note) {
	first := &j.notes[i]
	if first.group == 0 {
		first.group = first.seq + 1
	}
	p := e.Path
	*e = j.entries[i]
	e.Path, n.group, n.target, n.link = p, first.group, first.target, ""
}

// reduce sorts the journal and leaves what is there at the end: of one path the last entry, and nothing below what was a
// file after it. The journal is used up.
func (j *journal) reduce() *Applied {
	j.join()
	sort.Sort(j)
	a := &Applied{}
	var groups []int
	var up []cut
	for i := 0; i < len(j.notes); {
		p := j.entries[i].Path
		for len(up) > 0 && !below(p, up[len(up)-1].path) {
			up = up[:len(up)-1]
		}
		c := cut{path: p, before: -1}
		if len(up) > 0 {
			c.before = up[len(up)-1].before
		}
		win, opaque, end := j.last(i, &c)
		if win >= 0 || opaque {
			groups = j.keep(a, groups, win, p, opaque)
		}
		up, i = append(up, c), end
	}
	clear(j.entries[len(a.Entries):]) // let go of their strings
	nameGroups(a.Entries, groups)
	j.entries, j.notes = nil, nil
	return a
}

// A cut says that what the journal has below path and before a number is gone.
type cut struct {
	path   string
	before int
}

// last finds which of the entries of one path, from index i on, counts (-1: none), and where the next path begins.
func (j *journal) last(i int, c *cut) (win int, opaque bool, end int) {
	win = -1
	p, from := j.entries[i].Path, c.before
	for ; i < len(j.notes) && j.entries[i].Path == p; i++ {
		n := &j.notes[i]
		switch {
		case n.seq < from:
		case n.mark:
			opaque = true
		case j.entries[i].Type == snapshot.Dir:
			win, opaque = i, opaque || n.opaque
		default:
			win, opaque, c.before = i, false, n.seq
		}
	}
	return win, opaque, i
}

// keep moves the entry at index win to the front part of the slice, which is a.Entries.
func (j *journal) keep(a *Applied, groups []int, win int, p string, opaque bool) []int {
	if opaque {
		a.Opaque = append(a.Opaque, p)
	}
	if win < 0 {
		return groups
	}
	n := &j.notes[win]
	if n.target != "" {
		a.Links = append(a.Links, Link{Path: p, Target: n.target})
		return groups
	}
	if n.implicit {
		a.Implicit = append(a.Implicit, p)
	}
	a.Entries = append(j.entries[:len(a.Entries)], j.entries[win])
	return append(groups, n.group)
}

// nameGroups fills the HardLink column.
func nameGroups(entries []snapshot.Entry, groups []int) {
	first := map[int]string{}
	for i, g := range groups {
		entries[i].HardLink = ""
		if g == 0 {
			continue
		}
		if p, ok := first[g]; ok {
			entries[i].HardLink = p
		} else {
			first[g] = entries[i].Path
		}
	}
}

// load makes a journal of what was found, for changes to it. Links come after all entries, opaque marks last.
func load(a *Applied) *journal {
	j := &journal{entries: a.Entries, notes: make([]note, len(a.Entries))}
	firsts := map[string]int{}
	for i := range j.entries {
		j.notes[i].seq = i
		if h := j.entries[i].HardLink; h != "" {
			firsts[h] = 0
		}
	}
	for i := range j.entries {
		e := &j.entries[i]
		if _, ok := firsts[e.Path]; ok {
			firsts[e.Path], j.notes[i].group = i+1, i+1
		} else if e.HardLink != "" {
			j.notes[i].group = firsts[e.HardLink]
		}
	}
	for _, p := range a.Implicit {
		if i, ok := find(a.Entries, p); ok {
			j.notes[i].implicit = true
		}
	}
	for _, l := range a.Links {
		j.put(snapshot.Entry{Path: l.Path, Type: snapshot.File}, note{target: l.Target})
	}
	for _, p := range a.Opaque {
		j.put(snapshot.Entry{Path: p, Type: snapshot.Dir}, note{mark: true})
	}
	return j
}

// has is a binary search in sorted paths.
func has(paths []string, p string) bool {
	_, ok := slices.BinarySearchFunc(paths, p, snapshot.Compare)
	return ok
}

// find is a binary search in sorted entries.
func find(entries []snapshot.Entry, p string) (int, bool) {
	return sort.Find(len(entries), func(i int) int { return snapshot.Compare(p, entries[i].Path) })
}
