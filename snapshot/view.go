package snapshot

import (
	"container/heap"
	"errors"
	"maps"
	"math"
	"slices"
	"strings"
)

// A View is the whole file system of a chain of trees, topmost first. It is for one goroutine.
//
// An entry of an upper tree hides the one at its path in the trees below it; one that is no directory (Removed too) also
// hides everything below its path there.
//
// HardLink is of the whole file system too: the path of the first visible entry, in order, that is the same file. Entries of
// two trees are never the same file.
type View struct {
	trees []*Tree
	links links
	// levels are the directories on the way to the path that was looked up last: sorted look-ups find most of their way done.
	levels []level
}

// NewView makes a view of trees, topmost first. It owns them: Close closes all.
func NewView(trees ...*Tree) *View {
	v := &View{trees: trees}
	root := level{path: "."}
	for i, t := range trees {
		root.trees = append(root.trees, part{i, span{t.start, t.end}})
	}
	v.levels = []level{root}
	return v
}

// A level is a directory, with the part of each tree that has something visible below it.
type level struct {
	path  string
	trees []part
}

// A part is what one tree of a view has below a directory.
type part struct {
	tree int
	span span
}

// emptyRoot is the root of a file system for which no tree says anything else.
var emptyRoot = Entry{Path: ".", Type: Dir, Mode: 0o755}

// Lookup returns the entry at a path; false if there is none. No link is followed.
func (v *View) Lookup(path string) (Entry, bool, error) {
	e, tree, ok, err := v.lookup(path)
	if err != nil || !ok {
		return e, ok, err
	}
	e, err = v.relink(e, tree)
	return e, err == nil, err
}

// lookup also tells which tree the entry is from, -1 for a root that no tree has; the entry's HardLink is as that tree has it.
func (v *View) lookup(path string) (Entry, int, bool, error) {
	if !clean(path) {
		return Entry{}, 0, false, errors.New("look up " + strings.ToValidUTF8(path, "?") + ": path is not clean")
	}
	lv, err := v.enter(path)
	if err != nil {
		return Entry{}, 0, false, err
	}
	for _, p := range lv.trees {
		e, _, ok, err := v.trees[p.tree].find(path, p.span)
		if err != nil {
			return Entry{}, 0, false, err
		}
		if ok {
			return e, p.tree, e.Type != Removed, nil
		}
	}
	if path == "." {
		return emptyRoot, -1, true, nil
	}
	return Entry{}, 0, false, nil
}

// enter returns the level of the directory that holds path (of the root for the root itself).
func (v *View) enter(path string) (level, error) {
	dir := "."
	if i := strings.LastIndexByte(path, '/'); i >= 0 {
		dir = path[:i]
	}
	return v.level(dir)
}

// level returns the level of a directory, beginning at the deepest ancestor that is known.
func (v *View) level(dir string) (level, error) {
	for n := len(v.levels); n > 1; n-- {
		if p := v.levels[n-1].path; p == dir || below(dir, p) {
			break
		}
		v.levels = v.levels[:n-1]
	}
	for {
		top := v.levels[len(v.levels)-1]
		if top.path == dir {
			return top, nil
		}
		rest := dir
		if top.path != "." {
			rest = dir[len(top.path)+1:]
		}
		name, _, _ := strings.Cut(rest, "/")
		next, err := v.descend(top, join(top.path, name))
		if err != nil {
			return level{}, err
		}
		v.levels = append(v.levels, next)
	}
}

// descend narrows each tree to what it has below path, down to the first tree that has something else than a directory there.
func (v *View) descend(from level, path string) (level, error) {
	to := level{path: path}
	seen := false
	for _, p := range from.trees {
		e, children, ok, err := v.trees[p.tree].find(path, p.span)
		if err != nil {
			return level{}, err
		}
		if ok && e.Type != Dir {
			if !seen {
				to.trees = nil
			}
			break
		}
		seen = seen || ok
		if !children.empty() {
			to.trees = append(to.trees, part{p.tree, children})
		}
	}
	return to, nil
}

// ReadDir returns the entries of a directory, sorted.
func (v *View) ReadDir(path string) ([]Entry, error) {
	lv, err := v.level(path)
	if err != nil {
		return nil, err
	}
	best := map[string]treeEntry{}
	for _, p := range lv.trees {
		if err := v.children(path, p, best); err != nil {
			return nil, err
		}
	}
	return v.present(best)
}

// A treeEntry is an entry as a tree of a view has it.
type treeEntry struct {
	Entry
	tree int
}

// children adds a tree's direct children of dir to those of the trees above it.
func (v *View) children(dir string, p part, best map[string]treeEntry) error {
	t := v.trees[p.tree]
	for at := p.span.lo; at < p.span.hi; {
		line, err := t.win.line(at)
		if err != nil {
			return err
		}
		lp, err := linePath(line)
		if err != nil {
			return err
		}
		if lp == "." {
			at += int64(len(line)) + 1
			continue
		}
		rest := lp
		if dir != "." {
			rest = lp[len(dir)+1:]
		}
		name, _, deeper := strings.Cut(rest, "/")
		child := join(dir, name)
		if _, known := best[child]; !deeper && !known {
			e, err := parseLine(line)
			if err != nil {
				return err
			}
			best[child] = treeEntry{e, p.tree}
		}
		if at, err = t.search(span{at, p.span.hi}, func(q string) bool { return q != child && !below(q, child) }); err != nil {
			return err
		}
	}
	return nil
}

// present are the entries of a directory without the Removed ones, sorted.
func (v *View) present(m map[string]treeEntry) ([]Entry, error) {
	out := make([]Entry, 0, len(m))
	for _, p := range slices.SortedFunc(maps.Keys(m), Compare) {
		if m[p].Type == Removed {
			continue
		}
		e, err := v.relink(m[p].Entry, m[p].tree)
		if err != nil {
			return nil, err
		}
		out = append(out, e)
	}
	return out, nil
}

// Walk calls f for the entry at path and all below it, in order (no Removed ones).
func (v *View) Walk(path string, f func(Entry) error) error {
	return v.walk(path, func(e Entry, tree int) error {
		e, err := v.relink(e, tree)
		if err != nil {
			return err
		}
		return f(e)
	})
}

// walk also tells which tree an entry is from, -1 for a root that no tree has; the entry's HardLink is as that tree has it.
func (v *View) walk(path string, f func(e Entry, tree int) error) error {
	e, tree, ok, err := v.lookup(path)
	if err != nil || !ok {
		return err
	}
	if err := f(e, tree); err != nil || e.Type != Dir {
		return err
	}
	lv, err := v.level(path)
	if err != nil {
		return err
	}
	m := merge{limits: []limit{{path, math.MaxInt}}}
	for _, p := range lv.trees {
		if err := m.add(v.trees[p.tree].cursor(p.span.lo, p.span.hi), p.tree); err != nil {
			return err
		}
	}
	for len(m.heads) > 0 {
		e, tree, ok, err := m.next()
		if err != nil {
			return err
		}
		if !ok || e.Path == "." {
			continue
		}
		if err := f(e, tree); err != nil {
			return err
		}
	}
	return nil
}

// Close releases the files.
func (v *View) Close() error {
	var errs []error
	for _, t := range v.trees {
		errs = append(errs, t.Close())
	}
	return errors.Join(errs...)
}

// A merge reads several trees side by side.
type merge struct {
	heads []head // a heap: by path, then topmost first
	// limits are the open directories below which some trees are hidden, outermost first.
	limits []limit
}

type head struct {
	e    Entry
	tree int
	c    *cursor
}

// A limit says that below path only trees with a smaller number show.
type limit struct {
	path  string
	trees int
}

func (m *merge) Len() int { return len(m.heads) }
func (m *merge) Less(i, j int) bool {
	if c := Compare(m.heads[i].e.Path, m.heads[j].e.Path); c != 0 {
		return c < 0
	}
	return m.heads[i].tree < m.heads[j].tree
}
func (m *merge) Swap(i, j int) { m.heads[i], m.heads[j] = m.heads[j], m.heads[i] }
func (m *merge) Push(x any)    { m.heads = append(m.heads, x.(head)) }
func (m *merge) Pop() any {
	h := m.heads[len(m.heads)-1]
	m.heads = m.heads[:len(m.heads)-1]
	return h
}

func (m *merge) add(c *cursor, tree int) error {
	e, ok, err := c.next()
	if ok {
		heap.Push(m, head{e, tree, c})
	}
	return err
}

// advance takes the first head and lets its tree go on.
func (m *merge) advance() (head, error) {
	h := m.heads[0]
	e, ok, err := h.c.next()
	if !ok {
		heap.Pop(m)
		return h, err
	}
	m.heads[0].e = e
	heap.Fix(m, 0)
	return h, nil
}

// next returns what is at the next path; ok is false if nothing is.
func (m *merge) next() (win Entry, tree int, ok bool, err error) {
	win, tree, _, err = m.settle()
	return win, tree, err == nil && tree >= 0 && win.Type != Removed, err
}

// settle settles one path: the topmost entry that is not hidden wins, be it a removal; the first that is no directory hides what is below
// the path in its own tree and all lower ones, and cut says so. tree is -1 if all entries are hidden.
func (m *merge) settle() (win Entry, tree int, cut bool, err error) {
	tree = -1
	path := m.heads[0].e.Path
	for n := len(m.limits); n > 1 && !below(path, m.limits[n-1].path); n-- {
		m.limits = m.limits[:n-1]
	}
	shown := m.limits[len(m.limits)-1].trees
	under := shown
	for len(m.heads) > 0 && m.heads[0].e.Path == path {
		h, err := m.advance()
		if err != nil {
			return Entry{}, -1, false, err
		}
		if h.tree >= under {
			continue
		}
		if tree < 0 {
			win, tree = h.e, h.tree
			if win.Type != Dir {
				under = 0
			}
		} else if h.e.Type != Dir {
			under = h.tree
		}
	}
	if under < shown {
		m.limits = append(m.limits, limit{path, under})
	}
	return win, tree, under < shown, nil
}
