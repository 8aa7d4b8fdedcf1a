package layer

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"img/snapshot"
)

// An item is an entry of an archive under test.
type item struct {
	tar.Header
	content string
}

func file(name, content string) item {
	return item{tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(content))}, content}
}
func dir(name string) item {
	return item{Header: tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o750}}
}
func symlink(name, target string) item {
	return item{Header: tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target}}
}
func hard(name, target string) item {
	return item{Header: tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: target}}
}
func fifo(name string) item {
	return item{Header: tar.Header{Typeflag: tar.TypeFifo, Name: name, Mode: 0o600}}
}
func char(name string, major, minor int64) item {
	return item{Header: tar.Header{Typeflag: tar.TypeChar, Name: name, Mode: 0o600, Devmajor: major, Devminor: minor}}
}
func (i item) xattr(k, v string) item {
	i.PAXRecords = map[string]string{paxXattr + k: v}
	return i
}
func (i item) owner(uid, gid int) item { i.Uid, i.Gid = uid, gid; return i }
func (i item) mode(m int64) item       { i.Mode = m; return i }
func (i item) at(s, ns int64) item {
	i.ModTime, i.Format = time.Unix(s, ns), tar.FormatPAX
	return i
}

func archive(t testing.TB, items ...item) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, i := range items {
		if err := w.WriteHeader(&i.Header); err != nil {
			t.Fatalf("%s: %v", i.Name, err)
		}
		if _, err := w.Write([]byte(i.content)); err != nil {
			t.Fatalf("%s: %v", i.Name, err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// text shows a change set, a line an entry; columns that are what one expects are left out.
func text(entries []snapshot.Entry) string {
	var b strings.Builder
	for _, e := range entries {
		fmt.Fprintf(&b, "%c %s", e.Type, e.Path)
		if e.Type == snapshot.Removed {
			fmt.Fprintln(&b)
			continue
		}
		if e.Type != snapshot.Symlink {
			fmt.Fprintf(&b, " %o", e.Mode)
		}
		if e.UID != 0 || e.GID != 0 {
			fmt.Fprintf(&b, " %d:%d", e.UID, e.GID)
		}
		if e.Type == snapshot.File {
			fmt.Fprintf(&b, " size=%d", e.Size)
		}
		if e.Type == snapshot.Char || e.Type == snapshot.Block {
			fmt.Fprintf(&b, " %d,%d", e.Major, e.Minor)
		}
		if e.Link != "" {
			fmt.Fprintf(&b, " -> %s", e.Link)
		}
		if e.HardLink != "" {
			fmt.Fprintf(&b, " = %s", e.HardLink)
		}
		if e.MTime != 0 {
			fmt.Fprintf(&b, " @%d.%09d", e.MTime/1e9, e.MTime%1e9)
		}
		for _, x := range e.Xattrs {
			fmt.Fprintf(&b, " %s=%s", x.Name, quote(string(x.Value)))
		}
		fmt.Fprintln(&b)
	}
	return b.String()
}

// A host is a directory with something to lose, and an empty directory in it to unpack into.
type host struct {
	dir, root string
	before    string
}

func newHost(t testing.TB) *host {
	d := t.TempDir()
	h := &host{dir: d, root: filepath.Join(d, "store", "root")}
	must(t, os.MkdirAll(h.root, 0o755))
	must(t, os.MkdirAll(filepath.Join(d, "etc"), 0o755))
	must(t, os.WriteFile(filepath.Join(d, "etc", "passwd"), []byte("root"), 0o644))
	must(t, os.WriteFile(filepath.Join(d, "store", "passwd"), []byte("root"), 0o644))
	h.before = h.state(t)
	return h
}

// state is everything outside the root: names, modes, owners, times, link counts, contents.
func (h *host) state(t testing.TB) string {
	var b strings.Builder
	must(t, filepath.WalkDir(h.dir, func(p string, d fs.DirEntry, err error) error {
		if p == h.root {
			return fs.SkipDir
		}
		var st unix.Stat_t
		must(t, unix.Lstat(p, &st))
		data, _ := os.ReadFile(p)
		fmt.Fprintln(&b, p, st.Mode, st.Uid, st.Gid, st.Mtim, st.Nlink, string(data))
		return err
	}))
	return b.String()
}

func (h *host) check(t testing.TB) {
	t.Helper()
	if now := h.state(t); now != h.before {
		t.Errorf("HOST PATH WAS CHANGED! before:\n%s\nafter:\n%s", h.before, now)
	}
}

func (h *host) open(t testing.TB) *os.File {
	f, err := os.Open(h.root)
	must(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func sum(content string) string {
	s := sha256.Sum256([]byte(content))
	return hex.EncodeToString(s[:])
}

// lower is a file system below a layer.
type lower []snapshot.Entry

func (l lower) Lookup(p string) (snapshot.Entry, bool, error) {
	for _, e := range l {
		if e.Path == p {
			return e, true, nil
		}
	}
	return snapshot.Entry{}, false, nil
}

func (l lower) ReadDir(p string) (out []snapshot.Entry, err error) {
	for _, e := range l {
		if d, _ := split(e.Path); d == p && e.Path != "." {
			out = append(out, e)
		}
	}
	return out, nil
}

// open: every lower file contains its path.
func (l lower) open(t testing.TB) func(string) (*os.File, error) {
	d := t.TempDir()
	return func(p string) (*os.File, error) {
		name := filepath.Join(d, "f")
		if err := os.WriteFile(name, []byte(p), 0o600); err != nil {
			return nil, err
		}
		return os.Open(name)
	}
}

func ldir(p string) snapshot.Entry {
	return snapshot.Entry{Path: p, Type: snapshot.Dir, Mode: 0o711, UID: 7}
}
func lfile(p string) snapshot.Entry {
	return snapshot.Entry{Path: p, Type: snapshot.File, Mode: 0o4755, GID: 8, Size: int64(len(p)), Digest: sum(p)}
}
func llink(p, target string) snapshot.Entry {
	return snapshot.Entry{Path: p, Type: snapshot.Symlink, Mode: 0o777, Link: target}
}

// apply applies and settles.
func apply(t testing.TB, h *host, data []byte, low lower, o ApplyOptions) (*Applied, error) {
	d := h.open(t)
	a, err := Apply(context.Background(), bytes.NewReader(data), d, o)
	if err != nil {
		return nil, err
	}
	return a, a.Settle(context.Background(), d, low, low.open(t), o)
}

// checkDisk compares what is in the root with the change set, in overlay form.
func checkDisk(t testing.TB, h *host, a *Applied) {
	t.Helper()
	seen := map[string]bool{}
	for _, e := range a.Entries {
		p := filepath.Join(h.root, e.Path)
		var st unix.Stat_t
		err := unix.Lstat(p, &st)
		if e.Type == snapshot.Removed {
			if err == nil && !isWhiteout(&st) || err == nil && hidden(a, e.Path) {
				t.Errorf("%s: removed, but there", e.Path)
			}
			if err != nil && !hidden(a, e.Path) {
				t.Errorf("%s: removed, but no whiteout: %v", e.Path, err)
			}
			seen[e.Path] = true
			continue
		}
		must(t, err)
		seen[e.Path] = true
		want := map[snapshot.Type]uint32{snapshot.Dir: unix.S_IFDIR, snapshot.Symlink: unix.S_IFLNK, snapshot.Fifo: unix.S_IFIFO}[e.Type]
		if want == 0 {
			want = unix.S_IFREG
		}
		if st.Mode != want|e.Mode {
			t.Errorf("%s: mode on disk %o, want %o", e.Path, st.Mode, want|e.Mode)
		}
		if st.Uid != e.UID || st.Gid != e.GID {
			t.Errorf("%s: owner on disk %d:%d, want %d:%d", e.Path, st.Uid, st.Gid, e.UID, e.GID)
		}
		if st.Mtim.Nano() != e.MTime {
			t.Errorf("%s: time on disk %d, want %d", e.Path, st.Mtim.Nano(), e.MTime)
		}
		for _, x := range e.Xattrs {
			if got := attribute(p, x.Name); got != string(x.Value) && len(x.Value) < maxXattr {
				t.Errorf("%s: attribute %s on disk is %q, want %q", e.Path, x.Name, got, x.Value)
			}
		}
		if e.HardLink != "" {
			var first unix.Stat_t
			must(t, unix.Lstat(filepath.Join(h.root, e.HardLink), &first))
			if first.Ino != st.Ino {
				t.Errorf("%s and %s are two files", e.Path, e.HardLink)
			}
		}
		if e.Type == snapshot.File {
			data, err := os.ReadFile(p)
			must(t, err)
			if sum(string(data)) != e.Digest || int64(len(data)) != e.Size {
				t.Errorf("%s: content on disk %q has another digest", e.Path, data)
			}
		}
		if e.Type == snapshot.Dir && e.Path != "." {
			buf := make([]byte, 8)
			n, _ := unix.Lgetxattr(p, xattrOpaque, buf)
			if is := n > 0; is != slices.Contains(a.Opaque, e.Path) {
				t.Errorf("%s: opaque on disk is %v", e.Path, is)
			}
		}
	}
	must(t, filepath.WalkDir(h.root, func(p string, d fs.DirEntry, err error) error {
		if rel, _ := filepath.Rel(h.root, p); rel != "." && !seen[rel] {
			t.Errorf("%s is on disk, but not in the change set", rel)
		}
		return err
	}))
}

func hidden(a *Applied, p string) bool {
	for _, o := range a.Opaque {
		if o != "." && below(p, o) {
			return true
		}
	}
	return false
}
