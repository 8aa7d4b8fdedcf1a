package exec

import (
	"bufio"
	"context"
	"io"
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
	Parts []exportPart
	Epoch *int64
}

type exportPart struct {
	Name snapshot.Name
	Dir  string
}

// A Part is a whole file system of a tar.
type Part struct {
	Files cache.Output
	// Dir is the directory it is put into, one name; "" is the root.
	Dir string
}

// WriteTar writes the whole file systems that vertices made as one tar with their intended owners.
func (x *Executor) WriteTar(ctx context.Context, parts []Part, epoch *int64, to *os.File) error {
	a := exportArgs{Epoch: epoch}
	for _, p := range parts {
		n := snapshot.Name(p.Files)
		if err := x.materialize(ctx, n); err != nil {
			return err
		}
		a.Parts = append(a.Parts, exportPart{n, p.Dir})
	}
	return x.call(ctx, "export", a, nil, to)
}

func (w *world) export(ctx context.Context, a exportArgs, files []*os.File) (struct{}, error) {
	out := bufio.NewWriterSize(files[0], 256<<10)
	for i, p := range a.Parts {
		o := layer.WriteOptions{Epoch: a.Epoch, Root: true, Below: p.Dir, More: i+1 < len(a.Parts)}
		if err := w.exportPart(ctx, out, p.Name, o); err != nil {
			return struct{}{}, err
		}
	}
	return struct{}{}, out.Flush()
}

func (w *world) exportPart(ctx context.Context, out io.Writer, n snapshot.Name, o layer.WriteOptions) error {
	view, err := w.snaps.View(n)
	if err != nil {
		return err
	}
	defer view.Close()
	at, release, err := w.snaps.Mount(ctx, n)
	if err != nil {
		return err
	}
	defer release()
	dir, err := os.Open(at)
	if err != nil {
		return err
	}
	defer dir.Close()
	each := func(yield func(snapshot.Entry) error) error { return view.Walk(".", yield) }
	return layer.Write(ctx, out, each, dir, o)
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
