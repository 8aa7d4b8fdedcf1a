package layer

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"img/snapshot"
)

// each is the form in which Write takes entries.
func each(entries []snapshot.Entry) func(func(snapshot.Entry) error) error {
	return func(yield func(snapshot.Entry) error) error {
		for _, e := range entries {
			if err := yield(e); err != nil {
				return err
			}
		}
		return nil
	}
}

// write makes a directory with the entries' files, each with its contents, and writes the layer.
func write(t testing.TB, entries []snapshot.Entry, contents map[string]string, o WriteOptions) ([]byte, error) {
	root, err := os.MkdirTemp(t.TempDir(), "fs")
	must(t, err)
	return writeIn(t, root, entries, contents, o)
}

func writeIn(t testing.TB, root string, entries []snapshot.Entry, contents map[string]string, o WriteOptions) ([]byte, error) {
	for _, e := range entries {
		p := filepath.Join(root, e.Path)
		switch e.Type {
		case snapshot.Dir:
			must(t, os.MkdirAll(p, 0o755))
		case snapshot.File:
			must(t, os.MkdirAll(filepath.Dir(p), 0o755))
			must(t, os.WriteFile(p, []byte(contents[e.Path]), 0o600))
		}
	}
	f, err := os.Open(root)
	must(t, err)
	defer f.Close()
	var b bytes.Buffer
	err = Write(context.Background(), &b, each(entries), f, o)
	return b.Bytes(), err
}

func fileEntry(p, content string) snapshot.Entry {
	return snapshot.Entry{Path: p, Type: snapshot.File, Mode: 0o644, Size: int64(len(content)), Digest: sum(content)}
}

// sample has one of each kind.
func sample() ([]snapshot.Entry, map[string]string) {
	long := strings.Repeat("long/", 50) + "é"
	contents := map[string]string{"a/f": "hello\n", "a/g": "hello\n", "a/z": "", long: "x"}
	f := fileEntry("a/f", contents["a/f"])
	f.Mode, f.UID, f.GID, f.MTime = 0o4755, 1000, 65534, 1_500_000_000_999_999_999
	g := f
	g.Path, g.HardLink = "a/g", "a/f"
	z := fileEntry("a/z", "")
	z.UID, z.MTime = 4_000_000_000, -1
	z.Xattrs = []snapshot.Xattr{{Name: "user.a=%b", Value: []byte("\x00=\n")}}
	c := f
	c.Path, c.Size, c.Digest, c.Mode = "cap", 0, sum(""), 0o755
	c.Xattrs = []snapshot.Xattr{{Name: "security.capability", Value: []byte(cap2)}}
	return []snapshot.Entry{
		{Path: ".", Type: snapshot.Dir, Mode: 0o755},
		{Path: "a", Type: snapshot.Dir, Mode: 0o1777, MTime: 2e9},
		f, g,
		{Path: "a/old", Type: snapshot.Removed},
		z,
		{Path: "a-b", Type: snapshot.Symlink, Mode: 0o777, Link: "../../etc/passwd"},
		c,
		{Path: "dev", Type: snapshot.Block, Mode: 0o660, Major: 8, Minor: 1},
		fileEntry(long, "x"),
		{Path: "null", Type: snapshot.Char, Mode: 0o666, Major: 1, Minor: 3},
		{Path: "pipe", Type: snapshot.Fifo, Mode: 0o600},
	}, contents
}

const sampleList = `./ 5 755 0:0 t0 USTAR
a/ 5 1777 0:0 t2 USTAR
a/f 0 4755 1000:65534 t1500000000 6 bytes USTAR
a/g 1 4755 1000:65534 t1500000000 a/f USTAR
a/.wh.old 0 0 0:0 t0 USTAR
a/z 0 644 4000000000:0 t-1 PAX user.a%3D%25b="\x00=\n"
a-b 2 777 0:0 t0 ../../etc/passwd USTAR
cap 0 755 1000:65534 t1500000000 PAX security.capability="\x01\x00\x00\x02\x00 \x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
dev 4 660 0:0 t0 8,1 USTAR
long/long/long/long/long/long/long/long/long/long/long/long/long/long/long/long/long/long/long/long/long/long/long/long/long/long/long/long/long/long/long/long/long/long/long/long/long/long/long/long/long/long/long/long/long/long/long/long/long/long/é 0 644 0:0 t0 1 bytes PAX
null 3 666 0:0 t0 1,3 USTAR
pipe 6 600 0:0 t0 USTAR
`

// list shows an archive as archive/tar reads it.
func list(t testing.TB, data []byte) string {
	var b strings.Builder
	r := tar.NewReader(bytes.NewReader(data))
	for {
		h, err := r.Next()
		if err == io.EOF {
			return b.String()
		}
		must(t, err)
		if h.Uname != "" || h.Gname != "" || !h.AccessTime.IsZero() || !h.ChangeTime.IsZero() || h.ModTime.Nanosecond() != 0 {
			t.Errorf("%s: names or times that are not deterministic", h.Name)
		}
		fmt.Fprintf(&b, "%s %c %o %d:%d t%d", h.Name, h.Typeflag, h.Mode, h.Uid, h.Gid, h.ModTime.Unix())
		if h.Linkname != "" {
			fmt.Fprintf(&b, " %s", h.Linkname)
		}
		if h.Size != 0 {
			fmt.Fprintf(&b, " %d bytes", h.Size)
		}
		if h.Devmajor != 0 {
			fmt.Fprintf(&b, " %d,%d", h.Devmajor, h.Devminor)
		}
		fmt.Fprintf(&b, " %s", h.Format)
		for k, v := range h.PAXRecords {
			if n, ok := strings.CutPrefix(k, paxXattr); ok {
				fmt.Fprintf(&b, " %s=%q", n, v)
			}
		}
		fmt.Fprintln(&b)
	}
}

func TestWrite(t *testing.T) {
	entries, contents := sample()
	one, err := write(t, entries, contents, WriteOptions{})
	must(t, err)
	if got := list(t, one); got != sampleList {
		t.Errorf("got:\n%swant:\n%s", got, sampleList)
	}
	two, err := write(t, entries, contents, WriteOptions{})
	must(t, err)
	if !bytes.Equal(one, two) {
		t.Error("two archives of the same differ")
	}
	// The bytes are part of every image's digest: a new Go must not change them unseen.
	const want = "28b252c00fd3afe1c30187dfeb073f3d3c0b02bf865ac97d7d224fd444c15944"
	if got := sum(string(one)); got != want {
		t.Errorf("digest of the archive is %s, not %s", got, want)
	}
}

// GNU tar reads the same.
func TestWriteGNUTar(t *testing.T) {
	entries, contents := sample()
	data, err := write(t, entries, contents, WriteOptions{})
	must(t, err)
	cmd := exec.Command("tar", "-tv", "--numeric-owner", "--full-time", "--xattrs", "--xattrs-include=*", "--utc", "--quoting-style=literal")
	cmd.Stdin = bytes.NewReader(data)
	out, err := cmd.CombinedOutput()
	must(t, err)
	const want = `drwxr-xr-x 0/0 0 1970-01-01 00:00:00 ./
drwxrwxrwt 0/0 0 1970-01-01 00:00:02 a/
-rwsr-xr-x 1000/65534 6 2017-07-14 02:40:00 a/f
hrwsr-xr-x 1000/65534 0 2017-07-14 02:40:00 a/g link to a/f
---------- 0/0 0 1970-01-01 00:00:00 a/.wh.old
-rw-r--r--* 4000000000/0 0 1969-12-31 23:59:59 a/z
lrwxrwxrwx 0/0 0 1970-01-01 00:00:00 a-b -> ../../etc/passwd
-rwxr-xr-x* 1000/65534 0 2017-07-14 02:40:00 cap
brw-rw---- 0/0 8,1 1970-01-01 00:00:00 dev
-rw-r--r-- 0/0 1 1970-01-01 00:00:00 LONG
crw-rw-rw- 0/0 1,3 1970-01-01 00:00:00 null
prw------- 0/0 0 1970-01-01 00:00:00 pipe
`
	var b strings.Builder
	for l := range strings.Lines(string(out)) {
		l = strings.Replace(l, strings.Repeat("long/", 50)+"é", "LONG", 1)
		b.WriteString(strings.Join(strings.Fields(l), " ") + "\n") // columns are padded
	}
	if b.String() != want {
		t.Errorf("got:\n%swant:\n%s", b.String(), want)
	}
	d := t.TempDir()
	cmd = exec.Command("tar", "-x", "-C", d, "--xattrs", "--xattrs-include=*", "a/z", "cap")
	cmd.Stdin = bytes.NewReader(data)
	out, err = cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if got := attribute(filepath.Join(d, "a/z"), "user.a=%b") + attribute(filepath.Join(d, "cap"), capability); got != "\x00=\n"+cap2 {
		t.Errorf("attributes after tar -x: %q", got)
	}
}

func TestWriteTimes(t *testing.T) {
	epoch := int64(100)
	for _, c := range []struct {
		mtime int64
		o     WriteOptions
		want  int64
	}{
		{99_999_999_999, WriteOptions{}, 99},
		{-1, WriteOptions{}, -1},
		{-1_000_000_000, WriteOptions{}, -1},
		{101e9, WriteOptions{Epoch: &epoch}, 100},
		{99e9, WriteOptions{Epoch: &epoch}, 99},
		{99e9, WriteOptions{Epoch: &epoch, FromContext: true}, 100},
		{99e9, WriteOptions{FromContext: true}, 99},
	} {
		if got := seconds(c.mtime, c.o); got != c.want {
			t.Errorf("%d ns with %+v: %d s, want %d", c.mtime, c.o, got, c.want)
		}
	}
}

func TestWriteErrors(t *testing.T) {
	removed := snapshot.Entry{Path: "gone", Type: snapshot.Removed}
	good := fileEntry("f", "content")
	for _, c := range []struct {
		name    string
		entries []snapshot.Entry
		content string
		o       WriteOptions
		err     string
	}{
		{"shorter than recorded", []snapshot.Entry{good}, "conten", WriteOptions{}, "changed on disk"},
		{"longer than recorded", []snapshot.Entry{good}, "content!", WriteOptions{}, "changed on disk"},
		{"other content", []snapshot.Entry{good}, "c0ntent", WriteOptions{}, "changed on disk"},
		{"other content, unverified", []snapshot.Entry{good}, "c0ntent", WriteOptions{Unverified: true}, ""},
		{"not sorted", []snapshot.Entry{removed, good}, "content", WriteOptions{}, "not sorted"},
		{"twice", []snapshot.Entry{good, good}, "content", WriteOptions{}, "not sorted"},
		{"removal in a whole file system", []snapshot.Entry{good, removed}, "content", WriteOptions{Root: true}, "no meaning"},
		{"removed root", []snapshot.Entry{{Path: ".", Type: snapshot.Removed}}, "", WriteOptions{}, "no meaning"},
		{"a file that reads as a whiteout", []snapshot.Entry{fileEntry("d/.wh.f", "")}, "", WriteOptions{}, "mean a removal"},
		{"a directory that reads as a whiteout", []snapshot.Entry{fileEntry(".wh.d/f", "")}, "", WriteOptions{}, "mean a removal"},
		{"unknown type", []snapshot.Entry{{Path: "s", Type: 's'}}, "", WriteOptions{}, "unknown type"},
	} {
		contents := map[string]string{"f": c.content}
		_, err := write(t, c.entries, contents, c.o)
		if c.err == "" && err != nil || c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)) {
			t.Errorf("%s: error %v, want %q", c.name, err, c.err)
		}
	}
}

// A link in the directory must not lead Write out of it.
func TestWriteFollowsNoLink(t *testing.T) {
	outside := t.TempDir()
	must(t, os.WriteFile(filepath.Join(outside, "f"), []byte("secret"), 0o600))
	root := t.TempDir()
	must(t, os.Symlink(outside, filepath.Join(root, "d")))
	must(t, os.Symlink(filepath.Join(outside, "f"), filepath.Join(root, "l")))
	f, err := os.Open(root)
	must(t, err)
	defer f.Close()
	for _, p := range []string{"d/f", "l"} {
		var b bytes.Buffer
		err := Write(context.Background(), &b, each([]snapshot.Entry{fileEntry(p, "secret")}), f, WriteOptions{})
		if err == nil || bytes.Contains(b.Bytes(), []byte("secret")) {
			t.Errorf("%s: a file outside was read (error %v)", p, err)
		}
	}
}

// What fails to be written must not look like a layer that ends well.
func TestWriteBrokenPipe(t *testing.T) {
	broken := errors.New("disk full")
	entries, _ := sample()
	f, err := os.Open(t.TempDir())
	must(t, err)
	defer f.Close()
	if err := Write(context.Background(), failing{broken}, each(entries[:2]), f, WriteOptions{}); !errors.Is(err, broken) {
		t.Errorf("error %v", err)
	}
}

type failing struct{ err error }

func (f failing) Write([]byte) (int, error) { return 0, f.err }

// Any change set comes back as it was, but for fractions of a second.
func TestRoundTrip(t *testing.T) {
	n := 0
	base := t.TempDir()
	rapid.Check(t, func(r *rapid.T) {
		n++
		entries, contents := changeSet().Draw(r, "entries"), map[string]string{}
		for i := range entries {
			e := &entries[i]
			if e.Type != snapshot.File {
				continue
			}
			if e.HardLink != "" {
				contents[e.Path] = contents[e.HardLink]
				continue
			}
			contents[e.Path] = rapid.StringN(0, 2000, -1).Draw(r, "content")
			e.Size, e.Digest = int64(len(contents[e.Path])), sum(contents[e.Path])
		}
		for i := range entries {
			if h := entries[i].HardLink; h != "" {
				j, _ := find(entries, h)
				p := entries[i].Path
				entries[i] = entries[j]
				entries[i].Path, entries[i].HardLink = p, h
			}
		}
		src, dst := filepath.Join(base, fmt.Sprint(n, "s")), filepath.Join(base, fmt.Sprint(n, "d"))
		must(t, os.Mkdir(src, 0o755))
		must(t, os.Mkdir(dst, 0o755))
		data, err := writeIn(t, src, entries, contents, WriteOptions{})
		must(t, err)
		h := &host{root: dst}
		d, err := os.Open(dst)
		must(t, err)
		defer d.Close()
		a, err := Apply(context.Background(), bytes.NewReader(data), d, ApplyOptions{})
		must(t, err)
		for i := range entries {
			if entries[i].Type == snapshot.Removed {
				continue
			}
			entries[i].MTime = seconds(entries[i].MTime, WriteOptions{}) * 1e9
		}
		if got, want := text(a.Entries), text(entries); got != want {
			r.Fatalf("got:\n%swant:\n%s", got, want)
		}
		checkDisk(t, h, a)
		again, err := writeIn(t, src, a.Entries, contents, WriteOptions{})
		must(t, err)
		if !bytes.Equal(data, again) {
			r.Fatalf("the archive of what came back differs")
		}
		must(t, os.RemoveAll(src))
		must(t, os.RemoveAll(dst))
	})
}

// changeSet makes a sorted change set whose directories are all there.
func changeSet() *rapid.Generator[[]snapshot.Entry] {
	name := rapid.OneOf(rapid.StringMatching(`[a-c]{1,2}`), rapid.SampledFrom([]string{"a-", "a.", "é", "x\xff", "with space", "-n", strings.Repeat("n", 120)}))
	return rapid.Custom(func(r *rapid.T) []snapshot.Entry {
		all := map[string]snapshot.Entry{}
		dirs := []string{"."}
		for range rapid.IntRange(0, 20).Draw(r, "n") {
			p := join(rapid.SampledFrom(dirs).Draw(r, "dir"), name.Draw(r, "name"))
			if _, ok := all[p]; ok {
				continue
			}
			e := anyEntry(r, p)
			if all[p] = e; e.Type == snapshot.Dir {
				dirs = append(dirs, p)
			}
		}
		var out []snapshot.Entry
		for _, e := range all {
			out = append(out, e)
		}
		slices.SortFunc(out, func(a, b snapshot.Entry) int { return snapshot.Compare(a.Path, b.Path) })
		return link(r, out)
	})
}

// link makes some of the files names of one file.
func link(r *rapid.T, entries []snapshot.Entry) []snapshot.Entry {
	first := ""
	for i := range entries {
		if e := &entries[i]; e.Type == snapshot.File && rapid.Bool().Draw(r, "linked") {
			if e.HardLink = first; first == "" {
				first = e.Path
			}
		}
	}
	return entries
}

func anyEntry(r *rapid.T, p string) snapshot.Entry {
	types := []snapshot.Type{snapshot.Dir, snapshot.Dir, snapshot.File, snapshot.File, snapshot.Symlink, snapshot.Fifo, snapshot.Char, snapshot.Block, snapshot.Removed}
	e := snapshot.Entry{Path: p, Type: rapid.SampledFrom(types).Draw(r, "type")}
	if e.Type == snapshot.Removed {
		return e
	}
	id := rapid.OneOf(rapid.Uint32Range(0, 3), rapid.SampledFrom([]uint32{65535, 1 << 21, 1 << 31, 1<<32 - 2}))
	e.UID, e.GID = id.Draw(r, "uid"), id.Draw(r, "gid")
	e.MTime = rapid.Int64Range(-1<<30*1e9, 1<<33*1e9).Draw(r, "mtime")
	e.Mode = rapid.Uint32Range(0, 0o7777).Draw(r, "mode")
	switch e.Type {
	case snapshot.Symlink:
		e.Mode, e.Link = 0o777, rapid.SampledFrom([]string{"/", "..", "é", "../../" + strings.Repeat("t", 300)}).Draw(r, "target")
	case snapshot.Char, snapshot.Block:
		e.Major, e.Minor = rapid.Uint32Range(1, 4095).Draw(r, "major"), rapid.Uint32Range(0, 1<<20-1).Draw(r, "minor")
	case snapshot.File, snapshot.Dir:
		if rapid.Bool().Draw(r, "attribute") {
			e.Xattrs = []snapshot.Xattr{{Name: "user." + rapid.SampledFrom([]string{"a", "a=b", "%3D", "é"}).Draw(r, "xattr"), Value: rapid.SliceOfN(rapid.Byte(), 0, 100).Draw(r, "value")}}
		}
	}
	return e
}

func BenchmarkWrite(b *testing.B) {
	entries, contents := make([]snapshot.Entry, 5000), map[string]string{}
	for i := range entries {
		p := fmt.Sprintf("d%02d/f%03d", i/100, i%100)
		contents[p] = strings.Repeat(p, 1000)
		entries[i] = fileEntry(p, contents[p])
	}
	root := b.TempDir()
	data, err := writeIn(b, root, entries, contents, WriteOptions{})
	must(b, err)
	f, err := os.Open(root)
	must(b, err)
	defer f.Close()
	b.Run("write", func(b *testing.B) {
		b.SetBytes(int64(len(data)))
		for b.Loop() {
			must(b, Write(context.Background(), io.Discard, each(entries), f, WriteOptions{}))
		}
	})
	b.Run("apply", func(b *testing.B) {
		b.SetBytes(int64(len(data)))
		for b.Loop() {
			h := newHost(b)
			_, err := Apply(context.Background(), bytes.NewReader(data), h.open(b), ApplyOptions{})
			must(b, err)
		}
	})
}
