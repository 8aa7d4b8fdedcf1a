package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"

	"github.com/containerd/platforms"
	"github.com/rogpeppe/go-internal/diff"

	"img/cmd/img/findings"
	"img/dag/dockerfile"
	"img/registry/image"
	"img/registry/layout"
)

// LintCmd is `img lint`.
type LintCmd struct {
	Path string `arg:"" name:"path" optional:"" help:"A directory with a Dockerfile, or a Dockerfile (default: .)."`

	File     []string `short:"f" sep:"none" placeholder:"FILE" help:"Dockerfile, any number; - is standard input."`
	Format   string   `placeholder:"FORMAT" default:"text" enum:"text,json,sarif,github" help:"text, json (BuildKit's), sarif or github."`
	BuildArg []string `sep:"none" placeholder:"K=V" help:"Set a build argument."`
	Target   string   `placeholder:"STAGE" help:"Check this stage and what it needs (default: all)."`
	Fix      bool     `help:"Repair what has one right form, in place; of standard input, to standard output."`
	Diff     bool     `help:"With --fix, show the change and write nothing."`
}

// Run checks each file. Bases are looked up in the local store alone.
func (c *LintCmd) Run(ctx context.Context, g *Globals) error {
	names, err := c.files()
	if err != nil {
		return err
	}
	if c.Diff && !c.Fix {
		return usagef("--diff shows what --fix would do: give both")
	}
	args, err := (&BuildCmd{BuildArg: c.BuildArg}).buildArgs(g.getenv)
	if err != nil {
		return err
	}
	l := &linting{c: c, g: g, ctx: ctx, args: args, base: localBases(ctx, g)}
	var files []findings.File
	for _, name := range names {
		f, err := l.file(name)
		if err != nil {
			return err
		}
		files = append(files, *f)
	}
	if c.Fix && (c.Diff || slices.Contains(names, "-")) {
		return nil // standard output has the change
	}
	return g.report(files, call{Name: callCheck, Format: c.Format})
}

// files are the Dockerfiles to look at.
func (c *LintCmd) files() ([]string, error) {
	switch {
	case c.Path != "" && len(c.File) > 0:
		return nil, usagef("PATH and -f exclude each other")
	case len(c.File) > 0:
		if c.Fix && slices.Contains(c.File, "-") && len(c.File) > 1 {
			return nil, usagef("--fix of standard input takes no other file")
		}
		return c.File, nil
	case c.Path == "":
		c.Path = "."
	}
	info, err := os.Stat(c.Path)
	if err != nil {
		return nil, withCode(exitUsage, err)
	}
	if !info.IsDir() {
		return []string{c.Path}, nil
	}
	candidates := defaultDockerfiles(c.Path)
	for _, name := range candidates {
		if _, err := os.Stat(name); err == nil {
			return []string{name}, nil
		}
	}
	return nil, noDockerfile(candidates[0], "name it with -f FILE, or give the directory that holds it")
}

// A linting is one run of `img lint`.
type linting struct {
	c    *LintCmd
	g    *Globals
	ctx  context.Context
	args map[string]string
	base func(dockerfile.BaseRef) (*image.Image, error)
}

// file repairs a Dockerfile if that is asked for, and checks it.
func (l *linting) file(name string) (*findings.File, error) {
	src, err := l.read(name)
	if err != nil {
		return nil, err
	}
	f := &findings.File{Name: name, Source: src}
	if name == "-" {
		f.Name = "Dockerfile"
	}
	l.g.addSource(f.Name, src)
	o, err := l.options(name)
	if err != nil {
		return nil, err
	}
	if l.c.Fix {
		if err := l.fix(name, f, o); err != nil {
			return nil, err
		}
	}
	parsed, err := dockerfile.Parse(f.Name, f.Source)
	if err != nil {
		f.Err = err
		return f, nil
	}
	found := dockerfile.Check(parsed, o, l.base)
	f.Warnings, f.Err = found.Warnings, found.Err
	for _, ref := range found.Unknown {
		l.g.debugf("%s: the base %s is not in the local store, so checks of what it sets are left out", ref.Pos, ref.Ref)
	}
	return f, nil
}

func (l *linting) read(name string) (src []byte, err error) {
	if name == "-" {
		src, err = limited(l.g.stdin, maxDockerfile)
	} else {
		var file *os.File
		if file, err = os.Open(name); err == nil {
			defer file.Close()
			src, err = limited(file, maxDockerfile)
		}
	}
	if err != nil {
		return nil, withCode(exitUsage, fmt.Errorf("read Dockerfile: %w", err))
	}
	return src, nil
}

// options are those of a build for this machine, with the ignore file that a build of the Dockerfile's directory has.
func (l *linting) options(name string) (dockerfile.Options, error) {
	host := platforms.Format(platforms.Normalize(platforms.Platform{OS: runtime.GOOS, Architecture: runtime.GOARCH}))
	o := dockerfile.Options{Target: l.c.Target, BuildArgs: l.args, Platform: host, BuildPlatform: host}
	if name == "-" {
		return o, nil
	}
	for _, ignore := range []string{name + ".dockerignore", filepath.Join(filepath.Dir(name), ".dockerignore")} {
		text, err := os.ReadFile(ignore)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return o, withCode(exitUsage, fmt.Errorf("ignore file: %w", err))
		}
		l.g.addSource(ignore, text)
		o.Ignore, err = dockerfile.ParseIgnore(ignore, text)
		return o, err
	}
	return o, nil
}

// fix repairs a file and writes it, or shows what it would write. What cannot be built cannot be repaired; the check says why.
func (l *linting) fix(name string, f *findings.File, o dockerfile.Options) error {
	fixed, err := dockerfile.Fix(f.Name, f.Source, o, l.base)
	var bad *dockerfile.Error
	switch {
	case errors.As(err, &bad):
		if l.c.Diff || name == "-" {
			return err
		}
		return nil
	case err != nil:
		return err
	case l.c.Diff:
		_, err := l.g.stdout.Write(diff.Diff(f.Name, f.Source, f.Name, fixed.Source))
		return err
	case name == "-":
		_, err := l.g.stdout.Write(fixed.Source)
		return err
	case len(fixed.Fixes) == 0:
		return nil
	}
	if err := replaceFile(name, fixed.Source); err != nil {
		return err
	}
	f.Source = fixed.Source
	l.g.addSource(f.Name, f.Source)
	notef(l.g.stderr, "%s: repaired %s: %s", f.Name, count(len(fixed.Fixes), "finding"), ruleNames(fixed.Fixes))
	return nil
}

func ruleNames(list []dockerfile.Warning) string {
	var names []string
	for _, w := range list {
		if !slices.Contains(names, w.Rule) {
			names = append(names, w.Rule)
		}
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}

// replaceFile gives a file another content, all at once: whoever reads it sees the old one or the new. Mode and owner stay, and a link
// to the file stays one.
func replaceFile(name string, data []byte) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("write %s: %w", name, err)
		}
	}()
	if name, err = filepath.EvalSymlinks(name); err != nil {
		return err
	}
	info, err := os.Stat(name)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(name), ".img-lint-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // no-op after the rename
	defer f.Close()
	if st, ok := info.Sys().(*syscall.Stat_t); ok && (int(st.Uid) != os.Geteuid() || int(st.Gid) != os.Getegid()) {
		if err := f.Chown(int(st.Uid), int(st.Gid)); err != nil {
			return err
		}
	}
	if _, err := f.Write(data); err != nil {
		return err
	}
	if err := errors.Join(f.Chmod(info.Mode()), f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), name)
}

// localBases finds images in the local store, if there is one. It makes none, and asks no registry.
func localBases(ctx context.Context, g *Globals) func(dockerfile.BaseRef) (*image.Image, error) {
	unknown := func(dockerfile.BaseRef) (*image.Image, error) { return nil, dockerfile.ErrUnknownBase }
	if _, err := os.Stat(filepath.Join(statePath(g.State, g.getenv), "registry")); err != nil {
		return unknown
	}
	dir, err := g.stateDir()
	if err != nil {
		return unknown
	}
	s, err := layout.OpenReadOnly(filepath.Join(dir, "registry"))
	if err != nil {
		return unknown
	}
	b := &bases{s: &store{images: s}, pull: pullNever}
	return func(r dockerfile.BaseRef) (*image.Image, error) {
		p, err := image.ParsePlatform(r.Platform)
		if err != nil || r.Layout != "" {
			return unknown(r)
		}
		ref, err := image.NormalizeRef(r.Ref)
		if err != nil {
			return unknown(r)
		}
		img, err := b.local(ctx, ref, p)
		if err != nil {
			return unknown(r)
		}
		return img, nil
	}
}
