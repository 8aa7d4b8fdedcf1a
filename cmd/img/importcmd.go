package main

import (
	"archive/tar"
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"img/dag"
	"img/exec"
	"img/registry/image"
	"img/registry/layout"
)

// ImportCmd is `img import`.
type ImportCmd struct {
	Source      string   `arg:"" help:"Tar of a root file system: a file, or - for standard input."`
	Name        string   `arg:"" optional:"" help:"Name of the image."`
	Change      []string `short:"c" sep:"none" placeholder:"INSTRUCTION" help:"Apply CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, USER or WORKDIR."`
	Message     string   `short:"m" placeholder:"TEXT" help:"Comment of the image's history."`
	Platform    string   `placeholder:"OS/ARCH" help:"Platform of the files (default: this machine's)."`
	Compression string   `default:"gzip" help:"gzip (default), zstd or uncompressed."`
}

// Run makes an image of one layer.
func (c *ImportCmd) Run(ctx context.Context, g *Globals) error {
	cfg, err := c.config(g.getenv)
	if err != nil {
		return err
	}
	kind, err := compression("--compression", c.Compression)
	if err != nil {
		return err
	}
	var refs []string
	if c.Name != "" {
		if refs, err = fullReferences("name", []string{c.Name}); err != nil {
			return err
		}
	}
	if isHTTP(c.Source) || isGitURL(c.Source) {
		return usagef("%s: imports from the network are not served; fetch it first", c.Source)
	}
	in, err := openInput(g, c.Source)
	if err != nil {
		return err
	}
	defer in.Close()
	s, unlock, err := useImages(ctx, g)
	if err != nil {
		return err
	}
	defer unlock()
	layer, err := packTar(ctx, s, in, cmp.Or(kind, dag.Gzip))
	if err != nil {
		return sourceError(fmt.Errorf("import %s: %w", c.Source, err))
	}
	return c.publish(ctx, g, s, cfg, layer, refs)
}

func (c *ImportCmd) publish(ctx context.Context, g *Globals, s *layout.Store, cfg *v1.ConfigFile, layer image.Layer, refs []string) error {
	img, err := image.Assemble(cfg, []image.Layer{layer}, image.AssembleOptions{})
	if err != nil {
		return err
	}
	if err := s.Push(ctx, img.Manifest.Config, bytes.NewReader(img.RawConfig)); err != nil {
		return err
	}
	if err := s.Push(ctx, img.Descriptor, bytes.NewReader(img.RawManifest)); err != nil {
		return err
	}
	load := LoadCmd{}
	return load.name(ctx, g, s, layout.Named{Descriptor: img.Descriptor, Refs: refs})
}

// config is the image's configuration, without rootfs.
func (c *ImportCmd) config(getenv func(string) string) (*v1.ConfigFile, error) {
	p := image.HostPlatform()
	if c.Platform != "" {
		var err error
		if p, err = image.ParsePlatform(c.Platform); err != nil {
			return nil, usagef("--platform %s: %w", c.Platform, err)
		}
	}
	created, err := now(getenv)
	if err != nil {
		return nil, err
	}
	cfg := &v1.ConfigFile{OS: p.OS, Architecture: p.Architecture, Variant: p.Variant, Created: v1.Time{Time: created}}
	if cfg.Architecture == "amd64" {
		cfg.Variant = ""
	}
	comment := c.Message
	if comment == "" {
		comment = "Imported from " + c.Source
	}
	cfg.History = []v1.History{{Created: cfg.Created, Comment: comment}}
	for _, change := range c.Change {
		if err := applyChange(&cfg.Config, change); err != nil {
			return nil, usagef("-c %q: %w", change, err)
		}
	}
	return cfg, nil
}

// now is the time, or SOURCE_DATE_EPOCH's.
func now(getenv func(string) string) (time.Time, error) {
	r := &buildRequest{BuildArgs: map[string]string{}}
	if err := new(BuildCmd).times(r, &Globals{getenv: getenv}); err != nil {
		return time.Time{}, err
	}
	if r.Epoch != nil {
		return time.Unix(*r.Epoch, 0).UTC(), nil
	}
	return time.Now().UTC(), nil
}

// applyChange applies one instruction in a Dockerfile's words. Nothing is expanded.
func applyChange(c *v1.Config, text string) error {
	word, rest, _ := strings.Cut(strings.TrimSpace(text), " ")
	rest = strings.TrimSpace(rest)
	if rest == "" {
		return fmt.Errorf("the instruction has no value")
	}
	switch strings.ToUpper(word) {
	case "CMD":
		c.Cmd = command(rest)
	case "ENTRYPOINT":
		c.Entrypoint = command(rest)
	case "USER":
		c.User = rest
	case "WORKDIR":
		c.WorkingDir = rest
	case "ENV":
		return eachPair(rest, func(k, v string) { c.Env = setEnv(c.Env, k, v) })
	case "LABEL":
		if c.Labels == nil {
			c.Labels = map[string]string{}
		}
		return eachPair(rest, func(k, v string) { c.Labels[k] = v })
	case "EXPOSE":
		if c.ExposedPorts == nil {
			c.ExposedPorts = map[string]struct{}{}
		}
		for _, port := range strings.Fields(rest) {
			if !strings.Contains(port, "/") {
				port += "/tcp"
			}
			c.ExposedPorts[port] = struct{}{}
		}
	default:
		return fmt.Errorf("only CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, USER and WORKDIR can be applied")
	}
	return nil
}

// command reads the exec form (a JSON list) or the shell form.
func command(text string) []string {
	var list []string
	if json.Unmarshal([]byte(text), &list) == nil {
		return list
	}
	return []string{"/bin/sh", "-c", text}
}

// eachPair reads K=V pairs, values perhaps in double quotes, or the old form `K V`.
func eachPair(text string, set func(k, v string)) error {
	first, _, _ := strings.Cut(text, " ")
	if !strings.Contains(first, "=") {
		k, v, ok := strings.Cut(text, " ")
		if !ok {
			return fmt.Errorf("%q has no value", text)
		}
		set(k, strings.TrimSpace(v))
		return nil
	}
	for text = strings.TrimSpace(text); text != ""; text = strings.TrimLeft(text, " \t") {
		k, rest, ok := strings.Cut(text, "=")
		if !ok || k == "" {
			return fmt.Errorf("%q is not of the form K=V", text)
		}
		var v string
		if quoted, isQuoted := strings.CutPrefix(rest, `"`); isQuoted {
			if v, text, ok = strings.Cut(quoted, `"`); !ok {
				return fmt.Errorf("a quote is not closed")
			}
		} else {
			v, text, _ = strings.Cut(rest, " ")
		}
		set(k, v)
	}
	return nil
}

func setEnv(env []string, k, v string) []string {
	for i, e := range env {
		if strings.HasPrefix(e, k+"=") {
			env[i] = k + "=" + v
			return env
		}
	}
	return append(env, k+"="+v)
}

// layerTypes are the media types of layers by compression (image-spec, layer.md).
var layerTypes = map[string]types.MediaType{
	dag.Gzip:         types.OCILayer,
	dag.Zstd:         types.OCILayerZStd,
	dag.Uncompressed: types.OCIUncompressedLayer,
}

// packTar makes a layer of a tar, compressed in any way or not, as a stream: the tar's own bytes are kept, so that the
// DiffID is the digest that others would compute. It fails if the input is not a tar, or is cut.
func packTar(ctx context.Context, s *layout.Store, r io.Reader, kind string) (image.Layer, error) {
	plain, err := image.DecompressAny(&contextReader{ctx, r})
	if err != nil {
		return image.Layer{}, err
	}
	defer plain.Close()
	w, err := s.Create()
	if err != nil {
		return image.Layer{}, err
	}
	defer w.Discard()
	blob, diff := sha256.New(), sha256.New()
	body, err := exec.Compressor(io.MultiWriter(w.File, blob), kind)
	if err != nil {
		return image.Layer{}, err
	}
	if err := checkTar(io.TeeReader(plain, io.MultiWriter(diff, body))); err != nil {
		return image.Layer{}, err
	}
	if err := body.Close(); err != nil {
		return image.Layer{}, fmt.Errorf("compress: %w", err)
	}
	size, err := w.File.Seek(0, io.SeekCurrent)
	if err != nil {
		return image.Layer{}, err
	}
	d := v1.Descriptor{MediaType: layerTypes[kind], Size: size, Digest: hashOf(blob)}
	if err := w.Commit(d); err != nil {
		return image.Layer{}, err
	}
	return image.Layer{DiffID: hashOf(diff), Descriptor: d}, nil
}

// checkTar reads a tar to its end, and what stands behind it: padding belongs to the layer's bytes.
func checkTar(r io.Reader) error {
	in := &byteCounter{r: r}
	br := bufio.NewReaderSize(in, 256<<10)
	tr := tar.NewReader(br)
	entries := 0
	for {
		_, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		var stopped interrupted
		if isDiskFull(err) || errors.As(err, &stopped) {
			return err // the tar's other readers failed, not the tar
		}
		if err != nil && entries == 0 {
			return fmt.Errorf("this is not a tar: %w", err)
		}
		if err != nil {
			return fmt.Errorf("the tar is damaged after %d entries: %w", entries, err)
		}
		entries++
	}
	if entries == 0 {
		return fmt.Errorf("the tar is empty")
	}
	if _, err := io.Copy(io.Discard, br); err != nil {
		return err
	}
	if in.n%512 != 0 {
		return fmt.Errorf("the tar is cut: %d bytes are not whole blocks", in.n)
	}
	return nil
}

type byteCounter struct {
	r io.Reader
	n int64
}

func (c *byteCounter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

func hashOf(h hash.Hash) v1.Hash {
	return v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(h.Sum(nil))}
}

// A contextReader ends with its context, with the cause as error.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c *contextReader) Read(p []byte) (int, error) {
	if c.ctx.Err() != nil {
		return 0, context.Cause(c.ctx)
	}
	return c.r.Read(p)
}
