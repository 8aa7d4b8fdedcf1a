package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// A look-up through 100 layers costs ten times one through 10, the kernel takes 500 at most, and mount(2) about 200. So of a
// chain with more than mergeFrom snapshots, each whole block of that many, counted from the bottom, is shown as one directory
//
//	merged/<hex of the block's topmost name>/
//
// in overlay form, of read-only hard links to the files of the block's layers. Names are untouched; a block is made
// once, and goes with its topmost snapshot.
const mergeFrom = 64

func (s *Store) mergedDir() string { return filepath.Join(s.own(), "merged") }

// lower are the directories to mount for a chain, topmost first.
func (s *Store) lower(ctx context.Context, chain []Name) ([]string, error) {
	layers := s.layers(chain)
	if len(chain) <= mergeFrom {
		return layers, nil
	}
	rest := len(chain) % mergeFrom
	out := slices.Clone(layers[:rest])
	for i := rest; i < len(chain); i += mergeFrom {
		dir, err := s.block(ctx, chain[i], layers[i:i+mergeFrom])
		if err != nil {
			return nil, fmt.Errorf("merge layers: %w", err)
		}
		out = append(out, dir)
	}
	return out, nil
}

// block returns the merged directory of layers, made if need be.
func (s *Store) block(ctx context.Context, top Name, layers []string) (string, error) {
	h, err := top.hex()
	if err != nil {
		return "", err
	}
	to := filepath.Join(s.mergedDir(), h)
	if _, err := os.Lstat(to); err == nil {
		return to, nil
	}
	st, err := s.newStage("fs")
	if err != nil {
		return "", err
	}
	defer st.drop()
	if err := mergeLayers(ctx, st.path("fs"), layers); err != nil {
		return "", err
	}
	err = os.Rename(st.path("fs"), to)
	if errors.Is(err, fs.ErrExist) || errors.Is(err, unix.ENOTEMPTY) {
		err = nil // another build was faster
	}
	return to, err
}

func mergeLayers(ctx context.Context, to string, layers []string) error {
	var dirs []*os.File
	defer func() { closeAll(dirs) }()
	for _, l := range layers {
		f, err := os.Open(l)
		if err != nil {
			return err
		}
		dirs = append(dirs, f)
	}
	dst, err := os.Open(to)
	if err != nil {
		return err
	}
	defer dst.Close()
	return mergeDir(ctx, dst, dirs, false)
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// mergeDir fills dst with what the directories, topmost first, show together. closed says that what lies below the block is hidden there.
func mergeDir(ctx context.Context, dst *os.File, from []*os.File, closed bool) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	done := map[string]bool{}
	for i, f := range from {
		names, err := sortedNames(f)
		if err != nil {
			return err
		}
		for _, name := range names {
			if done[name] {
				continue
			}
			done[name] = true
			if err := mergeName(ctx, dst, name, from[i:]); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
	}
	return mergedAttributes(dst, from[0], closed)
}

func mergedAttributes(dst, from *os.File, closed bool) error {
	st, attrs, err := attributes(from)
	if err != nil {
		return err
	}
	if closed {
		attrs = append(attrs, Xattr{opaqueAttr, []byte("y")})
	}
	return setAttributes(procName(dst)+"/.", &st, attrs)
}

// mergeName makes what from show at a name; from[0] has it.
func mergeName(ctx context.Context, dst *os.File, name string, from []*os.File) error {
	st, err := statAt(from[0], name)
	if err != nil {
		return err
	}
	if typeOf(st.Mode) != Dir {
		return linkOrCopy(dst, from[0], name)
	}
	var dirs []*os.File
	defer func() { closeAll(dirs) }()
	closed := false
	for i := 0; i < len(from) && !closed; i++ {
		f, err := openAt(from[i], name, unix.O_RDONLY|unix.O_DIRECTORY)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue
		case errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP):
			closed = true // a file or a mark: nothing below it shows
		case err != nil:
			return err
		default:
			dirs = append(dirs, f)
			closed = opaque(f)
		}
	}
	if err := unix.Mkdirat(int(dst.Fd()), name, 0o700); err != nil {
		return err
	}
	sub, err := openAt(dst, name, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer sub.Close()
	return mergeDir(ctx, sub, dirs, closed)
}

// linkOrCopy gives a file another name; where that cannot be (too many links) it copies.
func linkOrCopy(dst, from *os.File, name string) error {
	err := unix.Linkat(int(from.Fd()), name, int(dst.Fd()), name, 0)
	if err == nil {
		return nil
	}
	src, e := openAt(from, name, unix.O_PATH)
	if e != nil {
		return err
	}
	defer src.Close()
	b := &builder{}
	_, err = b.make(dst, name, src)
	return err
}
