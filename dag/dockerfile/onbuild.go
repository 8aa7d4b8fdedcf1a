package dockerfile

import (
	"errors"
	"fmt"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
)

// addTriggers puts the ONBUILD instructions of a stage's base before its own. Those of a base stage count for its children alone,
// not for their children; they count even where a named context stands for the base stage, as in BuildKit, while those of that context's
// image do not.
func (b *build) addTriggers(s *stage, ofImage func(*stage) ([]string, error)) error {
	var texts []string
	switch {
	case s.replaced:
		return nil
	case s.base != nil:
		for _, c := range s.base.source.Commands {
			if t, ok := c.(*instructions.OnbuildCommand); ok {
				texts = append(texts, t.Expression)
			}
		}
	case !s.outside.empty():
		var err error
		if texts, err = ofImage(s); err != nil {
			return err
		}
	}
	triggers := make([]command, 0, len(texts)+len(s.commands))
	for _, text := range texts {
		c, err := b.trigger(s, text)
		if err != nil {
			return b.triggerError(s, text, err)
		}
		triggers = append(triggers, c)
	}
	s.commands = append(triggers, s.commands...)
	return nil
}

func (b *build) triggerError(s *stage, text string, err error) error {
	var e *Error
	if !errors.As(b.f.located(err, s.pos), &e) {
		return err
	}
	return &Error{Pos: e.Pos, Err: fmt.Errorf("onbuild trigger %q: %w", text, e.Err), Hint: e.Hint}
}

// trigger parses one ONBUILD instruction. It has the place of the FROM that caused it.
func (b *build) trigger(s *stage, text string) (command, error) {
	if err := b.spend(1024 + len(text)); err != nil {
		return command{}, err
	}
	parsed, err := parser.Parse(strings.NewReader(text))
	if err != nil {
		return command{}, err
	}
	if len(parsed.AST.Children) != 1 {
		return command{}, errors.New("onbuild trigger should be a single expression")
	}
	node := parsed.AST.Children[0]
	node.StartLine, node.EndLine = s.pos.Line, s.pos.End
	if err := checkNode(node); err != nil {
		return command{}, err
	}
	v, err := instructions.ParseInstructionWithLinter(node, silent())
	if err != nil {
		return command{}, err
	}
	c, ok := v.(instructions.Command)
	if !ok {
		return command{}, fmt.Errorf("%s is no instruction of a stage", node.Value)
	}
	if arg, ok := c.(*instructions.ArgCommand); ok {
		for _, a := range arg.Args {
			b.declared[a.Key] = true
		}
	}
	cmd, err := b.command(s, c)
	cmd.trigger = true
	return cmd, err
}
