package dockerfile

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/buildkit/frontend/dockerfile/shell"

	"img/dag"
)

// linter makes BuildKit's linter of the check directive, collecting into b.warnings.
func (b *build) newLinter() (*linter.Linter, error) {
	text := b.f.check
	if v, ok := b.args["BUILDKIT_DOCKERFILE_CHECK"]; ok {
		text = v
	}
	c, err := linter.ParseLintOptions(text)
	if err != nil {
		return nil, b.f.fail(dag.Pos{}, fmt.Errorf("parse check options: %w", err))
	}
	c.Warn = func(rule, description, url, text string, at []parser.Range) {
		b.spent += len(text) + 256
		b.warnings = append(b.warnings, Warning{Pos: b.f.at(at), Rule: rule, Text: text, Description: description, URL: url})
	}
	return linter.New(c), nil
}

// warn reports one of our own rules, if the check directives do not skip it.
func (b *build) warn(lint *linter.Linter, rule string, pos dag.Pos, text string) {
	if _, skipped := lint.SkippedRules[rule]; skipped || lint.SkipAll {
		return
	}
	b.warnings = append(b.warnings, Warning{Pos: b.f.named(pos), Rule: rule, Text: text, Own: true})
}

// sortedWarnings returns each warning once, in the order of the file.
func (b *build) sortedWarnings() []Warning {
	out := slices.Clone(b.warnings)
	slices.SortStableFunc(out, func(x, y Warning) int { return x.Pos.Line - y.Pos.Line })
	return slices.Compact(out)
}

// violation is the error of "# check=error=true". Rules of our own do not count: BuildKit builds such a file.
func (b *build) violation() error {
	if !b.lint.ReturnAsError {
		return nil
	}
	var first dag.Pos
	rules := map[string]bool{}
	for _, w := range b.sortedWarnings() {
		if w.Own {
			continue
		}
		if len(rules) == 0 {
			first = w.Pos
		}
		rules[w.Rule] = true
	}
	if len(rules) == 0 {
		return nil
	}
	return b.f.fail(first, &Violation{Rules: slices.Sorted(maps.Keys(rules))})
}

// A Violation is what "# check=error=true" makes of warnings.
type Violation struct{ Rules []string }

func (v *Violation) Error() string {
	return "lint violation found for rules: " + strings.Join(v.Rules, ", ")
}

// checkFile runs the rules that look at the whole file.
func (b *build) checkFile(stages []instructions.Stage, globals []instructions.ArgCommand) {
	for _, pos := range b.f.emptyContinuations {
		at := []parser.Range{{Start: parser.Position{Line: pos.Line}, End: parser.Position{Line: pos.End}}}
		b.lint.Run(&linter.RuleNoEmptyContinuation, at, linter.RuleNoEmptyContinuation.Format())
	}
	b.checkStageNames(stages)
	b.checkCasing(stages)
	b.checkDefaultBases(stages, globals)
	b.checkTraps(stages)
}

func (b *build) checkStageNames(stages []instructions.Stage) {
	seen := map[string]bool{"": true}
	for _, st := range stages {
		if st.Name == scratch || st.Name == dag.MainContext {
			b.lint.Run(&linter.RuleReservedStageName, st.Location, linter.RuleReservedStageName.Format(st.Name))
		}
		if seen[st.Name] && st.Name != "" {
			b.lint.Run(&linter.RuleDuplicateStageName, st.Location, linter.RuleDuplicateStageName.Format(st.Name))
		}
		seen[st.Name] = true
	}
}

// checkCasing finds keywords in mixed case, or in another case than most.
func (b *build) checkCasing(stages []instructions.Stage) {
	lower, upper := 0, 0
	keywords(stages, func(name string, _ []parser.Range) {
		switch name {
		case strings.ToLower(name):
			lower++
		case strings.ToUpper(name):
			upper++
		}
	})
	want, fold := "uppercase", strings.ToUpper
	if lower > upper {
		want, fold = "lowercase", strings.ToLower
	}
	keywords(stages, func(name string, at []parser.Range) {
		if fold(name) != name {
			b.lint.Run(&linter.RuleConsistentInstructionCasing, at, linter.RuleConsistentInstructionCasing.Format(name, want))
		}
	})
}

func keywords(stages []instructions.Stage, do func(name string, at []parser.Range)) {
	for _, st := range stages {
		do(st.OrigCmd, st.Location)
		for _, c := range st.Commands {
			do(c.Name(), c.Location())
		}
	}
}

// checkDefaultBases finds bases that are no reference unless build arguments are given.
func (b *build) checkDefaultBases(stages []instructions.Stage, globals []instructions.ArgCommand) {
	e, err := b.globalArgs(globals, nil)
	if err != nil {
		return // the same error comes again, or a build argument avoids it
	}
	for _, st := range stages {
		word, err := b.fromWord(st.BaseName, e)
		if err != nil {
			return
		}
		if _, err := reference.ParseNormalizedNamed(word.Result); err != nil {
			b.lint.Run(&linter.RuleInvalidDefaultArgInFrom, st.Location, linter.RuleInvalidDefaultArgInFrom.Format(st.BaseName))
		}
	}
}

// checkFrom finds variables in FROM that no global ARG declares.
func (b *build) checkFrom(st instructions.Stage, lint *linter.Linter, word shell.ProcessWordResult) {
	for _, name := range slices.Sorted(maps.Keys(word.Unmatched)) {
		if b.globalNames[name] {
			continue
		}
		near := nearest(name, append(b.global.Keys(), slices.Sorted(maps.Keys(b.globalNames))...))
		lint.Run(&linter.RuleUndefinedArgInFrom, st.Location, linter.RuleUndefinedArgInFrom.Format(name, near))
	}
}

func (b *build) checkFromPlatform(st instructions.Stage, lint *linter.Linter, word shell.ProcessWordResult) {
	_, isTarget := word.Matched["TARGETPLATFORM"]
	if v, _ := b.global.Get("TARGETPLATFORM"); isTarget && len(word.Matched) == 1 && len(word.Unmatched) == 0 && word.Result == v {
		lint.Run(&linter.RuleRedundantTargetPlatform, st.Location, linter.RuleRedundantTargetPlatform.Format(st.Platform))
	}
	p, err := platforms.Parse(word.Result)
	if err != nil || len(word.Matched)+len(word.Unmatched) > 0 ||
		strings.Contains(st.Name, p.OS) || strings.Contains(st.Name, p.Architecture) {
		return
	}
	lint.Run(&linter.RuleFromPlatformFlagConstDisallowed, st.Location, linter.RuleFromPlatformFlagConstDisallowed.Format(word.Result))
}

func checkBasePlatform(s *stage, ref string, want, got platforms.Platform) {
	if want.OS == got.OS && want.Architecture == got.Architecture {
		return
	}
	text := linter.RuleInvalidBaseImagePlatform.Format(ref,
		platforms.FormatAll(platforms.Normalize(want)), platforms.FormatAll(platforms.Normalize(got)))
	s.lint.Run(&linter.RuleInvalidBaseImagePlatform, s.source.Location, text)
}

var (
	secretName = regexp.MustCompile(`(?i)(?:_|^)(?:apikey|auth|credentials?|key|password|pword|passwd|secret|token)(?:_|$)`)
	publicName = regexp.MustCompile(`(?i)(?:_|^)(?:public|file|version)(?:_|$)`)
)

func (l *lowering) noSecret(s *stage, instruction, key string, c instructions.Command) {
	if secretName.MatchString(key) && !publicName.MatchString(key) {
		s.lint.Run(&linter.RuleSecretsUsedInArgOrEnv, c.Location(), linter.RuleSecretsUsedInArgOrEnv.Format(instruction, key))
	}
}

// once notes a CMD, ENTRYPOINT or HEALTHCHECK, of which only the last of a stage counts. The one without effect gets the warning.
func (s *stage) once(previous *[]parser.Range, c instructions.Command) {
	if *previous != nil {
		s.lint.Run(&linter.RuleMultipleInstructionsDisallowed, *previous, linter.RuleMultipleInstructionsDisallowed.Format(c.Name()))
	}
	*previous = c.Location()
}

// skipped are the rules that a linter does not report, for what is found only when a step runs.
func skipped(lint *linter.Linter) []string {
	if lint.SkipAll {
		return []string{"all"}
	}
	return slices.Sorted(maps.Keys(lint.SkippedRules))
}
