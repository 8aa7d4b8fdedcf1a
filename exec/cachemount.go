package exec

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"img/dag"
	"img/engine"
	"img/exec/inner"
	"img/exec/sandbox"
)

var _ engine.Acquirer = (*Executor)(nil)

// volume names the directory of a cache mount: a hash, so that an id never becomes a path. As BuildKit has it, what a cache begins with is
// part of what it is: what its from has, all of it, or the owner and mode that it is made with. The source is a path in it and no part of
// what it is: mounts of several sources share one volume.
//
// What from has is named by its digest; a plan of Key has it.
func (x *Executor) volume(op *dag.Run, i int) string {
	m := op.Mounts[i]
	text := m.ID
	if v, ok := x.plans.Load(mountID{op, i}); ok {
		text += "\x00from " + v.(*mountPlan).sum
	}
	if m.Mode != nil || m.UID != nil || m.GID != nil {
		text += fmt.Sprintf("\x00made %s %s %s", optional(m.Mode), optional(m.UID), optional(m.GID))
	}
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:16])
}

// A cacheWant is a cache that a step wants, on the wire.
type cacheWant struct {
	Volume, ID, Sharing string
}

// stricter is what two mounts of one cache in one step share it by: each of them can do what the other may.
func stricter(a, b string) string {
	for _, s := range []string{dag.SharingLocked, dag.SharingPrivate} {
		if a == s || b == s {
			return s
		}
	}
	return dag.SharingShared
}

// wants lists the caches of a step, sorted, so that two steps never wait for each other.
func (x *Executor) wants(op *dag.Run) []cacheWant {
	var out []cacheWant
	for i, m := range op.Mounts {
		if m.Type != dag.MountCache {
			continue
		}
		want := cacheWant{x.volume(op, i), m.ID, stricter(m.Sharing, "")}
		if n := slices.IndexFunc(out, func(w cacheWant) bool { return w.Volume == want.Volume }); n >= 0 {
			out[n].Sharing = stricter(out[n].Sharing, want.Sharing)
			continue
		}
		out = append(out, want)
	}
	slices.SortFunc(out, func(a, b cacheWant) int { return cmp.Or(cmp.Compare(a.ID, b.ID), cmp.Compare(a.Volume, b.Volume)) })
	return out
}

// Acquire implements engine.Acquirer: it locks the cache mounts of a step, for as long as the step has them. The inner process makes and
// locks the files, which belong to its ids; their descriptors, and so the locks, are held here.
func (x *Executor) Acquire(ctx context.Context, v *dag.Vertex, note func(string)) (release func(), err error) {
	op, ok := v.Op.(*dag.Run)
	if !ok {
		return nil, nil
	}
	wants := x.wants(op)
	if len(wants) == 0 {
		return nil, nil
	}
	reply, files, err := x.lockCaches(ctx, wants, false)
	if err == nil && reply.Busy != "" {
		note(fmt.Sprintf("waiting for the cache mount %q, which another step has locked", reply.Busy))
		reply, files, err = x.lockCaches(ctx, wants, true)
	}
	if err != nil {
		return nil, err
	}
	held := map[string]string{}
	for i, w := range wants {
		held[w.Volume] = reply.Paths[i]
	}
	x.held.Store(op, held)
	return func() {
		x.held.Delete(op)
		closeAll(files)
	}, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// cachePath is where the cache of a mount lies, in the inner process.
func (x *Executor) cachePath(op *dag.Run, i int) (string, error) {
	if held, ok := x.held.Load(op); ok {
		return held.(map[string]string)[x.volume(op, i)], nil
	}
	return "", errors.New("cache mounts were not acquired")
}

type lockArgs struct {
	Wants []cacheWant
	Wait  bool
}

// A lockReply has a path for each want, whose locks come as descriptors; or else Busy, the id of one that would have to be waited for.
type lockReply struct {
	Paths []string
	Busy  string
}

func (x *Executor) lockCaches(ctx context.Context, wants []cacheWant, wait bool) (reply lockReply, files []*os.File, err error) {
	files, err = x.callFiles(ctx, "lock", lockArgs{wants, wait}, &reply)
	if err == nil && reply.Busy == "" && (len(reply.Paths) != len(wants) || len(files) != len(wants)) {
		closeAll(files)
		err = fmt.Errorf("%d cache mounts came with %d paths and %d locks", len(wants), len(reply.Paths), len(files))
	}
	return reply, files, err
}

// lock is the inner process's side of lockCaches.
func (w *world) lock(ctx context.Context, raw []byte, _ []*os.File) (any, []*os.File, error) {
	var a lockArgs
	if err := inner.Unmarshal(raw, &a); err != nil {
		return nil, nil, err
	}
	var reply lockReply
	var files []*os.File
	for _, want := range a.Wants {
		at, f, err := w.openCache(ctx, want, a.Wait)
		if err != nil {
			closeAll(files)
			return nil, nil, wire(fmt.Errorf("cache mount %q: %w", want.ID, err))
		}
		if f == nil {
			closeAll(files)
			return lockReply{Busy: want.ID}, nil, nil
		}
		reply.Paths, files = append(reply.Paths, at), append(files, f)
	}
	return reply, files, nil
}

// openCache locks a cache's directory, <state>/exec/mounts/<map>/<volume>/<n>, which need not be there yet. Shared caches are locked
// shared, so that pruning (which locks exclusively) never takes one away; private ones use the first copy that is free. No file is
// returned when wait is false and somebody else has the lock.
func (w *world) openCache(ctx context.Context, want cacheWant, wait bool) (string, *os.File, error) {
	base := path.Join("/state/mounts", w.setup.Map, want.Volume)
	if err := os.MkdirAll(base, 0o755); err != nil {
		return "", nil, err
	}
	if err := os.WriteFile(path.Join(base, "id"), []byte(want.ID), 0o644); err != nil {
		return "", nil, err
	}
	how := unix.LOCK_EX
	if want.Sharing == dag.SharingShared {
		how = unix.LOCK_SH
	}
	for n := 0; ; n++ {
		dir := path.Join(base, fmt.Sprint(n))
		f, err := lockFile(ctx, dir+".lock", how, wait && want.Sharing != dag.SharingPrivate)
		if err != nil || f != nil || want.Sharing != dag.SharingPrivate {
			return dir, f, err
		}
		// a private cache that is in use: the next copy
	}
}

// lockFile locks a file, which it makes; nil if it is locked by another and wait is false. Who pruned the cache meanwhile has removed
// the file that was waited for.
func lockFile(ctx context.Context, name string, how int, wait bool) (*os.File, error) {
	for {
		f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o644)
		if err != nil {
			return nil, err
		}
		ok, err := flock(ctx, f, how, wait)
		if err != nil || !ok {
			f.Close()
			return nil, err
		}
		mine, err1 := f.Stat()
		named, err2 := os.Stat(name)
		if err1 == nil && err2 == nil && os.SameFile(mine, named) {
			return f, nil
		}
		f.Close()
		if err := os.MkdirAll(path.Dir(name), 0o755); err != nil {
			return nil, err
		}
	}
}

// flock takes a lock, waiting for it if asked, until ctx ends.
func flock(ctx context.Context, f *os.File, how int, wait bool) (bool, error) {
	for pause := time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
		err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
		if err == nil {
			return true, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return false, fmt.Errorf("lock %s: %w", filepath.Base(f.Name()), err)
		}
		if !wait {
			return false, nil
		}
		select {
		case <-ctx.Done():
			return false, context.Cause(ctx)
		case <-time.After(pause):
		}
	}
}

// cache shows a cache directory, made on first use, or what is at a path in it.
func (s *step) cache(ctx context.Context, m mountArgs) error {
	if err := s.makeCache(ctx, m); err != nil {
		return err
	}
	at, isDir, err := s.selected(m)
	if err != nil {
		return err
	}
	if err := s.point(m.M.Target, isDir, at); err != nil {
		return err
	}
	s.mounts = append(s.mounts, sandbox.Mount{Type: "bind", Source: at, Target: m.M.Target, ReadOnly: m.M.ReadOnly, NoDev: true})
	return nil
}

// selected returns where a cache's source is, and whether that is a directory. Other steps may change the cache meanwhile: what was found
// is held by descriptor. Links lead to where they do with the cache as the root directory, never out of it.
func (s *step) selected(m mountArgs) (at string, isDir bool, err error) {
	if m.M.Source == "/" {
		return m.Cache, true, nil
	}
	at, isDir, err = s.hold(m.Cache, m.M.Source, unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV,
	})
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return "", false, fmt.Errorf("source %q is not in the cache %q: %w", m.M.Source, m.M.ID, errors.Unwrap(err))
	}
	return at, isDir, err
}

// makeCache makes a cache directory by rename, so that one that was being filled when a build died is not taken for whole. One step makes
// it, others that share it wait: a directory that is in use must not be replaced.
func (s *step) makeCache(ctx context.Context, m mountArgs) error {
	if _, err := os.Lstat(m.Cache); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	making, err := lockFile(ctx, m.Cache+".making", unix.LOCK_EX, true)
	if err != nil {
		return err
	}
	defer making.Close()
	if _, err := os.Lstat(m.Cache); err == nil {
		return nil
	}
	tmp := m.Cache + ".tmp"
	if err := os.RemoveAll(tmp); err != nil {
		return err
	}
	if err := s.newCache(ctx, m, tmp); err != nil {
		return errors.Join(err, os.RemoveAll(tmp))
	}
	return os.Rename(tmp, m.Cache)
}

// newCache makes what a cache begins with: its source, or an empty directory with its owner and mode.
func (s *step) newCache(ctx context.Context, m mountArgs, at string) error {
	if err := os.Mkdir(at, 0o755); err != nil {
		return err
	}
	if m.From.Context != nil || m.From.Name != "" {
		_, err := s.copyFrom(ctx, m, at)
		return err
	}
	uid, gid := s.owner(m)
	// Owner before mode: chown clears the set-id bits.
	if err := os.Chown(at, uid, gid); err != nil {
		return err
	}
	return unix.Chmod(at, or(m.M.Mode, 0o755)&0o7777)
}
