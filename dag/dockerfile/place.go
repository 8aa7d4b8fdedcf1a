package dockerfile

import (
	"sort"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/moby/buildkit/frontend/dockerfile/parser"

	"img/dag"
)

// bom is the byte-order mark that editors put at the beginning of UTF-8 files.
const bom = "\ufeff"

// A text is one instruction as BuildKit's parser joins its lines, with the place of each piece in the file.
type text struct {
	f      *File
	joined string
	pieces []piece
	// line and end are its lines, without those of heredocs; last is the last line that belongs to it at all.
	line, end, last int
}

// A piece of a text begins at the offset at, and stands in a line from a byte on.
type piece struct{ at, line, from int }

// A span is a part of a text.
type span struct{ from, to int }

// textAt joins the instruction that begins with a line, as the parser does: continued lines lose their escape character, comments and
// empty lines between them are left out.
func (f *File) textAt(line, last int) *text {
	t := &text{f: f, line: line, end: line, last: max(line, last)}
	var joined strings.Builder
	for n := line; n >= 1 && n <= len(f.lines); n++ {
		raw, from := strings.TrimRight(f.lines[n-1], "\r"), 0
		if n == 1 && strings.HasPrefix(raw, bom) {
			from = len(bom)
		}
		trimmed := strings.TrimLeftFunc(raw[from:], unicode.IsSpace)
		switch {
		case n == line:
			from = len(raw) - len(trimmed)
		case trimmed == "" || trimmed[0] == '#':
			continue
		}
		body, more := f.continued(raw[from:])
		t.pieces, t.end = append(t.pieces, piece{joined.Len(), n, from}), n
		joined.WriteString(body)
		if !more {
			break
		}
	}
	t.joined, t.last = joined.String(), max(t.last, t.end)
	return t
}

// continued cuts the escape character that continues a line.
func (f *File) continued(line string) (body string, more bool) {
	cut := strings.TrimRight(line, " \t")
	n := len(cut) - 1
	if n < 0 || rune(cut[n]) != f.escape || n > 0 && rune(cut[n-1]) == f.escape {
		return line, false
	}
	return cut[:n], true
}

// node is the instruction that a line belongs to, nil if there is none.
func (f *File) node(line int) *parser.Node {
	i := sort.Search(len(f.nodes), func(i int) bool { return f.nodes[i].EndLine >= line })
	if i < len(f.nodes) && f.nodes[i].StartLine <= line {
		return f.nodes[i]
	}
	return nil
}

// pos is the place of an offset in the file.
func (t *text) pos(offset int) dag.Pos {
	i := sort.Search(len(t.pieces), func(i int) bool { return t.pieces[i].at > offset }) - 1
	if i < 0 {
		return dag.Pos{File: t.f.name, Line: t.line, End: t.line}
	}
	p := t.pieces[i]
	return t.f.place(p.line, p.from+offset-p.at)
}

// whole is the place of all of the instruction, with the column of its keyword.
func (t *text) whole() dag.Pos {
	pos := t.pos(0)
	pos.End = t.end
	return pos
}

// place makes a position of a line and an offset in it. Columns count characters, as editors do.
func (f *File) place(line, offset int) dag.Pos {
	pos := dag.Pos{File: f.name, Line: line, End: line}
	if line < 1 || line > len(f.lines) {
		return pos
	}
	text := f.lines[line-1]
	before := text[:min(max(offset, 0), len(text))]
	if line == 1 {
		before = strings.TrimPrefix(before, bom)
	}
	pos.Col = utf8.RuneCountInString(before) + 1
	return pos
}

// words are the words of the text, the keyword first. Blanks in quotes and escaped ones are no ends.
func (t *text) words() (out []span) {
	quote, start := byte(0), -1
	for i := 0; i < len(t.joined); i++ {
		c := t.joined[i]
		blank := quote == 0 && strings.IndexByte(" \t\r\v\f", c) >= 0
		switch {
		case blank && start >= 0:
			out, start = append(out, span{start, i}), -1
		case !blank && start < 0:
			start = i
		}
		switch {
		case rune(c) == t.f.escape && quote != '\'':
			i++
		case c == quote:
			quote = 0
		case quote == 0 && (c == '"' || c == '\''):
			quote = c
		}
	}
	if start >= 0 {
		out = append(out, span{start, len(t.joined)})
	}
	return out
}

func (t *text) of(s span) string { return t.joined[s.from:s.to] }

// keyword is the instruction's; that of the trigger, if it is an ONBUILD.
func (t *text) keyword() string {
	w := t.words()
	if len(w) > 1 && strings.EqualFold(t.of(w[0]), "onbuild") {
		return strings.ToUpper(t.of(w[1]))
	}
	if len(w) == 0 {
		return ""
	}
	return strings.ToUpper(t.of(w[0]))
}

// arguments are the words after the keyword: options, then the others.
func (t *text) arguments() (flags, args []span) {
	w := t.words()
	if len(w) > 1 && strings.EqualFold(t.of(w[0]), "onbuild") {
		w = w[1:]
	}
	if len(w) > 0 {
		w = w[1:]
	}
	for len(w) > 0 && strings.HasPrefix(t.of(w[0]), "--") {
		last := t.of(w[0]) == "--"
		flags, w = append(flags, w[0]), w[1:]
		if last {
			break
		}
	}
	return flags, w
}

// flag returns the last option of a name, "--name", and whether there is one.
func (t *text) flag(name string) (found span, ok bool) {
	flags, _ := t.arguments()
	for _, s := range flags {
		if key, _, _ := strings.Cut(t.of(s), "="); key == name {
			found, ok = s, true
		}
	}
	return found, ok
}

// value is the part of an option after its "=".
func (t *text) value(flag span) span {
	if i := strings.IndexByte(t.of(flag), '='); i >= 0 {
		return span{flag.from + i + 1, flag.to}
	}
	return flag
}

// A field is "key=value" of a RUN --mount.
type field struct {
	span
	key, value string
}

// mounts are the fields of each RUN --mount.
func (t *text) mounts() (out [][]field) {
	flags, _ := t.arguments()
	for _, s := range flags {
		if !strings.HasPrefix(t.of(s), "--mount=") {
			continue
		}
		var fields []field
		at := t.value(s)
		for _, part := range csv(t.of(at)) {
			word := strings.Trim(t.joined[at.from+part.from:at.from+part.to], `"`)
			key, value, _ := strings.Cut(word, "=")
			fields = append(fields, field{span{at.from + part.from, at.from + part.to}, strings.ToLower(key), value})
		}
		out = append(out, fields)
	}
	return out
}

// csv cuts at commas outside of quotes.
func csv(s string) (out []span) {
	quoted, start := false, 0
	for i := 0; i <= len(s); i++ {
		switch {
		case i == len(s), s[i] == ',' && !quoted:
			out, start = append(out, span{start, i}), i+1
		case s[i] == '"':
			quoted = !quoted
		}
	}
	return out
}

// variableIn returns where a variable is used in a text, -1 if it is not.
func variableIn(s, name string) int {
	for i := 0; i < len(s); i++ {
		if s[i] != '$' {
			continue
		}
		rest := strings.TrimPrefix(s[i+1:], "{")
		if after, ok := strings.CutPrefix(rest, name); ok && (after == "" || !nameByte(after[0])) {
			return i
		}
	}
	return -1
}

func nameByte(c byte) bool {
	return c == '_' || '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
}

// variables are the names used in a text, each once.
func variables(s string) (names []string) {
	seen := map[string]bool{}
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' {
			i++
			continue
		}
		if s[i] != '$' {
			continue
		}
		rest := strings.TrimPrefix(s[i+1:], "{")
		n := 0
		for n < len(rest) && nameByte(rest[n]) {
			n++
		}
		if name := rest[:n]; n > 0 && !seen[name] && (name[0] < '0' || name[0] > '9') {
			seen[name] = true
			names = append(names, name)
		}
	}
	return names
}

// base is the place of the image of a FROM.
func (f *File) base(pos dag.Pos) dag.Pos {
	t := f.textAt(pos.Line, pos.End)
	if _, args := t.arguments(); len(args) > 0 {
		return t.pos(args[0].from)
	}
	return pos
}
