package dockerfile

import (
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"

	dfcommand "github.com/moby/buildkit/frontend/dockerfile/command"
	"github.com/moby/buildkit/frontend/dockerfile/parser"

	"img/dag"
)

func (f *File) fail(pos dag.Pos, err error) error {
	var e *Error
	if errors.As(err, &e) {
		return err
	}
	return &Error{Pos: f.named(pos), Err: err}
}

func (f *File) named(pos dag.Pos) dag.Pos {
	if pos.File == "" {
		pos.File = f.name
	}
	return pos
}

// suggestion is how BuildKit's packages end a message that has a remedy.
var suggestion = regexp.MustCompile(` \(did you mean ([^)]*)\?\)$`)

// located gives an error of BuildKit's packages its place, and moves a suggestion out of its text.
func (f *File) located(err error, pos dag.Pos) error {
	var own *Error
	if errors.As(err, &own) {
		return err
	}
	var at *parser.LocationError
	if errors.As(err, &at) && pos.IsZero() {
		for _, l := range at.Locations {
			if p := f.at(l); p.Line > 0 {
				pos = p
				break
			}
		}
	}
	e := &Error{Pos: f.named(pos), Err: err}
	if m := suggestion.FindStringSubmatch(err.Error()); m != nil {
		e.Hint = didYouMean(m[1])
		e.Err = &reworded{text: strings.TrimSuffix(err.Error(), m[0]), err: err}
	}
	return e
}

// instructionError is an error of one instruction, in BuildKit's words; the words of its prefix are what scripts look for.
func (f *File) instructionError(err error, n *parser.Node) error {
	out := f.explain(nil, f.located(err, f.at(n.Location())))
	var e *Error
	if errors.As(out, &e) {
		e.Err = &reworded{fmt.Sprintf("dockerfile parse error on line %d: %v", n.StartLine, e.Err), e.Err}
	}
	return out
}

func keywordNames() (names []string) {
	for _, name := range slices.Sorted(maps.Keys(dfcommand.Commands)) {
		names = append(names, strings.ToUpper(name))
	}
	return names
}

// A reworded error says less than the one it wraps.
type reworded struct {
	text string
	err  error
}

func (e *reworded) Error() string { return e.text }
func (e *reworded) Unwrap() error { return e.err }

func didYouMean(word string) string {
	if word == "" {
		return ""
	}
	return fmt.Sprintf("did you mean %q?", word)
}

// dashes look like a hyphen, and come from word processors and web pages.
var dashes = map[rune]string{
	'\u2010': "hyphen", '\u2011': "non-breaking hyphen", '\u2012': "figure dash", '\u2013': "en dash",
	'\u2014': "em dash", '\u2015': "horizontal bar", '\u2212': "minus sign",
}

// lookAlike returns the name of the dash that a word begins with, "" if it is none or the ASCII one.
func lookAlike(word string) string {
	r, _ := utf8.DecodeRuneInString(word)
	return dashes[r]
}

func dashHint(line string) string {
	for _, w := range strings.Fields(line) {
		if name := lookAlike(w); name != "" {
			return fmt.Sprintf("%q begins with %s %s (U+%04X); options begin with --", w, article(name), name, []rune(w)[0])
		}
	}
	return ""
}

// Nearest returns which of some words a misspelt one probably means, "" if none is near.
func Nearest(word string, options []string) string {
	for _, o := range options {
		if o != word && strings.EqualFold(o, word) {
			return o
		}
	}
	return nearest(word, options)
}

// nearest returns the option that a misspelt word probably means: the first with the least edits, at most two.
func nearest(word string, options []string) string {
	best, distance := "", min(3, len(word)) // of a short word nothing would be left
	for _, o := range options {
		if o == word || o == "" {
			continue
		}
		if d := edits(strings.ToLower(word), strings.ToLower(o), distance); d < distance {
			best, distance = o, d
		}
	}
	return best
}

// edits returns how many letters must be added, left out, replaced or swapped with their neighbour to make b of a, or limit if it is no less.
func edits(a, b string, limit int) int {
	if len(a)-len(b) >= limit || len(b)-len(a) >= limit || max(len(a), len(b)) > 256 {
		return limit
	}
	// d[i][j] is the distance of the first i letters of a from the first j of b.
	d := make([][]int, len(a)+1)
	for i := range d {
		d[i] = make([]int, len(b)+1)
		d[i][0] = i
	}
	for j := range d[0] {
		d[0][j] = j
	}
	for i := 1; i <= len(a); i++ {
		for j := 1; j <= len(b); j++ {
			replaced := d[i-1][j-1]
			if a[i-1] != b[j-1] {
				replaced++
			}
			d[i][j] = min(replaced, d[i-1][j]+1, d[i][j-1]+1)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				d[i][j] = min(d[i][j], d[i-2][j-2]+1)
			}
		}
	}
	return min(d[len(a)][len(b)], limit)
}

// NearestStage returns the stage that a base image's name, which cannot be found as an image, probably means; "" if none is near.
func (f *File) NearestStage(ref string) string {
	var names []string
	for _, n := range f.nodes {
		if strings.EqualFold(n.Value, "from") && n.Next != nil && n.Next.Next != nil && n.Next.Next.Next != nil {
			names = append(names, n.Next.Next.Next.Value) // FROM base AS name
		}
	}
	return nearest(ref, names)
}
