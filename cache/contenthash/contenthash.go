// Package contenthash computes digests of files and remembers them by stat, so that an unchanged directory costs
// stats only.
//
// A digest is remembered by (path, device, inode, size, mtime, ctime). A file whose mtime or ctime was not older
// than the moment it was read is not remembered: it could change again within the same tick of the file system's
// clock and keep its stat (git's racy-clean rule, gitformat-index(5)). It knows no Dockerfile rule: what is walked
// is the caller's business.
package contenthash

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"img/cache/atomicfile"
)

// ErrChanged says that a file changed between the caller's stat and the end of reading it.
var ErrChanged = errors.New("changed while building")

// An Index is the remembered digests of one context: <state>/cache/files/<context>. Safe for concurrent use.
type Index struct {
	path string
	load func() table // the table at path, read at first use

	mu    sync.Mutex
	used  []bool // by position in the table
	found map[id]digest
}

// Open uses the index at path; a missing or damaged one is empty. Nothing is read before the first Digest.
func Open(path string) (*Index, error) {
	x := &Index{path: path, found: map[id]digest{}}
	x.load = sync.OnceValue(x.read)
	return x, nil
}

// read loads the table. One that cannot be read costs time, never the build.
func (x *Index) read() table {
	data, err := os.ReadFile(x.path)
	if err != nil {
		return nil
	}
	t, _ := decode(data)
	x.used = make([]bool, t.len())
	return t
}

// Digest returns the SHA-256, in hex, of a regular file's content: remembered when st matches, else by reading
// what open returns. st must come from the same file: it is compared with fstat before and after reading, and a file
// that changed meanwhile gives ErrChanged. Digest closes what open returns.
// It ends with ctx, whose cause is then the error.
func (x *Index) Digest(ctx context.Context, path string, st os.FileInfo, open func() (*os.File, error)) (string, error) {
	was, ok := statOf(st)
	if !ok {
		return "", fmt.Errorf("digest %s: not a regular file of this system", path)
	}
	k := was.id(path)
	if d, ok := x.lookup(k); ok {
		return hex.EncodeToString(d[:]), nil
	}
	f, err := open()
	if err != nil {
		return "", err
	}
	defer f.Close()
	begin := time.Now()
	d, err := read(ctx, f, was)
	if err != nil {
		return "", fmt.Errorf("digest %s: %w", path, err)
	}
	if was.older(begin) {
		x.remember(k, d)
	}
	return hex.EncodeToString(d[:]), nil
}

func (x *Index) lookup(k id) (digest, bool) {
	t := x.load()
	x.mu.Lock()
	defer x.mu.Unlock()
	if i, ok := t.find(k); ok {
		x.used[i] = true
		return t.digest(i), true
	}
	d, ok := x.found[k]
	return d, ok
}

func (x *Index) remember(k id, d digest) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.found[k] = d
}

// An index forgets what maxAge saves in a row did not use, once there are more than spare unused entries: checkouts make every file
// new, and builds of several targets use each their part of a context.
const (
	maxAge = 16
	spare  = 10_000
)

// Save writes the index if something was found that it did not hold. Of two processes that save one index the later wins; what the
// other found is then found again.
func (x *Index) Save() error {
	x.mu.Lock()
	defer x.mu.Unlock()
	if len(x.found) == 0 {
		return nil
	}
	if err := atomicfile.MkdirAll(filepath.Dir(x.path)); err != nil {
		return fmt.Errorf("save file digests: %w", err)
	}
	if err := atomicfile.Write(x.path, encode(x.load(), x.aging(), x.found), atomicfile.Options{}); err != nil {
		return fmt.Errorf("save file digests: %w", err)
	}
	return nil
}

// aging says for each entry of the table how many saves have not used it, and whether it is kept.
func (x *Index) aging() func(i int) (age byte, keep bool) {
	t := x.load()
	unused := 0
	for _, used := range x.used {
		if !used {
			unused++
		}
	}
	return func(i int) (byte, bool) {
		if x.used[i] {
			return 0, true
		}
		age := min(t.age(i)+1, maxAge)
		return age, age < maxAge || unused <= spare
	}
}

// A stat is what a file's digest is remembered by. Times are in nanoseconds since 1970.
type stat struct {
	dev, ino     uint64
	size         int64
	mtime, ctime int64
}

func statOf(fi os.FileInfo) (stat, bool) {
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok || !fi.Mode().IsRegular() {
		return stat{}, false
	}
	return stat{uint64(st.Dev), st.Ino, st.Size, st.Mtim.Nano(), st.Ctim.Nano()}, true
}

// older reports whether the file was last changed so long before t that a change after t shows in its times.
func (s stat) older(t time.Time) bool {
	tick := 20 * time.Millisecond // the kernel's clock for time stamps: at most 10 ms, CONFIG_HZ=100
	if s.ctime%int64(time.Second) == 0 {
		tick = 2 * time.Second // perhaps a file system that counts in whole seconds (ext3), or in two (FAT)
	}
	return max(s.mtime, s.ctime) < t.Add(-tick).UnixNano()
}

// buffers are large enough that read(2) costs nothing beside hashing.
var buffers = sync.Pool{New: func() any { return new([128 << 10]byte) }}

// read hashes a file that must be in state was before and after.
func read(ctx context.Context, f *os.File, was stat) (digest, error) {
	if err := unchanged(f, was); err != nil {
		return digest{}, err
	}
	h := sha256.New()
	n, err := copyAll(ctx, h, f)
	if err != nil {
		return digest{}, err
	}
	if n != was.size {
		return digest{}, ErrChanged
	}
	if err := unchanged(f, was); err != nil {
		return digest{}, err
	}
	return digest(h.Sum(nil)), nil
}

func unchanged(f *os.File, was stat) error {
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	if now, ok := statOf(fi); !ok || now != was {
		return ErrChanged
	}
	return nil
}

// copyAll is io.CopyBuffer without the methods by which os.File would bring a buffer of its own.
func copyAll(ctx context.Context, h hash.Hash, f *os.File) (n int64, err error) {
	buf := buffers.Get().(*[128 << 10]byte)
	defer buffers.Put(buf)
	for {
		if ctx.Err() != nil {
			return n, context.Cause(ctx)
		}
		m, err := f.Read(buf[:])
		h.Write(buf[:m])
		n += int64(m)
		if err == io.EOF {
			return n, nil
		}
		if err != nil {
			return n, err
		}
	}
}
