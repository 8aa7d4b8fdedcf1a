package exec

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"img/snapshot"
)

// A context on standard input: a tar in any compression, or a Dockerfile's text.
func TestReadContext(t *testing.T) {
	plain := tarOf(t, "pax_global_header : g", "d/a", "Dockerfile")
	const files = "Dockerfile=Dockerfile d/ d/a=d/a"
	const text = "FROM scratch\nCOPY a /\n"
	big := bytes.Repeat([]byte("# x\n"), maxText/4+1)
	long := tarOf(t, strings.Repeat("long/", 60)+"a")
	for _, tc := range []struct {
		name  string
		data  []byte
		files string
		text  string
		err   string
	}{
		{name: "tar", data: plain, files: files},
		{name: "tar.gz", data: gz(t, plain), files: files},
		{name: "tar.zst", data: zst(t, plain), files: files},
		{name: "tar.xz", data: xzip(t, plain), files: files},
		{name: "tar.bz2", data: bz2(t, plain), files: files},
		{name: "tar, two gzip members", data: append(gz(t, plain[:1000]), gz(t, plain[1000:])...), files: files},
		{name: "a tar whose first name is long", data: long, files: listOf(strings.Repeat("long/", 60) + "a")},
		{name: "text", data: []byte(text), text: text},
		{name: "text, gzip", data: gz(t, []byte(text)), text: text},
		{name: "text with a byte order mark", data: []byte("\ufeff" + text), text: "\ufeff" + text},
		{name: "nothing", data: nil, text: ""},
		{name: "a cut gzip", data: gz(t, plain)[:50], err: "unexpected EOF"},
		{name: "an empty tar", data: make([]byte, 10240), err: "the archive is empty"},
		{name: "no text", data: []byte("\x7fELF\x00\x01"), err: "neither a tar nor a Dockerfile"},
		{name: "too much text", data: big, err: "neither a tar nor a Dockerfile"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			made, err := ReadContext(context.Background(), bytes.NewReader(tc.data), dir)
			if tc.err != "" {
				if err == nil || !strings.Contains(err.Error(), tc.err) {
					t.Errorf("error %v, want %s", err, tc.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if string(made.Text) != tc.text || (tc.files != "") != (made.Text == nil) {
				t.Errorf("text %q", made.Text)
			}
			if l := listDir(t, dir); l != tc.files {
				t.Errorf("files %q, want %q", l, tc.files)
			}
		})
	}
}

// deep is a directory below many others.
var deep = strings.Repeat("d/", 1900)

// Whatever an archive says, it fills its directory and touches nothing else.
func TestReadContextNames(t *testing.T) {
	for _, tc := range []struct {
		name    string
		entries []string
		want    string // the directory, or "error: …"
	}{
		{"plain", []string{"./", "d/", "d/a", "d/l -> a", "d/h = d/a"}, "d/ d/a=d/a d/h=d/a d/l->a"},
		{"implied parents", []string{"x/y/z"}, "x/ x/y/ x/y/z=x/y/z"},
		{"absolute and dots", []string{"/a", "../b", "d/../../c"}, "a=/a b=../b c=d/../../c"},
		{"links as they are", []string{"l -> /etc/passwd", "m -> ../../x"}, "l->/etc/passwd m->../../x"},
		{"through a link", []string{"d/", "l -> d", "l/a"}, "d/ d/a=l/a l->d"},
		{"through a link out", []string{"l -> ../outside", "l/a"}, "error: l/a"},
		{"through an absolute link", []string{"l -> /", "l/tmp/a"}, "error: l/tmp/a"},
		{"a directory through a link out", []string{"l -> ..", "l/outside/"}, "error: l/outside"},
		{"over a link", []string{"l -> ../outside", "l"}, "l=l"},
		{"a directory over a link", []string{"l -> ../outside", "l/", "l/a"}, "l/ l/a=l/a"},
		{"a hard link out", []string{"h = ../outside/secret"}, "error: does not have before it"},
		{"a hard link through a link out", []string{"l -> ../outside", "h = l/secret"}, "error: does not have before it"},
		{"a hard link to what comes later", []string{"h = a", "a"}, "error: does not have before it"},
		{"a hard link to a directory", []string{"d/", "h = d"}, "error: does not have before it"},
		{"a hard link to itself", []string{"a", "a = a"}, "a=a"},
		{"a hard link to an absolute name", []string{"a", "h = /a"}, "a=a h=a"},
		{"a hard link to a link", []string{"l -> /x", "h = l"}, "h->/x l->/x"},
		{"a file over a directory", []string{"d/", "d/a", "d"}, "d=d"},
		{"a link over a directory that waits for its time", []string{"d/", "d -> ../outside"}, "d->../outside"},
		{"twice", []string{"a", "./a"}, "a=./a"},
		{"devices", []string{"a", "c : 3", "b : 4", "a : 3", "f : 6"}, "f|p---------"},
		{"an unknown type", []string{"a", "b : Z"}, "error: unknown type"},
		{"a long path", []string{strings.Repeat("d/", 2049) + "a"}, "error: longer than 4096 bytes"},
		{"deeper than a path", []string{deep, "l -> " + deep[:3799], "l/" + deep, "m -> l/" + deep[:99], "m/" + deep}, "error: nested deeper"},
		{"odd names", []string{"new\nline", "é", "lat\xe9"}, "lat\xe9=lat\xe9 new\nline=new\nline é=é"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tmp := t.TempDir()
			dir, outside := filepath.Join(tmp, "in"), filepath.Join(tmp, "outside")
			if err := errors.Join(os.Mkdir(dir, 0o700), os.Mkdir(outside, 0o700), os.WriteFile(filepath.Join(outside, "secret"), []byte("s"), 0o600)); err != nil {
				t.Fatal(err)
			}
			_, err := ReadContext(context.Background(), bytes.NewReader(tarOf(t, tc.entries...)), dir)
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
		})
	}
}

// members makes a tar of headers; those with a Size are files of so many x.
func members(t testing.TB, headers ...*tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		if h.ModTime.IsZero() {
			h.ModTime = epoch
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, strings.Repeat("x", int(h.Size))); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// capability is cap_net_bind_service=ep, version 2.
const capability = "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

// A streamed context shows what the archive says: every mode, hard links, times, attributes; and everything is 0:0.
func TestStreamedContext(t *testing.T) {
	xattr := func(kv ...string) map[string]string {
		m := map[string]string{}
		for i := 0; i < len(kv); i += 2 {
			m["SCHILY.xattr."+kv[i]] = kv[i+1]
		}
		return m
	}
	defer unix.Umask(unix.Umask(0o077))
	data := members(t,
		&tar.Header{Typeflag: tar.TypeDir, Name: "./", Mode: 0o700},
		&tar.Header{Typeflag: tar.TypeDir, Name: "closed/", Mode: 0o555, PAXRecords: xattr("user.d", "1")},
		&tar.Header{Typeflag: tar.TypeReg, Name: "closed/in", Mode: 0o644, Size: 1, Uid: 1234, Gid: 7},
		&tar.Header{Typeflag: tar.TypeDir, Name: "dark/", Mode: 0},
		&tar.Header{Typeflag: tar.TypeReg, Name: "dark/in", Mode: 0, Size: 2},
		&tar.Header{Typeflag: tar.TypeReg, Name: "implied/dir/f", Mode: 0o600, Size: 1},
		&tar.Header{Typeflag: tar.TypeReg, Name: "ping", Mode: 0o755, Size: 1, PAXRecords: xattr("security.capability", capability, "user.a", "b\x00c", "user.img.mode", "777", "trusted.overlay.opaque", "y")},
		&tar.Header{Typeflag: tar.TypeDir, Name: "setgid/", Mode: 0o2770},
		&tar.Header{Typeflag: tar.TypeDir, Name: "setgid/plain/", Mode: 0o755},
		&tar.Header{Typeflag: tar.TypeReg, Name: "su", Mode: 0o4755, Size: 1, ModTime: epoch.Add(time.Hour)},
		&tar.Header{Typeflag: tar.TypeLink, Name: "su2", Linkname: "su"},
		&tar.Header{Typeflag: tar.TypeSymlink, Name: "to", Linkname: "/su"},
		&tar.Header{Typeflag: tar.TypeReg, Name: "write", Mode: 0o200, Size: 1},
	)
	dir := t.TempDir()
	made, err := ReadContext(context.Background(), bytes.NewReader(data), dir)
	if err != nil {
		t.Fatal(err)
	}
	if !made.Newest.Equal(epoch.Add(time.Hour)) || len(made.Notes) > 0 {
		t.Errorf("newest %v, notes %q", made.Newest, made.Notes)
	}
	c := open(t, dir)
	c.Streamed = true
	var got []string
	err = c.walk(".", func(e snapshot.Entry, _ content) error {
		line := fmt.Sprintf("%s %c %04o %d:%d", e.Path, e.Type, e.Mode, e.UID, e.GID)
		if e.HardLink != "" {
			line += " = " + e.HardLink
		}
		for _, x := range e.Xattrs {
			line += fmt.Sprintf(" %s=%d", x.Name, len(x.Value))
		}
		if found, ok, err := c.lstat(e.Path); err != nil || !ok || found.Mode != e.Mode {
			t.Errorf("%s: lstat %04o %v %v", e.Path, found.Mode, ok, err)
		}
		if e.MTime != epoch.UnixNano() && !slices.Contains([]string{"implied", "implied/dir", "su", "su2"}, e.Path) {
			t.Errorf("%s: time %v", e.Path, time.Unix(0, e.MTime))
		}
		got = append(got, line)
		return nil
	})
	want := `. d 0700 0:0
closed d 0555 0:0 user.d=1
closed/in f 0644 0:0
dark d 0000 0:0
dark/in f 0000 0:0
implied d 0755 0:0
implied/dir d 0755 0:0
implied/dir/f f 0600 0:0
ping f 0755 0:0 security.capability=20 user.a=3
setgid d 2770 0:0
setgid/plain d 0755 0:0
su f 4755 0:0
su2 f 4755 0:0 = su
to l 0777 0:0
write f 0200 0:0`
	if text := strings.Join(got, "\n"); err != nil || text != want {
		t.Errorf("%v\n%s\nwant\n%s", err, text, want)
	}
	if err := os.RemoveAll(dir); err != nil { // its owner can: every directory is his
		t.Error(err)
	}
}

// What an archive claims is not believed: sizes, attributes, ends.
func TestReadContextRefuses(t *testing.T) {
	good := tarOf(t, "a", "b")
	huge := members(t, &tar.Header{Typeflag: tar.TypeReg, Name: "a", Mode: 0o644})
	copy(huge[124:136], "77777777777\x00") // size 8 GiB, of which nothing comes
	for name, tc := range map[string]struct {
		data []byte
		err  string
	}{
		"cut in a header":        {good[:1024+300], "unexpected EOF"},
		"cut in content":         {good[:512], "unexpected EOF"},
		"a damaged header":       {append(slices.Clone(good[:1024]), bytes.Repeat([]byte("x"), 2048)...), "invalid tar header"},
		"a size that is a lie":   {resum(huge), "unexpected EOF"},
		"a malformed capability": {members(t, &tar.Header{Typeflag: tar.TypeReg, Name: "a", Mode: 0o644, PAXRecords: map[string]string{"SCHILY.xattr.security.capability": "x"}}), "malformed file capability"},
		"a hole of 1 PiB":        {sparse(t, 1<<50), "free"},
	} {
		dir := t.TempDir()
		if _, err := ReadContext(context.Background(), bytes.NewReader(tc.data), dir); err == nil || !strings.Contains(err.Error(), tc.err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, tc := range map[string]struct {
		data []byte
		note string
	}{
		"whole":                   {good, ""},
		"one block of zeros":      {good[:len(good)-512], ""},
		"cut between two entries": {good[:1024], "no end mark"},
		"cut in what fills up":    {good[:900], "no end mark"},
		"two archives":            {append(slices.Clone(good), good...), "what follows"},
		"devices":                 {tarOf(t, "c : 3", "a", "d : 4"), `2 entries, the first is "c"`},
	} {
		made, err := ReadContext(context.Background(), bytes.NewReader(tc.data), t.TempDir())
		if err != nil || (tc.note == "") != (len(made.Notes) == 0) || !strings.Contains(strings.Join(made.Notes, "\n"), tc.note) {
			t.Errorf("%s: %v, %v", name, made, err)
		}
	}
}

// resum sets the checksum of a tar's first header (POSIX ustar).
func resum(data []byte) []byte {
	copy(data[148:156], "        ")
	sum := 0
	for _, b := range data[:512] {
		sum += int(b)
	}
	copy(data[148:156], fmt.Sprintf("%06o\x00 ", sum))
	return data
}

// sparse is an archive of one file that is nothing but a hole (GNU's PAX format 1.0).
func sparse(t testing.TB, size int64) []byte {
	const sparseMap = "1\n0\n0\n"
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	record := func(k, v string) string {
		n := len(k) + len(v) + 3
		for n != len(fmt.Sprint(n))+len(k)+len(v)+3 {
			n = len(fmt.Sprint(n)) + len(k) + len(v) + 3
		}
		return fmt.Sprintf("%d %s=%s\n", n, k, v)
	}
	pax := record("GNU.sparse.major", "1") + record("GNU.sparse.minor", "0") + record("GNU.sparse.name", "a") + record("GNU.sparse.realsize", fmt.Sprint(size))
	for _, m := range []struct {
		h    tar.Header
		body string
	}{
		{tar.Header{Typeflag: tar.TypeReg, Name: "PaxHeaders/a", Mode: 0o644, Size: int64(len(pax)), Format: tar.FormatUSTAR}, pax},
		{tar.Header{Typeflag: tar.TypeReg, Name: "a", Mode: 0o644, Size: 512, Format: tar.FormatUSTAR}, sparseMap + strings.Repeat("\x00", 512-len(sparseMap))},
	} {
		if err := w.WriteHeader(&m.h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, m.body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	data := b.Bytes()
	data[156] = 'x' // the writer makes no such headers of ours
	return resum(data)
}

func FuzzReadContext(f *testing.F) {
	f.Add(tarOf(f, "./", "d/", "d/a", "l -> ../x", "l/a", "h = d/a"))
	f.Add(tarOf(f, "g : g", "/abs", "d", "d/", "c : 3", "f : 6"))
	f.Add(sparse(f, 1<<9))
	f.Add(members(f, &tar.Header{Typeflag: tar.TypeDir, Name: "d/", Mode: 0o111, PAXRecords: map[string]string{"SCHILY.xattr.user.a": "b"}}))
	f.Add([]byte("FROM scratch\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		tmp := t.TempDir()
		dir := filepath.Join(tmp, "in")
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		made, err := ReadContext(context.Background(), bytes.NewReader(data), dir)
		if got, err := os.ReadDir(tmp); err != nil || len(got) != 1 {
			t.Errorf("%v, %v", got, err)
		}
		if err == nil && made.Text == nil {
			walkStreamed(t, dir)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
}

// walkStreamed reads all of a context that was taken.
func walkStreamed(t *testing.T, dir string) {
	c := open(t, dir)
	c.Streamed = true
	err := c.walk(".", func(_ snapshot.Entry, c content) error {
		if c == nil {
			return nil
		}
		_, err := c.digest()
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// A file that somebody else put into a directory is read inside it.
func TestReadInside(t *testing.T) {
	tmp := t.TempDir()
	dir := filepath.Join(tmp, "in")
	if err := errors.Join(os.MkdirAll(filepath.Join(dir, "d"), 0o755), os.WriteFile(filepath.Join(tmp, "secret"), []byte("s"), 0o600),
		os.WriteFile(filepath.Join(dir, "d", "f"), []byte("f"), 0o600), os.Symlink("/d/f", filepath.Join(dir, "abs")),
		os.Symlink("../secret", filepath.Join(dir, "out")), os.Symlink(filepath.Join(tmp, "secret"), filepath.Join(dir, "absout")),
		unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600), os.Symlink("loop", filepath.Join(dir, "loop"))); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"d/f": "f", "abs": "f", "./d/../d/f": "f", "/d/f": "f", "../in/d/f": "no such file", "out": "no such file", "absout": "no such file",
		"d": "no regular file", "fifo": "no regular file", "loop": "too many levels", "d/f/x": "no such file", "": "no such file",
	} {
		data, err := ReadInside(dir, name, 1)
		if string(data) != want && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %q, %v; want %s", name, data, err, want)
		}
	}
	if _, err := ReadInside(dir, "d/f", 0); err == nil || !strings.Contains(err.Error(), "more than") {
		t.Errorf("too long: %v", err)
	}
}
