package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"path/filepath"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"img/cmd/img/progress"
	"img/registry/image"
	"img/registry/layout"
)

// openImages opens the local image store.
func openImages(g *Globals) (*layout.Store, error) {
	dir, err := g.stateDir()
	if err != nil {
		return nil, err
	}
	return layout.Open(filepath.Join(dir, "registry"))
}

// useImages opens the local image store and holds off prune until unlock is called.
func useImages(ctx context.Context, g *Globals) (s *layout.Store, unlock func(), err error) {
	dir, err := g.stateDir()
	if err != nil {
		return nil, nil, err
	}
	unlock, err = lockState(ctx, dir, false, func() { notef(g.stderr, "waiting for img prune to end") })
	if err != nil {
		return nil, nil, err
	}
	if s, err = layout.Open(filepath.Join(dir, "registry")); err != nil {
		unlock()
		return nil, nil, err
	}
	return s, unlock, nil
}

// findImage finds an image by name, by digest, or by the beginning of its id (as `build -q` and `ls -q` print it).
// ref is the full name it was found by, or the digest.
func findImage(ctx context.Context, s *layout.Store, name string) (d v1.Descriptor, ref string, err error) {
	if strings.HasPrefix(name, "sha256:") {
		if d, err = s.Resolve(ctx, name); err == nil {
			return d, d.Digest.String(), nil
		}
		return findByID(ctx, s, name)
	}
	ref, err = image.NormalizeRef(name)
	if err != nil {
		return d, "", withCode(exitUsage, err)
	}
	d, err = s.Resolve(ctx, ref)
	if !errors.Is(err, image.ErrNotFound) {
		return d, ref, err
	}
	if len(name) >= 4 && strings.Trim(name, "0123456789abcdef") == "" {
		if d, id, err := findByID(ctx, s, name); err == nil {
			return d, id, nil
		}
	}
	return d, ref, withHint(exitSource, fmt.Errorf("image %s: %w", ref, image.ErrNotFound), "`img ls` shows the images that are here, `img pull %s` fetches it", name)
}

// findByID finds a named image by its manifest's or configuration's digest, or the beginning of its hex digits.
func findByID(ctx context.Context, s *layout.Store, id string) (d v1.Descriptor, ref string, err error) {
	tags, err := s.List(ctx)
	if err != nil {
		return d, "", err
	}
	hex := strings.TrimPrefix(id, "sha256:")
	for _, t := range tags {
		matches := strings.HasPrefix(t.Descriptor.Digest.Hex, hex)
		if img, err := image.Load(ctx, s, t.Descriptor, image.HostPlatform()); err == nil {
			matches = matches || strings.HasPrefix(img.Manifest.Config.Digest.Hex, hex)
		}
		if matches && ref != "" && t.Descriptor.Digest != d.Digest {
			return d, "", withCode(exitSource, fmt.Errorf("image %s: more than one image's id begins so", id))
		}
		if matches {
			d, ref = t.Descriptor, t.Ref
		}
	}
	if ref == "" {
		err = withCode(exitSource, fmt.Errorf("image %s: %w", id, image.ErrNotFound))
	}
	return d, ref, err
}

// loadImage finds an image and reads it for a platform.
func loadImage(ctx context.Context, s *layout.Store, name, platform string) (*image.Image, string, error) {
	d, ref, err := findImage(ctx, s, name)
	if err != nil {
		return nil, "", err
	}
	img, err := loadPlatform(ctx, s, d, platform)
	if err != nil {
		return nil, "", withCode(exitSource, fmt.Errorf("read image %s: %w", ref, err))
	}
	return img, ref, nil
}

// loadPlatform reads an image for a platform; for "" that is this machine's, or the first that is here.
func loadPlatform(ctx context.Context, s *layout.Store, d v1.Descriptor, platform string) (*image.Image, error) {
	if platform != "" {
		p, err := image.ParsePlatform(platform)
		if err != nil {
			return nil, usagef("--platform %w", err)
		}
		return image.Load(ctx, s, d, p)
	}
	img, err := image.Load(ctx, s, d, image.HostPlatform())
	if !d.MediaType.IsIndex() || !errors.Is(err, image.ErrNotFound) {
		return img, err
	}
	raw, err := image.ReadAll(ctx, s, d, image.MaxManifest)
	if err != nil {
		return nil, err
	}
	children, err := image.Children(raw)
	if err != nil {
		return nil, err
	}
	for _, c := range children {
		if !c.MediaType.IsImage() || c.Platform == nil || c.Platform.OS == "unknown" { // an attestation is no image
			continue
		}
		if img, err = image.Load(ctx, s, c, image.Platform{}); !errors.Is(err, image.ErrNotFound) {
			return img, err
		}
	}
	return nil, fmt.Errorf("index %s: none of its images is here: %w", d.Digest, image.ErrNotFound)
}

// LsCmd is `img ls`.
type LsCmd struct {
	Name    string   `arg:"" optional:"" help:"Show only images whose name contains this or matches this pattern."`
	Filter  []string `short:"f" sep:"none" placeholder:"NAME=VALUE" help:"Filter by name, reference (a pattern), digest, label."`
	Quiet   bool     `short:"q" help:"Print only ids."`
	Format  string   `placeholder:"FORMAT" help:"table (default), json or a Go template."`
	NoTrunc bool     `help:"Do not shorten ids."`
	All     bool     `short:"a" hidden:""`
}

// An imageLine is one image of `img ls`.
type imageLine struct {
	Name      string
	ID        string
	Digest    string
	Size      int64
	CreatedAt time.Time
	UpdatedAt time.Time
	Labels    map[string]string `json:",omitempty"`
}

// Run lists the images.
func (c *LsCmd) Run(ctx context.Context, g *Globals) error {
	f, err := parseFilters(c.Filter, "name", "reference", "digest", "label")
	if err != nil {
		return err
	}
	s, err := openImages(g)
	if err != nil {
		return err
	}
	tags, err := s.List(ctx)
	if err != nil {
		return err
	}
	t := table{Columns: []string{"NAME", "SIZE", "CREATED AT", "UPDATED AT", "DIGEST"}}
	now := time.Now()
	for _, tag := range tags {
		l := describeImage(ctx, s, tag)
		if !c.wants(l, f) {
			continue
		}
		if c.Quiet {
			fmt.Fprintln(g.stdout, shortDigest(l.ID, c.NoTrunc))
			continue
		}
		t.add(l, image.Familiar(l.Name), humanSize(l.Size), ago(l.CreatedAt, now), ago(l.UpdatedAt, now), l.Digest)
	}
	if c.Quiet {
		return nil
	}
	return t.print(g.stdout, c.Format)
}

// describeImage reads what the table shows. An image whose blobs are damaged is still listed, so that it can be removed.
func describeImage(ctx context.Context, s *layout.Store, t layout.Tagged) imageLine {
	l := imageLine{Name: t.Ref, ID: t.Descriptor.Digest.String(), Digest: t.Descriptor.Digest.String(), UpdatedAt: t.Updated}
	img, err := loadPlatform(ctx, s, t.Descriptor, "")
	if err != nil {
		return l
	}
	l.CreatedAt = img.Config.Created.Time
	l.Labels = img.Config.Config.Labels
	if t.Descriptor.MediaType.IsIndex() { // its id is its digest
		l.Size, _ = s.Size(ctx, t.Descriptor)
		return l
	}
	l.ID, l.Size = img.Manifest.Config.Digest.String(), imageSize(img)
	return l
}

// imageSize is what an image takes in the store, in bytes.
func imageSize(img *image.Image) int64 {
	n := int64(len(img.RawManifest) + len(img.RawConfig))
	for _, layer := range img.Layers {
		n += layer.Descriptor.Size
	}
	return n
}

func (c *LsCmd) wants(l imageLine, f filters) bool {
	familiar := image.Familiar(l.Name)
	if c.Name != "" && !matchesName(c.Name, familiar) && !matchesName(c.Name, l.Name) {
		return false
	}
	if !f.part("name", l.Name) && !f.part("name", familiar) || !f.part("digest", l.Digest) {
		return false
	}
	for _, p := range f["reference"] {
		if !matchesName(p, familiar) && !matchesName(p, l.Name) {
			return false
		}
	}
	for _, want := range f["label"] {
		k, v, valued := strings.Cut(want, "=")
		if have, ok := l.Labels[k]; !ok || valued && have != v {
			return false
		}
	}
	return true
}

// matchesName matches a name with or without its tag, as Docker's reference filter does.
func matchesName(pattern, name string) bool {
	repository, _, _ := strings.Cut(name[strings.LastIndexByte(name, '/')+1:], ":")
	bare := name[:strings.LastIndexByte(name, '/')+1] + repository
	for _, s := range []string{name, bare} {
		if ok, err := path.Match(pattern, s); err == nil && ok {
			return true
		}
	}
	return false
}

// TagCmd is `img tag`.
type TagCmd struct {
	Source string   `arg:"" help:"Image."`
	Dest   []string `arg:"" help:"New names."`
}

// Run gives an image more names. A name that exists is moved.
func (c *TagCmd) Run(ctx context.Context, g *Globals) error {
	s, unlock, err := useImages(ctx, g)
	if err != nil {
		return err
	}
	defer unlock()
	d, _, err := findImage(ctx, s, c.Source)
	if err != nil {
		return err
	}
	refs, err := fullReferences("tag", c.Dest)
	if err != nil {
		return err
	}
	for i, ref := range refs {
		if err := s.Tag(ctx, ref, d); err != nil {
			return err
		}
		fmt.Fprintf(g.stdout, "Successfully tagged %s as %s\n", progress.Clean(c.Source), progress.Clean(c.Dest[i]))
	}
	return nil
}

// RmCmd is `img rm`.
type RmCmd struct {
	Image []string `arg:"" help:"Images, by name or id."`
	Force bool     `short:"f" help:"Say nothing about images that are not there."`
}

// Run removes names; what nothing names any more is freed by prune.
func (c *RmCmd) Run(ctx context.Context, g *Globals) error {
	s, unlock, err := useImages(ctx, g)
	if err != nil {
		return err
	}
	defer unlock()
	for _, name := range c.Image {
		fmt.Fprintf(g.stdout, "Removing %s...\n", progress.Clean(name))
		err := remove(ctx, s, name)
		if c.Force && errors.Is(err, image.ErrNotFound) {
			continue
		}
		if err != nil {
			return err
		}
		fmt.Fprintf(g.stdout, "Successfully removed %s\n", progress.Clean(name))
	}
	return nil
}

// remove removes a name; an id or a digest removes all names of the image.
func remove(ctx context.Context, s *layout.Store, name string) error {
	d, _, err := findImage(ctx, s, name)
	if err != nil {
		return err
	}
	if full, err := image.NormalizeRef(name); err == nil && !strings.Contains(name, "@") {
		if err := s.Untag(ctx, full); !errors.Is(err, image.ErrNotFound) {
			return err
		}
	}
	tags, err := s.List(ctx)
	if err != nil {
		return err
	}
	n := 0
	for _, t := range tags {
		if t.Descriptor.Digest != d.Digest {
			continue
		}
		if err := s.Untag(ctx, t.Ref); err != nil {
			return err
		}
		n++
	}
	if n == 0 {
		return withHint(exitSource, fmt.Errorf("image %s has no name: %w", name, image.ErrNotFound), "`img prune` frees it")
	}
	return nil
}

// InspectCmd is `img inspect`.
type InspectCmd struct {
	Image    []string `arg:"" help:"Images, by name or id."`
	Format   string   `short:"f" placeholder:"TEMPLATE" help:"A Go template over the configuration."`
	Platform string   `placeholder:"OS/ARCH" help:"Platform of an index (default: this machine's, else its first)."`
}

// Run prints the configuration as it is in the image (OCI image-spec, config.md), indented by tabs.
func (c *InspectCmd) Run(ctx context.Context, g *Globals) error {
	s, err := openImages(g)
	if err != nil {
		return err
	}
	for _, name := range c.Image {
		img, _, err := loadImage(ctx, s, name, c.Platform)
		if err != nil {
			return err
		}
		if err := c.print(g, img); err != nil {
			return err
		}
	}
	return nil
}

func (c *InspectCmd) print(g *Globals, img *image.Image) error {
	if c.Format != "" && c.Format != "json" {
		t, err := parseTemplate(c.Format)
		if err != nil {
			return err
		}
		return execute(g.stdout, t, img.Config)
	}
	var b bytes.Buffer
	if err := json.Indent(&b, img.RawConfig, "", "\t"); err != nil {
		return fmt.Errorf("image configuration: %w", err)
	}
	_, err := fmt.Fprintln(g.stdout, strings.TrimRight(b.String(), "\n"))
	return err
}

// HistoryCmd is `img history`.
type HistoryCmd struct {
	Image    string `arg:"" help:"Image, by name or id."`
	Quiet    bool   `short:"q" help:"Print only ids."`
	Format   string `placeholder:"FORMAT" help:"table (default), json or a Go template."`
	NoTrunc  bool   `help:"Do not shorten commands and ids."`
	Human    bool   `short:"H" default:"true" help:"Print sizes and times for people."`
	Platform string `placeholder:"OS/ARCH" help:"Platform of an index (default: this machine's, else its first)."`
}

// A historyLine is one step of an image, newest first. Size is that of the compressed layer, in bytes.
type historyLine struct {
	ID        string
	CreatedAt time.Time
	CreatedBy string
	Size      int64
	Comment   string
}

// Run shows the steps.
func (c *HistoryCmd) Run(ctx context.Context, g *Globals) error {
	s, err := openImages(g)
	if err != nil {
		return err
	}
	img, _, err := loadImage(ctx, s, c.Image, c.Platform)
	if err != nil {
		return err
	}
	t := table{Columns: []string{"IMAGE", "CREATED", "CREATED BY", "SIZE", "COMMENT"}}
	now := time.Now()
	for _, l := range historyLines(img) {
		if c.Quiet {
			fmt.Fprintln(g.stdout, shortDigest(l.ID, c.NoTrunc))
			continue
		}
		created, size := ago(l.CreatedAt, now), humanSize(l.Size)
		if !c.Human {
			created, size = l.CreatedAt.UTC().Format(time.RFC3339), fmt.Sprint(l.Size)
		}
		t.add(l, shortDigest(l.ID, c.NoTrunc), created, shorten(l.CreatedBy, 45, c.NoTrunc), size, l.Comment)
	}
	if c.Quiet {
		return nil
	}
	return t.print(g.stdout, c.Format)
}

// historyLines pairs history entries with layers, newest first. Only the image itself has an id.
func historyLines(img *image.Image) []historyLine {
	layers := img.Layers
	var out []historyLine
	for _, h := range img.Config.History {
		l := historyLine{ID: "<missing>", CreatedAt: h.Created.Time, CreatedBy: h.CreatedBy, Comment: h.Comment}
		if !h.EmptyLayer && len(layers) > 0 {
			l.Size, layers = layers[0].Descriptor.Size, layers[1:]
		}
		out = append(out, l)
	}
	for i, j := 0, len(out)-1; i < j; i, j = i+1, j-1 {
		out[i], out[j] = out[j], out[i]
	}
	if len(out) > 0 {
		out[0].ID = cmp.Or(img.Manifest.Config.Digest.String(), out[0].ID)
	}
	return out
}
