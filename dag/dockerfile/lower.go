package dockerfile

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/platforms"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"

	"img/dag"
	"img/registry/image"
)

// A lowering makes the graph of a build.
type lowering struct {
	*build
	ask   func(BaseRef) (*image.Image, error)
	asked map[BaseRef]*image.Image // without their positions
	// unknown are bases that cannot be had; nil where that is an error.
	unknown map[BaseRef]bool
	graph   dag.Graph
	roots   map[baseKey]*root
	proxy   []string
	// fetched are the vertices of URLs and repositories by their ops' values.
	fetched map[any]dag.ID
	texts   map[dag.ID]stepText
}

// A baseKey tells bases apart that are shared among stages.
type baseKey struct {
	outside  outside
	platform string
}

// A root is a thing from outside in the graph.
type root struct {
	files dag.ID
	image *image.Image // nil for a local context
}

// Lower makes the plan. base returns the image that a BaseRef stands for; it may be asked for more than Refs told, if triggers of base
// images need more. With "# check=error=true", a violation is an error together with a Plan that holds only the Warnings.
func Lower(f *File, o Options, base func(BaseRef) (*image.Image, error)) (_ *Plan, err error) {
	b, err := f.prepare(o)
	if err != nil {
		return nil, err
	}
	defer func() { err = f.explain(b, err) }()
	l := newLowering(b, base)
	if err := l.lower(); err != nil {
		return nil, err
	}
	if err := l.violation(); err != nil {
		return &Plan{Warnings: l.sortedWarnings()}, err
	}
	return l.plan()
}

func newLowering(b *build, base func(BaseRef) (*image.Image, error)) *lowering {
	return &lowering{build: b, ask: base, asked: map[BaseRef]*image.Image{}, roots: map[baseKey]*root{},
		fetched: map[any]dag.ID{}, proxy: ProxyEnv(b.o)}
}

// lower lowers the stages that are needed.
func (l *lowering) lower() error {
	if err := l.reach(l.triggersOfImage); err != nil {
		return err
	}
	for _, s := range l.stages {
		if !s.reachable {
			continue
		}
		if err := l.stage(s); err != nil {
			return err
		}
	}
	l.undeclared(l.declared)
	return nil
}

// stage lowers one stage. Those it needs come before it in the file, so they are done.
func (l *lowering) stage(s *stage) error {
	if err := l.begin(s); err != nil {
		return err
	}
	from := s.lint
	for _, c := range s.commands {
		if err := l.carryOut(s, c); err != nil {
			return l.f.located(err, l.f.at(c.Location()))
		}
	}
	s.lint = from
	for i, id := range s.steps {
		l.number(id, i+1, len(s.steps))
	}
	s.lowered = true
	return nil
}

// carryOut lowers one instruction, under the checks that the comment above it chooses.
func (l *lowering) carryOut(s *stage, c command) error {
	past := s.past
	s.lint = l.lint.WithMergedConfigFromComments(c.Comments()) // "# check=" above FROM is for that line alone
	if err := l.expand(s, c.Command); err != nil {
		return err
	}
	if err := l.instruction(s, c); err != nil {
		return err
	}
	if s.past == past {
		return nil
	}
	return l.spend(len(s.past.entry.CreatedBy))
}

// number gives a step its number, and the Merge that follows a COPY --link the same.
func (l *lowering) number(id dag.ID, step, steps int) {
	v := l.graph.Vertex(id)
	v.Step, v.Steps = step, steps
	if int(id)+1 == len(l.graph.Vertices) {
		return
	}
	next := l.graph.Vertex(id + 1)
	if m, ok := next.Op.(*dag.Merge); ok && next.Inputs[m.Changes] == id {
		next.Step, next.Steps = step, steps
	}
}

// begin gives a stage what its base leaves it.
func (l *lowering) begin(s *stage) error {
	switch {
	case s.base != nil:
		s.inherit(s.base)
	case s.outside.empty():
		if s.source.BaseName == scratch {
			s.platform = l.platform // BuildKit takes no --platform for what is nobody's
		}
		s.meta, s.config = emptyMeta(s.platform), s.emptyConfig()
	default:
		if err := l.fromOutside(s); err != nil {
			return err
		}
	}
	s.config.OnBuild = nil
	if err := l.spend(s.weight()); err != nil {
		return l.f.fail(s.pos, err)
	}
	if l.o.NoInheritedLabels {
		s.config.Labels = nil
	}
	if s.replaced {
		s.env = newEnvironment(0)
		return nil
	}
	if !hasPath(s.config.Env) && s.platform.OS != windows {
		s.config.Env = append(s.config.Env, "PATH="+defaultPath)
	}
	if s.env == nil {
		s.env = newEnvironment(0)
	}
	s.env = s.env.with(s.config.Env)
	s.envAt = envPlaces(s.config.Env)
	if s.config.WorkingDir != "" {
		s.config.WorkingDir = joinDir(s.config.WorkingDir, s.config.WorkingDir) // sic: a relative one is joined to itself
	}
	return nil
}

// windows has another default shell, and PATH is its system's business.
const windows = "windows"

func hasPath(env []string) bool {
	return slices.ContainsFunc(env, func(kv string) bool { k, _, _ := strings.Cut(kv, "="); return k == "PATH" })
}

// emptyConfig is that of FROM scratch. A named context without an image that stands for a stage brings none at all.
func (s *stage) emptyConfig() runConfig {
	if s.replaced {
		return runConfig{}
	}
	return runConfig{WorkingDir: "/"}
}

// weight is about what a stage takes of memory for what its base leaves it.
func (s *stage) weight() int {
	c := s.config
	return 64 * (len(c.Env) + len(c.Labels) + len(c.ExposedPorts) + len(c.Volumes) + len(s.args.list))
}

// envPlaces returns where ENV replaces a variable: at its first place.
func envPlaces(env []string) map[string]int {
	at := make(map[string]int, len(env))
	for i, kv := range env {
		key, _, _ := strings.Cut(kv, "=")
		if _, ok := at[key]; !ok {
			at[key] = i
		}
	}
	return at
}

func (s *stage) inherit(base *stage) {
	s.platform, s.image, s.root, s.files, s.layers, s.past = base.platform, base.image, base.root, base.files, base.layers, base.past
	s.meta, s.config, s.env = base.meta, base.config.clone(), base.env
	s.args, s.workdirSet, s.unknown = base.args.clone(), base.workdirSet, base.unknown
}

// fromOutside begins a stage with an image, or with the files of a local context.
func (l *lowering) fromOutside(s *stage) error {
	r, err := l.root(s, s.outside, nil)
	if err != nil {
		return err
	}
	s.files = r.files
	if r.image == nil {
		s.meta, s.config = emptyMeta(s.platform), s.emptyConfig()
		s.layers = &layerList{of: r.files, state: r.files}
		s.past = &history{entry: historyEntry{CreatedBy: "FROM " + s.outside.ref, Comment: exporterComment}}
		return nil
	}
	base, err := readConfig(r.image)
	if err != nil {
		return l.f.fail(l.f.word(s.pos, s.outside.ref), fmt.Errorf("read the configuration of %s: %w", s.outside.ref, err))
	}
	key := l.baseRef(s, s.outside, nil)
	key.Pos = dag.Pos{}
	s.unknown = l.unknown[key]
	s.image, s.root, s.meta, s.config = r.image, r.files, base.imageMeta, base.Config
	for _, h := range base.History {
		s.past = &history{entry: h, before: s.past}
	}
	if s.files != dag.Empty {
		checkBasePlatform(s, s.outside.ref, s.platform, platforms.Platform{OS: base.OS, Architecture: base.Architecture, Variant: base.Variant})
	}
	if s.replaced && base.OS != "" && base.Architecture != "" {
		s.platform = platforms.Platform{OS: base.OS, Architecture: base.Architecture, Variant: base.Variant, OSVersion: base.OSVersion}
	}
	return nil
}

// root returns the vertex of a thing from outside, the same for all who need it. c is the instruction that takes files from it, nil for FROM.
func (l *lowering) root(s *stage, x outside, c *command) (*root, error) {
	if x.empty() {
		return &root{files: dag.Empty}, nil
	}
	ref := l.baseRef(s, x, c)
	key := baseKey{x, ref.Platform}
	if r, ok := l.roots[key]; ok {
		return r, nil
	}
	v := &dag.Vertex{Pos: ref.Pos, Name: "FROM " + x.ref, Stage: s.label(), Platform: ref.Platform}
	r := &root{files: dag.Empty}
	if x.local != "" {
		from := dag.Source{Context: x.local, Input: dag.Scratch}
		v.Op = &dag.Copy{Base: dag.Scratch, Sources: []dag.CopySource{{From: from, Paths: []string{"."}}}, Dest: "/"}
		r.files = l.graph.Add(v)
		l.roots[key] = r
		return r, nil
	}
	img, err := l.image(ref)
	if err != nil {
		return nil, err
	}
	r.image = img
	if len(img.Layers) > 0 {
		v.Op = imageOp(img, x)
		r.files = l.graph.Add(v)
	}
	if c == nil && r.files != dag.Empty {
		s.steps = append(s.steps, r.files)
	}
	l.roots[key] = r
	return r, nil
}

// image asks for an image, once.
func (l *lowering) image(ref BaseRef) (*image.Image, error) {
	key := ref
	key.Pos = dag.Pos{}
	if img, ok := l.asked[key]; ok {
		return img, nil
	}
	img, err := l.ask(ref)
	if errors.Is(err, ErrUnknownBase) && l.unknown != nil {
		img, err = &image.Image{RawConfig: []byte("{}")}, nil
		l.unknown[key] = true
	}
	if own := (*Error)(nil); errors.As(err, &own) {
		return nil, err
	}
	if err != nil { // the name may have been meant for a stage's
		return nil, &Error{Pos: ref.Pos, Err: fmt.Errorf("%s: %w", ref.Ref, err), Hint: didYouMean(nearest(ref.Ref, l.stageNames))}
	}
	l.asked[key] = img
	return img, nil
}

func imageOp(img *image.Image, x outside) *dag.Image {
	chain := image.ChainIDs(img.Layers)
	op := &dag.Image{ChainID: chain[len(chain)-1].String(), Ref: x.ref, Layers: layers(img), Source: x.layout}
	if op.Source == "" {
		op.Source = "registry"
	}
	return op
}

func layers(img *image.Image) []dag.Layer {
	var out []dag.Layer
	for _, l := range img.Layers {
		d := l.Descriptor
		out = append(out, dag.Layer{DiffID: l.DiffID.String(), Digest: d.Digest.String(), Size: d.Size, MediaType: string(d.MediaType), URLs: d.URLs})
	}
	return out
}

// triggersOfImage returns the ONBUILD instructions of a stage's base image.
func (l *lowering) triggersOfImage(s *stage) ([]string, error) {
	if s.outside.local != "" {
		return nil, nil
	}
	img, err := l.image(l.baseRef(s, s.outside, nil))
	if err != nil {
		return nil, err
	}
	base, err := readConfig(img)
	if err != nil {
		return nil, l.f.fail(l.f.word(s.pos, s.outside.ref), fmt.Errorf("read the configuration of %s: %w", s.outside.ref, err))
	}
	return base.Config.OnBuild, nil
}

// source returns what an origin shows, as an input of the vertex that takes it.
func (l *lowering) source(s *stage, from origin, c *command, in inputs) (dag.Source, error) {
	if from.stage != nil && from.stage.replaced && from.stage.outside.local != "" {
		from = origin{outside: from.stage.outside} // the directory itself, not a copy of all of it
	}
	if from.stage != nil {
		return dag.Source{Input: in.ref(from.stage.files)}, nil
	}
	if from.outside.local != "" {
		return dag.Source{Context: from.outside.local, Input: dag.Scratch}, nil
	}
	r, err := l.root(s, from.outside, c)
	if err != nil {
		return dag.Source{}, err
	}
	return dag.Source{Input: in.ref(r.files)}, nil
}

// expand replaces the variables of an instruction, in place. ARG does it itself, since a default that is not used is not looked at.
func (l *lowering) expand(s *stage, c instructions.Command) error {
	if _, ok := c.(*instructions.ArgCommand); ok {
		return nil
	}
	if x, ok := c.(instructions.SupportsSingleWordExpansion); ok {
		if err := x.Expand(func(word string) (string, error) { return l.expandWord(s, c, word) }); err != nil {
			return err
		}
	}
	x, ok := c.(instructions.SupportsSingleWordExpansionRaw)
	if !ok {
		return nil
	}
	return x.ExpandRaw(func(body string) (string, error) { return l.expandHeredoc(s, c, body) })
}

func (l *lowering) instruction(s *stage, c command) error {
	if err := onWindows(s, c); err != nil {
		return err
	}
	switch i := c.Command.(type) {
	case *instructions.RunCommand:
		return l.run(s, c, i)
	case *instructions.CopyCommand:
		return l.copy(s, c, i)
	case *instructions.AddCommand:
		return l.add(s, c, i)
	case *instructions.WorkdirCommand:
		return l.workdir(s, c, i)
	case *instructions.ArgCommand:
		return l.arg(s, i)
	case *instructions.ExposeCommand:
		return l.expose(s, i)
	}
	return l.configure(s, c.Command)
}

// onWindows refuses what changes files of a Windows image, whose layers have another form.
func onWindows(s *stage, c command) error {
	if s.platform.OS != windows {
		return nil
	}
	switch c.Command.(type) {
	case *instructions.RunCommand, *instructions.CopyCommand, *instructions.AddCommand, *instructions.WorkdirCommand:
		return fmt.Errorf("%s on %s is not possible: the files of a Windows image cannot be changed on Linux",
			strings.ToUpper(c.Name()), formatPlatform(s.platform))
	}
	return nil
}

// step adds the vertex of an instruction to the graph and its changes to the stage.
func (l *lowering) step(s *stage, c command, v *dag.Vertex, name string) {
	v.Pos, v.Stage, v.Platform = l.f.at(c.Location()), s.label(), formatPlatform(s.platform)
	v.Name = upperKeyword(name)
	if c.trigger {
		v.Name = "ONBUILD " + v.Name
	}
	v.Skip = skipped(s.lint)
	v.NoCache = l.o.NoCache || slices.ContainsFunc(l.o.NoCacheStages, func(n string) bool { return strings.EqualFold(n, s.label()) })
	s.files = l.graph.Add(v)
	l.keepText(s, c, s.files)
	s.steps = append(s.steps, s.files)
	s.layers = &layerList{of: s.files, state: s.files, below: s.layers}
}

func upperKeyword(text string) string {
	keyword, rest, ok := strings.Cut(text, " ")
	if !ok {
		return strings.ToUpper(text)
	}
	return strings.ToUpper(keyword) + " " + rest
}

// plan finishes the target.
func (l *lowering) plan() (*Plan, error) {
	t := l.target
	config, err := l.finish(t)
	if err != nil {
		return nil, err
	}
	out := dag.Target{Platform: platforms.FormatAll(platforms.Normalize(l.platform)), Files: t.files, Manifest: dag.Empty, Config: config}
	if l.o.Image {
		out.Manifest = l.manifest(t, config)
	}
	return &Plan{Plan: dag.Plan{Graph: &l.graph, Targets: []dag.Target{out}, Index: dag.Empty}, Warnings: l.sortedWarnings(), texts: l.texts}, nil
}

// A layerList is the steps of a stage and of those it is FROM that make layers, last first. Lists share their tails.
type layerList struct {
	// of is the step; state is the file system after it, which is another vertex where the step was merged (COPY --link).
	of, state dag.ID
	below     *layerList
}

// manifest adds a Pack for each layer, and the Manifest.
func (l *lowering) manifest(t *stage, config []byte) dag.ID {
	compression := l.o.Compression
	if compression == "" {
		compression = dag.Gzip
	}
	platform := platforms.FormatAll(platforms.Normalize(l.platform))
	op := &dag.Manifest{Config: config, Docker: l.o.Docker, Epoch: l.epoch, OmitHistory: l.o.OmitHistory,
		Annotations: l.o.Annotations.of(ManifestAnnotation, platform), Descriptor: l.o.Annotations.of(ManifestDescriptorAnnotation, platform)}
	if t.image != nil {
		op.BaseLayers, op.BaseHistory = layers(t.image), len(t.image.Config.History)
	}
	if op.OmitHistory {
		op.BaseHistory = 0
	}
	m := &dag.Vertex{Op: op, Name: "image", Stage: t.label(), Platform: platform}
	in := inputs{m}
	pack := dag.Pack{Of: 0, Above: dag.Scratch, Compression: compression, Docker: l.o.Docker}
	if l.o.RewriteTimes {
		pack.Epoch = l.epoch
	}
	if l.squashes(t) > 0 {
		if l.o.SquashAll {
			op.BaseLayers = nil
		}
		op.Packs = []dag.Ref{in.ref(l.graph.Add(l.squash(t, &pack)))}
		return l.graph.Add(m)
	}
	steps := t.layerSteps()
	merged := slices.ContainsFunc(steps, func(at *layerList) bool { return at.state != at.of })
	for _, at := range steps {
		of := l.graph.Vertex(at.of)
		pack := pack
		pack.FromContext = pack.Epoch != nil && l.fromContext(of)
		id := l.graph.Add(&dag.Vertex{Op: &pack, Inputs: []dag.ID{at.of}, Pos: of.Pos, Name: "layer of " + of.Name, Stage: of.Stage, Platform: of.Platform})
		op.Packs = append(op.Packs, in.ref(id))
		switch {
		case at.state != at.of:
			op.States = append(op.States, in.ref(at.state))
		case merged:
			op.States = append(op.States, dag.Scratch)
		}
	}
	return l.graph.Add(m)
}

// fromContext reports whether a step takes all its files, but for heredocs, from where times say nothing: build contexts, and checkouts.
func (l *lowering) fromContext(v *dag.Vertex) bool {
	op, ok := v.Op.(*dag.Copy)
	return ok && len(op.Sources) > 0 && !slices.ContainsFunc(op.Sources, func(s dag.CopySource) bool {
		if s.From.Context != "" || s.From.Input == dag.Scratch {
			return s.From.Context == ""
		}
		g, ok := l.graph.Vertex(v.Inputs[s.From.Input]).Op.(*dag.Git)
		return !ok || g.MTime == "commit"
	})
}

// inputs adds to the inputs of a vertex.
type inputs struct{ v *dag.Vertex }

// ref returns the Ref of a vertex, as a new input if need be.
func (in inputs) ref(id dag.ID) dag.Ref {
	if id == dag.Empty {
		return dag.Scratch
	}
	if i := slices.Index(in.v.Inputs, id); i >= 0 {
		return dag.Ref(i)
	}
	in.v.Inputs = append(in.v.Inputs, id)
	return dag.Ref(len(in.v.Inputs) - 1)
}
