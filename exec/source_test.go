package exec

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"img/dag"
	"img/snapshot"
)

// makeTree makes files in a new directory, one per line: "path" with a trailing slash for a directory, "path -> target" for a symbolic
// link, "path = first" for a hard link, "path | fifo" or socket, else a file that holds its own path.
func makeTree(t *testing.T, lines string) string {
	t.Helper()
	dir := t.TempDir()
	for line := range strings.Lines(lines) {
		if line = strings.TrimSpace(line); line != "" {
			if err := makeOne(dir, line); err != nil {
				t.Fatalf("%s: %v", line, err)
			}
		}
	}
	return dir
}

func makeOne(dir, line string) error {
	name, rest, _ := strings.Cut(line, " ")
	p := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		return err
	}
	kind, what, _ := strings.Cut(rest, " ")
	switch {
	case strings.HasSuffix(name, "/"):
		return os.MkdirAll(p, 0o755)
	case kind == "->":
		return os.Symlink(what, p)
	case kind == "=":
		return os.Link(filepath.Join(dir, what), p)
	case what == "fifo":
		return unix.Mkfifo(p, 0o600)
	case what == "socket":
		return unix.Mknod(p, unix.S_IFSOCK|0o600, 0)
	}
	return os.WriteFile(p, []byte(name), 0o644)
}

// open opens a directory as a context.
func open(t *testing.T, dir string, patterns ...string) *Context {
	t.Helper()
	c, err := OpenContext(dir, patterns, ".dockerignore", "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// view is a directory as what a step made: the other kind of source.
func view(t *testing.T, dir string) source {
	t.Helper()
	var entries []snapshot.Entry
	err := open(t, dir).walk(".", func(e snapshot.Entry, c content) (err error) {
		if c != nil {
			e.Digest, err = c.digest()
		}
		entries = append(entries, e)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return viewOf(t, entries)
}

// viewOf is what steps made, the last one first.
func viewOf(t *testing.T, trees ...[]snapshot.Entry) source {
	t.Helper()
	var open []*snapshot.Tree
	for _, entries := range trees {
		open = append(open, treeOf(t, entries))
	}
	v := snapshot.NewView(open...)
	t.Cleanup(func() { v.Close() })
	return viewSource{view: v}
}

func treeOf(t *testing.T, entries []snapshot.Entry) *snapshot.Tree {
	t.Helper()
	var b bytes.Buffer
	w := snapshot.NewTreeWriter(&b)
	for _, e := range entries {
		if err := w.WriteEntry(e); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	tree, err := snapshot.OpenTree(bytes.NewReader(b.Bytes()), int64(b.Len()))
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

func copyOp(paths ...string) *dag.Copy {
	from := dag.Source{Context: dag.MainContext, Input: dag.Scratch}
	return &dag.Copy{Base: dag.Scratch, Sources: []dag.CopySource{{From: from, Paths: paths}}, Dest: "/"}
}

var epoch = time.Unix(1e9, 0)

// asNobody gives files to a user and lets the test's thread use files as that user does, if it is root's.
func asNobody(t *testing.T, dir string) {
	t.Helper()
	if os.Geteuid() != 0 {
		return
	}
	const nobody = 65534
	err := filepath.WalkDir(dir, func(p string, _ fs.DirEntry, err error) error { return errors.Join(err, os.Lchown(p, nobody, nobody)) })
	if err != nil {
		t.Fatal(err)
	}
	runtime.LockOSThread()
	unix.Setfsuid(nobody) // takes the capabilities over files away, too
	t.Cleanup(func() {
		unix.Setfsuid(0)
		runtime.UnlockOSThread()
	})
}

const sources = `
	file
	dir/a
	dir/b.txt
	dir/.hidden
	dir/sub/c
	dir/sub/deep/d.txt
	other/sub/e
	empty/
	tofile -> file
	todir -> dir
	viadir -> todir/sub
	abs -> /dir/a
	absdir -> /dir
	up -> ../../../../file
	dots -> dir/../dir/./b.txt
	dangling -> nowhere
	loop1 -> loop2
	loop2 -> loop1
	self -> self/x
	dir/rel -> sub/c
	dir/back -> ..
	new[x]
	b*r
	x\y
	.dockerfile/x
	secret/key
	secret/pub
`

func TestResolve(t *testing.T) {
	dir := makeTree(t, sources)
	c := open(t, dir, "secret", "!secret/pub")
	cases := []struct {
		pattern string
		want    string // the matches as real:name, or the error's text
	}{
		{"file", "file:file"},
		{"/file", "file:file"},
		{"./file", "file:file"},
		{"file/", "file:file"},
		{"../../file", "file:file"},
		{"dir/../file", "file:file"},
		{"dir", "dir:dir/"},
		{"dir/", "dir:dir/"},
		{".", ".:./"},
		{"/", ".:./"},
		{"", ".:./"},
		{"dir/sub/..", "dir:dir/"},
		{"tofile", "file:tofile"},
		{"todir", "dir:todir/"},
		{"todir/a", "dir/a:a"},
		{"viadir/deep/d.txt", "dir/sub/deep/d.txt:d.txt"},
		{"abs", "dir/a:abs"},
		{"absdir/sub/c", "dir/sub/c:c"},
		{"up", "file:up"},
		{"dots", "dir/b.txt:dots"},
		{"dir/rel", "dir/sub/c:rel"},
		{"dir/back/file", "file:file"},
		{"dir/back/dir/back/dir/back/file", "file:file"},
		{"missing", `"/missing": not found`},
		{"file/below", `"/file/below": not found`},
		{"dangling", `"/dangling": not found`},
		{"loop1", "too many levels"},
		{"self", "too many levels"},

		{"dir/*.txt", "dir/b.txt:b.txt"},
		{"dir/?", "dir/a:a"},
		{"dir/[ab]*", "dir/a:a dir/b.txt:b.txt .:back/"},
		{"dir/[^.r]", "dir/a:a"},
		{"d*/sub/c", "dir/sub/c:c"},
		{"*/sub", "dir/sub:sub/ other/sub:sub/"},
		{"*/*/e", "other/sub/e:e"},
		{"todir/*.txt", "dir/b.txt:b.txt"},
		{"todir*/a", ""}, // below a wildcard no link is followed
		{"tod*", "dir:todir/"},
		{"nomatch*", ""},
		{"missing/*", ""},
		{"file/*", ""},
		{"dir/.h*", "dir/.hidden:.hidden"},
		{"dir/*/c", "dir/sub/c:c"},
		{"dangl*", `"/dangling": not found`},
		{"**/c", ""}, // two stars are one: a component
		{"new[x]", ""},
		{`new[[]x]`, "new[x]:new[x]"},
		{`b\*r*`, "b*r:b*r"},
		{`b*r`, "b*r:b*r"},
		{`x\y`, `x\y:x\y`},
		{"dir/[", "syntax error in pattern"},

		{"secret", "secret:secret/"},
		{"secret/key", `"/secret/key": not found; the path exists, but is excluded by .dockerignore`},
		{"secret/*", "secret/pub:pub"},
	}
	for _, tc := range cases {
		t.Run(tc.pattern, func(t *testing.T) {
			found, err := resolve(c, tc.pattern, false, false)
			got := matches(found)
			if err != nil {
				got = err.Error()
				var gone *NotFoundError
				if errors.As(err, &gone) && gone.Hint() != "" {
					got += "; " + gone.Hint()
				}
			}
			if got != tc.want && (err == nil || !strings.Contains(got, tc.want) || tc.want == "") {
				t.Errorf("got  %s\nwant %s", got, tc.want)
			}
		})
	}
}

func matches(found []match) string {
	var out []string
	for _, m := range found {
		s := m.Real + ":" + m.Name
		if m.Type == snapshot.Dir {
			s += "/"
		}
		out = append(out, s)
	}
	return strings.Join(out, " ")
}

// list is what a step would take: paths relative to each match, "(x)" for directories on the way, "x=y" for hard links.
func list(s source, pattern string, parents bool, exclude ...string) string {
	keep, err := newFilter(exclude)
	if err != nil {
		return err.Error()
	}
	found, err := resolve(s, pattern, parents, false)
	var out []string
	for _, m := range found {
		if err == nil {
			err = visit(s, m, keep, func(i item) error {
				switch {
				case i.rel == "." && i.e.Type == snapshot.Dir:
				case i.passed:
					out = append(out, "("+i.rel+")")
				case i.e.HardLink != "":
					out = append(out, i.rel+"="+i.e.HardLink)
				default:
					out = append(out, i.rel)
				}
				return nil
			})
		}
	}
	if err != nil {
		return "error: " + err.Error()
	}
	return strings.Join(out, " ")
}

func TestVisit(t *testing.T) {
	dir := makeTree(t, `
		a/one.go
		a/two.txt
		a/b/c/three.go
		a/b/four.go
		a/e/
		a/link -> b
		z/hard = a/b/four.go
		z/hard2 = a/b/four.go
		z/y/five.go
		s | socket
		p | fifo
	`)
	cases := []struct {
		name, pattern string
		parents       bool
		exclude       []string
		want          string
	}{
		{name: "all", pattern: ".", want: "a a/b a/b/c a/b/c/three.go a/b/four.go a/e a/link a/one.go a/two.txt p s z z/hard=a/b/four.go z/hard2=a/b/four.go z/y z/y/five.go"},
		{name: "the first name lies outside", pattern: "z", want: "hard hard2=hard y y/five.go"},
		{name: "the first name is excluded", pattern: ".", exclude: []string{"a", "s", "p"}, want: "z z/hard z/hard2=z/hard z/y z/y/five.go"},
		{name: "exclude a directory", pattern: "a", exclude: []string{"b"}, want: "e link one.go two.txt"},
		{name: "exclude by name only at the top", pattern: "a", exclude: []string{"*.go"}, want: "b b/c b/c/three.go b/four.go e link two.txt"},
		{name: "exclude by name everywhere", pattern: "a", exclude: []string{"**/*.go"}, want: "b b/c e link two.txt"},
		{name: "bring back below what is excluded", pattern: "a", exclude: []string{"b", "!b/c"}, want: "(b) b/c b/c/three.go e link one.go two.txt"},
		{name: "bring back what is not there", pattern: "a", exclude: []string{"b", "!b/x"}, want: "e link one.go two.txt"},
		{name: "a file is never excluded from itself", pattern: "a/one.go", exclude: []string{"one.go", "*"}, want: "."},
		{name: "parents of a file", pattern: "a/b/four.go", parents: true, want: "(a) (a/b) a/b/four.go"},
		{name: "parents, absolute", pattern: "/a/b/four.go", parents: true, want: "(a) (a/b) a/b/four.go"},
		{name: "parents of a directory", pattern: "a/b", parents: true, want: "(a) a/b a/b/c a/b/c/three.go a/b/four.go"},
		{name: "parents, pivot", pattern: "./a/./b/c", parents: true, want: "(b) b/c b/c/three.go"},
		{name: "parents, pivot at the end", pattern: "./a/./", parents: true, want: "b b/c b/c/three.go b/four.go e link one.go two.txt"},
		{name: "parents, pivot is a pattern", pattern: "?/./y", parents: true, want: ". . y y/five.go"}, /* p and s */
		{name: "parents, two stars", pattern: "**/*.go", parents: true,
			want: "(a) (a/b) (a/b/c) a/b/c/three.go a/b/four.go a/one.go (z) (z/y) z/y/five.go"},
		{name: "parents, stars in the middle", pattern: "a/**/three.go", parents: true, want: "(a) (a/b) (a/b/c) a/b/c/three.go"},
		{name: "parents, one star", pattern: "*/*.go", parents: true, want: "(a) a/one.go"},
		{name: "parents and exclude", pattern: "a/b", parents: true, exclude: []string{"a/b/c"}, want: "(a) a/b a/b/four.go"},
		{name: "parents do not follow links", pattern: "a/link/c", parents: true, want: ""},
		{name: "parents take a link as it is", pattern: "a/link", parents: true, want: "(a) a/link"},
		{name: "parents without match", pattern: "q*/x", parents: true, want: ""},
	}
	c, v := open(t, dir), view(t, dir)
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			for kind, s := range map[string]source{"context": c, "view": v} {
				if got := list(s, tc.pattern, tc.parents, tc.exclude...); got != tc.want {
					t.Errorf("%s: got  %s\nwant %s", kind, got, tc.want)
				}
			}
		})
	}
}

// Files with several names of which later steps replaced some: what is left of a file stays one, and never joins another.
func TestVisitReplacedLinks(t *testing.T) {
	files := func(names ...string) (out []snapshot.Entry) {
		for _, n := range names {
			p, first, _ := strings.Cut(n, "=")
			e := snapshot.Entry{Path: p, Type: snapshot.File, HardLink: first}
			if dir, ok := strings.CutSuffix(p, "/"); ok {
				e = snapshot.Entry{Path: dir, Type: snapshot.Dir, Mode: 0o755}
			}
			out = append(out, e)
		}
		return out
	}
	s := viewOf(t, files("d/a", "e/z=d/a"), files("d/", "d/a", "d/b=d/a", "d/c=d/a", "e/", "e/x=d/a", "e/y=d/a"))
	for pattern, want := range map[string]string{
		".": "d d/a d/b d/c=d/b e e/x=d/b e/y=d/b e/z=d/a",
		"d": "a b c=b",
		"e": "x y=x z",
	} {
		if got := list(s, pattern, false); got != want {
			t.Errorf("%s: got %s, want %s", pattern, got, want)
		}
	}
}

// What --parents names literally has to be there.
func TestParentsNotFound(t *testing.T) {
	dir := makeTree(t, "a/b\nl -> a\nig/x\nq")
	x := &Executor{o: Options{Contexts: map[string]*Context{"context": open(t, dir, "ig")}}}
	for path, ok := range map[string]bool{
		"a/b": true, "a": true, "./a/./b": true, ".": true, "a/./": true, "z*/q": true,
		"a/c": false, "l/b": false, "./a/./q": false, "z/./q": false, "ig/x": false,
	} {
		op := copyOp(path)
		op.Parents = true
		_, err := x.planCopy(context.Background(), op, nil)
		var gone *NotFoundError
		if ok && err != nil || !ok && !errors.As(err, &gone) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

func TestContextWalk(t *testing.T) {
	dir := makeTree(t, `
		Dockerfile
		keep/a
		keep/b.log
		keep/sub/c.log
		drop/a
		drop/b
		drop/in/x
		drop/in/y
		node_modules/m/index
		src/node_modules/n/index
		src/main
		link -> drop
		ex!cl
		dot.
	`)
	all := "Dockerfile dot. drop drop/a drop/b drop/in drop/in/x drop/in/y ex!cl keep keep/a keep/b.log keep/sub keep/sub/c.log link " +
		"node_modules node_modules/m node_modules/m/index src src/main src/node_modules src/node_modules/n src/node_modules/n/index"
	without := func(drop ...string) string {
		var out []string
		for _, p := range strings.Fields(all) {
			gone := slices.ContainsFunc(drop, func(d string) bool { return p == d || strings.HasPrefix(p, d+"/") })
			if !gone {
				out = append(out, p)
			}
		}
		return strings.Join(out, " ")
	}
	for patterns, want := range map[string]string{
		"":                        all,
		"drop":                    without("drop"),
		"drop/":                   without("drop"),
		"drop/*":                  without("drop/a", "drop/b", "drop/in"),
		"drop/**":                 without("drop/a", "drop/b", "drop/in"),
		"*.log":                   all,
		"**/*.log":                without("keep/b.log", "keep/sub/c.log"),
		"*/*.log":                 without("keep/b.log"),
		"**/node_modules":         without("node_modules", "src/node_modules"),
		"drop !drop/in":           without("drop/a", "drop/b"),
		"drop !drop/in/x":         without("drop/a", "drop/b", "drop/in/y"),
		"drop !drop/nothing":      without("drop"),
		"* !src/main":             "src src/main",
		"** !keep/**/*.log":       "keep keep/b.log keep/sub keep/sub/c.log",
		"!drop drop":              without("drop"),
		"drop !drop/in drop/in/y": without("drop/a", "drop/b", "drop/in/y"),
		"d*":                      without("drop", "dot."),
		"?ot.":                    without("dot."),
		"[a-e]*p":                 without("drop"),
		"link":                    without("link"),
		"Dockerfile":              without("Dockerfile"),
		"**":                      "",
	} {
		t.Run(patterns, func(t *testing.T) {
			c := open(t, dir, strings.Fields(patterns)...)
			got := strings.TrimPrefix(walkList(t, c), ". ")
			if want == "" {
				want = "."
			}
			if got != want {
				t.Errorf("got  %s\nwant %s", got, want)
			}
			if byHand := walkByNames(t, c, "."); byHand != got && want != "." {
				t.Errorf("the walk differs from lstat and names: %s", byHand)
			}
		})
	}
}

func walkList(t *testing.T, s source) string {
	t.Helper()
	var out []string
	err := s.walk(".", func(e snapshot.Entry, _ content) error { out = append(out, e.Path); return nil })
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(out, " ")
}

// walkByNames walks with the other methods of a source.
func walkByNames(t *testing.T, s source, dir string) string {
	t.Helper()
	names, err := s.names(dir)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, n := range names {
		p := filepath.Join(dir, n)
		e, ok, err := s.lstat(p)
		if err != nil || !ok {
			t.Fatalf("lstat %s: %v %v", p, ok, err)
		}
		out = append(out, p)
		if e.Type == snapshot.Dir {
			if below := walkByNames(t, s, p); below != "" {
				out = append(out, below)
			}
		}
	}
	return strings.Join(out, " ")
}

func TestContextEntries(t *testing.T) {
	dir := makeTree(t, `
		a
		b = a
		fifo | fifo
		sock | socket
		link -> a
		x
		d/
	`)
	must := func(errs ...error) {
		t.Helper()
		if err := errors.Join(errs...); err != nil {
			t.Fatal(err)
		}
	}
	at := func(name string) string { return filepath.Join(dir, name) }
	long := strings.Repeat("v", 3000) // more than one list buffer holds, in names
	must(unix.Setxattr(at("x"), "user.k", []byte(long), 0), unix.Setxattr(at("x"), "user.overlay.opaque", []byte("y"), 0),
		unix.Setxattr(at("x"), "user.img.owner", []byte("1:1"), 0), unix.Setxattr(at("d"), "user.d", []byte("1"), 0))
	must(os.Chmod(at("x"), 0o4751|os.ModeSetuid), os.Chmod(at("d"), 0o1777|os.ModeSticky))
	var got []string
	err := open(t, dir).walk(".", func(e snapshot.Entry, c content) error {
		s := fmt.Sprintf("%s %c %o %d:%d", e.Path, e.Type, e.Mode, e.UID, e.GID)
		if e.HardLink != "" {
			s += " =" + e.HardLink
		}
		if e.Link != "" {
			s += " ->" + e.Link
		}
		for _, x := range e.Xattrs {
			s += " " + x.Name + " " + strconv.Itoa(len(x.Value))
		}
		if c != nil {
			d, err := c.digest()
			s += " " + d[:4]
			if err != nil {
				return err
			}
		}
		got = append(got, s)
		return nil
	})
	must(err)
	want := []string{
		". d 755 0:0",
		"a f 644 0:0 ca97",
		"b f 644 0:0 =a ca97",
		"d d 1777 0:0 user.d 1",
		"fifo p 600 0:0",
		"link l 777 0:0 ->a",
		"sock f 600 0:0 e3b0",
		"x f 4751 0:0 user.k 3000 2d71",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// A file or directory that cannot be read is an error that names it, not an empty file. Root reads everything, so the thread gives up
// what lets it.
func TestContextUnreadable(t *testing.T) {
	dir := makeTree(t, "ok\nd/closed/x\nd/file")
	for name, mode := range map[string]os.FileMode{"d/closed": 0, "d/file": 0} {
		if err := os.Chmod(filepath.Join(dir, name), mode); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { os.Chmod(filepath.Join(dir, "d/closed"), 0o755) })
	if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil {
		t.Fatal(err)
	}
	asNobody(t, dir)
	for _, tc := range []struct {
		patterns []string
		path     string
		want     string
	}{
		{nil, ".", "build context: open d/closed: permission denied"},
		{nil, "d/file", "build context: open d/file: permission denied"},
		{nil, "d/f*", "build context: open d/file: permission denied"},
		{[]string{"d/closed"}, ".", "build context: open d/file: permission denied"},
		{[]string{"d"}, ".", ""},
		{[]string{"d", "!ok"}, ".", ""},
	} {
		x := &Executor{o: Options{Contexts: map[string]*Context{"context": open(t, dir, tc.patterns...)}}}
		_, err := x.planCopy(context.Background(), copyOp(tc.path), nil)
		if got := fmt.Sprint(err); got != tc.want && !(err == nil && tc.want == "") {
			t.Errorf("%v %s: got %s, want %s", tc.patterns, tc.path, got, tc.want)
		}
	}
}

// The state directory is never part of a context, however it is named.
func TestContextHidesState(t *testing.T) {
	dir := makeTree(t, "a\nsub/state/x\nsub/state/deep/y\nsub/statement\nlink -> sub/state")
	for _, state := range []string{"sub/state", "link"} {
		c := open(t, dir)
		c.hide(filepath.Join(dir, state))
		if got, want := walkList(t, c), ". a link sub sub/statement"; got != want {
			t.Errorf("state %s: got %s, want %s", state, got, want)
		}
		if _, ok, _ := c.lstat("sub/state/x"); ok {
			t.Error("the state can be named")
		}
		hidden, err := c.hiddenBelow(".")
		if err != nil || !slices.Equal(hidden, []string{"sub/state"}) {
			t.Errorf("a bind mount hides %v, %v", hidden, err)
		}
	}
	c := open(t, dir)
	c.hide(dir)
	x := &Executor{o: Options{Contexts: map[string]*Context{"context": c}}}
	if _, err := x.planCopy(context.Background(), copyOp("."), nil); err == nil || !strings.Contains(err.Error(), "state directory") {
		t.Errorf("a context that is the state: %v", err)
	}
	c = open(t, filepath.Join(dir, "sub"))
	c.hide(dir)
	if got := walkList(t, c); got != ". state state/deep state/deep/y state/x statement" {
		t.Errorf("a context inside the state: %s", got)
	}
}

// A context may be named through a link.
func TestContextLink(t *testing.T) {
	dir := makeTree(t, "real/a\nlink -> real")
	c := open(t, filepath.Join(dir, "link"))
	if got := walkList(t, c); got != ". a" {
		t.Error(got)
	}
	if filepath.Base(c.Path) != "real" {
		t.Errorf("the inner process would open %s", c.Path)
	}
}

// The sum counts what a layer would hold, and nothing else.
func TestTreeSum(t *testing.T) {
	sum := func(t *testing.T, dir string) string {
		x := &Executor{o: Options{Contexts: map[string]*Context{"context": open(t, dir)}}}
		p, err := x.planCopy(context.Background(), copyOp("d"), nil)
		if err != nil {
			t.Fatal(err)
		}
		return p.sources[0].Sum
	}
	const tree = "d/a\nd/b\nd/sub/c\nd/h = d/a\nd/l -> a\nd/p | fifo"
	base := sum(t, makeTree(t, tree))
	if base != "" && base != sum(t, makeTree(t, tree)) {
		t.Error("two equal trees differ: times or inodes count")
	}
	for name, change := range map[string]func(dir string) error{
		"content":          func(d string) error { return os.WriteFile(d+"/a", []byte("x"), 0o644) },
		"mode":             func(d string) error { return os.Chmod(d+"/a", 0o600) },
		"set-id":           func(d string) error { return os.Chmod(d+"/a", 0o644|os.ModeSetuid) },
		"directory's mode": func(d string) error { return os.Chmod(d+"/sub", 0o700) },
		"name":             func(d string) error { return os.Rename(d+"/b", d+"/b2") },
		"link":             func(d string) error { return errors.Join(os.Remove(d+"/l"), os.Symlink("b", d+"/l")) },
		"type":             func(d string) error { return errors.Join(os.Remove(d+"/p"), os.WriteFile(d+"/p", nil, 0o600)) },
		"hard link": func(d string) error {
			return errors.Join(os.Remove(d+"/h"), os.WriteFile(d+"/h", []byte("d/a"), 0o644))
		},
		"attribute": func(d string) error { return unix.Setxattr(d+"/a", "user.x", []byte("1"), 0) },
		"new":       func(d string) error { return os.WriteFile(d+"/n", nil, 0o644) },
		"gone":      func(d string) error { return os.RemoveAll(d + "/sub") },
	} {
		dir := makeTree(t, tree)
		if err := change(filepath.Join(dir, "d")); err != nil {
			t.Fatal(err)
		}
		if sum(t, dir) == base {
			t.Errorf("%s does not count", name)
		}
	}
	for name, change := range map[string]func(dir string) error{
		"times":             func(d string) error { return os.Chtimes(d+"/a", epoch, epoch) },
		"the root's mode":   func(d string) error { return os.Chmod(d, 0o700) },
		"a file next to it": func(d string) error { return os.WriteFile(filepath.Dir(d)+"/n", nil, 0o644) },
	} {
		dir := makeTree(t, tree)
		if err := change(filepath.Join(dir, "d")); err != nil {
			t.Fatal(err)
		}
		if sum(t, dir) != base {
			t.Errorf("%s counts", name)
		}
	}
}
