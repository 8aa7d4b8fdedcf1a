package dockerfile

import (
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"

	"img/dag"
)

// Rules of our own, for what BuildKit does silently. "# check=skip=" knows them like BuildKit's. Those that only files tell are in
// package exec.
const (
	ruleUndeclaredBuildArg = "UndeclaredBuildArg"
	ruleStageLookAlike     = "StageNameLookAlike"
	ruleDestinationNoSlash = "CopyDestinationWithoutSlash"
	ruleLinkIgnored        = "LinkIgnored"
	ruleArgHidesEnv        = "ArgHidesEnv"
	ruleLookAlikeDash      = "LookAlikeDash"
	ruleNotExpanded        = "VariableNotExpanded"
	ruleNotJSON            = "InvalidJSONForm"
	ruleEnvSameInstruction = "EnvSetInSameInstruction"
	ruleReplacementDollar  = "ReplacementWithDollar"
)

// checkTraps finds what the text of an instruction alone tells.
func (b *build) checkTraps(stages []instructions.Stage) {
	for _, st := range stages {
		for _, c := range st.Commands {
			lint := b.lint.WithMergedConfigFromComments(c.Comments())
			switch c := c.(type) {
			case *instructions.EnvCommand:
				b.envTrap(lint, c)
			case *instructions.RunCommand:
				b.notJSON(lint, c)
				b.runDash(lint, c)
			case *instructions.CopyCommand, *instructions.AddCommand, *instructions.VolumeCommand:
				b.notJSON(lint, c)
			}
		}
	}
}

// envTrap: in ENV a=1 b=$a, b gets the a from before the instruction.
func (b *build) envTrap(lint *linter.Linter, c *instructions.EnvCommand) {
	set := &environment{}
	for _, kv := range c.Env {
		word, err := b.fromWord(kv.Value, set)
		if err != nil {
			return // lowering says it
		}
		for name := range word.Matched {
			b.warn(lint, ruleEnvSameInstruction, b.f.at(c.Location()),
				fmt.Sprintf("ENV %s uses the $%s of before this instruction, not the one that it sets itself", kv.Key, name))
		}
		set.set(kv.Key, "1")
	}
}

// almostJSON begins like an array of strings. A shell's test, "[ -f x ]", has neither a quote at the bracket nor a comma.
var almostJSON = regexp.MustCompile(`^\[\s*(['"][^'"]*['"]\s*,|['"])`)

// notJSON finds an array that is none, so that the instruction has its shell form, or takes the brackets for a part of a path. For CMD
// and ENTRYPOINT there is JSONArgsRecommended.
func (b *build) notJSON(lint *linter.Linter, c instructions.Command) {
	pos := b.f.at(c.Location())
	n := b.f.node(pos.Line)
	if n == nil || n.Attributes["json"] {
		return
	}
	t := b.f.textAt(n.StartLine, n.EndLine)
	_, args := t.arguments()
	if len(args) == 0 {
		return
	}
	text := strings.TrimSpace(t.joined[args[0].from:])
	if !strings.HasSuffix(text, "]") || !almostJSON.MatchString(text) || text[1] == ' ' && !strings.Contains(text, ",") {
		return
	}
	meant := "words"
	if _, ok := c.(*instructions.RunCommand); ok {
		meant = "a command line of the shell"
	}
	at := t.pos(args[0].from)
	b.warn(lint, ruleNotJSON, at, fmt.Sprintf("%s is no JSON array of strings, and is taken for %s (JSON has double quotes alone)", text, meant))
}

// runDash finds an option of RUN that begins with a dash of a word processor, so that it is run as a command.
func (b *build) runDash(lint *linter.Linter, c *instructions.RunCommand) {
	pos := b.f.at(c.Location())
	t := b.f.textAt(pos.Line, pos.End)
	_, args := t.arguments()
	if len(args) == 0 {
		return
	}
	word := t.of(args[0])
	if name := lookAlike(word); name != "" {
		b.warn(lint, ruleLookAlikeDash, t.pos(args[0].from), fmt.Sprintf("The command %q begins with an %s, not with the -- of an option", word, name))
	}
}

// copyTraps warns of what BuildKit's COPY and ADD do without a word.
func (l *lowering) copyTraps(s *stage, c command, op *dag.Copy, paths []string, w copyWords) {
	pos := l.f.at(c.Location())
	if w.link && op.Chmod != "" {
		l.warn(s.lint, ruleLinkIgnored, l.f.word(pos, "--link"), w.keyword+" --link has no effect together with --chmod")
	}
	for _, src := range paths {
		if name := lookAlike(src); name != "" {
			l.warn(s.lint, ruleLookAlikeDash, l.f.word(pos, src), fmt.Sprintf("The source %q begins with an %s, not with the -- of an option", src, name))
		}
	}
	for _, p := range op.Exclude {
		if variableUse.MatchString(p) {
			l.warn(s.lint, ruleNotExpanded, pos, fmt.Sprintf("--exclude=%s is a pattern as it stands: variables in it are not expanded", p))
		}
	}
	pattern := len(paths) == 1 && strings.ContainsAny(paths[0], "*?[")
	if several := len(paths)+len(op.Files) > 1; (several || pattern) && !strings.HasSuffix(op.Dest, "/") && !op.Parents {
		l.warn(s.lint, ruleDestinationNoSlash, pos, fmt.Sprintf(
			"Several files may be copied to %q, which does not end in a slash: if it is no directory yet, they overwrite each other", op.Dest))
	}
}

var variableUse = regexp.MustCompile(`\$(\{|[A-Za-z_])`)

// excluded finds sources that the ignore file excludes. With "!" in the file, it cannot be told without looking at the files.
func (l *lowering) excluded(s *stage, c command, paths []string, verb string) {
	g := l.o.Ignore
	if g == nil || len(g.rules) == 0 || slices.ContainsFunc(g.rules, func(r rule) bool { return r.include }) {
		return
	}
	for _, src := range paths {
		src = path.Clean(src)
		isRoot := src == "." || src == "/"
		if isRoot && !slices.ContainsFunc(g.rules, func(r rule) bool { return r.text == "*" || r.text == "**" || r.text == "**/*" }) {
			continue
		}
		if ignored, _ := g.Match(src); ignored || isRoot {
			s.lint.Run(&linter.RuleCopyIgnoredFile, c.Location(), linter.RuleCopyIgnoredFile.Format(verb, src))
		}
	}
}

// replacement is "${x//pattern/", up to the replacement.
var replacement = regexp.MustCompile(`\$\{[A-Za-z_][A-Za-z0-9_]*//(?:[^/}\\]|\\.)+/`)

// replacementTrap: BuildKit replaces by regular expression, so that $1 in a replacement stands for a group, of which there is none.
func (l *lowering) replacementTrap(s *stage, c instructions.Command, word string) {
	for _, at := range replacement.FindAllStringIndex(word, -1) {
		text, ok := upToBrace(word[at[1]:])
		if !ok || !strings.Contains(text, "$") {
			continue
		}
		out, err := l.plainWord(text, s.env)
		if err == nil && strings.Contains(out, "$") {
			l.warn(s.lint, ruleReplacementDollar, l.f.at(c.Location()),
				fmt.Sprintf("The replacement %q has a $, which names a group of a regular expression here", out))
		}
	}
}

// upToBrace cuts a text at the brace that closes it.
func upToBrace(s string) (string, bool) {
	depth := 0
	for i := 0; i < len(s); i++ {
		switch s[i] {
		case '\\':
			i++
		case '{':
			depth++
		case '}':
			if depth == 0 {
				return s[:i], true
			}
			depth--
		}
	}
	return "", false
}
