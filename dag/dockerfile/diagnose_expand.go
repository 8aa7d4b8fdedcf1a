package dockerfile

// Errors about the expansion of variables, and about heredocs, in which they are expanded.

import (
	"regexp"
	"strconv"
	"strings"
)

// atHeredoc places the complaint at the "<<" of a heredoc.
func (c *complaint) atHeredoc(name string) {
	for _, s := range c.t.words() {
		if i := strings.Index(c.t.of(s), "<<"); i >= 0 && strings.Contains(c.t.of(s), name) {
			c.at(s)
			return
		}
	}
}

var heredocWord = regexp.MustCompile(`\d*<<(-?)\s*(["']?)([^\s<"';|&]+)["']?`)

// unterminated finds the heredoc that no line ends, and the line that was probably meant to.
func (c *complaint) unterminated([]string) {
	var open []int
	for _, m := range heredocWord.FindAllStringSubmatchIndex(c.t.joined, -1) {
		open = append(open, m...)
	}
	next := c.t.end // lines[next] is the first of the bodies
	for i := 0; i+8 <= len(open); i += 8 {
		s, tabs := span{open[i], open[i+1]}, open[i+2] < open[i+3]
		name := c.t.joined[open[i+6]:open[i+7]]
		end := c.terminator(next, name, tabs)
		if end > 0 {
			next = end
			continue
		}
		c.at(s)
		c.say("unterminated heredoc: no line after it is %q alone", name)
		c.nearTerminator(next, name, tabs)
		return
	}
}

// terminator is the line that ends a heredoc, 0 if there is none.
func (c *complaint) terminator(from int, name string, tabs bool) int {
	for n := from; n < len(c.f.lines); n++ {
		line := strings.TrimRight(c.f.lines[n], "\r")
		if tabs {
			line = strings.TrimLeft(line, "\t")
		}
		if line == name {
			return n + 1
		}
	}
	return 0
}

func (c *complaint) nearTerminator(from int, name string, tabs bool) {
	for n := from; n < len(c.f.lines); n++ {
		line := strings.TrimRight(c.f.lines[n], "\r")
		bare := strings.TrimSpace(line)
		switch {
		case strings.TrimRight(line, " \t") == name:
			c.hint("line %d has blanks after %s", n+1, name)
		case bare == name && !tabs && strings.TrimLeft(line, "\t") == name:
			c.hint("line %d has tabs before %s; <<-%s takes them away", n+1, name, name)
		case bare == name:
			c.hint("line %d has blanks before %s; only tabs may stand there, and only with <<-", n+1, name)
		case strings.EqualFold(bare, name):
			c.hint("line %d has %s, in other letters", n+1, bare)
		case bare == name+";" || bare == name+`\` || strings.Trim(bare, `"'`) == name:
			c.hint("line %d is %s; the end of a heredoc is %s without anything else", n+1, bare, name)
		default:
			continue
		}
		return
	}
}

// expansion is an error in the variables of a word, or of a heredoc's body.
func (c *complaint) expansion(m []string) {
	source, cause := m[1], m[2]
	if unquoted, err := strconv.Unquote(`"` + source + `"`); err == nil {
		source = unquoted
	}
	if unfinished.MatchString(cause) {
		cause = "syntax error: missing '}'"
		c.say("failed to process %q: %s", source, cause)
	}
	c.syntax = !requiredName.MatchString(cause)
	in := span{0, len(c.t.joined)}
	if i := strings.Index(c.t.joined, source); i >= 0 {
		in = span{i, i + len(source)}
		c.at(in)
	} else if line, ok := c.heredocLine(source); ok {
		c.inHeredoc(line, source, cause)
		return
	}
	if len(source) > maxShown {
		c.say("failed to process a word of %d bytes: %s", len(source), cause)
	}
	if at := faultIn(c.t.of(in), cause); at >= 0 {
		c.e.Pos = c.t.pos(in.from + at)
	}
	c.expansionHint(cause)
}

// heredocLine finds the body of a heredoc in the file: the index of its first line.
func (c *complaint) heredocLine(body string) (line int, ok bool) {
	first, _, _ := strings.Cut(body, "\n")
	for n := c.t.end; n < c.t.last && n < len(c.f.lines); n++ {
		if strings.TrimLeft(strings.TrimRight(c.f.lines[n], "\r"), "\t") == strings.TrimLeft(strings.TrimRight(first, "\r"), "\t") {
			return n, true
		}
	}
	return 0, false
}

func (c *complaint) inHeredoc(line int, body, cause string) {
	c.e.Pos, c.word = c.f.place(line+1, 0), span{}
	if at := faultIn(body, cause); at >= 0 {
		n := strings.Count(body[:at], "\n")
		from := at - (strings.LastIndexByte(body[:at], '\n') + 1)
		if n += line; n < len(c.f.lines) {
			tabs := len(c.f.lines[n]) - len(strings.TrimLeft(c.f.lines[n], "\t"))
			bodyLine := strings.Split(body, "\n")[n-line]
			tabs -= len(bodyLine) - len(strings.TrimLeft(bodyLine, "\t"))
			c.e.Pos = c.f.place(n+1, from+max(tabs, 0))
			c.body = bodyLine
		}
	}
	c.say("failed to process the heredoc: %s", cause)
	c.expansionHint(cause)
}

// unfinished is how BuildKit's lexer takes the end of a line or blank for an operator.
var unfinished = regexp.MustCompile(`(?s)^unsupported modifier \([^!-~]`)

var requiredName = regexp.MustCompile(`^([A-Za-z_]\w*): `)

var modifierText = regexp.MustCompile(`^unsupported modifier \((.*)\) in substitution`)

// faultIn returns where in a word the cause of a failed expansion is, -1 if that is not known.
func faultIn(word, cause string) int {
	if m := requiredName.FindStringSubmatch(cause); m != nil {
		for i := 0; i < len(word); i++ {
			rest, ok := strings.CutPrefix(word[i:], "${"+m[1])
			if ok && (strings.HasPrefix(rest, "?") || strings.HasPrefix(rest, ":?")) {
				return i
			}
		}
		return variableIn(word, m[1])
	}
	switch {
	case strings.Contains(cause, "missing '}'"), strings.Contains(cause, "missing '/'"), strings.Contains(cause, "matching }"), strings.Contains(cause, "matching /"):
		return strings.LastIndex(word, "${")
	case strings.Contains(cause, "single-quote"):
		return strings.LastIndexByte(word, '\'')
	case strings.Contains(cause, "double-quote"):
		return strings.LastIndexByte(word, '"')
	case strings.Contains(cause, "bad substitution"):
		return badSubstitution.FindStringIndex(word + "${}")[0]
	}
	if m := modifierText.FindStringSubmatch(cause); m != nil {
		at := regexp.MustCompile(`\$\{\w+` + regexp.QuoteMeta(m[1])).FindStringIndex(word)
		if at != nil {
			return at[0]
		}
	}
	return strings.IndexByte(word, '$')
}

// badSubstitution is a "${" without a name.
var badSubstitution = regexp.MustCompile(`\$\{[^A-Za-z0-9_@*#?$!-]`)

func (c *complaint) expansionHint(cause string) {
	switch m := requiredName.FindStringSubmatch(cause); {
	case m != nil:
		if c.b == nil {
			break
		}
		if line, _ := c.b.argLine(m[1]); line > 0 {
			if s := c.stage(); s == nil || c.t.line <= s.pos.End || !c.b.globalNames[m[1]] {
				c.hint("--build-arg %s=VALUE gives it a value", m[1])
			}
		}
	case strings.Contains(cause, "missing '}'") || strings.Contains(cause, "matching }"):
		c.hint("a } is missing, or a \\ before a $ that is meant as it is")
	case strings.Contains(cause, "quote"):
		c.hint("a quote has no partner; one that is meant as it is takes a %c before it", c.f.escape)
	case strings.Contains(cause, "bad substitution"):
		c.hint("the form is ${NAME}; a $ that is meant as it is takes a %c before it", c.f.escape)
	case strings.HasPrefix(cause, "unsupported modifier"):
		c.hint("there are ${x:-w} ${x-w} ${x:+w} ${x+w} ${x:?w} ${x?w} ${x#p} ${x##p} ${x%%p} ${x%%%%p} ${x/p/r} ${x//p/r}")
	}
}
