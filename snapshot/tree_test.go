package snapshot

import (
	"bytes"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
)

func treeBytes(t testing.TB, entries ...Entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := NewTreeWriter(&b)
	for _, e := range entries {
		if err := w.WriteEntry(e); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func treeOf(t testing.TB, entries ...Entry) *Tree {
	t.Helper()
	b := treeBytes(t, entries...)
	tr, err := OpenTree(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	return tr
}

var everything = []Entry{
	{Path: ".", Type: Dir, Mode: 0o1777, UID: 4294967295, GID: 1, MTime: -1},
	{Path: "-", Type: Symlink, Mode: 0o777, Link: "-", MTime: 1<<63 - 1, TimeSet: true},
	{Path: "a \n\\b=", Type: File, Mode: 0o4755, Size: 1 << 40, Digest: strings.Repeat("ab", 32),
		Xattrs: []Xattr{{"user.=", []byte{}}, {"user.x y", []byte("\x00\xff \n=-")}}},
	{Path: "a \n\\b=/\xff", Type: File, HardLink: "a \n\\b="},
	{Path: "dev", Type: Block, Major: 259, Minor: 1048575},
	{Path: "é", Type: Removed},
}

func TestTreeKeepsAll(t *testing.T) {
	tr := treeOf(t, everything...)
	if err := tr.Verify(); err != nil || tr.Len() != len(everything) {
		t.Fatal(tr.Len(), err)
	}
	var got []Entry
	if err := tr.Each(func(e Entry) error { got = append(got, e); return nil }); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, everything) {
		t.Errorf("got\n%+v\nwant\n%+v", got, everything)
	}
	for _, want := range everything {
		if e, ok, err := tr.Lookup(want.Path); !ok || err != nil || !reflect.DeepEqual(e, want) {
			t.Errorf("%q: %+v %v %v", want.Path, e, ok, err)
		}
	}
}

func TestTreeWriterRefuses(t *testing.T) {
	for _, paths := range [][]string{{""}, {"/a"}, {"a/"}, {"a//b"}, {"./a"}, {"a/.."}, {"a\x00"}, {"b", "a"}, {"a", "a"}, {"a-b", "a/b"}} {
		w := NewTreeWriter(&bytes.Buffer{})
		var err error
		for _, p := range paths {
			err = w.WriteEntry(Entry{Path: p, Type: File})
		}
		if err == nil {
			t.Errorf("%q were written", paths)
		}
	}
}

func TestCompare(t *testing.T) {
	sorted := []string{".", "\x01", "a", "a/\x01", "a/b", "a/b/c", "a/b-", "a\x01", "a-b", "a.b", "a.b/c", "aa", "b", "\xff"}
	for i, a := range sorted {
		for j, b := range sorted {
			if c := Compare(a, b); c < 0 != (i < j) || c > 0 != (i > j) {
				t.Errorf("Compare(%q, %q) is %d", a, b, c)
			}
		}
	}
}

// A tree of many windows: every path is found from every position, and none that is not there.
func TestBigTreeLookup(t *testing.T) {
	var entries []Entry
	for d := range 30 {
		dir := fmt.Sprintf("d%02d", d)
		entries = append(entries, Entry{Path: dir, Type: Dir})
		for f := range 100 {
			e := Entry{Path: fmt.Sprintf("%s/f%02d%s", dir, f, strings.Repeat("x", f)), Type: File}
			if f == 50 {
				e.Xattrs = []Xattr{{"user.long", bytes.Repeat([]byte{0}, 20_000)}}
			}
			entries = append(entries, e)
		}
	}
	slices.SortFunc(entries, func(a, b Entry) int { return Compare(a.Path, b.Path) })
	v := NewView(treeOf(t, entries...), treeOf(t, Entry{Path: "d05/z", Type: File}))
	for i := range entries {
		e := entries[i*7919%len(entries)]
		if _, ok, err := v.Lookup(e.Path); !ok || err != nil {
			t.Fatal(e.Path, ok, err)
		}
		if _, ok, err := v.Lookup(e.Path + "~"); ok || err != nil {
			t.Fatal(e.Path, ok, err)
		}
	}
	if list, err := v.ReadDir("d05"); len(list) != 101 || err != nil {
		t.Error(len(list), err)
	}
}

// Upper trees first, each a list of "TYPE PATH"; then what is seen.
func TestViewHides(t *testing.T) {
	for _, c := range []struct {
		name  string
		trees []string
		want  string
	}{
		{"removed", []string{"x a", "d a,f a/b,f c"}, "c"},
		{"removed and made again below", []string{"d a,f a/n", "x a", "d a,f a/o"}, "a a/n"},
		{"a file between directories", []string{"d a,f a/n", "f a", "d a,f a/o"}, "a a/n"},
		{"merged", []string{"f a/2", "d a,x a/3,f a/4", "d a,f a/1,f a/2,f a/3"}, "a a/1 a/2 a/4"},
		{"a removed directory inside", []string{"x a/b", "d a,d a/b,d a/b/c,f a/b/c/d,f a/bb"}, "a a/bb"},
		{"a link for a directory", []string{"l a", "d a,f a/b"}, "a"},
		{"siblings of what is hidden", []string{"f a", "d a,f a/b,f a-b,f ab"}, "a a-b ab"},
	} {
		var trees []*Tree
		for _, text := range c.trees {
			var entries []Entry
			for _, l := range strings.Split(text, ",") {
				entries = append(entries, Entry{Path: l[2:], Type: Type(l[0])})
			}
			trees = append(trees, treeOf(t, entries...))
		}
		v := NewView(trees...)
		var got []string
		if err := v.Walk(".", func(e Entry) error { got = append(got, e.Path); return nil }); err != nil {
			t.Fatal(err)
		}
		if s := strings.Join(got[1:], " "); s != c.want {
			t.Errorf("%s: walk has %q, want %q", c.name, s, c.want)
		}
		sameByLookup(t, c.name, v, c.trees, got)
	}
}

// Upper trees first, each a list of "PATH" or "PATH=HARDLINK" (a "-" before it: removed); then what is seen.
func TestViewLinks(t *testing.T) {
	for _, c := range []struct {
		name  string
		trees []string
		want  string
	}{
		{"nothing hidden", []string{"z", "a,b=a,c=a"}, "a b=a c=a z"},
		{"the first removed", []string{"-a", "a,b=a,c=a"}, "b c=b"},
		{"the first replaced", []string{"a", "a,b=a,c=a"}, "a b c=b"},
		{"the first replaced by a group of the same name", []string{"a,d=a", "a,b=a,c=a"}, "a b c=b d=a"},
		{"three trees", []string{"a,e=a", "a,d=a,f=a", "a,b=a,c=a"}, "a b c=b d e=a f=d"},
		{"one left", []string{"-a,-b", "a,b=a,c=a"}, "c"},
		{"two groups of a tree", []string{"-a", "a,b,c=a,d=b,e=a"}, "b c d=b e=c"},
		{"the first's directory hidden", []string{"A", "A/a,b=A/a,c=A/a"}, "A b c=b"},
	} {
		var trees []*Tree
		for _, text := range c.trees {
			trees = append(trees, linkTree(t, text))
		}
		v := NewView(trees...)
		var walked []Entry
		if err := v.Walk(".", func(e Entry) error { walked = append(walked, e); return nil }); err != nil {
			t.Fatal(err)
		}
		if got := linkText(walked[1:]); got != c.want {
			t.Errorf("%s: walk has %q, want %q", c.name, got, c.want)
		}
		list, err := NewView(trees...).ReadDir(".")
		if got := linkText(list); got != c.want || err != nil {
			t.Errorf("%s: directory has %q, want %q: %v", c.name, got, c.want, err)
		}
		for _, want := range walked[1:] {
			e, _, err := NewView(trees...).Lookup(want.Path)
			if err != nil || e.HardLink != want.HardLink {
				t.Errorf("%s: look-up of %s has %q, want %q: %v", c.name, want.Path, e.HardLink, want.HardLink, err)
			}
		}
	}
}

func linkTree(t *testing.T, text string) *Tree {
	t.Helper()
	var entries []Entry
	for _, l := range strings.Split(text, ",") {
		e := Entry{Type: File}
		e.Path, e.HardLink, _ = strings.Cut(l, "=")
		if p, gone := strings.CutPrefix(e.Path, "-"); gone {
			e = Entry{Path: p, Type: Removed}
		}
		entries = append(entries, e)
	}
	return treeOf(t, entries...)
}

func linkText(entries []Entry) string {
	var out []string
	for _, e := range entries {
		s := e.Path
		if e.HardLink != "" {
			s += "=" + e.HardLink
		}
		out = append(out, s)
	}
	return strings.Join(out, " ")
}

// sameByLookup checks Lookup and ReadDir against what Walk found.
func sameByLookup(t *testing.T, name string, v *View, trees, walked []string) {
	t.Helper()
	for _, text := range trees {
		for _, l := range strings.Split(text, ",") {
			_, ok, err := v.Lookup(l[2:])
			if ok != slices.Contains(walked, l[2:]) || err != nil {
				t.Errorf("%s: look-up of %q: %v %v", name, l[2:], ok, err)
			}
		}
	}
	var read func(dir string) []string
	read = func(dir string) (out []string) {
		list, err := v.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range list {
			out = append(append(out, e.Path), read(e.Path)...)
		}
		return out
	}
	if got := read("."); !slices.Equal(got, walked[1:]) {
		t.Errorf("%s: directories have %q, walk %q", name, got, walked[1:])
	}
}

// A reader of any bytes does not panic, and reads what it accepts as it was written.
func FuzzTree(f *testing.F) {
	good := treeBytes(f, everything...)
	f.Add(good)
	f.Add(good[:len(good)/2])
	f.Add(treeBytes(f))
	f.Add([]byte(treeHeader + "\n \n-\n" + fmt.Sprintf(treeTrailer, 1, 0)))
	f.Add([]byte(treeHeader + fmt.Sprintf(treeTrailer, 0, 0)))
	f.Fuzz(func(t *testing.T, b []byte) {
		tr, err := OpenTree(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			return
		}
		sound := tr.Verify() == nil
		var again bytes.Buffer
		w := NewTreeWriter(&again)
		err = tr.Each(func(e Entry) error {
			tr.Lookup(e.Path)
			return w.WriteEntry(e)
		})
		v := NewView(tr)
		v.Walk(".", func(Entry) error { return nil })
		v.ReadDir(".")
		v.Lookup("a/b")
		if err != nil || !sound {
			return
		}
		w.Close()
		tr2, err := OpenTree(bytes.NewReader(again.Bytes()), int64(again.Len()))
		if err != nil || tr2.Verify() != nil || tr2.Len() > len(b) {
			t.Errorf("what was read cannot be written: %v", err)
		}
	})
}
