package exec

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"os"
	"path"
	"path/filepath"
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

// A visitor is called for each entry of a walk. c is nil for what has no content, and valid until the visitor returns.
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
	Real string `json:"real"`
	// Name is the last component as the Dockerfile (or the pattern) names it: what it is called at the destination.
	Name string `json:"name"`
	// Under is where below the destination it goes, for --parents; "" otherwise.
	Under string        `json:"under,omitempty"`
	Type  snapshot.Type `json:"type"`
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

func hasMeta(s string) bool { return strings.ContainsAny(s, `*?[\`) }

// resolve finds what a source path or pattern names. A literal path that names nothing is an error, a pattern without match is
// not (BuildKit copies nothing).
func resolve(s source, pattern string, parents bool) ([]match, error) {
	if parents {
		return resolveParents(s, pattern)
	}
	paths, err := expand(s, split(filepath.Clean("/"+pattern)))
	if err != nil {
		return nil, err
	}
	var out []match
	for _, p := range paths {
		m, ok, err := lookup(s, p)
		if err != nil {
			return nil, err
		}
		if ok {
			out = append(out, m)
		} else if !hasMeta(pattern) {
			return nil, &NotFoundError{Path: path.Clean("/" + pattern), Ignored: s.ignoredBy(p)}
		}
	}
	return out, nil
}

// resolveParents is resolve for COPY --parents: what follows the pivot "/./" is kept below the destination.
func resolveParents(s source, pattern string) ([]match, error) {
	pivot, rest, ok := strings.Cut(strings.TrimPrefix(pattern, "/"), "/./")
	if !ok {
		pivot, rest = "", strings.TrimPrefix(pattern, "/")
	}
	var out []match
	paths, err := expand(s, append(split(pivot), split(rest)...))
	if err != nil {
		return nil, err
	}
	n := len(split(pivot))
	for _, p := range paths {
		m, ok, err := lookup(s, p)
		if err != nil {
			return nil, err
		}
		if !ok {
			if hasMeta(pattern) {
				continue
			}
			return nil, &NotFoundError{Path: pattern, Ignored: s.ignoredBy(p)}
		}
		kept := split(p)[min(n, len(split(p))):]
		m.Under = path.Join(kept...)
		out = append(out, m)
	}
	return out, nil
}

// expand replaces each pattern component by the names that match it. Links in leading components are followed.
func expand(s source, comps []string) ([]string, error) {
	paths := []string{"."}
	for i, c := range comps {
		var next []string
		for _, p := range paths {
			found, err := expandOne(s, p, c, i == len(comps)-1)
			if err != nil {
				return nil, err
			}
			next = append(next, found...)
		}
		paths = next
	}
	return paths, nil
}

func expandOne(s source, dir, comp string, last bool) ([]string, error) {
	if !hasMeta(comp) {
		return []string{path.Join(dir, comp)}, nil
	}
	real, err := follow(s, dir)
	if err != nil {
		return nil, err
	}
	if comp == "**" {
		return everyDir(s, dir, real, last)
	}
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
		ok, err := filepath.Match(comp, n)
		if err != nil {
			return nil, fmt.Errorf("pattern %q: %w", comp, err)
		}
		if ok {
			out = append(out, path.Join(dir, n))
		}
	}
	return out, nil
}

// everyDir expands "**": the directory itself and every directory below it (every file too, at the end of a pattern).
func everyDir(s source, dir, real string, files bool) ([]string, error) {
	var out []string
	err := s.walk(real, func(e snapshot.Entry, _ content) error {
		if e.Type == snapshot.Dir != files {
			rel, _ := relative(real, e.Path)
			out = append(out, path.Join(dir, rel))
		}
		return nil
	})
	return out, err
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

// A filter is the patterns of --exclude, relative to each source.
type filter struct {
	m *patternmatcher.PatternMatcher
}

func newFilter(patterns []string) (filter, error) {
	if len(patterns) == 0 {
		return filter{}, nil
	}
	m, err := patternmatcher.New(patterns)
	return filter{m}, err
}

func (f filter) drops(rel string) (bool, error) {
	if f.m == nil || rel == "." {
		return false, nil
	}
	return f.m.MatchesOrParentMatches(rel)
}

// visit walks one match and calls f for what the filter keeps; rel is "." for the match itself. Entries' HardLink is relative
// to the match, too.
func visit(s source, m match, keep filter, f func(rel string, e snapshot.Entry, c content) error) error {
	firsts := map[string]string{}
	return s.walk(m.Real, func(e snapshot.Entry, c content) error {
		rel, ok := relative(m.Real, e.Path)
		if !ok {
			return fmt.Errorf("walk of %s met %s", m.Real, e.Path)
		}
		drop, err := keep.drops(rel)
		if err != nil || drop {
			return err
		}
		if e.HardLink != "" {
			e.HardLink, err = firstName(m, keep, firsts, rel, e.HardLink)
			if err != nil {
				return err
			}
		}
		return f(rel, e, c)
	})
}

// firstName returns which visited path (relative to the match) is the same file as rel, "" if rel is the first of them: the
// file's first name in the source may lie outside what is visited.
func firstName(m match, keep filter, firsts map[string]string, rel, leader string) (string, error) {
	if l, ok := relative(m.Real, leader); ok {
		drop, err := keep.drops(l)
		if err != nil || !drop {
			return l, err
		}
	}
	if first, ok := firsts[leader]; ok {
		return first, nil
	}
	firsts[leader] = rel
	return "", nil
}

// A treeSum is the digest of what a step takes from a source: per entry relative path, type, mode, owner, device, link, hard-link
// group, xattrs and content; modification times never count. Both processes compute it, the first for the key, the inner one
// while it copies, so that a file which changed in between is noticed.
type treeSum struct {
	h       hash.Hash
	entries int
}

func newTreeSum() *treeSum { return &treeSum{h: sha256.New()} }

func (t *treeSum) match(m match) {
	fmt.Fprintf(t.h, "match %q %q %c\n", m.Name, m.Under, m.Type)
}

func (t *treeSum) entry(rel string, e snapshot.Entry, digest string) {
	t.entries++
	var b []byte
	b = strconv.AppendQuote(b, rel)
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
	return s.view.Walk(root, func(e snapshot.Entry) error {
		if e.Type != snapshot.File {
			return f(e, nil)
		}
		return f(e, viewFile{s.dir, e})
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
