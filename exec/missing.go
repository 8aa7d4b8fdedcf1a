package exec

import (
	"context"
	"path"

	"img/cache"
	"img/dag"
	"img/snapshot"
)

// Has reports whether a source of a step's files has a path. It is for hints: what cannot be read is not there.
func (x *Executor) Has(ctx context.Context, from dag.Source, in []cache.Output, p string) bool {
	src, release, err := x.source(ctx, from, in)
	if err != nil {
		return false
	}
	defer release()
	_, ok, err := lookup(src, path.Clean("./"+p))
	return err == nil && ok
}

// Beside returns, for a path that is not in a source, the longest part of it that is, and the names in that directory.
func (x *Executor) Beside(ctx context.Context, from dag.Source, in []cache.Output, p string) (dir string, names []string) {
	src, release, err := x.source(ctx, from, in)
	if err != nil {
		return "", nil
	}
	defer release()
	dir = "."
	for _, c := range split(path.Clean("/" + p)) {
		m, ok, err := lookup(src, path.Join(dir, c))
		if err != nil {
			return "", nil
		}
		if !ok || m.Type != snapshot.Dir {
			break
		}
		dir = path.Join(dir, c)
	}
	real, err := follow(src, dir)
	if err != nil {
		return "", nil
	}
	if names, err = src.names(real); err != nil {
		return "", nil
	}
	return dir, names
}
