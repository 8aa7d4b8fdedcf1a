// Package snapshottest is the suite that every snapshot driver passes.
//
// It needs what the drivers need: to be root of a user namespace with its own mount namespace, or real root.
package snapshottest

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"img/snapshot"
)

// An Opener opens a store in the state directory dir, with a scratch directory of its own.
type Opener func(t *testing.T, dir string) *snapshot.Store

// Suite runs every behaviour. IDs is how many container ids the place it runs in has.
func Suite(t *testing.T, ids uint32, open Opener) {
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			if c.ids > ids {
				t.Logf("needs %d ids, here are %d: run where subordinate ids are mapped", c.ids, ids)
				return
			}
			c.run(t, open)
		})
	}
	for _, b := range behaviours {
		t.Run(b.name, func(t *testing.T) { b.run(t, open) })
	}
}

// A stepCase is a chain of shell scripts; tree is the change set that the last one makes, and view what the file system then has
// (not looked at if empty).
type stepCase struct {
	name  string
	ids   uint32
	steps []string
	tree  string
	view  string
}

func (c stepCase) run(t *testing.T, open Opener) {
	s := open(t, t.TempDir())
	var n snapshot.Name
	for _, script := range c.steps {
		n = Step(t, s, n, snapshot.CommitOptions{Times: snapshot.TimesSet}, Script(script))
	}
	if got := Tree(t, s, n); got != lines(c.tree) {
		t.Errorf("tree is\n%swant\n%s", got, lines(c.tree))
	}
	if got := View(t, s, n); c.view != "" && got != lines(c.view) {
		t.Errorf("view is\n%swant\n%s", got, lines(c.view))
	}
	sameFiles(t, s, n)
}

// lines takes the indentation off an expected text.
func lines(s string) string {
	var out strings.Builder
	for l := range strings.Lines(s) {
		if l = strings.TrimSpace(l); l != "" {
			out.WriteString(l + "\n")
		}
	}
	return out.String()
}

// Script is a step that runs a shell script in the root directory.
func Script(text string) func(t *testing.T, root string) {
	return func(t *testing.T, root string) {
		t.Helper()
		cmd := exec.Command("sh", "-ec", "umask 022\n"+text)
		cmd.Dir = root
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s\n%s%v", text, out, err)
		}
	}
}

// Step prepares on parent, runs f and commits.
func Step(t *testing.T, s *snapshot.Store, parent snapshot.Name, o snapshot.CommitOptions, f func(t *testing.T, root string)) snapshot.Name {
	t.Helper()
	a, err := s.Prepare(context.Background(), parent)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Discard()
	f(t, a.Root())
	n, err := a.Commit(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// Tree is a snapshot's change set as text: type, path, and what differs from the usual.
func Tree(t *testing.T, s *snapshot.Store, n snapshot.Name) string {
	t.Helper()
	tr, err := s.Tree(n)
	if err != nil {
		t.Fatal(err)
	}
	defer tr.Close()
	var out strings.Builder
	if err := tr.Each(func(e snapshot.Entry) error { out.WriteString(line(e)); return nil }); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// View is the whole file system as text.
func View(t *testing.T, s *snapshot.Store, n snapshot.Name) string {
	t.Helper()
	v, err := s.View(n)
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	var out strings.Builder
	err = v.Walk(".", func(e snapshot.Entry) error {
		if e.Path != "." {
			out.WriteString(line(e))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out.String()
}

func line(e snapshot.Entry) string {
	s := fmt.Sprintf("%c %s", e.Type, strings.ReplaceAll(e.Path, "\n", `\n`))
	usual := map[snapshot.Type]uint32{snapshot.Dir: 0o755, snapshot.Symlink: 0o777, snapshot.Removed: 0}
	want, known := usual[e.Type]
	if !known {
		want = 0o644
	}
	if e.Mode != want {
		s += fmt.Sprintf(" %o", e.Mode)
	}
	if e.UID != 0 || e.GID != 0 {
		s += fmt.Sprintf(" %d:%d", e.UID, e.GID)
	}
	if e.Link != "" {
		s += " -> " + e.Link
	}
	if e.HardLink != "" {
		s += " = " + e.HardLink
	}
	if e.TimeSet {
		s += fmt.Sprintf(" @%d", e.MTime/1e9)
	}
	for _, x := range e.Xattrs {
		s += fmt.Sprintf(" %s=%q", x.Name, x.Value)
	}
	return s + "\n"
}

// sameFiles checks that the files that a mount shows are those of the view.
func sameFiles(t *testing.T, s *snapshot.Store, n snapshot.Name) {
	t.Helper()
	dir, release, err := s.Mount(context.Background(), n)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := release(); err != nil {
			t.Error(err)
		}
	}()
	v, err := s.View(n)
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	var want []string
	err = v.Walk(".", func(e snapshot.Entry) error {
		want = append(want, e.Path)
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(dir, e.Path), &st); err != nil {
			t.Errorf("%q is in the view, not in the mount: %v", e.Path, err)
			return nil
		}
		if e.Type != snapshot.Symlink && st.Mode&0o7777 != e.Mode {
			t.Errorf("%q has mode %o, in the view %o", e.Path, st.Mode&0o7777, e.Mode)
		}
		if e.Path != "." && st.Mtim.Nano() != e.MTime && e.Type != snapshot.Dir {
			t.Errorf("%q has mtime %d, in the view %d", e.Path, st.Mtim.Nano(), e.MTime)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	filepath.WalkDir(dir, func(p string, _ os.DirEntry, err error) error {
		rel, _ := filepath.Rel(dir, p)
		got = append(got, rel)
		return err
	})
	slices.SortFunc(got, snapshot.Compare)
	if !slices.Equal(got, want) {
		t.Errorf("mount has %q\nview has %q", got, want)
	}
}

var cases = []stepCase{
	{
		name:  "files on scratch",
		steps: []string{"mkdir d; echo 1 >d/f; ln -s f d/l; mkfifo p"},
		tree:  "d d\n f d/f\n l d/l -> f\n p p",
	},
	{
		name:  "nothing changed",
		steps: []string{"mkdir d; echo 1 >d/f", "cat d/f >/dev/null"},
		tree:  "",
		view:  "d d\n f d/f",
	},
	{
		name:  "a removed file",
		steps: []string{"mkdir d; echo 1 >d/f; echo 2 >d/g", "rm d/f"},
		tree:  "x d/f",
		view:  "d d\n f d/g",
	},
	{
		name:  "a removed directory with content",
		steps: []string{"mkdir -p d/e/f; echo 1 >d/e/f/g; echo 1 >h", "rm -r d"},
		tree:  "x d",
		view:  "f h",
	},
	{
		name:  "made and removed again",
		steps: []string{"mkdir d; echo 1 >d/f", "echo 1 >d/g; rm d/g; mkdir e; rmdir e"},
		tree:  "",
	},
	{
		name:  "a directory removed and made anew says what is gone",
		steps: []string{"mkdir -p d/sub; echo 1 >d/a; echo 1 >d/c; echo 1 >d/sub/x", "rm -r d; mkdir d; echo 2 >d/b"},
		tree:  "x d/a\n f d/b\n x d/c\n x d/sub",
		view:  "d d\n f d/b",
	},
	{
		name:  "a directory made anew inside one made anew",
		steps: []string{"mkdir -p d/e; echo 1 >d/e/old; echo 1 >d/f", "rm -r d; mkdir -p d/e; echo 2 >d/e/new"},
		tree:  "f d/e/new\n x d/e/old\n x d/f",
		view:  "d d\n d d/e\n f d/e/new",
	},
	{
		name:  "removed, and made anew a step later",
		steps: []string{"mkdir d; echo 1 >d/f", "rm -r d", "mkdir d; echo 1 >d/g"},
		tree:  "d d\n f d/g",
		view:  "d d\n f d/g",
	},
	{
		name:  "a file becomes a directory",
		steps: []string{"echo 1 >a", "rm a; mkdir a; echo 2 >a/b"},
		tree:  "d a\n f a/b",
		view:  "d a\n f a/b",
	},
	{
		name:  "a directory becomes a file",
		steps: []string{"mkdir -p a/b; echo 1 >a/b/c; echo 1 >ab", "rm -r a; echo 2 >a"},
		tree:  "f a",
		view:  "f a\n f ab",
	},
	{
		name:  "a directory becomes a link, and a directory again",
		steps: []string{"mkdir a; echo 1 >a/x; mkdir b", "rm -r a; ln -s b a", "rm a; mkdir a; echo 3 >a/y"},
		tree:  "d a\n f a/y",
		view:  "d a\n f a/y\n d b",
	},
	{
		name:  "a file becomes a pipe, a link another",
		steps: []string{"echo 1 >a; ln -s a l", "rm a l; mkfifo a; ln -s b l"},
		tree:  "p a\n l l -> b",
	},
	{
		name:  "a renamed directory",
		steps: []string{"mkdir -p a/s; echo 1 >a/s/f; echo 1 >a/g; find a -exec touch -d @1000 {} +", "mv a b"},
		tree:  "x a\n d b @1000\n f b/g @1000\n d b/s @1000\n f b/s/f @1000",
		view:  "d b @1000\n f b/g @1000\n d b/s @1000\n f b/s/f @1000",
	},
	{
		name:  "two directories change places",
		steps: []string{"mkdir -p a/s b/s; echo 1 >a/s/f; echo 2 >b/s/g; touch -d @1000 ?/s/?", "mv a t; mv b a; mv t b"},
		tree:  "x a/s/f\n f a/s/g @1000\n f b/s/f @1000\n x b/s/g",
		view:  "d a\n d a/s\n f a/s/g @1000\n d b\n d b/s\n f b/s/f @1000",
	},
	{
		name:  "hard links",
		steps: []string{"mkdir d; echo 1 >b; ln b a; ln b d/c"},
		tree:  "f a\n f b = a\n d d\n f d/c = a",
	},
	{
		name:  "a new name for an old file brings the old one along",
		steps: []string{"echo 1 >b; echo 1 >c; touch -d @1000 b", "ln b a"},
		tree:  "f a @1000\n f b = a",
		view:  "f a @1000\n f b = a\n f c",
	},
	{
		name:  "one name of several removed",
		steps: []string{"echo 1 >a; ln a b; ln a c", "rm a"},
		tree:  "x a",
		view:  "f b\n f c = b",
	},
	{
		name:  "one name of several replaced, then others of the same file",
		steps: []string{"mkdir d; echo 1 >d/a; ln d/a d/b; ln d/a d/c", "rm d/a; echo 2 >d/a; ln d/a d/e"},
		tree:  "f d/a\n f d/e = d/a",
		view:  "d d\n f d/a\n f d/b\n f d/c = d/b\n f d/e = d/a",
	},
	{
		name:  "modes",
		steps: []string{"mkdir d s; echo 1 >f; echo 1 >g", "chmod 700 d; chmod 1777 s; chmod 4755 f; chmod 644 g; chmod 000 g"},
		tree:  "d d 700\n f f 4755\n f g 0\n d s 1777",
	},
	{
		name:  "the root directory's mode",
		steps: []string{"echo 1 >f", "chmod 700 .", "echo 2 >g"},
		tree:  "f g",
	},
	{
		name:  "the root directory's mode is an entry",
		steps: []string{"echo 1 >f", "chmod 2711 ."},
		tree:  "d . 2711",
	},
	{
		name:  "owners",
		ids:   1000,
		steps: []string{"mkdir d; echo 1 >f; ln -s f l", "chown 33:44 d f; chown -h 5:6 l"},
		tree:  "d d 33:44\n f f 33:44\n l l 5:6 -> f",
	},
	{
		name:  "a rewrite with the same content and time is no change",
		steps: []string{"echo 1 >f; touch -d @1000 f", "cp -p f g; cat g >f; touch -r g f; rm g"},
		tree:  "",
	},
	{
		name:  "set and set back is no change",
		steps: []string{"echo 1 >f; mkdir d; echo 1 >d/g", "chmod 600 f; chmod 644 f; chmod 700 d; chmod 755 d"},
		tree:  "",
	},
	{
		name:  "only what sets a time has it in the name",
		steps: []string{"echo 1 >f; echo 1 >g; ln -s f l; mkdir d; touch -d @1000 f d; touch -h -d @2000 l"},
		tree:  "d d @1000\n f f @1000\n f g\n l l -> f @2000",
	},
	{
		name:  "a directory's time from an earlier step is not set",
		steps: []string{"mkdir d", "touch d/f", "sleep 0.1; chmod 700 d ."},
		tree:  "d . 700\n d d 700",
	},
	{
		name:  "touch -d alone is a change",
		steps: []string{"echo 1 >f; touch -d @1000 f", "touch -d @2000 f"},
		tree:  "f f @2000",
	},
	{
		name:  "an old time that stays is not set",
		steps: []string{"echo 1 >f; touch -d @1000 f", "chmod 600 f"},
		tree:  "f f 600",
	},
	{
		name:  "times before 1970",
		steps: []string{"echo 1 >f; touch -d @-1000 f"},
		tree:  "f f @-1000",
	},
	{
		name:  "sockets are left out",
		steps: []string{"echo 1 >s", `rm s; python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind("s")'`},
		tree:  "x s",
	},
	{
		name:  "names with odd bytes",
		steps: []string{`mkdir 'a b' -p 'é\'; touch 'a b/c=d' "$(printf 'n\nm')" ./- "$(printf '\377')" '"' '*' 'a-b' 'a!'; mv a-b 'a b/'`},
		tree:  "f \"\n f *\n f -\n d a b\n f a b/a-b\n f a b/c=d\n f a!\n f n\\nm\n d é\\\n f \xff",
	},
	{
		name:  "order: a directory's content before its siblings",
		steps: []string{"mkdir a a.b; touch a/x a.b/y a-b"},
		tree:  "d a\n f a/x\n f a-b\n d a.b\n f a.b/y",
	},
	{
		name:  "empty and deep directories",
		steps: []string{"mkdir -p a/b/c/d/e/f/g/h", "rmdir a/b/c/d/e/f/g/h; mkdir a/b/z"},
		tree:  "x a/b/c/d/e/f/g/h\n d a/b/z",
	},
	{
		name:  "no permission on a directory",
		steps: []string{"mkdir d; echo 1 >d/f; chmod 0 d", "chmod 755 d; rm d/f; chmod 0 d"},
		tree:  "x d/f",
	},
}
