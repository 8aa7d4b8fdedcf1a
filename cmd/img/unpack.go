package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"img/cmd/img/progress"
)

// UnpackCmd is `img unpack`.
type UnpackCmd struct {
	Image    string `arg:"" help:"Image, by name or id."`
	Output   string `short:"o" default:"rootfs" placeholder:"DIR" help:"Directory (default: ./rootfs)."`
	Platform string `placeholder:"OS/ARCH" help:"Platform of an index (default: this machine's, else its first)."`
}

// Run writes an image's files into a directory, which must be new or empty. They belong to the caller.
func (c *UnpackCmd) Run(ctx context.Context, g *Globals) error {
	dest, err := filepath.Abs(c.Output)
	if err != nil {
		return err
	}
	if err := checkEmpty(dest); err != nil {
		return err
	}
	s, unlock, err := useImages(ctx, g)
	if err != nil {
		return err
	}
	defer unlock()
	_, ref, err := findImage(ctx, s, c.Image)
	if err != nil {
		return err
	}
	in, err := openInsider(ctx, g)
	if err != nil {
		return err
	}
	defer in.Close()
	if err := in.exportFiles(ctx, ref, c.Platform, dest); err != nil {
		return fullDest(g, dest, fmt.Errorf("unpack %s: %w", ref, err))
	}
	fmt.Fprintf(g.stdout, "Successfully unpacked rootfs for %s to: %s\n", progress.Clean(c.Image), progress.Clean(dest))
	return nil
}

// checkEmpty refuses a directory with something in it.
func checkEmpty(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return withCode(exitUsage, err)
	}
	if len(entries) > 0 {
		return withHint(exitUsage, fmt.Errorf("%s exists and is not empty", dir), "choose another directory with -o DIR")
	}
	return nil
}

// umask is the caller's. There is no way to ask for it but to set it, so it is asked for once.
var umask = sync.OnceValue(func() os.FileMode {
	mask := syscall.Umask(0o022)
	syscall.Umask(mask)
	return os.FileMode(mask)
})
