package exec

import (
	"bufio"
	"context"
	"maps"
	"os"
	"path"
	"slices"

	"golang.org/x/sys/unix"

	"img/cache"
	"img/snapshot"
	"img/snapshot/layer"
)

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

type exportArgs struct {
	Name  snapshot.Name
	Epoch *int64
}

// WriteTar writes the whole file system that a vertex made as a tar with its intended owners.
func (x *Executor) WriteTar(ctx context.Context, out cache.Output, epoch *int64, to *os.File) error {
	n := snapshot.Name(out)
	if err := x.materialize(ctx, n); err != nil {
		return err
	}
	return x.call(ctx, "export", exportArgs{n, epoch}, nil, to)
}

func (w *world) export(ctx context.Context, a exportArgs, files []*os.File) (struct{}, error) {
	none := struct{}{}
	view, err := w.snaps.View(a.Name)
	if err != nil {
		return none, err
	}
	defer view.Close()
	at, release, err := w.snaps.Mount(ctx, a.Name)
	if err != nil {
		return none, err
	}
	defer release()
	dir, err := os.Open(at)
	if err != nil {
		return none, err
	}
	defer dir.Close()
	out := bufio.NewWriterSize(files[0], 256<<10)
	each := func(yield func(snapshot.Entry) error) error { return view.Walk(".", yield) }
	if err := layer.Write(ctx, out, each, dir, layer.WriteOptions{Epoch: a.Epoch, Root: true}); err != nil {
		return none, err
	}
	return none, out.Flush()
}

// removeArgs names what is to be deleted: snapshots, and cache mounts by the directory's name.
type removeArgs struct {
	Snapshots []snapshot.Name
	Caches    []string
}

// Remove deletes snapshots and cache mounts of the build's mapping, and what killed builds left unfinished. The files belong to mapped ids,
// so it is done inside.
func (x *Executor) Remove(ctx context.Context, snapshots []snapshot.Name, caches []string) error {
	return x.call(ctx, "remove", removeArgs{snapshots, caches}, nil)
}

func (w *world) remove(ctx context.Context, a removeArgs, _ []*os.File) (struct{}, error) {
	none := struct{}{}
	for _, n := range a.Snapshots {
		if ctx.Err() != nil {
			return none, context.Cause(ctx)
		}
		if err := w.snaps.Remove(n); err != nil {
			return none, err
		}
	}
	for _, c := range a.Caches {
		if err := w.removeCache(ctx, path.Base(c)); err != nil {
			return none, err
		}
	}
	w.snaps.Sweep()
	return none, nil
}

// removeCache deletes a cache mount's copies that no step uses.
func (w *world) removeCache(ctx context.Context, id string) error {
	base := path.Join("/state/mounts", w.setup.Map, id)
	entries, err := os.ReadDir(base)
	if err != nil {
		return err
	}
	busy := false
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		lock, err := os.OpenFile(path.Join(base, e.Name()+".lock"), os.O_RDWR|os.O_CREATE, 0o644)
		if err != nil {
			return err
		}
		ok, err := flock(ctx, lock, unix.LOCK_EX, false)
		if ok && err == nil {
			err = os.RemoveAll(path.Join(base, e.Name()))
		}
		busy = busy || !ok
		lock.Close()
		if err != nil {
			return err
		}
	}
	if busy {
		return nil
	}
	return os.RemoveAll(base)
}
