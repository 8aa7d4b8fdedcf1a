package exec

import (
	"context"
	"os"

	"img/cache"
	"img/dag"
	"img/snapshot"
)

func mkdirKey(h *cache.Hash, op *dag.Mkdir, in []cache.Output) {
	h.Line("base", string(name(op.Base, in)))
	h.Line("path", op.Path)
	h.Line("user", op.User)
}

type mkdirArgs struct {
	Op   *dag.Mkdir
	Base snapshot.Name
}

func (x *Executor) mkdir(ctx context.Context, op *dag.Mkdir, in []cache.Output) (cache.Output, []cache.Warning, error) {
	base := name(op.Base, in)
	if err := x.materialize(ctx, base); err != nil {
		return "", nil, err
	}
	var r written
	err := x.call(ctx, "mkdir", mkdirArgs{op, base}, &r)
	return cache.Output(r.Name), r.Warnings, err
}

// mkdir is WORKDIR: the directory and its missing parents, owned by USER (an unknown name is root).
func (w *world) mkdir(ctx context.Context, a mkdirArgs, _ []*os.File) (written, error) {
	return w.write(ctx, a.Base, func(t *target) (snapshot.Times, error) {
		if err := t.setOwner("USER", a.Op.User); err != nil {
			return snapshot.TimesNever, err
		}
		p, err := t.resolve(a.Op.Path)
		if err != nil {
			return snapshot.TimesNever, err
		}
		if there, err := t.isDir(p); err != nil || there {
			t.warnings = nil // whose it would be does not matter
		}
		return snapshot.TimesNever, t.mkdirAll(p)
	})
}
