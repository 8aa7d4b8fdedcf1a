package main

// A build from an instruction stream (--from-plan) in place of a Dockerfile. What the stream says is settled by whoever made it; contexts,
// secrets, agents, devices and entitlements are the caller's, who gives them on the command line as usual.

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"img/dag"
	"img/dag/dockerfile"
	"img/registry/image"
	"img/registry/layout"
)

// planned are the options whose effect is in the plan already, and whether they were given.
func (c *BuildCmd) planned() []struct {
	option string
	given  bool
} {
	return []struct {
		option string
		given  bool
	}{
		{"-f", len(c.File) > 0}, {"--target", c.Target != ""}, {"--build-arg", len(c.BuildArg) > 0}, {"--platform", len(c.Platform) > 0},
		{"--label", len(c.Label) > 0}, {"--annotation", len(c.Annotation) > 0}, {"--inherit-labels", c.InheritLabels != nil},
		{"--unsetlabel", len(c.Unsetlabel) > 0}, {"--unsetenv", len(c.Unsetenv) > 0}, {"--omit-history", c.OmitHistory},
		{"--squash", c.Squash}, {"--squash-all", c.SquashAll}, {"--compression", c.Compression != ""}, {"--format", c.Format != ""},
		{"--timestamp", c.Timestamp != ""}, {"--source-date-epoch", c.SourceDateEpoch != ""}, {"--rewrite-timestamp", c.RewriteTimestamp != nil},
		{"--no-cache-filter", len(c.NoCacheFilter) > 0}, {"--network", c.Network != ""}, {"--add-host", len(c.AddHost) > 0},
		{"--check", c.Check != ""}, {"--call", c.Call != "" && c.Call != callBuild},
	}
}

// plannedAttrs are the attributes of outputs of which the same holds.
var plannedAttrs = []string{"compression", "oci-mediatypes", "rewrite-timestamp", "source-date-epoch"}

// checkFromPlan refuses what --from-plan cannot go with.
func (c *BuildCmd) checkFromPlan() error {
	for _, p := range c.planned() {
		if p.given {
			return withHint(exitUsage, fmt.Errorf("%s and --from-plan exclude each other: it is settled in the plan", p.option),
				"give it where the plan is made: img build %s ... --print json", p.option)
		}
	}
	switch {
	case c.Pull == pullAlways || c.Pull == pullNewer:
		return usagef("--pull=%s and --from-plan exclude each other: the plan names the layers of its base images by digest", c.Pull)
	case c.Path == "-" && c.FromPlan == "-":
		return usagef("standard input cannot be both the context and the plan")
	}
	return nil
}

// checkPlannedAttrs refuses attributes of outputs.
func checkPlannedAttrs(outputs []Output) error {
	for _, o := range outputs {
		for _, a := range plannedAttrs {
			if _, ok := o.Attrs[a]; ok {
				return usagef("-o type=%s,%s and --from-plan exclude each other: it is settled in the plan", o.Type, a)
			}
		}
	}
	return nil
}

// fromPlan reads the plan and settles what is not in it.
func (b *build) fromPlan() error {
	if err := b.readPlan(); err != nil {
		return err
	}
	b.r.Platforms, b.r.Implied = nil, false
	for _, t := range b.plan.Targets {
		b.r.Platforms = append(b.r.Platforms, t.Platform)
	}
	b.r.Indexed = b.plan.Index != dag.Empty || len(b.plan.Targets) > 1
	if err := checkSeveral(b.r); err != nil {
		return err
	}
	if b.c.Print == "" && b.wantsImage() && b.image() == dag.Empty {
		return withHint(exitUsage, fmt.Errorf("%s: the plan makes files and no image", b.name),
			"-o DIR writes the files; a plan made without -o DIR makes an image")
	}
	if err := b.allowed(); err != nil {
		return err
	}
	b.bases = b.newBases()
	proxy := dockerfile.ProxyEnv(dockerfile.Options{ProxyArgs: proxies(b.g.getenv)})
	for _, v := range b.plan.Graph.Vertices {
		switch op := v.Op.(type) {
		case *dag.Image:
			if err := b.bases.pin(op); err != nil {
				return b.planError(v, "ref", err, "")
			}
			continue
		case *dag.Run:
			op.ProxyEnv = proxy
		case *dag.Copy, *dag.Mkdir:
		default:
			continue
		}
		v.NoCache = v.NoCache || b.c.NoCache
	}
	return nil
}

// readPlan reads the stream.
func (b *build) readPlan() error {
	b.name = "plan.jsonl"
	var r io.Reader = b.g.stdin
	if b.c.FromPlan != "-" {
		f, err := openFile(b.c.FromPlan, true)
		if err != nil {
			return withCode(exitUsage, fmt.Errorf("read plan: open %s: %w", shortName(b.c.FromPlan), rootCause(err)))
		}
		defer f.Close()
		b.name, r = shortName(b.c.FromPlan), f
	}
	text, err := limited(r, dag.MaxStream)
	if err != nil {
		return withCode(exitUsage, fmt.Errorf("read plan %s: %w", b.name, err))
	}
	b.g.addSource(b.name, text)
	p, err := dag.Decode(b.name, bytes.NewReader(text))
	if err != nil {
		return err
	}
	b.plan = &dockerfile.Plan{Plan: *p}
	return nil
}

// allowed refuses what the plan may not have: entitlements and contexts that the caller did not give.
func (b *build) allowed() error {
	for _, v := range b.plan.Graph.Vertices {
		if run, ok := v.Op.(*dag.Run); ok && run.Security == dag.Insecure && !b.r.Insecurely {
			return b.planError(v, "security", errors.New("RUN --security=insecure is not allowed: security.insecure is not granted (--allow security.insecure)"), "")
		}
	}
	if b.c.Print != "" {
		return nil
	}
	for _, name := range b.plan.Graph.Contexts() {
		given, remedy := b.c.Path != "", fmt.Sprintf("img build --from-plan %s PATH", b.c.FromPlan)
		if name != dag.MainContext {
			kind := b.r.Contexts[name].Kind
			given = kind != "" && kind != imageContext && kind != layoutContext
			remedy = fmt.Sprintf("--build-context %s=DIR gives it", name)
		}
		if !given {
			return withHint(exitUsage, fmt.Errorf("%s: the plan takes files from the %s, which is not given", b.name, contextTitle(name)), "%s", remedy)
		}
	}
	return nil
}

// planError is an error of a vertex in the plan.
func (b *build) planError(v *dag.Vertex, field string, err error, hint string) error {
	return withHint(exitUsage, &dag.StreamError{Pos: dag.Pos{File: b.name, Line: int(v.ID) + 2}, Path: field, Err: err}, "%s", hint)
}

// A pinned is where the layers of a base image in a plan come from, if the local store does not have them. The plan has their digests, so
// that no manifest is asked for.
type pinned struct {
	b    *bases
	op   *dag.Image
	ref  string
	once sync.Once
	src  image.Fetcher
	err  error
}

// pin makes the layers of a plan's base image known.
func (b *bases) pin(op *dag.Image) error {
	p := &pinned{b: b, op: op}
	if op.Source == registrySource {
		ref, err := image.NormalizeRef(op.Ref)
		if err != nil {
			return err
		}
		p.ref = ref
	}
	for _, l := range op.Layers {
		h, err := v1.NewHash(l.Digest)
		if err != nil {
			return err
		}
		b.from[h] = p
	}
	return nil
}

// registrySource is the Source of images that are in no oci-layout context.
const registrySource = "registry"

// Fetch implements image.Fetcher.
func (p *pinned) Fetch(ctx context.Context, d v1.Descriptor) (io.ReadCloser, error) {
	p.once.Do(func() { p.src, p.err = p.open() })
	if p.err != nil {
		return nil, fmt.Errorf("%s: %w", p.op.Ref, p.err)
	}
	return p.src.Fetch(ctx, d)
}

func (p *pinned) open() (image.Fetcher, error) {
	if p.op.Source != registrySource {
		c := p.b.layouts[p.op.Source]
		if c.Kind != layoutContext {
			return nil, withHint(exitUsage, fmt.Errorf("the plan takes it from the context %s, which is not given", p.op.Source),
				"--build-context %s=oci-layout://DIR gives it", p.op.Source)
		}
		dir, _ := splitLayout(c.Value)
		return layout.OpenReadOnly(dir)
	}
	if p.b.pull == pullNever {
		return nil, withHint(exitSource, errors.New("its layers are not in the local store, and --offline or --pull=never forbids to fetch them"),
			"`img pull %s`, or `img load` an archive of it", p.op.Ref)
	}
	client, err := newClient(p.b.g, p.b.insec, p.ref)
	if err != nil {
		return nil, err
	}
	return client.Repository(p.ref)
}

// streamHint proposes a word for one that a stream may not have.
func streamHint(e *dag.StreamError) string {
	if e.Word == "" {
		return ""
	}
	if near := dockerfile.Nearest(e.Word, e.Known); near != "" {
		return fmt.Sprintf("did you mean %q?", near)
	}
	known := slices.Clone(e.Known)
	slices.Sort(known)
	return "there are " + strings.Join(known, ", ")
}
