package main

import (
	"cmp"
	"fmt"
	"slices"

	"img/cache"
	"img/cmd/img/progress"
	"img/dag"
	"img/dag/dockerfile"
)

// Warnings of a build: those that the Dockerfile alone tells are known before anything runs, those about files when their step has run
// or its result has come from the cache. They are said once, at the end, where no progress scrolls them away.
type warnings struct {
	list []dockerfile.Warning
}

func (w *warnings) add(more ...dockerfile.Warning) {
	for _, m := range more {
		if !slices.Contains(w.list, m) {
			w.list = append(w.list, m)
		}
	}
}

// sorted returns them in the order of the file; those without a line come first.
func (w *warnings) sorted() []dockerfile.Warning {
	slices.SortStableFunc(w.list, func(x, y dockerfile.Warning) int {
		return cmp.Or(cmp.Compare(x.Pos.File, y.Pos.File), cmp.Compare(x.Pos.Line, y.Pos.Line))
	})
	return w.list
}

// ofStep are a step's warnings with its place, less those that the Dockerfile silences.
func ofStep(v *dag.Vertex, list []cache.Warning) (out []dockerfile.Warning) {
	for _, w := range list {
		if !v.Silences(w.Rule) {
			out = append(out, dockerfile.Warning{Pos: v.Pos, Rule: w.Rule, Text: w.Text, Own: true})
		}
	}
	return out
}

// sayWarnings says what has been found so far, and forgets it.
func (b *build) sayWarnings() {
	if b.r.Progress != progress.Quiet {
		for _, w := range b.warnings.sorted() {
			warnDockerfile(b.g.stderr, w)
		}
	}
	b.warnings.list = nil
}

// strict makes the warnings that are known so far an error, with --strict.
func (b *build) strict() error {
	n := len(b.warnings.list)
	if !b.r.Strict || n == 0 {
		return nil
	}
	list := b.warnings.sorted()
	for _, w := range list {
		warnDockerfile(b.g.stderr, w)
	}
	b.warnings.list = nil
	return withCode(exitUsage, fmt.Errorf("%s: --strict makes every warning an error", count(n, "warning")))
}

// refuse makes the warnings of a step its failure, with --strict.
func (b *build) refuse() func(*dag.Vertex, []cache.Warning) error {
	if !b.r.Strict {
		return nil
	}
	return func(v *dag.Vertex, list []cache.Warning) error {
		found := ofStep(v, list)
		if len(found) == 0 {
			return nil
		}
		return withHint(exitBuild, fmt.Errorf("%s (%s)", found[0].Text, found[0].Rule), "--strict makes every warning an error; "+
			"\"# check=skip=%s\" above the instruction silences this one", found[0].Rule)
	}
}

// count is a number of things in words: "1 warning", "2 warnings".
func count(n int, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}
