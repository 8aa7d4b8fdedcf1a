package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"img/cache"
	"img/dag"
	"img/dag/dockerfile"
	"img/engine"
	"img/exec"
	"img/exec/sandbox"
)

// A placed is the failure of a step, with the guilty word of the Dockerfile instead of the whole instruction.
type placed struct {
	err  error
	pos  dag.Pos
	with string
	hint string
}

func (e *placed) Error() string { return e.err.Error() }
func (e *placed) Unwrap() error { return e.err }

// blame finds the word of the Dockerfile that a failed step is about, and a hint. outs are what was made before.
func (b *build) blame(ctx context.Context, x *exec.Executor, outs map[dag.ID]cache.Output, err error) error {
	var failed *engine.VertexError
	if !errors.As(err, &failed) || x == nil || ctx.Err() != nil {
		return err
	}
	p := &placed{err: err, pos: failed.Vertex.Pos}
	if damaged := (*exec.DamagedError)(nil); errors.As(err, &damaged) {
		p.hint = "a base image in the store is damaged: `img rm` its name, `img prune`, then pull, load or import it again"
		return p
	}
	var gone *exec.NotFoundError
	if errors.As(err, &gone) {
		at := b.plan.Blame(failed.Vertex, dockerfile.Guilty{Source: gone.Path}, err)
		p.pos, p.with, p.hint = at.Pos, at.With, cmp.Or(at.Hint, b.missingHint(ctx, x, outs, failed.Vertex, gone))
		return p
	}
	if g := guilty(failed.Err.Error()); g != (dockerfile.Guilty{}) {
		at := b.plan.Blame(failed.Vertex, g, err)
		p.pos, p.with, p.hint = at.Pos, at.With, cmp.Or(at.Hint, patternHint(failed.Err.Error(), g), cacheHint(g))
		return p
	}
	if m := userText.FindStringSubmatch(failed.Err.Error()); m != nil {
		p.hint = fmt.Sprintf("the image has no such %s; RUN can add one, and a number needs none", m[1])
		return p
	}
	var exit *sandbox.ExitError
	if run, ok := failed.Vertex.Op.(*dag.Run); ok && errors.As(err, &exit) {
		p.hint = b.runHint(failed.Vertex, run, exit)
		return p
	}
	return err
}

var (
	mountText   = regexp.MustCompile(`^mount (?:\w+ )?at (\S+): `)
	cacheText   = regexp.MustCompile(`^mount cache at \S+: source (".*") is not in the cache `)
	optionText  = regexp.MustCompile(`^(--(?:chown|chmod|exclude|checksum))\b`)
	destText    = regexp.MustCompile(`^(cannot (replace to directory|copy to non-directory)|copy to /|mkdir /)`)
	patternText = regexp.MustCompile(`^pattern "(.*)": `)
	userText    = regexp.MustCompile(`^unable to find (user|group) `)
	secretText  = regexp.MustCompile(`^secret (\S+): not found`)
)

// guilty tells from a step's error which part of its instruction is meant.
func guilty(text string) (g dockerfile.Guilty) {
	if m := mountText.FindStringSubmatch(text); m != nil {
		g.Mount = m[1]
		if m := cacheText.FindStringSubmatch(text); m != nil {
			g.Source, _ = strconv.Unquote(m[1])
		}
	} else if m := optionText.FindStringSubmatch(text); m != nil {
		g.Option = m[1]
	} else if destText.MatchString(text) {
		g.Dest = true
	} else if m := patternText.FindStringSubmatch(text); m != nil {
		g.Source = m[1]
	} else if m := secretText.FindStringSubmatch(text); m != nil {
		g.Secret = m[1]
	}
	return g
}

// patternHint is what to do about a pattern that is none.
func patternHint(text string, g dockerfile.Guilty) string {
	switch {
	case strings.HasPrefix(g.Source, "[") && strings.HasSuffix(g.Source, ","):
		return strangeHint(g.Source)
	case strings.Contains(text, "syntax error in pattern"):
		return `[ begins a set of characters, which a ] ends; \[ is the character itself`
	}
	return ""
}

// cacheHint is what to do about a cache that has no such path.
func cacheHint(g dockerfile.Guilty) string {
	if g.Mount == "" || g.Source == "" {
		return ""
	}
	return fmt.Sprintf("source is a path in the cache, which holds what from has and what steps put there; a step that mounts the whole cache can make %s", shown(g.Source))
}

// sourceOf is where a step looked for a path.
func sourceOf(v *dag.Vertex, gone *exec.NotFoundError) (from dag.Source, ok bool) {
	want := path.Clean("/" + gone.Path)
	switch op := v.Op.(type) {
	case *dag.Copy:
		for _, s := range op.Sources {
			for _, p := range s.Paths {
				p, _, _ = strings.Cut(p, "/./")
				if hit, _ := path.Match(path.Clean("/"+p), want); hit || path.Clean("/"+p) == want || len(op.Sources) == 1 {
					return s.From, true
				}
			}
		}
	case *dag.Run:
		for _, m := range op.Mounts {
			if path.Clean("/"+m.Source) == want && m.Type == dag.MountBind {
				return m.From, true
			}
		}
	}
	return dag.Source{}, false
}

// missingHint says why a path that COPY, ADD or a mount takes is not there, or where it is.
func (b *build) missingHint(ctx context.Context, x *exec.Executor, outs map[dag.ID]cache.Output, v *dag.Vertex, gone *exec.NotFoundError) string {
	if h := gone.Hint(); h != "" {
		return h
	}
	from, ok := sourceOf(v, gone)
	if !ok {
		return ""
	}
	var in []cache.Output
	for _, id := range v.Inputs {
		in = append(in, outs[id])
	}
	if h := strangeHint(gone.Path); h != "" {
		return h
	}
	if strings.Contains(v.Name, " # ") {
		return strangeHint("#")
	}
	if h := b.nearHint(ctx, x, from, in, gone.Path); h != "" {
		return h
	}
	if from.Context == "" && b.contexts[dag.MainContext] != nil && x.Has(ctx, dag.Source{Context: dag.MainContext, Input: dag.Scratch}, nil, gone.Path) {
		return fmt.Sprintf("%s exists in the build context; without from it is taken from there", shown(gone.Path))
	}
	if stage := b.stageWith(ctx, x, outs, v, gone.Path); stage != "" {
		return fmt.Sprintf("%s exists in the stage %s", shown(gone.Path), stage)
	}
	if from.Context == dag.MainContext {
		return b.outsideHint(gone.Path)
	}
	return ""
}

func shown(p string) string { return "/" + strings.TrimPrefix(p, "/") }

// strangeHint tells of what is no path: the rest of an option or of a JSON array.
func strangeHint(p string) string {
	switch {
	case strings.HasPrefix(p, "["):
		return "this is read as words: JSON takes double quotes, [\"source\", \"destination\"]"
	case strings.HasPrefix(p, "-"):
		return "options stand before the sources, and begin with --"
	case strings.HasPrefix(p, "#"):
		return "a comment has a line of its own"
	}
	return dockerfile.LookAlikeHint(p)
}

// nearHint proposes a name in the directory where the path breaks off.
func (b *build) nearHint(ctx context.Context, x *exec.Executor, from dag.Source, in []cache.Output, p string) string {
	dir, names := x.Beside(ctx, from, in, p)
	rest := strings.TrimPrefix(path.Clean("/"+p), path.Clean("/"+dir))
	first, below, _ := strings.Cut(strings.TrimPrefix(rest, "/"), "/")
	near := dockerfile.Nearest(first, names)
	if near == "" {
		return ""
	}
	full := path.Join(dir, near, below)
	if !x.Has(ctx, from, in, full) {
		full = path.Join(dir, near)
	}
	if strings.HasPrefix(p, "/") || from.Context == "" {
		full = "/" + full
	}
	return fmt.Sprintf("did you mean %q?", full)
}

// stageWith is another stage of the build that has a path, as far as it is known.
func (b *build) stageWith(ctx context.Context, x *exec.Executor, outs map[dag.ID]cache.Output, failed *dag.Vertex, p string) string {
	last := map[string]*dag.Vertex{}
	var stages []string
	for _, v := range b.plan.Graph.Vertices[:failed.ID] {
		switch v.Op.(type) {
		case *dag.Pack, *dag.Manifest:
			continue
		}
		if last[v.Stage] == nil {
			stages = append(stages, v.Stage)
		}
		last[v.Stage] = v
	}
	slices.Sort(stages)
	for _, s := range stages {
		out, done := outs[last[s].ID]
		if done && s != failed.Stage && x.Has(ctx, dag.Source{Input: 0}, []cache.Output{out}, p) {
			return s
		}
	}
	return ""
}

// outsideHint tells of a path that was meant to be one of the host.
func (b *build) outsideHint(p string) string {
	if strings.HasPrefix(p, "~") || strings.HasPrefix(p, "/~") {
		return "~ is not expanded; sources are paths in the build context"
	}
	if b.r.Context.fetched() {
		return ""
	}
	host := path.Clean("/" + p)
	if _, err := os.Lstat(host); err == nil && strings.Count(host, "/") > 1 {
		return "it exists on this host, but sources are paths in the build context"
	}
	if c := b.contexts[dag.MainContext]; c != nil {
		if _, err := os.Lstat(filepath.Join(filepath.Dir(c.Path), p)); err == nil {
			return "it exists beside the build context, which .. does not lead out of"
		}
	}
	return ""
}

// runHint says why a process may have failed, from what is seen in its instruction alone.
func (b *build) runHint(v *dag.Vertex, run *dag.Run, exit *sandbox.ExitError) string {
	if b.file == nil {
		return ""
	}
	lines := strings.Split(string(b.source), "\n")
	from, to := max(v.Pos.Line-1, 0), min(v.Pos.End, len(lines))
	if from >= to {
		return ""
	}
	last := run.Args[len(run.Args)-1]
	switch {
	case strings.Contains(last, "\r") || strings.Contains(string(run.Script), "\r"):
		return "the lines of this heredoc end in CR LF, and the shell takes the CR for a part of its words; dos2unix converts the file"
	case exit.Code == 127 && strings.HasPrefix(last, "[") && strings.HasSuffix(last, "]") && !strings.HasPrefix(last, "[ ") && len(run.Args) > 1:
		return "the shell ran this as it is: it is no JSON array; JSON takes double quotes, [\"program\", \"argument\"]"
	}
	if exit.Code == 126 || exit.Code == 127 {
		return dockerfile.LookAlikeHint(strings.Join(lines[from:to], "\n"))
	}
	return ""
}
