package dockerfile

import (
	"bytes"
	"errors"
	"fmt"
	"path"
	"strings"
	"sync"
	"unicode/utf8"

	"github.com/moby/patternmatcher"
	"github.com/moby/patternmatcher/ignorefile"

	"img/dag"
)

// Limits of an ignore file.
const (
	maxIgnoreFile     = 1 << 20
	maxIgnorePatterns = 10000
)

// Ignore is a parsed ignore file (.dockerignore). It is safe for concurrent use; a nil one ignores nothing.
type Ignore struct {
	rules []rule
	// mu guards the matchers, which compile patterns when they first need them.
	mu  sync.Mutex
	all *patternmatcher.PatternMatcher
}

// A rule is a line of an ignore file.
type rule struct {
	line int
	// text is the cleaned pattern, without "!".
	text    string
	include bool
	matcher *patternmatcher.PatternMatcher
}

// ParseIgnore reads an ignore file; nil src ignores nothing. Errors have positions.
func ParseIgnore(name string, src []byte) (*Ignore, error) {
	var text []byte // of the line
	fail := func(line int, err error) error {
		return ignoreError(dag.Pos{File: name, Line: line, End: line}, string(text), err)
	}
	if len(src) > maxIgnoreFile {
		return nil, fail(0, fmt.Errorf("the file is larger than %d MiB", maxIgnoreFile>>20))
	}
	g := &Ignore{}
	for i, line := range bytes.Split(src, []byte("\n")) {
		text = line
		// A line for itself keeps its number; the rules of the format are ignorefile's.
		patterns, err := ignorefile.ReadAll(bytes.NewReader(line))
		if err != nil {
			return nil, fail(i+1, fmt.Errorf("read pattern: %w", err))
		}
		for _, p := range patterns {
			r, err := parseRule(p)
			if err != nil {
				return nil, fail(i+1, err)
			}
			r.line = i + 1
			g.rules = append(g.rules, r)
		}
		if len(g.rules) > maxIgnorePatterns {
			return nil, fail(i+1, fmt.Errorf("more than %d patterns", maxIgnorePatterns))
		}
	}
	var err error
	if g.all, err = patternmatcher.New(g.Patterns()); err != nil {
		return nil, fail(0, fmt.Errorf("read patterns: %w", err))
	}
	return g, nil
}

// ignoreError places an error in a line of an ignore file.
func ignoreError(pos dag.Pos, line string, err error) error {
	e := &Error{Pos: pos, Err: err, explained: true}
	if pos.Line == 0 {
		return e
	}
	line = strings.TrimPrefix(line, bom)
	at := len(line) - len(strings.TrimLeft(line, " \t"))
	switch i := strings.LastIndexByte(line, '['); {
	case strings.HasPrefix(line[at:], "!") && strings.Contains(err.Error(), "illegal exclusion"):
		e.Hint = "a pattern follows the !, as !keep.txt"
	case strings.HasPrefix(line[at:], "!!"):
		e.Hint = "one ! takes a path back in"
	case i >= 0 && strings.Contains(err.Error(), "syntax error in pattern"):
		at, e.Hint = i, `[ begins a set of characters, which a ] ends; \[ is the character itself`
	case strings.HasSuffix(strings.TrimSpace(line), `\`):
		at, e.Hint = len(strings.TrimSpace(line))-1+at, `\\ is the character itself`
	}
	e.Pos.Col = utf8.RuneCountInString(line[:at]) + 1
	return e
}

func parseRule(pattern string) (r rule, err error) {
	r.text, r.include = strings.CutPrefix(pattern, "!")
	if r.text == "" {
		return r, errors.New(`illegal exclusion pattern: "!"`)
	}
	if r.matcher, err = patternmatcher.New([]string{r.text}); err != nil {
		return r, fmt.Errorf("pattern %q: %w", pattern, err)
	}
	if len(r.matcher.Patterns()) != 1 {
		return r, fmt.Errorf("pattern %q: %w", pattern, path.ErrBadPattern)
	}
	if r.matcher.Exclusions() {
		return r, fmt.Errorf("pattern %q: two exclamation marks", pattern)
	}
	// Some faults show only when the pattern is used.
	if _, err := r.matcher.MatchesOrParentMatches("x"); err != nil {
		return r, fmt.Errorf("pattern %q: %w", pattern, err)
	}
	return r, nil
}

// Match reports whether a path (relative, slash-separated) is ignored, and by which line (0 if none).
// The context's root itself, ".", is never ignored.
func (g *Ignore) Match(name string) (ignored bool, line int) {
	if g == nil || len(g.rules) == 0 || name == "." || name == "" {
		return false, 0
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if ok, err := g.all.MatchesOrParentMatches(name); err != nil || !ok {
		return false, 0
	}
	for _, r := range g.rules {
		if r.include != ignored {
			continue // it would change nothing
		}
		if ok, err := r.matcher.MatchesOrParentMatches(name); err == nil && ok {
			if ignored = !r.include; ignored {
				line = r.line
			}
		}
	}
	return ignored, line
}

// Prune reports whether everything below an ignored directory is ignored too, so that it need not be walked.
// It may say no although yes were right, never the other way.
func (g *Ignore) Prune(dir string) bool {
	if ignored, _ := g.Match(dir); !ignored {
		return false
	}
	parts := strings.Split(dir, "/")
	for _, r := range g.rules {
		if r.include && (strings.ContainsAny(r.text, regexpMeta) || below(strings.Split(r.text, "/"), parts)) {
			return false
		}
	}
	return true
}

// regexpMeta are the characters that patternmatcher hands on to its regular expressions: "!x|y*" takes back whatever has a y in it.
const regexpMeta = "|+(){}^"

// below reports whether a pattern may match something below a directory but not the directory itself.
func below(pattern, dir []string) bool {
	for i, p := range pattern {
		if i == len(dir) || strings.Contains(p, "**") {
			return true
		}
		if ok, err := path.Match(p, dir[i]); err == nil && !ok {
			return false
		}
	}
	return false
}

// Patterns returns the patterns in force, for keys.
func (g *Ignore) Patterns() []string {
	if g == nil {
		return nil
	}
	var out []string
	for _, r := range g.rules {
		text := r.text
		if r.include {
			text = "!" + text
		}
		out = append(out, text)
	}
	return out
}
