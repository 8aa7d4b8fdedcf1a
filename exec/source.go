package exec

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/patternmatcher"

	"img/snapshot"
)

// A source is a file system that steps take files from: a build context, or what a step made. Paths are relative, clean and
// slash-separated ("." is the root); no method follows a link.
type source interface {
	lstat(path string) (snapshot.Entry, bool, error)
	// names lists a directory, sorted; what an ignore file hides is not in it.
	names(dir string) ([]string, error)
	// walk calls f for the entry at root and all below it, sorted, entries' paths relative to the source.
	walk(root string, f visitor) error
	// ignoredBy names the rule that hides a path, "" if none does.
	ignoredBy(path string) string
}

// A visitor is called for each entry of a walk, and may return errSkip. c is nil for what has no content, and valid until the visitor returns.
type visitor func(e snapshot.Entry, c content) error

// A content is what is in the file being visited.
type content interface {
	open() (*os.File, error)
	// digest is the SHA-256 in hex; remembered where that is safe.
	digest() (string, error)
}

// A match is one file or directory that a step's source names.
type match struct {
	// Real is its path in the source, links resolved.
	Real string
	// Name is the last component as the Dockerfile (or the pattern) names it: what it is called at the destination.
	Name string
	Type snapshot.Type
	// Include is the pattern of --parents: of the directory Real only what matches it is taken, with the directories on the way to it.
	// "" takes everything.
	Include string
	// Must says that it has to match something.
	Must bool
}

// A NotFoundError is a source path that names nothing.
type NotFoundError struct {
	Path string
	// Ignored is the rule that hides it, if one does: ".dockerignore".
	Ignored string
}

func (e *NotFoundError) Error() string {
	return fmt.Sprintf("failed to calculate checksum: %q: not found", "/"+strings.TrimPrefix(e.Path, "/"))
}

// Hint is the remedy.
func (e *NotFoundError) Hint() string {
	if e.Ignored != "" {
		return "the path exists, but is excluded by " + e.Ignored
	}
	return ""
}

const maxLinks = 255 // as Linux's own bound is 40, but images nest deeper

// follow resolves all links in p, each inside the source's root. The result may not exist.
func follow(s source, p string) (string, error) {
	done, todo := ".", split(p)
	for links := 0; len(todo) > 0; {
		c := todo[0]
		todo = todo[1:]
		if c == ".." {
			done = path.Dir(done)
			continue
		}
		next := path.Join(done, c)
		e, ok, err := s.lstat(next)
		if err != nil {
			return "", err
		}
		if !ok || e.Type != snapshot.Symlink {
			done = next
			continue
		}
		if links++; links > maxLinks {
			return "", fmt.Errorf("%q: too many levels of symbolic links", p)
		}
		if strings.HasPrefix(e.Link, "/") {
			done = "."
		}
		todo = append(split(e.Link), todo...)
	}
	return done, nil
}

// split cuts a path into its components; ".." stays, since only the root bounds it.
func split(p string) []string {
	var out []string
	for c := range strings.SplitSeq(p, "/") {
		if c != "" && c != "." {
			out = append(out, c)
		}
	}
	return out
}

// hasMeta reports whether a pattern has a wildcard. A backslash alone makes none (BuildKit takes such a path literally).
func hasMeta(s string) bool {
	for i := 0; i < len(s); i++ {
		switch s[i] {
		case '*', '?', '[':
			return true
		case '\\':
			i++
		}
	}
	return false
}

// resolve finds what a source path or pattern names. A literal path that names nothing is an error, a pattern without match is
// not (BuildKit copies nothing), a match that is a link to nothing is one again.
func resolve(s source, pattern string, parents, literal bool) ([]match, error) {
	if parents {
		return resolveParents(s, pattern)
	}
	paths := []string{strings.TrimPrefix(path.Clean("/"+pattern), "/")}
	if !literal {
		var err error
		if paths, err = expand(s, split(path.Clean("/"+pattern))); err != nil {
			return nil, err
		}
	}
	var out []match
	for _, p := range paths {
		m, ok, err := lookup(s, p)
		if err != nil {
			return nil, err
		}
		if !ok {
			return nil, &NotFoundError{Path: p, Ignored: s.ignoredBy(p)}
		}
		out = append(out, m)
	}
	return out, nil
}

// resolveParents is resolve for COPY --parents. What follows the pivot "/./" is a pattern below what comes before it, by the rules of
// ignore files; it follows no links, and keeps its directories.
func resolveParents(s source, pattern string) ([]match, error) {
	pivot, below, ok := strings.Cut(pattern, "/./")
	if !ok {
		pivot, below = "/", pattern
	}
	below = strings.TrimPrefix(path.Clean("/"+below), "/")
	out, err := resolve(s, pivot, false, false)
	for i := range out {
		out[i].Include, out[i].Must = below, below != "" && !hasMeta(pattern)
	}
	return out, err
}

// expand replaces a pattern by the paths that match it. Links before the first wildcard are followed, later ones only as the last
// component, by lookup.
func expand(s source, comps []string) ([]string, error) {
	n := slices.IndexFunc(comps, hasMeta)
	if n < 0 {
		return []string{path.Join(append([]string{"."}, comps...)...)}, nil
	}
	dir := path.Join(append([]string{"."}, comps[:n]...)...)
	real, err := follow(s, dir)
	if err != nil {
		return nil, err
	}
	return expandBelow(s, dir, real, comps[n:])
}

func expandBelow(s source, dir, real string, comps []string) ([]string, error) {
	e, ok, err := s.lstat(real)
	if err != nil || !ok || e.Type != snapshot.Dir {
		return nil, err
	}
	names, err := s.names(real)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, n := range names {
		ok, err := path.Match(comps[0], n)
		if err != nil {
			return nil, fmt.Errorf("pattern %q: %w", comps[0], err)
		}
		if !ok {
			continue
		}
		found := []string{path.Join(dir, n)}
		if len(comps) > 1 {
			if found, err = expandBelow(s, found[0], path.Join(real, n), comps[1:]); err != nil {
				return nil, err
			}
		}
		out = append(out, found...)
	}
	return out, nil
}

// lookup resolves one path wholly, the last component too.
func lookup(s source, p string) (match, bool, error) {
	real, err := follow(s, p)
	if err != nil {
		return match{}, false, err
	}
	e, ok, err := s.lstat(real)
	if err != nil || !ok {
		return match{}, false, err
	}
	return match{Real: real, Name: path.Base(p), Type: e.Type}, true, nil
}

// relative returns p relative to root ("." for root itself); ok is false when p is not below it.
func relative(root, p string) (string, bool) {
	if p == root {
		return ".", true
	}
	if root == "." {
		return p, true
	}
	return strings.CutPrefix(p, root+"/")
}

// A filter is the patterns of --exclude, relative to each source, and the one pattern of --parents. The zero value keeps everything.
type filter struct {
	exclude *patternmatcher.PatternMatcher
	include *patternmatcher.PatternMatcher
}

func newFilter(exclude []string) (f filter, err error) {
	if len(exclude) > 0 {
		f.exclude, err = patternmatcher.New(exclude)
	}
	return f, err
}

func (f filter) including(pattern string) (filter, error) {
	if pattern == "" {
		return f, nil
	}
	var err error
	f.include, err = patternmatcher.New([]string{pattern})
	return f, err
}

// keeps reports whether a path is taken, and whether something below it may be.
func (f filter) keeps(rel string) (keep, below bool, err error) {
	keep, below = true, true
	if rel == "." {
		return keep, below, nil
	}
	if f.include != nil {
		if keep, err = f.include.MatchesOrParentMatches(rel); err != nil {
			return false, false, err
		}
		below = keep || reaches(f.include.Patterns(), rel)
	}
	if f.exclude != nil {
		drop, err := f.exclude.MatchesOrParentMatches(rel)
		if err != nil {
			return false, false, err
		}
		if drop {
			keep, below = false, below && mayReturn(f.exclude, rel)
		}
	}
	return keep, below, nil
}

// mayReturn reports whether a "!" pattern may bring back something below a directory that is dropped.
func mayReturn(m *patternmatcher.PatternMatcher, dir string) bool {
	if !m.Exclusions() {
		return false
	}
	var back []*patternmatcher.Pattern
	for _, p := range m.Patterns() {
		if p.Exclusion() {
			back = append(back, p)
		}
	}
	return reaches(back, dir)
}

// reaches reports whether one of the patterns may match something below a directory. It may say yes where no were right.
func reaches(patterns []*patternmatcher.Pattern, dir string) bool {
	return slices.ContainsFunc(patterns, func(p *patternmatcher.Pattern) bool {
		return reachesBelow(split(p.String()), split(dir))
	})
}

func reachesBelow(pattern, dir []string) bool {
	for i, p := range pattern {
		if i == len(dir) || strings.Contains(p, "**") {
			return true
		}
		if ok, err := path.Match(p, dir[i]); err == nil && !ok {
			return false
		}
	}
	return true // a match of the directory itself, or of one above it
}

// errSkip is what a visitor returns for a directory whose contents it does not want.
var errSkip = errors.New("skip this directory")

// An item is an entry of a match that a step takes.
type item struct {
	// rel is relative to the match, "." for the match itself; so is the entry's HardLink.
	rel string
	e   snapshot.Entry
	c   content
	// passed marks a directory that is not taken itself, but lies on the way to something that is.
	passed bool
}

// visit walks one match and calls f for what the filter keeps.
func visit(s source, m match, keep filter, f func(item) error) error {
	keep, err := keep.including(m.Include)
	if err != nil {
		return fmt.Errorf("pattern %q: %w", m.Include, err)
	}
	v := &visiting{m: m, keep: keep, f: f, firsts: map[string]string{}}
	return s.walk(m.Real, v.visit)
}

// visiting is one walk of a match.
type visiting struct {
	m    match
	keep filter
	f    func(item) error
	// firsts are the first names met of files whose first name in the source is not taken.
	firsts map[string]string
	// passed are the directories above the current path that are not taken themselves and not handed out yet.
	passed []item
}

func (v *visiting) visit(e snapshot.Entry, c content) error {
	rel, ok := relative(v.m.Real, e.Path)
	if !ok {
		return fmt.Errorf("walk of %s met %s", v.m.Real, e.Path)
	}
	for n := len(v.passed); n > 0 && !strings.HasPrefix(rel, v.passed[n-1].rel+"/"); n-- {
		v.passed = v.passed[:n-1]
	}
	keep, below, err := v.keep.keeps(rel)
	switch {
	case err != nil:
		return err
	case !keep && e.Type == snapshot.Dir && below:
		v.passed = append(v.passed, item{rel: rel, e: e, passed: true})
		return nil
	case !keep && e.Type == snapshot.Dir:
		return errSkip
	case !keep:
		return nil
	}
	if e.HardLink != "" {
		if e.HardLink, err = v.firstName(rel, e.HardLink); err != nil {
			return err
		}
	}
	for _, p := range v.passed {
		if err := v.f(p); err != nil {
			return err
		}
	}
	v.passed = v.passed[:0]
	return v.f(item{rel: rel, e: e, c: c})
}

// firstName returns which path of the match is the same file as rel, "" if rel is the first of them: the file's first name in the
// source may lie outside what is taken.
func (v *visiting) firstName(rel, leader string) (string, error) {
	if l, ok := relative(v.m.Real, leader); ok {
		keep, _, err := v.keep.keeps(l)
		if err != nil || keep {
			return l, err
		}
	}
	if first, ok := v.firsts[leader]; ok {
		return first, nil
	}
	v.firsts[leader] = rel
	return "", nil
}

// A treeSum is the digest of what a step takes from a source: per entry relative path, type, mode, owner, device, link, hard-link
// group, xattrs and content; modification times do not count, unless the source says so. Both processes compute it, the first for the key, the inner one
// while it copies, so that a file which changed in between is noticed.
type treeSum struct {
	h       hash.Hash
	entries int
	times   bool
}

func newTreeSum() *treeSum { return &treeSum{h: sha256.New()} }

func (t *treeSum) match(m match) {
	fmt.Fprintf(t.h, "match %q %c\n", m.Name, m.Type)
}

func (t *treeSum) entry(i item, digest string) {
	t.entries++
	e, b := i.e, []byte(nil)
	if i.passed {
		b = append(b, "on the way "...)
	}
	b = strconv.AppendQuote(b, i.rel)
	b = fmt.Appendf(b, " %c %o %d %d %d %d ", e.Type, e.Mode, e.UID, e.GID, e.Major, e.Minor)
	b = strconv.AppendQuote(b, e.Link)
	b = append(b, ' ')
	b = strconv.AppendQuote(b, e.HardLink)
	for _, x := range e.Xattrs {
		b = append(b, ' ')
		b = strconv.AppendQuote(b, x.Name)
		b = append(b, '=')
		b = strconv.AppendQuote(b, string(x.Value))
	}
	b = append(b, ' ')
	b = append(b, digest...)
	if t.times {
		b = fmt.Appendf(b, " %d", e.MTime)
	}
	b = append(b, '\n')
	t.h.Write(b)
}

func (t *treeSum) sum() string { return hex.EncodeToString(t.h.Sum(nil)) }

// errChanged says that a file is not what the step's key was computed from.
var errChanged = errors.New("changed while building")

// viewSource is what a step made, as a source. dir, if set, holds the files.
type viewSource struct {
	view *snapshot.View
	dir  *os.File
}

func (s viewSource) lstat(p string) (snapshot.Entry, bool, error) { return s.view.Lookup(p) }
func (s viewSource) ignoredBy(string) string                      { return "" }

func (s viewSource) names(dir string) ([]string, error) {
	entries, err := s.view.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	out := make([]string, len(entries))
	for i, e := range entries {
		out[i] = path.Base(e.Path)
	}
	return out, nil
}

func (s viewSource) walk(root string, f visitor) error {
	skipped := "" // what is below it is read all the same
	return s.view.Walk(root, func(e snapshot.Entry) error {
		if skipped != "" && strings.HasPrefix(e.Path, skipped) {
			return nil
		}
		var c content
		if e.Type == snapshot.File {
			c = viewFile{s.dir, e}
		}
		err := f(e, c)
		if errors.Is(err, errSkip) {
			skipped, err = e.Path+"/", nil
		}
		return err
	})
}

type viewFile struct {
	dir *os.File
	e   snapshot.Entry
}

func (c viewFile) open() (*os.File, error) { return openIn(c.dir, c.e.Path) }
func (c viewFile) digest() (string, error) { return c.e.Digest, nil }

// emptySource is FROM scratch as a source.
type emptySource struct{}

func (emptySource) lstat(p string) (snapshot.Entry, bool, error) {
	return snapshot.Entry{Path: ".", Type: snapshot.Dir, Mode: 0o755}, p == ".", nil
}
func (emptySource) names(string) ([]string, error) { return nil, nil }
func (emptySource) ignoredBy(string) string        { return "" }
func (s emptySource) walk(root string, f visitor) error {
	e, ok, _ := s.lstat(root)
	if !ok {
		return nil
	}
	return f(e, nil)
}
