package exec

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"img/cache"
	"img/dag"
	"img/exec/fetch"
	"img/snapshot"
)

// fetcher is what reaches the web for this build.
func (x *Executor) fetcher() (*fetch.Client, error) {
	if x.o.Fetch == nil {
		return nil, errors.New("nothing here reaches the web")
	}
	return x.o.Fetch, nil
}

func (x *Executor) getHTTP(ctx context.Context, op *dag.HTTP) (*fetch.File, error) {
	c, err := x.fetcher()
	if err != nil {
		return nil, err
	}
	if op.Name == "" || op.Name == "." || op.Name == ".." || strings.ContainsAny(op.Name, "/\x00") {
		return nil, fmt.Errorf("%q is no name of a file", op.Name)
	}
	return c.HTTP(ctx, fetch.Request{URL: op.URL, Checksum: op.Checksum})
}

// httpKey counts what is at the URL, not the URL.
func (x *Executor) httpKey(ctx context.Context, h *cache.Hash, op *dag.HTTP) error {
	f, err := x.getHTTP(ctx, op)
	if err != nil {
		return err
	}
	h.Line("digest", f.Digest)
	h.Line("name", op.Name)
	h.Line("modified", f.Modified.Unix())
	return nil
}

func (x *Executor) http(ctx context.Context, op *dag.HTTP) (cache.Output, error) {
	f, err := x.getHTTP(ctx, op)
	if err != nil {
		return "", err
	}
	file, err := f.Open()
	if err != nil {
		return "", err
	}
	defer file.Close()
	return x.keep(ctx, file, fetchedArgs{Name: op.Name, Digest: strings.TrimPrefix(f.Digest, "sha256:"), MTime: f.Modified.UnixNano(), Times: true})
}

// fetchedArgs say what to make of a descriptor: a file by name, or a directory's content.
type fetchedArgs struct {
	Name string
	// Digest is what the file must have, MTime its time in nanoseconds since 1970.
	Digest string
	MTime  int64
	// Times says that times are of the content: they count in the snapshot's name.
	Times bool
}

// keep makes a snapshot of what has been fetched.
func (x *Executor) keep(ctx context.Context, f *os.File, a fetchedArgs) (cache.Output, error) {
	var r written
	err := x.call(ctx, "fetched", a, &r, f)
	return cache.Output(r.Name), err
}

// fetched is keep in the inner process. All belongs to 0:0.
func (w *world) fetched(ctx context.Context, a fetchedArgs, files []*os.File) (written, error) {
	if len(files) != 1 {
		return written{}, fmt.Errorf("%d descriptors came, not one", len(files))
	}
	return w.write(ctx, "", func(t *target) (snapshot.Times, error) {
		err := w.putFetched(ctx, t, a, files[0])
		if a.Times {
			return snapshot.TimesSet, err
		}
		return snapshot.TimesNever, err
	})
}

func (w *world) putFetched(ctx context.Context, t *target, a fetchedArgs, f *os.File) error {
	if a.Name == "" {
		c := &copier{w: w, t: t, op: &dag.Copy{Dest: "/" + dag.GitTree}, src: &Context{Path: f.Name(), dir: f}, sum: newTreeSum()}
		return c.one(ctx, match{Real: ".", Type: snapshot.Dir})
	}
	digest, err := t.put(a.Name, snapshot.Entry{Type: snapshot.File, Mode: 0o600, MTime: a.MTime}, fileContent{f})
	if err == nil && digest != a.Digest {
		err = &changedError{"a file from the web"}
	}
	return err
}

// fileContent is an open file as content, to be read once: opening it again is for its owner, who is in another namespace.
type fileContent struct{ f *os.File }

func (c fileContent) open() (*os.File, error) {
	fd, err := unix.FcntlInt(c.f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	return os.NewFile(uintptr(fd), c.f.Name()), err
}

func (c fileContent) digest() (string, error) { return fileDigest(context.Background(), c.f) }
