package snapshottest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"img/snapshot"
)

var never = snapshot.CommitOptions{}
var set = snapshot.CommitOptions{Times: snapshot.TimesSet}

// behaviours are what a chain of scripts cannot say.
var behaviours = []struct {
	name string
	run  func(t *testing.T, open Opener)
}{
	{"the same change has the same name", sameName},
	{"a time that the step did not set is not in the name", timesNotSet},
	{"an existing snapshot is kept", existingKept},
	{"discard leaves nothing", discard},
	{"discard after commit does nothing", discardAfterCommit},
	{"extended attributes", extendedAttributes},
	{"owners and devices that the disk cannot have", intended},
	{"a mount is read-only", readOnlyMount},
	{"the empty file system", emptyName},
	{"leftovers of dead processes are removed", leftovers},
	{"130 layers", func(t *testing.T, open Opener) { deep(t, open, 130) }},
	{"a base of 500 layers and 100 steps", baseAndSteps},
	{"side by side on one parent", sideBySide},
	{"alias", alias},
	{"remove", remove},
	{"a cut tree counts as absent", cutTree},
	{"trees are read from any mapping", otherMap},
	{"setgid and umask do not leak in", setgid},
	{"staging keeps the root's attributes", stagedRoot},
	{"a change set is laid over another parent", laid},
	{"a big tree", bigTree},
	{"long names and deep paths", deepPaths},
	{"forged overlay attributes are not believed", forged},
	{"a cancelled commit leaves nothing", cancelled},
	{"list and usage", listAndUsage},
	{"squash", squash},
}

func write(name, content string) func(t *testing.T, root string) {
	return func(t *testing.T, root string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(root, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func sameName(t *testing.T, open Opener) {
	script := Script("mkdir d; echo 1 >d/f; ln d/f d/g; ln -s f d/l; touch -d @1000 d/f")
	s, u := open(t, t.TempDir()), open(t, t.TempDir())
	a := Step(t, s, "", set, script)
	time.Sleep(20 * time.Millisecond)
	if b := Step(t, u, "", set, script); a != b {
		t.Errorf("%s and %s", a, b)
	}
	if c := Step(t, s, "", never, script); c == a {
		t.Error("a time that was set is not in the name")
	}
	if d := Step(t, s, a, set, Script("true")); d == a {
		t.Error("the parent is not in the name")
	}
}

func timesNotSet(t *testing.T, open Opener) {
	s := open(t, t.TempDir())
	old, now := Script("echo 1 >f; touch -d @1000 f"), Script("echo 1 >f")
	if a, b := Step(t, s, "", never, old), Step(t, s, "", never, now); a != b {
		t.Error("with TimesNever a time is in the name")
	}
	if a, b := Step(t, s, "", set, now), Step(t, s, "", never, now); a != b {
		t.Error("the time of writing is in the name")
	}
	a := Step(t, s, "", set, Script("echo 1 >f; touch -d @1000.3 f"))
	if b := Step(t, s, "", set, Script("echo 1 >f; touch -d @1000.7 f")); a != b {
		t.Error("parts of a second are in the name")
	}
}

func existingKept(t *testing.T, open Opener) {
	dir := t.TempDir()
	s := open(t, dir)
	a := Step(t, s, "", never, write("f", "1"))
	before := Tree(t, s, a)
	ino := inode(t, treeFile(t, dir, a))
	time.Sleep(20 * time.Millisecond)
	if b := Step(t, s, "", never, write("f", "1")); a != b || Tree(t, s, b) != before {
		t.Errorf("%s became %s", a, b)
	}
	if inode(t, treeFile(t, dir, a)) != ino {
		t.Error("the snapshot was replaced")
	}
	left(t, s, dir)
}

func inode(t *testing.T, path string) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		t.Fatal(path, err)
	}
	return st.Ino
}

func treeFile(t *testing.T, dir string, n snapshot.Name) string {
	t.Helper()
	m, err := filepath.Glob(filepath.Join(dir, "*", strings.TrimPrefix(string(n), "sha256:"), "tree"))
	if err != nil || len(m) != 1 {
		t.Fatalf("tree of %s: %v %v", n, m, err)
	}
	return m[0]
}

// left fails if a stage or trash is left once the store is closed.
func left(t *testing.T, s *snapshot.Store, dir string) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	for _, p := range []string{"*/stage-*", "*/trash-*"} {
		if m, _ := filepath.Glob(filepath.Join(dir, p)); len(m) > 0 {
			t.Errorf("left behind: %v", m)
		}
	}
}

func discard(t *testing.T, open Opener) {
	dir := t.TempDir()
	s := open(t, dir)
	n := Step(t, s, "", never, write("f", "1"))
	a, err := s.Prepare(context.Background(), n)
	if err != nil {
		t.Fatal(err)
	}
	write("f", "2")(t, a.Root())
	if err := a.Discard(); err != nil {
		t.Fatal(err)
	}
	Step(t, s, n, never, func(t *testing.T, root string) {
		if b, _ := os.ReadFile(filepath.Join(root, "f")); string(b) != "1" {
			t.Errorf("f is %q after a discarded step", b)
		}
	})
	left(t, s, dir)
}

func discardAfterCommit(t *testing.T, open Opener) {
	s := open(t, t.TempDir())
	a, err := s.Prepare(context.Background(), "")
	if err != nil {
		t.Fatal(err)
	}
	n, err := a.Commit(context.Background(), never)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Discard(); err != nil || !s.Has(n) {
		t.Error(err, s.Has(n))
	}
	if _, err := a.Commit(context.Background(), never); err == nil {
		t.Error("committed twice")
	}
}

func extendedAttributes(t *testing.T, open Opener) {
	s := open(t, t.TempDir())
	capability := []byte("\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00")
	attr := func(t *testing.T, path, name, value string) {
		t.Helper()
		if err := unix.Lsetxattr(path, name, []byte(value), 0); err != nil {
			t.Fatal(name, err)
		}
	}
	n := Step(t, s, "", never, func(t *testing.T, root string) {
		Script("echo 1 >f; echo 1 >g; mkdir d; ln -s f l")(t, root)
		attr(t, root+"/f", "user.b", "2 \n=\x00")
		attr(t, root+"/f", "user.a", "")
		attr(t, root+"/g", "security.capability", string(capability))
		attr(t, root+"/d", "user.x", "y")
	})
	want := lines(fmt.Sprintf("d d user.x=\"y\"\n f f user.a=\"\" user.b=%q\n f g security.capability=%q\n l l -> f", "2 \n=\x00", capability))
	if got := Tree(t, s, n); got != want {
		t.Errorf("tree is\n%swant\n%s", got, want)
	}
	n = Step(t, s, n, never, func(t *testing.T, root string) {
		if err := unix.Lremovexattr(root+"/d", "user.x"); err != nil {
			t.Fatal(err)
		}
		attr(t, root+"/f", "user.a", "")
	})
	if got := Tree(t, s, n); got != "d d\n" {
		t.Errorf("tree after a removal is\n%s", got)
	}
}

func intended(t *testing.T, open Opener) {
	s := open(t, t.TempDir())
	o := snapshot.CommitOptions{
		Owner: func(path string, _ uint64) (uint32, uint32, bool) {
			return 700000, 700001, path == "by-call" || path == "link"
		},
		Device: func(path string, _ uint64) (snapshot.Type, uint32, uint32, bool) {
			return snapshot.Block, 8, 1, path == "sda1"
		},
	}
	n := Step(t, s, "", o, func(t *testing.T, root string) {
		Script("touch by-call by-attribute sda1 null; ln -s x link")(t, root)
		for _, x := range [][3]string{{"by-attribute", "user.img.owner", "800000:5"}, {"null", "user.img.device", "c:1:3"}} {
			if err := unix.Lsetxattr(filepath.Join(root, x[0]), x[1], []byte(x[2]), 0); err != nil {
				t.Fatal(err)
			}
		}
	})
	want := lines("f by-attribute 800000:5\n f by-call 700000:700001\n l link 700000:700001 -> x\n c null\n b sda1")
	if got := Tree(t, s, n); got != want {
		t.Errorf("tree is\n%swant\n%s", got, want)
	}
	tr, err := s.Tree(n)
	if err != nil {
		t.Fatal(err)
	}
	defer tr.Close()
	if e, ok, err := tr.Lookup("null"); !ok || e.Major != 1 || e.Minor != 3 {
		t.Errorf("null is %+v %v", e, err)
	}
	keepOwners(t, s, n)
}

// keepOwners: what a later step leaves alone, or touches only otherwise, keeps the owner that the disk cannot have.
func keepOwners(t *testing.T, s *snapshot.Store, n snapshot.Name) {
	n = Step(t, s, n, never, Script("chmod 600 by-attribute; echo 1 >new"))
	if got, want := Tree(t, s, n), lines("f by-attribute 600 800000:5\n f new"); got != want {
		t.Errorf("tree is\n%swant\n%s", got, want)
	}
}

func readOnlyMount(t *testing.T, open Opener) {
	s := open(t, t.TempDir())
	n := Step(t, s, "", never, write("f", "1"))
	n = Step(t, s, n, never, Script("echo 2 >g; rm f"))
	dir, release, err := s.Mount(context.Background(), n)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "g"), []byte("3"), 0o644); !errors.Is(err, unix.EROFS) {
		t.Errorf("writing: %v", err)
	}
	if _, err := os.Lstat(filepath.Join(dir, "f")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a removed file: %v", err)
	}
	// Another mount and a step on the same snapshot at the same time.
	again, release2, err := s.Mount(context.Background(), n)
	if err != nil {
		t.Fatal(err)
	}
	Step(t, s, n, never, write("h", "1"))
	for _, d := range []string{dir, again} {
		if _, err := os.Lstat(filepath.Join(d, "h")); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("a later step shows in the mount: %v", err)
		}
	}
	if err := errors.Join(release(), release2()); err != nil {
		t.Error(err)
	}
}

func emptyName(t *testing.T, open Opener) {
	s := open(t, t.TempDir())
	if !s.Has("") {
		t.Error("the empty file system is not there")
	}
	sameFiles(t, s, "")
	v, err := s.View("")
	if err != nil {
		t.Fatal(err)
	}
	if e, ok, err := v.Lookup("."); !ok || err != nil || e.Mode != 0o755 {
		t.Error("root:", e, ok, err)
	}
	if _, err := s.Prepare(context.Background(), "sha256:"+snapshot.Name(strings.Repeat("0", 64))); !errors.Is(err, snapshot.ErrNotExist) {
		t.Errorf("prepare on a missing parent: %v", err)
	}
	if _, err := s.Prepare(context.Background(), "../../etc"); err == nil {
		t.Error("prepared on a bad name")
	}
}

func leftovers(t *testing.T, open Opener) {
	dir := t.TempDir()
	s := open(t, dir)
	n := Step(t, s, "", never, write("f", "1"))
	a, err := s.Prepare(context.Background(), n)
	if err != nil {
		t.Fatal(err)
	}
	m, _ := filepath.Glob(filepath.Join(dir, "*", "alias"))
	own := filepath.Dir(m[0])
	for _, d := range []string{"stage-dead/fs/a/b", "stage-dead/work/work", "trash-x/fs"} {
		if err := os.MkdirAll(filepath.Join(own, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	os.Chmod(filepath.Join(own, "stage-dead/work/work"), 0)
	u := open(t, dir)
	for _, d := range []string{"stage-dead", "trash-x"} {
		// Opening a store takes no longer for what there is to remove: on a busy machine some is left for the next time.
		for again := 0; again < 100; again++ {
			if _, err := os.Lstat(filepath.Join(own, d)); err != nil {
				break
			}
			u = open(t, dir)
		}
		if _, err := os.Lstat(filepath.Join(own, d)); err == nil {
			t.Errorf("%s is left", d)
		}
	}
	write("g", "1")(t, a.Root())
	if n, err = a.Commit(context.Background(), never); err != nil {
		t.Fatalf("a stage that lives was taken: %v", err)
	}
	if !u.Has(n) {
		t.Error("the other store does not see the snapshot")
	}
	left(t, s, dir)
}

// deep makes a chain of steps of which each changes, adds and removes something.
func deep(t *testing.T, open Opener, steps int) {
	s := open(t, t.TempDir())
	var n snapshot.Name
	for i := range steps {
		n = Step(t, s, n, never, func(t *testing.T, root string) {
			write(fmt.Sprintf("f%d", i), fmt.Sprint(i))(t, root)
			write("all", fmt.Sprint(i))(t, root)
			if err := os.MkdirAll(filepath.Join(root, "d"), 0o755); err != nil {
				t.Fatal(err)
			}
			write(fmt.Sprintf("d/%d", i), "")(t, root)
			if i%10 == 9 {
				os.RemoveAll(filepath.Join(root, "d"))
				os.Remove(filepath.Join(root, fmt.Sprintf("f%d", i-1)))
			}
		})
	}
	sameFiles(t, s, n)
}

func baseAndSteps(t *testing.T, open Opener) {
	s := open(t, t.TempDir())
	var n snapshot.Name
	for i := range 500 {
		st, err := s.Stage()
		if err != nil {
			t.Fatal(err)
		}
		entries := stageFiles(t, st.Dir(), i)
		next := snapshot.Name(fmt.Sprintf("sha256:%064x", i+1))
		if err := st.Publish(context.Background(), next, n, entries); err != nil {
			t.Fatal(err)
		}
		n = next
	}
	for i := range 100 {
		n = Step(t, s, n, never, write(fmt.Sprintf("step%d", i), fmt.Sprint(i)))
	}
	dir, release, err := s.Mount(context.Background(), n)
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	for name, want := range map[string]string{"last": "499", "base0": "0", "base499": "499", "step0": "0", "step99": "99"} {
		if b, err := os.ReadFile(filepath.Join(dir, name)); string(b) != want {
			t.Errorf("%s is %q, want %q (%v)", name, b, want, err)
		}
	}
	v, err := s.View(n)
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	if list, err := v.ReadDir("."); len(list) != 601 {
		t.Errorf("%d entries in the root, want 601 (%v)", len(list), err)
	}
}

// stageFiles writes the files of layer i and returns its entries.
func stageFiles(t *testing.T, dir string, i int) []snapshot.Entry {
	t.Helper()
	var out []snapshot.Entry
	for _, name := range []string{fmt.Sprintf("base%d", i), "last"} {
		write(name, fmt.Sprint(i))(t, dir)
		out = append(out, snapshot.Entry{Path: name, Type: snapshot.File, Mode: 0o644, Size: int64(len(fmt.Sprint(i)))})
	}
	return out
}

func sideBySide(t *testing.T, open Opener) {
	dir := t.TempDir()
	s := open(t, dir)
	parent := Step(t, s, "", never, write("f", "1"))
	names := make([]snapshot.Name, 8)
	var wg sync.WaitGroup
	for i := range names {
		wg.Go(func() {
			// Every change twice, so that equal snapshots are published at the same moment.
			names[i] = Step(t, s, parent, never, write("g", fmt.Sprint(i/2)))
		})
	}
	wg.Wait()
	for i := range names {
		if names[i] != names[i/2*2] || i > 1 && names[i] == names[i-2] {
			t.Errorf("names are %v", names)
		}
	}
	left(t, s, dir)
}

func alias(t *testing.T, open Opener) {
	s := open(t, t.TempDir())
	a := Step(t, s, "", never, write("f", "1"))
	chain := snapshot.Name("sha256:" + strings.Repeat("ab", 32))
	if s.Has(chain) {
		t.Error("there before it was made")
	}
	if err := s.Alias(chain, a); err != nil {
		t.Fatal(err)
	}
	if !s.Has(chain) || s.Resolve(chain) != a || View(t, s, chain) != "f f\n" {
		t.Error("the alias does not lead to the snapshot")
	}
	b, c := Step(t, s, a, never, write("g", "1")), Step(t, s, chain, never, write("g", "1"))
	if b != c {
		t.Error("a step on the alias has another name")
	}
	sameFiles(t, s, chain)
	if err := errors.Join(s.Remove(b), s.Remove(a)); err != nil {
		t.Fatal(err)
	}
	if s.Has(chain) || s.Resolve(chain) != chain {
		t.Error("the alias outlives the snapshot")
	}
}

func remove(t *testing.T, open Opener) {
	dir := t.TempDir()
	s := open(t, dir)
	a := Step(t, s, "", never, Script("mkdir d; echo 1 >d/f; chmod 0 d"))
	b := Step(t, s, a, never, write("g", "1"))
	if err := s.Remove(a); err != nil {
		t.Fatal(err)
	}
	if s.Has(a) || s.Has(b) {
		t.Error("has", s.Has(a), s.Has(b))
	}
	if err := s.Remove(a); err != nil {
		t.Error("again:", err)
	}
	if n := Step(t, s, "", never, Script("mkdir d; echo 1 >d/f; chmod 0 d")); n != a || !s.Has(b) {
		t.Error("made again, it is not what its child was made on")
	}
	left(t, s, dir)
}

func cutTree(t *testing.T, open Opener) {
	for _, damage := range []func(b []byte) []byte{
		func(b []byte) []byte { return b[:len(b)-5] },
		func(b []byte) []byte { return b[:len(b)/2] },
		func([]byte) []byte { return nil },
		func(b []byte) []byte { b[len(b)/2] ^= 1; return b },
		func(b []byte) []byte { return append([]byte("img tree 2\n"), b[11:]...) },
	} {
		dir := t.TempDir()
		s := open(t, dir)
		n := Step(t, s, "", never, Script("for i in 1 2 3 4 5 6; do echo $i >f$i; done"))
		p := treeFile(t, dir, n)
		b, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, damage(b), 0o644); err != nil {
			t.Fatal(err)
		}
		u := open(t, dir)
		if u.Has(n) {
			t.Error("a damaged tree is used")
		}
		if _, err := u.View(n); !errors.Is(err, snapshot.ErrNotExist) {
			t.Errorf("view: %v", err)
		}
		if m := Step(t, u, "", never, Script("for i in 1 2 3 4 5 6; do echo $i >f$i; done")); m != n || !u.Has(n) {
			t.Error("the snapshot is not replaced")
		}
	}
}

func otherMap(t *testing.T, open Opener) {
	dir := t.TempDir()
	s := open(t, dir)
	n := Step(t, s, "", never, write("f", "1"))
	u, err := snapshot.Open(dir, snapshot.Options{Map: "other"})
	if err != nil {
		t.Fatal(err)
	}
	if u.Has(n) {
		t.Error("files of another mapping count as there")
	}
	if got := View(t, u, n); got != "f f\n" {
		t.Errorf("view is %q", got)
	}
	if p, err := u.Parent(n); p != "" || err != nil {
		t.Error(p, err)
	}
	if list, err := u.List(); len(list) != 1 || list[0].Name != n || list[0].Map == "other" {
		t.Error(list, err)
	}
}

func setgid(t *testing.T, open Opener) {
	dir := t.TempDir()
	if err := unix.Chmod(dir, 0o2777); err != nil {
		t.Fatal(err)
	}
	// user::rwx, user:0:rwx, group::rwx, mask::rwx, other::rwx as a default ACL (acl_permissions: version 2, then tag, perm, id).
	acl := "\x02\x00\x00\x00" + "\x01\x00\x07\x00\xff\xff\xff\xff" + "\x02\x00\x07\x00\x00\x00\x00\x00" +
		"\x04\x00\x07\x00\xff\xff\xff\xff" + "\x10\x00\x07\x00\xff\xff\xff\xff" + "\x20\x00\x07\x00\xff\xff\xff\xff"
	if err := unix.Setxattr(dir, "system.posix_acl_default", []byte(acl), 0); err != nil && err != unix.EOPNOTSUPP {
		t.Fatal(err)
	}
	old := unix.Umask(0o077)
	defer unix.Umask(old)
	s := open(t, dir)
	script := Script("mkdir d; echo 1 >d/f")
	n := Step(t, s, "", never, script)
	if got, want := Tree(t, s, n), lines("d d\n f d/f"); got != want {
		t.Errorf("tree is\n%swant\n%s", got, want)
	}
	sameFiles(t, s, n)
	fi, err := os.Stat(treeFile(t, dir, n))
	if err != nil || fi.Mode().Perm() != 0o644 {
		t.Error("mode of the tree file:", fi.Mode(), err)
	}
}

func stagedRoot(t *testing.T, open Opener) {
	s := open(t, t.TempDir())
	a := Step(t, s, "", never, Script("chmod 1777 .; echo 1 >f"))
	st, err := s.Stage()
	if err != nil {
		t.Fatal(err)
	}
	write("g", "1")(t, st.Dir())
	b := snapshot.Name("sha256:" + strings.Repeat("cd", 32))
	e := snapshot.Entry{Path: "g", Type: snapshot.File, Mode: 0o644, Size: 1}
	if err := st.Publish(context.Background(), b, a, []snapshot.Entry{e}); err != nil {
		t.Fatal(err)
	}
	if err := st.Discard(); err != nil || !s.Has(b) {
		t.Error(err)
	}
	dir, release, err := s.Mount(context.Background(), b)
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	if fi, err := os.Stat(dir); err != nil || fi.Mode() != fs.ModeDir|fs.ModeSticky|0o777 {
		t.Error(fi.Mode(), err)
	}
	n := Step(t, s, b, never, Script("rm f"))
	if got := Tree(t, s, n); got != "x f\n" {
		t.Errorf("tree is %q", got)
	}
}

// bigTree is more than what a reader keeps in memory, so that searches go over the file.
func laid(t *testing.T, open Opener) {
	dir := t.TempDir()
	s := open(t, dir)
	defer left(t, s, dir)
	base := Step(t, s, "", never, Script(`chmod 711 .; mkdir -p etc usr/lib full/of; echo old >etc/file; echo k >etc/kept; ln -s usr/lib lib
		echo x >full/of/x; echo l >usr/lib/l; echo was >dir`))
	changes := Step(t, s, "", never, Script(`mkdir -m 700 etc; echo new >etc/file; mkdir lib; echo n >lib/n; ln lib/n lib/m; echo f >full
		mkdir dir; ln -s nowhere dir/l`))
	n, err := s.Lay(context.Background(), changes, base)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := s.Lay(context.Background(), changes, base); err != nil || again != n {
		t.Errorf("laid again: %s, %v, want %s", again, err, n)
	}
	// The name is what a step would get that does the same.
	same := Step(t, s, base, never, Script(`chmod 700 etc; echo new >etc/file; rm lib; mkdir lib; echo n >lib/n; ln lib/n lib/m; rm -r full; echo f >full
		rm dir; mkdir dir; ln -s nowhere dir/l`))
	if same != n {
		t.Errorf("name %s, a step that does the same: %s\n%s\n%s", n, same, Tree(t, s, n), Tree(t, s, same))
	}
	if a, b := Tree(t, s, n), Tree(t, s, changes); a != b {
		t.Errorf("tree\n%s, want\n%s", a, b)
	}
	sameFiles(t, s, n)
	if p, err := s.Parent(n); err != nil || p != base {
		t.Errorf("parent %s, %v, want %s", p, err, base)
	}
	// A step upon it changes nothing of where the files came from.
	top := Step(t, s, n, never, Script(`test "$(stat -c %a .)" = 711; test "$(cat etc/kept lib/n usr/lib/l)" = "k
n
l"; echo more >>lib/n; rm -r etc`))
	sameFiles(t, s, top)
	sameFiles(t, s, changes)
	sameFiles(t, s, n)

	// The source may go.
	if err := s.Remove(changes); err != nil {
		t.Fatal(err)
	}
	sameFiles(t, s, n)
	if _, err := s.Lay(context.Background(), changes, base); !errors.Is(err, snapshot.ErrNotExist) {
		t.Errorf("laying what is gone: %v", err)
	}
	if _, err := s.Lay(context.Background(), top, base); err == nil {
		t.Error("a change set upon another parent was laid over this one")
	}
}

func bigTree(t *testing.T, open Opener) {
	s := open(t, t.TempDir())
	n := Step(t, s, "", never, Script("for d in a b c d e; do mkdir $d; for i in $(seq 400); do : >$d/f$i; done; done"))
	n = Step(t, s, n, never, Script("rm -r b; rm c/f7; echo 1 >d/f7; mkdir c2; : >c2/x"))
	if got, want := Tree(t, s, n), lines("x b\n x c/f7\n d c2\n f c2/x\n f d/f7"); got != want {
		t.Errorf("tree is\n%swant\n%s", got, want)
	}
	v, err := s.View(n)
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	for path, want := range map[string]bool{
		"a/f1": true, "a/f400": true, "a/f401": false, "b": false, "b/f1": false, "c/f7": false, "c/f8": true, "c2/x": true,
		"e/f400": true, "zzz": false, "a/f1/x": false, ".": true, "d": true,
	} {
		if _, ok, err := v.Lookup(path); ok != want || err != nil {
			t.Errorf("%s: %v %v", path, ok, err)
		}
	}
	sameFiles(t, s, n)
}

func deepPaths(t *testing.T, open Opener) {
	s := open(t, t.TempDir())
	long := strings.Repeat("n", 255)
	n := Step(t, s, "", never, func(t *testing.T, root string) {
		at, err := unix.Open(root, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		for range 20 {
			if err == nil {
				err = unix.Mkdirat(at, long, 0o755)
			}
			next := -1
			if err == nil {
				next, err = unix.Openat(at, long, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
			}
			if err != nil {
				t.Fatal(err)
			}
			unix.Close(at)
			at = next
		}
		unix.Close(at)
	})
	v, err := s.View(n)
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	deepest := strings.TrimSuffix(strings.Repeat(long+"/", 20), "/")
	if e, ok, err := v.Lookup(deepest); !ok || e.Type != snapshot.Dir {
		t.Error(ok, err)
	}
	n = Step(t, s, n, never, Script("rm -r *; touch x"))
	if got := View(t, s, n); got != "f x\n" {
		t.Errorf("view is %q", got)
	}
}

func forged(t *testing.T, open Opener) {
	s := open(t, t.TempDir())
	a := Step(t, s, "", never, Script("mkdir d; echo 1 >d/f"))
	n := Step(t, s, a, never, func(t *testing.T, root string) {
		// Overlay itself refuses or escapes this; plain files take it.
		unix.Setxattr(filepath.Join(root, "d"), "user.overlay.opaque", []byte("y"), 0)
		Script("echo 2 >d/g")(t, root)
	})
	if got := View(t, s, n); got != "d d\nf d/f\nf d/g\n" {
		t.Errorf("view is\n%s", got)
	}
	sameFiles(t, s, n)
}

func cancelled(t *testing.T, open Opener) {
	dir := t.TempDir()
	s := open(t, dir)
	a, err := s.Prepare(context.Background(), "")
	if err != nil {
		t.Fatal(err)
	}
	Script("mkdir d; echo 1 >d/f")(t, a.Root())
	ctx, cancel := context.WithCancelCause(context.Background())
	why := errors.New("why")
	cancel(why)
	if _, err := a.Commit(ctx, never); !errors.Is(err, why) {
		t.Errorf("commit: %v", err)
	}
	if err := a.Discard(); err != nil {
		t.Error(err)
	}
	left(t, s, dir)
}

func listAndUsage(t *testing.T, open Opener) {
	s := open(t, t.TempDir())
	a := Step(t, s, "", never, Script("head -c 1000000 /dev/urandom >f; ln f g"))
	b := Step(t, s, a, never, Script("rm g"))
	n, err := s.Usage(a)
	if err != nil || n < 1_000_000 || n > 1_100_000 {
		t.Errorf("usage is %d, %v", n, err)
	}
	s.Touch(b)
	list, err := s.List()
	if err != nil || len(list) != 2 {
		t.Fatal(list, err)
	}
	for _, i := range list {
		if i.Name == b && i.Parent != a || i.Name == a && i.Bytes != n || i.Used < time.Now().Unix()-100 {
			t.Errorf("%+v", i)
		}
	}
}

// squash: the change set from a base to a later snapshot has what is there now and what of the base is gone, and nothing of what came and went.
func squash(t *testing.T, open Opener) {
	s := open(t, t.TempDir())
	base := Step(t, s, "", never, Script("mkdir -p d/sub e; echo 1 >d/sub/a; echo 2 >d/b; echo 3 >e/c; ln e/c l"))
	n := Step(t, s, base, never, Script("rm -r d; echo >came; ln came went"))
	n = Step(t, s, n, never, Script("mkdir -p d/sub; echo 4 >d/n; rm came"))
	top := Step(t, s, n, never, Script("echo 5 >e/x; ln e/x e/again; ln -s n d/soft"))
	for _, c := range []struct {
		base snapshot.Name
		want string
	}{
		{base, "d d|x d/b|f d/n|l d/soft|d d/sub|x d/sub/a|f e/again|f e/x=e/again|f went|"},
		{n, "l d/soft|f e/again|f e/x=e/again|"},
		{top, ""},
		{"", "d d|f d/n|l d/soft|d d/sub|d e|f e/again|f e/c|f e/x=e/again|f l=e/c|f went|"},
	} {
		if got := squashed(t, s, c.base, top); got != c.want {
			t.Errorf("over %q: %s, want %s", c.base, got, c.want)
		}
	}
	if _, err := s.Squash(top, base); err == nil {
		t.Error("a base was squashed over what was made of it")
	}
}

func squashed(t *testing.T, s *snapshot.Store, base, top snapshot.Name) string {
	t.Helper()
	q, err := s.Squash(base, top)
	if err != nil {
		t.Fatal(err)
	}
	defer q.Close()
	var out strings.Builder
	err = q.Each(func(e snapshot.Entry, _ snapshot.Name) error {
		if e.Path == "." {
			return nil
		}
		fmt.Fprintf(&out, "%c %s", e.Type, e.Path)
		if e.HardLink != "" {
			out.WriteString("=" + e.HardLink)
		}
		out.WriteString("|")
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out.String()
}
