package exec

import (
	"context"
	"errors"
	"fmt"
	"os"

	"img/cache"
	"img/dag"
	"img/snapshot"
)

func mergeKey(h *cache.Hash, op *dag.Merge, in []cache.Output) {
	h.Line("base", string(name(op.Base, in)))
	h.Line("changes", string(name(op.Changes, in)))
}

type mergeArgs struct{ Base, Changes snapshot.Name }

// merge is the second half of COPY --link: what the first half made of nothing is laid over the base.
func (x *Executor) merge(ctx context.Context, op *dag.Merge, in []cache.Output) (cache.Output, []cache.Warning, error) {
	a := mergeArgs{name(op.Base, in), name(op.Changes, in)}
	if err := x.materialize(ctx, a.Base); err != nil {
		return "", nil, err
	}
	var r written
	err := x.call(ctx, "merge", a, &r)
	return cache.Output(r.Name), r.Warnings, err
}

func (w *world) merge(ctx context.Context, a mergeArgs, _ []*os.File) (written, error) {
	n, err := w.snaps.Lay(ctx, a.Changes, a.Base)
	if err != nil {
		return written{}, err
	}
	warnings, err := w.replacedLink(a)
	return written{n, warnings}, err
}

// replacedLink looks for a link of the base where the changes have a directory: COPY --link to "/lib/x" turns /lib, a link to usr/lib, into
// a directory that holds x alone.
func (w *world) replacedLink(a mergeArgs) (out []cache.Warning, err error) {
	base, err := w.snaps.View(a.Base)
	if err != nil {
		return nil, err
	}
	defer base.Close()
	changes, err := w.snaps.Tree(a.Changes)
	if err != nil {
		return nil, err
	}
	defer changes.Close()
	err = changes.Each(func(e snapshot.Entry) error {
		if e.Type != snapshot.Dir {
			return nil
		}
		old, had, err := base.Lookup(e.Path)
		if err != nil || !had || old.Type != snapshot.Symlink {
			return err
		}
		out = append(out, cache.Warning{Rule: ruleLinkReplacesLink,
			Text: fmt.Sprintf("--link does not follow the symbolic link \"/%s\" of the image: the copy replaces it", e.Path)})
		return errEnough
	})
	if errors.Is(err, errEnough) {
		err = nil
	}
	return out, err
}

// errEnough ends a walk that has found what it was for.
var errEnough = errors.New("enough")
