package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sync/errgroup"

	"img/cache"
	"img/cmd/img/progress"
	"img/dag"
	"img/dag/dockerfile"
	"img/engine"
	"img/exec"
	"img/exec/cdi"
	"img/exec/fetch"
	"img/registry/image"
)

// A build is one run of `img build`.
type build struct {
	c *BuildCmd
	g *Globals
	r *buildRequest
	s *store

	name   string // the Dockerfile's, as positions have it
	source []byte
	file   *dockerfile.File
	plan   *dockerfile.Plan
	bases  *bases
	// contexts are those that are open, places those whose files are at hand, by name.
	contexts map[string]*exec.Context
	warnings warnings
	places   places
	loads    loads
	// beside is the path of the Dockerfile among the caller's files, "" if it is none of them; ignore are the rules of the build context.
	beside string
	ignore *dockerfile.Ignore
	// found are warnings about contexts, which the Dockerfile's check directives may silence.
	found []dockerfile.Warning
	// endAgent ends the agent that listens for git, if one does.
	endAgent func()
	// devices are what the names of devices in the plan stand for.
	devices map[string][]*cdi.Device
	// logs holds what steps print, if it is much.
	logs       string
	removeLogs func() error
	fetcher    *fetch.Client
	fetchers   sync.Once
}

// Run builds: get the plan, solve it, write the results.
func (c *BuildCmd) Run(ctx context.Context, g *Globals) error {
	r, err := c.request(g)
	if err != nil {
		return err
	}
	b := &build{c: c, g: g, r: r, contexts: map[string]*exec.Context{}}
	defer b.close()
	if b.s, err = openStore(g); err != nil {
		return err
	}
	unlock, err := lockState(ctx, b.s.dir, false, func() { notef(g.stderr, "waiting for img prune to end") })
	if err != nil {
		return err
	}
	defer unlock()
	if r.Call.Name != "" {
		return b.called(ctx, b.read(ctx))
	}
	if err := b.getPlan(ctx); err != nil {
		return err
	}
	if c.Print != "" {
		return b.print()
	}
	if err := b.openContexts(ctx); err != nil {
		return err
	}
	return b.make(ctx)
}

// getPlan makes the plan of a Dockerfile, or reads one.
func (b *build) getPlan(ctx context.Context) error {
	if b.c.FromPlan != "" {
		return b.fromPlan()
	}
	if err := b.read(ctx); err != nil {
		return err
	}
	return b.lower(ctx)
}

func (b *build) close() {
	if b.endAgent != nil {
		b.endAgent()
	}
	for _, c := range b.contexts {
		c.Close()
	}
	b.places.remove()
	if b.removeLogs != nil {
		b.removeLogs()
	}
	if b.fetcher != nil {
		b.fetcher.Close()
	}
}

// logDir makes the directory for logs when it is asked for: few builds need it.
func (b *build) logDir() (dir string, err error) {
	if b.logs == "" {
		b.logs, b.removeLogs, err = exec.TempDir(b.s.dir, "logs-")
	}
	return b.logs, err
}

// read reads the Dockerfile, and opens the build context if it is the caller's directory, or was fetched for the Dockerfile in it.
func (b *build) read(ctx context.Context) error {
	if err := b.readDockerfile(ctx); err != nil {
		return err
	}
	b.g.addSource(b.name, b.source)
	var err error
	if b.file, err = dockerfile.Parse(b.name, b.source); err != nil {
		return err
	}
	if !b.contextLoaded() {
		return nil
	}
	return b.openContext(ctx, dag.MainContext)
}

// lower resolves the base images, side by side, and makes the plan.
func (b *build) lower(ctx context.Context) error {
	refs, err := b.refs(ctx)
	if err != nil {
		return err
	}
	b.bases = b.newBases()
	images := map[dockerfile.BaseRef]*image.Image{}
	var mu sync.Mutex
	g, gctx := errgroup.WithContext(ctx)
	for _, ref := range refs {
		g.Go(func() error {
			found, err := b.bases.resolve(gctx, &mu, ref)
			if err != nil {
				return b.baseError(ctx, ref, err)
			}
			mu.Lock()
			defer mu.Unlock()
			images[ref] = found
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	base := func(ref dockerfile.BaseRef) (*image.Image, error) {
		if found, ok := images[ref]; ok {
			return found, nil
		}
		// An ONBUILD trigger of a base names an image that the Dockerfile does not.
		found, err := b.bases.resolve(ctx, &mu, ref)
		if err != nil {
			return nil, b.baseError(ctx, ref, err)
		}
		images[ref] = found
		return found, nil
	}
	b.plan, err = b.plans(ctx, base)
	if b.plan != nil {
		b.warnings.add(b.plan.Warnings...)
	}
	if err != nil {
		b.sayWarnings() // those that "# check=error=true" does not let pass
		return err
	}
	return b.strict()
}

func (b *build) newBases() *bases {
	return &bases{
		g: b.g, s: b.s, pull: b.r.Pull, insec: b.r.Insecure, implied: b.r.Implied, layouts: b.r.Contexts,
		from: map[v1.Hash]image.Fetcher{}, fetched: map[string]*fetched{},
	}
}

// refs are the bases of all platforms, once each.
func (b *build) refs(ctx context.Context) (out []dockerfile.BaseRef, err error) {
	for _, p := range b.r.Platforms {
		refs, err := b.file.Refs(b.options(ctx, p))
		if err != nil {
			return nil, err
		}
		for _, ref := range refs {
			if !slices.Contains(out, ref) {
				out = append(out, ref)
			}
		}
	}
	return out, nil
}

// plans lowers the Dockerfile for each platform and makes one plan of it. With an error, the plan has only warnings, if it is there.
func (b *build) plans(ctx context.Context, base func(dockerfile.BaseRef) (*image.Image, error)) (*dockerfile.Plan, error) {
	var plans []*dockerfile.Plan
	for _, p := range b.r.Platforms {
		plan, err := dockerfile.Lower(b.file, b.options(ctx, p), base)
		if err != nil {
			return plan, err
		}
		plans = append(plans, plan)
	}
	if !b.r.Indexed {
		return plans[0], nil
	}
	return dockerfile.Merge(plans, b.r.Annotations)
}

// baseError is a base image that cannot be had.
func (b *build) baseError(ctx context.Context, ref dockerfile.BaseRef, err error) error {
	return sourceError(b.file.Explain(b.options(ctx, b.r.Platforms[0]), &dockerfile.Error{
		Pos: ref.Pos, Err: fmt.Errorf("%s: %w", ref.Ref, err), Hint: b.baseHint(ref, err),
	}))
}

// baseHint says what to do about a base image that cannot be had.
func (b *build) baseHint(ref dockerfile.BaseRef, err error) string {
	if !errors.Is(err, image.ErrNotFound) && b.r.Pull == pullNever {
		return ""
	}
	var known *coded
	if errors.As(err, &known) && known.hint != "" {
		return known.hint
	}
	if name, ok := strings.CutPrefix(ref.Ref, "latest:"); ok {
		return fmt.Sprintf("the tag stands last: %s:latest", name)
	}
	if near := b.file.NearestStage(ref.Ref); near != "" {
		return fmt.Sprintf("did you mean the stage %q?", near)
	}
	if b.r.Pull == pullNever {
		return "the image is not in the local store, and --offline or --pull=never forbids to fetch it; `img load` or `img import` brings it in"
	}
	return "`img ls` shows the local images; --build-context NAME=oci-layout://DIR names one on disk"
}

// options are the Dockerfile's view of the command line, for one platform.
func (b *build) options(ctx context.Context, platform string) dockerfile.Options {
	return dockerfile.Options{
		Target: b.c.Target, BuildArgs: b.r.BuildArgs, Labels: b.r.Labels,
		Annotations: b.r.Annotations,
		Squash:      b.c.Squash, SquashAll: b.c.SquashAll, OmitHistory: b.c.OmitHistory,
		NoInheritedLabels: b.c.InheritLabels != nil && !*b.c.InheritLabels, UnsetEnv: b.c.Unsetenv, UnsetLabels: b.c.Unsetlabel,
		Platform: platform, BuildPlatform: b.r.Host, PlatformImplied: b.r.Implied,
		ProxyArgs: proxies(b.g.getenv),
		NoCache:   b.c.NoCache, NoCacheStages: b.r.NoCacheStage,
		Network: b.r.Network, Hosts: b.r.Hosts, Insecure: b.r.Insecurely, Devices: b.r.Devices,
		Compression: b.compression(), Docker: b.r.Docker,
		Epoch: b.r.Epoch, RewriteTimes: b.r.RewriteTimes,
		Image:    b.wantsImage(),
		Contexts: b.namedContexts(), Ignore: b.ignore, ContextTime: b.contextTime(ctx), SourceTime: b.sourceTime(ctx), Found: b.found,
	}
}

// compression is what the options ask for, or the outputs' attributes.
func (b *build) compression() string {
	if b.r.Compression != "" {
		return b.r.Compression
	}
	for _, o := range b.r.Outputs {
		if c := o.Attrs["compression"]; c != "" {
			return c
		}
	}
	return dag.Gzip
}

// wantsImage: names and image-like outputs do; so does a build without any result, which prints the image's digest.
func (b *build) wantsImage() bool {
	if len(b.r.Tags) > 0 || len(b.r.Outputs) == 0 || b.r.Push || b.c.Iidfile != "" || b.c.Quiet {
		return true
	}
	return slices.ContainsFunc(b.r.Outputs, func(o Output) bool {
		return o.Type == outOCI || o.Type == outDocker || o.Type == outImage
	})
}

// proxies are the caller's proxy variables.
func proxies(getenv func(string) string) map[string]string {
	out := map[string]string{}
	for _, n := range []string{"HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY"} {
		for _, k := range []string{n, strings.ToLower(n)} {
			if v := getenv(k); v != "" {
				out[k] = v
			}
		}
	}
	return out
}

func (b *build) print() error {
	if b.c.Print == jsonForm {
		return withCode(exitUsage, dag.Encode(b.g.stdout, &b.plan.Plan))
	}
	_, err := io.WriteString(b.g.stdout, b.plan.String())
	return err
}

// image is the vertex that makes the image or the index; dag.Empty for none.
func (b *build) image() dag.ID {
	if b.plan.Index != dag.Empty {
		return b.plan.Index
	}
	return b.plan.Targets[0].Manifest
}

// targets are the vertices that the results need.
func (b *build) targets() []dag.ID {
	var out []dag.ID
	if image := b.image(); image != dag.Empty {
		out = append(out, image)
	}
	for _, t := range b.plan.Targets {
		if t.Files != dag.Empty {
			out = append(out, t.Files)
		}
	}
	return out
}

// make solves the plan and writes the results.
func (b *build) make(ctx context.Context) error {
	if err := b.resolveDevices(); err != nil {
		return err
	}
	display := b.newDisplay(b.loads.shown)
	x, outs, err := b.solve(ctx, display)
	display.Close()
	b.sayWarnings()
	if x != nil {
		defer x.Close()
	}
	if err != nil {
		return b.blame(ctx, x, outs, err)
	}
	if err := b.rememberBases(ctx); err != nil {
		return err
	}
	return b.results(ctx, x, outs)
}

// newDisplay makes a display that goes on after so many steps.
func (b *build) newDisplay(shown int) *progress.Display {
	mode := b.r.Progress
	if b.c.Quiet {
		mode = progress.Quiet
	}
	return progress.New(mode, b.g.stderr, progress.Options{
		Getenv: b.g.getenv, LogDir: b.logDir, Platforms: b.r.Indexed || b.r.Platforms[0] != b.r.Host, Shown: shown,
	})
}

// solve runs the engine; once more if the id helpers failed and the mapping became one id.
func (b *build) solve(ctx context.Context, display *progress.Display) (*exec.Executor, map[dag.ID]cache.Output, error) {
	for {
		x := b.s.executor(b.g, exec.Options{
			Contexts: b.contexts, Base: b.bases, Fetch: b.web(), Secret: b.secret, Agents: b.r.Agents, Devices: b.devices,
			ResolvConf: resolvConf(), Note: display.Note,
		})
		outs, err := engine.Solve(ctx, b.plan.Graph, b.targets(), x, engine.Options{
			Cache: b.s.records, Jobs: b.c.Jobs, Observe: b.observe(display), Boot: bootID(), Refuse: b.refuse(),
		})
		var remapped *exec.RemappedError
		if !errors.As(err, &remapped) {
			return x, outs, crashed(b.g.stderr, err)
		}
		x.Close()
		display.Note(remapped.Error())
		if err := b.s.remap(remapped.Mapping); err != nil {
			return nil, nil, err
		}
	}
}

// observe hands events to the display, with --explain those of steps that run with the reason, and keeps warnings.
func (b *build) observe(display *progress.Display) func(engine.Event) {
	said := map[dag.ID]bool{}
	return func(e engine.Event) {
		b.warnings.add(ofStep(e.Vertex, e.Warnings)...)
		if !b.c.Explain {
			display.Observe(e)
			return
		}
		if e.State == engine.Running && e.Log == nil && e.Note == "" && !said[e.Vertex.ID] {
			said[e.Vertex.ID] = true
			e.Note = b.explain(e)
		}
		display.Observe(e)
	}
}

// explain says why a step runs: the first line of its key that differs from the last time's.
func (b *build) explain(e engine.Event) string {
	if e.Vertex.NoCache {
		return "runs: --no-cache asks for it"
	}
	if _, ok := b.s.records.Get(e.Key); ok {
		return "runs: it is known, but what it made is not in the store any more"
	}
	last, ok := b.s.records.Nearest(engine.Step(e.Vertex), e.Text)
	if !ok {
		return "runs: there is no record of this step"
	}
	was, now := cache.Explain(last.Text, e.Text)
	return fmt.Sprintf("runs: last time it had %s, now %s", cmp.Or(was, "nothing more"), cmp.Or(now, "nothing more"))
}

// secret reads a secret when a step asks for it.
func (b *build) secret(id string) ([]byte, bool, error) {
	s, ok := b.r.Secrets[id]
	if !ok {
		return nil, false, nil
	}
	data, err := s.read(b.g.getenv)
	return data, err == nil, err
}

// resolvConf is the host's; steps share its network.
func resolvConf() []byte {
	data, err := os.ReadFile("/etc/resolv.conf")
	if err != nil {
		return []byte("nameserver 127.0.0.1\n")
	}
	return data
}

func bootID() string {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(id))
}

// rememberBases names the bases that came from registries, now that their layers are here: the next build needs no network.
func (b *build) rememberBases(ctx context.Context) error {
	for _, ref := range slices.Sorted(maps.Keys(b.bases.fetched)) {
		if err := b.bases.remember(ctx, ref); err != nil {
			return fmt.Errorf("keep base image %s: %w", ref, err)
		}
	}
	return nil
}
