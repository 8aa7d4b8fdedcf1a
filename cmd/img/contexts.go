package main

// Where the files of a build come from: PATH, -f, --build-context and ignore files.
//
// A context is loaded (fetched, or read from standard input) when something first asks for its files, and opened for the executor once it is
// known that a step takes files from it. What no step needs is never touched.

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"golang.org/x/sync/errgroup"

	"img/dag"
	"img/dag/dockerfile"
	"img/exec"
	"img/exec/fetch"
)

// Kinds of contexts. Those of images have no files before the build.
const (
	dirContext    = "dir"
	streamContext = "-" // standard input: a tar, or the text of a Dockerfile
	gitContext    = "git"
	httpContext   = "http"
	imageContext  = "docker-image"
	layoutContext = "oci-layout"
)

// A NamedContext says where a context is. Value is a directory, a URL, an image reference or DIR[:TAG|@DIGEST].
type NamedContext struct {
	Kind, Value string
}

// fetched reports whether a context's files are a copy of img's own, made for the build.
func (c NamedContext) fetched() bool {
	return c.Kind == streamContext || c.Kind == gitContext || c.Kind == httpContext
}

// mainContext reads PATH. A directory of that name goes before a URL.
func mainContext(path string) NamedContext {
	switch {
	case path == "-":
		return NamedContext{streamContext, path}
	case isDir(path):
		return NamedContext{dirContext, path}
	case isGitURL(path):
		return NamedContext{gitContext, path}
	case isHTTP(path):
		return NamedContext{httpContext, path}
	}
	return NamedContext{dirContext, path}
}

func isHTTP(s string) bool {
	return strings.HasPrefix(s, "http://") || strings.HasPrefix(s, "https://")
}

// parseContexts reads every --build-context, by name.
func parseContexts(list []string, g *Globals) (map[string]NamedContext, error) {
	out := map[string]NamedContext{}
	for _, s := range list {
		name, value, ok := strings.Cut(s, "=")
		if !ok || name == "" || value == "" {
			return nil, usagef("--build-context %q: the form is NAME=VALUE", s)
		}
		key, err := contextName(name)
		if err != nil {
			return nil, usagef("--build-context %s: %w", name, err)
		}
		if key == dag.MainContext || key == "scratch" {
			warnf(g.stderr, "--build-context %s has no effect: the name is reserved, and no instruction finds it", name)
			continue
		}
		if out[key], err = namedContext(value); err != nil {
			return nil, usagef("--build-context %s: %w", name, err)
		}
	}
	return out, nil
}

// contextName is a name as lowering compares it: lower case, an image's in its familiar form without ":latest", and the platform after "::"
// normalised.
func contextName(s string) (string, error) {
	name, platform, ok := strings.Cut(strings.ToLower(s), "::")
	named, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return "", err
	}
	name = strings.TrimSuffix(reference.FamiliarString(named), ":latest")
	if !ok {
		return name, nil
	}
	p, err := platforms.Parse(platform)
	if err != nil {
		return "", err
	}
	return name + "::" + platforms.Format(platforms.Normalize(p)), nil
}

// namedContext reads the value of a --build-context.
func namedContext(value string) (NamedContext, error) {
	if kind, rest, ok := strings.Cut(value, "://"); ok && (kind == imageContext || kind == layoutContext) {
		return NamedContext{kind, rest}, nil
	}
	c := mainContext(value)
	kind, _, colon := strings.Cut(value, ":")
	switch {
	case value == "-":
		return c, errors.New("standard input can be the build context alone")
	case c.Kind != dirContext || isDir(value) || !colon || strings.Contains(kind, "/"):
		return c, nil
	case kind == "target":
		return c, errors.New("target: names a target of a bake file, which img build does not read")
	case kind == "input":
		return c, errors.New("input: is between front ends and their daemon; there is no command line for it")
	case strings.HasPrefix(value, kind+"://"):
		return c, fmt.Errorf("%s:// is no kind of context; there are directories, docker-image://, oci-layout://, git and http(s) URLs", kind)
	}
	return c, nil
}

// namedContexts are the --build-context options as lowering sees them.
func (b *build) namedContexts() map[string]dockerfile.Context {
	out := map[string]dockerfile.Context{}
	for name, c := range b.r.Contexts {
		switch c.Kind {
		case imageContext:
			out[name] = dockerfile.Context{Image: c.Value}
		case layoutContext:
			out[name] = dockerfile.Context{Layout: name}
		default:
			out[name] = dockerfile.Context{Local: true}
		}
	}
	return out
}

// A place is the files of a context.
type place struct {
	once sync.Once
	err  error
	// dir is where they are, absolute.
	dir string
	// ours says that the files are img's, made for this build.
	ours bool
	// text is the content of the one file that came, where that is no archive. In a context from a URL it is also the file "context"
	// (BuildKit shows it so).
	text []byte
	// noText says why text is no Dockerfile.
	noText error
	// time is what SOURCE_DATE_EPOCH=<context> means, in seconds since 1970; nil if the context has none.
	time *int64
}

// places are the contexts that were loaded, by name.
type places struct {
	mu    sync.Mutex
	all   map[string]*place
	temps []func() error
}

func (p *places) get(name string) *place {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.all == nil {
		p.all = map[string]*place{}
	}
	if p.all[name] == nil {
		p.all[name] = &place{}
	}
	return p.all[name]
}

// temp makes a directory that is removed with the build.
func (p *places) temp(state string) (string, error) {
	dir, remove, err := exec.TempDir(state, "context-")
	if err != nil {
		return "", err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.temps = append(p.temps, remove)
	return dir, os.Chmod(dir, 0o755) // as the root of a context is; the state keeps others out
}

func (p *places) remove() {
	for _, remove := range p.temps {
		remove()
	}
}

// where is where a context is: the build context's place under dag.MainContext.
func (b *build) where(name string) NamedContext {
	if name == dag.MainContext {
		return b.r.Context
	}
	return b.r.Contexts[name]
}

// place loads a context, once.
func (b *build) place(ctx context.Context, name string) (*place, error) {
	p := b.places.get(name)
	p.once.Do(func() { p.err = b.load(ctx, name, b.where(name), p) })
	return p, p.err
}

func (b *build) load(ctx context.Context, name string, c NamedContext, p *place) (err error) {
	switch c.Kind {
	case streamContext:
		return withCode(exitUsage, b.readStream(ctx, p))
	case gitContext:
		return b.fetchGit(ctx, name, c.Value, p)
	case httpContext:
		return b.fetchHTTP(ctx, name, c.Value, p)
	}
	info, err := os.Stat(c.Value)
	if err != nil && strings.Contains(c.Value, "://") {
		return withHint(exitUsage, fmt.Errorf("%s %s: there is no such directory, and no such kind of address", contextTitle(name), fetch.Redact(c.Value)),
			"contexts are directories, git repositories (http, https, ssh, git) and http(s) URLs")
	} else if err != nil {
		return withCode(exitUsage, fmt.Errorf("%s: %w", contextTitle(name), err))
	}
	if !info.IsDir() {
		return withHint(exitUsage, fmt.Errorf("%s %s is not a directory", contextTitle(name), c.Value), "img build -f FILE DIR")
	}
	p.dir, err = filepath.Abs(c.Value)
	return err
}

// contextTitle is what messages call a context.
func contextTitle(name string) string {
	if name == dag.MainContext {
		return "build context"
	}
	return "build context " + name
}

// readStream takes the build context from standard input: a tar, unpacked for the time of the build, or a Dockerfile.
func (b *build) readStream(ctx context.Context, p *place) error {
	if err := b.newPlace(p); err != nil {
		return err
	}
	s, err := exec.ReadContext(ctx, b.g.stdin, p.dir)
	if err != nil {
		return fmt.Errorf("build context on standard input: %w", err)
	}
	b.taken(p, dag.MainContext, s)
	return nil
}

// taken notes what a stream was.
func (b *build) taken(p *place, name string, s *exec.Stream) {
	p.text, p.noText = s.Text, s.NoText
	p.setTime(s.Newest)
	for _, n := range s.Notes {
		b.find("ContextArchive", fmt.Sprintf("%s: %s", contextTitle(name), n))
	}
}

// contextTime is the ContextTime of dockerfile.Options.
func (b *build) contextTime(ctx context.Context) func(name string) (*int64, error) {
	return func(name string) (*int64, error) {
		p, err := b.place(ctx, name)
		return p.time, err
	}
}

// contextLoaded reports whether the build context's files are at hand without reading or fetching anything.
func (b *build) contextLoaded() bool {
	p := b.places.get(dag.MainContext)
	return !b.r.Context.fetched() || p.dir != "" && p.err == nil
}

// openContexts opens the contexts that the plan takes files from and are not open yet.
func (b *build) openContexts(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	needed, known := b.plan.Graph.Contexts(), len(b.found)
	for _, name := range needed {
		if b.contexts[name] == nil {
			g.Go(func() error { _, err := b.place(ctx, name); return err })
		}
	}
	if err := g.Wait(); err != nil {
		return err
	}
	for _, name := range needed {
		if b.contexts[name] == nil {
			if err := b.openContext(ctx, name); err != nil {
				return err
			}
		}
	}
	b.missingContexts()
	b.warnings.add(b.found[known:]...)
	return b.strict()
}

// missingContexts warns of directories that are not there and that no step needs: buildx refuses to build with them.
func (b *build) missingContexts() {
	for name, c := range b.r.Contexts {
		if c.Kind == dirContext && b.contexts[name] == nil && !isDir(c.Value) {
			warnf(b.g.stderr, "--build-context %s=%s: there is no such directory; nothing in this build needs it", name, c.Value)
		}
	}
}

// openContext opens a context for the executor, with its ignore file.
func (b *build) openContext(ctx context.Context, name string) error {
	p, err := b.place(ctx, name)
	if err != nil {
		return err
	}
	if real, err := filepath.EvalSymlinks(p.dir); err == nil && real == "/" {
		return withHint(exitUsage, fmt.Errorf("%s %s is the root directory, with /proc, /sys and all else", contextTitle(name), p.dir), "name the directory that holds the files")
	}
	ignore, rules, err := b.ignoreFile(name, p)
	if err != nil {
		return err
	}
	if name == dag.MainContext {
		b.ignore = ignore
	}
	index := ""
	if !p.ours {
		sum := sha256.Sum256([]byte(p.dir))
		index = filepath.Join(b.s.dir, "cache", "files", hex.EncodeToString(sum[:16]))
	}
	c, err := exec.OpenContext(p.dir, ignore.Patterns(), rules, index)
	if err != nil {
		return withCode(exitUsage, fmt.Errorf("%s: %w", contextTitle(name), err))
	}
	c.Streamed = p.ours
	c.RuleOf = func(path string) string {
		_, line := ignore.Match(path)
		return fmt.Sprintf("%s:%d", rules, line)
	}
	b.contexts[name] = c
	return nil
}

// maxDockerfile bounds a Dockerfile, maxIgnore an ignore file, in bytes.
const (
	maxDockerfile = 16 << 20
	maxIgnore     = 1 << 20
)

// readDockerfile finds the Dockerfile. It comes from standard input, from a URL, from the caller's files (beside a context that is the caller's,
// and by an absolute path always), or from a context that was fetched: then nothing outside of it is looked at.
func (b *build) readDockerfile(ctx context.Context) error {
	b.name = "Dockerfile"
	f := b.r.File
	switch {
	case f == "-":
		return b.dockerfileFrom(b.g.stdin)
	case isHTTP(f):
		return b.fetchDockerfile(ctx, f)
	case b.r.Context.fetched() && !filepath.IsAbs(f):
		return b.fetchedDockerfile(ctx)
	}
	candidates := []string{f}
	if f == "" {
		p, err := b.place(ctx, dag.MainContext)
		if err != nil {
			return err
		}
		candidates = defaultDockerfiles(p.dir)
	} else if !filepath.IsAbs(f) {
		// The original img and buildx take -f relative to the working directory; docker build of old, to the context.
		candidates = append(candidates, filepath.Join(b.r.Context.Value, f))
	}
	for _, f := range candidates {
		if done, err := b.localDockerfile(f); done || err != nil {
			return err
		}
	}
	return noDockerfile(shortName(candidates[0]), "name it with -f FILE, or give the directory that holds it")
}

// defaultDockerfiles are the names that are tried without -f.
func defaultDockerfiles(dir string) []string {
	return []string{filepath.Join(dir, "Dockerfile"), filepath.Join(dir, "dockerfile"), filepath.Join(dir, "Containerfile")}
}

func noDockerfile(name, hint string) error {
	return withHint(exitUsage, fmt.Errorf("failed to read dockerfile: open %s: no such file or directory", name), "%s", hint)
}

func (b *build) dockerfileFrom(r io.Reader) (err error) {
	b.source, err = limited(r, maxDockerfile)
	if err != nil {
		return withCode(exitUsage, fmt.Errorf("read Dockerfile: %w", err))
	}
	return nil
}

// limited reads all, or fails if there is more than a limit.
func limited(r io.Reader, limit int) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, int64(limit)+1))
	if err == nil && len(data) > limit {
		err = fmt.Errorf("more than %d MiB", limit>>20)
	}
	return data, err
}

// localDockerfile reads one of the caller's files; done is false if there is none of that name.
func (b *build) localDockerfile(name string) (done bool, err error) {
	f, err := openFile(name, b.r.File != "")
	if _, lerr := os.Lstat(name); errors.Is(err, fs.ErrNotExist) && lerr != nil {
		return false, nil
	}
	if err != nil {
		return false, withCode(exitUsage, fmt.Errorf("failed to read dockerfile: open %s: %w", shortName(name), rootCause(err)))
	}
	defer f.Close()
	b.name, b.beside = shortName(name), name
	return true, b.dockerfileFrom(f)
}

// rootCause is an error of a file without the path, for messages that name it already.
func rootCause(err error) error {
	var path *fs.PathError
	if errors.As(err, &path) {
		return path.Err
	}
	return err
}

// openFile opens a file. A fifo, which may have no writer for ever, is opened only if it was asked for by name: -f <(command).
func openFile(name string, named bool) (*os.File, error) {
	info, err := os.Stat(name)
	switch link, lerr := os.Readlink(name); {
	case errors.Is(err, fs.ErrNotExist) && lerr == nil:
		return nil, fmt.Errorf("it is a link to %s: %w", link, fs.ErrNotExist)
	case err != nil:
		return nil, err
	case info.IsDir():
		return nil, errors.New("it is a directory")
	case !named && !info.Mode().IsRegular():
		return nil, errors.New("it is no regular file")
	}
	return os.Open(name)
}

// fetchedDockerfile reads the Dockerfile of a context that was fetched.
func (b *build) fetchedDockerfile(ctx context.Context) error {
	p, err := b.place(ctx, dag.MainContext)
	if err != nil {
		return err
	}
	if p.text != nil {
		return b.textDockerfile(p)
	}
	candidates := defaultDockerfiles("")
	if b.r.File != "" {
		candidates = []string{b.r.File}
	}
	for _, name := range candidates {
		text, err := exec.ReadInside(p.dir, name, maxDockerfile)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		b.name, b.source = filepath.Clean(name), text
		return withCode(exitUsage, err)
	}
	return noDockerfile(candidates[0], "-f names a file of the context; a Dockerfile of your own goes with its absolute path, or -f -")
}

// textDockerfile takes what came instead of a tar for the Dockerfile.
func (b *build) textDockerfile(p *place) error {
	switch {
	case b.r.File == "":
	case b.r.Context.Kind == streamContext:
		return usagef("ambiguous Dockerfile source: what is on standard input is no tar, and -f %s names another Dockerfile", b.r.File)
	default: // BuildKit takes what it fetched without a word
		b.find("DockerfileIgnored", fmt.Sprintf("-f %s has no effect: %s is a Dockerfile itself", b.r.File, fetch.Redact(b.r.Context.Value)))
	}
	b.source = p.text
	return withCode(exitUsage, p.noText)
}

// find notes a warning about contexts.
func (b *build) find(rule, text string) {
	b.places.mu.Lock()
	defer b.places.mu.Unlock()
	b.found = append(b.found, dockerfile.Warning{Rule: rule, Text: text, Own: true})
}

// shortName is a path as people typed it, or relative to where they are.
func shortName(p string) string {
	wd, err := os.Getwd()
	if err != nil {
		return p
	}
	if rel, err := filepath.Rel(wd, p); err == nil && !strings.HasPrefix(rel, "..") {
		return rel
	}
	return p
}

// ignoreFile reads the ignore rules of a context; name is how messages call the file.
//
// As in BuildKit a fetched context has none, whatever files are in it; --ignorefile, which BuildKit does not know, holds for any build context.
func (b *build) ignoreFile(context string, p *place) (rules *dockerfile.Ignore, name string, err error) {
	main := context == dag.MainContext
	var text []byte
	switch {
	case main && b.c.Ignorefile != "":
		name, text, err = b.chosenIgnoreFile(p)
	case p.ours:
		return nil, "", b.unusedIgnoreFile(context, p)
	case main && b.beside != "":
		name, text, err = firstFile(false, b.beside+".dockerignore", filepath.Join(p.dir, ".dockerignore"))
	default:
		name, text, err = firstFile(false, filepath.Join(p.dir, ".dockerignore"))
	}
	if err != nil {
		return nil, "", withCode(exitUsage, fmt.Errorf("ignore file %s: %w", name, rootCause(err)))
	}
	if name == "" {
		return nil, "", nil
	}
	b.g.addSource(name, text)
	rules, err = dockerfile.ParseIgnore(name, text)
	return rules, name, err
}

// chosenIgnoreFile reads --ignorefile. A relative name is looked up in a fetched context first.
func (b *build) chosenIgnoreFile(p *place) (name string, text []byte, err error) {
	f := b.c.Ignorefile
	if p.ours && !filepath.IsAbs(f) {
		if text, err = exec.ReadInside(p.dir, f, maxIgnore); !errors.Is(err, fs.ErrNotExist) {
			return filepath.Clean(f), text, err
		}
	}
	name, text, err = firstFile(true, f)
	if err == nil && name == "" {
		name, err = f, syscall.ENOENT
	}
	return name, text, err
}

// firstFile reads the first of the caller's files that exists; name is "" if none does. The caller named them or not, see openFile.
func firstFile(named bool, paths ...string) (name string, text []byte, err error) {
	for _, p := range paths {
		f, err := openFile(p, named)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return shortName(p), nil, err
		}
		defer f.Close()
		text, err = limited(f, maxIgnore)
		return shortName(p), text, err
	}
	return "", nil, nil
}

// unusedIgnoreFile warns of an ignore file in a context where BuildKit looks at none.
func (b *build) unusedIgnoreFile(context string, p *place) error {
	if context != dag.MainContext {
		return nil
	}
	for _, name := range slices.Compact([]string{cmp.Or(b.name, "Dockerfile") + ".dockerignore", ".dockerignore"}) {
		text, err := exec.ReadInside(p.dir, name, maxIgnore)
		if err != nil {
			continue // none, or nothing that could hold rules
		}
		if rules, err := dockerfile.ParseIgnore(name, text); err == nil && len(rules.Patterns()) > 0 {
			b.find("IgnoreFileUnused", fmt.Sprintf("%s is not applied: ignore files are for directories, and this context was fetched; --ignorefile %s applies it", name, name))
			return nil
		}
	}
	return nil
}
