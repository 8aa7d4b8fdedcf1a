package main

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"img/cache"
	"img/dag"
	"img/exec"
	"img/registry/image"
	"img/registry/layout"
)

// results names the image and writes every output. Names come first: they are what cannot be made again by reading standard error.
func (b *build) results(ctx context.Context, x *exec.Executor, outs map[dag.ID]cache.Output) error {
	var built exec.Built
	if image := b.image(); image != dag.Empty {
		var err error
		if built, err = exec.BuiltImage(outs[image]); err != nil {
			return err
		}
		if err := b.tag(ctx, built.Manifest); err != nil {
			return err
		}
	}
	for _, o := range b.r.Outputs {
		if err := b.output(ctx, x, o, outs, built); err != nil {
			return fullDest(b.g, o.Dest, fmt.Errorf("output %s: %w", o.Type, err))
		}
	}
	if err := b.push(ctx, built.Manifest); err != nil {
		return err
	}
	if err := b.writeMetadata(built); err != nil {
		return err
	}
	return b.say(built)
}

// names are all names of the image: -t, and the name attributes of outputs.
func (b *build) names() []string {
	out := slices.Clone(b.r.Tags)
	for _, o := range b.r.Outputs {
		out = append(out, outputNames(o)...)
	}
	return out
}

func outputNames(o Output) []string {
	var out []string
	if o.Attrs["name"] == "" {
		return nil
	}
	for n := range strings.SplitSeq(o.Attrs["name"], ",") {
		if ref, err := fullReference(n); err == nil { // checked when the option was read
			out = append(out, ref.String())
		}
	}
	return out
}

func (b *build) tag(ctx context.Context, d v1.Descriptor) error {
	names := slices.Clone(b.r.Tags)
	for _, o := range b.r.Outputs {
		if o.Type == outImage {
			names = append(names, outputNames(o)...)
		}
	}
	for _, n := range names {
		if err := b.s.images.Tag(ctx, n, d); err != nil {
			return fmt.Errorf("tag %s: %w", n, err)
		}
	}
	return nil
}

func (b *build) output(ctx context.Context, x *exec.Executor, o Output, outs map[dag.ID]cache.Output, built exec.Built) error {
	var parts []exec.Part
	for _, t := range b.plan.Targets {
		p := exec.Part{}
		if t.Files != dag.Empty {
			p.Files = outs[t.Files]
		}
		if b.split(o) {
			p.Dir = strings.ReplaceAll(t.Platform, "/", "_")
		}
		parts = append(parts, p)
	}
	var epoch *int64
	if b.r.RewriteTimes {
		epoch = b.r.Epoch
	}
	switch o.Type {
	case outLocal:
		if len(parts) > 1 && !b.split(o) {
			return b.writeMerged(ctx, x, parts, o.Dest, epoch)
		}
		return writeFiles(ctx, x, parts, o.Dest, epoch)
	case outTar:
		return b.writeTar(ctx, x, parts, o.Dest, epoch)
	case outOCI, outDocker:
		return b.writeArchive(ctx, o, built.Manifest)
	}
	return nil
}

// split reports whether each platform's files go into a directory of their own, "linux_amd64": by default those of an index do.
func (b *build) split(o Output) bool {
	if v, err := strconv.ParseBool(o.Attrs["platform-split"]); err == nil {
		return v
	}
	return b.r.Indexed
}

// writeMerged writes the files of several platforms into one directory. As BuildKit has it, no file may be there for two of them; we find
// out before anything is written.
func (b *build) writeMerged(ctx context.Context, x *exec.Executor, parts []exec.Part, dest string, epoch *int64) error {
	owner := map[string]string{}
	for i, p := range parts {
		platform := b.plan.Targets[i].Platform
		err := throughPipe(
			func(w *os.File) error { return x.WriteTar(ctx, []exec.Part{p}, epoch, w) },
			func(r io.Reader) error { return claim(r, owner, platform) })
		if err != nil {
			return err
		}
	}
	for _, p := range parts {
		if err := writeFiles(ctx, x, []exec.Part{p}, dest, epoch); err != nil {
			return err
		}
	}
	return nil
}

// claim notes a tar's files but for directories as a platform's.
func claim(r io.Reader, owner map[string]string, platform string) error {
	for t := tar.NewReader(r); ; {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if h.Typeflag == tar.TypeDir {
			continue
		}
		if other := owner[h.Name]; other != "" {
			return withHint(exitBuild, fmt.Errorf("cannot overwrite %s from %s with %s when split option is disabled", h.Name, other, platform),
				"leave platform-split=false out: each platform then gets a directory of its own")
		}
		owner[h.Name] = platform
	}
}

// throughPipe runs a writer and a reader of one pipe side by side. If the writer failed, the reader's error is only that the data was cut.
func throughPipe(write func(*os.File) error, read func(io.Reader) error) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	wrote := make(chan error, 1)
	go func() {
		err := write(w)
		w.Close()
		wrote <- err
	}()
	err = read(r)
	if err == nil {
		_, err = io.Copy(io.Discard, r)
	}
	r.Close() // a writer that goes on gets EPIPE and ends
	if werr := <-wrote; werr != nil && (err == nil || !errors.Is(werr, syscall.EPIPE)) {
		return werr
	}
	return err
}

// writeTar writes the image's files as a tar. The inner process writes to our pipe, never to the caller's path.
func (b *build) writeTar(ctx context.Context, x *exec.Executor, files []exec.Part, dest string, epoch *int64) error {
	return writeOutput(b.g, dest, func(w io.Writer) error {
		return throughPipe(
			func(pw *os.File) error { return x.WriteTar(ctx, files, epoch, pw) },
			func(r io.Reader) error {
				_, err := io.Copy(w, r)
				return err
			})
	})
}

func (b *build) writeArchive(ctx context.Context, o Output, d v1.Descriptor) error {
	names := append(outputNames(o), b.r.Tags...)
	if o.directory() {
		return b.writeLayout(ctx, o.Dest, names, d)
	}
	write := layout.WriteOCIArchive
	if o.Type == outDocker {
		write = layout.WriteDockerArchive
	}
	return writeOutput(b.g, o.Dest, func(w io.Writer) error {
		return write(ctx, w, b.s.images, []layout.Named{{Descriptor: d, Refs: names}})
	})
}

// writeLayout adds the image to an OCI layout directory. One without a name goes by its digest; it makes room for the next one without,
// and for its own name.
func (b *build) writeLayout(ctx context.Context, dir string, names []string, d v1.Descriptor) error {
	s, err := layout.Open(dir)
	if err != nil {
		return err
	}
	if err := image.Copy(ctx, s, b.s.images, d, image.CopyOptions{}); err != nil {
		return err
	}
	unnamed := len(names) == 0
	if unnamed {
		names = []string{d.Digest.String()}
	}
	for _, n := range names {
		if err := s.Tag(ctx, n, d); err != nil {
			return err
		}
	}
	return untagOthers(ctx, s, names, func(t layout.Tagged) bool {
		return strings.HasPrefix(t.Ref, "sha256:") && (unnamed || t.Descriptor.Digest == d.Digest)
	})
}

// untagOthers removes those of a layout's names that match, but for the ones to keep.
func untagOthers(ctx context.Context, s *layout.Store, keep []string, match func(layout.Tagged) bool) error {
	tags, err := s.List(ctx)
	if err != nil {
		return err
	}
	for _, t := range tags {
		if !match(t) || slices.Contains(keep, t.Ref) {
			continue
		}
		if err := s.Untag(ctx, t.Ref); err != nil {
			return err
		}
	}
	return nil
}

// push sends the image under its names if asked to.
func (b *build) push(ctx context.Context, d v1.Descriptor) error {
	var names []string
	if b.r.Push {
		names = b.names()
	}
	for _, o := range b.r.Outputs {
		if yes, _ := strconv.ParseBool(o.Attrs["push"]); yes && !b.r.Push {
			names = append(names, outputNames(o)...)
			if o.Attrs["name"] == "" {
				names = append(names, b.r.Tags...)
			}
		}
	}
	for _, n := range names {
		c, err := newClient(b.g, b.r.Insecure, n)
		if err != nil {
			return err
		}
		if err := pushImage(ctx, b.s.images, c, n, d); err != nil {
			return pushError(fmt.Errorf("push %s: %w", n, err))
		}
	}
	return nil
}

// checkDests finds before the build what writing its results would fail at.
func (c *BuildCmd) checkDests(outputs []Output) error {
	for _, o := range outputs {
		option := "-o type=" + o.Type
		check := checkFile
		if o.Type == outLocal || o.directory() {
			check = checkDir
		}
		if err := check(option, o.Dest); o.Dest != "" && err != nil {
			return err
		}
	}
	if err := checkFile("--iidfile", c.Iidfile); err != nil {
		return err
	}
	return checkFile("--metadata-file", c.MetadataFile)
}

// writeMetadata writes --iidfile and --metadata-file.
func (b *build) writeMetadata(built exec.Built) error {
	if b.c.Iidfile != "" {
		if err := writeText(b.g, b.c.Iidfile, built.ID().String()); err != nil {
			return fmt.Errorf("--iidfile: %w", err)
		}
	}
	if b.c.MetadataFile == "" {
		return nil
	}
	meta := map[string]any{}
	if b.image() != dag.Empty {
		if built.Config != (v1.Hash{}) { // an index has none
			meta["containerimage.config.digest"] = built.Config.String()
		}
		meta["containerimage.digest"] = built.Manifest.Digest.String()
		meta["containerimage.descriptor"] = built.Manifest
		if names := b.names(); len(names) > 0 {
			meta["image.name"] = strings.Join(names, ",")
		}
	}
	data, err := json.MarshalIndent(meta, "", "  ")
	if err != nil {
		return err
	}
	if err := writeText(b.g, b.c.MetadataFile, string(data)+"\n"); err != nil {
		return fmt.Errorf("--metadata-file: %w", err)
	}
	return nil
}

func writeText(g *Globals, path, text string) error {
	return writeOutput(g, path, func(w io.Writer) error {
		_, err := io.WriteString(w, text)
		return err
	})
}

// say prints the result: with -q the image's id alone; without names and outputs its digest, since there is no other way to it.
func (b *build) say(built exec.Built) error {
	switch {
	case b.image() == dag.Empty:
		return nil
	case b.c.Quiet:
		_, err := fmt.Fprintln(b.g.stdout, built.ID())
		return err
	case len(b.names()) == 0 && len(b.r.Outputs) == 0:
		_, err := fmt.Fprintln(b.g.stdout, built.ID())
		return err
	}
	for _, n := range b.names() {
		notef(b.g.stderr, "built %s %s", n, built.Manifest.Digest)
	}
	return nil
}
