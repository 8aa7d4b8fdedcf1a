package exec

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// header makes a tar header from a line: "name", "name/", "name -> link", "name = hard link", "name : typeflag"; mode 0640 and an odd time.
func header(line string) *tar.Header {
	name, rest, _ := strings.Cut(line, " ")
	h := &tar.Header{Name: name, Mode: 0o640, ModTime: epoch, Typeflag: tar.TypeReg, Size: int64(len(name))}
	kind, what, _ := strings.Cut(rest, " ")
	switch {
	case strings.HasSuffix(name, "/"):
		h.Typeflag, h.Mode = tar.TypeDir, 0o550
	case kind == "->":
		h.Typeflag, h.Linkname = tar.TypeSymlink, what
	case kind == "=":
		h.Typeflag, h.Linkname = tar.TypeLink, what
	case kind == ":":
		h.Typeflag = what[0]
	}
	if h.Typeflag != tar.TypeReg {
		h.Size = 0
	}
	if h.Typeflag == tar.TypeXGlobalHeader {
		*h = tar.Header{Typeflag: h.Typeflag, Name: name, PAXRecords: map[string]string{"comment": "0123456789abcdef"}}
	}
	return h
}

// tarOf packs entries, one per line; files hold their own names.
func tarOf(t testing.TB, lines ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, l := range lines {
		h := header(l)
		if err := w.WriteHeader(h); err != nil {
			t.Fatalf("%s: %v", l, err)
		}
		if h.Size > 0 {
			if _, err := io.WriteString(w, h.Name); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// listDir lists a directory: "name content", "name/", "name -> link".
func listDir(t testing.TB, dir string) string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == dir {
			return err
		}
		rel, _ := filepath.Rel(dir, p)
		switch d.Type() {
		case fs.ModeDir:
			rel += "/"
		case fs.ModeSymlink:
			to, _ := os.Readlink(p)
			rel += "->" + to
		case 0:
			data, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			rel += "=" + string(data)
		default:
			rel += "|" + d.Type().String()
		}
		out = append(out, rel)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(out, " ")
}

// Whatever an archive says, it fills its directory and touches nothing else.
func TestUntarNames(t *testing.T) {
	for _, tc := range []struct {
		name    string
		entries []string
		want    string // the directory, or "error: …"
	}{
		{"plain", []string{"d/", "d/a", "d/l -> a", "d/h = d/a"}, "d/ d/a=d/a d/h=d/a d/l->a"},
		{"implied parents", []string{"x/y/z"}, "x/ x/y/ x/y/z=x/y/z"},
		{"absolute", []string{"/a", "/d/b"}, "a=/a d/ d/b=/d/b"},
		{"dots", []string{"../a", "../../d/../b", "./c", "d/./e"}, "a=../a b=../../d/../b c=./c d/ d/e=d/./e"},
		{"the root itself", []string{"./", "/", "a"}, "a=a"},
		{"absolute link", []string{"l -> /etc/passwd"}, "l->/etc/passwd"},
		{"through a link", []string{"d/", "l -> d", "l/a"}, "d/ d/a=l/a l->d"},
		{"through a link out", []string{"l -> ../outside", "l/a"}, "error: write l/a"},
		{"through an absolute link", []string{"l -> /", "l/tmp/a"}, "error: write l/tmp/a"},
		{"a directory through a link out", []string{"l -> ..", "l/outside/"}, "error: write l/outside"},
		{"over a link", []string{"l -> ../outside", "l"}, "l=l"},
		{"a directory over a link", []string{"l -> ../outside", "l/", "l/a"}, "l/ l/a=l/a"},
		{"hard link out", []string{"h = ../outside/secret"}, "error: write h"},
		{"hard link to an absolute name", []string{"a", "h = /a"}, "a=a h=a"},
		{"hard link through a link out", []string{"l -> ../outside", "h = l/secret"}, "error: write h"},
		{"a file over a directory", []string{"d/", "d/a", "d"}, "d=d"},
		{"a directory over a file", []string{"d", "d/", "d/a"}, "d/ d/a=d/a"},
		{"twice", []string{"a", "./a"}, "a=./a"},
		{"a link over a directory that waits for its mode", []string{"d/", "d -> ../outside"}, "d->../outside"},
		{"devices are left out, fifos are not", []string{"c : 3", "b : 4", "f : 6", "a"}, "a=a f|p---------"},
		{"global header", []string{"pax_global_header : g", "a"}, "a=a"},
		{"a file of that name stays", []string{"pax_global_header", "pax_global_header : g"}, "pax_global_header=pax_global_header"},
		{"odd names", []string{"new\nline", "é", "lat\xe9"}, "lat\xe9=lat\xe9 new\nline=new\nline é=é"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tmp := t.TempDir()
			dir, outside := filepath.Join(tmp, "in"), filepath.Join(tmp, "outside")
			defer openDirs(tmp)
			if err := os.Mkdir(outside, 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(outside, "secret"), []byte("s"), 0o600); err != nil {
				t.Fatal(err)
			}
			err := Untar(context.Background(), bytes.NewReader(tarOf(t, tc.entries...)), dir)
			if want, ok := strings.CutPrefix(tc.want, "error: "); ok {
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("error %v, want %s", err, want)
				}
			} else if got := listDir(t, dir); err != nil || got != tc.want {
				t.Errorf("got %q, %v; want %q", got, err, tc.want)
			}
			if got := listDir(t, outside); got != "secret=s" {
				t.Errorf("outside there is now %q", got)
			}
			if st, err := os.Stat(outside); err != nil || st.Mode().Perm() != 0o700 {
				t.Errorf("the mode outside is now %v, %v", st.Mode(), err)
			}
		})
	}
}

// Modes and times are kept, those of read-only directories and of links too.
func TestUntarAttributes(t *testing.T) {
	dir := t.TempDir()
	if err := Untar(context.Background(), bytes.NewReader(tarOf(t, "d/", "d/a", "d/l -> a", "e/", "e/f/", "e/f/x")), dir); err != nil {
		t.Fatal(err)
	}
	for name, mode := range map[string]os.FileMode{"d": os.ModeDir | 0o550, "d/a": 0o640, "e/f": os.ModeDir | 0o550} {
		st, err := os.Lstat(filepath.Join(dir, name))
		if err != nil || st.Mode() != mode || !st.ModTime().Equal(epoch) {
			t.Errorf("%s: %v %v, %v", name, st.Mode(), st.ModTime(), err)
		}
	}
	st, err := os.Lstat(filepath.Join(dir, "d/l"))
	if err != nil || !st.ModTime().Equal(epoch) {
		t.Errorf("the link's time is %v, %v", st.ModTime(), err)
	}
	openDirs(dir)
}

// openDirs lets everything below a directory be deleted.
func openDirs(dir string) {
	filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if d != nil && d.IsDir() {
			os.Chmod(p, 0o700)
		}
		return nil
	})
}

func TestUntarStops(t *testing.T) {
	ctx, cancel := context.WithCancelCause(context.Background())
	cancel(fmt.Errorf("enough"))
	if err := Untar(ctx, bytes.NewReader(tarOf(t, "a")), t.TempDir()); err == nil || err.Error() != "enough" {
		t.Error(err)
	}
	data := tarOf(t, "a", "b")
	if err := Untar(context.Background(), bytes.NewReader(data[:1024+300]), t.TempDir()); err == nil {
		t.Error("a cut archive was taken")
	}
}

func FuzzUntar(f *testing.F) {
	f.Add(tarOf(f, "d/", "d/a", "l -> ../x", "l/a", "h = d/a"))
	f.Add(tarOf(f, "g : g", "/abs", "d", "d/"))
	f.Fuzz(func(t *testing.T, data []byte) {
		tmp := t.TempDir()
		defer openDirs(tmp)
		Untar(context.Background(), bytes.NewReader(data), filepath.Join(tmp, "in"))
		if got, err := os.ReadDir(tmp); err != nil || len(got) > 1 {
			t.Errorf("%v, %v", got, err)
		}
	})
}

// listOf is listDir of one deep file.
func listOf(p string) string {
	var out []string
	for i, c := range p {
		if c == '/' {
			out = append(out, p[:i+1])
		}
	}
	return strings.Join(append(out, p+"="+p), " ")
}

func compress(t testing.TB, data []byte, open func(io.Writer) (io.WriteCloser, error)) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := open(&b)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func gz(t testing.TB, data []byte) []byte {
	return compress(t, data, func(w io.Writer) (io.WriteCloser, error) { return gzip.NewWriter(w), nil })
}

func zst(t testing.TB, data []byte) []byte {
	return compress(t, data, func(w io.Writer) (io.WriteCloser, error) { return zstd.NewWriter(w) })
}

func xzip(t testing.TB, data []byte) []byte {
	return compress(t, data, func(w io.Writer) (io.WriteCloser, error) { return xz.NewWriter(w) })
}

// bz2 uses the program: there is no compressor to link.
func bz2(t testing.TB, data []byte) []byte {
	t.Helper()
	cmd := exec.Command("bzip2", "-c")
	cmd.Stdin = bytes.NewReader(data)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("bzip2: %v", err)
	}
	return out
}

// An archive is known by its content in each compression; text, zeros and other compressed data are files.
func TestIsArchive(t *testing.T) {
	plain := tarOf(t, "a")
	skippable := append([]byte{0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0, 1, 2, 3, 4}, zst(t, plain)...)
	for name, tc := range map[string]struct {
		data []byte
		want bool
	}{
		"tar": {plain, true}, "gzip": {gz(t, plain), true}, "zstd": {zst(t, plain), true}, "xz": {xzip(t, plain), true}, "bzip2": {bz2(t, plain), true},
		"zstd after a skippable frame": {skippable, true},
		"global header first":          {tarOf(t, "g : g", "a"), true},
		"empty tar":                    {tarOf(t), false},
		"empty":                        {nil, false},
		"text":                         {[]byte("hello"), false},
		"text, gzip":                   {gz(t, []byte("hello")), false},
		"zeros":                        {make([]byte, 4096), false},
		"cut gzip":                     {gz(t, plain)[:12], false},
		"only magic bytes":             {[]byte("BZh9"), false},
	} {
		p := filepath.Join(t.TempDir(), "f")
		if err := os.WriteFile(p, tc.data, 0o644); err != nil {
			t.Fatal(err)
		}
		f, err := os.Open(p)
		if err != nil {
			t.Fatal(err)
		}
		got, err := isArchive(f)
		if err != nil || got != tc.want {
			t.Errorf("%s: %v, %v", name, got, err)
		}
		if at, err := f.Seek(0, io.SeekCurrent); err != nil || at != 0 {
			t.Errorf("%s: left at %d, %v", name, at, err)
		}
		f.Close()
	}
}
