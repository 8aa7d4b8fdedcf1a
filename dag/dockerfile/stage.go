package dockerfile

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/buildkit/frontend/dockerfile/shell"

	"img/dag"
	"img/registry/image"
)

// scratch is the name of the empty base.
const scratch = "scratch"

// A build is a Dockerfile under given options: its stages and what they need, before any image is known.
type build struct {
	f    *File
	o    Options
	lex  *shell.Lex
	lint *linter.Linter
	// args are the build arguments and the caller's proxies; global is the scope of FROM.
	args                    map[string]string
	global                  *environment
	globalNames             map[string]bool
	globals                 []instructions.ArgCommand
	epoch                   *int64
	platform, buildPlatform platforms.Platform
	stages                  []*stage
	stageNames              []string
	byName                  map[string]*stage // the last of a name
	target                  *stage
	warnings                []Warning
	// The work done so far: bytes of text, steps of pattern matching in words and in names of steps, names compared.
	spent, matched, named, compared int
	// absolute are the paths that relative WORKDIRs come to, by their line.
	absolute map[int]string
	// declared are the names of all ARGs, for build arguments that nobody asks for.
	declared map[string]bool
}

// A stage is FROM and what follows it. The lower part is filled while it is lowered.
type stage struct {
	index    int
	name     string // "" without AS
	source   instructions.Stage
	pos      dag.Pos
	lint     *linter.Linter
	platform platforms.Platform
	// One of these is what the stage begins with: an earlier stage, or something from outside.
	base    *stage
	outside outside
	// replaced: a named context of the stage's name stands for it, and its instructions do not count.
	replaced  bool
	commands  []command
	reachable bool

	lowered    bool
	image      *image.Image // the image at the root of the chain, nil for none
	root       dag.ID       // its files; dag.Empty for none
	files      dag.ID
	layers     *layerList
	past       *history
	config     runConfig
	meta       imageMeta
	env        *environment
	args       arguments
	envAt      map[string]int // places in config.Env by key
	steps      []dag.ID
	workdirSet bool
	// unknown: the base's configuration is not known, so a variable may be set that looks undefined.
	unknown bool
	// fromArgs are the variables that FROM uses, ownArgs the ARGs of the stage itself: its outline.
	fromArgs       []string
	ownArgs        []OutlineArg
	cmd, entry, hc []parser.Range
}

// label is the stage's name, or its index.
func (s *stage) label() string {
	if s.name != "" {
		return s.name
	}
	return strconv.Itoa(s.index)
}

// A command is an instruction of a stage, with where it takes files from: one source for COPY --from, one for each mount of RUN.
type command struct {
	instructions.Command
	from []origin
	// trigger: an ONBUILD of the base.
	trigger bool
}

// An origin is where files come from: a stage, something from outside, or neither.
type origin struct {
	stage   *stage
	outside outside
}

// An outside is a thing that is no stage: an image, an image layout or a local directory. The zero value is scratch.
type outside struct {
	// ref is the name as written, after expansion; for a named context of an image, the image's.
	ref string
	// local is the name of a local context, instead of an image.
	local string
	// layout is the executor's source of an image layout.
	layout string
	// named is the name of the context that stands for an image.
	named string
}

func (x outside) empty() bool { return x == outside{} }

// prepare reads the file under options: scopes, stages, dependencies, target.
// An error may come with a build, for what has been found out until then.
func (f *File) prepare(o Options) (_ *build, err error) {
	b := &build{f: f, o: o, lex: shell.NewLex(f.escape), byName: map[string]*stage{}, declared: map[string]bool{}, globalNames: map[string]bool{}, absolute: map[int]string{}}
	defer func() { err = f.explain(b, err) }()
	b.args = maps.Clone(o.ProxyArgs)
	if b.args == nil {
		b.args = map[string]string{}
	}
	maps.Copy(b.args, o.BuildArgs)
	if syntax := b.args["BUILDKIT_SYNTAX"]; syntax != "" && !ownSyntax(syntax) {
		return nil, f.foreign(syntax, dag.Pos{})
	}
	if b.lint, err = b.newLinter(); err != nil {
		return nil, err
	}
	if err := b.readPlatforms(); err != nil {
		return b, err
	}
	sources, globals, err := f.read(b.lint)
	if err != nil {
		return b, err
	}
	for _, st := range sources {
		b.stageNames = append(b.stageNames, st.Name)
	}
	b.globals = globals
	for _, w := range o.Found {
		b.warn(b.lint, w.Rule, w.Pos, w.Text)
	}
	b.checkFile(sources, globals)
	if err := b.scope(sources, globals); err != nil {
		return b, err
	}
	for i, st := range sources {
		if err := b.addStage(i, st); err != nil {
			return b, err
		}
	}
	if err := b.findTarget(); err != nil {
		return b, err
	}
	for _, s := range b.stages {
		if err := b.addCommands(s); err != nil {
			return b, err
		}
	}
	return b, b.circular()
}

func (b *build) readPlatforms() (err error) {
	b.platform, b.buildPlatform = platforms.DefaultSpec(), platforms.DefaultSpec()
	if b.o.Platform != "" {
		if b.platform, err = platforms.Parse(b.o.Platform); err != nil {
			return b.f.fail(dag.Pos{}, fmt.Errorf("platform %q: %w", b.o.Platform, err))
		}
		b.buildPlatform = b.platform
	}
	if b.o.BuildPlatform != "" {
		if b.buildPlatform, err = platforms.Parse(b.o.BuildPlatform); err != nil {
			return b.f.fail(dag.Pos{}, fmt.Errorf("build platform %q: %w", b.o.BuildPlatform, err))
		}
	}
	return nil
}

// scope computes the global scope, and notes what is declared anywhere.
func (b *build) scope(stages []instructions.Stage, globals []instructions.ArgCommand) (err error) {
	if b.o.Epoch != nil {
		b.args[epochName] = strconv.FormatInt(*b.o.Epoch, 10)
	}
	if b.global, err = b.globalArgs(globals, b.args); err != nil {
		return err
	}
	for _, g := range globals {
		for _, a := range g.Args {
			b.globalNames[a.Key], b.declared[a.Key] = true, true
		}
	}
	for _, st := range stages {
		for _, c := range st.Commands {
			if arg, ok := c.(*instructions.ArgCommand); ok {
				for _, a := range arg.Args {
					b.declared[a.Key] = true
				}
			}
		}
	}
	return b.resolveEpoch(stages)
}

func (b *build) addStage(index int, st instructions.Stage) error {
	s := &stage{index: index, name: st.Name, pos: b.f.at(st.Location), platform: b.platform, root: dag.Empty, files: dag.Empty,
		lint: b.lint.WithMergedConfigFromComments(st.Comments)}
	word, err := b.fromWord(st.BaseName, b.global)
	b.checkFrom(st, s.lint, word)
	if err != nil {
		return b.f.located(err, b.f.word(s.pos, st.BaseName))
	}
	if word.Result == "" {
		e := &Error{Pos: b.f.word(s.pos, st.BaseName), Err: fmt.Errorf("base name (%s) should not be blank", st.BaseName)}
		for name := range word.Unmatched {
			e.Hint = didYouMean(nearest(name, b.global.Keys()))
		}
		return e
	}
	if err := b.stagePlatform(s, st); err != nil {
		return err
	}
	s.fromArgs = append(s.fromArgs, slices.Sorted(maps.Keys(word.Matched))...)
	written := st.BaseName
	st.BaseName = word.Result
	s.source = st
	b.stages = append(b.stages, s)
	if s.name != "" {
		defer func() { b.byName[s.name] = s }()
		if key, c, ok := b.context(s.name, s.platform); ok {
			s.replaced, s.outside = true, contextOutside(s.name, key, c)
			return nil
		}
	}
	if base, ok := b.byName[st.BaseName]; ok {
		s.base = base
		return nil
	}
	return b.stageBase(s, b.f.word(s.pos, written))
}

// stageBase gives a stage a base that is no stage.
func (b *build) stageBase(s *stage, pos dag.Pos) (err error) {
	if s.source.BaseName == scratch {
		return nil
	}
	s.outside, err = b.outside(s.source.BaseName, s.platform)
	if err != nil {
		return &Error{Pos: pos, Err: err, Hint: didYouMean(nearest(s.source.BaseName, b.stageNames[:s.index]))}
	}
	b.lookAlikeStage(s, s.outside, b.stages[:s.index], pos)
	return nil
}

func (b *build) stagePlatform(s *stage, st instructions.Stage) error {
	if st.Platform == "" {
		return nil
	}
	pos := b.f.word(s.pos, st.Platform)
	word, err := b.fromWord(st.Platform, b.global)
	b.checkFrom(st, s.lint, word)
	if err != nil {
		return b.f.located(fmt.Errorf("failed to process arguments for platform %s: %w", st.Platform, err), pos)
	}
	b.checkFromPlatform(st, s.lint, word)
	s.fromArgs = append(s.fromArgs, slices.Sorted(maps.Keys(word.Matched))...)
	hint := ""
	for _, name := range slices.Sorted(maps.Keys(word.Unmatched)) {
		hint = didYouMean(nearest(name, b.global.Keys()))
	}
	if word.Result == "" {
		return &Error{Pos: pos, Err: fmt.Errorf("empty platform value from expression %s", st.Platform), Hint: hint}
	}
	if s.platform, err = platforms.Parse(word.Result); err != nil {
		return &Error{Pos: pos, Err: fmt.Errorf("failed to parse platform %s: %w", st.Platform, err), Hint: hint}
	}
	return nil
}

// context returns the named build context of a name for a platform, and the key under which Options and the executor know it. The one for
// the platform alone goes first. Names are compared as buildx writes them: familiar, without ":latest"; case does not count.
func (b *build) context(name string, p platforms.Platform) (key string, c Context, ok bool) {
	if strings.EqualFold(name, scratch) || strings.EqualFold(name, dag.MainContext) {
		return "", Context{}, false
	}
	names := []string{strings.ToLower(name)}
	if named, err := reference.ParseNormalizedNamed(name); err == nil {
		names = append(names, strings.ToLower(strings.TrimSuffix(reference.FamiliarString(named), ":latest")))
	}
	for _, suffix := range []string{"::" + formatPlatform(p), ""} {
		for _, n := range names {
			if c, ok := b.o.Contexts[n+suffix]; ok {
				return n + suffix, c, true
			}
		}
	}
	return "", Context{}, false
}

// contextOutside is what a context of a key stands for where the Dockerfile has name.
func contextOutside(name, key string, c Context) outside {
	switch {
	case c.Local:
		return outside{ref: name, local: key}
	case c.Layout != "":
		return outside{ref: name, layout: c.Layout}
	case c.Image == scratch:
		return outside{}
	}
	return outside{ref: c.Image, named: name}
}

// outside finds what a name that is no stage stands for on a platform: a named context, else an image.
func (b *build) outside(name string, p platforms.Platform) (outside, error) {
	if key, c, ok := b.context(name, p); ok {
		return contextOutside(name, key, c), nil
	}
	if _, err := reference.ParseNormalizedNamed(name); err != nil {
		return outside{}, fmt.Errorf("failed to parse stage name %q: %w", name, err)
	}
	return outside{ref: name}, nil
}

// lookAlikeStage warns of an image name that is probably meant to be a stage's.
func (b *build) lookAlikeStage(s *stage, x outside, stages []*stage, pos dag.Pos) {
	if x.ref == "" || x.local != "" || x.layout != "" || x.named != "" || strings.ContainsAny(x.ref, "/:@.") {
		return
	}
	names := func() []string { return b.stageNames[:len(stages)] }
	if near := b.near(x.ref, names); near != "" {
		b.warn(s.lint, ruleStageLookAlike, pos, suggest(fmt.Sprintf("%q is no stage and is taken for an image", x.ref), near))
	}
}

// targetHint says what was meant by a target. A number is none, as in BuildKit, although --from takes it.
func (b *build) targetHint() string {
	i, err := strconv.Atoi(b.o.Target)
	switch {
	case err != nil || i < 0 || i >= len(b.stages):
		return didYouMean(nearest(b.o.Target, b.stageNames))
	case b.stages[i].name == "":
		return fmt.Sprintf("targets are names, and stage %d has none: give it one, FROM %s AS NAME", i, b.stages[i].source.BaseName)
	}
	return fmt.Sprintf("targets are names: stage %d is %q", i, b.stages[i].name)
}

func (b *build) findTarget() error {
	if b.o.Target == "" {
		b.target = b.stages[len(b.stages)-1]
		return nil
	}
	s, ok := b.byName[strings.ToLower(b.o.Target)]
	if !ok {
		return &Error{Pos: dag.Pos{File: b.f.name}, Err: fmt.Errorf("target stage %q could not be found", b.o.Target),
			Hint: b.targetHint()}
	}
	b.target = s
	return nil
}

func (b *build) addCommands(s *stage) error {
	if s.replaced {
		return nil
	}
	for _, c := range s.source.Commands {
		cmd, err := b.command(s, c)
		if err != nil {
			return err
		}
		s.commands = append(s.commands, cmd)
	}
	return nil
}

// command finds where an instruction takes files from.
func (b *build) command(s *stage, c instructions.Command) (command, error) {
	cmd := command{Command: c}
	switch c := c.(type) {
	case *instructions.CopyCommand:
		if c.From == "" {
			return cmd, nil
		}
		from, err := b.copyFrom(s, c)
		cmd.from = []origin{from}
		return cmd, err
	case *instructions.RunCommand:
		for _, m := range instructions.GetMounts(c) {
			from, err := b.origin(s, m.From, b.f.at(c.Location()))
			if err != nil {
				return cmd, err
			}
			cmd.from = append(cmd.from, from)
		}
	}
	return cmd, nil
}

func (b *build) copyFrom(s *stage, c *instructions.CopyCommand) (origin, error) {
	pos := b.f.word(b.f.at(c.Location()), c.From)
	word, err := b.fromWord(c.From, newEnvironment(0))
	if err != nil {
		return origin{}, b.f.located(err, pos)
	}
	if word.Result != c.From {
		return origin{}, b.f.fail(pos, errors.New("variable expansion is not supported for --from, define a new stage with FROM using ARG from global scope as a workaround"))
	}
	return b.origin(s, c.From, pos)
}

// origin finds a --from: a stage by name or number, a named context, or an image.
func (b *build) origin(s *stage, name string, pos dag.Pos) (origin, error) {
	if name == "" {
		return origin{}, nil
	}
	pos = b.f.word(pos, name)
	if i, err := strconv.Atoi(name); err == nil {
		if i < 0 || i >= len(b.stages) {
			return origin{}, b.f.fail(pos, fmt.Errorf("invalid stage index %d", i))
		}
		return origin{stage: b.stages[i]}, nil
	}
	if other, ok := b.byName[strings.ToLower(name)]; ok {
		return origin{stage: other}, nil
	}
	if name == scratch {
		return origin{}, nil
	}
	x, err := b.outside(name, b.platform)
	if err != nil {
		return origin{}, &Error{Pos: pos, Err: err, Hint: didYouMean(nearest(name, b.stageNames))}
	}
	b.lookAlikeStage(s, x, b.stages, pos)
	return origin{outside: x}, nil
}

// circular reports stages that need each other. A stage can name a later one, so the graph of --from may have circles.
func (b *build) circular() error {
	const open, done = 1, 2
	state := make([]int, len(b.stages))
	type frame struct {
		stage *stage
		needs []need
	}
	for _, s := range b.stages {
		if state[s.index] == done {
			continue
		}
		state[s.index] = open
		for path := []frame{{s, s.needs()}}; len(path) > 0; {
			top := &path[len(path)-1]
			if len(top.needs) == 0 {
				state[top.stage.index] = done
				path = path[:len(path)-1]
				continue
			}
			next := top.needs[0]
			top.needs = top.needs[1:]
			switch state[next.stage.index] {
			case open:
				return b.f.fail(b.f.at(next.at.Location()), fmt.Errorf("circular dependency detected on stage: %s", next.stage.label()))
			case 0:
				state[next.stage.index] = open
				path = append(path, frame{next.stage, next.stage.needs()})
			}
		}
	}
	return nil
}

// A need is another stage that an instruction takes files from.
type need struct {
	stage *stage
	at    instructions.Command
}

func (s *stage) needs() (needs []need) {
	for _, c := range s.commands {
		for _, from := range c.from {
			if from.stage != nil {
				needs = append(needs, need{from.stage, c.Command})
			}
		}
	}
	return needs
}

// reach marks the stages that the target needs. Triggers of bases join their stage's commands on the way, since they may need more;
// those of images come from imageTriggers.
func (b *build) reach(imageTriggers func(*stage) ([]string, error)) error {
	work := []*stage{b.target}
	if b.o.AllStages {
		work = slices.Clone(b.stages)
	}
	for len(work) > 0 {
		s := work[len(work)-1]
		work = work[:len(work)-1]
		if s.reachable {
			continue
		}
		s.reachable = true
		if err := b.addTriggers(s, imageTriggers); err != nil {
			return err
		}
		if s.base != nil {
			work = append(work, s.base)
		}
		for _, n := range s.needs() {
			work = append(work, n.stage)
		}
	}
	return nil
}
