package contenthash

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// A tester digests one file and counts how often it is opened.
type tester struct {
	t     testing.TB
	index string
	file  string
	opens int
}

func newTester(t testing.TB) *tester {
	dir := t.TempDir()
	return &tester{t: t, index: filepath.Join(dir, "files", "index"), file: filepath.Join(dir, "file")}
}

func (w *tester) check(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// write puts content into the file, and lets its times grow older than any clock's tick.
func (w *tester) write(content string) {
	w.t.Helper()
	w.check(os.WriteFile(w.file, []byte(content), 0o644))
	w.age()
}

func (w *tester) age() { time.Sleep(50 * time.Millisecond) }

func (w *tester) open() (*os.File, error) {
	w.opens++
	return os.Open(w.file)
}

func (w *tester) digest(x *Index) string {
	w.t.Helper()
	st, err := os.Lstat(w.file)
	w.check(err)
	d, err := x.Digest(context.Background(), "file", st, w.open)
	w.check(err)
	return d
}

// build opens the index, digests the file and saves, as a build does; it fails unless the digest is the content's
// and the file was opened just as often as said.
func (w *tester) build(content string, opens int) {
	w.t.Helper()
	x, err := Open(w.index)
	w.check(err)
	w.opens = 0
	if got, want := w.digest(x), fmt.Sprintf("%x", sha256.Sum256([]byte(content))); got != want {
		w.t.Errorf("digest %s, want that of %q", got, content)
	}
	if w.opens != opens {
		w.t.Errorf("%q: file opened %d times, want %d", content, w.opens, opens)
	}
	w.check(x.Save())
}

func TestRemembers(t *testing.T) {
	w := newTester(t)
	w.write("one")
	w.build("one", 1)
	before, err := os.Stat(w.index)
	w.check(err)
	w.build("one", 0)
	if after, err := os.Stat(w.index); err != nil || !os.SameFile(before, after) {
		t.Errorf("unchanged index is written again, %v", err)
	}
	w.write("three")
	w.build("three", 1)
	w.build("three", 0)
}

// Same size, same mtime: the ctime tells.
func TestMtimeSetBack(t *testing.T) {
	w := newTester(t)
	w.write("one")
	w.build("one", 1)
	st, err := os.Stat(w.file)
	w.check(err)
	w.write("two")
	w.check(os.Chtimes(w.file, st.ModTime(), st.ModTime()))
	w.age()
	w.build("two", 1)
	w.build("two", 0)
}

// Another file of the same size and mtime at the same path.
func TestReplaced(t *testing.T) {
	w := newTester(t)
	w.write("one")
	w.build("one", 1)
	st, err := os.Stat(w.file)
	w.check(err)
	other := w.file + ".new"
	w.check(os.WriteFile(other, []byte("two"), 0o644))
	w.check(os.Chtimes(other, st.ModTime(), st.ModTime()))
	w.check(os.Rename(other, w.file))
	w.age()
	w.build("two", 1)
}

// A file that was just written, or lies in the future, is not remembered.
func TestRacy(t *testing.T) {
	w := newTester(t)
	w.check(os.WriteFile(w.file, []byte("one"), 0o644))
	w.build("one", 1)
	w.check(os.WriteFile(w.file, []byte("two"), 0o644))
	w.build("two", 1)
	w.age()
	w.build("two", 1)
	w.build("two", 0)
	future := time.Now().Add(time.Hour)
	w.check(os.Chtimes(w.file, future, future))
	w.age()
	w.build("two", 1)
	w.build("two", 1)
}

func TestOlder(t *testing.T) {
	read := time.Unix(1000, 500_000_000)
	ago := func(d time.Duration) int64 { return read.Add(-d).UnixNano() }
	for _, c := range []struct {
		mtime, ctime int64
		want         bool
	}{
		{ago(time.Hour), ago(time.Minute), true},
		{ago(time.Hour), ago(30 * time.Millisecond), true},
		{ago(time.Hour), ago(10 * time.Millisecond), false},
		{ago(10 * time.Millisecond), ago(time.Hour), false},
		{ago(time.Hour), ago(-time.Hour), false},
		{ago(time.Hour), ago(1500 * time.Millisecond), false}, // whole seconds: a coarse clock
		{ago(time.Hour), ago(2500 * time.Millisecond), true},
	} {
		if got := (stat{mtime: c.mtime, ctime: c.ctime}).older(read); got != c.want {
			t.Errorf("%+v: %v", c, got)
		}
	}
}

func TestChangedMeanwhile(t *testing.T) {
	w := newTester(t)
	for name, change := range map[string]func(){
		"grows":    func() { w.check(os.WriteFile(w.file, []byte("longer"), 0o644)) },
		"replaced": func() { w.check(os.Rename(w.file+".new", w.file)) },
		"touched":  func() { w.check(os.Chtimes(w.file, time.Now(), time.Now())) },
		"a directory": func() {
			w.check(os.Remove(w.file))
			w.check(os.Mkdir(w.file, 0o755))
		},
	} {
		w.check(os.RemoveAll(w.file))
		w.check(os.WriteFile(w.file+".new", []byte("one"), 0o644))
		w.write("one")
		st, err := os.Lstat(w.file)
		w.check(err)
		x, err := Open(w.index)
		w.check(err)
		_, err = x.Digest(context.Background(), "file", st, func() (*os.File, error) { change(); return w.open() })
		if !errors.Is(err, ErrChanged) {
			t.Errorf("%s: error %v", name, err)
		}
	}
}

// The content changes between the two looks at the open file.
func TestChangedWhileRead(t *testing.T) {
	w := newTester(t)
	w.write("one")
	f, err := os.Open(w.file)
	w.check(err)
	defer f.Close()
	st, err := f.Stat()
	w.check(err)
	was, _ := statOf(st)
	was.size++
	if _, err := read(context.Background(), f, was); !errors.Is(err, ErrChanged) {
		t.Errorf("error %v", err)
	}
}

func TestErrors(t *testing.T) {
	w := newTester(t)
	x, err := Open(w.index)
	w.check(err)
	dir, err := os.Lstat(t.TempDir())
	w.check(err)
	if _, err := x.Digest(context.Background(), "dir", dir, w.open); err == nil || w.opens > 0 {
		t.Errorf("digest of a directory: %v", err)
	}
	w.write("one")
	st, err := os.Lstat(w.file)
	w.check(err)
	gone := errors.New("gone")
	if _, err := x.Digest(context.Background(), "file", st, func() (*os.File, error) { return nil, gone }); err != gone {
		t.Errorf("error %v", err)
	}
}

// Any damage makes the index empty; the next Save heals it.
func TestDamagedIndex(t *testing.T) {
	w := newTester(t)
	w.write("one")
	w.build("one", 1)
	data, err := os.ReadFile(w.index)
	w.check(err)
	for n := range data {
		bad := bytes.Clone(data)
		bad[n] ^= 1
		for _, b := range [][]byte{bad, data[:n]} {
			if _, err := decode(b); err == nil {
				t.Errorf("index of %d bytes, damaged at %d, is read", len(b), n)
			}
		}
	}
	w.check(os.WriteFile(w.index, data[:len(data)-1], 0o644))
	w.build("one", 1)
	w.build("one", 0)
}

// Many files: saved sorted, found again; concurrently.
func TestMany(t *testing.T) {
	w := newTester(t)
	w.write("one")
	st, err := os.Lstat(w.file)
	w.check(err)
	const n = 500
	for _, c := range []struct{ from, to, want int }{{0, n, n}, {n, n + 100, n + 100}, {0, 10, n + 100}} {
		x, err := Open(w.index)
		w.check(err)
		var wg sync.WaitGroup
		for g := range 4 {
			wg.Go(func() {
				for i := c.from + g; i < c.to; i += 4 {
					if _, err := x.Digest(t.Context(), fmt.Sprint(i), st, func() (*os.File, error) { return os.Open(w.file) }); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		w.check(x.Save())
		if got := w.entries(); got != c.want {
			t.Errorf("%+v: %d entries", c, got)
		}
	}
}

// entries counts what the index holds.
func (w *tester) entries() int {
	w.t.Helper()
	data, err := os.ReadFile(w.index)
	w.check(err)
	tab, err := decode(data)
	w.check(err)
	return tab.len()
}

// A checkout makes every file new: what no build has used for long is forgotten, what another target uses now and then is not.
func TestForgets(t *testing.T) {
	const files, checkouts = 3000, 40
	w := newTester(t)
	use := func(x *Index, name string, n int) (known int) {
		for i := range n {
			k := stat{}.id(fmt.Sprint(name, i))
			if _, ok := x.lookup(k); ok {
				known++
				continue
			}
			x.remember(k, digest{})
		}
		return known
	}
	for round := range checkouts {
		x, err := Open(w.index)
		w.check(err)
		use(x, fmt.Sprint("checkout ", round, " "), files)
		if known := use(x, "other target ", files*(1-min(round%10, 1))); round > 0 && round%10 == 0 && known != files {
			t.Errorf("round %d: %d of the other target's files are known, want %d", round, known, files)
		}
		w.check(x.Save())
		if got := w.entries(); got > files*(maxAge+2) {
			t.Errorf("round %d: %d entries", round, got)
		}
	}
	small := newTester(t)
	for round := range checkouts { // few are never forgotten
		x, err := Open(small.index)
		w.check(err)
		use(x, fmt.Sprint(round), 10)
		w.check(x.Save())
	}
	if got := small.entries(); got != 10*checkouts {
		t.Errorf("%d entries", got)
	}
}

// A huge file ends with the build.
func TestDigestEndsWithContext(t *testing.T) {
	w := newTester(t)
	w.write("")
	w.check(os.Truncate(w.file, 1<<40)) // sparse: minutes of reading
	st, err := os.Lstat(w.file)
	w.check(err)
	stopped := errors.New("stopped")
	ctx, cancel := context.WithCancelCause(t.Context())
	x, err := Open(w.index)
	w.check(err)
	_, err = x.Digest(ctx, "file", st, func() (*os.File, error) { cancel(stopped); return w.open() })
	if !errors.Is(err, stopped) {
		t.Errorf("%v", err)
	}
}

func FuzzIndex(f *testing.F) {
	f.Add([]byte(nil))
	f.Add(encode(nil, nil, nil))
	f.Add(encode(nil, nil, map[id]digest{{1}: {2}, {3}: {4}}))
	f.Fuzz(func(t *testing.T, data []byte) {
		sum := sha256.Sum256(data)
		for _, d := range [][]byte{data, append(bytes.Clone(data), sum[:]...)} { // the second gets past the sum
			tab, err := decode(d)
			if err != nil {
				continue
			}
			for i := range tab.len() {
				if at, ok := tab.find(id(tab.id(i))); !ok || at != i {
					t.Fatalf("entry %d is found at %d, %v", i, at, ok)
				}
			}
			if again := encode(tab, func(i int) (byte, bool) { return tab.age(i), true }, nil); !bytes.Equal(again, d) {
				t.Fatal("written again it differs")
			}
		}
	})
}

func BenchmarkUnchanged1000(b *testing.B) {
	w := newTester(b)
	w.write("one")
	st, err := os.Lstat(w.file)
	w.check(err)
	round := func() {
		x, err := Open(w.index)
		w.check(err)
		for i := range 1000 {
			if _, err := x.Digest(context.Background(), fmt.Sprint(i), st, w.open); err != nil {
				b.Fatal(err)
			}
		}
		w.check(x.Save())
	}
	round()
	for b.Loop() {
		round()
	}
}
