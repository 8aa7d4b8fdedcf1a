package dockerfile

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
	"github.com/moby/buildkit/frontend/dockerfile/shell"
)

// Limits of expansion. A few lines that double a variable, or replace every letter of a long one by a long text, would fill any memory.
const (
	maxExpanded = 1 << 20  // a word: more than any argument or variable that Linux hands to a process
	maxName     = 64 << 10 // a step's name; a longer one stays as written
	maxEstimate = 64 << 20 // what an expansion may hold on its way
	maxMatching = 16 << 20 // steps of matching patterns in a build: bytes of the value times those of the pattern
	maxText     = 64 << 20 // all words, names and histories of a build together
)

// expandWord expands the variables of one word and warns of unknown ones.
func (l *lowering) expandWord(s *stage, c instructions.Command, word string) (string, error) {
	out, unmatched, err := l.process(l.lex, word, s.env, maxExpanded)
	l.undefined(s, c, unmatched)
	if err == nil {
		l.replacementTrap(s, c, word)
	}
	return out, err
}

// expandHeredoc expands the body of a heredoc, in which quotes mean nothing, and the escape is always the backslash.
func (l *lowering) expandHeredoc(s *stage, c instructions.Command, body string) (string, error) {
	lex := shell.NewLex('\\')
	lex.SkipProcessQuotes = true
	out, unmatched, err := l.process(lex, body, s.env, maxHeredoc)
	l.undefined(s, c, unmatched)
	return out, err
}

// expandName expands what people see of a step; a name that cannot be expanded stays as written.
func (b *build) expandName(lex *shell.Lex, name string, env *environment) string {
	if name = valid(name); nesting(name) > maxNesting || strings.IndexByte(name, 0) >= 0 {
		return name
	}
	size, matching := b.measure(name, env)
	if b.named += matching; size > maxName || b.named > maxMatching {
		return name
	}
	if expanded, _, err := lex.ProcessWord(name, env); err == nil {
		b.spent += len(expanded)
		return expanded
	}
	return name
}

// plainWord expands a word without warnings.
func (b *build) plainWord(word string, env *environment) (string, error) {
	out, _, err := b.process(b.lex, word, env, maxExpanded)
	return out, err
}

// plainWords expands a word and splits the result at its blanks.
func (b *build) plainWords(word string, env *environment) ([]string, error) {
	word, err := b.lexable(word, env)
	if err != nil {
		return nil, err
	}
	words, err := b.lex.ProcessWords(word, env)
	if err != nil {
		return nil, err
	}
	return words, b.spend(len(strings.Join(words, " ")))
}

// fromWord expands a word of FROM, and says which variables it has.
func (b *build) fromWord(word string, env *environment) (shell.ProcessWordResult, error) {
	word, err := b.lexable(word, env)
	if err != nil {
		return shell.ProcessWordResult{}, err
	}
	return b.lex.ProcessWordWithMatches(word, env)
}

func (b *build) process(lex *shell.Lex, word string, env *environment, limit int) (string, map[string]struct{}, error) {
	word, err := b.lexable(word, env)
	if err != nil {
		return "", nil, err
	}
	out, unmatched, err := lex.ProcessWord(word, env)
	tooMuch := b.spend(len(out))
	if err == nil && len(out) > limit {
		err = fmt.Errorf("a word expands to %d bytes, more than %d MiB", len(out), limit>>20)
	}
	if err == nil {
		err = tooMuch
	}
	return out, unmatched, err
}

// lexable checks that a word can be expanded within the limits, and makes it valid UTF-8 as BuildKit's lexer would, with a line on
// stderr for each byte.
func (b *build) lexable(word string, env *environment) (string, error) {
	if strings.IndexByte(word, 0) >= 0 {
		return "", errors.New("a word has a NUL byte in it")
	}
	word = valid(word)
	if !strings.Contains(word, "$") {
		return word, nil
	}
	if nesting(word) > maxNesting {
		return "", errNested
	}
	size, matching := b.measure(word, env)
	if size > maxEstimate {
		return "", fmt.Errorf("a word may expand to %d MiB, more than %d", size>>20, maxEstimate>>20)
	}
	if b.matched += matching; b.matched > maxMatching {
		return "", errors.New("patterns and the values that they are matched with are too long")
	}
	return word, nil
}

// valid replaces each byte that is no UTF-8.
func valid(word string) string {
	if utf8.ValidString(word) {
		return word
	}
	return string([]rune(word))
}

// measure returns how long a word can become, as a word or as a heredoc, and the work of matching its patterns.
func (b *build) measure(word string, env *environment) (size, matching int) {
	z := sizer{word: word, env: env, escape: b.f.escape, lengths: map[string]int{}}
	size = z.until(0)
	z.plainQuotes, z.at = true, 0
	return max(size, z.until(0)), z.matching
}

var errNested = fmt.Errorf("variables are nested deeper than %d", maxNesting)

// errTooMuch is the error of a Dockerfile that would fill the memory with its variables.
var errTooMuch = fmt.Errorf("the variables, histories and settings of this Dockerfile expand to more than %d MiB", maxText>>20)

// spend counts what lowering has made, in bytes.
func (b *build) spend(n int) error {
	if b.spent += n; b.spent > maxText {
		return errTooMuch
	}
	return nil
}

func (l *lowering) undefined(s *stage, c instructions.Command, unmatched map[string]struct{}) {
	if s.unknown {
		return
	}
	for _, name := range slices.Sorted(maps.Keys(unmatched)) {
		if s.args.has(name) || scanArgs[name] {
			continue
		}
		text := linter.RuleUndefinedVar.Format(name, l.near(name, s.env.Keys))
		s.lint.Run(&linter.RuleUndefinedVar, c.Location(), text)
	}
}

// maxNear is how much is compared in search of names that were meant, in a whole build: about sixteen pairs of letters are one.
const maxNear = 1 << 23

// near is nearest, within a bound.
func (b *build) near(word string, options func() []string) string {
	if b.compared > maxNear {
		return ""
	}
	names := options()
	b.compared += len(names) * (1 + len(word)*len(word)/16)
	return nearest(word, names)
}

// A sizer goes over a word as BuildKit's lexer does, and adds up how long the result can become at most.
type sizer struct {
	word        string
	at          int
	env         shell.EnvGetter
	escape      rune
	plainQuotes bool // quotes mean nothing, and the escape is the backslash: a heredoc
	// matching is the work of matching patterns.
	matching int
	// lengths are those of the values so far, since a word may name a long one often.
	lengths map[string]int
}

const eof = -1

// enough keeps sums and products from running over.
func enough(n int) int { return min(n, 1<<30) }

func (z *sizer) peek() rune {
	if z.at >= len(z.word) {
		return eof
	}
	r, _ := utf8.DecodeRuneInString(z.word[z.at:])
	return r
}

func (z *sizer) next() rune {
	if z.at >= len(z.word) {
		return eof
	}
	r, n := utf8.DecodeRuneInString(z.word[z.at:])
	z.at += n
	return r
}

func (z *sizer) escapes(r rune) bool {
	if z.plainQuotes {
		return r == '\\'
	}
	return r == z.escape
}

// until goes on to a character or the end; 0 is none.
func (z *sizer) until(stop rune) (n int) {
	for r := z.peek(); r != eof; r = z.peek() {
		start := z.at
		switch {
		case stop != 0 && r == stop:
			z.at++
			return n
		case r == '$':
			n = enough(n + z.dollar())
			continue
		case r == '\'' && !z.plainQuotes:
			z.next()
			for r := z.next(); r != eof && r != '\''; r = z.next() {
			}
		case r == '"' && !z.plainQuotes:
			n = enough(n + z.doubleQuoted())
		case z.escapes(r):
			z.next()
			z.next()
		default:
			z.next()
		}
		n = enough(n + z.at - start)
	}
	return n
}

// doubleQuoted returns what the variables between double quotes add.
func (z *sizer) doubleQuoted() (n int) {
	z.next()
	for {
		switch r := z.peek(); {
		case r == '$':
			n = enough(n + z.dollar())
		case r == eof || r == '"':
			z.next()
			return n
		case z.escapes(r):
			z.next()
			if r := z.peek(); r == '"' || r == '$' || z.escapes(r) {
				z.next()
			}
		default:
			z.next()
		}
	}
}

// dollar is $name, ${name} or ${name<operator>word}.
func (z *sizer) dollar() int {
	start := z.at
	z.next()
	if z.peek() != '{' {
		return z.value(z.name()) + z.at - start
	}
	z.next()
	if r := z.peek(); r == eof || r == '{' || r == '}' || r == ':' {
		return 0 // an error
	}
	value := z.value(z.name())
	r := z.next()
	if r == ':' {
		r = z.next()
	}
	switch r {
	case '+', '-', '?', '#', '%':
		word := z.until('}')
		if r == '#' || r == '%' {
			z.match(value, word)
		}
		return enough(value + word + z.at - start)
	case '/':
		return z.replacement(value) + z.at - start
	}
	return value + z.at - start
}

// replacement is ${name/pattern/text} and ${name//pattern/text}. The text may name the match, $0, any number of times.
func (z *sizer) replacement(value int) int {
	all := z.peek() == '/'
	if all {
		z.next()
	}
	pattern := z.until('/')
	text := z.until('}')
	z.match(value, pattern)
	if all {
		return enough(enough(2*value+2)*enough(text+1)) + pattern
	}
	return enough(value + text + pattern)
}

func (z *sizer) match(value, pattern int) {
	z.matching = enough(z.matching + enough(value+1)*enough(pattern+1))
}

func (z *sizer) value(name string) int {
	n, ok := z.lengths[name]
	if !ok {
		v, _ := z.env.Get(name)
		n = len(v)
		if !utf8.ValidString(v) {
			n *= 3 // patterns replace each bad byte
		}
		z.lengths[name] = n
	}
	return n
}

// name reads a variable's name: a number, a special parameter, or letters, digits and underscores.
func (z *sizer) name() string {
	start := z.at
	switch r := z.peek(); {
	case unicode.IsDigit(r):
		for unicode.IsDigit(z.peek()) {
			z.next()
		}
	case strings.ContainsRune("@*#?-$!", r):
		z.next()
	default:
		for r := z.peek(); unicode.IsLetter(r) || unicode.IsDigit(r) || r == '_'; r = z.peek() {
			z.next()
		}
	}
	return z.word[start:z.at]
}
