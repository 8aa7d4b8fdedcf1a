package dockerfile

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"

	"img/dag"
)

// Explain adds to an error about this file what can be said under given options: the column, the variables that led there, a hint. It
// is for errors that are found outside, as of an image that is not there.
func (f *File) Explain(o Options, err error) error {
	b, berr := f.prepare(o)
	if berr != nil {
		b = nil
	}
	return f.explain(b, err)
}

// explain narrows an error to the guilty word, and adds the variables that led there and a hint. b is nil before the options are known.
func (f *File) explain(b *build, err error) error {
	var e *Error
	if !errors.As(err, &e) || e.explained || e.Pos.File != f.name {
		return err
	}
	e.explained = true
	c := &complaint{f: f, b: b, e: e, said: e.Err.Error()}
	if e.Pos.IsZero() {
		c.file()
		return err
	}
	if e.Pos.Line < 1 || e.Pos.Line > len(f.lines) {
		return err
	}
	c.t = f.textAt(e.Pos.Line, e.Pos.End)
	if n := f.node(e.Pos.Line); n != nil {
		c.t = f.textAt(n.StartLine, n.EndLine)
	}
	if e.Pos.Col > 0 {
		c.word = c.t.wordAt(e.Pos)
	} else {
		e.Pos = c.t.whole()
	}
	c.diagnose()
	c.variables()
	if e.Hint == "" {
		e.Hint = c.lookAlike()
	}
	return err
}

// wordAt is the word that stands at a place, an empty span if none does.
func (t *text) wordAt(at dag.Pos) (found span) {
	for _, w := range t.words() {
		if p := t.pos(w.from); p.Line == at.Line && p.Col <= at.Col {
			found = w
		}
	}
	return found
}

// A complaint is an error about one instruction, on the way to be explained.
type complaint struct {
	f *File
	b *build // nil where the options are not known yet
	t *text
	e *Error
	// said is the error's text as it was.
	said string
	// word is what is guilty, an empty span for the whole instruction; body is the line of a heredoc, if it is there.
	word span
	body string
	// syntax: the word could not even be read, so that values have nothing to do with it.
	syntax bool
}

// at places the complaint at a part of the instruction.
func (c *complaint) at(s span) {
	c.e.Pos, c.word = c.t.pos(s.from), s
}

func (c *complaint) hint(format string, args ...any) {
	if c.e.Hint == "" {
		c.e.Hint = fmt.Sprintf(format, args...)
	}
}

// say replaces the words of the error.
func (c *complaint) say(format string, args ...any) {
	c.e.Err = &reworded{text: fmt.Sprintf(format, args...), err: c.e.Err}
}

// stage is the stage of the guilty line, nil for what stands before the first, if the options are not known, or if its FROM failed.
func (c *complaint) stage() (found *stage) {
	if c.b == nil {
		return nil
	}
	for _, s := range c.b.stages {
		if s.pos.Line <= c.e.Pos.Line {
			found = s
		}
	}
	for _, n := range c.f.nodes {
		if found != nil && strings.EqualFold(n.Value, "from") && n.StartLine > found.pos.Line && n.StartLine <= c.e.Pos.Line {
			return nil
		}
	}
	return found
}

// variables says what the variables in the guilty word stand for, and where that comes from.
func (c *complaint) variables() {
	if c.b == nil || c.b.global == nil {
		return
	}
	text := c.t.of(c.word)
	if c.body != "" {
		text = c.body
	}
	if c.syntax || strings.Contains(c.said, "variable expansion") {
		return
	}
	names := variables(text)
	c.e.With = c.b.explainVariables(c.stage(), c.t.line, names, nil)
	for _, name := range names {
		if hint := c.b.scopeHint(c.stage(), c.t.line, name); hint != "" {
			c.e.Hint = hint
			return
		}
	}
}

// maxShown is how much of a variable's value is shown, in bytes.
const maxShown = 100

// explainVariables says what variables stand for at a line: "with V=1.2 from --build-arg;
// B=busybox, the default on line 1; X is not set".
// known has the values of that line, unless they are the stage's current ones.
func (b *build) explainVariables(s *stage, line int, names []string, known func(string) (string, bool)) string {
	var out []string
	for _, name := range names[:min(len(names), 8)] {
		value, ok, from := b.lookUp(s, line, name)
		if known != nil {
			value, ok = known(name)
		}
		if !ok {
			out = append(out, name+unset)
			continue
		}
		if len(value) > maxShown {
			value = strings.ToValidUTF8(value[:maxShown], "") + "…"
		}
		if value == "" || strings.ContainsAny(value, " \t\n;\"") {
			value = strconv.Quote(value)
		}
		out = append(out, name+"="+value+from)
	}
	if len(out) == 0 {
		return ""
	}
	slices.SortStableFunc(out, func(x, y string) int { return cmp.Compare(strings.Count(x, unset), strings.Count(y, unset)) })
	text := strings.Join(out, "; ")
	if !strings.HasSuffix(out[0], unset) {
		text = "with " + text
	}
	return text
}

// unset ends what is said of a variable without a value.
const unset = " is not set"

// lookUp returns a variable's value before a line, and where it comes from.
func (b *build) lookUp(s *stage, line int, name string) (value string, ok bool, from string) {
	if s == nil || line <= s.pos.End {
		value, ok = b.global.Get(name)
		return value, ok, b.globalOrigin(name)
	}
	if s.env == nil {
		return "", false, ""
	}
	value, ok = s.env.Get(name)
	return value, ok, b.origins(s, line, name)
}

// globalOrigin says where the value of a global ARG comes from.
func (b *build) globalOrigin(name string) string {
	if _, given := b.o.BuildArgs[name]; given {
		return " from --build-arg"
	}
	for _, n := range b.f.nodes {
		if strings.EqualFold(n.Value, "from") {
			break
		}
		for a := n.Next; a != nil; a = a.Next {
			if key, _, has := strings.Cut(a.Value, "="); key == name && has {
				return fmt.Sprintf(", the default on line %d", n.StartLine)
			}
		}
	}
	if _, ok := b.args[name]; ok {
		return " from the environment"
	}
	return ", which is predefined"
}

// origins says where the value of a variable in a stage comes from: the last ENV or ARG before the line, in the stage or those below it.
func (b *build) origins(s *stage, line int, name string) string {
	for at := s; at != nil; at, line = at.base, at.pos.Line {
		for i := len(at.commands) - 1; i >= 0; i-- {
			c := at.commands[i]
			pos := b.f.at(c.Location())
			if at == s && pos.Line >= line && !c.trigger {
				continue
			}
			if from, ok := b.sets(c, name, pos.Line); ok {
				return from
			}
		}
		if at.base == nil && at.outside.ref != "" {
			return ", the ENV of " + at.outside.ref
		}
	}
	return ", which is predefined"
}

// sets says how an instruction sets a variable, if it does.
func (b *build) sets(c command, name string, line int) (from string, ok bool) {
	where := fmt.Sprintf("on line %d", line)
	if c.trigger {
		where = "in an ONBUILD of the base"
	}
	switch i := c.Command.(type) {
	case *instructions.EnvCommand:
		for _, e := range i.Env {
			if e.Key == name {
				return ", the ENV " + where, true
			}
		}
	case *instructions.ArgCommand:
		for _, a := range i.Args {
			if a.Key != name {
				continue
			}
			if _, given := b.o.BuildArgs[name]; given {
				return " from --build-arg", true
			}
			if a.Value != nil {
				return ", the default " + where, true
			}
			if _, isGlobal := b.global.Get(name); isGlobal {
				return b.globalOrigin(name), true
			}
		}
	}
	return "", false
}

// scopeHint tells of an ARG that stands in the wrong scope to be seen at a line, or of a name that is nearly the one used.
func (b *build) scopeHint(s *stage, line int, name string) string {
	if _, ok, _ := b.lookUp(s, line, name); ok {
		return ""
	}
	declared, value := b.argLine(name)
	inFrom := s == nil || s.env == nil || line <= s.pos.End // a stage without an environment is not begun
	switch {
	case declared > line:
		if inFrom {
			return fmt.Sprintf("ARG %s on line %d comes after it; FROM sees the ARGs before the first FROM", name, declared)
		}
		return fmt.Sprintf("ARG %s on line %d comes after it", name, declared)
	case declared > 0 && inFrom && !b.globalNames[name]:
		return fmt.Sprintf("ARG %s on line %d belongs to a stage; FROM sees only the ARGs before the first FROM", name, declared)
	case declared > 0 && !inFrom && b.globalNames[name] && declared < b.stages[0].pos.Line:
		return fmt.Sprintf("ARG %s on line %d stands before FROM; a stage sees it after an \"ARG %s\" of its own", name, declared, name)
	case declared > 0 && !value:
		return fmt.Sprintf("ARG %s on line %d has no default; --build-arg %s=VALUE gives it a value", name, declared, name)
	}
	known := b.global.Keys()
	if !inFrom {
		known = s.env.Keys()
	}
	return didYouMean(nearest(name, known))
}

// argLine returns where an ARG of a name stands first, 0 for nowhere, and whether it has a default.
func (b *build) argLine(name string) (line int, value bool) {
	for _, n := range b.f.nodes {
		if !strings.EqualFold(n.Value, "arg") {
			continue
		}
		for a := n.Next; a != nil; a = a.Next {
			if key, _, has := strings.Cut(a.Value, "="); key == name {
				return n.StartLine, has
			}
		}
	}
	return 0, false
}
