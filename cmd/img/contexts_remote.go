package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"img/cmd/img/progress"
	"img/dag"
	"img/dag/dockerfile"
	"img/engine"
	"img/exec"
	"img/exec/fetch"
)

// isGitURL reports whether a context's place is a git repository, be its address right or wrong.
func isGitURL(s string) bool {
	g, err := dockerfile.ParseGit(s, true)
	return g != nil || err != nil
}

// fetchGit checks out a context's repository.
func (b *build) fetchGit(ctx context.Context, name, address string, p *place) (err error) {
	g, err := dockerfile.ParseGit(address, true)
	if err != nil {
		return withCode(exitUsage, fmt.Errorf("%s %s: %w", contextTitle(name), fetch.Redact(address), err))
	}
	if name == dag.MainContext {
		b.mainGit(g)
	}
	l := b.loads.begin(b, "load git context "+gitTitle(address))
	defer func() { l.end(err) }()
	commit, err := b.web().ResolveGit(ctx, g)
	if err != nil {
		return sourceError(fmt.Errorf("%s: %w", contextTitle(name), err))
	}
	l.note("commit " + commit.ID)
	if err := b.newPlace(p); err != nil {
		return err
	}
	if err := b.web().Checkout(ctx, g, commit, p.dir); err != nil {
		return sourceError(fmt.Errorf("%s: %w", contextTitle(name), err))
	}
	t, err := b.web().CommitTime(ctx, g, commit)
	if err != nil {
		return sourceError(fmt.Errorf("%s: %w", contextTitle(name), err))
	}
	p.setTime(t)
	return nil
}

// gitTitle is a repository's address with the revision, without credentials.
func gitTitle(address string) string {
	title := fetch.Redact(address)
	if _, revision, ok := strings.Cut(address, "#"); ok && !strings.Contains(title, "#") {
		title += "#" + revision
	}
	return title
}

// mainGit is what build arguments say about the repository that is the build context (BuildKit's rules).
func (b *build) mainGit(g *dag.Git) {
	if keep, err := strconv.ParseBool(b.r.BuildArgs["BUILDKIT_CONTEXT_KEEP_GIT_DIR"]); err == nil && keep {
		g.KeepGitDir = true
	}
	if b.r.BuildArgs["SOURCE_DATE_EPOCH"] != "" && g.MTime == "" {
		g.MTime = "commit"
	}
}

// newPlace gives a context a directory of the build's own.
func (b *build) newPlace(p *place) (err error) {
	p.ours = true
	p.dir, err = b.places.temp(b.s.dir)
	return err
}

func (p *place) setTime(t time.Time) {
	if !t.IsZero() {
		seconds := t.Unix()
		p.time = &seconds
	}
}

// fetchHTTP fetches a context's file. As the build context an archive is unpacked; in a named context it stays a file, as any other (BuildKit's
// rule).
func (b *build) fetchHTTP(ctx context.Context, name, address string, p *place) (err error) {
	l := b.loads.begin(b, "load context "+fetch.Redact(address))
	defer func() { l.end(err) }()
	got, f, err := b.download(ctx, address, l)
	if err != nil {
		return sourceError(fmt.Errorf("%s: %w", contextTitle(name), err))
	}
	defer f.Close()
	if err := b.newPlace(p); err != nil {
		return err
	}
	s, err := exec.PlaceFetched(ctx, f, got.Modified, name == dag.MainContext, p.dir)
	if err != nil {
		return sourceError(fmt.Errorf("%s %s: %w", contextTitle(name), fetch.Redact(address), err))
	}
	b.taken(p, name, s)
	if err := b.modified(ctx, got, p); err != nil {
		return sourceError(fmt.Errorf("%s %s: %w", contextTitle(name), fetch.Redact(address), err))
	}
	if s.Archive && name != dag.MainContext {
		b.find("NamedContextArchive", fmt.Sprintf("The archive of the build context %s is not unpacked: the context is the one file %q; ADD unpacks it",
			name, exec.FetchedName))
	}
	return nil
}

// sourceTime is the SourceTime of dockerfile.Options: a commit's time, a URL's Last-Modified or its archive's newest file.
func (b *build) sourceTime(ctx context.Context) func(dag.Op) (*int64, error) {
	return func(op dag.Op) (*int64, error) {
		var p place
		switch op := op.(type) {
		case *dag.Git:
			commit, err := b.web().ResolveGit(ctx, op)
			if err != nil {
				return nil, err
			}
			t, err := b.web().CommitTime(ctx, op, commit)
			p.setTime(t)
			return p.time, err
		case *dag.HTTP:
			got, err := b.web().HTTP(ctx, fetch.Request{URL: op.URL, Checksum: op.Checksum})
			if err != nil {
				return nil, err
			}
			err = b.modified(ctx, got, &p)
			return p.time, err
		}
		return nil, nil
	}
}

// modified gives a place the time of a file: what the server told, else that of the newest file in it, if it is an archive.
func (b *build) modified(ctx context.Context, got *fetch.File, p *place) error {
	if got.Modified.Unix() != 0 {
		p.setTime(got.Modified)
		return nil
	}
	if p.time != nil { // it was unpacked
		return nil
	}
	f, err := got.Open()
	if err != nil {
		return err
	}
	defer f.Close()
	newest, err := exec.NewestFile(ctx, f)
	p.setTime(newest)
	return err
}

// download gets a URL and opens what came.
func (b *build) download(ctx context.Context, address string, l *load) (*fetch.File, *os.File, error) {
	last := time.Now()
	got, err := b.web().HTTP(ctx, fetch.Request{URL: address, Progress: func(bytes int64) {
		if now := time.Now(); now.Sub(last) >= loadPause {
			last = now
			l.note(humanSize(bytes) + " so far")
		}
	}})
	if err != nil {
		return nil, nil, err
	}
	l.note(humanSize(got.Size))
	f, err := got.Open()
	return got, f, err
}

// fetchDockerfile gets the Dockerfile of -f URL.
func (b *build) fetchDockerfile(ctx context.Context, address string) (err error) {
	l := b.loads.begin(b, "load Dockerfile "+fetch.Redact(address))
	defer func() { l.end(err) }()
	_, f, err := b.download(ctx, address, l)
	if err != nil {
		return sourceError(fmt.Errorf("get the Dockerfile: %w", err))
	}
	defer f.Close()
	if err := b.dockerfileFrom(f); err != nil {
		return err
	}
	if strings.IndexByte(string(b.source), 0) >= 0 {
		return withCode(exitUsage, fmt.Errorf("-f %s: %w", fetch.Redact(address), errors.New("what came is no text")))
	}
	return nil
}

// loadPause is how long a download says nothing between two lines.
const loadPause = 5 * time.Second

// loads shows what is fetched before there is a graph, as steps. Their display lives as long as one of them runs.
type loads struct {
	mu      sync.Mutex
	display *progress.Display
	active  int
	// shown is how many have begun.
	shown int
}

// A load is one of them.
type load struct {
	of      *loads
	display *progress.Display
	v       *dag.Vertex
	begun   time.Time
}

func (s *loads) begin(b *build, title string) *load {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.display == nil {
		s.display = b.newDisplay(s.shown)
	}
	s.active++
	l := &load{of: s, display: s.display, v: &dag.Vertex{ID: dag.ID(s.shown), Name: title}, begun: time.Now()}
	s.shown++
	l.display.Observe(engine.Event{Vertex: l.v, State: engine.Running, Time: l.begun})
	return l
}

// note says something about a load.
func (l *load) note(text string) {
	l.display.Observe(engine.Event{Vertex: l.v, State: engine.Running, Time: time.Now(), Note: text})
}

func (l *load) end(err error) {
	e := engine.Event{Vertex: l.v, State: engine.Done, Time: time.Now(), Err: err}
	if err != nil {
		e.State = engine.Failed
	}
	l.display.Observe(e)
	l.of.mu.Lock()
	defer l.of.mu.Unlock()
	if l.of.active--; l.of.active == 0 {
		l.of.display.Close()
		l.of.display = nil
	}
}
