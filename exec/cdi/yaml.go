package cdi

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// The part of YAML that specifications are written in: block and flow collections, plain and quoted scalars on one line, comments. What is
// beyond it (anchors, tags, block scalars, several documents) is an error that says so. A library would cost the binary more than all of
// CDI.

// Limits of a document: how deep collections nest, and lines.
const (
	maxDepth = 64
	maxLines = 200_000
)

type yamlLine struct {
	number, indent int
	text           string
}

type yamlParser struct {
	lines []yamlLine
	depth int
}

// parseYAML returns maps of strings, lists, strings, bools, int64s and nil.
func parseYAML(text []byte) (any, error) {
	p := &yamlParser{}
	for i, l := range strings.Split(string(text), "\n") {
		l = strings.TrimRight(l, " \t\r")
		bare := strings.TrimLeft(l, " ")
		switch {
		case i > maxLines:
			return nil, fmt.Errorf("more than %d lines", maxLines)
		case strings.HasPrefix(bare, "\t"):
			return nil, fmt.Errorf("line %d: it is indented with a tab", i+1)
		case bare == "" || bare[0] == '#', l == "---" && len(p.lines) == 0:
		case l == "---", l == "...", l[0] == '%':
			return nil, fmt.Errorf("line %d: several documents, or directives, are not understood", i+1)
		default:
			p.lines = append(p.lines, yamlLine{i + 1, len(l) - len(bare), bare})
		}
	}
	if len(p.lines) == 0 {
		return nil, errors.New("it is empty")
	}
	v, err := p.block(p.lines[0].indent)
	if err == nil && len(p.lines) > 0 {
		err = p.errorf("its indentation fits nothing above")
	}
	return v, err
}

func (p *yamlParser) errorf(format string, args ...any) error {
	if len(p.lines) == 0 {
		return fmt.Errorf(format, args...)
	}
	return fmt.Errorf("line %d: "+format, append([]any{p.lines[0].number}, args...)...)
}

// block reads what begins at the first line and has its indentation.
func (p *yamlParser) block(indent int) (any, error) {
	if p.depth++; p.depth > maxDepth {
		return nil, p.errorf("more than %d collections in each other", maxDepth)
	}
	defer func() { p.depth-- }()
	first := p.lines[0].text
	if isItem(first) {
		return p.list(indent)
	}
	if _, _, ok := splitKey(first); ok && first[0] != '{' && first[0] != '[' {
		return p.mapping(indent)
	}
	v, err := p.scalar(first)
	if err == nil {
		p.lines = p.lines[1:]
	}
	return v, err
}

func isItem(text string) bool { return text == "-" || strings.HasPrefix(text, "- ") }

func (p *yamlParser) list(indent int) (any, error) {
	out := []any{}
	for len(p.lines) > 0 && p.lines[0].indent == indent && isItem(p.lines[0].text) {
		l := &p.lines[0]
		rest := strings.TrimLeft(l.text[1:], " ")
		var v any
		var err error
		if rest == "" || rest[0] == '#' {
			p.lines = p.lines[1:]
			v, err = p.nested(indent + 1)
		} else {
			// What follows the dash is a block of its own, as if it began there on a line.
			l.indent, l.text = indent+len(l.text)-len(rest), rest
			v, err = p.block(l.indent)
		}
		if err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	return out, nil
}

// nested reads the block that is indented at least so much, nil if there is none.
func (p *yamlParser) nested(atLeast int) (any, error) {
	if len(p.lines) == 0 || p.lines[0].indent < atLeast {
		return nil, nil
	}
	return p.block(p.lines[0].indent)
}

func (p *yamlParser) mapping(indent int) (any, error) {
	out := map[string]any{}
	for len(p.lines) > 0 && p.lines[0].indent == indent && !isItem(p.lines[0].text) {
		key, value, ok := splitKey(p.lines[0].text)
		if !ok {
			return nil, p.errorf("a key and a colon are expected")
		}
		name, err := p.key(key)
		if err != nil {
			return nil, err
		}
		if _, twice := out[name]; twice {
			return nil, p.errorf("the key %q stands here twice", name)
		}
		if value != "" {
			if out[name], err = p.scalar(value); err != nil {
				return nil, err
			}
			p.lines = p.lines[1:]
			continue
		}
		p.lines = p.lines[1:]
		if out[name], err = p.value(indent); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// value reads what stands below a key: an indented block, or a list that need not be indented.
func (p *yamlParser) value(indent int) (any, error) {
	if len(p.lines) > 0 && p.lines[0].indent == indent && isItem(p.lines[0].text) {
		return p.nested(indent)
	}
	return p.nested(indent + 1)
}

func (p *yamlParser) key(text string) (string, error) {
	v, err := p.scalar(text)
	if err != nil {
		return "", err
	}
	if s, ok := v.(string); ok && s != "<<" && !strings.HasPrefix(text, "? ") {
		return s, nil
	}
	return "", p.errorf("the key %s is no plain text", text)
}

// splitKey splits "key: value". The value has no comment behind it; a quoted key may contain a colon.
func splitKey(text string) (key, value string, ok bool) {
	at := 0
	if q := text[0]; q == '"' || q == '\'' {
		end := quoteEnd(text)
		if end < 0 {
			return "", "", false
		}
		at = end
	}
	for i := at; i < len(text); i++ {
		switch {
		case text[i] == '#' && i > 0 && text[i-1] == ' ':
			return "", "", false
		case text[i] == ':' && (i+1 == len(text) || text[i+1] == ' '):
			value = strings.TrimLeft(text[i+1:], " ")
			if strings.HasPrefix(value, "#") {
				value = ""
			}
			return strings.TrimRight(text[:i], " "), value, true
		}
	}
	return "", "", false
}

// quoteEnd is where a text that begins with a quote has its end, behind the closing quote; -1 if it has none.
func quoteEnd(text string) int {
	q := text[0]
	for i := 1; i < len(text); i++ {
		switch {
		case q == '"' && text[i] == '\\':
			i++
		case text[i] != q:
		case q == '\'' && i+1 < len(text) && text[i+1] == q:
			i++
		default:
			return i + 1
		}
	}
	return -1
}

// scalar reads a value that fills the rest of a line: a scalar or a flow collection, and perhaps a comment.
func (p *yamlParser) scalar(text string) (any, error) {
	f := &flow{p: p, rest: text}
	v, err := f.value("")
	if err != nil {
		return nil, err
	}
	tail := strings.TrimLeft(f.rest, " ")
	if tail != "" && (tail[0] != '#' || len(tail) == len(f.rest)) {
		return nil, p.errorf("%q follows the value", tail)
	}
	return v, nil
}

// A flow reads values within a line. Collections go on to no other line.
type flow struct {
	p    *yamlParser
	rest string
}

// value reads one value; a plain scalar ends before one of the bytes of until, or before a comment.
func (f *flow) value(until string) (any, error) {
	if f.p.depth++; f.p.depth > maxDepth {
		return nil, f.p.errorf("more than %d collections in each other", maxDepth)
	}
	defer func() { f.p.depth-- }()
	f.rest = strings.TrimLeft(f.rest, " ")
	if f.rest == "" {
		return nil, nil
	}
	switch f.rest[0] {
	case '"', '\'':
		return f.quoted()
	case '[':
		return f.list()
	case '{':
		return f.mapping()
	case '&', '*', '!', '|', '>', '@', '`', '%':
		return nil, f.p.errorf("%q begins what is not understood here (anchors, tags, texts of several lines)", f.rest[:1])
	}
	end := len(f.rest)
	for i := range f.rest {
		if strings.ContainsRune(until, rune(f.rest[i])) || f.rest[i] == '#' && i > 0 && f.rest[i-1] == ' ' ||
			until != "" && f.rest[i] == ':' && (i+1 == len(f.rest) || f.rest[i+1] == ' ') {
			end = i
			break
		}
	}
	text := f.rest[:end]
	plain := strings.TrimRight(text, " ")
	f.rest = f.rest[len(plain):]
	if until == "" && (strings.Contains(plain, ": ") || strings.HasSuffix(plain, ":")) {
		return nil, f.p.errorf("a colon within a text needs quotes")
	}
	return plainValue(plain), nil
}

func (f *flow) quoted() (any, error) {
	end := quoteEnd(f.rest)
	if end < 0 {
		return nil, f.p.errorf("a quote is not closed")
	}
	text := f.rest[:end]
	f.rest = f.rest[end:]
	if text[0] == '\'' {
		return strings.ReplaceAll(text[1:end-1], "''", "'"), nil
	}
	s, err := strconv.Unquote(strings.ReplaceAll(text, `\/`, "/"))
	if err != nil {
		return nil, f.p.errorf("%s has an escape that is not understood", text)
	}
	return s, nil
}

// next takes one of the bytes that may come, after blanks.
func (f *flow) next(want string) (byte, error) {
	f.rest = strings.TrimLeft(f.rest, " ")
	if f.rest == "" || !strings.ContainsRune(want, rune(f.rest[0])) {
		return 0, f.p.errorf("one of %q is expected before the end of the line", want)
	}
	b := f.rest[0]
	f.rest = f.rest[1:]
	return b, nil
}

func (f *flow) closed(by string) bool {
	f.rest = strings.TrimLeft(f.rest, " ")
	if !strings.HasPrefix(f.rest, by) {
		return false
	}
	f.rest = f.rest[1:]
	return true
}

func (f *flow) list() (any, error) {
	f.rest = f.rest[1:]
	out := []any{}
	for !f.closed("]") {
		v, err := f.value(",]}")
		if err != nil {
			return nil, err
		}
		out = append(out, v)
		if b, err := f.next(",]"); err != nil || b == ']' {
			return out, err
		}
	}
	return out, nil
}

func (f *flow) mapping() (any, error) {
	f.rest = f.rest[1:]
	out := map[string]any{}
	for !f.closed("}") {
		k, err := f.value(":,}")
		if err != nil {
			return nil, err
		}
		key, ok := k.(string)
		if _, twice := out[key]; !ok || twice {
			return nil, f.p.errorf("the key %v is no text, or stands here twice", k)
		}
		if _, err := f.next(":"); err != nil {
			return nil, err
		}
		if out[key], err = f.value(",}"); err != nil {
			return nil, err
		}
		if b, err := f.next(",}"); err != nil || b == '}' {
			return out, err
		}
	}
	return out, nil
}

// plainValue is what an unquoted text means. Numbers with a fraction stay text: no field is one, and a version may look like one.
func plainValue(s string) any {
	switch s {
	case "", "~", "null", "Null", "NULL":
		return nil
	case "true", "True", "TRUE":
		return true
	case "false", "False", "FALSE":
		return false
	}
	if strings.ContainsRune(s, '_') {
		return s
	}
	// Base 0 reads 0x1f, 0o17, and 017 as YAML 1.1 does.
	if n, err := strconv.ParseInt(strings.TrimPrefix(s, "+"), 0, 64); err == nil {
		return n
	}
	return s
}
