package exec

import (
	"context"
	"os"
	"path/filepath"

	"img/cache"
	"img/dag"
)

// gitKey counts the commit and what is made of it. The names of remote and branch matter only where .git tells them.
func (x *Executor) gitKey(ctx context.Context, h *cache.Hash, op *dag.Git) error {
	c, err := x.fetcher()
	if err != nil {
		return err
	}
	commit, err := c.ResolveGit(ctx, op)
	if err != nil {
		return err
	}
	h.Line("commit", commit.ID)
	h.Line("subdir", op.Subdir)
	h.Line("submodules", !op.SkipSubmodules)
	h.Line("mtime", op.MTime)
	if op.KeepGitDir {
		h.Line("git-dir", op.Remote, commit.Ref, commit.Tag)
	}
	return nil
}

func (x *Executor) git(ctx context.Context, op *dag.Git) (cache.Output, error) {
	c, err := x.fetcher()
	if err != nil {
		return "", err
	}
	commit, err := c.ResolveGit(ctx, op)
	if err != nil {
		return "", err
	}
	temp, remove, err := TempDir(x.o.State, "git-")
	if err != nil {
		return "", err
	}
	defer remove()
	// The inner process is somebody else: what it reads by descriptor must be open to all. The way to it is not.
	dir := filepath.Join(temp, "tree")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return "", err
	}
	if err := c.Checkout(ctx, op, commit, dir); err != nil {
		return "", err
	}
	f, err := os.Open(dir)
	if err != nil {
		return "", err
	}
	defer f.Close()
	return x.keep(ctx, f, fetchedArgs{Times: op.MTime == "commit"})
}
