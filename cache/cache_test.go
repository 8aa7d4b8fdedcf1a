package cache

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func key(text string) (Key, string) {
	var h Hash
	h.Line("test", text)
	return h.Key(), h.Text()
}

// sample is a record with something awkward in every field.
func sample(text string) Record {
	k, lines := key(text)
	return Record{
		Key:      k,
		Output:   "sha256:1\n\"2\"\xff",
		Text:     lines + "\n\nsum of no digest",
		Step:     "build linux/amd64 RUN a\\\nb",
		Cost:     1500 * time.Millisecond,
		Tier:     2,
		Boot:     "5a9f6a2e",
		Made:     time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC),
		Warnings: []Warning{{"Rule", "a \"text\"\nwith\xff"}, {}},
	}
}

func open(t testing.TB, dir string) *Store {
	t.Helper()
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func put(t testing.TB, s *Store, rs ...Record) {
	t.Helper()
	for _, r := range rs {
		if err := s.Put(r); err != nil {
			t.Fatal(err)
		}
	}
}

func TestRoundTrip(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "cache", "keys"))
	long := sample("long")
	long.Text = strings.Repeat("a line\n", 100_000) // larger than a read buffer
	k, _ := key("zero")
	for _, r := range []Record{sample("a"), long, {Key: k}, {Key: k, Text: "replaced", Cost: -1}} {
		put(t, s, r)
		if got, ok := s.Get(r.Key); !ok || !reflect.DeepEqual(got, r) {
			t.Errorf("got %v %+.200v, want %+.200v", ok, got, r)
		}
	}
	if err := s.Remove(k); err != nil {
		t.Error(err)
	}
	if err := s.Remove(k); err != nil {
		t.Errorf("second Remove: %v", err)
	}
	if _, ok := s.Get(k); ok {
		t.Error("removed key is there")
	}
}

// Keys become file names: nothing but a digest may.
func TestStrangeKeys(t *testing.T) {
	s := open(t, t.TempDir())
	for _, k := range []Key{"", "a", "../../../../etc/passwd", Key(strings.Repeat("A", 64)), Key(strings.Repeat("/", 64))} {
		if err := s.Put(Record{Key: k}); err == nil {
			t.Errorf("Put takes %q", k)
		}
		if _, err := s.Lock(t.Context(), k, nil); err == nil {
			t.Errorf("Lock takes %q", k)
		}
		if _, ok := s.Get(k); ok {
			t.Errorf("Get finds %q", k)
		}
		if err := s.Remove(k); err != nil {
			t.Errorf("Remove(%q): %v", k, err)
		}
	}
}

// A record cut anywhere, or with any bit turned, is a miss.
func TestDamage(t *testing.T) {
	data := encode(sample("a"))
	for n := range data {
		if _, err := decode(data[:n]); err == nil {
			t.Errorf("record cut after %d of %d bytes is read", n, len(data))
		}
		for bit := range 8 {
			bad := bytes.Clone(data)
			bad[n] ^= 1 << bit
			if r, err := decode(bad); err == nil {
				t.Errorf("record with bit %d of byte %d turned is read: %+v", bit, n, r)
			}
		}
	}
	if _, err := decode(append(data, '\n')); err == nil {
		t.Error("longer record is read")
	}
}

func TestForeignFiles(t *testing.T) {
	s := open(t, t.TempDir())
	a, b := sample("a"), sample("b")
	put(t, s, a, b)
	for name, data := range map[string][]byte{
		"of another key": encode(b),
		"empty":          nil,
		"newer":          bytes.Replace(encode(a), []byte("img record 1"), []byte("img record 2"), 1),
		"zeros":          make([]byte, 300), // what some file systems leave after a power loss
	} {
		if err := os.WriteFile(s.path(a.Key), data, 0o644); err != nil {
			t.Fatal(err)
		}
		if _, ok := s.Get(a.Key); ok {
			t.Errorf("a file that is %s is a hit", name)
		}
	}
	if err := os.Remove(s.path(a.Key)); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(s.path(a.Key), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, ok := s.Get(a.Key); ok {
		t.Error("a directory is a hit")
	}
}

func FuzzRecord(f *testing.F) {
	f.Add(encode(sample("a")))
	f.Add(encode(Record{}))
	f.Add([]byte("img record 1\n\n"))
	f.Add([]byte("img record 2\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := decode(data)
		if err != nil {
			// Give the head a chance: most inputs fall at the sum already.
			r, err = decode(encode(Record{Key: sample("a").Key, Text: string(data), Step: string(data), Output: Output(data),
				Warnings: []Warning{{string(data), string(data)}}}))
			if err != nil || r.Text != string(data) || r.Step != string(data) || string(r.Output) != string(data) || r.Warnings[0].Text != string(data) {
				t.Fatalf("%+v, %v", r, err)
			}
			return
		}
		if again, err := decode(encode(r)); err != nil || !again.Made.Equal(r.Made) {
			t.Fatalf("%+v becomes %+v, %v", r, again, err)
		}
	})
}

func TestConcurrentPutGet(t *testing.T) {
	dir := t.TempDir()
	var wg sync.WaitGroup
	for i := range 8 {
		s := open(t, dir)
		wg.Go(func() {
			for j := range 50 {
				r := sample(fmt.Sprint(j % 5))
				r.Tier = i
				if err := s.Put(r); err != nil {
					t.Error(err)
				}
				if got, ok := s.Get(r.Key); !ok || got.Text != r.Text {
					t.Errorf("read %v %+v", ok, got)
				}
			}
		})
	}
	wg.Wait()
	left, err := filepath.Glob(filepath.Join(dir, "*", ".tmp-*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestEachNearestPrune(t *testing.T) {
	s := open(t, t.TempDir())
	old, recent, now, other := sample("old"), sample("recent"), sample("now"), sample("other")
	old.Made, recent.Made, now.Made = old.Made.Add(1), old.Made.Add(2), old.Made.Add(3)
	other.Made, other.Step = old.Made.Add(4), "another step"
	put(t, s, old, recent, now, other)

	seen := 0
	if err := s.Each(func(Record) bool { seen++; return seen < 3 }); err != nil || seen != 3 {
		t.Errorf("Each went on for %d records, %v", seen, err)
	}
	if got, ok := s.Nearest(now.Step, now.Text); !ok || !reflect.DeepEqual(got, recent) {
		t.Errorf("nearest is %v %q", ok, got.Text)
	}
	if got, ok := s.Nearest("unknown step", ""); ok {
		t.Errorf("nearest of an unknown step is %+v", got)
	}

	damaged, newer := sample("damaged"), sample("newer")
	put(t, s, damaged, newer)
	if err := os.WriteFile(s.path(damaged.Key), []byte("?"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(s.path(newer.Key), []byte("img record 99\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	dead, held := filepath.Join(s.dir, "locks", string(old.Key)), filepath.Join(s.dir, "locks", string(now.Key))
	unlock, err := s.Lock(t.Context(), now.Key, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	if err := os.WriteFile(dead, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	removed, err := s.Prune(func(r Record) bool { return r.Key != old.Key })
	if err != nil || removed != 2 {
		t.Errorf("pruned %d, %v", removed, err)
	}
	for path, want := range map[string]bool{
		s.path(old.Key): false, s.path(damaged.Key): false, s.path(newer.Key): true, s.path(recent.Key): true,
		dead: false, held: true,
	} {
		if _, err := os.Lstat(path); (err == nil) != want {
			t.Errorf("after Prune %s: %v", path, err)
		}
	}
}

// Each Lock opens its own file, so goroutines stand for processes.
func TestLockExcludes(t *testing.T) {
	dir := t.TempDir()
	k, _ := key("a")
	var inside, total atomic.Int32
	var wg sync.WaitGroup
	for range 8 {
		s := open(t, dir)
		wg.Go(func() {
			for range 5 {
				unlock, err := s.Lock(t.Context(), k, nil)
				if err != nil {
					t.Error(err)
					return
				}
				if n := inside.Add(1); n != 1 {
					t.Errorf("%d hold the lock", n)
				}
				total.Add(1)
				inside.Add(-1)
				unlock()
				unlock()
			}
		})
	}
	wg.Wait()
	if total.Load() != 40 {
		t.Errorf("locked %d times", total.Load())
	}
}

func TestLockCancel(t *testing.T) {
	s := open(t, t.TempDir())
	k, _ := key("a")
	before := descriptors(t)
	unlock, err := s.Lock(t.Context(), k, func() { t.Error("waits for nobody") })
	if err != nil {
		t.Fatal(err)
	}
	stop := errors.New("interrupted")
	ctx, cancel := context.WithCancelCause(t.Context())
	told := 0
	if _, err := s.Lock(ctx, k, func() { told++; cancel(stop) }); err != stop || told != 1 {
		t.Errorf("error %v, told %d times", err, told)
	}
	unlock()
	if after := descriptors(t); !slices.Equal(before, after) {
		t.Errorf("descriptors before %v, after %v", before, after)
	}
	if other, err := s.Lock(ctx, k, nil); err != nil { // free: ctx does not matter
		t.Error(err)
	} else {
		other()
	}
}

// descriptors returns what the process's descriptors below the test's directories point to.
func descriptors(t *testing.T) (names []string) {
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		if name, err := os.Readlink("/proc/self/fd/" + fd.Name()); err == nil && strings.Contains(name, "locks") {
			names = append(names, name)
		}
	}
	return names
}

// The holder removes the file; who had opened it before must not take the dead file for the lock.
func TestLockFileReplaced(t *testing.T) {
	s := open(t, t.TempDir())
	k, _ := key("a")
	path := filepath.Join(s.dir, "locks", string(k))
	f, err := tryLock(path)
	if err != nil || f == nil {
		t.Fatal(f, err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if isAt(f, path) {
		t.Error("removed file is at its path")
	}
	g, err := tryLock(path)
	if err != nil || g == nil {
		t.Fatal(g, err)
	}
	if isAt(f, path) || !isAt(g, path) {
		t.Error("old file is taken for the new one")
	}
	f.Close()
	removeLock(g)
}
