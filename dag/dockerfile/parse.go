package dockerfile

import (
	"bytes"
	"errors"
	"fmt"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
	"github.com/moby/buildkit/frontend/dockerfile/parser"

	"img/dag"
)

// Limits of what a Dockerfile may hold. They are far above what people write, and keep a hostile file from costing more than its size.
const (
	maxFile         = 16 << 20 // BuildKit's
	maxLine         = 1 << 20  // a logical line, continuations joined
	maxHeredoc      = 4 << 20
	maxHeredocs     = 64 << 20 // heredocs of one instruction, each as long as the longest
	maxInstructions = 100_000
	maxStages       = 2000
	maxFlags        = 1000 // options of one instruction
	maxNesting      = 100  // of ${a:-${b:-...}}
)

// A File is a parsed Dockerfile. It is not changed by Refs and Lower, so it may be lowered for several platforms, also at once.
type File struct {
	name   string
	lines  []string
	nodes  []*parser.Node
	escape rune
	// check is the text of "# check=".
	check string
	// emptyContinuations are the ends of lines with an empty line inside a continuation.
	emptyContinuations []dag.Pos
}

// Parse reads a Dockerfile. name is used in positions.
func Parse(name string, src []byte) (*File, error) {
	f := &File{name: name, lines: strings.Split(string(src), "\n"), escape: parser.DefaultEscapeToken}
	if err := f.parse(src); err != nil {
		if other := f.notText(src); other != nil {
			return nil, other
		}
		return nil, f.explain(nil, err)
	}
	return f, nil
}

func (f *File) parse(src []byte) error {
	if len(src) > maxFile {
		return f.fail(dag.Pos{}, fmt.Errorf("the file is larger than %d MiB", maxFile>>20))
	}
	if len(src) == 0 {
		return f.fail(dag.Pos{}, errors.New("the Dockerfile cannot be empty"))
	}
	if syntax, _, at, ok := parser.DetectSyntax(src); ok && !ownSyntax(syntax) {
		return f.foreign(syntax, f.at(at))
	}
	if escape, _, _, ok := parser.ParseDirective("escape", src); ok && escape == "`" {
		f.escape = '`'
	}
	parsed, err := parser.Parse(bytes.NewReader(src))
	if err != nil {
		return f.located(err, directiveLine(err, f.name))
	}
	f.nodes, f.escape = parsed.AST.Children, parsed.EscapeToken
	var checkAt []parser.Range
	f.check, _, checkAt, _ = parser.ParseDirective("check", src)
	for _, w := range parsed.Warnings {
		if w.URL == linter.RuleNoEmptyContinuation.URL {
			f.emptyContinuations = append(f.emptyContinuations, f.at([]parser.Range{*w.Location}))
		}
	}
	if err := f.checkLimits(); err != nil {
		return err
	}
	if _, err := linter.ParseLintOptions(f.check); err != nil {
		return f.fail(f.at(checkAt), fmt.Errorf("parse check options: %w", err))
	}
	if _, _, err = f.read(silent()); err != nil {
		return err
	}
	return nil
}

// directiveLine places an error in a directive: BuildKit's parser counts these lines from 0, and all others from 1.
func directiveLine(err error, name string) dag.Pos {
	text := err.Error()
	if !strings.Contains(text, "parser directive can be used") && !strings.Contains(text, "invalid escape token") {
		return dag.Pos{}
	}
	var at *parser.LocationError
	if !errors.As(err, &at) || len(at.Locations) == 0 || len(at.Locations[0]) == 0 {
		return dag.Pos{}
	}
	line := at.Locations[0][0].Start.Line + 1
	return dag.Pos{File: name, Line: line, End: line}
}

// ownSyntax reports whether a front end image's language is the one read here.
func ownSyntax(ref string) bool {
	if ref == "dockerfile.v0" {
		return true
	}
	repo, _, _ := strings.Cut(ref, "@")
	repo, _, _ = strings.Cut(strings.TrimPrefix(repo, "docker.io/"), ":")
	return repo == "docker/dockerfile" || repo == "docker/dockerfile-upstream"
}

func (f *File) foreign(ref string, pos dag.Pos) error {
	return &Error{Pos: f.named(pos), Err: fmt.Errorf("the front end %q is not supported: only the language of docker/dockerfile is", ref),
		Hint: "remove the syntax directive if the file is a plain Dockerfile"}
}

func (f *File) checkLimits() error {
	if len(f.nodes) > maxInstructions {
		return f.fail(f.at(f.nodes[maxInstructions].Location()), fmt.Errorf("more than %d instructions", maxInstructions))
	}
	for _, n := range f.nodes {
		if err := checkNode(n); err != nil {
			return f.fail(f.at(n.Location()), err)
		}
	}
	return nil
}

func checkNode(n *parser.Node) error {
	switch {
	case len(n.Original) > maxLine:
		return fmt.Errorf("a line is longer than %d MiB", maxLine>>20)
	case len(n.Flags) > maxFlags:
		return fmt.Errorf("more than %d options", maxFlags)
	}
	isRun := strings.EqualFold(n.Value, "run") // its text is the shell's
	deep := !isRun && nesting(n.Original) > maxNesting
	longest := 0
	for _, h := range n.Heredocs {
		if longest = max(longest, len(h.Content)); longest > maxHeredoc {
			return fmt.Errorf("heredoc %s is larger than %d MiB", h.Name, maxHeredoc>>20)
		}
		deep = deep || !isRun && h.Expand && nesting(h.Content) > maxNesting
	}
	switch {
	case longest*len(n.Heredocs) > maxHeredocs:
		return fmt.Errorf("heredocs of one instruction are larger than %d MiB", maxHeredocs>>20)
	case deep:
		return errNested
	}
	return nil
}

// nesting returns how deep "${" stand in each other.
func nesting(s string) (deepest int) {
	depth := 0
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '$' && i+1 < len(s) && s[i+1] == '{':
			depth++
			deepest = max(deepest, depth)
		case s[i] == '}' && depth > 0:
			depth--
		}
	}
	return deepest
}

// silent is a linter that says nothing. A nil one does not do: BuildKit's package crashes on it where a check directive precedes an instruction.
func silent() *linter.Linter { return linter.New(&linter.Config{}) }

// read makes typed instructions. They are made anew for every use, because expanding variables changes them.
func (f *File) read(lint *linter.Linter) (stages []instructions.Stage, globals []instructions.ArgCommand, err error) {
	for _, n := range f.nodes {
		v, err := instructions.ParseInstructionWithLinter(n, lint)
		if err != nil {
			return nil, nil, f.instructionError(err, n)
		}
		switch v := v.(type) {
		case *instructions.Stage:
			stages = append(stages, *v)
			if len(stages) > maxStages {
				return nil, nil, f.fail(f.at(n.Location()), fmt.Errorf("more than %d stages", maxStages))
			}
		case *instructions.ArgCommand:
			if len(stages) == 0 {
				globals = append(globals, *v)
				continue
			}
			stages[len(stages)-1].AddCommand(v)
		case instructions.Command:
			if len(stages) == 0 {
				return nil, nil, &Error{Pos: f.at(n.Location()), Err: errors.New("no build stage in current context"), Hint: "begin with FROM"}
			}
			stages[len(stages)-1].AddCommand(v)
		default:
			return nil, nil, f.fail(f.at(n.Location()), fmt.Errorf("%T is not a command type", v))
		}
	}
	if len(stages) == 0 {
		return nil, nil, &Error{Pos: dag.Pos{File: f.name}, Err: errors.New("dockerfile contains no stages to build"), Hint: "begin with FROM"}
	}
	return stages, globals, nil
}

// at makes a position of BuildKit's list of lines.
func (f *File) at(ranges []parser.Range) dag.Pos {
	pos := dag.Pos{File: f.name}
	for _, r := range ranges {
		if pos.Line == 0 || r.Start.Line < pos.Line {
			pos.Line = r.Start.Line
		}
		pos.End = max(pos.End, r.End.Line)
	}
	return pos
}

// word narrows a position to the first place in it where a word stands for itself.
func (f *File) word(pos dag.Pos, word string) dag.Pos {
	if word == "" {
		return pos
	}
	for i := max(pos.Line, 1); i <= pos.End && i <= len(f.lines); i++ {
		if col := wordColumn(f.lines[i-1], word); col > 0 {
			return f.place(i, col-1)
		}
	}
	return pos
}

// wordColumn returns where a word begins in a line, in bytes from 1, or 0. Words are apart by blanks, and by what stands in options.
func wordColumn(line, word string) int {
	const apart = " \t\r=,\"'[]"
	for from := 0; ; {
		i := strings.Index(line[from:], word)
		if i < 0 {
			return 0
		}
		start, end := from+i, from+i+len(word)
		if (start == 0 || strings.IndexByte(apart, line[start-1]) >= 0) && (end == len(line) || strings.IndexByte(apart, line[end]) >= 0) {
			return start + 1
		}
		from = start + 1
	}
}
