package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/distribution/reference"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	"img/cmd/img/progress"
	"img/registry"
	"img/registry/image"
	"img/registry/layout"
)

// newClient makes a client for registries. insecure lifts the demand for TLS from the hosts of refs, and no others.
func newClient(g *Globals, insecure bool, refs ...string) (*registry.Client, error) {
	o := registry.Options{Keychain: registry.NewKeychain("", g.getenv), UserAgent: userAgent()}
	for _, r := range refs {
		named, err := reference.ParseNormalizedNamed(r)
		if err != nil {
			return nil, usagef("image name %q: %w", r, err)
		}
		if insecure {
			o.Insecure = append(o.Insecure, reference.Domain(named))
		}
	}
	return registry.New(o), nil
}

func userAgent() string { return "img/" + version }

// PullCmd is `img pull`.
type PullCmd struct {
	Image            []string `arg:"" help:"Images: NAME[:TAG|@DIGEST]."`
	Platform         string   `placeholder:"OS/ARCH" help:"Platform (default: this machine's)."`
	AllPlatforms     bool     `help:"Keep the whole index."`
	InsecureRegistry bool     `help:"Accept a registry with an unknown certificate, or without TLS."`
	Quiet            bool     `short:"q" help:"Print only digests."`
}

// Run fetches images. The registry's bytes and digests are kept.
func (c *PullCmd) Run(ctx context.Context, g *Globals) error {
	platform := image.HostPlatform()
	if c.Platform != "" {
		var err error
		if platform, err = image.ParsePlatform(c.Platform); err != nil {
			return usagef("--platform %s: %w", c.Platform, err)
		}
	}
	s, unlock, err := useImages(ctx, g)
	if err != nil {
		return err
	}
	defer unlock()
	client, err := newClient(g, c.InsecureRegistry, c.Image...)
	if err != nil {
		return err
	}
	for _, name := range c.Image {
		if err := c.pull(ctx, g, s, client, name, platform); err != nil {
			return err
		}
	}
	return nil
}

func (c *PullCmd) pull(ctx context.Context, g *Globals, s *layout.Store, client *registry.Client, name string, p image.Platform) error {
	ref, err := image.NormalizeRef(name)
	if err != nil {
		return withCode(exitUsage, err)
	}
	if !c.Quiet {
		fmt.Fprintf(g.stdout, "Pulling %s...\n", progress.Clean(name))
	}
	d, err := pullImage(ctx, s, client, ref, p, c.AllPlatforms)
	if err != nil {
		return sourceError(fmt.Errorf("pull %s: %w", ref, err))
	}
	if c.Quiet {
		fmt.Fprintln(g.stdout, d.Digest)
		return nil
	}
	img, err := image.Load(ctx, s, d, p)
	if err != nil {
		return sourceError(fmt.Errorf("pull %s: %w", ref, err))
	}
	fmt.Fprintf(g.stdout, "Pulled: %s\nSize: %s\n", d.Digest, humanSize(imageSize(img)))
	return nil
}

// pullImage copies an image into the store and names it. A reference by digest is kept under that reference.
func pullImage(ctx context.Context, s *layout.Store, client *registry.Client, ref string, p image.Platform, whole bool) (v1.Descriptor, error) {
	d, err := client.Resolve(ctx, ref)
	if err != nil {
		return d, err
	}
	repo, err := client.Repository(ref)
	if err != nil {
		return d, err
	}
	if !whole {
		if d, err = image.Select(ctx, repo, d, p); err != nil {
			return d, err
		}
	}
	if err := image.Copy(ctx, s, repo, d, image.CopyOptions{}); err != nil {
		return d, err
	}
	named := d
	named.Annotations = map[string]string{layout.PulledFrom: ref}
	return d, s.Tag(ctx, ref, named)
}

// PushCmd is `img push`.
type PushCmd struct {
	Image            []string `arg:"" help:"Images: NAME[:TAG]."`
	InsecureRegistry bool     `help:"Accept a registry with an unknown certificate, or without TLS."`
	Quiet            bool     `short:"q" help:"Print nothing."`
}

// Run sends images as they are in the store: the digest of `img ls` is the registry's.
func (c *PushCmd) Run(ctx context.Context, g *Globals) error {
	s, unlock, err := useImages(ctx, g)
	if err != nil {
		return err
	}
	defer unlock()
	client, err := newClient(g, c.InsecureRegistry, c.Image...)
	if err != nil {
		return err
	}
	for _, name := range c.Image {
		d, ref, err := findImage(ctx, s, name)
		if err != nil {
			return err
		}
		if !c.Quiet {
			fmt.Fprintf(g.stdout, "Pushing %s...\n", progress.Clean(name))
		}
		if err := pushImage(ctx, s, client, ref, d); err != nil {
			return pushError(fmt.Errorf("push %s: %w", ref, err))
		}
		if !c.Quiet {
			fmt.Fprintf(g.stdout, "Successfully pushed %s\n", progress.Clean(name))
		}
	}
	return nil
}

// pushImage sends an image and names it in the registry.
func pushImage(ctx context.Context, s *layout.Store, client *registry.Client, ref string, d v1.Descriptor) error {
	from, err := mountable(ctx, s, ref, d)
	if err != nil {
		return err
	}
	repo, err := client.Repository(ref, from...)
	if err != nil {
		return err
	}
	if err := image.Copy(ctx, repo, s, d, image.CopyOptions{}); err != nil {
		return err
	}
	manifest, err := image.ReadAll(ctx, s, d, image.MaxManifest)
	if err != nil {
		return err
	}
	return client.Tag(ctx, ref, d, manifest)
}

// mountable returns the references, on the registry of ref, of pulled images that share content with d: the registry can take that content
// from their repositories instead of over the network.
func mountable(ctx context.Context, s *layout.Store, ref string, d v1.Descriptor) ([]string, error) {
	to, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return nil, err
	}
	ours, err := s.Reachable(ctx, d)
	if err != nil {
		return nil, err
	}
	tags, err := s.List(ctx)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, t := range tags {
		from, err := reference.ParseNormalizedNamed(t.Descriptor.Annotations[layout.PulledFrom])
		if err != nil || reference.Domain(from) != reference.Domain(to) || reference.Path(from) == reference.Path(to) {
			continue
		}
		theirs, err := s.Reachable(ctx, t.Descriptor)
		if err != nil {
			return nil, err
		}
		if slices.ContainsFunc(theirs, func(h v1.Hash) bool { return slices.Contains(ours, h) }) {
			out = append(out, from.String())
		}
	}
	return out, nil
}

// SaveCmd is `img save`.
type SaveCmd struct {
	Image  []string `arg:"" help:"Images, by name or id."`
	Output string   `short:"o" placeholder:"FILE" help:"File (default: standard output)."`
	Format string   `default:"docker" help:"docker (default) or oci."`
}

// Run writes images to an archive. Blobs are copied as they are.
func (c *SaveCmd) Run(ctx context.Context, g *Globals) error {
	write := layout.WriteDockerArchive
	switch c.Format {
	case "docker":
	case "oci":
		write = layout.WriteOCIArchive
	default:
		return usagef("--format must be docker or oci but is %q", c.Format)
	}
	if (c.Output == "" || c.Output == "-") && isTerminal(g.stdout) {
		return withHint(exitUsage, fmt.Errorf("an archive is not written to a terminal"), "use -o FILE, or redirect standard output")
	}
	if err := checkFile("-o", c.Output); err != nil {
		return err
	}
	s, unlock, err := useImages(ctx, g)
	if err != nil {
		return err
	}
	defer unlock()
	images, err := namedImages(ctx, s, c.Image)
	if err != nil {
		return err
	}
	err = writeOutput(g, c.Output, func(w io.Writer) error { return write(ctx, w, s, images) })
	return fullDest(g, c.Output, err)
}

// namedImages finds images for an archive; the names of one image stay together.
func namedImages(ctx context.Context, s *layout.Store, names []string) ([]layout.Named, error) {
	var out []layout.Named
	at := map[v1.Hash]int{}
	for _, name := range names {
		d, ref, err := findImage(ctx, s, name)
		if err != nil {
			return nil, err
		}
		i, ok := at[d.Digest]
		if !ok {
			i = len(out)
			at[d.Digest] = i
			out = append(out, layout.Named{Descriptor: d})
		}
		if ref != d.Digest.String() {
			out[i].Refs = append(out[i].Refs, ref)
		}
	}
	return out, nil
}

// writeOutput writes to a file, or to standard output for "" and "-".
func writeOutput(g *Globals, path string, write func(io.Writer) error) error {
	if path == "" || path == "-" {
		return buffered(g.stdout, write)
	}
	return writeFile(path, write)
}

// writeFile writes a file, which appears whole or not at all; a link is replaced, not followed. Devices and FIFOs
// are written to as they are, also through links, as are the links below /dev and /proc (/dev/stdout).
func writeFile(path string, write func(io.Writer) error) error {
	if isSpecial(path) {
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0) // standard output may be a file with something in it
		if err != nil {
			return err
		}
		return errors.Join(buffered(f, write), f.Close())
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".img-")
	if err != nil {
		return &os.PathError{Op: "write", Path: path, Err: withoutPath(err)}
	}
	defer os.Remove(f.Name()) // gone after the rename
	err = errors.Join(buffered(f, write), f.Chmod(0o644&^umask()), f.Close())
	if err != nil {
		return &os.PathError{Op: "write", Path: path, Err: withoutPath(err)}
	}
	return os.Rename(f.Name(), path)
}

func isSpecial(path string) bool {
	info, err := os.Lstat(path)
	if err != nil || info.Mode().IsRegular() {
		return false
	}
	if info.Mode()&fs.ModeSymlink == 0 {
		return true
	}
	abs, err := filepath.Abs(path)
	if err == nil && (strings.HasPrefix(abs, "/dev/") || strings.HasPrefix(abs, "/proc/")) {
		return true
	}
	target, err := os.Stat(path)
	return err == nil && !target.Mode().IsRegular()
}

// withoutPath leaves out the name of our temporary file, which tells nobody anything.
func withoutPath(err error) error {
	var at *fs.PathError
	if errors.As(err, &at) {
		return at.Err
	}
	return err
}

// checkFile finds out whether a file could be written, before the work for its content is done.
func checkFile(option, path string) error {
	if path == "" || path == "-" || isSpecial(path) && !isDir(path) {
		return nil
	}
	if isDir(path) {
		return usagef("%s: %s is a directory", option, path)
	}
	dir := filepath.Dir(path)
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return withHint(exitUsage, fmt.Errorf("%s: there is no directory %s", option, dir), "mkdir -p %s", dir)
	}
	if err := unix.Access(dir, unix.W_OK|unix.X_OK); err != nil {
		return usagef("%s: cannot write in the directory %s: %w", option, dir, err)
	}
	return nil
}

// checkDir finds out whether a directory could be filled, or made.
func checkDir(option, path string) error {
	for dir := filepath.Clean(path); ; dir = filepath.Dir(dir) {
		switch info, err := os.Stat(dir); {
		case err == nil && !info.IsDir():
			return usagef("%s: %s is not a directory", option, dir)
		case err == nil:
			if err := unix.Access(dir, unix.W_OK|unix.X_OK); err != nil {
				return usagef("%s: cannot write in the directory %s: %w", option, dir, err)
			}
			return nil
		case !errors.Is(err, fs.ErrNotExist):
			return usagef("%s: %s: %w", option, dir, withoutPath(err))
		}
		if _, err := os.Lstat(dir); err == nil {
			return usagef("%s: %s is a link to what is not there", option, dir)
		}
	}
}

func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

func buffered(w io.Writer, write func(io.Writer) error) error {
	b := bufio.NewWriterSize(w, 1<<20)
	if err := write(b); err != nil {
		return err
	}
	return b.Flush()
}

// LoadCmd is `img load`.
type LoadCmd struct {
	Input string `short:"i" placeholder:"FILE" help:"File (default: standard input)."`
	Quiet bool   `short:"q" help:"Print nothing."`
}

// Run reads an archive of either kind.
func (c *LoadCmd) Run(ctx context.Context, g *Globals) error {
	in, err := openInput(g, c.Input)
	if err != nil {
		return err
	}
	defer in.Close()
	s, unlock, err := useImages(ctx, g)
	if err != nil {
		return err
	}
	defer unlock()
	images, err := layout.ReadArchive(ctx, in, s)
	if err != nil {
		return sourceError(fmt.Errorf("load: %w", err))
	}
	for _, n := range images {
		if err := c.name(ctx, g, s, n); err != nil {
			return err
		}
	}
	return nil
}

func (c *LoadCmd) name(ctx context.Context, g *Globals, s *layout.Store, n layout.Named) error {
	for _, name := range n.Refs {
		ref, err := image.NormalizeRef(name)
		if err != nil {
			return sourceError(fmt.Errorf("load: %w", err))
		}
		if err := s.Tag(ctx, ref, n.Descriptor); err != nil {
			return err
		}
		if !c.Quiet {
			fmt.Fprintf(g.stdout, "Loaded image: %s\n", progress.Clean(image.Familiar(ref)))
		}
	}
	if len(n.Refs) == 0 && !c.Quiet {
		fmt.Fprintf(g.stdout, "Loaded image ID: %s\n", n.Descriptor.Digest)
	}
	return nil
}

// openInput opens a file, or standard input for "" and "-", which must not be a terminal.
func openInput(g *Globals, path string) (io.ReadCloser, error) {
	if path != "" && path != "-" {
		f, err := os.Open(path)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
			return nil, withCode(exitSource, err)
		}
		return f, err
	}
	if isTerminal(g.stdin) {
		return nil, withHint(exitUsage, fmt.Errorf("an archive is not read from a terminal"), "name a file, or redirect standard input")
	}
	return io.NopCloser(g.stdin), nil
}
