package snapshot

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// squashed is what a Squash of trees yields, topmost first, the last `lower` of them being the base's.
func squashed(t testing.TB, lower int, trees ...*Tree) []Entry {
	t.Helper()
	n := len(trees) - lower
	q := &Squash{upper: NewView(trees[:n]...), lower: NewView(trees[n:]...)}
	for i := range n {
		q.names = append(q.names, Name(fmt.Sprint(i)))
	}
	var out []Entry
	err := q.Each(func(e Entry, from Name) error {
		if e.Type != Removed && from == "" || e.Type == Removed && from != "" {
			t.Errorf("%s is from %q", e.Path, from)
		}
		out = append(out, e)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// Upper trees first, each a list of "TYPE PATH[=HARDLINK]"; the last tree is the base's.
func TestSquash(t *testing.T) {
	for _, c := range []struct {
		name  string
		trees []string
		want  string
	}{
		{"one step", []string{"f a,x b", "f b,f c"}, "f a,x b"},
		{"nothing below", []string{"f a", "f b", ""}, "f a,f b"},
		{"the last one wins", []string{"f a", "l a", "d a"}, "f a"},
		{"made and removed", []string{"x a", "f a", "f z"}, ""},
		{"made over the base's and removed", []string{"x a", "f a", "f a"}, "x a"},
		{"removed and made again", []string{"f a", "x a", "f a"}, "f a"},
		{"a directory made and removed", []string{"x d", "d d,f d/a", "f z"}, ""},
		{"a directory of the base removed", []string{"x d", "f d/n", "d d,f d/a"}, "x d"},
		{"a file in a directory made and removed", []string{"x d/n", "d d,f d/m,f d/n", ""}, "d d,f d/m"},
		{"removed twice over", []string{"x d", "x d/a", "d d,f d/a,f d/b"}, "x d"},
		{"a directory made again hides the base's", []string{"d d,f d/n", "x d", "d d,f d/a,d d/s,f d/s/x"}, "d d,x d/a,f d/n,x d/s"},
		{"a part of it is back", []string{"d d,d d/s,f d/s/n", "x d", "d d,f d/a,d d/s,f d/s/x,f d/z"}, "d d,x d/a,d d/s,f d/s/n,x d/s/x,x d/z"},
		{"the same name is back", []string{"d d,f d/a", "x d", "d d,f d/a"}, "d d,f d/a"},
		{"made again in a later step, filled in the next", []string{"f d/b", "d d", "x d", "d d,f d/a,f d/b"}, "d d,x d/a,f d/b"},
		{"made again twice", []string{"d d", "x d", "d d,d d/s", "x d", "d d,d d/s,f d/s/a,f d/t"}, "d d,x d/s,x d/t"},
		{"fresh inside fresh", []string{"d d/s,f d/s/n", "x d/s", "d d,d d/s,f d/s/m", "x d", "d d,d d/s,f d/s/o"}, "d d,d d/s,f d/s/n,x d/s/o"},
		{"a file becomes a directory", []string{"d a,f a/b", "x a", "f a"}, "d a,f a/b"},
		{"a directory becomes a file", []string{"f d", "x d", "d d,f d/a"}, "f d"},
		{"a directory, a file, a directory", []string{"d d,f d/n", "f d", "d d,f d/a"}, "d d,x d/a,f d/n"},
		{"removals between siblings", []string{"d d", "x d,f d.x,x e", "d d,f d/a,f e"}, "d d,x d/a,f d.x,x e"},
		{"links of one step", []string{"f a,f b=a", "f c", ""}, "f a,f b=a,f c"},
		{"the first link is gone", []string{"x a", "f a,f b=a,f c=a", ""}, "f b,f c=b"},
		{"links of two steps are two files", []string{"f c,f d=c", "f a,f b=a", ""}, "f a,f b=a,f c,f d=c"},
		{"the root", []string{"d .", "f a", "d ."}, "d .,f a"},
	} {
		var trees []*Tree
		for _, text := range c.trees {
			trees = append(trees, typedTree(t, text))
		}
		var got []string
		for _, e := range squashed(t, 1, trees...) {
			text := string(e.Type) + " " + e.Path
			if e.HardLink != "" {
				text += "=" + e.HardLink
			}
			got = append(got, text)
		}
		if s := strings.Join(got, ","); s != c.want {
			t.Errorf("%s: %q, want %q", c.name, s, c.want)
		}
	}
}

func typedTree(t *testing.T, text string) *Tree {
	t.Helper()
	var entries []Entry
	for _, l := range strings.Split(text, ",") {
		if l != "" {
			e := Entry{Type: Type(l[0])}
			e.Path, e.HardLink, _ = strings.Cut(l[2:], "=")
			entries = append(entries, e)
		}
	}
	return treeOf(t, entries...)
}

// A world of random steps: what is at each path. Files with the same MTime are the same file, and no other entries are.
type randomFiles map[string]Entry

func (w randomFiles) remove(path string) {
	maps.DeleteFunc(w, func(p string, _ Entry) bool { return p == path || below(p, path) })
}

func (w randomFiles) step(r *rapid.T, clock *int64) {
	for range rapid.IntRange(1, 6).Draw(r, "changes") {
		dirs := []string{"."}
		for _, p := range slices.SortedFunc(maps.Keys(w), Compare) {
			if w[p].Type == Dir {
				dirs = append(dirs, p)
			}
		}
		path := join(rapid.SampledFrom(dirs).Draw(r, "dir"), rapid.SampledFrom([]string{"a", "b", "b.", "c"}).Draw(r, "name"))
		*clock++
		switch old := w[path]; rapid.SampledFrom([]string{"dir", "dir", "file", "remove", "remove", "link"}).Draw(r, "change") {
		case "dir":
			if old.Type != Dir {
				w.remove(path)
			}
			w[path] = Entry{Path: path, Type: Dir, MTime: *clock}
		case "file":
			w.remove(path)
			w[path] = Entry{Path: path, Type: File, MTime: *clock}
		case "remove":
			w.remove(path)
		case "link": // the driver copies the file up, so that both names are the step's
			w.link(r, path, *clock)
		}
	}
}

func (w randomFiles) link(r *rapid.T, path string, now int64) {
	for _, p := range slices.SortedFunc(maps.Keys(w), Compare) {
		if e := w[p]; e.Type == File && p != path && rapid.Bool().Draw(r, "this") {
			w.remove(path)
			for q, f := range w { // all names of the file go along
				if f.Type == File && f.MTime == e.MTime {
					f.MTime = now
					w[q] = f
				}
			}
			w[path] = Entry{Path: path, Type: File, MTime: now}
			return
		}
	}
}

// changes is the change set of a step, as drivers make it.
func (w randomFiles) changes(before randomFiles) []Entry {
	var out []Entry
	first := map[int64]string{}
	gone := ""
	for _, p := range slices.SortedFunc(maps.Keys(union(w, before)), Compare) {
		e, is := w[p]
		_, was := before[p]
		switch {
		case !is && was && gone != "" && below(p, gone):
		case !is && was:
			out, gone = append(out, Entry{Path: p, Type: Removed}), p
		case e.Type != before[p].Type || e.MTime != before[p].MTime:
			if e.Type == File && first[e.MTime] != "" {
				e.HardLink = first[e.MTime]
			} else if e.Type == File {
				first[e.MTime] = p
			}
			out = append(out, e)
			if e.Type != Dir {
				gone = p // hides what was below
			}
		}
	}
	return out
}

func union(a, b randomFiles) randomFiles {
	out := maps.Clone(a)
	maps.Copy(out, b)
	return out
}

// The base and the squashed change set are the file system of all steps; no removal is of something that the base does not have.
func TestSquashRandom(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		w, clock := randomFiles{}, int64(0)
		var sets [][]Entry
		for range rapid.IntRange(1, 6).Draw(r, "steps") {
			before := maps.Clone(w)
			w.step(r, &clock)
			sets = append([][]Entry{w.changes(before)}, sets...)
		}
		lower := rapid.IntRange(0, len(sets)).Draw(r, "lower")
		open := func(sets [][]Entry) (out []*Tree) {
			for _, s := range sets {
				out = append(out, treeOf(t, s...))
			}
			return out
		}
		one := squashed(t, lower, open(sets)...)
		base := sets[len(sets)-lower:]
		want, got := walkText(t, NewView(open(sets)...)), walkText(t, NewView(open(append([][]Entry{one}, base...))...))
		if got != want {
			r.Fatalf("%v\nsquashed over %d is %v\nfiles are\n%s\nwant\n%s", sets, lower, one, got, want)
		}
		below := NewView(open(base)...)
		for _, e := range one {
			if _, there, _ := below.Lookup(e.Path); e.Type == Removed && !there {
				r.Fatalf("%v\nsquashed over %d removes %s, which is not there", sets, lower, e.Path)
			}
		}
	})
}

func walkText(t testing.TB, v *View) string {
	t.Helper()
	var out strings.Builder
	err := v.Walk(".", func(e Entry) error {
		fmt.Fprintf(&out, "%c %s %d %s\n", e.Type, e.Path, e.MTime, e.HardLink)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out.String()
}
